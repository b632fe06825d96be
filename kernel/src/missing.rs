//! What programs ask for that is not here: told once for each program, with `missing=1` on the kernel command line.
//!
//! The log's lines begin with `missing:`, by which the host command finds them for its summary.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::ioctl::{TCGETS, TIOCGWINSZ};

use crate::boot::cmdline;
use crate::errno::{Errno, Result};
use crate::process;
use crate::sync::SpinLock;

/// So many things are told at most: a program that asks for everything does not fill the log.
const MOST: usize = 256;

static ENABLED: AtomicBool = AtomicBool::new(false);
static TOLD: SpinLock<Told> = SpinLock::new(Told { count: 0, hashes: [0; MOST] });

/// What was told, by the hashes of programs and texts.
struct Told {
    count: usize,
    hashes: [u64; MOST],
}

/// FNV-1a.
struct Hash64(u64);

impl Hasher for Hash64 {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

impl fmt::Write for Hash64 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

/// Reads the command line's `missing=1`.
pub fn init() {
    // Relaxed, here and below: set once, at bring-up.
    ENABLED.store(cmdline::get("missing") == Some("1"), Ordering::Relaxed);
}

/// Tells of it, once for each program's name. What PID 1 asks for before anything is mounted is no news.
pub fn tell(what: fmt::Arguments) {
    if !ENABLED.load(Ordering::Relaxed) || process::current().process.pid == 1 {
        return;
    }
    let name = process::current().name();
    let mut hash = Hash64(0xcbf2_9ce4_8422_2325);
    name.hash(&mut hash);
    // Hashing does not fail.
    let _ = fmt::write(&mut hash, what);
    let hash = hash.finish();
    {
        let mut told = TOLD.lock();
        let count = told.count;
        if count == MOST || told.hashes[..count].contains(&hash) {
            return;
        }
        told.hashes[count] = hash;
        told.count += 1;
    }
    log::warn!("missing: {name}: {what}");
}

/// The result of an ioctl(2), which is told of when nobody knows the request. That a file is no terminal is no surprise.
pub fn of_ioctl(command: u32, result: Result<usize>) -> Result<usize> {
    if result == Err(Errno::ENOTTY) && !matches!(command, TCGETS | TIOCGWINSZ) {
        tell(format_args!("ioctl {command:#x}"));
    }
    result
}

/// The result of opening a path, which is told of when it is one of the kernel's own files.
pub fn of_open<T>(path: &[u8], result: Result<T>) -> Result<T> {
    let is_ours = path.starts_with(b"/sys/")
        || path.strip_prefix(b"/proc/").is_some_and(|rest| !rest.first().is_some_and(u8::is_ascii_digit));
    if matches!(result, Err(Errno::ENOENT)) && is_ours {
        tell(format_args!("{}", path.escape_ascii()));
    }
    result
}
