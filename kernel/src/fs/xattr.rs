//! Extended attributes: names with values that programs give files, where the file system keeps them.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;

use super::access::{Credentials, READ, WRITE};
use super::inode::{Inode, Superblock};
use super::stat::FileType;
use crate::errno::{Errno, Result};
use crate::memory::fallible::TryVec;
use crate::memory::{PAGE_SIZE, reserve};
use crate::sync::Mutex;

/// The longest name, value and list of names, bytes.
pub const NAME_MAX: usize = 255;
pub const VALUE_MAX: usize = 65536;
const LIST_MAX: usize = 65536;
/// What an attribute takes beside its name and its value, about.
const OVERHEAD: usize = 64;

/// Which attributes a change may find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Any,
    /// `EEXIST` where there is one.
    Create,
    /// `ENODATA` where there is none.
    Replace,
    /// Both.
    Nothing,
}

/// The attributes of one inode.
pub struct Xattrs {
    superblock: Arc<Superblock>,
    values: Mutex<Values>,
}

#[derive(Default)]
struct Values {
    by_name: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Bytes of the names with their ends: never more than can be listed, which bounds the number too.
    names: usize,
}

impl Drop for Xattrs {
    fn drop(&mut self) {
        let taken = self.values.get_mut().by_name.iter().map(|(name, value)| cost(name, value)).sum();
        self.superblock.ops.uncharge_xattr(taken);
    }
}

fn cost(name: &[u8], value: &[u8]) -> u64 {
    (name.len() + value.len() + OVERHEAD) as u64
}

/// May the attribute be read, or changed? By the name alone: whether the file system has such is another question.
fn check(inode: &Inode, name: &[u8], by: &Credentials, want: u32) -> Result<()> {
    // Who may not know of one is told that there is none.
    let refused = if want == WRITE { Errno::EPERM } else { Errno::ENODATA };
    if name.starts_with(b"trusted.") {
        return if by.capable(abi::CAP_SYS_ADMIN) { Ok(()) } else { Err(refused) };
    }
    if name.starts_with(b"security.") || name.starts_with(b"system.") {
        return Ok(());
    }
    if name.starts_with(b"user.") {
        if !matches!(inode.kind, FileType::Regular | FileType::Directory) {
            return Err(refused);
        }
        let sticky = inode.is_dir() && inode.attributes().permissions & abi::S_ISVTX != 0;
        if sticky && want == WRITE && !by.owns(inode) {
            return Err(Errno::EPERM);
        }
    }
    by.check(inode, want)
}

/// Names that the system keeps for its own are changed by those with a capability.
fn check_security(inode: &Inode, name: &[u8], by: &Credentials) -> Result<()> {
    let allowed = match name {
        b"security.capability" => by.capable_over(&inode.attributes(), abi::CAP_SETFCAP),
        _ => !name.starts_with(b"security.") || by.capable(abi::CAP_SYS_ADMIN),
    };
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}

/// Is it what `security.capability` is made of: version, flags, and one or two words of each of two sets, or a user too?
fn is_capability(value: &[u8]) -> bool {
    let Some(first) = value.first_chunk().map(|word| u32::from_le_bytes(*word)) else { return false };
    matches!((first >> 24, value.len()), (2, 20) | (3, 24))
}

/// `EOPNOTSUPP` for what the file system does not keep, `EINVAL` for a name that is nothing but its class.
fn check_kept(inode: &Inode, name: &[u8]) -> Result<()> {
    const CLASSES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let rest = CLASSES.iter().find_map(|class| name.strip_prefix(*class));
    match rest {
        Some(rest) if inode.superblock.ops.keeps_xattrs() => {
            if rest.is_empty() {
                Err(Errno::EINVAL)
            } else {
                Ok(())
            }
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Calls `work` with the value; `ENODATA` where there is none.
pub fn get<R>(inode: &Inode, name: &[u8], by: &Credentials, work: impl FnOnce(&[u8]) -> R) -> Result<R> {
    check(inode, name, by, READ)?;
    check_kept(inode, name)?;
    let xattrs = inode.xattrs.get().ok_or(Errno::ENODATA)?;
    let values = xattrs.values.lock();
    values.by_name.get(name).map(|value| work(value)).ok_or(Errno::ENODATA)
}

/// Sets a value.
pub fn set(inode: &Inode, name: &[u8], value: Vec<u8>, mode: Mode, by: &Credentials) -> Result<()> {
    if name == b"security.capability" && !is_capability(&value) {
        return Err(Errno::EINVAL);
    }
    check(inode, name, by, WRITE)?;
    check_security(inode, name, by)?;
    check_kept(inode, name)?;
    let mut key = Vec::new();
    key.try_extend_from_slice(name)?;
    // It stays when its maker ends.
    reserve::ask_lasting(PAGE_SIZE)?;
    let superblock = &inode.superblock;
    if inode.xattrs.get().is_none() {
        let fresh =
            Box::new(Xattrs { superblock: superblock.clone(), values: Mutex::new(Values::default()) });
        // Another thread may have been faster.
        let _ = inode.xattrs.set(fresh);
    }
    let mut values = inode.xattrs.get().ok_or(Errno::ENOMEM)?.values.lock();
    let old = values.by_name.get(name);
    match mode {
        Mode::Create | Mode::Nothing if old.is_some() => return Err(Errno::EEXIST),
        Mode::Replace | Mode::Nothing if old.is_none() => return Err(Errno::ENODATA),
        _ => {}
    }
    let names = values.names + if old.is_none() { name.len() + 1 } else { 0 };
    if names > LIST_MAX {
        return Err(Errno::ENOSPC);
    }
    let before = old.map_or(0, |old| cost(name, old));
    superblock.ops.charge_xattr(cost(name, &value))?;
    values.names = names;
    let replaced = values.by_name.insert(key.into_boxed_slice(), value.into_boxed_slice());
    superblock.ops.uncharge_xattr(before);
    drop(values);
    drop(replaced);
    inode.update(|attributes| attributes.ctime = super::caller::now());
    Ok(())
}

/// Takes one away.
pub fn remove(inode: &Inode, name: &[u8], by: &Credentials) -> Result<()> {
    check(inode, name, by, WRITE)?;
    check_security(inode, name, by)?;
    check_kept(inode, name)?;
    let removed = inode.xattrs.get().and_then(|xattrs| {
        let mut values = xattrs.values.lock();
        let value = values.by_name.remove(name)?;
        values.names -= name.len() + 1;
        Some(value)
    });
    let value = removed.ok_or(Errno::ENODATA)?;
    inode.superblock.ops.uncharge_xattr(cost(name, &value));
    inode.update(|attributes| attributes.ctime = super::caller::now());
    Ok(())
}

/// All names that may be known, each with its end.
pub fn list(inode: &Inode, by: &Credentials) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let Some(xattrs) = inode.xattrs.get() else { return Ok(out) };
    let all = by.capable(abi::CAP_SYS_ADMIN);
    let values = xattrs.values.lock();
    for name in values.by_name.keys().filter(|name| all || !name.starts_with(b"trusted.")) {
        out.try_extend_from_slice(name)?;
        out.try_push(0)?;
    }
    Ok(out)
}
