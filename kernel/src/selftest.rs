//! Checks of the lowest layers at boot, with `selftest=1` on the command line; a failure is a panic.
//!
//! They run before the first thread, while nobody else uses memory, so that counters can be compared exactly.

mod grace;

use alloc::vec::Vec;
use core::alloc::Layout;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::arch::cpu::{self, CpuSet};
use crate::arch::tlb::{self, Flush};
use crate::arch::{clock, interrupts, ipi};
use crate::boot::cmdline;
use crate::memory::frame::{Frame, Use};
use crate::memory::stack::KernelStack;
use crate::memory::{self, PAGE_SIZE, PhysAddr, contiguous, paging};

/// Whether the command line asks for the checks.
pub fn wanted() -> bool {
    cmdline::get("selftest").is_some_and(|value| value != "0")
}

/// CPUs that take part.
static JOINED: AtomicU32 = AtomicU32::new(0);
/// How many of [`PARTS`] have begun.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
/// What the other CPUs do, one after the other.
const PARTS: [fn(); 2] = [storm, grace::read_until_stopped];
static ENDED: AtomicBool = AtomicBool::new(false);

/// Runs all checks on the boot CPU; the others are in [`join`], and leave it when this returns.
pub fn run() {
    let checks: [(&str, fn()); 13] = [
        ("frames are counted", frames_are_counted),
        ("user memory stops before the kernel's", user_memory_stops_first),
        ("freed blocks become whole again", blocks_become_whole),
        ("the heap gives memory back", heap_gives_back),
        ("heap objects do not overlap", heap_objects_do_not_overlap),
        ("kernel stacks give memory back", stacks_give_back),
        ("a call reaches every CPU", call_reaches_all),
        ("a shootdown makes every CPU see a new mapping", shootdown_is_seen),
        ("all CPUs call each other at once", call_storm),
        ("users take turns with their timers", crate::time::users_take_turns),
        ("a time behind all times never comes", crate::time::last_times),
        ("a page table outlives its readers", grace::readers_keep_a_table),
        ("page tables change under readers", || grace::tables_change_under_readers(|| begin(1))),
    ];
    for (name, check) in checks {
        let start = clock::now_ns();
        check();
        log::info!("selftest: {name}: {} us", (clock::now_ns() - start) / 1000);
    }
    ENDED.store(true, Ordering::SeqCst);
    wake_others();
    log::info!("selftest: all passed");
}

/// Waits for the checks, and takes part in those that need all CPUs. Interrupts are on.
pub fn join() {
    JOINED.fetch_add(1, Ordering::SeqCst);
    let mut done = 0;
    loop {
        interrupts::disable();
        if ENDED.load(Ordering::SeqCst) {
            interrupts::enable();
            return;
        }
        if BEGUN.load(Ordering::SeqCst) > done {
            interrupts::enable();
            PARTS[done]();
            done += 1;
        } else {
            // Not spinning: the host may have fewer CPUs than we.
            interrupts::enable_and_wait();
        }
    }
}

/// Sends the other CPUs into a part. All of them are in [`join`] by then.
fn begin(part: usize) {
    while JOINED.load(Ordering::SeqCst) != cpu::count() - 1 {
        core::hint::spin_loop();
    }
    BEGUN.store(part + 1, Ordering::SeqCst);
    wake_others();
}

fn wake_others() {
    for other in cpu::online().iter().filter(|cpu| *cpu != cpu::id()) {
        ipi::reschedule(other);
    }
}

fn frames_are_counted() {
    let before = memory::stats();
    let uses = [Use::Anon, Use::File, Use::PageTable, Use::KernelStack, Use::Heap, Use::Other];
    let frames: Vec<Frame> = (0..600)
        .map(|index| Frame::alloc_zeroed(uses[index % uses.len()]).expect("memory is free"))
        .collect();
    let during = memory::stats();
    let taken = 100 * PAGE_SIZE as u64;
    assert_eq!(during.anon - before.anon, taken);
    assert_eq!(during.file - before.file, taken);
    assert_eq!(during.page_tables - before.page_tables, taken);
    assert_eq!(during.kernel_stacks - before.kernel_stacks, taken);
    // SAFETY: the frames are ours.
    assert!(frames.iter().all(|frame| unsafe { *frame.as_ptr().cast::<u64>() } == 0));
    let mut addresses: Vec<PhysAddr> = frames.iter().map(Frame::phys).collect();
    addresses.sort_unstable();
    assert!(addresses.windows(2).all(|pair| pair[0] < pair[1]), "a frame was given twice");

    let shared = frames[0].clone();
    assert_eq!(shared.count(), 2);
    drop((frames, addresses));
    assert_eq!(shared.count(), 1);
    assert_eq!(memory::stats().anon - before.anon, PAGE_SIZE as u64);
    drop(shared);
    assert_unchanged(&before);
}

