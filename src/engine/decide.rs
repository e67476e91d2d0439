//! Answers of the application that come at once or later.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::app::{AsyncFn, SyncFn};
use crate::runtime::Core;

/// What a closure that decides may return: a `Result`, or a future of one. An error is a message. `M` only
/// tells the two apart; it is inferred.
///
/// ```
/// use sockring::engine::Options;
/// // At once, or later:
/// let now = Options::default().allow_request(|request| match request.header("x-token") {
///     Some(_) => Ok(()),
///     None => Err("no token".to_owned()),
/// });
/// let later = Options::default().allow_request(|_| async { Ok(()) });
/// ```
pub trait Decide<T, M>: 'static {
    /// The decision, or the way to it.
    fn decide(self) -> Decision<T>;
}

/// A decision, or the way to it.
///
/// ```
/// use sockring::engine::{Decide, Decision};
/// let made: Result<u8, String> = Ok(1);
/// assert!(matches!(made.decide(), Decision::Now(Ok(1))));
/// ```
pub enum Decision<T> {
    /// It is made.
    Now(Result<T, String>),
    /// It is being made.
    Later(Pin<Box<dyn Future<Output = Result<T, String>>>>),
}

impl<T> fmt::Debug for Decision<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Now(_)) { "Now" } else { "Later" })
    }
}

impl<T: 'static> Decide<T, SyncFn> for Result<T, String> {
    fn decide(self) -> Decision<T> {
        Decision::Now(self)
    }
}

impl<T, F: Future<Output = Result<T, String>> + 'static> Decide<T, AsyncFn> for F {
    fn decide(self) -> Decision<T> {
        Decision::Later(Box::pin(self))
    }
}

impl<T: 'static> Decision<T> {
    /// Goes on with the decision: at once, or when it is made.
    pub(super) fn then(self, core: &Core, f: impl FnOnce(Result<T, String>) + 'static) {
        match self {
            Self::Now(result) => f(result),
            Self::Later(future) => core.spawn(async move { f(future.await) }),
        }
    }
}
