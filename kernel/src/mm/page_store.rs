//! The pages of a file in memory: which frame holds which part, and the page tables that show them to all who map the file.
//!
//! A file that could have no window of 2 MiB keeps its pages in a small tree ([`FewPages`]). One that may get such a window keeps them in
//! [`Content`], which has tables. A file changes over once, when it grows, and never back.
//!
//! # The change
//!
//! [`PageStore::grow`] fills a content with the pages that the tree has, without its lock. Then it takes the lock, sees that nothing
//! has changed meanwhile, makes the content known and empties the tree. From then on nothing comes to the tree: whoever
//! adds a page looks for a content with the lock held. Whoever looks a page up looks at the content first, and once more with the lock
//! held; so does whoever takes pages out. What may come in between are faults, each of which adds a page or takes its own back; then the
//! copy is made again. Truncations and hole punches wait for the inode's lock.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::num::NonZeroU64;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use ::hugetlb::PhysAddr;
use ::hugetlb::filetables::{self, FileTables, InsertError, Level, REMOVED_AT_A_TIME};
use smallvec::SmallVec;

use super::few_pages::FewPages;
use super::file_tables;
use crate::errno::{Errno, Result};
use crate::hugetlb::Kernel;
use crate::memory::frame::Frame;
use crate::memory::{self, PAGE_SIZE, fallible, reserve};
use crate::sync::{Once, SpinLock};

/// Pages of a window: what one table of leaves shows.
pub(super) const WINDOW_PAGES: u64 = 512;
/// Frames that are taken out at a time where there is memory for so many.
const BATCH: usize = 512;

/// A page of a file: a reference to its frame, and whether it is data. One word, so that the places of 512 pages are a page.
///
/// Invariant: the address in it owns one reference.
pub struct CachedPage(NonZeroU64);

impl CachedPage {
    /// Always set.
    const PAGE: u64 = 1 << 0;
    /// It has been written, or may have been, and is data to lseek(2). Others were only allocated: no page table leads to them, so that the first
    /// store faults.
    const WRITTEN: u64 = 1 << 1;

    pub(super) fn new(frame: Frame, written: bool) -> Self {
        let word = frame.into_raw().0 | if written { Self::WRITTEN } else { 0 };
        Self(NonZeroU64::MIN | word)
    }

    pub(super) fn address(&self) -> memory::PhysAddr {
        memory::PhysAddr(self.0.get() & !(Self::PAGE | Self::WRITTEN))
    }

    /// Another reference to the frame.
    fn to_frame(&self) -> Frame {
        // SAFETY: this value keeps its own reference during the call.
        unsafe { Frame::share_raw(self.address()) }
    }

    /// Entries of processes' own tables that lead to the page. `self` is a further reference beside that of the file.
    pub(super) fn own_entries(&self) -> u64 {
        u64::from(Frame::count_at(self.address()).saturating_sub(2))
    }

    fn is_written(&self) -> bool {
        self.0.get() & Self::WRITTEN != 0
    }

    /// Only allocated, and nobody is about to touch it: who looks a page up has a reference at once.
    fn is_untouched(&self) -> bool {
        !self.is_written() && Frame::count_at(self.address()) == 1
    }

    fn set_written(&mut self) {
        self.0 |= Self::WRITTEN;
    }
}

impl Clone for CachedPage {
    fn clone(&self) -> Self {
        Self::new(self.to_frame(), self.is_written())
    }
}

impl Drop for CachedPage {
    fn drop(&mut self) {
        // SAFETY: the reference that `new` took over, given back once.
        drop(unsafe { Frame::from_raw(self.address()) });
    }
}

impl filetables::Frame for CachedPage {
    fn frame(&self) -> PhysAddr {
        PhysAddr(self.address().0)
    }

    fn is_shown(&self) -> bool {
        self.is_written()
    }
}

/// The pages of a file with its tables.
pub type Content = FileTables<Kernel, CachedPage>;

/// Gives frames back that nobody shows any more, a few at a time.
pub fn let_go(taken: Taken) {
    for (number, frame) in taken.into_iter().enumerate() {
        drop(frame);
        if number % 64 == 63 {
            crate::sched::cond_resched();
        }
    }
}

/// Frames that were taken out of a file: no table shows them, but TLBs of mappings with tables of their own may.
pub type Taken = SmallVec<[Frame; REMOVED_AT_A_TIME as usize]>;

/// Frames by page index.
pub struct PageStore {
    few: SpinLock<FewPages>,
    content: Once<Box<Content>>,
}

impl PageStore {
    /// No pages.
    pub const fn new() -> Self {
        Self { few: SpinLock::growing(FewPages::new()), content: Once::new() }
    }

