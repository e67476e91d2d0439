//! What a server listens on: existing sockets, Unix sockets, and listeners behind a proxy.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sockring::app::{App, Request};
use sockring::runtime::{self, Descriptors, Endpoint, Listener, Running, StartError};
use support::{Client, end, get, options};

/// Says who the client is.
fn who(app: &App) {
    app.get("/who", |request: Request, response: sockring::app::Response| {
        response.end(request.peer().map_or("nobody".into(), |peer| peer.to_string()));
    });
    app.get("/core", |_: Request, response: sockring::app::Response| {
        response.end(sockring::runtime::current().unwrap().index().to_string());
    });
}

fn start(options: runtime::Options, listener: impl Into<Listener>) -> Running {
    App::builder().runtime(options).listener(listener).start(who).unwrap()
}

/// A path of this test's own.
fn path(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("sockring-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// One request over a Unix socket, on a connection of its own.
fn ask(path: &PathBuf, target: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split("\r\n\r\n").nth(1).unwrap().to_owned()
}

both!(
    an_existing_tcp_listener_serves_all_workers,
    an_existing_unix_listener_is_left_where_it_is,
    a_unix_socket_comes_and_goes_with_the_server,
    the_proxy_protocol_tells_the_client,
    the_proxy_protocol_is_required,
    an_address_may_have_so_many_connections,
    addresses_are_those_of_the_proxys_clients,
    the_kernel_keeps_connections_until_they_speak,
);

fn an_existing_tcp_listener_serves_all_workers(descriptors: Descriptors) {
    for nonblocking in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(nonblocking).unwrap();
        let address = listener.local_addr().unwrap();
        let mine = listener.try_clone().unwrap();
        // Who connected before the server was there is served too.
        let mut early = Client::connect(address);
        let server = start(options(descriptors, 3), listener);
        assert_eq!(server.addresses(), [address]);
        assert_eq!(early.get("/who").text(), early.stream.local_addr().unwrap().to_string());
        let mut cores: Vec<String> = Vec::new();
        let mut open = Vec::new();
        for _ in 0..200 {
            let mut client = Client::connect(address);
            cores.push(client.get("/core").text().to_owned());
            open.push(client);
        }
        cores.sort();
        cores.dedup();
        assert_eq!(cores, ["0", "1", "2"]);
        drop(open);
        end(server);
        // The listener is the user's own again, and nobody else takes what comes.
        let client = std::net::TcpStream::connect(address).unwrap();
        mine.set_nonblocking(false).unwrap();
        assert_eq!(mine.accept().unwrap().1, client.local_addr().unwrap());
        drop(mine);
        assert!(std::net::TcpStream::connect(address).is_err(), "somebody still listens");
    }
}

fn an_existing_unix_listener_is_left_where_it_is(descriptors: Descriptors) {
    let path = path("existing");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let server = start(options(descriptors, 2), listener);
    assert_eq!(server.endpoints(), [Endpoint::Unix(path.clone())]);
    assert!(server.addresses().is_empty());
    assert_eq!(ask(&path, "/who"), "nobody");
    end(server);
    assert!(path.exists(), "the file is not the server's to remove");
    assert!(UnixStream::connect(&path).is_err(), "somebody still listens");
}

fn a_unix_socket_comes_and_goes_with_the_server(descriptors: Descriptors) {
    let path = path("served");
    let _ = fs::remove_file(&path);
    let listener = || Listener::unix(&path).mode(0o600);
    let server = start(options(descriptors, 2), listener());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for _ in 0..20 {
        assert_eq!(ask(&path, "/who"), "nobody");
    }
    // A live one is not replaced.
    let taken = App::builder().runtime(options(descriptors, 1)).listener(listener()).start(who);
    match taken.map(end) {
        Err(StartError::Listen { address, source }) => {
            assert_eq!(address, Endpoint::Unix(path.clone()));
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ask(&path, "/who"), "nobody");
    // Unless it is asked for; the old server then leaves the new one's file alone.
    let sharing = runtime::Options { share_port: true, ..options(descriptors, 1) };
    let newer = start(sharing, listener());
    end(server);
    assert_eq!(ask(&path, "/who"), "nobody");
    end(newer);
    assert!(!path.exists(), "the file is still there");
    // A dead one is replaced.
    drop(UnixListener::bind(&path).unwrap());
    let server = start(options(descriptors, 1), Listener::unix(&path));
    assert_eq!(ask(&path, "/who"), "nobody");
    end(server);
    // What is no socket is left alone.
    fs::write(&path, "precious").unwrap();
    let refused = App::builder().runtime(options(descriptors, 1)).listen_unix(&path).start(who);
    assert!(refused.is_err());
    assert!(!fs::metadata(&path).unwrap().file_type().is_socket());
}

/// Sends a header and a request, in the pieces given, and returns the answer's body.
fn through_proxy(address: SocketAddr, pieces: &[&[u8]]) -> String {
    let mut client = Client::connect(address);
    for piece in pieces {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(20));
    }
    client.answer().unwrap().text().to_owned()
}

fn the_proxy_protocol_tells_the_client(descriptors: Descriptors) {
    let listener = Listener::tcp("127.0.0.1:0").unwrap().proxy_protocol(true);
    let server = start(options(descriptors, 2), listener);
    let address = server.addresses()[0];
    let request = get("/who");
    let line = b"PROXY TCP4 192.0.2.7 192.0.2.9 5000 443\r\n";
    assert_eq!(through_proxy(address, &[&[line, request.as_bytes()].concat()]), "192.0.2.7:5000");
    assert_eq!(through_proxy(address, &[line, request.as_bytes()]), "192.0.2.7:5000");
    let (first, second) = line.split_at(17);
    assert_eq!(through_proxy(address, &[first, second, request.as_bytes()]), "192.0.2.7:5000");
    let binary = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x27"[..],
        &"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        &[0; 16],
        &[0x13, 0x88, 0x01, 0xbb, 0x04, 0, 0],
    ]
    .concat();
    let whole = [&binary, request.as_bytes()].concat();
    assert_eq!(through_proxy(address, &[&whole]), "[2001:db8::7]:5000");
    let bytes: Vec<&[u8]> = whole.chunks(7).collect();
    assert_eq!(through_proxy(address, &bytes), "[2001:db8::7]:5000");
    // The proxy speaks for itself.
    let mut client = Client::connect(address);
    client.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    assert_eq!(client.get("/who").text(), client.stream.local_addr().unwrap().to_string());
    // It is a keep-alive connection like any other, and a header in its middle is nothing but garbage.
    assert_eq!(client.get("/who").status, 200);
    client.send(&[line, request.as_bytes()].concat());
    assert_eq!(client.answer().unwrap().status, 400);
    end(server);
}

