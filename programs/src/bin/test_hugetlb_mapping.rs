//! Mappings of huge pages: places, offsets, parts, protection, moves, advice.

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::huge::{self, GIB, HUGE, expect_pool, file, sized, stamp};
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED, madvise, mincore, mmap, mprotect, mremap,
    munmap,
};
use roundtable_programs::{Errno, child, sys, tests};

tests! { address_is_aligned, fixed, fixed_must_be_aligned, fixed_replaces, length_is_rounded, offset_must_be_aligned,
offsets_beyond_four_gib, data_stays_with_its_page, partial_munmap, unaligned_munmap, munmap_rounds_length,
mprotect_whole, mprotect_part, unaligned_mprotect, prot_none, write_to_read_only, mremap_moves, mremap_shrinks,
mremap_cannot_grow, mremap_moves_shared, madvise_set, dontneed_private, dontneed_shared, madvise_remove,
mincore_tells, mlock_works, msync_works, populate, two_mappings_one_page, adjacent_mappings, map_read_only_file,
smaps_shows_it, hint_is_taken, holes_between, sparse_terabyte }

fn address_is_aligned() {
    huge::pool(2);
    let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    assert_eq!(map.address % HUGE, 0);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    assert_eq!(map.address % HUGE, 0);
}

fn fixed() {
    huge::pool(2);
    let place = Map::reserve(4 * HUGE, HUGE);
    let file = sized(1);
    let got = mmap(place.address + HUGE, HUGE, RW, SHARED | FIXED, file.raw(), 0).unwrap();
    assert_eq!(got, place.address + HUGE);
    place.set(HUGE + 3, 9);
    assert_eq!(place.get(HUGE + 3), 9);
    assert_eq!(fault::read(place.address), Err(Fault::forbidden(place.address)));
}

fn fixed_must_be_aligned() {
    huge::pool(2);
    let place = Map::reserve(4 * HUGE, HUGE);
    let file = sized(1);
    let result = mmap(place.address + 4096, HUGE, RW, SHARED | FIXED, file.raw(), 0);
    assert_eq!(result, Err(Errno::EINVAL));
    expect_pool(2, 0);
}

