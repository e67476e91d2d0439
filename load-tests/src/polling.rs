//! Many long-polling clients on one thread: a keep-alive connection each, on which polls and posts take turns.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::ROOM;
use crate::record::Series;
use crate::sys::{self, Epoll};
use crate::tally::{Follower, Tally};
use crate::wire::Stamp;
use crate::{Outcome, fail};

/// Read at once.
const READ_BYTES: usize = 64 << 10;
/// A response that is longer is none of a load run.
const RESPONSE_BYTES_MAX: usize = 16 << 20;
/// Events taken from the kernel at once.
const EVENTS_PER_WAIT: usize = 512;
/// Connects outstanding at once.
const IN_FLIGHT: usize = 64;
/// Nothing new for so long means that what is missing will not come.
const STALL: Duration = Duration::from_secs(10);
/// Between the packets of a payload.
const SEPARATOR: u8 = 0x1e;
/// Connections that share a source address.
const CONNECTIONS_PER_SOURCE: usize = 4000;

/// What a thread of pollers got.
pub(crate) struct Polled {
    pub(crate) tally: Tally,
    pub(crate) latency: Series,
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// What went wrong first.
    pub(crate) errors: Vec<String>,
}

/// What to connect.
pub(crate) struct PollersPlan {
    pub(crate) addr: SocketAddrV4,
    pub(crate) clients: usize,
    pub(crate) epoch: Instant,
    pub(crate) core: usize,
    pub(crate) limit: Duration,
}

/// A thread of polling clients that are in and have joined the room.
pub(crate) struct Pollers {
    thread: Option<JoinHandle<Result<Polled, String>>>,
    reset: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU32>,
}

impl Pollers {
    /// Connects them all.
    pub(crate) fn start(plan: PollersPlan) -> Outcome<Self> {
        let (say, ready) = mpsc::channel();
        let (reset, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let published = Arc::new(AtomicU32::new(0));
        let (resets, stops, wanted) = (reset.clone(), stop.clone(), published.clone());
        let thread = std::thread::spawn(move || {
            let _ = sys::pin_to_cores(&[plan.core]);
            let run = || -> Outcome<Polled> {
                let mut hive = Hive::new(plan)?;
                hive.connect()?;
                let _ = say.send(());
                hive.serve(&resets, &stops, &wanted)
            };
            run().map_err(|error| error.to_string())
        });
        let mut pollers = Self { thread: Some(thread), reset, stop, published };
        match ready.recv() {
            Ok(()) => Ok(pollers),
            // It ended before: its error says why.
            Err(_) => Err(pollers.join().err().unwrap_or_else(|| "the pollers ended".into())),
        }
    }

    /// Forgets the latencies so far.
    pub(crate) fn reset_latencies(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Waits for what is under way and returns what they got of so many broadcasts.
    pub(crate) fn finish(mut self, published: u32) -> Outcome<Polled> {
        self.published.store(published, Ordering::Relaxed);
        self.stop.store(true, Ordering::Release);
        self.join()
    }

    fn join(&mut self) -> Outcome<Polled> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(polled)) => Ok(polled?),
            _ => fail("the pollers' thread panicked".into()),
        }
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Opening,
    Entering,
    Joining,
    Ready,
    Closed,
}

struct Client {
    fd: Option<OwnedFd>,
    stage: Stage,
    sid: String,
    /// Bytes of a response that is not complete.
    input: Vec<u8>,
    /// Packets to post before the next poll.
    outbox: VecDeque<String>,
    follower: Follower,
}

/// All clients of the thread.
struct Hive {
    plan: PollersPlan,
    epoll: Epoll,
    clients: Vec<Client>,
    connecting: usize,
    ready: usize,
    polled: Polled,
    buffer: Vec<u8>,
}

