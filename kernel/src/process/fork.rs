//! clone(2) in all its forms.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::accounts::{self, Counted};
use super::oom::{self, Found};
use super::thread::Parts;
use super::{Pid, Process, Thread, broadcast, limits, process, ptrace, spawn, tree};
use crate::arch::context::Context;
use crate::arch::cpu;
use crate::arch::trap::TrapFrame;
use crate::cgroup;
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::stack::KernelStack;
use crate::memory::{self, Pressure};
use crate::mm::uaccess;
use crate::namespaces::{self, Numbers, PidNamespace, View};
use crate::sched::{self, Entity, Parameters, Policy};
use crate::seccomp;
use crate::signal::{self, AltStack, SigInfo, ThreadSignals};

/// What clone3(2) is asked for.
#[derive(Clone, Default)]
pub struct CloneArgs {
    /// `CLONE_*`, without the exit signal.
    pub flags: u64,
    pub exit_signal: u32,
    /// Stack pointer of the child, 0 for the parent's.
    pub stack: u64,
    pub tls: u64,
    pub parent_tid: usize,
    pub child_tid: usize,
    pub pidfd: usize,
    /// Numbers that the child is to have, from the deepest PID namespace up.
    pub set_tid: Vec<i32>,
    /// The control group of a new process.
    pub cgroup: cgroup::Into,
}

const VM: u64 = abi::CLONE_VM as u64;
const FS: u64 = abi::CLONE_FS as u64;
const FILES: u64 = abi::CLONE_FILES as u64;
const SIGHAND: u64 = abi::CLONE_SIGHAND as u64;
const PIDFD: u64 = abi::CLONE_PIDFD as u64;
const VFORK: u64 = abi::CLONE_VFORK as u64;
const PARENT: u64 = abi::CLONE_PARENT as u64;
const THREAD: u64 = abi::CLONE_THREAD as u64;
const SYSVSEM: u64 = abi::CLONE_SYSVSEM as u64;
const SETTLS: u64 = abi::CLONE_SETTLS as u64;
const PARENT_SETTID: u64 = abi::CLONE_PARENT_SETTID as u64;
const CHILD_CLEARTID: u64 = abi::CLONE_CHILD_CLEARTID as u64;
const DETACHED: u64 = abi::CLONE_DETACHED as u64;
const CHILD_SETTID: u64 = abi::CLONE_CHILD_SETTID as u64;
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const NEWNS: u64 = abi::CLONE_NEWNS as u64;
const NEWUSER: u64 = abi::CLONE_NEWUSER as u64;
const NEWPID: u64 = abi::CLONE_NEWPID as u64;
const NEWIPC: u64 = abi::CLONE_NEWIPC as u64;

/// Signals that making a child known may send: what the parent has yet to hear, and the first stop of a child that is traced.
const SENDS: usize = signal::group::MOST_FOR_ONE + 1;

fn check(args: &CloneArgs, parent: &Process) -> Result<()> {
    let has = |flag: u64| args.flags & flag != 0;
    let invalid = (has(NEWNS | NEWUSER) && has(FS))
        || (has(NEWUSER | NEWPID) && has(THREAD))
        || (has(NEWIPC) && has(SYSVSEM))
        || (has(THREAD) && !has(SIGHAND))
        || (has(SIGHAND) && !has(VM))
        || (has(SIGHAND) && has(CLEAR_SIGHAND))
        || (has(PIDFD) && has(DETACHED))
        || (has(PARENT) && parent.is_init());
    if invalid { Err(Errno::EINVAL) } else { Ok(()) }
}

