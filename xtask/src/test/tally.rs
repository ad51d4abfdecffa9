//! What the test harness said: counts, and which tests it skipped and why.
//!
//! A test that finds only while it runs that its machine lacks something says so in a line that begins with
//! [`SKIPPED`] and passes; with `--show-output` that is seen here, and the test counts as skipped.

/// Begins a test's own word that it was skipped, and why.
const SKIPPED: &str = "skipped: ";

/// Sums over all test programs of one run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// Test and reason.
    pub(crate) skipped: Vec<(String, String)>,
    /// The test whose output is being shown.
    shown: String,
    /// Those of the program under way that said themselves that they were skipped.
    said: u64,
}

impl Tally {
    /// Takes one line of `cargo test`; one that says nothing about results changes nothing.
    pub(crate) fn line(&mut self, line: &str) {
        let line = plain(line);
        if let Some(counts) = line.strip_prefix("test result: ") {
            for part in counts.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next())
                else {
                    continue;
                };
                match what {
                    "passed" => {
                        self.passed += count.saturating_sub(self.said);
                        self.ignored += std::mem::take(&mut self.said);
                    }
                    "failed" => self.failed += count,
                    "ignored" => self.ignored += count,
                    _ => {}
                }
            }
        } else if let Some(test) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            test.clone_into(&mut self.shown);
        } else if let Some(why) = line.strip_prefix(SKIPPED) {
            self.skipped.push((self.shown.clone(), why.to_owned()));
            self.said += 1;
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
            "---- lab::odd stdout ----",
            "skipped: this kernel has no TCX",
            "test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: \u{1b}[31mFAILED\u{1b}[0m. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.23s",
            "test a ... output of a test that prints",
        ] {
            tally.line(line);
        }
        let skipped = [
            ("lab::big", "needs a kernel of 6.6"),
            ("lab::small", "no reason given"),
            ("lab::odd", "this kernel has no TCX"),
        ];
        let skipped = skipped.map(|(test, why)| (test.to_owned(), why.to_owned()));
        assert_eq!(tally.skipped, skipped);
        assert_eq!((tally.passed, tally.failed, tally.ignored), (5, 2, 3));
    }
}
