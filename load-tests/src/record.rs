//! What a run leaves behind for its report: latencies by time, and what server and client used meanwhile.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::meter::{self, Meter, Sample};
use crate::report::{self, Quantiles};
use crate::{Outcome, sys};

/// Width of a slot of the time line until [`SLOTS_MAX`] of them are full; then it doubles.
const SLOT_US: u64 = 100_000;
/// Slots of a time line: enough for a plot, and at most some 5 MB.
const SLOTS_MAX: usize = 200;
/// How often CPU and memory are looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// Samples of one run: an hour of them.
const SAMPLES_MAX: usize = 18_000;
/// Where the distribution is read: each step halves what is left.
const DISTRIBUTION_STEPS: i32 = 17;

/// Latencies of a run: all together, and by when what they belong to was due.
pub(crate) struct Series {
    start_us: u64,
    slot_us: u64,
    all: Histogram<u64>,
    slots: Vec<Histogram<u64>>,
}

/// One slot of a time line.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Moment {
    /// Seconds since the start, the slot's beginning.
    pub(crate) at_s: f64,
    /// Latencies in it.
    pub(crate) count: u64,
    /// Their quantiles.
    pub(crate) latency: Quantiles,
}

impl Series {
    /// An empty one that begins at 0 of the clock.
    pub(crate) fn new() -> Outcome<Self> {
        Ok(Self { start_us: 0, slot_us: SLOT_US, all: report::microseconds()?, slots: Vec::new() })
    }

    /// Forgets everything and begins at `start_us` of the clock.
    pub(crate) fn reset(&mut self, start_us: u64) {
        (self.start_us, self.slot_us) = (start_us, SLOT_US);
        self.slots.clear();
        self.all.reset();
    }

    /// What was due at `due_us` came at `now_us`.
    pub(crate) fn record(&mut self, due_us: u64, now_us: u64) {
        let latency_us = now_us.saturating_sub(due_us);
        self.all.saturating_record(latency_us);
        let since_us = due_us.saturating_sub(self.start_us);
        while since_us / self.slot_us >= SLOTS_MAX as u64 {
            self.widen();
        }
        let slot = (since_us / self.slot_us) as usize;
        self.reach(slot);
        if let Some(histogram) = self.slots.get_mut(slot) {
            histogram.saturating_record(latency_us);
        }
    }

    fn reach(&mut self, slot: usize) {
        while self.slots.len() <= slot {
            // The bounds are constants that are known to be good: an error would leave the time line short.
            let Ok(histogram) = report::coarse_microseconds() else { return };
            self.slots.push(histogram);
        }
    }

    /// Doubles the width of the slots.
    fn widen(&mut self) {
        self.slot_us *= 2;
        let fine = std::mem::take(&mut self.slots);
        for (number, histogram) in fine.into_iter().enumerate() {
            if number % 2 == 0 {
                self.slots.push(histogram);
            } else if let Some(last) = self.slots.last_mut() {
                // Equal bounds: nothing can be out of them.
                let _ = last.add(&histogram);
            }
        }
    }

    /// Adds another swarm's, which has the same clock and began at nearly the same time.
    pub(crate) fn add(&mut self, mut other: Self) -> Outcome {
        if self.all.is_empty() && self.slots.is_empty() {
            *self = other;
            return Ok(());
        }
        while self.slot_us < other.slot_us {
            self.widen();
        }
        while other.slot_us < self.slot_us {
            other.widen();
        }
        self.all.add(&other.all)?;
        self.reach(other.slots.len().saturating_sub(1));
        for (own, others) in self.slots.iter_mut().zip(&other.slots) {
            own.add(others)?;
        }
        Ok(())
    }

    /// A copy for another thread.
    pub(crate) fn copy(&self) -> Self {
        let Self { start_us, slot_us, all, slots } = self;
        Self { start_us: *start_us, slot_us: *slot_us, all: all.clone(), slots: slots.clone() }
    }

    /// All latencies.
    pub(crate) fn all(&self) -> &Histogram<u64> {
        &self.all
    }

    fn moments(&self) -> Vec<Moment> {
        let moment = |(number, histogram): (usize, &Histogram<u64>)| Moment {
            at_s: (number as u64 * self.slot_us) as f64 / 1e6,
            count: histogram.len(),
            latency: Quantiles::of(histogram),
        };
        self.slots.iter().enumerate().filter(|(_, histogram)| !histogram.is_empty()).map(moment).collect()
    }
}

/// A point of the distribution.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Share {
    /// This share of all was as fast or faster.
    pub(crate) quantile: f64,
    /// Than this.
    pub(crate) ms: f64,
}

