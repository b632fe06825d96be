//! Signals: handlers, masks, siginfo, waiting, restart, who gets them.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use roundtable_programs::child::{self, End};
use roundtable_programs::file::pipe;
use roundtable_programs::signals::{
    CODE, COUNT, PID, SIGNAL, VALUE, catch, catch_with, count, kill, mask, note, raise, set_of,
};
use roundtable_programs::{Errno, sys, tests};

tests! { handler_runs, siginfo_of_kill, siginfo_of_sigqueue, blocked_then_delivered,
standard_signals_do_not_queue, real_time_signals_queue, handler_mask, nodefer, resethand, ignore,
default_of_sigchld, interrupted_read, restarted_read, sigsuspend, sigtimedwait, sigpending, pause_ends, alarm,
nested_handlers, mask_is_inherited, exec_resets_handlers, thread_directed, kill_minus_one_spares_us,
sigkill_cannot_be_caught, child_signal_info, interrupted_sleep, signal_between_cpus, sigpipe }

fn handler_runs() {
    catch(libc::SIGUSR1);
    raise(libc::SIGUSR1);
    assert_eq!((count(), SIGNAL.load(SeqCst)), (1, libc::SIGUSR1));
}

fn siginfo_of_kill() {
    catch(libc::SIGUSR1);
    raise(libc::SIGUSR1);
    assert_eq!((CODE.load(SeqCst), PID.load(SeqCst)), (libc::SI_USER, sys::pid()));
    // SAFETY: takes integers.
    unsafe { libc::raise(libc::SIGUSR1) };
    assert_eq!(CODE.load(SeqCst), libc::SI_TKILL);
}

fn siginfo_of_sigqueue() {
    catch(libc::SIGUSR2);
    let value = libc::sigval { sival_ptr: 0x1234_5678_9abc as *mut _ };
    // SAFETY: takes values.
    sys::check(unsafe { libc::sigqueue(sys::pid(), libc::SIGUSR2, value) }).unwrap();
    assert_eq!((CODE.load(SeqCst), VALUE.load(SeqCst)), (libc::SI_QUEUE, 0x1234_5678_9abc));
}

fn blocked_then_delivered() {
    catch(libc::SIGUSR1);
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    raise(libc::SIGUSR1);
    assert_eq!(count(), 0);
    mask(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
    assert_eq!(count(), 1);
}

fn standard_signals_do_not_queue() {
    catch(libc::SIGUSR1);
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    (0..5).for_each(|_| raise(libc::SIGUSR1));
    mask(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
    assert_eq!(count(), 1);
}

fn real_time_signals_queue() {
    let signal = libc::SIGRTMIN() + 2;
    catch(signal);
    mask(libc::SIG_BLOCK, &[signal]);
    for value in 1..=5usize {
        // SAFETY: takes values.
        sys::check(unsafe {
            libc::sigqueue(sys::pid(), signal, libc::sigval { sival_ptr: value as *mut _ })
        })
        .unwrap();
    }
    mask(libc::SIG_UNBLOCK, &[signal]);
    assert_eq!((count(), VALUE.load(SeqCst)), (5, 5));
}

static DEPTH: AtomicI32 = AtomicI32::new(0);
static DEEPEST: AtomicI32 = AtomicI32::new(0);

extern "C" fn recurse(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let depth = DEPTH.fetch_add(1, SeqCst) + 1;
    DEEPEST.fetch_max(depth, SeqCst);
    if COUNT.fetch_add(1, SeqCst) < 2 {
        raise(signal);
    }
    DEPTH.fetch_sub(1, SeqCst);
}

fn handler_mask() {
    catch_with(libc::SIGUSR1, recurse, 0, &[]);
    raise(libc::SIGUSR1);
    // While a handler runs its signal waits.
    assert_eq!((count(), DEEPEST.load(SeqCst)), (3, 1));
}

fn nodefer() {
    catch_with(libc::SIGUSR1, recurse, libc::SA_NODEFER, &[]);
    raise(libc::SIGUSR1);
    assert_eq!((count(), DEEPEST.load(SeqCst)), (3, 3));
}

fn resethand() {
    let child = child::fork(|| {
        catch_with(libc::SIGUSR1, note, libc::SA_RESETHAND, &[]);
        raise(libc::SIGUSR1);
        assert_eq!(count(), 1);
        raise(libc::SIGUSR1);
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGUSR1));
}

fn ignore() {
    // SAFETY: takes integers.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    raise(libc::SIGTERM);
    mask(libc::SIG_BLOCK, &[libc::SIGTERM]);
    raise(libc::SIGTERM);
    // SAFETY: takes integers.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
}

fn default_of_sigchld() {
    raise(libc::SIGCHLD);
    raise(libc::SIGURG);
    raise(libc::SIGWINCH);
}

/// A child that sends us signals until it is ended, for calls that have to be interrupted however late they start.
fn pester(signal: i32) -> child::Child {
    let parent = sys::pid();
    child::fork(move || {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let _ = kill(parent, signal);
        }
    })
}

fn interrupted_read() {
    catch(libc::SIGUSR1);
    let (read, _write) = pipe(0);
    let child = pester(libc::SIGUSR1);
    assert_eq!(read.read(&mut [0]), Err(Errno::EINTR));
    child.end();
}

fn restarted_read() {
    catch_with(libc::SIGUSR1, note, libc::SA_RESTART, &[]);
    let (read, write) = pipe(0);
    let parent = sys::pid();
    let child = child::fork(move || {
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(20));
            kill(parent, libc::SIGUSR1).unwrap();
        }
        write.write(b"z").unwrap();
    });
    let mut byte = [0];
    assert_eq!((read.read(&mut byte), byte), (Ok(1), *b"z"));
    assert!(count() > 0);
    child.ok();
}

