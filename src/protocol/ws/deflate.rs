//! Compressing and inflating messages (RFC 7692 7.2).

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status};

use super::WsError;

/// The empty block that ends every message and is not sent (RFC 7692 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// How much room an output gets at first, in bytes; it doubles from there.
const FIRST_ROOM: usize = 1024;

/// Bytes of inflated output that an [`Inflater`] keeps room for between messages.
const KEPT_BYTES: usize = 64 * 1024;

/// How a compressor is made. What it makes of a message without context depends on this and the message only.
///
/// ```
/// use sockring::protocol::ws::deflate::Settings;
/// use sockring::protocol::ws::extensions::PerMessageDeflate;
///
/// let settings = Settings::new(&PerMessageDeflate::default(), 12);
/// assert_eq!((settings.threshold, settings.window_bits), (1024, 12));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Messages of fewer bytes are not worth it.
    pub threshold: usize,
    /// zlib's level, 0 to 9.
    pub level: u8,
    /// zlib's `memLevel`, 1 to 9.
    pub mem_level: u8,
    /// The window as a power of two, 9 to 15.
    pub window_bits: u8,
}

impl Settings {
    /// What an operator has set, for a window that was agreed. Values out of range are moved into it.
    ///
    /// A window of 8 bits becomes one of 9: zlib looks back no further than its window less 262 bytes, 250
    /// here, so what it writes is good for a window of 256 bytes as well.
    #[must_use]
    pub fn new(options: &super::extensions::PerMessageDeflate, window_bits: u8) -> Self {
        Self {
            threshold: options.threshold,
            level: options.level.min(9),
            mem_level: options.mem_level.clamp(1, 9),
            window_bits: window_bits.clamp(9, 15),
        }
    }
}

/// A compressor: 130 to 390 KB, most of them zlib's tables.
///
/// ```
/// use sockring::protocol::ws::deflate::{Deflater, Inflater, Settings};
/// use sockring::protocol::ws::extensions::PerMessageDeflate;
///
/// let mut deflater = Deflater::new(&Settings::new(&PerMessageDeflate::default(), 15));
/// let (text, mut out) = ("to be or not to be ".repeat(100), Vec::new());
/// assert!(deflater.alone(text.as_bytes(), &mut out));
/// assert!(out.len() < 60);
/// assert_eq!(Inflater::alone().message(&out, 2000)?, text.as_bytes());
/// # Ok::<(), sockring::protocol::ws::WsError>(())
/// ```
// In a box: zlib-rs 0.6.8 keeps a `&mut` to the memory that it frees when it is dropped. A function that
// takes such a value as an argument and drops it breaks the rules of references (its issue 491).
pub struct Deflater(Box<Deflate>);

impl std::fmt::Debug for Deflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflater").field("bytes_in", &self.0.total_in()).finish_non_exhaustive()
    }
}

impl Deflater {
    /// Allocates.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self(Box::new(Deflate::new_with_config(DeflateConfig {
            level: i32::from(settings.level.min(9)),
            // Negative: without zlib's own header.
            window_bits: -i32::from(settings.window_bits.clamp(9, 15)),
            mem_level: i32::from(settings.mem_level.clamp(1, 9)),
            ..DeflateConfig::default()
        })))
    }

    /// Appends the payload of a message that is compressed by itself. `false`, with nothing appended: that
    /// would not be shorter than the message is.
    pub fn alone(&mut self, message: &[u8], out: &mut Vec<u8>) -> bool {
        self.0.reset();
        let start = out.len();
        self.next(message, out);
        let shorter = out.len() - start < message.len();
        if !shorter {
            out.truncate(start);
        }
        shorter
    }

    /// Appends the payload of a message that may refer to those before it. It must be sent: the client's next
    /// message builds on it.
    pub fn next(&mut self, mut message: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let mut written = start;
        loop {
            // Always to the end, also when it grows beyond the message: zlib-rs 0.6.8 does not forget what
            // it has not put out yet when it is reset, and panics later.
            let room = (written - start).max(FIRST_ROOM).max(message.len() / 4);
            out.resize(written + room, 0);
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let into = out.get_mut(written..).unwrap_or_default();
            let status = self.0.compress(message, into, DeflateFlush::SyncFlush);
            let used = (self.0.total_in() - before_in) as usize;
            let made = (self.0.total_out() - before_out) as usize;
            message = message.get(used..).unwrap_or_default();
            written += made;
            // Room that is left over means that all is out. An error would mean that there was nothing to do.
            if made < room || status.is_err() {
                break;
            }
        }
        out.truncate(written);
        if written - start >= TAIL.len() && out.ends_with(&TAIL) {
            out.truncate(written - TAIL.len());
        }
        if out.len() == start {
            // An empty message, or a flush right behind another (RFC 7692 7.2.3.6).
            out.push(0);
        }
    }
}

