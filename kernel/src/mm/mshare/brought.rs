//! Who has brought what into a region: for the killer, which asks who is to go when memory is short.
//!
//! A region has an account for each address space that has brought something in, by faults, by populating, or by what debuggers store. It
//! stays when the region is detached, as the pages do, and until these go or the address space does. Then what is left counts for each who has the
//! region attached.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::ops::Bound;
use core::sync::atomic::{AtomicU64, Ordering};

use super::region::Region;
use crate::mm::space::AddressSpace;
use crate::mm::vma::Costs;
use crate::sync::SpinLock;

/// Bytes of pages, tables and areas that a process brought into a region.
pub(super) struct Brought {
    count: AtomicU64,
    /// What the process answers for when memory is short, while it has its memory.
    costs: Weak<Costs>,
}

impl Brought {
    /// `more` came into the region, from which others may have taken something away.
    ///
    /// To find out what tables of files show takes a walk through all areas. So that is done only where the account has outgrown
    /// what is known by more than a part of it: a page costs a few steps, however many areas there are.
    pub(super) fn add(&self, more: u64, region: &Region) {
        const SLACK: u64 = 2 << 20;
        let known = region.known();
        // Relaxed: as in `change`.
        let count = self.count.load(Ordering::Relaxed).saturating_add(more);
        let all = if count <= known + known / 8 + SLACK { u64::MAX } else { region.weight() };
        self.change(|count| count.saturating_add(more).min(all));
    }

    /// The region has no more than `all` now.
    fn limit(&self, all: u64) {
        self.change(|count| count.min(all));
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        // Relaxed, all: an account on which no other data hangs.
        let old = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(change(count)));
        if let (Ok(old), Some(costs)) = (old, self.costs.upgrade()) {
            costs.change_in_regions(change(old) as i64 - old as i64);
        }
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        if let Some(costs) = self.costs.upgrade() {
            costs.change_in_regions(-(*self.count.get_mut() as i64));
        }
    }
}

/// The accounts of a region.
pub(super) struct Accounts(SpinLock<Table>);

impl Default for Accounts {
    fn default() -> Self {
        Self(SpinLock::growing(Table::default()))
    }
}

#[derive(Default)]
struct Table {
    /// By the ids of the spaces' tables.
    by_space: BTreeMap<u64, Arc<Brought>>,
    /// Where the next search for accounts of nobody goes on.
    searched: u64,
}

impl Table {
    /// Takes the next account out if its address space is gone. One step for each account that comes: there are not many of the dead.
    fn take_dead(&mut self) -> Option<Arc<Brought>> {
        let next = (Bound::Excluded(self.searched), Bound::Unbounded);
        let id = self.by_space.range(next).next().map(|(id, _)| *id);
        self.searched = id.unwrap_or(0);
        let is_dead = id.and_then(|id| self.by_space.get(&id)).is_some_and(|it| it.costs.strong_count() == 0);
        if is_dead { self.by_space.remove(&id?) } else { None }
    }
}

impl Accounts {
    /// That of an address space, which is made if there is none.
    pub(super) fn of(&self, space: &AddressSpace) -> Arc<Brought> {
        let new =
            || Arc::new(Brought { count: AtomicU64::new(0), costs: Arc::downgrade(&space.shared_costs()) });
        let mut table = self.0.lock();
        // Two for each that comes.
        let dead = [table.take_dead(), table.take_dead()];
        let account = table.by_space.entry(space.page_tables().id).or_insert_with(new).clone();
        drop(table);
        drop(dead);
        account
    }

    /// An area of an address space goes, which has brought nothing in: no account is needed.
    pub(super) fn forget_empty(&self, id: u64) {
        let mut table = self.0.lock();
        // The table's reference and that of the area which goes: no other attachment has one.
        let is_empty = table
            .by_space
            .get(&id)
            .is_some_and(|it| it.count.load(Ordering::Relaxed) == 0 && Arc::strong_count(it) <= 2);
        let removed = if is_empty { table.by_space.remove(&id) } else { None };
        drop(table);
        drop(removed);
    }

    /// Pages have gone: the region has `all` now.
    pub(super) fn limit(&self, all: u64) {
        self.each(|account| account.limit(all));
    }

    /// Bytes that address spaces which are there answer for.
    pub(super) fn claimed(&self) -> u64 {
        let mut sum = 0;
        self.each(|account| {
            if account.costs.strong_count() > 0 {
                // Relaxed: as in `change`.
                sum += account.count.load(Ordering::Relaxed);
            }
        });
        sum
    }

    fn each(&self, mut visit: impl FnMut(&Brought)) {
        let mut last = None;
        loop {
            let table = self.0.lock();
            let next = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
            // Some in a hold: there may be very many.
            for (id, account) in table.by_space.range::<u64, _>(next).take(AT_ONCE) {
                visit(account);
                last = Some(*id);
            }
            let more = table
                .by_space
                .range::<u64, _>((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
            if more.take(1).count() == 0 {
                return;
            }
            drop(table);
            crate::sched::cond_resched();
        }
    }
}

/// Accounts that are visited in one hold.
const AT_ONCE: usize = 64;
