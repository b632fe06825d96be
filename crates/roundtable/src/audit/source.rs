//! Where the audit reads: the host's /proc and /sys, or a folder that looks like them. It only ever reads.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use procfs::process::Process;

use super::geometry::Geometry;
use super::held::Held;

/// The files that an audit is made from.
#[derive(Debug)]
pub struct Source {
    root: PathBuf,
    is_recording: bool,
    /// How base pages and tables are cut.
    pub geometry: Geometry,
    held: OnceLock<Option<Held>>,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Source {
    /// The running host.
    pub fn host() -> Source {
        let geometry = Geometry::new(rustix::param::page_size() as u64).unwrap_or(Geometry::four_kib());
        Source::new(PathBuf::from("/"), false, geometry)
    }

    /// A recording: a folder with `proc`, `sys` and `boot` in it, of a machine with base pages of 4 KiB.
    pub fn recorded(root: &Path) -> Source {
        Source::new(root.to_path_buf(), true, Geometry::four_kib())
    }

    fn new(root: PathBuf, is_recording: bool, geometry: Geometry) -> Source {
        Source {
            root,
            is_recording,
            geometry,
            held: OnceLock::new(),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Whether this is a recording: what only the kernel itself can answer is text there.
    pub fn is_recording(&self) -> bool {
        self.is_recording
    }

    /// What a recording has of pages that no process maps. `None` where the host itself can be asked.
    pub fn held(&self) -> Option<&Held> {
        self.held.get_or_init(|| if self.is_recording { Held::read(self) } else { None }).as_ref()
    }

    /// A path below the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The numbers of all processes, in order.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut pids: Vec<i32> = std::fs::read_dir(self.path("proc"))?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// A process's folder, held open: whatever is read from it is of this process, even when its number is
    /// given to another.
    pub fn process(&self, pid: i32) -> procfs::ProcResult<Process> {
        Process::new_with_root(self.path(&format!("proc/{pid}")))
    }

    /// Reads a file wholly into the buffer, which is emptied first.
    pub fn read_into(&self, mut file: impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        let read = file.read_to_end(buffer)?;
        self.count(1, read as u64);
        Ok(())
    }

    /// Reads a small text file below the root; `None` when it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        let mut buffer = Vec::new();
        self.read_into(File::open(self.path(path)).ok()?, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer).into_owned())
    }

    /// A reader that counts what is read through it.
    pub fn counted<R: Read>(&self, inner: R) -> Counted<'_, R> {
        Counted { source: self, inner }
    }

    /// Adds to what was read.
    pub fn count(&self, reads: u64, bytes: u64) {
        // Statistics: nothing is ordered by them.
        self.reads.fetch_add(reads, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Files and pieces read so far, and their bytes.
    pub fn counts(&self) -> (u64, u64) {
        // Statistics: nothing is ordered by them.
        (self.reads.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// See [`Source::counted`].
pub struct Counted<'a, R> {
    source: &'a Source,
    inner: R,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.source.count(1, read as u64);
        Ok(read)
    }
}
