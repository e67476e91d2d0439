//! https and wss, seen from a client made of rustls.

#[path = "../src/runtime/secure/tests/crafted.rs"]
mod crafted;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sockring::app::{App, Behavior, Message, Request, Response};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Listener, Running};
use sockring::tls::rustls::client::{ClientSessionMemoryCache, Resumption};
use sockring::tls::rustls::pki_types::PrivateKeyDer;
use sockring::tls::rustls::pki_types::pem::PemObject;
use sockring::tls::rustls::{ClientConfig, ClientConnection, HandshakeKind, version};
use sockring::tls::{Tls, rustls};
use support::{Client, IDENTITY, Identity, end, eventually, get, masked, options, resident_bytes};

both!(
    requests_and_sockets_are_served,
    plain_and_tls_stand_side_by_side,
    large_messages_pass_in_both_directions,
    the_end_is_announced,
    a_client_may_stop_in_any_way,
    sessions_resume_on_any_core,
    half_done_handshakes_are_given_up,
    parts_of_messages_cost_their_connections_alone,
    a_slow_client_sends_byte_by_byte,
    clients_show_certificates,
    the_proxy_protocol_comes_before_tls,
    a_reload_drops_nobody,
);

fn set_up(app: &App) {
    app.get("/secure", |request: Request, response: Response| {
        response.end(request.is_secure().to_string());
    });
    app.get("/certificates", |request: Request, response: Response| {
        response.end(request.peer_certificates().len().to_string());
    });
    app.get("/peer", |request: Request, response: Response| {
        response.end(request.peer().unwrap().to_string());
    });
    app.get("/core", |_: Request, response: Response| {
        response.end(sockring::runtime::current().unwrap().index().to_string());
    });
    let echo = Behavior::<()>::default().max_message_bytes(8 << 20).message(|ws, message| {
        let _ = match message {
            Message::Text(text) => ws.send_text(text),
            Message::Binary(data) => ws.send_binary(data),
        };
    });
    app.ws("/echo", echo);
}

fn start(descriptors: Descriptors, workers: usize, tls: &Tls) -> Running {
    let options = options(descriptors, workers);
    App::builder().runtime(options).listen_tls("127.0.0.1:0", tls).start(set_up).unwrap()
}

fn client(server: &Running) -> Client {
    Client::over_tls(server.addresses()[0], IDENTITY.client(), "localhost").unwrap()
}

/// A client of one version of TLS only.
fn of_version(version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(IDENTITY.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    builder.with_root_certificates(roots).with_no_client_auth()
}

fn requests_and_sockets_are_served(descriptors: Descriptors) {
    let server = start(descriptors, 1, &IDENTITY.tls());
    for version in [&version::TLS13, &version::TLS12] {
        let address = server.addresses()[0];
        let mut client = Client::over_tls(address, of_version(version), "localhost").unwrap();
        assert_eq!(client.tls.as_ref().unwrap().protocol_version(), Some(version.version));
        for _ in 0..3 {
            assert_eq!(client.get("/secure").text(), "true");
        }
        assert_eq!(client.get("/certificates").text(), "0");
        client.upgrade("/echo");
        client.send_text("hello");
        assert_eq!(client.text(), "hello");
    }
    end(server);
}

fn plain_and_tls_stand_side_by_side(descriptors: Descriptors) {
    let builder = App::builder().runtime(options(descriptors, 1)).listen("127.0.0.1:0");
    let server = builder.listen_tls("127.0.0.1:0", IDENTITY.tls()).start(set_up).unwrap();
    let &[plain, secure] = server.addresses() else { panic!("{:?}", server.addresses()) };
    assert_eq!(Client::connect(plain).get("/secure").text(), "false");
    let mut client = Client::over_tls(secure, IDENTITY.client(), "localhost").unwrap();
    assert_eq!(client.get("/secure").text(), "true");
    // Somebody who does not speak TLS is told so, in TLS: a fatal alert.
    let mut lost = TcpStream::connect(secure).unwrap();
    lost.write_all(get("/secure").as_bytes()).unwrap();
    let mut answer = Vec::new();
    lost.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[..2], [21, 3], "{answer:?}");
    assert_eq!(client.get("/secure").text(), "true");
    end(server);
}

