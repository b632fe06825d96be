//! Huge memory without a mount: MAP_HUGETLB, memfd_create, SysV segments.

use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE, expect_pool};
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, SHARED};
use roundtable_programs::{Errno, child, sys, tests};

tests! { anonymous_private, anonymous_shared, size_in_flags, size_that_is_not_there, memfd, memfd_sizes, memfd_seals,
segment, segment_outlives_its_maker, segment_is_removed_at_last_detach, segment_size_is_rounded, segment_read_only,
segment_without_pages, map_hugetlb_of_a_huge_file, map_hugetlb_of_another_file }

fn anonymous_private() {
    huge::pool(4);
    let map = Map::new(3 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    assert!(map.is_all(0, 3 * HUGE, 0));
    map.set(3 * HUGE - 1, 1);
    expect_pool(1, 0);
    drop(map);
    expect_pool(4, 0);
    let map = Map::new(3 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    assert!(map.is_all(0, 3 * HUGE, 0), "a page used before is zeroed");
}

fn anonymous_shared() {
    huge::pool(2);
    let map = Map::new(HUGE, RW, SHARED | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    expect_pool(2, 1);
    map.set(0, 1);
    drop(map);
    expect_pool(2, 0);
}

fn size_in_flags() {
    huge::pool(2);
    let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, -1, 0).unwrap();
    map.set(0, 1);
    expect_pool(1, 0);
}

fn size_that_is_not_there() {
    // 16 MiB is no size of this architecture.
    let result = Map::new(16 << 20, RW, PRIVATE | ANON | libc::MAP_HUGETLB | 24 << 26, -1, 0);
    assert_eq!(result.err(), Some(Errno::EINVAL));
    let result = Fd::memfd("x", libc::MFD_HUGETLB | 24 << 26);
    assert_eq!(result.err(), Some(Errno::ENODEV));
}

fn memfd() {
    huge::pool(4);
    let file = Fd::memfd("name", libc::MFD_HUGETLB).unwrap();
    assert_eq!((file.stat().st_size, file.stat().st_nlink), (0, 0));
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.raw())).unwrap();
    assert_eq!(link.to_str(), Some("/memfd:name (deleted)"));
    file.truncate(2 * HUGE as u64).unwrap();
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(HUGE, 4);
    child::in_child(|| assert_eq!(file.map_at(HUGE as u64, HUGE, R, SHARED).unwrap().get(0), 4));
    assert_eq!(file.statfs().f_type, huge::MAGIC);
}

fn memfd_sizes() {
    huge::pool(1);
    let file = Fd::memfd("two", libc::MFD_HUGETLB | libc::MFD_HUGE_2MB).unwrap();
    assert_eq!(file.stat().st_blksize, HUGE as i64);
}

fn memfd_seals() {
    huge::pool(2);
    let file = Fd::memfd("sealed", libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING).unwrap();
    file.truncate(HUGE as u64).unwrap();
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: takes integers.
    sys::check(unsafe { libc::fcntl(file.raw(), libc::F_ADD_SEALS, seals) }).unwrap();
    assert_eq!(file.truncate(0), Err(Errno::EPERM));
    assert_eq!(file.truncate(2 * HUGE as u64), Err(Errno::EPERM));
    // SAFETY: takes integers.
    assert_eq!(sys::check(unsafe { libc::fcntl(file.raw(), libc::F_GET_SEALS) }), Ok(seals as usize));
}

/// A SysV segment; removed when dropped.
struct Segment(i32);

impl Segment {
    fn new(size: usize) -> Result<Segment, Errno> {
        let flags = libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600;
        // SAFETY: takes integers.
        sys::check(unsafe { libc::shmget(libc::IPC_PRIVATE, size, flags) }).map(|id| Segment(id as i32))
    }

    fn attach(&self, flags: i32) -> Result<usize, Errno> {
        // SAFETY: the kernel chooses the address.
        let address = unsafe { libc::shmat(self.0, std::ptr::null(), flags) };
        if address as isize == -1 { Err(Errno::last()) } else { Ok(address as usize) }
    }

