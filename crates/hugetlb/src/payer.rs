//! Who pays for huge pages and promises: the seam by which a host limits them.
//!
//! The library knows of no groups, users or limits. Before it takes a page out of a pool, or promises pages, it asks the machine
//! who pays ([`Machine::payer`](crate::Machine::payer)), charges that payer, and keeps it with the page or the promise. When the page
//! returns to the pool or the promise ends, the same payer is discharged, whoever the caller is then. So a charge stays
//! where it was made: neither a fault of another process nor a process's change of group moves it.
//!
//! | what | charged | discharged | refused |
//! | --- | --- | --- | --- |
//! | a page | when a fault, `fallocate` or a copy takes it | when it returns to the pool | SIGBUS, ENOSPC |
//! | a promise of a file | by `mmap` or [`File::reserve`](crate::File::reserve), for each page that was not promised | by truncation, a punched hole, the file's end | ENOMEM |
//! | a promise of a private mapping | by `mmap`, for all its pages | when the mapping, or its part after a split, ends | ENOMEM |
//! | a page without a promise | as a promise too, with the page | with the page | SIGBUS, ENOSPC |
//!
//! These are the rules of Linux's hugetlb controller. A host without limits says `type Payer = ();`, which takes no memory
//! and no time.

use crate::addr::PageSize;

/// What is paid for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expense {
    /// A page outside of the pool.
    Page,
    /// A promised page, whether it was used or not.
    Promise,
}

/// The payer's limit is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// Who pays. Calls come with locks of the library held: they must not call the library. With [`Payer::charge`]
/// there is no spin lock among them, so it may sleep; [`Payer::discharge`] must not.
pub trait Payer: Clone + PartialEq + Send + Sync + 'static {
    /// Nobody.
    fn nobody() -> Self;

    /// Nobody pays: [`Payer::charge`] and [`Payer::discharge`] are not called.
    fn is_nobody(&self) -> bool;

    /// Charges so many huge pages.
    ///
    /// # Errors
    ///
    /// [`Refused`] when that is beyond a limit; nothing is charged then.
    fn charge(&self, expense: Expense, size: PageSize, pages: u64) -> Result<(), Refused>;

    /// Takes a charge back, or a part of one.
    fn discharge(&self, expense: Expense, size: PageSize, pages: u64);
}

/// Of a host without limits.
impl Payer for () {
    fn nobody() {}

    fn is_nobody(&self) -> bool {
        true
    }

    fn charge(&self, _: Expense, _: PageSize, _: u64) -> Result<(), Refused> {
        Ok(())
    }

    fn discharge(&self, _: Expense, _: PageSize, _: u64) {}
}

/// Charges a payer who may be nobody.
pub(crate) fn charge<P: Payer>(
    payer: &P,
    expense: Expense,
    size: PageSize,
    pages: u64,
) -> Result<(), Refused> {
    if payer.is_nobody() || pages == 0 { Ok(()) } else { payer.charge(expense, size, pages) }
}

/// Discharges a payer who may be nobody.
pub(crate) fn discharge<P: Payer>(payer: &P, expense: Expense, size: PageSize, pages: u64) {
    if !payer.is_nobody() && pages != 0 {
        payer.discharge(expense, size, pages);
    }
}

/// Who pays for a page outside of the pool, and who for its promise: nobody if that was made before.
#[derive(Clone)]
pub(crate) struct PagePayers<P: Payer> {
    page: P,
    promise: P,
}

impl<P: Payer> PagePayers<P> {
    /// Takes what was charged back.
    pub(crate) fn discharge(&self, size: PageSize) {
        discharge(&self.page, Expense::Page, size, 1);
        discharge(&self.promise, Expense::Promise, size, 1);
    }
}

/// What is charged for a page that is about to be taken; discharged when this is dropped.
pub(crate) struct PageCharge<P: Payer> {
    payers: PagePayers<P>,
    size: PageSize,
}

impl<P: Payer> PageCharge<P> {
    /// Charges a page, and a promise if none was made.
    pub(crate) fn new(payer: P, size: PageSize, promised: bool) -> Result<PageCharge<P>, Refused> {
        let promise = if promised { P::nobody() } else { payer.clone() };
        charge(&promise, Expense::Promise, size, 1)?;
        if let Err(refused) = charge(&payer, Expense::Page, size, 1) {
            discharge(&promise, Expense::Promise, size, 1);
            return Err(refused);
        }
        Ok(PageCharge { payers: PagePayers { page: payer, promise }, size })
    }

    /// The page was taken, and keeps who pays.
    pub(crate) fn into_payers(mut self) -> PagePayers<P> {
        let nobody = PagePayers { page: P::nobody(), promise: P::nobody() };
        core::mem::replace(&mut self.payers, nobody)
    }
}

impl<P: Payer> Drop for PageCharge<P> {
    fn drop(&mut self) {
        self.payers.discharge(self.size);
    }
}
