//! Waking a core: the eventfd that its ring signals and other threads write.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Waker};

use crate::fanout::Doorbell;

/// An eventfd. Clones share the descriptor, which is closed with the last of them.
#[derive(Clone, Debug)]
pub(super) struct EventFd(Arc<OwnedFd>);

impl EventFd {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open and nobody else's.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// A second descriptor of the same eventfd, for an owner that closes what it is given.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl Doorbell for EventFd {
    fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes. A full counter would block, after 2^64 - 2 rings unread.
        unsafe { libc::write(self.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// Wakes the turn from a task of the same thread, without a system call.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Bell {
    pub(super) fn ring(&self) {
        if !self.rung.replace(true)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Whether it was rung since the last call; otherwise the task of `cx` is woken by the next ring.
    pub(super) fn poll(&self, cx: &Context<'_>) -> bool {
        if self.rung.replace(false) {
            return true;
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        false
    }

    /// Whether it was rung since it was last asked or hushed.
    pub(super) fn is_rung(&self) -> bool {
        self.rung.get()
    }

    /// Forgets that it was rung.
    pub(super) fn hush(&self) {
        self.rung.set(false);
    }
}
