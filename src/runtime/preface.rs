//! What comes before a connection's own protocol: the header of the PROXY protocol.

use super::connection::{ConnectionId, Deadline, Phase};
use super::core::Core;
use super::listener::Listening;
use crate::limits;
use crate::protocol::proxy::{self, Source};

impl Core {
    /// A connection was accepted: it begins with what its listener demands, then it is the layer's above.
    pub(super) fn begin(&self, id: ConnectionId) {
        let proxied = self.with(id, |connection| connection.listener).is_some_and(|listener| {
            let listeners = self.listeners.borrow();
            let Some(Listening { settings, .. }) = listeners.get(usize::from(listener)) else { return false };
            #[cfg(feature = "tls")]
            if let Some(tls) = &settings.tls {
                self.open_session(id, tls);
            }
            settings.proxy_protocol
        });
        if proxied {
            let deadline = Deadline::after(self.now(), limits::PREFACE);
            self.connections.borrow_mut().begin_preface(id, deadline);
            self.work.borrow_mut().deadlines = true;
        } else {
            self.open(id);
        }
    }

    /// It is known who the client is: the connection is the layer's above, unless its address has too many.
    fn open(&self, id: ConnectionId) {
        if self.connections.borrow().is_crowded(id) {
            self.counters.crowded.add(1);
            return self.remove(id);
        }
        if let Some(service) = self.service() {
            service.opened(id);
        }
    }

    /// Reads the header of the PROXY protocol, and gives what comes behind it to whom it is for.
    pub(super) fn read_preface(&self, id: ConnectionId, bytes: &mut [u8]) {
        // It nearly always comes in one piece: nothing is copied then.
        let mut held = self.prefaces.borrow_mut().remove(&id).unwrap_or_default();
        let pieced = !held.is_empty();
        if pieced {
            held.extend_from_slice(bytes);
        }
        let whole = if pieced { &mut held[..] } else { bytes };
        match proxy::parse(whole) {
            Ok(None) => {
                let held = if pieced { held } else { whole.to_vec() };
                self.prefaces.borrow_mut().insert(id, held);
            }
            Ok(Some((source, used))) => {
                self.end_preface(id, source);
                if used < whole.len() {
                    self.feed(id, &mut whole[used..]);
                }
            }
            Err(error) => {
                tracing::debug!("core {}: a connection was refused: {error}", self.index);
                self.remove(id);
            }
        }
    }

    fn end_preface(&self, id: ConnectionId, source: Source) {
        self.connections.borrow_mut().end_preface(id, |peer| match source {
            Source::Address(address) => Some(address).into(),
            Source::Unix => None.into(),
            Source::Unknown => peer,
        });
        self.open(id);
    }

    /// The server stops: whoever has not said who they are is not waited for.
    pub(super) fn drop_prefaces(&self) {
        let waiting: Vec<ConnectionId> = {
            let connections = self.connections.borrow();
            let waiting = connections.iter().filter(|(_, c)| matches!(c.phase, Phase::Preface { .. }));
            waiting.map(|(id, _)| id).collect()
        };
        waiting.into_iter().for_each(|id| self.remove(id));
    }
}
