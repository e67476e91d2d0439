//! Bodies of requests as they arrive (RFC 9112 6 and 7.1).

use super::{Framing, HttpError, is_token_byte, is_value_byte};

/// Bytes of chunk extensions that one body may carry. They are ignored, so they are only ever a way to make
/// the server read without getting on.
const EXTENSION_BYTES: usize = 4 * 1024;

/// Bytes of a trailer section. It is read and dropped.
const TRAILER_BYTES: usize = 8 * 1024;

/// Hexadecimal digits of a chunk size; 16 of them are 64 bits.
const SIZE_DIGITS: u8 = 16;

/// Takes the chunks out of a chunked body (RFC 9112 7.1). Extensions and trailers are checked and dropped.
///
/// ```
/// use sockring::protocol::http::ChunkedDecoder;
///
/// let mut decoder = ChunkedDecoder::new(1_000_000);
/// let mut body = Vec::new();
/// assert_eq!(decoder.decode(b"3\r\nab", &mut body)?, (5, false));
/// assert_eq!(decoder.decode(b"c\r\n0\r\n\r\nGET", &mut body)?, (8, true));
/// assert_eq!(body, b"abc");
/// # Ok::<(), sockring::protocol::http::HttpError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChunkedDecoder {
    state: State,
    /// How many more bytes the body may have.
    room: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl ChunkedDecoder {
    /// A decoder for one body of at most `max_body` bytes after decoding.
    #[must_use]
    pub fn new(max_body: usize) -> Self {
        Self {
            state: State::Size { digits: 0, size: 0 },
            room: max_body as u64,
            extension_bytes: 0,
            trailer_bytes: 0,
        }
    }

    /// Decodes `input` and appends the data to `out`. Returns how many bytes of `input` were used and whether
    /// the body has ended; bytes after its end are left alone. Unless it has ended, everything was used.
    ///
    /// # Errors
    ///
    /// [`HttpError::BodyTooLarge`] when a chunk is announced that goes beyond the limit, and the errors about
    /// chunks, extensions and trailers.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, bool), HttpError> {
        let mut rest = input;
        while self.state != State::Done {
            if let State::Data { left } = self.state {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                let (data, after) = rest.split_at(length);
                out.extend_from_slice(data);
                rest = after;
                let left = left - length as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                if left > 0 {
                    break;
                }
            }
            let [byte, after @ ..] = rest else { break };
            self.state = self.next(*byte)?;
            rest = after;
        }
        Ok((input.len() - rest.len(), self.state == State::Done))
    }

    /// How many more bytes the body may have, those of the chunk that is being read included.
    fn room(&self) -> u64 {
        match self.state {
            State::Data { left } => self.room + left,
            _ => self.room,
        }
    }

    /// The state after one byte that is not chunk data.
    fn next(&mut self, byte: u8) -> Result<State, HttpError> {
        Ok(match (self.state, byte) {
            (State::Size { digits, size }, _) => self.size_byte(digits, size, byte)?,
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { size }, _) => {
                self.extension_bytes += 1;
                if !is_value_byte(byte) {
                    return Err(if byte == b'\n' { HttpError::LineEnd } else { HttpError::ChunkSize });
                }
                if self.extension_bytes > EXTENSION_BYTES {
                    return Err(HttpError::ChunkExtensions);
                }
                State::Extension { size }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') => {
                self.room = self.room.checked_sub(size).ok_or(HttpError::BodyTooLarge)?;
                State::Data { left: size }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataCr, _) => return Err(HttpError::ChunkData),
            (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _) => self.trailer_byte(byte)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (State::SizeLf { .. } | State::DataLf | State::TrailerLf | State::EndLf, _) => {
                return Err(HttpError::LineEnd);
            }
            // Both are handled by `decode` and never come here.
            (State::Data { .. } | State::Done, _) => self.state,
        })
    }

    fn size_byte(&self, digits: u8, size: u64, byte: u8) -> Result<State, HttpError> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if digits > 0 => return Ok(State::SizeLf { size }),
            b';' if digits > 0 => return Ok(State::Extension { size }),
            b'\n' => return Err(HttpError::LineEnd),
            _ => return Err(HttpError::ChunkSize),
        };
        if digits == SIZE_DIGITS {
            return Err(HttpError::ChunkSize);
        }
        let size = (size << 4) | u64::from(digit);
        // Refused here already, so that no further byte of such a chunk is waited for.
        if size > self.room {
            Err(HttpError::BodyTooLarge)
        } else {
            Ok(State::Size { digits: digits + 1, size })
        }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, HttpError> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES {
            return Err(HttpError::TrailersTooLarge);
        }
        match (self.state, byte) {
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => Ok(State::TrailerName),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if is_value_byte(byte) => Ok(State::TrailerValue),
            (_, b'\n') => Err(HttpError::LineEnd),
            (State::TrailerValue, _) => Err(HttpError::FieldValue),
            _ => Err(HttpError::FieldName),
        }
    }
}

