//! Inodes: a file without its names, and what a file system implements for it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::access::Credentials;
use super::dentry::Dentry;
use super::directory::Listing;
use super::file::{File, FileOps};
use super::handle::{self, Handles};
use super::lease::Leases;
use super::locks::LockTable;
use super::minors::{self, Minors};
use super::notify::Watched;
use super::path::Path;
use super::stat::{DeviceId, FileType, Stat, Statfs, Timestamp};
use super::xattr::Xattrs;
use crate::errno::{Errno, Result};
use crate::namespaces::UserNamespace;
use crate::process;
use crate::random;
use crate::sync::{Mutex, Once, SpinLock};

/// A mounted file system: what all its inodes have in common. Lives as long as any of its inodes.
pub struct Superblock {
    /// The number of the (pretended) device that it is on.
    pub dev: DeviceId,
    /// The name of its type, as in `/proc/filesystems`.
    pub kind: &'static str,
    /// What the file system does itself.
    pub ops: Box<dyn SuperblockOps>,
    /// Mounts of it; when the last goes, `SuperblockOps::kill` is called.
    pub(super) mounts: AtomicU64,
    /// Files that are open for writing, through whichever mount.
    pub(super) writers: AtomicU64,
    next_ino: AtomicU64,
    /// A directory of it has moved to another one: what was below the root of a mount may be outside of it.
    pub(super) has_moved: AtomicBool,
    /// `MS_RDONLY` or nothing.
    flags: AtomicU32,
    /// The user namespace of who made it.
    user: Arc<UserNamespace>,
    /// The files that are found by handles.
    pub(super) handles: Handles,
    /// Part of each handle: numbers of files begin anew in each file system.
    pub(super) generation: u32,
    /// Held while a name goes from one directory to another: no directory moves but by whoever holds it.
    pub(super) renames: Mutex<()>,
}

/// The device numbers of file systems that users make.
static MINORS: Minors = Minors::new();

impl Drop for Superblock {
    fn drop(&mut self) {
        // No inode is left that had it, nor a mapping of one.
        if self.dev.minor >= minors::FIRST {
            MINORS.give_back(self.dev.minor);
        }
    }
}

/// What a file-system type implements once for each instance.
pub trait SuperblockOps: Any + Send + Sync {
    /// statfs(2), without flags and identifier.
    fn statfs(&self) -> Statfs;
    /// The magic number of the type, as statfs(2) has it. Never waits for anybody.
    fn magic(&self) -> u64 {
        self.statfs().magic
    }
    /// The options for `/proc/mounts`, each with a comma in front: `,size=1024k`; empty when there are none.
    fn options(&self) -> alloc::string::String {
        alloc::string::String::new()
    }
    /// New options by `mount -o remount`.
    fn remount(&self, _options: &str) -> Result<()> {
        Ok(())
    }
    /// The largest file there can be, bytes.
    fn most_bytes(&self) -> u64 {
        i64::MAX as u64
    }
    /// Is nothing in it a program, however it is mounted?
    fn without_programs(&self) -> bool {
        false
    }
    /// Do its files have extended attributes?
    fn keeps_xattrs(&self) -> bool {
        false
    }
    /// Are its files found by handles?
    fn has_handles(&self) -> bool {
        false
    }
    /// So many bytes of extended attributes come, or go. `ENOSPC` when they may not come.
    fn charge_xattr(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
    fn uncharge_xattr(&self, _bytes: u64) {}
    /// The last mount is gone and no file of it is open: let go of everything that refers back to itself.
    fn kill(&self) {}
}

impl Superblock {
    /// A file system of the kernel's own, of type `kind`, on a device number of its own: made once, and there for good.
    pub fn new(kind: &'static str, ops: impl SuperblockOps) -> Arc<Self> {
        // The first is that of shared memory without a file: a device and an inode number together are a futex's key.
        static NEXT: AtomicU32 = AtomicU32::new(crate::mm::anonymous::DEVICE as u32 + 1);
        // Ordering: only the numbers have to differ.
        let minor = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(minor < minors::FIRST, "more file systems of the kernel's own than numbers for them");
        Self::on(minor, kind, ops)
    }

