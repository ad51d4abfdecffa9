//! A program that does nothing, to learn what measuring one costs.
//!
//! It is put together here as the object file that aya loads: one section with two instructions, one symbol.
//! The form is that of the ELF specification, "64-bit object file format".

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions};

/// `r0 = 0; exit` (RFC 9669).
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// The names of sections and of the function; below, where in it each begins.
const NAMES: &[u8; 40] = b"\0classifier\0empty\0.symtab\0.strtab\0\0\0\0\0\0\0";
const CLASSIFIER: u32 = 1;
const EMPTY: u32 = 12;
const SYMTAB: u32 = 18;
const STRTAB: u32 = 26;

const HEADER: u64 = 64;
const SYMBOL: u64 = 24;

/// A section header's fields: name, type, flags, link, info, alignment, entry size, content's length.
type Section = (u32, u32, u64, u32, u32, u64, u64, u64);

fn object() -> Vec<u8> {
    // A relocatable object for BPF, little or big endian as the machine is.
    let order = if cfg!(target_endian = "big") { 2 } else { 1 };
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (code, symbols, names) = (16, 2 * SYMBOL, 40);
    for half in [1_u16, 247] {
        elf.extend(half.to_ne_bytes());
    }
    elf.extend(1_u32.to_ne_bytes());
    for word in [0, 0, HEADER + code + symbols + names] {
        elf.extend(word.to_ne_bytes());
    }
    elf.extend(0_u32.to_ne_bytes());
    // Sizes and numbers: this header, no program headers, four sections of which the last has the names.
    for half in [64_u16, 0, 0, 64, 4, 3] {
        elf.extend(half.to_ne_bytes());
    }
    elf.extend(CODE);
    // The null symbol, then a global function in section 1.
    elf.extend([0; 24]);
    elf.extend(EMPTY.to_ne_bytes());
    elf.extend([0x12, 0]);
    elf.extend(1_u16.to_ne_bytes());
    elf.extend(0_u64.to_ne_bytes());
    elf.extend(code.to_ne_bytes());
    elf.extend(NAMES);
    let sections: [Section; 4] = [
        (0, 0, 0, 0, 0, 0, 0, 0),
        (CLASSIFIER, 1, 6, 0, 0, 8, 0, code),
        (SYMTAB, 2, 0, 3, 1, 8, SYMBOL, symbols),
        (STRTAB, 3, 0, 0, 0, 1, 0, names),
    ];
    let mut offset = HEADER;
    for (name, kind, flags, link, info, align, entry, length) in sections {
        elf.extend([name.to_ne_bytes(), kind.to_ne_bytes()].concat());
        for word in [flags, 0, if length == 0 { 0 } else { offset }, length] {
            elf.extend(word.to_ne_bytes());
        }
        elf.extend([link.to_ne_bytes(), info.to_ne_bytes()].concat());
        elf.extend([align.to_ne_bytes(), entry.to_ne_bytes()].concat());
        offset += length;
    }
    elf
}

/// The loaded program.
#[derive(Debug)]
pub(super) struct Empty(Ebpf);

impl Empty {
    pub(super) fn load() -> Result<Self> {
        let mut ebpf = Ebpf::load(&object()).context("loading an empty program")?;
        let program: &mut SchedClassifier = ebpf.program_mut("empty").context("no program")?.try_into()?;
        program.load()?;
        Ok(Self(ebpf))
    }

    fn program(&self) -> Result<&SchedClassifier> {
        Ok(self.0.program("empty").context("no program")?.try_into()?)
    }

    /// Runs it on a frame `repeat` times; the mean time in nanoseconds.
    pub(super) fn run(&self, frame: &[u8], repeat: u32) -> Result<f64> {
        let mut out = vec![0; 4096];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        Ok(self.program()?.test_run(options)?.duration.as_secs_f64() * 1e9)
    }

    pub(super) fn info(&self) -> Result<ProgramInfo> {
        Ok(self.program()?.info()?)
    }
}
