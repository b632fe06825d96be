//! The first process: unpacks the initial RAM disk and executes the first program, as Linux would.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::boot::{self, cmdline};
use crate::errno::Errno;
use crate::fs;

/// What process 1 does in the kernel. Returns to enter the program.
pub fn first_process() {
    if let Some(image) = boot::info::initrd() {
        fs::initramfs::unpack(image);
        // SAFETY: the archive is unpacked, nobody else looks at it.
        unsafe { boot::info::release_initrd() };
    }
    let files = super::current().files();
    fs::install_console(&files);
    let given = cmdline::get("rdinit").or_else(|| cmdline::get("init"));
    let candidates: Vec<&'static str> = match given {
        Some(path) => alloc::vec![path],
        None => alloc::vec!["/init", "/sbin/init", "/etc/init", "/bin/init", "/bin/sh"],
    };
    for path in candidates {
        match super::execute(path, arguments(path), environment()) {
            Ok(()) => {
                log::info!("Run {path} as init process");
                return;
            }
            Err(Errno::ENOENT) => {}
            Err(error) => log::error!("Failed to execute {path} ({error})"),
        }
    }
    panic!("No working init found. Try passing init= option to kernel.");
}

/// The program's name, and what the command line has after `--`.
fn arguments(path: &'static str) -> Vec<String> {
    core::iter::once(path).chain(cmdline::init_arguments()).map(ToString::to_string).collect()
}

/// The two variables that Linux sets.
fn environment() -> Vec<String> {
    ["HOME=/", "TERM=linux"].map(ToString::to_string).into()
}
