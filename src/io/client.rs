//! One connection's packets: which namespaces it has joined, and what it says to each.

use std::ops::Deref;
use std::rc::Rc;
use std::slice;

use super::namespace::NspInner;
use super::server::Inner;
use super::{DisconnectReason, Socket, recovery};
use crate::engine::{self, CloseReason, Message};
use crate::protocol::Shown;
use crate::protocol::query::Query;
use crate::protocol::sio::{Body, Decoder, Packet, Value};
use crate::runtime;
use crate::time::{Millis, millis};

/// One connection. Its place in its table says which.
#[derive(Default)]
pub(super) struct Client {
    /// Tells its session from others that had the slot.
    pub(super) generation: u32,
    decoder: Decoder,
    /// Whether it speaks Socket.IO v2.
    v2: bool,
    /// The sockets of its namespaces, those included whose middlewares still run.
    pub(super) sockets: Sockets,
    /// How many namespaces it has asked for about which parents still decide.
    pub(super) asking: u16,
    /// How often it has asked for a namespace again before its middlewares had decided.
    superseded: u8,
}

// There is one for each connection.
const _: () = assert!(size_of::<Option<Client>>() <= 32);

/// The sockets of one client: nearly always one.
#[derive(Clone, Default)]
pub(super) enum Sockets {
    #[default]
    None,
    One(Socket),
    #[allow(clippy::box_collection, reason = "one word")]
    Several(Box<Vec<Socket>>),
}

impl Deref for Sockets {
    type Target = [Socket];

    fn deref(&self) -> &[Socket] {
        match self {
            Self::None => &[],
            Self::One(socket) => slice::from_ref(socket),
            Self::Several(sockets) => sockets,
        }
    }
}

impl Sockets {
    fn push(&mut self, socket: Socket) {
        match self {
            Self::None => *self = Self::One(socket),
            Self::One(first) => *self = Self::Several(Box::new(vec![*first, socket])),
            Self::Several(sockets) => sockets.push(socket),
        }
    }

    pub(super) fn remove(&mut self, socket: Socket) {
        match self {
            Self::One(only) if *only == socket => *self = Self::None,
            Self::None | Self::One(_) => {}
            Self::Several(sockets) => sockets.retain(|known| *known != socket),
        }
    }
}

impl Client {
    /// Whether it has as many namespaces as it may.
    pub(super) fn is_full(&self) -> bool {
        self.sockets.len() + usize::from(self.asking) >= NAMESPACES_PER_CLIENT
    }
}

/// Namespaces that one connection may have joined. More than any application has; without a limit, one
/// connection could make as many sockets as it has bandwidth for.
const NAMESPACES_PER_CLIENT: usize = 100;

/// Clients of which it is not looked whether they have joined a namespace.
pub(super) const UNJOINED_MIN: usize = 256;

/// How often one connection may ask again before the middlewares have decided: each leaves a middleware
/// behind that still runs.
const SUPERSEDED_MAX: u8 = 100;

impl Inner {
    pub(super) fn client_connected(&self, conn: engine::Socket) {
        let deadline = self.core.now().saturating_add(millis(self.options.connect_timeout));
        let v2 = conn.protocol() == Some(3);
        let client =
            Client { generation: conn.generation(), decoder: Decoder::new(), v2, ..Client::default() };
        if conn.server == self.own.get() {
            let mut clients = self.clients.borrow_mut();
            let slot = conn.slot as usize;
            if clients.len() <= slot {
                clients.resize_with(slot + 1, || None);
            }
            clients[slot] = Some(client);
        } else {
            self.guests.borrow_mut().insert(conn, client);
        }
        self.expect_join(deadline, conn);
        if v2 && !self.connect(conn, &self.main(), None) {
            conn.close();
        }
    }

    /// Runs `f` on a connection's client.
    pub(super) fn client<T>(&self, conn: engine::Socket, f: impl FnOnce(&mut Client) -> T) -> Option<T> {
        if conn.server != self.own.get() {
            return self.guests.borrow_mut().get_mut(&conn).map(f);
        }
        let mut clients = self.clients.borrow_mut();
        let client = clients.get_mut(conn.slot as usize)?.as_mut()?;
        (client.generation == conn.generation()).then(|| f(client))
    }

