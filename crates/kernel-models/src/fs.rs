//! The kernel's device numbers.

#[path = "../../../kernel/src/fs/minors.rs"]
pub mod minors;