fn assert_unchanged(before: &memory::Stats) {
    let after = memory::stats();
    assert_eq!(
        (after.free, after.heap, after.anon, after.kernel_stacks, after.page_tables, after.huge),
        (before.free, before.heap, before.anon, before.kernel_stacks, before.page_tables, before.huge),
        "memory counters did not return"
    );
}

fn user_memory_stops_first() {
    let before = memory::stats();
    // Most of it in blocks, so that a large machine's memory is not touched page by page.
    let mut blocks = Vec::with_capacity(2048);
    for size in [1 << 30, 256 << 20, 32 << 20, 2 << 20] {
        while blocks.len() < blocks.capacity()
            && let Some(block) = contiguous::alloc(size, size, None)
        {
            blocks.push((block, size));
        }
    }
    // A list through the frames themselves, for a vector would use memory, too.
    let mut list: Option<PhysAddr> = None;
    let mut take = |for_use: Use| {
        let mut count = 0u64;
        while let Some(frame) = Frame::alloc(for_use) {
            let address = frame.into_raw();
            // SAFETY: the frame is ours.
            unsafe { *address.as_ptr::<Option<PhysAddr>>() = list };
            list = Some(address);
            count += 1;
        }
        count
    };
    let (anon, tables, heap) = (take(Use::Anon), take(Use::PageTable), take(Use::Heap));
    assert!(anon > 0 && tables > 0 && heap > 0, "{anon} {tables} {heap}");
    assert_eq!(memory::pressure(), memory::Pressure::Critical);
    assert!(contiguous::alloc(2 << 20, 2 << 20, None).is_none());
    while let Some(address) = list {
        // SAFETY: as above; the reference went into the list.
        unsafe {
            list = *address.as_ptr::<Option<PhysAddr>>();
            drop(Frame::from_raw(address));
        }
    }
    for (block, size) in blocks {
        // SAFETY: ours, and nobody uses it.
        unsafe { contiguous::free(block, size) };
    }
    assert_unchanged(&before);
    assert_eq!(memory::pressure(), memory::Pressure::None);
}

fn blocks_become_whole() {
    let before = memory::stats();
    let take_all = |size: usize| {
        let mut blocks = Vec::with_capacity(256);
        while blocks.len() < blocks.capacity()
            && let Some(block) = contiguous::alloc(size, size, None)
        {
            assert!(block.is_aligned(size as u64));
            blocks.push(block);
        }
        for block in &blocks {
            // SAFETY: ours, and nobody uses it.
            unsafe { contiguous::free(*block, size) };
        }
        blocks.len()
    };
    let (gib, two_mib) = (take_all(1 << 30), take_all(2 << 20));
    // Tear blocks up into single frames and give those back in another order.
    let mut frames: Vec<Option<Frame>> = (0..8192).map(|_| Frame::alloc(Use::Other)).collect();
    for step in 0..frames.len() {
        frames[step * 4099 % 8192] = None;
    }
    drop(frames);
    // A piece that is no power of two goes back by halves, too.
    let piece = contiguous::alloc(5 * PAGE_SIZE, PAGE_SIZE, None).expect("memory is free");
    // SAFETY: ours, and nobody uses it.
    unsafe {
        contiguous::free(piece, 2 * PAGE_SIZE);
        contiguous::free(piece + 2 * PAGE_SIZE as u64, 3 * PAGE_SIZE);
    }
    assert_eq!((take_all(1 << 30), take_all(2 << 20)), (gib, two_mib));
    assert_unchanged(&before);
}

fn heap_gives_back() {
    let before = memory::stats();
    for size in [1, 16, 100, 256, 700, 1500, 3000, 5000, 20_000, 3 << 20] {
        // More than the pages that are begun can have room for.
        let count = ((64 << 10) / size).max(64);
        let objects: Vec<Vec<u8>> = (0..count).map(|_| Vec::with_capacity(size)).collect();
        assert!(memory::stats().heap > before.heap);
        drop(objects);
    }
    assert_unchanged(&before);
}

