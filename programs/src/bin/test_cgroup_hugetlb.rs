//! The controller of huge pages: who is charged for pages and promises, when that ends, what happens beyond a limit.

use std::fs;
use std::time::Duration;

use roundtable_programs::cgroup::Group;
use roundtable_programs::child::{Child, fork, in_child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, GIB, HUGE, HugeFs, expect_pool, pool};
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, RW, SHARED};
use roundtable_programs::rng::Rng;
use roundtable_programs::sys::{is_linux, settles};
use roundtable_programs::{Errno, procfs, tests};

tests! { limits_as_text, pages_beyond_a_limit, promises_beyond_a_limit, groups_above_count_too, who_is_charged,
promises_of_files, promises_of_private_mappings, pages_without_promises, copies_after_a_fork, files_outlive_groups,
promises_outlive_groups, controllers_begin_anew, fallocate_and_shm, each_size_has_its_own: 60, events_are_told,
random_sequences_are_counted: 120, limits_hold_under_load: 90, removal_under_load: 90 }

const MAX: &str = "hugetlb.2MB.max";
const CURRENT: &str = "hugetlb.2MB.current";
const RSVD_MAX: &str = "hugetlb.2MB.rsvd.max";
const RSVD: &str = "hugetlb.2MB.rsvd.current";
const EVENTS: &str = "hugetlb.2MB.events";
const LOCAL: &str = "hugetlb.2MB.events.local";

const PAGE: u64 = HUGE as u64;

fn group() -> Group {
    Group::new("+hugetlb")
}

/// Pages in use and promised, in huge pages.
#[track_caller]
fn usage(group: &Group) -> (u64, u64) {
    (group.number(CURRENT) / PAGE, group.number(RSVD) / PAGE)
}

/// Expects so many pages in use and promised; who ended just now may still be giving some back.
#[track_caller]
fn expect(group: &Group, pages: u64, promised: u64) {
    settles(Duration::from_secs(5), || usage(group) == (pages, promised));
    assert_eq!(usage(group), (pages, promised), "(pages, promises) of {}", group.path);
}

fn refusals(group: &Group) -> (u64, u64) {
    (group.value(EVENTS, "max"), group.value(LOCAL, "max"))
}

fn anonymous(pages: usize, flags: i32) -> Result<Map, Errno> {
    Map::new(pages * HUGE, RW, flags | ANON | libc::MAP_HUGETLB, -1, 0)
}

fn touch(map: &Map, pages: std::ops::Range<usize>) {
    pages.for_each(|page| map.set(page * HUGE, 1));
}

/// Runs in a child that is in the group.
fn inside(group: &Group, run: impl FnOnce()) {
    in_child(|| {
        group.attach(0).expect("attach");
        run();
    });
}

