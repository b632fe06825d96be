//! The first stack of a program: arguments, environment, auxiliary vector.

use alloc::vec::Vec;

use linux_raw_sys::auxvec;

use super::binary::Mapped;
use super::strings::giving_way;
use super::{Identity, Request};
use crate::arch::features;
use crate::arch::fpu::FpuState;
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::mm::vma::{VmFlags, Vma};
use crate::mm::{AddressSpace, PAGE, Rights, layout, page_down};
use crate::process;

/// Room that the stack has at first besides what is on it; the rest comes as it is touched.
const INITIAL: u64 = 128 << 10;
const PLATFORM: &[u8] = b"x86_64";
/// What a signal frame needs besides the FPU state: registers, siginfo, red zone, alignment.
const FRAME_WITHOUT_FPU: usize = 768;
const CLOCK_TICKS: u64 = 100;
/// `HWCAP2_FSGSBASE`: user mode may use the instructions.
const HWCAP2_FSGSBASE: u64 = 1 << 1;
/// Size and alignment of `struct rseq` as far as the kernel fills it in.
const RSEQ_FEATURE_SIZE: u64 = 20;
const RSEQ_ALIGN: u64 = 32;

/// What the auxiliary vector tells.
pub struct Facts<'a> {
    pub identity: Identity,
    pub program: &'a Mapped,
    pub header_count: u64,
    pub interpreter_base: u64,
    pub vdso: u64,
    pub executable_stack: bool,
    /// Where the stack ends.
    pub top: u64,
}

/// Strings that end at a given address, laid out from the top down.
struct Strings {
    bytes: Vec<u8>,
    base: u64,
}

impl Strings {
    /// Appends a string with its end; returns its address.
    fn add(&mut self, string: &[u8]) -> u64 {
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
        at
    }
}

/// Makes the stack; returns the first stack pointer.
pub fn build(space: &AddressSpace, request: &Request, facts: &Facts) -> Result<u64> {
    let all = request.arguments.iter().chain(request.environment.iter());
    let strings_len: usize = all.map(|string| string.len() + 1).sum();
    // The strings on their way to the stack, and there; the pointers to them.
    let pointers = (request.arguments.len() + request.environment.len()) * size_of::<u64>();
    let _charge = process::current().process.charges.add(2 * (strings_len + pointers));
    // Eight zero bytes at the very end, the program's name below, the strings below that.
    let name_at = facts.top - 8 - (request.name.len() as u64 + 1);
    let base = name_at - strings_len as u64;
    let mut strings = Strings { bytes: fallible::with_capacity((facts.top - base) as usize)?, base };
    let arguments = fallible::collect(request.arguments.iter().map(|string| strings.add(string)))?;
    let arguments_end = strings.base + strings.bytes.len() as u64;
    let environment = fallible::collect(request.environment.iter().map(|string| strings.add(string)))?;
    let environment_end = strings.base + strings.bytes.len() as u64;
    strings.add(request.name);
    strings.bytes.extend([0; 8]);

    // Below: the platform's name and 16 random bytes.
    let platform_at = (base - (PLATFORM.len() as u64 + 1)) & !15;
    let random_at = platform_at - 16;
    let mut fixed = alloc::vec![0; (base - random_at) as usize];
    crate::random::fill(&mut fixed[..16]);
    fixed[16..16 + PLATFORM.len()].copy_from_slice(PLATFORM);

    let auxv = auxiliary(facts, name_at, platform_at, random_at);
    let words = 1 + arguments.len() + 1 + environment.len() + 1 + auxv.len();
    let stack = (random_at - words as u64 * 8) & !15;
    let mut block: Vec<u8> = fallible::with_capacity(words * 8)?;
    let vector = [arguments.len() as u64].into_iter();
    let vector = vector.chain(arguments.iter().copied()).chain([0]);
    let vector = vector.chain(environment.iter().copied()).chain([0]).chain(auxv.iter().copied());
    giving_way(vector).for_each(|word| block.extend(word.to_le_bytes()));

    make_area(space, facts, stack)?;
    for (at, bytes) in [(stack, &block), (random_at, &fixed), (base, &strings.bytes)] {
        if space.write_remote(at, bytes, Rights::Forced).map_err(|_| Errno::ENOMEM)? < bytes.len() {
            return Err(Errno::ENOMEM);
        }
    }
    let mut areas = space.write();
    let layout = &mut areas.layout;
    layout.stack_start = stack;
    layout.arguments = base..arguments_end;
    layout.environment = arguments_end..environment_end;
    layout.auxv = auxv;
    Ok(stack)
}

fn make_area(space: &AddressSpace, facts: &Facts, stack: u64) -> Result<()> {
    let mut flags = VmFlags::READ
        | VmFlags::WRITE
        | VmFlags::MAY_READ
        | VmFlags::MAY_WRITE
        | VmFlags::MAY_EXEC
        | VmFlags::GROWS_DOWN
        | VmFlags::ACCOUNT;
    flags.set(VmFlags::EXEC, facts.executable_stack);
    let range = page_down(stack - INITIAL)..facts.top;
    let mut areas = space.write();
    if areas.set.is_occupied(range.start - layout::STACK_GUARD..range.end) {
        return Err(Errno::ENOMEM);
    }
    layout::charge(&areas.set, flags, (range.end - range.start) / PAGE)?;
    areas.set.insert(Vma::anonymous(range, flags));
    Ok(())
}

/// Pairs of type and value, with the end.
fn auxiliary(facts: &Facts, name: u64, platform: u64, random: u64) -> Vec<u64> {
    let who = facts.identity;
    let fsgsbase = if features::has_fsgsbase() { HWCAP2_FSGSBASE } else { 0 };
    let pairs = [
        (auxvec::AT_SYSINFO_EHDR, facts.vdso),
        (auxvec::AT_MINSIGSTKSZ, (FpuState::signal_frame_size() + FRAME_WITHOUT_FPU) as u64),
        (auxvec::AT_HWCAP, u64::from(raw_cpuid::cpuid!(1).edx)),
        (auxvec::AT_PAGESZ, PAGE),
        (auxvec::AT_CLKTCK, CLOCK_TICKS),
        (auxvec::AT_PHDR, facts.program.headers),
        (auxvec::AT_PHENT, 56),
        (auxvec::AT_PHNUM, facts.header_count),
        (auxvec::AT_BASE, facts.interpreter_base),
        (auxvec::AT_FLAGS, 0),
        (auxvec::AT_ENTRY, facts.program.entry),
        (auxvec::AT_UID, u64::from(who.uid)),
        (auxvec::AT_EUID, u64::from(who.euid)),
        (auxvec::AT_GID, u64::from(who.gid)),
        (auxvec::AT_EGID, u64::from(who.egid)),
        (auxvec::AT_SECURE, u64::from(who.secure)),
        (auxvec::AT_RANDOM, random),
        (auxvec::AT_HWCAP2, fsgsbase),
        (auxvec::AT_EXECFN, name),
        (auxvec::AT_PLATFORM, platform),
        (auxvec::AT_RSEQ_FEATURE_SIZE, RSEQ_FEATURE_SIZE),
        (auxvec::AT_RSEQ_ALIGN, RSEQ_ALIGN),
        (auxvec::AT_NULL, 0),
    ];
    pairs.into_iter().flat_map(|(kind, value)| [u64::from(kind), value]).collect()
}
