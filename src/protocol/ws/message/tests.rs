use super::*;
use crate::protocol::ws::deflate::{Deflater, Settings};
use crate::protocol::ws::extensions::PerMessageDeflate;
use crate::protocol::ws::frame::{close_payload, header, write_masked_frame};
use proptest::prelude::*;

const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// A message that outlives the decoder.
#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Message<'_>> for Owned {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.into()),
            Message::Binary(bytes) => Self::Binary(bytes.into()),
            Message::Ping(bytes) => Self::Ping(bytes.into()),
            Message::Pong(bytes) => Self::Pong(bytes.into()),
            Message::Close(reason) => Self::Close(reason.map(|(code, text)| (code, text.into()))),
        }
    }
}

/// Feeds `wire` cut at `cuts`, and checks the contract of `decode` on the way.
fn run(wire: &[u8], cuts: &[usize], limits: &Limits) -> Result<(Vec<Owned>, bool), (Vec<Owned>, WsError)> {
    run_extended(wire, cuts, limits, None)
}

/// The same, with permessage-deflate if there is an inflater.
fn run_extended(
    wire: &[u8],
    cuts: &[usize],
    limits: &Limits,
    mut inflater: Option<Inflater>,
) -> Result<(Vec<Owned>, bool), (Vec<Owned>, WsError)> {
    let mut wire = wire.to_vec();
    let (mut decoder, mut seen, mut start) = (Decoder::new(), Vec::new(), 0);
    for end in cuts.iter().copied().chain([wire.len()]) {
        let mut input = &mut wire[start..end];
        start = end;
        while !input.is_empty() {
            let length = input.len();
            let consumed = match decoder.decode_extended(input, limits, inflater.as_mut()) {
                Ok(step) => {
                    assert!(step.message.is_some() || step.consumed == length);
                    seen.extend(step.message.map(Owned::from));
                    step.consumed
                }
                Err(error) => return Err((seen, error)),
            };
            input = &mut input[consumed..];
        }
        decoder.release();
    }
    Ok((seen, decoder.is_idle()))
}

fn frames(list: &[(OpCode, bool, &[u8])]) -> Vec<u8> {
    let mut wire = Vec::new();
    for (op, fin, payload) in list {
        write_masked_frame(&mut wire, *op, *fin, KEY, payload);
    }
    wire
}

fn error(list: &[(OpCode, bool, &[u8])]) -> WsError {
    run(&frames(list), &[], &Limits::default()).expect_err("an error").1
}

use OpCode::{Binary, Close, Continuation, Ping, Pong, Text};

#[test]
fn an_idle_decoder_is_one_pointer() {
    assert_eq!(size_of::<Decoder>(), size_of::<usize>());
    let mut decoder = Decoder::new();
    assert!(decoder.is_idle());
    decoder.release();
    let mut wire = frames(&[(Text, true, b"whole")]);
    assert_eq!(decoder.decode(&mut wire, &Limits::default()).unwrap().consumed, 11);
    assert!(decoder.is_idle(), "a whole frame leaves nothing behind");
    let step = decoder.decode(&mut [], &Limits::default()).unwrap();
    assert_eq!((step.consumed, step.message), (0, None));
}

#[test]
fn fragments_with_control_frames_between() {
    let wire = frames(&[
        (Text, false, "h\u{20ac}".as_bytes()),
        (Ping, true, b"p"),
        (Continuation, false, b""),
        (Pong, true, b""),
        (Continuation, true, b"y"),
        (Binary, true, b""),
        (Close, true, b""),
    ]);
    let expected = [
        Owned::Ping(b"p".into()),
        Owned::Pong(vec![]),
        Owned::Text("h€y".into()),
        Owned::Binary(vec![]),
        Owned::Close(None),
    ];
    for cut in 0..wire.len() {
        assert_eq!(run(&wire, &[cut], &Limits::default()), Ok((expected.to_vec(), true)), "{cut}");
    }
    let every: Vec<usize> = (0..wire.len()).collect();
    assert_eq!(run(&wire, &every, &Limits::default()), Ok((expected.to_vec(), true)));
}

#[test]
fn messages_do_not_nest() {
    assert_eq!(error(&[(Continuation, true, b"x")]), WsError::UnexpectedContinuation);
    assert_eq!(error(&[(Text, false, b"x"), (Text, true, b"y")]), WsError::ExpectedContinuation);
    assert_eq!(error(&[(Binary, true, b"x"), (Continuation, true, b"y")]), WsError::UnexpectedContinuation);
}

#[test]
fn close_frames() {
    assert_eq!(error(&[(Close, true, b"x")]), WsError::CloseLength);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        assert_eq!(error(&[(Close, true, &close_payload(code, ""))]), WsError::CloseCode(code));
    }
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999] {
        let wire = frames(&[(Close, true, &close_payload(code, "é"))]);
        let expected = vec![Owned::Close(Some((code, "é".into())))];
        assert_eq!(run(&wire, &[], &Limits::default()), Ok((expected, true)));
    }
    assert_eq!(error(&[(Close, true, b"\x03\xe8\xff")]).close_code(), 1007);
}

