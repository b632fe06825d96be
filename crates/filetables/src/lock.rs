//! The locks, which are the machine's.

use crate::machine::Machine;

/// A lock for short sections: the holder does not sleep, wait for another CPU, or allocate.
pub(crate) type Spin<M, T> = lock_api::Mutex<<M as Machine>::RawSpinLock, T>;
