//! A process: what its threads share.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{Bound, LinkedListAtomicLink, RBTreeAtomicLink};
use smallvec::SmallVec;

use super::broadcast::Heard;
use super::limits::{self, Limits};
use super::subreaper::Adoption;
use super::tree::{self, Relations, TreeCell};
use super::{Charges, Credentials, Pid, Thread, orphans};
use crate::cgroup::Member;
use crate::errno::Result;
use crate::fs::FsContext;
use crate::mm::AddressSpace;
use crate::namespaces::{Numbers, PidNamespace};
use crate::sched;
use crate::signal::{self, Actions, ProcessSignals};
use crate::sync::{IrqLock, Mutex, SpinLock, WaitQueue};
use crate::time::process_timers::ProcessTimers;

/// One process, alive or a zombie.
pub struct Process {
    pub pid: Pid,
    /// Its numbers in PID namespaces below the first, if it is in one.
    pub numbers: Option<Arc<Numbers>>,
    /// Parent, children, threads, group: guarded by the tree's lock.
    pub(super) relations: TreeCell<Relations>,
    pub(super) sibling: LinkedListAtomicLink,
    pub(super) in_group: LinkedListAtomicLink,
    pub(crate) heard: Heard,
    /// What it counts for in its group.
    pub(super) job: orphans::Part,
    /// Its control group, and its place among the members.
    pub(crate) cgroup: Member,
    pub(crate) in_cgroup: RBTreeAtomicLink,
    /// Its threads are being told something.
    pub(crate) in_telling: LinkedListAtomicLink,
    mm: SpinLock<Option<Arc<AddressSpace>>>,
    /// Where clone(CLONE_SIGHAND) shares, hence behind a lock of its own: execve(2) puts a copy there.
    pub(crate) actions: IrqLock<Arc<Actions>>,
    pub(crate) signals: ProcessSignals,
    /// Held while a thread gets a filter of system calls, for itself or for all threads.
    pub(crate) filter_changes: Mutex<()>,
    pub(crate) limits: IrqLock<Limits>,
    pub(crate) timers: ProcessTimers,
    /// Contexts of io_setup(2).
    pub(crate) aio: crate::fs::aio::Contexts,
    /// Timers, signals that wait, adjustments of semaphores.
    pub(crate) charges: Charges,
    /// Woken when a child changes state.
    pub(super) child_events: WaitQueue,
    /// Woken when the process itself ends: pidfds poll it.
    pub(crate) ended: WaitQueue,
    /// Woken when a thread ends, for execve(2).
    pub(super) thread_ended: WaitQueue,
    /// Woken when a signal is posted to the process or one of its threads: signalfds poll it.
    pub(crate) signals_changed: WaitQueue,
    /// A vfork(2) parent waits here until `vfork_released`.
    pub(super) vfork_wait: WaitQueue,
    pub(super) vfork_released: AtomicBool,
    /// Threads that have not let go of the memory. Those that have are on their way out and make no calls any more.
    pub(super) running: AtomicUsize,
    pub(crate) totals: Totals,
    pub(crate) io: Io,
    /// The real user of the thread that changed it last.
    pub(crate) uid: AtomicU32,
    pub(crate) dumpable: AtomicU32,
    /// -1000 to 1000, as /proc/PID/oom_score_adj has it.
    pub(crate) oom_score_adj: AtomicI32,
    /// What somebody with the right to lower it has set last: others may go so far.
    pub(crate) oom_score_adj_min: AtomicI32,
    /// Somebody has waited for its memory after it was killed.
    pub(super) oom_waited: AtomicBool,
    pub(super) adoption: Adoption,
    /// The registrations of membarrier(2).
    pub(crate) membarrier: AtomicU32,
    pub(super) has_execed: AtomicBool,
    /// The user had too many processes when it was changed last: execve(2) looks again.
    pub(super) over_process_limit: AtomicBool,
    /// The out-of-memory killer has killed it: nothing holds up its end.
    pub(crate) oom_killed: AtomicBool,
    /// How many programs it has executed, and how many its parent had when it was made: a child of an earlier program ends with SIGCHLD.
    pub(super) exec_id: AtomicU32,
    pub(super) exec_id_of_parent: AtomicU32,
    pub(crate) personality: AtomicU32,
    /// Which memory a core dump would have: `/proc/PID/coredump_filter`.
    pub(crate) dump_filter: AtomicU32,
    /// What its memory is never to gain: prctl(PR_SET_MDWE).
    pub(crate) refused_gains: AtomicU32,
    /// The thread that has made it: PTRACE_TRACEME is about that one, and `/proc/PID/task/TID/children` is its list.
    pub(crate) made_by: AtomicU32,
    /// Monotonic nanoseconds.
    pub(crate) started_at: u64,
}

