//! fcntl(2) beside locks: leases, signals about files that are ready, notes of directories, and who gets them.

use std::fs;
use std::time::{Duration, Instant};

use roundtable_programs::child::fork;
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::wait_info;
use roundtable_programs::place::{Place, mount};
use roundtable_programs::procfs;
use roundtable_programs::rows::Rows;
use roundtable_programs::signals;
use roundtable_programs::sys::{check, pid, settles};
use roundtable_programs::{Errno, row, tests};

tests! { lease_rules, broken_by_writers, broken_by_readers, not_waited_for, given_up, taken_away: 60, several_readers, truncation_breaks,
ends_with_the_file, set_twice_at_once, ready_pipes, ready_sockets, signals_of_ones_own, owners, owners_that_are_gone, files_that_are_not_told_of, notes, notes_once, note_rules, read_only_meanwhile }

const SETLEASE: i32 = 1024;
const GETLEASE: i32 = 1025;
const NOTIFY: i32 = 1026;
const SETSIG: i32 = 10;
const GETSIG: i32 = 11;
const SETOWN_EX: i32 = 15;
const GETOWN_EX: i32 = 16;
const ASYNC: i32 = libc::O_ASYNC;

fn fcntl(fd: &Fd, command: i32, argument: usize) -> Answer {
    call(libc::SYS_fcntl, [fd.raw() as usize, command as usize, argument, 0, 0, 0])
}

fn lease(fd: &Fd, kind: i32) -> Answer {
    fcntl(fd, SETLEASE, kind as usize)
}

fn held(fd: &Fd) -> i32 {
    fcntl(fd, GETLEASE, 0).unwrap() as i32
}

/// A file of the test's own.
fn file(name: &str) -> String {
    let path = format!("/tmp/leases-{name}");
    fs::write(&path, "x").unwrap();
    path
}

fn open(path: &str, flags: i32) -> Fd {
    Fd::open(path, flags).unwrap()
}

fn lease_rules() {
    let path = file("rules");
    let mut rows = Rows::default();
    let read = open(&path, libc::O_RDONLY);
    assert_eq!(held(&read), libc::F_UNLCK);
    row!(rows, EAGAIN, lease(&read, libc::F_UNLCK));
    row!(rows, EINVAL, lease(&read, 7));
    row!(rows, OK, lease(&read, libc::F_RDLCK));
    assert_eq!(held(&read), libc::F_RDLCK);
    row!(rows, OK, lease(&read, libc::F_WRLCK));
    assert_eq!(held(&read), libc::F_WRLCK);
    row!(rows, OK, lease(&read, libc::F_RDLCK));
    row!(rows, OK, lease(&read, libc::F_UNLCK));
    row!(rows, EAGAIN, lease(&read, libc::F_UNLCK));
    // Who may write keeps readers' leases away, even its own.
    let both = open(&path, libc::O_RDWR);
    row!(rows, EAGAIN, lease(&both, libc::F_RDLCK));
    row!(rows, EAGAIN, lease(&read, libc::F_RDLCK));
    row!(rows, EAGAIN, lease(&both, libc::F_WRLCK));
    drop(read);
    row!(rows, OK, lease(&both, libc::F_WRLCK));
    drop(both);
    row!(rows, EINVAL, lease(&open("/tmp", libc::O_RDONLY), libc::F_RDLCK));
    row!(rows, EINVAL, lease(&pipe(0).0, libc::F_RDLCK));
    let foreign = fork(|| {
        let read = open(&path, libc::O_RDONLY);
        // SAFETY: takes an integer.
        check(unsafe { libc::setuid(1000) }).unwrap();
        assert_eq!(lease(&read, libc::F_RDLCK), Err(Errno::EACCES));
    });
    foreign.ok();
    rows.finish();
    fs::remove_file(&path).unwrap();
}

/// One child opens the file while this process has a lease; what the signal says, and what the lease is by then.
fn broken(name: &str, own: i32, kind: i32, other: i32) -> (i32, i32, i32) {
    let path = file(name);
    signals::mask(libc::SIG_BLOCK, &[libc::SIGRTMIN()]);
    let fd = open(&path, own);
    fcntl(&fd, SETSIG, libc::SIGRTMIN() as usize).unwrap();
    lease(&fd, kind).unwrap();
    let child = fork(|| drop(open(&path, other)));
    let info = wait_info(libc::SIGRTMIN());
    let now = held(&fd);
    // The child waits for this.
    procfs::wait_for_sleep(child.pid);
    lease(&fd, now).unwrap();
    child.ok();
    let after = held(&fd);
    fs::remove_file(&path).unwrap();
    // POLL_MSG, and the descriptor.
    assert_eq!(info.si_code, 3);
    // SAFETY: the signal is about a file: its descriptor is behind the band.
    let told = unsafe { *(&raw const info).cast::<i32>().add(6) };
    assert_eq!(told, fd.raw());
    (now, after, info.si_signo - libc::SIGRTMIN())
}

