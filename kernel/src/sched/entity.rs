//! What the scheduler keeps in each thread.

use core::cell::UnsafeCell;
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use alloc::sync::Arc;
use intrusive_collections::RBTreeAtomicLink;

use super::policy::Policy;
use super::sleep_state::{Sleep, SleepState};
use crate::arch::cpu::{CpuId, CpuSet};
use crate::process::Thread;
use crate::sync::IrqLock;

/// Order in a run queue: real-time threads first, by priority; then by virtual run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Key {
    pub class: u8,
    pub value: u64,
    /// Keeps keys distinct and equal ones in order of arrival.
    pub sequence: u64,
}

/// The scheduler's part of a thread.
pub struct Entity {
    pub(super) link: RBTreeAtomicLink,
    /// Used under the lock of the run queue that the thread is on.
    pub(super) key: UnsafeCell<Key>,
    pub(super) sleep: SleepState,
    cpu: AtomicU32,
    pub(super) dead_next: AtomicPtr<Thread>,
    /// Weighted run time, relative to the queue that the thread was on last.
    pub(super) vruntime: AtomicU64,
    /// When the thread was put on its CPU.
    pub(super) started_at: AtomicU64,
    /// Run time in nanoseconds.
    pub(super) runtime: AtomicU64,
    /// Timer ticks that found it in user mode and in the kernel: they divide the run time between the two.
    pub(super) user_ticks: AtomicU64,
    pub(super) system_ticks: AtomicU64,
    pub(super) slice_left: AtomicU32,
    pub(super) voluntary_switches: AtomicU64,
    pub(super) involuntary_switches: AtomicU64,
    weight: AtomicU32,
    idle: AtomicBool,
    class_and_priority: AtomicU32,
    parameters: IrqLock<Parameters>,
    affinity: IrqLock<CpuSet>,
    wait_place: AtomicPtr<Location<'static>>,
    asleep_since: AtomicU64,
}

/// What sched_setscheduler and setpriority set.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    pub policy: Policy,
    pub nice: i32,
    /// 1 to 99 for the real-time policies, else 0.
    pub priority: u32,
    pub reset_on_fork: bool,
}

// SAFETY: `key` is used under a run queue's lock, the rest is atomic or locked.
unsafe impl Sync for Entity {}
// SAFETY: it has no tie to a CPU but the numbers it keeps.
unsafe impl Send for Entity {}

impl Entity {
    /// The entity of a new thread, which is not yet on a queue.
    pub fn new(parameters: Parameters, affinity: CpuSet, cpu: CpuId) -> Self {
        let entity = Self {
            link: RBTreeAtomicLink::new(),
            key: UnsafeCell::new(Key::default()),
            sleep: SleepState::new(),
            cpu: AtomicU32::new(cpu),
            dead_next: AtomicPtr::new(ptr::null_mut()),
            vruntime: AtomicU64::new(0),
            started_at: AtomicU64::new(0),
            runtime: AtomicU64::new(0),
            user_ticks: AtomicU64::new(0),
            system_ticks: AtomicU64::new(0),
            slice_left: AtomicU32::new(0),
            voluntary_switches: AtomicU64::new(0),
            involuntary_switches: AtomicU64::new(0),
            weight: AtomicU32::new(0),
            idle: AtomicBool::new(false),
            class_and_priority: AtomicU32::new(0),
            parameters: IrqLock::new(parameters),
            affinity: IrqLock::new(affinity),
            wait_place: AtomicPtr::new(ptr::null_mut()),
            asleep_since: AtomicU64::new(0),
        };
        entity.store_parameters(parameters);
        entity
    }

    /// Takes the reference that the scheduler holds on a thread from its start to its end.
    pub(super) fn adopt(&self, thread: &Arc<Thread>) {
        debug_assert!(ptr::eq(self, &raw const thread.sched));
        let _ = Arc::into_raw(thread.clone());
    }

    pub(super) fn announce_sleep(&self, mode: Sleep) {
        self.sleep.announce(mode);
    }

    pub(super) fn stay_awake(&self) {
        self.sleep.stay_awake();
    }

    pub(super) fn set_dead(&self) {
        self.sleep.set_dead();
    }

    /// How the thread sleeps, if it does.
    pub fn sleeping(&self) -> Option<Sleep> {
        self.sleep.sleeping()
    }

    /// Whether the thread has ended.
    pub fn is_dead(&self) -> bool {
        self.sleep.is_dead()
    }

    /// Whether a CPU uses the thread's stack and registers.
    pub fn is_on_cpu(&self) -> bool {
        self.sleep.is_on_cpu()
    }

