//! Each CPU's own data, found through the GS segment, and per-CPU variables.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ops::Deref;
use core::sync::atomic::{AtomicU32, Ordering};

use super::cpu::{CpuId, MAX_CPUS};
use super::{features, gdt};

/// What the entry code and the hottest paths reach through GS. The entry code knows the first fields by offset.
#[repr(C, align(64))]
pub struct CpuArea {
    /// Address of this structure.
    this: UnsafeCell<*const CpuArea>,
    /// The system-call entry parks the user's stack pointer here.
    user_rsp: UnsafeCell<u64>,
    /// Where the running thread's kernel stack begins (its highest address).
    kernel_stack: UnsafeCell<u64>,
    /// The running thread, as the scheduler set it.
    current: UnsafeCell<*const ()>,
    /// Depth of reasons not to block or switch.
    preempt_count: UnsafeCell<u32>,
    /// Sleeping locks that the running thread holds or waits for.
    sleeping_locks: UnsafeCell<u32>,
    /// Checked kernels: the running allocation may be large, for its caller can do without.
    may_fail: UnsafeCell<u32>,
    id: AtomicU32,
    apic_id: AtomicU32,
    pub(super) descriptors: UnsafeCell<gdt::Descriptors>,
}

/// Offsets that the entry code uses.
pub const USER_RSP: usize = offset_of!(CpuArea, user_rsp);
pub const KERNEL_STACK: usize = offset_of!(CpuArea, kernel_stack);

// SAFETY: the cells are touched by their own CPU only (or before it runs); the rest is atomic.
unsafe impl Sync for CpuArea {}

impl CpuArea {
    const fn new() -> Self {
        Self {
            this: UnsafeCell::new(core::ptr::null()),
            user_rsp: UnsafeCell::new(0),
            kernel_stack: UnsafeCell::new(0),
            current: UnsafeCell::new(core::ptr::null()),
            preempt_count: UnsafeCell::new(0),
            sleeping_locks: UnsafeCell::new(0),
            may_fail: UnsafeCell::new(0),
            id: AtomicU32::new(0),
            apic_id: AtomicU32::new(0),
            descriptors: UnsafeCell::new(gdt::Descriptors::new()),
        }
    }
}

static AREAS: [CpuArea; MAX_CPUS] = [const { CpuArea::new() }; MAX_CPUS];

/// Makes GS of the calling CPU point to the area of CPU `id`.
///
/// # Safety
/// Once for each CPU, by that CPU, before it uses anything per-CPU.
pub(super) unsafe fn init(id: CpuId) -> &'static CpuArea {
    let area = &AREAS[id as usize];
    area.id.store(id, Ordering::SeqCst);
    // SAFETY: the area is this CPU's alone until it is online.
    unsafe {
        *area.this.get() = area;
        features::write_msr(features::MSR_GS_BASE, area as *const CpuArea as u64);
        features::write_msr(features::MSR_KERNEL_GS_BASE, 0);
    }
    area
}

/// The area of any CPU.
pub(super) fn area(cpu: CpuId) -> &'static CpuArea {
    &AREAS[cpu as usize]
}

#[inline]
pub(super) fn this_area() -> &'static CpuArea {
    let area: *const CpuArea;
    // SAFETY: GS points to this CPU's area in kernel mode.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) area, const offset_of!(CpuArea, this), options(nostack, preserves_flags))
    };
    // SAFETY: areas are static.
    unsafe { &*area }
}

#[inline]
pub fn cpu_id() -> CpuId {
    let id: u32;
    // SAFETY: GS points to this CPU's area in kernel mode.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) id, const offset_of!(CpuArea, id), options(nostack, preserves_flags))
    };
    id
}

/// The pointer that [`set_current`] stored for the running thread: null before the scheduler runs.
#[inline]
pub fn current() -> *const () {
    let current: *const ();
    // SAFETY: GS points to this CPU's area in kernel mode.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) current, const offset_of!(CpuArea, current), options(nostack, preserves_flags))
    };
    current
}

/// Stores the running thread; the scheduler does this around its switch, with interrupts off.
pub fn set_current(thread: *const ()) {
    // SAFETY: as above; the store is one instruction.
    unsafe {
        asm!("mov gs:[{}], {}", const offset_of!(CpuArea, current), in(reg) thread, options(nostack, preserves_flags))
    };
}

/// How many reasons this CPU has not to block or switch.
#[inline]
pub fn preempt_count() -> u32 {
    let count: u32;
    // SAFETY: GS points to this CPU's area in kernel mode.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) count, const offset_of!(CpuArea, preempt_count), options(nostack, preserves_flags))
    };
    count
}

/// Adds one reason not to block or switch on this CPU.
#[inline]
pub fn preempt_disable() {
    // SAFETY: one instruction on this CPU's own counter, so interrupts cannot tear it.
    unsafe { asm!("inc dword ptr gs:[{}]", const offset_of!(CpuArea, preempt_count), options(nostack)) };
}

