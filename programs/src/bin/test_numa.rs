//! Memory nodes as programs see them: policies that are remembered, numa_maps.

use libc::{SYS_get_mempolicy, SYS_mbind, SYS_set_mempolicy, SYS_set_mempolicy_home_node};
use roundtable_programs::child::in_child;
use roundtable_programs::huge::{self, HUGE, pool};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::PAGE;
use roundtable_programs::{Errno, row, tests};

tests! { policies_are_remembered, policies_that_are_refused, children_inherit_the_policy, lines_of_areas, lines_of_huge_pages,
lines_show_the_policy, policies_of_areas, policies_cut_and_join, policies_of_huge_areas, home_nodes }

const DEFAULT: usize = 0;
const PREFERRED: usize = 1;
const BIND: usize = 2;
const INTERLEAVE: usize = 3;
const LOCAL: usize = 4;
const PREFERRED_MANY: usize = 5;
const STATIC: usize = 1 << 15;
const RELATIVE: usize = 1 << 14;

fn set(mode: usize, nodes: u64) -> Result<usize, Errno> {
    let mask = [nodes];
    call(SYS_set_mempolicy, [mode, mask.as_ptr() as usize, 64, 0, 0, 0])
}

/// Mode and nodes of the calling thread.
fn get() -> (i32, u64) {
    let (mut mode, mut mask) = (-1i32, [u64::MAX; 16]);
    let arguments = [&raw mut mode as usize, mask.as_mut_ptr() as usize, 1024, 0, 0, 0];
    call(SYS_get_mempolicy, arguments).expect("get_mempolicy");
    assert!(mask[1..].iter().all(|word| *word == 0));
    (mode, mask[0])
}

