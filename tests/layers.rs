//! The house rules, as tests: what a layer may import, where `unsafe` may stand, what purity means, and a few limits
//! on files and lines. Every rule reads `src/` as text; the last module tries each rule on a bad snippet.
//!
//! The reading is crude on purpose (no parser): comments and strings are blanked, then words are looked up.

#[path = "layers/tables.rs"]
mod tables;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// From low to high. A layer may import itself, the layers before it, and the modules beside them in `src/`.
const LAYERS: [&str; 7] = ["protocol", "fanout", "runtime", "app", "engine", "io", "adapter"];

/// The only layer that may write `unsafe`.
const UNSAFE_LAYER: &str = "runtime";

/// Code that takes bytes, time and ids as arguments: no kernel, no clock, no threads, no randomness.
const PURE: [&str; 5] =
    ["protocol/", "fanout/", "engine/session.rs", "engine/upgrade.rs", "engine/heartbeat.rs"];
const IMPURE_WORDS: [&str; 4] = ["monoio", "getrandom", "SystemTime", "Instant::now"];
const IMPURE_STD: [&str; 2] = ["net", "thread"];

const UNFINISHED: [&str; 3] = ["dbg!(", "todo!(", "unimplemented!("];

const FILE_LINES_MAX: usize = 900;
const LINE_WIDTH_MAX: usize = 110;
/// A SAFETY comment stands on the line of its block or at most this many lines above.
const SAFETY_DISTANCE_LINES: usize = 6;

#[test]
fn layers_import_only_downward() {
    check(imports_upward);
}

#[test]
fn unsafe_stays_in_the_runtime() {
    check(unsafe_elsewhere);
}

#[test]
fn unsafe_says_why_it_is_sound() {
    check(unsafe_unexplained);
}

#[test]
fn pure_layers_stay_pure() {
    check(impure);
}

#[test]
fn nothing_is_left_unfinished() {
    check(unfinished);
}

#[test]
fn files_are_short() {
    check(long_files);
}

#[test]
fn lines_are_narrow() {
    check(wide_lines);
}

#[test]
fn unwrap_is_for_tests() {
    check(unwraps);
}

// --- The rules ------------------------------------------------------------------------------------------------

/// A line (counted from 1) and what is wrong with it.
type Finding = (usize, String);

fn imports_upward(source: &Source) -> Vec<Finding> {
    if source.path == "lib.rs" {
        return Vec::new(); // it declares the layers and re-exports from them
    }
    let own = source.layer();
    let allowed = |name: &str| match (rank(name), own) {
        (Some(used), Some(own)) => used <= own,
        (Some(_), None) => false, // a module beside the layers serves all of them, so it uses none
        (None, _) => true,
    };
    let mut findings = Vec::new();
    for (line, name) in source.crate_names() {
        if !allowed(&name) {
            findings.push((line, format!("imports `{name}`, which is not below it")));
        } else if name.starts_with(char::is_uppercase) {
            findings.push((line, format!("imports `{name}` through the crate root: name its module")));
        }
    }
    findings
}

fn unsafe_elsewhere(source: &Source) -> Vec<Finding> {
    if source.layer() == rank(UNSAFE_LAYER) {
        return Vec::new();
    }
    source
        .words("unsafe")
        .map(|at| (source.line_of(at), format!("`unsafe` outside src/{UNSAFE_LAYER}")))
        .collect()
}

fn unsafe_unexplained(source: &Source) -> Vec<Finding> {
    let raw: Vec<&str> = source.text.lines().collect();
    let mut findings = Vec::new();
    for at in source.words("unsafe") {
        let line = source.line_of(at);
        let rest = source.code[at + "unsafe".len()..].trim_start();
        let declares = |keyword| {
            rest.strip_prefix(keyword)
                .is_some_and(|name: &str| name.starts_with(' ') && !name.trim_start().starts_with('('))
        };
        if rest.starts_with("fn(") {
            continue; // the type of a pointer: whoever calls it explains
        }
        if declares("fn") || declares("trait") {
            // The documentation above may be long; it ends where neither comment nor attribute continues it.
            let documented = raw[..line - 1]
                .iter()
                .rev()
                .map(|text| text.trim_start())
                .take_while(|text| text.starts_with("//") || text.starts_with("#["))
                .any(|text| text.contains("# Safety"));
            if !documented {
                findings.push((line, "declared `unsafe` without a `# Safety` section".into()));
            }
            continue;
        }
        let first = line.saturating_sub(SAFETY_DISTANCE_LINES + 1);
        if !raw[first..line].iter().any(|text| text.contains("SAFETY:")) {
            findings.push((line, "`unsafe` without a `SAFETY:` comment".into()));
        }
    }
    findings
}