/// A thread has its numbers from where its process has them.
fn check_threads_namespaces(args: &CloneArgs, current: &Thread) -> Result<()> {
    let Some(namespaces) = current.namespaces() else { return Ok(()) };
    let other_numbers = || !Arc::ptr_eq(&namespaces.pid_for_children, &current.process.pid_namespace());
    if args.flags & THREAD != 0 && other_numbers() { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Makes a thread or a process after the current one; returns its number. With CLONE_VFORK, returns when the child has
/// let go of the memory.
pub fn clone(args: CloneArgs, frame: &mut TrapFrame) -> Result<Pid> {
    let current = super::current();
    check(&args, &current.process)?;
    check_threads_namespaces(&args, &current)?;
    // A signal that is there already is handled first. One that comes later waits: else a program whose timer is faster than its fork
    // would never get to the end of one.
    if current.signal_pending() {
        return Err(Errno::ERESTARTNOINTR);
    }
    let heard = current.process.heard.numbers();
    let traced = ptrace::clone_event(&current, &args);
    let child =
        make_with_room(&args, frame, &current).inspect_err(|_| drop(broadcast::hear(&current.process, 0)))?;
    if traced.inherits {
        ptrace::prepare(child.thread())?;
    }
    let pidfd = if args.flags & PIDFD != 0 { Some(child.make_pidfd(args.pidfd)?) } else { None };
    let thread = child.link(&args, &current, traced.inherits, heard).inspect_err(|_| {
        // The call is made again, and opens another.
        if let Some((fd, file)) = &pidfd {
            current.files().close_file(*fd, file);
        }
    })?;
    let tid = thread.tid();
    let number = if current.process.numbers.is_none() { tid } else { View::current().thread(&thread) };
    if args.flags & PARENT_SETTID != 0 {
        // As Linux: the child exists whether this succeeds or not.
        let _ = uaccess::write_user(args.parent_tid, &(number as i32));
    }
    let process = thread.process.clone();
    sched::start(&thread);
    drop(thread);
    traced.tell(frame, tid);
    if args.flags & VFORK != 0 {
        // A signal that kills the parent ends the wait; others wait until the child has let go.
        cgroup::freezer::rest(&current);
        let _ = process
            .vfork_wait
            .wait_killable(None, || process.vfork_released.load(Ordering::SeqCst).then_some(()));
        cgroup::freezer::go_on_at_once(&current);
        ptrace::vfork_done(frame, tid);
    }
    Ok(number)
}

/// Makes the thread; looks for memory where it is short.
///
/// As Linux: a thread or a process is made of many small things, and somebody who uses much more is killed before one
/// of them cannot be had.
fn make_with_room(args: &CloneArgs, frame: &TrapFrame, current: &Thread) -> Result<Child> {
    loop {
        let asked = oom::moment();
        let made = Child::make(args, frame, current);
        let is_short = matches!(made, Err(Errno::ENOMEM)) && memory::pressure() == Pressure::Critical;
        if !is_short || current.kill_pending() || oom::out_of_memory(asked, 0) == Found::Nothing {
            return made;
        }
    }
}

/// A thread that is made, but not in the tree yet. Dropped, it gives back its number.
struct Child {
    thread: Option<Arc<Thread>>,
    new_process: bool,
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(thread) = &self.thread else { return };
        thread.process.cgroup.remove_task();
        tree::lock().free_pid(thread.tid());
        // Another thread may have a descriptor of it (see `make_pidfd`). It keeps nothing but what never was.
        if let Some(numbers) = thread.numbers() {
            numbers.give_back();
        }
        thread.set_charge(None);
        thread.forget_parts();
        if self.new_process {
            drop(thread.process.replace_mm(None));
        }
    }
}

/// The number of a thread that is being made.
struct PidReservation(Option<Pid>);

impl PidReservation {
    fn take(mut self) -> Pid {
        self.0.take().expect("taken once")
    }
}

impl Drop for PidReservation {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            tree::lock().free_pid(pid);
        }
    }
}

