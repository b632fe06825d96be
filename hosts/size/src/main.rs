//! A host of the library that is nothing but declarations. `cargo xtask sizes` links it, with what is not there left open,
//! and measures what the library adds to a kernel. It never runs.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::sync::Arc;
use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

use hugetlb::filetables::format::Native;
use hugetlb::lock_api::{GuardNoSend, RawMutex, RawRwLock};
use hugetlb::{
    Access, Chunk, Config, Entry, FallocateMode, File, Flush, Hugetlb, Level, Machine, MapOptions,
    MapRequest, Mapping, MountOptions, OutOfMemory, PageSize, PhysAddr, Protection, Space, SpaceToken,
    Superblock, TableEntries, VirtAddr, filetables,
};

unsafe extern "C" {
    /// All that a kernel would do, and whatever value the measured calls are made with.
    fn host(call: u64, argument: u64) -> u64;
}

/// A call that the linker cannot look into.
fn ask(call: u64, argument: u64) -> u64 {
    // SAFETY: nothing here is ever run.
    unsafe { host(call, argument) }
}

struct Kernel;

#[derive(Clone)]
struct Tables(u64);

struct Lock(u64);

// SAFETY: nothing here is ever run.
unsafe impl RawMutex for Lock {
    #[expect(clippy::declare_interior_mutable_const, reason = "how lock_api makes a lock")]
    const INIT: Lock = Lock(0);
    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        ask(1, self.0);
    }

    fn try_lock(&self) -> bool {
        ask(2, self.0) != 0
    }

    unsafe fn unlock(&self) {
        ask(3, self.0);
    }
}

// SAFETY: nothing here is ever run.
unsafe impl RawRwLock for Lock {
    #[expect(clippy::declare_interior_mutable_const, reason = "how lock_api makes a lock")]
    const INIT: Lock = Lock(0);
    type GuardMarker = GuardNoSend;

    fn lock_shared(&self) {
        ask(4, self.0);
    }

    fn try_lock_shared(&self) -> bool {
        ask(5, self.0) != 0
    }

    unsafe fn unlock_shared(&self) {
        ask(6, self.0);
    }

    fn lock_exclusive(&self) {
        ask(7, self.0);
    }

    fn try_lock_exclusive(&self) -> bool {
        ask(8, self.0) != 0
    }

    unsafe fn unlock_exclusive(&self) {
        ask(9, self.0);
    }
}

fn frame(address: u64) -> Option<PhysAddr> {
    (address != 0).then_some(PhysAddr(address))
}

impl filetables::Machine for Kernel {
    type Format = Native;
    type RawSpinLock = Lock;
    type Space = Tables;

    fn allocate_table(&self) -> Option<PhysAddr> {
        frame(ask(10, 0))
    }

    fn retire_table(&self, table: PhysAddr) {
        ask(11, table.0);
    }

    fn table(&self, table: PhysAddr) -> &TableEntries {
        // SAFETY: nothing here is ever run.
        unsafe { &*(ask(12, table.0) as *const TableEntries) }
    }

    fn flush_spaces(&self, concerned: &dyn Fn(u64) -> bool) {
        ask(13, u64::from(concerned(ask(14, 0))));
    }
}

impl Machine for Kernel {
    type RawMutex = Lock;
    type RawRwLock = Lock;
    type Payer = ();

    fn payer(&self) {}

    fn take_step(&self) -> Result<(), OutOfMemory> {
        (ask(15, 0) != 0).then_some(()).ok_or(OutOfMemory)
    }

    fn allocate_huge(&self, size: PageSize) -> Option<PhysAddr> {
        frame(ask(16, size.bytes()))
    }

    fn free_huge(&self, size: PageSize, frame: PhysAddr) {
        ask(17, size.bytes() + frame.0);
    }

    fn zero(&self, start: PhysAddr, bytes: u64) {
        ask(18, start.0 + bytes);
    }

    fn copy_huge(&self, size: PageSize, from: PhysAddr, to: PhysAddr) {
        ask(19, size.bytes() + from.0 + to.0);
    }

    fn flush(&self, batch: &[Flush<Tables>]) {
        for flush in batch {
            ask(20, flush.space.0 + flush.range.start.0);
        }
    }
}

impl Space for Tables {
    fn id(&self) -> u64 {
        self.0
    }

