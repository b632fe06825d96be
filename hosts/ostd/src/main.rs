//! Asterinas' OSTD as a host of the `hugetlb` library: an adapter, programs in user mode, and what they measure.
#![no_std]
#![no_main]

extern crate alloc;

/// Prints a line to the console.
macro_rules! println {
    ($($text:tt)*) => {
        $crate::arch::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
#[cfg_attr(target_arch = "riscv64", path = "riscv64/mod.rs")]
mod arch;
mod boot;
mod cpus;
mod locks;
mod machine;
mod measure;
mod memory;
mod process;
mod ranges;
mod sched;
mod sharing;
mod space;
mod user;
mod world;

use ostd::cpu::CpuId;
use ostd::power::{ExitCode, poweroff};
use ostd::task::scheduler::enable_preemption_on_cpu;

#[ostd::main]
fn main() {
    sched::init();
    enable_preemption_on_cpu();
    ostd::boot::smp::register_ap_entry(enable_preemption_on_cpu);
    sched::spawn(CpuId::bsp(), || {
        sched::wait_for_all();
        measure::all();
        poweroff(ExitCode::Success)
    });
}
