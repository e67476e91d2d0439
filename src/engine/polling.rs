//! HTTP long-polling (engine.io-protocol v4, "HTTP long-polling").

use std::rc::Rc;

use super::server::{Entry, Inner, Link};
use super::translate;
use super::verify::{Refusal, Verdict};
use super::websocket::Carrier;
use super::{CloseReason, Socket, Transport};
use crate::app::{Request, Response, WebSocket};
use crate::fanout::{Backlog, Frame, OutletId};
use crate::protocol::eio::{Dialect, Revision};
use crate::time::Millis;

/// A session's polling transport.
#[derive(Default)]
pub(super) struct Polling {
    /// The poll that waits for something to say.
    get: Option<Response>,
    /// The WebSocket that is about to take over.
    pub(super) probe: Option<WebSocket<Carrier>>,
    /// The session has ended and waits for one more poll to say so, until this time.
    pub(super) ending: Option<Millis>,
}

/// How long a session that was closed without a waiting poll is kept, so that the next poll can be told.
const CLOSE_TIMEOUT_MS: Millis = 30_000;

impl Inner {
    /// A request below the engine's path that is no WebSocket handshake.
    pub(super) fn request(self: &Rc<Self>, request: &Request, response: Response) {
        if let (Some(cors), "OPTIONS") = (&self.options.cors, request.method()) {
            let asked = request.header("access-control-request-headers");
            let headers = cors.preflight(request.header("origin"), asked);
            return with_headers(response.status(204), headers).end("");
        }
        let sid = match self.verify(request, false) {
            Ok(Verdict::Handshake) => return self.handshake(request.clone(), response),
            Ok(Verdict::Elsewhere(core)) => return response.hand_over(core),
            Ok(Verdict::Session(sid)) => sid,
            Err(refusal) => return self.refuse(request, response, &refusal),
        };
        let response = with_headers(response, self.cors_headers(request));
        let Some(socket) = self.find(&sid) else { return response.status(400).end("") };
        match request.method() {
            "GET" => self.poll(socket, response),
            "POST" => self.read(socket, request, response),
            // As the reference does: not a case that any client has.
            _ => response.status(500).end(""),
        }
    }

    fn refuse(&self, request: &Request, response: Response, refusal: &Refusal) {
        tracing::debug!("an engine.io request is refused: {}", refusal.message());
        with_headers(response, self.cors_headers(request))
            .status(refusal.status())
            .header("Content-Type", "application/json")
            .end(refusal.body());
    }

    fn handshake(self: &Rc<Self>, request: Request, response: Response) {
        let Some(allow) = &self.options.allow_request else { return self.welcome(request, response) };
        let (server, allowed) = (self.clone(), allow(request.clone()));
        self.core.spawn(async move {
            match allowed.await {
                Ok(()) => server.welcome(request, response),
                Err(message) => {
                    server.refuse(&request, response, &Refusal::Forbidden(Some(message.into())));
                }
            }
        });
    }

    fn welcome(&self, request: Request, response: Response) {
        if response.is_aborted() {
            return;
        }
        let outlet = self.core.open_outlet();
        self.core.outlets().block(outlet.slot());
        let link = Link::Polling(Box::default());
        let Some(socket) = self.open(request.clone(), Transport::Polling, link, outlet) else {
            self.core.close_outlet(outlet);
            return response.status(503).end("");
        };
        let open = Frame::message(&[&self.open_packet(socket)], &[]);
        let body = translate::payload(self.dialect(socket), [open].iter());
        payload(with_headers(response, self.cors_headers(&request)), body);
        self.events.connection(socket);
    }

