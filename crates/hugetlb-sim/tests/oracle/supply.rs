//! What the pools can give at a moment: numbers, no frames.

use hugetlb::{PageSize, PoolStatistics};

/// What a pool can give.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Free pages that nobody is promised.
    unpromised: u64,
    /// Surplus pages that demand may add.
    more: u64,
    /// Frames that the machine has left.
    machine: u64,
    surplus: u64,
    persistent: u64,
}

impl Pages {
    /// Of a pool with these counters, on a machine with so many frames left.
    pub fn of(pool: PoolStatistics, machine: u64) -> Pages {
        Pages {
            unpromised: pool.free - pool.reserved,
            more: pool.overcommit.saturating_sub(pool.surplus).min(machine),
            machine,
            surplus: pool.surplus,
            persistent: pool.persistent,
        }
    }

    /// Takes a page that is promised to nobody; whether there is one.
    pub fn take(&mut self) -> bool {
        self.promise(1)
    }

    /// Promises pages, all or none.
    pub fn promise(&mut self, pages: u64) -> bool {
        if pages > self.unpromised + self.more {
            return false;
        }
        let free = pages.min(self.unpromised);
        self.unpromised -= free;
        self.more -= pages - free;
        true
    }

    /// A page comes back; a surplus one goes on to the machine.
    pub fn give(&mut self) {
        self.surplus = self.surplus.saturating_sub(1);
    }

    /// Whether pages of the pool are surplus: then no promise is renewed by what a private mapping gives up.
    pub fn has_surplus(&self) -> bool {
        self.surplus > 0
    }

    /// What the persistent size becomes when it is set.
    pub fn resized(&self, wanted: u64) -> u64 {
        wanted.min(self.persistent + self.surplus + self.machine)
    }
}

/// What both pools can give.
#[derive(Clone, Copy, Debug)]
pub struct Supply(pub [Pages; 2]);

impl Supply {
    /// More than anybody asks for.
    pub fn plenty() -> Supply {
        let plenty = Pages { unpromised: 1 << 40, more: 0, machine: 1 << 40, surplus: 0, persistent: 0 };
        Supply([plenty; 2])
    }

    pub fn of(&mut self, size: PageSize) -> &mut Pages {
        &mut self.0[usize::from(size == PageSize::Size1G)]
    }
}
