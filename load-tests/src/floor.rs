//! The floor: a server that does nothing but what every server must.
//!
//! Accepting, upgrading and joining run on plain epoll and need not be fast. A publish is the bare minimum: the frame
//! is made once, and one io_uring SEND goes to each joined socket, in accept order, [`BATCH`] to an enter, without
//! completions for those that succeed. In [`Mode::Joined`] all publishes that one turn read leave as one buffer in one
//! SEND; in [`Mode::Single`] each leaves on its own.
//!
//! The sends complete inside the enter (`MSG_DONTWAIT`): the buffer is free afterwards. `MSG_WAITALL` makes a partial
//! send fail visibly instead of counting as a success that leaves no completion. What a socket did not take waits in
//! its own buffer until epoll says that there is room; nothing is lost.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use base64::Engine as _;
use clap::{Args, ValueEnum};
use io_uring::{IoUring, opcode, squeue, types};
use sha1::{Digest, Sha1};
use socket2::Socket;

use crate::wire::{self, Header};
use crate::{Outcome, fail, sys};

/// SENDs to an enter, and the size of the submission queue: 64 to 256 measured best.
const BATCH: usize = 256;
/// Events taken from the kernel at once.
const EVENTS_PER_WAIT: usize = 512;
/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 256;
/// Read at once: more than sixteen publishes of a kilobyte.
const READ_BYTES: usize = 64 << 10;
/// A socket that leaves this much unread is closed.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// Longest request head, and longest incomplete frame.
const INPUT_BYTES_MAX: usize = 4 << 20;
/// The listener's key in epoll; connections have their descriptor.
const LISTENER: u64 = u64::MAX;
/// RFC 6455, 4.2.2: appended to the client's nonce.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The floor sends no heartbeats, and says so by an interval that no run reaches.
const PING_INTERVAL_MS: u32 = 3_600_000;

/// What leaves in one SEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// One frame.
    Single,
    /// All frames of a turn.
    Joined,
}

/// `load-tests floor`
#[derive(Args, Debug)]
pub(crate) struct FloorArgs {
    /// Where to listen; loopback only
    #[arg(long)]
    pub(crate) addr: SocketAddr,
    /// What leaves in one send
    #[arg(long, value_enum, default_value = "single")]
    pub(crate) mode: Mode,
    /// Core to stay on
    #[arg(long)]
    pub(crate) core: Option<usize>,
}

/// A connection's place in the list of those that are sent to.
struct Member {
    fd: RawFd,
    /// Its socket was full: what follows waits in its connection's buffer.
    blocked: bool,
}

struct Conn {
    fd: OwnedFd,
    /// Number in accept order.
    number: u64,
    /// Input that is not a whole request head or frame yet.
    input: Vec<u8>,
    /// Output that the socket did not take.
    pending: Vec<u8>,
    upgraded: bool,
    joined: bool,
    member: usize,
}

/// The running floor.
struct Floor {
    mode: Mode,
    listener: Socket,
    epoll: sys::Epoll,
    ring: IoUring,
    conns: HashMap<RawFd, Conn>,
    members: Vec<Member>,
    /// Somebody joined or left since the members were listed.
    members_stale: bool,
    accepted: u64,
    /// Frames of the publishes that this turn read.
    frames: Vec<u8>,
    frame_ends: Vec<usize>,
    buffer: Vec<u8>,
}

/// Serves until the process is ended.
pub(crate) fn run(args: &FloorArgs) -> Outcome {
    if !args.addr.ip().is_loopback() {
        return fail(format!("{} is not a loopback address", args.addr));
    }
    if let Some(core) = args.core {
        sys::pin_to_cores(&[core])?;
    }
    sys::raise_descriptor_limit()?;
    let listener = sys::listen(args.addr)?;
    let epoll = sys::Epoll::new(EVENTS_PER_WAIT)?;
    epoll.add(listener.as_raw_fd(), libc::EPOLLIN as u32, LISTENER)?;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .build(BATCH as u32)?;
    let mut floor = Floor {
        mode: args.mode,
        listener,
        epoll,
        ring,
        conns: HashMap::new(),
        members: Vec::new(),
        members_stale: false,
        accepted: 0,
        frames: Vec::new(),
        frame_ends: Vec::new(),
        buffer: vec![0; READ_BYTES],
    };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {}", args.addr)?;
    stdout.flush()?;
    drop(stdout);
    loop {
        floor.turn()?;
    }
}

