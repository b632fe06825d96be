//! What calls that map, move and protect memory answer to bad and odd arguments: tables that were read off Linux 6.12.

use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::{by_kind, call, map, memory, protect, remap, unmap, with_gap};
use roundtable_programs::mem::{ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::PAGE;
use roundtable_programs::{row, tests};

tests! { mmap_anonymous, mmap_of_files, mmap_huge, munmap_ranges, mremap_base, mremap_huge, mprotect_ranges,
remap_file_pages }

/// The end of user space with tables of five levels, and a huge page's flag for mmap.
const END: usize = (1 << 56) - PAGE;
const HUGETLB: i32 = libc::MAP_HUGETLB;
const NOREPLACE: i32 = libc::MAP_FIXED_NOREPLACE;
const VALIDATE: i32 = libc::MAP_SHARED_VALIDATE;
const GROWSDOWN: i32 = libc::MAP_GROWSDOWN;
const MAYMOVE: usize = libc::MREMAP_MAYMOVE as usize;
const TO: usize = MAYMOVE | libc::MREMAP_FIXED as usize;
const KEEP: usize = MAYMOVE | libc::MREMAP_DONTUNMAP as usize;

fn path_to(name: &str) -> Fd {
    Fd::open(name, libc::O_PATH).expect("O_PATH")
}

fn mmap_anonymous() {
    let mut rows = Rows::default();
    let any = PRIVATE | ANON;
    row!(rows, EINVAL, map(0, 0, RW, any, -1, 0));
    row!(rows, OK, map(0, 1, RW, any, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, any, 77, 0));
    row!(rows, ENOMEM, map(0, 1 << 56, RW, any | NORESERVE, -1, 0));
    row!(rows, ENOMEM, map(0, usize::MAX, RW, any, -1, 0));
    row!(rows, ENOMEM, map(0, usize::MAX - PAGE, RW, any, -1, 0));
    row!(rows, ENOMEM, map(0, 1 << 46, RW, any, -1, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, any, -1, 1));
    row!(rows, OK, map(0, PAGE, RW, any, -1, PAGE));
    row!(rows, OK, map(0, PAGE, RW, any, -1, usize::MAX - PAGE + 1));
    row!(rows, EINVAL, map(0, PAGE, RW, ANON, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, SHARED | ANON, -1, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, SHARED | PRIVATE | ANON, -1, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, 4 | ANON, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, 8 | ANON, -1, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, 15 | ANON, -1, 0));
    row!(rows, OK, map(0, PAGE, 0xf0, any, -1, 0));
    row!(rows, OK, map(0, PAGE, 8, any, -1, 0));
    row!(rows, OK, map(0, PAGE, RW | 0x0100_0000, any, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, any | 0x1000_0000, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, any | libc::MAP_SYNC, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, SHARED | ANON | libc::MAP_SYNC, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, any | GROWSDOWN, -1, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, SHARED | ANON | GROWSDOWN, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, any | libc::MAP_LOCKED, -1, 0));
    row!(rows, OK, map(0, PAGE, RW, any | libc::MAP_32BIT, -1, 0));
    row!(rows, ENOMEM, map(0, 1 << 32, RW, any | NORESERVE | libc::MAP_32BIT, -1, 0));
    row!(rows, OK, map(1, PAGE, RW, any, -1, 0));
    row!(rows, OK, map(usize::MAX, PAGE, RW, any, -1, 0));
    row!(rows, OK, map(END, PAGE, RW, any, -1, 0));
    row!(rows, EINVAL, map(1, PAGE, RW, any | FIXED, -1, 0));
    row!(rows, ENOMEM, map(END, PAGE, RW, any | FIXED, -1, 0));
    row!(rows, ENOMEM, map(END + PAGE, PAGE, RW, any | FIXED, -1, 0));
    row!(rows, ENOMEM, map(1 << 63, PAGE, RW, any | FIXED, -1, 0));
    row!(rows, ENOMEM, map(usize::MAX - PAGE + 1, PAGE, RW, any | FIXED, -1, 0));
    let at = with_gap();
    row!(rows, EEXIST, map(at, PAGE, RW, any | NOREPLACE, -1, 0));
    row!(rows, EEXIST, map(at + PAGE, 2 * PAGE, RW, any | NOREPLACE, -1, 0));
    row!(rows, EEXIST, map(at + 2 * PAGE, 2 * PAGE, RW, any | NOREPLACE, -1, 0));
    row!(rows, EINVAL, map(at + 2 * PAGE + 1, PAGE, RW, any | NOREPLACE, -1, 0));
    row!(rows, OK, map(at + 2 * PAGE, PAGE, RW, any | NOREPLACE, -1, 0));
    row!(rows, ENOMEM, map(END, PAGE, RW, any | NOREPLACE, -1, 0));
    rows.finish();
}

fn mmap_of_files() {
    let mut rows = Rows::default();
    let file = Fd::of_pages(4);
    let fd = file.raw();
    row!(rows, EBADF, map(0, PAGE, RW, SHARED, -1, 0));
    row!(rows, EBADF, map(0, 0, RW, SHARED, -1, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, SHARED, 77, 1));
    row!(rows, EINVAL, map(0, PAGE, RW, SHARED, fd, 1));
    row!(rows, EINVAL, map(0, 0, RW, SHARED, fd, 0));
    row!(rows, OK, map(0, PAGE, RW, SHARED, fd, 1 << 40));
    row!(rows, OK, map(0, PAGE, RW, SHARED, fd, 1 << 62));
    row!(rows, EOVERFLOW, map(0, PAGE, RW, SHARED, fd, (1 << 63) - PAGE));
    row!(rows, EOVERFLOW, map(0, PAGE, RW, SHARED, fd, 1 << 63));
    row!(rows, EOVERFLOW, map(0, PAGE, RW, SHARED, fd, usize::MAX - PAGE + 1));
    row!(rows, EOVERFLOW, map(0, 2 * PAGE, RW, SHARED, fd, usize::MAX - PAGE + 1));
    for kind in [0, 4, 5, 8, 15] {
        row!(rows, EINVAL, map(0, PAGE, RW, kind, fd, 0));
    }
    row!(rows, OK, map(0, PAGE, RW, VALIDATE, fd, 0));
    row!(rows, EOPNOTSUPP, map(0, PAGE, RW, VALIDATE | libc::MAP_SYNC, fd, 0));
    row!(rows, OK, map(0, PAGE, RW, VALIDATE | 0x1000_0000, fd, 0));
    row!(rows, OK, map(0, PAGE, RW, VALIDATE | libc::MAP_NORESERVE | libc::MAP_POPULATE, fd, 0));
    row!(rows, OK, map(0x1000_0000_0000, PAGE, RW, VALIDATE | FIXED, fd, 0));
    row!(rows, EOPNOTSUPP, map(0x1000_0001_0000, PAGE, RW, VALIDATE | NOREPLACE, fd, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, VALIDATE | GROWSDOWN, fd, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, VALIDATE | HUGETLB, fd, 0));
    row!(rows, OK, map(0, PAGE, RW, VALIDATE | libc::MAP_32BIT, fd, 0));
    row!(rows, OK, map(0, PAGE, RW, VALIDATE | (21 << 26), fd, 0));
    row!(rows, OK, map(0, PAGE, RW, VALIDATE | (25 << 26), fd, 0));
    row!(rows, OK, map(0, PAGE, RW, VALIDATE | (30 << 26), fd, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, SHARED | GROWSDOWN, fd, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, PRIVATE | GROWSDOWN, fd, 0));
    row!(rows, EINVAL, map(0, PAGE, RW, SHARED | HUGETLB, fd, 0));
    row!(rows, OK, map(0, PAGE, RW, SHARED | (21 << 26), fd, 0));
    let path = format!("/proc/self/fd/{fd}");
    let read_only = Fd::open(&path, libc::O_RDONLY).unwrap();
    row!(rows, EACCES, map(0, PAGE, RW, SHARED, read_only.raw(), 0));
    row!(rows, OK, map(0, PAGE, R, SHARED, read_only.raw(), 0));
    row!(rows, OK, map(0, PAGE, RW, PRIVATE, read_only.raw(), 0));
    let write_only = Fd::open(&path, libc::O_WRONLY).unwrap();
    row!(rows, EACCES, map(0, PAGE, RW, SHARED, write_only.raw(), 0));
    row!(rows, EACCES, map(0, PAGE, NONE, PRIVATE, write_only.raw(), 0));
    row!(rows, EACCES, map(0, PAGE, libc::PROT_WRITE, PRIVATE, write_only.raw(), 0));
    row!(rows, EBADF, map(0, PAGE, R, PRIVATE, path_to("/tmp").raw(), 0));
    row!(rows, EBADF, map(0, PAGE, R, PRIVATE, path_to("/proc/self/exe").raw(), 0));
    row!(rows, ENODEV, map(0, PAGE, R, PRIVATE, Fd::open("/tmp", libc::O_RDONLY).unwrap().raw(), 0));
    row!(rows, ENODEV, map(0, PAGE, R, PRIVATE, pipe(0).0.raw(), 0));
    row!(rows, EACCES, map(0, PAGE, R, PRIVATE, pipe(0).1.raw(), 0));
    row!(rows, ENODEV, map(0, PAGE, R, PRIVATE, Fd::open("/dev/null", libc::O_RDWR).unwrap().raw(), 0));
    row!(rows, ENODEV, map(0, PAGE, R, PRIVATE, Fd::open("/proc/self/maps", 0).unwrap().raw(), 0));
    row!(rows, ENODEV, map(0, PAGE, R, PRIVATE, Fd::open("/proc/self/mem", 0).unwrap().raw(), 0));
    row!(rows, EPERM, map(0, PAGE, libc::PROT_EXEC, PRIVATE, Fd::open("/proc/meminfo", 0).unwrap().raw(), 0));
    row!(rows, OK, map(0, PAGE, RW, SHARED, Fd::open("/dev/zero", libc::O_RDWR).unwrap().raw(), 0));
    row!(rows, EACCES, map(0, PAGE, RW, SHARED, Fd::open("/dev/zero", libc::O_RDONLY).unwrap().raw(), 0));
    rows.finish();
}

fn mmap_huge() {
    let mut rows = Rows::default();
    huge::pool(16);
    let any = PRIVATE | ANON | HUGETLB;
    row!(rows, OK, map(0, HUGE, RW, any, -1, 0));
    row!(rows, OK, map(0, 1, RW, any, -1, 0));
    row!(rows, EINVAL, map(0, 0, RW, any, -1, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, any, -1, PAGE));
    row!(rows, OK, map(0, HUGE, RW, any, -1, HUGE));
    row!(rows, EINVAL, map(0, HUGE, RW, any, -1, HUGE + PAGE));
    row!(rows, EOVERFLOW, map(0, HUGE, RW, any, -1, 1 << 63));
    row!(rows, EINVAL, map(0, HUGE, RW, SHARED | ANON | HUGETLB, -1, PAGE));
    row!(rows, OK, map(0, HUGE, RW, SHARED | ANON | HUGETLB, -1, HUGE));
    row!(rows, OK, map(0, HUGE, RW, SHARED | PRIVATE | ANON | HUGETLB, -1, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, ANON | HUGETLB, -1, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, any | (20 << 26), -1, 0));
    row!(rows, OK, map(0, HUGE, RW, any | (21 << 26), -1, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, any | (25 << 26), -1, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, any | (63 << 26), -1, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, any | GROWSDOWN, -1, 0));
    row!(rows, OK, map(0, HUGE, RW, any | libc::MAP_LOCKED, -1, 0));
    row!(rows, ENOMEM, map(0, 1 << 32, RW, any, -1, 0));
    row!(rows, OK, map(0, 1 << 32, RW, any | NORESERVE, -1, 0));
    row!(rows, ENOMEM, map(0, 1 << 56, RW, any | NORESERVE, -1, 0));
    row!(rows, EINVAL, map(0, usize::MAX, RW, any | NORESERVE, -1, 0));
    row!(rows, ENOMEM, map(0, usize::MAX - HUGE, RW, any | NORESERVE, -1, 0));
    row!(rows, OK, map(PAGE, HUGE, RW, any, -1, 0));
    row!(rows, EINVAL, map(0x2000_0000_1000, HUGE, RW, any | FIXED, -1, 0));
    row!(rows, EINVAL, map(0x2000_0000_1000, HUGE, RW, any | NOREPLACE, -1, 0));
    row!(rows, ENOMEM, map(END & !(HUGE - 1), HUGE, RW, any | FIXED, -1, 0));
    row!(rows, ENOMEM, map(1 << 63, HUGE, RW, any | FIXED, -1, 0));
    row!(rows, OK, map(0x2000_0000_0000, 4 * HUGE, NONE, any | FIXED | NORESERVE, -1, 0));
    row!(rows, EINVAL, map(0x2000_0000_0000, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0));
    row!(rows, EEXIST, map(0x2000_0000_0000, PAGE, RW, PRIVATE | ANON | NOREPLACE, -1, 0));
    row!(rows, EINVAL, map(0x2000_0000_1000, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0));
    row!(rows, EINVAL, map(0x2000_0000_0000 + PAGE, HUGE, RW, PRIVATE | ANON | FIXED, -1, 0));
    let file = huge::sized(4);
    let fd = file.raw();
    row!(rows, EINVAL, map(0, HUGE, RW, SHARED, fd, PAGE));
    row!(rows, EINVAL, map(0, HUGE, RW, SHARED, fd, 1));
    row!(rows, OK, map(0, PAGE, RW, SHARED, fd, 0));
    row!(rows, EINVAL, map(0, 0, RW, SHARED, fd, 0));
    row!(rows, OK, map(0, HUGE, RW, SHARED, fd, 1 << 62));
    row!(rows, EOVERFLOW, map(0, HUGE, RW, SHARED, fd, (1 << 63) - HUGE));
    row!(rows, EOVERFLOW, map(0, HUGE, RW, SHARED, fd, 1 << 63));
    row!(rows, EOVERFLOW, map(0, HUGE, RW, PRIVATE, fd, 1 << 63));
    row!(rows, EOVERFLOW, map(0, HUGE, RW, SHARED, fd, usize::MAX - HUGE + 1));
    row!(rows, OK, map(0, HUGE, RW, SHARED | PRIVATE, fd, 0));
    row!(rows, EOPNOTSUPP, map(0, HUGE, RW, VALIDATE | libc::MAP_SYNC, fd, 0));
    row!(rows, OK, map(0, HUGE, RW, VALIDATE | HUGETLB, fd, 0));
    row!(rows, OK, map(0, HUGE, RW, SHARED | HUGETLB, fd, 0));
    row!(rows, OK, map(0, HUGE, RW, SHARED | HUGETLB | (30 << 26), fd, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, SHARED | GROWSDOWN, fd, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, PRIVATE | GROWSDOWN, fd, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, 0, fd, 0));
    row!(rows, EINVAL, map(0, HUGE, RW, 4, fd, 0));
    row!(rows, EINVAL, map(0x2000_4000_1000, HUGE, RW, SHARED | FIXED, fd, 0));
    row!(rows, ENOMEM, map(0, 1000 * HUGE, RW, SHARED, fd, 0));
    row!(rows, OK, map(0, 1000 * HUGE, RW, SHARED | NORESERVE, fd, 0));
    rows.finish();
}

fn munmap_ranges() {
    let mut rows = Rows::default();
    huge::pool(8);
    let at = with_gap();
    row!(rows, EINVAL, unmap(at, 0));
    row!(rows, EINVAL, unmap(at + 1, PAGE));
    row!(rows, EINVAL, unmap(at, usize::MAX));
    row!(rows, EINVAL, unmap(at, usize::MAX - PAGE));
    row!(rows, EINVAL, unmap(at, 1 << 56));
    row!(rows, EINVAL, unmap(END, PAGE));
    row!(rows, EINVAL, unmap(END, 2 * PAGE));
    row!(rows, EINVAL, unmap(1 << 63, PAGE));
    row!(rows, EINVAL, unmap(usize::MAX - PAGE + 1, PAGE));
    row!(rows, OK, unmap(0, PAGE));
    row!(rows, OK, unmap(at + 2 * PAGE, PAGE));
    row!(rows, OK, unmap(at, 4 * PAGE));
    let (at, _) = memory("huge");
    row!(rows, EINVAL, unmap(at, PAGE));
    row!(rows, EINVAL, unmap(at + PAGE, HUGE - PAGE));
    row!(rows, EINVAL, unmap(at + PAGE, HUGE));
    row!(rows, EINVAL, unmap(at, HUGE + 1));
    row!(rows, OK, unmap(at, HUGE));
    row!(rows, EINVAL, unmap(at, HUGE + PAGE));
    rows.finish();
}

fn mremap_base() {
    let mut rows = Rows::default();
    let place = Map::reserve(64 * PAGE, PAGE);
    let at = with_gap();
    row!(rows, EINVAL, remap(at, PAGE, PAGE, 8, 0));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, usize::MAX, 0));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, 1 << 32, 0));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, libc::MREMAP_FIXED as usize, place.address));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, libc::MREMAP_DONTUNMAP as usize, place.address));
    row!(rows, EINVAL, remap(at, PAGE, 2 * PAGE, KEEP, 0));
    row!(rows, EINVAL, remap(at + 1, PAGE, PAGE, 0, 0));
    row!(rows, EINVAL, remap(at, PAGE, 0, 0, 0));
    row!(rows, EINVAL, remap(at, PAGE, usize::MAX, MAYMOVE, 0));
    row!(rows, ENOMEM, remap(at, PAGE, usize::MAX - PAGE, MAYMOVE, 0));
    row!(rows, EINVAL, remap(at, usize::MAX, PAGE, 0, 0));
    row!(rows, EINVAL, remap(at, usize::MAX - PAGE, PAGE, 0, 0));
    row!(rows, ENOMEM, remap(at, PAGE, 1 << 56, MAYMOVE, 0));
    row!(rows, ENOMEM, remap(at, PAGE, 1 << 46, MAYMOVE, 0));
    row!(rows, OK, remap(at, PAGE, PAGE, 0, 0));
    row!(rows, OK, remap(at, 2 * PAGE, 2 * PAGE, 0, 0));
    row!(rows, OK, remap(at, 3 * PAGE, 3 * PAGE, 0, 0));
    row!(rows, EFAULT, remap(at, 3 * PAGE, 4 * PAGE, MAYMOVE, 0));
    row!(rows, EFAULT, remap(at, 3 * PAGE, 3 * PAGE, TO, place.address));
    row!(rows, EFAULT, remap(at + 2 * PAGE, PAGE, PAGE, 0, 0));
    row!(rows, EFAULT, remap(at + 2 * PAGE, PAGE, 2 * PAGE, MAYMOVE, 0));
    row!(rows, EFAULT, remap(0, PAGE, PAGE, 0, 0));
    row!(rows, EFAULT, remap(END, PAGE, PAGE, 0, 0));
    row!(rows, EFAULT, remap(1 << 63, PAGE, PAGE, MAYMOVE, 0));
    row!(rows, ENOMEM, remap(at, PAGE, 2 * PAGE, 0, 0));
    row!(rows, ENOMEM, remap(at, 2 * PAGE, 4 * PAGE, 0, 0));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, TO, place.address + 1));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, TO, at));
    row!(rows, EINVAL, remap(at, 2 * PAGE, 2 * PAGE, TO, at + PAGE));
    row!(rows, EINVAL, remap(at + PAGE, PAGE, 2 * PAGE, TO, at));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, TO, END));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, TO, END + PAGE));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, TO, usize::MAX - PAGE + 1));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, KEEP, 1));
    row!(rows, EINVAL, remap(at, PAGE, PAGE, KEEP, END + PAGE));
    row!(rows, OK, remap(at, PAGE, PAGE, KEEP, place.address));
    row!(rows, EINVAL, remap(at, 0, PAGE, MAYMOVE, 0));
    row!(rows, EINVAL, remap(at, 0, PAGE, TO, place.address));
    row!(rows, EINVAL, remap(at, 0, PAGE, 0, 0));
    row!(rows, EINVAL, remap(at, 0, 0, KEEP, 0));
    row!(rows, OK, remap(at, 2 * PAGE, PAGE, TO, place.address + 8 * PAGE));
    let (shared, _) = memory("file");
    row!(rows, ENOMEM, remap(shared, 0, PAGE, 0, 0));
    row!(rows, OK, remap(shared, 0, 4 * PAGE, MAYMOVE, 0));
    row!(rows, OK, remap(shared, 0, 4 * PAGE, TO, place.address + 16 * PAGE));
    row!(rows, EINVAL, remap(shared, 0, PAGE, KEEP, 0));
    row!(rows, OK, remap(shared, 4 * PAGE, 4 * PAGE, KEEP, 0));
    row!(rows, ENOMEM, remap(shared + PAGE, PAGE, 2 * PAGE, 0, 0));
    row!(rows, OK, remap(shared + PAGE, PAGE, 2 * PAGE, MAYMOVE, 0));
    rows.finish();
}

