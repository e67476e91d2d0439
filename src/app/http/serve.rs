//! Reading requests and calling their handlers.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;

use super::incoming::UNTAKEN_BYTES;
use super::{AHEAD_BYTES, Complete, Http, OWED_BYTES, Progress};
use crate::app::request::Params;
use crate::app::routes::{Begun, BodyEnd, HttpHandler, OnBegun, Route, Target};
use crate::app::service::{Inner, State};
use crate::app::websocket::{Asked, Socket, first_deadline};
use crate::app::{Request, RequestStream, Response};
use crate::fanout::Frame;
use crate::limits;
use crate::protocol::http::Head;
use crate::protocol::ws::handshake;
use crate::runtime::{ConnectionId, guarded};
use crate::time::Millis;

impl Inner {
    /// The turn has come to a connection that waited for it.
    pub(in crate::app) fn http_ready(&self, id: ConnectionId) {
        let later = self.entry(id, |entry| match &mut entry.state {
            State::Http(http) => http.pending.as_mut()?.later.take(),
            State::WebSocket(_) => None,
        });
        match later.flatten() {
            Some(later) => later(),
            None => self.advance(id),
        }
    }

    /// The turn has no time for what a connection has sent: a later one has.
    pub(in crate::app) fn put_off(&self, id: ConnectionId) {
        self.entry(id, |entry| {
            let State::Http(http) = &mut entry.state else { return };
            http.queued = true;
            self.balance(id, http, self.core.now());
        });
        self.core.read_again(id);
    }

    /// Reads what has come of requests, up to the first that is complete, and dispatches that. Only the turn
    /// calls this, and it calls again for a request behind one that is answered.
    pub(in crate::app) fn advance(&self, id: ConnectionId) {
        let mut over = false;
        loop {
            let owed = self.core.owed_bytes(id);
            let progress = self.entry(id, |entry| {
                let State::Http(http) = &mut entry.state else { return Progress::Wait };
                http.held = owed > OWED_BYTES;
                http.queued = false;
                let progress = http.step(self, |head| self.route_for(head));
                let progress = progress.unwrap_or_else(Progress::Failed);
                if matches!(progress, Progress::Wait) {
                    self.balance(id, http, self.core.now());
                    self.set_deadline(http, &mut entry.deadline, owed);
                    over = http.half_closed && http.is_answered();
                }
                progress
            });
            match progress {
                None | Some(Progress::Wait) if over => {
                    // What is left is no request, and nothing follows.
                    let entry = self.forget(id);
                    self.core.close(id);
                    if let Some(State::Http(http)) = entry.map(|entry| entry.state) {
                        http.aborted(BodyEnd::Aborted);
                    }
                    break;
                }
                None | Some(Progress::Wait) => break,
                Some(Progress::Continue) => {
                    let _ = self.transmit(id, &b"HTTP/1.1 100 Continue\r\n\r\n"[..]);
                }
                Some(Progress::Begun(begun, head)) => {
                    if !self.begin_body(id, &begun, &head) {
                        break;
                    }
                }
                Some(Progress::Fed(waker)) => waker.wake(),
                Some(Progress::Failed(error)) => {
                    tracing::debug!("a request was refused: {error}");
                    self.refuse_and_close(id, error.status());
                    break;
                }
                Some(Progress::Short) => {
                    self.refuse_and_close(id, 503);
                    break;
                }
                Some(Progress::Complete(complete)) => {
                    let sequence = complete.sequence;
                    let work = limits::MESSAGE_WORK + complete.body.len();
                    self.dispatching.set(Some(id));
                    if guarded("a handler of a request", || self.dispatch(id, complete)).is_none() {
                        // The response that was dropped has answered 500, unless it waits elsewhere. What the
                        // handler has left half done is not for further requests.
                        self.close_after_answer(id, sequence);
                    }
                    self.dispatching.set(None);
                    self.core.charge(work);
                    break self.settle(id);
                }
            }
        }
    }

