//! The frame on the user's stack that a handler runs in, as Linux lays it out on x86-64.

use super::{Action, SigInfo, SigSet, UserSigInfo, flags};
use crate::arch::context::Context;
use crate::arch::fpu::{self, FpuState};
use crate::arch::gdt;
use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{self, read_user, write_user};
use crate::process::{self, Current, Thread};

/// The stack of sigaltstack(2), as the call passes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AltStack {
    pub base: u64,
    pub flags: i32,
    pad: i32,
    pub size: u64,
}

/// The thread runs on it now.
pub const SS_ONSTACK: i32 = 1;
/// There is none.
pub const SS_DISABLE: i32 = 2;
/// It is disabled while a handler runs on it.
pub const SS_AUTODISARM: i32 = 1 << 31;
/// Smallest size that is accepted.
pub const MINSIGSTKSZ: u64 = 2048;

impl AltStack {
    /// None.
    pub const DISABLED: Self = Self { base: 0, flags: SS_DISABLE, pad: 0, size: 0 };

    fn is_enabled(&self) -> bool {
        self.size != 0
    }

    fn holds(&self, sp: u64) -> bool {
        self.flags & SS_AUTODISARM == 0 && sp > self.base && sp - self.base <= self.size
    }

    /// As seen by user space, for a thread with this stack pointer.
    pub fn as_seen(&self, sp: u64) -> Self {
        let state = match () {
            () if !self.is_enabled() => SS_DISABLE,
            () if self.holds(sp) => SS_ONSTACK,
            () => 0,
        };
        Self { flags: state | (self.flags & SS_AUTODISARM), ..*self }
    }
}

