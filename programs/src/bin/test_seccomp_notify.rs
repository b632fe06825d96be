//! System calls that another process answers: SECCOMP_RET_USER_NOTIF.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicU64};
use std::time::Duration;

use libc::{SYS_getppid, SYS_getuid};
use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::harness::skip;
use roundtable_programs::kinds::call;
use roundtable_programs::rows::Rows;
use roundtable_programs::seccomp::*;
use roundtable_programs::sys::{check, is_linux, pid, settles};
use roundtable_programs::{Errno, row, tests};
use roundtable_programs::{signals, socket};

tests! { answers, calls_that_are_made, who_asks, ids, errors, flags_of_filters, one_listener_of_a_chain, closed_listener,
closed_while_calls_wait, nobody_left, signals_interrupt, answered_while_a_signal_comes, answers_that_look_like_restarts, only_kills_interrupt, killed_while_waiting, listener_is_interrupted,
files_are_added, file_is_the_answer, files_that_are_refused, many_callers, all_threads, polled_by_epoll, a_bad_address_gives_back }

const IN: i16 = libc::POLLIN;
const OUT: i16 = libc::POLLOUT;
const HUP: i16 = libc::POLLHUP;

/// A child that runs with the filter that this process has.
fn caller(run: impl FnOnce()) -> Child {
    fork(run)
}

