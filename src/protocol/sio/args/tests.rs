use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

fn args() -> Vec<Value> {
    vec!["a".into(), 1.into(), Value::Object(vec![("x".into(), 2.into())]), Bytes::from_static(b"bin").into()]
}

fn error<T: DeserializeOwned>(args: &[Value]) -> String {
    from_args::<T>(args).err().expect("an error").to_string()
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: u8,
}
#[derive(Debug, PartialEq, Deserialize)]
struct Pair(String, u8);
#[derive(Debug, PartialEq, Deserialize)]
struct Newtype<T>(T);
#[derive(Debug, PartialEq, Deserialize)]
struct Unit;
#[derive(Debug, PartialEq, Deserialize)]
enum Choice {
    One,
    New(u8),
    Two(u8, u8),
    Named { x: u8 },
}

#[test]
fn tuples_take_the_list() {
    let (a, b, c, d): (String, u8, Point, Bytes) = from_args(&args()).unwrap();
    assert_eq!((a.as_str(), b, c, &d[..]), ("a", 1, Point { x: 2 }, &b"bin"[..]));
    assert_eq!(from_args::<(String,)>(&args()).unwrap(), ("a".into(),));
    assert_eq!(from_args::<((String,),)>(&[vec!["a"].into()]).unwrap(), (("a".into(),),));
    assert_eq!(from_args::<(Value, Value)>(&["a".into()]).unwrap(), ("a".into(), Value::Null));
    from_args::<()>(&args()).unwrap();
    from_args::<()>(&[]).unwrap();
}

