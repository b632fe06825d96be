//! Where the parts of a new program go, and how much of that is random.
//!
//! Linux puts the program some TiB from the mappings and the stack, and these up to a TiB from each other, so that a process has two or
//! three page tables of each of two levels for them, whatever it shares. Here they are *near* each other: a random GiB, and in it, from low
//! to high,
//!
//! ```text
//! stack, downwards | mappings, downwards | program | heap, upwards
//! ```
//!
//! each at a random place of its own share. The stack and the heap leave the GiB at its ends: nothing is in their way. Mappings that do not
//! fit between the stack and where they begin go below the *room* that is kept for the stack, which a program may raise the limit of.
//! Each of them begins well inside a window (the reach of a table of the lowest level), and so does what the
//! program writes to: with the first pages of the heap that is one table.
//!
//! Places are as on Linux (*far*) with the kernel parameter `layout=far`, without randomness (a debugger's users know these addresses),
//! and with a larger limit of the stack than that room is made for.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;

use crate::boot::cmdline;
use crate::mm::layout::{SLOT, STACK_GUARD};
use crate::mm::windows::WINDOW;
use crate::mm::{PAGE, TASK_SIZE, limit, page_down};
use crate::random;

/// Bits of randomness in pages for mappings and program, the stack, and the heap, as Linux's defaults on x86-64.
const MMAP_BITS: u32 = 28;
const STACK_BITS: u32 = 22;
const HEAP_BITS: u32 = 13;
/// The stack can grow to that even if its limit was lower at first, as on Linux without randomness.
const LEAST_STACK: u64 = 128 << 20;
/// By how much a running program may raise that limit and have the stack all the same: on Linux it is the randomness of all places, half
/// of which this is.
const RAISE: u64 = 16 << 30;

/// The first GiB that may be drawn, how many there are in a row, and how many such rows. ThreadSanitizer, as it is in GCC and in LLVM until
/// 17, takes nothing below 0x7e80_0000_0000 for a program's own memory; the other sanitizers take what lies much further below. That leaves
/// 96 GiB and more for mappings of such a program, and 512 GiB and more for a heap.
const LOWEST: u64 = 0x7ea0_0000_0000;
const ROW: u64 = 384;
const ROWS: u64 = 2;
/// From one row to the next: what a table above has one entry for. The first GiBs of that are no row's, so that what goes below the
/// room for the stack needs no other one.
const WIDE: u64 = SLOT << 9;
/// Mappings have that much between the stack and where they begin at least, and a program with its heap has that much of the GiB.
const LEAST_BETWEEN: u64 = 192 << 20;
const LEAST_ABOVE: u64 = 64 << 20;
/// The largest limit of a stack that leaves enough of a row for mappings below its room.
const MOST_STACK: u64 = 16 << 30;
const SHARE: u64 = (SLOT - LEAST_BETWEEN - LEAST_ABOVE) / 3 / WINDOW * WINDOW;
/// What mappings and stack have of their first window at least: the small ones of a process without libraries, and a stack as it begins.
const FIRST_MAPPINGS: u64 = 512 << 10;
const FIRST_STACK: u64 = 256 << 10;
/// What a heap is to have in the window where the program ends: a C library takes 132 KiB at first.
const FIRST_HEAP: u64 = 256 << 10;
/// What of its random distance from the program's end may not go for that.
const LEAST_GAP: u64 = 128 << 10;

static NEAR: AtomicBool = AtomicBool::new(true);

/// Reads the kernel parameter `layout=`: `near` (the default) or `far`.
pub fn init() {
    match cmdline::get("layout") {
        None | Some("near") => {}
        // Relaxed, here and below: a setting on which no other data hangs.
        Some("far") => NEAR.store(false, Ordering::Relaxed),
        Some(other) => panic!("layout={other}: there are near and far"),
    }
}

/// What of a position-independent program decides where it can go.
pub struct Shape {
    pub len: u64,
    /// What its address must be a multiple of.
    pub granule: u64,
    /// For tables of the file to show its text: the address modulo a window.
    pub phase: Option<u64>,
    /// What is written to, up from the program's begin.
    pub written: Range<u64>,
}

/// Addresses of a new program.
pub struct Origins {
    /// End of the stack.
    pub stack_top: u64,
    /// For [`super::super::space::Layout`].
    pub mmap_base: u64,
    pub stack_room: Range<u64>,
    /// Where a position-independent program goes, if that is near the rest; and where Linux has one.
    near_program: Option<u64>,
    far_program: u64,
    /// Random numbers, or zeroes: where in its windows the program goes, and how far behind it the heap.
    within: u64,
    heap: u64,
}

