//! The negotiation of permessage-deflate (RFC 6455 9.1, RFC 7692 5 and 7.1).

use thiserror::Error;

use crate::protocol::http::is_token_byte;

/// Extensions of one header, and parameters of one extension, that are read. Nobody offers more than a few;
/// the head's own limit of 16 KiB bounds the rest.
const ELEMENTS_MAX: usize = 32;

/// What an operator sets about permessage-deflate, with the names of the reference.
///
/// The defaults differ from the reference's in one point: the server keeps no context from one message to the
/// next. Then all sockets of a core share a compressor, and a broadcast is compressed once for all clients
/// that have negotiated it.
///
/// ```
/// use sockring::protocol::ws::extensions::PerMessageDeflate;
///
/// let options = PerMessageDeflate { threshold: 256, ..PerMessageDeflate::default() };
/// assert_eq!((options.level, options.server_no_context_takeover), (6, true));
/// assert!(!options.client_no_context_takeover);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerMessageDeflate {
    /// Messages of fewer bytes are sent as they are: 1024 by default. As in ws, it counts only where no
    /// context is kept; with context, small messages gain the most.
    pub threshold: usize,
    /// zlib's level, 0 to 9: 6 by default.
    pub level: u8,
    /// zlib's `memLevel`, 1 to 9: 8 by default. Bytes of a compressor's buffers.
    pub mem_level: u8,
    /// Whether the server compresses each message on its own: `true` by default, and then compressors are
    /// shared. With `false` each socket has a compressor of its own from its first message on: 306 KB with
    /// the default window and `mem_level`, 180 KB with the smallest window.
    pub server_no_context_takeover: bool,
    /// `true` breaks Safari 15 and all else on iOS 15 and macOS 12, whose second message closes the socket.
    ///
    /// Whether the client is told to compress each message on its own: `false` by default. These clients
    /// build each message on those before it whatever they are told. With `true` the other clients share an
    /// inflater; with `false` each socket that has sent a compressed message keeps one of its own, 40 KB, as
    /// long as it is open, unless its client has offered to do without context.
    pub client_no_context_takeover: bool,
    /// The largest window for messages to the client, as a power of two: 9 to 15, 15 by default.
    pub server_max_window_bits: u8,
    /// The largest window for messages of the client, as a power of two: 8 to 15, 15 by default. Clients that
    /// cannot be told a limit are declined if it is below 15 and they would keep context.
    pub client_max_window_bits: u8,
}

impl Default for PerMessageDeflate {
    fn default() -> Self {
        Self {
            threshold: 1024,
            level: 6,
            mem_level: 8,
            server_no_context_takeover: true,
            client_no_context_takeover: false,
            server_max_window_bits: 15,
            client_max_window_bits: 15,
        }
    }
}

/// `Sec-WebSocket-Extensions` does not follow its grammar; the client is at fault, and the handshake fails
/// with 400 (RFC 6455 9.1).
///
/// ```
/// use sockring::protocol::ws::extensions::{MalformedExtensions, PerMessageDeflate, negotiate};
///
/// let agreed = negotiate(["permessage-deflate; ="], &PerMessageDeflate::default());
/// assert_eq!(agreed, Err(MalformedExtensions));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the client's list of extensions is malformed")]
pub struct MalformedExtensions;

/// The parameters of permessage-deflate that hold for a connection.
///
/// ```
/// use sockring::protocol::ws::extensions::{PerMessageDeflate, negotiate};
///
/// // What Chromium sends.
/// let offer = ["permessage-deflate; client_max_window_bits"];
/// let agreed = negotiate(offer, &PerMessageDeflate::default())?.expect("an offer that is taken");
/// assert_eq!((agreed.server_max_window_bits, agreed.server_no_context_takeover), (15, true));
/// assert_eq!(agreed.response(), "permessage-deflate; server_no_context_takeover");
/// # Ok::<(), sockring::protocol::ws::extensions::MalformedExtensions>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The server compresses each message on its own (RFC 7692 7.1.1.1).
    pub server_no_context_takeover: bool,
    /// So does the client (RFC 7692 7.1.1.2).
    pub client_no_context_takeover: bool,
    /// The window of the server's compressor, 8 to 15 (RFC 7692 7.1.2.1).
    pub server_max_window_bits: u8,
    /// The window of the client's compressor, 8 to 15 (RFC 7692 7.1.2.2).
    pub client_max_window_bits: u8,
    offered_server_bits: bool,
    offered_client_bits: bool,
}

