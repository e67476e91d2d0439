//! What WebSockets have sent and nobody has read yet.
//!
//! A turn reads until its budget is spent, and from a client that takes what it is owed. What it does not
//! read is kept here, outside of the sockets' records, since hardly any socket has some;
//! [`Inner::websocket_ready`] goes on with it when the runtime says so.

use std::mem;

use super::behavior::Upgradable;
use super::service::{Inner, State};
use crate::limits;
use crate::protocol::ws::WsError;
use crate::protocol::ws::deflate::Inflater;
use crate::protocol::ws::message::Decoder;
use crate::runtime::{ConnectionId, Ended};

/// The code for a message that a process short of memory does not take (in IANA's registry of RFC 6455).
const TRY_AGAIN_LATER: u16 = 1013;

/// Why the input of a socket is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// It is read to its end.
    Done,
    /// The turn has no more time.
    Spent,
    /// The client is to take what it is owed first.
    Held,
    /// The socket reads no more.
    Over,
}

/// What reads the input of one socket.
pub(super) struct Reader<'a> {
    pub(super) app: &'a Inner,
    pub(super) id: ConnectionId,
    pub(super) behavior: &'a dyn Upgradable,
    /// What the socket carries.
    pub(super) word: u64,
}

impl Reader<'_> {
    /// Reads messages: how many bytes of the input are used, and why not all.
    pub(super) fn read(
        &self,
        input: &mut [u8],
        decoder: &mut Decoder,
        mut inflater: Option<&mut Inflater>,
    ) -> (usize, Reading) {
        let mut bounds = self.behavior.limits();
        let short = self.app.core.is_short_of_memory();
        if short {
            bounds.message_bytes = bounds.message_bytes.min(limits::LARGE_BODY_BYTES);
        }
        let mut used = 0;
        while used < input.len() {
            if self.app.core.is_pressed(self.id, self.behavior.elsewhere(self.id, self.word)) {
                return (used, Reading::Held);
            }
            let step = match decoder.decode_extended(&mut input[used..], &bounds, inflater.as_deref_mut()) {
                Ok(step) => step,
                Err(error) => {
                    tracing::debug!("a WebSocket is closed: {error}");
                    let code = match error {
                        WsError::TooBig if short => TRY_AGAIN_LATER,
                        error => error.close_code(),
                    };
                    self.app.websocket_failed(self.id, code, &error.to_string());
                    return (used, Reading::Over);
                }
            };
            let consumed = step.consumed;
            if let Some(message) = step.message {
                // Of a message that was inflated, its length counts and not what came of it.
                let work = limits::MESSAGE_WORK + message.len();
                if !self.app.websocket_message(self.id, self.behavior, message) {
                    return (used, Reading::Over);
                }
                self.app.core.charge(work);
            }
            used += consumed;
            if self.app.core.is_spent() && used < input.len() {
                return (used, Reading::Spent);
            }
        }
        (used, Reading::Done)
    }
}

/// The input of one WebSocket that was not read.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    /// How many of them are read.
    read: usize,
    /// Whether no more is received.
    paused: bool,
    /// Whether the client has closed its side: what it has sent before is still read.
    ended: bool,
    /// Whether the client is to take what it is owed first.
    held: bool,
}

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        if self.read > self.bytes.len() / 2 {
            self.bytes.drain(..mem::take(&mut self.read));
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn unread(&self) -> usize {
        self.bytes.len() - self.read
    }
}

impl Inner {
    /// Keeps what came of a WebSocket of which something is kept already; `false` if nothing is.
    pub(super) fn keep_behind(&self, id: ConnectionId, input: &[u8]) -> bool {
        let mut all = self.kept.borrow_mut();
        if all.is_empty() {
            return false;
        }
        let Some(kept) = all.get_mut(&id.slot()) else { return false };
        kept.add(input);
        self.bound(id, kept);
        true
    }

    /// Keeps the rest of what came of a WebSocket, for when it may be read.
    pub(super) fn keep(&self, id: ConnectionId, rest: &[u8], why: Reading) {
        self.keep_again(id, Kept { bytes: rest.to_vec(), ..Kept::default() }, why);
    }

    fn keep_again(&self, id: ConnectionId, mut kept: Kept, why: Reading) {
        if self.entry(id, |_| ()).is_none() {
            return;
        }
        match why {
            Reading::Held => {
                kept.held = true;
                // When all has left: see `input_drained`.
                self.core.notify_drained(id);
            }
            _ => {
                kept.held = false;
                self.core.read_again(id);
            }
        }
        self.bound(id, &mut kept);
        self.kept.borrow_mut().insert(id.slot(), kept);
    }

    /// Receives no more while much is kept, or while the client is to read first.
    fn bound(&self, id: ConnectionId, kept: &mut Kept) {
        if !kept.paused && (kept.held || kept.unread() > limits::INPUT_KEPT_BYTES) {
            kept.paused = true;
            self.core.pause(id);
        }
    }

    /// Goes on with what is kept of a WebSocket.
    pub(super) fn websocket_ready(&self, id: ConnectionId) {
        let Some(mut kept) = self.kept.borrow_mut().remove(&id.slot()) else { return };
        let mut unread = kept.bytes.split_off(kept.read);
        kept.read = 0;
        let (used, why) = self.websocket_read(id, &mut unread);
        if why == Reading::Over || self.entry(id, |_| ()).is_none() {
            return;
        }
        kept.bytes = unread;
        kept.read = used;
        if kept.unread() > 0 {
            return self.keep_again(id, kept, why);
        }
        if kept.ended {
            let entry = self.forget(id);
            self.core.close(id);
            if let Some(State::WebSocket(socket)) = entry.map(|entry| entry.state) {
                socket.ended(self, id, Ended::Eof);
            }
        } else if kept.paused {
            self.core.resume(id);
        }
    }

    /// The connection ends now: what its client has said before is read, whatever the turn's budget. With
    /// TLS, whose connections are not kept for it, unless the client does not take what it is owed.
    pub(super) fn read_rest(&self, id: ConnectionId) {
        let is_left = || self.kept.borrow().get(&id.slot()).is_some_and(|kept| !kept.held);
        while self.entry(id, |_| ()).is_some() && is_left() {
            self.websocket_ready(id);
        }
    }

    /// A client has taken all that it was owed: what it has sent may be read.
    pub(super) fn input_drained(&self, id: ConnectionId) {
        let held = match self.kept.borrow_mut().get_mut(&id.slot()) {
            Some(kept) => mem::take(&mut kept.held),
            None => false,
        };
        if held {
            self.core.read_again(id);
        }
    }

    /// The client of a WebSocket has closed its side; whether something that it has sent is still to be read.
    pub(super) fn input_ended(&self, id: ConnectionId) -> bool {
        match self.kept.borrow_mut().get_mut(&id.slot()) {
            Some(kept) => {
                kept.ended = true;
                true
            }
            None => false,
        }
    }

    /// Whether it is not the client's fault that nothing was heard of it: what it has sent waits for a turn
    /// with time, or it takes what it is owed and has taken some since this was last asked. A ping behind
    /// much else has not come to it yet.
    pub(super) fn is_excused(&self, id: ConnectionId) -> bool {
        if self.kept.borrow().get(&id.slot()).is_some_and(|kept| !kept.held) {
            return true;
        }
        let mut taken = self.taken.borrow_mut();
        if self.core.owed_bytes(id) == 0 {
            taken.remove(&id.slot());
            return false;
        }
        let now = self.core.taken_bytes(id);
        taken.insert(id.slot(), now) != Some(now) && now > 0
    }
}
