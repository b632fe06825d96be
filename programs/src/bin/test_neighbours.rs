//! Base pages and huge pages in one slot of 1 GiB, under every call that can bring a page table there.
//!
//! A run is a random sequence of calls on one slot, and a model that knows what each page must hold. The kernel shares the tables of huge pages
//! among processes by slot; whoever puts a base page into the slot of such pages must get a table of its own there, and nobody may notice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use roundtable_programs::file::Fd;
use roundtable_programs::harness::panic_message;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, RW, SHARED, madvise, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::rng::Rng;
use roundtable_programs::sys::{PAGE, check};
use roundtable_programs::{child, kinds, tests};

tests! { calls_in_a_shared_slot: 200, heap_beside_huge_pages: 60, exec_beside_huge_pages: 60 }

const POOL: u64 = 160;
/// Where things are put: the first and the last huge pages of the slot.
const CELLS: usize = 24;
/// Huge pages of each file.
const FILE: usize = 12;

/// What a mapping shows: whose pages, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source {
    /// Of a file, or of memory without a file.
    id: usize,
    page: usize,
}

/// One page of the slot, of 4 KiB or 2 MiB.
#[derive(Clone, Copy, Debug)]
struct Page {
    size: usize,
    source: Source,
    shared: bool,
    /// What a private page has for itself.
    own: Option<u64>,
}

struct World {
    /// The slot, and the next one as a place to move from.
    slot: usize,
    huge: [Fd; 2],
    base: Fd,
    pages: BTreeMap<usize, Page>,
    /// What shared pages hold. Those that are not here are holes.
    content: HashMap<Source, u64>,
    /// Pages of files that are there, if only as zeroes.
    present: HashSet<Source>,
    next: u64,
}

const MISSING: u64 = 1;
const WITHHOLD: u64 = 2;
const COPY: usize = 0xc028_aa03;
const WRITEPROTECT: usize = 0xc018_aa06;

/// A descriptor of userfaultfd(2) that is told of a range.
struct Userfault(Fd);

impl Userfault {
    fn of(address: usize, length: usize, mode: u64) -> Userfault {
        const API: usize = 0xc018_aa3f;
        const REGISTER: usize = 0xc020_aa00;
        /// Write protection, of files' pages too.
        const FEATURES: u64 = 1 << 0 | 1 << 12;
        let number = kinds::call(libc::SYS_userfaultfd, [libc::O_CLOEXEC as usize, 0, 0, 0, 0, 0]);
        let uffd = Userfault(Fd::own(number.expect("userfaultfd")));
        uffd.call(API, &mut [0xaa, FEATURES, 0]);
        uffd.call(REGISTER, &mut [address as u64, length as u64, mode, 0]);
        uffd
    }

    #[track_caller]
    fn call<const N: usize>(&self, command: usize, words: &mut [u64; N]) {
        let arguments = [self.0.raw() as usize, command, words.as_mut_ptr() as usize, 0, 0, 0];
        kinds::call(libc::SYS_ioctl, arguments).expect("a call of userfaultfd's");
    }
}

fn word(address: usize) -> *mut u64 {
    address as *mut u64
}