impl Hive {
    fn new(plan: PollersPlan) -> Outcome<Self> {
        let fresh = || Client {
            fd: None,
            stage: Stage::Connecting,
            sid: String::new(),
            input: Vec::new(),
            outbox: VecDeque::new(),
            follower: Follower::default(),
        };
        Ok(Self {
            epoll: Epoll::new(EVENTS_PER_WAIT)?,
            clients: (0..plan.clients).map(|_| fresh()).collect(),
            connecting: 0,
            ready: 0,
            polled: Polled {
                tally: Tally::default(),
                latency: Series::new()?,
                requests: 0,
                errors: Vec::new(),
            },
            buffer: vec![0; READ_BYTES],
            plan,
        })
    }

    fn connect(&mut self) -> Outcome {
        let (start, mut next) = (Instant::now(), 0);
        while next < self.clients.len() || self.connecting > 0 {
            while next < self.clients.len() && self.connecting < IN_FLIGHT {
                // Another range than the WebSocket clients' of this process.
                let last = 1 + (next / CONNECTIONS_PER_SOURCE) as u8;
                let source = Ipv4Addr::new(127, 240, (std::process::id() % 250) as u8, last);
                let fd = sys::connect_start(self.plan.addr, source, None)?;
                self.epoll.add(fd.as_raw_fd(), libc::EPOLLOUT as u32, next as u64)?;
                self.clients[next].fd = Some(fd);
                self.connecting += 1;
                next += 1;
            }
            self.poll(100)?;
            if start.elapsed() > self.plan.limit || !self.polled.errors.is_empty() {
                return fail(format!("{} of the pollers are in: {:?}", self.ready, self.polled.errors));
            }
        }
        Ok(())
    }

