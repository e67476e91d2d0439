//! What a broadcast costs before the kernel sees it: noting what members are owed, and joining it once.
//!
//! `cargo bench --bench fanout`. A send costs some 5,000 ns; what is measured here must vanish beside it.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sockring::fanout::{Class, Directory, Frame, Moment, Outlets, RoomKey, Rooms, Via};
use sockring::protocol::ws::deflate::Settings;
use sockring::protocol::ws::extensions::PerMessageDeflate;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MEMBERS: u32 = 5_000;

fn room(outlets: &mut Outlets) -> Rooms {
    let mut rooms = Rooms::default();
    for member in 0..MEMBERS {
        let outlet = outlets.open(Via::Connection(member));
        rooms.join(member, outlet.slot(), "room", Moment::default);
    }
    rooms
}

/// Pushes `frames` to every member and prepares the bytes of every send, as a turn does.
fn turn(outlets: &mut Outlets, rooms: &Rooms, frames: &[Frame], dirty: &mut Vec<u32>) -> usize {
    for frame in frames {
        for member in rooms.members("room") {
            let _ = outlets.push_slot(member.outlet, frame);
        }
    }
    dirty.clear();
    outlets.take_dirty(dirty);
    let mut bytes = 0;
    for slot in dirty.iter() {
        let owed = outlets.owed(*slot);
        outlets.batch.prepare(owed);
        bytes += outlets.batch.prepared(owed).len();
        outlets.settle(*slot);
    }
    outlets.batch.clear();
    bytes
}

fn broadcast(c: &mut Criterion) {
    let mut outlets = Outlets::new(1 << 20, MEMBERS as usize);
    let rooms = room(&mut outlets);
    let payload = [b'x'; 128];
    let frames: Vec<Frame> = (0..16).map(|_| Frame::message(&[b"4", &payload], &[])).collect();
    let mut dirty = Vec::new();
    let mut group = c.benchmark_group("broadcast to 5,000 members, per delivery");
    for count in [1, 16] {
        group.throughput(Throughput::Elements(u64::from(MEMBERS) * count as u64));
        group.bench_function(format!("{count} in one turn"), |b| {
            b.iter(|| turn(&mut outlets, &rooms, black_box(&frames[..count]), &mut dirty));
        });
    }
    group.finish();
}

/// One broadcast of some JSON to members who want it plain, compressed once for all, or each for itself.
fn deflated(c: &mut Criterion) {
    let settings = Settings::new(&PerMessageDeflate::default(), 15);
    let shared = Class { deflate: Some(settings), ..Class::default() };
    let each = Class { deflate_context: true, ..shared };
    let rows: Vec<String> = (0..60)
        .map(|i| format!(r#"{{"id":{i},"name":"instrument {}","price":{}.25,"side":"buy"}}"#, i * 37, i * i))
        .collect();
    let text = format!(r#"42["prices",[{}]]"#, rows.join(","));
    for members in [1, 100, 5_000] {
        let mut group = c.benchmark_group(format!("{} bytes of JSON to {members} members", text.len()));
        group.sample_size(10);
        let classes =
            [("plain", Class::default()), ("compressed once", shared), ("compressed for each", each)];
        for (name, class) in classes {
            let mut outlets = Outlets::new(1 << 20, members as usize);
            let (mut rooms, mut dirty) = (Rooms::default(), Vec::new());
            for member in 0..members {
                let outlet = outlets.open(Via::Connection(member));
                assert!(outlets.set_class(outlet, &class));
                rooms.join(member, outlet.slot(), "room", Moment::default);
            }
            group.throughput(Throughput::Elements(u64::from(members)));
            group.bench_function(name, |b| {
                // A new frame each time: an old one has its compressed form already.
                b.iter(|| turn(&mut outlets, &rooms, &[Frame::message(&[text.as_bytes()], &[])], &mut dirty));
            });
        }
        group.finish();
    }
}

fn membership(c: &mut Criterion) {
    let mut outlets = Outlets::new(1 << 20, 0);
    let mut rooms = room(&mut outlets);
    c.bench_function("join and leave a room of 5,000", |b| {
        b.iter(|| {
            rooms.join(MEMBERS, 0, black_box("room"), Moment::default);
            rooms.leave(MEMBERS, "room")
        });
    });
    let names: Vec<String> = (0..10_000).map(|i| format!("room {i}")).collect();
    c.bench_function("leave 10,000 rooms", |b| {
        let joined = || {
            let mut rooms = Rooms::default();
            for name in &names {
                rooms.join(0, 0, name, Moment::default);
            }
            rooms
        };
        b.iter_batched(joined, |mut rooms| rooms.leave_all(0, |_| ()), BatchSize::LargeInput);
    });
    let directory = Directory::default();
    let key = RoomKey { space: 0, room: "room" };
    directory.enter(key, 1);
    c.bench_function("cores of a room", |b| b.iter(|| directory.cores(black_box(key))));
}

criterion_group!(benches, broadcast, deflated, membership);
criterion_main!(benches);
