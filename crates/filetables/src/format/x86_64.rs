//! Page-table entries of x86-64 (Intel SDM volume 3, 4.5; AMD APM volume 2, 5.3).

use super::{EntryValue, Format, Protection};
use crate::addr::{Level, PhysAddr};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// In an entry above the lowest level: it is a leaf. At the lowest level the bit is part of the memory type.
const LARGE: u64 = 1 << 7;
/// Left to software.
const MANAGED: u64 = 1 << 9;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The format of x86-64, with four levels. Rights combine over the levels.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

fn rights(protection: Protection) -> u64 {
    let mut bits = PRESENT | USER | ACCESSED;
    if protection.contains(Protection::WRITE) {
        bits |= WRITABLE;
    }
    if !protection.contains(Protection::EXECUTE) {
        bits |= NO_EXECUTE;
    }
    bits
}

impl Format for X86_64 {
    const RIGHTS_COMBINE: bool = true;

    /// Accessed and dirty are set: pages of files are neither reclaimed nor written back here, so nothing asks, and the
    /// CPU is spared two locked cycles.
    fn leaf(level: Level, frame: PhysAddr, protection: Protection) -> EntryValue {
        let large = if level == Level::Pte { 0 } else { LARGE };
        EntryValue(frame.0 | rights(protection) | DIRTY | large)
    }

    fn managed(table: PhysAddr, protection: Protection) -> EntryValue {
        EntryValue(table.0 | rights(protection) | MANAGED)
    }

    fn table(table: PhysAddr) -> EntryValue {
        EntryValue(table.0 | rights(Protection::all()))
    }

    fn is_present(entry: EntryValue) -> bool {
        entry.0 & PRESENT != 0
    }

    fn is_leaf(level: Level, entry: EntryValue) -> bool {
        match level {
            Level::Pte => entry.0 & PRESENT != 0,
            Level::Pmd | Level::Pud => entry.0 & (PRESENT | LARGE) == PRESENT | LARGE,
            Level::Pgd => false,
        }
    }

    fn is_managed(level: Level, entry: EntryValue) -> bool {
        let is_table = Self::is_present(entry) && !Self::is_leaf(level, entry);
        is_table && entry.0 & MANAGED != 0
    }

    fn protection(entry: EntryValue) -> Protection {
        let mut protection = Protection::READ;
        protection.set(Protection::WRITE, entry.0 & WRITABLE != 0);
        protection.set(Protection::EXECUTE, entry.0 & NO_EXECUTE == 0);
        protection
    }

    fn table_rights(entry: EntryValue) -> Protection {
        Self::protection(entry)
    }

    fn leaf_frame(level: Level, entry: EntryValue) -> PhysAddr {
        PhysAddr(entry.0 & FRAME & !(level.span() - 1))
    }

    fn table_frame(entry: EntryValue) -> PhysAddr {
        PhysAddr(entry.0 & FRAME)
    }
}
