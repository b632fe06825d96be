//! The content of files in memory: holes, limits, calls beside mappings, times.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use roundtable_programs::child::{self, End, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{Map, PRIVATE, R, RW, SHARED};
use roundtable_programs::place::{Place, lstat, truncate, unlink};
use roundtable_programs::procfs::{Meminfo, number};
use roundtable_programs::sys::{self, check};
use roundtable_programs::{Errno, tests};

tests! { holes_read_as_zeroes, seek_data_and_hole, appends_to_what_has_no_end, stores_by_a_mapping_are_data, allocate_and_punch, full_file_system, grow_over_old_bytes,
appends_of_many_processes: 60, mapping_and_calls_see_each_other, truncation_reaches_mappings,
private_mappings_keep_copies, write_from_its_own_mapping, read_into_its_own_mapping, bad_addresses, vectors,
positions_are_shared_by_dup, size_limit_signal, sendfile_and_copy, times, memory_comes_back: 120,
close_while_reading: 60, writes_outlive_faults_behind_a_truncation: 60,
a_failed_allocation_keeps_stores: 60, a_failed_write_keeps_what_was_allocated }

const PAGE: u64 = 4096;

fn seek(fd: &Fd, to: i64, whence: i32) -> Result<usize, Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::lseek(fd.raw(), to, whence) })
}

fn ignore<T>(_: T) {}

fn read_all(fd: &Fd) -> Vec<u8> {
    let mut buffer = vec![0xee; fd.stat().st_size as usize + 10];
    let count = fd.read_at(&mut buffer, 0).unwrap();
    buffer.truncate(count);
    buffer
}

fn holes_read_as_zeroes() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.write_at(b"end", 5 * PAGE + 7).unwrap();
    let content = read_all(&fd);
    assert_eq!(content.len() as u64, 5 * PAGE + 10);
    assert!(content[..5 * PAGE as usize + 7].iter().all(|b| *b == 0));
    assert_eq!(fd.stat().st_blocks, 8);
    // Reading allocates nothing.
    assert_eq!(p.open("f", libc::O_RDONLY).unwrap().statfs().f_blocks - fd.statfs().f_bfree, 1);
    fd.truncate(1 << 40).unwrap();
    let mut byte = [1];
    assert_eq!((fd.read_at(&mut byte, (1 << 40) - 1), byte), (Ok(1), [0]));
    assert_eq!(fd.read_at(&mut byte, 1 << 40), Ok(0));
    assert_eq!(fd.truncate(u64::MAX), Err(Errno::EINVAL));
    assert_eq!(fd.write_at(b"0123456789", i64::MAX as u64 - 5), Err(Errno::EINVAL));
}

fn seek_data_and_hole() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.write_at(b"x", 2 * PAGE).unwrap();
    fd.write_at(b"x", 5 * PAGE).unwrap();
    fd.truncate(8 * PAGE).unwrap();
    let page = PAGE as i64;
    assert_eq!(seek(&fd, 0, libc::SEEK_DATA), Ok(2 * PAGE as usize));
    assert_eq!(seek(&fd, 0, libc::SEEK_HOLE), Ok(0));
    assert_eq!(seek(&fd, 2 * page + 5, libc::SEEK_DATA), Ok(2 * PAGE as usize + 5));
    assert_eq!(seek(&fd, 2 * page + 5, libc::SEEK_HOLE), Ok(3 * PAGE as usize));
    assert_eq!(seek(&fd, 3 * page, libc::SEEK_DATA), Ok(5 * PAGE as usize));
    assert_eq!(seek(&fd, 6 * page, libc::SEEK_DATA), Err(Errno::ENXIO));
    assert_eq!(seek(&fd, 6 * page, libc::SEEK_HOLE), Ok(6 * PAGE as usize));
    assert_eq!(seek(&fd, 8 * page, libc::SEEK_HOLE), Err(Errno::ENXIO));
    assert_eq!(seek(&fd, -1, libc::SEEK_SET), Err(Errno::EINVAL));
    assert_eq!(seek(&fd, 10, 9), Err(Errno::EINVAL));
    let (read, _write) = pipe(0);
    assert_eq!(seek(&read, 0, libc::SEEK_SET), Err(Errno::ESPIPE));
}

