//! Answering requests.

use std::borrow::Cow;

use bytes::Bytes;

use crate::app::routes::BodyEnd;
use crate::app::service::{Inner, State};
use crate::fanout::Frame;
use crate::protocol::http::{ConnectionHeader, reason, write_head};
use crate::runtime::ConnectionId;

const PLAIN: (Cow<'static, str>, Cow<'static, str>) =
    (Cow::Borrowed("Content-Type"), Cow::Borrowed("text/plain"));

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
    pub(in crate::app) fn refuse_and_close(&self, id: ConnectionId, status: u16) {
        let body = Bytes::from_static(reason(status).as_bytes());
        self.write_response(id, status, &[PLAIN], &body, false, false);
        let entry = self.forget(id);
        self.core.linger(id);
        if let Some(State::Http(http)) = entry.map(|entry| entry.state) {
            http.aborted(if status == 413 { BodyEnd::TooLarge } else { BodyEnd::Aborted });
        }
    }

    pub(in crate::app) fn awaits(&self, id: ConnectionId, sequence: u32) -> bool {
        self.entry(id, |entry| match &entry.state {
            State::Http(http) => http.sequence == sequence && http.pending.is_some(),
            State::WebSocket(_) => false,
        })
        .unwrap_or(false)
    }

    pub(in crate::app) fn on_abort(&self, id: ConnectionId, sequence: u32, f: Box<dyn FnOnce()>) {
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
}
