//! Text to [`Value`], with limits.
//!
//! simd-json does the parsing; what it does with odd input was compared with `serde_json` and `str::parse`:
//!
//! * Its `big-int-as-float` feature is on: an integer beyond 64 bits is a float, as in JavaScript.
//! * A lone surrogate (`"\ud83d"`) is an error to it, but legal to `JSON.parse`, and what `JSON.stringify`
//!   writes for half an emoji. It becomes U+FFFD here: refusing would cost the client its connection.
//! * Nesting is limited by its tape builder, which does not recurse, before anything here recurses.
//! * An exponent too large for a float (`1e999`) is an error. `JSON.parse` gives Infinity, which
//!   `JSON.stringify` never writes.

use std::borrow::Cow;

use simd_json::{Buffers, ErrorType, Node, StaticNode, Tape};
use thiserror::Error;

use super::packet::EventName;
use super::value::{Number, Value, drop_duplicates};

/// How deep arrays and objects may nest, at most: `[[1]]` is 2 deep. The reference was seen to take 400; 128
/// is about what `serde_json` takes, and parsing, converting, cloning, writing and dropping values that deep
/// was tried on a stack of 2 MiB in a build without optimisation.
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
/// assert_eq!(Parser::new().parse("[[1]]", 1), Err(JsonError::TooDeep));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON (RFC 8259).
    #[error("malformed json")]
    Syntax,
    /// Nested beyond the limit.
    #[error("json nested too deep")]
    TooDeep,
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

    /// Parses one value that nests at most `depth` deep; more than [`MAX_DEPTH`] is taken as that. White
    /// space may stand around it, anything else may not. Of repeated keys the last counts.
    ///
    /// # Errors
    ///
    /// A [`JsonError`].
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
            Err(Failure::Surrogate) => match replace_lone_surrogates(json) {
                Cow::Owned(repaired) => self.parse_once(&repaired, depth, build),
                Cow::Borrowed(_) => Err(Failure::Final(JsonError::Syntax)),
            },
            result => result,
        };
        if json.len() > KEEP_BYTES {
            *self = Self::new();
        }
        result.map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Surrogate => JsonError::Syntax,
        })
    }

    fn parse_once<T>(&mut self, json: &str, depth: usize, build: Build<T>) -> Result<T, Failure> {
        self.input.clear();
        self.input.extend_from_slice(json.as_bytes());
        let mut tape = self.tape.take().unwrap_or_else(Tape::null).reset();
        let result = match simd_json::fill_tape(&mut self.input, &mut self.buffers, &mut tape) {
            Ok(()) => build(&mut tape.0.iter(), depth).map_err(Failure::Final),
            Err(error) => Err(match error.error() {
                ErrorType::DepthLimitExceeded => Failure::Final(JsonError::TooDeep),
                ErrorType::InvalidUnicodeCodepoint | ErrorType::InvalidUtf8 => Failure::Surrogate,
                _ => Failure::Final(JsonError::Syntax),
            }),
        };
        self.tape = Some(tape.reset());
        result
    }
}

/// Why one attempt failed: for good, or perhaps because of a lone surrogate.
enum Failure {
    Final(JsonError),
    Surrogate,
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
    let depth = depth.checked_sub(1).ok_or(JsonError::TooDeep)?;
    let Some(Node::Array { len: len @ 1.., .. }) = nodes.as_slice().first() else { return Ok(None) };
    nodes.next();
    let name = match nodes.as_slice().first() {
        Some(Node::String(name)) => {
            nodes.next();
            Some(EventName::from(*name))
        }
        _ => match build(nodes, depth)? {
            Value::Number(number) => Some(EventName::from(number.to_string())),
            _ => None,
        },
    };
    let mut args = Vec::with_capacity(len - 1);
    for _ in 1..*len {
        args.push(build(nodes, depth)?);
    }
    Ok(Some((name, args)))
}

/// Builds the value at the front of the tape. The tape is nested at most `MAX_DEPTH` deep, so is the
/// recursion.
fn build(nodes: &mut Nodes<'_>, depth: usize) -> Result<Value, JsonError> {
    Ok(match *nodes.next().ok_or(JsonError::Syntax)? {
        Node::Static(StaticNode::Null) => Value::Null,
        Node::Static(StaticNode::Bool(value)) => Value::Bool(value),
        Node::Static(StaticNode::I64(number)) => Value::Number(Number::from(number)),
        Node::Static(StaticNode::U64(number)) => Value::Number(Number::from(number)),
        Node::Static(StaticNode::F64(number)) => Value::Number(Number::from(number)),
        Node::String(text) => Value::String(text.to_owned()),
        Node::Array { len, .. } => {
            let depth = depth.checked_sub(1).ok_or(JsonError::TooDeep)?;
            let mut items = Vec::with_capacity(len);
            for _ in 0..len {
                items.push(build(nodes, depth)?);
            }
            Value::Array(items)
        }
        Node::Object { len, .. } => {
            let depth = depth.checked_sub(1).ok_or(JsonError::TooDeep)?;
            let mut entries = Vec::with_capacity(len);
            for _ in 0..len {
                let Some(Node::String(key)) = nodes.next() else { return Err(JsonError::Syntax) };
                entries.push(((*key).to_owned(), build(nodes, depth)?));
            }
            drop_duplicates(&mut entries);
            Value::Object(entries)
        }
    })
}

/// Replaces every `\uD800`..`\uDFFF` that is not half of a pair by `\uFFFD`. Backslashes only ever stand
/// inside strings of valid JSON, so it is enough to follow escapes.
fn replace_lone_surrogates(json: &str) -> Cow<'_, str> {
    let mut repaired = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = json.get(at..).and_then(|rest| rest.find('\\')) {
        let escape = at + found;
        let after = json.get(escape..).unwrap_or_default();
        at = escape + 2;
        match surrogate(after) {
            Some(0xd800..0xdc00) if matches!(after.get(6..).and_then(surrogate), Some(0xdc00..0xe000)) => {
                at = escape + 12;
            }
            Some(_) => {
                repaired.push_str(json.get(copied..escape).unwrap_or_default());
                repaired.push_str("\\ufffd");
                at = escape + 6;
                copied = at;
            }
            // An escape of one ASCII character; if what follows is longer, it is no JSON, and what is not
            // JSON need not be repaired.
            None if !json.is_char_boundary(at) => break,
            None => {}
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    repaired.push_str(json.get(copied..).unwrap_or_default());
    Cow::Owned(repaired)
}

/// The surrogate whose escape `text` begins with, if it begins with one.
fn surrogate(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok().filter(|unit| (0xd800..0xe000).contains(unit))
}

#[cfg(test)]
mod tests;
