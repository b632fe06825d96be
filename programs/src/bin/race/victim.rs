//! A process that has nothing to do with the files: whatever it sees of them is corruption.
//!
//! It builds page tables and takes them down all the time, of anonymous memory and of a file of huge pages of its own, so
//! that a table that somebody else has lost is soon one of its tables or one of its pages. A late store into such a
//! table shows in it at the entries of the indices that the others use.

use std::collections::VecDeque;

use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{self, ANON, FIXED, Map, NORESERVE, PRIVATE, RW, SHARED, mmap, munmap};
use roundtable_programs::rng::Rng;
use roundtable_programs::sys::PAGE;

use crate::actor::Actor;
use crate::board::{Count, Kind};
use crate::probe;
use crate::stamp::{PLACES, USED, stamp};

/// The file that the victims share, filled before they start.
pub const CANARY: usize = 200;
/// The pages of it.
pub const CANARY_PAGES: [usize; 4] = [0, 3, 132, 511];
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
    regions: VecDeque<Region>,
}

struct Region {
    map: Map,
    pattern: u64,
}

impl<'a> Victim<'a> {
    pub fn new(actor: &'a Actor<'a>, canary_file: &'a Fd) -> Victim<'a> {
        let canary = Map::reserve(GIB, GIB);
        map_slot(actor, &canary, canary_file);
        let own = huge::sized(512);
        let own_map = Map::reserve(GIB, GIB);
        map_slot(actor, &own_map, &own);
        Victim { actor, canary, canary_file, own, own_map, regions: VecDeque::new() }
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
        if self.regions.len() == REGIONS {
            self.regions.pop_front();
        }
        self.regions.push_back(Region::new(rng));
        self.regions.iter().for_each(|region| region.verify(self.actor));
        self.verify_canary();
        if rng.chance(4) {
            // A new table for the canary, if the other victim does not hold it.
            self.actor.expect(munmap(self.canary.address, GIB).is_ok(), "munmap");
            map_slot(self.actor, &self.canary, self.canary_file);
        }
        if rng.chance(8) {
            self.verify_fresh(rng);
        }
    }

    fn verify_canary(&self) {
        for index in CANARY_PAGES {
            for place in PLACES {
                let expected = stamp(CANARY, index, 0);
                self.expect_word(self.canary.address + index * HUGE + place, expected, CANARY, index);
            }
        }
    }

    fn expect_word(&self, address: usize, expected: u64, file: usize, index: usize) {
        match probe::load(address) {
            Ok(word) if word == expected => {}
            Ok(word) => self.actor.find(Kind::Intruder, file, index, word, expected),
            Err(refused) => self.actor.find(Kind::Intruder, file, index, refused.0 as u64, expected),
        }
    }

    /// A page of a file that nobody else has: zero when fresh, and nothing but what was written then.
    fn verify_fresh(&mut self, rng: &mut Rng) {
        let (file, index) = (OWN + self.actor.number as usize, USED[rng.below(USED.len())]);
        let word = stamp(file, index, self.actor.board.nonce());
        let address = |place| self.own_map.address + index * HUGE + place;
        for place in PLACES {
            match probe::load(address(place)) {
                Ok(0) => {}
                Ok(seen) => self.actor.find(Kind::Dirty, file, index, seen, 0),
                // The pool may be empty.
                Err(_) => return,
            }
        }
        for place in PLACES {
            self.actor.expect(probe::store(address(place), word).is_ok(), "a store into a file of one's own");
        }
        for place in PLACES {
            self.expect_word(address(place), word, file, index);
        }
        self.actor.expect(self.own.punch((index * HUGE) as u64, HUGE as u64).is_ok(), "punch");
    }
}

fn map_slot(actor: &Actor, place: &Map, file: &Fd) {
    let flags = SHARED | FIXED | NORESERVE;
    actor.expect(mmap(place.address, GIB, RW, flags, file.raw(), 0).is_ok(), "mmap");
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

    fn verify(&self, actor: &Actor) {
        let expect = |offset: usize, expected: u64, index: usize| match probe::load(self.map.address + offset)
        {
            Ok(word) if word == expected => {}
            Ok(word) => actor.find(Kind::Intruder, 0, index, word, expected),
            Err(refused) => actor.find(Kind::Intruder, 0, index, refused.0 as u64, expected),
        };
        for touched in TOUCHED {
            for index in USED {
                // The page's own data.
                expect(touched * HUGE + index * 8, self.pattern, index);
                // The page table: 4 KiB that nobody touched.
                if index != 0 {
                    expect(touched * HUGE + index * PAGE, 0, index);
                }
            }
        }
        // The PMD table: 2 MiB that nobody touched. Looked at in one region of the ring only: looking makes page tables.
        if self.pattern.is_multiple_of(4) {
            for index in USED.into_iter().filter(|index| !TOUCHED.contains(index)) {
                expect(index * HUGE, 0, index);
            }
        }
    }
}
