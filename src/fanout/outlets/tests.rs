use std::time::Duration;

use super::super::Key;
use super::*;

fn text(text: &str) -> Frame {
    Frame::raw(text.to_owned())
}

#[test]
fn a_short_send_keeps_the_rest_in_order() {
    let mut outlets = Outlets::new(1000, 0);
    let id = outlets.open(Via::Connection(0));
    for part in ["abc", "def"] {
        assert_eq!(outlets.push(id, &text(part)), Delivery::Sent);
    }
    outlets.spill(id, 4);
    assert!(!outlets.is_writable(id));
    assert_eq!(outlets.push(id, &text("ghi")), Delivery::Queued);
    let mut out = Vec::new();
    outlets.backlog(id).unwrap().copy_to(&mut out, 100);
    assert_eq!(out, b"efghi");
    assert_eq!(outlets.waiting(id), 5);
}

#[test]
fn the_limit_closes_and_control_frames_are_exempt() {
    let mut outlets = Outlets::new(200, 0);
    let id = outlets.open(Via::Connection(0));
    outlets.block(id);
    // Up to four times the limit, since it may yet take some.
    for _ in 0..limits::OVERDRAFT * 200 / (limits::FRAME_COST_BYTES + 1) + 1 {
        assert_eq!(outlets.push(id, &text("1")), Delivery::Queued);
        outlets.begin_turn();
    }
    assert_eq!(outlets.push_control(id, &text("ping")), Delivery::Queued);
    assert_eq!(outlets.push(id, &text("6")), Delivery::Dropped);
    assert_eq!(outlets.push(id, &text("7")), Delivery::Dropped);
    let mut over = Vec::new();
    outlets.take_overflowed(&mut over);
    assert_eq!(over, [id]);
}

const DEFLATE: Class = Class {
    deflate: Some(Settings { threshold: 20, level: 6, mem_level: 8, window_bits: 15 }),
    deflate_context: false,
    max_waiting: None,
    close_when_over: true,
};
const CONTEXT: Class = Class { deflate_context: true, ..DEFLATE };

fn message(part: &str) -> Frame {
    Frame::message(&[part.repeat(30).as_bytes()], &[])
}

/// The messages in a stream of frames to a client.
fn inflate(mut wire: &[u8], inflater: &mut crate::protocol::ws::deflate::Inflater) -> Vec<String> {
    let mut seen = Vec::new();
    while let [first, len, rest @ ..] = wire {
        let (payload, rest) = rest.split_at(usize::from(*len));
        let text = if first & 0x40 == 0 { payload } else { inflater.message(payload, 1000).unwrap() };
        seen.push(String::from_utf8(text.to_vec()).unwrap());
        wire = rest;
    }
    seen
}

#[test]
fn an_outlet_is_16_bytes() {
    assert_eq!(size_of::<Hot>(), 16);
}

#[test]
fn members_of_a_mixed_room_share_per_form() {
    let mut outlets = Outlets::new(1000, 0);
    let ids: Vec<OutletId> = (0..6).map(|i| outlets.open(Via::Connection(i))).collect();
    for id in ids.iter().skip(1).step_by(2) {
        assert!(outlets.set_class(*id, &DEFLATE));
    }
    for frame in [message("abc"), text("raw"), message("def")] {
        for id in &ids {
            assert_eq!(outlets.push(*id, &frame), Delivery::Sent);
        }
    }
    let owed: Vec<Owed> = ids.iter().map(|id| outlets.owed(*id)).collect();
    assert!(owed[0] == owed[2] && owed[2] == owed[4] && owed[0] != owed[1]);
    assert!(owed[1] == owed[3] && owed[3] == owed[5]);
    assert_eq!(outlets.batch.frames(owed[5]).len(), 3);
    let joined = outlets.batch.joined(owed[3]).to_vec();
    assert!(joined.len() < 50 && joined[0] == 0xc1, "{joined:x?}");
    // A backlog holds the compressed form, whenever it was owed.
    outlets.spill(ids[1], 3);
    assert_eq!(outlets.push(ids[1], &message("abc")), Delivery::Queued);
    let mut out = joined[..3].to_vec();
    outlets.backlog(ids[1]).unwrap().copy_to(&mut out, 1000);
    assert_eq!(out[..joined.len()], joined);
    assert!(out.len() < joined.len() + 20);
    outlets.close(ids[1]);
    let again = outlets.open(Via::Layer);
    assert_eq!(outlets.push(again, &message("abc")), Delivery::Sent);
    assert_eq!(outlets.batch.joined(outlets.owed(again))[0], 0x81);
}

