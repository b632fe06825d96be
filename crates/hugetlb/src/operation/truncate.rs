//! Truncation, and taking pages out of the content.
//!
//! Both truncation and hole punch go over the range twice. First the *listed* mappings, those with entries that the file
//! does not write itself, lose their entries in the range, each with one flush. Then the pages leave the content, run by
//! run, under the fault mutexes of the run. The file's own tables lose the entries in the same step, and one flush of all who are
//! attached does for the run. A page that a listed mapping mapped again in between (its count of entries says so) is
//! unmapped once more, and cannot come back while the mutexes are held.

use core::ops::Range;

use filetables::REMOVED_AT_A_TIME;

use crate::error::Result;
use crate::file::{File, RunLock, SizeLock};
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::reserve;
use crate::sync::Arc;

impl<M: Machine> File<M> {
    /// Sets the size in bytes (ftruncate). What lies behind it leaves the file and all mappings, private copies too; an
    /// access there is SIGBUS from now on.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Invalid`] when `size` is not a multiple of the page size.
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.truncate_if(size, |_| true)
    }

    /// As [`File::truncate`], if `may` says so of the size in bytes until now, which stays until it has answered: for seals. It must
    /// not call the library.
    ///
    /// # Errors
    ///
    /// As [`File::truncate`].
    pub fn truncate_if(&self, size: u64, may: impl FnOnce(u64) -> bool) -> Result<()> {
        self.check_size(size)?;
        let held = self.lock_size();
        if !may(self.size()) {
            return Ok(());
        }
        if !Mutant::SizeSetLast.is_on() {
            self.set_size(&held, size);
        }
        let end = size >> self.page_size().shift();
        self.unmap(end..u64::MAX);
        let freed = self.remove_pages(&held, end..u64::MAX, false);
        let promised = self.promises().lock().remove(self.page_size(), end..u64::MAX);
        reserve::unreserve(self.pool(), self.subpool(), promised.saturating_sub(freed));
        if Mutant::SizeSetLast.is_on() {
            self.set_size(&held, size);
        }
        Ok(())
    }

    /// Takes the pages of `range` out of the content; returns how many there were. A hole punch takes their promises along
    /// run by run; a truncation deletes all promises of its range afterwards.
    pub(crate) fn remove_pages(&self, _: &SizeLock, range: Range<u64>, punch: bool) -> u64 {
        let (mut next, mut freed) = (range.start, 0);
        while let Some(index) = self.content().next(next..range.end) {
            let run = self.content().run(index, range.end);
            next = run.end;
            freed += self.remove_run(run, punch);
            self.hugetlb().machine().give_way();
        }
        freed
    }

    /// Clears the entries of the listed mappings for the page indices, each with one flush; a fault may bring one back.
    pub(super) fn unmap(&self, indices: Range<u64>) {
        let _fence = self.protocol().change_fence(self);
        self.unmap_listed(indices);
    }

    /// Whether a page of a run has entries that the file does not write itself.
    fn is_mapped(&self, run: Range<u64>) -> bool {
        run.into_iter().any(|index| self.content().get(index).is_some_and(|page| page.is_mapped()))
    }

    /// Takes a run of pages out of the content and gives them up; returns how many there were.
    fn remove_run(&self, run: Range<u64>, punch: bool) -> u64 {
        let protocol = self.protocol();
        let Some(mut at) = self.lock_run(run.clone()) else { return 0 };
        let mut _fence = None;
        if self.is_mapped(run.clone()) {
            // The fence comes before the index: let go, and look again.
            if Mutant::FenceBehindIndex.is_on() {
                _fence = protocol.change_fence(self);
            }
            drop(at);
            _fence = protocol.change_fence(self);
            let Some(again) = self.lock_run(run.clone()) else { return 0 };
            at = again;
            if self.is_mapped(run.clone()) && !Mutant::MappedAgainNotMet.is_on() {
                protocol.unmap_for_good(self, run, &|run| self.unmap_listed(run));
            }
        }
        self.take_run(at, punch)
    }

    fn take_run(&self, at: RunLock<'_, M>, punch: bool) -> u64 {
        let mut pages: [Option<Arc<Page<M>>>; REMOVED_AT_A_TIME as usize] = [const { None }; _];
        let mut place = pages.iter_mut();
        let removed = self.content().remove(at.run(), |_, page| {
            if let Some(place) = place.next() {
                *place = Some(page);
            }
        });
        if punch && !Mutant::PromiseOutlivesPunch.is_on() {
            self.promises().lock().remove(self.page_size(), at.run());
        }
        // The mutexes are held until the TLBs are flushed: no fresh page appears to one process while another still sees the
        // old one.
        let at = Some(at).filter(|_| !Mutant::IndexUnlockedEarly.is_on());
        if removed.shown && !Mutant::SharersNotFlushed.is_on() {
            self.content().flush();
        }
        let outlived = pages.iter().flatten().any(|page| page.is_mapped());
        debug_assert!(!outlived || cfg!(roundtable_model), "an entry outlived its page");
        drop(at);
        // The pages return to the pool here, behind the flush.
        removed.pages
    }
}
