//! The log of system calls: `strace=1` on the kernel command line, `strace=PID` for one process.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use syscalls::Sysno;

use crate::boot::cmdline;
use crate::errno::Result;
use crate::mm::uaccess;
use crate::process::{self, Pid};

const OFF: u32 = 0;
const ALL: u32 = 1;

/// 0: nothing; 1: all processes; else the number of the one that is logged.
static TRACED: AtomicU32 = AtomicU32::new(OFF);

pub(super) fn init() {
    let value = cmdline::get("strace").and_then(|value| value.parse().ok());
    TRACED.store(value.unwrap_or(OFF), Ordering::SeqCst);
}

/// Are the calls of a process logged?
pub(super) fn concerns(pid: Pid) -> bool {
    // Relaxed: set once, at bring-up.
    match TRACED.load(Ordering::Relaxed) {
        OFF => false,
        ALL => true,
        traced => traced == pid,
    }
}

/// A call that may not return, or not soon, is logged when it begins.
pub(super) fn enter(number: usize, a: &[usize; 6]) {
    if matches!(
        Sysno::new(number),
        Some(
            Sysno::exit
                | Sysno::exit_group
                | Sysno::execve
                | Sysno::wait4
                | Sysno::pause
                | Sysno::rt_sigsuspend
        )
    ) {
        let thread = process::current();
        log::info!("[{}:{}] {} ...", thread.process.pid, thread.tid(), Call(number, a));
    }
}

pub(super) fn leave(number: usize, a: &[usize; 6], result: &Result<usize>) {
    let thread = process::current();
    let (pid, tid) = (thread.process.pid, thread.tid());
    match result {
        Ok(value) if *value > 9999 => log::info!("[{pid}:{tid}] {} = {value:#x}", Call(number, a)),
        Ok(value) => log::info!("[{pid}:{tid}] {} = {value}", Call(number, a)),
        Err(error) => {
            let name = error.name().unwrap_or("?");
            log::info!("[{pid}:{tid}] {} = -{name}", Call(number, a));
        }
    }
}

/// A call as it is written: names with their path, other arguments in hexadecimal.
struct Call<'a>(usize, &'a [usize; 6]);

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, a) = self;
        match Sysno::new(*number) {
            Some(call) => write!(f, "{}(", call.name())?,
            None => write!(f, "syscall_{number}(")?,
        }
        let path_at = Sysno::new(*number).and_then(path_argument);
        for (index, value) in a.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match path_at.filter(|at| *at == index).and_then(|_| read_path(*value)) {
                Some(path) => write!(f, "{path:?}")?,
                None if *value as i64 > -4096 && (*value as i64) < 10_000 => write!(f, "{}", *value as i64)?,
                None => write!(f, "{value:#x}")?,
            }
        }
        f.write_str(")")
    }
}

fn read_path(address: usize) -> Option<alloc::string::String> {
    let path = uaccess::read_cstr(address, 255, crate::errno::Errno::ENAMETOOLONG).ok()?;
    Some(alloc::string::String::from_utf8_lossy(&path).into_owned())
}

/// Which argument is a path.
fn path_argument(call: Sysno) -> Option<usize> {
    match call {
        Sysno::open
        | Sysno::stat
        | Sysno::lstat
        | Sysno::access
        | Sysno::execve
        | Sysno::chdir
        | Sysno::mkdir
        | Sysno::rmdir
        | Sysno::unlink
        | Sysno::readlink
        | Sysno::chmod
        | Sysno::chown
        | Sysno::truncate
        | Sysno::statfs
        | Sysno::rename
        | Sysno::memfd_create
        | Sysno::umount2 => Some(0),
        Sysno::openat
        | Sysno::newfstatat
        | Sysno::statx
        | Sysno::faccessat
        | Sysno::faccessat2
        | Sysno::unlinkat
        | Sysno::mkdirat
        | Sysno::readlinkat
        | Sysno::mount => Some(1),
        _ => None,
    }
}
