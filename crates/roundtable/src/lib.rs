//! The host side: initial RAM disks, QEMU, the guest's reports; audits of Linux hosts.
#![warn(missing_docs)]

pub mod archive;
pub mod audit;
pub mod bench;
pub mod console;
pub mod content;
pub mod figures;
pub mod guest;
pub mod initramfs;
pub mod machine;
pub mod network;
pub mod options;
pub mod output;
pub mod packages;
pub mod plan;
pub mod preset;
pub mod program;
pub mod root;
pub mod run;
mod session;
pub mod signals;
pub mod size;
pub mod tarball;
pub mod terminal;
pub mod volume;
pub mod watch;

/// Makes a panic of any thread the end of the program: it has a bug then, and whoever waits for the thread would wait for ever. The
/// first thing that a tool of ours does.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
