//! What is kept for clients who come back: the last packets of all namespaces in one order, as a stream of
//! Redis has them, and sessions.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::adapter::message::{Body, Message};
use crate::io::{BroadcastOptions, KeptPacket, Session};

/// As many as the reference's adapter for Redis streams keeps.
const PACKETS_MAX: usize = 10_000;
/// Sessions whose clients are gone.
const SESSIONS_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct Stream {
    packets: VecDeque<Entry>,
    /// The number of the first packet that is still there.
    first: u64,
    unheard: u64,
    /// By namespace and private id, with the time of its end.
    sessions: HashMap<(String, String), (Session, Instant), RandomState>,
}

struct Entry {
    nsp: String,
    options: BroadcastOptions,
    packet: KeptPacket,
}

impl Stream {
    /// Keeps a broadcast. Its name.
    pub(super) fn push(&mut self, message: &Message) -> String {
        let offset = format!("{}-0", self.first + self.packets.len() as u64);
        if let Body::Broadcast(broadcast) = &message.body {
            let packet = KeptPacket { offset: offset.clone(), args: broadcast.packet.data.clone() };
            let options = broadcast.opts.clone().into();
            self.packets.push_back(Entry { nsp: message.nsp.clone(), options, packet });
        }
        while self.packets.len() > PACKETS_MAX {
            self.packets.pop_front();
            self.first += 1;
        }
        offset
    }

    /// A name for a packet that is not kept.
    pub(super) fn unheard(&mut self) -> String {
        self.unheard += 1;
        format!("unheard-{}", self.unheard)
    }

    pub(super) fn persist(&mut self, nsp: &str, session: Session, lifetime: Duration) {
        let now = Instant::now();
        if self.sessions.len() >= SESSIONS_MAX {
            self.sessions.retain(|_, (_, end)| *end > now);
        }
        let key = (nsp.to_owned(), session.pid.clone());
        if self.sessions.len() < SESSIONS_MAX || self.sessions.contains_key(&key) {
            let end = now.checked_add(lifetime).unwrap_or(now);
            self.sessions.insert(key, (session, end));
        }
    }

    pub(super) fn forget(&mut self, nsp: &str, pid: &str) {
        self.sessions.remove(&(nsp.to_owned(), pid.to_owned()));
    }

    pub(super) fn has(&self, nsp: &str, pid: &str) -> bool {
        self.sessions.contains_key(&(nsp.to_owned(), pid.to_owned()))
    }

    /// Takes a session out, with what it has missed behind a packet.
    pub(super) fn restore(
        &mut self,
        nsp: &str,
        pid: &str,
        offset: &str,
    ) -> Option<(Session, Vec<KeptPacket>)> {
        let key = (nsp.to_owned(), pid.to_owned());
        let last =
            self.packets.iter().rposition(|entry| entry.nsp == nsp && entry.packet.offset == offset)?;
        let (session, _) = self.sessions.remove(&key).filter(|(_, end)| *end > Instant::now())?;
        let meant = |entry: &&Entry| entry.nsp == nsp && is_meant(&entry.options, &session.rooms);
        let missed = self.packets.iter().skip(last + 1).filter(meant);
        let missed = missed.map(|entry| entry.packet.clone()).collect();
        Some((session, missed))
    }
}

/// Whether a broadcast goes to a socket in these rooms.
fn is_meant(options: &BroadcastOptions, rooms: &[String]) -> bool {
    let any = |of: &[String]| of.iter().any(|room| rooms.contains(room));
    (options.rooms.is_empty() || any(&options.rooms)) && !any(&options.except)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::message::{Broadcast, Opts, Packet};
    use crate::protocol::sio::Value;

    fn message(nsp: &str, text: &str, rooms: &[&str], except: &[&str]) -> Message {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let opts = Opts { rooms: names(rooms), except: names(except), ..Opts::default() };
        let packet = Packet { r#type: 2, data: vec![Value::from(text)], nsp: None };
        let body = Body::Broadcast(Broadcast { packet, opts, request_id: None });
        Message { uid: "a".into(), nsp: nsp.into(), body }
    }

    fn session(pid: &str) -> Session {
        Session { pid: pid.into(), sid: "s".into(), rooms: vec!["s".into(), "r".into()], data: Value::Null }
    }

    #[test]
    fn a_session_is_taken_once_with_what_it_missed() {
        let mut stream = Stream::default();
        let last = stream.push(&message("/", "before", &[], &[]));
        for (nsp, text, rooms, except) in [
            ("/", "all", &[][..], &[][..]),
            ("/", "own", &["s"], &[]),
            ("/", "room", &["q", "r"], &[]),
            ("/", "others", &["q"], &[]),
            ("/", "excepted", &[], &["r"]),
            ("/chat", "elsewhere", &[], &[]),
        ] {
            stream.push(&message(nsp, text, rooms, except));
        }
        stream.persist("/", session("p"), Duration::from_secs(60));
        assert!(stream.restore("/", "p", "7-7").is_none(), "nobody knows that packet");
        assert!(stream.restore("/", "q", &last).is_none());
        let (restored, missed) = stream.restore("/", "p", &last).unwrap();
        assert_eq!(restored, session("p"));
        let missed: Vec<&Value> = missed.iter().map(|packet| &packet.args[0]).collect();
        assert_eq!(missed, [&Value::from("all"), &Value::from("own"), &Value::from("room")]);
        assert!(stream.restore("/", "p", &last).is_none() && !stream.has("/", "p"));
    }

    #[test]
    fn packets_and_sessions_are_bounded() {
        let mut stream = Stream::default();
        let first = stream.push(&message("/", "x", &[], &[]));
        for _ in 0..PACKETS_MAX {
            stream.push(&message("/", "x", &[], &[]));
        }
        assert_eq!(stream.packets.len(), PACKETS_MAX);
        stream.persist("/", session("p"), Duration::from_secs(60));
        assert!(stream.restore("/", "p", &first).is_none(), "what came behind it may be gone");
        stream.persist("/", session("short"), Duration::ZERO);
        assert!(stream.restore("/", "short", "5-0").is_none(), "its time is over");
        for i in 0..2 * SESSIONS_MAX {
            stream.persist("/", session(&i.to_string()), Duration::from_secs(60));
        }
        assert_eq!(stream.sessions.len(), SESSIONS_MAX);
        stream.forget("/", "p");
        assert!(!stream.has("/", "p"));
    }
}
