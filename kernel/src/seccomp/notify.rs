//! Calls that wait for another process to answer them: SECCOMP_RET_USER_NOTIF.
//!
//! A thread whose filter says so puts its call among the listener's and sleeps. Who has the listener's descriptor takes the call up, looks
//! at it, may put files into the thread's table, and answers. A call is in one of two maps, by its number: calls that wait,
//! and calls that were taken up. It leaves them by an answer, or when its thread gives up: at a signal, at its end.
//!
//! The listener's lock is taken before that of a call. None of them is held while anybody sleeps.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{Errno, Result};
use crate::fs::caller;
use crate::fs::file::File;
use crate::memory::fallible;
use crate::process::{self, Thread};
use crate::random;
use crate::sched;
use crate::sync::{Mutex, WaitQueue};

use super::bpf::Call;

/// What a filter and the descriptor share.
pub struct Listener {
    calls: Mutex<Calls>,
    /// Nobody is left who could make such a call.
    abandoned: AtomicBool,
    /// Signals do not interrupt a call that was taken up, unless they kill.
    killable: bool,
    /// Woken when a call comes or is taken up, and when nobody is left who could make one.
    changed: WaitQueue,
}

struct Calls {
    waiting: BTreeMap<u64, Arc<Waiting>>,
    taken: BTreeMap<u64, Arc<Waiting>>,
    next: u64,
    /// The descriptor is closed.
    closed: bool,
}

/// A call that waits for its answer.
pub struct Waiting {
    pub id: u64,
    pub thread: Arc<Thread>,
    pub call: Call,
    progress: Mutex<Progress>,
    /// The thread that made the call waits here.
    changed: WaitQueue,
}

#[derive(Default)]
struct Progress {
    taken: bool,
    answer: Option<Answer>,
    /// One of the files is the answer too.
    answering: bool,
    /// Files that the thread is to put into its table.
    files: VecDeque<Arc<Adding>>,
    /// The thread has given up.
    over: bool,
}

impl Progress {
    /// May it be answered?
    fn is_open(&self) -> bool {
        self.answer.is_none() && !self.answering
    }
}

/// What the call returns, if it is not made after all.
#[derive(Clone, Copy)]
pub enum Answer {
    Made,
    Returns(i64),
}

/// A file for the table of who made the call: SECCOMP_IOCTL_NOTIF_ADDFD.
pub struct Adding {
    file: Arc<File>,
    /// The descriptor that it is to have, whatever has it now.
    at: Option<i32>,
    close_on_exec: bool,
    /// Its descriptor is the answer too.
    answers: bool,
    result: Mutex<Option<Result<i32>>>,
    done: WaitQueue,
}

/// What a thread that waits has to do.
enum Next {
    Return(Answer),
    Add(Arc<Adding>),
    /// Whether signals interrupt it has changed.
    SleepAnew,
}

impl Listener {
    /// Of a new filter.
    pub fn new(killable: bool) -> Arc<Self> {
        // Numbers shall not be guessed from one filter to the next; half of them are left, so that none comes twice.
        let next = random::number() >> 1;
        let calls = Calls { waiting: BTreeMap::new(), taken: BTreeMap::new(), next, closed: false };
        Arc::new(Self {
            calls: Mutex::new(calls),
            abandoned: AtomicBool::new(false),
            killable,
            changed: WaitQueue::new(),
        })
    }

    /// Its descriptor is closed.
    pub fn is_closed(&self) -> bool {
        self.calls.lock().closed
    }

    /// Where its descriptor is polled.
    pub fn changed(&self) -> &WaitQueue {
        &self.changed
    }

    /// Nobody is left who could make a call.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// The last thread that had the filter is gone.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Are there calls that wait, and calls that were taken up?
    pub fn has_calls(&self) -> (bool, bool) {
        let calls = self.calls.lock();
        (!calls.waiting.is_empty(), calls.taken.values().any(|waiting| waiting.progress.lock().is_open()))
    }

