//! The files of `/proc` that are about the system as a whole.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::register;
use crate::arch::interrupts::{COUNTS, Counts};
use crate::arch::{clock, cpu};
use crate::boot::cmdline;
use crate::errno::Result;
use crate::fs::registry;
use crate::memory::fallible::Text;
use crate::memory::{self, Use, node};
use crate::mm::{accounting, anonymous};
use crate::namespaces::{self, PidNamespace};
use crate::process;
use crate::sched;
use crate::sync::Once;
use crate::time::{self, SECOND};

/// User space's clock ticks: 100 a second.
pub(super) const CLOCK_TICK: u64 = SECOND / 100;

/// Appends lines to `/proc/meminfo`.
type MeminfoLines = fn(&mut String);
static MEMINFO_LINES: Once<MeminfoLines> = Once::new();

/// The lines about huge pages at the end of `/proc/meminfo`: called once by their room.
pub fn set_meminfo_lines(lines: MeminfoLines) {
    // A second call changes nothing.
    let _ = MEMINFO_LINES.set(lines);
}

pub(super) fn init() -> Result<()> {
    register("meminfo", 0o444, meminfo)?;
    register("stat", 0o444, stat)?;
    register("uptime", 0o444, uptime)?;
    register("loadavg", 0o444, loadavg)?;
    register("version", 0o444, || line(crate::syscall::system::version_line()))?;
    register("cpuinfo", 0o444, cpuinfo)?;
    register("filesystems", 0o444, filesystems)?;
    register("cmdline", 0o444, || line(cmdline::line()))?;
    register("vmstat", 0o444, vmstat)?;
    register("zoneinfo", 0o444, zoneinfo)?;
    register("devices", 0o444, devices)?;
    register("interrupts", 0o444, interrupts)?;
    register("partitions", 0o444, || Ok("major minor  #blocks  name\n\n".into()))?;
    register("swaps", 0o444, || Ok("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".into()))?;
    register("modules", 0o444, || Ok(String::new()))?;
    register("diskstats", 0o444, || Ok(String::new()))
}

fn line(text: impl core::fmt::Display) -> Result<String> {
    Ok(alloc::format!("{text}\n"))
}

/// Writing to a string does not fail: this spares the callers to say so.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = write!($out, $($arg)*);
    }};
}
pub(super) use put;

fn meminfo() -> Result<String> {
    let s = memory::stats();
    let shmem = s.file;
    let mut out = String::new();
    let mut row = |name: &str, bytes: u64| put!(out, "{name:<16}{:>8} kB\n", bytes >> 10);
    row("MemTotal:", s.total);
    row("MemFree:", s.free);
    // Nothing is reclaimed: what is available is what is free.
    row("MemAvailable:", s.free);
    row("Buffers:", 0);
    row("Cached:", s.file);
    row("SwapCached:", 0);
    row("Active:", 0);
    row("Inactive:", s.anon + s.file);
    row("Active(anon):", 0);
    row("Inactive(anon):", s.anon + shmem);
    row("Active(file):", 0);
    row("Inactive(file):", s.file - shmem);
    row("Unevictable:", 0);
    row("Mlocked:", 0);
    row("SwapTotal:", 0);
    row("SwapFree:", 0);
    row("Dirty:", 0);
    row("Writeback:", 0);
    row("AnonPages:", s.anon);
    row("Mapped:", anonymous::page_count() * memory::PAGE_SIZE as u64);
    row("Shmem:", shmem);
    row("KReclaimable:", 0);
    row("Slab:", s.heap);
    row("SReclaimable:", 0);
    row("SUnreclaim:", s.heap);
    row("KernelStack:", s.kernel_stacks);
    row("PageTables:", s.page_tables);
    row("SecPageTables:", 0);
    row("NFS_Unstable:", 0);
    row("Bounce:", 0);
    row("WritebackTmp:", 0);
    row("CommitLimit:", accounting::commit_limit() * memory::PAGE_SIZE as u64);
    row("Committed_AS:", accounting::committed() * memory::PAGE_SIZE as u64);
    row("VmallocTotal:", 1 << 45);
    row("VmallocUsed:", s.kernel_stacks);
    row("VmallocChunk:", 0);
    row("Percpu:", 0);
    row("HardwareCorrupted:", memory::broken::bytes());
    row("AnonHugePages:", 0);
    row("ShmemHugePages:", 0);
    row("ShmemPmdMapped:", 0);
    row("FileHugePages:", 0);
    row("FilePmdMapped:", 0);
    if let Some(lines) = MEMINFO_LINES.get() {
        lines(&mut out);
    }
    Ok(out)
}

