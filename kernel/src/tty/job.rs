//! Job control: which session a terminal controls, and who of it may read and write.

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::core::Tty;
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::process::{self, Pid, Session};
use crate::signal;

/// The session that a terminal controls and the group that is in the foreground; 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Job {
    /// The session.
    pub session: Pid,
    /// The foreground process group.
    pub foreground: Pid,
}

impl Job {
    /// Sends a signal to the group in the foreground, if there is one.
    pub fn signal(&self, signal: u32) {
        if self.foreground != 0 {
            signal::send_group(self.session, self.foreground, signal);
        }
    }
}

/// The controlling terminal of a session.
pub fn terminal_of(session: &Session) -> Option<Arc<Tty>> {
    let terminal: Arc<dyn Any + Send + Sync> = session.terminal.lock().clone()?;
    terminal.downcast::<Tty>().ok()
}

/// The controlling terminal of the current process.
pub fn current_terminal() -> Option<Arc<Tty>> {
    terminal_of(&*process::current().process.session()?)
}

/// Is it the current process's controlling terminal?
fn is_controlling(tty: &Tty) -> bool {
    current_terminal().is_some_and(|t| core::ptr::eq(&*t, tty))
}

/// May the current process read from the terminal? A background group gets SIGTTIN.
pub fn check_background_read(tty: &Tty) -> Result<()> {
    check(tty, abi::SIGTTIN)
}

/// May the current process change the terminal, or write to it with TOSTOP? A background group gets SIGTTOU.
pub fn check_background_change(tty: &Tty) -> Result<()> {
    check(tty, abi::SIGTTOU)
}

fn check(tty: &Tty, signal: u32) -> Result<()> {
    if !is_controlling(tty) {
        return Ok(());
    }
    let thread = process::current();
    let (group, session) = (thread.process.pgid(), thread.process.sid());
    let foreground = tty.job.lock().foreground;
    if foreground == 0 || group == foreground {
        return Ok(());
    }
    if signal::is_ignored_or_blocked(signal) {
        // One who cannot be stopped must not read, and may write.
        return if signal == abi::SIGTTIN { Err(Errno::EIO) } else { Ok(()) };
    }
    if process::is_group_orphaned(group) {
        return Err(Errno::EIO);
    }
    signal::send_group(session, group, signal);
    Err(Errno::ERESTARTSYS)
}

/// Makes the terminal the controlling one of the current process, a session leader without one.
fn adopt(tty: &Arc<Tty>, session: &Arc<Session>) {
    *tty.job.lock() = Job { session: session.sid, foreground: process::current().process.pgid() };
    let terminal: Arc<dyn Any + Send + Sync> = tty.clone();
    let old = session.terminal.lock().replace(terminal);
    drop(old);
    // Relaxed: as in `hang_up`.
    session.left_in_foreground.store(0, Ordering::Relaxed);
}

/// A session leader without a terminal that opens one for reading gets it, unless another session has it.
pub fn opened(tty: &Arc<Tty>, readable: bool) {
    if !readable {
        return;
    }
    let process = &process::current().process;
    let Some(session) = process.session() else { return };
    let free = tty.job.lock().session == 0;
    if session.sid == process.pid && free && terminal_of(&session).is_none() {
        adopt(tty, &session);
    }
}

/// TIOCSCTTY. `steal`: take it away from another session, which only root may.
pub fn set_controlling(tty: &Arc<Tty>, steal: bool, readable: bool) -> Result<()> {
    let thread = process::current();
    let process = &thread.process;
    let session = process.session().ok_or(Errno::EPERM)?;
    let owner = tty.job.lock().session;
    if session.sid == process.pid && owner == session.sid {
        return Ok(());
    }
    if session.sid != process.pid || terminal_of(&session).is_some() {
        return Err(Errno::EPERM);
    }
    let privileged = process::current().credentials().capable(abi::CAP_SYS_ADMIN);
    if owner != 0 {
        if !steal || !privileged {
            return Err(Errno::EPERM);
        }
        if let Some(other) = process::session(owner) {
            let old = other.terminal.lock().take();
            drop(old);
        }
    }
    if !readable && !privileged {
        return Err(Errno::EPERM);
    }
    adopt(tty, &session);
    Ok(())
}

