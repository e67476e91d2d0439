//! Is the client still there? (engine.io-protocol v4, "Heartbeat")

use crate::time::Millis;

/// How late a ping may be before the client's time to answer counts from the ping and not from when it was
/// due: two ticks. A server that was held up for longer must not take that time from the client.
const LATE_MS: Millis = 40;

/// The heartbeat of one session: the server pings, the client answers in time. Before version 4 of the
/// protocol the client pings instead: see [`listening`](Self::listening). Pure.
///
/// ```
/// use sockring::engine::{Beat, Heartbeat};
/// let mut heartbeat = Heartbeat::new(0, 25_000, 20_000);
/// assert_eq!(heartbeat.handle_timeout(25_000), Some(Beat::Ping));
/// heartbeat.handle_pong(25_030);
/// assert_eq!(heartbeat.deadline(), 50_030);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    interval: u32,
    timeout: u32,
    /// In two halves: no padding.
    deadline: [u32; 2],
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next ping is due at the deadline.
    Resting,
    /// The pong is due at the deadline.
    Awaiting { extended: bool },
    /// The client's next ping is due at the deadline.
    Listening,
}

fn halves(time: Millis) -> [u32; 2] {
    [time as u32, (time >> 32) as u32]
}

/// What a deadline of the heartbeat means.
///
/// ```
/// use sockring::engine::{Beat, Heartbeat};
/// let mut heartbeat = Heartbeat::new(0, 300, 200);
/// assert_eq!(heartbeat.handle_timeout(300), Some(Beat::Ping));
/// assert_eq!(heartbeat.handle_timeout(500), Some(Beat::Dead));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Send a ping.
    Ping,
    /// The client did not answer, or did not ping: close with `ping timeout`.
    Dead,
}

impl Heartbeat {
    /// Starts at `now`; interval and timeout in milliseconds.
    pub fn new(now: Millis, interval: u32, timeout: u32) -> Self {
        Self { interval, timeout, deadline: halves(now + Millis::from(interval)), state: State::Resting }
    }

