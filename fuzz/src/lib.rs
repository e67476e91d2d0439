//! What the fuzzer runs: one function for each codec of the wire, which panics if a promise is broken.
//!
//! `make fuzz` feeds them; `tests/fuzz_corpus.rs` of the main crate includes this file and replays the corpus on
//! stable. Inputs have at most 600 bytes there, so limits that are arguments are chosen for that to pass them.

use sockring::protocol::eio::v3;
use sockring::protocol::http::{BodyReader, ChunkedDecoder, Framing, Glimpse, Head, HeadLimits, HttpError};
use sockring::protocol::query::{self, MAX_PAIRS, Query};
use sockring::protocol::sio::{self, Body, MAX_DEPTH, Parser};
use sockring::protocol::ws::deflate::{Deflater, Inflater, Settings};
use sockring::protocol::ws::extensions::{PerMessageDeflate, negotiate};
use sockring::protocol::ws::{WsError, message};
use sockring::protocol::{eio, proxy, ws};

/// Heads: a prefix of a head is never parsed as another head, and what is kept agrees with itself.
pub fn http_head(data: &[u8]) {
    let limits = HeadLimits { head_bytes: 480, target_bytes: 160, headers: 12 };
    let whole = Head::parse(data, &limits);
    // The first byte, if there is any, is as good a place to cut as any other.
    let cut = data.first().map_or(0, |byte| usize::from(*byte)).min(data.len());
    match (Head::parse(&data[..cut], &limits), &whole) {
        (Ok(Some((_, early))), Ok(Some((_, late)))) => assert_eq!(early, *late),
        (Ok(Some(_)), other) => panic!("a head that more bytes made into {other:?}"),
        (Err(_), Ok(_)) => panic!("a head that was refused before it was whole"),
        _ => {}
    }
    if let Err(error) = &whole {
        assert!(matches!(error.status(), 400..=599));
    }
    let Ok(Some((head, used))) = whole else { return };
    assert!(used <= data.len() && data[..used].ends_with(b"\r\n\r\n"));
    assert!(head.headers().count() <= limits.headers && head.target().len() <= limits.target_bytes);
    assert!(head.path().starts_with('/') || head.path() == "*");
    assert!(head.target().contains(head.query()));
    for (name, value) in head.headers() {
        assert!(head.header(&name.to_ascii_uppercase()).is_some());
        assert!(!value.contains(['\r', '\n', '\0']) && value.trim_matches([' ', '\t']) == value);
    }
    let _ = (head.framing(), head.keep_alive(), head.expects_continue(), head.host());
    if let Ok(request) = ws::handshake::check(&head) {
        let mut out = Vec::new();
        ws::handshake::write_response(&mut out, request.key, request.protocols().next(), head.headers());
        assert!(out.ends_with(b"\r\n\r\n") && out.windows(4).filter(|end| end == b"\r\n\r\n").count() == 1);
    }
}

/// Chunked bodies: cutting changes nothing, the limit holds.
pub fn http_chunked(data: &[u8]) {
    const MAX_BODY: usize = 100;
    let run = |pieces: &[&[u8]]| -> Result<(Vec<u8>, usize, bool), HttpError> {
        let (mut decoder, mut out, mut total) = (ChunkedDecoder::new(MAX_BODY), Vec::new(), 0);
        for piece in pieces {
            let (used, done) = decoder.decode(piece, &mut out)?;
            total += used;
            if done {
                return Ok((out, total, true));
            }
            assert_eq!(used, piece.len());
        }
        Ok((out, total, false))
    };
    let whole = run(&[data]);
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(whole, run(&bytes));
    assert!(whole.as_ref().is_err() || whole.as_ref().is_ok_and(|(out, _, _)| out.len() <= MAX_BODY));
    // What a connection keeps of a body: the same bytes, whatever is taken in between, and nothing else.
    let read = |pieces: &[&[u8]]| -> Result<(Vec<u8>, usize, bool), HttpError> {
        let (mut reader, mut out, mut total) = (BodyReader::new(Framing::Chunked, MAX_BODY), Vec::new(), 0);
        for (i, piece) in pieces.iter().enumerate() {
            let used = reader.read(piece)?;
            total += used;
            assert!(reader.is_complete() || used == piece.len());
            assert_eq!(reader.received() as usize, out.len() + reader.waiting());
            if i % 3 == 2 {
                out.extend(reader.take());
            }
        }
        out.extend(reader.take());
        assert_eq!(reader.waiting(), 0);
        Ok((out, total, reader.is_complete()))
    };
    assert_eq!(whole, read(&[data]));
    assert_eq!(whole, read(&bytes));
    let length = data.first().map_or(0, |byte| u64::from(*byte));
    let mut reader = BodyReader::new(Framing::Length(length), MAX_BODY);
    let used: usize = data.chunks(7).map(|piece| reader.read(piece).expect("any bytes are a body")).sum();
    assert_eq!(used, data.len().min(length as usize));
    assert_eq!(reader.take(), data[..used]);
}

