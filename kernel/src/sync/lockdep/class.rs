//! The classes of locks.

use core::fmt::Write;
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::memory::fallible::Text;

/// Most classes that there can be.
pub(super) const MOST: usize = 512;

/// A lock's class, inside of the lock. Nothing in kernels that do not look at locks.
pub struct Class(place::Place);

impl Class {
    /// Of a lock whose place is not known.
    // Each use is a fresh one.
    #[allow(clippy::declare_interior_mutable_const)]
    pub const UNKNOWN: Self = Self(place::Place::new(None, false));

    /// Of the locks that the caller makes.
    #[track_caller]
    pub const fn of_caller() -> Self {
        Self(place::Place::new(Some(Location::caller()), false))
    }

    /// The same, of locks under which a map or a list grows.
    #[track_caller]
    pub const fn of_caller_that_grows() -> Self {
        Self(place::Place::new(Some(Location::caller()), true))
    }

    /// Whether small allocations are made under such locks.
    #[inline]
    pub(super) fn grows(&self) -> bool {
        self.0.grows()
    }

    /// The class's number, for one who takes the lock at `site`.
    #[inline]
    pub(super) fn number(&self, site: &'static Location<'static>) -> u16 {
        self.0.number(site)
    }
}

#[cfg(any(feature = "lockdep", feature = "lock-times"))]
mod place {
    use core::sync::atomic::AtomicU16;

    use super::*;

    /// Where a lock is made, and the number of that.
    pub struct Place {
        place: Option<&'static Location<'static>>,
        grows: bool,
        /// 0 as long as it is not known.
        number: AtomicU16,
    }

    impl Place {
        pub const fn new(place: Option<&'static Location<'static>>, grows: bool) -> Self {
            Self { place, grows, number: AtomicU16::new(0) }
        }

        pub fn grows(&self) -> bool {
            self.grows
        }

        #[inline]
        pub fn number(&self, site: &'static Location<'static>) -> u16 {
            // Relaxed: two that are here at once find the same number.
            let known = self.number.load(Ordering::Relaxed);
            if known != 0 {
                return known;
            }
            let number = find(self.place.unwrap_or(site));
            self.number.store(number, Ordering::Relaxed);
            number
        }
    }
}

#[cfg(not(any(feature = "lockdep", feature = "lock-times")))]
mod place {
    use super::Location;

    pub struct Place;

    impl Place {
        pub const fn new(_: Option<&'static Location<'static>>, _: bool) -> Self {
            Self
        }

        pub fn grows(&self) -> bool {
            false
        }

        pub fn number(&self, _: &'static Location<'static>) -> u16 {
            0
        }
    }
}

/// What is known of a class.
struct Record {
    place: AtomicPtr<Location<'static>>,
    taken: AtomicU64,
    allocations: AtomicU64,
    longest: AtomicU64,
    longest_at: AtomicPtr<Location<'static>>,
}

/// By number, from 1 on.
static RECORDS: [Record; MOST] = [const {
    Record {
        place: AtomicPtr::new(ptr::null_mut()),
        taken: AtomicU64::new(0),
        allocations: AtomicU64::new(0),
        longest: AtomicU64::new(0),
        longest_at: AtomicPtr::new(ptr::null_mut()),
    }
}; MOST];

fn read(place: &AtomicPtr<Location<'static>>) -> Option<&'static Location<'static>> {
    // SAFETY: only references to static locations are stored. Acquire is for what they point to, which is constant anyway.
    unsafe { place.load(Ordering::Acquire).as_ref() }
}

/// The number of the class whose locks are made at `place`.
#[cfg(any(feature = "lockdep", feature = "lock-times"))]
fn find(place: &'static Location<'static>) -> u16 {
    /// The places that were asked for, by a part of their addresses, each with its class's number in the upper bits.
    static KNOWN: [AtomicU64; 2 * MOST] = [const { AtomicU64::new(0) }; 2 * MOST];
    const NUMBER_SHIFT: u32 = 48;
    const ADDRESS: u64 = (1 << NUMBER_SHIFT) - 1;
    let address = ptr::from_ref(place).addr() as u64 & ADDRESS;
    let slot = &KNOWN[(address / 8) as usize % KNOWN.len()];
    // Relaxed: the word says all.
    let known = slot.load(Ordering::Relaxed);
    if known & ADDRESS == address {
        return (known >> NUMBER_SHIFT) as u16;
    }
    let number = search(place);
    slot.store(u64::from(number) << NUMBER_SHIFT | address, Ordering::Relaxed);
    number
}

/// The same, by the words that name the place: each crate has its own copy of it.
#[cfg(any(feature = "lockdep", feature = "lock-times"))]
fn search(place: &'static Location<'static>) -> u16 {
    let pointer = ptr::from_ref(place).cast_mut();
    for (number, record) in RECORDS.iter().enumerate().skip(1) {
        let known = match record.place.compare_exchange(
            ptr::null_mut(),
            pointer,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => return number as u16,
            // SAFETY: as in `read`.
            Err(known) => unsafe { &*known },
        };
        if known == place {
            return number as u16;
        }
    }
    panic!("lockdep: more than {MOST} classes of locks");
}

/// The class in words.
pub(super) fn name(class: u16) -> &'static dyn core::fmt::Display {
    match read(&RECORDS[class as usize].place) {
        Some(place) => place,
        None => &"an unknown lock",
    }
}

pub(super) fn note_hold(class: u16, time: u64, site: &'static Location<'static>) {
    let record = &RECORDS[class as usize];
    // Relaxed: statistics.
    record.taken.fetch_add(1, Ordering::Relaxed);
    if record.longest.fetch_max(time, Ordering::Relaxed) < time {
        record.longest_at.store(ptr::from_ref(site).cast_mut(), Ordering::Release);
    }
}

pub(super) fn note_allocation(class: u16) {
    // Relaxed: a statistic.
    RECORDS[class as usize].allocations.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn report(text: &mut Text) {
    for record in &RECORDS[1..] {
        let Some(place) = read(&record.place) else { break };
        // Relaxed: statistics.
        let taken = record.taken.load(Ordering::Relaxed);
        let allocations = record.allocations.load(Ordering::Relaxed);
        let longest = record.longest.load(Ordering::Relaxed);
        if taken == 0 {
            continue;
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{taken} {longest} {allocations} {place} ");
        let _ = match read(&record.longest_at) {
            Some(site) => writeln!(text, "{site}"),
            None => writeln!(text, "-"),
        };
    }
}

pub(super) fn reset() {
    for record in &RECORDS {
        // Relaxed: statistics.
        record.taken.store(0, Ordering::Relaxed);
        record.allocations.store(0, Ordering::Relaxed);
        record.longest.store(0, Ordering::Relaxed);
    }
}
