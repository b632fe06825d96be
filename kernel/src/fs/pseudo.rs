//! Files whose content the kernel makes up: the common ground of procfs and sysfs.
//!
//! A [`Directory`] lists what was registered, in that order, and nothing is ever taken out. A file is a [`Text`]: reading at offset 0
//! composes it anew, further reads of the same open file go on in what was composed, so that every reader sees one whole text.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::dentry::Dentry;
use super::file::{File, FileOps, Whence};
use super::inode::{Attributes, Dirent, Inode, InodeOps, SetAttributes, Superblock};
use super::iobuf::{Sink, Source};
use super::path::Path;
use super::stat::{DeviceId, FileType};
use crate::errno::{Errno, Result};
use crate::memory::{PAGE_SIZE, fallible};
use crate::sync::{Mutex, SpinLock};

/// The longest text that one write may bring.
const MAX_WRITE: usize = 64 * 1024;

/// What such a file contains.
pub trait Text: Send + Sync {
    /// Composes the content.
    fn show(&self) -> Result<Vec<u8>>;

    /// Takes what was written, all of it.
    fn store(&self, text: &[u8]) -> Result<()> {
        let _ = text;
        Err(Errno::EIO)
    }
}

/// A file that is read through a function, and written through another.
pub struct Functions<R, W> {
    /// Composes the content.
    pub show: R,
    /// Takes what was written.
    pub store: W,
}

impl<R, W> Text for Functions<R, W>
where
    R: Fn() -> Result<String> + Send + Sync,
    W: Fn(&str) -> Result<()> + Send + Sync,
{
    fn show(&self) -> Result<Vec<u8>> {
        (self.show)().map(String::into_bytes)
    }

    fn store(&self, text: &[u8]) -> Result<()> {
        (self.store)(core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?)
    }
}

/// What an open file keeps of a text between reads: it is made at the first one, and anew at each from the beginning.
pub struct KeptText {
    content: Mutex<Option<Vec<u8>>>,
    /// Bytes that the content takes, for those who must not sleep.
    size: AtomicUsize,
}

impl KeptText {
    /// Nothing yet. Its lock is of the caller's class: what is locked while a text is made differs.
    #[track_caller]
    pub fn new() -> Self {
        Self { content: Mutex::new(None), size: AtomicUsize::new(0) }
    }

    /// Reads what is behind `offset`.
    pub fn read(
        &self,
        offset: u64,
        sink: &mut Sink,
        make: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<usize> {
        let mut content = self.content.lock();
        if offset == 0 || content.is_none() {
            *content = Some(make()?);
        }
        let bytes = content.as_deref().unwrap_or_default();
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let is_over = rest.is_empty();
        let result = if is_over { Ok(0) } else { sink.write(rest) };
        // A reader that has met the end rarely comes back, and may stay open for long.
        if is_over && content.as_ref().is_some_and(|content| content.capacity() > PAGE_SIZE) {
            *content = None;
        }
        // Relaxed: a statistic.
        self.size.store(content.as_ref().map_or(0, Vec::capacity), Ordering::Relaxed);
        result
    }

    /// Bytes of the kernel's memory that it takes.
    pub fn kernel_bytes(&self) -> u64 {
        // Relaxed: as above.
        self.size.load(Ordering::Relaxed) as u64
    }
}

/// An open file with such content.
pub struct TextFile {
    text: Arc<dyn Text>,
    kept: KeptText,
}

impl TextFile {
    /// For one open file.
    pub fn new(text: Arc<dyn Text>) -> Arc<Self> {
        Arc::new(Self { text, kept: KeptText::new() })
    }
}

impl FileOps for TextFile {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        self.kept.read(offset, sink, || self.text.show())
    }

    fn kernel_bytes(&self) -> u64 {
        self.kept.kernel_bytes()
    }

    fn write_at(&self, _: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        let len = source.remaining();
        if len > MAX_WRITE {
            return Err(Errno::EINVAL);
        }
        let mut text = fallible::filled(0, len)?;
        source.read_exact(&mut text)?;
        self.text.store(&text)?;
        Ok(len)
    }

    fn seek(&self, _: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        text_seek(whence, offset, position)
    }

    fn truncate(&self, _: &File, _: u64) -> Result<()> {
        Ok(())
    }
}

/// lseek(2) in a file whose end is not known before it was read.
pub fn text_seek(whence: Whence, offset: i64, position: u64) -> Result<u64> {
    let base = match whence {
        Whence::Start => 0,
        Whence::Current => position as i64,
        _ => return Err(Errno::EINVAL),
    };
    let at = base.checked_add(offset).ok_or(Errno::EINVAL)?;
    u64::try_from(at).map_err(|_| Errno::EINVAL)
}

/// The inode of a file that is registered.
pub struct TextInode(pub Arc<dyn Text>);

impl InodeOps for TextInode {
    fn open(&self, _: &Path, _: u32) -> Result<Arc<dyn FileOps>> {
        Ok(TextFile::new(self.0.clone()))
    }

