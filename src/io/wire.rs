//! Packets to frames and messages to packets: by the default parser, or by the one of the options.
//!
//! The default way turns typed arguments straight into text. All that it pays for there being others is to
//! look whether there is one; another one gets [`Value`]s.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use serde::Serialize;

use super::broadcast::Scope;
use super::namespace::NspInner;
use super::recovery::Offset;
use super::{Args, Encoded, Failure, PacketDecoder, Parser};
use crate::engine::{self, Message};
use crate::fanout::Frame;
use crate::limits;
use crate::protocol::sio::{
    self, Body, Decoder, EncodeError, EventName, Limits, MAX_ACK_ID, NspName, Packet, Value, is_reserved,
    to_args,
};
use crate::runtime;

/// How the packets of one server are written, on whichever thread.
#[derive(Debug, Default)]
pub(super) struct Wire(OnceLock<Option<Arc<dyn Parser>>>);

impl Wire {
    /// Sets the parser, `None` for the default one. Each core is set up with one; that of the first counts.
    pub(super) fn set(&self, parser: Option<Arc<dyn Parser>>) {
        let _ = self.0.set(parser);
    }

    pub(super) fn parser(&self) -> Option<&Arc<dyn Parser>> {
        self.0.get()?.as_ref()
    }

    /// An event; behind its arguments comes an offset if `offset` gives one.
    #[inline]
    fn event<T: Serialize + ?Sized>(
        &self,
        nsp: &str,
        id: Option<u64>,
        name: &str,
        args: &T,
        offset: impl FnOnce() -> Option<Offset>,
    ) -> Result<(Frame, Option<Offset>), EncodeError> {
        if let Some(parser) = self.parser() {
            return other_event(&**parser, nsp, id, name, args, offset);
        }
        in_place(|encoded| {
            encoded.set_event(nsp, id, name, args)?;
            let offset = offset();
            if let Some(offset) = offset {
                encoded.push(&offset.to_string());
            }
            Ok((Frame::message(&[b"4", &encoded.text], &encoded.attachments), offset))
        })
    }

    /// The refusal of a namespace. `None` if the parser has no form for it, which is logged; so with all
    /// packets that are not the application's.
    pub(super) fn connect_error(&self, nsp: &str, message: &str, data: Option<&Value>) -> Option<Frame> {
        let own = || {
            let mut error = vec![("message".to_owned(), Value::from(message))];
            error.extend(data.map(|data| ("data".to_owned(), data.clone())));
            Body::ConnectError(Value::Object(error))
        };
        self.own(nsp, own, || sio::connect_error(nsp, message, data))
    }

    /// The event of a frame with an offset behind its arguments. `None` if the client would not take its last
    /// argument for one: the official clients do so with any string, also with the name of an event that has
    /// no arguments.
    fn with_offset(
        &self,
        nsp: &str,
        frame: &Frame,
        offset: impl FnOnce() -> Option<String>,
    ) -> Option<Frame> {
        if self.parser().is_some() {
            let (name, mut args) = self.event_of(frame)?;
            if args.last().is_some_and(|last| last.as_str().is_none()) {
                return None;
            }
            args.push(Value::from(offset()?.as_str()));
            let (made, _) = self.event(nsp, None, &name, &Args(args), || None).ok()?;
            return Some(made.waiting_as(frame));
        }
        let mut messages: Vec<(bool, &[u8])> = frame.messages().collect();
        let text = messages.first()?.1.strip_suffix(b"]").filter(|text| text.ends_with(b"\""))?;
        let text = [text, b",\"", offset()?.as_bytes(), b"\"]"].concat();
        messages[0].1 = &text;
        Some(Frame::of_messages(messages).waiting_as(frame))
    }

    /// A packet that the server sends by itself.
    fn own(&self, nsp: &str, body: impl FnOnce() -> Body, text: impl FnOnce() -> Vec<u8>) -> Option<Frame> {
        let Some(parser) = self.parser() else { return Some(Frame::message(&[b"4", &text()], &[])) };
        let packet = packet(nsp.into(), None, body());
        let mut encoded = None;
        runtime::guarded("the parser", || encoded = Some(encode(&**parser, &packet)));
        match encoded? {
            Ok(frame) => Some(frame),
            Err(error) => {
                tracing::error!("a client is not told what it should be told: {error}");
                None
            }
        }
    }

