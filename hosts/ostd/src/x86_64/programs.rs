//! User mode: the programs in assembly, and the registers. A system call has its number in `rax`, its arguments in `rdi` and `rsi`, and its result in `rax`.

use core::arch::global_asm;
use core::fmt::Arguments;

use hugetlb::{Access, VirtAddr};
use ostd::arch::cpu::context::{CpuException, PageFaultErrorCode, UserContext};

global_asm!(
    ".pushsection .rodata.user, \"a\"",
    ".globl user_code, user_load, user_hammer, user_family, user_code_end",
    ".balign 16",
    "user_code:",
    "user_load:",
    "   xor ecx, ecx",
    "1: add rcx, [rdi]",
    "   add rdi, rdx",
    "   dec rsi",
    "   jnz 1b",
    "   mov rdi, rcx",
    "   jmp 9f",
    "user_hammer:",
    "1: mov [rdi], rdx",
    "   dec rsi",
    "   jnz 1b",
    "   xor edi, edi",
    "   jmp 9f",
    "user_family:",
    "   mov r12, rdi",
    "   mov r13, rsi",
    "   mov r15d, 1",
    "   mov eax, 1", // map
    "   syscall",
    "   test rax, rax",
    "   jnz 8f",
    "   mov qword ptr [r12], 1",
    "   mov qword ptr [r12 + 0x200000], 2",
    "   mov r15d, 2",
    "   mov eax, 2", // fork
    "   syscall",
    "   test rax, rax",
    "   js 8f",
    "   jz 5f",
    "   mov r15d, 3",
    "   mov eax, 3", // wait
    "   syscall",
    "   test rax, rax",
    "   jnz 8f",
    "   mov r15d, 4", // the child has stored
    "   cmp qword ptr [r12 + 0x200000], 100",
    "   jne 8f",
    "   mov r15d, 5",
    "   xor edi, edi",
    "   mov esi, 0x200000",
    "   mov eax, 4", // punch
    "   syscall",
    "   test rax, rax",
    "   jnz 8f",
    "   mov r15d, 6",
    "   cmp qword ptr [r12], 0",
    "   jne 8f",
    "   mov rdi, r12",
    "   mov rsi, r13",
    "   mov eax, 5", // unmap
    "   syscall",
    "   xor edi, edi",
    "   jmp 9f",
    "5: mov r15d, 7", // the child
    "   cmp qword ptr [r12], 1",
    "   jne 8f",
    "   cmp qword ptr [r12 + 0x200000], 2",
    "   jne 8f",
    "   mov qword ptr [r12 + 0x200000], 100",
    "   xor edi, edi",
    "   jmp 9f",
    "8: mov rdi, r15",
    "9: xor eax, eax", // exit
    "   syscall",
    "user_code_end:",
    ".popsection",
);

/// The page fault that an exception is, if it is one.
pub fn page_fault(exception: CpuException) -> Option<(VirtAddr, Access)> {
    let CpuException::PageFault(fault) = exception else { return None };
    let access = if fault.error_code.contains(PageFaultErrorCode::INSTRUCTION) {
        Access::Execute
    } else if fault.error_code.contains(PageFaultErrorCode::WRITE) {
        Access::Write
    } else {
        Access::Read
    };
    Some((VirtAddr(fault.addr as u64), access))
}

/// The arguments that a program begins with.
pub fn set_arguments(context: &mut UserContext, [first, second, third]: [usize; 3]) {
    context.set_rdi(first);
    context.set_rsi(second);
    context.set_rdx(third);
}

/// The number and the arguments of a system call.
pub fn system_call(context: &UserContext) -> (usize, (u64, u64)) {
    (context.rax(), (context.rdi() as u64, context.rsi() as u64))
}

/// What the system call returns.
pub fn set_result(context: &mut UserContext, result: usize) {
    context.set_rax(result);
}

/// Code was written: the caches of x86 agree by themselves.
pub fn synchronize_code() {}

/// Prints to the console.
pub fn print(text: Arguments<'_>) {
    ostd::early_print!("{}", text);
}
