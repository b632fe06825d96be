//! The notes of tables above those of leaves, by level and window.

use crate::addr::{Level, PhysAddr, TABLE_ENTRIES};
use crate::format::Protection;
use crate::lock::Spin;
use crate::machine::Machine;
use crate::memory::Tree;
use crate::window::Window;

/// The index of the first page, and the rights: the rest of the window follows from the level.
pub(crate) type Key = (u64, Protection);

pub(crate) struct Upper {
    pub(crate) frame: PhysAddr,
    pub(crate) attachments: u64,
    /// Of these, entries of processes.
    pub(crate) processes: u64,
    /// Tables that an entry which leads here reaches: this one, and all that are below it.
    pub(crate) reach: u64,
}

pub(crate) type UpperTree = Tree<Key, Upper>;

/// The tables of a file above its tables of leaves, by level: PMD and PUD tables.
pub(crate) struct Uppers<M: Machine>([Spin<M, UpperTree>; 2]);

impl<M: Machine> Uppers<M> {
    pub(crate) fn new() -> Uppers<M> {
        Uppers([Spin::<M, _>::new(Tree::new()), Spin::<M, _>::new(Tree::new())])
    }

    pub(crate) fn of(&self, level: Level) -> &Spin<M, UpperTree> {
        &self.0[usize::from(level > Level::Pmd)]
    }
}

pub(crate) fn key(window: &Window) -> Key {
    (window.first, window.rights)
}

/// The window of an entry of a table above.
pub(crate) fn child(window: &Window, entry: u64) -> Option<Window> {
    let pages = window.pages / TABLE_ENTRIES as u64;
    Some(Window { first: window.first + entry * pages, pages, level: window.level.below()?, ..*window })
}

/// Shows `visit` the tables above that can lead to the table of a window: the first page, the table, and its entry.
pub(crate) fn each_over(
    uppers: &mut UpperTree,
    window: &Window,
    mut visit: impl FnMut(u64, &mut Upper, usize),
) {
    let span = window.pages * (TABLE_ENTRIES as u64 - 1);
    let from = (window.first.saturating_sub(span), Protection::empty());
    uppers.find_from_mut(&from, |&(first, rights), upper| {
        // Behind the window: none leads to it any more.
        let Some(distance) = window.first.checked_sub(first) else { return Some(()) };
        if rights == window.rights && distance.is_multiple_of(window.pages) {
            visit(first, upper, (distance / window.pages) as usize);
        }
        None
    });
}

/// The window of a table above that begins at a page.
pub(crate) fn window_of(level: Level, leaf: Level, (first, rights): Key) -> Window {
    let pages = (level.span() >> leaf.shift()) * TABLE_ENTRIES as u64;
    Window { first, pages, level, entry: 0, rights }
}
