//! seccomp(2): filters, what they do to system calls, and who has them.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use libc::{SYS_getpid, SYS_getppid, SYS_getuid, SYS_prctl, SYS_seccomp};
use roundtable_programs::child::{Child, End, fork, fork_code};
use roundtable_programs::kinds::call;
use roundtable_programs::rows::Rows;
use roundtable_programs::seccomp::*;
use roundtable_programs::sys::pid;
use roundtable_programs::{Errno, procfs, row, tests};

tests! { errno_and_allow, errors_of_restarts, strict_mode, kill_actions, threads_killed_alone, few_lines_in_the_log, trap, arguments, strongest_answer, inheritance, all_threads, privileges,
programs_that_are_refused, actions_and_modes, arithmetic }

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;

/// A child that has the filter and then runs on.
fn filtered(filter: Vec<Instruction>, run: impl FnOnce()) -> Child {
    fork(move || {
        no_new_privileges();
        assert_eq!(install(&filter, 0), Ok(0));
        run();
    })
}

fn errno_and_allow() {
    filtered(on(SYS_getppid, ERRNO | 7), || {
        assert_eq!(simple(SYS_getppid), Err(Errno::E2BIG));
        assert!(simple(SYS_getpid).is_ok());
    })
    .ok();
    filtered(on(SYS_getppid, ERRNO), || assert_eq!(simple(SYS_getppid), Ok(0))).ok();
    // The number of an error ends at 4095.
    filtered(on(SYS_getppid, ERRNO | 0xffff), || {
        // SAFETY: takes nothing.
        let errno = unsafe { libc::syscall(SYS_getppid) };
        assert_eq!((errno, Errno::last_raw()), (-1, 4095));
    })
    .ok();
    filtered(on(SYS_getppid, LOG), || assert!(simple(SYS_getppid).is_ok())).ok();
    filtered(on(SYS_getppid, TRACE | 5), || assert_eq!(simple(SYS_getppid), Err(Errno::ENOSYS))).ok();
    // What is no call at all is seen as well.
    filtered(on(-1, ERRNO | 1), || assert_eq!(simple(-1), Err(Errno::EPERM))).ok();
}

/// Errors that stand, within the kernel, for a call that a signal has interrupted: from a filter they are errors like any other.
fn errors_of_restarts() {
    for error in 511..=517 {
        filtered(on(SYS_getppid, ERRNO | error), || {
            // With every signal kept out nothing but the error is to be done about.
            // SAFETY: the sets are locals.
            let got = unsafe {
                let mut all: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&mut all);
                libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
                libc::syscall(SYS_getppid)
            };
            assert_eq!((got, Errno::last_raw()), (-1, error as i32));
        })
        .ok();
    }
}

/// The last thread's end is the process's, whatever the filter has done to the first.
fn threads_killed_alone() {
    let end_after = |first_ends: fn()| {
        let child = fork(|| {
            let first = pid();
            std::thread::spawn(move || {
                let state = || std::fs::read_to_string(format!("/proc/self/task/{first}/stat")).unwrap();
                while !state().contains(") Z ") {
                    std::thread::yield_now();
                }
                // SAFETY: ends this thread only, which is the last.
                unsafe { libc::syscall(libc::SYS_exit, 3) };
            });
            first_ends();
        });
        child.wait()
    };
    let killed = || {
        no_new_privileges();
        assert_eq!(install(&on(SYS_getppid, KILL_THREAD), 0), Ok(0));
        let _ = simple(SYS_getppid);
    };
    assert_eq!(end_after(killed), End::Code(3));
    // SAFETY: ends the first thread only.
    assert_eq!(end_after(|| _ = unsafe { libc::syscall(libc::SYS_exit, 5) }), End::Code(3));
}

/// SECCOMP_RET_LOG asks for a line. Who asks all the time does not fill the log.
fn few_lines_in_the_log() {
    let begin = std::time::Instant::now();
    filtered(on(SYS_getppid, LOG), || (0..3000).for_each(|_| _ = simple(SYS_getppid))).ok();
    let seconds = begin.elapsed().as_secs() as usize;
    let mut text = vec![0u8; 1 << 18];
    const READ_ALL: usize = 3;
    let length = call(libc::SYS_syslog, [READ_ALL, text.as_mut_ptr() as usize, text.len(), 0, 0, 0]).unwrap();
    let lines =
        String::from_utf8_lossy(&text[..length]).lines().filter(|line| line.contains("seccomp: ")).count();
    assert!(lines <= 10 * (seconds + 2), "{lines} lines in {seconds} s");
}

