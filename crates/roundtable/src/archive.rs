//! newc cpio archives, the format of an initial RAM disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cpio::newc::{self, ModeFileType};
use flate2::Compression;
use flate2::write::GzEncoder;

/// What an archive holds at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder with these permission bits.
    Folder(u32),
    /// A file with these permission bits.
    File(u32, Content),
    /// A symbolic link to this path.
    Link(String),
    /// A character device: major and minor number, permission bits.
    Device(u32, u32, u32),
}

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Given here.
    Bytes(Vec<u8>),
    /// Read from this file of the host when the archive is written.
    Host(PathBuf),
}

/// An archive in the making. Paths have no slash at the front; folders on the way are added by themselves.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// An archive with nothing in it.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Puts a node at a path, in place of what was there.
    pub fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.nodes.entry(path[..end].to_string()).or_insert(Node::Folder(0o755));
        }
        // A folder that others already lie in stays a folder.
        if !(matches!(node, Node::Folder(_)) && matches!(self.nodes.get(path), Some(Node::Link(_)))) {
            self.nodes.insert(path.to_string(), node);
        }
    }

    /// Puts a file of the host at a path, with its permission bits; folders are taken with all that is in them.
    pub fn put_host(&mut self, path: &str, host: &Path) -> io::Result<()> {
        let data = fs::metadata(host)?;
        let mode = data.permissions().mode() & 0o7777;
        if data.is_dir() {
            self.put(path, Node::Folder(mode));
            for entry in fs::read_dir(host)? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_str().ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not UTF-8"))
                })?;
                self.put_host(&format!("{path}/{name}"), &entry.path())?;
            }
        } else {
            self.put(path, Node::File(mode, Content::Host(host.to_path_buf())));
        }
        Ok(())
    }

    /// What lies at a path.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path.trim_matches('/'))
    }

    /// Writes the archive.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        for (number, (path, node)) in self.nodes.iter().enumerate() {
            let number = u32::try_from(number + 1).expect("fewer than four milliards of files");
            let entry = newc::Builder::new(path).ino(number);
            let (entry, body) = match node {
                Node::Folder(mode) => {
                    (entry.nlink(2).mode(*mode).set_mode_file_type(ModeFileType::Directory), Vec::new())
                }
                Node::File(mode, content) => {
                    let body = match content {
                        Content::Bytes(bytes) => bytes.clone(),
                        Content::Host(path) => fs::read(path).map_err(|error| {
                            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                        })?,
                    };
                    (entry.mode(*mode).set_mode_file_type(ModeFileType::Regular), body)
                }
                Node::Link(target) => {
                    (entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink), target.as_bytes().to_vec())
                }
                Node::Device(major, minor, mode) => (
                    entry
                        .mode(*mode)
                        .set_mode_file_type(ModeFileType::Char)
                        .rdev_major(*major)
                        .rdev_minor(*minor),
                    Vec::new(),
                ),
            };
            let size = u32::try_from(body.len()).map_err(|_| {
                io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} is larger than 4 GiB"))
            })?;
            let mut writer = entry.write(&mut out, size);
            writer.write_all(&body)?;
            writer.finish()?;
        }
        newc::trailer(&mut out)?;
        out.flush()
    }

    /// Writes the archive into a file, with gzip when asked.
    pub fn write_file(&self, path: &Path, gzip: bool) -> io::Result<()> {
        let file = io::BufWriter::new(fs::File::create(path)?);
        if gzip {
            let mut encoder = GzEncoder::new(file, Compression::fast());
            self.write(&mut encoder)?;
            encoder.finish()?.flush()
        } else {
            self.write(file)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn example() -> Archive {
        let mut archive = Archive::new();
        archive.put("/usr/share/text", Node::File(0o640, Content::Bytes(b"hello\n".to_vec())));
        archive.put("empty", Node::File(0o644, Content::Bytes(Vec::new())));
        archive.put("bin", Node::Folder(0o755));
        archive.put("bin/sh", Node::Link("busybox".into()));
        archive.put("dev/console", Node::Device(5, 1, 0o600));
        archive
    }

    /// Names, modes and bodies as the crate's own reader finds them.
    fn read_back(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut out = Vec::new();
        loop {
            let reader = newc::Reader::new(bytes).unwrap();
            if reader.entry().is_trailer() {
                return out;
            }
            let (name, mode) = (reader.entry().name().to_string(), reader.entry().mode());
            let mut body = Vec::new();
            bytes = reader.to_writer(&mut body).unwrap();
            out.push((name, mode, body));
        }
    }

    #[test]
    fn folders_on_the_way_come_before_what_is_in_them() {
        let mut bytes = Vec::new();
        example().write(&mut bytes).unwrap();
        let read = read_back(&bytes);
        let names: Vec<_> = read.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            ["bin", "bin/sh", "dev", "dev/console", "empty", "usr", "usr/share", "usr/share/text"]
        );
        assert_eq!(read[1], ("bin/sh".into(), 0o120777, b"busybox".to_vec()));
        assert_eq!(read[3].1, 0o020600);
        assert_eq!(read[7], ("usr/share/text".into(), 0o100640, b"hello\n".to_vec()));
    }

    #[test]
    fn the_cpio_program_reads_it_too() {
        if Command::new("cpio").arg("--version").output().is_err() {
            eprintln!("skipped: no cpio program here");
            return;
        }
        let mut child = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        example().write(child.stdin.take().unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let names = String::from_utf8(output.stdout).unwrap();
        assert_eq!(names, "bin\nbin/sh\ndev\ndev/console\nempty\nusr\nusr/share\nusr/share/text\n");
    }

    #[test]
    fn gzip_holds_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (plain, packed) = (folder.path().join("plain"), folder.path().join("packed"));
        example().write_file(&plain, false).unwrap();
        example().write_file(&packed, true).unwrap();
        let mut unpacked = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(fs::File::open(packed).unwrap());
        io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
        assert_eq!(unpacked, fs::read(plain).unwrap());
    }

    #[test]
    fn a_folder_of_the_host_is_taken_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("inner/file"), b"x").unwrap();
        let mut archive = Archive::new();
        archive.put_host("data", folder.path()).unwrap();
        assert!(matches!(archive.get("/data/inner/file"), Some(Node::File(_, Content::Host(_)))));
        assert!(archive.put_host("none", &folder.path().join("missing")).is_err());
    }
}
