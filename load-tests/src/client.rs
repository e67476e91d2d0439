//! Many Socket.IO connections on one thread.
//!
//! A [`Swarm`] connects, upgrades, joins, answers heartbeats, and follows every delivery by the sequence number in
//! its payload. Connections 0 to N-1 are readers; one more, connection N, publishes and reads nothing but heartbeats.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustls::{ClientConfig, ClientConnection};

use crate::echo::Echoes;
use crate::listener::Listener;
use crate::record::Series;

use crate::sys::{self, Epoll};
use crate::tally::{Broadcasts, Follower, Tally};
use crate::target::Server;
use crate::wire::{self, FrameReader, Stamp};
use crate::{Outcome, fail, report, tls};

/// The room of all runs.
pub(crate) const ROOM: &str = "load";
/// Read at once; sixteen broadcasts of a kilobyte and more fit.
const READ_BYTES: usize = 64 << 10;
/// Events taken from the kernel at once.
const EVENTS_PER_WAIT: usize = 512;
/// Connections that share a source address: well below the ports that it has.
const CONNECTIONS_PER_SOURCE: usize = 4000;
/// A response to the upgrade that is longer is not one.
const RESPONSE_BYTES_MAX: usize = 16 << 10;
/// Error texts kept for the report.
const ERRORS_KEPT: usize = 5;
/// Bytes of requests that may wait for a publisher's socket.
const UNSENT_BYTES_MAX: usize = 64 << 20;
/// The nonce of RFC 6455's example and the answer it demands: every connection uses it.
const NONCE: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const NONCE_ANSWER: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What to connect.
pub(crate) struct Plan {
    /// Where the server listens; loopback only.
    pub(crate) addr: SocketAddrV4,
    /// Readers.
    pub(crate) sockets: usize,
    /// Whether the readers join [`ROOM`].
    pub(crate) join: bool,
    /// Readers with a tiny receive buffer, which will be told to stop reading; spread evenly over all.
    pub(crate) slow: usize,
    /// Receive buffer of the others, for those that leave unread what comes; `None` for the kernel's default.
    pub(crate) receive_bytes: Option<usize>,
    /// Whether every delivery's latency is recorded (costs the client some CPU).
    pub(crate) time_deliveries: bool,
    /// Whether the server speaks TLS.
    pub(crate) tls: bool,
    /// The clock's zero, where several swarms share one; `None` for now.
    pub(crate) epoch: Option<Instant>,
    /// Another swarm publishes: numbers of broadcasts are learnt from what arrives.
    pub(crate) follows: bool,
    /// Whether [`Swarm::take_news`] tells of deliveries.
    pub(crate) tells_deliveries: bool,
}

/// Something that came for a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// The answer to a request that was no echo, by the request's number.
    Answer {
        /// Whose it was.
        reader: usize,
        /// As it was sent.
        number: u32,
    },
    /// A delivery that had not come before.
    Delivery {
        /// Who got it.
        reader: usize,
        /// Of the broadcast.
        sequence: u32,
    },
}

