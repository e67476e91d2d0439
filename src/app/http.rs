//! An HTTP/1.1 connection: request after request, one answered at a time (RFC 9112 section 9).

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;

use super::request::Params;
use super::routes::{Route, Target};
use super::service::{Inner, State, Whole};
use super::websocket::Socket;
use super::{Request, Response};
use crate::fanout::Frame;
use crate::protocol::http::{ChunkedDecoder, ConnectionHeader, Framing, Head, HttpError, write_head};
use crate::protocol::ws::handshake;
use crate::runtime::ConnectionId;
use crate::time::Millis;

/// What one connection has sent and not been answered yet. Empty, and without a buffer, while it idles.
#[derive(Default)]
pub(super) struct Http {
    /// Bytes from the start of the request that is being read or answered, behind those in front that
    /// belong to requests which were answered.
    buffer: Vec<u8>,
    answered: usize,
    /// A request whose head is complete and whose body is not.
    partial: Option<Box<Partial>>,
    /// The request that a handler is answering.
    pending: Option<Box<Pending>>,
    sequence: u32,
    paused: bool,
    /// Whether the next request waits until the client has taken the answers to those before.
    held: bool,
    /// Whether [`Inner::advance`] is at work further up the stack.
    advancing: bool,
}

struct Partial {
    head: Head,
    head_bytes: usize,
    /// Bytes of the buffer that the body's decoder has seen.
    scanned: usize,
    body: Vec<u8>,
    chunks: Option<ChunkedDecoder>,
    route: Option<(Rc<Route>, Params)>,
    continued: bool,
    /// Whether the body's deadline was set.
    timed: bool,
}

struct Pending {
    /// Bytes of the buffer that belong to the request.
    bytes: usize,
    keep_alive: bool,
    head_only: bool,
    on_abort: Option<Box<dyn FnOnce()>>,
}

/// A request that is complete.
struct Complete {
    head: Head,
    body: Vec<u8>,
    route: Option<(Rc<Route>, Params)>,
    sequence: u32,
}

enum Progress {
    /// Nothing to do until more comes, or until the pending request is answered.
    Wait,
    Continue,
    Failed(HttpError),
    Complete(Complete),
}

/// Bytes that a client may send ahead while a request of its connection is being answered. Beyond it we
/// stop reading, and TCP makes the client wait.
const AHEAD_BYTES: usize = 64 * 1024;

/// Bytes of answers that may wait for a client before its next request is read: a client that sends many
/// requests before it reads the first answer is slow, and no reason to keep all the answers.
const OWED_BYTES: usize = 64 * 1024;