/// What is seen of a head that is refused: never more than was sent, the same as of the whole head, and nothing
/// that could not be sent back.
pub fn http_glimpse(data: &[u8]) {
    let Some(seen) = Glimpse::of(data) else { return };
    assert!(seen.path().starts_with('/') && seen.path().bytes().all(|byte| byte.is_ascii_graphic()));
    let cut = data.len() / 2;
    let early = Glimpse::of(&data[..cut]);
    for name in ["origin", "Access-Control-Request-Headers", "a", ""] {
        let value = seen.header(name);
        assert!(!value.unwrap_or_default().contains(['\r', '\n', '\0']));
        if let Some(early) = early.and_then(|early| early.header(name)) {
            assert_eq!(Some(early), value);
        }
    }
    if let Some(early) = early {
        assert!(seen.method() == early.method() && seen.path().starts_with(early.path()));
    }
    if let Ok(Some((head, _))) = Head::parse(data, &HeadLimits::default()) {
        assert_eq!((head.method(), head.path()), (seen.method(), seen.path()));
        if let Some(origin) = seen.header("origin") {
            assert_eq!(head.header("origin"), Some(origin));
        }
    }
}

/// WebSocket messages: cutting changes nothing, limits hold. The first byte says where to cut, the second
/// whether messages may be compressed.
pub fn ws_message(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    let Some((extension, data)) = data.split_first() else { return };
    let limits = message::Limits { message_bytes: 200, fragments: 5 };
    let run = |cut: usize| -> (Vec<String>, Option<WsError>, bool) {
        let mut data = data.to_vec();
        let (mut decoder, mut seen) = (message::Decoder::new(), Vec::new());
        let mut inflater = [None, Some(Inflater::alone()), Some(Inflater::with_context())]
            .into_iter()
            .nth(usize::from(extension % 3))
            .flatten();
        for piece in data.chunks_mut(cut) {
            let mut input = piece;
            while !input.is_empty() {
                let length = input.len();
                let step = match decoder.decode_extended(input, &limits, inflater.as_mut()) {
                    Ok(step) => step,
                    Err(error) => return (seen, Some(error), false),
                };
                assert!(step.message.is_some() || step.consumed == length);
                seen.extend(step.message.map(|message| format!("{message:?}")));
                let consumed = step.consumed;
                input = &mut input[consumed..];
            }
            decoder.release();
        }
        (seen, None, decoder.is_idle())
    };
    let whole = run(data.len().max(1));
    assert_eq!(whole, run(usize::from(*cut).max(1)));
    assert_eq!(whole, run(1));
    if let Some(error) = whole.1 {
        assert!(matches!(error.close_code(), 1002 | 1007..=1009));
    }
}

/// Polling payloads: what is decoded can be written and decoded again.
pub fn eio_payload(data: &[u8]) {
    let Ok(body) = str::from_utf8(data) else { return };
    let mut again = Vec::new();
    let packets: Vec<_> = eio::decode_payload(body).take_while(Result::is_ok).map(Result::unwrap).collect();
    for packet in &packets {
        if !again.is_empty() {
            again.push(eio::SEPARATOR);
        }
        match packet {
            eio::Packet::Text { kind, data } => eio::write_text(&mut again, *kind, data),
            eio::Packet::Binary(bytes) => eio::write_base64(&mut again, bytes),
        }
    }
    let again = String::from_utf8(again).expect("packets are text");
    if !packets.is_empty() {
        let back: Result<Vec<_>, _> = eio::decode_payload(&again).collect();
        assert_eq!(back, Ok(packets));
    }
}