impl Plan {
    /// Readers of one server that join the room, by themselves.
    pub(crate) fn new(server: &Server, sockets: usize) -> Self {
        Self {
            addr: server.addr,
            sockets,
            join: true,
            slow: 0,
            receive_bytes: None,
            time_deliveries: false,
            tls: server.tls,
            epoch: None,
            follows: false,
            tells_deliveries: false,
        }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Not begun.
    Fresh,
    /// TCP connect begun.
    Connecting,
    /// Upgrade asked for.
    Upgrading,
    /// Upgraded, waits for the Engine.IO open packet.
    Opening,
    /// Asked for the namespace.
    Entering,
    /// Asked for the room.
    Joining,
    /// In.
    Ready,
    /// Closed by either side, or never got in.
    Closed,
}

struct Conn {
    reader: FrameReader,
    tls: Option<Box<ClientConnection>>,
    /// An incomplete HTTP response; empty before and after.
    response: Vec<u8>,
    started_us: u64,
    follower: Follower,
    fd: Option<OwnedFd>,
    stage: Stage,
    /// Told not to read.
    paused: bool,
    /// Has a tiny receive buffer, and is counted apart.
    slow: bool,
}

impl Conn {
    fn new() -> Self {
        Self {
            reader: FrameReader::new(),
            tls: None,
            response: Vec::new(),
            started_us: 0,
            follower: Follower::default(),
            fd: None,
            stage: Stage::Fresh,
            paused: false,
            slow: false,
        }
    }
}

/// What a call of [`Swarm::connect`] did.
pub(crate) struct Connected {
    /// From the first connect to the last answer.
    pub(crate) wall: Duration,
    /// Microseconds of each connection from its connect to its last answer.
    pub(crate) latency_us: Histogram<u64>,
    /// Connections that did not get in.
    pub(crate) failed: usize,
}

/// Many connections to one server.
pub(crate) struct Swarm {
    plan: Plan,
    epoch: Instant,
    epoll: Epoll,
    conns: Vec<Conn>,
    buffer: Vec<u8>,
    /// Answers to what the current read brought.
    reply: Vec<u8>,
    /// Requests that the publisher's socket did not take yet; over TLS, those that are still to be encrypted.
    unsent: Vec<u8>,
    /// Records that the publisher's socket did not take yet.
    sealed: Vec<u8>,
    tls: Option<Arc<ClientConfig>>,
    source_base: [u8; 2],
    mask_state: u32,
    connecting: usize,
    ready: usize,
    failed: usize,
    connect_latency_us: Histogram<u64>,
    latency: Series,
    echoes: Echoes,
    news: Vec<News>,
    broadcasts: Broadcasts,
    /// All readers but the slow ones.
    tally: Tally,
    /// The slow ones.
    slow_tally: Tally,
    errors: Vec<String>,
}

impl Swarm {
    /// Nothing is connected yet.
    pub(crate) fn new(plan: Plan) -> Outcome<Self> {
        if !plan.addr.ip().is_loopback() {
            return fail(format!(
                "{} is not a loopback address: these tools run against loopback only",
                plan.addr
            ));
        }
        // Every swarm of this process gets own source addresses, and different processes most likely do.
        static SWARMS: AtomicU8 = AtomicU8::new(0);
        let process = (std::process::id() % 200) as u8;
        let source_base = [20 + process, SWARMS.fetch_add(1, Ordering::Relaxed)];
        let readers = plan.sockets - plan.slow;
        let mut conns: Vec<Conn> = (0..=plan.sockets).map(|_| Conn::new()).collect();
        // In the middle of equal parts: a server that goes through its readers in order has some before each.
        for number in 0..plan.slow {
            conns[(2 * number + 1) * plan.sockets / (2 * plan.slow)].slow = true;
        }
        Ok(Self {
            epoch: plan.epoch.unwrap_or_else(Instant::now),
            epoll: Epoll::new(EVENTS_PER_WAIT)?,
            conns,
            buffer: vec![0; READ_BYTES],
            reply: Vec::new(),
            unsent: Vec::new(),
            sealed: Vec::new(),
            tls: plan.tls.then(tls::config).transpose()?,
            source_base,
            mask_state: 0x9e37_79b9,
            connecting: 0,
            ready: 0,
            failed: 0,
            connect_latency_us: report::microseconds()?,
            latency: Series::new()?,
            echoes: Echoes::new(plan.sockets),
            news: Vec::new(),
            broadcasts: Broadcasts::new(readers as u32)?,
            tally: Tally::default(),
            slow_tally: Tally::default(),
            errors: Vec::new(),
            plan,
        })
    }

