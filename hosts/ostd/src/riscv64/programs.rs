//! User mode: the programs in assembly, and the registers. A system call has its number in `a7`, its arguments in `a0` and `a1`, and its result in `a0`.

use core::arch::{asm, global_asm};
use core::fmt::{Arguments, Write};

use hugetlb::{Access, VirtAddr};
use ostd::arch::cpu::context::{CpuException, UserContext};

use super::all_harts;

global_asm!(
    ".pushsection .rodata.user, \"a\"",
    ".globl user_code, user_load, user_hammer, user_family, user_code_end",
    ".balign 16",
    "user_code:",
    "user_load:",
    "   li t1, 0",
    "1: ld t0, 0(a0)",
    "   add t1, t1, t0",
    "   add a0, a0, a2",
    "   addi a1, a1, -1",
    "   bnez a1, 1b",
    "   mv a0, t1",
    "   j 9f",
    "user_hammer:",
    "1: sd a2, 0(a0)",
    "   addi a1, a1, -1",
    "   bnez a1, 1b",
    "   li a0, 0",
    "   j 9f",
    "user_family:",
    "   mv s2, a0",
    "   mv s5, a1",
    "   li t0, 0x200000",
    "   add s3, a0, t0",
    "   li s4, 1",
    "   li a7, 1", // map
    "   ecall",
    "   bnez a0, 8f",
    "   li t0, 1",
    "   sd t0, 0(s2)",
    "   li t0, 2",
    "   sd t0, 0(s3)",
    "   li s4, 2",
    "   li a7, 2", // fork
    "   ecall",
    "   bltz a0, 8f",
    "   beqz a0, 5f",
    "   li s4, 3",
    "   li a7, 3", // wait
    "   ecall",
    "   bnez a0, 8f",
    "   li s4, 4", // the child has stored
    "   ld t0, 0(s3)",
    "   li t1, 100",
    "   bne t0, t1, 8f",
    "   li s4, 5",
    "   li a0, 0",
    "   li a1, 0x200000",
    "   li a7, 4", // punch
    "   ecall",
    "   bnez a0, 8f",
    "   li s4, 6",
    "   ld t0, 0(s2)",
    "   bnez t0, 8f",
    "   mv a0, s2",
    "   mv a1, s5",
    "   li a7, 5", // unmap
    "   ecall",
    "   li a0, 0",
    "   j 9f",
    "5: li s4, 7", // the child
    "   ld t0, 0(s2)",
    "   li t1, 1",
    "   bne t0, t1, 8f",
    "   ld t0, 0(s3)",
    "   li t1, 2",
    "   bne t0, t1, 8f",
    "   li t0, 100",
    "   sd t0, 0(s3)",
    "   li a0, 0",
    "   j 9f",
    "8: mv a0, s4",
    "9: li a7, 0", // exit
    "   ecall",
    "user_code_end:",
    ".popsection",
);

/// The page fault that an exception is, if it is one.
pub fn page_fault(exception: CpuException) -> Option<(VirtAddr, Access)> {
    let (address, access) = match exception {
        CpuException::InstructionPageFault(address) => (address, Access::Execute),
        CpuException::LoadPageFault(address) => (address, Access::Read),
        CpuException::StorePageFault(address) => (address, Access::Write),
        _ => return None,
    };
    Some((VirtAddr(address as u64), access))
}

/// The arguments that a program begins with.
pub fn set_arguments(context: &mut UserContext, [first, second, third]: [usize; 3]) {
    context.set_a0(first);
    context.set_a1(second);
    context.set_a2(third);
}

/// The number and the arguments of a system call.
pub fn system_call(context: &UserContext) -> (usize, (u64, u64)) {
    (context.a7(), (context.a0() as u64, context.a1() as u64))
}

/// What the system call returns.
pub fn set_result(context: &mut UserContext, result: usize) {
    context.set_a0(result);
}

/// Code was written: all harts read it anew.
pub fn synchronize_code() {
    // SAFETY: Orders this hart's stores before the instructions that it reads from now on.
    unsafe { asm!("fence.i", options(nostack)) };
    assert_eq!(sbi_rt::remote_fence_i(all_harts()).error, 0, "the firmware knows no remote fences");
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            // The result says nothing: a byte that cannot be written is lost.
            #[expect(deprecated, reason = "what came after it is not in all firmware")]
            sbi_rt::legacy::console_putchar(usize::from(byte));
        }
        Ok(())
    }
}

/// Prints to the console. OSTD's own printing needs firmware with a debug console.
pub fn print(text: Arguments<'_>) {
    // `Console` does not fail.
    let _ = Console.write_fmt(text);
}
