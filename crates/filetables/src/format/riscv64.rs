//! Page-table entries of RISC-V, Sv39 and Sv48 (The RISC-V Instruction Set Manual, volume II, "Supervisor-Level ISA").

use super::{EntryValue, Format, Protection};
use crate::addr::{Level, PhysAddr};

const VALID: u64 = 1 << 0;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXECUTE: u64 = 1 << 3;
const USER: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
/// RSW: left to software.
const MANAGED: u64 = 1 << 8;
/// The page number stands in bits 10 to 53. Svnapot and Svpbmt, above it, are not used.
const NUMBER_SHIFT: u32 = 10;
const NUMBER: u64 = (1 << 44) - 1;

/// The format of RISC-V with Sv39 or Sv48.
///
/// An entry that leads to a table has no rights of its own (R, W and X must be 0), so nothing combines: the rights of a
/// mapping stand in the leaves, and are part of a table's key.
///
/// With Sv39 there are three levels: the root is a PUD table, and no address has an entry of [`Level::Pgd`]. One of its 512 GiB
/// would fill all of the address space.
#[derive(Clone, Copy, Debug)]
pub struct Riscv64;

fn number(frame: PhysAddr) -> u64 {
    (frame.0 >> Level::Pte.shift()) << NUMBER_SHIFT
}

fn frame(entry: EntryValue) -> PhysAddr {
    PhysAddr(((entry.0 >> NUMBER_SHIFT) & NUMBER) << Level::Pte.shift())
}

impl Format for Riscv64 {
    const RIGHTS_COMBINE: bool = false;

    /// W without R is reserved, so stores imply loads. A and D are set: a machine without Svadu would fault for them.
    fn leaf(_: Level, frame: PhysAddr, protection: Protection) -> EntryValue {
        let mut bits = VALID | USER | ACCESSED | DIRTY | READ;
        if protection.contains(Protection::WRITE) {
            bits |= WRITE;
        }
        if protection.contains(Protection::EXECUTE) {
            bits |= EXECUTE;
        }
        EntryValue(number(frame) | bits)
    }

    /// U, A and D are reserved in an entry that leads to a table.
    fn managed(table: PhysAddr, _: Protection) -> EntryValue {
        EntryValue(number(table) | VALID | MANAGED)
    }

    fn table(table: PhysAddr) -> EntryValue {
        EntryValue(number(table) | VALID)
    }

    fn is_present(entry: EntryValue) -> bool {
        entry.0 & VALID != 0
    }

    fn is_leaf(level: Level, entry: EntryValue) -> bool {
        level != Level::Pgd && Self::is_present(entry) && entry.0 & (READ | WRITE | EXECUTE) != 0
    }

    fn is_managed(level: Level, entry: EntryValue) -> bool {
        Self::is_present(entry) && !Self::is_leaf(level, entry) && entry.0 & MANAGED != 0
    }

    fn protection(entry: EntryValue) -> Protection {
        let mut protection = Protection::empty();
        protection.set(Protection::READ, entry.0 & READ != 0);
        protection.set(Protection::WRITE, entry.0 & WRITE != 0);
        protection.set(Protection::EXECUTE, entry.0 & EXECUTE != 0);
        protection
    }

    fn table_rights(_: EntryValue) -> Protection {
        Protection::all()
    }

    fn leaf_frame(level: Level, entry: EntryValue) -> PhysAddr {
        PhysAddr(frame(entry).0 & !(level.span() - 1))
    }

    fn table_frame(entry: EntryValue) -> PhysAddr {
        frame(entry)
    }
}