fn sleeps(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

fn until_it_sleeps(pid: i32) {
    assert!(settles(Duration::from_secs(20), || sleeps(pid)));
}

fn answers() {
    let listener = Listener::on(SYS_getppid, 0);
    let child = caller(|| {
        assert_eq!(simple(SYS_getppid), Ok(4711));
        assert_eq!(simple(SYS_getppid), Err(Errno::E2BIG));
        // The kernel takes what it is given for an error's number, and that is none.
        // SAFETY: takes nothing.
        assert_eq!(unsafe { libc::syscall(SYS_getppid) }, 7);
        assert_eq!(simple(SYS_getppid), Ok(1 << 40));
        assert!(simple(SYS_getuid).is_ok());
    });
    for (value, error) in [(4711, 0), (0, -libc::E2BIG), (5, 7), (1 << 40, 0)] {
        let told = listener.receive().unwrap();
        assert_eq!(listener.send(Response { id: told.id, value, error, flags: 0 }), Ok(0));
    }
    child.ok();
}

fn calls_that_are_made() {
    let parent = pid();
    let listener = Listener::on(SYS_getppid, 0);
    let child = caller(|| assert_eq!(simple(SYS_getppid), Ok(parent as usize)));
    let told = listener.receive().unwrap();
    let with = |value, error| Response { id: told.id, value, error, flags: 1 };
    assert_eq!(listener.send(with(1, 0)), Err(Errno::EINVAL));
    assert_eq!(listener.send(with(0, -1)), Err(Errno::EINVAL));
    assert_eq!(listener.send(with(0, 0)), Ok(0));
    child.ok();
}

fn who_asks() {
    let listener = Listener::on(libc::SYS_getpriority, 0);
    let child = caller(|| {
        assert_eq!(call(libc::SYS_getpriority, [1, 2 << 32, 3, 4, 5, 6]), Ok(0));
    });
    let told = listener.receive().unwrap();
    assert_eq!((told.pid, told.flags, told.arch), (child.pid as u32, 0, 0xc000_003e));
    assert_eq!(i64::from(told.number), libc::SYS_getpriority);
    assert_eq!(told.arguments, [1, 2 << 32, 3, 4, 5, 6]);
    assert_ne!(told.instruction, 0);
    assert_eq!(listener.answer(told.id, 0), Ok(0));
    child.ok();
}

fn ids() {
    let listener = Listener::on(SYS_getppid, 0);
    assert_eq!(listener.is_valid(1), Err(Errno::ENOENT));
    let ask = || caller(|| assert_eq!(simple(SYS_getppid), Ok(1)));
    let (first, second) = (ask(), ask());
    let told = [listener.receive().unwrap(), listener.receive().unwrap()];
    assert_eq!(told[1].id, told[0].id + 1);
    assert_eq!((listener.is_valid(told[0].id), listener.is_valid(told[1].id)), (Ok(0), Ok(0)));
    assert_eq!(listener.is_valid(told[1].id + 1), Err(Errno::ENOENT));
    // The younger one first.
    assert_eq!(listener.answer(told[1].id, 1), Ok(0));
    assert_eq!(listener.answer(told[0].id, 1), Ok(0));
    first.ok();
    second.ok();
    assert_eq!(listener.is_valid(told[0].id), Err(Errno::ENOENT));
    assert_eq!(listener.answer(told[0].id, 1), Err(Errno::ENOENT));
}

fn errors() {
    let mut rows = Rows::default();
    let listener = Listener::on(SYS_getppid, 0);
    let child = caller(|| assert_eq!(simple(SYS_getppid), Ok(3)));
    assert_eq!(listener.poll(20_000), IN);
    let full = Notification { flags: 1, ..Notification::default() };
    row!(rows, EINVAL, listener.ioctl(0xc050_2100, (&raw const full) as usize));
    row!(rows, EFAULT, listener.ioctl(0xc050_2100, 8));
    row!(rows, EFAULT, listener.ioctl(0xc018_2101, 8));
    row!(rows, EFAULT, listener.ioctl(0x4008_2102, 8));
    row!(rows, EINVAL, listener.ioctl(0x4008_2105, 0));
    row!(rows, EINVAL, listener.ioctl(0x4008_2104, 2));
    row!(rows, OK, listener.ioctl(0x4008_2104, 1));
    row!(rows, OK, listener.ioctl(0x4008_2104, 0));
    let told = listener.receive().unwrap();
    row!(rows, EINVAL, listener.send(Response { id: told.id, value: 0, error: 0, flags: 2 }));
    row!(rows, ENOENT, listener.answer(told.id + 7, 0));
    row!(
        rows,
        EINVAL,
        call(libc::SYS_read, [listener.0.as_raw_fd() as usize, (&raw const told) as usize, 8, 0, 0, 0])
    );
    row!(rows, OK, listener.answer(told.id, 3));
    child.ok();
    rows.finish();
}

fn flags_of_filters() {
    let mut rows = Rows::default();
    no_new_privileges();
    let filter = on(SYS_getuid, USER_NOTIF);
    let sizes = [0u16; 3];
    row!(rows, OK, call(libc::SYS_seccomp, [3, 0, sizes.as_ptr() as usize, 0, 0, 0]));
    // SAFETY: the kernel has written it.
    assert_eq!(unsafe { sizes.as_ptr().read_volatile() }, 80);
    row!(rows, OK, call(libc::SYS_seccomp, [2, 0, (&raw const USER_NOTIF_VALUE) as usize, 0, 0, 0]));
    row!(rows, EINVAL, install(&filter, TSYNC | NEW_LISTENER));
    row!(rows, EINVAL, install(&filter, WAIT_KILLABLE));
    row!(rows, EINVAL, install(&filter, 64));
    row!(rows, EFAULT, call(libc::SYS_seccomp, [1, NEW_LISTENER, 0, 0, 0, 0]));
    // Without a descriptor there is no filter.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through the calls.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let none = libc::rlimit { rlim_cur: 0, ..limit };
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &none) };
    row!(rows, EMFILE, install(&filter, NEW_LISTENER));
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert!(simple(SYS_getuid).is_ok());
    let fd = install(&filter, TSYNC | TSYNC_ESRCH | NEW_LISTENER | WAIT_KILLABLE).unwrap();
    row!(rows, OK, call(libc::SYS_fcntl, [fd, libc::F_GETFD as usize, 0, 0, 0, 0]));
    assert_eq!(
        call(libc::SYS_fcntl, [fd, libc::F_GETFD as usize, 0, 0, 0, 0]),
        Ok(libc::FD_CLOEXEC as usize)
    );
    let name = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    assert_eq!(name.to_str(), Some("anon_inode:seccomp notify"));
    let available = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap();
    assert_eq!(available.trim(), "kill_process kill_thread trap errno user_notif trace log allow");
    rows.finish();
}

