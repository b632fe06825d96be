//! Files: the tree of names, mounts, open files, and the file systems that live in memory.
//!
//! From the outside in: a process has an [`FdTable`] and an [`FsContext`]; a descriptor leads to a [`File`], the open file
//! description; a file was opened at a [`Path`], a [`Dentry`] seen through a mount; a dentry names an [`Inode`]. What a type of
//! file does is in [`FileOps`]; what a file system does, in [`InodeOps`] and [`SuperblockOps`].
//!
//! Locks, outermost first: the mount table's change lock; the rename lock; a directory's [`Inode::lock`] (parent before child); a regular
//! file's [`Inode::lock`]; then the file system's own spin locks. User memory may be touched with an inode's lock held but
//! with no spin lock, because a page fault takes none of the former and possibly the latter.

pub mod poll;
pub mod stat;

pub use poll::Events;
pub use stat::{DeviceId, FileType, Stat, Statfs, Timestamp};
