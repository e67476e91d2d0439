//! HTTP long-polling (engine.io-protocol v4, "HTTP long-polling").

use std::rc::Rc;

use bytes::Bytes;

use super::headers::Headers;
use super::ids::Reserved;
use super::server::{Inner, Link};
use super::verify::Refusal;
use super::websocket::Carrier;
use super::{CloseReason, Socket, Transport, jsonp, translate};
use crate::app::{Begun, BodyEnd, Request, Response, WebSocket};
use crate::fanout::{Backlog, Frame, OutletId};
use crate::protocol::eio::{EioError, Packet, Revision};
use crate::runtime::{self, ConnectionId};
use crate::time::Millis;

/// A session's polling transport.
#[derive(Default)]
pub(super) struct Polling {
    /// The poll that waits for something to say.
    get: Option<Response>,
    /// The connection that a POST is coming through.
    post: Option<ConnectionId>,
    /// The WebSocket that is about to take over.
    pub(super) probe: Option<WebSocket<Carrier>>,
    /// The session has ended and waits for one more poll to say so, until this time.
    pub(super) ending: Option<Millis>,
    /// Answers are calls with this number: the handshake had a `j`.
    jsonp: Option<Box<str>>,
}

/// How long a session that was closed without a waiting poll is kept, so that the next poll can be told.
const CLOSE_TIMEOUT_MS: Millis = 30_000;

