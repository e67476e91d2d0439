//! What this kernel can do, found by trying it: version numbers lie in both directions.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, opcode, squeue, types};

use super::StartError;
use super::ring::{Kind, Rig, Ring, Tag, Target};

/// Tries the socket ring's operations once and explains a failure.
pub(super) fn check() -> Result<(), StartError> {
    let mut rig = Rig::new(None).map_err(explain)?;
    let ring = &mut rig.ring;
    if !ring.has_skip_success() {
        return Err(StartError::TooOld("IOSQE_CQE_SKIP_SUCCESS (5.17)"));
    }
    multishot_receive(ring).map_err(|_| StartError::TooOld("multishot receive (6.0)"))
}

fn explain(error: io::Error) -> StartError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => StartError::NoIoUring(error),
        Some(libc::EPERM | libc::EACCES) => {
            let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                .ok()
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or(0);
            StartError::Forbidden { source: error, disabled }
        }
        Some(libc::EINVAL) => StartError::TooOld("DEFER_TASKRUN or buffer rings (6.1)"),
        _ => StartError::Ring { source: error },
    }
}

fn multishot_receive(ring: &mut Ring) -> io::Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let tag = Tag { kind: Kind::Receive, generation: 1, slot: 0 };
    ring.receive(Target::Normal(theirs.as_raw_fd()), tag)?;
    ring.submit()?;
    let mut seen = VecDeque::new();
    for _ in 0..2 {
        ours.write_all(b"x")?;
        ring.submit()?;
        ring.reap(&mut seen, usize::MAX);
    }
    let works = seen.len() == 2 && seen.iter().all(|c| c.result == 1 && c.more && c.buffer.is_some());
    ring.cancel(tag)?;
    ring.submit()?;
    if works { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Whether closing a direct descriptor closes the socket at once (kernels from 6.13 on). On older ones it
/// stays open behind any older request of the ring (R9).
pub(super) fn direct_descriptors_close() -> bool {
    try_direct().unwrap_or(false)
}

fn try_direct() -> io::Result<bool> {
    let mut uring: IoUring =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(8)?;
    let (_armed_peer, armed) = UnixStream::pair()?;
    let (mut peer, closed) = UnixStream::pair()?;
    uring.submitter().register_files(&[armed.as_raw_fd(), closed.as_raw_fd()])?;
    drop((armed, closed));
    let poll = opcode::PollAdd::new(types::Fixed(0), libc::POLLIN as u32).build();
    let close = opcode::Close::new(types::Fixed(1)).build().flags(squeue::Flags::SKIP_SUCCESS);
    // SAFETY: neither entry points to memory.
    unsafe {
        uring.submission().push(&poll).map_err(|_| io::ErrorKind::Other)?;
        uring.submission().push(&close).map_err(|_| io::ErrorKind::Other)?;
    }
    uring.submit()?;
    uring.submit()?;
    peer.set_nonblocking(true)?;
    // End of file means that the socket is gone; WouldBlock that it lingers.
    Ok(matches!(peer.read(&mut [0; 1]), Ok(0)))
}
