//! An HTTP/1.1 connection: request after request, one answered at a time (RFC 9112 section 9).

mod answer;
mod deadlines;
mod incoming;
mod refuse;
mod serve;
mod stream;

use std::rc::Rc;
use std::task::Waker;

use super::BodyError;
use super::request::Params;
use super::routes::{BodyEnd, Hooks, HttpHandler, OnBegun, OnBodyEnd, Route, Target};
use super::service::Inner;
use crate::limits;
use crate::protocol::http::{BodyReader, Framing, Head, HttpError, LAST_CHUNK, Version, write_chunk};
use crate::time::Millis;
use deadlines::Clock;
pub(super) use incoming::Incoming;
use incoming::Receiving;
pub(super) use stream::PIECE_BYTES;
use stream::Streaming;

/// What one connection has sent and not been answered yet. Empty, and without a buffer, while it idles.
#[derive(Default)]
pub(super) struct Http {
    /// Bytes from the start of the request that is being read or answered, after those in front that
    /// belong to requests which were answered. A body leaves it as it comes, decoded.
    buffer: Vec<u8>,
    answered: usize,
    /// A request whose head is complete and whose body is not.
    partial: Option<Box<Partial>>,
    /// The request that a handler is answering.
    pending: Option<Box<Pending>>,
    /// How many requests have come.
    sequence: u32,
    /// Bytes of answers so far.
    sent: u64,
    clock: Clock,
    paused: bool,
    /// Whether the next request waits until the client has taken the answers to those before.
    held: bool,
    /// Whether the turn will come to the next request: see [`Inner::advance`].
    queued: bool,
    /// Whether the client has closed its side: what it has asked is still answered.
    half_closed: bool,
    /// Why the head that is being read will be refused, once those of its fields have come that decide about
    /// the headers of the answer.
    refused: Option<HttpError>,
}

struct Partial {
    head: Head,
    /// Bytes of the buffer in front that are the head. They stay there: the request may have to be handed
    /// over to another core.
    head_bytes: usize,
    /// Bytes that the body may have.
    limit: usize,
    body: BodyReader,
    /// Bytes after the head in the buffer that the body has taken already. They go with the next step.
    decoded: usize,
    route: Option<(Rc<Route>, Params)>,
    continued: bool,
    /// When the head was complete.
    began: Option<Millis>,
    /// Whether the route was told that the body is on its way.
    begun: bool,
    on_end: Option<OnBodyEnd>,
}

struct Pending {
    /// Bytes of the buffer that belong to the request: its head, and the last piece of its body.
    bytes: usize,
    /// Those of them that are the head.
    head_bytes: usize,
    /// Whether the body came in chunks.
    chunked: bool,
    /// Whether another request may follow.
    keep_alive: bool,
    /// Whether the client has said that none will.
    client_closes: bool,
    head_only: bool,
    /// Whether it asks for a WebSocket.
    upgrade: bool,
    /// Whether it came with HTTP/1.0.
    old: bool,
    on_abort: Option<OnAbort>,
    /// What goes on with the request when the turn has time: see [`Response::later`](super::Response::later).
    later: Option<OnAbort>,
    stream: Option<Box<Streaming>>,
    /// The body, if the handler reads it as it comes.
    receiving: Option<Box<Receiving>>,
}

pub(super) type OnAbort = Box<dyn FnOnce()>;

/// A request that is complete.
struct Complete {
    head: Head,
    body: Vec<u8>,
    route: Option<(Rc<Route>, Params)>,
    sequence: u32,
    on_end: Option<OnBodyEnd>,
    incoming: Option<Rc<Incoming>>,
}

enum Progress {
    /// Nothing to do until more comes, or until the pending request is answered.
    Wait,
    Continue,
    /// The route is to be asked about a body that is on its way.
    Begun(OnBegun, Box<Head>),
    Failed(HttpError),
    /// The body is large, and the process short of memory.
    Short,
    /// A handler has waited for more of its body.
    Fed(Waker),
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

    /// Whether nothing that was asked is still to be answered.
    fn is_answered(&self) -> bool {
        self.pending.is_none() && !self.held && !self.queued
    }

