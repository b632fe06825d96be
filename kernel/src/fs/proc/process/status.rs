//! The files that say what a process does and who it is.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::super::bytes;
use super::super::system::{BOOTTIME, CLOCK_TICK, put};
use super::{Target, may_look_into};
use crate::arch::cpu;
use crate::errno::Result;
use crate::fs::sys;
use crate::memory::fallible::Text;
use crate::memory::node;
use crate::namespaces::{self, Numbers, View};
use crate::process::accounts::{self, Counted};
use crate::process::{self, Process, Thread, Usage, WaitStatus, ptrace};
use crate::sched::Policy;
use crate::signal::{SIG_DFL, SIG_IGN, SIGNAL_MAX};
use crate::tty;

/// The letter of a thread's or process's state.
fn state_of(target: &Target, process: &Process, thread: &Thread) -> char {
    if target.is_task() { thread.state() } else { process.state() }
}

fn state_name(letter: char) -> &'static str {
    match letter {
        'R' => "running",
        'S' => "sleeping",
        'D' => "disk sleep",
        'T' => "stopped",
        't' => "tracing stop",
        'Z' => "zombie",
        _ => "dead",
    }
}

/// The sets of ignored and of caught signals.
fn dispositions(process: &Process) -> (u64, u64) {
    let actions = process.actions.lock().clone();
    let (mut ignored, mut caught) = (0, 0);
    for signal in 1..=SIGNAL_MAX {
        match actions.get(signal).handler {
            SIG_IGN => ignored |= 1 << (signal - 1),
            SIG_DFL => {}
            _ => caught |= 1 << (signal - 1),
        }
    }
    (ignored, caught)
}

/// A priority as `/proc` has it: 20 plus the nice value, or below 0 for real-time threads.
fn priority(thread: &Thread) -> (i64, i64, u32, u32) {
    let parameters = thread.sched.parameters();
    let nice = i64::from(parameters.nice);
    let policy = parameters.policy as u32;
    let shown = if parameters.priority > 0 { -1 - i64::from(parameters.priority) } else { 20 + nice };
    (shown, nice, parameters.priority, policy)
}

pub fn stat(target: &Target) -> Result<Vec<u8>> {
    let process = target.process()?;
    let thread = target.thread()?;
    let usage = if target.is_task() { Usage::of_thread(&thread) } else { Usage::of_process(&process) };
    let children = Usage::of_children(&process);
    let ticks = |ns: u64| ns / CLOCK_TICK;
    let session = process.session();
    let terminal = session.as_ref().and_then(|s| tty::job::terminal_of(s));
    let (tty_number, foreground) = match &terminal {
        Some(tty) => (tty.device.encode() as i64, i64::from(target.view.number(tty.foreground()))),
        None => (0, -1),
    };
    let (shown_priority, nice, rt_priority, policy) = priority(&thread);
    let mm = process.mm();
    let size = mm.as_ref().map_or(0, |mm| mm.size());
    let rss = mm.as_ref().map_or(0, |mm| mm.resident().total());
    let permitted = target.check_access().is_ok();
    let layout = mm.filter(|_| permitted).map(|mm| mm.layout()).unwrap_or_default();
    let code = if permitted { (layout.code.start, layout.code.end) } else { (1, 1) };
    let (ignored, caught) = dispositions(&process);
    let pending = thread.own_pending().0;
    let blocked = thread.signals.mask().0;
    let waits = u32::from(thread.sched.wait_place().is_some());
    let exit_code = if permitted { process.wait_status().map_or(0, WaitStatus::to_bits) } else { 0 };
    let mut out = Text::new();
    let view = &target.view;
    put!(out, "{} ({}) {} ", view.thread(&thread), thread.name(), state_of(target, &process, &thread));
    put!(out, "{} {} {} ", view.parent(&process), view.number(process.pgid()), view.number(process.sid()));
    // PF_FORKNOEXEC and the like are the kernel's own; 0x400000 is what an ordinary process shows.
    put!(out, "{tty_number} {foreground} 4194304 ");
    put!(out, "{} {} ", usage.minor_faults, children.minor_faults);
    put!(out, "{} {} ", usage.major_faults, children.major_faults);
    put!(out, "{} {} ", ticks(usage.user), ticks(usage.system));
    put!(out, "{} {} ", ticks(children.user), ticks(children.system));
    put!(out, "{shown_priority} {nice} {} 0 ", process.thread_count());
    let started = if target.is_task() { thread.started_at } else { process.started_at };
    // By the reader's clock since boot, as /proc/uptime: their difference is how long it has run.
    let started = started.saturating_add_signed(namespaces::time::offset(BOOTTIME));
    put!(out, "{} {size} {rss} ", ticks(started));
    put!(out, "{} {} {} {} 0 0 ", process.limit(5), code.0, code.1, layout.stack_start);
    // The masks in these fields are of the first 31 signals only.
    let short = |set: u64| set & 0x7fff_ffff;
    put!(out, "{} {} {} {} ", short(pending), short(blocked), short(ignored), short(caught));
    put!(out, "{waits} 0 0 {} {} ", process.exit_signal(), thread.sched.cpu());
    put!(out, "{rt_priority} {policy} 0 0 0 ");
    put!(out, "{} {} {} ", layout.data.start, layout.data.end, layout.brk_start);
    put!(out, "{} {} ", layout.arguments.start, layout.arguments.end);
    put!(out, "{} {} {exit_code}\n", layout.environment.start, layout.environment.end);
    bytes(out)
}

