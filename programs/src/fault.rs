//! Memory accesses that may fault, from any thread: a signal becomes a value.

use std::arch::global_asm;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::check;

// Each access is one instruction with a label, so that the handler knows it and where to go on. It finds in rdx where the
// fault is wanted.
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
    ".globl roundtable_probe_load",
    "roundtable_probe_load:",
    "mov rax, [rdi]",
    "mov [rsi], rax",
    "xor eax, eax",
    "ret",
    ".globl roundtable_probe_store",
    "roundtable_probe_store:",
    "mov [rdi], rsi",
    "xor eax, eax",
    "ret",
    ".globl roundtable_probe_failed",
    "roundtable_probe_failed:",
    "mov eax, 1",
    "ret",
);

unsafe extern "C" {
    fn roundtable_probe_read(address: usize, value: *mut u8, fault: *mut Fault) -> i32;
    fn roundtable_probe_write(address: usize, value: u8, fault: *mut Fault) -> i32;
    fn roundtable_probe_load(address: usize, word: *mut u64, fault: *mut Fault) -> i32;
    fn roundtable_probe_store(address: usize, word: u64, fault: *mut Fault) -> i32;
    fn roundtable_probe_failed();
}

/// The signal that an access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
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

/// Not a lock: a child that is forked while another thread installs the handler would wait for that thread, which it does not have.
static IS_INSTALLED: AtomicBool = AtomicBool::new(false);

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives both, and they live while the handler runs.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let registers = &mut context.uc_mcontext.gregs;
    let known: [*const (); 4] = [
        roundtable_probe_read as *const (),
        roundtable_probe_write as *const (),
        roundtable_probe_load as *const (),
        roundtable_probe_store as *const (),
    ];
    if !known.contains(&(registers[libc::REG_RIP as usize] as *const ())) {
        // A fault that no test asked for: the instruction runs again, and then it kills.
        // SAFETY: plain system call.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: SIGSEGV and SIGBUS carry an address.
    let address = unsafe { info.si_addr() } as usize;
    // SAFETY: at these instructions the register has what the callers below gave: a place on their stack.
    unsafe {
        (registers[libc::REG_RDX as usize] as *mut Fault).write(Fault { signal, code: info.si_code, address })
    };
    registers[libc::REG_RIP as usize] = roundtable_probe_failed as *const () as i64;
}

fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: a sigaction of zeros is valid; the handler touches its own frame and a place that is kept for it.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            check(libc::sigaction(signal, &action, std::ptr::null_mut())).expect("sigaction");
        }
    }
}

/// Makes an access, with a place for its fault.
fn attempt(access: impl FnOnce(*mut Fault) -> i32) -> Result<(), Fault> {
    if !IS_INSTALLED.load(Ordering::SeqCst) {
        // Twice does no harm.
        install();
        IS_INSTALLED.store(true, Ordering::SeqCst);
    }
    let mut fault = Fault { signal: 0, code: 0, address: 0 };
    if access(&mut fault) == 0 { Ok(()) } else { Err(fault) }
}

/// Reads one byte.
pub fn read(address: usize) -> Result<u8, Fault> {
    let mut value = 0;
    // SAFETY: the handler turns a fault into a return.
    attempt(|fault| unsafe { roundtable_probe_read(address, &mut value, fault) }).map(|()| value)
}

/// Writes one byte.
pub fn write(address: usize, value: u8) -> Result<(), Fault> {
    // SAFETY: the handler turns a fault into a return; tests write into their own mappings.
    attempt(|fault| unsafe { roundtable_probe_write(address, value, fault) })
}

/// Reads a word.
pub fn load(address: usize) -> Result<u64, Fault> {
    let mut word = 0;
    // SAFETY: the handler turns a fault into a return.
    attempt(|fault| unsafe { roundtable_probe_load(address, &mut word, fault) }).map(|()| word)
}

/// Writes a word.
pub fn store(address: usize, word: u64) -> Result<(), Fault> {
    // SAFETY: the handler turns a fault into a return; callers store into address space that they have set aside for it.
    attempt(|fault| unsafe { roundtable_probe_store(address, word, fault) })
}
