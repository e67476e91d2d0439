//! Text to [`Value`], with limits.
//!
//! simd-json does the parsing; what it does with odd input was compared with `JSON.parse`, `serde_json` and
//! `str::parse`:
//!
//! * Its `big-int-as-float` feature is on: an integer beyond 64 bits is a float, as in JavaScript.
//! * Some texts it refuses that `JSON.parse` takes; refusing them would cost the client its connection. They
//!   are parsed a second time, slower: nested deeper than [`MAX_DEPTH`]; with a lone surrogate (`"\ud83d"`,
//!   what `JSON.stringify` writes for half an emoji), which becomes U+FFFD; with a number that no float holds
//!   (`1e400`), which is infinite, and `null` when it is sent on.
//! * Its tape builder does not recurse, and what nests deeper than a limit is made text again
//!   ([`Value::Deep`]), without recursion: no text overflows a stack.

use std::borrow::Cow;

use simd_json::{Buffers, ErrorType, Node, StaticNode, Tape};
use thiserror::Error;

use super::deep::DeepJson;
use super::encode::json;
use super::packet::EventName;
use super::value::{Number, Value, drop_duplicates};

/// How deep arrays and objects of a [`Value`] nest, at most: `[[1]]` is 2 deep. What is deeper is
/// [`Value::Deep`]. 128 is about what `serde_json` takes, and parsing, converting, cloning, writing and
/// dropping values that deep was tried on a stack of 2 MiB in a build without optimisation.
pub const MAX_DEPTH: usize = 128;

/// Buffers that grew beyond this many bytes are given back after use: a rare large message would otherwise
/// stay in memory with every core.
const KEEP_BYTES: usize = 256 * 1024;

/// Text that is not a value. Whoever wrote it is at fault.
///
/// ```
/// use sockring::protocol::sio::{JsonError, Parser};
///
/// assert_eq!(Parser::new().parse("[1,]", 10), Err(JsonError::Syntax));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON (RFC 8259).
    #[error("malformed json")]
    Syntax,
}

/// Parses JSON. Keep one per core and lend it to every decoder: it reuses its buffers.
///
/// ```
/// use sockring::protocol::sio::{Parser, Value};
///
/// let mut parser = Parser::new();
/// let value = parser.parse(r#"{"a":[1,"b"],"a":2}"#, 10)?;
/// assert_eq!(value, Value::Object(vec![("a".into(), 2.into())]));
/// # Ok::<(), sockring::protocol::sio::JsonError>(())
/// ```
pub struct Parser {
    buffers: Buffers,
    /// simd-json unescapes strings in place, so it gets a copy of the text.
    input: Vec<u8>,
    tape: Option<Tape<'static>>,
}

impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parser").finish_non_exhaustive()
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser with small buffers.
    #[must_use]
    pub fn new() -> Self {
        Self { buffers: Buffers::with_max_depth(1024, MAX_DEPTH), input: Vec::new(), tape: None }
    }

    /// Parses one value. What nests deeper than `depth`, at most [`MAX_DEPTH`], is [`Value::Deep`]. White
    /// space may stand around it, anything else may not. Of repeated keys the last counts. The time is in
    /// proportion to the length.
    ///
    /// # Errors
    ///
    /// [`JsonError::Syntax`] for what `JSON.parse` refuses.
    pub fn parse(&mut self, json: &str, depth: usize) -> Result<Value, JsonError> {
        self.parse_as(json, depth, build)
    }

    /// Parses an event's array: its name, if that is one, and the arguments. `None` if it is no array, or an
    /// empty one.
    pub(super) fn parse_event(&mut self, json: &str, depth: usize) -> Result<Option<Named>, JsonError> {
        self.parse_as(json, depth, build_event)
    }

    fn parse_as<T>(&mut self, json: &str, depth: usize, build: Build<T>) -> Result<T, JsonError> {
        let depth = depth.min(MAX_DEPTH);
        let result = match self.parse_once(json, depth, build) {
            Err(Refused { too_deep }) => parse_odd(json, too_deep, depth, build),
            Ok(result) => result,
        };
        if json.len() > KEEP_BYTES {
            *self = Self::new();
        }
        result
    }

    fn parse_once<T>(
        &mut self,
        json: &str,
        depth: usize,
        build: Build<T>,
    ) -> Result<Result<T, JsonError>, Refused> {
        self.input.clear();
        self.input.extend_from_slice(json.as_bytes());
        let mut tape = self.tape.take().unwrap_or_else(Tape::null).reset();
        let result = match simd_json::fill_tape(&mut self.input, &mut self.buffers, &mut tape) {
            Ok(()) => Ok(build(&mut tape.0.iter(), depth)),
            Err(error) => Err(Refused { too_deep: matches!(error.error(), ErrorType::DepthLimitExceeded) }),
        };
        self.tape = Some(tape.reset());
        result
    }
}

