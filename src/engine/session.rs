//! One session's state machine: packets and time in, what to do out. Pure.

use super::CloseReason;
use super::heartbeat::{Beat, Heartbeat};
use super::upgrade::{Late, Upgrade};
use crate::protocol::eio::{Packet, PacketType, Revision};
use crate::time::Millis;

/// How a session's packets travel.
///
/// ```
/// use sockring::engine::{Options, Transport};
/// let options = Options { transports: vec![Transport::WebSocket], ..Options::default() };
/// assert_eq!(options.transports[0].as_str(), "websocket");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// HTTP long-polling.
    Polling,
    /// WebSocket.
    WebSocket,
}

impl Transport {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Polling => "polling",
            Self::WebSocket => "websocket",
        }
    }

    /// The transport of a name on the wire. WebTransport will have none here: it asks for nothing over HTTP.
    pub(super) fn from_query(name: &str) -> Option<Self> {
        [Self::Polling, Self::WebSocket].into_iter().find(|transport| transport.as_str() == name)
    }

    /// Whether its requests are handshakes of another protocol.
    pub(super) fn upgrades(self) -> bool {
        self == Self::WebSocket
    }
}

/// An open session. Methods are getters, `handle_*` for what comes from network and clock, and
/// [`deadline`](Self::deadline) for when the clock matters next; nothing is sent from here.
///
/// ```
/// use sockring::engine::{Due, Heard, Session, Transport};
/// use sockring::protocol::eio::{Revision, decode_text};
/// let mut session = Session::new(0, Transport::Polling, Revision::V4, 25_000, 20_000);
/// assert_eq!(session.handle_packet(10, &decode_text("4hello").unwrap()), Heard::Message);
/// assert_eq!(session.handle_timeout(25_000), Some(Due::Ping));
/// ```
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    revision: Revision,
    heartbeat: Heartbeat,
    upgraded: bool,
    /// `None` for one that has not begun, or is done: sessions live longer than upgrades.
    upgrade: Option<Box<Upgrade>>,
}

// There is one for each client.
const _: () = assert!(size_of::<Session>() <= 32);

/// What follows from a packet of an open session.
///
/// ```
/// use sockring::engine::{Heard, Session, Transport};
/// use sockring::protocol::eio::{Revision, decode_text};
/// let mut session = Session::new(0, Transport::Polling, Revision::V4, 25_000, 20_000);
/// assert_eq!(session.handle_packet(10, &decode_text("4hello").unwrap()), Heard::Message);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was for the session itself.
    Nothing,
    /// It is a ping, which is to be answered with a pong.
    Ping,
    /// It is a message for the application.
    Message,
    /// The session ends.
    Close(CloseReason),
}

/// What is due.
///
/// ```
/// use sockring::engine::{Due, Session, Transport};
/// use sockring::protocol::eio::Revision;
/// let mut session = Session::new(0, Transport::Polling, Revision::V4, 25_000, 20_000);
/// assert_eq!(session.handle_timeout(25_000), Some(Due::Ping));
/// assert_eq!(session.handle_timeout(45_000), Some(Due::Close));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send a ping.
    Ping,
    /// Close the session with `ping timeout`.
    Close,
    /// Answer a waiting poll with a noop.
    Noop,
    /// Close the transport that was to take over.
    AbortUpgrade,
}

impl Session {
    /// A session that opened at `now`; the heartbeat's interval and timeout are in milliseconds.
    pub fn new(
        now: Millis,
        transport: Transport,
        revision: Revision,
        ping_interval: u32,
        ping_timeout: u32,
    ) -> Self {
        let heartbeat = match revision {
            Revision::V3 => Heartbeat::listening(now, ping_interval, ping_timeout),
            Revision::V4 => Heartbeat::new(now, ping_interval, ping_timeout),
        };
        Self { transport, revision, heartbeat, upgraded: false, upgrade: None }
    }

    /// How packets travel now.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The version of the protocol, the same as long as the session lives.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The upgrade, for packets of the transport that is to take over.
    pub fn upgrade(&mut self) -> &mut Upgrade {
        let whole = if self.upgraded { Upgrade::Done } else { Upgrade::Idle };
        self.upgrade.get_or_insert_with(|| Box::new(whole))
    }

