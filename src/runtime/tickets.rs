//! Session tickets and time of TLS on a machine whose clock is wrong.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::Error;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;

/// The wall clock.
type Clock = fn() -> SystemTime;

/// The time of a configuration. Before 1970 it is 1970, where that of `rustls` panics.
#[derive(Debug)]
pub(super) struct Time(pub(super) Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(SystemTime::UNIX_EPOCH);
        Some(UnixTime::since_unix_epoch(since.unwrap_or_default()))
    }
}

/// Session tickets whose keys change every six hours. While the clock says that it is before 1970, there are
/// none: what changes the keys would panic.
pub(super) struct Tickets {
    clock: Clock,
    keys: OnceLock<Arc<dyn ProducesTickets>>,
}

/// How long a ticket is good, in seconds: for its keys and those before them.
const LIFETIME: u32 = 12 * 60 * 60;

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub(super) fn new(clock: Clock) -> Result<Self, Error> {
        let tickets = Self { clock, keys: OnceLock::new() };
        if tickets.has_time() {
            // Random numbers that cannot be had are an error of the start.
            let _ = tickets.keys.set(Ticketer::new()?);
        } else {
            tracing::warn!("the clock says that it is before 1970: there are no session tickets of TLS");
        }
        Ok(tickets)
    }

    fn has_time(&self) -> bool {
        (self.clock)() >= SystemTime::UNIX_EPOCH
    }

    fn keys(&self) -> Option<&Arc<dyn ProducesTickets>> {
        if !self.has_time() {
            return None;
        }
        if self.keys.get().is_none() {
            let _ = self.keys.set(Ticketer::new().ok()?);
        }
        self.keys.get()
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.keys.get().map_or(LIFETIME, |keys| keys.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.keys()?.decrypt(cipher)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    thread_local! {
        static NOW: Cell<SystemTime> = const { Cell::new(SystemTime::UNIX_EPOCH) };
    }

    #[test]
    fn a_clock_before_1970_gives_no_tickets_and_no_panic() {
        NOW.set(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        let time = Time(|| NOW.get());
        let tickets = Tickets::new(|| NOW.get()).unwrap();
        assert_eq!(time.current_time().unwrap().as_secs(), 0);
        assert_eq!((tickets.encrypt(b"session"), tickets.decrypt(b"session")), (None, None));
        NOW.set(SystemTime::now());
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(b"session".as_slice()));
        assert!(time.current_time().unwrap().as_secs() > 0);
        // It is set back.
        NOW.set(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(tickets.decrypt(&ticket), None);
        assert_eq!(tickets.lifetime(), LIFETIME);
    }
}
