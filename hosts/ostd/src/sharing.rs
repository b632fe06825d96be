//! The cases of the kernel's `test_sharing`: what one process does to its mapping, and what happens to the file, seen by others that
//! share its tables. All loads and stores are made in user mode.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use hugetlb::{FallocateMode, File, Level, MapOptions, Protection, ProtocolKind, SLOT_SIZE, VirtAddr};
use ostd::cpu::all_cpus;
use ostd::mm::UFrame;
use ostd::task::Task;

use crate::boot;
use crate::machine::Ostd;
use crate::process::Process;
use crate::sched;
use crate::space::FIRST;
use crate::user::{self, KILLED, Program, SHARED};
use crate::world::{PAGES, SIZE, World};

type Case = fn(&World);

const CASES: [(&str, Case); 21] = [
    ("second_process_has_few_faults", second_process_has_few_faults),
    ("tables_grow_by_little", tables_grow_by_little),
    ("other_phase_is_right", other_phase_is_right),
    ("private_is_apart", private_is_apart),
    ("mprotect_of_one", mprotect_of_one),
    ("partial_mprotect_of_one", partial_mprotect_of_one),
    ("partial_munmap_of_one", partial_munmap_of_one),
    ("munmap_of_one", munmap_of_one),
    ("mremap_of_one", mremap_of_one),
    ("map_fixed_over_one", map_fixed_over_one),
    ("fork_of_one", fork_of_one),
    ("exit_of_one", exit_of_one),
    ("truncate_with_sharers", truncate_with_sharers),
    ("punch_with_sharers", punch_with_sharers),
    ("new_pages_show_up_everywhere", new_pages_show_up_everywhere),
    ("read_only_sharer", read_only_sharer),
    ("two_files_in_turn", two_files_in_turn),
    ("part_of_a_slot", part_of_a_slot),
    ("several_slots", several_slots),
    ("neighbours_in_a_slot", neighbours_in_a_slot),
    ("random_operations", random_operations),
];

/// The pages that these cases fill.
const USED: [u64; 6] = [0, 1, 100, 255, 510, 511];
/// Where the process maps that does something.
const PLACE: VirtAddr = VirtAddr(FIRST.0 + SLOT_SIZE);
/// Where there is nothing, with an empty slot on both sides.
const ELSEWHERE: VirtAddr = VirtAddr(FIRST.0 + 5 * SLOT_SIZE);
const READ: MapOptions = MapOptions { protection: Protection::READ, ..SHARED };
const PRIVATE: MapOptions = MapOptions { shared: false, ..SHARED };

/// Runs all cases under a protocol; panics at one that fails. Returns how many there are.
pub fn all(protocol: ProtocolKind, code: &UFrame) -> usize {
    for (name, case) in CASES {
        *boot::CASE.lock() = name;
        let world = World::new(protocol, code);
        case(&world);
        world.end();
        *boot::CASE.lock() = "";
    }
    CASES.len()
}

fn stamp(file: u64, page: u64) -> i64 {
    (1000 * file + page + 1) as i64
}

/// A process that has the world's file mapped.
fn mapped(world: &World, start: VirtAddr, options: MapOptions) -> Arc<Process> {
    let process = world.process();
    process.map(&world.file, start, SLOT_SIZE, options).expect("memory for a mapping");
    process
}

/// A process that has filled a file, at `FIRST`.
fn fill(world: &World, file: &Arc<File<Ostd>>, number: u64) -> Arc<Process> {
    let process = world.process();
    process.map(file, FIRST, SLOT_SIZE, SHARED).expect("memory for a mapping");
    for page in USED {
        assert!(world.store(&process, FIRST + page * SIZE, stamp(number, page) as u64), "page {page}");
    }
    process
}

/// The process that has filled the world's file, and two more that share it.
fn sharers(world: &World) -> [Arc<Process>; 3] {
    let all = [fill(world, &world.file, 1), world.sharer(), world.sharer()];
    all.iter().for_each(|process| verify(world, process, FIRST));
    all
}

