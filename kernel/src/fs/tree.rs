//! A directory tree in memory: the names of tmpfs, devtmpfs, hugetlbfs.
//!
//! The tree keeps its dentries: a directory's table holds them, and they hold their directory. Unlinking
//! takes the dentry out; when the file system is unmounted, [`teardown`] takes them all out. Directory
//! offsets are cookies that count up and are never used again, so that a reader neither misses nor repeats
//! what stays where it is.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use linux_raw_sys::general as abi;

use super::access::Credentials;
use super::dentry::Dentry;
use super::file::FileOps;
use super::inode::{Attributes, Dirent, Inode, InodeOps, NewNode, SetAttributes, Superblock};
use super::path::Path;
use super::stat::{DeviceId, FileType, Stat};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::sync::SpinLock;

/// What a file system with such a tree decides for itself.
pub trait TreeFs: Any + Send + Sync {
    /// Counts one more inode, or refuses it (`ENOSPC`, `ENOMEM`).
    fn charge_inode(&self) -> Result<()>;
    /// An inode is gone.
    fn uncharge_inode(&self);
    /// What a new, empty regular file does; the inode is charged already.
    fn regular(&self, charge: InodeCharge) -> Box<dyn InodeOps>;
    /// Is it one directory of regular files, which keep the one name that they are made with?
    fn is_flat(&self) -> bool {
        false
    }
    /// Bytes that an entry adds to its directory's size.
    fn entry_size(&self) -> u64 {
        0
    }
    /// May the attributes be changed this way?
    fn check_attributes(&self, _inode: &Inode, _change: &SetAttributes) -> Result<()> {
        Ok(())
    }
}

/// One counted inode: given back when dropped. Part of what the inode consists of.
pub struct InodeCharge {
    fs: Arc<dyn TreeFs>,
}

impl InodeCharge {
    /// Counts one more inode of the file system.
    pub fn new(fs: &Arc<dyn TreeFs>) -> Result<Self> {
        fs.charge_inode()?;
        Ok(Self { fs: fs.clone() })
    }

    /// The file system.
    pub fn fs(&self) -> &Arc<dyn TreeFs> {
        &self.fs
    }
}

impl Drop for InodeCharge {
    fn drop(&mut self) {
        self.fs.uncharge_inode();
    }
}

/// The first cookie: 0 is `.`, 1 is `..`, and an entry's successor starts at its cookie plus one.
const FIRST_COOKIE: u64 = 2;

#[derive(Default)]
struct Entries {
    by_name: BTreeMap<Box<[u8]>, u64>,
    by_cookie: BTreeMap<u64, Arc<Dentry>>,
    next_cookie: u64,
    /// The directory was removed: nothing may be created in it.
    dead: bool,
}

impl Entries {
    fn get(&self, name: &[u8]) -> Option<&Arc<Dentry>> {
        self.by_cookie.get(self.by_name.get(name)?)
    }

    fn insert(&mut self, name: &[u8], dentry: Arc<Dentry>) {
        let cookie = self.next_cookie.max(FIRST_COOKIE);
        self.next_cookie = cookie + 1;
        self.by_name.insert(name.into(), cookie);
        self.by_cookie.insert(cookie, dentry);
    }

    /// Takes out any entry, of a directory that nobody uses any more: the maps have as many, and both are empty in the end.
    fn take_first(&mut self) -> Option<Arc<Dentry>> {
        self.by_name.pop_first();
        self.by_cookie.pop_first().map(|(_, dentry)| dentry)
    }

    fn remove(&mut self, name: &[u8]) -> Option<Arc<Dentry>> {
        let cookie = self.by_name.remove(name)?;
        self.by_cookie.remove(&cookie)
    }
}

/// A directory of the tree.
pub struct Directory {
    entries: SpinLock<Entries>,
    charge: InodeCharge,
}

/// A symbolic link of the tree.
pub struct Symlink {
    target: Box<[u8]>,
    _charge: InodeCharge,
}

/// A device node, named pipe or socket of the tree: the VFS does all that is to do.
pub struct Special {
    _charge: InodeCharge,
}

/// Makes the root directory of a new file system.
pub fn new_root(
    superblock: &Arc<Superblock>,
    fs: &Arc<dyn TreeFs>,
    permissions: u32,
    uid: u32,
    gid: u32,
) -> Result<Arc<Dentry>> {
    let attributes = Attributes { nlink: 2, ..Attributes::new(permissions, uid, gid) };
    let directory = Directory::new(InodeCharge::new(fs)?);
    Ok(Dentry::root(Inode::new(superblock, FileType::Directory, attributes, directory)))
}