/// A text that the first attempt has not parsed.
struct Refused {
    too_deep: bool,
}

/// Parses a text that was refused, but might be JSON all the same.
#[cold]
fn parse_odd<T>(json: &str, too_deep: bool, depth: usize, build: Build<T>) -> Result<T, JsonError> {
    let Repaired { text, infinite } = repair(json);
    if matches!(text, Cow::Borrowed(_)) && !too_deep {
        return Err(JsonError::Syntax);
    }
    let mut input = text.into_owned().into_bytes();
    // The stack of the tape builder is on the heap.
    let mut buffers = Buffers::with_max_depth(input.len(), usize::MAX);
    let mut tape = Tape::null().reset();
    simd_json::fill_tape(&mut input, &mut buffers, &mut tape).map_err(|_| JsonError::Syntax)?;
    for (at, number) in infinite {
        if let Some(node) = tape.0.get_mut(at) {
            *node = Node::Static(StaticNode::F64(number));
        }
    }
    build(&mut tape.0.iter(), depth)
}

/// What is left of the tape.
type Nodes<'a> = std::slice::Iter<'a, Node<'a>>;

/// Makes something of a whole tape, within a depth.
type Build<T> = fn(&mut Nodes<'_>, usize) -> Result<T, JsonError>;

/// An event's name, unless it has something else in its place, and its arguments.
type Named = (Option<EventName>, Vec<Value>);

/// Builds an event from the whole tape. The name needs no place among the arguments, and a short one no
/// allocation.
fn build_event(nodes: &mut Nodes<'_>, depth: usize) -> Result<Option<Named>, JsonError> {
    let depth = depth.saturating_sub(1);
    let Some(Node::Array { len: len @ 1.., .. }) = nodes.as_slice().first() else { return Ok(None) };
    nodes.next();
    let name = match nodes.as_slice().first() {
        Some(Node::String(name)) => {
            nodes.next();
            Some(EventName::from(*name))
        }
        _ => match build(nodes, depth)? {
            Value::Number(number) => Some(EventName::from(number)),
            _ => None,
        },
    };
    let mut args = Vec::with_capacity(len - 1);
    for _ in 1..*len {
        args.push(build(nodes, depth)?);
    }
    Ok(Some((name, args)))
}

/// Builds the value at the front of the tape. Recurses `depth` deep at most.
fn build(nodes: &mut Nodes<'_>, depth: usize) -> Result<Value, JsonError> {
    if depth == 0 && matches!(nodes.as_slice().first(), Some(Node::Array { .. } | Node::Object { .. })) {
        return deep(nodes);
    }
    Ok(match *nodes.next().ok_or(JsonError::Syntax)? {
        Node::Static(node) => scalar(node),
        Node::String(text) => Value::String(text.to_owned()),
        Node::Array { len, .. } => {
            let mut items = Vec::with_capacity(len);
            for _ in 0..len {
                items.push(build(nodes, depth - 1)?);
            }
            Value::Array(items)
        }
        Node::Object { len, .. } => {
            let mut entries = Vec::with_capacity(len);
            for _ in 0..len {
                let Some(Node::String(key)) = nodes.next() else { return Err(JsonError::Syntax) };
                entries.push(((*key).to_owned(), build(nodes, depth - 1)?));
            }
            drop_duplicates(&mut entries);
            Value::Object(entries)
        }
    })
}

fn scalar(node: StaticNode) -> Value {
    match node {
        StaticNode::Null => Value::Null,
        StaticNode::Bool(value) => Value::Bool(value),
        StaticNode::I64(number) => Value::Number(Number::from(number)),
        StaticNode::U64(number) => Value::Number(Number::from(number)),
        StaticNode::F64(number) => Value::Number(Number::from(number)),
    }
}

/// Makes text of the array or object at the front of the tape. Does not recurse.
#[cold]
fn deep(nodes: &mut Nodes<'_>) -> Result<Value, JsonError> {
    struct Open {
        object: bool,
        /// Elements to come; of an object, keys and values.
        left: usize,
        first: bool,
    }
    let mut text = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    loop {
        let mut key = false;
        if let Some(Open { object, left, first }) = open.last_mut() {
            let Some(fewer) = left.checked_sub(1) else {
                text.push(if *object { b'}' } else { b']' });
                open.pop();
                if open.is_empty() {
                    break;
                }
                continue;
            };
            key = *object && *left % 2 == 0;
            if !std::mem::take(first) && (key || !*object) {
                text.push(b',');
            }
            *left = fewer;
        }
        match *nodes.next().ok_or(JsonError::Syntax)? {
            Node::Array { len, .. } => {
                text.push(b'[');
                open.push(Open { object: false, left: len, first: true });
            }
            Node::Object { len, .. } => {
                text.push(b'{');
                open.push(Open { object: true, left: 2 * len, first: true });
            }
            Node::String(string) => json(&mut text, string),
            Node::Static(node) => json(&mut text, &scalar(node)),
        }
        if key {
            text.push(b':');
        }
    }
    let text = String::from_utf8(text).map_err(|_| JsonError::Syntax)?;
    DeepJson::new(text).map(Value::Deep).ok_or(JsonError::Syntax)
}

/// A text in which what `JSON.parse` takes is put so that simd-json takes it.
struct Repaired<'a> {
    text: Cow<'a, str>,
    /// Numbers that are infinite, by the place of their node on the tape.
    infinite: Vec<(usize, f64)>,
}