#[track_caller]
fn verify(world: &World, process: &Arc<Process>, start: VirtAddr) {
    for page in USED {
        assert_eq!(world.load(process, start + page * SIZE), stamp(1, page), "page {page}");
    }
}

/// One process does something to its mapping while others share it; they see no difference.
fn one_disturbs(world: &World, act: impl FnOnce(&Arc<Process>)) {
    let others = sharers(world);
    let process = mapped(world, PLACE, SHARED);
    verify(world, &process, PLACE);
    act(&process);
    drop(process);
    others.iter().for_each(|other| verify(world, other, FIRST));
    verify(world, &mapped(world, PLACE, READ), PLACE);
    assert_eq!(world.free(), PAGES + 1 - USED.len() as u64);
}

fn has_sharing(world: &World) -> bool {
    world.hugetlb.protocol_kind() != ProtocolKind::None
}

/// The pages from `first` on of a mapping at `start`.
fn part(start: VirtAddr, first: u64, pages: u64) -> core::ops::Range<VirtAddr> {
    start + first * SIZE..start + (first + pages) * SIZE
}

fn second_process_has_few_faults(world: &World) {
    let first = world.sharer();
    assert!(world.touch(&first) > 0);
    let faults = world.touch(&world.sharer());
    assert!(faults <= if has_sharing(world) { 1 } else { PAGES }, "{faults} faults");
}

fn tables_grow_by_little(world: &World) {
    let more = |options| {
        let before = world.tables();
        let processes = [(); 8].map(|()| mapped(world, FIRST, options));
        for process in &processes {
            world.touch(process);
        }
        (world.tables() - before, processes)
    };
    let first = world.sharer();
    world.touch(&first);
    let (shared, _sharers) = more(SHARED);
    let (private, _others) = more(PRIVATE);
    // Processes that do not share have a table more each.
    let saved = if has_sharing(world) { 8 } else { 0 };
    assert_eq!(private - shared, saved, "{shared} tables for 8 sharers, {private} for as many others");
}

fn other_phase_is_right(world: &World) {
    let others = sharers(world);
    let process = world.process();
    for shift in [1, 7, 511] {
        let start = PLACE + shift * SIZE;
        process.map(&world.file, start, SLOT_SIZE, SHARED).expect("memory for a mapping");
        verify(world, &process, start);
        assert!(world.store(&process, start + 100 * SIZE + 8, shift));
        process.unmap(start..start + SLOT_SIZE).expect("memory for a cut");
    }
    others.iter().for_each(|other| verify(world, other, FIRST));
    assert_eq!(world.load(&others[1], FIRST + 100 * SIZE + 8), 511);
}

fn private_is_apart(world: &World) {
    let others = sharers(world);
    let process = mapped(world, PLACE, PRIVATE);
    verify(world, &process, PLACE);
    for page in USED {
        assert!(world.store(&process, PLACE + page * SIZE, 0xdead));
        assert_eq!(world.load(&process, PLACE + page * SIZE), 0xdead);
    }
    others.iter().for_each(|other| verify(world, other, FIRST));
}

fn mprotect_of_one(world: &World) {
    one_disturbs(world, |process| {
        let all = part(PLACE, 0, 512);
        process.protect(all.clone(), Protection::READ).expect("a whole mapping");
        assert!(!world.store(process, PLACE, 1));
        verify(world, process, PLACE);
        process.protect(all.clone(), Protection::empty()).expect("a whole mapping");
        assert_eq!(world.load(process, PLACE), KILLED);
        process.protect(all, SHARED.protection).expect("a whole mapping");
        verify(world, process, PLACE);
        assert!(world.store(process, PLACE + 8, 1));
    });
}

