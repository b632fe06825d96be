//! Process groups and sessions.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::tree::{self, Group, Guard, Look, Session};
use super::{Credentials, Pid, Process, broadcast, orphans};
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::signal::{self, SIGCONT, SigInfo};

/// The session with this number.
pub fn session(sid: Pid) -> Option<Arc<Session>> {
    tree::look().session(sid)
}

/// The number of the session that a group belongs to, or else the thread with that number.
pub fn session_of_group(pgid: Pid) -> Option<Pid> {
    let tree = tree::look();
    let of_thread = || tree.thread(pgid)?.process.relations.get(&tree).group.clone();
    tree.group(pgid).or_else(of_thread).map(|group| group.session.sid)
}

/// setpgid(2).
pub fn setpgid(pid: Pid, pgid: Pid) -> Result<()> {
    let current = super::current().process.clone();
    let view = View::of(&current);
    let pid = if pid == 0 { current.pid } else { view.global(pid).ok_or(Errno::ESRCH)? };
    let pgid = if pgid == 0 { pid } else { view.global(pgid).ok_or(Errno::EPERM)? };
    // What may be needed is allocated, and freed, without the lock.
    let made = (pgid == pid).then(|| {
        let process = super::find_global(pid)?;
        let group = Group::new(pgid, process.numbers.as_ref(), current.session()?);
        Some((process, group))
    });
    let made = made.flatten();
    let mut tree = tree::lock_to_send(signal::group::MOST_FOR_ONE);
    let Some(process) = tree.process(pid) else {
        // Of a thread that is not the first.
        return Err(if tree.thread(pid).is_some() { Errno::EINVAL } else { Errno::ESRCH });
    };
    let session_of = |process: &Process, tree: &Look| {
        process.relations.get(tree).group.as_ref().map(|group| group.session.clone())
    };
    let own_session = session_of(&current, &tree).ok_or(Errno::ESRCH)?;
    let is_child =
        process.relations.get(&tree).parent.as_ref().is_some_and(|parent| Arc::ptr_eq(parent, &current));
    if is_child {
        if !session_of(&process, &tree).is_some_and(|session| Arc::ptr_eq(&session, &own_session)) {
            return Err(Errno::EPERM);
        }
        if process.has_execed.load(Ordering::SeqCst) {
            return Err(Errno::EACCES);
        }
    } else if !Arc::ptr_eq(&process, &current) {
        return Err(Errno::ESRCH);
    }
    if own_session.sid == pid {
        return Err(Errno::EPERM);
    }
    let group = match tree.group(pgid) {
        Some(group) if Arc::ptr_eq(&group.session, &own_session) => group,
        Some(_) => return Err(Errno::EPERM),
        None if pgid == pid => match &made {
            Some((of, group)) if Arc::ptr_eq(of, &process) && Arc::ptr_eq(&group.session, &own_session) => {
                group.clone()
            }
            // The number has become another process's meanwhile, or the caller has left its session.
            _ => return Err(Errno::ESRCH),
        },
        None => return Err(Errno::EPERM),
    };
    let same = process.relations.get(&tree).group.as_ref().is_some_and(|old| Arc::ptr_eq(old, &group));
    if !same {
        signal::group::hear(&mut tree, &process);
        let removed = tree.join_group(&process, &group);
        drop(tree);
        drop(removed);
        orphans::parent_moved(&process);
    }
    Ok(())
}

/// setsid(2).
pub fn setsid() -> Result<Pid> {
    let process = super::current().process.clone();
    let numbers = process.numbers.as_ref();
    let group = Group::new(process.pid, numbers, Session::new(process.pid, numbers));
    let mut tree = tree::lock_to_send(signal::group::MOST_FOR_ONE);
    if tree.group(process.pid).is_some() {
        drop(tree);
        return Err(Errno::EPERM);
    }
    signal::group::hear(&mut tree, &process);
    let removed = tree.join_group(&process, &group);
    drop(tree);
    drop(removed);
    orphans::parent_moved(&process);
    Ok(process.number())
}

/// getpgid(2).
pub fn getpgid(pid: Pid) -> Result<Pid> {
    find_or_current(pid).map(|process| View::current().number(process.pgid()))
}

/// getsid(2).
pub fn getsid(pid: Pid) -> Result<Pid> {
    find_or_current(pid).map(|process| View::current().number(process.sid()))
}

fn find_or_current(pid: Pid) -> Result<Arc<Process>> {
    match pid {
        0 => Ok(super::current().process.clone()),
        // The number of any thread names its process.
        pid => super::find_thread(pid).map(|thread| thread.process.clone()).ok_or(Errno::ESRCH),
    }
}

