//! Our codecs and those of other crates, on the same input in the same run. `make compare` runs it and sums up;
//! docs/BENCHMARKS.md has the results. Every group has one function named `sockring`, the others are peers.

use std::future::Future;
use std::hint::black_box;
use std::io::{self, Cursor, Read, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use cpu_time::ThreadTime;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use engineioxide_core as theirs;
use futures_util::{StreamExt, stream};
use http_body_util::Full;
use sockring::protocol::eio;
use sockring::protocol::http::{Head, HeadLimits};
use sockring::protocol::ws::frame::{OpCode, write_masked_frame};
use sockring::protocol::ws::message::{Decoder, Limits};
use sockring::protocol::ws::{handshake, mask};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::{Role, WebSocket};

#[path = "../inputs/mod.rs"]
mod inputs;

use inputs::{EVENT, HEAD, KEY};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FRAMES: usize = 100;

/// Time of this thread on a processor: a machine that has other things to do as well changes it little.
struct Processor(WallTime);

impl Measurement for Processor {
    type Intermediate = ThreadTime;
    type Value = Duration;

    fn start(&self) -> ThreadTime {
        ThreadTime::now()
    }

    fn end(&self, start: ThreadTime) -> Duration {
        start.elapsed()
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self.0.formatter()
    }
}

/// Polls a future that never has to wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("all input is there"),
    }
}