impl Inner {
    /// Opens a session with the answer to this request.
    pub(super) fn welcome(&self, request: Request, response: Response, name: Option<Reserved>) {
        if response.is_aborted() {
            return;
        }
        let outlet = self.core.open_outlet();
        self.core.outlets().block(outlet.slot());
        let jsonp = request.query_param("j").map(|j| jsonp::index(&j));
        let link = Link::Polling(Box::new(Polling { jsonp, ..Polling::default() }));
        let Some(socket) = self.open(request.clone(), Transport::Polling, link, outlet, name) else {
            self.core.close_outlet(outlet);
            return response.status(503).end("");
        };
        let body = translate::payload(self.dialect(socket), self.first_frames(socket).iter());
        let response = self.with_headers(&request, response, Some(socket));
        self.answer(socket, response, body.into());
        self.opened(socket);
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
    fn answer(&self, socket: Socket, response: Response, payload: Bytes) {
        let index = match self.sessions.borrow().get(socket.slot as usize).map(|entry| &entry.link) {
            Some(Link::Polling(polling)) => polling.jsonp.clone(),
            _ => None,
        };
        let content_type = translate::content_type(&payload);
        let body = match index {
            Some(index) => jsonp::call(&index, &payload).into(),
            None => payload,
        };
        response.header("Content-Type", content_type).end(body);
    }

    /// A poll.
    pub(super) fn poll(self: &Rc<Self>, socket: Socket, request: &Request, response: Response) {
        if self.with(socket, |_| ()).is_none() {
            return self.say_goodbye(socket, self.with_headers(request, response, None));
        }
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
        let response = self.with_headers(request, response, None);
        // A hook may have done anything.
        if self.with(socket, |_| ()).is_none() {
            return self.say_goodbye(socket, response);
        }
        let backlog = self.take_backlog(socket, outlet);
        if !backlog.is_empty() {
            self.hooks.tell(|hooks| &hooks.flush, socket);
            self.answer(socket, response, backlog.into());
            return self.drained(socket);
        }
        let server = self.clone();
        response.on_abort(move || {
            server.close(socket, CloseReason::TransportError, "poll connection closed prematurely");
        });
        self.with(socket, |entry| {
            if let Link::Polling(polling) = &mut entry.link {
                polling.get = Some(response);
            }
        });
        self.core.unblock(outlet);
    }

    /// What has waited for a poll, as the body of its answer.
    fn take_backlog(&self, socket: Socket, outlet: OutletId) -> Vec<u8> {
        let dialect = self.dialect(socket);
        let mut outlets = self.core.outlets();
        let Some(backlog) = outlets.backlog(outlet.slot()) else { return Vec::new() };
        if dialect.revision == Revision::V4 {
            return backlog.take_polling(usize::MAX);
        }
        let frames: Vec<Frame> = std::iter::from_fn(|| Backlog::pop(backlog)).collect();
        translate::payload(dialect, frames.iter())
    }

    /// The session is owed something and a poll may be waiting.
    pub(super) fn answer_poll(&self, socket: Socket, outlet: OutletId) {
        let get = self.take_poll(socket);
        let Some(response) = get else { return self.core.outlets().block(outlet.slot()) };
        let body = self.take_owed(socket, outlet);
        self.hooks.tell(|hooks| &hooks.flush, socket);
        self.answer(socket, response, body.into());
        if !self.hooks.none(|hooks| &hooks.drain) && self.with(socket, |_| ()).is_some() {
            self.hooks.tell(|hooks| &hooks.drain, socket);
        }
    }

    fn take_poll(&self, socket: Socket) -> Option<Response> {
        match self.sessions.borrow_mut().get_mut(socket.slot as usize).map(|entry| &mut entry.link) {
            Some(Link::Polling(polling)) => polling.get.take(),
            _ => None,
        }
    }

    /// What the session is owed in this turn; what comes waits for the next poll.
    fn take_owed(&self, socket: Socket, outlet: OutletId) -> Vec<u8> {
        let dialect = self.dialect(socket);
        let mut outlets = self.core.outlets();
        let owed = outlets.owed(outlet.slot());
        let body = match dialect.revision {
            Revision::V4 => outlets.batch.polling(owed).to_vec(),
            Revision::V3 => translate::payload(dialect, outlets.batch.frames(owed).iter().copied()),
        };
        outlets.settle(outlet.slot());
        outlets.block(outlet.slot());
        body
    }

    /// Answers a waiting poll with what is owed, or with a noop, so that a client that is changing over can
    /// stop polling.
    pub(super) fn release_poll(&self, socket: Socket) {
        self.release_poll_with(socket, b"6");
    }

    /// Answers a waiting poll with what is owed, or with a packet if nothing is. Whether the packet left.
    ///
    /// Not with both: the official client handles the packets of one payload in the same tick as a close
    /// behind them, and would see the close first.
    pub(super) fn release_poll_with(&self, socket: Socket, packet: &[u8]) -> bool {
        let Some(outlet) = self.with(socket, |entry| entry.outlet) else { return false };
        let Some(response) = self.take_poll(socket) else { return false };
        let body = self.take_owed(socket, outlet);
        let nothing = body.is_empty();
        let body = if nothing { translate::digits(self.dialect(socket), packet) } else { body };
        self.answer(socket, response, body.into());
        nothing
    }

    /// A POST whose body is on its way.
    pub(super) fn begin_post(self: &Rc<Self>, socket: Socket, connection: ConnectionId) -> Begun {
        let overlap = self.with(socket, |entry| match &mut entry.link {
            Link::Polling(polling) if polling.post.is_none() => {
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
        let link = self.with(socket, |entry| match &entry.link {
            Link::Polling(polling) => Some((polling.post.is_some(), polling.jsonp.is_some())),
            Link::WebSocket(_) => None,
        });
        let Some(Some((overlap, jsonp))) = link else {
            // It has ended, and its last poll has not come yet.
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
        self.posted.replace(Some((socket, request.clone())));
        // A handler that panics ends its session, as over a WebSocket; the connection may carry others.
        let sound = runtime::survived(|| self.read_body(socket, request.body(), revision, binary, jsonp));
        self.posted.take();
        if !sound {
            self.close(socket, CloseReason::TransportError, "a handler panicked");
        }
        response.header("Content-Type", "text/html").end("ok");
    }

    fn read_body(&self, socket: Socket, body: &[u8], revision: Revision, binary: bool, jsonp: bool) {
        let each = |packet: &Packet<'_>| self.packet(socket, packet);
        let read = if jsonp {
            // As in the reference, a form without the field is nothing at all.
            let form = simdutf8::basic::from_utf8(body).map_err(|_| EioError::Utf8);
            match form.map(jsonp::payload) {
                Ok(Some(payload)) => translate::read_payload(revision, false, payload.as_bytes(), each),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            }
        } else {
            translate::read_payload(revision, binary, body, each)
        };
        if let Err(error) = read {
            tracing::debug!("a polling session is closed: {error}");
            self.close(socket, CloseReason::ParseError, &error.to_string());
        }
    }

    /// Ends a polling session: a waiting poll is told at once, otherwise the next one is. `false`: the answer
    /// let a request behind the poll be handled, which has ended the session already.
    pub(super) fn close_polling(&self, socket: Socket, reason: CloseReason) -> bool {
        // A client that said goodbye itself is not told again.
        let packet: &[u8] = if reason == CloseReason::TransportClose { b"6" } else { b"1" };
        let told = self.release_poll_with(socket, packet);
        if self.with(socket, |_| ()).is_none() {
            return false;
        }
        if told || reason != CloseReason::ForcedClose {
            self.take(socket);
            return true;
        }
        let until = self.core.now() + CLOSE_TIMEOUT_MS;
        let probe = self.with(socket, |entry| {
            if let Link::Polling(polling) = &mut entry.link {
                polling.ending = Some(until);
                self.abort_post(polling);
                polling.probe.take()
            } else {
                None
            }
        });
        self.uncount();
        if let Some(Some(probe)) = probe {
            probe.close(1005, "");
        }
        self.set_deadline(socket.slot, until);
        true
    }

    /// The last poll of a session that was closed while none was waiting.
    fn say_goodbye(&self, socket: Socket, response: Response) {
        let outlet = self.sessions.borrow().get(socket.slot as usize).map(|entry| entry.outlet);
        let Some(outlet) = outlet else { return response.status(400).end("") };
        let backlog = self.take_backlog(socket, outlet);
        if !backlog.is_empty() {
            // The close follows with the next poll, as in `release_poll_with`.
            return self.answer(socket, response, backlog.into());
        }
        self.answer(socket, response, translate::digits(self.dialect(socket), b"61").into());
        self.take(socket);
    }
}
