//! What can go wrong in a handler.

use std::fmt;

use serde::Serialize;

use crate::protocol::Shown;
use crate::protocol::sio::{ArgsError, EncodeError, Value, to_value};

/// Why a handler failed, or why a middleware refuses a socket.
///
/// **What the client may read** is the [`message`](Self::message) and the [`details`](Self::details): what
/// [`new`](Self::new) and [`data`](Self::data) were given, or a text (`Err("not authorized")`). An error that
/// becomes a failure by `?` may name tables, files and addresses: it is the [`cause`](Self::cause), which is
/// for `on_error` and the log alone, and the client reads `internal server error`.
///
/// ```
/// use sockring::io::Failure;
/// let refusal = Failure::new("not authorized").data(&("retry", 5));
/// assert_eq!(refusal.message(), "not authorized");
///
/// let lost = || -> Result<(), Failure> { Err(std::io::Error::other("10.0.0.7 does not answer"))? };
/// let failure = lost().unwrap_err();
/// assert_eq!(failure.message(), "internal server error");
/// assert_eq!(failure.cause(), Some("10.0.0.7 does not answer"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    message: String,
    data: Option<Value>,
    cause: Option<String>,
}

/// What a client reads of a failure that is none of its business.
const INTERNAL: &str = "internal server error";

impl Failure {
    /// A failure with a message; of a middleware, the client's `connect_error` has it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), data: None, cause: None }
    }

    /// A failure of the server's own: the client reads `internal server error`, and `on_error` and the log
    /// have the cause. For errors that have no `?`: `.map_err(Failure::internal)`.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(INTERNAL).caused_by(cause)
    }

    /// Adds what went wrong, for `on_error` and the log; the client does not read it.
    ///
    /// ```
    /// use sockring::io::Failure;
    /// let failure = Failure::new("try again later").caused_by("the pool is empty");
    /// assert_eq!(failure.to_string(), "try again later: the pool is empty");
    /// ```
    #[must_use]
    pub fn caused_by(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// What went wrong, if the client may not read it.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Adds details, which the client finds in the error's `data`. What cannot be serialised is left out.
    #[must_use]
    pub fn data<T: Serialize + ?Sized>(mut self, data: &T) -> Self {
        self.data = to_value(data).ok();
        self
    }

    /// The message, which the client may read.
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

/// What went wrong, for a log: not for the client, which may read the [`message`](Failure::message).
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            None => f.write_str(&self.message),
            Some(cause) if self.message == INTERNAL => f.write_str(cause),
            Some(cause) => write!(f, "{}: {cause}", self.message),
        }
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
        Self::internal(error)
    }
}

/// The client may read what is wrong with its own arguments.
impl From<ArgsError> for Failure {
    fn from(error: ArgsError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<super::AckError> for Failure {
    fn from(error: super::AckError) -> Self {
        Self::internal(error)
    }
}

impl<T> From<super::BroadcastAckError<T>> for Failure {
    fn from(error: super::BroadcastAckError<T>) -> Self {
        Self::internal(error)
    }
}

impl<T> From<super::ClusterError<T>> for Failure {
    fn from(error: super::ClusterError<T>) -> Self {
        Self::internal(error.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::internal(error)
    }
}

/// A [`Failure`] in the box keeps what the client may read; any other error is the cause.
impl From<Box<dyn std::error::Error>> for Failure {
    fn from(error: Box<dyn std::error::Error>) -> Self {
        error.downcast().map_or_else(Self::internal, |failure| *failure)
    }
}

/// A [`Failure`] in the box keeps what the client may read; any other error is the cause.
impl From<Box<dyn std::error::Error + Send + Sync>> for Failure {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        error.downcast().map_or_else(Self::internal, |failure| *failure)
    }
}

/// A handler of an event failed: its arguments were not what it takes, or it returned an error. As text it is
/// fit for a log: what a client may have chosen is in quotes, escaped and cut.
///
/// ```no_run
/// # use sockring::io::{EventError, Namespace, Socket};
/// # fn set_up(io: &Namespace) {
/// io.on_error(|socket: Socket, error: &EventError| {
///     tracing::info!("{error}");
///     // The client is told what it may read, and not the cause.
///     let _ = socket.emit("problem", (&error.event, error.failure.message()));
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
        write!(f, "event {}: {}", Shown(&self.event), Shown(&self.failure.to_string()))
    }
}

impl std::error::Error for EventError {}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn an_error_keeps_its_text_from_the_client_and_a_failure_in_a_box_its_own() {
        let boxed: Box<dyn Error> = "table users is locked".into();
        let sync: Box<dyn Error + Send + Sync> = "table users is locked".into();
        for failure in [Failure::from(boxed), Failure::from(sync), Failure::internal("table users is locked")]
        {
            assert_eq!(failure.message(), INTERNAL);
            assert_eq!(failure.cause(), Some("table users is locked"));
            assert_eq!(failure.to_string(), "table users is locked");
            assert_eq!(failure.for_v2(), Value::from(INTERNAL));
        }
        let own = Failure::new("come back later").data(&7).caused_by("the pool is empty");
        let boxed: Box<dyn Error> = Box::new(own.clone());
        let sync: Box<dyn Error + Send + Sync> = Box::new(own.clone());
        assert_eq!((Failure::from(boxed), Failure::from(sync)), (own.clone(), own));
    }

    #[test]
    fn an_error_of_an_event_is_one_line() {
        let error = EventError { event: "a\nb".to_owned(), failure: Failure::new("c\r\nd") };
        assert_eq!(error.to_string(), r#"event "a\nb": "c\r\nd""#);
    }
}
