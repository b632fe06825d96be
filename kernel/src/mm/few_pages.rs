//! The pages of a file that has no page tables, sparse: which page frame holds which part.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::ops::Range;

use super::page_store::{CachedPage, Taken};
use crate::memory::frame::Frame;

/// Pages of one node: small enough for a small file, large enough to keep the tree flat.
const CHUNK: u64 = 32;

struct Chunk {
    pages: [Option<Frame>; CHUNK as usize],
    used: u32,
    /// One bit a page: it has (or may have) been written, and is data to lseek(2). The others were only
    /// allocated.
    written: u32,
}

/// Frames by page index.
#[derive(Default)]
pub(super) struct FewPages {
    chunks: BTreeMap<u64, Box<Chunk>>,
    count: u64,
    /// Counts what was changed, so that a copy is known to be still right.
    changes: u64,
}

impl FewPages {
    /// No pages.
    pub(super) const fn new() -> Self {
        Self { chunks: BTreeMap::new(), count: 0, changes: 0 }
    }

    /// How often anything was changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// All pages, by index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, CachedPage)> + '_ {
        self.chunks.iter().flat_map(|(key, chunk)| {
            chunk.pages.iter().enumerate().filter_map(move |(within, frame)| {
                let frame = frame.clone()?;
                let written = chunk.written & (1 << within) != 0;
                Some((key * CHUNK + within as u64, CachedPage::new(frame, written)))
            })
        })
    }

    /// How many pages there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The page at `index`.
    pub(super) fn get(&self, index: u64) -> Option<&Frame> {
        self.chunks.get(&(index / CHUNK))?.pages[(index % CHUNK) as usize].as_ref()
    }

    /// The page at `index` if it is data.
    pub(super) fn get_written(&self, index: u64) -> Option<&Frame> {
        let chunk = self.chunks.get(&(index / CHUNK))?;
        let is_written = chunk.written & (1 << (index % CHUNK)) != 0;
        chunk.pages[(index % CHUNK) as usize].as_ref().filter(|_| is_written)
    }

    /// Puts a page, which is data if `written`, where there is none; gives it back when there is one.
    pub(super) fn insert(&mut self, index: u64, frame: Frame, written: bool) -> Result<(), Frame> {
        let chunk = self.chunks.entry(index / CHUNK).or_insert_with(|| {
            Box::new(Chunk { pages: [const { None }; CHUNK as usize], used: 0, written: 0 })
        });
        let slot = &mut chunk.pages[(index % CHUNK) as usize];
        if slot.is_some() {
            return Err(frame);
        }
        *slot = Some(frame);
        chunk.written |= u32::from(written) << (index % CHUNK);
        chunk.used += 1;
        self.count += 1;
        self.changes += 1;
        Ok(())
    }

    /// The page at `index` counts as data from now on.
    pub(super) fn mark_written(&mut self, index: u64) {
        if let Some(chunk) = self.chunks.get_mut(&(index / CHUNK))
            && chunk.pages[(index % CHUNK) as usize].is_some()
        {
            let bit = 1 << (index % CHUNK);
            self.changes += u64::from(chunk.written & bit == 0);
            chunk.written |= bit;
        }
    }

    /// Takes pages of `range` out, or those of them that were only allocated, as many as there is room for, and tells where to go on; `None` when the
    /// range is done.
    pub(super) fn remove(&mut self, range: Range<u64>, untouched: bool, out: &mut Taken) -> Option<u64> {
        self.changes += 1;
        let mut at = range.start;
        while at < range.end {
            let (&key, chunk) = self.chunks.range_mut(at / CHUNK..).next()?;
            let base = key * CHUNK;
            let end = range.end.min(base + CHUNK);
            at = at.max(base);
            if at >= end {
                return None;
            }
            while at < end {
                if out.len() == out.capacity() {
                    return Some(at);
                }
                let is_written = chunk.written & (1 << (at - base)) != 0;
                // Who looks a page up has a reference at once.
                let goes =
                    |frame: &mut Frame| !untouched || !is_written && Frame::count_at(frame.phys()) == 1;
                if let Some(frame) = chunk.pages[(at - base) as usize].take_if(goes) {
                    out.push(frame);
                    chunk.written &= !(1 << (at - base));
                    chunk.used -= 1;
                    self.count -= 1;
                }
                at += 1;
            }
            if chunk.used == 0 {
                self.chunks.remove(&key);
            }
        }
        None
    }

    /// How many pages of `range` there are in the next chunk that has some, and where it ends; `None` when no more follow.
    pub(super) fn count_some(&self, range: Range<u64>) -> Option<(u64, u64)> {
        let (key, chunk) = self.chunks.range(range.start / CHUNK..).next()?;
        let base = key * CHUNK;
        if base >= range.end {
            return None;
        }
        let within = |page: &u64| range.contains(&(base + page)) && chunk.pages[*page as usize].is_some();
        Some(((0..CHUNK).filter(within).count() as u64, base.saturating_add(CHUNK)))
    }

    /// The first page with data at or after `from`.
    pub(super) fn next_data(&self, from: u64) -> Option<u64> {
        for (key, chunk) in self.chunks.range(from / CHUNK..) {
            let base = key * CHUNK;
            let first = from.saturating_sub(base);
            let data = chunk.written;
            if first < CHUNK && data >> first != 0 {
                return Some(base + first + u64::from((data >> first).trailing_zeros()));
            }
        }
        None
    }

    /// The first index at or after `from` without data.
    pub(super) fn next_hole(&self, from: u64) -> u64 {
        let mut at = from;
        while let Some(chunk) = self.chunks.get(&(at / CHUNK)) {
            let first = at % CHUNK;
            let run = u64::from((!(chunk.written >> first)).trailing_zeros());
            if first + run < CHUNK {
                return at + run;
            }
            at = (at / CHUNK + 1) * CHUNK;
        }
        at
    }
}
