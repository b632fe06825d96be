//! Traps, interrupts and system calls once they are in Rust.

use super::{apic, debug, entry, features, interrupts, ipi, percpu};
use crate::sync::lockdep::stretch;

const INTERRUPT_FLAG: u64 = 1 << 9;

pub const DIVIDE_ERROR: u8 = 0;
pub const DEBUG: u8 = 1;
pub const NMI: u8 = 2;
pub const DOUBLE_FAULT: u8 = 8;
pub const GENERAL_PROTECTION: u8 = 13;
pub const PAGE_FAULT: u8 = 14;
pub const MACHINE_CHECK: u8 = 18;

/// Registers of what was interrupted; one layout for system calls, traps and interrupts.
///
/// The frame of an entry from user mode is at the top of the thread's kernel stack.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// A system call's number as user mode passed it; else the complement of the vector, so negative as `i64`.
    pub orig_rax: u64,
    /// The error code of an exception that has one; else 0.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// Whether user mode was interrupted.
    pub fn is_user(&self) -> bool {
        self.cs & 3 != 0
    }

    /// Whether this is a system call.
    pub fn is_syscall(&self) -> bool {
        self.orig_rax as i64 >= 0
    }

    /// The trap's or interrupt's vector; meaningless for a system call.
    pub fn vector(&self) -> u8 {
        !self.orig_rax as u8
    }

    /// Makes the frame no system call any more, so that nothing restarts it.
    pub fn forget_syscall(&mut self) {
        self.orig_rax = u64::MAX;
    }

    fn interrupts_enabled(&self) -> bool {
        self.rflags & INTERRUPT_FLAG != 0
    }

    /// The frame in which user mode starts at `rip` with all else zero, interrupts on.
    pub fn user(rip: u64, rsp: u64) -> Self {
        Self {
            orig_rax: u64::MAX,
            rip,
            cs: super::gdt::USER_CODE as u64,
            rflags: INTERRUPT_FLAG | 2,
            rsp,
            ss: super::gdt::USER_DATA as u64,
            ..Self::default()
        }
    }
}

/// The frame with which the current thread entered the kernel from user mode.
///
/// It is where the hardware and the entry code put it: at the top of the kernel stack.
pub fn user_frame() -> *mut TrapFrame {
    (percpu::kernel_stack_top() as usize - size_of::<TrapFrame>()) as *mut TrapFrame
}

/// Handles all but the paranoid vectors; returns the frame to leave by.
pub(super) extern "C" fn handle_trap(mut frame: &mut TrapFrame) -> *mut TrapFrame {
    if !frame.is_user() && frame.rip == entry::user_iretq_address() {
        frame = failed_return(frame);
    }
    let vector = frame.vector();
    if frame.is_user() {
        stretch::begin();
    }
    if vector >= interrupts::FIRST_EXTERNAL {
        handle_interrupt(frame, vector);
    } else if frame.is_user() {
        user_exception(frame, vector);
    } else {
        kernel_exception(frame, vector);
    }
    if frame.is_user() {
        interrupts::disable();
        leave(frame);
    }
    frame
}

/// Rebuilds the user's frame when the IRETQ to it faulted, so that the fault counts as user mode's.
fn failed_return(frame: &TrapFrame) -> &'static mut TrapFrame {
    // SAFETY: IRETQ found its five words at the interrupted stack pointer.
    let [rip, cs, rflags, rsp, ss] = unsafe { *(frame.rsp as *const [u64; 5]) };
    // What user mode would see is a general protection fault, whatever IRETQ tripped over.
    let orig_rax = !(GENERAL_PROTECTION as u64);
    let user = TrapFrame { orig_rax, rip, cs: cs | 3, rflags, rsp, ss, ..*frame };
    // SAFETY: the user's frame was at the top of this stack, and `frame`, which may overlap, has been copied.
    unsafe {
        let place = user_frame();
        place.write(user);
        &mut *place
    }
}

fn handle_interrupt(frame: &mut TrapFrame, vector: u8) {
    match vector {
        interrupts::SPURIOUS => return,
        _ => apic::end_of_interrupt(),
    }
    interrupts::count(vector);
    match vector {
        interrupts::TIMER => crate::time::timer_interrupt(frame.is_user()),
        interrupts::CALL => ipi::handle_calls(),
        interrupts::RESCHEDULE => crate::sched::resched_interrupt(),
        interrupts::APIC_ERROR => log::warn!("local APIC error {:#x}", apic::take_error()),
        _ => {
            if !interrupts::run_handler(vector) {
                log::warn!("interrupt {vector:#x} without a handler");
            }
        }
    }
}

fn user_exception(frame: &mut TrapFrame, vector: u8) {
    // These are not the program's, whatever they interrupt.
    if matches!(vector, NMI | MACHINE_CHECK) {
        return handle_paranoid(frame);
    }
    // What a register of the CPU says more of it.
    let detail = match vector {
        PAGE_FAULT => features::read_cr2(),
        DEBUG => debug::take_status(),
        _ => 0,
    };
    if frame.interrupts_enabled() {
        interrupts::enable();
    }
    if vector == PAGE_FAULT {
        crate::mm::fault::page_fault(frame, detail, frame.error);
    } else {
        crate::signal::exception(frame, vector, frame.error, detail);
    }
}

fn kernel_exception(frame: &mut TrapFrame, vector: u8) {
    let address = if vector == PAGE_FAULT { features::read_cr2() } else { 0 };
    if vector == PAGE_FAULT && resolve_kernel_fault(frame, address) {
        return;
    }
    if (vector == PAGE_FAULT || vector == GENERAL_PROTECTION)
        && let Some(target) = crate::mm::uaccess::fixup(frame.rip)
    {
        frame.rip = target;
        return;
    }
    crate::panic::exception(frame, vector, address);
}

/// A fault of the kernel's on a user address: brings the page in, with interrupts on if they were.
fn resolve_kernel_fault(frame: &mut TrapFrame, address: u64) -> bool {
    let enabled = frame.interrupts_enabled();
    if enabled {
        interrupts::enable();
    }
    let resolved = crate::mm::fault::page_fault(frame, address, frame.error);
    if enabled {
        interrupts::disable();
    }
    resolved
}

/// Handles the vectors with stacks of their own when they interrupt the kernel: nothing here may block.
pub(super) extern "C" fn handle_paranoid(frame: &mut TrapFrame) {
    match frame.vector() {
        NMI => crate::panic::nmi(),
        // A data breakpoint or a single step that user mode set up and that hit inside the kernel: nobody is told, as on Linux.
        DEBUG => {
            debug::take_status();
        }
        vector => crate::panic::exception(frame, vector, features::read_cr2()),
    }
}

pub(super) extern "C" fn handle_syscall(frame: &mut TrapFrame) {
    stretch::begin();
    interrupts::enable();
    crate::syscall::dispatch(frame);
    interrupts::disable();
    leave(frame);
}

/// What a new thread does between its first function and user mode.
pub(super) extern "C" fn handle_first_return(frame: &mut TrapFrame) {
    interrupts::disable();
    leave(frame);
}

/// Everything that must happen before each return to user mode.
fn leave(frame: &mut TrapFrame) {
    crate::process::exit_to_user(frame);
}
