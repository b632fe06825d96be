//! Memory accesses that may fault, and the signal that came of it.

use std::arch::global_asm;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use crate::sys::check;

// Each access is one instruction with a label, so that the handler knows it and where to go on.
global_asm!(
    ".globl roundtable_probe_read",
    "roundtable_probe_read:",
    "mov al, [rdi]",
    "mov [rsi], al",
    "xor eax, eax",
    "ret",
    ".globl roundtable_probe_write",
    "roundtable_probe_write:",
    "mov [rdi], sil",
    "xor eax, eax",
    "ret",
    ".globl roundtable_probe_failed",
    "roundtable_probe_failed:",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    fn roundtable_probe_read(address: usize, value: *mut u8) -> i32;
    fn roundtable_probe_write(address: usize, value: u8) -> i32;
    fn roundtable_probe_failed();
}

/// The signal that an access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: usize,
}

pub const SEGV_MAPERR: i32 = 1;
pub const SEGV_ACCERR: i32 = 2;
pub const BUS_ADRERR: i32 = 2;

impl Fault {
    /// SIGBUS because there is nothing at the address: behind the end of a file, or the pool is empty.
    pub fn bus(address: usize) -> Fault {
        Fault { signal: libc::SIGBUS, code: BUS_ADRERR, address }
    }

    /// SIGSEGV because nothing is mapped.
    pub fn unmapped(address: usize) -> Fault {
        Fault { signal: libc::SIGSEGV, code: SEGV_MAPERR, address }
    }

    /// SIGSEGV because the protection forbids it.
    pub fn forbidden(address: usize) -> Fault {
        Fault { signal: libc::SIGSEGV, code: SEGV_ACCERR, address }
    }
}

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static INSTALL: Once = Once::new();

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives both, and they live while the handler runs.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let known = [roundtable_probe_read as *const () as i64, roundtable_probe_write as *const () as i64];
    if !known.contains(rip) {
        // A fault that no test asked for: the instruction runs again, and then it kills.
        // SAFETY: plain system call.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    SIGNAL.store(signal, Ordering::SeqCst);
    CODE.store(info.si_code, Ordering::SeqCst);
    // SAFETY: SIGSEGV and SIGBUS carry an address.
    ADDRESS.store(unsafe { info.si_addr() } as usize, Ordering::SeqCst);
    *rip = roundtable_probe_failed as *const () as i64;
}

fn install() {
    INSTALL.call_once(|| {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: a sigaction of zeros is valid; the handler touches atomics and its own frame only.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                check(libc::sigaction(signal, &action, std::ptr::null_mut())).expect("sigaction");
            }
        }
    });
}

fn outcome<T>(failed: i32, value: T) -> Result<T, Fault> {
    if failed == 0 {
        return Ok(value);
    }
    Err(Fault {
        signal: SIGNAL.load(Ordering::SeqCst),
        code: CODE.load(Ordering::SeqCst),
        address: ADDRESS.load(Ordering::SeqCst),
    })
}

/// Reads one byte. Not for two threads at once.
pub fn read(address: usize) -> Result<u8, Fault> {
    install();
    let mut value = 0;
    // SAFETY: the handler turns a fault into a return.
    let failed = unsafe { roundtable_probe_read(address, &mut value) };
    outcome(failed, value)
}

/// Writes one byte. Not for two threads at once.
pub fn write(address: usize, value: u8) -> Result<(), Fault> {
    install();
    // SAFETY: the handler turns a fault into a return; tests write into their own mappings.
    let failed = unsafe { roundtable_probe_write(address, value) };
    outcome(failed, ())
}