fn large_messages_pass_in_both_directions(descriptors: Descriptors) {
    let server = start(descriptors, 1, &IDENTITY.tls());
    let mut client = client(&server);
    client.upgrade("/echo");
    let payload = |len: usize| (0..len).map(|at| (at * 31 + len) as u8).collect::<Vec<u8>>();
    let lengths = [0, 1, 125, 4096, 16_000, 16_384, 16_385, 65_536, 65_537, 300_000, 3_000_000];
    for len in lengths {
        client.send(&masked(OpCode::Binary, &payload(len)));
        assert!(client.frame().unwrap().payload == payload(len), "{len}");
    }
    // All at once: the answers to the first are not read before the last is on its way.
    for len in lengths {
        client.send(&masked(OpCode::Binary, &payload(len.min(30_000))));
    }
    for len in lengths {
        assert!(client.frame().unwrap().payload == payload(len.min(30_000)), "{len}");
    }
    end(server);
}

#[test]
fn what_is_sent_is_counted_once() {
    const BYTES: usize = 1 << 20;
    let _alone = support::alone();
    let server = start(Descriptors::Auto, 1, &IDENTITY.tls());
    let mut client = client(&server);
    client.upgrade("/echo");
    client.send(&masked(OpCode::Binary, &vec![7; BYTES]));
    assert_eq!(client.frame().unwrap().payload.len(), BYTES);
    let sent = server.metrics().total("sent_bytes") as usize;
    // The rest is the handshake, heads of frames, and records.
    assert!((BYTES..BYTES + BYTES / 50).contains(&sent), "{sent}");
    drop(client);
    end(server);
}

fn the_end_is_announced(descriptors: Descriptors) {
    let server = start(descriptors, 1, &IDENTITY.tls());
    let mut client = client(&server);
    client.send(b"GET /secure HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert_eq!(client.answer().unwrap().text(), "true");
    // rustls reports an end without close_notify as an error.
    let mut stream = rustls::Stream::new(&mut **client.tls.as_mut().unwrap(), &mut client.stream);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    // So it does when the server stops.
    let mut idle = self::client(&server);
    assert_eq!(idle.get("/secure").text(), "true");
    let stopped = thread::spawn(move || end(server));
    let mut stream = rustls::Stream::new(&mut **idle.tls.as_mut().unwrap(), &mut idle.stream);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    stopped.join().unwrap();
}

fn a_client_may_stop_in_any_way(descriptors: Descriptors) {
    let server = start(descriptors, 1, &IDENTITY.tls());
    // With a close_notify behind its request: the answer still comes, and then the server's own.
    let mut polite = client(&server);
    let tls = polite.tls.as_mut().unwrap();
    tls.writer().write_all(get("/secure").as_bytes()).unwrap();
    tls.send_close_notify();
    assert_eq!(polite.answer().unwrap().text(), "true");
    assert!(polite.ends());
    // Without one.
    let mut rude = client(&server);
    assert_eq!(rude.get("/secure").text(), "true");
    rude.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    rude.stream.read_to_end(&mut rest).unwrap();
    // In the middle of a record, of a handshake, and before either.
    let mut broken = client(&server);
    broken.stream.write_all(&[23, 3, 3, 0, 100, 1, 2, 3]).unwrap();
    drop(broken);
    let mut early = TcpStream::connect(server.addresses()[0]).unwrap();
    early.write_all(&hello()[..40]).unwrap();
    drop(early);
    drop(TcpStream::connect(server.addresses()[0]).unwrap());
    // A record that was changed on its way ends the connection with an alert.
    let mut changed = client(&server);
    changed.stream.write_all(&[&[23, 3, 3, 0, 32][..], &[7; 32]].concat()).unwrap();
    let mut stream = rustls::Stream::new(&mut **changed.tls.as_mut().unwrap(), &mut changed.stream);
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    assert_eq!(client(&server).get("/secure").text(), "true");
    end(server);
}

/// The first flight of a client.
fn hello() -> Vec<u8> {
    let config = Arc::new(IDENTITY.client());
    let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut flight = Vec::new();
    client.write_tls(&mut flight).unwrap();
    flight
}

fn sessions_resume_on_any_core(descriptors: Descriptors) {
    let server = start(descriptors, 3, &IDENTITY.tls());
    for version in [&version::TLS13, &version::TLS12] {
        let mut config = of_version(version);
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
        let mut cores = [0; 3];
        let mut resumed = 0;
        for number in 0..24 {
            let mut client = Client::over_tls(server.addresses()[0], config.clone(), "localhost").unwrap();
            // The ticket comes with the answer.
            let core: usize = client.get("/core").text().parse().unwrap();
            cores[core] += 1;
            let kind = client.tls.as_ref().unwrap().handshake_kind().unwrap();
            assert_eq!(kind == HandshakeKind::Full, number == 0, "{kind:?} at {number}");
            resumed += usize::from(kind == HandshakeKind::Resumed);
        }
        assert_eq!(resumed, 23);
        assert!(cores.iter().filter(|count| **count > 0).count() > 1, "{cores:?}");
    }
    end(server);
}

/// What comes after a record that holds a part of a message of the handshake.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Garbage,
    /// Until the server gives it up.
    Silence,
    Data,
    Close,
    /// The server stops.
    Shutdown,
}

