//! What sockets are owed in one turn, as sequences that they share.

use std::mem;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Frame;
use super::frame::PACKED_FORMS;
use crate::limits;

/// A sequence of frames that one or more sockets are owed: a node of the [`Batch`]'s tree.
///
/// Four bytes stand for the whole sequence, so that owing a frame to one more socket of a room costs one
/// comparison and one store.
///
/// ```
/// use sockring::fanout::{Batch, Frame, Owed};
/// let mut batch = Batch::default();
/// let owed = batch.append(Owed::NOTHING, &Frame::raw("a"));
/// assert_ne!(owed, Owed::NOTHING);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed(u32);

impl Owed {
    /// Nothing is owed.
    pub const NOTHING: Self = Self(0);
}

/// The frames of one turn, as a tree: a node is "what its parent is owed, and then this frame".
///
/// Sockets start a turn at the root. Appending a frame moves a socket to a child; sockets that are owed
/// the same sequence meet at the same node, whichever rooms or direct messages made it up. So the bytes
/// to send are joined once for each distinct sequence, and not for each socket.
///
/// ```
/// use sockring::fanout::{Batch, Frame, Owed};
/// let mut batch = Batch::default();
/// let (a, b) = (Frame::raw("a"), Frame::raw("b"));
/// let first = batch.append(Owed::NOTHING, &a);
/// let second = batch.append(Owed::NOTHING, &a);
/// assert_eq!(first, second);
/// let both = batch.append(first, &b);
/// assert_eq!(batch.joined(both), b"ab");
/// ```
#[derive(Debug, Default)]
pub struct Batch {
    /// Node `n` stands at index `n - 1`; node 0 is the root.
    nodes: Vec<Node>,
    lane: Lane,
    /// The lanes of the classes from 1 on.
    others: Vec<Lane>,
    spare: Vec<Vec<u8>>,
    frame_bytes: usize,
    joined_bytes: usize,
}

#[derive(Debug)]
struct Node {
    frame: Frame,
    parent: u32,
    newest_child: u32,
    bytes: usize,
    frames: usize,
    joined: Option<Vec<u8>>,
    polling: Option<Bytes>,
    packed: Option<Box<[Option<Bytes>; PACKED_FORMS]>>,
}

/// Where the members of a class begin. Each class has its own: in a room of several, whose members are owed
/// different forms of the same messages, they would otherwise overwrite each other's traces.
#[derive(Debug, Default)]
struct Lane {
    /// The root's newest child.
    root_child: u32,
    /// The last step, which the next member of the same room nearly always repeats.
    memo: Memo,
}

#[derive(Debug, Default)]
struct Memo {
    from: u32,
    frame: usize,
    to: u32,
}

impl Batch {
    /// The sequence `owed` and then `frame`.
    #[inline]
    pub fn append(&mut self, owed: Owed, frame: &Frame) -> Owed {
        let memo = &self.lane.memo;
        if memo.frame == frame.address() && memo.from == owed.0 {
            return Owed(memo.to);
        }
        self.step(owed, frame)
    }

    /// The first member of a room that is owed `frame` behind what it was owed.
    #[inline(never)]
    fn step(&mut self, owed: Owed, frame: &Frame) -> Owed {
        let address = frame.address();
        let newest = match self.node(owed) {
            Some(node) => node.newest_child,
            None => self.lane.root_child,
        };
        // Only the newest child is compared: a second broadcast finds its members at a few nodes whose
        // newest child it made itself. A miss costs one node and some sharing, never correctness, and a
        // turn of a thousand single messages does not search a thousand children.
        let to = match self.node(Owed(newest)) {
            Some(node) if node.frame.address() == address => newest,
            _ => self.grow(owed, frame),
        };
        self.lane.memo = Memo { from: owed.0, frame: address, to };
        Owed(to)
    }

    /// The same for an outlet of another class than 0.
    pub(super) fn append_apart(&mut self, class: u8, owed: Owed, frame: &Frame) -> Owed {
        let at = usize::from(class).saturating_sub(1);
        if self.others.len() <= at {
            self.others.resize_with(at + 1, Lane::default);
        }
        mem::swap(&mut self.lane, &mut self.others[at]);
        let owed = self.append(owed, frame);
        mem::swap(&mut self.lane, &mut self.others[at]);
        owed
    }

