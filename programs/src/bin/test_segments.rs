//! Code in a 32-bit segment, which a far jump leads to: what it does to enter the kernel ends in the program, or in its signal.

use std::arch::global_asm;

use roundtable_programs::child::{End, fork_code};
use roundtable_programs::sys::{self, PAGE, is_linux};
use roundtable_programs::tests;

tests! { system_calls_of_32_bits, by_interrupt, by_sysenter, faults, signals }

// The code runs from a copy below 4 GiB. `ways` is called with the number of a call in EDI and what to do in ESI, and returns EAX.
global_asm!(
    r#"
.pushsection .text.ways, "ax"
.global ways_begin
.global ways_end
ways_begin:
    movq %rsp, saved_rsp(%rip)
    leaq 1f(%rip), %rax
    movl %eax, there(%rip)
    leaq 5f(%rip), %rdx
    movl %edx, back(%rip)
    movl %edi, %eax
    leaq back(%rip), %rdx
    # Not by a far return: QEMU 7.2 has the stack read with the kernel's rights for that, which SMAP refuses.
    ljmpl *there(%rip)
.code32
1:
    cmpl $1, %esi
    je 2f
    cmpl $2, %esi
    je 3f
    cmpl $3, %esi
    je 4f
    cmpl $4, %esi
    je 6f
    syscall
    ljmp *%cs:(%edx)
2:  int $0x80
    ljmp *%cs:(%edx)
3:  sysenter
4:  movl $0, 0
6:  jmp 6b
.code64
5:
    movq saved_rsp(%rip), %rsp
    ret
.balign 8
saved_rsp:
    .quad 0
there:
    .long 0
    .word 0x23
back:
    .long 0
    .word 0x33
ways_end:
.popsection
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static ways_begin: u8;
    static ways_end: u8;
}

const SYSCALL: u32 = 0;
const INTERRUPT: u32 = 1;
const SYSENTER: u32 = 2;
const FAULT: u32 = 3;
const SPIN: u32 = 4;

/// Runs the code in a child; gives what EAX is in the end.
fn run(number: u32, way: u32) -> End {
    fork_code(|| go(number, way)).wait()
}

/// The code's own registers other than the ones that it names are left as they are, but for those that a system call changes.
fn go(number: u32, way: u32) -> i32 {
    let (begin, end) = (&raw const ways_begin, &raw const ways_end);
    // SAFETY: the code is copied to a page of its own; it keeps to the calling convention.
    let got = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let at = libc::mmap(std::ptr::null_mut(), 2 * PAGE, protection, flags, -1, 0);
        assert!(at != libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(begin, at.cast(), end as usize - begin as usize);
        let ways: extern "C" fn(u32, u32) -> i32 = std::mem::transmute(at);
        ways(number, way)
    };
    // Exit codes have eight bits.
    if got == -libc::ENOSYS { 1 } else { 2 }
}

/// No program gets into the kernel on its own stack: there are no 32-bit calls here. Linux has them, and comes back elsewhere.
fn system_calls_of_32_bits() {
    for _ in 0..100 {
        let end = run(0xffff, SYSCALL);
        assert!(is_linux() || end == End::Code(1) || end == End::Signal(libc::SIGILL), "{end:?}");
    }
}

fn by_interrupt() {
    let end = run(0xffff, INTERRUPT);
    assert!(end == End::Signal(libc::SIGSEGV) || is_linux() && end == End::Code(1), "{end:?}");
}

fn by_sysenter() {
    let end = run(0xffff, SYSENTER);
    assert!(matches!(end, End::Signal(libc::SIGSEGV | libc::SIGILL)) || is_linux(), "{end:?}");
}

fn faults() {
    assert_eq!(run(0, FAULT), End::Signal(libc::SIGSEGV));
}

/// A handler is 64-bit code, whatever was interrupted.
fn signals() {
    extern "C" fn leave(_: i32) {
        // SAFETY: takes an integer, and is allowed in handlers.
        unsafe { libc::_exit(7) };
    }
    let end = fork_code(|| {
        let stack = vec![0u8; 1 << 16].leak();
        // SAFETY: the structures live through the calls, and the stack for good.
        unsafe {
            let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            sys::check(libc::sigaltstack(&stack, std::ptr::null_mut())).unwrap();
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = leave as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK;
            sys::check(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut())).unwrap();
            let soon = libc::itimerval {
                it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
                it_value: libc::timeval { tv_sec: 0, tv_usec: 20_000 },
            };
            sys::check(libc::setitimer(libc::ITIMER_REAL, &soon, std::ptr::null_mut())).unwrap();
        }
        go(0, SPIN)
    });
    assert_eq!(end.wait(), End::Code(7));
}
