//! Files on hugetlbfs: statfs, read, truncate, fallocate, holes, limits of a mount.

use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE, HugeFs, MAGIC, expect_pool};
use roundtable_programs::mem::{RW, SHARED};
use roundtable_programs::{Errno, child, tests};

tests! { statfs, statfs_with_size, read, read_of_holes, write_is_refused, truncate_must_be_aligned, size_and_blocks,
fallocate_grows, fallocate_keep_size, fallocate_rounds, punch_whole_pages, punch_zeroes_parts,
punch_needs_keep_size, punch_behind_the_end, size_option, size_option_reserves, min_size_option,
inode_option, mount_options, names, unlinked_file_lives, write_map_grows_file, seek, open_truncate,
memory_goes_with_the_mount, read_across_pages, folders, many_inodes }

const H: u64 = HUGE as u64;

fn statfs() {
    huge::pool(4);
    let system = HugeFs::mount("").file().statfs();
    assert_eq!((system.f_type, system.f_bsize), (MAGIC, HUGE as i64));
    // Without a limit there are no numbers.
    assert_eq!((system.f_blocks, system.f_bfree, system.f_files), (0, 0, 0));
    assert_eq!(system.f_namelen, 255);
}

fn statfs_with_size() {
    huge::pool(4);
    let mount = HugeFs::mount("size=6M,nr_inodes=10");
    let file = mount.file();
    file.truncate(H).unwrap();
    let map = file.map(HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    let system = file.statfs();
    assert_eq!((system.f_blocks, system.f_bfree, system.f_bavail), (3, 2, 2));
    // The root and the file.
    assert_eq!((system.f_files, system.f_ffree), (10, 8));
}

fn read() {
    huge::pool(2);
    let file = HugeFs::mount("").file();
    file.truncate(H).unwrap();
    let map = file.map(HUGE, RW, SHARED).unwrap();
    for at in 0..10_000 {
        map.set(at, at as u8);
    }
    let mut buffer = vec![0xaa; 9000];
    assert_eq!(file.read_at(&mut buffer, 500), Ok(9000));
    assert!(buffer.iter().enumerate().all(|(at, &byte)| byte == (at + 500) as u8));
    // Short at the end, nothing behind it.
    assert_eq!(file.read_at(&mut buffer, H - 100), Ok(100));
    assert_eq!(file.read_at(&mut buffer, H), Ok(0));
    assert_eq!(file.read_at(&mut buffer, 10 * H), Ok(0));
}

fn read_of_holes() {
    huge::pool(2);
    let file = HugeFs::mount("").file();
    file.truncate(2 * H).unwrap();
    let mut buffer = vec![0xaa; 5000];
    assert_eq!(file.read_at(&mut buffer, 100), Ok(5000));
    assert!(buffer.iter().all(|&byte| byte == 0));
    // Reading a hole fills nothing.
    expect_pool(2, 0);
    assert_eq!(file.stat().st_blocks, 0);
}

fn read_across_pages() {
    huge::pool(3);
    let file = HugeFs::mount("").file();
    file.truncate(3 * H).unwrap();
    let map = file.map(3 * HUGE, RW, SHARED | libc::MAP_NORESERVE).unwrap();
    map.set(HUGE - 1, 1);
    map.set(2 * HUGE, 3);
    let mut buffer = vec![0xaa; HUGE + 2];
    assert_eq!(file.read_at(&mut buffer, H - 1), Ok(HUGE + 2));
    assert_eq!((buffer[0], buffer[1], buffer[HUGE], buffer[HUGE + 1]), (1, 0, 0, 3));
}

fn write_is_refused() {
    huge::pool(2);
    let file = HugeFs::mount("").file();
    assert_eq!(file.write(b"x"), Err(Errno::EINVAL));
    file.truncate(H).unwrap();
    assert_eq!(file.write_at(b"x", 0), Err(Errno::EINVAL));
    assert_eq!(file.stat().st_blocks, 0);
}

fn truncate_must_be_aligned() {
    let file = HugeFs::mount("").file();
    for length in [1, 4096, H - 1, H + 4096] {
        assert_eq!(file.truncate(length), Err(Errno::EINVAL), "{length}");
    }
    assert_eq!(file.truncate(3 * H), Ok(()));
    assert_eq!(file.stat().st_size, 3 * HUGE as i64);
    assert_eq!(file.truncate(0), Ok(()));
}

fn size_and_blocks() {
    huge::pool(4);
    let file = HugeFs::mount("").file();
    file.truncate(4 * H).unwrap();
    let map = file.map(4 * HUGE, RW, SHARED).unwrap();
    map.set(2 * HUGE, 1);
    let stat = file.stat();
    assert_eq!((stat.st_size, stat.st_blksize), (4 * HUGE as i64, HUGE as i64));
    assert_eq!(stat.st_blocks, HUGE as i64 / 512);
    map.set(0, 1);
    assert_eq!(file.stat().st_blocks, 2 * HUGE as i64 / 512);
}

fn fallocate_grows() {
    huge::pool(4);
    let file = HugeFs::mount("").file();
    file.fallocate(0, H, 2 * H).unwrap();
    assert_eq!(file.stat().st_size, 3 * HUGE as i64);
    assert_eq!(file.stat().st_blocks, 2 * HUGE as i64 / 512);
    expect_pool(2, 0);
    // Again: they are there.
    file.fallocate(0, 0, 3 * H).unwrap();
    expect_pool(1, 0);
    file.fallocate(0, 0, 3 * H).unwrap();
    expect_pool(1, 0);
    assert_eq!(file.fallocate(0, 0, 8 * H), Err(Errno::ENOSPC));
    let map = file.map(3 * HUGE, RW, SHARED).unwrap();
    assert!(map.is_all(0, 3 * HUGE, 0));
}

fn fallocate_keep_size() {
    huge::pool(4);
    let file = HugeFs::mount("").file();
    file.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 2 * H).unwrap();
    assert_eq!(file.stat().st_size, 0);
    expect_pool(2, 0);
    file.truncate(0).unwrap();
    expect_pool(4, 0);
}

