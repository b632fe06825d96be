//! Classic BPF as seccomp(2) has it: a checker that admits what cannot loop or read beyond its data, and an interpreter.
//!
//! The instructions and their limits are those of Linux's `bpf_check_classic` and `seccomp_check_filter`. Jumps go forward only, so
//! a program ends within as many steps as it has instructions.

use alloc::vec::Vec;

use crate::errno::{Errno, Result};
use crate::memory::fallible;

/// Most instructions of one program: `BPF_MAXINSNS`.
pub const MOST: usize = 4096;
/// Words of scratch memory: `BPF_MEMWORDS`.
const MEMORY: usize = 16;

/// `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

/// `struct seccomp_data`: what a filter decides about.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    pub number: i32,
    pub arch: u32,
    pub instruction: u64,
    pub arguments: [u64; 6],
}

/// Bytes of [`Call`].
const DATA: u32 = size_of::<Call>() as u32;
const _: () = assert!(DATA == 64);

/// Opcodes: class, mode or operation, and source together.
mod op {
    pub const LD_WORD: u16 = 0x20;
    pub const LD_LEN: u16 = 0x80;
    pub const LDX_LEN: u16 = 0x81;
    pub const LD_IMM: u16 = 0x00;
    pub const LDX_IMM: u16 = 0x01;
    pub const LD_MEM: u16 = 0x60;
    pub const LDX_MEM: u16 = 0x61;
    pub const ST: u16 = 0x02;
    pub const STX: u16 = 0x03;
    pub const NEG: u16 = 0x84;
    pub const JUMP: u16 = 0x05;
    pub const RET_K: u16 = 0x06;
    pub const RET_A: u16 = 0x16;
    pub const TAX: u16 = 0x07;
    pub const TXA: u16 = 0x87;
    /// The operand is X, not K.
    pub const X: u16 = 0x08;
    pub const ADD: u16 = 0x04;
    pub const SUB: u16 = 0x14;
    pub const MUL: u16 = 0x24;
    pub const DIV: u16 = 0x34;
    pub const OR: u16 = 0x44;
    pub const AND: u16 = 0x54;
    pub const LSH: u16 = 0x64;
    pub const RSH: u16 = 0x74;
    pub const XOR: u16 = 0xa4;
    pub const JEQ: u16 = 0x15;
    pub const JGT: u16 = 0x25;
    pub const JGE: u16 = 0x35;
    pub const JSET: u16 = 0x45;
}

/// The operation without its source.
const fn base(code: u16) -> u16 {
    code & !op::X
}

const fn is_arithmetic(code: u16) -> bool {
    use op::{ADD, AND, DIV, LSH, MUL, OR, RSH, SUB, XOR};
    matches!(base(code), ADD | SUB | MUL | DIV | OR | AND | LSH | RSH | XOR)
}

const fn is_condition(code: u16) -> bool {
    matches!(base(code), op::JEQ | op::JGT | op::JGE | op::JSET)
}

/// A program that has been checked.
pub struct Program(Vec<Instruction>);

impl Program {
    /// `EINVAL` for a program that Linux refuses.
    pub fn new(instructions: Vec<Instruction>) -> Result<Self> {
        if instructions.is_empty() || instructions.len() > MOST {
            return Err(Errno::EINVAL);
        }
        for (at, instruction) in instructions.iter().enumerate() {
            if !is_valid(instruction, instructions.len() - at - 1) {
                return Err(Errno::EINVAL);
            }
        }
        let last = instructions[instructions.len() - 1].code;
        if !matches!(last, op::RET_K | op::RET_A) || !memory_is_written_first(&instructions)? {
            return Err(Errno::EINVAL);
        }
        Ok(Self(instructions))
    }

