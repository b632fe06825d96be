//! A tracer's part: requests to a tracee, and what it says in its stops.

use std::mem::MaybeUninit;

use libc::SIGSTOP;
use nix::errno::Errno;

use crate::child::{Child, fork_code};
use crate::kinds::{Answer, call};
use crate::signals;
use crate::sys::check;

/// ptrace(2) as the system call is.
pub fn ptrace(request: u32, pid: i32, address: usize, data: usize) -> Answer {
    call(libc::SYS_ptrace, [request as usize, pid as usize, address, data, 0, 0])
}

/// Lets a tracee go on, by a request such as PTRACE_CONT.
pub fn go(request: u32, pid: i32, signal: i32) {
    ptrace(request, pid, 0, signal as usize).expect("the tracee goes on");
}

/// The whole status of wait4, and whose it is.
pub fn wait_any(pid: i32, options: i32) -> Result<(i32, i32), Errno> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let pid = check(unsafe { libc::waitpid(pid, &mut status, options) })?;
    Ok((pid as i32, status))
}

/// The status of a tracee's next stop or end.
pub fn wait(pid: i32) -> i32 {
    let (found, status) = wait_any(pid, libc::__WALL).expect("wait4");
    assert_eq!(found, pid);
    status
}

/// The status of a stop.
pub const fn stopped(signal: i32, event: i32) -> i32 {
    event << 16 | signal << 8 | 0x7f
}

/// A child that asks to be traced, and runs `run` when its tracer has it in a stop by SIGSTOP and lets it go on.
pub fn tracee(options: usize, run: impl FnOnce() -> i32) -> Child {
    let child = fork_code(|| {
        ptrace(libc::PTRACE_TRACEME, 0, 0, 0).expect("PTRACE_TRACEME");
        signals::raise(SIGSTOP);
        run()
    });
    assert_eq!(wait(child.pid), stopped(SIGSTOP, 0));
    ptrace(libc::PTRACE_SETOPTIONS, child.pid, 0, options).expect("PTRACE_SETOPTIONS");
    child
}

/// The registers of a tracee in a stop.
pub fn registers(pid: i32) -> libc::user_regs_struct {
    let mut registers = MaybeUninit::uninit();
    ptrace(libc::PTRACE_GETREGS, pid, 0, registers.as_mut_ptr() as usize).expect("PTRACE_GETREGS");
    // SAFETY: the call has filled it.
    unsafe { registers.assume_init() }
}
