//! The provided-buffer ring: receive buffers that all sockets of a core share.

use std::alloc::{self, Layout};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::limits;

/// The buffer group that receives choose from.
pub(super) const GROUP: u16 = 0;

const COUNT: usize = limits::RECEIVE_BUFFERS as usize;
const PAGE: usize = 4096;

/// Buffers and the ring through which they are offered to the kernel.
///
/// A buffer belongs to the kernel while it is offered; a completion hands it to us, and [`recycle`] offers
/// it again. A [`Lent`] stands for the buffer in between, so that one cannot be offered twice.
///
/// [`recycle`]: ReceiveBuffers::recycle
#[derive(Debug)]
pub(super) struct ReceiveBuffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
}

/// A buffer that the kernel has filled and that we have not given back.
#[derive(Debug)]
pub(super) struct Lent {
    id: u16,
    len: usize,
}

impl Lent {
    /// # Safety
    ///
    /// `id` and `len` must come from one receive completion of this ring, and be used once.
    pub(super) unsafe fn new(id: u16, len: usize) -> Self {
        Self { id, len }
    }
}

fn ring_layout() -> Layout {
    // A few hundred entries of 16 bytes: the size cannot overflow.
    Layout::from_size_align(COUNT * size_of::<BufRingEntry>(), PAGE).unwrap_or(Layout::new::<u8>())
}

fn memory_layout() -> Layout {
    Layout::from_size_align(COUNT * limits::RECEIVE_BUFFER_BYTES, PAGE).unwrap_or(Layout::new::<u8>())
}

impl ReceiveBuffers {
    /// Allocates the buffers and registers them with the ring behind `submitter`.
    pub(super) fn register(submitter: &Submitter<'_>) -> io::Result<Self> {
        const { assert!(COUNT.is_power_of_two()) };
        // SAFETY: both layouts have a size above zero.
        let (ring, memory) =
            unsafe { (alloc::alloc_zeroed(ring_layout()), alloc::alloc_zeroed(memory_layout())) };
        let (Some(ring), Some(memory)) = (NonNull::new(ring), NonNull::new(memory)) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        // All are used within moments, because the kernel takes them in turn: the pages come now, and not
        // during the first storm of connections.
        // SAFETY: the memory was allocated with this layout.
        unsafe { memory.write_bytes(0, memory_layout().size()) };
        let mut buffers = Self { ring: ring.cast(), memory, tail: 0 };
        // SAFETY: the ring's memory is page-aligned, zeroed, of COUNT entries, and lives until Drop, which
        // runs after the io_uring that it is registered with is gone (field order of `Ring`).
        unsafe { submitter.register_buf_ring_with_flags(ring.as_ptr() as u64, COUNT as u16, GROUP, 0)? };
        for id in 0..COUNT as u16 {
            buffers.offer(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The bytes that were received into a lent buffer.
    pub(super) fn bytes(&mut self, lent: &Lent) -> &mut [u8] {
        debug_assert!((lent.id as usize) < COUNT && lent.len <= limits::RECEIVE_BUFFER_BYTES);
        // SAFETY: `lent` stands for a buffer that the kernel has given up (see `Lent::new`), it lies within
        // the allocation, its bytes are initialised (zeroed at first), and `&mut self` keeps it unaliased.
        unsafe {
            let start = self.memory.as_ptr().add(lent.id as usize * limits::RECEIVE_BUFFER_BYTES);
            std::slice::from_raw_parts_mut(start, lent.len.min(limits::RECEIVE_BUFFER_BYTES))
        }
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn recycle(&mut self, lent: Lent) {
        self.offer(lent.id);
        self.publish();
    }

    fn offer(&mut self, id: u16) {
        let index = self.tail as usize & (COUNT - 1);
        // SAFETY: `index` is within the ring. The kernel reads entries only up to the published tail, so
        // this one is ours to write. Entry 0 shares its last two bytes with the tail: only the three
        // setters below are used, which leave them alone.
        let entry = unsafe { &mut *self.ring.as_ptr().add(index) };
        // SAFETY: `id` is below COUNT, so the address lies within the allocation.
        let address = unsafe { self.memory.as_ptr().add(id as usize * limits::RECEIVE_BUFFER_BYTES) };
        entry.set_addr(address as u64);
        entry.set_len(limits::RECEIVE_BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the tail is a u16 within the first entry, aligned, shared with the kernel, and written
        // only here; an atomic store with release order makes the entries visible before it.
        let tail = unsafe { &*BufRingEntry::tail(self.ring.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for ReceiveBuffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with the same layouts; the io_uring that wrote to them is gone.
        unsafe {
            alloc::dealloc(self.ring.as_ptr().cast(), ring_layout());
            alloc::dealloc(self.memory.as_ptr(), memory_layout());
        }
    }
}