/// RWF_APPEND means nothing to files that do not append: they are written where they stand, by position or offset.
fn appends_to_what_has_no_end() {
    const RWF_APPEND: usize = 0x10;
    let text = *b"77";
    let vector = libc::iovec { iov_base: text.as_ptr() as *mut _, iov_len: text.len() };
    let write = |fd: &Fd, at: usize| {
        call(libc::SYS_pwritev2, [fd.raw() as usize, &raw const vector as usize, 1, at, 0, RWF_APPEND])
    };
    let path = "/proc/sys/vm/overcommit_ratio";
    for at in [usize::MAX, 0] {
        let setting = Fd::open(path, libc::O_WRONLY).unwrap();
        assert_eq!(write(&setting, at), Ok(text.len()), "{at}");
        assert_eq!(number(path), 77);
        std::fs::write(path, "50").unwrap();
    }
    // Memory is written at the address that is asked for, or, by Linux, not at all with such a flag.
    let mut bytes = [0u8; 2];
    let memory = Fd::open("/proc/self/mem", libc::O_RDWR).unwrap();
    let written = write(&memory, bytes.as_mut_ptr() as usize);
    let expected = if written == Err(Errno::EOPNOTSUPP) { [0; 2] } else { text };
    assert_eq!(std::hint::black_box(bytes), expected, "{written:?}");
}

/// Also where the pages were there before, and the mapping has had no fault on them: who copies a file by its holes loses nothing.
fn stores_by_a_mapping_are_data() {
    const MIB: usize = 1 << 20;
    for pages in [16, 4 * MIB / PAGE as usize] {
        let fd = Fd::memfd("data", 0).unwrap();
        let length = pages * PAGE as usize;
        fd.truncate(2 * length as u64).unwrap();
        fd.fallocate(0, 0, length as u64).unwrap();
        let map = fd.map(length, RW, SHARED).unwrap();
        // Neither what was only allocated is data, nor a neighbour of what was stored to.
        map.set(3 * PAGE as usize, 7);
        assert_eq!(seek(&fd, 0, libc::SEEK_DATA), Ok(3 * PAGE as usize));
        assert_eq!(seek(&fd, 3 * PAGE as i64, libc::SEEK_HOLE), Ok(4 * PAGE as usize));
        for page in 0..pages {
            map.set(page * PAGE as usize, 7);
        }
        assert_eq!(seek(&fd, 0, libc::SEEK_DATA), Ok(0));
        assert_eq!(seek(&fd, 0, libc::SEEK_HOLE), Ok(length));
        assert_eq!(seek(&fd, length as i64, libc::SEEK_DATA), Err(Errno::ENXIO));
    }
}

