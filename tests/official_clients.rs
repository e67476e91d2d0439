//! The official clients against the example servers.
//!
//! Every test starts one example, runs one suite of `tests/clients` against it, and then asks the server to
//! end. The suites know nothing of Rust: without `SOCKRING_URL` they run against the reference implementation
//! instead, see `tests/clients/README.md`. What they need is installed by `make deps`.
//!
//! The examples are those that `cargo test` built beside this binary. `SOCKRING_EXAMPLES` names another
//! folder, for instance of a release build.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take until it listens.
const READY_MAX: Duration = Duration::from_secs(10);
/// How long a server may take to end after SIGTERM.
const END_MAX: Duration = Duration::from_secs(5);
/// How long a suite may run; each is written to end within a minute by itself.
const SUITE_MAX: Duration = Duration::from_secs(120);
/// How often another port is tried when somebody took the one that was free a moment ago.
const PORT_TRIES: usize = 5;

/// The suites measure time and load, so they run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const ENGINE: [&str; 2] = ["--profile", "engine"];
const ENGINE_CLIENT: [&str; 2] = ["--profile", "engine-client"];
const ENGINE3: [&str; 2] = ["--profile", "engine3"];
const ENGINE_TLS: [&str; 3] = ["--profile", "engine", "--tls"];
const ENGINE_CLIENT_TLS: [&str; 3] = ["--profile", "engine-client", "--tls"];
const ENGINE3_TLS: [&str; 3] = ["--profile", "engine3", "--tls"];
const TRUSTING: [&str; 2] = ["--trust-proxy", "loopback"];
const SOCKETIO: [&str; 2] = ["--profile", "socketio"];
const CLIENT: [&str; 2] = ["--profile", "client"];
const DEFLATE: [&str; 1] = ["--deflate"];
const MSGPACK: [&str; 2] = ["--parser", "msgpack"];
const JSON_LINES: [&str; 2] = ["--parser", "json"];
/// The runner of k6's scenarios, and their size in tests.
const K6: &str = "../../load-tests/k6/run.mjs";
const SMALL: (&str, &str) = ("SIZE", "small");
/// Sockets in the process's descriptor table instead of the ring's own, as on kernels before 6.13.
const NORMAL: [&str; 2] = ["--descriptors", "normal"];

/// https and wss, with a certificate made for this run: [`Certificate`] puts its files in the place of this.
const TLS: [&str; 1] = ["--tls"];
const TLS_NORMAL: [&str; 3] = ["--tls", "--descriptors", "normal"];

/// Declares one test per line: an example with its arguments, and the suite that runs against it.
macro_rules! suites {
    ($($name:ident: $example:literal $args:expr, $workers:literal => $script:tt $env:expr;)*) => {$(
        #[test]
        fn $name() {
            Suite { example: $example, args: &$args, workers: $workers, script: $script, env: &$env }.run();
        }
    )*};
}