    pub(super) fn set_on_cpu(&self, on: bool) {
        self.sleep.set_on_cpu(on);
    }

    /// The CPU whose queue the thread was on last.
    pub fn cpu(&self) -> CpuId {
        self.cpu.load(Ordering::SeqCst)
    }

    pub(super) fn set_cpu(&self, cpu: CpuId) {
        self.cpu.store(cpu, Ordering::SeqCst);
    }

    /// The CPUs on which the thread may run.
    pub fn affinity(&self) -> CpuSet {
        *self.affinity.lock()
    }

    pub(super) fn store_affinity(&self, set: CpuSet) {
        *self.affinity.lock() = set;
    }

    /// Policy, nice value and priority.
    pub fn parameters(&self) -> Parameters {
        *self.parameters.lock()
    }

    /// Changes them, of a thread that is on no queue, or under its queue's lock: see [`super::set_parameters`].
    pub(super) fn store_parameters(&self, parameters: Parameters) {
        *self.parameters.lock() = parameters;
        // Relaxed: the scheduler may see the new values a switch later.
        self.weight.store(parameters.policy.weight(parameters.nice), Ordering::Relaxed);
        self.idle.store(parameters.policy == Policy::Idle, Ordering::Relaxed);
        let class = u32::from(parameters.policy.class());
        // With the loads of who queues the thread or runs it: `queue::set_parameters` says why.
        self.class_and_priority.store(class << 8 | parameters.priority, Ordering::SeqCst);
    }

    /// Puts the thread before all those of the ordinary policies, until [`Self::calm`]: others wait for what it does. Only the thread itself.
    pub fn hurry(&self) {
        // Relaxed: its CPU looks at it when it switches.
        self.class_and_priority.store(1, Ordering::Relaxed);
    }

    /// The thread is what its parameters say again.
    pub fn calm(&self) {
        self.store_parameters(self.parameters());
    }

    /// Whether its policy is the idle one: it waits for its turn, and takes it from nobody.
    pub(super) fn is_idle_policy(&self) -> bool {
        // Relaxed: see `store_parameters`.
        self.idle.load(Ordering::Relaxed)
    }

    pub(super) fn weight(&self) -> u32 {
        // Relaxed: see `store_parameters`.
        self.weight.load(Ordering::Relaxed)
    }

    pub(super) fn class(&self) -> u8 {
        (self.class_and_priority.load(Ordering::SeqCst) >> 8) as u8
    }

    pub(super) fn priority(&self) -> u32 {
        self.class_and_priority.load(Ordering::SeqCst) & 0xff
    }

    pub(super) fn set_wait_place(&self, place: Option<&'static Location<'static>>) {
        let pointer = place.map_or(ptr::null_mut(), |place| ptr::from_ref(place).cast_mut());
        // Relaxed: read by the thread dump only.
        self.wait_place.store(pointer, Ordering::Relaxed);
        self.asleep_since.store(crate::time::now(), Ordering::Relaxed);
    }

    /// Where in the kernel the thread sleeps, and since when (monotonic nanoseconds).
    pub fn wait_place(&self) -> Option<(&'static Location<'static>, u64)> {
        // Relaxed: see `set_wait_place`.
        let place = self.wait_place.load(Ordering::Relaxed);
        // SAFETY: only references to static locations are stored.
        unsafe { place.as_ref() }.map(|place| (place, self.asleep_since.load(Ordering::Relaxed)))
    }

    /// Run time so far, in nanoseconds, up to now if the thread runs.
    pub fn runtime(&self) -> u64 {
        // Relaxed: statistics.
        let done = self.runtime.load(Ordering::Relaxed);
        if self.is_on_cpu() {
            done + crate::time::now().saturating_sub(self.started_at.load(Ordering::Relaxed))
        } else {
            done
        }
    }

    /// User and system time in nanoseconds: the run time, divided as the ticks found it.
    pub fn times(&self) -> (u64, u64) {
        let total = self.runtime();
        // Relaxed: statistics.
        let user = self.user_ticks.load(Ordering::Relaxed);
        let system = self.system_ticks.load(Ordering::Relaxed);
        if user + system == 0 {
            // Shorter than a tick: counted as user time, as Linux does.
            return (total, 0);
        }
        let user_time = (u128::from(total) * u128::from(user) / u128::from(user + system)) as u64;
        (user_time, total - user_time)
    }

    /// Voluntary and involuntary context switches.
    pub fn switches(&self) -> (u64, u64) {
        // Relaxed: statistics.
        (self.voluntary_switches.load(Ordering::Relaxed), self.involuntary_switches.load(Ordering::Relaxed))
    }
}
