//! Huge pages on the command line, in `/proc/sys/vm`, in `/sys/kernel/mm/hugepages` and in `/proc/meminfo`.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::num::IntErrorKind;
use core::sync::atomic::{AtomicU32, Ordering};

use ::hugetlb::{Config, Hugetlb, PageSize, Pool, ProtocolKind};
use linux_raw_sys::general as abi;

use super::machine::Kernel;
use super::{SYSTEM, check, errno, system};
use crate::boot::cmdline;
use crate::errno::{Errno, Result};
use crate::fs::proc::{self, sysctl};
use crate::fs::sys;
use crate::memory::reserve;
use crate::mm::file_tables;
use crate::process;

/// `vm.hugetlb_shm_group`: members may use SHM_HUGETLB.
static SHM_GROUP: AtomicU32 = AtomicU32::new(0);

/// A size on the command line: `2M`, `1G`, `2048K`.
fn parse_size(text: &str) -> Option<PageSize> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        _ => return None,
    };
    PageSize::from_bytes(digits.parse::<u64>().ok()?.checked_mul(1 << shift)?)
}

/// The protocol that `hugetlb_sharing=` names. Whoever names one wants that one: with another one all that they measure or test would
/// be wrong without a word, so the machine stops.
fn protocol(name: &str) -> ProtocolKind {
    let Some(protocol) = ProtocolKind::from_name(name) else {
        if ProtocolKind::LAB_ONLY.contains(&name) {
            panic!(
                "hugetlb_sharing={name}: this protocol corrupts memory and is there to be seen doing so; \
                 only a kernel built with the feature lab has it (cargo xtask build --lab)"
            );
        }
        let known: Vec<&str> = ProtocolKind::ALL.iter().map(|(name, _)| *name).collect();
        panic!("hugetlb_sharing={name}: no such protocol; this kernel has {}", known.join(", "));
    };
    if ProtocolKind::LAB_ONLY.contains(&name) {
        log::warn!("hugetlb_sharing={name}: MEMORY WILL BE CORRUPTED, this is a laboratory");
    }
    protocol
}

pub(super) fn init() {
    let mut config = Config::default();
    if let Some(text) = cmdline::get("default_hugepagesz") {
        match parse_size(text) {
            Some(size) => config.default_size = size,
            None => log::warn!("default_hugepagesz={text}: no such page size"),
        }
    }
    match cmdline::get("hugetlb_sharing") {
        Some(name) => config.protocol = protocol(name),
        None if file_tables::are_off() => config.protocol = protocol("none"),
        None => {}
    }
    let system = Hugetlb::new(Kernel, config);
    // `hugepages=` goes with the size in front of it; without one, with the default size.
    let mut size = Some(config.default_size);
    for (name, value) in cmdline::parameters() {
        match (name, value) {
            ("hugepagesz" | "default_hugepagesz", Some(text)) => {
                size = parse_size(text);
                if size.is_none() {
                    log::warn!("{name}={text}: no such page size");
                }
            }
            ("hugepages", Some(count)) => fill(&system, size, count),
            _ => {}
        }
    }
    assert!(SYSTEM.set(system).is_ok(), "initialised twice");
}

fn fill(system: &Arc<Hugetlb<Kernel>>, size: Option<PageSize>, count: &str) {
    let (Some(size), Ok(count)) = (size, count.parse::<u64>()) else {
        log::warn!("hugepages={count} ignored");
        return;
    };
    let got = system.pool(size).set_persistent(count, || false);
    log::info!("HugeTLB: {got} pages of {} KiB", size.kib());
    if got < count {
        log::warn!("HugeTLB: {count} pages of {} KiB were asked for", size.kib());
    }
}

