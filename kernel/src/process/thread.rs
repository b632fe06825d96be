//! A thread: what has a kernel stack, registers, and a place in the scheduler.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use intrusive_collections::{LinkedListAtomicLink, RBTreeAtomicLink};

use super::user::Due;
use super::user_dispatch::UserDispatch;
use super::{Credentials, Pid, Process};
use crate::arch::context::Context;
use crate::arch::percpu;
use crate::errno::Result;
use crate::fs::mount::end::Endings;
use crate::fs::{FdTable, FsContext};
use crate::ipc::sem::UndoList;
use crate::memory::stack::KernelStack;
use crate::mm::AddressSpace;
use crate::namespaces::{Namespaces, Numbers};
use crate::net::message::Landing;
use crate::sched::{self, Entity};
use crate::signal::ThreadSignals;
use crate::sync::lockdep::Held;
use crate::sync::{IrqLock, SpinLock};
use crate::syscall::Args;
use crate::time::cpu_timers::CpuTimers;
use crate::time::{Deadline, Timer};

/// What a restarted system call does: see restart_syscall(2).
pub type Restart = Box<dyn FnOnce(&mut Args) -> Result<usize> + Send>;

/// One thread, of a process or of the kernel.
pub struct Thread {
    tid: AtomicU32,
    /// Its numbers in PID namespaces below the first, of a thread that began as another than its process's first.
    own_numbers: Option<Arc<Numbers>>,
    /// The process that it belongs to; all kernel threads belong to process 0.
    pub process: Arc<Process>,
    pub(crate) sched: Entity,
    pub(crate) context: UnsafeCell<Context>,
    /// What the kernel's own allocations count for it.
    pub(crate) memory: crate::memory::reserve::Account,
    stack: SpinLock<Option<KernelStack>>,
    /// What the scheduler loads for this thread. Only the thread itself changes it, with interrupts off.
    pub(super) address_space: UnsafeCell<Option<Arc<AddressSpace>>>,
    files: SpinLock<Option<Arc<FdTable>>>,
    fs: SpinLock<Option<Arc<FsContext>>>,
    /// `None` for those that the kernel starts with.
    namespaces: SpinLock<Option<Arc<Namespaces>>>,
    /// Its user namespace is another than the first.
    has_user_namespace: AtomicBool,
    /// Senders of signals look at it under the tree's lock, hence with interrupts off.
    credentials: IrqLock<Arc<Credentials>>,
    comm: IrqLock<[u8; 16]>,
    /// Pending signals, mask and flags.
    pub(crate) signals: ThreadSignals,
    /// Links that the process tree's lock guards.
    pub(super) by_tid: RBTreeAtomicLink,
    pub(super) in_process: RBTreeAtomicLink,
    /// Its place among its process's threads. Changed under the tree's lock, before it is there.
    order: AtomicU64,
    pub(super) in_tracees: LinkedListAtomicLink,
    pub(super) of_tracer: LinkedListAtomicLink,
    /// Who traces it, and how.
    pub(crate) trace: super::ptrace::Tracee,
    /// Memory that is cleared, and whose futex is woken, when the thread ends: set_tid_address(2).
    pub(crate) clear_child_tid: AtomicUsize,
    /// Head of the list of robust futexes: set_robust_list(2).
    pub(crate) robust_list: AtomicUsize,
    /// Nobody waits for a word of its any more: see [`super::futex::leave_words`].
    pub(super) futex_ended: AtomicBool,
    /// The registered restartable-sequence area and its signature: rseq(2).
    pub(crate) rseq: AtomicUsize,
    pub(crate) rseq_signature: AtomicU32,
    pub(crate) rseq_length: AtomicU32,
    /// What is to be done before user mode goes on, beside signals.
    pub(crate) due: Due,
    /// The system call that the thread is in, `u32::MAX` for none: for the thread dump.
    pub(crate) syscall: AtomicU32,
    /// How the last system call goes on after a signal that has no handler.
    pub(crate) restart: SpinLock<Option<Restart>>,
    /// Messages of sockets whose files it is letting go of.
    pub(crate) landing: SpinLock<Landing>,
    sleep_timer: SpinLock<Option<Arc<Timer>>>,
    /// Timers that wait for this thread's CPU clock.
    pub(crate) cpu_timers: CpuTimers,
    /// Slack of timers: prctl(PR_SET_TIMERSLACK) sets it; sleeping is more exact than that here.
    pub(crate) timer_slack: AtomicU64,
    /// Signal that it gets when its parent ends: prctl(PR_SET_PDEATHSIG).
    pub(crate) parent_death_signal: AtomicU32,
    pub(crate) no_new_privileges: AtomicBool,
    /// It rests, as control groups count it. Changed under the tree's lock.
    pub(crate) resting: AtomicBool,
    /// Which system calls it may make.
    pub(crate) seccomp: crate::seccomp::State,
    /// Which of them raise a signal instead.
    pub(super) dispatch: UserDispatch,
    /// The locks that the thread holds.
    pub(crate) locks: Held,
    trap: IrqLock<super::Trap>,
    /// What the thread counts as for RLIMIT_NPROC.
    charge: SpinLock<Option<super::accounts::Share>>,
    /// Page tables that the thread has retired since it was last looked at: see [`crate::sync::grace::throttle`].
    pub(crate) retired_tables: AtomicU32,
    /// Priority of its I/O, as ioprio_set(2) has it.
    pub(crate) io_priority: AtomicU32,
    /// Of set_mempolicy(2).
    pub(crate) memory_policy: crate::mm::policy::Current,
    /// What the thread's end undoes in semaphores.
    semaphore_undo: SpinLock<Option<UndoList>>,
    /// Where the area begins that its last page fault was in.
    pub(crate) last_area: AtomicU64,
    /// The address of the last page fault of the kernel's while the thread was to be killed.
    pub(crate) last_fault: AtomicU64,
    /// Trees of mounts that it is about to take apart.
    pub(crate) endings: Endings,
    /// Page faults without and with I/O.
    pub(crate) minor_faults: AtomicU64,
    pub(crate) major_faults: AtomicU64,
    pub(super) start: SpinLock<Option<Box<dyn FnOnce() + Send>>>,
    /// Monotonic nanoseconds.
    pub(crate) started_at: u64,
}

