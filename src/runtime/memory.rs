//! The memory of the process, beside the bound that an operator has set ([`Options::max_memory`]).
//!
//! [`Options::max_memory`]: super::Options::max_memory

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::core::Core;
use crate::limits;
use crate::time::Millis;

/// How much memory the process may use, and whether it uses more. All cores share one.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// In bytes; 0 means no bound.
    max: u64,
    /// Set while the process is over its bound.
    short: AtomicBool,
    /// When the next core that ticks measures again.
    next: AtomicU64,
    /// When freed memory may next be given back to the kernel.
    next_trim: AtomicU64,
}

/// A change that a measurement has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The process has gone over its bound.
    Short,
    /// The process is well below its bound again.
    Recovered,
}

impl Memory {
    pub(super) fn new(max: usize) -> Self {
        Self { max: max as u64, ..Self::default() }
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    pub(super) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Takes the turn to measure, if one is due at `now`: only one of the cores that ask gets it.
    fn claim(next: &AtomicU64, now: Millis, interval: Millis) -> bool {
        let due = next.load(Ordering::Relaxed);
        let claim = || next.compare_exchange(due, now + interval, Ordering::Relaxed, Ordering::Relaxed);
        now >= due && claim().is_ok()
    }

    /// Compares a measurement with the bound. The process counts as recovered a sixteenth below it, or a
    /// server at its bound would change its answer with every connection.
    fn note(&self, used: u64) -> Option<Change> {
        let short = self.is_short();
        if !short && used > self.max {
            self.short.store(true, Ordering::Relaxed);
            return Some(Change::Short);
        }
        if short && used < self.max - self.max / 16 {
            self.short.store(false, Ordering::Relaxed);
            return Some(Change::Recovered);
        }
        None
    }
}

/// The bytes of memory that belong to this process alone, without files that are mapped: what counts
/// against a control group's limit for it. `None` without `/proc`.
pub(super) fn used() -> Option<u64> {
    parse_statm(&fs::read_to_string("/proc/self/statm").ok()?, page_size())
}

/// Reads `/proc/self/statm` (proc(5)): the second field is what is resident, the third what of it is shared,
/// both in pages.
fn parse_statm(text: &str, page: u64) -> Option<u64> {
    let mut fields = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    resident.checked_sub(shared)?.checked_mul(page)
}

fn page_size() -> u64 {
    // SAFETY: no memory is involved.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Gives memory that was freed back to the kernel. glibc keeps it otherwise, and a process that once went
/// over its bound would stay over it; other allocators give it back by themselves.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator's own function, which locks what it changes.
    unsafe {
        libc::malloc_trim(0)
    };
}

impl Core {
    /// Whether the process uses more memory than [`Options::max_memory`](super::Options::max_memory) allows.
    /// While it does, layers refuse what would take more: new connections, new sessions, large bodies.
    pub fn is_short_of_memory(&self) -> bool {
        self.shared.memory.is_short()
    }

    /// Measures the process, if a bound is set and nobody has measured it lately.
    pub(super) fn watch_memory(&self, now: Millis) {
        let memory = &self.shared.memory;
        if memory.max == 0 || !Memory::claim(&memory.next, now, limits::MEMORY_INTERVAL.as_millis() as Millis)
        {
            return;
        }
        let Some(used) = used() else { return };
        match memory.note(used) {
            Some(Change::Short) => tracing::warn!(
                "the process uses {used} bytes of {}: new connections, sessions and large bodies are refused",
                memory.max
            ),
            Some(Change::Recovered) => tracing::warn!(
                "the process uses {used} bytes of {}: all connections, sessions and bodies are served",
                memory.max
            ),
            None => {}
        }
        if memory.is_short()
            && Memory::claim(&memory.next_trim, now, limits::MEMORY_TRIM_INTERVAL.as_millis() as Millis)
        {
            self.background(trim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_process_is_read() {
        assert_eq!(parse_statm("100 50 20 1 0 30 0\n", 4096), Some(30 * 4096));
        for broken in ["", "100", "100 50", "100 x 20", "100 20 50", "1 18446744073709551615 0"] {
            assert_eq!(parse_statm(broken, 4096), None, "{broken:?}");
        }
    }

    #[test]
    fn a_process_is_short_above_its_bound_and_recovers_well_below_it() {
        let memory = Memory::new(1600);
        let told: Vec<_> =
            [1600, 1601, 1700, 1501, 1500, 1499, 1600, 1601].map(|used| memory.note(used)).into();
        let (short, recovered) = (Some(Change::Short), Some(Change::Recovered));
        assert_eq!(told, [None, short, None, None, None, recovered, None, short]);
        assert!(memory.is_short());
    }

    #[test]
    fn one_core_measures_at_a_time() {
        let next = AtomicU64::new(0);
        let claims = [0, 0, 99, 100, 100, 250].map(|now| Memory::claim(&next, now, 100));
        assert_eq!(claims, [true, false, false, true, false, true]);
    }
}
