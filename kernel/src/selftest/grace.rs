//! Checks that retired page tables outlive their readers, and no longer.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::arch::{clock, cpu};
use crate::memory::frame::{Frame, Use};
use crate::memory::{self, PAGE_SIZE, PhysAddr};
use crate::mm::table_entries;
use crate::sync::grace;

/// What a table is full of while readers may look at it, and what its frame is full of afterwards.
const LIVE: u64 = 0x11fe_11fe_11fe_11fe;
const DEAD: u64 = 0xdead_dead_dead_dead;

/// Exchanges of the table under the readers.
const ROUNDS: u32 = 3000;
/// Longer than any period lasts, on a slow machine.
const PATIENCE: u64 = 10 * crate::time::SECOND;

fn table(content: u64) -> Frame {
    let frame = Frame::alloc(Use::PageTable).expect("memory is free");
    fill(&frame, content);
    frame
}

fn fill(frame: &Frame, content: u64) {
    // SAFETY: the frame is ours, and has 512 words.
    let words = unsafe { table_entries(frame.phys()) };
    // Relaxed: whoever publishes it orders.
    words.iter().for_each(|word| word.store(content, Ordering::Relaxed));
}

/// A table stays as long as a reader on this CPU, and goes although the other CPUs sleep.
pub fn readers_keep_a_table() {
    let before = memory::stats().page_tables;
    grace::end_idle();
    let frame = table(LIVE);
    let address = frame.phys();
    let reading = grace::read();
    grace::retire(frame);
    for _ in 0..100 {
        grace::poll();
    }
    assert_eq!(Frame::count_at(address), 1, "a table was freed under its reader");
    assert_eq!(grace::waiting_frames(), 1);
    assert_eq!(memory::stats().page_tables, before + PAGE_SIZE as u64, "a retired table counts as a table");
    drop(reading);
    grace::quiescent();
    assert_eq!(Frame::count_at(address), 0, "a table outlived its grace period");
    assert_eq!(grace::waiting_frames(), 0);
    // Many at once come back as well, in as many steps as it takes.
    (0..500).for_each(|_| grace::retire(table(LIVE)));
    while grace::waiting_frames() != 0 {
        grace::quiescent();
    }
    assert_eq!(memory::stats().page_tables, before);
    assert!(grace::begin_idle());
}

static PUBLISHED: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static READS: AtomicU64 = AtomicU64::new(0);

/// What the other CPUs do during [`tables_change_under_readers`].
pub fn read_until_stopped() {
    grace::end_idle();
    while !STOP.load(Ordering::SeqCst) {
        let reading = grace::read();
        // Acquire: the content comes with the address.
        let address = PhysAddr(PUBLISHED.load(Ordering::Acquire));
        if address.0 != 0 {
            // SAFETY: what is published is not reused before the read section ends: that is what is tested.
            let words = unsafe { table_entries(address) };
            for word in words {
                let seen = word.load(Ordering::SeqCst);
                assert_eq!(seen, LIVE, "CPU {} reads a table that was reused", cpu::id());
            }
            READS.fetch_add(1, Ordering::SeqCst);
        }
        drop(reading);
        grace::quiescent();
    }
    while !grace::begin_idle() {}
}

/// One CPU puts new tables in the place of old ones and uses all memory that it gets back at once; the others read. `start` sends them to
/// [`read_until_stopped`].
pub fn tables_change_under_readers(start: impl FnOnce()) {
    let before = memory::stats().page_tables;
    grace::end_idle();
    start();
    let deadline = clock::now_ns() + PATIENCE;
    let readers = u64::from(cpu::count() - 1);
    let mut round = 0;
    // Not before the readers are at it; there are none on a machine with one CPU.
    while round < ROUNDS || READS.load(Ordering::SeqCst) < 100 * readers {
        round += 1;
        assert!(clock::now_ns() < deadline, "readers do not come on");
        // Release, by way of SeqCst: the content before the address.
        let old = PUBLISHED.swap(table(LIVE).into_raw().0, Ordering::SeqCst);
        if old != 0 {
            // SAFETY: the reference that `into_raw` gave away.
            grace::retire(unsafe { Frame::from_raw(PhysAddr(old)) });
        }
        let reused = Frame::alloc(Use::Other).expect("memory is free");
        fill(&reused, DEAD);
        drop(reused);
        grace::quiescent();
    }
    STOP.store(true, Ordering::SeqCst);
    // SAFETY: as above.
    grace::retire(unsafe { Frame::from_raw(PhysAddr(PUBLISHED.swap(0, Ordering::SeqCst))) });
    while grace::waiting_frames() != 0 {
        assert!(clock::now_ns() < deadline, "{} tables do not come back", grace::waiting_frames());
        grace::quiescent();
    }
    assert_eq!(memory::stats().page_tables, before);
    assert!(grace::begin_idle());
}
