//! The quota of a mount: `size=` bounds its pages, `min_size=` promises it some.

use super::Pool;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::sync::{Arc, Spin};

struct State {
    /// Pages and promises of the mount; counted only with a maximum.
    used: u64,
    /// What is left of the minimum: promised by the pool, not yet handed on.
    reserve: u64,
}

/// A mount's share of a pool.
pub(crate) struct Subpool<M: Machine> {
    pool: Arc<Pool<M>>,
    maximum: Option<u64>,
    minimum: u64,
    state: Spin<M, State>,
}

impl<M: Machine> Subpool<M> {
    /// A share of at most `maximum` pages, `minimum` of which the pool promises now.
    pub(crate) fn new(pool: Arc<Pool<M>>, maximum: Option<u64>, minimum: u64) -> Result<Subpool<M>> {
        pool.reserve(minimum)?;
        let state = Spin::<M, _>::new(State { used: 0, reserve: minimum });
        Ok(Subpool { pool, maximum, minimum, state })
    }

    pub(crate) fn maximum(&self) -> Option<u64> {
        self.maximum
    }

    pub(crate) fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Counts `pages` in; returns how many of them the pool has still to promise, or ENOSPC.
    pub(crate) fn get(&self, pages: u64) -> Result<u64> {
        let mut state = self.state.lock();
        if let Some(maximum) = self.maximum {
            let used = state.used.checked_add(pages).filter(|used| *used <= maximum).ok_or(Error::NoSpace)?;
            state.used = used;
        }
        let covered = pages.min(state.reserve);
        state.reserve -= covered;
        Ok(pages - covered)
    }

    /// Counts `pages` out; returns how many of them the pool gets back, the rest refills the minimum.
    pub(crate) fn put(&self, pages: u64) -> u64 {
        let mut state = self.state.lock();
        if self.maximum.is_some() {
            state.used = state.used.saturating_sub(pages);
        }
        if self.minimum == 0 || (self.maximum.is_some() && state.used >= self.minimum) {
            return pages;
        }
        let kept = pages.min(self.minimum - state.reserve);
        state.reserve += kept;
        pages - kept
    }

    /// Counts out `pages` that neither the pool nor the minimum had promised.
    pub(crate) fn forget(&self, pages: u64) {
        if self.maximum.is_some() {
            let mut state = self.state.lock();
            state.used = state.used.saturating_sub(pages);
        }
    }
}

impl<M: Machine> Drop for Subpool<M> {
    fn drop(&mut self) {
        // Every page and file holds the subpool, so nothing is out now but what the minimum still promises.
        let left = self.state.lock().reserve;
        self.pool.unreserve(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageSize;
    use crate::protocol::ProtocolKind;
    use crate::testing::{TestMachine, hugetlb};

    #[test]
    fn a_minimum_is_promised_at_once_and_given_back_with_the_mount() {
        let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
        let pool = hugetlb.pool(PageSize::Size2M);
        let subpool = Subpool::<TestMachine>::new(pool.clone(), Some(3), 2).unwrap();
        assert_eq!(pool.statistics().reserved, 2);
        assert_eq!(subpool.get(3), Ok(1));
        assert_eq!(subpool.get(1), Err(Error::NoSpace));
        assert_eq!(subpool.put(3), 1);
        assert_eq!(subpool.used(), 0);
        drop(subpool);
        assert_eq!(pool.statistics().reserved, 0);
    }

    #[test]
    fn a_minimum_beyond_the_pool_is_refused() {
        let hugetlb = hugetlb(1, ProtocolKind::VmaLock);
        let pool = hugetlb.pool(PageSize::Size2M);
        assert!(Subpool::<TestMachine>::new(pool.clone(), None, 2).is_err());
        assert_eq!(pool.statistics().reserved, 0);
    }
}
