use super::*;
use proptest::prelude::*;

fn parse(json: &str) -> Result<Value, JsonError> {
    Parser::new().parse(json, MAX_DEPTH)
}

fn text(text: &str) -> Value {
    Value::from(text)
}

/// The oracle's value in our terms; `None` where it differs on purpose.
fn converted(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap().into(),
        },
        serde_json::Value::String(value) => value.as_str().into(),
        serde_json::Value::Array(items) => Value::Array(items.iter().map(converted).collect()),
        serde_json::Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), converted(value))).collect())
        }
    }
}

/// Objects sorted by key, since the oracle does not keep their order; floats compared up to the last digits,
/// since the oracle does not round them correctly.
fn alike(a: &Value, b: &Value) -> bool {
    let sorted = |entries: &[(String, Value)]| {
        let mut entries = entries.to_vec();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    };
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            let (a, b) = (sorted(a), sorted(b));
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && alike(&a.1, &b.1))
        }
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.as_f64() - b.as_f64()).abs() <= a.as_f64().abs() * 1e-14
        }
        _ => a == b,
    }
}

#[test]
fn odd_but_legal() {
    for (json, value) in [
        (" \t\r\n null \n", Value::Null),
        ("0", 0.into()),
        ("-0", 0.into()),
        ("-0.0", (-0.0).into()),
        ("18446744073709551615", u64::MAX.into()),
        ("-9223372036854775808", i64::MIN.into()),
        ("18446744073709551616", 18446744073709551616.0.into()),
        ("100000000000000000000", 1e20.into()),
        ("-9223372036854775809", (-9223372036854775809.0).into()),
        ("1e3", 1000.0.into()),
        ("1E+2", 100.0.into()),
        ("1e-400", 0.0.into()),
        ("5e-324", 5e-324.into()),
        ("1.7976931348623157e308", f64::MAX.into()),
        ("2.2250738585072011e-308", 2.225_073_858_507_201e-308.into()),
        (r#""\u0000""#, text("\0")),
        (r#""\ud83d\ude00 \/\b\f\n\r\t\\\"""#, text("😀 /\u{8}\u{c}\n\r\t\\\"")),
        ("\"\u{2028}\u{7f}é\"", text("\u{2028}\u{7f}é")),
        (r#"{"":1}"#, Value::Object(vec![(String::new(), 1.into())])),
        (r#"{"__proto__":1}"#, Value::Object(vec![("__proto__".into(), 1.into())])),
        (r#"{"a":1,"b":2,"a":3}"#, Value::Object(vec![("a".into(), 3.into()), ("b".into(), 2.into())])),
        ("[]", Value::Array(vec![])),
        ("{}", Value::Object(vec![])),
        // No float holds them: `JSON.parse` reads infinity.
        ("1e999", f64::INFINITY.into()),
        ("-1E+999", f64::NEG_INFINITY.into()),
        ("1.7976931348623159e308", f64::INFINITY.into()),
        (&"9".repeat(400), f64::INFINITY.into()),
        ("1e-99999999999999999999", 0.0.into()),
        ("0e99999999999999999999", 0.0.into()),
        ("-0.0e99999999999999999999", (-0.0).into()),
        (&format!("0.{}1e401", "0".repeat(400)), 1.0.into()),
        (&format!("1{}e-400", "0".repeat(400)), 1.0.into()),
        // Others in the same text are what they are without it.
        (
            r#"[{"1e999":["1e999",true,1e999]},-0,0.1,18446744073709551615,"\ud83d",[1e5],-1e999]"#,
            Value::Array(vec![
                Value::Object(vec![(
                    "1e999".into(),
                    Value::Array(vec!["1e999".into(), true.into(), f64::INFINITY.into()]),
                )]),
                0.into(),
                0.1.into(),
                u64::MAX.into(),
                "\u{fffd}".into(),
                Value::Array(vec![100_000.0.into()]),
                f64::NEG_INFINITY.into(),
            ]),
        ),
    ] {
        assert_eq!(parse(json), Ok(value), "{json}");
    }
}

#[test]
fn illegal() {
    for json in [
        "",
        " ",
        "nul",
        "nullx",
        "null null",
        "tru",
        "True",
        "[1]x",
        "[1][2]",
        "[",
        "]",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "{\"a\":1 \"b\":2}",
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "0x1",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999x",
        "-1e",
        "01e999",
        "1.e999",
        "+1e999",
        "\"",
        "\"a",
        "'a'",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\n\"",
        "\"\0\"",
        "\"\\",
        "/**/1",
        "\u{feff}1",
        "1\0",
        "\0",
        "[\"a\\\"]",
        "\u{a0}1",
    ] {
        assert_eq!(parse(json), Err(JsonError::Syntax), "{json:?}");
    }
}

#[test]
fn lone_surrogates_become_replacement_characters() {
    for (json, value) in [
        (r#""\ud83d""#, "\u{fffd}"),
        (r#""\ude00""#, "\u{fffd}"),
        (r#""a\ud83db""#, "a\u{fffd}b"),
        (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
        (r#""\ud83d\n""#, "\u{fffd}\n"),
        (r#""\\ud83d \ud83d""#, "\\ud83d \u{fffd}"),
        (r#""\uD83D\uDE00\uDE00""#, "😀\u{fffd}"),
    ] {
        assert_eq!(parse(json), Ok(text(value)), "{json}");
    }
    assert_eq!(parse(r#""\ud83d"#), Err(JsonError::Syntax));
    assert_eq!(parse(r#""\ud83d" x"#), Err(JsonError::Syntax));
    assert_eq!(parse(r#""\ud83d\é""#), Err(JsonError::Syntax));
    assert_eq!(parse(r#""\ud83\ud83d""#), Err(JsonError::Syntax));
}

/// Everything that recurses over values, on the stack that threads have by default.
#[test]
fn the_deepest_value_fits_an_ordinary_stack() {
    let nested = |depth: usize| format!("{}1{}", "[{\"a\":".repeat(depth / 2), "}]".repeat(depth / 2));
    let run = move || {
        let value = parse(&nested(MAX_DEPTH)).unwrap();
        assert_eq!(value.clone(), value);
        assert_eq!(value.to::<Value>().unwrap(), value);
        assert_eq!(value.to_string(), nested(MAX_DEPTH));
        assert_eq!(format!("{value:?}").matches("Array").count(), MAX_DEPTH / 2);
        let encoded = crate::protocol::sio::event("/", None, "a", &value).unwrap();
        assert_eq!(encoded.text.len(), nested(MAX_DEPTH).len() + 7);
        assert_eq!(crate::protocol::sio::to_value(&value).unwrap(), value);
        assert!(value.to::<serde_json::Value>().unwrap()[0]["a"][0]["a"][0].is_object());
        assert_eq!(parse(&"[".repeat(if cfg!(miri) { 1000 } else { 1_000_000 })), Err(JsonError::Syntax));
        assert_eq!(parse(&"{\"a\":".repeat(if cfg!(miri) { 200 } else { 200_000 })), Err(JsonError::Syntax));
        // Deeper, and all of the above again.
        let deep = nested(if cfg!(miri) { 200 } else { 200_000 });
        let value = parse(&deep).unwrap();
        assert_eq!(value.clone(), value);
        assert_eq!(value.to::<Value>().unwrap(), value);
        assert_eq!(value.to_string(), deep);
        assert_eq!(format!("{value:?}").matches("Array").count(), MAX_DEPTH / 2);
        let encoded = crate::protocol::sio::event("/", None, "a", &value).unwrap();
        assert_eq!(encoded.text.len(), deep.len() + 7);
        assert_eq!(crate::protocol::sio::to_value(&value).unwrap(), value);
        assert!(value.to::<serde_json::Value>().is_err());
        assert!(value.to::<Option<u8>>().is_err());
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn depth_is_counted_in_containers() {
    let mut parser = Parser::new();
    let mut show = |json: &str, depth| format!("{:?}", parser.parse(json, depth).unwrap());
    assert_eq!(show("1", 0), "Number(I64(1))");
    assert_eq!(show("[]", 0), r#"Deep(DeepJson("[]"))"#);
    assert_eq!(show("[{},[]]", 2), "Array([Object([]), Array([])])");
    assert_eq!(
        show("[{},[ [1 ,2],{} ],3]", 2),
        r#"Array([Object([]), Array([Deep(DeepJson("[1,2]")), Deep(DeepJson("{}"))]), Number(I64(3))])"#
    );
    let shown = show(&format!("{}{}", "[".repeat(500), "]".repeat(500)), usize::MAX);
    assert_eq!(shown.matches("Array").count(), MAX_DEPTH);
}

/// What is too deep is the same JSON, and what stands behind it is not touched.
#[test]
fn deep_json_is_written_again() {
    for json in [
        r#"{"a":[],"b":{},"c":[[],[[]],{}],"d":{"e":{"f":1},"g":[true,false,null]},"":"x"}"#,
        r#"["\"\\\n\u0001/é😀",-1,0,1.5,-0.0,18446744073709551615,-9223372036854775808,1e+300]"#,
        r#"[{"a":1,"a":2},[{"__proto__":[1]}]]"#,
    ] {
        let Ok(Value::Deep(deep)) = Parser::new().parse(json, 0) else { panic!("deep") };
        assert_eq!(deep.as_str(), json);
        let both = Parser::new().parse(&format!("[ {json} , {json} ]"), 1).unwrap();
        assert_eq!(both, Value::Array(vec![Value::Deep(deep.clone()), Value::Deep(deep)]));
    }
    let Ok(Value::Deep(deep)) = Parser::new().parse(r#"[1e400,"\ud83d"]"#, 0) else { panic!("deep") };
    assert_eq!(deep.as_str(), "[null,\"\u{fffd}\"]");
}

#[test]
#[cfg_attr(miri, ignore = "a string longer than the buffers that are kept takes miri minutes")]
fn large_buffers_are_given_back() {
    let mut parser = Parser::new();
    let long = format!("\"{}\"", "x".repeat(KEEP_BYTES));
    assert!(parser.parse(&long, 1).is_ok());
    assert_eq!(parser.input.capacity(), 0);
    assert!(parser.parse("\"short\"", 1).is_ok());
    assert!(parser.tape.is_some());
}

/// Any JSON, written with odd spacing.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        "-?[0-9]{1,25}(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?",
        any::<f64>().prop_map(|number| number.to_string()),
        ".{0,20}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        "(\\\\u[0-9a-fA-F]{4}|\\\\[bfnrt/\\\\]|[a-z]){0,6}".prop_map(|text| format!("\"{text}\"")),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" ,\t"))),
            prop::collection::vec(("[a-c\"\\\\]{0,2}", inner), 0..12).prop_map(|entries| {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(key, value)| format!("{}:\n{value}", serde_json::to_string(key).unwrap()))
                    .collect();
                format!("{{ {} }}", entries.join(","))
            }),
        ]
    })
}

/// Whether the oracle and we may differ: lone surrogates and numbers out of range.
fn compare(json: &str) -> Result<(), TestCaseError> {
    match (parse(json), serde_json::from_str::<serde_json::Value>(json)) {
        (Ok(ours), Ok(theirs)) => {
            let theirs = converted(&theirs);
            prop_assert!(alike(&ours, &theirs), "{} gives {} and {}", json, ours, theirs);
        }
        (Ok(_), Err(_)) if json.contains("\\u") => {}
        (Ok(_), Err(error)) if error.to_string().contains("number out of range") => {}
        (Ok(ours), Err(error)) => prop_assert!(false, "{} gives {} and {}", json, ours, error),
        (Err(error), Ok(theirs)) => prop_assert!(false, "{} gives {} and {}", json, error, theirs),
        (Err(_), Err(_)) => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 5 } else { 1000 }))]

    #[test]
    fn agrees_with_the_oracle(json in any_json()) {
        compare(&json)?;
    }

    #[test]
    fn agrees_about_near_misses(
        json in any_json(),
        at: prop::sample::Index,
        with in "[\\]\\[{}:,\"\\\\0-9eE.+\u{0} ntuf-]{0,2}",
    ) {
        let mut chars: Vec<char> = json.chars().collect();
        let at = at.index(chars.len());
        chars.splice(at..=at, with.chars());
        compare(&chars.into_iter().collect::<String>())?;
    }

    #[test]
    fn numbers_are_rounded_correctly(number: f64, digits in "-?[1-9][0-9]{0,20}\\.[0-9]{1,20}e-?[0-9]{1,2}") {
        prop_assume!(number.is_finite());
        for json in [format!("{number:e}"), digits] {
            let expected: f64 = json.parse().unwrap();
            let found = parse(&json).unwrap().as_f64().unwrap();
            prop_assert_eq!(found.to_bits(), expected.to_bits(), "{}", json);
        }
    }

    /// Whatever the depth from which on it is text, it is the same JSON.
    #[test]
    fn depth_changes_nothing(json in any_json(), depth in 0..6usize) {
        let Ok(whole) = parse(&json) else { return Ok(()) };
        let cut = Parser::new().parse(&json, depth).unwrap();
        let [whole, cut] = [whole, cut].map(|value| serde_json::to_string(&value).unwrap());
        prop_assert_eq!(parse(&cut), parse(&whole));
    }

    #[test]
    fn any_text_is_taken_or_refused(json in "[\\[\\]{}\":,\\\\ud8e0-9a-f\u{0}é ]{0,60}") {
        let _ = parse(&json);
    }
}
