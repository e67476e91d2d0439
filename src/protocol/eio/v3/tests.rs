use proptest::prelude::*;

use super::*;

fn text(body: &str) -> Result<Vec<Packet<'_>>, EioError> {
    decode_payload(body).collect()
}

fn binary(body: &[u8]) -> Result<Vec<Packet<'_>>, EioError> {
    decode_binary_payload(body).collect()
}

fn message(data: &str) -> Packet<'_> {
    Packet::Text { kind: PacketType::Message, data }
}

#[test]
fn lengths_count_as_javascript_does() {
    for (packet, length) in [("4a", 2), ("4é", 2), ("4€", 2), ("4🙂", 3), ("4", 1), ("4🙂é€a", 6)] {
        let body = format!("{length}:{packet}");
        assert_eq!(text(&body), Ok(vec![message(packet.get(1..).unwrap())]));
        let mut out = Vec::new();
        write_text(&mut out, Mode::Text, packet);
        assert_eq!(out, body.as_bytes());
        for wrong in (0..9).filter(|wrong| *wrong != length) {
            assert!(text(&format!("{wrong}:{packet}")) != Ok(vec![message(packet.get(1..).unwrap())]));
        }
    }
}

#[test]
fn refuses_what_is_no_payload() {
    for (body, error) in [
        ("", EioError::Empty),
        ("4a", EioError::Length),
        (":4a", EioError::Length),
        ("2:4", EioError::Length),
        ("2", EioError::Length),
        ("2:", EioError::Length),
        ("-1:4", EioError::Length),
        (" 2:4a", EioError::Length),
        ("1e1:4", EioError::Length),
        ("0x2:4a", EioError::Length),
        ("99999999999:4a", EioError::Length),
        ("9999999999:4a", EioError::Length),
        ("00000000000000000002:4a", EioError::Length),
        // Half a character.
        ("2:4🙂", EioError::Length),
        ("2:4a3:", EioError::Length),
        ("2:4axyz", EioError::Length),
        ("2:9a", EioError::UnknownType),
        ("1:é", EioError::UnknownType),
        ("1:b", EioError::Empty),
        ("2:b2", EioError::UnknownType),
    ] {
        assert_eq!(text(body), Err(error), "{body}");
    }
}

#[test]
fn packets_of_no_length_are_no_packets() {
    assert_eq!(text("0:"), Ok(vec![]));
    assert_eq!(text("0:2:4a0:0:"), Ok(vec![message("a")]));
}

#[test]
fn refuses_what_is_no_binary_payload() {
    for (body, error) in [
        (&b""[..], EioError::Empty),
        (&[0], EioError::Length),
        (&[0, 1], EioError::Length),
        (&[0, 0xff, b'2'], EioError::Length),
        (&[0, 1, 0xff], EioError::Length),
        (&[0, 10, 0xff, b'2'], EioError::Length),
        (&[0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0xff, b'2'], EioError::Length),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, b'2'], EioError::Length),
        (&[2, 1, 0xff, b'2'], EioError::UnknownType),
        (&[0, 0, 0xff], EioError::Empty),
        (&[1, 0, 0xff], EioError::Empty),
        (&[1, 1, 0xff, 2], EioError::UnknownType),
        (&[0, 2, 0xff, b'4', 0xc3], EioError::Utf8),
        (&[0, 1, 0xff, b'2', 0], EioError::Length),
    ] {
        assert_eq!(binary(body), Err(error), "{body:?}");
    }
}

#[test]
fn text_in_a_binary_payload_may_be_base64() {
    let body = [0, 6, 0xff, b'b', b'4', b'A', b'Q', b'I', b'D'];
    assert_eq!(binary(&body), Ok(vec![Packet::Binary(vec![1, 2, 3].into())]));
}

#[test]
fn base64_with_line_breaks_is_read_and_they_count() {
    let bytes = Packet::Binary(vec![1, 2, 3, 4].into());
    assert_eq!(text("12:b4AQI\nDBA==\n2:4a"), Ok(vec![bytes, message("a")]));
    assert_eq!(text("5:b4-_8"), Ok(vec![Packet::Binary(vec![0xfb, 0xff].into())]));
}