/// Takes one reason away.
#[inline]
pub fn preempt_enable() {
    // SAFETY: as `preempt_disable`.
    unsafe { asm!("dec dword ptr gs:[{}]", const offset_of!(CpuArea, preempt_count), options(nostack)) };
}

/// How many sleeping locks the running thread holds or waits for.
#[inline]
pub fn sleeping_locks() -> u32 {
    let count: u32;
    // SAFETY: GS points to this CPU's area in kernel mode.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) count, const offset_of!(CpuArea, sleeping_locks), options(nostack, preserves_flags))
    };
    count
}

/// For the scheduler, which puts the next thread's count in place: interrupts are off.
#[inline]
pub fn set_sleeping_locks(count: u32) {
    // SAFETY: as above; the store is one instruction.
    unsafe {
        asm!("mov gs:[{}], {:e}", const offset_of!(CpuArea, sleeping_locks), in(reg) count, options(nostack, preserves_flags))
    };
}

/// The running thread takes a sleeping lock, or begins to wait for one.
#[inline]
pub fn sleeping_lock_taken() {
    // SAFETY: as `preempt_disable`.
    unsafe { asm!("inc dword ptr gs:[{}]", const offset_of!(CpuArea, sleeping_locks), options(nostack)) };
}

/// The running thread has released a sleeping lock, or did not get it.
#[inline]
pub fn sleeping_lock_released() {
    // SAFETY: as `preempt_disable`.
    unsafe { asm!("dec dword ptr gs:[{}]", const offset_of!(CpuArea, sleeping_locks), options(nostack)) };
}

/// Says, in checked kernels, whether the allocations that follow may fail. The thread does not sleep in between.
#[inline]
pub fn may_fail(may: bool) {
    if cfg!(debug_assertions) {
        let count = u32::from(may);
        // SAFETY: as `set_sleeping_locks`.
        unsafe {
            asm!("mov gs:[{}], {:e}", const offset_of!(CpuArea, may_fail), in(reg) count, options(nostack, preserves_flags))
        };
    }
}

/// Whether the running allocation may fail.
pub fn allocation_may_fail() -> bool {
    // SAFETY: this CPU's own field.
    unsafe { *this_area().may_fail.get() != 0 }
}

/// The stack on which traps and system calls from user mode start.
pub(super) fn set_kernel_stack(top: u64) {
    let area = this_area();
    // SAFETY: this CPU's own fields; called with interrupts off, so no trap from user mode is under way.
    unsafe {
        *area.kernel_stack.get() = top;
        (*area.descriptors.get()).set_kernel_stack(top);
    }
}

/// Highest address of the kernel stack that this CPU runs on for the current thread.
pub fn kernel_stack_top() -> u64 {
    // SAFETY: this CPU's own field.
    unsafe { *this_area().kernel_stack.get() }
}

pub(super) fn set_apic_id(cpu: CpuId, apic_id: u32) {
    area(cpu).apic_id.store(apic_id, Ordering::SeqCst);
}

pub fn apic_id(cpu: CpuId) -> u32 {
    area(cpu).apic_id.load(Ordering::SeqCst)
}

/// A variable of which each CPU has its own copy, on a cache line of its own.
///
/// It derefs to this CPU's copy, which other CPUs may reach by [`PerCpu::of`]: hence `T: Sync`.
pub struct PerCpu<T>([Padded<T>; MAX_CPUS]);

#[repr(align(64))]
struct Padded<T>(T);

impl<T> PerCpu<T> {
    /// `PerCpu::new([const { ... }; MAX_CPUS])`.
    pub const fn new(values: [T; MAX_CPUS]) -> Self {
        // A constant function cannot map an array, so each value moves by hand.
        let mut values = core::mem::ManuallyDrop::new(values);
        let source = &raw mut values as *const T;
        let mut padded = [const { core::mem::MaybeUninit::<Padded<T>>::uninit() }; MAX_CPUS];
        let mut index = 0;
        while index < MAX_CPUS {
            // SAFETY: each value is read once, and `ManuallyDrop` keeps it from being dropped again.
            padded[index].write(Padded(unsafe { source.add(index).read() }));
            index += 1;
        }
        // SAFETY: all are written, and `MaybeUninit<P>` has P's layout.
        Self(unsafe { (&raw const padded).cast::<[Padded<T>; MAX_CPUS]>().read() })
    }

    /// The copy of `cpu`.
    pub fn of(&self, cpu: CpuId) -> &T {
        &self.0[cpu as usize].0
    }
}

impl<T: Sync> Deref for PerCpu<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `init` has indexed the areas, of which there are as many, by this number.
        unsafe { &self.0.get_unchecked(cpu_id() as usize).0 }
    }
}
