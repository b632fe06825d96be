//! Promises and pages of a pool that runs empty, step by step: what must hold under every protocol.
//!
//! No race: one thread. It is a model for the machine's sake, and because the code can be broken here.

use hugetlb::{
    Access, Config, FallocateMode, Hugetlb, MapOptions, PageSize, PoolStatistics, Protection, ProtocolKind,
    SLOT_SIZE,
};

use crate::{ModelMachine, PAGE, Process, SHARED, SLOT, Signal};

const PROMISING: MapOptions = MapOptions { no_reserve: false, ..SHARED };

/// Two processes and a pool of two pages, through promises kept, refused, used up and given back.
pub(super) fn promises_are_kept(protocol: ProtocolKind) {
    let machine = ModelMachine::new(2);
    let hugetlb = Hugetlb::new(machine.clone(), Config { default_size: PageSize::Size2M, protocol });
    let pool = hugetlb.pool(PageSize::Size2M).clone();
    assert_eq!(pool.set_persistent(2, || false), 2);
    let expect = |free: u64, reserved: u64, when: &str| {
        pool.check().unwrap_or_else(|what| panic!("{when}: {what}"));
        let PoolStatistics { free: is_free, reserved: is_reserved, .. } = pool.statistics();
        assert_eq!((is_free, is_reserved), (free, reserved), "free and promised pages: {when}");
    };
    let files = [(); 2].map(|()| hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).unwrap());
    let [owner, other] = [(); 2].map(|()| Process::new(&machine));

    owner.map(&files[0], SLOT, 2 * PAGE, 0, PROMISING).unwrap();
    expect(2, 2, "two promised");
    // Who was promised nothing gets nothing, although pages are free.
    other.map(&files[1], SLOT, PAGE, 0, SHARED).unwrap();
    assert_eq!(other.store(0, SLOT, 1), Err(Signal::Bus), "a page that is promised to another is taken");
    assert_eq!(owner.store(0, SLOT, 1), Ok(()), "a promise is not kept");
    expect(1, 1, "one used up");
    files[0].fallocate(FallocateMode::PunchHole, 0, PAGE, || false).unwrap();
    // The promise went with the hole: now there is one page for whoever comes.
    expect(2, 1, "a hole");
    assert_eq!(other.store(0, SLOT, 1), Ok(()), "a page that nobody is promised");
    assert_eq!(owner.store(0, SLOT, 1), Err(Signal::Bus), "an empty pool gives a page");
    assert_eq!(owner.store(0, SLOT + PAGE, 1), Ok(()), "the other promise is not kept");
    expect(0, 0, "all used");
    owner.unmap(SLOT..SLOT + 2 * PAGE);
    other.unmap(SLOT..SLOT + PAGE);
    files.iter().for_each(|file| file.truncate(0).unwrap());
    expect(2, 0, "truncated");

    // A private mapping's promises are its own, return with what it discards, and go with it.
    owner.map(&files[0], SLOT, 2 * PAGE, 0, MapOptions { shared: false, ..PROMISING }).unwrap();
    assert_eq!(owner.store(0, SLOT, 1), Ok(()), "a private store");
    expect(1, 1, "one private page");
    owner.discard(SLOT..SLOT + PAGE).unwrap();
    expect(2, 2, "a discard renews the promise");
    owner.unmap(SLOT..SLOT + 2 * PAGE);
    expect(2, 0, "a private mapping ends");

    // Who may only load gets no page to store to.
    let reading = MapOptions { protection: Protection::READ, ..SHARED };
    owner.map(&files[1], SLOT + 4 * PAGE, PAGE, 0, reading).unwrap();
    let refused = owner.fault(SLOT + 4 * PAGE, Access::Write);
    assert_eq!(refused, Err(Signal::Segv), "a store that is not permitted");
    owner.unmap(SLOT + 4 * PAGE..SLOT + 5 * PAGE);
    expect(2, 0, "nothing was stored");

    // Pages behind the end come into sight when the file grows.
    files[1].fallocate(FallocateMode::Allocate, 0, PAGE, || false).unwrap();
    owner.map(&files[1], SLOT, 2 * PAGE, 0, MapOptions { protection: Protection::READ, ..SHARED }).unwrap();
    files[1].fallocate(FallocateMode::AllocateKeepSize, PAGE, PAGE, || false).unwrap();
    files[1].truncate(2 * PAGE).unwrap();
    files[1].check_tables().unwrap();
    machine.check();
    drop((owner, other, files));
    expect(2, 0, "the end");
}