    /// A swarm of readers whose publisher is in already, so that what a server sets up once, for its first
    /// connection, is not charged to the readers.
    pub(crate) fn begun(server: &Server, sockets: usize, join: bool, limit: Duration) -> Outcome<Self> {
        let mut swarm = Self::new(Plan { join, ..Plan::new(server, sockets) })?;
        if swarm.connect(sockets..sockets + 1, 1, limit, &mut |_| {})?.failed > 0 {
            return fail(format!("the first connection did not get in: {}", swarm.errors().join("; ")));
        }
        Ok(swarm)
    }

    /// The publisher's index.
    pub(crate) fn publisher(&self) -> usize {
        self.plan.sockets
    }

    /// Microseconds on this swarm's clock.
    pub(crate) fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    /// Connections that are in.
    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    /// What went wrong first.
    pub(crate) fn errors(&self) -> &[String] {
        &self.errors
    }

    /// The broadcasts of this run.
    pub(crate) fn broadcasts(&self) -> &Broadcasts {
        &self.broadcasts
    }

    /// Latency of every delivery and echo, from when it was (to be) sent; of deliveries only if it was asked for.
    pub(crate) fn latency(&self) -> &Series {
        &self.latency
    }

    /// Forgets the latencies so far (of a warm-up); the time line begins now.
    pub(crate) fn reset_latencies(&mut self) {
        self.latency.reset(self.now_us());
        self.broadcasts.reset_latencies();
    }

    /// Different deliveries that a reader got.
    pub(crate) fn received(&self, index: usize) -> u32 {
        self.conns[index].follower.received()
    }

    /// What became of the echoes.
    pub(crate) fn echoes(&self) -> &Echoes {
        &self.echoes
    }

    /// From now on every reader has `window` echoes outstanding; 0 lets those that are out come home.
    pub(crate) fn run_echoes(&mut self, payload_bytes: usize, window: u32) {
        self.echoes.set(payload_bytes, window);
        for index in 0..self.plan.sockets {
            if self.is_open(index) {
                let mut frames = Vec::new();
                for _ in 0..window {
                    let (now_us, mask) = (self.now_us(), self.next_mask());
                    wire::client_frame(wire::OP_TEXT, self.echoes.next(index, now_us), mask, &mut frames);
                }
                self.answer(index, &frames);
            }
        }
    }

    /// One echo, which was due at `due_us`.
    pub(crate) fn echo_once(&mut self, index: usize, due_us: u64) {
        let mut frame = Vec::new();
        let mask = self.next_mask();
        wire::client_frame(wire::OP_TEXT, self.echoes.next(index, due_us), mask, &mut frame);
        self.answer(index, &frame);
    }

    /// Sends a reader's event; its answer, if it asks for one, shows in [`Swarm::take_news`].
    pub(crate) fn request(&mut self, index: usize, text: &str) {
        let mut frame = Vec::new();
        let mask = self.next_mask();
        wire::client_frame(wire::OP_TEXT, text.as_bytes(), mask, &mut frame);
        self.answer(index, &frame);
    }

    /// What came since the last call, in its order: answers, and deliveries if the plan says so.
    pub(crate) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Cuts a range of connections, without a word to the server; they can be connected again.
    pub(crate) fn cut(&mut self, range: std::ops::Range<usize>) {
        for conn in &mut self.conns[range] {
            match conn.stage {
                Stage::Fresh | Stage::Closed => {}
                Stage::Ready => self.ready -= 1,
                _ => self.connecting -= 1,
            }
            *conn = Conn { slow: conn.slow, ..Conn::new() };
        }
    }

    /// What the readers got so far, with what they miss as lost; the slow ones are not among them.
    pub(crate) fn tally(&self) -> Tally {
        let published = self.broadcasts.published();
        let mut tally = self.tally;
        for conn in self.conns[..self.plan.sockets].iter().filter(|conn| !conn.slow) {
            tally.lost += u64::from(published.saturating_sub(conn.follower.received()));
        }
        tally
    }

    /// Deliveries that readers counted, the slow ones aside.
    pub(crate) fn delivered(&self) -> u64 {
        self.tally.delivered
    }

