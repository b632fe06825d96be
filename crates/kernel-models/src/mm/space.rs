//! An address space of one page of two words, and a CPU that runs it.

use loom::sync::Mutex;

use super::entry::Entry;
use super::forked::{self, Owned};
use super::tables::entries;
use crate::memory::PhysAddr;
use crate::memory::frame::{self, Frame, Use, WORDS};
use crate::sync::primitive::{AtomicU64, Ordering};

loom::lazy_static! {
    /// The lock of shared tables' leaves, as the kernel's `fork_files::keep_leaves`.
    static ref LEAVES: Mutex<()> = Mutex::new(());
}

const PLAIN: u64 = Entry::PRESENT | Entry::USER | Entry::ANON;

/// What a CPU has of the tables: the entry above in a paging-structure cache, the translation in its TLB.
#[derive(Default)]
struct Cached {
    above: Option<Entry>,
    page: Option<Entry>,
}

pub struct Space {
    /// The areas lock: faults and forks exclude each other.
    areas: Mutex<()>,
    /// The page-table lock.
    tables: Mutex<()>,
    slot: AtomicU64,
    /// Has its table pages that a file may lose? Then who copies it keeps its leaves meanwhile.
    is_mixed: bool,
    /// An instruction and a shootdown's interrupt exclude each other.
    cpu: Mutex<Cached>,
}

impl Space {
    fn empty(is_mixed: bool) -> Self {
        let (slot, cpu) = (AtomicU64::new(0), Mutex::default());
        Self { areas: Mutex::new(()), tables: Mutex::new(()), slot, is_mixed, cpu }
    }

    /// One whose page has this value in all words, in a table of its own.
    pub fn with(value: u64) -> Self {
        Self::made(value, false)
    }

    /// The same; the page is a copy of a file's.
    pub fn with_copy(value: u64) -> Self {
        Self::made(value, true)
    }

    fn made(value: u64, is_mixed: bool) -> Self {
        let space = Self::empty(is_mixed);
        let page = page_of([value; WORDS]);
        let table = Frame::alloc(Use::PageTable).expect("a frame").into_raw();
        leaf(table).store(page.with(Entry::WRITABLE).0, Ordering::SeqCst);
        space.slot.store(Entry::table(table).0, Ordering::SeqCst);
        space
    }

    pub fn fork(&self) -> Self {
        let child = Self::empty(self.is_mixed);
        let _areas = self.areas.lock().unwrap();
        {
            let _tables = self.tables.lock().unwrap();
            forked::share(&self.slot, &child.slot);
        }
        self.flush();
        child
    }

    /// A shootdown.
    fn flush(&self) {
        *self.cpu.lock().unwrap() = Cached::default();
    }

    /// What an instruction of the program finds, by what the CPU has cached or by a walk.
    fn translate(&self, cached: &mut Cached, store: bool) -> Option<PhysAddr> {
        if let Some(page) = cached.page.filter(|page| !store || page.has(Entry::WRITABLE)) {
            return Some(page.address());
        }
        let above = *cached.above.get_or_insert_with(|| Entry::load(&self.slot));
        let mut found = Entry::load(leaf(above.address()));
        if !above.has(Entry::WRITABLE) {
            found = found.without(Entry::WRITABLE);
        }
        if !found.is_present() || store && !found.has(Entry::WRITABLE) {
            // A fault: the CPU forgets what it went by.
            *cached = Cached::default();
            return None;
        }
        cached.page = Some(found);
        Some(found.address())
    }

    /// A load of the program.
    pub fn load(&self, word: usize) -> u64 {
        loop {
            {
                let mut cached = self.cpu.lock().unwrap();
                if let Some(page) = self.translate(&mut cached, false) {
                    return frame::words(page)[word].load(Ordering::Relaxed);
                }
            }
            // The page comes by another thread's fault.
            drop(self.areas.lock().unwrap());
        }
    }

