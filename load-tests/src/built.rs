//! What a server's program was built from, as far as that can be said afterwards.
//!
//! The worktree's HEAD says little: a build may be older, or have had changes. So this tells when the program was linked,
//! where HEAD was at that moment, and whether the sources that cargo noted for it have been changed since.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// One line about the program of a command; empty for one that is no file here, like the floors.
pub(crate) fn from_what(command: &str) -> String {
    let Some(program) = command.split_whitespace().next().map(PathBuf::from) else { return String::new() };
    let Some(linked) = modified(&program) else { return String::new() };
    let seconds = linked.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let moment = said("date", &["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%d %H:%M UTC"]);
    let mut line = format!("built {moment}");
    let sources = sources(&program);
    if sources.is_empty() {
        return line;
    }
    let then = said("git", &["rev-parse", "--short", &format!("HEAD@{{{moment}}}")]);
    let now = said("git", &["rev-parse", "--short", "HEAD"]);
    match (then.as_str(), now.as_str()) {
        ("", "") => {}
        (then, now) if then == now || then.is_empty() => line += &format!(" with HEAD at {now}"),
        (then, now) => line += &format!(" with HEAD at {then} (now {now})"),
    }
    if sources.iter().any(|source| modified(source).is_none_or(|at| at > linked)) {
        line += ", and its sources have been changed since";
    } else if is_changed(&sources) {
        line += ", with changes that are not committed";
    }
    line
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?.modified().ok()
}

/// The sources that cargo wrote down beside a program: `PROGRAM: SOURCE SOURCE ...`.
fn sources(program: &Path) -> Vec<PathBuf> {
    let mut note = program.as_os_str().to_owned();
    note.push(".d");
    let text = fs::read_to_string(note).unwrap_or_default();
    let list = text.lines().next().and_then(|line| line.split_once(": ")).map_or("", |(_, list)| list);
    list.split_whitespace().map(PathBuf::from).collect()
}

/// Whether git knows changes of any of the files.
fn is_changed(sources: &[PathBuf]) -> bool {
    let mut git = Command::new("git");
    git.args(["status", "--porcelain", "--"]).args(sources);
    git.output().is_ok_and(|output| !output.stdout.is_empty())
}

/// What a command says; nothing if it cannot be run or fails.
pub(crate) fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().ok().filter(|output| output.status.success());
    output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_older_than_sources_that_changed() {
        let folder = std::env::temp_dir().join(format!("load-tests-built-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (program, source) = (folder.join("server"), folder.join("server.rs"));
        fs::write(&source, "").unwrap();
        fs::write(&program, "").unwrap();
        fs::write(folder.join("server.d"), format!("{}: {}\n", program.display(), source.display())).unwrap();
        let command = format!("{} --workers 1", program.display());
        let fresh = from_what(&command);
        fs::remove_file(&source).unwrap();
        let stale = from_what(&command);
        fs::remove_dir_all(&folder).unwrap();
        assert!(fresh.starts_with("built 2") && !fresh.contains("since"), "{fresh}");
        assert!(stale.ends_with("changed since"), "{stale}");
        assert_eq!(from_what("floor:single"), "");
    }
}
