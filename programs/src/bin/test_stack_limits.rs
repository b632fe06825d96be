//! A stack that a limit of the process forbids to grow: the process's own error, whatever memory there is.

use roundtable_programs::child::{self, End};
use roundtable_programs::sys::check;
use roundtable_programs::{procfs, tests};

tests! { stack, address_space, memory_lock }

/// Uses `pages` pages of stack, a few hundred bytes further each time.
#[inline(never)]
fn descend(pages: usize) -> u8 {
    let mut page = [0u8; 4096];
    // The compiler must not see through it.
    std::hint::black_box(&mut page)[0] = pages as u8;
    if pages == 0 { page[0] } else { descend(pages - 1).wrapping_add(page[0]) }
}

fn limit(resource: u32, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::setrlimit(resource as _, &limit) }).expect("setrlimit");
}

/// Nobody else is to be killed for it: the parent would be the first.
fn grow_under(prepare: impl FnOnce()) -> End {
    procfs::write("/proc/self/oom_score_adj", 500).expect("oom_score_adj");
    let child = child::fork(|| {
        procfs::write("/proc/self/oom_score_adj", 0).expect("oom_score_adj");
        prepare();
        std::hint::black_box(descend(500));
    });
    child.wait()
}

fn stack() {
    assert_eq!(grow_under(|| limit(libc::RLIMIT_STACK, 256 << 10)), End::Signal(libc::SIGSEGV));
}

fn address_space() {
    let end = grow_under(|| {
        let pages = procfs::status(roundtable_programs::sys::pid(), "VmSize");
        limit(libc::RLIMIT_AS, (pages + 64) << 10);
    });
    assert_eq!(end, End::Signal(libc::SIGSEGV));
}

/// As on Linux: memory that is to be locked counts when it is mapped, and a stack that grows counts as well.
fn memory_lock() {
    let end = grow_under(|| limit(libc::RLIMIT_MEMLOCK, 4096));
    assert_eq!(end, End::Code(0));
}
