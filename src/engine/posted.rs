//! The packets of a POST: read one by one, as far as the turn has time and the client takes what it is owed.

use std::borrow::Cow;
use std::marker::PhantomData;

use super::server::{Entry, Inner, Link, with_server};
use super::{CloseReason, Socket, jsonp};
use crate::app::{Request, Response};
use crate::fanout::Task;
use crate::limits;
use crate::protocol::eio::{EioError, Packet, Revision, next_packet, v3};
use crate::runtime;

/// A POST of which not all packets are read. It is answered when they are.
pub(super) struct Posted {
    request: Request,
    response: Response,
    /// The payload, if it is not the body as it came.
    payload: Option<String>,
    /// Bytes of the payload that are read.
    at: usize,
    revision: Revision,
    binary: bool,
}

/// What is left of a payload.
enum Rest<'a> {
    V4(Option<&'a str>),
    V3(&'a str),
    V3Binary(&'a [u8]),
}

/// Why no more packets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// There are none, or the session has ended.
    End,
    /// The turn has no more time.
    Spent,
    /// The client is to take what it is owed first.
    Pressed,
}

impl<'a> Rest<'a> {
    /// `binary`: what the request says of the body.
    fn of(revision: Revision, binary: bool, body: &'a [u8]) -> Result<Self, EioError> {
        let text = || simdutf8::basic::from_utf8(body).map_err(|_| EioError::Utf8);
        match revision {
            Revision::V4 => Ok(Self::V4(Some(text()?))),
            Revision::V3 if body.is_empty() => Err(EioError::Empty),
            Revision::V3 if binary => Ok(Self::V3Binary(body)),
            Revision::V3 => Ok(Self::V3(text()?)),
        }
    }

    fn next(&mut self) -> Option<Result<Packet<'a>, EioError>> {
        match self {
            Self::V4(rest) => next_packet(rest),
            Self::V3(rest) => v3::next_packet(rest),
            Self::V3Binary(rest) => v3::next_binary_packet(rest),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::V4(rest) => rest.map_or(0, str::len),
            Self::V3(rest) => rest.len(),
            Self::V3Binary(rest) => rest.len(),
        }
    }
}

impl Posted {
    pub(super) fn new(request: &Request, response: Response, revision: Revision, binary: bool) -> Self {
        let body = request.body();
        // As in the reference, bytes that are no UTF-8 are replaced (U+FFFD); over WebSocket they are an
        // error.
        let broken = !binary && simdutf8::basic::from_utf8(body).is_err();
        let payload = broken.then(|| String::from_utf8_lossy(body).into_owned());
        Self { request: request.clone(), response, payload, at: 0, revision, binary }
    }

    /// Takes the payload out of a form; `false` if there is none. As in the reference, a form without it is
    /// nothing at all.
    pub(super) fn read_form(&mut self) -> bool {
        let form = match self.payload.take() {
            Some(replaced) => Cow::Owned(replaced),
            None => String::from_utf8_lossy(self.request.body()),
        };
        let payload = jsonp::payload(&form);
        (self.payload, self.binary) = (payload, false);
        self.payload.is_some()
    }

    fn rest(&self) -> Result<Rest<'_>, EioError> {
        let body = self.payload.as_ref().map_or(&self.request.body()[..], String::as_bytes);
        Rest::of(self.revision, self.binary, body.get(self.at..).unwrap_or_default())
    }

    /// Answers, whatever was read.
    pub(super) fn finish(self) {
        self.response.header("Content-Type", "text/html").end("ok");
    }
}

impl Entry {
    /// The POST whose packets wait to be read.
    fn reading(&mut self) -> Option<&mut Option<Box<Posted>>> {
        match &mut self.link {
            Link::Polling(polling) => Some(&mut polling.reading),
            Link::WebSocket(_) => None,
        }
    }
}

impl Inner {
    /// Reads packets of a POST: all of them (`whole`), or as many as may be read now.
    pub(super) fn read_posted(&self, socket: Socket, mut posted: Box<Posted>, whole: bool) {
        let before = self.posted.replace(Some((socket, posted.request.clone())));
        // A handler that panics ends its session, as over a WebSocket; the connection may carry others.
        let read = runtime::guarded("a handler of a posted payload", || {
            self.read_packets(socket, &mut posted, whole)
        });
        self.posted.replace(before);
        match read {
            None => self.close(socket, CloseReason::TransportError, "a handler panicked"),
            Some(Err(error)) => {
                tracing::debug!("a polling session is closed: {error}");
                self.close(socket, CloseReason::ParseError, &error.to_string());
            }
            Some(Ok(Stop::End)) => {}
            Some(Ok(stop)) => match self.put_aside(socket, posted, stop) {
                Some(ended) => posted = ended,
                None => return,
            },
        }
        posted.finish();
    }

    fn read_packets(&self, socket: Socket, posted: &mut Posted, whole: bool) -> Result<Stop, EioError> {
        let mut rest = posted.rest()?;
        let all = posted.at + rest.len();
        let mut left = rest.len();
        let stop = loop {
            if !whole && left > 0 && self.is_pressed(socket) {
                break Stop::Pressed;
            }
            let Some(packet) = rest.next() else { break Stop::End };
            if !self.packet(socket, &packet?) {
                break Stop::End;
            }
            self.core.charge(limits::MESSAGE_WORK + left - rest.len());
            left = rest.len();
            // Nothing behind a last separator is an error, which is told at once.
            if !whole && left > 0 && self.core.is_spent() {
                break Stop::Spent;
            }
        };
        posted.at = all - left;
        Ok(stop)
    }

