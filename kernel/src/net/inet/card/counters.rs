//! What went through the card, as `/proc/net/dev` counts it.

use core::sync::atomic::{AtomicU64, Ordering};

/// One direction.
pub struct Direction {
    /// Bytes of frames.
    pub bytes: AtomicU64,
    /// Frames.
    pub packets: AtomicU64,
    /// Frames that were thrown away.
    pub lost: AtomicU64,
}

// Relaxed throughout: numbers for people.
impl Direction {
    const fn new() -> Self {
        Self { bytes: AtomicU64::new(0), packets: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }

    /// A frame of `len` bytes went through.
    pub fn count(&self, len: usize) {
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        self.packets.fetch_add(1, Ordering::Relaxed);
    }

    /// A frame was thrown away.
    pub fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes, frames, and frames that were lost.
    pub fn read(&self) -> [u64; 3] {
        [&self.bytes, &self.packets, &self.lost].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Both directions.
pub struct Counters {
    pub receive: Direction,
    pub send: Direction,
}

/// Since boot.
pub static COUNTERS: Counters = Counters { receive: Direction::new(), send: Direction::new() };