/// One zone for each node, since nothing here asks for memory of a certain kind. Its marks are a part of those of [`memory::reserve`].
fn zoneinfo() -> Result<String> {
    let mut out = String::new();
    for node in node::list(node::with_memory()) {
        zone(&mut out, node);
    }
    Ok(out)
}

fn zone(out: &mut String, node: usize) {
    let mut stats = memory::stats();
    let mut minimum = memory::minimum();
    if node::count() > 1 {
        let whole = stats.total;
        let part = node::stats(node);
        let [anon, file, page_tables, kernel_stacks] =
            [Use::Anon, Use::File, Use::PageTable, Use::KernelStack].map(|by| part.used(by));
        stats = memory::Stats {
            total: part.total,
            free: part.free,
            anon,
            file,
            page_tables,
            kernel_stacks,
            ..stats
        };
        minimum = minimum * part.total / whole.max(1);
    }
    let pages = |bytes: u64| bytes / memory::PAGE_SIZE as u64;
    put!(out, "Node {node}, zone   Normal\n  pages free     {}\n", pages(stats.free));
    let mut row = |name: &str, pages: u64| put!(out, "        {name:<8} {pages}\n");
    row("min", minimum);
    row("low", 2 * minimum);
    row("high", 4 * minimum);
    for name in ["spanned", "present", "managed"] {
        row(name, pages(stats.total));
    }
    let counts = [
        ("nr_free_pages", stats.free),
        ("nr_inactive_anon", stats.anon),
        ("nr_file_pages", stats.file),
        ("nr_page_table_pages", stats.page_tables),
        ("nr_kernel_stack", stats.kernel_stacks),
    ];
    for (name, bytes) in counts {
        put!(out, "      {name} {}\n", pages(bytes));
    }
    put!(out, "  node_unreclaimable:  0\n  start_pfn:           0\n");
}

/// Nanoseconds of user mode, of the kernel, and idle.
fn cpu_row(out: &mut Text, name: &str, (user, system, idle): (u64, u64, u64)) {
    let [user, system, idle] = [user, system, idle].map(|t| t / CLOCK_TICK);
    put!(out, "{name} {user} 0 {system} {idle} 0 0 0 0 0 0\n");
}

/// Interrupts of all kinds and CPUs since boot.
fn all_interrupts() -> u64 {
    let kinds: [fn(&Counts) -> &AtomicU64; 4] =
        [|c| &c.timer, |c| &c.calls, |c| &c.reschedules, |c| &c.devices];
    kinds.iter().map(|kind| interrupts_of(*kind).iter().sum::<u64>()).sum()
}

/// The counts of one kind, by CPU.
fn interrupts_of(kind: fn(&Counts) -> &AtomicU64) -> Vec<u64> {
    // Relaxed: statistics.
    (0..cpu::count()).map(|id| kind(COUNTS.of(id)).load(Ordering::Relaxed)).collect()
}

fn interrupts() -> Result<String> {
    let mut out = Text::from("           ");
    for id in 0..cpu::count() {
        put!(out, "CPU{id:<8}");
    }
    out.push('\n');
    let mut row = |name: &str, kind: fn(&Counts) -> &AtomicU64, what: &str| {
        put!(out, "{name:>3}:");
        for count in interrupts_of(kind) {
            put!(out, " {count:>10}");
        }
        put!(out, "   {what}\n");
    };
    row("4", |c| &c.devices, "IO-APIC   4-edge      ttyS0");
    row("LOC", |c| &c.timer, "Local timer interrupts");
    row("RES", |c| &c.reschedules, "Rescheduling interrupts");
    row("CAL", |c| &c.calls, "Function call interrupts");
    out.into_string()
}

/// `CLOCK_BOOTTIME`, as a time namespace shifts it.
pub(super) const BOOTTIME: i32 = 7;

