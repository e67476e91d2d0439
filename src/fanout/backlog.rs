//! What a slow socket is still owed.

use std::collections::VecDeque;
use std::mem;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::{Frame, Key};
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
    /// `None` for one that was dropped. The first is there.
    frames: VecDeque<Option<Frame>>,
    /// Frames that are there.
    len: usize,
    /// The number of the first frame; the others follow.
    first: u64,
    /// Bytes of the first frame that have left already.
    sent: usize,
    /// Bytes of the frames that are still to be sent.
    bytes: usize,
    /// Bytes that wait for the same client in another place.
    elsewhere: usize,
    /// Bytes that have left.
    taken: u64,
    /// What had left when the client was last seen to take some, and when that was, in ticks.
    progress: Option<(u64, u32)>,
    pace: Pace,
    droppable: Option<Box<Droppable>>,
}

/// What waited when a turn began, and what one turn has brought. A limit closes a client for what it has left
/// waiting, not for what a single handler emits before the client can read any of it.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// The turn that the counts are about.
    turn: u32,
    /// What counted when that turn began.
    before: Load,
    /// What the turn has added.
    brought: Load,
    /// What still waits of a turn that brought more than the limit alone: it does not count until it has
    /// left, and until then no other turn may bring as much.
    excused: Load,
}

/// An amount that waits for a client.
///
/// ```
/// use sockring::fanout::{Backlog, Frame};
/// let mut backlog = Backlog::default();
/// backlog.push(Frame::raw("hello"));
/// assert_eq!(backlog.load().messages, 1);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// What it weighs: its bytes, and the record of each frame.
    pub cost: usize,
    /// Frames.
    pub messages: usize,
}

impl Load {
    fn of(frame: &Frame) -> Self {
        Self { cost: frame.wire().len() + limits::FRAME_COST_BYTES, messages: 1 }
    }

    fn plus(self, other: Self) -> Self {
        Self { cost: self.cost + other.cost, messages: self.messages + other.messages }
    }

    fn minus(self, other: Self) -> Self {
        let messages = self.messages.saturating_sub(other.messages);
        Self { cost: self.cost.saturating_sub(other.cost), messages }
    }
}

/// The frames that may be dropped for later ones, by their numbers. Some of them may have left.
#[derive(Debug, Default)]
struct Droppable {
    order: VecDeque<u64>,
    latest: HashMap<Key, u64, RandomState>,
}

/// How many places of frames that were dropped are kept beside as many as there are frames.
const GAPS: usize = 16;

impl Backlog {
    /// Adds a frame behind all others.
    pub fn push(&mut self, frame: Frame) {
        if frame.is_droppable() {
            let number = self.first + self.frames.len() as u64;
            let droppable = self.droppable.get_or_insert_default();
            droppable.order.push_back(number);
            if let Some(key) = frame.key() {
                droppable.latest.insert(key, number);
            }
        }
        self.bytes += frame.wire().len();
        self.len += 1;
        self.frames.push_back(Some(frame));
    }

    /// Whether something waits and the client has taken none of it for `patience`, as far as it is asked now
    /// and then. `now` and `patience` are in ticks.
    pub(super) fn has_stalled(&mut self, now: u32, patience: u32) -> bool {
        match self.progress {
            Some((taken, since)) if taken == self.taken && self.bytes + self.sealed.len() > 0 => {
                now.wrapping_sub(since) >= patience
            }
            _ => {
                self.progress = Some((self.taken, now));
                false
            }
        }
    }

    /// Adds a frame of this turn behind all others.
    pub(super) fn bring(&mut self, frame: Frame) {
        self.pace.brought = self.pace.brought.plus(Load::of(&frame));
        self.push(frame);
    }

    /// Begins a turn, unless it has begun already. If the turn before brought more than `limit` alone, all
    /// that waits is excused.
    pub(super) fn begin_turn(&mut self, turn: u32, limit: usize) {
        if self.pace.turn == turn {
            return;
        }
        let Pace { brought, excused, .. } = self.pace;
        if excused.messages == 0 && brought.cost > limit && self.cost() > limit {
            self.pace.excused = self.load();
        }
        (self.pace.turn, self.pace.brought) = (turn, Load::default());
        self.pace.before = self.counted();
    }

    /// What waited when this turn began and counts against a limit.
    pub(super) fn before(&self) -> Load {
        self.pace.before
    }

    /// What this turn has brought.
    pub(super) fn brought(&self) -> Load {
        self.pace.brought
    }

    /// Whether something waits that does not count.
    pub(super) fn has_excused(&self) -> bool {
        self.pace.excused.messages > 0
    }

    /// All that waits.
    pub fn load(&self) -> Load {
        Load { cost: self.cost(), messages: self.len }
    }

    /// What waits and counts against a limit.
    pub(super) fn counted(&self) -> Load {
        self.load().minus(self.pace.excused)
    }