    /// Sets what holds while a request waits for its answer.
    fn settle(&self, id: ConnectionId) {
        let owed = self.core.owed_bytes(id);
        self.entry(id, |entry| {
            if let State::Http(http) = &mut entry.state
                && http.pending.is_some()
            {
                self.balance(id, http, self.core.now());
                self.set_deadline(http, &mut entry.deadline, owed);
            }
        });
    }

    /// Asks a route about a request whose body is on its way; whether to read that here.
    fn begin_body(&self, id: ConnectionId, begun: &OnBegun, head: &Head) -> bool {
        if self.core.is_in_reserve(id) {
            self.refuse_and_close(id, 503);
            return false;
        }
        match begun(head, id) {
            Begun::Read(on_end) => {
                self.entry(id, |entry| {
                    if let State::Http(http) = &mut entry.state
                        && let Some(partial) = &mut http.partial
                    {
                        partial.on_end = on_end;
                    }
                });
                return true;
            }
            Begun::Refuse(status) => self.refuse_and_close(id, status),
            Begun::Elsewhere(core) => self.leave_for(id, core, Http::take_unread),
        }
        false
    }

    /// What waited for the client has left: its next request may be read.
    pub(in crate::app) fn http_drained(&self, id: ConnectionId) {
        self.wake_stream(id);
        let held = self.entry(id, |entry| match &mut entry.state {
            State::Http(http) => {
                http.queued |= http.held;
                http.held
            }
            State::WebSocket(_) => false,
        });
        if held == Some(true) {
            self.core.read_again(id);
        }
    }

    /// Stops reading from a client that sends far ahead of its answers, and goes on when it may.
    pub(super) fn balance(&self, id: ConnectionId, http: &mut Http, now: Millis) {
        let ahead = match &http.pending {
            Some(pending) => http.unread().len() - pending.bytes,
            None if http.held || http.queued => http.unread().len(),
            None => 0,
        };
        if http.held && http.pending.is_none() && !http.unread().is_empty() {
            self.core.notify_drained(id);
        }
        let much = ahead > AHEAD_BYTES || http.untaken() > UNTAKEN_BYTES;
        if much && !http.paused {
            self.core.pause(id);
        } else if !much && http.paused {
            self.core.resume(id);
        }
        http.paused = much;
        http.hold_body(now);
    }

    fn route_for(&self, head: &Head) -> (Option<(Rc<Route>, Params)>, usize) {
        let route = self.find_route(head.path(), |target| match target {
            Target::WebSocket(_) => head.is_websocket_upgrade(),
            Target::Http { method, .. } => match method {
                None => true,
                Some("GET") => matches!(head.method(), "GET" | "HEAD"),
                Some(method) => *method == head.method(),
            },
        });
        let limit = match &route {
            Some((route, _)) => match &route.target {
                Target::Http { body_bytes, .. } => body_bytes.unwrap_or(self.options.body_bytes),
                Target::WebSocket(_) => 0,
            },
            None => self.options.body_bytes,
        };
        (route, limit)
    }