    fn grow(&mut self, owed: Owed, frame: &Frame) -> u32 {
        let (bytes, frames) = self.node(owed).map_or((0, 0), |node| (node.bytes, node.frames));
        // A frame that follows several sequences weighs nothing more.
        if self.nodes.last().is_none_or(|last| !last.frame.same(frame)) {
            self.frame_bytes += frame.wire().len();
        }
        self.nodes.push(Node {
            frame: frame.clone(),
            parent: owed.0,
            newest_child: 0,
            bytes: bytes + frame.wire().len(),
            frames: frames + 1,
            joined: None,
            polling: None,
            packed: None,
        });
        // A turn cannot make 2^32 nodes: each is some hundred bytes.
        let id = self.nodes.len() as u32;
        match owed.0 {
            0 => self.lane.root_child = id,
            parent => self.nodes[parent as usize - 1].newest_child = id,
        }
        id
    }

    fn node(&self, owed: Owed) -> Option<&Node> {
        self.nodes.get((owed.0 as usize).wrapping_sub(1))
    }

    /// Bytes of the whole sequence in its WebSocket form.
    pub fn bytes(&self, owed: Owed) -> usize {
        self.node(owed).map_or(0, |node| node.bytes)
    }

    /// Frames of the whole sequence.
    pub fn len(&self, owed: Owed) -> usize {
        self.node(owed).map_or(0, |node| node.frames)
    }

    /// What the sequence weighs against the limit of a client: its bytes, and the record of each frame.
    pub fn cost(&self, owed: Owed) -> usize {
        self.node(owed).map_or(0, |node| node.bytes + node.frames * limits::FRAME_COST_BYTES)
    }

    /// The frames of the sequence, in order.
    pub fn frames(&self, owed: Owed) -> SmallVec<[&Frame; 8]> {
        let mut frames = SmallVec::new();
        let mut at = owed;
        while let Some(node) = self.node(at) {
            frames.push(&node.frame);
            at = Owed(node.parent);
        }
        frames.reverse();
        frames
    }

    /// The sequence as the bytes of one send: a single frame's own buffer, or its frames joined, once.
    pub fn joined(&mut self, owed: Owed) -> &[u8] {
        self.prepare(owed);
        self.prepared(owed)
    }

    /// Joins the sequence if that is still to do, so that [`prepared`](Self::prepared) can lend it.
    pub fn prepare(&mut self, owed: Owed) {
        let Some(node) = self.node(owed) else { return };
        if node.parent == 0 || node.joined.is_some() {
            return;
        }
        let bytes = node.bytes;
        let mut out = self.spare.pop().unwrap_or_default();
        out.reserve(bytes);
        self.joined_bytes += bytes;
        for frame in self.frames(owed) {
            out.extend_from_slice(frame.wire());
        }
        self.nodes[owed.0 as usize - 1].joined = Some(out);
    }

    /// The bytes of a sequence that was [prepared](Self::prepare); nothing for one that was not.
    pub fn prepared(&self, owed: Owed) -> &[u8] {
        match self.node(owed) {
            Some(Node { joined: Some(bytes), .. }) => bytes,
            Some(node) if node.parent == 0 => node.frame.wire(),
            _ => &[],
        }
    }

    /// The sequence as the body of a long-polling response, joined once for all pollers that are owed it.
    pub fn polling(&mut self, owed: Owed) -> Bytes {
        let Some(node) = self.node(owed) else { return Bytes::new() };
        if node.parent == 0 {
            return node.frame.polling_bytes();
        }
        if let Some(known) = &node.polling {
            return known.clone();
        }
        let mut out = Vec::new();
        for frame in self.frames(owed) {
            if !out.is_empty() {
                out.push(crate::protocol::eio::SEPARATOR);
            }
            out.extend_from_slice(frame.polling());
        }
        let made = Bytes::from(out);
        self.nodes[owed.0 as usize - 1].polling = Some(made.clone());
        made
    }