#[test]
fn others_take_the_first() {
    assert_eq!(from_args::<String>(&args()).unwrap(), "a");
    assert_eq!(from_args::<Point>(&args()[2..]).unwrap(), Point { x: 2 });
    assert_eq!(from_args::<Bytes>(&args()[3..]).unwrap(), Bytes::from_static(b"bin"));
    assert_eq!(from_args::<Vec<u8>>(&args()[3..]).unwrap(), b"bin");
    assert_eq!(from_args::<Vec<u8>>(&[vec![1, 2].into()]).unwrap(), [1, 2]);
    assert_eq!(from_args::<HashMap<String, u8>>(&args()[2..]).unwrap(), HashMap::from([("x".into(), 2)]));
    assert_eq!(from_args::<serde_json::Value>(&args()[2..]).unwrap(), serde_json::json!({"x": 2}));
    assert_eq!(from_args::<Value>(&[]).unwrap(), Value::Null);
    assert_eq!(from_args::<Option<String>>(&[]).unwrap(), None);
    assert_eq!(from_args::<Option<String>>(&[Value::Null]).unwrap(), None);
    assert_eq!(from_args::<Option<(u8, u8)>>(&[vec![1, 2].into()]).unwrap(), Some((1, 2)));
    assert_eq!(from_args::<f64>(&[3.into()]).unwrap(), 3.0);
    let list = [vec![1, 2].into(), 3.into()];
    assert_eq!(from_args::<[f64; 2]>(&list).unwrap(), [1.0, 2.0]);
    assert_eq!(from_args::<Value>(&list).unwrap(), list[0]);
    assert_eq!(error::<[f64; 3]>(&list), "argument 0: invalid length 2, expected an array of length 3");
    assert_eq!(from_args::<Box<(u8, u8)>>(&list).unwrap(), Box::new((1, 2)));
    assert_eq!(from_args::<Newtype<(u8, u8)>>(&list).unwrap(), Newtype((1, 2)));
    let pair = [vec![Value::from("a"), 1.into()].into()];
    assert_eq!(from_args::<Pair>(&pair).unwrap(), Pair("a".into(), 1));
    assert_eq!(error::<Pair>(&args()), r#"argument 0: invalid type: string "a", expected tuple struct Pair"#);
    assert_eq!(error::<Pair>(&[]), "argument 0 is missing");
    assert_eq!(from_args::<Unit>(&[]).unwrap(), Unit);
    assert_eq!(from_args::<Unit>(&[Value::Null]).unwrap(), Unit);
    assert_eq!(from_args::<char>(&["é".into()]).unwrap(), 'é');
    let keys = Value::Object(vec![("-5".into(), 1.into()), ("7".into(), 2.into())]);
    assert_eq!(from_args::<BTreeMap<i8, u8>>(&[keys]).unwrap(), BTreeMap::from([(-5, 1), (7, 2)]));
}

#[test]
fn enums() {
    let object = |key: &str, value: Value| [Value::Object(vec![(key.into(), value)])];
    assert_eq!(from_args::<Choice>(&["One".into()]).unwrap(), Choice::One);
    assert_eq!(from_args::<Choice>(&object("New", 1.into())).unwrap(), Choice::New(1));
    assert_eq!(from_args::<Choice>(&object("Two", vec![1, 2].into())).unwrap(), Choice::Two(1, 2));
    let named = Value::Object(vec![("x".into(), 3.into())]);
    assert_eq!(from_args::<Choice>(&object("Named", named)).unwrap(), Choice::Named { x: 3 });
    for wrong in [1.into(), "Four".into(), Value::Object(vec![]), Value::Null] {
        assert!(error::<Choice>(&[wrong]).starts_with("argument 0: "));
    }
}

#[test]
fn errors_name_the_argument() {
    assert_eq!(error::<u8>(&["a".into()]), r#"argument 0: invalid type: string "a", expected u8"#);
    assert_eq!(error::<u8>(&[]), "argument 0 is missing");
    assert_eq!(error::<Point>(&[]), "argument 0 is missing");
    assert_eq!(error::<(u8, u8)>(&[1.into()]), "argument 1 is missing");
    assert_eq!(error::<(u8, u8)>(&[]), "argument 0 is missing");
    assert_eq!(
        error::<(u8, u8)>(&[1.into(), 300.into()]),
        "argument 1: invalid value: integer `300`, expected u8"
    );
    assert_eq!(error::<(u8, Point)>(&[1.into(), Value::Object(vec![])]), "argument 1: missing field `x`");
    assert_eq!(
        error::<(u8, (u8, u8))>(&[1.into(), vec![1, 2, 3].into()]),
        "argument 1: invalid length 3, expected 2 elements in sequence"
    );
    assert!(error::<Vec<Point>>(&[vec![1].into()]).starts_with("argument 0: invalid type: integer `1`"));
    assert_eq!(error::<Newtype<u8>>(&["a".into()]), r#"argument 0: invalid type: string "a", expected u8"#);
    let missing = from_args::<u8>(&[]).unwrap_err();
    assert!(missing.is_missing() && missing.index() == Some(0));
    assert_eq!(
        Value::from("a").to::<u8>().unwrap_err().to_string(),
        r#"invalid type: string "a", expected u8"#
    );
}

type Sent = (String, i64, Option<bool>, Bytes, Point, Vec<(i64, u8)>);

proptest! {
    #[test]
    fn what_was_encoded_is_read(
        a in ".{0,10}",
        b: i64,
        c: Option<bool>,
        d in prop::collection::vec(any::<u8>(), 0..9),
        x: u8,
    ) {
        let sent = (a, b, c, Bytes::from(d), Point { x }, vec![(b, x)]);
        let value = crate::protocol::sio::to_value(&sent).unwrap();
        let list = value.as_array().unwrap();
        let back: Sent = from_args(list).unwrap();
        prop_assert_eq!(back, sent);
    }
}

#[test]
fn tuples_are_known_by_their_names() {
    assert!(is_tuple::<()>() && is_tuple::<(u8,)>() && is_tuple::<&(u8, [u8; 2])>());
    assert!(is_tuple::<&&mut &((u8, u8), &'static str)>());
    for not in [
        is_tuple::<[u8; 2]>(),
        is_tuple::<[(u8, u8); 2]>(),
        is_tuple::<&[(u8, u8)]>(),
        is_tuple::<Option<(u8, u8)>>(),
        is_tuple::<Box<(u8, u8)>>(),
        is_tuple::<Pair>(),
        is_tuple::<Newtype<(u8, u8)>>(),
        is_tuple::<str>(),
        is_tuple::<fn(u8) -> u8>(),
        is_tuple::<&(dyn Send + Sync)>(),
        is_tuple::<&mut (dyn Send + Sync)>(),
        is_tuple::<Value>(),
    ] {
        assert!(!not);
    }
}

/// What nests too deep is handed on between values, and nothing else can have it.
#[test]
fn deep_values_stay_values() {
    let text = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let value = super::super::Parser::new().parse(&text, 3).unwrap();
    let args = [value.clone()];
    assert_eq!(from_args::<Value>(&args).unwrap(), value);
    assert_eq!(from_args::<(Value,)>(&args).unwrap().0, value);
    assert_eq!(from_args::<Vec<Value>>(&args).unwrap(), value.as_array().unwrap());
    assert_eq!(from_args::<Option<Value>>(&args).unwrap(), Some(value.clone()));
    let refused = "argument 0: nested deeper than 128 levels";
    assert_eq!(error::<serde_json::Value>(&args), refused);
    assert_eq!(error::<[[[[u8; 1]; 1]; 1]; 1]>(&args), refused);
    let named = serde_json::json!({ "$sockring::Deep": "[" });
    assert!(crate::protocol::sio::to_value(&named).unwrap().as_object().is_some());
    assert_eq!(crate::protocol::sio::to_value(&value).unwrap().to_string(), text);
}
