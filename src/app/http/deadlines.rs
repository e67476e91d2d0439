//! How long a client may take.

use super::Http;
use crate::app::service::{Inner, State};
use crate::runtime::ConnectionId;
use crate::time::Millis;

impl Inner {
    /// The absolute deadline of what the connection is doing now.
    pub(super) fn set_deadline(&self, http: &mut Http, deadline: &mut Millis) {
        let now = self.core.now();
        *deadline = if http.pending.is_some() {
            // A handler may take its time; the engine has timers of its own for polls.
            Millis::MAX
        } else if http.unread().is_empty() || http.held {
            now + self.options.keep_alive.as_millis() as Millis
        } else if let Some(partial) = &mut http.partial {
            match std::mem::replace(&mut partial.timed, true) {
                true => return,
                false => now + self.options.body_timeout.as_millis() as Millis,
            }
        } else {
            // Not moved by further bytes of the same head: a slow head does not earn time.
            (*deadline).min(now + self.options.head_timeout.as_millis() as Millis)
        };
    }

    pub(in crate::app) fn http_expired(&self, id: ConnectionId) {
        let idle =
            self.entry(id, |entry| matches!(&entry.state, State::Http(http) if http.is_idle() || http.held));
        if idle == Some(true) {
            self.forget(id);
            self.core.close(id);
        } else {
            self.refuse_and_close(id, 408);
        }
    }
}
