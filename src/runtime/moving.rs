//! The way of a connection from one core to another: see `Core::hand_over`.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::connection::{ConnectionId, Moving, Parcel, Phase};
use super::core::{Core, Service};
use super::ring::{Kind, Tag, Target};
use crate::fanout::Task;

impl Core {
    /// Everything that was read is with the parcel: the connection leaves for its core.
    pub(super) fn depart(&self, id: ConnectionId) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id) else { return };
        let Some(moving) = connection.moving.take() else { return };
        let Moving { core, parcel } = *moving;
        #[cfg(feature = "tls")]
        let parcel = self.pack_session(id, parcel);
        let target = connection.target;
        let key = self.shared.parcels(core).insert(parcel) as u32;
        match target {
            Target::Direct(file) => {
                // The parcel's key stays with the connection, to take it back if the move fails.
                connection.phase = Phase::Departed;
                let arrival = Tag { kind: Kind::Arrived, generation: 0, slot: key };
                connection.moving = Some(Box::new(Moving { core, parcel: Parcel::placeholder(key) }));
                let ring = self.shared.rings[core].load(Ordering::Acquire);
                drop(connections);
                if !self.try_queue(|r| r.send_descriptor(file, ring, arrival, id.tag(Kind::Moved))) {
                    self.moved(id, -libc::EBUSY);
                }
            }
            Target::Normal(fd) => {
                drop(connections);
                self.take_out(id);
                // SAFETY: the descriptor was the connection's, which is gone. A task that is dropped
                // because its core has ended closes it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                let arrive = Task::new(move || {
                    if let Some(core) = super::current() {
                        core.arrived(key, Target::Normal(fd.into_raw_fd()));
                    }
                });
                if !self.post(core, arrive) {
                    self.shared.parcels(core).try_remove(key as usize);
                }
            }
        }
    }

    /// A direct descriptor has left, or could not.
    pub(super) fn moved(&self, id: ConnectionId, result: i32) {
        let Some(moving) = self.take_moving(id) else { return };
        let key = moving.parcel.placeholder_key();
        if result >= 0 {
            self.take_out(id);
            return;
        }
        let parcel = self.shared.parcels(moving.core).try_remove(key);
        // The kernel had no memory to tell the other core, whose table has the socket all the same. Ours
        // has it too, since the close that was linked to the move was cancelled: the client is let go
        // through it. What is lost is the other table's slot.
        if result == -libc::EOVERFLOW {
            tracing::error!("core {}: a connection was lost on its way to core {}", self.index, moving.core);
            return self.shut_down_departed(id);
        }
        let Some(parcel) = parcel else { return self.remove(id) };
        #[cfg(feature = "tls")]
        let parcel = self.unpack_session(id, parcel);
        if let Some(connection) = self.connections.borrow_mut().get_mut(id) {
            connection.phase = Phase::Open;
        }
        self.arm_receive(id);
        if let Some(service) = self.service() {
            service.returned(id, parcel);
        }
    }

    /// Ends a connection that another core has a descriptor of: closing ours would not.
    fn shut_down_departed(&self, id: ConnectionId) {
        let target = self.connection(id).map(|connection| connection.target);
        match target {
            Some(Target::Direct(file)) => self.queue(|ring| ring.install(file, id.tag(Kind::Installed))),
            Some(Target::Normal(_)) | None => self.remove(id),
        }
    }

    fn take_moving(&self, id: ConnectionId) -> Option<Box<Moving>> {
        self.connections.borrow_mut().get_mut(id)?.moving.take()
    }

    /// A connection has come from another core.
    pub(super) fn arrived(&self, key: u32, target: Target) {
        let parcel = self.shared.parcels(self.index).try_remove(key as usize);
        let (Some(parcel), Some(service)) = (parcel, self.service()) else {
            return self.queue(|ring| ring.close(target));
        };
        self.counters.moved.add(1);
        self.land(target, parcel, &service);
    }

    /// Takes in a connection that somebody else has read from: another core, or another server.
    pub(super) fn land(&self, target: Target, parcel: Parcel, service: &Rc<dyn Service>) {
        let id = self.admit(target, parcel.peer, parcel.listener);
        #[cfg(feature = "tls")]
        let parcel = self.unpack_session(id, parcel);
        // What the parcel holds is fed first; at the end of the turn comes what the socket holds.
        self.want_receive(id);
        self.step(id, "the arrival of a connection", || service.arrived(id, parcel));
    }
}

impl Parcel {
    /// Stands in for a parcel that lies in the other core's mailbox.
    pub(super) fn placeholder(key: u32) -> Self {
        Self::new(Vec::new(), None, 0, Box::new(key))
    }

    fn placeholder_key(&self) -> usize {
        self.note.downcast_ref::<u32>().map_or(usize::MAX, |key| *key as usize)
    }
}
