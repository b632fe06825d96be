//! Regions of msharefs: what can be mapped inside, and who uses it how.
//!
//! Linux has no msharefs; there these are skipped.

use roundtable_programs::child;
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE, file, stamp};
use roundtable_programs::mem::{ANON, PRIVATE, R, RW, SHARED};
use roundtable_programs::mshare::{AT, Region, checked, looker, ready, with_memory};
use roundtable_programs::ordinary::{WINDOW, expect_stamps, expect_stamps_at, stamped};
use roundtable_programs::shared::{self, Shared};
use roundtable_programs::sys::{self, PAGE};
use roundtable_programs::{Errno, tests};

tests! { private_memory_is_shared_by_all, private_file_pages, private_windows_inside: 60, memfd_inside, truncated_inside, punched_inside,
last_reference_is_the_region, huge_pages_inside: 60, huge_pages_punched_inside: 60, private_huge_pages_inside: 60,
futex_between_processes, read_from_outside, system_calls_into_a_region }

fn private_memory_is_shared_by_all() {
    ready();
    let region = Region::new();
    region.map(AT, 2 * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
    let map = region.attach();
    assert_eq!(map.get(AT), 0);
    child::in_child(|| {
        // The zero page first, then a page: the store of one is seen by the other.
        let other = region.attach();
        assert_eq!(other.get(AT + PAGE), 0);
        other.set(AT, 1);
        map.set(AT + PAGE, 2);
        assert_eq!(other.get(AT + PAGE), 2);
    });
    assert_eq!((map.get(AT), map.get(AT + PAGE)), (1, 2));
}

fn private_file_pages() {
    ready();
    let (region, file) = (Region::new(), Fd::of_pages(2));
    region.map(AT, 2 * PAGE, RW, PRIVATE, file.raw(), 0).unwrap();
    let map = region.attach();
    assert_eq!((map.get(AT), map.get(AT + PAGE)), (1, 2));
    child::in_child(|| region.attach().set(AT, 9));
    assert_eq!((map.get(AT), map.get(AT + PAGE)), (9, 2));
    let mut byte = [0];
    file.read_at(&mut byte, 0).unwrap();
    assert_eq!(byte[0], 1, "a store to a private mapping reached the file");
}

/// Whole windows of a private mapping show the file by its tables, until somebody stores there.
fn private_windows_inside() {
    ready();
    let (region, file, control) = (Region::new(), stamped(2 * WINDOW), Shared::new());
    region.map(GIB, 2 * WINDOW, RW, PRIVATE, file.raw(), 0).unwrap();
    let map = region.attach();
    expect_stamps_at(map.address + GIB, 2 * WINDOW, 0);
    let child = looker(&region, &control, |map| {
        assert_eq!(map.get_u64(GIB + 3 * PAGE), 1);
        expect_stamps_at(map.address + GIB + 4 * PAGE, 2 * WINDOW - 4 * PAGE, 4);
        map.set_u64(GIB + WINDOW, 2);
    });
    map.set_u64(GIB + 3 * PAGE, 1);
    control.set(1, 1);
    child.ok();
    assert_eq!((map.get_u64(GIB + WINDOW), map.get_u64(GIB + 3 * PAGE)), (2, 1));
    file.truncate(WINDOW as u64).unwrap();
    let gone = map.address + GIB + WINDOW;
    assert_eq!(fault::read(gone), Err(Fault::bus(gone)));
    let whole = file.map(WINDOW, R, SHARED).unwrap();
    expect_stamps(&whole, 0);
    region.unmap(GIB, 2 * WINDOW).unwrap();
    assert_eq!(fault::read(map.address + GIB), Err(Fault::unmapped(map.address + GIB)));
    checked();
}

fn memfd_inside() {
    ready();
    let (region, file) = (Region::new(), Fd::of_pages(4));
    region.map(AT, 2 * PAGE, RW, SHARED, file.raw(), 2 * PAGE as u64).unwrap();
    let map = region.attach();
    assert_eq!((map.get(AT), map.get(AT + PAGE)), (3, 4));
    map.set(AT, 8);
    let mut byte = [0];
    file.read_at(&mut byte, 2 * PAGE as u64).unwrap();
    assert_eq!(byte[0], 8);
}

fn truncated_inside() {
    ready();
    let (region, file) = (Region::new(), Fd::of_pages(2));
    region.map(AT, 2 * PAGE, RW, SHARED, file.raw(), 0).unwrap();
    let map = region.attach();
    assert_eq!(map.get(AT + PAGE), 2);
    file.truncate(PAGE as u64).unwrap();
    assert_eq!(fault::read(map.address + AT + PAGE), Err(Fault::bus(map.address + AT + PAGE)));
    assert_eq!(map.get(AT), 1);
    file.truncate(2 * PAGE as u64).unwrap();
    assert_eq!(map.get(AT + PAGE), 0);
}

fn punched_inside() {
    ready();
    let (region, file, control) = (Region::new(), Fd::of_pages(2), Shared::new());
    region.map(AT, 2 * PAGE, RW, SHARED, file.raw(), 0).unwrap();
    let map = region.attach();
    assert_eq!(map.get(AT), 1);
    let child = looker(&region, &control, |map| assert_eq!((map.get(AT), map.get(AT + PAGE)), (0, 2)));
    file.punch(0, PAGE as u64).unwrap();
    assert_eq!(map.get(AT), 0);
    control.set(1, 1);
    child.ok();
}

fn last_reference_is_the_region() {
    ready();
    let region = Region::new();
    {
        let file = Fd::of_pages(1);
        region.map(AT, PAGE, RW, SHARED, file.raw(), 0).unwrap();
    }
    let map = region.attach();
    assert_eq!(map.get(AT), 1);
    region.unmap(AT, PAGE).unwrap();
    assert_eq!(fault::read(map.address + AT), Err(Fault::unmapped(map.address + AT)));
}

fn huge_pages_inside() {
    ready();
    huge::pool(8);
    {
        let (region, file) = (Region::new(), file());
        file.truncate((4 * HUGE) as u64).unwrap();
        region.map(1 << 30, 4 * HUGE, RW, SHARED, file.raw(), 0).unwrap();
        let map = region.attach();
        (0..4).for_each(|page| map.set_u64((1 << 30) + page * HUGE, stamp(1, page)));
        child::in_child(|| {
            let map = region.attach();
            let (before, _) = sys::faults();
            let right = (0..4).all(|page| map.get_u64((1 << 30) + page * HUGE) == stamp(1, page));
            assert_eq!((sys::faults().0 - before, right), (0, true));
        });
        // Part of it goes, at a huge page only.
        assert_eq!(region.unmap((1 << 30) + PAGE, PAGE), Err(Errno::EINVAL));
        region.unmap(1 << 30, HUGE).unwrap();
        assert_eq!(fault::read(map.address + (1 << 30)), Err(Fault::unmapped(map.address + (1 << 30))));
        assert_eq!(map.get_u64((1 << 30) + HUGE), stamp(1, 1));
        region.protect((1 << 30) + HUGE, HUGE, R).unwrap();
        let at = map.address + (1 << 30) + HUGE;
        assert_eq!(fault::write(at, 1), Err(Fault::forbidden(at)));
        huge::expect_pool(4, 0);
    }
    huge::expect_pool(8, 0);
}

fn huge_pages_punched_inside() {
    ready();
    huge::pool(4);
    let (region, file, control) = (Region::new(), file(), Shared::new());
    file.truncate((2 * HUGE) as u64).unwrap();
    region.map(1 << 30, 2 * HUGE, RW, SHARED, file.raw(), 0).unwrap();
    let map = region.attach();
    (0..2).for_each(|page| map.set_u64((1 << 30) + page * HUGE, 5));
    // Both read, so that both have translations; the other runs on another CPU if there is one.
    let child = looker(&region, &control, |map| {
        assert_eq!((map.get_u64(1 << 30), map.get_u64((1 << 30) + HUGE)), (0, 5));
    });
    file.punch(0, HUGE as u64).unwrap();
    assert_eq!((map.get_u64(1 << 30), map.get_u64((1 << 30) + HUGE)), (0, 5));
    control.set(1, 1);
    child.ok();
}

fn private_huge_pages_inside() {
    ready();
    huge::pool(4);
    {
        let (region, file) = (Region::new(), file());
        file.truncate(HUGE as u64).unwrap();
        file.map(HUGE, RW, SHARED).unwrap().set(0, 1);
        region.map(1 << 30, HUGE, RW, PRIVATE, file.raw(), 0).unwrap();
        region.map(2 << 30, HUGE, RW, SHARED | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
        let map = region.attach();
        child::in_child(|| {
            let map = region.attach();
            assert_eq!(map.get(1 << 30), 1);
            map.set(1 << 30, 2);
            map.set(2 << 30, 3);
        });
        assert_eq!((map.get(1 << 30), map.get(2 << 30)), (2, 3));
        assert_eq!(file.map(HUGE, R, SHARED).unwrap().get(0), 1);
    }
    huge::expect_pool(4, 0);
}

fn futex_between_processes() {
    ready();
    for flags in [SHARED | ANON, PRIVATE | ANON] {
        let region = Region::new();
        region.map(AT, PAGE, RW, flags, -1, 0).unwrap();
        let map = region.attach();
        let child = child::fork(|| {
            // At another address, by the same key.
            let map = region.attach();
            assert_eq!(shared::wait(map.atomic(AT), 0, Some(std::time::Duration::from_secs(20))), 0);
        });
        while shared::wake(map.atomic(AT), 1) == 0 {
            std::thread::yield_now();
        }
        child.ok();
    }
}

fn read_from_outside() {
    let (region, control) = (with_memory(), Shared::new());
    let map = region.attach();
    map.set_u64(AT, 77);
    let child = looker(&region, &control, |_| {});
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let of = |address: usize| libc::iovec { iov_base: address as *mut _, iov_len: 8 };
    let copy = |write: bool, address: usize| {
        let remote = of(address);
        // SAFETY: the word and the vectors live through the call.
        sys::check(unsafe {
            match write {
                false => libc::process_vm_readv(child.pid, &local, 1, &remote, 1, 0) as i64,
                true => libc::process_vm_writev(child.pid, &local, 1, &remote, 1, 0) as i64,
            }
        })
    };
    // Where the child has it is known by its maps alone.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.pid)).unwrap();
    let places: Vec<usize> = maps
        .lines()
        .filter(|line| line.contains(&region.path))
        .map(|line| usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap())
        .collect();
    // The parent's attachment came along by the fork.
    assert_eq!(places.len(), 2, "{maps}");
    for place in places {
        assert_eq!(copy(false, place + AT), Ok(8));
        assert_eq!(word, 77);
        assert_eq!(copy(false, place), Err(Errno::EFAULT));
        assert_eq!(copy(true, place + AT + PAGE), Ok(8));
    }
    assert_eq!(map.get_u64(AT + PAGE), 77);
    control.set(1, 1);
    child.ok();
}

fn system_calls_into_a_region() {
    let region = with_memory();
    let map = region.attach();
    let file = Fd::of_pages(3);
    let pointer = |at: usize| (map.address + at) as *mut libc::c_void;
    // SAFETY: two pages of the attachment.
    let read = sys::check(unsafe { libc::pread(file.raw(), pointer(AT), 2 * PAGE, PAGE as i64) as i64 });
    assert_eq!(read, Ok(2 * PAGE));
    assert!(map.is_all(AT, PAGE, 2) && map.is_all(AT + PAGE, PAGE, 3));
    // SAFETY: as above.
    let written = sys::check(unsafe { libc::pwrite(file.raw(), pointer(AT + PAGE), PAGE, 0) as i64 });
    assert_eq!(written, Ok(PAGE));
    // Where nothing is mapped inside.
    // SAFETY: the kernel is to refuse.
    let none = sys::check(unsafe { libc::pwrite(file.raw(), pointer(0), PAGE, 0) as i64 });
    assert_eq!(none, Err(Errno::EFAULT));
}
