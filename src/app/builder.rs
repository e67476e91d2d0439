//! From a few choices to a running server.

use std::io;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::service::Inner;
use super::{App, Options};
use crate::runtime::{self, Descriptors, Listener, Running, StartError, WorkerEnded};

/// Chooses addresses, workers and limits; made by [`App::builder`].
///
/// ```no_run
/// use sockring::app::App;
/// let server = App::builder().listen("127.0.0.1:0").workers(1).start(|app| {
///     app.get("/", |_, response| response.end("hello"));
/// })?;
/// println!("listening on {}", server.addresses()[0]);
/// server.shutdown();
/// server.join()?;
/// # Ok::<(), sockring::runtime::StartError>(())
/// ```
#[derive(Debug, Default)]
pub struct Builder {
    runtime: runtime::Options,
    app: Options,
    unresolved: Option<(String, io::Error)>,
}

impl Builder {
    /// Adds an address to listen on, such as `"0.0.0.0:3000"`. Port 0 takes a free one. A name that cannot
    /// be resolved is reported by [`start`](Self::start).
    #[must_use]
    pub fn listen(mut self, address: impl ToSocketAddrs + std::fmt::Debug) -> Self {
        match Listener::tcp(&address) {
            Ok(listener) => self.runtime.listen.push(listener),
            Err(error) => self.unresolved = Some((format!("{address:?}"), error)),
        }
        self
    }

    /// Adds an address to listen on for https and wss. [`Listener::tls`] does the same for other listeners.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn listen_tls(
        mut self,
        address: impl ToSocketAddrs + std::fmt::Debug,
        tls: impl std::borrow::Borrow<runtime::tls::Tls>,
    ) -> Self {
        match Listener::tcp(&address) {
            Ok(listener) => self.runtime.listen.push(listener.tls(tls.borrow())),
            Err(error) => self.unresolved = Some((format!("{address:?}"), error)),
        }
        self
    }

    /// Adds the path of a Unix socket to listen on; see [`Listener::unix`], which also sets permissions.
    #[must_use]
    pub fn listen_unix(self, path: impl Into<PathBuf>) -> Self {
        self.listener(Listener::unix(path))
    }

    /// Adds something to listen on: a `std::net::TcpListener` or `std::os::unix::net::UnixListener` that
    /// is there already, or a [`Listener`] with settings of its own.
    #[must_use]
    pub fn listener(mut self, listener: impl Into<Listener>) -> Self {
        self.runtime.listen.push(listener.into());
        self
    }

    /// Adds several listeners, such as those of [`Listener::inherited`].
    #[must_use]
    pub fn listeners(mut self, listeners: impl IntoIterator<Item = Listener>) -> Self {
        self.runtime.listen.extend(listeners);
        self
    }

    /// Listens on nothing: all connections come from another server, through an
    /// [`Adopter`](runtime::Adopter).
    #[must_use]
    pub fn adopt_only(mut self) -> Self {
        self.runtime.adopt_only = true;
        self
    }

    /// How many worker threads; 0, the default, means one for each core of the affinity mask.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.runtime.workers = workers;
        self
    }

    /// Connections of one worker that a single address may have; see
    /// [`runtime::Options::connections_per_address`].
    #[must_use]
    pub fn connections_per_address(mut self, connections: usize) -> Self {
        self.runtime.connections_per_address = connections;
        self
    }

    /// Bytes of memory that the process may use before it takes on nothing new; see
    /// [`runtime::Options::max_memory`].
    #[must_use]
    pub fn max_memory(mut self, bytes: usize) -> Self {
        self.runtime.max_memory = bytes;
        self
    }

    /// Where accepted sockets live.
    #[must_use]
    pub fn descriptors(mut self, descriptors: Descriptors) -> Self {
        self.runtime.descriptors = descriptors;
        self
    }

    /// Replaces the runtime's options; what was given to listen on is kept.
    #[must_use]
    pub fn runtime(mut self, mut options: runtime::Options) -> Self {
        let listen = std::mem::take(&mut self.runtime.listen);
        options.listen.splice(0..0, listen);
        options.adopt_only |= self.runtime.adopt_only;
        self.runtime = options;
        self
    }

    /// Replaces the limits and timeouts of HTTP.
    #[must_use]
    pub fn http(mut self, options: Options) -> Self {
        self.app = options;
        self
    }

    /// Starts the workers; `setup` runs once on each of them and adds routes. Returns when all listen.
    ///
    /// # Errors
    ///
    /// When the kernel lacks what the runtime needs, or an address cannot be listened on.
    pub fn start(self, setup: impl Fn(&App) + Send + Sync + 'static) -> Result<Running, StartError> {
        if let Some((address, source)) = self.unresolved {
            return Err(StartError::Address { address, source });
        }
        let options = self.app;
        let make = move |core: &Rc<runtime::Core>| {
            let inner = Inner::new(core.clone(), options.clone());
            setup(&App(inner.clone()));
            inner as Rc<dyn runtime::Service>
        };
        runtime::start(&self.runtime, Arc::new(make))
    }

    /// Starts the workers and serves until SIGTERM or SIGINT; clients get their close then.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); [`StartError::Worker`] when a worker ended by itself.
    pub fn run(self, setup: impl Fn(&App) + Send + Sync + 'static) -> Result<(), StartError> {
        let ended = self.start(setup)?.run_until_signal();
        ended.map_err(|error| match error.downcast::<WorkerEnded>() {
            Ok(ended) => StartError::Worker(ended),
            Err(error) => StartError::Thread(error.to_string()),
        })
    }
}