fn sigsuspend() {
    catch(libc::SIGUSR1);
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    raise(libc::SIGUSR1);
    assert_eq!(count(), 0);
    // SAFETY: the set lives through the call.
    assert_eq!(sys::check(unsafe { libc::sigsuspend(&set_of(&[])) }), Err(Errno::EINTR));
    assert_eq!(count(), 1);
    // The mask is as before.
    raise(libc::SIGUSR1);
    assert_eq!(count(), 1);
}

fn sigtimedwait() {
    let set = set_of(&[libc::SIGUSR1, libc::SIGUSR2]);
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1, libc::SIGUSR2]);
    let wait = |milliseconds: i64| {
        let time = libc::timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
        // SAFETY: all live through the call.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            sys::check(libc::sigtimedwait(&set, &mut info, &time))
                .map(|signal| (signal as i32, info.si_pid()))
        }
    };
    assert_eq!(wait(10), Err(Errno::EAGAIN));
    raise(libc::SIGUSR2);
    assert_eq!(wait(100), Ok((libc::SIGUSR2, sys::pid())));
    assert_eq!(wait(0), Err(Errno::EAGAIN));
}

fn sigpending() {
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    let pending = || {
        let mut set = set_of(&[]);
        // SAFETY: the set lives through the calls.
        unsafe {
            libc::sigpending(&mut set);
            libc::sigismember(&set, libc::SIGUSR1)
        }
    };
    assert_eq!(pending(), 0);
    raise(libc::SIGUSR1);
    assert_eq!(pending(), 1);
    // Ignoring it throws it away.
    // SAFETY: takes integers.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
    assert_eq!(pending(), 0);
}

fn pause_ends() {
    catch(libc::SIGUSR1);
    let child = pester(libc::SIGUSR1);
    // SAFETY: takes nothing.
    assert_eq!(sys::check(unsafe { libc::pause() }), Err(Errno::EINTR));
    assert!(count() > 0);
    child.end();
}

fn alarm() {
    catch(libc::SIGALRM);
    mask(libc::SIG_BLOCK, &[libc::SIGALRM]);
    // SAFETY: these take integers.
    unsafe {
        assert_eq!(libc::alarm(100), 0);
        assert!((99..=100).contains(&libc::alarm(1)));
        libc::sigsuspend(&set_of(&[]));
        assert_eq!(libc::alarm(0), 0);
    }
    assert_eq!((count(), CODE.load(SeqCst)), (1, 0x80));
}

extern "C" fn outer(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    raise(libc::SIGUSR2);
    DEEPEST.store(count(), SeqCst);
}

fn nested_handlers() {
    catch_with(libc::SIGUSR1, outer, 0, &[]);
    catch(libc::SIGUSR2);
    raise(libc::SIGUSR1);
    assert_eq!(DEEPEST.load(SeqCst), 1);
    // With the inner one in the mask it comes after.
    catch_with(libc::SIGUSR1, outer, 0, &[libc::SIGUSR2]);
    raise(libc::SIGUSR1);
    assert_eq!((DEEPEST.load(SeqCst), count()), (1, 2));
}

