//! Huge pages for tests: the pool, mounts of hugetlbfs, files on them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::file::Fd;
use crate::mem::{NORESERVE, RW, SHARED, mmap};
use crate::procfs::{self, Meminfo};
use crate::sys::{c_string, check, settles};

/// The size of the huge pages that most tests use.
pub const HUGE: usize = 2 << 20;
pub const GIB: usize = 1 << 30;
/// `f_type` of hugetlbfs.
pub const MAGIC: i64 = 0x9584_58f6;

const NR: &str = "/proc/sys/vm/nr_hugepages";
const OVERCOMMIT: &str = "/proc/sys/vm/nr_overcommit_hugepages";

/// The pool's counters, in huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    pub total: u64,
    pub free: u64,
    pub reserved: u64,
    pub surplus: u64,
}

pub fn counters() -> Counters {
    let meminfo = Meminfo::read();
    Counters {
        total: meminfo.get("HugePages_Total"),
        free: meminfo.get("HugePages_Free"),
        reserved: meminfo.get("HugePages_Rsvd"),
        surplus: meminfo.get("HugePages_Surp"),
    }
}

/// Expects the counters to become these; the kernel may take a moment, as for pages of a process just killed.
#[track_caller]
pub fn expect_counters(expected: Counters) {
    settles(Duration::from_secs(3), || counters() == expected);
    assert_eq!(counters(), expected);
}

/// Expects so many pages free and so many reserved.
#[track_caller]
pub fn expect_pool(free: u64, reserved: u64) {
    let now = counters();
    assert_eq!((now.free, now.reserved), (free, reserved), "(free, reserved); {now:?}");
}

/// Sets the number of persistent pages; gives what it came to.
pub fn set_pool(pages: u64) -> u64 {
    procfs::write(NR, pages).expect("nr_hugepages");
    procfs::number(NR)
}

pub fn set_overcommit(pages: u64) {
    procfs::write(OVERCOMMIT, pages).expect("nr_overcommit_hugepages");
}

/// Sets the pool to so many pages, all of them free.
#[track_caller]
pub fn pool(pages: u64) {
    set_overcommit(0);
    assert_eq!(set_pool(pages), pages, "no memory for the pool");
    expect_counters(Counters { total: pages, free: pages, reserved: 0, surplus: 0 });
}

/// A mount of hugetlbfs; gone when dropped.
pub struct HugeFs {
    pub path: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl HugeFs {
    /// Mounts one with these options.
    pub fn try_mount(options: &str) -> Result<HugeFs, Errno> {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = format!("/tmp/huge-{}-{number}", crate::sys::pid());
        std::fs::create_dir_all(&path).expect("mkdir");
        HugeFs::try_mount_at(&path, options)
    }

    /// Mounts one over a folder.
    #[track_caller]
    pub fn mount_at(path: &str, options: &str) -> HugeFs {
        HugeFs::try_mount_at(path, options).expect("mount of hugetlbfs")
    }

    fn try_mount_at(path: &str, options: &str) -> Result<HugeFs, Errno> {
        let path = path.to_string();
        let (source, target, kind, data) =
            (c_string("none"), c_string(&path), c_string("hugetlbfs"), c_string(options));
        // SAFETY: all are NUL-terminated and live through the call.
        let result =
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) };
        match check(result) {
            Ok(_) => Ok(HugeFs { path }),
            Err(error) => {
                let _ = std::fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    #[track_caller]
    pub fn mount(options: &str) -> HugeFs {
        HugeFs::try_mount(options).expect("mount of hugetlbfs")
    }

    /// A file that has its name only until it is open.
    pub fn file(&self) -> Fd {
        let path = format!("{}/file", self.path);
        let fd = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).expect("file on hugetlbfs");
        std::fs::remove_file(&path).expect("unlink");
        fd
    }
}

impl Drop for HugeFs {
    fn drop(&mut self) {
        let path = c_string(&self.path);
        // SAFETY: the path is NUL-terminated. A fork's copy finds it gone already; detached when files are open.
        if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } == 0 {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// A file of huge pages without a mount.
pub fn file() -> Fd {
    Fd::memfd("huge", libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create(MFD_HUGETLB)")
}

/// A file of so many huge pages' size, none of them there yet.
pub fn sized(pages: usize) -> Fd {
    let fd = file();
    fd.truncate((pages * HUGE) as u64).expect("ftruncate");
    fd
}

/// Maps windows of one file: each is another part of it, and all have the pages in the middle of the first GiB or of
/// the second. The first one begins with the file. Address and length of each.
pub fn windows(file: &Fd, count: usize) -> Vec<(usize, usize)> {
    const EACH: usize = 200;
    let window = |index: usize| {
        let (piece, index) = (index / (EACH * EACH) * 512, index % (EACH * EACH));
        let (first, last) = (index / EACH, 512 - EACH + index % EACH + 1);
        let (length, offset) = ((last - first) * HUGE, ((piece + first) * HUGE) as i64);
        let address = mmap(0, length, RW, SHARED | NORESERVE, file.raw(), offset).expect("mmap");
        (address, length)
    };
    (0..count).map(window).collect()
}

/// What a test writes into huge page `index` of a file and looks for later.
pub fn stamp(file: u64, index: usize) -> u64 {
    (0x5a5a_0000_0000_0000 | file << 32) ^ index as u64
}