    /// The event that a frame carries. It was encoded here, so no limit of ours applies to it.
    pub(super) fn event_of(&self, frame: &Frame) -> Option<(EventName, Vec<Value>)> {
        let limits = Limits { attachments: usize::MAX, attachment_bytes: usize::MAX, ..Limits::default() };
        let mut other = self.parser().map(|parser| parser.decoder(&limits));
        let (mut decoder, mut json) = (Decoder::new(), sio::Parser::new());
        for (binary, message) in frame.messages() {
            let message = if binary {
                Message::Binary(message)
            } else {
                // Behind Engine.IO's type.
                Message::Text(std::str::from_utf8(message).ok()?.get(1..)?)
            };
            let decoded = match (&mut other, message) {
                (Some(other), message) => other.add(message).ok()?,
                (None, Message::Text(text)) => decoder.text(text, &mut json, &limits).ok()?,
                (None, Message::Binary(data)) => decoder.binary(data, &limits).ok()?,
            };
            if let Some(Packet { body: Body::Event { name, args }, .. }) = decoded {
                return Some((name, args));
            }
        }
        None
    }
}

impl NspInner {
    /// An event that cannot be missed (a volatile one, or one that goes before CONNECT) with the offset of
    /// the last packet that was logged here: the client takes its last string for one, and would ask for what
    /// comes behind a text that no packet has as its name. `None` where the event can stay as it is.
    pub(super) fn with_last_offset(&self, frame: &Frame) -> Option<Frame> {
        let recovery = self.recovery.as_ref()?;
        let wire = &self.scope.registry.wire;
        let named_elsewhere = self.scope.registry.keeper().is_some();
        let offset = || {
            if !named_elsewhere {
                return recovery.last_offset().map(|offset| offset.to_string());
            }
            // The adapter's names stand in the packets.
            let (_, args) = wire.event_of(&recovery.last_packet()?)?;
            args.last()?.as_str().map(str::to_owned)
        };
        wire.with_offset(&self.scope.nsp, frame, offset)
    }
}

impl Scope {
    /// An event without an offset: nobody may ask for it again.
    pub(super) fn event<T: Serialize + ?Sized>(
        &self,
        id: Option<u64>,
        name: &str,
        args: &T,
    ) -> Result<Frame, EncodeError> {
        let (frame, _) = self.registry.wire.event(&self.nsp, id, name, args, || None)?;
        Ok(frame)
    }

    /// An event, and its offset if clients may come back for it.
    pub(super) fn event_to_keep<T: Serialize + ?Sized>(
        &self,
        name: &str,
        args: &T,
        volatile: bool,
    ) -> Result<(Frame, Option<Offset>), EncodeError> {
        self.registry.wire.event(&self.nsp, None, name, args, || self.offset(volatile))
    }

    /// An acknowledgement.
    pub(super) fn ack<T: Serialize + ?Sized>(&self, id: u64, args: &T) -> Result<Frame, EncodeError> {
        if let Some(parser) = self.registry.wire.parser() {
            return encode(&**parser, &packet(self.nsp.clone(), Some(id), Body::Ack(to_args(args)?)));
        }
        in_place(|encoded| {
            encoded.set_ack(&self.nsp, id, args)?;
            Ok(Frame::message(&[b"4", &encoded.text], &encoded.attachments))
        })
    }

    /// The answer to a client that is let in.
    pub(super) fn connect(&self, sid: &str, pid: Option<&str>) -> Option<Frame> {
        let own = || {
            let mut ids = vec![("sid".to_owned(), Value::from(sid))];
            ids.extend(pid.map(|pid| ("pid".to_owned(), pid.into())));
            Body::Connect(Some(Value::Object(ids)))
        };
        self.registry.wire.own(&self.nsp, own, || sio::connect(&self.nsp, sid, pid))
    }

    /// The same for one of Socket.IO v2.
    pub(super) fn connect_v2(&self) -> Option<Frame> {
        self.registry.wire.own(&self.nsp, || Body::Connect(None), || sio::connect_v2(&self.nsp))
    }

