//! What is listened on: addresses, paths, and sockets that somebody else has opened.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::{Options, StartError};

/// Where a server can be reached.
///
/// ```
/// use sockring::runtime::Endpoint;
/// let endpoint = Endpoint::Unix("/run/chat.sock".into());
/// assert_eq!(endpoint.to_string(), "unix:/run/chat.sock");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// An address and port of TCP.
    Tcp(SocketAddr),
    /// A Unix socket's path; `@` in front stands for a name in the abstract namespace.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Something to listen on, with settings of its own.
///
/// Made from an address ([`tcp`](Self::tcp)), from a path ([`unix`](Self::unix)), or from a socket that
/// already listens: a [`TcpListener`], a [`UnixListener`], or what a service manager has opened
/// ([`inherited`](Self::inherited)). All workers accept from one that already listens; its address is not
/// bound again, and its file is not removed.
///
/// ```no_run
/// use sockring::app::App;
/// use sockring::runtime::Listener;
/// let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let server = App::builder()
///     .listen("127.0.0.1:3000")
///     .listener(Listener::unix("/run/chat.sock").mode(0o660))
///     .listener(Listener::from(taken).proxy_protocol(true))
///     .start(|_| ())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Listener {
    source: Source,
    settings: Settings,
}

#[derive(Clone, Debug)]
enum Source {
    Address(SocketAddr),
    Path { path: PathBuf, mode: Option<u32> },
    Existing(Arc<Socket>),
}

/// What the connections of a listener have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Whether each connection begins with a header of the PROXY protocol.
    pub(super) proxy_protocol: bool,
    /// Whether each connection speaks TLS, and as whom we speak it.
    #[cfg(feature = "tls")]
    pub(super) tls: Option<super::tls::Tls>,
}

impl Listener {
    /// An address to listen on; port 0 takes a free one. Of several addresses of a name, the first counts.
    ///
    /// # Errors
    ///
    /// When the name cannot be resolved.
    pub fn tcp(address: impl ToSocketAddrs) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        Ok(Self::from(address.to_socket_addrs()?.next().ok_or_else(none)?))
    }

    /// A path to listen on. The file of a server that is gone is replaced, that of one that lives is an
    /// error (unless [`Options::share_port`] is set: then its place is taken). The file goes when the
    /// server stops, if it is still its own.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Source::Path { path: path.into(), mode: None })
    }

    /// The permissions of a path made by [`unix`](Self::unix), such as `0o660`: who may write may connect.
    /// Without this, what the process's umask leaves of `0o777`. Means nothing for other listeners.
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Self {
        if let Source::Path { mode, .. } = &mut self.source {
            *mode = Some(bits & 0o777);
        }
        self
    }

    /// Whether each connection must begin with a header of the PROXY protocol (version 1 or 2), in which a
    /// proxy tells the client's address. Only for listeners that nobody but proxies can reach: whoever
    /// connects can claim any address. A connection without the header is closed.
    #[must_use]
    pub fn proxy_protocol(mut self, on: bool) -> Self {
        self.settings.proxy_protocol = on;
        self
    }

    /// Has each connection speak TLS, behind the header of the PROXY protocol if there is one.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: &super::tls::Tls) -> Self {
        self.settings.tls = Some(tls.clone());
        self
    }

    /// The sockets that a service manager has opened for this process (systemd's socket activation, by
    /// `LISTEN_FDS` and `LISTEN_PID`), in the order of its unit; none if there are none.
    ///
    /// # Errors
    ///
    /// When one of the descriptors is no listening stream socket.
    pub fn inherited() -> io::Result<Vec<Self>> {
        const FIRST: RawFd = 3;
        let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Ok(Vec::new());
        }
        let count = RawFd::try_from(number("LISTEN_FDS").unwrap_or(0)).unwrap_or(0);
        let listener = |fd| {
            // Duplicated, because whoever asks twice must not own one descriptor twice. By its number:
            // nothing may claim that it is open before the kernel has said so. SAFETY: no memory is
            // involved.
            let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, FIRST) };
            if duplicate < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just made this descriptor for us.
            Self::try_from(unsafe { OwnedFd::from_raw_fd(duplicate) })
        };
        (FIRST..FIRST.saturating_add(count)).map(listener).collect()
    }

    fn new(source: Source) -> Self {
        Self { source, settings: Settings::default() }
    }
}

impl From<SocketAddr> for Listener {
    fn from(address: SocketAddr) -> Self {
        Self::new(Source::Address(address))
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::new(Source::Existing(Arc::new(listener.into())))
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::new(Source::Existing(Arc::new(OwnedFd::from(listener).into())))
    }
}

impl TryFrom<OwnedFd> for Listener {
    type Error = io::Error;

    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
            let problem = format!("descriptor {} is no listening stream socket", socket.as_raw_fd());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(Self::new(Source::Existing(Arc::new(socket))))
    }
}

/// A listener as one worker has it.
#[derive(Debug)]
pub(super) struct Listening {
    /// `None` once the worker accepts no more.
    socket: Option<Socket>,
    file: Option<Arc<SocketFile>>,
    pub(super) settings: Settings,
}

impl Listening {
    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.socket.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Clients that come from now on are another server's. The file of a path goes with the last worker.
    pub(super) fn close(&mut self) {
        // The file first: whoever finds it must find somebody behind it.
        self.file = None;
        self.socket = None;
    }
}

