//! Loads and stores that may fault, from any thread: a signal becomes a value.

use std::arch::global_asm;

use roundtable_programs::sys::check;

// One instruction each that may fault, so that the handler knows it and where to go on. The handler leaves the signal in
// the result register.
global_asm!(
    ".globl roundtable_race_load",
    "roundtable_race_load:",
    "mov rdx, [rdi]",
    "mov [rsi], rdx",
    "xor eax, eax",
    "ret",
    ".globl roundtable_race_store",
    "roundtable_race_store:",
    "mov [rdi], rsi",
    "xor eax, eax",
    ".globl roundtable_race_return",
    "roundtable_race_return:",
    "ret",
);

unsafe extern "C" {
    fn roundtable_race_load(address: usize, word: *mut u64) -> i32;
    fn roundtable_race_store(address: usize, word: u64) -> i32;
    fn roundtable_race_return();
}

/// The signal that an access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub i32);

pub fn load(address: usize) -> Result<u64, Refused> {
    let mut word = 0;
    // SAFETY: the handler turns a fault into a return.
    match unsafe { roundtable_race_load(address, &mut word) } {
        0 => Ok(word),
        signal => Err(Refused(signal)),
    }
}

pub fn store(address: usize, word: u64) -> Result<(), Refused> {
    // SAFETY: the handler turns a fault into a return; callers store into address space that they have set aside for it.
    match unsafe { roundtable_race_store(address, word) } {
        0 => Ok(()),
        signal => Err(Refused(signal)),
    }
}

extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives it, and it lives while the handler runs.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = &mut registers[libc::REG_RIP as usize];
    let known = [roundtable_race_load as *const () as i64, roundtable_race_store as *const () as i64];
    if !known.contains(rip) {
        // Not one of ours: the instruction runs again, and then it kills. Whoever waits for the process reports it.
        // SAFETY: plain system call.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    *rip = roundtable_race_return as *const () as i64;
    registers[libc::REG_RAX as usize] = signal.into();
}

/// Installs the handler; children inherit it.
pub fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: a sigaction of zeros is valid; the handler touches its own frame only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            check(libc::sigaction(signal, &action, std::ptr::null_mut())).expect("sigaction");
        }
    }
}