    fn set_attributes(&self, _: &Inode, change: &SetAttributes) -> Result<()> {
        if change.uid.is_some() || change.gid.is_some() { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Opening with `O_TRUNC` changes nothing: the content is not the writer's.
    fn truncate(&self, _: &Inode, _: u64) -> Result<()> {
        Ok(())
    }
}

/// A symbolic link whose text is composed when it is read.
pub struct LinkInode<F>(pub F);

impl<F: Fn() -> Result<Vec<u8>> + Send + Sync + 'static> InodeOps for LinkInode<F> {
    fn readlink(&self, _: &Inode) -> Result<Vec<u8>> {
        (self.0)()
    }
}

/// What a name of a directory stands for.
#[derive(Clone)]
enum Entry {
    Directory(Arc<Directory>),
    Inode(Arc<Inode>),
}

struct Named {
    name: Box<[u8]>,
    ino: u64,
    kind: FileType,
    entry: Entry,
}

/// A directory of registered entries.
pub struct Directory {
    ino: u64,
    superblock: Arc<Superblock>,
    entries: SpinLock<Vec<Named>>,
}

/// The first offset of entries: 0 and 1 are `.` and `..`.
const FIRST_OFFSET: u64 = 2;

impl Directory {
    /// An empty directory.
    pub fn new(superblock: &Arc<Superblock>) -> Arc<Self> {
        Arc::new(Self {
            ino: superblock.allocate_ino(),
            superblock: superblock.clone(),
            entries: SpinLock::growing(Vec::new()),
        })
    }

    /// An inode for it.
    pub fn inode(self: &Arc<Self>) -> Arc<Inode> {
        let attributes = Attributes { nlink: 2, ..Attributes::new(0o555, 0, 0) };
        Inode::with_number(
            &self.superblock,
            self.ino,
            FileType::Directory,
            DeviceId::default(),
            attributes,
            DirectoryInode(self.clone()),
        )
    }

    fn find(&self, name: &[u8]) -> Option<Entry> {
        self.entries.lock().iter().find(|e| *e.name == *name).map(|e| e.entry.clone())
    }

    /// The directory `name` in here, made when there is none. `ENOTDIR` when the name is taken by something else.
    pub fn subdirectory(self: &Arc<Self>, name: &str) -> Result<Arc<Directory>> {
        match self.find(name.as_bytes()) {
            Some(Entry::Directory(found)) => Ok(found),
            Some(_) => Err(Errno::ENOTDIR),
            None => {
                let new = Directory::new(&self.superblock);
                self.add(name, new.ino, FileType::Directory, Entry::Directory(new.clone()))?;
                Ok(new)
            }
        }
    }

    /// Registers a file at `path`, with the directories above it. `EEXIST` when the name is taken.
    pub fn register(self: &Arc<Self>, path: &str, permissions: u32, text: Arc<dyn Text>) -> Result<()> {
        self.register_inode(path, FileType::Regular, permissions, TextInode(text))
    }

    /// Registers a symbolic link to a fixed target.
    pub fn register_link(self: &Arc<Self>, path: &str, target: &'static str) -> Result<()> {
        let ops = LinkInode(move || Ok(target.as_bytes().to_vec()));
        self.register_inode(path, FileType::Symlink, 0o777, ops)
    }

    /// Registers anything at `path`.
    pub fn register_inode(
        self: &Arc<Self>,
        path: &str,
        kind: FileType,
        permissions: u32,
        ops: impl InodeOps,
    ) -> Result<()> {
        let mut directory = self.clone();
        let mut parts = path.split('/').filter(|p| !p.is_empty()).peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_some() {
                directory = directory.subdirectory(part)?;
                continue;
            }
            let attributes = Attributes::new(permissions, 0, 0);
            let inode = Inode::new(&self.superblock, kind, attributes, ops);
            return directory.add(part, inode.ino, kind, Entry::Inode(inode));
        }
        Err(Errno::EINVAL)
    }

    fn add(&self, name: &str, ino: u64, kind: FileType, entry: Entry) -> Result<()> {
        let new = Named { name: name.as_bytes().into(), ino, kind, entry };
        let mut entries = self.entries.lock();
        if entries.iter().any(|e| e.name == new.name) {
            drop(entries);
            return Err(Errno::EEXIST);
        }
        entries.push(new);
        Ok(())
    }

    /// The entry `name` as a dentry of `dir`.
    pub fn lookup(self: &Arc<Self>, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        let entry = self.find(name).ok_or(Errno::ENOENT)?;
        dir.child(
            name,
            |_| true,
            || {
                Ok(match entry {
                    Entry::Directory(directory) => directory.inode(),
                    Entry::Inode(inode) => inode,
                })
            },
        )
    }

    /// Reports entries from offset `from` on. True when `emit` took them all.
    pub fn list(&self, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> bool {
        let mut index = from.saturating_sub(FIRST_OFFSET) as usize;
        loop {
            // `emit` may touch user memory: not under the lock.
            let (name, ino, kind) = {
                let entries = self.entries.lock();
                let Some(entry) = entries.get(index) else { return true };
                (entry.name.clone(), entry.ino, entry.kind)
            };
            index += 1;
            let next_offset = index as u64 + FIRST_OFFSET;
            if !emit(Dirent { ino, next_offset, kind, name: &name }) {
                return false;
            }
        }
    }
}

/// Is it a directory in which nothing was registered, there to be mounted on?
pub fn is_for_mounts(inode: &Inode) -> bool {
    inode.ops_as::<DirectoryInode>().is_some_and(|directory| directory.0.entries.lock().is_empty())
}

/// The inode of a [`Directory`].
pub struct DirectoryInode(pub Arc<Directory>);

impl InodeOps for DirectoryInode {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        self.0.lookup(dir, name)
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        self.0.list(from, emit);
        Ok(())
    }
}