/// Replaces every `\uD800`..`\uDFFF` that is not half of a pair by `\uFFFD`, and numbers with a fraction or
/// an exponent, or of many digits, by short forms of what they are. What is not JSON stays so.
fn repair(json: &str) -> Repaired<'_> {
    let (mut text, mut infinite) = (String::new(), Vec::new());
    let (mut copied, mut node, mut at) = (0, 0, 0);
    let mut replace = |from: usize, to: usize, with: &str| {
        text.push_str(json.get(copied..from).unwrap_or_default());
        text.push_str(with);
        copied = to;
    };
    while let Some(byte) = json.as_bytes().get(at) {
        let start = at;
        let run =
            |of: fn(&u8) -> bool| json.as_bytes().iter().skip(start).take_while(|byte| of(byte)).count();
        match byte {
            b'"' => {
                at = after_string(json, at + 1, &mut replace);
                node += 1;
            }
            b'-' | b'0'..=b'9' => {
                at += run(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'));
                match json.get(start..at).and_then(long_number) {
                    Some(number) if number.is_finite() => replace(start, at, &format!("{number:e}")),
                    Some(number) => {
                        infinite.push((node, number));
                        replace(start, at, "0");
                    }
                    None => {}
                }
                node += 1;
            }
            b'a'..=b'z' => {
                at += run(u8::is_ascii_lowercase);
                node += 1;
            }
            b'[' | b'{' => {
                at += 1;
                node += 1;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Repaired { text: Cow::Borrowed(json), infinite };
    }
    text.push_str(json.get(copied..).unwrap_or_default());
    Repaired { text: Cow::Owned(text), infinite }
}

/// Replaces the lone surrogates of the string whose content begins at `at`, and finds its end.
fn after_string(json: &str, mut at: usize, replace: &mut impl FnMut(usize, usize, &str)) -> usize {
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => {
                let after = json.get(at..).unwrap_or_default();
                match surrogate(after) {
                    Some(0xd800..0xdc00) if matches!(after.get(6..).and_then(surrogate), Some(0xdc00..)) => {
                        at += 12;
                    }
                    Some(_) => {
                        replace(at, at + 6, "\\ufffd");
                        at += 6;
                    }
                    None => at += 2,
                }
            }
            _ => at += 1,
        }
    }
    at
}

/// The surrogate whose escape `text` begins with, if it begins with one.
fn surrogate(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok().filter(|unit| (0xd800..0xe000).contains(unit))
}

/// A number as JSON has it, unless it is an integer of 64 bits.
fn long_number(token: &str) -> Option<f64> {
    if token.parse::<i64>().is_ok() || token.parse::<u64>().is_ok() {
        return None;
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) =
        token.split_once(['e', 'E']).map_or((token, None), |(mantissa, exponent)| (mantissa, Some(exponent)));
    let (whole, fraction) =
        mantissa.split_once('.').map_or((mantissa, None), |(whole, fraction)| (whole, Some(fraction)));
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    let sound = digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)));
    if sound { token.parse().ok() } else { None }
}

#[cfg(test)]
mod tests;