    /// A file system that a user makes, as often as he likes. `EMFILE` when all device numbers are in use.
    pub fn mounted(kind: &'static str, ops: impl SuperblockOps) -> Result<Arc<Self>> {
        Ok(Self::on(MINORS.take().ok_or(Errno::EMFILE)?, kind, ops))
    }

    /// As Linux numbers file systems without a device: major 0.
    fn on(minor: u32, kind: &'static str, ops: impl SuperblockOps) -> Arc<Self> {
        Arc::new(Self {
            dev: DeviceId::new(0, minor),
            kind,
            ops: Box::new(ops),
            mounts: AtomicU64::new(0),
            writers: AtomicU64::new(0),
            next_ino: AtomicU64::new(1),
            has_moved: AtomicBool::new(false),
            flags: AtomicU32::new(0),
            user: process::try_current().map_or_else(
                || UserNamespace::initial().clone(),
                |thread| thread.credentials().user_namespace(),
            ),
            handles: Handles::default(),
            generation: random::number() as u32,
            renames: Mutex::new(()),
        })
    }

    /// `EPERM` unless the current thread may change its settings. Of the types that a user namespace may mount, all but these have one
    /// instance for many, whoever happened to be the first to need it.
    pub fn check_may_change(&self) -> Result<()> {
        const OF_ONE_MOUNTER: [&str; 2] = ["tmpfs", "ramfs"];
        let may = |thread: process::Current| {
            let nested = thread.has_user_namespace();
            (!nested || OF_ONE_MOUNTER.contains(&self.kind))
                && thread.credentials().capable_in(&self.user, process::CAP_SYS_ADMIN)
        };
        if process::try_current().is_none_or(may) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// A new mount of it shall be read-only: so is all of it, or the mount alone for who may not decide that. Gives the mount's flags.
    pub fn begin_read_only(&self) -> u32 {
        if self.check_may_change().is_ok() {
            self.make_read_only();
            return 0;
        }
        linux_raw_sys::general::MS_RDONLY
    }

    /// Flags that hold for all mounts of it: `MS_RDONLY` or nothing.
    pub fn flags(&self) -> u32 {
        // Ordering: a flag word of its own.
        self.flags.load(Ordering::Relaxed)
    }

    /// Nothing may be changed in it from now on.
    pub fn make_read_only(&self) {
        self.set_flags(linux_raw_sys::general::MS_RDONLY);
    }

    pub(super) fn set_flags(&self, flags: u32) {
        // Ordering: as above.
        self.flags.store(flags, Ordering::Relaxed);
    }

    /// The file system's own data, when it is a `T`.
    pub fn ops_as<T: SuperblockOps>(&self) -> Option<&T> {
        let any: &dyn Any = &*self.ops;
        any.downcast_ref()
    }

    /// The next unused inode number: 1, 2, ...
    pub fn allocate_ino(&self) -> u64 {
        // Ordering: only the numbers have to differ.
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }
}

/// What chmod, chown, utimensat, link and writes change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// Permission bits with set-user-ID, set-group-ID and sticky; no type bits.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub nlink: u32,
    /// Last read.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

impl Attributes {
    /// Attributes of a new file: all times now, one name.
    pub fn new(permissions: u32, uid: u32, gid: u32) -> Self {
        let now = super::caller::now();
        Self { permissions, uid, gid, nlink: 1, atime: now, mtime: now, ctime: now, btime: now }
    }
}

/// A change of mode, owner or times; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    /// New permission bits (07777).
    pub permissions: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New time of last read.
    pub atime: Option<Timestamp>,
    /// New time of last change.
    pub mtime: Option<Timestamp>,
}

/// What a new directory entry is to be.
#[derive(Clone, Copy, Debug)]
pub enum NewNode<'a> {
    /// An empty regular file.
    Regular,
    /// An empty directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
    /// A character device.
    CharDevice(DeviceId),
    /// A block device.
    BlockDevice(DeviceId),
    /// A named pipe.
    Fifo,
    /// The address of a Unix socket.
    Socket,
}

