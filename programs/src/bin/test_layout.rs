//! Where program, heap, mappings and stack are: random, near each other or as far as on Linux, and with room for what grows.

use std::collections::BTreeSet;
use std::fs;
use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use roundtable_programs::harness::skip;
use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, RW};
use roundtable_programs::{child, fault, procfs, sys, tests};

tests! { show, places_are_random: 120, places_are_near, places_are_far, the_same_without_randomness,
randomness_of_the_heap, a_large_heap, a_large_mapping, stacks_grow_to_their_limit: 60, a_limit_that_is_raised: 60, mappings_leave_the_stack_its_room, tables_of_a_child,
sixteen_programs_in_a_row: 60 }

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
const WINDOW: usize = 2 * MIB;
const TASK_SIZE: usize = 0x7fff_ffff_f000;
const RANDOMNESS: &str = "/proc/sys/kernel/randomize_va_space";

fn is_ours() -> bool {
    fs::exists("/sys/kernel/mm/hugepages/sharing").unwrap_or(false)
}

fn only_near() {
    if !procfs::has_near_layout() {
        skip("this kernel has programs, mappings and stacks far from each other");
    }
}

/// Where the parts of a process are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    program: usize,
    program_end: usize,
    heap: usize,
    /// The highest mapping.
    mapping: usize,
    stack: usize,
}

impl Places {
    fn of(maps: &str, program: &str) -> Places {
        let range = |line: &str| {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        };
        let lines = |name: &str| {
            let named: Vec<_> = maps.lines().filter(|line| line.ends_with(name)).filter_map(range).collect();
            assert!(!named.is_empty(), "no {name} in {maps}");
            named
        };
        let (first, last) = (lines(program)[0], *lines(program).last().unwrap());
        // What has no name and begins there is the end of the program's data.
        let mut bare = maps.lines().filter(|line| line.split_whitespace().count() == 5).filter_map(range);
        let program_end = bare.find(|area| area.0 == last.1).map_or(last.1, |area| area.1);
        Places {
            program: first.0,
            program_end,
            heap: lines("[heap]")[0].0,
            mapping: lines("[vdso]")[0].1,
            stack: lines("[stack]")[0].1,
        }
    }

    fn own() -> Places {
        Places::of(&own_maps(), &own_path())
    }

    /// Of this program, executed again.
    fn again(prepare: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static) -> Places {
        let mut command = Command::new(own_path());
        // SAFETY: the caller's closure makes a system call.
        unsafe { command.arg("show").pre_exec(prepare) };
        let output = command.env("SHOW", "1").output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        Places::of(&String::from_utf8(output.stdout).unwrap(), &own_path())
    }
}

fn own_maps() -> String {
    fs::read_to_string("/proc/self/maps").expect("/proc/self/maps")
}

fn own_path() -> String {
    fs::read_link("/proc/self/exe").expect("/proc/self/exe").to_str().expect("ASCII").to_string()
}

/// No subtest by itself: what the others execute.
fn show() {
    match std::env::var("SHOW").as_deref() {
        Ok("1") => print!("{}", own_maps()),
        Ok("raise") => {
            // As compilers and solvers do.
            for mib in [100, 256, 600, 1024] {
                limit_stack(mib << 20).expect("setrlimit");
                touch_stack((mib as usize) << 20);
            }
        }
        Ok(stack) => touch_stack(stack.parse().expect("bytes")),
        Err(_) => assert!(Places::own().program > 0),
    }
}

fn places_are_random() {
    const TIMES: usize = 64;
    let all: Vec<Places> = (0..TIMES).map(|_| Places::again(|| Ok(()))).collect();
    let kinds = |of: &dyn Fn(&Places) -> usize| all.iter().map(of).collect::<BTreeSet<usize>>().len();
    // Of 64 numbers of 15 bits two are the same in one of twenty cases, and five pairs in none.
    let most = TIMES - 4;
    assert!(kinds(&|at| at.stack) >= most, "stacks: {all:x?}");
    assert!(kinds(&|at| at.mapping) >= most, "mappings: {all:x?}");
    assert!(kinds(&|at| at.program) >= most, "programs: {all:x?}");
    assert!(kinds(&|at| at.stack.wrapping_sub(at.mapping)) >= most, "stack and mappings: {all:x?}");
    assert!(kinds(&|at| at.stack.wrapping_sub(at.program)) >= most, "stack and program: {all:x?}");
    // Linux takes a program without an interpreter for a mapping.
    if is_ours() {
        assert!(kinds(&|at| at.mapping.wrapping_sub(at.program)) >= most, "mappings and program: {all:x?}");
    }
    // Five bits at least.
    assert!(kinds(&|at| at.heap.wrapping_sub(at.program)) >= 16, "heap: {all:x?}");
    // All that an address may be, not a part of it: 768 places of a GiB.
    assert!(kinds(&|at| at.stack / GIB) >= if procfs::has_near_layout() { 48 } else { 8 }, "GiBs: {all:x?}");
}

