//! What identifies a futex, wherever it is mapped.

use super::TASK_SIZE;
use super::fault::Access;
use super::space::AddressSpace;
use super::vma::{Kind, VmFlags};
use crate::errno::{Errno, Result};
use crate::memory::PAGE_SHIFT;
use crate::process;

/// The identity of a 32-bit word that threads wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Memory of one address space: which, and where.
    Private { space: usize, address: u64 },
    /// Memory that address spaces share: device and inode number of its object, byte offset in it.
    Shared { device: u64, inode: u64, offset: u64 },
}

/// The key of the futex at `address` of the current process; `shared` unless the caller said that it is private. `EINVAL` for an unaligned address,
/// `EFAULT` when nothing can be there. May fault the page in, never with a lock held.
pub fn futex_key(address: usize, shared: bool) -> Result<Key> {
    let current = process::current();
    let space = current.space().ok_or(Errno::EFAULT)?;
    space.futex_key(address as u64, shared)
}

impl AddressSpace {
    fn futex_key(&self, address: u64, shared: bool) -> Result<Key> {
        if !address.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        if address >= TASK_SIZE {
            return Err(Errno::EFAULT);
        }
        let private = Key::Private { space: core::ptr::from_ref(self) as usize, address };
        if !shared {
            return Ok(private);
        }
        {
            let areas = self.read();
            let vma = areas.set.find(address).ok_or(Errno::EFAULT)?;
            let offset = (vma.index_of(address) << PAGE_SHIFT) + (address & (super::PAGE - 1));
            // What is not private is looked at: memory that nobody may touch has no futex.
            let is_secret = vma.flags.contains(VmFlags::SECRET);
            if is_secret || !vma.flags.intersects(VmFlags::READ | VmFlags::WRITE) {
                return Err(Errno::EFAULT);
            }
            if !vma.flags.contains(VmFlags::SHARED) {
                return Ok(private);
            }
            if let Kind::Region(region) = &vma.kind {
                // What is inside says who shares it. Private memory of a region is everybody's who has it attached.
                let (inner, space) = (region.inner(vma, address), region.space());
                return match space.tables.lookup(inner) {
                    Some(_) => space.futex_key(inner, true),
                    None => region.counting(inner, || space.futex_key(inner, true)),
                };
            }
            let id = match &vma.kind {
                Kind::File(area) => Some(area.link.cache().id()),
                Kind::Huge(huge) => Some(huge.id()),
                Kind::Anonymous | Kind::Special(_) | Kind::Region(_) => None,
            };
            if let Some((device, inode)) = id {
                drop(areas);
                // The page must be possible to have: behind the end of a file there is no futex. Mostly it is there.
                if self.tables.lookup(address).is_some() {
                    return Ok(Key::Shared { device, inode, offset });
                }
                self.fault(address, Access::Read).map_err(|error| Errno::new(error.errno()))?;
                return Ok(Key::Shared { device, inode, offset });
            }
        }
        Ok(private)
    }
}
