//! Memory: mappings of base pages and of huge pages in the same slots, and what is done to them.

use libc::*;
use roundtable_programs::fault;
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::sys::PAGE;
use syscalls::Sysno;

use super::{Call, plain, special};
use crate::board::{Area, BOARD};
use crate::turn::Arg::{Address, Below, Bits, Buffer, Count, Iovec, Is, Length, OneOf, RemoteIovec};
use crate::turn::{Arg, Turn};

pub const CALLS: &[Call] = &[
    special("map-anonymous", 20, map_anonymous),
    special("map-huge", 40, map_huge),
    special("map-file", 40, map_file),
    special("touch", 90, touch),
    special("mremap", 25, remap),
    plain("munmap", 25, Sysno::munmap, &[Address, Length]),
    plain("mprotect", 25, Sysno::mprotect, &[Address, Length, PROTECTION]),
    plain("madvise", 35, Sysno::madvise, &[Address, Length, ADVICE]),
    plain("mincore", 3, Sysno::mincore, &[Address, OneOf(&[PAGE, HUGE, 8 * HUGE]), Buffer]),
    plain("msync", 4, Sysno::msync, &[Address, Length, Bits(&[1, 2, 4])]),
    plain("mlock", 4, Sysno::mlock, &[Address, Length]),
    plain("mlock2", 3, Sysno::mlock2, &[Address, Length, Below(2)]),
    plain("munlock", 4, Sysno::munlock, &[Address, Length]),
    plain("mlockall", 1, Sysno::mlockall, &[Bits(&[1, 2, 4])]),
    plain("munlockall", 1, Sysno::munlockall, &[]),
    special("brk", 5, program_break),
    plain("process_vm_readv", 8, Sysno::process_vm_readv, &REMOTE),
    plain("process_vm_writev", 8, Sysno::process_vm_writev, &REMOTE),
    plain("mbind", 1, Sysno::mbind, &[Address, Length, Below(6), Buffer, Below(70), Below(8)]),
    plain("get_mempolicy", 1, Sysno::get_mempolicy, &[Buffer, Buffer, Below(70), Address, Below(8)]),
    plain(
        "pkey_mprotect",
        1,
        Sysno::pkey_mprotect,
        &[Address, Length, PROTECTION, OneOf(&[usize::MAX, 0, 1])],
    ),
];

const PROTECTION: Arg = OneOf(&[0, 1, 1, 3, 3, 3, 3, 5, 7, 2]);

/// Nothing that the mappings' owner could not do without: no advice to keep a process from being read or killed.
const ADVICE: Arg = OneOf(&[
    MADV_DONTNEED as usize,
    MADV_DONTNEED as usize,
    MADV_DONTNEED as usize,
    MADV_REMOVE as usize,
    MADV_REMOVE as usize,
    MADV_FREE as usize,
    MADV_DONTFORK as usize,
    MADV_DOFORK as usize,
    MADV_WIPEONFORK as usize,
    MADV_KEEPONFORK as usize,
    MADV_POPULATE_READ as usize,
    MADV_POPULATE_WRITE as usize,
    MADV_POPULATE_WRITE as usize,
    MADV_DONTNEED_LOCKED as usize,
    MADV_WILLNEED as usize,
    MADV_RANDOM as usize,
    MADV_HUGEPAGE as usize,
    MADV_NOHUGEPAGE as usize,
    MADV_COLD as usize,
    MADV_PAGEOUT as usize,
    MADV_COLLAPSE as usize,
    MADV_DONTDUMP as usize,
]);

const REMOTE: [Arg; 6] = [Arg::Process, Iovec, Count, RemoteIovec, Count, Is(0)];

/// Maps, and remembers where.
fn map(turn: &mut Turn, arguments: [usize; 6]) {
    if let Ok(address) = turn.call(Sysno::mmap, arguments) {
        BOARD.areas.put(Area { address, length: arguments[1] });
    }
}

/// An address for a new mapping and the flag that goes with it.
fn place(turn: &mut Turn) -> (usize, usize) {
    match turn.rng.below(8) {
        0..3 => (0, 0),
        3..6 => (turn.arena(), MAP_FIXED as usize),
        6 => (turn.arena(), MAP_FIXED_NOREPLACE as usize),
        // Over a known area, and often only over a part.
        _ => (turn.draw(Address), MAP_FIXED as usize),
    }
}

fn protection(turn: &mut Turn) -> usize {
    turn.draw(PROTECTION)
}