/// Takes the terminal away from the session; returns who had it.
fn release(session: &Session, tty: &Arc<Tty>) -> Job {
    let job = {
        let mut job = tty.job.lock();
        if job.session != session.sid {
            return Job::default();
        }
        core::mem::take(&mut *job)
    };
    let old = session.terminal.lock().take();
    drop(old);
    job
}

/// TIOCNOTTY.
pub fn give_up(tty: &Arc<Tty>) -> Result<()> {
    let process = &process::current().process;
    if !is_controlling(tty) {
        return Err(Errno::ENOTTY);
    }
    let session = process.session().ok_or(Errno::ENOTTY)?;
    // The terminal belongs to the session as a whole here: it is the leader's to give up.
    if session.sid == process.pid {
        let job = release(&session, tty);
        job.signal(abi::SIGHUP);
        job.signal(abi::SIGCONT);
    }
    Ok(())
}

/// A session leader is about to end. The foreground group gets SIGHUP, and a terminal that is no pseudoterminal is hung up for all
/// who have it open. The group that was in the foreground of a terminal which was hung up before hears of it now.
pub fn session_leader_ends(session: &Session) {
    let Some(tty) = terminal_of(session) else {
        // Relaxed: the leader alone is left to hang up, and it is ending.
        let foreground = session.left_in_foreground.swap(0, Ordering::Relaxed);
        let left = Job { session: session.sid, foreground };
        left.signal(abi::SIGHUP);
        left.signal(abi::SIGCONT);
        return;
    };
    if !tty.driver.is_pseudoterminal() {
        tty.hang_up();
    }
    release(session, &tty).signal(abi::SIGHUP);
}

/// Takes the terminal away from all who have it open: a pseudoterminal's master was closed, or vhangup(2). Its session has no terminal
/// any more, and the leader gets SIGHUP and SIGCONT. The foreground group is the leader's business until that ends.
pub fn hang_up(tty: &Arc<Tty>) {
    tty.hang_up();
    let sid = tty.job.lock().session;
    if sid == 0 {
        return;
    }
    match process::session(sid) {
        Some(session) => {
            let foreground = release(&session, tty).foreground;
            // Relaxed: a number; who ends as leader reads it when it has taken locks that order the two.
            session.left_in_foreground.store(foreground, Ordering::Relaxed);
        }
        None => *tty.job.lock() = Job::default(),
    }
    if let Some(leader) = process::find_global(sid) {
        signal::send_process(&leader, abi::SIGHUP);
        signal::send_process(&leader, abi::SIGCONT);
    }
}

/// vhangup(2): for the terminal of the current process, if it has one.
pub fn vhangup() -> Result<()> {
    if !process::current().credentials().capable(abi::CAP_SYS_TTY_CONFIG) {
        return Err(Errno::EPERM);
    }
    if let Some(tty) = current_terminal() {
        hang_up(&tty);
    }
    Ok(())
}

/// TIOCGPGRP. Only for one's own terminal, or from a pseudoterminal's master.
pub fn foreground(tty: &Tty, master: bool) -> Result<Pid> {
    if !master && !is_controlling(tty) {
        return Err(Errno::ENOTTY);
    }
    Ok(tty.job.lock().foreground)
}

/// TIOCSPGRP: `group` must be of the caller's session.
pub fn set_foreground(tty: &Tty, group: i32) -> Result<()> {
    match check_background_change(tty) {
        Err(Errno::EIO) => return Err(Errno::ENOTTY),
        other => other?,
    }
    let session = process::current().process.sid();
    if !is_controlling(tty) || tty.job.lock().session != session {
        return Err(Errno::ENOTTY);
    }
    let group = Pid::try_from(group).map_err(|_| Errno::EINVAL)?;
    let group = View::current().global(group).ok_or(Errno::ESRCH)?;
    match process::session_of_group(group) {
        // The first process's group has no number that could be asked for.
        _ if group == 0 => Err(Errno::ESRCH),
        None => Err(Errno::ESRCH),
        Some(sid) if sid != session => Err(Errno::EPERM),
        Some(_) => {
            tty.job.lock().foreground = group;
            Ok(())
        }
    }
}

/// TIOCGSID.
pub fn session(tty: &Tty, master: bool) -> Result<Pid> {
    if !master && !is_controlling(tty) {
        return Err(Errno::ENOTTY);
    }
    match tty.job.lock().session {
        0 => Err(Errno::ENOTTY),
        sid => Ok(sid),
    }
}
