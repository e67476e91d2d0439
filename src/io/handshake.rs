//! What a socket came with.

use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::app::Request;
use crate::protocol::query::Query;
use crate::protocol::sio::Value;
use crate::time::http_date;

/// The handshake of a socket: the request that opened its connection and the auth payload of its namespace.
///
/// Serialised, it has the reference's nine fields: `headers`, `time`, `address`, `xdomain`, `secure`,
/// `issued`, `url`, `query` and `auth`.
///
/// ```no_run
/// # use sockring::io::Socket;
/// # fn on_connection(socket: Socket) {
/// let Some(handshake) = socket.handshake() else { return };
/// let token = handshake.auth.get("token").and_then(|token| token.as_str());
/// let room = handshake.request.query_param("room");
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Handshake {
    /// The request that opened the connection. One that is larger than `engine::Options::kept_head_bytes`
    /// lacks its largest header fields and query parameters.
    pub request: Request,
    /// The payload that the client's `auth` option gave; an empty object if there was none. For clients of
    /// Socket.IO v2 it is the query behind the namespace's name.
    pub auth: Value,
    /// When the socket was made.
    pub issued: SystemTime,
}

impl Handshake {
    /// The client's IP address; behind a proxy, what that says if it is trusted
    /// ([`TrustProxy`](crate::app::TrustProxy)). Empty for a Unix socket.
    pub fn address(&self) -> String {
        self.request.client_ip().map(|ip| ip.to_string()).unwrap_or_default()
    }

    /// Whether the request came from another origin (it has an `Origin` header, as the reference sees it).
    pub fn xdomain(&self) -> bool {
        self.request.header("origin").is_some()
    }

    /// Whether the connection is encrypted.
    pub fn secure(&self) -> bool {
        self.request.is_secure()
    }

    /// Milliseconds since the epoch when the socket was made.
    pub fn issued_ms(&self) -> u64 {
        self.issued.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
    }
}

struct Pairs<'a, I>(I, std::marker::PhantomData<&'a ()>);

impl<'a, I: Iterator<Item = (&'a str, &'a str)> + Clone> Serialize for Pairs<'a, I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.clone())
    }
}

impl Serialize for Handshake {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Node lowers the names of headers and joins repeated ones. There may be thousands.
        let mut headers: Vec<(String, String)> = Vec::new();
        let mut places: HashMap<String, usize, RandomState> = HashMap::default();
        for (name, value) in self.request.headers() {
            let name = name.to_ascii_lowercase();
            match places.get(&name).and_then(|at| headers.get_mut(*at)) {
                Some((_, known)) => {
                    known.push_str(", ");
                    known.push_str(value);
                }
                None => {
                    places.insert(name.clone(), headers.len());
                    headers.push((name, value.to_owned()));
                }
            }
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let query = Query::parse(self.request.query());
        let query: Vec<(&str, &str)> = query.iter().collect();
        let mut map = serializer.serialize_map(Some(9))?;
        map.serialize_entry("headers", &Pairs(headers.iter().copied(), std::marker::PhantomData))?;
        map.serialize_entry("time", &http_date(self.issued).unwrap_or_default())?;
        map.serialize_entry("address", &self.address())?;
        map.serialize_entry("xdomain", &self.xdomain())?;
        map.serialize_entry("secure", &self.secure())?;
        map.serialize_entry("issued", &self.issued_ms())?;
        map.serialize_entry("url", self.request.url())?;
        map.serialize_entry("query", &Pairs(query.iter().copied(), std::marker::PhantomData))?;
        map.serialize_entry("auth", &self.auth)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Request;
    use crate::time::tests::odd_times;

    #[test]
    fn any_clock_is_serialised() {
        let head = "GET /?a=1 HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\n\r\n";
        for issued in odd_times() {
            let handshake = Handshake { request: Request::of_head(head), auth: Value::Null, issued };
            let text = serde_json::to_string(&handshake).unwrap();
            assert!(text.contains("\"time\":\"\"") && text.contains("\"x-a\":\"1, 2\""), "{text}");
        }
    }
}