impl World {
    fn new(slot: usize) -> World {
        let base = Fd::temporary();
        base.truncate((FILE * HUGE) as u64).expect("ftruncate");
        World {
            slot,
            huge: [huge::sized(FILE), huge::sized(FILE)],
            base,
            pages: BTreeMap::new(),
            content: HashMap::new(),
            present: HashSet::new(),
            next: 3,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The address of a huge page of the slot.
    fn cell(&self, rng: &mut Rng) -> usize {
        let index = rng.below(CELLS);
        self.slot + if index < CELLS / 2 { index } else { 512 - CELLS + index } * HUGE
    }

    fn forget(&mut self, start: usize, length: usize) {
        // A huge page that begins before does not reach in: huge pages are cut at their ends only.
        let gone: Vec<usize> = self.pages.range(start..start + length).map(|(at, _)| *at).collect();
        gone.iter().for_each(|at| _ = self.pages.remove(at));
    }

    fn is_free(&self, start: usize, length: usize) -> bool {
        let from = start & !(HUGE - 1);
        self.pages.range(from..start + length).all(|(at, page)| at + page.size <= start)
    }

    /// Maps huge pages of some kind, over what is there.
    fn map_huge(&mut self, rng: &mut Rng) {
        let at = self.cell(rng);
        let (shared, count) = (!rng.chance(3), 1 + rng.below(2));
        if (at - self.slot) / HUGE + count > 512 {
            return;
        }
        let flags = FIXED | NORESERVE | if shared { SHARED } else { PRIVATE };
        let (id, page) = if rng.chance(4) {
            let flags = flags | ANON | libc::MAP_HUGETLB;
            mmap(at, count * HUGE, RW, flags, -1, 0).expect("mmap of huge pages");
            (self.number() as usize, 0)
        } else {
            let (id, page) = (rng.below(2), rng.below(FILE - count));
            let fd = self.huge[id].raw();
            mmap(at, count * HUGE, RW, flags, fd, (page * HUGE) as i64).expect("mmap of a huge file");
            (id, page)
        };
        self.forget(at, count * HUGE);
        for index in 0..count {
            let source = Source { id, page: page + index };
            self.pages.insert(at + index * HUGE, Page { size: HUGE, source, shared, own: None });
        }
    }

    /// A place for a base page where no huge page is.
    fn hole(&self, rng: &mut Rng) -> Option<usize> {
        let at = self.cell(rng) + rng.below(4) * PAGE + if rng.chance(2) { HUGE / 2 } else { 0 };
        self.is_free(at, PAGE).then_some(at)
    }

    fn add_base(&mut self, at: usize, source: Source, shared: bool, own: Option<u64>) {
        self.pages.insert(at, Page { size: PAGE, source, shared, own });
    }

    fn map_base(&mut self, rng: &mut Rng) {
        let Some(at) = self.hole(rng) else { return };
        let shared = rng.chance(2);
        let flags = FIXED | if shared { SHARED } else { PRIVATE };
        if rng.chance(2) {
            let page = rng.below(16);
            mmap(at, PAGE, RW, flags, self.base.raw(), (page * PAGE) as i64).expect("mmap of a file");
            self.add_base(at, Source { id: 2, page }, shared, None);
        } else {
            mmap(at, PAGE, RW, flags | ANON, -1, 0).expect("mmap");
            let id = self.number() as usize;
            self.add_base(at, Source { id, page: 0 }, shared, None);
        }
    }

    /// A page without access that gets it, and a store.
    fn protect_from_none(&mut self, rng: &mut Rng) {
        let Some(at) = self.hole(rng) else { return };
        mmap(at, PAGE, NONE, PRIVATE | ANON | FIXED, -1, 0).expect("mmap");
        mprotect(at, PAGE, RW).expect("mprotect");
        let id = self.number() as usize;
        self.add_base(at, Source { id, page: 0 }, false, None);
        self.store(at);
    }

    /// A page that was stored to elsewhere comes by mremap; perhaps its old place stays.
    fn move_base(&mut self, rng: &mut Rng) {
        let Some(at) = self.hole(rng) else { return };
        let value = self.number();
        let old = mmap(0, PAGE, RW, PRIVATE | ANON, -1, 0).expect("mmap");
        // SAFETY: mapped just now, and ours.
        unsafe { word(old).write_volatile(value) };
        let keep = rng.chance(2);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | if keep { libc::MREMAP_DONTUNMAP } else { 0 };
        assert_eq!(mremap(old, PAGE, PAGE, flags, at), Ok(at));
        if keep {
            munmap(old, PAGE).expect("munmap");
        }
        self.add_base(at, Source { id: value as usize, page: 0 }, false, Some(value));
    }

    /// Moves something within the slot: a base page, or a huge page.
    fn move_within(&mut self, rng: &mut Rng) {
        let Some((at, page)) = self.any(rng) else { return };
        let to = self.cell(rng) + if page.size == PAGE { rng.below(4) * PAGE } else { 0 };
        if !self.is_free(to, page.size) {
            return;
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        assert_eq!(mremap(at, page.size, page.size, flags, to), Ok(to));
        self.pages.remove(&at);
        self.pages.insert(to, page);
    }

    /// A mapping that grows by a page in place.
    fn grow(&mut self, rng: &mut Rng) {
        let Some(at) = self.hole(rng).filter(|at| self.is_free(*at, 2 * PAGE)) else { return };
        mmap(at, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).expect("mmap");
        assert_eq!(mremap(at, PAGE, 2 * PAGE, 0, 0), Ok(at));
        for index in 0..2 {
            let id = self.number() as usize;
            self.add_base(at + index * PAGE, Source { id, page: 0 }, false, None);
        }
        self.store(at + PAGE);
    }

    /// A stack that grows down by a page.
    fn grow_stack(&mut self, rng: &mut Rng) {
        let at = self.cell(rng) + HUGE / 2;
        if !self.is_free(at - HUGE / 2, HUGE) || !self.is_free(at - 2 * HUGE, 2 * HUGE) {
            return;
        }
        let flags = PRIVATE | ANON | FIXED | libc::MAP_GROWSDOWN;
        mmap(at, PAGE, RW, flags, -1, 0).expect("mmap of a stack");
        for address in [at, at - PAGE] {
            let id = self.number() as usize;
            self.add_base(address, Source { id, page: 0 }, false, None);
            self.store(address);
        }
    }

    /// A page that comes by userfaultfd(2), without a fault.
    fn fill_from_outside(&mut self, rng: &mut Rng) {
        let Some(at) = self.hole(rng) else { return };
        mmap(at, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).expect("mmap");
        let value = self.number();
        let content = [value; PAGE / 8];
        let uffd = Userfault::of(at, PAGE, MISSING);
        uffd.call(COPY, &mut [at as u64, content.as_ptr() as u64, PAGE as u64, 0, 0]);
        self.add_base(at, Source { id: value as usize, page: 0 }, false, Some(value));
    }

    /// A mapping whose stores are withheld for a while: of huge pages that share tables it takes one of its own.
    fn withhold(&mut self, rng: &mut Rng) {
        let Some((at, page)) = self.any(rng) else { return };
        let uffd = Userfault::of(at, page.size, WITHHOLD);
        uffd.call(WRITEPROTECT, &mut [at as u64, page.size as u64, 1]);
        self.load(at);
        uffd.call(WRITEPROTECT, &mut [at as u64, page.size as u64, 0]);
        drop(uffd);
        self.store(at);
    }

    fn any(&self, rng: &mut Rng) -> Option<(usize, Page)> {
        let count = self.pages.len();
        if count == 0 {
            return None;
        }
        self.pages.iter().nth(rng.below(count)).map(|(at, page)| (*at, *page))
    }

    fn unmap(&mut self, rng: &mut Rng) {
        if let Some((at, page)) = self.any(rng) {
            munmap(at, page.size).expect("munmap");
            self.pages.remove(&at);
        }
    }

    /// Takes what private pages have for themselves away, or rights, which come back.
    fn disturb(&mut self, rng: &mut Rng) {
        let Some((at, page)) = self.any(rng) else { return };
        match rng.below(3) {
            0 => {
                madvise(at, page.size, libc::MADV_DONTNEED).expect("MADV_DONTNEED");
                if let Some(page) = self.pages.get_mut(&at) {
                    page.own = None;
                }
            }
            1 => mprotect(at, page.size, NONE).expect("mprotect"),
            _ => mprotect(at, page.size, libc::PROT_READ).expect("mprotect"),
        }
        mprotect(at, page.size, RW).expect("mprotect");
    }

    fn store(&mut self, at: usize) {
        let value = self.number();
        let Some(page) = self.pages.get_mut(&at) else { return };
        // SAFETY: mapped by this test, and writable.
        unsafe { word(at).write_volatile(value) };
        if page.shared {
            self.content.insert(page.source, value);
            self.present.insert(page.source);
        } else {
            page.own = Some(value);
        }
    }

    fn load(&mut self, at: usize) {
        let Some(page) = self.pages.get_mut(&at) else { return };
        // SAFETY: mapped by this test, and readable.
        let seen = unsafe { word(at).read_volatile() };
        let expected = page.own.or_else(|| self.content.get(&page.source).copied()).unwrap_or(0);
        assert_eq!(seen, expected, "{page:?} at {at:#x}");
        if page.shared || page.size == PAGE {
            self.present.insert(page.source);
        } else if !self.present.contains(&page.source) {
            // A hole of a file is filled for the private mapping alone.
            page.own = Some(seen);
        }
    }

    fn check(&mut self) {
        let all: Vec<usize> = self.pages.keys().copied().collect();
        all.iter().for_each(|at| self.load(*at));
    }

    /// A child sees the same, and stores to what is private.
    fn fork(&mut self) {
        child::in_child(|| {
            self.check();
            let private: Vec<usize> =
                self.pages.iter().filter(|(_, page)| !page.shared).map(|(at, _)| *at).collect();
            private.iter().for_each(|at| self.store(*at));
            self.check();
        });
        // What the child has looked at in files is there now.
        let shared = self.pages.values().filter(|page| page.shared || page.size == PAGE);
        self.present.extend(shared.map(|page| page.source));
    }

    /// An empty slot but for one mapping, whose tables others share.
    fn start_again(&mut self, rng: &mut Rng) {
        munmap(self.slot, GIB).expect("munmap");
        self.pages.clear();
        let (at, id, page) = (self.cell(rng), rng.below(2), rng.below(FILE));
        let (fd, offset) = (self.huge[id].raw(), (page * HUGE) as i64);
        mmap(at, HUGE, RW, SHARED | FIXED, fd, offset).expect("mmap of a huge file");
        let page = Page { size: HUGE, source: Source { id, page }, shared: true, own: None };
        self.pages.insert(at, page);
        if rng.chance(2) {
            self.store(at);
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        match rng.below(26) {
            0..4 => self.map_huge(rng),
            4..7 => self.map_base(rng),
            7 => self.protect_from_none(rng),
            8..10 => self.move_base(rng),
            10 => self.move_within(rng),
            11 => self.grow(rng),
            12 => self.grow_stack(rng),
            13..15 => self.unmap(rng),
            15 => self.disturb(rng),
            16 => self.fork(),
            17..21 => {
                if let Some((at, _)) = self.any(rng) {
                    self.store(at);
                }
            }
            21..23 => {
                if let Some((at, _)) = self.any(rng) {
                    self.load(at);
                }
            }
            23 => self.fill_from_outside(rng),
            24 => self.withhold(rng),
            _ => self.check(),
        }
    }
}

/// The environment may ask for other seeds and more of them: `ROUNDTABLE_SEEDS=FROM..TO`.
fn seeds() -> std::ops::Range<u64> {
    let text = std::env::var("ROUNDTABLE_SEEDS").ok();
    let range = text.as_deref().and_then(|text| text.split_once(".."));
    range.map_or(0..10, |(from, to)| from.parse().expect("a seed")..to.parse().expect("a seed"))
}

fn calls_in_a_shared_slot() {
    for seed in seeds() {
        huge::pool(POOL);
        child::in_child(|| {
            let reserved = Map::reserve(GIB, GIB);
            let mut world = World::new(reserved.address);
            let mut rng = Rng::new(seed);
            // Another process shares the files' tables all the time.
            let sharer = child::fork(|| {
                let maps = world.huge.each_ref().map(|file| file.map(FILE * HUGE, RW, SHARED).expect("map"));
                loop {
                    maps.iter().for_each(|map| _ = map.get(0));
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            });
            // It has touched the first page of both.
            world.present.extend([0, 1].map(|id| Source { id, page: 0 }));
            world.huge.iter().for_each(|file| _ = file.map(HUGE, RW, SHARED).expect("map").get(0));
            for step in 0..160 {
                let done = catch_unwind(AssertUnwindSafe(|| {
                    if step % 8 == 0 {
                        world.check();
                        world.start_again(&mut rng);
                    }
                    world.step(&mut rng);
                }));
                if let Err(payload) = done {
                    panic!("seed {seed}, step {step}: {}", panic_message(&*payload));
                }
            }
            world.check();
            sharer.end();
        });
    }
}

/// The heap grows into a slot in which huge pages are, and these keep what they hold.
fn heap_beside_huge_pages() {
    huge::pool(8);
    let end = || {
        // SAFETY: asks for the present end.
        unsafe { libc::sbrk(0) as usize }
    };
    let file = huge::sized(4);
    // Behind the heap, but in reach of its slot.
    let at = end().next_multiple_of(HUGE) + 4 * HUGE;
    for flags in [SHARED, PRIVATE] {
        let flags = flags | libc::MAP_FIXED_NOREPLACE;
        let map = Map::at(at, 2 * HUGE, RW, flags, file.raw(), 0).expect("mmap behind the heap");
        map.set_u64(0, 7);
        map.set_u64(HUGE, 8);
        let old = end();
        // SAFETY: this process's heap; nothing else moves its end meanwhile.
        let grown = check(unsafe { libc::brk((at - HUGE) as *mut _) });
        grown.expect("brk");
        (old.next_multiple_of(PAGE)..at - HUGE).step_by(PAGE).for_each(|page| {
            // SAFETY: in the heap.
            unsafe { word(page).write_volatile(page as u64) }
        });
        assert_eq!((map.get_u64(0), map.get_u64(HUGE)), (7, 8));
        child::in_child(|| assert_eq!((map.get_u64(0), map.get_u64(HUGE)), (7, 8)));
        // SAFETY: as above, back to where it was.
        check(unsafe { libc::brk(old as *mut _) }).expect("brk");
        assert_eq!((map.get_u64(0), map.get_u64(HUGE)), (7, 8));
    }
}

/// A program that ends another's huge pages by execve starts with its own pages where these were.
fn exec_beside_huge_pages() {
    huge::pool(8);
    let file = huge::sized(4);
    let end = {
        // SAFETY: asks for the present end.
        unsafe { libc::sbrk(0) as usize }
    };
    let map = Map::at(end.next_multiple_of(HUGE), 2 * HUGE, RW, SHARED, file.raw(), 0).expect("mmap");
    map.set_u64(0, 5);
    for _ in 0..4 {
        let list = std::process::Command::new("/proc/self/exe").arg("--list").output().expect("exec");
        assert!(list.status.success(), "{list:?}");
        assert_eq!(map.get_u64(0), 5);
    }
}
