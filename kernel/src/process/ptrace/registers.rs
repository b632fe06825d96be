//! The registers of a tracee in a stop, as ptrace(2) lays them out.

use super::stop::TRAP_FLAG;
use super::watched::Watched;
use super::{FORCED_TRAP, Tracee};
use crate::arch::context::{self, UserRegisters};
use crate::arch::gdt;
use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::memory::USER_END;
use crate::process::Thread;

/// What a tracee shows while it is stopped.
#[derive(Default)]
pub struct Registers {
    pub frame: TrapFrame,
    pub user: UserRegisters,
    pub(super) watched: Watched,
}

/// `struct user_regs_struct`, in words.
pub type UserRegs = [u64; 27];

pub const NT_PRSTATUS: u32 = 1;
pub const NT_PRFPREG: u32 = 2;
pub const NT_X86_XSTATE: u32 = 0x202;

/// Bytes of `struct user`, of which PTRACE_PEEKUSER reads words.
pub const USER_AREA: usize = 928;
/// Where the debug registers stand in it.
const DEBUG_REGISTERS: core::ops::Range<usize> = 848..912;

// Places of what is not plainly a register in `UserRegs`.
const ORIG_RAX: usize = 15;
const CS: usize = 17;
const FLAGS: usize = 18;
const SS: usize = 20;
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;
/// The first of DS, ES, FS, GS, which have no meaning here.
const DATA_SEGMENTS: usize = 23;

/// Flags that a tracer may change: the arithmetic ones, trap, direction, nested task, resume, alignment check.
const USER_FLAGS: u64 = 0x0005_4dd5;

impl Tracee {
    /// Copies the current thread's registers to where its tracer sees them. The tracer's own trap flag is not among them.
    pub(super) fn show(&self, frame: &mut TrapFrame) {
        if self.clear(FORCED_TRAP) != 0 {
            frame.rflags &= !TRAP_FLAG;
        }
        self.clear(super::STEP);
        let user = *context::Context::current_user_registers();
        if let Some(registers) = self.registers.lock().as_mut() {
            registers.frame = *frame;
            registers.user = user;
        }
    }

    /// Loads the current thread's registers from there.
    pub(super) fn load_shown(&self, frame: &mut TrapFrame) {
        if let Some(registers) = self.registers.lock().as_ref() {
            *frame = registers.frame;
            context::load_user_registers(&registers.user);
            registers.watched.load();
        }
    }

    /// Shows `work` the registers of a tracee that is stopped.
    pub fn with_registers<R>(&self, work: impl FnOnce(&mut Registers) -> R) -> Result<R> {
        self.registers.lock().as_mut().map(|registers| work(registers)).ok_or(Errno::ESRCH)
    }
}

impl Registers {
    /// As PTRACE_GETREGS has them.
    pub fn words(&self) -> UserRegs {
        let f = &self.frame;
        [
            f.r15,
            f.r14,
            f.r13,
            f.r12,
            f.rbp,
            f.rbx,
            f.r11,
            f.r10,
            f.r9,
            f.r8,
            f.rax,
            f.rcx,
            f.rdx,
            f.rsi,
            f.rdi,
            if f.is_syscall() { f.orig_rax } else { u64::MAX },
            f.rip,
            f.cs,
            f.rflags,
            f.rsp,
            f.ss,
            self.user.fs_base,
            self.user.gs_base,
            0,
            0,
            0,
            0,
        ]
    }

    /// Sets one of them; `EIO` for a value that user mode must not have.
    pub fn set_word(&mut self, index: usize, value: u64) -> Result<()> {
        let f = &mut self.frame;
        let place = match index {
            0 => &mut f.r15,
            1 => &mut f.r14,
            2 => &mut f.r13,
            3 => &mut f.r12,
            4 => &mut f.rbp,
            5 => &mut f.rbx,
            6 => &mut f.r11,
            7 => &mut f.r10,
            8 => &mut f.r9,
            9 => &mut f.r8,
            10 => &mut f.rax,
            11 => &mut f.rcx,
            12 => &mut f.rdx,
            13 => &mut f.rsi,
            14 => &mut f.rdi,
            ORIG_RAX => &mut f.orig_rax,
            16 => &mut f.rip,
            FLAGS => {
                f.rflags = f.rflags & !USER_FLAGS | value & USER_FLAGS;
                return Ok(());
            }
            19 => &mut f.rsp,
            CS if value == u64::from(gdt::USER_CODE) => return Ok(()),
            SS if value == u64::from(gdt::USER_DATA) => return Ok(()),
            FS_BASE if value < USER_END => &mut self.user.fs_base,
            GS_BASE if value < USER_END => &mut self.user.gs_base,
            // Of the user's privilege, or none: it has no effect in 64-bit mode.
            DATA_SEGMENTS..27 if value as u16 == 0 || value & 3 == 3 => return Ok(()),
            _ => return Err(Errno::EIO),
        };
        *place = value;
        Ok(())
    }
}

/// PTRACE_PEEKUSER.
pub fn read_word(thread: &Thread, offset: usize) -> Result<u64> {
    if !offset.is_multiple_of(8) || offset >= USER_AREA {
        return Err(Errno::EIO);
    }
    thread.trace.with_registers(|registers| match debug_register(offset) {
        Some(index) => registers.watched.read(index),
        // Of the rest of the area only core files make use.
        None => registers.words().get(offset / 8).copied().unwrap_or(0),
    })
}

/// PTRACE_POKEUSER.
pub fn write_word(thread: &Thread, offset: usize, value: u64) -> Result<()> {
    if !offset.is_multiple_of(8) || offset >= USER_AREA {
        return Err(Errno::EIO);
    }
    thread.trace.with_registers(|registers| match debug_register(offset) {
        Some(index) => registers.watched.write(index, value),
        None => registers.set_word(offset / 8, value),
    })?
}

/// Which debug register stands there.
fn debug_register(offset: usize) -> Option<usize> {
    DEBUG_REGISTERS.contains(&offset).then(|| (offset - DEBUG_REGISTERS.start) / 8)
}