    /// Remembers until when a client must have joined a namespace.
    fn expect_join(&self, deadline: Millis, conn: engine::Socket) {
        let mut unjoined = self.unjoined.borrow_mut();
        // Most join in the next moment. They are forgotten when there is no more room, and room is made for
        // twice as many as are left, so that this costs each little.
        if unjoined.len() >= self.unjoined_max.get() {
            unjoined.retain(|(_, conn)| self.client(*conn, |client| client.sockets.is_empty()) == Some(true));
            self.unjoined_max.set(UNJOINED_MIN.max(unjoined.len() * 2));
        }
        unjoined.push_back((deadline, conn));
    }

    pub(super) fn connect_timed_out(&self, conn: engine::Socket) {
        if self.client(conn, |client| client.sockets.is_empty()) == Some(true) {
            tracing::debug!("a client has joined no namespace in time");
            conn.close();
        }
    }

    pub(super) fn client_closed(&self, conn: engine::Socket, reason: CloseReason, details: &str) {
        self.incoming.forget(conn);
        self.announced.borrow_mut().remove(&conn);
        let client = if conn.server != self.own.get() {
            self.guests.borrow_mut().remove(&conn)
        } else {
            let mut clients = self.clients.borrow_mut();
            match clients.get_mut(conn.slot as usize) {
                Some(slot) if slot.as_ref().is_some_and(|client| client.generation == conn.generation()) => {
                    slot.take()
                }
                _ => None,
            }
        };
        for &socket in &*client.map(|client| client.sockets).unwrap_or_default() {
            if let Some(nsp) = self.namespace_at(socket.nsp) {
                nsp.leave(socket, reason.into(), details);
            }
        }
        self.unfinished.end(conn);
    }

    /// A client has taken everything that waited for it.
    pub(super) fn client_drained(&self, conn: engine::Socket) {
        let sockets = self.client(conn, |client| client.sockets.clone()).unwrap_or_default();
        for &socket in &*sockets {
            let Some(nsp) = self.namespace_at(socket.nsp) else { continue };
            let handlers = nsp.on_drain.borrow().clone();
            for handler in handlers.into_iter().filter(|_| nsp.is_connected(socket)) {
                runtime::guarded("a handler of drain", || handler(socket));
            }
        }
    }

    pub(super) fn client_message(&self, conn: engine::Socket, message: Message<'_>) {
        // The decoder leaves the table for the call: a handler may look at its own client.
        let Some(mut decoder) = self.client(conn, |client| std::mem::take(&mut client.decoder)) else {
            return;
        };
        let limits = &self.options.packet;
        let was_idle = decoder.is_idle();
        let decoded = self.incoming.decode(&self.registry.wire, conn, message, &mut decoder, limits);
        self.note_attachments(conn, was_idle, decoder.is_idle());
        self.client(conn, |client| client.decoder = decoder);
        match decoded {
            Ok(Some(packet)) => {
                if !self.packet(conn, packet) {
                    tracing::debug!("a client is closed: its packet does not fit the state of its namespace");
                    conn.close();
                }
            }
            Ok(None) => {}
            Err(failure) => {
                tracing::debug!("a client is closed: {}", Shown(&failure.to_string()));
                let sockets = self.client(conn, |client| client.sockets.clone()).unwrap_or_default();
                for &socket in &*sockets {
                    if let Some(nsp) = self.namespace_at(socket.nsp) {
                        nsp.failed(socket, &failure);
                    }
                }
                conn.close();
            }
        }
    }

    /// Notes whether a client still owes attachments of a packet, and until when.
    fn note_attachments(&self, conn: engine::Socket, was_idle: bool, is_idle: bool) {
        if !is_idle {
            let deadline = self.core.now().saturating_add(millis(self.options.attachment_timeout));
            self.announced.borrow_mut().insert(conn, deadline);
        } else if !was_idle {
            self.announced.borrow_mut().remove(&conn);
        }
    }