    /// The [polling form](Self::polling) in a coding, of which there are [`PACKED_FORMS`]: made once for all
    /// pollers that are owed it.
    pub fn packed(&mut self, owed: Owed, form: usize, make: impl FnOnce(&[u8]) -> Bytes) -> Option<Bytes> {
        let node = self.node(owed)?;
        if node.parent == 0 {
            // One frame: other turns and other cores owe it too.
            return node.frame.packed(form, make).cloned();
        }
        let known = node.packed.as_deref().and_then(|forms| forms.get(form)?.clone());
        if known.is_some() || form >= PACKED_FORMS {
            return known;
        }
        let made = make(&self.polling(owed));
        self.nodes[owed.0 as usize - 1].packed.get_or_insert_default()[form] = Some(made.clone());
        Some(made)
    }

    /// Whether it is time to send what is owed, since it weighs much: more frames than a client should have
    /// to take at once, or more memory than a turn should need.
    pub fn is_large(&self) -> bool {
        self.frame_bytes > limits::FLUSH_BYTES
            || self.joined_bytes > limits::BATCH_JOINED_BYTES
            || self.nodes.len() > limits::BATCH_NODES
    }

    /// Whether the turn owes nothing to anybody.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Forgets the turn. Every [`Owed`] but [`Owed::NOTHING`] is void afterwards.
    pub fn clear(&mut self) {
        for node in self.nodes.drain(..) {
            let Some(mut buffer) = node.joined else { continue };
            if self.spare.len() < limits::JOINED_BUFFERS_KEPT
                && buffer.capacity() <= limits::JOINED_BUFFER_BYTES_KEPT
            {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
        // One turn of many messages is not worth the memory for ever.
        self.nodes.shrink_to(limits::BATCH_NODES);
        self.lane = Lane::default();
        self.others.clear();
        (self.frame_bytes, self.joined_bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_of_two_rooms_share_what_they_share() {
        let mut batch = Batch::default();
        let (f, g) = (Frame::raw("f"), Frame::raw("g"));
        let mut owed = [Owed::NOTHING; 4];
        for member in [0, 1, 2] {
            owed[member] = batch.append(owed[member], &f);
        }
        for member in [1, 3, 2] {
            owed[member] = batch.append(owed[member], &g);
        }
        assert_eq!(owed[1], owed[2]);
        assert_eq!(batch.joined(owed[0]), b"f");
        assert_eq!(batch.joined(owed[1]), b"fg");
        assert_eq!(batch.joined(owed[3]), b"g");
        assert_eq!(batch.nodes.len(), 3);
        batch.clear();
        assert!(batch.is_empty());
    }

    #[test]
    fn packed_forms_are_shared_by_those_who_are_owed_the_same() {
        let mut batch = Batch::default();
        let [f, g] = ["f", "g"].map(|text| Frame::message(&[b"4", text.as_bytes()], &[]));
        let one = batch.append(Owed::NOTHING, &f);
        let two = batch.append(one, &g);
        let pack = |text: &[u8]| Bytes::from([text, b"!"].concat());
        for _ in 0..2 {
            assert_eq!(batch.packed(two, 1, pack).unwrap(), "4f\x1e4g!");
            assert_eq!(batch.packed(one, 1, pack).unwrap(), "4f!");
        }
        assert_eq!(f.packed(1, |_| Bytes::new()).unwrap(), "4f!");
        assert_eq!(batch.packed(two, PACKED_FORMS, pack), None);
        assert_eq!(batch.packed(Owed::NOTHING, 0, pack), None);
    }

    proptest! {
        #[test]
        fn every_member_gets_its_own(pushes in prop::collection::vec((0usize..5, 0usize..4), 0..80)) {
            let frames: Vec<Frame> = (0..4).map(|i| Frame::raw(format!("<{i}>"))).collect();
            let mut batch = Batch::default();
            let mut owed = [Owed::NOTHING; 5];
            let mut expected = vec![String::new(); 5];
            for (member, frame) in pushes {
                owed[member] = batch.append(owed[member], &frames[frame]);
                expected[member].push_str(&format!("<{frame}>"));
            }
            for member in 0..5 {
                prop_assert_eq!(batch.bytes(owed[member]), expected[member].len());
                prop_assert_eq!(batch.joined(owed[member]), expected[member].as_bytes());
                prop_assert_eq!(batch.frames(owed[member]).len() * 3, expected[member].len());
            }
        }
    }
}
