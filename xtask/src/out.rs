//! The one writer of what these tools say. A reader that went away (`cargo xtask test | head`) ends the tool
//! quietly.

use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::process::exit;

/// One line on standard output.
pub(crate) fn line(text: &str) {
    let mut to = stdout().lock();
    if let Err(error) = writeln!(to, "{text}").and_then(|()| to.flush()) {
        exit(i32::from(error.kind() != ErrorKind::BrokenPipe));
    }
}

/// A step's heading: bold on a terminal, a plain `==> ` line in a log.
pub(crate) fn heading(text: &str) {
    if stdout().is_terminal() {
        line(&format!("\u{1b}[1m==> {text}\u{1b}[0m"));
    } else {
        line(&format!("==> {text}"));
    }
}

/// The final error. Nobody is left to tell when standard error is gone as well.
pub(crate) fn error(text: &str) {
    let _gone = writeln!(stderr().lock(), "error: {text}");
}
