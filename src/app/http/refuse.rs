//! Refusing requests that no handler has answered.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;

use super::Http;
use super::answer::PLAIN;
use crate::app::routes::{BodyEnd, Hooks, Refusal, Refused, Route, Target};
use crate::app::service::{Inner, State};
use crate::limits;
use crate::protocol::http::{Glimpse, Head, HttpError, MAX_HEAD_BYTES, reason};
use crate::runtime::{ConnectionId, guarded};
use crate::time::Millis;

/// How long a client that sends a head beyond its limits may take to send the rest, and how many bytes of
/// it are looked at: a browser sends all of a request at once.
pub(super) const REFUSAL_MS: Millis = 1000;
const SHOWN_BYTES: usize = MAX_HEAD_BYTES;

/// A client that is refused for want of a place may come again.
const RETRY_AFTER: (Cow<'static, str>, Cow<'static, str>) =
    (Cow::Borrowed("Retry-After"), Cow::Borrowed(limits::RETRY_AFTER));

impl Http {
    /// Whether a head that is refused is read on for a moment. Fields that decide about the headers of the
    /// answer come after what is too long: a script could not read the status otherwise.
    pub(super) fn may_show_more(&self, app: &Inner, error: HttpError) -> bool {
        matches!(error, HttpError::TargetTooLong | HttpError::HeadTooLarge | HttpError::TooManyFields)
            && !self.has_shown_enough()
            && Glimpse::of(self.unread()).is_some_and(|seen| app.refusing_route(seen.path()).is_some())
    }

    /// Whether no more is to be expected of a head that is refused.
    pub(super) fn has_shown_enough(&self) -> bool {
        let unread = self.unread();
        unread.len() >= SHOWN_BYTES || unread.windows(4).any(|four| four == b"\r\n\r\n")
    }

    /// The status that answers a request which has not come in time, or not at all.
    pub(in crate::app) fn refused_status(&self) -> Option<u16> {
        self.refused.map(|error| error.status())
    }
}

impl Inner {
    /// The first route of a path that has its say about refusals.
    fn refusing_route(&self, path: &str) -> Option<Rc<Route>> {
        let hooked = |target: &Target| matches!(target, Target::Http { hooks: Some(_), .. });
        self.find_route(path, hooked).map(|(route, _)| route)
    }

    /// Answers what cannot be read as a request, and closes (RFC 9112 section 9.6).
    pub(in crate::app) fn refuse_and_close(&self, id: ConnectionId, status: u16) {
        let end = if status == 413 { BodyEnd::TooLarge } else { BodyEnd::Aborted };
        let Some(State::Http(http)) = self.forget(id).map(|entry| entry.state) else { return };
        if http.pending.as_ref().is_some_and(|pending| pending.stream.is_some()) {
            // Another answer is on its way, to a request whose body goes wrong.
            self.core.abort(id);
            return http.aborted(end);
        }
        let mut refusal = self.refusal(&http, status);
        if status == 503 {
            refusal.headers.push(RETRY_AFTER);
        }
        let body = if refusal.text { Bytes::from_static(reason(status).as_bytes()) } else { Bytes::new() };
        if refusal.text {
            refusal.headers.push(PLAIN);
        }
        self.write_response(id, status, &refusal.headers, &body, false, false);
        self.core.linger(id);
        http.aborted(end);
    }

    /// Answers a request for which there is no place. The connection closes with the answer.
    pub(super) fn refuse_full(&self, id: ConnectionId, sequence: u32, head: &Head, route: Option<&Route>) {
        let mut refusal = Refusal { headers: Vec::new(), text: true };
        if let Some(Route { target: Target::Http { hooks: Some(hooks), .. }, .. }) = route {
            guarded("the headers of an answer that refuses a request", || {
                refusal = (hooks.refused)(&Refused::head(503, head));
            });
        }
        refusal.headers.push(RETRY_AFTER);
        if refusal.text {
            refusal.headers.push(PLAIN);
        }
        let body = if refusal.text { Bytes::from_static(reason(503).as_bytes()) } else { Bytes::new() };
        self.respond(id, sequence, 503, &refusal.headers, &body);
    }

    /// The answer that refuses what a connection has sent: the route may have its say, even if the head
    /// could not be read to its end. The connection is forgotten, so nothing is borrowed here.
    fn refusal(&self, http: &Http, status: u16) -> Refusal {
        let mut refusal = Refusal { headers: Vec::new(), text: true };
        let mut ask = |hooks: &Hooks, refused: Refused<'_>| {
            guarded("the headers of an answer that refuses a request", || {
                refusal = (hooks.refused)(&refused);
            });
        };
        match &http.partial {
            Some(partial) => {
                if let Some(hooks) = partial.hooks() {
                    ask(hooks, Refused::head(status, &partial.head));
                }
            }
            // The head of a request that is being answered has been read, and has no such route.
            None if http.pending.is_some() => {}
            None => {
                let seen = Glimpse::of(http.unread());
                let route = seen.and_then(|seen| self.refusing_route(seen.path()));
                if let (Some(seen), Some(route)) = (seen, route)
                    && let Target::Http { hooks: Some(hooks), .. } = &route.target
                {
                    ask(hooks, Refused::glimpse(status, seen));
                }
            }
        }
        refusal
    }
}
