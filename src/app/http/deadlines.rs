//! How long a client may take.

use std::time::Duration;

use super::Http;
use super::refuse::REFUSAL_MS;
use crate::app::routes::BodyEnd;
use crate::app::service::{Due, Inner, State};
use crate::runtime::ConnectionId;
use crate::time::Millis;

/// What the deadline of a connection is for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Clock {
    /// A request is to be complete.
    #[default]
    Request,
    /// A body that a handler reads is to be complete.
    Body,
    /// The next request is to begin.
    Idle,
    /// Nothing: a handler may take its time, and the engine has timers of its own for polls.
    Handler,
    /// The client is to take some of what it is owed. It has idled since `since`; at `checked`, `left` bytes
    /// had left.
    Client { since: Millis, checked: Millis, left: u64 },
}

/// When a connection is looked at again whose deadline has passed while its request waited for a turn.
const QUEUED_MS: Millis = 1000;

/// What becomes of a connection whose deadline has passed.
enum Verdict {
    GoOn,
    Close,
    /// The request is late: the status says so, or why it is refused anyway.
    Late(u16),
    /// The client does not read.
    Stalled,
}

fn millis(duration: Duration) -> Millis {
    duration.as_millis() as Millis
}

impl Inner {
    /// Sets the deadline of what the connection is doing now.
    pub(super) fn set_deadline(&self, http: &mut Http, deadline: &mut Due, owed: usize) {
        let (now, options) = (self.core.now(), &self.options);
        let received = http.unread().len();
        if let Some(partial) = &mut http.partial {
            let earned = (partial.body.received() * 1000).checked_div(options.body_rate as u64).unwrap_or(0);
            let began = *partial.began.get_or_insert(now);
            *deadline = Due::at(began + millis(options.body_timeout) + earned);
            http.clock = Clock::Request;
        } else if let Some(due) = self.body_deadline(http) {
            *deadline = Due::at(due);
            http.clock = Clock::Body;
        } else if owed > 0 && (http.pending.is_some() || http.held || received == 0) {
            self.expect_progress(http, deadline, owed);
        } else if http.pending.is_some() {
            *deadline = Due::at(Millis::MAX);
            http.clock = Clock::Handler;
        } else if received == 0 {
            *deadline = Due::at(now + millis(options.keep_alive));
            http.clock = Clock::Idle;
        } else {
            // Not moved by further bytes of the same head: a slow head does not earn time.
            let before = if matches!(http.clock, Clock::Request) { deadline.millis() } else { Millis::MAX };
            let timeout = millis(options.head_timeout);
            let timeout = if http.refused.is_some() { timeout.min(REFUSAL_MS) } else { timeout };
            *deadline = Due::at(before.min(now + timeout));
            http.clock = Clock::Request;
        }
    }

    /// The client has been sent something.
    pub(super) fn expect_progress(&self, http: &mut Http, deadline: &mut Due, owed: usize) {
        let now = self.core.now();
        let left = http.sent.saturating_sub(owed as u64);
        if let Clock::Client { left: before, .. } = http.clock
            && left <= before
        {
            // Neither sending on nor another answer buys a client time that takes nothing.
            return;
        }
        http.clock = Clock::Client { since: now, checked: now, left };
        *deadline = Due::at(now + millis(self.options.write_timeout.min(self.options.keep_alive)));
    }

    pub(in crate::app) fn http_expired(&self, id: ConnectionId, now: Millis) {
        let owed = self.core.owed_bytes(id);
        let verdict = self.entry(id, |entry| match &mut entry.state {
            State::Http(http) => self.judge(http, &mut entry.deadline, owed, now),
            State::WebSocket(_) => Verdict::GoOn,
        });
        match verdict {
            None | Some(Verdict::GoOn) => {}
            Some(Verdict::Late(status)) => self.refuse_and_close(id, status),
            Some(Verdict::Close) => {
                self.forget(id);
                self.core.close(id);
            }
            Some(Verdict::Stalled) => {
                tracing::debug!("a client does not read its answer, its connection is aborted");
                let entry = self.forget(id);
                self.core.abort(id);
                if let Some(State::Http(http)) = entry.map(|entry| entry.state) {
                    http.aborted(BodyEnd::Aborted);
                }
            }
        }
    }

    fn judge(&self, http: &mut Http, deadline: &mut Due, owed: usize, now: Millis) -> Verdict {
        match http.clock {
            // It is the core that is late: what has come is read when a turn has time.
            Clock::Request | Clock::Idle if http.queued && !http.held => {
                *deadline = Due::at(now + QUEUED_MS);
                Verdict::GoOn
            }
            // Whoever has sent nothing at all is not told why.
            Clock::Request if http.unread().is_empty() => Verdict::Close,
            Clock::Request | Clock::Body => Verdict::Late(http.refused_status().unwrap_or(408)),
            Clock::Idle => Verdict::Close,
            Clock::Handler => {
                *deadline = Due::at(Millis::MAX);
                Verdict::GoOn
            }
            Clock::Client { since, checked, left } if owed > 0 => {
                let (before, left) = (left, http.sent.saturating_sub(owed as u64));
                let patience = millis(self.options.write_timeout);
                if left > before {
                    http.clock = Clock::Client { since, checked: now, left };
                    *deadline = Due::at(now + patience);
                } else if now < checked + patience {
                    *deadline = Due::at(checked + patience);
                } else {
                    return Verdict::Stalled;
                }
                Verdict::GoOn
            }
            Clock::Client { .. } if http.pending.is_some() => {
                http.clock = Clock::Handler;
                *deadline = Due::at(Millis::MAX);
                Verdict::GoOn
            }
            Clock::Client { since, .. } => {
                http.clock = Clock::Idle;
                let idle = since + millis(self.options.keep_alive);
                *deadline = Due::at(idle);
                if idle <= now { Verdict::Close } else { Verdict::GoOn }
            }
        }
    }
}
