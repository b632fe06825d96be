//! The first process: unpacks the initial RAM disk and executes the first program, as Linux would.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::boot::{self, cmdline};
use crate::errno::{Errno, Result};
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
    crate::sync::lockdep::system_is_up();
    if let Err(error) = start_program() {
        panic!("No working init found ({error}). Try passing init= option to kernel.");
    }
}

/// Executes `rdinit=` (or `/init`), else `init=`, else what is in one of the usual places. As in Linux, `init=` is final.
fn start_program() -> Result<()> {
    let early = cmdline::get("rdinit").unwrap_or("/init");
    match run(early) {
        Ok(()) => return Ok(()),
        Err(Errno::ENOENT) if !cmdline::has("rdinit") => {}
        Err(error) => log::error!("Failed to execute {early} ({error})"),
    }
    if let Some(asked) = cmdline::get("init") {
        return run(asked).inspect_err(|error| log::error!("Failed to execute {asked} ({error})"));
    }
    let mut last = Errno::ENOENT;
    for path in ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"] {
        match run(path) {
            Ok(()) => return Ok(()),
            Err(Errno::ENOENT) => {}
            Err(error) => {
                log::error!("{path} exists but could not be executed ({error})");
                last = error;
            }
        }
    }
    Err(last)
}

fn run(path: &'static str) -> Result<()> {
    super::execute(path, arguments(path), environment())?;
    log::info!("Run {path} as init process");
    Ok(())
}

/// The program's name, run levels, and what the command line has after `--`.
///
/// Linux hands over every word that it does not know itself. Which those are cannot be told here, where most of Linux's
/// parameters mean nothing; so it is those that init programs take.
fn arguments(path: &'static str) -> Vec<String> {
    let is_run_level = |word: &str| {
        matches!(word, "single" | "emergency" | "rescue" | "s" | "S" | "1" | "2" | "3" | "4" | "5")
    };
    let words = cmdline::parameters().filter(|(_, value)| value.is_none()).map(|(name, _)| name);
    let levels = words.filter(|word| is_run_level(word));
    core::iter::once(path).chain(levels).chain(cmdline::init_arguments()).map(ToString::to_string).collect()
}

/// The two variables that Linux sets, and parameters whose names are in upper case: none of the kernel's own is.
fn environment() -> Vec<String> {
    let mut variables = ["HOME=/", "TERM=linux"].map(ToString::to_string).to_vec();
    let valid = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
    for (name, value) in cmdline::parameters() {
        let Some(value) = value else { continue };
        if !name.bytes().all(valid) || !name.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let variable = alloc::format!("{name}={value}");
        variables.retain(|other| !other.starts_with(&variable[..=name.len()]));
        variables.push(variable);
    }
    variables
}