impl Agreed {
    /// The value of `Sec-WebSocket-Extensions` in the answer.
    #[must_use]
    pub fn response(&self) -> String {
        let mut out = String::from("permessage-deflate");
        if self.server_no_context_takeover {
            out.push_str("; server_no_context_takeover");
        }
        if self.client_no_context_takeover {
            out.push_str("; client_no_context_takeover");
        }
        if self.offered_server_bits || self.server_max_window_bits < 15 {
            out.push_str(&format!("; server_max_window_bits={}", self.server_max_window_bits));
        }
        // To a client that did not offer it this parameter must not be sent.
        if self.offered_client_bits && self.client_max_window_bits < 15 {
            out.push_str(&format!("; client_max_window_bits={}", self.client_max_window_bits));
        }
        out
    }
}

/// Takes the first offer of permessage-deflate that can be taken; `fields` are the values of all
/// `Sec-WebSocket-Extensions` headers, in order. `Ok(None)`: there is none, and the connection goes without.
///
/// An offer with a parameter that is unknown, repeated, or has a value out of range is declined, and the next
/// one is looked at (RFC 7692 5.1). Other extensions are passed over.
///
/// # Errors
///
/// [`MalformedExtensions`] if a header breaks the grammar, wherever it does.
pub fn negotiate<'a>(
    fields: impl IntoIterator<Item = &'a str>,
    options: &PerMessageDeflate,
) -> Result<Option<Agreed>, MalformedExtensions> {
    let mut agreed = None;
    let mut elements = 0;
    for field in fields {
        let mut text = Text(field);
        while text.next_element() {
            elements += 1;
            if elements > ELEMENTS_MAX {
                return Err(MalformedExtensions);
            }
            let offer = text.extension()?;
            if agreed.is_none()
                && let Some(offer) = offer
            {
                agreed = offer.accept(options);
            }
        }
    }
    Ok(agreed)
}

/// One offer whose parameters are all sound.
#[derive(Debug, Default, Clone, Copy)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// The outer `Some`: the client understands the parameter; the inner: it limits itself.
    client_max_window_bits: Option<Option<u8>>,
}

impl Offer {
    /// Takes in a parameter; `None` if it declines the offer.
    fn param(&mut self, name: &str, value: Option<&str>) -> Option<()> {
        let once = |seen: &mut bool| (!std::mem::replace(seen, true) && value.is_none()).then_some(());
        match name {
            "server_no_context_takeover" => once(&mut self.server_no_context_takeover),
            "client_no_context_takeover" => once(&mut self.client_no_context_takeover),
            "server_max_window_bits" if self.server_max_window_bits.is_none() => {
                self.server_max_window_bits = Some(window_bits(value?)?);
                Some(())
            }
            "client_max_window_bits" if self.client_max_window_bits.is_none() => {
                self.client_max_window_bits =
                    Some(value.map(|value| window_bits(value).ok_or(())).transpose().ok()?);
                Some(())
            }
            _ => None,
        }
    }

    fn accept(&self, options: &PerMessageDeflate) -> Option<Agreed> {
        let client_no_context_takeover =
            self.client_no_context_takeover || options.client_no_context_takeover;
        let client_limit = options.client_max_window_bits.clamp(8, 15);
        let client_max_window_bits = match self.client_max_window_bits {
            Some(bits) => bits.unwrap_or(15).min(client_limit),
            // It cannot be told the limit, which is there for the context that would be kept for it.
            None if client_limit < 15 && !client_no_context_takeover => return None,
            None => 15,
        };
        Some(Agreed {
            server_no_context_takeover: self.server_no_context_takeover || options.server_no_context_takeover,
            client_no_context_takeover,
            server_max_window_bits: self
                .server_max_window_bits
                .unwrap_or(15)
                .min(options.server_max_window_bits.clamp(8, 15)),
            client_max_window_bits,
            offered_server_bits: self.server_max_window_bits.is_some(),
            offered_client_bits: self.client_max_window_bits.is_some(),
        })
    }
}

