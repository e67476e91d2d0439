//! The socket ring: one io_uring for each core, by the rules R1 to R12 of docs/ARCHITECTURE.md.
//!
//! All operations that hand memory to the kernel are here, and each is sound for its own reason:
//! receives choose from [`ReceiveBuffers`], which outlive the ring; accepts write to [`AcceptSlots`], which
//! are kept until the kernel has answered; sends borrow their bytes for the length of one
//! `io_uring_enter`, which is all the time that the kernel looks at them.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use socket2::{SockAddr, SockAddrStorage};

use super::buffers::{GROUP, Lent, ReceiveBuffers};
use crate::limits;

/// A socket: in the process's descriptor table, or in the ring's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Normal(RawFd),
    Direct(u32),
}

/// What a request was for; with the slot and its generation it makes up the user data (R2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The answer does not matter.
    Ignored = 0,
    Accept = 1,
    Receive = 2,
    /// A send that did not take everything: successful ones do not answer.
    Send = 3,
    Writable = 4,
    /// A connection left for another core's ring.
    Moved = 5,
    /// A connection came from another core's ring.
    Arrived = 6,
    /// A direct descriptor got a number of its own, to be shut down.
    Installed = 7,
    /// A half-closed connection was reset.
    Hangup = 8,
}

impl Kind {
    fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Accept,
            2 => Self::Receive,
            3 => Self::Send,
            4 => Self::Writable,
            5 => Self::Moved,
            6 => Self::Arrived,
            7 => Self::Installed,
            8 => Self::Hangup,
            _ => Self::Ignored,
        }
    }
}

/// The user data of a request: kind (8 bits), generation (24), slot (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) kind: Kind,
    pub(super) generation: u32,
    pub(super) slot: u32,
}

/// Enters without a completion after which there is believed to be no work: each would have done 20 pieces.
/// If there is some all the same, the next tick finds it.
const DRY_ENTERS: usize = 4;

/// Generations are compared in this many bits.
pub(super) const GENERATION_MASK: u32 = 0x00FF_FFFF;

impl Tag {
    const IGNORED: Self = Self { kind: Kind::Ignored, generation: 0, slot: 0 };

    pub(super) fn bits(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.generation & GENERATION_MASK) << 32 | u64::from(self.slot)
    }

    fn from_bits(bits: u64) -> Self {
        Self {
            kind: Kind::from_bits((bits >> 56) as u8),
            generation: (bits >> 32) as u32 & GENERATION_MASK,
            slot: bits as u32,
        }
    }
}

/// What the kernel answered.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) tag: Tag,
    /// A count, a descriptor, or a negated errno.
    pub(super) result: i32,
    /// Whether the request goes on (multishot receive).
    pub(super) more: bool,
    /// The buffer that a receive filled. It must be given back.
    pub(super) buffer: Option<Lent>,
}

/// A completion, with the buffer that it lends if it has one to lend: none if it has failed.
fn taken_out(user_data: u64, result: i32, flags: u32) -> Completion {
    let id = cqueue::buffer_select(flags);
    let buffer = usize::try_from(result).ok().zip(id).map(|(len, id)| {
        // SAFETY: id and length are those of this completion, and each is read once.
        unsafe { Lent::new(id, len) }
    });
    Completion { tag: Tag::from_bits(user_data), result, more: cqueue::more(flags), buffer }
}

/// Enters in a row that the kernel refuses although there is room for completions, after which it is
/// believed.
const REFUSALS: usize = 1000;

/// One send of a burst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Send<'a> {
    pub(super) target: Target,
    pub(super) bytes: &'a [u8],
    pub(super) tag: Tag,
}

/// One operation on either kind of descriptor.
macro_rules! on {
    ($target:expr, |$fd:ident| $build:expr) => {
        match $target {
            Target::Normal(fd) => {
                let $fd = types::Fd(fd);
                $build
            }
            Target::Direct(slot) => {
                let $fd = types::Fixed(slot);
                $build
            }
        }
    };
}