static USER_NOTIF_VALUE: u32 = USER_NOTIF;

fn one_listener_of_a_chain() {
    let listener = Listener::on(SYS_getppid, 0);
    assert_eq!(install(&on(SYS_getuid, USER_NOTIF), NEW_LISTENER), Err(Errno::EBUSY));
    // Without a listener of its own a filter may say so, and is not answered.
    fork(|| {
        assert_eq!(install(&on(SYS_getuid, USER_NOTIF), 0), Ok(0));
        assert_eq!(simple(SYS_getuid), Err(Errno::ENOSYS));
    })
    .ok();
    drop(listener);
    let second = Listener::on(SYS_getuid, 0);
    let child = caller(|| assert_eq!(simple(SYS_getuid), Ok(9)));
    let told = second.receive().unwrap();
    assert_eq!(second.answer(told.id, 9), Ok(0));
    child.ok();
    assert_eq!(simple(SYS_getppid), Err(Errno::ENOSYS), "the first has nobody who listens");
}

fn closed_listener() {
    drop(Listener::on(SYS_getppid, 0));
    assert_eq!(simple(SYS_getppid), Err(Errno::ENOSYS));
}

fn closed_while_calls_wait() {
    let listener = Listener::on(SYS_getppid, 0);
    let ask = || {
        let fd = listener.0.as_raw_fd();
        caller(move || {
            // SAFETY: the child's own copy of the descriptor: it keeps the listener open.
            unsafe { libc::close(fd) };
            assert_eq!(simple(SYS_getppid), Err(Errno::ENOSYS));
        })
    };
    let children: Vec<_> = (0..5).map(|_| ask()).collect();
    // Some are taken up, some are not.
    listener.receive().unwrap();
    listener.receive().unwrap();
    children.iter().for_each(|child| until_it_sleeps(child.pid));
    drop(listener);
    children.into_iter().for_each(Child::ok);
}

