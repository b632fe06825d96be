//! A file or directory of the host.
//!
//! The server knows a file by the path that it was walked to. So a fid is good as long as that name is the file's: when the name is removed
//! here, or another file takes its place, the fid is not used any more, and the next lookup by another name brings a new one. Files that
//! are open are known to the server by more than a path, and stay readable and writable; see [`super::file`] for their size.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;

use super::file::OpenFile;
use super::listing::OpenDirectory;
use super::pages::Content;
use super::session::Fid;
use super::volume::{self, Volume};
use super::wire::{Attr, Change};
use crate::errno::{Errno, Result};
use crate::fs::access::Credentials;
use crate::fs::caller;
use crate::fs::dentry::Dentry;
use crate::fs::directory::Listing;
use crate::fs::file::FileOps;
use crate::fs::inode::{Inode, InodeOps, NewNode, SetAttributes, Superblock};
use crate::fs::path::Path;
use crate::fs::stat::{FileType, Stat};
use crate::fs::tree::inherited;
use crate::sync::SpinLock;

/// `AT_REMOVEDIR`.
const REMOVE_DIRECTORY: u32 = abi::AT_REMOVEDIR;

/// How the server was led to a file.
pub struct Way {
    pub fid: Arc<Fid>,
    /// The directory's number, and the name in it.
    pub parent: u64,
    pub name: Box<[u8]>,
}

impl Way {
    fn is(&self, dir: &Node, name: &[u8]) -> bool {
        self.parent == dir.number && *self.name == *name
    }
}

/// The ways to a file: the one by which the server is asked, and one that takes its place when that name goes.
struct Ways {
    known: Way,
    other: Option<Way>,
}

/// What the inode of a file holds.
pub struct Node {
    /// The server's number for the file.
    number: u64,
    way: SpinLock<Ways>,
    /// The name by which the server knows the file is not the file's any more.
    is_lost: AtomicBool,
    /// It has no name any more.
    is_gone: AtomicBool,
    /// It was created and opened in one step, for reading and writing; the next who opens it takes this.
    created: SpinLock<Option<Fid>>,
    content: Arc<Content>,
}

/// The node of an inode of this file system.
pub fn of(inode: &Inode) -> Result<&Node> {
    inode.ops_as::<Node>().ok_or(Errno::EXDEV)
}

impl Node {
    pub fn new(superblock: &Superblock, attr: &Attr, way: Way) -> Self {
        Self {
            number: attr.number,
            way: SpinLock::new(Ways { known: way, other: None }),
            is_lost: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            created: SpinLock::new(None),
            content: Arc::new(Content::new((superblock.dev.encode(), attr.number), attr.size)),
        }
    }

    /// Does the server speak of the file that the inode stands for?
    pub fn is_of(inode: &Inode, attr: &Attr) -> bool {
        let is_it = |node: &Node| node.number == attr.number && inode.kind == attr.kind && !node.is_gone();
        of(inode).is_ok_and(is_it)
    }

    /// Has it lost its last name?
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    pub fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// The fid for what is asked by name. `ESTALE` when the name is not the file's any more, `ENOENT` when it has none.
    fn fid(&self) -> Result<Arc<Fid>> {
        let fid = self.way.lock().known.fid.clone();
        match self.is_lost.load(Ordering::SeqCst) {
            true if self.is_gone() => Err(Errno::ENOENT),
            true => Err(Errno::ESTALE),
            false => Ok(fid),
        }
    }

    /// Takes over what the server told of the file, and the way by which that was found if the known one is no good.
    fn refresh(&self, inode: &Inode, attr: &Attr, way: Option<Way>) {
        let fresh = match volume::of(inode) {
            Ok(volume) => volume.attributes(attr),
            Err(_) => return,
        };
        inode.update(|attributes| *attributes = fresh);
        self.content.told(attr.size);
        if let Some(way) = way.filter(|_| self.is_lost.load(Ordering::SeqCst)) {
            self.set_way(way);
        }
    }

    fn set_way(&self, way: Way) {
        let mut ways = self.way.lock();
        let old = core::mem::replace(&mut *ways, Ways { known: way, other: None });
        self.is_lost.store(false, Ordering::SeqCst);
        drop(ways);
        drop(old);
    }

    /// The file has a new name. The one that it was found by may stay, or go next: then the new one is the way.
    fn add_way(&self, way: Way) {
        let mut ways = self.way.lock();
        // Race: the known name may be taken away meanwhile, which is decided under this lock.
        let old = match self.is_lost.swap(false, Ordering::SeqCst) {
            true => Some(core::mem::replace(&mut ways.known, way)),
            false => ways.other.replace(way),
        };
        drop(ways);
        drop(old);
    }

    /// Asks the server. `ESTALE` when it would tell of another file.
    pub fn ask(&self, inode: &Inode) -> Result<Attr> {
        let attr = self.fid()?.attributes()?;
        if !Self::is_of(inode, &attr) {
            return Err(Errno::ESTALE);
        }
        self.refresh(inode, &attr, None);
        Ok(attr)
    }

