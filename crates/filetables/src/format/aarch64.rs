//! Page-table entries of AArch64, 4 KiB granule, 48 bits (Arm Architecture Reference Manual, D8 "The AArch64 VMSA").
//!
//! # Break before make
//!
//! Arm forbids that two translations of one address, to two places, are valid at the same time. With both in TLBs an access
//! may fault with a TLB conflict, or read a mixture. So an entry that leads somewhere else is always cleared first, then the
//! TLBs are flushed, and only then it is written anew. A change of rights alone needs no break.
//!
//! The library follows that rule on all machines, except in one place. A process that leaves a shared table gets an empty table
//! of the host in its place. Elsewhere this is one store, because in between another mapping could attach. Here the entry is
//! [`Format::BROKEN`] until the flush is done: the hardware finds nothing, and [`Entry::fill`](crate::Entry::fill) fails.
//!
//! # What the host must set up
//!
//! Rights combine over the levels unless `TCR_EL1.HPD0` says no: it must be 0. `MAIR_EL1` must have normal write-back memory at
//! the index `NORMAL`.

use super::{EntryValue, Format, Protection};
use crate::addr::{Level, PhysAddr};

const VALID: u64 = 1 << 0;
/// With [`VALID`]: a table, or a page at the lowest level. Without it: a block.
const TABLE: u64 = 1 << 1;
const MEMORY_TYPE_SHIFT: u32 = 2;
/// AP[1]: EL0 may use it.
const USER: u64 = 1 << 6;
/// AP[2].
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
/// The translation is of one address space.
const NOT_GLOBAL: u64 = 1 << 11;
const FRAME: u64 = 0x0000_ffff_ffff_f000;
const KERNEL_NO_EXECUTE: u64 = 1 << 53;
const NO_EXECUTE: u64 = 1 << 54;
/// Left to software, in entries of both kinds.
const MANAGED: u64 = 1 << 55;
/// In an entry that leads to a table: what it takes from all leaves below.
const BELOW_KERNEL_NO_EXECUTE: u64 = 1 << 59;
const BELOW_NO_EXECUTE: u64 = 1 << 60;
const BELOW_READ_ONLY: u64 = 1 << 62;

/// The format of AArch64, with four levels. `NORMAL` is the index of normal write-back memory in `MAIR_EL1`.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64<const NORMAL: u64 = 0>;

impl<const NORMAL: u64> Format for Aarch64<NORMAL> {
    const RIGHTS_COMBINE: bool = true;
    /// Not valid, so the hardware ignores all other bits.
    const BROKEN: Option<EntryValue> = Some(EntryValue(MANAGED));

    /// Fetches imply loads here, though the hardware could forbid them: as on the other architectures.
    fn leaf(level: Level, frame: PhysAddr, protection: Protection) -> EntryValue {
        const { assert!(NORMAL < 8, "MAIR_EL1 has eight fields") };
        let mut bits = VALID | USER | INNER_SHAREABLE | ACCESSED | NOT_GLOBAL | KERNEL_NO_EXECUTE;
        if level == Level::Pte {
            bits |= TABLE;
        }
        if !protection.contains(Protection::WRITE) {
            bits |= READ_ONLY;
        }
        if !protection.contains(Protection::EXECUTE) {
            bits |= NO_EXECUTE;
        }
        EntryValue(frame.0 | bits | NORMAL << MEMORY_TYPE_SHIFT)
    }

    fn managed(table: PhysAddr, protection: Protection) -> EntryValue {
        let mut bits = VALID | TABLE | MANAGED | BELOW_KERNEL_NO_EXECUTE;
        if !protection.contains(Protection::WRITE) {
            bits |= BELOW_READ_ONLY;
        }
        if !protection.contains(Protection::EXECUTE) {
            bits |= BELOW_NO_EXECUTE;
        }
        EntryValue(table.0 | bits)
    }

    fn table(table: PhysAddr) -> EntryValue {
        EntryValue(table.0 | VALID | TABLE)
    }

    fn is_present(entry: EntryValue) -> bool {
        entry.0 & VALID != 0
    }

    fn is_leaf(level: Level, entry: EntryValue) -> bool {
        let kind = entry.0 & (VALID | TABLE);
        match level {
            Level::Pte => kind == VALID | TABLE,
            Level::Pmd | Level::Pud => kind == VALID,
            Level::Pgd => false,
        }
    }

    fn is_managed(level: Level, entry: EntryValue) -> bool {
        level != Level::Pte && entry.0 & (VALID | TABLE | MANAGED) == VALID | TABLE | MANAGED
    }

    fn protection(leaf: EntryValue) -> Protection {
        let mut protection = Protection::READ;
        protection.set(Protection::WRITE, leaf.0 & READ_ONLY == 0);
        protection.set(Protection::EXECUTE, leaf.0 & NO_EXECUTE == 0);
        protection
    }

    fn table_rights(entry: EntryValue) -> Protection {
        let mut protection = Protection::READ;
        protection.set(Protection::WRITE, entry.0 & BELOW_READ_ONLY == 0);
        protection.set(Protection::EXECUTE, entry.0 & BELOW_NO_EXECUTE == 0);
        protection
    }

    fn leaf_frame(level: Level, entry: EntryValue) -> PhysAddr {
        PhysAddr(entry.0 & FRAME & !(level.span() - 1))
    }

    fn table_frame(entry: EntryValue) -> PhysAddr {
        PhysAddr(entry.0 & FRAME)
    }
}
