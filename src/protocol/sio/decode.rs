//! Engine.IO messages to packets (socket.io-protocol v5; the rules of socket.io-parser 4.2.7).

use bytes::Bytes;
use thiserror::Error;

use super::json::{JsonError, MAX_DEPTH, Parser};
use super::packet::{AckId, Body, EventName, Kind, MAX_ACK_ID, NspName, Packet, is_reserved};
use super::value::Value;

/// How much one packet may be. The size of its text is limited by the transport.
///
/// ```
/// use sockring::protocol::sio::Limits;
///
/// assert_eq!(Limits::default().attachments, 10);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Number of attachments. 10 by default, as in the reference.
    pub attachments: usize,
    /// How deep values nest, at most and by default [`MAX_DEPTH`]. What nests deeper is
    /// [`Value::Deep`]; with MessagePack it is refused.
    pub depth: usize,
    /// Bytes of all attachments of a packet together, and of all references to them: an attachment that two
    /// placeholders refer to counts twice, because it is sent twice if the value is sent on. No encoder
    /// refers to one twice. 10,000,000 by default.
    pub attachment_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { attachments: 10, depth: MAX_DEPTH, attachment_bytes: 10_000_000 }
    }
}

/// Messages that are not Socket.IO packets. The client is at fault in every case; its connection is to be
/// closed.
///
/// ```
/// use sockring::protocol::sio::{Decoder, Limits, Parser, SioError};
///
/// let error = Decoder::new().text("2[\"connect\"]", &mut Parser::new(), &Limits::default()).unwrap_err();
/// assert_eq!(error, SioError::ReservedEvent);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SioError {
    /// The first character is not a digit from `0` to `6`.
    #[error("the client sent a packet of unknown type")]
    UnknownKind,
    /// A binary packet whose count is not a plain number of at least 1 before `-`.
    #[error("the client announced attachments in a malformed way")]
    Attachments,
    /// More attachments announced than [`Limits::attachments`].
    #[error("the client announced too many attachments")]
    TooManyAttachments,
    /// More bytes of attachments, or of references to them, than [`Limits::attachment_bytes`].
    #[error("the client's attachments are too large")]
    AttachmentsTooLarge,
    /// An acknowledgement id beyond [`MAX_ACK_ID`].
    #[error("the client's acknowledgement id is out of range")]
    AckId,
    /// The payload is not JSON.
    #[error("the client's payload cannot be read: {0}")]
    Json(#[from] JsonError),
    /// The payload is JSON, but not what this type of packet has.
    #[error("the client's payload does not fit the type of packet")]
    Payload,
    /// The first element of an event is neither a string nor a number.
    #[error("the client's event has no name")]
    EventName,
    /// A name that [`is_reserved`].
    #[error("the client's event has a reserved name")]
    ReservedEvent,
    /// A binary message that no packet announced.
    #[error("the client sent an attachment that was not announced")]
    UnexpectedBinary,
    /// A text message while attachments are missing.
    #[error("the client sent text where an attachment was announced")]
    ExpectedBinary,
    /// A placeholder whose number is not that of an attachment.
    #[error("the client's placeholder refers to no attachment")]
    Placeholder,
    /// A message that is not MessagePack, or nested too deep.
    #[cfg(feature = "msgpack")]
    #[error("the client's message cannot be read: {0}")]
    Msgpack(#[from] super::msgpack::MsgpackError),
    /// No map of MessagePack, or one without the name of a namespace.
    #[cfg(feature = "msgpack")]
    #[error("the client's message is no packet")]
    NoPacket,
}

/// Turns the messages of one connection into packets. One pointer wide, and a null one unless attachments are
/// being waited for.
///
/// ```
/// use sockring::protocol::sio::{Body, Decoder, Limits, Parser, Value};
///
/// let (mut decoder, mut parser, limits) = (Decoder::new(), Parser::new(), Limits::default());
/// let text = r#"51-["file",{"_placeholder":true,"num":0}]"#;
/// assert_eq!(decoder.text(text, &mut parser, &limits)?, None);
/// assert!(!decoder.is_idle());
/// let packet = decoder.binary(b"abc", &limits)?.expect("the last attachment");
/// let args = vec![Value::Binary(b"abc".as_slice().into())];
/// assert_eq!(packet.body, Body::Event { name: "file".into(), args });
/// # Ok::<(), sockring::protocol::sio::SioError>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Option<Box<Pending>>,
}