/// Whom kill(2) means, in the numbers of the caller's PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Process(Pid),
    Group(Pid),
    /// Every process but the first and the caller.
    All,
}

/// Whether a process with the credentials `sender` may send the signal to one with `other`.
fn may_signal(sender: &Credentials, other: &Credentials, signal: Option<u32>, same_session: bool) -> bool {
    let same_user = [sender.euid, sender.uid].iter().any(|uid| *uid == other.suid || *uid == other.uid);
    same_user || sender.capable_over(other, super::CAP_KILL) || (signal == Some(SIGCONT) && same_session)
}

/// `EPERM` unless the current thread may send the signal.
pub fn check_may_signal(target: &Process, signal: Option<u32>) -> Result<()> {
    let current = super::current();
    let same_session = target.sid() == current.process.sid();
    if may_signal(&current.credentials(), &target.credentials(), signal, same_session) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// kill(2): sends to all that are meant and that the caller may signal. `EPERM` if there were some but none allowed,
/// `ESRCH` if there were none. Signal `None` only checks.
///
/// To many, the signal comes as if at one instant: [`broadcast`].
pub fn kill(target: Target, signal: Option<u32>) -> Result<()> {
    let view = View::current();
    let global = |number: Pid| view.global(number).ok_or(Errno::ESRCH);
    match target {
        Target::Process(pid) => {
            let pid = global(pid)?;
            let tree = tree::look();
            // The number of any thread names its process.
            let process = tree.process(pid).or_else(|| tree.thread(pid).map(|thread| thread.process.clone()));
            drop(tree);
            kill_one(&process.ok_or(Errno::ESRCH)?, signal)
        }
        Target::Group(pgid) => broadcast::to_group(global(pgid)?, Sending::new(signal)),
        Target::All => broadcast::to_all(view, Sending::new(signal)),
    }
}

fn kill_one(process: &Arc<Process>, signal: Option<u32>) -> Result<()> {
    let sending = Sending::new(signal);
    let queued = sending.prepare(process);
    let mut tree = tree::lock_to_send(sending.causes());
    let sent = sending.to(&mut tree, process, queued);
    drop(tree);
    sent.map(drop)
}

/// kill(2) of the caller's own group, which may have no number in its PID namespace.
pub fn kill_own_group(signal: Option<u32>) -> Result<()> {
    broadcast::to_group(super::current().process.pgid(), Sending::new(signal))
}

/// kill(2) of a group that the kernel knows by this number.
pub fn kill_group(pgid: Pid, signal: Option<u32>) -> Result<()> {
    broadcast::to_group(pgid, Sending::new(signal))
}

/// Who sends, and what.
pub(super) struct Sending {
    pub own: Arc<Process>,
    sender: Arc<Credentials>,
    signal: Option<u32>,
}

impl Sending {
    fn new(signal: Option<u32>) -> Self {
        let current = super::current();
        Self { own: current.process.clone(), sender: current.credentials(), signal }
    }

    /// How many of the kernel's own signals come of it.
    pub fn causes(&self) -> usize {
        self.signal.map_or(0, signal::caused_by)
    }

    /// Makes what [`Self::to`] sends, before the lock.
    pub fn prepare(&self, process: &Process) -> Option<Arc<signal::Queued>> {
        let signal = self.signal?;
        let info = SigInfo::user(signal, signal::codes::SI_USER, self.own.number(), self.sender.uid);
        Some(signal::prepare(process, info, &self.own))
    }

    /// Sends what was prepared for the process, or only checks whether that may be. What comes back is dropped without the lock.
    pub fn to(
        &self,
        tree: &mut Guard,
        process: &Arc<Process>,
        queued: Option<Arc<signal::Queued>>,
    ) -> Result<Option<signal::Sent>> {
        // As on Linux, a process may send itself anything, whoever its threads act as.
        if !Arc::ptr_eq(process, &self.own) && !self.may_signal_other(tree, process) {
            return Err(Errno::EPERM);
        }
        queued.map(|queued| signal::queue_prepared(tree, process, queued)).transpose()
    }
    fn may_signal_other(&self, tree: &Look, process: &Process) -> bool {
        let session_of =
            |process: &Process| process.relations.get(tree).group.as_ref().map(|group| group.session.sid);
        let same_session = session_of(process) == session_of(&self.own);
        may_signal(&self.sender, &process.credentials_locked(tree), self.signal, same_session)
    }
}
