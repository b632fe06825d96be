//! The operations of a semop(2): all of them or none.

use super::waiting::{Blocked, Requirement};
use super::{MAX_VALUE, State};
use crate::errno::{Errno, Result};
use crate::process::Pid;
use crate::sched;

const IPC_NOWAIT: i16 = 0o4000;
const SEM_UNDO: i16 = 0x1000;

/// `struct sembuf`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Operation {
    pub semaphore: u16,
    pub change: i16,
    flags: i16,
}

impl Operation {
    /// Is it undone when the process ends?
    pub fn is_undone(&self) -> bool {
        self.flags & SEM_UNDO != 0
    }

    /// Does the call fail where this operation would wait?
    pub fn is_nonblocking(&self) -> bool {
        self.flags & IPC_NOWAIT != 0
    }
}

impl State {
    /// Does all operations; tells what is in the way when one of them has to wait.
    pub(super) fn attempt(
        &mut self,
        operations: &[Operation],
        pid: Pid,
        undo: Option<u64>,
    ) -> Result<Option<Blocked>> {
        for (index, operation) in operations.iter().enumerate() {
            let number = usize::from(operation.semaphore);
            let value = i32::from(self.semaphores[number].value);
            let change = i32::from(operation.change);
            let blocks = if change == 0 { value != 0 } else { value + change < 0 };
            if blocks {
                // The operations before may have changed this semaphore: the requirement is on the value without them.
                let before =
                    operations[..index].iter().filter(|other| other.semaphore == operation.semaphore);
                let before: i32 = before.map(|other| i32::from(other.change)).sum();
                let requirement = if change == 0 {
                    Requirement::Equal(-before)
                } else {
                    Requirement::AtLeast(-(before + change))
                };
                self.take_back(&operations[..index], undo);
                return Ok(Some(Blocked { operation: index, semaphore: operation.semaphore, requirement }));
            }
            let adjusted = self.adjusted(operation, undo);
            if value + change > MAX_VALUE || adjusted.is_none() {
                self.take_back(&operations[..index], undo);
                return Err(Errno::ERANGE);
            }
            self.semaphores[number].value = (value + change) as u16;
            self.set_adjustment(operation, undo, adjusted.unwrap_or(0));
        }
        for operation in operations {
            self.semaphores[usize::from(operation.semaphore)].pid = pid;
        }
        Ok(None)
    }

    /// The semaphore's adjustment after an operation; `None` when that is more than an adjustment can be.
    fn adjusted(&self, operation: &Operation, undo: Option<u64>) -> Option<i16> {
        let undo = undo.filter(|_| operation.is_undone()).and_then(|list| self.undos.get(&list));
        let Some(undo) = undo else { return Some(0) };
        undo.adjustments[usize::from(operation.semaphore)].checked_sub(operation.change)
    }

    fn set_adjustment(&mut self, operation: &Operation, undo: Option<u64>, value: i16) {
        if operation.is_undone()
            && let Some(undo) = undo.and_then(|list| self.undos.get_mut(&list))
        {
            undo.adjustments[usize::from(operation.semaphore)] = value;
        }
    }

    fn take_back(&mut self, operations: &[Operation], undo: Option<u64>) {
        for operation in operations.iter().rev() {
            let semaphore = &mut self.semaphores[usize::from(operation.semaphore)];
            semaphore.value = (i32::from(semaphore.value) - i32::from(operation.change)) as u16;
            if operation.is_undone()
                && let Some(undo) = undo.and_then(|list| self.undos.get_mut(&list))
            {
                let adjustment = &mut undo.adjustments[usize::from(operation.semaphore)];
                *adjustment = adjustment.wrapping_add(operation.change);
            }
        }
    }

    /// Does what sleepers wait for, as far as it can be done now that some semaphores have changed: those who wait for a value first, then the
    /// others in the order in which they came.
    pub(super) fn settle(&mut self, changed: impl IntoIterator<Item = u16>) {
        for semaphore in changed {
            self.mark(semaphore);
        }
        while let Some(first) = self.waiting.first_due() {
            let semaphore = first.semaphore;
            // The value may have changed since.
            if self.waiting.candidate(semaphore, self.value(semaphore)) == Some(first)
                && let Some(sleeper) = self.waiting.sleeper(first.ticket)
            {
                match self.attempt(&sleeper.operations, sleeper.pid, sleeper.undo) {
                    Ok(Some(blocked)) => self.waiting.move_to(first.ticket, blocked),
                    result => {
                        self.waiting.remove(first.ticket);
                        if result.is_ok() {
                            self.operated_at = crate::ipc::now();
                            let changed = sleeper.operations.iter().filter(|operation| operation.change != 0);
                            changed.for_each(|operation| self.mark(operation.semaphore));
                        }
                        sleeper.complete(result.map(|_| ()));
                    }
                }
            }
            self.mark(semaphore);
            // One change may let many go on.
            sched::cond_resched();
        }
    }

    fn mark(&mut self, semaphore: u16) {
        let value = self.value(semaphore);
        self.waiting.mark(semaphore, value);
    }

    fn value(&self, semaphore: u16) -> i32 {
        i32::from(self.semaphores[usize::from(semaphore)].value)
    }
}
