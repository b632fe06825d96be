//! What comes to other places with a mount: who gets it, and the copies of the tree for each of them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::propagation::{ENTRIES, GROUPS, Peers, new_groups};
use super::{LOCKED_TIMES, MOST_MOUNTS, Mount, TABLE, end, key, put};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::mount_namespace::{self, RESTRICTIONS};
use crate::fs::path::{MOUNT_MOVES, Path, give_way};
use crate::memory::fallible::{self, TryVec};
use crate::memory::reserve::Promise;
use crate::memory::{PAGE_SIZE, reserve};
use crate::process;
use crate::sched::{self, sort_by_key};

/// A group on the way of what is mounted, or a slave that is in none.
struct Level {
    /// 0 for such a slave.
    group: u64,
    /// Where its mounts get it from: an earlier one.
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

/// A place, and the directories above it in its file system: they are found once for all mounts of a group.
struct Way<'a> {
    point: &'a Arc<Dentry>,
    /// By their addresses.
    above: Option<Vec<Arc<Dentry>>>,
}

impl Way<'_> {
    /// Can the place be seen from this root of a mount of the same file system?
    fn begins_at(&mut self, root: &Arc<Dentry>) -> Result<bool> {
        if Arc::ptr_eq(root, self.point) {
            return Ok(true);
        }
        // Most mounts show all of their file system, and those of a file nothing else.
        if !root.inode.is_dir() || root.parent().is_none() {
            return Ok(root.inode.is_dir());
        }
        let above = match self.above.take() {
            Some(above) => above,
            None => directories_above(self.point)?,
        };
        let above = self.above.insert(above);
        Ok(above.binary_search_by_key(&Arc::as_ptr(root), Arc::as_ptr).is_ok())
    }
}

/// All directories above that one, by their addresses. May give way.
fn directories_above(point: &Arc<Dentry>) -> Result<Vec<Arc<Dentry>>> {
    let (mut above, mut at, mut steps) = (Vec::new(), point.clone(), 0);
    while let Some(parent) = at.parent() {
        above.try_push(parent.clone())?;
        give_way(&mut steps);
        at = parent;
    }
    sort_by_key(&mut above, Arc::as_ptr);
    Ok(above)
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
    let mut way = Way { point, above: None };
    let groups = GROUPS.lock();
    let mut seen = BTreeSet::from([group]);
    found.levels.try_push(Level { group, above: 0, used: true })?;
    let mut shows =
        |mount: &Arc<Mount>| -> Result<bool> { Ok(mount.is_in_tree() && way.begins_at(&mount.root)?) };
    let mut at = 0;
    while let Some(&Level { group, .. }) = found.levels.get(at) {
        for (_, member) in groups.members.range((group, 0, 0)..=(group, u64::MAX, u64::MAX)) {
            fallible::reserve(&mut held, 1)?;
            let Some(member) = member.upgrade() else { continue };
            held.push(member.clone());
            if !Arc::ptr_eq(&member, origin) && shows(&member)? {
                found.levels[at].used = true;
                found.mounts.try_push((member, at))?;
            }
            sched::cond_resched();
        }
        for (_, slave) in groups.slaves.range((group, 0)..=(group, u64::MAX)) {
            // For what is seen, too.
            reserve::ask(PAGE_SIZE)?;
            fallible::reserve(&mut held, 1)?;
            let Some(slave) = slave.upgrade() else { continue };
            held.push(slave.clone());
            let own = slave.peers().group;
            if own != 0 && seen.insert(own) {
                found.levels.try_push(Level { group: own, above: at, used: false })?;
            } else if own == 0 && shows(&slave)? {
                let level = found.levels.len();
                found.levels.try_push(Level { group: 0, above: at, used: true })?;
                found.mounts.try_push((slave, level))?;
            }
            sched::cond_resched();
        }
        at += 1;
        while found.levels.get(at).is_some_and(|level| level.group == 0) {
            at += 1;
            sched::cond_resched();
        }
    }
    drop(groups);
    for mount in held {
        drop(mount);
        sched::cond_resched();
    }
    Ok(found)
}

