use proptest::prelude::*;

use super::*;

fn object(entries: &[(&str, Value)]) -> Value {
    Value::Object(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

/// A packet as the official client writes it.
fn packet(kind: u8, rest: &[u8], keys: u8) -> Vec<u8> {
    [&[0x82 + keys, 0xa4][..], b"type", &[kind, 0xa3], b"nsp\xa1/", rest].concat()
}

#[test]
fn reads_what_notepack_writes() {
    for (bytes, value) in [
        (&b"\xd4\0\0"[..], Value::Null),
        (b"\x91\xd4\0\0", vec![Value::Null].into()),
        (b"\x82\xa1a\xd4\0\0\xa1b\xc0", object(&[("b", Value::Null)])),
        (b"\xc4\x02\x01\x02", Bytes::from_static(&[1, 2]).into()),
        (b"\xc7\x01\0\x07", Bytes::from_static(&[7]).into()),
        (b"\xc7\x08\0\x07\x07\x07\x07\x07\x07\x07\x07", Bytes::from_static(&[7; 8]).into()),
        (b"\xd5\x09\x01\x02", vec![Value::from(9), Bytes::from_static(&[1, 2]).into()].into()),
        (b"\xcb\x3f\xf8\0\0\0\0\0\0", 1.5.into()),
        (b"\xca\x3f\xc0\0\0", 1.5.into()),
        (b"\xcf\0\x1f\xff\xff\xff\xff\xff\xff", 9_007_199_254_740_991_i64.into()),
        (b"\xd3\xff\xff\xff\xff\0\0\0\0", (-4_294_967_296_i64).into()),
        (b"\xa3\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}".into()),
        (b"\x82\xa1a\x01\xa1a\x02", object(&[("a", 2.into())])),
        (b"\x81\x05\x01", object(&[("5", 1.into())])),
    ] {
        assert_eq!(read(bytes, 5), Ok(value), "{bytes:?}");
    }
}

#[test]
fn dates_are_text() {
    let fixext8 = |millis: i64| read(&[&[0xd7, 0][..], &millis.to_be_bytes()].concat(), 1).unwrap();
    for (millis, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_763_739_550_123, "2025-11-21T15:39:10.123Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (-62_198_755_200_000, "-000001-01-01T00:00:00.000Z"),
        (8_640_000_000_000_000, "+275760-09-13T00:00:00.000Z"),
        (-8_640_000_000_000_000, "-271821-04-20T00:00:00.000Z"),
    ] {
        assert_eq!(fixext8(millis), Value::from(text));
    }
    assert_eq!((fixext8(i64::MAX), fixext8(i64::MIN)), (Value::Null, Value::Null));
    // The timestamps of the specification.
    let one = Value::from("1970-01-01T00:00:01.000Z");
    assert_eq!(read(b"\xd6\xff\0\0\0\x01", 1), Ok(one));
    let both = (500_000_000_u64 << 34) | 1;
    let half = Value::from("1970-01-01T00:00:01.500Z");
    assert_eq!(read(&[&[0xd7, 0xff][..], &both.to_be_bytes()].concat(), 1), Ok(half.clone()));
    let parts = [&[0xc7, 12, 0xff][..], &500_000_000_u32.to_be_bytes(), &1_i64.to_be_bytes()];
    assert_eq!(read(&parts.concat(), 1), Ok(half));
    let parts = [&[0xc7, 12, 0xff][..], &[0xff; 4], &i64::MIN.to_be_bytes()];
    assert_eq!(read(&parts.concat(), 1), Ok(Value::Null));
}

#[test]
fn limits() {
    let deep = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
    assert!(read(&deep(3), 3).is_ok());
    assert_eq!(read(&deep(4), 3), Err(MsgpackError::TooDeep));
    // An extension of an unknown type is an array, and nests like one.
    assert!(read(b"\x91\xc7\x01\x05\x07", 2).is_ok());
    assert_eq!(read(b"\x91\xc7\x01\x05\x07", 1), Err(MsgpackError::TooDeep));
    assert!(read(&deep(MAX_DEPTH), usize::MAX).is_ok());
    assert_eq!(read(&deep(MAX_DEPTH + 1), usize::MAX), Err(MsgpackError::TooDeep));
    assert_eq!(read(&deep(1_000_000), usize::MAX), Err(MsgpackError::TooDeep));
    let keys = [vec![0x81; 100_000], vec![0xc0; 100_000]].concat();
    assert_eq!(read(&keys, usize::MAX), Err(MsgpackError::Key));
    for announced in [&b"\xdd\xff\xff\xff\xff"[..], b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"] {
        assert_eq!(read(announced, 9), Err(MsgpackError::Truncated));
        assert!(read(&[announced, &[0xc0]].concat(), 9).is_err());
    }
    assert_eq!(read(b"\xc6\x7f\xff\xff\xff\x01", 9), Err(MsgpackError::Truncated));
    assert_eq!(read(b"\xc9\x7f\xff\xff\xff\0\x01", 9), Err(MsgpackError::Truncated));
    assert_eq!(read(b"", 9), Err(MsgpackError::Truncated));
    assert_eq!(read(b"\xc0\xc0", 9), Err(MsgpackError::Trailing));
    assert_eq!(read(b"\xc1", 9), Err(MsgpackError::Marker));
    let nested = (0..=MAX_DEPTH).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    assert_eq!(write(&mut Vec::new(), &nested), Err(MsgpackError::TooDeep));
}

#[test]
fn every_kind_of_packet() {
    let body = |message: Vec<u8>| decode(&message, 9).map(|packet| packet.body);
    assert_eq!(body(packet(0, b"", 0)), Ok(Body::Connect(None)));
    // What socket.io-client sends without `auth`, and with every event.
    assert_eq!(body(packet(0, b"\xa4data\xd4\0\0", 1)), Ok(Body::Connect(None)));
    let options = packet(2, b"\xa4data\x91\xa1a\xa7options\x81\xa8compress\xc3", 2);
    assert_eq!(body(options), Ok(Body::Event { name: "a".into(), args: vec![] }));
    assert_eq!(body(packet(1, b"", 0)), Ok(Body::Disconnect));
    assert_eq!(body(packet(2, b"\xa4data\x91\x05", 1)), Ok(Body::Event { name: "5".into(), args: vec![] }));
    assert_eq!(body(packet(3, b"\xa4data\x90", 1)), Ok(Body::Ack(vec![])));
    assert_eq!(body(packet(4, b"\xa4data\xa1a", 1)), Ok(Body::ConnectError("a".into())));
    let message = packet(2, b"\xa4data\x92\xa1a\xc4\x01\x07\xa2id\x07", 2);
    let found = decode(&message, 9).unwrap();
    assert_eq!((found.nsp.as_str(), found.id), ("/", Some(7)));
    let args = vec![Bytes::from_static(&[7]).into()];
    assert_eq!(found.body, Body::Event { name: "a".into(), args });
    for cut in 0..message.len() {
        assert!(decode(&message[..cut], 9).is_err());
    }
    assert_eq!(decode(&[&message[..], b"\0"].concat(), 9), Err(MsgpackError::Trailing.into()));
}

#[test]
fn refuses_what_the_reference_refuses() {
    let data = |kind, data: &[u8]| packet(kind, &[&b"\xa4data"[..], data].concat(), 1);
    let event = |rest: &[u8]| packet(2, &[&b"\xa4data\x91\xa1a\xa2id"[..], rest].concat(), 2);
    for (message, error) in [
        (b"\x01".to_vec(), SioError::NoPacket),
        (b"\x80".to_vec(), SioError::UnknownKind),
        (b"\x81\xa4type\x01".to_vec(), SioError::NoPacket),
        (b"\x82\xa4type\x01\xa3nsp\x01".to_vec(), SioError::NoPacket),
        (packet(5, b"", 0), SioError::UnknownKind),
        (packet(0xff, b"", 0), SioError::UnknownKind),
        (packet(0xc0, b"", 0), SioError::UnknownKind),
        (data(0, b"\xc0"), SioError::Payload),
        (data(0, b"\x90"), SioError::Payload),
        (data(1, b"\x80"), SioError::Payload),
        (packet(2, b"", 0), SioError::Payload),
        (data(2, b"\x80"), SioError::Payload),
        (data(2, b"\x90"), SioError::Payload),
        (data(2, b"\x91\xc0"), SioError::EventName),
        (data(2, b"\x91\xaadisconnect"), SioError::ReservedEvent),
        (packet(3, b"", 0), SioError::Payload),
        (data(3, b"\xa1a"), SioError::Payload),
        (packet(4, b"", 0), SioError::Payload),
        (data(4, b"\x90"), SioError::Payload),
        (event(b"\xa1a"), SioError::AckId),
        (event(b"\xc0"), SioError::AckId),
        (event(b"\xff"), SioError::AckId),
        (event(b"\xcf\0\x20\0\0\0\0\0\0"), SioError::AckId),
    ] {
        assert_eq!(decode(&message, 9), Err(error), "{message:?}");
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-70_000..70_000_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| Bytes::from(bytes).into()),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
            proptest::collection::btree_map(".{0,8}", inner, 0..20)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let args = || proptest::collection::vec(any_value(), 0..4);
    let object = |value: Value| Value::Object(vec![("a".into(), value)]);
    let body = prop_oneof![
        proptest::option::of(any_value().prop_map(object)).prop_map(Body::Connect),
        Just(Body::Disconnect),
        ("[a-z]{0,3}", args()).prop_map(|(name, args)| Body::Event { name: name.into(), args }),
        args().prop_map(Body::Ack),
        any_value().prop_map(object).prop_map(Body::ConnectError),
    ];
    ("(/[a-z]{0,3})?", proptest::option::of(0..=MAX_ACK_ID), body)
        .prop_map(|(nsp, id, body)| Packet::new(&nsp, id, body))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 5 } else { 500 }))]

    #[test]
    fn packets_survive(packet in any_packet()) {
        let message = encode(&packet).unwrap();
        prop_assert_eq!(decode(&message, MAX_DEPTH), Ok(packet));
        for cut in [0, 1, message.len() / 2, message.len() - 1] {
            prop_assert!(decode(&message[..cut], MAX_DEPTH).is_err());
        }
    }

    #[test]
    fn nothing_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&data, MAX_DEPTH);
        if let Ok(value) = read(&data, MAX_DEPTH) {
            let mut out = Vec::new();
            write(&mut out, &value).unwrap();
            let again = read(&out, MAX_DEPTH).unwrap();
            // Not a number is not itself.
            prop_assert_eq!(format!("{:?}", again), format!("{:?}", value));
        }
    }
}
