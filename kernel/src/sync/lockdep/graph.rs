//! Which class was held when which was taken.

use core::fmt::Write;
use core::hint::spin_loop;
use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::memory::fallible::Text;

use super::class::{self, MOST};

const WORDS: usize = MOST / 64;

/// Bit n of row m: an edge from m to n. Set under the lock below.
static EDGES: [[AtomicU64; WORDS]; MOST] = [const { [const { AtomicU64::new(0) }; WORDS] }; MOST];
static LOCKED: AtomicBool = AtomicBool::new(false);

/// Where an edge was seen first.
struct Sample {
    /// The two classes, one in each half; 0 for none.
    classes: AtomicU32,
    held_at: AtomicPtr<Location<'static>>,
    taken_at: AtomicPtr<Location<'static>>,
}

const MOST_SAMPLES: usize = 8192;

static SAMPLES: [Sample; MOST_SAMPLES] = [const {
    Sample {
        classes: AtomicU32::new(0),
        held_at: AtomicPtr::new(ptr::null_mut()),
        taken_at: AtomicPtr::new(ptr::null_mut()),
    }
}; MOST_SAMPLES];
static SAMPLE_COUNT: AtomicUsize = AtomicUsize::new(0);

fn has(from: u16, to: u16) -> bool {
    // Relaxed: whoever misses an edge finds it under the lock.
    EDGES[from as usize][to as usize / 64].load(Ordering::Relaxed) >> (to % 64) & 1 != 0
}

/// Runs `work` while nobody else does. Interrupts are off.
fn alone<R>(work: impl FnOnce() -> R) -> R {
    while LOCKED.swap(true, Ordering::Acquire) {
        spin_loop();
    }
    let result = work();
    LOCKED.store(false, Ordering::Release);
    result
}

/// Notes that `to` is taken while `from` is held. An error if `from` is taken inside of `to` elsewhere. Interrupts are off.
pub(super) fn add(
    from: u16,
    to: u16,
    held_at: &'static Location<'static>,
    taken_at: &'static Location<'static>,
) -> Result<(), ()> {
    if from == to || has(from, to) {
        return Ok(());
    }
    alone(|| {
        if has(from, to) {
            return Ok(());
        }
        if search(to, from, |_| {}) {
            return Err(());
        }
        EDGES[from as usize][to as usize / 64].fetch_or(1 << (to % 64), Ordering::Relaxed);
        let number = SAMPLE_COUNT.fetch_add(1, Ordering::Relaxed);
        if let Some(sample) = SAMPLES.get(number) {
            sample.held_at.store(ptr::from_ref(held_at).cast_mut(), Ordering::Release);
            sample.taken_at.store(ptr::from_ref(taken_at).cast_mut(), Ordering::Release);
            sample.classes.store(u32::from(from) << 16 | u32::from(to), Ordering::Release);
        }
        Ok(())
    })
}

/// Whether edges lead from one class to another; shows each step of the shortest way, the last one first.
fn search(from: u16, to: u16, mut step: impl FnMut((u16, u16))) -> bool {
    /// For each class the one that it was reached from; used under the lock only.
    static REACHED_FROM: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
    static LIST: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
    const START: u32 = u32::MAX;
    // Relaxed throughout: under the lock.
    REACHED_FROM.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    REACHED_FROM[from as usize].store(START, Ordering::Relaxed);
    LIST[0].store(u32::from(from), Ordering::Relaxed);
    let (mut next, mut end) = (0, 1);
    while next < end {
        let at = LIST[next].load(Ordering::Relaxed) as u16;
        next += 1;
        if at == to {
            let mut at = to;
            loop {
                let before = REACHED_FROM[at as usize].load(Ordering::Relaxed);
                if before == START {
                    return true;
                }
                step((before as u16, at));
                at = before as u16;
            }
        }
        for (word, bits) in EDGES[at as usize].iter().enumerate() {
            let mut bits = bits.load(Ordering::Relaxed);
            while bits != 0 {
                let class = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if REACHED_FROM[class].load(Ordering::Relaxed) == 0 {
                    REACHED_FROM[class].store(u32::from(at), Ordering::Relaxed);
                    LIST[end].store(class as u32, Ordering::Relaxed);
                    end += 1;
                }
            }
        }
    }
    false
}

/// Writes the way from one class to another, each step with the place where it was seen first.
pub(super) fn show_way(from: u16, to: u16, text: &mut Text) {
    let mut way = [(0, 0); 16];
    let mut length = 0;
    crate::arch::interrupts::without(|| {
        alone(|| {
            search(from, to, |step| {
                if length < way.len() {
                    way[length] = step;
                    length += 1;
                }
            })
        })
    });
    for (held, taken) in way[..length].iter().rev() {
        // Writing to a string does not fail.
        let _ = write!(text, "\n    {} then {}", class::name(*held), class::name(*taken));
        let classes = u32::from(*held) << 16 | u32::from(*taken);
        let sample = SAMPLES.iter().find(|sample| sample.classes.load(Ordering::Acquire) == classes);
        let read = |place: &AtomicPtr<Location<'static>>| {
            // SAFETY: only references to static locations are stored.
            unsafe { place.load(Ordering::Acquire).as_ref() }
        };
        if let Some(sample) = sample
            && let (Some(held_at), Some(taken_at)) = (read(&sample.held_at), read(&sample.taken_at))
        {
            let _ = write!(text, ", held at {held_at}, taken at {taken_at}");
        }
    }
}
