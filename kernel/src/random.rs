//! Random numbers, for getrandom(2), `/dev/urandom` and the kernel itself.
//!
//! One ChaCha20 generator, seeded from the processor's own source where there is one and from the jitter of
//! the time stamp counter in any case. After each request it is keyed anew from its own output, so that what
//! was handed out cannot be computed from what is kept. Who wants much has a generator of its own for the call ([`Stream`]): the
//! lock, which keeps interrupts off, is held for one key.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use x86_64::instructions::random::RdRand;

use crate::sync::IrqLock;

static POOL: IrqLock<Option<ChaCha20Rng>> = IrqLock::new(None);

/// Fills `bytes` with random numbers.
pub fn fill(bytes: &mut [u8]) {
    let mut pool = POOL.lock();
    let generator = pool.get_or_insert_with(|| ChaCha20Rng::from_seed(entropy()));
    generator.fill_bytes(bytes);
    let mut key = [0; 32];
    generator.fill_bytes(&mut key);
    *generator = ChaCha20Rng::from_seed(key);
}

/// The numbers of one call, however many: keyed once from the pool, which is keyed anew.
pub struct Stream(ChaCha20Rng);

impl Stream {
    /// With a key of its own.
    pub fn new() -> Self {
        let mut key = [0; 32];
        fill(&mut key);
        Self(ChaCha20Rng::from_seed(key))
    }

    /// Fills `bytes` with random numbers.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

/// A random number.
pub fn number() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Stirs `bytes` into the generator's state: what user space writes to `/dev/urandom`. It cannot make the
/// numbers less random.
pub fn mix(bytes: &[u8]) {
    for chunk in bytes.chunks(32) {
        let mut pool = POOL.lock();
        let generator = pool.get_or_insert_with(|| ChaCha20Rng::from_seed(entropy()));
        let mut key = [0; 32];
        generator.fill_bytes(&mut key);
        for (k, b) in key.iter_mut().zip(chunk) {
            *k ^= b;
        }
        *generator = ChaCha20Rng::from_seed(key);
    }
}

/// A seed.
fn entropy() -> [u8; 32] {
    let mut seed = [0; 32];
    let hardware = RdRand::new();
    for word in seed.chunks_exact_mut(8) {
        let mut value = jitter();
        // The source may be exhausted for a moment; the manual says to try again a few times.
        if let Some(hardware) = hardware {
            value ^= (0..10).find_map(|_| hardware.get_u64()).unwrap_or(0);
        }
        word.copy_from_slice(&value.to_ne_bytes());
    }
    seed
}

/// What varies in how long memory accesses take.
fn jitter() -> u64 {
    let mut value = 0u64;
    for _ in 0..256 {
        // SAFETY: reads a counter; every 64-bit processor has it.
        let now = unsafe { core::arch::x86_64::_rdtsc() };
        value = value.rotate_left(7) ^ now.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        core::hint::black_box(&value);
    }
    value
}
