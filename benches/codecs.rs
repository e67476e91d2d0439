//! How long the codecs of the wire take. `cargo bench --bench codecs`, or with `-- --test` to see that they
//! run.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sockring::protocol::http::{Head, HeadLimits};
use sockring::protocol::query::{self, Query};
use sockring::protocol::ws::frame::{OpCode, write_frame, write_masked_frame};
use sockring::protocol::ws::mask;
use sockring::protocol::ws::message::{Decoder, Limits};
use sockring::protocol::{eio, sio};

#[path = "inputs/mod.rs"]
mod inputs;

use inputs::{EVENT, HEAD, KEY};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn http(c: &mut Criterion) {
    let mut group = c.benchmark_group("http");
    group.throughput(Throughput::Bytes(HEAD.len() as u64));
    let limits = HeadLimits::default();
    group.bench_function("head", |b| b.iter(|| Head::parse(black_box(HEAD), &limits)));
    group.bench_function("head in two pieces", |b| {
        b.iter(|| (Head::parse(black_box(&HEAD[..400]), &limits), Head::parse(black_box(HEAD), &limits)))
    });
    let raw = "EIO=4&transport=polling&t=abc123&sid=AAAAAAAAAAAAAAAAAAAA";
    group.throughput(Throughput::Bytes(raw.len() as u64));
    group.bench_function("query parse", |b| b.iter(|| Query::parse(black_box(raw))));
    group
        .bench_function("query find", |b| b.iter(|| query::find(black_box(raw), "sid").map(|sid| sid.len())));
    group.finish();
}

fn websocket(c: &mut Criterion) {
    let mut group = c.benchmark_group("websocket");
    for size in [16, 128, 1024, 65_536] {
        let mut data = vec![7; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("unmask {size}"), |b| {
            b.iter(|| mask::apply(black_box(&mut data), black_box(KEY), black_box(1)))
        });
    }
    for (name, op, size) in [("text", OpCode::Text, 100), ("binary", OpCode::Binary, 4000)] {
        let mut wire = Vec::new();
        for _ in 0..100 {
            write_masked_frame(&mut wire, op, true, KEY, &vec![b'x'; size]);
        }
        group.throughput(Throughput::Elements(100));
        group.bench_function(format!("walk 100 {name} frames of {size}"), |b| {
            b.iter_batched_ref(|| wire.clone(), |wire| walk(wire), BatchSize::SmallInput)
        });
    }
    let payload = vec![b'x'; 100];
    let mut out = Vec::new();
    group.throughput(Throughput::Elements(1));
    group.bench_function("write a frame of 100", |b| {
        b.iter(|| {
            out.clear();
            write_frame(&mut out, OpCode::Text, black_box(&payload));
        })
    });
    group.finish();
}

fn walk(mut input: &mut [u8]) -> usize {
    let (mut decoder, limits, mut messages) = (Decoder::new(), Limits::default(), 0);
    while !input.is_empty() {
        let step = decoder.decode(input, &limits).expect("sound frames");
        let consumed = step.consumed;
        messages += usize::from(step.message.is_some());
        input = &mut input[consumed..];
    }
    messages
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine.io");
    let mut body = Vec::new();
    for _ in 0..20 {
        eio::write_text(&mut body, eio::PacketType::Message, EVENT);
        body.push(eio::SEPARATOR);
    }
    eio::write_base64(&mut body, &[7; 1000]);
    let body = String::from_utf8(body).expect("text");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("payload of 21", |b| b.iter(|| eio::decode_payload(black_box(&body)).count()));
    group.finish();
}

fn socket(c: &mut Criterion) {
    let mut group = c.benchmark_group("socket.io");
    let (mut decoder, mut parser, limits) = (sio::Decoder::new(), sio::Parser::new(), sio::Limits::default());
    group.throughput(Throughput::Bytes(EVENT.len() as u64));
    group.bench_function("decode event", |b| b.iter(|| decoder.text(black_box(EVENT), &mut parser, &limits)));
    let echo = r#"20["echo","0123456789abcdef0123456789abcdef"]"#;
    group.throughput(Throughput::Bytes(echo.len() as u64));
    group.bench_function("decode echo", |b| b.iter(|| decoder.text(black_box(echo), &mut parser, &limits)));
    let text = r#"51-["file",{"_placeholder":true,"num":0}]"#;
    group.throughput(Throughput::Bytes(text.len() as u64 + 100));
    group.bench_function("decode binary event", |b| {
        b.iter(|| {
            let _ = decoder.text(black_box(text), &mut parser, &limits);
            decoder.binary(&[7; 100], &limits)
        })
    });
    group.throughput(Throughput::Elements(1));
    let args = ("general", 42, vec!["a", "b"]);
    group.bench_function("encode event", |b| {
        b.iter(|| sio::event("/chat", None, "message", black_box(&args)))
    });
    group.bench_function("encode ack", |b| b.iter(|| sio::ack("/", 12, black_box(&("ok",)))));
    let args = ("file", Bytes::from_static(&[7; 100]));
    group.bench_function("encode binary event", |b| {
        b.iter(|| sio::event("/", None, "file", black_box(&args)))
    });
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .without_plots()
}

criterion_group! { name = codecs; config = quick(); targets = http, websocket, engine, socket }
criterion_main!(codecs);
