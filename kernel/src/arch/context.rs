//! What a thread leaves on its CPU when another runs: the switch.

use alloc::boxed::Box;
use core::arch::{asm, global_asm};

use super::debug::{self, DebugRegisters};
use super::fpu::FpuState;
use super::trap::TrapFrame;
use super::{features, interrupts, percpu};

/// Entry of a kernel thread: runs on the thread's own stack, and never returns.
pub type KernelEntry = extern "C" fn(usize) -> !;
/// First function of a user thread: runs in the kernel, and returns to enter user mode.
pub type UserEntry = extern "C" fn(usize);

/// A thread's registers while it does not run.
#[derive(Default)]
#[repr(C)]
pub struct Context {
    /// Stack pointer of the sleeping thread; its callee-saved registers are on the stack.
    rsp: u64,
    /// Where traps from user mode start; 0 for the thread that booted this CPU.
    stack_top: u64,
    user: Option<Box<UserRegisters>>,
    /// A child does not inherit them.
    debug: DebugRegisters,
}

/// Registers that only threads with a user mode have.
#[derive(Clone, Default)]
pub struct UserRegisters {
    pub fs_base: u64,
    pub gs_base: u64,
    pub fpu: FpuState,
}

// SAFETY: the addresses in it mean something only to the thread that runs on that stack, and the scheduler gives
// a context to one CPU at a time.
unsafe impl Send for Context {}

unsafe extern "C" {
    fn first_switch();
    fn switch_stacks(save: *mut u64, load: u64);
}

/// What `switch_stacks` pops.
#[repr(C)]
struct SavedRegisters {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbx: u64,
    rbp: u64,
    rip: u64,
}

impl Context {
    /// The context of a CPU's first thread, which runs already; the first switch away fills it.
    pub const fn booted() -> Self {
        Self { rsp: 0, stack_top: 0, user: None, debug: DebugRegisters::new() }
    }

    /// A kernel thread that will run `entry(argument)` on the stack whose highest address is `stack_top`.
    pub fn kernel(stack_top: u64, entry: KernelEntry, argument: usize) -> Self {
        // SAFETY: the caller's new stack; the words below its top are free.
        let rsp = unsafe { prepare(stack_top, entry as usize, argument) };
        Self { rsp, stack_top, user: None, debug: DebugRegisters::new() }
    }

    /// A thread that will run `entry(argument)` in the kernel and then enter user mode with `frame`.
    pub fn user(
        stack_top: u64,
        frame: &TrapFrame,
        registers: Box<UserRegisters>,
        entry: UserEntry,
        argument: usize,
    ) -> Self {
        let place = stack_top - size_of::<TrapFrame>() as u64;
        // SAFETY: the caller's new stack has room for a frame at its top and more below.
        let rsp = unsafe {
            (place as *mut TrapFrame).write(*frame);
            prepare(place, entry as usize, argument)
        };
        Self { rsp, stack_top, user: Some(registers), debug: DebugRegisters::new() }
    }

    /// Gives a kernel thread (PID 1 before its first program) a user mode, with initial registers, loaded at once.
    ///
    /// # Safety
    /// The context is that of the thread that calls.
    pub unsafe fn become_user(&mut self) {
        let registers = self.user.get_or_insert_with(Default::default);
        registers.fs_base = 0;
        registers.gs_base = 0;
        registers.fpu = FpuState::default();
        registers.fpu.load();
        set_fs_base(0);
        set_gs_base(0);
    }

    /// A copy of the running thread's user registers, for `fork`. Made where it stays: it is large.
    pub fn current_user_registers() -> Box<UserRegisters> {
        let mut registers = Box::<UserRegisters>::default();
        registers.fs_base = fs_base();
        registers.gs_base = gs_base();
        registers.fpu.save();
        registers
    }

