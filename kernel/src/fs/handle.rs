//! File handles: numbers by which a file is found without its name, for name_to_handle_at(2) and open_by_handle_at(2).
//!
//! A file system keeps a table of the files whose handles were asked for. It holds none of them: a file leaves the table when it goes.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};

use super::dentry::Dentry;
use super::inode::Inode;
use super::path::Path;
use crate::errno::{Errno, Result};
use crate::memory::{PAGE_SIZE, reserve};
use crate::sync::SpinLock;

/// Most bytes of a handle: `MAX_HANDLE_SZ`.
pub const MOST_BYTES: usize = 128;
/// Bytes of the handles that there are.
pub const BYTES: usize = 12;

/// A handle that leads to a file again: `FILEID_INO32_GEN`, as Linux's tmpfs has it. Generation, and the two halves of the number.
const BY_NUMBER: i32 = 1;
/// A handle that only tells files apart: `FILEID_INO64_GEN`. Number and generation.
const ONLY_NUMBER: i32 = 0x81;

/// What a handle consists of.
#[derive(Clone, Copy)]
pub struct Handle {
    pub kind: i32,
    pub bytes: [u8; BYTES],
}

/// One file that has a handle.
struct Known {
    inode: Weak<Inode>,
    /// The name by which the handle was asked for last.
    dentry: Weak<Dentry>,
}

/// The files of a file system that have handles.
pub struct Handles {
    by_number: SpinLock<BTreeMap<u64, Known>>,
}

impl Default for Handles {
    fn default() -> Self {
        Self { by_number: SpinLock::growing(BTreeMap::new()) }
    }
}

fn put(words: [u32; 3]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The handle of what is at a place; with `only_number` one by which the file need not be found again. `EOPNOTSUPP` where the file
/// system has none.
pub fn of(path: &Path, only_number: bool) -> Result<Handle> {
    let inode = path.inode();
    let superblock = &inode.superblock;
    let (low, high) = (inode.ino as u32, (inode.ino >> 32) as u32);
    if !superblock.ops.has_handles() {
        return match only_number {
            true => Ok(Handle { kind: ONLY_NUMBER, bytes: put([low, high, 0]) }),
            false => Err(Errno::EOPNOTSUPP),
        };
    }
    if !only_number {
        // Whoever asks may be gone when the file is still there.
        reserve::ask_lasting(PAGE_SIZE)?;
        let known = Known { inode: Arc::downgrade(inode), dentry: Arc::downgrade(&path.dentry) };
        inode.set_has_handle();
        let old = superblock.handles.by_number.lock().insert(inode.ino, known);
        drop(old);
    }
    Ok(Handle { kind: BY_NUMBER, bytes: put([superblock.generation, low, high]) })
}

/// The place that a handle leads to, in the file system of `near` and through its mount. `ESTALE` when there is none, or none any more.
pub fn find(near: &Path, bytes: &[u8]) -> Result<Path> {
    let superblock = &near.inode().superblock;
    let word = |index: usize| {
        let bytes = bytes.get(index * 4..index * 4 + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(Errno::ESTALE)
    };
    if !superblock.ops.has_handles() || word(0)? != superblock.generation {
        return Err(Errno::ESTALE);
    }
    let number = u64::from(word(1)?) | u64::from(word(2)?) << 32;
    let (inode, dentry) = {
        let known = superblock.handles.by_number.lock();
        let known = known.get(&number).ok_or(Errno::ESTALE)?;
        (known.inode.upgrade(), known.dentry.upgrade())
    };
    let inode = inode.ok_or(Errno::ESTALE)?;
    let dentry = match dentry {
        Some(dentry) => dentry,
        // A directory has one name only, and is gone with that.
        None if inode.is_dir() => return Err(Errno::ESTALE),
        // It has another name, or is open without one.
        None => Dentry::detached(b"/", inode),
    };
    Ok(Path { mount: near.mount.clone(), dentry })
}

/// The last reference to a file that has a handle goes.
pub(super) fn forget(inode: &Inode) {
    let known = inode.superblock.handles.by_number.lock().remove(&inode.ino);
    drop(known);
}
