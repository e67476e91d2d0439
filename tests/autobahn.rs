//! The Autobahn test suite's fuzzing client against an App that echoes: RFC 6455 and permessage-deflate.
//!
//! `cargo test --test autobahn` runs a part in half a minute; `make conformance` runs all 517 cases and writes
//! `docs/AUTOBAHN.md`. `scripts/autobahn` installs the suite, which needs Python 2.7, on first use. Where that is
//! impossible the test fails and says so; `SOCKRING_WITHOUT_AUTOBAHN=1` leaves it out.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Instant, SystemTime};

use serde_json::Value;
use sockring::app::{App, Behavior, Message, PerMessageDeflate};
use sockring::runtime::Descriptors;

/// Everything but the long cases: 9.x sends up to 16 MiB, 12 and 13 are compressed echoes of 1,000 messages.
const CORE: &str = "1.*,2.*,3.*,4.*,5.*,6.*,7.*,9.1.*,9.2.*,9.5.*,9.6.*,10.*";
/// Of 12 and 13 one small, one larger and one fragmented case of each kind.
const DEFLATE: &str = "12.1.2,12.1.7,12.1.13,12.2.3,12.3.3,12.4.4,12.5.3,13.1.3,13.2.4,13.3.3,13.3.13,13.4.3,\
13.5.4,13.6.3,13.7.4,13.7.13";
/// All cases, in parts that take about as long as each other.
const ALL: [&str; 4] = [
    "1.*,2.*,3.*,4.*,5.*,6.*,7.*,9.*,10.*,12.1.*",
    "12.2.*,12.3.*,12.4.*",
    "12.5.*,13.1.*,13.2.*,13.3.*",
    "13.4.*,13.5.*,13.6.*,13.7.*",
];
const ALL_CASES: usize = 517;

/// By the numbers of the case.
type Results = BTreeMap<Vec<u32>, (String, Value)>;

#[test]
fn a_part_of_autobahn() {
    let Some(results) = run(&[CORE, DEFLATE]) else { return };
    assert!(results.len() > 240, "only {} cases were run", results.len());
    judge(&results);
}

#[test]
#[ignore = "takes about ten minutes: `make conformance`"]
fn all_of_autobahn() {
    let start = Instant::now();
    let Some(results) = run(&ALL) else { return };
    let page = page(&results, start.elapsed().as_secs());
    fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/AUTOBAHN.md"), page).unwrap();
    assert_eq!(results.len(), ALL_CASES);
    judge(&results);
}

fn script(arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/autobahn"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs lists of cases beside each other against one server.
fn run(parts: &[&str]) -> Option<Results> {
    if std::env::var_os("SOCKRING_WITHOUT_AUTOBAHN").is_some() {
        eprintln!("skipped, as SOCKRING_WITHOUT_AUTOBAHN asks: nothing is known about RFC 6455 and RFC 7692");
        return None;
    }
    let installed = script(&["install"]).output().unwrap();
    assert!(
        installed.status.success(),
        "The Autobahn test suite could not be installed, so that nothing is known about RFC 6455 and RFC 7692.\n\
         SOCKRING_WITHOUT_AUTOBAHN=1 leaves this test out.\n{}",
        String::from_utf8_lossy(&installed.stderr),
    );
    let server = support::builder(support::options(Descriptors::Auto, 1)).start(echo).unwrap();
    let url = format!("ws://{}/", server.addresses()[0]);
    let running: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(part, cases)| {
            let (name, url, cases) =
                (format!("{}-{part}", std::process::id()), url.clone(), cases.to_string());
            thread::spawn(move || script(&["run", &name, &url, &cases]).output().unwrap())
        })
        .collect();
    let mut results = Results::new();
    for part in running {
        let output = part.join().unwrap();
        let (path, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "the suite did not run:\n{errors}");
        let index = fs::read(path.trim()).unwrap();
        let index: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_slice(&index).unwrap();
        for (case, result) in index.into_values().flatten() {
            let numbers: Vec<u32> = case.split('.').map(|number| number.parse().unwrap()).collect();
            results.insert(numbers, (case, result));
        }
    }
    support::end(server);
    Some(results)
}

fn echo(app: &App) {
    let behavior = Behavior::<()>::default()
        .max_message_bytes(16 << 20)
        .max_fragments(1 << 17)
        .per_message_deflate(PerMessageDeflate { threshold: 0, ..PerMessageDeflate::default() })
        .message(|ws, message| {
            let _ = match message {
                Message::Text(text) => ws.send_text(text),
                Message::Binary(data) => ws.send_binary(data),
            };
        });
    app.ws("/", behavior);
}

/// What the suite says of a case, and of how the connection closed.
fn verdicts(result: &Value) -> [&str; 2] {
    ["behavior", "behaviorClose"].map(|name| result[name].as_str().unwrap())
}

fn judge(results: &Results) {
    let good = |verdict: &str| matches!(verdict, "OK" | "INFORMATIONAL");
    let bad: Vec<_> =
        results.values().filter(|(_, result)| !verdicts(result).into_iter().all(good)).collect();
    let bad: Vec<_> = bad.iter().map(|(case, result)| (case, verdicts(result))).collect();
    assert!(bad.is_empty(), "cases that are not strictly right: {bad:?}; reports are in .autobahn");
    println!("# {} cases are right", results.len());
}

/// The page of the documentation.
fn page(results: &Results, seconds: u64) -> String {
    const SECTIONS: [(u32, &str); 11] = [
        (1, "framing"),
        (2, "pings and pongs"),
        (3, "reserved bits"),
        (4, "opcodes"),
        (5, "fragmentation"),
        (6, "UTF-8"),
        (7, "closing"),
        (9, "limits, performance"),
        (10, "auto-fragmentation"),
        (12, "compression, own data"),
        (13, "compression, parameters"),
    ];
    let commit = Command::new("git").args(["describe", "--always", "--dirty"]).output().unwrap().stdout;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let mut page = format!(
        "# What the Autobahn test suite says\n\n\
         Written by `make conformance` on {date}: sockring {} ({}), Linux {}, autobahntestsuite 25.10.1, {} cases in \
         {seconds} s.\n\nThe server echoes, takes messages of up to 16 MiB and 131,072 fragments, and compresses from the \
         first byte\nwithout context. *Informational* cases have no right answer. Durations are the suite's own, summed.\n\n\
         | section | | cases | OK | non-strict | informational | failed | duration |\n\
         |---|---|---|---|---|---|---|---|\n",
        env!("CARGO_PKG_VERSION"),
        String::from_utf8_lossy(&commit).trim(),
        kernel.trim(),
        results.len(),
    );
    for (section, about) in SECTIONS {
        let cases: Vec<&Value> =
            results.range(vec![section]..vec![section + 1]).map(|(_, (_, result))| result).collect();
        let count = |verdict| cases.iter().filter(|result| verdicts(result)[0] == verdict).count();
        let (ok, lax, informational) = (count("OK"), count("NON-STRICT"), count("INFORMATIONAL"));
        let failed = cases.len() - ok - lax - informational;
        let took: u64 = cases.iter().filter_map(|result| result["duration"].as_u64()).sum();
        writeln!(
            page,
            "| {section} | {about} | {} | {ok} | {lax} | {informational} | {failed} | {:.1} s |",
            cases.len(),
            took as f64 / 1000.0
        )
        .unwrap();
    }
    page.push_str(
        "\nSection 0, the opening handshake, has no cases in the suite: `tests/websocket.rs` and the tests of\n\
         `protocol::ws` have ours. Section 8 and 11 do not exist.\n",
    );
    page
}
