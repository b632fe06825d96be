//! What calls that advise on, lock and look into memory answer to bad and odd arguments: tables that were read off Linux 6.12.

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::{
    Answer, advise, by_kind, call, map, memory, protect, remap, unmap, with_gap,
};
use roundtable_programs::mem::{ANON, FIXED, Map, PRIVATE, R, RW};
use roundtable_programs::rows::{Rows, name};
use roundtable_programs::sys::PAGE;
use roundtable_programs::{Errno, row, tests};

tests! { advice_by_kind, mlock_by_kind, msync_and_mincore, policies, memory_from_outside, without_privilege, places_of_huge_pages }

/// The end of user space with tables of five levels, and flags for mmap and mremap.
const END: usize = (1 << 56) - PAGE;
const HUGETLB: i32 = libc::MAP_HUGETLB;
const NOREPLACE: i32 = libc::MAP_FIXED_NOREPLACE;
const MAYMOVE: usize = libc::MREMAP_MAYMOVE as usize;

/// The advices that there are, and some that there are not, with what each kind of memory answers.
const ADVICE: [(i32, &str); 30] = [
    (
        -1,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
    (0, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (1, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (2, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (3, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (4, "OK OK OK EINVAL ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (
        5,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
    (
        6,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
    (
        7,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
    (8, "OK OK OK EINVAL ENOMEM EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL"),
    (9, "EINVAL EINVAL EINVAL EINVAL EINVAL OK OK EACCES EACCES OK OK EACCES EACCES EACCES OK"),
    (10, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (11, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (12, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (13, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (14, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (15, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (16, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (17, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (18, "OK OK OK OK ENOMEM EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL"),
    (19, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (20, "OK OK OK EINVAL ENOMEM OK OK OK OK OK EINVAL EINVAL EINVAL EINVAL EINVAL"),
    (21, "OK OK OK EINVAL ENOMEM OK OK OK OK OK EINVAL EINVAL EINVAL EINVAL EINVAL"),
    (22, "OK OK EINVAL OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (23, "OK OK EINVAL OK ENOMEM OK OK OK EINVAL OK OK OK EINVAL OK OK"),
    (24, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    (
        25,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
    (
        26,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
    (
        102,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
    (
        103,
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
    ),
];

fn advice_by_kind() {
    let mut rows = Rows::default();
    huge::pool(64);
    for (advice, want) in ADVICE {
        by_kind(&mut rows, &format!("madvise {advice}"), want, |at, size| advise(at, 4 * size, advice));
    }
    let (at, _) = memory("anonymous");
    row!(rows, EINVAL, advise(at + 1, PAGE, libc::MADV_DONTNEED));
    row!(rows, OK, advise(at, 0, libc::MADV_DONTNEED));
    row!(rows, OK, advise(0, 0, libc::MADV_DONTNEED));
    row!(rows, EINVAL, advise(0, 0, 99));
    row!(rows, EINVAL, advise(at, usize::MAX, libc::MADV_DONTNEED));
    row!(rows, EINVAL, advise(at, usize::MAX - PAGE, libc::MADV_DONTNEED));
    row!(rows, ENOMEM, advise(END, PAGE, libc::MADV_DONTNEED));
    row!(rows, ENOMEM, advise(1 << 63, PAGE, libc::MADV_DONTNEED));
    row!(rows, ENOMEM, advise(0, PAGE, libc::MADV_POPULATE_READ));
    row!(rows, OK, advise(at, 1, libc::MADV_DONTNEED));
    for kind in ["huge", "huge-private", "huge-anonymous"] {
        let (at, _) = memory(kind);
        row!(rows, EINVAL, advise(at + PAGE, HUGE, libc::MADV_DONTNEED));
        row!(rows, OK, advise(at, PAGE, libc::MADV_DONTNEED));
        row!(rows, OK, advise(at, HUGE + PAGE, libc::MADV_DONTNEED));
        row!(rows, OK, advise(at + PAGE, HUGE - PAGE, libc::MADV_POPULATE_READ));
        row!(rows, OK, advise(at + PAGE, PAGE, libc::MADV_WILLNEED));
        row!(rows, EINVAL, advise(at + PAGE, PAGE, libc::MADV_DONTFORK));
        row!(rows, EINVAL, advise(at, PAGE, libc::MADV_DONTDUMP));
        row!(rows, OK, advise(at, PAGE, libc::MADV_NORMAL));
    }
    let (at, _) = memory("huge");
    row!(rows, OK, advise(at, PAGE, libc::MADV_REMOVE));
    row!(rows, OK, advise(at + PAGE, PAGE, libc::MADV_REMOVE));
    rows.finish();
}

fn mlock_by_kind() {
    let mut rows = Rows::default();
    huge::pool(64);
    let lock = |at, length| call(libc::SYS_mlock, [at, length, 0, 0, 0, 0]);
    let lock2 = |at, length, flags| call(libc::SYS_mlock2, [at, length, flags, 0, 0, 0]);
    let unlock = |at, length| call(libc::SYS_munlock, [at, length, 0, 0, 0, 0]);
    by_kind(&mut rows, "mlock", "OK OK ENOMEM OK ENOMEM OK OK OK OK OK OK OK OK OK OK", |at, size| {
        lock(at, 4 * size)
    });
    by_kind(&mut rows, "mlock2 on fault", "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK", |at, size| {
        lock2(at, 4 * size, 1)
    });
    by_kind(&mut rows, "munlock", "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK", |at, size| {
        unlock(at, 4 * size)
    });
    by_kind(&mut rows, "mlock of a byte", "OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK OK OK", |at, _| {
        lock(at + 5, 1)
    });
    by_kind(&mut rows, "mlock of nothing", "OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK OK OK", |at, _| {
        lock(at + 5, 0)
    });
    row!(rows, EINVAL, lock2(0, PAGE, 2));
    row!(rows, OK, lock2(0, 0, 0));
    row!(rows, OK, lock(0, 0));
    row!(rows, ENOMEM, lock(0, PAGE));
    row!(rows, EINVAL, lock(usize::MAX, PAGE));
    row!(rows, OK, lock(PAGE, usize::MAX));
    row!(rows, ENOMEM, lock(1 << 63, PAGE));
    row!(rows, OK, unlock(0, 0));
    row!(rows, ENOMEM, unlock(0, PAGE));
    row!(rows, EINVAL, unlock(usize::MAX, PAGE));
    row!(rows, EINVAL, unlock(PAGE, usize::MAX - PAGE));
    let all =
        [0, 1, 2, 4, 5, 8, 3, 7, 0x80].map(|flags| name(call(libc::SYS_mlockall, [flags, 0, 0, 0, 0, 0])));
    rows.check_line("mlockall", "EINVAL OK OK EINVAL OK EINVAL OK OK EINVAL", &all.join(" "));
    row!(rows, OK, call(libc::SYS_munlockall, [0; 6]));
    rows.finish();
}

fn msync_and_mincore() {
    let mut rows = Rows::default();
    huge::pool(64);
    let sync = |at, length, flags: i32| call(libc::SYS_msync, [at, length, flags as usize, 0, 0, 0]);
    let vector = Map::anonymous(4 * PAGE);
    let core = |at, length, out| call(libc::SYS_mincore, [at, length, out, 0, 0, 0]);
    for (flags, want) in [
        (0, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
        (libc::MS_SYNC, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
        (libc::MS_ASYNC, "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK"),
        (libc::MS_INVALIDATE, "OK OK OK EBUSY ENOMEM OK OK OK OK OK OK OK OK OK OK"),
    ] {
        by_kind(&mut rows, &format!("msync {flags}"), want, |at, size| sync(at, 4 * size, flags));
    }
    by_kind(&mut rows, "mincore", "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK", |at, _| {
        core(at, 4 * PAGE, vector.address)
    });
    let (at, _) = memory("file");
    row!(rows, EINVAL, sync(at, PAGE, 8));
    row!(rows, EINVAL, sync(at, PAGE, libc::MS_SYNC | libc::MS_ASYNC));
    row!(rows, OK, sync(at, PAGE, libc::MS_SYNC | libc::MS_INVALIDATE));
    row!(rows, EINVAL, sync(at + 1, PAGE, libc::MS_SYNC));
    row!(rows, OK, sync(at, 0, libc::MS_SYNC));
    row!(rows, OK, sync(0, 0, libc::MS_SYNC));
    row!(rows, ENOMEM, sync(0, PAGE, libc::MS_SYNC));
    row!(rows, OK, sync(at, usize::MAX, libc::MS_SYNC));
    row!(rows, ENOMEM, sync(at, usize::MAX - PAGE, libc::MS_SYNC));
    row!(rows, ENOMEM, sync(1 << 63, PAGE, libc::MS_SYNC));
    row!(rows, EINVAL, core(at + 1, PAGE, vector.address));
    row!(rows, OK, core(at, 0, vector.address));
    row!(rows, OK, core(at, 0, 1));
    row!(rows, EFAULT, core(at, PAGE, 1));
    row!(rows, ENOMEM, core(0, PAGE, vector.address));
    row!(rows, ENOMEM, core(at, usize::MAX, vector.address));
    row!(rows, ENOMEM, core(at, 1 << 56, vector.address));
    row!(rows, ENOMEM, core(1 << 63, PAGE, vector.address));
    row!(rows, EFAULT, core(at, PAGE, 1 << 63));
    rows.finish();
}

fn policies() {
    let mut rows = Rows::default();
    huge::pool(2);
    let at = with_gap();
    let mask = Map::anonymous(PAGE);
    let m = mask.address;
    let bind =
        |at, length, mode, mask, bits, flags| call(libc::SYS_mbind, [at, length, mode, mask, bits, flags]);
    mask.set_u64(0, 1);
    row!(rows, OK, bind(at, PAGE, 0, 0, 0, 0));
    row!(rows, EINVAL, bind(at, PAGE, 0, m, 64, 0));
    row!(rows, OK, bind(at, PAGE, 1, m, 64, 0));
    row!(rows, OK, bind(at, PAGE, 2, m, 64, 0));
    row!(rows, EINVAL, bind(at, PAGE, 2, 0, 0, 0));
    row!(rows, EINVAL, bind(at, PAGE, 9, m, 64, 0));
    row!(rows, EINVAL, bind(at, PAGE, 2, m, 64, 8));
    row!(rows, EINVAL, bind(at + 1, PAGE, 2, m, 64, 0));
    row!(rows, OK, bind(at, 0, 2, m, 64, 0));
    row!(rows, EFAULT, bind(at, 4 * PAGE, 2, m, 64, 0));
    row!(rows, OK, bind(at, usize::MAX, 2, m, 64, 0));
    row!(rows, EFAULT, bind(at, PAGE, 2, 1, 64, 0));
    row!(rows, EINVAL, bind(at, PAGE, 2, m, 1 << 40, 0));
    // Pages that lie elsewhere, and a gap behind them.
    let [local, strict] = [4, 1];
    let map = Map::anonymous(3 * PAGE);
    let gap = map.address;
    for page in [gap, gap + PAGE] {
        row!(rows, OK, advise(page, PAGE, libc::MADV_POPULATE_WRITE));
    }
    row!(rows, OK, unmap(gap + 2 * PAGE, PAGE));
    row!(rows, EIO, bind(gap, 2 * PAGE, local, 0, 0, strict));
    row!(rows, EFAULT, bind(gap, 3 * PAGE, local, 0, 0, strict));
    // A child has its parent's pages.
    let huge = Map::new(HUGE, RW, PRIVATE | ANON | HUGETLB, -1, 0).unwrap();
    huge.set(0, 1);
    in_child(|| assert_eq!(bind(huge.address, HUGE, local, 0, 0, strict), Err(Errno::EIO)));
    row!(rows, OK, call(libc::SYS_set_mempolicy, [0, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_set_mempolicy, [0, m, 64, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_set_mempolicy, [2, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_set_mempolicy, [9, m, 64, 0, 0, 0]));
    row!(rows, OK, call(libc::SYS_get_mempolicy, [0, m, 1024, 0, 4, 0]));
    row!(rows, OK, call(libc::SYS_get_mempolicy, [0, 0, 0, at, 2, 0]));
    row!(rows, EFAULT, call(libc::SYS_get_mempolicy, [0, 0, 0, 0, 2, 0]));
    row!(rows, EINVAL, call(libc::SYS_get_mempolicy, [0, 0, 0, at, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_get_mempolicy, [0, 0, 0, 0, 8, 0]));
    row!(rows, EFAULT, call(libc::SYS_get_mempolicy, [1, 0, 0, 0, 0, 0]));
    rows.finish();
}

fn memory_from_outside() {
    let mut rows = Rows::default();
    huge::pool(64);
    let mine = Map::anonymous(PAGE);
    let vectors = Map::anonymous(PAGE);
    let pid = std::process::id() as usize;
    let vm = |number, at: usize, length: usize| {
        [mine.address, length, at, length]
            .iter()
            .enumerate()
            .for_each(|(i, word)| vectors.set_u64(8 * i, *word as u64));
        call(number, [pid, vectors.address, 1, vectors.address + 16, 1, 0])
    };
    by_kind(&mut rows, "process_vm_readv", "OK OK EFAULT OK OK OK OK OK OK OK OK OK OK OK OK", |at, _| {
        vm(libc::SYS_process_vm_readv, at + 8, 8)
    });
    by_kind(
        &mut rows,
        "process_vm_writev",
        "OK OK EFAULT OK OK OK OK OK EFAULT OK OK OK EFAULT OK OK",
        |at, _| vm(libc::SYS_process_vm_writev, at + 8, 8),
    );
    let memory_file = Fd::open("/proc/self/mem", libc::O_RDWR).unwrap();
    by_kind(&mut rows, "read of mem", "OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK", |at, _| {
        memory_file.read_at(&mut [0; 8], at as u64 + 8)
    });
    by_kind(&mut rows, "write of mem", "OK OK OK OK OK OK OK OK EIO OK OK OK EIO OK OK", |at, _| {
        memory_file.write_at(&[7; 8], at as u64 + 8)
    });
    // The same without access: only who traces gets at it.
    const FAULT: &str = "EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT";
    const ANY: &str = "OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK";
    const FORCED: &str = "OK OK OK OK OK EIO EIO OK EIO EIO EIO EIO EIO EIO EIO";
    const UNREADABLE: &str =
        "EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT OK EFAULT EFAULT EFAULT OK EFAULT EFAULT";
    const WRITABLE: &str = "OK OK OK OK OK OK OK OK EFAULT OK OK OK EFAULT OK OK";
    const WRITTEN: &str = "OK OK OK OK OK OK OK OK EIO OK OK OK EIO OK OK";
    for (text, prot, want) in [
        ("readv", 0, FAULT),
        ("writev", 0, FAULT),
        ("read", 0, ANY),
        ("write", 0, FORCED),
        ("readv", 1, ANY),
        ("writev", 1, FAULT),
        ("read", 1, ANY),
        ("write", 1, FORCED),
        ("readv", 4, FAULT),
        ("writev", 4, FAULT),
        ("read", 4, ANY),
        ("write", 4, FORCED),
        ("readv", 2, UNREADABLE),
        ("writev", 2, WRITABLE),
        ("read", 2, ANY),
        ("write", 2, WRITTEN),
    ] {
        by_kind(&mut rows, &format!("{text} with rights {prot}"), want, |at, size| {
            let _ = protect(at, 2 * size, prot);
            match text {
                "readv" => vm(libc::SYS_process_vm_readv, at + 8, 8),
                "writev" => vm(libc::SYS_process_vm_writev, at + 8, 8),
                "read" => memory_file.read_at(&mut [0; 8], at as u64 + 8),
                _ => memory_file.write_at(&[7; 8], at as u64 + 8),
            }
        });
    }
    row!(rows, EFAULT, vm(libc::SYS_process_vm_readv, 0, 8));
    row!(rows, EFAULT, vm(libc::SYS_process_vm_readv, 1 << 63, 8));
    row!(rows, OK, vm(libc::SYS_process_vm_readv, 0, 0));
    row!(rows, EINVAL, call(libc::SYS_process_vm_readv, [pid, vectors.address, 1, vectors.address, 1, 1]));
    row!(rows, EINVAL, call(libc::SYS_process_vm_readv, [pid, vectors.address, 1025, vectors.address, 1, 0]));
    row!(rows, OK, call(libc::SYS_process_vm_readv, [pid, vectors.address, 1, vectors.address, 1025, 0]));
    row!(rows, EFAULT, call(libc::SYS_process_vm_readv, [pid, 1, 1, vectors.address, 1, 0]));
    row!(
        rows,
        OK,
        call(libc::SYS_process_vm_readv, [0x7fff_fff0, vectors.address, 1, vectors.address, 1, 0])
    );
    row!(rows, EIO, memory_file.read_at(&mut [0; 8], 0));
    row!(rows, EIO, memory_file.write_at(&[0; 8], 0));
    row!(rows, EINVAL, memory_file.read_at(&mut [0; 8], 1 << 63));
    // What is forced into a mapping without write access is the process's own, and seen by it.
    let file = Fd::of_pages(1);
    let map = file.map(PAGE, R, PRIVATE).unwrap();
    row!(rows, OK, memory_file.write_at(&[9], map.address as u64));
    assert_eq!((map.get(0), map.get(1)), (9, 1));
    let mut kept = [0];
    assert_eq!(file.read_at(&mut kept, 0), Ok(1));
    assert_eq!(kept, [1], "the file has what was stored into a private mapping");
    let probe = roundtable_programs::fault::write(map.address, 5);
    assert!(probe.is_err(), "a page without write access is writable after a store from outside");
    rows.finish();
}

/// As a user without privileges: limits and permissions.
fn without_privilege() {
    huge::pool(4);
    let check = "/sys/kernel/mm/hugepages/sharing/check";
    let is_root_only = Fd::open(check, libc::O_RDONLY).map(|fd| fd.stat().st_mode & 0o7777);
    assert!(matches!(is_root_only, Ok(0o400) | Err(Errno::ENOENT)), "{is_root_only:?}");
    let limit = libc::rlimit { rlim_cur: 4 * PAGE as u64, rlim_max: HUGE as u64 };
    // SAFETY: the limit lives through the call; the other calls take integers.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(1000, 1000, 1000), 0);
        assert_eq!(libc::setresuid(1000, 1000, 1000), 0);
    }
    let mut rows = Rows::default();
    let any = PRIVATE | ANON;
    row!(rows, EPERM, map(0, 4 * PAGE, RW, any | FIXED, -1, 0));
    row!(rows, EPERM, map(0, PAGE, RW, any | FIXED, -1, 0));
    row!(rows, EPERM, map(0x1000, PAGE, RW, any | NOREPLACE, -1, 0));
    row!(rows, OK, map(0x1000, PAGE, RW, any, -1, 0));
    row!(rows, EAGAIN, map(0, 8 * PAGE, RW, any | libc::MAP_LOCKED, -1, 0));
    row!(rows, OK, map(0, 2 * PAGE, RW, any | libc::MAP_LOCKED, -1, 0));
    let at = map(0, 64 * PAGE, RW, any, -1, 0).unwrap();
    let lock = |at, length| call(libc::SYS_mlock, [at, length, 0, 0, 0, 0]);
    row!(rows, ENOMEM, lock(at, 8 * PAGE));
    row!(rows, OK, lock(at, 2 * PAGE));
    row!(rows, OK, lock(at, 2 * PAGE));
    row!(rows, ENOMEM, lock(at + 8 * PAGE, 2 * PAGE));
    row!(rows, EAGAIN, remap(at, 2 * PAGE, 16 * PAGE, MAYMOVE, 0));
    row!(rows, ENOMEM, call(libc::SYS_mlockall, [1, 0, 0, 0, 0, 0]));
    row!(rows, OK, call(libc::SYS_mlockall, [2, 0, 0, 0, 0, 0]));
    row!(rows, EAGAIN, map(0, 8 * PAGE, RW, any, -1, 0));
    row!(rows, OK, call(libc::SYS_munlockall, [0; 6]));
    row!(rows, OK, map(0, HUGE, RW, any | HUGETLB, -1, 0));
    let segment = |size| call(libc::SYS_shmget, [0, size, libc::SHM_HUGETLB as usize | 0o600, 0, 0, 0]);
    row!(rows, EPERM, segment(HUGE));
    let more = libc::rlimit { rlim_cur: HUGE as u64, ..limit };
    // SAFETY: the limit lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &more) }, 0);
    // What may be locked permits no segment, since Linux 5.16.
    row!(rows, EPERM, segment(HUGE));
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) }, 0);
    row!(rows, OK, Fd::memfd("x", libc::MFD_HUGETLB).map(|_| 0));
    row!(rows, EPERM, advise(at, PAGE, libc::MADV_HWPOISON));
    row!(rows, EPERM, advise(at, PAGE, libc::MADV_SOFT_OFFLINE));
    row!(rows, EACCES, Fd::open(check, libc::O_RDONLY).map(|_| 0).or_else(not_there));
    row!(rows, EACCES, Fd::open("/proc/1/mem", libc::O_RDONLY).map(|_| 0));
    row!(rows, EACCES, Fd::open("/proc/1/maps", libc::O_RDONLY).map(|_| 0));
    row!(rows, EACCES, Fd::open("/proc/sys/vm/nr_hugepages", libc::O_WRONLY).map(|_| 0));
    rows.finish();
}

/// Linux has no such file: nobody reads it there either.
fn not_there(error: Errno) -> Answer {
    Err(if error == Errno::ENOENT { Errno::EACCES } else { error })
}

/// Where huge pages are to be is looked at first: also what mremap is given without being told to use it, and before the seals of a file.
fn places_of_huge_pages() {
    let mut rows = Rows::default();
    huge::pool(4);
    let place = Map::reserve(4 * HUGE, HUGE).address;
    let file = Fd::memfd("sealed", libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING).unwrap();
    file.truncate(2 * HUGE as u64).unwrap();
    let seal = |seals: usize| {
        call(libc::SYS_fcntl, [file.raw() as usize, libc::F_ADD_SEALS as usize, seals, 0, 0, 0])
    };
    row!(rows, OK, seal(libc::F_SEAL_WRITE as usize));
    let sealed = |at, flags, offset| map(at, HUGE, RW, flags, file.raw(), offset);
    row!(rows, EPERM, sealed(0, libc::MAP_SHARED, 0));
    row!(rows, EPERM, sealed(place, libc::MAP_SHARED | FIXED, 0));
    row!(rows, EINVAL, sealed(place + PAGE, libc::MAP_SHARED | FIXED, 0));
    row!(rows, EINVAL, sealed(place + PAGE, libc::MAP_SHARED | NOREPLACE, 0));
    row!(rows, EPERM, sealed(place, libc::MAP_SHARED | FIXED, PAGE));
    row!(rows, ENOMEM, sealed(END & !(HUGE - 1), libc::MAP_SHARED | FIXED, 0));
    row!(rows, OK, map(place, 2 * HUGE, RW, PRIVATE | ANON | HUGETLB | FIXED, -1, 0));
    row!(rows, OK, remap(place, 2 * HUGE, 2 * HUGE, MAYMOVE, 0));
    row!(rows, EINVAL, remap(place, 2 * HUGE, 2 * HUGE, MAYMOVE, PAGE));
    row!(rows, EINVAL, remap(place, 2 * HUGE, HUGE, 0, place + PAGE));
    row!(rows, OK, remap(place, 2 * HUGE, HUGE, 0, place + HUGE));
    rows.finish();
}
