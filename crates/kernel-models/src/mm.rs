//! Page tables of two levels: an entry above leads to a table of one leaf.

#[path = "../../../kernel/src/mm/entry.rs"]
pub mod entry;
#[path = "../../../kernel/src/mm/forked.rs"]
mod forked;
pub mod space;
pub mod tables;
