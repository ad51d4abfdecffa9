//! What the test harness said: counts, and which tests it skipped and why.

/// Sums over all test programs of one run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
    /// Test and reason.
    pub(super) skipped: Vec<(String, String)>,
}

impl Tally {
    /// Takes one line of `cargo test`; one that says nothing about results changes nothing.
    pub(super) fn line(&mut self, line: &str) {
        let line = plain(line);
        if let Some(counts) = line.strip_prefix("test result: ") {
            for part in counts.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next())
                else {
                    continue;
                };
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    "ignored" => self.ignored += count,
                    _ => {}
                }
            }
        } else if let Some((test, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
            && let Some(why) = outcome.strip_prefix("ignored")
        {
            let why = why.trim_start_matches([',', ' ']).trim();
            let why = if why.is_empty() { "no reason given" } else { why };
            self.skipped.push((test.to_owned(), why.to_owned()));
        }
    }
}

/// The line without a terminal's colours.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test lab::big ... ignored, needs a kernel of 6.6",
            "test lab::small ... \u{1b}[33mignored\u{1b}[0m",
            "test plan::adds ... ok",
            "test result: ok. 4 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: \u{1b}[31mFAILED\u{1b}[0m. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.23s",
            "test a ... output of a test that prints",
        ] {
            tally.line(line);
        }
        let skipped = [("lab::big", "needs a kernel of 6.6"), ("lab::small", "no reason given")];
        let skipped = skipped.map(|(test, why)| (test.to_owned(), why.to_owned())).to_vec();
        assert_eq!(tally, Tally { passed: 5, failed: 2, ignored: 2, skipped });
    }
}
