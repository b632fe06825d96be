//! Mappings that fill windows of 512 GiB: one entry leads to all of the file.

use std::sync::Arc;

use hugetlb::{
    CheckRound, Config, FallocateMode, File, Hugetlb, MapOptions, PageSize, Protection, ProtocolKind,
    SLOT_SIZE, SharingStatistics, VirtAddr,
};
use hugetlb_sim::{Process, Signal, SimMachine};

const SIZE: u64 = 2 << 20;
/// What one entry of the highest table spans.
const WIDE: u64 = 512 * SLOT_SIZE;
const HERE: VirtAddr = VirtAddr(4 * WIDE);
const SHARED: MapOptions =
    MapOptions { shared: true, no_reserve: true, protection: Protection::READ.union(Protection::WRITE) };
const POOL: u64 = 32;

type System = Arc<Hugetlb<SimMachine>>;

/// A machine with so many frames for tables, and a file of one window with pages at the byte offsets.
fn filled(tables: usize, offsets: &[u64]) -> (SimMachine, System, Arc<File<SimMachine>>) {
    let machine = SimMachine::new(2, tables, POOL as usize, 0);
    let config = Config { default_size: PageSize::Size2M, protocol: ProtocolKind::FileTables };
    let hugetlb = machine.hugetlb(config);
    assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(POOL, || false), POOL);
    let file = hugetlb.anonymous_file(PageSize::Size2M, WIDE).unwrap();
    for offset in offsets {
        file.fallocate(FallocateMode::AllocateKeepSize, *offset, SIZE, || false).unwrap();
    }
    (machine, hugetlb, file)
}

fn check(machine: &SimMachine, hugetlb: &System, file: &File<SimMachine>, processes: &[&Process]) {
    machine.check().unwrap();
    file.check_tables().unwrap();
    let mut round = CheckRound::new(hugetlb);
    processes.iter().for_each(|process| process.check(&mut round).unwrap());
    round.check_counts().unwrap();
}

/// Tables, attachments, what they reach: nothing else of the counters goes back.
fn in_use(statistics: &SharingStatistics) -> (u64, u64, u64) {
    (statistics.tables, statistics.attachments, statistics.reached)
}

/// Under a wide window the fault has an entry already. It must notice that no table comes for its part.
#[test]
fn a_page_that_too_many_windows_lie_over_is_found_through_a_wide_window() {
    let (machine, hugetlb, file) = filled(256, &[0, 7 * SLOT_SIZE]);
    let narrow = machine.process().unwrap();
    for length in 1..=16 {
        let start = VirtAddr(length * SLOT_SIZE);
        narrow.map(&file, start, length * SIZE, 0, SHARED).unwrap();
    }
    let wide = machine.process().unwrap();
    wide.map(&file, HERE, WIDE, 0, SHARED).unwrap();
    wide.store(0, HERE + 7 * SLOT_SIZE, 7).unwrap();
    wide.store(1, HERE, 5).unwrap();
    check(&machine, &hugetlb, &file, &[&narrow, &wide]);
    assert_eq!(narrow.load(0, VirtAddr(SLOT_SIZE)), Ok(5));
    assert_eq!(wide.load(0, HERE + 7 * SLOT_SIZE), Ok(7));
    assert!(hugetlb.sharing().fallbacks(hugetlb::Fallback::Crowded) > 0);
    file.truncate(0).unwrap();
    assert_eq!(wide.load(0, HERE), Err(Signal::Bus));
    drop((narrow, wide));
    assert_eq!(in_use(&hugetlb.sharing()), (0, 0, 0));
}

/// A table that somebody made for a part of the window is found by who comes to the window later, without a fault.
#[test]
fn what_narrow_mappings_brought_faults_in_no_wide_one() {
    let (machine, hugetlb, file) = filled(256, &[0]);
    let (first, narrow) = (machine.process().unwrap(), machine.process().unwrap());
    first.map(&file, HERE, WIDE, 0, SHARED).unwrap();
    narrow.map(&file, HERE, SLOT_SIZE, 3 * SLOT_SIZE, SHARED).unwrap();
    narrow.store(0, HERE, 9).unwrap();
    let late = machine.process().unwrap();
    late.map(&file, HERE, WIDE, 0, SHARED).unwrap();
    let before = hugetlb.sharing().faults;
    for process in [&first, &late] {
        assert_eq!(process.load(1, HERE + 3 * SLOT_SIZE), Ok(9));
    }
    assert_eq!(hugetlb.sharing().faults, before);
    check(&machine, &hugetlb, &file, &[&first, &narrow, &late]);
}
