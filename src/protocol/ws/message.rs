//! Messages out of a client's byte stream (RFC 6455 5.4 to 5.6).

use super::WsError;
use super::deflate::Inflater;
use super::frame::{CONTROL_BYTES, FrameHeader, MAX_HEADER_BYTES, OpCode};
use super::mask;

/// How much one message may be.
///
/// ```
/// use sockring::protocol::ws::message::Limits;
///
/// let limits = Limits { message_bytes: 16 << 20, ..Limits::default() };
/// assert_eq!(limits.fragments, 16_384);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message, summed over its fragments. 1,000,000 by default, as `maxHttpBufferSize` of the
    /// reference. A frame that announces more is refused before its payload arrives (1009). Of a compressed
    /// message it bounds both: what arrives, and what it is inflated to.
    pub message_bytes: usize,
    /// Frames of a message, empty ones counted. 16,384 by default, as in ws 8.23 (1008).
    pub fragments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message_bytes: 1_000_000, fragments: 16_384 }
    }
}

/// A message or control frame, lent until the decoder or the input is used again.
///
/// ```
/// use sockring::protocol::ws::{frame, message::{Decoder, Limits, Message}};
///
/// let mut wire = Vec::new();
/// let payload = frame::close_payload(1000, "bye");
/// frame::write_masked_frame(&mut wire, frame::OpCode::Close, true, [5; 4], &payload);
/// let mut decoder = Decoder::new();
/// let step = decoder.decode(&mut wire, &Limits::default())?;
/// assert_eq!(step.message, Some(Message::Close(Some((1000, "bye")))));
/// # Ok::<(), sockring::protocol::ws::WsError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// The closing handshake: status code and reason, if there are any (RFC 6455 5.5.1).
    Close(Option<(u16, &'a str)>),
}

impl Message<'_> {
    /// Bytes of its payload; of a close, those of the reason.
    ///
    /// ```
    /// use sockring::protocol::ws::message::Message;
    /// assert_eq!((Message::Text("four").len(), Message::Close(None).is_empty()), (4, true));
    /// ```
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Close(Some((_, text))) => text.len(),
            Self::Binary(data) | Self::Ping(data) | Self::Pong(data) => data.len(),
            Self::Close(None) => 0,
        }
    }

    /// Whether it has no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What one call of [`Decoder::decode`] did.
///
/// ```
/// use sockring::protocol::ws::message::{Decoder, Limits};
///
/// let mut decoder = Decoder::new();
/// let mut half = [0x81];
/// let step = decoder.decode(&mut half, &Limits::default())?;
/// assert_eq!((step.consumed, step.message), (1, None));
/// # Ok::<(), sockring::protocol::ws::WsError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// How many bytes of the input were used. All of them if there is no message.
    pub consumed: usize,
    /// The message that ends there, if one does.
    pub message: Option<Message<'a>>,
}

/// Puts a client's messages together. One pointer wide, and a null one unless a frame or message is half
/// there.
///
/// Call [`decode`](Self::decode) again with what is left of the input until the input is empty, then
/// [`release`](Self::release). A message whose only frame is whole in the input is unmasked there and lent
/// from there, without a copy. Anything else is collected inside, where memory grows with what has arrived
/// and never with what was announced; text is checked as it comes, so an invalid byte is reported when it
/// arrives.
///
/// ```
/// use sockring::protocol::ws::{frame::{OpCode, write_masked_frame}, message::{Decoder, Limits, Message}};
///
/// let mut wire = Vec::new();
/// write_masked_frame(&mut wire, OpCode::Text, false, [1, 2, 3, 4], b"hel");
/// write_masked_frame(&mut wire, OpCode::Ping, true, [1, 2, 3, 4], b"?");
/// write_masked_frame(&mut wire, OpCode::Continuation, true, [1, 2, 3, 4], b"lo");
/// let (mut decoder, mut input, mut seen) = (Decoder::new(), &mut wire[..], Vec::new());
/// while !input.is_empty() {
///     let step = decoder.decode(input, &Limits::default())?;
///     let consumed = step.consumed;
///     seen.extend(step.message.map(|message| format!("{message:?}")));
///     input = &mut input[consumed..];
/// }
/// decoder.release();
/// assert!(decoder.is_idle());
/// assert_eq!(seen, ["Ping([63])", "Text(\"hello\")"]);
/// # Ok::<(), sockring::protocol::ws::WsError>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// What a decoder holds while something is half there.
#[derive(Debug, Default)]
struct Partial {
    /// The first bytes of a header that is not whole yet.
    header: [u8; MAX_HEADER_BYTES],
    header_len: usize,
    /// The frame whose payload is arriving, and how much of that has arrived.
    frame: Option<(FrameHeader, u64)>,
    /// The payload of a control frame that is arriving; apart from `message`, which it may interrupt.
    control: Vec<u8>,
    message: Option<Assembly>,
    lent: Lent,
}

