//! Paths: places in the tree of mounts, and the walk that finds them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::access::{self, Credentials};
use super::dentry::{Dentry, NAME_MAX};
use super::inode::Inode;
use super::mount::{self, Mount};
use super::stat::FileType;
use crate::errno::{Errno, Result};
use crate::memory::fallible::{self, TryVec};
use crate::process;

/// The longest path, its final NUL included, bytes.
pub const PATH_MAX: usize = 4096;
/// The most symbolic links that one walk follows.
const MAX_LINKS: u32 = 40;

/// A place in the tree: a dentry, and the mount through which it is seen.
#[derive(Clone)]
pub struct Path {
    /// The mount.
    pub mount: Arc<Mount>,
    /// The dentry; of the mount's file system.
    pub dentry: Arc<Dentry>,
}

/// The text of a path that is written from its end to its begin, in a page: it does not get larger with the depth of a tree.
struct Backwards {
    text: Vec<u8>,
    start: usize,
}

impl Backwards {
    fn new() -> Self {
        Self { text: alloc::vec![0; PATH_MAX], start: PATH_MAX }
    }

    /// Puts a directory's name, with a slash, in front. `ENAMETOOLONG` when there is no room.
    fn put_name(&mut self, name: &[u8]) -> Result<()> {
        let start = self.start.checked_sub(name.len() + 1).ok_or(Errno::ENAMETOOLONG)?;
        self.text[start] = b'/';
        self.text[start + 1..self.start].copy_from_slice(name);
        self.start = start;
        Ok(())
    }

    /// The whole path, that of the root if there were no names. In the page it has room for what is put around a path: to make room later
    /// would take more than a page.
    fn finish(mut self) -> Vec<u8> {
        const AROUND: usize = "(unreachable)".len() + "\0".len();
        if self.start == PATH_MAX {
            return alloc::vec![b'/'];
        }
        self.text.drain(..self.start);
        self.text.shrink_to(self.text.len() + AROUND);
        self.text
    }
}

/// The path of a name in its file system, whatever of it is mounted. `ENAMETOOLONG` as above.
pub fn within_file_system(dentry: &Arc<Dentry>) -> Result<Vec<u8>> {
    let mut text = Backwards::new();
    let mut at = dentry.clone();
    while let (Some(parent), name) = at.location() {
        text.put_name(&name)?;
        at = parent;
    }
    Ok(text.finish())
}

/// Gives way now and then on a way up: directories are as deep as there is memory for, and mounts may be stacked by the hundred thousand.
pub(super) fn give_way(steps: &mut usize) {
    *steps += 1;
    if steps.is_multiple_of(64) {
        crate::sched::cond_resched();
    }
}

impl Path {
    /// The file at this place.
    pub fn inode(&self) -> &Arc<Inode> {
        &self.dentry.inode
    }

    /// The same place: same mount, same dentry?
    pub fn same(&self, other: &Path) -> bool {
        Arc::ptr_eq(&self.mount, &other.mount) && Arc::ptr_eq(&self.dentry, &other.dentry)
    }

    /// One level up, as `..` goes: not above `root`, through mount points, onto what is mounted there. `ENOENT` where the directory has
    /// been moved out of what its mount shows: there is no way out of a mount but by its root.
    pub fn parent(&self, root: &Path) -> Result<Path> {
        let mut at = self.clone();
        let mut steps = 0;
        loop {
            if at.same(root) {
                return Ok(at);
            }
            if !Arc::ptr_eq(&at.dentry, &at.mount.root)
                && let Some(parent) = at.dentry.parent()
            {
                if !at.mount.shows(&parent) {
                    return Err(Errno::ENOENT);
                }
                return Ok(mount::enter(Path { mount: at.mount, dentry: parent }));
            }
            // The root of a mount: as seen from the mount point. The root of all is its own parent.
            match at.mount.place() {
                Some(place) => at = place,
                None => return Ok(at),
            }
            give_way(&mut steps);
        }
    }

    /// The path as text, as seen from `root`, and whether it was reached from there: a place outside begins
    /// with no known directory. `ENAMETOOLONG` when it is longer than a path can be.
    pub fn to_text(&self, root: &Path) -> Result<(Vec<u8>, bool)> {
        let mut text = Backwards::new();
        let mut at = self.clone();
        let mut steps = 0;
        let reachable = loop {
            if at.same(root) {
                break true;
            }
            give_way(&mut steps);
            if Arc::ptr_eq(&at.dentry, &at.mount.root) {
                match at.mount.place() {
                    Some(place) => at = place,
                    None => break false,
                }
                continue;
            }
            let (parent, name) = at.dentry.location();
            let Some(parent) = parent else {
                if at.mount.root.parent().is_some() {
                    // The file system's root, from a directory that has been moved out of what the mount shows.
                    break false;
                }
                // A file outside of any tree: a pipe, a socket, a memfd. Its name is all there is.
                return Ok((name.into(), true));
            };
            text.put_name(&name)?;
            at.dentry = parent;
        };
        Ok((text.finish(), reachable))
    }