fn nobody_left() {
    // The filter is a thread's, and its end the filter's.
    let listener = std::thread::spawn(|| Listener::on(SYS_getppid, 0)).join().unwrap();
    assert_eq!(listener.receive().map(|_| ()), Err(Errno::ENOENT));
    assert_eq!(listener.poll(20_000), HUP);
    // A process's, which nobody has waited for.
    let (ours, theirs) = socket::pair(libc::SOCK_STREAM);
    let child = fork(|| {
        let listener = Listener::on(SYS_getppid, 0);
        socket::send_files(&theirs, b"x", &[listener.0.as_raw_fd()]).unwrap();
    });
    let message = socket::receive(&ours.0, &mut [0], 64, 0).unwrap();
    let listener = Listener(message.files().remove(0).0);
    assert_eq!(listener.receive().map(|_| ()), Err(Errno::ENOENT));
    assert_eq!(listener.poll(20_000), HUP);
    child.ok();
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn signals_interrupt() {
    for (restart, taken) in [(false, false), (false, true), (true, false), (true, true)] {
        let listener = Listener::on(SYS_getppid, 0);
        let flags = if restart { libc::SA_RESTART } else { 0 };
        let child = caller(|| {
            signals::catch_with(libc::SIGUSR1, nothing, flags, &[]);
            let want = if restart { Ok(5) } else { Err(Errno::EINTR) };
            assert_eq!(simple(SYS_getppid), want);
        });
        let first = if taken { listener.receive().unwrap().id } else { 0 };
        assert_eq!(listener.poll(20_000), if taken { OUT } else { IN });
        until_it_sleeps(child.pid);
        child.kill(libc::SIGUSR1);
        if restart {
            // The call is made again, and is another one for the listener. What is not answered was given up.
            while listener.answer(listener.receive_next().id, 5) != Ok(0) {}
        }
        child.ok();
        assert_eq!(listener.answer(first, 1), Err(Errno::ENOENT));
        assert_eq!(listener.poll(0), 0);
        drop(listener);
    }
}

/// A call that was answered is not made again, however near its answer and a signal come.
fn answered_while_a_signal_comes() {
    if is_linux() {
        skip("an answer between a signal and its thread's end of the wait is lost there");
    }
    const CALLS: usize = 3_000;
    let listener = Listener::on(SYS_getppid, 0);
    let child = caller(|| {
        signals::catch_with(libc::SIGUSR1, nothing, libc::SA_RESTART, &[]);
        for call in 0..CALLS {
            assert_eq!(simple(SYS_getppid), Ok(call));
        }
    });
    let mut answered = 0;
    while answered < CALLS {
        let told = listener.receive_next();
        child.kill(libc::SIGUSR1);
        match listener.answer(told.id, answered as i64) {
            Ok(_) => answered += 1,
            Err(error) => assert_eq!(error, Errno::ENOENT, "given up, and made again"),
        }
    }
    child.ok();
}

fn answers_that_look_like_restarts() {
    let listener = Listener::on(SYS_getppid, 0);
    // SAFETY: takes nothing.
    let child = caller(|| assert_eq!((unsafe { libc::syscall(SYS_getppid) }, Errno::last_raw()), (-1, 512)));
    let told = listener.receive().unwrap();
    assert_eq!(listener.send(Response { id: told.id, error: -512, ..Response::default() }), Ok(0));
    child.ok();
}

fn only_kills_interrupt() {
    static CAUGHT: AtomicI32 = AtomicI32::new(0);
    extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        CAUGHT.fetch_add(1, SeqCst);
    }
    let listener = Listener::on(SYS_getppid, WAIT_KILLABLE);
    let child = caller(|| {
        signals::catch_with(libc::SIGUSR1, count, 0, &[]);
        assert_eq!(simple(SYS_getppid), Ok(6));
        assert_eq!(CAUGHT.load(SeqCst), 1);
        assert_eq!(simple(SYS_getppid), Err(Errno::EINTR), "not taken up");
        assert_eq!(CAUGHT.load(SeqCst), 2);
    });
    let told = listener.receive().unwrap();
    child.kill(libc::SIGUSR1);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(listener.is_valid(told.id), Ok(0));
    assert_eq!(listener.answer(told.id, 6), Ok(0));
    assert_eq!(listener.poll(20_000), IN);
    until_it_sleeps(child.pid);
    child.kill(libc::SIGUSR1);
    child.ok();
    // A signal that ends the process does so, whether it is SIGKILL or not.
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGUSR2] {
        let child = caller(|| {
            let _ = simple(SYS_getppid);
        });
        let told = listener.receive_next();
        child.kill(signal);
        assert_eq!(child.wait(), End::Signal(signal));
        assert_eq!(listener.answer(told.id, 0), Err(Errno::ENOENT));
    }
}

fn killed_while_waiting() {
    for taken in [false, true] {
        let listener = Listener::on(SYS_getppid, 0);
        let child = caller(|| {
            let _ = simple(SYS_getppid);
        });
        assert_eq!(listener.poll(20_000), IN);
        let told = taken.then(|| listener.receive().unwrap());
        until_it_sleeps(child.pid);
        child.kill(libc::SIGKILL);
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
        assert_eq!(listener.poll(0), 0);
        if let Some(told) = told {
            assert_eq!(listener.is_valid(told.id), Err(Errno::ENOENT));
        }
        drop(listener);
    }
}

fn listener_is_interrupted() {
    let listener = Listener::on(SYS_getppid, 0);
    let child = fork(|| {
        signals::catch_with(libc::SIGUSR1, nothing, 0, &[]);
        assert_eq!(listener.receive().map(|_| ()), Err(Errno::EINTR));
    });
    until_it_sleeps(child.pid);
    child.kill(libc::SIGUSR1);
    child.ok();
}

