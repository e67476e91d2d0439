//! Connections that somebody else has accepted.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::{Socket, Type};

use super::connection::Parcel;
use super::core::{Core, Shared};
use super::listener::inherit;
use super::ring::Target;
use crate::fanout::Task;

/// The listener's number of a connection that came through none: no listener has it, see
/// [`crate::limits::LISTENERS_MAX`].
pub(super) const ADOPTED: u16 = u16::MAX;

/// Gives connections of other servers to this one: `Clone`, `Send` and `Sync`, for use inside any runtime.
///
/// A server that has accepted a connection, and perhaps read from it to see what it is, hands it over with
/// the bytes that it has read. From then on it is like any other: it counts against
/// [`Options::connections`](super::Options::connections), moves to the core of its session, and ends with
/// the server.
///
/// ```no_run
/// # fn looks_like_socketio(_: &[u8]) -> bool { true }
/// # fn keep(_: std::net::TcpStream, _: Vec<u8>) {}
/// use std::io::Read;
/// use sockring::app::App;
/// let server = App::builder().adopt_only().start(|_| ())?;
/// let adopter = server.adopter();
/// let listener = std::net::TcpListener::bind("127.0.0.1:3000")?;
/// std::thread::spawn(move || {
///     for mut stream in listener.incoming().flatten() {
///         let mut read = vec![0; 1024];
///         let count = stream.read(&mut read).unwrap_or(0);
///         read.truncate(count);
///         if !looks_like_socketio(&read) {
///             keep(stream, read);
///         } else if let Err(error) = adopter.adopt(stream, read) {
///             eprintln!("refused: {error}");
///             keep(error.stream.into(), error.read);
///         }
///     }
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Adopter(Arc<Shared>);

/// A connection that was not adopted, as it was given.
///
/// ```
/// use sockring::runtime::AdoptError;
/// fn refused(error: AdoptError) {
///     eprintln!("{error}"); // and why
///     let stream = std::net::TcpStream::from(error.stream);
///     drop((stream, error.read)); // or serve it here
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("the connection was not adopted: {why}")]
#[non_exhaustive]
pub struct AdoptError {
    /// The stream; `TcpStream` and `UnixStream` can be made of it.
    pub stream: OwnedFd,
    /// The bytes that had been read from it.
    pub read: Vec<u8>,
    /// Why.
    #[source]
    pub why: NotAdopted,
}

/// Why a connection was not adopted.
///
/// ```
/// assert_eq!(sockring::runtime::NotAdopted::Full.to_string(), "the server is full");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotAdopted {
    /// No worker has room for another connection.
    #[error("the server is full")]
    Full,
    /// The process uses more memory than [`Options::max_memory`](super::Options::max_memory) allows.
    #[error("the process is short of memory")]
    Memory,
    /// The server stops, or has stopped.
    #[error("the server stops")]
    Stopping,
    /// It is no connected stream socket.
    #[error("it is no connected stream: {0}")]
    Stream(#[source] io::Error),
}

/// How full the cores are, for threads that are none of them.
#[derive(Debug)]
pub(super) struct Admission {
    cores: Vec<Load>,
    next: AtomicUsize,
    capacity: usize,
    send_buffer: usize,
}

#[derive(Debug, Default)]
struct Load {
    /// Connections of the core, as of its last turn.
    open: AtomicUsize,
    /// Connections on their way to it.
    coming: AtomicUsize,
}

impl Admission {
    pub(super) fn new(cores: usize, capacity: usize, send_buffer: usize) -> Self {
        let cores = (0..cores).map(|_| Load::default()).collect();
        Self { cores, next: AtomicUsize::new(0), capacity, send_buffer }
    }

    /// Says how many connections a core has. Written only when it changes: the cores share cache lines here.
    pub(super) fn publish(&self, core: usize, open: usize) {
        if self.cores[core].open.load(Ordering::Relaxed) != open {
            self.cores[core].open.store(open, Ordering::Release);
        }
    }

    /// Connections on their way to a core.
    pub(super) fn coming(&self, core: usize) -> usize {
        self.cores[core].coming.load(Ordering::Relaxed)
    }

