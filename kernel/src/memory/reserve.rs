//! Memory for allocations that have no way to fail, and for those that have one.
//!
//! A kernel written in Rust allocates in hundreds of places by `Box::new`, `Arc::new`, `Vec::push` or a map's `insert`,
//! and none of these can fail: without memory they panic. This module is why they find memory.
//!
//! # The guarantee
//!
//! An allocation of at most one page ([`super::heap`] serves it from single frames, so fragmentation cannot fail it)
//! succeeds at any time, in any context, under any lock. No program can use up what it takes this from.
//!
//! An allocation of more than a page may fail. It is made by the calls of [`super::fallible`], or another
//! `try_reserve`, and gives `ENOMEM`. Checked kernels panic on a large allocation that did not come through them.
//!
//! # The levels
//!
//! Of all frames that are free, `min` is a 64th of memory (2 MiB to 32 MiB, and 512 KiB for each CPU). Who asks for
//! memory is refused when less than this would be left:
//!
//! | level | who stops there | what happens then |
//! | --- | --- | --- |
//! | 4 min | pages of files, and names, inodes, mounts, SysV objects: what no end of a process frees | `ENOMEM`, `ENOSPC`; in a fault the killer |
//! | 2 min | memory of processes, huge pages | the killer, or the pool does not grow |
//! | min | page tables, kernel stacks, pipe buffers, large allocations, each step of a call that a user can make long ([`ask`]) | `ENOMEM`; in a fault the killer |
//! | min / 2 | the *entry* to the kernel: system calls, page faults, and each thread that goes on after it slept without a lock | the thread waits, the killer finds memory |
//! | 0 | nobody | |
//!
//! # Why level 0 is never reached
//!
//! Let a *stretch* be what a thread executes in the kernel from one look at free memory to the next, that is from
//! entry, from an [`ask`], or from the end of a sleep, to the next of these or the return to user mode. Small
//! allocations of one stretch, less what it freed, are at most [`STRETCH`] bytes: what a user multiplies within one
//! call (areas of a fork, descriptors of a message, entries of a poll) is asked for step by step or is one large
//! allocation, and the rest of each call is a fixed, small number of objects. Checked kernels meter every stretch and
//! panic when one is longer.
//!
//! The entry admits a thread while at least min / 2 is free. Below that memory is used by stretches alone:
//!
//! * *Running threads.* The kernel is not preempted, so there is at most one on each CPU: `CPUs * STRETCH`, a 16th of
//!   min / 2.
//! * *Threads that sleep in the middle of a stretch.* A thread that holds no sleeping lock, nor waits for one, is
//!   looked at again when it wakes up: its stretch ended when it fell asleep, and ten thousand sleepers need no
//!   reserve. A thread with a lock cannot be made to wait for the killer, whose victim may need the lock. For it,
//!   `STRETCH` bytes are *promised* while it is off its CPU: they are taken off the free count as if they were
//!   allocated ([`off_cpu`]). So every refusal above sees them, and the entry closes before such threads together could
//!   use more than there is. Promises given while the entry is closed are to threads that were admitted before; each
//!   takes what its running stretch had anyway.
//! * *Interrupt handlers* allocate nothing that a user can multiply.
//! * *Threads that are to die* pass the entry, since their end is what frees memory. Their way out of the kernel is one
//!   stretch, and what they drop in the end they drop object by object, from lists that are linked through the objects.
//! * *The first process* passes when the killer has found nobody: see [`crate::process::oom`].
//!
//! What one page of a size class has free, another class cannot use. But a class takes a new page only when all of its
//! pages are full, so the sum of allocations above needs its size, rounded up to a page for each of the 18 classes
//! once, and the waste of a page (an eighth).
//!
//! # What it costs
//!
//! The entry reads one word and compares. A sleeping lock counts itself in a word of its CPU, and a switch away from a
//! thread with locks changes the free count twice.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use super::{PAGE_SIZE, heap, usage};
use crate::arch::percpu;
use crate::errno::{Errno, Result};
use crate::process;