/// Threads that are looked at in one hold of the tree's lock, where all of a process's are wanted.
pub(super) const THREADS_IN_A_HOLD: usize = 16;

/// Sums over threads and children that have ended, and over ticks; in nanoseconds where they are times.
#[derive(Default)]
pub struct Totals {
    pub ended_user: AtomicU64,
    pub ended_system: AtomicU64,
    pub ended_minor_faults: AtomicU64,
    pub ended_major_faults: AtomicU64,
    pub ended_voluntary: AtomicU64,
    pub ended_involuntary: AtomicU64,
    pub children_user: AtomicU64,
    pub children_system: AtomicU64,
    pub children_minor_faults: AtomicU64,
    pub children_major_faults: AtomicU64,
    pub children_voluntary: AtomicU64,
    pub children_involuntary: AtomicU64,
    /// Largest resident set so far, of this process and of the children waited for, in KiB.
    pub max_rss: AtomicU64,
    pub children_max_rss: AtomicU64,
}

/// What a process has read and written: `/proc/PID/io`.
#[derive(Default)]
pub struct Io {
    pub read_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
}

/// How a process ended, or what else its parent is told: a wait(2) status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStatus {
    Exited(u8),
    Killed {
        signal: u8,
        core: bool,
    },
    Stopped(u8),
    /// A tracee's stop, for its tracer: a signal, and an event 8 bits above.
    Traced(u32),
    Continued,
}

impl WaitStatus {
    /// As wait4(2) writes it.
    pub fn to_bits(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code) << 8,
            Self::Killed { signal, core } => i32::from(signal) | if core { 0x80 } else { 0 },
            Self::Stopped(signal) => i32::from(signal) << 8 | 0x7f,
            Self::Traced(code) => (code << 8) as i32 | 0x7f,
            Self::Continued => 0xffff,
        }
    }

    /// `si_code` and `si_status` of the SIGCHLD that tells of it.
    pub fn to_siginfo(self) -> (i32, i32) {
        const CLD_EXITED: i32 = 1;
        const CLD_KILLED: i32 = 2;
        const CLD_DUMPED: i32 = 3;
        const CLD_TRAPPED: i32 = 4;
        const CLD_STOPPED: i32 = 5;
        const CLD_CONTINUED: i32 = 6;
        match self {
            Self::Exited(code) => (CLD_EXITED, i32::from(code)),
            Self::Killed { signal, core } => (if core { CLD_DUMPED } else { CLD_KILLED }, i32::from(signal)),
            Self::Stopped(signal) => (CLD_STOPPED, i32::from(signal)),
            Self::Traced(code) => (CLD_TRAPPED, code as i32),
            Self::Continued => (CLD_CONTINUED, signal::SIGCONT as i32),
        }
    }
}

/// What a new process starts with.
pub(super) struct Parts {
    pub pid: Pid,
    pub numbers: Option<Arc<Numbers>>,
    pub relations: Relations,
    pub mm: Option<Arc<AddressSpace>>,
    pub actions: Arc<Actions>,
    pub limits: Limits,
    pub uid: u32,
    pub oom_score_adj: i32,
    pub oom_score_adj_min: i32,
    pub personality: u32,
    pub dump_filter: u32,
    pub dumpable: u32,
    pub has_execed: bool,
}

