//! The mount table: which file system is visible where.
//!
//! There is one table for all processes and all of their namespaces. A mount covers one dentry of its parent mount; the table finds it by
//! the pair. Paths hold references to their mounts, so that a mount which is taken out of the tree
//! (`MNT_DETACH`) serves those who are in it until they leave.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use intrusive_collections::RBTreeAtomicLink;
use linux_raw_sys::general as abi;

use self::end::Kept;
use self::propagation::Peers;
use super::dentry::Dentry;
use super::inode::Superblock;
use super::mount_namespace::{self, MountNamespace, check_own};
use super::path::{Path, give_way};
use crate::errno::{Errno, Result};
use crate::memory::fallible::TryVec;
use crate::memory::{PAGE_SIZE, reserve};
use crate::sched;
use crate::sync::{Mutex, MutexGuard, SpinLock};

mod companions;
mod copies;
pub mod end;
pub mod listed;
mod moves;
pub mod propagation;
mod settings;
mod spread;
mod visible;

pub use copies::copy_tree;
pub use moves::{bind, detached_view, pivot, place_or_move, relocate};
pub use settings::{change_flags, remount};
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

/// Of these, those that the new calls have a `MOUNT_ATTR_*` bit for each: the bit, and the flag.
pub const ATTRIBUTES: [(u32, u32); 6] = [
    (abi::MOUNT_ATTR_RDONLY, abi::MS_RDONLY),
    (abi::MOUNT_ATTR_NOSUID, abi::MS_NOSUID),
    (abi::MOUNT_ATTR_NODEV, abi::MS_NODEV),
    (abi::MOUNT_ATTR_NOEXEC, abi::MS_NOEXEC),
    (abi::MOUNT_ATTR_NODIRATIME, abi::MS_NODIRATIME),
    (abi::MOUNT_ATTR_NOSYMFOLLOW, abi::MS_NOSYMFOLLOW),
];

