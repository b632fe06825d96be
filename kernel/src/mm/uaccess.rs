//! Access to user memory from the kernel, which may fail but never crashes.
//!
//! Every instruction that touches user memory is listed in the exception table beside the place where execution goes
//! on when the access cannot be made good. All addresses are checked against the user half first, so a user pointer
//! can never make the kernel touch its own memory. A copy may fault pages in, hence may sleep: never with a spin lock held, nor
//! with a lock that a page fault takes. The `_nofault` forms never sleep; they fail where a page is not there at once.

use alloc::vec::Vec;
use core::arch::asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::cpu::MAX_CPUS;
use crate::arch::percpu::PerCpu;
use crate::arch::smap;
use crate::errno::{Errno, Result};
use crate::memory::USER_END;
use crate::memory::fallible::{self, TryVec};

/// One entry of the exception table: an instruction that may fault, and where to go on when it does.
#[repr(C)]
struct Fixup {
    instruction: u64,
    target: u64,
}

unsafe extern "C" {
    static exception_table_start: [Fixup; 0];
    static exception_table_end: [Fixup; 0];
}

/// Where the kernel goes on after a fault of the instruction at `rip` that could not be resolved; `None` when
/// that instruction must not fault.
pub fn fixup(rip: u64) -> Option<u64> {
    let start = &raw const exception_table_start as *const Fixup;
    let count = (&raw const exception_table_end as usize - start as usize) / size_of::<Fixup>();
    // SAFETY: the linker collected `count` entries there, which nobody changes.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    table.iter().find(|entry| entry.instruction == rip).map(|entry| entry.target)
}

/// How deep this CPU is in code that must not sleep for a page. Such code neither blocks nor moves to another CPU.
static NOFAULT: PerCpu<AtomicU32> = PerCpu::new([const { AtomicU32::new(0) }; MAX_CPUS]);

/// Must a page fault on this CPU fail at once instead of being resolved?
pub fn faults_disabled() -> bool {
    // Relaxed: a counter that only its own CPU uses.
    NOFAULT.load(Ordering::Relaxed) != 0
}

/// Runs `work`, in which an access to a page that is not present fails instead of sleeping.
pub fn without_faults<R>(work: impl FnOnce() -> R) -> R {
    let counter: &AtomicU32 = &NOFAULT;
    // Relaxed, both: as above; the compiler must not move the accesses out, which `asm!` blocks do not let it.
    counter.fetch_add(1, Ordering::Relaxed);
    let result = work();
    counter.fetch_sub(1, Ordering::Relaxed);
    result
}