    /// Puts a call of the current thread before the listener, and waits for the answer.
    pub fn ask(&self, call: &Call) -> Result<Answer> {
        let thread = process::current().to_arc();
        let waiting = {
            let mut calls = self.calls.lock();
            if calls.closed {
                return Err(Errno::ENOSYS);
            }
            let id = calls.next;
            calls.next += 1;
            let (progress, changed) = (Mutex::new(Progress::default()), WaitQueue::new());
            let waiting = Arc::new(Waiting { id, thread, call: *call, progress, changed });
            calls.waiting.insert(id, waiting.clone());
            waiting
        };
        self.changed.wake_one();
        let waited = self.wait(&waiting);
        // An answer that came after the wait has ended, and before the call was over, was accepted: it is the call's, signal or not.
        self.forget(&waiting).map_or(waited, Ok)
    }

    fn wait(&self, waiting: &Waiting) -> Result<Answer> {
        loop {
            let killable = self.killable && waiting.progress.lock().taken;
            let next = || waiting.next(self.killable && !killable);
            let next = if killable {
                waiting.changed.wait_killable(None, || waiting.next(false).or_else(|| waiting.given_back()))
            } else {
                waiting.changed.wait_event(None, next)
            };
            match next {
                Ok(Next::Return(answer)) => return Ok(answer),
                Ok(Next::Add(adding)) => waiting.add(&adding),
                Ok(Next::SleepAnew) => {}
                Err(_) => return Err(Errno::ERESTARTSYS),
            }
        }
    }

    /// The call is over for the listener, and so are files that were not put in place. Gives what it was answered.
    fn forget(&self, waiting: &Waiting) -> Option<Answer> {
        let mut calls = self.calls.lock();
        let was = [calls.waiting.remove(&waiting.id), calls.taken.remove(&waiting.id)];
        drop(calls);
        drop(was);
        let (answer, files) = {
            let mut progress = waiting.progress.lock();
            progress.over = true;
            (progress.answer, core::mem::take(&mut progress.files))
        };
        for adding in files {
            adding.finish(Err(Errno::ESRCH));
        }
        answer
    }

    /// Takes up the call that has waited longest.
    pub fn take_up(&self) -> Option<Arc<Waiting>> {
        let mut calls = self.calls.lock();
        let (id, waiting) = calls.waiting.pop_first()?;
        waiting.progress.lock().taken = true;
        calls.taken.insert(id, waiting.clone());
        drop(calls);
        if self.killable {
            waiting.changed.wake_all();
        }
        self.changed.wake_one();
        Some(waiting)
    }

    /// Who took it up could not be told of it: it waits again.
    pub fn give_back(&self, waiting: &Waiting) {
        let mut calls = self.calls.lock();
        let Some(found) = calls.taken.remove(&waiting.id) else { return };
        found.progress.lock().taken = false;
        calls.waiting.insert(waiting.id, found);
        drop(calls);
        waiting.changed.wake_all();
        self.changed.wake_one();
    }

    /// Waits for a call, takes it up, and gives it; `ENOENT` when nobody is left who could make one.
    pub fn next_call(&self) -> Result<Arc<Waiting>> {
        self.changed.wait_event(None, || match self.take_up() {
            Some(waiting) => Some(Ok(waiting)),
            None if self.is_abandoned() => Some(Err(Errno::ENOENT)),
            None => None,
        })?
    }

    /// A call that was taken up and not answered; `ENOENT`, or `EINPROGRESS` for one in another state.
    pub fn taken(&self, id: u64) -> Result<Arc<Waiting>> {
        let calls = self.calls.lock();
        match calls.taken.get(&id) {
            Some(waiting) if waiting.progress.lock().is_open() => Ok(waiting.clone()),
            Some(_) => Err(Errno::EINPROGRESS),
            None if calls.waiting.contains_key(&id) => Err(Errno::EINPROGRESS),
            None => Err(Errno::ENOENT),
        }
    }