fn allocate_and_punch() {
    let p = Place::new("size=1m");
    let fd = p.create("f");
    fd.fallocate(0, 0, 10 * PAGE).unwrap();
    assert_eq!((fd.stat().st_size as u64, fd.stat().st_blocks), (10 * PAGE, 80));
    fd.fallocate(libc::FALLOC_FL_KEEP_SIZE, 10 * PAGE, PAGE).unwrap();
    assert_eq!((fd.stat().st_size as u64, fd.stat().st_blocks), (10 * PAGE, 88));
    // Setting the size to what it is takes away what lies behind it.
    fd.truncate(10 * PAGE).unwrap();
    assert_eq!(fd.stat().st_blocks, 80);
    fd.write_at(&vec![7; 10 * PAGE as usize], 0).unwrap();
    fd.punch(PAGE + 100, 3 * PAGE).unwrap();
    let content = read_all(&fd);
    let zero = PAGE as usize + 100..4 * PAGE as usize + 100;
    assert!(content.iter().enumerate().all(|(i, b)| (*b == 0) == zero.contains(&i)));
    assert_eq!((fd.stat().st_size as u64, fd.stat().st_blocks), (10 * PAGE, 64));
    fd.punch(9 * PAGE + 1, 100 * PAGE).unwrap();
    assert_eq!(fd.stat().st_size as u64, 10 * PAGE);
    assert_eq!(fd.fallocate(libc::FALLOC_FL_PUNCH_HOLE, 0, PAGE), Err(Errno::EOPNOTSUPP));
    assert_eq!(fd.fallocate(0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(fd.fallocate(0, i64::MAX as u64, 10), Err(Errno::EFBIG));
    // All or nothing.
    let before = fd.stat().st_blocks;
    assert_eq!(fd.fallocate(0, 0, 1 << 21), Err(Errno::ENOSPC));
    assert_eq!(fd.stat().st_blocks, before);
}

/// A call that fails takes back what it has allocated, but for pages that somebody has found and stored to before it failed.
fn a_failed_allocation_keeps_stores() {
    const ALL: usize = 4096;
    let p = Place::new("size=16m");
    let (fd, numbers) = (p.create("f"), Fd::memfd("numbers", 0).unwrap());
    let bytes: Vec<u8> = (1..=ALL as u64).flat_map(u64::to_ne_bytes).collect();
    numbers.write_at(&bytes, 0).unwrap();
    fd.truncate(ALL as u64 * PAGE).unwrap();
    let map = fd.map(ALL * PAGE as usize, RW, SHARED).unwrap();
    // By a call, which finds out if there is no room; in user mode that would be a signal.
    let store = |page: usize| {
        let to = map.address + page * PAGE as usize;
        call(libc::SYS_pread64, [numbers.raw() as usize, to, 8, 8 * page, 0, 0]) == Ok(8)
    };
    let failed = AtomicBool::new(false);
    let mut sum = 0;
    while sum < 100 {
        fd.punch(0, ALL as u64 * PAGE).unwrap();
        let other = p.create("other");
        other.fallocate(0, 0, 64 * PAGE).unwrap();
        failed.store(false, Ordering::SeqCst);
        let stored: Vec<usize> = std::thread::scope(|scope| {
            let stores = scope.spawn(|| {
                let (mut stored, mut page) = (Vec::new(), 0);
                while page < ALL / 2 && !failed.load(Ordering::SeqCst) {
                    let allocated = fd.stat().st_blocks as usize / 8;
                    while page < allocated / 2 && !failed.load(Ordering::SeqCst) {
                        stored.extend(Some(page).filter(|page| store(*page)));
                        page += 1;
                    }
                }
                stored
            });
            // It fails at the last pages.
            assert_eq!(fd.fallocate(0, 0, ALL as u64 * PAGE), Err(Errno::ENOSPC));
            failed.store(true, Ordering::SeqCst);
            stores.join().unwrap()
        });
        unlink(&p.path("other")).unwrap();
        drop(other);
        for page in &stored {
            let found = map.get_u64(page * PAGE as usize);
            assert_eq!(found, 1 + *page as u64, "page {page} of {}", stored.len());
        }
        sum += stored.len();
    }
}

/// A write that fails gives no page back that was promised before.
fn a_failed_write_keeps_what_was_allocated() {
    let p = Place::new("size=1m");
    let fd = p.create("f");
    fd.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, PAGE).unwrap();
    let write = |at: u64| call(libc::SYS_pwrite64, [fd.raw() as usize, 8, 100, at as usize, 0, 0]);
    assert_eq!((write(0), fd.stat().st_blocks), (Err(Errno::EFAULT), 8));
    assert_eq!((write(PAGE), fd.stat().st_blocks), (Err(Errno::EFAULT), 8));
    assert_eq!(fd.stat().st_size, 0);
}

fn full_file_system() {
    let p = Place::new("size=64k");
    let fd = p.create("f");
    assert_eq!(fd.write(&[1; 100_000]), Ok(65536));
    assert_eq!(fd.write(b"x"), Err(Errno::ENOSPC));
    assert_eq!(p.create("g").write(b"x"), Err(Errno::ENOSPC));
    assert_eq!((fd.statfs().f_blocks, fd.statfs().f_bfree), (16, 0));
    // What is there can be overwritten; what a mapping cannot get is a signal.
    assert_eq!(fd.write_at(&[2; 65536], 0), Ok(65536));
    fd.truncate(20 * PAGE).unwrap();
    let end = child::fork(|| {
        let map = fd.map(20 * PAGE as usize, RW, SHARED).unwrap();
        map.set(17 * PAGE as usize, 1);
    })
    .wait();
    assert_eq!(end, End::Signal(libc::SIGBUS));
    unlink(&p.path("f")).unwrap();
    assert_eq!(fd.statfs().f_bfree, 0);
    drop(fd);
    assert_eq!(p.create("g").statfs().f_bfree, 16);
}

fn grow_over_old_bytes() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.write(&[9; 3000]).unwrap();
    fd.truncate(1000).unwrap();
    fd.truncate(3000).unwrap();
    assert!(read_all(&fd)[1000..].iter().all(|b| *b == 0));
    fd.truncate(1000).unwrap();
    fd.write_at(b"x", 2000).unwrap();
    assert!(read_all(&fd)[1000..2000].iter().all(|b| *b == 0));
}

