//! Scheduling policies that change: who waits for a CPU, and who has it, is what its new policy says at once.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use roundtable_programs::child::{self, Child};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, cpus, pin};
use roundtable_programs::{harness, procfs, sys, tests};

tests! { queued_thread_goes_first: 60, running_thread_goes_last: 60, no_debt_from_real_time: 60, idle_is_left_by_nice }

fn set_policy(pid: i32, policy: i32, priority: i32) {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters are only read.
    check(unsafe { libc::sched_setscheduler(pid, policy, &parameters) }).expect("sched_setscheduler");
}

/// A CPU for those who are looked at, and another one, on which the current thread is from now on.
fn two_cpus() -> usize {
    let [first, second, ..] = cpus()[..] else { harness::skip("one CPU") };
    pin(second);
    first
}

/// A process that keeps `cpu`.
fn spinner(shared: &Shared, cpu: usize, policy: i32, priority: i32) -> Child {
    let child = child::fork(|| {
        pin(cpu);
        set_policy(0, policy, priority);
        shared.add(0);
        loop {
            shared.word(1).fetch_add(1, SeqCst);
        }
    });
    shared.wait(0, 1);
    child
}

/// A process on the same CPU that says when it runs once it is woken; it sleeps.
fn sleeper(shared: &Shared, cpu: usize) -> Child {
    let child = child::fork(|| {
        pin(cpu);
        shared.wait_without_limit(2, 1);
        shared.add(3);
    });
    procfs::wait_for_sleep(child.pid);
    child
}

/// Linux lets ordinary threads run for a twentieth of each second beside real-time ones, unless told otherwise.
fn without_throttling() {
    let _ = procfs::write("/proc/sys/kernel/sched_rt_runtime_us", -1);
}

fn queued_thread_goes_first() {
    without_throttling();
    let shared = Shared::new();
    let cpu = two_cpus();
    let waiter = sleeper(&shared, cpu);
    let spinner = spinner(&shared, cpu, libc::SCHED_FIFO, 10);
    shared.set(2, 1);
    assert!(!shared.wait_for(3, 1, Duration::from_millis(200)), "an ordinary thread runs");
    set_policy(waiter.pid, libc::SCHED_FIFO, 9);
    assert!(!shared.wait_for(3, 1, Duration::from_millis(200)), "a thread of lower priority runs");
    set_policy(waiter.pid, libc::SCHED_FIFO, 20);
    assert!(shared.wait_for(3, 1, Duration::from_secs(20)), "it never runs");
    waiter.ok();
    spinner.end();
}

fn running_thread_goes_last() {
    without_throttling();
    let shared = Shared::new();
    let cpu = two_cpus();
    let waiter = sleeper(&shared, cpu);
    let spinner = spinner(&shared, cpu, libc::SCHED_FIFO, 10);
    set_policy(waiter.pid, libc::SCHED_FIFO, 5);
    shared.set(2, 1);
    assert!(!shared.wait_for(3, 1, Duration::from_millis(200)), "a thread of lower priority runs");
    set_policy(spinner.pid, libc::SCHED_FIFO, 4);
    assert!(shared.wait_for(3, 1, Duration::from_secs(20)), "it never runs");
    waiter.ok();
    spinner.end();
}

/// CPU time of a process, in hundredths of a second.
fn cpu_time(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = text.rsplit_once(") ").expect("a name");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    [11, 12].iter().map(|index| fields[*index].parse::<u64>().expect("a number")).sum()
}

/// What a thread ran in real time is not held against it when it is an ordinary one.
fn no_debt_from_real_time() {
    without_throttling();
    let shared = Shared::new();
    let cpu = two_cpus();
    let first = spinner(&shared, cpu, libc::SCHED_FIFO, 10);
    assert!(sys::settles(Duration::from_secs(40), || cpu_time(first.pid) > 400));
    let other = child::fork(|| {
        pin(cpu);
        loop {
            shared.word(4).fetch_add(1, SeqCst);
        }
    });
    set_policy(first.pid, libc::SCHED_OTHER, 0);
    // The other one has the CPU for a while, and not until it has made up for all that time.
    assert!(sys::settles(Duration::from_secs(20), || shared.get(4) > 0), "the other one never runs");
    let mut before = shared.get(1);
    let runs_again = || {
        let now = shared.get(1);
        core::mem::replace(&mut before, now) != now
    };
    assert!(sys::settles(Duration::from_secs(40), runs_again), "it never runs again");
    let others = cpu_time(other.pid);
    assert!(others < 200, "{others}");
    first.end();
    other.end();
}

/// Who is idle needs the right to his nice value to be anything else, real time as well.
fn idle_is_left_by_nice() {
    child::in_child(|| {
        let limit = |resource, most: u64| {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            // SAFETY: the limit lives through the call.
            check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
        };
        limit(libc::RLIMIT_RTPRIO, 10);
        limit(libc::RLIMIT_NICE, 0);
        set_policy(0, libc::SCHED_IDLE, 0);
        roundtable_programs::place::become_user(1000, 1000);
        let change = |policy: i32, priority: i32| {
            let parameters = libc::sched_param { sched_priority: priority };
            // SAFETY: the parameters are only read.
            check(unsafe { libc::sched_setscheduler(0, policy, &parameters) })
        };
        assert_eq!(change(libc::SCHED_FIFO, 5), Err(roundtable_programs::Errno::EPERM));
        assert_eq!(change(libc::SCHED_OTHER, 0), Err(roundtable_programs::Errno::EPERM));
    });
}
