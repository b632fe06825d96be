//! Descriptors of processes and threads, and children with numbers that their parents choose.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use libc::{SYS_clone3, SYS_ioctl, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_waitid};
use roundtable_programs::child::{Child, End, fork, in_child, waitpid};
use roundtable_programs::file::Fd;
use roundtable_programs::inet::poll;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::Map;
use roundtable_programs::namespaces::{NEWPID, unshare};
use roundtable_programs::place::become_user;
use roundtable_programs::rows::Rows;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, check, pid, settles};
use roundtable_programs::{Errno, row, signals, tests};

tests! { namespaces, namespaces_that_are_refused, polls_of_processes, polls_of_threads, signals_for_threads, lines_in_fdinfo,
waits_that_do_not_block, advice_about_memory, waits_for_that_process, numbers_of_the_waited_for, strangers_by_an_old_number, threads_by_clone, chosen_numbers, chosen_numbers_that_are_refused, chosen_numbers_in_namespaces, signals_by_the_directory }

const THREAD: usize = libc::O_EXCL as usize;

fn open(pid: i32, flags: usize) -> Result<Fd, Errno> {
    call(SYS_pidfd_open, [pid as usize, flags, 0, 0, 0, 0]).map(Fd::own)
}

fn waiting() -> Child {
    fork(|| {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    })
}

fn tid() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}

fn namespace(fd: &Fd, number: usize) -> Answer {
    call(SYS_ioctl, [fd.raw() as usize, 0xff00 + number, 0, 0, 0, 0])
}

const NAMES: [&str; 10] =
    ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

fn namespaces() {
    let child = fork(|| {
        // SAFETY: takes integers.
        check(unsafe { libc::unshare(libc::CLONE_NEWUTS | libc::CLONE_NEWIPC) }).unwrap();
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    });
    let of = |pid: i32, name: &str| std::fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap().ino();
    assert!(settles(Duration::from_secs(20), || of(child.pid, "ipc") != of(pid(), "ipc")));
    let fd = open(child.pid, 0).unwrap();
    for (index, name) in NAMES.iter().enumerate() {
        let opened = Fd::own(namespace(&fd, index + 1).unwrap());
        let link = std::fs::metadata(format!("/proc/self/fd/{}", opened.raw())).unwrap();
        assert_eq!(link.ino(), of(child.pid, name), "{name}");
        assert_eq!(call(libc::SYS_fcntl, [opened.raw() as usize, libc::F_GETFD as usize, 0, 0, 0, 0]), Ok(1));
    }
    // Such a file is one for setns(2).
    let uts = Fd::own(namespace(&fd, 10).unwrap());
    fork(|| {
        // SAFETY: takes integers.
        check(unsafe { libc::setns(uts.raw(), libc::CLONE_NEWUTS) }).unwrap();
        assert_eq!(of(pid(), "uts"), of(child.pid, "uts"));
    })
    .ok();
}

fn namespaces_that_are_refused() {
    let mut rows = Rows::default();
    let child = waiting();
    let fd = open(child.pid, 0).unwrap();
    row!(rows, EINVAL, call(SYS_ioctl, [fd.raw() as usize, 0xff01, 1, 0, 0, 0]));
    row!(rows, ENOTTY, namespace(&fd, 99));
    fork(|| {
        // SAFETY: takes integers.
        check(unsafe { libc::setuid(1000) }).unwrap();
        assert_eq!(namespace(&fd, 2), Err(Errno::EACCES));
    })
    .ok();
    child.kill(libc::SIGKILL);
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    row!(rows, ESRCH, namespace(&fd, 2));
    rows.finish();
}

const READABLE: i16 = libc::POLLIN;
const GONE: i16 = libc::POLLIN | libc::POLLHUP;

fn polls_of_processes() {
    let child = waiting();
    let fd = open(child.pid, 0).unwrap();
    assert_eq!(poll(&fd.0, libc::POLLIN, 0), 0);
    child.kill(libc::SIGKILL);
    assert_eq!(poll(&fd.0, libc::POLLIN, 20_000), READABLE);
    child.wait();
    assert_eq!(poll(&fd.0, libc::POLLIN, 0), GONE);
}

fn polls_of_threads() {
    let mut rows = Rows::default();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (told, hear) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        told.send(tid()).unwrap();
        let _ = wait.recv();
    });
    let number = hear.recv().unwrap();
    row!(rows, EINVAL, open(number, 1).map(|_| 0));
    let fd = open(number, THREAD).unwrap();
    let own = open(pid(), THREAD).unwrap();
    assert_eq!(poll(&fd.0, libc::POLLIN, 0), 0);
    drop(go);
    assert_eq!(poll(&fd.0, libc::POLLIN, 20_000) & READABLE, READABLE);
    assert!(settles(Duration::from_secs(20), || poll(&fd.0, libc::POLLIN, 0) == GONE));
    assert_eq!(poll(&own.0, libc::POLLIN, 0), 0);
    other.join().unwrap();
    row!(rows, ESRCH, open(number, THREAD).map(|_| 0));
    rows.finish();
}