    /// Changes the file where it is; nobody else sees the change of one that is gone.
    pub fn change(&self, change: &Change) -> Result<()> {
        if self.is_gone() { Ok(()) } else { self.fid()?.change(change) }
    }

    /// The entry `name` of this directory.
    fn child(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        let fid = self.fid()?.walk(Some(name))?;
        let attr = fid.attributes()?;
        let mut way = Some(Way { fid: Arc::new(fid), parent: self.number, name: name.into() });
        let (volume, superblock) = (volume::of(&dir.inode)?, &dir.inode.superblock);
        let is_it = |inode: &Inode| Self::is_of(inode, &attr);
        let dentry = dir.child(name, is_it, || volume.inode(superblock, &attr, &mut way))?;
        of(&dentry.inode)?.refresh(&dentry.inode, &attr, way);
        Ok(dentry)
    }

    /// The name is going to be no more: the file is not asked for by it any more, and lost if no other one is known.
    fn leave_way(&self, dir: &Node, name: &[u8]) {
        let mut ways = self.way.lock();
        let old = if !ways.known.is(dir, name) {
            ways.other.take_if(|other| other.is(dir, name))
        } else if let Some(other) = ways.other.take() {
            Some(core::mem::replace(&mut ways.known, other))
        } else {
            self.is_lost.store(true, Ordering::SeqCst);
            None
        };
        drop(ways);
        // A way's fid is given back by a request.
        drop(old);
    }