/// A packet whose attachments are not all there.
#[derive(Debug)]
struct Pending {
    packet: Packet,
    announced: usize,
    attachments: Vec<Bytes>,
    bytes: usize,
}

/// What stands before the payload.
struct Head<'a> {
    kind: Kind,
    announced: usize,
    nsp: NspName,
    query: Option<Box<str>>,
    id: Option<AckId>,
    payload: &'a str,
}

impl Decoder {
    /// An idle decoder; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { pending: None }
    }

    /// Whether no attachment is being waited for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// Decodes a text message, without the `4` of Engine.IO. `Ok(None)` if attachments must follow, or if the
    /// packet is an event without a payload (`2`): the reference lets it pass and calls nobody.
    ///
    /// # Errors
    ///
    /// A [`SioError`]; drop the decoder then.
    pub fn text(
        &mut self,
        text: &str,
        parser: &mut Parser,
        limits: &Limits,
    ) -> Result<Option<Packet>, SioError> {
        if self.pending.is_some() {
            return Err(SioError::ExpectedBinary);
        }
        let head = Head::parse(text, limits)?;
        let Some(body) = body(&head, parser, limits)? else { return Ok(None) };
        let packet = Packet { nsp: head.nsp, query: head.query, id: head.id, body };
        if !head.kind.has_attachments() {
            return Ok(Some(packet));
        }
        let announced = head.announced;
        self.pending = Some(Box::new(Pending { packet, announced, attachments: Vec::new(), bytes: 0 }));
        Ok(None)
    }

    /// Takes a binary message, which must be an attachment. The packet is returned with the last one.
    ///
    /// # Errors
    ///
    /// A [`SioError`]; drop the decoder then.
    pub fn binary(&mut self, data: &[u8], limits: &Limits) -> Result<Option<Packet>, SioError> {
        let Some(pending) = &mut self.pending else { return Err(SioError::UnexpectedBinary) };
        pending.bytes = pending.bytes.saturating_add(data.len());
        if pending.bytes > limits.attachment_bytes {
            return Err(SioError::AttachmentsTooLarge);
        }
        pending.attachments.push(Bytes::copy_from_slice(data));
        if pending.attachments.len() < pending.announced {
            return Ok(None);
        }
        let Some(pending) = self.pending.take() else { return Ok(None) };
        let Pending { mut packet, attachments, .. } = *pending;
        if let Body::Event { args, .. } | Body::Ack(args) = &mut packet.body {
            let mut left = limits.attachment_bytes;
            for arg in args {
                put_back(arg, &attachments, &mut left)?;
            }
        }
        Ok(Some(packet))
    }
}

impl<'a> Head<'a> {
    /// `<type>[<attachments>-][/nsp,][<id>]`, then the payload.
    fn parse(text: &'a str, limits: &Limits) -> Result<Self, SioError> {
        let first = text.as_bytes().first().ok_or(SioError::UnknownKind)?;
        let kind = Kind::from_digit(*first).ok_or(SioError::UnknownKind)?;
        let mut rest = text.get(1..).unwrap_or_default();
        let mut announced = 0;
        if kind.has_attachments() {
            let (count, after) = rest.split_once('-').ok_or(SioError::Attachments)?;
            if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(SioError::Attachments);
            }
            // What does not fit is too many.
            announced = count.parse().unwrap_or(usize::MAX);
            if announced == 0 {
                return Err(SioError::Attachments);
            }
            if announced > limits.attachments {
                return Err(SioError::TooManyAttachments);
            }
            rest = after;
        }
        let (mut nsp, mut query) = (NspName::default(), None);
        if rest.starts_with('/') {
            let (name, after) = rest.split_once(',').unwrap_or((rest, ""));
            let (name, found) =
                name.split_once('?').map_or((name, None), |(name, query)| (name, Some(query)));
            (nsp, query) = (name.into(), found.map(Into::into));
            rest = after;
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, payload) = rest.split_at(digits);
        let id = match number {
            "" => None,
            number => Some(number.parse().ok().filter(|id| *id <= MAX_ACK_ID).ok_or(SioError::AckId)?),
        };
        Ok(Self { kind, announced, nsp, query, id, payload })
    }
}

