//! The numbers that a thread has in the PID namespaces below the first.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;
use core::sync::atomic::{AtomicUsize, Ordering};

use intrusive_collections::RBTreeAtomicLink;

use super::pid::Entry;
use super::{PidNamespace, View};
use crate::errno::Result;
use crate::memory::fallible;
use crate::process::Pid;

/// The numbers of a thread that is in a namespace below the first: one for each level. Groups and sessions share those of the process
/// that made them, so that a number stays taken as long as anything has it.
///
/// That is the thread while it is registered, and each group and session that is made of its numbers. Who merely knows the thread, as a
/// descriptor of it does, keeps what the numbers were, not the numbers.
pub struct Numbers {
    /// How many have them; the last one gives them back.
    holders: AtomicUsize,
    /// The deepest: the one that the thread itself sees.
    namespace: Arc<PidNamespace>,
    /// For the levels from 1 on. Never moved or resized: the namespaces refer to the entries.
    entries: Vec<Entry>,
}

impl Numbers {
    /// Takes numbers in `namespace` and all above it but the first, for the thread that has the number `global` there; `None` when there
    /// is nothing but the first. `wanted` has numbers from the deepest level up, which were checked. Errors as [`PidNamespace::allocate`].
    pub fn take(namespace: &Arc<PidNamespace>, global: Pid, wanted: &[i32]) -> Result<Option<Arc<Self>>> {
        if namespace.is_initial() {
            return Ok(None);
        }
        let mut entries = fallible::with_capacity(namespace.level as usize)?;
        // From the first level down: dropped half-way, it gives back what it has.
        let holders = AtomicUsize::new(1);
        let mut numbers = Self { holders, namespace: namespace.clone(), entries: Vec::new() };
        core::mem::swap(&mut numbers.entries, &mut entries);
        for level in 1..=namespace.level {
            let at = at_level(namespace, level);
            let number = match wanted.get((namespace.level - level) as usize) {
                None => at.allocate()?,
                Some(wanted) => at.allocate_this(*wanted as Pid)?,
            };
            numbers.entries.push(Entry { number, global, link: RBTreeAtomicLink::new() });
            let entry = numbers.entries.last().expect("just pushed");
            // SAFETY: there is room for all entries, so the vector never moves them; `drop` takes them out.
            unsafe { at.enter(entry) };
        }
        Ok(Some(Arc::new(numbers)))
    }

    /// Another one has them. Under the tree's lock, while somebody has them; else they stay given back.
    pub(crate) fn hold(&self) {
        self.holders.fetch_add(1, Ordering::SeqCst);
    }

    /// One that had them has them no more.
    pub(crate) fn give_back(&self) {
        if self.holders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.leave();
        }
    }

    fn leave(&self) {
        for (index, entry) in self.entries.iter().enumerate() {
            at_level(&self.namespace, index as u32 + 1).leave(entry);
        }
    }

    /// The namespace that the thread itself sees.
    pub fn namespace(&self) -> &Arc<PidNamespace> {
        &self.namespace
    }

    /// The number that the thread itself sees.
    pub fn own(&self) -> Pid {
        self.entries.last().map_or(0, |entry| entry.number)
    }

    /// The number in `namespace`, one below the first; `None` when the thread is not in it.
    pub fn in_namespace(&self, namespace: &PidNamespace) -> Option<Pid> {
        let entry = self.entries.get((namespace.level as usize).checked_sub(1)?)?;
        core::ptr::eq(Arc::as_ptr(at_level(&self.namespace, namespace.level)), namespace)
            .then_some(entry.number)
    }

    /// The numbers in the namespace that is looked from, unless that is the first, and in all below it.
    pub fn seen_from(&self, view: &View) -> impl Iterator<Item = Pid> {
        self.entries.iter().skip(view.level().saturating_sub(1) as usize).map(|entry| entry.number)
    }

    /// Does nobody come to one of the namespaces any more? Under the tree's lock: who is linked before that is found by the end of
    /// the first process.
    pub(crate) fn are_closed(&self) -> bool {
        self.namespaces().any(|namespace| namespace.is_closed())
    }

    /// The namespaces from the deepest up, without the first.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Arc<PidNamespace>> {
        core::iter::successors(Some(&self.namespace), |at| at.parent.as_ref())
            .take_while(|at| !at.is_initial())
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The numbers of a group or session, which has them as long as it is there.
pub struct SharedNumbers(Arc<Numbers>);

impl SharedNumbers {
    /// Of the process that makes it.
    pub fn new(numbers: &Arc<Numbers>) -> Self {
        numbers.hold();
        Self(numbers.clone())
    }
}

impl Deref for SharedNumbers {
    type Target = Arc<Numbers>;

    fn deref(&self) -> &Arc<Numbers> {
        &self.0
    }
}

impl Drop for SharedNumbers {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// The namespace above `namespace`, or itself, that is so deep.
fn at_level(namespace: &Arc<PidNamespace>, level: u32) -> &Arc<PidNamespace> {
    let mut at = namespace;
    while at.level > level {
        at = at.parent.as_ref().expect("only the first has none above");
    }
    at
}
