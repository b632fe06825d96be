//! What is mounted in one place and shows in others: peer groups, and slaves of them.
//!
//! A shared mount is in a peer group. What is mounted on one of the group comes to all others of it, and to the mounts that are slaves of
//! the group; what is unmounted goes there, too. From a slave nothing comes back, unless it is shared itself: then its own group and
//! that one's slaves get it. Groups have numbers that grow, and a group's master has a smaller one than the group: there are no circles.
//!
//! [`GROUPS`] knows the mounts of all groups that are in a tree, by references that unmount(2) does not count. Copies are entered before
//! they come into the tree, what is mounted itself behind that; all leave when they are out. Locks: that of the table's changes, then this
//! one, then a mount's own and the table's. A namespace that ends takes its mounts out without the first: so copies are put on each other
//! first, and then, all at once, on a mount that is in a tree still.
//!
//! With this lock held no reference to a mount is let go of: the last one may end another namespace, whose mounts leave here.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::{Mount, TABLE, lock_changes, subtree};
use crate::errno::{Errno, Result};
use crate::fs::mount_namespace::{check_may_change, check_own};
use crate::fs::path::Path;
use crate::memory::reserve::Promise;
use crate::sched;
use crate::sync::Mutex;

/// How a mount stands to others. Numbers of groups, 0 for none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Peers {
    pub(super) group: u64,
    pub(super) master: u64,
    pub(super) unbindable: bool,
    /// The namespace that it was entered for; 0 while it is not.
    pub(super) entered: u64,
}

impl Peers {
    /// What another view of the same begins with.
    pub(super) fn of_copy(self) -> Self {
        Self { entered: 0, ..self }
    }

    /// What a copy in another user namespace begins with: nothing comes back from there.
    pub(super) fn as_slave(self) -> Self {
        let master = if self.group != 0 { self.group } else { self.master };
        Self { group: 0, master, ..self }
    }

    pub(super) fn is_shared(self) -> bool {
        self.group != 0
    }

    pub(super) fn is_unbindable(self) -> bool {
        self.unbindable
    }
}

/// What mount(2) makes of a mount.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Shared,
    Slave,
    Private,
    Unbindable,
}