fn broken_by_writers() {
    assert_eq!(
        broken("writer", libc::O_RDONLY, libc::F_RDLCK, libc::O_WRONLY),
        (libc::F_UNLCK, libc::F_UNLCK, 0)
    );
    assert_eq!(
        broken("writer", libc::O_RDONLY, libc::F_WRLCK, libc::O_RDWR),
        (libc::F_UNLCK, libc::F_UNLCK, 0)
    );
}

fn broken_by_readers() {
    // A reader only asks for what it needs.
    assert_eq!(
        broken("reader", libc::O_RDONLY, libc::F_WRLCK, libc::O_RDONLY),
        (libc::F_RDLCK, libc::F_RDLCK, 0)
    );
    let path = file("readers");
    let fd = open(&path, libc::O_RDONLY);
    lease(&fd, libc::F_RDLCK).unwrap();
    fork(|| drop(open(&path, libc::O_RDONLY))).ok();
    assert_eq!(held(&fd), libc::F_RDLCK);
    fs::remove_file(&path).unwrap();
}

fn not_waited_for() {
    let path = file("impatient");
    signals::mask(libc::SIG_BLOCK, &[libc::SIGIO]);
    let fd = open(&path, libc::O_RDONLY);
    lease(&fd, libc::F_WRLCK).unwrap();
    let child = fork(|| {
        let opened = Fd::open(&path, libc::O_RDONLY | libc::O_NONBLOCK).map(|_| 0);
        assert_eq!(opened, Err(Errno::EWOULDBLOCK));
    });
    child.ok();
    assert_eq!(wait_info(libc::SIGIO).si_code, 0x80);
    // It has been asked to come down, and is not asked again.
    assert_eq!(held(&fd), libc::F_RDLCK);
    assert_eq!(lease(&fd, libc::F_WRLCK), Ok(0));
    assert_eq!(held(&fd), libc::F_RDLCK);
    fs::remove_file(&path).unwrap();
}

