//! brk(2): the heap.

use linux_raw_sys::general as abi;

use super::accounting;
use super::layout;
use super::space::{AddressSpace, Leftovers};
use super::vma::{VmFlags, Vma};
use super::{TASK_SIZE, limit, page_up};
use crate::errno::{Errno, Result};

/// What the heap allows.
const FLAGS: VmFlags = VmFlags::READ
    .union(VmFlags::WRITE)
    .union(VmFlags::MAY_READ)
    .union(VmFlags::MAY_WRITE)
    .union(VmFlags::MAY_EXEC)
    .union(VmFlags::ACCOUNT);

impl AddressSpace {
    /// brk(2): the new end of the heap, or the old one when it cannot be moved.
    pub fn brk(&self, wanted: u64) -> u64 {
        let mut leftovers = Leftovers::default();
        let mut areas = self.write();
        let old = areas.layout.brk;
        let moved = self.move_brk(&mut areas, wanted, &mut leftovers);
        let populate = match moved {
            Ok(())
                if wanted > old
                    && areas.new_flags & (VmFlags::LOCKED | VmFlags::LOCK_ON_FAULT) == VmFlags::LOCKED =>
            {
                Some(super::page_down(old)..areas.layout.brk)
            }
            _ => None,
        };
        let result = areas.layout.brk;
        drop(areas);
        if let Some(range) = populate {
            // What cannot be populated is found out at the first touch.
            let _ = self.populate(range);
        }
        result
    }

    fn move_brk(&self, areas: &mut super::Areas, wanted: u64, leftovers: &mut Leftovers) -> Result<()> {
        let layout = &areas.layout;
        if wanted < layout.brk_start || wanted > TASK_SIZE {
            return Err(Errno::EINVAL);
        }
        let size = wanted - layout.brk_start + (layout.data.end - layout.data.start);
        if size > limit(abi::RLIMIT_DATA) {
            return Err(Errno::ENOMEM);
        }
        let old_end = page_up(layout.brk).ok_or(Errno::ENOMEM)?;
        let new_end = page_up(wanted).ok_or(Errno::ENOMEM)?;
        if new_end < old_end {
            self.unmap_locked(areas, new_end..old_end, leftovers)?;
        } else if new_end > old_end {
            if !layout::is_free(&areas.set, old_end..new_end + super::PAGE) {
                return Err(Errno::ENOMEM);
            }
            // As in `map`: what is merged below counts first.
            if areas.set.count() > accounting::max_map_count() {
                return Err(Errno::ENOMEM);
            }
            let flags = FLAGS | areas.new_flags;
            layout::charge(&areas.set, flags, (new_end - old_end) >> 12)?;
            areas.set.insert(Vma::anonymous(old_end..new_end, flags));
            areas.set.merge(old_end..new_end);
        }
        areas.layout.brk = wanted;
        Ok(())
    }
}
