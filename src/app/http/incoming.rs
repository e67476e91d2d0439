//! Bodies that a handler reads as they come.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Http, Pending};
use crate::app::BodyError;
use crate::app::service::{Inner, State};
use crate::protocol::http::{BodyReader, Head, HttpError};
use crate::runtime::ConnectionId;
use crate::time::Millis;

/// Bytes of a body that wait for a handler before no more is read from its client. What the kernel had
/// received by then comes on top.
pub(super) const UNTAKEN_BYTES: usize = 64 * 1024;

/// A body on its way from the connection to its handler. Both hold it.
#[derive(Debug)]
pub(in crate::app) struct Incoming(RefCell<Body>);

#[derive(Debug)]
struct Body {
    reader: BodyReader,
    end: Option<Result<(), BodyError>>,
    waker: Option<Waker>,
    /// Whether the client wants to be asked before it sends anything.
    to_ask: bool,
}

/// What a connection knows of the body that its handler reads.
pub(super) struct Receiving {
    pub(super) body: Rc<Incoming>,
    /// From when on the client's time counts.
    began: Millis,
    /// Since when it is not the client for whom everybody waits.
    held: Option<Millis>,
}

impl Incoming {
    fn new(head: &Head, limit: usize) -> Rc<Self> {
        let reader = BodyReader::new(head.framing(), limit);
        let end = reader.is_complete().then_some(Ok(()));
        let to_ask = end.is_none() && head.expects_continue();
        Rc::new(Self(RefCell::new(Body { reader, end, waker: None, to_ask })))
    }

    /// Takes what belongs to the body: how many bytes, and who has waited for them.
    fn feed(&self, bytes: &[u8]) -> Result<(usize, Option<Waker>), HttpError> {
        let mut body = self.0.borrow_mut();
        let Body { reader, end, waker, to_ask } = &mut *body;
        if end.is_some() || bytes.is_empty() {
            return Ok((0, None));
        }
        *to_ask = false;
        let used = reader.read(bytes)?;
        if reader.is_complete() {
            *end = Some(Ok(()));
        }
        // Whoever waits is not woken by the size of a chunk.
        let news = reader.is_complete() || reader.waiting() > 0;
        Ok((used, if news { waker.take() } else { None }))
    }

    /// Nothing more will come; who is to be told.
    fn fail(&self, error: BodyError) -> Option<Waker> {
        let mut body = self.0.borrow_mut();
        if body.end.is_none() {
            body.end = Some(Err(error));
        }
        body.waker.take()
    }

    fn is_open(&self) -> bool {
        self.0.borrow().end.is_none()
    }

    /// Whether all of it has come, taken or not.
    fn is_complete(&self) -> bool {
        matches!(self.0.borrow().end, Some(Ok(())))
    }

    fn untaken(&self) -> usize {
        self.0.borrow().reader.waiting()
    }

