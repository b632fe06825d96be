//! What a mapping promises, on the test machine.

mod bounds;
mod broken;
mod check;
mod file_tables;
mod userfault;

use core::ops::{Deref, DerefMut};

use filetables::format::X86_64;
use filetables::{EntryValue, Format, Level, Protection};

use crate::addr::{PageIndex, PageSize, SLOT_SIZE, VirtAddr};
use crate::error::{Error, FaultError, OutOfMemory};
use crate::file::File;
use crate::hugetlb::Hugetlb;
use crate::mapping::{CheckRound, Mapping};
use crate::operation::{FallocateMode, MapOptions, MapRequest};
use crate::protocol::ProtocolKind;
use crate::sharing::Access;
use crate::sync::{Arc, Ordering};
use crate::testing::{TestMachine, TestSpace, hugetlb};
use crate::token::SpaceToken;

const MIB2: u64 = 2 << 20;
const RW: Protection = Protection::READ.union(Protection::WRITE);
const SHARED: MapOptions = MapOptions { shared: true, no_reserve: true, protection: RW };
const PRIVATE: MapOptions = MapOptions { shared: false, no_reserve: false, protection: RW };
const EMPTY: EntryValue = EntryValue(0);
const HERE: VirtAddr = VirtAddr(4 << 30);

type System = Arc<Hugetlb<TestMachine>>;

fn file(hugetlb: &System, bytes: u64) -> Arc<File<TestMachine>> {
    hugetlb.anonymous_file(PageSize::Size2M, bytes).unwrap()
}

fn map_at(
    file: &Arc<File<TestMachine>>,
    at: VirtAddr,
    length: u64,
    options: MapOptions,
) -> (TestSpace, Mapped) {
    let space = file.hugetlb().machine().space();
    let mapping = map(file, &space, (at, length, 0), options).unwrap();
    (space, mapping)
}

/// Maps a part of a file: start, length and offset.
fn map(
    file: &Arc<File<TestMachine>>,
    space: &TestSpace,
    (start, length, offset): (VirtAddr, u64, u64),
    options: MapOptions,
) -> Result<Mapped, Error> {
    let mut token = SpaceToken::new(space.clone());
    let mapping = file.map(&mut token, MapRequest { start, length, offset, options })?;
    Ok(Mapped { mapping: Some(mapping), token })
}

/// A mapping that is unmapped when it goes.
struct Mapped {
    mapping: Option<Mapping<TestMachine>>,
    token: SpaceToken<TestSpace>,
}

impl Mapped {
    fn fork(&self, space: TestSpace) -> Result<Mapped, OutOfMemory> {
        let mut token = SpaceToken::new(space);
        let child = Mapping::fork(self, &mut token)?;
        Ok(Mapped { mapping: Some(child), token })
    }

    fn split(&mut self, at: VirtAddr) -> Result<Mapped, Error> {
        let upper = Mapping::split(self, at)?;
        Ok(Mapped { mapping: Some(upper), token: SpaceToken::new(self.token.space().clone()) })
    }
}

impl Deref for Mapped {
    type Target = Mapping<TestMachine>;

    fn deref(&self) -> &Mapping<TestMachine> {
        self.mapping.as_ref().unwrap()
    }
}

impl DerefMut for Mapped {
    fn deref_mut(&mut self) -> &mut Mapping<TestMachine> {
        self.mapping.as_mut().unwrap()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.mapping.take().unwrap().unmap(&mut self.token);
    }
}

#[test]
#[should_panic(expected = "a mapping was dropped, not unmapped")]
fn a_mapping_that_is_dropped_is_told() {
    let hugetlb = hugetlb(2, ProtocolKind::FileTables);
    let (space, mut mapped) = map_at(&file(&hugetlb, MIB2), HERE, MIB2, SHARED);
    store(&mapped, HERE, 1);
    let mapping = mapped.mapping.take().unwrap();
    std::mem::forget(mapped);
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(mapping)));
    // It is unmapped all the same.
    assert_eq!((space.pud(HERE), pool(&hugetlb)), (EMPTY, (2, 0)));
    std::panic::resume_unwind(dropped.unwrap_err());
}

