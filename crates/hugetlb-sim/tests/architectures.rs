//! What architectures do differently, and what goes wrong where a format does not know it.

use std::sync::Arc;

use hugetlb::filetables::format::{Aarch64, Riscv64, X86_64};
use hugetlb::{
    Config, FallocateMode, File, Format, Hugetlb, MapOptions, PageSize, Protection, ProtocolKind, SLOT_SIZE,
    VirtAddr,
};
use hugetlb_sim::{Process, Rules, Signal, SimMachine};

const SIZE: u64 = 2 << 20;
const SLOT: VirtAddr = VirtAddr(SLOT_SIZE);
const RW: Protection = Protection::READ.union(Protection::WRITE);
const PROTOCOLS: [ProtocolKind; 4] =
    [ProtocolKind::None, ProtocolKind::FileLock, ProtocolKind::VmaLock, ProtocolKind::FileTables];

fn shared(protection: Protection) -> MapOptions {
    MapOptions { shared: true, no_reserve: true, protection }
}

struct World<F: Format> {
    machine: SimMachine<F>,
    hugetlb: Arc<Hugetlb<SimMachine<F>>>,
    file: Arc<File<SimMachine<F>>>,
}

impl<F: Format> World<F> {
    fn new(rules: Rules, protocol: ProtocolKind) -> World<F> {
        let machine = SimMachine::<F>::with_rules(rules, 2, 64, 8, 0);
        let hugetlb = machine.hugetlb(Config { default_size: PageSize::Size2M, protocol });
        assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(8, || false), 8);
        let file = hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).unwrap();
        World { machine, hugetlb, file }
    }

    /// A process that maps all of the file.
    fn process(&self, protection: Protection) -> Process<F> {
        let process = self.machine.process().unwrap();
        process.map(&self.file, SLOT, SLOT_SIZE, 0, shared(protection)).unwrap();
        process
    }

    fn end(self) {
        self.machine.check().unwrap();
        drop(self.file);
        assert_eq!(self.hugetlb.pool(PageSize::Size2M).statistics().free, 8);
        assert_eq!(self.machine.tables_in_use(), 0);
    }
}

/// One process may write, another may only read. The second one stores.
fn store_of_a_reader<F: Format>(rules: Rules, protocol: ProtocolKind) -> Result<(), Signal> {
    let world = World::<F>::new(rules, protocol);
    let (writer, reader) = (world.process(RW), world.process(Protection::READ));
    writer.store(0, SLOT, 5).unwrap();
    assert_eq!(reader.load(1, SLOT), Ok(5));
    let stored = reader.store(1, SLOT, 6);
    assert_eq!(writer.load(0, SLOT), Ok(if stored.is_ok() { 6 } else { 5 }));
    drop((writer, reader));
    world.end();
    stored
}

#[test]
fn a_read_only_mapping_cannot_be_written_where_rights_do_not_combine() {
    for protocol in PROTOCOLS {
        for rules in [Rules::SV39, Rules::SV48] {
            assert_eq!(store_of_a_reader::<Riscv64>(rules, protocol), Err(Signal::Segv), "{protocol:?}");
        }
        assert_eq!(store_of_a_reader::<X86_64>(Rules::X86_64, protocol), Err(Signal::Segv));
        assert_eq!(store_of_a_reader::<Aarch64>(Rules::AARCH64, protocol), Err(Signal::Segv));
    }
}

/// What the rights in the key are for: the same with the key of x86-64, on hardware without hierarchical permissions.
#[test]
fn without_the_rights_in_the_key_it_can() {
    let flat = Rules { rights_combine: false, ..Rules::X86_64 };
    assert_eq!(store_of_a_reader::<X86_64>(flat, ProtocolKind::FileTables), Ok(()));
}

#[test]
fn mappings_with_the_same_rights_share_where_rights_do_not_combine() {
    let world = World::<Riscv64>::new(Rules::SV48, ProtocolKind::FileTables);
    let writers = [(); 3].map(|()| world.process(RW));
    let readers = [(); 3].map(|()| world.process(Protection::READ));
    writers[0].store(0, SLOT, 5).unwrap();
    for process in writers.iter().chain(&readers) {
        assert_eq!(process.load(1, SLOT), Ok(5));
    }
    assert_eq!((world.hugetlb.sharing().tables, world.hugetlb.sharing().attachments), (2, 6));
    // With other rights a mapping goes to another table, and back.
    writers[0].protect(SLOT..SLOT + SLOT_SIZE, Protection::READ).unwrap();
    assert_eq!(writers[0].store(0, SLOT, 6), Err(Signal::Segv));
    assert_eq!(writers[0].load(0, SLOT), Ok(5));
    assert_eq!(world.hugetlb.sharing().tables, 2);
    writers[0].protect(SLOT..SLOT + SLOT_SIZE, RW).unwrap();
    writers[0].store(0, SLOT, 7).unwrap();
    assert_eq!(readers[2].load(1, SLOT), Ok(7));
    // A hole is a hole in both tables.
    world.file.fallocate(FallocateMode::PunchHole, 0, SIZE, || false).unwrap();
    world.machine.check().unwrap();
    assert_eq!(readers[1].load(0, SLOT), Ok(0));
    assert_eq!(writers[1].load(1, SLOT), Ok(0));
    drop((writers, readers));
    world.end();
}

