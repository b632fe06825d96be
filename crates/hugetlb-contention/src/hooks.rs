//! What the compiler calls before each load and store, and which of them are recorded.

use std::backtrace::Backtrace;
use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::coherence::{Access, LINE};

/// Recorded accesses of one call, at most.
const MOST: usize = 1 << 20;
/// What lies so close to the recorder's own frame is the stack: a thread's own on every machine.
const STACK: usize = 8 << 20;

struct Recorder {
    /// The simulated CPU that is in the library, and one more; 0 for none.
    cpu: usize,
    recording: bool,
    stack: usize,
    next: usize,
    log: *mut Access,
    /// The number of a line whose stores are to be explained; 0 for none.
    watched: usize,
}

static mut RECORDER: Recorder =
    Recorder { cpu: 0, recording: false, stack: 0, next: 0, log: std::ptr::null_mut(), watched: 0 };

/// The functions that stored to the watched line, each as its call stack.
static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The simulated CPU that is in the library.
#[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
pub(crate) fn cpu() -> Option<usize> {
    // SAFETY: a word that one thread writes. Others, of the test runner, allocate while it is 0.
    let cpu = unsafe { (&raw const RECORDER.cpu).read_volatile() };
    if cpu == 0 { None } else { Some(cpu - 1) }
}

/// Runs a call of the library on a simulated CPU, and gives what it returns and what it accessed.
///
/// One thread at a time, the main one: the simulated CPUs take turns on it.
#[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
pub fn library<T>(cpu: usize, log: &mut Vec<Access>, call: impl FnOnce() -> T) -> T {
    assert!(cpu < crate::heap::CPUS);
    log.clear();
    log.reserve(MOST);
    let here = 0u8;
    // SAFETY: one thread; nothing below holds a reference to the recorder.
    unsafe {
        assert!(RECORDER.cpu == 0, "a CPU is in the library already");
        RECORDER = Recorder {
            cpu: cpu + 1,
            recording: true,
            stack: &raw const here as usize,
            next: 0,
            log: log.as_mut_ptr(),
            watched: RECORDER.watched,
        };
    }
    let result = call();
    // SAFETY: as above; so many of the log were written.
    unsafe {
        RECORDER.recording = false;
        RECORDER.cpu = 0;
        assert!(RECORDER.next < MOST, "the call is too long to be recorded");
        log.set_len(RECORDER.next);
    }
    result
}

/// What the machine does for the library: not recorded, and with memory of the system.
#[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
pub fn machine<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: as in `library`.
    let before = unsafe { (RECORDER.cpu, RECORDER.recording) };
    // SAFETY: as in `library`.
    unsafe { (RECORDER.cpu, RECORDER.recording) = (0, false) };
    let result = work();
    // SAFETY: as in `library`.
    unsafe { (RECORDER.cpu, RECORDER.recording) = before };
    result
}

/// What the library is asked by the machine in the middle of [`machine`]: recorded again, as of that CPU.
#[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
pub fn asked<T>(cpu: usize, work: impl FnOnce() -> T) -> T {
    // SAFETY: as in `library`.
    unsafe { (RECORDER.cpu, RECORDER.recording) = (cpu + 1, true) };
    let result = work();
    // SAFETY: as in `library`.
    unsafe { (RECORDER.cpu, RECORDER.recording) = (0, false) };
    result
}

/// A function's name without the arguments of its generics.
fn short(name: &str) -> String {
    let (mut out, mut depth) = (String::new(), 0);
    for letter in name.trim_start_matches('<').chars() {
        depth += i32::from(letter == '<');
        if depth == 0 && letter != '>' {
            out.push(letter);
        }
        // The end of `<Type as Trait>` has no beginning here.
        depth = 0.max(depth - i32::from(letter == '>'));
    }
    out
}

