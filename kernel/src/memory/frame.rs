//! Physical frames with a reference count each.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, Ordering, fence};

use super::buddy::{self, FrameInfo};
pub use super::usage::Use;
use super::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, node, usage};
use crate::mm::policy::{self, Places};

/// One reference to a frame of 4 KiB; the last one to go frees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(PhysAddr);

impl Frame {
    /// A frame with arbitrary content; `None` when memory for this use is used up.
    ///
    /// One for a process comes from where the thread's policies say, any other from as near as there is one.
    pub fn alloc(for_use: Use) -> Option<Self> {
        if node::count() > 1 && matches!(for_use, Use::Anon | Use::File) {
            return Self::alloc_by_policy(for_use);
        }
        buddy::allocate(0, for_use).map(Self::new)
    }

    #[cold]
    fn alloc_by_policy(for_use: Use) -> Option<Self> {
        let places = policy::wanted();
        let mut frame = buddy::allocate_from(0, for_use, places.as_ref().map(Places::as_slice));
        // If it was not for want of memory at all, these places had none.
        if frame.is_none() && usage::is_left(for_use) && places.as_ref().is_some_and(policy::may_go_elsewhere)
        {
            frame = buddy::allocate_from(0, for_use, None);
        }
        frame.map(Self::new)
    }

    /// As [`Self::alloc`], from these nodes and no others, the first one first.
    pub fn alloc_from(for_use: Use, nodes: &[u8]) -> Option<Self> {
        buddy::allocate_from(0, for_use, Some(nodes)).map(Self::new)
    }

    /// The first reference to a frame that was allocated.
    fn new(frame: u64) -> Self {
        // Relaxed: nobody else knows the frame yet.
        buddy::info(frame).count.store(1, Ordering::Relaxed);
        Self(PhysAddr(frame << PAGE_SHIFT))
    }

    /// A frame of zeros; `None` when memory for this use is used up.
    pub fn alloc_zeroed(for_use: Use) -> Option<Self> {
        let frame = Self::alloc(for_use)?;
        // SAFETY: the frame is ours alone.
        unsafe { frame.as_ptr().write_bytes(0, PAGE_SIZE) };
        Some(frame)
    }

    fn info(&self) -> &'static FrameInfo {
        buddy::info(self.0.page_number())
    }

    /// How many references there are, this one included. Stale at once unless it is 1.
    pub fn count(&self) -> u32 {
        // Acquire: whoever finds itself alone sees what the others did before they let go.
        self.info().count.load(Ordering::Acquire)
    }

    pub fn phys(&self) -> PhysAddr {
        self.0
    }

    /// The frame in the direct map.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    pub fn used_for(&self) -> Use {
        // Relaxed: set before the frame was handed out.
        Use::from_u8(self.info().used_for.load(Ordering::Relaxed))
    }

    /// Turns the reference into an address, for a page table; [`Self::from_raw`] turns it back.
    pub fn into_raw(self) -> PhysAddr {
        ManuallyDrop::new(self).0
    }

    /// Takes back the reference that [`Self::into_raw`] gave.
    ///
    /// # Safety
    /// Once for each `into_raw`; `address` may have any offset in the frame.
    pub unsafe fn from_raw(address: PhysAddr) -> Self {
        Self(address.align_down(PAGE_SIZE as u64))
    }

    /// Another reference to a frame that is referenced already.
    ///
    /// # Safety
    /// The frame has a reference that does not go away during the call: a page-table entry under its lock, say.
    pub unsafe fn share_raw(address: PhysAddr) -> Self {
        // SAFETY: the borrowed reference is never dropped.
        let borrowed = ManuallyDrop::new(unsafe { Self::from_raw(address) });
        Self::clone(&borrowed)
    }

    /// Gives up this reference. If it was the last one, returns it instead, and nobody else has or can get
    /// one.
    pub fn into_unique(self) -> Option<Self> {
        let this = ManuallyDrop::new(self);
        // Release: what we did to the frame comes before what the last one does to it.
        let before = this.info().count.fetch_sub(1, Ordering::Release);
        assert!(before != 0, "frame {} freed twice", this.0);
        if before != 1 {
            return None;
        }
        // Pairs with the Release of the other references' drops.
        fence(Ordering::Acquire);
        // Relaxed: nobody else knows the frame.
        this.info().count.store(1, Ordering::Relaxed);
        Some(Self(this.0))
    }

    /// Notes a number for the frame, which no [`FrameList`] may have meanwhile.
    pub fn note_at(address: PhysAddr, note: u32) {
        // Relaxed, here and below: guarded by a lock of the caller's.
        buddy::info(address.page_number()).next.store(note, Ordering::Relaxed);
    }

    /// What [`Self::note_at`] noted last.
    pub fn noted_at(address: PhysAddr) -> u32 {
        buddy::info(address.page_number()).next.load(Ordering::Relaxed)
    }

    /// References to the frame at `address` now, for reports; 0 for what is no counted frame.
    pub fn count_at(address: PhysAddr) -> u32 {
        // Relaxed: a snapshot.
        buddy::info(address.page_number()).count.load(Ordering::Relaxed)
    }
}

