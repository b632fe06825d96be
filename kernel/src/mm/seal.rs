//! mseal(2), and what a program gives up by prctl(PR_SET_MDWE).

use core::ops::Range;

use super::space::{AddressSpace, Areas};
use super::vma::{Kind, VmFlags, Vma, VmaSet};
use super::{PAGE, page_up};
use crate::errno::{Errno, Result};
use crate::process::Process;
use crate::sched;
use core::sync::atomic::Ordering;

impl AddressSpace {
    /// mseal(2): the areas of the range are not unmapped, moved or protected otherwise until the program ends.
    pub fn seal(&self, start: u64, len: u64) -> Result<()> {
        if !start.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let len = page_up(len).ok_or(Errno::EINVAL)?;
        let range = start..start.checked_add(len).ok_or(Errno::EINVAL)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut guard = self.write();
        let areas: &mut Areas = &mut guard;
        if !areas.set.covers(range.clone()) {
            return Err(Errno::ENOMEM);
        }
        let mut at = range.start;
        while at < range.end {
            let vma = areas.set.find(at).ok_or(Errno::ENOMEM)?;
            let part = at..vma.end.min(range.end);
            let flags = vma.flags | VmFlags::SEALED;
            at = part.end;
            self.set_flags(areas, part, flags)?;
            sched::cond_resched();
        }
        Ok(())
    }
}

impl VmaSet {
    /// Is an area sealed that has a byte in `range`?
    pub(super) fn has_sealed(&self, range: Range<u64>) -> bool {
        // Hardly any program has one.
        self.sealed > 0 && self.overlapping(range).any(|vma| vma.flags.contains(VmFlags::SEALED))
    }
}

impl Vma {
    /// Does a seal keep its content too? It does where the program could not change it by stores: in private anonymous memory without the
    /// right to write.
    pub(super) fn is_kept_by_seal(&self) -> bool {
        self.flags.contains(VmFlags::SEALED)
            && !self.flags.contains(VmFlags::WRITE)
            && match &self.kind {
                Kind::Anonymous => true,
                Kind::Huge(huge) => huge.file().is_none() && !self.flags.contains(VmFlags::SHARED),
                Kind::File(_) | Kind::Special(_) | Kind::Region(_) => false,
            }
    }
}

/// PR_MDWE_REFUSE_EXEC_GAIN.
pub const REFUSE_EXEC_GAIN: u32 = 1;

impl Process {
    /// Has the process given up that memory with the rights `old` gets the rights `new`: to execute what it can or could write?
    pub(super) fn denies_gain(&self, old: VmFlags, new: VmFlags) -> bool {
        // Relaxed: a setting of its own.
        self.refused_gains.load(Ordering::Relaxed) & REFUSE_EXEC_GAIN != 0
            && new.contains(VmFlags::EXEC)
            && (new.contains(VmFlags::WRITE) || !old.contains(VmFlags::EXEC))
    }
}
