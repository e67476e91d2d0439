//! The client's bundles, where the suites of the official clients do not look: conditions, lists, HEAD, other
//! methods, servers without bundles, and many who ask at once.

mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;

use sockring::app::App;
use sockring::engine::{self, Cors};
use sockring::io::{Options, Server};
use sockring::runtime::{Descriptors, Running};
use support::{Client, end, get, options};

/// A package with two of the bundles, and with a file that is none.
fn package(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("sockring-{name}-{}", std::process::id()));
    let dist = folder.join("dist");
    fs::create_dir_all(&dist).unwrap();
    fs::write(folder.join("package.json"), "{\n  \"version\": \"4.8.4\"\n}").unwrap();
    fs::write(dist.join("socket.io.js"), script()).unwrap();
    fs::write(dist.join("socket.io.js.map"), "{}").unwrap();
    fs::write(dist.join("secret.js"), "secret").unwrap();
    dist
}

fn script() -> String {
    (0..4000).map(|n| format!("function f{n}(x) {{ return x + {n}; }}\n")).collect()
}

fn start(workers: usize, io: fn(Options) -> Options, dist: &Path) -> Running {
    let dist = dist.to_owned();
    let builder = App::builder().runtime(options(Descriptors::Auto, workers)).listen("127.0.0.1:0");
    let set_up = move |app: &App| {
        Server::attach_app(app, io(Options { client_dist: Some(dist.clone()), ..Options::default() }));
    };
    builder.start(set_up).unwrap()
}

fn ask(client: &mut Client, method: &str, file: &str, headers: &str) -> support::Answer {
    client.send(format!("{method} /socket.io/{file} HTTP/1.1\r\nHost: test\r\n{headers}\r\n").as_bytes());
    client.answer().unwrap()
}

#[test]
fn conditions_and_methods() {
    let server = start(1, |options| options, &package("conditions"));
    let mut client = Client::connect(server.addresses()[0]);
    for known in ["\"4.8.4\"", "W/\"4.8.4\"", "\"1\", W/\"4.8.4\"", "*"] {
        let answer = ask(&mut client, "GET", "socket.io.js", &format!("If-None-Match: {known}\r\n"));
        assert_eq!(answer.status, 304, "{known}");
        for header in ["ETag: \"4.8.4\"", "Vary: Accept-Encoding", "Cache-Control: public, max-age=0"] {
            assert!(answer.head.contains(header), "{}", answer.head);
        }
    }
    let whole = ask(&mut client, "GET", "socket.io.js?x=1", "If-None-Match: \"4.8\"\r\n");
    assert_eq!((whole.status, whole.text()), (200, &*script()));
    assert!(whole.head.contains("Vary: Accept-Encoding"), "{}", whole.head);
    // The client's own idea of what a HEAD is answered with has no body.
    client.send(b"HEAD /socket.io/socket.io.js HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n");
    client.send(get("/socket.io/socket.io.js.map").as_bytes());
    let mut seen = String::new();
    while !seen.ends_with("{}") {
        let mut chunk = [0; 4096];
        let count = client.stream.read(&mut chunk).unwrap();
        seen.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
    }
    let (head, rest) = seen.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Content-Encoding: gzip") && head.contains("Content-Length: "), "{head}");
    assert!(rest.starts_with("HTTP/1.1 200"), "{rest}");
    assert!(rest.contains("application/json; charset=utf-8"), "{rest}");
    // Everything else is the engine's.
    for (method, file) in [
        ("POST", "socket.io.js"),
        ("GET", "socket.io.min.js"),
        ("GET", "secret.js"),
        ("GET", "..%2Fpackage.json"),
    ] {
        let mut client = Client::connect(server.addresses()[0]);
        let answer = ask(&mut client, method, file, "Content-Length: 0\r\n");
        assert_eq!(answer.text(), "{\"code\":0,\"message\":\"Transport unknown\"}", "{method} {file}");
        assert_eq!(answer.status, 400);
    }
    end(server);
}

#[test]
fn compressed_once_for_all_who_ask_at_once() {
    let server = start(3, |options| options, &package("compressed"));
    let address = server.addresses()[0];
    let ask_one = move |n: usize| {
        let mut client = Client::connect(address);
        let coding = ["br", "gzip", "deflate"][n % 3];
        let answer = ask(&mut client, "GET", "socket.io.js", &format!("Accept-Encoding: {coding}\r\n"));
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains(&format!("Content-Encoding: {coding}\r\n")), "{}", answer.head);
        let mut text = String::new();
        let body = &answer.body[..];
        match coding {
            "br" => brotli::Decompressor::new(body, 4096).read_to_string(&mut text),
            "gzip" => flate2::read::GzDecoder::new(body).read_to_string(&mut text),
            _ => flate2::read::ZlibDecoder::new(body).read_to_string(&mut text),
        }
        .unwrap();
        assert_eq!(text, script());
        answer.body
    };
    let all: Vec<_> = (0..30).map(|n| thread::spawn(move || (n % 3, ask_one(n)))).collect();
    let mut bodies: Vec<(usize, Vec<u8>)> = all.into_iter().map(|one| one.join().unwrap()).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 3, "the answers differ");
    end(server);
}

#[test]
fn cors_headers_and_no_bundles() {
    let with_cors = |options: Options| Options {
        engine: engine::Options { cors: Some(Cors::list(["http://a.test"])), ..options.engine },
        ..options
    };
    let server = start(1, with_cors, &package("cors"));
    let mut client = Client::connect(server.addresses()[0]);
    let answer = ask(&mut client, "GET", "socket.io.js", "Origin: http://a.test\r\nAccept-Encoding: br\r\n");
    for header in ["Access-Control-Allow-Origin: http://a.test", "Vary: Origin, Accept-Encoding"] {
        assert!(answer.head.contains(header), "{}", answer.head);
    }
    let answer = ask(&mut client, "OPTIONS", "socket.io.js", "Origin: http://a.test\r\n");
    assert_eq!(answer.status, 204);
    end(server);

    let switched_off = |options: Options| Options { serve_client: false, ..options };
    let server = start(1, switched_off, &package("off"));
    let mut client = Client::connect(server.addresses()[0]);
    assert_eq!(client.get("/socket.io/socket.io.js").status, 400);
    end(server);

    let server = start(1, |options| options, Path::new("/nowhere"));
    let mut client = Client::connect(server.addresses()[0]);
    assert_eq!(client.get("/socket.io/socket.io.js").status, 400);
    assert_eq!(client.get("/socket.io/?EIO=4&transport=polling").status, 200);
    end(server);
}
