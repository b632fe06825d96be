//! QEMU's side: the functions that a plugin exports, and those that QEMU has for it (version 1 of the interface).

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use guest_link::profile::Mark;

use crate::block::{Block, Ending};
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

static PROFILE: Mutex<Option<Profile>> = Mutex::new(None);
static OUTPUT: OnceLock<PathBuf> = OnceLock::new();

/// Begins. The one argument is `out=FILE`.
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
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: as the caller says.
        let argument = unsafe { CStr::from_ptr(*arguments.add(index)) };
        if let Some(path) = argument.to_str().ok().and_then(|text| text.strip_prefix("out=")) {
            let _ = OUTPUT.set(path.into());
        }
    }
    if OUTPUT.get().is_none() {
        eprintln!("profile-plugin: needs out=FILE");
        return 1;
    }
    with_profile(|_| ());
    // SAFETY: `id` is this plugin's, and the functions have the types that are asked for.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
        qemu_plugin_register_atexit_cb(id, finish, std::ptr::null_mut());
    }
    0
}

fn with_profile(work: impl FnOnce(&mut Profile)) {
    let mut profile = PROFILE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    work(profile.get_or_insert_with(Profile::new));
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
        for index in 0..count {
            let (instruction, bytes) = bytes(index);
            if let Some(mark) = Mark::of(bytes) {
                let data = Box::into_raw(Box::new(mark)).cast();
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, met, NO_REGISTERS, data);
            }
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
    with_profile(|profile| profile.enter(block));
}

extern "C" fn met(_: c_uint, data: *mut c_void) {
    // SAFETY: made from a box in `translate`, and never freed.
    let mark = unsafe { *data.cast::<Mark>() };
    with_profile(|profile| profile.mark(mark));
}

extern "C" fn finish(_: u64, _: *mut c_void) {
    let Some(path) = OUTPUT.get() else { return };
    with_profile(|profile| {
        if let Err(error) = std::fs::write(path, profile.lines()) {
            eprintln!("profile-plugin: {}: {error}", path.display());
        }
    });
}