/// Inflates messages, each only as far as a limit: about 40 KB, and the output.
///
/// ```
/// use sockring::protocol::ws::{WsError, deflate::Inflater};
///
/// // RFC 7692 7.2.3.1
/// let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
/// let mut inflater = Inflater::alone();
/// assert_eq!(inflater.message(&hello, 5)?, b"Hello");
/// assert_eq!(inflater.message(&hello, 4), Err(WsError::TooBig));
/// # Ok::<(), WsError>(())
/// ```
pub struct Inflater {
    /// Made for the first message; in a box for the reason that [`Deflater`] has.
    inflate: Option<Box<Inflate>>,
    context: bool,
    out: Vec<u8>,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Inflater {
    /// For messages that are compressed each by itself, of any number of clients.
    #[must_use]
    pub fn alone() -> Self {
        Self { inflate: None, context: false, out: Vec::new() }
    }

    /// For the messages of one client, each of which may refer to those before it.
    #[must_use]
    pub fn with_context() -> Self {
        Self { context: true, ..Self::alone() }
    }

    /// Whether it remembers messages.
    #[must_use]
    pub fn keeps_context(&self) -> bool {
        self.context
    }

    /// Whether it has inflated anything; until then it owns no memory.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.inflate.is_some()
    }

    /// Inflates a message's payload, which is lent until the next call. `limit` counts bytes of the message.
    ///
    /// # Errors
    ///
    /// [`WsError::TooBig`] as soon as the limit is passed, with no more than that inflated;
    /// [`WsError::Corrupt`] for what is no DEFLATE. One that keeps context is of no use afterwards.
    pub fn message(&mut self, payload: &[u8], limit: usize) -> Result<&[u8], WsError> {
        self.release();
        // A compressor writes at least one byte; an empty payload is no reason to disturb the state.
        if payload.is_empty() {
            self.out.clear();
            return Ok(&self.out);
        }
        match &mut self.inflate {
            // The largest window reads what was compressed with any.
            inflate @ None => *inflate = Some(Box::new(Inflate::new(false, 15))),
            Some(inflate) if !self.context => inflate.reset(false),
            Some(_) => {}
        }
        let mut written = 0;
        if let Some(inflate) = &mut self.inflate {
            for piece in [payload, &TAIL] {
                written = inflate_piece(inflate, piece, &mut self.out, written, limit)?;
            }
        }
        self.out.truncate(written);
        Ok(&self.out)
    }

    /// Drops the output's room if it is large.
    pub fn release(&mut self) {
        if self.out.capacity() > KEPT_BYTES {
            self.out = Vec::new();
        }
    }
}

