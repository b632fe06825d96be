//! Opening files: by path, by place, without a name.

use alloc::boxed::Box;
use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::access::{self, Credentials};
use super::dentry::Dentry;
use super::directory::DirectoryFile;
use super::file::{File, FileOps};
use super::inode::{Inode, NewNode};
use super::lease;
use super::path::{Last, Path, Start, Step, Walk};
use super::stat::FileType;
use super::{device, mount, notify, pipe};
use crate::errno::{Errno, Result};

/// The flags that open(2) knows; others are ignored.
pub const KNOWN_FLAGS: u32 = abi::O_ACCMODE
    | abi::O_CREAT
    | abi::O_EXCL
    | abi::O_NOCTTY
    | abi::O_TRUNC
    | abi::O_APPEND
    | abi::O_NONBLOCK
    | abi::O_SYNC
    | abi::O_DSYNC
    | abi::FASYNC
    | abi::O_DIRECT
    | abi::O_LARGEFILE
    | abi::O_DIRECTORY
    | abi::O_NOFOLLOW
    | abi::O_NOATIME
    | abi::O_CLOEXEC
    | abi::O_PATH
    | abi::O_TMPFILE;
/// `O_TMPFILE` without the `O_DIRECTORY` that it contains.
const TMPFILE_BIT: u32 = abi::O_TMPFILE & !abi::O_DIRECTORY;

/// A reference to a place (`O_PATH`): nothing can be done with it but what looks at the place.
struct PlaceOnly;
impl FileOps for PlaceOnly {}

/// Checks combinations of flags, and clears those that do not count.
pub fn check_flags(flags: u32) -> Result<u32> {
    let mut flags = flags & KNOWN_FLAGS;
    if flags & abi::O_PATH != 0 {
        flags &= abi::O_PATH | abi::O_DIRECTORY | abi::O_NOFOLLOW | abi::O_CLOEXEC;
    }
    if flags & TMPFILE_BIT != 0 {
        let writes = flags & abi::O_ACCMODE != abi::O_RDONLY;
        if flags & abi::O_DIRECTORY == 0 || flags & abi::O_CREAT != 0 || !writes {
            return Err(Errno::EINVAL);
        }
    } else if flags & abi::O_CREAT != 0 && flags & abi::O_DIRECTORY != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(flags)
}

/// open(2). `flags` have passed `check_flags`; `mode` are the permissions of a new file, umask already taken
/// off.
pub fn open(start: &Start, path: &[u8], flags: u32, mode: u32) -> Result<Arc<File>> {
    if flags & TMPFILE_BIT != 0 {
        let dir = super::path::resolve(start, path, flags & abi::O_NOFOLLOW == 0)?;
        return open_tmpfile(start, &dir, flags, mode);
    }
    let create = flags & abi::O_CREAT != 0;
    let exclusive = create && flags & abi::O_EXCL != 0;
    let mut walk = Walk::new(start, path)?;
    loop {
        let Last::Name { name, slash } = walk.parent()? else {
            if create {
                return Err(if exclusive { Errno::EEXIST } else { Errno::EISDIR });
            }
            return open_place(start, walk.place(), flags);
        };
        if create && slash {
            return Err(Errno::EISDIR);
        }
        let next = if create {
            match look_or_create(start, &walk, &name, mode)? {
                Found::There(path) => path,
                Found::Created(path) => {
                    return finish(path, flags & !abi::O_TRUNC).inspect(|file| file.set_new());
                }
            }
        } else {
            walk.look(&name)?
        };
        if exclusive {
            return Err(Errno::EEXIST);
        }
        let dir = walk.place().inode().clone();
        let follow = slash || flags & abi::O_NOFOLLOW == 0;
        match walk.step(next, follow)? {
            Step::Onward => continue,
            Step::There => {
                let place = walk.place();
                if slash && !place.inode().is_dir() {
                    return Err(Errno::ENOTDIR);
                }
                if create && place.inode().is_dir() {
                    return Err(Errno::EISDIR);
                }
                if create {
                    check_create_in_sticky(start, &dir, place.inode())?;
                }
                return open_place(start, place, flags);
            }
        }
    }
}

