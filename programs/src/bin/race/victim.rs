//! A process that has nothing to do with the files: whatever it sees of them is corruption.
//!
//! It builds page tables and takes them down all the time, of a file of huge pages that only victims map and of anonymous
//! memory, so that a table that somebody else has lost is soon one of its tables or one of its pages. A late store into
//! such a table shows in it at the entries of the indices that the others use.

use std::collections::VecDeque;

use roundtable_programs::fault;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::mem::{
    self, ANON, FIXED, Map, NORESERVE, PRIVATE, RW, SHARED, mincore, mmap, munmap,
};
use roundtable_programs::rng::Rng;
use roundtable_programs::sys::PAGE;

use crate::actor::Actor;
use crate::board::{Count, Kind};
use crate::scale::{self, page_size, places, slot_size};
use crate::stamp::{USED, stamp};

/// The file that the victims share, filled before they start.
pub const CANARY: usize = 200;
/// Its slots, each of which has a table of its own.
pub const CANARY_SLOTS: usize = 8;
/// The one page in each of them: not one of those that others use.
pub const CANARY_PAGE: usize = 5;
/// How often slots of the canary are mapped anew before the rest has its turn.
const REMAPS: usize = 32;
/// The file that a victim has alone: this and its number.
const OWN: usize = 210;

/// How many regions of anonymous memory are there at a time, each with a PMD table and some page tables of its own.
const REGIONS: usize = 4;
/// Pages touched in a region: one in each of these 2 MiB, so that each has a page table.
const TOUCHED: [usize; 4] = [0, 2, 130, 401];

pub struct Victim<'a> {
    actor: &'a Actor<'a>,
    canary: Map,
    canary_file: &'a Fd,
    own: Fd,
    own_map: Map,
    /// Whether it uses anonymous memory too.
    anonymous: bool,
    regions: VecDeque<Region>,
}

struct Region {
    map: Map,
    pattern: u64,
}