    /// Starts at `now` with the client's part and the server's exchanged (version 3): the client has interval
    /// and timeout together to ping.
    ///
    /// ```
    /// use sockring::engine::{Beat, Heartbeat};
    /// let mut heartbeat = Heartbeat::listening(0, 25_000, 20_000);
    /// heartbeat.handle_ping(25_000);
    /// assert_eq!(heartbeat.handle_timeout(69_999), None);
    /// assert_eq!(heartbeat.handle_timeout(70_000), Some(Beat::Dead));
    /// ```
    pub fn listening(now: Millis, interval: u32, timeout: u32) -> Self {
        let mut heartbeat = Self { interval, timeout, deadline: halves(now), state: State::Listening };
        heartbeat.handle_ping(now);
        heartbeat
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn deadline(&self) -> Millis {
        Millis::from(self.deadline[1]) << 32 | Millis::from(self.deadline[0])
    }

    /// A pong came.
    pub fn handle_pong(&mut self, now: Millis) {
        self.deadline = halves(now + Millis::from(self.interval));
        self.state = State::Resting;
    }

    /// The client, whose part it is, has pinged.
    pub fn handle_ping(&mut self, now: Millis) {
        self.deadline = halves(now + Millis::from(self.interval) + Millis::from(self.timeout));
    }

    /// Another packet came. While a pong is awaited it gives the client its time again, once: a client that
    /// is busy sending a large payload cannot slip a pong in (engine.io 6.6.11).
    pub fn handle_activity(&mut self, now: Millis) {
        if self.state == (State::Awaiting { extended: false }) {
            self.state = State::Awaiting { extended: true };
            self.deadline = halves(now + Millis::from(self.timeout).max(1));
        }
    }

    /// The client could not be heard: what it has sent is kept and not read yet. It gets its time again.
    ///
    /// ```
    /// use sockring::engine::{Beat, Heartbeat};
    /// let mut heartbeat = Heartbeat::new(0, 300, 200);
    /// assert_eq!(heartbeat.handle_timeout(300), Some(Beat::Ping));
    /// heartbeat.postpone(500);
    /// assert_eq!((heartbeat.handle_timeout(699), heartbeat.handle_timeout(700)), (None, Some(Beat::Dead)));
    /// ```
    pub fn postpone(&mut self, now: Millis) {
        self.deadline = halves(now + Millis::from(self.timeout));
    }

    /// The deadline has passed, or not yet. The next deadline counts from this one, though the clock may be a
    /// little late: so a client that says nothing is gone after interval and timeout, to the millisecond.
    pub fn handle_timeout(&mut self, now: Millis) -> Option<Beat> {
        let due = self.deadline();
        if now < due {
            return None;
        }
        match self.state {
            State::Resting => {
                self.state = State::Awaiting { extended: false };
                self.deadline = halves(due.max(now.saturating_sub(LATE_MS)) + Millis::from(self.timeout));
                Some(Beat::Ping)
            }
            State::Awaiting { .. } | State::Listening => Some(Beat::Dead),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_client_dies_after_interval_and_timeout() {
        let mut heartbeat = Heartbeat::new(1000, 300, 200);
        assert_eq!(heartbeat.handle_timeout(1299), None);
        assert_eq!(heartbeat.handle_timeout(1300), Some(Beat::Ping));
        assert_eq!(heartbeat.handle_timeout(1499), None);
        assert_eq!(heartbeat.handle_timeout(1500), Some(Beat::Dead));
    }

    #[test]
    fn late_ticks_do_not_add_up() {
        for late in 0..=LATE_MS {
            let mut heartbeat = Heartbeat::new(1000, 300, 200);
            assert_eq!(heartbeat.handle_timeout(1300 + late), Some(Beat::Ping));
            assert_eq!(heartbeat.handle_timeout(1499), None);
            assert_eq!(heartbeat.handle_timeout(1500), Some(Beat::Dead), "{late} ms late");
        }
    }

    #[test]
    fn a_server_that_was_held_up_gives_the_client_its_time() {
        let mut heartbeat = Heartbeat::new(1000, 300, 200);
        assert_eq!(heartbeat.handle_timeout(9000), Some(Beat::Ping));
        assert_eq!(heartbeat.deadline(), 9200 - LATE_MS);
    }

    #[test]
    fn activity_extends_a_pending_pong_once() {
        let mut heartbeat = Heartbeat::new(0, 300, 200);
        heartbeat.handle_activity(100);
        assert_eq!(heartbeat.deadline(), 300, "before the ping it changes nothing");
        assert_eq!(heartbeat.handle_timeout(300), Some(Beat::Ping));
        heartbeat.handle_activity(450);
        assert_eq!(heartbeat.deadline(), 650);
        heartbeat.handle_activity(600);
        assert_eq!(heartbeat.handle_timeout(650), Some(Beat::Dead));
    }

    #[test]
    fn a_client_that_is_to_ping_is_not_saved_by_other_packets() {
        let mut heartbeat = Heartbeat::listening(1000, 300, 200);
        heartbeat.handle_activity(1400);
        assert_eq!(heartbeat.handle_timeout(1499), None);
        assert_eq!(heartbeat.handle_timeout(1500), Some(Beat::Dead));
        heartbeat.handle_ping(1450);
        assert_eq!(heartbeat.deadline(), 1950);
    }

    #[test]
    fn pings_are_counted_from_the_last_pong() {
        let mut heartbeat = Heartbeat::new(0, 300, 200);
        assert_eq!(heartbeat.handle_timeout(300), Some(Beat::Ping));
        heartbeat.handle_pong(340);
        assert_eq!(heartbeat.deadline(), 640);
        assert_eq!(heartbeat.handle_timeout(640), Some(Beat::Ping));
    }
}
