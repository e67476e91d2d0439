//! HTTP long-polling (engine.io-protocol v4, "HTTP long-polling").

use std::rc::Rc;

use super::admission::RETRY_AFTER;
use super::headers::Headers;
use super::ids::Reserved;
use super::payload::{Payload, Poll};
use super::posted::Posted;
use super::server::{Inner, Link};
use super::verify::Refusal;
use super::{CloseReason, Socket, Transport, jsonp};
use crate::app::{Begun, BodyEnd, Request, Response};
use crate::fanout::OutletId;
use crate::limits;
use crate::protocol::eio::Revision;
use crate::runtime::ConnectionId;
use crate::time::Millis;

/// A session's polling transport.
#[derive(Default)]
pub(super) struct Polling {
    get: Option<Poll>,
    /// The connection that a POST is coming through.
    post: Option<ConnectionId>,
    /// A POST that is complete and not read to its end.
    pub(super) reading: Option<Box<Posted>>,
    /// The client has done nothing since its handshake.
    pub(super) fresh: bool,
    /// The session has ended and waits for one more poll.
    pub(super) ending: Option<Ending>,
    /// Answers are calls with this number: the handshake had a `j`.
    pub(super) jsonp: Option<Box<str>>,
}

/// A session that has ended and waits for one more poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) until: Millis,
    /// The client has closed it, and need not be told.
    pub(super) by_client: bool,
}

/// How long a session that was closed without a waiting poll is kept, so that the next poll can be told.
const CLOSE_TIMEOUT_MS: Millis = 30_000;

impl Inner {
    /// Opens a session with the answer to this request.
    pub(super) fn welcome(&self, request: Request, response: Response, name: Option<Reserved>) {
        if response.is_aborted() {
            return;
        }
        if !self.make_place(Transport::Polling) {
            return self.refuse_for_now(response);
        }
        let outlet = self.core.open_outlet();
        self.core.outlets().block(outlet);
        let jsonp = request.query_param("j").map(|j| jsonp::index(&j));
        let link = Link::Polling(Box::new(Polling { jsonp, fresh: true, ..Polling::default() }));
        let Some(socket) = self.open(request.clone(), Transport::Polling, link, outlet, name) else {
            self.core.close_outlet(outlet);
            return self.refuse_for_now(response);
        };
        let frames = self.first_frames(socket);
        let poll = self.new_poll(socket, &request, self.with_headers(&request, response, Some(socket)));
        let payload = self.payload(&frames, &poll);
        self.hooks.tell(|hooks| &hooks.flush, socket);
        self.answer(poll, payload);
        self.hooks.tell(|hooks| &hooks.drain, socket);
        self.opened(socket);
    }

    /// Answers a handshake for which there is no place.
    pub(super) fn refuse_for_now(&self, response: Response) {
        let (name, value) = RETRY_AFTER;
        response.status(503).header(name, value).end("");
    }

    /// The headers that every answer of the transport has, and those that hooks add.
    fn with_headers(&self, request: &Request, response: Response, opened: Option<Socket>) -> Response {
        let mut headers = Headers::default();
        // Internet Explorer showed its warning about scripts instead of an answer.
        if request.header("user-agent").is_some_and(|ua| ua.contains(";MSIE") || ua.contains("Trident/")) {
            headers.append("X-XSS-Protection", "0");
        }
        headers.append("Cache-Control", "no-store");
        if let Some(sid) = opened.and_then(|socket| self.sid(socket)) {
            if let Some(cookie) = &self.options.cookie {
                headers.append("Set-Cookie", cookie.header(&sid));
            }
            self.hooks.each(|hooks| &hooks.initial_headers, |hook| hook(&mut headers, request));
        }
        self.hooks.each(|hooks| &hooks.headers, |hook| hook(&mut headers, request));
        headers.answer(response)
    }

    /// Answers a poll with a payload.
    fn answer(&self, poll: Poll, payload: Payload) {
        let Payload { mut body, mut coding, compressible, content_type } = payload;
        if let Some((index, accepted)) = &poll.jsonp {
            body = jsonp::call(index, &body).into();
            if compressible && self.is_worth(*accepted, body.len()) {
                coding = *accepted;
                body = self.packed(coding, &body);
            }
        }
        let response = poll.response.header("Content-Type", content_type);
        match coding.name() {
            Some(name) => response.header("Content-Encoding", name).end(body),
            None => response.end(body),
        }
    }