/// The file of a path that this server has bound, removed with the last worker that accepts from it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another server may have taken the path over.
        if identity(&self.path).ok() == Some(self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("the socket {} could not be removed: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Opens all listeners for all workers: an address once for each worker, with SO_REUSEPORT, so that the
/// kernel spreads connections; anything else once, and duplicated.
pub(super) fn open(
    options: &Options,
    workers: usize,
) -> Result<(Vec<Vec<Listening>>, Vec<Endpoint>), StartError> {
    let failed = |address| move |source| StartError::Listen { address, source };
    if !options.share_port {
        for listener in &options.listen {
            if let Source::Address(address) = listener.source {
                ensure_free(address).map_err(failed(Endpoint::Tcp(address)))?;
            }
        }
    }
    let mut each: Vec<Vec<Listening>> = (0..workers).map(|_| Vec::new()).collect();
    let mut endpoints = Vec::new();
    for Listener { source, settings } in &options.listen {
        let asked = source.endpoint();
        let (sockets, file) = source.open(options, workers).map_err(failed(asked.clone()))?;
        // Port 0 has become another by now.
        let bound = sockets.first().and_then(|socket| socket.local_addr().ok()).map(|a| endpoint(&a));
        endpoints.push(match asked {
            Endpoint::Tcp(_) => bound.unwrap_or(asked),
            Endpoint::Unix(_) => asked,
        });
        for (worker, socket) in each.iter_mut().zip(sockets) {
            let (socket, file, settings) = (Some(socket), file.clone(), settings.clone());
            worker.push(Listening { socket, file, settings });
        }
    }
    Ok((each, endpoints))
}

impl Source {
    /// As it was asked for; what an existing socket says of itself.
    fn endpoint(&self) -> Endpoint {
        match self {
            Self::Address(address) => Endpoint::Tcp(*address),
            Self::Path { path, .. } => Endpoint::Unix(path.clone()),
            Self::Existing(socket) => {
                socket.local_addr().map_or_else(|_| Endpoint::Unix(PathBuf::new()), |a| endpoint(&a))
            }
        }
    }

    /// A socket for each worker.
    fn open(&self, options: &Options, workers: usize) -> io::Result<(Vec<Socket>, Option<Arc<SocketFile>>)> {
        match self {
            Self::Address(address) => {
                let mut address = *address;
                let mut sockets = Vec::with_capacity(workers);
                for _ in 0..workers {
                    let socket = bind_tcp(options, address)?;
                    // The first bind chooses the port for port 0.
                    address = socket.local_addr()?.as_socket().unwrap_or(address);
                    sockets.push(socket);
                }
                Ok((sockets, None))
            }
            Self::Path { path, mode } => {
                let socket = bind_unix(options, path, *mode)?;
                let file = SocketFile { path: path.clone(), identity: identity(path)? };
                Ok((duplicate(&socket, workers)?, Some(Arc::new(file))))
            }
            Self::Existing(socket) => {
                inherit(socket, options.send_buffer)?;
                Ok((duplicate(socket, workers)?, None))
            }
        }
    }
}

fn duplicate(socket: &Socket, workers: usize) -> io::Result<Vec<Socket>> {
    (0..workers).map(|_| socket.try_clone()).collect()
}

fn endpoint(address: &SockAddr) -> Endpoint {
    if let Some(address) = address.as_socket() {
        return Endpoint::Tcp(address);
    }
    let name = address.as_abstract_namespace().map(|name| format!("@{}", String::from_utf8_lossy(name)));
    let path = address.as_pathname().map(Path::to_path_buf);
    Endpoint::Unix(path.or_else(|| name.map(PathBuf::from)).unwrap_or_default())
}

/// Fails if somebody listens on an address. SO_REUSEPORT alone would let two servers share a port by
/// accident. A port that a process of ours has just left may take the kernel a moment to release.
fn ensure_free(address: SocketAddr) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(20);
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    let start = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < PATIENCE => {
                thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn bind_tcp(options: &Options, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    inherit(&socket, options.send_buffer)?;
    socket.bind(&address.into())?;
    defer_accept(&socket, options.defer_accept)?;
    socket.listen(options.backlog)?;
    Ok(socket)
}

/// Lets the kernel wait for a client's first bytes before it hands the connection over.
fn defer_accept(socket: &Socket, silence: Duration) -> io::Result<()> {
    let seconds = silence.as_millis().div_ceil(1000);
    let seconds = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
    let len = size_of_val(&seconds) as libc::socklen_t;
    // SAFETY: the option is an integer, which the kernel reads before the call returns.
    let result = unsafe {
        let value = (&raw const seconds).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets what accepted sockets inherit from a listener, and what an adopted one is to have of its own.
pub(super) fn inherit(socket: &Socket, send_buffer: usize) -> io::Result<()> {
    if send_buffer > 0 {
        socket.set_send_buffer_size(send_buffer)?;
    }
    if !matches!(socket.domain()?, Domain::IPV4 | Domain::IPV6) {
        return Ok(());
    }
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

fn bind_unix(options: &Options, path: &Path, mode: Option<u32>) -> io::Result<Socket> {
    make_way(options, path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    inherit(&socket, options.send_buffer)?;
    if let Some(mode) = mode {
        // A bind gives the file the mode of the socket, less the umask: it is never wider than asked.
        // SAFETY: no memory is involved, and the descriptor is open.
        if unsafe { libc::fchmod(socket.as_raw_fd(), mode) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    socket.bind(&SockAddr::unix(path)?)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    socket.listen(options.backlog)?;
    Ok(socket)
}

/// Removes the file of a server that is gone.
fn make_way(options: &Options, path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !file.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path is there and is no socket"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A server that lives and is too busy to take us would make us wait.
    probe.set_nonblocking(true)?;
    let answer = probe.connect(&SockAddr::unix(path)?);
    let dead = answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if !dead && !options.share_port {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    fs::remove_file(path)
}
