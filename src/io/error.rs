//! What can go wrong in a handler.

use std::fmt;

use serde::Serialize;

use crate::protocol::sio::{ArgsError, EncodeError, Value, to_value};

/// Why a handler failed, or why a middleware refuses a socket: a message and, for the client, data.
///
/// ```
/// use sockring::io::Failure;
/// let refusal = Failure::new("not authorized").data(&("retry", 5));
/// assert_eq!(refusal.message(), "not authorized");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    message: String,
    data: Option<Value>,
}

impl Failure {
    /// A failure with a message; of a middleware, the client's `connect_error` has it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), data: None }
    }

    /// Adds details, which the client finds in the error's `data`. What cannot be serialised is left out.
    #[must_use]
    pub fn data<T: Serialize + ?Sized>(mut self, data: &T) -> Self {
        self.data = to_value(data).ok();
        self
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What clients of Socket.IO v2 are told, as the reference does: `data || message` of JavaScript.
    pub(super) fn for_v2(&self) -> Value {
        let truthy = |data: &&Value| {
            let nothing = data.is_null()
                || data.as_bool() == Some(false)
                || data.as_str() == Some("")
                || matches!(data, Value::Number(number) if number.as_f64() == 0.0);
            !nothing
        };
        self.data.as_ref().filter(truthy).cloned().unwrap_or_else(|| Value::from(self.message.as_str()))
    }

    /// What [`data`](Self::data) has added.
    pub fn details(&self) -> Option<&Value> {
        self.data.as_ref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<ArgsError> for Failure {
    fn from(error: ArgsError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<super::AckError> for Failure {
    fn from(error: super::AckError) -> Self {
        Self::new(error.to_string())
    }
}

impl<T> From<super::BroadcastAckError<T>> for Failure {
    fn from(error: super::BroadcastAckError<T>) -> Self {
        Self::new(error.to_string())
    }
}

impl<T> From<super::ClusterError<T>> for Failure {
    fn from(error: super::ClusterError<T>) -> Self {
        Self::new(error.message)
    }
}

impl From<Box<dyn std::error::Error>> for Failure {
    fn from(error: Box<dyn std::error::Error>) -> Self {
        Self::new(error.to_string())
    }
}

/// A handler of an event failed: its arguments were not what it takes, or it returned an error.
///
/// ```no_run
/// # use sockring::io::{EventError, Namespace, Socket};
/// # fn set_up(io: &Namespace) {
/// io.on_error(|socket: Socket, error: &EventError| {
///     let _ = socket.emit("problem", format!("{}: {}", error.event, error.failure));
/// });
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EventError {
    /// The event's name.
    pub event: String,
    /// What went wrong.
    pub failure: Failure,
}

impl fmt::Display for EventError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event \"{}\": {}", self.event, self.failure)
    }
}

impl std::error::Error for EventError {}
