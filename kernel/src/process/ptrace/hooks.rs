//! Where a tracee stops: signals, system calls, clone, exec, exit.

use core::sync::atomic::Ordering;

use super::stop::{TRAP_FLAG, own_info, stop};
use super::{CALLS, EMULATED, FORCED_TRAP, STEP, Stop, events, options};
use crate::arch::debug;
use crate::arch::trap::{self, TrapFrame};
use crate::errno::Errno;
use crate::process::{self, CloneArgs, Pid, Thread, WaitStatus, tree};
use crate::signal::{self, SIGCHLD, SIGKILL, SIGTRAP, SigInfo};

use linux_raw_sys::general as abi;

/// Has the tracer asked for stops at this event?
fn wants(thread: &Thread, event: u32) -> bool {
    thread.trace.is_traced() && thread.trace.state.get(&tree::look()).options & 1 << event != 0
}

fn event_stop(frame: &mut TrapFrame, event: u32, message: u64) {
    stop(frame, Stop::trap(SIGTRAP | event << 8, message));
}

/// A copy of the current thread's user registers: for stops in which what the tracer changes in them has no effect any more.
pub fn own_frame() -> TrapFrame {
    // SAFETY: the current thread has come from user mode, or has a frame to go there.
    unsafe { *trap::user_frame() }
}

/// A signal is about to be delivered: says what the tracer makes of it, `None` for nothing.
pub fn signal_stop(frame: &mut TrapFrame, info: SigInfo) -> Option<SigInfo> {
    let signal = info.signal as u32;
    let thread = process::current();
    if signal == SIGKILL || !thread.trace.is_traced() {
        return Some(info);
    }
    let asked = Stop { code: signal, trapped: true, message: 0, info: Some(info) };
    let Some(answer) = stop(frame, asked) else { return Some(info) };
    if answer.signal == 0 {
        return None;
    }
    let info = match answer.info {
        Some(info) if info.signal as u32 == answer.signal => info,
        _ => {
            let (pid, uid) = answer.tracer.unwrap_or((0, 0));
            SigInfo::user(answer.signal, signal::codes::SI_USER, pid, uid)
        }
    };
    if thread.signals.mask().contains(answer.signal) {
        signal::send_thread(&thread.to_arc(), info);
        return None;
    }
    Some(info)
}

/// The process has stopped by `signal`, or the tracer has asked for a stop.
pub fn group_stop(frame: &mut TrapFrame, signal: Option<u32>) {
    let thread = process::current();
    let seized = thread.trace.state.get(&tree::look()).seized;
    let asked = match signal {
        _ if seized => {
            let code = signal.unwrap_or(SIGTRAP) | events::STOP << 8;
            Stop { code, trapped: false, message: 0, info: Some(own_info(code, code as i32)) }
        }
        Some(signal) => Stop { code: signal, trapped: false, message: 0, info: None },
        // Only seized tracees stop for that.
        None => return,
    };
    stop(frame, asked);
}

/// The frame of a signal's handler was made: a tracer that steps sees its first instruction.
pub fn handler_entered(frame: &mut TrapFrame) {
    let thread = process::current();
    if thread.trace.clear(STEP) != 0 {
        thread.trace.clear(FORCED_TRAP);
        frame.rflags &= !TRAP_FLAG;
        stop(frame, Stop::trap(SIGTRAP, 0));
    }
}

/// Before a signal's frame is made: the trap flag of a tracer that steps does not belong into it.
pub fn before_handler(frame: &mut TrapFrame) {
    if process::current().trace.clear(FORCED_TRAP) != 0 {
        frame.rflags &= !TRAP_FLAG;
    }
}

/// A debug exception: true if it comes of nothing but the trap flag of a tracer that has gone.
pub fn step_is_void(frame: &mut TrapFrame, status: u64) -> bool {
    let thread = process::current();
    if status & debug::HITS != 0 || thread.trace.is_traced() || thread.trace.clear(FORCED_TRAP) == 0 {
        return false;
    }
    frame.rflags &= !TRAP_FLAG;
    true
}

const ENTRY: u64 = 1;
const EXIT: u64 = 2;

fn call_stop(frame: &mut TrapFrame, message: u64) {
    let thread = process::current();
    let good = thread.trace.state.get(&tree::look()).options & options::TRACESYSGOOD != 0;
    let code = SIGTRAP | if good { 0x80 } else { 0 };
    let answer = stop(frame, Stop::trap(code, message));
    if let Some(signal) =
        answer.map(|answer| answer.signal).filter(|signal| *signal != 0 && *signal != SIGTRAP)
    {
        signal::send_thread(&thread.to_arc(), SigInfo::kernel(signal));
    }
}

