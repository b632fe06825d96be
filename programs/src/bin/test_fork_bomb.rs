//! Processes that only make more of themselves.

use std::time::Duration;

use roundtable_programs::child::{self, waitpid};
use roundtable_programs::leak::Baseline;
use roundtable_programs::shared::Shared;
use roundtable_programs::{Errno, procfs, sys, tests};

tests! { of_a_user_with_a_limit: 60, of_threads: 60, without_a_limit: 100 }

/// Every process forks until that fails, and so do its children.
fn bomb(shared: &Shared) -> ! {
    loop {
        // SAFETY: the children do the same.
        match unsafe { libc::fork() } {
            -1 => {
                shared.word(1).store(Errno::last_raw() as u32, std::sync::atomic::Ordering::SeqCst);
                shared.add(2);
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => {
                shared.add(0);
            }
        }
    }
}

/// Starts a bomb in a group of its own, lets it go off, kills the group and waits for all.
fn set_off(shared: &Shared, prepare: impl FnOnce(), time: Duration) {
    // SAFETY: takes integers.
    sys::check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }).expect("subreaper");
    let first = child::fork(|| {
        // SAFETY: takes integers.
        unsafe { libc::setpgid(0, 0) };
        let _ = procfs::write("/proc/self/oom_score_adj", 1000);
        prepare();
        shared.set(3, 1);
        bomb(shared)
    });
    shared.wait(3, 1);
    std::thread::sleep(time);
    let group = first.pid;
    std::mem::forget(first);
    let failed = shared.get(2);
    // One signal reaches all of the group: who forks while it is sent has it pending, and does not fork.
    // SAFETY: takes integers.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    // Nor does anybody go on trying, and leave the sender no time: each of them tried once or twice since. (Of a few, a sender that is not
    // run for a moment sees more.)
    let (tried, processes) = (shared.get(2) - failed, shared.get(0));
    assert!(
        tried <= 20 * processes.max(1_000),
        "{tried} more forks failed, of {processes} processes at most"
    );
    loop {
        match waitpid(-1, 0) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error, Errno::ECHILD);
                break;
            }
        }
    }
    // SAFETY: takes integers.
    assert_eq!(sys::check(unsafe { libc::kill(-group, 0) }), Err(Errno::ESRCH), "some of the group live on");
}

fn of_a_user_with_a_limit() {
    let before = Baseline::take();
    let shared = Shared::new();
    let prepare = || {
        let limit = libc::rlimit { rlim_cur: 50, rlim_max: 50 };
        // SAFETY: the structure lives through the call.
        unsafe {
            sys::check(libc::setrlimit(libc::RLIMIT_NPROC, &limit)).expect("setrlimit");
            sys::check(libc::setuid(31_415)).expect("setuid");
        }
    };
    set_off(&shared, prepare, Duration::from_secs(3));
    assert_eq!(shared.get(1) as i32, libc::EAGAIN);
    assert!(shared.get(2) > 0);
    before.check();
}

fn of_threads() {
    let before = Baseline::take();
    child::in_child(|| {
        let mut threads = 0;
        let error = loop {
            let made = std::thread::Builder::new().stack_size(16 << 10).spawn(|| {
                loop {
                    std::thread::sleep(Duration::from_secs(100));
                }
            });
            match made {
                Ok(_) if threads < 2000 => threads += 1,
                Ok(_) => break None,
                Err(error) => break error.raw_os_error(),
            }
        };
        assert!(matches!(error, None | Some(libc::EAGAIN | libc::ENOMEM)), "{error:?}");
        assert!(threads > 100, "{threads}");
    });
    before.check();
}

fn without_a_limit() {
    let before = Baseline::take();
    let shared = Shared::new();
    // What ends it is memory or the number of processes that the kernel can have; or our patience.
    set_off(&shared, || {}, Duration::from_secs(6));
    assert!(shared.get(0) > 100, "{} forks", shared.get(0));
    before.check();
    child::in_child(|| {});
}