/// Of these, how access times are kept.
pub const TIMES: u32 = abi::MS_NOATIME | abi::MS_NODIRATIME | abi::MS_RELATIME;
/// Among the locked flags: [`TIMES`] stay as they are, set or not.
const LOCKED_TIMES: u32 = 1 << 31;

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
    /// Copied into such a namespace, it stays where it is. So do its copies, but for the first of a tree.
    locked: AtomicBool,
    /// The number of the mount with which it went, were it not locked.
    goes_with: AtomicU64,
    /// The number of the namespace whose tree it is in; 0 while it is in none.
    namespace: AtomicU64,
    /// The number of the user namespace that this one belongs to.
    owner: AtomicU64,
    /// Where what is mounted on it shows as well, and what shows here.
    peers: SpinLock<Peers>,
    /// Files that are open for writing through it, and calls that are about to write.
    writers: AtomicU32,
    /// Its number in the tree that comes somewhere now: under the lock of changes.
    number: AtomicUsize,
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
    /// Where they are, by namespace and the mount's number: all but the ones at the bottom of a namespace.
    numbers: BTreeMap<(u64, u64), (u64, usize)>,
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

    /// What covers all of the mount, if nothing else is on it.
    fn topper(&self, mount: &Mount) -> Option<Arc<Mount>> {
        let mut all = self.on(mount);
        let first = all.next()?;
        let covers = self.covering.get(&(mount.id, Arc::as_ptr(&mount.root) as usize))?;
        (all.next().is_none() && Arc::ptr_eq(first, covers)).then(|| covers.clone())
    }

    /// Puts the mount on a place of its namespace's tree, on which nothing is.
    fn hang(&mut self, mount: &Arc<Mount>, at: &Path) {
        at.dentry.mounts.fetch_add(1, Ordering::SeqCst);
        *mount.place.lock() = Some(Place::On { parent: at.mount.clone(), point: at.dentry.clone() });
        // Ordering: changed with the tree, which has a lock of its own.
        mount.was_placed.store(true, Ordering::Relaxed);
        let (parent, address) = key(at);
        let namespace = at.mount.namespace();
        self.points.insert((address, namespace, parent));
        self.numbers.insert((namespace, mount.id), (parent, address));
        let replaced = self.covering.insert((parent, address), mount.clone());
        debug_assert!(replaced.is_none(), "two mounts in one place");
    }

    /// The reverse; the place is returned to be dropped outside of locks.
    fn unhang(&mut self, mount: &Mount) -> Option<Place> {
        let place = mount.place.lock().take();
        if let Some(Place::On { parent, point }) = &place {
            let address = Arc::as_ptr(point) as usize;
            self.covering.remove(&(parent.id, address));
            self.points.remove(&(address, mount.namespace(), parent.id));
            self.numbers.remove(&(mount.namespace(), mount.id));
            point.mounts.fetch_sub(1, Ordering::SeqCst);
        }
        place
    }

    /// Takes the mount out; its place is returned to be dropped outside of locks.
    fn take(&mut self, mount: &Mount) -> Option<Place> {
        let place = self.unhang(mount);
        let namespace = mount.namespace();
        if let Some(count) = self.counts.get_mut(&namespace) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&namespace);
            }
        }
        mount.set_namespace(0);
        place
    }

    /// The mount is in the tree of this namespace now, which belongs to the user namespace `owner`.
    fn count(&mut self, mount: &Mount, namespace: u64, owner: u64) {
        mount.set_namespace(namespace);
        // Ordering: changed with the tree, which has a lock of its own.
        mount.owner.store(owner, Ordering::Relaxed);
        *self.counts.entry(namespace).or_default() += 1;
    }

    /// The mount with this number, if it is on something in this namespace.
    fn by_number(&self, namespace: u64, id: u64) -> Option<Arc<Mount>> {
        self.covering.get(self.numbers.get(&(namespace, id))?).cloned()
    }

    /// The mount with the next number, as [`Table::by_number`]: behind `at`, or before it. From 0 on all are.
    fn next_number(&self, namespace: u64, at: u64, backwards: bool) -> Option<Arc<Mount>> {
        let place = if backwards {
            let end = if at == 0 { u64::MAX } else { at };
            self.numbers.range((namespace, 0)..(namespace, end)).next_back()
        } else {
            self.numbers.range((namespace, at.saturating_add(1))..=(namespace, u64::MAX)).next()
        };
        self.covering.get(place?.1).cloned()
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

static TABLE: SpinLock<Table> = SpinLock::growing(Table {
    covering: BTreeMap::new(),
    points: BTreeSet::new(),
    numbers: BTreeMap::new(),
    counts: BTreeMap::new(),
});
/// Serialises changes of the table, which look at it more than once.
static CHANGE: Mutex<()> = Mutex::new(());

/// The lock of changes, for a call. `EINTR` when the caller is killed: others may change much.
fn lock_changes() -> Result<MutexGuard<'static, ()>> {
    CHANGE.lock_killable().ok_or(Errno::EINTR)
}

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
            goes_with: AtomicU64::new(0),
            namespace: AtomicU64::new(0),
            owner: AtomicU64::new(0),
            peers: SpinLock::new(Peers::default()),
            writers: AtomicU32::new(0),
            number: AtomicUsize::new(0),
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

    /// The number of the user namespace that this one belongs to.
    fn owner(&self) -> u64 {
        // Ordering: changed with the tree, which has a lock of its own.
        self.owner.load(Ordering::Relaxed)
    }

    pub(super) fn set_namespace(&self, number: u64) {
        // Ordering: as above.
        self.namespace.store(number, Ordering::Relaxed);
    }

    /// `EPERM` when these flags lack one that has to stay, or change how access times are kept where that has to stay.
    fn check_locked(&self, flags: u32) -> Result<()> {
        // Ordering: set before anybody could see the mount.
        let locked = self.locked_flags.load(Ordering::Relaxed);
        let changed = self.flags.load(Ordering::Relaxed) ^ flags;
        if locked & !LOCKED_TIMES & !flags != 0 || locked & LOCKED_TIMES != 0 && changed & TIMES != 0 {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    /// Another view of the same file system, with `root` in the place of its own: the first of a tree, that nothing keeps in its place.
    fn view(&self, root: Arc<Dentry>) -> Arc<Self> {
        let view = self.another(root);
        // Ordering: nobody else sees it yet.
        view.locked.store(false, Ordering::Relaxed);
        view
    }

    /// Another view of the same file system, with `root` in the place of its own.
    fn another(&self, root: Arc<Dentry>) -> Arc<Self> {
        // Ordering, all: flag words of their own.
        let copy = Self::new(root, &self.source, self.flags.load(Ordering::Relaxed));
        copy.locked_flags.store(self.locked_flags.load(Ordering::Relaxed), Ordering::Relaxed);
        copy.locked.store(self.locked.load(Ordering::Relaxed), Ordering::Relaxed);
        *copy.peers.lock() = self.peers().of_copy();
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

    /// As `check_writable`, and it stays so as long as the result lives: nobody makes the mount or its file system read-only meanwhile.
    pub(super) fn begin_writing(&self) -> Result<Writing<'_>> {
        self.add_writer();
        let writing = Writing(self);
        // Race: either this sees what `settings` made of the flags, or that one sees this writer.
        fence(Ordering::SeqCst);
        self.check_writable()?;
        Ok(writing)
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

/// See [`Mount::begin_writing`].
pub(super) struct Writing<'a>(&'a Mount);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.remove_writer();
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

/// The top of the mounts on `path`: where a path walk that arrives at `path` goes on. May give way: there may be a hundred thousand.
pub fn enter(mut path: Path) -> Path {
    let mut steps = 0;
    // Ordering: a walk that races with mount(2) may see either state.
    while path.dentry.mounts.load(Ordering::Acquire) > 0 {
        let in_tree = TABLE.lock().covering.get(&key(&path)).cloned();
        let Some(mount) = in_tree.or_else(|| path.mount.kept_on(&path.dentry)) else { break };
        path = Path { dentry: mount.root.clone(), mount };
        give_way(&mut steps);
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
    let _change = lock_changes()?;
    let at = enter(at);
    check_own(&at)?;
    attach_new(mount, at)
}

/// Puts a mount that is nowhere yet on `at`, and copies of it wherever that shows.
fn attach_new(mount: &Arc<Mount>, at: Path) -> Result<()> {
    let tree = core::slice::from_ref(mount);
    let spread = spread::prepare(&at, tree)?;
    attach_locked(mount, at)?;
    spread.commit(tree);
    Ok(())
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

/// Puts the mount on `at` alone.
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
    // On one that nothing reaches it would stay for ever.
    debug_assert!(at.mount.is_in_tree(), "a mount on one that is in no tree");
    let mut table = TABLE.lock();
    table.count(mount, at.mount.namespace(), at.mount.owner());
    table.hang(mount, at);
}

/// Makes `mount` the root of all: the first mount of the system.
pub fn attach_root(mount: &Arc<Mount>) {
    let first = MountNamespace::initial();
    TABLE.lock().count(mount, first.head.ino, first.head.user.ino);
    first.set_root(mount);
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
