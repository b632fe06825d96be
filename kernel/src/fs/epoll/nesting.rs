//! How instances may watch each other: in no circle, not deep, and not on too many ways.
//!
//! A wake of a file goes up through all instances above it, each inside the wake of the one below, with interrupts off. So both
//! the depth of a chain and the number of ways from a file to the top are limited, as on Linux. Each is asked before the change, for the
//! tree as it would be then.
//!
//! [`NESTING`] serialises what may add a level or a way: an instance that watches another, and any new watch of an instance that is, or
//! once was, watched itself. The first such watch of an instance sets its `nested` while nothing is added to it. So an addition that does
//! not see the mark is complete before the search goes down, which finds it; one that sees it waits for [`NESTING`].

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;
use core::sync::atomic::Ordering;

use super::{Epoll, File, Key};
use crate::errno::{Errno, Result};
use crate::memory::fallible::TryVec;
use crate::memory::reserve;
use crate::process;
use crate::sched;
use crate::sync::{Mutex, MutexGuard};

/// How many steps there are at the most in a chain of instances: `EP_MAX_NESTS`.
const MAX_NESTING: usize = 4;
/// How many ways of so many instances there may be from a file to the top; of one instance, any number.
const MAX_WAYS: [usize; MAX_NESTING + 1] = [usize::MAX, 500, 100, 50, 10];

/// Serialises what nests instances: a search sees a tree that grows nowhere.
static NESTING: Mutex<()> = Mutex::new(());

/// [`NESTING`], for a change that needs it.
pub(super) type Nesting = MutexGuard<'static, ()>;

/// Files that were closed while a search looked at them, so that it has the last reference: let go of when no lock is held any more.
#[derive(Default)]
pub(super) struct Closed(Vec<File>);

impl Closed {
    /// Lets go of a file, later if that is its end.
    fn put(&mut self, file: Arc<File>) -> Result<()> {
        match Arc::into_inner(file) {
            Some(file) => self.0.try_push(file),
            None => Ok(()),
        }
    }
}

fn address(epoll: &Epoll) -> usize {
    core::ptr::from_ref(epoll).addr()
}

/// Gives way, and ends the search of a thread that is to die. One more instance may be noted as seen: a search meets as many as a user
/// makes.
fn step() -> Result<()> {
    /// A node of such a map, and those above it that may be split.
    const NOTED: usize = 1024;
    sched::cond_resched();
    reserve::ask(NOTED)?;
    if process::current().kill_pending() { Err(Errno::EINTR) } else { Ok(()) }
}

/// Waits for the right to nest instances. A search may be long: a signal that kills ends the wait.
pub(super) fn begin() -> Result<Nesting> {
    NESTING.lock_killable().ok_or(Errno::EINTR)
}

impl Epoll {
    /// From here on whoever adds a watch to this instance holds [`NESTING`].
    pub(super) fn becomes_nested(&self, _: &Nesting) {
        let _changing = self.changing.lock();
        self.nested.store(true, Ordering::SeqCst);
    }

    /// Whether an addition to it is to be checked, under [`NESTING`]. Asked while it is being changed.
    pub(super) fn is_nested(&self) -> bool {
        self.nested.load(Ordering::SeqCst)
    }

    /// May this instance watch `file`, which is `target` if it is an instance itself? `ELOOP` for a circle or a chain that would be too
    /// long, `EINVAL` for too many ways.
    pub(super) fn check_nesting(
        &self,
        file: &Arc<File>,
        target: Option<&Epoll>,
        closed: &mut Closed,
        _: &Nesting,
    ) -> Result<()> {
        let Some(target) = target else {
            return Ways::new(self, None, closed).check(file);
        };
        let below = target.depth_below(self, MAX_NESTING, &mut BTreeMap::new(), closed)?;
        let above = self.height_above(&mut BTreeMap::new(), closed)?;
        if above + 1 + below > MAX_NESTING {
            return Err(Errno::ELOOP);
        }
        let mut seen = BTreeMap::new();
        self.check_ways_below(target, target, &mut seen, closed)
    }

    /// The steps of the longest chain from this instance down. `ELOOP` if it has more than `most`, or leads to `other`.
    ///
    /// `seen` has the instances that were looked through, and what was found: one that many watch is looked through for them once.
    fn depth_below(
        &self,
        other: &Epoll,
        most: usize,
        seen: &mut BTreeMap<usize, usize>,
        closed: &mut Closed,
    ) -> Result<usize> {
        if core::ptr::eq(self, other) {
            return Err(Errno::ELOOP);
        }
        if let Some(depth) = seen.get(&address(self)) {
            return if *depth > most { Err(Errno::ELOOP) } else { Ok(*depth) };
        }
        let (mut depth, mut after) = (0, None);
        while let Some((key, file)) = self.watched_after(after) {
            after = Some(key);
            step()?;
            if let Some(inner) = file.ops_arc::<Epoll>() {
                let most = most.checked_sub(1).ok_or(Errno::ELOOP)?;
                depth = depth.max(1 + inner.depth_below(other, most, seen, closed)?);
            }
            closed.put(file)?;
        }
        seen.insert(address(self), depth);
        Ok(depth)
    }