suites! {
    features_over_polling: "feature_server" [], 1 => "socketio.test.mjs" [("TRANSPORT", "polling")];
    features_over_websocket: "feature_server" [], 1 => "socketio.test.mjs" [("TRANSPORT", "websocket")];
    features_over_an_upgrade: "feature_server" [], 1 => "socketio.test.mjs" [("TRANSPORT", "upgrade")];
    features_over_polling_on_3_workers: "feature_server" [], 3 =>
        "socketio.test.mjs" [("TRANSPORT", "polling")];
    features_over_websocket_on_3_workers: "feature_server" [], 3 =>
        "socketio.test.mjs" [("TRANSPORT", "websocket")];
    features_over_an_upgrade_on_3_workers: "feature_server" [], 3 =>
        "socketio.test.mjs" [("TRANSPORT", "upgrade")];

    features_with_msgpack_over_polling: "feature_server" MSGPACK, 3 =>
        "socketio.test.mjs" [("TRANSPORT", "polling"), ("PARSER", "msgpack")];
    features_with_msgpack_over_websocket: "feature_server" MSGPACK, 3 =>
        "socketio.test.mjs" [("TRANSPORT", "websocket"), ("PARSER", "msgpack")];
    features_with_msgpack_over_an_upgrade: "feature_server" MSGPACK, 1 =>
        "socketio.test.mjs" [("TRANSPORT", "upgrade"), ("PARSER", "msgpack")];
    parser_msgpack: "feature_server" MSGPACK, 3 => "parsers.test.mjs" [("PARSER", "msgpack")];
    parser_of_ones_own: "feature_server" JSON_LINES, 3 => "parsers.test.mjs" [("PARSER", "json")];

    dynamic_namespaces: "feature_server" [], 1 => "namespaces.test.mjs" [];
    dynamic_namespaces_on_3_workers: "feature_server" [], 3 => "namespaces.test.mjs" [];

    a_server_that_closes: "feature_server" [], 1 => "close.test.mjs" [];
    a_server_that_closes_on_3_workers: "feature_server" [], 3 => "close.test.mjs" [];

    pressure: "feature_server" [], 1 => "pressure.test.mjs" [];
    pressure_on_3_workers: "feature_server" [], 3 => "pressure.test.mjs" [];
    pressure_over_tls: "feature_server" TLS, 3 => "pressure.test.mjs" [];
    versions_of_the_client: "feature_server" [], 1 => "versions.test.mjs" [];
    versions_of_the_client_on_3_workers: "feature_server" [], 3 => "versions.test.mjs" [];
    versions_of_the_client_over_tls: "feature_server" TLS, 3 => "versions.test.mjs" [];
    bundles_in_a_browser: "feature_server" [], 1 => "bundles.test.mjs" [];
    bundles_in_a_browser_on_3_workers: "feature_server" [], 3 => "bundles.test.mjs" [];
    msgpack_bundle_in_a_browser: "feature_server" MSGPACK, 3 =>
        "bundles.test.mjs" [("PARSER", "msgpack")];
    bundles_in_a_browser_over_tls: "feature_server" TLS, 3 => "bundles.test.mjs" [];

    engine_protocol: "conformance_server" ENGINE, 1 => "engine.test.mjs" [];
    engine_protocol_on_3_workers: "conformance_server" ENGINE, 3 => "engine.test.mjs" [];
    engine_client: "conformance_server" ENGINE_CLIENT, 1 => "engine_client.test.mjs" [];
    engine_client_on_3_workers: "conformance_server" ENGINE_CLIENT, 3 => "engine_client.test.mjs" [];
    engine_v3: "conformance_server" ENGINE3, 1 => "engine3.test.mjs" [];
    engine_v3_on_3_workers: "conformance_server" ENGINE3, 3 => "engine3.test.mjs" [];
    socketio_protocol: "conformance_server" SOCKETIO, 1 => "socketio_protocol.test.mjs" [];
    socketio_protocol_on_3_workers: "conformance_server" SOCKETIO, 3 => "socketio_protocol.test.mjs" [];
    json_as_the_reference: "conformance_server" SOCKETIO, 1 => "json.test.mjs" [];
    client_profile: "conformance_server" CLIENT, 1 => "client.test.mjs" [];
    client_profile_on_3_workers: "conformance_server" CLIENT, 3 => "client.test.mjs" [];

    example_acks: "acks" [], 2 => "examples.test.mjs" [("EXAMPLE", "acks")];
    example_admin_namespace: "admin_namespace" ["--token", "letmein"], 2 =>
        "examples.test.mjs" [("EXAMPLE", "admin_namespace"), ("ADMIN_TOKEN", "letmein")];
    example_binary_upload: "binary_upload" [], 2 => "examples.test.mjs" [("EXAMPLE", "binary_upload")];
    example_presence: "presence" [], 2 => "examples.test.mjs" [("EXAMPLE", "presence")];
    example_slow_readers: "slow_readers" [], 2 => "examples.test.mjs" [("EXAMPLE", "slow_readers")];
    example_slow_readers_over_tls: "slow_readers" TLS, 2 =>
        "examples.test.mjs" [("EXAMPLE", "slow_readers")];
    example_private_messaging: "private_messaging" [], 2 =>
        "examples.test.mjs" [("EXAMPLE", "private_messaging")];

    cluster_of_2_servers: "cluster_server" [], 2 => "cluster.test.mjs" [];
    cluster_of_3_servers: "cluster_server" ["--servers", "3"], 2 => "cluster.test.mjs" [("SERVERS", "3")];
    cluster_with_msgpack: "cluster_server" ["--msgpack"], 2 => "cluster.test.mjs" [("PARSER", "msgpack")];
    cluster_with_recovery: "cluster_server" ["--servers", "3", "--recovery"], 2 =>
        "cluster.test.mjs" [("SERVERS", "3"), ("RECOVERY", "1")];
    cluster_with_recovery_and_msgpack: "cluster_server" ["--recovery", "--msgpack"], 2 =>
        "cluster.test.mjs" [("RECOVERY", "1"), ("PARSER", "msgpack")];
    cluster_with_recovery_under_traffic: "cluster_server" ["--servers", "3", "--recovery", "--tick", "3"], 2 =>
        "cluster.test.mjs" [("SERVERS", "3"), ("RECOVERY", "1"), ("TICK", "3")];

    recovery: "recovery" [], 1 => "recovery.test.mjs" [];
    recovery_on_3_workers: "recovery" [], 3 => "recovery.test.mjs" [];
    recovery_that_expires: "recovery" ["--window", "700"], 3 => "recovery.test.mjs" [("WINDOW", "700")];
    recovery_that_asks_middlewares: "recovery" ["--ask-middlewares"], 3 => "recovery.test.mjs" [("ASK", "1")];
    recovery_with_msgpack: "recovery" ["--msgpack"], 3 => "recovery.test.mjs" [("PARSER", "msgpack")];
    recovery_under_traffic: "recovery" ["--tick", "2"], 3 => "recovery.test.mjs" [("TICK", "2")];

    features_over_websocket_on_normal_descriptors: "feature_server" NORMAL, 3 =>
        "socketio.test.mjs" [("TRANSPORT", "websocket")];
    spread_while_clients_upgrade_on_normal_descriptors: "fanout_server" NORMAL, 3 =>
        "spread.test.mjs" [("MODE", "mixed")];
    garbage_on_normal_descriptors: "feature_server" NORMAL, 3 => "garbage.mjs" [];
    churn_on_normal_descriptors: "feature_server" NORMAL, 3 => "churn.mjs" [];

    features_over_polling_and_tls: "feature_server" TLS, 1 => "socketio.test.mjs" [("TRANSPORT", "polling")];
    features_over_websocket_and_tls: "feature_server" TLS, 1 =>
        "socketio.test.mjs" [("TRANSPORT", "websocket")];
    features_over_an_upgrade_and_tls: "feature_server" TLS, 1 =>
        "socketio.test.mjs" [("TRANSPORT", "upgrade")];
    features_over_polling_and_tls_on_3_workers: "feature_server" TLS, 3 =>
        "socketio.test.mjs" [("TRANSPORT", "polling")];
    features_over_an_upgrade_and_tls_on_3_workers: "feature_server" TLS, 3 =>
        "socketio.test.mjs" [("TRANSPORT", "upgrade")];
    features_over_an_upgrade_and_tls_on_normal_descriptors: "feature_server" TLS_NORMAL, 3 =>
        "socketio.test.mjs" [("TRANSPORT", "upgrade")];
    spread_while_clients_upgrade_over_tls: "fanout_server" TLS, 3 => "spread.test.mjs" [("MODE", "mixed")];
    websocket_and_http_app_over_tls: "fanout_server" TLS, 3 => "ws_app.test.mjs" [];
    python_clients_over_tls: "feature_server" TLS, 3 => "python_client.py" [];
    churn_over_tls: "feature_server" TLS, 3 => "churn.mjs" [("COUNT", "2000")];
    chat_in_a_browser_over_tls: "chat" TLS, 3 => "chat.test.mjs" [];

    engine_protocol_over_tls: "conformance_server" ENGINE_TLS, 3 => "engine.test.mjs" [];
    engine_client_over_tls: "conformance_server" ENGINE_CLIENT_TLS, 3 => "engine_client.test.mjs" [];
    engine_v3_over_tls: "conformance_server" ENGINE3_TLS, 3 => "engine3.test.mjs" [];

    a_trusted_proxy: "feature_server" TRUSTING, 3 => "proxy.test.mjs" [("TRUSTED", "yes")];
    a_proxy_that_nobody_trusts: "feature_server" [], 1 => "proxy.test.mjs" [];

    websocket_and_http_app: "fanout_server" [], 1 => "ws_app.test.mjs" [];
    websocket_and_http_app_on_3_workers: "fanout_server" [], 3 => "ws_app.test.mjs" [];
    spread_over_websocket: "fanout_server" [], 3 => "spread.test.mjs" [("MODE", "websocket")];
    spread_over_polling: "fanout_server" [], 3 => "spread.test.mjs" [("MODE", "polling")];
    spread_while_clients_upgrade: "fanout_server" [], 3 => "spread.test.mjs" [("MODE", "mixed")];

    deflate: "fanout_server" DEFLATE, 1 => "deflate.test.mjs" [];
    deflate_on_3_workers: "fanout_server" DEFLATE, 3 => "deflate.test.mjs" [];
    deflate_python: "fanout_server" DEFLATE, 1 => "deflate_client.py" [];
    python_clients: "feature_server" [], 1 => "python_client.py" [];
    python_clients_on_3_workers: "feature_server" [], 3 => "python_client.py" [];
    k6_smoke: "fanout_server" [], 1 => K6 [("SCENARIO", "smoke"), SMALL];
    k6_smoke_on_3_workers: "fanout_server" [], 3 => K6 [("SCENARIO", "smoke"), SMALL];
    k6_chat_on_3_workers: "fanout_server" [], 3 => K6 [("SCENARIO", "chat"), SMALL];
    k6_broadcast_on_3_workers: "fanout_server" [], 3 => K6 [("SCENARIO", "broadcast"), SMALL];
    k6_reconnect_on_3_workers: "fanout_server" [], 3 => K6 [("SCENARIO", "reconnect"), SMALL];
    garbage: "feature_server" [], 1 => "garbage.mjs" [];
    garbage_on_3_workers: "feature_server" [], 3 => "garbage.mjs" [];
    churn: "feature_server" [], 1 => "churn.mjs" [];
    churn_on_3_workers: "feature_server" [], 3 => "churn.mjs" [];
    tabs_of_a_browser_beside_load: "fanout_server" [], 3 => "browser.test.mjs" [];
    tabs_of_a_browser_beside_load_on_normal_descriptors: "fanout_server" NORMAL, 3 => "browser.test.mjs" [];
    chat_in_a_browser: "chat" [], 1 => "chat.test.mjs" [];
    chat_in_a_browser_on_3_workers: "chat" [], 3 => "chat.test.mjs" [];
}

