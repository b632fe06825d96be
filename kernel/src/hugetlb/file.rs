//! A file of huge pages as the rest of the kernel sees it: reading, truncation, holes, seals, mappings.

use alloc::sync::Arc;
use core::fmt::Write as _;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use ::hugetlb::{Chunk, FallocateMode, PageSize};
use linux_raw_sys::general as abi;

use super::machine::Kernel;
use super::{errno, system};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::inode::{Attributes, Inode, InodeOps, Superblock, SuperblockOps};
use crate::fs::mount::Mount;
use crate::fs::path::Path;
use crate::fs::seals::{self, Seals};
use crate::fs::{DeviceId, File, FileOps, FileType, Sink, Source, Stat, Statfs, attributes, caller};
use crate::memory::PhysAddr;
use crate::memory::fallible::Text;
use crate::memory::{broken, reserve};
use crate::mm::backing::Backing;
use crate::sync::Once;

type Content = ::hugetlb::File<Kernel>;

/// Bytes of the kernel's memory that a file takes, about: the library's file, and the mutexes that it makes with its first fault.
pub const HUGE_FILE: usize = 10 << 10;

/// A file of huge pages.
pub struct HugeFile {
    content: Arc<Content>,
    /// Of the inode that it is opened through; of the kernel-internal mount for memory without a file.
    device: AtomicU64,
    inode: AtomicU64,
    seals: Arc<Seals>,
    /// Shared mappings through which stores reach it, or could after mprotect(2).
    writable_mappings: AtomicU64,
}

impl HugeFile {
    /// Around the library's file, with seals to begin with.
    pub(super) fn new(content: Arc<Content>, seals: u32) -> Arc<Self> {
        let internal = internal(content.page_size());
        Arc::new(Self {
            device: AtomicU64::new(internal.superblock.dev.encode()),
            inode: AtomicU64::new(content.id()),
            content,
            seals: Seals::new(seals),
            writable_mappings: AtomicU64::new(0),
        })
    }

    /// Memory without a file, of `len` bytes in pages of `size`: for MAP_ANONYMOUS, whose mapping promises the pages.
    pub fn anonymous(size: u64, len: u64) -> Result<Arc<Self>> {
        let size = PageSize::from_bytes(size).ok_or(Errno::EINVAL)?;
        let _library = reserve::library();
        let content = system().anonymous_file(size, len).map_err(errno)?;
        Ok(Self::new(content, abi::F_SEAL_SEAL))
    }

    /// As [`HugeFile::anonymous`], for a SysV segment: the pages are promised now unless told not to.
    pub fn segment(size: u64, len: u64, no_reserve: bool) -> Result<Arc<Self>> {
        let _library = reserve::library();
        let file = Self::anonymous(size, len)?;
        if !no_reserve {
            file.content.reserve(0..len).map_err(errno)?;
        }
        Ok(file)
    }

    /// The library's file.
    pub(super) fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u64 {
        self.content.page_size().bytes()
    }

