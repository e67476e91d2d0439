//! What a server costs, read from `/proc` while it runs.
//!
//! The kernel does part of a sender's work in `ksoftirqd` of the sender's core, most of all when the sender stays in
//! the kernel for long (as a batch of io_uring sends does). A cost without it would flatter such servers, so a
//! [`Sample`] holds both.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Instant;

use serde::Serialize;

/// Descendants of a server that are followed; more means that something forks without end.
const PROCESSES_MAX: usize = 256;

/// Watches one server process, its descendants, and the kernel's softirq threads of its cores.
pub(crate) struct Meter {
    pid: u32,
    cores: Vec<usize>,
    softirq_pids: Vec<u32>,
    ticks_per_second: f64,
}

/// The clocks at one moment. Only differences mean something.
pub(crate) struct Sample {
    at: Instant,
    threads_ns: HashMap<u32, u64>,
    softirq_ns: u64,
    cores_busy_s: f64,
}

/// What went by between two samples.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cost {
    /// CPU of the process, its threads and its descendants.
    pub(crate) process_us: f64,
    /// CPU of ksoftirqd on the server's cores; 0 if it cannot be seen (see [`Meter::sees_softirq`]).
    pub(crate) softirq_us: f64,
    /// Time between the samples.
    pub(crate) wall_s: f64,
    /// Share of the server's cores that others used: what made the figures noisy.
    pub(crate) others_percent: f64,
}

impl Cost {
    /// All that the server is charged with.
    pub(crate) fn total_us(&self) -> f64 {
        self.process_us + self.softirq_us
    }

    /// How busy the server was, 100 for one core.
    pub(crate) fn busy_percent(&self) -> f64 {
        if self.wall_s > 0.0 { self.total_us() / self.wall_s / 1e4 } else { 0.0 }
    }
}

impl Meter {
    /// Watches `pid`, which runs on `cores`.
    pub(crate) fn new(pid: u32, cores: &[usize]) -> Self {
        let wanted: Vec<String> = cores.iter().map(|core| format!("ksoftirqd/{core}")).collect();
        let softirq_pids = pids()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| wanted.iter().any(|wanted| wanted == name.trim()))
            })
            .collect();
        // SAFETY: sysconf takes a number and touches no memory.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Self { pid, cores: cores.to_vec(), softirq_pids, ticks_per_second: ticks.max(1) as f64 }
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether ksoftirqd of every core of the server is visible (it is not inside a container's own pid namespace).
    pub(crate) fn sees_softirq(&self) -> bool {
        self.softirq_pids.len() == self.cores.len()
    }

    /// Reads the clocks. The scheduler brings a running thread's clock up to date at its ticks only, so a
    /// caller that needs more than 10 ms of precision lets the server come to rest first.
    pub(crate) fn sample(&self) -> io::Result<Sample> {
        let mut threads_ns = HashMap::new();
        for pid in family(self.pid) {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                // A thread may end between the listing and the reading.
                if let Some(tid) = thread.file_name().to_str().and_then(|name| name.parse().ok())
                    && let Ok(text) = fs::read_to_string(thread.path().join("schedstat"))
                {
                    threads_ns.insert(tid, first_number(&text));
                }
            }
        }
        let softirq_ns = self
            .softirq_pids
            .iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/schedstat")).ok())
            .map(|text| first_number(&text))
            .sum();
        Ok(Sample { at: Instant::now(), threads_ns, softirq_ns, cores_busy_s: self.cores_busy_s()? })
    }

    /// What was used between two samples of this meter.
    pub(crate) fn between(&self, before: &Sample, after: &Sample) -> Cost {
        // Thread by thread: a thread that ended in between takes its whole count with it, which must not be
        // subtracted from what the others did.
        let process_ns: u64 = after
            .threads_ns
            .iter()
            .map(|(tid, ns)| ns.saturating_sub(before.threads_ns.get(tid).copied().unwrap_or(0)))
            .sum();
        let process_us = process_ns as f64 / 1e3;
        let softirq_us = after.softirq_ns.saturating_sub(before.softirq_ns) as f64 / 1e3;
        let wall_s = (after.at - before.at).as_secs_f64();
        let others_s = after.cores_busy_s - before.cores_busy_s - (process_us + softirq_us) / 1e6;
        let others_percent = (others_s / wall_s / self.cores.len().max(1) as f64 * 100.0).max(0.0);
        Cost { process_us, softirq_us, wall_s, others_percent }
    }

    /// CPU of each thread between two samples, in microseconds, the busiest first.
    pub(crate) fn by_thread_us(&self, before: &Sample, after: &Sample) -> Vec<f64> {
        let used = |(tid, ns): (&u32, &u64)| {
            ns.saturating_sub(before.threads_ns.get(tid).copied().unwrap_or(0)) as f64 / 1e3
        };
        let mut threads: Vec<f64> = after.threads_ns.iter().map(used).collect();
        threads.sort_by(|one, other| other.total_cmp(one));
        threads
    }

    /// Seconds that the server's cores were not idle since boot (in ticks of 10 ms).
    fn cores_busy_s(&self) -> io::Result<f64> {
        let text = fs::read_to_string("/proc/stat")?;
        let mut ticks = 0u64;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(name) = words.next() else { continue };
            if self.cores.iter().any(|core| name == format!("cpu{core}")) {
                let fields: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
                // user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user.
                ticks += fields.iter().take(8).sum::<u64>() - fields.iter().skip(3).take(2).sum::<u64>();
            }
        }
        Ok(ticks as f64 / self.ticks_per_second)
    }
}

/// A process's memory.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    /// Resident set.
    pub(crate) rss_bytes: u64,
    /// Proportional share of what is resident.
    pub(crate) pss_bytes: u64,
    /// Anonymous pages: heap and stacks, without program text and files.
    pub(crate) anonymous_bytes: u64,
    /// Open descriptors; io_uring's direct descriptors are not among them.
    pub(crate) descriptors: u64,
}

impl Memory {
    /// Sums over a server and its descendants.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut sum = Self::default();
        for pid in family(pid) {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map_or(0, |rest| first_number(rest) * 1024)
            };
            sum.rss_bytes += field("Rss:");
            sum.pss_bytes += field("Pss:");
            sum.anonymous_bytes += field("Anonymous:");
            sum.descriptors += fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        }
        Ok(sum)
    }
}

/// Resident bytes, cheaply: for sampling during a run.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let mut pages = 0;
    for pid in family(pid) {
        let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        pages += text.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    // SAFETY: sysconf takes a number and touches no memory.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(pages * page_bytes.max(0) as u64)
}

/// A process and its descendants (parents first), as far as the kernel lists children.
fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() && found.len() < PROCESSES_MAX {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", found[next])) else { break };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
        next += 1;
    }
    found
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

fn first_number(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn own_work_is_seen() {
        let meter = Meter::new(std::process::id(), &[0]);
        let before = meter.sample().unwrap();
        let start = Instant::now();
        let mut value = 1u64;
        while start.elapsed() < Duration::from_millis(60) {
            value = std::hint::black_box(value.wrapping_mul(3));
        }
        std::thread::sleep(Duration::from_millis(5));
        let cost = meter.between(&before, &meter.sample().unwrap());
        assert!(cost.process_us > 5_000.0, "{cost:?}");
    }

    #[test]
    fn own_memory_is_seen() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.rss_bytes > 100_000 && memory.descriptors >= 3, "{memory:?}");
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
    }
}