impl Kind {
    /// By `MS_*`, of which there must be exactly one.
    pub fn of_flags(flags: u32) -> Result<Self> {
        match flags & !(abi::MS_REC | abi::MS_SILENT) {
            abi::MS_SHARED => Ok(Self::Shared),
            abi::MS_SLAVE => Ok(Self::Slave),
            abi::MS_PRIVATE => Ok(Self::Private),
            abi::MS_UNBINDABLE => Ok(Self::Unbindable),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The mounts of all groups that are in a tree.
pub(super) struct Groups {
    /// By group, namespace and mount.
    pub(super) members: BTreeMap<(u64, u64, u64), Weak<Mount>>,
    /// By group and mount.
    pub(super) slaves: BTreeMap<(u64, u64), Weak<Mount>>,
}

/// At most what a mount takes in these lists, and in the table of mounts, bytes.
pub(super) const ENTRIES: usize = 384;

pub(super) static GROUPS: Mutex<Groups> =
    Mutex::new(Groups { members: BTreeMap::new(), slaves: BTreeMap::new() });

/// The first of `count` new groups.
pub(super) fn new_groups(count: usize) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Ordering: only the numbers have to differ.
    NEXT.fetch_add(count as u64, Ordering::Relaxed)
}

impl Mount {
    pub(super) fn peers(&self) -> Peers {
        *self.peers.lock()
    }
}

impl Groups {
    fn has_members(&self, group: u64) -> bool {
        self.members.range((group, 0, 0)..=(group, u64::MAX, u64::MAX)).next().is_some()
    }

    /// Takes the mount out of the lists.
    fn forget(&mut self, mount: &Mount, peers: &mut Peers) {
        if peers.entered != 0 {
            self.members.remove(&(peers.group, peers.entered, mount.id));
            self.slaves.remove(&(peers.master, mount.id));
            peers.entered = 0;
        }
    }

    /// Enters the mount as what `peers` says, for this namespace; for none (0) the mount is that, and nothing comes to it.
    pub(super) fn enter(&mut self, mount: &Arc<Mount>, peers: Peers, namespace: u64) {
        let mut old = mount.peers();
        self.forget(mount, &mut old);
        if namespace != 0 && peers.group != 0 {
            self.members.insert((peers.group, namespace, mount.id), Arc::downgrade(mount));
        }
        if namespace != 0 && peers.master != 0 {
            self.slaves.insert((peers.master, mount.id), Arc::downgrade(mount));
        }
        let entered = if peers.group != 0 || peers.master != 0 { namespace } else { 0 };
        *mount.peers.lock() = Peers { entered, ..peers };
    }

    /// The mount, of this namespace or of none, becomes that. The group that is no more, and its master, if the mount was the last of one.
    fn change(&mut self, mount: &Arc<Mount>, kind: Kind, namespace: u64) -> Option<(u64, u64)> {
        let old = mount.peers();
        let mut new = old;
        let mut ended = None;
        if kind == Kind::Shared {
            new.unbindable = false;
            if new.group == 0 {
                new.group = new_groups(1);
            }
        } else {
            self.forget(mount, &mut new);
            *mount.peers.lock() = new;
            if old.group != 0 && self.has_members(old.group) {
                new.master = old.group;
            } else if old.group != 0 && old.entered != 0 {
                ended = Some((old.group, old.master));
            }
            new.group = 0;
            if kind != Kind::Slave {
                new.master = 0;
                new.unbindable = kind == Kind::Unbindable;
            }
        }
        self.enter(mount, new, namespace);
        ended
    }
}

/// One mount becomes that. The slaves of a group that ends with it are its master's then.
fn change(mount: &Arc<Mount>, kind: Kind) {
    let namespace = mount.namespace();
    let Some((group, master)) = GROUPS.lock().change(mount, kind, namespace) else { return };
    loop {
        let mut groups = GROUPS.lock();
        let first = groups.slaves.range((group, 0)..=(group, u64::MAX)).next().map(|(key, _)| *key);
        let Some((_, id)) = first else { return };
        let slave = groups.slaves.remove(&(group, id)).and_then(|slave| slave.upgrade());
        if let Some(slave) = &slave {
            let peers = Peers { master, ..slave.peers() };
            // It is in no list as the slave of another.
            *slave.peers.lock() = peers;
            groups.enter(slave, peers, peers.entered);
        }
        drop(groups);
        drop(slave);
        sched::cond_resched();
    }
}

/// Enters a mount as what it is, for the namespace that it comes into.
pub(super) fn enter(mount: &Arc<Mount>, namespace: u64) {
    let peers = mount.peers();
    if peers.group != 0 || peers.master != 0 {
        GROUPS.lock().enter(mount, peers, namespace);
    }
}

/// The mount is in no tree any more.
pub(super) fn leave(mount: &Arc<Mount>) {
    if mount.peers() == Peers::default() {
        return;
    }
    change(mount, Kind::Private);
}

/// mount(2) with `MS_SHARED` and the like: of the mount that `path` is the root of, and of those on it if `recursive`.
pub fn set_kind(path: &Path, kind: Kind, recursive: bool) -> Result<()> {
    let _change = lock_changes()?;
    check_own(path)?;
    if !Arc::ptr_eq(&path.dentry, &path.mount.root) {
        return Err(Errno::EINVAL);
    }
    let mounts = if recursive { subtree(&path.mount)? } else { alloc::vec![path.mount.clone()] };
    let promise = Promise::lasting(mounts.len() * ENTRIES)?;
    set_all(&mounts, kind, &promise);
    Ok(())
}

/// All of these become that, with memory from the promise.
pub(super) fn set_all(mounts: &[Arc<Mount>], kind: Kind, promise: &Promise) {
    for mount in mounts {
        promise.step();
        change(mount, kind);
        sched::cond_resched();
    }
}

/// move_mount(2) with `MOVE_MOUNT_SET_GROUP`: what comes to `from` comes to `to` as well. Both may be of other namespaces than the
/// caller's, if it may mount there.
pub fn join(from: &Path, to: &Path) -> Result<()> {
    let _change = lock_changes()?;
    let is_root = |path: &Path| Arc::ptr_eq(&path.dentry, &path.mount.root);
    if !from.mount.is_in_tree() || !to.mount.is_in_tree() {
        return Err(Errno::EINVAL);
    }
    check_may_change(&from.mount)?;
    check_may_change(&to.mount)?;
    if !is_root(from) || !is_root(to) {
        return Err(Errno::EINVAL);
    }
    let (theirs, own) = (from.mount.peers(), to.mount.peers());
    let shows_less = Arc::ptr_eq(&from.mount.superblock, &to.mount.superblock)
        && from.mount.root.is_ancestor_of(&to.mount.root);
    if !shows_less || own.group != 0 || own.master != 0 || theirs.group == 0 && theirs.master == 0 {
        return Err(Errno::EINVAL);
    }
    if subtree(&from.mount)?.iter().skip(1).any(|mount| super::moves::is_locked_below(mount, from)) {
        return Err(Errno::EINVAL);
    }
    let peers = Peers { unbindable: own.unbindable, ..theirs.of_copy() };
    GROUPS.lock().enter(&to.mount, peers, to.mount.namespace());
    // Race: another namespace may have ended meanwhile, and have found nothing of the mount to leave.
    let is_there = {
        let _table = TABLE.lock();
        to.mount.is_in_tree()
    };
    if !is_there {
        leave(&to.mount);
    }
    Ok(())
}

/// The optional fields of a line of mountinfo, each with a blank before it.
#[derive(Default)]
pub struct Fields {
    pub group: u64,
    pub master: u64,
    /// The master, or if that has no mount in the same namespace the nearest group above that has one.
    pub from: u64,
    unbindable: bool,
}

impl Fields {
    /// As `MS_SHARED` and the like.
    pub fn flags(&self) -> u32 {
        let shown = [
            (self.group != 0, abi::MS_SHARED),
            (self.master != 0, abi::MS_SLAVE),
            (self.unbindable, abi::MS_UNBINDABLE),
        ];
        match shown.into_iter().filter(|(is, _)| *is).fold(0, |all, (_, flag)| all | flag) {
            0 => abi::MS_PRIVATE,
            flags => flags,
        }
    }
}

impl core::fmt::Display for Fields {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let from = if self.from == self.master { 0 } else { self.from };
        for (number, name) in [(self.group, "shared"), (self.master, "master"), (from, "propagate_from")] {
            if number != 0 {
                write!(out, " {name}:{number}")?;
            }
        }
        if self.unbindable { out.write_str(" unbindable") } else { Ok(()) }
    }
}

/// What mountinfo says of a mount.
pub fn fields(mount: &Mount) -> Fields {
    let peers = mount.peers();
    let mut fields =
        Fields { group: peers.group, master: peers.master, from: 0, unbindable: peers.unbindable };
    if peers.master == 0 {
        return fields;
    }
    let namespace = mount.namespace();
    let mut at = peers.master;
    while at != 0 {
        let groups = GROUPS.lock();
        if groups.members.range((at, namespace, 0)..=(at, namespace, u64::MAX)).next().is_some() {
            fields.from = at;
            break;
        }
        let any = groups.members.range((at, 0, 0)..=(at, u64::MAX, u64::MAX)).next();
        let member = any.and_then(|(_, member)| member.upgrade());
        // Before the member is let go of. Groups may change meanwhile: a master's number is smaller all the same.
        drop(groups);
        at = member.map_or(0, |member| member.peers().master);
        sched::cond_resched();
    }
    fields
}
