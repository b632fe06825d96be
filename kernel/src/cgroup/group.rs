//! A group: its place in the tree, its members, what it counts.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use intrusive_collections::RBTree;

use super::knob::Knob;
use super::member::InCgroup;
use super::{Controller, freezer, hugetlb, pids};
use crate::fs::inode::Inode;
use crate::memory::fallible::Text;
use crate::process::tree::TreeCell;
use crate::sync::{Mutex, Once, SpinLock};

/// The groups below one. Their numbers grow, so that a reader of the directory neither misses nor repeats one.
#[derive(Default)]
pub(super) struct Children {
    pub by_name: BTreeMap<Box<[u8]>, u64>,
    pub by_number: BTreeMap<u64, Arc<Group>>,
}

/// A control group.
pub struct Group {
    /// No other group ever has it.
    pub(super) number: u64,
    pub(super) name: Box<[u8]>,
    /// `None` for the root.
    pub(super) parent: Option<Arc<Group>>,
    pub(super) depth: u32,
    pub(super) children: Mutex<Children>,
    /// Its interface files; changed under the hierarchy's lock.
    pub(super) knobs: Mutex<Vec<Arc<Knob>>>,
    /// Its directory, until it is removed.
    pub(super) directory: SpinLock<Option<Arc<Inode>>>,
    /// The controllers that groups below have; changed under the hierarchy's lock.
    pub(super) subtree_control: AtomicU32,
    /// Removed: nothing comes into it. Set under the hierarchy's and the process tree's lock.
    dead: AtomicBool,
    /// Processes that have not ended; none are listed in the root.
    pub(super) members: TreeCell<RBTree<InCgroup>>,
    /// Groups below that are populated, and one more if there are members.
    pub(super) populated: TreeCell<u64>,
    pub(super) freezing: TreeCell<freezer::Freezing>,
    pub(super) pids: pids::Counter,
    /// What huge pages are charged to, while the controller is on here.
    pub(super) hugetlb: SpinLock<Option<Arc<hugetlb::Account>>>,
    /// `cgroup.max.depth` and `cgroup.max.descendants`; `u32::MAX` is none.
    pub(super) max_depth: AtomicU32,
    pub(super) max_descendants: AtomicU32,
    /// Groups below, and those that were removed and still are referred to.
    pub(super) descendants: AtomicU32,
    pub(super) dying: AtomicU32,
}

static ROOT: Once<Arc<Group>> = Once::new();

/// The root.
pub fn root() -> &'static Arc<Group> {
    ROOT.call_once(|| Group::new(None, b""))
}

impl Group {
    /// A group that nobody knows yet.
    pub(super) fn new(parent: Option<&Arc<Group>>, name: &[u8]) -> Arc<Group> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Group {
            // Relaxed: only the numbers have to differ.
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            depth: parent.map_or(0, |parent| parent.depth + 1),
            parent: parent.cloned(),
            children: Mutex::new(Children::default()),
            knobs: Mutex::new(Vec::new()),
            directory: SpinLock::new(None),
            subtree_control: AtomicU32::new(0),
            dead: AtomicBool::new(false),
            members: TreeCell::new(RBTree::new(InCgroup::NEW)),
            populated: TreeCell::new(0),
            freezing: TreeCell::new(freezer::Freezing::default()),
            pids: pids::Counter::new(),
            hugetlb: SpinLock::new(None),
            max_depth: AtomicU32::new(u32::MAX),
            max_descendants: AtomicU32::new(u32::MAX),
            descendants: AtomicU32::new(0),
            dying: AtomicU32::new(0),
        })
    }

    pub(super) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// Whether it was removed.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub(super) fn set_dead(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// It and those above it, but the root.
    pub(super) fn chain(self: &Arc<Group>) -> impl Iterator<Item = &Arc<Group>> {
        core::iter::successors(Some(self), |group| group.parent.as_ref()).filter(|group| !group.is_root())
    }

    /// The controllers that it may hand down: those that it has itself.
    pub(super) fn controllers(&self) -> u32 {
        self.parent.as_ref().map_or_else(Controller::all_bits, |parent| parent.handed_down())
    }

    /// The controllers that groups below have.
    pub(super) fn handed_down(&self) -> u32 {
        self.subtree_control.load(Ordering::SeqCst)
    }

    /// Its first child whose number is above `after`.
    pub(super) fn child_after(&self, after: u64) -> Option<Arc<Group>> {
        let children = self.children.lock();
        children.by_number.range(after + 1..).next().map(|(_, child)| child.clone())
    }

    /// The interface file of a name.
    pub(super) fn knob(&self, name: &str) -> Option<Arc<Knob>> {
        self.knobs.lock().iter().find(|knob| knob.interface.name == name).cloned()
    }

    /// Who reads, polls or watches this interface file hears of a change.
    pub(super) fn changed(&self, name: &str) {
        if let Some(knob) = self.knob(name) {
            knob.changed();
        }
    }

    /// Its path as seen from `base`: up to what both are below, and down from there.
    pub(super) fn push_path(self: &Arc<Group>, base: &Arc<Group>, text: &mut Text) {
        if Arc::ptr_eq(self, base) {
            return text.push_str("/");
        }
        let shared = |group: &&Arc<Group>| self.chain().any(|above| Arc::ptr_eq(above, group));
        let common = base.chain().find(shared).map_or(0, |group| group.depth);
        for _ in common..base.depth {
            text.push_str("/..");
        }
        // From there down: a name needs those above it first, and there are few.
        for depth in common + 1..=self.depth {
            text.push_str("/");
            if let Some(group) = self.chain().find(|group| group.depth == depth) {
                text.push_str(&alloc::string::String::from_utf8_lossy(&group.name));
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody refers to it any more.
        let mut above = self.parent.as_ref();
        while let Some(group) = above.filter(|_| *self.dead.get_mut()) {
            group.dying.fetch_sub(1, Ordering::SeqCst);
            above = group.parent.as_ref();
        }
    }
}