/// One suite against one server.
struct Suite {
    example: &'static str,
    args: &'static [&'static str],
    workers: usize,
    script: &'static str,
    env: &'static [(&'static str, &'static str)],
}

impl Suite {
    fn run(&self) {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let interpreter = interpreter_of(self.script);
        let mut server = Server::start(self);
        let (status, output) = self.run_script(&interpreter, &server);
        let end = server.end();
        let verdict = match (status, end) {
            (None, _) => format!("the suite was still running after {SUITE_MAX:?}"),
            (Some(status), _) if !status.success() => format!("the suite ended with {status}"),
            (_, Err(why)) => why,
            (Some(_), Ok(())) => {
                // Shown by `cargo test -- --nocapture`: the suites' own counts and timings.
                output.lines().filter(|line| line.starts_with("# ")).for_each(|line| println!("{line}"));
                return;
            }
        };
        panic!(
            "{verdict}\n--- {} {:?}\n{output}\n--- {} said:\n{}",
            self.script,
            self.env,
            self.example,
            server.said()
        );
    }

    /// Runs the script to its end or to the time limit; returns what it wrote.
    fn run_script(&self, interpreter: &Path, server: &Server) -> (Option<ExitStatus>, String) {
        let clients = clients_dir();
        let mut command = Command::new(interpreter);
        let scheme = if self.args.contains(&TLS[0]) {
            // Node's, OpenSSL's, and those of two packages of Python that ask neither.
            for name in
                ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "WEBSOCKET_CLIENT_CA_BUNDLE"]
            {
                command.env(name, &CERTIFICATE.certificate);
            }
            "https"
        } else {
            "http"
        };
        let mut child = command
            .arg(clients.join(self.script))
            .current_dir(&clients)
            .env("SOCKRING_URL", format!("{scheme}://{}", server.address))
            .env("SOCKRING_PID", server.child.id().to_string())
            .envs(self.env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", interpreter.display()));
        let output = Transcript::default();
        let readers = [
            output.follow(child.stdout.take().expect("stdout is piped"), None),
            output.follow(child.stderr.take().expect("stderr is piped"), None),
        ];
        let status = wait(&mut child, SUITE_MAX);
        if status.is_none() {
            // The child is ours and not yet reaped, so this reaches no other process.
            let _ = child.kill();
            let _ = child.wait();
        }
        readers.into_iter().for_each(|reader| drop(reader.join()));
        (status, output.text())
    }
}

