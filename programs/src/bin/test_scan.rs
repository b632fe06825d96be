//! PAGEMAP_SCAN: which pages are of certain kinds, and what was stored into since stores were withheld last.

use roundtable_programs::child::fork;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED, madvise};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{PAGE, is_linux};
use roundtable_programs::uffd::{self, Uffd};
use roundtable_programs::{Errno, row, tests};

tests! { pages_of_kinds, masks, stored_pages, stored_huge_pages, room_and_most, nothing_is_lost: 60, areas_without_withheld_stores,
pages_of_another, questions_that_are_refused }

const WP_ALLOWED: u64 = 1;
const WRITTEN: u64 = 2;
const FILE: u64 = 4;
const PRESENT: u64 = 8;
const ZERO: u64 = 32;
const IS_HUGE: u64 = 64;

const WITHHOLD: u64 = 1;
const CHECK: u64 = 2;

/// `struct pm_scan_arg`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

/// Begin, end and categories; begin and end in pages of the mapping.
type Region = [u64; 3];

impl Scan {
    fn of(map: &Map) -> Scan {
        let start = map.address as u64;
        Scan { size: 96, start, end: start + map.length as u64, ..Scan::default() }
    }

    fn ask_of(&mut self, process: &str, room: &mut [Region]) -> Answer {
        const PAGEMAP_SCAN: usize = 0xc060_6610;
        let pagemap = Fd::open(&format!("/proc/{process}/pagemap"), libc::O_RDONLY).unwrap();
        (self.vec, self.vec_len) = (room.as_mut_ptr() as u64, room.len() as u64);
        if room.is_empty() {
            self.vec = 0;
        }
        call(libc::SYS_ioctl, [pagemap.raw() as usize, PAGEMAP_SCAN, &raw mut *self as usize, 0, 0, 0])
    }

    fn ask(&mut self, room: &mut [Region]) -> Answer {
        self.ask_of("self", room)
    }

    /// The regions, with begin and end in pages from the start of `map`.
    fn regions(mut self, map: &Map) -> Vec<Region> {
        let mut room = [[0; 3]; 64];
        let count = self.ask(&mut room).expect("PAGEMAP_SCAN");
        assert_eq!(self.walk_end, self.end);
        room[..count].iter().map(|region| in_pages(region, map)).collect()
    }
}

fn in_pages(region: &Region, map: &Map) -> Region {
    let page = |address: u64| (address - map.address as u64) / PAGE as u64;
    [page(region[0]), page(region[1]), region[2]]
}

/// A userfaultfd that notes stores into the mapping without asking anybody, and withholds them from all pages.
fn noting(map: &Map) -> Uffd {
    let uffd = Uffd::new(uffd::WP_UNPOPULATED | uffd::WP_FILES | uffd::WP_ASYNC);
    uffd.register(map, uffd::WP).expect("UFFDIO_REGISTER");
    uffd.protect(map.address, map.length, 1).expect("UFFDIO_WRITEPROTECT");
    uffd
}

