//! What this CPU can do, control registers and model-specific registers.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use raw_cpuid::CpuId;

pub const MSR_APIC_BASE: u32 = 0x1b;
pub const MSR_EFER: u32 = 0xc000_0080;
pub const MSR_STAR: u32 = 0xc000_0081;
pub const MSR_LSTAR: u32 = 0xc000_0082;
pub const MSR_CSTAR: u32 = 0xc000_0083;
pub const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
pub const MSR_FS_BASE: u32 = 0xc000_0100;
pub const MSR_GS_BASE: u32 = 0xc000_0101;
pub const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const MSR_TSC_AUX: u32 = 0xc000_0103;

const EFER_SYSCALL: u64 = 1;
const EFER_NX: u64 = 1 << 11;

const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_EMULATE_FPU: u64 = 1 << 2;
const CR0_TASK_SWITCHED: u64 = 1 << 3;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR0_WRITE_PROTECT: u64 = 1 << 16;

const CR4_TIME_STAMP_DISABLE: u64 = 1 << 2;
const CR4_GLOBAL_PAGES: u64 = 1 << 7;
const CR4_FXSR: u64 = 1 << 9;
const CR4_SIMD_EXCEPTIONS: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_XSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

macro_rules! features {
    ($($(#[$doc:meta])* $constant:ident $function:ident = $bit:literal;)*) => {
        $(const $constant: u32 = 1 << $bit;
        $(#[$doc])*
        pub fn $function() -> bool {
            // Relaxed: set once at boot, before the other CPUs start.
            PRESENT.load(Ordering::Relaxed) & $constant != 0
        })*
    };
}

static PRESENT: AtomicU32 = AtomicU32::new(0);

features! {
    /// Pages can be marked as not executable.
    NX has_nx = 0;
    /// The kernel cannot run user pages.
    SMEP has_smep = 1;
    /// The kernel reaches user pages only between STAC and CLAC.
    SMAP has_smap = 2;
    /// 1 GiB pages.
    GIB_PAGES has_gib_pages = 3;
    /// User mode may read and write its FS and GS bases itself.
    FSGSBASE has_fsgsbase = 4;
    XSAVE has_xsave = 5;
    AVX has_avx = 6;
    /// RDTSCP, and so the TSC_AUX register, which holds the CPU's number.
    RDTSCP has_rdtscp = 7;
    UMIP has_umip = 8;
}

/// Finds out what the boot CPU can do; the others are taken to be its equals.
pub(super) fn detect() {
    let cpuid = CpuId::new();
    let mut present = 0;
    let mut set = |bit: u32, has: bool| present |= if has { bit } else { 0 };
    if let Some(info) = cpuid.get_feature_info() {
        set(XSAVE, info.has_xsave());
        set(AVX, info.has_xsave() && info.has_avx());
    }
    if let Some(info) = cpuid.get_extended_feature_info() {
        set(SMEP, info.has_smep());
        set(SMAP, info.has_smap());
        set(FSGSBASE, info.has_fsgsbase());
        set(UMIP, info.has_umip());
    }
    if let Some(info) = cpuid.get_extended_processor_and_feature_identifiers() {
        set(NX, info.has_execute_disable());
        set(GIB_PAGES, info.has_1gib_pages());
        set(RDTSCP, info.has_rdtscp());
    }
    PRESENT.store(present, Ordering::SeqCst);
}

/// Sets the control registers of the calling CPU.
pub(super) fn enable() {
    let mut cr0 = read_cr0();
    cr0 |= CR0_MONITOR_COPROCESSOR | CR0_NUMERIC_ERROR | CR0_WRITE_PROTECT;
    cr0 &= !(CR0_EMULATE_FPU | CR0_TASK_SWITCHED);
    let mut cr4 = read_cr4();
    cr4 &= !CR4_TIME_STAMP_DISABLE;
    cr4 |= CR4_GLOBAL_PAGES | CR4_FXSR | CR4_SIMD_EXCEPTIONS;
    for (has, bit) in [
        (has_smep(), CR4_SMEP),
        (has_smap(), CR4_SMAP),
        (has_fsgsbase(), CR4_FSGSBASE),
        (has_xsave(), CR4_XSAVE),
        (has_umip(), CR4_UMIP),
    ] {
        if has {
            cr4 |= bit;
        }
    }
    let mut efer = EFER_SYSCALL;
    if has_nx() {
        efer |= EFER_NX;
    }
    // SAFETY: each bit is one that the CPU has; kernel mappings are made for them.
    unsafe {
        asm!("mov cr0, {}", in(reg) cr0, options(nostack));
        asm!("mov cr4, {}", in(reg) cr4, options(nostack));
        write_msr(MSR_EFER, read_msr(MSR_EFER) | efer);
    }
}

pub fn read_cr0() -> u64 {
    let value: u64;
    // SAFETY: reading has no effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

/// The address of the last page fault.
pub fn read_cr2() -> u64 {
    let value: u64;
    // SAFETY: reading has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

pub fn read_cr3() -> u64 {
    let value: u64;
    // SAFETY: reading has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

/// Loads a page table, which flushes all but the global entries of the TLB.
///
/// # Safety
/// The table maps the kernel as [`crate::memory::paging`] does, and lives until another is loaded.
pub unsafe fn write_cr3(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

pub fn read_cr4() -> u64 {
    let value: u64;
    // SAFETY: reading has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the registers named above has no effect.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags))
    };
    (high as u64) << 32 | low as u64
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists and takes the value, and the kernel goes on working with it.
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}
