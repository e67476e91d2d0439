//! HTTP requests, from the core that has read them to the session that they belong to.

use std::rc::Rc;

use super::headers::Headers;
use super::ids::Reserved;
use super::middleware::Way;
use super::server::{Inner, Place};
use super::verify::{Asked, BadRequest, Known, Refusal, check_revision, verify};
use super::{ConnectionError, Socket, Transport};
use crate::app::{Begun, Refusal as Answer, Refused, Request, Response};
use crate::protocol::eio::Revision;
use crate::protocol::http::Head;
use crate::protocol::query;
use crate::runtime::ConnectionId;

impl Inner {
    /// A request below the engine's path that is no WebSocket handshake.
    pub(super) fn request(self: &Rc<Self>, request: Request, response: Response) {
        // Before anything that the application might count.
        if let Some(core) = self.find(request.query()) {
            return response.hand_over(core, request.body());
        }
        let mut headers = Headers::default();
        if let Some(cors) = &self.options.cors
            && let Some(status) = cors.answer(&request, &mut headers)
        {
            return headers.answer(response).status(status).end("");
        }
        if let Some(refusal) = self.foreign(&request) {
            return self.refuse(&request, headers.answer(response), &refusal);
        }
        self.clone().pass(request, Way::Http(response), headers, 0);
    }

    /// A request whose body is still on its way.
    pub(super) fn begun(self: &Rc<Self>, head: &Head, connection: ConnectionId) -> Begun {
        if let Some(core) = self.find(head.query()) {
            return Begun::Elsewhere(core);
        }
        let asked = asked(head.query(), head.method(), head.header("origin"), false);
        match (head.method(), self.verify(&asked)) {
            ("POST", Ok(Some(socket))) => self.begin_post(socket, connection),
            // Refused when it is complete: the connection can go on then.
            _ => Begun::Read(None),
        }
    }

    /// The answer to a request that is refused before its handler has run: it has the headers of CORS, so
    /// that a script may read its status. A body that is too large is answered with an empty one, as by the
    /// reference.
    pub(super) fn refusal(&self, refused: &Refused<'_>) -> Answer {
        let mut headers = Headers::default();
        if let Some(cors) = &self.options.cors {
            cors.refuse(refused, &mut headers);
        }
        Answer { headers: headers.into_list(), text: refused.status() != 413 }
    }

    /// The core of a request's session, if it is not this one. What is due for one that is here is done.
    pub(super) fn find(&self, raw_query: &str) -> Option<usize> {
        match self.place(&query::find(raw_query, "sid")?) {
            Place::Elsewhere(core) => return Some(core),
            Place::Here(socket) => self.catch_up(socket),
            Place::Nowhere => {}
        }
        None
    }

    /// Why a request is refused for where it comes from, if it is.
    pub(super) fn foreign(&self, request: &Request) -> Option<Refusal> {
        let allowed = self.options.allowed_origins.as_ref()?;
        let origin = request.header("origin");
        let fits = match origin {
            Some(origin) => allowed.accept(origin),
            None => request.query_param("j").is_none(),
        };
        (!fits).then(|| Refusal::ForeignOrigin { origin: origin.map(str::to_owned) })
    }

    /// What the reference's checks say of a request.
    fn verify(&self, asked: &Asked<'_>) -> Result<Option<Socket>, Refusal> {
        verify(asked, &self.options.transports, |sid| {
            let Place::Here(session) = self.place(sid) else { return None };
            self.with_any(session, |entry| {
                // Of one that its client has closed, nothing is left but the answer to a poll.
                let gone = entry.ending().is_some_and(|ending| ending.by_client);
                let poll = asked.method == "GET" && !asked.upgrade;
                let (transport, revision) = (entry.session.transport(), entry.session.revision());
                (!gone || poll).then_some(Known { session, transport, revision })
            })?
        })
    }

    pub(super) fn verify_request(&self, request: &Request, upgrade: bool) -> Result<Option<Socket>, Refusal> {
        self.verify(&asked(request.query(), request.method(), request.header("origin"), upgrade))
    }

    /// A request that has passed the middlewares.
    pub(super) fn serve(self: &Rc<Self>, request: Request, response: Response) {
        match self.verify_request(&request, false) {
            Err(refusal) => self.refuse(&request, response, &refusal),
            Ok(None) if !self.has_place(Transport::Polling) => self.refuse_for_now(response),
            Ok(None) => {
                let server = self.clone();
                self.admit(request.clone(), move |admitted| match admitted {
                    Ok(name) => server.welcome(request, response, name),
                    Err(refusal) => server.refuse(&request, response, &refusal),
                });
            }
            Ok(Some(socket)) => match request.method() {
                "GET" => self.poll(socket, &request, response),
                "POST" => self.read(socket, &request, response),
                // As the reference does: not a case that any client has.
                _ => response.status(500).end(""),
            },
        }
    }

    /// Asks the application whether a handshake may open a session, and for its id.
    pub(super) fn admit(
        self: &Rc<Self>,
        request: Request,
        then: impl FnOnce(Result<Option<Reserved>, Refusal>) + 'static,
    ) {
        let (server, asking) = (self.clone(), request.clone());
        let allowed = move |allowed: Result<(), String>| {
            let checked = match allowed {
                Ok(()) => {
                    let revision = Revision::of_query(asking.query_param("EIO").as_deref());
                    check_revision(revision, server.options.allow_eio3)
                }
                Err(message) => {
                    let message = (!message.is_empty()).then(|| message.into());
                    Err(Refusal::Forbidden { message })
                }
            };
            match checked {
                Ok(()) => server.name(asking, then),
                Err(refusal) => then(Err(refusal)),
            }
        };
        match &self.options.allow_request {
            None => allowed(Ok(())),
            Some(allow) => allow(request).then(&self.core, allowed),
        }
    }

    fn name(&self, request: Request, then: impl FnOnce(Result<Option<Reserved>, Refusal>) + 'static) {
        let Some(generate) = &self.options.generate_id else { return then(Ok(None)) };
        let (ids, core) = (self.ids.clone(), self.core.index());
        generate(request).then(&self.core, move |made| {
            let reserved = made.and_then(|id| ids.reserve(&id, core)).map(Some);
            then(reserved.map_err(|message| Refusal::BadRequest(BadRequest::IdGeneration { message })));
        });
    }

    /// Tells the application of a refusal.
    pub(super) fn refused(&self, request: &Request, refusal: &Refusal) {
        tracing::debug!("an engine.io request is refused: {}", refusal.message());
        let error = ConnectionError { request, refusal };
        self.events.connection_error(&error);
        self.hooks.each(|hooks| &hooks.connection_error, |hook| hook(&error));
    }

    pub(super) fn refuse(&self, request: &Request, response: Response, refusal: &Refusal) {
        self.refused(request, refusal);
        response.status(refusal.status()).header("Content-Type", "application/json").end(refusal.body());
    }
}

fn asked<'a>(raw: &'a str, method: &'a str, origin: Option<&'a str>, upgrade: bool) -> Asked<'a> {
    Asked {
        transport: query::find(raw, "transport"),
        sid: query::find(raw, "sid"),
        revision: Revision::of_query(query::find(raw, "EIO").as_deref()),
        method,
        upgrade,
        origin,
    }
}