/// Base pages, whatever the system makes of large areas.
fn private(pages: usize) -> Map {
    let map = Map::new(pages * PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
    madvise(map.address, map.length, libc::MADV_NOHUGEPAGE).unwrap();
    map
}

fn pages_of_kinds() {
    let told = WP_ALLOWED | WRITTEN | FILE | PRESENT | ZERO | IS_HUGE;
    let map = private(8);
    map.set(PAGE, 1);
    map.set(2 * PAGE, 1);
    assert_eq!(map.get(5 * PAGE), 0);
    let present = Scan { all_of: PRESENT, told, ..Scan::of(&map) };
    assert_eq!(present.regions(&map), [[1, 3, WRITTEN | PRESENT], [5, 6, WRITTEN | PRESENT | ZERO]]);
    let zero = Scan { all_of: ZERO, told: ZERO, ..Scan::of(&map) };
    assert_eq!(zero.regions(&map), [[5, 6, ZERO]]);
    let file = Fd::of_pages(8);
    file.write_at(&[1; 3 * PAGE], PAGE as u64).unwrap();
    let map = file.map(8 * PAGE, RW, SHARED).unwrap();
    map.set(2 * PAGE, 2);
    map.set(4 * PAGE, 2);
    let of_file = Scan { all_of: PRESENT, told, ..Scan::of(&map) };
    let found = of_file.regions(&map);
    assert!(found.iter().all(|region| region[2] == WRITTEN | PRESENT | FILE), "{found:?}");
    assert!(found.iter().any(|region| (region[0]..region[1]).contains(&4)), "{found:?}");
    let copied = file.map(8 * PAGE, RW, PRIVATE).unwrap();
    copied.set(2 * PAGE, 3);
    let anonymous = Scan { all_of: PRESENT | FILE, inverted: FILE, told: FILE, ..Scan::of(&copied) };
    assert_eq!(anonymous.regions(&copied), [[2, 3, 0]]);
    huge::pool(4);
    let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(HUGE, 1);
    let pages = (HUGE / PAGE) as u64;
    let huge = Scan { all_of: PRESENT, told: PRESENT | IS_HUGE | FILE, ..Scan::of(&map) };
    assert_eq!(huge.regions(&map), [[pages, 2 * pages, PRESENT | IS_HUGE]]);
    // Part of one.
    let part = Scan { start: (map.address + HUGE + PAGE) as u64, ..huge };
    assert_eq!(part.regions(&map), [[pages + 1, 2 * pages, PRESENT | IS_HUGE]]);
}

fn masks() {
    let map = private(6);
    map.set(0, 1);
    assert_eq!(map.get(2 * PAGE), 0);
    let base = Scan { told: PRESENT | ZERO, ..Scan::of(&map) };
    let with =
        |all_of: u64, any_of: u64, inverted: u64| Scan { all_of, any_of, inverted, ..base }.regions(&map);
    assert_eq!(with(PRESENT, ZERO | FILE, 0), [[2, 3, PRESENT | ZERO]]);
    assert_eq!(with(PRESENT | ZERO, 0, ZERO), [[0, 1, PRESENT]]);
    assert_eq!(with(0, PRESENT, 0), [[0, 1, PRESENT], [2, 3, PRESENT | ZERO]]);
    assert_eq!(with(PRESENT, 0, PRESENT), [[1, 2, 0], [3, 6, 0]]);
    assert_eq!(with(IS_HUGE, 0, 0), [[0u64; 3]; 0]);
    // What is told are only the categories that were asked for, and neighbours alike in these are one.
    map.set(PAGE, 1);
    let told = Scan { all_of: PRESENT, told: PRESENT, ..Scan::of(&map) };
    assert_eq!(told.regions(&map), [[0, 3, PRESENT]]);
}

fn stored_pages() {
    let file = Fd::of_pages(8);
    let maps = [private(8), file.map(8 * PAGE, RW, SHARED).unwrap()];
    for map in maps {
        (0..8).for_each(|page| map.set(page * PAGE, 1));
        let _uffd = noting(&map);
        let stored = Scan { all_of: WRITTEN, told: WRITTEN, ..Scan::of(&map) };
        assert_eq!(stored.regions(&map), [[0u64; 3]; 0]);
        [1, 2, 6].iter().for_each(|page| map.set(page * PAGE, 2));
        assert_eq!(stored.regions(&map), [[1, 3, WRITTEN], [6, 7, WRITTEN]]);
        assert_eq!(stored.regions(&map), [[1, 3, WRITTEN], [6, 7, WRITTEN]]);
        let taking = Scan { flags: WITHHOLD | CHECK, ..stored };
        assert_eq!(taking.regions(&map), [[1, 3, WRITTEN], [6, 7, WRITTEN]]);
        assert_eq!(taking.regions(&map), [[0u64; 3]; 0]);
        map.set(2 * PAGE, 3);
        assert_eq!((map.get(2 * PAGE), map.get(PAGE)), (3, 2));
        assert_eq!(taking.regions(&map), [[2, 3, WRITTEN]]);
        // Without being told.
        map.set(0, 3);
        assert_eq!({ taking }.ask(&mut []), Ok(0));
        assert_eq!(stored.regions(&map), [[0u64; 3]; 0]);
        let allowed = Scan { all_of: WP_ALLOWED, told: WP_ALLOWED, ..Scan::of(&map) };
        assert_eq!(allowed.regions(&map), [[0, 8, WP_ALLOWED]]);
    }
}

fn stored_huge_pages() {
    huge::pool(8);
    let file = huge::sized(3);
    let maps = [
        file.map(3 * HUGE, RW, SHARED).unwrap(),
        Map::new(3 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap(),
    ];
    let pages = (HUGE / PAGE) as u64;
    for map in maps {
        (0..3).for_each(|page| map.set(page * HUGE, 1));
        let _uffd = noting(&map);
        let stored = Scan { all_of: WRITTEN, told: WRITTEN, ..Scan::of(&map) };
        let taking = Scan { flags: WITHHOLD | CHECK, ..stored };
        assert_eq!(taking.regions(&map), [[0u64; 3]; 0]);
        map.set(HUGE + 5, 2);
        assert_eq!(taking.regions(&map), [[pages, 2 * pages, WRITTEN]]);
        assert_eq!(stored.regions(&map), [[0u64; 3]; 0]);
        // Stores are not withheld from a part of one.
        map.set(2 * HUGE, 2);
        let mut part = Scan { end: (map.address + 2 * HUGE + 3 * PAGE) as u64, ..taking };
        let mut room = [[0; 3]; 4];
        assert_eq!(part.ask(&mut room), Ok(0));
        assert_eq!(part.walk_end, (map.address + 2 * HUGE) as u64);
        assert_eq!(stored.regions(&map), [[2 * pages, 3 * pages, WRITTEN]]);
    }
}

fn room_and_most() {
    let map = private(64);
    (0..64).step_by(2).for_each(|page| map.set(page * PAGE, 1));
    let page = |number: u64| map.address as u64 + number * PAGE as u64;
    let base = Scan { all_of: PRESENT, told: PRESENT, ..Scan::of(&map) };
    let mut scan = base;
    let mut room = [[0; 3]; 3];
    assert_eq!(scan.ask(&mut room), Ok(3));
    assert_eq!((in_pages(&room[2], &map), scan.walk_end), ([4, 5, PRESENT], page(6)));
    (1..8).step_by(2).for_each(|page| map.set(page * PAGE, 1));
    let mut scan = Scan { max_pages: 5, ..base };
    assert_eq!(scan.ask(&mut room), Ok(1));
    assert_eq!((in_pages(&room[0], &map), scan.walk_end), ([0, 5, PRESENT], page(5)));
    // More than goes through the kernel at a time.
    let map = private(4000);
    (0..4000).step_by(2).for_each(|page| map.set(page * PAGE, 1));
    let mut room = vec![[0; 3]; 4000];
    let mut scan = Scan { all_of: PRESENT, told: PRESENT, ..Scan::of(&map) };
    assert_eq!(scan.ask(&mut room), Ok(2000));
    // Linux tells where it last made room in its own buffer.
    assert!(is_linux() || scan.walk_end == scan.end);
    for (index, region) in room[..2000].iter().enumerate() {
        assert_eq!(in_pages(region, &map), [2 * index as u64, 2 * index as u64 + 1, PRESENT]);
    }
}

/// Others store while pages are told and withheld: what was stored into after it was told is told again, so the last telling
/// comes after the last store.
fn nothing_is_lost() {
    const PAGES: usize = 32;
    let map = private(PAGES);
    (0..PAGES).for_each(|page| map.set(page * PAGE, 0));
    let _uffd = noting(&map);
    let base = map.address;
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut copies = vec![0u8; PAGES];
    let mut take = || {
        let mut scan = Scan { flags: WITHHOLD | CHECK, all_of: WRITTEN, told: WRITTEN, ..Scan::of(&map) };
        let mut room = [[0; 3]; PAGES];
        let count = scan.ask(&mut room).unwrap();
        for region in &room[..count] {
            let [first, end, _] = in_pages(region, &map);
            for page in first..end {
                // SAFETY: the page is mapped; others store a byte at a time.
                copies[page as usize] =
                    unsafe { ((base + page as usize * PAGE) as *const u8).read_volatile() };
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2000usize {
                let page = round * 7 % PAGES;
                // SAFETY: the page is mapped, and this thread alone stores.
                unsafe { ((base + page * PAGE) as *mut u8).write_volatile(round as u8) };
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            take();
        }
    });
    take();
    let now: Vec<u8> = (0..PAGES).map(|page| map.get(page * PAGE)).collect();
    assert_eq!(copies, now);
}

fn areas_without_withheld_stores() {
    let map = private(4);
    map.set(0, 1);
    let stored = Scan { all_of: PRESENT, told: PRESENT, ..Scan::of(&map) };
    let mut room = [[0; 3]; 4];
    assert_eq!(Scan { flags: WITHHOLD, ..stored }.ask(&mut room), Ok(0));
    assert_eq!(Scan { flags: WITHHOLD | CHECK, ..stored }.ask(&mut room), Err(Errno::EPERM));
    assert_eq!(Scan { flags: CHECK, ..stored }.ask(&mut room), Err(Errno::EPERM));
    assert_eq!({ stored }.ask(&mut room), Ok(1));
    let allowed = Scan { all_of: WP_ALLOWED, told: WP_ALLOWED, ..stored };
    assert_eq!(allowed.regions(&map), [[0u64; 3]; 0]);
    // Nothing is mapped there.
    let gone = { map }.address as u64;
    let mut scan = Scan { start: gone, end: gone + PAGE as u64, ..stored };
    assert_eq!((scan.ask(&mut room), scan.walk_end), (Ok(0), gone + PAGE as u64));
}

fn pages_of_another() {
    let map = private(4);
    map.set(PAGE, 1);
    let (told, tell) = roundtable_programs::file::pipe(0);
    let (asked, ask) = roundtable_programs::file::pipe(0);
    let child = fork(|| {
        map.set(3 * PAGE, 1);
        tell.write(b"x").unwrap();
        assert_eq!(asked.read(&mut [0; 1]), Ok(1));
    });
    assert_eq!(told.read(&mut [0; 1]), Ok(1));
    let mut room = [[0; 3]; 4];
    let mut scan = Scan { all_of: PRESENT, told: PRESENT, ..Scan::of(&map) };
    assert_eq!(scan.ask_of(&child.pid.to_string(), &mut room), Ok(2));
    assert_eq!([0, 1].map(|index| in_pages(&room[index], &map)), [[1, 2, PRESENT], [3, 4, PRESENT]]);
    ask.write(b"x").unwrap();
    child.ok();
}

fn questions_that_are_refused() {
    let mut rows = Rows::default();
    let map = private(4);
    let base = Scan { told: PRESENT, ..Scan::of(&map) };
    let mut room = [[0; 3]; 4];
    let mut with = |change: fn(&mut Scan)| {
        let mut scan = base;
        change(&mut scan);
        scan.ask(&mut room)
    };
    row!(rows, EINVAL, with(|scan| scan.size = 95));
    row!(rows, EINVAL, with(|scan| scan.flags = 4));
    row!(rows, EINVAL, with(|scan| scan.told = 1 << 20));
    row!(rows, EINVAL, with(|scan| scan.inverted = 1 << 20));
    row!(rows, EINVAL, with(|scan| scan.start += 1));
    row!(rows, EFAULT, with(|scan| scan.end = u64::MAX - PAGE as u64));
    row!(rows, EFAULT, with(|scan| scan.end = scan.start - PAGE as u64));
    row!(rows, OK, with(|scan| scan.end = scan.start));
    let pagemap = Fd::open("/proc/self/pagemap", libc::O_RDONLY).unwrap();
    row!(rows, EINVAL, call(libc::SYS_ioctl, [pagemap.raw() as usize, 0x6610, 0, 0, 0, 0]));
    row!(rows, EFAULT, call(libc::SYS_ioctl, [pagemap.raw() as usize, 0xc060_6610, 8, 0, 0, 0]));
    rows.finish();
}