    fn find_entry(&self, address: VirtAddr, level: Level) -> Option<&Entry> {
        let entry = ask(21, address.0 + level as u64) as *const Entry;
        // SAFETY: nothing here is ever run.
        unsafe { entry.as_ref() }
    }

    fn entry(&self, address: VirtAddr, level: Level) -> Result<Option<&Entry>, OutOfMemory> {
        Ok(self.find_entry(address, level))
    }

    fn replace_managed(&self, address: VirtAddr, level: Level) -> Result<(), OutOfMemory> {
        (ask(22, address.0 + level as u64) != 0).then_some(()).ok_or(OutOfMemory)
    }
}

struct Heap;

// SAFETY: nothing here is ever run.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ask(23, layout.size() as u64) as *mut u8
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _: Layout) {
        ask(24, pointer as u64);
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

#[panic_handler]
fn panicked(_: &PanicInfo) -> ! {
    loop {
        ask(25, 0);
    }
}

/// Says a result to the host, so that nobody thinks that it is not needed.
fn say<T, E>(result: Result<T, E>) -> Option<T> {
    ask(26, u64::from(result.is_ok()));
    result.ok()
}

/// Calls what a kernel calls.
#[unsafe(no_mangle)]
extern "C" fn _start() {
    let hugetlb = Hugetlb::new(Kernel, Config::default());
    let pool = hugetlb.pool(PageSize::Size2M);
    pool.set_persistent(ask(30, 0), || ask(31, 0) != 0);
    say(pool.set_overcommit(ask(32, 0)));
    ask(33, pool.statistics().free + hugetlb.sharing().tables);
    let file = if ask(34, 0) == 0 {
        say(hugetlb.anonymous_file(PageSize::Size2M, ask(35, 0)))
    } else {
        mounted(&hugetlb)
    };
    if let Some(file) = file {
        of_file(&file);
    }
}

fn mounted(hugetlb: &Arc<Hugetlb<Kernel>>) -> Option<Arc<File<Kernel>>> {
    let options = ask(36, 0) as *const &str;
    // SAFETY: nothing here is ever run.
    let options = say(MountOptions::parse(unsafe { *options }))?;
    let superblock = say(Superblock::new(hugetlb, options))?;
    ask(37, superblock.statistics().blocks);
    say(superblock.create_file())
}

fn of_file(file: &Arc<File<Kernel>>) {
    if let Some(mode) = say(FallocateMode::from_flags(ask(38, 0) as u32)) {
        say(file.fallocate(mode, ask(39, 0), ask(40, 0), || ask(41, 0) != 0));
    }
    say(file.truncate(ask(42, 0)));
    say(file.reserve(ask(43, 0)..ask(44, 0)));
    if let Chunk::Data(page) = file.read(ask(45, 0), ask(46, 0)) {
        ask(47, page.address().0);
    }
    ask(48, file.statistics().pages);
    let options = MapOptions {
        shared: ask(49, 0) != 0,
        no_reserve: ask(50, 0) != 0,
        protection: Protection::from_bits_truncate(ask(51, 0) as _),
    };
    let request = MapRequest { start: VirtAddr(ask(52, 0)), length: ask(53, 0), offset: ask(54, 0), options };
    let mut token = SpaceToken::new(Tables(ask(55, 0)));
    if let Some(mapping) = say(file.map(&mut token, request)) {
        of_mapping(mapping, &mut token);
    }
}

fn of_mapping(mut mapping: Mapping<Kernel>, token: &mut SpaceToken<Tables>) {
    let access = if ask(60, 0) != 0 { Access::Write } else { Access::Read };
    say(mapping.fault(VirtAddr(ask(61, 0)), access));
    mapping.protect(Protection::from_bits_truncate(ask(62, 0) as _));
    say(mapping.leave_slot(VirtAddr(ask(63, 0))));
    mapping.settle(VirtAddr(ask(64, 0)));
    say(mapping.discard(VirtAddr(ask(65, 0))..VirtAddr(ask(66, 0))));
    say(mapping.move_to(VirtAddr(ask(67, 0))));
    ask(68, mapping.resident().shared + u64::from(mapping.translate(VirtAddr(ask(69, 0))).is_some()));
    let mut child = SpaceToken::new(Tables(ask(70, 0)));
    if let Some(other) = say(mapping.fork(&mut child)) {
        other.unmap(&mut child);
    }
    if let Some(other) = say(mapping.split(VirtAddr(ask(71, 0)))) {
        other.unmap(token);
    }
    mapping.unmap(token);
}
