//! Durations as people write them: `250ms`, `30s`, `1m30s`. A number alone is never one.

use super::read::Fault;
use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `30s`, `5m`, `250ms`, `1h30m`: whole numbers, each with its unit.
pub(super) fn parse(text: &str) -> Result<Duration, Fault> {
    let form = "write whole numbers with ms, s, m or h, such as `30s`";
    if text.is_empty() {
        return Err(Fault::new("is empty", form));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::new("has no unit", format!("write `{text}s` for seconds, or use ms, m or h")));
    }
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        rest = tail;
        if number.is_empty() || unit.is_empty() {
            return Err(Fault::new(format!("is not a duration: `{text}`"), form));
        }
        let Some((_, millis)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(Fault::new(format!("has an unknown unit `{unit}`"), "the units are ms, s, m and h"));
        };
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(*millis))
            .and_then(|n| n.checked_add(total))
            .ok_or_else(|| Fault::new("is too long", ""))?;
    }
    Ok(Duration::from_millis(total))
}

/// The shortest form that [`parse`] reads back; what is below a millisecond is left out.
pub(super) fn format(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut out = String::new();
    for (unit, millis) in UNITS {
        if left >= millis {
            out.push_str(&format!("{}{unit}", left / millis));
            left %= millis;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bare_number_names_the_unit_to_write() {
        let fault = parse("30").expect_err("no unit");
        assert_eq!(fault.message, "has no unit");
        assert!(fault.label.contains("`30s`"), "{}", fault.label);
    }

    #[test]
    fn forms() {
        for (text, millis) in
            [("0s", 0), ("250ms", 250), ("30s", 30_000), ("1m30s", 90_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse(text).expect(text), Duration::from_millis(millis));
        }
        for text in
            ["", "s", "-1s", "1.5s", "30 s", "1d", "30S", "1s2", "99999999999999999999s", "9999999999999999h"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_formatted_is_read_back(millis in any::<u32>()) {
            let duration = Duration::from_millis(millis.into());
            prop_assert_eq!(parse(&format(duration)).expect("own form"), duration);
        }
    }
}
