//! Thin wrappers over the system calls that the standard library does not offer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel may hold for an accept: a storm must not be lost to a short queue of the floor.
const BACKLOG: i32 = 4096;

/// Turns a C return value into a result.
fn checked(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Turns the return value of a transfer into a result.
fn transferred(value: isize) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}

/// Whether an error only says "not now".
pub(crate) fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Restricts the calling thread, and what it spawns later, to these cores.
pub(crate) fn pin_to_cores(cores: &[usize]) -> io::Result<()> {
    // SAFETY: cpu_set_t is a plain bit array, for which all zeroes is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores {
        if core >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such core"));
        }
        // SAFETY: the index was checked against the set's size.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: the set lives through the call, and its own size is passed.
    checked(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) }).map(drop)
}

/// Raises the soft limit of descriptors to the hard one and returns it.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure, which outlives the call.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the structure is initialised and only read.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}

/// In a child between fork and exec: die with the parent, so that no server is left behind.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: this prctl takes one integer and touches no memory.
    checked(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
}

/// Sends SIGTERM to a process.
pub(crate) fn terminate(pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    if pid <= 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a process of ours"));
    }
    // SAFETY: kill touches no memory of this process; the pid is positive, so it names no group.
    checked(unsafe { libc::kill(pid, libc::SIGTERM) }).map(drop)
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    cpu(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of this process.
pub(crate) fn process_cpu() -> Duration {
    cpu(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Gives the calling thread a descriptor table of its own, a copy: what is opened or closed later, only it sees.
pub(crate) fn own_descriptor_table() -> io::Result<()> {
    // SAFETY: unshare takes flags and touches no memory; descriptors that others use stay open in their table.
    checked(unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}

fn cpu(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure, which outlives the call. The clock exists on every Linux, so the
    // result need not be looked at: the structure stays zero otherwise.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A listening socket, not blocking.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Accepts one connection, not blocking; `None` when none waits.
pub(crate) fn accept(listener: &Socket) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null pointers say that the peer's address is not wanted.
    let fd =
        unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    match checked(fd) {
        // SAFETY: accept4 just returned this descriptor, and nothing else owns it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) if would_block(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Begins a connect from an own loopback address.
///
/// The address leaves the server's ports alone, and `IP_BIND_ADDRESS_NO_PORT` lets the kernel choose the port when
/// it knows both ends, so ports are counted per pair of addresses. Closing resets: no TIME_WAIT stays behind.
pub(crate) fn connect_start(
    to: SocketAddrV4,
    from: Ipv4Addr,
    receive_bytes: Option<usize>,
) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    if let Some(bytes) = receive_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    let one: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call and whose size is passed.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// The error that a connect ended with, if any.
pub(crate) fn connect_error(fd: &OwnedFd) -> io::Result<()> {
    match socket2::SockRef::from(fd).take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Receives what is there.
pub(crate) fn recv(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a buffer borrowed through the call.
    transferred(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) })
}

/// Bytes that wait to be received.
pub(crate) fn unread_bytes(fd: &OwnedFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int, which outlives the call.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes.max(0) as usize)
}

/// Sends what fits.
pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length are those of a slice borrowed through the call.
    transferred(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// An event that epoll reported.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    /// The number that was registered with the descriptor.
    pub(crate) key: u64,
    /// `EPOLL*` bits.
    pub(crate) bits: u32,
}

/// An epoll descriptor and the room for its answers.
pub(crate) struct Epoll {
    fd: OwnedFd,
    raw: Vec<libc::epoll_event>,
    ready: usize,
}

impl Epoll {
    /// An epoll that reports up to `batch` events at once.
    pub(crate) fn new(batch: usize) -> io::Result<Self> {
        // SAFETY: the call takes flags only.
        let fd = checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just created, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, raw: vec![libc::epoll_event { events: 0, u64: 0 }; batch], ready: 0 })
    }

    /// Watches a descriptor; closing it ends the watch.
    pub(crate) fn add(&self, fd: RawFd, bits: u32, key: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, bits, key)
    }

    /// Changes what is watched for.
    pub(crate) fn modify(&self, fd: RawFd, bits: u32, key: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, bits, key)
    }

    /// Ends the watch: what comes for the descriptor is no event any more, and costs who sends it none.
    pub(crate) fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, bits: u32, key: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: bits, u64: key };
        // SAFETY: the event outlives the call, which copies it.
        checked(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
    }

    /// Waits for events, -1 for as long as it takes, and returns how many there are.
    pub(crate) fn wait(&mut self, timeout_ms: i32) -> io::Result<usize> {
        let room = self.raw.len() as libc::c_int;
        // SAFETY: the pointer is to `room` initialised entries, which the kernel may overwrite.
        let ready = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.raw.as_mut_ptr(), room, timeout_ms) };
        self.ready = match checked(ready) {
            Ok(ready) => ready as usize,
            Err(error) if would_block(&error) => 0,
            Err(error) => return Err(error),
        };
        Ok(self.ready)
    }

    /// One of the events of the last wait.
    pub(crate) fn event(&self, index: usize) -> Event {
        let raw = self.raw[..self.ready][index];
        Event { key: raw.u64, bits: raw.events }
    }
}
