//! remap_file_pages(2): other pages of its file at a part of a shared mapping. As on Linux today, each such part is an area of its own.

use core::ops::Range;

use linux_raw_sys::general as abi;

use super::map::{Plan, Source};
use super::space::{AddressSpace, Areas, Leftovers};
use super::vma::{Kind, VmFlags, Vma};
use super::{PAGE, page_down};
use crate::errno::{Errno, Result};
use crate::fs::seals::Seals;
use crate::memory::PAGE_SHIFT;

impl AddressSpace {
    /// remap_file_pages(2): shows the file's pages from index `first` on at `start`.
    pub fn remap_file_pages(&self, start: u64, len: u64, first: u64, flags: u32) -> Result<()> {
        let (start, len) = (page_down(start), page_down(len));
        let range = start..start.checked_add(len).ok_or(Errno::EINVAL)?;
        first.checked_add(len >> PAGE_SHIFT).ok_or(Errno::EINVAL)?;
        if range.is_empty() {
            return Err(Errno::EINVAL);
        }
        let mut leftovers = Leftovers::default();
        let mut areas = self.write();
        let plan = plan(&areas, range.clone(), first)?;
        let result = self.map_locked(&mut areas, plan, &mut leftovers);
        drop(areas);
        result?;
        if flags & abi::MAP_NONBLOCK == 0 {
            // What cannot be populated is found out at the first touch.
            let _ = self.populate(range);
        }
        Ok(())
    }
}

/// What goes to `range`: the same file with the same rights as what is there, which may be several areas of it.
fn plan(areas: &Areas, range: Range<u64>, first: u64) -> Result<Plan> {
    let writable = VmFlags::SHARED | VmFlags::MAY_WRITE;
    let vma = areas.set.find(range.start).filter(|vma| vma.flags.contains(writable)).ok_or(Errno::EINVAL)?;
    let mut at = range.start;
    for part in areas.set.overlapping(range.clone()) {
        if part.start > at || part.flags != vma.flags || !same_file(part, vma) {
            return Err(Errno::EINVAL);
        }
        at = part.end;
    }
    let (len, granule) = (range.end - range.start, vma.granule() / PAGE);
    let fits = first.checked_mul(PAGE).and_then(|offset| offset.checked_add(len));
    if fits.is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::EOVERFLOW);
    }
    if at < range.end || !first.is_multiple_of(granule) || !len.is_multiple_of(vma.granule()) {
        return Err(Errno::EINVAL);
    }
    let seals = vma.file().and_then(|file| file.ops().seals());
    let arriving = seals.map(Seals::admit_writable_mapping).transpose()?;
    let source = match &vma.kind {
        Kind::File(area) => Source::Cache {
            cache: area.link.cache().clone(),
            file: area.file.clone(),
            attachment: area.attachment.clone(),
        },
        Kind::Huge(huge) => Source::Huge {
            file: huge.content().clone(),
            opened: huge.file().cloned(),
            attachment: huge.attachment().cloned(),
        },
        Kind::Anonymous | Kind::Special(_) | Kind::Region(_) => return Err(Errno::EINVAL),
    };
    Ok(Plan {
        hint: range.start,
        len,
        fixed: true,
        no_replace: false,
        low: false,
        flags: vma.flags - VmFlags::USERFAULT,
        first,
        source,
        _arriving: arriving,
    })
}

fn same_file(a: &Vma, b: &Vma) -> bool {
    match (&a.kind, &b.kind) {
        (Kind::File(a), Kind::File(b)) => alloc::sync::Arc::ptr_eq(a.link.cache(), b.link.cache()),
        (Kind::Huge(a), Kind::Huge(b)) => alloc::sync::Arc::ptr_eq(a.content(), b.content()),
        _ => false,
    }
}