fn limits_as_text() {
    let group = group();
    for name in [MAX, RSVD_MAX] {
        assert_eq!(group.read(name), "max\n");
        for (text, read) in [
            ("4M", "4194304\n"),
            ("5000000", "4194304\n"),
            ("0", "0\n"),
            ("1g", "1073741824\n"),
            ("max", "max\n"),
            ("100T", "109951162777600\n"),
            ("0x200000", "2097152\n"),
            ("1", "0\n"),
        ] {
            group.write(name, text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(group.read(name), read, "{text}");
        }
        for text in ["x", "4M4", "50%"] {
            assert_eq!(group.write(name, text), Err(Errno::EINVAL), "{text}");
        }
        group.write(name, "9223372036854775807").unwrap();
        assert_eq!(group.read(name), "max\n");
    }
    assert_eq!((group.read(CURRENT), group.read(RSVD)), ("0\n".into(), "0\n".into()));
    assert_eq!((group.read(EVENTS), group.read(LOCAL)), ("max 0\n".into(), "max 0\n".into()));
    assert!(group.read("hugetlb.2MB.numa_stat").starts_with("total=0 N0=0"));
}

fn pages_beyond_a_limit() {
    pool(8);
    let group = group();
    group.write(MAX, 3 * PAGE).unwrap();
    inside(&group, || {
        let map = anonymous(5, PRIVATE).unwrap();
        touch(&map, 0..3);
        assert_eq!(usage(&group), (3, 5));
        assert!(group.read("hugetlb.2MB.numa_stat").starts_with("total=6291456 N0=6291456"));
        let at = map.address + 3 * HUGE;
        assert_eq!(fault::write(at, 1), Err(Fault::bus(at)));
        assert_eq!(refusals(&group), (1, 1));
        assert_eq!(group.write(MAX, 2 * PAGE), Err(Errno::EBUSY));
        assert_eq!(group.read(MAX), "6291456\n");
        group.write(MAX, 4 * PAGE).unwrap();
        assert_eq!(fault::write(at, 1), Ok(()));
        map.unmap().unwrap();
        assert_eq!(usage(&group), (0, 0));
    });
    // Of a file, too; a system call that writes there fails.
    inside(&group, || {
        group.write(MAX, PAGE).unwrap();
        let file = huge::sized(2);
        let map = file.map(2 * HUGE, RW, SHARED).unwrap();
        map.set(0, 1);
        let at = map.address + HUGE;
        assert_eq!(fault::read(at), Err(Fault::bus(at)));
        let zero = Fd::open("/dev/zero", libc::O_RDWR).unwrap();
        // SAFETY: the kernel writes there, or does not.
        let read = unsafe { libc::read(zero.raw(), at as *mut _, 8) };
        assert_eq!((read, Errno::last()), (-1, Errno::EFAULT));
        assert_eq!(usage(&group), (1, 2));
    });
    expect(&group, 0, 0);
    expect_pool(8, 0);
}

fn promises_beyond_a_limit() {
    pool(8);
    let group = group();
    group.write(RSVD_MAX, 3 * PAGE).unwrap();
    inside(&group, || {
        for flags in [PRIVATE, SHARED] {
            let map = anonymous(2, flags).unwrap();
            assert_eq!(anonymous(2, flags).err(), Some(Errno::ENOMEM));
            assert_eq!(usage(&group), (0, 2));
            let third = anonymous(1, flags).unwrap();
            assert_eq!(usage(&group), (0, 3));
            assert_eq!(group.write(RSVD_MAX, 2 * PAGE), Err(Errno::EBUSY));
            drop(third);
            drop(map);
            assert_eq!(usage(&group), (0, 0));
        }
    });
    assert_eq!(refusals(&group), (2, 2));
    // What the pool refuses is charged to nobody.
    group.write(RSVD_MAX, "max").unwrap();
    inside(&group, || {
        assert_eq!(anonymous(9, PRIVATE).err(), Some(Errno::ENOMEM));
        assert_eq!(anonymous(9, SHARED).err(), Some(Errno::ENOMEM));
        assert_eq!(usage(&group), (0, 0));
    });
    assert_eq!(refusals(&group), (2, 2));
    expect_pool(8, 0);
}

fn groups_above_count_too() {
    pool(8);
    let group = group();
    group.write("cgroup.subtree_control", "+hugetlb").unwrap();
    let (a, b) = (group.child("a"), group.child("b"));
    group.write(MAX, 3 * PAGE).unwrap();
    b.write(MAX, PAGE).unwrap();
    let hold = |group: &Group, pages: usize| {
        let (read, write) = roundtable_programs::file::pipe(0);
        let child = fork(|| {
            group.attach(0).unwrap();
            let map = anonymous(4, PRIVATE).unwrap();
            touch(&map, 0..pages);
            let at = map.address + pages * HUGE;
            assert_eq!(fault::write(at, 1), Err(Fault::bus(at)));
            write.write(b"x").unwrap();
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        });
        assert_eq!(read.read(&mut [0]), Ok(1));
        child
    };
    let first = hold(&b, 1);
    assert_eq!((usage(&group), usage(&a), usage(&b)), ((1, 4), (0, 0), (1, 4)));
    assert_eq!((refusals(&group), refusals(&b)), ((1, 0), (1, 1)));
    // The limit above is reached by what is in both.
    let second = hold(&a, 2);
    assert_eq!((usage(&group), usage(&a)), ((3, 8), (2, 4)));
    assert_eq!((refusals(&group), refusals(&a), refusals(&b)), ((2, 0), (1, 1), (1, 1)));
    first.end();
    second.end();
    expect(&group, 0, 0);
    a.remove().unwrap();
    b.remove().unwrap();
}

fn who_is_charged() {
    pool(8);
    let (group, other) = (group(), group());
    let file = huge::sized(4);
    // The mapping promises, the first toucher pays for the page; who comes later pays nothing.
    inside(&group, || touch(&file.map(4 * HUGE, RW, SHARED).unwrap(), 0..2));
    assert_eq!(usage(&group), (2, 4));
    inside(&other, || touch(&file.map(4 * HUGE, RW, SHARED).unwrap(), 0..3));
    assert_eq!((usage(&group), usage(&other)), ((2, 4), (1, 0)));
    touch(&file.map(4 * HUGE, RW, SHARED).unwrap(), 0..4);
    assert_eq!((usage(&group), usage(&other)), ((2, 4), (1, 0)));
    // Whoever frees it.
    file.punch(0, PAGE).unwrap();
    assert_eq!((usage(&group), usage(&other)), ((1, 3), (1, 0)));
    drop(file);
    expect(&group, 0, 0);
    expect(&other, 0, 0);
    // A process that moves leaves its charges where they are.
    in_child(|| {
        group.attach(0).unwrap();
        let map = anonymous(3, PRIVATE).unwrap();
        touch(&map, 0..1);
        other.attach(0).unwrap();
        touch(&map, 1..2);
        assert_eq!((usage(&group), usage(&other)), ((1, 3), (1, 0)));
        drop(map);
        assert_eq!((usage(&group), usage(&other)), ((0, 0), (0, 0)));
    });
}

fn promises_of_files() {
    pool(10);
    let (group, other) = (group(), group());
    let file = huge::sized(10);
    let map = |group: &Group, first: usize, pages: usize| {
        inside(group, || drop(file.map_at((first * HUGE) as u64, pages * HUGE, RW, SHARED).unwrap()));
    };
    map(&group, 2, 2);
    map(&group, 6, 2);
    assert_eq!(usage(&group), (0, 4));
    // Only what was not promised is paid for, by who asked.
    map(&other, 1, 8);
    assert_eq!((usage(&group), usage(&other)), ((0, 4), (0, 4)));
    expect_pool(10, 8);
    // Pages that were never there are punched in vain, as Linux does: a promise ends with its page, or with the file's end.
    file.punch(3 * PAGE, PAGE).unwrap();
    assert_eq!((usage(&group), usage(&other)), ((0, 4), (0, 4)));
    file.truncate(7 * PAGE).unwrap();
    assert_eq!((usage(&group), usage(&other)), ((0, 3), (0, 3)));
    file.truncate(0).unwrap();
    assert_eq!((usage(&group), usage(&other)), ((0, 0), (0, 0)));
    drop(file);
    expect_pool(10, 0);
}

fn promises_of_private_mappings() {
    pool(8);
    let group = group();
    inside(&group, || {
        let map = anonymous(6, PRIVATE).unwrap();
        assert_eq!(usage(&group), (0, 6));
        touch(&map, 0..2);
        assert_eq!(usage(&group), (2, 6));
        // Pages go by MADV_DONTNEED, the promise stays the mapping's.
        roundtable_programs::mem::madvise(map.address, HUGE, libc::MADV_DONTNEED).unwrap();
        assert_eq!(usage(&group), (1, 6));
        // A hole makes two mappings of it, each with its part of the promise.
        roundtable_programs::mem::munmap(map.address + 2 * HUGE, 2 * HUGE).unwrap();
        assert_eq!(usage(&group), (1, 4));
        roundtable_programs::mem::munmap(map.address, 2 * HUGE).unwrap();
        assert_eq!(usage(&group), (0, 2));
    });
    expect(&group, 0, 0);
    expect_pool(8, 0);
}

fn pages_without_promises() {
    pool(8);
    let group = group();
    inside(&group, || {
        let file = huge::sized(4);
        let shared = file.map(4 * HUGE, RW, SHARED | NORESERVE).unwrap();
        let private = anonymous(4, PRIVATE | NORESERVE).unwrap();
        assert_eq!(usage(&group), (0, 0));
        // A page that nobody promised counts as a promise too, as long as it is there.
        touch(&shared, 0..1);
        touch(&private, 0..2);
        assert_eq!(usage(&group), (3, 3));
        group.write(RSVD_MAX, 3 * PAGE).unwrap();
        let at = private.address + 2 * HUGE;
        assert_eq!(fault::write(at, 1), Err(Fault::bus(at)));
        drop(private);
        assert_eq!(usage(&group), (1, 1));
        file.truncate(0).unwrap();
        assert_eq!(usage(&group), (0, 0));
    });
    expect(&group, 0, 0);
}

fn copies_after_a_fork() {
    pool(8);
    let (group, other) = (group(), group());
    inside(&group, || {
        let map = anonymous(2, PRIVATE).unwrap();
        touch(&map, 0..1);
        assert_eq!(usage(&group), (1, 2));
        in_child(|| {
            assert_eq!(usage(&group), (1, 2));
            other.attach(0).unwrap();
            // The child promised nothing: its copy is a page and a promise of its own group.
            touch(&map, 0..1);
            assert_eq!((usage(&group), usage(&other)), ((1, 2), (1, 1)));
        });
        expect(&other, 0, 0);
        assert_eq!(usage(&group), (1, 2));
    });
    expect(&group, 0, 0);
    expect_pool(8, 0);
}

fn files_outlive_groups() {
    pool(8);
    let above = group();
    above.write("cgroup.subtree_control", "+hugetlb").unwrap();
    let file = huge::sized(3);
    let below = above.child("a");
    inside(&below, || touch(&file.map(3 * HUGE, RW, SHARED | NORESERVE).unwrap(), 0..2));
    assert_eq!((usage(&above).0, usage(&below).0), (2, 2));
    below.remove().unwrap();
    // The groups above count them still.
    assert_eq!(usage(&above).0, 2);
    above.write(MAX, 3 * PAGE).unwrap();
    inside_new(&above, |group| {
        let map = file.map(3 * HUGE, RW, SHARED | NORESERVE).unwrap();
        touch(&map, 0..3);
        assert_eq!(usage(group).0, 1);
        let more = anonymous(1, PRIVATE).unwrap();
        assert_eq!(fault::write(more.address, 1), Err(Fault::bus(more.address)));
    });
    file.punch(0, PAGE).unwrap();
    assert_eq!(usage(&above).0, 2);
    drop(file);
    settles(Duration::from_secs(5), || usage(&above).0 == 0);
    assert_eq!(usage(&above).0, 0);
    expect_pool(8, 0);
}

/// Runs in a child that is in a new group below; the group is gone afterwards.
fn inside_new(above: &Group, run: impl FnOnce(&Group)) {
    let group = above.child("new");
    inside(&group, || run(&group));
    group.remove().unwrap();
}

fn promises_outlive_groups() {
    pool(8);
    let above = group();
    above.write("cgroup.subtree_control", "+hugetlb").unwrap();
    let file = huge::sized(3);
    let below = above.child("a");
    inside(&below, || drop(file.map(3 * HUGE, RW, SHARED).unwrap()));
    below.remove().unwrap();
    assert_eq!(usage(&above), (0, 3));
    // A group of the same name is another one.
    let again = above.child("a");
    assert_eq!(usage(&again), (0, 0));
    drop(file);
    expect(&above, 0, 0);
    expect(&again, 0, 0);
    again.remove().unwrap();
    expect_pool(8, 0);
}

fn controllers_begin_anew() {
    pool(8);
    let above = group();
    let below = above.child("a");
    let file = huge::sized(4);
    let map = || file.map(4 * HUGE, RW, SHARED | NORESERVE).unwrap();
    // Without the controller the group above is charged.
    inside(&below, || touch(&map(), 0..1));
    assert_eq!(usage(&above).0, 1);
    above.write("cgroup.subtree_control", "+hugetlb").unwrap();
    assert_eq!(usage(&below).0, 0);
    below.write(MAX, PAGE).unwrap();
    inside(&below, || {
        let map = map();
        touch(&map, 0..2);
        let at = map.address + 2 * HUGE;
        assert_eq!(fault::write(at, 1), Err(Fault::bus(at)));
    });
    assert_eq!((usage(&above).0, usage(&below).0), (2, 1));
    above.write("cgroup.subtree_control", "-hugetlb").unwrap();
    assert_eq!(usage(&above).0, 2);
    above.write("cgroup.subtree_control", "+hugetlb").unwrap();
    assert_eq!((usage(&below).0, below.read(MAX), refusals(&below)), (0, "max\n".into(), (0, 0)));
    drop(file);
    settles(Duration::from_secs(5), || usage(&above).0 == 0);
    assert_eq!((usage(&above).0, usage(&below).0), (0, 0));
    below.remove().unwrap();
}

fn fallocate_and_shm() {
    pool(8);
    let group = group();
    inside(&group, || {
        group.write(MAX, 2 * PAGE).unwrap();
        let file = HugeFs::mount("").file();
        file.fallocate(0, 0, 2 * PAGE).unwrap();
        assert_eq!(usage(&group), (2, 2));
        assert_eq!(file.fallocate(0, 0, 3 * PAGE), Err(Errno::ENOSPC));
        assert_eq!(usage(&group), (2, 2));
        file.truncate(0).unwrap();
        assert_eq!(usage(&group), (0, 0));
        group.write(RSVD_MAX, PAGE).unwrap();
        // SAFETY: takes integers.
        let shm = |pages: usize| unsafe {
            libc::shmget(libc::IPC_PRIVATE, pages * HUGE, libc::SHM_HUGETLB | 0o600)
        };
        assert_eq!((shm(2), Errno::last()), (-1, Errno::ENOMEM));
        let id = shm(1);
        assert!(id >= 0);
        assert_eq!(usage(&group), (0, 1));
        // SAFETY: removes our own segment.
        unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
        assert_eq!(usage(&group), (0, 0));
    });
    expect_pool(8, 0);
}

fn each_size_has_its_own() {
    const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages";
    if !fs::exists(FREE).unwrap() || procfs::number(FREE) == 0 {
        skip("no pages of 1 GiB");
    }
    pool(2);
    let group = group();
    group.write("hugetlb.1GB.max", "0").unwrap();
    inside(&group, || {
        let gigantic = |flags: i32| {
            Map::new(GIB, RW, flags | PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB, -1, 0)
        };
        let map = gigantic(0).unwrap();
        assert_eq!(group.number("hugetlb.1GB.rsvd.current"), GIB as u64);
        assert_eq!(fault::write(map.address, 1), Err(Fault::bus(map.address)));
        assert_eq!((group.value("hugetlb.1GB.events", "max"), refusals(&group)), (1, (0, 0)));
        group.write("hugetlb.1GB.max", 2 * GIB as u64 - 1).unwrap();
        assert_eq!(group.number("hugetlb.1GB.max"), GIB as u64);
        assert_eq!(fault::write(map.address, 1), Ok(()));
        assert_eq!((group.number("hugetlb.1GB.current"), usage(&group)), (GIB as u64, (0, 0)));
    });
    settles(Duration::from_secs(5), || group.number("hugetlb.1GB.current") == 0);
    assert_eq!((group.number("hugetlb.1GB.current"), group.number("hugetlb.1GB.rsvd.current")), (0, 0));
}

fn events_are_told() {
    use std::os::fd::AsRawFd;
    pool(4);
    let group = group();
    let open = [EVENTS, LOCAL].map(|name| fs::File::open(group.file(name)).unwrap());
    let poll = |file: &fs::File| {
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
        // SAFETY: one entry, ours to write.
        unsafe { libc::poll(&mut poll, 1, 0) };
        poll.revents
    };
    for file in &open {
        std::io::read_to_string(file).unwrap();
        assert_eq!(poll(file), 0);
    }
    group.write(RSVD_MAX, 0).unwrap();
    inside(&group, || assert_eq!(anonymous(1, PRIVATE).err(), Some(Errno::ENOMEM)));
    assert!(open.iter().all(|file| poll(file) == libc::POLLPRI | libc::POLLERR));
}

/// Maps, touches, punches, truncates and unmaps at random.
fn work(rng: &mut Rng, files: &[Fd], steps: usize, mut between: impl FnMut()) {
    let mut maps: Vec<Map> = Vec::new();
    for _ in 0..steps {
        let file = &files[rng.below(files.len())];
        let (first, pages) = (rng.below(3), rng.below(3) + 1);
        match rng.below(8) {
            0 | 1 => {
                let flags = if rng.below(3) == 0 { NORESERVE } else { 0 };
                let made = match rng.below(3) {
                    0 => anonymous(pages, PRIVATE | flags),
                    1 => file.map_at((first * HUGE) as u64, pages * HUGE, RW, PRIVATE | flags),
                    _ => file.map_at((first * HUGE) as u64, pages * HUGE, RW, SHARED | flags),
                };
                maps.extend(made.ok());
            }
            2..=4 if !maps.is_empty() => {
                let map = &maps[rng.below(maps.len())];
                let at = map.address + rng.below(map.length / HUGE) * HUGE;
                let _ = if rng.below(2) == 0 { fault::write(at, 1).map(|()| 0) } else { fault::read(at) };
            }
            5 if !maps.is_empty() => drop(maps.swap_remove(rng.below(maps.len()))),
            6 => _ = file.punch((first * HUGE) as u64, (pages * HUGE) as u64),
            7 => {
                let _ = file.truncate(rng.below(5) as u64 * PAGE);
                let _ = file.fallocate(0, (first * HUGE) as u64, PAGE);
            }
            _ => {}
        }
        between();
    }
}

fn random_sequences_are_counted() {
    pool(12);
    let above = group();
    above.write("cgroup.subtree_control", "+hugetlb").unwrap();
    for seed in 0..12 {
        let groups = ["a", "b"].map(|name| above.child(name));
        groups[0].write(MAX, 4 * PAGE).unwrap();
        groups[1].write(RSVD_MAX, 5 * PAGE).unwrap();
        let files = [huge::sized(3), huge::sized(3)];
        in_child(|| {
            let mut rng = Rng::new(seed);
            let mut choice = Rng::new(seed + 1000);
            groups[0].attach(0).unwrap();
            work(&mut rng, &files, 120, || {
                if choice.below(10) == 0 {
                    groups[choice.below(2)].attach(0).unwrap();
                }
                let sums = groups.iter().map(usage).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                assert_eq!(usage(&above), sums);
                let counters = huge::counters();
                assert_eq!(sums.0, counters.total - counters.free);
            });
        });
        drop(files);
        groups.iter().for_each(|group| expect(group, 0, 0));
        expect(&above, 0, 0);
        groups.iter().for_each(|group| group.remove().unwrap());
    }
    expect_pool(12, 0);
}

fn limits_hold_under_load() {
    if is_linux() {
        // As in `removal_under_load`: in one of four runs the machine did not come back.
        skip("Linux 6.12 may hang when processes move between groups that are full");
    }
    pool(16);
    let above = group();
    above.write("cgroup.subtree_control", "+hugetlb").unwrap();
    above.write(MAX, 6 * PAGE).unwrap();
    above.write(RSVD_MAX, 10 * PAGE).unwrap();
    let groups = ["a", "b"].map(|name| above.child(name));
    groups[0].write(MAX, 4 * PAGE).unwrap();
    let files = [huge::sized(3), huge::sized(3)];
    let workers: Vec<Child> = (0..8)
        .map(|number| {
            let (groups, files, above) = (&groups, &files, &above);
            fork(move || {
                let mut rng = Rng::new(number);
                let mut choice = Rng::new(number + 1000);
                groups[number as usize % 2].attach(0).unwrap();
                work(&mut rng, files, 150, || {
                    if choice.below(20) == 0 {
                        groups[choice.below(2)].attach(0).unwrap();
                    }
                    assert!(above.number(CURRENT) <= 6 * PAGE && above.number(RSVD) <= 10 * PAGE);
                    assert!(groups[0].number(CURRENT) <= 4 * PAGE);
                });
            })
        })
        .collect();
    workers.into_iter().for_each(Child::ok);
    drop(files);
    groups.iter().for_each(|group| expect(group, 0, 0));
    expect(&above, 0, 0);
    expect_pool(16, 0);
    groups.iter().for_each(|group| group.remove().unwrap());
}

fn removal_under_load() {
    if is_linux() {
        // Its removal of a group goes round until nothing is charged to the group. In one of two runs the machine did not come back.
        skip("Linux 6.12 may hang in the removal of a group");
    }
    pool(16);
    let above = group();
    above.write("cgroup.subtree_control", "+hugetlb").unwrap();
    let files = [huge::sized(3), huge::sized(3)];
    let workers: Vec<Child> = (0..6)
        .map(|number| {
            let (files, above) = (&files, &above);
            fork(move || {
                for round in 0..12 {
                    let group = above.child(&format!("{number}-{round}"));
                    inside(&group, || work(&mut Rng::new(number * 100 + round), files, 20, || ()));
                    assert!(
                        settles(Duration::from_secs(10), || group.remove().is_ok()),
                        "{}",
                        group.read("cgroup.procs")
                    );
                }
            })
        })
        .collect();
    workers.into_iter().for_each(Child::ok);
    let counters = huge::counters();
    assert_eq!(usage(&above).0, counters.total - counters.free);
    drop(files);
    expect(&above, 0, 0);
    expect_pool(16, 0);
}
