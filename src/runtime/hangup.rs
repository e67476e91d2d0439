//! Clients that have closed their side of the connection and may still read.

use super::connection::{ConnectionId, Ended, Phase, Receive};
use super::core::Core;
use super::ring::Kind;

impl Core {
    /// The peer sends no more. The layer above may still have something to say; if not, this is the end.
    pub(super) fn end_of_stream(&self, id: ConnectionId) {
        let phase = self.connection(id).map(|connection| connection.phase);
        if let Some(Phase::Moving { .. }) = phase {
            // The core that it leaves for sees it again.
            return self.receive_stopped(id);
        }
        let open = phase == Some(Phase::Open);
        let mut kept = false;
        if let (true, Some(service)) = (open, self.service()) {
            kept = service.half_closed(id);
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
            connection.target
        });
        if let Some(target) = watched {
            self.queue(|ring| ring.poll_hangup(target, id.tag(Kind::Hangup)));
        }
    }

    /// The poll of a half-closed connection says something: that the peer is gone, or that it was cancelled,
    /// or what was known. `more`: whether it goes on.
    pub(super) fn hung_up(&self, id: ConnectionId, result: i32, more: bool) {
        let watched = self.with(id, |connection| connection.receive == Receive::Ended);
        if watched.is_none() {
            return;
        }
        let gone = result > 0 && result & i32::from(libc::POLLERR | libc::POLLHUP) != 0;
        let failed = result < 0 && result != -libc::ECANCELED;
        if gone || failed {
            self.end(id, Ended::Reset);
        } else if !more && result >= 0 && watched == Some(true) {
            // The kernel ends a multishot poll when it is short of room for completions.
            self.watch_hangup(id);
        }
    }
}
