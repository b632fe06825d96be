//! System calls with their errno as a value, and what is asked of the system often.

use std::ffi::CString;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

/// The size of a base page.
pub const PAGE: usize = 4096;

/// Turns libc's -1 and errno into a `Result`.
pub fn check<T: Into<i64> + Copy>(result: T) -> Result<usize, Errno> {
    match result.into() {
        -1 => Err(Errno::last()),
        value => Ok(value as usize),
    }
}

/// Reads what a pipe holds now, without waiting for who else has its other end open.
pub fn drain(pipe: &impl std::os::fd::AsRawFd) -> String {
    let mut buffer = [0u8; 4096];
    let fd = pipe.as_raw_fd();
    // SAFETY: the buffer is as long as we say.
    let read = unsafe {
        libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
        libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len())
    };
    String::from_utf8_lossy(&buffer[..read.max(0) as usize]).into_owned()
}

/// A system call by its number, past the C library's own checks.
///
/// # Safety
/// The caller answers for what the call does to the process.
pub unsafe fn raw(number: i64, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's promise.
    check(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

pub fn c_string(text: &str) -> CString {
    CString::new(text).expect("no NUL in a test's string")
}

pub fn pid() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::getpid() }
}

/// Waits until `condition` holds, for things that the kernel does on its own; `false` after the limit.
pub fn settles(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The CPUs that this thread may run on.
pub fn cpus() -> Vec<usize> {
    // SAFETY: a cpu_set_t of zeros is the empty set, and the call fills it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        check(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set)).expect("sched_getaffinity");
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

/// Keeps this thread on one CPU.
pub fn pin(cpu: usize) {
    // SAFETY: a cpu_set_t of zeros is the empty set; the call only reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)).expect("sched_setaffinity");
    }
}

/// The CPU that this thread runs on now.
pub fn current_cpu() -> usize {
    // SAFETY: takes nothing.
    check(unsafe { libc::sched_getcpu() }).expect("getcpu")
}

/// Nanoseconds that this thread has had a CPU.
pub fn cpu_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is ours to write.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Minor and major faults of this process so far.
pub fn faults() -> (u64, u64) {
    own_stack();
    own_program();
    // SAFETY: a rusage of zeros is valid, and the call fills it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        check(libc::getrusage(libc::RUSAGE_SELF, &mut usage)).expect("getrusage");
        (usage.ru_minflt as u64, usage.ru_majflt as u64)
    }
}

/// Makes the stack below the caller this process's own. After a fork the first store into each page of it is a fault, and where a page ends
/// is different each time: what the caller does next must not happen to step over an end.
#[inline(never)]
fn own_stack() {
    std::hint::black_box([1u8; 2 * 4096]);
}

/// Brings all of the program in, once in each process: what the caller executes next may lie in a page of it that is not there yet, and which
/// pages come together is different each time.
fn own_program() {
    unsafe extern "C" fn touch(info: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the C library describes what is loaded; its pages can be read.
        unsafe {
            let headers = std::slice::from_raw_parts((*info).dlpi_phdr, (*info).dlpi_phnum.into());
            for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
                let start = ((*info).dlpi_addr + header.p_vaddr) as usize;
                (start..start + header.p_filesz as usize)
                    .step_by(4096)
                    .for_each(|at| _ = (at as *const u8).read_volatile());
            }
        }
        0
    }
    static DONE_IN: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    if DONE_IN.swap(process, Ordering::SeqCst) != process {
        // SAFETY: `touch` is what the call wants, and keeps nothing.
        unsafe { libc::dl_iterate_phdr(Some(touch), std::ptr::null_mut()) };
    }
}

/// Whether this is Linux itself: it has a file that ours has not.
pub fn is_linux() -> bool {
    std::path::Path::new("/proc/kallsyms").exists()
}

/// The kernel's release, such as `6.12.1`.
pub fn release() -> String {
    // SAFETY: a utsname of zeros is valid, and the call fills it with NUL-terminated texts.
    unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        check(libc::uname(&mut name)).expect("uname");
        std::ffi::CStr::from_ptr(name.release.as_ptr()).to_string_lossy().into_owned()
    }
}