/// What `decode` lent last, to be dropped before anything else is done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Lent {
    #[default]
    Nothing,
    Control,
    Message,
}

/// A message of which some has arrived. A compressed one is kept so, and inflated when it is whole: then all
/// connections of a core can share an inflater, and a message that never ends costs no more than was sent.
#[derive(Debug)]
struct Assembly {
    text: bool,
    compressed: bool,
    bytes: Vec<u8>,
    /// How much of `bytes` is known to be whole, valid UTF-8; only for text.
    valid: usize,
    fragments: usize,
}

/// The message that `decode` found.
#[derive(Clone, Copy)]
struct Found {
    op: OpCode,
    compressed: bool,
    /// Where it lies in the input; in the decoder otherwise.
    input: Option<(usize, usize)>,
}

impl Decoder {
    /// An idle decoder; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Whether nothing is half there and no memory is held.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Drops the buffer of the message lent last. `decode` does so too when it is called; this is for when
    /// there is no more input, so that an idle connection does not keep its last large message.
    pub fn release(&mut self) {
        let Some(partial) = &mut self.partial else { return };
        match std::mem::take(&mut partial.lent) {
            Lent::Nothing => {}
            Lent::Control => partial.control = Vec::new(),
            Lent::Message => partial.message = None,
        }
        if partial.message.is_none() && partial.frame.is_none() && partial.header_len == 0 {
            self.partial = None;
        }
    }

    /// Decodes the next message of `input`. Either a message is returned, or all of `input` was used and is
    /// remembered as far as needed. Payload is unmasked in place, so the used part of `input` is clobbered.
    ///
    /// # Errors
    ///
    /// A [`WsError`] as soon as the byte that proves it has arrived. Drop the decoder then.
    pub fn decode<'a>(&'a mut self, input: &'a mut [u8], limits: &Limits) -> Result<Step<'a>, WsError> {
        self.decode_extended(input, limits, None)
    }

