use super::*;
use serde::ser::SerializeMap;
use std::collections::HashMap;

fn text<T: Serialize + ?Sized>(args: &T) -> String {
    String::from_utf8(event("/", None, "a", args).unwrap().text).unwrap()
}

#[derive(Serialize)]
struct Unit;
#[derive(Serialize)]
struct Newtype<T>(T);
#[derive(Serialize)]
struct Pair(u8, &'static str);
#[derive(Serialize)]
struct Named {
    x: u8,
}
#[derive(Serialize)]
enum Choice {
    Unit,
    Tuple(u8, u8),
    Named { x: u8 },
}

#[test]
fn the_argument_rule() {
    assert_eq!(text(&()), r#"2["a"]"#);
    assert_eq!(text(&Unit), r#"2["a"]"#);
    assert_eq!(text(&("x",)), r#"2["a","x"]"#);
    assert_eq!(text(&("x", 1)), r#"2["a","x",1]"#);
    assert_eq!(text(&Pair(1, "b")), r#"2["a",1,"b"]"#);
    assert_eq!(text(&[1, 2]), r#"2["a",1,2]"#);
    assert_eq!(text(&[0u8; 0]), r#"2["a"]"#);
    assert_eq!(text(&((1, 2),)), r#"2["a",[1,2]]"#);
    assert_eq!(text(&((), 1)), r#"2["a",null,1]"#);
    assert_eq!(text(&Newtype((1, 2))), r#"2["a",1,2]"#);
    assert_eq!(text(&Newtype(1)), r#"2["a",1]"#);
    assert_eq!(text(&Box::new((1, 2))), r#"2["a",1,2]"#);
    assert_eq!(text("x"), r#"2["a","x"]"#);
    assert_eq!(text(&1.5), r#"2["a",1.5]"#);
    assert_eq!(text(&f64::NAN), r#"2["a",null]"#);
    assert_eq!(text(&None::<u8>), r#"2["a",null]"#);
    assert_eq!(text(&Some((1, 2))), r#"2["a",[1,2]]"#);
    assert_eq!(text(&vec![1, 2]), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Vec::<u8>::new()), r#"2["a",[]]"#);
    assert_eq!(text(&[1, 2][..]), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Named { x: 1 }), r#"2["a",{"x":1}]"#);
    assert_eq!(text(&Choice::Unit), r#"2["a","Unit"]"#);
    assert_eq!(text(&Choice::Tuple(1, 2)), r#"2["a",{"Tuple":[1,2]}]"#);
    assert_eq!(text(&Choice::Named { x: 1 }), r#"2["a",{"Named":{"x":1}}]"#);
    assert_eq!(text(&Value::Array(vec![1.into()])), r#"2["a",[1]]"#);
    assert_eq!(text(&HashMap::from([("k", 1)])), r#"2["a",{"k":1}]"#);
    assert_eq!(text(&std::net::Ipv4Addr::LOCALHOST), r#"2["a","127.0.0.1"]"#);
}

#[test]
fn acks_have_no_name() {
    let ack =
        |args: &dyn Fn() -> Result<Encoded, EncodeError>| String::from_utf8(args().unwrap().text).unwrap();
    assert_eq!(ack(&|| ack_of(&())), "3/n,7[]");
    assert_eq!(ack(&|| ack_of(&(1,))), "3/n,7[1]");
    assert_eq!(ack(&|| ack_of(&[0u8; 0])), "3/n,7[]");
    assert_eq!(ack(&|| ack_of(&vec![1])), "3/n,7[[1]]");
    let encoded = ack_of(&(Bytes::from_static(b"x"), 1)).unwrap();
    assert_eq!(encoded.text, br#"61-/n,7[{"_placeholder":true,"num":0},1]"#);
}

fn ack_of<T: Serialize>(args: &T) -> Result<Encoded, EncodeError> {
    ack("/n", 7, args)
}

#[test]
fn bytes_at_any_depth_are_attachments() {
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    let args = (HashMap::from([("k", vec![bytes("one")])]), Value::Binary(bytes("two")), Some(bytes("")));
    let encoded = event("/n", Some(12), "é\"", &args).unwrap();
    let [a, b, c] = [0, 1, 2].map(|num| format!(r#"{{"_placeholder":true,"num":{num}}}"#));
    let expected = format!(r#"53-/n,12["é\"",{{"k":[{a}]}},{b},{c}]"#);
    assert_eq!(String::from_utf8(encoded.text).unwrap(), expected);
    assert_eq!(encoded.attachments, [bytes("one"), bytes("two"), bytes("")]);
    let single = event("/", None, "a", &bytes("x")).unwrap();
    assert_eq!(single.text, br#"51-["a",{"_placeholder":true,"num":0}]"#);
}

#[test]
fn errors_are_the_applications() {
    struct Failing;
    impl Serialize for Failing {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }
    struct OddKeys;
    impl Serialize for OddKeys {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            map.serialize_entry(&vec![1], &1)?;
            map.end()
        }
    }
    assert!(event("/", None, "a", &Failing).unwrap_err().to_string().ends_with("as json: no"));
    assert!(matches!(event("/", None, "a", &OddKeys), Err(EncodeError::Json(_))));
    assert!(matches!(event("/", None, "a", &(1, OddKeys)), Err(EncodeError::Json(_))));
    assert!(matches!(event("/", None, "connect", &()), Err(EncodeError::ReservedEvent)));
    assert!(event("/", None, "error", &()).is_ok());
}

#[test]
fn control_packets() {
    assert_eq!(connect("/", "s\"", None), br#"0{"sid":"s\""}"#);
    assert_eq!(disconnect("/"), b"1");
    assert_eq!(connect_error("/n", "m", None), br#"4/n,{"message":"m"}"#);
    let data = Value::Binary(Bytes::from_static(b"\x01"));
    assert_eq!(connect_error("/", "m", Some(&data)), br#"4{"message":"m","data":[1]}"#);
}

#[test]
fn anything_becomes_a_value() {
    let bytes = Bytes::from_static(b"x");
    let value = to_value(&(1, "a", &bytes)).unwrap();
    assert_eq!(value, Value::Array(vec![1.into(), "a".into(), bytes.clone().into()]));
    let placeholder = HashMap::from([("_placeholder", true)]);
    assert!(to_value(&placeholder).is_ok());
    assert!(matches!(to_value(&(placeholder, bytes)), Err(EncodeError::Value)));
}