#[test]
fn messages_build_on_each_other_where_context_is_kept() {
    let mut outlets = Outlets::new(10_000, 0);
    let id = outlets.open(Via::Connection(0));
    assert!(outlets.set_class(id, &CONTEXT));
    for part in ["ab", "ab"] {
        assert_eq!(outlets.push(id, &message(part)), Delivery::Sent);
    }
    outlets.spill(id, 0);
    assert_eq!(outlets.push(id, &message("ab")), Delivery::Queued);
    let mut wire = Vec::new();
    outlets.backlog(id).unwrap().copy_to(&mut wire, 1000);
    let mut inflater = crate::protocol::ws::deflate::Inflater::with_context();
    assert_eq!(inflate(&wire, &mut inflater), vec!["ab".repeat(30); 3]);
    assert!(wire.len() < 30, "{}", wire.len());
}

#[test]
fn a_session_that_moves_to_a_compressing_socket_takes_its_class_over() {
    for class in [DEFLATE, CONTEXT] {
        let mut outlets = Outlets::new(10_000, 0);
        let (own, session) = (outlets.open(Via::Connection(0)), outlets.open(Via::Layer));
        assert!(outlets.set_class(own, &class));
        outlets.block(session);
        assert_eq!(outlets.push(session, &message("queued")), Delivery::Queued);
        assert_eq!(outlets.push(own, &message("probe")), Delivery::Sent);
        outlets.put_before(own, session);
        outlets.close(own);
        outlets.redirect(session, Via::Connection(0));
        assert_eq!(outlets.push(session, &message("later")), Delivery::Queued);
        let mut wire = Vec::new();
        outlets.backlog(session).unwrap().copy_to(&mut wire, 1000);
        let mut inflater = match class.deflate_context {
            true => crate::protocol::ws::deflate::Inflater::with_context(),
            false => crate::protocol::ws::deflate::Inflater::alone(),
        };
        let expected = ["probe", "queued", "later"].map(|part| part.repeat(30));
        assert_eq!(inflate(&wire, &mut inflater), expected);
        outlets.backlog(session).unwrap().consume(wire.len());
        outlets.unblock(session);
        assert_eq!(outlets.push(session, &message("and on")), Delivery::Sent);
        let wire = outlets.batch.joined(outlets.owed(session)).to_vec();
        assert_eq!(inflate(&wire, &mut inflater), ["and on".repeat(30)]);
        assert_eq!(wire[0], 0xc1);
    }
}

#[test]
fn a_limit_of_its_own_closes_or_drops() {
    for close_when_over in [true, false] {
        let mut outlets = Outlets::new(1000, 0);
        let id = outlets.open(Via::Connection(0));
        let class = Class { max_waiting: Some(150), close_when_over, ..Class::default() };
        assert!(outlets.set_class(id, &class));
        assert_eq!(outlets.push(id, &text("1234567890")), Delivery::Sent);
        assert_eq!(outlets.push(id, &text("fits: counted is what waits already")), Delivery::Sent);
        if close_when_over {
            assert_eq!(outlets.push(id, &text("not for what came in one turn")), Delivery::Sent);
            outlets.spill(id, 0);
            outlets.begin_turn();
            // More than the limit in one turn is excused, once.
            for _ in 0..2 {
                assert_eq!(outlets.push(id, &text("over")), Delivery::Queued);
            }
        }
        assert_eq!(outlets.push(id, &text("over")), Delivery::Dropped);
        let mut over = Vec::new();
        outlets.take_overflowed(&mut over);
        assert_eq!(over.len(), usize::from(close_when_over));
        if !close_when_over {
            assert_eq!(outlets.push_control(id, &text("pong")), Delivery::Sent);
            outlets.settle(id);
            assert_eq!(outlets.push(id, &text("again")), Delivery::Sent);
        }
    }
}

