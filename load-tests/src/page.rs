//! A report as a page: tables and plots in one file that needs nothing from anywhere.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use plotters::prelude::*;
use serde::Serialize;

use crate::Outcome;
use crate::record::Recorded;
use crate::report::{self, Table};

/// A plot's size in pixels; the page scales it.
const PLOT: (u32, u32) = (860, 300);
const COLORS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 98, 20), RGBColor(44, 140, 60), RGBColor(148, 60, 170)];
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:920px;margin:2em auto;padding:0 1em;\
    color:#222;background:#fff}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}\
    table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
    td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}\
    td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}div{overflow-x:auto}\
    .bar{width:30em}i{display:block;height:.8em;background:#1f77b4}";

/// Points of one line and its name.
type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// Where a scenario leaves what it found, beside its table on the terminal; common to all of them.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Outputs {
    /// Write the report here
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with plots here
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
}

impl Outputs {
    /// Writes what was asked for; the page is made only then.
    pub(crate) fn write(&self, report: &impl Serialize, page: impl FnOnce() -> Outcome<Page>) -> Outcome {
        if let Some(path) = &self.html {
            page()?.write(path)?;
        }
        self.json.as_deref().map_or(Ok(()), |path| report::write_json(path, report))
    }
}

/// A page under construction.
pub(crate) struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with a title.
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new() }
    }

    /// A paragraph.
    pub(crate) fn text(mut self, text: &str) -> Self {
        let _ = write!(self.body, "<p>{}</p>", escaped(text));
        self
    }

    /// A table.
    pub(crate) fn table(mut self, table: &Table) -> Self {
        self.body += "<div><table>";
        for (number, row) in table.rows().iter().enumerate() {
            let tag = if number == 0 { "th" } else { "td" };
            self.body += "<tr>";
            for cell in row {
                let _ = write!(self.body, "<{tag}>{}</{tag}>", escaped(cell));
            }
            self.body += "</tr>";
        }
        self.body += "</table></div>";
        self
    }

    /// Values beside each other, as bars from 0.
    pub(crate) fn bars(mut self, title: &str, bars: &[(&str, f64)]) -> Self {
        let _ = write!(self.body, "<h2>{}</h2><div><table>", escaped(title));
        let most = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
        for (name, value) in bars {
            let _ = write!(
                self.body,
                "<tr><td>{}</td><td>{value:.2}</td><td class=\"bar\"><i style=\"width:{:.1}%\"></i></td></tr>",
                escaped(name),
                value / most * 100.0
            );
        }
        self.body += "</table></div>";
        self
    }

    /// The plots of a run: latency by time and by quantile, CPU, memory.
    pub(crate) fn recorded(self, recorded: &Recorded) -> Outcome<Self> {
        let moments = &recorded.over_time;
        let by_time = |pick: fn(&report::Quantiles) -> f64| {
            moments.iter().map(|moment| (moment.at_s, pick(&moment.latency))).collect::<Vec<_>>()
        };
        let latency = [
            ("median", by_time(|latency| latency.p50_ms)),
            ("99 %", by_time(|latency| latency.p99_ms)),
            ("slowest", by_time(|latency| latency.max_ms)),
        ];
        // Each unit to the right is a tenth of what is left.
        let nines = |quantile: f64| -(1.0 - quantile).log10();
        let distribution: Vec<_> =
            recorded.distribution.iter().map(|share| (nines(share.quantile), share.ms)).collect();
        let usage = |pick: fn(&crate::record::Usage) -> f64| {
            recorded.usage.iter().map(|usage| (usage.at_s, pick(usage))).collect::<Vec<_>>()
        };
        let cpu = [
            ("server", usage(|usage| usage.server_percent)),
            ("of it ksoftirqd", usage(|usage| usage.softirq_percent)),
            ("client", usage(|usage| usage.client_percent)),
        ];
        let memory = [("server", usage(|usage| usage.server_rss_bytes as f64 / f64::from(1 << 20)))];
        let page = match moments.is_empty() {
            true => self,
            false => self.plot("Latency over time, ms, by when it was due", "seconds", &latency, &seconds)?,
        };
        page.plot("Latency, ms, by share of all", "as fast or faster", &[("", distribution)], &share)?
            .plot("CPU, % of a core", "seconds", &cpu, &seconds)?
            .plot("Resident memory of the server, MiB", "seconds", &memory, &seconds)
    }

    /// A plot of lines from 0.
    pub(crate) fn plot(
        mut self,
        title: &str,
        x_name: &str,
        lines: &[Line<'_>],
        x_text: &dyn Fn(&f64) -> String,
    ) -> Outcome<Self> {
        let _ = write!(self.body, "<h2>{}</h2>", escaped(title));
        let points = || lines.iter().flat_map(|(_, points)| points);
        if points().next().is_none() {
            self.body += "<p>too short to say</p>";
            return Ok(self);
        }
        let x_max = points().map(|point| point.0).fold(f64::MIN_POSITIVE, f64::max);
        // The names of several lines stand above them.
        let room = if lines.len() > 1 { 1.4 } else { 1.05 };
        let y_max = points().map(|point| point.1).fold(1e-3, f64::max) * room;
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, PLOT).into_drawing_area();
            let mut chart = ChartBuilder::on(&area)
                .margin(8)
                .margin_right(24)
                .x_label_area_size(36)
                .y_label_area_size(60)
                .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
            let light = RGBColor(225, 225, 225);
            chart
                .configure_mesh()
                .x_desc(x_name)
                .x_label_formatter(x_text)
                .light_line_style(WHITE)
                .bold_line_style(light)
                .draw()?;
            for (number, (name, points)) in lines.iter().enumerate() {
                let style = COLORS[number % COLORS.len()].stroke_width(2);
                let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
                drawn.label(*name).legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], COLORS[number % COLORS.len()].stroke_width(2))
                });
            }
            if lines.len() > 1 {
                chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::UpperRight)
                    .background_style(WHITE.mix(0.8))
                    .border_style(light)
                    .draw()?;
            }
            area.present()?;
        }
        self.body += &svg;
        Ok(self)
    }

    /// Writes the file.
    fn write(self, path: &Path) -> Outcome {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let (title, body) = (escaped(&self.title), self.body);
        let page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>\
             <h1>{title}</h1>{body}</html>\n"
        );
        fs::write(path, page).map_err(|error| format!("{path:?}: {error}"))?;
        println!("\nHTML: {}", path.display());
        Ok(())
    }
}

fn seconds(at: &f64) -> String {
    let text = format!("{at:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn share(nines: &f64) -> String {
    let percent = 100.0 - 10f64.powf(2.0 - nines);
    format!("{percent:.*} %", (nines.ceil() as usize).saturating_sub(1).min(6))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_from_anywhere() {
        let path = std::env::temp_dir().join(format!("load-tests-page-{}.html", std::process::id()));
        let mut table = Table::new(&["a<b", "c"]);
        table.row(vec!["x & y".into(), "1".into()]);
        let lines = [("one", vec![(0.0, 1.0), (1.0, 2.0)]), ("two", vec![(0.0, 3.0), (1.0, 1.0)])];
        let page = Page::new("<title>").text("words").table(&table);
        page.plot("plot", "x", &lines, &seconds).unwrap().write(&path).unwrap();
        let html = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(html.contains("<svg") && html.contains("polyline"), "{html}");
        assert!(html.contains("a&lt;b") && html.contains("x &amp; y") && !html.contains("<title><"));
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn shares_have_as_many_digits_as_they_need() {
        assert_eq!([0.0, 1.0, 2.0, 3.0].map(|nines| share(&nines)), ["0 %", "90 %", "99.0 %", "99.90 %"]);
    }
}