/// Whoever may create files in a directory like `/tmp` must not be led to use what another user put there in
/// their place. As in Linux, regular files and named pipes are exempt unless an administrator asks for more.
fn check_create_in_sticky(start: &Start, dir: &Inode, inode: &Inode) -> Result<()> {
    if matches!(inode.kind, FileType::Regular | FileType::Fifo) {
        return Ok(());
    }
    let (dir, file) = (dir.attributes(), inode.attributes());
    let shared = dir.permissions & abi::S_ISVTX != 0 && dir.permissions & abi::S_IWOTH != 0;
    if shared && file.uid != dir.uid && file.uid != start.credentials.uid {
        return Err(Errno::EACCES);
    }
    Ok(())
}

enum Found {
    There(Path),
    Created(Path),
}

/// The entry `name` where the walk stands; a regular file is created when there is none.
fn look_or_create(start: &Start, walk: &Walk, name: &[u8], mode: u32) -> Result<Found> {
    match walk.look(name) {
        Err(Errno::ENOENT) => {}
        found => return found.map(Found::There),
    }
    let dir = walk.place();
    let dentry = {
        let _changes = dir.inode().lock.lock_killable().ok_or(Errno::EINTR)?;
        // Somebody may have created it meanwhile: then it is opened, not created.
        match walk.look(name) {
            Err(Errno::ENOENT) => {}
            found => return found.map(Found::There),
        }
        dir.mount.check_writable()?;
        start.credentials.check(dir.inode(), access::WRITE | access::EXECUTE)?;
        if dir.dentry.is_removed() {
            return Err(Errno::ENOENT);
        }
        let ops = &dir.inode().ops;
        match ops.create(&dir.dentry, name, NewNode::Regular, mode & 0o7777, &start.credentials) {
            // Where others than this system create files.
            Err(Errno::EEXIST) => return walk.look(name).map(Found::There),
            created => created?,
        }
    };
    notify::entry(dir.inode(), name, &dentry.inode, abi::IN_CREATE);
    Ok(Found::Created(Path { mount: dir.mount.clone(), dentry }))
}

fn open_tmpfile(start: &Start, dir: &Path, flags: u32, mode: u32) -> Result<Arc<File>> {
    if !dir.inode().is_dir() {
        return Err(Errno::ENOTDIR);
    }
    dir.mount.check_writable()?;
    start.credentials.check(dir.inode(), access::WRITE | access::EXECUTE)?;
    let inode = dir.inode().ops.tmpfile(&dir.dentry, mode & 0o7777, &start.credentials)?;
    // Nobody finds it by that name.
    let dentry = Dentry::new(&dir.dentry, alloc::format!("#{}", inode.ino).as_bytes(), inode);
    dentry.mark_removed();
    // O_EXCL keeps it from ever getting a name.
    if flags & abi::O_EXCL == 0 {
        dentry.inode.allow_link();
    }
    finish(Path { mount: dir.mount.clone(), dentry }, flags)
}

/// Opens what is at a place, with all checks.
pub fn open_place(start: &Start, path: &Path, flags: u32) -> Result<Arc<File>> {
    let inode = path.inode();
    if flags & abi::O_DIRECTORY != 0 && !inode.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if flags & abi::O_PATH != 0 {
        return Ok(File::new(path.clone(), Arc::new(PlaceOnly), flags));
    }
    // Access mode 3 is Linux's "for ioctl only": it needs both permissions and gives neither.
    let mode = flags & abi::O_ACCMODE;
    let mut want = 0;
    if mode != abi::O_WRONLY {
        want |= access::READ;
    }
    if mode != abi::O_RDONLY || flags & abi::O_TRUNC != 0 {
        want |= access::WRITE;
    }
    let writes = want & access::WRITE != 0;
    match inode.kind {
        FileType::Symlink => return Err(Errno::ELOOP),
        FileType::Directory if writes => return Err(Errno::EISDIR),
        FileType::CharDevice | FileType::BlockDevice if path.mount.has(abi::MS_NODEV) => {
            return Err(Errno::EACCES);
        }
        FileType::Regular if writes => path.mount.check_writable()?,
        _ => {}
    }
    start.credentials.check(inode, want)?;
    if flags & abi::O_NOATIME != 0 && !start.credentials.owns(inode) {
        return Err(Errno::EPERM);
    }
    finish(path.clone(), flags)
}

/// Counts as a writer of the inode while it lives.
struct WriteAccess<'a>(&'a Inode);

impl<'a> WriteAccess<'a> {
    fn new(inode: &'a Inode) -> Result<Self> {
        inode.begin_writing()?;
        Ok(Self(inode))
    }
}

impl Drop for WriteAccess<'_> {
    fn drop(&mut self) {
        self.0.end_writing();
    }
}

