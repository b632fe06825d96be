//! Reads PostgreSQL's configuration files: of this host, or of a server in a container of its own.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;

/// No configuration is larger, all its files together. What anybody puts into the place of one must not keep the reader
/// busy: ten files that include one another ten times each are read 10^10 times.
const LARGEST: u64 = 16 << 20;
/// No more files are opened or asked for, nor entries of one folder listed.
const FILES: usize = 1000;

/// The files of one configuration, as a server sees them.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    /// So many more may be looked at.
    files: Cell<usize>,
    /// So many more bytes may be read.
    bytes: Cell<u64>,
}

impl Files {
    /// Those below a root: `/`, or `/proc/PID/root` of a server.
    pub fn below(root: &Path) -> Files {
        Files { root: root.to_path_buf(), files: Cell::new(FILES), bytes: Cell::new(LARGEST) }
    }

    /// Counts a look at a file.
    fn count(&self) -> Result<()> {
        let Some(left) = self.files.get().checked_sub(1) else {
            bail!("the configuration has more than {FILES} files");
        };
        self.files.set(left);
        Ok(())
    }

    fn path(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("/") {
            Ok(relative) => self.root.join(relative),
            // It is the caller's, and relative to where the caller is.
            Err(_) => path.to_path_buf(),
        }
    }

    /// Reads a file whole. Bytes that are not UTF-8 are replaced: they can be in comments and names only.
    pub fn text(&self, path: &Path) -> Result<String> {
        let open = || -> Result<File> {
            // What is no file must not even be opened: a device may do something then, and a FIFO waits.
            if !std::fs::metadata(self.path(path))?.is_file() {
                bail!("it is no regular file");
            }
            let flags = OFlags::NONBLOCK.bits() as i32;
            Ok(OpenOptions::new().read(true).custom_flags(flags).open(self.path(path))?)
        };
        let read = |file: File| -> Result<String> {
            if !file.metadata()?.is_file() {
                bail!("it is no regular file");
            }
            let mut bytes = Vec::new();
            let left = self.bytes.get();
            file.take(left + 1).read_to_end(&mut bytes)?;
            let Some(left) = left.checked_sub(bytes.len() as u64) else {
                bail!("the configuration is larger than {} MiB", LARGEST >> 20);
            };
            self.bytes.set(left);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        self.count().and_then(|()| open()).and_then(read).with_context(|| path.display().to_string())
    }

    /// Whether there is such a file.
    pub fn has(&self, path: &Path) -> Result<bool> {
        self.count().with_context(|| path.display().to_string())?;
        Ok(self.path(path).exists())
    }

    /// Whether there is such a folder.
    pub fn has_folder(&self, path: &Path) -> bool {
        self.path(path).is_dir()
    }

    /// The files of a folder that `include_dir` reads, in its order.
    pub fn configuration_files(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        self.count()?;
        let entries = std::fs::read_dir(self.path(folder)).with_context(|| folder.display().to_string())?;
        let mut names: Vec<_> = entries.flatten().take(FILES + 1).map(|entry| entry.file_name()).collect();
        if names.len() > FILES {
            bail!("{}: it has more than {FILES} entries", folder.display());
        }
        names.retain(|name| {
            let name = name.to_string_lossy();
            name.ends_with(".conf") && !name.starts_with('.')
        });
        names.sort();
        Ok(names.into_iter().map(|name| folder.join(name)).collect())
    }
}

/// `name = value`, the equals sign left out or not, the value quoted or not; `None` for a line that sets nothing.
pub fn parse_line(line: &str) -> Result<Option<(String, String)>> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_alphanumeric() || "_.".contains(c))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        bail!("it is no setting");
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        None => rest.split(|c: char| c == '#' || c.is_whitespace()).next().unwrap_or_default().to_string(),
        Some(quoted) => {
            let mut value = String::new();
            let mut chars = quoted.chars().peekable();
            loop {
                match chars.next() {
                    None => bail!("a quote is missing"),
                    Some('\'') if chars.peek() == Some(&'\'') => {
                        chars.next();
                        value.push('\'');
                    }
                    Some('\\') => value.extend(chars.next()),
                    Some('\'') => break,
                    Some(c) => value.push(c),
                }
            }
            value
        }
    };
    if value.is_empty() && !rest.starts_with('\'') {
        bail!("{name} has no value");
    }
    Ok(Some((name.to_lowercase(), value)))
}