    /// Keeps a POST that is not read to its end; gives it back if its session has ended.
    fn put_aside(&self, socket: Socket, posted: Box<Posted>, stop: Stop) -> Option<Box<Posted>> {
        if self.with(socket, |entry| entry.reading().is_none()) != Some(false) {
            return Some(posted);
        }
        let gone = posted.response.is_aborted();
        if stop == Stop::Spent {
            self.read_later(socket, &posted.response);
        }
        if !gone {
            // Its client may go, having said all that it wanted to say.
            posted.response.on_abort(move || {
                with_server(socket, |server| server.read_alone(socket));
            });
        }
        self.with(socket, |entry| entry.reading().map(|reading| reading.replace(posted)));
        None
    }

    fn read_later(&self, socket: Socket, response: &Response) {
        if response.is_aborted() {
            return self.read_alone(socket);
        }
        response.later(move || {
            with_server(socket, |server| server.read_on(socket, false));
        });
    }

    /// Goes on with a POST in the next turn whose connection does not call for it any more.
    fn read_alone(&self, socket: Socket) {
        let Socket { server, slot, generation, .. } = socket;
        let go_on = Task::new(move || {
            let socket = Socket { server, slot, generation, local: PhantomData };
            with_server(socket, |server| server.read_on(socket, false));
        });
        if !self.core.post(self.core.index(), go_on) {
            // The core's mailbox is full: the session would wait for ever.
            self.close(socket, CloseReason::TransportError, "too much waits on this core");
        }
    }

    /// Goes on with a POST.
    pub(super) fn read_on(&self, socket: Socket, whole: bool) {
        let posted = self.with(socket, |entry| entry.reading()?.take()).flatten();
        if let Some(posted) = posted {
            self.read_posted(socket, posted, whole);
        }
    }

    /// A client has taken what it was owed: the rest of what it has posted may be read.
    pub(super) fn resume_posted(&self, socket: Socket) {
        if self.is_pressed(socket) {
            return;
        }
        self.with(socket, |entry| {
            if let Some(Some(posted)) = entry.reading() {
                self.read_later(socket, &posted.response);
            }
        });
    }

    /// Whether so much waits for the client of a polling session that no more is read from it. One that
    /// changes over does not poll until its POST is answered.
    fn is_pressed(&self, socket: Socket) -> bool {
        let upgrading = self.probes.borrow().contains_key(&socket);
        let outlet = self.with(socket, |entry| entry.outlet).filter(|_| !upgrading);
        outlet.is_some_and(|outlet| self.core.outlets().is_pressed(outlet, 0))
    }

    /// Whether it is not the client's fault that nothing was heard of it: what it has sent is still to be
    /// read.
    pub(super) fn is_excused(&self, socket: Socket) -> bool {
        let websocket = self.with(socket, |entry| match &entry.link {
            Link::WebSocket(ws) => Some(*ws),
            Link::Polling(_) => None,
        });
        match websocket {
            Some(Some(ws)) => ws.is_excused(),
            _ => {
                let reading =
                    self.with(socket, |entry| entry.reading().is_some_and(|posted| posted.is_some()));
                reading == Some(true) && !self.is_pressed(socket)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The packets of a body, read as if the turn ended after each of them.
    fn read(revision: Revision, binary: bool, body: &[u8]) -> (usize, Result<(), EioError>) {
        let (mut at, mut packets) = (0, 0);
        loop {
            let mut rest = match Rest::of(revision, binary, &body[at..]) {
                Ok(rest) => rest,
                Err(error) => return (packets, Err(error)),
            };
            // As in `read_packets`: what is left must not be nothing.
            loop {
                match rest.next() {
                    None => return (packets, Ok(())),
                    Some(Err(error)) => return (packets, Err(error)),
                    Some(Ok(_)) => packets += 1,
                }
                if rest.len() > 0 {
                    break;
                }
            }
            at = body.len() - rest.len();
        }
    }

    #[test]
    fn a_body_is_read_as_its_request_says_wherever_a_turn_ends() {
        let (v3, v4) = (Revision::V3, Revision::V4);
        assert_eq!(read(v3, false, b"2:4a1:2"), (2, Ok(())));
        assert_eq!(read(v3, false, b"2:4a0:"), (1, Ok(())));
        assert_eq!(read(v3, true, b"\x00\x01\xff2"), (1, Ok(())));
        assert_eq!(read(v3, true, b"\x00\x01\xff2\x01\x02\xff\x04\x07"), (2, Ok(())));
        assert_eq!(read(v3, true, b"2:4a"), (0, Err(EioError::Length)));
        assert_eq!(read(v3, false, b""), (0, Err(EioError::Empty)));
        assert_eq!(read(v4, false, b""), (0, Err(EioError::Empty)));
        assert_eq!(read(v4, false, b"4a"), (1, Ok(())));
        assert_eq!(read(v4, false, b"4a\x1e"), (1, Err(EioError::Empty)), "nothing behind the separator");
        assert_eq!(read(v4, false, b"4a\x1e9"), (1, Err(EioError::UnknownType)));
        assert_eq!(read(v4, false, "4\u{e4}\x1ebAQ==\x1e3".as_bytes()), (3, Ok(())));
        assert_eq!(read(v4, false, b"4a\x1e4\xff"), (0, Err(EioError::Utf8)), "before any packet");
    }
}
