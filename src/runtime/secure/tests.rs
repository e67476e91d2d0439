//! A session and a client of rustls, with the bytes between them cut anywhere.

use std::io::{Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

struct Pair {
    session: Session,
    client: ClientConnection,
    /// Records on their way to the client.
    records: Records,
    received: Vec<u8>,
    /// Lengths of the next pieces, again and again.
    cuts: std::iter::Cycle<std::vec::IntoIter<usize>>,
}

impl Pair {
    fn new(cuts: Vec<usize>) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let tls = Tls::from_pem(made.cert.pem(), made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        client.set_buffer_limit(None);
        Self {
            session: Session::new(ConnectionId::of(0, 0), &tls).unwrap(),
            client,
            records: Records::default(),
            received: Vec::new(),
            cuts: cuts.into_iter().cycle(),
        }
    }

    /// Carries everything to both sides, in pieces; what the server has read.
    fn pump(&mut self) -> (Vec<u8>, Standing) {
        let (mut plain, mut standing) = (Vec::new(), Standing::Open);
        loop {
            let mut flight = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut flight).unwrap();
            }
            let mut rest = &mut flight[..];
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at_mut(self.cuts.next().unwrap().min(rest.len()));
                let now = self.session.receive(piece, &mut plain, &mut self.records);
                standing = if now == Standing::Open { standing } else { now };
                rest = behind;
            }
            let mut back = self.records.bytes();
            while !back.is_empty() {
                let (mut piece, behind) = back.split_at(self.cuts.next().unwrap().min(back.len()));
                while !piece.is_empty() {
                    // It takes no more than its buffer has room for.
                    self.client.read_tls(&mut piece).unwrap();
                    self.client.process_new_packets().unwrap();
                }
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = self.client.reader().read(&mut buffer) {
                    self.received.extend_from_slice(&buffer[..count]);
                }
                back = behind;
            }
            self.records.clear();
            if !self.client.wants_write() {
                return (plain, standing);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_goes_in_comes_out_however_it_is_cut(
        cuts in prop::collection::vec(1usize..3000, 1..20),
        messages in prop::collection::vec((any::<bool>(), 0usize..40_000), 1..8),
    ) {
        let mut pair = Pair::new(cuts);
        let (plain, standing) = pair.pump();
        prop_assert!(plain.is_empty() && standing == Standing::Open && !pair.session.is_handshaking());
        for (to_server, len) in messages {
            let message: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            if to_server {
                pair.client.writer().write_all(&message).unwrap();
                prop_assert!(pair.pump().0 == message);
            } else {
                pair.session.seal(&message, &mut pair.records).unwrap();
                pair.received.clear();
                pair.pump();
                prop_assert!(pair.received == message);
            }
            // Nothing is kept between messages.
            prop_assert_eq!(pair.session.held.capacity(), 0);
        }
        pair.session.finish(&mut pair.records);
        let said = pair.records.len;
        pair.session.finish(&mut pair.records);
        prop_assert!(said > 0 && pair.records.len == said, "once");
        pair.pump();
        prop_assert_eq!(pair.client.reader().read(&mut [0; 1]).unwrap(), 0);
        pair.client.send_close_notify();
        prop_assert_eq!(pair.pump().1, Standing::PeerFinished);
    }

    #[test]
    fn garbage_fails_with_an_alert(bytes in prop::collection::vec(any::<u8>(), 6..200)) {
        let mut pair = Pair::new(vec![1]);
        let (mut plain, mut bytes) = (Vec::new(), bytes);
        // No record of a handshake.
        bytes[0] = 0;
        let standing = pair.session.receive(&mut bytes, &mut plain, &mut pair.records);
        prop_assert!(matches!(standing, Standing::Failed(_)) && plain.is_empty());
        prop_assert_eq!(&pair.records.bytes()[..2], &[21, 3]);
        // Nobody reads it before the handshake.
        let before = pair.records.len;
        let _ = pair.session.seal(b"secret", &mut pair.records);
        prop_assert_eq!(pair.records.len, before);
    }
}
