//! Whom to believe what they say about a client.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;

use crate::protocol::http::{Forwarded, Head, forwarded_address, is_authority};

/// Which proxies stand in front of this server, so that what they write about a client is believed.
///
/// Nobody is, by default: any client may send `X-Forwarded-For`. A proxy that is trusted must write the
/// header that is read here itself, and append to a list or replace it; the other family of headers, which it
/// may pass on as a client sent it, is not looked at.
///
/// ```
/// use sockring::app::{Options, TrustProxy};
/// // A proxy on this machine, or one in the private network:
/// let trust = TrustProxy::networks(["loopback", "10.0.0.0/8"])?;
/// let options = Options { trust_proxy: trust, ..Options::default() };
/// # Ok::<(), sockring::app::InvalidNetwork>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustProxy {
    whom: Whom,
    standard: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Whom {
    #[default]
    Nobody,
    Networks {
        networks: Vec<IpNet>,
        unix: bool,
    },
    Hops(usize),
}

/// What was given to [`TrustProxy::networks`] is neither an address, nor a network, nor a known name.
///
/// ```
/// use sockring::app::TrustProxy;
/// let error = TrustProxy::networks(["10.0.0.0/99"]).unwrap_err();
/// assert_eq!(error.0, "10.0.0.0/99");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no address, no network such as 10.0.0.0/8, and neither loopback, private nor unix")]
pub struct InvalidNetwork(pub String);

impl TrustProxy {
    /// Believes proxies with these addresses, or in these networks. Also known are `loopback`, `private` (the
    /// private and link-local networks of IPv4 and IPv6), and `unix`: whoever comes through a Unix socket.
    ///
    /// The client is the last address in the list that is none of these.
    ///
    /// # Errors
    ///
    /// Something is neither of these.
    pub fn networks<S: AsRef<str>>(list: impl IntoIterator<Item = S>) -> Result<Self, InvalidNetwork> {
        const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
        const PRIVATE: [&str; 6] =
            ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"];
        let (mut networks, mut unix) = (Vec::new(), false);
        for item in list {
            let item = item.as_ref();
            let known: &[&str] = match item {
                "loopback" => &LOOPBACK,
                "private" => &PRIVATE,
                "unix" => {
                    unix = true;
                    continue;
                }
                other => &[other],
            };
            for text in known {
                let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                networks.push(network.map_err(|_| InvalidNetwork(item.to_owned()))?);
            }
        }
        Ok(Self { whom: Whom::Networks { networks, unix }, standard: false })
    }

    /// Believes the last `hops` proxies, whatever their addresses: 1 behind one proxy. For networks where
    /// only they can reach this server; anybody else who can is believed as well.
    #[must_use]
    pub fn hops(hops: usize) -> Self {
        Self { whom: Whom::Hops(hops), standard: false }
    }

    /// Reads `Forwarded` (RFC 7239) instead of `X-Forwarded-For`, `-Proto` and `-Host`.
    #[must_use]
    pub fn forwarded(mut self) -> Self {
        self.standard = true;
        self
    }

    /// Whether the address at a distance from this server is a proxy's: the peer is at 0. `None`: a Unix
    /// socket's.
    fn believes(&self, address: Option<IpAddr>, distance: usize) -> bool {
        match (&self.whom, address) {
            (Whom::Nobody, _) => false,
            (Whom::Hops(hops), _) => distance < *hops,
            (Whom::Networks { unix, .. }, None) => *unix,
            (Whom::Networks { networks, .. }, Some(address)) => {
                networks.iter().any(|network| network.contains(&address))
            }
        }
    }

    /// Who made a request, and how, as far as the proxies that are believed know.
    pub(super) fn origin<'a>(&self, peer: Option<SocketAddr>, head: &'a Head) -> Origin<'a> {
        let peer = peer.map(|peer| peer.ip().to_canonical());
        if !self.believes(peer, 0) {
            return Origin { client: peer, ..Origin::default() };
        }
        if self.standard {
            let list: Vec<Forwarded<'a>> = values(head, "forwarded").flat_map(Forwarded::parse).collect();
            let (client, at) = self.walk(peer, list.iter().rev().map(|element| element.client));
            let element = list.len().checked_sub(at + 1).and_then(|at| list.get(at));
            let (proto, host) = element.map(|e| (e.proto, e.host)).unwrap_or_default();
            return Origin { client, proto, host };
        }
        let addresses: Vec<_> = list(head, "x-forwarded-for").map(forwarded_address).collect();
        let (client, at) = self.walk(peer, addresses.into_iter().rev());
        // A proxy that replaces a list instead of appending to it speaks for all in front of it.
        let said = |name| {
            let list: Vec<&str> = list(head, name).collect();
            list.get(list.len().saturating_sub(at + 1)).copied()
        };
        Origin { client, proto: said("x-forwarded-proto"), host: said("x-forwarded-host") }
    }

    /// From the last address of a list to the client: it, and how many elements behind its own there are.
    fn walk(
        &self,
        peer: Option<IpAddr>,
        backwards: impl Iterator<Item = Option<IpAddr>>,
    ) -> (Option<IpAddr>, usize) {
        let (mut client, mut at) = (peer, 0);
        for (distance, address) in backwards.enumerate() {
            // A proxy that hides its client is all that is known of it.
            let Some(address) = address else { break };
            (client, at) = (Some(address), distance);
            if !self.believes(client, distance + 1) {
                break;
            }
        }
        (client, at)
    }
}