impl Thread {
    /// sigaltstack(2): sets the stack; `EPERM` while the thread runs on the old one.
    pub fn set_alt_stack(&self, new: AltStack, sp: u64) -> Result<()> {
        let mut stack = self.signals.alt_stack.lock();
        if stack.is_enabled() && stack.holds(sp) {
            return Err(Errno::EPERM);
        }
        let mode = new.flags & !SS_AUTODISARM;
        *stack = match mode {
            SS_DISABLE => AltStack::DISABLED,
            0 | SS_ONSTACK if new.size < MINSIGSTKSZ => return Err(Errno::ENOMEM),
            0 | SS_ONSTACK => AltStack { flags: new.flags & SS_AUTODISARM, ..new },
            _ => return Err(Errno::EINVAL),
        };
        Ok(())
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    error: u64,
    vector: u64,
    old_mask: u64,
    cr2: u64,
    fpu: u64,
    reserved: [u64; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UserContext {
    flags: u64,
    link: u64,
    stack: AltStack,
    registers: SigContext,
    mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    return_address: u64,
    context: UserContext,
    info: UserSigInfo,
}

const _: () = assert!(size_of::<SigContext>() == 256 && size_of::<UserContext>() == 304);

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
/// Bytes below the stack pointer that the ABI lets a function use.
const RED_ZONE: u64 = 128;

/// Flags that a handler may change: the arithmetic ones, direction, trap, resume, alignment check.
const USER_FLAGS: u64 = 0x0005_0dd5;
const DIRECTION: u64 = 1 << 10;
const TRAP: u64 = 1 << 8;
const RESUME: u64 = 1 << 16;
const INTERRUPT: u64 = 1 << 9;

/// Builds the frame of a handler and makes `frame` enter it.
pub(super) fn push(frame: &mut TrapFrame, info: &SigInfo, action: &Action, mask: SigSet) -> Result<()> {
    let thread = process::current();
    let alt_stack = *thread.signals.alt_stack.lock();
    if action.flags & flags::SA_RESTORER == 0 {
        // Without it a handler on x86-64 has no way back: Linux refuses too.
        return Err(Errno::EFAULT);
    }
    let mut sp = frame.rsp.wrapping_sub(RED_ZONE);
    let enters_alt =
        action.flags & flags::SA_ONSTACK != 0 && alt_stack.is_enabled() && !alt_stack.holds(frame.rsp);
    if enters_alt {
        sp = alt_stack.base.wrapping_add(alt_stack.size);
    }
    let fpu_size = FpuState::signal_frame_size();
    let fpu_at = sp.wrapping_sub(fpu_size as u64) & !63;
    // As after a call: the stack pointer plus 8 is a multiple of 16.
    let at = (fpu_at.wrapping_sub(size_of::<Frame>() as u64) & !15).wrapping_sub(8);
    let on_alt = enters_alt || (alt_stack.is_enabled() && alt_stack.holds(frame.rsp));
    if on_alt && !(alt_stack.base..alt_stack.base.wrapping_add(alt_stack.size)).contains(&at) {
        // It would run over the end of the alternate stack.
        return Err(Errno::EFAULT);
    }
    write_fpu(&thread, fpu_at as usize)?;
    let trap = thread.trap();
    let xstate = if fpu_size > 512 { UC_FP_XSTATE } else { 0 };
    let value = Frame {
        return_address: action.restorer,
        context: UserContext {
            flags: xstate | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
            link: 0,
            stack: alt_stack.as_seen(frame.rsp),
            registers: SigContext {
                r8: frame.r8,
                r9: frame.r9,
                r10: frame.r10,
                r11: frame.r11,
                r12: frame.r12,
                r13: frame.r13,
                r14: frame.r14,
                r15: frame.r15,
                rdi: frame.rdi,
                rsi: frame.rsi,
                rbp: frame.rbp,
                rbx: frame.rbx,
                rdx: frame.rdx,
                rax: frame.rax,
                rcx: frame.rcx,
                rsp: frame.rsp,
                rip: frame.rip,
                rflags: frame.rflags,
                cs: frame.cs as u16,
                gs: 0,
                fs: 0,
                ss: gdt::USER_DATA,
                error: trap.error,
                vector: u64::from(trap.vector),
                old_mask: mask.0,
                cr2: trap.address,
                fpu: fpu_at,
                reserved: [0; 8],
            },
            mask: mask.0,
        },
        info: (*info).into(),
    };
    write_user(at as usize, &value)?;
    if alt_stack.flags & SS_AUTODISARM != 0 && enters_alt {
        *thread.signals.alt_stack.lock() = AltStack::DISABLED;
    }
    frame.rdi = info.signal as u64;
    frame.rsi = at + core::mem::offset_of!(Frame, info) as u64;
    frame.rdx = at + core::mem::offset_of!(Frame, context) as u64;
    frame.rax = 0;
    frame.rsp = at;
    frame.rip = action.handler;
    // 64-bit code, whatever it interrupts.
    frame.cs = u64::from(gdt::USER_CODE);
    frame.ss = u64::from(gdt::USER_DATA);
    frame.rflags &= !(DIRECTION | TRAP | RESUME);
    fpu::load_initial();
    Ok(())
}

/// rt_sigreturn(2): puts back what the frame says, except what a user must not set. `EFAULT` for a frame that is none.
pub fn sigreturn(frame: &mut TrapFrame) -> Result<()> {
    // The return instruction has taken the return address.
    let at = frame.rsp.wrapping_sub(8) as usize;
    let context_at = at.wrapping_add(core::mem::offset_of!(Frame, context));
    let context: UserContext = read_user(context_at)?;
    let registers = &context.registers;
    fpu::load_from_signal_frame(registers.fpu as usize)?;
    let thread = process::current();
    frame.forget_syscall();
    frame.r8 = registers.r8;
    frame.r9 = registers.r9;
    frame.r10 = registers.r10;
    frame.r11 = registers.r11;
    frame.r12 = registers.r12;
    frame.r13 = registers.r13;
    frame.r14 = registers.r14;
    frame.r15 = registers.r15;
    frame.rdi = registers.rdi;
    frame.rsi = registers.rsi;
    frame.rbp = registers.rbp;
    frame.rbx = registers.rbx;
    frame.rdx = registers.rdx;
    frame.rax = registers.rax;
    frame.rcx = registers.rcx;
    frame.rsp = registers.rsp;
    frame.rip = registers.rip;
    frame.rflags = (registers.rflags & USER_FLAGS) | (frame.rflags & !USER_FLAGS) | INTERRUPT;
    frame.cs = match registers.cs {
        gdt::USER_CODE32 => u64::from(gdt::USER_CODE32),
        _ => u64::from(gdt::USER_CODE),
    };
    frame.ss = u64::from(gdt::USER_DATA);
    thread.set_signal_mask(SigSet(context.mask));
    // Linux ignores what is wrong with the stack here, too: the program is on its way back already.
    let _ = thread.set_alt_stack(context.stack, frame.rsp);
    Ok(())
}

/// Writes the floating-point registers to the frame's part for them.
fn write_fpu(thread: &Current, at: usize) -> Result<()> {
    // SAFETY: the current thread's own context.
    let state = unsafe { Context::save_fpu(thread.context.get()) }.ok_or(Errno::EFAULT)?;
    let size = FpuState::used_size();
    // SAFETY: the state is there as long as the thread. A switch while the copy faults writes what is there.
    if unsafe { uaccess::copy_to_user_raw(at, state.cast(), size) } != 0 {
        return Err(Errno::EFAULT);
    }
    FpuState::end_of_signal_frame().map_or(Ok(()), |magic| write_user(at + size, &magic))
}