pub(super) struct Ring {
    // Dropped first, so that the kernel lets go of the memory that the other fields own.
    uring: IoUring,
    accepts: AcceptSlots,
    /// Completions that were taken out to make room for others, before all that are in the queue.
    stash: VecDeque<Completion>,
    overflow_noted: bool,
    withheld: u64,
}

/// A ring and the buffers that the kernel fills through it. They are dropped in this order, on every way
/// out: the kernel must have let go of the buffers when they are freed.
pub(super) struct Rig {
    pub(super) ring: Ring,
    pub(super) buffers: ReceiveBuffers,
}

impl Rig {
    /// Builds the ring and its receive buffers. Must run on the thread that will use it (R7).
    pub(super) fn new(direct_slots: Option<u32>) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(limits::COMPLETION_ENTRIES)
            .build(limits::SUBMISSION_ENTRIES)?;
        if let Some(slots) = direct_slots {
            uring.submitter().register_files_sparse(slots)?;
        }
        // The last step that can fail: buffers that are registered are never freed before the ring.
        let buffers = ReceiveBuffers::register(&uring.submitter())?;
        let (accepts, stash) = (AcceptSlots::default(), VecDeque::new());
        Ok(Self { ring: Ring { uring, accepts, stash, overflow_noted: false, withheld: 0 }, buffers })
    }
}

impl Ring {
    /// Puts a descriptor into a slot of the ring's table, where otherwise only the kernel puts any.
    #[cfg(test)]
    pub(super) fn insert_direct(&mut self, slot: u32, fd: RawFd) {
        assert_eq!(self.uring.submitter().register_files_update(slot, &[fd]).ok(), Some(1));
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    pub(super) fn has_skip_success(&self) -> bool {
        self.uring.params().is_feature_skip_cqe_on_success()
    }

    /// The eventfd is written whenever completions wait for a thread that is not in a turn.
    pub(super) fn register_eventfd(&mut self, fd: RawFd) -> io::Result<()> {
        self.uring.submitter().register_eventfd(fd)
    }

    pub(super) fn disable_eventfd(&mut self) {
        self.uring.completion().disable_eventfd();
    }

    pub(super) fn enable_eventfd(&mut self) {
        self.uring.completion().enable_eventfd();
    }

    /// Whether completions wait, or work that would make some (R5, R10). The flag alone is no proof of work
    /// (R11): what it stands for is done here, with the eventfd on, so that whatever comes later signals.
    pub(super) fn has_work(&mut self) -> bool {
        for _ in 0..DRY_ENTERS {
            if self.has_completions() {
                return true;
            }
            if !self.has_task_work() {
                return false;
            }
            if self.submit().is_err() {
                // The next turn says so.
                return true;
            }
        }
        self.has_completions()
    }

    /// Completions that the kernel had no room for. None, unless it is short of memory.
    pub(super) fn completions_lost(&mut self) -> u64 {
        u64::from(self.uring.completion().overflow())
    }

    /// Buffers that were not offered to the kernel again, because it may have them already: see `taken_out`.
    pub(super) fn buffers_withheld(&self) -> u64 {
        self.withheld
    }

    /// Whether completions wait.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.stash.is_empty() || !self.uring.completion().is_empty()
    }

    /// Whether the kernel says that it has work which only an enter carries out. It may have none: see R11.
    pub(super) fn has_task_work(&mut self) -> bool {
        let queue = self.uring.submission();
        // Completions that the queue had no room for come with an enter as well.
        queue.taskrun() || queue.cq_overflow()
    }

