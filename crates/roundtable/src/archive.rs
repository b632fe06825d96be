//! newc cpio archives, the format of an initial RAM disk.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use cpio::newc::{self, ModeFileType};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::content::{Content, Identity};

/// What an archive holds at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder with these permission bits.
    Folder(u32),
    /// A file with these permission bits.
    File(u32, Content),
    /// A symbolic link to this path.
    Link(String),
    /// A device or a named pipe.
    Special(Special, u32),
}

/// What is neither a file, a folder nor a link; devices with their major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A character device.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// User and group.
pub type Owner = (u32, u32);

/// What a node has besides its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Whom it belongs to: root, when nobody else is named.
    pub owner: Owner,
    /// When its content changed last, seconds since 1970.
    pub modified: u32,
}

impl Attributes {
    /// Those of this owner's.
    pub fn of(owner: Owner) -> Attributes {
        Attributes { owner, modified: 0 }
    }
}

/// Whom files of the host belong to in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// To root: users of the host are none in the guest.
    Root,
    /// To whom they belong on the host: it is a root file system, with users of its own.
    Kept,
}

/// The names of one file.
#[derive(Default)]
struct Names {
    count: u32,
    /// The inode number that the first of them was written with.
    first: Option<u32>,
}

/// So many links on the way to one path, as on Linux.
const MOST_LINKS: usize = 40;

/// An archive in the making. Paths have no slash at the front; folders on the way are added by themselves,
/// and links on the way are followed, as in the file system that it becomes.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    nodes: BTreeMap<String, (Node, Attributes)>,
}

impl Archive {
    /// An archive with nothing in it.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Puts a node of root's at a path, in place of what was there.
    pub fn put(&mut self, path: &str, node: Node) {
        self.put_owned(path, node, Attributes::default());
    }

    /// Puts a node at a path, in place of what was there; but a folder, or a link to one, stays where others
    /// already lie in it.
    pub fn put_owned(&mut self, path: &str, node: Node, attributes: Attributes) {
        let keeps = matches!(node, Node::Folder(_));
        let place = self.resolve(path, keeps);
        for (end, _) in place.match_indices('/') {
            self.nodes
                .entry(place[..end].to_string())
                .or_insert((Node::Folder(0o755), Attributes::default()));
        }
        let is_folder = matches!(self.nodes.get(&place), Some((Node::Folder(_), _)));
        if keeps || !is_folder || self.is_empty(&place) {
            self.nodes.insert(place, (node, attributes));
        }
    }

    /// Whether nothing lies in the folder at this place.
    fn is_empty(&self, place: &str) -> bool {
        let inside = format!("{place}/");
        self.nodes.range(inside.clone()..).next().is_none_or(|(path, _)| !path.starts_with(&inside))
    }

