//! epoll(7).
//!
//! Each watched file has an [`Item`], which hears of the file's wakes and puts itself on the instance's ready list. Whether the file is really ready is
//! asked when events are fetched: an item on the list that is not goes off it, and comes back with the next wake. An item
//! leaves the list before its file is asked, so no wake is lost.
//!
//! Locks: `items` (which files are watched) is taken before `fetching` (who takes items off the list); both sleep. The ready list
//! is innermost, with interrupts off: wakes come from interrupt handlers.

mod nesting;

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Bound;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};
use linux_raw_sys::general as abi;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::poll::Events;
use super::watch;
use crate::errno::{Errno, Result};
use crate::memory::fallible::{Text, TryVec};
use crate::process::accounts::{Counted, Share};
use crate::sync::{IrqLock, Mutex, Once, WaitError, WaitQueue, Watcher};
use crate::{process, sched};

/// `fs.epoll.max_user_watches`; [`usize::MAX`] as long as nobody has set it.
pub static MAX_WATCHES: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Files that the instances of a user may watch: as on Linux, what takes a twenty-fifth of memory.
pub fn max_watches() -> usize {
    // Relaxed: a setting of its own.
    match MAX_WATCHES.load(Ordering::Relaxed) {
        usize::MAX => crate::memory::stats().total as usize / 25 / size_of::<Item>(),
        set => set,
    }
}

/// The bits of an interest that are no events.
const EDGE: u32 = abi::EPOLLET;
const ONE_SHOT: u32 = abi::EPOLLONESHOT;
const EXCLUSIVE: u32 = abi::EPOLLEXCLUSIVE;
const PRIVATE: u32 = EDGE | ONE_SHOT | EXCLUSIVE | abi::EPOLLWAKEUP;

/// Interest in one file.
pub struct Item {
    this: Weak<Item>,
    link: LinkedListAtomicLink,
    epoll: Weak<Epoll>,
    file: Weak<File>,
    home: watch::Home,
    key: Key,
    /// The events, and the bits in `PRIVATE`. 0 but for those after a one-shot event.
    events: AtomicU32,
    data: AtomicU64,
    /// Taken out of the instance: it no longer goes on the list.
    gone: AtomicBool,
    _share: Share,
}

/// Descriptor and identifier of the open file: the same file may be watched by two descriptors.
type Key = (i32, u64);

intrusive_adapter!(Ready = Arc<Item>: Item { link => LinkedListAtomicLink });

/// An epoll instance.
pub struct Epoll {
    this: Weak<Epoll>,
    /// The open file that it is: by way of it one finds the instances that watch this one.
    file: Once<Weak<File>>,
    /// The user for whom its watches count: who made it.
    uid: u32,
    /// It was watched by another instance.
    nested: AtomicBool,
    /// One change at a time: adding and removing an item take several steps.
    changing: Mutex<()>,
    items: Mutex<BTreeMap<Key, Arc<Item>>>,
    /// How many items there are, for those who must not sleep.
    count: AtomicUsize,
    fetching: Mutex<()>,
    ready: IrqLock<ReadyList>,
    /// Woken when something goes on the list.
    wait: WaitQueue,
}

/// The items that may be ready, and how many they are.
struct ReadyList {
    items: LinkedList<Ready>,
    len: usize,
}

impl ReadyList {
    fn push_back(&mut self, item: Arc<Item>) {
        self.items.push_back(item);
        self.len += 1;
    }

    fn push_front(&mut self, item: Arc<Item>) {
        self.items.push_front(item);
        self.len += 1;
    }

    fn pop_front(&mut self) -> Option<Arc<Item>> {
        let item = self.items.pop_front()?;
        self.len -= 1;
        Some(item)
    }

    fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// What epoll_ctl(2) is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Watch a file.
    Add,
    /// Watch for other events.
    Modify,
    /// Watch no longer.
    Delete,
}

impl Watcher for Item {
    fn notify(&self) {
        if self.events.load(Ordering::SeqCst) & !PRIVATE == 0 {
            return;
        }
        if let (Some(epoll), Some(item)) = (self.epoll.upgrade(), self.this.upgrade()) {
            epoll.queue(item);
        }
    }
}

impl Item {
    /// What of its interest is ready now.
    fn ready_events(&self, file: &File) -> Events {
        Self::ready_of(self.events.load(Ordering::SeqCst), file)
    }

