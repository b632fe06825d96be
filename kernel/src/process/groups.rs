//! Process groups and sessions.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::tree::{self, Group, Guard, Session};
use super::{Credentials, Pid, Process};
use crate::errno::{Errno, Result};
use crate::signal::{self, SIGCONT, SigInfo};

/// Whether no member but `except` has a parent in another group of the same session: then nobody could continue its stopped members.
pub(super) fn is_orphaned(tree: &Guard, group: &Arc<Group>, except: Option<&Arc<Process>>) -> bool {
    !group.members.get(tree).iter().any(|member| {
        let relations = member.relations.get(tree);
        if except.is_some_and(|except| core::ptr::eq(Arc::as_ptr(except), member))
            || relations.ended.is_some()
        {
            return false;
        }
        let Some(parent) = &relations.parent else { return false };
        // Children of the first process count as children of nobody.
        parent.pid != 1
            && parent.relations.get(tree).group.as_ref().is_some_and(|other| {
                !Arc::ptr_eq(other, group) && Arc::ptr_eq(&other.session, &group.session)
            })
    })
}

/// Whether the group with this number is orphaned, or does not exist.
pub fn is_group_orphaned(pgid: Pid) -> bool {
    let tree = tree::lock();
    tree.group(pgid).is_none_or(|group| is_orphaned(&tree, &group, None))
}

/// The session with this number.
pub fn session(sid: Pid) -> Option<Arc<Session>> {
    tree::lock().session(sid)
}

/// The number of the session that a group belongs to.
pub fn session_of_group(pgid: Pid) -> Option<Pid> {
    tree::lock().group(pgid).map(|group| group.session.sid)
}

/// setpgid(2).
pub fn setpgid(pid: Pid, pgid: Pid) -> Result<()> {
    let current = super::current().process.clone();
    let pid = if pid == 0 { current.pid } else { pid };
    let pgid = if pgid == 0 { pid } else { pgid };
    let mut tree = tree::lock();
    let process = tree.process(pid).ok_or(Errno::ESRCH)?;
    let session_of = |process: &Process, tree: &Guard| {
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
        None if pgid == pid => Group::new(pgid, own_session),
        None => return Err(Errno::EPERM),
    };
    let same = process.relations.get(&tree).group.as_ref().is_some_and(|old| Arc::ptr_eq(old, &group));
    if !same {
        let removed = tree.join_group(&process, &group);
        drop(tree);
        drop(removed);
    }
    Ok(())
}

/// setsid(2).
pub fn setsid() -> Result<Pid> {
    let process = super::current().process.clone();
    let mut tree = tree::lock();
    if tree.group(process.pid).is_some() {
        return Err(Errno::EPERM);
    }
    let group = Group::new(process.pid, Session::new(process.pid));
    let removed = tree.join_group(&process, &group);
    drop(tree);
    drop(removed);
    Ok(process.pid)
}

/// getpgid(2).
pub fn getpgid(pid: Pid) -> Result<Pid> {
    find_or_current(pid).map(|process| process.pgid())
}

/// getsid(2).
pub fn getsid(pid: Pid) -> Result<Pid> {
    find_or_current(pid).map(|process| process.sid())
}

fn find_or_current(pid: Pid) -> Result<Arc<Process>> {
    if pid == 0 { Ok(super::current().process.clone()) } else { super::find(pid).ok_or(Errno::ESRCH) }
}

/// Whom kill(2) means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Process(Pid),
    Group(Pid),
    /// Every process but the first and the caller.
    All,
}

/// Whether a process with these credentials may send the signal.
fn may_signal(sender: &Credentials, target: &Process, signal: Option<u32>) -> bool {
    let other = target.credentials();
    let same_user = [sender.euid, sender.uid].iter().any(|uid| *uid == other.suid || *uid == other.uid);
    same_user
        || sender.capable(super::CAP_KILL)
        || (signal == Some(SIGCONT) && target.sid() == super::current().process.sid())
}

/// `EPERM` unless the current thread may send the signal.
pub fn check_may_signal(target: &Process, signal: Option<u32>) -> Result<()> {
    let sender = super::current().credentials();
    if may_signal(&sender, target, signal) { Ok(()) } else { Err(Errno::EPERM) }
}

/// kill(2): sends to all that are meant and that the caller may signal. `EPERM` if there were some but none allowed,
/// `ESRCH` if there were none. Signal `None` only checks.
pub fn kill(target: Target, signal: Option<u32>) -> Result<()> {
    let current = super::current();
    let sender = current.credentials();
    let own_pid = current.process.pid;
    let info = signal.map(|signal| SigInfo::user(signal, signal::codes::SI_USER, own_pid, sender.uid));
    let send = |process: &Arc<Process>| -> Result<()> {
        if !may_signal(&sender, process, signal) {
            return Err(Errno::EPERM);
        }
        info.map_or(Ok(()), |info| signal::queue_process(process, info))
    };
    match target {
        Target::Process(pid) => send(&super::find(pid).ok_or(Errno::ESRCH)?),
        Target::Group(pgid) => {
            let members = super::list::members(pgid);
            let mut result = Err(Errno::ESRCH);
            for process in members {
                match send(&process) {
                    Ok(()) => result = Ok(()),
                    Err(error) if result.is_err() => result = Err(error),
                    Err(_) => {}
                }
            }
            result
        }
        Target::All => {
            let mut result = Err(Errno::ESRCH);
            for process in super::processes() {
                if process.pid == 1 || process.pid == own_pid {
                    continue;
                }
                match send(&process) {
                    Ok(()) => result = Ok(()),
                    Err(error) if result.is_err() => result = Err(error),
                    Err(_) => {}
                }
            }
            result
        }
    }
}