fn impure(source: &Source) -> Vec<Finding> {
    if !PURE.iter().any(|prefix| source.path.starts_with(prefix)) {
        return Vec::new();
    }
    let words = IMPURE_WORDS
        .iter()
        .flat_map(|word| source.words(word).map(move |at| (source.line_of(at), format!("names `{word}`"))));
    let modules = source
        .names_under("std")
        .into_iter()
        .filter(|(_, name)| IMPURE_STD.contains(&name.as_str()))
        .map(|(line, name)| (line, format!("names `std::{name}`")));
    // A test may start threads and read clocks: it drives the pure code, it is not part of it.
    words.chain(modules).filter(|(line, _)| !source.in_test(*line)).collect()
}

fn unfinished(source: &Source) -> Vec<Finding> {
    UNFINISHED
        .iter()
        .flat_map(|call| source.words(call).map(move |at| (source.line_of(at), format!("`{call}..)`"))))
        .collect()
}

fn long_files(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![(lines, format!("{lines} lines, at most {FILE_LINES_MAX}"))]
}

fn wide_lines(source: &Source) -> Vec<Finding> {
    (1..)
        .zip(source.text.lines())
        .map(|(line, text)| (line, text.chars().count()))
        .filter(|(_, width)| *width > LINE_WIDTH_MAX)
        .map(|(line, width)| (line, format!("{width} columns, at most {LINE_WIDTH_MAX}")))
        .collect()
}

fn unwraps(source: &Source) -> Vec<Finding> {
    source
        .code
        .match_indices(".unwrap()")
        .map(|(at, _)| source.line_of(at))
        .filter(|line| !source.in_test(*line))
        .map(|line| (line, "`.unwrap()`: handle it, or `expect` with the invariant".into()))
        .collect()
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|name| *name == layer)
}

/// Applies a rule to all of `src/` and fails with everything it found.
fn check(rule: fn(&Source) -> Vec<Finding>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut report = String::new();
    for source in read_all(&root) {
        for (line, what) in rule(&source) {
            writeln!(report, "src/{}:{line}: {what}", source.path).expect("a String takes every write");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

// --- Reading source text --------------------------------------------------------------------------------------

struct Source {
    /// Below `src/`, with forward slashes.
    path: String,
    text: String,
    /// `text` with comments and the contents of strings blanked; same length, same lines.
    code: String,
    /// Lines (first, last) that only tests compile.
    tests: Vec<(usize, usize)>,
}

fn read_all(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable source folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(root).expect("a path below its root");
                let text = fs::read_to_string(&path).expect("a source file in UTF-8");
                sources.push(Source::new(&below.to_string_lossy().replace('\\', "/"), &text));
            }
        }
    }
    assert!(sources.len() > LAYERS.len(), "found {} files in {}", sources.len(), root.display());
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let mut source = Self { path: path.into(), text: text.into(), code, tests: Vec::new() };
        source.tests = source.find_tests();
        source
    }

    /// The rank of the layer that the file belongs to; none for the files directly in `src/`.
    fn layer(&self) -> Option<usize> {
        rank(self.path.split(['/', '.']).next()?)
    }

    fn line_of(&self, at: usize) -> usize {
        1 + self.code[..at].matches('\n').count()
    }

    fn in_test(&self, line: usize) -> bool {
        self.tests.iter().any(|(first, last)| (*first..=*last).contains(&line))
    }

    /// Offsets where `word` stands in the code on its own, not as a part of a longer name.
    fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let open_end = word.ends_with('(');
        self.code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
            let before = self.code[..at].chars().next_back();
            let after = self.code[at + word.len()..].chars().next();
            !before.is_some_and(is_name) && (open_end || !after.is_some_and(is_name))
        })
    }

    /// The modules and items of the crate root that the file names, by `crate::` or by climbing with `super::`.
    fn crate_names(&self) -> Vec<(usize, String)> {
        let mut names = self.names_under("crate");
        let mut depth = self.path.split('/').filter(|part| !matches!(*part, "mod.rs" | "lib.rs")).count();
        // A test module at the end of the file lies one deeper.
        for inline in [false, true] {
            depth += usize::from(inline);
            let climb = ["super"].repeat(depth).join("::");
            let found = self.names_under(&climb).into_iter();
            names.extend(found.filter(|(line, name)| self.in_test(*line) == inline && rank(name).is_some()));
        }
        names.sort();
        names
    }

    /// The first names behind `root::`, also out of `root::{a, b::c}`.
    fn names_under(&self, root: &str) -> Vec<(usize, String)> {
        let mut names = Vec::new();
        for at in self.words(root) {
            let Some(rest) = self.code[at + root.len()..].strip_prefix("::") else { continue };
            if self.code[..at].ends_with("::") {
                continue; // the end of a longer path
            }
            let start = self.code.len() - rest.len();
            let Some(group) = rest.strip_prefix('{') else {
                names.push((self.line_of(start), leading_name(rest)));
                continue;
            };
            let mut depth = 0_usize;
            let mut item = true; // at the beginning of an item of the group itself
            for (offset, char) in group.char_indices() {
                match char {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => item = true,
                    _ if item && is_name(char) => {
                        names.push((self.line_of(start + 1 + offset), leading_name(&group[offset..])));
                        item = false;
                    }
                    _ => {}
                }
            }
        }
        names
    }

    /// What follows `#[cfg(test)]` up to its closing brace or semicolon; the whole of a file named for tests.
    fn find_tests(&self) -> Vec<(usize, usize)> {
        if self.path.ends_with("/tests.rs") || self.path.contains("/tests/") {
            return vec![(1, usize::MAX)];
        }
        let mut tests = Vec::new();
        for attribute in ["#[cfg(test)]", "#[cfg(all(test"] {
            for (at, _) in self.code.match_indices(attribute) {
                let mut depth = 0_usize;
                let end = self.code[at..].char_indices().find(|(_, char)| {
                    match char {
                        '{' => depth += 1,
                        '}' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    depth == 0 && matches!(char, '}' | ';')
                });
                let last = end.map_or(self.code.len(), |(offset, _)| at + offset);
                tests.push((self.line_of(at), self.line_of(last)));
            }
        }
        tests
    }
}

