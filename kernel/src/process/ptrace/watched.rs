//! The debug registers of a tracee: what its tracer sets by PTRACE_POKEUSER, and what it reads there after a hit.
//!
//! They are loaded when the tracee leaves a stop, stay with it when its tracer lets it go, and end with the program.

use super::Tracee;
use crate::arch::context::Context;
use crate::arch::debug::{self, DebugRegisters};
use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::memory::USER_END;
use crate::process;
use crate::signal::codes;

/// Bits of DR6 that are set while nothing is told.
const RESERVED_STATUS: u64 = 0xffff_0ff0;
/// Bits of DR7 that are not the tracer's.
const RESERVED_CONTROL: u64 = 0xffff_ffff_0000_fc00;
/// The flag with which an instruction runs past a breakpoint on itself.
const RESUME_FLAG: u64 = 1 << 16;
/// The kinds of breakpoints in DR7.
const EXECUTION: u64 = 0;
const INPUT_AND_OUTPUT: u64 = 2;

/// What a tracer sees of the debug registers.
#[derive(Default)]
pub(super) struct Watched {
    registers: DebugRegisters,
    /// DR7 as it was written.
    control: u64,
    /// DR6 of the last debug exception, the reserved bits inverted.
    status: u64,
}

impl Watched {
    pub fn read(&self, index: usize) -> u64 {
        match index {
            0..4 => self.registers.addresses[index],
            6 => self.status ^ RESERVED_STATUS,
            7 => self.control,
            _ => 0,
        }
    }

    /// `EINVAL` for what is not user mode's, or what the hardware does not know.
    pub fn write(&mut self, index: usize, value: u64) -> Result<()> {
        let mut registers = self.registers;
        match index {
            0..4 => registers.addresses[index] = value,
            6 => {
                self.status = value ^ RESERVED_STATUS;
                return Ok(());
            }
            7 => registers.control = value & !RESERVED_CONTROL,
            _ => return Err(Errno::EIO),
        }
        if !(0..4).all(|index| is_good(&registers, index)) {
            return Err(Errno::EINVAL);
        }
        self.registers = registers;
        if index == 7 {
            self.control = value;
        }
        Ok(())
    }

    /// Watches the current thread, whose registers these are.
    pub fn load(&self) {
        // SAFETY: the current thread's own context.
        unsafe { Context::watch(process::current().context.get(), &self.registers) };
    }
}

/// Is this one of the four in use?
fn is_on(registers: &DebugRegisters, index: usize) -> bool {
    registers.control >> (2 * index) & 3 != 0
}

/// Its kind, and how many bytes it watches.
fn kind(registers: &DebugRegisters, index: usize) -> (u64, u64) {
    let bits = registers.control >> (16 + 4 * index);
    (bits & 3, [1, 2, 8, 4][(bits >> 2 & 3) as usize])
}

fn is_good(registers: &DebugRegisters, index: usize) -> bool {
    let address = registers.addresses[index];
    let (kind, bytes) = if is_on(registers, index) { kind(registers, index) } else { (EXECUTION, 1) };
    address < USER_END
        && address.is_multiple_of(bytes)
        && kind != INPUT_AND_OUTPUT
        && (kind != EXECUTION || bytes == 1)
}

impl Tracee {
    /// The current thread, whose these are, runs another program: nothing that was watched is there any more.
    pub(super) fn watch_nothing(&self) {
        if let Some(registers) = self.registers.lock().as_mut() {
            registers.watched = Watched::default();
            registers.watched.load();
        }
    }
}

/// A debug exception of the current thread, which DR6 tells of: keeps for the tracer what was hit, and says the signal's code.
pub fn debug_code(frame: &mut TrapFrame, status: u64) -> i32 {
    if let Some(registers) = process::current().trace.registers.lock().as_mut() {
        let Watched { registers, status: seen, .. } = &mut registers.watched;
        let hits = (0..4).filter(|index| status >> index & 1 != 0 && is_on(registers, *index));
        *seen = status & debug::SINGLE_STEP;
        for index in hits {
            *seen |= 1 << index;
            if kind(registers, index).0 == EXECUTION {
                frame.rflags |= RESUME_FLAG;
            }
        }
    }
    match status {
        status if status & debug::SINGLE_STEP != 0 => codes::TRAP_TRACE,
        status if status & debug::HITS != 0 => codes::TRAP_HWBKPT,
        _ => codes::TRAP_BRKPT,
    }
}
