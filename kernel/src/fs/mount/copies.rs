//! Copies of whole trees, for new namespaces.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{LOCKED_TIMES, Mount, TABLE, end, lock_changes, propagation, put, subtree};
use crate::errno::Result;
use crate::fs::mount_namespace::{self, Copies, RESTRICTIONS};
use crate::fs::path::Path;
use crate::memory::{PAGE_SIZE, reserve};
use crate::namespaces::Head;
use crate::sched;

/// A copy of the mount `root`, which is the bottom of a tree, and of all that is on it, for a namespace. `locked`: it is of a user
/// namespace that must not look below, nor lift restrictions, nor show anything outside.
pub fn copy_tree(root: &Arc<Mount>, namespace: &Head, locked: bool) -> Result<Copies> {
    let _change = lock_changes()?;
    let mut copies = Copies::new();
    let copied = copy_below(root, namespace, locked, &mut copies);
    if copied.is_err()
        && let Some(top) = copies.get(&root.id)
    {
        end::detach_tree(top);
    }
    copied.map(|()| copies)
}

fn copy_below(root: &Arc<Mount>, namespace: &Head, locked: bool, copies: &mut Copies) -> Result<()> {
    for original in subtree(root)? {
        sched::cond_resched();
        let is_root = Arc::ptr_eq(&original, root);
        let at = if is_root { None } else { place_of_copy(&original, namespace, copies) };
        if at.is_none() && !is_root {
            continue;
        }
        reserve::ask_lasting(PAGE_SIZE)?;
        let copy = original.another(original.root.clone());
        if locked {
            // Ordering: nobody else sees it yet.
            let flags = copy.flags() & RESTRICTIONS;
            copy.locked_flags.fetch_or(flags | LOCKED_TIMES, Ordering::Relaxed);
            copy.locked.store(!is_root, Ordering::Relaxed);
            let peers = copy.peers().as_slave();
            *copy.peers.lock() = peers;
        }
        match &at {
            None => TABLE.lock().count(&copy, namespace.ino, namespace.user.ino),
            Some(at) => put(&copy, at),
        }
        propagation::enter(&copy, namespace.ino);
        // Only now: what is here is in the tree.
        copies.insert(original.id, copy);
    }
    Ok(())
}

/// Where the copy of a mount comes to. Left out is a file that stands for a newer namespace or the same one, and with it all that is on it:
/// that would be on a mount in no tree, where nobody could ever take it away.
fn place_of_copy(original: &Mount, namespace: &Head, copies: &Copies) -> Option<Path> {
    let place = original.place()?;
    let parent = copies.get(&place.mount.id)?;
    mount_namespace::check_keeps(&original.root.inode, namespace.ino).ok()?;
    Some(Path { mount: parent.clone(), dentry: place.dentry })
}
