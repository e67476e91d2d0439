//! Answers that are written piece by piece.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use thiserror::Error;

use super::http::PIECE_BYTES;
use super::service::Inner;
use crate::fanout::Delivery;
use crate::runtime::ConnectionId;

/// The client of a response is gone: what is written to it reaches nobody.
///
/// ```
/// assert_eq!(sockring::app::Aborted.to_string(), "the client is gone");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the client is gone")]
pub struct Aborted;

/// A response whose head has left and whose body follows in pieces; made by [`Response::stream`] and
/// [`Response::stream_of`].
///
/// A body of unknown length is chunked; to a client of HTTP/1.0 the end of the connection is its end. To
/// HEAD, and with status 204 and 304, there is no body, and pieces are thrown away. Requests that the client
/// has sent behind this one wait.
///
/// Dropped without [`end`](Self::end), or ended before the announced length was written, the connection is
/// closed, so that the client does not take a part for the whole.
///
/// ```no_run
/// use sockring::app::{Request, Response};
///
/// async fn count(_: Request, response: Response) {
///     let mut body = response.header("Content-Type", "text/event-stream").stream();
///     for number in 0..10 {
///         if body.write(format!("data: {number}\n\n")).await.is_err() {
///             return; // the client is gone
///         }
///         monoio::time::sleep(std::time::Duration::from_secs(1)).await;
///     }
///     body.end();
/// }
/// ```
///
/// [`Response::stream`]: super::Response::stream
/// [`Response::stream_of`]: super::Response::stream_of
#[must_use = "a stream that is dropped closes the connection"]
pub struct ResponseStream {
    app: Rc<Inner>,
    connection: ConnectionId,
    sequence: u32,
    ended: bool,
}

impl fmt::Debug for ResponseStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseStream").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl ResponseStream {
    pub(super) fn new(app: Rc<Inner>, connection: ConnectionId, sequence: u32) -> Self {
        Self { app, connection, sequence, ended: false }
    }

    /// Writes a piece of the body, once the client has taken most of what was written before. No more than
    /// 128 KiB wait for a client, however large the piece is.
    ///
    /// # Errors
    ///
    /// The client is gone. One that has only closed its side may still read: see
    /// [`on_abort`](Self::on_abort).
    pub async fn write(&mut self, data: impl Into<Bytes>) -> Result<(), Aborted> {
        let mut data = data.into();
        loop {
            self.ready().await?;
            let piece = data.split_to(data.len().min(PIECE_BYTES));
            if self.send(piece) == Delivery::Dropped {
                return Err(Aborted);
            }
            if data.is_empty() {
                return Ok(());
            }
        }
    }

    /// Waits until the client has taken most of what was written: no more than 64 KiB wait for it.
    ///
    /// # Errors
    ///
    /// The client is gone.
    pub async fn ready(&mut self) -> Result<(), Aborted> {
        poll_fn(|cx| self.app.poll_stream(self.connection, self.sequence, cx)).await.ok_or(Aborted)
    }

    /// Writes a piece of the body without waiting, for handlers that are not async. What is sent to a client
    /// that does not read waits for it, and beyond
    /// [`backpressure_bytes`](crate::runtime::Options::backpressure_bytes) its connection is closed.
    pub fn send(&mut self, data: impl Into<Bytes>) -> Delivery {
        self.app.stream(self.connection, self.sequence, data.into())
    }

    /// Ends the body.
    pub fn end(mut self) {
        self.ended = true;
        self.app.end_stream(self.connection, self.sequence, true);
    }

    /// Runs `f` if the client goes away before the body is ended, or closes its side of the connection. The
    /// last one set counts; set too late, it runs at once.
    pub fn on_abort(&self, f: impl FnOnce() + 'static) {
        self.app.on_abort(self.connection, self.sequence, Box::new(f));
    }

    /// Whether the client is gone, or has closed its side of the connection.
    pub fn is_aborted(&self) -> bool {
        self.app.is_aborted(self.connection, self.sequence)
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !self.ended {
            // It closes the connection, so no handler of a further request runs in here.
            self.app.end_stream(self.connection, self.sequence, false);
        }
    }
}