fn unmask(c: &mut Criterion<Processor>) {
    for size in [16, 128, 1024, 65_536] {
        let mut group = c.benchmark_group(format!("unmask {size}"));
        let mut data = vec![7; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function("sockring", |b| {
            b.iter(|| mask::apply(black_box(&mut data), black_box(KEY), black_box(0)))
        });
        group.bench_function("fastwebsockets", |b| {
            b.iter(|| fastwebsockets::unmask(black_box(&mut data), black_box(KEY)))
        });
        group.finish();
    }
}

/// An input to read from; what is written is dropped.
struct Input(Cursor<Vec<u8>>);

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Input {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.0.read(buffer.initialize_unfilled())?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buffer.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads frames, unmasks them and checks that text is UTF-8. Ours reads them where the kernel has put them;
/// the others copy them into buffers of their own first, which is a part of how they work.
fn walk(c: &mut Criterion<Processor>) {
    for (name, op, size) in
        [("text", OpCode::Text, 20), ("text", OpCode::Text, 100), ("binary", OpCode::Binary, 4000)]
    {
        let mut group = c.benchmark_group(format!("{FRAMES} {name} frames of {size}"));
        let mut wire = Vec::new();
        for _ in 0..FRAMES {
            write_masked_frame(&mut wire, op, true, KEY, &vec![b'x'; size]);
        }
        group.throughput(Throughput::Elements(FRAMES as u64));
        group.bench_function("sockring", |b| {
            b.iter_batched_ref(|| wire.clone(), |wire| our_walk(wire), BatchSize::SmallInput)
        });
        group.bench_function("tungstenite", |b| {
            let input = || WebSocket::from_raw_socket(Input(Cursor::new(wire.clone())), Role::Server, None);
            let walk = |ws: &mut WebSocket<Input>| {
                for _ in 0..FRAMES {
                    black_box(ws.read().expect("sound frames"));
                }
            };
            b.iter_batched_ref(input, walk, BatchSize::SmallInput)
        });
        group.bench_function("fastwebsockets", |b| {
            let input = || {
                let input = Input(Cursor::new(wire.clone()));
                fastwebsockets::WebSocket::after_handshake(input, fastwebsockets::Role::Server)
            };
            let walk = |ws: &mut fastwebsockets::WebSocket<Input>| {
                for _ in 0..FRAMES {
                    let frame = ready(ws.read_frame()).expect("sound frames");
                    black_box(op == OpCode::Binary || frame.is_utf8());
                }
            };
            b.iter_batched_ref(input, walk, BatchSize::SmallInput)
        });
        group.finish();
    }
}

fn our_walk(mut input: &mut [u8]) {
    let (mut decoder, limits) = (Decoder::new(), Limits::default());
    while !input.is_empty() {
        let step = decoder.decode(input, &limits).expect("sound frames");
        let consumed = step.consumed;
        black_box(step.message);
        input = &mut input[consumed..];
    }
}

/// Ours checks what RFC 9112 asks of a server beside the grammar, and keeps the head in one buffer.
fn head(c: &mut Criterion<Processor>) {
    let mut group = c.benchmark_group("request head");
    let limits = HeadLimits::default();
    group.throughput(Throughput::Bytes(HEAD.len() as u64));
    group.bench_function("sockring", |b| b.iter(|| Head::parse(black_box(HEAD), &limits)));
    group.bench_function("httparse alone", |b| {
        b.iter(|| {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let mut request = httparse::Request::new(&mut headers);
            black_box(request.parse(black_box(HEAD)).expect("a head"));
        })
    });
    group.bench_function("httparse and http (hyper's way)", |b| {
        b.iter(|| {
            let mut buffer = BytesMut::from(black_box(HEAD));
            black_box(their_head(&mut buffer))
        })
    });
    group.finish();
}

fn their_head(buffer: &mut BytesMut) -> http::Request<()> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    let used = request.parse(buffer).expect("a head").unwrap();
    let place = |part: &[u8]| {
        let start = part.as_ptr() as usize - buffer.as_ptr() as usize;
        (start, start + part.len())
    };
    let target = place(request.path.expect("a target").as_bytes());
    let method = http::Method::from_bytes(request.method.expect("a method").as_bytes()).expect("a method");
    let mut fields = [((0, 0), (0, 0)); 100];
    let count = request.headers.len();
    for (field, header) in fields.iter_mut().zip(request.headers.iter()) {
        *field = (place(header.name.as_bytes()), place(header.value));
    }
    let bytes: Bytes = buffer.split_to(used).freeze();
    let mut built = http::Request::new(());
    *built.method_mut() = method;
    *built.uri_mut() = http::Uri::from_maybe_shared(bytes.slice(target.0..target.1)).expect("a target");
    built.headers_mut().reserve(count);
    for ((name_start, name_end), (start, end)) in &fields[..count] {
        let name = http::HeaderName::from_bytes(&bytes[*name_start..*name_end]).expect("a name");
        let value = http::HeaderValue::from_maybe_shared(bytes.slice(*start..*end)).expect("a value");
        built.headers_mut().append(name, value);
    }
    built
}

fn accept_key(c: &mut Criterion<Processor>) {
    const CLIENT: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let mut group = c.benchmark_group("accept key");
    group.bench_function("sockring", |b| b.iter(|| handshake::accept_key(black_box(CLIENT))));
    group.bench_function("tungstenite", |b| {
        b.iter(|| tungstenite::handshake::derive_accept_key(black_box(CLIENT.as_bytes())))
    });
    group.bench_function("sha1_smol and base64", |b| {
        b.iter(|| {
            let mut hash = sha1_smol::Sha1::new();
            hash.update(black_box(CLIENT.as_bytes()));
            hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            STANDARD.encode(hash.digest().bytes())
        })
    });
    group.finish();
}

/// Twenty events and an attachment of 1,000 bytes in one payload.
fn payload(c: &mut Criterion<Processor>) {
    let attachment = Bytes::from(vec![7; 1000]);
    let mut body = Vec::new();
    our_payload(&mut body, &attachment);
    let text = String::from_utf8(body.clone()).expect("text");
    let shared = Bytes::from(body);

    let mut group = c.benchmark_group("decode a payload of 21 packets");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("sockring", |b| {
        b.iter(|| {
            // Whether it is UTF-8 is a part of what the other does.
            let text = sockring_text(black_box(&shared));
            eio::decode_payload(text).map(|packet| usize::from(black_box(packet).is_ok())).sum::<usize>()
        })
    });
    group.bench_function("engineioxide", |b| {
        b.iter(|| {
            let body = Full::<Bytes>::new(black_box(shared.clone()));
            let version = theirs::ProtocolVersion::V4;
            let packets = pin!(theirs::payload::decoder(body, None, version, 1_000_000));
            ready(packets.fold(0, async |sum, packet| sum + usize::from(black_box(packet).is_ok())))
        })
    });
    group.finish();

    let mut group = c.benchmark_group("encode a payload of 21 packets");
    group.throughput(Throughput::Bytes(text.len() as u64));
    let mut out = Vec::new();
    group.bench_function("sockring", |b| {
        b.iter(|| {
            out.clear();
            our_payload(&mut out, black_box(&attachment));
        })
    });
    group.bench_function("engineioxide", |b| {
        let packets = || {
            let events = (0..20).map(|_| theirs::Packet::Message(EVENT.into()));
            let all = events.chain([theirs::Packet::Binary(attachment.clone())]);
            all.map(|packet| std::iter::once(packet).collect()).collect::<Vec<theirs::PacketBuf>>()
        };
        b.iter_batched(
            packets,
            |packets| {
                let version = theirs::ProtocolVersion::V4;
                ready(theirs::payload::encoder(stream::iter(packets), version, false, 1_000_000)).data
            },
            BatchSize::SmallInput,
        )
    });
    group.finish();
}

fn sockring_text(body: &[u8]) -> &str {
    std::str::from_utf8(body).unwrap_or_else(|_| unreachable!("it is text"))
}

fn our_payload(out: &mut Vec<u8>, attachment: &[u8]) {
    for _ in 0..20 {
        eio::write_text(out, eio::PacketType::Message, black_box(EVENT));
        out.push(eio::SEPARATOR);
    }
    eio::write_base64(out, attachment);
}

fn quick() -> Criterion<Processor> {
    Criterion::default()
        .with_measurement(Processor(WallTime))
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .without_plots()
}

criterion_group! { name = peers; config = quick(); targets = unmask, walk, head, payload, accept_key }
criterion_main!(peers);

