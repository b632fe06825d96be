//! The mount table: which file system is visible where.
//!
//! There is one table for all processes and all of their namespaces. A mount covers one dentry of its parent mount; the table finds it by
//! the pair. Paths hold references to their mounts, so that a mount which is taken out of the tree
//! (`MNT_DETACH`) serves those who are in it until they leave.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use intrusive_collections::RBTreeAtomicLink;
use linux_raw_sys::general as abi;

use self::end::Kept;
use super::dentry::Dentry;
use super::inode::Superblock;
use super::mount_namespace::{self, Copies, MountNamespace, RESTRICTIONS, check_own};
use super::path::{MOUNT_MOVES, Path};
use crate::errno::{Errno, Result};
use crate::memory::fallible::TryVec;
use crate::memory::{PAGE_SIZE, reserve};
use crate::sched;
use crate::sync::{Mutex, SpinLock};

pub mod end;
mod visible;

pub use visible::{check_reveals_nothing, each_visible};

/// The flags that belong to a mount and not to the file system.
pub const MOUNT_FLAGS: u32 = abi::MS_RDONLY
    | abi::MS_NOSUID
    | abi::MS_NODEV
    | abi::MS_NOEXEC
    | abi::MS_NOATIME
    | abi::MS_NODIRATIME
    | abi::MS_RELATIME
    | abi::MS_NOSYMFOLLOW;

/// A file system, or a part of one, as it is visible at one place.
pub struct Mount {
    /// Differs from every other mount's.
    pub id: u64,
    /// The file system.
    pub superblock: Arc<Superblock>,
    /// What is visible at the mount point.
    pub root: Arc<Dentry>,
    /// The device or other text that mount(2) was given.
    pub source: String,
    flags: AtomicU32,
    /// Flags that stay set: it was copied into a user namespace that may not clear them.
    locked_flags: AtomicU32,
    /// Copied into such a namespace, it stays where it is.
    locked: AtomicBool,
    /// The number of the namespace whose tree it is in; 0 while it is in none.
    namespace: AtomicU64,
    /// Files that are open for writing through it.
    writers: AtomicU32,
    /// Where it is; `None` for the root of all, for a detached mount, and for mounts of the kernel's own.
    place: SpinLock<Option<Place>>,
    /// It was in the tree once, and cannot come back.
    was_placed: AtomicBool,
    /// The locked mounts that were on it when both were taken out of the tree: they cover what they covered, for who is still in here.
    kept: SpinLock<Kept>,
    /// Of a kept one: its place among them, and the address of what it covers.
    by_point: RBTreeAtomicLink,
    covered: AtomicUsize,
    /// The next in the list that it is in: of those to let go, or of trees to take apart.
    pub(super) next: SpinLock<Option<Arc<Mount>>>,
}

#[derive(Clone)]
enum Place {
    /// In the tree.
    On { parent: Arc<Mount>, point: Arc<Dentry> },
    /// Kept by its parent, which keeps it: that may go.
    Kept { parent: Weak<Mount>, point: Arc<Dentry> },
}

struct Table {
    /// The mounts on something, by parent mount and covered dentry (its address, which the mount keeps
    /// alive).
    covering: BTreeMap<(u64, usize), Arc<Mount>>,
    /// The same by covered dentry, namespace and parent mount.
    points: BTreeSet<(usize, u64, u64)>,
    /// How many mounts are in the tree of each namespace, by its number.
    counts: BTreeMap<u64, usize>,
}

