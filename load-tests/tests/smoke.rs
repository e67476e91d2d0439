//! The tools end to end against the floor: everything arrives once and in order. Nothing here is timed.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Runs a scenario and returns its report. Every one writes a page, too, which needs nothing from anywhere.
fn scenario(name: &str, words: &[&str]) -> Value {
    let json = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    let html = json.with_extension("html");
    let output = Command::new(env!("CARGO_BIN_EXE_load-tests"))
        .args(words)
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()
        .expect("the tool starts");
    assert!(
        output.status.success(),
        "{words:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let page = std::fs::read_to_string(&html).expect("the page is written");
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg") && !page.contains("src="), "{page}");
    let text = std::fs::read_to_string(&json).expect("the report is written");
    serde_json::from_str(&text).expect("the report is JSON")
}

/// Plots of a scenario's page.
fn plots(name: &str) -> usize {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.html"));
    std::fs::read_to_string(path).expect("the page is written").matches("<svg").count()
}

/// Fifty sockets (ten for large payloads), a few broadcasts, and every delivery accounted for.
fn fanout(name: &str, mode: &str, window: &str, payload: &str) {
    let server = format!("floor:{mode}");
    let sockets = if payload.len() > 4 { 10 } else { 50 };
    let report = scenario(
        name,
        &[
            "fanout",
            "--server",
            &server,
            "--sockets",
            &sockets.to_string(),
            "--window",
            window,
            "--payload",
            payload,
            "--broadcasts",
            "32",
            "--warmup",
            "16",
        ],
    );
    assert_eq!(report["broadcasts"], 32, "{report:#}");
    assert_eq!(report["deliveries"], sockets * 32, "{report:#}");
    // The warm-up is followed too.
    assert_eq!(report["tally"]["delivered"], sockets * 48, "{report:#}");
    for wrong in ["lost", "duplicate", "out_of_order", "closed"] {
        assert_eq!(report["tally"][wrong], 0, "{report:#}");
    }
    assert!(report["completion"]["max_ms"].as_f64().is_some_and(|max_ms| max_ms > 0.0), "{report:#}");
}

#[test]
fn single_one_at_a_time() {
    fanout("single-1", "single", "1", "128");
}

#[test]
fn single_sixteen() {
    fanout("single-16", "single", "16", "128");
}

#[test]
fn joined_one_at_a_time() {
    fanout("joined-1", "joined", "1", "128");
}

#[test]
fn joined_sixteen() {
    fanout("joined-16", "joined", "16", "128");
}

/// Broadcasts of 3 MB fill a socket (seen with strace; 16 times 200 kB did not): what does not fit must follow, in
/// order.
#[test]
fn partial_sends_lose_nothing() {
    fanout("joined-big", "joined", "16", "3000000");
    fanout("single-big", "single", "16", "3000000");
}

#[test]
fn idle_and_storm() {
    let report = scenario("idle", &["idle", "--server", "floor:single", "--sockets", "50", "--wait", "1"]);
    assert_eq!(report["closed"], 0, "{report:#}");
    let report = scenario("storm", &["storm", "--server", "floor:single", "--sockets", "50"]);
    assert_eq!(report["joined"], 50, "{report:#}");
}

/// The floor keeps what slow readers do not take, and sends it when they read again. 10 MB is more than the
/// kernel's buffers hold (4 MB to send, and the slow readers' few kilobytes).
#[test]
fn slow_readers_are_followed() {
    let words =
        ["slow-reader", "--server", "floor:joined", "--sockets", "20", "--stalled", "2", "--rounds", "1"];
    let report =
        scenario("slow", &[&words[..], &["--rate", "100", "--seconds", "1", "--payload", "100000"]].concat());
    for run in ["without", "with"] {
        assert_eq!(report[run][0]["others"]["lost"], 0, "{report:#}");
        assert_eq!(report[run][0]["others"]["out_of_order"], 0, "{report:#}");
    }
    let stalled = &report["with"][0]["stalled"];
    for (what, count) in [("readers", 2), ("open", 2), ("current", 2)] {
        assert_eq!(stalled[what], count, "{report:#}");
    }
    // A second of warm-up, one that they stall, and one after it.
    assert_eq!(stalled["tally"]["delivered"], 2 * 300, "{report:#}");
    assert_eq!(stalled["tally"]["lost"], 0, "{report:#}");
    assert_eq!(stalled["tally"]["out_of_order"], 0, "{report:#}");
}

/// Several threads, one publisher among them: all is delivered, and the page holds its plots.
#[test]
fn broadcasts_by_the_clock() {
    let words = ["rate", "--server", "floor:joined", "--sockets", "50", "--threads", "3", "--rate", "50"];
    let report = scenario("rate", &[&words[..], &["--seconds", "1"]].concat());
    assert_eq!(report["broadcasts"], 50, "{report:#}");
    assert_eq!(report["deliveries"], 2500, "{report:#}");
    for wrong in ["lost", "duplicate", "out_of_order", "closed"] {
        assert_eq!(report["tally"][wrong], 0, "{report:#}");
    }
    assert!(report["last_subscriber"]["max_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report:#}");
    assert_eq!(plots("rate"), 4);
}

/// Nobody reads during a burst, all do after it; the page has its plot.
#[test]
fn bursts_lie_in_the_buffers() {
    let words =
        ["scale", "--server", "floor:single", "--server-cores", "0,0", "--sockets", "40", "--probes", "4"];
    let sizes = ["--rounds", "2", "--broadcasts", "6", "--window", "4", "--bursts", "2"];
    let report = scenario("scale", &[&words[..], &sizes[..]].concat());
    let contenders = report["contenders"].as_array().expect("four of them");
    assert_eq!(contenders.len(), 4, "{report:#}");
    for contender in contenders {
        // Two rounds, each of a burst that is not measured and two that are.
        assert_eq!(contender["tally"]["delivered"], 40 * 6 * 3 * 2, "{contender:#}");
        for wrong in ["lost", "duplicate", "out_of_order", "closed"] {
            assert_eq!(contender["tally"][wrong], 0, "{contender:#}");
        }
    }
    assert!(report["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{report:#}");
    assert_eq!(plots("scale"), 1);
}

#[test]
fn echoes_come_home() {
    let words = ["echo", "--server", "floor:joined", "--sockets", "20", "--threads", "2", "--window", "16"];
    let report = scenario("echo", &[&words[..], &["--seconds", "0.5"]].concat());
    assert!(report["round_trips"].as_u64().is_some_and(|trips| trips >= 320), "{report:#}");
    for wrong in ["duplicate", "out_of_order", "closed"] {
        assert_eq!(report["tally"][wrong], 0, "{report:#}");
    }
    assert_eq!(report["lost"], 0, "{report:#}");
}

#[test]
fn the_acceptance_run_has_its_page() {
    let words =
        ["fanout-cost", "--server", "floor:joined", "--rounds", "2", "--sockets", "20", "--seconds", "0.2"];
    let report = scenario("cost", &words);
    assert_eq!(report["clean"], true, "{report:#}");
    assert_eq!(plots("cost"), 2);
}

#[test]
fn a_comparison_has_all_rows() {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compare");
    let output = Command::new(env!("CARGO_BIN_EXE_load-tests"))
        .args(["compare", "--server", "floor:joined", "--peer", "uwebsockets=floor:joined", "--rounds", "1"])
        .args(["--seconds", "0.2", "--sockets", "20", "--many", "30", "--echo-sockets", "5", "--out"])
        .arg(&out)
        .output()
        .expect("the tool starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(out.with_extension("json")).expect("the report is written");
    let report: Value = serde_json::from_str(&text).expect("the report is JSON");
    assert_eq!(report["rows"].as_array().map(Vec::len), Some(10), "{report:#}");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report:#}");
    let page = std::fs::read_to_string(out.with_extension("html")).expect("the page is written");
    assert_eq!(page.matches("<h2>").count(), 10, "{page}");
    let table = std::fs::read_to_string(out.with_extension("md")).expect("the table is written");
    assert_eq!(table.lines().filter(|line| line.starts_with('|')).count(), 12, "{table}");
}