fn is_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|char| is_name(*char)).collect()
}

/// Replaces comments, strings and characters by spaces and keeps every line end and every offset.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_name = code.chars().next_back().is_some_and(is_name);
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment_length(rest),
            '"' => string_length(rest),
            'r' | 'b' | 'c' if !after_name => raw_string_length(rest),
            '\'' => char_length(rest),
            _ => 0,
        };
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (blanked, remaining) = rest.split_at(length);
        code.extend(blanked.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        rest = remaining;
    }
    code
}

fn comment_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of `r"..."`, `br#"..."#` and the like; 0 for anything else, also for plain names and `b"..."`.
fn raw_string_length(text: &str) -> usize {
    let Some(behind) = text.trim_start_matches(['b', 'c']).strip_prefix('r') else { return 0 };
    let quoted = behind.trim_start_matches('#');
    if !quoted.starts_with('"') || text.len() - behind.len() > 2 {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(behind.len() - quoted.len()));
    let content = text.len() - quoted.len() + 1;
    text[content..].find(&end).map_or(text.len(), |at| content + at + end.len())
}

/// The length of a character literal; 0 for a lifetime.
fn char_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    let Some((_, first)) = chars.next() else { return 0 };
    if first == '\\' {
        chars.next(); // the escaped character may be a quote itself
        return chars.find(|(_, char)| *char == '\'').map_or(0, |(at, _)| at + 1);
    }
    chars.next().filter(|(_, char)| *char == '\'').map_or(0, |(at, _)| at + 1)
}

// --- The rules, tried -----------------------------------------------------------------------------------------

mod rules {
    use super::*;

    fn lines(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::new(path, text)).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn imports() {
        let upward = |path: &str, text: &str| lines(imports_upward, path, text);
        assert_eq!(upward("protocol/ws/frame.rs", "use crate::fanout::Frame;"), [1]);
        assert_eq!(upward("engine/session.rs", "\nfn f() { crate::io::Server::new(); }"), [2]);
        assert_eq!(upward("fanout/mesh.rs", "use crate::{\n  limits,\n  runtime::{ring, io},\n};"), [3]);
        assert_eq!(upward("fanout/mesh.rs", "use super::super::engine;"), [1]);
        assert_eq!(upward("app/mod.rs", "use super::engine;"), [1]);
        assert_eq!(upward("app/a.rs", "#[cfg(test)]\nmod tests { use super::super::super::io; }"), [2]);
        assert_eq!(upward("limits.rs", "use crate::protocol::eio;"), [1]);
        assert_eq!(upward("io/mod.rs", "use crate::Error;"), [1]);

        assert_eq!(upward("engine/session.rs", "use crate::{engine, fanout::Frame, limits};"), []);
        assert_eq!(upward("app/ws/mod.rs", "use super::super::engine;"), [1]);
        assert_eq!(upward("app/routes.rs", "use super::io; // not crate::io: a module of this layer"), []);
        assert_eq!(upward("protocol/mod.rs", "//! see `crate::io`\nconst A: &str = \"crate::io\";"), []);
        assert_eq!(upward("lib.rs", "pub use crate::io::Server;"), []);
    }

