//! User dispatch of system calls: prctl(PR_SET_SYSCALL_USER_DISPATCH). Calls from outside one range of addresses raise SIGSYS instead, while
//! a byte of the program's says so: programs for other systems are run by that.

use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::prctl::{PR_SYS_DISPATCH_OFF, PR_SYS_DISPATCH_ON};

use super::{Thread, WaitStatus, exit};
use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{check_range, read_user};
use crate::signal::{self, SIGSEGV, SIGSYS, SigInfo, codes};

/// What a thread has asked for, as prctl(2) and ptrace(2) spell it.
#[derive(Clone, Copy)]
pub struct Config {
    /// `PR_SYS_DISPATCH_*`.
    pub mode: usize,
    /// The address of the byte; 0 for none.
    pub selector: usize,
    /// The range from which calls are made as ever.
    pub offset: usize,
    pub len: usize,
}

/// A thread's range and byte. Whether they are looked at is one of the flags of [`super::ptrace::Tracee`].
///
/// Relaxed throughout: the thread itself changes them, or its tracer while it is in a stop.
pub struct UserDispatch {
    selector: AtomicUsize,
    offset: AtomicUsize,
    len: AtomicUsize,
}

/// What the byte says.
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;

impl UserDispatch {
    pub const fn new() -> Self {
        Self { selector: AtomicUsize::new(0), offset: AtomicUsize::new(0), len: AtomicUsize::new(0) }
    }
}

impl Thread {
    /// Turns it on or off. `EINVAL`, `EFAULT`.
    pub fn set_user_dispatch(&self, config: &Config) -> Result<()> {
        let Config { mode, selector, offset, len } = *config;
        let on = match u32::try_from(mode).map_err(|_| Errno::EINVAL)? {
            PR_SYS_DISPATCH_OFF if (selector, offset, len) == (0, 0, 0) => false,
            // An empty range has to be at 0, and none may wrap around.
            PR_SYS_DISPATCH_ON if offset == 0 || offset.wrapping_add(len) > offset => true,
            _ => return Err(Errno::EINVAL),
        };
        if selector != 0 {
            check_range(selector, 1)?;
        }
        self.dispatch.selector.store(selector, Ordering::Relaxed);
        self.dispatch.offset.store(offset, Ordering::Relaxed);
        self.dispatch.len.store(len, Ordering::Relaxed);
        self.trace.set_dispatched(on);
        Ok(())
    }

    /// As it stands.
    pub fn user_dispatch(&self) -> Config {
        let on = self.trace.is_dispatched();
        Config {
            mode: if on { PR_SYS_DISPATCH_ON as usize } else { PR_SYS_DISPATCH_OFF as usize },
            selector: self.dispatch.selector.load(Ordering::Relaxed),
            offset: self.dispatch.offset.load(Ordering::Relaxed),
            len: self.dispatch.len.load(Ordering::Relaxed),
        }
    }
}

/// Is this call of the current thread not to be made? Then its signal is on the way.
pub fn keeps_from(thread: &Thread, frame: &TrapFrame) -> bool {
    if !thread.trace.is_dispatched() {
        return false;
    }
    let Config { selector, offset, len, .. } = thread.user_dispatch();
    if (frame.rip as usize).wrapping_sub(offset) < len {
        return false;
    }
    if selector != 0 {
        match read_user::<u8>(selector) {
            Ok(ALLOW) => return false,
            Ok(BLOCK) => {}
            // Without a handler, as what it would return by may be as wrong.
            Ok(_) => kill(SIGSYS),
            Err(_) => kill(SIGSEGV),
        }
    }
    let number = frame.orig_rax as u32;
    signal::force_signal(SigInfo::system_call(
        codes::SYS_USER_DISPATCH,
        0,
        frame.rip,
        number,
        crate::seccomp::ARCH,
    ));
    true
}

fn kill(signal: u32) -> ! {
    exit::end_process(WaitStatus::Killed { signal: signal as u8, core: false })
}
