//! The thread that calls the file layer: identity, places, limits, time.

use alloc::sync::Arc;

use super::access::Credentials;
use super::context::FsContext;
use super::fdtable::FdTable;
use super::path::{Path, Start};
use super::stat::Timestamp;
use crate::errno::{Errno, Result};
use crate::process;

/// `RLIMIT_FSIZE` and `RLIMIT_NOFILE`.
const FSIZE: usize = 1;
const NOFILE: usize = 7;

/// The wall clock.
pub fn now() -> Timestamp {
    let nanoseconds = crate::time::realtime_now();
    Timestamp {
        seconds: (nanoseconds / 1_000_000_000) as i64,
        nanoseconds: (nanoseconds % 1_000_000_000) as u32,
    }
}

/// Who the current thread is to file systems.
pub fn credentials() -> Credentials {
    match process::try_current() {
        Some(thread) if !thread.is_kernel() => {
            let c = thread.credentials();
            Credentials {
                uid: c.fsuid,
                gid: c.fsgid,
                groups: c.groups.clone(),
                capabilities: c.effective,
                user: c.nested_user_namespace().cloned(),
            }
        }
        _ => Credentials::kernel(),
    }
}

/// Who the current thread is by its real identity, as access(2) asks.
pub fn real_credentials() -> Credentials {
    let thread = process::current();
    let c = thread.credentials();
    let capabilities = if c.kernel_uid(0) == Some(c.uid) { c.permitted } else { 0 };
    Credentials {
        uid: c.uid,
        gid: c.gid,
        groups: c.groups.clone(),
        capabilities,
        user: c.nested_user_namespace().cloned(),
    }
}

/// Owner and group of files that the current thread makes.
pub fn current_ids() -> (u32, u32) {
    let c = credentials();
    (c.uid, c.gid)
}

/// The kernel's number for a user of the current thread's namespace; `EINVAL` for one that it does not have.
pub fn kernel_uid(uid: u32) -> Result<u32> {
    process::try_current()
        .map_or(Some(uid), |thread| thread.credentials().kernel_uid(uid))
        .ok_or(Errno::EINVAL)
}

/// As `kernel_uid`, of a group.
pub fn kernel_gid(gid: u32) -> Result<u32> {
    process::try_current()
        .map_or(Some(gid), |thread| thread.credentials().kernel_gid(gid))
        .ok_or(Errno::EINVAL)
}

/// The descriptors of the current process.
pub fn files() -> Arc<FdTable> {
    process::current().files()
}

/// Root, working directory and umask of the current process.
pub fn context() -> Arc<FsContext> {
    process::current().fs()
}

/// Where a path of the current thread begins: at the descriptor `dirfd`, or at the working directory for
/// `AT_FDCWD`. An absolute path does not look at `dirfd`.
pub fn start(dirfd: i32, path: &[u8]) -> Result<Start> {
    start_as(dirfd, path, credentials())
}

/// As `start`, with `RESOLVE_*` restrictions: where the descriptor is to be the root an absolute path begins there.
pub fn start_restricted(dirfd: i32, path: &[u8], resolve: u32) -> Result<Start> {
    let from_root = path.first() == Some(&b'/') && resolve & linux_raw_sys::general::RESOLVE_IN_ROOT == 0;
    Ok(Start { resolve, ..start_from(dirfd, path, from_root, credentials())? })
}

/// As `start`, on behalf of `credentials`.
pub fn start_as(dirfd: i32, path: &[u8], credentials: Credentials) -> Result<Start> {
    start_from(dirfd, path, path.first() == Some(&b'/'), credentials)
}

fn start_from(dirfd: i32, path: &[u8], from_root: bool, credentials: Credentials) -> Result<Start> {
    let context = context();
    let root = context.root();
    let base = if from_root {
        root.clone()
    } else if dirfd == linux_raw_sys::general::AT_FDCWD {
        context.cwd()
    } else {
        let file = files().get(dirfd)?;
        if !path.is_empty() && !file.inode().is_dir() {
            return Err(Errno::ENOTDIR);
        }
        file.path().clone()
    };
    Ok(Start { root, base, credentials, resolve: 0 })
}

/// The root of the current process, or that of the system.
pub fn root() -> Path {
    match process::try_current().and_then(|t| t.try_fs()) {
        Some(context) => context.root(),
        None => super::root(),
    }
}

/// After pivot_root(2): whoever was at the old root is at the new one.
pub fn move_all(old_root: &Path, new_root: &Path) {
    for process in process::processes() {
        if let Some(context) = process.fs() {
            context.move_root(old_root, new_root);
        }
    }
}

/// How many descriptors the current process may have.
pub fn descriptor_limit() -> usize {
    process::current().process.limit(NOFILE).min(usize::MAX as u64) as usize
}

/// A signal is pending that ends the current thread: long work gives up.
pub fn fatal_signal_pending() -> bool {
    process::try_current().is_some_and(|t| t.kill_pending())
}

/// How many bytes the current process may write at `offset` of a file of at most `max` bytes; `EFBIG` when
/// none, with SIGXFSZ when it is the process's own limit.
pub fn write_room(offset: u64, max: u64) -> Result<u64> {
    let limit = match process::try_current() {
        Some(thread) if !thread.is_kernel() => thread.process.limit(FSIZE),
        _ => u64::MAX,
    };
    if offset >= limit {
        crate::signal::send_thread(&process::current().to_arc(), crate::signal::SIGXFSZ);
        return Err(Errno::EFBIG);
    }
    if offset >= max {
        return Err(Errno::EFBIG);
    }
    Ok(limit.min(max) - offset)
}