    /// A place on one of the cores, in turn.
    fn reserve(&self) -> Option<usize> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        (0..self.cores.len()).map(|step| first.wrapping_add(step) % self.cores.len()).find(|core| {
            let load = &self.cores[*core];
            let taken = load.coming.fetch_add(1, Ordering::AcqRel) + load.open.load(Ordering::Acquire);
            if taken >= self.capacity {
                self.release(*core);
            }
            taken < self.capacity
        })
    }

    fn release(&self, core: usize) {
        self.cores[core].coming.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What waits for a core to take it: whoever takes it out has it.
type Crate = Arc<Mutex<Option<(Socket, Vec<u8>)>>>;

impl Adopter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Gives the server a connected stream (`std::net::TcpStream`, `std::os::unix::net::UnixStream`, or
    /// either as a descriptor) with the bytes that were already `read` from it, in order from the first
    /// byte of an HTTP request on. The cores take turns.
    ///
    /// No other descriptor of the same stream may be read from, or written to, any more.
    ///
    /// # Errors
    ///
    /// When the server is full or stops, or this is no connected stream. The error has it back, not read
    /// from and not written to.
    pub fn adopt(&self, stream: impl Into<OwnedFd>, read: impl Into<Vec<u8>>) -> Result<(), AdoptError> {
        let (socket, read) = (Socket::from(stream.into()), read.into());
        let failed = |socket: Socket, read, why| Err(AdoptError { stream: socket.into(), read, why });
        if self.0.is_stopping() {
            return failed(socket, read, NotAdopted::Stopping);
        }
        if self.0.memory.is_short() {
            return failed(socket, read, NotAdopted::Memory);
        }
        let peer = match prepare(&socket, self.0.admission.send_buffer) {
            Ok(peer) => peer,
            Err(error) => return failed(socket, read, NotAdopted::Stream(error)),
        };
        let Some(core) = self.0.admission.reserve() else {
            return failed(socket, read, NotAdopted::Full);
        };
        let waiting: Crate = Arc::new(Mutex::new(Some((socket, read))));
        let theirs = waiting.clone();
        let arrive = Task::new(move || {
            if let (Some(core), Some((socket, read))) = (super::current(), take(&theirs)) {
                core.adopted(socket, read, peer);
            }
        });
        let Err(task) = self.0.mesh.post(core, arrive) else { return Ok(()) };
        drop(task);
        self.0.admission.release(core);
        let why = if self.0.is_stopping() { NotAdopted::Stopping } else { NotAdopted::Full };
        take(&waiting).map_or(Ok(()), |(socket, read)| failed(socket, read, why))
    }
}

fn take(waiting: &Crate) -> Option<(Socket, Vec<u8>)> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Makes a stream what an accepted one is; its peer's address, if it has one.
fn prepare(socket: &Socket, send_buffer: usize) -> io::Result<Option<SocketAddr>> {
    if socket.r#type()? != Type::STREAM {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no stream"));
    }
    let peer = socket.peer_addr()?.as_socket();
    inherit(socket, send_buffer)?;
    Ok(peer)
}

impl Core {
    /// What gives connections of other servers to this one, from any thread.
    pub fn adopter(&self) -> Adopter {
        Adopter::new(self.shared.clone())
    }

    /// A connection has come from another server.
    fn adopted(&self, socket: Socket, bytes: Vec<u8>, peer: Option<SocketAddr>) {
        // Accepted sockets block, as the kernel sees it; sends say for themselves that they must not. Not
        // earlier: one that is given back is as it was.
        let blocks = socket.set_nonblocking(false);
        let service = self.service().filter(|_| !self.is_stopping() && blocks.is_ok());
        if let Some(service) = service {
            let target = Target::Normal(socket.into_raw_fd());
            let parcel = Parcel::new(bytes, peer, ADOPTED, Box::new(()));
            self.land(target, parcel, &service);
        }
        self.publish_load();
        self.shared.admission.release(self.index);
    }

    /// Tells other threads how full this core is.
    pub(super) fn publish_load(&self) {
        let served = self.connections().saturating_sub(self.in_reserve());
        self.shared.admission.publish(self.index, served);
    }
}