impl Floor {
    /// Reads all that is there, then sends what was published.
    fn turn(&mut self) -> Outcome {
        for slot in 0..self.epoll.wait(-1)? {
            let event = self.epoll.event(slot);
            if event.key == LISTENER {
                self.accept()?;
                continue;
            }
            let fd = event.key as RawFd;
            if event.bits & libc::EPOLLOUT as u32 != 0 {
                self.drain(fd);
            }
            if event.bits & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
                self.read(fd);
            }
        }
        if !self.frame_ends.is_empty() {
            self.fan_out()?;
        }
        Ok(())
    }

    fn accept(&mut self) -> Outcome {
        for _ in 0..ACCEPTS_PER_TURN {
            let fd = match sys::accept(&self.listener) {
                Ok(Some(fd)) => fd,
                Ok(None) => break,
                // The peer is gone already: the next one is not to blame.
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            let raw = fd.as_raw_fd();
            self.epoll.add(raw, libc::EPOLLIN as u32, raw as u64)?;
            let conn = Conn {
                fd,
                number: self.accepted,
                input: Vec::new(),
                pending: Vec::new(),
                upgraded: false,
                joined: false,
                member: 0,
            };
            self.accepted += 1;
            self.conns.insert(raw, conn);
        }
        Ok(())
    }

    fn close(&mut self, fd: RawFd) {
        if self.conns.remove(&fd).is_some_and(|conn| conn.joined) {
            self.members_stale = true;
        }
    }

    fn read(&mut self, fd: RawFd) {
        let Some(conn) = self.conns.get_mut(&fd) else { return };
        match sys::recv(fd, &mut self.buffer) {
            Ok(0) => return self.close(fd),
            Ok(received) => conn.input.extend_from_slice(&self.buffer[..received]),
            Err(error) if sys::would_block(&error) => return,
            Err(_) => return self.close(fd),
        }
        let mut input = std::mem::take(&mut conn.input);
        let mut reply = Vec::new();
        let Some(taken) = self.take(fd, &mut input, &mut reply) else { return self.close(fd) };
        let Some(conn) = self.conns.get_mut(&fd) else { return };
        // An idle connection keeps no buffer.
        if taken < input.len() {
            input.drain(..taken);
            conn.input = input;
            if conn.input.len() > INPUT_BYTES_MAX {
                return self.close(fd);
            }
        }
        if !reply.is_empty() {
            self.reply(fd, &reply);
        }
    }

    /// Handles what is complete and returns how much that was; `None` ends the connection.
    fn take(&mut self, fd: RawFd, input: &mut [u8], reply: &mut Vec<u8>) -> Option<usize> {
        let mut taken = 0;
        if !self.conns.get(&fd)?.upgraded {
            let end = input.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
            let Some(end) = end else { return Some(0) };
            let head = std::str::from_utf8(&input[..end]).ok()?;
            upgrade(head, fd, reply)?;
            self.conns.get_mut(&fd)?.upgraded = true;
            taken = end;
        }
        while let Some(Header { opcode, header_bytes, payload_bytes, mask }) =
            wire::parse_header(&input[taken..]).ok()?
        {
            let start = taken + header_bytes;
            let end = start + payload_bytes as usize;
            if end > input.len() {
                break;
            }
            let payload = &mut input[start..end];
            wire::apply_mask(payload, mask?);
            match opcode {
                wire::OP_TEXT => self.message(fd, payload, reply),
                wire::OP_PING => wire::server_frame(wire::OP_PONG, &[payload], reply),
                wire::OP_PONG => {}
                _ => return None,
            }
            taken = end;
        }
        Some(taken)
    }

    /// One Engine.IO packet.
    fn message(&mut self, fd: RawFd, packet: &[u8], reply: &mut Vec<u8>) {
        let mut text = |parts: &[&[u8]]| wire::server_frame(wire::OP_TEXT, parts, reply);
        match packet {
            [b'2', rest @ ..] => text(&[b"3", rest]),
            [b'4', b'0', ..] => text(&[format!("40{{\"sid\":\"floor-{fd}\"}}").as_bytes()]),
            [b'4', b'2', event @ ..] => {
                let digits = event.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let (ack, event) = event.split_at(digits);
                if event.starts_with(b"[\"join\",") {
                    self.join(fd);
                } else if let Some(rest) = event.strip_prefix(b"[\"publish\",") {
                    self.publish(rest);
                }
                let echoed = event.strip_prefix(b"[\"echo\",").unwrap_or(b"]");
                if !ack.is_empty() {
                    text(&[b"43", ack, b"[", echoed]);
                }
            }
            _ => {}
        }
    }

    fn join(&mut self, fd: RawFd) {
        if let Some(conn) = self.conns.get_mut(&fd)
            && !conn.joined
        {
            conn.joined = true;
            self.members_stale = true;
        }
    }

    /// Makes the frame of `["publish",ROOM,PAYLOAD]`, of which `rest` is what follows the first comma. There is one
    /// room, whatever its name.
    fn publish(&mut self, rest: &[u8]) {
        if let Some(comma) = rest.iter().position(|&byte| byte == b',') {
            let payload = &rest[comma + 1..];
            wire::server_frame(wire::OP_TEXT, &[b"42[\"message\",", payload], &mut self.frames);
            self.frame_ends.push(self.frames.len());
        }
    }

    fn fan_out(&mut self) -> Outcome {
        if std::mem::take(&mut self.members_stale) {
            self.list_members();
        }
        let frames = std::mem::take(&mut self.frames);
        let ends = std::mem::take(&mut self.frame_ends);
        match self.mode {
            Mode::Joined => self.send_all(&frames)?,
            Mode::Single => {
                let mut start = 0;
                for &end in &ends {
                    self.send_all(&frames[start..end])?;
                    start = end;
                }
            }
        }
        (self.frames, self.frame_ends) = (frames, ends);
        self.frames.clear();
        self.frame_ends.clear();
        Ok(())
    }

    fn list_members(&mut self) {
        let mut joined: Vec<&mut Conn> = self.conns.values_mut().filter(|conn| conn.joined).collect();
        joined.sort_unstable_by_key(|conn| conn.number);
        self.members.clear();
        for (member, conn) in joined.into_iter().enumerate() {
            conn.member = member;
            self.members.push(Member { fd: conn.fd.as_raw_fd(), blocked: !conn.pending.is_empty() });
        }
    }

    /// Sends the same bytes to all members. This is what is measured.
    fn send_all(&mut self, bytes: &[u8]) -> Outcome {
        let length = u32::try_from(bytes.len())?;
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let mut first = 0;
        while first < self.members.len() {
            let last = self.members.len().min(first + BATCH);
            let mut queued = 0;
            let mut submission = self.ring.submission();
            for (offset, member) in self.members[first..last].iter().enumerate() {
                if member.blocked {
                    wait_in_line(&mut self.conns, member.fd, bytes);
                    continue;
                }
                let entry = opcode::Send::new(types::Fd(member.fd), bytes.as_ptr(), length)
                    .flags(flags)
                    .build()
                    .flags(squeue::Flags::SKIP_SUCCESS)
                    .user_data((first + offset) as u64);
                // SAFETY: the send is done or failed when the enter below returns, since MSG_DONTWAIT keeps it from
                // being put off; `bytes` is borrowed until then, and the queue is empty again (checked below).
                unsafe { submission.push(&entry)? };
                queued += 1;
            }
            drop(submission);
            if queued > 0 {
                let submitted = self.ring.submit()?;
                if submitted != queued || !self.ring.submission().is_empty() {
                    return fail(format!("the kernel took {submitted} of {queued} sends"));
                }
                self.keep_unsent(bytes)?;
            }
            first = last;
        }
        Ok(())
    }

    /// Reads the failures of a batch: what was not sent moves to the connection's own buffer.
    fn keep_unsent(&mut self, bytes: &[u8]) -> Outcome {
        // All failures are there: the sends ended inside the enter.
        while let Some(failure) = self.ring.completion().next() {
            let member = failure.user_data() as usize;
            let sent = match failure.result() {
                sent @ 0.. => sent as usize,
                error if -error == libc::EAGAIN => 0,
                // Reset or closed by the peer; the next read finds out and closes.
                _ => continue,
            };
            let fd = self.members[member].fd;
            self.members[member].blocked = true;
            if let Some(conn) = self.conns.get_mut(&fd) {
                conn.pending.extend_from_slice(&bytes[sent..]);
                self.epoll.modify(fd, (libc::EPOLLIN | libc::EPOLLOUT) as u32, fd as u64)?;
            }
        }
        Ok(())
    }

    /// Sends an answer, behind what may wait already.
    fn reply(&mut self, fd: RawFd, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&fd) else { return };
        let sent = match conn.pending.is_empty().then(|| sys::send(fd, bytes)) {
            Some(Ok(sent)) => sent,
            Some(Err(error)) if !sys::would_block(&error) => return self.close(fd),
            _ => 0,
        };
        if sent < bytes.len() {
            conn.pending.extend_from_slice(&bytes[sent..]);
            self.block(fd);
        }
    }

    /// Watches for room in a socket that has something pending.
    fn block(&mut self, fd: RawFd) {
        let watched = self.epoll.modify(fd, (libc::EPOLLIN | libc::EPOLLOUT) as u32, fd as u64);
        if watched.is_err() {
            return self.close(fd);
        }
        self.set_blocked(fd, true);
    }

    fn set_blocked(&mut self, fd: RawFd, blocked: bool) {
        // The list may be stale: then it is made anew from what is pending.
        if let Some(conn) = self.conns.get(&fd)
            && let Some(member) = self.members.get_mut(conn.member)
            && member.fd == fd
        {
            member.blocked = blocked;
        }
    }

    /// A socket has room: sends what waits for it.
    fn drain(&mut self, fd: RawFd) {
        let Some(conn) = self.conns.get_mut(&fd) else { return };
        match sys::send(fd, &conn.pending) {
            Ok(sent) => drop(conn.pending.drain(..sent)),
            Err(error) if sys::would_block(&error) => return,
            Err(_) => return self.close(fd),
        }
        if conn.pending.is_empty() {
            conn.pending = Vec::new();
            if self.epoll.modify(fd, libc::EPOLLIN as u32, fd as u64).is_err() {
                return self.close(fd);
            }
            self.set_blocked(fd, false);
        }
    }
}

