//! What the benches of the codecs are fed, here and in `peers`.

/// Masks every frame.
pub(crate) const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// What Chrome sends to open a session, shortened by nothing.
pub(crate) const HEAD: &[u8] =
    b"GET /socket.io/?EIO=4&transport=polling&t=abc123 HTTP/1.1\r\nHost: localhost:3000\r\n\
Connection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\nsec-ch-ua-mobile: ?0\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) \
AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
sec-ch-ua-platform: \"Linux\"\r\nAccept: */*\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n\
Sec-Fetch-Dest: empty\r\nReferer: http://localhost:3000/\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-US,en;q=0.9\r\n\r\n";

/// A packet of Socket.IO.
pub(crate) const EVENT: &str =
    r#"2/chat,12["message",{"room":"general","user":"alice","text":"hello","at":1763712000000,"n":[1,2,3]}]"#;