fn mremap_huge() {
    let mut rows = Rows::default();
    huge::pool(16);
    let place = Map::reserve(16 * HUGE, HUGE);
    let (at, _) = memory("huge");
    row!(rows, EINVAL, remap(at + PAGE, HUGE, HUGE, TO, place.address));
    row!(rows, EINVAL, remap(at, HUGE, HUGE, TO, place.address + PAGE));
    row!(rows, EINVAL, remap(at, 4 * HUGE, 5 * HUGE, MAYMOVE, 0));
    row!(rows, EINVAL, remap(at, HUGE, 2 * HUGE, MAYMOVE, 0));
    row!(rows, EINVAL, remap(at, 0, HUGE, MAYMOVE, 0));
    row!(rows, EINVAL, remap(at, 0, HUGE, TO, place.address));
    row!(rows, EINVAL, remap(at, HUGE, HUGE, KEEP, 0));
    row!(rows, OK, remap(at, HUGE, HUGE, 0, 0));
    row!(rows, OK, remap(at, PAGE, PAGE, 0, 0));
    row!(rows, OK, remap(at, PAGE, HUGE, 0, 0));
    row!(rows, OK, remap(at, 5 * HUGE, 4 * HUGE, 0, 0));
    row!(rows, OK, remap(at, 5 * HUGE, 5 * HUGE, 0, 0));
    row!(rows, EINVAL, remap(at, HUGE, HUGE, TO, at));
    row!(rows, EINVAL, remap(at, HUGE, HUGE, TO, END & !(HUGE - 1)));
    row!(rows, EINVAL, remap(at, HUGE, HUGE, TO, 1 << 63));
    row!(rows, EINVAL, remap(at, HUGE, 0, MAYMOVE, 0));
    row!(rows, EINVAL, remap(at, HUGE, usize::MAX, MAYMOVE, 0));
    row!(rows, OK, remap(at, PAGE, PAGE, TO, place.address));
    row!(rows, OK, remap(at + HUGE, 3 * HUGE, HUGE, TO, place.address + HUGE));
    row!(rows, OK, remap(place.address + HUGE, HUGE, PAGE, MAYMOVE, 0));
    let (base, _) = memory("anonymous");
    row!(rows, EINVAL, remap(base, PAGE, PAGE, TO, place.address));
    row!(rows, EINVAL, remap(base + PAGE, PAGE, PAGE, TO, place.address + HUGE + PAGE));
    rows.finish();
}

