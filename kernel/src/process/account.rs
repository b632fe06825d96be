//! CPU time and resource usage.

use core::sync::atomic::{AtomicU64, Ordering};

use super::Process;
use super::user::Due;
use crate::arch::cpu::{CpuId, MAX_CPUS};
use crate::arch::percpu::PerCpu;
use crate::sched::TICK;

/// Every [`TICK`] on a CPU that runs a thread, in the timer interrupt: the clocks of setitimer(2) and RLIMIT_CPU.
pub fn tick(user: bool) {
    update_loads();
    // Relaxed: statistics.
    let ticks = if user { &STATISTICS.user_ticks } else { &STATISTICS.system_ticks };
    ticks.fetch_add(1, Ordering::Relaxed);
    let Some(thread) = super::try_current() else { return };
    if thread.is_kernel() {
        return;
    }
    let of_process = thread.process.timers.tick(user, TICK);
    if of_process || thread.cpu_timers.is_due(thread.sched.runtime()) {
        thread.due.set(Due::TIMERS);
    }
}

/// What each CPU counts, for `/proc/stat` and `/proc/vmstat`.
struct Statistics {
    user_ticks: AtomicU64,
    system_ticks: AtomicU64,
    switches: AtomicU64,
    minor_faults: AtomicU64,
    major_faults: AtomicU64,
}

static STATISTICS: PerCpu<Statistics> = PerCpu::new(
    [const {
        Statistics {
            user_ticks: AtomicU64::new(0),
            system_ticks: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            minor_faults: AtomicU64::new(0),
            major_faults: AtomicU64::new(0),
        }
    }; MAX_CPUS],
);

fn sum(counter: impl Fn(&Statistics) -> &AtomicU64) -> u64 {
    // Relaxed: statistics.
    (0..crate::arch::cpu::count()).map(|cpu| counter(STATISTICS.of(cpu)).load(Ordering::Relaxed)).sum()
}

/// This CPU switches to another thread.
pub fn note_switch() {
    // Relaxed: a statistic.
    STATISTICS.switches.fetch_add(1, Ordering::Relaxed);
}

/// A page fault was resolved on this CPU.
pub(super) fn note_fault(major: bool) {
    let counter = if major { &STATISTICS.major_faults } else { &STATISTICS.minor_faults };
    // Relaxed: a statistic.
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Switches of all CPUs since boot.
pub fn context_switches() -> u64 {
    sum(|s| &s.switches)
}

/// Minor and major faults of all CPUs since boot.
pub fn all_faults() -> (u64, u64) {
    (sum(|s| &s.minor_faults), sum(|s| &s.major_faults))
}

/// What a CPU has done since boot, in nanoseconds: user mode, the kernel, idle. Ticks tell the first two, and an idle CPU has none.
pub fn cpu_usage(cpu: CpuId) -> (u64, u64, u64) {
    let statistics = STATISTICS.of(cpu);
    // Relaxed: statistics.
    let user = statistics.user_ticks.load(Ordering::Relaxed) * TICK;
    let system = statistics.system_ticks.load(Ordering::Relaxed) * TICK;
    (user, system, crate::time::now().saturating_sub(user + system))
}

/// Averages of the number of runnable threads over 1, 5 and 15 minutes, with 11 bits after the point.
static LOADS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// When they are due next, in monotonic nanoseconds.
static LOADS_AT: AtomicU64 = AtomicU64::new(0);
/// How often they are updated.
const LOAD_PERIOD: u64 = 5 * crate::time::SECOND;

/// Updates the averages if it is time; each CPU's tick asks.
fn update_loads() {
    let due = LOADS_AT.load(Ordering::SeqCst);
    let now = crate::time::now();
    let next = now + LOAD_PERIOD;
    if now < due || LOADS_AT.compare_exchange(due, next, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return;
    }
    // An idle system has no ticks: the periods that were missed count as idle.
    let missed = if due == 0 { 0 } else { (now - due) / LOAD_PERIOD };
    let active = (crate::sched::runnable() as u64) << 11;
    // 2048 / e^(5 s / 1, 5, 15 min), as every Unix has it.
    for (load, decay) in LOADS.iter().zip([1884, 2014, 2037]) {
        // Relaxed: statistics; one CPU is here at a time.
        let mut value = load.load(Ordering::Relaxed);
        for _ in 0..missed.min(1000) {
            value = (value * decay) >> 11;
        }
        load.store((value * decay + active * (2048 - decay)) >> 11, Ordering::Relaxed);
    }
}

/// Averages of the number of runnable threads over 1, 5 and 15 minutes, with 11 bits after the point.
pub fn load_averages() -> [u64; 3] {
    update_loads();
    // Relaxed: statistics.
    [0, 1, 2].map(|index: usize| LOADS[index].load(Ordering::Relaxed))
}

/// What getrusage(2) and wait4(2) say; times in nanoseconds, memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub user: u64,
    pub system: u64,
    pub max_rss: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    pub voluntary: u64,
    pub involuntary: u64,
}

