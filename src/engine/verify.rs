//! Is this request one for a session, a new session, or none? (engine.io `verify`) Pure.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::Transport;
use crate::protocol::eio::Revision;

/// Why a request is refused: the error table of engine.io, each with the context that its `connection_error`
/// event carries.
///
/// ```
/// use sockring::engine::Refusal;
/// let refusal = Refusal::UnknownSid { sid: "abc".to_owned() };
/// assert_eq!(refusal.body(), r#"{"code":1,"message":"Session ID unknown"}"#);
/// assert_eq!(refusal.context()["sid"], "abc");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Code 0: no such transport, or not enabled.
    UnknownTransport {
        /// What was asked for.
        transport: Option<String>,
    },
    /// Code 1: no such session.
    UnknownSid {
        /// The id that was asked for.
        sid: String,
    },
    /// Code 2: a session is opened with GET.
    BadHandshakeMethod {
        /// The method of the request.
        method: String,
    },
    /// Code 3: the request contradicts its session, or makes no sense.
    BadRequest(BadRequest),
    /// Code 4: the application refused; with its own message, or the default one.
    Forbidden {
        /// What the client is told instead of `Forbidden`.
        message: Option<Cow<'static, str>>,
    },
    /// Code 4: scripts of this origin may not use the engine: see
    /// [`Options::allowed_origins`](super::Options::allowed_origins).
    ForeignOrigin {
        /// What the request says; a request for JSONP may say nothing.
        origin: Option<String>,
    },
    /// Code 5: not a version of the protocol that is served.
    UnsupportedProtocol {
        /// The version that was asked for.
        protocol: u8,
    },
}

/// What makes a request a [bad one](Refusal::BadRequest).
///
/// ```
/// use sockring::engine::{BadRequest, Refusal};
/// let refusal = Refusal::BadRequest(BadRequest::TransportHandshake);
/// assert_eq!(refusal.context()["name"], "TRANSPORT_HANDSHAKE_ERROR");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadRequest {
    /// The `Origin` has characters that no header may have.
    InvalidOrigin {
        /// The header's value.
        origin: String,
    },
    /// The session uses another transport, and this is no upgrade.
    TransportMismatch {
        /// The transport of the request.
        transport: Transport,
        /// The transport of the session.
        previous: Transport,
    },
    /// The session speaks another version of the protocol (engine.io 6.6.11).
    ProtocolMismatch {
        /// The version of the request.
        protocol: u8,
        /// The version of the session.
        previous: u8,
    },
    /// A transport that cannot carry this request: a WebSocket without a handshake, or polling with one.
    TransportHandshake,
    /// A middleware failed.
    Middleware {
        /// What it said; the client is not told.
        message: String,
    },
    /// No id could be made.
    IdGeneration {
        /// Why; the client is not told.
        message: String,
    },
}

impl BadRequest {
    /// The reference's name for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InvalidOrigin { .. } => "INVALID_ORIGIN",
            Self::TransportMismatch { .. } => "TRANSPORT_MISMATCH",
            Self::ProtocolMismatch { .. } => "PROTOCOL_MISMATCH",
            Self::TransportHandshake => "TRANSPORT_HANDSHAKE_ERROR",
            Self::Middleware { .. } => "MIDDLEWARE_FAILURE",
            Self::IdGeneration { .. } => "ID_GENERATION_ERROR",
        }
    }

    fn context(&self) -> Value {
        let name = self.name();
        match self {
            Self::InvalidOrigin { origin } => json!({ "name": name, "origin": origin }),
            Self::TransportMismatch { transport, previous } => json!({
                "name": name,
                "transport": transport.as_str(),
                "previousTransport": previous.as_str(),
            }),
            Self::ProtocolMismatch { protocol, previous } => {
                json!({ "name": name, "protocol": protocol, "previousProtocol": previous })
            }
            Self::TransportHandshake => json!({ "name": name }),
            Self::Middleware { message } | Self::IdGeneration { message } => {
                json!({ "name": name, "error": message })
            }
        }
    }
}

impl Refusal {
    /// The code in the body of the answer.
    pub fn code(&self) -> u8 {
        match self {
            Self::UnknownTransport { .. } => 0,
            Self::UnknownSid { .. } => 1,
            Self::BadHandshakeMethod { .. } => 2,
            Self::BadRequest(_) => 3,
            Self::Forbidden { .. } | Self::ForeignOrigin { .. } => 4,
            Self::UnsupportedProtocol { .. } => 5,
        }
    }

