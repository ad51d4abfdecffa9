//! From tokens to what a file refers to: its `use` trees and the paths in its code, as absolute module paths.
//!
//! It is a reader of names, not a compiler: macros are read as the tokens they are given, and a name brought
//! in by a `use` inside a function counts for its whole module. `#[cfg(test)]` items are left out.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::Token;

/// A path from the crate's root, without `crate`: `["net", "plan", "Route"]`.
pub(super) type Path = Vec<String>;

/// One path into the crate.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) path: Path,
    pub(super) line: usize,
    /// A `use` for this file alone. Where it brings in a module, what is taken from the module counts, and
    /// that is a reference of its own.
    pub(super) private_import: bool,
}

/// What a file refers to and declares.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) references: Vec<Reference>,
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
        imports: Vec::new(),
        paths: Vec::new(),
        reading: Reading::default(),
    };
    reader.reading.unsafe_lines =
        tokens.iter().filter(|(token, _)| is_word(token, "unsafe")).map(|(_, line)| *line).collect();
    reader.run();
    reader.resolve();
    reader.reading
}

/// One name brought in by a `use` tree; its meaning is found when the whole file is read.
struct Import {
    /// Where the `use` stands.
    module: Path,
    path: Path,
    /// Nothing for `*`.
    name: Option<String>,
    line: usize,
    private: bool,
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
    imports: Vec<Import>,
    /// Paths of code: (module, segments, line).
    paths: Vec<(Path, Path, usize)>,
    reading: Reading,
}

impl Reader<'_> {
    fn run(&mut self) {
        while let Some((token, line)) = self.tokens.get(self.at) {
            let line = *line;
            match token {
                Token::Mark('#') if self.is_cfg_test() => self.skip_test_item(),
                Token::Word(word) if word == "use" && self.begins_item() => {
                    // `pub use`, `pub(crate) use`
                    let private = !self
                        .before()
                        .is_some_and(|token| is_word(token, "pub") || *token == Token::Mark(')'));
                    self.at += 1;
                    self.use_tree(&Vec::new(), private);
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
                        self.paths.push((self.module.clone(), path, line));
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
    fn use_tree(&mut self, prefix: &Path, private: bool) {
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
                    self.use_tree(&path, private);
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
                self.imports.push(Import {
                    module: self.module.clone(),
                    path,
                    name: None,
                    line,
                    private: false,
                });
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
                self.imports.push(Import { module: self.module.clone(), path, name, line, private });
            }
        }
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

    /// Turns names into references. An import may build on another one, so they are gone through until
    /// nothing more is learnt.
    fn resolve(&mut self) {
        let mut names: BTreeMap<(Path, String), Path> = BTreeMap::new();
        let mut waiting = std::mem::take(&mut self.imports);
        loop {
            let before = waiting.len();
            let mut unknown = Vec::new();
            for import in waiting {
                let Some(full) = self.full(&names, &import.module, &import.path) else {
                    unknown.push(import);
                    continue;
                };
                if let Some(name) = import.name {
                    names.insert((import.module, name), full.clone());
                }
                let (line, private_import) = (import.line, import.private);
                self.reading.references.push(Reference { path: full, line, private_import });
            }
            waiting = unknown;
            if waiting.len() == before {
                break;
            }
        }
        for (module, path, line) in std::mem::take(&mut self.paths) {
            if let Some(path) = self.full(&names, &module, &path) {
                self.reading.references.push(Reference { path, line, private_import: false });
            }
        }
    }

    /// The absolute form of a path, if it leads into this crate.
    fn full(
        &self,
        names: &BTreeMap<(Path, String), Path>,
        module: &[String],
        path: &[String],
    ) -> Option<Path> {
        self.absolute(module, path).or_else(|| {
            let (first, rest) = path.split_first()?;
            let known = names.get(&(module.to_vec(), first.clone()))?;
            Some(known.iter().chain(rest).cloned().collect())
        })
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
