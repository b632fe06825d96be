//! PID namespaces: numbers, the first process and what it is for, and /proc.

use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use roundtable_programs::child::{Child, End, fork, in_child, waitpid};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW};
use roundtable_programs::namespaces::{
    NEWNS, NEWPID, NEWUSER, NEWUTS, as_first, link, open, pidfd, setns, unshare, wait_info,
};
use roundtable_programs::procfs::status_text;
use roundtable_programs::rows::Rows;
use roundtable_programs::signals;
use roundtable_programs::sys::{PAGE, c_string, check, pid};
use roundtable_programs::{Errno, row, tests};

tests! { numbers, numbers_in_proc, end_takes_all_along, signals_from_within, signals_from_outside, orphans, no_more_after_the_end,
own_proc, ways_in, groups_and_sessions, threads, every_process, senders, flags, nested, translation, credentials_of_sockets,
what_ipc_tells, tracers, no_more_from_halfway, runaways }

fn parent() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::getppid() }
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

fn numbers() {
    in_child(|| {
        let own = pid();
        let before = link("pid");
        let child = as_first(0, || {
            assert_eq!((pid(), parent()), (1, 0));
            // SAFETY: takes nothing.
            assert_eq!(unsafe { libc::gettid() }, 1);
            let next = fork(|| assert_eq!((pid(), parent()), (2, 1)));
            assert_eq!(next.pid, 2);
            let number = next.release();
            assert_eq!(waitpid(-1, 0), Ok((number, End::Code(0))));
            let another = waiting();
            assert_eq!(another.pid, 3);
            another.end();
            assert_eq!(waitpid(77, 0), Err(Errno::ECHILD));
            assert_eq!(signals::kill(77, 0), Err(Errno::ESRCH));
        });
        assert!(child.pid > own || child.pid > 1);
        assert_eq!(link("pid"), before);
        assert_ne!(link("pid_for_children"), before);
        let number = child.release();
        assert_eq!(waitpid(number, 0), Ok((number, End::Code(0))));
    });
}

fn numbers_in_proc() {
    in_child(|| {
        let child = as_first(0, || {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        });
        assert_eq!(status_text(child.pid, "NSpid"), format!("{}\t1", child.pid));
        assert_eq!(status_text(child.pid, "NStgid"), format!("{}\t1", child.pid));
        assert_eq!(status_text(child.pid, "Pid"), child.pid.to_string());
        assert_eq!(status_text(child.pid, "PPid"), pid().to_string());
        child.end();
    });
}

fn end_takes_all_along() {
    in_child(|| {
        let (mut read, write) = std::io::pipe().unwrap();
        let child = as_first(0, || {
            for _ in 0..20 {
                waiting().release();
            }
            // One that has ended and nobody has waited for, and children of children.
            fork(|| ()).release();
            fork(|| {
                waiting().release();
                waiting().release();
                loop {
                    // SAFETY: takes nothing.
                    unsafe { libc::pause() };
                }
            })
            .release();
        });
        drop(write);
        child.ok();
        // All that had the other end are gone by now.
        let mut rest = Vec::new();
        read.read_to_end(&mut rest).unwrap();
    });
}

fn signals_from_within() {
    in_child(|| {
        let child = as_first(0, || {
            signals::catch(libc::SIGUSR1);
            let sender = fork(|| {
                for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV] {
                    assert_eq!(signals::kill(1, signal), Ok(0));
                }
                assert_eq!(signals::kill(1, libc::SIGUSR1), Ok(0));
            });
            sender.ok();
            assert_eq!(signals::count(), 1);
            signals::raise(libc::SIGTERM);
            signals::raise(libc::SIGKILL);
        });
        child.ok();
    });
}