fn policies_are_remembered() {
    assert_eq!(get(), (0, 0));
    for (mode, nodes, told) in [
        (BIND, 1, (BIND, 1)),
        (INTERLEAVE, 1, (INTERLEAVE, 1)),
        (PREFERRED, 1, (PREFERRED, 1)),
        (PREFERRED, 0, (LOCAL, 0)),
        (LOCAL, 0, (LOCAL, 0)),
        (PREFERRED_MANY, 1, (PREFERRED_MANY, 1)),
        (BIND | STATIC, 1, (BIND | STATIC, 1)),
        (INTERLEAVE | RELATIVE, 1, (INTERLEAVE | RELATIVE, 1)),
        (DEFAULT, 0, (DEFAULT, 0)),
        (DEFAULT | STATIC, 0, (DEFAULT, 0)),
    ] {
        set(mode, nodes).unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert_eq!(get(), (told.0 as i32, told.1), "mode {mode:#x}");
    }
    // Another thread has its own.
    set(BIND, 1).unwrap();
    std::thread::spawn(|| {
        assert_eq!(get(), (BIND as i32, 1));
        set(LOCAL, 0).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(get(), (BIND as i32, 1));
}

fn policies_that_are_refused() {
    let mut rows = Rows::default();
    set(BIND, 1).unwrap();
    row!(rows, EINVAL, set(BIND, 0));
    row!(rows, EINVAL, set(BIND, 2));
    row!(rows, EINVAL, set(DEFAULT, 1));
    row!(rows, EINVAL, set(LOCAL, 1));
    row!(rows, EINVAL, set(BIND | STATIC | RELATIVE, 1));
    row!(rows, EINVAL, set(LOCAL | STATIC, 0));
    row!(rows, EINVAL, set(PREFERRED | STATIC, 0));
    row!(rows, EINVAL, set(99, 1));
    // What was refused changed nothing.
    assert_eq!(get(), (BIND as i32, 1));
    let mut node = -1i32;
    let next = |node: &mut i32| call(SYS_get_mempolicy, [&raw mut *node as usize, 0, 0, 0, 1, 0]);
    row!(rows, EINVAL, next(&mut node));
    set(INTERLEAVE, 1).unwrap();
    row!(rows, OK, next(&mut node));
    assert_eq!(node, 0);
    rows.finish();
}

fn children_inherit_the_policy() {
    set(INTERLEAVE, 1).unwrap();
    in_child(|| assert_eq!(get(), (INTERLEAVE as i32, 1)));
}

/// The words of the line of an address.
#[track_caller]
fn line(address: usize) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/numa_maps").expect("numa_maps");
    let start = format!("{address:08x}");
    let line = text.lines().find(|line| line.split(' ').next() == Some(&start));
    line.unwrap_or_else(|| panic!("no line of {start}: {text}"))
        .split(' ')
        .skip(1)
        .map(str::to_string)
        .collect()
}

/// Whether a line has all these words.
#[track_caller]
fn expect(address: usize, words: &[&str]) {
    let line = line(address);
    for word in words {
        assert!(line.iter().any(|other| other == word), "{word} of {line:?}");
    }
}

fn lines_of_areas() {
    let fence = Map::reserve(16 * PAGE, PAGE);
    let map = Map::at(fence.address + PAGE, 4 * PAGE, RW, PRIVATE | ANON | libc::MAP_FIXED, -1, 0).unwrap();
    assert_eq!(line(map.address), ["default"]);
    map.set(0, 1);
    map.set(PAGE, 1);
    assert_eq!(line(map.address)[..5], ["default", "anon=2", "dirty=2", "N0=2", "kernelpagesize_kB=4"]);
    let text = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    assert!(text.lines().any(|line| line.split(' ').any(|word| word == "stack")), "{text}");
    assert!(text.lines().any(|line| line.contains("/test_numa")), "{text}");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // The vsyscall page is no area.
    let areas = maps.lines().filter(|line| !line.ends_with("[vsyscall]")).count();
    assert!(areas.abs_diff(text.lines().count()) <= 2, "{maps}{text}");
}

fn lines_of_huge_pages() {
    pool(8);
    let anonymous = |flags: i32| Map::new(3 * HUGE, RW, flags | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    let private = anonymous(PRIVATE);
    expect(private.address, &["default", "huge"]);
    assert!(line(private.address).iter().all(|word| !word.starts_with("N0=")));
    private.set(0, 1);
    private.set(HUGE, 1);
    expect(private.address, &["huge", "anon=2", "dirty=2", "N0=2", "kernelpagesize_kB=2048"]);
    let shared = anonymous(SHARED);
    shared.set(0, 1);
    expect(shared.address, &["huge", "dirty=1", "N0=1", "kernelpagesize_kB=2048"]);
    assert!(line(shared.address).iter().all(|word| !word.starts_with("anon=")));
    let file = huge::sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    expect(map.address, &["file=/memfd:huge\\040(deleted)", "huge"]);
}

fn lines_show_the_policy() {
    let map = Map::anonymous(PAGE);
    map.set(0, 1);
    for (mode, nodes, text) in [
        (BIND, 1, "bind:0"),
        (PREFERRED, 1, "prefer:0"),
        (INTERLEAVE | STATIC, 1, "interleave=static:0"),
        (LOCAL, 0, "local"),
        (DEFAULT, 0, "default"),
    ] {
        set(mode, nodes).unwrap();
        let all = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        assert!(all.lines().all(|line| line.split(' ').nth(1) == Some(text)), "{text}: {all}");
    }
}

fn bind(address: usize, len: usize, mode: usize, nodes: u64) -> Result<usize, Errno> {
    let mask = [nodes];
    call(SYS_mbind, [address, len, mode, mask.as_ptr() as usize, 64, 0])
}

/// Mode and nodes of the area at an address.
fn get_at(address: usize) -> (i32, u64) {
    const BY_ADDRESS: usize = 2;
    let (mut mode, mut mask) = (-1i32, [u64::MAX; 16]);
    let arguments = [&raw mut mode as usize, mask.as_mut_ptr() as usize, 1024, address, BY_ADDRESS, 0];
    call(SYS_get_mempolicy, arguments).expect("get_mempolicy");
    (mode, mask[0])
}

/// Pages in a reserve of their own, so that no neighbour joins them.
fn apart(pages: usize) -> (Map, usize) {
    let fence = Map::reserve((pages + 2) * PAGE, PAGE);
    let at = fence.address + PAGE;
    std::mem::forget(Map::at(at, pages * PAGE, RW, PRIVATE | ANON | libc::MAP_FIXED, -1, 0).unwrap());
    (fence, at)
}

fn policies_of_areas() {
    let (_fence, at) = apart(4);
    assert_eq!(get_at(at), (DEFAULT as i32, 0));
    for (mode, nodes, told, text) in [
        (BIND, 1, (BIND, 1), "bind:0"),
        (PREFERRED, 1, (PREFERRED, 1), "prefer:0"),
        (PREFERRED_MANY, 1, (PREFERRED_MANY, 1), "prefer (many):0"),
        (INTERLEAVE | STATIC, 1, (INTERLEAVE | STATIC, 1), "interleave=static:0"),
        (LOCAL, 0, (LOCAL, 0), "local"),
    ] {
        bind(at, 4 * PAGE, mode, nodes).unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert_eq!(get_at(at + 3 * PAGE), (told.0 as i32, told.1), "mode {mode:#x}");
        assert!(line(at).join(" ").starts_with(text), "{:?}", line(at));
        // A child has it, too.
        in_child(|| assert_eq!(get_at(at), (told.0 as i32, told.1)));
    }
    // The area's counts, not the thread's.
    set(INTERLEAVE, 1).unwrap();
    assert_eq!(line(at)[0], "local");
    bind(at, 4 * PAGE, DEFAULT, 0).unwrap();
    assert_eq!((get_at(at), line(at)[0].as_str()), ((DEFAULT as i32, 0), "interleave:0"));
    set(DEFAULT, 0).unwrap();
    let mut rows = Rows::default();
    row!(rows, EINVAL, bind(at + 1, PAGE, BIND, 1));
    row!(rows, EINVAL, bind(at, PAGE, BIND, 0));
    row!(rows, EINVAL, bind(at, PAGE, BIND, 2));
    row!(rows, EINVAL, bind(at, PAGE, DEFAULT, 1));
    row!(rows, OK, bind(at, 0, BIND, 1));
    rows.finish();
}

fn policies_cut_and_join() {
    let (_fence, at) = apart(6);
    let areas = || {
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let starts = text.lines().filter_map(|line| usize::from_str_radix(line.split('-').next()?, 16).ok());
        starts.filter(|start| (at..at + 6 * PAGE).contains(start)).count()
    };
    assert_eq!(areas(), 1);
    bind(at + 2 * PAGE, 2 * PAGE, BIND, 1).unwrap();
    assert_eq!(areas(), 3);
    assert_eq!([at, at + 2 * PAGE, at + 4 * PAGE].map(|at| get_at(at).0), [0, BIND as i32, 0]);
    bind(at, 6 * PAGE, BIND, 1).unwrap();
    assert_eq!(areas(), 1);
    // A move takes it along.
    let fence = Map::reserve(4 * PAGE, PAGE);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    mremap_to(at, 2 * PAGE, flags, fence.address + PAGE);
    assert_eq!(get_at(fence.address + PAGE).0, BIND as i32);
    // There is nothing at its old place now.
    let mut rows = Rows::default();
    row!(rows, EFAULT, bind(at, 6 * PAGE, BIND, 1));
    row!(rows, OK, bind(at, 6 * PAGE, DEFAULT, 0));
    assert_eq!(get_at(at + 5 * PAGE).0, DEFAULT as i32);
    row!(rows, EFAULT, bind(at, 2 * PAGE, DEFAULT, 0));
    row!(rows, EFAULT, call(SYS_get_mempolicy, [0, 0, 0, at, 2, 0]));
    rows.finish();
}

#[track_caller]
fn mremap_to(from: usize, len: usize, flags: i32, to: usize) {
    call(libc::SYS_mremap, [from, len, len, flags as usize, to, 0]).expect("mremap");
}

fn policies_of_huge_areas() {
    pool(4);
    for sharing in [PRIVATE, SHARED] {
        let map = Map::new(3 * HUGE, RW, sharing | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
        map.set(0, 1);
        bind(map.address + HUGE, HUGE, BIND, 1).unwrap();
        let modes = [0, 1, 2].map(|page| get_at(map.address + page * HUGE).0);
        assert_eq!(modes[1], BIND as i32, "{sharing}");
        assert_eq!(modes[0], DEFAULT as i32, "{sharing}");
        map.set(HUGE, 2);
        assert_eq!((map.get(0), map.get(HUGE)), (1, 2));
    }
}

fn home_nodes() {
    let (_fence, at) = apart(4);
    let home = |at: usize, len: usize, node: usize, flags: usize| {
        call(SYS_set_mempolicy_home_node, [at, len, node, flags, 0, 0])
    };
    let mut rows = Rows::default();
    row!(rows, EINVAL, home(at + 1, PAGE, 0, 0));
    row!(rows, EINVAL, home(at, PAGE, 1, 0));
    row!(rows, EINVAL, home(at, PAGE, usize::MAX, 0));
    row!(rows, EINVAL, home(at, PAGE, 0, 1));
    row!(rows, OK, home(at, 0, 0, 0));
    // No area has a policy.
    row!(rows, ENOENT, home(at, 4 * PAGE, 0, 0));
    // Nor has its beginning, or a part amid it.
    row!(rows, ENOENT, home(at, PAGE, 0, 0));
    row!(rows, ENOENT, home(at + PAGE, 2 * PAGE, 0, 0));
    bind(at, PAGE, BIND, 1).unwrap();
    row!(rows, OK, home(at, 4 * PAGE, 0, 0));
    bind(at + PAGE, PAGE, PREFERRED_MANY, 1).unwrap();
    row!(rows, OK, home(at, 4 * PAGE, 0, 0));
    bind(at + 2 * PAGE, PAGE, INTERLEAVE, 1).unwrap();
    row!(rows, EOPNOTSUPP, home(at, 4 * PAGE, 0, 0));
    rows.finish();
}
