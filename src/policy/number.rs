//! Numbers of sets, identities and rules: SHA-256 of a canonical text.
//!
//! A number follows from what it stands for and nothing else, so that it means the same after a restart. Each
//! string of the text has its length before it: no choice of labels makes two texts equal.

use netd_bpf::policy::set;
use sha2::{Digest, Sha256};
use std::hash::{BuildHasherDefault, Hasher};

/// A canonical text that is being written.
#[derive(Clone)]
pub(super) struct Text(Sha256);

impl Text {
    /// A text of this kind; kinds keep numbers of different things apart.
    pub(super) fn new(kind: &str) -> Self {
        let mut text = Self(Sha256::new());
        text.str("netd policy 1").str(kind);
        text
    }

    /// Appends bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// Appends a string.
    pub(super) fn str(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Appends a number.
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(number.to_be_bytes());
        self
    }

    /// Appends how many things follow.
    pub(super) fn count(&mut self, count: usize) -> &mut Self {
        self.number(count as u64)
    }

    /// All of the hash.
    pub(super) fn digest(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// The first number with the mark that `taken` does not refuse. Only where two hashes are equal is there
    /// a second.
    pub(super) fn marked(self, mut taken: impl FnMut(u64) -> bool) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.digest();
        let mut number = u64::from_be_bytes([a, b, c, d, e, f, g, h]) | set::MARK;
        while taken(number) {
            number = number.wrapping_add(1) | set::MARK;
        }
        number
    }

    /// The same for a number of 32 bits, which is not 0.
    pub(super) fn short(self, mut taken: impl FnMut(u32) -> bool) -> u32 {
        let [a, b, c, d, ..] = self.digest();
        let mut number = u32::from_be_bytes([a, b, c, d]).max(1);
        while taken(number) {
            number = number.wrapping_add(1).max(1);
        }
        number
    }
}

/// Hashes numbers that are hashes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The table looks at the highest bits first, of which one is the same in all numbers.
        self.0 = number.rotate_left(8);
    }
}

/// Numbers that are given.
pub(super) type Numbers = std::collections::HashSet<u64, BuildHasherDefault<NumberHasher>>;

/// A map by number.
pub(super) type ByNumber<V> = std::collections::HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(strings: &[&str]) -> u64 {
        let mut text = Text::new("test");
        for string in strings {
            text.str(string);
        }
        text.marked(|_| false)
    }

    #[test]
    fn joined_strings_are_not_one_string() {
        let all =
            [of(&["ab", "c"]), of(&["a", "bc"]), of(&["abc"]), of(&["ab", "c", ""]), of(&["", "ab", "c"])];
        for (at, one) in all.iter().enumerate() {
            assert!(one & set::MARK != 0);
            assert_eq!(all.iter().position(|other| other == one), Some(at));
        }
    }

    #[test]
    fn a_number_is_the_same_for_ever() {
        assert_eq!(of(&["shop", "web"]), of(&["shop", "web"]));
        // Written down: another value would make every node's tables anew after an upgrade.
        assert_eq!(format!("{:016x}", of(&["shop", "web"])), "be958157ada765ef");
    }

    #[test]
    fn a_number_that_is_taken_leads_to_the_next() {
        let first = Text::new("test").marked(|_| false);
        assert_eq!(Text::new("test").marked(|number| number == first), first.wrapping_add(1) | set::MARK);
        let first = Text::new("test").short(|_| false);
        assert_eq!(Text::new("test").short(|number| number == first), first.wrapping_add(1).max(1));
    }
}