    /// The client has closed its side. Whether its requests are still to be answered, and what is to be
    /// called because of it.
    pub(super) fn half_close(&mut self) -> (bool, Option<OnAbort>) {
        self.half_closed = true;
        let on_abort = self.pending.as_mut().and_then(|pending| pending.on_abort.take());
        let upgrade = self.pending.as_ref().is_some_and(|pending| pending.upgrade);
        let waker = self.pending.as_ref().and_then(|pending| pending.fail_body(BodyError::Aborted));
        let told = on_abort.is_some() || waker.is_some();
        let tell = move || {
            waker.into_iter().for_each(Waker::wake);
            on_abort.into_iter().for_each(|on_abort| on_abort());
        };
        (!self.is_answered() && !upgrade, told.then(|| Box::new(tell) as OnAbort))
    }

    /// The client went away, or is sent away.
    pub(super) fn aborted(self, end: BodyEnd) {
        if let Some(on_end) = self.partial.and_then(|partial| partial.on_end) {
            on_end(end);
        }
        let Some(pending) = self.pending else { return };
        let error = if end == BodyEnd::TooLarge { BodyError::TooLarge } else { BodyError::Aborted };
        pending.fail_body(error).into_iter().for_each(Waker::wake);
        if let Some(waker) = pending.stream.and_then(|stream| stream.waker) {
            waker.wake();
        }
        if let Some(on_abort) = pending.on_abort {
            on_abort();
        }
    }

    /// One step of reading. `route` tells the route of a head and the most that its body may hold.
    fn step(
        &mut self,
        app: &Inner,
        route: impl FnOnce(&Head) -> (Option<(Rc<Route>, Params)>, usize),
    ) -> Result<Progress, HttpError> {
        if let Some(waker) = self.feed()? {
            return Ok(Progress::Fed(waker));
        }
        if self.pending.is_some() || self.held || self.unread().is_empty() {
            return Ok(Progress::Wait);
        }
        let known = match self.partial.take() {
            Some(partial) => Some(partial),
            None => self.read_head(app, route)?,
        };
        let Some(mut partial) = known else { return Ok(Progress::Wait) };
        if partial.is_streamed() {
            return self.complete_head(app, *partial).map(Progress::Complete);
        }
        if let Err(error) = self.read_body(&mut partial) {
            // Whoever waits for its end is told when the connection is given up.
            self.partial = Some(partial);
            return Err(error);
        }
        if partial.body.is_complete() {
            let bytes = partial.head_bytes + partial.decoded;
            return Ok(Progress::Complete(self.complete(app, *partial, bytes)));
        }
        if partial.is_large() && app.core.is_short_of_memory() {
            self.partial = Some(partial);
            return Ok(Progress::Short);
        }
        let first = !std::mem::replace(&mut partial.begun, true);
        if let Some(begun) = partial.hooks().filter(|_| first).map(|hooks| hooks.begun.clone()) {
            let head = Box::new(partial.head.clone());
            self.partial = Some(partial);
            return Ok(Progress::Begun(begun, head));
        }
        let ask = partial.head.expects_continue() && !partial.continued;
        partial.continued = true;
        self.partial = Some(partial);
        Ok(if ask { Progress::Continue } else { Progress::Wait })
    }

