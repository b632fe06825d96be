//! Memory of base pages: protection, copy-on-write, stack, brk, moves, advice.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, PRIVATE, R, RW, SHARED, madvise, mincore, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::{Errno, child, procfs, sys, tests};

tests! { anonymous_is_zero, used_again_it_is_zero, wrong_arguments, partial_unmap, unmap_of_nothing,
fixed_replaces, noreplace, hint, protection, protect_of_holes, read_only_zero_page, cow_after_fork,
cow_of_many_generations, shared_anonymous, brk_grows_and_shrinks, stack_grows, stack_limit,
remap_grows_in_place_or_moves, remap_grows_towards_a_stack, remap_shrinks, remap_fixed, remap_dontunmap, dontneed_zeroes, free_advice,
willneed_and_others, mincore_of_anonymous, locked_memory, populate, maps_shows_areas, untouched_memory_does_not_count, areas_merge, rss_counts,
page_tables_are_freed, large_sparse_area, kernel_writes_break_cow, prot_exec_needed, growsdown_flag,
wipe_on_fork, process_vm, growth_costs_nothing, limit_of_areas_holds_for_brk, refused_replacement }

const PAGE: usize = 4096;

fn anonymous_is_zero() {
    let map = Map::anonymous(64 * PAGE);
    assert!(map.is_all(0, 64 * PAGE, 0));
    map.set(PAGE, 1);
    assert_eq!((map.get(PAGE), map.get(0)), (1, 0));
}

fn used_again_it_is_zero() {
    for _ in 0..20 {
        let map = Map::anonymous(32 * PAGE);
        assert!(map.is_all(0, 32 * PAGE, 0));
        (0..32 * PAGE).step_by(8).for_each(|at| map.set_u64(at, u64::MAX));
    }
}

fn wrong_arguments() {
    let flags = PRIVATE | ANON;
    assert_eq!(mmap(0, 0, RW, flags, -1, 0), Err(Errno::EINVAL));
    assert_eq!(mmap(0, PAGE, RW, ANON, -1, 0), Err(Errno::EINVAL));
    assert_eq!(mmap(0, PAGE, RW, PRIVATE, -1, 0), Err(Errno::EBADF));
    assert_eq!(mmap(1, PAGE, RW, flags | FIXED, -1, 0), Err(Errno::EINVAL));
    assert_eq!(mmap(0, usize::MAX, RW, flags, -1, 0), Err(Errno::ENOMEM));
    let file = Fd::temporary();
    assert_eq!(file.map_at(1, PAGE, RW, SHARED).err(), Some(Errno::EINVAL));
    assert_eq!(munmap(1, PAGE), Err(Errno::EINVAL));
    assert_eq!(munmap(PAGE, 0), Err(Errno::EINVAL));
    assert_eq!(mprotect(1, PAGE, R), Err(Errno::EINVAL));
    assert_eq!(mmap(0xffff_8000_0000_0000, PAGE, RW, flags | FIXED, -1, 0), Err(Errno::ENOMEM));
}

fn partial_unmap() {
    let map = Map::anonymous(8 * PAGE);
    (0..8).for_each(|page| map.set(page * PAGE, page as u8));
    munmap(map.address + 2 * PAGE, PAGE).unwrap();
    munmap(map.address + 5 * PAGE, 2 * PAGE - 100).unwrap();
    for page in 0..8 {
        let at = map.address + page * PAGE;
        let expected = if [2, 5, 6].contains(&page) { Err(Fault::unmapped(at)) } else { Ok(page as u8) };
        assert_eq!(fault::read(at), expected);
    }
}

fn unmap_of_nothing() {
    let map = Map::anonymous(4 * PAGE);
    munmap(map.address, 4 * PAGE).unwrap();
    assert_eq!(munmap(map.address, 4 * PAGE), Ok(()));
}