fn signals_from_outside() {
    in_child(|| {
        let (told, tell) = pipe(0);
        let child = as_first(0, || {
            tell.write(b"x").unwrap();
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        // Without a handler, only these two come through.
        child.kill(libc::SIGTERM);
        child.kill(libc::SIGSTOP);
        assert_eq!(waitpid(child.pid, libc::WUNTRACED), Ok((child.pid, End::Stopped(libc::SIGSTOP))));
        child.kill(libc::SIGCONT);
        child.kill(libc::SIGKILL);
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    });
}

fn orphans() {
    in_child(|| {
        let child = as_first(0, || {
            let (told, tell) = pipe(0);
            let between = fork(|| {
                fork(|| {
                    while parent() != 1 {
                        std::thread::yield_now();
                    }
                    tell.write(b"x").unwrap();
                })
                .release();
            });
            between.ok();
            assert_eq!(told.read(&mut [0; 1]), Ok(1));
            assert_eq!(waitpid(-1, 0), Ok((3, End::Code(0))));
        });
        child.ok();
    });
}

fn no_more_after_the_end() {
    in_child(|| {
        as_first(0, || ()).ok();
        // SAFETY: the child, if there is one, ends at once.
        let result = unsafe {
            match libc::fork() {
                0 => libc::_exit(0),
                result => check(result),
            }
        };
        assert_eq!(result, Err(Errno::ENOMEM));
    });
}

/// A child that is half made when the first process of its namespace ends does not come to be.
fn no_more_from_halfway() {
    const API: usize = 0xc018_aa3f;
    const REGISTER: usize = 0xc020_aa00;
    const ZEROPAGE: usize = 0xc020_aa04;
    static FIRST: AtomicI32 = AtomicI32::new(0);
    in_child(|| {
        let place = Map::new(PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
        let at = place.address;
        let uffd = call(libc::SYS_userfaultfd, [libc::O_CLOEXEC as usize, 0, 0, 0, 0, 0]).unwrap();
        let ioctl = move |command: usize, words: &mut [u64]| {
            call(libc::SYS_ioctl, [uffd, command, words.as_mut_ptr() as usize, 0, 0, 0]).unwrap()
        };
        ioctl(API, &mut [0xaa, 0, 0]);
        ioctl(REGISTER, &mut [at as u64, PAGE as u64, 1, 0]);
        let helper = std::thread::spawn(move || {
            // The descriptor of the child is to be written: the child has its numbers, and nobody knows it yet.
            let mut message = [0u8; 32];
            assert_eq!(call(libc::SYS_read, [uffd, message.as_mut_ptr() as usize, 32, 0, 0, 0]), Ok(32));
            let first = FIRST.load(Ordering::SeqCst);
            assert_eq!(signals::kill(first, libc::SIGKILL), Ok(0));
            // Ours ends before the child is there; Linux's waits for whoever has a number, and would not end before.
            let gone = (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                waitpid(first, libc::WNOHANG) == Ok((first, End::Signal(libc::SIGKILL)))
            });
            ioctl(ZEROPAGE, &mut [at as u64, PAGE as u64, 0, 0]);
            gone
        });
        let first = as_first(0, || {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        });
        FIRST.store(first.release(), Ordering::SeqCst);
        let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
        let made = call(libc::SYS_clone, [flags as usize, 0, at, 0, 0, 0]);
        if made == Ok(0) {
            // SAFETY: ends the child that there should not be.
            unsafe { libc::_exit(0) };
        }
        assert_eq!(made, Err(Errno::ENOMEM));
        if !helper.join().unwrap() {
            let first = FIRST.load(Ordering::SeqCst);
            assert_eq!(waitpid(first, 0), Ok((first, End::Signal(libc::SIGKILL))));
        }
    });
}

/// Processes that are gone as soon as they have made another one: a signal to all, or to their group, ends them all.
fn runaways() {
    fn run_away() -> ! {
        loop {
            // SAFETY: the child does the same, the parent ends.
            unsafe {
                if libc::fork() != 0 {
                    libc::_exit(0);
                }
            }
        }
    }
    in_child(|| {
        let child = as_first(0, || {
            for group in [false, true] {
                let leader = fork(|| {
                    // SAFETY: takes integers.
                    check(unsafe { libc::setpgid(0, 0) }).unwrap();
                    for _ in 0..16 {
                        // SAFETY: the children run away.
                        if unsafe { libc::fork() } == 0 {
                            run_away();
                        }
                    }
                });
                let target = if group { -leader.pid } else { -1 };
                let pgid = leader.release();
                assert_eq!(waitpid(pgid, 0), Ok((pgid, End::Code(0))));
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!(signals::kill(target, libc::SIGKILL), Ok(0));
                // All of them are ours by now. None is left to make another.
                while waitpid(-1, 0).is_ok() {}
                assert_eq!(signals::kill(target, 0), Err(Errno::ESRCH));
            }
        });
        child.ok();
    });
}

fn mount_proc() {
    let (kind, at, none) = (c_string("proc"), c_string("/proc"), c_string("none"));
    // SAFETY: the strings are there.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let root = c_string("/");
        check(libc::mount(none.as_ptr(), root.as_ptr(), std::ptr::null(), private, std::ptr::null()))
            .unwrap();
        check(libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null())).unwrap();
    }
}

