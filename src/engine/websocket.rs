//! The WebSocket transport, and the change to it (engine.io-protocol v4, "WebSocket" and "Upgrade").

use std::borrow::Cow;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use super::admission::RETRY_AFTER;
use super::headers::Headers;
use super::middleware::Way;
use super::server::{Inner, Link};
use super::translate;
use super::upgrade::Step;
use super::verify::{BadRequest, Refusal};
use super::{CloseReason, Socket, Transport};
use crate::app::{self, Behavior, Closed, Request, Upgrade, WebSocket};
use crate::fanout::Frame;
use crate::protocol::eio::{Dialect, EioError, Packet, Revision, decode_text, v3};
use crate::protocol::ws::handshake::offered_protocols;

/// What a WebSocket of the engine carries: its word, which costs a session no allocation.
#[derive(Clone, Copy)]
pub(super) struct Carrier {
    role: Role,
    /// How its client speaks through it.
    dialect: Dialect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A session that is about to open.
    New,
    /// A session.
    Session(Socket),
    /// It is about to take a session over.
    Probe(Socket),
    /// Nothing any more.
    Spent,
}

impl Carrier {
    /// Slot (24 bits, as in an id), role and dialect, generation (32).
    fn word(self) -> u64 {
        let (role, socket) = match self.role {
            Role::New => (0, None),
            Role::Session(socket) => (1, Some(socket)),
            Role::Probe(socket) => (2, Some(socket)),
            Role::Spent => (3, None),
        };
        let dialect =
            u64::from(self.dialect.revision == Revision::V3) << 2 | u64::from(self.dialect.base64) << 3;
        let handle = socket.map_or(0, |s| u64::from(s.slot) << 40 | u64::from(s.generation));
        handle | (role | dialect) << 32
    }

    fn read(word: u64, server: u16) -> Self {
        let bits = word >> 32;
        let (slot, generation) = ((word >> 40) as u32, word as u32);
        let socket = || Socket { server, slot, generation, local: PhantomData };
        let role = match bits & 3 {
            0 => Role::New,
            1 => Role::Session(socket()),
            2 => Role::Probe(socket()),
            _ => Role::Spent,
        };
        let revision = if bits & 4 == 0 { Revision::V4 } else { Revision::V3 };
        Self { role, dialect: Dialect { revision, base64: bits & 8 != 0 } }
    }
}

pub(super) fn behavior(server: &Rc<Inner>) -> Behavior<Carrier> {
    let on = || server.clone();
    let (upgrade, open, message, drain, close, waiting) = (on(), on(), on(), on(), on(), on());
    let behavior = Behavior::new(move |request, handshake| upgrade.websocket_request(request, handshake))
        .open(move |ws| open.websocket_open(ws))
        .message(move |ws, data| message.websocket_message(ws, data))
        .drain(move |ws| {
            if let Some(Role::Session(socket)) = drain.role(ws)
                && drain.refill(socket)
            {
                drain.drained(socket);
            }
        })
        .close(move |ws, closed| close.websocket_close(ws, closed))
        .elsewhere(move |_, word| waiting.waits_untranslated(word))
        .max_message_bytes(server.options.max_http_buffer_size)
        // Sessions have a heartbeat of their own.
        .idle_timeout(Duration::ZERO)
        // As the reference, whose close frames have a code alone.
        .without_reasons();
    match server.options.per_message_deflate {
        Some(deflate) => behavior.per_message_deflate(deflate),
        None => behavior,
    }
}

impl Inner {
    /// Bytes that wait in the outlet of a session whose frames are translated.
    fn waits_untranslated(&self, word: u64) -> usize {
        let carrier = Carrier::read(word, self.index);
        match carrier.role {
            Role::Session(socket) if carrier.dialect != Dialect::default() => {
                let outlet = self.with(socket, |entry| entry.outlet);
                outlet.map_or(0, |outlet| self.core.outlets().waiting(outlet))
            }
            _ => 0,
        }
    }

    fn carrier(&self, ws: WebSocket<Carrier>) -> Option<Carrier> {
        ws.word().map(|word| Carrier::read(word, self.index))
    }

