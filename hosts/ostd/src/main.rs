//! Asterinas' OSTD as a host of the `hugetlb` library: an adapter, programs in ring 3, and what they measure.
#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod cpus;
mod ipi;
mod locks;
mod machine;
mod measure;
mod memory;
mod process;
mod sched;
mod space;
mod user;

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
