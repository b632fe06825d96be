//! Leases: who holds one hears before another opens the file, and has time to give it up. fcntl(2), F_SETLEASE.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use linux_raw_sys::general as abi;

use super::caller;
use super::file::File;
use super::inode::Inode;
use super::owner::FileOwner;
use super::stat::FileType;
use crate::errno::{Errno, Result};
use crate::memory::fallible::{self, TryVec};
use crate::process;
use crate::sched;
use crate::sync::{SpinLock, WaitError, WaitQueue};
use crate::time::{self, SECOND};

/// `fs.lease-break-time`, seconds.
pub static BREAK_TIME: AtomicUsize = AtomicUsize::new(45);
/// `fs.leases-enable`.
pub static ENABLED: AtomicUsize = AtomicUsize::new(1);

/// What a lease keeps others from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// From nothing: it is over.
    None,
    /// From writing.
    Read,
    /// From opening at all.
    Write,
}

impl Level {
    fn number(self) -> u32 {
        match self {
            Self::None => abi::F_UNLCK,
            Self::Read => abi::F_RDLCK,
            Self::Write => abi::F_WRLCK,
        }
    }
}

struct State {
    level: Level,
    /// What it has to come down to, and until when.
    breaking: Option<(Level, u64)>,
}

/// One open file's lease.
pub struct Lease {
    file: Weak<File>,
    fd: i32,
    state: SpinLock<State>,
}

/// Leases of one file at the most. Each open of it goes through all of them, a stranger's too; Linux has no such limit.
const MOST: usize = 1024;

/// The leases of an inode.
#[derive(Default)]
pub struct Leases {
    any: AtomicBool,
    held: SpinLock<Option<Arc<Held>>>,
}

#[derive(Default)]
struct Held {
    list: SpinLock<Vec<Arc<Lease>>>,
    /// Woken when one comes down or ends.
    changed: WaitQueue,
}

impl Leases {
    fn held(&self) -> Option<Arc<Held>> {
        // One that comes at the same time as an open meets the open file instead.
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        self.held.lock().clone()
    }
}

impl Lease {
    fn level(&self) -> Level {
        self.state.lock().level
    }

    /// Sets the level. What it has to come down to stays, unless it is there.
    fn set(&self, level: Level) {
        let mut state = self.state.lock();
        state.level = level;
        state.breaking = state.breaking.filter(|(down_to, _)| *down_to < level);
    }

    /// The lease is over: its open file, which has it no longer when it is being closed, and the inode let go of it as one.
    /// False when somebody else has ended it.
    pub(super) fn end(&self, inode: &Inode) -> bool {
        let Some(held) = inode.leases.held() else { return false };
        let file = self.file.upgrade();
        let removed = {
            let mut list = held.list.lock();
            let at = list.iter().position(|lease| core::ptr::eq(Arc::as_ptr(lease), self));
            let removed = at.map(|at| list.swap_remove(at));
            inode.leases.any.store(!list.is_empty(), Ordering::SeqCst);
            (removed, file.as_ref().and_then(|file| file.take_lease(self)))
        };
        self.set(Level::None);
        held.changed.wake_all();
        let was_there = removed.0.is_some();
        drop(removed);
        drop(file);
        was_there
    }
}

/// F_GETLEASE: what the file's lease is, or is coming down to.
pub fn get(file: &File) -> u32 {
    let Some(lease) = file.lease() else { return abi::F_UNLCK };
    let state = lease.state.lock();
    state.breaking.map_or(state.level, |(level, _)| level).number()
}

/// F_SETLEASE.
pub fn set(file: &Arc<File>, fd: i32, wanted: u32) -> Result<()> {
    let inode = file.inode();
    let level = match wanted {
        abi::F_RDLCK => Level::Read,
        abi::F_WRLCK => Level::Write,
        abi::F_UNLCK => {
            let ended = file.lease().is_some_and(|lease| lease.end(inode));
            return if ended { Ok(()) } else { Err(Errno::EAGAIN) };
        }
        _ => return Err(Errno::EINVAL),
    };
    let own = process::current().credentials();
    if own.fsuid != inode.attributes().uid
        && !caller::credentials().capable_over(&inode.attributes(), abi::CAP_LEASE)
    {
        return Err(Errno::EACCES);
    }
    if inode.kind != FileType::Regular {
        return Err(Errno::EINVAL);
    }
    // Relaxed: a setting of its own.
    if ENABLED.load(Ordering::Relaxed) == 0 {
        return Err(Errno::EINVAL);
    }
    let held = {
        let fresh = Arc::new(Held::default());
        inode.leases.held.lock().get_or_insert(fresh).clone()
    };
    file.prepare_signalling();
    loop {
        // All that is made is made before the lock.
        let count = held.list.lock().len();
        let mut room = fallible::with_capacity(count + 1)?;
        let state = SpinLock::new(State { level, breaking: None });
        let lease = Arc::new(Lease { file: Arc::downgrade(file), fd, state });
        let mut list = held.list.lock();
        // From here on whoever opens the file waits for this lock, or was there before and is counted.
        inode.leases.any.store(true, Ordering::SeqCst);
        if let Err(error) = check(file, level, &list) {
            inode.leases.any.store(!list.is_empty(), Ordering::SeqCst);
            return Err(error);
        }
        if let Some(own) = file.lease() {
            own.set(level);
            break;
        }
        if room.capacity() <= list.len() {
            continue;
        }
        if list.len() >= MOST {
            return Err(Errno::ENOLCK);
        }
        room.append(&mut list);
        room.push(lease.clone());
        // Both know of it before another call on the same open file looks.
        file.set_lease(lease);
        let old = core::mem::replace(&mut *list, room);
        drop(list);
        drop(old);
        break;
    }
    default_owner(file);
    held.changed.wake_all();
    Ok(())
}

