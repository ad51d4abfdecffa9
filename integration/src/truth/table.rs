//! What is to be true of each pair of pods, by each way, and how the difference to what is so is shown.

use crate::traffic::{Answer, Proto};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// The pods: three namespaces with three each.
pub const PODS: [&str; 9] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c", "z/a", "z/b", "z/c"];
/// Ports that each serves, by TCP and by UDP.
pub const PORTS: [u16; 2] = [80, 81];

/// A way from a pod to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// By which transport.
    pub proto: Proto,
    /// To which port.
    pub port: u16,
    /// By which family.
    pub v6: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} IPv{}", self.proto, self.port, if self.v6 { 6 } else { 4 })
    }
}

/// Some of the eight ways: what is none may be any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    proto: Option<Proto>,
    port: Option<u16>,
    v6: Option<bool>,
}

impl Ways {
    /// All of them.
    pub const ALL: Self = Self { proto: None, port: None, v6: None };
    /// By TCP.
    pub const TCP: Self = Self { proto: Some(Proto::Tcp), ..Self::ALL };
    /// By UDP.
    pub const UDP: Self = Self { proto: Some(Proto::Udp), ..Self::ALL };
    /// By IPv4.
    pub const V4: Self = Self { v6: Some(false), ..Self::ALL };
    /// By IPv6.
    pub const V6: Self = Self { v6: Some(true), ..Self::ALL };

    /// To this port only.
    #[must_use]
    pub const fn port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    fn has(self, way: Way) -> bool {
        self.proto.is_none_or(|proto| proto == way.proto)
            && self.port.is_none_or(|port| port == way.port)
            && self.v6.is_none_or(|v6| v6 == way.v6)
    }
}

/// One way from one pod to one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Who asks.
    pub from: &'static str,
    /// Who is asked.
    pub to: &'static str,
    /// By which way.
    pub way: Way,
    /// Whether it is to be answered.
    pub allowed: bool,
}

/// The whole table. Changed by patterns: `*` are all pods, `x` those of a namespace, `x/a` is one. A pod always reaches
/// itself, whatever is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    cells: Vec<Cell>,
}

impl Truth {
    /// Everybody reaches everybody.
    #[must_use]
    pub fn open() -> Self {
        let mut cells = Vec::new();
        for from in PODS {
            for to in PODS {
                for proto in Proto::ALL {
                    for port in PORTS {
                        for v6 in [false, true] {
                            cells.push(Cell { from, to, way: Way { proto, port, v6 }, allowed: true });
                        }
                    }
                }
            }
        }
        Self { cells }
    }

    /// `from` reaches `to`.
    #[must_use]
    pub fn allow(self, from: &str, to: &str) -> Self {
        self.allow_by(Ways::ALL, from, to)
    }

    /// `from` does not reach `to`.
    #[must_use]
    pub fn deny(self, from: &str, to: &str) -> Self {
        self.deny_by(Ways::ALL, from, to)
    }

    /// By these ways `from` reaches `to`.
    #[must_use]
    pub fn allow_by(self, ways: Ways, from: &str, to: &str) -> Self {
        self.set(ways, from, to, true)
    }

    /// By these ways `from` does not reach `to`.
    #[must_use]
    pub fn deny_by(self, ways: Ways, from: &str, to: &str) -> Self {
        self.set(ways, from, to, false)
    }

    fn set(mut self, ways: Ways, from: &str, to: &str, allowed: bool) -> Self {
        for pattern in [from, to] {
            assert!(PODS.iter().any(|pod| names(pattern, pod)), "{pattern:?} names no pod");
        }
        for cell in &mut self.cells {
            if names(from, cell.from) && names(to, cell.to) && ways.has(cell.way) {
                cell.allowed = allowed || cell.from == cell.to;
            }
        }
        self
    }

