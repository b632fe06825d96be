//! Segments, laid out as Linux's, and the task state with its interrupt stacks.

use core::arch::asm;
use core::mem::size_of;

use super::percpu::CpuArea;
use crate::memory::node;

pub const KERNEL_CODE: u16 = 0x10;
pub const KERNEL_DATA: u16 = 0x18;
/// SYSRET counts from here: stack segment 8 above, 64-bit code 16 above.
pub const USER_CODE32: u16 = 0x20 | 3;
pub const USER_DATA: u16 = 0x28 | 3;
pub const USER_CODE: u16 = 0x30 | 3;
const TASK_STATE: u16 = 0x40;
/// LSL of this selector gives the CPU's number, as on Linux (`__getcpu`).
pub const CPU_NUMBER: u16 = (15 * 8) | 3;

/// Interrupt stacks, by number in the gate (1 is the first).
pub const IST_DOUBLE_FAULT: u8 = 1;
pub const IST_NMI: u8 = 2;
pub const IST_MACHINE_CHECK: u8 = 3;
pub const IST_DEBUG: u8 = 4;
const IST_COUNT: usize = 4;
/// The entry code finds the top of an interrupt stack by this alignment.
pub const IST_STACK_SIZE: usize = 8192;

#[repr(C, packed(4))]
struct TaskState {
    reserved0: u32,
    /// Stacks for rings 0 to 2.
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map: u16,
}

/// One CPU's descriptor table and task state.
#[repr(C, align(16))]
pub struct Descriptors {
    gdt: [u64; 16],
    task: TaskState,
}

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const RING3: u64 = 3 << 45;

impl Descriptors {
    pub const fn new() -> Self {
        let mut gdt = [0; 16];
        gdt[1] = CODE32;
        gdt[KERNEL_CODE as usize / 8] = CODE64;
        gdt[KERNEL_DATA as usize / 8] = DATA;
        gdt[USER_CODE32 as usize / 8] = CODE32 | RING3;
        gdt[USER_DATA as usize / 8] = DATA | RING3;
        gdt[USER_CODE as usize / 8] = CODE64 | RING3;
        let task = TaskState {
            reserved0: 0,
            rsp: [0; 3],
            reserved1: 0,
            ist: [0; 7],
            reserved2: 0,
            reserved3: 0,
            // No I/O map: user mode has no port access.
            io_map: size_of::<TaskState>() as u16,
        };
        Self { gdt, task }
    }

    pub fn set_kernel_stack(&mut self, top: u64) {
        self.task.rsp[0] = top;
    }

    fn set_cpu_number(&mut self, cpu: u32) {
        // A data segment, byte granular, whose limit is the number.
        let limit = u64::from(cpu_number(cpu));
        self.gdt[CPU_NUMBER as usize / 8] =
            0x0040_f100_0000_0000 | (limit & 0xffff) | ((limit & 0xf_0000) << 32);
    }

    fn set_task_state(&mut self) {
        let base = &raw const self.task as u64;
        let limit = size_of::<TaskState>() as u64 - 1;
        let index = TASK_STATE as usize / 8;
        self.gdt[index] = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        self.gdt[index + 1] = base >> 32;
    }
}

/// Interrupt stacks of one CPU; each holds the address of the CPU's area at its top.
#[repr(C, align(8192))]
pub struct InterruptStacks([[u8; IST_STACK_SIZE]; IST_COUNT]);

impl InterruptStacks {
    pub const fn new() -> Self {
        Self([[0; IST_STACK_SIZE]; IST_COUNT])
    }
}

#[repr(C, packed(2))]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// What programs are told of a CPU: its number, and its node above bit 12. As Linux.
pub(super) fn cpu_number(cpu: u32) -> u32 {
    cpu | (node::of_cpu(cpu) as u32) << 12
}

/// Puts the CPU's number into its segments once more: its node is known now.
///
/// # Safety
/// The calling CPU's own area.
pub(super) unsafe fn renumber(area: &'static CpuArea, cpu: u32) {
    // SAFETY: the CPU's own descriptors; a segment that is not loaded is read by LSL alone.
    unsafe { (*area.descriptors.get()).set_cpu_number(cpu) };
}

/// Loads the segments and the task state of the calling CPU.
///
/// # Safety
/// Once for each CPU, after [`super::percpu::init`]; `stacks` are for this CPU alone, for ever.
pub(super) unsafe fn init(area: &'static CpuArea, cpu: u32, stacks: *mut InterruptStacks) {
    // SAFETY: the CPU's own descriptors; nothing is loaded from them yet.
    let descriptors = unsafe { &mut *area.descriptors.get() };
    for index in 0..IST_COUNT {
        // The entry code wants 16-byte alignment; the top word is the area's address, one more pads.
        let top = stacks as u64 + ((index + 1) * IST_STACK_SIZE) as u64 - 16;
        // SAFETY: inside the caller's stacks.
        unsafe { *((top + 8) as *mut u64) = area as *const CpuArea as u64 };
        descriptors.task.ist[index] = top;
    }
    descriptors.set_cpu_number(cpu);
    descriptors.set_task_state();
    let pointer =
        TablePointer { limit: size_of::<[u64; 16]>() as u16 - 1, base: &raw const descriptors.gdt as u64 };
    // SAFETY: the table is complete and static; the selectors are those of the table. Loading GS would clear
    // its base, so it keeps its old selector, which is null already.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {null:e}",
            "mov es, {null:e}",
            "mov fs, {null:e}",
            "mov ss, {data:e}",
            "ltr {task:x}",
            pointer = in(reg) &pointer,
            code = const KERNEL_CODE as i32,
            scratch = out(reg) _,
            null = in(reg) 0u32,
            data = in(reg) KERNEL_DATA as u32,
            task = in(reg) TASK_STATE,
        );
    }
}
