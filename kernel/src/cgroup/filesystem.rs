//! The file system `cgroup2`: directories are groups.

use alloc::sync::Arc;

use super::group::{self, Group};
use super::hierarchy;
use super::knob::{Interface, Knob};
use crate::errno::{Errno, Result};
use crate::fs::access::Credentials;
use crate::fs::inode::{Attributes, Inode, InodeOps, Superblock, SuperblockOps};
use crate::fs::registry::{MountRequest, options};
use crate::fs::{Dentry, Dirent, File, FileType, NewNode, Stat, Statfs};
use crate::memory::PAGE_SIZE;
use crate::memory::fallible::Text;
use crate::namespaces::CgroupNamespace;
use crate::sync::Once;

/// `CGROUP2_SUPER_MAGIC`.
const MAGIC: u64 = 0x6367_7270;
/// Directory offsets: `.` and `..`, then interface files, then groups by their numbers.
const FIRST_FILE: u64 = 2;
const FIRST_GROUP: u64 = 1 << 10;

struct CgroupFs;

impl SuperblockOps for CgroupFs {
    fn statfs(&self) -> Statfs {
        Statfs { magic: MAGIC, block_size: PAGE_SIZE as u64, name_max: 255, ..Statfs::default() }
    }

    fn without_programs(&self) -> bool {
        true
    }
}

fn superblock() -> &'static Arc<Superblock> {
    static SUPERBLOCK: Once<Arc<Superblock>> = Once::new();
    SUPERBLOCK.call_once(|| Superblock::new("cgroup2", CgroupFs))
}

/// The one tree, whoever mounts it.
static ROOT: Once<Arc<Dentry>> = Once::new();

/// Makes the root's directory.
pub(super) fn make_root() -> Result<()> {
    let root = group::root();
    furnish(root, 0o555, (0, 0));
    let inode = root.directory.lock().clone().ok_or(Errno::ENOMEM)?;
    ROOT.set(Dentry::root(inode)).map_err(|_| Errno::EBUSY)
}

/// For the registry of file-system types.
pub(super) fn mount(request: &MountRequest) -> Result<Arc<Dentry>> {
    // They change what is shown to namespaces, or of controllers that are not here.
    const KNOWN: [&str; 6] = [
        "nsdelegate",
        "favordynmods",
        "memory_localevents",
        "memory_recursiveprot",
        "memory_hugetlb_accounting",
        "pids_localevents",
    ];
    if options(request.options).any(|(name, value)| value.is_some() || !KNOWN.contains(&name)) {
        return Err(Errno::EINVAL);
    }
    let root = ROOT.get().ok_or(Errno::ENODEV)?;
    dentry_of(root, &CgroupNamespace::current().root)
}

/// The directory of a group in the one tree. `ENODEV` for one that was removed.
fn dentry_of(root: &Arc<Dentry>, group: &Arc<Group>) -> Result<Arc<Dentry>> {
    let mut at = root.clone();
    for depth in 1..=group.depth {
        let next = group.chain().find(|group| group.depth == depth).ok_or(Errno::ENODEV)?;
        let inode = next.directory.lock().clone().ok_or(Errno::ENODEV)?;
        let number = inode.ino;
        at = at.child(&next.name, |other| other.ino == number, || Ok(inode))?;
    }
    Ok(at)
}

/// The path of a group's directory for a reader in the current thread's namespace; `None` for any other inode.
pub fn path_of_inode(inode: &Inode) -> Option<Text> {
    let directory = inode.ops_as::<Directory>()?;
    let mut text = Text::new();
    directory.0.push_path(&CgroupNamespace::current().root, &mut text);
    Some(text)
}

/// The group whose directory is open; `EBADF` for any other file.
pub fn group_of(file: &File) -> Result<Arc<Group>> {
    file.inode().ops_as::<Directory>().map(|directory| directory.0.clone()).ok_or(Errno::EBADF)
}

