//! Reads tarballs into archives.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tar::{EntryType, Header};

use crate::archive::{Archive, Attributes, Node, Special};
use crate::content::{Content, Part};

/// What a layer of an image says of a file below it: it is gone.
const WHITEOUT: &str = ".wh.";
/// What a layer says of a folder: what lower layers have in it is gone.
const OPAQUE: &str = ".wh..wh..opq";

/// Whether names in a tarball may speak of lower layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layered {
    /// It is a layer of an image.
    Yes,
    /// It stands by itself.
    No,
}

/// Opens a tarball: plain, or compressed with gzip or zstd, which is unpacked into a file without a name.
pub fn open(path: &Path) -> Result<File> {
    let named = || path.display().to_string();
    let mut file = File::open(path).with_context(named)?;
    let mut magic = [0; 6];
    let count = file.read(&mut magic).with_context(named)?;
    file.rewind().with_context(named)?;
    decompress(file, &magic[..count]).with_context(named)
}

fn decompress(file: File, magic: &[u8]) -> Result<File> {
    let mut reader: Box<dyn Read> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(BufReader::new(file))?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => bail!("it is compressed with xz: unpack it with xz -dk first"),
        [b'B', b'Z', b'h', ..] => bail!("it is compressed with bzip2: unpack it with bunzip2 -k first"),
        _ => return Ok(file),
    };
    let mut plain = tempfile::tempfile()?;
    io::copy(&mut reader, &mut plain)?;
    plain.flush()?;
    plain.seek(SeekFrom::Start(0))?;
    Ok(plain)
}

/// Puts what is in an open tarball over what is in the archive.
pub fn read(file: File, archive: &mut Archive, layered: Layered) -> Result<()> {
    let whole = Arc::new(file.try_clone()?);
    let mut tarball = tar::Archive::new(BufReader::new(file));
    for entry in tarball.entries_with_seek()? {
        let entry = entry.context("not a tarball that can be read")?;
        let path = text(&entry.path_bytes())?;
        if layered == Layered::Yes {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == OPAQUE {
                archive.clear(folder);
                continue;
            }
            if let Some(name) = name.strip_prefix(WHITEOUT) {
                archive.remove(&format!("{folder}/{name}"));
                continue;
            }
        }
        let header = entry.header();
        let attributes = attributes(header).with_context(|| path.clone())?;
        let mode = header.mode().with_context(|| path.clone())? & 0o7777;
        let target = entry.link_name_bytes().map(|target| text(&target)).transpose()?.unwrap_or_default();
        let part = Part { whole: whole.clone(), offset: entry.raw_file_position(), len: entry.size() };
        let device = || -> Result<(u32, u32)> {
            Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
        };
        let node = match header.entry_type() {
            EntryType::Directory => Node::Folder(mode),
            EntryType::Regular | EntryType::Continuous => Node::File(mode, Content::Part(part)),
            EntryType::Symlink => Node::Link(target),
            EntryType::Link => {
                // The same content, so the same file; its attributes are those of the first name.
                let Some((node, attributes)) = archive.entry(&target).cloned() else {
                    bail!("{path}: a link to {target}, which does not come before it");
                };
                replace(archive, &path, node, attributes);
                continue;
            }
            EntryType::Char => {
                let (major, minor) = device()?;
                Node::Special(Special::Character(major, minor), mode)
            }
            EntryType::Block => {
                let (major, minor) = device()?;
                Node::Special(Special::Block(major, minor), mode)
            }
            EntryType::Fifo => Node::Special(Special::Fifo, mode),
            EntryType::GNUSparse => bail!("{path}: a sparse file; pack the tarball without --sparse"),
            // Remarks for archivers.
            _ => continue,
        };
        replace(archive, &path, node, attributes);
    }
    Ok(())
}

/// Puts a node, and takes away a folder that stands in the place of something else.
fn replace(archive: &mut Archive, path: &str, node: Node, attributes: Attributes) {
    let is_folder = matches!(node, Node::Folder(_));
    if !is_folder && matches!(archive.get(path), Some(Node::Folder(_))) {
        archive.remove(path);
    }
    archive.put_owned(path, node, attributes);
}

