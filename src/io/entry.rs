//! What a namespace keeps for each of its sockets.

use std::rc::Rc;

use super::SocketData;
use super::listeners::Listeners;
use crate::app::Request;
use crate::engine::{self, SocketSid};
use crate::protocol::sio::Value;
use crate::time::Millis;

/// One socket.
pub(super) struct Entry {
    /// The id, unless it is one of Socket.IO v2.
    pub(super) sid: SocketSid,
    /// Whether the client speaks Socket.IO v2.
    pub(super) v2: bool,
    /// Whether its id does not name its slot, but stands in a table: one of Socket.IO v2, or of a socket that
    /// has come back. The room of such an id is one like any other.
    pub(super) named: bool,
    /// Whether it is a socket that was there before, and has come back or is about to.
    pub(super) recovered: bool,
    pub(super) generation: u32,
    pub(super) state: State,
    /// Whether it has left the room of its own id, which it joins without a record.
    pub(super) left_own: bool,
    pub(super) conn: engine::Socket,
    pub(super) outlet: u32,
    pub(super) request: Request,
    pub(super) issued: Stamp,
    pub(super) extra: Option<Box<Extra>>,
}

// There is one for each socket, and a cache line holds it.
const _: () = assert!(size_of::<Entry>() <= 64);

/// What many sockets do without.
#[derive(Default)]
pub(super) struct Extra {
    /// The auth payload; `None` stands for an empty object.
    pub(super) auth: Option<Box<Value>>,
    pub(super) listeners: Option<Box<Listeners>>,
    pub(super) data: Option<Rc<dyn SocketData>>,
    /// The acknowledgements that this socket owes.
    #[allow(clippy::box_collection, reason = "one word for the many that owe none")]
    pub(super) acks: Option<Box<Vec<u64>>>,
}

impl Extra {
    pub(super) fn of_auth(auth: Option<Value>) -> Option<Box<Self>> {
        auth.map(|auth| Box::new(Self { auth: Some(Box::new(auth)), ..Self::default() }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Middlewares run.
    Connecting,
    Connected,
    /// `disconnecting` is being told.
    Leaving,
    /// `disconnect` is being told.
    Left,
}

/// A time in six bytes: enough for 8,900 years.
#[derive(Clone, Copy)]
pub(super) struct Stamp([u8; 6]);

impl Stamp {
    pub(super) fn of(time: Millis) -> Self {
        let [a, b, c, d, e, f, ..] = time.to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    pub(super) fn millis(self) -> Millis {
        let [a, b, c, d, e, f] = self.0;
        Millis::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

impl Entry {
    pub(super) fn auth(&self) -> Value {
        let auth = self.extra.as_ref().and_then(|extra| extra.auth.as_deref());
        auth.cloned().unwrap_or_else(|| Value::Object(Vec::new()))
    }

    /// Whether a room is that of its own id, which it joins without a record.
    pub(super) fn is_own(&self, room: &str) -> bool {
        !self.named && SocketSid::parse(room) == Some(self.sid)
    }

    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(super) fn data(&self) -> Option<Rc<dyn SocketData>> {
        self.extra.as_ref()?.data.clone()
    }

    pub(super) fn listeners(&self) -> Option<&Listeners> {
        self.extra.as_ref()?.listeners.as_deref()
    }

    pub(super) fn listeners_mut(&mut self) -> Option<&mut Listeners> {
        self.extra.as_mut()?.listeners.as_deref_mut()
    }

    /// The handlers, for another one.
    pub(super) fn make_listeners(&mut self) -> &mut Listeners {
        self.extra_mut().listeners.get_or_insert_default()
    }

    /// Lets the handlers go if there are none.
    pub(super) fn tidy_listeners(&mut self) {
        if self.listeners().is_some_and(Listeners::is_empty) {
            self.extra_mut().listeners = None;
        }
    }

    /// The acknowledgements that it owes.
    pub(super) fn acks_mut(&mut self) -> Option<&mut Vec<u64>> {
        self.extra.as_mut()?.acks.as_deref_mut()
    }
}