fn map_anonymous(turn: &mut Turn) {
    let (address, fixed) = place(turn);
    let length = turn.new_length();
    let sharing = [MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED][turn.rng.below(3)];
    let extra = turn.bits(&[
        MAP_NORESERVE as usize,
        MAP_POPULATE as usize,
        MAP_GROWSDOWN as usize,
        MAP_LOCKED as usize,
        MAP_STACK as usize,
    ]);
    // More than the machine has is for those who do not touch it.
    let extra = if length > GIB / 4 { extra & !(MAP_POPULATE | MAP_LOCKED) as usize } else { extra };
    let flags = (sharing | MAP_ANONYMOUS) as usize | fixed | extra;
    let protection = protection(turn);
    map(turn, [address, length, protection, flags, usize::MAX, 0]);
}

fn map_huge(turn: &mut Turn) {
    let (address, fixed) = place(turn);
    let address = if turn.rng.chance(10) { address } else { address & !(HUGE - 1) };
    let length = if turn.rng.chance(4) { turn.new_length() } else { (1 + turn.rng.below(5)) * HUGE };
    let sharing = [MAP_PRIVATE, MAP_SHARED][turn.rng.below(2)];
    let size = [0, 0, 0, 21 << MAP_HUGE_SHIFT, 30 << MAP_HUGE_SHIFT][turn.rng.below(5)];
    let extra = turn.bits(&[MAP_NORESERVE as usize, MAP_POPULATE as usize, MAP_LOCKED as usize]);
    let flags = (sharing | MAP_ANONYMOUS | MAP_HUGETLB | size) as usize | fixed | extra;
    let protection = protection(turn);
    map(turn, [address, length, protection, flags, usize::MAX, 0]);
}

/// A descriptor of any kind: of huge pages, of tmpfs, and of what cannot be mapped.
fn map_file(turn: &mut Turn) {
    let (address, fixed) = place(turn);
    let huge = !turn.rng.chance(4);
    let address = if huge { address & !(HUGE - 1) } else { address };
    let length = turn.new_length();
    let sharing = [MAP_SHARED, MAP_SHARED, MAP_PRIVATE][turn.rng.below(3)];
    let extra = turn.bits(&[MAP_NORESERVE as usize, MAP_POPULATE as usize, MAP_LOCKED as usize]);
    let extra = if length > GIB / 4 { extra & !(MAP_POPULATE | MAP_LOCKED) as usize } else { extra };
    let descriptor = turn.draw(Arg::File);
    let offset = turn.offset();
    let offset = if huge { offset & !(HUGE - 1) } else { offset & !(PAGE - 1) };
    let protection = protection(turn);
    map(turn, [address, length, protection, sharing as usize | fixed | extra, descriptor, offset]);
}

/// Reads or writes a byte in each of some pages.
fn touch(turn: &mut Turn) {
    let address = turn.draw(Address);
    let step = if turn.rng.chance(3) { PAGE } else { HUGE };
    let count = 1 + turn.rng.below(6);
    let write = !turn.rng.chance(3);
    turn.say(if write { "write-memory" } else { "read-memory" }, &[address, step, count]);
    for page in 0..count {
        let at = address.wrapping_add(page * step);
        let result = if write { fault::write(at, page as u8) } else { fault::read(at).map(drop) };
        if let Err(fault) = result {
            turn.answer(Err(if fault.signal == SIGBUS { EIO } else { EFAULT }));
            return;
        }
    }
    turn.answer(Ok(0));
}

fn remap(turn: &mut Turn) {
    let old = turn.draw(Address);
    let old_length = turn.draw(Length);
    let new_length = if turn.rng.chance(2) { old_length } else { turn.new_length() };
    let flags = [0, 1, 1, 3, 3, 5, 7][turn.rng.below(7)];
    let target = turn.arena();
    if let Ok(address) = turn.call(Sysno::mremap, [old, old_length, new_length, flags, target, 0]) {
        BOARD.areas.put(Area { address, length: new_length });
    }
}

/// Moves the program break up and down by some pages.
fn program_break(turn: &mut Turn) {
    let Ok(now) = turn.call(Sysno::brk, [0; 6]) else { return };
    let change = turn.one_of(&[PAGE, 16 * PAGE, HUGE, HUGE + 100]);
    let wanted =
        if turn.rng.chance(2) { now.wrapping_add(change) } else { now.wrapping_sub(change.min(PAGE)) };
    if turn.call(Sysno::brk, [wanted, 0, 0, 0, 0, 0]) == Ok(wanted) && wanted > now {
        BOARD.areas.put(Area { address: now & !(PAGE - 1), length: change });
    }
}
