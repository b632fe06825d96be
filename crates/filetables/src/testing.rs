//! A machine for the unit tests: tables in an arena, address spaces of four levels, a count of flushes.

use std::boxed::Box;
use std::sync::Mutex;
use std::vec::Vec;

use crate::addr::{Level, PhysAddr, VirtAddr};
use crate::error::OutOfMemory;
use crate::format::{EntryValue, Format, X86_64};
use crate::frame::Frame;
use crate::machine::{Entry, Machine, Space, TableEntries};
use crate::sync::{Arc, Ordering, Tally};

/// Present, writable, user: an entry of the host that leads to a table of its own.
const HOST_TABLE: u64 = 0x7;

/// Tables live here for good, so that references to them need no unsafe code.
pub(crate) struct Arena {
    tables: Vec<Box<TableEntries>>,
    free: Mutex<Vec<usize>>,
}

impl Arena {
    fn allocate(&self) -> Option<PhysAddr> {
        self.free.lock().unwrap().pop().map(|number| PhysAddr((number as u64 + 1) << 12))
    }

    fn entries(&self, table: PhysAddr) -> &TableEntries {
        &self.tables[(table.0 >> 12) as usize - 1]
    }

    fn free(&self, table: PhysAddr) {
        let used = self.entries(table).iter().filter(|entry| entry.load(Ordering::SeqCst).0 != 0).count();
        assert_eq!(used, 0, "a table is given back with entries in it");
        self.free.lock().unwrap().push((table.0 >> 12) as usize - 1);
    }
}

pub(crate) struct TestMachine {
    arena: Arc<Arena>,
    spaces: Tally,
    pub(crate) flushes: Tally,
    at_allocation: Mutex<Option<Hook>>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl TestMachine {
    pub(crate) fn new(tables: usize) -> Arc<TestMachine> {
        let arena = Arena {
            tables: (0..tables).map(|_| Box::new([const { Entry::empty() }; 512])).collect(),
            free: Mutex::new((0..tables).collect()),
        };
        Arc::new(TestMachine {
            arena: Arc::new(arena),
            spaces: Tally::new(1),
            flushes: Tally::new(0),
            at_allocation: Mutex::default(),
        })
    }

    /// The hook runs once, at the next allocation of a table of a file.
    pub(crate) fn at_allocation(&self, hook: impl FnOnce() + Send + 'static) {
        *self.at_allocation.lock().unwrap() = Some(Box::new(hook));
    }

    pub(crate) fn free_tables(&self) -> usize {
        self.arena.free.lock().unwrap().len()
    }

    pub(crate) fn space(&self) -> TestSpace {
        let id = self.spaces.fetch_add(1, Ordering::SeqCst);
        TestSpace(Arc::new(Root {
            id,
            arena: self.arena.clone(),
            entries: [const { Entry::empty() }; 512],
            host_tables: Mutex::default(),
        }))
    }
}

impl Machine for TestMachine {
    type Format = X86_64;
    type RawSpinLock = parking_lot::RawMutex;
    type Space = TestSpace;

    fn allocate_table(&self) -> Option<PhysAddr> {
        let hook = self.at_allocation.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.arena.allocate()
    }

    fn retire_table(&self, table: PhysAddr) {
        self.arena.free(table);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        self.arena.entries(table)
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        let spaces = 1..self.spaces.load(Ordering::SeqCst);
        let flushed = spaces.into_iter().filter(|space| concerned(*space)).count();
        self.flushes.fetch_add(flushed as u64, Ordering::SeqCst);
    }
}

pub(crate) struct Root {
    id: u64,
    arena: Arc<Arena>,
    entries: TableEntries,
    host_tables: Mutex<Vec<PhysAddr>>,
}

impl Drop for Root {
    fn drop(&mut self) {
        let tables = core::mem::take(self.host_tables.get_mut().unwrap());
        for table in &tables {
            for entry in self.arena.entries(*table) {
                let value = entry.swap(EntryValue::default(), Ordering::SeqCst);
                assert!(
                    value.0 == 0 || value.0 & 0xfff == HOST_TABLE,
                    "an address space ends with {value:?}"
                );
            }
        }
        tables.into_iter().for_each(|table| self.arena.free(table));
    }
}

/// An address space: a root of its own, tables of the host from the arena.
#[derive(Clone)]
pub(crate) struct TestSpace(Arc<Root>);

impl TestSpace {
    /// Tables of the host below the root.
    pub(crate) fn host_tables(&self) -> usize {
        self.0.host_tables.lock().unwrap().len()
    }

    /// The frame and the rights that a walk finds.
    pub(crate) fn walk(&self, address: VirtAddr, leaf: Level) -> Option<(PhysAddr, crate::Protection)> {
        let mut entries = &self.0.entries;
        let mut level = Level::Pgd;
        let mut rights = crate::Protection::all();
        loop {
            let value = entries[level.index(address)].load(Ordering::SeqCst);
            if !X86_64::is_present(value) {
                return None;
            }
            // On x86-64 an entry that leads to a table has its rights where a leaf has them.
            rights &= X86_64::protection(value);
            if level == leaf {
                return Some((X86_64::leaf_frame(level, value), rights));
            }
            entries = self.0.arena.entries(X86_64::table_frame(value));
            level = level.below()?;
        }
    }

    fn down(&self, address: VirtAddr, level: Level, make: bool) -> Result<Option<&Entry>, OutOfMemory> {
        let mut entries = &self.0.entries;
        let mut at = Level::Pgd;
        while at > level {
            let entry = &entries[at.index(address)];
            let mut value = entry.load(Ordering::SeqCst);
            if value == EntryValue::default() {
                if !make {
                    return Ok(None);
                }
                let table = self.0.arena.allocate().ok_or(OutOfMemory)?;
                self.0.host_tables.lock().unwrap().push(table);
                value = EntryValue(table.0 | HOST_TABLE);
                entry.fill(value).unwrap();
            }
            if X86_64::is_managed(at, value) || X86_64::is_leaf(at, value) {
                return Ok(None);
            }
            entries = self.0.arena.entries(X86_64::table_frame(value));
            at = at.below().unwrap();
        }
        Ok(Some(&entries[level.index(address)]))
    }
}

impl Space for TestSpace {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        self.down(address, level, false).unwrap()
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        self.down(address, level, true)
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        let entry = self.down(address, level, false)?.ok_or(OutOfMemory)?;
        let table = self.0.arena.allocate().ok_or(OutOfMemory)?;
        self.0.host_tables.lock().unwrap().push(table);
        entry.store(EntryValue(table.0 | HOST_TABLE), Ordering::SeqCst);
        Ok(())
    }
}

/// A page that is a number. An odd one is not to be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page(pub(crate) PhysAddr);

impl Frame for Page {
    fn frame(&self) -> PhysAddr {
        PhysAddr(self.0.0 & !1)
    }

    fn is_shown(&self) -> bool {
        self.0.0 & 1 == 0
    }
}
