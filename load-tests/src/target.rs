//! The server under test: one that this tool starts and ends, or one that runs already.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::{Outcome, fail, sys};

/// How long a server may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Ports tried when a server is to be started.
const PORTS_TRIED: u16 = 100;

/// Where the server is and where both sides run; common to all scenarios.
#[derive(Args, Debug, Clone)]
pub(crate) struct TargetArgs {
    /// Command that starts the server (`--port N` is appended); `floor:single` and `floor:joined` are built in
    #[arg(long, value_name = "CMD", conflicts_with = "addr")]
    pub(crate) server: Option<String>,
    /// Address of a server that runs already
    #[arg(long, requires = "pid")]
    pub(crate) addr: Option<SocketAddrV4>,
    /// Process of the server that runs already
    #[arg(long, requires = "addr")]
    pub(crate) pid: Option<u32>,
    /// The server that runs already speaks TLS; one that is started does if its command has `--tls-cert`
    #[arg(long, requires = "addr")]
    pub(crate) tls: bool,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

/// Which side runs where.
#[derive(Args, Debug, Clone)]
pub(crate) struct Cores {
    /// Cores of the server, whose ksoftirqd is charged to it
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) server_cores: Vec<usize>,
    /// Cores of this client; threads take them in turn
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) client_core: Vec<usize>,
}

impl Cores {
    /// Moves this thread to its core; one that does not exist is reported once and otherwise ignored.
    pub(crate) fn pin_client(&self) {
        if let Err(error) = sys::pin_to_cores(&self.client_core) {
            eprintln!("the client is not pinned to {:?}: {error}", self.client_core);
        }
    }
}

impl TargetArgs {
    /// The server's name in reports.
    pub(crate) fn name(&self) -> String {
        match (&self.server, self.addr) {
            (Some(command), _) => command.clone(),
            (None, Some(addr)) => addr.to_string(),
            (None, None) => "floor:single".to_owned(),
        }
    }

    /// Starts the server or attaches to it.
    pub(crate) fn start(&self) -> Outcome<Server> {
        match (self.addr, self.pid) {
            (Some(addr), Some(pid)) => Ok(Server { child: None, addr, pid, tls: self.tls }),
            _ => Server::start(&self.name(), &self.cores.server_cores),
        }
    }
}

/// A server that runs.
pub(crate) struct Server {
    child: Option<Child>,
    /// Where it listens.
    pub(crate) addr: SocketAddrV4,
    /// Its process.
    pub(crate) pid: u32,
    /// Whether it speaks TLS.
    pub(crate) tls: bool,
}

impl Server {
    /// Starts a command on some cores and waits until it says `listening on ADDR`.
    pub(crate) fn start(command: &str, cores: &[usize]) -> Outcome<Self> {
        let port = free_port()?;
        let mut words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if let [only] = words.as_slice()
            && let Some(mode) = only.strip_prefix("floor:")
        {
            let program = std::env::current_exe()?.to_string_lossy().into_owned();
            let addr = format!("127.0.0.1:{port}");
            words = [&program, "floor", "--mode", mode, "--addr", &addr].map(str::to_owned).to_vec();
        } else {
            words.extend(["--port".to_owned(), port.to_string()]);
        }
        let [program, arguments @ ..] = words.as_slice() else { return fail("no server command".into()) };
        let mut builder = Command::new(program);
        builder.args(arguments).env("PORT", port.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
        let cores = cores.to_vec();
        // SAFETY: between fork and exec only sched_setaffinity and prctl are called, on memory that exists already:
        // nothing allocates or takes a lock.
        unsafe {
            builder.pre_exec(move || {
                sys::die_with_parent()?;
                sys::pin_to_cores(&cores)
            });
        }
        let mut child = builder.spawn().map_err(|error| format!("{program}: {error}"))?;
        let stdout = child.stdout.take();
        let pid = child.id();
        let default = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        // From here on an error must end the child: Drop does.
        let mut server = Self { child: Some(child), addr: default, pid, tls: command.contains("--tls-cert") };
        let (say, heard) = mpsc::channel();
        std::thread::spawn(move || {
            // Reads to the end, so that a talkative server does not block on a full pipe.
            for line in stdout.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok)
            {
                if let Some(addr) = line.trim().strip_prefix("listening on ") {
                    let _ = say.send(addr.trim().to_owned());
                }
            }
        });
        match heard.recv_timeout(START_LIMIT) {
            Ok(text) => server.addr = listening_address(&text, default),
            Err(error) => return fail(format!("`{command}` does not say `listening on ADDR`: {error}")),
        }
        Ok(server)
    }

    /// Ends a server that this tool started: SIGTERM, and SIGKILL after five seconds.
    pub(crate) fn stop(mut self) -> Outcome {
        self.end()
    }

    fn end(&mut self) -> Outcome {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if child.try_wait()?.is_some() {
            return fail("the server ended by itself during the run".into());
        }
        sys::terminate(child.id())?;
        let start = Instant::now();
        while start.elapsed() < STOP_LIMIT {
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("the server did not end within {STOP_LIMIT:?} of SIGTERM: killed");
        child.kill()?;
        child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}

/// Understands `127.0.0.1:80`, `http://127.0.0.1:80/` and `*:80`; an address of all interfaces is reached by loopback.
fn listening_address(text: &str, default: SocketAddrV4) -> SocketAddrV4 {
    let text = text.trim_start_matches("http://").trim_end_matches('/');
    match text.parse::<SocketAddr>() {
        Ok(SocketAddr::V4(addr)) if addr.ip().is_loopback() => addr,
        Ok(addr) => SocketAddrV4::new(Ipv4Addr::LOCALHOST, addr.port()),
        Err(_) => match text.rsplit_once(':').and_then(|(_, port)| port.parse().ok()) {
            Some(port) => SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
            None => default,
        },
    }
}

/// A port that no client socket of this machine can hold by chance: below the range the kernel chooses from, and
/// below 1024 if this user may (as root). A port of that range may be taken by one of thousands of client sockets.
fn free_port() -> Outcome<u16> {
    let first_number =
        |path| -> Option<u16> { std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok() };
    let lowest_ephemeral = first_number("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or(32_768);
    let offset = (std::process::id() % 199) as u16;
    let starts = [700 + offset, lowest_ephemeral.saturating_sub(1000).max(1024) + offset];
    for start in starts {
        for port in start..start + PORTS_TRIED {
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
    }
    fail("no port to listen on".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_servers_print_them() {
        let default = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let port = |text| listening_address(text, default).to_string();
        assert_eq!(port("127.0.0.1:801"), "127.0.0.1:801");
        assert_eq!(port("http://127.0.0.1:801/"), "127.0.0.1:801");
        assert_eq!(port("0.0.0.0:801"), "127.0.0.1:801");
        assert_eq!(port("[::]:801"), "127.0.0.1:801");
        assert_eq!(port("*:801"), "127.0.0.1:801");
        assert_eq!(port("somewhere"), "127.0.0.1:1");
    }
}
