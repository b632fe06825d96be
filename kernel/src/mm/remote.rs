//! Reading and writing an address space's memory from outside: `/proc/PID/mem`, process_vm_readv(2), program loading.

use core::ops::Range;

use super::entry::Entry;
use super::fault::{Access, ENOUGH_ROUNDS, FaultError};
use super::space::AddressSpace;
use super::userfault::Origin;
use super::vma::{Kind, VmFlags, Vma};
use super::{PAGE, page_down};
use crate::errno::{Errno, Result};
use crate::memory::frame::Frame;
use crate::memory::{PAGE_SIZE, PhysAddr, reserve};
use crate::{process, sched};

/// By which rights memory is accessed from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// The areas' own, as for process_vm_readv(2).
    Own,
    /// Those that mprotect(2) could give, as for ptrace(2) and `/proc/PID/mem`. A store where the program may not store goes to a copy of
    /// the page, private to the program.
    Forced,
}

impl Rights {
    /// Does who accesses memory so wait for a userfaultfd? As on Linux, a debugger does not.
    fn origin(self) -> Origin {
        match self {
            Self::Own => Origin::Kernel,
            Self::Forced => Origin::Debugger,
        }
    }

    fn permit(self, access: Access, vma: &Vma) -> bool {
        if vma.flags.contains(VmFlags::SECRET) {
            return false;
        }
        let (own, possible) = match access {
            Access::Write => (VmFlags::WRITE, VmFlags::MAY_WRITE),
            _ => (VmFlags::READ, VmFlags::MAY_READ),
        };
        if vma.flags.contains(own) {
            return true;
        }
        let copies = access != Access::Write
            || !vma.flags.contains(VmFlags::SHARED) && !matches!(vma.kind, Kind::Huge(_) | Kind::Special(_));
        self == Self::Forced && copies && vma.flags.contains(possible)
    }
}

impl AddressSpace {
    /// Is there memory in the range that nobody may have but by the program's own page tables?
    pub fn has_secret(&self, range: Range<u64>) -> bool {
        self.read().set.overlapping(range).any(|vma| vma.flags.contains(VmFlags::SECRET))
    }

    /// Copies from `address` on into `buffer`; returns how much there was. `EIO` when not even the first byte is readable.
    pub fn read_remote(&self, address: u64, buffer: &mut [u8], rights: Rights) -> Result<usize> {
        self.each_piece(address, buffer.len(), Access::Read, rights, |pointer, done, len| {
            // SAFETY: the pointer is good for `len` bytes while the page-table lock is held, and the buffer has them. The program may
            // store to them at the same time: the bytes are then old or new.
            unsafe { core::ptr::copy_nonoverlapping(pointer, buffer[done..].as_mut_ptr(), len) };
        })
    }

    /// Copies `bytes` to `address` on; returns how much could be written.
    pub fn write_remote(&self, address: u64, bytes: &[u8], rights: Rights) -> Result<usize> {
        self.each_piece(address, bytes.len(), Access::Write, rights, |pointer, done, len| {
            // SAFETY: as above.
            unsafe { core::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), pointer, len) };
        })
    }

    /// Shows `work` the memory behind the range in pieces within a page: pointer, distance from the begin, length.
    fn each_piece(
        &self,
        address: u64,
        total: usize,
        access: Access,
        rights: Rights,
        mut work: impl FnMut(*mut u8, usize, usize),
    ) -> Result<usize> {
        let mut done = 0;
        while done < total {
            let Some(at) = address.checked_add(done as u64) else { break };
            let len = (total - done).min((PAGE - (at & (PAGE - 1))) as usize);
            match self.with_page(at, access, rights, &mut |pointer| work(pointer, done, len)) {
                Ok(()) => done += len,
                Err(FaultError::OutOfMemory) if done == 0 => return Err(Errno::ENOMEM),
                Err(_) => break,
            }
        }
        if done == 0 && total > 0 { Err(Errno::EIO) } else { Ok(done) }
    }

    /// Calls `work` with the direct map's pointer to `address`, made accessible first. `work` must not sleep, nor go beyond the
    /// page.
    fn with_page(
        &self,
        address: u64,
        access: Access,
        rights: Rights,
        work: &mut impl FnMut(*mut u8),
    ) -> Result<(), FaultError> {
        // Resolved, and there: who takes it away again and again shall not keep a killed thread for ever.
        for round in 0u64.. {
            sched::cond_resched();
            if round > ENOUGH_ROUNDS && process::try_current().is_some_and(|thread| thread.kill_pending()) {
                break;
            }
            let areas = self.read();
            if let Some(vma) = areas.set.find(address) {
                if !rights.permit(access, vma) {
                    return Err(FaultError::Access);
                }
                if let Kind::Region(region) = &vma.kind {
                    // Once more by the rights of what is inside.
                    let inner = region.inner(vma, address);
                    return region.counting(inner, || region.space().with_page(inner, access, rights, work));
                }
                let ready = !self.is_intercepted(vma, address, access);
                if let Kind::Huge(huge) = &vma.kind
                    && ready
                {
                    let resolved = match access {
                        Access::Write => {
                            // For what the kernel notes of a new page.
                            reserve::ask(PAGE_SIZE).map_err(|_| FaultError::OutOfMemory)?;
                            huge.with_memory(address, access, work)
                        }
                        _ => huge.inspect(address, work),
                    };
                    match resolved {
                        Err(FaultError::SlotShared) => self.take_slot(&areas.set, address)?,
                        resolved => return resolved,
                    }
                    continue;
                }
                if let Some(frame) = self.window_page(vma, address, access == Access::Write)? {
                    // SAFETY: inside the frame, which the reference keeps.
                    work(unsafe { frame.as_ptr().add((address & (PAGE - 1)) as usize) });
                    return Ok(());
                }
                let tables = self.tables.lock();
                let _kept = tables.keep_shared(address);
                // To store needs a table that is ours alone; the fault makes it so.
                let entry = match access {
                    Access::Write => tables.own_leaf(address).ok().flatten().map_or(Entry(0), Entry::load),
                    _ => tables.leaf(address),
                };
                if entry.is_mapped() && (access != Access::Write || takes_stores(entry)) {
                    work(PhysAddr(entry.address().0 + (address & (PAGE - 1))).as_ptr());
                    return Ok(());
                }
            }
            drop(areas);
            self.fault_as(page_down(address), access, rights.origin(), |vma| rights.permit(access, vma))?;
        }
        Err(FaultError::Sigbus)
    }
}

/// May a store go to the page that `entry`, of a table that is the space's alone, names: is it writable for
/// the program itself, or the program's alone? The page-table lock is held.
fn takes_stores(entry: Entry) -> bool {
    let alone = entry.has(Entry::ANON) && Frame::count_at(entry.address()) == 1;
    entry.has(Entry::WRITABLE) || alone && !entry.has(Entry::USERFAULT_WP)
}
