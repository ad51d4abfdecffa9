//! Metrics: a registry that the agent owns, and what the kernel knows of this process.
//!
//! Each module has its own metrics and registers them here when it is built; names begin with `netd_`. What
//! is written is OpenMetrics text, which Prometheus asks for first.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::fs;

/// What an answer with these metrics says it is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The unit of times in `/proc`: `USER_HZ` is 100 on every architecture netd runs on (include/asm-generic/param.h).
const TICKS_PER_SECOND: f64 = 100.0;

/// All metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// With those of the process itself.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("netd");
        registry.register_collector(Box::new(Process));
        Self { registry }
    }

    /// Where modules register theirs; all names get `netd_` before them.
    pub const fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// All of them as text, of type [`CONTENT_TYPE`].
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Reads `/proc/self` at each scrape (proc(5)). What cannot be read is left out.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| number_after(&text, "btime "));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kibibytes = |name| number_after(&status, name).map(|n| n * 1024.0);
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        // The folder being read is itself one of the open files.
        let files =
            fs::read_dir("/proc/self/fd").ok().map(|dir| i64::try_from(dir.count()).unwrap_or(i64::MAX) - 1);
        let start = stat.as_ref().zip(boot).map(|(stat, boot)| boot + stat.start);

        if let Some(stat) = &stat {
            let counter = ConstCounter::new(stat.cpu);
            let metric = "process_cpu_seconds";
            let help = "Time on a processor, of all threads, in user and system mode";
            counter.encode(encoder.encode_descriptor(metric, help, None, counter.metric_type())?)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory", kibibytes("VmRSS:")),
            ("process_virtual_memory_bytes", "Virtual memory", kibibytes("VmSize:")),
            ("process_threads", "Threads", number_after(&status, "Threads:")),
            ("process_max_fds", "Most files it may have open", number_after(&limits, "Max open files")),
            ("process_start_time_seconds", "Start of the process, since the Unix epoch", start),
        ];
        for (metric, help, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(metric, help, None, gauge.metric_type())?)?;
        }
        if let Some(files) = files {
            let gauge = ConstGauge::new(files);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor("process_open_fds", "Open files", None, kind)?)?;
        }
        Ok(())
    }
}

/// Resident memory of this process in bytes; none if `/proc` cannot be read.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// What is taken from `/proc/self/stat`, in seconds.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu: f64,
    /// Since boot.
    start: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name, which may hold spaces and brackets: begin behind its end.
        // There the third field, the state, is number 0.
        let (_, rest) = text.rsplit_once(") ")?;
        let field = |n: usize| rest.split_ascii_whitespace().nth(n - 3)?.parse::<f64>().ok();
        Some(Self { cpu: (field(14)? + field(15)?) / TICKS_PER_SECOND, start: field(22)? / TICKS_PER_SECOND })
    }
}

/// The number behind `name` at the start of a line.
fn number_after(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    fn value(text: &str, metric: &str) -> f64 {
        number_after(text, &format!("{metric} ")).unwrap_or_else(|| panic!("{metric} in\n{text}"))
    }

    #[test]
    fn modules_register_their_own() {
        let mut metrics = Metrics::new();
        let adds: Counter = Counter::default();
        metrics.registry().register("cni_adds", "ADDs answered", adds.clone());
        adds.inc_by(3);
        let text = metrics.encode().expect("text");
        assert!(text.contains("# TYPE netd_cni_adds counter\nnetd_cni_adds_total 3\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_process_is_measured() {
        let metrics = Metrics::new();
        let held: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").expect("opened")).collect();
        let text = metrics.encode().expect("text");
        assert!(value(&text, "netd_process_open_fds") > 50.0, "{text}");
        drop(held);
        assert!(value(&text, "netd_process_resident_memory_bytes") > 1_000_000.0, "{text}");
        assert!(value(&text, "netd_process_threads") >= 1.0);
        assert!(value(&text, "netd_process_max_fds") >= 50.0);
        assert!(text.contains("netd_process_cpu_seconds_total "), "{text}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let age = now.as_secs_f64() - value(&text, "netd_process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }

    #[test]
    fn a_program_name_with_brackets_is_skipped() {
        let fields = (4..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("1 (a) b) c) S {fields}")).expect("parsed");
        assert_eq!(stat, Stat { cpu: 0.29, start: 0.22 });
        assert_eq!(Stat::parse("1 (x"), None);
    }
}
