//! Races with their steps put in order by hand, through the machine's hooks.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hugetlb::{
    Config, FallocateMode, Hugetlb, MapOptions, PageSize, Protection, ProtocolKind, SLOT_SIZE, VirtAddr,
};
use hugetlb_sim::{Signal, SimMachine};

const SIZE: u64 = 2 << 20;
const POOL: u64 = 8;
const SLOT: VirtAddr = VirtAddr(SLOT_SIZE);
const SHARED: MapOptions =
    MapOptions { shared: true, no_reserve: true, protection: Protection::READ.union(Protection::WRITE) };

const PROTOCOLS: [ProtocolKind; 4] =
    [ProtocolKind::None, ProtocolKind::FileLock, ProtocolKind::VmaLock, ProtocolKind::FileTables];

fn machine(protocol: ProtocolKind) -> (SimMachine, Arc<Hugetlb<SimMachine>>) {
    let machine = SimMachine::new(2, 64, POOL as usize, 0);
    let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
    assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(POOL, || false), POOL);
    (machine, hugetlb)
}

fn pool(hugetlb: &Hugetlb<SimMachine>) -> (u64, u64) {
    let statistics = hugetlb.pool(PageSize::Size2M).statistics();
    (statistics.free, statistics.reserved)
}

/// A fault has looked at the size and zeroes its page; the file is truncated meanwhile.
#[test]
fn a_page_does_not_appear_behind_a_truncation() {
    for (no_reserve, protocol) in [true, false].into_iter().flat_map(|no| PROTOCOLS.map(|kind| (no, kind))) {
        let (machine, hugetlb) = machine(protocol);
        let file = hugetlb.anonymous_file(PageSize::Size2M, 2 * SIZE).unwrap();
        let process = machine.process().unwrap();
        process.map(&file, SLOT, 2 * SIZE, 0, MapOptions { no_reserve, ..SHARED }).unwrap();
        let (done, wait) = mpsc::channel();
        let truncated = file.clone();
        machine.in_next_zero(move || {
            // It waits for the fault after it has set the size.
            let file = truncated.clone();
            thread::spawn(move || {
                file.truncate(0).unwrap();
                done.send(()).unwrap();
            });
            while truncated.statistics().size != 0 {
                thread::yield_now();
            }
        });
        assert_eq!(process.store(0, SLOT, 1), Err(Signal::Bus));
        wait.recv().unwrap();
        assert_eq!(file.statistics().pages, 0);
        assert_eq!(pool(&hugetlb), (POOL, 0), "a promise was lost or doubled");
        // A counter below zero would lend out more than there is.
        assert!(file.reserve(0..(POOL + 1) * SIZE).is_err());
        drop(process);
        machine.check().unwrap();
    }
}

/// A fault zeroes its page; the file is truncated meanwhile, and is as long as before when the page is put there. Nothing holds
/// the truncations up: no other mapping is on the list, and the file has no page.
#[test]
fn a_promise_is_not_taken_back_under_a_page_that_is_on_its_way() {
    for no_reserve in [true, false] {
        let (machine, hugetlb) = machine(ProtocolKind::FileTables);
        let file = hugetlb.anonymous_file(PageSize::Size2M, 2 * SIZE).unwrap();
        let process = machine.process().unwrap();
        process.map(&file, SLOT, 2 * SIZE, 0, MapOptions { no_reserve, ..SHARED }).unwrap();
        let (truncated, pools) = (file.clone(), hugetlb.clone());
        machine.in_next_zero(move || {
            truncated.truncate(0).unwrap();
            // The page is nobody's promise any more, and not free either.
            assert_eq!(pool(&pools), (POOL - 1, 0));
            pools.pool(PageSize::Size2M).check().unwrap();
            truncated.truncate(2 * SIZE).unwrap();
        });
        assert_eq!(process.store(0, SLOT, 1), Err(Signal::Bus), "it raced with the truncation");
        assert_eq!((file.statistics().pages, pool(&hugetlb)), (0, (POOL, 0)));
        hugetlb.pool(PageSize::Size2M).check().unwrap();
        assert!(
            file.reserve(0..(POOL + 1) * SIZE).is_err(),
            "a counter below zero lends out more than there is"
        );
        // The next access finds a page as ever.
        assert_eq!(process.store(0, SLOT, 1), Ok(()));
        drop((process, file));
        assert_eq!(pool(&hugetlb), (POOL, 0));
        hugetlb.pool(PageSize::Size2M).check().unwrap();
    }
}

/// A hole punch has cleared a mapping's entry and waits for its flush; the process replaces the mapping meanwhile.
fn a_new_mapping_is_not_hidden_behind_old_translations(protocol: ProtocolKind) {
    let (machine, hugetlb) = machine(protocol);
    let [old, new] = [5, 6].map(|value| {
        let file = hugetlb.anonymous_file(PageSize::Size2M, SIZE).unwrap();
        let process = machine.process().unwrap();
        process.map(&file, SLOT, SIZE, 0, SHARED).unwrap();
        process.store(0, SLOT, value).unwrap();
        file
    });
    let process = Arc::new(machine.process().unwrap());
    process.map(&old, SLOT, SIZE, 0, SHARED).unwrap();
    assert_eq!(process.load(1, SLOT), Ok(5));
    let (done, wait) = mpsc::channel();
    let (finished, was_early) = mpsc::channel();
    machine.in_next_flush(move || {
        thread::spawn(move || {
            process.unmap(SLOT..SLOT + SIZE).unwrap();
            process.map(&new, SLOT, SIZE, 0, SHARED).unwrap();
            let seen = process.load(1, SLOT);
            finished.send(()).ok();
            // The machine is checked at rest: the process has gone by then.
            drop(process);
            done.send(seen).unwrap();
        });
        match protocol {
            // The punch does not hold the mapping up, which flushes its own translations before anything new is there.
            ProtocolKind::FileTables => was_early.recv().unwrap(),
            // Time enough for the other thread to get through, if nothing holds it.
            _ => assert!(
                was_early.recv_timeout(Duration::from_millis(200)).is_err(),
                "the mapping went before its flush"
            ),
        }
    });
    old.fallocate(FallocateMode::PunchHole, 0, SIZE, || false).unwrap();
    assert_eq!(wait.recv().unwrap(), Ok(6));
    machine.check().unwrap();
}

#[test]
fn a_new_mapping_is_not_hidden_behind_old_translations_under_any_protocol() {
    PROTOCOLS.into_iter().for_each(a_new_mapping_is_not_hidden_behind_old_translations);
}