pub fn status(target: &Target) -> Result<Vec<u8>> {
    let process = target.process()?;
    let thread = target.thread()?;
    let mut out = Text::new();
    put!(out, "Name:\t{}\n", escape(&thread.name()));
    if let Some(fs) = thread.try_fs() {
        put!(out, "Umask:\t{:04o}\n", fs.umask());
    }
    let state = state_of(target, &process, &thread);
    put!(out, "State:\t{state} ({})\n", state_name(state));
    let view = &target.view;
    put!(out, "Tgid:\t{}\nNgid:\t0\nPid:\t{}\n", view.process(&process), view.thread(&thread));
    put!(out, "PPid:\t{}\nTracerPid:\t{}\n", view.parent(&process), thread.tracer_pid());
    let c = thread.credentials();
    let reader = crate::process::current().credentials();
    let [uid, euid, suid, fsuid] = [c.uid, c.euid, c.suid, c.fsuid].map(|uid| reader.shown_uid(uid));
    put!(out, "Uid:\t{uid}\t{euid}\t{suid}\t{fsuid}\n");
    let [gid, egid, sgid, fsgid] = [c.gid, c.egid, c.sgid, c.fsgid].map(|gid| reader.shown_gid(gid));
    put!(out, "Gid:\t{gid}\t{egid}\t{sgid}\t{fsgid}\n");
    put!(out, "FDSize:\t{}\nGroups:\t", thread.try_files().map_or(0, |f| f.capacity()));
    for (number, group) in c.groups.iter().enumerate() {
        put!(out, "{} ", reader.shown_gid(*group));
        // There may be 65,536.
        if number % 64 == 63 {
            crate::sched::cond_resched();
        }
    }
    if c.groups.is_empty() {
        out.push(' ');
    }
    out.push('\n');
    let (group, session) = (process.group(), process.session());
    nested_numbers(&mut out, "NStgid", view, process.pid, process.numbers.as_ref());
    nested_numbers(&mut out, "NSpid", view, thread.tid(), thread.numbers());
    let numbers = group.as_ref().and_then(|group| group.numbers.as_deref());
    nested_numbers(&mut out, "NSpgid", view, process.pgid(), numbers);
    let numbers = session.as_ref().and_then(|session| session.numbers.as_deref());
    nested_numbers(&mut out, "NSsid", view, process.sid(), numbers);
    out.push_str("Kthread:\t0\n");
    if let Some(mm) = process.mm() {
        memory_lines(&mut out, &mm.summary(), mm.huge_bytes());
    }
    put!(out, "Threads:\t{}\n", process.thread_count());
    put!(
        out,
        "SigQ:\t{}/{}\n",
        accounts::count(process.uid_for_signals(), Counted::Signals),
        process.limit(11)
    );
    let (ignored, caught) = dispositions(&process);
    put!(out, "SigPnd:\t{:016x}\n", thread.own_pending().0);
    put!(out, "ShdPnd:\t{:016x}\n", process.signals.shared_pending().0);
    put!(out, "SigBlk:\t{:016x}\n", thread.signals.mask().0);
    put!(out, "SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n");
    put!(out, "CapInh:\t{:016x}\nCapPrm:\t{:016x}\n", c.inheritable, c.permitted);
    put!(out, "CapEff:\t{:016x}\nCapBnd:\t{:016x}\nCapAmb:\t{:016x}\n", c.effective, c.bounding, c.ambient);
    put!(out, "NoNewPrivs:\t{}\n", u32::from(thread.no_new_privileges.load(Ordering::SeqCst)));
    put!(out, "Seccomp:\t{}\nSeccomp_filters:\t{}\n", thread.seccomp.mode(), thread.seccomp.filters());
    put!(out, "Speculation_Store_Bypass:\tvulnerable\nSpeculationIndirectBranch:\talways enabled\n");
    let cpus = thread.sched.affinity().intersection(&cpu::online());
    put!(out, "Cpus_allowed:\t{}\n", cpu_mask(&cpus));
    put!(out, "Cpus_allowed_list:\t{}\n", cpu_list(&cpus));
    // All that have memory: nothing takes nodes from a process.
    let nodes = node::with_memory();
    put!(out, "Mems_allowed:\t{nodes:08x}\nMems_allowed_list:\t{}\n", sys::node::list(node::list(nodes)));
    let (voluntary, involuntary) = thread.sched.switches();
    put!(out, "voluntary_ctxt_switches:\t{voluntary}\nnonvoluntary_ctxt_switches:\t{involuntary}\n");
    bytes(out)
}