fn listed() -> Vec<i32> {
    let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let mut all: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all
}

fn own_proc() {
    in_child(|| {
        let outside = as_first(NEWNS, || {
            mount_proc();
            let child = waiting();
            assert_eq!(listed(), [1, 2]);
            assert_eq!(fs::read_link("/proc/self").unwrap().to_str(), Some("1"));
            assert_eq!(fs::read_link("/proc/thread-self").unwrap().to_str(), Some("1/task/1"));
            assert_eq!(status_text(2, "PPid"), "1");
            assert_eq!(status_text(2, "NSpid"), "2");
            roundtable_programs::procfs::wait_for_sleep(2);
            let stat = fs::read_to_string("/proc/2/stat").unwrap();
            assert!(stat.starts_with("2 (") && stat.contains(") S 1 "), "{stat}");
            assert!(fs::metadata("/proc/3").is_err());
            assert!(fs::metadata("/proc/2/task/2").is_ok());
            child.end();
            assert_eq!(listed(), [1]);
            // What belongs to no process is as everywhere.
            assert!(fs::read_to_string("/proc/meminfo").unwrap().contains("MemTotal"));
        });
        outside.ok();
    });
}

fn ways_in() {
    in_child(|| {
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = as_first(NEWUTS, || {
            tell.write(b"x").unwrap();
            let _ = asked.read(&mut [0; 1]);
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        // The other children come to be where their parent is.
        setns(&open("self", "pid"), NEWPID).unwrap();
        in_child(|| {
            let mut rows = Rows::default();
            let theirs = open(&child.pid.to_string(), "pid");
            row!(rows, EINVAL, setns(&theirs, NEWUTS));
            row!(rows, OK, setns(&theirs, NEWPID));
            fork(|| assert_eq!((pid(), parent()), (2, 0))).ok();
            // Back is above: its children can be made there again.
            row!(rows, OK, setns(&open("self", "pid"), NEWPID));
            fork(|| assert_ne!(parent(), 0)).ok();
            rows.finish();
        });
        in_child(|| {
            let mut rows = Rows::default();
            let fd = pidfd(child.pid);
            row!(rows, EINVAL, setns(&fd, 0));
            row!(rows, OK, setns(&fd, NEWPID | NEWUTS));
            fork(|| assert_eq!(pid(), 3)).ok();
            // Nobody goes up from inside.
            fork(|| {
                assert_eq!(setns(&fd, NEWPID), Ok(0));
            })
            .ok();
            rows.finish();
        });
        let up = open("self", "pid");
        as_inside(&child, || assert_eq!(setns(&up, NEWPID), Err(Errno::EINVAL)));
        ask.write(b"x").unwrap();
        child.ok();
    });
}

/// Runs the closure in the PID namespace of a child's.
fn as_inside(child: &Child, run: impl FnOnce()) {
    in_child(|| {
        setns(&open(&child.pid.to_string(), "pid"), NEWPID).unwrap();
        in_child(run);
    });
}

fn groups_and_sessions() {
    in_child(|| {
        let child = as_first(0, || {
            // SAFETY: take integers.
            unsafe {
                // Those of outside have no number here.
                assert_eq!((libc::getpgrp(), libc::getsid(0)), (0, 0));
                assert_eq!(libc::setsid(), 1);
                assert_eq!((libc::getpgrp(), libc::getsid(0), libc::getpgid(1)), (1, 1, 1));
                let member = waiting();
                assert_eq!(libc::getpgid(member.pid), 1);
                assert_eq!(libc::setpgid(member.pid, 0), 0);
                assert_eq!(libc::getpgid(member.pid), 2);
                assert_eq!(signals::kill(-2, libc::SIGKILL), Ok(0));
                assert_eq!(waitpid(-2, 0), Ok((2, End::Signal(libc::SIGKILL))));
                assert_eq!(signals::kill(-2, 0), Err(Errno::ESRCH));
                member.release();
            }
        });
        child.ok();
    });
}

fn threads() {
    in_child(|| {
        let child = as_first(0, || {
            // SAFETY: takes nothing.
            let number = std::thread::spawn(|| unsafe { libc::gettid() }).join().unwrap();
            assert_eq!(number, 2);
        });
        child.ok();
        unshare(NEWUTS).unwrap();
        // A thread would have its number from elsewhere than its process.
        let flags = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        assert_eq!(call(libc::SYS_clone, [flags as usize, 0, 0, 0, 0, 0]), Err(Errno::EINVAL));
    });
}

fn every_process() {
    in_child(|| {
        let child = as_first(0, || {
            let (a, b) = (waiting(), waiting());
            assert_eq!(signals::kill(-1, libc::SIGKILL), Ok(0));
            assert_eq!(a.wait(), End::Signal(libc::SIGKILL));
            assert_eq!(b.wait(), End::Signal(libc::SIGKILL));
        });
        child.ok();
    });
}

fn senders() {
    in_child(|| {
        signals::mask(libc::SIG_BLOCK, &[libc::SIGCHLD, libc::SIGUSR1]);
        let (told, tell) = pipe(0);
        let child = as_first(0, || {
            tell.write(b"x").unwrap();
            // One from above has no number.
            let info = wait_info(libc::SIGUSR1);
            // SAFETY: the signal is one of kill(2).
            assert_eq!(unsafe { info.si_pid() }, 0);
            fork(|| assert_eq!(signals::kill(1, libc::SIGUSR1), Ok(0))).ok();
            // SAFETY: as above.
            assert_eq!(unsafe { wait_info(libc::SIGUSR1).si_pid() }, 2);
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        child.kill(libc::SIGUSR1);
        let info = wait_info(libc::SIGCHLD);
        // SAFETY: the signal is one of a child's end.
        assert_eq!(unsafe { info.si_pid() }, child.pid);
        child.ok();
    });
}

fn flags() {
    let clone = |flags: i32| call(libc::SYS_clone, [flags as usize, 0, 0, 0, 0, 0]);
    let shared = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let mut rows = Rows::default();
    row!(rows, EINVAL, clone(shared | NEWPID));
    row!(rows, EINVAL, clone(shared | NEWUSER));
    row!(rows, EINVAL, clone(libc::CLONE_FS | NEWNS));
    row!(rows, EINVAL, clone(libc::CLONE_FS | NEWUSER));
    row!(rows, EINVAL, clone(libc::CLONE_SYSVSEM | libc::CLONE_NEWIPC));
    rows.finish();
    in_child(|| {
        // A second time before there is a child: the first would have no first process.
        unshare(NEWPID).unwrap();
        assert_eq!(unshare(NEWPID), Err(Errno::EINVAL));
        // By clone(2) the child is there at once.
        let result = call(libc::SYS_clone, [(NEWUTS | libc::SIGCHLD) as usize, 0, 0, 0, 0, 0]).unwrap();
        if result == 0 {
            // SAFETY: ends the process.
            unsafe { libc::_exit(if pid() == 1 { 0 } else { 1 }) };
        }
        assert_eq!(waitpid(result as i32, 0), Ok((result as i32, End::Code(0))));
    });
}

fn nested() {
    in_child(|| {
        let (told, tell) = pipe(0);
        let child = as_first(0, || {
            let inner = as_first(0, || {
                assert_eq!(pid(), 1);
                tell.write(b"x").unwrap();
                loop {
                    // SAFETY: takes nothing.
                    unsafe { libc::pause() };
                }
            });
            assert_eq!(inner.pid, 2);
            // Its own children cannot end it, those of above can.
            assert_eq!(inner.wait(), End::Signal(libc::SIGKILL));
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        let deepest = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.pid)).ok();
        let deepest =
            deepest.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| child_of(child.pid));
        assert_eq!(status_text(deepest, "NSpid"), format!("{deepest}\t2\t1"));
        assert_eq!(signals::kill(deepest, libc::SIGKILL), Ok(0));
        child.ok();
    });
}

fn child_of(parent: i32) -> i32 {
    let all = listed();
    let is_child = |pid: &&i32| {
        fs::metadata(format!("/proc/{pid}")).is_ok() && status_text(**pid, "PPid") == parent.to_string()
    };
    *all.iter().find(is_child).expect("a child")
}

fn translation() {
    const GET_PID_FROM: usize = 0x8004_b706;
    const GET_PID_IN: usize = 0x8004_b708;
    in_child(|| {
        let child = as_first(0, || {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        });
        let theirs = open(&child.pid.to_string(), "pid");
        let ask = |command: usize, number: usize| {
            call(libc::SYS_ioctl, [theirs.raw() as usize, command, number, 0, 0, 0])
        };
        assert_eq!(ask(GET_PID_FROM, 1), Ok(child.pid as usize));
        assert_eq!(ask(GET_PID_IN, child.pid as usize), Ok(1));
        assert_eq!(ask(GET_PID_IN, pid() as usize), Err(Errno::ESRCH));
        assert_eq!(ask(GET_PID_FROM, 2), Err(Errno::ESRCH));
        child.end();
    });
}

fn what_ipc_tells() {
    in_child(|| {
        as_first(libc::CLONE_NEWIPC, || {
            // SAFETY: all take integers, and structures that live through the calls.
            unsafe {
                let segment = check(libc::shmget(libc::IPC_PRIVATE, 4096, 0o600)).unwrap() as i32;
                let set = check(libc::semget(libc::IPC_PRIVATE, 1, 0o600)).unwrap() as i32;
                let child = fork(|| {
                    let mut add = libc::sembuf { sem_num: 0, sem_op: 1, sem_flg: 0 };
                    check(libc::semop(set, &mut add, 1)).unwrap();
                    assert_ne!(libc::shmat(segment, std::ptr::null(), 0) as isize, -1);
                });
                child.ok();
                let mut status: libc::shmid_ds = std::mem::zeroed();
                check(libc::shmctl(segment, libc::IPC_STAT, &mut status)).unwrap();
                assert_eq!((status.shm_cpid, status.shm_nattch), (1, 0));
                let last = waiting();
                last.end();
                assert_eq!(libc::semctl(set, 0, libc::GETVAL), 1);
                let own = fork(|| ());
                own.ok();
                let mut take = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
                check(libc::semop(set, &mut take, 1)).unwrap();
                assert_eq!(libc::semctl(set, 0, libc::GETPID), 1);
            }
        })
        .ok();
    });
}

fn tracers() {
    in_child(|| {
        as_first(0, || {
            // SAFETY: all take integers, and a word that lives through the calls.
            unsafe {
                let child = fork(|| {
                    libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                    libc::raise(libc::SIGSTOP);
                    fork(|| ()).ok();
                });
                let number = child.release();
                assert_eq!((number, waitpid(number, 0)), (2, Ok((2, End::Stopped(libc::SIGSTOP)))));
                check(libc::ptrace(libc::PTRACE_SETOPTIONS, number, 0, libc::PTRACE_O_TRACEFORK)).unwrap();
                check(libc::ptrace(libc::PTRACE_CONT, number, 0, 0)).unwrap();
                assert_eq!(waitpid(number, 0), Ok((2, End::Stopped(libc::SIGTRAP))));
                let mut message = 0u64;
                check(libc::ptrace(libc::PTRACE_GETEVENTMSG, number, 0, &raw mut message)).unwrap();
                assert_eq!(message, 3);
                signals::kill(number, libc::SIGKILL).unwrap();
                signals::kill(3, libc::SIGKILL).unwrap();
            }
        })
        .ok();
    });
}

fn peer(fd: &Fd) -> libc::ucred {
    let mut out = libc::ucred { pid: -1, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as u32;
    // SAFETY: both live through the call.
    let result = unsafe {
        libc::getsockopt(fd.raw(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut out).cast(), &mut length)
    };
    check(result).unwrap();
    out
}

fn credentials_of_sockets() {
    in_child(|| {
        let name = "/tmp/socket-of-namespaces";
        let _ = fs::remove_file(name);
        let listener = std::os::unix::net::UnixListener::bind(name).unwrap();
        let own = pid();
        let child = as_first(0, || {
            let stream = std::os::unix::net::UnixStream::connect(name).unwrap();
            let fd = Fd::own(std::os::fd::IntoRawFd::into_raw_fd(stream) as usize);
            // Who listens is above, and has no number here.
            assert_eq!(peer(&fd).pid, 0);
            fd.read(&mut [0; 1]).unwrap();
        });
        let (stream, _) = listener.accept().unwrap();
        let fd = Fd::own(std::os::fd::IntoRawFd::into_raw_fd(stream) as usize);
        assert_eq!(peer(&fd).pid, child.pid);
        assert_ne!(child.pid, own);
        fd.write(b"x").unwrap();
        child.ok();
        fs::remove_file(name).unwrap();
    });
}
