//! Writes a result to where an option says: standard output, a file that is replaced whole, or what is no file.
//!
//! A regular file is replaced by a new one, so that readers see the old or the new text and never half of it.
//! Nothing else is ever replaced: a device, a FIFO or a socket is opened and written to, and a symbolic link
//! keeps pointing to its target.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::signals::Held;
use anyhow::{Context, Result, bail};
use rustix::fs::{Gid, OFlags, PROC_SUPER_MAGIC, Uid, fchown, fstat, stat, statfs};

/// Symbolic links followed from one name, as many as the kernel follows.
const LINKS: usize = 40;

/// The name that stands for standard output.
const STANDARD_OUTPUT: &str = "-";

/// Writes the text to standard output, or to what has this path.
pub fn write(text: &str, output: Option<&Path>) -> Result<()> {
    match output {
        None => to_standard_output(text),
        Some(path) if path.as_os_str() == STANDARD_OUTPUT => to_standard_output(text),
        Some(path) => to_path(text, path).with_context(|| path.display().to_string()),
    }
}

fn to_standard_output(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // A pager that was left.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

fn to_path(text: &str, path: &Path) -> Result<()> {
    match target(path)? {
        Target::Missing(path) => replace(text, &path, None),
        Target::Regular(path, old) => match replace(text, &path, Some(&old)) {
            // A file that is mounted over another, as a container has it, keeps its place; it can only be rewritten.
            Err(error) if has_kind(&error, ErrorKind::ResourceBusy) => {
                in_place(text, OpenOptions::new().write(true).truncate(true), &path)
            }
            result => result,
        },
        // As /dev/stdout: a socket cannot be opened by it, and a file would be written from its start.
        Target::Descriptor | Target::Socket | Target::Stream if is_standard_output(path) => {
            to_standard_output(text)
        }
        Target::Descriptor => in_place(text, OpenOptions::new().append(true), path),
        Target::Socket => {
            Ok(UnixStream::connect(path).and_then(|mut socket| socket.write_all(text.as_bytes()))?)
        }
        Target::Stream => {
            in_place(text, OpenOptions::new().write(true).custom_flags(OFlags::NOCTTY.bits() as i32), path)
        }
    }
}

/// What a path leads to.
enum Target {
    /// Nothing yet; the file is to be made here, which is where the last link points to.
    Missing(PathBuf),
    /// A regular file, by its own name.
    Regular(PathBuf, Metadata),
    /// A regular file that a process has open, as /dev/stdout: it is a descriptor's, and its name means nothing.
    Descriptor,
    /// A socket.
    Socket,
    /// A device or a FIFO.
    Stream,
}

/// Finds what a path leads to. The kernel follows the links first, so that those that it refuses to follow (see
/// `fs.protected_symlinks` in proc(5)) are refused here too.
fn target(path: &Path) -> Result<Target> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    match metadata.as_ref().map(Metadata::file_type) {
        None => {}
        Some(kind) if kind.is_file() => {}
        Some(kind) if kind.is_dir() => bail!("it is a folder"),
        Some(kind) if kind.is_socket() => return Ok(Target::Socket),
        Some(_) => return Ok(Target::Stream),
    }
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        let link = match fs::read_link(&path) {
            Ok(link) => link,
            // It is no link, or it is not there.
            Err(_) => {
                return Ok(metadata.map_or_else(
                    || Target::Missing(path.clone()),
                    |old| Target::Regular(path.clone(), old),
                ));
            }
        };
        let folder = folder(&path);
        if statfs(folder).is_ok_and(|system| system.f_type == PROC_SUPER_MAGIC) && metadata.is_some() {
            return Ok(Target::Descriptor);
        }
        path = folder.join(link);
    }
    bail!("it leads through more than {LINKS} links");
}

fn is_standard_output(path: &Path) -> bool {
    let (Ok(named), Ok(output)) = (stat(path), fstat(io::stdout())) else { return false };
    (named.st_dev, named.st_ino) == (output.st_dev, output.st_ino)
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Puts a new file in the place of the old one, which lends its mode and its owner, or of nothing.
fn replace(text: &str, path: &Path, old: Option<&Metadata>) -> Result<()> {
    let folder = folder(path);
    // Who presses Ctrl-C now gets the old file or the new one, and no third one beside it.
    let _held = Held::begin()?;
    // The collector reads files that end in .prom; this one does not, and begins with a dot.
    let mut file = tempfile::Builder::new()
        .prefix(".roundtable-")
        // As the umask has it: the collector is another user.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(|| format!("no file can be made in {}", folder.display()))?;
    file.write_all(text.as_bytes())?;
    if let Some(old) = old {
        keep_owner(file.as_file(), old)?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn keep_owner(file: &File, old: &Metadata) -> Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        // Only root may give a file away. Who may not, and may write the folder, gets a file of its own.
        let _ = fchown(file, Some(Uid::from_raw(old.uid())), Some(Gid::from_raw(old.gid())));
    }
    Ok(file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o777))?)
}

fn in_place(text: &str, options: &OpenOptions, path: &Path) -> Result<()> {
    Ok(options.open(path)?.write_all(text.as_bytes())?)
}

fn has_kind(error: &anyhow::Error, kind: ErrorKind) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roundtable.prom");
        let plain = folder.path().join("plain");
        File::create(&plain).unwrap();
        write("first, and longer\n", Some(&path)).unwrap();
        assert_eq!(mode(&path), mode(&plain), "as the umask has it");
        let old = File::open(&path).unwrap();
        write("second\n", Some(&path)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second\n");
        assert_eq!(io::read_to_string(old).unwrap(), "first, and longer\n", "who has it open reads on");
        assert_eq!(names(folder.path()), 2);
        assert!(write("x", Some(&folder.path().join("no/such/folder.prom"))).is_err());
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write("new", Some(&path)).unwrap();
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn a_link_stays_and_its_target_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("data")).unwrap();
        symlink("data/target", at("link")).unwrap();
        symlink(at("link"), at("to-link")).unwrap();
        // The first time there is no target yet.
        for text in ["first\n", "second\n"] {
            write(text, Some(&at("to-link"))).unwrap();
            assert_eq!(fs::read_to_string(at("data/target")).unwrap(), text);
            for link in ["link", "to-link"] {
                assert!(at(link).symlink_metadata().unwrap().is_symlink(), "{link}");
            }
            assert_eq!((names(folder.path()), names(&at("data"))), (3, 1));
        }
        symlink("round", at("round")).unwrap();
        assert!(write("x", Some(&at("round"))).is_err(), "a link to itself");
        assert!(at("round").symlink_metadata().unwrap().is_symlink());
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = write("x", Some(folder.path())).unwrap_err();
        assert!(format!("{error:#}").contains("it is a folder"), "{error:#}");
    }
}
