//! An initramfs: a cpio archive of the form "newc", uncompressed
//! (kernel `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! The folders above an entry are made along, each before what is in it, as the kernel wants it. The archive
//! has files and folders only: what a symbolic link points to is added under the link's name.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// What will be in the archive, by path in the guest.
#[derive(Clone, Debug, Default)]
pub(super) struct Archive {
    entries: BTreeMap<PathBuf, Content>,
}

#[derive(Clone, Debug)]
enum Content {
    Folder,
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Archive {
    /// A file of this machine, at `at` (absolute).
    pub(super) fn file(&mut self, at: impl AsRef<Path>, from: impl Into<PathBuf>) {
        self.put(at.as_ref(), Content::File(from.into()));
    }

    /// A file with these bytes.
    pub(super) fn bytes(&mut self, at: impl AsRef<Path>, bytes: Vec<u8>) {
        self.put(at.as_ref(), Content::Bytes(bytes));
    }

    /// An empty folder.
    pub(super) fn folder(&mut self, at: impl AsRef<Path>) {
        for folder in at.as_ref().ancestors().filter(|folder| folder.parent().is_some()) {
            self.entries.entry(folder.to_path_buf()).or_insert(Content::Folder);
        }
    }

    fn put(&mut self, at: &Path, content: Content) {
        if let Some(folder) = at.parent() {
            self.folder(folder);
        }
        self.entries.insert(at.to_path_buf(), content);
    }

    /// Writes the archive: a folder sorts before what is in it.
    pub(super) fn write(&self, to: &mut impl Write) -> Result<()> {
        for (inode, (path, content)) in (1..).zip(&self.entries) {
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
            match content {
                Content::Folder => entry(to, inode, FOLDER, &name, &[])?,
                Content::Bytes(bytes) => entry(to, inode, PROGRAM, &name, bytes)?,
                Content::File(from) => {
                    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    entry(to, inode, PROGRAM, &name, &bytes)?;
                }
            }
        }
        entry(to, 0, 0, "TRAILER!!!", &[])
    }
}

/// Header and name, padded together to a multiple of four bytes, then the data, padded alike.
fn entry(to: &mut impl Write, inode: u32, mode: u32, name: &str, data: &[u8]) -> Result<()> {
    let size = u32::try_from(data.len()).with_context(|| format!("{name} is too large for an archive"))?;
    let length = u32::try_from(name.len() + 1)?;
    let mut head = "070701".to_owned();
    // Inode, mode, owner, group, links, time, size, two device numbers of two parts, name's length, checksum.
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0] {
        head += &format!("{field:08x}");
    }
    head += name;
    head.push('\0');
    to.write_all(head.as_bytes())?;
    to.write_all(padding(head.len()))?;
    to.write_all(data)?;
    Ok(to.write_all(padding(data.len()))?)
}

fn padding(length: usize) -> &'static [u8] {
    match length % 4 {
        0 => &[],
        1 => &[0; 3],
        2 => &[0; 2],
        _ => &[0; 1],
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn folders_come_first_and_all_is_aligned() {
        let mut archive = Archive::default();
        archive.bytes("/a/b/file", b"12345".to_vec());
        archive.folder("/a/c");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let number = |field: usize| {
                let at = 6 + field * 8;
                usize::from_str_radix(str::from_utf8(&rest[at..at + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&rest[..6], b"070701");
            let (mode, size, length) = (number(1), number(6), number(11));
            let name = str::from_utf8(&rest[110..110 + length - 1]).unwrap().to_owned();
            let data = (110 + length).next_multiple_of(4);
            seen.push((name, mode, rest[data..data + size].to_vec()));
            rest = &rest[(data + size).next_multiple_of(4)..];
        }
        let expected = [
            ("a", 0o040_755, ""),
            ("a/b", 0o040_755, ""),
            ("a/b/file", 0o100_755, "12345"),
            ("a/c", 0o040_755, ""),
            ("TRAILER!!!", 0, ""),
        ];
        assert_eq!(
            seen,
            expected.map(|(name, mode, data)| (name.to_owned(), mode, data.as_bytes().to_vec()))
        );
    }
}