fn appends_of_many_processes() {
    const RECORD: usize = 5000;
    let p = Place::new("");
    let children: Vec<_> = (1..=4u8)
        .map(|id| {
            let fd = p.open("log", libc::O_CREAT | libc::O_WRONLY | libc::O_APPEND).unwrap();
            child::fork(move || (0..100).for_each(|_| assert_eq!(fd.write(&[id; RECORD]), Ok(RECORD))))
        })
        .collect();
    children.into_iter().for_each(|child| child.ok());
    let content = read_all(&p.open("log", libc::O_RDONLY).unwrap());
    assert_eq!(content.len(), 400 * RECORD);
    let mut counts = [0; 5];
    for record in content.chunks(RECORD) {
        assert!(record.iter().all(|b| *b == record[0]), "records are mixed");
        counts[record[0] as usize] += 1;
    }
    assert_eq!(counts, [0, 100, 100, 100, 100]);
}

fn mapping_and_calls_see_each_other() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.truncate(4 * PAGE).unwrap();
    let map = fd.map(4 * PAGE as usize, RW, SHARED).unwrap();
    map.set(PAGE as usize, 5);
    let mut byte = [0];
    assert_eq!((fd.read_at(&mut byte, PAGE), byte), (Ok(1), [5]));
    fd.write_at(&[6], PAGE).unwrap();
    assert_eq!(map.get(PAGE as usize), 6);
    in_child(|| map.set(2 * PAGE as usize, 7));
    assert_eq!(map.get(2 * PAGE as usize), 7);
    fd.punch(0, 4 * PAGE).unwrap();
    assert!(map.is_all(0, 4 * PAGE as usize, 0));
    assert_eq!(fd.map(PAGE as usize, RW, SHARED).unwrap().get(0), 0);
    let read_only = p.open("f", libc::O_RDONLY).unwrap();
    assert_eq!(read_only.map(PAGE as usize, RW, SHARED).err(), Some(Errno::EACCES));
    assert!(read_only.map(PAGE as usize, RW, PRIVATE).is_ok());
    assert_eq!(p.open("f", libc::O_WRONLY).unwrap().map(PAGE as usize, R, SHARED).err(), Some(Errno::EACCES));
}

fn truncation_reaches_mappings() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.write(&[3; 3 * PAGE as usize]).unwrap();
    let map = fd.map(3 * PAGE as usize, RW, SHARED).unwrap();
    assert_eq!(map.get(2 * PAGE as usize), 3);
    fd.truncate(PAGE + 10).unwrap();
    // The rest of the last page is zero, the pages behind it are gone.
    assert_eq!((map.get(PAGE as usize + 9), map.get(PAGE as usize + 10)), (3, 0));
    assert_eq!(child::fork(|| ignore(map.get(2 * PAGE as usize))).wait(), End::Signal(libc::SIGBUS));
    fd.truncate(3 * PAGE).unwrap();
    assert_eq!(map.get(2 * PAGE as usize), 0);
}

