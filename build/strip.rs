//! Takes the debugging sections (DWARF) out of a BPF object: two thirds of it, which nobody reads at run time. What
//! the kernel and tools show of the source is in `.BTF.ext`.
//!
//! A section that goes leaves an empty one in its place, so that all numbers of sections stay as they are (System V gABI,
//! chapter 4, "64-bit object file format").

use std::ops::Range;

/// A section header's fields: where each is, and how long.
const NAME: Range<usize> = 0..4;
const KIND: Range<usize> = 4..8;
const OFFSET: Range<usize> = 24..32;
const SIZE: Range<usize> = 32..40;
const ALIGNMENT: Range<usize> = 48..56;
/// The file header's: where section headers are, how long one is, how many there are, which has the names.
const HEADERS: Range<usize> = 0x28..0x30;
const HEADER_SIZE: Range<usize> = 0x3a..0x3c;
const HEADER_COUNT: Range<usize> = 0x3c..0x3e;
const NAMES: Range<usize> = 0x3e..0x40;
/// `SHT_NOBITS`: in memory only.
const NO_BITS: usize = 8;

/// `ELFDATA2MSB` in the sixth byte: big-endian.
const BIG: Option<&u8> = Some(&2);

/// The object without them.
///
/// # Errors
/// It is cut short.
pub(crate) fn without_debug(object: &[u8]) -> Result<Vec<u8>, String> {
    let file_header = object.get(..64).ok_or("shorter than an ELF header")?;
    let big = object.get(5) == BIG;
    let number = |bytes: &[u8], field| number(bytes, field, big);
    let put = |bytes: &mut [u8], field, value| put(bytes, field, value, big);
    let (start, size) = (number(object, HEADERS)?, number(object, HEADER_SIZE)?);
    let count = number(object, HEADER_COUNT)?;
    let headers: Vec<&[u8]> =
        (0..count).map(|n| part(object, start + n * size, size)).collect::<Result<_, _>>()?;
    let names = headers.get(number(object, NAMES)?).ok_or("no section has the names")?;
    let names = part(object, number(names, OFFSET)?, number(names, SIZE)?)?;
    let mut stripped = file_header.to_vec();
    let mut table = Vec::new();
    for header in headers {
        let name = names.get(number(header, NAME)?..).ok_or("a section's name is not among the names")?;
        let mut header = header.to_vec();
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            // All but the name.
            header.get_mut(KIND.start..).ok_or("a short section header")?.fill(0);
        } else if number(&header, KIND)? != NO_BITS {
            let content = part(object, number(&header, OFFSET)?, number(&header, SIZE)?)?;
            let alignment = number(&header, ALIGNMENT)?.max(1);
            stripped.resize(stripped.len().next_multiple_of(alignment), 0);
            put(&mut header, OFFSET, stripped.len())?;
            stripped.extend(content);
        }
        table.extend(header);
    }
    stripped.resize(stripped.len().next_multiple_of(8), 0);
    let at = stripped.len();
    put(&mut stripped, HEADERS, at)?;
    stripped.extend(table);
    Ok(stripped)
}

fn part(bytes: &[u8], start: usize, length: usize) -> Result<&[u8], String> {
    let end = start.checked_add(length);
    end.and_then(|end| bytes.get(start..end))
        .ok_or_else(|| format!("cut short before byte {start} + {length}"))
}

fn number(bytes: &[u8], field: Range<usize>, big: bool) -> Result<usize, String> {
    let bytes = part(bytes, field.start, field.len())?;
    let add = |all: usize, byte: &u8| all << 8 | usize::from(*byte);
    Ok(if big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
}

fn put(bytes: &mut [u8], field: Range<usize>, value: usize, big: bool) -> Result<(), String> {
    let value = value as u64;
    let value = if big { value.to_be_bytes() } else { value.to_le_bytes() };
    bytes.get_mut(field).ok_or("a short header")?.copy_from_slice(&value);
    Ok(())
}