fn fixed_replaces() {
    huge::pool(4);
    let first = sized(2);
    let second = sized(1);
    let map = first.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    map.set(HUGE, 2);
    mmap(map.address, HUGE, RW, SHARED | FIXED, second.raw(), 0).unwrap();
    assert_eq!((map.get(0), map.get(HUGE)), (0, 2));
    map.set(0, 7);
    let other = first.map(HUGE, R, SHARED).unwrap();
    assert_eq!(other.get(0), 1);
    // Without replacing.
    let flags = SHARED | libc::MAP_FIXED_NOREPLACE;
    assert_eq!(mmap(map.address, HUGE, RW, flags, second.raw(), 0), Err(Errno::EEXIST));
    // By base pages.
    mmap(map.address, HUGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    assert_eq!(map.get(0), 0);
    assert_eq!(map.get(HUGE), 2);
}

fn length_is_rounded() {
    huge::pool(4);
    let file = sized(2);
    // An anonymous mapping's length is rounded up; a file's mapping too.
    let map = mmap(0, HUGE + 4096, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    expect_pool(4, 2);
    fault::write(map + 2 * HUGE - 1, 1).unwrap();
    munmap(map, 2 * HUGE).unwrap();
    let map = file.map(4096, RW, SHARED).unwrap();
    assert_eq!(fault::read(map.address + HUGE - 1), Ok(0));
    munmap(map.address, HUGE).unwrap();
}

fn offset_must_be_aligned() {
    huge::pool(2);
    let file = sized(2);
    assert_eq!(file.map_at(4096, HUGE, RW, SHARED).err(), Some(Errno::EINVAL));
    expect_pool(2, 0);
}

fn offsets_beyond_four_gib() {
    huge::pool(4);
    let file = file();
    let far = 5 * GIB as u64 + 3 * HUGE as u64;
    file.truncate(6 * GIB as u64).unwrap();
    let map = file.map_at(far, 2 * HUGE, RW, SHARED).unwrap();
    map.set_u64(0, 11);
    map.set_u64(HUGE, 12);
    let near = file.map_at(far & 0xffff_ffff, 2 * HUGE, R, SHARED).unwrap();
    assert_eq!((near.get_u64(0), near.get_u64(HUGE)), (0, 0), "the offset was cut to 32 bits");
    let again = file.map_at(far + HUGE as u64, HUGE, R, SHARED).unwrap();
    assert_eq!(again.get_u64(0), 12);
}

fn data_stays_with_its_page() {
    huge::pool(32);
    let file = sized(32);
    let map = file.map(32 * HUGE, RW, SHARED).unwrap();
    (0..32).for_each(|page| map.set_u64(page * HUGE + 8 * page, stamp(1, page)));
    for first in [0, 1, 7, 31] {
        let part = file.map_at((first * HUGE) as u64, (32 - first) * HUGE, R, SHARED).unwrap();
        for page in first..32 {
            assert_eq!(part.get_u64((page - first) * HUGE + 8 * page), stamp(1, page));
        }
    }
}

fn partial_munmap() {
    huge::pool(8);
    let file = sized(8);
    let map = file.map(8 * HUGE, RW, SHARED).unwrap();
    (0..8).for_each(|page| map.set_u64(page * HUGE, stamp(1, page)));
    munmap(map.address + 3 * HUGE, 2 * HUGE).unwrap();
    for page in 0..8 {
        let at = map.address + page * HUGE;
        if page == 3 || page == 4 {
            assert_eq!(fault::read(at), Err(Fault::unmapped(at)));
        } else {
            assert_eq!(map.get_u64(page * HUGE), stamp(1, page));
        }
    }
    let whole = file.map(8 * HUGE, R, SHARED).unwrap();
    (0..8).for_each(|page| assert_eq!(whole.get_u64(page * HUGE), stamp(1, page)));
}

fn unaligned_munmap() {
    huge::pool(2);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    assert_eq!(munmap(map.address + 4096, HUGE), Err(Errno::EINVAL));
    assert_eq!(munmap(map.address, 4096), Err(Errno::EINVAL));
    assert_eq!(munmap(map.address, HUGE + 4096), Err(Errno::EINVAL));
    assert_eq!(map.get(0), 1);
    assert_eq!(munmap(map.address, HUGE), Ok(()));
}

fn munmap_rounds_length() {
    huge::pool(2);
    let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    // The length is rounded to base pages only.
    assert_eq!(munmap(map.address, HUGE - 100), Ok(()));
    expect_pool(2, 0);
}

fn mprotect_whole() {
    huge::pool(2);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    mprotect(map.address, 2 * HUGE, R).unwrap();
    assert_eq!(fault::write(map.address, 2), Err(Fault::forbidden(map.address)));
    // A page that is not there yet: still protection, not a page.
    assert_eq!(fault::write(map.address + HUGE, 2), Err(Fault::forbidden(map.address + HUGE)));
    assert_eq!(fault::read(map.address), Ok(1));
    mprotect(map.address, 2 * HUGE, RW).unwrap();
    assert_eq!(fault::write(map.address, 2), Ok(()));
}

fn mprotect_part() {
    huge::pool(4);
    let file = sized(4);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    (0..4).for_each(|page| map.set(page * HUGE, page as u8));
    mprotect(map.address + HUGE, 2 * HUGE, R).unwrap();
    for page in 0..4 {
        let at = map.address + page * HUGE;
        let expected = if page == 1 || page == 2 { Err(Fault::forbidden(at)) } else { Ok(()) };
        assert_eq!(fault::write(at, page as u8 + 10), expected, "page {page}");
    }
    let other = file.map(4 * HUGE, R, SHARED).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| other.get(page * HUGE)), [10, 1, 2, 13]);
}

fn unaligned_mprotect() {
    huge::pool(2);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    assert_eq!(mprotect(map.address + 4096, HUGE, R), Err(Errno::EINVAL));
    assert_eq!(mprotect(map.address, 4096, R), Err(Errno::EINVAL));
    assert_eq!(fault::write(map.address, 2), Ok(()));
}