impl NewNode<'_> {
    /// Its file type.
    pub fn file_type(&self) -> FileType {
        match self {
            Self::Regular => FileType::Regular,
            Self::Directory => FileType::Directory,
            Self::Symlink(_) => FileType::Symlink,
            Self::CharDevice(_) => FileType::CharDevice,
            Self::BlockDevice(_) => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
        }
    }
}

/// One entry as `readdir` reports it.
#[derive(Clone, Copy, Debug)]
pub struct Dirent<'a> {
    /// Number of the inode.
    pub ino: u64,
    /// Where to go on after this entry: greater than this entry's own offset, at least 3.
    pub next_offset: u64,
    /// Type.
    pub kind: FileType,
    /// Name.
    pub name: &'a [u8],
}

/// A file without its names.
pub struct Inode {
    /// Its number in the file system.
    pub ino: u64,
    /// Its type, for ever.
    pub kind: FileType,
    /// The device, for a device node.
    pub rdev: DeviceId,
    /// Its file system.
    pub superblock: Arc<Superblock>,
    /// What the file system does for it.
    pub ops: Box<dyn InodeOps>,
    attributes: SpinLock<Attributes>,
    /// Serialises writers of a regular file (write, truncate, fallocate) and changes of a directory. Outside
    /// of all other locks of a file system; a page fault does not take it, so user memory may be touched with
    /// it held.
    pub lock: Mutex<()>,
    /// flock(2) and fcntl(2) locks.
    pub locks: LockTable,
    /// fcntl(2) leases.
    pub leases: Leases,
    /// For a named pipe the open pipe, for a socket node the listening socket: whatever the owner of the type
    /// keeps here.
    pub attachment: SpinLock<Option<Arc<dyn Any + Send + Sync>>>,
    /// Who wants to hear of what happens to it.
    pub watched: Watched,
    /// Extended attributes, once it has had some.
    pub(super) xattrs: Once<Box<Xattrs>>,
    /// Above 0: open files that write. Below 0: programs that run from it, which keeps writers out.
    write_access: AtomicI32,
    /// An unnamed file (`O_TMPFILE`) that linkat(2) may give a name.
    may_link: AtomicBool,
    /// It is in the table of its file system's handles.
    has_handle: AtomicBool,
}

impl Inode {
    /// A new inode with the next number of its file system.
    pub fn new(
        superblock: &Arc<Superblock>,
        kind: FileType,
        attributes: Attributes,
        ops: impl InodeOps,
    ) -> Arc<Self> {
        Self::with_number(superblock, superblock.allocate_ino(), kind, DeviceId::default(), attributes, ops)
    }

    /// A new inode with a number and a device of the caller's choice.
    pub fn with_number(
        superblock: &Arc<Superblock>,
        ino: u64,
        kind: FileType,
        rdev: DeviceId,
        attributes: Attributes,
        ops: impl InodeOps,
    ) -> Arc<Self> {
        Self::boxed(superblock, ino, kind, rdev, attributes, Box::new(ops))
    }

