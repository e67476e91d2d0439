//! The opening handshake (RFC 6455 4.2): checking the request, writing the 101.

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};
use thiserror::Error;

use crate::protocol::http::{ConnectionHeader, Head, is_token, write_head};

/// Appended to the key before it is hashed (RFC 6455 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request for a WebSocket is refused; the client is at fault. Answer with [`status`](Self::status),
/// and for [`Version`](Self::Version) with the header `Sec-WebSocket-Version: 13` (RFC 6455 4.4).
///
/// ```
/// use sockring::protocol::{http::{Head, HeadLimits}, ws::handshake::{HandshakeError, check}};
///
/// let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
///     Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// let (head, _) = Head::parse(bytes, &HeadLimits::default()).unwrap().unwrap();
/// let error = check(&head).unwrap_err();
/// assert_eq!((error, error.status()), (HandshakeError::Version, 426));
/// assert_eq!(error.header(), Some(("Sec-WebSocket-Version", "13")));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Not an HTTP/1.1 GET with `Upgrade: websocket` and `Connection: upgrade` (RFC 6455 4.2.1).
    #[error("the client's request is not one for a websocket")]
    NotAnUpgrade,
    /// `Sec-WebSocket-Version` is not 13 (RFC 6455 4.4).
    #[error("the client asked for a version of websocket other than 13")]
    Version,
    /// `Sec-WebSocket-Key` is missing, repeated, or not 16 bytes in base64 (RFC 6455 4.2.1).
    #[error("the client's websocket key is missing or malformed")]
    Key,
}

impl HandshakeError {
    /// The status code to answer with: 400 or 426.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Version => 426,
            Self::NotAnUpgrade | Self::Key => 400,
        }
    }

    /// A header the answer must carry, if any.
    #[must_use]
    pub fn header(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Version => Some(("Sec-WebSocket-Version", "13")),
            Self::NotAnUpgrade | Self::Key => None,
        }
    }
}

/// A request for a WebSocket that may be accepted.
///
/// ```
/// use sockring::protocol::{http::{Head, HeadLimits}, ws::handshake};
///
/// let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
///     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
///     Sec-WebSocket-Protocol: chat, superchat\r\n\r\n";
/// let (head, _) = Head::parse(bytes, &HeadLimits::default()).unwrap().unwrap();
/// let request = handshake::check(&head).unwrap();
/// assert_eq!(request.protocols().collect::<Vec<_>>(), ["chat", "superchat"]);
/// assert_eq!(&handshake::accept_key(request.key), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Handshake<'a> {
    /// `Sec-WebSocket-Key` as sent.
    pub key: &'a str,
    head: &'a Head,
}

impl<'a> Handshake<'a> {
    /// The values of all `Sec-WebSocket-Extensions` headers, in order (RFC 6455 11.3.2).
    pub fn extensions(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let headers = self.head.headers();
        headers
            .filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-extensions"))
            .map(|(_, value)| value)
    }

    /// The subprotocols the client offers, in its order of preference (RFC 6455 11.3.4).
    pub fn protocols(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        offered_protocols(self.head.headers())
    }
}

/// The subprotocols that the fields of a request offer, in order (RFC 6455 11.3.4). What is no token is
/// passed over.
///
/// ```
/// let fields = [("Host", "a"), ("Sec-WebSocket-Protocol", "chat, superchat")];
/// let offered = sockring::protocol::ws::handshake::offered_protocols(fields);
/// assert_eq!(offered.collect::<Vec<_>>(), ["chat", "superchat"]);
/// ```
pub fn offered_protocols<'a>(
    fields: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> impl Iterator<Item = &'a str> {
    fields
        .into_iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-protocol"))
        .flat_map(|(_, value)| value.split(','))
        .map(|offer| offer.trim_matches([' ', '\t']))
        .filter(|offer| is_token(offer.as_bytes()))
}