fn given_up() {
    let path = file("interrupted");
    let fd = open(&path, libc::O_RDONLY);
    signals::mask(libc::SIG_BLOCK, &[libc::SIGIO]);
    lease(&fd, libc::F_WRLCK).unwrap();
    let child = fork(|| {
        signals::catch_with(libc::SIGUSR1, nothing, 0, &[]);
        assert_eq!(Fd::open(&path, libc::O_WRONLY).map(|_| 0), Err(Errno::EINTR));
    });
    wait_info(libc::SIGIO);
    procfs::wait_for_sleep(child.pid);
    child.kill(libc::SIGUSR1);
    child.ok();
    fs::remove_file(&path).unwrap();
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn taken_away() {
    let setting = "/proc/sys/fs/lease-break-time";
    let before = fs::read_to_string(setting).unwrap();
    fs::write(setting, "1").unwrap();
    let path = file("late");
    signals::mask(libc::SIG_BLOCK, &[libc::SIGIO]);
    let fd = open(&path, libc::O_RDONLY);
    lease(&fd, libc::F_RDLCK).unwrap();
    let began = Instant::now();
    let child = fork(|| drop(open(&path, libc::O_WRONLY)));
    child.ok();
    assert!(began.elapsed() >= Duration::from_millis(900));
    assert_eq!(held(&fd), libc::F_UNLCK);
    fs::write(setting, before).unwrap();
    fs::remove_file(&path).unwrap();
}

fn several_readers() {
    let path = file("several");
    signals::mask(libc::SIG_BLOCK, &[libc::SIGIO]);
    let (a, b) = (open(&path, libc::O_RDONLY), open(&path, libc::O_RDONLY));
    lease(&a, libc::F_RDLCK).unwrap();
    lease(&b, libc::F_RDLCK).unwrap();
    assert_eq!(lease(&b, libc::F_WRLCK), Err(Errno::EAGAIN));
    let child = fork(|| drop(open(&path, libc::O_WRONLY)));
    wait_info(libc::SIGIO);
    procfs::wait_for_sleep(child.pid);
    lease(&a, libc::F_UNLCK).unwrap();
    procfs::wait_for_sleep(child.pid);
    assert_eq!(held(&b), libc::F_UNLCK);
    lease(&b, libc::F_UNLCK).unwrap();
    child.ok();
    fs::remove_file(&path).unwrap();
}

fn truncation_breaks() {
    let path = file("truncated");
    signals::mask(libc::SIG_BLOCK, &[libc::SIGIO]);
    let fd = open(&path, libc::O_RDONLY);
    lease(&fd, libc::F_RDLCK).unwrap();
    let name = roundtable_programs::sys::c_string(&path);
    // SAFETY: the string is there.
    let child = fork(|| assert_eq!(check(unsafe { libc::truncate(name.as_ptr(), 0) }), Ok(0)));
    wait_info(libc::SIGIO);
    procfs::wait_for_sleep(child.pid);
    lease(&fd, libc::F_UNLCK).unwrap();
    child.ok();
    fs::remove_file(&path).unwrap();
}

fn ends_with_the_file() {
    let path = file("closed");
    let fd = open(&path, libc::O_RDONLY);
    lease(&fd, libc::F_WRLCK).unwrap();
    let copy = Fd::own(call(libc::SYS_dup, [fd.raw() as usize, 0, 0, 0, 0, 0]).unwrap());
    drop(fd);
    assert_eq!(held(&copy), libc::F_WRLCK);
    drop(copy);
    drop(open(&path, libc::O_WRONLY));
    fs::remove_file(&path).unwrap();
}

/// Turns on signals for what is ready, and sends them here.
fn asynchronous(fd: &Fd) {
    fcntl(fd, libc::F_SETOWN, pid() as usize).unwrap();
    let flags = fcntl(fd, libc::F_GETFL, 0).unwrap();
    fcntl(fd, libc::F_SETFL, flags | ASYNC as usize).unwrap();
}

fn is_pending(signal: i32) -> bool {
    // SAFETY: the set lives through the calls.
    unsafe {
        let mut set = signals::set_of(&[]);
        libc::sigpending(&mut set);
        libc::sigismember(&set, signal) == 1
    }
}

/// One open file has one lease, however many threads ask for it at once: none is left when it is given up.
fn set_twice_at_once() {
    let path = file("twice");
    let fd = open(&path, libc::O_RDONLY);
    let together = std::sync::Barrier::new(2);
    for _ in 0..500 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    together.wait();
                    assert_eq!(lease(&fd, libc::F_RDLCK), Ok(0));
                });
            }
        });
        assert_eq!(lease(&fd, libc::F_UNLCK), Ok(0));
        assert_eq!(Fd::open(&path, libc::O_WRONLY | libc::O_NONBLOCK).map(|_| 0), Ok(0));
    }
    fs::remove_file(&path).unwrap();
}

fn ready_pipes() {
    signals::mask(libc::SIG_BLOCK, &[libc::SIGIO]);
    let (read, write) = pipe(0);
    asynchronous(&read);
    assert!(!is_pending(libc::SIGIO));
    write.write(b"x").unwrap();
    assert_eq!(wait_info(libc::SIGIO).si_code, 0x80);
    read.read(&mut [0; 4]).unwrap();
    // Off again, nothing is told.
    fcntl(&read, libc::F_SETFL, 0).unwrap();
    write.write(b"x").unwrap();
    fork(|| ()).ok();
    assert!(!is_pending(libc::SIGIO));
}

fn ready_sockets() {
    signals::mask(libc::SIG_BLOCK, &[libc::SIGIO]);
    let mut pair = [0i32; 2];
    // SAFETY: the array lives through the call.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) }).unwrap();
    let [a, b] = pair.map(|fd| Fd::own(fd as usize));
    // By ioctl(2), too.
    fcntl(&a, libc::F_SETOWN, pid() as usize).unwrap();
    const FIOASYNC: usize = 0x5452;
    call(libc::SYS_ioctl, [a.raw() as usize, FIOASYNC, (&raw const ON) as usize, 0, 0, 0]).unwrap();
    assert_ne!(fcntl(&a, libc::F_GETFL, 0).unwrap() as i32 & ASYNC, 0);
    b.write(b"x").unwrap();
    wait_info(libc::SIGIO);
}

static ON: i32 = 1;

fn signals_of_ones_own() {
    let signal = libc::SIGRTMIN() + 1;
    signals::mask(libc::SIG_BLOCK, &[signal]);
    let (read, write) = pipe(0);
    fcntl(&read, SETSIG, signal as usize).unwrap();
    assert_eq!(fcntl(&read, GETSIG, 0), Ok(signal as usize));
    assert_eq!(fcntl(&read, SETSIG, 65), Err(Errno::EINVAL));
    asynchronous(&read);
    assert_eq!(fcntl(&read, GETSIG, 0), Ok(signal as usize));
    write.write(b"x").unwrap();
    let info = wait_info(signal);
    // POLL_IN.
    assert_eq!(info.si_code, 1);
    // SAFETY: the signal is about a file.
    let (band, fd) =
        unsafe { (*(&raw const info).cast::<i64>().add(2), *(&raw const info).cast::<i32>().add(6)) };
    assert_eq!((band, fd), (0x41, read.raw()));
}