    fn role(&self, ws: WebSocket<Carrier>) -> Option<Role> {
        self.carrier(ws).map(|carrier| carrier.role)
    }

    fn set_role(&self, ws: WebSocket<Carrier>, role: Role) {
        if let Some(carrier) = self.carrier(ws) {
            ws.set_word(Carrier { role, ..carrier }.word());
        }
    }

    fn websocket_request(self: &Rc<Self>, request: Request, handshake: Upgrade<Carrier>) {
        if let Some(core) = self.find(request.query()) {
            return handshake.hand_over(core);
        }
        let mut headers = Headers::default();
        if let Some(cors) = &self.options.cors {
            // As the reference does, though no browser looks at them. A preflight is no handshake.
            let _ = cors.answer(&request, &mut headers);
        }
        if let Some(refusal) = self.foreign(&request) {
            return self.refuse_upgrade(&request, headers.upgrade(handshake), &refusal);
        }
        self.clone().pass(request, Way::WebSocket(handshake), headers, 0);
    }

    /// A handshake that has passed the middlewares, with the headers that its answer has by now.
    pub(super) fn serve_upgrade(
        self: &Rc<Self>,
        request: Request,
        handshake: Upgrade<Carrier>,
        headers: Headers,
    ) {
        let dialect = translate::dialect(&request);
        let handshake = self.with_protocol(&request, handshake);
        match self.verify_request(&request, true) {
            Err(refusal) => self.refuse_upgrade(&request, headers.upgrade(handshake), &refusal),
            Ok(Some(socket)) if self.options.allow_upgrades => {
                let handshake = self.with_upgrade_headers(&request, handshake, headers, false);
                handshake.accept_word(Carrier { role: Role::Probe(socket), dialect }.word());
            }
            Ok(Some(_)) => {
                let refusal = Refusal::BadRequest(BadRequest::TransportHandshake);
                self.refuse_upgrade(&request, headers.upgrade(handshake), &refusal);
            }
            Ok(None) if self.is_closed() => headers.upgrade(handshake).refuse(503, ""),
            Ok(None) if !self.has_place(Transport::WebSocket) => {
                headers.upgrade(handshake).header(RETRY_AFTER.0, RETRY_AFTER.1).refuse(503, "");
            }
            Ok(None) => {
                let server = self.clone();
                self.admit(request.clone(), move |admitted| match admitted {
                    Ok(_) if !server.make_place(Transport::WebSocket) => {
                        headers.upgrade(handshake).header(RETRY_AFTER.0, RETRY_AFTER.1).refuse(503, "");
                    }
                    Ok(name) => {
                        let handshake = server.with_upgrade_headers(&request, handshake, headers, true);
                        server.opening.replace(Some((request, name)));
                        handshake.accept_word(Carrier { role: Role::New, dialect }.word());
                        // Its client may have gone.
                        server.opening.take();
                    }
                    Err(refusal) => {
                        server.refuse_upgrade(&request, headers.upgrade(handshake), &refusal);
                    }
                });
            }
        }
    }

    /// Chooses the subprotocol of a WebSocket. Without one a client that offers any gives up.
    fn with_protocol(&self, request: &Request, handshake: Upgrade<Carrier>) -> Upgrade<Carrier> {
        let mut offered = offered_protocols(request.headers()).peekable();
        let chosen = match &self.options.handle_protocols {
            Some(choose) if offered.peek().is_some() => {
                let offered: Vec<&str> = offered.collect();
                choose(&offered, request).filter(|chosen| offered.contains(&chosen.as_str()))
            }
            _ => offered.next().map(str::to_owned),
        };
        match chosen {
            Some(chosen) => handshake.protocol(chosen),
            None => handshake,
        }
    }

    /// The headers of a 101, which hooks may change.
    fn with_upgrade_headers(
        &self,
        request: &Request,
        handshake: Upgrade<Carrier>,
        mut headers: Headers,
        opens: bool,
    ) -> Upgrade<Carrier> {
        if opens {
            self.hooks.each(|hooks| &hooks.initial_headers, |hook| hook(&mut headers, request));
        }
        self.hooks.each(|hooks| &hooks.headers, |hook| hook(&mut headers, request));
        headers.upgrade(handshake)
    }

