//! Promises and pages of a pool that runs empty: what must hold under every protocol.

use hugetlb::{
    Config, FallocateMode, MapOptions, PageSize, PoolStatistics, Protection, ProtocolKind, SLOT_SIZE,
    VirtAddr,
};
use hugetlb_sim::{Signal, SimMachine};

const SIZE: u64 = 2 << 20;
const SLOT: VirtAddr = VirtAddr(SLOT_SIZE);
const RW: Protection = Protection::READ.union(Protection::WRITE);
const PROMISING: MapOptions = MapOptions { shared: true, no_reserve: false, protection: RW };

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, is: T, wanted: T) -> Result<(), String> {
    if is == wanted { Ok(()) } else { Err(format!("{what}: {is:?} instead of {wanted:?}")) }
}

/// Two processes and a pool of two pages, through promises kept, refused, used up and given back.
fn promises_are_kept(protocol: ProtocolKind) -> Result<(), String> {
    let machine = SimMachine::new(1, 64, 2, 0);
    let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
    let pool = hugetlb.pool(PageSize::Size2M).clone();
    assert_eq!(pool.set_persistent(2, || false), 2);
    let now = || {
        let PoolStatistics { free, reserved, .. } = pool.statistics();
        (free, reserved)
    };
    let files = [(); 2].map(|()| hugetlb.anonymous_file(PageSize::Size2M, 4 * SIZE).unwrap());
    let [owner, other] = [(); 2].map(|()| machine.process().unwrap());

    owner.map(&files[0], SLOT, 2 * SIZE, 0, PROMISING).unwrap();
    equal("promised", now(), (2, 2))?;
    // Who was promised nothing gets nothing, although pages are free.
    other.map(&files[1], SLOT, SIZE, 0, MapOptions { no_reserve: true, ..PROMISING }).unwrap();
    equal("a page that is promised to another", other.store(0, SLOT, 1), Err(Signal::Bus))?;
    equal("a promise", owner.store(0, SLOT, 1), Ok(()))?;
    equal("one used up", now(), (1, 1))?;
    files[0].fallocate(FallocateMode::PunchHole, 0, SIZE, || false).unwrap();
    // The promise went with the hole: now there is one for whoever comes.
    equal("a hole", now(), (2, 1))?;
    equal("a page that nobody is promised", other.store(0, SLOT, 1), Ok(()))?;
    equal("an empty pool", owner.store(0, SLOT, 1), Err(Signal::Bus))?;
    equal("the other promise", owner.store(0, SLOT + SIZE, 1), Ok(()))?;
    equal("all used", now(), (0, 0))?;
    owner.unmap(SLOT..SLOT + 2 * SIZE);
    other.unmap(SLOT..SLOT + SIZE);
    files.iter().for_each(|file| file.truncate(0).unwrap());
    equal("truncated", now(), (2, 0))?;

    // A private mapping's promises are its own, return with what it discards, and go with it.
    let private = MapOptions { shared: false, ..PROMISING };
    owner.map(&files[0], SLOT, 2 * SIZE, 0, private).unwrap();
    equal("a private store", owner.store(0, SLOT, 1), Ok(()))?;
    equal("one private page", now(), (1, 1))?;
    owner.discard(SLOT..SLOT + SIZE).unwrap();
    equal("a discard renews the promise", now(), (2, 2))?;
    owner.unmap(SLOT..SLOT + 2 * SIZE);
    equal("a private mapping's end", now(), (2, 0))?;

    // Pages behind the end come into sight when the file grows.
    let reading = MapOptions { protection: Protection::READ, no_reserve: true, ..PROMISING };
    owner.map(&files[1], SLOT, 2 * SIZE, 0, reading).unwrap();
    files[1].fallocate(FallocateMode::AllocateKeepSize, 0, SIZE, || false).unwrap();
    files[1].truncate(SIZE).unwrap();
    files[1].check_tables()?;
    drop((owner, other, files));
    equal("the end", now(), (2, 0))?;
    machine.check()
}

#[test]
fn promises_are_kept_under_every_protocol() {
    for (name, protocol) in ProtocolKind::ALL {
        promises_are_kept(*protocol).unwrap_or_else(|difference| panic!("{name}: {difference}"));
    }
}
