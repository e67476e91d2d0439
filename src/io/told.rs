//! What the log and the counters are told of handlers and clients.

use std::any::TypeId;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;

use foldhash::fast::RandomState;
use hashbrown::HashSet;

use super::{Failure, SocketId};
use crate::limits;
use crate::protocol::Shown;
use crate::time::Millis;

/// What is done for a client, for the log: names that clients may have chosen are escaped and cut.
#[derive(Clone, Debug)]
pub(super) struct Doing<'a> {
    pub(super) what: &'static str,
    pub(super) event: Cow<'a, str>,
    pub(super) nsp: Cow<'a, str>,
    /// `None` for a socket that has left.
    pub(super) id: Option<SocketId>,
}

impl Doing<'_> {
    /// The same for a task that goes on with it.
    pub(super) fn into_owned(self) -> Doing<'static> {
        let Self { what, event, nsp, id } = self;
        Doing { what, event: event.into_owned().into(), nsp: nsp.into_owned().into(), id }
    }
}

impl fmt::Display for Doing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the event {}, for ", self.what, Shown(&self.event))?;
        match &self.id {
            Some(id) => write!(f, "the socket {}", Shown(&id.to_string()))?,
            None => f.write_str("a socket that has left")?,
        }
        write!(f, " of the namespace {}", Shown(&self.nsp))
    }
}

/// Lines of one kind: so many a second are written.
#[derive(Default)]
struct Lines {
    second: Cell<Millis>,
    written: Cell<u32>,
    left_out: Cell<u64>,
}

/// How many lines were left out before the one that is written.
struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, " ({} lines like this were left out)", self.0) } else { Ok(()) }
    }
}

impl Lines {
    /// Whether a line may be written.
    fn next(&self, now: Millis) -> Option<LeftOut> {
        let second = now / 1000;
        if self.second.replace(second) != second {
            self.written.set(0);
        }
        if self.written.get() >= limits::LOG_LINES {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.written.set(self.written.get() + 1);
        Some(LeftOut(self.left_out.take()))
    }
}

/// What a server says and counts on one core.
#[derive(Default)]
pub(super) struct Told {
    failures: Cell<u64>,
    failure_lines: Lines,
    rooms_refused: Cell<u64>,
    namespaces_refused: Cell<u64>,
    namespace_lines: Lines,
    /// Types of state that handlers have asked for and the server was not given.
    missing: RefCell<HashSet<TypeId, RandomState>>,
}

impl Told {
    /// A handler has failed.
    pub(super) fn failure(&self, now: Millis, doing: &Doing<'_>, failure: &Failure) {
        self.failures.set(self.failures.get() + 1);
        if let Some(left_out) = self.failure_lines.next(now) {
            tracing::warn!("{doing}: failed: {}{left_out}", Shown(&failure.to_string()));
        }
    }

    /// A socket was not let into a room.
    pub(super) fn room_refused(&self, doing: &Doing<'_>, why: fmt::Arguments<'_>) {
        self.rooms_refused.set(self.rooms_refused.get() + 1);
        if self.rooms_refused.get() == 1 {
            tracing::warn!("{doing}: {why}; further ones are counted only (rooms_refused)");
        }
    }

    /// A client was refused a namespace because there are too many.
    pub(super) fn namespace_refused(&self, now: Millis, name: &str) {
        self.namespaces_refused.set(self.namespaces_refused.get() + 1);
        if let Some(left_out) = self.namespace_lines.next(now) {
            tracing::warn!(
                "there are too many dynamic namespaces: a client is refused {}{left_out}",
                Shown(name)
            );
        }
    }

    /// A handler has asked for a state that the server was not given.
    pub(super) fn missing_state(&self, of: TypeId, name: &str) {
        if self.missing.borrow_mut().insert(of) {
            tracing::error!("a handler takes State<{name}>, and `set_state` was given none: it never runs");
        }
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.get()
    }

    pub(super) fn rooms_refused(&self) -> u64 {
        self.rooms_refused.get()
    }

    pub(super) fn namespaces_refused(&self) -> u64 {
        self.namespaces_refused.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_second_and_the_rest_is_counted() {
        let lines = Lines::default();
        let written = (0..100).filter(|_| lines.next(5_500).is_some()).count();
        assert_eq!(written, limits::LOG_LINES as usize);
        let next = lines.next(6_000).unwrap().to_string();
        assert_eq!(next, format!(" ({} lines like this were left out)", 100 - limits::LOG_LINES));
        assert_eq!(lines.next(6_001).unwrap().to_string(), "");
    }

    #[test]
    fn names_of_clients_make_no_lines() {
        let doing = Doing {
            what: "a handler",
            event: "a\nERROR b".into(),
            nsp: "/x\u{1b}[2J".into(),
            id: Some(SocketId::of_text("/\r#1")),
        };
        let text = doing.into_owned().to_string();
        assert!(!text.chars().any(char::is_control), "{text}");
        assert!(text.contains(r#""a\nERROR b""#), "{text}");
    }
}