/// The number of the mount of a tree that another one is on, and where on it.
type PlaceInTree = Option<(usize, Arc<Dentry>)>;

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
    places: Vec<PlaceInTree>,
    sets: Vec<Set>,
    /// For the entries of all of these.
    promise: Promise,
}

/// The groups of the copies: for each level that gets some one for each mount of the tree.
struct NewGroups {
    /// By level: how many before it get some. The first is the tree's own.
    ranks: Vec<usize>,
    first: u64,
    len: usize,
}

impl NewGroups {
    /// For the levels of a tree of `len` mounts. Each level is below the nearest one that gets some then.
    fn new(levels: &mut [Level], len: usize) -> Result<Self> {
        let mut ranks = fallible::with_capacity(levels.len())?;
        let mut used = 0;
        for at in 0..levels.len() {
            let above = levels[at].above;
            if !levels[above].used {
                levels[at].above = levels[above].above;
            }
            ranks.push(used);
            used += usize::from(levels[at].used && levels[at].group != 0);
            sched::cond_resched();
        }
        Ok(Self { ranks, first: new_groups((used - 1) * len), len })
    }

    fn get(&self, level: usize, number: usize, own: &[Peers]) -> u64 {
        match self.ranks[level] {
            0 => own[number].group,
            rank => self.first + ((rank - 1) * self.len + number) as u64,
        }
    }
}