fn private_mappings_keep_copies() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.write(&[3; 2 * PAGE as usize]).unwrap();
    let map = fd.map(2 * PAGE as usize, RW, PRIVATE).unwrap();
    map.set(0, 9);
    let mut byte = [0];
    assert_eq!((fd.read_at(&mut byte, 0), byte), (Ok(1), [3]));
    fd.write_at(&[4; 2 * PAGE as usize], 0).unwrap();
    assert_eq!((map.get(0), map.get(1), map.get(PAGE as usize)), (9, 3, 4));
    // A hole does not take copies away, a truncation does.
    fd.punch(0, 2 * PAGE).unwrap();
    assert_eq!((map.get(0), map.get(PAGE as usize)), (9, 0));
    fd.truncate(0).unwrap();
    assert_eq!(child::fork(|| ignore(map.get(0))).wait(), End::Signal(libc::SIGBUS));
}

/// The source of the write is a page of the same file that has to be faulted in, also at the place that is written.
fn write_from_its_own_mapping() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.truncate(64 * PAGE).unwrap();
    let map = fd.map(66 * PAGE as usize, RW, SHARED).unwrap();
    let write = |from: u64, to: u64, len: u64| {
        // SAFETY: the kernel checks the address.
        check(unsafe {
            let address = (map.address + from as usize) as *const _;
            libc::pwrite(fd.raw(), address, len as usize, to as i64) as i64
        })
    };
    assert_eq!(write(0, 0, 16 * PAGE), Ok(16 * PAGE as usize));
    assert_eq!(write(32 * PAGE, 0, 16 * PAGE), Ok(16 * PAGE as usize));
    fd.punch(0, 64 * PAGE).unwrap();
    assert_eq!(write(10, 100, 8 * PAGE), Ok(8 * PAGE as usize));
    // Beyond the end the source is not there: what came before counts.
    assert_eq!(write(63 * PAGE, 0, 2 * PAGE), Ok(PAGE as usize));
}

fn read_into_its_own_mapping() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.write(&[8; 4 * PAGE as usize]).unwrap();
    fd.truncate(32 * PAGE).unwrap();
    let map = fd.map(32 * PAGE as usize, RW, SHARED).unwrap();
    // SAFETY: the kernel checks the address.
    let count = check(unsafe {
        libc::pread(fd.raw(), (map.address + 16 * PAGE as usize) as *mut _, 8 * PAGE as usize, 0) as i64
    });
    assert_eq!(count, Ok(8 * PAGE as usize));
    assert!(map.is_all(16 * PAGE as usize, 4 * PAGE as usize, 8));
    assert!(map.is_all(20 * PAGE as usize, 4 * PAGE as usize, 0));
}

fn bad_addresses() {
    let p = Place::new("");
    let fd = p.create("f");
    let map = Map::anonymous(2 * PAGE as usize);
    let edge = map.address + PAGE as usize;
    roundtable_programs::mem::munmap(edge, PAGE as usize).unwrap();
    let (read, write) = (
        // SAFETY: the kernel checks the addresses, here and below.
        |at: usize, len: usize| check(unsafe { libc::pread(fd.raw(), at as *mut _, len, 0) as i64 }),
        // SAFETY: as above.
        |at: usize, len: usize| check(unsafe { libc::pwrite(fd.raw(), at as *const _, len, 0) as i64 }),
    );
    assert_eq!(write(edge, 10), Err(Errno::EFAULT));
    assert_eq!(fd.stat().st_size, 0);
    // Linux copies as far as it can within a page, at least the part that is there.
    assert_eq!(write(edge - 100, 200).map(|count| count <= 100), Ok(true));
    fd.truncate(0).unwrap();
    fd.write_at(&[1; 8192], 0).unwrap();
    assert_eq!(read(edge, 10), Err(Errno::EFAULT));
    assert_eq!(read(usize::MAX - 10, 5), Err(Errno::EFAULT));
    assert_eq!(read(0, 5), Err(Errno::EFAULT));
    assert_eq!(read(0, 0), Ok(0));
    assert_eq!(read(edge - 100, 200), Ok(100));
    // SAFETY: as above.
    assert_eq!(check(unsafe { libc::open(8 as *const _, 0) }), Err(Errno::EFAULT));
    // SAFETY: as above.
    assert_eq!(check(unsafe { libc::fstat(fd.raw(), std::ptr::dangling_mut()) }), Err(Errno::EFAULT));
}