/// A running example server. Dropping it ends the process.
struct Server {
    child: Child,
    address: String,
    output: Transcript,
}

impl Server {
    fn start(suite: &Suite) -> Self {
        let path = example_path(suite.example);
        let mut failures = String::new();
        for _ in 0..PORT_TRIES {
            match Self::try_start(&path, suite, free_port()) {
                Ok(server) => return server,
                Err(why) => failures.push_str(&why),
            }
        }
        panic!("{} does not start:\n{failures}", path.display());
    }

    fn try_start(path: &Path, suite: &Suite, port: u16) -> Result<Self, String> {
        let mut command = Command::new(path);
        for arg in suite.args {
            if *arg == TLS[0] {
                let Certificate { certificate, key } = &*CERTIFICATE;
                command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
            } else {
                command.arg(arg);
            }
        }
        command.args(["--port", &port.to_string()]);
        if suite.workers > 1 {
            command.args(["--workers", &suite.workers.to_string()]);
        }
        let mut child = command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{error}\n"))?;
        let output = Transcript::default();
        let (ready, listening) = mpsc::channel();
        output.follow(child.stdout.take().expect("stdout is piped"), Some(ready));
        output.follow(child.stderr.take().expect("stderr is piped"), None);
        let mut server = Self { child, address: String::new(), output };
        server.address = server.wait_until_ready(&listening)?;
        Ok(server)
    }

