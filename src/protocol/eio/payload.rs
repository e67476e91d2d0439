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