impl Clone for Frame {
    fn clone(&self) -> Self {
        // Relaxed: the reference that is cloned keeps the frame alive.
        let before = self.info().count.fetch_add(1, Ordering::Relaxed);
        assert!(before != 0 && before < u32::MAX / 2, "reference count of frame {} is {before}", self.0);
        Self(self.0)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let info = self.info();
        // Release: what we did to the frame comes before its next use.
        let before = info.count.fetch_sub(1, Ordering::Release);
        assert!(before != 0, "frame {} freed twice", self.0);
        if before == 1 {
            // Pairs with the Release of the other references' drops.
            fence(Ordering::Acquire);
            buddy::free(self.0.page_number(), 0, self.used_for());
        }
    }
}

/// Frames in the order in which they came, in a list that takes no memory: its links are in the frames' descriptions, so that freeing
/// never needs to allocate. Each frame's reference is the only one.
#[derive(Default)]
pub struct FrameList {
    /// First and last frame, by number.
    ends: Option<(u32, u32)>,
    len: usize,
}

impl FrameList {
    pub const fn new() -> Self {
        Self { ends: None, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    fn link(from: u32) -> &'static AtomicU32 {
        &buddy::info(u64::from(from)).next
    }

    /// Adds a frame at the end.
    pub fn push(&mut self, frame: Frame) {
        debug_assert_eq!(frame.count(), 1, "a frame with other references is put on a list");
        let number = frame.into_raw().page_number() as u32;
        // Relaxed, here and below: whoever has the list has the links.
        self.ends = Some(match self.ends {
            Some((first, last)) => {
                Self::link(last).store(number, Ordering::Relaxed);
                (first, number)
            }
            None => (number, number),
        });
        self.len += 1;
    }

    /// Takes the first frame.
    pub fn pop(&mut self) -> Option<Frame> {
        let (first, last) = self.ends?;
        self.ends = (first != last).then(|| (Self::link(first).load(Ordering::Relaxed), last));
        self.len -= 1;
        // SAFETY: the reference that `push` turned into a number.
        Some(unsafe { Frame::from_raw(PhysAddr(u64::from(first) << PAGE_SHIFT)) })
    }

    /// Moves all frames of `other` to the end.
    pub fn append(&mut self, other: &mut FrameList) {
        let Some((first, last)) = other.ends.take() else { return };
        self.ends = Some(match self.ends {
            Some((head, tail)) => {
                Self::link(tail).store(first, Ordering::Relaxed);
                (head, last)
            }
            None => (first, last),
        });
        self.len += core::mem::take(&mut other.len);
    }
}

impl Drop for FrameList {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// What a frame is, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameState {
    /// Not managed: no memory, or the kernel image and firmware.
    Absent,
    /// Free, in the allocator's lists.
    Free,
    /// Part of a huge page, or of memory for one; `first`: its first frame of 2 MiB.
    Huge { first: bool },
    /// In use, with its references; 0 for memory that is not counted.
    Used { by: Use, references: u32 },
}

/// What the frame with this number is now; stale at once.
pub fn state_of(frame: u64) -> FrameState {
    /// Frames of the smallest huge page.
    const HUGE: u64 = 512;
    if frame >= buddy::count() {
        return FrameState::Absent;
    }
    if buddy::is_free(frame) {
        return FrameState::Free;
    }
    // Relaxed, twice: a snapshot.
    let info = buddy::info(frame);
    let references = info.count.load(Ordering::Relaxed);
    let used_for = |frame: u64| Use::from_u8(buddy::info(frame).used_for.load(Ordering::Relaxed));
    let first = frame / HUGE * HUGE;
    if references == 0 && used_for(first) == Use::Huge {
        return FrameState::Huge { first: frame == first };
    }
    FrameState::Used { by: used_for(frame), references }
}

/// One more than the number of the last frame.
pub fn frame_count() -> u64 {
    buddy::count()
}