    pub(super) fn refuse_upgrade(&self, request: &Request, handshake: Upgrade<Carrier>, refusal: &Refusal) {
        self.refused(request, refusal);
        handshake.refuse(refusal.upgrade_status(), refusal.answer().to_owned());
    }

    fn websocket_open(&self, ws: WebSocket<Carrier>) {
        let (Some(carrier), Some(outlet)) = (self.carrier(ws), ws.outlet()) else { return };
        match carrier.role {
            Role::New => {
                let Some((request, name)) = self.opening.take() else { return };
                let link = Link::WebSocket(ws);
                let plain = carrier.dialect == Dialect::default();
                let outlet = if plain { outlet } else { self.core.open_outlet() };
                let Some(socket) = self.open(request, Transport::WebSocket, link, outlet, name) else {
                    if !plain {
                        self.core.close_outlet(outlet);
                    }
                    return ws.close(1013, "try again later");
                };
                self.set_role(ws, Role::Session(socket));
                for frame in self.first_frames(socket) {
                    let _ = self.core.push(outlet, &frame);
                }
                self.flushing(socket);
                self.opened(socket);
            }
            Role::Probe(socket) => {
                let timeout = self.options.upgrade_timeout.as_millis() as u64;
                let now = self.core.now();
                self.goes_on(socket);
                let begun = self.with(socket, |entry| {
                    (entry.session.upgrade().begin(now, timeout), entry.session.deadline())
                });
                match begun {
                    Some((true, deadline)) => {
                        self.probes.borrow_mut().insert(socket, ws);
                        self.set_deadline(socket.slot, deadline);
                    }
                    _ => {
                        self.set_role(ws, Role::Spent);
                        ws.close(1005, "");
                    }
                }
            }
            Role::Session(_) | Role::Spent => {}
        }
    }

    fn websocket_message(&self, ws: WebSocket<Carrier>, message: app::Message<'_>) {
        let Some(carrier) = self.carrier(ws) else { return };
        match (carrier.role, decode(carrier.dialect.revision, message)) {
            (Role::Session(socket), Ok(packet)) => {
                self.packet(socket, &packet);
            }
            (Role::Session(socket), Err(error)) => {
                tracing::debug!("a WebSocket session is closed: {error}");
                self.close(socket, CloseReason::ParseError, &error.to_string());
            }
            (Role::Probe(socket), Ok(packet)) => self.probe_packet(ws, socket, &packet),
            (Role::Probe(socket), Err(_)) => self.abort_upgrade(ws, socket),
            _ => {}
        }
    }

    fn probe_packet(&self, ws: WebSocket<Carrier>, socket: Socket, packet: &Packet<'_>) {
        // The time for it may be over.
        self.catch_up(socket);
        let now = self.core.now();
        let step = self.with(socket, |entry| {
            let step = entry.session.upgrade().handle_packet(now, packet);
            (step, entry.session.deadline())
        });
        match step {
            Some((Step::AnswerProbe, deadline)) => {
                let _ = ws.send(&Frame::message(&[b"3probe"], &[]));
                self.set_deadline(socket.slot, deadline);
                self.release_poll(socket);
                // It does not poll until what it has posted is answered.
                self.resume_posted(socket);
                self.hooks.tell(|hooks| &hooks.upgrading, socket);
            }
            Some((Step::Complete, deadline)) => {
                self.complete_upgrade(ws, socket);
                self.set_deadline(socket.slot, deadline);
            }
            Some((Step::Abort, _)) | None => self.abort_upgrade(ws, socket),
        }
    }

