//! Signals that the thread itself causes: by an instruction, or by a fault of its stack.

use super::{Action, SIG_DFL, SIG_IGN, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SigInfo, SigSet, codes};
use crate::arch::trap::{self, TrapFrame};
use crate::process::{self, Trap, ptrace};

/// An exception of user mode other than a page fault. `status` is DR6 of a debug exception.
pub fn exception(frame: &mut TrapFrame, vector: u8, error: u64, status: u64) {
    if vector == trap::DEBUG && ptrace::step_is_void(frame, status) {
        return;
    }
    process::current().set_trap(Trap { vector, error, address: 0 });
    let rip = frame.rip;
    let (signal, code, at) = match vector {
        0 => (SIGFPE, codes::FPE_INTDIV, rip),
        1 => (SIGTRAP, ptrace::debug_code(frame, status), rip),
        3 => (SIGTRAP, codes::SI_KERNEL, 0),
        6 => (SIGILL, codes::ILL_ILLOPN, rip),
        16 | 19 => (SIGFPE, floating_point_code(), rip),
        17 => (SIGBUS, codes::BUS_ADRALN, 0),
        // Overflow, bound, segment and protection faults say no address.
        _ => (SIGSEGV, codes::SI_KERNEL, 0),
    };
    force_signal(SigInfo::fault(signal, code, at));
}

/// Which floating-point exception it was: the first unmasked flag, of the x87 unit or of MXCSR.
fn floating_point_code() -> i32 {
    let mut state = crate::arch::fpu::FpuState::new();
    state.save();
    let bytes = state.as_bytes();
    let word = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (control, status) = (word(0), word(2));
    let mxcsr = word(24);
    let raised = (status & !control & 0x3f) | (mxcsr & !(mxcsr >> 7) & 0x3f);
    match raised {
        raised if raised & 1 != 0 => codes::FPE_FLTINV,
        raised if raised & 4 != 0 => codes::FPE_FLTDIV,
        raised if raised & 8 != 0 => codes::FPE_FLTOVF,
        raised if raised & 0x12 != 0 => codes::FPE_FLTUND,
        raised if raised & 0x20 != 0 => codes::FPE_FLTRES,
        _ => codes::SI_KERNEL,
    }
}

/// A page fault that stays one: SIGSEGV or SIGBUS with the address; `error` is the hardware's error code.
pub fn force_fault(signal: u32, code: i32, address: u64, error: u64) {
    process::current().set_trap(Trap { vector: trap::PAGE_FAULT, error, address });
    force_signal(SigInfo::fault(signal, code, address));
}

/// A fault on a page that counts as broken: SIGBUS with the address and how much around it is lost, as a power of two.
pub fn force_poison(address: u64, granule: u32, error: u64) {
    process::current().set_trap(Trap { vector: trap::PAGE_FAULT, error, address });
    force_signal(SigInfo::poison(address, granule));
}

/// Sends the current thread a signal that it cannot ignore or block: if it tries, the default action happens.
pub fn force_signal(info: SigInfo) {
    let thread = process::current();
    let signal = info.signal as u32;
    let actions = thread.process.actions.lock().clone();
    let action = actions.get(signal);
    let blocked = thread.signals.mask().contains(signal);
    if blocked || action.handler == SIG_IGN {
        actions.set(signal, Action { handler: SIG_DFL, ..action });
        if blocked {
            let mask = thread.signals.mask().without(SigSet::of(&[signal]));
            thread.set_signal_mask(mask);
        }
    }
    super::send::force(&thread.to_arc(), info);
}

/// The frame of a handler for `signal` did not fit: SIGSEGV; for a SIGSEGV handler, the default action of SIGSEGV.
pub(super) fn force_segv(signal: u32) {
    if signal == SIGSEGV {
        let actions = process::current().process.actions.lock().clone();
        let action = actions.get(SIGSEGV);
        actions.set(SIGSEGV, Action { handler: SIG_DFL, ..action });
    }
    force_signal(SigInfo::kernel(SIGSEGV));
}
