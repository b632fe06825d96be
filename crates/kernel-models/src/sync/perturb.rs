//! The checker chooses who overtakes whom.

pub fn point() {}