    /// Until told to stop, and then until all have everything or nothing comes any more.
    fn serve(mut self, reset: &AtomicBool, stop: &AtomicBool, published: &AtomicU32) -> Outcome<Polled> {
        let mut last = (0, Instant::now());
        loop {
            self.poll(10)?;
            if reset.swap(false, Ordering::Relaxed) {
                self.polled.latency.reset(self.now_us());
            }
            let delivered = self.polled.tally.delivered;
            if delivered != last.0 || !stop.load(Ordering::Acquire) {
                last = (delivered, Instant::now());
            }
            let published = published.load(Ordering::Relaxed);
            let wanted = u64::from(published) * self.clients.len() as u64;
            if stop.load(Ordering::Acquire) && (delivered >= wanted || last.1.elapsed() > STALL) {
                let lost = |client: &Client| u64::from(published.saturating_sub(client.follower.received()));
                self.polled.tally.lost = self.clients.iter().map(lost).sum();
                return Ok(self.polled);
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.plan.epoch.elapsed().as_micros() as u64
    }

    fn poll(&mut self, timeout_ms: i32) -> Outcome {
        for slot in 0..self.epoll.wait(timeout_ms)? {
            let index = self.epoll.event(slot).key as usize;
            if let Err(error) = self.step(index) {
                self.close(index, error.to_string());
            }
        }
        Ok(())
    }

    fn close(&mut self, index: usize, why: String) {
        let client = &mut self.clients[index];
        client.fd = None;
        match std::mem::replace(&mut client.stage, Stage::Closed) {
            Stage::Closed => return,
            Stage::Ready => self.polled.tally.closed += 1,
            _ => self.connecting -= 1,
        }
        if self.polled.errors.len() < 5 {
            self.polled.errors.push(why);
        }
    }

    /// Something happened on a connection.
    fn step(&mut self, index: usize) -> Outcome {
        let client = &mut self.clients[index];
        let Some(fd) = &client.fd else { return Ok(()) };
        if client.stage == Stage::Connecting {
            sys::connect_error(fd)?;
            self.epoll.modify(fd.as_raw_fd(), libc::EPOLLIN as u32, index as u64)?;
            client.stage = Stage::Opening;
            return self.request(index);
        }
        match sys::recv(fd.as_raw_fd(), &mut self.buffer) {
            Ok(0) => return fail("the server closed a poller's connection".into()),
            Ok(received) => client.input.extend_from_slice(&self.buffer[..received]),
            Err(error) if sys::would_block(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some((head, total)) = complete(&self.clients[index].input)? {
            let rest = self.clients[index].input.split_off(total);
            let response = std::mem::replace(&mut self.clients[index].input, rest);
            self.polled.requests += 1;
            self.payload(index, &response[head..])?;
            self.request(index)?;
        }
        Ok(())
    }

    /// Posts what waits, or polls.
    fn request(&mut self, index: usize) -> Outcome {
        let client = &mut self.clients[index];
        let mut target = "/socket.io/?EIO=4&transport=polling".to_owned();
        if !client.sid.is_empty() {
            target += &format!("&sid={}", client.sid);
        }
        let addr = self.plan.addr;
        let request = if client.outbox.is_empty() {
            format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\n\r\n")
        } else {
            let packets: Vec<String> = client.outbox.drain(..).collect();
            let body = packets.join("\x1e");
            format!(
                "POST {target} HTTP/1.1\r\nHost: {addr}\r\nContent-Type: text/plain;charset=UTF-8\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let Some(fd) = &client.fd else { return Ok(()) };
        if sys::send(fd.as_raw_fd(), request.as_bytes())? != request.len() {
            return fail("a request did not fit an empty socket".into());
        }
        Ok(())
    }

    /// Takes the packets of a response; the answer to a post is `ok`.
    fn payload(&mut self, index: usize, body: &[u8]) -> Outcome {
        if body == b"ok" {
            return Ok(());
        }
        let now_us = self.now_us();
        for packet in body.split(|&byte| byte == SEPARATOR) {
            let client = &mut self.clients[index];
            match (packet, client.stage) {
                ([b'4', b'2', ..], _) => {
                    let Some(stamp) = Stamp::parse_message(packet) else {
                        return fail("an event that is no delivery".into());
                    };
                    if client.follower.follow(stamp.sequence, &mut self.polled.tally) {
                        self.polled.latency.record(stamp.sent_us, now_us);
                    }
                }
                ([b'2', ..], _) => {
                    self.polled.tally.heartbeats += 1;
                    client.outbox.push_back("3".to_owned());
                }
                ([b'0', open @ ..], Stage::Opening) => {
                    let open: serde_json::Value = serde_json::from_slice(open)?;
                    client.sid = open["sid"].as_str().unwrap_or_default().to_owned();
                    client.outbox.push_back("40".to_owned());
                    client.stage = Stage::Entering;
                }
                ([b'4', b'0', ..], Stage::Entering) => {
                    client.outbox.push_back(format!("420[\"join\",\"{ROOM}\"]"));
                    client.stage = Stage::Joining;
                }
                ([b'4', b'3', b'0', b'[', ..], Stage::Joining) => {
                    client.stage = Stage::Ready;
                    self.connecting -= 1;
                    self.ready += 1;
                }
                ([b'6'], _) => {}
                _ => return fail(format!("unexpected packet {:?}", String::from_utf8_lossy(packet))),
            }
        }
        Ok(())
    }
}

/// Where the body of a response begins and where it ends, once all of it is there.
fn complete(input: &[u8]) -> Outcome<Option<(usize, usize)>> {
    if input.len() > RESPONSE_BYTES_MAX {
        return fail("a response that is too long".into());
    }
    let Some(head) = input.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&input[..head])?;
    if !text.starts_with("HTTP/1.1 200 ") {
        return fail(format!("not 200: {}", String::from_utf8_lossy(input)));
    }
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    let Some(length) = length.transpose()? else { return fail("a response without a length".into()) };
    Ok((input.len() >= head + length).then_some((head, head + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_complete_when_their_last_byte_is_there() {
        let response = b"HTTP/1.1 200 OK\r\nDate: x\r\ncontent-length: 2\r\n\r\nok";
        for end in 0..response.len() {
            assert_eq!(complete(&response[..end]).unwrap(), None, "{end}");
        }
        let head = response.len() - 2;
        assert_eq!(complete(response).unwrap(), Some((head, head + 2)));
        assert_eq!(complete(&[&response[..], b"HTTP"].concat()).unwrap(), Some((head, head + 2)));
        assert!(complete(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(complete(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