/// A line of the numbers that something has in each PID namespace from there down.
fn nested_numbers(out: &mut Text, name: &str, view: &View, global: u32, numbers: Option<&Arc<Numbers>>) {
    put!(out, "{name}:");
    if view.is_initial() {
        put!(out, "\t{global}");
    }
    for number in numbers.into_iter().flat_map(|numbers| numbers.seen_from(view)) {
        put!(out, "\t{number}");
    }
    out.push('\n');
}

fn memory_lines(out: &mut Text, sum: &crate::mm::view::Summary, huge: u64) {
    let mut row = |name: &str, bytes: u64| put!(out, "{name}:\t{:>8} kB\n", bytes >> 10);
    row("VmPeak", sum.peak);
    row("VmSize", sum.size);
    row("VmLck", sum.locked);
    row("VmPin", 0);
    row("VmHWM", sum.high_water);
    row("VmRSS", sum.resident.total() * 4096);
    row("RssAnon", sum.resident.anonymous * 4096);
    row("RssFile", sum.resident.file * 4096);
    row("RssShmem", sum.resident.shmem * 4096);
    row("VmData", sum.data);
    row("VmStk", sum.stack);
    row("VmExe", sum.code);
    row("VmLib", sum.libraries);
    row("VmPTE", sum.tables);
    row("VmSwap", 0);
    row("HugetlbPages", huge);
    put!(out, "CoreDumping:\t0\nTHP_enabled:\t0\nuntag_mask:\t0xffffffffffffffff\n");
}

/// A name without line ends and backslashes.
fn escape(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\n', "\\n")
}

/// CPUs as groups of 32 bits in hexadecimal, the highest first.
fn cpu_mask(cpus: &cpu::CpuSet) -> Text {
    let groups = cpu::count().div_ceil(32) as usize;
    let words = cpus.words();
    let mut out = Text::new();
    for group in (0..groups).rev() {
        let bits = words[group / 2] >> (group % 2 * 32) as u32 & 0xffff_ffff;
        if group + 1 == groups {
            put!(out, "{bits:x}");
        } else {
            put!(out, ",{bits:08x}");
        }
    }
    out
}

/// CPUs as ranges: `0-3,5`.
fn cpu_list(cpus: &cpu::CpuSet) -> Text {
    let mut out = Text::new();
    let mut all = cpus.iter().peekable();
    while let Some(first) = all.next() {
        let mut last = first;
        while let Some(next) = all.next_if(|c| *c == last + 1) {
            last = next;
        }
        let comma = if out.is_empty() { "" } else { "," };
        if first == last {
            put!(out, "{comma}{first}");
        } else {
            put!(out, "{comma}{first}-{last}");
        }
    }
    out
}

