//! The tables of the documentation that name tests: each row names one, and each one named is there.
//!
//! A cell of the column `test` holds names of files, and behind each the titles that it has: "in quotes" for suites of
//! clients (the beginning of a title is enough, since titles are made of parts), `in_backticks` for functions of Rust.
//! Where there is nothing to test the cell is a dash, and the column `remark` says why.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 3] = ["docs/COVERAGE.md", "docs/LIMITS.md", "docs/PORTING.md"];

/// A name without a slash is a file of one of these folders.
const FOLDERS: [&str; 2] = ["tests", "tests/clients"];

const NOTHING: &str = "–";

#[test]
fn tables_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut report = String::new();
    for name in DOCUMENTS {
        let text = fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let rows = rows(&text);
        assert!(rows.len() > 20, "{name}: only {} rows name tests", rows.len());
        for row in rows {
            if let Err(why) = judge(root, &row) {
                writeln!(report, "{name}:{}: {why}", row.line).expect("a String takes every write");
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// A row of a table that has a column `test`.
struct Row<'a> {
    line: usize,
    test: &'a str,
    /// The cell of the column `remark`; none where the table has no such column.
    remark: Option<&'a str>,
}

fn rows(text: &str) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let mut columns: Option<(usize, Option<usize>)> = None;
    let mut before = ""; // the heading stands above the line of dashes
    for (line, text) in (1..).zip(text.lines()) {
        let cells = cells(text);
        if cells.is_empty() {
            columns = None;
        } else if cells.iter().all(|cell| !cell.is_empty() && cell.chars().all(|char| "-:".contains(char))) {
            let heading = self::cells(before);
            let column = |name| heading.iter().position(|cell| *cell == name);
            columns = column("test").map(|test| (test, column("remark")));
        } else if let Some((test, remark)) = columns {
            let cell = |at: usize| cells.get(at).copied().unwrap_or_default();
            rows.push(Row { line, test: cell(test), remark: remark.map(cell) });
        }
        before = text;
    }
    rows
}

fn cells(line: &str) -> Vec<&str> {
    let Some(mut rest) = line.trim().strip_prefix('|') else { return Vec::new() };
    let mut cells = Vec::new();
    // A bar that is escaped ends no cell.
    let end = |text: &str| text.match_indices('|').map(|(at, _)| at).find(|at| !text[..*at].ends_with('\\'));
    while let Some(at) = end(rest) {
        cells.push(rest[..at].trim());
        rest = &rest[at + 1..];
    }
    cells
}

fn judge(root: &Path, row: &Row<'_>) -> Result<(), String> {
    if row.test == NOTHING {
        let explained = row.remark.is_some_and(|remark| !remark.is_empty());
        return explained.then_some(()).ok_or_else(|| "no test, and no word why".into());
    }
    let mut file: Option<(&str, String)> = None;
    let mut titles = 0;
    for part in parts(row.test) {
        match part {
            Part::Word(name) => {
                let path = find(root, name).ok_or_else(|| format!("there is no file {name}"))?;
                let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
                file = Some((name, text));
            }
            Part::Title(title) | Part::Function(title) => {
                let (name, text) = file.as_ref().ok_or_else(|| format!("{title:?} has no file"))?;
                if !has(text, &part) {
                    return Err(format!("{name} has no {title:?}"));
                }
                titles += 1;
            }
        }
    }
    if titles == 0 { Err("names no test".into()) } else { Ok(()) }
}

/// What a cell is made of, apart from words that are no files.
enum Part<'a> {
    Word(&'a str),
    Title(&'a str),
    Function(&'a str),
}

fn parts(cell: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = cell;
    while let Some(at) = rest.find(['"', '`']) {
        parts.extend(files(&rest[..at]));
        let quote = if rest.as_bytes()[at] == b'"' { '"' } else { '`' };
        let inside = &rest[at + 1..];
        let Some((title, after)) = inside.split_once(quote) else { break };
        parts.push(if quote == '"' { Part::Title(title) } else { Part::Function(title) });
        rest = after;
    }
    parts.extend(files(rest));
    parts
}

fn files(text: &str) -> impl Iterator<Item = Part<'_>> {
    let words = text.split([' ', ',', ';', '(', ')']);
    words.filter(|word| [".mjs", ".rs", ".py"].iter().any(|ending| word.ends_with(ending))).map(Part::Word)
}

fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let beside = FOLDERS.iter().map(|folder| root.join(folder).join(name));
    let direct = name.contains('/').then(|| root.join(name));
    direct.into_iter().chain(beside).find(|path| path.is_file())
}

fn has(text: &str, part: &Part<'_>) -> bool {
    match part {
        Part::Word(_) => true,
        // It begins a literal, perhaps behind the name of a transport.
        Part::Title(title) => {
            ["\"", "`", "}: "].iter().any(|start| text.contains(&format!("{start}{title}")))
        }
        Part::Function(name) => text.contains(&format!("fn {name}(")),
    }
}

#[test]
fn the_rule_finds_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let verdict = |test, remark| judge(root, &Row { line: 1, test, remark });
    let own = "tests/layers/tables.rs `the_rule_finds_what_it_is_for`";
    assert_eq!(verdict(own, None), Ok(()));
    assert_eq!(verdict("layers.rs `files_are_short`, `lines_are_narrow`", Some("")), Ok(()));
    assert_eq!(verdict("chat.test.mjs \"people\"", None), Err("chat.test.mjs has no \"people\"".into()));
    assert_eq!(verdict("layers.rs `files_are`", None), Err("layers.rs has no \"files_are\"".into()));
    assert_eq!(verdict("nowhere.rs `files_are_short`", None), Err("there is no file nowhere.rs".into()));
    assert_eq!(verdict("", None), Err("names no test".into()));
    assert_eq!(verdict("layers.rs", None), Err("names no test".into()));
    assert_eq!(verdict(NOTHING, Some("Node only")), Ok(()));
    assert!(verdict(NOTHING, Some("")).is_err() && verdict(NOTHING, None).is_err());
    assert_eq!(cells("| a \\| b | c |"), ["a \\| b", "c"]);
    let text = "| a | test | remark |\n|---|---|---|\n| x | y | z |\n\n| a |\n|---|\n| b |\n";
    let found: Vec<_> = rows(text).iter().map(|row| (row.line, row.test, row.remark)).collect();
    assert_eq!(found, [(3, "y", Some("z"))]);
}
