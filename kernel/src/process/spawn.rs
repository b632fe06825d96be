//! Threads that no clone(2) makes: idle threads, kernel threads, the first process.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::thread::Parts;
use super::{Credentials, Process, Thread, limits, process, thread, tree};
use crate::arch::context::{Context, UserRegisters};
use crate::arch::cpu::{CpuId, CpuSet};
use crate::arch::interrupts;
use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::fs::{FdTable, FsContext};
use crate::memory::stack::KernelStack;
use crate::sched::{self, Entity, Parameters, Policy};
use crate::signal::{Actions, AltStack, SigSet, ThreadSignals};
use crate::sync::Once;

/// Parameters of a thread that nobody has set any for.
const PLAIN: Parameters = Parameters { policy: Policy::Other, nice: 0, priority: 0, reset_on_fork: false };

/// Process 0: the kernel's threads belong to it. It is not in the tree.
fn kernel_process() -> Arc<Process> {
    static KERNEL: Once<Arc<Process>> = Once::new();
    KERNEL
        .call_once(|| {
            Process::new(process::Parts {
                pid: 0,
                numbers: None,
                relations: tree::Relations::new(0),
                mm: None,
                actions: Actions::new(),
                limits: limits::Limits::initial(),
                uid: 0,
                oom_score_adj: -1000,
                oom_score_adj_min: -1000,
                personality: 0,
                dump_filter: 0x33,
                dumpable: 0,
                has_execed: false,
            })
        })
        .clone()
}

fn kernel_parts(name: &str, sched: Entity, context: Context, stack: Option<KernelStack>) -> Parts {
    Parts {
        tid: 0,
        numbers: None,
        namespaces: None,
        process: kernel_process(),
        sched,
        context,
        stack,
        address_space: None,
        files: None,
        fs: None,
        credentials: Credentials::root(),
        comm: thread::comm_of(name.as_bytes()),
        signals: ThreadSignals::new(SigSet(u64::MAX), AltStack::DISABLED),
        charge: None,
        semaphore_undo: None,
        start: None,
    }
}

/// The idle thread of a CPU: what runs there since boot becomes it.
pub fn new_idle_thread(cpu: CpuId) -> Arc<Thread> {
    let sched = Entity::new(Parameters { policy: Policy::Idle, ..PLAIN }, CpuSet::single(cpu), cpu);
    Thread::new(kernel_parts("swapper", sched, Context::booted(), None))
}

/// A thread of the kernel's own, not started yet. Kernel threads are made at bring-up, where there is memory.
pub fn new_kernel_thread(name: &str, body: Box<dyn FnOnce() + Send>) -> Arc<Thread> {
    let stack = KernelStack::new().expect("memory for a kernel thread's stack");
    let context = Context::kernel(stack.top(), kernel_entry, 0);
    let sched = Entity::new(PLAIN, CpuSet::all(), 0);
    let mut parts = kernel_parts(name, sched, context, Some(stack));
    parts.start = Some(body);
    Thread::new(parts)
}

extern "C" fn kernel_entry(_: usize) -> ! {
    sched::finish_switch_for_new_thread();
    interrupts::enable();
    run_start();
    super::exit::kernel_thread_ended()
}

/// What every user thread does first, in the kernel; when it returns, the thread enters user mode.
pub(super) extern "C" fn user_entry(_: usize) {
    sched::finish_switch_for_new_thread();
    interrupts::enable();
    run_start();
}

fn run_start() {
    let start = super::current().start.lock().take();
    if let Some(start) = start {
        start();
    }
}

/// Makes process 1. It first runs `body` in the kernel, where it may sleep; `body` ends by executing a program.
pub fn spawn_init(body: impl FnOnce() + Send + 'static) -> Result<Arc<Thread>> {
    let stack = KernelStack::new().ok_or(Errno::ENOMEM)?;
    let frame = TrapFrame::user(0, 0);
    let context = Context::user(stack.top(), &frame, Box::<UserRegisters>::default(), user_entry, 0);
    let process = Process::new(process::Parts {
        pid: 1,
        numbers: None,
        relations: tree::Relations::new(crate::signal::SIGCHLD),
        mm: None,
        actions: Actions::new(),
        limits: limits::Limits::initial(),
        uid: 0,
        oom_score_adj: 0,
        oom_score_adj_min: 0,
        personality: 0,
        dump_filter: 0x33,
        dumpable: 1,
        has_execed: true,
    });
    process.cgroup.add_task()?;
    let thread = Thread::new(Parts {
        tid: 1,
        numbers: None,
        namespaces: None,
        process: process.clone(),
        sched: Entity::new(PLAIN, CpuSet::all(), 0),
        context,
        stack: Some(stack),
        address_space: None,
        files: Some(Arc::new(FdTable::new())),
        fs: Some(Arc::new(FsContext::new())),
        credentials: Credentials::root(),
        comm: thread::comm_of(b"init"),
        signals: ThreadSignals::new(SigSet::EMPTY, AltStack::DISABLED),
        charge: None,
        semaphore_undo: None,
        start: Some(Box::new(body)),
    });
    {
        // As on Linux it leads neither a session nor a group, until it calls setsid(2): so no terminal that it opens becomes its own.
        let session = tree::Session::new(0, None);
        let group = tree::Group::new(0, None, session);
        let mut tree = tree::lock();
        let pid = tree.allocate_pid()?;
        assert_eq!(pid, 1, "the first process comes first");
        tree.insert_thread(&thread);
        process.adoption.begin_tree();
        let relations = process.relations.get_mut(&mut tree);
        relations.add_thread(&thread);
        process.running.store(1, Ordering::Relaxed);
        relations.leader = Some(thread.clone());
        tree.join_group(&process, &group);
        tree.set_init(process);
    }
    sched::start(&thread);
    Ok(thread)
}