/// A tree, each mount before those that are on it, is to be put on `at` or has been.
pub(super) fn prepare(at: &Path, tree: &[Arc<Mount>]) -> Result<Spread> {
    let mut own: Vec<Peers> = fallible::with_capacity(tree.len())?;
    let is_shared = at.mount.peers().is_shared();
    for mount in tree {
        let mut peers = mount.peers();
        if is_shared && peers.group == 0 {
            (peers.group, peers.unbindable) = (new_groups(1), false);
        }
        own.push(peers);
        sched::cond_resched();
    }
    let point = at.dentry.clone();
    if !is_shared {
        let promise = Promise::lasting(tree.len() * ENTRIES)?;
        return Ok(Spread { point, own, places: Vec::new(), sets: Vec::new(), promise });
    }
    let places = places_in(tree)?;
    let Receivers { mut mounts, mut levels } = receivers(&at.mount, &at.dentry)?;
    let mut oldest_kept = u64::MAX;
    for mount in tree {
        oldest_kept = oldest_kept.min(mount_namespace::kept_by(&mount.root.inode));
        sched::cond_resched();
    }
    let mut steps = 0;
    mounts.retain(|(mount, _)| {
        give_way(&mut steps);
        mount.namespace() < oldest_kept
    });
    // Nobody is a slave of a level that gets no copies any more.
    for level in levels.iter_mut().skip(1) {
        level.used = false;
        sched::cond_resched();
    }
    for &(_, level) in &mounts {
        levels[level].used = true;
        sched::cond_resched();
    }
    check_room(&mounts, tree.len())?;
    let promise = Promise::lasting((mounts.len() + 1) * tree.len() * ENTRIES)?;
    let groups = NewGroups::new(&mut levels, tree.len())?;
    let mut sets = fallible::with_capacity(mounts.len())?;
    for (on, level) in mounts {
        // Others wait for the lock of changes meanwhile.
        if process::try_current().is_some_and(|thread| thread.kill_pending()) {
            return Err(Errno::EINTR);
        }
        let Level { group, above, .. } = levels[level];
        let is_elsewhere = on.owner() != at.mount.owner();
        let mut copies = fallible::with_capacity(tree.len())?;
        for (number, original) in tree.iter().enumerate() {
            reserve::ask_lasting(PAGE_SIZE)?;
            let copy = original.another(original.root.clone());
            let peers = Peers {
                group: if group == 0 { 0 } else { groups.get(level, number, &own) },
                master: if level == 0 { own[number].master } else { groups.get(above, number, &own) },
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
            copies.push((copy, peers));
            sched::cond_resched();
        }
        sets.push(Set { on, copies });
    }
    Ok(Spread { point, own, places, sets, promise })
}

/// Where in the tree each of its mounts is mounted, but for the first.
fn places_in(tree: &[Arc<Mount>]) -> Result<Vec<PlaceInTree>> {
    // Ordering, both: under the lock of changes.
    for (number, mount) in tree.iter().enumerate() {
        mount.number.store(number, Ordering::Relaxed);
        sched::cond_resched();
    }
    let mut places = fallible::with_capacity(tree.len())?;
    places.push(None);
    for mount in &tree[1..] {
        places.push(mount.place().and_then(|place| {
            let number = place.mount.number.load(Ordering::Relaxed);
            let is_known = tree.get(number).is_some_and(|known| Arc::ptr_eq(known, &place.mount));
            is_known.then_some((number, place.dentry))
        }));
        sched::cond_resched();
    }
    Ok(places)
}

/// `ENOSPC` when one of the namespaces that get `len` mounts more for each of these would have too many.
fn check_room(mounts: &[(Arc<Mount>, usize)], len: usize) -> Result<()> {
    let mut more: BTreeMap<u64, usize> = BTreeMap::new();
    for (mount, _) in mounts {
        reserve::ask(PAGE_SIZE)?;
        *more.entry(mount.namespace()).or_default() += len;
        sched::cond_resched();
    }
    // Relaxed: a setting of its own.
    let most = MOST_MOUNTS.load(Ordering::Relaxed);
    for (namespace, more) in more {
        let count = TABLE.lock().counts.get(&namespace).copied().unwrap_or_default();
        if count + more > most {
            return Err(Errno::ENOSPC);
        }
        sched::cond_resched();
    }
    Ok(())
}

impl Spread {
    /// The tree is in its place: its mounts are what they become there, and the copies come to theirs.
    pub(super) fn commit(self, tree: &[Arc<Mount>]) {
        for (mount, peers) in tree.iter().zip(&self.own) {
            step(&self.promise);
            if *peers != Peers::default() {
                GROUPS.lock().enter(mount, peers.of_copy(), mount.namespace());
            }
        }
        let top = topmost(tree, &self.places);
        for Set { on, copies } in self.sets {
            let namespace = on.namespace();
            // Race: a namespace ends without the lock of changes, and this one has since the copies were made. What ends from here on,
            // `put_beneath` sees.
            if namespace == 0 {
                for copy in copies {
                    drop(copy);
                    sched::cond_resched();
                }
                continue;
            }
            for (copy, peers) in &copies {
                step(&self.promise);
                GROUPS.lock().enter(copy, *peers, namespace);
            }
            let first = &copies[0].0;
            TABLE.lock().count(first, namespace, on.owner());
            for ((copy, _), place) in copies.iter().zip(&self.places) {
                let Some((on, dentry)) = place else { continue };
                step(&self.promise);
                put(copy, &Path { mount: copies[*on].0.clone(), dentry: dentry.clone() });
            }
            if !put_beneath(first, &copies[top].0, &Path { mount: on, dentry: self.point.clone() }) {
                end::detach_tree(first);
            }
        }
    }
}

/// The next allocations are promised.
fn step(promise: &Promise) {
    promise.step();
    sched::cond_resched();
}

/// The number of what covers all of a tree: the first, or the last of those that are each on the root of the one before, from there on.
fn topmost(tree: &[Arc<Mount>], places: &[PlaceInTree]) -> usize {
    let mut top = 0;
    for (number, place) in places.iter().enumerate() {
        sched::cond_resched();
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