fn fixed_replaces() {
    let map = Map::anonymous(3 * PAGE);
    (0..3).for_each(|page| map.set(page * PAGE, 9));
    mmap(map.address + PAGE, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    assert_eq!([0, 1, 2].map(|page| map.get(page * PAGE)), [9, 0, 9]);
}

/// What MAP_FIXED replaces does not count, and stays when the limits forbid what comes in its place. Linux until 6.11 takes it away first.
fn refused_replacement() {
    child::in_child(|| {
        let release = sys::release();
        let numbers: Vec<u32> = release.split(['.', '-']).take(2).map(|word| word.parse().unwrap()).collect();
        let map = Map::new(64 << 20, NONE, PRIVATE | ANON, -1, 0).unwrap();
        let size = procfs::status(std::process::id() as i32, "VmSize") << 10;
        let limit = libc::rlimit { rlim_cur: size + (1 << 20), rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the structure lives through the call.
        sys::check(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }).unwrap();
        let replace = |length: usize| mmap(map.address, length, RW, PRIVATE | ANON | FIXED, -1, 0);
        // As much as there was is no more.
        assert_eq!(replace(64 << 20), Ok(map.address));
        map.set(0, 7);
        assert_eq!(replace(128 << 20), Err(Errno::ENOMEM));
        if numbers >= vec![6, 12] {
            assert_eq!(map.get(0), 7);
        }
    });
}

fn noreplace() {
    let map = Map::anonymous(3 * PAGE);
    let flags = PRIVATE | ANON | libc::MAP_FIXED_NOREPLACE;
    assert_eq!(mmap(map.address + PAGE, PAGE, RW, flags, -1, 0), Err(Errno::EEXIST));
    munmap(map.address + PAGE, PAGE).unwrap();
    assert_eq!(mmap(map.address + PAGE, PAGE, RW, flags, -1, 0), Ok(map.address + PAGE));
}

fn hint() {
    let place = Map::anonymous(4 * PAGE);
    let address = place.address;
    drop(place);
    let map = Map::at(address + 100, 4 * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
    assert_eq!(map.address, address, "a hint is rounded down to a page");
    let other = Map::at(map.address, PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
    assert_ne!(other.address, map.address);
}

fn protection() {
    let map = Map::anonymous(4 * PAGE);
    (0..4).for_each(|page| map.set(page * PAGE, 1));
    mprotect(map.address + PAGE, PAGE, R).unwrap();
    mprotect(map.address + 2 * PAGE, PAGE, NONE).unwrap();
    assert_eq!(fault::write(map.address, 2), Ok(()));
    assert_eq!(fault::write(map.address + PAGE, 2), Err(Fault::forbidden(map.address + PAGE)));
    assert_eq!(fault::read(map.address + 2 * PAGE), Err(Fault::forbidden(map.address + 2 * PAGE)));
    mprotect(map.address, 4 * PAGE, RW).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| map.get(page * PAGE)), [2, 1, 1, 1]);
}

fn protect_of_holes() {
    let map = Map::anonymous(3 * PAGE);
    munmap(map.address + PAGE, PAGE).unwrap();
    assert_eq!(mprotect(map.address, 3 * PAGE, R), Err(Errno::ENOMEM));
}

fn read_only_zero_page() {
    let map = Map::new(4 * PAGE, R, PRIVATE | ANON, -1, 0).unwrap();
    assert_eq!(fault::read(map.address), Ok(0));
    assert_eq!(fault::write(map.address, 1), Err(Fault::forbidden(map.address)));
    mprotect(map.address, 4 * PAGE, RW).unwrap();
    // What was read as zero becomes a page of its own.
    map.set(1, 7);
    assert_eq!((map.get(0), map.get(1)), (0, 7));
    let other = Map::new(PAGE, R, PRIVATE | ANON, -1, 0).unwrap();
    assert_eq!(other.get(1), 0);
}

fn cow_after_fork() {
    let map = Map::anonymous(16 * PAGE);
    (0..16).for_each(|page| map.set(page * PAGE, 1));
    child::in_child(|| {
        (0..16).step_by(2).for_each(|page| map.set(page * PAGE, 2));
        assert!((0..16).all(|page| map.get(page * PAGE) == 2 - (page % 2) as u8));
    });
    assert!((0..16).all(|page| map.get(page * PAGE) == 1));
    (0..16).for_each(|page| map.set(page * PAGE, 3));
}

fn cow_of_many_generations() {
    fn descend(map: &Map, depth: u8) {
        assert_eq!(map.get(0), depth);
        if depth < 20 {
            child::in_child(|| {
                map.set(0, depth + 1);
                descend(map, depth + 1);
            });
            assert_eq!(map.get(0), depth);
        }
    }
    let map = Map::anonymous(PAGE);
    descend(&map, 0);
}

fn shared_anonymous() {
    let map = Map::new(4 * PAGE, RW, SHARED | ANON, -1, 0).unwrap();
    child::in_child(|| {
        map.set(3 * PAGE, 8);
        child::in_child(|| map.set(0, 9));
    });
    assert_eq!((map.get(0), map.get(3 * PAGE)), (9, 8));
}

fn brk_grows_and_shrinks() {
    child::in_child(|| {
        // SAFETY: the break is put back; the allocator of this process is not used in between.
        unsafe {
            let start = libc::syscall(libc::SYS_brk, 0) as usize;
            let grown = libc::syscall(libc::SYS_brk, start + 10 * PAGE) as usize;
            let value = ((start + 9 * PAGE) as *mut u8).read_volatile();
            ((start + 9 * PAGE) as *mut u8).write_volatile(3);
            let back = libc::syscall(libc::SYS_brk, start) as usize;
            // A break that cannot be leaves the old one, and says so by it.
            let refused = libc::syscall(libc::SYS_brk, usize::MAX / 2) as usize;
            let again = libc::syscall(libc::SYS_brk, start + 10 * PAGE) as usize;
            let fresh = ((start + 9 * PAGE) as *mut u8).read_volatile();
            libc::syscall(libc::SYS_brk, start);
            assert_eq!((grown, value, back), (start + 10 * PAGE, 0, start));
            assert_eq!((refused, again, fresh), (start, start + 10 * PAGE, 0));
        }
    });
}

#[inline(never)]
fn dive(depth: u32) -> u32 {
    let space = std::hint::black_box([depth; 1024]);
    if depth == 0 { 0 } else { dive(depth - 1) + std::hint::black_box(space)[3] / depth }
}

fn stack_grows() {
    child::in_child(|| assert_eq!(dive(1000), 1000));
}

fn stack_limit() {
    // The limit counts when the stack grows, not only at exec.
    let end = child::fork(|| {
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        // SAFETY: the structure lives through the call; takes integers.
        unsafe {
            libc::setrlimit(libc::RLIMIT_STACK, &limit);
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        }
        dive(1000);
    });
    assert_eq!(end.wait(), child::End::Signal(libc::SIGSEGV));
}

fn remap_grows_in_place_or_moves() {
    let place = Map::anonymous(8 * PAGE);
    munmap(place.address + 2 * PAGE, 6 * PAGE).unwrap();
    place.set(PAGE, 5);
    assert_eq!(mremap(place.address, 2 * PAGE, 4 * PAGE, 0, 0), Ok(place.address));
    assert_eq!((place.get(PAGE), place.get(3 * PAGE)), (5, 0));
    mmap(place.address + 4 * PAGE, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    // Something is in the way now (it merges or not: the area ends where the call says it does).
    mprotect(place.address + 4 * PAGE, PAGE, R).unwrap();
    assert_eq!(mremap(place.address, 4 * PAGE, 6 * PAGE, 0, 0), Err(Errno::ENOMEM));
    let moved = mremap(place.address, 4 * PAGE, 6 * PAGE, libc::MREMAP_MAYMOVE, 0).unwrap();
    assert_ne!(moved, place.address);
    let moved = Map { address: moved, length: 6 * PAGE };
    assert_eq!((moved.get(PAGE), moved.get(5 * PAGE)), (5, 0));
    assert_eq!(fault::read(place.address), Err(Fault::unmapped(place.address)));
}

/// The guard below a stack is no reason not to grow in place.
fn remap_grows_towards_a_stack() {
    const PAGES: usize = 64;
    let place = Map::reserve(PAGES * PAGE, PAGE);
    let stack = place.address + 40 * PAGE;
    mmap(stack, PAGE, RW, PRIVATE | ANON | FIXED | libc::MAP_GROWSDOWN, -1, 0).unwrap();
    munmap(place.address, 40 * PAGE).unwrap();
    let at = place.address + 20 * PAGE;
    mmap(at, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    assert_eq!(mremap(at, PAGE, 2 * PAGE, 0, 0), Ok(at));
    assert_eq!(mremap(at, 2 * PAGE, 21 * PAGE, 0, 0), Err(Errno::ENOMEM));
}

fn remap_shrinks() {
    let map = Map::anonymous(4 * PAGE);
    map.set(0, 1);
    assert_eq!(mremap(map.address, 4 * PAGE, PAGE, 0, 0), Ok(map.address));
    assert_eq!(fault::read(map.address), Ok(1));
    assert_eq!(fault::read(map.address + PAGE), Err(Fault::unmapped(map.address + PAGE)));
    assert_eq!(mremap(map.address, PAGE, 0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(mremap(map.address + PAGE, PAGE, PAGE, 0, 0), Err(Errno::EFAULT));
}

fn remap_fixed() {
    let (map, target) = (Map::anonymous(2 * PAGE), Map::anonymous(4 * PAGE));
    map.set(0, 1);
    map.set(PAGE, 2);
    target.set(0, 7);
    target.set(PAGE, 8);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    assert_eq!(
        mremap(map.address, 2 * PAGE, 2 * PAGE, flags, target.address + PAGE),
        Ok(target.address + PAGE)
    );
    assert_eq!([0, 1, 2].map(|page| target.get(page * PAGE)), [7, 1, 2]);
    assert_eq!(mremap(target.address, 2 * PAGE, 2 * PAGE, flags, target.address + PAGE), Err(Errno::EINVAL));
}

fn remap_dontunmap() {
    let map = Map::anonymous(2 * PAGE);
    map.set(0, 4);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    let moved = mremap(map.address, 2 * PAGE, 2 * PAGE, flags, 0).unwrap();
    let moved = Map { address: moved, length: 2 * PAGE };
    assert_eq!((moved.get(0), map.get(0)), (4, 0));
    // What stays is not cut out of its area.
    let shared = Map::new(4 * PAGE, RW, SHARED | ANON, -1, 0).unwrap();
    let moved = mremap(shared.address + PAGE, 2 * PAGE, 2 * PAGE, flags, 0).unwrap();
    let whole = format!("{:x}-{:x} ", shared.address, shared.address + 4 * PAGE);
    assert!(maps_of_self().iter().any(|line| line.starts_with(&whole)), "{whole}");
    munmap(moved, 2 * PAGE).unwrap();
}

fn dontneed_zeroes() {
    let map = Map::anonymous(4 * PAGE);
    (0..4).for_each(|page| map.set(page * PAGE, 1));
    madvise(map.address + PAGE, 2 * PAGE, libc::MADV_DONTNEED).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| map.get(page * PAGE)), [1, 0, 0, 1]);
    assert_eq!(madvise(map.address + 1, PAGE, libc::MADV_DONTNEED), Err(Errno::EINVAL));
    munmap(map.address + 2 * PAGE, PAGE).unwrap();
    assert_eq!(madvise(map.address, 4 * PAGE, libc::MADV_DONTNEED), Err(Errno::ENOMEM));
    assert_eq!(map.get(3 * PAGE), 0, "what is there is done, holes or not");
}

fn free_advice() {
    let map = Map::anonymous(4 * PAGE);
    map.set(0, 1);
    madvise(map.address, 4 * PAGE, libc::MADV_FREE).unwrap();
    // The old value or zero; after a write it is kept.
    assert!(map.get(0) <= 1);
    map.set(0, 2);
    assert_eq!(map.get(0), 2);
}

fn willneed_and_others() {
    let map = Map::anonymous(4 * PAGE);
    map.set(0, 1);
    for advice in [libc::MADV_NORMAL, libc::MADV_RANDOM, libc::MADV_SEQUENTIAL, libc::MADV_WILLNEED] {
        let result = madvise(map.address, 4 * PAGE, advice);
        // Linux has nothing to read for anonymous memory, and may say so.
        assert!(matches!(result, Ok(()) | Err(Errno::EBADF)), "{advice}: {result:?}");
    }
    assert_eq!(madvise(map.address, PAGE, 9999), Err(Errno::EINVAL));
    assert_eq!(map.get(0), 1);
}

fn mincore_of_anonymous() {
    let map = Map::anonymous(4 * PAGE);
    map.set(PAGE, 1);
    map.set(3 * PAGE, 1);
    assert_eq!(mincore(map.address, 4 * PAGE), Ok(vec![false, true, false, true]));
    munmap(map.address + 2 * PAGE, PAGE).unwrap();
    assert_eq!(mincore(map.address, 4 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(mincore(map.address + 1, PAGE), Err(Errno::EINVAL));
}

fn locked_memory() {
    let map = Map::anonymous(8 * PAGE);
    // SAFETY: the range is the mapping's.
    unsafe {
        sys::check(libc::mlock(map.address as *const _, 8 * PAGE)).unwrap();
        assert!(mincore(map.address, 8 * PAGE).unwrap().iter().all(|&resident| resident));
        assert!(procfs::status(sys::pid(), "VmLck") >= 32);
        sys::check(libc::munlock(map.address as *const _, 8 * PAGE)).unwrap();
    }
    assert_eq!(procfs::status(sys::pid(), "VmLck"), 0);
    munmap(map.address, PAGE).unwrap();
    // SAFETY: it is refused.
    assert_eq!(sys::check(unsafe { libc::mlock(map.address as *const _, PAGE) }), Err(Errno::ENOMEM));
}

fn populate() {
    let map = Map::new(32 * PAGE, RW, PRIVATE | ANON | libc::MAP_POPULATE, -1, 0).unwrap();
    let (before, _) = sys::faults();
    (0..32).for_each(|page| map.set(page * PAGE, 1));
    assert_eq!(sys::faults().0, before);
}

/// Memory that nobody has stored to does not count as long as nobody may.
fn untouched_memory_does_not_count() {
    // Amid what it cannot be merged with.
    let place = Map::reserve(6 * PAGE, PAGE);
    let map = |page, count: usize| {
        mmap(place.address + page * PAGE, count * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap()
    };
    let (first, touched) = (map(1, 2), map(4, 1));
    let second = first + PAGE;
    mprotect(first, PAGE, NONE).unwrap();
    let counts = |address: usize| {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
        lines.find(|line| line.starts_with("VmFlags:")).unwrap().contains(" ac")
    };
    assert!(!counts(first));
    mprotect(first, PAGE, R).unwrap();
    assert!(!counts(first));
    assert_eq!(fault::write(touched, 1), Ok(()));
    mprotect(touched, PAGE, R).unwrap();
    assert!(counts(touched));
    mprotect(first, PAGE, RW).unwrap();
    assert!(counts(first));
    mprotect(second, PAGE, R).unwrap();
    assert!(!counts(second));
}

fn maps_of_self() -> Vec<String> {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().map(str::to_string).collect()
}

fn maps_shows_areas() {
    let file = Fd::of_pages(4);
    let map = file.map_at(PAGE as u64, 2 * PAGE, R, SHARED).unwrap();
    let lines = maps_of_self();
    let start = format!("{:08x}-{:08x} r--s 00001000 ", map.address, map.address + 2 * PAGE);
    let line =
        lines.iter().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{start} in {lines:?}"));
    assert!(line.ends_with("/memfd:temporary (deleted)"), "{line}");
    assert!(lines.iter().any(|line| line.ends_with("[stack]")));
    assert!(lines.iter().any(|line| line.ends_with("[heap]")));
    assert!(lines.iter().any(|line| line.ends_with("[vdso]")));
    assert!(lines.iter().any(|line| line.contains(" r-xp ") && line.ends_with("/test_mm")));
}

fn areas_merge() {
    let map = Map::anonymous(4 * PAGE);
    let lines = || {
        let range = map.address..map.address + map.length;
        let start = |line: &String| usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        maps_of_self().iter().filter(|line| range.contains(&start(line))).count()
    };
    let before = lines();
    mprotect(map.address + PAGE, PAGE, R).unwrap();
    assert!(lines() > before);
    mprotect(map.address + PAGE, PAGE, RW).unwrap();
    assert_eq!(lines(), before);
}

fn rss_counts() {
    let rss = || procfs::status(sys::pid(), "VmRSS");
    let map = Map::anonymous(1024 * PAGE);
    let before = rss();
    (0..1024).for_each(|page| map.set(page * PAGE, 1));
    // Linux adds up its per-CPU parts only now and then.
    assert!((3500..=5000).contains(&(rss() - before)), "{before} kB, then {} kB", rss());
    drop(map);
    assert!(rss() < before + 1000);
}

fn page_tables_are_freed() {
    let tables = || procfs::status(sys::pid(), "VmPTE");
    let before = tables();
    let map = Map::new(1 << 30, RW, PRIVATE | ANON | libc::MAP_NORESERVE, -1, 0).unwrap();
    (0..512).for_each(|part| map.set(part << 21, 1));
    assert!(tables() >= before + 2000, "{before} kB, then {} kB", tables());
    drop(map);
    assert!(tables() <= before + 100, "{before} kB, then {} kB", tables());
}

fn large_sparse_area() {
    let size = 1usize << 42;
    let map = Map::new(size, RW, PRIVATE | ANON | libc::MAP_NORESERVE, -1, 0).unwrap();
    (0..64).for_each(|part| map.set(part << 36, part as u8));
    assert!((0..64).all(|part| map.get(part << 36) == part as u8));
    child::in_child(|| assert!((0..64).all(|part| map.get(part << 36) == part as u8)));
}

fn kernel_writes_break_cow() {
    let map = Map::anonymous(PAGE);
    map.set(0, 1);
    let file = Fd::temporary();
    file.write(b"k").unwrap();
    child::in_child(|| {
        // SAFETY: the buffer is the mapping's.
        unsafe { libc::pread(file.raw(), map.address as *mut _, 1, 0) };
        assert_eq!(map.get(0), b'k');
    });
    assert_eq!(map.get(0), 1);
}

fn prot_exec_needed() {
    let map = Map::anonymous(PAGE);
    map.set(0, 0xc3);
    let call = |address: usize| {
        // SAFETY: one `ret`, or a fault that ends the child.
        child::fork(move || unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            std::arch::asm!("call {0}", in(reg) address, clobber_abi("C"));
        })
        .wait()
    };
    assert_eq!(call(map.address), child::End::Signal(libc::SIGSEGV));
    mprotect(map.address, PAGE, R | libc::PROT_EXEC).unwrap();
    assert_eq!(call(map.address), child::End::Code(0));
    mprotect(map.address, PAGE, R).unwrap();
    assert_eq!(call(map.address), child::End::Signal(libc::SIGSEGV));
}

fn growsdown_flag() {
    let place = Map::new(1 << 24, NONE, PRIVATE | ANON, -1, 0).unwrap();
    let (address, top) = (place.address, place.address + (1 << 24) - PAGE);
    drop(place);
    let flags = PRIVATE | ANON | FIXED | libc::MAP_GROWSDOWN;
    mmap(top, PAGE, RW, flags, -1, 0).unwrap();
    assert_eq!(fault::write(top - 8, 1), Ok(()));
    assert_eq!(fault::read(top - 8), Ok(1));
    munmap(address, 1 << 24).unwrap();
}

fn wipe_on_fork() {
    let map = Map::anonymous(2 * PAGE);
    map.set(0, 1);
    map.set(PAGE, 2);
    madvise(map.address, PAGE, libc::MADV_WIPEONFORK).unwrap();
    madvise(map.address + PAGE, PAGE, libc::MADV_DONTFORK).unwrap();
    child::in_child(|| {
        assert_eq!(map.get(0), 0);
        assert_eq!(fault::read(map.address + PAGE), Err(Fault::unmapped(map.address + PAGE)));
    });
    assert_eq!((map.get(0), map.get(PAGE)), (1, 2));
}

fn process_vm() {
    let map = Map::anonymous(PAGE);
    map.set(0, 1);
    let shared = roundtable_programs::shared::Shared::new();
    let child = child::fork(|| {
        map.set(0, 42);
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!(map.get(1), 43);
    });
    shared.wait(0, 1);
    let mut byte = [0u8; 1];
    let local = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: map.address as *mut _, iov_len: 1 };
    // SAFETY: both pieces are one byte, the other process's is checked by the kernel.
    let read = sys::check(unsafe { libc::process_vm_readv(child.pid, &local, 1, &remote, 1, 0) as i64 });
    if read == Err(Errno::ENOSYS) {
        shared.add(1);
        drop(child);
        roundtable_programs::harness::skip("this kernel has no process_vm_readv");
    }
    assert_eq!((read, byte), (Ok(1), [42]));
    let mut answer = [43u8; 1];
    let local = libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: (map.address + 1) as *mut _, iov_len: 1 };
    // SAFETY: as above.
    let written = sys::check(unsafe { libc::process_vm_writev(child.pid, &local, 1, &remote, 1, 0) as i64 });
    assert_eq!(written, Ok(1));
    shared.add(1);
    child.ok();
}

fn growth_costs_nothing() {
    child::in_child(|| {
        let score = || procfs::number("/proc/self/oom_score");
        let map = Map::new(2 * PAGE, RW, SHARED | ANON, -1, 0).unwrap();
        let before = score();
        for _ in 0..100_000 {
            munmap(map.address + PAGE, PAGE).unwrap();
            mremap(map.address, PAGE, 2 * PAGE, 0, 0).unwrap();
        }
        let after = score();
        assert!(after <= before + 2, "the killer sees {after} in place of {before}");
    });
}

fn limit_of_areas_holds_for_brk() {
    child::in_child(|| {
        // SAFETY: takes integers; the break is put where nothing is.
        let brk = |to: usize| unsafe { libc::syscall(libc::SYS_brk, to) as usize };
        let start = brk(0).next_multiple_of(PAGE);
        assert_eq!(brk(start + PAGE), start + PAGE);
        // Neighbours differ, so that none is merged.
        let mut areas = 0;
        while mmap(0, PAGE, if areas % 2 == 0 { R } else { NONE }, PRIVATE | ANON, -1, 0).is_ok() {
            areas += 1;
        }
        let refused = brk(start + 2 * PAGE);
        let shrunk = brk(start);
        // SAFETY: ends the process, without memory that it could not get.
        unsafe { libc::_exit(i32::from((refused, shrunk) != (start + PAGE, start))) };
    });
}
