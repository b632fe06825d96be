//! Memory that nobody looks at from outside: memfd_secret(2).

use std::io::{Read, Write};

use roundtable_programs::child::{self, in_child};
use roundtable_programs::fault;
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{Map, NONE, PRIVATE, R, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::PAGE;
use roundtable_programs::{Errno, procfs, row, sys, tests};

tests! { mapped_and_shared, neither_read_nor_written, seen_by_nobody, advice_and_locks, limits, what_is_refused }

fn secret(flags: usize) -> Result<Fd, Errno> {
    call(libc::SYS_memfd_secret, [flags, 0, 0, 0, 0, 0]).map(Fd::own)
}

/// A file of so many pages, and all of it mapped.
fn mapped(pages: usize) -> (Fd, Map) {
    let file = secret(0).unwrap();
    file.truncate((pages * PAGE) as u64).unwrap();
    let map = file.map(pages * PAGE, RW, SHARED).unwrap();
    (file, map)
}

fn mapped_and_shared() {
    let (file, map) = mapped(4);
    map.set(0, 1);
    map.set(3 * PAGE, 4);
    let again = file.map_at(3 * PAGE as u64, PAGE, R, SHARED).unwrap();
    assert_eq!((again.get(0), map.get(PAGE)), (4, 0));
    in_child(|| {
        assert_eq!(map.get(0), 1);
        map.set(1, 2);
    });
    assert_eq!(map.get(1), 2);
    let behind = file.map(5 * PAGE, RW, SHARED).unwrap();
    assert_eq!(fault::read(behind.address + 4 * PAGE).unwrap_err().signal, libc::SIGBUS);
    drop(file);
    assert_eq!(map.get(3 * PAGE), 4);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.contains("/secretmem (deleted)"), "{maps}");
}

fn neither_read_nor_written() {
    let (file, map) = mapped(1);
    let mut rows = Rows::default();
    row!(rows, EINVAL, file.read(&mut [0]));
    row!(rows, EINVAL, file.write(&[0]));
    row!(rows, ESPIPE, file.read_at(&mut [0], 0));
    row!(rows, ESPIPE, file.write_at(&[0], 0));
    row!(rows, ESPIPE, call(libc::SYS_lseek, [file.raw() as usize, 0, 0, 0, 0, 0]));
    row!(rows, EOPNOTSUPP, file.fallocate(0, 0, PAGE as u64).map(|()| 0));
    // Its size is set once.
    row!(rows, EINVAL, file.truncate(2 * PAGE as u64).map(|()| 0));
    row!(rows, EINVAL, file.truncate(PAGE as u64).map(|()| 0));
    row!(rows, EINVAL, file.truncate(0).map(|()| 0));
    rows.finish();
    let stat = file.stat();
    assert_eq!((stat.st_mode, stat.st_size), (libc::S_IFREG | 0o600, PAGE as i64));
    // The program itself may take it elsewhere.
    map.set(0, 7);
    let (mut read, mut write) = std::io::pipe().unwrap();
    // SAFETY: the page is mapped.
    let page = unsafe { std::slice::from_raw_parts_mut(map.address as *mut u8, PAGE) };
    write.write_all(&page[..100]).unwrap();
    read.read_exact(&mut page[1000..1100]).unwrap();
    assert_eq!(page[1000], 7);
}

/// process_vm_readv of a byte; process_vm_writev if `write`.
fn from_outside(pid: i32, address: usize, write: bool) -> Result<usize, Errno> {
    let mut byte = [0u8];
    let local = [byte.as_mut_ptr() as usize, 1];
    let remote = [address, 1];
    let number = if write { libc::SYS_process_vm_writev } else { libc::SYS_process_vm_readv };
    call(number, [pid as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0])
}

