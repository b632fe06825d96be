//! Two memory nodes: what is told of them, and whose memory pages come from.
//!
//! Its machine has two nodes of 512 MiB with a CPU each.

use std::fs::{read_link, read_to_string};
use std::thread::sleep;
use std::time::Duration;

use libc::{SYS_get_mempolicy, SYS_mbind, SYS_migrate_pages, SYS_move_pages, SYS_set_mempolicy};
use roundtable_programs::child::{Child, End, fork, in_child};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, R, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, current_cpu, pin};
use roundtable_programs::{Errno, procfs, row, tests};

tests! { nodes_are_listed, cpus_know_their_node, memory_is_counted_by_node, pages_come_from_near, modes, told_nodes, bound_pages,
preferred_pages, pages_take_turns, turns_by_weight, areas_have_policies, shared_pages, copies_of_pages, strict_areas, areas_move,
single_pages_move, processes_move, lines_tell_nodes, moves_behind_forks, masks_end_where_they_say, who_fills_a_node_spares_others: 60, who_has_a_node_makes_room: 100,
a_full_node_is_passed_by: 100 }

const NODES: &str = "/sys/devices/system/node";

const DEFAULT: usize = 0;
const PREFERRED: usize = 1;
const BIND: usize = 2;
const INTERLEAVE: usize = 3;
const LOCAL: usize = 4;
const PREFERRED_MANY: usize = 5;
const WEIGHTED: usize = 6;
const STATIC: usize = 1 << 15;
const RELATIVE: usize = 1 << 14;
const STRICT: usize = 1;
const MOVE: usize = 2;

/// Leaves the test where there is one node.
fn need_two() {
    if text("online") != "0-1" {
        skip("this machine has not two nodes");
    }
}

fn text(name: &str) -> String {
    let path = format!("{NODES}/{name}");
    read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim_end().to_string()
}

fn set(mode: usize, nodes: u64) -> Result<usize, Errno> {
    call(SYS_set_mempolicy, [mode, (&raw const nodes) as usize, 64, 0, 0, 0])
}

fn bind(at: usize, len: usize, mode: usize, nodes: u64, flags: usize) -> Result<usize, Errno> {
    call(SYS_mbind, [at, len, mode, (&raw const nodes) as usize, 64, flags])
}

/// Mode and nodes of the thread, or of an address.
fn get(address: usize) -> (usize, u64) {
    let (mut mode, mut nodes) = (-1i32, [u64::MAX; 16]);
    let flags = if address == 0 { 0 } else { 2 };
    let at = nodes.as_mut_ptr() as usize;
    call(SYS_get_mempolicy, [&raw mut mode as usize, at, 1024, address, flags, 0]).expect("get_mempolicy");
    (mode as usize, nodes[0])
}

/// The node of the page at an address, brought by a read if need be.
fn node_at(address: usize) -> i32 {
    let mut node = -1i32;
    call(SYS_get_mempolicy, [&raw mut node as usize, 0, 0, address, 3, 0]).expect("get_mempolicy");
    node
}

fn nodes_of(map: &Map, pages: usize) -> Vec<i32> {
    (0..pages).map(|page| node_at(map.address + page * PAGE)).collect()
}

fn touch(map: &Map, pages: usize) {
    (0..pages).for_each(|page| map.set(page * PAGE, (page as u8).wrapping_add(1)));
}

/// Pages in a reserve of their own, so that no neighbour joins them, at an address that is a multiple of 64 KiB.
fn apart(pages: usize) -> Map {
    let fence = Map::reserve(pages * PAGE + (128 << 10), 64 << 10);
    let at = fence.address + (64 << 10);
    std::mem::forget(fence);
    Map::at(at, pages * PAGE, RW, PRIVATE | ANON | libc::MAP_FIXED, -1, 0).unwrap()
}

fn touched(pages: usize) -> Map {
    let map = apart(pages);
    touch(&map, pages);
    map
}