impl Http {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_none() && self.unread().is_empty()
    }

    /// What was received from the start of the current request on.
    fn unread(&self) -> &[u8] {
        &self.buffer[self.answered..]
    }

    /// Takes out what [`unread`](Self::unread) shows.
    fn take_unread(&mut self) -> Vec<u8> {
        let mut unread = std::mem::take(&mut self.buffer);
        unread.drain(..std::mem::take(&mut self.answered));
        unread
    }

    /// The client went away.
    pub(super) fn aborted(self) {
        if let Some(on_abort) = self.pending.and_then(|pending| pending.on_abort) {
            on_abort();
        }
    }

    /// One step of reading. `route` tells the route of a head and the most that its body may hold.
    fn step(
        &mut self,
        app: &Inner,
        route: impl FnOnce(&Head) -> (Option<(Rc<Route>, Params)>, usize),
    ) -> Result<Progress, HttpError> {
        if self.pending.is_some() || self.held || self.unread().is_empty() {
            return Ok(Progress::Wait);
        }
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let Some((head, head_bytes)) = Head::parse(self.unread(), &app.options.head)? else {
                    return Ok(Progress::Wait);
                };
                let (route, limit) = route(&head);
                head.framing().check(limit as u64)?;
                let chunks = (head.framing() == Framing::Chunked).then(|| ChunkedDecoder::new(limit));
                Box::new(Partial {
                    head,
                    head_bytes,
                    scanned: head_bytes,
                    body: Vec::new(),
                    chunks,
                    route,
                    continued: false,
                    timed: false,
                })
            }
        };
        if let Some(bytes) = partial.read_body(self.unread())? {
            return Ok(Progress::Complete(self.complete(*partial, bytes)));
        }
        let ask = partial.head.expects_continue() && !partial.continued;
        partial.continued = true;
        self.partial = Some(partial);
        Ok(if ask { Progress::Continue } else { Progress::Wait })
    }

    fn complete(&mut self, partial: Partial, bytes: usize) -> Complete {
        let Partial { head, body, route, .. } = partial;
        self.sequence = self.sequence.wrapping_add(1);
        self.pending = Some(Box::new(Pending {
            bytes,
            keep_alive: head.keep_alive(),
            head_only: head.method() == "HEAD",
            on_abort: None,
        }));
        Complete { head, body, route, sequence: self.sequence }
    }

    /// Forgets the answered request; whether the connection goes on.
    fn finish(&mut self) -> Option<Box<Pending>> {
        let pending = self.pending.take()?;
        self.answered = (self.answered + pending.bytes).min(self.buffer.len());
        if self.answered == self.buffer.len() {
            (self.buffer, self.answered) = (Vec::new(), 0);
        } else if self.answered > self.buffer.len() / 2 {
            // Not after each request: thousands of small ones may be here.
            self.buffer.drain(..std::mem::take(&mut self.answered));
        }
        Some(pending)
    }
}

impl Partial {
    /// The length of the request in the buffer, once its body is complete.
    fn read_body(&mut self, buffer: &[u8]) -> Result<Option<usize>, HttpError> {
        if let Some(chunks) = &mut self.chunks {
            let (used, done) = chunks.decode(&buffer[self.scanned..], &mut self.body)?;
            self.scanned += used;
            return Ok(done.then_some(self.scanned));
        }
        let length = match self.head.framing() {
            Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            _ => 0,
        };
        let end = self.head_bytes.saturating_add(length);
        if buffer.len() < end {
            return Ok(None);
        }
        self.body = buffer[self.head_bytes..end].to_vec();
        Ok(Some(end))
    }
}

impl Inner {
    /// Reads and dispatches requests until there is nothing to do.
    pub(super) fn advance(&self, id: ConnectionId) {
        let mut first = true;
        let whole = Whole::begin(self, id);
        loop {
            let owed = self.core.owed_bytes(id);
            let progress = self.entry(id, |entry| {
                let State::Http(http) = &mut entry.state else { return Progress::Wait };
                if first && std::mem::replace(&mut http.advancing, true) {
                    return Progress::Wait;
                }
                http.held = owed > OWED_BYTES;
                let progress = http.step(self, |head| self.route_for(head));
                let progress = progress.unwrap_or_else(Progress::Failed);
                if matches!(progress, Progress::Wait) {
                    http.advancing = false;
                    self.set_deadline(http, &mut entry.deadline);
                    self.balance(id, http);
                }
                progress
            });
            first = false;
            match progress {
                None | Some(Progress::Wait) => break,
                Some(Progress::Continue) => {
                    let _ = self.core.send(id, &Frame::raw(&b"HTTP/1.1 100 Continue\r\n\r\n"[..]));
                }
                Some(Progress::Failed(error)) => {
                    tracing::debug!("a request was refused: {error}");
                    self.refuse_and_close(id, error.status());
                    break;
                }
                Some(Progress::Complete(complete)) => self.dispatch(id, complete),
            }
        }
        whole.end();
    }

    /// What waited for the client has left: its next request may be read.
    pub(super) fn http_drained(&self, id: ConnectionId) {
        let held = self.entry(id, |entry| match &mut entry.state {
            State::Http(http) => http.held && !http.advancing,
            State::WebSocket(_) => false,
        });
        if held == Some(true) {
            self.advance(id);
        }
    }

