//! Reservations: a promise at mmap that a fault will find a page.
//!
//! As in Linux, a *shared* mapping reserves for the file: [`Regions`] of the file holds each page index that was promised
//! or has been used, and mmap promises only those that are not in it. A *private* mapping reserves for itself: its
//! [`Regions`] holds the indices that were used up. `MAP_NORESERVE` promises nothing; such a fault may find the pool empty.
//!
//! A mount with `size=` or `min_size=` has a [`Subpool`] between its files and the pool.

mod promises;
mod regions;

pub(crate) use promises::Promises;
use regions::Regions;

use crate::error::Result;
use crate::machine::Machine;
use crate::payer::{self, Expense};
use crate::pool::{Pool, Subpool};
use crate::sync::Arc;

/// Promises `pages` within a mount's limits and those of the payer, whom it returns.
pub(crate) fn reserve<M: Machine>(
    pool: &Pool<M>,
    subpool: Option<&Arc<Subpool<M>>>,
    pages: u64,
) -> Result<M::Payer> {
    let payer = pool.machine().payer();
    payer::charge(&payer, Expense::Promise, pool.page_size(), pages).map_err(|_| crate::Error::NoMemory)?;
    match promise(pool, subpool, pages) {
        Ok(()) => Ok(payer),
        Err(error) => {
            payer::discharge(&payer, Expense::Promise, pool.page_size(), pages);
            Err(error)
        }
    }
}

fn promise<M: Machine>(pool: &Pool<M>, subpool: Option<&Arc<Subpool<M>>>, pages: u64) -> Result<()> {
    let from_pool = match subpool {
        // The caller sees ENOMEM, as from the pool: mmap has no other.
        Some(subpool) => subpool.get(pages).map_err(|_| crate::Error::NoMemory)?,
        None => pages,
    };
    pool.reserve(from_pool).inspect_err(|_| {
        if let Some(subpool) = subpool {
            cancel(pool, subpool, pages, from_pool);
        }
    })
}

/// Undoes [`Subpool::get`] of `pages`, of which the pool was to give `from_pool` and did not.
fn cancel<M: Machine>(pool: &Pool<M>, subpool: &Subpool<M>, pages: u64, from_pool: u64) {
    subpool.forget(from_pool);
    // What the minimum covered returns to it, or to the pool if the minimum was refilled meanwhile.
    pool.unreserve(subpool.put(pages - from_pool));
}

/// Takes a page for which nothing was promised, within a mount's limits; ENOSPC when there is none.
pub(crate) fn take_unpromised<M: Machine>(
    pool: &Pool<M>,
    subpool: Option<&Arc<Subpool<M>>>,
) -> Result<crate::PhysAddr> {
    let from_pool = subpool.map_or(Ok(1), |subpool| subpool.get(1))?;
    // What the mount's minimum covers is promised to the mount.
    pool.take(from_pool == 0).ok_or(crate::Error::NoSpace).inspect_err(|_| {
        if let Some(subpool) = subpool {
            cancel(pool, subpool, 1, from_pool);
        }
    })
}

/// Takes back a promise of `pages` that were not used. Who paid for it is discharged by who kept the payer.
pub(crate) fn unreserve<M: Machine>(pool: &Pool<M>, subpool: Option<&Arc<Subpool<M>>>, pages: u64) {
    pool.unreserve(subpool.map_or(pages, |subpool| subpool.put(pages)));
}
