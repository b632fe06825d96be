//! What the host shows: for each protocol, what newcomers and a punch cost, and that nothing is left behind.

use alloc::vec::Vec;

use hugetlb::{Access, FallocateMode, MapOptions, Protection, ProtocolKind, SLOT_SIZE};
use ostd::cpu::{CpuId, all_cpus};
use ostd::mm::UFrame;
use ostd::task::Task;

use crate::space::FIRST;
use crate::user::{self, Program, SHARED};
use crate::world::{PAGES, PROTOCOLS, SIZE, World, first_word};
use crate::{cpus, sharing};

const SHARERS: usize = 1000;

fn row(protocol: ProtocolKind, code: &UFrame) {
    let world = World::new(protocol, code);
    let first = world.sharer();
    assert!(world.touch(&first) > 0, "the file had pages before");
    let alone = world.punch();
    world.touch(&first);
    let others: Vec<_> = (1..SHARERS).map(|_| world.sharer()).collect();
    let faults = others.iter().map(|other| world.touch(other)).max().unwrap_or(0);
    let tables = world.hugetlb.sharing().tables as usize;
    let hosts = world.tables() - tables;
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
    println!(
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

/// A program in user mode on another CPU stores into a page. This CPU punches it, and takes the frame for another file: what the
/// program stores later must not be there.
fn shootdowns(protocol: ProtocolKind, code: &UFrame) -> u64 {
    let world = World::new(protocol, code);
    let other = world.hugetlb.anonymous_file(world.size(), SIZE).expect("one page");
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
        reader.unmap(FIRST..FIRST + SIZE).expect("it is one mapping");
        other.truncate(0).expect("nothing maps it");
        other.truncate(SIZE).expect("one page");
        rounds += 1;
    }
    assert_eq!(exit.wait(), 0);
    drop((process, reader, other));
    world.end();
    rounds
}

/// A program that may only load from a page stores into it, where another's right to store has made the page and its table: it
/// must be killed. Without rights in the entries above the leaves, as on RISC-V, this hangs on the key of the table.
fn rights(protocol: ProtocolKind, code: &UFrame) {
    let world = World::new(protocol, code);
    let process = world.sharer();
    assert!(world.store(&process, FIRST, 1));
    let reader = world.process();
    let readable = MapOptions { protection: Protection::READ, ..SHARED };
    reader.map(&world.file, FIRST, SLOT_SIZE, readable).expect("memory for a mapping");
    assert_eq!(world.load(&reader, FIRST), 1, "a load under {}", protocol.name());
    assert!(!world.store(&reader, FIRST, 2), "a store into what may only be read under {}", protocol.name());
    assert_eq!(first_word(&world.file), 1);
    drop((process, reader));
    world.end();
}

/// Maps, faults, forks, punches and exits in user mode.
fn family(protocol: ProtocolKind, code: &UFrame) {
    let world = World::new(protocol, code);
    let process = world.process();
    let family = Program::Family { address: FIRST + SIZE, length: 4 * SIZE };
    assert_eq!(user::run(&process, &world.file, code, family), 0, "under {}", protocol.name());
    drop(process);
    world.end();
}

/// Whether no frame waits for a grace period any more, after a few rounds of giving way.
fn is_settled_soon() -> bool {
    (0..1000).any(|_| {
        cpus::reclaim();
        Task::yield_now();
        cpus::is_settled()
    })
}

/// Runs everything; panics where something is not as it was promised.
pub fn all() {
    let code = user::load();
    println!("OSTD on {} CPUs; a file of 1 GiB with {} pages", all_cpus().count(), PAGES);
    println!(
        "{:12} {:>8} {:>8} {:>12} {:>8} {:>12} {:>14}",
        "protocol", "spaces", "tables", "host tables", "faults", "punch 1, us", "punch 1000, us"
    );
    PROTOCOLS.into_iter().for_each(|protocol| row(protocol, &code));
    for protocol in PROTOCOLS {
        family(protocol, &code);
        println!("{:12} maps, faults, forks, punches and exits in user mode", protocol.name());
    }
    for protocol in PROTOCOLS {
        println!("{:12} keeps {} cases of sharing", protocol.name(), sharing::all(protocol, &code));
    }
    for protocol in PROTOCOLS {
        rights(protocol, &code);
        println!("{:12} kills who stores into what may only be read", protocol.name());
    }
    for protocol in PROTOCOLS {
        let rounds = shootdowns(protocol, &code);
        println!("{:12} {} punches under the stores of another CPU", protocol.name(), rounds);
    }
    assert!(is_settled_soon(), "frames wait for a grace period that does not come");
    println!("all is as promised");
}
