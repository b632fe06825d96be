//! What is asked without text: single areas of a process (PROCMAP_QUERY), and how much of a file is in memory (cachestat).

use std::fs;

use roundtable_programs::child::in_child;
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::huge;
use roundtable_programs::kinds::{Answer, call, map, unmap};
use roundtable_programs::mem::{ANON, NONE, PRIVATE, R, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{PAGE, check};
use roundtable_programs::{Errno, row, tests};

tests! { areas_by_address, areas_by_kind, names_of_areas, build_ids, questions_that_are_refused, pages_in_memory, who_may_ask_for_pages }

/// `struct procmap_query`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    area_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

const SIZE: u64 = size_of::<Query>() as u64;
const WRITABLE: u64 = 2;
const SHARED_AREA: u64 = 8;
const OR_NEXT: u64 = 16;
const OF_FILE: u64 = 32;

fn ask(query: &mut Query) -> Answer {
    const PROCMAP_QUERY: usize = 0xc068_6611;
    let maps = Fd::open("/proc/self/maps", libc::O_RDONLY).unwrap();
    call(libc::SYS_ioctl, [maps.raw() as usize, PROCMAP_QUERY, &raw mut *query as usize, 0, 0, 0])
}

fn found(address: usize, flags: u64) -> Result<Query, Errno> {
    let mut query = Query { size: SIZE, flags, address: address as u64, ..Query::default() };
    ask(&mut query).map(|_| query)
}

/// Begin and end of the area, in pages from `base`.
fn place(base: usize, address: usize, flags: u64) -> Result<(u64, u64), Errno> {
    let page = PAGE as u64;
    found(address, flags).map(|area| ((area.start - base as u64) / page, (area.end - base as u64) / page))
}

/// Six pages: two to read, a gap of one, one to write, one for nothing, one shared of a file.
fn several(file: &Fd) -> usize {
    let at = map(0, 6 * PAGE, NONE, PRIVATE | ANON, -1, 0).unwrap();
    let fixed = PRIVATE | ANON | libc::MAP_FIXED;
    map(at, 2 * PAGE, R, fixed, -1, 0).unwrap();
    unmap(at + 2 * PAGE, PAGE).unwrap();
    map(at + 3 * PAGE, PAGE, RW, fixed, -1, 0).unwrap();
    map(at + 5 * PAGE, PAGE, RW, SHARED | libc::MAP_FIXED, file.raw(), PAGE).unwrap();
    at
}

fn areas_by_address() {
    let file = Fd::of_pages(2);
    let at = several(&file);
    assert_eq!(place(at, at, 0), Ok((0, 2)));
    assert_eq!(place(at, at + 2 * PAGE - 1, 0), Ok((0, 2)));
    assert_eq!(place(at, at + 2 * PAGE, 0), Err(Errno::ENOENT));
    assert_eq!(place(at, at + 2 * PAGE, OR_NEXT), Ok((3, 4)));
    assert_eq!(place(at, at + 3 * PAGE, OR_NEXT), Ok((3, 4)));
    assert_eq!(found(0, 0), Err(Errno::ENOENT));
    assert_eq!(found(usize::MAX - PAGE, OR_NEXT), Err(Errno::ENOENT));
    let area = found(at + 5 * PAGE, 0).unwrap();
    let status = file.stat();
    assert_eq!((area.area_flags, area.page_size, area.offset), (1 | 2 | 8, PAGE as u64, PAGE as u64));
    assert_eq!(area.inode, status.st_ino);
    assert_eq!((area.major, area.minor), (libc::major(status.st_dev), libc::minor(status.st_dev)));
    let area = found(at, 0).unwrap();
    assert_eq!((area.area_flags, area.offset, area.inode, area.major, area.minor), (1, 0, 0, 0, 0));
    huge::pool(2);
    let memory = huge::sized(1);
    let address = map(0, huge::HUGE, RW, SHARED, memory.raw(), 0).unwrap();
    let area = found(address + PAGE, 0).unwrap();
    assert_eq!((area.start, area.page_size), (address as u64, huge::HUGE as u64));
}

fn areas_by_kind() {
    let file = Fd::of_pages(2);
    let at = several(&file);
    assert_eq!(place(at, at, WRITABLE), Err(Errno::ENOENT));
    assert_eq!(place(at, at, WRITABLE | OR_NEXT), Ok((3, 4)));
    assert_eq!(place(at, at, WRITABLE | SHARED_AREA | OR_NEXT), Ok((5, 6)));
    assert_eq!(place(at, at, OF_FILE | OR_NEXT), Ok((5, 6)));
    assert_eq!(place(at, at + 5 * PAGE, OF_FILE), Ok((5, 6)));
    assert_eq!(place(at, at + 3 * PAGE, OF_FILE), Err(Errno::ENOENT));
    // Who must write asks in vain for what may only be read.
    assert_eq!(place(at, at + PAGE, 1), Ok((0, 2)));
    assert_eq!(place(at, at + 4 * PAGE, 1), Err(Errno::ENOENT));
}

/// The name of the area at an address, and the length that was told.
fn name_at(address: usize, room: u32) -> Result<(String, u32), Errno> {
    let mut bytes = [0xffu8; 64];
    let name = bytes.as_mut_ptr() as u64;
    let mut query = Query { size: SIZE, address: address as u64, name, name_size: room, ..Query::default() };
    ask(&mut query)?;
    let text: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != 0 && *byte != 0xff).collect();
    Ok((String::from_utf8(text).unwrap(), query.name_size))
}

