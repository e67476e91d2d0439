//! What a poll is answered with: how much of what waits, and in which coding.

use bytes::Bytes;

use super::server::{Inner, Link};
use super::{Socket, translate};
use crate::app::{Request, Response};
use crate::fanout::{Frame, OutletId};
use crate::protocol::eio::{Dialect, Revision};
use crate::protocol::http::{Coding, Effort, compress, negotiate};

/// A poll that waits for something to say.
pub(super) struct Poll {
    pub(super) response: Response,
    /// How its payload may be coded.
    pub(super) coding: Coding,
    /// The number of the call that its payload is the argument of, and how the call may be coded.
    pub(super) jsonp: Option<(Box<str>, Coding)>,
    /// The most packets that its client reads in one payload.
    packets_max: usize,
    dialect: Dialect,
}

/// The body of an answer.
pub(super) struct Payload {
    pub(super) body: Bytes,
    pub(super) coding: Coding,
    /// Whether some packet in it may be compressed.
    pub(super) compressible: bool,
    pub(super) content_type: &'static str,
}

impl Payload {
    fn new(body: Bytes, coding: Coding, compressible: bool) -> Self {
        Self { body, coding, compressible, content_type: translate::TEXT }
    }

    /// One that has only packets of this layer in it: each is one digit.
    pub(super) fn digits(poll: &Poll, packets: &[u8]) -> Self {
        Self::new(translate::digits(poll.dialect, packets).into(), Coding::Identity, true)
    }
}

/// Packets that python-engineio reads in one payload; it gives up on a longer one, with all that is in it.
const PYTHON_PACKETS_MAX: usize = 16;

/// The codings in the server's order: that of the reference, and then Brotli, which costs more for what is
/// compressed once.
const OFFERED: [Coding; 3] = [Coding::Gzip, Coding::Deflate, Coding::Brotli];

impl Inner {
    /// A poll of a session that is known, whether it is open or not.
    pub(super) fn new_poll(&self, socket: Socket, request: &Request, response: Response) -> Poll {
        let index = self.with_any(socket, |entry| match &entry.link {
            Link::Polling(polling) => polling.jsonp.clone(),
            Link::WebSocket(_) => None,
        });
        let index = index.flatten();
        let coding = match self.options.http_compression {
            Some(_) => negotiate(request.header("accept-encoding"), &OFFERED),
            None => Coding::Identity,
        };
        let (coding, jsonp) = match index {
            Some(index) => (Coding::Identity, Some((index, coding))),
            None => (coding, None),
        };
        // The HTTP clients under python-engineio, which says no name of its own.
        let python = |agent: &str| agent.starts_with("python-requests/") || agent.contains("aiohttp/");
        let packets_max = match request.header("user-agent").is_some_and(python) {
            true => PYTHON_PACKETS_MAX,
            false => usize::MAX,
        };
        Poll { response, coding, jsonp, packets_max, dialect: self.dialect(socket) }
    }

    /// Whether a body of so many bytes is to be in this coding: not one that is small, nor more in one turn
    /// than [`COMPRESSED_BYTES`](crate::limits::COMPRESSED_BYTES). Compression saves bytes; it is not to cost
    /// others their time.
    pub(super) fn is_worth(&self, coding: Coding, bytes: usize) -> bool {
        let threshold = self.options.http_compression.map(|options| options.threshold);
        let large = threshold.is_some_and(|threshold| bytes >= threshold);
        coding != Coding::Identity && large && self.core.may_compress(bytes)
    }

    /// A body in a coding.
    pub(super) fn packed(&self, coding: Coding, plain: &[u8]) -> Bytes {
        // It writes to memory only, which cannot fail.
        let packed = compress(coding, plain, Effort::Once).map(Bytes::from).unwrap_or_default();
        self.core.charge_compression(plain.len());
        packed
    }

    /// Frames as one payload.
    pub(super) fn payload(&self, frames: &[Frame], poll: &Poll) -> Payload {
        let (coding, compressible) = (poll.coding, frames.iter().any(Frame::is_compressible));
        if let ([frame], Revision::V4) = (frames, poll.dialect.revision)
            && compressible
            && self.is_worth(coding, frame.polling().len())
        {
            let body = frame.packed(form(coding), |plain| self.packed(coding, plain)).cloned();
            return Payload::new(body.unwrap_or_default(), coding, compressible);
        }
        if let ([frame], Revision::V4) = (frames, poll.dialect.revision)
            && !(compressible && self.is_worth(coding, frame.polling().len()))
        {
            // Shared with all others that are owed it.
            return Payload::new(frame.polling_bytes(), Coding::Identity, compressible);
        }
        let joined = translate::payload(poll.dialect, frames.iter());
        self.core.charge(joined.len());
        let content_type = translate::content_type(&joined);
        let payload = match compressible && self.is_worth(coding, joined.len()) {
            true => Payload::new(self.packed(coding, &joined), coding, compressible),
            false => Payload::new(joined.into(), Coding::Identity, compressible),
        };
        Payload { content_type, ..payload }
    }

    /// What has waited for a poll, as far as its client reads it. `None`: nothing has.
    pub(super) fn take_backlog(&self, outlet: OutletId, poll: &Poll) -> Option<Payload> {
        let frames = self.core.outlets().backlog(outlet)?.take(poll.packets_max);
        (!frames.is_empty()).then(|| self.payload(&frames, poll))
    }

    /// What the session is owed in this turn; what comes, and what is too much for one payload, waits for the
    /// next poll. `None`: it is owed nothing.
    pub(super) fn take_owed(&self, outlet: OutletId, poll: &Poll) -> Option<Payload> {
        let mut outlets = self.core.outlets();
        let owed = outlets.owed(outlet);
        let (mut packets, mut compressible) = (0, false);
        for frame in outlets.batch.frames(owed) {
            packets += frame.packets();
            compressible |= frame.is_compressible();
        }
        if packets > poll.packets_max || poll.dialect.revision != Revision::V4 {
            // No form of it is shared: it goes the way of what has waited.
            outlets.block(outlet);
            drop(outlets);
            return self.take_backlog(outlet, poll);
        }
        let coding = poll.coding;
        let plain = outlets.batch.polling(owed);
        let payload = if packets == 0 {
            None
        } else if compressible && self.is_worth(coding, plain.len()) {
            let body = outlets.batch.packed(owed, form(coding), |plain| self.packed(coding, plain));
            Some(Payload::new(body.unwrap_or_default(), coding, compressible))
        } else {
            Some(Payload::new(plain, Coding::Identity, compressible))
        };
        let messages = outlets.batch.len(owed);
        outlets.settle(outlet);
        outlets.block(outlet);
        drop(outlets);
        self.core.count_messages(messages);
        payload
    }
}

/// Where a coding's form is kept.
fn form(coding: Coding) -> usize {
    OFFERED.iter().position(|offered| *offered == coding).unwrap_or(usize::MAX)
}
