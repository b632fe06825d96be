//! The floating-point and vector registers of user mode; the kernel is built without.

use core::arch::asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};

use super::features;
use crate::errno::{Errno, Result};
use crate::mm::uaccess;

/// State components that user mode may use: x87, SSE and, where there is one, AVX.
const X87_SSE: u64 = 0b011;
const AVX: u64 = 0b100;

const LEGACY_SIZE: usize = 512;
const HEADER_SIZE: usize = 64;
const AVX_SIZE: usize = 256;
const AREA_SIZE: usize = LEGACY_SIZE + HEADER_SIZE + AVX_SIZE;

/// Where the legacy area keeps the control registers.
const CONTROL_WORD: usize = 0;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
/// Bytes of the legacy area that software may use: Linux describes the extended state there.
const SOFTWARE: usize = 464;

const INITIAL_CONTROL_WORD: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;
/// Bits of MXCSR that exist where the CPU does not say.
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;

const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;

/// The user-visible floating-point state of one thread.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct FpuState {
    area: [u8; AREA_SIZE],
}

/// The state that a program starts with on Linux.
static INITIAL: FpuState = {
    let mut area = [0; AREA_SIZE];
    area[CONTROL_WORD] = INITIAL_CONTROL_WORD.to_le_bytes()[0];
    area[CONTROL_WORD + 1] = INITIAL_CONTROL_WORD.to_le_bytes()[1];
    area[MXCSR] = INITIAL_MXCSR.to_le_bytes()[0];
    area[MXCSR + 1] = INITIAL_MXCSR.to_le_bytes()[1];
    // The components that count; all numbers above have no more bytes than are set.
    area[LEGACY_SIZE] = X87_SSE as u8;
    FpuState { area }
};

impl Default for FpuState {
    /// The state that a program starts with on Linux.
    fn default() -> Self {
        INITIAL.clone()
    }
}

/// Components that XSAVE and XRSTOR handle here.
fn components() -> u64 {
    X87_SSE | if features::has_avx() { AVX } else { 0 }
}

/// Bytes of the area that this CPU uses.
fn used_size() -> usize {
    match (features::has_xsave(), features::has_avx()) {
        (false, _) => LEGACY_SIZE,
        (true, false) => LEGACY_SIZE + HEADER_SIZE,
        (true, true) => AREA_SIZE,
    }
}

/// Lets user mode use the registers on the calling CPU.
pub(super) fn init() {
    if features::has_xsave() {
        let enabled = components();
        // SAFETY: the CPU has these components.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") enabled as u32, in("edx") (enabled >> 32) as u32, options(nostack))
        };
    }
    load_initial();
    // Relaxed: the same on every CPU, and written before any program runs.
    MXCSR_BITS.store(
        match FpuState::new().saved().word(MXCSR_MASK) {
            0 => DEFAULT_MXCSR_MASK,
            mask => mask,
        },
        Ordering::Relaxed,
    );
}

/// The bits of MXCSR that the CPUs have, as they report them.
static MXCSR_BITS: AtomicU32 = AtomicU32::new(DEFAULT_MXCSR_MASK);

fn mxcsr_bits() -> u32 {
    // Relaxed: see `init`.
    MXCSR_BITS.load(Ordering::Relaxed)
}

/// Loads this CPU's registers with the state that a program starts with.
pub fn load_initial() {
    INITIAL.load();
}

/// Loads this CPU's registers from a signal frame, which user mode may have changed: what would fault in XRSTOR is `EINVAL`. A null
/// pointer means the initial state.
pub fn load_from_signal_frame(address: usize) -> Result<()> {
    if address == 0 {
        load_initial();
        return Ok(());
    }
    uaccess::check_range(address, FpuState::signal_frame_size())?;
    let used = used_size();
    let mut state = MaybeUninit::<FpuState>::uninit();
    // SAFETY: the state's own memory, of which at most all is written.
    let missing = unsafe { uaccess::copy_from_user_raw(state.as_mut_ptr().cast(), address, used) };
    // The extended part may be missing, when the program has built the frame itself.
    if missing > used - LEGACY_SIZE {
        return Err(Errno::EFAULT);
    }
    let there = used - missing;
    // SAFETY: inside the state; with this all of its bytes are written, and any bytes make one.
    let state = unsafe {
        state.as_mut_ptr().cast::<u8>().add(there).write_bytes(0, AREA_SIZE - there);
        state.assume_init_mut()
    };
    let is_extended = features::has_xsave()
        && missing == 0
        && state.word(SOFTWARE) == MAGIC1
        && uaccess::read_user::<u32>(address + used).is_ok_and(|magic| magic == MAGIC2);
    state.correct(is_extended)?;
    state.load();
    Ok(())
}

