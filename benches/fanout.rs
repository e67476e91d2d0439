//! What a broadcast costs before the kernel sees it: noting what members are owed, and joining it once.
//!
//! `cargo bench --bench fanout`. A send costs some 5,000 ns; what is measured here must vanish beside it.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sockring::fanout::{
    Backlog, Backpressure, Class, Directory, Frame, Key, Mesh, Moment, OutletId, Outlets, Policy, Queue,
    RoomKey, Rooms, Task, Via,
};
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
fn turn(outlets: &mut Outlets, rooms: &Rooms, frames: &[Frame], dirty: &mut Vec<OutletId>) -> usize {
    for frame in frames {
        for member in rooms.members("room") {
            let _ = outlets.push_slot(member.outlet, frame);
        }
    }
    dirty.clear();
    outlets.take_dirty(dirty);
    let mut bytes = 0;
    for id in dirty.iter() {
        let owed = outlets.owed(*id);
        outlets.batch.prepare(owed);
        bytes += outlets.batch.prepared(owed).len();
        outlets.settle(*id);
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

/// Some of many sockets are told something: what a turn costs beside the sends.
fn dirty(c: &mut Criterion) {
    const OUTLETS: u32 = 65_536;
    let mut outlets = Outlets::new(1 << 20, OUTLETS as usize);
    let slots: Vec<u32> = (0..OUTLETS).map(|i| outlets.open(Via::Connection(i)).slot()).collect();
    let frame = Frame::message(&[b"4", &[b'x'; 128]], &[]);
    let mut group = c.benchmark_group("a turn with so many dirty of 65,536, per outlet");
    for count in [1, 100, 10_000] {
        let some: Vec<u32> =
            slots.iter().copied().step_by((OUTLETS / count) as usize).take(count as usize).collect();
        let mut dirty = Vec::new();
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(count.to_string(), |b| {
            b.iter(|| {
                for slot in &some {
                    let _ = outlets.push_slot(*slot, black_box(&frame));
                }
                dirty.clear();
                outlets.take_dirty(&mut dirty);
                for id in &dirty {
                    let owed = outlets.owed(*id);
                    outlets.batch.prepare(owed);
                    outlets.settle(*id);
                }
                outlets.batch.clear();
            });
        });
    }
    group.finish();
}

/// What waits for one slow client.
fn backlog(c: &mut Criterion) {
    const WAITING: u32 = 1000;
    let old = Backpressure { policy: Policy::DropOldest, ..Backpressure::default() };
    let frame = |n: u32| Frame::message(&[b"4", &[b'x'; 128]], &[]).latest(Key::of(&n));
    let plain = Frame::message(&[b"4", &[b'x'; 128]], &[]);
    let oldest = plain.clone().bounded(old);
    let keyed: Vec<Frame> = (0..WAITING).map(frame).collect();
    c.bench_function("a frame waits and leaves", |b| {
        let mut backlog = Backlog::default();
        b.iter(|| {
            backlog.push(black_box(&plain).clone());
            backlog.consume(plain.wire().len());
        });
    });
    c.bench_function("a frame waits and the oldest of 1,000 is dropped", |b| {
        let mut backlog = Backlog::default();
        (0..WAITING).for_each(|_| backlog.push(oldest.clone()));
        b.iter(|| {
            backlog.push(black_box(&oldest).clone());
            backlog.drop_oldest()
        });
    });
    c.bench_function("a frame takes the place of one of 1,000 keys", |b| {
        let mut backlog = Backlog::default();
        keyed.iter().for_each(|frame| backlog.push(frame.clone()));
        let mut next = (0..WAITING).cycle();
        b.iter(|| {
            let n = next.next().unwrap_or(0);
            let dropped = backlog.drop_key(Key::of(&n));
            backlog.push(keyed[n as usize].clone());
            dropped
        });
    });
}

/// A task for another core, without the way to it: the lock and the queue.
fn mesh(c: &mut Criterion) {
    let (mesh, mut queue) = (Mesh::new(2), Queue::default());
    for count in [1, 100] {
        c.bench_function(&format!("{count} tasks in one post to another core"), |b| {
            let mut outgoing = Queue::default();
            b.iter(|| {
                for _ in 0..count {
                    let _ = outgoing.push(Task::new(|| ()));
                }
                mesh.post_all(1, &mut outgoing);
                mesh.take(1, &mut queue);
                queue.drain().for_each(Task::run);
            });
        });
    }
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
    let members =
        |rooms: &Rooms| rooms.members("room").iter().map(|member| u64::from(member.outlet)).sum::<u64>();
    c.bench_function("walk a room of 5,000", |b| b.iter(|| members(black_box(&rooms))));
    let mut crowded = Rooms::default();
    let many: Vec<String> = (0..10_000).map(|i| format!("room {i}")).collect();
    for member in 0..100_000_u32 {
        for i in 0..10 {
            let room = (member as usize * 7 + i * 997) % many.len();
            crowded.join(member, member, &many[room], Moment::default);
        }
    }
    c.bench_function("join and leave a room beside a million memberships", |b| {
        let mut member = 0;
        b.iter(|| {
            member = (member + 7919) % 100_000;
            crowded.join(member, member, "another", Moment::default);
            crowded.leave(member, "another")
        });
    });
    drop(crowded);
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
    c.bench_function("a room's first and last member on a core", |b| {
        b.iter(|| {
            directory.enter(key, 0);
            directory.exit(key, 0);
        });
    });
}

criterion_group!(benches, broadcast, dirty, backlog, membership, mesh, deflated);
criterion_main!(benches);