/// Payloads of Engine.IO v3: what is decoded, as text or as bytes, can be written in both modes and decoded
/// again.
pub fn eio_v3_payload(data: &[u8]) {
    let known = |packet: &Result<eio::Packet<'_>, eio::EioError>| packet.is_ok();
    let text = str::from_utf8(data).unwrap_or_default();
    let from_text: Vec<_> = v3::decode_payload(text).take_while(known).map(Result::unwrap).collect();
    let from_bytes: Vec<_> = v3::decode_binary_payload(data).take_while(known).map(Result::unwrap).collect();
    for packets in [from_text, from_bytes] {
        // A packet is never shorter than its length, a separator and its type.
        assert!(packets.len() * 3 <= data.len() && (packets.is_empty() || !data.is_empty()));
        for mode in [v3::Mode::Text, v3::Mode::Binary] {
            let mut again = Vec::new();
            for packet in &packets {
                match packet {
                    eio::Packet::Text { kind, data } => {
                        let mut text = Vec::new();
                        eio::write_text(&mut text, *kind, data);
                        v3::write_text(&mut again, mode, str::from_utf8(&text).expect("packets are text"));
                    }
                    eio::Packet::Binary(bytes) => v3::write_binary(&mut again, mode, bytes),
                }
            }
            if packets.is_empty() {
                continue;
            }
            let back: Result<Vec<_>, _> = match mode {
                v3::Mode::Text => v3::decode_payload(str::from_utf8(&again).expect("text")).collect(),
                v3::Mode::Binary => v3::decode_binary_payload(&again).collect(),
            };
            assert_eq!(back.as_ref(), Ok(&packets));
        }
    }
}

/// Socket.IO packets: JSON is understood as by another parser, events survive being written and read again, and
/// no more leaves than limits and what came allow. The text ends at the first 0x1e; the rest, cut at further
/// ones, are attachments.
pub fn sio_decode(data: &[u8]) {
    let mut pieces = data.split(|byte| *byte == eio::SEPARATOR);
    let Ok(text) = str::from_utf8(pieces.next().unwrap_or_default()) else { return };
    json(text);
    let limits = sio::Limits { attachment_bytes: 200, ..sio::Limits::default() };
    let (mut decoder, mut parser) = (sio::Decoder::new(), Parser::new());
    let Ok(mut packet) = decoder.text(text, &mut parser, &limits) else { return };
    for attachment in pieces {
        if packet.is_some() || decoder.is_idle() {
            break;
        }
        let Ok(next) = decoder.binary(attachment, &limits) else { return };
        packet = next;
    }
    let Some(packet) = packet else { return };
    assert!(decoder.is_idle());
    let Body::Event { name, args } = &packet.body else { return };
    let _ = sio::from_args::<(String, u64, Option<Vec<u8>>)>(args);
    // The codec takes values back in as one argument; a namespace with a `?` in it would be cut.
    let sent = sio::Value::Array(args.clone());
    let Ok(encoded) = sio::event(&packet.nsp, packet.id, name, &sent) else {
        panic!("{name} cannot be sent")
    };
    // `1e15` has four times as many digits when they are written out, at most; the numbers of placeholders
    // become longer when one attachment becomes several.
    let attachments = encoded.attachments.iter().map(|attachment| attachment.len()).sum::<usize>();
    assert!(attachments <= limits.attachment_bytes, "{attachments} bytes of attachments leave");
    assert!(encoded.text.len() <= 5 * data.len() + 20, "{} bytes leave", encoded.text.len());
    let text = String::from_utf8(encoded.text).expect("packets are text");
    let limits = sio::Limits { attachments: usize::MAX, attachment_bytes: usize::MAX, ..limits };
    let mut back = decoder.text(&text, &mut parser, &limits).expect("what was written can be read");
    for attachment in &encoded.attachments {
        back = match decoder.binary(attachment, &limits) {
            // An object that only looked like a placeholder, in a packet without attachments.
            Err(sio::SioError::Placeholder) => return,
            other => other.expect("what was written can be read"),
        };
    }
    let back = back.expect("a whole packet");
    assert_eq!((&back.nsp, back.id), (&packet.nsp, packet.id));
    let Body::Event { name: again, args: found } = &back.body else { panic!("not an event") };
    assert_eq!(again, name);
    // As JSON, in which binary is a list of numbers, infinity is null, and it does not matter what was too deep to
    // be a value: one array deeper than it came, more is.
    let [sent, found] = [&[sent][..], found].map(|args| serde_json::to_string(args).expect("json"));
    assert_eq!(once_each(&found), once_each(&sent));
}