    /// Adds what waits in another backlog, of which nothing has left in part.
    pub fn append(&mut self, behind: Self) {
        debug_assert!(behind.sealed.is_empty());
        self.pace.brought = self.pace.brought.plus(behind.pace.brought);
        self.pace.excused = self.pace.excused.plus(behind.pace.excused);
        behind.into_frames().for_each(|frame| self.push(frame));
    }

    /// Drops the frame that has waited longest of those that may be dropped; `false`: there is none.
    ///
    /// ```
    /// use sockring::fanout::{Backlog, Backpressure, Frame, Policy};
    /// let old = Backpressure { policy: Policy::DropOldest, ..Backpressure::default() };
    /// let mut backlog = Backlog::default();
    /// backlog.push(Frame::raw("must be sent"));
    /// backlog.push(Frame::raw("a tick").bounded(old));
    /// assert!(backlog.drop_oldest() && !backlog.drop_oldest());
    /// assert_eq!((backlog.len(), backlog.bytes()), (1, 12));
    /// ```
    pub fn drop_oldest(&mut self) -> bool {
        while let Some(number) = self.droppable.as_mut().and_then(|droppable| droppable.order.pop_front()) {
            if self.remove(number) {
                return true;
            }
        }
        false
    }

    /// Drops the frame of a key, if one waits.
    pub fn drop_key(&mut self, key: Key) -> bool {
        let number = self.droppable.as_ref().and_then(|droppable| droppable.latest.get(&key).copied());
        number.is_some_and(|number| self.remove(number))
    }

    /// Takes a frame out, unless it has left, if only in part: its reader waits for the rest.
    fn remove(&mut self, number: u64) -> bool {
        let Some(at) = number.checked_sub(self.first) else { return false };
        if at == 0 && self.sent > 0 {
            return false;
        }
        let place = usize::try_from(at).ok().and_then(|at| self.frames.get_mut(at));
        let Some(frame) = place.and_then(Option::take) else { return false };
        self.forget(&frame, number);
        self.bound_gaps();
        true
    }

    /// A frame is not there any more.
    fn forget(&mut self, frame: &Frame, number: u64) {
        self.bytes = self.bytes.saturating_sub(frame.wire().len());
        self.len -= 1;
        self.pace.excused = self.pace.excused.minus(Load::of(frame));
        if let (Some(key), Some(droppable)) = (frame.key(), &mut self.droppable)
            && droppable.latest.get(&key) == Some(&number)
        {
            droppable.latest.remove(&key);
        }
    }

    /// Lets places go of which there are too many, and those in front.
    fn bound_gaps(&mut self) {
        while let Some(None) = self.frames.front() {
            self.frames.pop_front();
            self.first += 1;
        }
        let kept = self.droppable.as_ref().map_or(0, |droppable| droppable.order.len());
        if self.frames.len().max(kept) > 2 * self.len + GAPS {
            self.close_gaps();
        }
    }

    /// Numbers all frames anew, without places of those that are gone.
    fn close_gaps(&mut self) {
        let sent = mem::take(&mut self.sent);
        let frames = mem::take(&mut self.frames);
        (self.bytes, self.len, self.droppable) = (0, 0, None);
        frames.into_iter().flatten().for_each(|frame| self.push(frame));
        self.sent = sent;
        self.bytes -= sent;
    }

    fn pop_first(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()??;
        self.forget(&frame, self.first);
        self.first += 1;
        self.bound_gaps();
        Some(frame)
    }

    /// Frames that wait.
    pub fn len(&self) -> usize {
        self.len
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
        self.bytes() + self.elsewhere + self.len * limits::FRAME_COST_BYTES
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.sealed.is_empty()
    }

    /// Forgets all frames but one of which a part has left: its reader must not take the next for its rest.
    pub fn discard(&mut self) {
        self.frames.truncate(usize::from(self.sent > 0));
        self.len = self.frames.len();
        self.droppable = None;
        self.pace = Pace::default();
        let first = self.frames.front().and_then(Option::as_ref);
        self.bytes = first.map_or(0, |first| first.wire().len() - self.sent);
    }

    /// Copies what comes next of the frames, at most `max` bytes, behind what `out` holds.
    pub fn copy_to(&self, out: &mut Vec<u8>, max: usize) {
        let end = out.len() + max;
        let mut skip = self.sent;
        for frame in self.frames.iter().flatten() {
            let rest = &frame.wire()[skip..];
            skip = 0;
            out.extend_from_slice(&rest[..rest.len().min(end - out.len())]);
            if out.len() == end {
                break;
            }
        }
    }

    /// Notes that `sent` bytes of the frames have left.
    pub fn consume(&mut self, sent: usize) {
        debug_assert!(sent <= self.bytes);
        self.taken += sent as u64;
        let mut sent = self.sent + sent;
        self.bytes += mem::take(&mut self.sent);
        while let Some(Some(first)) = self.frames.front() {
            if sent < first.wire().len() {
                break;
            }
            sent -= first.wire().len();
            self.pop_first();
        }
        self.sent = sent;
        self.bytes = self.bytes.saturating_sub(sent);
    }

