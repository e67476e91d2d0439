//! The PROXY protocol, versions 1 and 2: what a proxy says first about the client behind it.
//!
//! By its specification (haproxy.org, "The PROXY protocol", 2020). The header is required where it is
//! switched on, so that nobody can claim an address by leaving it out or in.

// From `core`, which has addresses and no sockets.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whose connection it is.
///
/// ```
/// use sockring::protocol::proxy::{Source, parse};
/// assert_eq!(parse(b"PROXY UNKNOWN\r\n")?.map(|(source, _)| source), Some(Source::Unknown));
/// # Ok::<(), sockring::protocol::proxy::ProxyError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The proxy's own, such as a health check, or one of which it knows nothing: the connection's real
    /// address counts.
    Unknown,
    /// A client's at this address.
    Address(SocketAddr),
    /// A client's of a Unix socket, which has no address.
    Unix,
}

/// Why a header cannot be read. The connection is to be closed at once (section 2).
///
/// ```
/// use sockring::protocol::proxy::{ProxyError, parse};
/// assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(ProxyError::Missing));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The connection begins with something else.
    #[error("no header of the PROXY protocol")]
    Missing,
    /// A version 1 line that is not as section 2.1 says.
    #[error("a malformed line of the PROXY protocol")]
    Line,
    /// A version 2 header that is not as section 2.2 says.
    #[error("a malformed binary header of the PROXY protocol")]
    Binary,
    /// A header longer than its version, or [`BINARY_MAX`], allows.
    #[error("a header of the PROXY protocol that is too long")]
    TooLong,
}

/// Bytes of the longest version 1 line, its end included (section 2.1).
pub const LINE_MAX: usize = 107;

/// Bytes of the longest version 2 header. Addresses take at most 216 of them; the rest is room for the
/// fields behind them, such as a certificate's names. The format would allow 64 KiB.
pub const BINARY_MAX: usize = 4096;

const LINE_START: &[u8] = b"PROXY ";
const BINARY_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The start, version and command, family, and the length of what follows.
const BINARY_HEAD: usize = 16;

/// Reads the header at the front of `bytes`: what it says, and how long it is. `None`: more is needed.
///
/// The fields behind a version 2 header's addresses are skipped.
///
/// ```
/// use sockring::protocol::proxy::{Source, parse};
/// let (source, used) = parse(b"PROXY TCP4 192.0.2.1 192.0.2.9 5000 443\r\nGET /")?.unwrap();
/// assert_eq!(source, Source::Address("192.0.2.1:5000".parse().unwrap()));
/// assert_eq!(used, 41);
/// # Ok::<(), sockring::protocol::proxy::ProxyError>(())
/// ```
pub fn parse(bytes: &[u8]) -> Result<Option<(Source, usize)>, ProxyError> {
    if begins(bytes, LINE_START) {
        parse_line(bytes)
    } else if begins(bytes, BINARY_START) {
        parse_binary(bytes)
    } else {
        Err(ProxyError::Missing)
    }
}

/// Whether `bytes` begin with `start`, as far as they go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let known = bytes.len().min(start.len());
    bytes[..known] == start[..known]
}

fn parse_line(bytes: &[u8]) -> Result<Option<(Source, usize)>, ProxyError> {
    let seen = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = seen.windows(2).position(|two| two == b"\r\n") else {
        return if seen.len() == LINE_MAX { Err(ProxyError::TooLong) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&seen[LINE_START.len()..end]).map_err(|_| ProxyError::Line)?;
    let source = read_line(line).ok_or(ProxyError::Line)?;
    Ok(Some((source, end + 2)))
}

/// What stands between `PROXY ` and the end of the line.
fn read_line(line: &str) -> Option<Source> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // The rest is to be ignored.
        return Some(Source::Unknown);
    }
    let mut address = || -> Option<IpAddr> {
        match family {
            "TCP4" => Some(IpAddr::V4(words.next()?.parse().ok()?)),
            "TCP6" => Some(IpAddr::V6(words.next()?.parse().ok()?)),
            _ => None,
        }
    };
    let (source, _) = (address()?, address()?);
    let (port, _) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then_some(Source::Address(SocketAddr::new(source, port)))
}