    /// A store of the program. It ends at a page that a file has lost.
    pub fn store(&self, word: usize, value: u64) {
        loop {
            {
                let mut cached = self.cpu.lock().unwrap();
                if let Some(page) = self.translate(&mut cached, true) {
                    return frame::words(page)[word].store(value, Ordering::Relaxed);
                }
            }
            if !self.fault() {
                return;
            }
        }
    }

    /// A file loses the page that `spaces`, all of its list, have: as the kernel's `MappingList::unmap_with_copies`.
    pub fn lose(spaces: &[&Self]) {
        for _ in 0..2 {
            for space in spaces {
                let (page, is_shared) = {
                    let _tables = space.tables.lock().unwrap();
                    let above = Entry::load(&space.slot);
                    if !above.is_present() {
                        continue;
                    }
                    let _kept = above.is_forked(2).then(|| LEAVES.lock().unwrap());
                    let page = Entry(leaf(above.address()).swap(0, Ordering::SeqCst));
                    (page, above.is_forked(2))
                };
                if !page.owns_frame() {
                    continue;
                }
                match is_shared {
                    true => spaces.iter().for_each(|space| space.flush()),
                    false => space.flush(),
                }
                // SAFETY: the leaf owned it.
                drop(unsafe { Frame::from_raw(page.address()) });
            }
        }
    }

    /// A load of the program, if there is a page.
    pub fn look(&self, word: usize) -> Option<u64> {
        // Until it is done: no shootdown comes within an instruction.
        let mut cached = self.cpu.lock().unwrap();
        let page = self.translate(&mut cached, false)?;
        Some(frame::words(page)[word].load(Ordering::Relaxed))
    }

    /// As the kernel's `write_to_present`; false if there is no page.
    fn fault(&self) -> bool {
        let _areas = self.areas.lock().unwrap();
        let mut left = None;
        {
            let _tables = self.tables.lock().unwrap();
            let keep = || self.is_mixed.then(|| LEAVES.lock().unwrap());
            if Entry::load(&self.slot).is_forked(2) {
                let mut spare = Frame::alloc(Use::PageTable);
                if let Ok(Owned::Copied(table)) = forked::own(&self.slot, &mut spare, keep, || self.flush()) {
                    left = Some(table);
                }
            }
        }
        left.into_iter().for_each(forked::let_go);
        let _tables = self.tables.lock().unwrap();
        let slot = leaf(Entry::load(&self.slot).address());
        let old = Entry::load(slot);
        if !old.is_mapped() {
            return false;
        }
        if old.has(Entry::WRITABLE) {
            return true;
        }
        if Frame::count_at(old.address()) == 1 {
            slot.fetch_or(Entry::WRITABLE, Ordering::SeqCst);
            return true;
        }
        let words = frame::words(old.address()).each_ref();
        let copy = page_of(words.map(|word| word.load(Ordering::Relaxed)));
        slot.store(0, Ordering::SeqCst);
        self.flush();
        // SAFETY: the leaf owned it.
        drop(unsafe { Frame::from_raw(old.address()) });
        slot.store(copy.with(Entry::WRITABLE).0, Ordering::SeqCst);
        true
    }

    /// The process ends.
    pub fn exit(&self) {
        let _tables = self.tables.lock().unwrap();
        if Entry::load(&self.slot).is_forked(2) {
            let table = forked::leave(&self.slot);
            self.flush();
            return forked::let_go(table);
        }
        let table = Entry(self.slot.swap(0, Ordering::SeqCst)).address();
        let page = Entry::load(leaf(table));
        self.flush();
        // SAFETY: the entries owned them.
        drop(unsafe { (page.owns_frame().then(|| Frame::from_raw(page.address())), Frame::from_raw(table)) });
    }
}

fn page_of(values: [u64; WORDS]) -> Entry {
    let page = Frame::alloc(Use::Anon).expect("a frame");
    let words = frame::words(page.phys());
    words.iter().zip(values).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    Entry::new(page.into_raw(), PLAIN)
}

fn leaf<'a>(table: PhysAddr) -> &'a AtomicU64 {
    // SAFETY: none is needed.
    let leaves = unsafe { entries(table) };
    &leaves[0]
}
