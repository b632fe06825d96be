//! seccomp(2): programs of the caller's that decide which system calls it may make.
//!
//! A thread has a mode and a chain of filters, the youngest first. A child starts with its parent's chain and shares it; nobody can
//! take a filter away. All filters of the chain see each call, and the strongest answer counts.
//!
//! A flag among the thread's others sends a call here, without a lock. Only the thread itself sets it, or another thread of its process by
//! SECCOMP_FILTER_FLAG_TSYNC: the chain is in place before the mode says that there is one, and the mode before the flag.

mod bpf;
mod listener;
mod notify;
mod report;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::fs::caller;
use crate::memory::reserve;
use crate::namespaces::View;
use crate::process::{self, CAP_SYS_ADMIN, Charge, Pid, Thread, WaitStatus, exit};
use crate::sched;
use crate::signal::{self, SIGKILL, SIGSYS, SigInfo};
use crate::sync::SpinLock;

use bpf::{Call, Program};
pub use bpf::{Instruction, MOST as MOST_INSTRUCTIONS};
pub use listener::SIZES as NOTIFICATION_SIZES;
use notify::{Answer, Listener};

/// Modes, as prctl(PR_GET_SECCOMP) tells them.
pub const DISABLED: u32 = 0;
pub const STRICT: u32 = 1;
pub const FILTER: u32 = 2;

/// What a filter may return: the action in the upper half, its data in the lower.
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const USER_NOTIF: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// The actions that there are, by the names that `/proc/sys/kernel/seccomp/actions_avail` has.
pub const ACTIONS: &str = "kill_process kill_thread trap errno user_notif trace log allow";

/// `AUDIT_ARCH_X86_64`.
pub const ARCH: u32 = 0xc000_003e;
/// Most instructions of a chain, and what each filter counts beside its own: `MAX_INSNS_PER_PATH`.
const MOST_IN_CHAIN: usize = (1 << 18) / 8;
const EACH_COUNTS: usize = 4;
/// Instructions that are run without a look at who else wants the CPU, and those of one filter more. A checked kernel takes 80 for a filter of
/// one.
const INSTRUCTIONS_AT_ONCE: usize = 512;

/// One filter, and the older ones.
struct Filter {
    program: Arc<Program>,
    /// Who has added it pays, as long as it is there.
    _charge: Charge,
    older: Option<Arc<Filter>>,
    /// How many there are from here on, and their instructions.
    depth: usize,
    total: usize,
    /// SECCOMP_FILTER_FLAG_LOG.
    logs: bool,
    /// Who answers calls for which the filter says so.
    listener: Option<Arc<Listener>>,
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abandon();
        }
        // One by one: a chain may be longer than a kernel stack.
        let mut next = self.older.take();
        while let Some(mut filter) = next.and_then(Arc::into_inner) {
            next = filter.older.take();
            drop(filter);
            sched::cond_resched();
        }
    }
}

/// A thread's part.
pub struct State {
    mode: AtomicU32,
    chain: SpinLock<Chain>,
}

#[derive(Default)]
struct Chain {
    youngest: Option<Arc<Filter>>,
    /// The thread makes no calls any more, and gets no filters.
    ended: bool,
}

impl State {
    /// No mode, no filters.
    pub const fn new() -> Self {
        Self { mode: AtomicU32::new(DISABLED), chain: SpinLock::new(Chain { youngest: None, ended: false }) }
    }

    /// The mode.
    #[inline]
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Acquire)
    }

    /// How many filters there are.
    pub fn filters(&self) -> usize {
        self.chain.lock().youngest.as_ref().map_or(0, |filter| filter.depth)
    }

    fn chain(&self) -> Option<Arc<Filter>> {
        self.chain.lock().youngest.clone()
    }

    /// The thread ends: listeners shall hear of it, however long others leave it a zombie.
    pub fn end(&self) {
        let left = {
            let mut chain = self.chain.lock();
            chain.ended = true;
            chain.youngest.take()
        };
        drop(left);
    }
}

fn set_mode(thread: &Thread, mode: u32) {
    thread.seccomp.mode.store(mode, Ordering::Release);
    if mode != DISABLED {
        thread.trace.set_filtered();
    }
}