    /// Submits what is queued and lets the kernel do what it has put off, until the queue is empty (R4).
    ///
    /// The kernel takes nothing (EBUSY) while completions wait that the queue has no room for: those in the
    /// queue are set aside then. So what is queued never waits for a caller that could not read completions
    /// now, such as a burst or a pair of linked requests.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let mut refusals = 0;
        loop {
            match self.uring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN) => {}
                    Some(libc::EBUSY) if refusals < REFUSALS => {
                        refusals = if self.set_completions_aside() { 0 } else { refusals + 1 };
                    }
                    _ => return Err(error),
                },
            }
            if self.uring.submission().is_empty() {
                return Ok(());
            }
        }
    }

    /// Makes room in the completion queue; whether there was anything in it.
    fn set_completions_aside(&mut self) -> bool {
        let mut stash = mem::take(&mut self.stash);
        let before = stash.len();
        self.take_out(&mut stash, usize::MAX);
        self.stash = stash;
        self.stash.len() > before
    }

    /// Moves completions into `out`, at most until it holds `max`.
    pub(super) fn reap(&mut self, out: &mut VecDeque<Completion>, max: usize) {
        let stashed = self.stash.len().min(max.saturating_sub(out.len()));
        out.extend(self.stash.drain(..stashed));
        if self.stash.is_empty() {
            self.take_out(out, max);
        }
    }

    fn take_out(&mut self, out: &mut VecDeque<Completion>, max: usize) {
        let mut queue = self.uring.completion();
        if queue.overflow() > 0 && !self.overflow_noted {
            self.overflow_noted = true;
            tracing::warn!("the completion queue overflowed: {} completions lost", queue.overflow());
        }
        while out.len() < max {
            let Some(entry) = queue.next() else { return };
            let completion = taken_out(entry.user_data(), entry.result(), entry.flags());
            // A failed receive has no bytes, and whether the kernel has still its buffer is not told. One
            // that is offered twice would be filled for two sockets at once; one that is withheld is only
            // missing.
            if completion.buffer.is_none() && cqueue::buffer_select(entry.flags()).is_some() {
                self.withheld += 1;
            }
            out.push_back(completion);
        }
    }

    /// Queues a request that refers to no memory of ours, or to memory that outlives the ring.
    ///
    /// # Safety
    ///
    /// Whatever the entry points to must stay valid until the request has completed.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: passed on to the caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            // The queue is empty afterwards.
            self.submit()?;
        }
    }

    /// Arms a receive that goes on until it fails, with buffers from the shared ring.
    pub(super) fn receive(&mut self, target: Target, tag: Tag) -> io::Result<()> {
        let entry = on!(target, |fd| opcode::RecvMulti::new(fd, GROUP).build()).user_data(tag.bits());
        // SAFETY: the entry points to nothing; its buffers belong to the ring.
        unsafe { self.push(&entry) }
    }

    /// Asks to be told once when the socket takes bytes again.
    pub(super) fn poll_writable(&mut self, target: Target, tag: Tag) -> io::Result<()> {
        let events = (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) as u32;
        let entry = on!(target, |fd| opcode::PollAdd::new(fd, events).build()).user_data(tag.bits());
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&entry) }
    }

    /// Asks to be told when both sides of a connection are closed, of which the peer's is already. Multishot:
    /// the kernel reports that first, unasked, and only what changes afterwards is news.
    pub(super) fn poll_hangup(&mut self, target: Target, tag: Tag) -> io::Result<()> {
        let events = (libc::POLLERR | libc::POLLHUP) as u32;
        let entry =
            on!(target, |fd| opcode::PollAdd::new(fd, events).multi(true).build()).user_data(tag.bits());
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&entry) }
    }

    /// Cancels an armed request, which then completes with ECANCELED unless it has completed by itself.
    pub(super) fn cancel(&mut self, tag: Tag) -> io::Result<()> {
        let by_tag = types::CancelBuilder::user_data(tag.bits());
        let entry = opcode::AsyncCancel2::new(by_tag)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Tag::IGNORED.bits());
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&entry) }
    }

    /// Closes a socket. Everything armed on it must have been cancelled before, in this turn or earlier (R3).
    pub(super) fn close(&mut self, target: Target) -> io::Result<()> {
        let entry = on!(target, |fd| opcode::Close::new(fd).build())
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Tag::IGNORED.bits());
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&entry) }
    }

    /// Gives a direct descriptor a number in the process's table, beside its slot.
    pub(super) fn install(&mut self, slot: u32, tag: Tag) -> io::Result<()> {
        let entry = opcode::FixedFdInstall::new(types::Fixed(slot), 0).build().user_data(tag.bits());
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&entry) }
    }

    /// Moves a direct descriptor to another ring and closes it here if that worked. `arrival` is the tag of
    /// the completion that the other ring gets; ours has `tag`. After an error neither has been submitted.
    pub(super) fn send_descriptor(&mut self, slot: u32, to: RawFd, arrival: Tag, tag: Tag) -> io::Result<()> {
        // The pair is linked and must not be parted by a full queue.
        let queue = self.uring.submission();
        let room = queue.capacity() - queue.len();
        drop(queue);
        if room < 2 {
            self.submit()?;
        }
        let auto = types::DestinationSlot::auto_target();
        let send = opcode::MsgRingSendFd::new(types::Fd(to), types::Fixed(slot), auto, arrival.bits())
            .build()
            .flags(squeue::Flags::IO_LINK)
            .user_data(tag.bits());
        let close = opcode::Close::new(types::Fixed(slot))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Tag::IGNORED.bits());
        // SAFETY: the entries point to nothing.
        unsafe {
            self.push(&send)?;
            self.push(&close)
        }
    }

    /// Arms one more accept on the listener of a number; the completion's slot is the number that
    /// [`accepted`](Self::accepted) takes.
    pub(super) fn accept(&mut self, fd: RawFd, listener: u16, direct: bool) -> io::Result<()> {
        let (number, address, len) = self.accepts.take(listener);
        let tag = Tag { kind: Kind::Accept, generation: 0, slot: number };
        let mut accept = opcode::Accept::new(types::Fd(fd), address, len);
        if direct {
            accept = accept.file_index(Some(types::DestinationSlot::auto_target()));
        } else {
            accept = accept.flags(libc::SOCK_CLOEXEC);
        }
        // SAFETY: the address slot is boxed and not given to another accept before this one has completed;
        // if the ring is dropped first, `Drop` has cancelled it and seen the answer, or leaks the slots.
        unsafe { self.push(&accept.build().user_data(tag.bits())) }
    }

    /// An accept has completed: its listener's number and the peer's address. Its own number is free again.
    pub(super) fn accepted(&mut self, number: u32) -> Option<(u16, Option<SocketAddr>)> {
        self.accepts.give_back(number)
    }

    /// How many accepts are armed.
    pub(super) fn accepts_armed(&self) -> usize {
        self.accepts.armed
    }

    /// Whether a listener has an accept armed.
    pub(super) fn accepts_on(&self, listener: u16) -> bool {
        self.accepts.slots.iter().any(|slot| slot.listener == Some(listener))
    }

    /// Cancels all armed accepts; each then completes (R8). All, also where some may stay: a new connection
    /// wakes one of the accepts of its listener, and if that is the one that is cancelled, the others are not
    /// woken in its place. Those that are armed anew look first whether somebody waits (R12).
    pub(super) fn cancel_accepts(&mut self) -> io::Result<()> {
        for slot in 0..self.accepts.slots.len() as u32 {
            if self.accepts.slots[slot as usize].listener.is_some() {
                self.cancel(Tag { kind: Kind::Accept, generation: 0, slot })?;
            }
        }
        Ok(())
    }

    /// Sends to many sockets in as few enters as the queue allows, at most one send for each socket (R1).
    ///
    /// Everything happens within this call: a healthy socket answers nothing; failures and short sends are
    /// completions with the send's tag, to be reaped before the socket is sent to again.
    pub(super) fn burst(&mut self, sends: &[Send<'_>]) -> io::Result<()> {
        const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        debug_assert!(sends.len() <= limits::SENDS_PER_ENTER);
        for send in sends {
            let len = u32::try_from(send.bytes.len()).unwrap_or(u32::MAX);
            let entry = on!(send.target, |fd| {
                opcode::Send::new(fd, send.bytes.as_ptr(), len).flags(FLAGS).build()
            })
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(send.tag.bits());
            // SAFETY: the bytes are borrowed until this function returns, and by then the queue is empty:
            // `submit_or_abort` sees to it on either way out. With MSG_DONTWAIT and without link, async or
            // drain flags the kernel carries a send out, or fails it, inside the enter that submits it, and
            // never looks at its bytes afterwards (rule R1 of docs/ARCHITECTURE.md; tested below).
            if let Err(error) = unsafe { self.push(&entry) } {
                self.submit_or_abort();
                return Err(error);
            }
        }
        self.submit_or_abort();
        Ok(())
    }

    /// Entries of a burst must not stay queued when their borrow ends.
    fn submit_or_abort(&mut self) {
        if self.uring.submission().is_empty() {
            return;
        }
        if let Err(error) = self.submit() {
            tracing::error!("io_uring_enter failed with sends in the queue: {error}");
            std::process::abort();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The worker cancels its accepts and waits for them. If it could not (a panic), the kernel may
        // still write an address: the slots are leaked then, and so is nothing that matters more.
        if self.accepts.armed > 0 {
            mem::forget(mem::take(&mut self.accepts));
        }
    }
}

/// Where the kernel writes the addresses of the connections that it accepts.
#[derive(Default)]
struct AcceptSlots {
    slots: Vec<AcceptSlot>,
    free: Vec<u32>,
    armed: usize,
}

struct AcceptSlot {
    /// The number of the listener that an accept is armed on.
    listener: Option<u16>,
    /// On the heap, because the kernel holds its address while `slots` grows; and not a `Box`, which would
    /// claim when it is moved that nobody else does.
    address: NonNull<Address>,
}

impl Drop for AcceptSlot {
    fn drop(&mut self) {
        // SAFETY: it was leaked from a box in `take`, and belongs to this slot alone: slots that the kernel
        // still writes to are not dropped (see `Ring::drop`).
        drop(unsafe { Box::from_raw(self.address.as_ptr()) });
    }
}

struct Address {
    storage: SockAddrStorage,
    len: libc::socklen_t,
}

impl AcceptSlots {
    /// A slot for an accept on `listener`, with the pointers that the kernel writes through.
    fn take(&mut self, listener: u16) -> (u32, *mut libc::sockaddr, *mut libc::socklen_t) {
        let number = self.free.pop().unwrap_or_else(|| {
            let storage = SockAddrStorage::zeroed();
            let address = Box::leak(Box::new(Address { storage, len: 0 }));
            self.slots.push(AcceptSlot { listener: None, address: address.into() });
            self.slots.len() as u32 - 1
        });
        self.armed += 1;
        let slot = &mut self.slots[number as usize];
        slot.listener = Some(listener);
        let address = slot.address.as_ptr();
        // SAFETY: the pointer is that of a live allocation, and no accept is armed on this slot now.
        unsafe {
            (*address).len = size_of::<SockAddrStorage>() as libc::socklen_t;
            (number, (&raw mut (*address).storage).cast(), &raw mut (*address).len)
        }
    }

    fn give_back(&mut self, number: u32) -> Option<(u16, Option<SocketAddr>)> {
        let slot = self.slots.get_mut(number as usize)?;
        let listener = slot.listener.take()?;
        self.armed -= 1;
        self.free.push(number);
        // SAFETY: the accept on this slot has completed, so the kernel writes here no more.
        let address = unsafe { slot.address.as_mut() };
        let storage = mem::replace(&mut address.storage, SockAddrStorage::zeroed());
        // SAFETY: the kernel wrote an address of `len` bytes into a storage that is large enough for any.
        let peer = unsafe { SockAddr::new(storage, address.len) };
        Some((listener, peer.as_socket()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    /// R1, and the reason that `burst` is sound: the bytes are overwritten as soon as it returns, while the
    /// peer reads as slowly or quickly as it likes, and the stream is right to the last byte.
    #[test]
    fn a_burst_does_not_look_at_its_bytes_afterwards() {
        const TOTAL: usize = 8 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (writer, _) = listener.accept().unwrap();
        let expected = |at: usize| (at.wrapping_mul(2_654_435_761) >> 7) as u8;
        // A reader that is faster than the writer would leave nothing to see: it begins when the socket is
        // full.
        let (full, begin) = std::sync::mpsc::channel();
        let reading = thread::spawn(move || {
            let _ = begin.recv();
            let (mut at, mut buffer) = (0, vec![0; 70_000]);
            loop {
                let read = reader.read(&mut buffer).unwrap();
                assert!(buffer[..read].iter().enumerate().all(|(i, byte)| *byte == expected(at + i)), "{at}");
                at += read;
                if read == 0 {
                    return at;
                }
            }
        });
        let mut rig = Rig::new(None).unwrap();
        let ring = &mut rig.ring;
        let target = Target::Normal(writer.as_raw_fd());
        let tag = Tag { kind: Kind::Send, generation: 1, slot: 0 };
        let (mut at, mut failures, mut short) = (0, VecDeque::new(), 0);
        while at < TOTAL {
            let len = (1 + at % 200_000).min(TOTAL - at);
            let mut bytes: Vec<u8> = (at..at + len).map(expected).collect();
            ring.burst(&[Send { target, bytes: &bytes, tag }]).unwrap();
            bytes.fill(0xEE);
            drop(bytes);
            ring.reap(&mut failures, usize::MAX);
            match failures.pop_front().map(|failure| failure.result) {
                None => at += len,
                Some(again) if again == -libc::EAGAIN => short += 1,
                Some(sent) => {
                    assert!(sent >= 0, "{sent}");
                    at += sent as usize;
                    short += 1;
                }
            }
            assert!(failures.is_empty(), "one answer at most for one send");
            if short > 0 {
                let _ = full.send(());
            }
        }
        drop((writer, full));
        assert_eq!(reading.join().unwrap(), TOTAL);
        assert!(short > 0, "the socket was never full: the test has shown nothing");
    }

    /// R11. The kernel leaves the flag set once in many runs only: this looks for it, and shows that what has
    /// work is found.
    #[test]
    fn a_flag_without_work_keeps_nobody_awake() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        writer.set_nodelay(true).unwrap();
        let (reader, _) = listener.accept().unwrap();
        let mut rig = Rig::new(None).unwrap();
        let (ring, buffers) = (&mut rig.ring, &mut rig.buffers);
        let tag = Tag { kind: Kind::Receive, generation: 1, slot: 0 };
        let target = Target::Normal(reader.as_raw_fd());
        ring.receive(target, tag).unwrap();
        const MESSAGES: usize = 20_000;
        let writing = thread::spawn(move || {
            for _ in 0..MESSAGES {
                std::io::Write::write_all(&mut writer, b"x").unwrap();
            }
            writer
        });
        let (mut inbox, mut bytes) = (VecDeque::new(), 0);
        while bytes < MESSAGES {
            ring.submit().unwrap();
            ring.reap(&mut inbox, usize::MAX);
            for completion in inbox.drain(..) {
                assert!(completion.result > 0, "{completion:?}");
                bytes += completion.result as usize;
                completion.buffer.into_iter().for_each(|lent| buffers.recycle(lent));
                if !completion.more {
                    ring.receive(target, tag).unwrap();
                }
            }
        }
        let _writer = writing.join().unwrap();
        ring.submit().unwrap();
        assert!(!ring.has_work(), "everything has been read");
    }

    /// More completions than the queue has room for wait while a burst, or a pair that must stay together,
    /// is to be submitted: nothing is lost, parted, or waited for in vain.
    #[test]
    fn a_full_completion_queue_keeps_nothing_from_being_submitted() {
        const PAIRS: usize = 3 * limits::COMPLETION_ENTRIES as usize;
        let mut rig = Rig::new(Some(4)).unwrap();
        let ring = &mut rig.ring;
        let tag = Tag { kind: Kind::Send, generation: 1, slot: 7 };
        let other = Rig::new(Some(4)).unwrap();
        let arrival = Tag { kind: Kind::Arrived, generation: 0, slot: 0 };
        for _ in 0..PAIRS {
            // There is no file in the slot: the first of each pair fails, the other is cancelled; both
            // answer.
            ring.send_descriptor(2, other.ring.raw_fd(), arrival, tag).unwrap();
        }
        let sends = [Send { target: Target::Normal(-1), bytes: b"x", tag }; 100];
        ring.burst(&sends).unwrap();
        assert!(ring.uring.submission().is_empty());
        let mut out = VecDeque::new();
        while ring.has_work() {
            ring.submit().unwrap();
            ring.reap(&mut out, usize::MAX);
        }
        let of = |result: i32, kind| out.iter().filter(|c| c.result == -result && c.tag.kind == kind).count();
        assert_eq!(of(libc::EBADF, Kind::Send), PAIRS + sends.len(), "{:?}", out.iter().take(3));
        assert_eq!(of(libc::ECANCELED, Kind::Ignored), PAIRS, "none of a pair was submitted alone");
        assert_eq!(ring.completions_lost(), 0);
    }

    #[test]
    fn a_failed_receive_lends_no_buffer() {
        // The flag that a buffer was selected, and its number above.
        let flags = 1 | 5 << 16;
        for (result, lends) in [(7, true), (0, true), (-libc::ENOBUFS, false), (-libc::ECANCELED, false)] {
            let completion = taken_out(0, result, flags);
            assert_eq!(completion.buffer.is_some(), lends, "{result}");
            assert_eq!(completion.result, result);
        }
        assert!(taken_out(0, 7, 0).buffer.is_none());
    }

    #[test]
    fn tags_survive_the_kernel() {
        for kind in [Kind::Accept, Kind::Receive, Kind::Send, Kind::Writable, Kind::Moved, Kind::Arrived] {
            let tag = Tag { kind, generation: 0x00AB_CDEF, slot: 0x8765_4321 };
            assert_eq!(Tag::from_bits(tag.bits()), tag);
        }
    }

    /// The kernel's pointers stay good while slots are added; miri watches.
    #[test]
    fn accept_slots_stay_where_they_are() {
        let mut slots = AcceptSlots::default();
        let taken: Vec<_> = (0..20u16).map(|listener| slots.take(listener)).collect();
        for (number, address, len) in taken {
            let peer = SockAddr::from(SocketAddr::from(([192, 0, 2, 1], number as u16)));
            let (from, bytes) = (peer.as_ptr().cast::<u8>(), peer.len());
            // SAFETY: as the kernel does, within the slot's size, before the slot is given back.
            unsafe {
                assert!(*len >= bytes);
                from.copy_to_nonoverlapping(address.cast::<u8>(), bytes as usize);
                *len = bytes;
            }
            let given = slots.give_back(number);
            assert_eq!(given, Some((number as u16, peer.as_socket())));
            assert!(slots.give_back(number).is_none(), "once only");
            assert_eq!(slots.take(99).0, number, "it is used again");
        }
        assert_eq!(slots.armed, 20);
    }
}