fn names_of_areas() {
    let path = "/tmp/queried";
    fs::write(path, [1; 2 * PAGE]).unwrap();
    let file = Fd::open(path, libc::O_RDWR).unwrap();
    let at = several(&file);
    assert_eq!(name_at(at + 5 * PAGE, 64), Ok((path.to_string(), 13)));
    assert_eq!(name_at(at + 5 * PAGE, 13), Ok((path.to_string(), 13)));
    assert_eq!(name_at(at + 5 * PAGE, 12), Err(Errno::ENAMETOOLONG));
    assert_eq!(name_at(at, 64), Ok((String::new(), 0)));
    let on_stack = 0u8;
    assert_eq!(in_stack(&raw const on_stack as usize), ("[stack]".to_string(), 8));
    fs::remove_file(path).unwrap();
    assert_eq!(name_at(at + 5 * PAGE, 64).unwrap().0, "/tmp/queried (deleted)");
}

/// The stack's own area: the test's thread may have another.
fn in_stack(_: usize) -> (String, u32) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    name_at(start, 64).unwrap()
}

/// A file with the notes of a program, made here.
fn build_ids() {
    let mut elf = vec![0u8; PAGE];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    // A shared object for this machine, version 1.
    put(16, &3u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &4u32.to_le_bytes());
    put(72, &128u64.to_le_bytes());
    put(96, &60u64.to_le_bytes());
    // A note of something else, and the one that counts.
    for (at, kind, length) in [(128, 1u32, 8u32), (152, 3, 20)] {
        put(at, &4u32.to_le_bytes());
        put(at + 4, &length.to_le_bytes());
        put(at + 8, &kind.to_le_bytes());
        put(at + 12, b"GNU\0");
    }
    put(168, &(1..=20).collect::<Vec<u8>>());
    let path = "/tmp/with-build-id";
    fs::write(path, &elf).unwrap();
    let file = Fd::open(path, libc::O_RDONLY).unwrap();
    let at = map(0, PAGE, R, PRIVATE, file.raw(), 0).unwrap();
    // In memory, which the kernel may want it to be.
    // SAFETY: mapped, to be read.
    assert_eq!(unsafe { (at as *const u8).read_volatile() }, 0x7f);
    let ask_for = |address: usize, room: u32| {
        let mut bytes = [0u8; 32];
        let build_id = bytes.as_mut_ptr() as u64;
        let mut query =
            Query { size: SIZE, address: address as u64, build_id, build_id_size: room, ..Query::default() };
        ask(&mut query).map(|_| bytes[..query.build_id_size as usize].to_vec())
    };
    assert_eq!(ask_for(at, 20), Ok((1..=20).collect()));
    assert_eq!(ask_for(at, 32), Ok((1..=20).collect()));
    assert_eq!(ask_for(at, 19), Err(Errno::ENAMETOOLONG));
    let anonymous = map(0, PAGE, R, PRIVATE | ANON, -1, 0).unwrap();
    assert_eq!(ask_for(anonymous, 20), Ok(Vec::new()));
    fs::remove_file(path).unwrap();
}

fn questions_that_are_refused() {
    let mut rows = Rows::default();
    let at = map(0, PAGE, R, PRIVATE | ANON, -1, 0).unwrap();
    let base = Query { size: SIZE, address: at as u64, ..Query::default() };
    let with = |change: fn(&mut Query)| {
        let mut query = base;
        change(&mut query);
        ask(&mut query)
    };
    row!(rows, OK, with(|_| {}));
    row!(rows, OK, with(|query| query.size = 24));
    row!(rows, EINVAL, with(|query| query.size = 23));
    row!(rows, E2BIG, with(|query| query.size = PAGE as u64 + 1));
    row!(rows, EINVAL, with(|query| query.flags = 64));
    row!(rows, EINVAL, with(|query| query.name_size = 1));
    row!(rows, EINVAL, with(|query| query.name = 1));
    row!(rows, EINVAL, with(|query| query.build_id_size = 1));
    row!(rows, EINVAL, with(|query| query.build_id = 1));
    let mut large = [base, Query::default()];
    large[0].size = 2 * SIZE;
    row!(rows, OK, ask(&mut large[0]));
    large[1].address = 1;
    row!(rows, E2BIG, ask(&mut large[0]));
    let smaps = Fd::open("/proc/self/smaps", libc::O_RDONLY).unwrap();
    let mut query = base;
    let arguments = [smaps.raw() as usize, 0xc068_6611, &raw mut query as usize, 0, 0, 0];
    row!(rows, ENOTTY, call(libc::SYS_ioctl, arguments));
    rows.finish();
}