impl Child {
    fn make(args: &CloneArgs, frame: &TrapFrame, current: &Thread) -> Result<Self> {
        let has = |flag: u64| args.flags & flag != 0;
        let parent = &current.process;
        let credentials = current.credentials();
        let charge = super::list::charge(&credentials, parent)?;
        let stack = KernelStack::new().ok_or(Errno::ENOMEM)?;
        let mm = parent.mm().ok_or(Errno::ENOMEM)?;
        let mm = if has(VM) { mm } else { mm.fork()? };
        let files = current.files();
        let files = if has(FILES) { files } else { Arc::new(files.duplicate()?) };
        let fs = current.fs();
        let fs = if has(FS) { fs } else { Arc::new(fs.duplicate()) };
        let (new_credentials, namespaces) = namespaces::for_child(args.flags as u32, current, &fs)?;
        let credentials = new_credentials.map_or(credentials, Arc::new);
        let pid_namespace = match &namespaces {
            Some(namespaces) => &namespaces.pid_for_children,
            None => PidNamespace::initial(),
        };
        pid_namespace.check_wanted(&args.set_tid)?;
        let wanted = args.set_tid.get(pid_namespace.level as usize);
        let pid = PidReservation(Some(match wanted {
            None => tree::lock().allocate_pid()?,
            Some(wanted) => tree::lock().allocate_this_pid(*wanted as Pid)?,
        }));
        let new_process = !has(THREAD);
        let global = pid.0.expect("just reserved");
        let numbers = Numbers::take(pid_namespace, global, &args.set_tid)?;
        let own_number = numbers.as_ref().map_or(global, |numbers| numbers.own());
        let process = if new_process {
            let actions = parent.actions.lock().clone();
            let actions = if has(SIGHAND) { actions } else { actions.duplicate() };
            if has(CLEAR_SIGHAND) {
                actions.clear_handlers();
            }
            let limits = *parent.limits.lock();
            Process::new(process::Parts {
                pid: global,
                numbers: numbers.clone(),
                relations: tree::Relations::new(args.exit_signal),
                mm: Some(mm.clone()),
                actions,
                limits,
                uid: credentials.uid,
                oom_score_adj: parent.oom_score_adj.load(Ordering::SeqCst),
                oom_score_adj_min: parent.oom_score_adj_min.load(Ordering::SeqCst),
                personality: parent.personality.load(Ordering::SeqCst),
                dump_filter: parent.dump_filter.load(Ordering::SeqCst),
                dumpable: parent.dumpable.load(Ordering::SeqCst),
                has_execed: false,
            })
        } else {
            parent.clone()
        };
        if new_process {
            // Relaxed: nobody else knows it yet.
            process.refused_gains.store(parent.inherited_refusals(), Ordering::Relaxed);
            process.membarrier.store(parent.membarrier.load(Ordering::SeqCst), Ordering::Relaxed);
            process.made_by.store(current.tid(), Ordering::Relaxed);
        }
        let mut registers = Context::current_user_registers();
        if has(SETTLS) {
            if args.tls >= crate::memory::USER_END {
                return Err(Errno::EPERM);
            }
            registers.fs_base = args.tls;
        }
        let mut child_frame = *frame;
        child_frame.rax = 0;
        child_frame.forget_syscall();
        if args.stack != 0 {
            child_frame.rsp = args.stack;
        }
        let context = Context::user(stack.top(), &child_frame, registers, spawn::user_entry, 0);
        // A thread, and a child on its parent's memory, does not inherit the stack that the parent's handlers use.
        let alt_stack =
            if has(VM) && !has(VFORK) { AltStack::DISABLED } else { *current.signals.alt_stack.lock() };
        // The last step that can fail: from here on it is given back with the child.
        match new_process {
            true => process.cgroup.begin(parent, &args.cgroup)?,
            false => process.cgroup.add_task()?,
        }
        let tid = pid.take();
        let child_tid = args.child_tid;
        let set_child_tid = has(CHILD_SETTID);
        let thread = Thread::new(Parts {
            tid,
            numbers: if new_process { None } else { numbers },
            namespaces,
            process,
            sched: Entity::new(inherited(current), current.sched.affinity(), cpu::id()),
            context,
            stack: Some(stack),
            address_space: Some(mm),
            files: Some(files),
            fs: Some(fs),
            credentials,
            comm: current.comm(),
            signals: ThreadSignals::new(current.signals.mask(), alt_stack),
            charge,
            semaphore_undo: has(SYSVSEM).then(|| current.undo_list()),
            start: set_child_tid.then(|| -> Box<dyn FnOnce() + Send> {
                Box::new(move || {
                    // As Linux: a bad address is the child's problem.
                    let _ = uaccess::write_user(child_tid, &(own_number as i32));
                })
            }),
        });
        if has(CHILD_CLEARTID) {
            thread.clear_child_tid.store(args.child_tid, Ordering::SeqCst);
        }
        // Relaxed: a value of its own.
        thread.io_priority.store(current.io_priority.load(Ordering::Relaxed), Ordering::Relaxed);
        thread.memory_policy.set(current.memory_policy.get());
        // A thread registers its own area; a forked child keeps the one in its copy of the memory.
        if !has(VM) {
            super::rseq::inherit(current, &thread);
        }
        Ok(Self { thread: Some(thread), new_process })
    }

    fn thread(&self) -> &Arc<Thread> {
        self.thread.as_ref().expect("not linked yet")
    }

    /// The descriptor by which the parent knows the child: CLONE_PIDFD.
    ///
    /// Other threads may use it at once. Until the child is linked it is that of a process that is gone, and stays so if there is no child;
    /// and it is closed again only where it is still what the number stands for.
    fn make_pidfd(&self, address: usize) -> Result<(i32, Arc<File>)> {
        let flags = if self.new_process { 0 } else { super::pidfd::THREAD };
        let file = super::pidfd::make(self.thread(), flags);
        let fd = super::pidfd::install(&file)?;
        match uaccess::write_user(address, &fd) {
            Ok(()) => Ok((fd, file)),
            Err(error) => {
                super::current().files().close_file(fd, &file);
                Err(error)
            }
        }
    }

