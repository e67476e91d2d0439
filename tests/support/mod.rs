//! What the in-process tests share: servers on either kind of descriptor, and clients made by hand.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod logs;

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use sockring::app::{App, Builder};
use sockring::protocol::ws::deflate::Inflater;
use sockring::protocol::ws::frame::{OpCode, write_masked_frame};
use sockring::runtime::{self, Descriptors, Running, StartError};
use sockring::tls::Tls;
use sockring::tls::rustls;
use sockring::tls::rustls::pki_types::CertificateDer;
use sockring::tls::rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Where Socket.IO over WebSocket is found by default.
pub const SOCKETIO: &str = "/socket.io/?EIO=4&transport=websocket";

/// One test at a time: they count descriptors, and measure time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Declares each test twice, once for each kind of descriptors.
#[macro_export]
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod normal {$(
            #[test]
            fn $name() {
                let _alone = $crate::support::alone();
                super::$name(sockring::runtime::Descriptors::Normal);
            }
        )*}
        mod direct {$(
            #[test]
            fn $name() {
                let _alone = $crate::support::alone();
                if $crate::support::has_direct() {
                    super::$name(sockring::runtime::Descriptors::Direct);
                }
            }
        )*}
    };
}

/// Whether this kernel closes direct descriptors at once.
pub fn has_direct() -> bool {
    let started =
        App::builder().listen("127.0.0.1:0").workers(1).descriptors(Descriptors::Direct).start(|_| ());
    match started {
        Ok(server) => {
            end(server);
            true
        }
        Err(StartError::TooOld(what)) => {
            eprintln!("skipped: this kernel lacks {what}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

pub fn options(descriptors: Descriptors, workers: usize) -> runtime::Options {
    let shutdown_timeout = Duration::from_secs(1);
    runtime::Options { workers, descriptors, shutdown_timeout, pin: false, ..runtime::Options::default() }
}

/// Whether this test binary runs another's tests again, over TLS.
pub const OVER_TLS: bool = const_ends_with(env!("CARGO_CRATE_NAME"), "over_tls");

const fn const_ends_with(text: &str, end: &str) -> bool {
    let (text, end) = (text.as_bytes(), end.as_bytes());
    let mut at = 0;
    while at < end.len() {
        if text.len() < end.len() || text[text.len() - end.len() + at] != end[at] {
            return false;
        }
        at += 1;
    }
    true
}

pub fn builder(options: runtime::Options) -> Builder {
    builder_on(options, ([127, 0, 0, 1], 0).into())
}

pub fn builder_on(options: runtime::Options, address: SocketAddr) -> Builder {
    let builder = App::builder().runtime(options);
    if OVER_TLS { builder.listen_tls(address, IDENTITY.tls()) } else { builder.listen(address) }
}

/// A certificate that signs itself, for `localhost`.
pub static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity::new(&["localhost"]));

/// A certificate that signs itself, and its key.
pub struct Identity {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Identity {
    pub fn new(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Self {
            certificate: made.cert.der().clone(),
            certificate_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
        }
    }

    pub fn tls(&self) -> Tls {
        Tls::from_pem(self.certificate_pem.as_str(), self.key_pem.as_str()).unwrap()
    }

    /// A client that trusts this identity alone.
    pub fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(sockring::tls::rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        builder.unwrap().with_root_certificates(roots).with_no_client_auth()
    }
}

/// Stops a server; it must not take longer than its timeout.
pub fn end(server: Running) {
    let start = Instant::now();
    server.shutdown();
    server.join().expect("no worker ends by itself");
    assert!(start.elapsed() < Duration::from_secs(3), "the server took {:?} to end", start.elapsed());
}

/// Waits until `f` holds.
pub fn eventually(what: &str, f: impl Fn() -> bool) {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < Duration::from_secs(8), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A client of one connection.
pub struct Client {
    pub stream: TcpStream,
    /// Present once permessage-deflate is agreed.
    pub inflater: Option<Inflater>,
    pub tls: Option<Box<ClientConnection>>,
    buffer: Vec<u8>,
    start: usize,
}

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn length(&self) -> Option<usize> {
        self.header("content-length").map(|length| length.parse().unwrap())
    }
}

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Incoming {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Incoming {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::with_receive_buffer(address, 0)
    }

    /// A client whose kernel takes little (0: the default).
    pub fn with_receive_buffer(address: SocketAddr, bytes: usize) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        if bytes > 0 {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.connect(&address.into()).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(8))).unwrap();
        let mut client = Self { stream, inflater: None, tls: None, buffer: Vec::new(), start: 0 };
        if OVER_TLS {
            client.secure(IDENTITY.client(), "localhost").unwrap();
        }
        client
    }

    /// Begins TLS and waits for the end of the handshake.
    pub fn secure(&mut self, config: ClientConfig, name: &'static str) -> io::Result<()> {
        let tls = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let tls = self.tls.insert(Box::new(tls));
        while tls.is_handshaking() {
            tls.complete_io(&mut self.stream)?;
        }
        Ok(())
    }

    /// A client that has made its handshake.
    pub fn over_tls(address: SocketAddr, config: ClientConfig, name: &'static str) -> io::Result<Self> {
        let mut client = Self::connect(address);
        client.secure(config, name)?;
        Ok(client)
    }

    /// A client that has opened a WebSocket.
    pub fn websocket(address: SocketAddr, path: &str) -> Self {
        let mut client = Self::connect(address);
        client.upgrade(path);
        client
    }

    /// A client of Socket.IO over WebSocket that is in `/`.
    pub fn socketio(address: SocketAddr) -> Self {
        let mut client = Self::websocket(address, SOCKETIO);
        assert!(client.text().starts_with("0{"));
        client.send_text("40");
        assert!(client.text().starts_with("40{"));
        client
    }

    /// Opens a WebSocket with an offer of extensions; what of it the server has accepted.
    pub fn upgrade_with(&mut self, path: &str, offer: &str) -> Option<String> {
        let header = format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n");
        self.send(upgrade_request(path).replace("\r\n\r\n", &header).as_bytes());
        let answer = self.answer().unwrap();
        assert_eq!(answer.status, 101, "{}", answer.head);
        let agreed = answer.header("sec-websocket-extensions").map(str::to_owned);
        self.inflater = agreed.as_ref().map(|agreed| match agreed.contains("server_no_context_takeover") {
            true => Inflater::alone(),
            false => Inflater::with_context(),
        });
        agreed
    }

    pub fn upgrade(&mut self, path: &str) {
        self.send(upgrade_request(path).as_bytes());
        let answer = self.answer().unwrap();
        assert_eq!(answer.status, 101, "{}", answer.head);
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => {
                let mut stream = rustls::Stream::new(&mut **tls, &mut self.stream);
                stream.write_all(bytes)?;
                stream.flush()
            }
            None => self.stream.write_all(bytes),
        }
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(&masked(OpCode::Text, text.as_bytes()));
    }

    /// Reads more; `false` at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        if self.start > 0 && self.start * 2 > self.buffer.len() {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let mut chunk = [0; 65536];
        let count = match &mut self.tls {
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(&mut chunk)?,
            None => self.stream.read(&mut chunk)?,
        };
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count > 0)
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn need(&mut self, count: usize) -> io::Result<()> {
        while self.unread().len() < count {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.unread()[..count].to_vec();
        self.start += count;
        bytes
    }

    /// The next answer, with its body if that has a length or is chunked.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let head = self.head()?;
        let length = if head.status < 200 { 0 } else { head.length().unwrap_or(0) };
        let body = match head.header("transfer-encoding") {
            Some("chunked") => self.chunks()?,
            _ => {
                self.need(length)?;
                self.take(length)
            }
        };
        Ok(Answer { body, ..head })
    }

    /// The chunks of a body, joined.
    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend(chunk);
        }
    }

    /// The next chunk of a body; empty at its end.
    pub fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = loop {
            if let Some(at) = self.unread().windows(2).position(|two| two == b"\r\n") {
                break String::from_utf8(self.take(at + 2)).unwrap();
            }
            let more = self.unread().len() + 1;
            self.need(more)?;
        };
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        self.need(length + 2)?;
        let mut chunk = self.take(length + 2);
        assert_eq!(chunk.split_off(length), b"\r\n");
        Ok(chunk)
    }

    /// All bytes until the end of the stream; an error if there is no end, or a reset.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? {}
        let count = self.unread().len();
        Ok(self.take(count))
    }

    /// The next answer without its body, if it has one: that to a HEAD request.
    pub fn head(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.unread().windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let more = self.unread().len() + 1;
            self.need(more)?;
        };
        let head = String::from_utf8(self.take(end)).unwrap();
        let status = head[9..12].parse().unwrap();
        Ok(Answer { status, head, body: Vec::new() })
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(get(path).as_bytes());
        self.answer().unwrap()
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> Answer {
        self.send(&post(path, body));
        self.answer().unwrap()
    }

    /// The next frame of the server.
    pub fn frame(&mut self) -> io::Result<Incoming> {
        self.need(2)?;
        let (first, second) = (self.unread()[0], self.unread()[1]);
        let compressed = first & 0x40 != 0;
        assert_eq!(first & 0x30, 0, "reserved bits in a frame: the stream is broken");
        assert!(!compressed || (self.inflater.is_some() && first & 15 < 3), "RSV1: the stream is broken");
        assert_eq!(second & 0x80, 0, "a masked frame: the stream is broken");
        assert!(first & 0x80 != 0, "the server does not fragment: the stream is broken");
        let (head, length) = match second {
            126 => {
                self.need(4)?;
                (4, usize::from(u16::from_be_bytes(self.unread()[2..4].try_into().unwrap())))
            }
            127 => {
                self.need(10)?;
                (10, u64::from_be_bytes(self.unread()[2..10].try_into().unwrap()) as usize)
            }
            short => (2, usize::from(short)),
        };
        assert!(length < 1 << 28, "an absurd length: the stream is broken");
        self.need(head + length)?;
        let mut payload = self.take(head + length).split_off(head);
        if let (Some(inflater), true) = (&mut self.inflater, compressed) {
            payload = inflater.message(&payload, 1 << 28).expect("sound DEFLATE").to_vec();
        }
        Ok(Incoming { opcode: first & 15, payload })
    }

    pub fn text(&mut self) -> String {
        let frame = self.frame().unwrap();
        assert_eq!(frame.opcode, 1, "{frame:?}");
        String::from_utf8(frame.payload).unwrap()
    }

    /// Reads until the stream ends; whether it ended, by an end of file or a reset, in time.
    pub fn ends(&mut self) -> bool {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => {
                    return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        }
    }

    /// Closes with a reset.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

pub fn masked(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_masked_frame(&mut out, opcode, true, [0x11, 0x22, 0x33, 0x44], payload);
    out
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

pub fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The session id out of an open packet.
pub fn sid(open: &str) -> String {
    let at = open.find("\"sid\":\"").unwrap() + 7;
    open[at..].split('"').next().unwrap().to_owned()
}

/// Resident memory of this process.
pub fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, without an executor.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