    /// As `with_number`, with operations whose type is chosen at run time.
    pub fn boxed(
        superblock: &Arc<Superblock>,
        ino: u64,
        kind: FileType,
        rdev: DeviceId,
        attributes: Attributes,
        ops: Box<dyn InodeOps>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ino,
            kind,
            rdev,
            superblock: superblock.clone(),
            ops,
            attributes: SpinLock::new(attributes),
            lock: Mutex::new(()),
            locks: LockTable::new(),
            leases: Leases::default(),
            attachment: SpinLock::new(None),
            watched: Watched::default(),
            xattrs: Once::new(),
            write_access: AtomicI32::new(0),
            may_link: AtomicBool::new(false),
            has_handle: AtomicBool::new(false),
        })
    }

    /// The file system's own data for this inode, when it is a `T`.
    pub fn ops_as<T: InodeOps>(&self) -> Option<&T> {
        let any: &dyn Any = &*self.ops;
        any.downcast_ref()
    }

    /// A copy of the attributes.
    pub fn attributes(&self) -> Attributes {
        *self.attributes.lock()
    }

    /// Changes attributes in one step; `change` must not block.
    pub fn update<R>(&self, change: impl FnOnce(&mut Attributes) -> R) -> R {
        change(&mut self.attributes.lock())
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Everything that stat(2) reports.
    pub fn stat(&self) -> Stat {
        let a = self.attributes();
        let mut stat = Stat {
            dev: self.superblock.dev,
            ino: self.ino,
            nlink: a.nlink,
            mode: self.kind.mode_bits() | a.permissions,
            uid: a.uid,
            gid: a.gid,
            rdev: self.rdev,
            size: 0,
            block_size: 4096,
            blocks: 0,
            atime: a.atime,
            mtime: a.mtime,
            ctime: a.ctime,
            btime: a.btime,
        };
        self.ops.stat(self, &mut stat);
        stat
    }

    /// It is in the table of its file system's handles from now on.
    pub(super) fn set_has_handle(&self) {
        self.has_handle.store(true, Ordering::SeqCst);
    }

    /// One more open file that writes; `ETXTBSY` while a program runs from it.
    pub fn begin_writing(&self) -> Result<()> {
        let more = |count: i32| (count >= 0).then_some(count + 1);
        self.change_access(more)
    }

    /// Open files that write.
    pub fn writers(&self) -> u32 {
        self.write_access.load(Ordering::SeqCst).max(0) as u32
    }

    /// One more open file that writes, of a file that has one already.
    pub(super) fn add_writer(&self) {
        self.write_access.fetch_add(1, Ordering::SeqCst);
    }

    /// One fewer.
    pub fn end_writing(&self) {
        self.write_access.fetch_sub(1, Ordering::SeqCst);
    }

    /// A program begins to run from it: no one may open it for writing; `ETXTBSY` when someone has.
    pub fn deny_writing(&self) -> Result<()> {
        let fewer = |count: i32| (count <= 0).then_some(count - 1);
        self.change_access(fewer)
    }

    /// Undoes one `deny_writing`.
    pub fn allow_writing(&self) {
        self.write_access.fetch_add(1, Ordering::SeqCst);
    }

    fn change_access(&self, change: impl Fn(i32) -> Option<i32>) -> Result<()> {
        let changed = self.write_access.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        changed.map(drop).map_err(|_| Errno::ETXTBSY)
    }

    /// May linkat(2) give this unnamed file a name?
    pub fn may_link(&self) -> bool {
        self.may_link.load(Ordering::SeqCst)
    }

    /// Lets linkat(2) give this unnamed file a name.
    pub(super) fn allow_link(&self) {
        self.may_link.store(true, Ordering::SeqCst);
    }

    /// It had its chance: when its last name goes, it gets no further one.
    pub(super) fn forbid_link(&self) {
        self.may_link.store(false, Ordering::SeqCst);
    }

    /// The content changed now.
    pub fn touch_modified(&self) {
        let now = super::caller::now();
        self.update(|a| {
            a.mtime = now;
            a.ctime = now;
        });
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        if *self.has_handle.get_mut() {
            handle::forget(self);
        }
    }
}