/// Is all of the range in the user half? `EFAULT` when not, or when it wraps around.
pub fn check_range(address: usize, len: usize) -> Result<()> {
    match address.checked_add(len) {
        Some(end) if end as u64 <= USER_END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Copies with faults allowed on either side; returns how many bytes were *not* copied.
///
/// # Safety
/// The side that is kernel memory must be good for `len` bytes; the other must have passed `check_range`.
unsafe fn copy(to: usize, from: usize, len: usize) -> usize {
    let left: usize;
    smap::allow();
    // SAFETY: the caller vouches for the kernel side; faults of the user side go to the table's targets. Words first; when
    // a word faults, bytes find the exact place, so that the count is exact.
    unsafe {
        asm!(
            "2: rep movsq",
            "mov rcx, {tail}",
            "3: rep movsb",
            "jmp 5f",
            "4: lea rcx, [{tail} + rcx * 8]",
            "jmp 3b",
            "5:",
            ".pushsection .exception_table, \"a\"",
            ".quad 2b, 4b",
            ".quad 3b, 5b",
            ".popsection",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => left,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack)
        )
    };
    smap::forbid();
    left
}

/// Copies kernel memory to user memory; returns how many bytes were not copied, all of them for a bad range.
///
/// # Safety
/// `from` must be readable for `len` bytes; others may change them at the same time.
pub unsafe fn copy_to_user_raw(address: usize, from: *const u8, len: usize) -> usize {
    if check_range(address, len).is_err() {
        return len;
    }
    // SAFETY: the caller vouches for `from`, and the address is the user's.
    unsafe { copy(address, from as usize, len) }
}

/// Copies user memory to kernel memory; returns how many bytes were not copied, all of them for a bad range.
///
/// # Safety
/// `to` must be writable for `len` bytes.
pub unsafe fn copy_from_user_raw(to: *mut u8, address: usize, len: usize) -> usize {
    if check_range(address, len).is_err() {
        return len;
    }
    // SAFETY: the caller vouches for `to`, and the address is the user's.
    unsafe { copy(to as usize, address, len) }
}

/// Clears user memory; returns how many bytes were not cleared, all of them for a bad range.
pub fn zero_user_raw(address: usize, len: usize) -> usize {
    if check_range(address, len).is_err() {
        return len;
    }
    let left: usize;
    smap::allow();
    // SAFETY: the range is the user's, and a fault goes to the table's target.
    unsafe {
        asm!(
            "2: rep stosb",
            "3:",
            ".pushsection .exception_table, \"a\"",
            ".quad 2b, 3b",
            ".popsection",
            inout("rcx") len => left,
            inout("rdi") address => _,
            in("al") 0u8,
            options(nostack)
        )
    };
    smap::forbid();
    left
}

/// Copies all of `bytes` to user memory, or `EFAULT`.
pub fn copy_to_user(address: usize, bytes: &[u8]) -> Result<()> {
    // SAFETY: a slice is readable.
    match unsafe { copy_to_user_raw(address, bytes.as_ptr(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Fills `bytes` from user memory, or `EFAULT`.
pub fn copy_from_user(bytes: &mut [u8], address: usize) -> Result<()> {
    // SAFETY: a mutable slice is writable.
    match unsafe { copy_from_user_raw(bytes.as_mut_ptr(), address, bytes.len()) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Reads a value from user memory. Only for types that any bytes make a value of: integers, and C structures of them.
pub fn read_user<T: Copy + 'static>(address: usize) -> Result<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the value's own memory.
    match unsafe { copy_from_user_raw(value.as_mut_ptr().cast(), address, size_of::<T>()) } {
        // SAFETY: all bytes were written, and the types used here are C structures of integers.
        0 => Ok(unsafe { value.assume_init() }),
        _ => Err(Errno::EFAULT),
    }
}

/// Writes a value to user memory. Padding goes out as it is: use types without.
pub fn write_user<T: Copy + 'static>(address: usize, value: &T) -> Result<()> {
    // SAFETY: the value's own memory.
    match unsafe { copy_to_user_raw(address, core::ptr::from_ref(value).cast(), size_of::<T>()) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Reads `count` values of an array in user memory.
pub fn read_user_array<T: Copy + 'static>(address: usize, count: usize) -> Result<Vec<T>> {
    let bytes = count.checked_mul(size_of::<T>()).ok_or(Errno::EFAULT)?;
    check_range(address, bytes)?;
    let mut values: Vec<T> = fallible::with_capacity(count)?;
    // SAFETY: there is room for `count` values, and only after all their bytes are written the length says so.
    unsafe {
        if copy_from_user_raw(values.as_mut_ptr().cast(), address, bytes) != 0 {
            return Err(Errno::EFAULT);
        }
        values.set_len(count);
    }
    Ok(values)
}

/// Reads a string that ends with a zero byte, which is left out. At most `max` bytes without it: `too_long` when there are more.
pub fn read_cstr(address: usize, max: usize, too_long: Errno) -> Result<Vec<u8>> {
    let mut string = Vec::new();
    let mut chunk = [0u8; 256];
    loop {
        let at = address.checked_add(string.len()).ok_or(Errno::EFAULT)?;
        // Never over a page border in one step: the string may end right before a page that is not there.
        let len = chunk.len().min(4096 - (at & 4095));
        copy_from_user(&mut chunk[..len], at)?;
        let found = chunk[..len].iter().position(|byte| *byte == 0);
        let part = &chunk[..found.unwrap_or(len)];
        if string.len() + part.len() > max {
            return Err(too_long);
        }
        string.try_extend_from_slice(part)?;
        if found.is_some() {
            return Ok(string);
        }
    }
}

/// A path: at most `PATH_MAX` bytes with its end, else `ENAMETOOLONG`.
pub fn read_path(address: usize) -> Result<Vec<u8>> {
    read_cstr(address, 4095, Errno::ENAMETOOLONG)
}

/// Loads the 32-bit word of a futex; `EFAULT` for a bad address, which an unaligned one is not.
pub fn load_u32(address: usize) -> Result<u32> {
    read_user(address)
}

/// As [`load_u32`], without sleeping: under the lock of a futex queue.
pub fn load_u32_nofault(address: usize) -> Result<u32> {
    without_faults(|| load_u32(address))
}

/// Compares and exchanges a 32-bit word of user memory in one step; returns what was there.
pub fn cmpxchg_u32(address: usize, expected: u32, new: u32) -> Result<u32> {
    check_range(address, 4)?;
    let (found, failed): (u32, u32);
    smap::allow();
    // SAFETY: the address is the user's, and a fault goes to the table's target, which leaves `failed` set.
    unsafe {
        asm!(
            "2: lock cmpxchg dword ptr [{address}], {new:e}",
            "xor {failed:e}, {failed:e}",
            "3:",
            ".pushsection .exception_table, \"a\"",
            ".quad 2b, 3b",
            ".popsection",
            address = in(reg) address,
            new = in(reg) new,
            failed = inout(reg) 1u32 => failed,
            inout("eax") expected => found,
            options(nostack)
        )
    };
    smap::forbid();
    if failed == 0 { Ok(found) } else { Err(Errno::EFAULT) }
}

/// As [`cmpxchg_u32`], without sleeping.
pub fn cmpxchg_u32_nofault(address: usize, expected: u32, new: u32) -> Result<u32> {
    without_faults(|| cmpxchg_u32(address, expected, new))
}

/// Applies `change` to a 32-bit word of user memory in one step; returns what was there.
pub fn update_u32(address: usize, change: impl Fn(u32) -> u32) -> Result<u32> {
    let mut old = load_u32(address)?;
    loop {
        let found = cmpxchg_u32(address, old, change(old))?;
        if found == old {
            return Ok(old);
        }
        old = found;
    }
}