/// `EAGAIN` while somebody has what the lease would keep them from.
fn check(file: &Arc<File>, level: Level, list: &[Arc<Lease>]) -> Result<()> {
    let inode = file.inode();
    let own = file.lease();
    let is_own = |lease: &Arc<Lease>| own.as_ref().is_some_and(|own| Arc::ptr_eq(own, lease));
    let breaking = |lease: &Arc<Lease>| {
        !is_own(lease) && lease.state.lock().breaking.is_some_and(|(down_to, _)| down_to == Level::None)
    };
    let taken = match level {
        Level::Write => {
            // Its directory and this open file: everybody else who has the name has the file open.
            list.iter().any(|lease| !is_own(lease)) || inode.writers() > u32::from(file.writable()) || {
                Arc::strong_count(file.dentry()) > 2
            }
        }
        _ => inode.writers() > 0,
    };
    if taken || list.iter().any(breaking) { Err(Errno::EAGAIN) } else { Ok(()) }
}

/// Somebody opens or truncates the file: whoever has a lease that keeps from it is told, and gets time to give it up. `EWOULDBLOCK` for
/// one who does not wait.
pub fn break_for(inode: &Inode, writes: bool, nonblocking: bool) -> Result<()> {
    let Some(held) = inode.leases.held() else { return Ok(()) };
    let down_to = if writes { Level::None } else { Level::Read };
    loop {
        let (conflicting, deadline) = ask(&held, down_to)?;
        if !conflicting {
            return Ok(());
        }
        if nonblocking {
            return Err(Errno::EWOULDBLOCK);
        }
        let waited = held.changed.wait_event(Some(deadline), || {
            (!held.list.lock().iter().any(|lease| lease.level() > down_to)).then_some(())
        });
        match waited {
            Ok(()) => {}
            Err(WaitError::Interrupted) => return Err(Errno::ERESTARTSYS),
            Err(WaitError::TimedOut) => expire(inode, &held),
        }
    }
}

/// Tells all whose leases have to come down. Is there one at all, and until when has the first of them time?
fn ask(held: &Held, down_to: Level) -> Result<(bool, u64)> {
    // Relaxed: a setting of its own.
    let until = time::now().saturating_add(BREAK_TIME.load(Ordering::Relaxed) as u64 * SECOND);
    let leases: Vec<Arc<Lease>> = all(held)?;
    let (mut conflicting, mut first) = (false, u64::MAX);
    for lease in leases {
        sched::cond_resched();
        // Each may be told to thousands, at the cost of who opens the file.
        if process::is_killed() {
            return Err(Errno::EINTR);
        }
        let tells = {
            let mut state = lease.state.lock();
            if state.level <= down_to {
                continue;
            }
            conflicting = true;
            let tells = state.breaking.is_none_or(|(level, _)| level > down_to);
            if tells {
                let deadline = state.breaking.map_or(until, |(_, deadline)| deadline);
                state.breaking = Some((down_to, deadline));
            }
            first = first.min(state.breaking.map_or(until, |(_, deadline)| deadline));
            tells
        };
        if let Some(file) = lease.file.upgrade().filter(|_| tells) {
            const POLL_MSG: i32 = abi::POLL_MSG as i32;
            let band = abi::POLLIN | abi::POLLRDNORM | abi::POLLMSG;
            file.owner().tell(lease.fd, POLL_MSG, band.into());
        }
    }
    Ok((conflicting, first))
}

fn all(held: &Held) -> Result<Vec<Arc<Lease>>> {
    loop {
        let count = held.list.lock().len();
        let mut out = fallible::with_capacity(count)?;
        let list = held.list.lock();
        if list.len() > out.capacity() {
            continue;
        }
        list.iter().for_each(|lease| out.push(lease.clone()));
        return Ok(out);
    }
}

/// The time is up: leases come down without their holders.
fn expire(inode: &Inode, held: &Held) {
    let now = time::now();
    let mut over = Vec::new();
    for lease in all(held).unwrap_or_default() {
        let mut state = lease.state.lock();
        let Some((level, _)) = state.breaking.filter(|(_, deadline)| *deadline <= now) else { continue };
        *state = State { level, breaking: None };
        drop(state);
        if level == Level::None && over.try_push(lease).is_err() {
            break;
        }
    }
    for lease in over {
        lease.end(inode);
    }
    held.changed.wake_all();
}

/// What F_SETLEASE makes of who is signalled: the caller, unless somebody is named.
fn default_owner(file: &File) {
    if file.owner().shown().1 == 0 {
        file.set_owner(FileOwner::current());
    }
}