fn heap_objects_do_not_overlap() {
    let before = memory::stats();
    let mut random = 1u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let mut live: Vec<(*mut u8, Layout, u8)> = Vec::with_capacity(500);
    let check = |&(pointer, layout, value): &(*mut u8, Layout, u8)| {
        // SAFETY: the object is live and was filled.
        let bytes = unsafe { core::slice::from_raw_parts(pointer, layout.size()) };
        assert!(bytes.iter().all(|byte| *byte == value), "an object of {layout:?} was overwritten");
    };
    for round in 0..20_000 {
        if live.len() == live.capacity() || (live.len() > 10 && next() % 3 == 0) {
            let object = live.swap_remove(next() % live.len());
            check(&object);
            // SAFETY: allocated with this layout, and forgotten.
            unsafe { alloc::alloc::dealloc(object.0, object.1) };
        } else {
            let size = 1 + next() % [64, 300, 5000, 20_000][next() % 4];
            let layout = Layout::from_size_align(size, 1 << (next() % 13)).expect("a valid layout");
            // SAFETY: the size is not 0.
            let pointer = unsafe { alloc::alloc::alloc(layout) };
            assert!(!pointer.is_null() && pointer.addr() % layout.align() == 0);
            // SAFETY: ours, of that size.
            unsafe { pointer.write_bytes(round as u8, size) };
            live.push((pointer, layout, round as u8));
        }
    }
    for object in live.drain(..) {
        check(&object);
        // SAFETY: allocated with this layout, and forgotten.
        unsafe { alloc::alloc::dealloc(object.0, object.1) };
    }
    drop(live);
    assert_unchanged(&before);
}

fn stacks_give_back() {
    let before = memory::stats();
    for _ in 0..4 {
        let stacks: Vec<KernelStack> =
            (0..500).map(|_| KernelStack::new().expect("memory is free")).collect();
        for stack in &stacks {
            // SAFETY: nobody runs on the stack.
            unsafe {
                (stack.bottom() as *mut u64).write_volatile(stack.bottom());
                ((stack.top() - 8) as *mut u64).write_volatile(stack.top());
            }
        }
        assert!(stacks.iter().all(|stack| {
            // SAFETY: as above.
            unsafe { (stack.bottom() as *const u64).read_volatile() == stack.bottom() }
        }));
    }
    let after = memory::stats();
    assert_eq!(after.kernel_stacks, before.kernel_stacks);
    // Tables of groups whose slots wait for the next flush may remain.
    assert!(after.page_tables - before.page_tables <= 16 * PAGE_SIZE as u64);
}

fn call_reaches_all() {
    let count = AtomicU32::new(0);
    for round in 1..=1000 {
        ipi::call(&cpu::online(), &|| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(count.load(Ordering::SeqCst), round * cpu::count());
    }
}

fn shootdown_is_seen() {
    let pages = [0u64, 1].map(|value| {
        let frame = Frame::alloc_zeroed(Use::Other).expect("memory is free");
        // SAFETY: the frame is ours.
        unsafe { *frame.as_ptr().cast::<u64>() = value };
        frame
    });
    let address = paging::map_device(pages[0].phys(), PAGE_SIZE as u64);
    let pointer = address.as_ptr::<u64>() as usize;
    for round in 1..200 {
        let expected = round % 2;
        paging::remap_device(address, pages[expected].phys());
        tlb::shootdown(&cpu::online(), Flush::Page(address.as_u64()));
        ipi::call(&cpu::online(), &|| {
            // SAFETY: mapped above.
            let seen = unsafe { (pointer as *const u64).read_volatile() };
            assert_eq!(seen, expected as u64, "a stale translation on CPU {}", cpu::id());
        });
    }
    // The page stays mapped, as all of the device area does.
    core::mem::forget(pages);
}

static STORM_CALLS: AtomicU64 = AtomicU64::new(0);
static STORM_LEFT: AtomicU32 = AtomicU32::new(0);
const STORM_ROUNDS: u64 = 200;

/// Each CPU calls all others, again and again, and serves theirs meanwhile.
fn storm() {
    assert!(interrupts::are_enabled());
    let mut others: CpuSet = cpu::online();
    others.remove(cpu::id());
    for _ in 0..STORM_ROUNDS {
        ipi::call(&others, &|| {
            // Relaxed: a count.
            STORM_CALLS.fetch_add(1, Ordering::Relaxed);
        });
    }
    // Nobody leaves before all are done: those would otherwise call CPUs that look idle, which is fine, too, but
    // then there were no storm.
    STORM_LEFT.fetch_sub(1, Ordering::SeqCst);
    while STORM_LEFT.load(Ordering::SeqCst) != 0 {
        core::hint::spin_loop();
    }
}

fn call_storm() {
    let cpus = cpu::count();
    STORM_LEFT.store(cpus, Ordering::SeqCst);
    begin(0);
    storm();
    assert_eq!(STORM_CALLS.load(Ordering::SeqCst), STORM_ROUNDS * u64::from(cpus) * u64::from(cpus - 1));
}
