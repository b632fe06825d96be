//! Reading and writing an address space's memory from outside: `/proc/PID/mem`, process_vm_readv(2), program loading.

use core::sync::atomic::Ordering;

use super::entry::Entry;
use super::fault::{Access, FaultError, Unresolved};
use super::space::AddressSpace;
use super::tables::{Tables, span};
use super::vma::Kind;
use super::{PAGE, page_down};
use crate::errno::{Errno, Result};
use crate::memory::PhysAddr;

impl Tables {
    /// Where `address` is in physical memory, and whether it may be written to; pages of any size.
    pub fn translate(&self, address: u64) -> Option<(PhysAddr, Entry)> {
        for level in 1..=3 {
            // From the leaf up: an upper level answers only where it is a huge page, below which there are no tables.
            if let Some(slot) = self.find(address, level) {
                let entry = Entry(slot.load(Ordering::SeqCst));
                let is_leaf = level == 1 || entry.has(Entry::HUGE);
                if !entry.is_present() || !is_leaf {
                    return None;
                }
                let size = span(level);
                let base = entry.address().0 & !(size - 1);
                return Some((PhysAddr(base + (address & (size - 1))), entry));
            }
        }
        None
    }
}

impl AddressSpace {
    /// Copies from `address` on into `buffer`; returns how much there was. `EIO` when not even the first byte is readable.
    pub fn read_remote(&self, address: u64, buffer: &mut [u8]) -> Result<usize> {
        self.each_piece(address, buffer.len(), Access::Read, |pointer, done, len| {
            // SAFETY: the pointer is good for `len` bytes while the page-table lock is held, and the buffer has them. The program may
            // store to them at the same time: the bytes are then old or new.
            unsafe { core::ptr::copy_nonoverlapping(pointer, buffer[done..].as_mut_ptr(), len) };
        })
    }

    /// Copies `bytes` to `address` on; returns how much could be written.
    pub fn write_remote(&self, address: u64, bytes: &[u8]) -> Result<usize> {
        self.each_piece(address, bytes.len(), Access::Write, |pointer, done, len| {
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
        mut work: impl FnMut(*mut u8, usize, usize),
    ) -> Result<usize> {
        let mut done = 0;
        while done < total {
            let Some(at) = address.checked_add(done as u64) else { break };
            let len = (total - done).min((PAGE - (at & (PAGE - 1))) as usize);
            match self.with_page(at, access, &mut |pointer| work(pointer, done, len)) {
                Ok(()) => done += len,
                Err(FaultError::NoMemory) if done == 0 => return Err(Errno::ENOMEM),
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
        work: &mut impl FnMut(*mut u8),
    ) -> Result<(), FaultError> {
        let write = access == Access::Write;
        loop {
            let areas = self.read();
            if let Some(vma) = areas.set.find(address)
                && let Kind::Huge(huge) = &vma.kind
            {
                match huge.with_memory(address, access, work) {
                    Ok(()) => return Ok(()),
                    Err(Unresolved::Failed(error)) => return Err(error),
                    Err(Unresolved::SlotShared) => self.take_slot(&areas.set, address)?,
                }
                continue;
            }
            let tables = self.tables.lock();
            if let Some((physical, entry)) = tables.translate(address)
                && (!write || entry.has(Entry::WRITABLE))
            {
                work(physical.as_ptr());
                return Ok(());
            }
            drop(tables);
            drop(areas);
            self.fault(page_down(address), access)?;
        }
    }
}
