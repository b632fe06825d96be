//! What happens to pending signals on the way to user mode.

use alloc::sync::Arc;
use syscalls::Errno;

use super::pending::Queued;
use super::{
    Action, DefaultAction, Pending, SIG_DFL, SIG_IGN, SIGALRM, SIGSTOP, SigInfo, SigSet, default_of, flags,
    frame, stop,
};
use crate::arch::trap::TrapFrame;
use crate::cgroup::freezer;
use crate::process::{self, Thread, WaitStatus, exit, ptrace};

/// Handles everything that is pending for the current thread, with interrupts on: the thread dies, stops, or has a handler's frame put on its stack.
/// A system call that was interrupted restarts, or returns `EINTR`.
pub fn deliver(frame: &mut TrapFrame) {
    let thread = process::current();
    loop {
        if thread.kill_pending() {
            freezer::go_on(&thread);
            exit::thread_killed();
        }
        stop::stop_if_asked(frame);
        if thread.kill_pending() {
            continue;
        }
        if freezer::rest_if_asked(&thread) {
            continue;
        }
        freezer::go_on(&thread);
        let Some((info, mut continued)) = take(&thread) else { break };
        let traced = thread.trace.is_traced();
        let Some(info) = ptrace::signal_stop(frame, info) else { continue };
        if traced {
            // What the tracer lets through comes now.
            continued = stop::times_continued(&thread.process);
        }
        if thread.kill_pending() {
            continue;
        }
        let signal = info.signal as u32;
        let action = action_of(&thread, signal);
        match action.handler {
            SIG_IGN => continue,
            SIG_DFL => {
                default_action(&thread, signal, &info, continued);
                continue;
            }
            _ => {}
        }
        restart_for_handler(frame, &action);
        let old_mask = thread.signals.take_saved_mask().unwrap_or_else(|| thread.signals.mask());
        process::rseq::abort_for_signal(frame);
        ptrace::before_handler(frame);
        if frame::push(frame, &info, &action, old_mask).is_err() {
            // No room for the frame: SIGSEGV, and if that is what failed to be delivered, with its default action.
            super::exception::force_segv(signal);
            continue;
        }
        let mut mask = thread.signals.mask().union(SigSet(action.mask));
        if action.flags & flags::SA_NODEFER == 0 {
            mask = mask.with(signal);
        }
        thread.set_signal_mask(mask);
        return_to_handler(&thread);
        ptrace::handler_entered(frame);
        // Further signals that are not blocked interrupt the handler at its first instruction.
        if !thread.signals.pending() {
            return;
        }
        continue;
    }
    restart_without_handler(frame);
    thread.restore_mask();
}

/// The next signal, and how many SIGCONT its process had had when it was taken.
fn take(thread: &Thread) -> Option<(SigInfo, u32)> {
    let mut outdated = Pending::new();
    let (queued, continued);
    {
        let mut state = thread.process.signals.state.lock();
        let wanted = SigSet(!thread.signals.mask().0);
        state.catch_up(&thread.signals, &mut outdated);
        queued = take_from(&mut thread.signals.own.lock(), wanted)
            .or_else(|| take_from(&mut state.shared, wanted));
        state.recalculate(&thread.signals);
        continued = state.continued;
    }
    Some((taken(thread, &*queued?), continued))
}

/// What is done about a signal; SA_RESETHAND has been done.
fn action_of(thread: &Thread, signal: u32) -> Action {
    let actions = thread.process.actions.lock().clone();
    let action = actions.get(signal);
    if action.flags & flags::SA_RESETHAND != 0 && action.handler > SIG_IGN {
        actions.set(signal, Action { handler: SIG_DFL, ..action });
    }
    action
}

/// A signal is taken: says what it says, and arms the periodic timer that sent it for the next time.
fn taken(thread: &Thread, queued: &Queued) -> SigInfo {
    let mut info = *queued.info();
    if let Some(timer) = queued.timer() {
        info.set_overrun(timer.signal_taken());
    } else if queued.signal() == SIGALRM {
        thread.process.timers.alarm_taken();
    }
    if thread.has_user_namespace() && info.has_uid() {
        info.set_uid(thread.credentials().shown_uid(info.uid()));
    }
    info
}

