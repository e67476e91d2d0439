//! Time as the pure layers see it.

/// Milliseconds since the process started: an argument of every state machine, never read by one.
pub type Millis = u64;
