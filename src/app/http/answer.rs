//! Answering requests.

use std::borrow::Cow;
use std::task::Waker;

use bytes::Bytes;

use super::Http;
use super::stream::Streaming;
use crate::app::BodyError;
use crate::app::service::{Inner, State};
use crate::fanout::{Delivery, Frame};
use crate::protocol::http::{ConnectionHeader, reason, write_head};
use crate::runtime::ConnectionId;

pub(super) const PLAIN: (Cow<'static, str>, Cow<'static, str>) =
    (Cow::Borrowed("Content-Type"), Cow::Borrowed("text/plain"));

/// Bytes from which on a piece of an answer is not joined with its head: nothing takes it at once, and many
/// such answers may leave in one turn.
const LARGE: usize = 128 * 1024;

/// A request that has its answer.
pub(super) struct Finished {
    /// Whether another may follow.
    pub(super) keep_alive: bool,
    head_only: bool,
    /// Whether the client may be sending another.
    sending: bool,
    half_closed: bool,
    pub(super) stream: Option<Box<Streaming>>,
}

impl Inner {
    /// The connection ends with the answer to this request.
    pub(in crate::app) fn close_after_answer(&self, id: ConnectionId, sequence: u32) {
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
    pub(in crate::app) fn respond(
        &self,
        id: ConnectionId,
        sequence: u32,
        status: u16,
        headers: &[(Cow<'static, str>, Cow<'static, str>)],
        body: &Bytes,
    ) {
        let Some(finished) = self.finish(id, sequence) else { return };
        let keep_alive = finished.keep_alive;
        self.write_response(id, status, headers, body, finished.head_only, keep_alive);
        if keep_alive {
            self.go_on(id);
        } else {
            self.close_finished(id, &finished, status >= 400);
        }
    }

    /// Takes a request that has its answer, or is about to get it, out of its connection.
    pub(super) fn finish(&self, id: ConnectionId, sequence: u32) -> Option<Finished> {
        // One for which there is no place is served for one request.
        let stopping = self.core.is_stopping() || self.core.is_in_reserve(id);
        let (finished, waker) = self
            .entry(id, |entry| {
                let State::Http(http) = &mut entry.state else { return None };
                self.finish_pending(id, http, sequence, stopping)
            })
            .flatten()?;
        waker.into_iter().for_each(Waker::wake);
        Some(finished)
    }

    fn finish_pending(
        &self,
        id: ConnectionId,
        http: &mut Http,
        sequence: u32,
        stopping: bool,
    ) -> Option<(Finished, Option<Waker>)> {
        if http.sequence != sequence {
            return None;
        }
        let pending = http.finish()?;
        let cut_short = pending.is_cut_short();
        // What the rest of its body waits for does not come any more.
        let waker = pending.fail_body(BodyError::Aborted);
        if cut_short && std::mem::take(&mut http.paused) {
            // It is thrown away while the answer leaves.
            self.core.resume(id);
        }
        let more = !http.unread().is_empty();
        let last = http.half_closed && !more;
        let finished = Finished {
            keep_alive: pending.keep_alive && !stopping && !last && !cut_short,
            head_only: pending.head_only,
            // Whoever has not said that this was the last request may have sent another.
            sending: (more || cut_short || !pending.client_closes) && !http.half_closed,
            half_closed: http.half_closed,
            stream: pending.stream,
        };
        Some((finished, waker))
    }

    /// The next request may be read. The turn does so: this may be anybody's stack, and the answer to that
    /// request might lead to a further one.
    pub(super) fn go_on(&self, id: ConnectionId) {
        let owed = self.core.owed_bytes(id);
        let queued = self.entry(id, |entry| {
            let State::Http(http) = &mut entry.state else { return false };
            if http.unread().is_empty() {
                http.held = false;
                self.balance(id, http, self.core.now());
                self.set_deadline(http, &mut entry.deadline, owed);
                return false;
            }
            http.queued = true;
            true
        });
        if queued == Some(true) {
            self.core.read_again(id);
        }
    }

    /// Closes the connection of the last request. `refused`: its client may be sending what nobody reads.
    pub(super) fn close_finished(&self, id: ConnectionId, finished: &Finished, refused: bool) {
        self.forget(id);
        if finished.sending || refused && !finished.half_closed {
            self.core.linger(id);
        } else {
            self.core.close(id);
        }
    }

    /// Answers with the name of a status, for errors that no handler answers.
    pub(in crate::app) fn respond_plain(
        &self,
        id: ConnectionId,
        sequence: u32,
        status: u16,
        mut headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    ) {
        headers.push(PLAIN);
        self.respond(id, sequence, status, &headers, &Bytes::from_static(reason(status).as_bytes()));
    }

    pub(super) fn write_response(
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
        let headers = headers.chain(date.as_deref().map(|date| ("Date", date)));
        let connection = if keep_alive { ConnectionHeader::KeepAlive } else { ConnectionHeader::Close };
        let length = (status != 304).then_some(body.len());
        let mut out = Vec::with_capacity(256 + body.len().min(COPIED));
        write_head(&mut out, status, headers, length, connection);
        let bodiless = head_only || status == 304 || status == 204;
        let copied = !bodiless && body.len() <= COPIED;
        if copied {
            out.extend_from_slice(body);
        }
        // Of a client that is gone, or too slow, the runtime tells.
        let _ = self.transmit(id, out);
        if !bodiless && !copied {
            let _ = self.transmit(id, body.clone());
        }
    }

    /// Owes a connection bytes, and counts them.
    pub(super) fn transmit(&self, id: ConnectionId, bytes: impl Into<Bytes>) -> Delivery {
        let frame = Frame::raw(bytes);
        self.entry(id, |entry| {
            if let State::Http(http) = &mut entry.state {
                http.sent += frame.wire().len() as u64;
            }
        });
        if frame.wire().len() > LARGE { self.core.send_large(id, &frame) } else { self.core.send(id, &frame) }
    }

    pub(in crate::app) fn awaits(&self, id: ConnectionId, sequence: u32) -> bool {
        self.entry(id, |entry| match &entry.state {
            State::Http(http) => http.sequence == sequence && http.pending.is_some(),
            State::WebSocket(_) => false,
        })
        .unwrap_or(false)
    }

    /// Whether the client of a request has closed its side, or is gone.
    pub(in crate::app) fn is_aborted(&self, id: ConnectionId, sequence: u32) -> bool {
        let half_closed = self.entry(id, |entry| match &entry.state {
            State::Http(http) => http.half_closed,
            State::WebSocket(_) => false,
        });
        half_closed.unwrap_or(true) || !self.awaits(id, sequence)
    }

    /// Goes on with a request when the turn has time, by `f`.
    pub(in crate::app) fn later(&self, id: ConnectionId, sequence: u32, f: Box<dyn FnOnce()>) {
        let kept = self.entry(id, |entry| match &mut entry.state {
            State::Http(http) if http.sequence == sequence => {
                http.pending.as_mut().map(|pending| pending.later = Some(f)).is_some()
            }
            _ => false,
        });
        if kept == Some(true) {
            self.core.read_again(id);
        }
    }

    pub(in crate::app) fn on_abort(&self, id: ConnectionId, sequence: u32, f: Box<dyn FnOnce()>) {
        let mut f = Some(f);
        self.entry(id, |entry| {
            if let State::Http(http) = &mut entry.state
                && http.sequence == sequence
                && !http.half_closed
                && let Some(pending) = &mut http.pending
            {
                pending.on_abort = f.take();
            }
        });
        // Of a connection that is gone, nothing tells any more.
        if let Some(late) = f {
            late();
        }
    }
}