/// A client that has said a part of a message, in a whole record.
struct Cut {
    at: String,
    then: Then,
    /// With a session, if it was made before.
    client: Client,
}

impl Cut {
    fn goes_on(&mut self) {
        match self.then {
            Then::Garbage => drop(self.client.stream.write_all(&[0x99; 20])),
            Then::Close => drop(self.client.stream.shutdown(std::net::Shutdown::Write)),
            Then::Silence | Then::Data | Then::Shutdown => {}
        }
    }

    /// It ends, by an end of file or a reset.
    fn ends(&mut self) {
        let ended = self.client.stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert!(!matches!(ended, Err(std::io::ErrorKind::WouldBlock)), "{} {:?} hangs", self.at, self.then);
    }
}

fn roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(IDENTITY.certificate.clone()).unwrap();
    roots
}

fn cut_hello(address: SocketAddr, part: usize, then: Then) -> Cut {
    let mut client = Client::connect(address);
    let record = crafted::plain(&hello()[5..][..part]);
    client.stream.write_all(&record).unwrap();
    Cut { at: format!("{part} bytes of a ClientHello"), then, client }
}

fn cut_finished(address: SocketAddr, part: usize, then: Then) -> Cut {
    let (config, secrets) = crafted::config(roots());
    let mut client = Client::connect(address);
    let mut tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    while tls.wants_write() {
        tls.write_tls(&mut client.stream).unwrap();
    }
    while tls.is_handshaking() {
        tls.read_tls(&mut client.stream).unwrap();
        tls.process_new_packets().unwrap();
    }
    let mut flight = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut flight).unwrap();
    }
    let message = secrets.handshake().open_last(0, &flight);
    client.stream.write_all(&secrets.handshake().seal(0, &message[..part])).unwrap();
    Cut { at: format!("{part} bytes of a Finished"), then, client }
}

/// A WebSocket that a topic is sent to.
fn cut_key_update(address: SocketAddr, part: usize, then: Then) -> Cut {
    let (config, secrets) = crafted::config(roots());
    let mut client = Client::over_tls(address, config, "localhost").unwrap();
    client.upgrade("/topic");
    client.stream.write_all(&secrets.traffic().seal(1, &crafted::KEY_UPDATE[..part])).unwrap();
    Cut { at: format!("{part} bytes of a KeyUpdate"), then, client }
}

