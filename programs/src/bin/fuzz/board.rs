//! What an actor remembers: addresses, descriptors, processes, identifiers.
//!
//! The board is a static of atomics. A fork copies it, threads share it, and no call that the actor makes can leave it locked.
//! What it says is a hint: another thread may have unmapped the area or closed the descriptor.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::Relaxed};

use roundtable_programs::rng::Rng;

/// A list of the last values of one kind.
pub struct Ring<const N: usize> {
    values: [AtomicI32; N],
    added: AtomicU32,
}

impl<const N: usize> Ring<N> {
    const fn new() -> Ring<N> {
        Ring { values: [const { AtomicI32::new(0) }; N], added: AtomicU32::new(0) }
    }

    pub fn put(&self, value: i32) {
        // Relaxed, here and below: each value is a hint by itself.
        let at = self.added.fetch_add(1, Relaxed) as usize % N;
        self.values[at].store(value, Relaxed);
    }

    pub fn pick(&self, rng: &mut Rng) -> Option<i32> {
        let known = (self.added.load(Relaxed) as usize).min(N);
        let at = rng.below(known.max(1));
        (known > 0).then(|| self.values[at].load(Relaxed))
    }
}

/// A mapping, as far as is known.
#[derive(Clone, Copy)]
pub struct Area {
    pub address: usize,
    pub length: usize,
}

const AREAS: usize = 24;

pub struct Areas {
    addresses: [AtomicUsize; AREAS],
    lengths: [AtomicUsize; AREAS],
    added: AtomicU32,
}

impl Areas {
    const fn new() -> Areas {
        Areas {
            addresses: [const { AtomicUsize::new(0) }; AREAS],
            lengths: [const { AtomicUsize::new(0) }; AREAS],
            added: AtomicU32::new(0),
        }
    }

    pub fn put(&self, area: Area) {
        let at = self.added.fetch_add(1, Relaxed) as usize % AREAS;
        // Another thread may read the new address with the old length: one more area that only nearly exists.
        self.addresses[at].store(area.address, Relaxed);
        self.lengths[at].store(area.length, Relaxed);
    }

    pub fn pick(&self, rng: &mut Rng) -> Option<Area> {
        let known = (self.added.load(Relaxed) as usize).min(AREAS);
        let at = rng.below(known.max(1));
        (known > 0).then(|| Area {
            address: self.addresses[at].load(Relaxed),
            length: self.lengths[at].load(Relaxed).max(1),
        })
    }
}

pub struct Board {
    pub areas: Areas,
    /// All descriptors, and those of a kind once more.
    pub descriptors: Ring<32>,
    pub files: Ring<16>,
    pub sockets: Ring<8>,
    pub events: Ring<8>,
    pub clocks: Ring<8>,
    pub regions: Ring<4>,
    /// Where segments are attached.
    pub attached: Areas,
    pub processes: Ring<16>,
    pub threads: Ring<8>,
    pub segments: Ring<8>,
    pub timers: Ring<8>,
}

/// This process's.
pub static BOARD: Board = Board {
    areas: Areas::new(),
    descriptors: Ring::new(),
    files: Ring::new(),
    sockets: Ring::new(),
    events: Ring::new(),
    clocks: Ring::new(),
    regions: Ring::new(),
    attached: Areas::new(),
    processes: Ring::new(),
    threads: Ring::new(),
    segments: Ring::new(),
    timers: Ring::new(),
};