/// The body of a request while it arrives, whatever delimits it: keeps what was decoded and nothing else.
///
/// Memory follows the bytes of the body that have come, neither the length that was announced nor the bytes
/// that chunks add: at most twice what was decoded and not taken, and never more than the body may have.
///
/// ```
/// use sockring::protocol::http::{BodyReader, Framing};
///
/// let mut body = BodyReader::new(Framing::Chunked, 1_000_000);
/// assert_eq!(body.read(b"1\r\na\r\n1\r\n")?, 9);
/// assert_eq!((body.received(), body.is_complete()), (1, false));
/// assert_eq!(body.read(b"b\r\n0\r\n\r\nGET")?, 8);
/// assert!(body.is_complete());
/// assert_eq!(body.take(), b"ab");
/// # Ok::<(), sockring::protocol::http::HttpError>(())
/// ```
#[derive(Debug, Clone)]
pub struct BodyReader {
    left: Left,
    /// What was decoded and not taken.
    data: Vec<u8>,
    /// Bytes that were decoded.
    received: u64,
}

/// What is still to come.
#[derive(Debug, Clone)]
enum Left {
    Bytes(u64),
    Chunks(ChunkedDecoder),
}

impl BodyReader {
    /// A reader for one body of at most `max_body` bytes after decoding. A length that is announced counts
    /// as it is: refuse one that is too large with [`Framing::check`] before.
    #[must_use]
    pub fn new(framing: Framing, max_body: usize) -> Self {
        let left = match framing {
            Framing::None => Left::Bytes(0),
            Framing::Length(length) => Left::Bytes(length),
            Framing::Chunked => Left::Chunks(ChunkedDecoder::new(max_body)),
        };
        Self { left, data: Vec::new(), received: 0 }
    }

