//! How numbers of processes look from a PID namespace.

use alloc::sync::Arc;

use super::{Numbers, PidNamespace};
use crate::process::{self, Pid, Process, Thread, tree};
use crate::sched;

/// A place to look from. From the first namespace the kernel's own numbers are seen.
#[derive(Clone, Default)]
pub struct View(Option<Arc<PidNamespace>>);

impl View {
    /// That of the current process.
    pub fn current() -> Self {
        process::try_current().map_or_else(Self::default, |thread| Self::of(&thread.process))
    }

    /// That of a process.
    pub fn of(process: &Process) -> Self {
        Self(process.numbers.as_ref().map(|numbers| numbers.namespace().clone()))
    }

    /// From a namespace.
    pub fn from(namespace: &Arc<PidNamespace>) -> Self {
        Self((!namespace.is_initial()).then(|| namespace.clone()))
    }

    fn shown(&self, global: Pid, numbers: Option<&Arc<Numbers>>) -> Pid {
        match &self.0 {
            None => global,
            Some(namespace) => numbers.and_then(|numbers| numbers.in_namespace(namespace)).unwrap_or(0),
        }
    }

    /// The process's number, 0 when it cannot be seen from here.
    pub fn process(&self, process: &Process) -> Pid {
        self.shown(process.pid, process.numbers.as_ref())
    }

    /// The thread's number, 0 when it cannot be seen from here.
    pub fn thread(&self, thread: &Thread) -> Pid {
        self.shown(thread.tid(), thread.numbers())
    }

    /// The number of the process's parent, 0 when there is none or it cannot be seen.
    pub fn parent(&self, process: &Process) -> Pid {
        let tree = tree::look();
        process.parent_locked(&tree).map_or(0, |parent| self.process(parent))
    }

    /// The number here of what the kernel knows by `global`: a thread, or a group or session whose first process is gone; 0 when it
    /// cannot be seen.
    pub fn number(&self, global: Pid) -> Pid {
        if self.0.is_none() || global == 0 {
            return global;
        }
        let tree = tree::look();
        let thread = tree.thread(global);
        let group = tree.group(global);
        let session = tree.session(global);
        drop(tree);
        let numbers = thread.as_ref().and_then(|thread| thread.numbers());
        let numbers = numbers.or_else(|| group.as_ref()?.numbers.as_deref());
        self.shown(global, numbers.or_else(|| session.as_ref()?.numbers.as_deref()))
    }

    /// The kernel's number for one of here; `None` when there is none.
    pub fn global(&self, number: Pid) -> Option<Pid> {
        let Some(namespace) = &self.0 else { return Some(number) };
        let (found, global) = namespace.from(number).filter(|(found, _)| *found == number)?;
        // What had the number may be gone, and the kernel's number another's.
        (self.number(global) == found).then_some(global)
    }

    /// The process with the lowest number from `number` on, and that number.
    pub fn process_from(&self, number: Pid) -> Option<(Pid, Arc<Process>)> {
        let Some(namespace) = &self.0 else {
            let process = process::process_after(number.saturating_sub(1))?;
            return Some((process.pid, process));
        };
        let mut at = number;
        loop {
            // Between two processes are the threads of the first, thousands maybe.
            sched::cond_resched();
            let (found, global) = namespace.from(at)?;
            at = found + 1;
            let process = tree::look().process(global);
            if let Some(process) = process.filter(|process| self.process(process) == found) {
                return Some((found, process));
            }
        }
    }

    /// Can the process be seen from here?
    pub fn sees(&self, process: &Process) -> bool {
        self.process(process) != 0
    }

    /// How many namespaces are above.
    pub fn level(&self) -> u32 {
        self.0.as_ref().map_or(0, |namespace| namespace.level)
    }

    /// Is it that of the first namespace?
    pub fn is_initial(&self) -> bool {
        self.0.is_none()
    }
}