impl<'a> Victim<'a> {
    pub fn new(actor: &'a Actor<'a>, canary_file: &'a Fd, anonymous: bool) -> Victim<'a> {
        let canary = Map::reserve(CANARY_SLOTS * slot_size(), slot_size());
        (0..CANARY_SLOTS)
            .for_each(|slot| map_slot(actor, canary.address + slot * slot_size(), canary_file, slot));
        let own = scale::file(1);
        let own_map = Map::reserve(slot_size(), slot_size());
        map_slot(actor, own_map.address, &own, 0);
        Victim { actor, canary, canary_file, own, own_map, anonymous, regions: VecDeque::new() }
    }

    pub fn live(&mut self, mut rng: Rng) {
        let actor = self.actor;
        actor.play(
            || {
                self.churn(&mut rng);
                actor.board.add(Count::Churns, 1);
            },
            false,
        );
    }

    fn churn(&mut self, rng: &mut Rng) {
        for _ in 0..REMAPS {
            // A new table, if the other victim does not hold the old one; and what became of those that there are.
            let slot = rng.below(CANARY_SLOTS);
            let address = self.canary.address + slot * slot_size();
            self.actor.expect(munmap(address, slot_size()).is_ok(), "munmap");
            map_slot(self.actor, address, self.canary_file, slot);
            self.verify_canary(slot, rng);
            self.verify_canary(rng.below(CANARY_SLOTS), rng);
            if !self.actor.board.running() {
                return;
            }
        }
        (0..CANARY_SLOTS).for_each(|slot| self.verify_canary(slot, rng));
        if self.anonymous {
            self.churn_anonymous(rng);
        }
        if rng.chance(8) {
            self.verify_fresh(rng);
        }
    }

    fn churn_anonymous(&mut self, rng: &mut Rng) {
        if self.regions.len() == REGIONS
            && let Some(oldest) = self.regions.pop_front()
            && !oldest.is_sound(self.actor)
        {
            // The kernel would free what somebody else's entry in its tables leads to, and may not survive that.
            std::mem::forget(oldest);
        }
        self.regions.push_back(Region::new(rng));
        for region in &self.regions {
            region.is_sound(self.actor);
        }
    }

    /// The slot's page is there, and no other has an entry.
    fn verify_canary(&self, slot: usize, rng: &mut Rng) {
        let start = self.canary.address + slot * slot_size();
        let index = slot * 512 + CANARY_PAGE;
        let place = places()[rng.below(places().len())];
        self.expect_word(start + CANARY_PAGE * page_size() + place, stamp(CANARY, index, 0), CANARY, index);
        for index in USED {
            let address = start + index * page_size();
            if mincore(address, PAGE).is_ok_and(|resident| resident[0]) {
                let seen = fault::load(address).unwrap_or_else(|refused| refused.signal as u64);
                self.actor.find(Kind::Intruder, CANARY, slot * 512 + index, seen, 0);
            }
        }
    }

    fn expect_word(&self, address: usize, expected: u64, file: usize, index: usize) {
        match fault::load(address) {
            Ok(word) if word == expected => {}
            Ok(word) => self.actor.find(Kind::Intruder, file, index, word, expected),
            Err(refused) => self.actor.find(Kind::Intruder, file, index, refused.signal as u64, expected),
        }
    }

    /// A page of a file that nobody else has: zero when fresh, and nothing but what was written then.
    fn verify_fresh(&mut self, rng: &mut Rng) {
        let (file, index) = (OWN + self.actor.number as usize, USED[rng.below(USED.len())]);
        let word = stamp(file, index, self.actor.board.nonce());
        let address = |place| self.own_map.address + index * page_size() + place;
        for place in places() {
            match fault::load(address(place)) {
                Ok(0) => {}
                Ok(seen) => self.actor.find(Kind::Dirty, file, index, seen, 0),
                // The pool may be empty.
                Err(_) => return,
            }
        }
        for place in places() {
            self.actor.expect(fault::store(address(place), word).is_ok(), "a store into a file of one's own");
        }
        for place in places() {
            self.expect_word(address(place), word, file, index);
        }
        self.actor.expect(self.own.punch((index * page_size()) as u64, page_size() as u64).is_ok(), "punch");
    }
}

fn map_slot(actor: &Actor, address: usize, file: &Fd, slot: usize) {
    let flags = SHARED | FIXED | NORESERVE;
    let mapped = mmap(address, slot_size(), RW, flags, file.raw(), (slot * slot_size()) as i64);
    actor.expect(mapped.is_ok(), "mmap");
}

impl Region {
    fn new(rng: &mut Rng) -> Region {
        let map = Map::reserve(GIB, GIB);
        let flags = PRIVATE | ANON | NORESERVE | FIXED;
        mmap(map.address, GIB, RW, flags, -1, 0).expect("mmap of anonymous memory");
        // Page tables are wanted here, on kernels that would make huge pages of it too. Others do not know the advice.
        let _ = mem::madvise(map.address, GIB, libc::MADV_NOHUGEPAGE);
        let region = Region { map, pattern: rng.draw() };
        for touched in TOUCHED {
            // Where an entry for one of the used indices would lie, if this page were a table.
            USED.into_iter().for_each(|index| region.map.set_u64(touched * HUGE + index * 8, region.pattern));
        }
        region
    }

    /// Whether the region is as it was made; if not, that is reported.
    fn is_sound(&self, actor: &Actor) -> bool {
        let mut sound = true;
        let mut expect = |offset: usize, expected: u64, index: usize| {
            let seen = fault::load(self.map.address + offset).unwrap_or_else(|refused| refused.signal as u64);
            if seen != expected {
                actor.find(Kind::Intruder, 0, index, seen, expected);
                sound = false;
            }
        };
        let resident = |offset| mincore(self.map.address + offset, PAGE).is_ok_and(|pages| pages[0]);
        for touched in TOUCHED {
            for index in USED {
                // The page's own data.
                expect(touched * HUGE + index * 8, self.pattern, index);
                // The page table: 4 KiB that nobody touched.
                if index != 0 && resident(touched * HUGE + index * PAGE) {
                    expect(touched * HUGE + index * PAGE, 0, index);
                }
            }
        }
        // The PMD table: 2 MiB that nobody touched.
        for index in USED.into_iter().filter(|index| !TOUCHED.contains(index)) {
            if resident(index * HUGE) {
                expect(index * HUGE, 0, index);
            }
        }
        sound
    }
}
