//! Memory nodes as programs see them: policies that are remembered, numa_maps.

use libc::{SYS_get_mempolicy, SYS_set_mempolicy};
use roundtable_programs::child::in_child;
use roundtable_programs::huge::{self, HUGE, pool};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::PAGE;
use roundtable_programs::{Errno, row, tests};

tests! { policies_are_remembered, policies_that_are_refused, children_inherit_the_policy, lines_of_areas, lines_of_huge_pages,
lines_show_the_policy }

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
