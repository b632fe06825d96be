//! System calls about memory.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::files;
use crate::fs::iobuf::MAX_RW_COUNT;
use crate::memory::fallible;
use crate::mm::uaccess::{self, copy_to_user, read_user_array};
use crate::mm::{AddressSpace, MapRequest, PAGE, Rights, userfault};
use crate::process::{self, Process};
use crate::sched;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::brk, brk),
    (Sysno::mmap, mmap),
    (Sysno::munmap, munmap),
    (Sysno::mprotect, mprotect),
    (Sysno::mremap, mremap),
    (Sysno::madvise, madvise),
    (Sysno::process_madvise, process_madvise),
    (Sysno::mincore, mincore),
    (Sysno::msync, msync),
    (Sysno::remap_file_pages, remap_file_pages),
    (Sysno::mlock, mlock),
    (Sysno::mlock2, mlock2),
    (Sysno::munlock, munlock),
    (Sysno::mlockall, mlockall),
    (Sysno::munlockall, munlockall),
    (Sysno::process_vm_readv, process_vm_readv),
    (Sysno::process_vm_writev, process_vm_writev),
    (Sysno::pkey_mprotect, pkey_mprotect),
    (Sysno::pkey_alloc, pkey_alloc),
    (Sysno::pkey_free, pkey_free),
    (Sysno::userfaultfd, userfaultfd),
    (Sysno::mseal, mseal),
    (Sysno::process_mrelease, process_mrelease),
];

/// The calling process's memory.
pub(super) fn space() -> Result<Arc<AddressSpace>> {
    process::current().process.mm().ok_or(Errno::ENOMEM)
}

fn mseal(args: &mut Args) -> Result<usize> {
    let [start, len, flags, ..] = args.a;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    space()?.seal(start as u64, len as u64).map(|()| 0)
}

/// The memory of a process that dies goes without help; the call tells whether it does.
fn process_mrelease(args: &mut Args) -> Result<usize> {
    if args.uint(1) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = files().get(args.int(0))?;
    let process = process::pidfd::process_of(&file).ok_or(Errno::EBADF)?;
    if !process.has_memory() {
        return Err(Errno::ESRCH);
    }
    if process.is_ending() { Ok(0) } else { Err(Errno::EINVAL) }
}

fn userfaultfd(args: &mut Args) -> Result<usize> {
    let flags = args.uint(0);
    if userfault::may_create(flags) { userfault::create(flags) } else { Err(Errno::EPERM) }
}

fn brk(args: &mut Args) -> Result<usize> {
    Ok(space()?.brk(args.a[0] as u64) as usize)
}

fn mmap(args: &mut Args) -> Result<usize> {
    let [address, len, prot, flags, fd, offset] = args.a;
    if !(offset as u64).is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let flags = flags as u32;
    let file = if flags & abi::MAP_ANONYMOUS == 0 { Some(files().get(fd as i32)?) } else { None };
    let request = MapRequest {
        address: address as u64,
        len: len as u64,
        prot: prot as u32,
        flags,
        file,
        offset: offset as u64,
    };
    Ok(space()?.map(request)? as usize)
}

fn munmap(args: &mut Args) -> Result<usize> {
    let [address, len, ..] = args.a;
    space()?.unmap(address as u64, len as u64).map(|()| 0)
}

fn mprotect(args: &mut Args) -> Result<usize> {
    let [address, len, prot, ..] = args.a;
    space()?.protect(address as u64, len as u64, u32::try_from(prot).map_err(|_| Errno::EINVAL)?).map(|()| 0)
}

fn mremap(args: &mut Args) -> Result<usize> {
    let [address, old_len, new_len, flags, target, _] = args.a;
    let flags = u32::try_from(flags).map_err(|_| Errno::EINVAL)?;
    Ok(space()?.remap(address as u64, old_len as u64, new_len as u64, flags, target as u64)? as usize)
}

fn madvise(args: &mut Args) -> Result<usize> {
    let [address, len, advice, ..] = args.a;
    space()?.advise(address as u64, len as u64, advice as u32).map(|()| 0)
}