fn signals_for_threads() {
    signals::mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (told, hear) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        told.send(tid()).unwrap();
        let _ = wait.recv();
    });
    let number = hear.recv().unwrap();
    let fd = open(number, THREAD).unwrap();
    let send = |fd: &Fd, scope: usize| {
        call(SYS_pidfd_send_signal, [fd.raw() as usize, libc::SIGUSR1 as usize, 0, scope, 0, 0])
    };
    let pending = |line: &str| {
        let text = std::fs::read_to_string(format!("/proc/self/task/{number}/status")).unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)).unwrap().trim().to_string();
        value != "0000000000000000"
    };
    assert_eq!(send(&fd, 0), Ok(0));
    assert!(pending("SigPnd:") && !pending("ShdPnd:"));
    assert_eq!(send(&fd, 2), Ok(0));
    assert!(pending("ShdPnd:"));
    assert_eq!(send(&fd, 3), Err(Errno::EINVAL));
    assert_eq!(send(&fd, 4), Err(Errno::ESRCH), "it leads no group");
    drop(go);
    other.join().unwrap();
    assert!(settles(Duration::from_secs(20), || poll(&fd.0, libc::POLLIN, 0) == GONE));
    assert_eq!(send(&fd, 0), Err(Errno::ESRCH));
}

fn lines_in_fdinfo() {
    let child = waiting();
    let fd = open(child.pid, 0).unwrap();
    let line = |key: &str| {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.raw())).unwrap();
        text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_string())
    };
    assert_eq!(line("Pid:"), Some(child.pid.to_string()));
    assert_eq!(line("NSpid:"), Some(child.pid.to_string()));
    child.kill(libc::SIGKILL);
    child.wait();
    assert_eq!(line("Pid:"), Some("-1".to_string()));
    assert_eq!(line("NSpid:"), Some("-1".to_string()));
}

fn waits_that_do_not_block() {
    let child = waiting();
    let fd = open(child.pid, libc::O_NONBLOCK as usize).unwrap();
    let mut info = [0u8; 128];
    let mut wait = |options: i32| {
        call(SYS_waitid, [3, fd.raw() as usize, info.as_mut_ptr() as usize, options as usize, 0, 0])
    };
    assert_eq!(wait(libc::WEXITED), Err(Errno::EAGAIN));
    assert_eq!(wait(libc::WEXITED | libc::WNOHANG), Ok(0));
    child.kill(libc::SIGKILL);
    assert_eq!(poll(&fd.0, libc::POLLIN, 20_000), READABLE);
    assert_eq!(wait(libc::WEXITED), Ok(0));
    assert_eq!(wait(libc::WEXITED), Err(Errno::ECHILD));
    child.release();
}

fn wait_by(fd: &Fd) -> Answer {
    let mut info = [0u8; 128];
    let options = (libc::WEXITED | libc::WNOHANG) as usize;
    call(SYS_waitid, [3, fd.raw() as usize, info.as_mut_ptr() as usize, options, 0, 0])
}

/// A descriptor means its process, not who has its number next; and one of a thread no child.
fn waits_for_that_process() {
    let first = waiting();
    let (number, fd) = (first.pid, open(first.pid, 0).unwrap());
    first.end();
    let second = clone3(0, 0, &[number]).unwrap();
    if second == 0 {
        // SAFETY: the child's end.
        unsafe { libc::_exit(7) };
    }
    let ended = open(number, 0).unwrap();
    assert_eq!(poll(&ended.0, libc::POLLIN, 20_000), READABLE);
    assert_eq!(wait_by(&fd), Err(Errno::ECHILD));
    assert_eq!(waitpid(number, 0).unwrap().1, End::Code(7));
    let child = fork(|| {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(100)));
        // SAFETY: ends the first thread only.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let other = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.pid)).unwrap();
        let numbers = tasks.filter_map(|task| task.unwrap().file_name().to_str()?.parse().ok());
        numbers.into_iter().find(|number: &i32| *number != child.pid)
    };
    assert!(settles(Duration::from_secs(20), || other().is_some()));
    let fd = open(other().unwrap(), THREAD).unwrap();
    child.kill(libc::SIGKILL);
    let whole = open(child.pid, 0).unwrap();
    assert_eq!(poll(&whole.0, libc::POLLIN, 20_000), READABLE);
    assert_eq!(wait_by(&fd), Err(Errno::ECHILD));
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
}