    fn dispatch(&self, id: ConnectionId, complete: Complete) {
        let Complete { head, body, route, sequence, on_end, incoming } = complete;
        if let Some(on_end) = on_end {
            on_end(BodyEnd::Complete);
        }
        if self.core.is_in_reserve(id) && !route.as_ref().is_some_and(|(route, _)| route.when_full) {
            return self.refuse_full(id, sequence, &head, route.as_ref().map(|(route, _)| &**route));
        }
        let Some((route, params)) = route else { return self.no_route(id, sequence, &head) };
        let Some(app) = crate::app::current() else { return };
        self.requests.set(self.requests.get() + 1);
        match &route.target {
            Target::Http { handler, .. } => {
                let request = self.request(id, head, Bytes::from(body), params);
                let response = Response::new(app.0.clone(), id, sequence);
                match (handler, incoming) {
                    (HttpHandler::Whole(handler), _) => handler(request, response),
                    (HttpHandler::Streamed(handler), Some(incoming)) => {
                        handler(request, RequestStream::new(app.0, id, sequence, incoming), response);
                    }
                    // Whoever reads as it comes was given what comes.
                    (HttpHandler::Streamed(_), None) => {}
                }
            }
            Target::WebSocket(behavior) => {
                let asked = handshake::check(&head).map(|handshake| {
                    let protocol = behavior.protocol(&handshake);
                    behavior.negotiate(&handshake).map(|deflate| Asked::new(&handshake, protocol, deflate))
                });
                let asked = match asked {
                    Ok(Ok(asked)) => asked,
                    Ok(Err(error)) => {
                        return self.respond(id, sequence, 400, &[], &Bytes::from(error.to_string()));
                    }
                    Err(error) => {
                        let headers = error.header().map(|(name, value)| (name.into(), value.into()));
                        let body = Bytes::from(error.to_string());
                        return self.respond(id, sequence, error.status(), headers.as_slice(), &body);
                    }
                };
                let request = self.request(id, head, Bytes::new(), params);
                behavior.clone().upgrade(app.0, id, sequence, request, asked);
            }
        }
    }

    fn request(&self, id: ConnectionId, head: Head, body: Bytes, params: Params) -> Request {
        Request::new(head, body, self.core.peer(id), params, self.core.peer_certificates(id))
    }

    /// 404, or 405 when the path has routes for other methods, or 426 when it has a WebSocket.
    fn no_route(&self, id: ConnectionId, sequence: u32, head: &Head) {
        let mut allowed = Vec::new();
        let mut websocket = false;
        for route in self.routes_for(head.path()) {
            match &route.target {
                Target::Http { method: Some(method), .. } => allowed.push(*method),
                Target::Http { .. } => {}
                Target::WebSocket(_) => websocket = true,
            }
        }
        if head.target() == "*" {
            return self.respond(id, sequence, 204, &[], &Bytes::new());
        }
        let header = |name: &'static str, value: String| vec![(Cow::Borrowed(name), Cow::Owned(value))];
        if !allowed.is_empty() {
            if allowed.contains(&"GET") {
                allowed.push("HEAD");
            }
            return self.respond_plain(id, sequence, 405, header("Allow", allowed.join(", ")));
        }
        if websocket {
            return self.respond_plain(id, sequence, 426, header("Upgrade", "websocket".into()));
        }
        self.respond_plain(id, sequence, 404, Vec::new());
    }

    /// Moves the connection of a request that waits for its answer to another core. `body`: the request's.
    pub(in crate::app) fn hand_over(&self, id: ConnectionId, sequence: u32, core: usize, body: &[u8]) {
        if self.awaits(id, sequence) {
            self.leave_for(id, core, |http| http.take_request(body));
        }
    }

    fn leave_for(&self, id: ConnectionId, core: usize, take: impl FnOnce(&mut Http) -> Vec<u8>) {
        if let Some(State::Http(mut http)) = self.forget(id).map(|entry| entry.state) {
            self.core.hand_over(id, core, take(&mut http), Box::new(()));
        }
    }

    /// Turns the connection into a WebSocket: the 101, and what the client has sent behind its request.
    pub(in crate::app) fn switch(
        &self,
        id: ConnectionId,
        sequence: u32,
        response: Vec<u8>,
        socket: Socket,
    ) -> Option<Vec<u8>> {
        if !self.awaits(id, sequence) {
            return None;
        }
        let deadline = first_deadline(&*self.behavior(&socket)?, self.core.now());
        let ahead = self.entry(id, |entry| {
            let State::Http(http) = &mut entry.state else { return Vec::new() };
            http.finish();
            let ahead = http.take_unread();
            if http.paused {
                self.core.resume(id);
            }
            entry.state = State::WebSocket(socket);
            entry.deadline = deadline;
            ahead
        })?;
        let _ = self.core.send(id, &Frame::raw(response));
        Some(ahead)
    }
}
