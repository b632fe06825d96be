//! Breaks a rule of locks on purpose, in checked kernels with `break_lock_rule=` on the command line: a test sees that it is caught.

use core::hint::black_box;

use alloc::boxed::Box;

use super::super::{IrqLock, Mutex, SpinLock};
use crate::arch::interrupts;
use crate::boot::cmdline;
use crate::sched;

/// Breaks the rule that the command line names, if it names one.
pub fn break_rule() {
    let Some(rule) = cmdline::get("break_lock_rule") else { return };
    let broken: fn() = match rule {
        "order" => reverse_an_order,
        "long-way" => reverse_a_long_way,
        "twice" => take_twice,
        "sleep" => sleep_under_a_lock,
        "interrupts" => sleep_under_interrupts_off,
        "allocation" => allocate_with_interrupts_off,
        "allocation-spinning" => allocate_under_a_spin_lock,
        _ => {
            log::error!("break_lock_rule: no rule {rule}");
            return;
        }
    };
    // One thread breaks them all: nothing ever waits.
    sched::spawn_kernel_thread("breaker", move || {
        broken();
        log::error!("break_lock_rule: nobody has noticed");
    });
}

fn reverse_an_order() {
    let (first, second) = (Mutex::new(()), Mutex::new(()));
    {
        let _first = first.lock();
        let _second = second.lock();
    }
    let _second = second.lock();
    let _first = first.lock();
}

/// No two locks meet in both orders; the three together do.
fn reverse_a_long_way() {
    let (first, second, third) = (SpinLock::new(()), SpinLock::new(()), SpinLock::new(()));
    {
        let _first = first.lock();
        let _second = second.lock();
    }
    {
        let _second = second.lock();
        let _third = third.lock();
    }
    let _third = third.lock();
    let _first = first.lock();
}

fn take_twice() {
    let lock = SpinLock::new(());
    let _first = lock.lock();
    let _second = lock.lock();
}

fn sleep_under_a_lock() {
    let (spins, sleeps) = (SpinLock::new(()), Mutex::new(()));
    let _spins = spins.lock();
    let _sleeps = sleeps.lock();
}

fn sleep_under_interrupts_off() {
    interrupts::without(sched::yield_now);
}

fn allocate_with_interrupts_off() {
    super::system_is_up();
    let lock = IrqLock::new(());
    let _held = lock.lock();
    drop(black_box(Box::new(0u64)));
}

/// The other kind of spin lock; one that grows may have it.
fn allocate_under_a_spin_lock() {
    super::system_is_up();
    let (grows, plain) = (SpinLock::growing(()), SpinLock::new(()));
    let allocate = || drop(black_box(Box::new(0u64)));
    {
        let _held = grows.lock();
        allocate();
    }
    log::error!("break_lock_rule: a lock that grows may");
    let _held = plain.lock();
    allocate();
}