    /// The absolute deadline of what the connection is doing now.
    fn set_deadline(&self, http: &mut Http, deadline: &mut Millis) {
        let now = self.core.now();
        *deadline = if http.pending.is_some() {
            // A handler may take its time; the engine has timers of its own for polls.
            Millis::MAX
        } else if http.unread().is_empty() || http.held {
            now + self.options.keep_alive.as_millis() as Millis
        } else if let Some(partial) = &mut http.partial {
            match std::mem::replace(&mut partial.timed, true) {
                true => return,
                false => now + self.options.body_timeout.as_millis() as Millis,
            }
        } else {
            // Not moved by further bytes of the same head: a slow head does not earn time.
            (*deadline).min(now + self.options.head_timeout.as_millis() as Millis)
        };
    }

    /// Stops reading from a client that sends far ahead of its answers, and goes on when it may.
    fn balance(&self, id: ConnectionId, http: &mut Http) {
        let ahead = match &http.pending {
            Some(pending) => http.unread().len() - pending.bytes,
            None if http.held => http.unread().len(),
            None => 0,
        };
        if http.held && http.pending.is_none() && !http.unread().is_empty() {
            self.core.notify_drained(id);
        }
        if ahead > AHEAD_BYTES && !http.paused {
            http.paused = true;
            self.core.pause(id);
        } else if ahead <= AHEAD_BYTES && http.paused {
            http.paused = false;
            self.core.resume(id);
        }
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
        let Complete { head, body, route, sequence } = complete;
        let Some((route, params)) = route else { return self.no_route(id, sequence, &head) };
        let Some(app) = super::current() else { return };
        match &route.target {
            Target::Http { handler, .. } => {
                let request = Request::new(head, Bytes::from(body), self.core.peer(id), params);
                handler(request, Response::new(app.0, id, sequence));
            }
            Target::WebSocket(behavior) => {
                let key = match handshake::check(&head) {
                    Ok(handshake) => handshake.key.to_owned(),
                    Err(error) => {
                        let headers = error.header().map(|(name, value)| (name.into(), value.into()));
                        let body = Bytes::from(error.to_string());
                        return self.respond(id, sequence, error.status(), headers.as_slice(), &body);
                    }
                };
                let request = Request::new(head, Bytes::new(), self.core.peer(id), params);
                behavior.clone().upgrade(app.0, id, sequence, request, key);
            }
        }
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
        let header = |name: &'static str, value: String| (Cow::Borrowed(name), Cow::Owned(value));
        if !allowed.is_empty() {
            if allowed.contains(&"GET") {
                allowed.push("HEAD");
            }
            let headers = [header("Allow", allowed.join(", "))];
            return self.respond(id, sequence, 405, &headers, &Bytes::from_static(b"Method Not Allowed"));
        }
        if websocket {
            let headers = [header("Upgrade", "websocket".into())];
            return self.respond(id, sequence, 426, &headers, &Bytes::from_static(b"Upgrade Required"));
        }
        self.respond(id, sequence, 404, &[], &Bytes::from_static(b"Not Found"));
    }

    /// The connection ends with the answer to this request.
    pub(super) fn close_after_answer(&self, id: ConnectionId, sequence: u32) {
        self.entry(id, |entry| {
            if let State::Http(http) = &mut entry.state
                && http.sequence == sequence
                && let Some(pending) = &mut http.pending
            {
                pending.keep_alive = false;
            }
        });
    }

    /// Answers a request, if it still waits for an answer, and goes on with the next.
    pub(super) fn respond(
        &self,
        id: ConnectionId,
        sequence: u32,
        status: u16,
        headers: &[(Cow<'static, str>, Cow<'static, str>)],
        body: &Bytes,
    ) {
        let finished = self.entry(id, |entry| {
            let State::Http(http) = &mut entry.state else { return None };
            if http.sequence != sequence {
                return None;
            }
            Some((http.finish()?, http.advancing))
        });
        let Some(Some((pending, advancing))) = finished else { return };
        let stopping = self.core.is_stopping();
        let keep_alive = pending.keep_alive && !stopping;
        self.write_response(id, status, headers, body, pending.head_only, keep_alive);
        if !keep_alive {
            self.forget(id);
            return if status >= 400 { self.core.linger(id) } else { self.core.close(id) };
        }
        if !advancing {
            self.advance(id);
        }
    }

