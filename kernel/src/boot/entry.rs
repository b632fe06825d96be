//! The first instructions: from 32-bit mode without paging to 64-bit mode in the upper half.
//!
//! Two kinds of loaders jump here, both in that mode and with a pointer in EBX: those of PVH, which find the entry in
//! an ELF note (QEMU, Firecracker, Cloud Hypervisor), and those of Multiboot 2, which find it in a header (GRUB, for
//! PCs with a BIOS and with UEFI).

use core::arch::global_asm;

unsafe extern "C" {
    /// The 32-bit entry's physical address, by the linker script.
    fn pvh_start32_physical() -> !;
}

pvh::xen_elfnote_phys32_entry!(pvh_start32_physical);

/// What the loader's pointer leads to.
pub const PVH: u32 = 0;
pub const MULTIBOOT: u32 = 1;

/// Bytes of the stack that the kernel boots on; it becomes the boot CPU's idle stack.
pub const STACK_SIZE: usize = 64 << 10;

// The boot tables show the first 4 GiB three times: at their physical addresses, in the direct map, and (the first
// 2 GiB) at the image's addresses. They are part of the image, so nothing needs memory yet.
global_asm!(
    r#"
.set KERNEL_BASE, 0xffffffff80000000

.section .data.boot_tables, "aw"
.balign 4096
boot_top:
    .quad boot_third - KERNEL_BASE + 3
    .fill 255, 8, 0
    .quad boot_third - KERNEL_BASE + 3
    .fill 254, 8, 0
    .quad boot_third_image - KERNEL_BASE + 3
boot_third:
    .quad boot_second - KERNEL_BASE + 3
    .quad boot_second - KERNEL_BASE + 4096 + 3
    .quad boot_second - KERNEL_BASE + 8192 + 3
    .quad boot_second - KERNEL_BASE + 12288 + 3
    .fill 508, 8, 0
boot_third_image:
    .fill 510, 8, 0
    .quad boot_second - KERNEL_BASE + 3
    .quad boot_second - KERNEL_BASE + 4096 + 3
boot_second:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0x83
    .set page, page + 1
    .endr

.balign 16
boot_gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdt_pointer:
    .word 31
    .long boot_gdt - KERNEL_BASE
    .long 0

.section .bss.boot_stack, "aw", @nobits
.balign 4096
.global boot_stack
boot_stack:
    .skip {STACK_SIZE}

.section .text.boot, "ax"
# Multiboot 2, 3.1.1: in the file's first 32 KiB. Magic, architecture (i386, protected mode), length, and what makes
# their sum 0; then the tags.
.balign 8
multiboot_header:
    .long {HEADER_MAGIC}, 0, multiboot_header_end - multiboot_header
    .long -({HEADER_MAGIC} + (multiboot_header_end - multiboot_header))
    # The entry's address.
    .balign 8
    .word 3, 0
    .long 12, multiboot_start32 - KERNEL_BASE
    # Modules on page boundaries: the initial RAM disk's pages are given back one day.
    .balign 8
    .word 6, 0
    .long 8
    # The end.
    .balign 8
    .word 0, 0
    .long 8
multiboot_header_end:

.code32
multiboot_start32:
    # A loader of another protocol that took this entry has left another number.
    cmpl ${MAGIC}, %eax
    jne 9f
    movl ${MULTIBOOT}, %ebp
    jmp 8f
9:
    cli
    hlt
    jmp 9b
.global pvh_start32
pvh_start32:
    movl ${PVH}, %ebp
8:
    cli
    cld
    # EBX: the physical address of what the loader tells.
    lgdtl boot_gdt_pointer - KERNEL_BASE
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $(boot_top - KERNEL_BASE), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax
    movl %eax, %cr0
    ljmpl $0x10, $(1f - KERNEL_BASE)
.code64
1:
    movabsq $2f, %rax
    jmpq *%rax
2:
    xorl %eax, %eax
    movl $0x18, %ecx
    movl %ecx, %ss
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    # Some loaders leave what the file does not fill as it was.
    movq $bss_start, %rdi
    movq $bss_end, %rcx
    subq %rdi, %rcx
    rep stosb
    movq $boot_stack + {STACK_SIZE}, %rsp
    movl %ebx, %edi
    movl %ebp, %esi
    xorl %ebp, %ebp
    call {start}
    ud2
"#,
    STACK_SIZE = const STACK_SIZE,
    PVH = const PVH,
    MULTIBOOT = const MULTIBOOT,
    HEADER_MAGIC = const 0xe852_50d6u32,
    MAGIC = const multiboot2::MAGIC,
    start = sym crate::kernel_start,
    options(att_syntax)
);