fn take_from(pending: &mut Pending, wanted: SigSet) -> Option<Arc<Queued>> {
    let signal = pending.next(wanted)?;
    pending.take(signal)
}

/// Takes one of the signals in `wanted`, blocked or not, for sigtimedwait(2) and signalfd(2).
pub fn take_waited(thread: &Thread, wanted: SigSet) -> Option<SigInfo> {
    let mut outdated = Pending::new();
    let queued;
    {
        let mut state = thread.process.signals.state.lock();
        state.catch_up(&thread.signals, &mut outdated);
        queued = take_from(&mut thread.signals.own.lock(), wanted)
            .or_else(|| take_from(&mut state.shared, wanted));
        state.recalculate(&thread.signals);
    }
    Some(taken(thread, &*queued?))
}

fn default_action(thread: &Thread, signal: u32, info: &SigInfo, continued: u32) {
    let process = &thread.process;
    match default_of(signal) {
        DefaultAction::Ignore | DefaultAction::Continue => {}
        DefaultAction::Stop => {
            // A group that nobody could continue does not stop, except by SIGSTOP.
            if signal == SIGSTOP || !process.group_is_orphaned() {
                stop::begin(process, signal, continued);
            }
        }
        // What the first process of a namespace does not handle does not reach it, unless it is its own fault.
        _ if process.is_init() && info.is_from_user() => {}
        // No core is written, and so none is told of.
        _ => exit::end_process(WaitStatus::Killed { signal: signal as u8, core: false }),
    }
}

/// An entry into a handler: what the interrupted system call returns, or whether it is made again after the handler.
fn restart_for_handler(frame: &mut TrapFrame, action: &Action) {
    let Some(error) = restart_code(frame) else { return };
    match error {
        Errno::ERESTARTNOINTR => restart(frame, frame.orig_rax),
        Errno::ERESTARTSYS if action.flags & flags::SA_RESTART != 0 => restart(frame, frame.orig_rax),
        _ => frame.rax = -(Errno::EINTR.into_raw() as i64) as u64,
    }
    frame.forget_syscall();
}

/// No handler is entered: the interrupted system call is made again, as if nothing had happened.
fn restart_without_handler(frame: &mut TrapFrame) {
    let Some(error) = restart_code(frame) else { return };
    const RESTART_SYSCALL: u64 = 219;
    match error {
        Errno::ERESTART_RESTARTBLOCK => restart(frame, RESTART_SYSCALL),
        _ => restart(frame, frame.orig_rax),
    }
    frame.forget_syscall();
}

/// Why the system call wants to be restarted; `None` if it does not, or if this is no system call.
fn restart_code(frame: &TrapFrame) -> Option<Errno> {
    if !frame.is_syscall() {
        return None;
    }
    is_restart(frame.rax).then(|| Errno::new((frame.rax as i64).wrapping_neg() as i32))
}

/// Whether the result of a system call says that the call is to be made again. Errno 515 is among the others, and says nothing of that kind.
#[inline]
pub fn is_restart(result: u64) -> bool {
    const RESTARTS: [Errno; 4] =
        [Errno::ERESTARTSYS, Errno::ERESTARTNOINTR, Errno::ERESTARTNOHAND, Errno::ERESTART_RESTARTBLOCK];
    let error = (result as i64).wrapping_neg();
    (512..=516).contains(&error) && RESTARTS.contains(&Errno::new(error as i32))
}

/// Back to the `syscall` instruction, which is two bytes long.
fn restart(frame: &mut TrapFrame, number: u64) {
    frame.rax = number;
    // A tracer may have put the pointer anywhere.
    frame.rip = frame.rip.wrapping_sub(2);
}

fn return_to_handler(thread: &Thread) {
    // A restart that the interrupted call had prepared is void: the handler may make calls of its own.
    let restart = thread.restart.lock().take();
    drop(restart);
}
