//! What the host shows: for each protocol, what newcomers and a punch cost, and that nothing is left behind.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hugetlb::{Access, Chunk, Config, FallocateMode, File, Hugetlb, PageSize, ProtocolKind, SLOT_SIZE};
use ostd::arch::{read_tsc, tsc_freq};
use ostd::cpu::{CpuId, all_cpus};
use ostd::early_println;
use ostd::mm::UFrame;

use crate::machine::{FILE_TABLES, Ostd};
use crate::process::Process;
use crate::space::FIRST;
use crate::user::{self, Program, SHARED};
use crate::{cpus, memory};

const SHARERS: usize = 1000;
/// Pages that the file has; it is 1 GiB long.
const PAGES: u64 = 64;
const SIZE: u64 = PageSize::Size2M.bytes();
const PROTOCOLS: [ProtocolKind; 4] =
    [ProtocolKind::None, ProtocolKind::FileLock, ProtocolKind::VmaLock, ProtocolKind::FileTables];

/// One subsystem and one file of it.
struct World {
    hugetlb: Arc<Hugetlb<Ostd>>,
    file: Arc<File<Ostd>>,
    code: UFrame,
}

impl World {
    fn new(protocol: ProtocolKind, code: &UFrame) -> World {
        let hugetlb = Hugetlb::new(Ostd, Config { default_size: PageSize::Size2M, protocol });
        assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(PAGES + 1, || false), PAGES + 1);
        let file = hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).expect("1 GiB are whole pages");
        World { hugetlb, file, code: code.clone() }
    }

    fn process(&self) -> Arc<Process> {
        let process = Process::new();
        user::map_code(&process, &self.code);
        process
    }

    /// A process that has the file mapped.
    fn sharer(&self) -> Arc<Process> {
        let process = self.process();
        process.map(&self.file, FIRST, SLOT_SIZE, SHARED).expect("memory for a mapping");
        process
    }

    /// Loads a word of each page in ring 3; returns the faults that this took.
    fn touch(&self, process: &Arc<Process>) -> u64 {
        let before = process.faults();
        let touch = Program::Touch { address: FIRST, pages: PAGES, stride: SIZE };
        assert_eq!(user::run(process, &self.file, &self.code, touch), 0);
        process.faults() - before
    }

    /// Punches all pages out of the file; microseconds.
    fn punch(&self) -> u64 {
        let start = read_tsc();
        self.file.fallocate(FallocateMode::PunchHole, 0, PAGES * SIZE, || false).expect("whole pages");
        (read_tsc() - start) * 1_000_000 / tsc_freq()
    }

    /// Nothing is left: no page, no table of the library, no table of the host.
    fn end(self) {
        let World { hugetlb, file, .. } = self;
        drop(file);
        let pool = hugetlb.pool(PageSize::Size2M);
        assert_eq!(pool.statistics().free, PAGES + 1, "a page is missing");
        assert_eq!((hugetlb.sharing().tables, hugetlb.sharing().attachments), (0, 0));
        assert_eq!(pool.set_persistent(0, || false), 0);
        assert_eq!(memory::tables_in_use(), 0, "a table is missing");
        assert_eq!(FILE_TABLES.load(Ordering::Relaxed), 0);
    }
}

