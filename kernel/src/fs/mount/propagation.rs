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

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::{CHANGE, LOCKED_TIMES, MOST_MOUNTS, Mount, TABLE, end, key, put, subtree};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::mount_namespace::{self, RESTRICTIONS, check_may_change, check_own};
use crate::fs::path::{MOUNT_MOVES, Path};
use crate::memory::fallible::{self, TryVec};
use crate::memory::{PAGE_SIZE, reserve};
use crate::sched;
use crate::sync::Mutex;

/// How a mount stands to others. Numbers of groups, 0 for none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Peers {
    group: u64,
    master: u64,
    unbindable: bool,
    /// The namespace that it was entered for; 0 while it is not.
    entered: u64,
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
struct Groups {
    /// By group, namespace and mount.
    members: BTreeMap<(u64, u64, u64), Weak<Mount>>,
    /// By group and mount.
    slaves: BTreeMap<(u64, u64), Weak<Mount>>,
}

static GROUPS: Mutex<Groups> = Mutex::new(Groups { members: BTreeMap::new(), slaves: BTreeMap::new() });

fn new_group() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Ordering: only the numbers have to differ.
    NEXT.fetch_add(1, Ordering::Relaxed)
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
    fn enter(&mut self, mount: &Arc<Mount>, peers: Peers, namespace: u64) {
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
                new.group = new_group();
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
    let _change = CHANGE.lock();
    check_own(path)?;
    if !Arc::ptr_eq(&path.dentry, &path.mount.root) {
        return Err(Errno::EINVAL);
    }
    let mounts = if recursive { subtree(&path.mount)? } else { alloc::vec![path.mount.clone()] };
    set_all(&mounts, kind);
    Ok(())
}

/// All of these, which are in a tree, become that.
pub(super) fn set_all(mounts: &[Arc<Mount>], kind: Kind) {
    for mount in mounts {
        change(mount, kind);
        sched::cond_resched();
    }
}