/// Gives a group its directory and the files that all have.
pub(super) fn furnish(group: &Arc<Group>, permissions: u32, (uid, gid): (u32, u32)) {
    let attributes = Attributes { nlink: 2, ..Attributes::new(permissions, uid, gid) };
    let inode = Inode::new(superblock(), FileType::Directory, attributes, Directory(group.clone()));
    *group.directory.lock() = Some(inode);
    add_knobs(group, Interface::wanted(group, None), (uid, gid));
}

/// Adds files, of that user and group.
pub(super) fn add_knobs(
    group: &Arc<Group>,
    interfaces: impl Iterator<Item = &'static Interface>,
    owner: (u32, u32),
) {
    if group.directory.lock().is_none() {
        return;
    }
    for interface in interfaces {
        let knob = Knob::new(superblock(), group, interface, owner);
        group.knobs.lock().push(knob);
    }
}

/// The names are gone: who watches hears of it with the last reference.
pub(super) fn forget(knobs: &[Arc<Knob>], directory: Option<&Arc<Inode>>) {
    for inode in knobs.iter().filter_map(|knob| knob.take_inode()).chain(directory.cloned()) {
        inode.update(|attributes| attributes.nlink = 0);
    }
}

impl Group {
    /// The interface file of a name as a path has it.
    pub(super) fn knob_of(&self, name: &[u8]) -> Option<Arc<Knob>> {
        core::str::from_utf8(name).ok().and_then(|name| self.knob(name))
    }

    fn child(&self, name: &[u8]) -> Option<Arc<Group>> {
        let children = self.children.lock();
        children.by_number.get(children.by_name.get(name)?).cloned()
    }
}

/// The directory of a group.
struct Directory(Arc<Group>);

impl InodeOps for Directory {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        let inode = match self.0.knob_of(name) {
            Some(knob) => knob.inode(),
            None => self.0.child(name).and_then(|group| group.directory.lock().clone()),
        };
        let inode = inode.ok_or(Errno::ENOENT)?;
        let number = inode.ino;
        dir.child(name, |other| other.ino == number, || Ok(inode))
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        let mut from = from.max(FIRST_FILE);
        while from < FIRST_GROUP {
            // `emit` may touch user memory: not under the lock.
            let knob = self.0.knobs.lock().get((from - FIRST_FILE) as usize).cloned();
            let Some(knob) = knob else { break };
            from += 1;
            let ino = knob.inode().map_or(0, |inode| inode.ino);
            let name = knob.interface.name.as_bytes();
            if !emit(Dirent { ino, next_offset: from, kind: FileType::Regular, name }) {
                return Ok(());
            }
        }
        let mut last = from.saturating_sub(FIRST_GROUP);
        while let Some(child) = self.0.child_after(last) {
            last = child.number;
            let ino = child.directory.lock().as_ref().map_or(0, |inode| inode.ino);
            let next_offset = FIRST_GROUP + last;
            if !emit(Dirent { ino, next_offset, kind: FileType::Directory, name: &child.name }) {
                break;
            }
        }
        Ok(())
    }

    fn create(
        &self,
        dir: &Arc<Dentry>,
        name: &[u8],
        node: NewNode,
        permissions: u32,
        credentials: &Credentials,
    ) -> Result<Arc<Dentry>> {
        match node {
            NewNode::Directory => {
                hierarchy::make(&self.0, name, permissions, credentials)?;
                dir.inode.update(|attributes| attributes.nlink += 1);
                self.lookup(dir, name)
            }
            NewNode::Regular => Err(Errno::EACCES),
            _ => Err(Errno::EPERM),
        }
    }

    fn rmdir(&self, dir: &Arc<Dentry>, victim: &Arc<Dentry>) -> Result<()> {
        let group = victim.inode.ops_as::<Directory>().ok_or(Errno::ENOTDIR)?.0.clone();
        hierarchy::remove(&group)?;
        victim.mark_removed();
        dir.inode.update(|attributes| attributes.nlink -= 1);
        Ok(())
    }

    fn stat(&self, _: &Inode, stat: &mut Stat) {
        stat.size = 0;
    }
}
