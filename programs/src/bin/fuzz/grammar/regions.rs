//! Regions of msharefs, and memory for which fork(2) shares page tables.

use libc::*;
use roundtable_programs::fault;
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::mshare::{CREATE_MAPPING, PROTECT, UNMAP};
use roundtable_programs::sys::PAGE;
use syscalls::Sysno;

use super::{Call, Kind, opened, special};
use crate::board::{Area, BOARD};
use crate::turn::{Arg, Turn};

pub const CALLS: &[Call] = &[
    special("region-open", 8, open_region),
    special("region-map", 25, map_inside),
    special("region-change", 15, change_inside),
    special("region-attach", 15, attach),
    special("region-unlink", 2, unlink_region),
    special("fill", 12, fill),
];

/// What regions' sizes and addresses are multiples of.
const GRANULE: usize = 512 * GIB;

const NAMES: [&std::ffi::CStr; 2] = [c"share/a", c"share/b"];

/// A region by its name, mostly with a size.
fn open_region(turn: &mut Turn) {
    let name = NAMES[turn.rng.below(2)].as_ptr() as usize;
    let flags = [O_RDWR | O_CREAT, O_RDWR, O_RDONLY][turn.rng.below(3)] as usize;
    let Ok(descriptor) = turn.call(Sysno::openat, [AT_FDCWD as usize, name, flags, 0o666, 0, 0]) else {
        return;
    };
    opened(descriptor as i32, Kind::File);
    BOARD.regions.put(descriptor as i32);
    let size = [GRANULE, GRANULE, 2 * GRANULE, HUGE][turn.rng.below(4)];
    let _ = turn.call(Sysno::ftruncate, [descriptor, size, 0, 0, 0, 0]);
}

fn region(turn: &mut Turn) -> usize {
    let known = BOARD.regions.pick(&mut turn.rng).map(|descriptor| descriptor as usize);
    known.unwrap_or_else(|| turn.draw(Arg::File))
}

/// An offset in a region: few, so that mappings meet.
fn inside(turn: &mut Turn) -> usize {
    turn.one_of(&[
        0,
        PAGE,
        HUGE - PAGE,
        HUGE,
        2 * HUGE,
        GIB - PAGE,
        GIB - HUGE,
        GIB,
        GIB + HUGE,
        GRANULE - HUGE,
    ])
}

fn some_length(turn: &mut Turn) -> usize {
    turn.one_of(&[PAGE, 2 * PAGE, 65 * PAGE, HUGE, HUGE + PAGE, 3 * HUGE])
}

fn map_inside(turn: &mut Turn) {
    let region = region(turn);
    let (at, size) = (inside(turn), some_length(turn));
    let kind = [MAP_SHARED, MAP_PRIVATE][turn.rng.below(2)];
    let fixed = [MAP_FIXED, MAP_FIXED, MAP_FIXED_NOREPLACE][turn.rng.below(3)];
    let (source, descriptor) = match turn.rng.below(8) {
        0..4 => (MAP_ANONYMOUS, -1),
        4 => (MAP_ANONYMOUS | MAP_HUGETLB, -1),
        _ => (0, turn.draw(Arg::File) as i32),
    };
    let offset = turn.offset() & !(PAGE - 1);
    let prot = turn.one_of(&[0, 1, 3, 3, 3, 7]) as u64;
    let flags = (kind | fixed | source) as u32;
    let words =
        [at as u64, size as u64, offset as u64, prot | u64::from(flags) << 32, u64::from(descriptor as u32)];
    let argument = turn.put(&words);
    let _ = turn.call(Sysno::ioctl, [region, CREATE_MAPPING as usize, argument, 0, 0, 0]);
}

fn change_inside(turn: &mut Turn) {
    let region = region(turn);
    let (at, size) = (inside(turn) as u64, some_length(turn) as u64);
    let (command, words) = match turn.rng.below(2) {
        0 => (UNMAP, [at, size, 0]),
        _ => (PROTECT, [at, size, turn.one_of(&[0, 1, 3, 3, 7]) as u64]),
    };
    let argument = turn.put(&words);
    let _ = turn.call(Sysno::ioctl, [region, command as usize, argument, 0, 0, 0]);
}

/// Attaches a region, and remembers places inside.
fn attach(turn: &mut Turn) {
    let region = region(turn);
    let length = if turn.rng.chance(4) { 2 * GRANULE } else { GRANULE };
    let prot = turn.one_of(&[1, 3, 3, 3, 0]);
    let arguments = [0, length, prot, MAP_SHARED as usize, region, 0];
    if let Ok(address) = turn.call(Sysno::mmap, arguments) {
        for _ in 0..2 {
            let at = address.wrapping_add(inside(turn));
            BOARD.areas.put(Area { address: at, length: 2 * HUGE });
        }
        // All of it, for munmap.
        BOARD.areas.put(Area { address, length });
    }
}

fn unlink_region(turn: &mut Turn) {
    let name = NAMES[turn.rng.below(2)].as_ptr() as usize;
    let _ = turn.call(Sysno::unlink, [name, 0, 0, 0, 0, 0]);
}

/// Stores to so many pages in a row that a fork shares their table.
fn fill(turn: &mut Turn) {
    let address = turn.draw(Arg::Address);
    let count = turn.one_of(&[64, 100, 512, 520]);
    turn.say("fill-memory", &[address, count]);
    for page in 0..count {
        if fault::write(address.wrapping_add(page * PAGE), page as u8).is_err() {
            turn.answer(Err(EFAULT));
            return;
        }
    }
    turn.answer(Ok(0));
}
