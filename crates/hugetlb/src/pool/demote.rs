//! Demotion: free pages of one pool become smaller pages of another.

use super::{FREED_AT_A_TIME, Pool};
use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::machine::Machine;

impl<M: Machine> Pool<M> {
    /// Makes free pages of `target`, which has smaller ones, of so many free persistent pages that nobody is promised, or of as many as
    /// there are: `demote` in sysfs. Returns how many it were.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the pages of `target` are not smaller. [`Error::NoMemory`] when there is none to note the new
    /// pages; what was demoted until then stays so.
    pub fn demote(&self, count: u64, target: &Pool<M>) -> Result<u64> {
        if target.size >= self.size {
            return Err(Error::Invalid);
        }
        // The larger size first: always in this order. With the second one no resize takes the new pages for surplus ones.
        let _resize = self.resize.lock();
        let _target_resize = target.resize.lock();
        let parts = self.size.bytes() / target.size.bytes();
        let mut demoted = 0;
        let mut result = Ok(());
        while demoted < count && result.is_ok() {
            let Some(frame) = self.take_unpromised() else { break };
            result = target.grow_by(frame, parts);
            let mut state = self.state.lock();
            if result.is_ok() {
                state.total -= 1;
                state.persistent = state.total - state.surplus;
                demoted += 1;
            } else {
                // It was counted all the time, so there is room.
                state.free.push(frame);
            }
            drop(state);
            self.machine.give_way();
        }
        self.give_up_room();
        result.map(|()| demoted)
    }

    /// Takes a free page off the list that counts as in use from then on: a persistent one that nobody is promised.
    fn take_unpromised(&self) -> Option<PhysAddr> {
        let mut state = self.state.lock();
        let may = state.unreserved() > 0 && state.total > state.surplus;
        may.then(|| state.free.pop()).flatten()
    }

    /// Adds a run of so many frames as free persistent pages.
    fn grow_by(&self, first: PhysAddr, frames: u64) -> Result<()> {
        {
            // Counted at once, so that the list keeps the room for them; until they are on it they count as in use.
            let mut state = self.lock_with_room(frames)?;
            state.total += frames;
            state.persistent = state.total - state.surplus;
        }
        let bytes = self.size.bytes();
        // The lowest address comes last, and goes first.
        let mut left = frames;
        while left > 0 {
            let mut state = self.state.lock();
            for _ in 0..left.min(FREED_AT_A_TIME as u64) {
                left -= 1;
                state.free.push(PhysAddr(first.0 + left * bytes));
            }
            drop(state);
            self.machine.give_way();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::addr::PageSize;
    use crate::error::Error;
    use crate::protocol::ProtocolKind;
    use crate::sync::Ordering;
    use crate::testing::hugetlb;

    #[test]
    fn free_pages_that_nobody_is_promised_become_smaller_ones() {
        let hugetlb = hugetlb(3, ProtocolKind::FileTables);
        let (large, small) = (hugetlb.pool(PageSize::Size1G), hugetlb.pool(PageSize::Size2M));
        assert_eq!(large.set_persistent(3, || false), 3);
        large.reserve(1).unwrap();
        let page = large.take(false).unwrap();
        let ways = hugetlb.machine().ways_given.load(Ordering::SeqCst);
        // One is in use, one is promised.
        assert_eq!(large.demote(7, small), Ok(1));
        assert!(hugetlb.machine().ways_given.load(Ordering::SeqCst) >= ways + 512 / 64);
        let counted = |pool: &super::Pool<_>| {
            pool.check().unwrap();
            let counted = pool.statistics();
            (counted.total, counted.free, counted.persistent, counted.surplus)
        };
        assert_eq!((counted(large), counted(small)), ((2, 1, 2, 0), (515, 515, 515, 0)));
        assert_eq!(large.demote(1, small), Ok(0));
        // The parts are pages as others: they go back to the machine one by one, each once.
        assert_eq!(small.set_persistent(1, || false), 1);
        large.give(page, false);
        large.unreserve(1);
        assert_eq!(large.demote(1, small), Ok(1));
        assert_eq!((counted(large), counted(small)), ((1, 1, 1, 0), (513, 513, 513, 0)));
        assert_eq!((large.set_persistent(0, || false), small.set_persistent(0, || false)), (0, 0));
    }

    #[test]
    fn surplus_pages_of_the_target_stay_surplus() {
        let hugetlb = hugetlb(2, ProtocolKind::FileTables);
        let (large, small) = (hugetlb.pool(PageSize::Size1G), hugetlb.pool(PageSize::Size2M));
        assert_eq!(large.set_persistent(1, || false), 1);
        let taken = [small.take(false).unwrap(), small.take(false).unwrap()];
        small.set_persistent(1, || false);
        assert_eq!(large.demote(1, small), Ok(1));
        let counted = small.statistics();
        assert_eq!((counted.total, counted.persistent, counted.surplus, counted.free), (514, 513, 1, 512));
        taken.into_iter().for_each(|frame| small.give(frame, false));
        let counted = small.statistics();
        assert_eq!((counted.total, counted.persistent, counted.surplus, counted.free), (513, 513, 0, 513));
        assert_eq!((small.demote(1, large), large.demote(1, small)), (Err(Error::Invalid), Ok(0)));
    }

    #[test]
    fn without_memory_to_note_the_new_pages_nothing_has_changed() {
        let hugetlb = hugetlb(1, ProtocolKind::FileTables);
        let (large, small) = (hugetlb.pool(PageSize::Size1G), hugetlb.pool(PageSize::Size2M));
        assert_eq!(large.set_persistent(1, || false), 1);
        let before = (large.statistics(), small.statistics());
        hugetlb.machine().steps_left.store(0, Ordering::SeqCst);
        assert_eq!(large.demote(1, small), Err(Error::NoMemory));
        assert_eq!((large.statistics(), small.statistics()), before);
        hugetlb.machine().steps_left.store(u64::MAX, Ordering::SeqCst);
        assert_eq!(large.demote(1, small), Ok(1));
    }
}
