//! Several packets in one HTTP body (engine.io-protocol v4, "HTTP long-polling").

use super::packet::{EioError, Packet, decode_text};

/// Stands between the packets of a payload: U+001E, record separator.
pub const SEPARATOR: u8 = 0x1e;

/// Decodes the packets of a polling body one by one, without a list: a body of a million separators costs
/// nothing until it is walked, and the caller is to stop at the first error. An empty body is one error, as
/// an empty piece is.
///
/// ```
/// use sockring::protocol::eio::{EioError, decode_payload};
///
/// assert_eq!(decode_payload("4a\u{1e}bAQ==\u{1e}3").count(), 3);
/// assert_eq!(decode_payload("").collect::<Vec<_>>(), [Err(EioError::Empty)]);
/// ```
pub fn decode_payload(body: &str) -> impl Iterator<Item = Result<Packet<'_>, EioError>> {
    body.split(char::from(SEPARATOR)).map(decode_text)
}

/// Takes the next packet off what is left of a payload; `None` is left after the last.
///
/// ```
/// use sockring::protocol::eio::next_packet;
/// let mut rest = Some("4a\u{1e}4b");
/// assert!(next_packet(&mut rest).is_some_and(|packet| packet.is_ok()));
/// assert_eq!(rest, Some("4b"));
/// ```
pub fn next_packet<'a>(rest: &mut Option<&'a str>) -> Option<Result<Packet<'a>, EioError>> {
    let body = rest.take()?;
    let (packet, after) = match body.split_once(char::from(SEPARATOR)) {
        Some((packet, after)) => (packet, Some(after)),
        None => (body, None),
    };
    *rest = after;
    Some(decode_text(packet))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::eio::{PacketType, write_base64, write_text};
    use proptest::prelude::*;

    #[test]
    fn empty_pieces_are_errors() {
        for body in ["", "\u{1e}", "4a\u{1e}", "\u{1e}4a", "4a\u{1e}\u{1e}4b"] {
            assert!(decode_payload(body).any(|packet| packet == Err(EioError::Empty)), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(packets in prop::collection::vec(
            prop_oneof![
                "[^\u{1e}]{0,10}".prop_map(Ok),
                prop::collection::vec(any::<u8>(), 0..10).prop_map(Err),
            ],
            1..10,
        )) {
            let mut body = Vec::new();
            for packet in &packets {
                if !body.is_empty() {
                    body.push(SEPARATOR);
                }
                match packet {
                    Ok(text) => write_text(&mut body, PacketType::Message, text),
                    Err(bytes) => write_base64(&mut body, bytes),
                }
            }
            let body = String::from_utf8(body).unwrap();
            let back: Vec<_> = decode_payload(&body)
                .map(|packet| match packet.unwrap() {
                    Packet::Text { data, .. } => Ok(data.to_owned()),
                    Packet::Binary(bytes) => Err(bytes.into_owned()),
                })
                .collect();
            prop_assert_eq!(back, packets);
        }

        #[test]
        fn any_text_is_taken_or_refused(body in "[0-6b\u{1e}=A-C]{0,60}") {
            let pieces = body.split('\u{1e}').count();
            prop_assert_eq!(decode_payload(&body).count(), pieces);
        }
    }
}
