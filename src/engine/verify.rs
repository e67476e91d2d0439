//! Is this request one for a session, a new session, or none? (engine.io `verify`) Pure.

use std::borrow::Cow;

use super::Transport;
use super::sid::SocketSid;
use crate::protocol::eio::Revision;

/// Why a request is refused: the error table of engine.io.
///
/// ```
/// use sockring::engine::Refusal;
/// assert_eq!(Refusal::UnknownSid.body(), r#"{"code":1,"message":"Session ID unknown"}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Code 0: no such transport, or not enabled.
    UnknownTransport,
    /// Code 1: no such session.
    UnknownSid,
    /// Code 2: a session is opened with GET.
    BadHandshakeMethod,
    /// Code 3: the request contradicts its session, or makes no sense.
    BadRequest,
    /// Code 4: the application refused; with its own message, or the default one.
    Forbidden(Option<Cow<'static, str>>),
    /// Code 5: not the version of the protocol that is served.
    UnsupportedProtocol,
}

impl Refusal {
    /// The code in the body of the answer.
    pub fn code(&self) -> u8 {
        match self {
            Self::UnknownTransport => 0,
            Self::UnknownSid => 1,
            Self::BadHandshakeMethod => 2,
            Self::BadRequest => 3,
            Self::Forbidden(_) => 4,
            Self::UnsupportedProtocol => 5,
        }
    }

    /// The message in the body of the answer.
    pub fn message(&self) -> &str {
        match self {
            Self::UnknownTransport => "Transport unknown",
            Self::UnknownSid => "Session ID unknown",
            Self::BadHandshakeMethod => "Bad handshake method",
            Self::BadRequest => "Bad request",
            Self::Forbidden(Some(message)) => message,
            Self::Forbidden(None) => "Forbidden",
            Self::UnsupportedProtocol => "Unsupported protocol version",
        }
    }

    /// The status of the answer to a polling request; a WebSocket handshake is always refused with 400.
    pub fn status(&self) -> u16 {
        if matches!(self, Self::Forbidden(_)) { 403 } else { 400 }
    }

    /// The JSON body of the answer to a polling request.
    pub fn body(&self) -> String {
        serde_json::json!({ "code": self.code(), "message": self.message() }).to_string()
    }
}

/// What a request asks, as far as the engine's own rules go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    pub(super) transport: Option<Cow<'a, str>>,
    pub(super) sid: Option<Cow<'a, str>>,
    pub(super) revision: Revision,
    pub(super) get: bool,
    /// Whether the request is a WebSocket handshake.
    pub(super) upgrade: bool,
    /// The `Origin` header.
    pub(super) origin: Option<&'a str>,
}

/// Where a request belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It opens a session, if the application allows it.
    Handshake,
    /// It belongs to a session of this core.
    Session(SocketSid),
    /// It belongs to a session of another core.
    Elsewhere(usize),
}

/// What the core knows about a session id.
pub(super) enum Known {
    Here(Transport, Revision),
    Elsewhere(usize),
    Nowhere,
}

/// The checks of the reference, in its order.
pub(super) fn verify(
    asked: &Asked<'_>,
    transports: &[Transport],
    allow_eio3: bool,
    known: impl FnOnce(&SocketSid) -> Known,
) -> Result<Verdict, Refusal> {
    let transport = match asked.transport.as_deref() {
        Some("polling") => Transport::Polling,
        Some("websocket") => Transport::WebSocket,
        _ => return Err(Refusal::UnknownTransport),
    };
    if !transports.contains(&transport) {
        return Err(Refusal::UnknownTransport);
    }
    if asked
        .origin
        .is_some_and(|origin| origin.bytes().any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7F))
    {
        return Err(Refusal::BadRequest);
    }
    let Some(sid) = &asked.sid else { return verify_handshake(asked, transport, allow_eio3) };
    let sid = SocketSid::parse(sid).ok_or(Refusal::UnknownSid)?;
    match known(&sid) {
        Known::Nowhere => return Err(Refusal::UnknownSid),
        Known::Elsewhere(core) => return Ok(Verdict::Elsewhere(core)),
        // A poll must not reach a session that has moved to WebSocket.
        Known::Here(current, _) if !asked.upgrade && current != transport => return Err(Refusal::BadRequest),
        // The version of the protocol must not change in mid-session (engine.io 6.6.11).
        Known::Here(_, revision) if revision != asked.revision => return Err(Refusal::BadRequest),
        Known::Here(..) => {}
    }
    Ok(Verdict::Session(sid))
}

fn verify_handshake(asked: &Asked<'_>, transport: Transport, allow_eio3: bool) -> Result<Verdict, Refusal> {
    if !asked.get {
        return Err(Refusal::BadHandshakeMethod);
    }
    if transport == Transport::WebSocket && !asked.upgrade {
        return Err(Refusal::BadRequest);
    }
    if asked.revision == Revision::V3 && !allow_eio3 {
        return Err(Refusal::UnsupportedProtocol);
    }
    Ok(Verdict::Handshake)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Transport; 2] = [Transport::Polling, Transport::WebSocket];

    fn asked<'a>(transport: &'a str, sid: Option<&'a str>, get: bool, upgrade: bool) -> Asked<'a> {
        let (transport, sid) = (Some(transport.into()), sid.map(Cow::from));
        Asked { transport, sid, revision: Revision::V4, get, upgrade, origin: None }
    }

    #[test]
    fn the_table_of_errors() {
        let nowhere = |asked: &Asked<'_>| verify(asked, &BOTH, false, |_| Known::Nowhere);
        for transport in ["", "constructor", "__proto__", "webtransport"] {
            assert_eq!(nowhere(&asked(transport, None, true, false)), Err(Refusal::UnknownTransport));
        }
        assert_eq!(nowhere(&asked("polling", Some("__proto__"), true, false)), Err(Refusal::UnknownSid));
        assert_eq!(nowhere(&asked("polling", None, false, false)), Err(Refusal::BadHandshakeMethod));
        assert_eq!(nowhere(&asked("websocket", None, true, false)), Err(Refusal::BadRequest));
        let old = Asked { revision: Revision::V3, ..asked("polling", None, true, false) };
        assert_eq!(nowhere(&old), Err(Refusal::UnsupportedProtocol));
        assert_eq!(verify(&old, &BOTH, true, |_| Known::Nowhere), Ok(Verdict::Handshake));
        let evil = Asked { origin: Some("http://a\x01"), ..asked("polling", None, true, false) };
        assert_eq!(nowhere(&evil), Err(Refusal::BadRequest));
        assert_eq!(nowhere(&asked("polling", None, true, false)), Ok(Verdict::Handshake));
    }

    #[test]
    fn sessions_here_and_elsewhere() {
        let text = SocketSid::from_parts([1; 12], 2, 9).to_string();
        let poll = asked("polling", Some(&text), true, false);
        assert_eq!(verify(&poll, &BOTH, true, |sid| Known::Elsewhere(sid.core())), Ok(Verdict::Elsewhere(2)));
        let upgraded = verify(&poll, &BOTH, true, |_| Known::Here(Transport::WebSocket, Revision::V4));
        assert_eq!(upgraded, Err(Refusal::BadRequest));
        let probe = asked("websocket", Some(&text), true, true);
        assert!(matches!(
            verify(&probe, &BOTH, true, |_| Known::Here(Transport::Polling, Revision::V4)),
            Ok(Verdict::Session(_))
        ));
        let old = verify(&probe, &BOTH, true, |_| Known::Here(Transport::Polling, Revision::V3));
        assert_eq!(old, Err(Refusal::BadRequest), "the version does not change");
    }
}
