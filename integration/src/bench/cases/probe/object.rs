//! A program as the object file that aya loads: one section with the instructions, one symbol. The form is that of the
//! ELF specification, "64-bit object file format".

/// What the program is called.
pub(super) const NAME: &str = "probe";

/// The names of sections and of the function; below, where in it each begins.
const NAMES: &[u8; 40] = b"\0classifier\0probe\0.symtab\0.strtab\0\0\0\0\0\0\0";
const CLASSIFIER: u32 = 1;
const PROBE: u32 = 12;
const SYMTAB: u32 = 18;
const STRTAB: u32 = 26;

const HEADER: u64 = 64;
const SYMBOL: u64 = 24;

/// A section header's fields: name, type, flags, link, info, alignment, entry size, content's length.
type Section = (u32, u32, u64, u32, u32, u64, u64, u64);

/// The object with this code.
pub(super) fn object(instructions: &[u8]) -> Vec<u8> {
    // A relocatable object for BPF, little or big endian as the machine is.
    let order = if cfg!(target_endian = "big") { 2 } else { 1 };
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (code, symbols, names) = (instructions.len() as u64, 2 * SYMBOL, 40);
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
    elf.extend(instructions);
    // The null symbol, then a global function in section 1.
    elf.extend([0; 24]);
    elf.extend(PROBE.to_ne_bytes());
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
