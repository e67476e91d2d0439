//! What no kernel can be made to do on demand: answers that are put into its mouth.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
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