fn fallocate_rounds() {
    huge::pool(4);
    let file = HugeFs::mount("").file();
    file.fallocate(0, 4096, H).unwrap();
    expect_pool(2, 0);
    assert_eq!(file.fallocate(0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(file.fallocate(libc::FALLOC_FL_ZERO_RANGE, 0, H), Err(Errno::EOPNOTSUPP));
    assert_eq!(file.fallocate(libc::FALLOC_FL_COLLAPSE_RANGE, 0, H), Err(Errno::EOPNOTSUPP));
}

fn punch_whole_pages() {
    huge::pool(4);
    let file = HugeFs::mount("").file();
    file.fallocate(0, 0, 4 * H).unwrap();
    file.punch(H, 2 * H).unwrap();
    expect_pool(2, 0);
    assert_eq!(file.stat().st_size, 4 * HUGE as i64);
    assert_eq!(file.stat().st_blocks, 2 * HUGE as i64 / 512);
}

fn punch_zeroes_parts() {
    huge::pool(4);
    let file = HugeFs::mount("").file();
    file.truncate(3 * H).unwrap();
    let map = file.map(3 * HUGE, RW, SHARED).unwrap();
    for at in (0..3 * HUGE).step_by(8) {
        map.set_u64(at, u64::MAX);
    }
    // From the middle of the first page to the middle of the third.
    file.punch(H / 2, 2 * H).unwrap();
    expect_pool(2, 0);
    assert!(map.is_all(0, HUGE / 2, 0xff));
    assert!(map.is_all(HUGE / 2, HUGE / 2, 0));
    assert!(map.is_all(2 * HUGE, HUGE / 2, 0));
    assert!(map.is_all(2 * HUGE + HUGE / 2, HUGE / 2, 0xff));
    // Within one page.
    file.punch(4096, 4096).unwrap();
    assert!(map.is_all(0, 4096, 0xff) && map.is_all(4096, 4096, 0) && map.is_all(8192, 4096, 0xff));
    expect_pool(2, 0);
    assert!(map.is_all(HUGE, HUGE, 0));
}

fn punch_needs_keep_size() {
    let file = HugeFs::mount("").file();
    file.truncate(H).unwrap();
    assert_eq!(file.fallocate(libc::FALLOC_FL_PUNCH_HOLE, 0, H), Err(Errno::EOPNOTSUPP));
}

fn punch_behind_the_end() {
    huge::pool(2);
    let file = HugeFs::mount("").file();
    file.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 2 * H).unwrap();
    expect_pool(0, 0);
    file.punch(0, 10 * H).unwrap();
    expect_pool(2, 0);
}

fn size_option() {
    huge::pool(4);
    let mount = HugeFs::mount("size=4M");
    let file = mount.file();
    assert_eq!(file.fallocate(0, 0, 3 * H), Err(Errno::ENOSPC));
    // What was allocated before the limit stays, as the call says nothing else.
    file.truncate(0).unwrap();
    expect_pool(4, 0);
    file.fallocate(0, 0, 2 * H).unwrap();
    assert_eq!(file.statfs().f_bfree, 0);
    file.punch(0, H).unwrap();
    assert_eq!(file.statfs().f_bfree, 1);
}

fn size_option_reserves() {
    huge::pool(4);
    let mount = HugeFs::mount("size=4M");
    let file = mount.file();
    file.truncate(4 * H).unwrap();
    assert_eq!(file.map(3 * HUGE, RW, SHARED).err(), Some(Errno::ENOMEM));
    expect_pool(4, 0);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    expect_pool(4, 2);
    // Promised pages count against the limit.
    assert_eq!(file.statfs().f_bfree, 0);
    map.set(0, 1);
    assert_eq!(file.statfs().f_bfree, 0);
    drop((map, file));
    expect_pool(4, 0);
}

fn min_size_option() {
    huge::pool(4);
    let mount = HugeFs::mount("min_size=4M");
    // The mount holds its least from the start.
    expect_pool(4, 2);
    let file = mount.file();
    file.fallocate(0, 0, 2 * H).unwrap();
    expect_pool(2, 0);
    drop(file);
    expect_pool(4, 2);
    drop(mount);
    huge::expect_counters(huge::Counters { total: 4, free: 4, reserved: 0, surplus: 0 });
    // What cannot be had refuses the mount.
    assert_eq!(HugeFs::try_mount("min_size=64M").err(), Some(Errno::ENOMEM));
}

fn inode_option() {
    let mount = HugeFs::mount("nr_inodes=3");
    let create = |name: &str| Fd::open(&format!("{}/{name}", mount.path), libc::O_RDWR | libc::O_CREAT);
    let (_a, _b) = (create("a").unwrap(), create("b").unwrap());
    assert_eq!(create("c").err(), Some(Errno::ENOSPC));
    std::fs::remove_file(format!("{}/a", mount.path)).unwrap();
    drop(_a);
    create("c").unwrap();
}

fn mount_options() {
    let mount = HugeFs::mount("pagesize=2M,mode=0750,uid=7,gid=9");
    let folder = std::fs::metadata(&mount.path).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((folder.mode() & 0o7777, folder.uid(), folder.gid()), (0o750, 7, 9));
    for wrong in ["pagesize=3M", "size=x", "nonsense=1", "mode=9"] {
        assert_eq!(HugeFs::try_mount(wrong).err(), Some(Errno::EINVAL), "{wrong}");
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line =
        mounts.lines().find(|line| line.split(' ').nth(1) == Some(&mount.path)).expect("in /proc/mounts");
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!((fields[0], fields[2]), ("none", "hugetlbfs"));
    assert!(fields[3].contains("pagesize=2M") && fields[3].contains("mode=750"), "{line}");
}

fn names() {
    let mount = HugeFs::mount("");
    let path = |name: &str| format!("{}/{name}", mount.path);
    std::fs::create_dir(path("folder")).unwrap();
    let file = Fd::open(&path("folder/one"), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap();
    let again = Fd::open(&path("folder/one"), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
    assert_eq!(again.err(), Some(Errno::EEXIST));
    std::fs::rename(path("folder/one"), path("two")).unwrap();
    std::fs::hard_link(path("two"), path("three")).unwrap();
    assert_eq!(file.stat().st_nlink, 2);
    let mut names: Vec<String> = std::fs::read_dir(&mount.path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["folder", "three", "two"]);
    std::fs::remove_dir(path("folder")).unwrap();
    std::fs::remove_file(path("two")).unwrap();
    std::fs::remove_file(path("three")).unwrap();
    assert_eq!(file.stat().st_nlink, 0);
}

fn folders() {
    let mount = HugeFs::mount("");
    let path = |name: &str| format!("{}/{name}", mount.path);
    std::fs::create_dir(path("a")).unwrap();
    std::fs::create_dir(path("a/b")).unwrap();
    Fd::open(&path("a/b/../f"), libc::O_RDWR | libc::O_CREAT).unwrap();
    assert!(std::fs::metadata(path("a/f")).unwrap().is_file());
    assert_eq!(std::fs::remove_dir(path("a")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
}

fn many_inodes() {
    // More than a page has room to note one by one.
    const MANY: u64 = 2000;
    let mount = HugeFs::mount("size=2M,nr_inodes=3000");
    let inodes = || Fd::open(&mount.path, libc::O_RDONLY).unwrap().statfs().f_ffree;
    let before = inodes();
    for number in 0..MANY {
        std::fs::create_dir(format!("{}/{number}", mount.path)).unwrap();
    }
    assert_eq!(inodes(), before - MANY);
    for number in 0..MANY {
        std::fs::remove_dir(format!("{}/{number}", mount.path)).unwrap();
    }
    assert_eq!(inodes(), before);
}

fn unlinked_file_lives() {
    huge::pool(2);
    let mount = HugeFs::mount("");
    let file = mount.file();
    file.truncate(H).unwrap();
    let map = file.map(HUGE, RW, SHARED).unwrap();
    map.set(0, 77);
    drop(file);
    assert_eq!(map.get(0), 77);
    expect_pool(1, 0);
    drop(map);
    expect_pool(2, 0);
}

fn write_map_grows_file() {
    huge::pool(4);
    let file = HugeFs::mount("").file();
    // A peculiarity of hugetlbfs: a writable mapping makes the file as long as it reaches.
    let map = file.map_at(H, 2 * HUGE, RW, SHARED).unwrap();
    assert_eq!(file.stat().st_size, 3 * HUGE as i64);
    map.set(0, 1);
    drop(map);
    let read_only = file.map_at(0, 8 * HUGE, libc::PROT_READ, SHARED | libc::MAP_NORESERVE).unwrap();
    assert_eq!(file.stat().st_size, 3 * HUGE as i64);
    drop(read_only);
}

fn seek() {
    huge::pool(2);
    let file = HugeFs::mount("").file();
    file.truncate(2 * H).unwrap();
    let seek = |offset: i64, whence: i32| {
        // SAFETY: takes integers.
        roundtable_programs::sys::check(unsafe { libc::lseek(file.raw(), offset, whence) })
    };
    assert_eq!(seek(-10, libc::SEEK_END), Ok(2 * HUGE - 10));
    let mut buffer = [1; 20];
    assert_eq!(file.read(&mut buffer), Ok(10));
    assert_eq!(seek(0, libc::SEEK_CUR), Ok(2 * HUGE));
    assert_eq!(file.read(&mut buffer), Ok(0));
    assert_eq!(seek(-1, libc::SEEK_SET), Err(Errno::EINVAL));
}

fn open_truncate() {
    huge::pool(2);
    let mount = HugeFs::mount("");
    let path = format!("{}/f", mount.path);
    let file = Fd::open(&path, libc::O_RDWR | libc::O_CREAT).unwrap();
    file.fallocate(0, 0, 2 * H).unwrap();
    expect_pool(0, 0);
    let again = Fd::open(&path, libc::O_RDWR | libc::O_TRUNC).unwrap();
    expect_pool(2, 0);
    assert_eq!(again.stat().st_size, 0);
}

fn memory_goes_with_the_mount() {
    huge::pool(2);
    let mount = HugeFs::mount("");
    let path = format!("{}/stays", mount.path);
    Fd::open(&path, libc::O_RDWR | libc::O_CREAT).unwrap().fallocate(0, 0, 2 * H).unwrap();
    expect_pool(0, 0);
    child::in_child(|| {
        // Closed, its name holds it.
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * H);
    });
    drop(mount);
    huge::expect_counters(huge::Counters { total: 2, free: 2, reserved: 0, surplus: 0 });
}