    /// The message of the code.
    pub fn message(&self) -> &'static str {
        match self {
            Self::UnknownTransport { .. } => "Transport unknown",
            Self::UnknownSid { .. } => "Session ID unknown",
            Self::BadHandshakeMethod { .. } => "Bad handshake method",
            Self::BadRequest(_) => "Bad request",
            Self::Forbidden { .. } | Self::ForeignOrigin { .. } => "Forbidden",
            Self::UnsupportedProtocol { .. } => "Unsupported protocol version",
        }
    }

    /// What the client is told: the application's own message, or that of the code.
    pub fn answer(&self) -> &str {
        match self {
            Self::Forbidden { message: Some(message) } => message,
            other => other.message(),
        }
    }

    /// The status of the answer to a polling request.
    pub fn status(&self) -> u16 {
        if matches!(self, Self::Forbidden { .. } | Self::ForeignOrigin { .. }) { 403 } else { 400 }
    }

    /// The status of the answer to a WebSocket handshake: 400 for all that the reference refuses, 403 for an
    /// origin that is not allowed (RFC 6455 section 4.2.2).
    pub fn upgrade_status(&self) -> u16 {
        if matches!(self, Self::ForeignOrigin { .. }) { 403 } else { 400 }
    }

    /// The JSON body of the answer to a polling request.
    pub fn body(&self) -> String {
        json!({ "code": self.code(), "message": self.answer() }).to_string()
    }

    /// What the reference's `connection_error` event has as its context: an object.
    pub fn context(&self) -> Value {
        match self {
            Self::UnknownTransport { transport } => json!({ "transport": transport }),
            Self::UnknownSid { sid } => json!({ "sid": sid }),
            Self::BadHandshakeMethod { method } => json!({ "method": method }),
            Self::BadRequest(what) => what.context(),
            Self::Forbidden { message } => json!({ "message": message }),
            Self::ForeignOrigin { origin } => json!({ "name": "FOREIGN_ORIGIN", "origin": origin }),
            Self::UnsupportedProtocol { protocol } => json!({ "protocol": protocol }),
        }
    }
}

/// What a request asks, as far as the engine's own rules go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    pub(super) transport: Option<Cow<'a, str>>,
    pub(super) sid: Option<Cow<'a, str>>,
    pub(super) revision: Revision,
    pub(super) method: &'a str,
    /// Whether the request is a WebSocket handshake.
    pub(super) upgrade: bool,
    /// The `Origin` header.
    pub(super) origin: Option<&'a str>,
}

/// A session as far as a request must agree with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known<S> {
    pub(super) session: S,
    pub(super) transport: Transport,
    pub(super) revision: Revision,
}

/// The checks of the reference that need no application, in its order. `Some`: the session that the request
/// belongs to. `None`: it opens one, if `allowRequest` lets it and its [revision](check_revision) is served.
pub(super) fn verify<S>(
    asked: &Asked<'_>,
    transports: &[Transport],
    known: impl FnOnce(&str) -> Option<Known<S>>,
) -> Result<Option<S>, Refusal> {
    let named = asked.transport.as_deref().and_then(Transport::from_query);
    let Some(transport) = named.filter(|transport| transports.contains(transport)) else {
        let transport = asked.transport.as_deref().map(str::to_owned);
        return Err(Refusal::UnknownTransport { transport });
    };
    let illegal = |byte: u8| byte < 0x20 && byte != b'\t' || byte == 0x7F;
    if let Some(origin) = asked.origin.filter(|origin| origin.bytes().any(illegal)) {
        return Err(Refusal::BadRequest(BadRequest::InvalidOrigin { origin: origin.to_owned() }));
    }
    // As in JavaScript, an empty id is none.
    let Some(sid) = asked.sid.as_deref().filter(|sid| !sid.is_empty()) else {
        if asked.method != "GET" {
            return Err(Refusal::BadHandshakeMethod { method: asked.method.to_owned() });
        }
        if asked.upgrade != transport.upgrades() {
            return Err(Refusal::BadRequest(BadRequest::TransportHandshake));
        }
        return Ok(None);
    };
    let Some(known) = known(sid) else { return Err(Refusal::UnknownSid { sid: sid.to_owned() }) };
    let previous = known.transport;
    // A poll must not reach a session that has moved to WebSocket.
    if !asked.upgrade && previous != transport {
        return Err(Refusal::BadRequest(BadRequest::TransportMismatch { transport, previous }));
    }
    // The version of the protocol must not change in mid-session (engine.io 6.6.11).
    if asked.revision != known.revision {
        let (protocol, previous) = (asked.revision.number(), known.revision.number());
        return Err(Refusal::BadRequest(BadRequest::ProtocolMismatch { protocol, previous }));
    }
    if asked.upgrade && !transport.upgrades() {
        return Err(Refusal::BadRequest(BadRequest::TransportHandshake));
    }
    Ok(Some(known.session))
}