    /// Bytes that it has in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.content.statistics().pages * self.page_size()
    }

    /// Device and inode number.
    pub fn id(&self) -> (u64, u64) {
        // Relaxed: set before the file can be mapped.
        (self.device.load(Ordering::Relaxed), self.inode.load(Ordering::Relaxed))
    }

    /// Takes its numbers from the inode that it belongs to.
    pub(super) fn identify(&self, inode: &Inode) {
        // Relaxed: as above.
        self.device.store(inode.superblock.dev.encode(), Ordering::Relaxed);
        self.inode.store(inode.ino, Ordering::Relaxed);
    }

    /// One more (or one fewer) shared mapping through which stores reach it.
    pub(super) fn count_writable(&self, more: bool) {
        if more {
            self.writable_mappings.fetch_add(1, Ordering::SeqCst);
        } else {
            self.writable_mappings.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Punches out what is in the bytes `range`, for MADV_REMOVE on memory without a file.
    pub fn punch(&self, range: Range<u64>) -> Result<()> {
        self.allocate(FallocateMode::PunchHole, range.start, range.end - range.start)
    }

    fn allocate(&self, mode: FallocateMode, offset: u64, len: u64) -> Result<()> {
        let _library = reserve::library();
        let interrupted = || {
            crate::sched::cond_resched();
            crate::process::current().signal_pending()
        };
        self.content.fallocate(mode, offset, len, interrupted).map_err(errno)
    }

    /// Sets the size; the inode is locked.
    pub(super) fn resize(&self, size: u64) -> Result<()> {
        let _library = reserve::library();
        if !size.is_multiple_of(self.page_size()) {
            return Err(Errno::EINVAL);
        }
        // Asked where the size cannot change: a new mapping makes the file longer, too.
        let mut sealed = Ok(());
        let may = |old| {
            sealed = self.seals.check_resize(old, size);
            sealed.is_ok()
        };
        self.content.truncate_if(size, may).map_err(errno)?;
        sealed
    }

    fn stat(&self, stat: &mut Stat) {
        let statistics = self.content.statistics();
        stat.size = statistics.size;
        stat.block_size = self.page_size() as u32;
        stat.blocks = statistics.pages * (self.page_size() / 512);
    }
}

/// How many bytes read(2) copies at a time.
const STEP: u64 = 256 << 10;

impl FileOps for HugeFile {
    fn seekable(&self) -> bool {
        true
    }

    fn kernel_bytes(&self) -> u64 {
        HUGE_FILE as u64
    }

    fn read_at(&self, file: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        let _library = reserve::library();
        let mut done = 0;
        while sink.remaining() > 0 {
            let moved = match self.content.read(offset + done as u64, sink.remaining() as u64) {
                Chunk::End => break,
                // Small steps, so that other threads get their turn.
                Chunk::Hole(len) => sink.write_zeroes(len.min(STEP) as usize),
                Chunk::Data(bytes) => {
                    let (start, mut len) = (PhysAddr(bytes.address().0), bytes.length().min(STEP));
                    if bytes.is_broken() {
                        len = broken::whole_bytes(start, len);
                    }
                    if len == 0 {
                        if done == 0 {
                            return Err(Errno::EIO);
                        }
                        break;
                    }
                    let (pointer, len) = (start.as_ptr::<u8>(), len as usize);
                    // SAFETY: the page stays allocated as long as `bytes` lives, and programs may store to it at the same time.
                    unsafe { sink.write_raw(pointer, len) }
                }
            };
            match moved {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            crate::sched::cond_resched();
        }
        attributes::file_accessed(file);
        Ok(done)
    }

    fn write_at(&self, _file: &File, _offset: &mut u64, _source: &mut Source) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    fn seals(&self) -> Option<&Arc<Seals>> {
        Some(&self.seals)
    }

    fn mmap(&self, file: &Arc<File>, offset: u64, _len: u64) -> Result<Backing> {
        if !offset.is_multiple_of(self.page_size()) {
            return Err(Errno::EINVAL);
        }
        attributes::file_accessed(file);
        file.ops_arc().map(Backing::Huge).ok_or(Errno::ENODEV)
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        let inode = file.inode();
        let _writers = inode.lock.lock();
        self.resize(size)?;
        inode.touch_modified();
        Ok(())
    }

    fn fallocate(&self, file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
        let mode = FallocateMode::from_flags(mode).map_err(errno)?;
        let inode = file.inode();
        let _writers = inode.lock.lock();
        if matches!(mode, FallocateMode::PunchHole) {
            self.seals.check_write()?;
        } else {
            let end = offset.saturating_add(len);
            attributes::check_size_limit(inode, end)?;
            let size = self.content.statistics().size;
            self.seals.check_resize(size, end.max(size))?;
        }
        self.allocate(mode, offset, len)?;
        inode.touch_modified();
        Ok(())
    }

    fn spliceable(&self) -> bool {
        false
    }

    fn cached_pages(&self, _: Range<u64>) -> Result<u64> {
        Err(Errno::EOPNOTSUPP)
    }

    fn sync(&self, _file: &File) -> Result<()> {
        // Memory is where the file lives.
        Ok(())
    }

    fn fcntl(&self, file: &File, command: u32, argument: usize) -> Result<usize> {
        let has_writable = || self.writable_mappings.load(Ordering::SeqCst) != 0;
        self.seals.fcntl(file, command, argument, has_writable)
    }

    fn describe(&self, _file: &File, out: &mut Text) {
        let _ = writeln!(out, "size:\t{}", self.content.statistics().size);
    }
}

/// What the inode of a file of huge pages holds.
pub(super) struct Node {
    file: Arc<HugeFile>,
    _charge: Option<crate::fs::tree::InodeCharge>,
}

impl Node {
    pub(super) fn new(file: Arc<HugeFile>, charge: Option<crate::fs::tree::InodeCharge>) -> Self {
        Self { file, _charge: charge }
    }
}

impl InodeOps for Node {
    fn open(&self, path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.file.identify(path.inode());
        Ok(self.file.clone())
    }

    fn stat(&self, _inode: &Inode, stat: &mut Stat) {
        self.file.stat(stat);
    }

    fn truncate(&self, _inode: &Inode, size: u64) -> Result<()> {
        self.file.resize(size)
    }
}

struct NoTree;
impl InodeOps for NoTree {}

/// The mount that nobody sees, for files of one page size without a name.
struct Internal(PageSize);

impl SuperblockOps for Internal {
    fn statfs(&self) -> Statfs {
        let block_size = self.0.bytes();
        Statfs { magic: ::hugetlb::HUGETLBFS_MAGIC, block_size, name_max: 255, ..Statfs::default() }
    }
}

fn internal(size: PageSize) -> &'static Arc<Mount> {
    static MOUNTS: [Once<Arc<Mount>>; 2] = [const { Once::new() }; 2];
    let slot = usize::from(matches!(size, PageSize::Size1G));
    MOUNTS[slot].call_once(|| {
        let superblock = Superblock::new("hugetlbfs", Internal(size));
        let root = Inode::new(&superblock, FileType::Directory, Attributes::new(0o755, 0, 0), NoTree);
        Mount::new(Dentry::root(root), "hugetlbfs", 0)
    })
}

/// memfd_create(2) with MFD_HUGETLB; `name` without the prefix.
pub fn memfd(name: &[u8], flags: u32) -> Result<Arc<File>> {
    let bits = flags >> abi::MFD_HUGE_SHIFT & abi::MFD_HUGE_MASK;
    let size = match bits {
        0 => system().default_size(),
        _ => PageSize::from_bytes(1u64.checked_shl(bits).unwrap_or(0)).ok_or(Errno::ENODEV)?,
    };
    let (mode, seals) = seals::of_memfd(flags);
    let content = system().anonymous_file(size, 0).map_err(errno)?;
    let file = HugeFile::new(content, seals);
    let home = internal(size);
    let (uid, gid) = caller::current_ids();
    let attributes = Attributes { nlink: 0, ..Attributes::new(mode, uid, gid) };
    let superblock = &home.superblock;
    // Memory without a file is on the same device: one sequence for both, or strangers' futexes have one key.
    let ino = file.content.id();
    let node = Node::new(file.clone(), None);
    let inode = Inode::with_number(superblock, ino, FileType::Regular, DeviceId::default(), attributes, node);
    file.identify(&inode);
    let mut label = b"/memfd:".to_vec();
    label.extend_from_slice(name);
    let dentry = Dentry::detached(&label, inode);
    dentry.mark_removed();
    Ok(File::new(Path { mount: home.clone(), dentry }, file, abi::O_RDWR | abi::O_LARGEFILE))
}
