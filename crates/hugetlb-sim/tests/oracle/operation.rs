//! What processes do, and what they get for it.

use std::ops::Range;

use hugetlb::PageSize;

/// The pages of a 1 GiB slot, and of a 1 GiB page, in the unit of all addresses and sizes here: 2 MiB.
pub const SLOT: u64 = 512;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    Nothing,
    Read,
    ReadWrite,
}

/// What an operation comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    Value(u64),
    /// What a pool's persistent size became.
    Persistent(u64),
    Segv,
    Bus,
    NoMemory,
    NoSpace,
}

#[derive(Clone, Debug)]
pub enum Operation {
    Map {
        process: usize,
        file: usize,
        start: u64,
        pages: u64,
        first: u64,
        shared: bool,
        reserve: bool,
        protection: Protection,
    },
    Unmap {
        process: usize,
        range: Range<u64>,
    },
    Protect {
        process: usize,
        range: Range<u64>,
        protection: Protection,
    },
    Discard {
        process: usize,
        range: Range<u64>,
    },
    Move {
        process: usize,
        from: u64,
        to: u64,
    },
    Fork {
        process: usize,
    },
    Exit {
        process: usize,
    },
    Truncate {
        file: usize,
        pages: u64,
    },
    Punch {
        file: usize,
        range: Range<u64>,
    },
    Allocate {
        file: usize,
        range: Range<u64>,
        keep_size: bool,
    },
    Load {
        process: usize,
        cpu: usize,
        page: u64,
    },
    Store {
        process: usize,
        cpu: usize,
        page: u64,
        value: u64,
    },
    /// `vm.nr_hugepages`, in pages of the pool.
    Resize {
        size: PageSize,
        pages: u64,
    },
    /// `vm.nr_overcommit_hugepages`.
    Overcommit {
        pages: u64,
    },
}
