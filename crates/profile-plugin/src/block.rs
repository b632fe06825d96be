//! Blocks of translated code, and how each of them ends.

/// How a block ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// With a call. It returns to the block's end.
    Call,
    /// With a return from a call.
    Return,
    /// With a return from an interrupt or an exception.
    ReturnFromTrap,
    /// With anything else: a jump, or where the translator stopped.
    Other,
}

/// A block of translated code: it runs from its start to its end, unless an exception ends it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// The address of its first instruction.
    pub start: u64,
    /// The address behind its last one.
    pub end: u64,
    /// How many instructions it has.
    pub instructions: u64,
    /// How it ends.
    pub ending: Ending,
}

impl Ending {
    /// What a block's last instruction does, from its bytes.
    pub fn of(mut bytes: &[u8]) -> Ending {
        // Segment, operand size and repeat prefixes, and those of 64-bit code.
        let is_prefix =
            |byte: u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x66 | 0xf2 | 0xf3);
        while let [first, rest @ ..] = bytes
            && is_prefix(*first)
        {
            bytes = rest;
        }
        match bytes {
            [0xe8, ..] => Ending::Call,
            // The second opcode of the group, by the middle bits of the next byte.
            [0xff, form, ..] if form >> 3 & 7 == 2 => Ending::Call,
            [0xc2 | 0xc3, ..] => Ending::Return,
            [0xcf, ..] => Ending::ReturnFromTrap,
            _ => Ending::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_instruction_tells_how_a_block_ends() {
        for (bytes, ending) in [
            (&[0xe8, 1, 0, 0, 0][..], Ending::Call),
            (&[0xff, 0xd0], Ending::Call),
            (&[0x41, 0xff, 0x54, 0x24, 0x18], Ending::Call),
            (&[0xff, 0xe0], Ending::Other),
            (&[0xff, 0xc0], Ending::Other),
            (&[0xc3], Ending::Return),
            (&[0xf3, 0xc3], Ending::Return),
            (&[0x48, 0xcf], Ending::ReturnFromTrap),
            (&[0x48, 0x0f, 0x07], Ending::Other),
            (&[0xeb, 0xfe], Ending::Other),
            (&[], Ending::Other),
        ] {
            assert_eq!(Ending::of(bytes), ending, "{bytes:x?}");
        }
    }
}