/// Records an access.
#[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
#[cfg_attr(not(roundtable_counted), expect(dead_code, reason = "nothing calls it"))]
#[inline]
unsafe fn note(address: usize, write: bool) {
    // SAFETY: as in `library`; the log has room for `MOST`.
    unsafe {
        if RECORDER.recording && address.wrapping_sub(RECORDER.stack).wrapping_add(STACK) > 2 * STACK {
            *RECORDER.log.add(RECORDER.next) = Access { address, write };
            RECORDER.next += (RECORDER.next < MOST - 1) as usize;
            if write && RECORDER.watched == address / LINE {
                machine(explain);
            }
        }
    }
}

/// Whose stores to a line are explained from now on: those to the one at an address, or none.
pub fn watch(line: Option<usize>) -> BTreeSet<String> {
    // SAFETY: as in `library`.
    unsafe { RECORDER.watched = line.map_or(0, |address| address / LINE) };
    std::mem::take(&mut *SEEN.lock().expect("nothing panics with it"))
}

/// Keeps the library's functions on the stack, the innermost first.
fn explain() {
    let stack = Backtrace::force_capture().to_string();
    let is_ours = |line: &&str| {
        let name = line.split_once(": ").map_or("", |(_, name)| name);
        ["hugetlb::", "<hugetlb::", "filetables::", "<filetables::"].iter().any(|path| name.starts_with(path))
    };
    let names = stack.lines().filter(is_ours).filter_map(|line| line.split_once(": ")).take(3);
    let names: Vec<String> = names.map(|(_, name)| short(name)).collect();
    SEEN.lock().expect("nothing panics with it").insert(names.join(" < "));
}

/// The interface of the compiler's thread sanitizer, without its checks.
///
/// The operations are not atomic: one thread runs all that is built for it.
#[cfg(roundtable_counted)]
mod interface {
    use super::{LINE, note};

    macro_rules! plain {
        ($($read:ident $write:ident)*) => {$(
            #[unsafe(no_mangle)]
            #[sanitize(thread = "off")]
            unsafe extern "C" fn $read(address: usize) {
                // SAFETY: as `note`.
                unsafe { note(address, false) }
            }
            #[unsafe(no_mangle)]
            #[sanitize(thread = "off")]
            unsafe extern "C" fn $write(address: usize) {
                // SAFETY: as `note`.
                unsafe { note(address, true) }
            }
        )*};
    }

    plain! {
        __tsan_read1 __tsan_write1
        __tsan_read2 __tsan_write2
        __tsan_read4 __tsan_write4
        __tsan_read8 __tsan_write8
        __tsan_read16 __tsan_write16
        __tsan_unaligned_read2 __tsan_unaligned_write2
        __tsan_unaligned_read4 __tsan_unaligned_write4
        __tsan_unaligned_read8 __tsan_unaligned_write8
        __tsan_unaligned_read16 __tsan_unaligned_write16
    }

    macro_rules! change {
        ($number:ty, $($name:ident $old:ident $value:ident $new:expr;)*) => {$(
            #[unsafe(no_mangle)]
            #[sanitize(thread = "off")]
            unsafe extern "C" fn $name(address: *mut $number, $value: $number, _order: i32) -> $number {
                // SAFETY: the caller's atomic; one thread.
                unsafe {
                    note(address as usize, true);
                    let $old = *address;
                    *address = $new;
                    $old
                }
            }
        )*};
    }

    macro_rules! atomic {
        ($number:ty, $load:ident $store:ident $exchange:ident $compare:ident $($change:ident)*) => {
            #[unsafe(no_mangle)]
            #[sanitize(thread = "off")]
            unsafe extern "C" fn $load(address: *const $number, _order: i32) -> $number {
                // SAFETY: the caller's atomic; one thread.
                unsafe {
                    note(address as usize, false);
                    *address
                }
            }
            #[unsafe(no_mangle)]
            #[sanitize(thread = "off")]
            unsafe extern "C" fn $store(address: *mut $number, value: $number, _order: i32) {
                // SAFETY: the caller's atomic; one thread.
                unsafe {
                    note(address as usize, true);
                    *address = value;
                }
            }
            #[unsafe(no_mangle)]
            #[sanitize(thread = "off")]
            unsafe extern "C" fn $compare(
                address: *mut $number,
                expected: $number,
                value: $number,
                _order: i32,
                _failure: i32,
            ) -> $number {
                // SAFETY: the caller's atomic; one thread.
                unsafe {
                    note(address as usize, true);
                    let old = *address;
                    if old == expected {
                        *address = value;
                    }
                    old
                }
            }
            atomic!(@changes $number, $exchange $($change)*);
        };
        (@changes $number:ty, $exchange:ident $add:ident $sub:ident $and:ident $or:ident $xor:ident) => {
            change! {
                $number,
                $exchange old value value;
                $add old value old.wrapping_add(value);
                $sub old value old.wrapping_sub(value);
                $and old value old & value;
                $or old value old | value;
                $xor old value old ^ value;
            }
        };
    }