fn places_are_near() {
    only_near();
    for _ in 0..32 {
        let at = Places::again(|| Ok(()));
        let slots =
            [at.mapping - 1, at.stack - 1, at.program, at.program_end - 1, at.heap].map(|at| at / GIB);
        assert_eq!(slots, [slots[0]; 5], "{at:x?}");
        // In order, and with room for mappings between.
        assert!(at.stack + 192 * MIB < at.mapping && at.mapping <= at.program, "{at:x?}");
        assert!(at.program_end <= at.heap, "{at:x?}");
        // The first pages of the heap have the table that the program's data has.
        assert_eq!((at.program_end - 1) / WINDOW, (at.heap + 132 * 1024 - 1) / WINDOW, "{at:x?}");
        // What ThreadSanitizer takes.
        assert!(at.stack - 96 * GIB > 0x7e80_0000_0000, "{at:x?}");
    }
}

fn places_are_far() {
    if procfs::has_near_layout() {
        skip("layout=far has Linux's places");
    }
    for _ in 0..32 {
        let at = Places::again(|| Ok(()));
        assert!((TASK_SIZE - (PAGE << 22)..=TASK_SIZE).contains(&at.stack), "{at:x?}");
        assert!(at.mapping < at.stack && at.mapping > TASK_SIZE - (PAGE << 28) - 32 * GIB, "{at:x?}");
        if is_ours() {
            assert!((0x5555_5555_4000..0x5655_5555_5000).contains(&at.program), "{at:x?}");
            assert!((at.program_end..=at.program_end + (PAGE << 13)).contains(&at.heap), "{at:x?}");
        }
    }
}