    /// Makes the child known: from here on it gets signals.
    fn link(
        mut self,
        args: &CloneArgs,
        current: &Thread,
        traced: bool,
        heard: [u64; 3],
    ) -> Result<Arc<Thread>> {
        let thread = self.thread().clone();
        let process = &thread.process;
        let parent = &current.process;
        let mut tree = broadcast::hear(parent, SENDS);
        signal::group::hear(&mut tree, parent);
        if self.new_process && cgroup::is_being_killed(&tree, parent) {
            drop(tree);
            signal::send_process(parent, SigInfo::kernel(signal::SIGKILL));
            return Err(Errno::ERESTARTNOINTR);
        }
        // A signal to many, or one that kills, that came before the child was there must not miss it: the parent handles it first and
        // then makes the call again. One that is for the parent alone waits.
        let to_many = parent.heard.numbers() != heard;
        if current.kill_pending() || to_many && current.signal_pending() {
            drop(tree);
            return Err(Errno::ERESTARTNOINTR);
        }
        // The namespace's first process is ending, and has perhaps looked for others already.
        if thread.numbers().is_some_and(|numbers| numbers.are_closed()) {
            drop(tree);
            return Err(Errno::ENOMEM);
        }
        let changed = match self.new_process {
            true => match args.cgroup {
                // The parent was moved meanwhile, and its group perhaps removed: the call is made again.
                cgroup::Into::Parent if !cgroup::are_together(process, parent) => {
                    return Err(Errno::ERESTARTNOINTR);
                }
                _ => cgroup::enter(&mut tree, process)?,
            },
            false => cgroup::Changed::default(),
        };
        // Here, since another thread may have changed them for all threads of the process.
        seccomp::inherit(&thread, current);
        thread.no_new_privileges.store(current.no_new_privileges.load(Ordering::SeqCst), Ordering::SeqCst);
        tree.insert_thread(&thread);
        cgroup::freezer::join(&tree, process, &thread);
        let relations = process.relations.get_mut(&mut tree);
        relations.add_thread(&thread);
        // A thread of the process makes the call, so that the number cannot have come to 0. Relaxed: see `leave_memory`.
        process.running.fetch_add(1, Ordering::Relaxed);
        let mut removed = (None, None);
        // Relaxed: under the tree's lock.
        let exec_id_of_parent = match args.flags & PARENT != 0 {
            true => parent.exec_id_of_parent.load(Ordering::Relaxed),
            false => parent.exec_id.load(Ordering::Relaxed),
        };
        if self.new_process {
            relations.leader = Some(thread.clone());
            process.heard.inherit(&parent.heard);
            // Relaxed: nobody else knows of the child yet.
            process.membarrier.store(parent.membarrier.load(Ordering::SeqCst), Ordering::Relaxed);
            process.exec_id_of_parent.store(exec_id_of_parent, Ordering::Relaxed);
            process.adoption.inherit(&parent.adoption, args.flags & PARENT != 0);
            if let Some(numbers) = process.numbers.as_ref().filter(|numbers| numbers.own() == 1) {
                numbers.namespace().begin(&mut tree, process);
            }
            let siblings_parent = if args.flags & PARENT != 0 {
                process::parent_of(parent, &tree)
            } else {
                Some(parent.clone())
            };
            if let Some(siblings_parent) = siblings_parent {
                removed.0 = Some(tree.adopt(&siblings_parent, process));
            }
            if args.flags & PARENT != 0 {
                let signal = parent.relations.get(&tree).exit_signal;
                process.relations.get_mut(&mut tree).exit_signal = signal;
            }
            if let Some(group) = parent.relations.get(&tree).group.clone() {
                removed.1 = Some(tree.join_group(process, &group));
            }
        } else {
            signal::join_stop(process, &thread);
        }
        if traced {
            ptrace::inherit(&mut tree, current, &thread);
        }
        drop(tree);
        drop(removed);
        changed.tell();
        self.thread = None;
        super::list::note_fork();
        Ok(thread)
    }
}

fn inherited(current: &Thread) -> Parameters {
    let parameters = current.sched.parameters();
    if !parameters.reset_on_fork {
        return parameters;
    }
    let realtime = parameters.policy.is_realtime();
    Parameters {
        policy: if realtime { Policy::Other } else { parameters.policy },
        nice: if realtime { 0 } else { parameters.nice.max(0) },
        priority: 0,
        reset_on_fork: false,
    }
}

/// Checks RLIMIT_NPROC again: execve(2) fails for a user who had too many processes at a setuid(2) and still has.
pub(super) fn over_process_limit(thread: &Thread) -> bool {
    // Relaxed: a flag of its own, here and below.
    let marked = &thread.process.over_process_limit;
    let over = marked.load(Ordering::Relaxed) && has_too_many(thread);
    if !over {
        marked.store(false, Ordering::Relaxed);
    }
    over
}

/// Whether the user of the thread has more threads than the process may have.
pub(super) fn has_too_many(thread: &Thread) -> bool {
    let credentials = thread.credentials();
    let limit = thread.process.limit(limits::NPROC);
    accounts::count(credentials.uid, Counted::Threads) as u64 > limit && !super::list::exempt(&credentials)
}