/// A namespace in which a process with the kernel's number `number` has come and gone, and somebody outside has a descriptor of it.
/// `then` is run by its first process before it ends, and `outside` by the caller before that.
fn known_in_a_namespace(number: i32, then: impl FnOnce(), outside: impl FnOnce()) {
    let shared = Shared::new();
    let holder = fork(|| {
        unshare(NEWPID).unwrap();
        let first = fork(|| {
            let child = clone3(0, 0, &[2, number]).unwrap();
            if child == 0 {
                shared.wait(1, 1);
                // SAFETY: the child's end.
                unsafe { libc::_exit(0) };
            }
            shared.set(0, 1);
            assert_eq!(waitpid(2, 0).unwrap().1, End::Code(0));
            shared.set(2, 1);
            shared.wait(3, 1);
            then();
        });
        first.ok();
    });
    shared.wait(0, 1);
    let _known = open(number, 0).unwrap();
    shared.set(1, 1);
    shared.wait(2, 1);
    outside();
    shared.set(3, 1);
    holder.ok();
}

/// A number is free when its process was waited for, whoever still knows the process.
fn numbers_of_the_waited_for() {
    known_in_a_namespace(free_number(), || assert_eq!(child_with(0, &[2]), Ok(2)), || ());
}

/// The end of a namespace does not meet who has the kernel's number of one that was in it.
fn strangers_by_an_old_number() {
    let number = free_number();
    let outside = || {
        let stranger = clone3(0, 0, &[number]).unwrap();
        if stranger == 0 {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        }
    };
    known_in_a_namespace(number, || (), outside);
    signals::kill(number, libc::SIGTERM).unwrap();
    assert_eq!(waitpid(number, 0).unwrap().1, End::Signal(libc::SIGTERM));
}

/// `struct clone_args`.
fn clone3(flags: u64, pidfd: u64, numbers: &[i32]) -> Answer {
    let signal = libc::SIGCHLD as u64;
    let set = if numbers.is_empty() { 0 } else { numbers.as_ptr() as u64 };
    let arguments = [flags, pidfd, 0, 0, signal, 0, 0, 0, set, numbers.len() as u64, 0];
    call(SYS_clone3, [arguments.as_ptr() as usize, 88, 0, 0, 0, 0])
}

fn threads_by_clone() {
    let mut fd = 0u32;
    let child = clone3(libc::CLONE_PIDFD as u64, (&raw mut fd) as u64, &[]).unwrap();
    if child == 0 {
        // SAFETY: the child's end.
        unsafe { libc::_exit(0) };
    }
    let fd = Fd::own(fd as usize);
    assert_eq!(poll(&fd.0, libc::POLLIN, 20_000), READABLE);
    assert_eq!(waitpid(child as i32, 0).unwrap().1, End::Code(0));
    // CLONE_DETACHED and a descriptor exclude each other.
    let flags = libc::CLONE_PIDFD as u64 | libc::CLONE_DETACHED as u64;
    assert_eq!(clone3(flags, (&raw const fd) as u64, &[]), Err(Errno::EINVAL));
}

/// A child with such numbers, which ends at once: its number, or why there is none.
fn child_with(flags: u64, numbers: &[i32]) -> Answer {
    let child = clone3(flags, 0, numbers)?;
    if child == 0 {
        // SAFETY: the child's end.
        unsafe { libc::_exit(i32::from(i64::from(pid()) != i64::from(numbers[0]))) };
    }
    assert_eq!(waitpid(child as i32, 0).unwrap().1, End::Code(0));
    Ok(child)
}

fn free_number() -> i32 {
    let child = fork(|| {});
    let number = child.pid;
    child.ok();
    number
}

fn chosen_numbers() {
    let number = free_number();
    for _ in 0..3 {
        assert_eq!(child_with(0, &[number]), Ok(number as usize));
    }
    assert_eq!(child_with(0, &[30_000]), Ok(30_000));
    // The next one is where it would have been.
    assert!(free_number() < 30_000);
}