fn prot_none() {
    huge::pool(2);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    map.set(0, 5);
    mprotect(map.address, HUGE, NONE).unwrap();
    assert_eq!(fault::read(map.address), Err(Fault::forbidden(map.address)));
    mprotect(map.address, HUGE, R).unwrap();
    assert_eq!(fault::read(map.address), Ok(5));
    let closed = file.map(HUGE, NONE, SHARED).unwrap();
    assert_eq!(fault::read(closed.address), Err(Fault::forbidden(closed.address)));
}

fn write_to_read_only() {
    huge::pool(2);
    let file = sized(1);
    let map = file.map(HUGE, R, PRIVATE).unwrap();
    assert_eq!(fault::write(map.address + 99, 1), Err(Fault::forbidden(map.address + 99)));
    // The kernel's own access fails alike, with EFAULT.
    let (read, write) = roundtable_programs::file::pipe(0);
    write.write(b"x").unwrap();
    // SAFETY: the kernel checks the address.
    let result = sys::check(unsafe { libc::read(read.raw(), map.address as *mut _, 1) as i64 });
    assert_eq!(result, Err(Errno::EFAULT));
}

fn mremap_moves() {
    huge::pool(4);
    let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    map.set(HUGE, 2);
    let target = Map::reserve(4 * HUGE, HUGE);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    assert_eq!(mremap(map.address, 2 * HUGE, 2 * HUGE, flags, target.address + 4096), Err(Errno::EINVAL));
    let to = target.address + HUGE;
    assert_eq!(mremap(map.address, 2 * HUGE, 2 * HUGE, flags, to), Ok(to));
    assert_eq!((target.get(HUGE), target.get(2 * HUGE)), (1, 2));
    assert_eq!(fault::read(map.address), Err(Fault::unmapped(map.address)));
    expect_pool(2, 0);
    std::mem::forget(map);
}