    /// Instructions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The instructions, as they were given.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// What the program returns for a system call.
    pub fn run(&self, call: &Call) -> u32 {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; MEMORY];
        let mut at = 0;
        loop {
            // The checker has seen that each way ends with a return before the end.
            let Instruction { code, jump_true, jump_false, k } = self.0[at];
            at += 1;
            let operand = if code & op::X != 0 { x } else { k };
            match code {
                op::LD_WORD => a = word(call, k),
                op::LD_LEN => a = DATA,
                op::LDX_LEN => x = DATA,
                op::LD_IMM => a = k,
                op::LDX_IMM => x = k,
                op::LD_MEM => a = memory[k as usize],
                op::LDX_MEM => x = memory[k as usize],
                op::ST => memory[k as usize] = a,
                op::STX => memory[k as usize] = x,
                op::NEG => a = a.wrapping_neg(),
                op::TAX => x = a,
                op::TXA => a = x,
                op::JUMP => at += k as usize,
                op::RET_K => return k,
                op::RET_A => return a,
                _ if is_condition(code) => {
                    let holds = match base(code) {
                        op::JEQ => a == operand,
                        op::JGT => a > operand,
                        op::JGE => a >= operand,
                        _ => a & operand != 0,
                    };
                    at += usize::from(if holds { jump_true } else { jump_false });
                }
                _ => match arithmetic(base(code), a, operand) {
                    Some(result) => a = result,
                    // A division by zero ends the program with 0.
                    None => return 0,
                },
            }
        }
    }
}

fn arithmetic(code: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match code {
        op::ADD => a.wrapping_add(operand),
        op::SUB => a.wrapping_sub(operand),
        op::MUL => a.wrapping_mul(operand),
        op::DIV => a.checked_div(operand)?,
        op::OR => a | operand,
        op::AND => a & operand,
        op::LSH => a.wrapping_shl(operand),
        op::RSH => a.wrapping_shr(operand),
        _ => a ^ operand,
    })
}

/// The 32-bit word at byte `k` of the call's data.
fn word(call: &Call, k: u32) -> u32 {
    let half = |value: u64, at: u32| if at == 0 { value as u32 } else { (value >> 32) as u32 };
    match k {
        0 => call.number as u32,
        4 => call.arch,
        8 | 12 => half(call.instruction, k - 8),
        _ => half(call.arguments[(k as usize - 16) / 8], k % 8),
    }
}

/// Is the instruction allowed where `behind` more follow?
fn is_valid(instruction: &Instruction, behind: usize) -> bool {
    let Instruction { code, jump_true, jump_false, k } = *instruction;
    match code {
        op::LD_WORD => k < DATA && k.is_multiple_of(4),
        op::LD_MEM | op::LDX_MEM | op::ST | op::STX => (k as usize) < MEMORY,
        op::JUMP => (k as usize) < behind,
        op::LD_LEN | op::LDX_LEN | op::LD_IMM | op::LDX_IMM | op::NEG => true,
        op::TAX | op::TXA | op::RET_K | op::RET_A => true,
        op::DIV => k != 0,
        op::LSH | op::RSH => k < 32,
        _ if is_condition(code) => usize::from(jump_true) < behind && usize::from(jump_false) < behind,
        _ => is_arithmetic(code),
    }
}

/// Does each way to a load from scratch memory go by a store to that word?
fn memory_is_written_first(instructions: &[Instruction]) -> Result<bool> {
    let mut arriving: Vec<u16> = fallible::with_capacity(instructions.len())?;
    arriving.resize(instructions.len(), u16::MAX);
    let mut written = 0u16;
    for (at, instruction) in instructions.iter().enumerate() {
        let Instruction { code, jump_true, jump_false, k } = *instruction;
        written &= arriving[at];
        match code {
            op::ST | op::STX => written |= 1 << k,
            op::LD_MEM | op::LDX_MEM if written & 1 << k == 0 => return Ok(false),
            op::JUMP => {
                arriving[at + 1 + k as usize] &= written;
                written = u16::MAX;
            }
            _ if is_condition(code) => {
                arriving[at + 1 + usize::from(jump_true)] &= written;
                arriving[at + 1 + usize::from(jump_false)] &= written;
                written = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(true)
}