fn mprotect_ranges() {
    let mut rows = Rows::default();
    huge::pool(8);
    let at = with_gap();
    row!(rows, EINVAL, protect(at + 1, PAGE, 1));
    row!(rows, OK, protect(at, 0, 1));
    row!(rows, OK, protect(0, 0, 1));
    row!(rows, OK, protect(at, 0, 0x100));
    row!(rows, EINVAL, protect(at, PAGE, 0x100));
    row!(rows, OK, protect(at, PAGE, 8));
    row!(rows, EINVAL, protect(at, PAGE, 0x10));
    row!(rows, EINVAL, protect(at, PAGE, usize::MAX));
    row!(rows, EINVAL, protect(at, PAGE, 1 << 32 | 3));
    row!(rows, EINVAL, protect(at, PAGE, 0x0100_0003));
    row!(rows, EINVAL, protect(at, PAGE, 0x0200_0003));
    row!(rows, EINVAL, protect(at, PAGE, 0x0300_0003));
    row!(rows, EINVAL, protect(at + 1, 0, 0x0300_0003));
    row!(rows, ENOMEM, protect(at + 2 * PAGE, PAGE, 0x0100_0003));
    row!(rows, EINVAL, protect(at + 2 * PAGE, 2 * PAGE, 0x0100_0003));
    row!(rows, ENOMEM, protect(at, 3 * PAGE, 3));
    row!(rows, ENOMEM, protect(at, 4 * PAGE, 3));
    row!(rows, ENOMEM, protect(at + 2 * PAGE, PAGE, 3));
    row!(rows, ENOMEM, protect(at + 2 * PAGE, 2 * PAGE, 3));
    row!(rows, ENOMEM, protect(at, usize::MAX, 3));
    row!(rows, ENOMEM, protect(at, usize::MAX - PAGE, 3));
    row!(rows, ENOMEM, protect(0, PAGE, 3));
    row!(rows, ENOMEM, protect(END, 2 * PAGE, 3));
    row!(rows, ENOMEM, protect(1 << 63, PAGE, 3));
    row!(rows, OK, call(libc::SYS_pkey_mprotect, [at, PAGE, 3, usize::MAX, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_pkey_mprotect, [at, PAGE, 3, 5, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_pkey_mprotect, [at, PAGE, 3, 99, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_pkey_free, [5, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_pkey_alloc, [1, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_pkey_alloc, [0, 7, 0, 0, 0, 0]));
    let (huge, _) = memory("huge");
    row!(rows, EINVAL, protect(huge + PAGE, HUGE, 1));
    row!(rows, EINVAL, protect(huge, PAGE, 1));
    row!(rows, OK, protect(huge, HUGE + PAGE, 3));
    row!(rows, EINVAL, protect(huge, HUGE + PAGE, 1));
    row!(rows, OK, protect(huge, HUGE, 1));
    const ANY: &str = "OK OK OK OK ENOMEM OK OK OK OK OK OK OK OK OK OK";
    const WRITE: &str = "OK OK OK OK ENOMEM OK OK OK EACCES OK OK OK EACCES OK OK";
    for (prot, want) in [(0, ANY), (1, ANY), (2, WRITE), (3, WRITE), (4, ANY), (7, WRITE)] {
        by_kind(&mut rows, &format!("mprotect to {prot}"), want, |at, size| protect(at, 4 * size, prot));
    }
    rows.finish();
}

fn remap_file_pages() {
    let mut rows = Rows::default();
    huge::pool(64);
    let file_pages = |at, length, prot, first, flags| {
        call(libc::SYS_remap_file_pages, [at, length, prot, first, flags as usize, 0])
    };
    by_kind(
        &mut rows,
        "remap_file_pages",
        "EINVAL EINVAL EINVAL EINVAL EINVAL OK OK EINVAL EINVAL OK OK EINVAL EINVAL EINVAL OK",
        |at, size| file_pages(at, size, 0, size / PAGE, 0),
    );
    by_kind(
        &mut rows,
        "remap_file_pages of nothing",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
        |at, _| file_pages(at, 0, 0, 1, 0),
    );
    let (at, _) = memory("file");
    row!(rows, EINVAL, file_pages(at, PAGE, 1, 1, 0));
    row!(rows, OK, file_pages(at, PAGE, 0, 1, libc::MAP_NONBLOCK));
    row!(rows, OK, file_pages(at, PAGE, 0, 3, 99));
    row!(rows, OK, file_pages(at + 1, PAGE, 0, 1, 0));
    row!(rows, OK, file_pages(at, PAGE + 1, 0, 1, 0));
    row!(rows, EINVAL, file_pages(at, 5 * PAGE, 0, 0, 0));
    row!(rows, EINVAL, file_pages(at, usize::MAX, 0, 1, 0));
    row!(rows, EINVAL, file_pages(at, PAGE, 0, usize::MAX, 0));
    row!(rows, OK, file_pages(at, PAGE, 0, 1 << 50, 0));
    row!(rows, EINVAL, file_pages(0, PAGE, 0, 0, 0));
    // The second page shows the file's last.
    let (at, _) = memory("file");
    assert_eq!(file_pages(at + PAGE, PAGE, 0, 3, 0), Ok(0));
    // SAFETY: mapped; the file's pages hold their numbers.
    let seen = [0, 1, 2].map(|page| unsafe { ((at + page * PAGE + 1) as *const u8).read_volatile() });
    assert_eq!(seen, [1, 4, 3]);
    rows.finish();
}
