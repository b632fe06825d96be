//! Mapped files: shared and private, their ends, truncation, holes, moves, advice.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{Map, PRIVATE, R, RW, SHARED, madvise, mincore, mprotect, mremap, munmap};
use roundtable_programs::{Errno, sys, tests};

tests! { file_shared_writes, file_private_writes, file_changes_show, behind_the_end_of_a_file,
tail_of_a_file_is_zero, truncate_takes_pages, punch_hole_in_file, write_protected_file, remap_keeps_file_offset,
dontneed_of_a_file, msync_and_files, map_of_a_pipe, exec_only_text, mincore_of_allocated_pages }

const PAGE: usize = 4096;

fn file_shared_writes() {
    let file = Fd::of_pages(4);
    let map = file.map(4 * PAGE, RW, SHARED).unwrap();
    map.set(PAGE + 5, 99);
    let mut byte = [0];
    file.read_at(&mut byte, PAGE as u64 + 5).unwrap();
    assert_eq!(byte, [99]);
    let other = file.map_at(PAGE as u64, PAGE, R, SHARED).unwrap();
    assert_eq!(other.get(5), 99);
}

fn file_private_writes() {
    let file = Fd::of_pages(2);
    let map = file.map(2 * PAGE, RW, PRIVATE).unwrap();
    map.set(0, 99);
    let mut byte = [0];
    file.read_at(&mut byte, 0).unwrap();
    assert_eq!((byte, map.get(0), map.get(PAGE)), ([1], 99, 2));
    file.write_at(&[55], 0).unwrap();
    assert_eq!(map.get(0), 99);
}

fn file_changes_show() {
    let file = Fd::of_pages(2);
    let (shared, private) = (file.map(PAGE, R, SHARED).unwrap(), file.map(PAGE, R, PRIVATE).unwrap());
    assert_eq!((shared.get(0), private.get(0)), (1, 1));
    file.write_at(&[77], 0).unwrap();
    assert_eq!(shared.get(0), 77);
    assert_eq!(private.get(0), 77);
}

fn behind_the_end_of_a_file() {
    let file = Fd::of_pages(1);
    let map = file.map(3 * PAGE, RW, SHARED).unwrap();
    assert_eq!(map.get(0), 1);
    let behind = map.address + PAGE + 7;
    assert_eq!(fault::read(behind), Err(Fault::bus(behind)));
    assert_eq!(fault::write(behind, 1), Err(Fault::bus(behind)));
    file.truncate(3 * PAGE as u64).unwrap();
    assert_eq!(fault::read(behind), Ok(0));
    let empty = Fd::temporary();
    let map = empty.map(PAGE, R, PRIVATE).unwrap();
    assert_eq!(fault::read(map.address), Err(Fault::bus(map.address)));
}

fn tail_of_a_file_is_zero() {
    let file = Fd::temporary();
    file.write(&[5; 100]).unwrap();
    let map = file.map(PAGE, RW, SHARED).unwrap();
    assert_eq!((map.get(99), map.get(100), map.get(PAGE - 1)), (5, 0, 0));
}

fn truncate_takes_pages() {
    let file = Fd::of_pages(4);
    let (shared, private) =
        (file.map(4 * PAGE, RW, SHARED).unwrap(), file.map(4 * PAGE, RW, PRIVATE).unwrap());
    shared.set(3 * PAGE, 1);
    private.set(3 * PAGE, 2);
    file.truncate(2 * PAGE as u64).unwrap();
    for map in [&shared, &private] {
        let at = map.address + 3 * PAGE;
        assert_eq!(fault::read(at), Err(Fault::bus(at)));
        assert_eq!(fault::read(map.address + PAGE), Ok(2));
    }
    file.truncate(4 * PAGE as u64).unwrap();
    assert_eq!((shared.get(3 * PAGE), private.get(3 * PAGE)), (0, 0));
}

fn punch_hole_in_file() {
    let file = Fd::of_pages(4);
    let map = file.map(4 * PAGE, RW, SHARED).unwrap();
    assert_eq!(map.get(PAGE), 2);
    file.punch(PAGE as u64, 2 * PAGE as u64).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| map.get(page * PAGE)), [1, 0, 0, 4]);
}

