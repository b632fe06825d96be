//! The host side: initial RAM disks, QEMU, the guest's reports; audits of Linux hosts.
#![warn(missing_docs)]

pub mod archive;
pub mod audit;
pub mod bench;
pub mod console;
pub mod content;
pub mod guest;
pub mod initramfs;
pub mod machine;
pub mod options;
pub mod output;
pub mod packages;
pub mod plan;
pub mod program;
pub mod root;
pub mod run;
mod session;
pub mod signals;
pub mod size;
pub mod tarball;
pub mod terminal;
pub mod watch;