fn partial_mprotect_of_one(world: &World) {
    one_disturbs(world, |process| {
        process.protect(part(PLACE, 100, 200), Protection::READ).expect("memory for a cut");
        assert!(!world.store(process, PLACE + 100 * SIZE + 16, 1));
        verify(world, process, PLACE);
        assert!(world.store(process, PLACE + SIZE + 8, 1));
        process.protect(part(PLACE, 100, 200), SHARED.protection).expect("they are cut already");
        assert!(world.store(process, PLACE + 100 * SIZE + 16, 1));
        verify(world, process, PLACE);
    });
}

fn partial_munmap_of_one(world: &World) {
    one_disturbs(world, |process| {
        process.unmap(part(PLACE, 50, 100)).expect("memory for a cut");
        assert_eq!(world.load(process, PLACE + 100 * SIZE), KILLED);
        for page in [0, 1, 255, 510, 511] {
            assert_eq!(world.load(process, PLACE + page * SIZE), stamp(1, page));
        }
    });
}

fn munmap_of_one(world: &World) {
    one_disturbs(world, |process| {
        process.unmap(part(PLACE, 0, 512)).expect("a whole mapping");
        assert_eq!(world.load(process, PLACE), KILLED);
    });
}

fn mremap_of_one(world: &World) {
    one_disturbs(world, |process| {
        let target = ELSEWHERE + SIZE;
        process.move_to(part(PLACE, 0, 512), target).expect("a whole mapping");
        verify(world, process, target);
        assert_eq!(world.load(process, PLACE), KILLED);
        // A part of it, back.
        process.move_to(part(target, 255, 1), PLACE).expect("memory for a cut");
        assert_eq!(world.load(process, PLACE), stamp(1, 255));
    });
}

fn map_fixed_over_one(world: &World) {
    one_disturbs(world, |process| {
        let other = world.hugetlb.anonymous_file(world.size(), SIZE).expect("one page");
        process.map(&other, PLACE + 100 * SIZE, SIZE, SHARED).expect("memory for a mapping");
        assert!(world.store(process, PLACE + 100 * SIZE, 5));
        assert_eq!(world.load(process, PLACE + 100 * SIZE), 5);
        assert_eq!(world.load(process, PLACE + 255 * SIZE), stamp(1, 255));
    });
}

fn fork(world: &World, process: &Process) -> Arc<Process> {
    let child = process.fork().expect("memory for a child");
    user::map_code(&child, &world.code);
    child
}

fn fork_of_one(world: &World) {
    one_disturbs(world, |process| {
        let children = [(); 3].map(|()| fork(world, process));
        for child in &children {
            verify(world, child, PLACE);
            child.unmap(part(PLACE, 255, 1)).expect("memory for a cut");
            assert_eq!(world.load(child, PLACE + 255 * SIZE), KILLED);
            assert_eq!(world.load(child, PLACE + 510 * SIZE), stamp(1, 510));
        }
        verify(world, process, PLACE);
        drop(children);
        verify(world, process, PLACE);
    });
}

fn exit_of_one(world: &World) {
    one_disturbs(world, |process| {
        let child = fork(world, process);
        let far = all_cpus().last().expect("there is a CPU");
        let stores = Program::Hammer { address: PLACE + 8, times: 100_000, value: 1 };
        // The child's last handle goes on the other CPU.
        let exit = user::start(far, child, world.file.clone(), world.code.clone(), stores);
        verify(world, process, PLACE);
        assert_eq!(exit.wait(), 0);
        verify(world, process, PLACE);
    });
}

fn truncate_with_sharers(world: &World) {
    let others = sharers(world);
    world.file.truncate(200 * SIZE).expect("whole pages");
    assert_eq!(world.free(), PAGES + 1 - 3);
    for other in &others {
        assert_eq!(world.load(other, FIRST), stamp(1, 0));
        assert_eq!(world.load(other, FIRST + 100 * SIZE), stamp(1, 100));
        for page in [255, 510, 511] {
            assert_eq!(world.load(other, FIRST + page * SIZE), KILLED);
        }
    }
}

