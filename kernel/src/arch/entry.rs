//! The ways into the kernel and out of it, in assembly: traps, interrupts, SYSCALL.
//!
//! Every way in builds one [`TrapFrame`](super::trap::TrapFrame). GS points to the CPU's area in kernel mode and
//! to the user's in user mode; `swapgs` exchanges them exactly once for each change of mode. The vectors that may
//! arrive anywhere, even between a change of mode and its `swapgs` (debug, NMI, double fault, machine check),
//! have stacks of their own, at whose top the area's address stands, so that they need not trust GS.

use core::arch::global_asm;

use super::{features, gdt, percpu};

unsafe extern "C" {
    static trap_stubs: [[u8; 16]; 256];
    fn syscall_entry();
    fn syscall32_entry();
    static user_iretq: u8;
}

/// Address of the code that handles `vector`.
pub(super) fn stub(vector: u8) -> u64 {
    // The array is only an address: its code is never read as data.
    (&raw const trap_stubs) as u64 + 16 * vector as u64
}

/// Address of the one IRETQ that goes to user mode, which faults when the user's frame is bad.
pub(super) fn user_iretq_address() -> u64 {
    &raw const user_iretq as u64
}

/// Flags that SYSCALL clears: trap, interrupt, direction, I/O level, nested task, resume, alignment check.
const SYSCALL_MASK: u64 = 0x0005_7700;

/// Sets the calling CPU up for SYSCALL and SYSRET.
pub(super) fn init_syscall() {
    let star = (gdt::USER_CODE32 as u64) << 48 | (gdt::KERNEL_CODE as u64) << 32;
    // SAFETY: the selectors are those of the GDT, and the entry code is made for this.
    unsafe {
        features::write_msr(features::MSR_STAR, star);
        features::write_msr(features::MSR_LSTAR, syscall_entry as *const () as u64);
        features::write_msr(features::MSR_CSTAR, syscall32_entry as *const () as u64);
        features::write_msr(features::MSR_SYSCALL_MASK, SYSCALL_MASK);
    }
}