    /// Closes the clients whose attachments do not come. One that has to read first is given more time:
    /// nothing is read from it.
    pub(super) fn expire_attachments(&self, now: Millis) {
        let late = |(_, deadline): &(&engine::Socket, &Millis)| **deadline <= now;
        let late: Vec<engine::Socket> = {
            let announced = self.announced.borrow();
            announced.iter().filter(late).map(|(conn, _)| *conn).collect()
        };
        for conn in late {
            if conn.buffered() > 0 {
                self.note_attachments(conn, false, false);
            } else {
                tracing::debug!("a client is closed: an attachment that it has announced does not come");
                conn.fail("an attachment does not come");
            }
        }
    }

    /// Handles a packet; `false` when the client has broken the protocol.
    fn packet(&self, conn: engine::Socket, packet: Packet) -> bool {
        let Packet { nsp: name, id, body, query } = packet;
        if matches!(body, Body::Connect(_) | Body::Event { .. }) && self.is_overburdened(conn) {
            tracing::debug!("too many events of a client wait for their handlers");
            return false;
        }
        let v2 = self.client(conn, |client| client.v2) == Some(true);
        // Only clients of Socket.IO v2 send a query with the name: for all others it is an unknown name.
        let nsp = if query.is_none() || v2 { self.namespace(&name) } else { None };
        if let Body::Connect(auth) = body {
            let auth = match query {
                Some(query) if v2 => Some(auth_of(&query)),
                Some(query) => {
                    self.refuse_namespace(conn, &format!("{name}?{query}"));
                    return true;
                }
                None if v2 => None,
                None => auth,
            };
            return match nsp {
                Some(nsp) => self.connect(conn, &nsp, auth),
                None => self.connect_dynamic(conn, name, auth),
            };
        }
        let Some(nsp) = nsp else { return false };
        let joined = |client: &mut Client| client.sockets.iter().copied().find(|s| s.nsp == nsp.index);
        let Some(socket) = self.client(conn, joined).flatten().filter(|s| nsp.is_connected(*s)) else {
            return false;
        };
        match body {
            Body::Event { name, args } => nsp.event(socket, &name, &args, id),
            Body::Ack(args) => {
                if let Some(id) = id {
                    nsp.acknowledged(socket, id, args);
                }
            }
            Body::Disconnect => {
                self.client(conn, |client| client.sockets.remove(socket));
                nsp.leave(socket, DisconnectReason::ClientNamespaceDisconnect, "");
            }
            Body::Connect(_) | Body::ConnectError(_) => return false,
        }
        true
    }

    /// A client wants to join a namespace: its middlewares decide. `false`: it has joined already. If an
    /// earlier wish is not decided yet (a user who clicks twice), the later one counts.
    pub(super) fn connect(&self, conn: engine::Socket, nsp: &Rc<NspInner>, auth: Option<Value>) -> bool {
        let earlier = |client: &mut Client| client.sockets.iter().copied().find(|s| s.nsp == nsp.index);
        let earlier = self.client(conn, earlier).flatten();
        let known = self.client(conn, |client| match earlier {
            Some(earlier) => {
                client.superseded = client.superseded.saturating_add(1);
                !nsp.is_connecting(earlier) || client.superseded > SUPERSEDED_MAX
            }
            None => client.is_full(),
        });
        if known != Some(false) {
            return false;
        }
        let Some(random) = self.ids.borrow_mut().take() else { return false };
        let Some(request) = conn.request() else { return true };
        let claim = nsp.recovery.as_ref().and_then(|_| recovery::claim(auth.as_ref()));
        let Some(socket) = nsp.admit(conn, random, request, auth) else { return true };
        self.client(conn, |client| {
            earlier.into_iter().for_each(|earlier| client.sockets.remove(earlier));
            client.sockets.push(socket);
        });
        if let Some(earlier) = earlier {
            nsp.leave(earlier, DisconnectReason::ClientNamespaceDisconnect, "");
        }
        match claim {
            Some((pid, offset)) => nsp.recover(socket, pid, offset),
            None => nsp.run_middlewares(socket),
        }
        true
    }
}

/// The query behind a namespace's name, as an auth payload. Of a key that is repeated the last value counts.
fn auth_of(query: &str) -> Value {
    let mut auth: Vec<(String, Value)> = Vec::new();
    for (key, value) in Query::parse(query).iter() {
        match auth.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = Value::from(value),
            None => auth.push((key.to_owned(), Value::from(value))),
        }
    }
    Value::Object(auth)
}