/// JSON in which no key is repeated: in what is too deep they may be.
fn once_each(json: &str) -> String {
    Parser::new().parse(json, MAX_DEPTH).expect("json").to_string()
}

/// Packets as MessagePack: what is decoded can be written and decoded again, to the same. The first byte is the
/// depth.
pub fn sio_msgpack(data: &[u8]) {
    use sio::msgpack::{self, MsgpackError};

    let Some((depth, data)) = data.split_first() else { return };
    let Ok(packet) = msgpack::decode(data, usize::from(*depth)) else { return };
    let written = msgpack::encode(&packet).expect("what was read can be written");
    // A date of 6 bytes is a text of 25, and what is no UTF-8 is three bytes for one.
    assert!(written.len() <= 5 * data.len() + 20, "{} bytes of {}", written.len(), data.len());
    // Compared as text, since not a number is not itself; the query is not written.
    let sent = format!("{:?}", sio::Packet { query: None, ..packet });
    assert_eq!(msgpack::decode(&written, usize::from(*depth)).map(|back| format!("{back:?}")), Ok(sent));
    for end in [0, 1, written.len() / 2, written.len() - 1] {
        let cut = msgpack::decode(&written[..end], MAX_DEPTH);
        assert_eq!(cut, Err(MsgpackError::Truncated.into()));
    }
}

/// Compares with another parser, as far as the two mean to agree: it refuses lone surrogates and numbers that no
/// float holds, and nests 127 deep.
fn json(text: &str) {
    let ours = Parser::new().parse(text, MAX_DEPTH);
    match (ours, serde_json::from_str::<serde_json::Value>(text)) {
        (Ok(ours), Ok(theirs)) => same(&ours, &theirs),
        (Err(error), Ok(theirs)) => panic!("{error} in {theirs}"),
        (Ok(ours), Err(error)) => {
            let error = error.to_string();
            let known = ["recursion limit", "number out of range"].iter().any(|known| error.contains(known));
            assert!(known || text.contains("\\u"), "{ours} is {error}");
        }
        (Err(_), Err(_)) => {}
    }
}

fn same(ours: &sio::Value, theirs: &serde_json::Value) {
    match (ours, theirs) {
        (sio::Value::Deep(_), _) => {}
        (sio::Value::Array(ours), serde_json::Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len());
            ours.iter().zip(theirs).for_each(|(ours, theirs)| same(ours, theirs));
        }
        (sio::Value::Object(entries), serde_json::Value::Object(theirs)) => {
            assert_eq!(entries.len(), theirs.len());
            entries.iter().for_each(|(key, value)| same(value, &theirs[key]));
        }
        (sio::Value::Number(ours), serde_json::Value::Number(theirs)) => {
            let (ours, theirs) = (ours.as_f64(), theirs.as_f64().expect("a number"));
            // The other parser does not round correctly in its last digits.
            assert!(ours == theirs || ((ours - theirs) / ours).abs() < 1e-14, "{ours} is {theirs}");
        }
        (ours, theirs) => {
            assert_eq!((ours.as_str(), ours.as_bool()), (theirs.as_str(), theirs.as_bool()));
            assert_eq!(ours.is_null(), theirs.is_null());
        }
    }
}

/// Queries: finding is the same as getting, and nothing is longer than it was.
pub fn query(data: &[u8]) {
    let Ok(raw) = str::from_utf8(data) else { return };
    let query = Query::parse(raw);
    assert!(query.iter().count() <= MAX_PAIRS);
    for (key, _) in query.iter() {
        assert_eq!(query::find(raw, key).as_deref(), query.get(key));
    }
    assert_eq!(query::find(raw, "transport").as_deref(), query.get("transport"));
}

