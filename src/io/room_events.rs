//! Who enters and leaves rooms: the reference's events of the adapter.

use std::cell::RefCell;
use std::rc::Rc;

use super::namespace::{ALL, NspInner, unescape};
use super::parent::ParentNamespace;
use super::{Namespace, Server, Socket, SocketId};
use crate::runtime;

/// A change in a room of a namespace, as [`Namespace::on_room_event`] tells it.
///
/// ```no_run
/// # use sockring::io::{RoomEvent, Server};
/// # fn set_up(io: &Server) {
/// io.on_room_event(|event| match event {
///     RoomEvent::Create { room } => println!("{room} has its first member"),
///     RoomEvent::Join { room, id } => println!("{id} is in {room}"),
///     RoomEvent::Leave { room, id } => println!("{id} has left {room}"),
///     RoomEvent::Delete { room } => println!("{room} is empty"),
/// });
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomEvent {
    /// `create-room`: a room has its first member in this process. Told before its `Join`.
    Create {
        /// The room.
        room: String,
    },
    /// `join-room`: a socket has joined a room, its own included.
    Join {
        /// The room.
        room: String,
        /// The socket.
        id: SocketId,
    },
    /// `leave-room`: a socket has left a room.
    Leave {
        /// The room.
        room: String,
        /// The socket.
        id: SocketId,
    },
    /// `delete-room`: a room has lost its last member in this process. Told behind its `Leave`.
    Delete {
        /// The room.
        room: String,
    },
}

/// The handlers of a namespace for changes in its rooms.
pub(super) type RoomListeners = RefCell<Vec<Rc<dyn Fn(&RoomEvent)>>>;

impl Namespace {
    /// Runs `handler` for each change in a room of this namespace, on the core of the socket that joins or
    /// leaves. While nobody listens it costs nothing.
    #[doc(alias = "create-room")]
    #[doc(alias = "join-room")]
    #[doc(alias = "leave-room")]
    #[doc(alias = "delete-room")]
    pub fn on_room_event(&self, handler: impl Fn(&RoomEvent) + 'static) -> &Self {
        self.0.room_listeners.borrow_mut().push(Rc::new(handler));
        self
    }
}

impl Server {
    /// See [`Namespace::on_room_event`].
    pub fn on_room_event(&self, handler: impl Fn(&RoomEvent) + 'static) -> &Self {
        self.sockets().on_room_event(handler);
        self
    }
}

impl ParentNamespace {
    /// Runs `handler` for each change in a room of a child; see [`Namespace::on_room_event`].
    pub fn on_room_event(&self, handler: impl Fn(&RoomEvent) + 'static) -> &Self {
        self.template().on_room_event(handler);
        self
    }
}

impl NspInner {
    /// Whether somebody wants to know of changes in rooms.
    pub(super) fn rooms_are_watched(&self) -> bool {
        !self.room_listeners.borrow().is_empty()
    }

    /// A socket has joined a room, by the name that the tables know.
    pub(super) fn tell_join(&self, socket: Socket, room: &str, first: bool) {
        if room == ALL || !self.rooms_are_watched() {
            return;
        }
        let Some(id) = self.id(socket) else { return };
        let room = unescape(room).to_owned();
        if first {
            self.tell_rooms(&RoomEvent::Create { room: room.clone() });
        }
        self.tell_rooms(&RoomEvent::Join { room, id });
    }

    /// A socket has left a room, by the name that the tables know.
    pub(super) fn tell_leave(&self, id: &SocketId, room: &str, last: bool) {
        if room == ALL {
            return;
        }
        let room = unescape(room).to_owned();
        self.tell_rooms(&RoomEvent::Leave { room: room.clone(), id: id.clone() });
        if last {
            self.tell_rooms(&RoomEvent::Delete { room });
        }
    }

    fn tell_rooms(&self, event: &RoomEvent) {
        let listeners = self.room_listeners.borrow().clone();
        for listener in listeners {
            runtime::guarded("a listener of rooms", || listener(event));
        }
    }
}