fn vectors() {
    let p = Place::new("");
    let fd = p.create("f");
    let (a, b) = ([1u8; 10], [2u8; 5000]);
    let piece = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let pieces = [piece(&a), piece(&[]), piece(&b)];
    // SAFETY: the pieces live through the call.
    assert_eq!(check(unsafe { libc::writev(fd.raw(), pieces.as_ptr(), 3) as i64 }), Ok(5010));
    let (mut c, mut d) = ([0u8; 7], [0u8; 6000]);
    let pieces = [
        libc::iovec { iov_base: c.as_mut_ptr().cast(), iov_len: 7 },
        libc::iovec { iov_base: d.as_mut_ptr().cast(), iov_len: 6000 },
    ];
    // SAFETY: as above.
    assert_eq!(check(unsafe { libc::preadv(fd.raw(), pieces.as_ptr(), 2, 0) as i64 }), Ok(5010));
    assert_eq!((c, &d[..3], &d[3..5003], d[5003]), ([1; 7], &[1; 3][..], &[2; 5000][..], 0));
    // SAFETY: as above.
    assert_eq!(check(unsafe { libc::readv(fd.raw(), pieces.as_ptr(), 1025) as i64 }), Err(Errno::EINVAL));
    let bad = [piece(&a), libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 10 }];
    // SAFETY: the kernel checks the addresses.
    assert_eq!(check(unsafe { libc::pwritev(fd.raw(), bad.as_ptr(), 2, 0) as i64 }), Ok(10));
}

fn positions_are_shared_by_dup() {
    let p = Place::new("");
    let fd = p.create("f");
    fd.write(b"0123456789").unwrap();
    // SAFETY: takes an integer.
    let copy = Fd::own(check(unsafe { libc::dup(fd.raw()) }).unwrap());
    seek(&copy, 4, libc::SEEK_SET).unwrap();
    let mut byte = [0];
    fd.read(&mut byte).unwrap();
    assert_eq!((byte, seek(&copy, 0, libc::SEEK_CUR)), (*b"4", Ok(5)));
    in_child(|| ignore(seek(&fd, 2, libc::SEEK_SET)));
    assert_eq!(seek(&copy, 0, libc::SEEK_CUR), Ok(2));
    // An open of its own has a position of its own.
    assert_eq!(seek(&p.open("f", libc::O_RDONLY).unwrap(), 0, libc::SEEK_CUR), Ok(0));
}

fn size_limit_signal() {
    let p = Place::new("");
    let fd = p.create("f");
    let limited = |run: &dyn Fn()| {
        child::fork(|| {
            let limit = libc::rlimit { rlim_cur: 1000, rlim_max: 1000 };
            // SAFETY: reads the limit.
            unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
            run();
        })
        .wait()
    };
    let signal = End::Signal(libc::SIGXFSZ);
    assert_eq!(limited(&|| assert_eq!(fd.write_at(&[1; 2000], 0), Ok(1000))), End::Code(0));
    assert_eq!(limited(&|| ignore(fd.write_at(&[1; 10], 1000))), signal);
    assert_eq!(limited(&|| ignore(fd.truncate(1001))), signal);
    assert_eq!(limited(&|| ignore(fd.fallocate(0, 0, 1001))), signal);
    let ignored = || {
        // SAFETY: sets a disposition.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        assert_eq!(fd.write_at(&[1; 10], 1000), Err(Errno::EFBIG));
        assert_eq!(fd.truncate(2000), Err(Errno::EFBIG));
        assert_eq!(fd.truncate(500), Ok(()));
    };
    assert_eq!(limited(&ignored), End::Code(0));
}