    /// What of `interest` is ready now.
    fn ready_of(interest: u32, file: &File) -> Events {
        if interest & !PRIVATE == 0 {
            return Events::empty();
        }
        file.poll() & (Events::from_bits_retain(interest & !PRIVATE) | Events::ERR | Events::HUP)
    }

    /// Changes the interest from `from` to `to`, unless it is no longer `from`.
    fn change_interest(&self, from: u32, to: u32) -> bool {
        self.events.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn stop_watching(self: &Arc<Self>, file: &File) {
        let watcher: Arc<dyn Watcher> = self.clone();
        self.home.remove_watcher(file, &watcher);
    }
}

/// A new instance.
pub fn create() -> Arc<File> {
    let uid = process::current().credentials().uid;
    let epoll = Arc::new_cyclic(|this| Epoll {
        this: this.clone(),
        file: Once::new(),
        uid,
        nested: AtomicBool::new(false),
        changing: Mutex::new(()),
        items: Mutex::new(BTreeMap::new()),
        count: AtomicUsize::new(0),
        fetching: Mutex::new(()),
        ready: IrqLock::new(ReadyList { items: LinkedList::new(Ready::NEW), len: 0 }),
        wait: WaitQueue::new(),
    });
    let file = File::anonymous(Kind::Anonymous, "[eventpoll]", epoll.clone(), abi::O_RDWR);
    epoll.file.call_once(|| Arc::downgrade(&file));
    file
}

/// The last reference to an open file is gone: nobody watches it any more. Called with no lock held.
pub(super) fn file_released(file: &File, items: BTreeMap<usize, Weak<Item>>) {
    for item in items.values().filter_map(Weak::upgrade) {
        item.stop_watching(file);
        if let Some(epoll) = item.epoll.upgrade() {
            epoll.remove(&item);
        }
        sched::cond_resched();
    }
}

impl Epoll {
    fn queue(&self, item: Arc<Item>) {
        {
            let mut ready = self.ready.lock();
            if item.link.is_linked() || item.gone.load(Ordering::SeqCst) {
                return;
            }
            ready.push_back(item);
        }
        self.wait.wake_one();
    }

    /// Takes an item off the list; the list's reference is returned to be dropped outside of the lock.
    fn unqueue(&self, item: &Item) -> Option<Arc<Item>> {
        let mut ready = self.ready.lock();
        if !item.link.is_linked() {
            return None;
        }
        ready.len -= 1;
        // SAFETY: an item is only ever on the list of its own instance, whose lock is held.
        unsafe { ready.items.cursor_mut_from_ptr(item).remove() }
    }

    fn remove(&self, item: &Arc<Item>) {
        item.gone.store(true, Ordering::SeqCst);
        let removed = {
            let mut items = self.items.lock();
            let same = items.get(&item.key).is_some_and(|i| Arc::ptr_eq(i, item));
            let removed = if same { items.remove(&item.key) } else { None };
            self.count.store(items.len(), Ordering::Relaxed);
            removed
        };
        let queued = self.unqueue(item);
        drop((removed, queued));
    }

    /// epoll_ctl(2). `target` is the file behind `fd`.
    pub fn control(&self, change: Change, fd: i32, target: &Arc<File>, events: u32, data: u64) -> Result<()> {
        let target_epoll = target.ops_arc::<Epoll>();
        if target_epoll.as_ref().is_some_and(|t| core::ptr::eq(&**t, self)) {
            return Err(Errno::EINVAL);
        }
        if !target.ops().pollable() {
            return Err(Errno::EPERM);
        }
        let key = (fd, target.id());
        if events & EXCLUSIVE != 0 && change != Change::Delete {
            let allowed = Events::IN | Events::OUT | Events::ERR | Events::HUP;
            let allowed = allowed.bits() | EDGE | EXCLUSIVE | abi::EPOLLWAKEUP;
            if change == Change::Modify || target_epoll.is_some() || events & !allowed != 0 {
                return Err(Errno::EINVAL);
            }
        }
        match change {
            Change::Add => self.add_checked(key, target, target_epoll.as_deref(), events, data),
            Change::Modify => {
                let _changing = self.changing.lock();
                let item = self.items.lock().get(&key).cloned().ok_or(Errno::ENOENT)?;
                if item.events.load(Ordering::SeqCst) & EXCLUSIVE != 0 {
                    return Err(Errno::EINVAL);
                }
                item.data.store(data, Ordering::SeqCst);
                item.events.store(events, Ordering::SeqCst);
                self.look(&item, target);
                Ok(())
            }
            Change::Delete => {
                let _changing = self.changing.lock();
                let item = self.items.lock().get(&key).cloned().ok_or(Errno::ENOENT)?;
                item.stop_watching(target);
                target.forget_watch(&item);
                self.remove(&item);
                Ok(())
            }
        }
    }