    /// A poll.
    pub(super) fn poll(self: &Rc<Self>, socket: Socket, request: &Request, response: Response) {
        if self.with(socket, |_| ()).is_none() {
            return self.say_goodbye(socket, request, response);
        }
        self.goes_on(socket);
        let waiting = self.with(socket, |entry| match &entry.link {
            Link::Polling(polling) => polling.get.is_some(),
            Link::WebSocket(_) => true,
        });
        if waiting != Some(false) {
            // A client has one poll at a time.
            response.status(400).end("");
            return self.close(socket, CloseReason::TransportError, "overlap from client");
        }
        let Some(outlet) = self.with(socket, |entry| entry.outlet) else { return };
        let poll = self.new_poll(socket, request, self.with_headers(request, response, None));
        // A hook may have done anything.
        if self.with(socket, |_| ()).is_none() {
            return poll.response.status(400).end("");
        }
        if let Some(payload) = self.take_backlog(outlet, &poll) {
            self.hooks.tell(|hooks| &hooks.flush, socket);
            self.answer(poll, payload);
            self.resume_posted(socket);
            if self.buffered(socket) == 0 {
                self.drained(socket);
            }
            return;
        }
        let server = self.clone();
        poll.response.on_abort(move || {
            server.close(socket, CloseReason::TransportError, "poll connection closed prematurely");
        });
        self.with(socket, |entry| {
            if let Link::Polling(polling) = &mut entry.link {
                polling.get = Some(poll);
            }
        });
        self.core.unblock(outlet);
    }

    /// The session is owed something and a poll may be waiting.
    pub(super) fn answer_poll(&self, socket: Socket, outlet: OutletId) {
        let get = self.take_poll(socket);
        let Some(poll) = get else { return self.core.outlets().block(outlet) };
        let payload = self.take_owed(outlet, &poll).unwrap_or_else(|| Payload::digits(&poll, b"6"));
        self.hooks.tell(|hooks| &hooks.flush, socket);
        self.answer(poll, payload);
        self.resume_posted(socket);
        if !self.hooks.none(|hooks| &hooks.drain) && self.with(socket, |_| ()).is_some() {
            self.hooks.tell(|hooks| &hooks.drain, socket);
        }
    }

    fn take_poll(&self, socket: Socket) -> Option<Poll> {
        let get = self.with_any(socket, |entry| match &mut entry.link {
            Link::Polling(polling) => polling.get.take(),
            Link::WebSocket(_) => None,
        });
        get.flatten()
    }

    /// Answers a waiting poll with what is owed, or with a noop, so that a client that is changing over can
    /// stop polling.
    pub(super) fn release_poll(&self, socket: Socket) {
        let _ = self.release_poll_with(socket, b"6");
    }

    /// Answers a waiting poll with what is owed, or with a packet if nothing is. Whether the packet left;
    /// `None` if no poll was waiting.
    ///
    /// Not with both: the official client handles the packets of one payload in the same tick as a close
    /// behind them, and would see the close first.
    pub(super) fn release_poll_with(&self, socket: Socket, packet: &[u8]) -> Option<bool> {
        let outlet = self.with(socket, |entry| entry.outlet)?;
        let poll = self.take_poll(socket)?;
        let owed = self.take_owed(outlet, &poll);
        let nothing = owed.is_none();
        let payload = owed.unwrap_or_else(|| Payload::digits(&poll, packet));
        self.answer(poll, payload);
        Some(nothing)
    }

    /// A POST whose body is on its way.
    pub(super) fn begin_post(self: &Rc<Self>, socket: Socket, connection: ConnectionId) -> Begun {
        self.goes_on(socket);
        let overlap = self.with(socket, |entry| match &mut entry.link {
            Link::Polling(polling) if polling.post.is_none() && polling.reading.is_none() => {
                polling.post = Some(connection);
                false
            }
            _ => true,
        });
        match overlap {
            Some(true) => {
                self.close(socket, CloseReason::TransportError, "data request overlap from client");
                return Begun::Refuse(400);
            }
            None => return Begun::Read(None),
            Some(false) => {}
        }
        let server = self.clone();
        Begun::Read(Some(Box::new(move |end| server.post_ended(socket, connection, end))))
    }