fn owners() {
    let (read, _write) = pipe(0);
    let mut rows = Rows::default();
    assert_eq!(fcntl(&read, libc::F_GETOWN, 0), Ok(0));
    row!(rows, ESRCH, fcntl(&read, libc::F_SETOWN, 0x3f_ffff));
    row!(rows, OK, fcntl(&read, libc::F_SETOWN, pid() as usize));
    assert_eq!(fcntl(&read, libc::F_GETOWN, 0), Ok(pid() as usize));
    let mut owner = [0i32, pid()];
    row!(rows, OK, fcntl(&read, SETOWN_EX, owner.as_ptr() as usize));
    owner = [9, pid()];
    row!(rows, EINVAL, fcntl(&read, SETOWN_EX, owner.as_ptr() as usize));
    row!(rows, OK, fcntl(&read, GETOWN_EX, owner.as_mut_ptr() as usize));
    assert_eq!(owner, [0, pid()]);
    // SAFETY: takes nothing.
    let group = unsafe { libc::getpgrp() };
    owner = [2, group];
    row!(rows, OK, fcntl(&read, SETOWN_EX, owner.as_ptr() as usize));
    owner = [0, 0];
    row!(rows, OK, fcntl(&read, GETOWN_EX, owner.as_mut_ptr() as usize));
    assert_eq!(owner, [2, group]);
    row!(rows, EFAULT, fcntl(&read, GETOWN_EX, 8));
    row!(rows, OK, fcntl(&read, libc::F_SETOWN, 0));
    assert_eq!(fcntl(&read, libc::F_GETOWN, 0), Ok(0));
    rows.finish();
}

fn owners_that_are_gone() {
    let (read, write) = pipe(0);
    let child = fork(|| ());
    fcntl(&read, libc::F_SETOWN, child.pid as usize).unwrap();
    child.ok();
    assert_eq!(fcntl(&read, libc::F_GETOWN, 0), Ok(0));
    let flags = fcntl(&read, libc::F_GETFL, 0).unwrap();
    fcntl(&read, libc::F_SETFL, flags | ASYNC as usize).unwrap();
    write.write(b"x").unwrap();
}

fn directory(name: &str) -> String {
    let path = format!("/tmp/leases-directory-{name}");
    let _ = fs::remove_dir_all(&path);
    fs::create_dir(&path).unwrap();
    path
}

const ACCESS: usize = 1;
const MODIFY: usize = 2;
const CREATE: usize = 4;
const DELETE: usize = 8;
const RENAME: usize = 0x10;
const ATTRIB: usize = 0x20;
const MULTISHOT: usize = 0x8000_0000;

fn notes() {
    let signal = libc::SIGRTMIN() + 2;
    signals::mask(libc::SIG_BLOCK, &[signal]);
    let path = directory("notes");
    let inside = format!("{path}/x");
    let told = |mask: usize, happens: &dyn Fn()| {
        let fd = open(&path, libc::O_RDONLY);
        fcntl(&fd, SETSIG, signal as usize).unwrap();
        fcntl(&fd, NOTIFY, mask | MULTISHOT).unwrap();
        happens();
        let told = is_pending(signal);
        while is_pending(signal) {
            let info = wait_info(signal);
            // POLL_MSG.
            assert_eq!(info.si_code, 3);
        }
        told
    };
    let write = || fs::write(&inside, "y").unwrap();
    assert!(told(CREATE, &write));
    assert!(!told(CREATE, &write));
    assert!(told(MODIFY, &write));
    assert!(told(ACCESS, &|| drop(fs::read(&inside).unwrap())));
    assert!(!told(MODIFY, &|| drop(fs::read(&inside).unwrap())));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    assert!(told(ATTRIB, &|| fs::set_permissions(&inside, fs::Permissions::clone(&mode)).unwrap()));
    let other = format!("{path}/y");
    assert!(told(RENAME, &|| fs::rename(&inside, &other).unwrap()));
    assert!(told(DELETE, &|| fs::remove_file(&other).unwrap()));
    fs::remove_dir(&path).unwrap();
}

