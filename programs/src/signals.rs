//! A signal handler that notes what came, and the calls around it.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

use nix::errno::Errno;

use crate::sys;

// What the handler saw last.
pub static COUNT: AtomicI32 = AtomicI32::new(0);
pub static SIGNAL: AtomicI32 = AtomicI32::new(0);
pub static CODE: AtomicI32 = AtomicI32::new(0);
pub static PID: AtomicI32 = AtomicI32::new(0);
pub static VALUE: AtomicUsize = AtomicUsize::new(0);
pub static ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// Notes the signal and its siginfo.
///
/// # Safety
/// To be called by the kernel, or by a handler with what the kernel gave it.
pub unsafe extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a siginfo that lives while the handler runs.
    let info = unsafe { &*info };
    SIGNAL.store(signal, SeqCst);
    CODE.store(info.si_code, SeqCst);
    // SAFETY: which of these fields mean something is the test's business; all lie inside of the structure.
    unsafe {
        PID.store(info.si_pid(), SeqCst);
        VALUE.store(info.si_value().sival_ptr as usize, SeqCst);
        ADDRESS.store(info.si_addr() as usize, SeqCst);
    }
    COUNT.fetch_add(1, SeqCst);
}

pub type Handler = unsafe extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// sigaction(2) with SA_SIGINFO.
pub fn catch_with(signal: i32, handler: Handler, flags: i32, mask: &[i32]) {
    // SAFETY: a sigaction of zeros is valid; handlers here touch atomics only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | flags;
        mask.iter().for_each(|&signal| _ = libc::sigaddset(&mut action.sa_mask, signal));
        sys::check(libc::sigaction(signal, &action, std::ptr::null_mut())).expect("sigaction");
    }
}

/// Has [`note`] called for a signal.
pub fn catch(signal: i32) {
    catch_with(signal, note, 0, &[]);
}

pub fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset makes a set of it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// sigprocmask(2).
pub fn mask(how: i32, signals: &[i32]) {
    // SAFETY: the set lives through the call.
    sys::check(unsafe { libc::sigprocmask(how, &set_of(signals), std::ptr::null_mut()) }).unwrap();
}

pub fn kill(pid: i32, signal: i32) -> Result<usize, Errno> {
    // SAFETY: takes integers.
    sys::check(unsafe { libc::kill(pid, signal) })
}

/// Sends a signal to this process.
pub fn raise(signal: i32) {
    kill(sys::pid(), signal).expect("kill");
}

/// How often [`note`] was called.
pub fn count() -> i32 {
    COUNT.load(SeqCst)
}
