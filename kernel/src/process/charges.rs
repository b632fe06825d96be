//! What of the kernel's own memory a process has many of, beside its areas, files and threads: the killer counts it.

use core::sync::atomic::{AtomicUsize, Ordering};

use alloc::sync::Arc;

use crate::sync::Once;

/// The sum of a process. It is made when there is something to count: most processes have nothing of the kind.
pub struct Charges(Once<Arc<AtomicUsize>>);

impl Charges {
    /// Nothing.
    pub const fn new() -> Self {
        Self(Once::new())
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        // Relaxed, here and below: a sum that decides nothing but whom the killer chooses.
        self.0.get().map_or(0, |sum| sum.load(Ordering::Relaxed) as u64)
    }

    /// Counts so many bytes more, until the result is dropped.
    pub fn add(&self, bytes: usize) -> Charge {
        let sum = self.0.call_once(Arc::default).clone();
        sum.fetch_add(bytes, Ordering::Relaxed);
        Charge { sum, bytes }
    }
}

/// Bytes that are counted for a process.
pub struct Charge {
    sum: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    /// So many bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts so many bytes more.
    pub fn grow(&mut self, bytes: usize) {
        self.sum.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Counts so many bytes less.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.sum.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