    /// The pages as the tables have them; `None` for a file that is too small for tables.
    pub fn content(&self) -> Option<&Content> {
        self.content.get().map(|content| &**content)
    }

    /// How many pages there are.
    pub fn count(&self) -> u64 {
        self.either(|content| content.len(), |few| few.count())
    }

    /// How many pages of `range` there are.
    pub fn count_in(&self, range: Range<u64>) -> u64 {
        let (mut at, mut count) = (range.start, 0);
        while at < range.end {
            let in_content = |content: &Content| {
                let index = content.next(at..range.end)?;
                let end = range.end.min(index.saturating_add(REMOVED_AT_A_TIME));
                let mut some = 0;
                content.each(index..end, |_, _| some += 1);
                Some((some, end))
            };
            let Some((some, next)) = self.either(in_content, |few| few.count_some(at..range.end)) else {
                break;
            };
            count += some;
            at = next;
            crate::sched::cond_resched();
        }
        count
    }

    /// Asks the content, or the tree if that has the pages.
    fn either<R>(&self, of_content: impl Fn(&Content) -> R, of_few: impl FnOnce(&mut FewPages) -> R) -> R {
        if let Some(content) = self.content() {
            return of_content(content);
        }
        let mut few = self.few.lock();
        match self.content() {
            // They have just gone there.
            Some(content) => {
                drop(few);
                of_content(content)
            }
            None => of_few(&mut few),
        }
    }

    /// The page at `index`.
    pub fn get(&self, index: u64) -> Option<Frame> {
        self.either(|content| content.get(index).map(|page| page.to_frame()), |few| few.get(index).cloned())
    }

    /// The pages with data from `first` on of which `wanted` has a bit, each in its place in `found`, which is short.
    pub fn get_some(&self, first: u64, wanted: u32, found: &mut [Option<Frame>]) {
        let is_wanted = |place: usize| wanted & (1 << place) != 0;
        if self.content().is_none() {
            let few = self.few.lock();
            // Else they have just gone there.
            if self.content().is_none() {
                for (place, found) in found.iter_mut().enumerate().filter(|(place, _)| is_wanted(*place)) {
                    *found = few.get_written(first + place as u64).cloned();
                }
                return;
            }
        }
        let Some(content) = self.content() else { return };
        content.each(first..first + found.len() as u64, |index, page| {
            let place = (index - first) as usize;
            if is_wanted(place) && page.is_written() {
                found[place] = Some(page.to_frame());
            }
        });
    }

    /// Puts a page where there is none, also behind the file's end; returns the one that is there then, and whether it is `frame`.
    /// It is data if `written`. `ENOMEM`.
    pub fn insert(&self, index: u64, frame: &Frame, written: bool) -> Result<(Frame, bool)> {
        self.insert_if(index, frame, written, None)
    }

    /// As [`PageStore::insert`] of data, but `EFAULT` behind the end of a file of `size` bytes. A truncation sets the size before it takes pages
    /// out, so it meets what was put there before, and nothing comes behind it.
    pub fn insert_inside(&self, index: u64, frame: &Frame, size: &AtomicU64) -> Result<(Frame, bool)> {
        self.insert_if(index, frame, true, Some(size))
    }

    fn insert_if(
        &self,
        index: u64,
        frame: &Frame,
        written: bool,
        size: Option<&AtomicU64>,
    ) -> Result<(Frame, bool)> {
        // Acquire: the lock under which it is asked orders it; see `insert_inside`.
        let is_behind =
            || size.is_some_and(|size| index >= size.load(Ordering::Acquire).div_ceil(PAGE_SIZE as u64));
        loop {
            let in_few = |few: &mut FewPages| {
                if is_behind() {
                    return Some(Err(Errno::EFAULT));
                }
                match few.insert(index, frame.clone(), written) {
                    Ok(()) => Some(Ok((frame.clone(), true))),
                    Err(_) => few.get(index).map(|theirs| Ok((theirs.clone(), false))),
                }
            };
            let in_content = |content: &Content| {
                let _library = reserve::library();
                let page = CachedPage::new(frame.clone(), written);
                let inserted = match size {
                    // It knows the end under its own lock.
                    Some(_) => content.insert(index, page),
                    None => content.insert_anywhere(index, page),
                };
                match inserted {
                    Ok(()) => Some(Ok((frame.clone(), true))),
                    Err(InsertError::Occupied) => content.get(index).map(|page| Ok((page.to_frame(), false))),
                    Err(InsertError::BeyondEnd) if size.is_some() => Some(Err(Errno::EFAULT)),
                    Err(_) => Some(Err(Errno::ENOMEM)),
                }
            };
            // Otherwise there was one, and is none any more: a hole punch.
            if let Some(result) = self.either(in_content, in_few) {
                return result;
            }
        }
    }

