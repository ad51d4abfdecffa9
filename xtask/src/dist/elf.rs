//! What an ELF file says about how it wants to be loaded (System V gABI, chapters 4 and 5).

use anyhow::{Context, Result, bail, ensure};

const ET_DYN: u64 = 3;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const SHT_SYMTAB: u64 = 2;
const DT_NEEDED: u64 = 1;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_PIE: u64 = 0x0800_0000;

/// The parts that tell a static position-independent program from others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    kind: u64,
    interpreter: bool,
    /// How many libraries it asks for.
    needed: usize,
    pie: bool,
    symbols: bool,
}

impl Shape {
    /// Reads a 64-bit file of either byte order.
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let ident = bytes.get(..6).context("shorter than an ELF header")?;
        let (Some([0x7f, b'E', b'L', b'F']), Some([2, order])) = (ident.get(..4), ident.get(4..6)) else {
            bail!("not a 64-bit ELF file");
        };
        let file = File { bytes, big: *order == 2 };
        let mut shape = Self { kind: file.number(0x10, 2)?, ..Self::default() };
        let (headers, each, count) = (file.number(0x20, 8)?, file.number(0x36, 2)?, file.number(0x38, 2)?);
        for header in (0..count).map(|n| headers + n * each) {
            match file.number(header, 4)? {
                PT_INTERP => shape.interpreter = true,
                PT_DYNAMIC => {
                    let (start, size) = (file.number(header + 8, 8)?, file.number(header + 0x20, 8)?);
                    for entry in (0..size / 16).map(|n| start + n * 16) {
                        match (file.number(entry, 8)?, file.number(entry + 8, 8)?) {
                            (DT_NEEDED, _) => shape.needed += 1,
                            (DT_FLAGS_1, flags) => shape.pie = flags & DF_1_PIE != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let (sections, each, count) = (file.number(0x28, 8)?, file.number(0x3a, 2)?, file.number(0x3c, 2)?);
        for section in (0..count).map(|n| sections + n * each) {
            shape.symbols |= file.number(section + 4, 4)? == SHT_SYMTAB;
        }
        Ok(shape)
    }

    /// Fails with the first thing that would tie the file to its machine.
    pub(super) fn must_be_static_pie(&self) -> Result<()> {
        ensure!(!self.interpreter, "asks for an interpreter (PT_INTERP): it is not static");
        ensure!(self.needed == 0, "asks for {} shared libraries: it is not static", self.needed);
        ensure!(self.kind == ET_DYN && self.pie, "is not position-independent (ET_DYN with DF_1_PIE)");
        ensure!(!self.symbols, "has a symbol table: it is not stripped");
        Ok(())
    }
}

struct File<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl File<'_> {
    /// The unsigned number of `size` bytes at `offset`.
    fn number(&self, offset: u64, size: usize) -> Result<u64> {
        let read = || {
            let start = usize::try_from(offset).ok()?;
            self.bytes.get(start..start.checked_add(size)?)
        };
        let bytes = read().with_context(|| format!("cut off at byte {offset}"))?;
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Ok(if self.big { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) })
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn a_dynamic_program_is_refused() {
        let own = std::fs::read(std::env::current_exe().expect("the test's own file")).expect("readable");
        let shape = Shape::read(&own).expect("an ELF file");
        let refused = shape.must_be_static_pie().expect_err("tests are linked dynamically");
        assert!(refused.to_string().contains("PT_INTERP"), "{refused}");
        assert!(shape.needed > 0 && shape.pie && shape.symbols, "{shape:?}");
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        let own = std::fs::read(std::env::current_exe().expect("the test's own file")).expect("readable");
        for broken in [&own[..0], &own[..5], &own[..0x30], &own[..0x100], b"#!/bin/sh\necho no\n"] {
            assert!(Shape::read(broken).is_err());
        }
    }

    #[test]
    fn a_static_pie_passes() {
        let shape = Shape { kind: 3, pie: true, ..Shape::default() };
        assert!(shape.must_be_static_pie().is_ok());
        assert!(Shape { symbols: true, ..shape }.must_be_static_pie().is_err());
    }
}