#[test]
#[should_panic(expected = "the token of another address space")]
fn the_token_of_another_address_space_unmaps_nothing() {
    let hugetlb = hugetlb(2, ProtocolKind::FileTables);
    let (_, mut mapped) = map_at(&file(&hugetlb, MIB2), HERE, MIB2, SHARED);
    mapped.token = SpaceToken::new(hugetlb.machine().space());
}

/// The pool's counters that must come back: free pages and promises.
fn pool(hugetlb: &System) -> (u64, u64) {
    let statistics = hugetlb.pool(PageSize::Size2M).statistics();
    assert!(statistics.reserved <= statistics.free && statistics.free <= statistics.total);
    (statistics.free, statistics.reserved)
}

fn store(mapping: &Mapping<TestMachine>, address: VirtAddr, value: u64) {
    let machine = mapping.file().hugetlb().machine();
    mapping.fault_then(address, Access::Write, |frame| machine.set_word(frame, value)).unwrap();
}

fn load(mapping: &Mapping<TestMachine>, address: VirtAddr) -> u64 {
    let machine = mapping.file().hugetlb().machine();
    mapping.fault_then(address, Access::Read, |frame| machine.word(frame)).unwrap()
}

#[test]
fn a_private_copy_outlives_its_discard_while_it_is_shown() {
    let hugetlb = hugetlb(2, ProtocolKind::FileTables);
    let (_, mapping) = map_at(&file(&hugetlb, MIB2), HERE, MIB2, PRIVATE);
    store(&mapping, HERE, 1);
    let free = || hugetlb.pool(PageSize::Size2M).statistics().free;
    let shown = mapping.inspect(HERE, |frame| {
        mapping.discard(HERE..HERE + MIB2).unwrap();
        (hugetlb.machine().word(frame.unwrap()), free())
    });
    assert_eq!(shown, Ok((1, 1)), "the page is still somebody's");
    assert_eq!(free(), 2);
}