/// What server and client used during a fifth of a second.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Usage {
    /// Seconds since the start, the interval's end.
    pub(crate) at_s: f64,
    /// The server's process and its cores' ksoftirqd, 100 for one core.
    pub(crate) server_percent: f64,
    /// The part of it in ksoftirqd.
    pub(crate) softirq_percent: f64,
    /// This tool, 100 for one core.
    pub(crate) client_percent: f64,
    /// Resident memory of the server.
    pub(crate) server_rss_bytes: u64,
}

/// What a report and its plots are made of.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Recorded {
    /// Of all latencies.
    pub(crate) latency: Quantiles,
    /// How many there were.
    pub(crate) count: u64,
    /// The latencies by quantile.
    pub(crate) distribution: Vec<Share>,
    /// The latencies by time.
    pub(crate) over_time: Vec<Moment>,
    /// CPU and memory by time.
    pub(crate) usage: Vec<Usage>,
}

impl Recorded {
    /// Latencies and usage of one run.
    pub(crate) fn new(series: &Series, usage: Vec<Usage>) -> Self {
        Self { over_time: series.moments(), ..Self::of(series.all(), usage) }
    }

    /// The same of latencies that are not known by time.
    pub(crate) fn of(all: &Histogram<u64>, usage: Vec<Usage>) -> Self {
        let share = |step: i32| {
            let quantile = 1.0 - 0.5f64.powi(step);
            Share { quantile, ms: all.value_at_quantile(quantile) as f64 / 1e3 }
        };
        let told_apart = (all.len().max(1) as f64).log2().ceil() as i32;
        Self {
            latency: Quantiles::of(all),
            count: all.len(),
            distribution: (0..=told_apart.min(DISTRIBUTION_STEPS)).map(share).collect(),
            over_time: Vec::new(),
            usage,
        }
    }
}

/// Looks at CPU and memory while a run goes on.
pub(crate) struct Sampler<'a> {
    meter: &'a Meter,
    start: Instant,
    last: (Instant, Sample, Duration),
    usage: Vec<Usage>,
}

impl<'a> Sampler<'a> {
    /// Begins now.
    pub(crate) fn new(meter: &'a Meter) -> Outcome<Self> {
        let now = Instant::now();
        Ok(Self { meter, start: now, last: (now, meter.sample()?, sys::process_cpu()), usage: Vec::new() })
    }

    /// Takes a sample when it is time for one.
    pub(crate) fn tick(&mut self) -> Outcome {
        let now = Instant::now();
        let (at, before, client_before) = &self.last;
        if now - *at < SAMPLE_EVERY || self.usage.len() >= SAMPLES_MAX {
            return Ok(());
        }
        let (sample, client) = (self.meter.sample()?, sys::process_cpu());
        let cost = self.meter.between(before, &sample);
        self.usage.push(Usage {
            at_s: (now - self.start).as_secs_f64(),
            server_percent: cost.busy_percent(),
            softirq_percent: cost.softirq_us / cost.wall_s / 1e4,
            client_percent: (client - *client_before).as_secs_f64() / cost.wall_s * 100.0,
            server_rss_bytes: meter::resident_bytes(self.meter.pid())?,
        });
        self.last = (now, sample, client);
        Ok(())
    }

    /// What was seen.
    pub(crate) fn end(self) -> Vec<Usage> {
        self.usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_line_widens_and_loses_nothing() {
        let mut series = Series::new().unwrap();
        series.reset(1_000);
        for number in 0..1_000u64 {
            let due_us = 1_000 + number * 100_000;
            series.record(due_us, due_us + 5_000);
        }
        let recorded = Recorded::new(&series, Vec::new());
        assert_eq!(recorded.count, 1_000);
        assert!(recorded.over_time.len() <= SLOTS_MAX, "{}", recorded.over_time.len());
        assert_eq!(recorded.over_time.iter().map(|moment| moment.count).sum::<u64>(), 1_000);
        let (first, last) = (recorded.over_time[0], recorded.over_time[recorded.over_time.len() - 1]);
        assert!(first.at_s == 0.0 && last.at_s > 90.0 && last.at_s < 100.0, "{first:?} {last:?}");
        assert!((recorded.latency.p50_ms - 5.0).abs() < 0.1);
    }

    #[test]
    fn time_lines_of_different_widths_add_up() {
        let (mut short, mut long) = (Series::new().unwrap(), Series::new().unwrap());
        (0..100u64).for_each(|number| short.record(number * 100_000, number * 100_000 + 10));
        (0..900u64).for_each(|number| long.record(number * 100_000, number * 100_000 + 10));
        short.add(long).unwrap();
        let recorded = Recorded::new(&short, Vec::new());
        assert_eq!(recorded.count, 1_000);
        assert_eq!(recorded.over_time.iter().map(|moment| moment.count).sum::<u64>(), 1_000);
    }
}