fn strict_mode() {
    let child = fork_code(|| {
        assert_eq!(call(SYS_prctl, [libc::PR_SET_SECCOMP as usize, 1, 0, 0, 0, 0]), Ok(0));
        // SAFETY: writes nothing, then ends this thread only, which is the last.
        unsafe {
            libc::syscall(libc::SYS_write, -1, 0, 0);
            libc::syscall(libc::SYS_exit, 3);
        }
        0
    });
    assert_eq!(child.wait(), End::Code(3));
    let child = fork_code(|| {
        assert_eq!(call(SYS_seccomp, [0, 0, 0, 0, 0, 0]), Ok(0));
        simple(SYS_getpid).map_or(1, |_| 2)
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
}

fn kill_actions() {
    for action in [KILL_PROCESS, KILL_THREAD, 0x1234_0000] {
        let child = filtered(on(SYS_getppid, action), || {
            let _ = simple(SYS_getppid);
        });
        assert_eq!(child.wait(), End::Signal(libc::SIGSYS), "{action:#x}");
    }
    // One thread of two goes alone.
    let child = filtered(on(SYS_getppid, KILL_THREAD), || {
        static ARRIVED: AtomicI32 = AtomicI32::new(0);
        std::thread::spawn(|| {
            // SAFETY: takes nothing.
            ARRIVED.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            let _ = simple(SYS_getppid);
            ARRIVED.store(-1, Ordering::SeqCst);
        });
        let gone = || {
            let tid = ARRIVED.load(Ordering::SeqCst);
            tid > 0 && !std::path::Path::new(&format!("/proc/self/task/{tid}")).exists()
        };
        while !gone() {
            assert_ne!(ARRIVED.load(Ordering::SeqCst), -1);
            std::thread::yield_now();
        }
    });
    child.ok();
}

static CODE: AtomicU64 = AtomicU64::new(0);
static NUMBER: AtomicU64 = AtomicU64::new(0);

extern "C" fn note_trap(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo has 128 bytes.
    let words = unsafe { info.cast::<[i32; 8]>().read() };
    CODE.store((words[1] as u64) << 32 | words[2] as u64, Ordering::SeqCst);
    NUMBER.store((words[7] as u32 as u64) << 32 | words[6] as u64, Ordering::SeqCst);
}

fn trap() {
    filtered(on(SYS_getppid, TRAP | 77), || {
        // SAFETY: the handler stores to atomics only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note_trap as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut());
        }
        // The register has what the call was made with.
        assert_eq!(simple(SYS_getppid), Ok(SYS_getppid as usize));
        assert_eq!(CODE.load(Ordering::SeqCst), 77 << 32 | 1, "si_errno and SYS_SECCOMP");
        assert_eq!(
            NUMBER.load(Ordering::SeqCst),
            0xc000_003e << 32 | SYS_getppid as u64,
            "si_arch, si_syscall"
        );
    })
    .ok();
    // Blocked or ignored, it kills.
    let child = filtered(on(SYS_getppid, TRAP), || {
        // SAFETY: sets a disposition.
        unsafe { libc::signal(libc::SIGSYS, libc::SIG_IGN) };
        let _ = simple(SYS_getppid);
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGSYS));
}

fn arguments() {
    // Both halves of the second argument of getcwd, and the architecture.
    let filter = vec![
        op(LOAD, 0),
        branch(EQUAL, libc::SYS_getcwd as u32, 0, 7),
        op(LOAD, 4),
        branch(EQUAL, 0xc000_003e, 0, 5),
        op(LOAD, 16 + 8),
        branch(EQUAL, 0x1234, 0, 3),
        op(LOAD, 16 + 12),
        branch(EQUAL, 7, 0, 1),
        op(RETURN, ERRNO | 33),
        op(RETURN, ALLOW),
    ];
    filtered(filter, || {
        let getcwd = |length| call(libc::SYS_getcwd, [0, length, 0, 0, 0, 0]);
        assert_eq!(getcwd(7 << 32 | 0x1234), Err(Errno::EDOM));
        assert_ne!(getcwd(8 << 32 | 0x1234), Err(Errno::EDOM));
        assert_ne!(getcwd(0x1234), Err(Errno::EDOM));
    })
    .ok();
}

fn strongest_answer() {
    filtered(on(SYS_getppid, ERRNO | 1), || {
        // What an older filter refuses stays refused, and of equals the younger one's data count.
        assert_eq!(install(&on(SYS_getppid, LOG), 0), Ok(0));
        assert_eq!(simple(SYS_getppid), Err(Errno::EPERM));
        assert_eq!(install(&on(SYS_getppid, ERRNO | 2), 0), Ok(0));
        assert_eq!(simple(SYS_getppid), Err(Errno::ENOENT));
        assert_eq!(install(&on(SYS_getppid, TRACE), 0), Ok(0));
        assert_eq!(simple(SYS_getppid), Err(Errno::ENOENT));
        assert_eq!(procfs::status(pid(), "Seccomp_filters"), 4);
    })
    .ok();
}

fn inheritance() {
    filtered(on(SYS_getppid, ERRNO | 1), || {
        fork(|| {
            assert_eq!(simple(SYS_getppid), Err(Errno::EPERM));
            assert_eq!(install(&on(SYS_getuid, ERRNO | 1), 0), Ok(0));
        })
        .ok();
        assert_eq!(simple(SYS_getuid), Ok(0), "the child's own filter");
        std::thread::spawn(|| assert_eq!(simple(SYS_getppid), Err(Errno::EPERM))).join().unwrap();
    })
    .ok();
}

fn all_threads() {
    fork(|| {
        no_new_privileges();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            wait.recv().unwrap();
            let privileges = call(SYS_prctl, [libc::PR_GET_NO_NEW_PRIVS as usize, 0, 0, 0, 0, 0]);
            (simple(SYS_getppid), privileges)
        });
        assert_eq!(install(&on(SYS_getppid, ERRNO | 1), TSYNC), Ok(0));
        go.send(()).unwrap();
        assert_eq!(other.join().unwrap(), (Err(Errno::EPERM), Ok(1)));
    })
    .ok();
    // A thread with a filter of its own cannot follow.
    fork(|| {
        no_new_privileges();
        let (told, hear) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            assert_eq!(install(&on(SYS_getuid, ERRNO | 1), 0), Ok(0));
            // SAFETY: takes nothing.
            told.send(unsafe { libc::gettid() }).unwrap();
            wait.recv().unwrap();
            assert!(simple(SYS_getppid).is_ok());
        });
        let tid = hear.recv().unwrap();
        assert_eq!(install(&on(SYS_getppid, ERRNO | 1), TSYNC), Ok(tid as usize));
        assert_eq!(install(&on(SYS_getppid, ERRNO | 1), TSYNC | TSYNC_ESRCH), Err(Errno::ESRCH));
        assert!(simple(SYS_getppid).is_ok(), "nothing was installed");
        go.send(()).unwrap();
        other.join().unwrap();
    })
    .ok();
}

