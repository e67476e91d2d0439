//! Most of these are the rows of the table of HTTP cases that the project keeps: what is refused, and with
//! what.

use super::*;
use proptest::prelude::*;

fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, HttpError> {
    Head::parse(bytes, &HeadLimits::default())
}

/// A head with these fields besides `Host`.
fn with(fields: &str) -> Result<Head, HttpError> {
    let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
    parse(text.as_bytes()).map(|parsed| parsed.expect("a whole head").0)
}

fn line(line: &str) -> Result<Head, HttpError> {
    parse(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()).map(|parsed| parsed.expect("a whole head").0)
}

fn host(field: &str) -> Result<Head, HttpError> {
    parse(format!("GET / HTTP/1.1\r\n{field}\r\n\r\n").as_bytes())
        .map(|parsed| parsed.expect("a whole head").0)
}

#[test]
fn line_ends() {
    for bytes in [
        &b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \r\r\n\r\n",
        b"GET / HTTP/1.1\r\n\rHost: a\r\n\r\n",
    ] {
        assert_eq!(parse(bytes).unwrap_err(), HttpError::LineEnd, "{bytes:?}");
    }
    assert_eq!(HttpError::LineEnd.status(), 400);
    assert_eq!(parse(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap().1, 29);
    assert_eq!(parse(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err(), HttpError::RequestLine);
    assert!(
        parse(b"").unwrap().is_none() && parse(b"\r").unwrap().is_none() && parse(b"\r\n").unwrap().is_none()
    );
}

#[test]
fn field_lines() {
    for (field, error) in [
        ("X: a\0b", HttpError::FieldValue),
        ("X: a\x01b", HttpError::FieldValue),
        ("X: a\x7fb", HttpError::FieldValue),
        ("X: a\r\n folded", HttpError::Folded),
        ("X: a\r\n\tfolded", HttpError::Folded),
        ("X : a", HttpError::FieldName),
        ("X\t: a", HttpError::FieldName),
        (": a", HttpError::FieldName),
        ("no colon", HttpError::FieldName),
        ("X(y): a", HttpError::FieldName),
        ("X\u{e9}: a", HttpError::FieldName),
        ("X\0: a", HttpError::FieldName),
    ] {
        assert_eq!(with(field).unwrap_err(), error, "{field:?}");
        assert_eq!(error.status(), 400);
    }
    assert_eq!(host(" Host: a").unwrap_err(), HttpError::FieldName);
    let head = with("X: \t a b \t\r\nx: \r\nY:c").unwrap();
    assert_eq!(head.header("x"), Some("a b"));
    assert_eq!(head.headers().skip(1).collect::<Vec<_>>(), [("X", "a b"), ("x", ""), ("Y", "c")]);
    assert_eq!(head.header("z"), None);
}

/// The tokenizer takes blocks of up to 32 bytes at once; what it lets through must not depend on the place.
#[test]
#[cfg_attr(miri, ignore = "72,000 heads; one in fourteen of them took miri more than ten minutes")]
fn every_byte_at_every_place() {
    for place in 0..70 {
        let long = "x".repeat(70);
        let (before, after) = long.split_at(place);
        for byte in 0..=u8::MAX {
            let around = |start: &str, end: &str| {
                let bytes = [start.as_bytes(), before.as_bytes(), &[byte], after.as_bytes(), end.as_bytes()];
                parse(&bytes.concat()).map(|parsed| parsed.is_some())
            };
            let name = around("GET / HTTP/1.1\r\nHost: a\r\nA", ": b\r\n\r\n");
            assert_eq!(name.is_ok(), is_token_byte(byte) || byte == b':', "name, {byte:#x} at {place}");
            let value = around("GET / HTTP/1.1\r\nHost: a\r\nA:", "\r\n\r\n");
            assert_eq!(value.is_ok(), super::super::is_value_byte(byte), "value, {byte:#x} at {place}");
            let target = around("GET /", " HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(
                target.is_ok(),
                byte.is_ascii_graphic() && byte != b'#',
                "target, {byte:#x} at {place}"
            );
            let method = around("G", " / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err();
            let token = method == HttpError::Method;
            assert_eq!(token, is_token_byte(byte), "method, {byte:#x} at {place}");
        }
    }
}

#[test]
fn eight_bit_values() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nL: caf\xe9\r\nU: caf\xc3\xa9\r\nA: b\r\n\r\n";
    let (head, used) = parse(bytes).unwrap().unwrap();
    assert_eq!(
        (head.header("l"), head.header("u"), head.header("a")),
        (Some("café"), Some("café"), Some("b"))
    );
    assert_eq!(used, bytes.len());
}

#[test]
fn hosts() {
    for field in [
        "X: y",
        "Host:",
        "Host: a\r\nHost: a",
        "Host: a\r\nhost: b",
        "Host: a/b",
        "Host: u@a",
        "Host: a, b",
        "Host: a b",
        "Host: :80",
        "Host: a:b",
        "Host: a:123456",
        "Host: [::1",
        "Host: []",
        "Host: [::1]x",
        "Host: [::g]",
        "Host: a?b",
        "Host: \u{e9}",
    ] {
        let found = host(field);
        assert_eq!(found.unwrap_err(), HttpError::Host, "{field:?}");
    }
    for field in ["Host: a", "Host: a.b:80", "Host: [::1]:3000", "host: 127.0.0.1", "Host: a_b", "Host: a:"] {
        assert!(host(field).is_ok(), "{field:?}");
    }
    let (head, _) = parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().unwrap();
    assert_eq!((head.host(), head.keep_alive(), head.version()), (None, false, Version::Http10));
}

#[test]
fn request_lines() {
    for (text, status) in [
        ("get / HTTP/1.1", 501),
        ("BREW / HTTP/1.1", 501),
        ("CONNECT a:443 HTTP/1.1", 400),
        ("CONNECT / HTTP/1.1", 501),
        ("PRI * HTTP/2.0", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/1.2", 505),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET / HTTP/11", 400),
        ("GET /", 400),
        ("GET", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("GET /\u{e9} HTTP/1.1", 400),
        ("GET /\x01 HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET /#a HTTP/1.1", 400),
        ("GET ftp://a/ HTTP/1.1", 400),
        ("GET http:///a HTTP/1.1", 400),
        ("GET http://u@a/ HTTP/1.1", 400),
        ("\x16\x03\x01", 400),
    ] {
        let found = line(text).map_err(|error| error.status());
        assert_eq!(
            found.err().unwrap_or(200),
            if text.starts_with("CONNECT a") { 501 } else { status },
            "{text:?}"
        );
    }
    assert_eq!(parse(b"\x16").unwrap_err(), HttpError::RequestLine);
    for (text, error) in [
        ("GET / xHTTP/1.1", HttpError::RequestLine),
        ("GET / HTTP/1.11", HttpError::RequestLine),
        ("GET / HTTP/1.1\r", HttpError::RequestLine),
        ("GET /a HTTP/1.1 HTTP/1.1", HttpError::RequestLine),
        ("GET /", HttpError::RequestLine),
        ("G(T / HTTP/1.1", HttpError::RequestLine),
        ("GET  HTTP/1.1", HttpError::Target),
        ("GET /\x7f HTTP/1.1", HttpError::Target),
        ("GET /\u{e9} HTTP/1.1", HttpError::Target),
        ("GET /#a HTTP/1.1", HttpError::Target),
    ] {
        assert_eq!(line(text).unwrap_err(), error, "{text:?}");
    }
}

#[test]
fn targets() {
    for (target, path, query, host) in [
        ("/", "/", "", "a"),
        ("/?", "/", "", "a"),
        ("/x?y?z", "/x", "y?z", "a"),
        ("//x", "//x", "", "a"),
        ("/http://b/c", "/http://b/c", "", "a"),
        ("http://b", "/", "", "b"),
        ("HTTPS://b:1?q", "/", "q", "b:1"),
        ("http://b/x?q", "/x", "q", "b"),
    ] {
        let head = line(&format!("GET {target} HTTP/1.1")).unwrap();
        assert_eq!((head.target(), head.path(), head.query()), (target, path, query));
        assert_eq!(head.host(), Some(host), "{target}");
    }
    assert_eq!(line("OPTIONS * HTTP/1.1").unwrap().path(), "*");
}

#[test]
#[cfg_attr(miri, ignore = "heads of up to 40 KB take miri minutes")]
fn limits() {
    let limits = HeadLimits::default();
    let long = |target: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(target - 1));
    // The head counts as a whole: the request line may be nearly all of it.
    let rest = "GET  HTTP/1.1\r\nHost: a\r\n\r\n".len();
    for target in [8192, 8193, 15_000, limits.head_bytes - rest] {
        assert!(parse(long(target).as_bytes()).unwrap().is_some(), "{target}");
    }
    assert_eq!(parse(long(limits.head_bytes - rest + 1).as_bytes()).unwrap_err().status(), 431);
    assert_eq!(parse(long(limits.head_bytes).as_bytes()).unwrap_err().status(), 414);
    // Known before the line ends.
    assert_eq!(parse(&long(20_000).as_bytes()[..limits.head_bytes]).unwrap_err().status(), 414);
    assert!(parse(&long(20_000).as_bytes()[..limits.head_bytes - 1]).unwrap().is_none());
    let short = HeadLimits { target_bytes: 8192, ..limits };
    let target = |bytes: usize| Head::parse(long(bytes).as_bytes(), &short).map(|parsed| parsed.is_some());
    assert_eq!((target(8192), target(8193)), (Ok(true), Err(HttpError::TargetTooLong)));
    assert_eq!(Head::parse(&long(9000).as_bytes()[..8300], &short).unwrap_err().status(), 414);
    let field = format!("X: {}", "x".repeat(16 * 1024));
    assert_eq!(with(&field).unwrap_err().status(), 431);
    let text = format!("GET / HTTP/1.1\r\n{field}");
    assert_eq!(parse(&text.as_bytes()[..limits.head_bytes]).unwrap_err().status(), 431);
    assert!(parse(&text.as_bytes()[..limits.head_bytes - 1]).unwrap().is_none());
    let many = |count: usize| vec!["a: b"; count].join("\r\n");
    for count in [99, 100, 101, 1999] {
        assert_eq!(with(&many(count)).unwrap().headers().count(), count + 1);
    }
    assert_eq!(with(&many(2000)).unwrap_err(), HttpError::TooManyFields);
    // However short they are, no more fit.
    assert_eq!(with(&vec!["a:"; 4096].join("\r\n")).unwrap_err(), HttpError::TooManyFields);
    let fewer = HeadLimits { headers: 100, ..limits };
    let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", many(100));
    assert_eq!(Head::parse(bytes.as_bytes(), &fewer).unwrap_err(), HttpError::TooManyFields);
    // A limit beyond what offsets can say is taken as that.
    let huge = HeadLimits { head_bytes: usize::MAX, target_bytes: usize::MAX, headers: usize::MAX };
    let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX: ".as_slice(), &[0xff; 32_000], b"\r\n\r\n"].concat();
    let (head, _) = Head::parse(&bytes, &huge).unwrap().unwrap();
    assert_eq!(head.header("x").unwrap().chars().count(), 32_000);
    assert_eq!(Head::parse(&[b'A'; 40_000], &huge).unwrap_err(), HttpError::TargetTooLong);
}

#[test]
fn content_lengths() {
    for value in [
        "2, 3",
        "2, 2",
        "+2",
        "-1",
        "0x2",
        "",
        "2 2",
        "002",
        "00",
        "9223372036854775808",
        "99999999999999999999",
    ] {
        assert_eq!(
            with(&format!("Content-Length: {value}")).unwrap_err(),
            HttpError::ContentLength,
            "{value}"
        );
    }
    for twice in ["Content-Length: 2\r\nContent-Length: 3", "Content-Length: 2\r\ncontent-length: 2"] {
        assert_eq!(with(twice).unwrap_err(), HttpError::ContentLength);
    }
    assert_eq!(with("X: y").unwrap().framing(), Framing::None);
    assert_eq!(with("Content-Length: 0").unwrap().framing(), Framing::None);
    assert_eq!(with("Content-Length: 12").unwrap().framing(), Framing::Length(12));
    let largest = with("Content-Length: 9223372036854775807").unwrap().framing();
    assert_eq!(largest, Framing::Length(i64::MAX as u64));
    assert_eq!(largest.check(1_000_000).unwrap_err().status(), 413);
    let (head, _) = parse(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").unwrap().unwrap();
    assert_eq!(head.framing(), Framing::Length(3), "a GET with a body");
}

#[test]
fn transfer_encodings() {
    for value in
        ["", "gzip", "chunked, gzip", "identity", "chunked, chunked", "xchunked", "chunked,", "chunked;q=1"]
    {
        let error = with(&format!("Transfer-Encoding: {value}")).unwrap_err();
        assert_eq!(error, HttpError::TransferEncoding, "{value}");
    }
    assert_eq!(with("Transfer-Encoding: \x0bchunked").unwrap_err().status(), 400);
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked";
    assert_eq!(with(twice).unwrap_err(), HttpError::TransferEncoding);
    assert_eq!(with("Transfer-Encoding: gzip, chunked").unwrap_err().status(), 501);
    assert_eq!(with("Transfer-Encoding: chunKed").unwrap().framing(), Framing::Chunked);
    for both in
        ["Content-Length: 2\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 2"]
    {
        assert_eq!(with(both).unwrap_err(), HttpError::ContentLength);
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(parse(old).unwrap_err(), HttpError::TransferEncoding);
}

#[test]
fn connection_and_expect() {
    assert!(with("X: y").unwrap().keep_alive());
    assert!(!with("Connection: x, Close").unwrap().keep_alive());
    assert!(!with("Connection: x\r\nConnection: close").unwrap().keep_alive());
    assert!(with("Connection: closed").unwrap().keep_alive());
    let (head, _) = parse(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap().unwrap();
    assert!(!head.keep_alive());
    assert!(with("Expect: 100-Continue").unwrap().expects_continue());
    assert_eq!(with("Expect: tea").unwrap_err().status(), 417);
    let (head, _) = parse(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").unwrap().unwrap();
    assert!(!head.expects_continue());
    assert!(!with("Upgrade: websocket\r\nConnection: upgrade").unwrap().is_websocket_upgrade(), "POST");
    let get = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n";
    assert!(!parse(format!("{get}\r\n").as_bytes()).unwrap().unwrap().0.is_websocket_upgrade());
    let (head, _) =
        parse(format!("{get}Connection: a\r\nConnection: b, UPGRADE\r\n\r\n").as_bytes()).unwrap().unwrap();
    assert!(head.is_websocket_upgrade());
}

#[test]
fn a_kept_head_is_small() {
    assert!(size_of::<Head>() <= 96, "{}", size_of::<Head>());
}

proptest! {
    #[test]
    fn round_trip_and_any_cut(
        path in "/[a-z/%0-9]{0,12}",
        query in "[a-z=&]{0,12}",
        fields in prop::collection::vec(("X-[a-zA-Z0-9]{1,8}", "([!-~]([ -~é]{0,10}[!-~])?)?"), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut text = format!("GET {path}?{query} HTTP/1.1\r\nHost: h\r\n");
        for (name, value) in &fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        for cut in 0..text.len() {
            prop_assert!(parse(&text.as_bytes()[..cut]).unwrap().is_none());
        }
        let (head, used) = parse(&[text.as_bytes(), &tail].concat()).unwrap().unwrap();
        prop_assert_eq!(used, text.len());
        prop_assert_eq!((head.path(), head.query()), (path.as_str(), query.as_str()));
        let back: Vec<_> = head.headers().skip(1).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        prop_assert_eq!(back, fields);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"GET / HTTP/1.1\r\nHost: a\r\n".as_slice(), &bytes, b"\r\n\r\n"].concat());
    }

    /// A cut head is either unfinished or already wrong in the way the whole one is: never finished
    /// differently.
    #[test]
    fn near_misses(
        line in "(GET|POST|get) [/*a?# ]{1,4} HTTP/1\\.[0-2]\r?\n",
        fields in "((Host|Content-Length|X)[ :]{1,2}[a-b0-9,\t]{0,3}\r?\n){0,3}\r?\n",
    ) {
        let text = line + &fields;
        let whole = parse(text.as_bytes());
        for cut in 0..text.len() {
            match (parse(&text.as_bytes()[..cut]), &whole) {
                (Ok(None), _) => {}
                (Ok(Some((_, used))), Ok(Some((_, whole)))) => prop_assert_eq!(used, *whole),
                (Err(early), Err(late)) => prop_assert_eq!(early, *late),
                (early, late) => prop_assert!(false, "{:?} then {:?}", early, late),
            }
        }
    }
}

const VALUES: &[&[u8]] = &[
    b"",
    b"a",
    b"100-continue",
    b"keep-alive, Upgrade",
    b"12",
    b"\xe9t\xe9",
    b"websocket",
    b"\xc3\xa9",
    b"a longer value, of more than twenty-four bytes",
];

/// All that a head says.
fn said(head: &Head) -> String {
    let fields: Vec<_> = head.headers().collect();
    format!(
        "{:?}",
        (
            (head.method(), head.target(), head.path(), head.query(), head.version(), head.host()),
            (head.keep_alive(), head.framing(), head.expects_continue(), head.is_websocket_upgrade()),
            (fields, head.header("cookie"), head.has_token("connection", "upgrade")),
        )
    )
}

proptest! {
    /// A head that is shared says what it says alone: when it is the first of its kind, and when it is not.
    #[test]
    fn sharing_changes_nothing(
        line in prop::sample::select(&[
            "GET /", "GET /socket.io/?EIO=4&transport=websocket", "GET /socket.io/?EIO=4&token=a%20b&x",
            "GET /a?", "GET http://b/c?d", "POST /?EIO=4", "OPTIONS *", "GET /?EIO", "HEAD /x?y",
        ][..]),
        old in any::<bool>(),
        fields in prop::collection::vec((
            prop::sample::select(&[
                "Sec-WebSocket-Key", "cookie", "X-Real-IP", "User-Agent", "Connection", "Upgrade", "CF-Ray",
                "If-None-Match", "Accept", "Referer", "Content-Length", "Expect",
            ][..]),
            prop::sample::select(VALUES),
        ), 0..8),
    ) {
        let mut bytes = format!("{line} HTTP/1.{}\r\nHost: a\r\n", u8::from(!old)).into_bytes();
        for (name, value) in fields {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        let (limits, mut shapes) = (HeadLimits::default(), Shapes::default());
        let alone = Head::parse(&bytes, &limits).map(|head| head.map(|(head, used)| (said(&head), used)));
        for _ in 0..2 {
            let shared = Head::parse_sharing(&bytes, &limits, &mut shapes);
            prop_assert_eq!(shared.map(|head| head.map(|(head, used)| (said(&head), used))), alone.clone());
        }
        prop_assert!(shapes.len() <= 1);
    }
}

fn browser(agent: usize, client: usize) -> String {
    format!(
        "GET /socket.io/?EIO=4&transport=websocket&token={client} HTTP/1.1\r\nHost: a\r\n\
         User-Agent: {agent}\r\nCookie: sid={client}; theme=dark\r\nX-Forwarded-For: 10.0.0.{client}\r\n\
         Accept-Language: en\r\nSec-WebSocket-Key: {client:024}\r\n\r\n"
    )
}

#[test]
fn clients_of_one_kind_share_what_they_say() {
    let (limits, mut shapes) = (HeadLimits::default(), Shapes::default());
    let heads: Vec<Head> = (0..200)
        .map(|i| {
            let parsed = Head::parse_sharing(browser(i % 2, i).as_bytes(), &limits, &mut shapes);
            parsed.unwrap().unwrap().0
        })
        .collect();
    assert_eq!(shapes.len(), 2);
    assert!(std::sync::Arc::ptr_eq(&heads[0].shape, &heads[198].shape));
    for (i, head) in heads.iter().enumerate() {
        assert_eq!(head.query(), format!("EIO=4&transport=websocket&token={i}"));
        assert_eq!(head.header("cookie").unwrap(), format!("sid={i}; theme=dark"));
        assert_eq!(head.header("x-forwarded-for").unwrap(), format!("10.0.0.{i}"));
        assert_eq!(head.header("sec-websocket-key").unwrap(), format!("{i:024}"));
        assert_eq!(head.header("user-agent").unwrap(), (i % 2).to_string());
    }
}

/// Nobody makes the table grow, and what nobody uses any more makes place.
#[test]
fn shapes_are_bounded() {
    let (limits, mut shapes) = (HeadLimits::default(), Shapes::default());
    let mut parse = |agent: usize| {
        let parsed = Head::parse_sharing(browser(agent, agent).as_bytes(), &limits, &mut shapes);
        (parsed.unwrap().unwrap().0, shapes.len())
    };
    let kept: Vec<Head> = (0..3000).map(|agent| parse(agent).0).collect();
    assert!(kept.iter().enumerate().all(|(i, head)| head.header("user-agent").unwrap() == i.to_string()));
    let full = parse(3000).1;
    assert!(full < 3000, "{full}");
    drop(kept);
    let after = (4000..5000).map(|agent| parse(agent).1).min();
    assert!(after < Some(full), "{after:?}");
}
