//! `/proc/kpagecount` and `/proc/kpageflags`: a word for each frame of physical memory.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::{Errno, Result};
use crate::fs::file::{File, FileOps, Whence};
use crate::fs::inode::InodeOps;
use crate::fs::iobuf::Sink;
use crate::fs::path::Path;
use crate::memory::broken;
use crate::memory::frame::{FrameState, Use, frame_count, state_of};

const WORD: u64 = 8;

/// The bits of kpageflags, as Linux numbers them.
mod flag {
    pub const UPTODATE: u64 = 1 << 3;
    pub const LRU: u64 = 1 << 5;
    pub const SLAB: u64 = 1 << 7;
    pub const BUDDY: u64 = 1 << 10;
    pub const MMAP: u64 = 1 << 11;
    pub const ANON: u64 = 1 << 12;
    pub const SWAP_BACKED: u64 = 1 << 14;
    pub const COMPOUND_HEAD: u64 = 1 << 15;
    pub const COMPOUND_TAIL: u64 = 1 << 16;
    pub const HUGE: u64 = 1 << 17;
    pub const HWPOISON: u64 = 1 << 19;
    pub const NO_PAGE: u64 = 1 << 20;
    pub const PAGE_TABLE: u64 = 1 << 26;
}

fn flags(frame: u64) -> u64 {
    let broken = if frame < frame_count() && broken::is_broken(frame) { flag::HWPOISON } else { 0 };
    broken | use_flags(frame)
}

fn use_flags(frame: u64) -> u64 {
    match state_of(frame) {
        FrameState::Absent => flag::NO_PAGE,
        FrameState::Free => flag::BUDDY,
        FrameState::Huge { first: true } => flag::HUGE | flag::COMPOUND_HEAD | flag::UPTODATE,
        FrameState::Huge { first: false } => flag::HUGE | flag::COMPOUND_TAIL | flag::UPTODATE,
        FrameState::Used { by, references } => match by {
            Use::Anon => flag::ANON | flag::MMAP | flag::LRU | flag::UPTODATE | flag::SWAP_BACKED,
            Use::File if references > 1 => flag::MMAP | flag::LRU | flag::UPTODATE | flag::SWAP_BACKED,
            Use::File => flag::LRU | flag::UPTODATE | flag::SWAP_BACKED,
            Use::PageTable => flag::PAGE_TABLE,
            Use::Heap => flag::SLAB,
            _ => 0,
        },
    }
}

/// How often the frame is mapped: a file's page has one reference from its cache, which is no mapping.
fn count(frame: u64) -> u64 {
    match state_of(frame) {
        FrameState::Used { by: Use::Anon, references } => references.into(),
        FrameState::Used { by: Use::File, references } => references.saturating_sub(1).into(),
        _ => 0,
    }
}

/// One of the two files.
pub struct KernelPages {
    word: fn(u64) -> u64,
}

/// `/proc/kpageflags`.
pub const FLAGS: KernelPages = KernelPages { word: flags };
/// `/proc/kpagecount`.
pub const COUNTS: KernelPages = KernelPages { word: count };

impl InodeOps for KernelPages {
    fn open(&self, _: &Path, _: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(KernelPages { word: self.word }))
    }
}

impl FileOps for KernelPages {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        if !offset.is_multiple_of(WORD) || !(sink.remaining() as u64).is_multiple_of(WORD) {
            return Err(Errno::EINVAL);
        }
        let mut done = 0;
        let mut frame = offset / WORD;
        while sink.remaining() > 0 && frame < frame_count() {
            let end = (frame + 256).min(frame_count()).min(frame + sink.remaining() as u64 / WORD);
            let raw: Vec<u8> = (frame..end).flat_map(|f| (self.word)(f).to_ne_bytes()).collect();
            match sink.write(&raw) {
                Err(_) if done > 0 => break,
                other => done += other?,
            }
            frame = end;
            crate::sched::cond_resched();
        }
        Ok(done)
    }

    fn seek(&self, _: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        match whence {
            Whence::Start => u64::try_from(offset).map_err(|_| Errno::EINVAL),
            Whence::Current => position.checked_add_signed(offset).ok_or(Errno::EINVAL),
            _ => Err(Errno::EINVAL),
        }
    }
}
