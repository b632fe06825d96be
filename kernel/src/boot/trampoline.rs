//! Where the other CPUs start: in real mode, on a page below 1 MiB.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::memory::{DIRECT_MAP, PhysAddr};

/// The page that the code is copied to; low memory is nobody else's.
pub const PAGE: PhysAddr = PhysAddr(0x8000);

unsafe extern "C" {
    static trampoline_start: [u8; 0];
    static trampoline_end: [u8; 0];
    static trampoline_arguments: [u64; 3];
}

/// Whether the last CPU that was started has come to life.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

// Position independent but for the page's address, which it knows: labels count from the page's start.
global_asm!(
    r#"
.section .rodata.trampoline, "a"
.balign 16
.global trampoline_start
trampoline_start:
.code16
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (trampoline_gdt_pointer - trampoline_start)
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl (trampoline_arguments - trampoline_start), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    # Long mode and no-execute: the kernel's tables use that bit where the CPU has it.
    orl (trampoline_arguments - trampoline_start + 16), %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax
    movl %eax, %cr0
    ljmpl $0x10, $({PAGE} + trampoline_long - trampoline_start)
.code64
trampoline_long:
    movl $0x18, %eax
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movq ({PAGE} + trampoline_arguments - trampoline_start + 8), %rsp
    xorl %ebp, %ebp
    movabsq ${start}, %rax
    callq *%rax
    ud2
.balign 8
trampoline_gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
trampoline_gdt_pointer:
    .word 31
    .long {PAGE} + trampoline_gdt - trampoline_start
.balign 8
# Top-level table, stack pointer, bits to set in EFER.
.global trampoline_arguments
trampoline_arguments:
    .quad 0, 0, 0
.global trampoline_end
trampoline_end:
"#,
    PAGE = const PAGE.as_u64(),
    start = sym ap_start,
    options(att_syntax)
);

/// Copies the code to its page.
pub fn install(table: PhysAddr, stack: u64, efer: u64) {
    let start = &raw const trampoline_start as usize;
    let length = &raw const trampoline_end as usize - start;
    let arguments = (&raw const trampoline_arguments as usize - start) as u64;
    assert!(table.as_u64() < 1 << 32, "the page table that CPUs start with is above 4 GiB");
    // SAFETY: the page is reserved for this, and no CPU is starting.
    unsafe {
        let page = PAGE.as_ptr::<u8>();
        core::ptr::copy_nonoverlapping(start as *const u8, page, length);
        let place = (DIRECT_MAP + PAGE.as_u64() + arguments) as *mut [u64; 3];
        place.write_volatile([table.as_u64(), stack, efer]);
    }
    ARRIVED.store(0, Ordering::SeqCst);
}

/// Whether the CPU that was told to start runs kernel code.
pub fn arrived() -> bool {
    ARRIVED.load(Ordering::SeqCst) != 0
}

extern "C" fn ap_start() -> ! {
    ARRIVED.store(1, Ordering::SeqCst);
    crate::arch::smp::ap_main()
}