    fn poll(self: &Rc<Self>, socket: Socket, response: Response) {
        if self.with(socket, |_| ()).is_none() {
            return self.say_goodbye(socket, response);
        }
        let waiting = self.with(socket, |entry| match &entry.link {
            Link::Polling(polling) => polling.get.is_some(),
            Link::WebSocket(_) => true,
        });
        if waiting != Some(false) {
            // A client has one poll at a time.
            response.status(400).end("");
            return self.close(socket, CloseReason::TransportError);
        }
        let Some(outlet) = self.with(socket, |entry| entry.outlet) else { return };
        let backlog = self.take_backlog(socket, outlet);
        if !backlog.is_empty() {
            payload(response, backlog);
            return self.events.drain(socket);
        }
        let server = self.clone();
        response.on_abort(move || server.close(socket, CloseReason::TransportClose));
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

    /// What the session is owed in this turn, as the body of a poll's answer; what comes waits for the next.
    fn take_owed(&self, dialect: Dialect, outlet: OutletId) -> Vec<u8> {
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

    /// The session is owed something and a poll may be waiting.
    pub(super) fn answer_poll(&self, slot: u32, outlet: OutletId) {
        let get = match self.sessions.borrow_mut().get_mut(slot as usize) {
            Some(Entry { link: Link::Polling(polling), dialect, .. }) => {
                polling.get.take().map(|response| (response, *dialect))
            }
            _ => None,
        };
        let Some((response, dialect)) = get else { return self.core.outlets().block(outlet.slot()) };
        payload(response, self.take_owed(dialect, outlet));
    }

    /// Answers a waiting poll with what is owed, or with a noop, so that a client that is changing over can
    /// stop polling.
    pub(super) fn release_poll(&self, socket: Socket) {
        self.end_poll(socket, b"6");
    }

    /// Answers a waiting poll with what is owed, or with a packet if nothing is. Whether the packet left.
    ///
    /// Not with both: the official client handles the packets of one payload in the same tick as a close
    /// behind them, and would see the close first.
    fn end_poll(&self, socket: Socket, packet: &[u8]) -> bool {
        let get = self.with(socket, |entry| match &mut entry.link {
            Link::Polling(polling) => Some((polling.get.take()?, entry.outlet, entry.dialect)),
            Link::WebSocket(_) => None,
        });
        let Some(Some((response, outlet, dialect))) = get else { return false };
        let body = self.take_owed(dialect, outlet);
        let nothing = body.is_empty();
        payload(response, if nothing { translate::digits(dialect, packet) } else { body });
        nothing
    }

    fn read(&self, socket: Socket, request: &Request, response: Response) {
        if self.with(socket, |_| ()).is_none() {
            return response.status(400).end(Refusal::UnknownSid.body());
        }
        let content_type = request.header("content-type").unwrap_or_default();
        let binary = content_type.starts_with("application/octet-stream");
        let revision = self.dialect(socket).revision;
        if binary && revision == Revision::V4 {
            response.status(400).end("");
            return self.close(socket, CloseReason::TransportError);
        }
        let read =
            translate::read_payload(revision, binary, request.body(), |packet| self.packet(socket, packet));
        if let Err(error) = read {
            tracing::debug!("a polling session is closed: {error}");
            self.close(socket, CloseReason::ParseError);
        }
        response.header("Content-Type", "text/html").end("ok");
    }

    /// Ends a polling session: a waiting poll is told at once, otherwise the next one is. `false`: the answer
    /// let a request behind the poll be handled, which has ended the session already.
    pub(super) fn close_polling(&self, socket: Socket, reason: CloseReason) -> bool {
        // A client that said goodbye itself is not told again.
        let packet: &[u8] = if reason == CloseReason::TransportClose { b"6" } else { b"1" };
        let told = self.end_poll(socket, packet);
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
                polling.probe.take()
            } else {
                None
            }
        });
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
            // The close follows with the next poll, as in `end_poll`.
            return payload(response, backlog);
        }
        payload(response, translate::digits(self.dialect(socket), b"61"));
        self.take(socket);
    }
}

fn with_headers(
    response: Response,
    headers: Vec<(std::borrow::Cow<'static, str>, std::borrow::Cow<'static, str>)>,
) -> Response {
    headers.into_iter().fold(response, |response, (name, value)| response.header(name, value))
}

fn payload(response: Response, body: Vec<u8>) {
    response
        .header("Content-Type", translate::content_type(&body))
        .header("Cache-Control", "no-store")
        .end(body);
}
