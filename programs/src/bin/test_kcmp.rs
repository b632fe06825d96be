//! What processes get of each other: descriptors, comparisons, signals by pidfd and by a thread's number; and small settings of theirs.

use libc::{
    SYS_ioprio_get, SYS_ioprio_set, SYS_kcmp, SYS_pidfd_getfd, SYS_pidfd_open, SYS_pidfd_send_signal,
};
use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, NONE, PRIVATE, RW};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{PAGE, pid};
use roundtable_programs::{Errno, row, signals, tests};

tests! { descriptors_of_others, comparisons, pidfd_signals, signals_to_thread_numbers, io_priority, dump_filter, clone3_sizes,
futex_without_memory, populate_needs_the_right }

fn pidfd(pid: i32) -> Fd {
    Fd::own(call(SYS_pidfd_open, [pid as usize, 0, 0, 0, 0, 0]).expect("pidfd_open"))
}

/// A child that waits to be killed.
fn waiting() -> Child {
    fork(|| {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    })
}

fn descriptors_of_others() {
    let mut rows = Rows::default();
    let (read, write) = pipe(0);
    let number = read.raw() as usize;
    let child = waiting();
    let other = pidfd(child.pid);
    let get = |pidfd: &Fd, fd: usize, flags: usize| {
        call(SYS_pidfd_getfd, [pidfd.raw() as usize, fd, flags, 0, 0, 0])
    };
    drop(read);
    // The child has it still.
    let copy = Fd::own(get(&other, number, 0).expect("pidfd_getfd"));
    assert_eq!(write.write(b"x"), Ok(1));
    assert_eq!(copy.read(&mut [0; 4]), Ok(1));
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::fcntl(copy.raw(), libc::F_GETFD) }, libc::FD_CLOEXEC);
    row!(rows, EINVAL, get(&other, number, 1));
    row!(rows, EBADF, get(&other, 999, 0));
    row!(rows, EBADF, get(&write, number, 0));
    let parent = pid();
    let stranger = fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(get(&pidfd(parent), 0, 0), Err(Errno::EPERM));
    });
    stranger.ok();
    child.end();
    row!(rows, ESRCH, get(&other, number, 0));
    rows.finish();
}

fn comparisons() {
    let mut rows = Rows::default();
    let child = waiting();
    let (own, other) = (pid() as usize, child.pid as usize);
    let compare = |kind: usize, a: usize, b: usize| call(SYS_kcmp, [own, other, kind, a, b, 0]);
    let (read, write) = pipe(0);
    let same = Fd::own(call(libc::SYS_dup, [read.raw() as usize, 0, 0, 0, 0, 0]).unwrap());
    let here = |a: &Fd, b: &Fd| call(SYS_kcmp, [own, own, 0, a.raw() as usize, b.raw() as usize, 0]);
    assert_eq!(here(&read, &same), Ok(0));
    // An order: the other way round it is the other way round.
    assert!(matches!((here(&read, &write), here(&write, &read)), (Ok(1), Ok(2)) | (Ok(2), Ok(1))));
    assert_eq!(compare(0, 0, 0), Ok(0));
    for kind in 1..=4 {
        assert!(matches!(compare(kind, 0, 0), Ok(1 | 2)), "kind {kind}");
        assert_eq!(call(SYS_kcmp, [own, own, kind, 0, 0, 0]), Ok(0));
    }
    row!(rows, EBADF, compare(0, 999, 0));
    row!(rows, EINVAL, compare(99, 0, 0));
    row!(rows, ESRCH, call(SYS_kcmp, [own, 0x3f_ffff, 1, 0, 0, 0]));
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(compare(1, 0, 0), Err(Errno::EPERM));
    })
    .ok();
    child.end();
    rows.finish();
}

fn pidfd_signals() {
    let mut rows = Rows::default();
    let child = waiting();
    let fd = pidfd(child.pid);
    let send = |signal: usize, flags: usize| {
        call(SYS_pidfd_send_signal, [fd.raw() as usize, signal, 0, flags, 0, 0])
    };
    row!(rows, OK, send(0, 0));
    row!(rows, OK, send(0, 1));
    row!(rows, OK, send(0, 2));
    // It leads no group.
    row!(rows, ESRCH, send(0, 4));
    call(libc::SYS_setpgid, [child.pid as usize, 0, 0, 0, 0, 0]).unwrap();
    row!(rows, OK, send(0, 4));
    row!(rows, EINVAL, send(0, 3));
    row!(rows, EINVAL, send(0, 8));
    row!(rows, EINVAL, send(65, 0));
    row!(rows, OK, send(libc::SIGKILL as usize, 1));
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    row!(rows, ESRCH, send(0, 0));
    rows.finish();
}

