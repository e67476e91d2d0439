use super::*;
use serde::Deserialize;
use serde::ser::SerializeMap;
use std::collections::HashMap;

fn text<T: Serialize + ?Sized>(args: &T) -> String {
    String::from_utf8(event("/", None, "a", args).unwrap().text).unwrap()
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Unit;
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Newtype<T>(T);
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pair<T>(u8, T);
/// As the points of some libraries of geometry.
struct LikeTuple;
impl Serialize for LikeTuple {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (1, 2).serialize(serializer)
    }
}
#[derive(Serialize)]
struct Named {
    x: u8,
}
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Unit,
    Tuple(u8, u8),
    Named { x: u8 },
}

#[test]
fn the_argument_rule() {
    // A tuple is the list, by value or by reference.
    assert_eq!(text(&()), r#"2["a"]"#);
    assert_eq!(text(&&()), r#"2["a"]"#);
    assert_eq!(text(&("x",)), r#"2["a","x"]"#);
    assert_eq!(text(&("x", 1)), r#"2["a","x",1]"#);
    assert_eq!(text(&&mut &("x", 1)), r#"2["a","x",1]"#);
    assert_eq!(text(&((1, 2),)), r#"2["a",[1,2]]"#);
    assert_eq!(text(&((), 1)), r#"2["a",null,1]"#);
    // Anything else is one argument: lists of any kind,
    assert_eq!(text(&[1, 2]), r#"2["a",[1,2]]"#);
    assert_eq!(text(&&[1.0, 2.0]), r#"2["a",[1.0,2.0]]"#);
    assert_eq!(text(&[0u8; 0]), r#"2["a",[]]"#);
    assert_eq!(text(&[(1, 2)]), r#"2["a",[[1,2]]]"#);
    assert_eq!(text(&([1, 2],)), r#"2["a",[1,2]]"#);
    assert_eq!(text(&vec![1, 2]), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Vec::<u8>::new()), r#"2["a",[]]"#);
    assert_eq!(text(&[1, 2][..]), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Value::Array(vec![1.into()])), r#"2["a",[1]]"#);
    // types with a name or an owner,
    assert_eq!(text(&Pair(1, "b")), r#"2["a",[1,"b"]]"#);
    assert_eq!(text(&LikeTuple), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Newtype((1, 2))), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Newtype([1, 2])), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Newtype(1)), r#"2["a",1]"#);
    assert_eq!(text(&Box::new((1, 2))), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Some((1, 2))), r#"2["a",[1,2]]"#);
    assert_eq!(text(&Named { x: 1 }), r#"2["a",{"x":1}]"#);
    assert_eq!(text(&Choice::Unit), r#"2["a","Unit"]"#);
    assert_eq!(text(&Choice::Tuple(1, 2)), r#"2["a",{"Tuple":[1,2]}]"#);
    assert_eq!(text(&Choice::Named { x: 1 }), r#"2["a",{"Named":{"x":1}}]"#);
    assert_eq!(text(&HashMap::from([("k", 1)])), r#"2["a",{"k":1}]"#);
    assert_eq!(text(&std::net::Ipv4Addr::LOCALHOST), r#"2["a","127.0.0.1"]"#);
    assert_eq!(text("x"), r#"2["a","x"]"#);
    assert_eq!(text(&1.5), r#"2["a",1.5]"#);
    // and null.
    assert_eq!(text(&None::<u8>), r#"2["a",null]"#);
    assert_eq!(text(&None::<()>), r#"2["a",null]"#);
    assert_eq!(text(&Some(())), r#"2["a",null]"#);
    assert_eq!(text(&Value::Null), r#"2["a",null]"#);
    assert_eq!(text(&serde_json::Value::Null), r#"2["a",null]"#);
    assert_eq!(text(&Unit), r#"2["a",null]"#);
    assert_eq!(text(&f64::NAN), r#"2["a",null]"#);
    assert_eq!(text(&(Value::Null,)), r#"2["a",null]"#);
}

/// What was emitted as one type is read as that type, whatever it is.
#[test]
fn the_argument_rule_both_ways() {
    fn returns<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(sent: T) {
        let args = to_args(&sent).unwrap();
        assert_eq!(crate::protocol::sio::from_args::<T>(&args).unwrap(), sent);
        let Encoded { text, .. } = event("/", None, "a", &sent).unwrap();
        let text: (&str, Vec<Value>) = ("a", serde_json::from_slice(&text[1..]).unwrap());
        assert_eq!(text.1[1..], args);
    }
    returns(());
    returns((1,));
    returns((1, "x".to_owned(), [1.5, 2.5]));
    returns([1.5, 2.5]);
    returns([[1, 2], [3, 4]]);
    returns([(1, 2), (3, 4)]);
    returns(Pair(1, "b".to_owned()));
    returns(Newtype((1, 2)));
    returns(Newtype(Pair(1, "b".to_owned())));
    returns(Unit);
    returns(None::<(u8, u8)>);
    returns(Some((1, 2)));
    returns(Value::Null);
    returns(serde_json::Value::Null);
    returns(vec![None, Some(1)]);
    returns(((), Value::Null, None::<u8>));
    returns(Choice::Tuple(1, 2));
}

#[test]
fn acks_have_no_name() {
    let ack =
        |args: &dyn Fn() -> Result<Encoded, EncodeError>| String::from_utf8(args().unwrap().text).unwrap();
    assert_eq!(ack(&|| ack_of(&())), "3/n,7[]");
    assert_eq!(ack(&|| ack_of(&(1,))), "3/n,7[1]");
    assert_eq!(ack(&|| ack_of(&[0u8; 0])), "3/n,7[[]]");
    assert_eq!(ack(&|| ack_of(&Value::Null)), "3/n,7[null]");
    assert_eq!(ack(&|| ack_of(&None::<u8>)), "3/n,7[null]");
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

/// One attachment that is referred to many times is as many attachments on the way out.
#[test]
#[cfg_attr(miri, ignore = "hundreds of megabytes take miri minutes")]
fn a_packet_has_a_largest_size() {
    let megabyte = Bytes::from(vec![7; 1 << 20]);
    let most = limits::PACKET_BYTES >> 20;
    let packet = |count: usize| event("/", None, "a", &vec![&megabyte; count]);
    assert_eq!(packet(most - 1).unwrap().attachments.len(), most - 1);
    assert!(matches!(packet(most), Err(EncodeError::TooLarge)));
    assert!(matches!(packet(1_000_000), Err(EncodeError::TooLarge)));
    assert!(matches!(to_value(&vec![&megabyte; most + 1]), Err(EncodeError::TooLarge)));
    let text = "x".repeat(1 << 20);
    assert!(matches!(event("/", None, "a", &vec![&text; most]), Err(EncodeError::TooLarge)));
    // The memory that was used is of use again.
    let mut encoded = Encoded::new();
    assert!(encoded.set_ack("/", 1, &vec![&text; most]).is_err());
    encoded.set_ack("/", 1, &1).unwrap();
    assert_eq!(encoded.text, b"31[1]");
}