impl Process {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            pid: parts.pid,
            numbers: parts.numbers,
            relations: TreeCell::new(parts.relations),
            sibling: LinkedListAtomicLink::new(),
            in_group: LinkedListAtomicLink::new(),
            heard: Heard::new(),
            job: orphans::Part::default(),
            cgroup: Member::new(),
            in_cgroup: RBTreeAtomicLink::new(),
            in_telling: LinkedListAtomicLink::new(),
            mm: SpinLock::new(parts.mm),
            actions: IrqLock::new(parts.actions),
            signals: ProcessSignals::new(),
            filter_changes: Mutex::new(()),
            limits: IrqLock::new(parts.limits),
            timers: ProcessTimers::new(this.clone(), parts.limits.of(limits::CPU)),
            aio: crate::fs::aio::Contexts::new(),
            charges: Charges::new(),
            child_events: WaitQueue::new(),
            ended: WaitQueue::new(),
            thread_ended: WaitQueue::new(),
            signals_changed: WaitQueue::new(),
            vfork_wait: WaitQueue::new(),
            vfork_released: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            totals: Totals::default(),
            io: Io::default(),
            uid: AtomicU32::new(parts.uid),
            dumpable: AtomicU32::new(parts.dumpable),
            oom_score_adj: AtomicI32::new(parts.oom_score_adj),
            oom_score_adj_min: AtomicI32::new(parts.oom_score_adj_min),
            oom_waited: AtomicBool::new(false),
            adoption: Adoption::new(),
            membarrier: AtomicU32::new(0),
            has_execed: AtomicBool::new(parts.has_execed),
            over_process_limit: AtomicBool::new(false),
            oom_killed: AtomicBool::new(false),
            exec_id: AtomicU32::new(0),
            exec_id_of_parent: AtomicU32::new(0),
            personality: AtomicU32::new(parts.personality),
            dump_filter: AtomicU32::new(parts.dump_filter),
            refused_gains: AtomicU32::new(0),
            made_by: AtomicU32::new(0),
            started_at: crate::time::now(),
        })
    }

    /// The address space; `None` for kernel threads and once the process has let go of it.
    pub fn mm(&self) -> Option<Arc<AddressSpace>> {
        self.mm.lock().clone()
    }

    /// Whether it has an address space. Takes no reference to it: the last one may be dropped only where the thread may sleep.
    pub fn has_memory(&self) -> bool {
        self.mm.lock().is_some()
    }

    /// The address space, if `judge` finds nothing against it. What decides that ([`Process::is_dumpable`], [`Process::credentials`]) is
    /// asked while the process has that very memory: execve(2) changes all of it in one step ([`Process::replace_program`]).
    ///
    /// Race: execve(2) comes between. The verdict is about another program than the memory then, and both are asked for again.
    pub fn mm_if(&self, judge: impl Fn() -> Result<()>) -> Result<Option<Arc<AddressSpace>>> {
        loop {
            // Held until the second look: no other address space is taken for it.
            let mm = self.mm();
            judge()?;
            if self.mm.lock().as_ref().map(Arc::as_ptr) == mm.as_ref().map(Arc::as_ptr) {
                return Ok(mm);
            }
        }
    }

    /// Puts another address space in place; the old one is returned, so that it is dropped without a lock.
    pub(super) fn replace_mm(&self, mm: Option<Arc<AddressSpace>>) -> Option<Arc<AddressSpace>> {
        core::mem::replace(&mut *self.mm.lock(), mm)
    }

    /// execve(2) of `thread`: another address space, and with it what says who may look into it. The old memory is returned.
    pub(super) fn replace_program(
        &self,
        thread: &Thread,
        mm: Arc<AddressSpace>,
        dumpable: bool,
    ) -> Option<Arc<AddressSpace>> {
        let credentials = Arc::new(thread.credentials().after_exec());
        let mut place = self.mm.lock();
        let old_credentials = thread.replace_credentials(credentials);
        self.dumpable.store(u32::from(dumpable), Ordering::SeqCst);
        let old = place.replace(mm);
        drop(place);
        drop(old_credentials);
        old
    }

    /// The number that it has in its own PID namespace.
    pub fn number(&self) -> Pid {
        self.numbers.as_ref().map_or(self.pid, |numbers| numbers.own())
    }

    /// The PID namespace that it is in.
    pub fn pid_namespace(&self) -> Arc<PidNamespace> {
        self.numbers
            .as_ref()
            .map_or_else(|| PidNamespace::initial().clone(), |numbers| numbers.namespace().clone())
    }

    /// Is it the first process of its PID namespace? Nobody in there can end it.
    pub fn is_init(&self) -> bool {
        self.number() == 1
    }

    /// The thread to ask for what belongs to threads: the current one if it is of this process, else the first that lives.
    fn representative(&self) -> Option<Arc<Thread>> {
        if let Some(current) = super::try_current()
            && core::ptr::eq(Arc::as_ptr(&current.process), self)
        {
            return Some(current.to_arc());
        }
        let tree = tree::look();
        let relations = self.relations.get(&tree);
        relations.threads.front().clone_pointer().or_else(|| relations.leader.clone())
    }

    /// The process's first thread: it stays, if only as a husk, until the process has been waited for.
    pub fn leader(&self) -> Option<Arc<Thread>> {
        self.relations.get(&tree::look()).leader.clone()
    }

    /// Root, working directory, umask; `None` when the process has ended.
    pub fn fs(&self) -> Option<Arc<FsContext>> {
        self.representative()?.try_fs()
    }

    /// The user and groups that the process acts as.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.representative().map_or_else(Credentials::root, |thread| thread.credentials())
    }

    /// The name of its first thread, with zero bytes at the end.
    pub fn comm(&self) -> [u8; 16] {
        self.leader().map_or([0; 16], |thread| thread.comm())
    }

    /// User and system time of all threads, those that have ended included, in nanoseconds.
    pub fn cpu_times(&self) -> (u64, u64) {
        let ended = (&self.totals.ended_user, &self.totals.ended_system);
        self.sum(ended, |thread| thread.sched.times())
    }

    /// Minor and major faults of all threads.
    pub fn faults(&self) -> (u64, u64) {
        // Relaxed: statistics.
        let of = |thread: &Thread| {
            (thread.minor_faults.load(Ordering::Relaxed), thread.major_faults.load(Ordering::Relaxed))
        };
        self.sum((&self.totals.ended_minor_faults, &self.totals.ended_major_faults), of)
    }

    /// Voluntary and involuntary switches of all threads.
    pub fn switches(&self) -> (u64, u64) {
        let ended = (&self.totals.ended_voluntary, &self.totals.ended_involuntary);
        self.sum(ended, |thread| thread.sched.switches())
    }

    /// A sum over the threads that live and those that have ended.
    ///
    /// The tree's lock is given back between a few and the next few. A thread that ends meanwhile would count twice, or not at all: then the
    /// sum is made anew. Where threads end all the time that is done a few times only; these are statistics.
    fn sum(&self, ended: (&AtomicU64, &AtomicU64), of: impl Fn(&Thread) -> (u64, u64)) -> (u64, u64) {
        const TRIES: usize = 4;
        let mut sum = (0, 0);
        for _ in 0..TRIES {
            let (mut last, mut gone) = (0, None);
            loop {
                let tree = tree::look();
                let relations = self.relations.get(&tree);
                // Relaxed: the tree's lock orders them with the removal of the thread.
                let so_far = || (ended.0.load(Ordering::Relaxed), ended.1.load(Ordering::Relaxed));
                let changed = *gone.get_or_insert_with(|| {
                    sum = so_far();
                    relations.gone
                }) != relations.gone;
                if changed {
                    break;
                }
                let mut left = THREADS_IN_A_HOLD;
                for thread in self.threads_after(&tree, last).take(THREADS_IN_A_HOLD) {
                    let (one, other) = of(thread);
                    sum = (sum.0 + one, sum.1 + other);
                    last = thread.order();
                    left -= 1;
                }
                drop(tree);
                if left > 0 {
                    return sum;
                }
                sched::cond_resched();
            }
        }
        sum
    }

    /// One of the limits of getrlimit(2): the soft value.
    pub fn limit(&self, resource: usize) -> u64 {
        self.limits.lock().soft(resource)
    }

    /// Whether the process has ended, waited for or not.
    pub fn has_ended(&self) -> bool {
        self.relations.get(&tree::look()).ended.is_some()
    }

    /// Whether it is to end: its threads are on their way out, or gone.
    pub fn is_ending(&self) -> bool {
        self.signals.state.lock().ending.is_some() || self.is_zombie()
    }

    /// What a child, or the next program, is refused as well.
    pub(super) fn inherited_refusals(&self) -> u32 {
        const NO_INHERIT: u32 = linux_raw_sys::prctl::PR_MDWE_NO_INHERIT;
        // Relaxed: a setting of its own.
        let refused = self.refused_gains.load(Ordering::Relaxed);
        if refused & NO_INHERIT == 0 { refused } else { 0 }
    }

    /// Whether the process has ended and waits to be waited for.
    pub fn is_zombie(&self) -> bool {
        self.relations.get(&tree::look()).ended.is_some()
    }

    /// The process group's number.
    pub fn pgid(&self) -> Pid {
        self.relations.get(&tree::look()).group.as_ref().map_or(0, |group| group.pgid)
    }

    /// Whether it is a member of the group, for those who hold the tree's lock.
    pub(crate) fn is_in_group(&self, tree: &tree::Look, group: &Arc<super::tree::Group>) -> bool {
        self.relations.get(tree).group.as_ref().is_some_and(|own| Arc::ptr_eq(own, group))
    }

    /// The process group, for those who hold the tree's lock.
    pub(crate) fn group_locked<'t>(&'t self, tree: &'t tree::Look) -> Option<&'t Arc<super::tree::Group>> {
        self.relations.get(tree).group.as_ref()
    }

    /// The process group.
    pub fn group(&self) -> Option<Arc<super::tree::Group>> {
        self.relations.get(&tree::look()).group.clone()
    }

    /// The session's number.
    pub fn sid(&self) -> Pid {
        self.session().map_or(0, |session| session.sid)
    }

    /// The session.
    pub fn session(&self) -> Option<Arc<super::Session>> {
        self.relations.get(&tree::look()).group.as_ref().map(|group| group.session.clone())
    }

    /// The live threads that came behind the one with this place, for those who hold the tree's lock.
    pub(crate) fn threads_after<'a>(
        &'a self,
        tree: &'a tree::Look,
        order: u64,
    ) -> impl Iterator<Item = &'a Thread> {
        self.relations.get(tree).threads.range(Bound::Excluded(&order), Bound::<&u64>::Unbounded)
    }

    /// The next few live threads behind the one with this place.
    pub(crate) fn some_threads_after(&self, order: u64) -> SmallVec<[Arc<Thread>; THREADS_IN_A_HOLD]> {
        let tree = tree::look();
        self.threads_after(&tree, order).take(THREADS_IN_A_HOLD).map(Thread::to_arc).collect()
    }

    /// The first live thread, in the order in which they came, that `is_wanted`. Without locks, and others run in between; threads that come
    /// meanwhile are asked, too.
    pub(crate) fn find_thread(&self, mut is_wanted: impl FnMut(&Thread) -> bool) -> Option<Arc<Thread>> {
        let mut last = 0;
        loop {
            let some = self.some_threads_after(last);
            last = some.last()?.order();
            if let Some(found) = some.iter().find(|thread| is_wanted(thread)) {
                return Some(found.clone());
            }
            drop(some);
            sched::cond_resched();
        }
    }

    /// Is the thread one of those that live?
    pub(crate) fn has_thread(&self, thread: &Thread) -> bool {
        let _tree = tree::look();
        thread.in_process.is_linked()
    }

    /// Shows each live thread, those that come meanwhile too, under the tree's lock: a few, and then others may run before the next few.
    pub(crate) fn each_thread(&self, mut visit: impl FnMut(&Thread)) {
        let mut last = 0;
        loop {
            let tree = tree::look();
            let mut left = THREADS_IN_A_HOLD;
            for thread in self.threads_after(&tree, last).take(THREADS_IN_A_HOLD) {
                visit(thread);
                last = thread.order();
                left -= 1;
            }
            drop(tree);
            if left > 0 {
                return;
            }
            sched::cond_resched();
        }
    }

    /// The live threads, for those who hold the tree's lock.
    pub(crate) fn threads_locked<'a>(&'a self, tree: &'a tree::Look) -> impl Iterator<Item = &'a Thread> {
        self.relations.get(tree).threads.iter()
    }

    /// How many threads live, for those who hold the tree's lock.
    pub(crate) fn count_locked(&self, tree: &tree::Look) -> usize {
        self.relations.get(tree).live
    }

    /// How the process ended, for those who hold the tree's lock.
    pub(crate) fn ended_locked(&self, tree: &tree::Look) -> Option<WaitStatus> {
        self.relations.get(tree).ended
    }

    /// The credentials of its first thread, for those who hold the tree's lock.
    pub(super) fn credentials_locked(&self, tree: &tree::Look) -> Arc<Credentials> {
        let leader = self.relations.get(tree).leader.as_ref();
        leader.map_or_else(Credentials::root, |leader| leader.credentials())
    }

    /// The parent, for those who hold the tree's lock.
    pub(crate) fn parent_locked<'t>(&'t self, tree: &'t tree::Look) -> Option<&'t Arc<Process>> {
        self.relations.get(tree).parent.as_ref()
    }

    /// Is `parent` its parent?
    pub(crate) fn is_child_of(&self, parent: &Process) -> bool {
        let tree = tree::look();
        self.parent_locked(&tree).is_some_and(|found| core::ptr::eq(Arc::as_ptr(found), parent))
    }

    /// A stop or continuation for the parent to wait for.
    pub(crate) fn set_news(&self, tree: &mut tree::Guard, news: WaitStatus) {
        self.relations.get_mut(tree).news = Some(news);
    }

    /// The user that signals about this process name, without the tree's lock.
    pub(crate) fn uid_for_signals(&self) -> u32 {
        self.uid.load(Ordering::SeqCst)
    }

    /// Whether no parent outside of the group could continue the process's group.
    pub(crate) fn group_is_orphaned(&self) -> bool {
        let tree = tree::look();
        self.group_locked(&tree).is_none_or(|group| super::orphans::is_orphaned(&tree, group))
    }

    /// prctl(PR_SET_DUMPABLE).
    pub(crate) fn is_dumpable(&self) -> bool {
        self.dumpable.load(Ordering::SeqCst) == 1
    }

    /// Remembers the largest resident set, before the memory goes.
    pub(super) fn note_resident(&self) {
        if let Some(mm) = self.mm() {
            self.totals.max_rss.fetch_max(mm.peak_resident() * 4, Ordering::SeqCst);
        }
    }

    /// How many threads live.
    pub fn thread_count(&self) -> usize {
        self.relations.get(&tree::look()).live
    }

    /// The letter of /proc/PID/stat.
    pub fn state(&self) -> char {
        if self.is_zombie() {
            return 'Z';
        }
        self.representative_for_state().map_or('Z', |thread| thread.state())
    }

    fn representative_for_state(&self) -> Option<Arc<Thread>> {
        let tree = tree::look();
        let relations = self.relations.get(&tree);
        relations
            .leader
            .clone()
            .filter(|leader| !leader.sched.is_dead())
            .or_else(|| relations.threads.front().clone_pointer())
    }

    /// Which signal tells the parent that the process has ended, 0 for none.
    pub fn exit_signal(&self) -> u32 {
        self.relations.get(&tree::look()).exit_signal
    }

    /// The status for wait(2), once the process has ended.
    pub fn wait_status(&self) -> Option<WaitStatus> {
        self.relations.get(&tree::look()).ended
    }
}

impl Thread {
    /// The letter of /proc/PID/task/TID/stat.
    pub fn state(&self) -> char {
        use crate::sched::Sleep;
        if self.sched.is_dead() {
            return 'Z';
        }
        if self.trace.is_stopped() {
            return 't';
        }
        match self.sched.sleeping() {
            None if signal::has_stopped(self) => 'T',
            None => 'R',
            Some(Sleep::Interruptible | Sleep::Frozen) => 'S',
            Some(Sleep::Stopped) => 'T',
            Some(Sleep::Uninterruptible | Sleep::Killable) => 'D',
        }
    }
}

/// A process's parent, for those who hold the tree's lock.
pub(super) fn parent_of(process: &Process, tree: &tree::Look) -> Option<Arc<Process>> {
    process.relations.get(tree).parent.clone()
}
