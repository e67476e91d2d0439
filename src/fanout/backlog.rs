//! What a slow socket is still owed.

use std::collections::VecDeque;
use std::mem;

use super::Frame;
use crate::limits;

/// Frames that a socket could not take yet, by reference: a thousand stalled readers of one room share
/// the bytes.
///
/// ```
/// use sockring::fanout::{Backlog, Frame};
/// let mut backlog = Backlog::default();
/// backlog.push(Frame::raw("hello"));
/// backlog.consume(2);
/// let mut out = Vec::new();
/// backlog.copy_to(&mut out, 64);
/// assert_eq!(out, b"llo");
/// ```
#[derive(Debug, Default)]
pub struct Backlog {
    /// Bytes in their final form, which leave before the frames: TLS records, made before a socket was full.
    sealed: Vec<u8>,
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that have left already.
    sent: usize,
    /// Bytes of the frames that are still to be sent.
    bytes: usize,
    /// Bytes that wait for the same client in another place.
    elsewhere: usize,
}

impl Backlog {
    /// Adds a frame behind all others.
    pub fn push(&mut self, frame: Frame) {
        self.bytes += frame.wire().len();
        self.frames.push_back(frame);
    }

    /// Adds what waits in another backlog, of which nothing has left in part.
    pub fn append(&mut self, mut behind: Self) {
        debug_assert!(behind.sent == 0 && behind.sealed.is_empty());
        self.frames.append(&mut behind.frames);
        self.bytes += behind.bytes;
    }

    /// Bytes that are still to be sent.
    pub fn bytes(&self) -> usize {
        self.sealed.len() + self.bytes
    }

    /// Adds bytes in their final form behind those that are sealed already, and before all frames.
    ///
    /// ```
    /// use sockring::fanout::{Backlog, Frame};
    /// let mut backlog = Backlog::default();
    /// backlog.push(Frame::raw("later"));
    /// backlog.seal(b"first");
    /// assert_eq!((backlog.bytes(), backlog.take_sealed()), (10, b"first".to_vec()));
    /// ```
    pub fn seal(&mut self, bytes: &[u8]) {
        self.sealed.extend_from_slice(bytes);
    }

    /// Takes out the bytes that are in their final form.
    pub fn take_sealed(&mut self) -> Vec<u8> {
        mem::take(&mut self.sealed)
    }

    /// What it weighs against the limit of its client: its bytes, and the record of each frame.
    pub fn cost(&self) -> usize {
        self.bytes() + self.elsewhere + self.frames.len() * limits::FRAME_COST_BYTES
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.sealed.is_empty()
    }

    /// Forgets all frames but one of which a part has left: its reader must not take the next for its rest.
    pub fn discard(&mut self) {
        self.frames.truncate(usize::from(self.sent > 0));
        self.bytes = self.frames.front().map_or(0, |first| first.wire().len() - self.sent);
    }

    /// Copies what comes next of the frames, at most `max` bytes, behind what `out` holds.
    pub fn copy_to(&self, out: &mut Vec<u8>, max: usize) {
        let end = out.len() + max;
        let mut skip = self.sent;
        for frame in &self.frames {
            let rest = &frame.wire()[skip..];
            skip = 0;
            out.extend_from_slice(&rest[..rest.len().min(end - out.len())]);
            if out.len() == end {
                break;
            }
        }
    }

    /// Notes that `sent` bytes of the frames have left.
    pub fn consume(&mut self, mut sent: usize) {
        debug_assert!(sent <= self.bytes);
        self.bytes = self.bytes.saturating_sub(sent);
        sent += self.sent;
        while let Some(first) = self.frames.front() {
            if sent < first.wire().len() {
                break;
            }
            sent -= first.wire().len();
            self.frames.pop_front();
        }
        self.sent = sent;
    }

    /// Counts bytes that wait for the same client in another place against its limit as well.
    pub fn count_elsewhere(&mut self, bytes: usize) {
        self.elsewhere = bytes;
    }

    /// Takes the first frame out. Only for a backlog of which nothing has left in part.
    pub fn pop(&mut self) -> Option<Frame> {
        debug_assert_eq!(self.sent, 0);
        let frame = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(frame.wire().len());
        Some(frame)
    }

    /// Takes all frames out, of which nothing has left in part.
    pub(super) fn into_frames(self) -> impl Iterator<Item = Frame> {
        debug_assert_eq!(self.sent, 0);
        self.frames.into_iter()
    }

    /// Takes the first frames out that have at most so many packets together; always one, if there is any.
    /// Only for a backlog of which nothing has left in part.
    pub fn take(&mut self, packets_max: usize) -> Vec<Frame> {
        let (mut taken, mut packets) = (Vec::new(), 0);
        while let Some(frame) = self.frames.front() {
            packets += frame.packets();
            if !taken.is_empty() && packets > packets_max {
                break;
            }
            self.bytes = self.bytes.saturating_sub(frame.wire().len());
            taken.extend(self.frames.pop_front());
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_pattern_of_short_sends_yields_the_stream(
            frames in prop::collection::vec("[a-z]{0,9}", 0..20),
            takes in prop::collection::vec(1usize..12, 1..200),
        ) {
            let mut backlog = Backlog::default();
            let mut expected = String::new();
            for frame in &frames {
                backlog.push(Frame::raw(frame.clone()));
                expected.push_str(frame);
            }
            let mut stream = Vec::new();
            for take in takes.iter().cycle().take(400) {
                let mut out = Vec::new();
                backlog.copy_to(&mut out, *take);
                backlog.consume(out.len());
                stream.extend(out);
            }
            prop_assert_eq!(stream, expected.as_bytes());
            prop_assert_eq!(backlog.bytes(), 0);
        }
    }

    #[test]
    fn packets_are_counted_with_their_attachments() {
        let mut backlog = Backlog::default();
        for attachments in [0, 2, 0, 5] {
            let attachments = vec![bytes::Bytes::from_static(b"x"); attachments];
            backlog.push(Frame::message(&[b"4"], &attachments));
        }
        let mut take = |max| backlog.take(max).iter().map(Frame::packets).collect::<Vec<_>>();
        assert_eq!(take(4), [1, 3]);
        assert_eq!(take(4), [1]);
        assert_eq!(take(4), [6], "one that is too large goes alone");
        assert!(take(4).is_empty());
        assert_eq!(backlog.bytes(), 0);
    }

    #[test]
    fn what_waits_elsewhere_counts_until_it_is_said_otherwise() {
        let mut backlog = Backlog::default();
        backlog.push(Frame::raw("hello"));
        backlog.count_elsewhere(1000);
        assert_eq!(backlog.cost(), 1005 + limits::FRAME_COST_BYTES);
        assert_eq!(backlog.pop().map(|frame| frame.wire().len()), Some(5));
        backlog.count_elsewhere(0);
        assert!(backlog.pop().is_none() && backlog.cost() == 0);
    }

    #[test]
    fn a_frame_that_has_left_in_part_is_not_discarded() {
        let mut backlog = Backlog::default();
        backlog.push(Frame::raw("one"));
        backlog.push(Frame::raw("two"));
        backlog.consume(1);
        backlog.discard();
        let mut out = Vec::new();
        backlog.copy_to(&mut out, 64);
        assert_eq!((&out[..], backlog.bytes()), (&b"ne"[..], 2));
        backlog.consume(2);
        backlog.push(Frame::raw("three"));
        backlog.discard();
        assert!(backlog.is_empty() && backlog.bytes() == 0);
    }
}
