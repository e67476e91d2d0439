//! Why a server did not start.

use std::fmt;
use std::io;

use super::Endpoint;

/// Why a server did not start. Each names the cause and the cure.
///
/// ```
/// use sockring::runtime::StartError;
/// let error = StartError::NoListener;
/// assert!(error.to_string().contains("listen"));
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The kernel has no io_uring.
    #[error("this kernel has no io_uring (io_uring_setup: {0}); sockring needs Linux 6.1 or later")]
    NoIoUring(#[source] io::Error),

    /// io_uring is there and may not be used.
    #[error(
        "io_uring is not permitted here ({source}); {}",
        if *disabled > 0 {
            "the sysctl kernel.io_uring_disabled is set: run `sysctl -w kernel.io_uring_disabled=0`, or with \
             value 1 add this user to kernel.io_uring_group"
        } else {
            "in a container the seccomp profile forbids it: allow io_uring_setup, io_uring_enter and \
             io_uring_register (deploy/README.md)"
        }
    )]
    Forbidden {
        /// What the kernel answered.
        source: io::Error,
        /// The value of the sysctl `kernel.io_uring_disabled`.
        disabled: u8,
    },

    /// The kernel is too old for what the socket ring needs.
    #[error("this kernel's io_uring lacks {0}; sockring needs Linux 6.1 or later")]
    TooOld(&'static str),

    /// Another failure while the ring was set up.
    #[error("the socket ring could not be set up: {source}{}", cure(source))]
    Ring {
        /// What the kernel answered.
        source: io::Error,
    },

    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address or path.
        address: Endpoint,
        /// What the kernel answered.
        source: io::Error,
    },

    /// An address could not be resolved.
    #[error("{address} is no address to listen on: {source}")]
    Address {
        /// What was given.
        address: String,
        /// Why it could not be resolved.
        source: io::Error,
    },

    /// Nothing to listen on was given.
    #[error("nothing to listen on: give at least one address to `listen`, or say `adopt_only`")]
    NoListener,

    /// The number of listeners is out of range.
    #[error("{0} listeners asked for: at most {max} are possible", max = crate::limits::LISTENERS_MAX)]
    Listeners(usize),

    /// The number of workers is out of range.
    #[error("{0} workers asked for: between 1 and {max} are possible", max = crate::limits::WORKERS_MAX)]
    Workers(usize),

    /// A thread could not be started, or ended while it started.
    #[error("a worker thread could not be started: {0}")]
    Thread(String),

    /// The server started, and has stopped because a worker ended.
    #[error(transparent)]
    Worker(#[from] WorkerEnded),
}

/// A worker ended although nobody had asked it to: its thread panicked outside all boundaries (in a task of
/// monoio's own, for example), or its ring failed. Its listeners and connections were closed, and the other
/// workers were stopped.
///
/// ```no_run
/// use sockring::app::App;
/// let server = App::builder().listen("127.0.0.1:3000").start(|_| ())?;
/// if let Err(ended) = server.join() {
///     eprintln!("{ended}"); // names the worker, the panic, and its place in the source
///     std::process::exit(1);
/// }
/// # Ok::<(), sockring::runtime::StartError>(())
/// ```
#[derive(thiserror::Error)]
#[error("worker {worker} has ended: {why}")]
#[non_exhaustive]
pub struct WorkerEnded {
    /// The number of its core, from 0.
    pub worker: usize,
    /// The error, or the message and the place of the panic.
    pub why: String,
}

/// As that of [`StartError`].
impl fmt::Debug for WorkerEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A `main` that returns this error prints its debug form: that must name the cure as well.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "; the limit of locked memory is too small: raise RLIMIT_MEMLOCK",
        Some(libc::EMFILE | libc::ENFILE) => "; the limit of descriptors is too small: raise RLIMIT_NOFILE",
        _ => "",
    }
}
