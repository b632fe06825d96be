//! Regions: which of them address spaces have attached.

#[path = "../../../kernel/src/mm/mshare/spaces.rs"]
mod spaces;

pub use spaces::{Part, Spaces};