/// The check that the reference makes once the application has let a handshake in.
pub(super) fn check_revision(revision: Revision, allow_eio3: bool) -> Result<(), Refusal> {
    match revision {
        Revision::V4 => Ok(()),
        Revision::V3 if allow_eio3 => Ok(()),
        Revision::V3 => Err(Refusal::UnsupportedProtocol { protocol: revision.number() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Transport; 2] = [Transport::Polling, Transport::WebSocket];
    const GET: &str = "GET";

    fn asked<'a>(transport: &'a str, sid: Option<&'a str>, method: &'a str, upgrade: bool) -> Asked<'a> {
        let (transport, sid) = (Some(transport.into()), sid.map(Cow::from));
        Asked { transport, sid, revision: Revision::V4, method, upgrade, origin: None }
    }

    fn nowhere(asked: &Asked<'_>) -> Result<Option<()>, Refusal> {
        verify(asked, &BOTH, |_| None)
    }

    fn bad(name: &str, of: Result<Option<()>, Refusal>) {
        let refusal = of.unwrap_err();
        assert_eq!((refusal.code(), refusal.context()["name"].as_str()), (3, Some(name)));
        assert_eq!(refusal.body(), r#"{"code":3,"message":"Bad request"}"#);
    }

    #[test]
    fn the_table_of_errors() {
        for transport in ["", "constructor", "__proto__", "webtransport", "Polling"] {
            let refusal = nowhere(&asked(transport, None, GET, false)).unwrap_err();
            assert_eq!((refusal.code(), refusal.context()["transport"].as_str()), (0, Some(transport)));
        }
        let refusal = nowhere(&asked("polling", Some("__proto__"), GET, false)).unwrap_err();
        assert_eq!((refusal.code(), refusal.context()["sid"].as_str()), (1, Some("__proto__")));
        let refusal = nowhere(&asked("polling", None, "OPTIONS", false)).unwrap_err();
        assert_eq!((refusal.code(), refusal.context()["method"].as_str()), (2, Some("OPTIONS")));
        bad("TRANSPORT_HANDSHAKE_ERROR", nowhere(&asked("websocket", None, GET, false)));
        bad("TRANSPORT_HANDSHAKE_ERROR", nowhere(&asked("polling", None, GET, true)));
        let evil = Asked { origin: Some("http://a\x01"), ..asked("polling", None, GET, false) };
        bad("INVALID_ORIGIN", nowhere(&evil));
        assert_eq!(nowhere(&asked("polling", None, GET, false)), Ok(None));
        assert_eq!(nowhere(&asked("polling", Some(""), GET, false)), Ok(None));
        assert_eq!(check_revision(Revision::V3, true), Ok(()));
        let refusal = check_revision(Revision::V3, false).unwrap_err();
        assert_eq!((refusal.code(), &refusal.context()["protocol"]), (5, &json!(3)));
        let own = Refusal::Forbidden { message: Some("nope".into()) };
        assert_eq!((own.status(), own.body()), (403, r#"{"code":4,"message":"nope"}"#.to_owned()));
        assert_eq!(own.message(), "Forbidden");
    }

    #[test]
    fn the_first_check_that_fails_counts() {
        let evil = Asked { origin: Some("\x01"), ..asked("nope", Some("x"), "POST", false) };
        assert_eq!(nowhere(&evil).unwrap_err().code(), 0);
        let evil = Asked { transport: Some("polling".into()), ..evil };
        bad("INVALID_ORIGIN", nowhere(&evil));
        assert_eq!(nowhere(&Asked { origin: None, ..evil }).unwrap_err().code(), 1);
        assert_eq!(nowhere(&asked("websocket", None, "POST", false)).unwrap_err().code(), 2);
        assert_eq!(
            verify::<()>(&asked("websocket", None, GET, true), &BOTH[..1], |_| None).unwrap_err().code(),
            0
        );
    }

    #[test]
    fn a_request_must_agree_with_its_session() {
        let on = |transport| move |_: &str| Some(Known { session: (), transport, revision: Revision::V4 });
        let poll = asked("polling", Some("x"), GET, false);
        assert_eq!(verify(&poll, &BOTH, on(Transport::Polling)), Ok(Some(())));
        bad("TRANSPORT_MISMATCH", verify(&poll, &BOTH, on(Transport::WebSocket)));
        let probe = asked("websocket", Some("x"), GET, true);
        assert_eq!(verify(&probe, &BOTH, on(Transport::Polling)), Ok(Some(())));
        let old = Asked { revision: Revision::V3, ..poll };
        bad("PROTOCOL_MISMATCH", verify(&old, &BOTH, on(Transport::Polling)));
        // Both are wrong: the transport is looked at first.
        bad("TRANSPORT_MISMATCH", verify(&old, &BOTH, on(Transport::WebSocket)));
        bad("TRANSPORT_HANDSHAKE_ERROR", verify(&asked("polling", Some("x"), GET, true), &BOTH, on(BOTH[0])));
    }
}
