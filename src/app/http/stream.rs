//! Answers that are written piece by piece.

use std::borrow::Cow;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::deadlines::Clock;
use super::{Http, Pending};
use crate::app::service::{Inner, State};
use crate::fanout::Delivery;
use crate::protocol::http::{ConnectionHeader, LAST_CHUNK, write_chunk, write_chunked_head, write_head};
use crate::runtime::ConnectionId;

/// Bytes of a body that may wait for its client before the next piece does.
const STREAM_BYTES: usize = 64 * 1024;

/// Bytes of one piece: a longer one is divided, so that little more than one waits for a client.
pub(in crate::app) const PIECE_BYTES: usize = 64 * 1024;

/// The state of an answer whose head has left.
pub(super) struct Streaming {
    framing: Outgoing,
    /// Whoever waits until the client has taken what was written.
    pub(super) waker: Option<Waker>,
}

/// How the end of a body is told (RFC 9112 section 6.3).
#[derive(Clone, Copy)]
enum Outgoing {
    Chunked,
    /// So many bytes are to come.
    Length(u64),
    /// The connection ends with the body: HTTP/1.0 knows nothing else.
    UntilClose,
    /// There is none: to HEAD, with 204 and 304.
    Nothing,
}

impl Inner {
    /// Sends the head of an answer. `length`: of its body, if it is known.
    pub(in crate::app) fn begin_stream(
        &self,
        id: ConnectionId,
        sequence: u32,
        status: u16,
        headers: &[(Cow<'static, str>, Cow<'static, str>)],
        length: Option<u64>,
    ) {
        let stopping = self.core.is_stopping();
        let begun = self.pending(id, sequence, |http, pending| {
            let last = http.half_closed && http.unread().len() <= pending.bytes;
            pending.keep_alive &= !stopping && !last && !pending.is_cut_short();
            let bodiless = matches!(status, 100..200 | 204 | 304);
            let framing = match length {
                _ if pending.head_only || bodiless => Outgoing::Nothing,
                Some(length) => Outgoing::Length(length),
                None if pending.old => Outgoing::UntilClose,
                None => Outgoing::Chunked,
            };
            pending.stream = Some(Box::new(Streaming { framing, waker: None }));
            let chunked = length.is_none() && !pending.old && !bodiless;
            (chunked, pending.keep_alive)
        });
        let Some((chunked, keep_alive)) = begun else { return };
        let date = self.date();
        let headers = headers.iter().map(|(name, value)| (&**name, &**value));
        let headers = headers.chain(date.as_deref().map(|date| ("Date", date)));
        let connection = if keep_alive { ConnectionHeader::KeepAlive } else { ConnectionHeader::Close };
        let mut out = Vec::with_capacity(256);
        if chunked {
            write_chunked_head(&mut out, status, headers, connection);
        } else {
            let length = length.filter(|_| status != 304).and_then(|length| usize::try_from(length).ok());
            write_head(&mut out, status, headers, length, connection);
        }
        self.transmit_some(id, out);
    }

    /// Owes the client a piece of a body.
    pub(in crate::app) fn stream(&self, id: ConnectionId, sequence: u32, mut data: Bytes) -> Delivery {
        let framing = self.pending(id, sequence, |_, pending| {
            let framing = &mut pending.stream.as_mut()?.framing;
            if let Outgoing::Length(left) = framing {
                let room = usize::try_from(*left).unwrap_or(usize::MAX);
                if data.len() > room {
                    tracing::warn!("a body is longer than was announced: the rest is not sent");
                    data.truncate(room);
                }
                *left -= data.len() as u64;
            }
            Some(*framing)
        });
        let Some(Some(framing)) = framing else { return Delivery::Dropped };
        if data.is_empty() {
            return Delivery::Sent;
        }
        match framing {
            Outgoing::Nothing => Delivery::Sent,
            Outgoing::Length(_) | Outgoing::UntilClose => self.transmit_some(id, data),
            Outgoing::Chunked => {
                let mut out = Vec::with_capacity(data.len() + 16);
                write_chunk(&mut out, &data);
                self.transmit_some(id, out)
            }
        }
    }

    fn transmit_some(&self, id: ConnectionId, bytes: impl Into<Bytes>) -> Delivery {
        let delivery = self.transmit(id, bytes);
        let owed = self.core.owed_bytes(id);
        self.entry(id, |entry| {
            if let State::Http(http) = &mut entry.state
                && matches!(http.clock, Clock::Handler)
            {
                self.expect_progress(http, &mut entry.deadline, owed);
            }
        });
        delivery
    }

    /// Whether another piece may be written; if not, the task is woken when it may. `None`: never.
    pub(in crate::app) fn poll_stream(
        &self,
        id: ConnectionId,
        sequence: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<()>> {
        let room = self.core.owed_bytes(id) <= STREAM_BYTES;
        let waits = self.pending(id, sequence, |_, pending| {
            let stream = pending.stream.as_mut()?;
            stream.waker = (!room).then(|| cx.waker().clone());
            Some(stream.waker.is_some())
        });
        match waits {
            Some(Some(false)) => Poll::Ready(Some(())),
            Some(Some(true)) => {
                self.core.notify_drained(id);
                Poll::Pending
            }
            _ => Poll::Ready(None),
        }
    }

    /// What a stream has written has left: it may write more.
    pub(super) fn wake_stream(&self, id: ConnectionId) {
        let waker = self.entry(id, |entry| {
            let State::Http(http) = &mut entry.state else { return None };
            http.pending.as_mut()?.stream.as_mut()?.waker.take()
        });
        if let Some(Some(waker)) = waker {
            waker.wake();
        }
    }

    /// The body ends here. `whole`: as it should; otherwise the client is not to take it for the whole.
    pub(in crate::app) fn end_stream(&self, id: ConnectionId, sequence: u32, whole: bool) {
        let Some(finished) = self.finish(id, sequence) else { return };
        let Some(framing) = finished.stream.as_ref().map(|stream| stream.framing) else { return };
        let sound = match framing {
            Outgoing::Length(0) | Outgoing::Nothing => true,
            Outgoing::Length(_) => false,
            Outgoing::Chunked | Outgoing::UntilClose => whole,
        };
        if !sound {
            // The length, or the missing last chunk, tells the client that there should be more. HTTP/1.0
            // has neither; there only what has not left yet is missing.
            tracing::debug!("an answer ends before its end");
            self.forget(id);
            return if matches!(framing, Outgoing::UntilClose) {
                self.core.abort(id)
            } else {
                self.core.close(id)
            };
        }
        if matches!(framing, Outgoing::Chunked) {
            let _ = self.transmit(id, LAST_CHUNK);
        }
        // A stream that was dropped may have been by a panic: what its handler has left half done is not for
        // further requests.
        if whole && finished.keep_alive && !matches!(framing, Outgoing::UntilClose) {
            self.go_on(id);
        } else {
            self.close_finished(id, &finished, false);
        }
    }

    /// Runs `f` on a request that waits for its answer.
    fn pending<T>(
        &self,
        id: ConnectionId,
        sequence: u32,
        f: impl FnOnce(&Http, &mut Pending) -> T,
    ) -> Option<T> {
        self.entry(id, |entry| {
            let State::Http(http) = &mut entry.state else { return None };
            if http.sequence != sequence {
                return None;
            }
            let mut pending = http.pending.take()?;
            let result = f(http, &mut pending);
            http.pending = Some(pending);
            Some(result)
        })
        .flatten()
    }
}
