//! What the kernel reads of the firmware.

#[path = "../../../kernel/src/arch/srat.rs"]
pub mod srat;
