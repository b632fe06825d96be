//! The one place from which atomics come. Locks are the machine's: `lock`.
//!
//! In a build with `--cfg roundtable_model` the atomics are those of a model checker. Nothing else names `core::sync` or
//! `alloc::sync`. The locks are the machine's, so the machine of a model brings locks that the checker schedules. `Arc` and
//! what [`Tally`] and [`Flag`] are for are not scheduled.

#[cfg(roundtable_model)]
pub mod model;

pub use alloc::sync::{Arc, Weak};
pub use core::sync::atomic::Ordering;
#[cfg(not(roundtable_model))]
pub use core::sync::atomic::{AtomicBool, AtomicU64, fence};

#[cfg(roundtable_model)]
pub use model::{AtomicBool, AtomicU64, fence};

/// A number that is only added to and shown, or given out: a model checker need not try its orders.
pub type Tally = core::sync::atomic::AtomicU64;

/// A flag whose readers a lock orders: a model checker need not try its orders either.
pub type Flag = core::sync::atomic::AtomicBool;