fn the_proxy_protocol_is_required(descriptors: Descriptors) {
    let proxied = Listener::tcp("127.0.0.1:0").unwrap().proxy_protocol(true);
    let builder = App::builder().runtime(options(descriptors, 1)).listener(proxied).listen("127.0.0.1:0");
    let server = builder.start(who).unwrap();
    let (proxied, plain) = (server.addresses()[0], server.addresses()[1]);
    for bytes in [&b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n"[..], b"PROXY nonsense\r\n", b"\x16\x03\x01"] {
        let mut client = Client::connect(proxied);
        let start = Instant::now();
        client.send(bytes);
        assert!(client.answer().is_err(), "it was answered");
        assert!(start.elapsed() < Duration::from_secs(2), "it was not closed at once");
    }
    // Where it is switched off nobody can claim an address.
    for header in [&b"PROXY TCP4 192.0.2.7 192.0.2.9 5000 443\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut client = Client::connect(plain);
        client.send(&[header, get("/who").as_bytes()].concat());
        assert_eq!(client.answer().unwrap().status, 400);
    }
    // Half a header does not hold a server up that is to stop.
    let mut half = Client::connect(proxied);
    half.send(b"PROXY TCP4");
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    end(server);
    assert!(start.elapsed() < Duration::from_millis(900), "it took {:?} to stop", start.elapsed());
    assert!(half.ends());
}

/// Not a test: the process that the next one starts, or a person who wants to try a proxy.
/// It serves `/who` on what it has inherited until it is asked to stop.
#[test]
#[ignore = "it is started by another test"]
fn inheriting_server() {
    let proxied = std::env::var_os("PROXIED").is_some();
    let inherited = Listener::inherited().unwrap();
    // Whoever asks twice gets the same sockets, each time as descriptors of its own.
    assert_eq!(Listener::inherited().unwrap().len(), inherited.len());
    let listeners = inherited.into_iter().map(|listener| listener.proxy_protocol(proxied));
    let (stop, stopped) = std::sync::mpsc::channel();
    let builder = App::builder().runtime(options(Descriptors::Auto, 2)).listeners(listeners);
    let server = builder.start(move |app| {
        who(app);
        let stop = stop.clone();
        app.get("/stop", move |_: Request, response: sockring::app::Response| {
            response.end("stopping");
            let _ = stop.send(());
        });
    });
    let server = server.unwrap();
    stopped.recv().unwrap();
    end(server);
}