    #[test]
    fn unsafe_place() {
        let text = "#![deny(unsafe_code)] // unsafe\nfn f() { unsafe { g() } }";
        assert_eq!(lines(unsafe_elsewhere, "fanout/frame.rs", text), [2]);
        assert_eq!(lines(unsafe_elsewhere, "runtime/ring.rs", text), []);
    }

    #[test]
    fn unsafe_reason() {
        let unexplained = |text: &str| lines(unsafe_unexplained, "runtime/ring.rs", text);
        assert_eq!(unexplained("unsafe { g() }"), [1]);
        assert_eq!(unexplained("unsafe impl Send for A {}"), [1]);
        assert_eq!(unexplained("/// Does it.\npub unsafe fn f() {}"), [2]);
        assert_eq!(unexplained(&format!("// SAFETY: far away.{}unsafe {{ g() }}", "\n".repeat(7))), [8]);

        assert_eq!(unexplained(&format!("// SAFETY: close enough.{}unsafe {{ g() }}", "\n".repeat(6))), []);
        assert_eq!(unexplained("unsafe { g() } // SAFETY: g is harmless."), []);
        assert_eq!(unexplained("/// # Safety\n///\n/// Never.\n#[inline]\nunsafe fn f() {}"), []);
        assert_eq!(unexplained("type F = unsafe fn(u32);"), []);
    }

    #[test]
    fn purity() {
        let text = "use std::{io, net::IpAddr};\nfn f() { Instant::now(); }\n#[cfg(test)]\nmod t { use std::thread; }";
        assert_eq!(lines(impure, "engine/session.rs", text), [2, 1]);
        assert_eq!(lines(impure, "protocol/ws/mod.rs", "use monoio::fs;\nstd::thread::yield_now()"), [1, 2]);
        assert_eq!(lines(impure, "engine/server.rs", text), []);
        assert_eq!(
            lines(impure, "fanout/mesh.rs", "fn f(now: Instant) {} // SystemTime\nstd::sync::Arc"),
            []
        );
    }

    #[test]
    fn leftovers() {
        let text = "fn f() {\n    dbg!(1);\n    todo!()\n}\n// unimplemented!()\nfn g() { unimplemented!() }";
        assert_eq!(lines(unfinished, "lib.rs", text), [2, 3, 6]);
    }

    #[test]
    fn sizes() {
        assert_eq!(lines(long_files, "lib.rs", &"\n".repeat(FILE_LINES_MAX + 1)), [FILE_LINES_MAX + 1]);
        assert_eq!(lines(long_files, "lib.rs", &"\n".repeat(FILE_LINES_MAX)), []);
        let wide = format!("\n{}", "é".repeat(LINE_WIDTH_MAX + 1));
        assert_eq!(lines(wide_lines, "lib.rs", &wide), [2]);
        assert_eq!(lines(wide_lines, "lib.rs", &wide[..wide.len() - 2]), []);
    }

    #[test]
    fn unwrapping() {
        let text = "fn f() { a.unwrap(); }\n#[cfg(test)]\nmod t {\n  fn g() { a.unwrap(); }\n}\nfn h() { b.unwrap() }";
        assert_eq!(lines(unwraps, "io/ack.rs", text), [1, 6]);
        assert_eq!(lines(unwraps, "io/tests.rs", text), []);
        assert_eq!(lines(unwraps, "io/ack.rs", "/// a.unwrap()\nfn f() { a.unwrap_or(1); }"), []);
    }

    #[test]
    fn blanking() {
        let text = r####"a /* b /* c */ d */ e "f\"g" 'h' '\'' '\u{41}' &'i str r#"j"k"# br"l" b"m" // n"####;
        let code = blank(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "e", "&'i", "str", "b"]);
        assert_eq!(blank("\"é\n\"x"), "   \n x");
    }
}
