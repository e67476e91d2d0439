//! Requests whose bodies a handler reads piece by piece.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use thiserror::Error;

use super::http::Incoming;
use super::service::Inner;
use crate::runtime::ConnectionId;

/// Why a body did not come whole.
///
/// ```
/// assert_eq!(sockring::app::BodyError::TooLarge.to_string(), "the body is larger than its route allows");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The client went away, was too slow, or sent what is no body; or the request was answered before all
    /// of it had come.
    #[error("the body ended before its end")]
    Aborted,
    /// It is larger than its route allows; the client has been told so with 413.
    #[error("the body is larger than its route allows")]
    TooLarge,
}

/// The body of a request, as it comes; for routes of [`App::body_stream`](super::App::body_stream).
///
/// No more than 64 KiB wait for the handler: beyond, no more is read from the client until the handler has
/// taken what is there. A client that wants to be asked first (`Expect: 100-continue`) is asked when the
/// handler reads. The time for a body is that of [`Options`](super::Options), without the time in which the
/// client had to wait for the handler.
///
/// A handler may answer whenever it likes. If the body is not complete then, the connection is closed behind
/// the answer.
///
/// ```no_run
/// # use sockring::app::{App, Request, RequestStream, Response};
/// # fn set_up(app: &App) {
/// async fn count(_: Request, mut body: RequestStream, response: Response) {
///     let mut bytes = 0;
///     loop {
///         match body.read().await {
///             Ok(Some(piece)) => bytes += piece.len(),
///             Ok(None) => return response.end(format!("{bytes} bytes")),
///             Err(error) => return eprintln!("an upload failed: {error}"),
///         }
///     }
/// }
/// app.body_stream(1 << 30).post("/upload", count);
/// # }
/// ```
pub struct RequestStream {
    app: Rc<Inner>,
    connection: ConnectionId,
    sequence: u32,
    body: Rc<Incoming>,
}

impl fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl RequestStream {
    pub(super) fn new(app: Rc<Inner>, connection: ConnectionId, sequence: u32, body: Rc<Incoming>) -> Self {
        Self { app, connection, sequence, body }
    }

    /// Waits for the next piece: all that has come by then. `None` at the end of the body.
    ///
    /// # Errors
    ///
    /// The body did not come whole. All of it that came was given before.
    pub async fn read(&mut self) -> Result<Option<Bytes>, BodyError> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// [`read`](Self::read) for those who write futures or streams of their own.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        self.app.poll_body(self.connection, self.sequence, &self.body, cx)
    }
}