    /// The descriptor is closed: calls that have no answer fail as if they did not exist.
    pub fn close(&self) {
        loop {
            let waiting = {
                let mut calls = self.calls.lock();
                calls.closed = true;
                let first = calls.waiting.pop_first().or_else(|| calls.taken.pop_first());
                let Some((_, waiting)) = first else { return };
                waiting
            };
            waiting
                .progress
                .lock()
                .answer
                .get_or_insert(Answer::Returns(-i64::from(Errno::ENOSYS.into_raw())));
            waiting.changed.wake_all();
            drop(waiting);
            sched::cond_resched();
        }
    }
}

impl Waiting {
    /// What there is to do for the thread that made the call. With `watched`, that it was taken up counts too.
    fn next(&self, watched: bool) -> Option<Next> {
        let mut progress = self.progress.lock();
        if let Some(adding) = progress.files.pop_front() {
            return Some(Next::Add(adding));
        }
        if let Some(answer) = progress.answer {
            return Some(Next::Return(answer));
        }
        (watched && progress.taken).then_some(Next::SleepAnew)
    }

    fn given_back(&self) -> Option<Next> {
        (!self.progress.lock().taken).then_some(Next::SleepAnew)
    }

    /// The answer of who took it up.
    pub fn answer(&self, answer: Answer) -> Result<()> {
        let mut progress = self.progress.lock();
        if progress.over {
            return Err(Errno::ENOENT);
        }
        if !progress.is_open() {
            return Err(Errno::EINPROGRESS);
        }
        progress.answer = Some(answer);
        drop(progress);
        self.changed.wake_all();
        Ok(())
    }

    /// Asks the thread to put a file into its table, and waits for the descriptor.
    pub fn add_file(
        &self,
        file: Arc<File>,
        at: Option<i32>,
        close_on_exec: bool,
        answers: bool,
    ) -> Result<i32> {
        let (result, done) = (Mutex::new(None), WaitQueue::new());
        let adding = Arc::new(Adding { file, at, close_on_exec, answers, result, done });
        {
            let mut progress = self.progress.lock();
            if progress.over {
                return Err(Errno::ENOENT);
            }
            if !progress.is_open() {
                return Err(Errno::EINPROGRESS);
            }
            if answers && !progress.files.is_empty() {
                return Err(Errno::EBUSY);
            }
            fallible::reserve_queue(&mut progress.files, 1)?;
            progress.files.push_back(adding.clone());
            progress.answering = answers;
        }
        self.changed.wake_all();
        let waited = adding.done.wait_event(None, || *adding.result.lock());
        if let Ok(result) = waited {
            return result;
        }
        let mut progress = self.progress.lock();
        let before = progress.files.len();
        progress.files.retain(|other| !Arc::ptr_eq(other, &adding));
        if progress.files.len() != before {
            progress.answering &= !answers;
            return Err(Errno::ERESTARTSYS);
        }
        drop(progress);
        // The thread has it in hand already, and needs nobody for what it does with it.
        adding.done.wait_until(|| *adding.result.lock())
    }

    /// By the thread itself: puts the file into its table.
    fn add(&self, adding: &Adding) {
        let (files, limit) = (caller::files(), caller::descriptor_limit());
        let (file, close) = (adding.file.clone(), adding.close_on_exec);
        let result = match adding.at {
            Some(fd) => files.replace(fd, file, limit, close).map(|()| fd),
            None => files.install(file, 0, limit, close),
        };
        if adding.answers {
            let mut progress = self.progress.lock();
            progress.answering = false;
            if let Ok(fd) = result {
                // In the place of what a listener that was closed meanwhile has left.
                progress.answer = Some(Answer::Returns(fd.into()));
            }
        }
        adding.finish(result);
    }
}

impl Adding {
    fn finish(&self, result: Result<i32>) {
        *self.result.lock() = Some(result);
        self.done.wake_all();
    }
}
