//! prctl(PR_SET_SYSCALL_USER_DISPATCH): system calls that raise SIGSYS while a byte says so.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use libc::{SYS_getpid, SYS_getppid};
use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::{Errno, row, signals, tests};

tests! { errors, kept_calls, calls_that_are_none, own_range, wrong_bytes, who_has_it, by_a_tracer }

const SET: usize = 59;
const OFF: usize = 0;
const ON: usize = 1;
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;

/// What the kernel looks at.
static BYTE: AtomicU8 = AtomicU8::new(ALLOW);
/// What the handler found: `si_code` above `si_errno`, `si_arch` above `si_syscall`, how often.
static CODE: AtomicU64 = AtomicU64::new(0);
static NUMBER: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

fn set(mode: usize, offset: usize, len: usize, byte: usize) -> Answer {
    call(libc::SYS_prctl, [SET, mode, offset, len, byte, 0])
}

fn byte() -> usize {
    BYTE.as_ptr().addr()
}

fn simple(number: i64) -> Answer {
    call(number, [0; 6])
}

/// Lets calls through: it returns by one.
extern "C" fn handler(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    BYTE.store(ALLOW, SeqCst);
    // SAFETY: the kernel's siginfo has 128 bytes.
    let words = unsafe { info.cast::<[u32; 8]>().read() };
    CODE.store(u64::from(words[2]) << 32 | u64::from(words[1]), SeqCst);
    NUMBER.store(u64::from(words[7]) << 32 | u64::from(words[6]), SeqCst);
    COUNT.fetch_add(1, SeqCst);
}

fn handle() {
    signals::catch_with(libc::SIGSYS, handler, libc::SA_SIGINFO, &[]);
}

/// A call with the byte set before. The answer is the register's.
fn blocked(number: i64) -> i64 {
    BYTE.store(BLOCK, SeqCst);
    // SAFETY: takes nothing.
    let answer = unsafe { libc::syscall(number) };
    BYTE.store(ALLOW, SeqCst);
    answer
}

fn in_child(run: impl FnOnce()) -> Child {
    fork(move || {
        handle();
        run();
    })
}

fn errors() {
    let mut rows = Rows::default();
    // Off.
    row!(rows, OK, set(OFF, 0, 0, 0));
    // Off, with a range.
    row!(rows, EINVAL, set(OFF, 0, 1, 0));
    // Off, with a byte.
    row!(rows, EINVAL, set(OFF, 0, 0, byte()));
    // Another mode.
    row!(rows, EINVAL, set(2, 0, 0, 0));
    // An empty range.
    row!(rows, EINVAL, set(ON, 1, 0, byte()));
    // A range around the end.
    row!(rows, EINVAL, set(ON, 2, usize::MAX, byte()));
    // The kernel's byte.
    row!(rows, EFAULT, set(ON, 0, 0, 0xffff_8000_0000_0000));
    // It is looked at when a call is made, and this range is all that there is.
    // Nobody's byte.
    row!(rows, OK, set(ON, 0, usize::MAX, 8));
    // Off again.
    row!(rows, OK, set(OFF, 0, 0, 0));
    rows.finish();
}

fn kept_calls() {
    in_child(|| {
        assert_eq!(set(ON, 0, 0, byte()), Ok(0));
        assert!(simple(SYS_getppid).is_ok(), "the byte lets it through");
        assert_eq!(blocked(SYS_getppid), SYS_getppid, "the register has what the call was made with");
        assert_eq!(CODE.load(SeqCst), 2 << 32, "SYS_USER_DISPATCH");
        assert_eq!(NUMBER.load(SeqCst), 0xc000_003e << 32 | SYS_getppid as u64, "si_arch, si_syscall");
        assert_eq!(blocked(SYS_getpid), SYS_getpid);
        assert_eq!(COUNT.load(SeqCst), 2);
        assert_eq!(set(OFF, 0, 0, 0), Ok(0));
        assert_ne!(blocked(SYS_getpid), SYS_getpid);
        assert_eq!(COUNT.load(SeqCst), 2);
    })
    .ok();
    // Kept out, the signal ends the process.
    let child = in_child(|| {
        signals::mask(libc::SIG_BLOCK, &[libc::SIGSYS]);
        assert_eq!(set(ON, 0, 0, byte()), Ok(0));
        blocked(SYS_getppid);
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGSYS));
}

