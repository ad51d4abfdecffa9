//! From tokens to what a file refers to: its `use` trees and the paths in its code, as absolute module paths.
//!
//! It is a reader of names, not a compiler: macros are read as the tokens they are given, and a name brought
//! in by `use` counts for the whole file. `#[cfg(test)]` items are left out.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::Token;

/// A path from the crate's root, without `crate`: `["net", "plan", "Route"]`.
pub(super) type Path = Vec<String>;

/// What a file refers to and declares.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Each path into the crate, with the line.
    pub(super) references: Vec<(Path, usize)>,
    /// Modules declared under `#[cfg(test)]` that live in files of their own.
    pub(super) test_modules: Vec<Path>,
    /// Lines with the word `unsafe`, tests included.
    pub(super) unsafe_lines: Vec<usize>,
}

/// Reads a file that is the module `module` of the crate `name`.
pub(super) fn read(name: &str, module: &[String], tokens: &[(Token, usize)]) -> Reading {
    let mut reader = Reader {
        name,
        tokens,
        at: 0,
        module: module.to_vec(),
        depth: 0,
        inner: Vec::new(),
        children: children(module, tokens),
        aliases: BTreeMap::new(),
        pending: Vec::new(),
        reading: Reading::default(),
    };
    reader.reading.unsafe_lines =
        tokens.iter().filter(|(token, _)| is_word(token, "unsafe")).map(|(_, line)| *line).collect();
    reader.run();
    reader.resolve();
    reader.reading
}

struct Reader<'a> {
    name: &'a str,
    tokens: &'a [(Token, usize)],
    at: usize,
    /// The module we stand in, which inline modules deepen.
    module: Path,
    /// Open braces.
    depth: usize,
    /// The brace depths at which inline modules opened.
    inner: Vec<usize>,
    /// All modules declared in this file, by full path.
    children: BTreeSet<Path>,
    /// Names brought in by `use`.
    aliases: BTreeMap<String, Path>,
    /// Paths of code, resolved when all aliases are known: (module, segments, line).
    pending: Vec<(Path, Path, usize)>,
    reading: Reading,
}