    /// Adds an item unless that nests instances too much. `inner` is the target if it is one.
    fn add_checked(
        &self,
        key: Key,
        target: &Arc<File>,
        inner: Option<&Epoll>,
        events: u32,
        data: u64,
    ) -> Result<()> {
        // Dropped last, without a lock.
        let mut closed = nesting::Closed::default();
        if inner.is_none() {
            let _changing = self.changing.lock();
            if !self.is_nested() {
                return self.add(key, target, events, data);
            }
        }
        let nesting = nesting::begin()?;
        if let Some(inner) = inner {
            inner.becomes_nested(&nesting);
        }
        let _changing = self.changing.lock();
        self.check_nesting(target, inner, &mut closed, &nesting)?;
        self.add(key, target, events, data)
    }

    fn add(&self, key: Key, target: &Arc<File>, events: u32, data: u64) -> Result<()> {
        if self.items.lock().contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        let share = Share::take_within(self.uid, Counted::EpollWatches, max_watches() as u64);
        let share = share.ok_or(Errno::ENOSPC)?;
        let item = Arc::new_cyclic(|this| Item {
            this: this.clone(),
            link: LinkedListAtomicLink::new(),
            epoll: self.this.clone(),
            file: Arc::downgrade(target),
            home: watch::Home::of(target),
            key,
            events: AtomicU32::new(events),
            data: AtomicU64::new(data),
            gone: AtomicBool::new(false),
            _share: share,
        });
        {
            // `changing` is held: nobody has added it since.
            let mut items = self.items.lock();
            items.insert(key, item.clone());
            // Relaxed, here and below: a statistic.
            self.count.store(items.len(), Ordering::Relaxed);
        }
        target.remember_watch(&item);
        if let Err(error) = watch::add_watcher(target, &item) {
            item.stop_watching(target);
            target.forget_watch(&item);
            self.remove(&item);
            return Err(error);
        }
        self.look(&item, target);
        Ok(())
    }

    /// Queues the item if its file is ready now.
    fn look(&self, item: &Arc<Item>, file: &File) {
        if !item.ready_events(file).is_empty() {
            self.queue(item.clone());
        }
    }

    /// epoll_wait(2): gives up to `most` events to `emit`, which may refuse one. The deadline is in monotonic nanoseconds.
    pub fn wait(
        &self,
        most: usize,
        deadline: Option<u64>,
        mut emit: impl FnMut(u32, u64) -> Result<()>,
    ) -> Result<usize> {
        loop {
            let count = self.fetch(most, &mut emit)?;
            if count > 0 || deadline == Some(0) {
                return Ok(count);
            }
            match self.wait.wait_event(deadline, || (!self.ready.lock().is_empty()).then_some(())) {
                Ok(()) => {}
                Err(WaitError::TimedOut) => return self.fetch(most, &mut emit),
                Err(WaitError::Interrupted) => return Err(Errno::EINTR),
            }
        }
    }