    /// Is it below `root`, or that itself?
    pub fn is_below(&self, root: &Path) -> bool {
        let mut at = self.clone();
        let mut steps = 0;
        while !at.same(root) {
            give_way(&mut steps);
            let above = if Arc::ptr_eq(&at.dentry, &at.mount.root) {
                at.mount.place()
            } else {
                at.dentry.parent().map(|parent| Path { mount: at.mount.clone(), dentry: parent })
            };
            let Some(above) = above else { return false };
            at = above;
        }
        true
    }

    /// The text that `/proc` shows: ` (deleted)` behind a name that is gone. Errors as [`Path::to_text`].
    pub fn display(&self, root: &Path) -> Result<Vec<u8>> {
        const DELETED: &[u8] = b" (deleted)";
        let (mut text, _) = self.to_text(root)?;
        if self.dentry.is_removed() {
            if text.len() + DELETED.len() > PATH_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            text.extend_from_slice(DELETED);
        }
        Ok(text)
    }
}

/// Where and as whom a walk is made.
#[derive(Clone)]
pub struct Start {
    /// What `/` means and `..` does not leave.
    pub root: Path,
    /// Where a relative path begins.
    pub base: Path,
    /// Who asks.
    pub credentials: Credentials,
    /// `RESOLVE_*` restrictions of openat2(2).
    pub resolve: u32,
}

impl Start {
    /// From the root of the system, as the kernel itself.
    pub fn kernel() -> Self {
        let root = super::root();
        Self { base: root.clone(), root, credentials: Credentials::kernel(), resolve: 0 }
    }
}

/// The final component of a path.
pub enum Last {
    /// A name, and whether a slash follows it.
    Name { name: Box<[u8]>, slash: bool },
    /// `.`, `..` or `/`: the place itself is where the walk stands.
    Place,
}

/// Where a step led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The walk stands there.
    There,
    /// To the text of a symbolic link: walk on.
    Onward,
}

/// A path walk under way. It stands at a directory; what is left to do is on a stack, since symbolic links
/// put text in front.
pub struct Walk {
    start: Start,
    at: Path,
    pending: Vec<(Vec<u8>, usize)>,
    links: u32,
    /// What had moved when it began, if it is to stay below a place.
    changes: Option<Changes>,
}

/// How often directories have moved, and how often mounts: who asks for a walk that stays below a place is told when one did, because `..`
/// may have led past it. None while one moved.
#[derive(Clone, Copy)]
struct Changes {
    renames: Option<u64>,
    mounts: Option<u64>,
}

/// Directories that get another parent, and mounts that get another place.
pub(super) static RENAMES: Moves = Moves::new();
pub(super) static MOUNT_MOVES: Moves = Moves::new();

/// Moves that have begun, and those that are over. Several may be under way, in different file systems.
pub(super) struct Moves {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Moves {
    const fn new() -> Self {
        Self { begun: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }

    /// Something moves until the result is dropped.
    pub(super) fn begin(&self) -> impl Drop {
        struct Moving<'a>(&'a AtomicU64);
        impl Drop for Moving<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        Moving(&self.ended)
    }

    /// How many there were; none while one is under way.
    fn now(&self) -> Option<u64> {
        // In this order: what is over had begun, so with equal counts none was under way in between.
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        (begun == ended).then_some(begun)
    }

    /// Has none begun since, and was none under way then?
    fn none_since(&self, then: Option<u64>) -> bool {
        then == Some(self.begun.load(Ordering::SeqCst))
    }
}

impl Changes {
    fn now() -> Self {
        Self { renames: RENAMES.now(), mounts: MOUNT_MOVES.now() }
    }

    fn none_since(self) -> bool {
        RENAMES.none_since(self.renames) && MOUNT_MOVES.none_since(self.mounts)
    }
}

impl Walk {
    /// Begins at `start.base`, or at the root for an absolute path. `ENOENT` for an empty path.
    pub fn new(start: &Start, path: &[u8]) -> Result<Self> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let stays_below = start.resolve & (abi::RESOLVE_BENEATH | abi::RESOLVE_IN_ROOT) != 0;
        let changes = stays_below.then(Changes::now);
        let mut walk =
            Self { start: start.clone(), at: start.base.clone(), pending: Vec::new(), links: 0, changes };
        if start.resolve & abi::RESOLVE_IN_ROOT != 0 {
            walk.start.root = start.base.clone();
        }
        walk.push(fallible::copy_of(path)?)?;
        Ok(walk)
    }

    /// Where the walk stands: after `parent` the directory of the last component.
    pub fn place(&self) -> &Path {
        &self.at
    }

    fn push(&mut self, text: Vec<u8>) -> Result<()> {
        if text.first() == Some(&b'/') {
            if self.start.resolve & abi::RESOLVE_BENEATH != 0 {
                return Err(Errno::EXDEV);
            }
            let root = self.start.root.clone();
            self.check_mount(&root)?;
            self.at = root;
        }
        self.pending.try_push((text, 0))
    }

