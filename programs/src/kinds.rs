//! Memory of each kind, for tables of calls; and the calls as the kernel gets them, past the C library.

use crate::Errno;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::file::Fd;
use crate::huge::{self, HUGE};
use crate::mem::{ANON, NONE, PRIVATE, R, RW, SHARED};
use crate::rows::{Rows, name};
use crate::sys::{PAGE, raw};

/// What a call gives.
pub type Answer = Result<usize, Errno>;

/// A call by its number: nothing checks the arguments before the kernel does.
pub fn call(number: i64, arguments: [usize; 6]) -> Answer {
    // SAFETY: what is mapped or unmapped was reserved by the test, or the call fails.
    unsafe { raw(number, arguments) }
}

/// mmap; what it makes stays, for the tables need no memory back.
pub fn map(address: usize, length: usize, prot: i32, flags: i32, fd: i32, offset: usize) -> Answer {
    call(libc::SYS_mmap, [address, length, prot as usize, flags as usize, fd as usize, offset])
}

/// munmap.
pub fn unmap(address: usize, length: usize) -> Answer {
    call(libc::SYS_munmap, [address, length, 0, 0, 0, 0])
}

/// mprotect.
pub fn protect(address: usize, length: usize, prot: usize) -> Answer {
    call(libc::SYS_mprotect, [address, length, prot, 0, 0, 0])
}

/// mremap.
pub fn remap(address: usize, old: usize, new: usize, flags: usize, target: usize) -> Answer {
    call(libc::SYS_mremap, [address, old, new, flags, target, 0])
}

/// madvise.
pub fn advise(address: usize, length: usize, advice: i32) -> Answer {
    call(libc::SYS_madvise, [address, length, advice as usize, 0, 0, 0])
}

/// Two mapped pages, a page of nothing, a mapped page; far from where mmap without an address goes, for nothing else shall come into the gap.
pub fn with_gap() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1234_0000_0000);
    let at = NEXT.fetch_add(16 * PAGE, Ordering::SeqCst);
    assert_eq!(map(at, 4 * PAGE, RW, PRIVATE | ANON | libc::MAP_FIXED_NOREPLACE, -1, 0), Ok(at));
    assert_eq!(unmap(at + 2 * PAGE, PAGE), Ok(0));
    at
}

/// The kinds of memory that the tables by kind go through, in their order.
pub const KINDS: [&str; 15] = [
    "anonymous",
    "untouched",
    "no-access",
    "locked",
    "gap",
    "shared",
    "file",
    "file-private",
    "file-read-only",
    "segment",
    "huge",
    "huge-private",
    "huge-read-only",
    "huge-anonymous",
    "huge-segment",
];

/// Four pages (or huge pages) of a kind, fresh; its address and its page's size.
pub fn memory(kind: &str) -> (usize, usize) {
    let file = Fd::of_pages(4);
    let reopened =
        |fd: &Fd| Fd::open(&format!("/proc/self/fd/{}", fd.raw()), libc::O_RDONLY).expect("reopen");
    let base = |prot, flags, fd| (map(0, 4 * PAGE, prot, flags, fd, 0).expect(kind), PAGE);
    let huge = |prot, flags, fd| (map(0, 4 * HUGE, prot, flags, fd, 0).expect(kind), HUGE);
    let (address, size) = match kind {
        "anonymous" | "untouched" | "locked" => base(RW, PRIVATE | ANON, -1),
        "no-access" => base(NONE, PRIVATE | ANON, -1),
        "gap" => (with_gap(), PAGE),
        "shared" => base(RW, SHARED | ANON, -1),
        "file" => base(RW, SHARED, file.raw()),
        "file-private" => base(RW, PRIVATE, file.raw()),
        "file-read-only" => base(R, SHARED, reopened(&file).raw()),
        "segment" => (segment(4 * PAGE, 0), PAGE),
        "huge" => huge(RW, SHARED, huge::sized(4).raw()),
        "huge-private" => huge(RW, PRIVATE, huge::sized(4).raw()),
        "huge-read-only" => huge(R, SHARED, reopened(&huge::sized(4)).raw()),
        "huge-anonymous" => huge(RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1),
        "huge-segment" => (segment(4 * HUGE, libc::SHM_HUGETLB), HUGE),
        _ => unreachable!("{kind}"),
    };
    if !matches!(kind, "untouched" | "no-access") && !kind.ends_with("read-only") {
        // SAFETY: mapped just now, and writable.
        unsafe { (address as *mut u8).write_volatile(1) };
    }
    if kind == "locked" {
        assert_eq!(call(libc::SYS_mlock, [address, 4 * PAGE, 0, 0, 0, 0]), Ok(0));
    }
    (address, size)
}

/// A segment of System V shared memory, mapped; it goes with the process.
fn segment(length: usize, flags: i32) -> usize {
    let id = call(libc::SYS_shmget, [libc::IPC_PRIVATE as usize, length, flags as usize | 0o600, 0, 0, 0]);
    let id = id.expect("shmget");
    let address = call(libc::SYS_shmat, [id, 0, 0, 0, 0, 0]).expect("shmat");
    assert_eq!(call(libc::SYS_shmctl, [id, libc::IPC_RMID as usize, 0, 0, 0, 0]), Ok(0));
    address
}

/// What `try_it` answers for each kind of memory, in the order of [`KINDS`]; it gets the address and the page's size.
pub fn by_kind(rows: &mut Rows, call: &str, want: &str, try_it: impl Fn(usize, usize) -> Answer) {
    let got = KINDS.map(|kind| {
        let (address, size) = memory(kind);
        let answer = name(try_it(address, size));
        // What the call has moved or split stays until the subtest ends, as long as huge pages last.
        let _ = unmap(address, 4 * size);
        answer
    });
    rows.check_line(call, want, &got.join(" "));
}
