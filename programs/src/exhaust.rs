//! Programs that make as many of one thing as they can: of the kernel's own memory, not of theirs.
//!
//! Nearly all memory is held by a process that may not be killed, so that the rest is soon used up. A crew without
//! privileges then makes things until it is refused or killed. The machine goes on, a bystander too, and in the end
//! everything is as it was.

use std::time::Duration;

use crate::Errno;
use crate::child::{self, Child};
use crate::leak::Baseline;
use crate::mem::Map;
use crate::procfs::{self, Meminfo};
use crate::shared::Shared;
use crate::sys::check;

/// What is left free when the crew begins, in kB.
const ROOM: u64 = 28 << 10;
/// Somebody without rights.
const USER: u32 = 31_415;
const CREW: u32 = 8;

/// Words of the shared memory: the bystander's count, members that have been refused, members that are ready, whether
/// memory is held, the last refusal, the sign that all begin.
const BEATS: usize = 0;
const REFUSED: usize = 1;
/// Members that are ready.
pub const READY: usize = 2;
/// Memory is held.
pub const HELD: usize = 3;
const ERROR: usize = 4;
const BEGIN: usize = 5;

/// Sets how gladly a process is killed. Children inherit it.
pub fn adjust(pid: &str, value: i32) {
    procfs::write(&format!("/proc/{pid}/oom_score_adj"), value).expect("oom_score_adj");
}

fn bystander(shared: &Shared) -> Child {
    child::fork(|| {
        adjust("self", 0);
        let own = Map::anonymous(1 << 20);
        (0..1 << 20).step_by(4096).for_each(|at| own.set(at, 1));
        loop {
            let map = Map::anonymous(16 * 4096);
            (0..16).for_each(|page| map.set(page * 4096, 1));
            let _ = std::fs::metadata("/proc/self/stat");
            shared.add(BEATS);
            std::thread::sleep(Duration::from_millis(10));
        }
    })
}

/// Holds memory until there is only little left.
pub fn ballast(shared: &Shared) -> Child {
    child::fork(|| {
        loop {
            let free = Meminfo::read().get("MemFree");
            if free <= ROOM {
                break;
            }
            let bytes = ((free - ROOM) as usize * 1024 / 2).next_multiple_of(1 << 20);
            let map = Map::anonymous(bytes);
            (0..bytes).step_by(4096).for_each(|at| map.set(at, 1));
            std::mem::forget(map);
        }
        shared.set(HELD, 1);
        loop {
            std::thread::sleep(Duration::from_secs(100));
        }
    })
}

fn limit(resource: u32, value: u64) {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::setrlimit(resource as _, &limit) }).expect("setrlimit");
}

/// Becomes somebody without rights, who is killed as gladly as `adjustment` says.
pub fn drop_rights(adjustment: i32) {
    // Now: afterwards the file is not this user's.
    adjust("self", adjustment);
    for resource in [libc::RLIMIT_NOFILE, libc::RLIMIT_NPROC] {
        limit(resource, 30_000);
    }
    // Signals are small.
    limit(libc::RLIMIT_SIGPENDING, 300_000);
    // SAFETY: takes integers.
    unsafe {
        check(libc::setgid(USER)).expect("setgid");
        check(libc::setuid(USER)).expect("setuid");
    }
}

/// Has a crew do `step` over and over, each member until it is refused, and looks what has become of the machine.
pub fn exhaust(step: impl Fn(usize) -> Result<usize, Errno>) {
    exhaust_after(|| drop_rights(0), step, || ());
}

/// As [`exhaust`], for those who only make processes: each is small, and any innocent one larger. They ask to be the
/// victims. Whoever makes one more may have one killed for it, again and again, and never be refused: each ends after some.
pub fn exhaust_by_family(step: impl Fn(usize) -> Result<usize, Errno>) {
    /// Of all of the crew more than twice as many as there is memory for.
    const MEMBERS: usize = 50;
    exhaust_after(
        || drop_rights(1000),
        |count| if count < MEMBERS { step(count) } else { Err(Errno::EAGAIN) },
        || (),
    );
}

/// Has a crew do `step` after `prepare`; `clean_up` undoes what stays of it.
pub fn exhaust_after(
    prepare: impl Fn(),
    step: impl Fn(usize) -> Result<usize, Errno>,
    clean_up: impl FnOnce(),
) {
    // Who looks on is not meant to be the largest process here.
    // SAFETY: takes nothing.
    let starter = unsafe { libc::getppid() }.to_string();
    adjust(&starter, -1000);
    adjust("self", -1000);
    let before = Baseline::take();
    let shared = Shared::new();
    let ballast = ballast(&shared);
    shared.wait(HELD, 1);
    let bystander = bystander(&shared);
    shared.wait(BEATS, 1);
    let crew: Vec<Child> = (0..CREW)
        .map(|_| {
            child::fork(|| {
                prepare();
                // Who looks on is no longer making members when memory is used up: a fork would be refused, too.
                shared.add(READY);
                shared.wait(BEGIN, 1);
                let mut count = 0;
                let error = loop {
                    match step(count) {
                        Ok(_) => count += 1,
                        Err(error) => break error,
                    }
                };
                shared.word(ERROR).store(error as u32, std::sync::atomic::Ordering::SeqCst);
                shared.add(REFUSED);
                loop {
                    std::thread::sleep(Duration::from_secs(100));
                }
            })
        })
        .collect();
    shared.wait(READY, CREW);
    shared.set(BEGIN, 1);
    // Each is refused, or killed: then it is a zombie.
    let is_over = || {
        let dead =
            crew.iter().filter(|member| procfs::state(member.pid).is_none_or(|state| state == 'Z')).count();
        dead as u32 + shared.get(REFUSED) >= CREW
    };
    while !is_over() {
        std::thread::sleep(Duration::from_millis(50));
    }
    // With all that they hold, others still get on.
    let count = shared.get(BEATS);
    assert!(shared.wait_for(BEATS, count + 3, Duration::from_secs(30)), "the bystander is gone or stuck");
    println!(
        "# {} of {CREW} refused, the last by {}; {} kB free",
        shared.get(REFUSED),
        Errno::from_raw(shared.get(ERROR) as i32),
        Meminfo::read().get("MemFree")
    );
    for member in &crew {
        member.kill(libc::SIGKILL);
    }
    drop(crew);
    bystander.end();
    ballast.end();
    clean_up();
    before.check();
    adjust("self", 0);
    adjust(&starter, 0);
}