/// Puts bytes behind what a full socket did not take. One that never reads is shut down, and closed by the next read.
fn wait_in_line(conns: &mut HashMap<RawFd, Conn>, fd: RawFd, bytes: &[u8]) {
    let Some(conn) = conns.get_mut(&fd) else { return };
    if conn.pending.len() + bytes.len() > PENDING_BYTES_MAX {
        // It fails for a socket that is closed already, which is as good.
        let _ = socket2::SockRef::from(&conn.fd).shutdown(std::net::Shutdown::Both);
    } else {
        conn.pending.extend_from_slice(bytes);
    }
}

/// Answers a WebSocket request, with the Engine.IO open packet right behind; `None` if it is not one.
fn upgrade(head: &str, fd: RawFd, reply: &mut Vec<u8>) -> Option<()> {
    let nonce = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })?;
    let digest = Sha1::new().chain_update(nonce.as_bytes()).chain_update(ACCEPT_GUID).finalize();
    let answer = base64::engine::general_purpose::STANDARD.encode(digest);
    reply.extend_from_slice(
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {answer}\r\n\r\n"
        )
        .as_bytes(),
    );
    let open = format!(
        "0{{\"sid\":\"floor-{fd}\",\"upgrades\":[],\"pingInterval\":{PING_INTERVAL_MS},\"pingTimeout\":20000,\
         \"maxPayload\":1000000}}"
    );
    wire::server_frame(wire::OP_TEXT, &[open.as_bytes()], reply);
    Some(())
}
