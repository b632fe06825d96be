//! Tasks, each on the CPU that it was made for, first in first out.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use ostd::cpu::{CpuId, PinCurrentCpu, all_cpus, num_cpus};
use ostd::sync::{LocalIrqDisabled, SpinLock};
use ostd::task::scheduler::{EnqueueFlags, LocalRunQueue, Scheduler, UpdateFlags, inject_scheduler};
use ostd::task::{Task, TaskOptions, disable_preempt, halt_cpu, inject_post_schedule_handler};
use ostd::util::id_set::Id;

use crate::space::OstdSpace;
use crate::{arch, cpus};

/// What a task has of ours.
pub struct OfTask {
    cpu: CpuId,
    space: SpinLock<Option<OstdSpace>>,
}

impl OfTask {
    fn of(task: &Task) -> Option<&OfTask> {
        task.data().downcast_ref()
    }

    /// The task that runs here is in `space` from now on, or in none.
    pub fn enter(space: Option<OstdSpace>) {
        if let Some(of) = Task::current().as_deref().and_then(OfTask::of) {
            // Dropped with the lock let go: the last handle frees tables.
            drop(core::mem::replace(&mut *of.space.lock(), space));
        }
        OfTask::activate_current();
    }

    /// Loads the space of the task that runs here.
    pub fn activate_current() {
        let task = Task::current();
        if let Some(of) = task.as_deref().and_then(OfTask::of)
            && let Some(space) = &*of.space.lock()
        {
            space.activate();
        }
    }
}

#[derive(Default)]
struct Queue {
    current: Option<Arc<Task>>,
    waiting: VecDeque<Arc<Task>>,
}

/// The CPUs that take tasks.
static UP: AtomicUsize = AtomicUsize::new(0);

fn are_up() -> bool {
    UP.load(Ordering::SeqCst) == num_cpus()
}

/// Waits until all CPUs take tasks.
pub fn wait_for_all() {
    while !are_up() {
        Task::yield_now();
    }
}

struct Queues(Vec<SpinLock<Queue, LocalIrqDisabled>>);

impl Scheduler for Queues {
    fn enqueue(&self, task: Arc<Task>, _: EnqueueFlags) -> Option<CpuId> {
        let cpu = OfTask::of(&task).map_or(CpuId::bsp(), |of| of.cpu);
        let mut queue = self.0[cpu.as_usize()].lock();
        // A task that is woken before it was taken from its queue is in it still.
        task.schedule_info().cpu.set_if_is_none(cpu).ok()?;
        queue.waiting.push_back(task);
        // Here, the next tick or wait is soon enough; and a switch out of the boot context would not come back.
        let is_here = disable_preempt().current_cpu() == cpu;
        (!is_here && are_up()).then_some(cpu)
    }

    fn local_rq_with(&self, work: &mut dyn FnMut(&dyn LocalRunQueue)) {
        let guard = disable_preempt();
        work(&*self.0[guard.current_cpu().as_usize()].lock());
    }

    fn mut_local_rq_with(&self, work: &mut dyn FnMut(&mut dyn LocalRunQueue)) {
        let guard = disable_preempt();
        work(&mut *self.0[guard.current_cpu().as_usize()].lock());
    }
}

impl LocalRunQueue for Queue {
    fn current(&self) -> Option<&Arc<Task>> {
        self.current.as_ref()
    }

    fn update_current(&mut self, _: UpdateFlags) -> bool {
        !self.waiting.is_empty()
    }

    fn try_pick_next(&mut self) -> Option<&Arc<Task>> {
        let next = self.waiting.pop_front()?;
        self.waiting.extend(self.current.replace(next));
        self.current.as_ref()
    }

    fn dequeue_current(&mut self) -> Option<Arc<Task>> {
        let task = self.current.take()?;
        task.schedule_info().cpu.set_to_none();
        Some(task)
    }
}

fn after_switch() {
    cpus::pass_quiescent_point();
    cpus::set_idle(false);
    OfTask::activate_current();
}

/// Starts a task on a CPU.
pub fn spawn(cpu: CpuId, work: impl FnOnce() + Send + 'static) {
    let until_the_end = move || {
        work();
        OfTask::enter(None);
    };
    let data = OfTask { cpu, space: SpinLock::new(None) };
    TaskOptions::new(until_the_end).data(data).spawn().expect("memory for a task");
}

/// Sets up the queues, with a task on each CPU that runs when there is nothing else to do.
pub fn init() {
    let queues = (0..num_cpus()).map(|_| SpinLock::new(Queue::default())).collect();
    inject_scheduler(Box::leak(Box::new(Queues(queues))));
    inject_post_schedule_handler(after_switch);
    arch::init();
    for cpu in all_cpus() {
        spawn(cpu, || {
            arch::join();
            UP.fetch_add(1, Ordering::SeqCst);
            loop {
                cpus::set_idle(true);
                halt_cpu();
                cpus::set_idle(false);
                Task::yield_now();
            }
        });
    }
}