    /// What the slow readers got so far.
    pub(crate) fn slow_tally(&self) -> Tally {
        let mut tally = self.slow_tally;
        for reader in self.slow_readers() {
            let received = self.conns[reader].follower.received();
            tally.lost += u64::from(self.broadcasts.published().saturating_sub(received));
        }
        tally
    }

    /// The readers that will be told to stop reading.
    pub(crate) fn slow_readers(&self) -> Vec<usize> {
        (0..self.plan.sockets).filter(|&index| self.conns[index].slow).collect()
    }

    /// Whether a reader has the newest broadcast, whatever it missed before.
    pub(crate) fn is_current(&self, index: usize) -> bool {
        self.conns[index].follower.next() == self.broadcasts.published()
    }

    /// Whether a connection is still open as far as this side knows.
    pub(crate) fn is_open(&self, index: usize) -> bool {
        self.conns[index].stage == Stage::Ready
    }

    /// Connects a range of connections, at most `in_flight` at once, until all are in or the time is up.
    /// `progress` is told how many are in.
    pub(crate) fn connect(
        &mut self,
        range: std::ops::Range<usize>,
        in_flight: usize,
        limit: Duration,
        progress: &mut dyn FnMut(usize),
    ) -> Outcome<Connected> {
        let start = Instant::now();
        let failed_before = self.failed;
        self.connect_latency_us.reset();
        let mut next = range.start;
        while next < range.end || self.connecting > 0 {
            // The answers are read between the connects, or a storm's first ones would wait for its last.
            let mut begun = 0;
            while next < range.end && self.connecting < in_flight && begun < EVENTS_PER_WAIT {
                self.begin(next);
                next += 1;
                begun += 1;
            }
            let more = next < range.end && self.connecting < in_flight;
            self.poll(if more { 0 } else { 100 })?;
            progress(self.ready);
            if start.elapsed() > limit {
                let waiting = self.connecting + (range.end - next);
                self.note(|| format!("{waiting} connections were not in after {limit:?}"));
                return Ok(Connected {
                    wall: start.elapsed(),
                    latency_us: self.connect_latency_us.clone(),
                    failed: self.failed - failed_before + waiting,
                });
            }
        }
        Ok(Connected {
            wall: start.elapsed(),
            latency_us: self.connect_latency_us.clone(),
            failed: self.failed - failed_before,
        })
    }

    /// Publishes the next broadcasts in one write, stamped with `sent_us` (now, or when they were due).
    pub(crate) fn publish(&mut self, count: u32, payload_bytes: usize, sent_us: u64) -> Outcome {
        self.publish_to(ROOM, count, payload_bytes, sent_us)
    }

    /// The same to another room than all readers'.
    pub(crate) fn publish_to(
        &mut self,
        room: &str,
        count: u32,
        payload_bytes: usize,
        sent_us: u64,
    ) -> Outcome {
        let publisher = self.publisher();
        let mut text = Vec::with_capacity(payload_bytes + 64);
        for _ in 0..count {
            let sequence = self.broadcasts.begin(sent_us)?;
            text.clear();
            text.extend_from_slice(b"42[\"publish\",\"");
            text.extend_from_slice(room.as_bytes());
            text.extend_from_slice(b"\",\"");
            Stamp { sequence, sent_us }.push_payload(payload_bytes, &mut text);
            text.extend_from_slice(b"\"]");
            let mask = self.next_mask();
            wire::client_frame(wire::OP_TEXT, &text, mask, &mut self.unsent);
        }
        if self.unsent.len() > UNSENT_BYTES_MAX {
            return fail("the server does not read what is published".into());
        }
        self.flush_publisher(publisher)
    }

    /// Tells a reader to stop reading: only its end is watched for.
    pub(crate) fn pause(&mut self, index: usize) -> Outcome {
        self.conns[index].paused = true;
        self.watch(index, libc::EPOLLRDHUP as u32)
    }

