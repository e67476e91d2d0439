//! From polling to WebSocket (engine.io-protocol v4, "Upgrade").

use crate::protocol::eio::{Packet, PacketType};
use crate::time::Millis;

/// How far a session's upgrade has come. Pure.
///
/// ```
/// use sockring::engine::{Step, Upgrade};
/// use sockring::protocol::eio::decode_text;
/// let mut upgrade = Upgrade::default();
/// assert!(upgrade.begin(0, 10_000));
/// assert_eq!(upgrade.handle_packet(5, &decode_text("2probe").unwrap()), Step::AnswerProbe);
/// assert_eq!(upgrade.handle_packet(9, &decode_text("5").unwrap()), Step::Complete);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// No other transport has been tried.
    #[default]
    Idle,
    /// Another transport is open and has not probed yet.
    Opened {
        /// When it is given up.
        deadline: Millis,
    },
    /// The probe was answered; polls are released with noops until the client has stopped polling.
    Probed {
        /// When it is given up.
        deadline: Millis,
        /// When the next noop is due.
        noop: Millis,
    },
    /// The session has moved.
    Done,
}

/// What follows from a packet on the new transport.
///
/// ```
/// use sockring::engine::{Step, Upgrade};
/// use sockring::protocol::eio::decode_text;
/// let mut upgrade = Upgrade::default();
/// upgrade.begin(0, 10_000);
/// assert_eq!(upgrade.handle_packet(5, &decode_text("4too early").unwrap()), Step::Abort);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send `3probe` on the new transport.
    AnswerProbe,
    /// Move the session to the new transport.
    Complete,
    /// Close the new transport; the session stays where it is.
    Abort,
}

/// What a deadline of the upgrade means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// Answer a waiting poll with a noop, so that the client can stop polling.
    Noop,
    /// Close the new transport.
    Abort,
}

/// How often a waiting poll is released while the client changes over.
const NOOP_MS: Millis = 100;

impl Upgrade {
    /// Another transport has opened. `false`: one is open already, or the session has moved.
    pub fn begin(&mut self, now: Millis, timeout: Millis) -> bool {
        let idle = *self == Self::Idle;
        if idle {
            *self = Self::Opened { deadline: now + timeout };
        }
        idle
    }

    /// A packet came on the new transport. As with the reference, a client may probe again, and may move
    /// without a probe.
    pub fn handle_packet(&mut self, now: Millis, packet: &Packet<'_>) -> Step {
        match (*self, packet) {
            (
                Self::Opened { deadline } | Self::Probed { deadline, .. },
                Packet::Text { kind: PacketType::Ping, data: "probe" },
            ) => {
                *self = Self::Probed { deadline, noop: now + NOOP_MS };
                Step::AnswerProbe
            }
            (Self::Opened { .. } | Self::Probed { .. }, Packet::Text { kind: PacketType::Upgrade, .. }) => {
                *self = Self::Done;
                Step::Complete
            }
            _ => {
                *self = Self::Idle;
                Step::Abort
            }
        }
    }

    /// The new transport is gone.
    pub fn abort(&mut self) {
        if *self != Self::Done {
            *self = Self::Idle;
        }
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Millis {
        match self {
            Self::Opened { deadline } => *deadline,
            Self::Probed { deadline, noop } => *deadline.min(noop),
            Self::Idle | Self::Done => Millis::MAX,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Millis) -> Option<Late> {
        match self {
            Self::Opened { deadline } | Self::Probed { deadline, .. } if now >= *deadline => {
                *self = Self::Idle;
                Some(Late::Abort)
            }
            Self::Probed { noop, .. } if now >= *noop => {
                *noop = (*noop + NOOP_MS).max(now + 1);
                Some(Late::Noop)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::eio::decode_text;

    fn hear(upgrade: &mut Upgrade, now: Millis, text: &str) -> Step {
        upgrade.handle_packet(now, &decode_text(text).unwrap())
    }

    #[test]
    fn anything_but_the_probe_aborts_and_another_try_may_follow() {
        let mut upgrade = Upgrade::default();
        for wrong in ["2", "4hello", "2probeX", "3probe", "6", "0", "1", "bAQID"] {
            for probe in ["", "2probe"] {
                assert!(upgrade.begin(0, 100));
                if !probe.is_empty() {
                    assert_eq!(hear(&mut upgrade, 1, probe), Step::AnswerProbe);
                }
                assert_eq!(hear(&mut upgrade, 1, wrong), Step::Abort, "{probe} {wrong}");
            }
        }
        assert!(upgrade.begin(0, 100));
        assert!(!upgrade.begin(0, 100), "one at a time");
    }

    #[test]
    fn polls_are_released_until_the_client_has_changed_over() {
        let mut upgrade = Upgrade::default();
        upgrade.begin(0, 1000);
        assert_eq!(hear(&mut upgrade, 10, "2probe"), Step::AnswerProbe);
        assert_eq!(upgrade.deadline(), 110);
        assert_eq!(upgrade.handle_timeout(110), Some(Late::Noop));
        assert_eq!(upgrade.handle_timeout(150), None);
        assert_eq!(upgrade.handle_timeout(210), Some(Late::Noop));
        assert_eq!(hear(&mut upgrade, 220, "5"), Step::Complete);
        assert_eq!(upgrade.deadline(), Millis::MAX);
        assert!(!upgrade.begin(300, 1000), "a session moves once");
    }

    #[test]
    fn a_client_probes_as_often_as_it_likes() {
        for probes in 0..4 {
            let mut upgrade = Upgrade::default();
            assert!(upgrade.begin(0, 1000));
            for at in 0..probes {
                assert_eq!(hear(&mut upgrade, at * 10, "2probe"), Step::AnswerProbe);
            }
            assert_eq!(hear(&mut upgrade, 900, "5"), Step::Complete);
        }
    }

    #[test]
    fn a_probe_buys_no_time() {
        let mut upgrade = Upgrade::default();
        upgrade.begin(0, 1000);
        assert_eq!(hear(&mut upgrade, 999, "2probe"), Step::AnswerProbe);
        assert_eq!(upgrade.handle_timeout(1000), Some(Late::Abort));
    }

    #[test]
    fn a_slow_upgrade_is_given_up() {
        let mut upgrade = Upgrade::default();
        upgrade.begin(0, 1000);
        assert_eq!(upgrade.handle_timeout(999), None);
        assert_eq!(upgrade.handle_timeout(1000), Some(Late::Abort));
        assert_eq!(upgrade, Upgrade::Idle);
    }
}
