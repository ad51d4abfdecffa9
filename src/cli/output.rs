//! The one writer of standard output.
//!
//! A reader that has seen enough (`netd config example | head -1`) closes the pipe: that is [`Error::Closed`],
//! which ends the command well. Any other failure, such as a full disk, is an error.

use serde::Serialize;
use std::io::{self, IsTerminal as _, Write as _};

/// What became of the output.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The reader has gone.
    #[error("nobody reads standard output any more")]
    Closed,
    /// It cannot be written.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Write(error) }
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Writes text as it is.
pub(super) fn text(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<(), Error> {
    let document = serde_json::to_string_pretty(value).map_err(|e| Error::Write(e.into()))?;
    text(&(document + "\n"))
}

/// Lays rows out in columns, left-aligned, two spaces apart.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut out = String::new();
    for line in columns(rows) {
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// The lines of a table.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> impl Iterator<Item = String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    rows.iter().map(move |row| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        line.truncate(line.trim_end().len());
        line
    })
}

/// Text of which some lines are red on a terminal: what is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page(Vec<(bool, String)>);

impl Page {
    /// Adds a line.
    pub(super) fn line(&mut self, line: impl Into<String>) {
        self.0.push((false, line.into()));
    }

    /// Adds a line that is red if `bad`.
    pub(super) fn judged(&mut self, bad: bool, line: impl Into<String>) {
        self.0.push((bad, line.into()));
    }

    /// Adds a table with its head, and what is bad of it.
    pub(super) fn table<const N: usize>(&mut self, head: [&str; N], rows: Vec<(bool, [String; N])>) {
        let (bad, mut cells): (Vec<bool>, Vec<[String; N]>) = rows.into_iter().unzip();
        cells.insert(0, head.map(str::to_owned));
        self.0.extend(std::iter::once(false).chain(bad).zip(columns(&cells)));
    }

    /// As text; red lines by the escape sequences of ECMA-48 §8.3.117 if `coloured`.
    pub(super) fn render(&self, coloured: bool) -> String {
        let mut out = String::new();
        for (bad, line) in &self.0 {
            if *bad && coloured {
                out.push_str(&format!("\x1b[31m{line}\x1b[0m\n"));
            } else {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

/// Standard output is a terminal whose user has nothing against colours (<https://no-color.org>).
pub(super) fn coloured() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes a page.
pub(super) fn page(page: &Page) -> Result<(), Error> {
    text(&page.render(coloured()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["KEY", "VALUE"], ["a.long.key", "1"], ["ü", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "KEY         VALUE\na.long.key  1\nü\n");
    }

    #[test]
    fn only_a_terminal_sees_red() {
        let mut page = Page::default();
        page.table(
            ["A", "B"],
            vec![(true, ["x", "long"].map(str::to_owned)), (false, ["y", ""].map(str::to_owned))],
        );
        page.line("end");
        assert_eq!(page.render(false), "A  B\nx  long\ny\nend\n");
        assert_eq!(page.render(true), "A  B\n\x1b[31mx  long\x1b[0m\ny\nend\n");
    }
}