/// Inflates `input` behind the first `written` bytes of `out`, and tells how many there are then.
fn inflate_piece(
    inflate: &mut Inflate,
    mut input: &[u8],
    out: &mut Vec<u8>,
    mut written: usize,
    limit: usize,
) -> Result<usize, WsError> {
    loop {
        if out.len() == written {
            // One byte beyond the limit tells a message that reaches it from one that passes it.
            let room = written.saturating_mul(2).max(FIRST_ROOM).min(limit.saturating_add(1));
            let room = room.max(written + 1);
            out.reserve_exact(room - written);
            out.resize(room, 0);
        }
        let into = out.get_mut(written..).unwrap_or_default();
        let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(input, into, InflateFlush::SyncFlush);
        let used = (inflate.total_in() - before_in) as usize;
        let made = (inflate.total_out() - before_out) as usize;
        input = input.get(used..).unwrap_or_default();
        written += made;
        if written > limit {
            return Err(WsError::TooBig);
        }
        match status {
            // A block marked as the last one (RFC 7692 7.2.3.4): what follows begins anew.
            Ok(Status::StreamEnd) => inflate.reset(false),
            Ok(_) => {}
            Err(_) => return Err(WsError::Corrupt),
        }
        let stuck = used == 0 && made == 0;
        if stuck || (input.is_empty() && written < out.len()) {
            return Ok(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ws::extensions::PerMessageDeflate;
    use proptest::prelude::*;

    /// Of a message; miri takes a minute to compress more.
    const BYTES: usize = if cfg!(miri) { 300 } else { 5000 };

    fn deflater(level: u8, mem_level: u8, window_bits: u8) -> Deflater {
        Deflater::new(&Settings { threshold: 0, level, mem_level, window_bits })
    }

    fn text(bytes: usize) -> Vec<u8> {
        let words = ["news ", "price ", "1042.5 ", "lobby ", "{\"id\":7} "];
        let mut state = 1u32;
        let mut out = Vec::new();
        while out.len() < bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.extend_from_slice(words[(state >> 24) as usize % words.len()].as_bytes());
        }
        out.truncate(bytes);
        out
    }

    #[test]
    fn the_examples_of_the_rfc() {
        let mut inflater = Inflater::alone();
        let hello = b"Hello";
        // 7.2.3.1, 7.2.3.3 (not compressed), 7.2.3.4 (a last block), 7.2.3.5 (two blocks).
        for payload in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(inflater.message(payload, 100).as_deref(), Ok(&hello[..]), "{payload:x?}");
        }
        // 7.2.3.6, and a frame without any payload.
        assert_eq!(inflater.message(&[0], 100).as_deref(), Ok(&b""[..]));
        assert_eq!(inflater.message(&[], 100).as_deref(), Ok(&b""[..]));
        // 7.2.3.2: the second message refers to the first.
        let mut inflater = Inflater::with_context();
        for payload in
            [&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &[0xf2, 0x00, 0x11, 0x00, 0x00], &[0x00]]
        {
            let expected = if payload.len() == 1 { &b""[..] } else { hello };
            assert_eq!(inflater.message(payload, 100).as_deref(), Ok(expected));
        }
        let mut alone = Inflater::alone();
        assert_eq!(alone.message(&[0xf2, 0x00, 0x11, 0x00, 0x00], 100), Err(WsError::Corrupt));
    }

    #[test]
    #[cfg_attr(miri, ignore = "50 MB, and even a five-hundredth of it takes miri ten minutes")]
    fn a_bomb_is_inflated_to_its_limit_only() {
        const BOMB: usize = 50_000_000;
        const LIMIT: usize = BOMB / 500;
        let mut out = Vec::new();
        assert!(deflater(9, 8, 15).alone(&vec![0; BOMB], &mut out));
        assert!(out.len() < BOMB / 800);
        let mut inflater = Inflater::alone();
        assert_eq!(inflater.message(&out, LIMIT), Err(WsError::TooBig));
        assert!(inflater.out.capacity() <= LIMIT + 1, "{}", inflater.out.capacity());
        assert_eq!(inflater.message(&out, BOMB - 1), Err(WsError::TooBig));
        assert_eq!(inflater.message(&out, BOMB).map(<[u8]>::len), Ok(BOMB));
        inflater.release();
        assert_eq!(inflater.out.capacity(), 0);
        assert_eq!(inflater.message(&out, 0), Err(WsError::TooBig));
    }

    #[test]
    fn empty_messages_are_one_byte() {
        let mut deflater = deflater(6, 8, 15);
        let mut inflater = Inflater::with_context();
        for message in [&b""[..], b"", b"x", b"", b"", b"xx"] {
            let mut out = Vec::new();
            deflater.next(message, &mut out);
            assert!(!out.is_empty());
            assert_eq!(inflater.message(&out, 10).as_deref(), Ok(message));
        }
        let mut out = Vec::new();
        assert!(!deflater.alone(b"", &mut out) && out.is_empty());
    }

    #[test]
    fn what_does_not_shrink_is_left_alone() {
        let mut state = 7u64;
        let noise: Vec<u8> = (0..BYTES)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let mut out = b"before".to_vec();
        assert!(!deflater(6, 8, 15).alone(&noise, &mut out));
        assert_eq!(out, b"before");
        assert!(!deflater(0, 8, 15).alone(&text(BYTES), &mut out));
    }

    /// Nothing that was compressed for a small window looks back further than that.
    #[test]
    #[cfg_attr(miri, ignore = "17 MB, since messages must be longer than windows: hours under miri")]
    fn small_windows_are_kept_to() {
        for (level, bits, limit) in [1, 2, 3, 4, 6, 9]
            .into_iter()
            .flat_map(|level| (9..=15u8).map(move |bits| (level, bits, if bits == 9 { 8 } else { bits })))
        {
            let message = text(200_000);
            let mut deflater = deflater(level, 8, bits);
            let mut small = Inflate::new(false, limit);
            for _ in 0..2 {
                let mut out = Vec::new();
                deflater.next(&message, &mut out);
                out.extend_from_slice(&TAIL);
                // Output by output of few bytes, so that only the window remembers what was before.
                let (mut input, mut back) = (&out[..], Vec::new());
                while !input.is_empty() || back.len() < message.len() {
                    let (mut piece, before) = ([0; 7], (small.total_in(), small.total_out()));
                    small.decompress(input, &mut piece, InflateFlush::SyncFlush).unwrap();
                    input = &input[(small.total_in() - before.0) as usize..];
                    back.extend_from_slice(&piece[..(small.total_out() - before.1) as usize]);
                }
                assert!(back == message, "level {level}, {bits} bits");
            }
        }
    }

    #[test]
    fn options_out_of_range_do_no_harm() {
        let wild = PerMessageDeflate {
            level: 200,
            mem_level: 0,
            server_max_window_bits: 0,
            ..PerMessageDeflate::default()
        };
        for bits in [0, 8, 15, 200] {
            let mut out = Vec::new();
            assert!(Deflater::new(&Settings::new(&wild, bits)).alone(&[7; BYTES], &mut out));
        }
    }

    proptest! {
        #[test]
        fn messages_come_back(
            messages in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..BYTES),
                    prop::collection::vec(prop_oneof![Just(b'a'), Just(b'b')], 0..BYTES),
                ],
                1..6,
            ),
            level in 0u8..=9,
            mem_level in 1u8..=9,
            window_bits in 8u8..=15,
        ) {
            let settings = Settings::new(
                &PerMessageDeflate { level, mem_level, ..PerMessageDeflate::default() },
                window_bits,
            );
            let (mut chained, mut shared) = (Deflater::new(&settings), Deflater::new(&settings));
            let (mut with_context, mut alone) = (Inflater::with_context(), Inflater::alone());
            for message in &messages {
                let mut out = Vec::new();
                chained.next(message, &mut out);
                prop_assert_eq!(with_context.message(&out, BYTES).unwrap(), &message[..]);
                out.clear();
                if shared.alone(message, &mut out) {
                    prop_assert!(out.len() < message.len());
                    prop_assert_eq!(alone.message(&out, message.len()).unwrap(), &message[..]);
                    prop_assert_eq!(alone.message(&out, message.len() - 1), Err(WsError::TooBig));
                }
            }
        }

        #[test]
        fn any_bytes_are_inflated_or_refused(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut inflater = Inflater::alone();
            let first = inflater.message(&payload, 1000).map(<[u8]>::to_vec);
            prop_assert!(first.as_ref().is_ok_and(|out| out.len() <= 1000) || first.is_err());
            prop_assert_eq!(inflater.message(&payload, 1000).map(<[u8]>::to_vec), first);
        }
    }
}