fn sendfile_and_copy() {
    let p = Place::new("");
    let (from, to) = (p.create("from"), p.create("to"));
    let data: Vec<u8> = (0..100_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    from.write(&data).unwrap();
    let mut at: i64 = 1000;
    // SAFETY: the offsets live through the calls, here and below.
    let sent = check(unsafe { libc::sendfile(to.raw(), from.raw(), &mut at, 50_000) as i64 });
    assert_eq!((sent, at, read_all(&to)), (Ok(50_000), 51_000, data[1000..51_000].to_vec()));
    let (mut a, mut b) = (90_000i64, 0i64);
    // SAFETY: as above.
    let copied =
        check(unsafe { libc::copy_file_range(from.raw(), &mut a, to.raw(), &mut b, 50_000, 0) as i64 });
    assert_eq!((copied, a, b), (Ok(10_000), 100_000, 10_000));
    assert_eq!(read_all(&to)[..10_000], data[90_000..]);
    // Overlapping parts of one file cannot be copied.
    (a, b) = (0, 10);
    // SAFETY: as above.
    let copied =
        check(unsafe { libc::copy_file_range(from.raw(), &mut a, from.raw(), &mut b, 50, 0) as i64 });
    assert_eq!(copied, Err(Errno::EINVAL));
    let (read, write) = pipe(0);
    at = 0;
    // SAFETY: as above.
    assert_eq!(check(unsafe { libc::sendfile(write.raw(), from.raw(), &mut at, 5000) as i64 }), Ok(5000));
    let mut buffer = vec![0; 5000];
    assert_eq!((read.read(&mut buffer), &buffer[..]), (Ok(5000), &data[..5000]));
}

fn times() {
    let p = Place::new("");
    p.write("f", b"x");
    let path = p.path("f");
    let set = |times: [(i64, i64); 2]| {
        let path = sys::c_string(&path);
        let times = times.map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
        // SAFETY: the path is NUL-terminated, the times live through the call.
        check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }).map(drop)
    };
    assert_eq!(set([(1000, 5), (2000, 6)]), Ok(()));
    let stat = lstat(&path).unwrap();
    assert_eq!((stat.st_atime, stat.st_atime_nsec, stat.st_mtime, stat.st_mtime_nsec), (1000, 5, 2000, 6));
    assert_eq!(set([(0, libc::UTIME_OMIT), (3000, 0)]), Ok(()));
    assert_eq!((lstat(&path).unwrap().st_atime, lstat(&path).unwrap().st_mtime), (1000, 3000));
    assert_eq!(set([(0, 1_000_000_000), (0, 0)]), Err(Errno::EINVAL));
    // A read of what has changed since is noted (relatime).
    std::fs::read(&path).unwrap();
    assert!(lstat(&path).unwrap().st_atime > 1_000_000);
    let fd = p.open("f", libc::O_RDWR).unwrap();
    fd.write(b"y").unwrap();
    assert!(fd.stat().st_mtime > 1_000_000);
    set([(0, 0), (0, 0)]).unwrap();
    truncate(&path, 1).unwrap();
    assert!(fd.stat().st_mtime > 1_000_000);
}

/// Bytes that each part of the machine's memory has that could hold what files and names took.
struct Parts {
    free: u64,
    /// Free as well, on Linux: pages on the lists of CPUs, which MemFree leaves out. They grow with what is freed, and only the CPU itself
    /// gives them back, after a while without work.
    cpu_lists: u64,
    slab: u64,
}

impl Parts {
    fn now() -> Parts {
        // Linux keeps the names and inodes of what is gone until somebody wants the memory.
        let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
        let meminfo = Meminfo::read();
        let zones = std::fs::read_to_string("/proc/zoneinfo").unwrap_or_default();
        let counts = zones.lines().filter_map(|line| line.trim().strip_prefix("count:"));
        let pages: u64 = counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum();
        Parts { free: meminfo.get("MemFree") << 10, cpu_lists: pages * PAGE, slab: meminfo.get("Slab") << 10 }
    }