    fn post_ended(&self, socket: Socket, connection: ConnectionId, end: BodyEnd) {
        let expected = self.with(socket, |entry| match &mut entry.link {
            Link::Polling(polling) if polling.post == Some(connection) => polling.post.take().is_some(),
            _ => false,
        });
        if (expected, end) == (Some(true), BodyEnd::Aborted) {
            self.close(socket, CloseReason::TransportError, "data request connection closed prematurely");
        }
    }

    /// Nobody wants the rest of an unfinished POST any more.
    pub(super) fn abort_post(&self, polling: &mut Polling) {
        if let Some(connection) = polling.post.take() {
            self.core.fail(connection);
        }
    }

    /// A POST that is complete.
    pub(super) fn read(&self, socket: Socket, request: &Request, response: Response) {
        self.goes_on(socket);
        let link = self.with(socket, |entry| match &entry.link {
            Link::Polling(polling) => {
                let overlap = polling.post.is_some() || polling.reading.is_some();
                Some((overlap, polling.jsonp.is_some()))
            }
            Link::WebSocket(_) => None,
        });
        let Some(Some((overlap, jsonp))) = link else {
            let told = self.with_any(socket, |entry| entry.ending().is_none_or(|ending| ending.by_client));
            if told == Some(false) {
                // The client cannot know yet that its session has ended: its next poll says so.
                return response.header("Content-Type", "text/html").end("ok");
            }
            let sid = request.query_param("sid").unwrap_or_default().into_owned();
            return self.refuse(request, response, &Refusal::UnknownSid { sid });
        };
        let revision = self.dialect(socket).revision;
        let content_type = request.header("content-type").unwrap_or_default();
        let binary = content_type.starts_with("application/octet-stream");
        let error = match revision {
            _ if overlap => Some("data request overlap from client"),
            Revision::V4 if binary => Some("invalid content"),
            _ => None,
        };
        if let Some(error) = error {
            response.status(400).end("");
            return self.close(socket, CloseReason::TransportError, error);
        }
        let response = self.with_headers(request, response, None);
        let mut posted = Box::new(Posted::new(request, response, revision, binary));
        if jsonp && !posted.read_form() {
            return posted.finish();
        }
        self.read_posted(socket, posted, false);
    }

    /// Ends a polling session: a waiting poll is told at once, otherwise the next one is.
    pub(super) fn close_polling(&self, socket: Socket, reason: CloseReason) {
        // A client that said goodbye itself is not told again.
        let packet: &[u8] = if reason == CloseReason::TransportClose { b"6" } else { b"1" };
        let told = self.release_poll_with(socket, packet);
        let now = self.core.now();
        let until = match (reason, told) {
            // A poll of its client may be on its way from another core. Where the application makes the ids,
            // the next session may have the same one at once.
            (CloseReason::TransportClose, None) if self.options.generate_id.is_none() => {
                now + limits::FAREWELL.as_millis() as Millis
            }
            (CloseReason::ForcedClose, None | Some(false)) => now + CLOSE_TIMEOUT_MS,
            _ => {
                self.take(socket);
                return;
            }
        };
        let by_client = reason == CloseReason::TransportClose;
        let posted = self.with(socket, |entry| {
            let Link::Polling(polling) = &mut entry.link else { return None };
            polling.ending = Some(Ending { until, by_client });
            self.abort_post(polling);
            polling.reading.take()
        });
        self.uncount();
        self.close_probe(socket);
        if let Some(Some(posted)) = posted {
            posted.finish();
        }
        self.set_deadline(socket.slot, until);
    }

    /// A poll of a session that was closed while none was waiting.
    fn say_goodbye(&self, socket: Socket, request: &Request, response: Response) {
        let poll = self.new_poll(socket, request, self.with_headers(request, response, None));
        let found = self.with_any(socket, |entry| Some((entry.outlet, entry.ending()?))).flatten();
        let Some((outlet, ending)) = found else { return poll.response.status(400).end("") };
        if ending.by_client {
            let payload = Payload::digits(&poll, b"6");
            self.answer(poll, payload);
        } else if let Some(payload) = self.take_backlog(outlet, &poll) {
            // The close follows with the next poll, as in `release_poll_with`.
            return self.answer(poll, payload);
        } else {
            let payload = Payload::digits(&poll, b"61");
            self.answer(poll, payload);
        }
        self.take(socket);
    }
}
