//! Signals: handlers, masks, stacks, sending and waiting.

use libc::*;
use roundtable_programs::sys::PAGE;
use syscalls::Sysno;

use super::{Call, Kind, opens, plain, special};
use crate::turn::Arg::{
    self, Below, Bits, Buffer, Descriptor, Is, OneOf, Process, Signal, SignalSet, Thread, Timespec,
};
use crate::turn::Turn;

pub const CALLS: &[Call] = &[
    special("rt_sigaction", 8, action),
    plain("rt_sigprocmask", 8, Sysno::rt_sigprocmask, &[Below(3), SignalSet, Is(0), Is(8)]),
    plain("rt_sigpending", 1, Sysno::rt_sigpending, &[Buffer, Is(8)]),
    plain("rt_sigsuspend", 1, Sysno::rt_sigsuspend, &[SignalSet, Is(8)]),
    plain("rt_sigtimedwait", 4, Sysno::rt_sigtimedwait, &[SignalSet, Buffer, Timespec, Is(8)]),
    special("rt_sigqueueinfo", 4, queue),
    special("sigaltstack", 3, stack),
    plain("kill", 8, Sysno::kill, &[Process, Signal]),
    plain("tkill", 3, Sysno::tkill, &[Thread, Signal]),
    plain("tgkill", 3, Sysno::tgkill, &[Process, Thread, Signal]),
    opens("pidfd_open", 3, Sysno::pidfd_open, &[Process, OneOf(&[0, O_NONBLOCK as usize])], Kind::Any),
    plain("pidfd_send_signal", 2, Sysno::pidfd_send_signal, &[Descriptor, Signal, Is(0), Is(0)]),
    opens(
        "signalfd4",
        3,
        Sysno::signalfd4,
        &[OneOf(&[usize::MAX, 3, 4]), SignalSet, Is(8), NONBLOCK],
        Kind::Any,
    ),
    plain("alarm", 1, Sysno::alarm, &[Below(2)]),
    plain("pause", 1, Sysno::pause, &[]),
];

const NONBLOCK: Arg = Bits(&[O_NONBLOCK as usize, O_NONBLOCK as usize, O_CLOEXEC as usize]);

/// A handler that does nothing; what it interrupts is what matters.
extern "C" fn nothing(_: i32) {}

/// A handler that enters the kernel.
extern "C" fn entering(_: i32) {
    // SAFETY: takes nothing and changes nothing.
    let _ = unsafe { syscalls::syscall!(Sysno::sched_yield) };
}

// What a handler returns to: the call that takes its frame down.
std::arch::global_asm!(
    ".globl roundtable_fuzz_restore",
    "roundtable_fuzz_restore:",
    "mov eax, 15",
    "syscall",
    "ud2"
);

unsafe extern "C" {
    fn roundtable_fuzz_restore();
}

/// The kernel's own structure, with a trampoline: `SA_RESTORER`.
fn action_words(handler: usize, flags: u64, mask: u64) -> [u64; 4] {
    const RESTORER: u64 = 0x0400_0000;
    [handler as u64, flags | RESTORER, roundtable_fuzz_restore as *const () as u64, mask]
}

/// Catches all signals that would end an actor by chance. Without allocation, as children do it too.
pub fn catch_all() {
    for signal in
        (1..=64).filter(|signal| ![SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGILL, SIGCHLD].contains(signal))
    {
        let words = action_words(nothing as *const () as usize, 0, 0);
        // SAFETY: the words are a whole action and live through the call; the handler touches nothing.
        let _ = unsafe { syscalls::syscall!(Sysno::rt_sigaction, signal, words.as_ptr(), 0, 8) };
    }
}

fn action(turn: &mut Turn) {
    let signal = turn.draw(Signal);
    let handler = [0, 1, nothing as *const () as usize, entering as *const () as usize][turn.rng.below(4)];
    let flags = turn.bits(&[
        SA_RESTART as usize,
        SA_NODEFER as usize,
        SA_ONSTACK as usize,
        SA_SIGINFO as usize,
        SA_RESETHAND as usize,
        SA_NOCLDWAIT as usize,
    ]);
    let mask = [0, u64::MAX, turn.rng.draw()][turn.rng.below(3)];
    let words = action_words(handler, flags as u64, mask);
    let place = turn.put(&words);
    let _ = turn.call(Sysno::rt_sigaction, [signal, place, 0, 8, 0, 0]);
}

fn queue(turn: &mut Turn) {
    let (process, signal) = (turn.draw(Process), turn.draw(Signal));
    // Its number, errno 0, and SI_QUEUE.
    let information = turn.put(&[signal as u64, -1i32 as u32 as u64, 0, turn.index.into()]);
    let _ = turn.call(Sysno::rt_sigqueueinfo, [process, signal, information, 0, 0, 0]);
}

/// An alternate stack in some area: of base pages, of huge ones, or of none.
fn stack(turn: &mut Turn) {
    let address = turn.draw(Arg::Address) as u64;
    let flags = turn.one_of(&[0, 0, SS_DISABLE as usize, 1 << 31]) as u64;
    let size = turn.one_of(&[16 * PAGE, 4 * PAGE, 100]) as u64;
    let place = turn.put(&[address, flags, size]);
    let _ = turn.call(Sysno::sigaltstack, [place, 0, 0, 0, 0, 0]);
}