fn privileges() {
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(install(&on(SYS_getppid, ERRNO | 1), 0), Err(Errno::EACCES));
        no_new_privileges();
        assert_eq!(install(&on(SYS_getppid, ERRNO | 1), 0), Ok(0));
    })
    .ok();
    fork(|| assert_eq!(install(&on(SYS_getppid, ERRNO | 1), 0), Ok(0), "root needs no promise")).ok();
}

fn programs_that_are_refused() {
    let mut rows = Rows::default();
    no_new_privileges();
    let end = op(RETURN, ALLOW);
    row!(rows, EINVAL, install(&[], 0));
    row!(rows, EINVAL, install(&[op(LOAD, 0)], 0));
    row!(rows, EINVAL, install(&[op(LOAD, 2), end], 0));
    row!(rows, EINVAL, install(&[op(LOAD, 64), end], 0));
    // Bytes and halves, loads relative to X, and remainders are not for system calls.
    row!(rows, EINVAL, install(&[op(0x30, 0), end], 0));
    row!(rows, EINVAL, install(&[op(0x28, 0), end], 0));
    row!(rows, EINVAL, install(&[op(0x40, 0), end], 0));
    row!(rows, EINVAL, install(&[op(0x94, 3), end], 0));
    row!(rows, EINVAL, install(&[op(0x34, 0), end], 0));
    row!(rows, EINVAL, install(&[op(0x64, 32), end], 0));
    row!(rows, EINVAL, install(&[op(0x02, 16), end], 0));
    row!(rows, EINVAL, install(&[op(0x60, 1), end], 0));
    row!(rows, EINVAL, install(&[op(0x05, 1), end], 0));
    row!(rows, EINVAL, install(&[op(0x05, u32::MAX), end], 0));
    row!(rows, EINVAL, install(&[branch(EQUAL, 0, 0, 1), end], 0));
    row!(rows, EINVAL, install(&[op(0xffff, 0), end], 0));
    // One of two ways does not write the word.
    let half = [branch(EQUAL, 0, 0, 1), op(0x02, 1), op(0x60, 1), end];
    row!(rows, EINVAL, install(&half, 0));
    row!(rows, EINVAL, install(&vec![end; 4097], 0));
    row!(rows, EINVAL, install(&[end], 1 << 10));
    row!(rows, EFAULT, call(SYS_seccomp, [1, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(SYS_seccomp, [9, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(SYS_seccomp, [0, 1, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(SYS_prctl, [libc::PR_SET_SECCOMP as usize, 7, 0, 0, 0, 0]));
    fork(|| {
        let long = vec![end; 4096];
        // How many fit depends on what the kernel makes of an instruction.
        let answers: Vec<_> = (0..20).map(|_| install(&long, 0)).collect();
        assert_eq!((answers[0], answers[19]), (Ok(0), Err(Errno::ENOMEM)));
    })
    .ok();
    rows.finish();
}

fn actions_and_modes() {
    let mut rows = Rows::default();
    let available = |action: u32| call(SYS_seccomp, [2, 0, (&raw const action) as usize, 0, 0, 0]);
    for action in [KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, TRACE, LOG, ALLOW] {
        row!(rows, OK, available(action));
    }
    row!(rows, EOPNOTSUPP, available(0x1234_0000));
    let mode = || call(SYS_prctl, [libc::PR_GET_SECCOMP as usize, 0, 0, 0, 0, 0]);
    assert_eq!(mode(), Ok(0));
    filtered(on(SYS_getppid, ALLOW), move || {
        assert_eq!(mode(), Ok(2));
        assert_eq!(procfs::status(pid(), "Seccomp"), 2);
        // No way to another mode.
        assert_eq!(call(SYS_seccomp, [0, 0, 0, 0, 0, 0]), Err(Errno::EINVAL));
    })
    .ok();
    rows.finish();
}

/// Computes by all operations, and answers ERRNO with the result.
fn arithmetic() {
    let cases: [(&[Instruction], i32); 8] = [
        (&[op(0x00, 7), op(0x04, 5), op(0x14, 2)], 10),
        (&[op(0x00, 7), op(0x24, 5), op(0x34, 2)], 17),
        (&[op(0x00, 12), op(0x54, 10), op(0x44, 3), op(0xa4, 1)], 10),
        (&[op(0x00, 3), op(0x64, 4), op(0x74, 1)], 24),
        (&[op(0x00, 1), op(0x84, 0), op(0x54, 0xff)], 0xff),
        (&[op(0x01, 6), op(0x00, 50), op(0x3c, 0), op(0x0c, 0)], 14),
        (&[op(0x00, 9), op(0x02, 15), op(0x00, 0), op(0x61, 15), op(0x87, 0)], 9),
        (&[op(0x80, 0), op(0x07, 0), op(0x00, 1), op(0x1c, 0), op(0x84, 0)], 63),
    ];
    for (number, (steps, result)) in cases.into_iter().enumerate() {
        let mut filter = vec![op(LOAD, 0), branch(EQUAL, SYS_getppid as u32, 1, 0), op(RETURN, ALLOW)];
        filter.extend_from_slice(steps);
        filter.extend([op(0x44, ERRNO), op(0x16, 0)]);
        filtered(filter, move || {
            assert_eq!(simple(SYS_getppid), Err(Errno::from_raw(result)), "case {number}");
        })
        .ok();
    }
    // A division by X, which is 0: the program ends with 0, KILL_THREAD.
    let filter = vec![
        op(LOAD, 0),
        branch(EQUAL, SYS_getppid as u32, 1, 0),
        op(RETURN, ALLOW),
        op(0x3c, 0),
        op(RETURN, ALLOW),
    ];
    let child = filtered(filter, || {
        let _ = simple(SYS_getppid);
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGSYS));
}
