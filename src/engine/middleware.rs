//! Middlewares of the engine: they see every request before its checks.

use std::fmt;
use std::rc::Rc;

use bytes::Bytes;

use super::headers::Headers;
use super::server::Inner;
use super::verify::{BadRequest, Refusal};
use super::websocket::Carrier;
use crate::app::{Request, Response, Upgrade};

pub(super) type Middleware = Rc<dyn Fn(Request, Next)>;

/// What a middleware does with a request, now or later: pass it on, fail it, or answer it. Dropped without
/// any of these, it fails.
///
/// ```no_run
/// # use sockring::engine::{Next, Server};
/// # fn set_up(engine: &Server) {
/// engine.middleware(|request: sockring::app::Request, mut next: Next| {
///     next.headers().set("X-Served-By", "me");
///     match request.header("x-blocked") {
///         None => next.next(),
///         Some(_) => next.answer(503, "come back later"),
///     }
/// });
/// # }
/// ```
pub struct Next {
    server: Rc<Inner>,
    request: Request,
    headers: Headers,
    /// The middleware that comes next.
    at: usize,
    way: Option<Way>,
}

/// How a request is answered.
pub(super) enum Way {
    Http(Response),
    WebSocket(Upgrade<Carrier>),
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Next {
    /// The headers that the answer will have, whoever gives it; those of a WebSocket's 101 too.
    pub fn headers(&mut self) -> &mut Headers {
        &mut self.headers
    }

    /// Whether the request is a WebSocket handshake.
    pub fn is_upgrade(&self) -> bool {
        matches!(self.way, Some(Way::WebSocket(_)))
    }

    /// Whether the client is gone.
    pub fn is_aborted(&self) -> bool {
        match &self.way {
            Some(Way::Http(response)) => response.is_aborted(),
            Some(Way::WebSocket(handshake)) => handshake.is_aborted(),
            None => true,
        }
    }

    /// Passes the request on: to the next middleware, or to the engine.
    pub fn next(mut self) {
        let Some(way) = self.way.take() else { return };
        let headers = std::mem::take(&mut self.headers);
        self.server.clone().pass(self.request.clone(), way, headers, self.at);
    }

    /// Refuses the request with code 3, `Bad request`; the message is for `connection_error` only.
    pub fn fail(mut self, message: impl Into<String>) {
        self.refuse(message.into());
    }

    /// Answers the request instead of the engine; a WebSocket handshake before its 101.
    pub fn answer(mut self, status: u16, body: impl Into<Bytes>) {
        let headers = std::mem::take(&mut self.headers);
        match self.way.take() {
            Some(Way::Http(response)) => headers.answer(response).status(status).end(body),
            Some(Way::WebSocket(handshake)) => headers.upgrade(handshake).refuse(status, body),
            None => {}
        }
    }

    fn refuse(&mut self, message: String) {
        let Some(way) = self.way.take() else { return };
        let headers = std::mem::take(&mut self.headers);
        let refusal = Refusal::BadRequest(BadRequest::Middleware { message });
        match way {
            Way::Http(response) => self.server.refuse(&self.request, headers.answer(response), &refusal),
            Way::WebSocket(handshake) => {
                self.server.refuse_upgrade(&self.request, headers.upgrade(handshake), &refusal);
            }
        }
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        // While a panic unwinds no handler may run; the response answers for itself.
        if !std::thread::panicking() {
            self.refuse("a middleware has dropped the request".to_owned());
        }
    }
}

impl Inner {
    /// Leads a request through the middlewares from number `at` on, and then to the engine.
    pub(super) fn pass(self: Rc<Self>, request: Request, way: Way, headers: Headers, at: usize) {
        let middleware = self.middlewares.borrow().get(at).cloned();
        if let Some(middleware) = middleware {
            let next = Next { server: self, request: request.clone(), headers, at: at + 1, way: Some(way) };
            return middleware(request, next);
        }
        match way {
            Way::Http(response) => self.serve(request, headers.answer(response)),
            Way::WebSocket(handshake) => self.serve_upgrade(request, handshake, headers),
        }
    }
}