fn row(protocol: ProtocolKind, code: &UFrame) {
    let world = World::new(protocol, code);
    let first = world.sharer();
    assert!(world.touch(&first) > 0, "the file had pages before");
    let alone = world.punch();
    world.touch(&first);
    let others: Vec<_> = (1..SHARERS).map(|_| world.sharer()).collect();
    let faults = others.iter().map(|other| world.touch(other)).max().unwrap_or(0);
    let tables = FILE_TABLES.load(Ordering::Relaxed);
    let hosts = memory::tables_in_use() - tables;
    let many = world.punch();
    // The hole is one for all of them.
    for process in [&first, &others[SHARERS / 2], &others[SHARERS - 2]] {
        process.fault(FIRST, Access::Read).expect("the file is that long");
        assert_eq!(first_word(&world.file), 0);
    }
    let promised = match protocol {
        ProtocolKind::FileTables => 0,
        ProtocolKind::None => PAGES,
        _ => 1,
    };
    early_println!(
        "{:12} {:8} {:8} {:12} {:8} {:12} {:14}",
        protocol.name(),
        SHARERS,
        tables,
        hosts,
        faults,
        alone,
        many
    );
    assert_eq!(faults, promised, "faults of a newcomer under {}", protocol.name());
    assert_eq!(tables, usize::from(protocol != ProtocolKind::None), "tables under {}", protocol.name());
    drop((first, others));
    world.end();
}

/// The first word of a file's first page.
fn first_word(file: &File<Ostd>) -> u64 {
    match file.read(0, 8) {
        Chunk::Data(page) => memory::word(page.address()),
        Chunk::Hole(_) | Chunk::End => panic!("the page is not there"),
    }
}

/// A program in ring 3 on another CPU stores into a page. This CPU punches it, and takes the frame for another file: what the
/// program stores later must not be there.
fn shootdowns(protocol: ProtocolKind, code: &UFrame) -> u64 {
    let world = World::new(protocol, code);
    let other = world.hugetlb.anonymous_file(PageSize::Size2M, SIZE).expect("one page");
    let far = all_cpus().last().unwrap_or(CpuId::bsp());
    let process = world.sharer();
    let hammer = Program::Hammer { address: FIRST, times: 30_000_000, value: 0x5a5a };
    let exit = user::start(far, process.clone(), world.file.clone(), code.clone(), hammer);
    let reader = world.process();
    let mut rounds = 0;
    while !exit.has_ended() {
        // Most frames are taken, so that the freed one is the next.
        world.file.fallocate(FallocateMode::PunchHole, 0, SIZE, || false).expect("one page");
        reader.map(&other, FIRST, SIZE, SHARED).expect("memory for a mapping");
        reader.fault(FIRST, Access::Read).expect("there are pages");
        for _ in 0..100 {
            assert_eq!(first_word(&other), 0, "a store went through a stale translation");
        }
        reader.unmap(FIRST);
        other.truncate(0).expect("nothing maps it");
        other.truncate(SIZE).expect("one page");
        rounds += 1;
    }
    assert_eq!(exit.wait(), 0);
    drop((process, reader, other));
    world.end();
    rounds
}

/// Maps, faults, forks, punches and exits in ring 3.
fn family(protocol: ProtocolKind, code: &UFrame) {
    let world = World::new(protocol, code);
    let process = world.process();
    let family = Program::Family { address: FIRST + SIZE, length: 4 * SIZE };
    assert_eq!(user::run(&process, &world.file, code, family), 0, "under {}", protocol.name());
    drop(process);
    world.end();
}

/// Runs everything; panics where something is not as it was promised.
pub fn all() {
    let code = user::load();
    early_println!("OSTD on {} CPUs; a file of 1 GiB with {} pages", all_cpus().count(), PAGES);
    early_println!(
        "{:12} {:>8} {:>8} {:>12} {:>8} {:>12} {:>14}",
        "protocol",
        "spaces",
        "tables",
        "host tables",
        "faults",
        "punch 1, us",
        "punch 1000, us"
    );
    PROTOCOLS.into_iter().for_each(|protocol| row(protocol, &code));
    for protocol in PROTOCOLS {
        family(protocol, &code);
        early_println!("{:12} maps, faults, forks, punches and exits in ring 3", protocol.name());
    }
    for protocol in PROTOCOLS {
        let rounds = shootdowns(protocol, &code);
        early_println!("{:12} {} punches under the stores of another CPU", protocol.name(), rounds);
    }
    assert!(cpus::is_settled_soon(), "frames wait for a grace period that does not come");
    early_println!("all is as promised");
}