impl Table {
    /// The mounts that are directly on `mount`.
    fn on<'a>(&'a self, mount: &Mount) -> impl Iterator<Item = &'a Arc<Mount>> {
        self.covering.range((mount.id, 0)..=(mount.id, usize::MAX)).map(|(_, mount)| mount)
    }

    /// The first of those on dentries from this address on, and the address.
    fn next_on(&self, mount: &Mount, point: usize) -> Option<(usize, Arc<Mount>)> {
        let mut range = self.covering.range((mount.id, point)..=(mount.id, usize::MAX));
        range.next().map(|((_, point), mount)| (*point, mount.clone()))
    }

    /// Takes the mount out; its place is returned to be dropped outside of locks.
    fn take(&mut self, mount: &Mount) -> Option<Place> {
        let place = mount.place.lock().take();
        let namespace = mount.namespace();
        if let Some(Place::On { parent, point }) = &place {
            let address = Arc::as_ptr(point) as usize;
            self.covering.remove(&(parent.id, address));
            self.points.remove(&(address, namespace, parent.id));
            point.mounts.fetch_sub(1, Ordering::SeqCst);
        }
        if let Some(count) = self.counts.get_mut(&namespace) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&namespace);
            }
        }
        mount.set_namespace(0);
        place
    }

    /// The mount is in the tree of this namespace now.
    fn count(&mut self, mount: &Mount, namespace: u64) {
        mount.set_namespace(namespace);
        *self.counts.entry(namespace).or_default() += 1;
    }

    /// A mount on the dentry, of any namespace.
    fn any_on(&self, point: &Dentry) -> Option<Arc<Mount>> {
        let address = core::ptr::from_ref(point) as usize;
        let (_, _, parent) = self.points.range((address, 0, 0)..=(address, u64::MAX, u64::MAX)).next()?;
        self.covering.get(&(*parent, address)).cloned()
    }
}

/// `fs.mount-max`: mounts that one namespace may have.
pub static MOST_MOUNTS: AtomicUsize = AtomicUsize::new(100_000);

static TABLE: SpinLock<Table> =
    SpinLock::new(Table { covering: BTreeMap::new(), points: BTreeSet::new(), counts: BTreeMap::new() });
/// Serialises changes of the table, which look at it more than once.
static CHANGE: Mutex<()> = Mutex::new(());

fn key(path: &Path) -> (u64, usize) {
    (path.mount.id, Arc::as_ptr(&path.dentry) as usize)
}