fn punch_with_sharers(world: &World) {
    let others = sharers(world);
    world.file.fallocate(FallocateMode::PunchHole, 100 * SIZE, 200 * SIZE, || false).expect("whole pages");
    assert_eq!(world.free(), PAGES + 1 - 4);
    for other in &others {
        assert_eq!(world.load(other, FIRST), stamp(1, 0));
        assert_eq!(world.load(other, FIRST + 511 * SIZE), stamp(1, 511));
        // The first touch fills the hole, with zeroes.
        assert_eq!(world.load(other, FIRST + 100 * SIZE), 0);
        assert_eq!(world.load(other, FIRST + 255 * SIZE), 0);
    }
    assert_eq!(world.free(), PAGES + 1 - 6);
}

fn new_pages_show_up_everywhere(world: &World) {
    let others = sharers(world);
    assert!(world.store(&mapped(world, PLACE, SHARED), PLACE + 300 * SIZE, 4711));
    for other in &others {
        assert_eq!(world.load(other, FIRST + 300 * SIZE), 4711);
    }
    assert_eq!(world.free(), PAGES + 1 - 7);
}

fn read_only_sharer(world: &World) {
    let others = sharers(world);
    let process = mapped(world, PLACE, READ);
    verify(world, &process, PLACE);
    for page in [0, 300] {
        assert!(!world.store(&process, PLACE + page * SIZE, 1), "page {page}");
    }
    process.map(&world.file, ELSEWHERE, SLOT_SIZE, SHARED).expect("memory for a mapping");
    assert!(world.store(&process, ELSEWHERE + SIZE + 8, 99));
    assert_eq!(world.load(&process, PLACE + SIZE + 8), 99);
    assert!(!world.store(&process, PLACE, 1));
    others.iter().for_each(|other| verify(world, other, FIRST));
}

fn two_files_in_turn(world: &World) {
    let others = sharers(world);
    let two = world.hugetlb.anonymous_file(world.size(), SLOT_SIZE).expect("1 GiB are whole pages");
    drop(fill(world, &two, 2));
    let process = world.process();
    for _ in 0..20 {
        process.map(&world.file, PLACE, SLOT_SIZE, SHARED).expect("memory for a mapping");
        assert_eq!(world.load(&process, PLACE), stamp(1, 0));
        process.map(&two, PLACE, SLOT_SIZE, SHARED).expect("memory for a mapping");
        assert_eq!(world.load(&process, PLACE), stamp(2, 0));
        assert_eq!(world.load(&process, PLACE + 511 * SIZE), stamp(2, 511));
    }
    others.iter().for_each(|other| verify(world, other, FIRST));
}

fn part_of_a_slot(world: &World) {
    let others = sharers(world);
    let other = world.hugetlb.anonymous_file(world.size(), 2 * SIZE).expect("two pages");
    let process = world.process();
    process.map(&world.file, PLACE, 128 * SIZE, SHARED).expect("memory for a mapping");
    assert_eq!(world.load(&process, PLACE + 100 * SIZE), stamp(1, 100));
    process.map(&other, PLACE + 200 * SIZE, 2 * SIZE, SHARED).expect("memory for a mapping");
    assert!(world.store(&process, PLACE + 200 * SIZE, 1));
    assert_eq!(world.load(&process, PLACE + SIZE), stamp(1, 1));
    // The shared table has pages there.
    assert_eq!(world.load(&process, PLACE + 255 * SIZE), KILLED);
    let child = fork(world, &process);
    assert_eq!(world.load(&child, PLACE), stamp(1, 0));
    assert_eq!(world.load(&child, PLACE + 200 * SIZE), 1);
    others.iter().for_each(|other| verify(world, other, FIRST));
}

