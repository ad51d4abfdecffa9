//! Rows, the table of them for people, and a file for programs.
//!
//! `NAME.json` holds the case, on what it ran, and its rows:
//! `{case, subject, metric, unit, median, rounds, ratio, ratio_to, floor, goal, met, values, note}`;
//! `median` is null where a subject cannot be had, and the note says why.

use crate::cases::Case;
use crate::options::Options;
use crate::rounds::Series;
use anyhow::{Context as _, Result};
use netd_integration::binary;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// What one subject came to in one metric.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    case: Case,
    subject: String,
    metric: String,
    unit: &'static str,
    series: Series,
    ratio: Option<(f64, String)>,
    bar: Option<Bar>,
    note: Option<String>,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    of: Of,
    better: Better,
    floor: f64,
    goal: f64,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Median,
    Ratio,
}

#[derive(Clone, Copy, Debug)]
enum Better {
    High,
    Low,
}

impl Bar {
    /// The ratio should be at least so.
    pub(crate) const fn ratio(floor: f64, goal: f64) -> Self {
        Self { of: Of::Ratio, better: Better::High, floor, goal }
    }

    /// The ratio should be at most so.
    pub(crate) const fn ratio_at_most(floor: f64, goal: f64) -> Self {
        Self { of: Of::Ratio, better: Better::Low, floor, goal }
    }

    /// The median should be at least so.
    pub(crate) const fn at_least(floor: f64, goal: f64) -> Self {
        Self { of: Of::Median, better: Better::High, floor, goal }
    }

    /// The median should be at most so.
    pub(crate) const fn at_most(floor: f64, goal: f64) -> Self {
        Self { of: Of::Median, better: Better::Low, floor, goal }
    }

    fn met(self, row: &Row) -> &'static str {
        let value = match self.of {
            Of::Median => row.series.median(),
            Of::Ratio => row.ratio.as_ref().map_or(f64::NAN, |(ratio, _)| *ratio),
        };
        let reaches = |bar: f64| match self.better {
            Better::High => value >= bar,
            Better::Low => value <= bar,
        };
        if reaches(self.goal) {
            "goal"
        } else if reaches(self.floor) {
            "floor"
        } else {
            "MISSED"
        }
    }
}

impl Row {
    pub(crate) fn new(
        case: Case,
        subject: impl Into<String>,
        metric: impl Into<String>,
        unit: &'static str,
        series: Series,
    ) -> Self {
        let (subject, metric) = (subject.into(), metric.into());
        Self { case, subject, metric, unit, series, ratio: None, bar: None, note: None }
    }

    /// A subject that cannot be measured, and why.
    pub(crate) fn missing(case: Case, subject: &str, why: &str) -> Self {
        Self::new(case, subject, "", "", Series::default()).note(why)
    }

    /// Adds the ratio to another subject of the same rounds.
    pub(crate) fn to(mut self, name: impl Into<String>, other: &Series) -> Self {
        self.ratio = Some((self.series.ratio(other), name.into()));
        self
    }

    pub(crate) fn bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    fn json(&self) -> Value {
        let known = !self.series.values().is_empty();
        json!({
            "case": self.case.to_string(),
            "subject": self.subject,
            "metric": self.metric,
            "unit": self.unit,
            "median": known.then(|| self.series.median()),
            "rounds": self.series.values().len(),
            "values": self.series.values(),
            "ratio": self.ratio.as_ref().map(|(ratio, _)| ratio),
            "ratio_to": self.ratio.as_ref().map(|(_, to)| to),
            "floor": self.bar.map(|bar| bar.floor),
            "goal": self.bar.map(|bar| bar.goal),
            "met": self.bar.map(|bar| bar.met(self)),
            "note": self.note,
        })
    }

    fn cells(&self) -> [String; 7] {
        let known = !self.series.values().is_empty();
        let (median, spread) = if known {
            (figure(self.series.median()), format!("{:.1}", self.series.spread() * 100.0))
        } else {
            ("-".into(), "-".into())
        };
        let ratio = self.ratio.as_ref().map(|(ratio, to)| format!("{ratio:.3} of {to}")).unwrap_or_default();
        let bar =
            self.bar.map(|bar| format!("{} ({}/{})", bar.met(self), bar.floor, bar.goal)).unwrap_or_default();
        let metric = match self.unit {
            "" => self.metric.clone(),
            unit => format!("{}, {unit}", self.metric),
        };
        [self.subject.clone(), metric, median, spread, ratio, bar, self.note.clone().unwrap_or_default()]
    }
}

/// Four digits, or all that are before the point.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        medium if medium >= 100.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Where results go.
#[derive(Debug)]
pub(crate) struct Report {
    out: PathBuf,
    machine: Value,
    quick: bool,
}

impl Report {
    /// Makes the folder of results.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let out = options.out()?;
        fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let info = read("/proc/cpuinfo");
        let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let machine = json!({
            "kernel": read("/proc/sys/kernel/osrelease"),
            "cpu": cpu,
            "cpus": info.lines().filter(|line| line.starts_with("processor")).count(),
        });
        Ok(Self { out, machine, quick: options.quick })
    }

    /// A line about what is going on.
    pub(crate) fn progress(&self, text: &str) {
        // If nobody reads (any more), the files still tell.
        drop(writeln!(std::io::stdout(), "{text}"));
    }

    /// Prints the rows.
    pub(crate) fn table(&self, rows: &[Row]) {
        let head = ["subject", "metric", "median", "±%", "ratio", "met (floor/goal)", "note"];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(rows.iter().map(Row::cells));
        let width = |column: usize| {
            lines.iter().filter_map(|cells| cells.get(column)).map(|s| s.chars().count()).max()
        };
        let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
        for cells in &lines {
            let mut text = String::from("  ");
            for ((column, cell), width) in cells.iter().enumerate().zip(&widths) {
                // Figures are flush right.
                text += &if column == 2 || column == 3 {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:<width$}  ")
                };
            }
            self.progress(text.trim_end());
        }
    }

    /// Writes the case's file; its path.
    ///
    /// # Errors
    /// The filesystem refuses.
    pub(crate) fn write(&self, case: Case, rows: &[Row], took: Duration) -> Result<PathBuf> {
        let path = self.out.join(format!("{case}.json"));
        let document = json!({
            "version": 1,
            "case": case.to_string(),
            "quick": self.quick,
            "seconds": took.as_secs_f64(),
            "machine": self.machine,
            "netd": binary::netd()?,
            "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&document)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