fn set_chain(thread: &Thread, new: Arc<Filter>) {
    let old = {
        let mut chain = thread.seccomp.chain.lock();
        if chain.ended {
            return;
        }
        chain.youngest.replace(new)
    };
    drop(old);
    set_mode(thread, FILTER);
}

/// A new thread starts with what its maker has. The tree's lock is held, under which TSYNC finds the thread or has found its maker.
pub(crate) fn inherit(thread: &Thread, maker: &Thread) {
    let chain = maker.seccomp.chain();
    // The new thread has none yet: nothing is dropped under the lock.
    thread.seccomp.chain.lock().youngest = chain;
    set_mode(thread, maker.seccomp.mode());
}

/// What becomes of a system call.
pub enum Verdict {
    /// It is made.
    Allow,
    /// It is not made, and fails with this, or seems to succeed with 0.
    Refused(Option<Errno>),
    /// It is not made, and returns this: the filter or who listens has said so.
    Answered(i64),
    /// It is not made, and the registers stay: a signal says so.
    Trapped,
    /// Who traces the thread decides, and gets this value from the filter.
    Traced(u32),
}

/// Decides about the system call that `frame` makes. The mode is not [`DISABLED`].
pub fn check(thread: &Thread, frame: &TrapFrame, number: usize) -> Verdict {
    if thread.seccomp.mode() == STRICT {
        const READ: usize = 0;
        const WRITE: usize = 1;
        const RT_SIGRETURN: usize = 15;
        const EXIT: usize = 60;
        if !matches!(number, READ | WRITE | RT_SIGRETURN | EXIT) {
            kill_thread(thread, SIGKILL);
        }
        return Verdict::Allow;
    }
    let call = Call {
        number: number as i32,
        arch: ARCH,
        instruction: frame.rip,
        arguments: [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9],
    };
    let (answer, filter) = run(thread, &call);
    let data = answer & 0xffff;
    match answer & 0xffff_0000 {
        ALLOW => Verdict::Allow,
        LOG => {
            report::tell(thread, number);
            Verdict::Allow
        }
        ERRNO if data == 0 => Verdict::Refused(None),
        // Also where it looks as if a signal had interrupted the call.
        ERRNO => Verdict::Answered(-i64::from(data.min(4095))),
        TRACE => Verdict::Traced(data),
        USER_NOTIF => match filter.as_ref().and_then(|filter| filter.listener.as_ref()) {
            None => Verdict::Refused(Some(Errno::ENOSYS)),
            Some(listener) => match listener.ask(&call) {
                Ok(Answer::Made) => Verdict::Allow,
                Ok(Answer::Returns(value)) => Verdict::Answered(value),
                Err(errno) => Verdict::Refused(Some(errno)),
            },
        },
        TRAP => {
            let code = signal::codes::SYS_SECCOMP;
            signal::force_signal(SigInfo::system_call(code, data as i32, frame.rip, number as u32, ARCH));
            Verdict::Trapped
        }
        KILL_THREAD => kill_thread(thread, SIGSYS),
        _ => kill_process(SIGSYS),
    }
}

/// The answer that counts: the smallest as a signed number, of equal ones the youngest filter's. With the filter, if it wants a listener.
fn run(thread: &Thread, call: &Call) -> (u32, Option<Arc<Filter>>) {
    let chain = thread.seccomp.chain();
    let mut strongest = ALLOW;
    let mut from = None;
    let mut next = chain.as_ref();
    let mut left = INSTRUCTIONS_AT_ONCE;
    while let Some(filter) = next {
        let answer = filter.program.run(call);
        left = left.saturating_sub(filter.program.len());
        if left == 0 {
            // A chain has many times as many.
            sched::cond_resched();
            left = INSTRUCTIONS_AT_ONCE;
        }
        let action = |answer: u32| (answer & 0xffff_0000) as i32;
        if action(answer) < action(strongest) {
            strongest = answer;
            from = Some(filter);
        }
        next = filter.older.as_ref();
    }
    let from = from.filter(|_| strongest & 0xffff_0000 == USER_NOTIF).cloned();
    (strongest, from)
}