fn notes_once() {
    let signal = libc::SIGRTMIN() + 2;
    signals::mask(libc::SIG_BLOCK, &[signal]);
    let path = directory("once");
    let fd = open(&path, libc::O_RDONLY);
    fcntl(&fd, SETSIG, signal as usize).unwrap();
    fcntl(&fd, NOTIFY, CREATE).unwrap();
    fs::write(format!("{path}/x"), "").unwrap();
    wait_info(signal);
    fs::write(format!("{path}/y"), "").unwrap();
    assert!(!is_pending(signal));
    // Nothing more once it is taken back or closed.
    fcntl(&fd, NOTIFY, CREATE | MULTISHOT).unwrap();
    fcntl(&fd, NOTIFY, 0).unwrap();
    fs::write(format!("{path}/z"), "").unwrap();
    fcntl(&fd, NOTIFY, DELETE | MULTISHOT).unwrap();
    drop(fd);
    fs::remove_dir_all(&path).unwrap();
    assert!(!is_pending(signal));
}

fn note_rules() {
    let mut rows = Rows::default();
    let path = file("not-a-directory");
    row!(rows, ENOTDIR, fcntl(&open(&path, libc::O_RDONLY), NOTIFY, CREATE));
    row!(rows, EBADF, fcntl(&open("/tmp", libc::O_PATH), NOTIFY, CREATE));
    row!(rows, OK, fcntl(&open("/tmp", libc::O_RDONLY), NOTIFY, 0));
    rows.finish();
    fs::remove_file(&path).unwrap();
    assert!(settles(Duration::from_secs(1), || true));
}

/// O_ASYNC is for what comes in from outside: pipes, sockets, terminals, inotify. To others it means nothing.
fn files_that_are_not_told_of() {
    const FIOASYNC: usize = 0x5452;
    let make = |number, argument| Fd::own(call(number, [argument, 0, 0, 0, 0, 0]).unwrap());
    let cases: [(&str, Fd, bool); 5] = [
        ("eventfd", make(libc::SYS_eventfd2, 0), false),
        ("epoll", make(libc::SYS_epoll_create1, 0), false),
        ("timerfd", make(libc::SYS_timerfd_create, libc::CLOCK_MONOTONIC as usize), false),
        ("inotify", make(libc::SYS_inotify_init1, 0), true),
        ("pipe", pipe(0).0, true),
    ];
    let mut rows = Rows::default();
    for (what, fd, told) in &cases {
        let is_on = || fcntl(fd, libc::F_GETFL, 0).unwrap() as i32 & ASYNC != 0;
        let flags = fcntl(fd, libc::F_GETFL, 0).unwrap();
        row!(rows, OK, fcntl(fd, libc::F_SETFL, flags | ASYNC as usize));
        assert_eq!(is_on(), *told, "{what}");
        row!(rows, OK, fcntl(fd, libc::F_SETFL, flags));
        assert!(!is_on(), "{what}");
        let on = 1i32;
        let answer = call(libc::SYS_ioctl, [fd.raw() as usize, FIOASYNC, (&raw const on) as usize, 0, 0, 0]);
        assert_eq!(answer, if *told { Ok(0) } else { Err(Errno::ENOTTY) }, "{what}");
    }
    rows.finish();
}

/// Who waits for a lease to write counts as a writer: the file system does not become read-only behind its back.
fn read_only_meanwhile() {
    let place = Place::new("");
    let root = place.path("");
    let root = root.trim_end_matches('/');
    let remount = |flags: libc::c_ulong| mount("", root, "", libc::MS_REMOUNT | flags, "");
    signals::mask(libc::SIG_BLOCK, &[libc::SIGRTMIN()]);
    let path = place.path("file");
    fs::write(&path, "text").unwrap();
    let by_open = || drop(open(&path, libc::O_RDWR));
    let by_truncate = || roundtable_programs::place::truncate(&path, 1).unwrap();
    let ways: [&dyn Fn(); 2] = [&by_open, &by_truncate];
    for way in ways {
        let fd = open(&path, libc::O_RDONLY);
        fcntl(&fd, SETSIG, libc::SIGRTMIN() as usize).unwrap();
        lease(&fd, libc::F_RDLCK).unwrap();
        let child = fork(way);
        wait_info(libc::SIGRTMIN());
        assert_eq!(remount(libc::MS_RDONLY), Err(Errno::EBUSY));
        assert_eq!(remount(libc::MS_BIND | libc::MS_RDONLY), Err(Errno::EBUSY));
        lease(&fd, libc::F_UNLCK).unwrap();
        child.ok();
        drop(fd);
        remount(libc::MS_RDONLY).unwrap();
        remount(0).unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 1);
}