    /// The refusal for a client of Socket.IO v2.
    pub(super) fn error_v2(&self, error: &Value) -> Option<Frame> {
        let own = || Body::ConnectError(error.clone());
        self.registry.wire.own(&self.nsp, own, || sio::error_v2(&self.nsp, error))
    }

    /// A client has to leave.
    pub(super) fn disconnect(&self) -> Option<Frame> {
        self.registry.wire.own(&self.nsp, || Body::Disconnect, || sio::disconnect(&self.nsp))
    }
}

/// Lends the memory in which this thread's packets are written before their frames are made.
fn in_place<T>(write: impl FnOnce(&mut sio::Encoded) -> T) -> T {
    thread_local! {
        static ENCODED: Cell<sio::Encoded> = const { Cell::new(sio::Encoded::new()) };
    }
    // It is taken out: what serialises the arguments may itself emit.
    let mut encoded = ENCODED.try_with(Cell::take).unwrap_or_default();
    let written = write(&mut encoded);
    if encoded.text.capacity() <= limits::PACKET_BUFFER_BYTES_KEPT {
        // Attachments are rare, and a packet may have had many.
        encoded.attachments = Vec::new();
        // A thread that ends has no such memory any more.
        let _ = ENCODED.try_with(|kept| kept.set(encoded));
    }
    written
}

/// A packet in the namespace of this name, whatever is in it: names that are refused are told as they came.
fn packet(nsp: NspName, id: Option<u64>, body: Body) -> Packet {
    Packet { nsp, query: None, id, body }
}

/// An event by another parser than the default one.
#[cold]
fn other_event<T: Serialize + ?Sized>(
    parser: &dyn Parser,
    nsp: &str,
    id: Option<u64>,
    name: &str,
    args: &T,
    offset: impl FnOnce() -> Option<Offset>,
) -> Result<(Frame, Option<Offset>), EncodeError> {
    if is_reserved(name) {
        return Err(EncodeError::ReservedEvent);
    }
    let mut args = to_args(args)?;
    let offset = offset();
    args.extend(offset.map(|offset| Value::from(offset.to_string())));
    let body = Body::Event { name: name.into(), args };
    Ok((encode(parser, &packet(nsp.into(), id, body))?, offset))
}

fn encode(parser: &dyn Parser, packet: &Packet) -> Result<Frame, EncodeError> {
    let failed = |failure: Failure| EncodeError::Parser(failure.message().into());
    let mut messages = parser.encode(packet).map_err(failed)?;
    if messages.is_empty() {
        return Err(EncodeError::Parser("it has made nothing of it".into()));
    }
    let bytes = |message: &Encoded| match message {
        Encoded::Text(text) => text.len(),
        Encoded::Binary(data) => data.len(),
    };
    if messages.iter().map(bytes).fold(0, usize::saturating_add) > limits::PACKET_BYTES {
        return Err(EncodeError::TooLarge);
    }
    for message in &mut messages {
        if let Encoded::Text(text) = message {
            text.insert(0, '4');
        }
    }
    Ok(Frame::of_messages(messages.iter().map(|message| match message {
        Encoded::Text(text) => (false, text.as_bytes()),
        Encoded::Binary(data) => (true, &data[..]),
    })))
}

/// How the messages of the clients of one core are read.
#[derive(Default)]
pub(super) struct Incoming {
    json: RefCell<sio::Parser>,
    /// Of each client that has said something, with another parser than the default one. That one's decoders
    /// stand with the clients.
    decoders: RefCell<HashMap<engine::Socket, Box<dyn PacketDecoder>, RandomState>>,
}

impl Incoming {
    /// Reads a message. `decoder` is the client's, for the default parser.
    pub(super) fn decode(
        &self,
        wire: &Wire,
        conn: engine::Socket,
        message: Message<'_>,
        decoder: &mut Decoder,
        limits: &Limits,
    ) -> Result<Option<Packet>, Failure> {
        if let Some(parser) = wire.parser() {
            return self.decode_other(&**parser, conn, message, limits);
        }
        let decoded = match message {
            Message::Text(text) => decoder.text(text, &mut self.json.borrow_mut(), limits),
            Message::Binary(data) => decoder.binary(data, limits),
        };
        decoded.map_err(|error| Failure::new(error.to_string()))
    }

