//! What is answered.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::ResponseStream;
use super::service::Inner;
use crate::runtime::ConnectionId;

/// The answer to one request: made by the server, ended by a handler, now or later.
///
/// A response that is dropped without an end answers 500. When the client goes away first,
/// [`on_abort`](Self::on_abort) says so, and ending the response does no harm.
///
/// ```no_run
/// # use sockring::app::{Request, Response};
/// async fn later(_: Request, response: Response) {
///     monoio::time::sleep(std::time::Duration::from_secs(1)).await;
///     response.status(202).header("x-waited", "1s").end("done");
/// }
/// ```
#[must_use = "a response that is dropped answers 500"]
pub struct Response {
    app: Rc<Inner>,
    connection: ConnectionId,
    /// Which request of its connection this answers: a stale response must not answer a later request.
    sequence: u32,
    status: u16,
    headers: SmallVec<[(Cow<'static, str>, Cow<'static, str>); 4]>,
    ended: bool,
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Response")
            .field("connection", &self.connection)
            .field("status", &self.status)
            .finish()
    }
}

impl Response {
    pub(super) fn new(app: Rc<Inner>, connection: ConnectionId, sequence: u32) -> Self {
        Self { app, connection, sequence, status: 200, headers: SmallVec::new(), ended: false }
    }

    /// Sets the status; 200 by default.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header; a name may be added several times. `Connection`, `Content-Length` and
    /// `Transfer-Encoding` are the server's to say and are ignored, as is a value with a line break.
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends the response. To a HEAD request the body's length is told and the body left out.
    pub fn end(mut self, body: impl Into<Bytes>) {
        self.ended = true;
        self.app.respond(self.connection, self.sequence, self.status, &self.headers, &body.into());
    }

    /// Sends the head; the body follows in pieces, and nobody knows yet how long it will be.
    pub fn stream(self) -> ResponseStream {
        self.begin(None)
    }

    /// Sends the head; the body follows in pieces, `length` bytes together.
    pub fn stream_of(self, length: u64) -> ResponseStream {
        self.begin(Some(length))
    }

    fn begin(mut self, length: Option<u64>) -> ResponseStream {
        self.ended = true;
        self.app.begin_stream(self.connection, self.sequence, self.status, &self.headers, length);
        ResponseStream::new(self.app.clone(), self.connection, self.sequence)
    }

    /// Runs `f` if the client goes away before the response is ended, or closes its side of the connection.
    /// It may still read in the second case, as `printf 'GET /...' | nc` does, and gets an answer that is
    /// ended nevertheless. The last one set counts; set too late, it runs at once.
    pub fn on_abort(&self, f: impl FnOnce() + 'static) {
        self.app.on_abort(self.connection, self.sequence, Box::new(f));
    }

    /// Whether the client is gone, or has closed its side of the connection: see
    /// [`on_abort`](Self::on_abort).
    pub fn is_aborted(&self) -> bool {
        self.app.is_aborted(self.connection, self.sequence)
    }

    /// Goes on with the request when the turn has time, by `f`, which is dropped if the client goes away
    /// first.
    pub(crate) fn later(&self, f: impl FnOnce() + 'static) {
        self.app.later(self.connection, self.sequence, Box::new(f));
    }

    /// Moves the connection, with this request unanswered, to another core, whose routes answer it. `body`:
    /// the request's.
    pub(crate) fn hand_over(mut self, core: usize, body: &[u8]) {
        self.ended = true;
        self.app.hand_over(self.connection, self.sequence, core, body);
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (connection, sequence) = (self.connection, self.sequence);
        if std::thread::panicking() && self.app.dispatching.get() == Some(connection) {
            // What its handler has left half done is not for further requests.
            self.app.close_after_answer(connection, sequence);
        }
        self.app.respond_plain(connection, sequence, 500, Vec::new());
    }
}
