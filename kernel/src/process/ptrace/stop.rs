//! Stops of a tracee, and how it goes on.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{CALLS, EMULATED, FORCED_TRAP, LISTENING, STEP, STOPPED, events};
use crate::arch::trap::TrapFrame;
use crate::cgroup::freezer;
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::process::tree::{self, Event, Guard, Look};
use crate::process::{self, Thread};
use crate::sched::{self, Sleep};
use crate::signal::{self, SIGCHLD, SigInfo, flags};

/// The trap flag: an exception after each instruction.
pub(super) const TRAP_FLAG: u64 = 1 << 8;

/// A stop, as the tracer sees it.
pub struct Stop {
    /// The signal, and an event 8 bits above: a wait status 8 bits lower.
    pub code: u32,
    /// `CLD_TRAPPED`, or `CLD_STOPPED` for a stop of the whole process.
    pub trapped: bool,
    pub message: u64,
    pub info: Option<SigInfo>,
}

impl Stop {
    /// A stop that is no signal: its information is made of its code.
    pub fn trap(code: u32, message: u64) -> Self {
        Self { code, trapped: true, message, info: Some(own_info(code, code as i32)) }
    }
}

/// What says that the current thread itself has stopped.
pub(super) fn own_info(code: u32, si_code: i32) -> SigInfo {
    let thread = process::current();
    SigInfo::user(code & 0x7f, si_code, thread.number(), thread.credentials().uid)
}

/// What the tracer has made of a stop.
pub(super) struct Answer {
    pub signal: u32,
    pub info: Option<SigInfo>,
    /// Who traces, for the information of a signal that the tracer has chosen.
    pub tracer: Option<(u32, u32)>,
}

/// Stops the current thread until its tracer lets it go on. `None` when nobody traces it, or when it is to die.
pub(super) fn stop(frame: &mut TrapFrame, stop: Stop) -> Option<Answer> {
    let thread = process::current();
    if !thread.trace.is_traced() {
        return None;
    }
    thread.trace.show(frame);
    {
        let mut tree = tree::lock_to_send(1);
        let state = thread.trace.state.get_mut(&mut tree);
        let tracer = state.tracer.clone()?;
        if thread.kill_pending() {
            drop(tree);
            return None;
        }
        state.stop = Some(stop.code);
        state.news = true;
        state.answer = stop.code & 0x7f;
        state.message = stop.message;
        state.info = stop.info;
        thread.trace.set(STOPPED);
        to_front(&mut tree, &thread);
        tell_tracer(&mut tree, &thread, &tracer, stop.code & 0x7f, stop.trapped);
        drop(tree);
        drop(tracer);
    }
    // One that comes from its rest and goes back to it is not taken for somebody who goes on.
    let rested = thread.resting.load(Ordering::Relaxed);
    freezer::rest(&thread);
    sched::sleep_until(Sleep::Stopped, || !thread.trace.is_stopped() || thread.kill_pending());
    if rested {
        freezer::go_on(&thread);
    } else {
        freezer::go_on_at_once(&thread);
    }
    let (answer, tracer) = {
        let mut tree = tree::lock();
        thread.trace.clear(STOPPED | LISTENING);
        let state = thread.trace.state.get_mut(&mut tree);
        state.news = false;
        let answer = Answer { signal: state.answer, info: state.info.take(), tracer: None };
        let tracer = state.tracer.clone();
        // A kill may have ended the stop.
        to_back(&mut tree, &thread);
        (answer, tracer)
    };
    thread.trace.load_shown(frame);
    let by = tracer
        .as_ref()
        .map(|tracer| (View::of(&thread.process).process(&tracer.process), tracer.credentials().uid));
    Some(Answer { tracer: by, ..answer })
}

/// Moves a tracee with news to where wait(2) looks first.
pub(super) fn to_front(tree: &mut Guard, thread: &Thread) {
    let Some(tracer) = thread.trace.state.get(tree).tracer.clone() else { return };
    let relations = tracer.process.relations.get_mut(tree);
    relations.tracees_moved += 1;
    let tracees = &mut relations.tracees;
    // SAFETY: a traced thread is on the list of its tracer's process.
    if let Some(thread) = unsafe { tracees.cursor_mut_from_ptr(thread).remove() } {
        tracees.push_front(thread);
    }
    // The tracee refers to its tracer: this clone is not the last.
}

/// Moves a tracee without news behind those that may have some: they come first.
pub(super) fn to_back(tree: &mut Guard, thread: &Thread) {
    let Some(tracer) = thread.trace.state.get(tree).tracer.clone() else { return };
    let relations = tracer.process.relations.get_mut(tree);
    relations.tracees_moved += 1;
    let tracees = &mut relations.tracees;
    // SAFETY: a traced thread is on the list of its tracer's process.
    if let Some(thread) = unsafe { tracees.cursor_mut_from_ptr(thread).remove() } {
        tracees.push_back(thread);
    }
    // The tracee refers to its tracer: this clone is not the last.
}

/// SIGCHLD and waking, for who traces the thread.
fn tell_tracer(tree: &mut Guard, thread: &Thread, tracer: &Arc<Thread>, status: u32, trapped: bool) {
    const CLD_TRAPPED: i32 = 4;
    const CLD_STOPPED: i32 = 5;
    let action = tracer.process.actions.lock().get(SIGCHLD);
    if action.handler != signal::SIG_IGN && action.flags & flags::SA_NOCLDSTOP == 0 {
        let code = if trapped { CLD_TRAPPED } else { CLD_STOPPED };
        let uid = thread.process.uid_for_signals();
        let info = SigInfo::child(code, View::of(&tracer.process).thread(thread), uid, status as i32, 0, 0);
        signal::send_process_locked(tree, &tracer.process, info);
    }
    tree.tell(&tracer.process, Event::Child);
}