    fn fetch(&self, most: usize, emit: &mut impl FnMut(u32, u64) -> Result<()>) -> Result<usize> {
        let mut count = 0;
        // Files that were closed meanwhile are let go of at the end, without a lock: that may take this instance's own.
        let mut files = Vec::new();
        // Who has it may wait for memory of his program's.
        let Some(fetching) = self.fetching.lock_killable() else {
            // What this thread was woken for is another's.
            self.wait.wake_one();
            return Err(Errno::EINTR);
        };
        // What goes back on the list is not looked at twice.
        let mut left = self.ready.lock().len;
        let mut error = None;
        while left > 0 && count < most {
            left -= 1;
            // A user may have a hundred thousand on the list that are ready no more.
            sched::cond_resched();
            let Some(item) = self.ready.lock().pop_front() else { break };
            let Some(file) = item.file.upgrade() else { continue };
            let interest = item.events.load(Ordering::SeqCst);
            let events = Item::ready_of(interest, &file);
            if let Err(failed) = files.try_push(file) {
                self.queue(item);
                error = Some(failed);
                break;
            }
            if events.is_empty() {
                continue;
            }
            // A one-shot item is disarmed before anybody can know of its event: who is told may arm it again at once.
            let is_once = interest & ONE_SHOT != 0;
            if is_once && !item.change_interest(interest, interest & PRIVATE) {
                // It was armed anew in this moment, for other events.
                self.queue(item);
                continue;
            }
            if let Err(refused) = emit(events.bits(), item.data.load(Ordering::SeqCst)) {
                if is_once {
                    // Unless it was armed anew.
                    item.change_interest(interest & PRIVATE, interest);
                }
                self.queue(item);
                error = Some(refused);
                break;
            }
            count += 1;
            if !is_once && interest & EDGE == 0 {
                // Level-triggered: looked at again next time.
                self.requeue(item);
            }
        }
        drop(fetching);
        let_go(files);
        match error {
            Some(error) if count == 0 => Err(error),
            _ => {
                // Other waiters may take what is left.
                if count > 0 && !self.ready.lock().is_empty() {
                    self.wait.wake_one();
                }
                Ok(count)
            }
        }
    }

    fn requeue(&self, item: Arc<Item>) {
        let mut ready = self.ready.lock();
        if !item.link.is_linked() && !item.gone.load(Ordering::SeqCst) {
            ready.push_back(item);
        }
    }

    /// Is any watched file ready? Items whose files are not go off the list.
    fn any_ready(&self) -> bool {
        let mut files = Vec::new();
        // As above. Who is killed needs no answer.
        let Some(fetching) = self.fetching.lock_killable() else { return true };
        let mut found = false;
        while !found {
            sched::cond_resched();
            let Some(item) = self.ready.lock().pop_front() else { break };
            let Some(file) = item.file.upgrade() else { continue };
            found = !item.ready_events(&file).is_empty();
            // Without room to keep it, it is as good as ready: the next look tells.
            found |= files.try_push(file).is_err();
            if found {
                let mut ready = self.ready.lock();
                if !item.link.is_linked() && !item.gone.load(Ordering::SeqCst) {
                    ready.push_front(item);
                }
            }
        }
        drop(fetching);
        let_go(files);
        found
    }
}

/// Lets go of files, each of which may end by it.
fn let_go(files: Vec<Arc<File>>) {
    for file in files {
        drop(file);
        sched::cond_resched();
    }
}

impl FileOps for Epoll {
    fn poll(&self, _: &File) -> Events {
        if self.any_ready() { Events::READABLE } else { Events::empty() }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.wait);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn kernel_bytes(&self) -> u64 {
        /// An item, its place in the instance's tree, and in the lists of its file.
        const ITEM: usize = size_of::<Item>() + 128;
        (self.count.load(Ordering::Relaxed) * ITEM) as u64
    }

    fn release(&self, _: &File) {
        let items = core::mem::take(&mut *self.items.lock());
        for item in items.into_values() {
            item.gone.store(true, Ordering::SeqCst);
            if let Some(file) = item.file.upgrade() {
                item.stop_watching(&file);
                file.forget_watch(&item);
            }
            drop(self.unqueue(&item));
            sched::cond_resched();
        }
    }

    fn describe(&self, _: &File, out: &mut Text) {
        let mut after = Bound::Unbounded;
        loop {
            let next =
                self.items.lock().range((after, Bound::Unbounded)).next().map(|(k, i)| (*k, i.clone()));
            let Some((key, item)) = next else { break };
            after = Bound::Excluded(key);
            let Some(file) = item.file.upgrade() else { continue };
            let stat = file.inode().stat();
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "tfd: {:8} events: {:8x} data: {:16x}  pos:{} ino:{:x} sdev:{:x}",
                item.key.0,
                item.events.load(Ordering::SeqCst),
                item.data.load(Ordering::SeqCst),
                file.position(),
                stat.ino,
                stat.dev.encode(),
            );
        }
    }
}