fn files_are_added() {
    let listener = Listener::on(SYS_getppid, 0);
    let (read, write) = std::io::pipe().unwrap();
    let child = caller(|| {
        drop((read.try_clone().unwrap(), write.try_clone().unwrap()));
        let first = simple(SYS_getppid).unwrap();
        assert_eq!(call(libc::SYS_write, [first, (&raw const first) as usize, 1, 0, 0, 0]), Ok(1));
        assert_eq!(call(libc::SYS_fcntl, [first, libc::F_GETFD as usize, 0, 0, 0, 0]), Ok(0));
        assert_eq!(call(libc::SYS_fcntl, [200, libc::F_GETFD as usize, 0, 0, 0, 0]), Ok(1));
        assert_eq!(call(libc::SYS_write, [200, (&raw const first) as usize, 1, 0, 0, 0]), Ok(1));
    });
    let told = listener.receive().unwrap();
    let file = AddFile { id: told.id, source: write.as_raw_fd() as u32, ..AddFile::default() };
    let fd = listener.add(file).unwrap();
    let at = AddFile { flags: 1, target: 200, target_flags: libc::O_CLOEXEC as u32, ..file };
    assert_eq!(listener.add(at), Ok(200));
    assert_eq!(listener.add(at), Ok(200), "what was there is closed");
    assert_eq!(listener.answer(told.id, fd as i64), Ok(0));
    child.ok();
}

fn file_is_the_answer() {
    let listener = Listener::on(SYS_getppid, 0);
    let null = std::fs::File::open("/dev/null").unwrap();
    let child = caller(|| {
        let fd = simple(SYS_getppid).unwrap();
        assert_eq!(std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().to_str(), Some("/dev/null"));
    });
    let told = listener.receive().unwrap();
    let file = AddFile { id: told.id, flags: 2, source: null.as_raw_fd() as u32, ..AddFile::default() };
    // A descriptor that cannot be had is no answer.
    assert_eq!(listener.add(AddFile { flags: 3, target: u32::MAX >> 1, ..file }), Err(Errno::EBADF));
    assert_eq!(listener.is_valid(told.id), Ok(0));
    let fd = listener.add(file).unwrap();
    assert!(fd > 2);
    let late = listener.answer(told.id, 0);
    assert!(matches!(late, Err(Errno::EINPROGRESS | Errno::ENOENT)), "{late:?}");
    child.ok();
}

fn files_that_are_refused() {
    let mut rows = Rows::default();
    let listener = Listener::on(SYS_getppid, 0);
    let child = caller(|| assert_eq!(simple(SYS_getppid), Ok(1)));
    assert_eq!(listener.poll(20_000), IN);
    let file = AddFile { id: 0, source: 1, ..AddFile::default() };
    row!(rows, ENOENT, listener.add(file));
    let told = listener.receive().unwrap();
    let file = AddFile { id: told.id, ..file };
    row!(rows, EBADF, listener.add(AddFile { source: 4000, ..file }));
    row!(rows, EINVAL, listener.add(AddFile { flags: 4, ..file }));
    row!(rows, EINVAL, listener.add(AddFile { target: 9, ..file }));
    row!(rows, EINVAL, listener.add(AddFile { target_flags: 1, ..file }));
    row!(rows, EFAULT, listener.ioctl(0x4018_2103, 8));
    // Sizes: older than the first, and with a tail that is used.
    let mut long = [file, file];
    row!(rows, EINVAL, listener.ioctl(0x4010_2103, long.as_ptr() as usize));
    row!(rows, E2BIG, listener.ioctl(0x4030_2103, long.as_ptr() as usize));
    long[1] = AddFile::default();
    row!(rows, OK, listener.ioctl(0x4030_2103, long.as_ptr() as usize).map(|_| 0));
    row!(rows, OK, listener.answer(told.id, 1));
    child.ok();
    row!(rows, ENOENT, listener.add(file));
    rows.finish();
}

