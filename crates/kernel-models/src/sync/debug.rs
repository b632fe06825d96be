//! What the kernel's checked builds look at, and models do not.

pub fn assert_may_sleep() {}
