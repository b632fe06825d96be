//! Files: the tree of names, mounts, open files, file systems in memory.
//!
//! From the outside in: a process has an [`FdTable`] and an [`FsContext`]; a descriptor leads to a [`File`],
//! the open file description; a file was opened at a [`Path`], a [`Dentry`] seen through a mount; a dentry
//! names an [`Inode`]. What a type of file does is in [`FileOps`]; what a file system does, in [`InodeOps`]
//! and [`SuperblockOps`].
//!
//! Locks, outermost first: the mount table's change lock; the rename lock; a directory's [`Inode::lock`]
//! (parent before child); a regular file's [`Inode::lock`]; then the file system's own spin locks. User
//! memory may be touched with an inode's lock held but with no spin lock, because a page fault takes none of
//! the former and possibly the latter.

pub mod access;
pub mod aio;
pub mod anonymous;
mod async_io;
pub mod attributes;
mod bringup;
pub mod caller;
pub mod context;
mod cpio;
pub mod dentry;
mod descriptors;
pub mod dev;
pub mod device;
mod devpts;
pub mod directory;
pub mod epoll;
pub mod eventfd;
pub mod fdtable;
pub mod file;
pub mod handle;
pub mod initramfs;
pub mod inode;
pub mod inotify;
pub mod iobuf;
pub mod lease;
pub mod locks;
mod minors;
pub mod modify;
pub mod mount;
pub mod mount_context;
pub mod mount_namespace;
pub mod mount_text;
mod msharefs;
pub mod notify;
pub mod open;
pub mod owner;
mod p9;
pub mod path;
pub mod pipe;
pub mod poll;
pub mod proc;
pub mod pseudo;
mod records;
pub mod registry;
pub mod seals;
pub mod signalfd;
mod slots;
pub mod stat;
pub mod sys;
pub mod timerfd;
pub mod tmpfs;
pub mod tree;
pub mod watch;
pub mod xattr;

pub use anonymous::Kind;
pub use bringup::{init, init_volumes, install_console};
pub use context::FsContext;
pub use dentry::Dentry;
pub use fdtable::FdTable;
pub use file::{File, FileOps, Whence};
pub use inode::{Dirent, NewNode};
pub use iobuf::{Sink, Source};
pub use path::Path;
pub use poll::Events;
pub use registry::register_filesystem;
pub use stat::{DeviceId, FileType, Stat, Statfs, Timestamp};

use crate::sync::Once;

static ROOT: Once<Path> = Once::new();

/// The root of the system.
pub fn root() -> Path {
    match ROOT.get() {
        Some(root) => root.clone(),
        None => panic!("a path is used before the root file system is there"),
    }
}