fn mask_is_inherited() {
    catch(libc::SIGUSR1);
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    raise(libc::SIGUSR1);
    child::in_child(|| {
        // The handler and the mask, but not what was pending.
        mask(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
        assert_eq!(count(), 0);
        raise(libc::SIGUSR1);
        assert_eq!(count(), 1);
    });
    assert_eq!(count(), 0);
}

fn exec_resets_handlers() {
    catch(libc::SIGUSR1);
    // SAFETY: takes integers.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let status = std::process::Command::new("/proc/self/exe")
        .args(["--list"])
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let text = {
        let (read, write) = pipe(0);
        let child = child::fork(|| {
            // SAFETY: dup2 takes integers; the words are NUL-terminated.
            unsafe {
                libc::dup2(write.raw(), 1);
                let path = sys::c_string("/bin/busybox");
                let words = ["busybox", "cat", "/proc/self/status"].map(sys::c_string);
                let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
                pointers.push(std::ptr::null());
                libc::execv(path.as_ptr(), pointers.as_ptr());
            }
        });
        drop(write);
        let mut buffer = vec![0; 8192];
        let mut length = 0;
        while let Ok(more @ 1..) = read.read(&mut buffer[length..]) {
            length += more;
        }
        child.wait();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    if text.is_empty() {
        roundtable_programs::harness::skip("there is no /bin/busybox");
    }
    let bits = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{text}"));
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    assert_eq!(bits("SigCgt") & 1 << (libc::SIGUSR1 - 1), 0);
    assert_ne!(bits("SigIgn") & 1 << (libc::SIGUSR2 - 1), 0);
}

static TID: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_thread(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: takes nothing.
    TID.store(unsafe { libc::gettid() }, SeqCst);
}

fn thread_directed() {
    catch_with(libc::SIGUSR1, note_thread, 0, &[]);
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        // SAFETY: takes nothing.
        send.send(unsafe { libc::gettid() }).unwrap();
        while TID.load(SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let tid = receive.recv().unwrap();
    // SAFETY: takes integers.
    sys::check(unsafe { libc::syscall(libc::SYS_tgkill, sys::pid(), tid, libc::SIGUSR1) }).unwrap();
    thread.join().unwrap();
    assert_eq!(TID.load(SeqCst), tid);
}

fn kill_minus_one_spares_us() {
    child::in_child(|| {
        // As a user who has no other processes.
        // SAFETY: takes integers.
        unsafe { libc::setuid(31_337) };
        let _ = kill(-1, libc::SIGKILL);
    });
}

fn sigkill_cannot_be_caught() {
    for signal in [libc::SIGKILL, libc::SIGSTOP] {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::signal(signal, libc::SIG_IGN) }, libc::SIG_ERR);
        assert_eq!(Errno::last(), Errno::EINVAL);
    }
    assert_eq!(kill(sys::pid(), 65), Err(Errno::EINVAL));
    assert_eq!(kill(sys::pid(), -1), Err(Errno::EINVAL));
}

fn child_signal_info() {
    catch(libc::SIGCHLD);
    mask(libc::SIG_BLOCK, &[libc::SIGCHLD]);
    let child = child::fork_code(|| 3);
    // SAFETY: the set lives through the call.
    unsafe { libc::sigsuspend(&set_of(&[])) };
    assert_eq!((CODE.load(SeqCst), PID.load(SeqCst)), (libc::CLD_EXITED, child.pid));
    assert_eq!(child.wait(), End::Code(3));
}

fn interrupted_sleep() {
    catch(libc::SIGUSR1);
    let child = pester(libc::SIGUSR1);
    let time = libc::timespec { tv_sec: 100, tv_nsec: 0 };
    let mut left = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both live through the call.
    assert_eq!(sys::check(unsafe { libc::nanosleep(&time, &mut left) }), Err(Errno::EINTR));
    child.end();
    assert!(left.tv_sec >= 20 && left.tv_sec < 100, "{} s left", left.tv_sec);
}

static TICKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn tick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TICKS.fetch_add(1, SeqCst);
}

fn signal_between_cpus() {
    catch_with(libc::SIGUSR1, tick, 0, &[]);
    let cpus = sys::cpus();
    let parent = sys::pid();
    sys::pin(cpus[0]);
    let child = child::fork(|| {
        sys::pin(*cpus.last().unwrap());
        loop {
            kill(parent, libc::SIGUSR1).unwrap();
        }
    });
    // A process that never enters the kernel of its own will must still get its signals.
    let start = Instant::now();
    let mut spins = 0u64;
    while TICKS.load(SeqCst) < 100 {
        spins += 1;
        assert!(
            !spins.is_multiple_of(1_000_000) || start.elapsed() < Duration::from_secs(20),
            "the signals do not arrive"
        );
    }
    child.end();
}

fn sigpipe() {
    let child = child::fork(|| {
        // Rust's runtime ignores it.
        // SAFETY: takes integers.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (read, write) = pipe(0);
        drop(read);
        let _ = write.write(b"x");
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGPIPE));
    let (read, write) = pipe(0);
    drop(read);
    assert_eq!(write.write(b"x"), Err(Errno::EPIPE));
}