fn signals_to_thread_numbers() {
    signals::catch(libc::SIGUSR1);
    signals::mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    std::thread::spawn(|| {
        // SAFETY: takes nothing.
        let tid = unsafe { libc::gettid() } as usize;
        assert_ne!(tid, pid() as usize);
        assert_eq!(call(libc::SYS_kill, [tid, 0, 0, 0, 0, 0]), Ok(0));
        // SAFETY: a siginfo of zeros is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        info.si_code = libc::SI_QUEUE;
        let at = (&raw const info) as usize;
        assert_eq!(call(libc::SYS_rt_sigqueueinfo, [tid, libc::SIGUSR1 as usize, at, 0, 0, 0]), Ok(0));
    })
    .join()
    .unwrap();
    // It went to the process: this thread, the only one that is left, has it.
    signals::mask(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
    assert_eq!(signals::count(), 1);
}

fn io_priority() {
    let mut rows = Rows::default();
    let get = |which: usize, who: usize| call(SYS_ioprio_get, [which, who, 0, 0, 0, 0]);
    let set = |which: usize, who: usize, value: usize| call(SYS_ioprio_set, [which, who, value, 0, 0, 0]);
    let value = |class: usize, level: usize| class << 13 | level;
    assert_eq!(set(1, 0, value(2, 6)), Ok(0));
    assert_eq!(get(1, 0), Ok(value(2, 6)));
    assert_eq!(get(1, pid() as usize), Ok(value(2, 6)));
    fork(|| assert_eq!(get(1, 0), Ok(value(2, 6)))).ok();
    row!(rows, OK, set(1, 0, value(1, 3)));
    row!(rows, OK, set(1, 0, value(3, 0)));
    row!(rows, OK, set(1, 0, 0));
    row!(rows, EINVAL, set(1, 0, value(0, 1)));
    row!(rows, EINVAL, set(1, 0, value(4, 1)));
    row!(rows, EINVAL, set(4, 0, value(2, 1)));
    row!(rows, EINVAL, get(0, 0));
    row!(rows, ESRCH, get(1, 0x3f_ffff));
    row!(rows, ESRCH, set(1, 0x3f_ffff, value(2, 1)));
    assert!(get(2, 0).is_ok());
    let parent = pid() as usize;
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(set(1, 0, value(1, 0)), Err(Errno::EPERM));
        assert_eq!(set(1, parent, value(2, 0)), Err(Errno::EPERM));
        assert_eq!(set(1, 0, value(2, 7)), Ok(0));
    })
    .ok();
    rows.finish();
}

fn dump_filter() {
    let path = "/proc/self/coredump_filter";
    let read = || std::fs::read_to_string(path).unwrap();
    assert_eq!(read(), "00000033\n");
    std::fs::write(path, "0x7f").unwrap();
    assert_eq!(read(), "0000007f\n");
    fork(|| assert_eq!(std::fs::read_to_string(path).unwrap(), "0000007f\n")).ok();
    std::fs::write(path, "51\n").unwrap();
    assert_eq!(read(), "00000033\n");
    assert!(std::fs::write(path, "x").is_err());
}

fn clone3_sizes() {
    let mut rows = Rows::default();
    let clone3 = |at: usize, size: usize| call(libc::SYS_clone3, [at, size, 0, 0, 0, 0]);
    // A structure that ends with its page.
    let map = Map::new(2 * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
    call(libc::SYS_mprotect, [map.address + PAGE, PAGE, NONE as usize, 0, 0, 0]).unwrap();
    let end = map.address + PAGE;
    row!(rows, EINVAL, clone3(end - 64, 0));
    row!(rows, EINVAL, clone3(end - 64, 63));
    row!(rows, EFAULT, clone3(end - 64, 65));
    row!(rows, EFAULT, clone3(end - 64, 88));
    row!(rows, EFAULT, clone3(8, 64));
    row!(rows, E2BIG, clone3(end - 64, PAGE + 1));
    // What is behind the fields that are known must be 0, whatever its length.
    // SAFETY: the byte is in the first page.
    unsafe { ((end - 1) as *mut u8).write(1) };
    row!(rows, E2BIG, clone3(end - 89, 89));
    rows.finish();
}

fn futex_without_memory() {
    let mut rows = Rows::default();
    let futex = |at: usize, operation: i32, value: usize| {
        call(libc::SYS_futex, [at, operation as usize, value, 0, 0, 0])
    };
    let map = Map::new(2 * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
    call(libc::SYS_mprotect, [map.address, PAGE, NONE as usize, 0, 0, 0]).unwrap();
    let (hidden, gone) = (map.address, map.address + PAGE);
    call(libc::SYS_munmap, [gone, PAGE, 0, 0, 0, 0]).unwrap();
    for at in [hidden, gone] {
        row!(rows, EFAULT, futex(at, libc::FUTEX_WAIT, 0));
        row!(rows, EFAULT, futex(at, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, 0));
        row!(rows, EFAULT, futex(at, libc::FUTEX_WAKE, 1));
        // Of one's own memory only the address counts.
        row!(rows, OK, futex(at, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1));
    }
    std::mem::forget(map);
    rows.finish();
}

fn populate_needs_the_right() {
    let mut rows = Rows::default();
    let advise = |at: usize, advice: i32| call(libc::SYS_madvise, [at, PAGE, advice as usize, 0, 0, 0]);
    let write_only = Map::new(PAGE, libc::PROT_WRITE, PRIVATE | ANON, -1, 0).unwrap();
    let read_only = Map::new(PAGE, libc::PROT_READ, PRIVATE | ANON, -1, 0).unwrap();
    row!(rows, EINVAL, advise(write_only.address, libc::MADV_POPULATE_READ));
    row!(rows, OK, advise(write_only.address, libc::MADV_POPULATE_WRITE));
    row!(rows, EINVAL, advise(write_only.address, libc::MADV_POPULATE_READ));
    row!(rows, OK, advise(read_only.address, libc::MADV_POPULATE_READ));
    row!(rows, EINVAL, advise(read_only.address, libc::MADV_POPULATE_WRITE));
    rows.finish();
}
