//! userfaultfd(2) and parts of areas: what is registered already, and what never was.

use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED, madvise, mprotect};
use roundtable_programs::sys::PAGE;
use roundtable_programs::uffd::{ALL_KINDS, MISSING, UNREGISTER, Uffd};
use roundtable_programs::{child, tests};

tests! { registered_again, never_registered, another_context, alike_in_a_child }

/// Areas of base pages and of huge pages, with the size of a page.
fn areas() -> [(Map, usize); 2] {
    huge::pool(8);
    let map = |length, more| Map::new(length, RW, PRIVATE | ANON | more, -1, 0).expect("mmap");
    [(map(8 * PAGE, 0), PAGE), (map(4 * HUGE, libc::MAP_HUGETLB), HUGE)]
}

/// The beginning of a registered area once more, in the same mode: nothing is to be cut.
fn registered_again() {
    for (map, page) in areas() {
        let uffd = Uffd::new(ALL_KINDS);
        assert_eq!(uffd.register(&map, MISSING), Ok(0));
        assert_eq!(uffd.register_at(map.address, page, MISSING), Ok(0));
        assert_eq!(uffd.register_at(map.address + page, 2 * page, MISSING), Ok(0));
    }
}

/// A part of an area that nobody has registered is let go of, to no effect.
fn never_registered() {
    for (map, page) in areas() {
        let uffd = Uffd::new(ALL_KINDS);
        let words = &mut [map.address as u64, page as u64];
        assert_eq!(uffd.ioctl(UNREGISTER, words), Ok(0));
        map.set(0, 1);
    }
}

/// A part of an area of another descriptor's.
fn another_context() {
    for (map, page) in areas() {
        let (first, second) = (Uffd::new(ALL_KINDS), Uffd::new(ALL_KINDS));
        assert_eq!(first.register(&map, MISSING), Ok(0));
        assert_eq!(second.ioctl(UNREGISTER, &mut [map.address as u64, page as u64]), Ok(0));
    }
}

/// A child's areas are alike where half of its parent's was registered, and stay two until a call changes them.
fn alike_in_a_child() {
    let map = Map::new(4 * PAGE, RW, SHARED | ANON, -1, 0).expect("mmap");
    let uffd = Uffd::new(ALL_KINDS);
    assert_eq!(uffd.register_at(map.address, 2 * PAGE, MISSING), Ok(0));
    let areas = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let places = [0, 2].map(|page| format!("{:x}-", map.address + page * PAGE));
        maps.lines().filter(|line| places.iter().any(|place| line.starts_with(place))).count()
    };
    child::in_child(|| {
        assert_eq!(areas(), 2);
        madvise(map.address, 4 * PAGE, libc::MADV_DODUMP).unwrap();
        mprotect(map.address, 4 * PAGE, RW).unwrap();
        // SAFETY: locks nothing.
        assert_eq!(unsafe { libc::munlock(map.address as *const libc::c_void, 4 * PAGE) }, 0);
        assert_eq!(areas(), 2);
        madvise(map.address, 4 * PAGE, libc::MADV_DONTDUMP).unwrap();
        assert_eq!(areas(), 1);
    });
}
