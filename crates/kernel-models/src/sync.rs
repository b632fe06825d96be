//! Locks: the kernel's own sleeping ones, loom's in the place of those that spin.

pub mod debug;
pub mod grace;
pub mod mutant;
pub mod perturb;
pub mod primitive;
#[path = "../../../kernel/src/sync/sleep.rs"]
mod sleep;
#[path = "../../../kernel/src/sync/wait.rs"]
mod wait;
#[path = "../../../kernel/src/sync/watchers.rs"]
mod watchers;

pub use sleep::RawRwLock;
pub use wait::{WaitError, WaitQueue, Watcher};

/// The other lock that spins in the kernel.
pub type SpinLock<T> = IrqLock<T>;

/// A lock that spins in the kernel.
pub struct IrqLock<T>(loom::sync::Mutex<T>);

impl<T> IrqLock<T> {
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}