    /// Takes from `input` what belongs to the body. Returns how many bytes that were: all of them, unless
    /// the body has ended; bytes after its end are left alone.
    ///
    /// # Errors
    ///
    /// As of [`ChunkedDecoder::decode`].
    pub fn read(&mut self, input: &[u8]) -> Result<usize, HttpError> {
        let before = self.data.len();
        self.reserve(input.len());
        let used = match &mut self.left {
            Left::Bytes(left) => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                self.data.extend_from_slice(input.get(..used).unwrap_or_default());
                *left -= used as u64;
                used
            }
            Left::Chunks(decoder) => decoder.decode(input, &mut self.data)?.0,
        };
        self.received += (self.data.len() - before) as u64;
        Ok(used)
    }

    /// Makes room for as many bytes, in steps that double, and for no more than the body may still have.
    fn reserve(&mut self, bytes: usize) {
        let room = match &self.left {
            Left::Bytes(left) => *left,
            Left::Chunks(decoder) => decoder.room(),
        };
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let needed = bytes.min(room);
        if self.data.capacity() - self.data.len() < needed {
            self.data.reserve_exact(needed.max(self.data.len().min(room)));
        }
    }

    /// Whether all of it has come, taken or not.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match &self.left {
            Left::Bytes(left) => *left == 0,
            Left::Chunks(decoder) => decoder.state == State::Done,
        }
    }

    /// How many bytes of the body have come, decoded and taken or not. Sizes of chunks, their extensions and
    /// trailers do not count.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many bytes wait to be taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.data.len()
    }

    /// Takes what has come since the last time.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(input: &[u8], max_body: usize) -> Result<(Vec<u8>, usize, bool), HttpError> {
        let mut out = Vec::new();
        let (used, done) = ChunkedDecoder::new(max_body).decode(input, &mut out)?;
        Ok((out, used, done))
    }

    #[test]
    fn takes_chunks_extensions_and_trailers() {
        let whole = b"5;a=b; c\r\nhello\r\n01\r\n!\r\n000\r\nX-A: b\r\nY:\r\n\r\nrest";
        let (out, used, done) = decode(whole, 6).unwrap();
        assert_eq!((out.as_slice(), used, done), (&b"hello!"[..], whole.len() - 4, true));
        assert_eq!(decode(b"0\r\n\r\n", 0).unwrap(), (vec![], 5, true));
        assert_eq!(decode(b"", 0).unwrap(), (vec![], 0, false));
    }

    #[test]
    fn refuses_malformed_chunks() {
        for (input, error) in [
            (&b"0x2\r\nab\r\n"[..], HttpError::ChunkSize),
            (b"+2\r\nab\r\n", HttpError::ChunkSize),
            (b"-2\r\nab\r\n", HttpError::ChunkSize),
            (b"1_0\r\n", HttpError::ChunkSize),
            (b" 2\r\nab\r\n", HttpError::ChunkSize),
            (b"2 \r\nab\r\n", HttpError::ChunkSize),
            (b"\r\nab\r\n", HttpError::ChunkSize),
            (b";a\r\n", HttpError::ChunkSize),
            (b"00000000000000001\r\n", HttpError::ChunkSize),
            (b"2\nab\r\n", HttpError::LineEnd),
            (b"2\rab\r\n", HttpError::LineEnd),
            (b"2;a\nab\r\n", HttpError::LineEnd),
            (b"2;a\0\r\n", HttpError::ChunkSize),
            (b"2\r\nabc\r\n", HttpError::ChunkData),
            (b"2\r\nab\n", HttpError::ChunkData),
            (b"2\r\nab\rx", HttpError::LineEnd),
            (b"0\r\n\n", HttpError::LineEnd),
            (b"0\r\n folded: x\r\n\r\n", HttpError::FieldName),
            (b"0\r\nno colon\r\n\r\n", HttpError::FieldName),
            (b"0\r\na: b\0\r\n\r\n", HttpError::FieldValue),
            (b"0\r\na: b\n\r\n", HttpError::LineEnd),
        ] {
            assert_eq!(decode(input, 100), Err(error), "{:?}", String::from_utf8_lossy(input));
            assert_eq!(error.status(), 400);
        }
    }

    #[test]
    fn refuses_too_much_of_anything() {
        assert_eq!(decode(b"b", 10), Err(HttpError::BodyTooLarge));
        assert_eq!(decode(b"5\r\nhello\r\n5", 10), Ok((b"hello".to_vec(), 11, false)));
        assert_eq!(decode(b"5\r\nhello\r\n6", 10), Err(HttpError::BodyTooLarge));
        assert_eq!(decode(b"ffffffffffffffff\r\n", 10), Err(HttpError::BodyTooLarge));
        let mut long = b"1;".to_vec();
        long.resize(EXTENSION_BYTES + 10, b'x');
        assert_eq!(decode(&long, 10).unwrap_err().status(), 413);
        let mut long = b"0\r\na:".to_vec();
        long.resize(TRAILER_BYTES + 10, b'x');
        assert_eq!(decode(&long, 10).unwrap_err().status(), 431);
    }

    /// A body in chunks of `size` bytes, with sizes of `digits` digits.
    fn in_chunks(body: &[u8], size: usize, digits: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        for chunk in body.chunks(size) {
            wire.extend_from_slice(format!("{:0digits$x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        wire
    }

    #[test]
    #[cfg_attr(miri, ignore = "half a megabyte takes miri minutes")]
    fn what_is_kept_follows_what_was_decoded() {
        const BODY: usize = 20_000;
        let body = vec![b'x'; BODY];
        for (size, digits) in [(1, 16), (1, 1), (7, 3), (1000, 1), (BODY, 5)] {
            for piece in [1, 5, 4096] {
                let mut reader = BodyReader::new(Framing::Chunked, BODY);
                for piece in in_chunks(&body, size, digits).chunks(piece) {
                    assert_eq!(reader.read(piece), Ok(piece.len()));
                    let most = (2 * reader.waiting()).max(reader.waiting() + piece.len()).min(BODY);
                    assert!(reader.data.capacity() <= most, "{} of {most}", reader.data.capacity());
                }
                assert!(reader.is_complete());
                assert_eq!(reader.received(), BODY as u64);
                assert_eq!(reader.take(), body);
            }
        }
    }

    #[test]
    fn a_length_reserves_nothing() {
        let mut reader = BodyReader::new(Framing::Length(1 << 60), usize::MAX);
        assert_eq!(reader.read(b"abc"), Ok(3));
        assert!(reader.data.capacity() < 100 && !reader.is_complete());
        let mut reader = BodyReader::new(Framing::Length(2), 2);
        assert_eq!((reader.read(b"abc"), reader.is_complete()), (Ok(2), true));
        assert_eq!((reader.read(b"c"), reader.data.capacity()), (Ok(0), 2));
        let mut reader = BodyReader::new(Framing::None, 2);
        assert_eq!((reader.is_complete(), reader.read(b"abc")), (true, Ok(0)));
    }

    proptest! {
        /// Whatever the sizes of chunks, extensions, trailers and pieces: what is kept is bounded by what was
        /// decoded and one piece, and the body is the same.
        #[test]
        fn a_reader_keeps_what_was_decoded(
            chunks in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 1..20), "(;[a-z=]{0,9})?"),
                0..20,
            ),
            trailers in prop::collection::vec("[a-z]{1,5}: [a-z]{0,9}\r\n", 0..3),
            digits in 1usize..=16,
            piece in 1usize..40,
            take in any::<bool>(),
        ) {
            let mut wire = Vec::new();
            for (chunk, extension) in &chunks {
                wire.extend_from_slice(format!("{:0digits$x}{extension}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(format!("0\r\n{}\r\n", trailers.concat()).as_bytes());
            let body: Vec<u8> = chunks.into_iter().flat_map(|(chunk, _)| chunk).collect();
            let (mut reader, mut seen) = (BodyReader::new(Framing::Chunked, body.len()), Vec::new());
            for bytes in wire.chunks(piece) {
                prop_assert!(!reader.is_complete());
                prop_assert_eq!(reader.read(bytes), Ok(bytes.len()));
                prop_assert!(reader.data.capacity() <= (2 * reader.waiting()).max(reader.waiting() + piece));
                prop_assert_eq!(reader.received() as usize, seen.len() + reader.waiting());
                if take {
                    seen.extend(reader.take());
                }
            }
            seen.extend(reader.take());
            prop_assert!(reader.is_complete());
            prop_assert_eq!(seen, body);
        }

        #[test]
        fn round_trip_in_any_pieces(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nT: v\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let (mut decoder, mut out, mut done) = (ChunkedDecoder::new(1 << 16), Vec::new(), false);
            for pair in cuts.windows(2) {
                let piece = &wire[pair[0]..pair[1]];
                let (used, finished) = decoder.decode(piece, &mut out).unwrap();
                prop_assert_eq!(used, piece.len());
                done |= finished;
            }
            prop_assert!(done);
            prop_assert_eq!(out, chunks.concat());
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..200,
        ) {
            let whole = decode(&bytes, 64);
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (mut decoder, mut out) = (ChunkedDecoder::new(64), Vec::new());
            let pieces = decoder.decode(first, &mut out).and_then(|(used, done)| {
                if done { return Ok((used, true)); }
                decoder.decode(second, &mut out).map(|(more, done)| (used + more, done))
            });
            prop_assert_eq!(whole, pieces.map(|(used, done)| (out, used, done)));
        }
    }
}