    /// Lets it read again.
    pub(crate) fn resume(&mut self, index: usize) -> Outcome {
        self.conns[index].paused = false;
        self.watch(index, libc::EPOLLIN as u32)
    }

    /// Tells a reader to stop reading and does not even watch for its end: what comes for it costs this side nothing.
    pub(crate) fn silence(&mut self, index: usize) -> Outcome {
        self.conns[index].paused = true;
        match &self.conns[index].fd {
            Some(fd) => Ok(self.epoll.remove(fd.as_raw_fd())?),
            None => Ok(()),
        }
    }

    /// Lets a silenced reader read again.
    pub(crate) fn hear(&mut self, index: usize) -> Outcome {
        self.conns[index].paused = false;
        match &self.conns[index].fd {
            Some(fd) => Ok(self.epoll.add(fd.as_raw_fd(), libc::EPOLLIN as u32, index as u64)?),
            None => Ok(()),
        }
    }

    /// Bytes that lie unread in a reader's receive buffer.
    pub(crate) fn unread_bytes(&self, index: usize) -> Outcome<usize> {
        self.conns[index].fd.as_ref().map_or(Ok(0), |fd| Ok(sys::unread_bytes(fd)?))
    }

    fn watch(&mut self, index: usize, bits: u32) -> Outcome {
        match &self.conns[index].fd {
            Some(fd) => Ok(self.epoll.modify(fd.as_raw_fd(), bits, index as u64)?),
            None => Ok(()),
        }
    }