    /// The page at `index` counts as data from now on. The caller has a reference to it.
    pub fn mark_written(&self, index: u64) {
        self.either(|content| content.amend(index, CachedPage::set_written), |few| few.mark_written(index));
    }

    /// Takes some pages of `range` out, and out of all tables of the file and all TLBs that have them from there. Returns them, and where to
    /// go on; `None` when the range is done. Needs no memory.
    pub fn remove(&self, range: Range<u64>) -> (Taken, Option<u64>) {
        self.remove_some(range, false)
    }

    /// As [`PageStore::remove`], of pages that were only allocated: nobody has mapped one of them, or written to it, or is about to.
    pub fn remove_untouched(&self, range: Range<u64>) -> (Taken, Option<u64>) {
        self.remove_some(range, true)
    }

    fn remove_some(&self, range: Range<u64>, untouched: bool) -> (Taken, Option<u64>) {
        let mut taken = Taken::new();
        // With less room it goes in smaller steps.
        let _ = taken.try_reserve_exact(BATCH);
        let content = match self.content() {
            Some(content) => content,
            None => {
                let mut few = self.few.lock();
                match self.content() {
                    // They have just gone there.
                    Some(content) => content,
                    None => {
                        let next = few.remove(range, untouched, &mut taken);
                        drop(few);
                        return (taken, next);
                    }
                }
            }
        };
        let (mut at, mut shown) = (range.start, false);
        let next = loop {
            let Some(index) = content.next(at..range.end) else { break None };
            if taken.capacity() - taken.len() < REMOVED_AT_A_TIME as usize {
                break Some(index);
            }
            at = range.end.min(index.saturating_add(REMOVED_AT_A_TIME));
            let goes = |page: &CachedPage| !untouched || page.is_untouched();
            shown |= content.remove_where(index..at, goes, |_, page| taken.push(page.to_frame())).shown;
            // What was taken out stays in `taken` until all have forgotten it, however long that is.
            crate::sched::cond_resched();
        };
        if shown {
            content.flush();
        }
        (taken, next)
    }

    /// Takes all pages out at the end of the file, when nobody maps it any more: a batch at a time, as there may be as many as the machine
    /// has. `gone` hears how many go.
    pub fn empty(&self, mut gone: impl FnMut(u64)) {
        let mut next = (self.count() > 0).then_some(0);
        while let Some(from) = next {
            let removed;
            (removed, next) = self.remove(from..u64::MAX);
            gone(removed.len() as u64);
            let_go(removed);
            crate::sched::cond_resched();
        }
    }

    /// The file ends at page `end`: tables show nothing from there on. When the end moves down, the pages behind it are to be removed next.
    pub fn set_end(&self, end: u64) {
        if let Some(content) = self.content() {
            content.set_end(end);
        }
    }

    /// The file is about to have pages up to `end`, and ends at page `present_end` now. With the inode's lock, or before anybody else knows the
    /// file. `ENOMEM`; nothing has changed then.
    pub fn grow(&self, end: u64, present_end: u64) -> Result<()> {
        if end < WINDOW_PAGES || self.content().is_some() || !file_tables::for_base_pages() {
            return Ok(());
        }
        let _library = reserve::library();
        loop {
            reserve::ask(PAGE_SIZE)?;
            let content =
                Box::new(FileTables::new(file_tables::machine(), Level::Pte, file_tables::totals()));
            content.set_end(present_end);
            let mut pages: Vec<(u64, CachedPage)> = fallible::with_capacity(WINDOW_PAGES as usize)?;
            let changes = {
                let few = self.few.lock();
                // Without a content there are no more than these.
                pages.extend(few.iter().take(WINDOW_PAGES as usize));
                few.changes()
            };
            for (index, page) in pages {
                content.insert_anywhere(index, page).map_err(|_| Errno::ENOMEM)?;
            }
            let mut few = self.few.lock();
            if few.changes() == changes {
                let _ = self.content.set(content);
                let old = core::mem::replace(&mut *few, FewPages::new());
                drop(few);
                drop(old);
                return Ok(());
            }
        }
    }

    /// The first page with data at or after `from`.
    pub fn next_data(&self, from: u64) -> Option<u64> {
        let in_content = |content: &Content| content.next_where(from..u64::MAX, CachedPage::is_written);
        self.either(in_content, |few| few.next_data(from))
    }

    /// The first index at or after `from` without data.
    pub fn next_hole(&self, from: u64) -> u64 {
        let in_content = |content: &Content| content.next_not(from, CachedPage::is_written);
        self.either(in_content, |few| few.next_hole(from))
    }
}