    /// Takes the name `name` in `dir` away by `work`. Before the server does it, the name is used no more: another file may have it at once.
    fn without(
        &self,
        inode: &Inode,
        dir: &Node,
        name: &[u8],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let was_lost = self.is_lost.load(Ordering::SeqCst);
        self.leave_way(dir, name);
        match work() {
            Ok(()) => {}
            // It is not known whether it was done.
            Err(Errno::EINTR) => return Err(Errno::EINTR),
            Err(error) => {
                self.is_lost.store(was_lost, Ordering::SeqCst);
                return Err(error);
            }
        }
        let now = caller::now();
        let left = inode.update(|a| {
            a.nlink = if inode.is_dir() { 0 } else { a.nlink.saturating_sub(1) };
            a.ctime = now;
            a.nlink
        });
        if left == 0 {
            self.is_gone.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    fn remove(&self, victim: &Arc<Dentry>, flags: u32) -> Result<()> {
        let (fid, name) = (self.fid()?, victim.name());
        of(&victim.inode)?.without(&victim.inode, self, &name, || fid.unlink(&name, flags))?;
        victim.mark_removed();
        Ok(())
    }

    /// A new file belongs to its maker; where the server may give files to nobody, to the server.
    fn give(&self, inode: &Inode, volume: &Volume, uid: u32, gid: u32) -> Result<()> {
        let own = inode.attributes();
        let differs = |own: u32, wanted: u32| (own != wanted).then_some(wanted);
        let (uid, gid) = (differs(own.uid, uid), differs(own.gid, gid));
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        let (host_uid, host_gid) = (uid.map(|uid| volume.host_uid(uid)), gid.map(|gid| volume.host_gid(gid)));
        match self.change(&Change { uid: host_uid, gid: host_gid, ..Change::default() }) {
            Ok(()) => {}
            Err(Errno::EPERM) => return Ok(()),
            Err(error) => return Err(error),
        }
        inode.update(|a| (a.uid, a.gid) = (uid.unwrap_or(a.uid), gid.unwrap_or(a.gid)));
        Ok(())
    }
}

impl InodeOps for Node {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        if !dir.inode.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        self.child(dir, name)
    }

    fn open_directory(&self) -> Result<Option<Box<dyn Listing>>> {
        let fid = self.fid()?.walk(None)?;
        fid.open(abi::O_RDONLY | abi::O_DIRECTORY)?;
        Ok(Some(Box::new(OpenDirectory::new(fid))))
    }

    fn create(
        &self,
        dir: &Arc<Dentry>,
        name: &[u8],
        node: NewNode,
        permissions: u32,
        credentials: &Credentials,
    ) -> Result<Arc<Dentry>> {
        let volume = volume::of(&dir.inode)?;
        let is_dir = matches!(node, NewNode::Directory);
        let (permissions, gid) = inherited(&dir.inode.attributes(), is_dir, permissions, credentials);
        let (fid, host_gid) = (self.fid()?, volume.host_gid(gid));
        let mut opened = None;
        match node {
            NewNode::Regular => {
                let file = fid.walk(None)?;
                file.create(name, abi::O_RDWR | abi::O_CREAT | abi::O_EXCL, permissions, host_gid)?;
                opened = Some(file);
            }
            NewNode::Directory => fid.make_directory(name, permissions, host_gid)?,
            NewNode::Symlink(target) => fid.symlink(name, target, host_gid)?,
            NewNode::Fifo | NewNode::Socket => {
                let made = fid.make_node(name, node.file_type().mode_bits() | permissions, host_gid);
                // Some versions of QEMU cannot set the new node's mode, and take it back.
                made.map_err(|error| if error == Errno::ENXIO { Errno::EPERM } else { error })?;
            }
            // What the guest may have is no reason for the host to have it.
            NewNode::CharDevice(_) | NewNode::BlockDevice(_) => return Err(Errno::EPERM),
        }
        let dentry = self.child(dir, name)?;
        let new = of(&dentry.inode)?;
        if dentry.inode.kind == FileType::Regular {
            let unused = core::mem::replace(&mut *new.created.lock(), opened);
            drop(unused);
        }
        new.give(&dentry.inode, volume, credentials.uid, gid)?;
        Ok(dentry)
    }

    fn link(&self, _dir: &Arc<Dentry>, name: &[u8], inode: &Arc<Inode>) -> Result<()> {
        let (node, own) = (of(inode)?, self.fid()?);
        own.link(name, &*node.fid()?)?;
        // Who links a file often removes one of its names next, whichever it is.
        let fid = own.walk(Some(name))?;
        let attr = fid.attributes()?;
        if Self::is_of(inode, &attr) {
            node.refresh(inode, &attr, None);
            node.add_way(Way { fid: Arc::new(fid), parent: self.number, name: name.into() });
        }
        Ok(())
    }

    fn unlink(&self, _dir: &Arc<Dentry>, victim: &Arc<Dentry>) -> Result<()> {
        self.remove(victim, 0)
    }

    fn rmdir(&self, _dir: &Arc<Dentry>, victim: &Arc<Dentry>) -> Result<()> {
        self.remove(victim, REMOVE_DIRECTORY)
    }

    fn rename(
        &self,
        _dir: &Arc<Dentry>,
        entry: &Arc<Dentry>,
        new_dir: &Arc<Dentry>,
        new_name: &[u8],
        target: Option<&Arc<Dentry>>,
        exchange: bool,
    ) -> Result<()> {
        if exchange {
            // The protocol has no such request.
            return Err(Errno::EINVAL);
        }
        let new = of(&new_dir.inode)?;
        let (from, to, name) = (self.fid()?, new.fid()?, entry.name());
        let rename = || from.rename(&name, &to, new_name);
        match target {
            Some(target) => {
                of(&target.inode)?.without(&target.inode, new, new_name, rename)?;
                target.mark_removed();
            }
            None => rename()?,
        }
        // The server's fids have followed.
        let moved = of(&entry.inode)?;
        let mut old = Box::<[u8]>::from(new_name);
        let mut ways = moved.way.lock();
        let Ways { known, other } = &mut *ways;
        if let Some(way) = [Some(known), other.as_mut()].into_iter().flatten().find(|way| way.is(self, &name))
        {
            way.parent = new.number;
            core::mem::swap(&mut way.name, &mut old);
        }
        drop(ways);
        entry.move_child(new_dir, new_name);
        Ok(())
    }

    fn readlink(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind != FileType::Symlink {
            return Err(Errno::EINVAL);
        }
        self.fid()?.read_link()
    }

    fn open(&self, path: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
        if path.inode().kind != FileType::Regular {
            return Err(Errno::ENXIO);
        }
        let created = self.created.lock().take();
        let fid = match created {
            Some(fid) => fid,
            None => {
                let fid = self.fid()?.walk(None)?;
                // Access mode 3 asks for both.
                fid.open((flags & abi::O_ACCMODE).min(abi::O_RDWR))?;
                fid
            }
        };
        Ok(Arc::new(OpenFile::new(fid)))
    }

    fn stat(&self, inode: &Inode, stat: &mut Stat) {
        // Without an answer what was known last has to do.
        if !self.is_gone()
            && let Ok(attr) = self.ask(inode)
        {
            (stat.blocks, stat.block_size) = (attr.blocks, attr.block_size);
            stat.size = attr.size;
            let a = inode.attributes();
            stat.mode = inode.kind.mode_bits() | a.permissions;
            (stat.uid, stat.gid, stat.nlink) = (a.uid, a.gid, a.nlink);
            (stat.atime, stat.mtime, stat.ctime) = (a.atime, a.mtime, a.ctime);
            return;
        }
        stat.size = self.content.len();
        stat.blocks = stat.size.div_ceil(512);
    }

    fn set_attributes(&self, inode: &Inode, change: &SetAttributes) -> Result<()> {
        let (volume, own) = (volume::of(inode)?, inode.attributes());
        let change = Change {
            permissions: change.permissions.filter(|new| *new != own.permissions),
            uid: change.uid.map(|uid| volume.host_uid(uid)),
            gid: change.gid.map(|gid| volume.host_gid(gid)),
            size: None,
            atime: change.atime,
            mtime: change.mtime,
        };
        self.change(&change)
    }

    fn truncate(&self, _inode: &Inode, size: u64) -> Result<()> {
        self.fid()?.change(&Change { size: Some(size), ..Change::default() })?;
        self.content.resized(size)
    }
}