/// Only this thread goes, unless it is the last: then it is as if the signal had killed the process.
fn kill_thread(thread: &Thread, signal: u32) -> ! {
    if thread.process.thread_count() > 1 {
        exit::thread_killed_alone(signal);
    }
    kill_process(signal)
}

fn kill_process(signal: u32) -> ! {
    exit::end_process(WaitStatus::Killed { signal: signal as u8, core: false })
}

/// Strict mode: read, write, exit and rt_sigreturn, and nothing else ever again.
pub fn set_strict() -> Result<usize> {
    let thread = process::current();
    let _changes = thread.process.filter_changes.lock();
    if !matches!(thread.seccomp.mode(), DISABLED | STRICT) {
        return Err(Errno::EINVAL);
    }
    set_mode(&thread, STRICT);
    Ok(0)
}

/// Adds a filter. With TSYNC all threads of the process get the caller's chain; the number of one that cannot is returned then.
/// With NEW_LISTENER the descriptor is returned by which its calls are answered.
pub fn add_filter(instructions: impl FnOnce() -> Result<Vec<Instruction>>, flags: u32) -> Result<usize> {
    let has = |flag: u32| flags & flag != 0;
    if flags & !abi_flags::ALL != 0
        // Both would return a number.
        || has(abi_flags::TSYNC) && has(abi_flags::NEW_LISTENER) && !has(abi_flags::TSYNC_ESRCH)
        || has(abi_flags::WAIT_KILLABLE_RECV) && !has(abi_flags::NEW_LISTENER)
    {
        return Err(Errno::EINVAL);
    }
    let instructions = instructions()?;
    let thread = process::current();
    let without_privileges = thread.no_new_privileges.load(Ordering::SeqCst);
    if !without_privileges && !thread.credentials().capable_here(CAP_SYS_ADMIN) {
        return Err(Errno::EACCES);
    }
    // Its children have it when it has ended.
    reserve::ask_lasting(filter_bytes(instructions.len()))?;
    let program = Arc::new(Program::new(instructions)?);
    let listener = has(abi_flags::NEW_LISTENER).then(|| Listener::new(has(abi_flags::WAIT_KILLABLE_RECV)));
    let Some(listener) = listener else {
        return attach(&thread, &program, None, flags, without_privileges).map(|stranger| stranger as usize);
    };
    let file = listener::open(&listener);
    let files = caller::files();
    let fd = files.install(file.clone(), 0, caller::descriptor_limit(), true)?;
    match attach(&thread, &program, Some(listener), flags, without_privileges) {
        Ok(0) => Ok(fd as usize),
        refused => {
            if files.get(fd).is_ok_and(|found| Arc::ptr_eq(&found, &file)) {
                // Nobody was told of it: whatever becomes of the descriptor is no failure.
                let _ = files.close(fd);
            }
            refused.and(Err(Errno::ESRCH))
        }
    }
}

/// Puts a filter into the caller's chain, and all threads' with TSYNC. The number of a thread that cannot have it, or 0.
fn attach(
    thread: &Thread,
    program: &Arc<Program>,
    listener: Option<Arc<Listener>>,
    flags: u32,
    without_privileges: bool,
) -> Result<Pid> {
    let synchronise = flags & abi_flags::TSYNC != 0;
    let process = &thread.process;
    // No chain of the process changes meanwhile. New threads have their makers', and are behind all others.
    let _changes = process.filter_changes.lock();
    if !matches!(thread.seccomp.mode(), DISABLED | FILTER) {
        return Err(Errno::EINVAL);
    }
    let older = thread.seccomp.chain();
    if listener.is_some() && has_listener(older.as_ref()) {
        return Err(Errno::EBUSY);
    }
    let filter = extend(older, program, flags & abi_flags::LOG != 0, listener)?;
    if synchronise && let Some(stranger) = process.find_thread(|other| !may_follow(other, thread)) {
        let esrch = flags & abi_flags::TSYNC_ESRCH != 0;
        return if esrch { Err(Errno::ESRCH) } else { Ok(View::current().thread(&stranger)) };
    }
    set_chain(thread, filter.clone());
    if synchronise {
        process.find_thread(|other| {
            if !core::ptr::eq(other, thread) {
                set_chain(other, filter.clone());
                if without_privileges {
                    other.no_new_privileges.store(true, Ordering::SeqCst);
                }
            }
            false
        });
    }
    Ok(0)
}

