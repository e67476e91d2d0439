//! What an operator sets about sockets, threads and limits.

use std::time::Duration;

use super::Listener;

/// Where accepted sockets live.
///
/// ```
/// use sockring::app::App;
/// use sockring::runtime::Descriptors;
/// let builder = App::builder().descriptors(Descriptors::Normal);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Descriptors {
    /// Direct descriptors where the kernel closes them at once (a probe decides), normal ones elsewhere.
    #[default]
    Auto,
    /// In the process's descriptor table: works everywhere, and the process's limit counts all workers.
    Normal,
    /// In the ring's own table: the limit counts for each worker. Starting fails where the probe fails.
    Direct,
}

/// How the workers listen, send and stop.
///
/// ```
/// use sockring::runtime::Options;
/// let options = Options { workers: 2, ..Options::default() };
/// assert_eq!(options.backpressure_bytes, 4 * 1024 * 1024);
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// What to listen on.
    pub listen: Vec<Listener>,
    /// Whether listening on nothing is meant: all connections come through an
    /// [`Adopter`](super::Adopter). Otherwise it is an error.
    pub adopt_only: bool,
    /// Threads; 0 means one for each core of the process's affinity mask.
    pub workers: usize,
    /// Whether each worker is bound to one core of the affinity mask.
    pub pin: bool,
    /// Where accepted sockets live.
    pub descriptors: Descriptors,
    /// Connections of one worker; 0 means as many as the limit of descriptors allows.
    pub connections: usize,
    /// Connections of one worker that a single address may have; one more is closed when it is accepted. The
    /// kernel spreads an address' connections over the workers. An IPv6 network of 64 bits is one address;
    /// behind the PROXY protocol it is the one that the header names. 0, the default, is any number: clients
    /// behind one NAT or one proxy share an address, and only the operator knows how many they are.
    pub connections_per_address: usize,
    /// Connections that the kernel queues for one worker before it accepts them (`listen(2)`).
    pub backlog: i32,
    /// How long the kernel keeps a new TCP connection to itself while the client sends nothing
    /// (`TCP_DEFER_ACCEPT`, tcp(7)), in whole seconds, rounded up. The request is there when a connection
    /// is accepted, which saves a fifth of what a handshake costs, and clients that never send cost no
    /// descriptor until then. One that is silent for longer is accepted when the kernel next tries it,
    /// some seconds after; the limits on time begin then. Zero accepts at once. Sockets that were
    /// [open already](Listener) are left as they are.
    ///
    /// Meanwhile they count for the `backlog`. When more than that many wait, the kernel goes over to SYN
    /// cookies (`net.ipv4.tcp_syncookies`, on by default), which hand connections over at once as before.
    pub defer_accept: Duration,
    /// Whether another server of the same user may listen on the same port, and share its connections, as
    /// a new process does that takes over from an old one. Otherwise a port that is taken is an error.
    /// The same goes for the path of a Unix socket, which the new server takes away from the old one.
    pub share_port: bool,
    /// `SO_SNDBUF` of every socket; the kernel doubles it. At the kernel's own default a stalled reader
    /// absorbs 4.3 MB of kernel memory, and some 500 of them exhaust a machine's TCP memory; with 64 KiB
    /// it is about 0.4 MB. 0 leaves the default.
    pub send_buffer: usize,
    /// Bytes that may wait for one client in this process before the next message closes it; four times as
    /// many while the client goes on taking some, for at most five seconds without. A client for which more
    /// than half of them wait is not read from until it has taken them. Frames are shared, so a stalled room
    /// costs its messages once; large enough for a few messages of the default `max_http_buffer_size` (1 MB)
    /// behind each other.
    pub backpressure_bytes: usize,
    /// How long a turn sends, or carries out what other threads have asked for, before it looks at what has
    /// come in the meantime: a broadcast to very many sockets is cut in slices, and in between pings,
    /// new connections and messages to few sockets have their turn. Each socket gets everything in order. A
    /// slice has one burst of 256 sends at least.
    pub send_slice: Duration,
    /// Bytes of memory that the process may use before it takes on nothing new: while it uses more, new
    /// connections and new sessions are answered with 503 and `Retry-After`, and so are requests with large
    /// bodies; large WebSocket messages end with 1013 (RFC 6455 section 7.4.1, as registered). Clients that
    /// are there are served as before. It counts what belongs to the process alone (`resident - shared` of
    /// proc(5)'s `statm`), measured every 100 ms; the kernel's buffers of sockets come on top. Well below
    /// what the machine or the control group has. 0, the default, is no bound.
    pub max_memory: usize,
    /// How long clients get to leave after [`Running::shutdown`](super::Running::shutdown).
    pub shutdown_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            adopt_only: false,
            workers: 0,
            pin: true,
            descriptors: Descriptors::Auto,
            connections: 0,
            connections_per_address: 0,
            backlog: 4096,
            defer_accept: Duration::from_secs(1),
            share_port: false,
            send_buffer: 64 * 1024,
            backpressure_bytes: 4 * 1024 * 1024,
            send_slice: Duration::from_millis(4),
            max_memory: 0,
            shutdown_timeout: Duration::from_secs(3),
        }
    }
}
