//! CPU numbers and sets of CPUs.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::percpu;

/// Most CPUs that the kernel can run; xAPIC identifiers have 8 bits.
pub const MAX_CPUS: usize = 256;
const WORDS: usize = MAX_CPUS / 64;

/// Number of a CPU, counted from 0, the boot CPU.
pub type CpuId = u32;

/// CPUs that run, at present or soon: those of the firmware's table that started.
static COUNT: AtomicU32 = AtomicU32::new(1);
static ONLINE: AtomicCpuSet = AtomicCpuSet::new();

/// The CPU that runs this code. Stays the same until the thread blocks or is preempted on its way to user mode.
pub fn id() -> CpuId {
    percpu::cpu_id()
}

/// How many CPUs are online: their numbers are 0 to this, exclusive.
pub fn count() -> u32 {
    COUNT.load(Ordering::SeqCst)
}

/// The CPUs that are online.
pub fn online() -> CpuSet {
    ONLINE.load()
}

/// Says that `cpu` takes interrupts and runs threads.
pub(super) fn set_online(cpu: CpuId) {
    ONLINE.insert(cpu);
    COUNT.store(online().len(), Ordering::SeqCst);
}

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuSet([u64; WORDS]);

impl CpuSet {
    pub const fn new() -> Self {
        Self([0; WORDS])
    }

    /// Every CPU that there could be.
    pub const fn all() -> Self {
        Self([u64::MAX; WORDS])
    }

    pub fn single(cpu: CpuId) -> Self {
        let mut set = Self::new();
        set.insert(cpu);
        set
    }

    pub fn contains(&self, cpu: CpuId) -> bool {
        self.0[cpu as usize / 64] >> (cpu % 64) & 1 != 0
    }

    pub fn insert(&mut self, cpu: CpuId) {
        self.0[cpu as usize / 64] |= 1 << (cpu % 64);
    }

    pub fn remove(&mut self, cpu: CpuId) {
        self.0[cpu as usize / 64] &= !(1 << (cpu % 64));
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many CPUs the set has.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub fn intersection(&self, other: &Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// The CPUs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + use<> {
        let mut words = self.0;
        let mut index = 0;
        core::iter::from_fn(move || {
            while index < WORDS {
                if words[index] != 0 {
                    let bit = words[index].trailing_zeros();
                    words[index] &= words[index] - 1;
                    return Some(index as u32 * 64 + bit);
                }
                index += 1;
            }
            None
        })
    }

    /// The set as little-endian 64-bit words, bit n of word w for CPU 64 w + n: Linux's `cpu_set_t`.
    pub fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    pub fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A set of CPUs that several CPUs change at once.
#[derive(Default)]
pub struct AtomicCpuSet([AtomicU64; WORDS]);

impl AtomicCpuSet {
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    pub fn insert(&self, cpu: CpuId) {
        self.0[cpu as usize / 64].fetch_or(1 << (cpu % 64), Ordering::SeqCst);
    }

    pub fn remove(&self, cpu: CpuId) {
        self.0[cpu as usize / 64].fetch_and(!(1 << (cpu % 64)), Ordering::SeqCst);
    }

    /// A copy; each word at one moment, not the whole.
    pub fn load(&self) -> CpuSet {
        CpuSet(core::array::from_fn(|i| self.0[i].load(Ordering::SeqCst)))
    }

    /// Adds `cpu`, and tells whether the 64 CPUs around it were all absent.
    pub(super) fn insert_was_empty(&self, cpu: CpuId) -> bool {
        self.0[cpu as usize / 64].fetch_or(1 << (cpu % 64), Ordering::SeqCst) == 0
    }

    /// Takes everything out, and returns it.
    pub(super) fn take(&self) -> CpuSet {
        CpuSet(core::array::from_fn(|i| self.0[i].swap(0, Ordering::SeqCst)))
    }
}
