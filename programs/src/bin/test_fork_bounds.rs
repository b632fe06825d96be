//! What others may do between the begin and the end of a clone(2), and what is left of those that have ended.
//!
//! A userfaultfd holds the call where it writes the number of the child's descriptor.

use std::time::Duration;

use libc::{SYS_clone3, SYS_pidfd_open, SYS_pidfd_send_signal};
use roundtable_programs::cgroup::{self, Group};
use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::inet::poll;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::Map;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, check, settles};
use roundtable_programs::uffd::{MISSING, Uffd};
use roundtable_programs::{Errno, tests};

tests! { numbers_in_one_place, parents_that_are_moved, descriptors_of_nobody, threads_that_are_known_do_not_count, children_that_are_known_do_not_count }

const THREAD: usize = libc::O_EXCL as usize;
const NOBODY: u32 = 12_346;

/// clone3(2) of a process that waits to be killed, whose descriptor's number is to be written there.
fn clone_with_descriptor(address: usize) -> Answer {
    let signal = libc::SIGCHLD as u64;
    let arguments = [libc::CLONE_PIDFD as u64, address as u64, 0, 0, signal, 0, 0, 0, 0, 0, 0];
    let child = call(SYS_clone3, [arguments.as_ptr() as usize, 88, 0, 0, 0, 0])?;
    if child == 0 {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    Ok(child)
}

/// The descriptor and the number of a child are not to be written to the same word.
fn numbers_in_one_place() {
    let mut word = 0u32;
    let at = &raw mut word as u64;
    let flags = (libc::CLONE_PIDFD | libc::CLONE_PARENT_SETTID) as u64;
    let arguments = [flags, at, 0, at, libc::SIGCHLD as u64, 0, 0, 0, 0, 0, 0];
    let child = call(SYS_clone3, [arguments.as_ptr() as usize, 88, 0, 0, 0, 0]);
    if child == Ok(0) {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    assert_eq!(child, Err(Errno::EINVAL));
}

/// A page that is not there, and who is told of it.
fn absent_page() -> (Map, Uffd) {
    let page = Map::anonymous(PAGE);
    let uffd = Uffd::new(0);
    uffd.register(&page, MISSING).expect("UFFDIO_REGISTER");
    (page, uffd)
}

/// Who is moved while a child of it is made does not leave the child behind.
fn parents_that_are_moved() {
    let (from, to) = (Group::new(""), Group::new(""));
    let shared = Shared::new();
    let parent = fork(|| {
        shared.wait(3, 1);
        let (page, uffd) = absent_page();
        let address = page.address;
        let maker = std::thread::spawn(move || clone_with_descriptor(address).expect("clone3"));
        assert_eq!(uffd.next().address, address);
        shared.set(0, 1);
        shared.wait(1, 1);
        uffd.copy(address, &[0; PAGE], 0).expect("UFFDIO_COPY");
        shared.set(2, maker.join().expect("join") as u32);
        shared.wait(1, 2);
    });
    from.attach(parent.pid).expect("attach");
    shared.set(3, 1);
    shared.wait(0, 1);
    to.attach(parent.pid).expect("attach");
    shared.set(1, 1);
    assert!(settles(Duration::from_secs(20), || shared.get(2) != 0));
    let child = shared.get(2) as i32;
    assert_eq!(cgroup::read(&format!("/proc/{child}/cgroup")), Ok(to.line()));
    assert_eq!(from.read("cgroup.procs"), "");
    // SAFETY: takes integers.
    unsafe { libc::kill(child, libc::SIGKILL) };
    shared.set(1, 2);
    parent.ok();
}

/// The descriptor of a child that is being made, and then is not: on Linux nobody sees it.
fn descriptors_of_nobody() {
    in_child(|| {
        let (page, uffd) = absent_page();
        let address = page.address;
        let lowest = Fd::open("/dev/null", libc::O_RDONLY).unwrap();
        let number = lowest.raw();
        drop(lowest);
        let maker = std::thread::spawn(move || clone_with_descriptor(address));
        assert_eq!(uffd.next().address, address);
        // SAFETY: take integers.
        let early = check(unsafe { libc::dup(number) });
        // SAFETY: as above.
        let _ = check(unsafe { libc::close(number) });
        let other = Fd::open("/dev/null", libc::O_RDONLY).unwrap();
        if let Ok(early) = early {
            let early = Fd::own(early);
            assert_ne!(poll(&early.0, libc::POLLIN, 0) & libc::POLLIN, 0, "nothing is to be waited for");
            let kill = [early.raw() as usize, libc::SIGKILL as usize, 0, 0, 0, 0];
            assert_eq!(call(SYS_pidfd_send_signal, kill), Err(Errno::ESRCH));
        }
        drop(page);
        uffd.wake(address, PAGE).unwrap();
        assert_eq!(maker.join().unwrap(), Err(Errno::EFAULT));
        // SAFETY: takes integers.
        assert_eq!(check(unsafe { libc::fcntl(other.raw(), libc::F_GETFD) }), Ok(libc::FD_CLOEXEC as usize));
    });
}

/// A user who may have few threads.
fn become_user_of_few() {
    let limit = libc::rlimit { rlim_cur: 20, rlim_max: 20 };
    // SAFETY: the limit is only read; the other takes an integer.
    unsafe {
        check(libc::setrlimit(libc::RLIMIT_NPROC, &limit)).expect("setrlimit");
        check(libc::setuid(NOBODY)).expect("setuid");
    }
}

fn open(number: i32) -> Fd {
    Fd::own(call(SYS_pidfd_open, [number as usize, THREAD, 0, 0, 0, 0]).expect("pidfd_open"))
}

/// Anybody may keep a descriptor of a thread. It is no thread of its user's for that.
fn threads_that_are_known_do_not_count() {
    in_child(|| {
        become_user_of_few();
        let mut kept = Vec::new();
        for round in 0..60 {
            // SAFETY: takes nothing.
            let thread = std::thread::Builder::new().spawn(|| open(unsafe { libc::gettid() }));
            kept.push(thread.unwrap_or_else(|error| panic!("thread {round}: {error}")).join().unwrap());
        }
    });
}

/// Nor is a child that nobody waits for.
fn children_that_are_known_do_not_count() {
    in_child(|| {
        become_user_of_few();
        // SAFETY: ignores a signal.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let mut kept = Vec::new();
        for _ in 0..60 {
            let (end, begin) = pipe(0);
            let child = fork(|| _ = end.read(&mut [0])).release();
            let fd = open(child);
            begin.write(&[0]).unwrap();
            assert!(settles(Duration::from_secs(20), || poll(&fd.0, libc::POLLIN, 0) & libc::POLLHUP != 0));
            kept.push(fd);
        }
    });
}