/// Puts a file that the file system itself makes into the directory `dir`.
pub fn add_file(dir: &Arc<Dentry>, name: &[u8], inode: Arc<Inode>) -> Result<()> {
    directory(dir)?.add(dir, name, inode).map(drop)
}

/// Takes the tree apart, so that its dentries no longer hold each other. Those that are open stay as they
/// are.
pub fn teardown(root: &Arc<Dentry>) {
    let mut at = root.clone();
    loop {
        // One entry at a time, depth first, and back up by the names: that takes no memory, however many there are.
        let first =
            at.inode.ops_as::<Directory>().and_then(|directory| directory.entries.lock().take_first());
        match first {
            Some(entry) if entry.inode.is_dir() => at = entry,
            Some(entry) => drop(entry),
            None if Arc::ptr_eq(&at, root) => return,
            None => match at.parent() {
                Some(parent) => at = parent,
                None => return,
            },
        }
        crate::sched::cond_resched();
    }
}

/// The mode and the group of a new file in a directory with the attributes `parent`: one with the set-group-ID bit hands on its group.
pub fn inherited(
    parent: &Attributes,
    is_dir: bool,
    permissions: u32,
    credentials: &Credentials,
) -> (u32, u32) {
    if parent.permissions & abi::S_ISGID == 0 {
        return (permissions, credentials.gid);
    }
    let gid = parent.gid;
    if is_dir {
        return (permissions | abi::S_ISGID, gid);
    }
    let runs_as_group = permissions & (abi::S_ISGID | abi::S_IXGRP) == abi::S_ISGID | abi::S_IXGRP;
    if runs_as_group && !credentials.in_group(gid) && !credentials.capable_over(parent, abi::CAP_FSETID) {
        // Nobody makes a program that runs with the rights of a group which is not theirs.
        return (permissions & !abi::S_ISGID, gid);
    }
    (permissions, gid)
}

/// Makes an inode for `node` in the directory `dir`, whose group it inherits when that has the set-group-ID
/// bit.
pub fn new_inode(
    fs: &Arc<dyn TreeFs>,
    dir: &Inode,
    node: NewNode,
    permissions: u32,
    credentials: &Credentials,
) -> Result<Arc<Inode>> {
    let is_dir = matches!(node, NewNode::Directory);
    let (permissions, gid) = inherited(&dir.attributes(), is_dir, permissions, credentials);
    let mut attributes = Attributes::new(permissions, credentials.uid, gid);
    let mut rdev = DeviceId::default();
    let charge = InodeCharge::new(fs)?;
    let ops: Box<dyn InodeOps> = match node {
        NewNode::Regular => fs.regular(charge),
        NewNode::Directory => {
            attributes.nlink = 2;
            Box::new(Directory::new(charge))
        }
        NewNode::Symlink(target) => {
            attributes.permissions = 0o777;
            Box::new(Symlink { target: target.into(), _charge: charge })
        }
        NewNode::CharDevice(device) | NewNode::BlockDevice(device) => {
            rdev = device;
            Box::new(Special { _charge: charge })
        }
        NewNode::Fifo | NewNode::Socket => Box::new(Special { _charge: charge }),
    };
    let superblock = &dir.superblock;
    Ok(Inode::boxed(superblock, superblock.allocate_ino(), node.file_type(), rdev, attributes, ops))
}

/// The directory's own data; an inode of another kind is no directory.
fn directory(dentry: &Dentry) -> Result<&Directory> {
    dentry.inode.ops_as::<Directory>().ok_or(Errno::ENOTDIR)
}

impl Directory {
    /// An empty one. All are made here, so their locks are of one class: of two the one at the lower address is taken first.
    fn new(charge: InodeCharge) -> Self {
        Self { entries: SpinLock::growing(Default::default()), charge }
    }

    fn add(&self, dir: &Arc<Dentry>, name: &[u8], inode: Arc<Inode>) -> Result<Arc<Dentry>> {
        let is_dir = inode.is_dir();
        let dentry = Dentry::new(dir, name, inode);
        let mut entries = self.entries.lock();
        let refused = if entries.dead {
            Some(Errno::ENOENT)
        } else if entries.by_name.contains_key(name) {
            Some(Errno::EEXIST)
        } else {
            None
        };
        if let Some(error) = refused {
            // The dentry goes after the lock.
            drop(entries);
            return Err(error);
        }
        entries.insert(name, dentry.clone());
        drop(entries);
        dir.inode.touch_modified();
        if is_dir {
            dir.inode.update(|a| a.nlink += 1);
        }
        Ok(dentry)
    }
}

