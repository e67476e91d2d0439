//! What the examples have in common: two flags.

use std::net::SocketAddr;

use sockring::app::{App, Builder};
use sockring::runtime::Descriptors;

/// `--port N` (or the environment's `PORT`), `--workers N`, and flags of the example's own.
pub(crate) struct Flags {
    args: Vec<String>,
}

#[allow(dead_code, reason = "not every example uses every flag")]
impl Flags {
    /// The flags of this process.
    pub(crate) fn read() -> Self {
        Self { args: std::env::args().skip(1).collect() }
    }

    /// The value behind `--name`.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        let at = self.args.iter().position(|arg| arg.strip_prefix("--") == Some(name))?;
        self.args.get(at + 1).cloned()
    }

    /// The value behind `--name` as a number.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        self.value(name)?.parse().ok()
    }

    /// 127.0.0.1, or `--host`, with the port.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        let host = self.value("host").and_then(|host| host.parse().ok()).unwrap_or([127, 0, 0, 1].into());
        let wanted = self.value("port").or_else(|| std::env::var("PORT").ok());
        SocketAddr::new(host, wanted.and_then(|port| port.parse().ok()).unwrap_or(port))
    }

    /// How many workers; 1 by default.
    pub(crate) fn workers(&self) -> usize {
        self.number("workers").unwrap_or(1)
    }

    /// A server by these flags, `--descriptors auto|normal|direct` included.
    pub(crate) fn builder(&self, port: u16) -> Builder {
        let descriptors = match self.value("descriptors").as_deref() {
            Some("normal") => Descriptors::Normal,
            Some("direct") => Descriptors::Direct,
            _ => Descriptors::Auto,
        };
        App::builder().listen(self.address(port)).workers(self.workers()).descriptors(descriptors)
    }
}

/// Prints where the server listens, the line that test harnesses wait for, and serves until SIGTERM.
pub(crate) fn serve(
    builder: Builder,
    setup: impl Fn(&App) + Send + Sync + 'static,
) -> Result<(), Box<dyn std::error::Error>> {
    let running = builder.start(setup)?;
    for address in running.addresses() {
        println!("listening on {address}");
    }
    running.run_until_signal()?;
    Ok(())
}
