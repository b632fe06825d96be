//! The types of file systems that mount(2) can mount.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::dentry::Dentry;
use crate::errno::{Errno, Result};
use crate::sync::SpinLock;

/// What mount(2) was given for a new mount.
pub struct MountRequest<'a> {
    /// What is to be mounted, for types that need to know.
    pub source: &'a str,
    /// Comma-separated options of the type.
    pub options: &'a str,
}

/// Makes a file system, or finds the one instance of a type that has only one, and returns its root.
pub type MountFn = fn(&MountRequest) -> Result<Arc<Dentry>>;

static TYPES: SpinLock<Vec<(&'static str, MountFn)>> = SpinLock::growing(Vec::new());

/// Makes a type known. Call once per name, while the system comes up.
pub fn register_filesystem(name: &'static str, mount: MountFn) {
    TYPES.lock().push((name, mount));
}

/// The mount function of a type; `ENODEV`.
pub fn find(name: &str) -> Result<MountFn> {
    TYPES.lock().iter().find(|(n, _)| *n == name).map(|(_, f)| *f).ok_or(Errno::ENODEV)
}

/// As `find`, on behalf of the current thread: `EPERM` for a type that is not for those in a user namespace of their own.
pub fn find_for_caller(name: &str) -> Result<MountFn> {
    /// Those that show nothing of others and take no lasting memory that is not accounted for. `sysfs` belongs to the network namespace,
    /// and there is only the first.
    const FOR_ALL: [&str; 5] = ["proc", "tmpfs", "ramfs", "devpts", "mqueue"];
    let found = find(name)?;
    let nested = crate::process::current().has_user_namespace();
    if nested && !FOR_ALL.contains(&name) { Err(Errno::EPERM) } else { Ok(found) }
}

/// The names of all types, in the order in which they were made known.
pub fn names() -> Vec<&'static str> {
    TYPES.lock().iter().map(|(n, _)| *n).collect()
}

/// Splits `a,b=c` into names and values; empty parts are left out.
pub fn options(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    text.split(',').filter(|o| !o.is_empty()).map(|o| match o.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (o, None),
    })
}

/// A size with the suffix k, m, g or t, or a percentage of `whole`, in bytes. `EINVAL`.
pub fn parse_size(text: &str, whole: u64) -> Result<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_hexdigit() || c == 'x').len();
    let (number, suffix) = text.split_at(digits);
    let number: u64 = match number.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => number.parse(),
    }
    .map_err(|_| Errno::EINVAL)?;
    let shift = match suffix {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "%" => return number.checked_mul(whole / 100).ok_or(Errno::EINVAL),
        _ => return Err(Errno::EINVAL),
    };
    number.checked_mul(1 << shift).ok_or(Errno::EINVAL)
}
