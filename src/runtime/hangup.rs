//! Clients that have closed their side of the connection and may still read.

use super::connection::{ConnectionId, Ended, Phase, Receive};
use super::core::Core;
use super::guard::guarded;
use super::ring::Kind;

impl Core {
    /// The peer sends no more. The layer above may still have something to say; if not, this is the end.
    pub(super) fn end_of_stream(&self, id: ConnectionId) {
        let phase = self.connection(id.slot).map(|connection| connection.phase);
        if let Some(Phase::Moving { .. }) = phase {
            // The core that it leaves for sees it again.
            return self.receive_stopped(id);
        }
        let open = phase == Some(Phase::Open);
        let mut kept = false;
        if let (true, Some(service)) = (open, self.service()) {
            guarded("the end of a client's side", || kept = service.half_closed(id));
        }
        if kept {
            self.watch_hangup(id);
        } else {
            self.end(id, Ended::Eof);
        }
    }

    /// No receive is armed any more that would tell of a reset: a poll for nothing else does.
    fn watch_hangup(&self, id: ConnectionId) {
        let watched = self.with(id, |connection| {
            connection.receive = Receive::Ended;
            (connection.target, connection.tag(Kind::Hangup, id.slot))
        });
        if let Some((target, tag)) = watched {
            self.queue(|ring| ring.poll_hangup(target, tag));
        }
    }

    /// The poll of a half-closed connection says something: that the peer is gone, or that it was cancelled,
    /// or what was known.
    pub(super) fn hung_up(&self, id: ConnectionId, result: i32) {
        let gone = result > 0 && result & i32::from(libc::POLLERR | libc::POLLHUP) != 0;
        if !gone {
            return;
        }
        if self.with(id, |_| ()).is_some() {
            self.end(id, Ended::Reset);
        }
    }
}
