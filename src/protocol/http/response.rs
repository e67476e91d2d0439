//! Response heads (RFC 9112 4 and 5).

use super::{is_token, is_value_byte};

/// What a response says about its connection (RFC 9112 9.6).
///
/// ```
/// use sockring::protocol::http::{ConnectionHeader, write_head};
///
/// let mut out = Vec::new();
/// write_head(&mut out, 404, [], Some(0), ConnectionHeader::Close);
/// assert_eq!(out, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionHeader {
    /// Writes nothing: persisting is what HTTP/1.1 does by itself.
    KeepAlive,
    /// Writes `Connection: close`.
    Close,
    /// Writes `Connection: Upgrade`.
    Upgrade,
}

/// The reason phrase of a status code (RFC 9110 15); `Unknown` for a code this server has no use for.
#[must_use]
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// Appends a whole response head to `out`: the status line, `headers` in order, `Content-Length` and
/// `Connection` as asked, the empty line.
///
/// * `status` outside 100..=999 is written as 500.
/// * `body_len` is in bytes; with 1xx and 204 it is not written, whatever it is (RFC 9110 8.6).
/// * A header whose name is not a token or whose value has a control character in it, CR, LF and NUL among
///   them, is **dropped as a whole**: half a value would be a value nobody meant.
/// * Headers named `Connection`, `Content-Length` and `Transfer-Encoding` are dropped as well: those are this
///   function's to say, once.
///
/// ```
/// use sockring::protocol::http::{ConnectionHeader, write_head};
///
/// let mut out = Vec::new();
/// let headers = [("Content-Type", "text/html"), ("X-Bad", "a\r\nSet-Cookie: b")];
/// write_head(&mut out, 200, headers, Some(2), ConnectionHeader::KeepAlive);
/// assert_eq!(out, b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n");
/// ```
pub fn write_head<'a>(
    out: &mut Vec<u8>,
    status: u16,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    body_len: Option<usize>,
    connection: ConnectionHeader,
) {
    let status = sound_status(status);
    write_lines(out, status, headers);
    if let Some(length) = body_len
        && status >= 200
        && status != 204
    {
        out.extend_from_slice(b"Content-Length: ");
        write_decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
    write_connection(out, connection);
}

/// Like [`write_head`], for a body of a length that is not known yet: it says `Transfer-Encoding: chunked`
/// (RFC 9112 6.1). Not for HTTP/1.0, 1xx, 204 and 304.
pub fn write_chunked_head<'a>(
    out: &mut Vec<u8>,
    status: u16,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    connection: ConnectionHeader,
) {
    write_lines(out, sound_status(status), headers);
    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    write_connection(out, connection);
}

/// Appends a chunk to `out` (RFC 9112 7.1); nothing for no data, which would be the end of the body.
///
/// ```
/// use sockring::protocol::http::{LAST_CHUNK, write_chunk};
///
/// let mut out = Vec::new();
/// write_chunk(&mut out, b"seventeen bytes..");
/// out.extend_from_slice(LAST_CHUNK);
/// assert_eq!(out, b"11\r\nseventeen bytes..\r\n0\r\n\r\n");
/// ```
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body without trailers (RFC 9112 7.1).
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn sound_status(status: u16) -> u16 {
    if (100..=999).contains(&status) { status } else { 500 }
}

fn write_lines<'a>(out: &mut Vec<u8>, status: u16, headers: impl IntoIterator<Item = (&'a str, &'a str)>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, usize::from(status));
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        let sound = is_token(name.as_bytes()) && value.bytes().all(is_value_byte);
        let ours = ["connection", "content-length", "transfer-encoding"];
        if !sound || ours.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            continue;
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

fn write_connection(out: &mut Vec<u8>, connection: ConnectionHeader) {
    out.extend_from_slice(match connection {
        ConnectionHeader::KeepAlive => b"\r\n",
        ConnectionHeader::Close => b"Connection: close\r\n\r\n",
        ConnectionHeader::Upgrade => b"Connection: Upgrade\r\n\r\n",
    });
}

/// Appends `number` in decimal without a detour over the formatting machinery: every poll is answered with
/// it.
fn write_decimal(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut used = 0;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.split_at(digits.len() - used).1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(status: u16, headers: &[(&str, &str)], len: Option<usize>, conn: ConnectionHeader) -> String {
        let mut out = Vec::new();
        write_head(&mut out, status, headers.iter().copied(), len, conn);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn leaves_content_length_out_where_it_must_not_stand() {
        let head = written(204, &[], Some(0), ConnectionHeader::KeepAlive);
        assert_eq!(head, "HTTP/1.1 204 No Content\r\n\r\n");
        let head = written(101, &[], Some(0), ConnectionHeader::Upgrade);
        assert_eq!(head, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n");
        assert!(written(304, &[], Some(12), ConnectionHeader::KeepAlive).contains("Content-Length: 12\r\n"));
        assert!(written(7, &[], None, ConnectionHeader::Close).starts_with("HTTP/1.1 500 Internal"));
    }

    #[test]
    fn drops_headers_that_would_break_the_head() {
        let bad = [("a", "b\r\nc: d"), ("a", "\0"), ("a b", "c"), ("", "c"), ("a\n", "c"), ("a", "\x7f")];
        assert_eq!(written(200, &bad, None, ConnectionHeader::KeepAlive), "HTTP/1.1 200 OK\r\n\r\n");
        let ours = [("content-length", "5"), ("Connection", "x"), ("Transfer-Encoding", "chunked")];
        assert_eq!(written(200, &ours, None, ConnectionHeader::KeepAlive), "HTTP/1.1 200 OK\r\n\r\n");
        let good = [("Set-Cookie", "a=b"), ("Set-Cookie", "c=\u{e9}")];
        assert!(
            written(200, &good, None, ConnectionHeader::KeepAlive).contains("a=b\r\nSet-Cookie: c=é\r\n")
        );
    }

    proptest! {
        #[test]
        fn nothing_can_end_the_head_early(name in ".{0,8}", value in ".{0,12}", status: u16, len: usize) {
            let head = written(status, &[(&name, &value)], Some(len), ConnectionHeader::Close);
            prop_assert_eq!(head.find("\r\n\r\n"), Some(head.len() - 4));
            prop_assert!(head.matches("\r\n").count() <= 5);
            prop_assert_eq!(head.matches('\n').count(), head.matches("\r\n").count());
        }

        #[test]
        fn decimal(number: usize) {
            let mut out = Vec::new();
            write_decimal(&mut out, number);
            prop_assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }
}
