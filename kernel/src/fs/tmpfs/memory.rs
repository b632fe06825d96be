//! Files in memory without a name in any directory: memfd_create(2).

use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::ops::Node;
use super::secret::{SecretFile, SecretNode};
use super::{Limits, MAGIC};
use crate::errno::Result;
use crate::fs::dentry::Dentry;
use crate::fs::file::File;
use crate::fs::inode::{Attributes, Inode, InodeOps, Superblock, SuperblockOps};
use crate::fs::mount::Mount;
use crate::fs::path::Path;
use crate::fs::seals;
use crate::fs::stat::{DeviceId, FileType, Statfs};
use crate::memory::{PAGE_SIZE, reserve};
use crate::sync::Once;

/// The tmpfs that is mounted nowhere and has no limits of its own.
struct Internal {
    mount: Arc<Mount>,
    limits: Arc<Limits>,
}

struct NoTree;
impl InodeOps for NoTree {}

struct Statistics;
impl SuperblockOps for Statistics {
    fn statfs(&self) -> Statfs {
        Statfs { magic: MAGIC, block_size: PAGE_SIZE as u64, name_max: 255, ..Statfs::default() }
    }

    fn keeps_xattrs(&self) -> bool {
        true
    }

    fn has_handles(&self) -> bool {
        true
    }
}

fn internal() -> &'static Internal {
    static INTERNAL: Once<Internal> = Once::new();
    INTERNAL.call_once(|| {
        let superblock = Superblock::new("tmpfs", Statistics);
        let root = Inode::new(&superblock, FileType::Directory, Attributes::new(0o1777, 0, 0), NoTree);
        Internal { mount: Mount::new(Dentry::root(root), "tmpfs", 0), limits: Limits::unlimited() }
    })
}

/// A file of `size` zero bytes, open for reading and writing; `name` is what `/proc/PID/maps` shows. `seals`
/// are set from the start: `F_SEAL_SEAL` for a file that cannot be sealed.
fn memory_file(name: &[u8], size: u64, permissions: u32, seals: u32) -> Result<Arc<File>> {
    reserve::ask(PAGE_SIZE)?;
    let node = Node::detached(internal().limits.clone(), seals);
    let content = node.file().clone();
    let path = detached(name, permissions, node);
    content.identify(path.inode());
    path.inode().ops.truncate(path.inode(), size)?;
    Ok(File::new(path, content, abi::O_RDWR | abi::O_LARGEFILE))
}

/// A regular file without a place in a tree.
fn detached(name: &[u8], permissions: u32, node: impl InodeOps) -> Path {
    let home = internal();
    let (uid, gid) = crate::fs::caller::current_ids();
    let attributes = Attributes { nlink: 0, ..Attributes::new(permissions, uid, gid) };
    let superblock = &home.mount.superblock;
    let ino = superblock.allocate_ino();
    let inode = Inode::with_number(superblock, ino, FileType::Regular, DeviceId::default(), attributes, node);
    let dentry = Dentry::detached(name, inode);
    dentry.mark_removed();
    Path { mount: home.mount.clone(), dentry }
}

/// memfd_secret(2).
pub fn secret() -> Result<Arc<File>> {
    reserve::ask(PAGE_SIZE)?;
    let node = SecretNode::new(internal().limits.clone());
    let content = node.file().clone();
    let path = detached(b"/secretmem", 0o600, node);
    content.identify(path.inode());
    Ok(File::new(path, Arc::new(SecretFile(content)), abi::O_RDWR))
}

/// memfd_create(2) of a file with base pages; `name` without the prefix.
pub fn memfd(name: &[u8], flags: u32) -> Result<Arc<File>> {
    let mut label = b"/memfd:".to_vec();
    label.extend_from_slice(name);
    let (mode, seals) = seals::of_memfd(flags);
    memory_file(&label, 0, mode, seals)
}
