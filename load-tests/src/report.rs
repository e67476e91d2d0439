//! Tables for people, JSON for scripts, and a progress bar where somebody watches.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::Outcome;

/// Rows of cells; the first column is aligned left, the others right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// One more row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The headings, then the rows.
    pub(crate) fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Prints it to standard output.
    pub(crate) fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                if column == 0 {
                    line += &format!("{cell:<width$}");
                } else {
                    line += &format!("  {cell:>width$}");
                }
            }
            println!("{}", line.trim_end());
            if number == 0 {
                println!("{}", "-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)));
            }
        }
    }
}

/// Longest latency that is told apart: ten minutes, more than any run takes.
const LATENCY_US_MAX: u64 = 600_000_000;

/// An empty histogram of microseconds.
///
/// It has its bounds from the start: one that grows by itself does so for `record`, but `saturating_record` would cut
/// every value down to the size it has, and all latencies would read as nothing.
pub(crate) fn microseconds() -> Outcome<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?)
}

/// One for a slot of a time line: a tenth of the memory, and still exact to a percent.
pub(crate) fn coarse_microseconds() -> Outcome<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LATENCY_US_MAX, 2)?)
}

/// Quantiles of a histogram of microseconds, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Quantiles {
    /// Half were faster.
    pub(crate) p50_ms: f64,
    /// One in ten was slower.
    pub(crate) p90_ms: f64,
    /// One in a hundred was slower.
    pub(crate) p99_ms: f64,
    /// One in a thousand was slower.
    pub(crate) p999_ms: f64,
    /// The slowest.
    pub(crate) max_ms: f64,
}

impl Quantiles {
    /// Of a histogram of microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |us: u64| us as f64 / 1e3;
        Self {
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p90_ms: ms(histogram.value_at_quantile(0.9)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            p999_ms: ms(histogram.value_at_quantile(0.999)),
            max_ms: ms(histogram.max()),
        }
    }

    /// `p50/p99/max`.
    pub(crate) fn text(&self) -> String {
        format!("{:.1}/{:.1}/{:.1}", self.p50_ms, self.p99_ms, self.max_ms)
    }

    /// `p50/p90/p99/p99.9/max`.
    pub(crate) fn long_text(&self) -> String {
        let Self { p50_ms, p90_ms, p99_ms, p999_ms, max_ms } = self;
        format!("{p50_ms:.1}/{p90_ms:.1}/{p99_ms:.1}/{p999_ms:.1}/{max_ms:.1}")
    }
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[length / 2],
        length => (sorted[length / 2 - 1] + sorted[length / 2]) / 2.0,
    }
}

/// The least value; 0 of nothing.
pub(crate) fn minimum(values: &[f64]) -> f64 {
    values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0)
}

/// A count that people can read.
pub(crate) fn thousands(value: f64) -> String {
    if value >= 10_000.0 { format!("{:.0}k", value / 1e3) } else { format!("{value:.0}") }
}

/// `PASS` or `FAIL`.
pub(crate) fn verdict(passed: bool) -> &'static str {
    if passed { "PASS" } else { "FAIL" }
}

/// Writes a report.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> Outcome {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_string_pretty(report)? + "\n")
        .map_err(|error| format!("{path:?}: {error}"))?;
    println!("\nJSON: {}", path.display());
    Ok(())
}

/// A name for a result that is kept: scenario and time.
pub(crate) fn result_path(folder: &Path, scenario: &str) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    folder.join(format!("{scenario}-{seconds}.json"))
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress(what: &str, length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length).with_message(what.to_owned());
    // A template that does not parse leaves the default style.
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept() {
        let mut histogram = microseconds().unwrap();
        for ms in 1..=100 {
            histogram.saturating_record(ms * 1000);
        }
        let Quantiles { p50_ms, p99_ms, max_ms, .. } = Quantiles::of(&histogram);
        assert!((p50_ms - 50.0).abs() < 0.1 && (p99_ms - 99.0).abs() < 0.1 && (max_ms - 100.0).abs() < 0.1);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(minimum(&[3.0, 1.0, 2.0]), 1.0);
    }
}
