//! Signals to many: kill(2) of a process group, or of all processes.
//!
//! Such a signal reaches all that it means as if at one instant, and the tree's lock is held for one of them at a time. It is fork(2) that
//! could tell the difference. So a call is put up where all see it, with a number, and each process knows the last number that it has heard. A
//! child has heard what its parent has. A process that is meant and has not heard makes no child: it gets the signal first ([`hear`]), and
//! mostly ends by it. So those who are yet to hear never become more, and not even a fork bomb escapes, however slowly the caller gets on. And it
//! gets on slowly where thousands try to fork, at a limit, and leave it a thousandth of a CPU: so who fails to fork hears, too.
//!
//! Who enters a group or a namespace later was not there when the call began, and may hear or not.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::groups::Sending;
use super::tree::{self, Group, Guard, Look, TreeCell};
use super::{Pid, Process};
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::sched;
use crate::signal;
use crate::sync::WaitQueue;

/// Where a call is put up.
pub(super) struct Board {
    /// One call at a time: somebody makes one, and who waits for that to end.
    taken: AtomicBool,
    free: WaitQueue,
    call: TreeCell<Option<Arc<Call>>>,
}

/// The numbers of the last calls that a process has heard, of its group and of all. Changed under the tree's lock.
pub(crate) struct Heard {
    in_group: AtomicU64,
    of_all: AtomicU64,
    /// And of the kernel's own signals to its group: [`crate::signal::group`].
    of_kernel: AtomicU64,
}

/// A signal on its way to many.
pub(crate) struct Call {
    number: u64,
    sending: Sending,
    /// `None`: all that are seen from there, but for the caller and the first process.
    group: Option<Arc<Group>>,
    view: View,
    result: TreeCell<Result<()>>,
}

/// The calls of all, whatever PID namespace they are for.
static ALL: Board = Board::new();

impl Board {
    pub const fn new() -> Self {
        Self { taken: AtomicBool::new(false), free: WaitQueue::new(), call: TreeCell::new(None) }
    }

    /// Waits for its turn, for which many may wait. A kill ends the wait: `EINTR`.
    fn turn(&self) -> Result<Turn<'_>> {
        let take = || (!self.taken.swap(true, Ordering::SeqCst)).then_some(());
        self.free.wait_killable(None, take).map_err(|_| Errno::EINTR)?;
        Ok(Turn(self))
    }

    /// Puts the call up while `reach_all` runs.
    fn call(&self, call: &Arc<Call>, reach_all: impl FnOnce()) -> Result<()> {
        let put = self.call.get_mut(&mut tree::lock()).replace(call.clone());
        debug_assert!(put.is_none(), "two calls at once");
        reach_all();
        let mut tree = tree::lock();
        let taken = self.call.get_mut(&mut tree).take();
        let result = *call.result.get(&tree);
        drop(tree);
        drop(taken);
        result
    }
}

/// A turn at a board.
struct Turn<'a>(&'a Board);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::SeqCst);
        self.0.free.wake_one();
    }
}

impl Heard {
    pub const fn new() -> Self {
        Self { in_group: AtomicU64::new(0), of_all: AtomicU64::new(0), of_kernel: AtomicU64::new(0) }
    }

    /// A child has heard what its parent has.
    pub fn inherit(&self, parent: &Self) {
        // Relaxed, here and below: under the tree's lock.
        self.in_group.store(parent.in_group.load(Ordering::Relaxed), Ordering::Relaxed);
        self.of_all.store(parent.of_all.load(Ordering::Relaxed), Ordering::Relaxed);
        self.set_of_kernel(parent.of_kernel());
    }

    /// All three: they change when a signal to many has reached the process.
    pub fn numbers(&self) -> [u64; 3] {
        [&self.in_group, &self.of_all, &self.of_kernel].map(|number| number.load(Ordering::Relaxed))
    }

    pub fn of_kernel(&self) -> u64 {
        self.of_kernel.load(Ordering::Relaxed)
    }

    pub fn set_of_kernel(&self, number: u64) {
        self.of_kernel.store(number, Ordering::Relaxed);
    }
}