impl Origins {
    /// Random ones, or always the same.
    pub fn new(is_random: bool) -> Self {
        // All at once, which costs no more than one: it is much of what a small program costs here.
        let mut bytes = [0; 9 * 8];
        if is_random {
            random::fill(&mut bytes);
        }
        let word = |index: usize| u64::from_ne_bytes(bytes.as_chunks().0[index]);
        let [far, within, heap, gib, program] = [0, 1, 2, 3, 4].map(word);
        let (map, stack) = ([5, 6].map(word), [7, 8].map(word));
        let far_program = page_down(TASK_SIZE / 3 * 2) + pages_below(far, PAGE << MMAP_BITS);
        let limit = limit(abi::RLIMIT_STACK);
        // Relaxed: see `init`.
        if !is_random || !NEAR.load(Ordering::Relaxed) || limit > MOST_STACK {
            let stack_top = TASK_SIZE - pages_below(stack[0], PAGE << STACK_BITS);
            // Room for the stack to grow to its limit, plus its guard and what randomness may have taken from the top; all of it within
            // sense, as on Linux: a base 1 MiB lower leaves half as many pages to the first table below it.
            let pad = STACK_GUARD + if is_random { PAGE << STACK_BITS } else { 0 };
            let gap = limit.saturating_add(pad).clamp(LEAST_STACK, TASK_SIZE / 6 * 5);
            let mmap_base = page_down(TASK_SIZE - gap) - pages_below(map[0], PAGE << MMAP_BITS);
            return Self {
                stack_top,
                mmap_base,
                stack_room: 0..0,
                near_program: None,
                far_program,
                within,
                heap,
            };
        }
        // A window of the share, and a page of that with what is to be in the same window before it.
        let place = |[window, page]: [u64; 2], first: u64| {
            window % (SHARE / WINDOW) * WINDOW + first + pages_below(page, WINDOW - first + PAGE)
        };
        let stacks = LOWEST + gib / ROW % ROWS * WIDE + gib % ROW * SLOT;
        let mappings = stacks + SHARE + LEAST_BETWEEN;
        let programs = mappings + SHARE;
        let stack_top = stacks + place(stack, FIRST_STACK);
        let room = page_down(limit) + PAGE + STACK_GUARD + RAISE;
        Self {
            stack_top,
            mmap_base: mappings + place(map, FIRST_MAPPINGS),
            stack_room: stack_top - room..stack_top,
            near_program: Some(programs + pages_below(program, SHARE)),
            far_program,
            within,
            heap,
        }
    }

    /// Near which place a program of this shape goes, if it is not too large for that.
    fn near(&self, shape: &Shape) -> Option<u64> {
        self.near_program.filter(|_| shape.len <= SLOT && shape.granule <= WINDOW)
    }

    /// Where a position-independent program of this shape begins.
    pub fn program(&self, shape: &Shape) -> u64 {
        let Some(origin) = self.near(shape) else {
            // Also what is too large to be near anything.
            return match shape.phase {
                Some(phase) => (self.far_program & !(WINDOW - 1)) + phase,
                None => self.far_program & !(shape.granule - 1),
            };
        };
        // Up from there: below are the mappings.
        if let Some(phase) = shape.phase {
            return origin.next_multiple_of(WINDOW) + phase;
        }
        // All of it in one window, if that leaves it enough places there; else what is written to.
        let keep = if shape.len <= WINDOW / 4 { &(0..shape.len) } else { &shape.written };
        let len = keep.end - keep.start + FIRST_HEAP + LEAST_GAP;
        if len > WINDOW / 4 * 3 || keep.is_empty() || shape.granule != PAGE {
            return origin.next_multiple_of(shape.granule);
        }
        let window = (origin + keep.start).next_multiple_of(WINDOW);
        window + pages_below(self.within, WINDOW - len + PAGE) - keep.start
    }

    /// Where the heap begins behind a program that ends at `end`, a multiple of the page: one of this shape, if it has no addresses of its own.
    pub fn heap(&self, end: u64, shape: Option<&Shape>) -> u64 {
        // In the program's last window; but not if everybody knows where in a window the program ends, who has seen its file: an address of
        // the heap would tell all of the program's.
        let is_at_any_page = |shape: &&Shape| shape.phase.is_none() && shape.granule == PAGE;
        let gaps = (end.next_multiple_of(WINDOW) - end).saturating_sub(FIRST_HEAP);
        let is_near =
            shape.filter(is_at_any_page).and_then(|shape| self.near(shape)).is_some() && gaps >= LEAST_GAP;
        end + pages_below(self.heap, if is_near { gaps } else { PAGE << HEAP_BITS })
    }
}

/// A multiple of the page below `end`, which is one and not 0: as random as `number`.
fn pages_below(number: u64, end: u64) -> u64 {
    number % (end / PAGE) * PAGE
}