fn seen_by_nobody() {
    let (_file, map) = mapped(2);
    map.set(0, 7);
    map.set(PAGE, 8);
    let mut rows = Rows::default();
    row!(rows, EFAULT, from_outside(sys::pid(), map.address, false));
    row!(rows, EFAULT, from_outside(sys::pid(), map.address, true));
    // A page that is not there yet is no other.
    let (_other, untouched) = mapped(1);
    row!(rows, EFAULT, from_outside(sys::pid(), untouched.address, false));
    let memory = Fd::open("/proc/self/mem", libc::O_RDWR).unwrap();
    row!(rows, EIO, memory.read_at(&mut [0], map.address as u64));
    row!(rows, EIO, memory.write_at(&[0], map.address as u64));
    let (_read, write) = roundtable_programs::file::pipe(0);
    let vector = [map.address, 1];
    let fd = write.raw() as usize;
    row!(rows, EFAULT, call(libc::SYS_vmsplice, [fd, vector.as_ptr() as usize, 1, 0, 0, 0]));
    let child = child::fork(|| {
        loop {
            std::thread::park();
        }
    });
    let trace = |request: u32, address: usize, data: usize| {
        call(libc::SYS_ptrace, [request as usize, child.pid as usize, address, data, 0, 0])
    };
    trace(libc::PTRACE_ATTACH, 0, 0).unwrap();
    assert_eq!(child::waitpid(child.pid, 0).unwrap().1, child::End::Stopped(libc::SIGSTOP));
    let mut word = 0u64;
    row!(rows, EIO, trace(libc::PTRACE_PEEKDATA, map.address, &raw mut word as usize));
    row!(rows, EIO, trace(libc::PTRACE_POKEDATA, map.address, 0));
    row!(rows, EFAULT, from_outside(child.pid, map.address + PAGE, false));
    // No futex that others share, and one of its own.
    let wake = |operation: i32| call(libc::SYS_futex, [map.address, operation as usize, 1, 0, 0, 0]);
    row!(rows, EFAULT, wake(libc::FUTEX_WAKE));
    row!(rows, OK, wake(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG));
    rows.finish();
    child.end();
    assert_eq!((map.get(0), map.get(PAGE)), (7, 8));
}

fn advice_and_locks() {
    let locked = || procfs::status(sys::pid(), "VmLck");
    let before = locked();
    let (_file, map) = mapped(4);
    map.set(0, 1);
    let mut rows = Rows::default();
    let on_map = |number: i64, last: usize| call(number, [map.address, 4 * PAGE, last, 0, 0, 0]);
    row!(rows, OK, on_map(libc::SYS_munlock, 0));
    // Nobody can bring it in but who touches it.
    row!(rows, ENOMEM, on_map(libc::SYS_mlock, 0));
    row!(rows, EINVAL, on_map(libc::SYS_madvise, libc::MADV_POPULATE_READ as usize));
    row!(rows, EINVAL, on_map(libc::SYS_madvise, libc::MADV_POPULATE_WRITE as usize));
    row!(rows, OK, on_map(libc::SYS_madvise, libc::MADV_DONTNEED as usize));
    row!(rows, EOPNOTSUPP, on_map(libc::SYS_madvise, libc::MADV_REMOVE as usize));
    row!(rows, OK, on_map(libc::SYS_mprotect, NONE as usize));
    row!(rows, OK, on_map(libc::SYS_mprotect, RW as usize));
    rows.finish();
    assert_eq!((map.get(0), locked()), (1, before));
}

/// Pages count as locked memory of their user, whoever is privileged, from their first touch until the file is gone.
fn limits() {
    in_child(|| {
        let limit = libc::rlimit { rlim_cur: 4 * PAGE as u64, rlim_max: 4 * PAGE as u64 };
        // SAFETY: takes a structure that lives through the call, and integers.
        unsafe {
            sys::check(libc::setuid(1234)).unwrap();
            sys::check(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit)).unwrap();
        }
        let (file, map) = mapped(100);
        let touch = |map: &Map, page: usize| fault::write(map.address + page * PAGE, 1);
        for page in [50, 3, 99, 0] {
            assert_eq!(touch(&map, page), Ok(()));
        }
        assert_eq!(touch(&map, 4).unwrap_err().signal, libc::SIGBUS);
        // In all files of the user, and in all processes.
        let (other, others) = mapped(1);
        assert_eq!(touch(&others, 0).unwrap_err().signal, libc::SIGBUS);
        in_child(|| assert_eq!(touch(&others, 0).unwrap_err().signal, libc::SIGBUS));
        drop(map);
        assert_eq!(touch(&others, 0).unwrap_err().signal, libc::SIGBUS);
        drop(file);
        assert_eq!(touch(&others, 0), Ok(()));
        drop(other);
    });
}

fn what_is_refused() {
    let (file, map) = mapped(1);
    let mut rows = Rows::default();
    for flags in [1, 2, 1 << 31, libc::O_NONBLOCK as usize] {
        row!(rows, EINVAL, secret(flags).map(|_| 0));
    }
    row!(rows, EINVAL, file.map(PAGE, RW, PRIVATE).map(|_| 0));
    let fcntl = |command: i32| call(libc::SYS_fcntl, [file.raw() as usize, command as usize, 0, 0, 0, 0]);
    row!(rows, EINVAL, fcntl(libc::F_GET_SEALS));
    rows.finish();
    let closing = secret(libc::O_CLOEXEC as usize).unwrap();
    let flags = |fd: &Fd| call(libc::SYS_fcntl, [fd.raw() as usize, libc::F_GETFD as usize, 0, 0, 0, 0]);
    assert_eq!((flags(&file), flags(&closing)), (Ok(0), Ok(libc::FD_CLOEXEC as usize)));
    assert_eq!(fcntl(libc::F_GETFL).unwrap() as i32 & libc::O_ACCMODE, libc::O_RDWR);
    drop(map);
}