impl Call {
    fn new(sending: Sending, group: Option<Arc<Group>>, view: View) -> Arc<Self> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        // Relaxed: each call has another one, and that is all.
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Self { number, sending, group, view, result: TreeCell::new(Err(Errno::ESRCH)) })
    }

    fn heard<'a>(&self, process: &'a Process) -> &'a AtomicU64 {
        if self.group.is_some() { &process.heard.in_group } else { &process.heard.of_all }
    }

    fn is_news_to(&self, process: &Process) -> bool {
        self.heard(process).load(Ordering::Relaxed) < self.number
    }

    fn means(&self, process: &Process) -> bool {
        self.group.is_some()
            || self.view.process(process) > 1 && !core::ptr::eq(Arc::as_ptr(&self.sending.own), process)
    }

    /// Sends the signal to one that is meant, unless that was done.
    pub fn reach(&self, process: &Arc<Process>) {
        // What it takes is allocated and freed without the lock.
        let queued = self.sending.prepare(process);
        let mut tree = tree::lock_to_send(signal::group::MOST_FOR_ONE + self.sending.causes());
        let mut left = None;
        if self.is_news_to(process) {
            self.heard(process).store(self.number, Ordering::Relaxed);
            let sent = self.sending.to(&mut tree, process, queued);
            let result = self.result.get_mut(&mut tree);
            if result.is_err() {
                *result = sent.as_ref().map(|_| ()).map_err(|error| *error);
            }
            left = Some(sent);
        }
        if let Some(group) = &self.group {
            // Who moves has heard all: the kernel's own signals, too.
            if process.is_in_group(&tree, group) {
                signal::group::hear(&mut tree, process);
            }
            tree::to_back(&mut tree, group, process);
        }
        drop(tree);
        drop(left);
    }
}

/// A call that the process is to hear before it makes a child.
fn unheard(tree: &Look, process: &Process) -> Option<Arc<Call>> {
    let of_all = || ALL.call.get(tree).clone().filter(|call| call.is_news_to(process) && call.means(process));
    unheard_in_group(tree, process).or_else(of_all)
}

/// Takes the tree's lock when there is no call that the process is yet to hear.
pub(super) fn hear(process: &Arc<Process>, sends: usize) -> Guard {
    loop {
        let tree = tree::lock_to_send(sends);
        let Some(call) = unheard(&tree, process) else { return tree };
        drop(tree);
        call.reach(process);
    }
}

/// A call to its group that the process is yet to hear.
pub(crate) fn unheard_in_group(tree: &Look, process: &Process) -> Option<Arc<Call>> {
    let group = process.relations.get(tree).group.as_ref()?;
    group.board.call.get(tree).clone().filter(|call| call.is_news_to(process))
}

/// Sends to all members of a group.
pub(super) fn to_group(pgid: Pid, sending: Sending) -> Result<()> {
    let group = tree::look().group(pgid).ok_or(Errno::ESRCH)?;
    let _turn = group.board.turn()?;
    let call = Call::new(sending, Some(group.clone()), View::default());
    group.board.call(&call, || {
        // Who has heard is moved behind all others: the first one that has is the end.
        let next = || {
            let tree = tree::look();
            tree::first_member(&tree, &group).filter(|first| call.is_news_to(first))
        };
        while let Some(process) = next() {
            call.reach(&process);
            sched::cond_resched();
        }
        // As Linux: who has ended counts, though it hears nothing.
        let ended = group.ended.get(&tree::look()).front().clone_pointer();
        if let Some(ended) = ended {
            call.reach(&ended);
        }
    })
}

/// Sends to all that are seen, but for the caller and the first process.
pub(super) fn to_all(view: View, sending: Sending) -> Result<()> {
    let _turn = ALL.turn()?;
    let call = Call::new(sending, None, view);
    ALL.call(&call, || {
        let mut next = 2;
        while let Some((number, process)) = call.view.process_from(next) {
            next = number + 1;
            if call.means(&process) {
                call.reach(&process);
            }
            drop(process);
            sched::cond_resched();
        }
    })
}
