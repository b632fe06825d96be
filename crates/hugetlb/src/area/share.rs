//! A mapping's share of a private page.

use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sync::Arc;

/// A mapping's share of a private page, which forks made several mappings have.
///
/// The page counts its shares, and only that count says whether a mapping has the page alone: whether a store may go to
/// it without a copy, whether a promise comes back with it. References to the page say nothing. A fault that ends, a
/// reader, a checker hold one for a moment, and Linux was wrong to count those for sharers (CVE-2024-57883).
///
/// A share that is given up is dropped only after the TLBs of its mapping were flushed: who finds itself alone stores to
/// the page at once.
pub(crate) struct Share<M: Machine>(Arc<Page<M>>);

impl<M: Machine> Share<M> {
    /// The first share of a fresh page.
    pub(crate) fn new(page: Arc<Page<M>>) -> Share<M> {
        page.add_share();
        Share(page)
    }

    /// A share for a child.
    pub(crate) fn fork(&self) -> Share<M> {
        Share::new(self.0.clone())
    }

    /// Whether no other mapping has a share. It stays so while the mapping lock keeps forks of this mapping out.
    pub(crate) fn is_sole(&self) -> bool {
        if Mutant::SharesCountedByReferences.is_on() {
            return Arc::strong_count(&self.0) == 1;
        }
        self.0.shares() == 1
    }

    pub(crate) fn page(&self) -> &Arc<Page<M>> {
        &self.0
    }
}

impl<M: Machine> Drop for Share<M> {
    fn drop(&mut self) {
        self.0.remove_share();
    }
}