fn attributes(header: &Header) -> io::Result<Attributes> {
    let id = |id: io::Result<u64>| id.map(|id| u32::try_from(id).unwrap_or(0));
    let modified = u32::try_from(header.mtime()?).unwrap_or(0);
    Ok(Attributes { owner: (id(header.uid())?, id(header.gid())?), modified })
}

fn text(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_string).with_context(|| format!("{}: not UTF-8", String::from_utf8_lossy(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tarball of files and links: name, link's target, content.
    fn tarball(entries: &[(&str, EntryType, &str)]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (name, kind, text) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4751);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(1234);
            if matches!(kind, EntryType::Link | EntryType::Symlink) {
                header.set_size(0);
                builder.append_link(&mut header, name, text).unwrap();
            } else {
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, name, text.as_bytes()).unwrap();
            }
        }
        let mut file = builder.into_inner().unwrap();
        file.rewind().unwrap();
        file
    }

    fn content(archive: &Archive, path: &str) -> Vec<u8> {
        match archive.get(path) {
            Some(Node::File(_, content)) => content.read().unwrap(),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn owners_modes_times_and_links_are_kept() {
        let long = "very/".repeat(40) + "long";
        let file = tarball(&[
            ("usr/bin", EntryType::Directory, ""),
            ("bin", EntryType::Symlink, "usr/bin"),
            ("bin/first", EntryType::Regular, "the content"),
            ("usr/bin/second", EntryType::Link, "bin/first"),
            (&long, EntryType::Regular, "far"),
        ]);
        let mut archive = Archive::new();
        read(file, &mut archive, Layered::No).unwrap();
        let (node, attributes) = archive.entry("usr/bin/first").unwrap();
        assert!(matches!(node, Node::File(0o4751, _)), "{node:?}");
        assert_eq!(*attributes, Attributes { owner: (7, 8), modified: 1234 });
        assert_eq!(archive.get("bin"), Some(&Node::Link("usr/bin".into())));
        assert_eq!(archive.get("bin/second"), archive.get("bin/first"));
        assert_eq!(content(&archive, "bin/second"), b"the content");
        assert_eq!(content(&archive, &long), b"far");
    }

    #[test]
    fn a_layer_takes_away_what_it_says() {
        let mut archive = Archive::new();
        let lower = tarball(&[
            ("a/one", EntryType::Regular, "1"),
            ("a/two", EntryType::Regular, "2"),
            ("b/three", EntryType::Regular, "3"),
            ("c/four", EntryType::Regular, "4"),
        ]);
        read(lower, &mut archive, Layered::Yes).unwrap();
        let upper = tarball(&[
            ("a/.wh.one", EntryType::Regular, ""),
            ("b/.wh..wh..opq", EntryType::Regular, ""),
            ("b/five", EntryType::Regular, "5"),
            ("c", EntryType::Symlink, "b"),
        ]);
        read(upper, &mut archive, Layered::Yes).unwrap();
        assert_eq!((archive.get("a/one"), archive.get("b/three")), (None, None));
        assert_eq!(content(&archive, "a/two"), b"2");
        assert_eq!(content(&archive, "c/five"), b"5");
        assert_eq!(archive.get("a/.wh.one"), None);
    }

    #[test]
    fn compressed_ones_are_read_as_well_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tarball");
        let mut plain = Vec::new();
        tarball(&[("file", EntryType::Regular, "text")]).read_to_end(&mut plain).unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&plain).unwrap();
        let zstd = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
        for bytes in [plain.clone(), packed.finish().unwrap(), zstd] {
            std::fs::write(&path, bytes).unwrap();
            let mut archive = Archive::new();
            read(open(&path).unwrap(), &mut archive, Layered::No).unwrap();
            assert_eq!(content(&archive, "file"), b"text");
        }
        std::fs::write(&path, "no tarball at all, but longer than one block ".repeat(40)).unwrap();
        assert!(read(open(&path).unwrap(), &mut Archive::new(), Layered::No).is_err());
        std::fs::write(&path, b"\xfd7zXZ\0").unwrap();
        let error = open(&path).unwrap_err();
        assert!(format!("{error:#}").contains("xz -dk"), "{error:#}");
    }
}