fn parts_of_messages_cost_their_connections_alone(descriptors: Descriptors) {
    let http = sockring::app::Options {
        head_timeout: Duration::from_millis(700),
        ..sockring::app::Options::default()
    };
    let builder = App::builder().runtime(options(descriptors, 1)).http(http);
    let server = builder.listen_tls("127.0.0.1:0", IDENTITY.tls()).start(|app| {
        set_up(app);
        let subscribed = Behavior::<()>::default().open(|ws| assert!(ws.subscribe("topic")));
        app.ws("/topic", subscribed);
        let all = app.clone();
        app.get("/publish", move |_, response| {
            let _ = all.publish_text("topic", "to all");
            response.end("published");
        });
    });
    let server = server.unwrap();
    let address = server.addresses()[0];
    let mut stranger = client(&server);
    let hello = hello().len() - 5;
    let mut open: Vec<Cut> = Vec::new();
    for then in [Then::Garbage, Then::Silence, Then::Data, Then::Close, Then::Shutdown] {
        let parts = [1, 2, 3, 4, 5, 49, 50, hello / 2, hello - 1];
        open.extend(parts.map(|part| cut_hello(address, part, then)));
        open.extend([1, 4, 5, 20, 35].map(|part| cut_finished(address, part, then)));
        open.extend([1, 2, 3, 4].map(|part| cut_key_update(address, part, then)));
    }
    assert_eq!(stranger.get("/secure").text(), "true");
    open.iter_mut().for_each(Cut::goes_on);
    // What the server has to say to those that may hear it leaves whole.
    assert_eq!(stranger.get("/publish").text(), "published");
    for cut in open.iter_mut().filter(|cut| cut.client.tls.is_some()) {
        match cut.then {
            Then::Garbage | Then::Close => {}
            _ => assert_eq!(cut.client.text(), "to all", "{}", cut.at),
        }
    }
    assert_eq!(stranger.get("/secure").text(), "true");
    for cut in &mut open {
        // WebSockets stay open, as they are idle for less long than they may.
        let stays = cut.client.tls.is_some() && !matches!(cut.then, Then::Garbage | Then::Close);
        if !stays {
            cut.ends();
        }
    }
    assert_eq!(
        Client::over_tls(address, IDENTITY.client(), "localhost").unwrap().get("/secure").text(),
        "true"
    );
    assert_eq!(server.metrics().total("panics"), 0);
    let stopped = thread::spawn(move || end(server));
    open.iter_mut().for_each(Cut::ends);
    stopped.join().unwrap();
}

fn half_done_handshakes_are_given_up(descriptors: Descriptors) {
    const CLIENTS: usize = 1000;
    let http = sockring::app::Options {
        head_timeout: Duration::from_millis(1500),
        ..sockring::app::Options::default()
    };
    let builder = App::builder().runtime(options(descriptors, 1)).http(http);
    let server = builder.listen_tls("127.0.0.1:0", IDENTITY.tls()).start(set_up).unwrap();
    let address = server.addresses()[0];
    let mut healthy = client(&server);
    healthy.upgrade("/echo");
    let mut storm = |half: fn(&[u8]) -> usize| {
        let hello = hello();
        let clients: Vec<TcpStream> = (0..CLIENTS)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(&hello[..half(&hello)]).unwrap();
                stream
            })
            .collect();
        let asked = Instant::now();
        healthy.send_text("still there?");
        assert_eq!(healthy.text(), "still there?");
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        let during = resident_bytes();
        for mut stream in clients {
            stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
            let mut rest = Vec::new();
            // It ends, by an end of file or a reset.
            let ended = stream.read_to_end(&mut rest).map_err(|error| error.kind());
            assert!(!matches!(ended, Err(std::io::ErrorKind::WouldBlock)), "{ended:?}");
        }
        (during, resident_bytes())
    };
    // One round each for what is allocated once.
    storm(|hello| hello.len() / 2);
    storm(|hello| hello.len());
    let before = resident_bytes();
    for half in [(|hello: &[u8]| hello.len() / 2) as fn(&[u8]) -> usize, |hello| hello.len(), |_| 0] {
        let (during, after) = storm(half);
        println!("{CLIENTS} half-done handshakes: {before} before, {during} during, {after} after");
        // The allocator of the tests keeps what it had; a second storm must not need more.
        assert!(after < before + (2 << 20), "{before} {during} {after}");
    }
    end(server);
}

