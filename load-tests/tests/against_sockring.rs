//! Scenarios that the floor is too little for, against sockring in this process: rooms, polling, storms. Nothing here
//! is timed.

#[path = "../../examples/common/fan_out.rs"]
mod fan_out;

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value as Json;
use sockring::app::App;
use sockring::fanout::{Backpressure, Policy};
use sockring::io::{Options, Server};
use sockring::runtime::Running;

/// The fan-out contract on two workers.
fn serve() -> Running {
    let builder = App::builder().listen("127.0.0.1:0").workers(2);
    let started = builder.start(|app| {
        let last =
            Backpressure { max_bytes: 1_500_000, policy: Policy::DropOldest, ..Backpressure::default() };
        fan_out::serve(&Server::attach_app(app, Options { backpressure: last, ..Options::default() }));
    });
    started.expect("io_uring is permitted and loopback has a port")
}

/// Runs a scenario against a server of this process, and returns its report.
fn scenario(name: &str, words: &[&str]) -> Json {
    let server = serve();
    let json = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("sockring-{name}.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_load-tests"))
        .arg(name)
        .args(["--addr", &server.endpoints()[0].to_string(), "--pid", &std::process::id().to_string()])
        .args(words)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("the tool starts");
    server.shutdown();
    server.join().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {words:?}: {}\n{said}", output.status);
    let text = std::fs::read_to_string(&json).expect("the report is written");
    serde_json::from_str(&text).expect("the report is JSON")
}

#[test]
fn who_stays_gets_all_and_who_left_gets_nothing() {
    let sizes = ["--sockets", "60", "--rooms", "12", "--each", "3", "--seconds", "1", "--moves", "300"];
    let report = scenario("rooms", &sizes);
    assert_eq!(report["broadcasts"], 200, "{report:#}");
    assert_eq!(report["stayed"], report["expected"], "{report:#}");
    assert!(report["stayed"].as_u64().is_some_and(|count| count > 1000), "{report:#}");
    assert!(report["moved"].as_u64().is_some_and(|count| count > 0), "{report:#}");
    assert!(report["leaves"].as_u64().is_some_and(|count| count > 0), "{report:#}");
    assert_eq!(report["strays"], 0, "{report:#}");
}

/// Of three megabytes half may wait for those that stall: they miss some, and then get the newest; the others get all.
#[test]
fn who_comes_back_is_up_to_date() {
    let sizes =
        ["--sockets", "20", "--stalled", "10%", "--payload", "20000", "--rate", "50", "--seconds", "3"];
    let report = scenario("slow-reader", &[&sizes[..], &["--rounds", "1"]].concat());
    for run in ["without", "with"] {
        assert_eq!(report[run][0]["others"]["lost"], 0, "{report:#}");
    }
    let stalled = &report["with"][0]["stalled"];
    assert_eq!(
        (&stalled["readers"], &stalled["open"], &stalled["current"]),
        (&2.into(), &2.into(), &2.into())
    );
    assert!(stalled["tally"]["lost"].as_u64().is_some_and(|count| count > 0), "{report:#}");
    assert_eq!(stalled["tally"]["duplicate"], 0, "{report:#}");
    assert_eq!(stalled["tally"]["out_of_order"], 0, "{report:#}");
}

#[test]
fn both_transports_get_everything() {
    let report = scenario("mixed", &["--sockets", "30", "--polling", "10", "--rate", "50", "--seconds", "1"]);
    let (websocket, polling) = (&report["websocket"]["tally"], &report["polling_tally"]);
    assert_eq!(polling["delivered"].as_u64().map(|count| count * 3), websocket["delivered"].as_u64());
    assert!(polling["delivered"].as_u64().is_some_and(|count| count >= 500), "{report:#}");
    assert_eq!(report["passed"], true, "{report:#}");
}

#[test]
fn all_come_back_at_once_beside_others() {
    let report = scenario("storm", &["--sockets", "100", "--reconnect", "--live", "10", "--threads", "2"]);
    assert_eq!((&report["joined"], &report["failed"]), (&100.into(), &0.into()), "{report:#}");
    assert_eq!((&report["live"]["lost"], &report["live"]["closed"]), (&0.into(), &0.into()), "{report:#}");
}

#[test]
fn many_are_held_by_tables_of_their_own() {
    let words = ["--sockets", "100", "--threads", "3", "--broadcasts", "1", "--wait", "0"];
    let report = scenario("hold", &words);
    assert_eq!(report["joined"], 100, "{report:#}");
    assert_eq!(report["passed"], true, "{report:#}");
}