/// Headers of proxies: a prefix is never read as another header, what comes behind changes nothing, and
/// limits hold.
pub fn proxy(data: &[u8]) {
    let whole = proxy::parse(data);
    for cut in 0..data.len() {
        match (proxy::parse(&data[..cut]), &whole) {
            (Ok(Some(early)), Ok(Some(late))) => assert_eq!(early, *late),
            (Err(early), Err(late)) => assert_eq!(early, *late),
            (Ok(None), _) => {}
            (early, late) => panic!("more bytes made {late:?} of {early:?}"),
        }
    }
    match whole {
        Ok(Some((_, used))) => assert!(used <= data.len() && used <= proxy::BINARY_MAX),
        Ok(None) => assert!(data.len() < proxy::BINARY_MAX),
        Err(_) => {}
    }
}

/// Inflating: no input inflates beyond the limit or disturbs the next. The first byte is the limit; the rest is
/// cut into messages at each 0xff.
pub fn ws_inflate(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let limit = usize::from(*first) * 16;
    // RFC 7692 7.2.3.1
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let (mut alone, mut context) = (Inflater::alone(), Some(Inflater::with_context()));
    for message in data.split(|byte| *byte == 0xff) {
        let once = alone.message(message, limit).map(<[u8]>::to_vec);
        assert!(once.as_ref().map_or(0, Vec::len) <= limit);
        assert_eq!(alone.message(&hello, 5), Ok(&b"Hello"[..]));
        assert_eq!(alone.message(message, limit).map(<[u8]>::to_vec), once);
        // One with context is of no use after an error.
        context = context.and_then(|mut inflater| {
            let length = inflater.message(message, limit).ok()?.len();
            assert!(length <= limit);
            Some(inflater)
        });
    }
}

/// Compressing: what we compress is inflated again. The first two bytes are settings; the rest is cut into
/// messages at each 0xff. Apart from inflating, since a compressor's tables make a run twenty times slower.
pub fn ws_deflate(data: &[u8]) {
    let [first, second, data @ ..] = data else { return };
    let options = PerMessageDeflate { level: second / 26, mem_level: 1 + first % 9, ..Default::default() };
    let mut deflater = Deflater::new(&Settings::new(&options, 8 + second % 8));
    let chained = first & 0x80 != 0;
    let mut inflater = if chained { Inflater::with_context() } else { Inflater::alone() };
    let mut packed = Vec::new();
    for message in data.split(|byte| *byte == 0xff) {
        packed.clear();
        if chained {
            deflater.next(message, &mut packed);
            assert_eq!(inflater.message(&packed, message.len()), Ok(message));
        } else if deflater.alone(message, &mut packed) {
            assert!(packed.len() < message.len());
            assert_eq!(inflater.message(&packed, message.len()), Ok(message));
            assert_eq!(inflater.message(&packed, message.len() - 1), Err(WsError::TooBig));
        } else {
            assert!(packed.is_empty());
        }
    }
}

/// Offers of extensions: what is agreed keeps to the operator's limits and can be offered again.
pub fn ws_extensions(data: &[u8]) {
    let [first, second, data @ ..] = data else { return };
    let Ok(text) = str::from_utf8(data) else { return };
    let options = PerMessageDeflate {
        server_no_context_takeover: first & 1 == 1,
        client_no_context_takeover: first & 2 == 2,
        server_max_window_bits: second & 15,
        client_max_window_bits: second >> 4,
        ..Default::default()
    };
    let Ok(Some(agreed)) = negotiate(text.split('\n'), &options) else { return };
    let limit = |bits: u8| 8..=bits.clamp(8, 15);
    assert!(limit(options.server_max_window_bits).contains(&agreed.server_max_window_bits));
    assert!((8..=15).contains(&agreed.client_max_window_bits));
    assert!(agreed.server_no_context_takeover || !options.server_no_context_takeover);
    assert!(agreed.client_no_context_takeover || !options.client_no_context_takeover);
    let response = agreed.response();
    let Ok(Some(again)) = negotiate([response.as_str()], &options) else {
        // A client that cannot be told of a limit answers nothing about it.
        assert!(options.client_max_window_bits < 15, "{response}");
        return;
    };
    assert_eq!(again.server_max_window_bits, agreed.server_max_window_bits);
    assert_eq!(again.server_no_context_takeover, agreed.server_no_context_takeover);
    assert_eq!(again.client_no_context_takeover, agreed.client_no_context_takeover);
}
