//! System calls: the table, the dispatch, and the log of calls.

pub mod aio;
pub mod cred;
pub mod event;
pub mod fs_attr;
pub mod fs_fd;
pub mod fs_handle;
pub mod fs_io;
pub mod fs_mount;
pub mod fs_mount_new;
pub mod fs_mount_query;
pub mod fs_open;
pub mod fs_path;
pub mod fs_space;
pub mod futex;
pub mod inotify;
pub mod ioprio;
pub mod ipc;
pub mod kcmp;
pub mod membarrier;
pub mod mm;
pub mod mqueue;
pub mod msg;
pub mod net;
pub mod numa;
pub mod process;
pub mod ptrace;
pub mod sched;
pub mod seccomp;
pub mod sem;
pub mod signal;
pub mod splice;
pub mod system;
pub mod time;
mod trace;
pub mod xattr;

use syscalls::{Errno, Sysno};

use crate::arch::trap::TrapFrame;
use crate::errno::Result;
use crate::memory::reserve;
use crate::process::{Pid, Thread, ptrace as tracing, user_dispatch};
use crate::seccomp as seccomp_modes;
use crate::seccomp::Verdict;
use crate::sync::grace;
use crate::sync::lockdep::stretch;
use core::sync::atomic::Ordering;

/// The arguments of a system call, and the registers it came with.
pub struct Args<'a> {
    pub a: [usize; 6],
    pub frame: &'a mut TrapFrame,
}

impl Args<'_> {
    /// An argument as the `int` that it is in C.
    pub fn int(&self, index: usize) -> i32 {
        self.a[index] as i32
    }

    /// An argument as the `unsigned int` that it is in C.
    pub fn uint(&self, index: usize) -> u32 {
        self.a[index] as u32
    }
}

/// A system call: the result goes to the caller as it is, an error as its negative number.
pub type Handler = fn(&mut Args) -> Result<usize>;

/// A group's part of the table.
pub type Group = &'static [(Sysno, Handler)];

/// Every group's table.
const GROUPS: &[Group] = &[
    aio::TABLE,
    cred::TABLE,
    event::TABLE,
    fs_attr::TABLE,
    fs_fd::TABLE,
    fs_handle::TABLE,
    fs_io::TABLE,
    fs_mount::TABLE,
    fs_mount_new::TABLE,
    fs_mount_query::TABLE,
    fs_open::TABLE,
    fs_path::TABLE,
    fs_space::TABLE,
    futex::TABLE,
    inotify::TABLE,
    ioprio::TABLE,
    ipc::TABLE,
    kcmp::TABLE,
    membarrier::TABLE,
    mm::TABLE,
    mqueue::TABLE,
    msg::TABLE,
    net::TABLE,
    numa::TABLE,
    process::TABLE,
    ptrace::TABLE,
    sched::TABLE,
    seccomp::TABLE,
    sem::TABLE,
    signal::TABLE,
    splice::TABLE,
    system::TABLE,
    time::TABLE,
    xattr::TABLE,
];

/// One more than the highest number that can have a handler.
const COUNT: usize = 512;

static TABLE: [Option<Handler>; COUNT] = merge();

const fn merge() -> [Option<Handler>; COUNT] {
    let mut table: [Option<Handler>; COUNT] = [None; COUNT];
    let mut group = 0;
    while group < GROUPS.len() {
        let mut entry = 0;
        while entry < GROUPS[group].len() {
            let (number, handler) = GROUPS[group][entry];
            assert!(table[number as usize].is_none(), "two groups have the same call");
            table[number as usize] = Some(handler);
            entry += 1;
        }
        group += 1;
    }
    table
}

/// What makes the call, for calls that are made of others.
fn handler(call: Sysno) -> Option<Handler> {
    TABLE.get(call as usize).copied().flatten()
}

/// Reads the command line's `strace=1`.
pub fn init() {
    trace::init();
}

/// A call that is not here.
fn unknown(number: usize) -> Errno {
    match Sysno::new(number) {
        Some(call) => crate::missing::tell(format_args!("system call {call}")),
        None => crate::missing::tell(format_args!("system call {number}")),
    }
    Errno::ENOSYS
}

/// Are the calls of a process logged?
pub fn is_logged(pid: Pid) -> bool {
    trace::concerns(pid)
}