/// Threads and processes that all ask at once, and two that answer: each gets its own answer.
fn many_callers() {
    const CALLERS: u64 = 24;
    const CALLS: u64 = 40;
    let listener = Listener::on(libc::SYS_getpriority, 0);
    let children: Vec<_> = (0..CALLERS)
        .map(|number| {
            caller(move || {
                for round in 0..CALLS {
                    let asked = number << 32 | round;
                    let answer = call(libc::SYS_getpriority, [asked as usize, 0, 0, 0, 0, 0]);
                    assert_eq!(answer, Ok(asked as usize + 1));
                }
            })
        })
        .collect();
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while answered.fetch_add(1, SeqCst) < CALLERS * CALLS {
                    let told = listener.receive().unwrap();
                    assert_eq!(listener.answer(told.id, told.arguments[0] as i64 + 1), Ok(0));
                }
            });
        }
    });
    children.into_iter().for_each(Child::ok);
    assert_eq!(listener.poll(0), 0);
}

fn all_threads() {
    fork(|| {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            wait.recv().unwrap();
            simple(SYS_getppid)
        });
        let listener = Listener::on(SYS_getppid, TSYNC | TSYNC_ESRCH);
        go.send(()).unwrap();
        let told = listener.receive().unwrap();
        assert_ne!(told.pid, pid() as u32, "a thread's number");
        assert_eq!(listener.answer(told.id, 77), Ok(0));
        assert_eq!(other.join().unwrap(), Ok(77));
    })
    .ok();
    // A thread with a filter of its own cannot follow: nothing is left of the listener.
    fork(|| {
        no_new_privileges();
        let (told, hear) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            assert_eq!(install(&on(SYS_getuid, ALLOW), 0), Ok(0));
            told.send(()).unwrap();
            wait.recv().unwrap();
        });
        hear.recv().unwrap();
        let flags = TSYNC | TSYNC_ESRCH | NEW_LISTENER;
        // SAFETY: makes a descriptor, which is closed at once: the lowest that is free.
        let free = unsafe {
            let free = libc::dup(1);
            libc::close(free);
            free
        };
        assert_eq!(install(&on(SYS_getppid, USER_NOTIF), flags), Err(Errno::ESRCH));
        // SAFETY: asks only.
        assert_eq!(unsafe { libc::fcntl(free, libc::F_GETFD) }, -1);
        assert!(simple(SYS_getppid).is_ok());
        go.send(()).unwrap();
        other.join().unwrap();
    })
    .ok();
}

fn polled_by_epoll() {
    let listener = Listener::on(SYS_getppid, 0);
    // SAFETY: makes a descriptor.
    let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(0)) };
    let mut event = libc::epoll_event { events: (IN | OUT) as u32, u64: 1 };
    // SAFETY: the structure lives through the calls.
    let control = unsafe {
        libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, listener.0.as_raw_fd(), &mut event)
    };
    check(control).unwrap();
    let wait = |timeout: i32| {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: as above.
        unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, timeout) };
        event.events as i16
    };
    assert_eq!(wait(0), 0);
    let child = caller(|| assert_eq!(simple(SYS_getppid), Ok(2)));
    assert_eq!(wait(20_000), IN);
    let told = listener.receive().unwrap();
    assert_eq!(wait(20_000), OUT);
    assert_eq!(listener.answer(told.id, 2), Ok(0));
    child.ok();
    assert_eq!(wait(0), 0);
}

fn a_bad_address_gives_back() {
    let listener = Listener::on(SYS_getppid, 0);
    let child = caller(|| assert_eq!(simple(SYS_getppid), Ok(8)));
    // All zeros can be read there, and nothing written.
    // SAFETY: a new mapping.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_eq!(listener.ioctl(0xc050_2100, page as usize), Err(Errno::EFAULT));
    assert_eq!(listener.poll(0), IN);
    let told = listener.receive().unwrap();
    assert_eq!(listener.answer(told.id, 8), Ok(0));
    child.ok();
}
