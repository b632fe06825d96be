//! Frames with a reference count each, as the kernel's. A frame that was freed is never used again, and to look at one is an error.

use loom::sync::atomic::AtomicU32;

use super::PhysAddr;
use crate::sync::primitive::{AtomicU64, AtomicUsize, Ordering, fence};

/// Words of a frame.
pub const WORDS: usize = 2;
/// Frames of a model's memory.
const FRAMES: usize = 12;

/// What a frame is for: all the same here.
pub enum Use {
    PageTable,
    Anon,
}

struct Info {
    count: AtomicU32,
    words: [AtomicU64; WORDS],
}

struct Memory {
    frames: Vec<Info>,
    allocated: AtomicUsize,
}

loom::lazy_static! {
    static ref MEMORY: Memory = Memory {
        frames: (0..FRAMES)
            .map(|_| Info { count: AtomicU32::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) })
            .collect(),
        allocated: AtomicUsize::new(0),
    };
}

fn info(address: PhysAddr) -> &'static Info {
    &MEMORY.frames[(address.0 >> 12) as usize - 1]
}

/// What a frame in use has.
pub fn words<'a>(address: PhysAddr) -> &'a [AtomicU64; WORDS] {
    assert_ne!(info(address).count.load(Ordering::Relaxed), 0, "a frame is used that was freed");
    &info(address).words
}

/// Frames that have references.
pub fn in_use() -> usize {
    MEMORY.frames.iter().filter(|frame| frame.count.load(Ordering::SeqCst) != 0).count()
}

/// A reference to a frame.
pub struct Frame(PhysAddr);

impl Frame {
    /// A frame; there always is one.
    pub fn alloc(_for_use: Use) -> Option<Self> {
        let number = MEMORY.allocated.fetch_add(1, Ordering::SeqCst);
        let address = PhysAddr((number as u64 + 1) << 12);
        info(address).count.store(1, Ordering::Relaxed);
        Some(Self(address))
    }

    pub fn phys(&self) -> PhysAddr {
        self.0
    }

    pub fn into_raw(self) -> PhysAddr {
        std::mem::ManuallyDrop::new(self).0
    }

    /// # Safety
    /// None here.
    pub unsafe fn from_raw(address: PhysAddr) -> Self {
        Self(PhysAddr(address.0 & !0xfff))
    }

    /// # Safety
    /// None here.
    pub unsafe fn share_raw(address: PhysAddr) -> Self {
        let before = info(address).count.fetch_add(1, Ordering::Relaxed);
        assert_ne!(before, 0, "a frame is shared that was freed");
        // SAFETY: none is needed.
        unsafe { Self::from_raw(address) }
    }

    /// Orders as the kernel's does.
    pub fn into_unique(self) -> Option<Self> {
        let this = std::mem::ManuallyDrop::new(self);
        let before = info(this.0).count.fetch_sub(1, Ordering::Release);
        assert_ne!(before, 0, "a frame is freed twice");
        if before != 1 {
            return None;
        }
        fence(Ordering::Acquire);
        info(this.0).count.store(1, Ordering::Relaxed);
        Some(Self(this.0))
    }

    /// Orders as the kernel's does.
    pub fn count_at(address: PhysAddr) -> u32 {
        info(address).count.load(Ordering::Relaxed)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let before = info(self.0).count.fetch_sub(1, Ordering::Release);
        assert_ne!(before, 0, "a frame is freed twice");
    }
}
