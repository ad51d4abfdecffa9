//! What the demo prints: sections of checks, each with what was asked and what came back.

use anyhow::Result;
use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// Writes to standard output and counts what did not hold. If nobody reads (any more), the demo goes on:
/// its exit status still tells.
#[derive(Debug)]
pub(crate) struct Report {
    colour: bool,
    sections: u32,
    held: u32,
    failed: u32,
    start: Instant,
}

impl Report {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, sections: 0, held: 0, failed: 0, start: Instant::now() }
    }

    /// A line as it is.
    pub(crate) fn line(&self, text: &str) {
        drop(writeln!(std::io::stdout(), "{text}"));
    }

    /// Begins a section.
    pub(crate) fn section(&mut self, title: &str) {
        self.sections += 1;
        let number = self.sections;
        self.line("");
        self.line(&if self.colour {
            format!("\x1b[1m{number}. {title}\x1b[0m")
        } else {
            format!("{number}. {title}")
        });
    }

    /// One check: what was asked, and what came back or why it did not hold.
    pub(crate) fn check(&mut self, asked: &str, came_back: Result<String>) {
        let (mark, colour, text) = match came_back {
            Ok(text) => {
                self.held += 1;
                ("ok  ", "\x1b[32m", text)
            }
            Err(error) => {
                self.failed += 1;
                ("FAIL", "\x1b[31m", format!("{error:#}"))
            }
        };
        let mark = if self.colour { format!("{colour}{mark}\x1b[0m") } else { mark.to_owned() };
        let text = text.replace('\n', "\n         ");
        self.line(&format!("  {mark} {asked:<46} {text}"));
    }

    /// The last line; whether all held.
    pub(crate) fn end(&self) -> bool {
        let took = self.start.elapsed().as_secs_f64();
        self.line("");
        self.line(&match self.failed {
            0 => format!("All {} checks held, in {took:.0} s.", self.held),
            n => format!("{n} of {} checks FAILED, in {took:.0} s.", n + self.held),
        });
        self.failed == 0
    }
}