    /// Saves the running thread's floating-point registers where a switch saves them, and says where that is; `None` for a thread of
    /// the kernel's own. A switch saves the same registers there once more.
    ///
    /// # Safety
    /// The context is that of the thread that calls.
    pub unsafe fn save_fpu(context: *mut Self) -> Option<*const FpuState> {
        // SAFETY: the caller's promise; the reference ends before the thread can be switched away from.
        let state = unsafe { &mut (*context).user.as_mut()?.fpu };
        state.save();
        state.describe();
        Some(state)
    }

    /// Watches the running thread by these debug registers from now on.
    ///
    /// # Safety
    /// The context is that of the thread that calls.
    pub unsafe fn watch(context: *mut Self, registers: &DebugRegisters) {
        // A switch between the two stores would leave this CPU watching the next thread.
        interrupts::without(|| {
            // SAFETY: the caller's promise; no switch comes in between.
            let debug = unsafe { &mut (*context).debug };
            if *debug == *registers {
                return;
            }
            *debug = *registers;
            if registers.control == 0 { debug::unload() } else { registers.load() }
        });
    }
}

/// Loads the running thread's user registers.
pub fn load_user_registers(registers: &UserRegisters) {
    set_fs_base(registers.fs_base);
    set_gs_base(registers.gs_base);
    registers.fpu.load();
}

/// Lays the first switch's words out below `top`, which is a multiple of 16, and returns the stack pointer.
unsafe fn prepare(top: u64, entry: usize, argument: usize) -> u64 {
    let saved = SavedRegisters {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: argument as u64,
        rbx: entry as u64,
        rbp: 0,
        rip: first_switch as *const () as u64,
    };
    let place = top - size_of::<SavedRegisters>() as u64;
    // SAFETY: the caller's stack.
    unsafe { (place as *mut SavedRegisters).write(saved) };
    place
}

global_asm!(
    r#"
.text
.balign 16
.global switch_stacks
switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    retq
"#,
    options(att_syntax)
);

/// Runs `next` in place of `prev`, the running thread; returns when another switch comes back to `prev`.
///
/// The address space and [`percpu::set_current`] are the scheduler's affair.
///
/// # Safety
/// Interrupts are off. `prev` is the running thread's context, `next` that of a thread that runs nowhere; both
/// stay where they are until they are switched away from again.
pub unsafe fn switch(prev: *mut Context, next: *const Context) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(user) = &mut (*prev).user {
            user.fs_base = fs_base();
            user.gs_base = gs_base();
            user.fpu.save();
        }
        if (*prev).debug.control != 0 {
            debug::unload();
        }
        if let Some(user) = &(*next).user {
            set_fs_base(user.fs_base);
            set_gs_base(user.gs_base);
            user.fpu.load();
        }
        if (*next).debug.control != 0 {
            (*next).debug.load();
        }
        percpu::set_kernel_stack((*next).stack_top);
        switch_stacks(&raw mut (*prev).rsp, (*next).rsp);
    }
}

/// The running thread's FS base: user mode's thread pointer.
pub fn fs_base() -> u64 {
    if features::has_fsgsbase() {
        let base: u64;
        // SAFETY: enabled in CR4.
        unsafe { asm!("rdfsbase {}", out(reg) base, options(nostack, preserves_flags)) };
        base
    } else {
        features::read_msr(features::MSR_FS_BASE)
    }
}

/// Sets the running thread's FS base; `base` is a user address.
pub fn set_fs_base(base: u64) {
    if features::has_fsgsbase() {
        // SAFETY: the kernel does not use FS.
        unsafe { asm!("wrfsbase {}", in(reg) base, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: as above.
        unsafe { features::write_msr(features::MSR_FS_BASE, base) };
    }
}

/// The running thread's GS base as user mode sees it.
pub fn gs_base() -> u64 {
    features::read_msr(features::MSR_KERNEL_GS_BASE)
}

/// Sets the running thread's GS base as user mode sees it; `base` is a user address.
pub fn set_gs_base(base: u64) {
    // SAFETY: `swapgs` brings it in on the way to user mode.
    unsafe { features::write_msr(features::MSR_KERNEL_GS_BASE, base) };
}
