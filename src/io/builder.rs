//! Servers that listen by themselves, and servers that are built first and listen later.

use std::fmt;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use super::{Adapter, Options, Server};
use crate::app::{self, App};
use crate::runtime::{Listener, Running, StartError};

type MakeOptions = Arc<dyn Fn() -> Options + Send + Sync>;
type Change = Arc<dyn Fn(&mut Options) + Send + Sync>;
type SetUp = Arc<dyn Fn(&Server) + Send + Sync>;

/// A server that is built first and listens later: its options and what sets it up, for any number of cores,
/// listeners and Apps. A clone is another of the same. Made by [`Server::builder`].
///
/// ```no_run
/// use sockring::io::{Server, Socket};
/// let io = Server::builder()
///     .set_up(|io| {
///         io.on_connection(|socket: Socket| socket.emit("hello", socket.id()));
///     })
///     .set_up(|io| {
///         io.of("/admin");
///     });
/// io.listen("127.0.0.1:3000")?.run_until_signal()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Builder {
    options: Option<MakeOptions>,
    changes: Vec<Change>,
    set_up: Vec<SetUp>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("io::Builder").field("set_up", &self.set_up.len()).finish_non_exhaustive()
    }
}

impl Builder {
    /// Makes the options: called once on each core, since hooks among them may hold what belongs to a core.
    #[must_use]
    pub fn options(self, options: impl Fn() -> Options + Send + Sync + 'static) -> Self {
        Self { options: Some(Arc::new(options)), ..self }
    }

    /// The path below which the server is found, `/socket.io` by default. This and what follows goes before
    /// [`options`](Self::options), whichever is called first.
    #[must_use]
    pub fn path(self, path: impl Into<String>) -> Self {
        let path = path.into();
        self.change(move |options| options.engine.path.clone_from(&path))
    }

    /// Joins other servers: see [`Options::adapter`].
    #[must_use]
    pub fn adapter(self, adapter: Arc<dyn Adapter>) -> Self {
        self.change(move |options| options.adapter = Some(adapter.clone()))
    }

    /// How long a client may stay connected without joining a namespace.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.change(move |options| options.connect_timeout = timeout)
    }

    /// Whether the client's bundles are served.
    #[must_use]
    pub fn serve_client(self, serve: bool) -> Self {
        self.change(move |options| options.serve_client = serve)
    }

    fn change(mut self, change: impl Fn(&mut Options) + Send + Sync + 'static) -> Self {
        self.changes.push(Arc::new(change));
        self
    }

    /// Adds something that sets the server up: called once on each core, in the order in which they were
    /// added.
    #[must_use]
    pub fn set_up(mut self, set_up: impl Fn(&Server) + Send + Sync + 'static) -> Self {
        self.set_up.push(Arc::new(set_up));
        self
    }

    /// Listens on an address, with a worker for each core. Other paths are answered with 404.
    ///
    /// # Errors
    ///
    /// When the kernel lacks what the runtime needs, or the address cannot be listened on.
    pub fn listen(&self, address: impl ToSocketAddrs + fmt::Debug) -> Result<Running, StartError> {
        self.start(App::builder().listen(address))
    }

    /// Serves the connections of a listener that is there already: of a `std::net::TcpListener`, a
    /// `std::os::unix::net::UnixListener`, or a [`Listener`] with settings of its own.
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    pub fn attach(&self, listener: impl Into<Listener>) -> Result<Running, StartError> {
        self.start(App::builder().listener(listener))
    }

    /// Starts an App that has this server and nothing else.
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    pub fn start(&self, app: app::Builder) -> Result<Running, StartError> {
        let io = self.clone();
        app.start(move |app| {
            io.attach_app(app);
        })
    }

    /// Makes it part of an App, on this core.
    pub fn attach_app(&self, app: &App) -> Server {
        let mut options = self.options.as_ref().map_or_else(Options::default, |options| options());
        self.changes.iter().for_each(|change| change(&mut options));
        let server = Server::attach_app(app, options);
        self.set_up.iter().for_each(|set_up| set_up(&server));
        server
    }
}

impl Server {
    /// A server that is built first and listens later.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Listens on an address with the default options. `set_up` runs once on each core.
    ///
    /// ```no_run
    /// use sockring::io::{Server, Socket};
    /// let server = Server::listen("127.0.0.1:3000", |io| {
    ///     io.on_connection(|socket: Socket| socket.join("lobby"));
    /// })?;
    /// server.run_until_signal()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the kernel lacks what the runtime needs, or the address cannot be listened on.
    pub fn listen(
        address: impl ToSocketAddrs + fmt::Debug,
        set_up: impl Fn(&Self) + Send + Sync + 'static,
    ) -> Result<Running, StartError> {
        Self::builder().set_up(set_up).listen(address)
    }

    /// Serves the connections of a listener that is there already, with the default options; see
    /// [`Builder::attach`]. `set_up` runs once on each core.
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    pub fn attach(
        listener: impl Into<Listener>,
        set_up: impl Fn(&Self) + Send + Sync + 'static,
    ) -> Result<Running, StartError> {
        Self::builder().set_up(set_up).attach(listener)
    }
}