fn no_randomness() -> std::io::Result<()> {
    // SAFETY: takes an integer.
    match unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn the_same_without_randomness() {
    let at = Places::again(no_randomness);
    assert_eq!(at, Places::again(no_randomness));
    // Debuggers' users know them by heart.
    assert_eq!(at.stack, TASK_SIZE);
    assert!((TASK_SIZE - 129 * MIB..TASK_SIZE - 127 * MIB).contains(&at.mapping) || !is_ours(), "{at:x?}");
    assert!(at.program == 0x5555_5555_4000 || !is_ours(), "{at:x?}");
}

fn randomness_of_the_heap() {
    let before = procfs::number(RANDOMNESS);
    // No assertion before the old value is back.
    let with = |value: u64| {
        procfs::write(RANDOMNESS, value).expect("randomize_va_space");
        [(); 2].map(|()| Places::again(|| Ok(())))
    };
    let (none, all_but_heap) = (with(0), with(1));
    procfs::write(RANDOMNESS, before).expect("randomize_va_space");
    assert_eq!(none[0], none[1]);
    assert_eq!(none[0].stack, TASK_SIZE);
    assert_ne!(all_but_heap[0].stack, all_but_heap[1].stack);
    if is_ours() {
        assert_eq!(all_but_heap.map(|at| at.heap), all_but_heap.map(|at| at.program_end));
    }
}

fn brk(address: usize) -> usize {
    // SAFETY: in a child which takes nothing from the heap meanwhile.
    unsafe { sys::raw(libc::SYS_brk, [address, 0, 0, 0, 0, 0]) }.expect("brk never fails")
}

fn a_large_heap() {
    child::in_child(|| {
        let start = brk(0).next_multiple_of(PAGE);
        // In parts: memory that no machine has is not given at once.
        for end in (start..=start + 4 * GIB).step_by(256 * MIB) {
            assert_eq!(brk(end), end);
        }
        let last = start + 4 * GIB - PAGE;
        assert_eq!((fault::write(start, 1), fault::write(last, 2)), (Ok(()), Ok(())));
        assert_eq!((fault::read(start), fault::read(last)), (Ok(1), Ok(2)));
        // What is in its way stays there.
        let wall = Map::new(PAGE, RW, PRIVATE | ANON, -1, 0).expect("mmap");
        let moved = start + 4 * GIB + 16 * PAGE;
        let flags = PRIVATE | ANON | libc::MAP_FIXED_NOREPLACE;
        let wall_above = Map {
            address: roundtable_programs::mem::mmap(moved, PAGE, RW, flags, -1, 0).expect("mmap"),
            length: PAGE,
        };
        assert_eq!(brk(moved + PAGE), start + 4 * GIB);
        assert_eq!(brk(moved - PAGE), moved - PAGE);
        drop((wall, wall_above));
        assert_eq!(brk(start), start);
    });
}

fn a_large_mapping() {
    // One that leaves the GiB, and small ones after it.
    let large = Map::new(64 * GIB, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("64 GiB");
    let small: Vec<Map> = (0..100).map(|_| Map::anonymous(PAGE)).collect();
    for offset in [0, 32 * GIB, 64 * GIB - PAGE] {
        large.set(offset, 1);
        assert_eq!(large.get(offset), 1);
    }
    let outside =
        |map: &Map| map.address + map.length <= large.address || map.address >= large.address + 64 * GIB;
    assert!(small.iter().all(outside), "{large:?} {small:?}");
    // More than anything could have, and what is left after that.
    let huge = Map::new(64 << 40, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("64 TiB");
    assert_eq!(
        Map::new(64 << 40, RW, PRIVATE | ANON | NORESERVE, -1, 0).err(),
        Some(roundtable_programs::Errno::ENOMEM)
    );
    drop(huge);
}

/// Expects a stack of `bytes`, and no more if that is its limit.
fn touch_stack(bytes: usize) {
    let top = Places::own().stack;
    assert_eq!(fault::write(top - bytes + 4 * PAGE, 1), Ok(()), "{bytes:#x} below {top:#x}");
    if stack_limit() == bytes as u64 {
        assert!(fault::write(top - bytes - 4 * PAGE, 1).is_err(), "{bytes:#x} below {top:#x}");
    }
    assert_eq!(fault::read(top - bytes + 4 * PAGE), Ok(1));
    drop(Map::anonymous(PAGE));
}

fn stack_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through the call.
    sys::check(unsafe { libc::getrlimit(libc::RLIMIT_STACK, &mut limit) }).expect("getrlimit");
    limit.rlim_cur
}

fn limit_stack(bytes: u64) -> std::io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure lives through the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_STACK, &limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn stacks_grow_to_their_limit() {
    for mib in [1, 8, 100, 257, 1024] {
        let bytes = mib << 20;
        let mut command = Command::new(own_path());
        // SAFETY: the closure makes a system call.
        unsafe { command.arg("show").env("SHOW", bytes.to_string()).pre_exec(move || limit_stack(bytes)) };
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{mib} MiB: {output:?}");
    }
    let mut command = Command::new(own_path());
    // SAFETY: the closure makes a system call.
    unsafe {
        command.arg("show").env("SHOW", GIB.to_string());
        command.pre_exec(|| limit_stack(libc::RLIM_INFINITY));
    }
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "without a limit: {output:?}");
}

fn a_limit_that_is_raised() {
    for _ in 0..8 {
        let mut command = Command::new(own_path());
        let output = command.arg("show").env("SHOW", "raise").output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
    }
}

/// Mappings of all sizes leave the stack its room, as far as it may be raised.
fn mappings_leave_the_stack_its_room() {
    let top = Places::own().stack;
    let sizes = [PAGE, 64 * MIB, 700 * MIB, GIB, 3 * GIB, 40 * GIB, 1 << 40];
    let maps: Vec<Map> = sizes
        .into_iter()
        .map(|size| Map::new(size, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("mmap"))
        .collect();
    for map in &maps {
        let is_apart = map.address >= top || map.address + map.length <= top - GIB;
        assert!(is_apart, "{map:x?} is in the way of a stack that begins at {top:x}");
    }
}

static DATA: AtomicU8 = AtomicU8::new(1);

fn tables_of_a_child() {
    only_near();
    for _ in 0..4 {
        let mut command = Command::new(own_path());
        let output = command.arg("sixteen_programs_in_a_row").env("TABLES", "1").output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
    }
}

/// A child that stores to its data, heap and stack only.
fn count_tables() {
    let heap = black_box(Box::new(AtomicU8::new(1)));
    child::in_child(|| {
        let stack = black_box(AtomicU8::new(1));
        for byte in [&DATA, &heap, &stack] {
            byte.store(2, Ordering::SeqCst);
        }
        let tables = procfs::status(sys::pid(), "VmPTE");
        println!("{tables} kB of tables");
        // The top, two of the levels above leaves, and leaves for data with heap, mappings, and stack.
        assert!(tables <= 6 * 4, "{tables} kB: {}", own_maps());
    });
}

/// A program that executes itself again and again, with nothing of the old places left.
fn sixteen_programs_in_a_row() {
    if std::env::var("TABLES").is_ok() {
        return count_tables();
    }
    let left: usize = std::env::var("LEFT").map_or(16, |left| left.parse().expect("a number"));
    if left > 0 {
        let mut command = Command::new(own_path());
        command.arg("sixteen_programs_in_a_row").env("LEFT", (left - 1).to_string());
        panic!("{}", command.exec());
    }
}