/// Ends the stop of a thread, whatever it then does. The tree's lock is held.
pub(super) fn wake(thread: &Thread) {
    thread.trace.clear(STOPPED | LISTENING);
    sched::wake_stopped(&thread.to_arc());
}

/// How a tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    Continue,
    /// Until the beginning or the end of a system call.
    Calls,
    /// Until a system call, which is not made.
    Emulate,
    /// For one instruction.
    Step,
    /// For one instruction; a system call is not made.
    EmulateStep,
}

/// Lets a tracee go on with `signal`, 0 for none. `ESRCH` when it is in no stop.
pub fn resume(thread: &Thread, how: Resume, signal: u32) -> Result<()> {
    let flags = match how {
        Resume::Continue => 0,
        Resume::Calls => CALLS,
        Resume::Emulate => EMULATED,
        Resume::Step => STEP,
        Resume::EmulateStep => EMULATED | STEP,
    };
    stopped(thread)?;
    // Without the tree's lock, inside of which this one must not be. Only a kill can end the stop meanwhile.
    if flags & STEP != 0 {
        let mut registers = thread.trace.registers.lock();
        if let Some(registers) = registers.as_mut()
            && registers.frame.rflags & TRAP_FLAG == 0
        {
            registers.frame.rflags |= TRAP_FLAG;
            thread.trace.set(FORCED_TRAP);
        }
    }
    let mut tree = tree::lock();
    if !is_stopped(&tree, thread) {
        return Err(Errno::ESRCH);
    }
    thread.trace.clear(CALLS | EMULATED | STEP);
    thread.trace.set(flags);
    thread.trace.state.get_mut(&mut tree).answer = signal;
    to_back(&mut tree, thread);
    wake(thread);
    Ok(())
}

pub(super) fn is_stopped(tree: &Look, thread: &Thread) -> bool {
    let state = thread.trace.state.get(tree);
    let own = state.tracer.as_ref().is_some_and(|of| core::ptr::eq(Arc::as_ptr(of), &*process::current()));
    own && thread.trace.is_stopped() && !thread.trace.has(LISTENING)
}

/// What a tracer may ask of a stop.
pub struct Stopped {
    /// `PTRACE_EVENT_*`, 0 for a stop that is no event.
    pub event: u32,
    pub message: u64,
    pub info: Option<SigInfo>,
}

/// The stop of a tracee of the current thread. `ESRCH` when it is no tracee, in no stop, or listens.
pub fn stopped(thread: &Thread) -> Result<Stopped> {
    let tree = tree::look();
    if !is_stopped(&tree, thread) {
        return Err(Errno::ESRCH);
    }
    let state = thread.trace.state.get(&tree);
    Ok(Stopped { event: state.stop.unwrap_or(0) >> 8, message: state.message, info: state.info })
}

/// PTRACE_SETSIGINFO: `EINVAL` for a stop that has none.
pub fn set_info(thread: &Thread, info: SigInfo) -> Result<()> {
    let mut tree = tree::lock();
    let place = thread.trace.state.get_mut(&mut tree).info.as_mut().ok_or(Errno::EINVAL)?;
    *place = info;
    Ok(())
}

/// Asks a tracee to enter a stop of its own: PTRACE_INTERRUPT and changes of job control. The tree's lock is held.
pub(super) fn ask_trap(thread: &Thread) {
    thread.signals.ask_trap();
    if thread.trace.has(LISTENING) {
        wake(thread);
        return;
    }
    let thread = thread.to_arc();
    if !sched::wake_for_signal(&thread, false) && !sched::wake_stopped(&thread) {
        signal::kick(&thread);
    }
    // The caller knows the thread by a reference of its own: this clone is not the last.
}

/// PTRACE_INTERRUPT. `EIO` unless the tracee was seized.
pub fn interrupt(thread: &Thread) -> Result<()> {
    let tree = tree::look();
    if !thread.trace.state.get(&tree).seized {
        return Err(Errno::EIO);
    }
    ask_trap(thread);
    Ok(())
}

/// A stop of the process begins or ends: a tracee that was seized tells its tracer.
pub(crate) fn trap_of_group(tree: &Look, thread: &Thread) {
    if thread.trace.is_traced() && thread.trace.state.get(tree).seized {
        ask_trap(thread);
    }
}

/// PTRACE_LISTEN: the tracee stays stopped, and tells of what happens to its process. `EIO` when it is in another stop.
pub fn listen(thread: &Thread) -> Result<()> {
    let mut tree = tree::lock();
    if !is_stopped(&tree, thread) {
        return Err(Errno::ESRCH);
    }
    let state = thread.trace.state.get_mut(&mut tree);
    if !state.seized || state.stop.is_none_or(|code| code >> 8 != events::STOP) {
        return Err(Errno::EIO);
    }
    state.news = false;
    to_back(&mut tree, thread);
    thread.trace.set(LISTENING);
    if thread.signals.is_asked_to_trap() {
        wake(thread);
    }
    Ok(())
}
