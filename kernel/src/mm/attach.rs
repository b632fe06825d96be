//! Attaching and detaching segments of System V shared memory.

use alloc::sync::Arc;

use super::map::{MAY_ALL, Plan, Source, access_flags};
use super::shm::{Attachment, Memory};
use super::space::{AddressSpace, Leftovers};
use super::vma::{Kind, VmFlags, Vma};
use super::{PAGE, TASK_SIZE};
use crate::errno::{Errno, Result};
use crate::memory::PAGE_SHIFT;
use crate::sched;

impl AddressSpace {
    /// shmat(2): maps the segment at `address`, or anywhere; over what is there only if `replace`.
    pub fn attach(
        &self,
        attachment: Attachment,
        address: Option<u64>,
        prot: u32,
        replace: bool,
    ) -> Result<u64> {
        let segment = attachment.segment().clone();
        let mut flags = access_flags(prot) | MAY_ALL | VmFlags::SHARED;
        if !flags.contains(VmFlags::WRITE) {
            flags -= VmFlags::MAY_WRITE;
        }
        let (granule, source) = match &segment.memory {
            Memory::Pages(memory) => {
                (PAGE, Source::Cache { cache: memory.clone(), file: None, attachment: Some(attachment) })
            }
            Memory::Huge(file) => (
                file.page_size(),
                Source::Huge { file: file.clone(), opened: None, attachment: Some(attachment) },
            ),
        };
        let len = segment.size.checked_next_multiple_of(granule).ok_or(Errno::EINVAL)?;
        if address.is_some_and(|address| address.checked_add(segment.size).is_none()) && !replace {
            return Err(Errno::EINVAL);
        }
        let plan = Plan {
            hint: address.unwrap_or(0),
            len,
            fixed: address.is_some(),
            no_replace: !replace,
            low: false,
            flags,
            first: 0,
            source,
            _arriving: None,
        };
        match self.map_plan(plan) {
            Ok(range) => Ok(range.start),
            Err(Errno::EEXIST) => Err(Errno::EINVAL),
            Err(error) => Err(error),
        }
    }

    /// shmdt(2): unmaps what is left of the attachment that began at `address`.
    pub fn detach(&self, address: u64) -> Result<()> {
        if !address.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let mut leftovers = Leftovers::default();
        let mut areas = self.write();
        // The first area that would begin at `address` had its begin not been cut off, and all others of the same attachment.
        let origin = |vma: &Vma| vma.start.wrapping_sub(vma.first << PAGE_SHIFT);
        let segment_of = |vma: &Vma| match &vma.kind {
            Kind::File(area) => area.attachment.as_ref().map(|attachment| attachment.segment().clone()),
            Kind::Huge(huge) => huge.attachment().map(|attachment| attachment.segment().clone()),
            Kind::Anonymous | Kind::Special(_) | Kind::Region(_) => None,
        };
        let from_address = || areas.set.overlapping(address..TASK_SIZE);
        let segment =
            from_address().filter(|vma| origin(vma) == address).find_map(segment_of).ok_or(Errno::EINVAL)?;
        let end = address.saturating_add(segment.size.next_multiple_of(1 << 30)).min(TASK_SIZE);
        let mut result = Ok(());
        let mut at = address;
        // One by one: a program may have cut the segment into very many.
        while let Some(vma) = areas.set.find_in(at..end) {
            let range = vma.range();
            at = range.end;
            let is_part =
                origin(vma) == address && segment_of(vma).is_some_and(|found| Arc::ptr_eq(&found, &segment));
            if is_part {
                result = result.and(self.unmap_locked(&mut areas, range, &mut leftovers));
            }
            sched::cond_resched();
        }
        drop(areas);
        result
    }
}