    /// All cells, those of one pod that asks behind one another.
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// How what was observed differs; none: it does not.
    #[must_use]
    pub fn differs(&self, observed: &[Answer]) -> Option<String> {
        let mut wrong = 0;
        let mut pages: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, cells) in self.by_way(observed) {
            let here = cells.iter().filter(|(cell, answer)| !right(cell, answer)).count();
            if here > 0 {
                wrong += here;
                pages.entry(page(&cells)).or_default().push(name);
            }
        }
        let mut text = format!("{wrong} of {} are wrong\n", self.cells.len());
        for (page, ways) in pages {
            write!(text, "{}\n{page}", ways.join(", ")).ok()?;
        }
        (wrong > 0).then_some(text)
    }

    fn by_way<'t>(&'t self, observed: &'t [Answer]) -> Vec<(String, Vec<(&'t Cell, &'t Answer)>)> {
        let mut ways: Vec<(String, Vec<(&Cell, &Answer)>)> = Vec::new();
        for pair in self.cells.iter().zip(observed) {
            let name = pair.0.way.to_string();
            match ways.iter_mut().find(|(way, _)| *way == name) {
                Some((_, cells)) => cells.push(pair),
                None => ways.push((name, vec![pair])),
            }
        }
        ways
    }
}

fn names(pattern: &str, pod: &str) -> bool {
    pattern == "*" || pattern == pod || pod.split_once('/').is_some_and(|(namespace, _)| namespace == pattern)
}

fn right(cell: &Cell, answer: &Answer) -> bool {
    match answer {
        Answer::By(name) => cell.allowed && name == cell.to,
        Answer::Silence | Answer::Refused(_) => !cell.allowed,
    }
}

/// The tables of one way: what is expected, what was observed, and where they differ.
fn page(cells: &[(&Cell, &Answer)]) -> String {
    let seen = |answer: &Answer, to: &str| match answer {
        Answer::By(name) if name == to => '.',
        Answer::By(_) => '?',
        Answer::Silence => 'X',
        Answer::Refused(_) => 'R',
    };
    let mut text = String::new();
    let mut table = |title: &str, mark: &dyn Fn(&Cell, &Answer) -> char| {
        text += &format!("  {title:<9} {}\n", PODS.join(" "));
        for from in PODS {
            let row = cells.iter().filter(|(cell, _)| cell.from == from);
            let marks: Vec<String> = row.map(|(cell, answer)| format!(" {} ", mark(cell, answer))).collect();
            text += &format!("  {from:<9} {}\n", marks.join(" "));
        }
    };
    table("expected", &|cell, _| if cell.allowed { '.' } else { 'X' });
    table("observed", &|cell, answer| seen(answer, cell.to));
    table("wrong", &|cell, answer| if right(cell, answer) { ' ' } else { seen(answer, cell.to) });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_expected(truth: &Truth) -> Vec<Answer> {
        let answer = |cell: &Cell| if cell.allowed { Answer::By(cell.to.into()) } else { Answer::Silence };
        truth.cells().iter().map(answer).collect()
    }

    fn allowed(truth: &Truth) -> usize {
        truth.cells().iter().filter(|cell| cell.allowed).count()
    }

    #[test]
    fn patterns_name_pods() {
        let open = Truth::open();
        assert_eq!((open.cells().len(), allowed(&open)), (648, 648));
        // Three pods that eight others do not reach by eight ways.
        assert_eq!(allowed(&open.clone().deny("*", "x")), 648 - 3 * 8 * 8);
        assert_eq!(allowed(&open.clone().deny("x/a", "*").allow("x/a", "y/b")), 648 - 8 * 8 + 8);
        assert_eq!(allowed(&open.clone().deny_by(Ways::TCP.port(80), "*", "x/a")), 648 - 8 * 2);
        assert_eq!(open.clone().deny("x/a", "x/a"), open);
    }

    #[test]
    #[should_panic(expected = "names no pod")]
    fn a_pattern_that_names_nobody_is_a_mistake() {
        drop(Truth::open().deny("x/d", "*"));
    }

    #[test]
    fn a_difference_is_shown_once_for_all_ways_that_have_it() {
        let truth = Truth::open().deny("y", "x/a");
        let mut observed = as_expected(&truth);
        assert_eq!(truth.differs(&observed), None);
        for (cell, answer) in truth.cells().iter().zip(&mut observed) {
            if (cell.from, cell.to) == ("y/b", "x/a") && cell.way.proto == Proto::Udp {
                *answer = Answer::By("x/a".into());
            }
        }
        let shown = truth.differs(&observed).unwrap();
        assert!(
            shown.starts_with("4 of 648 are wrong\nUDP 80 IPv4, UDP 80 IPv6, UDP 81 IPv4, UDP 81 IPv6\n")
        );
        assert_eq!(shown.lines().count(), 2 + 3 * 10, "{shown}");
        assert!(shown.contains("\n  y/b        X   .   .   .   .   .   .   .   . \n"), "{shown}");
    }
}