/// Is there one in the chain with an open descriptor? A call has one that answers it.
fn has_listener(chain: Option<&Arc<Filter>>) -> bool {
    let mut next = chain;
    while let Some(filter) = next {
        if filter.listener.as_ref().is_some_and(|listener| !listener.is_closed()) {
            return true;
        }
        next = filter.older.as_ref();
    }
    false
}

/// A chain with one filter more; `ENOMEM` when it is too long.
fn extend(
    older: Option<Arc<Filter>>,
    program: &Arc<Program>,
    logs: bool,
    listener: Option<Arc<Listener>>,
) -> Result<Arc<Filter>> {
    let (depth, before) = older.as_ref().map_or((0, 0), |filter| (filter.depth, filter.total + EACH_COUNTS));
    let total = before + program.len();
    if total > MOST_IN_CHAIN {
        return Err(Errno::ENOMEM);
    }
    let program = program.clone();
    let _charge = process::current().process.charges.add(filter_bytes(program.len()));
    Ok(Arc::new(Filter { program, _charge, older, depth: depth + 1, total, logs, listener }))
}

/// What a filter of so many instructions takes of the kernel's memory, about.
fn filter_bytes(instructions: usize) -> usize {
    size_of::<Filter>() + instructions * size_of::<Instruction>()
}

/// Can `other` have the chain of `thread`? Its own must be a part of it.
fn may_follow(other: &Thread, thread: &Thread) -> bool {
    match other.seccomp.mode() {
        DISABLED => true,
        FILTER => {
            let own = other.seccomp.chain();
            let Some(own) = own else { return true };
            let mut next = thread.seccomp.chain();
            while let Some(filter) = next {
                if Arc::ptr_eq(&filter, &own) {
                    return true;
                }
                next = filter.older.clone();
            }
            false
        }
        _ => false,
    }
}

/// A filter of a thread, counted from the oldest: its instructions, and whether it was given SECCOMP_FILTER_FLAG_LOG. For tracers who may
/// look at filters; `ENOENT` when there are fewer.
pub fn filter_of(thread: &Thread, number: u64) -> Result<(Arc<Program>, bool)> {
    let current = process::current();
    if !current.credentials().capable(CAP_SYS_ADMIN) || current.seccomp.mode() != DISABLED {
        return Err(Errno::EACCES);
    }
    if thread.seccomp.mode() != FILTER {
        return Err(Errno::EINVAL);
    }
    let mut next = thread.seccomp.chain();
    while let Some(filter) = next {
        if filter.depth as u64 == number.saturating_add(1) {
            return Ok((filter.program.clone(), filter.logs));
        }
        next = filter.older.clone();
    }
    Err(Errno::ENOENT)
}

/// Flags of a filter, as PTRACE_SECCOMP_GET_METADATA tells them.
pub fn flags_of(logs: bool) -> u64 {
    if logs { abi_flags::LOG.into() } else { 0 }
}

/// Is it an action that filters may return?
pub fn is_action(value: u32) -> bool {
    matches!(value, KILL_PROCESS | KILL_THREAD | TRAP | ERRNO | USER_NOTIF | TRACE | LOG | ALLOW)
}

/// `SECCOMP_FILTER_FLAG_*`.
mod abi_flags {
    pub const TSYNC: u32 = 1;
    pub const LOG: u32 = 2;
    pub const SPEC_ALLOW: u32 = 4;
    pub const NEW_LISTENER: u32 = 8;
    pub const TSYNC_ESRCH: u32 = 16;
    pub const WAIT_KILLABLE_RECV: u32 = 32;
    pub const ALL: u32 = TSYNC | LOG | SPEC_ALLOW | NEW_LISTENER | TSYNC_ESRCH | WAIT_KILLABLE_RECV;
}
