//! Threads of little weight beside others of one CPU.

use std::time::Duration;

use roundtable_programs::child::{Child, fork};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, cpus, pin, settles};
use roundtable_programs::tests;

tests! { yields_beside_the_idle_policy: 200 }

/// A child that counts for as long as it has a CPU.
fn busy_on(cpu: usize, shared: &Shared, index: usize, prepare: impl FnOnce()) -> Child {
    fork(|| {
        pin(cpu);
        prepare();
        loop {
            shared.word(index).fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    })
}

fn become_idle() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are only read.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) }).expect("SCHED_IDLE");
}

/// Nanoseconds that a process has had a CPU.
fn cpu_time_of(pid: i32) -> u64 {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both are ours to write.
    unsafe {
        assert_eq!(libc::clock_getcpuclockid(pid, &mut clock), 0);
        check(libc::clock_gettime(clock, &mut time)).expect("clock_gettime");
    }
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The CPU time that the neighbour has while the caller yields ten times: a turn each, and not what another one's weight makes of its turns.
/// The least of three: the host may stop the machine's CPUs at any time.
fn yields(neighbour: &Child) {
    let ten = || {
        let before = cpu_time_of(neighbour.pid);
        (0..10).for_each(|_| std::thread::yield_now());
        cpu_time_of(neighbour.pid) - before
    };
    let least = (0..3).map(|_| ten()).min().expect("three");
    println!("# a neighbour has {} us while ten yields last", least / 1000);
    assert!(least < 1_000_000_000, "{least} ns");
}

fn yields_beside_the_idle_policy() {
    let (shared, cpu) = (Shared::new(), cpus()[0]);
    let neighbour = busy_on(cpu, &shared, 0, || ());
    let idle = busy_on(cpu, &shared, 8, become_idle);
    assert!(settles(Duration::from_secs(60), || shared.get(8) > 0), "it never begins");
    pin(cpu);
    yields(&neighbour);
    neighbour.end();
    idle.end();
}