/// Digits and nothing else: `u16::from_str` takes a sign, and zeroes in front.
fn port(digits: &str) -> Option<u16> {
    let plain =
        digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

fn parse_binary(bytes: &[u8]) -> Result<Option<(Source, usize)>, ProxyError> {
    // Bad values are refused as soon as they are seen.
    let command = bytes.get(12).copied();
    if command.is_some_and(|byte| byte != 0x20 && byte != 0x21) {
        return Err(ProxyError::Binary);
    }
    let family = bytes.get(13).copied();
    if family.is_some_and(|byte| byte >> 4 > 3 || byte & 15 > 2) {
        return Err(ProxyError::Binary);
    }
    let (Some(command), Some(family), Some(length)) = (command, family, bytes.get(14..BINARY_HEAD)) else {
        return Ok(None);
    };
    let end = BINARY_HEAD + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if end > BINARY_MAX {
        return Err(ProxyError::TooLong);
    }
    let Some(body) = bytes.get(BINARY_HEAD..end) else { return Ok(None) };
    let source = if command == 0x20 { Source::Unknown } else { read_addresses(family, body)? };
    Ok(Some((source, end)))
}

/// The source among the addresses of a version 2 header: source, destination, source port, destination port.
fn read_addresses(family: u8, body: &[u8]) -> Result<Source, ProxyError> {
    let ip = match family >> 4 {
        1 => {
            let (source, _) = body.first_chunk::<12>().ok_or(ProxyError::Binary)?.split_at(4);
            IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(source).map_err(|_| ProxyError::Binary)?))
        }
        2 => {
            let (source, _) = body.first_chunk::<36>().ok_or(ProxyError::Binary)?.split_at(16);
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(source).map_err(|_| ProxyError::Binary)?))
        }
        3 if body.len() >= 216 => return Ok(Source::Unix),
        3 => return Err(ProxyError::Binary),
        _ => return Ok(Source::Unknown),
    };
    let at = if ip.is_ipv4() { 8 } else { 32 };
    Ok(Source::Address(SocketAddr::new(ip, u16::from_be_bytes([body[at], body[at + 1]]))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [BINARY_START, &[command, family], &length, body].concat()
    }

    fn v1(source: SocketAddr) -> Vec<u8> {
        let (family, to) = if source.is_ipv4() { ("TCP4", "10.0.0.1") } else { ("TCP6", "::1") };
        format!("PROXY {family} {} {to} {} 443\r\n", source.ip(), source.port()).into_bytes()
    }

    fn v2(source: SocketAddr, fields: &[u8]) -> Vec<u8> {
        let port = source.port().to_be_bytes();
        let body = match source.ip() {
            IpAddr::V4(ip) => [&ip.octets()[..], &[10, 0, 0, 1], &port, &[1, 187], fields].concat(),
            IpAddr::V6(ip) => [&ip.octets()[..], &[0; 16], &port, &[1, 187], fields].concat(),
        };
        binary(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, &body)
    }

    fn addresses() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    /// Every proper prefix needs more; with anything behind it, the header reads the same.
    fn reads(header: &[u8], source: Source) {
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end]), Ok(None), "after {end} bytes");
        }
        for rest in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"\r\n", &[0; 300]] {
            assert_eq!(parse(&[header, rest].concat()), Ok(Some((source, header.len()))));
        }
    }

    proptest! {
        #[test]
        fn both_versions_round_trip(address in addresses(), fields in any::<[u8; 30]>()) {
            reads(&v1(address), Source::Address(address));
            reads(&v2(address, &fields), Source::Address(address));
        }

        #[test]
        fn nothing_panics_and_verdicts_stay(start in 0..3, bytes in any::<Vec<u8>>()) {
            let bytes = match start {
                0 => bytes,
                1 => [LINE_START, &bytes].concat(),
                _ => [BINARY_START, &bytes].concat(),
            };
            let mut settled = None;
            for end in 0..=bytes.len() {
                let verdict = parse(&bytes[..end]);
                if let Some(settled) = settled {
                    prop_assert_eq!(verdict, settled);
                } else if verdict != Ok(None) {
                    settled = Some(verdict);
                }
            }
        }
    }

    #[test]
    fn unknown_and_local_keep_the_real_address() {
        reads(b"PROXY UNKNOWN\r\n", Source::Unknown);
        reads(b"PROXY UNKNOWN ffff:f ffff:f 65535 65535\r\n", Source::Unknown);
        reads(&binary(0x20, 0x00, b""), Source::Unknown);
        reads(&binary(0x20, 0x11, &[1; 12]), Source::Unknown);
        reads(&binary(0x21, 0x00, b"anything"), Source::Unknown);
    }

    #[test]
    fn unix_and_datagram_sources() {
        reads(&binary(0x21, 0x31, &[b'p'; 216]), Source::Unix);
        let body = [&[192, 0, 2, 1, 10, 0, 0, 1][..], &[0, 80, 1, 187]].concat();
        reads(&binary(0x21, 0x12, &body), Source::Address("192.0.2.1:80".parse().unwrap()));
    }

    #[test]
    fn the_longest_line_is_read_and_no_longer_one() {
        let long = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY UNKNOWN {long} {long} 65535 65535\r\n");
        assert_eq!(line.len(), LINE_MAX);
        reads(line.as_bytes(), Source::Unknown);
        assert_eq!(parse(line.replace("\r\n", "0\r\n").as_bytes()), Err(ProxyError::TooLong));
        assert_eq!(parse(&[b'P'; 200]), Err(ProxyError::Missing));
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in [
            "TCP4 192.0.2.1 192.0.2.2 1 2 ",
            "TCP4 192.0.2.1 192.0.2.2 1",
            "TCP4 192.0.2.1 192.0.2.2 1 2 3",
            "TCP4  192.0.2.1 192.0.2.2 1 2",
            "TCP4 ::1 ::1 1 2",
            "TCP6 192.0.2.1 192.0.2.2 1 2",
            "TCP6 fe80::1%eth0 ::1 1 2",
            "TCP4 192.0.2.01 192.0.2.2 1 2",
            "TCP4 192.0.2.256 192.0.2.2 1 2",
            "TCP4 192.0.2.1 192.0.2.2 65536 2",
            "TCP4 192.0.2.1 192.0.2.2 +1 2",
            "TCP4 192.0.2.1 192.0.2.2 01 2",
            "TCP4 192.0.2.1 192.0.2.2  2",
            "tcp4 192.0.2.1 192.0.2.2 1 2",
            "UDP4 192.0.2.1 192.0.2.2 1 2",
            "\u{fc}",
            "",
        ] {
            assert_eq!(parse(format!("PROXY {line}\r\n").as_bytes()), Err(ProxyError::Line), "{line}");
        }
    }

    #[test]
    fn malformed_binary_headers_are_refused_at_the_first_bad_byte() {
        for (command, family) in [(0x11, 0x11), (0x22, 0x11), (0x31, 0x11), (0x21, 0x41), (0x21, 0x13)] {
            let header = binary(command, family, &[0; 12]);
            let at = if command >> 4 == 2 && command & 15 < 2 { 14 } else { 13 };
            assert_eq!(parse(&header[..at - 1]), Ok(None));
            assert_eq!(parse(&header[..at]), Err(ProxyError::Binary));
        }
        for (family, length) in [(0x11, 11), (0x21, 35), (0x31, 215)] {
            assert_eq!(parse(&binary(0x21, family, &vec![0; length])), Err(ProxyError::Binary));
        }
        let largest = binary(0x20, 0, &vec![0; BINARY_MAX - BINARY_HEAD]);
        assert_eq!(parse(&largest), Ok(Some((Source::Unknown, BINARY_MAX))));
        let larger = binary(0x20, 0, &vec![0; BINARY_MAX - BINARY_HEAD + 1]);
        assert_eq!(parse(&larger[..BINARY_HEAD]), Err(ProxyError::TooLong));
    }

    #[test]
    fn other_protocols_are_no_header() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"POST", b"\x16\x03\x01", b"\r\n\r\nGET", b"PROXYTCP4", b"proxy "]
        {
            assert_eq!(parse(bytes), Err(ProxyError::Missing));
        }
    }
}