    /// Bytes that have left since there is this backlog, and frames that were taken out as a whole.
    ///
    /// ```
    /// use sockring::fanout::{Backlog, Frame};
    /// let mut backlog = Backlog::default();
    /// backlog.push(Frame::raw("hello"));
    /// backlog.consume(2);
    /// assert_eq!((backlog.taken(), backlog.bytes()), (2, 3));
    /// ```
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Notes that sealed bytes have left, which [`take_sealed`](Self::take_sealed) has taken out.
    pub(crate) fn note_taken(&mut self, sent: usize) {
        self.taken += sent as u64;
    }

    /// Counts bytes that wait for the same client in another place against its limit as well.
    pub fn count_elsewhere(&mut self, bytes: usize) {
        self.elsewhere = bytes;
    }

    /// Takes the first frame out. Only for a backlog of which nothing has left in part.
    pub fn pop(&mut self) -> Option<Frame> {
        debug_assert_eq!(self.sent, 0);
        let frame = self.pop_first();
        self.taken += frame.as_ref().map_or(0, |frame| frame.wire().len() as u64);
        frame
    }

    /// Takes all frames out, of which nothing has left in part.
    pub(super) fn into_frames(self) -> impl Iterator<Item = Frame> {
        debug_assert_eq!(self.sent, 0);
        self.frames.into_iter().flatten()
    }

    /// Takes the first frames out that have at most so many packets together; always one, if there is any.
    /// Only for a backlog of which nothing has left in part.
    pub fn take(&mut self, packets_max: usize) -> Vec<Frame> {
        let (mut taken, mut packets) = (Vec::new(), 0);
        while let Some(Some(frame)) = self.frames.front() {
            packets += frame.packets();
            if !taken.is_empty() && packets > packets_max {
                break;
            }
            taken.extend(self.pop());
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Backpressure, Policy};
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

    /// What a backlog should be: frames in order, of which those that may be dropped say so.
    #[derive(Default)]
    struct Model(Vec<(String, Option<u8>, bool)>);

    proptest! {
        #[test]
        fn what_is_dropped_leaves_the_others_in_order(
            steps in prop::collection::vec((0u8..6, 0u8..4), 0..300),
        ) {
            let old = Backpressure { policy: Policy::DropOldest, ..Backpressure::default() };
            let (mut backlog, mut model) = (Backlog::default(), Model::default());
            let (mut stream, mut expected, mut partial) = (Vec::new(), String::new(), false);
            for (n, (step, arg)) in steps.into_iter().enumerate() {
                let text = format!("<{n}>");
                match step {
                    0 => {
                        backlog.push(Frame::raw(text.clone()));
                        model.0.push((text, None, false));
                    }
                    1 => {
                        backlog.push(Frame::raw(text.clone()).bounded(old));
                        model.0.push((text, None, true));
                    }
                    2 | 3 => {
                        let same = model.0.iter().rposition(|(_, key, _)| *key == Some(arg));
                        let same = same.filter(|at| *at > 0 || !partial);
                        prop_assert_eq!(backlog.drop_key(Key::of(&arg)), same.is_some());
                        same.map(|at| model.0.remove(at));
                        backlog.push(Frame::raw(text.clone()).latest(Key::of(&arg)));
                        model.0.push((text, Some(arg), true));
                    }
                    4 => {
                        let skip = usize::from(partial);
                        let at = model.0.iter().skip(skip).position(|(_, _, droppable)| *droppable);
                        prop_assert_eq!(backlog.drop_oldest(), at.is_some());
                        at.map(|at| model.0.remove(at + skip));
                    }
                    _ => {
                        let mut out = Vec::new();
                        backlog.copy_to(&mut out, usize::from(arg) * 2 + 1);
                        backlog.consume(out.len());
                        stream.extend_from_slice(&out);
                        let mut left = stream.len() - expected.len();
                        partial = false;
                        while left > 0 {
                            let len = model.0[0].0.len();
                            if left < len {
                                partial = true;
                                break;
                            }
                            left -= len;
                            expected.push_str(&model.0.remove(0).0);
                        }
                    }
                }
                let bytes: usize = model.0.iter().map(|(text, ..)| text.len()).sum();
                prop_assert_eq!(backlog.len(), model.0.len());
                prop_assert_eq!(backlog.bytes() + stream.len(), bytes + expected.len());
                prop_assert!(backlog.frames.len() <= 2 * backlog.len() + GAPS + 1);
            }
            backlog.copy_to(&mut stream, usize::MAX / 2);
            model.0.iter().for_each(|(text, ..)| expected.push_str(text));
            prop_assert_eq!(String::from_utf8(stream).unwrap(), expected);
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