/// What a file system implements for its inodes. The defaults are right for an inode that does not support
/// the call.
///
/// Calls that change a directory come with that directory's `Inode::lock` held and permissions checked; names
/// are 1 to 255 bytes, without `/`, neither `.` nor `..`.
#[allow(unused_variables)]
pub trait InodeOps: Any + Send + Sync {
    /// The entry `name` of the directory `dir`. A file system whose entries come and go by themselves makes
    /// them through [`Dentry::child`]; one with a tree in memory returns its own.
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        Err(Errno::ENOTDIR)
    }

    /// Reports the directory's entries but `.` and `..` from offset `from` (2 is the first) to `emit`, until
    /// that returns false. No entry that exists throughout may be missed or repeated, whatever else happens
    /// to the directory.
    fn readdir(&self, dir: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        Err(Errno::ENOTDIR)
    }

    /// Creates an entry; `EEXIST` when there is one.
    fn create(
        &self,
        dir: &Arc<Dentry>,
        name: &[u8],
        node: NewNode,
        permissions: u32,
        credentials: &Credentials,
    ) -> Result<Arc<Dentry>> {
        Err(Errno::EPERM)
    }

    /// An unnamed regular file in this directory (`O_TMPFILE`).
    fn tmpfile(&self, dir: &Arc<Dentry>, permissions: u32, credentials: &Credentials) -> Result<Arc<Inode>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// A further name for `inode`, which is of the same file system and no directory.
    fn link(&self, dir: &Arc<Dentry>, name: &[u8], inode: &Arc<Inode>) -> Result<()> {
        Err(Errno::EPERM)
    }

    /// Removes the name `victim` of a file that is no directory.
    fn unlink(&self, dir: &Arc<Dentry>, victim: &Arc<Dentry>) -> Result<()> {
        Err(Errno::EPERM)
    }

    /// Removes the directory `victim`; `ENOTEMPTY` when it has entries.
    fn rmdir(&self, dir: &Arc<Dentry>, victim: &Arc<Dentry>) -> Result<()> {
        Err(Errno::EPERM)
    }

    /// Moves `entry` from here to `new_dir` under `new_name`, replacing `target`, or exchanging it when
    /// `exchange`. Both directories are of this file system and locked, types and permissions are checked;
    /// emptiness of a directory that is replaced is not.
    fn rename(
        &self,
        dir: &Arc<Dentry>,
        entry: &Arc<Dentry>,
        new_dir: &Arc<Dentry>,
        new_name: &[u8],
        target: Option<&Arc<Dentry>>,
        exchange: bool,
    ) -> Result<()> {
        Err(Errno::EPERM)
    }

    /// The target of a symbolic link as text.
    fn readlink(&self, inode: &Inode) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }

    /// Where the link leads when it is not by its text (`/proc/PID/fd/3`, `exe`, `cwd`, `root`).
    fn follow(&self) -> Option<Result<Path>> {
        None
    }

    /// The operations of a newly opened regular file or special file; directories, devices, pipes are opened
    /// by the VFS.
    fn open(&self, path: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ENXIO)
    }

    /// What lists an opened directory, where each open file has something of its own for that; else `readdir` does.
    fn open_directory(&self) -> Result<Option<Box<dyn Listing>>> {
        Ok(None)
    }

    /// Called when `file` is complete, before the descriptor exists, to let the file system keep or refuse
    /// it.
    fn opened(&self, file: &File) -> Result<()> {
        Ok(())
    }

    /// Fills in size and blocks, or anything that differs from the attributes.
    fn stat(&self, inode: &Inode, stat: &mut Stat) {}

    /// May the attributes be changed this way? Permissions are checked, the change itself is done by the
    /// caller.
    fn set_attributes(&self, inode: &Inode, change: &SetAttributes) -> Result<()> {
        Ok(())
    }

    /// Sets the size of a regular file; called with `Inode::lock` held.
    fn truncate(&self, inode: &Inode, size: u64) -> Result<()> {
        Err(Errno::EINVAL)
    }
}
