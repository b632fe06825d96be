//! The controller `pids`: how many threads there are, and how many there may be.
//!
//! They are counted whether the controller is on or not, so that turning it on has nothing to count.

use alloc::sync::Arc;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};

use super::Controller;
use super::group::Group;
use super::knob::{Interface, parse_limit, push_limit};
use crate::errno::{Errno, Result};
use crate::process::tree::PID_MAX;

/// No limit.
const NONE: u64 = u64::MAX;

/// What a group counts.
pub(super) struct Counter {
    current: AtomicU64,
    max: AtomicU64,
    peak: AtomicU64,
    /// Forks that were refused by the limit of this group or one below, and by this one's.
    events: AtomicU64,
    local_events: AtomicU64,
}

impl Counter {
    pub fn new() -> Counter {
        let zero = || AtomicU64::new(0);
        Counter {
            current: zero(),
            max: AtomicU64::new(NONE),
            peak: zero(),
            events: zero(),
            local_events: zero(),
        }
    }

    fn add(&self, tasks: u64, most: u64) -> bool {
        let more = |current: u64| current.checked_add(tasks).filter(|sum| *sum <= most);
        match self.current.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more) {
            Ok(before) => {
                // Ordering: a statistic.
                self.peak.fetch_max(before + tasks, Ordering::Relaxed);
                true
            }
            Err(_) => false,
        }
    }

    fn remove(&self, tasks: u64) {
        let before = self.current.fetch_sub(tasks, Ordering::SeqCst);
        debug_assert!(before >= tasks, "a thread is counted out twice");
    }

    /// The controller is turned on or off: it begins anew.
    pub fn reset(&self) {
        self.max.store(NONE, Ordering::SeqCst);
        self.peak.store(self.current.load(Ordering::SeqCst), Ordering::SeqCst);
        self.events.store(0, Ordering::SeqCst);
        self.local_events.store(0, Ordering::SeqCst);
    }
}

/// Counts one thread more in a group and all above; the group whose limit is reached otherwise. Takes no lock.
pub(super) fn charge(group: &Arc<Group>) -> Result<(), Arc<Group>> {
    for (index, at) in group.chain().enumerate() {
        if !at.pids.add(1, at.pids.max.load(Ordering::SeqCst)) {
            group.chain().take(index).for_each(|below| below.pids.remove(1));
            return Err(at.clone());
        }
    }
    Ok(())
}

/// A fork was refused by the limit of a group.
pub(super) fn refused(group: &Arc<Group>) {
    group.pids.local_events.fetch_add(1, Ordering::SeqCst);
    group.changed("pids.events.local");
    for at in group.chain() {
        at.pids.events.fetch_add(1, Ordering::SeqCst);
        at.changed("pids.events");
    }
}

/// Counts a thread out.
pub(super) fn discharge(group: &Arc<Group>) {
    group.chain().for_each(|at| at.pids.remove(1));
}

/// A process moves with so many threads: limits do not keep it out.
pub(super) fn move_tasks(from: Option<&Arc<Group>>, to: Option<&Arc<Group>>, tasks: u64) {
    let is_above = |of: Option<&Arc<Group>>, group: &Arc<Group>| {
        of.is_some_and(|of| of.chain().any(|at| Arc::ptr_eq(at, group)))
    };
    // Those above both count it throughout.
    if let Some(to) = to {
        to.chain().take_while(|at| !is_above(from, at)).for_each(|at| {
            at.pids.add(tasks, NONE);
        });
    }
    if let Some(from) = from {
        from.chain().take_while(|at| !is_above(to, at)).for_each(|at| at.pids.remove(tasks));
    }
}

pub(super) const INTERFACES: [Interface; 5] = [
    Interface::new("pids.current").of(Controller::Pids).read(|group, text| {
        let _ = writeln!(text, "{}", group.pids.current.load(Ordering::SeqCst));
        Ok(())
    }),
    Interface::new("pids.events").of(Controller::Pids).read(|group, text| {
        let _ = writeln!(text, "max {}", group.pids.events.load(Ordering::SeqCst));
        Ok(())
    }),
    Interface::new("pids.events.local").of(Controller::Pids).read(|group, text| {
        let _ = writeln!(text, "max {}", group.pids.local_events.load(Ordering::SeqCst));
        Ok(())
    }),
    Interface::new("pids.max")
        .of(Controller::Pids)
        .read(|group, text| {
            push_limit(text, Some(group.pids.max.load(Ordering::SeqCst)).filter(|max| *max != NONE));
            Ok(())
        })
        .write(|group, value, _| {
            let max = parse_limit(value, u64::from(PID_LIMIT), Errno::EINVAL)?.unwrap_or(NONE);
            group.pids.max.store(max, Ordering::SeqCst);
            Ok(())
        }),
    Interface::new("pids.peak").of(Controller::Pids).read(|group, text| {
        let _ = writeln!(text, "{}", group.pids.peak.load(Ordering::SeqCst));
        Ok(())
    }),
];

/// The largest limit: of Linux's `PID_MAX_LIMIT`, which is more than there can be here.
const PID_LIMIT: u32 = 1 << 22;
const _: () = assert!(PID_MAX <= PID_LIMIT);