fn waiting(outlets: &mut Outlets, id: OutletId) -> String {
    let mut out = Vec::new();
    if let Some(backlog) = outlets.backlog(id) {
        backlog.copy_to(&mut out, 10_000);
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn a_policy_is_about_what_waits_and_never_about_what_has_none() {
    for (policy, kept, dropped) in [
        (Policy::DropNewest, "must 1 2 ", Dropped { newest: 2, ..Dropped::default() }),
        (Policy::DropOldest, "must 3 4 ", Dropped { oldest: 2, ..Dropped::default() }),
        (Policy::KeepLatest, "must 3 4 ", Dropped { oldest: 2, ..Dropped::default() }),
        (Policy::Close, "must 1 2 ", Dropped { closed: 1, ..Dropped::default() }),
    ] {
        let mut outlets = Outlets::new(10_000, 0);
        let id = outlets.open(Via::Connection(0));
        let bounds = Backpressure { max_messages: 3, policy, ..Backpressure::default() };
        let tick = |n: u32| text(&format!("{n} ")).bounded(bounds);
        for n in 10..20 {
            assert_eq!(outlets.push(id, &tick(n)), Delivery::Sent, "it leaves at once");
        }
        outlets.settle(id);
        outlets.block(id);
        assert_eq!(outlets.push(id, &text("must ")), Delivery::Queued);
        let last = (1..5).map(|n| {
            outlets.begin_turn();
            outlets.push(id, &tick(n))
        });
        let last = last.last().unwrap();
        assert_eq!(last == Delivery::Queued, dropped.oldest > 0, "{policy:?}");
        assert_eq!(waiting(&mut outlets, id), kept, "{policy:?}");
        assert_eq!(outlets.dropped(), dropped);
        // What the server itself owes is not dropped, and pings go out of turn.
        let taken = if policy == Policy::Close { Delivery::Dropped } else { Delivery::Queued };
        assert_eq!(outlets.push(id, &text("answer ")), taken);
        assert_eq!(waiting(&mut outlets, id).contains("answer"), policy != Policy::Close);
    }
}

#[test]
fn where_only_the_latest_waits_it_waits_at_the_end() {
    let mut outlets = Outlets::new(10_000, 0);
    let id = outlets.open(Via::Connection(0));
    let price = |key: &str, n: u32| text(&format!("{key}{n} ")).latest(crate::fanout::Key::of(&key));
    for n in 0..3 {
        assert_eq!(outlets.push(id, &price("a", n)), Delivery::Sent);
    }
    // The client has taken the first and a part of the second.
    outlets.spill(id, 4);
    for (key, n) in [("b", 3), ("a", 4), ("c", 5), ("b", 6)] {
        assert_eq!(outlets.push(id, &price(key, n)), Delivery::Queued);
    }
    assert_eq!(waiting(&mut outlets, id), "1 a4 c5 b6 ");
    assert_eq!(outlets.dropped(), Dropped { conflated: 2, ..Dropped::default() });
}

#[test]
fn one_turn_with_more_than_the_limit_keeps_the_newest_where_that_is_wanted() {
    let bounds = Backpressure { policy: Policy::DropOldest, ..Backpressure::default() };
    let mut outlets = Outlets::new(2 * (limits::FRAME_COST_BYTES + 2), 0);
    let (socket, session) = (outlets.open(Via::Connection(0)), outlets.open(Via::Layer));
    for n in 0..6 {
        let frame = text(&format!("{n} ")).bounded(bounds);
        assert_ne!(outlets.push(socket, &frame), Delivery::Dropped);
        // A session that polls is answered with what it is owed first.
        assert_eq!(outlets.push(session, &frame) == Delivery::Dropped, n > 2);
    }
    assert_eq!(waiting(&mut outlets, socket), "3 4 5 ");
    let mut gathered = Vec::new();
    outlets.take_gathered(&mut gathered);
    assert_eq!(gathered, [socket]);
}

#[test]
fn volatile_messages_are_counted_where_they_are_dropped() {
    let mut outlets = Outlets::new(1000, 0);
    let id = outlets.open(Via::Layer);
    assert_eq!(outlets.push_volatile(id.slot, &text("a")), Delivery::Sent);
    assert_eq!(outlets.push_volatile(id.slot, &text("b")), Delivery::Dropped);
    assert_eq!(outlets.dropped(), Dropped { volatile: 1, ..Dropped::default() });
}

#[test]
fn what_builds_on_each_other_is_not_dropped() {
    let old = Backpressure { max_messages: 2, policy: Policy::DropOldest, ..Backpressure::default() };
    for (class, kept) in [(DEFLATE, ["c", "d"]), (CONTEXT, ["a", "b"])] {
        let mut outlets = Outlets::new(10_000, 0);
        let id = outlets.open(Via::Connection(0));
        assert!(outlets.set_class(id, &class));
        outlets.block(id);
        for part in ["a", "b", "c", "d"] {
            let _ = outlets.push(id, &message(part).bounded(old));
        }
        let mut wire = Vec::new();
        outlets.backlog(id).unwrap().copy_to(&mut wire, 10_000);
        let mut inflater = match class.deflate_context {
            true => crate::protocol::ws::deflate::Inflater::with_context(),
            false => crate::protocol::ws::deflate::Inflater::alone(),
        };
        assert_eq!(inflate(&wire, &mut inflater), kept.map(|part| part.repeat(30)));
    }
}

#[test]
fn there_are_not_more_classes_than_a_byte_can_name() {
    let mut outlets = Outlets::new(1000, 0);
    let id = outlets.open(Via::Layer);
    let set = |outlets: &mut Outlets, bytes| {
        outlets.set_class(id, &Class { max_waiting: Some(bytes), ..Class::default() })
    };
    assert!((0..255).all(|bytes| set(&mut outlets, bytes)));
    assert!(!set(&mut outlets, 255) && set(&mut outlets, 7) && outlets.set_class(id, &Class::default()));
}

#[test]
fn what_one_outlet_is_owed_goes_before_what_waits_in_another() {
    let mut outlets = Outlets::new(1000, 0);
    let (own, session) = (outlets.open(Via::Connection(0)), outlets.open(Via::Layer));
    for (outlet, part) in [(session, "c"), (own, "ab"), (session, "d")] {
        assert_eq!(outlets.push(outlet, &text(part)), Delivery::Sent);
    }
    outlets.spill(own, 1);
    outlets.put_before(own, session);
    assert_eq!(outlets.push(session, &text("e")), Delivery::Queued);
    let mut out = Vec::new();
    outlets.backlog(session).unwrap().copy_to(&mut out, 100);
    assert_eq!(out, b"bcde");
    assert_eq!(outlets.waiting(session), 4);
}

#[test]
fn a_closed_outlet_takes_nothing_and_its_slot_is_used_again() {
    let mut outlets = Outlets::new(100, 0);
    let old = outlets.open(Via::Layer);
    assert_eq!(outlets.push(old, &text("lost")), Delivery::Sent);
    outlets.close(old);
    let new = outlets.open(Via::Connection(3));
    assert_eq!(old.slot, new.slot);
    assert_eq!(outlets.push(old, &text("late")), Delivery::Dropped);
    assert_eq!(outlets.owed(new), Owed::NOTHING);
    assert_eq!(outlets.via(new), Some(Via::Connection(3)));
}

#[test]
fn dirty_slots_come_in_order_and_once() {
    let mut dirty = Dirty::default();
    for slot in [70_000, 5, 64, 5, 4096] {
        dirty.set(slot);
    }
    let mut out = Vec::new();
    dirty.take(|slot| out.push(slot));
    assert_eq!(out, [5, 64, 4096, 70_000]);
    assert!(dirty.is_empty());
}

#[test]
fn what_is_put_off_comes_in_turn_and_once() {
    let mut outlets = Outlets::new(1000, 0);
    let ids: Vec<OutletId> = (0..70_001).map(|i| outlets.open(Via::Connection(i))).collect();
    let of = |slots: &[usize]| -> Vec<OutletId> { slots.iter().map(|slot| ids[*slot]).collect() };
    let take = |outlets: &mut Outlets, max| {
        let mut out = Vec::new();
        outlets.take_put_off(&mut out, max);
        out
    };
    outlets.put_off(&of(&[70_000, 5, 64, 4096, 65]));
    assert!(outlets.is_dirty());
    assert_eq!(take(&mut outlets, 2), of(&[5, 64]));
    // What comes behind the place that was reached is served first.
    outlets.put_off(&of(&[3, 66, 64]));
    assert_eq!(take(&mut outlets, 4), of(&[65, 66, 4096, 70_000]));
    assert_eq!(take(&mut outlets, 4), of(&[3, 64]));
    assert!(take(&mut outlets, 4).is_empty());
    assert!(!outlets.is_dirty());
}

/// Every verb that takes a handle, with the handle of an outlet that is closed and whose slot another client
/// has.
#[test]
fn a_handle_that_is_void_reaches_nobody() {
    type Verb = fn(&mut Outlets, OutletId, OutletId);
    let verbs: [(&str, Verb); 15] = [
        ("push", |outlets, old, _| assert_eq!(outlets.push(old, &text("x")), Delivery::Dropped)),
        ("push_control", |outlets, old, _| {
            assert_eq!(outlets.push_control(old, &text("x")), Delivery::Dropped)
        }),
        ("settle", |outlets, old, _| outlets.settle(old)),
        ("spill", |outlets, old, _| outlets.spill(old, 2)),
        ("seal", |outlets, old, _| outlets.seal(old, b"a record for another")),
        ("block", |outlets, old, _| outlets.block(old)),
        ("unblock", |outlets, old, _| outlets.unblock(old)),
        ("discard", |outlets, old, _| outlets.discard(old)),
        ("redirect", |outlets, old, _| outlets.redirect(old, Via::Connection(9))),
        ("set_class", |outlets, old, _| assert!(!outlets.set_class(old, &DEFLATE))),
        ("put_before", |outlets, old, other| outlets.put_before(old, other)),
        ("put_before, as the second", |outlets, old, other| outlets.put_before(other, old)),
        ("put_off", |outlets, old, _| outlets.put_off(&[old])),
        ("close", |outlets, old, _| outlets.close(old)),
        ("what asks", |outlets, old, _| {
            assert_eq!((outlets.via(old), outlets.owed(old), outlets.waiting(old)), (None, Owed::NOTHING, 0));
            assert!(outlets.backlog(old).is_none() && !outlets.is_open(old) && !outlets.is_blocked(old));
            assert!(!outlets.is_writable(old) && !outlets.is_dirty_outlet(old));
        }),
    ];
    for blocked in [false, true] {
        for (name, verb) in &verbs {
            let mut outlets = Outlets::new(1000, 0);
            let (old, other) = (outlets.open(Via::Connection(0)), outlets.open(Via::Connection(1)));
            outlets.close(old);
            let new = outlets.open(Via::Connection(2));
            assert_eq!(new.slot, old.slot);
            if blocked {
                outlets.block(new);
            }
            let _ = outlets.push(new, &text("for the new one"));
            verb(&mut outlets, old, other);
            assert!(outlets.is_open(new) && outlets.is_blocked(new) == blocked, "{name}");
            assert_eq!(outlets.via(new), Some(Via::Connection(2)), "{name}");
            assert!(!outlets.has_put_off(), "{name}");
            outlets.block(new);
            assert_eq!(waiting(&mut outlets, new), "for the new one", "{name}");
            assert!(!outlets.is_blocked(other) && outlets.is_open(other), "{name}");
        }
    }
}

#[test]
fn messages_that_grow_in_their_place_stay_within_the_bound() {
    const LIMIT: usize = 100_000;
    let mut outlets = Outlets::new(LIMIT, 0);
    let id = outlets.open(Via::Connection(0));
    outlets.block(id);
    let keyed = |key: u32, bytes: usize| Frame::raw(vec![0; bytes]).latest(Key::of(&key));
    for bytes in [10, 10_000] {
        for key in 0..100 {
            assert_eq!(outlets.push(id, &keyed(key, bytes)), Delivery::Queued);
        }
    }
    let waiting = outlets.waiting(id);
    assert!(waiting <= LIMIT + 10_000, "{waiting}");
    let dropped = outlets.dropped();
    assert_eq!(dropped.messages() as usize + outlets.backlog(id).unwrap().len(), 200, "{dropped:?}");
    // What must not be dropped fills it: the next of a key still takes the place of the one before.
    outlets.discard(id);
    let _ = outlets.push(id, &keyed(1, 10));
    while outlets.waiting(id) <= LIMIT {
        assert_eq!(outlets.push(id, &Frame::raw(vec![0; 30_000])), Delivery::Queued);
    }
    assert_eq!(outlets.push(id, &keyed(1, 20)), Delivery::Queued);
    assert_eq!(outlets.push(id, &keyed(2, 20)), Delivery::Dropped);
}

/// What a client reads of a backlog, up to so many bytes.
fn read(outlets: &mut Outlets, id: OutletId, most: usize) -> usize {
    let Some(backlog) = outlets.backlog(id) else { return 0 };
    let bytes = backlog.bytes().min(most);
    backlog.consume(bytes);
    bytes
}

#[test]
fn one_turn_closes_nobody_and_a_client_that_reads_gets_all_of_it() {
    const LIMIT: usize = 10_000;
    const MESSAGES: usize = 1000;
    for blocked in [false, true] {
        let mut outlets = Outlets::new(LIMIT, 0);
        let id = outlets.open(Via::Connection(0));
        if blocked {
            outlets.block(id);
            assert_eq!(outlets.push(id, &text("something waits")), Delivery::Queued);
            outlets.begin_turn();
        }
        for _ in 0..MESSAGES {
            assert_ne!(outlets.push(id, &message("ab")), Delivery::Dropped);
        }
        outlets.spill(id, 0);
        // While it reads, others say something to it.
        for turn in 0.. {
            if read(&mut outlets, id, 500) == 0 {
                break;
            }
            outlets.begin_turn();
            if turn < 100 && turn % 2 == 0 {
                assert_eq!(outlets.push(id, &text("in the meantime")), Delivery::Queued);
            }
        }
        assert_eq!(outlets.dropped(), Dropped::default());
    }
}

#[test]
fn a_client_that_does_not_read_is_closed_after_one_large_turn_and_its_limit() {
    const LIMIT: usize = 10_000;
    let mut outlets = Outlets::new(LIMIT, 0);
    let id = outlets.open(Via::Connection(0));
    outlets.block(id);
    let mut waiting = Vec::new();
    for _ in 0..4 {
        // Each handler emits ten times the limit, as long as it may.
        let taken = (0..10 * LIMIT / 200)
            .take_while(|_| outlets.push(id, &text(&"x".repeat(200))) == Delivery::Queued);
        let _ = taken.count();
        waiting.push(outlets.waiting(id));
        outlets.begin_turn();
    }
    assert_eq!(waiting[0], 10 * LIMIT);
    assert!(waiting[3] <= (10 + limits::OVERDRAFT) * LIMIT, "{waiting:?}");
    assert_eq!(outlets.dropped().closed, 1);
}

#[test]
fn a_turn_has_a_bound_of_its_own() {
    let mut outlets = Outlets::new(1000, 0);
    let (messages, http) = (outlets.open(Via::Connection(0)), outlets.open(Via::Connection(1)));
    let large = Frame::binary(&vec![0; 1 << 20]);
    let taken = (0..100).filter(|_| outlets.push(messages, &large) == Delivery::Sent).count();
    assert_eq!(taken, limits::TURN_BYTES / (1 << 20) - 1);
    assert_eq!(outlets.dropped(), Dropped { newest: 100 - taken as u64, ..Dropped::default() });
    let large = Frame::raw(vec![0; 1 << 20]);
    while outlets.push(http, &large) == Delivery::Sent {}
    let mut over = Vec::new();
    outlets.take_overflowed(&mut over);
    assert_eq!(over, [http], "a part of a body cannot be left out");
}

#[test]
fn a_client_that_goes_on_taking_may_be_over_its_limit_for_a_while() {
    const LIMIT: usize = 10_000;
    let frame = text(&"x".repeat(1000));
    for via in [Via::Layer, Via::Connection(0)] {
        let mut outlets = Outlets::new(LIMIT, 0);
        let id = outlets.open(via);
        outlets.block(id);
        let owe = |outlets: &mut Outlets| {
            outlets.begin_turn();
            outlets.push(id, &frame) == Delivery::Queued
        };
        assert!(owe(&mut outlets));
        while owe(&mut outlets) {}
        let weight = outlets.backlog(id).unwrap().cost();
        let most = limits::OVERDRAFT * LIMIT;
        assert!(weight > most && weight < most + 2200, "{via:?}: {weight} of {most}");
        assert_eq!(outlets.dropped().closed, 1);
    }
    // One that takes nothing in the time that it has is closed by the next message.
    let mut outlets = Outlets::new(LIMIT, 0);
    let id = outlets.open(Via::Layer);
    outlets.block(id);
    for _ in 0..2 * LIMIT / 1000 {
        outlets.begin_turn();
        assert_eq!(outlets.push(id, &frame), Delivery::Queued);
    }
    for round in 0..3 {
        (0..limits::OVERDRAFT_TICKS).for_each(|_| outlets.tick(limits::STALLED, false));
        if round < 2 {
            assert_eq!(outlets.backlog(id).unwrap().take(1).len(), 1);
        }
        outlets.begin_turn();
        assert_eq!(outlets.push(id, &frame), Delivery::Queued, "it has taken something in time");
    }
    outlets.tick(limits::STALLED, false);
    outlets.begin_turn();
    assert_eq!(outlets.push(id, &frame), Delivery::Dropped);
}

/// Ticks that last as long as a time.
fn wait(outlets: &mut Outlets, time: Duration, short: bool) {
    let ticks = time.as_millis() / limits::TICK.as_millis();
    (0..ticks).for_each(|_| outlets.tick(limits::STALLED, short));
}

fn overflowed(outlets: &mut Outlets) -> Vec<OutletId> {
    let mut over = Vec::new();
    outlets.take_overflowed(&mut over);
    over
}

#[test]
fn a_client_that_takes_nothing_for_long_is_closed_however_little_waits() {
    let mut outlets = Outlets::new(1 << 20, 0);
    let [still, slow, idle, gone] =
        [Via::Connection(0), Via::Layer, Via::Layer, Via::Layer].map(|via| outlets.open(via));
    for id in [still, slow, gone] {
        outlets.block(id);
        let _ = outlets.push(id, &Frame::raw("a few bytes"));
    }
    outlets.block(idle);
    for _ in 0..5 {
        wait(&mut outlets, limits::STALLED / 2, false);
        if let Some(backlog) = outlets.backlog(slow) {
            backlog.consume(1);
        }
        outlets.close(gone);
    }
    // One that reads on and one for which nothing waits stay, however long it takes.
    assert_eq!(overflowed(&mut outlets), [still]);
    assert_eq!(outlets.push(still, &Frame::raw("more")), Delivery::Dropped);
    assert_eq!(outlets.push(slow, &Frame::raw("more")), Delivery::Queued);
    // What comes does not make a client one that reads.
    for _ in 0..130 {
        let _ = outlets.push(slow, &Frame::raw("more"));
        wait(&mut outlets, Duration::from_secs(1), false);
    }
    assert_eq!(overflowed(&mut outlets), [slow]);
}

#[test]
fn while_memory_is_short_less_may_wait() {
    let (second, limit) = (Duration::from_secs(1), 80_000);
    let mut outlets = Outlets::new(limit, 0);
    let [small, large, reads] = [9_000, 30_000, 30_000].map(|bytes| {
        let id = outlets.open(Via::Layer);
        outlets.block(id);
        let _ = outlets.push(id, &Frame::raw(vec![0; bytes]));
        outlets.begin_turn();
        id
    });
    for (short, closed) in [(false, vec![]), (true, vec![large])] {
        for _ in 0..4 {
            wait(&mut outlets, second, short);
            outlets.backlog(reads).unwrap().consume(1);
        }
        assert_eq!(overflowed(&mut outlets), closed);
        // An eighth of the limit is more than what the first has, half of that is less.
        assert_eq!(outlets.is_pressed(small, 0), short);
    }
}
