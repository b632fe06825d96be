//! The boot CPU's set-up, and the start of the others.

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::cpu::{CpuId, MAX_CPUS};
use super::gdt::InterruptStacks;
use super::{
    acpi, apic, clock, cpu, entry, features, fpu, gdt, idt, interrupts, ioapic, ipi, percpu, serial, smap,
    timer,
};
use crate::boot::info::Rsdp;
use crate::boot::trampoline;
use crate::memory::paging::{self, IdentityTable};
use crate::memory::stack::KernelStack;
use crate::memory::{PAGE_SIZE, contiguous, node};

struct BootStacks(UnsafeCell<InterruptStacks>);

// SAFETY: only its address is used; the boot CPU's hardware writes to it.
unsafe impl Sync for BootStacks {}

static BOOT_STACKS: BootStacks = BootStacks(UnsafeCell::new(InterruptStacks::new()));

/// What needs no memory allocation: traps work after this.
///
/// # Safety
/// Once, first of all, by the boot CPU.
pub unsafe fn init_early() {
    // SAFETY: the boot CPU, first of all; its code is writable still.
    unsafe {
        let area = percpu::init(0);
        clock::start();
        features::detect();
        smap::patch();
        gdt::init(area, 0, BOOT_STACKS.0.get());
    }
    idt::init();
    init_this_cpu();
    serial::init();
}

/// What every CPU does for itself.
fn init_this_cpu() {
    features::enable();
    idt::load();
    entry::init_syscall();
    fpu::init();
    set_number();
}

/// Tells programs the number of this CPU and its node, where they read them without a system call.
fn set_number() {
    let number = gdt::cpu_number(cpu::id());
    if features::has_rdtscp() {
        // SAFETY: the register is there for this.
        unsafe { features::write_msr(features::MSR_TSC_AUX, number.into()) };
    }
}

/// What needs the heap: firmware tables, interrupt controllers, clocks.
pub fn init_devices(rsdp: Option<Rsdp>) {
    acpi::init(rsdp);
    node::init(acpi::firmware().and_then(|firmware| firmware.affinity.as_ref()));
    apic::map();
    apic::init();
    percpu::set_apic_id(0, apic::id());
    node::set_cpu(0, apic::id());
    // SAFETY: the boot CPU's own segments.
    unsafe { gdt::renumber(percpu::this_area(), 0) };
    set_number();
    ioapic::init();
    clock::calibrate();
    timer::calibrate();
    cpu::set_online(0);
}

/// The CPU that starts now.
static STARTING: AtomicU32 = AtomicU32::new(0);
static STARTING_STACKS: AtomicUsize = AtomicUsize::new(0);
/// Whether it is set up as far as the next one may start.
static READY: AtomicBool = AtomicBool::new(false);
/// Whether the started CPUs may run threads.
static RELEASED: AtomicBool = AtomicBool::new(false);

/// Starts the other CPUs that firmware lists, one by one; they wait for [`release_others`].
pub fn start_others(limit: usize) {
    let Some(firmware) = acpi::firmware() else { return };
    let boot = percpu::apic_id(0);
    let limit = limit.min(MAX_CPUS);
    let mut next: CpuId = 1;
    let Some(table) = IdentityTable::new() else { return };
    for apic_id in firmware.cpus.iter().copied().filter(|apic_id| *apic_id != boot) {
        if next as usize >= limit {
            break;
        }
        if start(next, apic_id, &table) {
            next += 1;
        } else {
            log::warn!("CPU with APIC identifier {apic_id} does not start");
        }
    }
    // The table with low memory in it goes away here, after the last CPU has left it.
    drop(table);
    log::info!("{} CPUs", cpu::count());
}

fn start(cpu: CpuId, apic_id: u32, table: &IdentityTable) -> bool {
    let Some(stack) = KernelStack::new() else { return false };
    let size = size_of::<InterruptStacks>();
    let Some(stacks) = contiguous::alloc_for(size, align_of::<InterruptStacks>(), crate::memory::Use::Other)
    else {
        return false;
    };
    STARTING.store(cpu, Ordering::SeqCst);
    STARTING_STACKS.store(stacks.to_virt().as_usize(), Ordering::SeqCst);
    READY.store(false, Ordering::SeqCst);
    percpu::set_apic_id(cpu, apic_id);
    node::set_cpu(cpu, apic_id);
    // Long mode; no-execute as the boot CPU has it.
    let efer = 1 << 8 | if features::has_nx() { 1 << 11 } else { 0 };
    trampoline::install(table.address(), stack.top(), efer);

    apic::send_init(apic_id);
    clock::delay_us(10_000);
    for _ in 0..2 {
        apic::send_startup(apic_id, trampoline::PAGE);
        // A CPU that got the first message may miss nothing by the second, which it ignores; but one that has
        // arrived needs none.
        if wait_until(200, trampoline::arrived) {
            break;
        }
    }
    if !wait_until(2_000_000, || READY.load(Ordering::SeqCst)) {
        // It may come to life at any time: its stacks stay.
        core::mem::forget(stack);
        return false;
    }
    // The stack is the CPU's for ever: its idle thread runs on it.
    Box::leak(Box::new(stack));
    cpu::set_online(cpu);
    true
}

fn wait_until(microseconds: u64, condition: impl Fn() -> bool) -> bool {
    let end = clock::now_ns() + microseconds * 1000;
    while !condition() {
        if clock::now_ns() > end {
            return condition();
        }
        core::hint::spin_loop();
    }
    true
}

/// Where a started CPU arrives, on its own stack, with the trampoline's page table.
pub(crate) fn ap_main() -> ! {
    let cpu = STARTING.load(Ordering::SeqCst);
    // SAFETY: the CPU's first steps, and what `start` prepared for it alone.
    unsafe {
        let area = percpu::init(cpu);
        gdt::init(area, cpu, STARTING_STACKS.load(Ordering::SeqCst) as *mut InterruptStacks);
    }
    init_this_cpu();
    paging::load_kernel_table();
    super::tlb::flush_global();
    apic::init();
    READY.store(true, Ordering::SeqCst);
    // Halted, as there may be many: those that are emulated take turns with the one that starts now. `release_others` sends its interrupt
    // after the store, and one that comes between the look and the halt ends the halt.
    while !RELEASED.load(Ordering::SeqCst) {
        interrupts::enable_and_wait();
        interrupts::disable();
    }
    crate::secondary_main()
}

/// Lets the started CPUs go on to `secondary_main`.
pub fn release_others() {
    RELEASED.store(true, Ordering::SeqCst);
    for cpu in 1..cpu::count() {
        ipi::reschedule(cpu);
    }
}

const _: () = assert!(size_of::<InterruptStacks>().is_multiple_of(PAGE_SIZE));