global_asm!(
    r#"
.macro CLAC_IF_SMAP
    .pushsection .smap_clac, "a"
    .quad 771f
    .popsection
771: .byte 0x0f, 0x1f, 0x00
.endm

.macro PUSH_REGISTERS
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
.endm

.macro POP_REGISTERS
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
.endm

.text

# 256 entries of 16 bytes: error code (0 where the CPU pushes none), vector as its complement.
.balign 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $(-1 - vector)
    .if vector == 1 || vector == 2 || vector == 8 || vector == 18
    jmp paranoid_entry
    .else
    jmp trap_entry
    .endif
    .set vector, vector + 1
.endr

# SYSCALL from a 32-bit code segment, which any program can reach by a far jump: not on Intel's processors, which refuse it. There are
# no 32-bit calls, so it is back at once. Stack and GS are the user's all the while: neither is touched, and interrupts are off.
.balign 16
.global syscall32_entry
syscall32_entry:
    movl $-{no_such_call}, %eax
    sysretl

.balign 16
trap_entry:
    cld
    CLAC_IF_SMAP
    testb $3, 24(%rsp)
    jnz 2f
    # An IRETQ to user mode that faulted did so after its swapgs, yet counts as kernel mode.
    pushq %rax
    leaq user_iretq(%rip), %rax
    cmpq %rax, 24(%rsp)
    popq %rax
    jne 3f
2:
    swapgs
3:
    PUSH_REGISTERS
    movq %rsp, %rdi
    call {handle_trap}
    # The handler returns the frame to leave by: it moves when a return to user mode failed.
    movq %rax, %rsp
.global return_from_trap
return_from_trap:
    testb $3, {CS}(%rsp)
    jz 4f
    POP_REGISTERS
    addq $16, %rsp
    swapgs
.global user_iretq
user_iretq:
    iretq
4:
    POP_REGISTERS
    addq $16, %rsp
    iretq

# On a stack of its own. From user mode: move to the thread's stack and be an ordinary trap.
.balign 16
paranoid_entry:
    cld
    CLAC_IF_SMAP
    testb $3, 24(%rsp)
    jz 5f
    swapgs
    # Seven words are here; the thread's stack is empty, since user mode ran.
    pushq %rax
    pushq %rbx
    movq %rsp, %rbx
    movq %gs:{KERNEL_STACK}, %rsp
    pushq 64(%rbx)
    pushq 56(%rbx)
    pushq 48(%rbx)
    pushq 40(%rbx)
    pushq 32(%rbx)
    pushq 24(%rbx)
    pushq 16(%rbx)
    movq 8(%rbx), %rax
    movq (%rbx), %rbx
    jmp 3b
5:
    # From kernel mode, GS may still be (or be again) the user's: keep it, use ours, put it back.
    PUSH_REGISTERS
    movl ${MSR_GS_BASE}, %ecx
    rdmsr
    movl %eax, %r12d
    movl %edx, %r13d
    movq %rsp, %rax
    orq ${IST_MASK}, %rax
    movq -7(%rax), %rax
    movq %rax, %rdx
    shrq $32, %rdx
    wrmsr
    movq %rsp, %rdi
    call {handle_paranoid}
    movl ${MSR_GS_BASE}, %ecx
    movl %r12d, %eax
    movl %r13d, %edx
    wrmsr
    jmp 4b

.balign 16
.global syscall_entry
syscall_entry:
    swapgs
    movq %rsp, %gs:{USER_RSP}
    movq %gs:{KERNEL_STACK}, %rsp
    pushq ${USER_DATA}
    pushq %gs:{USER_RSP}
    pushq %r11
    pushq ${USER_CODE}
    pushq %rcx
    pushq $0
    pushq %rax
    PUSH_REGISTERS
    xorl %ebp, %ebp
    movq %rsp, %rdi
    call {handle_syscall}
    # SYSRET takes RIP from RCX and flags from R11, keeps the fixed selectors, and faults in kernel mode
    # when RIP is not canonical. Whatever does not fit leaves by IRETQ.
    movq {RCX}(%rsp), %rcx
    movq {R11}(%rsp), %r11
    cmpq %rcx, {RIP}(%rsp)
    jne return_from_trap
    cmpq %r11, {RFLAGS}(%rsp)
    jne return_from_trap
    cmpq ${USER_CODE}, {CS}(%rsp)
    jne return_from_trap
    cmpq ${USER_DATA}, {SS}(%rsp)
    jne return_from_trap
    testl $0x10100, %r11d
    jnz return_from_trap
    movq %rcx, %rdx
    shrq $47, %rdx
    jnz return_from_trap
    POP_REGISTERS
    movq 40(%rsp), %rsp
    swapgs
    sysretq

# Where a new thread's first switch lands: RBX is the function, R12 its argument, and above the stack pointer
# is the user frame, when the function returns.
.balign 16
.global first_switch
first_switch:
    xorl %ebp, %ebp
    movq %r12, %rdi
    call *%rbx
.global first_return
first_return:
    movq %rsp, %rdi
    call {handle_first_return}
    jmp return_from_trap
"#,
    no_such_call = const linux_raw_sys::errno::ENOSYS,
    handle_trap = sym super::trap::handle_trap,
    handle_paranoid = sym super::trap::handle_paranoid,
    handle_syscall = sym super::trap::handle_syscall,
    handle_first_return = sym super::trap::handle_first_return,
    KERNEL_STACK = const percpu::KERNEL_STACK,
    USER_RSP = const percpu::USER_RSP,
    MSR_GS_BASE = const features::MSR_GS_BASE,
    IST_MASK = const gdt::IST_STACK_SIZE - 1,
    USER_DATA = const gdt::USER_DATA,
    USER_CODE = const gdt::USER_CODE,
    RCX = const core::mem::offset_of!(super::trap::TrapFrame, rcx),
    R11 = const core::mem::offset_of!(super::trap::TrapFrame, r11),
    RIP = const core::mem::offset_of!(super::trap::TrapFrame, rip),
    CS = const core::mem::offset_of!(super::trap::TrapFrame, cs),
    RFLAGS = const core::mem::offset_of!(super::trap::TrapFrame, rflags),
    SS = const core::mem::offset_of!(super::trap::TrapFrame, ss),
    options(att_syntax)
);