const CACHESTAT: i64 = 451;

fn cachestat(fd: &Fd, offset: u64, length: u64, flags: usize) -> Result<[u64; 5], Errno> {
    let (range, mut result) = ([offset, length], [u64::MAX; 5]);
    let arguments = [fd.raw() as usize, range.as_ptr() as usize, result.as_mut_ptr() as usize, flags, 0, 0];
    call(CACHESTAT, arguments).map(|_| result)
}

/// Pages in memory of a range of bytes.
fn cached(fd: &Fd, offset: u64, length: u64) -> u64 {
    let [cached, _, writeback, evicted, recently] = cachestat(fd, offset, length, 0).unwrap();
    assert_eq!((writeback, evicted, recently), (0, 0, 0));
    cached
}

fn pages_in_memory() {
    const MANY: u64 = 1500;
    let page = PAGE as u64;
    let file = Fd::memfd("cached", 0).unwrap();
    file.truncate(1 << 40).unwrap();
    assert_eq!(cached(&file, 0, 0), 0);
    file.write_at(b"x", 3 * page).unwrap();
    file.write_at(b"x", 5 * page).unwrap();
    file.write_at(b"x", (1 << 39) + page).unwrap();
    assert_eq!(cached(&file, 0, 0), 3);
    assert_eq!(cached(&file, 0, 3 * page), 0);
    assert_eq!(cached(&file, 0, 3 * page + 1), 1);
    assert_eq!(cached(&file, 4 * page - 1, 1), 1);
    assert_eq!(cached(&file, 4 * page, page), 0);
    assert_eq!(cached(&file, 3 * page, 3 * page), 2);
    assert_eq!(cached(&file, 1 << 39, 0), 1);
    assert_eq!(cached(&file, 1 << 50, 0), 0);
    // What is allocated is there, data or not.
    file.fallocate(0, 100 * page, MANY * page).unwrap();
    assert_eq!(cached(&file, 0, 1 << 38), MANY + 2);
    file.punch(200 * page, 300 * page).unwrap();
    assert_eq!(cached(&file, 0, 1 << 38), MANY + 2 - 300);
    // A small one.
    let small = Fd::memfd("small", 0).unwrap();
    small.truncate(4 * page).unwrap();
    assert_eq!(cached(&small, 0, 0), 0);
    small.write_at(&[1; 2 * PAGE], page).unwrap();
    assert_eq!((cached(&small, 0, 0), cached(&small, 0, 2 * page)), (2, 1));
    assert_eq!(cached(&Fd::open("/dev/null", libc::O_RDWR).unwrap(), 0, 0), 0);
    assert_eq!(cached(&pipe(0).1, 0, 0), 0);
    let mut rows = Rows::default();
    let ask = |fd: &Fd, flags: usize| cachestat(fd, 0, 0, flags).map(|_| 0);
    row!(rows, EINVAL, ask(&file, 1));
    row!(rows, EOPNOTSUPP, ask(&huge::sized(1), 0));
    row!(rows, EOPNOTSUPP, ask(&huge::sized(1), 1));
    row!(rows, EBADF, ask(&Fd::open("/tmp", libc::O_PATH).unwrap(), 0));
    row!(rows, EBADF, call(CACHESTAT, [usize::MAX, 0, 0, 0, 0, 0]));
    row!(rows, EFAULT, call(CACHESTAT, [file.raw() as usize, 8, 0, 0, 0, 0]));
    rows.finish();
}

/// Who may not change a file does not learn what of it others have read.
fn who_may_ask_for_pages() {
    let path = "/tmp/asked-for";
    fs::write(path, "x").unwrap();
    in_child(|| {
        let mut rows = Rows::default();
        let ask = |fd: &Fd| cachestat(fd, 0, 0, 0).map(|_| 0);
        let (read, write) =
            (Fd::open(path, libc::O_RDONLY).unwrap(), Fd::open(path, libc::O_WRONLY).unwrap());
        row!(rows, OK, ask(&read));
        // SAFETY: takes an integer.
        check(unsafe { libc::setuid(1000) }).unwrap();
        row!(rows, EPERM, ask(&read));
        row!(rows, OK, ask(&write));
        rows.finish();
    });
    fs::remove_file(path).unwrap();
}