/// `EPERM` unless the caller may use SHM_HUGETLB: CAP_IPC_LOCK, or member of the group.
pub fn check_may_use_shm() -> Result<()> {
    let who = process::current().credentials();
    // Relaxed: a setting of its own.
    let group = SHM_GROUP.load(Ordering::Relaxed);
    if who.capable(abi::CAP_IPC_LOCK) || who.in_group(group) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Sets the persistent size of a pool, until a signal comes.
fn resize(pool: &Pool<Kernel>, text: &str) -> Result<()> {
    let _library = reserve::library();
    let count = sysctl::parse(text)?;
    pool.set_persistent(count, || {
        crate::sched::cond_resched();
        process::current().signal_pending()
    });
    Ok(())
}

fn overcommit(pool: &Pool<Kernel>, text: &str) -> Result<()> {
    pool.set_overcommit(sysctl::parse(text)?).map_err(errno)
}

/// `demote`: makes pages of 2 MiB of so many free ones of 1 GiB.
fn demote(pool: &Pool<Kernel>, text: &str) -> Result<()> {
    // Decimal, unlike the settings beside it.
    let number = text.strip_suffix('\n').unwrap_or(text).parse::<u64>();
    let count = number.map_err(|error| match error.kind() {
        IntErrorKind::PosOverflow => Errno::ERANGE,
        _ => Errno::EINVAL,
    })?;
    let _library = reserve::library();
    pool.demote(count, system().pool(PageSize::Size2M)).map_err(errno)?;
    Ok(())
}

/// `demote_size`: there is one size to choose.
fn set_demote_size(text: &str) -> Result<()> {
    // As it is shown, or as on the command line.
    let text = text.trim_end();
    match parse_size(text.strip_suffix('B').unwrap_or(text)) {
        Some(PageSize::Size2M) => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

fn default_pool() -> &'static Arc<Pool<Kernel>> {
    system().pool(system().default_size())
}

pub(super) fn register() -> Result<()> {
    for name in ["nr_hugepages", "nr_hugepages_mempolicy"] {
        sysctl::register(
            &alloc::format!("vm/{name}"),
            || Ok(default_pool().statistics().persistent.to_string()),
            |text| resize(default_pool(), text),
        )?;
    }
    sysctl::register(
        "vm/nr_overcommit_hugepages",
        || Ok(default_pool().statistics().overcommit.to_string()),
        |text| overcommit(default_pool(), text),
    )?;
    sysctl::register(
        "vm/hugetlb_shm_group",
        // Relaxed, both: a setting of its own.
        || Ok(SHM_GROUP.load(Ordering::Relaxed).to_string()),
        |text| {
            SHM_GROUP.store(sysctl::parse(text)?, Ordering::Relaxed);
            Ok(())
        },
    )?;
    for size in PageSize::ALL {
        register_pool(size)?;
    }
    register_sharing()?;
    proc::set_meminfo_lines(meminfo);
    Ok(())
}

/// `/sys/kernel/mm/hugepages/hugepages-*kB`, and the same for the one memory node.
fn register_pool(size: PageSize) -> Result<()> {
    let pool = move || system().pool(size);
    let line = |number: u64| Ok(alloc::format!("{number}\n"));
    let directory = alloc::format!("kernel/mm/hugepages/hugepages-{}kB", size.kib());
    let node = alloc::format!("devices/system/node/node0/hugepages/hugepages-{}kB", size.kib());
    for (directory, of_node) in [(&directory, false), (&node, true)] {
        let path = |name: &str| alloc::format!("{directory}/{name}");
        let store = move |text: &str| resize(pool(), text);
        sys::register(&path("nr_hugepages"), move || line(pool().statistics().total), store)?;
        sys::register_read_only(&path("free_hugepages"), move || line(pool().statistics().free))?;
        sys::register_read_only(&path("surplus_hugepages"), move || line(pool().statistics().surplus))?;
        if size == PageSize::Size1G {
            sys::register_write_only(&path("demote"), move |text| demote(pool(), text))?;
            let shown = || Ok(alloc::format!("{}kB\n", PageSize::Size2M.kib()));
            sys::register(&path("demote_size"), shown, set_demote_size)?;
        }
        if of_node {
            continue;
        }
        sys::register(&path("nr_hugepages_mempolicy"), move || line(pool().statistics().total), store)?;
        sys::register_read_only(&path("resv_hugepages"), move || line(pool().statistics().reserved))?;
        sys::register(
            &path("nr_overcommit_hugepages"),
            move || line(pool().statistics().overcommit),
            move |text| overcommit(pool(), text),
        )?;
    }
    Ok(())
}

/// `/sys/kernel/mm/hugepages/sharing`: what Linux does not tell.
fn register_sharing() -> Result<()> {
    const DIRECTORY: &str = "kernel/mm/hugepages/sharing";
    // Whatever the library counts has a file: its listing has the same names in the same order always.
    for (index, (name, _)) in system().sharing().list().enumerate() {
        let path = alloc::format!("{DIRECTORY}/{name}");
        sys::register_read_only(&path, move || {
            let value = system().sharing().list().nth(index).map_or(0, |(_, value)| value);
            Ok(alloc::format!("{value}\n"))
        })?;
    }
    // It takes every mapping's lock for writing.
    sys::register_for_root(&alloc::format!("{DIRECTORY}/check"), || {
        let found = check::run();
        Ok(found.map_or_else(|what| alloc::format!("{what}\n"), |round| alloc::format!("{round}\n")))
    })?;
    #[cfg(feature = "lab")]
    sys::register(&alloc::format!("{DIRECTORY}/break"), || Ok(String::new()), super::lab::break_entry)?;
    sys::register_read_only(&alloc::format!("{DIRECTORY}/protocol"), || {
        Ok(alloc::format!("{}\n", system().protocol_kind().name()))
    })
}

fn meminfo(out: &mut String) {
    let pool = default_pool();
    let statistics = pool.statistics();
    let counts = [
        ("HugePages_Total:", statistics.total),
        ("HugePages_Free:", statistics.free),
        ("HugePages_Rsvd:", statistics.reserved),
        ("HugePages_Surp:", statistics.surplus),
    ];
    for (name, count) in counts {
        let _ = writeln!(out, "{name:<16}{count:>8}");
    }
    for (name, kib) in [("Hugepagesize:", pool.page_size().kib()), ("Hugetlb:", system().total_bytes() >> 10)]
    {
        let _ = writeln!(out, "{name:<16}{kib:>8} kB");
    }
}