impl InodeOps for Directory {
    fn lookup(&self, _dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        self.entries.lock().get(name).cloned().ok_or(Errno::ENOENT)
    }

    fn readdir(&self, _dir: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        const BATCH: usize = 64;
        let mut from = from.max(FIRST_COOKIE);
        loop {
            // Copied out in batches: `emit` may take its time.
            let batch: Vec<(u64, Arc<Dentry>)> = {
                let entries = self.entries.lock();
                entries.by_cookie.range(from..).take(BATCH).map(|(c, d)| (*c, d.clone())).collect()
            };
            let full = batch.len() == BATCH;
            for (cookie, dentry) in batch {
                let name = dentry.name();
                let entry = Dirent {
                    ino: dentry.inode.ino,
                    next_offset: cookie + 1,
                    kind: dentry.inode.kind,
                    name: &name,
                };
                if !emit(entry) {
                    return Ok(());
                }
                from = cookie + 1;
            }
            if !full {
                return Ok(());
            }
        }
    }

    fn create(
        &self,
        dir: &Arc<Dentry>,
        name: &[u8],
        node: NewNode,
        permissions: u32,
        credentials: &Credentials,
    ) -> Result<Arc<Dentry>> {
        let fs = self.charge.fs();
        if fs.is_flat() && !matches!(node, NewNode::Regular) {
            return Err(Errno::EPERM);
        }
        let inode = new_inode(fs, &dir.inode, node, permissions, credentials)?;
        self.add(dir, name, inode)
    }

    fn tmpfile(&self, dir: &Arc<Dentry>, permissions: u32, credentials: &Credentials) -> Result<Arc<Inode>> {
        let fs = self.charge.fs();
        if fs.is_flat() {
            return Err(Errno::EOPNOTSUPP);
        }
        let inode = new_inode(fs, &dir.inode, NewNode::Regular, permissions, credentials)?;
        inode.update(|a| a.nlink = 0);
        Ok(inode)
    }

    fn link(&self, dir: &Arc<Dentry>, name: &[u8], inode: &Arc<Inode>) -> Result<()> {
        // As in Linux a further name counts like a file: it takes memory of the same kind.
        let fs = self.charge.fs();
        if fs.is_flat() {
            return Err(Errno::EPERM);
        }
        let now = super::caller::now();
        let charged = fs.charge_inode();
        // Race: other directories' locks are others'. The last name may go, or another first one come, at the same time: which name is
        // the first is decided in one step.
        let further = inode.update(|a| {
            if a.nlink == 0 && !inode.may_link() {
                return Err(Errno::ENOENT);
            }
            if a.nlink > 0 {
                charged?;
            }
            a.nlink = a.nlink.checked_add(1).ok_or(Errno::EMLINK)?;
            a.ctime = now;
            Ok(a.nlink > 1)
        });
        if charged.is_ok() && further != Ok(true) {
            fs.uncharge_inode();
        }
        further?;
        self.add(dir, name, inode.clone()).map(drop).inspect_err(|_| self.drop_name(inode))
    }

    fn unlink(&self, dir: &Arc<Dentry>, victim: &Arc<Dentry>) -> Result<()> {
        let removed = self.entries.lock().remove(&victim.name());
        self.forget(dir, &removed.ok_or(Errno::ENOENT)?);
        Ok(())
    }

    fn rmdir(&self, dir: &Arc<Dentry>, victim: &Arc<Dentry>) -> Result<()> {
        directory(victim)?.retire()?;
        self.unlink(dir, victim)
    }