/// Another mapping comes into the slot, and the first one leaves its shared table: the host's takes its place. Both CPUs hold
/// the old translation at that moment.
fn leave_a_slot<F: Format>(rules: Rules) -> World<F> {
    let world = World::<F>::new(rules, ProtocolKind::FileTables);
    let process = world.machine.process().unwrap();
    process.map(&world.file, SLOT, 4 * SIZE, 0, shared(RW)).unwrap();
    process.store(0, SLOT, 5).unwrap();
    assert_eq!(process.load(1, SLOT), Ok(5));
    let neighbour = SLOT + 8 * SIZE;
    process.map(&world.file, neighbour, SIZE, 6 * SIZE, shared(RW)).unwrap();
    process.store(0, neighbour, 6).unwrap();
    assert_eq!(process.load(1, SLOT), Ok(5));
    assert_eq!(process.load(1, neighbour), Ok(6));
    drop(process);
    world
}

/// As [`leave_a_slot`], but CPU 1 looks while the host's table is there and nothing was flushed.
fn leave_a_slot_watched<F: Format>(rules: Rules) -> Result<(), String> {
    let world = World::<F>::new(rules, ProtocolKind::FileTables);
    let process = Arc::new(world.machine.process().unwrap());
    process.map(&world.file, SLOT, 4 * SIZE, 0, shared(RW)).unwrap();
    process.store(0, SLOT, 5).unwrap();
    assert_eq!(process.load(1, SLOT), Ok(5));
    process.map(&world.file, SLOT + 8 * SIZE, SIZE, 6 * SIZE, shared(RW)).unwrap();
    let watcher = process.clone();
    let machine = world.machine.clone();
    world.machine.in_next_flush(move || machine.cpu(0).look(watcher.space(), SLOT + SIZE));
    process.store(0, SLOT + 8 * SIZE, 6).unwrap();
    let checked = world.machine.check();
    drop(process);
    checked
}

#[test]
fn a_slot_is_left_on_every_architecture() {
    leave_a_slot::<X86_64>(Rules::X86_64).end();
    leave_a_slot::<Riscv64>(Rules::SV39).end();
    leave_a_slot::<Riscv64>(Rules::SV48).end();
    leave_a_slot::<Aarch64>(Rules::AARCH64).end();
}

#[test]
fn an_entry_that_changes_is_broken_first_where_the_hardware_demands_it() {
    leave_a_slot_watched::<Aarch64>(Rules::AARCH64).unwrap();
}

/// What the break is for: the same with the format of x86-64, which replaces the entry in one store.
#[test]
fn a_change_without_a_break_is_found() {
    let rules = Rules { break_before_make: true, ..Rules::X86_64 };
    let found = leave_a_slot_watched::<X86_64>(rules).unwrap_err();
    assert!(found.contains("made without a break"), "{found}");
}

/// Without memory for the host's table the shared one stays, and all goes on as before.
#[test]
fn a_break_is_mended_when_the_host_has_no_table() {
    let world = World::<Aarch64>::new(Rules::AARCH64, ProtocolKind::FileTables);
    let process = world.machine.process().unwrap();
    process.map(&world.file, SLOT, 4 * SIZE, 0, shared(RW)).unwrap();
    process.store(0, SLOT, 5).unwrap();
    process.map(&world.file, SLOT + 8 * SIZE, SIZE, 6 * SIZE, shared(RW)).unwrap();
    let before = world.hugetlb.sharing();
    let tables = world.machine.tables_in_use();
    for nth in 1.. {
        world.machine.fail_allocation(nth);
        let stored = process.store(0, SLOT + 8 * SIZE, 6);
        let left = world.machine.fail_allocation(0);
        if stored == Ok(()) && left > 0 {
            break;
        }
        if stored == Err(Signal::OutOfMemory) && world.hugetlb.sharing().attachments == before.attachments {
            assert_eq!(process.load(1, SLOT), Ok(5), "allocation {nth}");
            assert_eq!(world.machine.tables_in_use(), tables);
        }
        assert!(nth < 20, "there are not so many allocations");
    }
    assert_eq!(process.load(1, SLOT), Ok(5));
    world.machine.check().unwrap();
    drop(process);
    world.end();
}