#[test]
fn too_big_is_known_before_the_payload() {
    let limits = Limits { message_bytes: 10, fragments: 3 };
    let announced = |op, fin, len| {
        let mut bytes = header(op, fin, len).to_vec();
        bytes[1] |= 0x80;
        bytes.extend_from_slice(&KEY);
        bytes
    };
    let alone = run(&announced(Text, true, 11), &[], &limits);
    assert_eq!(alone, Err((vec![], WsError::TooBig)));
    let sum = [frames(&[(Binary, false, b"123456")]), announced(Continuation, true, 5)].concat();
    assert_eq!(run(&sum, &[], &limits), Err((vec![], WsError::TooBig)));
    assert_eq!(run(&sum, &[3, 15], &limits), Err((vec![], WsError::TooBig)));
    let huge = announced(Binary, true, 1 << 40);
    assert_eq!(run(&huge, &[], &Limits::default()).unwrap_err().1.close_code(), 1009);
    assert!(run(&frames(&[(Binary, true, b"1234567890")]), &[], &limits).is_ok());
    let many = [
        (Binary, false, &b""[..]),
        (Continuation, false, b""),
        (Continuation, false, b""),
        (Continuation, true, b""),
    ];
    assert_eq!(run(&frames(&many), &[], &limits), Err((vec![], WsError::TooManyFragments)));
    assert_eq!(WsError::TooManyFragments.close_code(), 1008);
}

#[test]
fn memory_follows_arrival() {
    let mut wire = header(Binary, true, 900_000).to_vec();
    wire[1] |= 0x80;
    wire.extend_from_slice(&KEY);
    wire.extend_from_slice(&[0; 100]);
    let mut decoder = Decoder::new();
    decoder.decode(&mut wire, &Limits::default()).unwrap();
    let held = decoder.partial.as_ref().and_then(|partial| partial.message.as_ref()).unwrap();
    assert!(held.bytes.capacity() < 1000, "{}", held.bytes.capacity());
}

#[test]
fn invalid_utf8_is_reported_when_it_arrives() {
    // Autobahn 6.4: valid text, then a byte that cannot follow, in one frame or several, then much more to
    // come.
    let mut text = "κόσμε".as_bytes().to_vec();
    text.extend_from_slice(&[0xf4, 0x90]);
    text.extend_from_slice(&[b'x'; 100]);
    let wire = frames(&[(Text, true, &text)]);
    let bad = wire.len() - 101;
    assert!(run(&wire[..bad], &[4], &Limits::default()).is_ok());
    assert_eq!(run(&wire[..=bad], &[4], &Limits::default()), Err((vec![], WsError::InvalidUtf8)));
    let wire = frames(&[(Text, false, &text[..11]), (Continuation, false, &text[11..])]);
    assert_eq!(run(&wire, &[], &Limits::default()), Err((vec![], WsError::InvalidUtf8)));
    // Half a character at the end of the message.
    assert_eq!(error(&[(Text, false, b"a\xe2\x82"), (Continuation, true, b"")]), WsError::InvalidUtf8);
    assert_eq!(error(&[(Text, true, b"a\xe2\x82")]), WsError::InvalidUtf8);
    // A character over three frames is fine; a surrogate never.
    let wire =
        frames(&[(Text, false, b"\xe2"), (Continuation, false, b"\x82"), (Continuation, true, b"\xac")]);
    assert_eq!(run(&wire, &[], &Limits::default()), Ok((vec![Owned::Text("€".into())], true)));
    assert_eq!(error(&[(Text, false, b"\xed\xa0")]).close_code(), 1007);
}

/// A compressed message in as many frames as `cuts` make of it.
fn deflated(op: OpCode, payload: &[u8], cuts: &[usize]) -> Vec<u8> {
    let (mut wire, mut start) = (Vec::new(), 0);
    for (at, end) in cuts.iter().copied().chain([payload.len()]).enumerate() {
        let (op, begin) = (if at == 0 { op } else { Continuation }, wire.len());
        write_masked_frame(&mut wire, op, at == cuts.len(), KEY, &payload[start..end]);
        if at == 0 {
            wire[begin] |= 0x40;
        }
        start = end;
    }
    wire
}

fn compress(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(&Settings::new(&PerMessageDeflate::default(), 15)).next(message, &mut out);
    out
}

#[test]
fn compressed_messages_in_any_pieces() {
    let text = "compress me, ".repeat(30);
    let packed = compress(text.as_bytes());
    let ping = frames(&[(Ping, true, b"p")]);
    let mut wire = deflated(Text, &packed, &[3, 3, 7]);
    // Between the fragments.
    let first = frames(&[(Text, false, &packed[..3])]).len();
    wire.splice(first..first, ping.iter().copied());
    wire.extend(frames(&[(Binary, true, b"plain")]));
    wire.extend(deflated(Binary, &packed, &[]));
    wire.extend(deflated(Text, &[0], &[]));
    wire.extend(deflated(Text, &[], &[]));
    let expected = vec![
        Owned::Ping(b"p".into()),
        Owned::Text(text.clone()),
        Owned::Binary(b"plain".into()),
        Owned::Binary(text.into_bytes()),
        Owned::Text(String::new()),
        Owned::Text(String::new()),
    ];
    for cut in 0..wire.len() {
        let back = run_extended(&wire, &[cut], &Limits::default(), Some(Inflater::alone()));
        assert_eq!(back, Ok((expected.clone(), true)), "{cut}");
    }
    assert_eq!(run(&wire, &[], &Limits::default()), Err((vec![], WsError::ReservedBits)));
}

