//! Signals without a handler, and signals for which there is no room.

use std::os::unix::fs::DirBuilderExt;

use libc::{SIG_BLOCK, SIG_DFL, SIGCONT, SIGUSR1};
use roundtable_programs::child::{self, fork};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::place::become_user;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, pid};
use roundtable_programs::{Errno, procfs, signals, tests};

tests! { a_default_sigcont_ends_no_wait, a_handler_of_sigcont_does, a_default_sigcont_is_discarded, kill_finds_no_queue_full,
kill_is_queued_while_there_is_room, a_core_is_told_of_where_there_is_one, ends_that_no_signal_tells_of }

static TIMEOUT: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 400_000_000 };

type Wait = fn() -> Answer;

/// What each of the calls that no signal restarts says, when SIGCONT comes while it waits, or its time is over.
fn waits() -> [(&'static str, Wait); 3] {
    fn epoll() -> Answer {
        let epoll = call(libc::SYS_epoll_create1, [0; 6])?;
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        call(libc::SYS_epoll_wait, [epoll, &raw mut event as usize, 1, 400, 0, 0])
    }
    fn signal() -> Answer {
        let set = signals::set_of(&[SIGUSR1]);
        let at = [&raw const set as usize, &raw const TIMEOUT as usize];
        call(libc::SYS_rt_sigtimedwait, [at[0], 0, at[1], 8, 0, 0])
    }
    fn semaphore() -> Answer {
        let set = call(libc::SYS_semget, [libc::IPC_PRIVATE as usize, 1, 0o600, 0, 0, 0])?;
        let operation = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        let at = [&raw const operation as usize, &raw const TIMEOUT as usize];
        let answer = call(libc::SYS_semtimedop, [set, at[0], 1, at[1], 0, 0]);
        call(libc::SYS_semctl, [set, 0, libc::IPC_RMID as usize, 0, 0, 0])?;
        answer
    }
    [("epoll_wait", epoll), ("rt_sigtimedwait", signal), ("semtimedop", semaphore)]
}

/// What the call says in a child that gets SIGCONT while it sleeps.
fn continued(wait: Wait, prepare: fn()) -> Answer {
    let shared = Shared::new();
    let child = fork(|| {
        signals::mask(SIG_BLOCK, &[SIGUSR1]);
        prepare();
        shared.add(1);
        let answer = wait();
        shared.set(0, answer.map_or_else(|error| error as u32, |_| 0));
    });
    shared.wait(1, 1);
    procfs::wait_for_sleep(child.pid);
    child.kill(SIGCONT);
    child.ok();
    match shared.get(0) {
        0 => Ok(0),
        error => Err(Errno::from_raw(error as i32)),
    }
}

fn a_default_sigcont_ends_no_wait() {
    for ((name, wait), expected) in waits().into_iter().zip([Ok(0), Err(Errno::EAGAIN), Err(Errno::EAGAIN)]) {
        assert_eq!(continued(wait, || {}), expected, "{name}");
    }
}

fn a_handler_of_sigcont_does() {
    for (name, wait) in waits() {
        // The child's time may be over before: then there is nothing to be seen.
        let said = continued(wait, || signals::catch(SIGCONT));
        assert!(matches!(said, Err(Errno::EINTR | Errno::EAGAIN) | Ok(0)), "{name}: {said:?}");
    }
}

fn is_pending(signal: i32) -> bool {
    let mut set = signals::set_of(&[]);
    // SAFETY: the set is written by the call, and read then.
    unsafe {
        check(libc::sigpending(&mut set)).unwrap();
        libc::sigismember(&set, signal) == 1
    }
}

fn a_default_sigcont_is_discarded() {
    signals::catch(SIGCONT);
    signals::mask(SIG_BLOCK, &[SIGCONT]);
    signals::raise(SIGCONT);
    assert!(is_pending(SIGCONT), "blocked");
    // SAFETY: takes integers.
    unsafe { libc::signal(SIGCONT, SIG_DFL) };
    assert!(!is_pending(SIGCONT), "the default is to go on, and that it does");
    signals::raise(SIGCONT);
    assert!(is_pending(SIGCONT), "a blocked one waits");
    signals::mask(libc::SIG_UNBLOCK, &[SIGCONT]);
    assert!(!is_pending(SIGCONT));
    assert_eq!(signals::count(), 0);
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the limit is only read.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

fn queue(signal: i32) -> Answer {
    // SAFETY: a siginfo of zeros is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    (info.si_signo, info.si_code) = (signal, libc::SI_QUEUE);
    call(libc::SYS_rt_sigqueueinfo, [pid() as usize, signal as usize, &raw const info as usize, 0, 0, 0])
}

fn tkill(signal: i32) -> Answer {
    call(libc::SYS_tkill, [pid() as usize, signal as usize, 0, 0, 0, 0])
}

/// kill(2) sends a signal that it has no room for without what it would say.
fn kill_finds_no_queue_full() {
    child::in_child(|| {
        become_user(1000, 1000);
        limit(libc::RLIMIT_SIGPENDING, 0);
        let signal = libc::SIGRTMIN() + 3;
        signals::catch(signal);
        signals::mask(SIG_BLOCK, &[signal]);
        assert_eq!((queue(signal), tkill(signal)), (Err(Errno::EAGAIN), Err(Errno::EAGAIN)));
        assert!(!is_pending(signal));
        // However often: one waits.
        for _ in 0..3 {
            signals::kill(pid(), signal).unwrap();
        }
        assert!(is_pending(signal));
        signals::mask(libc::SIG_UNBLOCK, &[signal]);
        assert_eq!(signals::count(), 1);
        assert_eq!(signals::SIGNAL.load(std::sync::atomic::Ordering::SeqCst), signal);
        assert_eq!(signals::CODE.load(std::sync::atomic::Ordering::SeqCst), libc::SI_USER);
        assert_eq!(signals::PID.load(std::sync::atomic::Ordering::SeqCst), 0, "of nobody");
    });
}

fn kill_is_queued_while_there_is_room() {
    child::in_child(|| {
        become_user(1000, 1000);
        limit(libc::RLIMIT_SIGPENDING, 2);
        let signal = libc::SIGRTMIN() + 3;
        signals::catch(signal);
        signals::mask(SIG_BLOCK, &[signal]);
        for _ in 0..5 {
            signals::kill(pid(), signal).unwrap();
        }
        signals::mask(libc::SIG_UNBLOCK, &[signal]);
        assert_eq!(signals::count(), 2);
        assert_eq!(signals::PID.load(std::sync::atomic::Ordering::SeqCst), pid());
    });
}

/// The status says that a core was written if one was.
fn a_core_is_told_of_where_there_is_one() {
    let directory = format!("/tmp/cores-{}", pid());
    std::fs::DirBuilder::new().mode(0o777).create(&directory).unwrap();
    let child = fork(|| {
        std::env::set_current_dir(&directory).unwrap();
        limit(libc::RLIMIT_CORE, libc::RLIM_INFINITY);
        // SAFETY: takes an integer.
        unsafe { libc::raise(libc::SIGQUIT) };
    });
    let mut status = 0;
    let pid = child.release();
    // SAFETY: `status` lives through the call.
    check(unsafe { libc::waitpid(pid, &mut status, 0) }).unwrap();
    assert_eq!(status & 0x7f, libc::SIGQUIT);
    let written = std::fs::read_dir(&directory).unwrap().count() > 0;
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(libc::WCOREDUMP(status), written);
}

/// clone(2) takes any number for the signal of the end; what is none is not sent.
fn ends_that_no_signal_tells_of() {
    for signal in [65, 200, 255] {
        // SAFETY: as fork(2): this process has one thread.
        let child = check(unsafe { libc::syscall(libc::SYS_clone, signal, 0, 0, 0, 0) });
        if child == Ok(0) {
            // SAFETY: ends the child.
            unsafe { libc::_exit(5) };
        }
        let child = child.expect("clone") as i32;
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        let waited = check(unsafe { libc::waitpid(child, &mut status, libc::__WCLONE) });
        assert_eq!((waited, status), (Ok(child as usize), 5 << 8), "{signal}");
    }
}