/// 8 to 15, in decimal without leading zeros (RFC 7692 7.1.2.1).
fn window_bits(value: &str) -> Option<u8> {
    Some(match value {
        "8" => 8,
        "9" => 9,
        "10" => 10,
        "11" => 11,
        "12" => 12,
        "13" => 13,
        "14" => 14,
        "15" => 15,
        _ => return None,
    })
}

/// What of a header is still to be read.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn skip_space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    /// Goes to the next element of a list, past empty ones; whether there is one.
    fn next_element(&mut self) -> bool {
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
        !self.0.is_empty()
    }

    fn take(&mut self, char: char) -> bool {
        let rest = self.0.strip_prefix(char);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn token(&mut self) -> Result<&'a str, MalformedExtensions> {
        let end = self.0.bytes().position(|byte| !is_token_byte(byte)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at_checked(end).ok_or(MalformedExtensions)?;
        self.0 = rest;
        if token.is_empty() { Err(MalformedExtensions) } else { Ok(token) }
    }

    /// A quoted string, without its quotes; what it says must be a token (RFC 6455 9.1).
    fn quoted(&mut self) -> Result<String, MalformedExtensions> {
        let mut value = String::new();
        let mut chars = self.0.char_indices();
        while let Some((at, char)) = chars.next() {
            let char = match char {
                '"' => {
                    self.0 = self.0.get(at + 1..).unwrap_or_default();
                    return if value.is_empty() { Err(MalformedExtensions) } else { Ok(value) };
                }
                '\\' => chars.next().map_or('\\', |(_, char)| char),
                char => char,
            };
            if !u8::try_from(char).is_ok_and(is_token_byte) {
                return Err(MalformedExtensions);
            }
            value.push(char);
        }
        Err(MalformedExtensions)
    }

    /// One extension with its parameters, to the comma behind it or the end. `None`: it is none that could be
    /// taken.
    fn extension(&mut self) -> Result<Option<Offer>, MalformedExtensions> {
        let name = self.token()?;
        let mut offer = name.eq_ignore_ascii_case("permessage-deflate").then(Offer::default);
        let mut params = 0;
        loop {
            self.skip_space();
            if self.0.is_empty() || self.take(',') {
                return Ok(offer);
            }
            params += 1;
            if !self.take(';') || params > ELEMENTS_MAX {
                return Err(MalformedExtensions);
            }
            self.skip_space();
            let name = self.token()?;
            self.skip_space();
            let value = if self.take('=') {
                self.skip_space();
                Some(if self.take('"') { self.quoted()? } else { self.token()?.to_owned() })
            } else {
                None
            };
            if let Some(taken) = &mut offer
                && taken.param(name, value.as_deref()).is_none()
            {
                offer = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(fields: &[&str], options: &PerMessageDeflate) -> Option<String> {
        let agreed = negotiate(fields.iter().copied(), options).expect("a sound header");
        agreed.map(|agreed| agreed.response())
    }

    const SHARED: &str = "permessage-deflate; server_no_context_takeover";

    #[test]
    fn what_clients_send() {
        let default = PerMessageDeflate::default();
        for (offer, extra) in [
            ("permessage-deflate; client_max_window_bits", ""),
            ("permessage-deflate", ""),
            (
                "Permessage-Deflate;server_no_context_takeover;client_no_context_takeover",
                "; client_no_context_takeover",
            ),
            // python `websockets`
            (
                "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
                "; server_max_window_bits=12; client_max_window_bits=12",
            ),
            ("permessage-deflate; server_max_window_bits=15", "; server_max_window_bits=15"),
            ("permessage-deflate ; server_max_window_bits = \"1\\0\" ,", "; server_max_window_bits=10"),
            (
                "x-webkit-deflate-frame, , permessage-deflate; client_max_window_bits=8",
                "; client_max_window_bits=8",
            ),
        ] {
            assert_eq!(answer(&[offer], &default), Some(format!("{SHARED}{extra}")), "{offer}");
        }
        assert_eq!(answer(&[], &default), None);
        assert_eq!(answer(&["", " ,, "], &default), None);
        assert_eq!(answer(&["permessage-bzip; level=9"], &default), None);
    }

    #[test]
    fn inflaters_are_shared_where_clients_may_be_told_so() {
        let shared = PerMessageDeflate { client_no_context_takeover: true, ..PerMessageDeflate::default() };
        let expected = format!("{SHARED}; client_no_context_takeover");
        assert_eq!(answer(&["permessage-deflate"], &shared), Some(expected));
    }

    #[test]
    fn an_offer_that_is_wrong_is_declined_and_the_next_one_taken() {
        let default = PerMessageDeflate::default();
        for params in [
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=08",
            "server_max_window_bits=10; server_max_window_bits=10",
            "client_max_window_bits=0",
            "client_max_window_bits; client_max_window_bits=9",
            "client_no_context_takeover=true",
            "server_no_context_takeover; server_no_context_takeover",
            "server_no_context_takeover=\"1\"",
            "what",
            "Server_No_Context_Takeover",
        ] {
            let offer = format!("permessage-deflate; {params}");
            assert_eq!(answer(&[&offer], &default), None, "{params}");
            assert_eq!(answer(&[&offer, "permessage-deflate"], &default).as_deref(), Some(SHARED));
            let list = format!("{offer}, permessage-deflate; server_max_window_bits=9");
            assert!(answer(&[&list], &default).is_some_and(|it| it.ends_with("server_max_window_bits=9")));
        }
        // The first one that fits, not the best.
        let two = "permessage-deflate; server_max_window_bits=9, permessage-deflate";
        assert!(answer(&[two], &default).is_some_and(|it| it.contains("=9")));
    }

    #[test]
    fn what_breaks_the_grammar_fails_the_handshake() {
        for field in [
            "permessage-deflate;",
            "permessage-deflate; =9",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=\"",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; server_max_window_bits=\"1 0\"",
            "permessage-deflate server_max_window_bits",
            "permessage-deflate; a=b c",
            "; permessage-deflate",
            "permessage-deflate, \"",
            "permessage-deflate; é",
        ] {
            let agreed = negotiate([field], &PerMessageDeflate::default());
            assert_eq!(agreed, Err(MalformedExtensions), "{field}");
        }
        let many = "a, ".repeat(ELEMENTS_MAX + 1);
        assert_eq!(negotiate([&*many], &PerMessageDeflate::default()), Err(MalformedExtensions));
    }

    #[test]
    fn the_operators_limits() {
        let options = PerMessageDeflate {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_max_window_bits: 11,
            client_max_window_bits: 10,
            ..PerMessageDeflate::default()
        };
        let pmd = "permessage-deflate";
        let answers = [
            // It could not be told to use a smaller window.
            ("", None),
            ("; client_no_context_takeover", Some("; client_no_context_takeover; server_max_window_bits=11")),
            ("; client_max_window_bits", Some("; server_max_window_bits=11; client_max_window_bits=10")),
            (
                "; client_max_window_bits=9; server_max_window_bits=15",
                Some("; server_max_window_bits=11; client_max_window_bits=9"),
            ),
            (
                "; client_max_window_bits=12; server_max_window_bits=8; server_no_context_takeover",
                Some("; server_no_context_takeover; server_max_window_bits=8; client_max_window_bits=10"),
            ),
        ];
        for (offer, expected) in answers {
            let offer = format!("{pmd}{offer}");
            let expected = expected.map(|expected| format!("{pmd}{expected}"));
            assert_eq!(answer(&[&offer], &options), expected, "{offer}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(field in "[a-z ;,=\"\\\\0-9é_]{0,60}") {
            let _ = negotiate([&*field], &PerMessageDeflate::default());
            let offer = format!("permessage-deflate; {field}");
            if let Ok(Some(agreed)) = negotiate([&*offer], &PerMessageDeflate::default()) {
                // What is answered is an offer that would be taken as it is.
                let again = agreed.response();
                prop_assert!(matches!(negotiate([&*again], &PerMessageDeflate::default()), Ok(Some(_))));
            }
        }
    }
}