/// For the process behind a pidfd: as Linux 6.12 only advice that cannot harm it, also for the caller itself, and from who may make others
/// slower.
fn process_madvise(args: &mut Args) -> Result<usize> {
    let [fd, vector, count, advice, flags, _] = args.a;
    let advice = advice as u32;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let vectors = vectors(vector, count)?;
    let file = files().get(fd as i32)?;
    let process = process::pidfd::process_of(&file).ok_or(Errno::EBADF)?;
    if !matches!(advice, abi::MADV_COLD | abi::MADV_PAGEOUT | abi::MADV_WILLNEED | abi::MADV_COLLAPSE) {
        return Err(Errno::EINVAL);
    }
    let space = memory_of(&process)?.ok_or(Errno::ESRCH)?;
    let current = process::current();
    if !Arc::ptr_eq(&process, &current.process) && !current.credentials().capable(abi::CAP_SYS_NICE) {
        return Err(Errno::EPERM);
    }
    let mut done = 0;
    for [base, len] in vectors {
        match space.advise(base as u64, len as u64, advice) {
            Ok(()) => done += len,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn mincore(args: &mut Args) -> Result<usize> {
    let [address, len, out, ..] = args.a;
    let range = AddressSpace::residency_range(address as u64, len as u64)?;
    let pages = ((range.end - range.start) / PAGE) as usize;
    uaccess::check_range(out, pages)?;
    let space = space()?;
    let mut done = 0;
    // Piece by piece, each copied out without a lock.
    while done < pages {
        let count = (pages - done).min(256);
        let start = range.start + done as u64 * PAGE;
        let residency = space.residency(start..start + count as u64 * PAGE)?;
        copy_to_user(out + done, &residency)?;
        done += count;
        sched::cond_resched();
        if process::current().kill_pending() {
            return Err(Errno::EINTR);
        }
    }
    Ok(0)
}

fn msync(args: &mut Args) -> Result<usize> {
    let [address, len, flags, ..] = args.a;
    space()?.sync(address as u64, len as u64, flags as u32).map(|()| 0)
}

fn remap_file_pages(args: &mut Args) -> Result<usize> {
    let [address, len, prot, first, flags, _] = args.a;
    if prot != 0 {
        return Err(Errno::EINVAL);
    }
    space()?.remap_file_pages(address as u64, len as u64, first as u64, flags as u32).map(|()| 0)
}

fn mlock(args: &mut Args) -> Result<usize> {
    let [address, len, ..] = args.a;
    space()?.lock(address as u64, len as u64, 0).map(|()| 0)
}

fn mlock2(args: &mut Args) -> Result<usize> {
    let [address, len, flags, ..] = args.a;
    space()?.lock(address as u64, len as u64, flags as u32).map(|()| 0)
}

fn munlock(args: &mut Args) -> Result<usize> {
    let [address, len, ..] = args.a;
    space()?.unlock(address as u64, len as u64).map(|()| 0)
}

fn mlockall(args: &mut Args) -> Result<usize> {
    space()?.lock_all(args.a[0] as u32).map(|()| 0)
}

fn munlockall(_: &mut Args) -> Result<usize> {
    space()?.unlock_all();
    Ok(0)
}

fn vectors(address: usize, count: usize) -> Result<alloc::vec::Vec<[usize; 2]>> {
    const IOV_MAX: usize = 1024;
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let vectors: alloc::vec::Vec<[usize; 2]> = read_user_array(address, count)?;
    let mut total = 0usize;
    for [_, len] in &vectors {
        total = total.checked_add(*len).filter(|total| *total <= isize::MAX as usize).ok_or(Errno::EINVAL)?;
    }
    Ok(vectors)
}

/// `EPERM` unless the caller may look into the process: the same user throughout, or CAP_SYS_PTRACE.
pub(crate) fn check_may_access(process: &Arc<Process>) -> Result<()> {
    let current = process::current();
    if Arc::ptr_eq(process, &current.process) {
        return Ok(());
    }
    let who = current.credentials();
    let whom = process.credentials();
    if who.may_look_into(&whom, (who.uid, who.gid), process.is_dumpable()) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// The memory of a process that the caller may look into: of the program about which that was asked. `None` for a zombie.
pub(super) fn memory_of(process: &Arc<Process>) -> Result<Option<Arc<AddressSpace>>> {
    process.mm_if(|| check_may_access(process))
}

fn process_vm_readv(args: &mut Args) -> Result<usize> {
    process_vm(args, false)
}

fn process_vm_writev(args: &mut Args) -> Result<usize> {
    process_vm(args, true)
}

fn process_vm(args: &mut Args, write: bool) -> Result<usize> {
    let [pid, local, local_count, remote, remote_count, flags] = args.a;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    // As of each call that moves data no more than this is done.
    let mut most = MAX_RW_COUNT;
    let mut local = vectors(local, local_count)?;
    for [_, len] in &mut local {
        *len = (*len).min(most);
        most -= *len;
    }
    let mut local = local.into_iter().filter(|[_, len]| *len > 0).peekable();
    if local.peek().is_none() {
        // Nothing is to be moved: as on Linux nobody is asked.
        return Ok(0);
    }
    let remote = vectors(remote, remote_count)?;
    let thread = process::find_thread(pid as u32).ok_or(Errno::ESRCH)?;
    // Not held while the caller's own memory is accessed: that may sleep for long (a userfaultfd whose owner does not answer), and memory of
    // a process that is killed meanwhile has to come back.
    let mut held = Arc::downgrade(&memory_of(&thread.process)?.ok_or(Errno::ESRCH)?);
    let mut space = |done: usize| match held.upgrade() {
        Some(space) => Ok(space),
        // Race: the process executes another program. As if this call had come after that, if nothing is done yet.
        None if done == 0 => {
            let space = memory_of(&thread.process)?.ok_or(Errno::ESRCH)?;
            held = Arc::downgrade(&space);
            Ok(space)
        }
        None => Err(Errno::ESRCH),
    };
    let mut buffer = fallible::filled(0, 16 * PAGE as usize)?;
    let mut done = 0;
    for [mut at, mut left] in remote {
        while left > 0 {
            let Some([here, room]) = local.peek_mut() else { return Ok(done) };
            if process::current().kill_pending() {
                return if done == 0 { Err(Errno::EINTR) } else { Ok(done) };
            }
            let len = left.min(*room).min(buffer.len());
            let moved = if write {
                uaccess::copy_from_user(&mut buffer[..len], *here).and_then(|()| {
                    space(done)?
                        .write_remote(at as u64, &buffer[..len], Rights::Own)
                        .map_err(|_| Errno::EFAULT)
                })
            } else {
                let got = space(done).and_then(|space| {
                    space.read_remote(at as u64, &mut buffer[..len], Rights::Own).map_err(|_| Errno::EFAULT)
                });
                got.and_then(|got| {
                    copy_to_user(*here, &buffer[..got])?;
                    Ok(got)
                })
            };
            let moved = match moved {
                Ok(moved) => moved,
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            };
            done += moved;
            if moved < len {
                return Ok(done);
            }
            (at, left) = (at + moved, left - moved);
            (*here, *room) = (*here + moved, *room - moved);
            if *room == 0 {
                local.next();
            }
        }
    }
    Ok(done)
}

/// Without protection keys in the hardware only "no key" is valid.
fn pkey_mprotect(args: &mut Args) -> Result<usize> {
    if args.a[3] as i32 != -1 { Err(Errno::EINVAL) } else { mprotect(args) }
}

fn pkey_alloc(args: &mut Args) -> Result<usize> {
    const RIGHTS: usize = 3;
    Err(if args.a[0] != 0 || args.a[1] & !RIGHTS != 0 { Errno::EINVAL } else { Errno::ENOSPC })
}

fn pkey_free(_: &mut Args) -> Result<usize> {
    Err(Errno::EINVAL)
}
