//! The official client and plain HTTP requests against the example, by `tests/clients/one_port.test.mjs`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends the example, however the test ends.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(workers: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_one-port"));
    let command = command.args(["--port", "0", "--workers", workers]).stdout(Stdio::piped());
    let mut example = Example(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(example.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap();
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients");
    let suite = Command::new("node")
        .arg("one_port.test.mjs")
        .current_dir(clients)
        .env("SOCKRING_URL", format!("http://{address}"))
        .env("SOCKRING_PID", example.0.id().to_string())
        .output()
        .unwrap();
    assert!(suite.status.success(), "{}", String::from_utf8_lossy(&suite.stdout));
}

#[test]
fn the_official_client_and_plain_http() {
    run("1");
}

#[test]
fn the_official_client_and_plain_http_on_3_workers() {
    run("3");
}