/// Checks a request for a WebSocket (RFC 6455 4.2.1).
///
/// # Errors
///
/// A [`HandshakeError`] naming the rule; the version is looked at before the key, so that a client of another
/// version learns which one would do.
pub fn check(head: &Head) -> Result<Handshake<'_>, HandshakeError> {
    if !head.is_websocket_upgrade() {
        return Err(HandshakeError::NotAnUpgrade);
    }
    if head.header("sec-websocket-version") != Some("13") {
        return Err(HandshakeError::Version);
    }
    let mut keys = head.headers().filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
    let (Some((_, key)), None) = (keys.next(), keys.next()) else { return Err(HandshakeError::Key) };
    // 16 bytes are always 24 characters. The decoder asks for room for three bytes a group of four.
    let mut nonce = [0; 18];
    if key.len() != 24 || STANDARD.decode_slice(key, &mut nonce) != Ok(16) {
        return Err(HandshakeError::Key);
    }
    Ok(Handshake { key, head })
}

/// The value of `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`, in ASCII (RFC 6455 4.2.2).
#[must_use]
pub fn accept_key(key: &str) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize();
    let mut accept = [b'='; 28];
    // 20 bytes are 28 characters, so this cannot fail; if it could, the client would refuse the answer.
    let _ = STANDARD.encode_slice(digest, &mut accept);
    accept
}

/// Appends the 101 response (RFC 6455 4.2.2). `protocol` must be one the client offered; a name that is not a
/// token is left out. `extra` goes through the same filter as in [`write_head`].
pub fn write_response<'a>(
    out: &mut Vec<u8>,
    key: &str,
    protocol: Option<&str>,
    extra: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    let accept = accept_key(key);
    let own = [
        Some(("Upgrade", "websocket")),
        Some(("Sec-WebSocket-Accept", str::from_utf8(&accept).unwrap_or_default())),
        protocol.filter(|name| is_token(name.as_bytes())).map(|name| ("Sec-WebSocket-Protocol", name)),
    ];
    #[expect(clippy::map_identity, reason = "lets `extra` outlive the strings made here")]
    let extra = extra.into_iter().map(|(name, value)| (name, value));
    write_head(out, 101, own.into_iter().flatten().chain(extra), None, ConnectionHeader::Upgrade);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::HeadLimits;

    const LINES: &str = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes(), &HeadLimits::default()).unwrap().unwrap().0
    }

    fn error(line: &str, from: &str, to: &str) -> Option<HandshakeError> {
        assert!(LINES.contains(from), "{from}");
        check(&head(&format!("{line}\r\n{}", LINES.replace(from, to)))).err()
    }

    #[test]
    fn accepts_token_lists_in_any_case() {
        let get = "GET / HTTP/1.1";
        assert_eq!(error(get, "", ""), None);
        assert_eq!(error(get, "Upgrade: websocket", "UPGRADE: h2c, WebSocket"), None);
        assert_eq!(error(get, "Connection: Upgrade", "connection: keep-alive, upgrade"), None);
    }

    #[test]
    fn refuses_each_missing_piece() {
        let get = "GET / HTTP/1.1";
        assert_eq!(error("POST / HTTP/1.1", "", ""), Some(HandshakeError::NotAnUpgrade));
        assert_eq!(error("GET / HTTP/1.0", "", ""), Some(HandshakeError::NotAnUpgrade));
        assert_eq!(error(get, "Upgrade: websocket\r\n", ""), Some(HandshakeError::NotAnUpgrade));
        assert_eq!(
            error(get, "Connection: Upgrade", "Connection: close"),
            Some(HandshakeError::NotAnUpgrade)
        );
        assert_eq!(error(get, "Version: 13", "Version: 12"), Some(HandshakeError::Version));
        assert_eq!(error(get, "Version: 13", "Version: 13, 8"), Some(HandshakeError::Version));
        assert_eq!(error(get, "Sec-WebSocket-Version: 13\r\n", ""), Some(HandshakeError::Version));
        for key in
            ["", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ=!", "dGhl", "dGhlIHNhbXBsZSBub25jZTEy"]
        {
            let found = error(get, "dGhlIHNhbXBsZSBub25jZQ==", key);
            assert_eq!(found, Some(HandshakeError::Key), "{key}");
        }
        let twice = "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert_eq!(error(get, "\r\n\r\n", twice), Some(HandshakeError::Key));
    }

    #[test]
    fn writes_the_answer_of_the_rfc() {
        let mut out = Vec::new();
        let extra = [("Date", "x"), ("Bad", "a\r\nb")];
        write_response(&mut out, "dGhlIHNhbXBsZSBub25jZQ==", Some("chat"), extra);
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\nDate: x\r\n\
            Connection: Upgrade\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