/// move_mount(2) with `MOVE_MOUNT_SET_GROUP`: what comes to `from` comes to `to` as well. Both may be of other namespaces than the
/// caller's, if it may mount there.
pub fn join(from: &Path, to: &Path) -> Result<()> {
    let _change = CHANGE.lock();
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

/// A group on the way of what is mounted, or a slave that is in none.
struct Level {
    /// 0 for such a slave.
    group: u64,
    /// Where its mounts get it from.
    above: usize,
    /// Has a mount that shows the place.
    used: bool,
}

/// The mounts that get what is mounted on another, each with its level.
#[derive(Default)]
pub(super) struct Receivers {
    pub(super) mounts: Vec<(Arc<Mount>, usize)>,
    levels: Vec<Level>,
}

/// Who gets what is mounted on `origin` at `point`, that one not among them.
pub(super) fn receivers(origin: &Arc<Mount>, point: &Arc<Dentry>) -> Result<Receivers> {
    let group = origin.peers().group;
    let mut found = Receivers::default();
    if group == 0 {
        return Ok(found);
    }
    // What was looked at, to be let go of behind the lock.
    let mut held: Vec<Arc<Mount>> = Vec::new();
    let groups = GROUPS.lock();
    let mut seen = BTreeSet::from([group]);
    found.levels.try_push(Level { group, above: 0, used: true })?;
    let shows = |mount: &Arc<Mount>| mount.is_in_tree() && mount.root.is_ancestor_of(point);
    let mut at = 0;
    while let Some(&Level { group, .. }) = found.levels.get(at) {
        for (_, member) in groups.members.range((group, 0, 0)..=(group, u64::MAX, u64::MAX)) {
            fallible::reserve(&mut held, 1)?;
            let Some(member) = member.upgrade() else { continue };
            held.push(member.clone());
            if !Arc::ptr_eq(&member, origin) && shows(&member) {
                found.levels[at].used = true;
                found.mounts.try_push((member, at))?;
            }
            sched::cond_resched();
        }
        for (_, slave) in groups.slaves.range((group, 0)..=(group, u64::MAX)) {
            fallible::reserve(&mut held, 1)?;
            let Some(slave) = slave.upgrade() else { continue };
            held.push(slave.clone());
            let own = slave.peers().group;
            if own != 0 && seen.insert(own) {
                found.levels.try_push(Level { group: own, above: at, used: false })?;
            } else if own == 0 && shows(&slave) {
                let level = found.levels.len();
                found.levels.try_push(Level { group: 0, above: at, used: true })?;
                found.mounts.try_push((slave, level))?;
            }
            sched::cond_resched();
        }
        at += 1;
        while found.levels.get(at).is_some_and(|level| level.group == 0) {
            at += 1;
        }
    }
    drop(groups);
    drop(held);
    Ok(found)
}

/// Copies of a tree for one mount.
struct Set {
    on: Arc<Mount>,
    copies: Vec<(Arc<Mount>, Peers)>,
}

/// What mounting a tree comes to, with all that it needs: it cannot fail any more.
pub(super) struct Spread {
    point: Arc<Dentry>,
    /// What each mount of the tree becomes.
    own: Vec<Peers>,
    /// Where in the tree each is mounted, but for the first.
    places: Vec<Option<(usize, Arc<Dentry>)>>,
    sets: Vec<Set>,
}

/// A tree, each mount before those that are on it, is to be put on `at` or has been.
pub(super) fn prepare(at: &Path, tree: &[Arc<Mount>]) -> Result<Spread> {
    let mut own: Vec<Peers> = fallible::with_capacity(tree.len())?;
    own.extend(tree.iter().map(|mount| mount.peers()));
    let mut spread =
        Spread { point: at.dentry.clone(), own: Vec::new(), places: Vec::new(), sets: Vec::new() };
    if !at.mount.peers().is_shared() {
        spread.own = own;
        return Ok(spread);
    }
    for peers in own.iter_mut().filter(|peers| peers.group == 0) {
        (peers.group, peers.unbindable) = (new_group(), false);
    }
    let index: BTreeMap<u64, usize> =
        tree.iter().enumerate().map(|(index, mount)| (mount.id, index)).collect();
    spread.places.try_push(None)?;
    for mount in &tree[1..] {
        let place = mount.place();
        let known = place.and_then(|place| Some((*index.get(&place.mount.id)?, place.dentry)));
        spread.places.try_push(known)?;
    }
    let Receivers { mut mounts, levels } = receivers(&at.mount, &at.dentry)?;
    mounts.retain(|(mount, _)| {
        let keeps = |shown: &Arc<Mount>| mount_namespace::check_keeps(&shown.root.inode, mount.namespace());
        tree.iter().all(|shown| keeps(shown).is_ok())
    });
    check_room(&mounts, tree.len())?;
    // The groups of the copies of each mount of the tree, by level.
    let mut groups: Vec<Vec<u64>> = Vec::new();
    for level in &levels {
        let first = groups.is_empty();
        let group = |peers: &Peers| if first { peers.group } else { new_group() };
        let mut of_level = Vec::new();
        if level.group != 0 {
            fallible::reserve(&mut of_level, own.len())?;
            of_level.extend(own.iter().map(group));
        }
        groups.try_push(of_level)?;
    }
    for (on, level) in mounts {
        let mut above = levels[level].above;
        while !levels[above].used {
            above = levels[above].above;
        }
        let is_elsewhere = on.owner() != at.mount.owner();
        let mut copies = Vec::new();
        for (number, original) in tree.iter().enumerate() {
            reserve::ask_lasting(PAGE_SIZE)?;
            let copy = original.another(original.root.clone());
            let peers = Peers {
                group: groups[level].get(number).copied().unwrap_or_default(),
                master: if level == 0 { own[number].master } else { groups[above][number] },
                unbindable: false,
                entered: 0,
            };
            // Ordering, all: nobody else sees it yet.
            if is_elsewhere {
                copy.locked_flags.fetch_or(copy.flags() & RESTRICTIONS | LOCKED_TIMES, Ordering::Relaxed);
                copy.locked.store(true, Ordering::Relaxed);
            }
            if number == 0 {
                // As one it came, as one it may go.
                copy.locked.store(false, Ordering::Relaxed);
            }
            copies.try_push((copy, peers))?;
            sched::cond_resched();
        }
        spread.sets.try_push(Set { on, copies })?;
    }
    spread.own = own;
    Ok(spread)
}

/// `ENOSPC` when one of the namespaces that get `len` mounts more for each of these would have too many.
fn check_room(mounts: &[(Arc<Mount>, usize)], len: usize) -> Result<()> {
    let mut more: BTreeMap<u64, usize> = BTreeMap::new();
    for (mount, _) in mounts {
        *more.entry(mount.namespace()).or_default() += len;
    }
    // Relaxed: a setting of its own.
    let most = MOST_MOUNTS.load(Ordering::Relaxed);
    for (namespace, more) in more {
        let count = TABLE.lock().counts.get(&namespace).copied().unwrap_or_default();
        if count + more > most {
            return Err(Errno::ENOSPC);
        }
    }
    Ok(())
}

impl Spread {
    /// The tree is in its place: its mounts are what they become there, and the copies come to theirs.
    pub(super) fn commit(self, tree: &[Arc<Mount>]) {
        for (mount, peers) in tree.iter().zip(&self.own) {
            if *peers != Peers::default() {
                GROUPS.lock().enter(mount, peers.of_copy(), mount.namespace());
            }
        }
        let top = topmost(tree, &self.places);
        for Set { on, copies } in self.sets {
            let namespace = on.namespace();
            for (copy, peers) in &copies {
                GROUPS.lock().enter(copy, *peers, namespace);
            }
            let first = &copies[0].0;
            TABLE.lock().count(first, namespace, on.owner());
            for ((copy, _), place) in copies.iter().zip(&self.places) {
                let Some((on, dentry)) = place else { continue };
                put(copy, &Path { mount: copies[*on].0.clone(), dentry: dentry.clone() });
                sched::cond_resched();
            }
            if !put_beneath(first, &copies[top].0, &Path { mount: on, dentry: self.point.clone() }) {
                end::detach_tree(first);
            }
        }
    }
}

/// The number of what covers all of a tree: the first, or the last of those that are each on the root of the one before, from there on.
fn topmost(tree: &[Arc<Mount>], places: &[Option<(usize, Arc<Dentry>)>]) -> usize {
    let mut top = 0;
    for (number, place) in places.iter().enumerate() {
        if let Some((on, dentry)) = place
            && *on == top
            && Arc::ptr_eq(dentry, &tree[top].root)
        {
            top = number;
        }
    }
    top
}

/// Puts a mount in its place, under what is there, which then is on `top`; false when the mount that it comes onto is in no tree any more.
fn put_beneath(mount: &Arc<Mount>, top: &Arc<Mount>, at: &Path) -> bool {
    let _moving = MOUNT_MOVES.begin();
    let mut table = TABLE.lock();
    if !at.mount.is_in_tree() {
        return false;
    }
    let there = table.covering.get(&key(at)).cloned();
    let old = there.as_ref().and_then(|there| table.unhang(there));
    table.hang(mount, at);
    if let Some(there) = &there {
        table.hang(there, &Path { mount: top.clone(), dentry: top.root.clone() });
    }
    drop(table);
    drop(old);
    true
}

/// The optional fields of a line of mountinfo, each with a blank before it.
pub struct Fields {
    group: u64,
    master: u64,
    /// The nearest group above that has a mount in the same namespace, when the master has none.
    from: u64,
    unbindable: bool,
}

impl core::fmt::Display for Fields {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (number, name) in [(self.group, "shared"), (self.master, "master"), (self.from, "propagate_from")]
        {
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
    // Of each group above one mount, to be let go of behind the lock.
    let mut held = Vec::new();
    let groups = GROUPS.lock();
    let mut at = peers.master;
    while at != 0 {
        let near = groups.members.range((at, namespace, 0)..=(at, namespace, u64::MAX)).next();
        if near.is_some() {
            fields.from = if at == peers.master { 0 } else { at };
            break;
        }
        let any = groups.members.range((at, 0, 0)..=(at, u64::MAX, u64::MAX)).next();
        let Some(member) = any.and_then(|(_, member)| member.upgrade()) else { break };
        at = member.peers().master;
        held.push(member);
    }
    drop(groups);
    drop(held);
    fields
}