    #[cold]
    fn decode_other(
        &self,
        parser: &dyn Parser,
        conn: engine::Socket,
        message: Message<'_>,
        limits: &Limits,
    ) -> Result<Option<Packet>, Failure> {
        // It leaves the table for the call, which runs code that is not ours.
        let decoder = self.decoders.borrow_mut().remove(&conn);
        let mut decoded = Err(Failure::new("the parser has panicked"));
        let mut kept = None;
        runtime::guarded("the parser", || {
            let mut decoder = decoder.unwrap_or_else(|| parser.decoder(limits));
            decoded = decoder.add(message);
            kept = Some(decoder);
        });
        let packet = checked(decoded?)?;
        if let Some(decoder) = kept {
            self.decoders.borrow_mut().insert(conn, decoder);
        }
        Ok(packet)
    }

    /// A client has gone.
    pub(super) fn forget(&self, conn: engine::Socket) {
        let decoder = self.decoders.borrow_mut().remove(&conn);
        drop(decoder);
    }
}

/// What the server relies on, whoever has decoded it.
fn checked(packet: Option<Packet>) -> Result<Option<Packet>, Failure> {
    let Some(packet) = packet else { return Ok(None) };
    if matches!(&packet.body, Body::Event { name, .. } if is_reserved(name)) {
        return Err(Failure::new("the client's event has a reserved name"));
    }
    if packet.id.is_some_and(|id| id > MAX_ACK_ID) {
        return Err(Failure::new("the client's acknowledgement id is out of range"));
    }
    let auth_is_none = matches!(&packet.body, Body::Connect(Some(auth)) if auth.as_object().is_none());
    if auth_is_none {
        return Err(Failure::new("the client's payload does not fit the type of packet"));
    }
    Ok(Some(packet))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_frame_tells_its_event() {
        let args = ("x", Bytes::from_static(b"abc"), vec![Bytes::from_static(b"d"); 20]);
        let wire = Wire::default();
        let (frame, _) = wire.event("/chat", Some(7), "file", &args, || None).unwrap();
        let (name, read) = wire.event_of(&frame).unwrap();
        assert_eq!(&*name, "file");
        assert_eq!(read.len(), 3);
        assert_eq!(read[1], Value::from(Bytes::from_static(b"abc")));
        let leave = wire.own("/chat", || Body::Disconnect, || sio::disconnect("/chat")).unwrap();
        assert!(wire.event_of(&leave).is_none());
    }

    #[cfg(feature = "msgpack")]
    #[test]
    fn one_binary_message_with_msgpack() {
        let wire = Wire::default();
        wire.set(Some(Arc::new(crate::io::MsgpackParser)));
        let file = Bytes::from_static(b"abc");
        let offset = Offset::next();
        let (frame, kept) = wire.event("/", Some(7), "file", &(1, &file), || offset).unwrap();
        assert_eq!((kept, frame.packets(), frame.has_binary()), (offset, 1, true));
        let (name, args) = wire.event_of(&frame).unwrap();
        let offset = offset.unwrap().to_string();
        assert_eq!((&*name, args), ("file", vec![1.into(), file.into(), offset.as_str().into()]));
        let reserved = wire.event("/", None, "disconnect", &(), || None);
        assert!(matches!(reserved, Err(EncodeError::ReservedEvent)));
        let refusal = wire.connect_error("/?x", "no", Some(&7.into())).unwrap();
        assert!(refusal.polling().starts_with(b"b"));
    }

    #[test]
    fn what_the_server_relies_on_is_checked_behind_any_parser() {
        let event = |name: &str| Body::Event { name: name.into(), args: Vec::new() };
        for (id, body, fits) in [
            (None, event("a"), true),
            (Some(MAX_ACK_ID), event("a"), true),
            (Some(MAX_ACK_ID + 1), event("a"), false),
            (None, event("disconnect"), false),
            (None, Body::Connect(None), true),
            (None, Body::Connect(Some(Value::Null)), false),
            (None, Body::Disconnect, true),
        ] {
            assert_eq!(checked(Some(Packet::new("/", id, body))).is_ok(), fits);
        }
    }
}