fn nodes_are_listed() {
    need_two();
    for name in ["possible", "has_cpu", "has_memory", "has_normal_memory"] {
        assert_eq!(text(name), "0-1", "{name}");
    }
    for (node, cpu, mask, distance) in [(0, "0", "1", "10 20"), (1, "1", "2", "20 10")] {
        assert_eq!(text(&format!("node{node}/cpulist")), cpu);
        assert_eq!(text(&format!("node{node}/cpumap")), mask);
        assert_eq!(text(&format!("node{node}/distance")), distance);
        let link = |path: String| read_link(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(link(format!("{NODES}/node{node}/cpu{cpu}")).ends_with(format!("cpu{cpu}")));
        assert!(
            link(format!("/sys/devices/system/cpu/cpu{cpu}/node{node}")).ends_with(format!("node{node}"))
        );
        // Blocks of 128 MiB: four in each node.
        for block in node * 4..node * 4 + 4 {
            assert!(link(format!("{NODES}/node{node}/memory{block}")).ends_with(format!("memory{block}")));
            let path = format!("/sys/devices/system/memory/memory{block}/node{node}");
            assert!(link(path).ends_with(format!("node{node}")));
        }
        for name in ["numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node"] {
            assert!(text(&format!("node{node}/numastat")).contains(name), "{name}");
        }
        assert!(text(&format!("node{node}/vmstat")).contains("nr_free_pages "));
    }
    let status = read_to_string("/proc/self/status").unwrap();
    assert!(status.contains("Mems_allowed_list:\t0-1\n"), "{status}");
    let mask = status.lines().find(|line| line.starts_with("Mems_allowed:")).unwrap();
    assert!(mask.ends_with("00000003"), "{mask}");
    let zones = read_to_string("/proc/zoneinfo").unwrap();
    assert!(zones.contains("Node 0, zone") && zones.contains("Node 1, zone"), "{zones}");
}

unsafe extern "C" {
    fn getcpu(cpu: *mut u32, node: *mut u32) -> i32;
}

fn cpus_know_their_node() {
    need_two();
    for number in [0, 1] {
        pin(number);
        let (mut cpu, mut node) = (9u32, 9u32);
        // By the system call, and as the C library does it.
        call(libc::SYS_getcpu, [&raw mut cpu as usize, &raw mut node as usize, 0, 0, 0, 0]).unwrap();
        assert_eq!((cpu, node), (number as u32, number as u32));
        assert_eq!(current_cpu(), number);
        // SAFETY: two numbers of ours.
        unsafe { getcpu(&mut cpu, &mut node) };
        assert_eq!((cpu, node), (number as u32, number as u32));
    }
}

/// A value of a node's meminfo, KiB.
fn of_node(node: usize, name: &str) -> u64 {
    value(&text(&format!("node{node}/meminfo")), node, name)
}

fn value(text: &str, node: usize, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(&format!("Node {node} {name}:")));
    let line = line.unwrap_or_else(|| panic!("no {name}: {text}"));
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

fn memory_is_counted_by_node() {
    need_two();
    for node in [0, 1] {
        let text = text(&format!("node{node}/meminfo"));
        let [total, free, used] = ["MemTotal", "MemFree", "MemUsed"].map(|name| value(&text, node, name));
        assert!((400 << 10..=512 << 10).contains(&total), "node {node} has {total} KiB");
        assert_eq!(used, total - free);
    }
    let sum = of_node(0, "MemTotal") + of_node(1, "MemTotal");
    assert_eq!(sum, procfs::Meminfo::read().get("MemTotal"));
    // 64 MiB of one node are not of the other.
    const PAGES: usize = 16 << 10;
    set(BIND, 2).unwrap();
    let before = [0, 1].map(|node| (of_node(node, "MemFree"), of_node(node, "AnonPages")));
    let map = touched(PAGES);
    let after = [0, 1].map(|node| (of_node(node, "MemFree"), of_node(node, "AnonPages")));
    assert!(before[1].0 - after[1].0 > 60 << 10, "{before:?} {after:?}");
    assert!(after[1].1 - before[1].1 > 60 << 10, "{before:?} {after:?}");
    assert!(before[0].0.abs_diff(after[0].0) < 8 << 10, "{before:?} {after:?}");
    map.unmap().unwrap();
}

fn pages_come_from_near() {
    need_two();
    for cpu in [0, 1] {
        pin(cpu);
        assert_eq!(nodes_of(&touched(300), 300), [cpu as i32; 300]);
    }
}

fn modes() {
    need_two();
    let mut rows = Rows::default();
    row!(rows, OK, set(BIND, 3));
    // What there is not is left out, where something is left.
    row!(rows, OK, set(BIND, 7));
    assert_eq!(get(0), (BIND, 3));
    row!(rows, EINVAL, set(BIND, 4));
    row!(rows, EINVAL, set(BIND, 0));
    row!(rows, EINVAL, set(BIND | STATIC, 4));
    row!(rows, OK, set(BIND | RELATIVE, 4));
    row!(rows, EINVAL, set(BIND | RELATIVE | STATIC, 1));
    row!(rows, EINVAL, set(DEFAULT, 1));
    row!(rows, EINVAL, set(7, 1));
    assert_eq!(get(0), (BIND | RELATIVE, 4));
    row!(rows, OK, set(DEFAULT, 0));
    let mask = [1u64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    row!(rows, EINVAL, call(SYS_set_mempolicy, [BIND, mask.as_ptr() as usize, 1090, 0, 0, 0]));
    row!(rows, OK, call(SYS_set_mempolicy, [BIND, mask.as_ptr() as usize, 1025, 0, 0, 0]));
    // A mask is one bit shorter than it says.
    let low = 3u64;
    row!(rows, OK, call(SYS_set_mempolicy, [BIND, (&raw const low) as usize, 2, 0, 0, 0]));
    assert_eq!(get(0), (BIND, 1));
    row!(rows, OK, set(DEFAULT, 0));
    let mut nodes = 0u64;
    let at = &raw mut nodes as usize;
    row!(rows, EINVAL, call(SYS_get_mempolicy, [0, at, 1, 0, 4, 0]));
    row!(rows, OK, call(SYS_get_mempolicy, [0, at, 64, 0, 4, 0]));
    assert_eq!(nodes, 3);
    rows.finish();
}

fn told_nodes() {
    need_two();
    for (mode, nodes, told) in [
        (BIND, 2, (BIND, 2)),
        (PREFERRED, 3, (PREFERRED, 1)),
        (PREFERRED, 2, (PREFERRED, 2)),
        (PREFERRED_MANY, 3, (PREFERRED_MANY, 3)),
        (INTERLEAVE, 3, (INTERLEAVE, 3)),
        (WEIGHTED, 3, (WEIGHTED, 3)),
        (BIND | STATIC, 6, (BIND | STATIC, 6)),
        (INTERLEAVE | RELATIVE, 8, (INTERLEAVE | RELATIVE, 8)),
        (LOCAL, 0, (LOCAL, 0)),
    ] {
        set(mode, nodes).unwrap_or_else(|error| panic!("{mode:#x} {nodes}: {error}"));
        assert_eq!(get(0), told, "{mode:#x} {nodes}");
        in_child(|| assert_eq!(get(0), told));
    }
    // The fourth of two nodes is the second.
    set(BIND | RELATIVE, 8).unwrap();
    assert_eq!(nodes_of(&touched(4), 4), [1; 4]);
}

fn bound_pages() {
    need_two();
    for cpu in [0, 1] {
        pin(cpu);
        for (nodes, node) in [(1, 0), (2, 1), (3, cpu as i32)] {
            set(BIND, nodes).unwrap();
            assert_eq!(nodes_of(&touched(100), 100), [node; 100], "{nodes} from CPU {cpu}");
        }
    }
}

fn preferred_pages() {
    need_two();
    pin(0);
    for (mode, nodes, node) in
        [(PREFERRED, 2, 1), (PREFERRED, 1, 0), (PREFERRED_MANY, 2, 1), (LOCAL, 0, 0), (DEFAULT, 0, 0)]
    {
        set(mode, nodes).unwrap();
        assert_eq!(nodes_of(&touched(20), 20), [node; 20], "{mode} {nodes}");
    }
}

fn pages_take_turns() {
    need_two();
    set(INTERLEAVE, 3).unwrap();
    // By address, whichever is touched first; the place is a multiple of 16 pages.
    let map = apart(8);
    for page in [5, 2, 7, 0, 1, 6, 3, 4] {
        map.set(page * PAGE, 1);
    }
    assert_eq!(nodes_of(&map, 8), [0, 1, 0, 1, 0, 1, 0, 1]);
    let mut next = -1i32;
    call(SYS_get_mempolicy, [&raw mut next as usize, 0, 0, 0, 1, 0]).unwrap();
    assert!([0, 1].contains(&next));
}

fn turns_by_weight() {
    need_two();
    const WEIGHT: &str = "/sys/kernel/mm/mempolicy/weighted_interleave/node1";
    assert_eq!(procfs::number(WEIGHT), 1);
    procfs::write(WEIGHT, 3).unwrap();
    set(WEIGHTED, 3).unwrap();
    let map = touched(8);
    let nodes = nodes_of(&map, 8);
    procfs::write(WEIGHT, 0).unwrap();
    assert_eq!(nodes, [0, 1, 1, 1, 0, 1, 1, 1]);
    assert_eq!(procfs::number(WEIGHT), 1);
    assert!(procfs::write(WEIGHT, 256).is_err());
}

fn areas_have_policies() {
    need_two();
    pin(0);
    let map = apart(8);
    bind(map.address, 4 * PAGE, BIND, 2, 0).unwrap();
    set(PREFERRED, 1).unwrap();
    touch(&map, 8);
    assert_eq!(nodes_of(&map, 8), [1, 1, 1, 1, 0, 0, 0, 0]);
    assert_eq!((get(map.address), get(map.address + 4 * PAGE)), ((BIND, 2), (DEFAULT, 0)));
    // A policy of an area counts for pages that come later.
    bind(map.address, 8 * PAGE, INTERLEAVE, 3, 0).unwrap();
    assert_eq!(nodes_of(&map, 8), [1, 1, 1, 1, 0, 0, 0, 0]);
}

fn shared_pages() {
    need_two();
    pin(0);
    let map = Map::new(6 * PAGE, RW, SHARED | ANON, -1, 0).unwrap();
    bind(map.address, 6 * PAGE, BIND, 2, 0).unwrap();
    touch(&map, 6);
    assert_eq!(nodes_of(&map, 6), [1; 6]);
    // write(2) brings pages by the thread's policy.
    let file = Fd::memfd("nodes", 0).unwrap();
    set(BIND, 2).unwrap();
    file.write(&[1; 4 * PAGE]).unwrap();
    let map = Map::new(4 * PAGE, R, SHARED, file.raw(), 0).unwrap();
    assert_eq!(nodes_of(&map, 4), [1; 4]);
}

fn copies_of_pages() {
    need_two();
    pin(0);
    let map = touched(4);
    fork(|| {
        set(BIND, 2).unwrap();
        assert_eq!(nodes_of(&map, 4), [0; 4]);
        touch(&map, 2);
        assert_eq!(nodes_of(&map, 4), [1, 1, 0, 0]);
    })
    .ok();
}

fn strict_areas() {
    need_two();
    pin(0);
    let map = touched(4);
    let mut rows = Rows::default();
    row!(rows, EIO, bind(map.address, 4 * PAGE, BIND, 2, STRICT));
    assert_eq!(get(map.address), (DEFAULT, 0));
    row!(rows, OK, bind(map.address, 4 * PAGE, BIND, 1, STRICT));
    row!(rows, OK, bind(map.address, 4 * PAGE, BIND, 3, STRICT));
    row!(rows, OK, bind(map.address, 4 * PAGE, DEFAULT, 0, STRICT));
    row!(rows, EINVAL, bind(map.address, 4 * PAGE, BIND, 1, 8));
    rows.finish();
}

fn areas_move() {
    need_two();
    pin(0);
    let map = touched(200);
    bind(map.address + 50 * PAGE, 100 * PAGE, BIND, 2, MOVE | STRICT).unwrap();
    let nodes = nodes_of(&map, 200);
    assert!(
        nodes.iter().enumerate().all(|(page, node)| *node == i32::from((50..150).contains(&page))),
        "{nodes:?}"
    );
    assert!((0..200).all(|page| map.get(page * PAGE) == page as u8 + 1));
    touch(&map, 200);
    // A page that a child has, too, does not move, and is no failure.
    fork(|| {
        assert_eq!(bind(map.address, 200 * PAGE, BIND, 1, MOVE | STRICT), Ok(0));
        assert_eq!(nodes_of(&map, 200), nodes);
    })
    .ok();
}

/// move_pages(2): states of pages, moved to `nodes` if there are any.
fn move_pages(pages: &[usize], nodes: Option<&[i32]>) -> Result<Vec<i32>, Errno> {
    let mut status = vec![-99; pages.len()];
    let nodes = nodes.map_or(0, |nodes| nodes.as_ptr() as usize);
    let (at, out) = (pages.as_ptr() as usize, status.as_mut_ptr() as usize);
    call(SYS_move_pages, [0, pages.len(), at, nodes, out, MOVE])?;
    Ok(status)
}

fn single_pages_move() {
    need_two();
    pin(0);
    let map = touched(6);
    let pages: Vec<usize> = (0..6).map(|page| map.address + page * PAGE).collect();
    assert_eq!(move_pages(&pages, None), Ok(vec![0; 6]));
    assert_eq!(move_pages(&pages, Some(&[1, 0, 1, 0, 1, 0])), Ok(vec![1, 0, 1, 0, 1, 0]));
    assert_eq!(move_pages(&pages, None), Ok(vec![1, 0, 1, 0, 1, 0]));
    assert_eq!(nodes_of(&map, 6), [1, 0, 1, 0, 1, 0]);
    assert!((0..6).all(|page| map.get(page * PAGE) == page as u8 + 1));
    let absent = apart(2);
    let holes = [absent.address, 8 * PAGE];
    assert_eq!(move_pages(&holes, Some(&[1, 1])), Ok(vec![-libc::ENOENT, -libc::EFAULT]));
    assert_eq!(move_pages(&pages[..1], Some(&[2])), Err(Errno::ENODEV));
    assert_eq!(move_pages(&pages[..1], Some(&[-1])), Err(Errno::ENODEV));
}

/// The tables that a child had, too, are no hindrance when it is gone.
fn moves_behind_forks() {
    need_two();
    pin(0);
    const PAGES: usize = 8 * MIB / PAGE;
    let map = touched(PAGES);
    fork(|| ()).ok();
    assert_eq!(bind(map.address, PAGES * PAGE, BIND, 2, MOVE | STRICT), Ok(0));
    assert!(nodes_of(&map, PAGES).iter().all(|node| *node == 1));
    assert!((0..PAGES).all(|page| map.get(page * PAGE) == page as u8 + 1));
}

/// Behind a program's mask nothing is written.
fn masks_end_where_they_say() {
    const MEMS_ALLOWED: usize = 4;
    let mut mask = [!0u64; 2];
    let get = |mask: &mut [u64; 2], bits: usize| {
        call(SYS_get_mempolicy, [0, mask.as_mut_ptr() as usize, bits, 0, MEMS_ALLOWED, 0])
    };
    assert_eq!(get(&mut mask, 65), Ok(0));
    assert_eq!(mask[1], !0);
    assert!(mask[0] & 1 == 1 && mask[0] < 4, "{mask:x?}");
    assert_eq!(get(&mut mask, 1 << 20), Err(Errno::EINVAL));
}

fn processes_move() {
    need_two();
    pin(0);
    let map = touched(50);
    // The other half is where it should go already.
    bind(map.address + 25 * PAGE, 25 * PAGE, BIND, 2, MOVE).unwrap();
    let migrate = |from: u64, to: u64| {
        call(SYS_migrate_pages, [0, 64, (&raw const from) as usize, (&raw const to) as usize, 0, 0])
    };
    migrate(1, 2).expect("migrate_pages");
    assert_eq!(nodes_of(&map, 50), [1; 50]);
    migrate(2, 1).expect("migrate_pages");
    assert_eq!(nodes_of(&map, 50), [0; 50]);
    assert!((0..50).all(|page| map.get(page * PAGE) == page as u8 + 1));
    let mut rows = Rows::default();
    row!(rows, EINVAL, migrate(1, 4));
    row!(rows, EINVAL, migrate(1, 0));
    rows.finish();
}

fn lines_tell_nodes() {
    need_two();
    let line = |map: &Map| {
        let text = read_to_string("/proc/self/numa_maps").unwrap();
        let start = format!("{:08x} ", map.address);
        text.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{text}")).to_string()
    };
    let map = apart(10);
    bind(map.address, 10 * PAGE, INTERLEAVE, 3, 0).unwrap();
    touch(&map, 7);
    let found = line(&map);
    assert!(
        found.contains(" interleave:0-1 ") && found.contains(" N0=4 N1=3 kernelpagesize_kB=4"),
        "{found}"
    );
    let shared = Map::new(6 * PAGE, RW, SHARED | ANON, -1, 0).unwrap();
    bind(shared.address, 6 * PAGE, BIND, 2, 0).unwrap();
    touch(&shared, 5);
    let found = line(&shared);
    assert!(found.contains(" bind:1 ") && found.contains(" N1=5 kernelpagesize_kB=4"), "{found}");
}

const PAUSE: Duration = Duration::from_millis(10);
const MIB: usize = 1 << 20;

/// Fills node 1 with its pages until `enough` says so, asked before each MiB.
fn fill(mut enough: impl FnMut(usize) -> bool) {
    set(BIND, 2).unwrap();
    let size = 600 * MIB;
    let map = Map::new(size, RW, PRIVATE | ANON | NORESERVE, -1, 0).unwrap();
    for start in (0..size).step_by(MIB) {
        if enough(start) {
            std::mem::forget(map);
            return;
        }
        (start..start + MIB).step_by(PAGE).for_each(|at| map.set(at, 1));
    }
    unreachable!("a node of 512 MiB has room for {size} bytes");
}

/// A process that leaves little of node 1. First it waits for what somebody had who has just been killed.
fn hog() -> Child {
    let shared = Shared::new();
    let child = fork(|| {
        while of_node(1, "MemFree") < 150 << 10 {
            sleep(PAUSE);
        }
        fill(|taken| taken > 100 * MIB && of_node(1, "MemFree") < 64 << 10);
        shared.add(0);
        loop {
            sleep(PAUSE);
        }
    });
    shared.wait(0, 1);
    child
}

/// Somebody whose pages are on another node gives nothing back there, though everybody else would be better off without him.
fn who_fills_a_node_spares_others() {
    need_two();
    let shared = Shared::new();
    let bystander = fork(|| {
        set(BIND, 1).unwrap();
        procfs::write("/proc/self/oom_score_adj", 1000).unwrap();
        // Not what he was forked with, which is anywhere.
        let _own = touched(1000);
        loop {
            shared.add(0);
            sleep(PAUSE);
        }
    });
    shared.wait(0, 1);
    assert_eq!(fork(|| fill(|_| false)).wait(), End::Signal(libc::SIGKILL));
    let count = shared.get(0);
    assert!(shared.wait_for(0, count + 3, Duration::from_secs(20)), "the bystander is gone");
    bystander.end();
}

fn who_has_a_node_makes_room() {
    need_two();
    let hog = hog();
    in_child(|| {
        set(BIND, 2).unwrap();
        // More than Linux can free without anybody's end.
        assert_eq!(nodes_of(&touched(200 * MIB / PAGE), 10), [1; 10]);
    });
    assert_eq!(hog.wait(), End::Signal(libc::SIGKILL));
}

fn a_full_node_is_passed_by() {
    need_two();
    const PAGES: usize = 100 * MIB / PAGE;
    // First, so that it has none of the pages that are to move.
    let hog = hog();
    pin(0);
    let map = touched(PAGES);
    // The near node has room for some of them.
    pin(1);
    let mut rows = Rows::default();
    row!(rows, OK, bind(map.address, PAGES * PAGE, DEFAULT, 0, MOVE));
    rows.finish();
    let far = nodes_of(&map, PAGES).iter().filter(|node| **node == 0).count();
    assert!((1..PAGES).contains(&far), "{far} of {PAGES} have stayed");
    // New pages come from the other node.
    let new = touched(PAGES);
    assert!(nodes_of(&new, PAGES).contains(&0));
    hog.end();
}
