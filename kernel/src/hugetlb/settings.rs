//! Huge pages on the command line, in `/proc/sys/vm`, in `/sys/kernel/mm/hugepages` and in `/proc/meminfo`.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::num::IntErrorKind;
use core::sync::atomic::{AtomicU32, Ordering};

use ::hugetlb::{Config, Hugetlb, NodeOrder, NodeStatistics, PageSize, Pool, PoolStatistics, ProtocolKind};
use linux_raw_sys::general as abi;

use super::machine::Kernel;
use super::{SYSTEM, check, errno, system};
use crate::boot::cmdline;
use crate::errno::{Errno, Result};
use crate::fs::proc::{self, sysctl};
use crate::fs::sys;
use crate::memory::{node, reserve};
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

/// Fills a pool by `hugepages=`: with so many pages, or with so many of each node that it names: `0:2,1:4`.
fn fill(system: &Arc<Hugetlb<Kernel>>, size: Option<PageSize>, text: &str) {
    let counts: Option<Vec<(Option<usize>, u64)>> = text.split(',').map(parse_count).collect();
    // A count without a node is for all of them, and alone.
    let counts = counts.filter(|counts| counts.len() == 1 || counts.iter().all(|(node, _)| node.is_some()));
    let (Some(size), Some(counts)) = (size, counts) else {
        log::warn!("hugepages={text} ignored");
        return;
    };
    let pool = system.pool(size);
    let before = pool.statistics().persistent;
    let mut wanted = 0;
    for (node, count) in counts {
        wanted += count;
        match node {
            Some(node) => pool.set_persistent_of(node, count, || false),
            None => pool.set_persistent(count, || false),
        };
    }
    let got = pool.statistics().persistent;
    log::info!("HugeTLB: {got} pages of {} KiB", size.kib());
    if got < wanted && before <= got {
        log::warn!("HugeTLB: {wanted} pages of {} KiB were asked for", size.kib());
    }
}

/// A count of pages, and the node that it is for: `4`, `1:4`.
fn parse_count(text: &str) -> Option<(Option<usize>, u64)> {
    match text.split_once(':') {
        None => Some((None, text.parse().ok()?)),
        Some((node, count)) => {
            let node = node.parse().ok().filter(|node| *node < node::count())?;
            Some((Some(node), count.parse().ok()?))
        }
    }
}

/// `EPERM` unless the caller may use SHM_HUGETLB: CAP_IPC_LOCK, or member of the group.
pub fn check_may_use_shm() -> Result<()> {
    let who = process::current().credentials();
    // Relaxed: a setting of its own.
    let group = SHM_GROUP.load(Ordering::Relaxed);
    if who.capable(abi::CAP_IPC_LOCK) || who.in_group(group) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Which pages of a pool a file is about.
#[derive(Clone, Copy)]
enum Of {
    All,
    /// Those of the nodes that the caller's policy names.
    Policy,
    Node(usize),
}

impl Of {
    fn nodes(self) -> NodeOrder {
        let mask = match self {
            Of::All => node::with_memory(),
            Of::Policy => process::current().memory_policy.get().nodes_or_all(),
            Of::Node(node) => 1 << node,
        };
        let mut nodes = NodeOrder::default();
        node::list(mask).for_each(|node| nodes.push(node));
        nodes
    }

    fn statistics(self, pool: &Pool<Kernel>) -> NodeStatistics {
        match self {
            Of::Node(node) => pool.node_statistics(node),
            Of::All | Of::Policy => {
                let PoolStatistics { total, free, surplus, .. } = pool.statistics();
                NodeStatistics { total, free, surplus }
            }
        }
    }
}

/// Sets the persistent size of a pool, or what of it is on a node, until a signal comes.
fn resize(pool: &Pool<Kernel>, of: Of, text: &str) -> Result<()> {
    let _library = reserve::library();
    let count = sysctl::parse(text)?;
    let interrupted = || {
        crate::sched::cond_resched();
        process::current().signal_pending()
    };
    match of {
        Of::Node(node) => pool.set_persistent_of(node, count, interrupted),
        Of::All | Of::Policy => pool.set_persistent_on(&of.nodes(), count, interrupted),
    };
    Ok(())
}

fn overcommit(pool: &Pool<Kernel>, text: &str) -> Result<()> {
    pool.set_overcommit(sysctl::parse(text)?).map_err(errno)
}

/// `demote`: makes pages of 2 MiB of so many free ones of 1 GiB.
fn demote(pool: &Pool<Kernel>, of: Of, text: &str) -> Result<()> {
    // Decimal, unlike the settings beside it.
    let number = text.strip_suffix('\n').unwrap_or(text).parse::<u64>();
    let count = number.map_err(|error| match error.kind() {
        IntErrorKind::PosOverflow => Errno::ERANGE,
        _ => Errno::EINVAL,
    })?;
    let _library = reserve::library();
    pool.demote_on(&of.nodes(), count, system().pool(PageSize::Size2M)).map_err(errno)?;
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
    for (name, of) in [("nr_hugepages", Of::All), ("nr_hugepages_mempolicy", Of::Policy)] {
        sysctl::register(
            &alloc::format!("vm/{name}"),
            || Ok(default_pool().statistics().persistent.to_string()),
            move |text| resize(default_pool(), of, text),
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

/// `/sys/kernel/mm/hugepages/hugepages-*kB`, and the same for each memory node.
fn register_pool(size: PageSize) -> Result<()> {
    let pool = move || system().pool(size);
    let line = |number: u64| Ok(alloc::format!("{number}\n"));
    let directory = alloc::format!("kernel/mm/hugepages/hugepages-{}kB", size.kib());
    let of_node = |node| {
        let path = alloc::format!("devices/system/node/node{node}/hugepages/hugepages-{}kB", size.kib());
        (path, Of::Node(node))
    };
    for (directory, of) in core::iter::once((directory, Of::All)).chain(node::all().map(of_node)) {
        let path = |name: &str| alloc::format!("{directory}/{name}");
        let count = move || of.statistics(pool());
        let store = move |text: &str| resize(pool(), of, text);
        sys::register(&path("nr_hugepages"), move || line(count().total), store)?;
        sys::register_read_only(&path("free_hugepages"), move || line(count().free))?;
        sys::register_read_only(&path("surplus_hugepages"), move || line(count().surplus))?;
        if size == PageSize::Size1G {
            sys::register_write_only(&path("demote"), move |text| demote(pool(), of, text))?;
            let shown = || Ok(alloc::format!("{}kB\n", PageSize::Size2M.kib()));
            sys::register(&path("demote_size"), shown, set_demote_size)?;
        }
        if matches!(of, Of::Node(_)) {
            continue;
        }
        let by_policy = move |text: &str| resize(pool(), Of::Policy, text);
        sys::register(&path("nr_hugepages_mempolicy"), move || line(count().total), by_policy)?;
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