// SAFETY: `context` is touched by the CPU that runs or switches the thread, `address_space` by the thread itself and that CPU.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

/// What a new thread starts with.
pub(super) struct Parts {
    pub tid: Pid,
    pub numbers: Option<Arc<Numbers>>,
    pub namespaces: Option<Arc<Namespaces>>,
    pub process: Arc<Process>,
    pub sched: Entity,
    pub context: Context,
    pub stack: Option<KernelStack>,
    pub address_space: Option<Arc<AddressSpace>>,
    pub files: Option<Arc<FdTable>>,
    pub fs: Option<Arc<FsContext>>,
    pub credentials: Arc<Credentials>,
    pub comm: [u8; 16],
    pub signals: ThreadSignals,
    pub charge: Option<super::accounts::Share>,
    pub semaphore_undo: Option<UndoList>,
    pub start: Option<Box<dyn FnOnce() + Send>>,
}

impl Thread {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let logged = crate::syscall::is_logged(parts.process.pid);
        if let Some(files) = &parts.files {
            files.enter();
        }
        if let Some(fs) = &parts.fs {
            fs.enter();
        }
        Arc::new(Self {
            tid: AtomicU32::new(parts.tid),
            own_numbers: parts.numbers,
            namespaces: SpinLock::new(parts.namespaces),
            has_user_namespace: AtomicBool::new(parts.credentials.nested_user_namespace().is_some()),
            process: parts.process,
            sched: parts.sched,
            context: UnsafeCell::new(parts.context),
            memory: crate::memory::reserve::Account::default(),
            stack: SpinLock::new(parts.stack),
            address_space: UnsafeCell::new(parts.address_space),
            files: SpinLock::new(parts.files),
            fs: SpinLock::new(parts.fs),
            credentials: IrqLock::new(parts.credentials),
            comm: IrqLock::new(parts.comm),
            signals: parts.signals,
            by_tid: RBTreeAtomicLink::new(),
            in_process: RBTreeAtomicLink::new(),
            order: AtomicU64::new(0),
            in_tracees: LinkedListAtomicLink::new(),
            of_tracer: LinkedListAtomicLink::new(),
            trace: super::ptrace::Tracee::new(logged),
            clear_child_tid: AtomicUsize::new(0),
            robust_list: AtomicUsize::new(0),
            futex_ended: AtomicBool::new(false),
            rseq: AtomicUsize::new(0),
            rseq_signature: AtomicU32::new(0),
            rseq_length: AtomicU32::new(0),
            due: Due::new(),
            syscall: AtomicU32::new(u32::MAX),
            restart: SpinLock::new(None),
            landing: SpinLock::new(Landing::default()),
            sleep_timer: SpinLock::new(None),
            cpu_timers: CpuTimers::new(),
            timer_slack: AtomicU64::new(50_000),
            parent_death_signal: AtomicU32::new(0),
            no_new_privileges: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            seccomp: crate::seccomp::State::new(),
            dispatch: UserDispatch::new(),
            locks: Held::new(),
            trap: IrqLock::new(super::Trap::default()),
            charge: SpinLock::new(parts.charge),
            retired_tables: AtomicU32::new(0),
            io_priority: AtomicU32::new(0),
            memory_policy: crate::mm::policy::Current::default(),
            semaphore_undo: SpinLock::new(parts.semaphore_undo),
            last_area: AtomicU64::new(0),
            last_fault: AtomicU64::new(0),
            endings: Endings::default(),
            minor_faults: AtomicU64::new(0),
            major_faults: AtomicU64::new(0),
            start: SpinLock::new(parts.start),
            started_at: crate::time::now(),
        })
    }

    /// Thread number; that of the first thread is the process's.
    pub fn tid(&self) -> Pid {
        self.tid.load(Ordering::SeqCst)
    }

    /// How many threads its process had had when it came, itself counted.
    pub(crate) fn order(&self) -> u64 {
        // Relaxed: it does not change while others can find the thread.
        self.order.load(Ordering::Relaxed)
    }

    pub(super) fn set_order(&self, order: u64) {
        // Relaxed: as above.
        self.order.store(order, Ordering::Relaxed);
    }

    /// Its numbers in PID namespaces below the first, if it is in one.
    pub fn numbers(&self) -> Option<&Arc<Numbers>> {
        if self.is_leader() { self.process.numbers.as_ref() } else { self.own_numbers.as_ref() }
    }

    /// The number that it has in its own PID namespace.
    pub fn number(&self) -> Pid {
        self.numbers().map_or_else(|| self.tid(), |numbers| numbers.own())
    }

    /// Its namespaces; `None` for those that the kernel starts with.
    pub fn namespaces(&self) -> Option<Arc<Namespaces>> {
        self.namespaces.lock().clone()
    }

    /// Puts others in their place. The old ones are dropped without a lock.
    pub fn set_namespaces(&self, namespaces: Option<Arc<Namespaces>>) {
        let old = core::mem::replace(&mut *self.namespaces.lock(), namespaces);
        drop(old);
    }

    /// Is its user namespace another than the first?
    pub fn has_user_namespace(&self) -> bool {
        // Relaxed: a flag of its own; the credentials have a lock.
        self.has_user_namespace.load(Ordering::Relaxed)
    }

    /// execve(2) by a thread that is not the first makes it the first.
    pub(super) fn set_tid(&self, tid: Pid) {
        self.tid.store(tid, Ordering::SeqCst);
    }

    /// Whether it is the process's first thread, whose number is the process's.
    pub fn is_leader(&self) -> bool {
        self.tid() == self.process.pid
    }

    /// Whether it is a thread of the kernel's own.
    pub fn is_kernel(&self) -> bool {
        self.process.pid == 0
    }

    /// Open files; `None` once the thread is on its way out, and for kernel threads.
    pub fn try_files(&self) -> Option<Arc<FdTable>> {
        self.files.lock().clone()
    }

    /// Open files of a thread that is in a system call.
    pub fn files(&self) -> Arc<FdTable> {
        self.try_files().expect("a running user thread has files")
    }

    /// Root, working directory, umask; `None` once the thread is on its way out, and for kernel threads.
    pub fn try_fs(&self) -> Option<Arc<FsContext>> {
        self.fs.lock().clone()
    }

    /// Root, working directory, umask of a thread that is in a system call.
    pub fn fs(&self) -> Arc<FsContext> {
        self.try_fs().expect("a running user thread has a working directory")
    }

    /// Puts another table of files in place: unshare(2), execve(2), exit(2). The old one is left without a lock.
    pub fn set_files(&self, files: Option<Arc<FdTable>>) {
        if let Some(new) = &files {
            new.enter();
        }
        let old = core::mem::replace(&mut *self.files.lock(), files);
        if let Some(old) = old {
            old.leave();
        }
    }

    /// Puts another file-system context in place.
    pub fn set_fs(&self, fs: Option<Arc<FsContext>>) {
        if let Some(new) = &fs {
            new.enter();
        }
        let old = core::mem::replace(&mut *self.fs.lock(), fs);
        if let Some(old) = old {
            old.leave();
        }
    }

    /// The list of what the thread's end undoes in semaphores; made when there is none yet.
    pub fn undo_list(&self) -> UndoList {
        let fresh = UndoList::new();
        self.semaphore_undo.lock().get_or_insert(fresh).clone()
    }

    /// By which kcmp(2) tells it from other lists; 0 for none.
    pub fn undo_list_address(&self) -> usize {
        self.semaphore_undo.lock().as_ref().map_or(0, UndoList::address)
    }

    /// Lets go of that list: exit(2), unshare(2). The last thread that has it applies it.
    pub fn leave_undo_list(&self) {
        let left = self.semaphore_undo.lock().take();
        drop(left);
    }

    /// The user and groups that the thread acts as.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.lock().clone()
    }

    /// Changes them.
    pub fn set_credentials(&self, credentials: Credentials) {
        drop(self.replace_credentials(Arc::new(credentials)));
    }

    /// Changes them; the old ones are for the caller to drop, without a lock.
    pub(super) fn replace_credentials(&self, credentials: Arc<Credentials>) -> Arc<Credentials> {
        self.process.uid.store(credentials.uid, Ordering::SeqCst);
        // Relaxed: as where it is read.
        self.has_user_namespace.store(credentials.nested_user_namespace().is_some(), Ordering::Relaxed);
        core::mem::replace(&mut *self.credentials.lock(), credentials)
    }

    /// The thread's name, with zero bytes at the end.
    pub fn comm(&self) -> [u8; 16] {
        *self.comm.lock()
    }

    /// The thread's name without the zero bytes.
    pub fn name(&self) -> alloc::string::String {
        let comm = self.comm();
        let length = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
        alloc::string::String::from_utf8_lossy(&comm[..length]).into_owned()
    }

    /// Sets the name, cut to 15 bytes.
    pub fn set_comm(&self, name: &[u8]) {
        *self.comm.lock() = comm_of(name);
    }

    /// Whether a sleep should end with `EINTR` or a restart.
    #[inline]
    pub fn signal_pending(&self) -> bool {
        self.signals.pending()
    }

    /// Whether the thread is to die.
    #[inline]
    pub fn kill_pending(&self) -> bool {
        self.signals.killed()
    }

    /// Sets the restart of the current system call; return `ERESTART_RESTARTBLOCK` then.
    pub fn set_restart(&self, restart: impl FnOnce(&mut Args) -> Result<usize> + Send + 'static) {
        let new = Box::new(restart);
        let old = self.restart.lock().replace(new);
        drop(old);
    }

    /// The system call that the thread is in.
    pub fn syscall_name(&self) -> &'static str {
        // Relaxed: for the thread dump.
        match self.syscall.load(Ordering::Relaxed) {
            u32::MAX => "no system call",
            number => syscalls::Sysno::new(number as usize).map_or("an unknown call", |call| call.name()),
        }
    }

    /// The last exception.
    pub(crate) fn trap(&self) -> super::Trap {
        *self.trap.lock()
    }

    pub(crate) fn set_trap(&self, trap: super::Trap) {
        *self.trap.lock() = trap;
    }

    /// Makes the thread count for another user, or for none.
    pub(super) fn set_charge(&self, charge: Option<super::accounts::Share>) {
        let old = core::mem::replace(&mut *self.charge.lock(), charge);
        drop(old);
    }

    /// It has left its stack: unless somebody has yet to wait for it, it counts no more. Without locks.
    pub(crate) fn left_stack(&self) {
        // Race: a thread that takes the lead is out of the register and in again in one hold of the tree's lock, and lives on.
        let is_registered = {
            let _tree = super::tree::look();
            self.by_tid.is_linked()
        };
        if !is_registered {
            self.set_charge(None);
        }
    }

    /// Arms the timer that ends this thread's sleep.
    pub(crate) fn arm_sleep_timer(&self, deadline: Deadline) -> Arc<Timer> {
        let timer = {
            let existing = self.sleep_timer.lock().clone();
            existing.unwrap_or_else(|| {
                let thread: Weak<Thread> = Arc::downgrade(&self.to_arc());
                let timer = Timer::new(move || {
                    if let Some(thread) = thread.upgrade() {
                        sched::wake(&thread);
                    }
                });
                *self.sleep_timer.lock() = Some(timer.clone());
                timer
            })
        };
        timer.arm(deadline);
        timer
    }

    /// A counted reference to this thread.
    pub fn to_arc(&self) -> Arc<Thread> {
        // SAFETY: threads are only ever made by `Arc::new` above, and whoever has a reference keeps one alive.
        unsafe {
            Arc::increment_strong_count(self);
            Arc::from_raw(self)
        }
    }

    /// Lets go of what a thread was made of that never runs, and nobody can find.
    pub(super) fn forget_parts(&self) {
        // SAFETY: it has never been on a CPU, and never comes there.
        let space = unsafe { (*self.address_space.get()).take() };
        drop(space);
        self.set_files(None);
        self.set_fs(None);
        self.set_namespaces(None);
        self.free_stack();
    }

    /// Frees the kernel stack of a thread that has ended and left its CPU.
    pub(crate) fn free_stack(&self) {
        let stack = self.stack.lock().take();
        drop(stack);
        // The user registers go with it.
        // SAFETY: the thread has ended and is off its CPU.
        unsafe { *self.context.get() = Context::booted() };
    }
}