fn several_slots(world: &World) {
    let file = world.hugetlb.anonymous_file(world.size(), 4 * SLOT_SIZE).expect("4 GiB are whole pages");
    let pages = [0, 511, 512, 1023, 1024, 1500, 2047];
    let [one, two] = [(); 2].map(|()| {
        let process = world.process();
        process.map(&file, FIRST, 4 * SLOT_SIZE, SHARED).expect("memory for a mapping");
        process
    });
    let verify = |process: &Arc<Process>, pages: &[u64]| {
        for page in pages {
            assert_eq!(world.load(process, FIRST + page * SIZE), stamp(5, *page), "page {page}");
        }
    };
    for page in pages {
        assert!(world.store(&one, FIRST + page * SIZE, stamp(5, page) as u64));
    }
    verify(&two, &pages);
    // Over the border of two slots.
    two.unmap(part(FIRST, 500, 100)).expect("memory for a cut");
    verify(&two, &[0, 1023, 1024, 2047]);
    assert_eq!(world.load(&two, FIRST + 511 * SIZE), KILLED);
    verify(&one, &pages);
}

/// Two mappings of one file at one phase in one slot: both may use the shared table, and each ends alone.
fn neighbours_in_a_slot(world: &World) {
    let others = sharers(world);
    let process = mapped(world, PLACE, SHARED);
    let middle = PLACE + 256 * SIZE;
    assert_eq!(middle.floor(Level::Pud), PLACE);
    process.protect(middle..PLACE + SLOT_SIZE, Protection::READ).expect("memory for a cut");
    verify(world, &process, PLACE);
    process.unmap(PLACE..middle).expect("a whole mapping");
    assert_eq!(world.load(&process, PLACE), KILLED);
    assert_eq!(world.load(&process, PLACE + 510 * SIZE), stamp(1, 510));
    assert!(!world.store(&process, PLACE + 510 * SIZE, 1));
    others.iter().for_each(|other| verify(world, other, FIRST));
}

/// Processes on all CPUs do random things to mappings of two files. A page has its stamp or is zero, never another's.
fn random_operations(world: &World) {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    ENDED.store(0, Ordering::SeqCst);
    let two = world.hugetlb.anonymous_file(world.size(), SLOT_SIZE).expect("1 GiB are whole pages");
    drop((fill(world, &world.file, 1), fill(world, &two, 2)));
    let mut started = 0;
    for (cpu, seed) in all_cpus().chain(all_cpus()).zip(1..) {
        let (world, two) = (world.clone(), two.clone());
        sched::spawn(cpu, move || {
            random_process(&world, &two, seed);
            drop((world, two));
            ENDED.fetch_add(1, Ordering::SeqCst);
        });
        started += 1;
    }
    while ENDED.load(Ordering::SeqCst) < started {
        crate::cpus::pass_quiescent_point();
        Task::yield_now();
    }
}

fn random_process(world: &World, two: &Arc<File<Ostd>>, seed: u64) {
    let mut state = seed;
    // Knuth's constants for 64 bits; the upper bits are the better ones.
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut process = world.process();
    for _ in 0..60 {
        let page = USED[random(6) as usize];
        let (first, pages) = (random(400), 1 + random(112));
        let (file, number) = if random(2) == 0 { (&world.file, 1) } else { (two, 2) };
        let done = match random(8) {
            0 | 1 => process.map(file, PLACE, SLOT_SIZE, SHARED),
            2 => process.unmap(part(PLACE, first, pages)),
            3 => process.protect(part(PLACE, first, pages), Protection::READ),
            4 => process.protect(part(PLACE, 0, 512), SHARED.protection),
            5 => file.fallocate(FallocateMode::PunchHole, page * SIZE, SIZE, || false),
            6 => {
                // The slot has the file as a whole, so the stamp goes where it belongs.
                let stored = process.map(file, PLACE, SLOT_SIZE, SHARED);
                assert!(world.store(&process, PLACE + page * SIZE, stamp(number, page) as u64));
                stored
            }
            _ => {
                process = fork(world, &process);
                Ok(())
            }
        };
        done.expect("there is memory");
        let value = world.load(&process, PLACE + page * SIZE);
        let expected = [KILLED, 0, stamp(1, page), stamp(2, page)];
        assert!(expected.contains(&value), "page {page} has {value}");
    }
}