    /// The next component, whether nothing but slashes follows, and whether any do.
    fn next(&mut self) -> Option<(Box<[u8]>, bool, bool)> {
        let name = loop {
            let (text, position) = self.pending.last_mut()?;
            let rest = &text[*position..];
            let Some(begin) = rest.iter().position(|c| *c != b'/') else {
                self.pending.pop();
                continue;
            };
            let rest = &rest[begin..];
            let len = rest.iter().position(|c| *c == b'/').unwrap_or(rest.len());
            let name: Box<[u8]> = rest[..len].into();
            *position += begin + len;
            break name;
        };
        let rest = || self.pending.iter().map(|(text, position)| &text[*position..]);
        let last = rest().all(|r| r.iter().all(|c| *c == b'/'));
        let slash = rest().any(|r| !r.is_empty());
        Some((name, last, slash))
    }

    /// Goes to the directory of the last component, and tells that. The directory is checked to be one that
    /// may be searched.
    pub fn parent(&mut self) -> Result<Last> {
        let mut steps = 0usize;
        loop {
            steps += 1;
            // Each may lead over a hundred thousand mounts.
            if steps.is_multiple_of(64) && process::try_current().is_some_and(|thread| thread.kill_pending())
            {
                return Err(Errno::EINTR);
            }
            let Some((name, last, slash)) = self.next() else { return Ok(Last::Place) };
            if !self.at.inode().is_dir() {
                return Err(Errno::ENOTDIR);
            }
            self.start.credentials.check(self.at.inode(), access::EXECUTE)?;
            match &*name {
                b"." => {}
                b".." => self.up()?,
                _ if name.len() > NAME_MAX => return Err(Errno::ENAMETOOLONG),
                _ if last => return Ok(Last::Name { name, slash }),
                _ => {
                    let next = self.look(&name)?;
                    self.step(next, true)?;
                }
            }
        }
    }

    fn up(&mut self) -> Result<()> {
        if self.start.resolve & abi::RESOLVE_BENEATH != 0 && self.at.same(&self.start.base) {
            return Err(Errno::EXDEV);
        }
        let parent = self.at.parent(&self.start.root)?;
        self.check_mount(&parent)?;
        if self.changes.is_some_and(|changes| !changes.none_since()) {
            return Err(Errno::EAGAIN);
        }
        self.at = parent;
        Ok(())
    }

    fn check_mount(&self, to: &Path) -> Result<()> {
        if self.start.resolve & abi::RESOLVE_NO_XDEV != 0 && !Arc::ptr_eq(&self.at.mount, &to.mount) {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    /// The entry `name` of the directory where the walk stands, mounts entered.
    pub fn look(&self, name: &[u8]) -> Result<Path> {
        let dir = &self.at.dentry;
        let dentry = dir.inode.ops.lookup(dir, name)?;
        let path = mount::enter(Path { mount: self.at.mount.clone(), dentry });
        self.check_mount(&path)?;
        Ok(path)
    }

    /// Steps onto `next`, or with `follow` through it when it is a symbolic link.
    pub fn step(&mut self, next: Path, follow: bool) -> Result<Step> {
        if !follow || next.inode().kind != FileType::Symlink {
            self.at = next;
            return Ok(Step::There);
        }
        self.links += 1;
        if self.links > MAX_LINKS
            || next.mount.has(abi::MS_NOSYMFOLLOW)
            || self.start.resolve & abi::RESOLVE_NO_SYMLINKS != 0
        {
            return Err(Errno::ELOOP);
        }
        if let Some(target) = next.inode().ops.follow() {
            if self.start.resolve & abi::RESOLVE_NO_MAGICLINKS != 0 {
                return Err(Errno::ELOOP);
            }
            if self.start.resolve & (abi::RESOLVE_BENEATH | abi::RESOLVE_IN_ROOT) != 0 {
                return Err(Errno::EXDEV);
            }
            let target = target?;
            self.check_mount(&target)?;
            self.at = target;
            return Ok(Step::There);
        }
        let text = next.inode().ops.readlink(next.inode())?;
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        super::attributes::touch_accessed(&next);
        self.push(text)?;
        Ok(Step::Onward)
    }

    /// Goes to the end. `follow`: through a symbolic link that is last; a slash behind it, too, asks for what
    /// it points to.
    pub fn finish(mut self, follow: bool) -> Result<Path> {
        loop {
            let Last::Name { name, slash } = self.parent()? else { return Ok(self.at) };
            let next = self.look(&name)?;
            match self.step(next, follow || slash)? {
                Step::Onward => {}
                Step::There if slash && !self.at.inode().is_dir() => return Err(Errno::ENOTDIR),
                Step::There => return Ok(self.at),
            }
        }
    }
}

/// The place that `path` names. `follow`: a symbolic link at the end stands for its target.
pub fn resolve(start: &Start, path: &[u8], follow: bool) -> Result<Path> {
    Walk::new(start, path)?.finish(follow)
}
