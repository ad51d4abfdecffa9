//! What is wrong with a configuration, and how it is shown: the line with a caret, as compilers do.
//!
//! ```text
//! error: `ipam.cool_down` has no unit
//!  --> /etc/netd/netd.yaml:4:14
//!   |
//! 4 |   cool_down: 30
//!   |              ^^ write `30s` for seconds, or use ms, m or h
//! ```
//!
//! What is echoed comes from a file that may hold anything: control characters are replaced and long lines
//! cut, so that an error neither drives the terminal nor floods a log.

use super::source::{Excerpt, Origin};
use std::fmt;

/// Longest part of a line that is shown, in characters.
const WINDOW: usize = 120;

/// Longest message, label or help, in characters.
const MESSAGE: usize = 400;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    message: String,
    at: Option<Box<Excerpt>>,
    label: String,
    also: Option<Box<(Excerpt, String)>>,
    help: Option<String>,
}

impl Problem {
    /// A problem at a place; `label` stands beside the caret and may be empty.
    pub(super) fn at(place: Excerpt, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            at: Some(Box::new(place)),
            label: label.into(),
            also: None,
            help: None,
        }
    }

    /// A problem of no place, such as a default that does not fit this machine.
    pub(super) fn nowhere(message: impl Into<String>) -> Self {
        Self { message: message.into(), at: None, label: String::new(), also: None, help: None }
    }

    /// Names a second place.
    #[must_use]
    pub(super) fn and(mut self, place: Excerpt, label: impl Into<String>) -> Self {
        self.also = Some(Box::new((place, label.into())));
        self
    }

    /// Adds a line of advice.
    #[must_use]
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What is wrong, in one line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        self.at.as_ref().map_or(&Origin::Default, |e| &e.origin)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", Printable(&self.message))?;
        let places = self.at.as_deref().into_iter().chain(self.also.as_deref().map(|(e, _)| e));
        let gutter = places.map(|e| number(&e.origin).len()).max().unwrap_or(0).max(1);
        if let Some(at) = &self.at {
            excerpt(f, at, &self.label, gutter, "-->", '^')?;
        }
        if let Some((place, label)) = self.also.as_deref() {
            excerpt(f, place, label, gutter, ":::", '-')?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{:gutter$} = help: {}", "", Printable(help))?;
        }
        Ok(())
    }
}

fn number(origin: &Origin) -> String {
    match origin {
        Origin::File { line, .. } => line.to_string(),
        Origin::Environment(_) | Origin::Default => String::new(),
    }
}

fn excerpt(
    f: &mut fmt::Formatter<'_>,
    at: &Excerpt,
    label: &str,
    gutter: usize,
    arrow: &str,
    mark: char,
) -> fmt::Result {
    // Room for the mark with some text before it; a cut start is shown as an ellipsis.
    let skip = if at.indent > WINDOW * 3 / 4 { at.indent - WINDOW / 2 } else { 0 };
    let (cut, indent) = if skip == 0 { ("", at.indent) } else { ("…", at.indent - skip + 1) };
    let line: String = at.line.chars().skip(skip).take(WINDOW).collect();
    let rest = WINDOW.saturating_sub(at.indent - skip).max(1);
    let marks = mark.to_string().repeat(at.width.clamp(1, rest));
    let origin = at.origin.to_string();
    write!(f, "\n{:gutter$}{arrow} {}\n", "", Printable(&origin))?;
    writeln!(f, "{:gutter$} |", "")?;
    let shown = format!("{:>gutter$} | {cut}{}", number(&at.origin), Printable(line.trim_end()));
    writeln!(f, "{}", shown.trim_end())?;
    let marked = format!("{:gutter$} | {:indent$}{marks} {}", "", "", Printable(label));
    f.write_str(marked.trim_end())
}

/// Text with everything replaced that a terminal would act on, one character for one, and cut if very long.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in self.0.chars().take(MESSAGE) {
            let bidi =
                matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            f.write_char(match c {
                '\t' => ' ',
                c if c.is_control() || bidi => '\u{fffd}',
                c => c,
            })?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration, in the order of the file, then the environment. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<Problem>);

impl Problems {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            write!(f, "{problem}\n\n")?;
        }
        match self.0.len() {
            1 => f.write_str("1 error in the configuration"),
            n => write!(f, "{n} errors in the configuration"),
        }
    }
}