#[test]
fn compressed_messages_that_are_refused() {
    let error = |wire: &[u8], limits: &Limits| {
        run_extended(wire, &[], limits, Some(Inflater::alone())).expect_err("an error").1
    };
    let limits = Limits { message_bytes: 1000, fragments: 3 };
    // Inflated beyond the limit, although what arrives is small; and what arrives beyond the limit.
    assert_eq!(error(&deflated(Binary, &compress(&[0; 1001]), &[]), &limits), WsError::TooBig);
    assert!(
        run_extended(&deflated(Binary, &compress(&[0; 1000]), &[]), &[], &limits, Some(Inflater::alone()))
            .is_ok()
    );
    assert_eq!(error(&deflated(Binary, &[0; 1001], &[]), &limits), WsError::TooBig);
    assert_eq!(error(&deflated(Binary, &[0; 6], &[1, 2, 3]), &limits), WsError::TooManyFragments);
    assert_eq!(error(&deflated(Binary, b"\xff\xff\xff", &[]), &limits), WsError::Corrupt);
    assert_eq!(WsError::Corrupt.close_code(), 1007);
    // Text is judged by what it is inflated to.
    assert_eq!(error(&deflated(Text, &compress(b"a\xff"), &[1]), &limits), WsError::InvalidUtf8);
    let mut rsv1 = frames(&[(Text, false, b"a"), (Continuation, true, b"b")]);
    rsv1[7] |= 0x40;
    assert_eq!(error(&rsv1, &limits), WsError::ReservedBits);
    for op in [Ping, Pong, Close] {
        let mut wire = frames(&[(op, true, b"")]);
        wire[0] |= 0x40;
        assert_eq!(error(&wire, &limits), WsError::ReservedBits);
    }
}

fn any_frames() -> impl Strategy<Value = Vec<(Vec<u8>, Owned)>> {
    let fragmented = |text: bool, payload: Vec<u8>, cuts: Vec<prop::sample::Index>| {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        cuts.extend([0, payload.len()]);
        cuts.sort_unstable();
        let mut wire = Vec::new();
        let pieces: Vec<_> = cuts.windows(2).map(|pair| &payload[pair[0]..pair[1]]).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let op = if at > 0 {
                Continuation
            } else if text {
                Text
            } else {
                Binary
            };
            write_masked_frame(&mut wire, op, at + 1 == pieces.len(), KEY, piece);
        }
        let owned = match String::from_utf8(payload.clone()) {
            Ok(payload) if text => Owned::Text(payload),
            _ => Owned::Binary(payload),
        };
        (wire, owned)
    };
    let cuts = || prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let message = prop_oneof![
        (".{0,300}", cuts()).prop_map(move |(text, cuts)| fragmented(true, text.into_bytes(), cuts)),
        (prop::collection::vec(any::<u8>(), 0..300), cuts())
            .prop_map(move |(bytes, cuts)| fragmented(false, bytes, cuts)),
        prop::collection::vec(any::<u8>(), 0..=125)
            .prop_map(|bytes| (frames(&[(Ping, true, &bytes)]), Owned::Ping(bytes))),
    ];
    prop::collection::vec(message, 1..5)
}

proptest! {
    #[test]
    fn round_trip_in_any_pieces(
        messages in any_frames(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let wire: Vec<u8> = messages.iter().flat_map(|(wire, _)| wire.clone()).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
        cuts.sort_unstable();
        let expected: Vec<Owned> = messages.into_iter().map(|(_, owned)| owned).collect();
        prop_assert_eq!(run(&wire, &cuts, &Limits::default()), Ok((expected, true)));
    }

    /// Arbitrary frames, well-formed more often than not: no panic, and cutting changes nothing.
    #[test]
    fn any_bytes_in_any_pieces(
        list in prop::collection::vec(
            (prop::sample::select(vec![0x00u8, 0x80, 0x01, 0x81, 0x02, 0x82, 0x88, 0x89, 0x8a, 0x83, 0xc1]),
             prop::collection::vec(prop_oneof![3 => 0x20u8..0x7f, 1 => any::<u8>()], 0..20)),
            0..6,
        ),
        noise in prop::collection::vec(any::<u8>(), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut wire = Vec::new();
        for (first, payload) in list {
            let start = wire.len();
            write_masked_frame(&mut wire, Text, true, [0; 4], &payload);
            wire[start] = first;
        }
        wire.extend_from_slice(&noise);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
        cuts.sort_unstable();
        let limits = Limits { message_bytes: 30, fragments: 4 };
        prop_assert_eq!(run(&wire, &[], &limits), run(&wire, &cuts, &limits));
    }
}
