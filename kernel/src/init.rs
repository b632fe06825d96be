//! The first process: unpacks the initial RAM disk and becomes the program that the command line asks for.

use alloc::string::String;
use alloc::vec::Vec;

use log::{error, info};

use crate::boot::{self, cmdline};
use crate::errno::{Errno, Result};
use crate::fs;
use crate::process;

/// What is tried in this order when there is no `/init` in the archive.
const FALLBACKS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];

/// The body of process 1. When it returns, the thread enters the program.
pub fn run() {
    if let Some(image) = boot::initrd() {
        info!("unpacking the initial RAM disk, {} KiB", image.len() >> 10);
        fs::initramfs::unpack(image);
        // SAFETY: the slice was used for nothing else, and is not used any more.
        unsafe { boot::release_initrd() };
    }
    fs::install_console(&process::current().files());
    if let Err(error) = start_program() {
        panic!("no working init found ({error}); try init= or rdinit= on the command line");
    }
}

/// Executes `rdinit=` (or `/init`), `init=`, or one of the usual places. As in Linux, a program that was asked for and cannot be
/// executed is an error only when nothing else is found, except `init=`, which is final.
fn start_program() -> Result<()> {
    let early = cmdline::get("rdinit").unwrap_or("/init");
    match execute(early) {
        Ok(()) => return Ok(()),
        Err(Errno::ENOENT) if !cmdline::has("rdinit") => {}
        Err(error) => error!("failed to execute {early}: {error}"),
    }
    if let Some(asked) = cmdline::get("init") {
        return execute(asked).inspect_err(|error| error!("failed to execute {asked}: {error}"));
    }
    let mut last = Errno::ENOENT;
    for path in FALLBACKS {
        match execute(path) {
            Ok(()) => return Ok(()),
            Err(Errno::ENOENT) => {}
            Err(error) => {
                error!("{path} exists but could not be executed: {error}");
                last = error;
            }
        }
    }
    Err(last)
}

fn execute(path: &str) -> Result<()> {
    let mut arguments: Vec<String> = alloc::vec![path.into()];
    arguments.extend(
        cmdline::parameters()
            .filter(|(name, value)| value.is_none() && is_run_level(name))
            .map(|(n, _)| n.into()),
    );
    arguments.extend(cmdline::init_arguments().map(String::from));
    let mut environment: Vec<String> = alloc::vec!["HOME=/".into(), "TERM=linux".into()];
    for (name, value) in cmdline::parameters() {
        if let Some(value) = value.filter(|_| is_variable(name)) {
            let entry = alloc::format!("{name}={value}");
            let prefix = &entry[..=name.len()];
            environment.retain(|other| !other.starts_with(prefix));
            environment.push(entry);
        }
    }
    process::execute(path, arguments, environment)
}

/// Words that init programs take as the state to boot into. Linux hands over every word that it does not know itself; which those are cannot be
/// told here, where most of Linux's own parameters mean nothing.
fn is_run_level(word: &str) -> bool {
    matches!(word, "single" | "emergency" | "rescue" | "s" | "S" | "1" | "2" | "3" | "4" | "5")
}

/// `NAME=value` with a name like those of environment variables; parameters of the kernel are in lower case.
fn is_variable(name: &str) -> bool {
    let valid = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
    !name.is_empty() && name.bytes().all(valid) && !name.as_bytes()[0].is_ascii_digit()
}
