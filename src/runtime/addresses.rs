//! Connections of one core by the address of their client, for [`Options::connections_per_address`].
//!
//! [`Options::connections_per_address`]: super::Options::connections_per_address

use std::net::{IpAddr, SocketAddr};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

/// Counts connections by address.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// Connections that one address may have; 0 means any number, and nothing is counted.
    max: usize,
    counts: HashMap<Client, u32, RandomState>,
}

/// One client: an IPv4 address, or the first 64 bits of an IPv6 address, since a network of that size is what
/// one subscriber gets (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4(u32),
    V6(u64),
}

impl From<SocketAddr> for Client {
    fn from(address: SocketAddr) -> Self {
        // A listener for both families sees IPv4 addresses mapped into IPv6 (RFC 4291 section 2.5.5.2).
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl Addresses {
    pub(super) fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    /// Counts a connection.
    pub(super) fn enter(&mut self, peer: Option<SocketAddr>) {
        let Some(peer) = peer.filter(|_| self.max > 0) else { return };
        *self.counts.entry(peer.into()).or_insert(0) += 1;
    }

    /// Whether an address has more connections than it may have.
    pub(super) fn are_too_many(&self, peer: Option<SocketAddr>) -> bool {
        let Some(peer) = peer.filter(|_| self.max > 0) else { return false };
        self.counts.get(&Client::from(peer)).is_some_and(|count| *count as usize > self.max)
    }

    /// A connection that was counted is gone.
    pub(super) fn leave(&mut self, peer: Option<SocketAddr>) {
        let Some(peer) = peer.filter(|_| self.max > 0) else { return };
        if let Entry::Occupied(mut count) = self.counts.entry(peer.into()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(address.parse().unwrap(), 1))
    }

    /// Counts a connection; whether it may stay.
    fn enter(addresses: &mut Addresses, peer: Option<SocketAddr>) -> bool {
        addresses.enter(peer);
        !addresses.are_too_many(peer)
    }

    #[test]
    fn an_address_may_have_so_many_connections() {
        let mut addresses = Addresses::new(2);
        let a = peer("192.0.2.1");
        assert_eq!([a, a, a].map(|peer| enter(&mut addresses, peer)), [true, true, false]);
        addresses.leave(a);
        addresses.leave(a);
        assert!(enter(&mut addresses, a));
        addresses.leave(a);
        addresses.leave(a);
        // An address without a connection has no entry.
        assert!(addresses.counts.is_empty());
    }

    #[test]
    fn what_one_subscriber_has_is_one_address() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("::1", "127.0.0.1", false),
        ] {
            let mut addresses = Addresses::new(1);
            assert!(enter(&mut addresses, peer(one)));
            assert_eq!(!enter(&mut addresses, peer(other)), same, "{one} {other}");
        }
    }

    #[test]
    fn without_a_limit_or_an_address_nothing_is_counted() {
        for (max, peer) in [(0, peer("192.0.2.1")), (1, None)] {
            let mut addresses = Addresses::new(max);
            assert!(enter(&mut addresses, peer) && enter(&mut addresses, peer));
            assert!(addresses.counts.is_empty());
            addresses.leave(peer);
        }
    }
}
