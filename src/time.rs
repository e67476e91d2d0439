//! Time as the pure layers see it, and dates as HTTP writes them.

use std::time::{Duration, SystemTime};

/// Milliseconds since the process started: an argument of every state machine, never read by one.
pub type Millis = u64;

/// A duration in milliseconds; one that is endless, or as good as that, is as long as can be said. To be
/// added to a time with `saturating_add`.
pub(crate) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// The first second that a date of HTTP cannot say: the beginning of the year 10000.
const END: Duration = Duration::from_secs(253_402_300_800);

/// A date of HTTP (IMF-fixdate, RFC 9110 5.6.7), to the second. `None` for a time that it cannot say: before
/// 1970, or after the year 9999. A machine whose clock is that wrong is served all the same; its answers have
/// no `Date` (RFC 9110 6.6.1 asks for one from an origin server "with a clock").
pub(crate) fn http_date(time: SystemTime) -> Option<String> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (since < END).then(|| httpdate::fmt_http_date(time))
}

/// The date of HTTP that is nearest to a time: for dates that mean "over" or "never".
pub(crate) fn nearest_http_date(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since.min(END - Duration::from_secs(1)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Times that clocks show when something is wrong with them.
    pub(crate) fn odd_times() -> Vec<SystemTime> {
        let far = Duration::from_secs(1 << 55);
        let epoch = SystemTime::UNIX_EPOCH;
        let nanosecond = Duration::from_nanos(1);
        vec![epoch - far, epoch - nanosecond, epoch - Duration::from_secs(1), epoch + END, epoch + far]
    }

    #[test]
    fn endless_durations_stay_endless() {
        assert_eq!((millis(Duration::MAX), millis(Duration::from_secs(7))), (Millis::MAX, 7000));
    }

    #[test]
    fn times_that_dates_cannot_say() {
        for time in odd_times() {
            assert_eq!(http_date(time), None, "{time:?}");
            assert!(httpdate::parse_http_date(&nearest_http_date(time)).is_ok(), "{time:?}");
        }
        let last = SystemTime::UNIX_EPOCH + END - Duration::from_secs(1);
        assert_eq!(http_date(last).as_deref(), Some("Fri, 31 Dec 9999 23:59:59 GMT"));
        assert_eq!(nearest_http_date(odd_times()[4]), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(nearest_http_date(odd_times()[0]), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(SystemTime::UNIX_EPOCH).as_deref(), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
    }
}