    /// The upgrade is complete.
    pub fn handle_upgraded(&mut self) {
        self.transport = Transport::WebSocket;
        (self.upgraded, self.upgrade) = (true, None);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn deadline(&self) -> Millis {
        let upgrade = self.upgrade.as_ref().map_or(Millis::MAX, |upgrade| upgrade.deadline());
        self.heartbeat.deadline().min(upgrade)
    }

    /// A packet came on the session's transport.
    pub fn handle_packet(&mut self, now: Millis, packet: &Packet<'_>) -> Heard {
        match (self.revision, packet) {
            (Revision::V4, Packet::Text { kind: PacketType::Pong, .. }) => {
                self.heartbeat.handle_pong(now);
                return Heard::Nothing;
            }
            (Revision::V3, Packet::Text { kind: PacketType::Ping, .. }) => {
                self.heartbeat.handle_ping(now);
                return Heard::Ping;
            }
            _ => {}
        }
        self.heartbeat.handle_activity(now);
        match packet {
            Packet::Binary(_) | Packet::Text { kind: PacketType::Message, .. } => Heard::Message,
            Packet::Text { kind, .. } => match kind {
                PacketType::Close => Heard::Close(CloseReason::TransportClose),
                // In each version of the protocol only one side pings.
                PacketType::Ping | PacketType::Pong => Heard::Close(CloseReason::TransportError),
                _ => Heard::Nothing,
            },
        }
    }

    /// The client is not heard because nothing was read from it: it gets its time again.
    pub fn postpone(&mut self, now: Millis) {
        self.heartbeat.postpone(now);
    }

    /// What is due at `now`. To be called until it says `None`.
    pub fn handle_timeout(&mut self, now: Millis) -> Option<Due> {
        if let Some(late) = self.upgrade.as_mut().and_then(|upgrade| upgrade.handle_timeout(now)) {
            return Some(match late {
                Late::Noop => Due::Noop,
                Late::Abort => Due::AbortUpgrade,
            });
        }
        Some(match self.heartbeat.handle_timeout(now)? {
            Beat::Ping => Due::Ping,
            Beat::Dead => Due::Close,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::eio::decode_text;

    fn hear(session: &mut Session, now: Millis, text: &str) -> Heard {
        session.handle_packet(now, &decode_text(text).unwrap())
    }

    #[test]
    fn packets_of_an_open_session() {
        let mut session = Session::new(0, Transport::WebSocket, Revision::V4, 300, 200);
        for (text, heard) in [
            ("4", Heard::Message),
            ("3", Heard::Nothing),
            ("0", Heard::Nothing),
            ("5", Heard::Nothing),
            ("6", Heard::Nothing),
            ("1", Heard::Close(CloseReason::TransportClose)),
            ("2", Heard::Close(CloseReason::TransportError)),
        ] {
            assert_eq!(hear(&mut session, 1, text), heard, "{text}");
        }
        assert_eq!(session.handle_packet(1, &Packet::Binary(vec![4].into())), Heard::Message);
    }

    #[test]
    fn clients_of_version_3_ping() {
        let mut session = Session::new(0, Transport::Polling, Revision::V3, 300, 200);
        assert_eq!(session.handle_timeout(499), None, "the server does not ping");
        assert_eq!(hear(&mut session, 400, "4x"), Heard::Message);
        assert_eq!(session.deadline(), 500);
        assert_eq!(hear(&mut session, 499, "2"), Heard::Ping);
        assert_eq!(hear(&mut session, 500, "2probe"), Heard::Ping);
        assert_eq!(session.handle_timeout(999), None);
        assert_eq!(hear(&mut session, 999, "3"), Heard::Close(CloseReason::TransportError));
        session.handle_upgraded();
        assert_eq!(session.handle_timeout(1000), Some(Due::Close));
    }

    #[test]
    fn the_heartbeat_goes_on_while_the_session_upgrades() {
        let mut session = Session::new(0, Transport::Polling, Revision::V4, 300, 200);
        session.upgrade().begin(250, 10_000);
        session.upgrade().handle_packet(260, &decode_text("2probe").unwrap());
        assert_eq!(session.deadline(), 300);
        assert_eq!(session.handle_timeout(300), Some(Due::Ping));
        assert_eq!(session.handle_timeout(300), None);
        assert_eq!(session.handle_timeout(360), Some(Due::Noop));
        assert_eq!(session.handle_timeout(500), Some(Due::Noop));
        assert_eq!(session.handle_timeout(500), Some(Due::Close));
    }

    #[test]
    fn a_session_moves_once_and_keeps_nothing_of_it() {
        let mut session = Session::new(0, Transport::Polling, Revision::V4, 300, 200);
        assert!(session.upgrade().begin(10, 10_000));
        session.handle_upgraded();
        assert!(session.upgrade.is_none());
        assert_eq!((session.transport(), session.deadline()), (Transport::WebSocket, 300));
        assert!(!session.upgrade().begin(20, 10_000));
        // As in the reference, a second WebSocket may take over from a first one.
        assert!(Session::new(0, Transport::WebSocket, Revision::V4, 300, 200).upgrade().begin(0, 1));
    }

    proptest! {
        /// Whatever comes and however long the clock pauses: a session that answers every ping in time
        /// lives, and the deadline always lies ahead once everything due was handled.
        #[test]
        fn an_answering_client_lives(steps in prop::collection::vec((1u64..190, 0usize..4), 1..200)) {
            let mut session = Session::new(0, Transport::WebSocket, Revision::V4, 300, 200);
            let mut now = 0;
            for (pass, packet) in steps {
                now += pass;
                while let Some(due) = session.handle_timeout(now) {
                    prop_assert_eq!(due, Due::Ping);
                    hear(&mut session, now, "3");
                }
                prop_assert!(session.deadline() > now);
                hear(&mut session, now, ["4x", "6", "0", "3"][packet]);
            }
        }
    }
}