    /// Like [`decode`](Self::decode); with an `inflater` for a connection that has negotiated
    /// permessage-deflate. A compressed message is lent from there.
    ///
    /// # Errors
    ///
    /// As of [`decode`](Self::decode); what a compressed message holds is judged when it is whole.
    pub fn decode_extended<'a>(
        &'a mut self,
        input: &'a mut [u8],
        limits: &Limits,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<Step<'a>, WsError> {
        self.release();
        let (consumed, found) = self.find(input, limits, inflater.is_some())?;
        let Some(Found { op, compressed, input: place }) = found else {
            self.release();
            return Ok(Step { consumed, message: None });
        };
        let payload = match place {
            Some((start, end)) => input.get(start..end).unwrap_or_default(),
            None => self.stored(op),
        };
        let payload = match inflater {
            Some(inflater) if compressed => inflater.message(payload, limits.message_bytes)?,
            _ => payload,
        };
        Ok(Step { consumed, message: Some(message(op, payload)?) })
    }

    /// Walks to the end of the next message; how many bytes of `input` that takes.
    fn find(
        &mut self,
        input: &mut [u8],
        limits: &Limits,
        deflate: bool,
    ) -> Result<(usize, Option<Found>), WsError> {
        let mut at = 0;
        loop {
            let rest = input.get_mut(at..).unwrap_or_default();
            if rest.is_empty() {
                return Ok((at, None));
            }
            let (used, found) = match &mut self.partial {
                Some(partial) if partial.header_len > 0 => {
                    (partial.resume_header(rest, limits, deflate)?, None)
                }
                Some(partial) if partial.frame.is_some() => (partial.payload(rest)?, None),
                _ => self.frame(rest, limits, deflate)?,
            };
            if let Some(mut found) = found {
                found.input = found.input.map(|(from, to)| (at + from, at + to));
                return Ok((at + used, Some(found)));
            }
            at += used;
            // A frame without payload has to be finished even if no byte is left to do it with.
            if let Some(partial) = &mut self.partial
                && let Some(found) = partial.finish_frame()?
            {
                return Ok((at, Some(found)));
            }
        }
    }

    fn stored(&self, op: OpCode) -> &[u8] {
        let Some(partial) = &self.partial else { return &[] };
        if op.is_control() {
            return &partial.control;
        }
        partial.message.as_ref().map(|message| message.bytes.as_slice()).unwrap_or_default()
    }

    /// A frame begins at the start of `rest`, which is not empty.
    fn frame(
        &mut self,
        rest: &mut [u8],
        limits: &Limits,
        deflate: bool,
    ) -> Result<(usize, Option<Found>), WsError> {
        let Some((header, length)) = FrameHeader::parse_extended(rest, deflate)? else {
            let partial = self.partial.get_or_insert_default();
            return Ok((partial.keep_header(rest), None));
        };
        let assembling = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        check(&header, assembling, limits)?;
        let available = rest.len() - length;
        let whole = header.len <= available as u64;
        let alone = header.op.is_control() || (header.fin && header.op != OpCode::Continuation);
        if whole && alone {
            let end = length + header.len as usize;
            mask::apply(rest.get_mut(length..end).unwrap_or_default(), header.key, 0);
            let FrameHeader { op, compressed, .. } = header;
            return Ok((end, Some(Found { op, compressed, input: Some((length, end)) })));
        }
        self.partial.get_or_insert_default().begin(header);
        Ok((length, None))
    }
}

impl Partial {
    /// Keeps the bytes of an incomplete header, of which there are less than its maximum. Returns their
    /// number.
    fn keep_header(&mut self, bytes: &[u8]) -> usize {
        let room = self.header.get_mut(self.header_len..).unwrap_or_default();
        let count = bytes.len().min(room.len());
        for (slot, byte) in room.iter_mut().zip(bytes) {
            *slot = *byte;
        }
        self.header_len += count;
        count
    }

    /// Goes on with a header of which some is kept. Returns how many bytes of `rest` belong to it.
    fn resume_header(&mut self, rest: &[u8], limits: &Limits, deflate: bool) -> Result<usize, WsError> {
        let kept = self.header_len;
        let copied = self.keep_header(rest);
        let known = self.header.get(..self.header_len).unwrap_or_default();
        let Some((header, length)) = FrameHeader::parse_extended(known, deflate)? else { return Ok(copied) };
        check(&header, self.message.as_ref(), limits)?;
        self.header_len = 0;
        self.begin(header);
        Ok(length.saturating_sub(kept))
    }

    /// Takes up a checked frame whose payload will be collected here.
    fn begin(&mut self, header: FrameHeader) {
        self.frame = Some((header, 0));
        if header.op.is_control() {
            self.control = Vec::new();
            return;
        }
        let message = self.message.get_or_insert(Assembly {
            text: header.op == OpCode::Text,
            compressed: header.compressed,
            bytes: Vec::new(),
            valid: 0,
            fragments: 0,
        });
        message.fragments += 1;
    }