fn the_kernel_keeps_connections_until_they_speak(descriptors: Descriptors) {
    for (seconds, while_silent) in [(60, 1), (0, 2)] {
        let defer_accept = Duration::from_secs(seconds);
        let options = runtime::Options { defer_accept, ..options(descriptors, 1) };
        let server = start(options, Listener::tcp("127.0.0.1:0").unwrap());
        let mut silent = Client::connect(server.addresses()[0]);
        // Connections are accepted in order: had the silent one been handed over, it would be in.
        let mut other = Client::connect(server.addresses()[0]);
        assert_eq!(other.get("/core").text(), "0");
        assert_eq!(server.metrics().total("accepted"), while_silent);
        assert_eq!(silent.get("/core").text(), "0");
        assert_eq!(server.metrics().total("accepted"), 2);
        end(server);
    }
}

#[test]
fn sockets_of_a_service_manager() {
    let (tcp, path) = (TcpListener::bind("127.0.0.1:0").unwrap(), path("inherited"));
    let _ = fs::remove_file(&path);
    let unix = UnixListener::bind(&path).unwrap();
    let address = tcp.local_addr().unwrap();
    // Descriptors 3 and 4, and the process's own number, as systemd gives them.
    let script =
        "exec 3<&0 4<&1; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" --ignored --exact inheriting_server >&2";
    let mut server = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .stdin(std::os::fd::OwnedFd::from(tcp.try_clone().unwrap()))
        .stdout(std::os::fd::OwnedFd::from(unix.try_clone().unwrap()))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Connections that come before the server is there wait for it.
    let mut client = Client::connect(address);
    assert_eq!(client.get("/who").text(), client.stream.local_addr().unwrap().to_string());
    assert_eq!(ask(&path, "/who"), "nobody");
    assert_eq!(client.get("/stop").text(), "stopping");
    assert!(server.wait().unwrap().success());
    // The sockets are the service manager's: they outlive the server.
    assert!(path.exists() && UnixStream::connect(&path).is_ok());
}

fn crowded(descriptors: Descriptors) -> runtime::Options {
    runtime::Options { connections_per_address: 2, ..options(descriptors, 1) }
}

fn an_address_may_have_so_many_connections(descriptors: Descriptors) {
    let server = start(crowded(descriptors), Listener::tcp("127.0.0.1:0").unwrap());
    let address = server.addresses()[0];
    for round in 1..=3 {
        let mut held: Vec<Client> = (0..2).map(|_| Client::connect(address)).collect();
        held.iter_mut().for_each(|client| assert_eq!(client.get("/core").text(), "0"));
        let mut third = Client::connect(address);
        assert!(third.try_send(get("/core").as_bytes()).is_err() || third.ends());
        assert_eq!(server.metrics().total("refused_by_address"), round);
        // Those who are there are served, and their places come back.
        held.iter_mut().for_each(|client| assert_eq!(client.get("/core").text(), "0"));
        drop(held);
        support::eventually("the places are free", || server.metrics().total("connections") == 0);
    }
    end(server);
}

fn addresses_are_those_of_the_proxys_clients(descriptors: Descriptors) {
    let listener = Listener::tcp("127.0.0.1:0").unwrap().proxy_protocol(true);
    let server = start(crowded(descriptors), listener);
    let connect = |client: &str| {
        let mut connection = Client::connect(server.addresses()[0]);
        connection.send(format!("PROXY TCP4 {client} 192.0.2.9 5000 443\r\n{}", get("/core")).as_bytes());
        connection
    };
    // Connections that have not said whose they are count for nobody.
    let _silent: Vec<Client> = (0..5).map(|_| Client::connect(server.addresses()[0])).collect();
    let mut held: Vec<Client> =
        ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2"].map(connect).into_iter().collect();
    held.iter_mut().for_each(|client| assert_eq!(client.answer().unwrap().text(), "0"));
    assert!(connect("192.0.2.1").ends());
    assert_eq!(connect("192.0.2.3").answer().unwrap().text(), "0");
    held.remove(0);
    support::eventually("the place is free", || {
        connect("192.0.2.1").answer().is_ok_and(|answer| answer.status == 200)
    });
    end(server);
}