/// What is known of a request's client.
#[derive(Debug, Default)]
pub(super) struct Origin<'a> {
    pub(super) client: Option<IpAddr>,
    proto: Option<&'a str>,
    host: Option<&'a str>,
}

impl<'a> Origin<'a> {
    /// Whether the client has spoken TLS; `None` if no proxy says.
    pub(super) fn is_secure(&self) -> Option<bool> {
        self.proto.map(|proto| proto.eq_ignore_ascii_case("https") || proto.eq_ignore_ascii_case("wss"))
    }

    /// The host that the client has asked for; `None` if no proxy says, or what is none.
    pub(super) fn host(&self) -> Option<&'a str> {
        self.host.filter(|host| is_authority(host.as_bytes()))
    }
}

fn values<'a>(head: &'a Head, name: &'static str) -> impl Iterator<Item = &'a str> {
    head.headers().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn list<'a>(head: &'a Head, name: &'static str) -> impl Iterator<Item = &'a str> {
    values(head, name).flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::HeadLimits;

    fn head(fields: &str) -> Head {
        let text = format!("GET / HTTP/1.1\r\nHost: own\r\n{fields}\r\n");
        Head::parse(text.as_bytes(), &HeadLimits::default()).unwrap().unwrap().0
    }

    /// Client, secure, host.
    type Seen = (Option<IpAddr>, Option<bool>, Option<String>);

    fn seen(trust: &TrustProxy, peer: &str, fields: &str) -> Seen {
        let head = head(fields);
        let peer = peer.parse().ok().map(|ip| SocketAddr::new(ip, 1234));
        let origin = trust.origin(peer, &head);
        (origin.client, origin.is_secure(), origin.host().map(str::to_owned))
    }

    fn client(trust: &TrustProxy, peer: &str, fields: &str) -> String {
        seen(trust, peer, fields).0.map(|ip| ip.to_string()).unwrap_or_default()
    }

    const ALL: &str = "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public\r\n\
                       Forwarded: for=192.0.2.8;proto=https;host=other\r\n";

    #[test]
    fn nobody_is_believed_by_default() {
        let own = ("198.51.100.1".parse().ok(), None, None);
        assert_eq!(seen(&TrustProxy::default(), "198.51.100.1", ALL), own);
        let trust = TrustProxy::networks(["10.0.0.0/8", "unix"]).unwrap();
        assert_eq!(seen(&trust, "198.51.100.1", ALL), own);
        assert_eq!(seen(&TrustProxy::hops(0), "198.51.100.1", ALL), own);
    }

    #[test]
    fn one_family_of_headers_is_read() {
        let trust = TrustProxy::networks(["10.0.0.0/8"]).unwrap();
        let public = ("192.0.2.9".parse().ok(), Some(true), Some("public".into()));
        assert_eq!(seen(&trust, "10.1.2.3", ALL), public);
        assert_eq!(seen(&trust, "::ffff:10.1.2.3", ALL), public);
        let other = ("192.0.2.8".parse().ok(), Some(true), Some("other".into()));
        assert_eq!(seen(&trust.forwarded(), "10.1.2.3", ALL), other);
    }

    #[test]
    fn what_a_client_wrote_itself_is_not_believed() {
        let spoofed = "X-Forwarded-For: 203.0.113.7, 192.0.2.9, 10.0.0.5\r\nX-Forwarded-For: 10.0.0.6\r\n\
                       X-Forwarded-Proto: https, http, http, http\r\n";
        let trust = TrustProxy::networks(["10.0.0.0/8"]).unwrap();
        assert_eq!(seen(&trust, "10.0.0.1", spoofed), ("192.0.2.9".parse().ok(), Some(false), None));
        assert_eq!(client(&TrustProxy::hops(1), "10.0.0.1", spoofed), "10.0.0.6");
        assert_eq!(client(&TrustProxy::hops(3), "10.0.0.1", spoofed), "192.0.2.9");
        assert_eq!(client(&TrustProxy::hops(9), "10.0.0.1", spoofed), "203.0.113.7");
        let forwarded = "Forwarded: for=203.0.113.7;proto=https, for=192.0.2.9;proto=http, for=10.0.0.5\r\n";
        let trust = trust.forwarded();
        assert_eq!(seen(&trust, "10.0.0.1", forwarded), ("192.0.2.9".parse().ok(), Some(false), None));
    }

    #[test]
    fn what_proxies_leave_out() {
        let trust = TrustProxy::networks(["loopback", "unix", "192.0.2.1"]).unwrap();
        assert_eq!(client(&trust, "127.0.0.1", ""), "127.0.0.1");
        assert_eq!(client(&trust, "127.0.0.1", "X-Forwarded-For: unknown\r\n"), "127.0.0.1");
        assert_eq!(client(&trust, "127.0.0.1", "X-Forwarded-For: unknown, 192.0.2.1\r\n"), "192.0.2.1");
        assert_eq!(
            client(&trust, "no address: a Unix socket", "X-Forwarded-For: 192.0.2.3\r\n"),
            "192.0.2.3"
        );
        assert_eq!(seen(&trust, "::1", "X-Forwarded-Host: a/b\r\n").2, None);
        assert_eq!(seen(&trust, "::1", "X-Forwarded-Proto: https\r\n").1, Some(true));
    }

    #[test]
    fn networks_are_checked() {
        for wrong in ["10.0.0.0/33", "example.org", "", "10.0.0"] {
            assert_eq!(TrustProxy::networks([wrong]), Err(InvalidNetwork(wrong.into())));
        }
        assert!(TrustProxy::networks(["private", "2001:db8::/32", "::1"]).is_ok());
    }
}
