//! Which files have page tables of their own: the kernel parameter `file_tables=`, and `/sys/kernel/mm/file_tables`.
//!
//! | value | tables of files |
//! | --- | --- |
//! | `all` (the default) | of huge pages, and of shared memory with base pages |
//! | `huge` | of huge pages only |
//! | `none` | none: huge pages go by `hugetlb_sharing=none`, unless that parameter says otherwise |

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use ::hugetlb::filetables::{AttachTally, Level, Totals};

use super::PAGE;
use crate::boot::cmdline;
use crate::errno::Result;
use crate::fs::sys;
use crate::hugetlb::Kernel;
use crate::sync::Once;

const NAMES: [&str; 3] = ["none", "huge", "all"];
const NONE: u8 = 0;
const ALL: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(ALL);
static MACHINE: Once<Arc<Kernel>> = Once::new();
static TOTALS: Once<Arc<Totals>> = Once::new();

/// Events since boot.
struct Events {
    shared: AtomicU64,
    made: AtomicU64,
    occupied: AtomicU64,
    crowded: AtomicU64,
    left: AtomicU64,
}

static EVENTS: Events = Events {
    shared: AtomicU64::new(0),
    made: AtomicU64::new(0),
    occupied: AtomicU64::new(0),
    crowded: AtomicU64::new(0),
    left: AtomicU64::new(0),
};

/// Reads the command line, before the first file is made.
pub fn init() {
    if let Some(value) = cmdline::get("file_tables") {
        match NAMES.iter().position(|name| *name == value) {
            // Relaxed, here and below: a setting on which no other data hangs.
            Some(mode) => MODE.store(mode as u8, Ordering::Relaxed),
            None => panic!("file_tables={value}: there are none, huge and all"),
        }
    }
}

/// Whether files of base pages have tables.
pub(super) fn for_base_pages() -> bool {
    MODE.load(Ordering::Relaxed) == ALL
}

/// Whether no file is to have tables.
pub fn are_off() -> bool {
    MODE.load(Ordering::Relaxed) == NONE
}

pub(super) fn machine() -> Arc<Kernel> {
    MACHINE.call_once(|| Arc::new(Kernel)).clone()
}

pub(super) fn totals() -> Arc<Totals> {
    TOTALS.call_once(Arc::default).clone()
}

/// Counts what came of attempts to attach.
pub(super) fn count(tally: &AttachTally) {
    // Relaxed, here and below: statistics.
    EVENTS.shared.fetch_add(tally.shared, Ordering::Relaxed);
    EVENTS.made.fetch_add(tally.made, Ordering::Relaxed);
    EVENTS.occupied.fetch_add(tally.occupied, Ordering::Relaxed);
    EVENTS.crowded.fetch_add(tally.crowded + tally.neighbours, Ordering::Relaxed);
}

/// Windows were left.
pub(super) fn count_left(windows: u64) {
    EVENTS.left.fetch_add(windows, Ordering::Relaxed);
}

/// Makes the files of `/sys/kernel/mm/file_tables`.
pub fn register() -> Result<()> {
    const DIRECTORY: &str = "kernel/mm/file_tables";
    let number = |name: &str, value: fn() -> u64| {
        let show = move || Ok(alloc::format!("{}\n", value()));
        sys::register_read_only(&alloc::format!("{DIRECTORY}/{name}"), show)
    };
    sys::register_read_only(&alloc::format!("{DIRECTORY}/mode"), || {
        Ok(alloc::format!("{}\n", NAMES[usize::from(MODE.load(Ordering::Relaxed))]))
    })?;
    number("pte/tables", || totals().tables_of(Level::Pte))?;
    number("pte/attachments", || totals().attachments_of(Level::Pte))?;
    number("pmd/tables", || totals().tables_of(Level::Pmd))?;
    number("pmd/attachments", || totals().attachments_of(Level::Pmd))?;
    number("pud/tables", || totals().tables_of(Level::Pud))?;
    number("pud/attachments", || totals().attachments_of(Level::Pud))?;
    number("tables", || totals().all().tables())?;
    number("attachments", || totals().all().attachments())?;
    // What processes would have of their own in the place of these.
    number("bytes_saved", || totals().all().reached().saturating_sub(totals().all().tables()) * PAGE)?;
    number("attached_shared", || EVENTS.shared.load(Ordering::Relaxed))?;
    number("attached_made", || EVENTS.made.load(Ordering::Relaxed))?;
    number("left", || EVENTS.left.load(Ordering::Relaxed))?;
    number("fallback_occupied", || EVENTS.occupied.load(Ordering::Relaxed))?;
    number("fallback_crowded", || EVENTS.crowded.load(Ordering::Relaxed))?;
    super::fork_tables::register(DIRECTORY)
}