    /// The head of the next request, if it is complete.
    fn read_head(
        &mut self,
        app: &Inner,
        route: impl FnOnce(&Head) -> (Option<(Rc<Route>, Params)>, usize),
    ) -> Result<Option<Box<Partial>>, HttpError> {
        if let Some(error) = self.refused {
            return if self.has_shown_enough() { Err(error) } else { Ok(None) };
        }
        let parsed = Head::parse_sharing(self.unread(), &app.options.head, &mut app.shapes.borrow_mut());
        let (head, head_bytes) = match parsed {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(None),
            Err(error) if self.may_show_more(app, error) => {
                self.refused = Some(error);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (route, limit) = route(&head);
        let framing = head.framing();
        let partial = Box::new(Partial {
            body: BodyReader::new(framing, limit),
            head,
            head_bytes,
            limit,
            decoded: 0,
            route,
            continued: false,
            began: None,
            begun: false,
            on_end: None,
        });
        if let Err(error) = framing.check(limit as u64) {
            // Its route is asked how it is refused.
            self.partial = Some(partial);
            return Err(error);
        }
        Ok(Some(partial))
    }

    /// Moves what has come of a body out of the buffer. The bytes that were decoded last stay until the next
    /// step: the route may send the request, as it came, to another core first.
    fn read_body(&mut self, partial: &mut Partial) -> Result<(), HttpError> {
        let body = self.answered + partial.head_bytes;
        self.buffer.drain(body..body + std::mem::take(&mut partial.decoded));
        partial.decoded = partial.body.read(self.buffer.get(body..).unwrap_or_default())?;
        Ok(())
    }

    /// A request whose handler reads the body as it comes.
    fn complete_head(&mut self, app: &Inner, partial: Partial) -> Result<Complete, HttpError> {
        self.consume(partial.head_bytes);
        let receiving = Box::new(Receiving::new(&partial.head, partial.limit, app.core.now()));
        let incoming = Some(receiving.body.clone());
        let complete = self.complete(app, partial, 0);
        if let Some(pending) = &mut self.pending {
            pending.receiving = Some(receiving);
        }
        // Nobody waits for it yet.
        self.feed()?;
        Ok(Complete { incoming, ..complete })
    }

    fn complete(&mut self, app: &Inner, partial: Partial, bytes: usize) -> Complete {
        let Partial { head, head_bytes, mut body, route, on_end, .. } = partial;
        self.sequence = self.sequence.wrapping_add(1);
        self.clock = Clock::Handler;
        let last = app.options.keep_alive_requests;
        self.pending = Some(Box::new(Pending {
            bytes,
            head_bytes: head_bytes.min(bytes),
            chunked: head.framing() == Framing::Chunked,
            keep_alive: head.keep_alive() && (last == 0 || self.sequence < last),
            client_closes: !head.keep_alive(),
            head_only: head.method() == "HEAD",
            upgrade: matches!(&route, Some((route, _)) if matches!(route.target, Target::WebSocket(_))),
            old: head.version() == Version::Http10,
            on_abort: None,
            later: None,
            stream: None,
            receiving: None,
        }));
        Complete { head, body: body.take(), route, sequence: self.sequence, on_end, incoming: None }
    }

    /// Takes out what another core needs to answer the pending request, whose body is `body`, and those
    /// after it: the bytes as they came, but for the body, which was decoded and is written anew.
    fn take_request(&mut self, body: &[u8]) -> Vec<u8> {
        let Some(pending) = self.pending.take() else { return self.take_unread() };
        let unread = self.take_unread();
        let (head, rest) = unread.split_at(pending.head_bytes.min(unread.len()));
        let rest = rest.get(pending.bytes - pending.head_bytes..).unwrap_or_default();
        let mut out = Vec::with_capacity(head.len() + body.len() + rest.len() + 32);
        out.extend_from_slice(head);
        match pending.chunked {
            true => {
                if !body.is_empty() {
                    write_chunk(&mut out, body);
                }
                out.extend_from_slice(LAST_CHUNK);
            }
            false => out.extend_from_slice(body),
        }
        out.extend_from_slice(rest);
        out
    }

    /// Forgets the answered request; whether the connection goes on.
    fn finish(&mut self) -> Option<Box<Pending>> {
        let pending = self.pending.take()?;
        self.consume(pending.bytes);
        Some(pending)
    }

    /// Forgets bytes in front.
    fn consume(&mut self, bytes: usize) {
        self.answered = (self.answered + bytes).min(self.buffer.len());
        if self.answered == self.buffer.len() {
            (self.buffer, self.answered) = (Vec::new(), 0);
        } else if self.answered > self.buffer.len() / 2 {
            // Not after each request: thousands of small ones may be here.
            self.buffer.drain(..std::mem::take(&mut self.answered));
        }
    }
}

impl Partial {
    /// Whether the handler reads the body as it comes.
    fn is_streamed(&self) -> bool {
        let target = self.route.as_ref().map(|(route, _)| &route.target);
        matches!(target, Some(Target::Http { handler: HttpHandler::Streamed(_), .. }))
    }

    /// Whether the body is one that is refused first when memory is short: by its announced length, or by
    /// what has come of it.
    fn is_large(&self) -> bool {
        const LARGE: u64 = limits::LARGE_BODY_BYTES as u64;
        self.head.framing().check(LARGE).is_err() || self.body.received() > LARGE
    }

    /// What the route wants to be asked while the body is on its way.
    fn hooks(&self) -> Option<&Hooks> {
        match &self.route.as_ref()?.0.target {
            Target::Http { hooks, .. } => hooks.as_ref(),
            Target::WebSocket(_) => None,
        }
    }
}