pub use usage::Level;

/// Bytes that the small allocations of one stretch may come to.
pub const STRETCH: usize = 16 << 10;
const STRETCH_FRAMES: i64 = (STRETCH / PAGE_SIZE) as i64;

/// A thread's part in all this.
#[derive(Default)]
pub struct Account {
    /// It is not looked at: it makes room already.
    passes: AtomicBool,
    /// It is at its end, which frees memory: it does not wait for any.
    ending: AtomicBool,
    /// Sleeping locks that it holds or waits for, while it is off its CPU.
    locks: AtomicU32,
    /// Calls of the library of huge pages that it is in, whose large allocations may all fail.
    library: AtomicU32,
    /// The allocation that fails on purpose.
    pub countdown: super::inject::Countdown,
    /// Checked kernels: bytes of the present stretch.
    stretch: AtomicI64,
}

impl Account {
    /// Sets whether the entry lets the thread pass in any case; returns what was set before.
    pub fn set_passes(&self, passes: bool) -> bool {
        self.passes.swap(passes, Ordering::SeqCst)
    }

    /// The thread is at its end from now on.
    pub fn set_ending(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Whether the thread is at its end.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

/// A look at free memory: at the entry to the kernel, and after a sleep. When memory is scarce the thread waits for the
/// killer's success, unless it holds a lock. Called where it may sleep.
#[inline]
pub fn enter() {
    if !usage::has_room(0, Level::Entry) {
        if percpu::sleeping_locks() != 0 {
            // The stretch goes on.
            return;
        }
        process::oom::make_room();
    }
    begin_stretch();
}

/// May the current call go on and use `bytes` more, in small allocations? `ENOMEM` when little is left. Does not sleep,
/// and takes nothing: nobody else runs on this CPU before the allocation, and others have their part.
#[inline]
pub fn ask(bytes: usize) -> Result<()> {
    debug_assert!(bytes <= STRETCH, "{bytes} bytes are no small step");
    ask_at(bytes, Level::Call)
}

/// As [`ask`], for an object that may outlive the process that made it. What is more than a small step of it is one large allocation, which
/// may fail.
#[inline]
pub fn ask_lasting(bytes: usize) -> Result<()> {
    ask_at(bytes, Level::Lasting)
}

fn ask_at(bytes: usize, level: Level) -> Result<()> {
    if super::inject::fails() || !usage::has_room(bytes.div_ceil(PAGE_SIZE) as i64, level) {
        return Err(Errno::ENOMEM);
    }
    begin_stretch();
    Ok(())
}

/// Memory for many small allocations that are made later, in a step that must not fail: it stays free for them until this is dropped.
pub struct Promise {
    frames: i64,
}

impl Promise {
    /// For `bytes` of objects that may outlive the process that makes them. `ENOMEM`.
    pub fn lasting(bytes: usize) -> Result<Self> {
        let frames = bytes.div_ceil(PAGE_SIZE) as i64;
        if super::inject::fails() || !usage::has_room(frames, Level::Lasting) {
            return Err(Errno::ENOMEM);
        }
        usage::promise(frames);
        Ok(Self { frames })
    }

    /// The allocations up to the next step are some of those.
    pub fn step(&self) {
        begin_stretch();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        usage::end_promise(self.frames);
    }
}

/// A thread with its locks, away from its CPU.
pub struct OffCpu {
    locks: u32,
}

/// The current thread is about to be switched away from. Interrupts are off.
pub fn off_cpu(account: &Account) -> OffCpu {
    let locks = percpu::sleeping_locks();
    // Relaxed: for reports; the thread's own CPU.
    account.locks.store(locks, Ordering::Relaxed);
    if locks != 0 {
        usage::promise(STRETCH_FRAMES);
    }
    percpu::set_sleeping_locks(0);
    OffCpu { locks }
}

impl OffCpu {
    /// The thread is back on a CPU. Interrupts are off.
    pub fn back(self) {
        percpu::set_sleeping_locks(self.locks);
        if self.locks != 0 {
            usage::end_promise(STRETCH_FRAMES);
        }
    }
}

/// Is there less than the entry wants?
#[inline]
pub fn is_scarce() -> bool {
    !usage::has_room(0, Level::Entry)
}

/// Is memory scarce only by promises to threads that hold locks? They are on their way, and give them back.
pub fn only_promised() -> bool {
    usage::only_promised(Level::Entry)
}

/// Gets what the heap keeps ready. True when there was any.
pub fn give_up_spares() -> bool {
    heap::give_up_spares()
}

/// The thread is in the library of huge pages, as long as this lives.
///
/// What the library allocates in more than a page may fail, and its small allocations are few between two calls of
/// `hugetlb::Machine::take_step`, which [`ask`]s: its lists have bounds, and a loop that a user makes long takes steps.
pub struct InLibrary(PhantomData<*mut ()>);

/// See [`InLibrary`].
#[inline]
pub fn library() -> InLibrary {
    if let Some(thread) = process::try_current() {
        // Relaxed, here and below: the thread's own.
        let depth = &thread.memory.library;
        depth.store(depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    InLibrary(PhantomData)
}

impl Drop for InLibrary {
    #[inline]
    fn drop(&mut self) {
        if let Some(thread) = process::try_current() {
            let depth = &thread.memory.library;
            depth.store(depth.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        }
    }
}

/// Whether the running thread is in the library.
pub(super) fn in_library() -> bool {
    process::try_current().is_some_and(|thread| thread.memory.library.load(Ordering::Relaxed) != 0)
}

/// A check of all tables is made as long as this lives: it notes everything that it finds, without a bound. Checked
/// kernels make such checks, and who may change the kernel's settings.
pub struct Checking {
    _library: InLibrary,
    stretch: i64,
}

/// See [`Checking`].
pub fn checking() -> Checking {
    // Relaxed, here and below: the thread's own.
    let stretch = process::try_current()
        .map_or(0, |thread| thread.memory.stretch.swap(i64::MIN / 2, Ordering::Relaxed));
    Checking { _library: library(), stretch }
}

impl Drop for Checking {
    fn drop(&mut self) {
        if let Some(thread) = process::try_current() {
            thread.memory.stretch.store(self.stretch, Ordering::Relaxed);
        }
    }
}

/// Does the entry let this thread pass, whatever is free?
pub fn passes(thread: &process::Thread) -> bool {
    let account = &thread.memory;
    thread.is_kernel()
        || thread.kill_pending()
        || account.is_ending()
        || account.passes.load(Ordering::SeqCst)
}

/// What a call allocates now is bounded by other memory: by a small part of what the objects that it visits take, say.
/// For loops that must not fail; the place says why.
#[inline]
pub fn covered() {
    begin_stretch();
}

fn begin_stretch() {
    if cfg!(debug_assertions)
        && let Some(thread) = process::try_current()
    {
        // Relaxed: the thread's own. Not in the middle of a check: [`Checking`].
        if thread.memory.stretch.load(Ordering::Relaxed) > i64::MIN / 4 {
            thread.memory.stretch.store(0, Ordering::Relaxed);
        }
    }
}

/// Checked kernels: the running thread's stretch has got longer by `bytes`, or shorter.
#[inline]
pub(super) fn meter(bytes: i64) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Some(thread) = process::try_current() else { return };
    // Relaxed: the thread's own; an interrupt's allocations count for the thread that it met.
    let length = thread.memory.stretch.load(Ordering::Relaxed) + bytes;
    thread.memory.stretch.store(length, Ordering::Relaxed);
    let bounded = !thread.is_kernel() && thread.process.pid != 1;
    if bytes > 0 && length > STRETCH as i64 && bounded {
        thread.memory.stretch.store(i64::MIN / 2, Ordering::Relaxed);
        panic!("{length} bytes are allocated in {} without asking", thread.syscall_name());
    }
}
