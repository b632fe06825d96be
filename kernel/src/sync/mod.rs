//! Locks, wait queues, and the rules for using them.
//!
//! | type | waiter | may be taken in an interrupt | may sleep while held |
//! | --- | --- | --- | --- |
//! | [`SpinLock`] | spins, interrupts stay as they are | no | no |
//! | [`IrqLock`] | spins, interrupts off while held | yes | no, and never waits for another CPU |
//! | [`Mutex`], [`RwLock`] | sleeps | no | yes |
//!
//! Kernel mode is not preempted: a thread leaves its CPU only where it sleeps or calls `sched::cond_resched`. A spin
//! lock therefore is held for a bounded time by a running CPU. A CPU that spins on a [`SpinLock`] with interrupts on
//! answers TLB shootdowns, so a holder may send them; the holder of an [`IrqLock`] must not.
//!
//! Who looks at page tables takes none of them, but a read section: [`grace`].
//!
//! Debug builds count the spin locks that a CPU holds, and the functions that sleep assert that it is none. Kernels with the
//! feature `lockdep` know in which order locks are taken: [`lockdep`].

pub mod debug;
pub mod grace;
pub mod lockdep;
mod locks;
pub mod mutant;
mod once;
pub mod perturb;
pub mod primitive;
mod raw;
mod sleep;
mod spin;
mod wait;
mod watchers;

pub use locks::{IrqLock, Mutex, RwLock, SpinLock};
pub use once::Once;
pub use raw::{RawMutex, RawRwLock};
pub use spin::{RawIrqLock, RawSpinLock};
pub use wait::{WaitError, WaitQueue, Watcher};

/// The guard of a [`SpinLock`].
pub type SpinLockGuard<'a, T> = lock_api::MutexGuard<'a, RawSpinLock, T>;
/// The guard of an [`IrqLock`].
pub type IrqLockGuard<'a, T> = lock_api::MutexGuard<'a, RawIrqLock, T>;
/// The guard of a [`Mutex`].
pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, RawMutex, T>;
/// The guard of a reader of an [`RwLock`].
pub type RwLockReadGuard<'a, T> = lock_api::RwLockReadGuard<'a, RawRwLock, T>;
/// The guard of the writer of an [`RwLock`].
pub type RwLockWriteGuard<'a, T> = lock_api::RwLockWriteGuard<'a, RawRwLock, T>;