fn write_protected_file() {
    let path = format!("/tmp/protected-{}", sys::pid());
    std::fs::write(&path, vec![1; PAGE]).unwrap();
    let file = Fd::open(&path, libc::O_RDONLY).unwrap();
    assert_eq!(file.map(PAGE, RW, SHARED).err(), Some(Errno::EACCES));
    let map = file.map(PAGE, R, SHARED).unwrap();
    assert_eq!(mprotect(map.address, PAGE, RW), Err(Errno::EACCES));
    let private = file.map(PAGE, RW, PRIVATE).unwrap();
    private.set(0, 2);
    let write_only = Fd::open(&path, libc::O_WRONLY).unwrap();
    assert_eq!(write_only.map(PAGE, R, SHARED).err(), Some(Errno::EACCES));
    std::fs::remove_file(&path).unwrap();
}

fn remap_keeps_file_offset() {
    let file = Fd::of_pages(4);
    let map = file.map_at(PAGE as u64, 2 * PAGE, RW, SHARED).unwrap();
    let moved = mremap(map.address, 2 * PAGE, 3 * PAGE, libc::MREMAP_MAYMOVE, 0).unwrap();
    let moved = Map { address: moved, length: 3 * PAGE };
    assert_eq!([0, 1, 2].map(|page| moved.get(page * PAGE)), [2, 3, 4]);
    std::mem::forget(map);
}

fn dontneed_of_a_file() {
    let file = Fd::of_pages(1);
    let (shared, private) = (file.map(PAGE, RW, SHARED).unwrap(), file.map(PAGE, RW, PRIVATE).unwrap());
    private.set(0, 50);
    shared.set(1, 60);
    madvise(shared.address, PAGE, libc::MADV_DONTNEED).unwrap();
    madvise(private.address, PAGE, libc::MADV_DONTNEED).unwrap();
    assert_eq!((shared.get(1), private.get(0), private.get(1)), (60, 1, 60));
}

fn msync_and_files() {
    let file = Fd::of_pages(2);
    let map = file.map(2 * PAGE, RW, SHARED).unwrap();
    map.set(0, 9);
    // SAFETY: the range is the mapping's, or refused.
    let msync = |at: usize, flags| sys::check(unsafe { libc::msync(at as *mut _, 2 * PAGE, flags) });
    assert_eq!(msync(map.address, libc::MS_SYNC), Ok(0));
    assert_eq!(msync(map.address, libc::MS_SYNC | libc::MS_ASYNC), Err(Errno::EINVAL));
    munmap(map.address, PAGE).unwrap();
    assert_eq!(msync(map.address, libc::MS_SYNC), Err(Errno::ENOMEM));
}

fn map_of_a_pipe() {
    let (read, _write) = roundtable_programs::file::pipe(0);
    assert_eq!(read.map(PAGE, R, SHARED).err(), Some(Errno::ENODEV));
    let folder = Fd::open("/tmp", libc::O_RDONLY).unwrap();
    assert_eq!(folder.map(PAGE, R, PRIVATE).err(), Some(Errno::ENODEV));
}

fn exec_only_text() {
    // A program's code cannot be written.
    let code = exec_only_text as *const () as usize;
    assert_eq!(fault::write(code, 0x90), Err(Fault::forbidden(code)));
}

/// What fallocate(2) has made is not in memory before it is read or written.
fn mincore_of_allocated_pages() {
    let shared_memory = Fd::open("/dev/shm", libc::O_TMPFILE | libc::O_RDWR).unwrap();
    for file in [Fd::of_pages(0), shared_memory] {
        file.fallocate(0, 0, 4 * PAGE as u64).unwrap();
        let map = file.map(4 * PAGE, RW, SHARED).unwrap();
        let resident = || mincore(map.address, 4 * PAGE).unwrap();
        assert_eq!(resident(), [false; 4]);
        file.write_at(&[1], PAGE as u64).unwrap();
        assert_eq!(resident(), [false, true, false, false]);
        assert_eq!((map.get(2 * PAGE), map.get(PAGE)), (0, 1));
        assert_eq!(resident(), [false, true, true, false]);
        let mut byte = [1];
        file.read_at(&mut byte, 0).unwrap();
        assert_eq!((byte, resident()), ([0], [false, true, true, false].to_vec()));
    }
}