#[test]
fn congruent_mappings_share_one_table_and_see_each_other() {
    let hugetlb = hugetlb(8, ProtocolKind::VmaLock);
    let tables = hugetlb.machine().free_tables();
    let file = file(&hugetlb, SLOT_SIZE);
    let (space_a, a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let (space_b, b) = map_at(&file, VirtAddr(9 << 30), SLOT_SIZE, SHARED);
    store(&a, HERE + 3 * MIB2, 77);
    assert_eq!(load(&b, VirtAddr(9 << 30) + 3 * MIB2), 77);
    assert!(X86_64::is_managed(Level::Pud, space_a.pud(HERE)));
    assert_eq!(space_a.pud(HERE), space_b.pud(VirtAddr(9 << 30)));
    // What one of them faults in is there for the other.
    store(&a, HERE + 5 * MIB2, 78);
    assert!(b.is_resident(VirtAddr(9 << 30) + 5 * MIB2));
    assert_eq!((hugetlb.sharing().tables, hugetlb.sharing().attachments), (1, 2));
    drop(a);
    assert_eq!(space_a.pud(HERE), EMPTY);
    assert_eq!(load(&b, VirtAddr(9 << 30) + 3 * MIB2), 77);
    drop((b, file));
    assert_eq!(pool(&hugetlb), (8, 0));
    assert_eq!(hugetlb.machine().free_tables(), tables);
}

#[test]
fn what_is_not_congruent_or_too_small_has_tables_of_the_host() {
    let hugetlb = hugetlb(8, ProtocolKind::VmaLock);
    let file = file(&hugetlb, SLOT_SIZE);
    let (_, _a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let (space, b) = map_at(&file, HERE + MIB2, SLOT_SIZE, SHARED);
    store(&b, HERE + MIB2, 1);
    assert!(X86_64::is_present(space.pud(HERE)) && !X86_64::is_managed(Level::Pud, space.pud(HERE)));
    assert_eq!(hugetlb.sharing().attachments, 0);
}

#[test]
fn a_hole_punch_takes_the_page_from_every_sharer() {
    let hugetlb = hugetlb(8, ProtocolKind::VmaLock);
    let file = file(&hugetlb, SLOT_SIZE);
    let mappings: std::vec::Vec<_> = (0..5).map(|_| map_at(&file, HERE, SLOT_SIZE, SHARED).1).collect();
    for mapping in &mappings {
        store(mapping, HERE, 5);
        store(mapping, HERE + MIB2, 6);
    }
    file.fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
    assert_eq!(pool(&hugetlb).0, 7);
    // Before anyone loads: the first to fault fills the table for the others.
    assert!(mappings.iter().all(|mapping| !mapping.is_resident(HERE)));
    for mapping in &mappings {
        assert_eq!(load(mapping, HERE), 0);
        assert_eq!(load(mapping, HERE + MIB2), 6);
    }
    assert_eq!(hugetlb.sharing().tables, 1);
}

#[test]
fn a_truncation_makes_accesses_sigbus_and_gives_promises_back() {
    let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
    let file = file(&hugetlb, 4 * MIB2);
    let reserving = MapOptions { no_reserve: false, ..SHARED };
    let (_, mapping) = map_at(&file, HERE, 4 * MIB2, reserving);
    store(&mapping, HERE + 2 * MIB2, 1);
    assert_eq!(pool(&hugetlb), (3, 3));
    file.truncate(MIB2).unwrap();
    assert_eq!(pool(&hugetlb), (4, 1));
    assert_eq!(mapping.fault(HERE + 2 * MIB2, Access::Read), Err(FaultError::Sigbus));
    store(&mapping, HERE, 1);
    assert_eq!(pool(&hugetlb), (3, 0));
    drop((mapping, file));
    assert_eq!(pool(&hugetlb), (4, 0));
}

#[test]
fn a_shared_promise_is_made_once_for_a_part_of_the_file() {
    let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
    let file = file(&hugetlb, 8 * MIB2);
    let reserving = MapOptions { no_reserve: false, ..SHARED };
    let (_, _a) = map_at(&file, HERE, 3 * MIB2, reserving);
    let (_, _b) = map_at(&file, HERE, 4 * MIB2, reserving);
    assert_eq!(pool(&hugetlb), (4, 4));
    let space = hugetlb.machine().space();
    assert!(matches!(map(&file, &space, (HERE, 5 * MIB2, 0), reserving), Err(Error::NoMemory)));
    assert_eq!(pool(&hugetlb), (4, 4));
}

#[test]
fn private_copies_are_copied_on_write_after_a_fork() {
    let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
    let file = file(&hugetlb, 2 * MIB2);
    let (_, parent) = map_at(&file, HERE, 2 * MIB2, PRIVATE);
    assert_eq!(pool(&hugetlb), (4, 2));
    store(&parent, HERE, 1);
    let child = parent.fork(hugetlb.machine().space()).unwrap();
    assert_eq!(load(&child, HERE), 1);
    store(&child, HERE, 2);
    assert_eq!((load(&parent, HERE), load(&child, HERE)), (1, 2));
    store(&parent, HERE, 3);
    assert_eq!((load(&parent, HERE), load(&child, HERE)), (3, 2));
    drop(parent);
    assert_eq!(load(&child, HERE), 2);
    drop(child);
    assert_eq!(pool(&hugetlb), (4, 0));
}

#[test]
fn the_owner_of_the_promise_takes_a_page_back_from_its_children() {
    let hugetlb = hugetlb(1, ProtocolKind::VmaLock);
    let file = file(&hugetlb, MIB2);
    let (_, parent) = map_at(&file, HERE, MIB2, PRIVATE);
    store(&parent, HERE, 1);
    let child = parent.fork(hugetlb.machine().space()).unwrap();
    assert_eq!(load(&child, HERE), 1);
    assert_eq!(child.fault(HERE, Access::Write), Err(FaultError::Sigbus));
    store(&parent, HERE, 2);
    assert_eq!(load(&parent, HERE), 2);
    assert_eq!(child.fault(HERE, Access::Read), Err(FaultError::Sigbus));
    drop((parent, child));
    assert_eq!(pool(&hugetlb), (1, 0));
}

#[test]
fn discarding_a_private_page_renews_its_promise() {
    let hugetlb = hugetlb(2, ProtocolKind::VmaLock);
    let file = file(&hugetlb, 2 * MIB2);
    let (_, mapping) = map_at(&file, HERE, 2 * MIB2, PRIVATE);
    store(&mapping, HERE, 1);
    assert_eq!(pool(&hugetlb), (1, 1));
    mapping.discard(HERE..HERE + MIB2).unwrap();
    assert_eq!(pool(&hugetlb), (2, 2));
    assert_eq!(load(&mapping, HERE), 0);
    drop(mapping);
    assert_eq!(pool(&hugetlb), (2, 0));
}

/// The private page of a mapping, as somebody else than a mapping holds it.
fn private_page(mapping: &Mapping<TestMachine>) -> Arc<crate::pool::Page<TestMachine>> {
    let index = PageIndex(0);
    mapping.area.page(&mapping.file, index).unwrap()
}

#[test]
fn a_promise_comes_back_from_a_page_whose_fault_is_not_over() {
    let hugetlb = hugetlb(2, ProtocolKind::VmaLock);
    let file = file(&hugetlb, MIB2);
    let (_, mapping) = map_at(&file, HERE, MIB2, PRIVATE);
    assert_eq!(pool(&hugetlb), (2, 1));
    let discarded = mapping.fault_then(HERE, Access::Write, |_| {
        assert_eq!(pool(&hugetlb), (1, 0));
        mapping.discard(HERE..HERE + MIB2)
    });
    discarded.unwrap().unwrap();
    assert_eq!(pool(&hugetlb), (2, 1));
    // Nobody else gets the promised page.
    assert_eq!(self::file(&hugetlb, 2 * MIB2).reserve(0..2 * MIB2), Err(Error::NoMemory));
    store(&mapping, HERE, 1);
    drop(mapping);
    assert_eq!(pool(&hugetlb), (2, 0));
}

#[test]
fn a_look_from_outside_needs_no_right_and_makes_nothing() {
    let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
    let file = file(&hugetlb, 3 * MIB2);
    let machine = hugetlb.machine();
    let look = |mapping: &Mapping<TestMachine>, address| {
        mapping.inspect(address, |frame| frame.map(|frame| machine.word(frame)))
    };
    for options in [SHARED, PRIVATE] {
        let (space, mut mapping) = map_at(&file, HERE, 4 * MIB2, options);
        file.truncate(3 * MIB2).unwrap();
        store(&mapping, HERE, 7);
        mapping.protect(Protection::empty());
        let before = (pool(&hugetlb), space.pud(HERE));
        assert_eq!(look(&mapping, HERE), Ok(Some(7)));
        assert_eq!(look(&mapping, HERE + MIB2), Ok(None));
        assert_eq!(look(&mapping, HERE + 3 * MIB2), Err(FaultError::Sigbus));
        assert_eq!(look(&mapping, HERE + 4 * MIB2), Err(FaultError::NotMapped));
        assert_eq!((pool(&hugetlb), space.pud(HERE)), before);
        drop(mapping);
        file.fallocate(FallocateMode::PunchHole, 0, 3 * MIB2, || false).unwrap();
    }
}

#[test]
fn whoever_looks_at_a_private_page_is_no_sharer_of_it() {
    let hugetlb = hugetlb(1, ProtocolKind::VmaLock);
    let file = file(&hugetlb, MIB2);
    let (_, mut parent) = map_at(&file, HERE, MIB2, PRIVATE);
    store(&parent, HERE, 1);
    let child = parent.fork(hugetlb.machine().space()).unwrap();
    let frame = private_page(&parent).frame();
    // A reader, and a checker that has seen the page in both.
    let reader = private_page(&child);
    let mut round = CheckRound::new(&hugetlb);
    child.check(&mut round).unwrap();
    parent.check(&mut round).unwrap();
    drop(child);
    // Without rights in between, so that the store faults. The pool is empty: a copy would be SIGBUS.
    parent.protect(Protection::READ);
    parent.protect(RW);
    store(&parent, HERE, 2);
    assert_eq!((private_page(&parent).frame(), hugetlb.sharing().faults_copied), (frame, 0));
    // Nor do they keep the page and its promise.
    parent.discard(HERE..HERE + MIB2).unwrap();
    assert_eq!(pool(&hugetlb), (0, 0));
    drop(reader);
    assert_eq!(pool(&hugetlb), (1, 1));
    store(&parent, HERE, 3);
}

#[test]
fn a_child_that_exits_shares_its_pages_until_its_flush() {
    let hugetlb = hugetlb(2, ProtocolKind::VmaLock);
    let file = file(&hugetlb, MIB2);
    let (_, parent) = map_at(&file, HERE, MIB2, PRIVATE);
    store(&parent, HERE, 1);
    let child = parent.fork(hugetlb.machine().space()).unwrap();
    load(&child, HERE);
    let page = private_page(&parent);
    assert_eq!(page.shares(), 2);
    let seen = Arc::new(core::sync::atomic::AtomicU64::new(0));
    let noted = seen.clone();
    hugetlb.machine().at_flush(move || noted.store(page.shares(), Ordering::SeqCst));
    drop(child);
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert_eq!(private_page(&parent).shares(), 1);
}

#[test]
fn a_split_takes_its_slot_out_of_the_shared_table() {
    let hugetlb = hugetlb(8, ProtocolKind::VmaLock);
    let file = file(&hugetlb, 2 * SLOT_SIZE);
    let (space, mut a) = map_at(&file, HERE, 2 * SLOT_SIZE, SHARED);
    let (_, b) = map_at(&file, HERE, 2 * SLOT_SIZE, SHARED);
    for mapping in [&a, &b] {
        store(mapping, HERE, 1);
        store(mapping, HERE + SLOT_SIZE, 2);
    }
    let upper = a.split(HERE + MIB2).unwrap();
    assert_eq!(space.pud(HERE), EMPTY);
    assert!(X86_64::is_managed(Level::Pud, space.pud(HERE + SLOT_SIZE)));
    assert_eq!((load(&a, HERE), load(&upper, HERE + SLOT_SIZE), load(&b, HERE)), (1, 2, 1));
    assert!(!X86_64::is_managed(Level::Pud, space.pud(HERE)));
    drop(upper);
    assert_eq!(space.pud(HERE + SLOT_SIZE), EMPTY);
    assert_eq!(a.fault(HERE + MIB2, Access::Read), Err(FaultError::NotMapped));
    assert_eq!((load(&a, HERE), load(&b, HERE + SLOT_SIZE)), (1, 2));
}

#[test]
fn protection_changes_leave_partners_alone() {
    let hugetlb = hugetlb(8, ProtocolKind::VmaLock);
    let file = file(&hugetlb, SLOT_SIZE);
    let (space_a, mut a) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    let (space_b, b) = map_at(&file, HERE, SLOT_SIZE, SHARED);
    store(&a, HERE, 1);
    store(&b, HERE, 2);
    a.protect(Protection::READ);
    assert_eq!(a.fault(HERE, Access::Write), Err(FaultError::Access));
    assert_eq!((load(&a, HERE), load(&b, HERE)), (2, 2));
    assert_ne!(space_a.pud(HERE), space_b.pud(HERE));
    assert_eq!(b.translate(HERE).map(|(_, writable)| writable), Some(true));
    assert_eq!(a.translate(HERE).map(|(_, writable)| writable), Some(false));
    // Alone in its table, it changes the entries in place.
    a.protect(RW);
    assert_eq!(a.translate(HERE).map(|(_, writable)| writable), Some(true));
    a.protect(Protection::empty());
    assert_eq!(a.fault(HERE, Access::Read), Err(FaultError::Access));
    assert_eq!(load(&b, HERE), 2);
}

#[test]
fn a_moved_mapping_finds_its_pages_again() {
    let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
    let file = file(&hugetlb, 2 * MIB2);
    for options in [SHARED, PRIVATE] {
        let (_, mut mapping) = map_at(&file, HERE, 2 * MIB2, options);
        store(&mapping, HERE, 9);
        mapping.move_to(VirtAddr(7 << 30)).unwrap();
        assert_eq!(mapping.fault(HERE, Access::Read), Err(FaultError::NotMapped));
        assert_eq!(load(&mapping, VirtAddr(7 << 30)), 9);
    }
}

#[test]
fn without_a_table_frame_a_fault_changes_nothing_that_stays() {
    let hugetlb = hugetlb(2, ProtocolKind::VmaLock);
    let file = file(&hugetlb, MIB2);
    let (_, mapping) = map_at(&file, HERE, MIB2, SHARED);
    let hoard: std::vec::Vec<_> =
        core::iter::from_fn(|| filetables::Machine::allocate_table(hugetlb.machine())).collect();
    assert_eq!(mapping.fault(HERE, Access::Write), Err(FaultError::OutOfMemory));
    for table in hoard {
        filetables::Machine::retire_table(hugetlb.machine(), table);
    }
    store(&mapping, HERE, 1);
    drop((mapping, file));
    assert_eq!(pool(&hugetlb), (2, 0));
}

#[test]
fn a_page_that_a_child_still_holds_does_not_renew_the_promise() {
    let hugetlb = hugetlb(3, ProtocolKind::VmaLock);
    let file = file(&hugetlb, MIB2);
    let (_, mut parent) = map_at(&file, HERE, MIB2, PRIVATE);
    store(&parent, HERE, 1);
    let child = parent.fork(hugetlb.machine().space()).unwrap();
    // Without an entry, nothing but the two private maps holds the page.
    parent.protect(Protection::empty());
    parent.protect(RW);
    parent.discard(HERE..HERE + MIB2).unwrap();
    // The page is the child's now; a renewed promise would count one page twice.
    assert_eq!(pool(&hugetlb), (2, 0));
    store(&parent, HERE, 2);
    assert_eq!((load(&child, HERE), load(&parent, HERE)), (1, 2));
    // One page is free, so two cannot be promised.
    assert_eq!(self::file(&hugetlb, 2 * MIB2).reserve(0..2 * MIB2), Err(Error::NoMemory));
    drop((parent, child, file));
    assert_eq!(pool(&hugetlb), (3, 0));
}

#[test]
fn a_copy_shows_only_after_the_origin_was_flushed() {
    let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
    let file = file(&hugetlb, MIB2);
    let (space, parent) = map_at(&file, HERE, MIB2, PRIVATE);
    store(&parent, HERE, 1);
    let child = parent.fork(hugetlb.machine().space()).unwrap();
    assert_eq!(load(&parent, HERE), 1);
    // At each flush the entry that is flushed must be gone, or writable by nobody.
    let before = hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst);
    hugetlb.machine().watch(space, HERE);
    store(&parent, HERE, 2);
    assert!(hugetlb.machine().flushes.load(crate::sync::Ordering::SeqCst) > before);
    assert_eq!(hugetlb.machine().seen(), [EMPTY]);
    assert_eq!((load(&child, HERE), load(&parent, HERE)), (1, 2));
}

#[test]
fn pages_of_1_gib_are_leaves_in_the_pud_table() {
    let hugetlb = hugetlb(0, ProtocolKind::VmaLock);
    let gib = hugetlb.pool(PageSize::Size1G);
    assert_eq!(gib.set_persistent(2, || false), 2);
    let file = hugetlb.anonymous_file(PageSize::Size1G, 2 * SLOT_SIZE).unwrap();
    let (space, mut mapping) = map_at(&file, HERE, 2 * SLOT_SIZE, SHARED);
    store(&mapping, HERE + SLOT_SIZE, 4);
    assert!(X86_64::is_leaf(Level::Pmd, space.pud(HERE + SLOT_SIZE)) && !X86_64::is_present(space.pud(HERE)));
    let upper = mapping.split(HERE + SLOT_SIZE).unwrap();
    drop(mapping);
    assert_eq!(load(&upper, HERE + SLOT_SIZE), 4);
    file.fallocate(FallocateMode::PunchHole, SLOT_SIZE, SLOT_SIZE, || false).unwrap();
    assert_eq!(space.pud(HERE + SLOT_SIZE), EMPTY);
    assert_eq!(gib.statistics().free, 2);
    assert_eq!(hugetlb.pool(PageSize::Size1G).set_overcommit(1), Err(Error::Invalid));
}

#[test]
fn the_pool_follows_linux_when_it_is_resized_in_use() {
    let hugetlb = hugetlb(4, ProtocolKind::VmaLock);
    let pool = hugetlb.pool(PageSize::Size2M);
    let file = file(&hugetlb, 3 * MIB2);
    let (_, mapping) = map_at(&file, HERE, 3 * MIB2, MapOptions { no_reserve: false, ..SHARED });
    store(&mapping, HERE, 1);
    // One page is used, two are promised: those stay, as surplus.
    assert_eq!(pool.set_persistent(0, || false), 0);
    let now = pool.statistics();
    assert_eq!((now.total, now.free, now.reserved, now.surplus), (3, 2, 2, 3));
    drop((mapping, file));
    let now = pool.statistics();
    assert_eq!((now.total, now.free, now.reserved, now.surplus), (0, 0, 0, 0));
    // Overcommit lends pages for promises and takes them back.
    pool.set_overcommit(2).unwrap();
    let file = self::file(&hugetlb, 3 * MIB2);
    assert_eq!(file.reserve(0..3 * MIB2), Err(Error::NoMemory));
    file.reserve(0..2 * MIB2).unwrap();
    assert_eq!((pool.statistics().surplus, pool.statistics().reserved), (2, 2));
    drop(file);
    assert_eq!(pool.statistics().total, 0);
}

#[test]
fn a_walk_that_found_a_mapping_before_it_went_does_not_touch_what_came_to_its_place() {
    let hugetlb = hugetlb(8, ProtocolKind::VmaLock);
    let (old, new) = (file(&hugetlb, 2 * MIB2), file(&hugetlb, 2 * MIB2));
    let (space, gone) = map_at(&old, HERE, 2 * MIB2, SHARED);
    store(&gone, HERE, 1);
    // What a truncation of the old file holds while it waits for the mapping's lock.
    let everything = crate::range_list::Search { indices: 0..u64::MAX, ages: 0..u64::MAX };
    let area = old.mappings().read().find(&everything, None, |_, area| Some(area.clone())).unwrap();
    drop(gone);
    let mapping = map(&new, &space, (HERE, 2 * MIB2, 0), SHARED).unwrap();
    store(&mapping, HERE, 2);
    old.fallocate(FallocateMode::PunchHole, 0, MIB2, || false).unwrap();
    area.unmap_indices(&old, 0..2, 1);
    assert!(mapping.is_resident(HERE), "another file's entry was taken");
    assert_eq!(load(&mapping, HERE), 2);
}
