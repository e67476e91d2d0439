//! What no kernel can be made to do on demand: answers that are put into its mouth.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::fanout::Frame;
use crate::runtime::adopt::Admission;
use crate::runtime::connection::{Moving, Parcel};
use crate::runtime::core::{Setup, Shared};
use crate::runtime::memory::Memory;
use crate::runtime::ring::Rig;

/// A core of two, without a worker around it.
fn core(direct: bool) -> Rc<Core> {
    Core::new(Setup {
        index: 0,
        shared: Arc::new(Shared::new(2, Admission::new(2, 64, 0), Memory::default())),
        rig: Rig::new(direct.then_some(16)).unwrap(),
        capacity: 8,
        connections_per_address: 0,
        direct,
        backpressure_bytes: 1 << 20,
        send_slice: Duration::ZERO,
        shutdown_timeout: Duration::from_secs(1),
        epoch: Instant::now(),
        listeners: Vec::new(),
    })
}

#[test]
fn a_connection_that_is_lost_on_its_way_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let core = core(true);
    core.ring.borrow_mut().insert_direct(3, accepted.as_raw_fd());
    // `accepted` stands for the descriptor in the other core's table.
    let id = core.admit(Target::Direct(3), None, 0);
    let key = core.shared.parcels(1).insert(Parcel::placeholder(0)) as u32;
    {
        let mut connections = core.connections.borrow_mut();
        let connection = connections.get_mut(id).unwrap();
        connection.phase = Phase::Departed;
        connection.moving = Some(Box::new(Moving { core: 1, parcel: Parcel::placeholder(key) }));
    }
    core.moved(id, -libc::EOVERFLOW);
    let mut scratch = Scratch::default();
    for _ in 0..3 {
        core.turn(&mut scratch).unwrap();
    }
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "the client is told");
    assert!(core.connections.borrow().is_empty() && core.shared.parcels(1).is_empty());
}

/// A session goes over from one connection to another: what it was owed leaves over the first, and the first
/// is closed without taking what the second carries with it.
#[test]
fn a_session_is_carried_by_one_connection_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let core = core(false);
    let connect = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        (client, core.admit(Target::Normal(accepted.into_raw_fd()), None, 0))
    };
    let ((mut first, old), (mut second, new)) = (connect(), connect());
    let session = core.outlet(old).unwrap();
    let _ = core.push(session, &Frame::raw("for the first"));
    assert_eq!(core.detach(old), Some(session));
    core.close(old);
    core.carry(new, session);
    let _ = core.push(session, &Frame::raw("for the second"));
    let mut scratch = Scratch::default();
    for _ in 0..3 {
        core.turn(&mut scratch).unwrap();
    }
    let mut said = String::new();
    first.read_to_string(&mut said).unwrap();
    assert_eq!(said, "for the first");
    assert_eq!((core.outlet(old), core.outlet(new)), (None, Some(session)));
    // The slot of the first is the next client's, and the session is still the second's.
    let (mut third, stranger) = connect();
    let _ = core.send(stranger, &Frame::raw("for the third"));
    core.abort(new);
    for _ in 0..3 {
        core.turn(&mut scratch).unwrap();
    }
    said.clear();
    second.read_to_string(&mut said).unwrap();
    assert_eq!(said, "for the second");
    core.abort(stranger);
    core.turn(&mut scratch).unwrap();
    said.clear();
    third.read_to_string(&mut said).unwrap();
    assert_eq!(said, "for the third");
}

#[test]
#[cfg(debug_assertions)]
#[should_panic = "two connections own one outlet"]
fn two_connections_that_own_one_outlet_are_told_of() {
    let core = core(false);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admit = || {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        core.admit(Target::Normal(listener.accept().unwrap().0.into_raw_fd()), None, 0)
    };
    let (old, new) = (admit(), admit());
    core.carry(new, core.outlet(old).unwrap());
}
