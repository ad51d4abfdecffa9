//! Just enough of Rust's tokens to find paths: words, `::`, and single punctuation, with their lines.
//! Comments, strings and characters are skipped, so nothing inside them can look like code.

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// An identifier or keyword, a raw one without its `r#`.
    Word(String),
    /// `::`
    Colons,
    /// Any other punctuation character.
    Mark(char),
    /// A literal; what it says does not matter here.
    Literal,
}

/// Splits source text into tokens, each with its line (from 1).
pub(super) fn tokens(source: &str) -> Vec<(Token, usize)> {
    let mut lexer = Lexer { rest: source, line: 1, found: Vec::new() };
    while lexer.step() {}
    lexer.found
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    found: Vec<(Token, usize)>,
}

impl Lexer<'_> {
    /// Takes one token or one stretch of what is no token; false at the end.
    fn step(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        if self.rest.starts_with("//") {
            self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.skip(block_comment(self.rest));
        } else if first.is_whitespace() {
            self.skip(first.len_utf8());
        } else if let Some(length) = text_literal(self.rest) {
            self.push(Token::Literal, length);
        } else if first == '\'' {
            self.quote();
        } else if first.is_ascii_digit() {
            self.push(Token::Literal, word_length(self.rest));
        } else if is_word(first) {
            let raw = if self.rest.starts_with("r#") { 2 } else { 0 };
            let word = self.rest.get(raw..).unwrap_or_default();
            let length = word_length(word);
            let word = word.get(..length).unwrap_or_default().to_owned();
            self.push(Token::Word(word), raw + length.max(1));
        } else if self.rest.starts_with("::") {
            self.push(Token::Colons, 2);
        } else {
            self.push(Token::Mark(first), first.len_utf8());
        }
        true
    }

    /// A character literal or a lifetime, which begin alike.
    fn quote(&mut self) {
        let mut after = self.rest.chars().skip(1);
        let (first, second) = (after.next(), after.next());
        let length = match (first, second) {
            (Some('\\'), _) => {
                // The escaped character may itself be a quote.
                let body = self.rest.get(3..).unwrap_or_default();
                3 + body.find('\'').map_or(body.len(), |at| at + 1)
            }
            (Some(inner), Some('\'')) => 2 + inner.len_utf8(),
            _ => 1 + word_length(self.rest.get(1..).unwrap_or_default()),
        };
        self.push(Token::Literal, length);
    }

    fn push(&mut self, token: Token, length: usize) {
        self.found.push((token, self.line));
        self.skip(length);
    }

    fn skip(&mut self, length: usize) {
        // An escape may have put the end inside a character or past the text's own end.
        let mut end = length.min(self.rest.len());
        while !self.rest.is_char_boundary(end) {
            end += 1;
        }
        let (gone, rest) = self.rest.split_at(end);
        self.line += gone.matches('\n').count();
        self.rest = rest;
    }
}

/// Length of a (nesting) block comment.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// Length of the string literal that the text begins with, if it does: plain, raw, byte or C.
fn text_literal(text: &str) -> Option<usize> {
    let prefix = text.find(|c: char| !matches!(c, 'b' | 'c' | 'r')).unwrap_or(text.len());
    let raw = match text.get(..prefix)? {
        "" | "b" | "c" => false,
        "r" | "br" | "cr" => true,
        _ => return None,
    };
    let rest = text.get(prefix..)?;
    if !raw {
        if prefix == 1 && text.starts_with("b'") {
            let body = rest.get(1..)?;
            let escape = if body.starts_with('\\') { 2 } else { 0 };
            return Some(prefix + 1 + escape + body.get(escape..)?.find('\'')? + 1);
        }
        let body = rest.strip_prefix('"')?;
        let mut escaped = false;
        for (at, c) in body.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => return Some(prefix + 1 + at + 1),
                _ => {}
            }
        }
        return Some(text.len());
    }
    let hashes = rest.find(|c| c != '#').unwrap_or(rest.len());
    let body = rest.get(hashes..)?.strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(prefix + hashes + 1 + body.find(&close).map_or(body.len(), |at| at + close.len()))
}

fn word_length(text: &str) -> usize {
    text.find(|c| !is_word(c)).unwrap_or(text.len())
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}