fn mremap_shrinks() {
    huge::pool(4);
    let map = Map::new(3 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    (0..3).for_each(|page| map.set(page * HUGE, 1));
    assert_eq!(mremap(map.address, 3 * HUGE, HUGE, 0, 0), Ok(map.address));
    expect_pool(3, 0);
    assert_eq!(fault::read(map.address + HUGE), Err(Fault::unmapped(map.address + HUGE)));
    assert_eq!(map.get(0), 1);
}

fn mremap_cannot_grow() {
    huge::pool(4);
    let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    assert_eq!(mremap(map.address, HUGE, 2 * HUGE, libc::MREMAP_MAYMOVE, 0), Err(Errno::EINVAL));
    assert_eq!(mremap(map.address, HUGE, 2 * HUGE, 0, 0), Err(Errno::EINVAL));
    assert_eq!(map.get(0), 1);
    expect_pool(3, 0);
}

fn mremap_moves_shared() {
    huge::pool(4);
    let file = sized(4);
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    (0..4).for_each(|page| map.set_u64(page * HUGE, stamp(2, page)));
    let target = Map::reserve(2 * HUGE, HUGE);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    mremap(map.address + HUGE, 2 * HUGE, 2 * HUGE, flags, target.address).unwrap();
    assert_eq!((target.get_u64(0), target.get_u64(HUGE)), (stamp(2, 1), stamp(2, 2)));
    assert_eq!((map.get_u64(0), map.get_u64(3 * HUGE)), (stamp(2, 0), stamp(2, 3)));
    let gone = map.address + HUGE;
    assert_eq!(fault::read(gone), Err(Fault::unmapped(gone)));
    target.set_u64(HUGE, 77);
    assert_eq!(file.map(4 * HUGE, R, SHARED).unwrap().get_u64(2 * HUGE), 77);
}

fn madvise_set() {
    huge::pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    for advice in [libc::MADV_NORMAL, libc::MADV_RANDOM, libc::MADV_SEQUENTIAL, libc::MADV_WILLNEED] {
        assert_eq!(madvise(map.address, 2 * HUGE, advice), Ok(()), "advice {advice}");
    }
    for advice in [libc::MADV_FREE, libc::MADV_COLD, libc::MADV_PAGEOUT] {
        assert_eq!(madvise(map.address, 2 * HUGE, advice), Err(Errno::EINVAL), "advice {advice}");
    }
    assert_eq!(madvise(map.address, 2 * HUGE, 12345), Err(Errno::EINVAL));
    assert_eq!(map.get(0), 1);
}

fn dontneed_private() {
    huge::pool(4);
    let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    map.set(HUGE, 2);
    expect_pool(2, 0);
    assert_eq!(madvise(map.address, HUGE, libc::MADV_DONTNEED), Ok(()));
    assert_eq!(huge::counters().free, 3);
    assert_eq!((map.get(0), map.get(HUGE)), (0, 2));
    // The end is rounded down, the start has to be right.
    assert_eq!(madvise(map.address, HUGE + 4096, libc::MADV_DONTNEED), Ok(()));
    assert_eq!(map.get(HUGE), 2);
    assert_eq!(madvise(map.address + 4096, HUGE, libc::MADV_DONTNEED), Err(Errno::EINVAL));
}

fn dontneed_shared() {
    huge::pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    assert_eq!(madvise(map.address, 2 * HUGE, libc::MADV_DONTNEED), Ok(()));
    // The data is the file's.
    assert_eq!(map.get(0), 1);
    expect_pool(3, 1);
}

fn madvise_remove() {
    huge::pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    map.set(HUGE, 2);
    assert_eq!(madvise(map.address, HUGE, libc::MADV_REMOVE), Ok(()));
    expect_pool(3, 0);
    assert_eq!((map.get(0), map.get(HUGE)), (0, 2));
}

fn mincore_tells() {
    huge::pool(4);
    let file = sized(3);
    let map = file.map(3 * HUGE, RW, SHARED).unwrap();
    map.set(HUGE, 1);
    let pages = mincore(map.address, 3 * HUGE).unwrap();
    assert_eq!(pages.len(), 3 * 512);
    assert!(pages[512..1024].iter().all(|&resident| resident));
    assert!(pages[..512].iter().chain(&pages[1024..]).all(|&resident| !resident));
}

fn mlock_works() {
    huge::pool(4);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    // SAFETY: the range is the mapping's.
    unsafe {
        assert_eq!(sys::check(libc::mlock(map.address as *const _, HUGE)), Ok(0));
        assert_eq!(huge::counters().free, 3, "mlock brings the pages");
        assert_eq!(sys::check(libc::munlock(map.address as *const _, HUGE)), Ok(0));
    }
}

fn msync_works() {
    huge::pool(2);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    // SAFETY: the range is the mapping's.
    let msync =
        |offset, flags| sys::check(unsafe { libc::msync((map.address + offset) as *mut _, HUGE, flags) });
    assert_eq!(msync(0, libc::MS_SYNC), Ok(0));
    assert_eq!(msync(0, libc::MS_ASYNC), Ok(0));
    assert_eq!(msync(1, libc::MS_SYNC), Err(Errno::EINVAL));
    // SAFETY: takes an integer.
    assert_eq!(sys::check(unsafe { libc::fsync(file.raw()) }), Ok(0));
}

fn populate() {
    huge::pool(4);
    let file = sized(3);
    let map = file.map(3 * HUGE, RW, SHARED | libc::MAP_POPULATE).unwrap();
    expect_pool(1, 0);
    let (before, _) = sys::faults();
    (0..3).for_each(|page| map.set(page * HUGE, 1));
    assert_eq!(sys::faults().0, before);
}

fn two_mappings_one_page() {
    huge::pool(2);
    let file = sized(1);
    let (a, b) = (file.map(HUGE, RW, SHARED).unwrap(), file.map(HUGE, RW, SHARED).unwrap());
    a.set(5, 1);
    assert_eq!(b.get(5), 1);
    b.set(5, 2);
    assert_eq!(a.get(5), 2);
    expect_pool(1, 0);
}

fn adjacent_mappings() {
    huge::pool(4);
    let place = Map::reserve(4 * HUGE, HUGE);
    let (one, two) = (sized(2), sized(2));
    mmap(place.address, 2 * HUGE, RW, SHARED | FIXED, one.raw(), 0).unwrap();
    mmap(place.address + 2 * HUGE, 2 * HUGE, RW, SHARED | FIXED, two.raw(), 0).unwrap();
    (0..4).for_each(|page| place.set(page * HUGE, page as u8 + 1));
    let (a, b) = (one.map(2 * HUGE, R, SHARED).unwrap(), two.map(2 * HUGE, R, SHARED).unwrap());
    assert_eq!([a.get(0), a.get(HUGE), b.get(0), b.get(HUGE)], [1, 2, 3, 4]);
    munmap(place.address + HUGE, 2 * HUGE).unwrap();
    assert_eq!((place.get(0), place.get(3 * HUGE)), (1, 4));
}

fn map_read_only_file() {
    huge::pool(2);
    let mount = huge::HugeFs::mount("");
    let path = format!("{}/f", mount.path);
    drop(roundtable_programs::file::Fd::open(&path, libc::O_RDWR | libc::O_CREAT).unwrap());
    let read_only = roundtable_programs::file::Fd::open(&path, libc::O_RDONLY).unwrap();
    assert_eq!(read_only.map(HUGE, RW, SHARED).err(), Some(Errno::EACCES));
    let map = read_only.map(HUGE, R, SHARED | NORESERVE).unwrap();
    assert_eq!(mprotect(map.address, HUGE, RW), Err(Errno::EACCES));
    assert_eq!(read_only.truncate(HUGE as u64), Err(Errno::EINVAL));
}

fn smaps_shows_it() {
    huge::pool(2);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-{:x} ", map.address, map.address + 2 * HUGE);
    let entry: Vec<&str> = smaps.lines().skip_while(|line| !line.starts_with(&start)).take(30).collect();
    assert!(!entry.is_empty(), "{start} is not in smaps");
    assert!(entry[0].contains("rw-s 00000000 ") && entry[0].contains("memfd:huge"), "{}", entry[0]);
    let value = |name: &str| {
        let line = entry.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(value("KernelPageSize:"), 2048);
    assert_eq!(value("MMUPageSize:"), 2048);
    assert_eq!(value("Size:"), 4096);
    assert_eq!(value("Shared_Hugetlb:") + value("Private_Hugetlb:"), 2048);
    assert_eq!(value("Rss:"), 0);
    let flags = entry.iter().find(|line| line.starts_with("VmFlags:")).unwrap();
    assert!(flags.split_whitespace().any(|flag| flag == "ht"), "{flags}");
}

fn hint_is_taken() {
    huge::pool(2);
    let place = Map::reserve(4 * HUGE, HUGE);
    let (address, file) = (place.address + HUGE, sized(1));
    drop(place);
    let map = Map::at(address, HUGE, RW, SHARED, file.raw(), 0).unwrap();
    assert_eq!(map.address, address);
}

fn holes_between() {
    huge::pool(6);
    let file = sized(600);
    let map = file.map(600 * HUGE, RW, SHARED | NORESERVE).unwrap();
    // Over the border of a page table.
    for page in [0, 1, 510, 511, 512, 599] {
        map.set_u64(page * HUGE, stamp(3, page));
    }
    expect_pool(0, 0);
    child::in_child(|| {
        for page in [0, 1, 510, 511, 512, 599] {
            assert_eq!(map.get_u64(page * HUGE), stamp(3, page));
        }
        assert_eq!(fault::read(map.address + 300 * HUGE), Err(Fault::bus(map.address + 300 * HUGE)));
    });
}

fn sparse_terabyte() {
    huge::pool(8);
    let file = file();
    file.truncate(1 << 40).unwrap();
    let map = file.map(1 << 40, RW, SHARED | NORESERVE).unwrap();
    for index in 0..8 {
        let at = index * (127 * GIB + 511 * HUGE);
        map.set_u64(at, stamp(4, index));
    }
    child::in_child(|| {
        for index in 0..8 {
            assert_eq!(map.get_u64(index * (127 * GIB + 511 * HUGE)), stamp(4, index));
        }
    });
    expect_pool(0, 0);
    file.truncate(0).unwrap();
    expect_pool(8, 0);
}