fn calls_that_are_none() {
    in_child(|| {
        assert_eq!(set(ON, 0, 0, byte()), Ok(0));
        for number in [600, 0x7fff_0000] {
            assert_eq!(blocked(number), number);
            assert_eq!(NUMBER.load(SeqCst) as u32, number as u32);
        }
    })
    .ok();
}

/// Calls from inside of the range are made whatever the byte says.
fn own_range() {
    in_child(|| {
        assert_eq!(set(ON, 0, usize::MAX, byte()), Ok(0));
        assert_ne!(blocked(SYS_getpid), SYS_getpid);
        // Not even looked at.
        assert_eq!(set(ON, 0, usize::MAX, 8), Ok(0));
        assert!(simple(SYS_getpid).is_ok());
        assert_eq!(COUNT.load(SeqCst), 0);
    })
    .ok();
}

fn wrong_bytes() {
    let child = in_child(|| {
        assert_eq!(set(ON, 0, 0, byte()), Ok(0));
        BYTE.store(7, SeqCst);
        let _ = simple(SYS_getppid);
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGSYS));
    let child = in_child(|| {
        // SAFETY: sets a disposition.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_IGN) };
        assert_eq!(set(ON, 0, 0, 8), Ok(0));
        let _ = simple(SYS_getppid);
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGSEGV));
}

/// The thread alone, until it runs another program.
fn who_has_it() {
    in_child(|| {
        assert_eq!(set(ON, 0, 0, byte()), Ok(0));
        fork(|| assert_ne!(blocked(SYS_getpid), SYS_getpid)).ok();
        let other = std::thread::spawn(|| assert!((0..100).all(|_| blocked(SYS_getpid) != SYS_getpid)));
        // The byte is everybody's: this thread waits where it makes no call.
        while !other.is_finished() {
            std::hint::spin_loop();
        }
        assert_eq!(COUNT.load(SeqCst), 0);
        assert_eq!(blocked(SYS_getpid), SYS_getpid);
    })
    .ok();
    let child = in_child(|| {
        assert_eq!(set(ON, 0, 0, byte()), Ok(0));
        // The new program has nothing at the byte's place.
        let name = c"/bin/busybox".as_ptr();
        // SAFETY: the words are NUL-terminated, both lists end with null.
        unsafe {
            libc::execve(
                name,
                [name, c"true".as_ptr(), std::ptr::null()].as_ptr(),
                [std::ptr::null()].as_ptr(),
            )
        };
        panic!("execve: {}", Errno::last());
    });
    child.ok();
}

fn by_a_tracer() {
    const SET_CONFIG: usize = 0x4210;
    const GET_CONFIG: usize = 0x4211;
    let child = in_child(|| {
        call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0, 0]).expect("PTRACE_TRACEME");
        signals::raise(libc::SIGSTOP);
        assert_eq!(blocked(SYS_getppid), SYS_getppid);
        assert_eq!(COUNT.load(SeqCst), 1);
    });
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    assert_eq!(unsafe { libc::waitpid(child.pid, &mut status, 0) }, child.pid);
    let ptrace = |request: usize, size: usize, data: &mut [u64; 4]| {
        call(libc::SYS_ptrace, [request, child.pid as usize, size, data.as_mut_ptr().addr(), 0, 0])
    };
    let mut config = [7; 4];
    assert_eq!(ptrace(GET_CONFIG, 32, &mut config), Ok(0));
    assert_eq!(config, [0; 4]);
    let mut wanted = [ON as u64, byte() as u64, 16, 32];
    assert_eq!(ptrace(SET_CONFIG, 24, &mut wanted), Err(Errno::EINVAL));
    assert_eq!(ptrace(GET_CONFIG, 40, &mut config), Err(Errno::EINVAL));
    assert_eq!(ptrace(SET_CONFIG, 32, &mut [9, 0, 0, 0]), Err(Errno::EINVAL));
    assert_eq!(ptrace(SET_CONFIG, 32, &mut wanted), Ok(0));
    assert_eq!(ptrace(GET_CONFIG, 32, &mut config), Ok(0));
    assert_eq!(config, wanted);
    // Its next stop is that at the signal.
    let go = |signal: i32| {
        call(libc::SYS_ptrace, [libc::PTRACE_CONT as usize, child.pid as usize, 0, signal as usize, 0, 0])
            .unwrap();
    };
    go(0);
    // SAFETY: `status` lives through the call.
    assert_eq!(unsafe { libc::waitpid(child.pid, &mut status, 0) }, child.pid);
    assert_eq!(status, libc::SIGSYS << 8 | 0x7f);
    go(libc::SIGSYS);
    child.ok();
}