    fn wait_until_ready(&self, listening: &Receiver<String>) -> Result<String, String> {
        listening.recv_timeout(READY_MAX).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("silent for {READY_MAX:?}: {}\n", self.said()),
            RecvTimeoutError::Disconnected => format!("ended early: {}\n", self.said()),
        })
    }

    /// Asks the server to end, and judges how it does.
    fn end(&mut self) -> Result<(), String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(format!("the server had ended by itself with {status}"));
        }
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid fits pid_t");
        // SAFETY: kill takes two integers and touches no memory of ours. The child has not been reaped
        // (`try_wait` said so just now and nobody else holds it), so the pid is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        match wait(&mut self.child, END_MAX) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the server ended with {status} on SIGTERM")),
            None => Err(format!("the server was still running {END_MAX:?} after SIGTERM")),
        }
    }

    fn said(&self) -> String {
        self.output.text()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Does nothing when the process has been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate that signs itself, in files of this run.
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
}

static CERTIFICATE: LazyLock<Certificate> = LazyLock::new(|| {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tls-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the target's folder can be written");
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        fs::write(&file, text).expect("the target's folder can be written");
        file
    };
    Certificate {
        certificate: write("cert.pem", made.cert.pem()),
        key: write("key.pem", made.signing_key.serialize_pem()),
    }
});

/// What a process wrote, collected by threads so that its pipes never fill up.
#[derive(Clone, Default)]
struct Transcript(Arc<Mutex<String>>);

impl Transcript {
    /// Collects a pipe; reports the address of the line `listening on ADDR`.
    fn follow(
        &self,
        pipe: impl Read + Send + 'static,
        ready: Option<mpsc::Sender<String>>,
    ) -> thread::JoinHandle<()> {
        let transcript = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if let (Some(ready), Some(address)) = (&ready, line.strip_prefix("listening on ")) {
                    // Nobody listens any more once the server has been given up.
                    let _ = ready.send(address.trim().to_owned());
                }
                let mut text = transcript.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        })
    }

    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits for the process to end, at most for `limit`.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A port that was free a moment ago. It may be taken before the server binds it: then another one is tried.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Node for `.mjs`, the virtual environment's Python for `.py`; fails where their packages are missing.
fn interpreter_of(script: &str) -> PathBuf {
    let (interpreter, needed) = if script.ends_with(".py") {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
        (python.clone(), python)
    } else {
        ("node".into(), clients_dir().join("node_modules/socket.io-client"))
    };
    assert!(needed.exists(), "{} is missing: run `make deps`", needed.display());
    interpreter
}

/// The example's binary: `target/<profile>/deps/this-test` lies beside `target/<profile>/examples/`.
fn example_path(name: &str) -> PathBuf {
    let dir = std::env::var_os("SOCKRING_EXAMPLES").map(PathBuf::from).unwrap_or_else(|| {
        let this = std::env::current_exe().expect("a process knows its binary");
        let profile = this.parent().and_then(Path::parent).expect("a test lies in target/<profile>/deps");
        profile.join("examples")
    });
    let path = dir.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --examples`", path.display());
    path
}

fn clients_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}
