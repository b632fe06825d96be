//! A cell that is written once, at bring-up, and read freely after that.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, Ordering};

const EMPTY: u8 = 0;
const BUSY: u8 = 1;
const READY: u8 = 2;

/// A value that the first [`Once::call_once`] or [`Once::set`] writes. A second CPU that comes while the first
/// computes the value spins: initialisers are short and do not sleep.
pub struct Once<T> {
    state: AtomicU8,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by one CPU before READY is published, and only shared after that.
unsafe impl<T: Send + Sync> Sync for Once<T> {}
// SAFETY: it owns its value.
unsafe impl<T: Send> Send for Once<T> {}

impl<T> Once<T> {
    /// An empty cell.
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// The value, if it was written.
    pub fn get(&self) -> Option<&T> {
        // Acquire pairs with the Release in `call_once`: the value is complete.
        // SAFETY: READY is set after the value is written, and it is never written again.
        (self.state.load(Ordering::Acquire) == READY)
            .then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// The value; the first caller computes it.
    pub fn call_once(&self, init: impl FnOnce() -> T) -> &T {
        // Acquire on failure, for a value that another CPU has just written.
        if self.state.compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Acquire).is_ok() {
            let value = init();
            // SAFETY: BUSY makes this caller the only writer, and readers wait for READY.
            unsafe { (*self.value.get()).write(value) };
            // Release: readers that see READY see the value.
            self.state.store(READY, Ordering::Release);
        }
        loop {
            if let Some(value) = self.get() {
                return value;
            }
            spin_loop();
        }
    }

    /// Writes the value; gives it back when the cell has one already.
    pub fn set(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.call_once(|| value.take().expect("taken once"));
        value.map_or(Ok(()), Err)
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// For cells that bring-up is known to have written.
impl<T> Deref for Once<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.get().expect("used before bring-up wrote it")
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        if *self.state.get_mut() == READY {
            // SAFETY: READY says that it holds a value, and nobody shares it any more.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}