    /// What has come, the end, or nothing yet.
    fn take(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        let mut body = self.0.borrow_mut();
        if body.reader.waiting() > 0 {
            return Poll::Ready(Ok(Some(body.reader.take().into())));
        }
        match body.end {
            Some(end) => Poll::Ready(end.map(|()| None)),
            None => {
                body.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Receiving {
    pub(super) fn new(head: &Head, limit: usize, now: Millis) -> Self {
        let body = Incoming::new(head, limit);
        let held = body.0.borrow().to_ask.then_some(now);
        Self { body, began: now, held }
    }

    /// It is the handler for whom all wait, or the client again. That time is nobody's fault.
    fn hold(&mut self, held: bool, now: Millis) {
        match (held, self.held) {
            (true, None) => self.held = Some(now),
            (false, Some(since)) => {
                self.began += now - since;
                self.held = None;
            }
            _ => {}
        }
    }

    /// By when the client must have sent all of it; `None` while it is not the client who is waited for.
    fn deadline(&self, timeout: Millis, rate: usize) -> Option<Millis> {
        let waits = self.held.is_none() && self.body.is_open();
        let received = self.body.0.borrow().reader.received();
        let earned = (received * 1000).checked_div(rate as u64).unwrap_or(0);
        waits.then(|| self.began + timeout + earned)
    }
}

impl Pending {
    /// Nothing more comes of a body that a handler reads; who is to be told.
    pub(super) fn fail_body(&self, error: BodyError) -> Option<Waker> {
        self.receiving.as_ref()?.body.fail(error)
    }

    /// Whether the body is not complete: then no further request can be found behind it.
    pub(super) fn is_cut_short(&self) -> bool {
        self.receiving.as_ref().is_some_and(|receiving| !receiving.body.is_complete())
    }
}

impl Http {
    /// Gives a handler what has come of the body that it reads; who is to be told.
    pub(super) fn feed(&mut self) -> Result<Option<Waker>, HttpError> {
        let receiving = self.pending.as_mut().and_then(|pending| pending.receiving.as_mut());
        let Some(receiving) = receiving else { return Ok(None) };
        let (used, waker) = receiving.body.feed(&self.buffer[self.answered..])?;
        self.consume(used);
        Ok(waker)
    }

    /// Bytes that wait for a handler to read them.
    pub(super) fn untaken(&self) -> usize {
        let receiving = self.pending.as_ref().and_then(|pending| pending.receiving.as_ref());
        receiving.map_or(0, |receiving| receiving.body.untaken())
    }

    /// Reading from the client has stopped, or goes on.
    pub(super) fn hold_body(&mut self, now: Millis) {
        let paused = self.paused;
        if let Some(receiving) = self.pending.as_mut().and_then(|pending| pending.receiving.as_mut()) {
            let to_ask = receiving.body.0.borrow().to_ask;
            receiving.hold(paused || to_ask, now);
        }
    }
}

impl Inner {
    /// Reads from the body of a request.
    pub(in crate::app) fn poll_body(
        &self,
        id: ConnectionId,
        sequence: u32,
        body: &Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, BodyError>> {
        let taken = body.take(cx);
        let ask = taken.is_pending() && std::mem::take(&mut body.0.borrow_mut().to_ask);
        if !ask && taken.is_pending() {
            return taken;
        }
        let owed = self.core.owed_bytes(id);
        let now = self.core.now();
        let wanted = self.entry(id, |entry| {
            let State::Http(http) = &mut entry.state else { return false };
            if http.sequence != sequence {
                return false;
            }
            self.balance(id, http, now);
            self.set_deadline(http, &mut entry.deadline, owed);
            // Once the answer has begun, another head would be part of it.
            http.pending.as_ref().is_some_and(|pending| pending.stream.is_none())
        });
        if ask && wanted == Some(true) {
            let _ = self.transmit(id, &b"HTTP/1.1 100 Continue\r\n\r\n"[..]);
        }
        taken
    }

    /// By when a body that a handler reads is to be complete; `None` if nobody waits for its client.
    pub(super) fn body_deadline(&self, http: &Http) -> Option<Millis> {
        let receiving = http.pending.as_ref()?.receiving.as_ref()?;
        receiving.deadline(self.options.body_timeout.as_millis() as Millis, self.options.body_rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::HeadLimits;

    fn receiving(head: &str, limit: usize) -> Receiving {
        let (head, _) = Head::parse(head.as_bytes(), &HeadLimits::default()).unwrap().unwrap();
        Receiving::new(&head, limit, 1000)
    }

    fn take(body: &Incoming) -> Poll<Result<Option<Bytes>, BodyError>> {
        body.take(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_comes_is_taken_and_what_follows_is_left() {
        for head in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let body = receiving(&format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"), 10).body;
            let chunked = head.ends_with("chunked");
            let wire: &[u8] = if chunked { b"5\r\nhello\r\n0\r\n\r\n" } else { b"hello" };
            for cut in 0..wire.len() {
                let body = receiving(&format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"), 10).body;
                assert_eq!(body.feed(&wire[..cut]).unwrap().0, cut);
                let mut seen = Vec::new();
                if let Poll::Ready(Ok(Some(piece))) = take(&body) {
                    seen.extend_from_slice(&piece);
                }
                assert!(!body.is_complete());
                let rest = [&wire[cut..], b"GET"].concat();
                assert_eq!(body.feed(&rest).unwrap().0, wire.len() - cut);
                if let Poll::Ready(Ok(Some(piece))) = take(&body) {
                    seen.extend_from_slice(&piece);
                }
                assert_eq!((seen.as_slice(), take(&body)), (&b"hello"[..], Poll::Ready(Ok(None))));
            }
            // What has come before a body fails can still be had.
            body.feed(&wire[..wire.len().min(4)]).unwrap();
            assert!(body.fail(BodyError::Aborted).is_none());
            assert!(matches!(take(&body), Poll::Ready(Ok(Some(_)))));
            assert_eq!(take(&body), Poll::Ready(Err(BodyError::Aborted)));
        }
    }

    #[test]
    fn the_clock_stands_while_the_handler_is_slow() {
        let mut receiving = receiving("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n", 500);
        assert_eq!(receiving.deadline(60_000, 100), Some(61_000));
        receiving.body.feed(&[0; 200]).unwrap();
        assert_eq!(receiving.deadline(60_000, 100), Some(63_000));
        receiving.hold(true, 10_000);
        assert_eq!(receiving.deadline(60_000, 100), None);
        receiving.hold(true, 20_000);
        receiving.hold(false, 90_000);
        assert_eq!(receiving.deadline(60_000, 0), Some(141_000));
        receiving.body.feed(&[0; 300]).unwrap();
        assert_eq!(receiving.deadline(60_000, 0), None);
    }

    #[test]
    fn what_chunks_add_earns_no_time() {
        let receiving = receiving("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 500);
        for _ in 0..200 {
            receiving.body.feed(b"0000000000000001\r\nx\r\n").unwrap();
        }
        assert_eq!(receiving.deadline(60_000, 100), Some(63_000));
    }
}