    /// Collects payload of the current frame. Returns how much of `rest` that was.
    fn payload(&mut self, rest: &mut [u8]) -> Result<usize, WsError> {
        let Some((header, received)) = &mut self.frame else { return Ok(0) };
        let left = usize::try_from(header.len - *received).unwrap_or(usize::MAX);
        let count = left.min(rest.len());
        let piece = rest.get_mut(..count).unwrap_or_default();
        mask::apply(piece, header.key, (*received % 4) as usize);
        *received += count as u64;
        if header.op.is_control() {
            self.control.reserve_exact(CONTROL_BYTES.min(left));
            self.control.extend_from_slice(piece);
        } else if let Some(message) = &mut self.message {
            message.bytes.extend_from_slice(piece);
            message.check_text()?;
        }
        Ok(count)
    }

    /// Ends the current frame if its payload is whole, and tells what message ends with it, if any.
    fn finish_frame(&mut self) -> Result<Option<Found>, WsError> {
        let Some((header, received)) = self.frame else { return Ok(None) };
        if received < header.len {
            return Ok(None);
        }
        self.frame = None;
        if header.op.is_control() {
            self.lent = Lent::Control;
            return Ok(Some(Found { op: header.op, compressed: false, input: None }));
        }
        let Some(message) = self.message.as_ref().filter(|_| header.fin) else { return Ok(None) };
        let (compressed, text) = (message.compressed, message.text);
        if text && !compressed && message.valid < message.bytes.len() {
            return Err(WsError::InvalidUtf8);
        }
        self.lent = Lent::Message;
        let op = if text { OpCode::Text } else { OpCode::Binary };
        Ok(Some(Found { op, compressed, input: None }))
    }
}

impl Assembly {
    /// Checks what of the text has arrived since the last call (RFC 6455 8.1). Up to three bytes at the end
    /// may be the beginning of a character, and are looked at again.
    fn check_text(&mut self) -> Result<(), WsError> {
        if !self.text || self.compressed {
            return Ok(());
        }
        let unchecked = self.bytes.get(self.valid..).unwrap_or_default();
        match simdutf8::compat::from_utf8(unchecked) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(WsError::InvalidUtf8),
        }
        Ok(())
    }
}

/// Checks a header against the message it belongs to: order, size, number of frames (RFC 6455 5.4).
fn check(header: &FrameHeader, assembling: Option<&Assembly>, limits: &Limits) -> Result<(), WsError> {
    if header.op.is_control() {
        return Ok(());
    }
    let (bytes, fragments) = match (header.op, assembling) {
        (OpCode::Continuation, None) => return Err(WsError::UnexpectedContinuation),
        (OpCode::Continuation, Some(message)) => (message.bytes.len(), message.fragments),
        (_, Some(_)) => return Err(WsError::ExpectedContinuation),
        (_, None) => (0, 0),
    };
    if header.len > (limits.message_bytes as u64).saturating_sub(bytes as u64) {
        return Err(WsError::TooBig);
    }
    if fragments >= limits.fragments { Err(WsError::TooManyFragments) } else { Ok(()) }
}

/// Whether a close frame may say `code` (RFC 6455 7.4.1, 7.4.2, and the codes registered since).
#[must_use]
pub fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Gives unmasked bytes their meaning.
fn message(op: OpCode, payload: &[u8]) -> Result<Message<'_>, WsError> {
    let text = |bytes| simdutf8::basic::from_utf8(bytes).map_err(|_| WsError::InvalidUtf8);
    Ok(match op {
        OpCode::Text => Message::Text(text(payload)?),
        OpCode::Ping => Message::Ping(payload),
        OpCode::Pong => Message::Pong(payload),
        OpCode::Close => match payload {
            [] => Message::Close(None),
            [_] => return Err(WsError::CloseLength),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !is_close_code(code) {
                    return Err(WsError::CloseCode(code));
                }
                Message::Close(Some((code, text(reason)?)))
            }
        },
        // A continuation never comes here: what it ends is reported as text or binary.
        OpCode::Binary | OpCode::Continuation => Message::Binary(payload),
    })
}

#[cfg(test)]
mod tests;