impl FpuState {
    /// The initial state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores this CPU's registers here.
    pub fn save(&mut self) {
        let area = self.area.as_mut_ptr();
        // SAFETY: the area is aligned and large enough for the enabled components.
        unsafe {
            if features::has_xsave() {
                asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
            } else {
                asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags));
            }
        }
    }

    fn saved(mut self) -> Self {
        self.save();
        self
    }

    /// Loads this CPU's registers from here.
    pub fn load(&self) {
        let area = self.area.as_ptr();
        // SAFETY: the area holds what `save` or `default` wrote, or what `correct` checked.
        unsafe {
            if features::has_xsave() {
                asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, readonly, preserves_flags));
            } else {
                asm!("fxrstor64 [{}]", in(reg) area, options(nostack, readonly, preserves_flags));
            }
        }
    }

    /// The state as XSAVE lays it out (FXSAVE's 512 bytes first): also what `ptrace` shows.
    pub fn as_bytes(&self) -> &[u8] {
        &self.area[..used_size()]
    }

    fn components(&self) -> u64 {
        u64::from_le_bytes(self.area[LEGACY_SIZE..LEGACY_SIZE + 8].try_into().expect("eight bytes"))
    }

    fn set_components(&mut self, components: u64) {
        self.area[LEGACY_SIZE..LEGACY_SIZE + 8].copy_from_slice(&components.to_le_bytes());
    }

    /// The rest of the header is zero: the standard layout, and nothing in what is reserved. By words, for every signal's end asks.
    fn is_standard(&self) -> bool {
        let rest = &self.area[LEGACY_SIZE + 8..LEGACY_SIZE + HEADER_SIZE];
        rest.as_chunks().0.iter().all(|word| u64::from_ne_bytes(*word) == 0)
    }

    fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.area[offset..offset + 4].try_into().expect("four bytes"))
    }

    fn set_word(&mut self, offset: usize, value: u32) {
        self.area[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Bytes of the state that this CPU uses.
    pub fn used_size() -> usize {
        used_size()
    }

    /// Bytes that a signal frame needs for the state; the frame's part starts at a multiple of 64.
    pub fn signal_frame_size() -> usize {
        used_size() + if features::has_xsave() { 4 } else { 0 }
    }

    /// Says beside the saved registers what Linux says there in a signal frame: how the extended part is laid out. No load looks at it.
    pub fn describe(&mut self) {
        if features::has_xsave() {
            let used = used_size();
            let software = &mut self.area[SOFTWARE..LEGACY_SIZE];
            software.fill(0);
            software[0..4].copy_from_slice(&MAGIC1.to_le_bytes());
            software[4..8].copy_from_slice(&(used as u32 + 4).to_le_bytes());
            software[8..16].copy_from_slice(&components().to_le_bytes());
            software[16..20].copy_from_slice(&(used as u32).to_le_bytes());
        }
    }

    /// What a signal frame has behind [`Self::as_bytes`].
    pub fn end_of_signal_frame() -> Option<u32> {
        features::has_xsave().then_some(MAGIC2)
    }

    /// Makes bytes of user mode's a state that can be loaded. Those behind the legacy area count if it `is_extended`.
    fn correct(&mut self, is_extended: bool) -> Result<()> {
        if is_extended {
            // The header: only enabled components, the standard layout, reserved bytes zero.
            if self.components() & !components() != 0 || !self.is_standard() {
                return Err(Errno::EINVAL);
            }
        } else {
            self.area[LEGACY_SIZE..].fill(0);
            self.set_components(X87_SSE);
        }
        let mxcsr = self.word(MXCSR);
        self.set_word(MXCSR, mxcsr & mxcsr_bits());
        Ok(())
    }

    /// Sets the x87 and SSE registers from FXSAVE's 512 bytes; `EINVAL` for bits of MXCSR that do not exist.
    pub fn set_legacy(&mut self, bytes: &[u8; LEGACY_SIZE]) -> Result<()> {
        let mxcsr = u32::from_le_bytes(bytes[MXCSR..MXCSR + 4].try_into().expect("four bytes"));
        if mxcsr & !mxcsr_bits() != 0 {
            return Err(Errno::EINVAL);
        }
        self.area[..LEGACY_SIZE].copy_from_slice(bytes);
        self.set_components(self.components() | X87_SSE);
        Ok(())
    }

    /// As [`Self::as_bytes`], with the set of components where Linux tells debuggers of it.
    pub fn to_regset(&self, bytes: &mut [u8; AREA_SIZE]) -> usize {
        let used = used_size();
        bytes[..used].copy_from_slice(&self.area[..used]);
        bytes[SOFTWARE..LEGACY_SIZE].fill(0);
        bytes[SOFTWARE..SOFTWARE + 8].copy_from_slice(&components().to_le_bytes());
        used
    }

    /// Sets the state from what [`Self::to_regset`] gave; what would fault in XRSTOR is `EINVAL`.
    pub fn set_regset(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != used_size() || bytes.len() < LEGACY_SIZE + HEADER_SIZE {
            return Err(Errno::EFAULT);
        }
        let mut new = self.clone();
        new.area[LEGACY_SIZE..bytes.len()].copy_from_slice(&bytes[LEGACY_SIZE..]);
        let stored = new.components();
        if stored & !components() != 0 || !new.is_standard() {
            return Err(Errno::EINVAL);
        }
        new.set_legacy(bytes[..LEGACY_SIZE].try_into().expect("as long as that"))?;
        new.set_components(stored);
        *self = new;
        Ok(())
    }

    /// Bytes of the largest state.
    pub const SIZE: usize = AREA_SIZE;
}
