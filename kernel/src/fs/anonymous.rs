//! Open files that are in no directory: pipes, sockets, epoll instances.

use alloc::sync::Arc;

use super::dentry::Dentry;
use super::file::{File, FileOps};
use super::inode::{Attributes, Inode, InodeOps, Superblock, SuperblockOps};
use super::mount::Mount;
use super::path::Path;
use super::stat::{DeviceId, FileType, Statfs};
use crate::sync::Once;

/// A file system of the kernel's own that holds files of one kind and is mounted nowhere.
struct Internal {
    magic: u64,
}

impl SuperblockOps for Internal {
    fn statfs(&self) -> Statfs {
        Statfs { magic: self.magic, block_size: 4096, name_max: 255, ..Statfs::default() }
    }
}

/// An inode without anything but its attributes.
struct Plain;
impl InodeOps for Plain {}

/// The kinds of files outside of the tree, as statfs(2) and `/proc/PID/mountinfo` tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// epoll, eventfd, signalfd, timerfd ...: all share one inode, named `anon_inode:NAME`.
    Anonymous,
    /// Pipes without a name, named `pipe:[INODE]`.
    Pipe,
    /// Sockets, named `socket:[INODE]`.
    Socket,
}

struct Home {
    mount: Arc<Mount>,
}

fn home(kind: Kind) -> &'static Home {
    static HOMES: [Once<Home>; 3] = [const { Once::new() }; 3];
    let (index, name, magic) = match kind {
        Kind::Anonymous => (0, "anon_inodefs", 0x0904_1934),
        Kind::Pipe => (1, "pipefs", 0x5049_5045),
        Kind::Socket => (2, "sockfs", 0x534f_434b),
    };
    HOMES[index].call_once(|| {
        let superblock = Superblock::new(name, Internal { magic });
        let (file_type, mode) = match kind {
            Kind::Anonymous => (FileType::Anonymous, 0o600),
            Kind::Pipe | Kind::Socket => (FileType::Directory, 0),
        };
        let root = Inode::new(&superblock, file_type, Attributes::new(mode, 0, 0), Plain);
        Home { mount: Mount::new(Dentry::root(root), "none", 0) }
    })
}

impl File {
    /// An open file of one of the kernel's own kinds. `name` is what Linux shows of it for
    /// `Kind::Anonymous` (`[eventpoll]`, and some without brackets); pipes and sockets have an inode of their own, whose number takes its
    /// place.
    pub fn anonymous(kind: Kind, name: &str, ops: Arc<dyn FileOps>, flags: u32) -> Arc<File> {
        let home = home(kind);
        let dentry = match kind {
            Kind::Anonymous => {
                let name = alloc::format!("anon_inode:{name}");
                Dentry::detached(name.as_bytes(), home.mount.root.inode.clone())
            }
            Kind::Pipe | Kind::Socket => {
                let inode = anonymous_inode(kind);
                let prefix = if kind == Kind::Pipe { "pipe" } else { "socket" };
                Dentry::detached(alloc::format!("{prefix}:[{}]", inode.ino).as_bytes(), inode)
            }
        };
        File::new(Path { mount: home.mount.clone(), dentry }, ops, flags)
    }

    /// A second open file for the same inode, with operations and flags of its own: the other end of a pipe.
    pub fn sibling(&self, ops: Arc<dyn FileOps>, flags: u32) -> Arc<File> {
        File::new(self.path().clone(), ops, flags)
    }
}

fn anonymous_inode(kind: Kind) -> Arc<Inode> {
    let (uid, gid) = super::caller::current_ids();
    let (file_type, mode) = match kind {
        Kind::Anonymous => (FileType::Anonymous, 0o600),
        Kind::Pipe => (FileType::Fifo, 0o600),
        Kind::Socket => (FileType::Socket, 0o777),
    };
    let superblock = &home(kind).mount.superblock;
    let ino = superblock.allocate_ino();
    Inode::with_number(
        superblock,
        ino,
        file_type,
        DeviceId::default(),
        Attributes::new(mode, uid, gid),
        Plain,
    )
}