    fn write_response(
        &self,
        id: ConnectionId,
        status: u16,
        headers: &[(Cow<'static, str>, Cow<'static, str>)],
        body: &Bytes,
        head_only: bool,
        keep_alive: bool,
    ) {
        /// Up to here a body is copied behind its head; beyond, it is a frame of its own.
        const COPIED: usize = 16 * 1024;
        let date = self.date();
        let headers = headers.iter().map(|(name, value)| (&**name, &**value));
        let headers = headers.chain([("Date", &*date)]);
        let connection = if keep_alive { ConnectionHeader::KeepAlive } else { ConnectionHeader::Close };
        let length = (status != 304).then_some(body.len());
        let mut out = Vec::with_capacity(256 + body.len().min(COPIED));
        write_head(&mut out, status, headers, length, connection);
        let bodiless = head_only || status == 304 || status == 204;
        let copied = !bodiless && body.len() <= COPIED;
        if copied {
            out.extend_from_slice(body);
        }
        let _ = self.core.send(id, &Frame::raw(out));
        if !bodiless && !copied {
            let _ = self.core.send(id, &Frame::raw(body.clone()));
        }
    }

    /// Answers what cannot be read as a request, and closes (RFC 9112 section 9.6).
    pub(super) fn refuse_and_close(&self, id: ConnectionId, status: u16) {
        let reason = crate::protocol::http::reason(status);
        let headers = [("Content-Type".into(), "text/plain".into())];
        self.write_response(id, status, &headers, &Bytes::from_static(reason.as_bytes()), false, false);
        self.forget(id);
        self.core.linger(id);
    }

    pub(super) fn http_expired(&self, id: ConnectionId) {
        let idle =
            self.entry(id, |entry| matches!(&entry.state, State::Http(http) if http.is_idle() || http.held));
        if idle == Some(true) {
            self.forget(id);
            self.core.close(id);
        } else {
            self.refuse_and_close(id, 408);
        }
    }

    pub(super) fn awaits(&self, id: ConnectionId, sequence: u32) -> bool {
        self.entry(id, |entry| match &entry.state {
            State::Http(http) => http.sequence == sequence && http.pending.is_some(),
            State::WebSocket(_) => false,
        })
        .unwrap_or(false)
    }

    pub(super) fn on_abort(&self, id: ConnectionId, sequence: u32, f: Box<dyn FnOnce()>) {
        let late = self.entry(id, |entry| match &mut entry.state {
            State::Http(http) if http.sequence == sequence => match &mut http.pending {
                Some(pending) => {
                    pending.on_abort = Some(f);
                    None
                }
                None => Some(f),
            },
            _ => Some(f),
        });
        if let Some(Some(f)) = late {
            f();
        }
    }

    pub(super) fn hand_over(&self, id: ConnectionId, sequence: u32, core: usize) {
        if !self.awaits(id, sequence) {
            return;
        }
        if let Some(State::Http(mut http)) = self.forget(id).map(|entry| entry.state) {
            self.core.hand_over(id, core, http.take_unread(), Box::new(()));
        }
    }

    /// Turns the connection into a WebSocket: the 101, and what the client has sent behind its request.
    pub(super) fn switch(
        &self,
        id: ConnectionId,
        sequence: u32,
        response: Vec<u8>,
        socket: Socket,
    ) -> Option<Vec<u8>> {
        if !self.awaits(id, sequence) {
            return None;
        }
        let deadline = socket.first_deadline(self.core.now());
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
