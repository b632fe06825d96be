//! The host side: initial RAM disks, QEMU, and the guest's reports.
#![warn(missing_docs)]

pub mod archive;
pub mod bench;
pub mod console;
pub mod guest;
pub mod initramfs;
pub mod machine;
pub mod options;
pub mod program;
pub mod run;
pub mod size;
pub mod terminal;