impl Usage {
    /// Of all threads of a process, those that have ended included.
    pub fn of_process(process: &Process) -> Self {
        let (user, system) = process.cpu_times();
        let (minor_faults, major_faults) = process.faults();
        let (voluntary, involuntary) = process.switches();
        let peak = process.mm().map_or(0, |mm| mm.peak_resident() * 4);
        // Relaxed: statistics.
        let max_rss = process.totals.max_rss.load(Ordering::Relaxed).max(peak);
        Self { user, system, max_rss, minor_faults, major_faults, voluntary, involuntary }
    }

    /// Of the children that a process has waited for.
    pub fn of_children(process: &Process) -> Self {
        let totals = &process.totals;
        // Relaxed: statistics.
        Self {
            user: totals.children_user.load(Ordering::Relaxed),
            system: totals.children_system.load(Ordering::Relaxed),
            max_rss: totals.children_max_rss.load(Ordering::Relaxed),
            minor_faults: totals.children_minor_faults.load(Ordering::Relaxed),
            major_faults: totals.children_major_faults.load(Ordering::Relaxed),
            voluntary: totals.children_voluntary.load(Ordering::Relaxed),
            involuntary: totals.children_involuntary.load(Ordering::Relaxed),
        }
    }

    /// Of one thread.
    pub fn of_thread(thread: &super::Thread) -> Self {
        let (user, system) = thread.sched.times();
        let (voluntary, involuntary) = thread.sched.switches();
        Self {
            user,
            system,
            // Relaxed: statistics.
            minor_faults: thread.minor_faults.load(Ordering::Relaxed),
            major_faults: thread.major_faults.load(Ordering::Relaxed),
            voluntary,
            involuntary,
            ..Self::of_process_memory(&thread.process)
        }
    }

    fn of_process_memory(process: &Process) -> Self {
        let peak = process.mm().map_or(0, |mm| mm.peak_resident() * 4);
        // Relaxed: a statistic.
        Self { max_rss: process.totals.max_rss.load(Ordering::Relaxed).max(peak), ..Self::default() }
    }

    /// Plus what the process's own children used.
    pub fn with_children(self, process: &Process) -> Self {
        let children = Self::of_children(process);
        Self {
            user: self.user + children.user,
            system: self.system + children.system,
            max_rss: self.max_rss.max(children.max_rss),
            minor_faults: self.minor_faults + children.minor_faults,
            major_faults: self.major_faults + children.major_faults,
            voluntary: self.voluntary + children.voluntary,
            involuntary: self.involuntary + children.involuntary,
        }
    }

    /// The process has waited for a child that used this.
    pub(super) fn add_to_children_of(&self, process: &Process) {
        let totals = &process.totals;
        // Relaxed: statistics.
        totals.children_user.fetch_add(self.user, Ordering::Relaxed);
        totals.children_system.fetch_add(self.system, Ordering::Relaxed);
        totals.children_max_rss.fetch_max(self.max_rss, Ordering::Relaxed);
        totals.children_minor_faults.fetch_add(self.minor_faults, Ordering::Relaxed);
        totals.children_major_faults.fetch_add(self.major_faults, Ordering::Relaxed);
        totals.children_voluntary.fetch_add(self.voluntary, Ordering::Relaxed);
        totals.children_involuntary.fetch_add(self.involuntary, Ordering::Relaxed);
    }
}