impl Reader<'_> {
    fn run(&mut self) {
        while let Some((token, line)) = self.tokens.get(self.at) {
            let line = *line;
            match token {
                Token::Mark('#') if self.is_cfg_test() => self.skip_test_item(),
                Token::Word(word) if word == "use" && self.begins_item() => {
                    self.at += 1;
                    self.use_tree(&Vec::new());
                }
                Token::Word(word) if word == "mod" => self.module_begin(),
                Token::Mark('{') => {
                    self.depth += 1;
                    self.at += 1;
                }
                Token::Mark('}') => {
                    if self.inner.last() == Some(&self.depth) {
                        self.inner.pop();
                        self.module.pop();
                    }
                    self.depth = self.depth.saturating_sub(1);
                    self.at += 1;
                }
                Token::Word(_) if !matches!(self.before(), Some(Token::Colons | Token::Mark('.'))) => {
                    let path = self.simple_path();
                    if path.len() > 1 {
                        self.pending.push((self.module.clone(), path, line));
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// `use<'a>` in a return type is no import.
    fn begins_item(&self) -> bool {
        !matches!(self.peek(1), Some(Token::Mark('<')))
    }

    /// `a::b::c` from here, at least one segment.
    fn simple_path(&mut self) -> Path {
        let mut path = Vec::new();
        while let Some(Token::Word(word)) = self.peek(0) {
            path.push(word.clone());
            self.at += 1;
            if self.peek(0) == Some(&Token::Colons) && matches!(self.peek(1), Some(Token::Word(_))) {
                self.at += 1;
            } else {
                break;
            }
        }
        path
    }

    /// One branch of a `use` tree below `prefix`, up to its `,`, `}` or `;`.
    fn use_tree(&mut self, prefix: &Path) {
        let line = self.tokens.get(self.at).map_or(0, |(_, line)| *line);
        if self.peek(0) == Some(&Token::Colons) {
            self.at += 1;
        }
        let mut path = prefix.clone();
        path.extend(self.simple_path());
        if self.peek(0) == Some(&Token::Colons) {
            self.at += 1;
        }
        match self.peek(0) {
            Some(Token::Mark('{')) => {
                self.at += 1;
                while !matches!(self.peek(0), None | Some(Token::Mark('}'))) {
                    self.use_tree(&path);
                    if self.peek(0) == Some(&Token::Mark(',')) {
                        self.at += 1;
                    } else if self.peek(0) != Some(&Token::Mark('}')) {
                        break;
                    }
                }
                self.at += 1;
            }
            Some(Token::Mark('*')) => {
                self.at += 1;
                self.imported(&path, None, line);
            }
            _ => {
                let alias = if self.peek(0).is_some_and(|token| is_word(token, "as")) {
                    self.at += 1;
                    self.simple_path().pop()
                } else {
                    None
                };
                if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                    path.pop();
                }
                let name = alias.or_else(|| path.last().cloned());
                self.imported(&path, name, line);
            }
        }
    }

    fn imported(&mut self, path: &[String], name: Option<String>, line: usize) {
        let Some(full) = self.absolute(&self.module, path) else { return };
        if let Some(name) = name {
            self.aliases.insert(name, full.clone());
        }
        self.reading.references.push((full, line));
    }

    /// The absolute form of a path that names this crate outright: by `crate`, `self`, `super`, the crate's
    /// own name, or a child module.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        let mut from = match first.as_str() {
            "crate" => Vec::new(),
            name if name == self.name => Vec::new(),
            "self" => module.to_vec(),
            "super" => module.split_last()?.1.to_vec(),
            child => {
                let full: Path = module.iter().cloned().chain([child.to_owned()]).collect();
                if !self.children.contains(&full) {
                    return None;
                }
                full
            }
        };
        for segment in rest {
            if segment == "super" {
                from.pop();
            } else {
                from.push(segment.clone());
            }
        }
        Some(from)
    }

    /// Paths of code, now that all aliases are known.
    fn resolve(&mut self) {
        for (module, path, line) in std::mem::take(&mut self.pending) {
            let full = self.absolute(&module, &path).or_else(|| {
                let (first, rest) = path.split_first()?;
                let alias = self.aliases.get(first)?;
                Some(alias.iter().chain(rest).cloned().collect())
            });
            if let Some(full) = full {
                self.reading.references.push((full, line));
            }
        }
    }

    /// At `mod`: `mod x;` is a file of its own, `mod x {` an inline module.
    fn module_begin(&mut self) {
        self.at += 1;
        if let (Some(Token::Word(name)), Some(Token::Mark('{'))) = (self.peek(0), self.peek(1)) {
            self.module.push(name.clone());
            self.depth += 1;
            self.inner.push(self.depth);
            self.at += 2;
        }
    }

    fn is_cfg_test(&self) -> bool {
        is_cfg_test(self.tokens, self.at)
    }

    /// Over a `#[cfg(test)]` item: to its `;` or the end of its braces.
    fn skip_test_item(&mut self) {
        let mut depth = 0_usize;
        let mut module = None;
        while let Some((token, _)) = self.tokens.get(self.at) {
            self.at += 1;
            match token {
                Token::Mark('{' | '[' | '(') => depth += 1,
                Token::Mark(close @ ('}' | ']' | ')')) => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && *close == '}' && self.peek(0) != Some(&Token::Mark(';')) {
                        return;
                    }
                }
                Token::Word(word) if word == "mod" && depth == 0 => {
                    if let Some(Token::Word(name)) = self.peek(0) {
                        module = Some(name.clone());
                    }
                }
                Token::Mark(';') if depth == 0 => {
                    if let Some(name) = module {
                        self.reading.test_modules.push(self.module.iter().cloned().chain([name]).collect());
                    }
                    return;
                }
                _ => {}
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|(token, _)| token)
    }

    fn before(&self) -> Option<&Token> {
        self.tokens.get(self.at.checked_sub(1)?).map(|(token, _)| token)
    }
}

/// All modules declared in the file, inline ones and those in files of their own.
fn children(module: &[String], tokens: &[(Token, usize)]) -> BTreeSet<Path> {
    let mut found = BTreeSet::new();
    let (mut here, mut depth, mut inner) = (module.to_vec(), 0_usize, Vec::new());
    let mut rest = tokens.iter().map(|(token, _)| token).peekable();
    while let Some(token) = rest.next() {
        match token {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                if inner.last() == Some(&depth) {
                    inner.pop();
                    here.pop();
                }
                depth = depth.saturating_sub(1);
            }
            word if is_word(word, "mod") => {
                if let Some(Token::Word(name)) = rest.peek() {
                    let full: Path = here.iter().cloned().chain([name.clone()]).collect();
                    rest.next();
                    if rest.peek() == Some(&&Token::Mark('{')) {
                        rest.next();
                        depth += 1;
                        inner.push(depth);
                        here.clone_from(&full);
                    }
                    found.insert(full);
                }
            }
            _ => {}
        }
    }
    found
}

/// `#[cfg(test)]`, also as the first of `all(…)`.
fn is_cfg_test(tokens: &[(Token, usize)], at: usize) -> bool {
    let mut words = tokens.iter().skip(at).map(|(token, _)| token);
    let mut expect = |wanted: &Token| words.next() == Some(wanted);
    if !(expect(&Token::Mark('#')) && expect(&Token::Mark('[')) && expect(&Token::Word("cfg".to_owned()))) {
        return false;
    }
    let inside: Vec<&Token> = words.take_while(|token| **token != Token::Mark(']')).collect();
    match inside.as_slice() {
        [Token::Mark('('), Token::Word(test), Token::Mark(')')] => test == "test",
        [Token::Mark('('), Token::Word(all), Token::Mark('('), Token::Word(test), ..] => {
            all == "all" && test == "test"
        }
        _ => false,
    }
}

fn is_word(token: &Token, wanted: &str) -> bool {
    matches!(token, Token::Word(word) if word == wanted)
}
