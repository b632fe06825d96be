//! Who adopts orphans: the nearest ancestor that wants them, else the first process of the PID namespace.
//!
//! An end does not look through all its ancestors: a process knows that none of them adopts, as its parent knew when it was made. A
//! process that begins to adopt while it has children makes all of that old, by a new number of the state of things. Who finds what it
//! knows to be old looks through its ancestors, some in a hold of the tree's lock, and leaves the answer to its parent, too.
//!
//! All of it is under the tree's lock.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Process;
use super::tree::{self, Look};

/// The number of the state of things. It grows when a process with children begins to adopt.
static STATE: AtomicU64 = AtomicU64::new(1);

/// Ancestors that are looked at in one hold of the tree's lock.
const ANCESTORS_IN_A_HOLD: usize = 64;

/// A process's part.
pub(super) struct Adoption {
    /// It adopts the orphans below it: prctl(PR_SET_CHILD_SUBREAPER).
    adopts: AtomicBool,
    /// In this state no ancestor in the same PID namespace did; 0 when that is not known.
    none_above: AtomicU64,
}

impl Adoption {
    /// Of a process about whose ancestors nothing is known.
    pub const fn new() -> Self {
        Self { adopts: AtomicBool::new(false), none_above: AtomicU64::new(0) }
    }

    /// A process without a parent.
    pub fn begin_tree(&self) {
        // Relaxed: under the tree's lock, here and below.
        self.none_above.store(STATE.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// A child is made by the process of `maker`, as a sibling of that one or below it.
    pub fn inherit(&self, maker: &Self, is_sibling: bool) {
        let below_one = !is_sibling && maker.adopts.load(Ordering::Relaxed);
        let known = if below_one { 0 } else { maker.none_above.load(Ordering::Relaxed) };
        self.none_above.store(known, Ordering::Relaxed);
    }
}

/// How far a search is that goes on in the next hold.
pub(super) struct Search {
    at: Arc<Process>,
    state: u64,
}

impl Process {
    /// prctl(PR_SET_CHILD_SUBREAPER).
    pub fn set_subreaper(&self, on: bool) {
        let tree = tree::look();
        let before = self.adoption.adopts.swap(on, Ordering::Relaxed);
        if on && !before && !self.relations.get(&tree).children.is_empty() {
            STATE.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// prctl(PR_GET_CHILD_SUBREAPER).
    pub fn is_subreaper(&self) -> bool {
        self.adoption.adopts.load(Ordering::Relaxed)
    }
}

/// The new parent for the children of a process that ends. `Err` when the search goes on in another hold, with what it gives.
pub(super) fn new_parent(
    tree: &Look,
    process: &Process,
    search: Option<&Search>,
) -> Result<Option<Arc<Process>>, Search> {
    let level = |process: &Process| process.numbers.as_ref().map_or(0, |numbers| numbers.namespace().level);
    let own_level = level(process);
    let now = STATE.load(Ordering::Relaxed);
    let is_known = |process: &Process| process.adoption.none_above.load(Ordering::Relaxed) == now;
    let parent = process.parent_locked(tree);
    // Race: the ancestor where the last hold ended was waited for meanwhile. What was above it is found from the process itself.
    let search = search.filter(|search| search.at.relations.get(tree).leader.is_some());
    let state = search.map_or(now, |search| search.state);
    let parent_here = parent.filter(|parent| level(parent) == own_level);
    if !is_known(process) {
        let mut at = search.map_or(parent, |search| Some(&search.at));
        let mut left = ANCESTORS_IN_A_HOLD;
        while let Some(ancestor) = at.filter(|ancestor| level(ancestor) == own_level) {
            if ancestor.is_subreaper() && ancestor.count_locked(tree) > 0 {
                return Ok(Some(ancestor.clone()));
            }
            if is_known(ancestor) {
                break;
            }
            if left == 0 {
                return Err(Search { at: ancestor.clone(), state });
            }
            left -= 1;
            at = ancestor.parent_locked(tree);
        }
        process.adoption.none_above.store(state, Ordering::Relaxed);
    }
    if let Some(parent) = parent_here.filter(|parent| !is_known(parent)) {
        parent.adoption.none_above.store(state, Ordering::Relaxed);
    }
    let first = process.numbers.as_ref().and_then(|numbers| numbers.namespace().init.get(tree).clone());
    Ok(first.or_else(|| tree.init()))
}