    /// The session moves: what waits for it leaves through the WebSocket from now on.
    fn complete_upgrade(&self, ws: WebSocket<Carrier>, socket: Socket) {
        // A client polls no more before it says so. One that does is told as in the reference, whose polling
        // transport closes.
        let _ = self.release_poll_with(socket, b"1");
        // What it has posted comes before what it says here.
        self.read_on(socket, true);
        let Some(carrier) = self.carrier(ws) else { return };
        if !self.leave_websocket(socket) {
            return;
        }
        self.probes.borrow_mut().remove(&socket);
        let outlet = self.with(socket, |entry| {
            entry.session.handle_upgraded();
            if let Link::Polling(mut polling) = std::mem::replace(&mut entry.link, Link::WebSocket(ws)) {
                self.abort_post(&mut polling);
            }
            entry.dialect = carrier.dialect;
            entry.outlet
        });
        let Some(outlet) = outlet else { return };
        self.set_role(ws, Role::Session(socket));
        if carrier.dialect == Dialect::default() {
            self.pollers.borrow_mut().remove(&outlet);
            self.core.carry(ws.connection(), outlet);
        } else {
            self.refill(socket);
        }
        self.hooks.tell(|hooks| &hooks.upgrade, socket);
    }

    /// A session that is carried by a WebSocket leaves it, which is closed: as with the reference, another
    /// may take over from the one that it began on. What the session is owed by now leaves through the old
    /// one. `false`: the old one is gone, and the session with it.
    fn leave_websocket(&self, socket: Socket) -> bool {
        let old = self.with(socket, |entry| match entry.link {
            Link::WebSocket(old) => Some((old, entry.outlet, entry.is_carried())),
            Link::Polling(_) => None,
        });
        let Some(old) = old else { return false };
        let Some((old, outlet, carried)) = old else { return true };
        if carried {
            if self.core.detach(old.connection()) != Some(outlet) {
                self.lost(socket, CloseReason::TransportClose, "");
                return false;
            }
            // It is the engine's until the other connection has it.
            self.pollers.borrow_mut().insert(outlet, socket.slot);
        }
        self.set_role(old, Role::Spent);
        old.close(1005, "");
        true
    }

    fn abort_upgrade(&self, ws: WebSocket<Carrier>, socket: Socket) {
        self.set_role(ws, Role::Spent);
        self.forget_probe(socket, ws);
        ws.close(1005, "");
    }

    /// The WebSocket that was to take over will not.
    fn forget_probe(&self, socket: Socket, ws: WebSocket<Carrier>) {
        let mut probes = self.probes.borrow_mut();
        if probes.get(&socket) == Some(&ws) {
            probes.remove(&socket);
            drop(probes);
            self.with(socket, |entry| entry.session.upgrade().abort());
        }
    }

    fn websocket_close(&self, ws: WebSocket<Carrier>, closed: Closed<'_>) {
        match self.role(ws) {
            Some(Role::Session(socket)) => {
                // What the decoder refused, and what would not fit.
                let broken = matches!(closed.code, 1002 | 1007 | 1008 | 1009);
                let reason = if broken { CloseReason::TransportError } else { CloseReason::TransportClose };
                self.lost(socket, reason, closed.reason);
            }
            Some(Role::Probe(socket)) => {
                self.forget_probe(socket, ws);
            }
            _ => {}
        }
    }
}

/// The packet of a WebSocket message. Version 4 has no type before binary.
fn decode(revision: Revision, message: app::Message<'_>) -> Result<Packet<'_>, EioError> {
    match (revision, message) {
        (Revision::V4, app::Message::Text(text)) => decode_text(text),
        (Revision::V4, app::Message::Binary(data)) => Ok(Packet::Binary(Cow::Borrowed(data))),
        (Revision::V3, app::Message::Text(text)) => v3::decode_text(text),
        (Revision::V3, app::Message::Binary(data)) => v3::decode_binary(data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_of_an_id_fits_into_a_word() {
        for (slot, generation) in [(0, 0), (0x00FF_FFFF, u32::MAX), (1 << 23, 7)] {
            for dialect in [0, 1, 2, 3] {
                let revision = if dialect & 1 == 0 { Revision::V4 } else { Revision::V3 };
                let dialect = Dialect { revision, base64: dialect & 2 != 0 };
                let socket = Socket { server: 5, slot, generation, local: PhantomData };
                for role in [Role::New, Role::Session(socket), Role::Probe(socket), Role::Spent] {
                    let carrier = Carrier { role, dialect };
                    let read = Carrier::read(carrier.word(), 5);
                    assert_eq!((read.role, read.dialect), (role, dialect));
                }
            }
        }
    }
}