fn a_slow_client_sends_byte_by_byte(descriptors: Descriptors) {
    let server = start(descriptors, 1, &IDENTITY.tls());
    let stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut drip = Drip(stream);
    let config = Arc::new(IDENTITY.client());
    let mut tls = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut drip);
    stream.write_all(b"GET /secure HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("true"), "{answer}");
    end(server);
}

/// Sends every byte by itself.
struct Drip(TcpStream);

impl Write for Drip {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        thread::sleep(Duration::from_micros(200));
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Read for Drip {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(bytes)
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("sockring-tls-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn clients_show_certificates(descriptors: Descriptors) {
    let folder = folder("clients");
    let known = Identity::new(&["a client"]);
    let file = folder.join("clients.pem");
    fs::write(&file, &known.certificate_pem).unwrap();
    let builder = || Tls::builder().pem(IDENTITY.certificate_pem.as_str(), IDENTITY.key_pem.as_str());
    let showing = |identity: &Identity| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(IDENTITY.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        builder.with_client_auth_cert(vec![identity.certificate.clone()], key).unwrap()
    };
    let ask = |server: &Running, config| {
        let mut client = Client::over_tls(server.addresses()[0], config, "localhost").ok()?;
        client.try_send(get("/certificates").as_bytes()).ok()?;
        Some(client.answer().ok()?.text().to_owned())
    };
    let stranger = Identity::new(&["a stranger"]);
    let required = start(descriptors, 1, &builder().require_client_certificates(&file).build().unwrap());
    assert_eq!(ask(&required, showing(&known)).as_deref(), Some("1"));
    assert_eq!(ask(&required, IDENTITY.client()), None);
    assert_eq!(ask(&required, showing(&stranger)), None);
    end(required);
    let requested = start(descriptors, 1, &builder().request_client_certificates(&file).build().unwrap());
    assert_eq!(ask(&requested, showing(&known)).as_deref(), Some("1"));
    assert_eq!(ask(&requested, IDENTITY.client()).as_deref(), Some("0"));
    assert_eq!(ask(&requested, showing(&stranger)), None);
    end(requested);
    fs::remove_dir_all(folder).unwrap();
}

fn the_proxy_protocol_comes_before_tls(descriptors: Descriptors) {
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::from(address).proxy_protocol(true).tls(&IDENTITY.tls());
    let builder = App::builder().runtime(options(descriptors, 1)).listener(listener);
    let server = builder.start(set_up).unwrap();
    let mut client = Client::connect(server.addresses()[0]);
    client.stream.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4242 443\r\n").unwrap();
    client.secure(IDENTITY.client(), "localhost").unwrap();
    assert_eq!(client.get("/peer").text(), "192.0.2.7:4242");
    assert_eq!(client.get("/secure").text(), "true");
    end(server);
}

/// The certificate that a new client is shown.
fn shown(address: SocketAddr, identity: &Identity, name: &'static str) -> bool {
    Client::over_tls(address, identity.client(), name).is_ok()
}

fn a_reload_drops_nobody(descriptors: Descriptors) {
    let folder = folder("reload");
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let write = |identity: &Identity| {
        fs::write(&key, &identity.key_pem).unwrap();
        fs::write(&certificate, &identity.certificate_pem).unwrap();
    };
    let identities = [(); 3].map(|()| Identity::new(&["localhost"]));
    write(&identities[0]);
    let tls = Tls::builder().pem_files(&certificate, &key).reload_every(Duration::from_millis(100));
    let tls = tls.build().unwrap();
    let server = start(descriptors, 2, &tls);
    let address = server.addresses()[0];
    let mut open = Client::over_tls(address, identities[0].client(), "localhost").unwrap();
    open.upgrade("/echo");
    // By hand.
    write(&identities[1]);
    tls.reload().unwrap();
    assert!(shown(address, &identities[1], "localhost") && !shown(address, &identities[0], "localhost"));
    // By itself.
    thread::sleep(Duration::from_millis(20));
    write(&identities[2]);
    eventually("the files are read again", || shown(address, &identities[2], "localhost"));
    // A broken file changes nothing, and is named.
    fs::write(&certificate, "no certificate").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("cert.pem holds no certificate"), "{error}");
    assert!(shown(address, &identities[2], "localhost"));
    fs::write(&certificate, &identities[0].certificate_pem).unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("key.pem is not the key of the first certificate in"), "{error}");
    assert!(shown(address, &identities[2], "localhost"));
    // From memory.
    tls.replace(&identities[0].tls());
    assert!(shown(address, &identities[0], "localhost"));
    open.send_text("still the same socket");
    assert_eq!(open.text(), "still the same socket");
    end(server);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn names_choose_certificates() {
    let _alone = support::alone();
    let (net, wild) = (Identity::new(&["example.net"]), Identity::new(&["*.example.org", "example.org"]));
    let mut builder = Tls::builder();
    for identity in [&*IDENTITY, &net, &wild] {
        builder = builder.pem(identity.certificate_pem.as_str(), identity.key_pem.as_str());
    }
    let server = start(Descriptors::Auto, 1, &builder.build().unwrap());
    let address = server.addresses()[0];
    assert!(shown(address, &net, "example.net"));
    assert!(shown(address, &wild, "www.example.org") && shown(address, &wild, "example.org"));
    assert!(shown(address, &IDENTITY, "localhost"));
    assert!(!shown(address, &net, "localhost"));
    end(server);
}

#[test]
fn http_1_1_is_the_only_protocol() {
    let _alone = support::alone();
    let server = start(Descriptors::Auto, 1, &IDENTITY.tls());
    let offering = |protocols: &[&str]| {
        let mut config = IDENTITY.client();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let client = Client::over_tls(server.addresses()[0], config, "localhost");
        client.map(|client| client.tls.unwrap().alpn_protocol().map(|protocol| protocol.to_vec()))
    };
    assert_eq!(offering(&["h2", "http/1.1"]).unwrap().as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(offering(&[]).unwrap(), None);
    let error = offering(&["h2", "h3"]).unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    end(server);
}

#[test]
fn errors_name_the_file_and_the_cure() {
    let folder = folder("errors");
    let file = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let (cert, key) = (file("cert.pem", &IDENTITY.certificate_pem), file("key.pem", &IDENTITY.key_pem));
    let other = Identity::new(&["other"]);
    let backwards = format!("{}{}", other.certificate_pem, IDENTITY.certificate_pem);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let cases = [
        (folder.join("none.pem"), key.clone(), "cannot read /", "none.pem: No such file"),
        (key.clone(), key.clone(), "key.pem holds no certificate", "BEGIN CERTIFICATE"),
        (cert.clone(), cert.clone(), "cert.pem holds no private key", "BEGIN PRIVATE KEY"),
        (cert.clone(), file("locked.pem", encrypted), "locked.pem holds no private key", "openssl pkey"),
        (file("other.pem", &other.certificate_pem), key.clone(), "key.pem is not the key of", "other.pem"),
        (file("chain.pem", &backwards), key.clone(), "of a later one", "own certificate first"),
        (file("torn.pem", &IDENTITY.certificate_pem[..200]), key, "torn.pem is not valid PEM", "end marker"),
    ];
    for (cert, key, what, cure) in cases {
        let error = Tls::from_pem_files(&cert, &key).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(what) && text.contains(cure), "{text}");
        assert_eq!(text, format!("{error:?}"));
    }
    assert!(Tls::builder().build().unwrap_err().to_string().contains("at least one certificate"));
    fs::remove_dir_all(folder).unwrap();
}