/// Reads and checks the payload. `None` for an event without one.
fn body(head: &Head<'_>, parser: &mut Parser, limits: &Limits) -> Result<Option<Body>, SioError> {
    let payload = match head.payload {
        "" => None,
        json if matches!(head.kind, Kind::Event | Kind::BinaryEvent) => {
            let (name, args) = parser.parse_event(json, limits.depth)?.ok_or(SioError::Payload)?;
            return Ok(Some(Body::Event { name: allowed(name.ok_or(SioError::EventName)?)?, args }));
        }
        json => Some(parser.parse(json, limits.depth.max(1))?),
    };
    Ok(Some(match (head.kind, payload) {
        (Kind::Connect, None) => Body::Connect(None),
        (Kind::Connect, Some(auth @ Value::Object(_))) => Body::Connect(Some(auth)),
        (Kind::Disconnect, None) => Body::Disconnect,
        (Kind::Event, None) => return Ok(None),
        // The reference hands this to the callback as no arguments.
        (Kind::Ack, None) => Body::Ack(Vec::new()),
        (Kind::Ack | Kind::BinaryAck, Some(Value::Array(args))) => Body::Ack(args),
        (Kind::ConnectError, None) => Body::ConnectError(Value::Null),
        (Kind::ConnectError, Some(error @ (Value::String(_) | Value::Object(_)))) => {
            Body::ConnectError(error)
        }
        _ => return Err(SioError::Payload),
    }))
}

/// An event's name, unless it is reserved.
pub(super) fn allowed(name: EventName) -> Result<EventName, SioError> {
    if is_reserved(&name) { Err(SioError::ReservedEvent) } else { Ok(name) }
}

/// Replaces placeholders by their attachments, at most `left` bytes of them. One may be referred to several
/// times, or not at all. Recursion is bounded by the depth that values have.
pub(super) fn put_back(value: &mut Value, attachments: &[Bytes], left: &mut usize) -> Result<(), SioError> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(|item| put_back(item, attachments, left)),
        Value::Object(entries) => {
            let find = |key: &str| entries.iter().find(|(known, _)| known == key).map(|(_, value)| value);
            if find("_placeholder").and_then(Value::as_bool) == Some(true) {
                let number = find("num").and_then(Value::as_f64).ok_or(SioError::Placeholder)?;
                *value = attachment(number, attachments, left)?;
                return Ok(());
            }
            entries.iter_mut().try_for_each(|(_, item)| put_back(item, attachments, left))
        }
        // What is as deep as that is sent on as it came: a placeholder in it would close whoever gets it.
        Value::Deep(json) if json.as_str().contains("\"_placeholder\"") => Err(SioError::Placeholder),
        _ => Ok(()),
    }
}

/// The attachment of a number, which `left` is to have room for.
fn attachment(number: f64, attachments: &[Bytes], left: &mut usize) -> Result<Value, SioError> {
    if !(0.0..attachments.len() as f64).contains(&number) {
        return Err(SioError::Placeholder);
    }
    // Between two of them the reference finds `undefined`.
    let bytes = (number.fract() == 0.0).then(|| attachments.get(number as usize)).flatten();
    let Some(bytes) = bytes else { return Ok(Value::Null) };
    *left = left.checked_sub(bytes.len()).ok_or(SioError::AttachmentsTooLarge)?;
    Ok(Value::Binary(bytes.clone()))
}

#[cfg(test)]
mod tests;