fn stat() -> Result<String> {
    let mut out = Text::new();
    let times: Vec<_> = (0..cpu::count()).map(process::cpu_usage).collect();
    let sum = times.iter().fold((0, 0, 0), |a, t| (a.0 + t.0, a.1 + t.1, a.2 + t.2));
    cpu_row(&mut out, "cpu ", sum);
    for (id, time) in times.into_iter().enumerate() {
        cpu_row(&mut out, &alloc::format!("cpu{id}"), time);
    }
    let boot = (time::clock::realtime_offset() - namespaces::time::offset(BOOTTIME)).max(0) as u64 / SECOND;
    put!(out, "intr {}\n", all_interrupts());
    put!(out, "ctxt {}\n", process::context_switches());
    put!(out, "btime {boot}\nprocesses {}\n", process::forks());
    put!(out, "procs_running {}\nprocs_blocked 0\n", sched::runnable().max(1));
    put!(out, "softirq 0 0 0 0 0 0 0 0 0 0 0\n");
    out.into_string()
}

fn uptime() -> Result<String> {
    let idle: u64 = (0..cpu::count()).map(|id| process::cpu_usage(id).2).sum();
    let parts = |ns: u64| (ns / SECOND, ns % SECOND / CLOCK_TICK);
    let ((up, up_part), (idle, idle_part)) =
        (parts(time::now().saturating_add_signed(namespaces::time::offset(BOOTTIME))), parts(idle));
    line(alloc::format!("{up}.{up_part:02} {idle}.{idle_part:02}"))
}

fn loadavg() -> Result<String> {
    let mut out = String::new();
    for load in process::load_averages() {
        // 11 bits after the point, rounded to two digits.
        let load = load + (1 << 11) / 200;
        put!(out, "{}.{:02} ", load >> 11, ((load & 2047) * 100) >> 11);
    }
    put!(
        out,
        "{}/{} {}\n",
        sched::runnable().max(1),
        process::thread_count(),
        PidNamespace::of_current().last_number()
    );
    Ok(out)
}

fn cpuinfo() -> Result<String> {
    let id = raw_cpuid::CpuId::new();
    let vendor = id.get_vendor_info();
    let brand = id.get_processor_brand_string();
    let feature = id.get_feature_info();
    let (family, model, stepping) =
        feature.as_ref().map_or((0, 0, 0), |f| (f.family_id(), f.model_id(), f.stepping_id()));
    let sizes = id.get_processor_capacity_feature_info();
    let (physical, linear) =
        sizes.as_ref().map_or((36, 48), |s| (s.physical_address_bits(), s.linear_address_bits()));
    let line = feature.as_ref().map_or(64, |f| u32::from(f.cflush_cache_line_size()) * 8);
    let frequency = clock::tsc_parameters().frequency / 1000;
    let (mhz, khz) = (frequency / 1000, frequency % 1000);
    let flags = cpu_flags(&id);
    let mut out = Text::new();
    for number in 0..cpu::count() {
        put!(out, "processor\t: {number}\n");
        put!(out, "vendor_id\t: {}\n", vendor.as_ref().map_or("unknown", |v| v.as_str()));
        put!(out, "cpu family\t: {family}\nmodel\t\t: {model}\n");
        put!(out, "model name\t: {}\n", brand.as_ref().map_or("unknown", |b| b.as_str().trim()));
        put!(out, "stepping\t: {stepping}\nmicrocode\t: 0x1\ncpu MHz\t\t: {mhz}.{khz:03}\n");
        put!(out, "physical id\t: {number}\nsiblings\t: 1\ncore id\t\t: 0\ncpu cores\t: 1\n");
        put!(out, "apicid\t\t: {number}\ninitial apicid\t: {number}\n");
        put!(out, "fpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: 13\nwp\t\t: yes\n");
        put!(out, "flags\t\t:{flags}\nbugs\t\t:\n");
        put!(out, "bogomips\t: {}.{:02}\n", mhz * 2, khz * 2 % 1000 / 10);
        put!(out, "clflush size\t: {line}\ncache_alignment\t: {line}\n");
        put!(out, "address sizes\t: {physical} bits physical, {linear} bits virtual\npower management:\n\n");
    }
    out.into_string()
}

