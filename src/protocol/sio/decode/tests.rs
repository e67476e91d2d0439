use super::*;
use crate::protocol::sio;
use proptest::prelude::*;

fn text(text: &str) -> Result<Option<Packet>, SioError> {
    Decoder::new().text(text, &mut Parser::new(), &Limits::default())
}

fn body(packet: &str) -> Body {
    text(packet).unwrap().unwrap().body
}

#[test]
fn every_kind_of_packet() {
    let auth = Value::Object(vec![("a".into(), 1.into())]);
    assert_eq!(body("0"), Body::Connect(None));
    assert_eq!(body("0{\"a\":1}"), Body::Connect(Some(auth.clone())));
    assert_eq!(body("1"), Body::Disconnect);
    assert_eq!(body("1/chat,"), Body::Disconnect);
    assert_eq!(body("2[\"a\",1]"), Body::Event { name: "a".into(), args: vec![1.into()] });
    assert_eq!(body("2[\"error\"]"), Body::Event { name: "error".into(), args: vec![] });
    assert_eq!(body("2[\"__proto__\"]"), Body::Event { name: "__proto__".into(), args: vec![] });
    assert_eq!(body("2[12]"), Body::Event { name: "12".into(), args: vec![] });
    assert_eq!(body("2[1.5]"), Body::Event { name: "1.5".into(), args: vec![] });
    assert_eq!(body("31[]"), Body::Ack(vec![]));
    assert_eq!(body("31"), Body::Ack(vec![]));
    assert_eq!(body("4"), Body::ConnectError(Value::Null));
    assert_eq!(body("4\"no\""), Body::ConnectError("no".into()));
    assert_eq!(body("4{\"a\":1}"), Body::ConnectError(auth));
    assert_eq!(text("2"), Ok(None));
    assert_eq!(text("2/chat,"), Ok(None));
    // An id without a payload; a namespace that runs to the end; white space before the payload.
    assert_eq!(text("41").unwrap().unwrap().id, Some(1));
    assert_eq!(text("2/chat[\"a\"]"), Ok(None));
    assert_eq!(body("2 [\"a\"]"), Body::Event { name: "a".into(), args: vec![] });
}

#[test]
fn heads() {
    let head = |packet: &str| {
        let packet = text(packet).unwrap().unwrap();
        (packet.nsp.to_string(), packet.query.map(String::from), packet.id)
    };
    assert_eq!(head("2[\"a\"]"), ("/".into(), None, None));
    assert_eq!(head("20[\"a\"]"), ("/".into(), None, Some(0)));
    assert_eq!(head("2/chat,12[\"a\"]"), ("/chat".into(), None, Some(12)));
    assert_eq!(head("0/chat"), ("/chat".into(), None, None));
    assert_eq!(head("0/,"), ("/".into(), None, None));
    assert_eq!(head("0/chat?token=1&b,{}"), ("/chat".into(), Some("token=1&b".into()), None));
    assert_eq!(head("0/?x"), ("/".into(), Some("x".into()), None));
    assert_eq!(head("0/é💥,"), ("/é💥".into(), None, None));
    assert_eq!(head("39007199254740991[]").2, Some(MAX_ACK_ID));
    assert_eq!(head("3000000000000000000000000000001[]").2, Some(1));
}

#[test]
fn refuses_what_the_reference_refuses() {
    for (packet, error) in [
        ("", SioError::UnknownKind),
        ("7", SioError::UnknownKind),
        ("a", SioError::UnknownKind),
        ("é", SioError::UnknownKind),
        ("0[1]", SioError::Payload),
        ("0null", SioError::Payload),
        ("0\"a\"", SioError::Payload),
        ("1{}", SioError::Payload),
        ("2{}", SioError::Payload),
        ("2[]", SioError::Payload),
        ("2\"a\"", SioError::Payload),
        ("2[null]", SioError::EventName),
        ("2[{}]", SioError::EventName),
        ("2[[\"a\"]]", SioError::EventName),
        ("2[true]", SioError::EventName),
        ("2[\"connect\"]", SioError::ReservedEvent),
        ("2[\"connect_error\"]", SioError::ReservedEvent),
        ("2[\"disconnect\"]", SioError::ReservedEvent),
        ("2[\"disconnecting\"]", SioError::ReservedEvent),
        ("2[\"newListener\"]", SioError::ReservedEvent),
        ("2[\"removeListener\"]", SioError::ReservedEvent),
        ("31{}", SioError::Payload),
        ("31null", SioError::Payload),
        ("4[]", SioError::Payload),
        ("2[\"a\"", SioError::Json(JsonError::Syntax)),
        ("2[\"a\"]x", SioError::Json(JsonError::Syntax)),
        ("39007199254740992[]", SioError::AckId),
        ("399999999999999999999999[]", SioError::AckId),
        ("2-1[\"a\"]", SioError::Json(JsonError::Syntax)),
        ("5", SioError::Attachments),
        ("51", SioError::Attachments),
        ("5-", SioError::Attachments),
        ("50-[\"a\"]", SioError::Attachments),
        ("5-1-[\"a\"]", SioError::Attachments),
        ("5+1-[\"a\"]", SioError::Attachments),
        ("5 1-[\"a\"]", SioError::Attachments),
        ("51.5-[\"a\"]", SioError::Attachments),
        ("5[\"a-\"]", SioError::Attachments),
        ("511-[\"a\"]", SioError::TooManyAttachments),
        ("599999999999999999999999-[\"a\"]", SioError::TooManyAttachments),
        ("51-", SioError::Payload),
        ("61-", SioError::Payload),
        ("51-{}", SioError::Payload),
        ("51-[{\"_placeholder\":true,\"num\":0}]", SioError::EventName),
    ] {
        assert_eq!(text(packet), Err(error), "{packet}");
    }
}