    atomic!(u8, __tsan_atomic8_load __tsan_atomic8_store __tsan_atomic8_exchange __tsan_atomic8_compare_exchange_val
        __tsan_atomic8_fetch_add __tsan_atomic8_fetch_sub __tsan_atomic8_fetch_and __tsan_atomic8_fetch_or __tsan_atomic8_fetch_xor);
    atomic!(u16, __tsan_atomic16_load __tsan_atomic16_store __tsan_atomic16_exchange __tsan_atomic16_compare_exchange_val
        __tsan_atomic16_fetch_add __tsan_atomic16_fetch_sub __tsan_atomic16_fetch_and __tsan_atomic16_fetch_or __tsan_atomic16_fetch_xor);
    atomic!(u32, __tsan_atomic32_load __tsan_atomic32_store __tsan_atomic32_exchange __tsan_atomic32_compare_exchange_val
        __tsan_atomic32_fetch_add __tsan_atomic32_fetch_sub __tsan_atomic32_fetch_and __tsan_atomic32_fetch_or __tsan_atomic32_fetch_xor);
    atomic!(u64, __tsan_atomic64_load __tsan_atomic64_store __tsan_atomic64_exchange __tsan_atomic64_compare_exchange_val
        __tsan_atomic64_fetch_add __tsan_atomic64_fetch_sub __tsan_atomic64_fetch_and __tsan_atomic64_fetch_or __tsan_atomic64_fetch_xor);

    macro_rules! nothing {
        ($($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
            #[unsafe(no_mangle)]
            #[sanitize(thread = "off")]
            unsafe extern "C" fn $name($($argument: $kind),*) {}
        )*};
    }

    nothing! {
        __tsan_init();
        __tsan_func_entry(_caller: usize);
        __tsan_func_exit();
        __tsan_atomic_thread_fence(_order: i32);
        __tsan_atomic_signal_fence(_order: i32);
    }

    /// A range is noted line by line.
    #[sanitize(thread = "off")]
    unsafe fn range(start: usize, bytes: usize, write: bool) {
        let mut at = start;
        while at < start + bytes {
            // SAFETY: as `note`.
            unsafe { note(at, write) };
            at = (at | (LINE - 1)) + 1;
        }
    }

    #[unsafe(no_mangle)]
    #[sanitize(thread = "off")]
    unsafe extern "C" fn __tsan_memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            range(from as usize, bytes, false);
            range(to as usize, bytes, true);
            std::ptr::copy_nonoverlapping(from, to, bytes);
        }
        to
    }

    #[unsafe(no_mangle)]
    #[sanitize(thread = "off")]
    unsafe extern "C" fn __tsan_memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            range(from as usize, bytes, false);
            range(to as usize, bytes, true);
            std::ptr::copy(from, to, bytes);
        }
        to
    }

    #[unsafe(no_mangle)]
    #[sanitize(thread = "off")]
    unsafe extern "C" fn __tsan_memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            range(to as usize, bytes, true);
            std::ptr::write_bytes(to, value as u8, bytes);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn names_lose_the_arguments_of_generics() {
        let name = "<filetables::tables::FileTables<machine::Counted, alloc::sync::Arc<Page<Counted>>>>::with_piece::<(), Closure<u8>>";
        assert_eq!(short(name), "filetables::tables::FileTables::with_piece::");
        assert_eq!(short("<hugetlb::A as hugetlb::B>::fault"), "hugetlb::A as hugetlb::B::fault");
    }
}