    fn rename(
        &self,
        dir: &Arc<Dentry>,
        entry: &Arc<Dentry>,
        new_dir: &Arc<Dentry>,
        new_name: &[u8],
        target: Option<&Arc<Dentry>>,
        exchange: bool,
    ) -> Result<()> {
        if self.charge.fs().is_flat() {
            return Err(Errno::EPERM);
        }
        let new = directory(new_dir)?;
        if let Some(target) = target.filter(|t| !exchange && t.inode.is_dir()) {
            directory(target)?.retire()?;
        }
        let old_name = entry.name();
        if core::ptr::eq(self, new) {
            let mut entries = self.entries.lock();
            if exchange {
                let target = target.ok_or(Errno::ENOENT)?;
                let (a, b) =
                    (entries.by_name.get(&old_name).copied(), entries.by_name.get(new_name).copied());
                let (Some(a), Some(b)) = (a, b) else { return Err(Errno::ENOENT) };
                entries.by_name.insert(old_name.clone(), b);
                entries.by_name.insert(new_name.into(), a);
                target.relocate(dir, &old_name);
            } else {
                // The cookie stays: a reader that renames what it reads comes to an end.
                let cookie = entries.by_name.remove(&old_name).ok_or(Errno::ENOENT)?;
                if let Some(replaced) = entries.by_name.insert(new_name.into(), cookie) {
                    entries.by_cookie.remove(&replaced);
                }
            }
            entry.relocate(dir, new_name);
        } else {
            // Both at once, so that no lookup finds the file at neither place; two renames cannot meet (the
            // rename lock).
            let (mut from, mut to) = if core::ptr::from_ref(self) < core::ptr::from_ref(new) {
                let from = self.entries.lock();
                (from, new.entries.lock())
            } else {
                let to = new.entries.lock();
                (self.entries.lock(), to)
            };
            if to.dead {
                return Err(Errno::ENOENT);
            }
            let moved = from.remove(&old_name).ok_or(Errno::ENOENT)?;
            let replaced = to.remove(new_name);
            if exchange && let Some(other) = &replaced {
                from.insert(&old_name, other.clone());
                other.relocate(dir, &old_name);
            }
            to.insert(new_name, moved);
            entry.relocate(new_dir, new_name);
        }
        let now = super::caller::now();
        if let Some(target) = target {
            if exchange {
                target.inode.update(|a| a.ctime = now);
            } else {
                new.forget(new_dir, target);
            }
        }
        // Directories count their subdirectories' `..`.
        if !Arc::ptr_eq(dir, new_dir) {
            let other_is_dir = exchange && target.is_some_and(|t| t.inode.is_dir());
            if entry.inode.is_dir() != other_is_dir {
                let (loses, gains) = if entry.inode.is_dir() { (dir, new_dir) } else { (new_dir, dir) };
                loses.inode.update(|a| a.nlink -= 1);
                gains.inode.update(|a| a.nlink += 1);
            }
        }
        entry.inode.update(|a| a.ctime = now);
        dir.inode.touch_modified();
        new_dir.inode.touch_modified();
        Ok(())
    }

    fn stat(&self, _inode: &Inode, stat: &mut Stat) {
        let entries = self.entries.lock().by_name.len() as u64;
        // `.` and `..` count.
        stat.size = (entries + 2) * self.charge.fs().entry_size();
    }

    fn set_attributes(&self, inode: &Inode, change: &SetAttributes) -> Result<()> {
        self.charge.fs().check_attributes(inode, change)
    }
}

impl Directory {
    /// Bookkeeping for an entry that was taken out of `dir`.
    fn forget(&self, dir: &Arc<Dentry>, victim: &Arc<Dentry>) {
        victim.mark_removed();
        let is_dir = victim.inode.is_dir();
        self.drop_name(&victim.inode);
        if is_dir {
            dir.inode.update(|a| a.nlink -= 1);
        }
        dir.inode.touch_modified();
    }

    /// The inode has one name less: all but the last were paid for one by one.
    fn drop_name(&self, inode: &Inode) {
        let now = super::caller::now();
        let is_dir = inode.is_dir();
        let left = inode.update(|a| {
            a.nlink = if is_dir { 0 } else { a.nlink.saturating_sub(1) };
            a.ctime = now;
            a.nlink
        });
        if left > 0 {
            self.charge.fs().uncharge_inode();
        }
    }

    /// From now on nothing is created here; `ENOTEMPTY` when something is.
    fn retire(&self) -> Result<()> {
        let mut entries = self.entries.lock();
        if !entries.by_name.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        entries.dead = true;
        Ok(())
    }
}

impl InodeOps for Symlink {
    fn readlink(&self, _inode: &Inode) -> Result<Vec<u8>> {
        // A walk keeps the texts of the links that it is in: forty of up to 4,095 bytes.
        fallible::copy_of(&self.target)
    }

    fn stat(&self, _inode: &Inode, stat: &mut Stat) {
        stat.size = self.target.len() as u64;
    }
}

impl InodeOps for Special {
    fn open(&self, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ENXIO)
    }
}
