//! The Roundtable kernel.
// Threads lead to files, files to those whom they signal: whether all of it may be shared is a long way to see.
#![recursion_limit = "256"]
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod boot;
mod cgroup;
mod errno;
mod fs;
mod hugetlb;
mod ipc;
mod log;
mod memory;
mod missing;
mod mm;
mod namespaces;
mod net;
mod panic;
mod process;
mod random;
mod sched;
mod seccomp;
mod selftest;
mod signal;
mod sync;
mod syscall;
mod time;
mod tty;
mod virtio;

use ::log::info;

use arch::smp;
use boot::cmdline;

// `cargo check` for the host builds all members together, and one of them may turn on a shared dependency's `std`
// feature; then std is linked and has the panic handler and the allocator already.
#[cfg(not(target_os = "none"))]
extern crate std as _;

/// Where the boot code arrives in 64-bit mode, on the boot stack, with interrupts off.
extern "C" fn kernel_start(loaded: u32, protocol: u32) -> ! {
    // SAFETY: first of all, by the boot CPU, with the loader's pointer.
    let loader = unsafe {
        smp::init_early();
        boot::info::init(loaded, protocol)
    };
    log::init();
    info!("Roundtable {} (by {})", env!("CARGO_PKG_VERSION"), loader.protocol);
    memory::init(loader.ram(), &[boot::info::initrd_range()]);
    info!("memory: {} MiB", memory::stats().total >> 20);
    smp::init_devices(loader.rsdp);
    kernel_main()
}

/// Brings the rest up, in an order in which each part finds what it needs.
fn kernel_main() -> ! {
    let cpus = cmdline::get("maxcpus").and_then(|count| count.parse().ok()).unwrap_or(usize::MAX);
    smp::start_others(cpus);
    memory::all_cpus_known();
    time::clock::init();
    sync::perturb::init();
    sched::init_cpu();
    arch::interrupts::enable();
    smp::release_others();
    if selftest::wanted() {
        selftest::run();
    }
    time::init();
    // Early: pages of 1 GiB need memory in one piece.
    mm::file_tables::init();
    mm::fork_tables::init();
    mm::exec::init();
    hugetlb::init();
    mm::init();
    fs::init();
    if let Err(error) = ipc::register() {
        ::log::error!("no lists of System V objects: {error}");
    }
    if let Err(error) = mm::file_tables::register() {
        ::log::error!("no counters of file tables: {error}");
    }
    if let Err(error) = hugetlb::register() {
        ::log::error!("no hugetlbfs: {error}");
    }
    if let Err(error) = cgroup::register() {
        ::log::error!("no control groups: {error}");
    }
    if let Err(error) = tty::init() {
        ::log::error!("no terminals: {error}");
    }
    if let Err(error) = sync::lockdep::register() {
        ::log::error!("no list of locks: {error}");
    }
    net::inet::card::init();
    fs::init_volumes();
    syscall::init();
    missing::init();
    process::watch::init();
    signal::init();
    #[cfg(feature = "lockdep")]
    sync::lockdep::break_rule();
    if let Err(error) = process::spawn_init(process::first_process) {
        panic!("the first process could not be made: {error}");
    }
    sched::enter_idle()
}

/// Where the other CPUs go once the scheduler works.
fn secondary_main() -> ! {
    if selftest::wanted() {
        arch::interrupts::enable();
        selftest::join();
        arch::interrupts::disable();
    }
    sched::init_cpu();
    sched::enter_idle()
}
