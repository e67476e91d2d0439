//! Files of a folder, from outside: ranges, conditions, compressed forms, and what must not be served.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sockring::app::{App, StaticFiles};
use sockring::runtime::{Descriptors, Running};
use support::{Answer, Client, builder, end, options};

const LARGE: usize = 20 << 20;

/// A folder that is removed when the test ends.
struct Site {
    root: PathBuf,
    server: Option<Running>,
    address: SocketAddr,
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at / 3) as u8 ^ (at >> 11) as u8).collect()
}

impl Site {
    fn new(name: &str, routes: impl Fn(&App, &Path) + Send + Sync + 'static) -> Self {
        let root = std::env::temp_dir().join(format!("sockring-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let public = root.join("public");
        fs::create_dir_all(public.join("sub/.hidden")).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let write = |name: &str, content: &[u8]| {
            let path = public.join(name);
            fs::write(&path, content).unwrap();
            fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
        };
        write("index.html", b"<h1>home</h1>");
        write("sub/index.html", b"<h1>sub</h1>");
        write("sub/.hidden/secret", b"secret");
        write("ten.txt", b"0123456789");
        write("empty.css", b"");
        write("app.js", b"plain");
        write("app.js.gz", b"zipped");
        write("app.js.br", b"brotli");
        write("only.js", b"plain");
        write("only.js.gz", b"zipped");
        write("a b\u{e9}.txt", b"named");
        write("large.bin", &bytes(LARGE));
        fs::write(root.join("outside.txt"), "outside").unwrap();
        std::os::unix::fs::symlink("../outside.txt", public.join("out.txt")).unwrap();
        std::os::unix::fs::symlink("..", public.join("up")).unwrap();
        std::os::unix::fs::symlink("ten.txt", public.join("inside.txt")).unwrap();
        let folder = public.clone();
        let server = builder(options(Descriptors::Auto, 1)).start(move |app| routes(app, &folder)).unwrap();
        let address = server.addresses()[0];
        Self { root, server: Some(server), address }
    }

    fn ask(&self, line: &str, fields: &str) -> Answer {
        let mut client = Client::connect(self.address);
        client.send(format!("{line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes());
        if line.starts_with("HEAD") { client.head().unwrap() } else { client.answer().unwrap() }
    }

    fn get(&self, path: &str, fields: &str) -> Answer {
        self.ask(&format!("GET {path}"), fields)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.take().into_iter().for_each(end);
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn plain(name: &str) -> Site {
    Site::new(name, |app, folder| {
        app.static_files("/s", folder).static_files("/", folder);
    })
}

#[test]
fn files_and_folders() {
    let _alone = support::alone();
    let site = plain("names");
    for (path, kind, content) in [
        ("/", "text/html; charset=utf-8", &b"<h1>home</h1>"[..]),
        ("/sub/", "text/html; charset=utf-8", b"<h1>sub</h1>"),
        ("/s/", "text/html; charset=utf-8", b"<h1>home</h1>"),
        ("/ten.txt", "text/plain; charset=utf-8", b"0123456789"),
        ("/inside.txt", "text/plain; charset=utf-8", b"0123456789"),
        ("/a%20b%C3%A9.txt", "text/plain; charset=utf-8", b"named"),
        ("/empty.css", "text/css; charset=utf-8", b""),
        ("/s/app.js", "application/javascript; charset=utf-8", b"plain"),
        ("/large.bin", "application/octet-stream", &bytes(LARGE)),
    ] {
        let answer = site.get(path, "");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{path}");
        assert!(answer.body == content, "{path}: {} bytes", answer.body.len());
        assert_eq!(answer.header("last-modified"), Some("Sun, 09 Sep 2001 01:46:40 GMT"));
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
        let head = site.ask(&format!("HEAD {path}"), "");
        let but_date =
            |answer: &Answer| answer.head.lines().filter(|l| !l.starts_with("Date")).collect::<String>();
        assert_eq!(but_date(&head), but_date(&answer), "{path}");
    }
    for (path, location) in [
        ("/sub", "/sub/"),
        ("/sub?x=1", "/sub/?x=1"),
        ("//sub", "/sub/"),
        ("/s", "/s/"),
        ("/s/sub", "/s/sub/"),
    ] {
        let answer = site.get(path, "");
        assert_eq!((answer.status, answer.header("location")), (301, Some(location)), "{path}");
    }
    assert_eq!(site.ask("POST /ten.txt", "").status, 405);
}

#[test]
fn nothing_outside_is_served() {
    let _alone = support::alone();
    let site = plain("outside");
    for path in [
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/..%2foutside.txt",
        "/sub/../../outside.txt",
        "/out.txt",
        "/up/outside.txt",
        "/up",
        "/up/public/ten.txt/..",
        "/sub/.hidden/secret",
        "/ten.txt/",
        "/ten.txt/x",
        "/ten.txt%00",
        "/nothing",
        "/..%5coutside.txt",
        "/%ff",
    ] {
        let answer = site.get(path, "");
        assert_eq!(answer.status, 404, "{path}: {}", answer.head);
        assert_eq!(answer.header("content-type"), Some("text/plain"));
    }
    // A link in the folder that leads out of it and back in names what lies in it.
    assert_eq!(site.get("/up/public/ten.txt", "").text(), "0123456789");
}

#[test]
fn a_fifo_blocks_nobody() {
    let _alone = support::alone();
    let site = plain("fifo");
    let made = std::process::Command::new("mkfifo").arg(site.root.join("public/fifo")).status();
    assert!(made.unwrap().success());
    assert_eq!(site.get("/fifo", "").status, 404);
    assert_eq!(site.get("/ten.txt", "").status, 200);
}

#[test]
fn a_folder_that_is_a_link_may_be_changed() {
    let _alone = support::alone();
    let site = Site::new("release", |app, folder| {
        app.static_files("/", folder.parent().unwrap().join("current"));
    });
    assert_eq!(site.get("/ten.txt", "").status, 404);
    let (current, next) = (site.root.join("current"), site.root.join("next"));
    std::os::unix::fs::symlink("public", &current).unwrap();
    assert_eq!(site.get("/ten.txt", "").text(), "0123456789");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("ten.txt"), "next").unwrap();
    fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink("next", &current).unwrap();
    assert_eq!(site.get("/ten.txt", "").text(), "next");
}

#[test]
fn ranges() {
    let _alone = support::alone();
    let site = plain("ranges");
    for (range, status, content_range, content) in [
        ("bytes=0-3", 206, Some("bytes 0-3/10"), "0123"),
        ("bytes=4-", 206, Some("bytes 4-9/10"), "456789"),
        ("bytes=-3", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=0-99", 206, Some("bytes 0-9/10"), "0123456789"),
        ("bytes=10-", 416, Some("bytes */10"), "Range Not Satisfiable"),
        ("bytes=-0", 416, Some("bytes */10"), "Range Not Satisfiable"),
        ("bytes=5-2", 200, None, "0123456789"),
        ("pages=1-2", 200, None, "0123456789"),
        ("bytes=0-9,0-9", 200, None, "0123456789"),
    ] {
        let answer = site.get("/ten.txt", &format!("Range: {range}\r\n"));
        assert_eq!((answer.status, answer.header("content-range")), (status, content_range), "{range}");
        assert_eq!(answer.text(), content, "{range}");
    }
    let head = site.ask("HEAD /ten.txt", "Range: bytes=0-3\r\n");
    assert_eq!((head.status, head.length()), (200, Some(10)), "ranges are for GET");
    let (start, stop) = (1_000_001, 9_000_000);
    let answer = site.get("/large.bin", &format!("Range: bytes={start}-{stop}\r\n"));
    assert!(answer.body == bytes(LARGE)[start..=stop]);
    assert_eq!(answer.header("content-range"), Some(&*format!("bytes {start}-{stop}/{LARGE}")));
}

#[test]
fn several_ranges() {
    let _alone = support::alone();
    let site = plain("multipart");
    let answer = site.get("/ten.txt", "Range: bytes=0-1, -2, 4-4\r\n");
    assert_eq!(answer.status, 206);
    let boundary =
        answer.header("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, content: &str| {
        format!(
            "\r\n--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes {range}/10\r\n\r\n{content}"
        )
    };
    let expected =
        [part("0-1", "01"), part("8-9", "89"), part("4-4", "4"), format!("\r\n--{boundary}--\r\n")];
    assert_eq!(answer.text(), expected.concat());
}

#[test]
fn conditions() {
    let _alone = support::alone();
    let site = plain("conditions");
    let etag = site.get("/ten.txt", "").header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"'), "{etag} is strong");
    let (then, before, after) =
        ("Sun, 09 Sep 2001 01:46:40 GMT", "Sun, 09 Sep 2001 01:46:39 GMT", "Mon, 10 Sep 2001 00:00:00 GMT");
    for (fields, status) in [
        (format!("If-None-Match: {etag}\r\n"), 304),
        (format!("If-None-Match: W/{etag}\r\n"), 304),
        (format!("If-None-Match: \"x\", {etag}\r\n"), 304),
        ("If-None-Match: *\r\n".into(), 304),
        ("If-None-Match: \"x\"\r\n".into(), 200),
        (format!("If-Modified-Since: {then}\r\n"), 304),
        (format!("If-Modified-Since: {after}\r\n"), 304),
        (format!("If-Modified-Since: {before}\r\n"), 200),
        ("If-Modified-Since: yesterday\r\n".into(), 200),
        // The tag counts more than the date.
        (format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {then}\r\n"), 200),
        (format!("If-Match: {etag}\r\n"), 200),
        ("If-Match: \"x\"\r\n".into(), 412),
        (format!("If-Unmodified-Since: {before}\r\n"), 412),
        (format!("If-Unmodified-Since: {then}\r\n"), 200),
        (format!("Range: bytes=0-3\r\nIf-Range: {etag}\r\n"), 206),
        ("Range: bytes=0-3\r\nIf-Range: \"x\"\r\n".into(), 200),
        (format!("Range: bytes=0-3\r\nIf-Range: W/{etag}\r\n"), 200),
        (format!("Range: bytes=0-3\r\nIf-Range: {then}\r\n"), 206),
        (format!("Range: bytes=0-3\r\nIf-Range: {after}\r\n"), 200),
        (format!("Range: bytes=0-3\r\nIf-None-Match: {etag}\r\n"), 304),
    ] {
        let answer = site.get("/ten.txt", &fields);
        assert_eq!(answer.status, status, "{fields}");
        if status == 304 {
            assert_eq!((answer.header("etag"), answer.length()), (Some(&*etag), None));
        }
    }
    fs::write(site.root.join("public/ten.txt"), "changed").unwrap();
    let answer = site.get("/ten.txt", &format!("If-None-Match: {etag}\r\n"));
    assert_eq!((answer.status, answer.text()), (200, "changed"));
    assert!(answer.header("etag").unwrap().starts_with("W/"), "it may change again in the same instant");
}

#[test]
fn compressed_forms() {
    let _alone = support::alone();
    let site = Site::new("compressed", |app, folder| {
        app.static_files_with(
            "/plain",
            folder,
            StaticFiles { precompressed: false, ..StaticFiles::default() },
        );
        let cache_control = Some("public, max-age=60".into());
        app.static_files_with("/", folder, StaticFiles { cache_control, ..StaticFiles::default() });
    });
    let mut tags = Vec::new();
    for (path, accept, coding, content) in [
        ("/app.js", "gzip, deflate, br", Some("br"), "brotli"),
        ("/app.js", "gzip", Some("gzip"), "zipped"),
        ("/app.js", "br;q=0, gzip;q=0.5", Some("gzip"), "zipped"),
        ("/app.js", "deflate", None, "plain"),
        ("/app.js", "identity", None, "plain"),
        ("/only.js", "br, gzip", Some("gzip"), "zipped"),
        ("/only.js", "br", None, "plain"),
    ] {
        let answer = site.get(path, &format!("Accept-Encoding: {accept}\r\n"));
        assert_eq!((answer.header("content-encoding"), answer.text()), (coding, content), "{path}, {accept}");
        assert_eq!(answer.header("content-type"), Some("application/javascript; charset=utf-8"));
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
        assert_eq!(answer.header("cache-control"), Some("public, max-age=60"));
        tags.push(answer.header("etag").unwrap().to_owned());
    }
    assert!(tags[0] != tags[1] && tags[1] == tags[2] && tags[2] != tags[3], "{tags:?}");
    let answer = site.get("/plain/app.js", "Accept-Encoding: br\r\n");
    assert_eq!((answer.header("vary"), answer.header("cache-control")), (None, None));
    assert_eq!(answer.text(), "plain");
}

#[test]
fn a_large_file_does_not_fill_the_memory() {
    let _alone = support::alone();
    let site = plain("memory");
    let before = support::resident_bytes();
    let clients: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = Client::with_receive_buffer(site.address, 16 << 10);
            client.send(b"GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n");
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(400));
    let grown = support::resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "memory grew by {grown} bytes");
    drop(clients);
}