/// A system call of user mode, with interrupts on. The result goes to `rax`.
#[inline]
pub fn dispatch(frame: &mut TrapFrame) {
    // 32 bits of the register count, as on Linux. A number like -1 is a call too, of which the frame shall tell.
    let number = frame.orig_rax as u32 as usize;
    frame.orig_rax = number as u64;
    let thread = crate::process::current();
    // Relaxed: for the thread dump only.
    thread.syscall.store(number as u32, Ordering::Relaxed);
    stretch::is_call(number);
    let result = match thread.trace.minds_calls() {
        false => {
            enter(Some(number));
            call(number, Args { a: arguments(frame), frame })
        }
        true if user_dispatch::keeps_from(&thread, frame) => {
            // Its handler finds the number where the result would be; neither tracers nor filters hear of it.
            frame.rax = number as u64;
            thread.syscall.store(u32::MAX, Ordering::Relaxed);
            return;
        }
        true => watched(&thread, frame, number),
    };
    grace::throttle();
    // rt_sigreturn has put a whole set of registers in place, which is no result of a call.
    if frame.is_syscall() {
        frame.rax = match result {
            Ok(value) => value as u64,
            Err(error) => -i64::from(error.into_raw()) as u64,
        };
    }
    if thread.trace.minds_calls() {
        tracing::call_ends(frame);
    }
    thread.syscall.store(u32::MAX, Ordering::Relaxed);
}

/// Looks at free memory before a call is made. A call that ends the thread frees memory.
#[inline]
fn enter(call: Option<usize>) {
    const ENDS: [Option<usize>; 2] = [Some(Sysno::exit as usize), Some(Sysno::exit_group as usize)];
    if !reserve::is_scarce() || !ENDS.contains(&call) {
        reserve::enter();
    }
}

#[inline]
fn call(number: usize, mut args: Args) -> Result<usize> {
    match TABLE.get(number) {
        Some(Some(handler)) => handler(&mut args),
        _ => Err(unknown(number)),
    }
}

/// A system call at which there is more to do: for a tracer, for filters, for the log.
#[cold]
fn watched(thread: &Thread, frame: &mut TrapFrame, number: usize) -> Result<usize> {
    // What the call is made of may be the tracer's choice. `None`: it is not made, and the result stands where results do.
    let mut made = if thread.trace.watches_calls() { tracing::call_begins(frame) } else { Some(number) };
    let mut a = arguments(frame);
    let logged = trace::concerns(thread.process.pid);
    if logged {
        trace::enter(number, &a);
    }
    enter(made);
    let mut verdict = Verdict::Allow;
    if let Some(number) = made
        && thread.seccomp.mode() != seccomp_modes::DISABLED
        && !thread.trace.suspends_seccomp()
    {
        verdict = seccomp_modes::check(thread, frame, number);
        if let Verdict::Traced(data) = verdict {
            (verdict, made) = ask_tracer(thread, frame, data);
            a = arguments(frame);
        }
    }
    let result = match (verdict, made) {
        (_, None) => Ok(frame.rax as usize),
        (Verdict::Allow, Some(number)) => call(number, Args { a, frame }),
        (Verdict::Refused(Some(errno)), _) => Err(errno),
        (Verdict::Refused(None), _) => Ok(0),
        (Verdict::Answered(value), _) => {
            if crate::process::is_restart_code(value) {
                // Nothing but an answer: no signal has interrupted the call, and it is not made again.
                frame.rax = value as u64;
                frame.forget_syscall();
            }
            Ok(value as usize)
        }
        // A signal says so, and its handler finds the number where the result would be.
        (Verdict::Trapped | Verdict::Traced(_), Some(number)) => Ok(number),
    };
    if logged {
        trace::leave(number, &a, &result);
    }
    result
}

#[inline]
fn arguments(frame: &TrapFrame) -> [usize; 6] {
    [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9].map(|value| value as usize)
}

/// A filter leaves a call to the tracer, which may change it: filters look at what it has become, and do not ask once more.
fn ask_tracer(thread: &Thread, frame: &mut TrapFrame, data: u32) -> (Verdict, Option<usize>) {
    let number = frame.orig_rax as u32 as usize;
    match tracing::seccomp_event(frame, data) {
        Err(error) => (Verdict::Refused(Some(error)), Some(number)),
        Ok(None) => (Verdict::Allow, None),
        Ok(Some(number)) => match seccomp_modes::check(thread, frame, number) {
            Verdict::Traced(_) => (Verdict::Allow, Some(number)),
            verdict => (verdict, Some(number)),
        },
    }
}