    /// The place that a path leads to, by way of the links in the archive; of the last one too when `follow`.
    fn resolve(&self, path: &str, follow: bool) -> String {
        let mut place: Vec<String> = Vec::new();
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_string).collect();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    place.pop();
                    continue;
                }
                _ => place.push(part),
            }
            let is_last = rest.iter().all(|part| part.is_empty());
            if let Some((Node::Link(target), _)) = self.nodes.get(&place.join("/"))
                && (follow || !is_last)
                && links < MOST_LINKS
            {
                links += 1;
                place.pop();
                if target.starts_with('/') {
                    place.clear();
                }
                rest.extend(target.split('/').rev().map(str::to_string));
            }
        }
        place.join("/")
    }

    /// Puts a file of the host at a path, with its permission bits; folders are taken with all that is in
    /// them. A link at the path itself is followed, links in the folder are taken as links. `each` is told of
    /// every regular file: its path in the guest and on the host. An error names the file.
    pub fn put_host(
        &mut self,
        path: &str,
        host: &Path,
        owners: Owners,
        each: &mut dyn FnMut(&str, &Path),
    ) -> io::Result<()> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", host.display()));
        let data = fs::metadata(host).map_err(named)?;
        self.put_found(path, host, &data, owners, each)
    }

    fn put_found(
        &mut self,
        path: &str,
        host: &Path,
        data: &fs::Metadata,
        owners: Owners,
        each: &mut dyn FnMut(&str, &Path),
    ) -> io::Result<()> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", host.display()));
        let text = |text: &std::ffi::OsStr| {
            let error = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is not UTF-8"));
            text.to_str().map(str::to_string).ok_or_else(error).map_err(named)
        };
        let mode = data.mode() & 0o7777;
        let owner = if owners == Owners::Kept { (data.uid(), data.gid()) } else { (0, 0) };
        let modified = u32::try_from(data.mtime()).unwrap_or(0);
        let attributes = Attributes { owner, modified };
        let kind = data.file_type();
        let device = (rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev()));
        let node = if kind.is_dir() {
            self.put_owned(path, Node::Folder(mode), attributes);
            let mut entries =
                fs::read_dir(host).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(named)?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let inner = entry.path();
                let named =
                    |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", inner.display()));
                let data = entry.metadata().map_err(named)?;
                self.put_found(
                    &format!("{path}/{}", text(&entry.file_name())?),
                    &inner,
                    &data,
                    owners,
                    each,
                )?;
            }
            return Ok(());
        } else if kind.is_symlink() {
            Node::Link(text(fs::read_link(host).map_err(named)?.as_os_str())?)
        } else if kind.is_char_device() {
            Node::Special(Special::Character(device.0, device.1), mode)
        } else if kind.is_block_device() {
            Node::Special(Special::Block(device.0, device.1), mode)
        } else if kind.is_fifo() {
            Node::Special(Special::Fifo, mode)
        } else if kind.is_socket() {
            // Nobody listens to it in the guest.
            return Ok(());
        } else {
            each(path, host);
            Node::File(mode, Content::Host(host.to_path_buf()))
        };
        self.put_owned(path, node, attributes);
        Ok(())
    }

    /// Removes what lies at a path, with all that is in it.
    pub fn remove(&mut self, path: &str) {
        let place = self.resolve(path, false);
        self.nodes.remove(&place);
        self.remove_inside(&place);
    }

    /// Removes all that is in the folder at a path.
    pub fn clear(&mut self, path: &str) {
        self.remove_inside(&self.resolve(path, true));
    }

    fn remove_inside(&mut self, place: &str) {
        let inside = if place.is_empty() { String::new() } else { format!("{place}/") };
        let tail = self.nodes.split_off(&inside);
        self.nodes.extend(tail.into_iter().filter(|(path, _)| !path.starts_with(&inside)));
    }

    /// Lays what another archive holds over this one: of each file there is the upper one.
    pub fn lay_over(&mut self, upper: Archive) {
        for (path, (node, attributes)) in upper.nodes {
            self.put_owned(&path, node, attributes);
        }
    }

    /// What lies at a path, by way of all links.
    pub fn follow(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.resolve(path, true)).map(|(node, _)| node)
    }

    /// What lies at a path and whose it is; the link itself where a link lies there.
    pub fn entry(&self, path: &str) -> Option<&(Node, Attributes)> {
        self.nodes.get(&self.resolve(path, false))
    }

    /// What lies at a path; the link itself where a link lies there.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.resolve(path, false)).map(|(node, _)| node)
    }

    /// Writes the archive.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        // Without an entry of its own the guest's root directory could be written by everybody.
        let root = (Node::Folder(0o755), Attributes::default());
        let root = std::iter::once((".", self.nodes.get("").unwrap_or(&root)));
        let others = self.nodes.iter().filter(|(path, _)| !path.is_empty());
        let mut files = self.files_with_names();
        for (number, (path, (node, attributes))) in
            root.chain(others.map(|(path, node)| (path.as_str(), node))).enumerate()
        {
            let number = u32::try_from(number + 1).expect("fewer than four milliards of files");
            let (uid, gid) = attributes.owner;
            let entry = newc::Builder::new(path).ino(number).uid(uid).gid(gid).mtime(attributes.modified);
            let (entry, body) = match node {
                Node::Folder(mode) => {
                    (entry.nlink(2).mode(*mode).set_mode_file_type(ModeFileType::Directory), Vec::new())
                }
                Node::File(mode, content) => {
                    let entry = entry.mode(*mode).set_mode_file_type(ModeFileType::Regular);
                    match content.identity().and_then(|identity| files.get_mut(&identity)) {
                        // All names of a file have one number; the content comes with the first.
                        Some(Names { count, first: Some(first) }) if *count > 1 => {
                            (entry.ino(*first).nlink(*count), Vec::new())
                        }
                        Some(Names { count, first }) if *count > 1 => {
                            *first = Some(number);
                            (entry.nlink(*count), content.read()?)
                        }
                        _ => (entry, content.read()?),
                    }
                }
                Node::Link(target) => {
                    (entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink), target.as_bytes().to_vec())
                }
                Node::Special(special, mode) => {
                    let (kind, (major, minor)) = match *special {
                        Special::Character(major, minor) => (ModeFileType::Char, (major, minor)),
                        Special::Block(major, minor) => (ModeFileType::Block, (major, minor)),
                        Special::Fifo => (ModeFileType::Fifo, (0, 0)),
                    };
                    let entry = entry.mode(*mode).set_mode_file_type(kind);
                    (entry.rdev_major(major).rdev_minor(minor), Vec::new())
                }
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

    /// How many names each file has in the archive.
    fn files_with_names(&self) -> HashMap<Identity, Names> {
        let mut files: HashMap<_, Names> = HashMap::new();
        for (node, _) in self.nodes.values() {
            if let Node::File(_, content) = node
                && let Some(identity) = content.identity()
            {
                files.entry(identity).or_default().count += 1;
            }
        }
        files
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
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    fn example() -> Archive {
        let mut archive = Archive::new();
        archive.put("/usr/share/text", Node::File(0o640, Content::Bytes(b"hello\n".to_vec())));
        archive.put("empty", Node::File(0o644, Content::Bytes(Vec::new())));
        archive.put("bin", Node::Folder(0o755));
        archive.put("bin/sh", Node::Link("busybox".into()));
        archive.put("dev/console", Node::Special(Special::Character(5, 1), 0o600));
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
            [".", "bin", "bin/sh", "dev", "dev/console", "empty", "usr", "usr/share", "usr/share/text"]
        );
        assert_eq!(read[0].1, 0o040755, "the root directory is not for everybody to write");
        assert_eq!(read[2], ("bin/sh".into(), 0o120777, b"busybox".to_vec()));
        assert_eq!(read[4].1, 0o020600);
        assert_eq!(read[8], ("usr/share/text".into(), 0o100640, b"hello\n".to_vec()));
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
        assert_eq!(names, ".\nbin\nbin/sh\ndev\ndev/console\nempty\nusr\nusr/share\nusr/share/text\n");
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

    fn put_host(archive: &mut Archive, path: &str, host: &Path, owners: Owners) -> Vec<String> {
        let mut files = Vec::new();
        archive.put_host(path, host, owners, &mut |guest, _| files.push(guest.to_string())).unwrap();
        files
    }

    #[test]
    fn a_folder_of_the_host_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o1750)).unwrap();
        fs::write(inner.join("file"), b"x").unwrap();
        for (target, name) in [("file", "link"), ("../nowhere", "dangling"), (".", "circle")] {
            std::os::unix::fs::symlink(target, inner.join(name)).unwrap();
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, inner.join("fifo"), 0o640.into()).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(inner.join("socket")).unwrap();
        let mut archive = Archive::new();
        let files = put_host(&mut archive, "/data", folder.path(), Owners::Kept);
        assert_eq!(files, ["/data/inner/file"]);
        assert_eq!(archive.get("data/inner"), Some(&Node::Folder(0o1750)));
        for (target, name) in [("file", "link"), ("../nowhere", "dangling"), (".", "circle")] {
            let path = format!("/data/inner/{name}");
            assert_eq!(archive.get(&path), Some(&Node::Link(target.into())), "{name}");
        }
        assert!(matches!(archive.get("data/inner/fifo"), Some(Node::Special(Special::Fifo, _))));
        assert_eq!(archive.get("data/inner/socket"), None);
        let owner = fs::metadata(&inner).map(|data| (data.uid(), data.gid())).unwrap();
        assert_eq!(archive.nodes["data/inner"].1.owner, owner);
        // A link that is named itself is followed, as by cp.
        let mut archive = Archive::new();
        put_host(&mut archive, "here", &inner.join("link"), Owners::Root);
        assert!(matches!(archive.get("here"), Some(Node::File(_, Content::Host(_)))));
    }

    #[test]
    fn names_of_one_file_stay_names_of_one_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), b"content").unwrap();
        fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
        fs::write(folder.path().join("c"), b"content").unwrap();
        let mut archive = Archive::new();
        put_host(&mut archive, "", folder.path(), Owners::Root);
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            seen.push((entry.name().to_string(), entry.ino(), entry.nlink(), entry.file_size()));
            rest = reader.finish().unwrap();
        }
        assert_eq!(seen[1..3], [("a".into(), 2, 2, 7), ("b".into(), 2, 2, 0)]);
        assert_eq!(seen[3], ("c".into(), 4, 1, 7));
    }

    #[test]
    fn what_is_removed_goes_with_all_in_it() {
        let mut archive = example();
        archive.put("usr-local", Node::Folder(0o755));
        archive.put("usr/share/more/inner", Node::Folder(0o755));
        archive.remove("usr/share");
        assert!(archive.get("usr/share/text").is_none() && archive.get("usr/share").is_none());
        assert!(archive.get("usr").is_some() && archive.get("usr-local").is_some());
        archive.clear("dev");
        assert!(archive.get("dev").is_some() && archive.get("dev/console").is_none());
    }

    #[test]
    fn an_error_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = Archive::new().put_host("x", &missing, Owners::Root, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    }

    #[test]
    fn links_on_the_way_lead_to_one_place() {
        let mut archive = Archive::new();
        archive.put("lib", Node::Link("usr/lib".into()));
        archive.put("lib/a", Node::File(0o644, Content::Bytes(Vec::new())));
        archive.put("/usr/lib/b", Node::Link("/lib/a".into()));
        archive.put("usr/share/../lib/./c", Node::Folder(0o700));
        let names: Vec<_> = archive.nodes.keys().map(String::as_str).collect();
        assert_eq!(names, ["lib", "usr", "usr/lib", "usr/lib/a", "usr/lib/b", "usr/lib/c"]);
        assert_eq!(archive.get("usr/lib/a"), archive.get("lib/a"));
        // A folder in the place of the link is the folder behind it, and keeps what lies in it.
        archive.put("lib", Node::Folder(0o711));
        assert_eq!(archive.get("usr/lib"), Some(&Node::Folder(0o711)));
        archive.put("usr/lib", Node::Link("elsewhere".into()));
        assert_eq!(archive.get("usr/lib"), Some(&Node::Folder(0o711)));
        // Nobody walks for ever.
        archive.put("circle", Node::Link("circle".into()));
        archive.put("circle/x", Node::Folder(0o755));
    }
}