/// The number of the system call, as the registers have it now; `None` for none.
fn number(frame: &TrapFrame) -> Option<usize> {
    let number = frame.orig_rax as u32;
    (number != u32::MAX).then_some(number as usize)
}

/// What stands in the place of the result while the call is made: `-ENOSYS`.
const NO_RESULT: u64 = (-38i64) as u64;

/// A system call begins. The tracer may change its number, which is returned, and its arguments. `None`: it is not made.
pub fn call_begins(frame: &mut TrapFrame) -> Option<usize> {
    let thread = process::current();
    let emulated = thread.trace.has(EMULATED);
    if !emulated && !thread.trace.has(CALLS) {
        return number(frame);
    }
    frame.rax = NO_RESULT;
    call_stop(frame, ENTRY);
    if emulated || thread.kill_pending() { None } else { number(frame) }
}

/// A system call ends, with its result in the registers.
pub fn call_ends(frame: &mut TrapFrame) {
    let thread = process::current();
    if thread.trace.has(STEP) && !thread.trace.has(EMULATED) {
        signal::force_signal(SigInfo::fault(SIGTRAP, signal::codes::TRAP_BRKPT, frame.rip));
    } else if thread.trace.has(CALLS) {
        call_stop(frame, EXIT);
    }
}

/// A seccomp filter leaves the decision to the tracer. `Err(ENOSYS)` when there is none; else the number as after a system call's begin.
pub fn seccomp_event(frame: &mut TrapFrame, data: u32) -> Result<Option<usize>, Errno> {
    let thread = process::current();
    if !wants(&thread, events::SECCOMP) {
        return Err(Errno::ENOSYS);
    }
    frame.rax = NO_RESULT;
    event_stop(frame, events::SECCOMP, u64::from(data));
    Ok(if thread.kill_pending() { None } else { number(frame) })
}

/// What a clone(2) of the current thread means for its tracer.
#[derive(Clone, Copy)]
pub struct CloneEvent {
    /// The event that its tracer wants to hear of.
    event: Option<u32>,
    /// The child is traced too.
    pub inherits: bool,
}

/// Asks before the child is made.
pub fn clone_event(thread: &Thread, args: &CloneArgs) -> CloneEvent {
    let has = |flag: u32| args.flags & u64::from(flag) != 0;
    if !thread.trace.is_traced() {
        return CloneEvent { event: None, inherits: false };
    }
    let event = match () {
        () if has(abi::CLONE_VFORK) => events::VFORK,
        () if args.exit_signal != SIGCHLD => events::CLONE,
        () => events::FORK,
    };
    let event = (!has(abi::CLONE_UNTRACED) && wants(thread, event)).then_some(event);
    CloneEvent { event, inherits: event.is_some() || has(abi::CLONE_PTRACE) }
}

impl CloneEvent {
    /// The child is there.
    pub fn tell(&self, frame: &mut TrapFrame, child: Pid) {
        if let Some(event) = self.event {
            event_stop(frame, event, u64::from(child));
        }
    }
}

/// A vfork(2) child has let go of the memory.
pub fn vfork_done(frame: &mut TrapFrame, child: Pid) {
    if wants(&process::current(), events::VFORK_DONE) {
        event_stop(frame, events::VFORK_DONE, u64::from(child));
    }
}

/// A new program is in place, in a process whose thread had the number `tid` before.
pub fn exec_event(frame: &mut TrapFrame, tid: Pid) {
    let thread = process::current();
    thread.trace.watch_nothing();
    if !thread.trace.is_traced() {
        return;
    }
    if wants(&thread, events::EXEC) {
        event_stop(frame, events::EXEC, u64::from(tid));
    } else if !thread.trace.state.get(&tree::look()).seized {
        let info =
            SigInfo::user(SIGTRAP, signal::codes::SI_USER, thread.process.number(), thread.credentials().uid);
        signal::send_thread(&thread.to_arc(), info);
    }
}

/// The current thread ends with this status.
pub fn exit_event(thread: &Thread, status: WaitStatus) {
    // Relaxed: a flag of its own. A victim of the killer's stops for nobody: others wait for its memory.
    if wants(thread, events::EXIT) && !thread.process.oom_killed.load(Ordering::Relaxed) {
        event_stop(&mut own_frame(), events::EXIT, status.to_bits() as u64);
    }
}