pub fn limits(target: &Target) -> Result<Vec<u8>> {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let limits = *target.process()?.limits.lock();
    let mut out = Text::new();
    put!(out, "{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    let shown = |value: u64| if value == u64::MAX { "unlimited".into() } else { format!("{value}") };
    for (resource, (name, unit)) in NAMES.iter().enumerate() {
        let limit = limits.get(resource)?;
        put!(out, "{name:<25} {:<20} {:<20} ", shown(limit.soft), shown(limit.hard));
        if unit.is_empty() {
            out.push('\n');
        } else {
            put!(out, "{unit:<10}\n");
        }
    }
    bytes(out)
}

pub fn personality(target: &Target) -> Result<Vec<u8>> {
    bytes(format!("{:08x}\n", target.process()?.personality.load(Ordering::SeqCst)))
}

/// The number of the system call that the thread is in; its arguments are not kept.
pub fn syscall(target: &Target) -> Result<Vec<u8>> {
    let thread = target.thread()?;
    match thread.syscall.load(Ordering::SeqCst) {
        // Of oneself the arguments are known, and where it was called.
        number if number != u32::MAX && core::ptr::eq(&*thread, &*process::current()) => {
            let f = ptrace::own_frame();
            let mut out = format!("{number}");
            for word in [f.rdi, f.rsi, f.rdx, f.r10, f.r8, f.r9, f.rsp, f.rip] {
                put!(out, " {word:#x}");
            }
            out.push('\n');
            bytes(out)
        }
        u32::MAX => bytes("running\n"),
        number => bytes(format!("{number}\n")),
    }
}

/// Where in the kernel the thread sleeps, as the name of the source file without its directories; `0` for a thread that does not.
pub fn wchan(target: &Target) -> Result<Vec<u8>> {
    let thread = target.thread()?;
    // As in Linux: strangers are told the same as of one that runs.
    if !may_look_into(&thread.process) {
        return bytes("0");
    }
    let Some((place, _)) = thread.sched.wait_place() else { return bytes("0") };
    let file = place.file().rsplit('/').next().unwrap_or_default();
    bytes(file.trim_end_matches(".rs").replace('-', "_"))
}

pub fn schedstat(target: &Target) -> Result<Vec<u8>> {
    let thread = target.thread()?;
    let (voluntary, involuntary) = thread.sched.switches();
    // Waiting in the run queue is not measured.
    bytes(format!("{} 0 {}\n", thread.sched.runtime(), voluntary + involuntary))
}

/// Input and output of the process. Nothing goes to a disk, so that the counts of blocks are 0.
pub fn io(target: &Target) -> Result<Vec<u8>> {
    let process = target.process()?;
    // Relaxed: statistics.
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let io = &process.io;
    let mut out = Text::new();
    put!(out, "rchar: {}\nwchar: {}\n", get(&io.read_bytes), get(&io.written_bytes));
    put!(out, "syscr: {}\nsyscw: {}\n", get(&io.reads), get(&io.writes));
    put!(out, "read_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n");
    bytes(out)
}

/// The scheduling policies have the numbers of sched_setscheduler(2).
const _: () = assert!(Policy::Other as u32 == 0);

/// The children that the thread has made. Those whose maker is gone are the first thread's.
pub fn children(target: &Target) -> Result<Vec<u8>> {
    let (process, thread) = (target.process()?, target.thread()?);
    let mut out = Text::new();
    for child in process::processes().filter(|child| child.is_child_of(&process)) {
        let number = target.view.process(&child);
        if number == 0 {
            continue;
        }
        // Relaxed: set before anybody knew it.
        let maker = child.made_by.load(Ordering::Relaxed);
        let is_own = maker == thread.tid()
            || thread.is_leader()
                && !process::find_thread_global(maker)
                    .is_some_and(|maker| Arc::ptr_eq(&maker.process, &process) && process.has_thread(&maker));
        if is_own {
            put!(out, "{number} ");
        }
    }
    bytes(out)
}
