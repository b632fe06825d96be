//! The debug registers of a tracee: stores and instructions that are watched, what the tracer reads of a hit, and where watching ends.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use libc::SIGTRAP;
use roundtable_programs::child::fork;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::tracing::{go, ptrace, registers, stopped, tracee, wait};
use roundtable_programs::{row, sys, tests};

tests! { stores, breakpoints, stores_of_the_kernel, children_are_not_watched, others_on_the_cpu_are_not_watched, a_program_ends_it, errors }

/// DR6 and DR7.
const STATUS: usize = 6;
const CONTROL: usize = 7;
/// DR7: the first register watches stores to eight bytes.
const STORES: u64 = 1 | (0b10 << 2 | 1) << 16;
const TRAP_HWBKPT: i32 = 4;

static WATCHED: AtomicU64 = AtomicU64::new(0);
static OTHER: AtomicU64 = AtomicU64::new(0);

fn word() -> u64 {
    WATCHED.as_ptr() as u64
}

/// Where a debug register stands in `struct user`.
const fn place(index: usize) -> usize {
    848 + 8 * index
}

fn poke(pid: i32, index: usize, value: u64) -> Answer {
    ptrace(libc::PTRACE_POKEUSER, pid, place(index), value as usize)
}

fn peek(pid: i32, index: usize) -> u64 {
    let mut value = 0u64;
    ptrace(libc::PTRACE_PEEKUSER, pid, place(index), &raw mut value as usize).expect("PTRACE_PEEKUSER");
    value
}

fn watch_stores(pid: i32) {
    poke(pid, 0, word()).expect("an address");
    poke(pid, CONTROL, STORES).expect("its kind");
}

/// Goes on to a hit of this register.
fn hit(pid: i32, index: usize) {
    go(libc::PTRACE_CONT, pid, 0);
    assert_eq!(wait(pid), stopped(SIGTRAP, 0));
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    ptrace(libc::PTRACE_GETSIGINFO, pid, 0, info.as_mut_ptr() as usize).expect("PTRACE_GETSIGINFO");
    // SAFETY: the call has filled it.
    assert_eq!(unsafe { info.assume_init() }.si_code, TRAP_HWBKPT);
    assert_eq!(peek(pid, STATUS) & 0xf, 1 << index);
    poke(pid, STATUS, 0).expect("DR6");
}

/// Goes on to the end, which is exit(0).
fn ends_well(pid: i32) {
    go(libc::PTRACE_CONT, pid, 0);
    assert_eq!(wait(pid), 0);
}

fn stores() {
    let pid = tracee(0, || {
        OTHER.store(1, SeqCst);
        WATCHED.store(2, SeqCst);
        // A load is none.
        OTHER.store(WATCHED.load(SeqCst), SeqCst);
        WATCHED.store(3, SeqCst);
        // Not watched any more.
        WATCHED.store(4, SeqCst);
        0
    })
    .release();
    watch_stores(pid);
    assert_eq!((peek(pid, 0), peek(pid, CONTROL)), (word(), STORES));
    for stored in [2, 3] {
        hit(pid, 0);
        let mut value = 0u64;
        ptrace(libc::PTRACE_PEEKDATA, pid, word() as usize, &raw mut value as usize)
            .expect("PTRACE_PEEKDATA");
        assert_eq!(value, stored);
    }
    poke(pid, CONTROL, 0).expect("DR7");
    ends_well(pid);
}

#[inline(never)]
extern "C" fn marked(value: u64) -> u64 {
    black_box(value) + 1
}

/// An instruction that is watched stops before it runs, and runs when the tracee goes on.
fn breakpoints() {
    let marked_at = marked as *const () as u64;
    let pid = tracee(0, || i32::from(black_box(marked)(1) + black_box(marked)(2) != 5)).release();
    poke(pid, 2, marked_at).expect("an address");
    poke(pid, CONTROL, 1 << 4).expect("execution");
    for argument in [1, 2] {
        hit(pid, 2);
        let registers = registers(pid);
        assert_eq!((registers.rip, registers.rdi), (marked_at, argument));
    }
    ends_well(pid);
}

fn stores_of_the_kernel() {
    let pid = tracee(0, || {
        let random = |bytes| call(libc::SYS_getrandom, [word() as usize, bytes, 0, 0, 0, 0]);
        i32::from(random(8) != Ok(8))
    })
    .release();
    watch_stores(pid);
    ends_well(pid);
}

fn children_are_not_watched() {
    let pid = tracee(0, || {
        fork(|| WATCHED.store(1, SeqCst)).ok();
        0
    })
    .release();
    watch_stores(pid);
    // Its child's end is a signal for it.
    go(libc::PTRACE_CONT, pid, 0);
    assert_eq!(wait(pid), stopped(libc::SIGCHLD, 0));
    ends_well(pid);
}

fn others_on_the_cpu_are_not_watched() {
    sys::pin(0);
    // SAFETY: takes nothing.
    let give_way = || unsafe { libc::sched_yield() };
    let pid = tracee(0, || {
        for _ in 0..200 {
            give_way();
        }
        WATCHED.store(1, SeqCst);
        0
    })
    .release();
    watch_stores(pid);
    let other = fork(|| {
        for value in 0..1000 {
            WATCHED.store(value, SeqCst);
            give_way();
        }
    });
    hit(pid, 0);
    other.ok();
    ends_well(pid);
}

fn a_program_ends_it() {
    let pid = tracee(libc::PTRACE_O_TRACEEXEC as usize, || {
        let arguments = [c"/proc/self/exe".as_ptr(), c"--help".as_ptr(), std::ptr::null()];
        // SAFETY: they live through the call.
        unsafe { libc::execv(arguments[0], arguments.as_ptr()) };
        1
    });
    watch_stores(pid.pid);
    go(libc::PTRACE_CONT, pid.pid, 0);
    assert_eq!(wait(pid.pid), stopped(SIGTRAP, libc::PTRACE_EVENT_EXEC));
    assert_eq!((peek(pid.pid, 0), peek(pid.pid, CONTROL)), (0, 0));
    pid.end();
}

fn errors() {
    let child = tracee(0, || 0);
    let pid = child.pid;
    let mut rows = Rows::default();
    // The kernel's half, and registers that there are not.
    row!(rows, EINVAL, poke(pid, 0, 1 << 63));
    row!(rows, EIO, poke(pid, 4, 0));
    row!(rows, EIO, poke(pid, 5, 1));
    // Ports, an instruction of two bytes, four bytes that are not aligned.
    assert_eq!(poke(pid, 0, word() + 1), Ok(0));
    row!(rows, EINVAL, poke(pid, CONTROL, 1 | 0b0010 << 16));
    row!(rows, EINVAL, poke(pid, CONTROL, 1 | 0b0100 << 16));
    row!(rows, EINVAL, poke(pid, CONTROL, 1 | 0b1101 << 16));
    assert_eq!(peek(pid, CONTROL), 0);
    assert_eq!(poke(pid, CONTROL, 1 | 0b0001 << 16), Ok(0));
    row!(rows, EINVAL, poke(pid, 0, u64::MAX));
    assert_eq!((peek(pid, 0), peek(pid, 4)), (word() + 1, 0));
    // Bits that are not the tracer's have no effect.
    assert_eq!(poke(pid, CONTROL, 0xfc00), Ok(0));
    assert_eq!(peek(pid, CONTROL), 0xfc00);
    assert_eq!(peek(pid, STATUS), 0xffff_0ff0);
    rows.finish();
    child.end();
}