    fn show(&self) -> String {
        let Parts { free, cpu_lists, slab } = self;
        format!(
            "{} KiB free, {} KiB on lists of CPUs, {} KiB of slab",
            free >> 10,
            cpu_lists >> 10,
            slab >> 10
        )
    }

    fn all_free(&self) -> u64 {
        self.free + self.cpu_lists
    }
}

/// Files, names and mounts give back what they took.
fn memory_comes_back() {
    let round = || {
        let p = Place::new("");
        for directory in 0..20 {
            std::fs::create_dir(p.path(&format!("d{directory}"))).unwrap();
            for file in 0..100 {
                p.write(&format!("d{directory}/f{file}"), &[1; 9000]);
            }
        }
        let big = p.create("big");
        big.fallocate(0, 0, 64 << 20).unwrap();
        let map = big.map(64 << 20, RW, SHARED).unwrap();
        map.set(1 << 20, 1);
        unlink(&p.path("big")).unwrap();
    };
    // What is kept for the next time is there after the first.
    (0..2).for_each(|_| in_child(round));
    let before = Parts::now();
    (0..5).for_each(|_| in_child(round));
    let kept = |now: &Parts| before.all_free().saturating_sub(now.all_free());
    let settled = sys::settles(std::time::Duration::from_secs(20), || kept(&Parts::now()) < 2 << 20);
    let now = Parts::now();
    println!("# {}, then {}", before.show(), now.show());
    assert!(settled, "{} KiB are missing: {}, then {}", kept(&now) >> 10, before.show(), now.show());
}

/// A descriptor is closed and used for another file while a thread reads through it: each read is of one file or the other.
fn close_while_reading() {
    static FD: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicU32 = AtomicU32::new(0);
    let p = Place::new("");
    p.write("a", &[b'a'; 20_000]);
    p.write("b", &[b'b'; 20_000]);
    let slot = p.open("a", libc::O_RDONLY).unwrap();
    FD.store(slot.raw() as u32, Ordering::SeqCst);
    let reader = std::thread::spawn(|| {
        let mut buffer = vec![0u8; 20_000];
        let mut good = 0;
        while STOP.load(Ordering::SeqCst) == 0 {
            let fd = FD.load(Ordering::SeqCst) as i32;
            // SAFETY: the buffer is as long as we say.
            let count = unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if count > 0 {
                assert!(count == 20_000 && buffer.iter().all(|b| *b == buffer[0]));
                good += 1;
            }
        }
        good
    });
    for i in 0..5000 {
        let fresh = p.open(if i % 2 == 0 { "b" } else { "a" }, libc::O_RDONLY).unwrap();
        // SAFETY: takes integers.
        check(unsafe { libc::dup2(fresh.raw(), slot.raw()) }).unwrap();
    }
    STOP.store(1, Ordering::SeqCst);
    assert!(reader.join().unwrap() > 0);
}

fn writes_outlive_faults_behind_a_truncation() {
    const PAGES: u64 = 6;
    let fd = Fd::memfd("file", 0).unwrap();
    let sink = Fd::memfd("sink", 0).unwrap();
    fd.truncate(PAGES * PAGE).unwrap();
    let map = fd.map((PAGES * PAGE) as usize, R, SHARED).unwrap();
    let last = map.address + ((PAGES - 1) * PAGE) as usize;
    let stop = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::SeqCst) == 0 {
                // SAFETY: the kernel reads the byte, or says that it cannot.
                unsafe { libc::pwrite(sink.raw(), last as *const libc::c_void, 1, 0) };
            }
        });
        let mut lost = 0;
        for round in 0..30_000u32 {
            let byte = 1 + (round % 255) as u8;
            fd.truncate(0).unwrap();
            fd.write_at(&[byte; 64], (PAGES - 1) * PAGE).unwrap();
            let mut read = [0; 64];
            fd.read_at(&mut read, (PAGES - 1) * PAGE).unwrap();
            lost += u32::from(read != [byte; 64]);
        }
        stop.store(1, Ordering::SeqCst);
        assert_eq!(lost, 0, "writes were lost");
    });
}
