//! Times and sizes as people read them.

/// Seconds as the two largest units: `6d4h`, `12m3s`.
pub(super) fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(length, _)| seconds >= *length) else { return "0s".to_owned() };
    let mut out = String::new();
    let mut left = seconds;
    for (length, name) in units.iter().skip(first).take(2) {
        let count = left / length;
        left %= length;
        if count > 0 {
            out.push_str(&format!("{count}{name}"));
        }
    }
    out
}

/// Bytes in binary units.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// `used/limit`, with the share once that says something.
pub(super) fn filled(used: u64, limit: u64) -> String {
    match used.saturating_mul(100).checked_div(limit) {
        Some(percent) if percent > 0 => format!("{used}/{limit} ({percent} %)"),
        _ => format!("{used}/{limit}"),
    }
}

/// `1 pod`, `2 pods`.
pub(super) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units_are_enough() {
        let spans = [0, 59, 60, 61, 3_600, 3_661, 86_400, 533_000].map(span);
        assert_eq!(spans, ["0s", "59s", "1m", "1m1s", "1h", "1h1m", "1d", "6d4h"]);
        assert_eq!([1_023, 2_048, 40_000_000].map(bytes), ["1023 B", "2 KiB", "38 MiB"]);
        assert_eq!([filled(3, 1_000), filled(48, 100), filled(1, 0)], ["3/1000", "48/100 (48 %)", "1/0"]);
        assert_eq!([counted(1, "pod"), counted(0, "pod")], ["1 pod", "0 pods"]);
    }
}
