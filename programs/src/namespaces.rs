//! Namespaces, for the programs that test them.

use std::fs;

use crate::Errno;
use crate::child::{Child, fork};
use crate::file::Fd;
use crate::kinds::{Answer, call};
use crate::signals;
use crate::sys::check;

pub const NEWTIME: i32 = 0x80;
pub const NEWUSER: i32 = libc::CLONE_NEWUSER;
pub const NEWPID: i32 = libc::CLONE_NEWPID;
pub const NEWNS: i32 = libc::CLONE_NEWNS;
pub const NEWUTS: i32 = libc::CLONE_NEWUTS;
pub const NEWIPC: i32 = libc::CLONE_NEWIPC;

/// unshare(2).
pub fn unshare(flags: i32) -> Answer {
    // SAFETY: takes an integer.
    check(unsafe { libc::unshare(flags) })
}

/// setns(2).
pub fn setns(fd: &Fd, kind: i32) -> Answer {
    // SAFETY: takes integers.
    check(unsafe { libc::setns(fd.raw(), kind) })
}

/// Where an entry of `/proc/self/ns` leads.
#[track_caller]
pub fn link(name: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{name}")).expect(name).to_str().unwrap().to_string()
}

/// An entry of `/proc/PID/ns`, opened.
#[track_caller]
pub fn open(pid: &str, name: &str) -> Fd {
    Fd::open(&format!("/proc/{pid}/ns/{name}"), libc::O_RDONLY).expect(name)
}

/// pidfd_open(2).
#[track_caller]
pub fn pidfd(pid: i32) -> Fd {
    Fd::own(call(libc::SYS_pidfd_open, [pid as usize, 0, 0, 0, 0, 0]).expect("pidfd_open"))
}

/// Leaves for a user namespace of one's own in which one is root.
#[track_caller]
pub fn become_root_of_own(flags: i32) {
    // SAFETY: take nothing.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    unshare(NEWUSER | flags).expect("unshare");
    fs::write("/proc/self/setgroups", "deny").expect("setgroups");
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("uid_map");
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("gid_map");
}

/// Runs the closure as the first process of a new PID namespace.
#[track_caller]
pub fn as_first(flags: i32, run: impl FnOnce()) -> Child {
    unshare(NEWPID | flags).expect("unshare");
    fork(run)
}

/// The errno of something of the standard library.
pub fn errno<T>(result: std::io::Result<T>) -> Answer {
    result.map(|_| 0).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// Waits for a signal that is blocked.
pub fn wait_info(signal: i32) -> libc::siginfo_t {
    // SAFETY: all zero is a value, and both live through the call.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        assert_eq!(libc::sigwaitinfo(&signals::set_of(&[signal]), &mut info), signal);
        info
    }
}