    fn stat(&self) -> libc::shmid_ds {
        // SAFETY: a shmid_ds of zeros is valid, and the call fills it.
        unsafe {
            let mut stat: libc::shmid_ds = std::mem::zeroed();
            sys::check(libc::shmctl(self.0, libc::IPC_STAT, &mut stat)).expect("IPC_STAT");
            stat
        }
    }

    fn remove(&self) -> Result<usize, Errno> {
        // SAFETY: takes integers.
        sys::check(unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

fn detach(address: usize) -> Result<usize, Errno> {
    // SAFETY: tests detach what they have attached.
    sys::check(unsafe { libc::shmdt(address as *const _) })
}

fn byte(address: usize) -> &'static std::sync::atomic::AtomicU8 {
    // SAFETY: tests read and write what they have attached.
    unsafe { std::sync::atomic::AtomicU8::from_ptr(address as *mut u8) }
}

use std::sync::atomic::Ordering::SeqCst;

fn segment() {
    huge::pool(4);
    let segment = Segment::new(2 * HUGE).unwrap();
    expect_pool(4, 2);
    let address = segment.attach(0).unwrap();
    assert_eq!(address % HUGE, 0);
    byte(address).store(1, SeqCst);
    expect_pool(3, 1);
    assert_eq!((segment.stat().shm_segsz, segment.stat().shm_nattch), (2 * HUGE, 1));
    child::in_child(|| {
        assert_eq!(segment.stat().shm_nattch, 2);
        assert_eq!(byte(address).swap(2, SeqCst), 1);
        let again = segment.attach(0).unwrap();
        assert_eq!(byte(again).load(SeqCst), 2);
    });
    assert_eq!(byte(address).load(SeqCst), 2);
    detach(address).unwrap();
    drop(segment);
    expect_pool(4, 0);
}

fn segment_outlives_its_maker() {
    huge::pool(2);
    let segment = Segment::new(HUGE).unwrap();
    child::in_child(|| {
        let address = segment.attach(0).unwrap();
        byte(address).store(6, SeqCst);
    });
    expect_pool(1, 0);
    assert_eq!(segment.stat().shm_nattch, 0);
    let address = segment.attach(0).unwrap();
    assert_eq!(byte(address).load(SeqCst), 6);
    detach(address).unwrap();
}

fn segment_is_removed_at_last_detach() {
    huge::pool(2);
    let segment = Segment::new(HUGE).unwrap();
    let address = segment.attach(0).unwrap();
    byte(address).store(3, SeqCst);
    segment.remove().unwrap();
    assert_eq!(byte(address).load(SeqCst), 3);
    expect_pool(1, 0);
    detach(address).unwrap();
    expect_pool(2, 0);
    assert_eq!(segment.remove(), Err(Errno::EINVAL));
}

fn segment_size_is_rounded() {
    huge::pool(2);
    let segment = Segment::new(HUGE + 1).unwrap();
    assert_eq!(segment.stat().shm_segsz, HUGE + 1);
    expect_pool(2, 2);
}

fn segment_read_only() {
    huge::pool(2);
    let segment = Segment::new(HUGE).unwrap();
    let address = segment.attach(libc::SHM_RDONLY).unwrap();
    assert_eq!(roundtable_programs::fault::read(address), Ok(0));
    let expected = roundtable_programs::fault::Fault::forbidden(address);
    assert_eq!(roundtable_programs::fault::write(address, 1), Err(expected));
    detach(address).unwrap();
}

fn segment_without_pages() {
    huge::pool(1);
    assert_eq!(Segment::new(2 * HUGE).err(), Some(Errno::ENOMEM));
    expect_pool(1, 0);
}

fn map_hugetlb_of_a_huge_file() {
    huge::pool(1);
    let file = huge::sized(1);
    // With a file the flag says nothing new.
    let map = file.map(HUGE, RW, SHARED | libc::MAP_HUGETLB).unwrap();
    map.set(0, 1);
    assert_eq!(file.map(HUGE, R, SHARED).unwrap().get(0), 1);
}

fn map_hugetlb_of_another_file() {
    let file = Fd::temporary();
    file.truncate(HUGE as u64).unwrap();
    assert_eq!(file.map(HUGE, RW, SHARED | libc::MAP_HUGETLB).err(), Some(Errno::EINVAL));
}