/// What `JSON.parse` takes never closes a connection.
#[test]
fn takes_what_the_reference_takes() {
    for args in [
        "1e400,-1e400",
        r#""\ud83d","\udc00x""#,
        &format!("{}{}", "[".repeat(128), "]".repeat(128)),
        &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        &format!("{}1{}", r#"{"a":"#.repeat(50_000), "}".repeat(50_000)),
        &"9".repeat(400),
        "1e-99999999999999999999,0e99999999999999999999",
    ] {
        for packet in [format!("2[\"a\",{args}]"), format!("31[{args}]"), format!("0{{\"a\":[{args}]}}")] {
            assert!(matches!(text(&packet), Ok(Some(_))), "{}", &packet[..packet.len().min(80)]);
        }
    }
    assert_eq!(body("2[1e400,1]"), Body::Event { name: "Infinity".into(), args: vec![1.into()] });
    assert_eq!(body("2[-1e400]"), Body::Event { name: "-Infinity".into(), args: vec![] });
}

/// One attachment that many placeholders refer to, as a client that means harm sends it.
#[test]
fn every_reference_counts() {
    let placeholder = r#"{"_placeholder":true,"num":0}"#;
    let decoded = |references: usize, bytes: usize, limits: &Limits| {
        let mut decoder = Decoder::new();
        let packet = format!(r#"51-["a",{}]"#, vec![placeholder; references].join(","));
        assert_eq!(decoder.text(&packet, &mut Parser::new(), limits), Ok(None));
        decoder.binary(&vec![7; bytes], limits)
    };
    let limits = Limits { attachment_bytes: 100, ..Limits::default() };
    // The reference takes a second one.
    let Ok(Some(Packet { body: Body::Event { args, .. }, .. })) = decoded(2, 50, &limits) else {
        panic!("an event")
    };
    assert_eq!(args, vec![Value::Binary(vec![7; 50].into()); 2]);
    assert_eq!(decoded(2, 51, &limits), Err(SioError::AttachmentsTooLarge));
    assert!(decoded(1, 100, &limits).is_ok());
    assert!(decoded(1000, 0, &limits).is_ok());
    assert_eq!(decoded(3000, 1_000_000, &Limits::default()), Err(SioError::AttachmentsTooLarge));
    assert!(decoded(10, 1_000_000, &Limits::default()).is_ok());
}

#[test]
fn a_placeholder_that_is_too_deep_to_be_looked_at_is_refused() {
    let limits = Limits::default();
    let deep = |inside: &str| format!("{}{inside}{}", "[".repeat(140), "]".repeat(140));
    for (inside, taken) in [(r#"{"_placeholder":true,"num":9}"#, false), (r#"{"place":true}"#, true)] {
        let packet = format!(r#"51-["a",{{"_placeholder":true,"num":0}},{}]"#, deep(inside));
        let mut decoder = Decoder::new();
        assert_eq!(decoder.text(&packet, &mut Parser::new(), &limits), Ok(None));
        assert_eq!(decoder.binary(b"x", &limits).is_ok(), taken, "{inside}");
    }
}

#[test]
fn attachments_come_back_in_place() {
    let (mut decoder, mut parser, limits) = (Decoder::new(), Parser::new(), Limits::default());
    let (zero, one) = (r#"{"num":0,"_placeholder":true,"z":1}"#, r#"{"_placeholder":true,"num":1}"#);
    let packet = format!(r#"52-/n,3["a",{{"x":[{one}],"y":{zero}}},{one}]"#);
    assert_eq!(decoder.text(&packet, &mut parser, &limits), Ok(None));
    assert_eq!(decoder.binary(b"one", &limits), Ok(None));
    assert!(!decoder.is_idle());
    let packet = decoder.binary(b"", &limits).unwrap().unwrap();
    assert!(decoder.is_idle());
    assert_eq!((packet.nsp.as_str(), packet.id), ("/n", Some(3)));
    let Body::Event { name, args } = packet.body else { panic!("an event") };
    let empty = || Value::Binary(Bytes::new());
    let object = Value::Object(vec![
        ("x".into(), vec![empty()].into()),
        ("y".into(), Bytes::from_static(b"one").into()),
    ]);
    assert_eq!((name.as_str(), args), ("a", vec![object, empty()]));
    // An ack whose attachment nobody refers to.
    assert_eq!(decoder.text("61-0[1]", &mut parser, &limits), Ok(None));
    assert_eq!(decoder.binary(b"x", &limits).unwrap().unwrap().body, Body::Ack(vec![1.into()]));
    // Without attachments a placeholder is an object like any other.
    let Body::Event { args, .. } = body(r#"2["a",{"_placeholder":true,"num":0}]"#) else {
        panic!("an event")
    };
    assert!(args[0].as_object().is_some());
}

#[test]
fn attachments_are_checked() {
    let (mut parser, limits) = (Parser::new(), Limits::default());
    assert_eq!(Decoder::new().binary(b"x", &limits), Err(SioError::UnexpectedBinary));
    let mut waiting = |num: &str| {
        let mut decoder = Decoder::new();
        let packet = format!(r#"51-["a",{{"_placeholder":true{num}}}]"#);
        assert_eq!(decoder.text(&packet, &mut parser, &limits), Ok(None));
        decoder
    };
    for num in [
        "",
        ",\"num\":1",
        ",\"num\":-1",
        ",\"num\":\"0\"",
        ",\"num\":null",
        ",\"num\":1e300",
        ",\"num\":1e400",
    ] {
        assert_eq!(waiting(num).binary(b"x", &limits), Err(SioError::Placeholder), "{num}");
    }
    // As JavaScript reads a number.
    for (num, arg) in [
        ("0.0", Bytes::from_static(b"x").into()),
        ("-0", Bytes::from_static(b"x").into()),
        ("0.5", Value::Null),
    ] {
        let packet = waiting(&format!(",\"num\":{num}")).binary(b"x", &limits).unwrap().unwrap();
        assert_eq!(packet.body, Body::Event { name: "a".into(), args: vec![arg] }, "{num}");
    }
    let small = Limits { attachment_bytes: 3, ..limits };
    assert_eq!(waiting(",\"num\":0").binary(b"1234", &small), Err(SioError::AttachmentsTooLarge));
    let mut decoder = waiting(",\"num\":0");
    assert_eq!(decoder.text("2[\"a\"]", &mut Parser::new(), &limits), Err(SioError::ExpectedBinary));
}

#[test]
fn an_idle_decoder_is_one_pointer() {
    assert_eq!(size_of::<Decoder>(), size_of::<usize>());
    assert!(Decoder::new().is_idle());
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("json has no others", |number| number.is_finite()).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| Value::Binary(bytes.into())),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(".{0,6}", inner, 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn round_trip(
        nsp in "/[a-z]{0,6}",
        id in prop::option::of(0..=MAX_ACK_ID),
        name in "[a-z]{0,8}|.{0,8}",
        value in any_value(),
        other in any_value(),
    ) {
        prop_assume!(!is_reserved(&name));
        let encoded = sio::event(&nsp, id, &name, &(&value, &other)).unwrap();
        let (mut decoder, mut parser) = (Decoder::new(), Parser::new());
        let limits = Limits { attachments: 1000, ..Limits::default() };
        let text = String::from_utf8(encoded.text).unwrap();
        let mut packet = decoder.text(&text, &mut parser, &limits).unwrap();
        for attachment in encoded.attachments {
            prop_assert!(packet.is_none());
            packet = decoder.binary(&attachment, &limits).unwrap();
        }
        let packet = packet.expect("a whole packet");
        prop_assert!(decoder.is_idle());
        prop_assert_eq!((packet.nsp.as_str(), packet.id), (nsp.as_str(), id));
        prop_assert_eq!(packet.body, Body::Event { name: name.as_str().into(), args: vec![value, other] });
    }

    #[test]
    fn any_text_is_taken_or_refused(
        head in "[0-7]?[0-9]{0,2}-?(/[a-z?]{0,3},?)?[0-9]{0,2}",
        payload in "[\\[\\]{}\"a,:0-9é]{0,20}",
    ) {
        let packet = head + &payload;
        let mut decoder = Decoder::new();
        let limits = Limits::default();
        if decoder.text(&packet, &mut Parser::new(), &limits).is_ok() {
            let _ = decoder.binary(packet.as_bytes(), &limits);
        }
    }
}