    /// Waits up to `timeout_ms` for events and handles them.
    pub(crate) fn poll(&mut self, timeout_ms: i32) -> Outcome {
        for slot in 0..self.epoll.wait(timeout_ms)? {
            let event = self.epoll.event(slot);
            let index = event.key as usize;
            match self.conns[index].stage {
                Stage::Connecting => self.upgrade(index),
                Stage::Closed | Stage::Fresh => {}
                _ => {
                    let readable = libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR;
                    if event.bits & libc::EPOLLOUT as u32 != 0 && index == self.publisher() {
                        self.flush_publisher(index)?;
                    }
                    if event.bits & readable as u32 != 0 && !self.conns[index].paused {
                        self.read(index);
                    } else if event.bits & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
                        self.close(index, || "the server closed a paused connection".into());
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, index: usize) {
        let [process, swarm] = self.source_base;
        let source = Ipv4Addr::new(127, process, swarm, 1 + (index / CONNECTIONS_PER_SOURCE) as u8);
        // Small enough that the server's side fills soon; the kernel doubles it.
        let receive_bytes = if self.conns[index].slow { Some(4096) } else { self.plan.receive_bytes };
        self.conns[index].started_us = self.now_us();
        self.connecting += 1;
        let begun = sys::connect_start(self.plan.addr, source, receive_bytes).and_then(|fd| {
            self.epoll.add(fd.as_raw_fd(), libc::EPOLLOUT as u32, index as u64)?;
            Ok(fd)
        });
        match begun {
            Ok(fd) => {
                self.conns[index].fd = Some(fd);
                self.conns[index].stage = Stage::Connecting;
            }
            Err(error) => self.close(index, || format!("connect: {error}")),
        }
    }

    /// The TCP connection stands or failed: ask for the upgrade.
    fn upgrade(&mut self, index: usize) {
        let Some(fd) = &self.conns[index].fd else { return };
        if let Err(error) = sys::connect_error(fd) {
            return self.close(index, || format!("connect: {error}"));
        }
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: {NONCE}\r\nSec-WebSocket-Version: 13\r\n\r\n",
            self.plan.addr
        );
        let fd = fd.as_raw_fd();
        let mut first = request.into_bytes();
        if let Some(config) = &self.tls {
            // The request waits in the session for the end of the handshake.
            match tls::begin(config, &first) {
                Ok((session, hello)) => {
                    self.conns[index].tls = Some(session);
                    first = hello;
                }
                Err(error) => return self.close(index, || format!("TLS: {error}")),
            }
        }
        let sent = self.epoll.modify(fd, libc::EPOLLIN as u32, index as u64);
        match sent.and_then(|()| sys::send(fd, &first)) {
            Ok(sent) if sent == first.len() => self.conns[index].stage = Stage::Upgrading,
            Ok(_) => self.close(index, || "the request did not fit a new socket".into()),
            Err(error) => self.close(index, || format!("upgrade: {error}")),
        }
    }

    fn read(&mut self, index: usize) {
        let Some(fd) = self.conns[index].fd.as_ref().map(AsRawFd::as_raw_fd) else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        match sys::recv(fd, &mut buffer) {
            Ok(0) => self.close(index, || "the server closed a connection".into()),
            Ok(received) if self.conns[index].tls.is_some() => self.take_records(index, &buffer[..received]),
            Ok(received) => self.take(index, &buffer[..received]),
            Err(error) if sys::would_block(&error) => {}
            Err(error) => self.close(index, || format!("read: {error}")),
        }
        self.buffer = buffer;
        if !self.sealed.is_empty()
            && let Err(error) = self.flush_publisher(self.publisher())
        {
            self.close(index, || error.to_string());
        }
        if !self.reply.is_empty() {
            let reply = std::mem::take(&mut self.reply);
            self.answer(index, &reply);
            self.reply = reply;
            self.reply.clear();
        }
    }

    /// Decrypts, and sends what the session has to say.
    fn take_records(&mut self, index: usize, bytes: &[u8]) {
        let Some(session) = self.conns[index].tls.as_deref_mut() else { return };
        match tls::receive(session, bytes) {
            Ok((plain, say)) => {
                if !say.is_empty() {
                    self.send_records(index, &say);
                }
                self.take(index, &plain);
            }
            Err(error) => self.close(index, || format!("TLS: {error}")),
        }
    }

    /// Sends what always fits an empty send buffer; the publisher's goes behind its requests.
    fn send_records(&mut self, index: usize, records: &[u8]) {
        if index == self.publisher() {
            return self.sealed.extend_from_slice(records);
        }
        let Some(fd) = &self.conns[index].fd else { return };
        match sys::send(fd.as_raw_fd(), records) {
            Ok(sent) if sent == records.len() => {}
            Ok(_) => self.close(index, || "the server does not read the answers".into()),
            Err(error) => self.close(index, || format!("answer: {error}")),
        }
    }

    /// Sends a small answer. The publisher's go behind its requests; a reader's always fit its empty send buffer.
    fn answer(&mut self, index: usize, reply: &[u8]) {
        if index == self.publisher() {
            self.unsent.extend_from_slice(reply);
            if let Err(error) = self.flush_publisher(index) {
                self.close(index, || error.to_string());
            }
            return;
        }
        if let Some(session) = self.conns[index].tls.as_deref_mut() {
            return match tls::seal(session, reply) {
                Ok(records) => self.send_records(index, &records),
                Err(error) => self.close(index, || format!("TLS: {error}")),
            };
        }
        let Some(fd) = &self.conns[index].fd else { return };
        match sys::send(fd.as_raw_fd(), reply) {
            Ok(sent) if sent == reply.len() => {}
            Ok(_) => self.close(index, || "the server does not read the answers".into()),
            Err(error) => self.close(index, || format!("answer: {error}")),
        }
    }

    fn flush_publisher(&mut self, index: usize) -> Outcome {
        let Some(fd) = &self.conns[index].fd else { return fail("the publisher is not connected".into()) };
        let fd = fd.as_raw_fd();
        let unsent = match self.conns[index].tls.as_deref_mut() {
            Some(session) => {
                self.sealed.extend(tls::seal(session, &std::mem::take(&mut self.unsent))?);
                &mut self.sealed
            }
            None => &mut self.unsent,
        };
        if unsent.is_empty() {
            return Ok(self.epoll.modify(fd, libc::EPOLLIN as u32, index as u64)?);
        }
        match sys::send(fd, unsent) {
            Ok(sent) => drop(unsent.drain(..sent)),
            Err(error) if sys::would_block(&error) => {}
            Err(error) => return fail(format!("publish: {error}")),
        }
        if !unsent.is_empty() {
            self.epoll.modify(fd, (libc::EPOLLIN | libc::EPOLLOUT) as u32, index as u64)?;
        }
        Ok(())
    }

    fn take(&mut self, index: usize, bytes: &[u8]) {
        if self.conns[index].stage != Stage::Upgrading {
            return self.take_frames(index, bytes);
        }
        let response = &mut self.conns[index].response;
        response.extend_from_slice(bytes);
        let end = response.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        let Some(end) = end else {
            if response.len() > RESPONSE_BYTES_MAX {
                self.close(index, || "the answer to the upgrade has no end".into());
            }
            return;
        };
        let response = std::mem::take(response);
        let (head, rest) = response.split_at(end);
        let head = String::from_utf8_lossy(head);
        if !head.starts_with("HTTP/1.1 101 ") || !head.contains(NONCE_ANSWER) {
            let line = head.lines().next().unwrap_or_default().to_owned();
            return self.close(index, || format!("no upgrade: {line}"));
        }
        self.conns[index].stage = Stage::Opening;
        if !rest.is_empty() {
            self.take_frames(index, rest);
        }
    }

    fn take_frames(&mut self, index: usize, bytes: &[u8]) {
        let now_us = self.now_us();
        let mask = self.next_mask();
        let is_slow = self.conns[index].slow;
        let Self { conns, reply, broadcasts, tally, slow_tally, latency, echoes, news, plan, .. } = self;
        let conn = &mut conns[index];
        let was_ready = conn.stage == Stage::Ready;
        let mut listener = Listener {
            stage: &mut conn.stage,
            follower: &mut conn.follower,
            tally: if is_slow { slow_tally } else { tally },
            broadcasts,
            latency,
            times_deliveries: plan.time_deliveries,
            echoes,
            news,
            tells_deliveries: plan.tells_deliveries,
            index,
            reply,
            mask,
            now_us,
            is_slow,
            follows: plan.follows,
            joins: plan.join && index != plan.sockets,
            ending: None,
        };
        let fed = conn.reader.feed(bytes, |opcode, prefix| listener.hear(opcode, prefix));
        let ending = fed.err().map(|error| error.to_string()).or(listener.ending);
        if !was_ready && conn.stage == Stage::Ready {
            let started_us = conn.started_us;
            self.ready += 1;
            self.connecting -= 1;
            self.connect_latency_us.saturating_record(now_us - started_us);
        }
        if let Some(why) = ending {
            self.close(index, || why);
        }
    }

    /// Ends a connection; `why` is kept if it is among the first.
    fn close(&mut self, index: usize, why: impl FnOnce() -> String) {
        let conn = &mut self.conns[index];
        conn.fd = None;
        conn.response = Vec::new();
        match std::mem::replace(&mut conn.stage, Stage::Closed) {
            Stage::Closed => return,
            Stage::Ready => {
                self.ready -= 1;
                let tally = if conn.slow { &mut self.slow_tally } else { &mut self.tally };
                tally.closed += 1;
            }
            _ => {
                self.connecting -= 1;
                self.failed += 1;
            }
        }
        self.note(why);
    }

    fn note(&mut self, why: impl FnOnce() -> String) {
        if self.errors.len() < ERRORS_KEPT {
            self.errors.push(why());
        }
    }

    /// A mask that is not zero: a server must not be spared the unmasking.
    fn next_mask(&mut self) -> [u8; 4] {
        self.mask_state ^= self.mask_state << 13;
        self.mask_state ^= self.mask_state >> 17;
        self.mask_state ^= self.mask_state << 5;
        self.mask_state.to_be_bytes()
    }
}