impl Mount {
    /// A mount of the file system with that root, not yet in the tree: for the kernel's own use, or for
    /// `attach`.
    pub fn new(root: Arc<Dentry>, source: &str, flags: u32) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let superblock = root.inode.superblock.clone();
        superblock.mounts.fetch_add(1, Ordering::SeqCst);
        Arc::new(Self {
            // Ordering: only the numbers have to differ.
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            superblock,
            root,
            source: source.into(),
            flags: AtomicU32::new(flags & MOUNT_FLAGS),
            locked_flags: AtomicU32::new(0),
            locked: AtomicBool::new(false),
            namespace: AtomicU64::new(0),
            writers: AtomicU32::new(0),
            place: SpinLock::new(None),
            was_placed: AtomicBool::new(false),
            kept: SpinLock::new(Kept::new(end::ByPoint::NEW)),
            by_point: RBTreeAtomicLink::new(),
            covered: AtomicUsize::new(0),
            next: SpinLock::new(None),
        })
    }

    /// Its flags (`MS_RDONLY`, `MS_NOEXEC` ...), those of the file system included.
    pub fn flags(&self) -> u32 {
        // Ordering: a flag word of its own.
        self.flags.load(Ordering::Relaxed) | self.superblock.flags()
    }

    /// Sets the flags of the mount itself.
    pub(super) fn set_flags(&self, flags: u32) {
        // Ordering: a flag word of its own.
        self.flags.store(flags & MOUNT_FLAGS, Ordering::Relaxed);
    }

    /// The number of the namespace whose tree it is in; 0 while it is in none.
    pub fn namespace(&self) -> u64 {
        // Ordering: changed with the tree, which has a lock of its own.
        self.namespace.load(Ordering::Relaxed)
    }

    pub(super) fn set_namespace(&self, number: u64) {
        // Ordering: as above.
        self.namespace.store(number, Ordering::Relaxed);
    }

    /// `EPERM` when these flags lack one that has to stay.
    fn check_locked(&self, flags: u32) -> Result<()> {
        // Ordering: set before anybody could see the mount.
        if self.locked_flags.load(Ordering::Relaxed) & !flags != 0 { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Another view of the same file system, with `root` in the place of its own.
    fn another(&self, root: Arc<Dentry>) -> Arc<Self> {
        // Ordering, all: flag words of their own.
        let copy = Self::new(root, &self.source, self.flags.load(Ordering::Relaxed));
        copy.locked_flags.store(self.locked_flags.load(Ordering::Relaxed), Ordering::Relaxed);
        copy
    }

    /// Is any of these flags set?
    pub fn has(&self, flags: u32) -> bool {
        self.flags() & flags != 0
    }

    /// `EROFS` when nothing may be changed through it.
    pub fn check_writable(&self) -> Result<()> {
        if self.has(abi::MS_RDONLY) { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Is the directory, of the mount's file system, in what the mount shows?
    pub(super) fn shows(&self, directory: &Arc<Dentry>) -> bool {
        // Ordering: whoever stands in a directory that was moved comes behind the move by the directory's own lock.
        let may_be_outside =
            self.root.parent().is_some() && self.superblock.has_moved.load(Ordering::Relaxed);
        !may_be_outside || self.root.is_ancestor_of(directory)
    }

    /// The parent mount and what is covered there.
    pub fn place(&self) -> Option<Path> {
        let place = self.place.lock().clone()?;
        let (parent, dentry) = match place {
            Place::On { parent, point } => (parent, point),
            Place::Kept { parent, point } => {
                // Under the table's lock, or the parent could be on its way out and have let go of what it keeps.
                let _table = TABLE.lock();
                (parent.upgrade()?, point)
            }
        };
        Some(Path { mount: parent, dentry })
    }

    pub(super) fn add_writer(&self) {
        self.writers.fetch_add(1, Ordering::SeqCst);
        self.superblock.writers.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn remove_writer(&self) {
        self.writers.fetch_sub(1, Ordering::SeqCst);
        self.superblock.writers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Is it in the tree of a namespace?
    fn is_in_tree(&self) -> bool {
        self.namespace() != 0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        end::let_go(self.kept.get_mut().take());
        if self.superblock.mounts.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.superblock.ops.kill();
        }
    }
}

/// The top of the mounts on `path`: where a path walk that arrives at `path` goes on.
pub fn enter(mut path: Path) -> Path {
    // Ordering: a walk that races with mount(2) may see either state.
    while path.dentry.mounts.load(Ordering::Acquire) > 0 {
        let in_tree = TABLE.lock().covering.get(&key(&path)).cloned();
        let Some(mount) = in_tree.or_else(|| path.mount.kept_on(&path.dentry)) else { break };
        path = Path { dentry: mount.root.clone(), mount };
    }
    path
}

/// Is anything mounted on the dentry in the current thread's namespace, through whichever mount? Such a name cannot be removed or
/// replaced. What others have mounted there cannot hold up whose name it is: see [`unmount_removed`](end::unmount_removed).
pub fn is_mount_point(dentry: &Dentry) -> bool {
    if dentry.mounts.load(Ordering::Acquire) == 0 {
        return false;
    }
    let address = core::ptr::from_ref(dentry) as usize;
    let own = mount_namespace::own_number();
    TABLE.lock().points.range((address, own, 0)..=(address, own, u64::MAX)).next().is_some()
}

/// Puts `mount` on `at`; both must be directories, or neither.
pub fn attach(mount: &Arc<Mount>, at: Path) -> Result<()> {
    let _change = CHANGE.lock();
    let at = enter(at);
    check_own(&at)?;
    attach_locked(mount, at)
}

/// Can the mount be at that place? Who moves one asks before it is taken from where it is.
fn check_place(mount: &Mount, at: &Path) -> Result<()> {
    if mount.root.inode.is_dir() != at.dentry.inode.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if at.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    Ok(())
}

fn attach_locked(mount: &Arc<Mount>, at: Path) -> Result<()> {
    check_place(mount, &at)?;
    mount_namespace::check_keeps(&mount.root.inode, at.mount.namespace())?;
    // Relaxed: a setting of its own.
    let most = MOST_MOUNTS.load(Ordering::Relaxed);
    let namespace = at.mount.namespace();
    if TABLE.lock().counts.get(&namespace).is_some_and(|count| *count >= most) {
        return Err(Errno::ENOSPC);
    }
    // A mount outlives who made it.
    reserve::ask_lasting(PAGE_SIZE)?;
    put(mount, &at);
    Ok(())
}

/// Puts a mount in its place, for those who change the tree.
fn put(mount: &Arc<Mount>, at: &Path) {
    let mut table = TABLE.lock();
    at.dentry.mounts.fetch_add(1, Ordering::SeqCst);
    *mount.place.lock() = Some(Place::On { parent: at.mount.clone(), point: at.dentry.clone() });
    // Ordering: changed with the tree, which has a lock of its own.
    mount.was_placed.store(true, Ordering::Relaxed);
    let namespace = at.mount.namespace();
    table.count(mount, namespace);
    let (parent, address) = key(at);
    table.points.insert((address, namespace, parent));
    table.covering.insert((parent, address), mount.clone());
}

/// Makes `mount` the root of all: the first mount of the system.
pub fn attach_root(mount: &Arc<Mount>) {
    TABLE.lock().count(mount, MountNamespace::initial().head.ino);
    MountNamespace::initial().set_root(mount);
}

/// A copy of the mount `root`, which is the bottom of a tree, and of all that is on it, for the namespace with this number. `locked`: it
/// is of a user namespace that must not look below, nor lift restrictions.
pub fn copy_tree(root: &Arc<Mount>, namespace: u64, locked: bool) -> Result<Copies> {
    let _change = CHANGE.lock();
    let mut copies = Copies::new();
    let copied = copy_below(root, namespace, locked, &mut copies);
    if copied.is_err()
        && let Some(top) = copies.get(&root.id)
    {
        end::detach_tree(top);
    }
    copied.map(|()| copies)
}

fn copy_below(root: &Arc<Mount>, namespace: u64, locked: bool, copies: &mut Copies) -> Result<()> {
    for original in subtree(root)? {
        let copy = original.another(original.root.clone());
        if locked {
            // Ordering: nobody else sees it yet.
            let flags = copy.flags() & RESTRICTIONS;
            copy.locked_flags.fetch_or(flags, Ordering::Relaxed);
            copy.locked.store(!Arc::ptr_eq(&original, root), Ordering::Relaxed);
        }
        copies.insert(original.id, copy.clone());
        if Arc::ptr_eq(&original, root) {
            reserve::ask_lasting(PAGE_SIZE)?;
            TABLE.lock().count(&copy, namespace);
            continue;
        }
        let Some(place) = original.place() else { continue };
        let Some(parent) = copies.get(&place.mount.id).cloned() else { continue };
        if mount_namespace::check_keeps(&original.root.inode, namespace).is_err() {
            continue;
        }
        reserve::ask_lasting(PAGE_SIZE)?;
        put(&copy, &Path { mount: parent, dentry: place.dentry });
        sched::cond_resched();
    }
    Ok(())
}

/// Takes the mount out of the tree without looking whether it is in use. Its place is returned to be dropped
/// outside of locks.
fn detach_one(mount: &Arc<Mount>) -> Option<Place> {
    TABLE.lock().take(mount)
}

/// The mounts below `mount`, itself first: each before those that are on it.
fn subtree(mount: &Arc<Mount>) -> Result<Vec<Arc<Mount>>> {
    let mut found: Vec<Arc<Mount>> = alloc::vec![mount.clone()];
    let mut next = 0;
    while let Some(parent) = found.get(next).cloned() {
        let mut point = 0;
        loop {
            let next = TABLE.lock().next_on(&parent, point);
            let Some((at, mount)) = next else { break };
            found.try_push(mount)?;
            point = at + 1;
            sched::cond_resched();
        }
        sched::cond_resched();
        next += 1;
    }
    Ok(found)
}

/// Is `mount` on `top`, directly or not, or `top` itself?
fn is_below(mount: &Arc<Mount>, top: &Arc<Mount>) -> bool {
    let mut at = mount.clone();
    loop {
        if Arc::ptr_eq(&at, top) {
            return true;
        }
        let Some(place) = at.place() else { return false };
        at = place.mount;
    }
}

/// A second view of what is visible at `from`, put on `at`; with `recursive` the mounts below as well.
pub fn bind(from: &Path, at: Path, recursive: bool) -> Result<()> {
    let _change = CHANGE.lock();
    let at = enter(at);
    check_own(&at)?;
    check_own_or_namespace(from)?;
    mount_namespace::check_keeps(from.inode(), at.mount.namespace())?;
    let top = from.mount.another(from.dentry.clone());
    // Before the new mount is there, or it would be copied into itself.
    let mut below = subtree(&from.mount)?;
    if !recursive {
        // What a locked mount covers is not shown beside it.
        if below.iter().skip(1).any(|mount| is_locked_below(mount, from)) {
            return Err(Errno::EINVAL);
        }
        below.clear();
    }
    attach_locked(&top, at)?;
    bind_below(from, &top, &below).inspect_err(|_| end::detach_tree(&top))
}

/// Copies the mounts that are on `from` onto `top`; `below` are all on its mount, that one first.
fn bind_below(from: &Path, top: &Arc<Mount>, below: &[Arc<Mount>]) -> Result<()> {
    // By the number of what each is a copy of.
    let mut copies = BTreeMap::from([(from.mount.id, top.clone())]);
    for original in below.iter().skip(1) {
        sched::cond_resched();
        let Some(place) = original.place() else { continue };
        let Some(new_parent) = copies.get(&place.mount.id).cloned() else { continue };
        if Arc::ptr_eq(&place.mount, &from.mount) && !from.dentry.is_ancestor_of(&place.dentry) {
            continue;
        }
        // A file that stands for the namespace, as in the copy of a whole one: left out.
        if mount_namespace::check_keeps(&original.root.inode, new_parent.namespace()).is_err() {
            continue;
        }
        let new = original.another(original.root.clone());
        // Ordering: set before anybody could see the mount.
        new.locked.store(original.locked.load(Ordering::Relaxed), Ordering::Relaxed);
        attach_locked(&new, Path { mount: new_parent, dentry: place.dentry })?;
        copies.insert(original.id, new);
    }
    Ok(())
}

/// Moves the mount whose root `from` is to `at`.
pub fn relocate(from: &Path, at: Path) -> Result<()> {
    let _change = CHANGE.lock();
    let at = enter(at);
    let mount = &from.mount;
    check_own(&at)?;
    check_own(from)?;
    // Ordering: set before anybody could see the mount.
    let locked = mount.locked.load(Ordering::Relaxed);
    if !Arc::ptr_eq(&from.dentry, &mount.root) || mount.place().is_none() || locked {
        return Err(Errno::EINVAL);
    }
    check_place(mount, &at)?;
    if is_below(&at.mount, mount) {
        return Err(Errno::ELOOP);
    }
    let _moving = MOUNT_MOVES.begin();
    let old = detach_one(mount);
    put(mount, &at);
    drop(old);
    Ok(())
}

/// move_mount(2): puts a mount that is nowhere yet on `at`, or moves one that is somewhere.
pub fn place_or_move(from: &Path, at: Path) -> Result<()> {
    let mount = &from.mount;
    if !Arc::ptr_eq(&from.dentry, &mount.root) {
        return Err(Errno::EINVAL);
    }
    {
        let _change = CHANGE.lock();
        if !mount.is_in_tree() {
            let at = enter(at);
            // Into itself, or onto what is nowhere: nobody would ever see it.
            if !at.mount.is_in_tree() || !mount_namespace::is_own(&at.mount) {
                return Err(Errno::EINVAL);
            }
            // What was unmounted, as nobody else could see what it covered: it has let go of its own mounts. Relaxed: as where it is set.
            if mount.was_placed.load(Ordering::Relaxed) {
                return Err(Errno::EINVAL);
            }
            // Where a bind mount is told that the namespace would keep itself, this is a loop.
            mount_namespace::check_keeps(&mount.root.inode, at.mount.namespace())
                .map_err(|_| Errno::ELOOP)?;
            return attach_locked(mount, at);
        }
    }
    relocate(from, at)
}

/// open_tree(2) with OPEN_TREE_CLONE: a second view of what is visible at `from`, nowhere yet. Mounts below are not in it.
pub fn detached_view(from: &Path) -> Result<Path> {
    let _change = CHANGE.lock();
    check_own_or_namespace(from)?;
    if subtree(&from.mount)?.iter().skip(1).any(|mount| is_locked_below(mount, from)) {
        return Err(Errno::EINVAL);
    }
    let mount = from.mount.another(from.dentry.clone());
    Ok(Path { dentry: from.dentry.clone(), mount })
}

/// As [`check_own`], of what another view is to be made of: a file that stands for a namespace is in no tree, and may be shown all the
/// same.
fn check_own_or_namespace(from: &Path) -> Result<()> {
    if crate::namespaces::file::is_one(from.inode()) { Ok(()) } else { check_own(from) }
}

/// Is `mount` one that stays where it is, and covers something that a view of `from` alone would show?
fn is_locked_below(mount: &Mount, from: &Path) -> bool {
    // Ordering: set before anybody could see the mount.
    mount.locked.load(Ordering::Relaxed)
        && mount.place().is_some_and(|place| {
            Arc::ptr_eq(&place.mount, &from.mount) && from.dentry.is_ancestor_of(&place.dentry)
        })
}

/// mount_setattr(2): changes flags of the mount that `path` is the root of, and of those below if `recursive`. All or none.
pub fn change_flags(path: &Path, add: u32, remove: u32, recursive: bool) -> Result<()> {
    let _change = CHANGE.lock();
    check_own(path)?;
    if !Arc::ptr_eq(&path.dentry, &path.mount.root) {
        return Err(Errno::EINVAL);
    }
    let mounts = if recursive { subtree(&path.mount)? } else { alloc::vec![path.mount.clone()] };
    if add & abi::MS_RDONLY != 0 && mounts.iter().any(|mount| mount.writers.load(Ordering::SeqCst) > 0) {
        return Err(Errno::EBUSY);
    }
    for mount in &mounts {
        mount.check_locked(mount.flags.load(Ordering::Relaxed) & !remove | add)?;
    }
    for mount in &mounts {
        // Ordering: a flag word of its own, changed under the lock.
        let old = mount.flags.load(Ordering::Relaxed);
        mount.set_flags(old & !remove | add);
    }
    drop(mounts);
    Ok(())
}

/// Changes the flags of the mount that `path` is the root of; unless `mount_only`, the file system's as well,
/// which gets `options`.
pub fn remount(path: &Path, flags: u32, mount_only: bool, options: &str) -> Result<()> {
    let _change = CHANGE.lock();
    let mount = &path.mount;
    check_own(path)?;
    if !Arc::ptr_eq(&path.dentry, &mount.root) {
        return Err(Errno::EINVAL);
    }
    mount.check_locked(flags)?;
    if !mount_only {
        mount.superblock.check_may_change()?;
        let becomes_read_only = flags & abi::MS_RDONLY != 0 && mount.superblock.flags() & abi::MS_RDONLY == 0;
        if becomes_read_only && mount.superblock.writers.load(Ordering::SeqCst) > 0 {
            return Err(Errno::EBUSY);
        }
        mount.superblock.ops.remount(options)?;
        mount.superblock.set_flags(flags & abi::MS_RDONLY);
    } else if flags & abi::MS_RDONLY != 0 && mount.writers.load(Ordering::SeqCst) > 0 {
        return Err(Errno::EBUSY);
    }
    // Ordering: a flag word of its own.
    mount.flags.store(flags & MOUNT_FLAGS, Ordering::Relaxed);
    Ok(())
}

/// pivot_root(2): `new_root` becomes the root of the tree, the present root moves to `put_old`.
pub fn pivot(old_root: &Path, new_root: &Path, put_old: Path) -> Result<()> {
    let _change = CHANGE.lock();
    let (old, new) = (&old_root.mount, &new_root.mount);
    check_own(old_root)?;
    check_own(new_root)?;
    check_own(&put_old)?;
    // Ordering: set before anybody could see the mount.
    if new.locked.load(Ordering::Relaxed) {
        return Err(Errno::EINVAL);
    }
    if !Arc::ptr_eq(&new_root.dentry, &new.root) || !Arc::ptr_eq(&old_root.dentry, &old.root) {
        return Err(Errno::EINVAL);
    }
    if Arc::ptr_eq(old, new) || Arc::ptr_eq(old, &put_old.mount) {
        return Err(Errno::EBUSY);
    }
    // The new root has to be in sight: else the old one could be on it, and the new one would be put on itself.
    if !is_below(&put_old.mount, new) || !is_below(new, old) {
        return Err(Errno::EINVAL);
    }
    // As in Linux: the first root file system is not attached to anything and cannot be moved.
    let (Some(old_place), Some(_)) = (old.place(), new.place()) else { return Err(Errno::EINVAL) };
    let put_old = enter(put_old);
    check_place(new, &old_place)?;
    check_place(old, &put_old)?;
    let _moving = MOUNT_MOVES.begin();
    drop(detach_one(new));
    drop(detach_one(old));
    put(new, &old_place);
    // What stays where it is covers the same place as before; the old root may be unmounted where it is now.
    // Ordering: changed with the tree, which has a lock of its own.
    new.locked.store(old.locked.swap(false, Ordering::Relaxed), Ordering::Relaxed);
    put(old, &put_old);
    Ok(())
}
