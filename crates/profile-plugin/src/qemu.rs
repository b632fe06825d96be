//! QEMU's side: the functions that a plugin exports, and those that QEMU has for it (version 1 of the interface).

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

use guest_link::profile::Mark;

use crate::block::{Block, Ending};
use crate::lines::Lines;
use crate::profile::Profile;

/// A block under translation.
#[repr(C)]
struct Translation {
    _opaque: [u8; 0],
}

/// An instruction of such a block.
#[repr(C)]
struct Instruction {
    _opaque: [u8; 0],
}

/// Where an access goes.
#[repr(C)]
struct HardwareAddress {
    _opaque: [u8; 0],
}

/// The callback is for stores.
const STORES: c_int = 2;
/// The callback reads no registers of the CPU.
const NO_REGISTERS: c_int = 0;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: extern "C" fn(u64, *mut Translation));
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Translation,
        call: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        call: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut Instruction,
        call: extern "C" fn(c_uint, u32, u64, *mut c_void),
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_get_hwaddr(access: u32, address: u64) -> *const HardwareAddress;
    fn qemu_plugin_hwaddr_is_io(address: *const HardwareAddress) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(address: *const HardwareAddress) -> u64;
    fn qemu_plugin_register_atexit_cb(id: u64, call: extern "C" fn(u64, *mut c_void), data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const Translation) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const Translation, index: usize) -> *mut Instruction;
    fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    fn qemu_plugin_insn_size(instruction: *const Instruction) -> usize;
    fn qemu_plugin_insn_data(instruction: *const Instruction) -> *const c_void;
}

/// The version of the interface that this plugin was written for.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

/// What is counted.
enum Counts {
    Instructions(Profile),
    Lines(Lines),
}

static COUNTS: Mutex<Option<Counts>> = Mutex::new(None);
static OUTPUT: OnceLock<PathBuf> = OnceLock::new();

/// Begins. The arguments are `out=FILE`, and `count=lines` for cache lines instead of instructions.
///
/// # Safety
///
/// Called by QEMU, with as many strings at `arguments` as `count` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let mut counts = Counts::Instructions(Profile::new());
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: as the caller says.
        let argument = unsafe { CStr::from_ptr(*arguments.add(index)) };
        match argument.to_str().unwrap_or_default().split_once('=') {
            Some(("out", path)) => {
                let _ = OUTPUT.set(path.into());
            }
            Some(("count", "lines")) => counts = Counts::Lines(Lines::default()),
            _ => {
                eprintln!("profile-plugin: what is {argument:?}?");
                return 1;
            }
        }
    }
    if OUTPUT.get().is_none() {
        eprintln!("profile-plugin: needs out=FILE");
        return 1;
    }
    *lock() = Some(counts);
    // SAFETY: `id` is this plugin's, and the functions have the types that are asked for.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
        qemu_plugin_register_atexit_cb(id, finish, std::ptr::null_mut());
    }
    0
}

fn lock() -> MutexGuard<'static, Option<Counts>> {
    COUNTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

extern "C" fn translate(_: u64, block: *mut Translation) {
    // SAFETY: the block and its instructions live until this returns, and the bytes of an instruction as long as it does.
    unsafe {
        let count = qemu_plugin_tb_n_insns(block);
        if count == 0 {
            return;
        }
        let bytes = |index| {
            let instruction = qemu_plugin_tb_get_insn(block, index);
            let data = qemu_plugin_insn_data(instruction).cast::<u8>();
            (instruction, std::slice::from_raw_parts(data, qemu_plugin_insn_size(instruction)))
        };
        let counts_lines = matches!(*lock(), Some(Counts::Lines(_)));
        for index in 0..count {
            let (instruction, bytes) = bytes(index);
            let place = qemu_plugin_insn_vaddr(instruction);
            // Only the kernel's: programs have their own lines.
            if counts_lines && place >> 63 == 1 {
                qemu_plugin_register_vcpu_mem_cb(
                    instruction,
                    stored,
                    NO_REGISTERS,
                    STORES,
                    place as *mut c_void,
                );
            }
            if let Some(mark) = Mark::of(bytes) {
                let data = Box::into_raw(Box::new(mark)).cast();
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, met, NO_REGISTERS, data);
            }
        }
        if counts_lines {
            return;
        }
        let (last, ending) = bytes(count - 1);
        let found = Block {
            start: qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(block, 0)),
            end: qemu_plugin_insn_vaddr(last) + ending.len() as u64,
            instructions: count as u64,
            ending: Ending::of(ending),
        };
        // QEMU keeps translations until its end nearly, and so do we.
        let data = Box::into_raw(Box::new(found)).cast();
        qemu_plugin_register_vcpu_tb_exec_cb(block, enter, NO_REGISTERS, data);
    }
}

extern "C" fn enter(_: c_uint, data: *mut c_void) {
    // SAFETY: made from a box in `translate`, and never freed.
    let block = unsafe { &*data.cast::<Block>() };
    if let Some(Counts::Instructions(profile)) = &mut *lock() {
        profile.enter(block);
    }
}

extern "C" fn stored(cpu: c_uint, access: u32, address: u64, place: *mut c_void) {
    // Processes have memory of their own at the same addresses, their kernel stacks among them: only where it is in the machine tells
    // lines apart.
    // SAFETY: called for the access that QEMU tells of, and what it gives is used at once.
    let physical = unsafe {
        let found = qemu_plugin_get_hwaddr(access, address);
        if found.is_null() || qemu_plugin_hwaddr_is_io(found) {
            return;
        }
        qemu_plugin_hwaddr_phys_addr(found)
    };
    if let Some(Counts::Lines(lines)) = &mut *lock() {
        lines.store(cpu, physical, place as u64);
    }
}

extern "C" fn met(cpu: c_uint, data: *mut c_void) {
    // SAFETY: made from a box in `translate`, and never freed.
    let mark = unsafe { *data.cast::<Mark>() };
    match &mut *lock() {
        Some(Counts::Instructions(profile)) => profile.mark(mark),
        Some(Counts::Lines(lines)) => lines.mark(cpu, mark),
        None => {}
    }
}

extern "C" fn finish(_: u64, _: *mut c_void) {
    let text = match &*lock() {
        Some(Counts::Instructions(profile)) => profile.lines(),
        Some(Counts::Lines(lines)) => lines.lines(),
        None => return,
    };
    let Some(path) = OUTPUT.get() else { return };
    if let Err(error) = std::fs::write(path, text) {
        eprintln!("profile-plugin: {}: {error}", path.display());
    }
}
