//! Marks in a program, for who counts the machine's instructions from outside: where an operation begins, and where it ends.
//!
//! A mark is an instruction that does nothing, with a number in it that no compiler writes.

use crate::record::Operation;

/// How many operations can be told apart.
pub const OPERATIONS: usize = 16;

/// The 8 bytes of a `nop` with a displacement, without that.
const NOP: [u8; 4] = [0x0f, 0x1f, 0x84, 0x00];
/// The upper half of the displacement.
const COOKIE: u16 = 0x5254;

/// A mark that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The number of the operation.
    pub operation: usize,
    /// Whether it begins here; else it ends.
    pub begins: bool,
}

const fn displacement(operation: Operation, begins: bool) -> u32 {
    (COOKIE as u32) << 16 | (operation as u32) << 1 | begins as u32
}

impl Mark {
    /// What an instruction marks, if anything, from its bytes.
    pub fn of(instruction: &[u8]) -> Option<Mark> {
        let displacement = instruction.strip_prefix(&NOP)?.try_into().ok().map(u32::from_le_bytes)?;
        (displacement >> 16 == u32::from(COOKIE))
            .then_some(Mark { operation: (displacement as u16 >> 1).into(), begins: displacement & 1 == 1 })
    }
}

/// Marks the beginning and the end of what `run` does.
#[cfg(target_arch = "x86_64")]
pub fn marked<T>(operation: Operation, run: impl FnOnce() -> T) -> T {
    macro_rules! mark {
        ($begins:literal) => {
            mark!(
                $begins, Punch, Truncate, Mprotect, Fork, Start, Exit, Attach, Detach, SharedFault, PrivateFault,
                Call, Signal, ProtectionFault
            )
        };
        ($begins:literal, $($name:ident),*) => {
            match operation {
                $(Operation::$name => {
                    // SAFETY: does nothing.
                    unsafe {
                        core::arch::asm!(
                            ".byte 0x0f, 0x1f, 0x84, 0x00",
                            ".long {}",
                            const displacement(Operation::$name, $begins),
                        );
                    }
                })*
            }
        };
    }
    mark!(true);
    let result = run();
    mark!(false);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_told_from_other_instructions() {
        let mut bytes = NOP.to_vec();
        bytes.extend(displacement(Operation::Start, true).to_le_bytes());
        assert_eq!(Mark::of(&bytes), Some(Mark { operation: Operation::Start as usize, begins: true }));
        bytes[7] = 0;
        assert_eq!(Mark::of(&bytes), None, "a nop of the compiler's");
        assert_eq!(Mark::of(&[0x90]), None);
    }

    #[test]
    fn what_is_marked_is_run() {
        assert_eq!(marked(Operation::Fork, || 7), 7);
    }
}
