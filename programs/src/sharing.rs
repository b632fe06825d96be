//! What our kernel tells of shared tables: `/sys/kernel/mm/hugepages/sharing`.

use crate::procfs;

pub const DIRECTORY: &str = "/sys/kernel/mm/hugepages/sharing";

/// The protocol; `None` on a kernel that has none of ours.
pub fn protocol() -> Option<String> {
    let name = std::fs::read_to_string(format!("{DIRECTORY}/protocol")).ok()?;
    Some(name.trim().to_string())
}

/// A counter by its name.
#[track_caller]
pub fn counter(name: &str) -> u64 {
    procfs::number(&format!("{DIRECTORY}/{name}"))
}
