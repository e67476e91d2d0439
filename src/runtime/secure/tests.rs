//! A session and a client of rustls, with the bytes between them cut anywhere.

use std::io::{Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::{self, ClientConfig, ClientConnection, RootCertStore};

use super::*;

mod crafted;

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
        Self::of(Session::new(ConnectionId::of(0, 0), &tls).unwrap(), client, cuts)
    }

    fn of(session: Session, client: ClientConnection, cuts: Vec<usize>) -> Self {
        Self {
            session,
            client,
            records: Records::default(),
            received: Vec::new(),
            cuts: cuts.into_iter().cycle(),
        }
    }

    /// What the client has to say.
    fn flight(&mut self) -> Vec<u8> {
        let mut flight = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut flight).unwrap();
        }
        flight
    }

    /// Carries what the server says to the client.
    fn deliver(&mut self) {
        let mut back = self.records.bytes();
        while !back.is_empty() {
            // It takes no more than its buffer has room for.
            self.client.read_tls(&mut back).unwrap();
            self.client.process_new_packets().unwrap();
        }
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.client.reader().read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..count]);
        }
        self.records.clear();
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

/// What comes after a record that holds a part of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Garbage,
    /// The server says nothing until it gives the connection up: it closes, and what it owes is dropped.
    Silence,
    /// The server has something to send.
    Data,
    /// The peer closes in form; over a part of a message that is an error.
    Close,
    /// The server closes, with something to send.
    Shutdown,
    /// The rest of the message.
    Rest,
}

const ALL: [Then; 6] = [Then::Garbage, Then::Silence, Then::Data, Then::Close, Then::Shutdown, Then::Rest];

/// A message of the client, cut: the session is there where the message is due.
struct Cut {
    pair: Pair,
    secrets: Arc<crafted::Secrets>,
    message: Vec<u8>,
    kind: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Hello,
    Finished,
    KeyUpdate,
}

impl Cut {
    fn new(tls: &Tls, roots: &RootCertStore, kind: What) -> Self {
        let (config, secrets) = crafted::config(roots.clone());
        let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut pair = Pair::of(Session::new(ConnectionId::of(0, 0), tls).unwrap(), client, vec![4096]);
        let message = match kind {
            What::Hello => pair.flight()[5..].to_vec(),
            What::Finished => {
                let mut hello = pair.flight();
                let standing = pair.session.receive(&mut hello, &mut Vec::new(), &mut pair.records);
                assert_eq!(standing, Standing::Open);
                pair.deliver();
                secrets.handshake().open_last(0, &pair.flight())
            }
            What::KeyUpdate => {
                pair.pump();
                crafted::KEY_UPDATE.to_vec()
            }
        };
        Self { pair, secrets, message, kind }
    }

    fn record(&self, number: u64, bytes: &[u8]) -> Vec<u8> {
        match self.kind {
            What::Hello => crafted::plain(bytes),
            What::Finished => self.secrets.handshake().seal(number, bytes),
            What::KeyUpdate => self.secrets.traffic().seal(number, bytes),
        }
    }

    fn receive(&mut self, mut bytes: Vec<u8>) -> Standing {
        self.pair.session.receive(&mut bytes, &mut Vec::new(), &mut self.pair.records)
    }
}

/// rustls keeps places in bytes that it has not discarded, and reads there at the next call, whatever that is
/// for: a call without these bytes panicked.
#[test]
fn a_part_of_a_message_harms_nobody_whatever_comes_next() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let tls = Tls::from_pem(made.cert.pem(), made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    for kind in [What::Hello, What::Finished, What::KeyUpdate] {
        let len = Cut::new(&tls, &roots, kind).message.len();
        for part in 1..len {
            for then in ALL {
                a_part_and(then, part, Cut::new(&tls, &roots, kind));
            }
        }
    }
}

fn a_part_and(then: Then, part: usize, mut cut: Cut) {
    let at = format!("{:?} {part} {then:?}", cut.kind);
    let first = cut.record(0, &cut.message[..part]);
    assert_eq!(cut.receive(first), Standing::Open, "{at}");
    assert_eq!(cut.pair.records.len, 0, "{at}: nothing is said to a part");
    let established = cut.kind == What::KeyUpdate;
    match then {
        Then::Garbage | Then::Close => {
            let bytes = if then == Then::Garbage { vec![0x99; 20] } else { vec![21, 3, 3, 0, 2, 1, 0] };
            let standing = cut.receive(bytes);
            assert!(matches!(standing, Standing::Failed(_)), "{at}: {standing:?}");
            // rustls says nothing to an alert in the middle of a message.
            let alert = is_alert(cut.pair.records.bytes());
            assert!(alert || then == Then::Close, "{at}: {:?}", cut.pair.records.bytes());
        }
        Then::Silence => {}
        Then::Data | Then::Shutdown => {
            cut.pair.session.seal(b"data", &mut cut.pair.records).unwrap();
            cut.pair.received.clear();
            cut.pair.deliver();
            assert_eq!(cut.pair.received == b"data", established, "{at}");
            assert!(established || cut.pair.received.is_empty(), "{at}");
        }
        Then::Rest => {
            let rest = cut.record(1, &cut.message[part..]);
            assert_eq!(cut.receive(rest), Standing::Open, "{at}");
            assert_eq!(cut.pair.session.held.capacity(), 0, "{at}");
            let answered = cut.pair.records.len > 0;
            // The server's flight, its ticket, and nothing to a KeyUpdate that asks for none.
            assert_eq!(answered, !established, "{at}");
            assert_eq!(cut.pair.session.is_handshaking(), cut.kind == What::Hello, "{at}");
        }
    }
    // However it stands, it can be closed, and more than once.
    cut.pair.session.seal(b"late", &mut cut.pair.records).unwrap();
    cut.pair.session.finish(&mut cut.pair.records);
    cut.pair.session.finish(&mut cut.pair.records);
}
