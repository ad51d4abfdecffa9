//! The one writer of standard output.
//!
//! A reader that has seen enough (`netd config example | head -1`) closes the pipe: that is [`Error::Closed`],
//! which ends the command well. Any other failure, such as a full disk, is an error.

use serde::Serialize;
use std::io::{self, Write as _};

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
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["KEY", "VALUE"], ["a.long.key", "1"], ["ü", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "KEY         VALUE\na.long.key  1\nü\n");
    }
}