fn chosen_numbers_that_are_refused() {
    let mut rows = Rows::default();
    let most: i32 = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    row!(rows, EEXIST, child_with(0, &[1]));
    row!(rows, EEXIST, child_with(0, &[pid()]));
    row!(rows, EINVAL, child_with(0, &[0]));
    row!(rows, EINVAL, child_with(0, &[-1]));
    row!(rows, EINVAL, child_with(0, &[most]));
    row!(rows, EINVAL, child_with(0, &[20_000, 20_001]));
    row!(rows, EINVAL, child_with(0, &[20_000; 33]));
    let arguments = |set: u64, len: u64| {
        let arguments = [0u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0, set, len, 0];
        call(SYS_clone3, [arguments.as_ptr() as usize, 88, 0, 0, 0, 0])
    };
    row!(rows, EINVAL, arguments(0, 1));
    row!(rows, EINVAL, arguments(4096, 0));
    row!(rows, EFAULT, arguments(8, 1));
    fork(|| {
        // SAFETY: takes integers.
        check(unsafe { libc::setuid(1000) }).unwrap();
        assert_eq!(child_with(0, &[20_000]), Err(Errno::EPERM));
    })
    .ok();
    // A group keeps its number.
    let leader = fork(|| {
        // SAFETY: takes integers, and no other thread is there.
        unsafe {
            libc::setpgid(0, 0);
            if libc::fork() == 0 {
                libc::pause();
            }
        }
    });
    let number = leader.pid;
    leader.ok();
    row!(rows, EEXIST, child_with(0, &[number]));
    signals::kill(-number, libc::SIGKILL).unwrap();
    rows.finish();
}

fn chosen_numbers_in_namespaces() {
    let new = libc::CLONE_NEWPID as u64;
    let number = free_number();
    assert_eq!(child_with(new, &[1, number]), Ok(number as usize));
    assert!(child_with(new, &[1]).is_ok());
    assert_eq!(child_with(new, &[number]), Err(Errno::EINVAL), "there is no first process");
    assert_eq!(child_with(new, &[1, 1]), Err(Errno::EEXIST));
    fork(|| {
        // SAFETY: takes integers.
        check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).unwrap();
        assert_eq!(child_with(0, &[number]), Err(Errno::EINVAL));
        fork(|| {
            assert_eq!(pid(), 1);
            assert_eq!(child_with(0, &[43]), Ok(43));
            assert_eq!(child_with(0, &[44, number]), Ok(44));
            assert_eq!(child_with(new, &[1, 42, number]), Ok(42));
            assert_eq!(child_with(new, &[1, 42, number, 1]), Err(Errno::EINVAL));
            // What failed half-way has left nothing.
            assert_eq!(child_with(0, &[45, 1]), Err(Errno::EEXIST));
            assert_eq!(child_with(0, &[45, number]), Ok(45));
        })
        .ok();
    })
    .ok();
}

/// process_madvise(2) of Linux 6.12: hints that harm nobody, from who may slow others down, also about oneself.
fn advice_about_memory() {
    let map = Map::anonymous(PAGE);
    map.set(0, 1);
    let child = waiting();
    let vector = [map.address, PAGE];
    let advise = |fd: &Fd, advice: i32| {
        let at = vector.as_ptr() as usize;
        call(libc::SYS_process_madvise, [fd.raw() as usize, at, 1, advice as usize, 0, 0])
    };
    for target in [child.pid, pid()] {
        let fd = open(target, 0).unwrap();
        assert_eq!(advise(&fd, libc::MADV_COLD), Ok(PAGE), "{target}");
        assert_eq!(advise(&fd, libc::MADV_WILLNEED), Ok(PAGE), "{target}");
        for other in [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_NORMAL, 1000] {
            assert_eq!(advise(&fd, other), Err(Errno::EINVAL), "{target} {other}");
        }
    }
    assert_eq!(map.get(0), 1);
    child.end();
    in_child(|| {
        become_user(1000, 1000);
        // SAFETY: takes integers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
        let child = waiting();
        for (target, expected) in [(child.pid, Err(Errno::EPERM)), (pid(), Ok(PAGE))] {
            let fd = open(target, 0).unwrap();
            assert_eq!(advise(&fd, libc::MADV_COLD), expected, "{target}");
            assert_eq!(advise(&fd, libc::MADV_DONTNEED), Err(Errno::EINVAL), "{target}");
        }
        child.end();
    });
}

/// The directory of a process in /proc is as good as its descriptor, for a signal: killall(1) uses it.
fn signals_by_the_directory() {
    let child = waiting();
    let open = |path: String| Fd::open(&path, libc::O_RDONLY | libc::O_DIRECTORY).expect("a directory");
    let send = |fd: &Fd, signal: i32| {
        call(libc::SYS_pidfd_send_signal, [fd.raw() as usize, signal as usize, 0, 0, 0, 0])
    };
    let directory = open(format!("/proc/{}", child.pid));
    let thread = open(format!("/proc/{0}/task/{0}", child.pid));
    assert_eq!((send(&directory, 0), send(&thread, 0)), (Ok(0), Err(Errno::EBADF)));
    assert_eq!(send(&open("/proc".into()), 0), Err(Errno::EBADF));
    assert_eq!(send(&directory, libc::SIGKILL), Ok(0));
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    assert_eq!(send(&directory, 0), Err(Errno::ESRCH));
}