/// The flags that programs look for, each with a blank in front.
fn cpu_flags(id: &raw_cpuid::CpuId<raw_cpuid::CpuIdReaderNative>) -> String {
    let mut out = String::new();
    let mut flag = |present: bool, name: &str| {
        if present {
            put!(out, " {name}");
        }
    };
    if let Some(f) = id.get_feature_info() {
        flag(f.has_fpu(), "fpu");
        flag(f.has_de(), "de");
        flag(f.has_pse(), "pse");
        flag(f.has_tsc(), "tsc");
        flag(f.has_msr(), "msr");
        flag(f.has_pae(), "pae");
        flag(f.has_mce(), "mce");
        flag(f.has_cmpxchg8b(), "cx8");
        flag(f.has_apic(), "apic");
        flag(f.has_sysenter_sysexit(), "sep");
        flag(f.has_mtrr(), "mtrr");
        flag(f.has_pge(), "pge");
        flag(f.has_cmov(), "cmov");
        flag(f.has_pat(), "pat");
        flag(f.has_clflush(), "clflush");
        flag(f.has_mmx(), "mmx");
        flag(f.has_fxsave_fxstor(), "fxsr");
        flag(f.has_sse(), "sse");
        flag(f.has_sse2(), "sse2");
        flag(f.has_sse3(), "pni");
        flag(f.has_pclmulqdq(), "pclmulqdq");
        flag(f.has_ssse3(), "ssse3");
        flag(f.has_fma(), "fma");
        flag(f.has_cmpxchg16b(), "cx16");
        flag(f.has_pcid(), "pcid");
        flag(f.has_sse41(), "sse4_1");
        flag(f.has_sse42(), "sse4_2");
        flag(f.has_x2apic(), "x2apic");
        flag(f.has_movbe(), "movbe");
        flag(f.has_popcnt(), "popcnt");
        flag(f.has_aesni(), "aes");
        flag(f.has_xsave(), "xsave");
        flag(f.has_avx(), "avx");
        flag(f.has_f16c(), "f16c");
        flag(f.has_rdrand(), "rdrand");
        flag(f.has_hypervisor(), "hypervisor");
    }
    if let Some(f) = id.get_extended_processor_and_feature_identifiers() {
        flag(f.has_syscall_sysret(), "syscall");
        flag(f.has_execute_disable(), "nx");
        flag(f.has_1gib_pages(), "pdpe1gb");
        flag(f.has_rdtscp(), "rdtscp");
        flag(f.has_64bit_mode(), "lm");
        flag(f.has_lzcnt(), "abm");
    }
    if let Some(f) = id.get_extended_feature_info() {
        flag(f.has_fsgsbase(), "fsgsbase");
        flag(f.has_bmi1(), "bmi1");
        flag(f.has_avx2(), "avx2");
        flag(f.has_smep(), "smep");
        flag(f.has_bmi2(), "bmi2");
        flag(f.has_rep_movsb_stosb(), "erms");
        flag(f.has_invpcid(), "invpcid");
        flag(f.has_rdseed(), "rdseed");
        flag(f.has_adx(), "adx");
        flag(f.has_smap(), "smap");
        flag(f.has_clflushopt(), "clflushopt");
        flag(f.has_sha(), "sha_ni");
    }
    out
}

fn filesystems() -> Result<String> {
    let mut out = String::new();
    for name in registry::names() {
        put!(out, "nodev\t{name}\n");
    }
    Ok(out)
}

fn vmstat() -> Result<String> {
    let s = memory::stats();
    let pages = |bytes: u64| bytes / memory::PAGE_SIZE as u64;
    let mut out = String::new();
    let mut row = |name: &str, value: u64| put!(out, "{name} {value}\n");
    row("nr_free_pages", pages(s.free));
    row("nr_anon_pages", pages(s.anon));
    row("nr_file_pages", pages(s.file));
    row("nr_shmem", pages(s.file));
    row("nr_page_table_pages", pages(s.page_tables));
    row("nr_kernel_stack", s.kernel_stacks >> 10);
    row("nr_slab_unreclaimable", pages(s.heap));
    row("nr_dirty", 0);
    row("nr_writeback", 0);
    let (minor, major) = process::all_faults();
    row("pgfault", minor + major);
    row("pgmajfault", major);
    row("pswpin", 0);
    row("pswpout", 0);
    Ok(out)
}

fn devices() -> Result<String> {
    Ok("Character devices:\n  1 mem\n  4 ttyS\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n 10 misc\n136 pts\n\n\
        Block devices:\n"
        .into())
}
