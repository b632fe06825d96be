//! Run queues, one for each CPU, and the choice of a CPU for a thread.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, UnsafeRef, intrusive_adapter};

use super::beacon::{Beacon, IDLE_RANK};
use super::entity::{Entity, Key, Parameters};
use super::policy::{NICE_0_WEIGHT, Policy};
use super::sleep_state::{Sleep, Woken};
use crate::arch::cpu::{self, AtomicCpuSet, CpuId, CpuSet, MAX_CPUS};
use crate::arch::percpu::PerCpu;
use crate::arch::{interrupts, ipi};
use crate::process::{self, Thread};
use crate::sync::IrqLock;

intrusive_adapter!(pub(super) RunAdapter = UnsafeRef<Thread>: Thread { sched.link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for RunAdapter {
    type Key = Key;

    fn get_key(&self, thread: &'a Thread) -> Key {
        // SAFETY: the key of a queued thread is used under its queue's lock, and the tree is inside that lock.
        unsafe { *thread.sched.key.get() }
    }
}

struct Tree {
    threads: RBTree<RunAdapter>,
    sequence: u64,
}

impl Tree {
    /// The most virtual run time of a queued thread of the fair classes. What a real-time thread has run is none.
    fn last_fair(&self) -> Option<u64> {
        // SAFETY: the key of a queued thread, under the queue's lock, which the tree is inside of.
        let key = unsafe { *self.threads.back().get()?.sched.key.get() };
        (key.class == 1).then_some(key.value)
    }
}

/// The runnable threads of a CPU, but the one that runs.
pub(super) struct RunQueue {
    tree: IrqLock<Tree>,
    /// The least virtual run time of the running thread and the queued ones; it never goes back. Threads that come here begin
    /// relative to it, so it must follow a thread that runs alone. Changed under the tree's lock.
    floor: AtomicU64,
    beacon: Beacon,
    /// The CPU runs a thread that is not its idle thread.
    busy: AtomicBool,
    /// Virtual run time of the running thread when it was put on the CPU: for the decision to preempt it.
    running_vruntime: AtomicU64,
    ticks: AtomicU32,
}

impl RunQueue {
    const fn new() -> Self {
        Self {
            tree: IrqLock::new(Tree { threads: RBTree::new(RunAdapter::NEW), sequence: 0 }),
            floor: AtomicU64::new(0),
            beacon: Beacon::new(),
            busy: AtomicBool::new(false),
            running_vruntime: AtomicU64::new(0),
            ticks: AtomicU32::new(0),
        }
    }
}

/// The running class of a CPU that runs a thread of the fair classes with the ordinary policy.
const FAIR: u32 = 1 << 8 | 99;

impl RunQueue {
    /// Moves the floor up to the least virtual run time here, and returns it.
    fn advance_floor(&self, tree: &Tree) -> u64 {
        // SAFETY: under the queue's lock.
        let first = tree.threads.front().get().map(|thread| unsafe { *thread.sched.key.get() });
        let first = first.filter(|key| key.class == 1).map(|key| key.value);
        let running = (self.beacon.running() == FAIR).then(|| self.running_vruntime.load(Ordering::SeqCst));
        let least = match (first, running) {
            (Some(first), Some(running)) => first.min(running),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 0,
        };
        self.floor.fetch_max(least, Ordering::SeqCst).max(least)
    }
}

static QUEUES: PerCpu<RunQueue> = PerCpu::new([const { RunQueue::new() }; MAX_CPUS]);
/// CPUs that run their idle thread and that nobody has sent a thread to since.
static IDLE: AtomicCpuSet = AtomicCpuSet::new();

/// Virtual run time that a thread which slept is put ahead at most: it runs soon, but cannot save up.
const SLEEPER_BONUS: u64 = 6_000_000;
/// How far ahead a thread that wakes must be to preempt the running one.
const WAKEUP_GRANULARITY: u64 = 1_000_000;
/// How many threads a CPU that looks for work tries for their affinity in another's queue.
const STEAL_DEPTH: usize = 32;
/// Ticks between two looks at the balance of the queues.
const BALANCE_TICKS: u32 = 8;

pub(super) fn this() -> &'static RunQueue {
    QUEUES.of(cpu::id())
}

/// Whether this CPU should switch at the next chance.
#[inline]
pub(super) fn resched_wanted() -> bool {
    this().beacon.is_requested()
}

pub(super) fn clear_resched() {
    this().beacon.clear_request();
}

/// Runnable threads on all CPUs, those that run included.
pub fn runnable() -> usize {
    cpu::online()
        .iter()
        .map(|cpu| {
            let queue = QUEUES.of(cpu);
            queue.beacon.length() + usize::from(queue.busy.load(Ordering::SeqCst))
        })
        .sum()
}

/// Run-queue length of one CPU, the running thread included.
pub fn load(cpu: CpuId) -> usize {
    let queue = QUEUES.of(cpu);
    queue.beacon.length() + usize::from(queue.busy.load(Ordering::SeqCst))
}

/// Notes what this CPU runs now, for those who decide whether to preempt it.
pub(super) fn note_running(thread: &Thread, idle: bool) {
    let queue = this();
    queue.busy.store(!idle, Ordering::SeqCst);
    let class = if idle { IDLE_RANK } else { rank_of(thread) };
    // In this order: another CPU must not take the old thread's run time for the new one's, if that is behind.
    queue.running_vruntime.store(thread.sched.vruntime.load(Ordering::SeqCst), Ordering::SeqCst);
    queue.beacon.note_running(class);
    if idle {
        IDLE.insert(cpu::id());
    } else {
        IDLE.remove(cpu::id());
    }
}

/// The order of classes and real-time priorities of a thread that runs.
fn rank_of(thread: &Thread) -> u32 {
    u32::from(thread.sched.class()) << 8 | (99 - thread.sched.priority().min(99))
}

/// The thread that runs here may stay: its policy may be another one than when it was put here. Before the look at the queue, so that
/// whoever queues a thread behind that look sees it.
pub(super) fn note_rank(thread: &Thread) {
    let queue = this();
    let rank = rank_of(thread);
    if queue.beacon.running() != rank {
        // In this order, as in `note_running`.
        queue.running_vruntime.store(thread.sched.vruntime.load(Ordering::SeqCst), Ordering::SeqCst);
        queue.beacon.note_running(rank);
    }
}

/// This CPU's idle thread says that it looks for work: whoever wakes a thread may send it here.
pub(super) fn note_idle() {
    IDLE.insert(cpu::id());
}

/// Whether this CPU's idle thread, which runs with interrupts off, may halt.
pub(super) fn may_halt() -> bool {
    this().beacon.may_halt()
}

/// Makes a sleeping thread runnable if `admits` says so of its way of sleeping.
pub(super) fn wake_if(thread: &Arc<Thread>, admits: impl Fn(Sleep) -> bool) -> bool {
    match thread.sched.sleep.wake_if(admits) {
        Woken::No => false,
        Woken::Awake => true,
        Woken::Queue => {
            enqueue(thread, select_cpu(thread), Placement::Woken);
            true
        }
    }
}

/// Queues a thread that has never run.
pub(super) fn enqueue_new(thread: &Arc<Thread>) {
    let allowed = allowed_cpus(thread);
    let here = cpu::id();
    let cpu = allowed
        .iter()
        .min_by_key(|&cpu| (load(cpu), cpu != here))
        .expect("a thread may run on at least one CPU");
    IDLE.remove(cpu);
    enqueue(thread, cpu, Placement::New);
}

/// Queues a thread that was switched away from but is runnable; the caller is its CPU, in `finish`.
pub(super) fn requeue(thread: &Thread, yielded: bool) {
    let allowed = allowed_cpus(thread);
    let here = cpu::id();
    let cpu = if allowed.contains(here) { here } else { least_loaded(&allowed) };
    enqueue(thread, cpu, if yielded { Placement::Yielded } else { Placement::Preempted });
}

fn allowed_cpus(thread: &Thread) -> CpuSet {
    let online = cpu::online();
    let allowed = thread.sched.affinity().intersection(&online);
    if allowed.is_empty() { online } else { allowed }
}

fn least_loaded(allowed: &CpuSet) -> CpuId {
    allowed.iter().min_by_key(|&cpu| load(cpu)).unwrap_or_else(cpu::id)
}

/// The CPU for a thread that wakes: its last one if idle, another idle one, else its last one.
fn select_cpu(thread: &Thread) -> CpuId {
    let allowed = allowed_cpus(thread);
    let last = thread.sched.cpu();
    let idle = IDLE.load().intersection(&allowed);
    if idle.contains(last) {
        return last;
    }
    if let Some(cpu) = idle.iter().next() {
        return cpu;
    }
    if allowed.contains(last) { last } else { least_loaded(&allowed) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Placement {
    New,
    Woken,
    Preempted,
    Yielded,
    Moved,
}

/// Puts a thread on the queue of `cpu`, and makes that CPU look if it should run it at once.
fn enqueue(thread: &Thread, cpu: CpuId, placement: Placement) {
    let queue = QUEUES.of(cpu);
    let entity = &thread.sched;
    let key = {
        let mut tree = queue.tree.lock();
        tree.sequence += 1;
        let sequence = tree.sequence;
        let last_cpu = entity.cpu();
        // Before the look at its class: see `set_parameters`.
        entity.set_cpu(cpu);
        let class = entity.class();
        let key = if class == Policy::Fifo.class() {
            // A thread that was preempted stays ahead of its equals, one that yields or wakes goes behind them.
            // SAFETY: the thread is on no queue, so this is the only user of its key.
            let last = unsafe { (*entity.key.get()).sequence };
            let keep = placement == Placement::Preempted && entity.parameters_are_fifo() && last_cpu == cpu;
            Key {
                class,
                value: u64::from(99 - entity.priority().min(99)),
                sequence: if keep { last } else { sequence },
            }
        } else {
            let floor = queue.advance_floor(&tree);
            let mut own = entity.vruntime.load(Ordering::SeqCst);
            if last_cpu != cpu {
                // Each CPU counts from another floor: what it is ahead or behind goes with it.
                let old_floor = QUEUES.of(last_cpu).floor.load(Ordering::SeqCst);
                own = (floor + own).saturating_sub(old_floor);
            }
            let vruntime = match placement {
                // A new thread waits for about one slice, so that forking is no way to more CPU time.
                Placement::New => floor + slice_of(entity),
                Placement::Woken if entity.is_idle_policy() => own.clamp(floor, floor + 100 * SLEEPER_BONUS),
                Placement::Woken => {
                    own.clamp(floor.saturating_sub(SLEEPER_BONUS), floor + 100 * SLEEPER_BONUS)
                }
                Placement::Preempted | Placement::Moved => own.max(floor.saturating_sub(SLEEPER_BONUS)),
                // Behind its equals, which are within a slice of the floor; not behind one of low weight, which a tick puts seconds ahead.
                Placement::Yielded => {
                    own.max(tree.last_fair().map_or(floor, |last| last.min(floor + slice_of(entity))))
                }
            };
            entity.vruntime.store(vruntime, Ordering::SeqCst);
            Key { class, value: vruntime, sequence }
        };
        // SAFETY: as above, and from the insertion on the queue's lock guards it.
        unsafe { *entity.key.get() = key };
        // SAFETY: the scheduler holds a reference from `start` to the thread's end, and a queued thread has not ended.
        tree.threads.insert(unsafe { UnsafeRef::from_raw(thread) });
        queue.beacon.count_in();
        key
    };
    if preempts(queue, entity, &key, placement) {
        queue.beacon.request();
        if cpu != cpu::id() {
            IDLE.remove(cpu);
            ipi::reschedule(cpu);
        }
    }
}

/// The order of classes and real-time priorities, without virtual run time.
fn rank(key: &Key) -> u32 {
    u32::from(key.class) << 8 | if key.class == 0 { key.value as u32 } else { 99 }
}

fn preempts(queue: &RunQueue, entity: &Entity, key: &Key, placement: Placement) -> bool {
    let running = queue.beacon.rank_of_running();
    match rank(key).cmp(&running) {
        core::cmp::Ordering::Less => true,
        core::cmp::Ordering::Greater => false,
        core::cmp::Ordering::Equal => {
            key.class == 1
                && placement == Placement::Woken
                && !entity.is_idle_policy()
                && key.value + WAKEUP_GRANULARITY < queue.running_vruntime.load(Ordering::SeqCst)
        }
    }
}

/// Virtual run time that a thread may use before others of its weight come.
fn slice_of(entity: &Entity) -> u64 {
    super::switch::TICK * u64::from(NICE_0_WEIGHT) / u64::from(entity.weight().max(1))
}

/// Takes the best thread of this CPU's queue, if it should run rather than `running`.
pub(super) fn take_best(running: Option<&Thread>, yielded: bool) -> Option<*const Thread> {
    let queue = this();
    let mut tree = queue.tree.lock();
    if let Some(running) = running {
        queue.running_vruntime.store(running.sched.vruntime.load(Ordering::SeqCst), Ordering::SeqCst);
    }
    queue.advance_floor(&tree);
    let key = {
        let thread = tree.threads.front().get()?;
        // SAFETY: under the queue's lock.
        unsafe { *thread.sched.key.get() }
    };
    if let Some(running) = running {
        let entity = &running.sched;
        let class = entity.class();
        let stays = if class != key.class {
            class < key.class
        } else if class == 0 {
            let own = u64::from(99 - entity.priority().min(99));
            own < key.value || (own == key.value && !yielded && !entity.slice_is_over())
        } else {
            !yielded && entity.vruntime.load(Ordering::SeqCst) <= key.value
        };
        if stays {
            return None;
        }
    }
    Some(remove(queue, &mut tree, key))
}

/// Takes the thread with this key out.
fn remove(queue: &RunQueue, tree: &mut Tree, key: Key) -> *const Thread {
    let thread = tree.threads.find_mut(&key).remove().expect("found under the same lock");
    queue.beacon.count_out();
    UnsafeRef::into_raw(thread)
}

/// Takes a thread from the longest other queue that has more than `margin`, for this CPU to run.
pub(super) fn steal(margin: usize) -> Option<*const Thread> {
    let here = cpu::id();
    let mut tried = CpuSet::single(here);
    loop {
        let victim = cpu::online()
            .iter()
            .filter(|cpu| !tried.contains(*cpu))
            .map(|cpu| (QUEUES.of(cpu).beacon.length(), cpu))
            .filter(|(length, _)| *length > margin)
            .max_by_key(|(length, _)| *length)?
            .1;
        tried.insert(victim);
        let queue = QUEUES.of(victim);
        let thread = {
            let mut tree = queue.tree.lock();
            let mut found = None;
            let mut cursor = tree.threads.lower_bound(Bound::Unbounded);
            for _ in 0..STEAL_DEPTH {
                let Some(thread) = cursor.get() else { break };
                if allowed_cpus(thread).contains(here) {
                    // SAFETY: under the queue's lock.
                    found = Some(unsafe { *thread.sched.key.get() });
                    break;
                }
                cursor.move_next();
            }
            let Some(key) = found else { continue };
            remove(queue, &mut tree, key)
        };
        // SAFETY: taken from a queue, so alive and nobody else's.
        let entity = unsafe { &(*thread).sched };
        let (own, floor) = (entity.vruntime.load(Ordering::SeqCst), queue.floor.load(Ordering::SeqCst));
        let new_floor = this().floor.load(Ordering::SeqCst);
        entity.vruntime.store((new_floor + own).saturating_sub(floor), Ordering::SeqCst);
        entity.set_cpu(here);
        return Some(thread);
    }
}

/// Every [`super::switch::TICK`] on a CPU that is not idle, in the timer interrupt; `user`: it interrupted user mode.
pub fn tick(user: bool) {
    let Some(thread) = process::try_current() else { return };
    let queue = this();
    if !queue.busy.load(Ordering::SeqCst) {
        return;
    }
    // Relaxed: this CPU's own counters.
    let counter = if user { &thread.sched.user_ticks } else { &thread.sched.system_ticks };
    counter.fetch_add(1, Ordering::Relaxed);
    super::switch::account(&thread);
    queue.running_vruntime.store(thread.sched.vruntime.load(Ordering::SeqCst), Ordering::SeqCst);
    thread.sched.use_slice();
    if queue.beacon.length() > 0 {
        queue.beacon.request();
    }
    if queue.ticks.fetch_add(1, Ordering::Relaxed).is_multiple_of(BALANCE_TICKS)
        && let Some(thread) = steal(queue.beacon.length() + 1)
    {
        // SAFETY: taken from a queue, so alive and nobody else's.
        enqueue(unsafe { &*thread }, cpu::id(), Placement::Moved);
    }
}

/// Changes where a thread may run, and moves it if it is somewhere else.
pub fn set_affinity(thread: &Arc<Thread>, set: CpuSet) {
    thread.sched.store_affinity(set);
    interrupts::without(|| {
        let cpu = thread.sched.cpu();
        if allowed_cpus(thread).contains(cpu) {
            return;
        }
        let queue = QUEUES.of(cpu);
        let moved = {
            let mut tree = queue.tree.lock();
            // It may have left the queue or moved to another while this CPU waited for the lock; then whoever moved it
            // has looked at the new affinity, or does so at its next switch.
            let queued = thread.sched.link.is_linked() && thread.sched.cpu() == cpu;
            queued.then(|| {
                // SAFETY: it is on this queue, whose lock is held.
                let key = unsafe { *thread.sched.key.get() };
                remove(queue, &mut tree, key)
            })
        };
        match moved {
            // SAFETY: taken from a queue, so alive and nobody else's.
            Some(moved) => enqueue(unsafe { &*moved }, least_loaded(&allowed_cpus(thread)), Placement::Moved),
            None if thread.sched.is_on_cpu() => {
                queue.beacon.request();
                if cpu != cpu::id() {
                    ipi::reschedule(cpu);
                }
            }
            None => {}
        }
    });
}

/// Changes how a thread is scheduled. One that waits in a queue is at its new place there at once, and the CPU that runs it looks for a
/// better one.
///
/// A thread that changes queues or CPUs at the same time is not missed: who queues or runs it writes where it is and then looks at its
/// class, and this writes the class and then looks where it is.
pub fn set_parameters(thread: &Arc<Thread>, parameters: Parameters) {
    let entity = &thread.sched;
    loop {
        let cpu = entity.cpu();
        let queue = QUEUES.of(cpu);
        interrupts::without(|| {
            let moved = {
                let mut tree = queue.tree.lock();
                let was_realtime = entity.class() == Policy::Fifo.class();
                // SAFETY: if it is on this queue its lock is held, and else nobody looks at the key.
                let key =
                    (entity.link.is_linked() && entity.cpu() == cpu).then(|| unsafe { *entity.key.get() });
                entity.store_parameters(parameters);
                if was_realtime && !parameters.policy.is_realtime() {
                    // What it ran in real time is not held against it: the floor did not follow.
                    entity.vruntime.store(queue.floor.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                let is_better_or_worse = |key: &Key| {
                    key.class != entity.class()
                        || key.class == 0 && key.value != u64::from(99 - entity.priority().min(99))
                };
                key.filter(is_better_or_worse).map(|key| remove(queue, &mut tree, key))
            };
            match moved {
                // SAFETY: taken from a queue, so alive and nobody else's.
                Some(moved) => enqueue(unsafe { &*moved }, cpu, Placement::Moved),
                // In this order: who runs it says so before where.
                None if entity.cpu() == cpu && entity.is_on_cpu() => {
                    queue.beacon.request();
                    if cpu != cpu::id() {
                        ipi::reschedule(cpu);
                    }
                }
                None => {}
            }
        });
        if entity.cpu() == cpu {
            return;
        }
    }
}

impl Entity {
    pub(super) fn parameters_are_fifo(&self) -> bool {
        self.parameters().policy == Policy::Fifo
    }

    /// Ticks that a round-robin thread has left; other policies are bounded by their run time.
    pub(super) fn use_slice(&self) {
        // Relaxed: the thread's own CPU changes it.
        let left = self.slice_left.load(Ordering::Relaxed);
        self.slice_left.store(left.saturating_sub(1), Ordering::Relaxed);
    }

    pub(super) fn slice_is_over(&self) -> bool {
        // Relaxed: as in `use_slice`.
        self.parameters().policy == Policy::RoundRobin && self.slice_left.load(Ordering::Relaxed) == 0
    }

    /// Gives the thread a new slice: 100 ms for round robin, which is what sched_rr_get_interval(2) says.
    pub(super) fn new_slice(&self) {
        // Relaxed: as in `use_slice`.
        self.slice_left.store((super::RR_INTERVAL / super::switch::TICK) as u32, Ordering::Relaxed);
    }

    pub(super) fn is_allowed_on(&self, cpu: CpuId) -> bool {
        let online = cpu::online();
        let allowed = self.affinity().intersection(&online);
        allowed.is_empty() || allowed.contains(cpu)
    }
}
