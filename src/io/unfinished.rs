//! Events that wait for their async handlers, and what they cost.

use std::cell::RefCell;
use std::rc::Rc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::Socket;
use super::namespace::NspInner;
use super::server::{Inner, by_index};
use crate::engine;
use crate::limits;
use crate::protocol::sio::Value;

/// Bytes of events that are not finished, by connection. Those that have none are not in it.
#[derive(Clone, Default)]
pub(super) struct Unfinished(Rc<RefCell<HashMap<engine::Socket, usize, RandomState>>>);

/// One handler or middleware that waits. It counts until it is dropped, however that comes about.
pub(super) struct Held {
    all: Unfinished,
    conn: engine::Socket,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = self.all.0.borrow_mut();
        let Some(bytes) = all.get_mut(&self.conn) else { return };
        *bytes = bytes.saturating_sub(self.bytes);
        if *bytes == 0 {
            all.remove(&self.conn);
        }
    }
}

impl Unfinished {
    fn hold(&self, conn: engine::Socket, args: &[Value]) -> Held {
        let bytes = limits::EVENT_COST_BYTES + args.iter().map(weight).sum::<usize>();
        *self.0.borrow_mut().entry(conn).or_default() += bytes;
        Held { all: self.clone(), conn, bytes }
    }

    fn of(&self, conn: engine::Socket) -> usize {
        self.0.borrow().get(&conn).copied().unwrap_or(0)
    }
}

/// The memory of a value, about: nested empty arrays take many times what they take on the wire.
pub(super) fn weight(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Binary(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| size_of::<String>() + key.len() + weight(value)).sum()
        }
        Value::Deep(json) => json.as_str().len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + inside
}

impl NspInner {
    /// Counts an event as unfinished while the result lives.
    pub(super) fn hold(&self, socket: Socket, args: &[Value]) -> Option<Held> {
        let conn = self.with(socket, |entry| entry.conn)?;
        Some(by_index(self.server)?.unfinished.hold(conn, args))
    }
}

impl Inner {
    /// Whether a client has made as many events as may wait for their handlers.
    pub(super) fn is_overburdened(&self, conn: engine::Socket) -> bool {
        let largest = self.options.engine.max_http_buffer_size.saturating_mul(4);
        self.unfinished.of(conn) > largest.max(limits::UNFINISHED_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_weighs_what_it_takes_in_memory() {
        let one = size_of::<Value>();
        assert_eq!(weight(&Value::Null), one);
        assert_eq!(weight(&Value::from("abc")), one + 3);
        let empty = Value::Array(vec![Value::Array(Vec::new()); 10]);
        assert_eq!(weight(&empty), 11 * one);
    }
}
