//! Regions of msharefs: what changes inside changes for all, rights are each one's own, and all goes when
//! nobody has it any more.
//!
//! Linux has no msharefs; there these are skipped.

use roundtable_programs::child;
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{Map, NONE, R, RW, SHARED, mprotect};
use roundtable_programs::mshare::{self, AT, Region, count, looker, ready, with_memory};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{self, PAGE};
use roundtable_programs::{Errno, tests};

tests! { written_by_one_read_by_another, mapping_comes_to_all, unmapping_goes_from_all, protection_changes_for_all,
rights_are_the_attachments_own, read_only_descriptor, protect_of_an_attachment, newcomer_faults_nothing, no_tables_of_ones_own,
two_places_in_one_process, fork_attaches, dont_fork, creator_dies_first, unlinked_lives_on, exec_detaches }

fn written_by_one_read_by_another() {
    let region = with_memory();
    let map = region.attach();
    assert_eq!(map.get_u64(AT), 0);
    map.set_u64(AT, 7);
    child::in_child(|| {
        let map = region.attach();
        assert_eq!(map.get_u64(AT), 7);
        map.set_u64(AT + PAGE, 8);
    });
    assert_eq!(map.get_u64(AT + PAGE), 8);
}

fn mapping_comes_to_all() {
    ready();
    let (region, control) = (Region::new(), Shared::new());
    let map = region.attach();
    assert_eq!(fault::read(map.address + AT), Err(Fault::unmapped(map.address + AT)));
    let child = looker(&region, &control, |map| assert_eq!(fault::read(map.address + AT), Ok(5)));
    region.map_shared(AT, PAGE);
    map.set(AT, 5);
    control.set(1, 1);
    child.ok();
}

fn unmapping_goes_from_all() {
    let (region, control) = (with_memory(), Shared::new());
    let map = region.attach();
    map.set(AT, 1);
    map.set(AT + PAGE, 2);
    let child = looker(&region, &control, |map| {
        assert_eq!(fault::read(map.address + AT), Err(Fault::unmapped(map.address + AT)));
        assert_eq!(fault::read(map.address + AT + PAGE), Ok(2));
    });
    region.unmap(AT, PAGE).unwrap();
    assert_eq!(fault::read(map.address + AT), Err(Fault::unmapped(map.address + AT)));
    control.set(1, 1);
    child.ok();
    // What comes there next is new.
    region.map_shared(AT, PAGE);
    assert_eq!(map.get(AT), 0);
}

fn protection_changes_for_all() {
    let (region, control) = (with_memory(), Shared::new());
    let map = region.attach();
    map.set(AT, 1);
    let child = looker(&region, &control, |map| {
        assert_eq!(fault::write(map.address + AT, 9), Err(Fault::forbidden(map.address + AT)));
        assert_eq!(fault::read(map.address + AT), Ok(1));
        assert_eq!(fault::write(map.address + AT + PAGE, 9), Ok(()));
    });
    region.protect(AT, PAGE, R).unwrap();
    assert_eq!(fault::write(map.address + AT, 9), Err(Fault::forbidden(map.address + AT)));
    control.set(1, 1);
    child.ok();
    region.protect(AT, PAGE, RW).unwrap();
    assert_eq!(fault::write(map.address + AT, 9), Ok(()));
    region.protect(AT, 2 * PAGE, NONE).unwrap();
    assert_eq!(fault::read(map.address + AT), Err(Fault::forbidden(map.address + AT)));
}

fn rights_are_the_attachments_own() {
    let region = with_memory();
    let map = region.attach();
    map.set(AT, 1);
    let (reader, nobody) = (region.try_attach(R).unwrap(), region.try_attach(NONE).unwrap());
    assert_eq!(fault::read(reader.address + AT), Ok(1));
    assert_eq!(fault::write(reader.address + AT, 2), Err(Fault::forbidden(reader.address + AT)));
    // A page that is not there yet is no other matter.
    assert_eq!(
        fault::write(reader.address + AT + PAGE, 2),
        Err(Fault::forbidden(reader.address + AT + PAGE))
    );
    assert_eq!(fault::read(nobody.address + AT), Err(Fault::forbidden(nobody.address + AT)));
    // Nor is the kernel's own access.
    let zero = Fd::open("/dev/zero", libc::O_RDONLY).unwrap();
    // SAFETY: the kernel is to refuse.
    let read = |address| sys::check(unsafe { libc::read(zero.raw(), address as *mut _, 1) as i64 });
    assert_eq!(read(reader.address + AT), Err(Errno::EFAULT));
    assert_eq!(read(map.address + AT), Ok(1));
    assert_eq!(reader.get(AT), 0);
}

fn read_only_descriptor() {
    let region = with_memory();
    let reader = region.open(libc::O_RDONLY).unwrap();
    assert_eq!(reader.map(region.size, RW, SHARED).unwrap_err(), Errno::EACCES);
    let map = reader.map(region.size, R, SHARED).unwrap();
    assert_eq!(fault::read(map.address + AT), Ok(0));
    assert_eq!(mprotect(map.address, map.length, RW), Err(Errno::EACCES));
    assert_eq!(fault::write(map.address + AT, 2), Err(Fault::forbidden(map.address + AT)));
    let writer = region.open(libc::O_WRONLY).unwrap();
    assert_eq!(writer.map(region.size, R, SHARED).unwrap_err(), Errno::EACCES);
}

