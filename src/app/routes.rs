//! Which handler answers which path.

use std::borrow::Cow;
use std::future::Future;
use std::rc::Rc;

use super::behavior::Upgradable;
use super::request::Params;
use super::{Request, RequestStream, Response};
use crate::protocol::http::{Glimpse, Head};
use crate::runtime::{self, ConnectionId};

/// What a route handler may return: nothing, or a future of nothing. `M` only tells the two apart; it is
/// inferred.
///
/// ```no_run
/// # use sockring::app::{App, Request, Response};
/// # fn set_up(app: &App) {
/// app.get("/now", |_: Request, response: Response| response.end("at once"));
/// app.get("/later", |_: Request, response: Response| async move { response.end("or later") });
/// # }
/// ```
pub trait Answering<M>: 'static {
    /// Lets the handler finish.
    fn finish(self);
}

#[doc(hidden)]
/// Marks a handler that is done when it returns. It may still keep the [`Response`] and end it later.
#[derive(Debug)]
pub struct SyncFn;

#[doc(hidden)]
/// Marks a handler that returns a future.
#[derive(Debug)]
pub struct AsyncFn;

impl Answering<SyncFn> for () {
    fn finish(self) {}
}

impl<F: Future<Output = ()> + 'static> Answering<AsyncFn> for F {
    fn finish(self) {
        if let Some(core) = runtime::current() {
            core.spawn(self);
        }
    }
}

/// What answers the requests of a route.
#[derive(Clone)]
pub(super) enum HttpHandler {
    /// It runs when the body is complete.
    Whole(Rc<dyn Fn(Request, Response)>),
    /// It runs when the head is complete.
    Streamed(Rc<dyn Fn(Request, RequestStream, Response)>),
}

/// What a layer says to a request whose head has come and whose body has not, or not all of it.
pub(crate) enum Begun {
    /// Read the body. The closure, if there is one, is told how that ends.
    Read(Option<OnBodyEnd>),
    /// Answer with this status now, and close.
    Refuse(u16),
    /// Another core is to read it.
    Elsewhere(usize),
}

/// How a body that did not come together with its head has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    /// All of it is here: the request's handler is next.
    Complete,
    /// It is larger than its route allows: answered with 413.
    TooLarge,
    /// The client went away, was too slow, or sent what is no body.
    Aborted,
}

pub(crate) type OnBodyEnd = Box<dyn FnOnce(BodyEnd)>;
pub(crate) type OnBegun = Rc<dyn Fn(&Head, ConnectionId) -> Begun>;

/// Names and values of headers.
pub(crate) type HeaderList = Vec<(Cow<'static, str>, Cow<'static, str>)>;

/// What a layer that does its own routing is asked before its handler is.
#[derive(Clone)]
pub(crate) struct Hooks {
    /// About each request whose body is still on its way.
    pub(crate) begun: OnBegun,
    /// About the answer to a request that is refused before its handler has run.
    pub(crate) refused: Rc<dyn Fn(&Refused<'_>) -> Refusal>,
}

/// A request that is refused before its handler has run, because of its head, its body or the time it took.
pub(crate) struct Refused<'a> {
    status: u16,
    seen: Seen<'a>,
}

/// What is known of it.
enum Seen<'a> {
    Head(&'a Head),
    /// Its head was not complete, or not sound.
    Glimpse(Glimpse<'a>),
}

/// The answer to a request that is refused.
pub(crate) struct Refusal {
    /// Headers beside those of every answer.
    pub(crate) headers: HeaderList,
    /// Whether the body says what the status means; otherwise it is empty.
    pub(crate) text: bool,
}

impl<'a> Refused<'a> {
    pub(super) fn head(status: u16, head: &'a Head) -> Self {
        Self { status, seen: Seen::Head(head) }
    }

    pub(super) fn glimpse(status: u16, glimpse: Glimpse<'a>) -> Self {
        Self { status, seen: Seen::Glimpse(glimpse) }
    }

    /// The status that it is answered with.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The method.
    pub(crate) fn method(&self) -> &str {
        match &self.seen {
            Seen::Head(head) => head.method(),
            Seen::Glimpse(glimpse) => glimpse.method(),
        }
    }

    /// The first field of a name, if it has come.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        match &self.seen {
            Seen::Head(head) => head.header(name),
            Seen::Glimpse(glimpse) => glimpse.header(name),
        }
    }
}

/// What a route leads to.
#[derive(Clone)]
pub(super) enum Target {
    Http {
        method: Option<&'static str>,
        handler: HttpHandler,
        body_bytes: Option<usize>,
        hooks: Option<Hooks>,
    },
    WebSocket(Rc<dyn Upgradable>),
}

pub(super) struct Route {
    pattern: Pattern,
    pub(super) target: Target,
    /// Whether it is served to a client for which there is no place.
    pub(super) when_full: bool,
}

enum Pattern {
    Prefix(Box<str>),
    Segments { segments: Box<[Segment]>, open: bool },
}

enum Segment {
    Literal(Box<str>),
    Param(Box<str>),
}

impl Route {
    pub(super) fn new(pattern: &str, target: Target) -> Self {
        let path = pattern.strip_prefix('/').unwrap_or(pattern);
        let (path, open) = match path.strip_suffix('*') {
            Some(path) => (path.strip_suffix('/').unwrap_or(path), true),
            None => (path, false),
        };
        let segment = |segment: &str| match segment.strip_prefix(':') {
            Some(name) => Segment::Param(name.into()),
            None => Segment::Literal(segment.into()),
        };
        let segments =
            if path.is_empty() && open { Box::default() } else { path.split('/').map(segment).collect() };
        Self { pattern: Pattern::Segments { segments, open }, target, when_full: false }
    }

    pub(super) fn prefix(prefix: &str, target: Target) -> Self {
        Self { pattern: Pattern::Prefix(prefix.into()), target, when_full: false }
    }

    /// The same, served also when there is no place for its client.
    pub(super) fn when_full(self) -> Self {
        Self { when_full: true, ..self }
    }

    /// The parameters that a path gives this route, if it matches.
    pub(super) fn matches(&self, path: &str) -> Option<Params> {
        let (segments, open) = match &self.pattern {
            Pattern::Prefix(prefix) => return path.starts_with(&**prefix).then(Params::new),
            Pattern::Segments { segments, open } => (segments, *open),
        };
        let mut params = Params::new();
        let mut parts = path.strip_prefix('/')?.split('/');
        for segment in segments {
            let part = parts.next()?;
            match segment {
                Segment::Literal(literal) if **literal == *part => {}
                Segment::Literal(_) => return None,
                Segment::Param(name) => params.push((name.clone(), part.into())),
            }
        }
        (open || parts.next().is_none()).then_some(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
        let target = Target::Http {
            method: None,
            handler: HttpHandler::Whole(Rc::new(|_, _| ())),
            body_bytes: None,
            hooks: None,
        };
        let params = Route::new(pattern, target).matches(path)?;
        Some(params.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn patterns() {
        assert_eq!(matches("/", "/"), Some(vec![]));
        assert_eq!(matches("/", "/a"), None);
        assert_eq!(matches("/*", "/a/b"), Some(vec![]));
        assert_eq!(matches("/a/*", "/a"), Some(vec![]));
        assert_eq!(matches("/a/*", "/ab"), None);
        assert_eq!(
            matches("/user/:id/posts/:post", "/user/7/posts/x"),
            Some(vec!["id=7".into(), "post=x".into()])
        );
        assert_eq!(matches("/user/:id", "/user/7/"), None);
        assert_eq!(matches("/ws", "/ws"), Some(vec![]));
    }
}