/// The open file for a place that may be opened.
fn finish(path: Path, flags: u32) -> Result<Arc<File>> {
    let inode = path.inode().clone();
    let truncate = flags & abi::O_TRUNC != 0 && inode.kind == FileType::Regular;
    let writes = truncate || matches!(flags & abi::O_ACCMODE, abi::O_WRONLY | abi::O_RDWR);
    // A program that runs from the file keeps writers out; the open file counts itself, this count covers the
    // time until then.
    let _writer = if writes { Some(WriteAccess::new(&inode)?) } else { None };
    // So for the mount: the wait below may be long.
    let is_regular = inode.kind == FileType::Regular;
    let mount = (writes && is_regular).then(|| path.mount.clone());
    let _writing = mount.as_ref().map(|mount| mount.begin_writing()).transpose()?;
    if is_regular {
        lease::break_for(&inode, writes, flags & abi::O_NONBLOCK != 0)?;
    }
    let ops = match inode.kind {
        FileType::Directory => DirectoryFile::new(&inode)? as Arc<dyn FileOps>,
        FileType::CharDevice | FileType::BlockDevice => device::open(&path, flags)?,
        FileType::Fifo => pipe::open_named(&inode, flags)?,
        _ => inode.ops.open(&path, flags)?,
    };
    let file = File::new(path, ops, flags);
    inode.ops.opened(&file)?;
    notify::happened(file.dentry(), abi::IN_OPEN);
    if truncate {
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        inode.ops.truncate(&inode, 0)?;
        super::attributes::remove_privileges(&inode);
        inode.touch_modified();
        notify::happened(file.dentry(), abi::IN_MODIFY);
    }
    Ok(file)
}

/// Creates the node that a path names: mkdir(2), mknod(2), symlink(2), bind(2) of a socket. `mode` without
/// the umask's bits.
pub fn create(start: &Start, path: &[u8], node: NewNode, mode: u32) -> Result<Path> {
    let mut walk = Walk::new(start, path)?;
    let Last::Name { name, slash } = walk.parent()? else { return Err(Errno::EEXIST) };
    let dir = walk.place();
    let _changes = dir.inode().lock.lock_killable().ok_or(Errno::EINTR)?;
    match dir.inode().ops.lookup(&dir.dentry, &name) {
        Err(Errno::ENOENT) => {}
        Ok(_) => return Err(Errno::EEXIST),
        Err(error) => return Err(error),
    }
    // A slash at the end is for directories only; what is missing cannot be one.
    if slash && !matches!(node, NewNode::Directory) {
        return Err(Errno::ENOENT);
    }
    dir.mount.check_writable()?;
    start.credentials.check(dir.inode(), access::WRITE | access::EXECUTE)?;
    if dir.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    if let NewNode::CharDevice(_) | NewNode::BlockDevice(_) = node
        && !start.credentials.capable(abi::CAP_MKNOD)
    {
        return Err(Errno::EPERM);
    }
    let dentry = dir.inode().ops.create(&dir.dentry, &name, node, mode, &start.credentials)?;
    notify::entry(dir.inode(), &name, &dentry.inode, abi::IN_CREATE);
    Ok(Path { mount: dir.mount.clone(), dentry })
}

/// An entry that is to be changed, as far as its directory: on whose behalf, where, and which.
pub struct Target {
    /// Who asks.
    pub(super) credentials: Credentials,
    /// The directory.
    pub(super) dir: Path,
    /// The entry in it.
    pub(super) last: Last,
}

impl Target {
    /// Walks to the directory of what `path` names.
    pub fn find(start: &Start, path: &[u8]) -> Result<Self> {
        let mut walk = Walk::new(start, path)?;
        let last = walk.parent()?;
        Ok(Self { credentials: start.credentials.clone(), dir: walk.place().clone(), last })
    }
}

impl Last {
    /// Name and slash; a mere place is refused with `otherwise`.
    pub(super) fn name(self, otherwise: Errno) -> Result<(Box<[u8]>, bool)> {
        match self {
            Self::Name { name, slash } => Ok((name, slash)),
            Self::Place => Err(otherwise),
        }
    }
}

/// Nothing may be mounted on an entry that is to go.
pub(super) fn check_not_mounted(dentry: &Dentry) -> Result<()> {
    if mount::is_mount_point(dentry) { Err(Errno::EBUSY) } else { Ok(()) }
}