fn protect_of_an_attachment() {
    let region = with_memory();
    let (map, other) = (region.attach(), region.attach());
    map.set(AT, 1);
    mprotect(map.address, map.length, R).unwrap();
    assert_eq!(fault::write(map.address + AT, 2), Err(Fault::forbidden(map.address + AT)));
    assert_eq!(fault::write(other.address + AT, 2), Ok(()));
    assert_eq!(fault::read(map.address + AT), Ok(2));
    mprotect(map.address, map.length, NONE).unwrap();
    assert_eq!(fault::read(map.address + AT), Err(Fault::forbidden(map.address + AT)));
    mprotect(map.address, map.length, RW).unwrap();
    assert_eq!(fault::write(map.address + AT, 3), Ok(()));
    assert_eq!(other.get(AT), 3);
}

/// Faults of reading `pages` pages from `offset` on.
fn faults_of_reading(map: &Map, offset: usize, pages: usize) -> u64 {
    let (before, _) = sys::faults();
    let sum: u64 = (0..pages).map(|page| map.get_u64(offset + page * PAGE)).sum();
    let (after, _) = sys::faults();
    assert_eq!(sum, (pages * (pages - 1) / 2) as u64);
    after - before
}

fn newcomer_faults_nothing() {
    ready();
    let (region, pages) = (Region::new(), 1024);
    region.map_shared(AT, pages * PAGE);
    let map = region.attach();
    (0..pages).for_each(|page| map.set_u64(AT + page * PAGE, page as u64));
    child::in_child(|| {
        let map = region.attach();
        faults_of_reading(&map, AT, 1);
        assert_eq!(faults_of_reading(&map, AT, pages), 0);
    });
}

fn no_tables_of_ones_own() {
    let region = with_memory();
    region.attach().set(AT, 1);
    let own = || roundtable_programs::procfs::status(sys::pid(), "VmPTE");
    let before = own();
    let map = region.attach();
    assert_eq!(map.get(AT), 1);
    assert_eq!(own(), before);
}

fn two_places_in_one_process() {
    let region = with_memory();
    let attachments = count("attachments");
    let (a, b) = (region.attach(), region.attach());
    assert_eq!(count("attachments"), attachments + 2);
    a.set(AT, 4);
    assert_eq!(b.get(AT), 4);
    a.unmap().unwrap();
    assert_eq!(b.get(AT), 4);
    region.unmap(AT, PAGE).unwrap();
    assert_eq!(fault::read(b.address + AT), Err(Fault::unmapped(b.address + AT)));
}

fn fork_attaches() {
    let (region, control) = (with_memory(), Shared::new());
    let map = region.attach();
    map.set(AT, 1);
    let child = child::fork(|| {
        assert_eq!(map.get(AT), 1);
        map.set(AT, 2);
        control.add(0);
        control.wait(1, 1);
        assert_eq!(fault::read(map.address + AT), Err(Fault::unmapped(map.address + AT)));
        // The grandchild has it, too.
        child::in_child(|| assert_eq!(fault::write(map.address + AT + PAGE, 3), Ok(())));
    });
    control.wait(0, 1);
    assert_eq!(map.get(AT), 2);
    region.unmap(AT, PAGE).unwrap();
    control.set(1, 1);
    child.ok();
    assert_eq!(map.get(AT + PAGE), 3);
}

fn dont_fork() {
    let region = with_memory();
    let map = region.attach();
    roundtable_programs::mem::madvise(map.address, map.length, libc::MADV_DONTFORK).unwrap();
    child::in_child(|| assert_eq!(fault::read(map.address + AT), Err(Fault::unmapped(map.address + AT))));
}

fn creator_dies_first() {
    ready();
    let control = Shared::new();
    let path = format!("{}/orphan-{}", mshare::MOUNT, sys::pid());
    child::in_child(|| {
        let fd = Fd::open(&path, libc::O_RDWR | libc::O_CREAT).unwrap();
        fd.truncate(mshare::granule() as u64).unwrap();
        let region = Region { fd, path: path.clone(), size: mshare::granule(), maker: 0 };
        region.map_shared(AT, PAGE);
        region.attach().set(AT, 6);
        control.add(0);
    });
    let fd = Fd::open(&path, libc::O_RDWR).unwrap();
    assert_eq!(fd.stat().st_size as usize, mshare::granule());
    let map = fd.map(mshare::granule(), RW, SHARED).unwrap();
    assert_eq!(map.get(AT), 6);
    std::fs::remove_file(&path).unwrap();
}

fn unlinked_lives_on() {
    let regions = {
        ready();
        count("regions")
    };
    let region = with_memory();
    let map = region.attach();
    map.set(AT, 1);
    region.unlink();
    assert_eq!(region.open(libc::O_RDWR).unwrap_err(), Errno::ENOENT);
    assert_eq!(map.get(AT), 1);
    drop(region);
    assert_eq!(map.get(AT), 1);
    child::in_child(|| assert_eq!(map.get(AT), 1));
    assert_eq!(count("regions"), regions + 1);
    drop(map);
    assert_eq!(count("regions"), regions);
}

fn exec_detaches() {
    let region = with_memory();
    let attachments = count("attachments");
    let map = region.attach();
    let status = std::process::Command::new("/proc/self/exe")
        .arg("--list")
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    assert_eq!(count("attachments"), attachments + 1);
    drop(map);
    assert_eq!(count("attachments"), attachments);
}