    /// The steps of the longest chain from this instance up; there is none that is longer than [`MAX_NESTING`].
    fn height_above(&self, seen: &mut BTreeMap<usize, usize>, closed: &mut Closed) -> Result<usize> {
        if let Some(height) = seen.get(&address(self)) {
            return Ok(*height);
        }
        let mut height = 0;
        if let Some(file) = self.file() {
            let mut after = None;
            while let Some((key, item)) = file.watch_after(after) {
                after = Some(key);
                step()?;
                if let Some(outer) = item.epoll.upgrade() {
                    height = height.max(1 + outer.height_above(seen, closed)?);
                }
            }
            closed.put(file)?;
        }
        seen.insert(address(self), height);
        Ok(height)
    }

    /// Checks the ways from each file that `below`, which is `target` or an instance under it, watches, as if this instance watched `target`.
    fn check_ways_below(
        &self,
        target: &Epoll,
        below: &Epoll,
        seen: &mut BTreeMap<usize, ()>,
        closed: &mut Closed,
    ) -> Result<()> {
        if seen.insert(address(below), ()).is_some() {
            return Ok(());
        }
        let mut after = None;
        while let Some((key, file)) = below.watched_after(after) {
            after = Some(key);
            step()?;
            match file.ops_arc::<Epoll>() {
                Some(inner) => self.check_ways_below(target, &inner, seen, closed)?,
                None => Ways::new(self, Some(target), closed).check_watched(&file)?,
            }
            closed.put(file)?;
        }
        Ok(())
    }

    /// The open file that is this instance, while there is one.
    fn file(&self) -> Option<Arc<File>> {
        self.file.get()?.upgrade()
    }

    /// The next watched file in the order of the keys, with its key. It is returned in any case: nobody lets go of a file with the lock held.
    fn watched_after(&self, after: Option<Key>) -> Option<(Key, Arc<File>)> {
        let mut from = after.map_or(Bound::Unbounded, Bound::Excluded);
        loop {
            let (key, file) = {
                let items = self.items.lock();
                let (key, item) = items.range((from, Bound::Unbounded)).next()?;
                (*key, item.file.upgrade())
            };
            match file {
                Some(file) => return Some((key, file)),
                None => from = Bound::Excluded(key),
            }
        }
    }
}

/// Counts the ways from a file to instances that nobody watches.
struct Ways<'a> {
    /// The instance that is to watch, and what: another instance, or the file itself.
    watcher: &'a Epoll,
    target: Option<&'a Epoll>,
    closed: &'a mut Closed,
    counts: [usize; MAX_NESTING + 1],
}

impl<'a> Ways<'a> {
    fn new(watcher: &'a Epoll, target: Option<&'a Epoll>, closed: &'a mut Closed) -> Self {
        Self { watcher, target, closed, counts: [0; MAX_NESTING + 1] }
    }

    /// For a file that the instance is to watch.
    fn check(&mut self, file: &File) -> Result<()> {
        self.up(self.watcher, 0)?;
        self.check_watched(file)
    }

    /// For a file that is watched.
    fn check_watched(&mut self, file: &File) -> Result<()> {
        let mut after = None;
        while let Some((key, item)) = file.watch_after(after) {
            after = Some(key);
            if let Some(epoll) = item.epoll.upgrade() {
                self.up(&epoll, 0)?;
            }
        }
        Ok(())
    }

    /// All ways that go on from `epoll`, which is the instance number `place` on its way.
    fn up(&mut self, epoll: &Epoll, place: usize) -> Result<()> {
        step()?;
        if place > MAX_NESTING {
            return Err(Errno::EINVAL);
        }
        let mut is_top = true;
        if let Some(file) = epoll.file() {
            let mut after = None;
            while let Some((key, item)) = file.watch_after(after) {
                after = Some(key);
                if let Some(outer) = item.epoll.upgrade() {
                    is_top = false;
                    self.up(&outer, place + 1)?;
                }
            }
            self.closed.put(file)?;
        }
        if self.target.is_some_and(|target| core::ptr::eq(target, epoll)) {
            is_top = false;
            self.up(self.watcher, place + 1)?;
        }
        if is_top {
            self.counts[place] += 1;
            if self.counts[place] > MAX_WAYS[place] {
                return Err(Errno::EINVAL);
            }
        }
        Ok(())
    }
}
