//! Who is signalled about an open file, and what hangs on that: SIGIO, leases, notes of directories.

use alloc::sync::{Arc, Weak};

use linux_raw_sys::general as abi;

use super::async_io::AsyncWatch;
use super::file::File;
use super::lease::Lease;
use super::notify::Note;
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::process::tree::{self, Group};
use crate::process::{self, Credentials, Process, Thread};
use crate::sched;
use crate::signal::{self, SIGIO, SigInfo};

/// Whom a signal about a file goes to. Nobody, once they are gone.
#[derive(Clone, Default)]
pub(super) enum Target {
    #[default]
    Nobody,
    Thread(Weak<Thread>),
    Process(Weak<Process>),
    Group(Weak<Group>),
}

/// Who gets SIGIO, and by whose rights.
#[derive(Clone, Default)]
pub struct FileOwner {
    pub(super) target: Target,
    /// Of who set it.
    pub(super) uid: u32,
    pub(super) euid: u32,
    /// The signal to send in place of SIGIO; 0 for SIGIO.
    pub signal: i32,
}

impl FileOwner {
    /// The thread, process or group with this number (`F_OWNER_*`), 0 for nobody; `ESRCH` when there is none.
    pub fn find(kind: u32, id: i32) -> Result<Self> {
        let number = u32::try_from(id).map_err(|_| Errno::ESRCH)?;
        let target = match kind {
            _ if number == 0 => Target::Nobody,
            abi::F_OWNER_TID => {
                Target::Thread(Arc::downgrade(&process::find_thread(number).ok_or(Errno::ESRCH)?))
            }
            abi::F_OWNER_PID => Target::Process(Arc::downgrade(&process::find(number).ok_or(Errno::ESRCH)?)),
            _ => {
                let global = View::current().global(number).ok_or(Errno::ESRCH)?;
                Target::Group(Arc::downgrade(&tree::look().group(global).ok_or(Errno::ESRCH)?))
            }
        };
        Ok(Self::by_caller(target))
    }

    /// The current process.
    pub fn current() -> Self {
        Self::by_caller(Target::Process(Arc::downgrade(&process::current().process)))
    }

    fn by_caller(target: Target) -> Self {
        let own = process::current().credentials();
        Self { target, uid: own.uid, euid: own.euid, signal: 0 }
    }

    /// `F_OWNER_*`, and the number as the caller sees it; 0 for nobody.
    pub fn shown(&self) -> (u32, i32) {
        let view = View::current();
        match &self.target {
            Target::Nobody => (abi::F_OWNER_PID, 0),
            Target::Thread(thread) => {
                (abi::F_OWNER_TID, thread.upgrade().map_or(0, |thread| view.thread(&thread)) as i32)
            }
            Target::Process(process) => {
                let process = process.upgrade().filter(|process| process::find_global(process.pid).is_some());
                (abi::F_OWNER_PID, process.map_or(0, |process| view.process(&process)) as i32)
            }
            Target::Group(group) => {
                (abi::F_OWNER_PGRP, group.upgrade().map_or(0, |group| view.number(group.pgid)) as i32)
            }
        }
    }

    /// The user who set it, and the one that it acted as: F_GETOWNER_UIDS.
    pub fn users(&self) -> [u32; 2] {
        let own = process::current().credentials();
        [self.uid, self.euid].map(|uid| own.shown_uid(uid))
    }

    /// Is it told to a group of processes, as many as that has?
    pub fn is_group(&self) -> bool {
        matches!(self.target, Target::Group(_))
    }

    /// Sends the signal: `code` is `POLL_*`, `band` what poll(2) would say. Without a signal of its own, SIGIO, which says nothing else.
    pub fn tell(&self, fd: i32, code: i32, band: u64) {
        let info = match self.signal {
            0 => SigInfo::kernel(SIGIO),
            signal => SigInfo::of_file(signal as u32, code, band, fd),
        };
        match &self.target {
            Target::Nobody => {}
            Target::Thread(thread) => {
                let Some(thread) = thread.upgrade().filter(|thread| self.may_signal(&thread.credentials()))
                else {
                    return;
                };
                if signal::queue_thread(&thread, info).is_err() {
                    signal::send_thread(&thread, SigInfo::kernel(SIGIO));
                }
            }
            Target::Process(process) => {
                if let Some(process) = process.upgrade() {
                    self.tell_process(&process, info);
                }
            }
            Target::Group(group) => {
                let Some(group) = group.upgrade() else { return };
                let mut next = tree::first_member(&tree::look(), &group);
                while let Some(process) = next {
                    sched::cond_resched();
                    self.tell_process(&process, info);
                    let tree = tree::look();
                    // One that has left the group meanwhile, or has ended, ends the walk: its place is not known any more.
                    let is_member =
                        process.is_in_group(&tree, &group) && process.ended_locked(&tree).is_none();
                    next = if is_member { tree::next_member(&tree, &group, &process) } else { None };
                }
            }
        }
    }

    fn tell_process(&self, process: &Arc<Process>, info: SigInfo) {
        if self.may_signal(&process.credentials()) && signal::queue_process(process, info).is_err() {
            signal::send_process(process, SigInfo::kernel(SIGIO));
        }
    }

    /// By the rights of who named the receiver.
    fn may_signal(&self, other: &Credentials) -> bool {
        self.euid == 0 || [self.euid, self.uid].iter().any(|uid| *uid == other.suid || *uid == other.uid)
    }
}

/// What few open files have: made when first asked for.
#[derive(Default)]
pub struct Signalling {
    pub owner: FileOwner,
    /// Tells of what comes in: O_ASYNC.
    pub(super) watch: Option<Arc<AsyncWatch>>,
    /// Tells of changes in a directory: F_NOTIFY.
    pub(super) note: Option<Arc<Note>>,
    pub(super) lease: Option<Arc<Lease>>,
}

impl Signalling {
    /// The file is closed for good.
    pub(super) fn file_released(&self, file: &File) {
        if let Some(watch) = &self.watch {
            watch.stop(file);
        }
        if let Some(note) = &self.note {
            file.inode().watched.remove_note(note);
        }
        if let Some(lease) = &self.lease {
            lease.end(file.inode());
        }
    }
}