/// A thread that has perhaps left the tree, to be dropped without locks. If it has, it does not count for its user any more, whoever
/// still knows it: a descriptor of another user's, say. One that is on its stack yet counts until it is off.
pub(crate) struct Leaving(pub Arc<Thread>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let is_current = try_current().is_some_and(|current| core::ptr::eq(&*current, Arc::as_ptr(&self.0)));
        if !is_current {
            self.0.left_stack();
        }
    }
}

/// A thread's name as the kernel keeps it.
pub fn comm_of(name: &[u8]) -> [u8; 16] {
    let mut comm = [0; 16];
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len()).min(15);
    comm[..length].copy_from_slice(&name[..length]);
    comm
}

/// The thread that runs this code. It stays alive as long as it runs, so no count is needed.
#[derive(Clone, Copy)]
pub struct Current {
    thread: *const Thread,
    not_send: PhantomData<*const ()>,
}

impl Deref for Current {
    type Target = Thread;

    #[inline]
    fn deref(&self) -> &Thread {
        // SAFETY: the scheduler holds a reference to a thread until after its last switch, and this type does not leave the thread.
        unsafe { &*self.thread }
    }
}

/// The thread that runs this code.
#[inline]
pub fn current() -> Current {
    try_current().expect("the scheduler runs")
}

/// Lets others run, in a loop that is as long as somebody likes. True for a thread that is to die: it gives up.
pub fn is_killed() -> bool {
    sched::cond_resched();
    current().kill_pending()
}

/// The thread that runs this code; `None` during bring-up.
#[inline]
pub fn try_current() -> Option<Current> {
    let thread = percpu::current().cast::<Thread>();
    (!thread.is_null()).then_some(Current { thread, not_send: PhantomData })
}