#[test]
fn a_payload_of_separators_or_lengths_takes_linear_time() {
    // Quadratic decoders take minutes for these; so does miri, for any decoder.
    let thousands = if cfg!(miri) { 1 } else { 1000 };
    let nothing = "0:".repeat(500 * thousands);
    assert_eq!(decode_payload(&nothing).count(), 0);
    let pings = "1:2".repeat(300 * thousands);
    assert_eq!(decode_payload(&pings).count(), 300 * thousands);
    let wide = "2:4é".repeat(200 * thousands);
    assert_eq!(decode_payload(&wide).count(), 200 * thousands);
    let digits = "1".repeat(1000 * thousands);
    assert_eq!(text(&digits), Err(EioError::Length));
    let bytes: Vec<u8> = [0, 1, 0xff, b'2'].repeat(250 * thousands);
    assert_eq!(decode_binary_payload(&bytes).count(), 250 * thousands);
    assert_eq!(binary(&vec![0; 1000 * thousands]), Err(EioError::Length));
}

/// A packet of either kind.
#[derive(Debug, Clone)]
enum Sent {
    Text(String),
    Binary(Vec<u8>),
}

fn any_packet() -> impl Strategy<Value = Sent> {
    prop_oneof![
        "[0-6].{0,12}".prop_map(Sent::Text),
        prop::collection::vec(any::<u8>(), 0..12).prop_map(Sent::Binary),
    ]
}

fn written(packets: &[Sent], mode: Mode) -> Vec<u8> {
    let mut out = Vec::new();
    for packet in packets {
        match packet {
            Sent::Text(packet) => write_text(&mut out, mode, packet),
            Sent::Binary(data) => write_binary(&mut out, mode, data),
        }
    }
    out
}

fn expected(packets: &[Sent]) -> Vec<Packet<'_>> {
    packets
        .iter()
        .map(|packet| match packet {
            Sent::Text(packet) => decode_text(packet).unwrap(),
            Sent::Binary(data) => Packet::Binary(data.into()),
        })
        .collect()
}

proptest! {
    #[test]
    fn round_trip(packets in prop::collection::vec(any_packet(), 1..8)) {
        let body = String::from_utf8(written(&packets, Mode::Text)).unwrap();
        prop_assert_eq!(text(&body), Ok(expected(&packets)));
        let body = written(&packets, Mode::Binary);
        prop_assert_eq!(binary(&body), Ok(expected(&packets)));
    }

    #[test]
    fn a_cut_payload_is_refused_or_a_shorter_one(
        packets in prop::collection::vec(any_packet(), 1..5),
        cut in 0usize..60,
    ) {
        let body = String::from_utf8(written(&packets, Mode::Text)).unwrap();
        let all = expected(&packets);
        if let Some((head, _)) = body.split_at_checked(cut.min(body.len())) {
            let found: Vec<_> = decode_payload(head).take_while(Result::is_ok).map(Result::unwrap).collect();
            prop_assert!(all.starts_with(&found));
        }
        let body = written(&packets, Mode::Binary);
        let head = body.get(..cut.min(body.len())).unwrap();
        let found: Vec<_> =
            decode_binary_payload(head).take_while(Result::is_ok).map(Result::unwrap).collect();
        prop_assert!(all.starts_with(&found));
    }

    #[test]
    fn any_bytes_are_taken_or_refused(
        body in prop::collection::vec(prop_oneof![0u8..12, Just(0xff), any::<u8>()], 0..60),
        like in "([0-9]{0,3}:?[0-6b]?.{0,4}){0,6}",
    ) {
        // Every packet takes at least two bytes of the body, so this ends.
        prop_assert!(decode_binary_payload(&body).count() <= body.len() / 2 + 1);
        prop_assert!(decode_payload(&like).count() <= like.len() / 2 + 1);
    }
}
