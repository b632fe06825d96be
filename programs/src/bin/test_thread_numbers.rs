//! Calls that take a number: that of a thread that is not its process's first is as good as the process's own.

use libc::{PRIO_PROCESS, RLIMIT_NOFILE};
use roundtable_programs::child::{Child, fork};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::Map;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::PAGE;
use roundtable_programs::{Errno, tests};

tests! { memory, numbers, of_threads_that_have_ended }

/// A child with a second thread, and that thread's number.
fn with_thread(shared: &Shared) -> (Child, usize) {
    let child = fork(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: takes nothing.
                shared.set(0, unsafe { libc::gettid() } as u32);
                shared.wait_without_limit(1, 1);
            });
        });
        shared.add(2);
        shared.wait_without_limit(1, 2);
    });
    shared.wait(0, 1);
    (child, shared.get(0) as usize)
}

fn vector(call_number: i64, tid: usize, local: &Map, remote: &Map) -> Answer {
    let local = libc::iovec { iov_base: local.address as *mut _, iov_len: 8 };
    let remote = libc::iovec { iov_base: remote.address as *mut _, iov_len: 8 };
    let at = [&raw const local as usize, &raw const remote as usize];
    call(call_number, [tid, at[0], 1, at[1], 1, 0])
}

fn memory() {
    let (own, other) = (Map::anonymous(PAGE), Map::anonymous(PAGE));
    other.set(0, 5);
    let shared = Shared::new();
    let (child, tid) = with_thread(&shared);
    other.set(0, 6);
    assert_eq!(vector(libc::SYS_process_vm_readv, tid, &own, &other), Ok(8));
    assert_eq!(own.get(0), 5);
    own.set(0, 7);
    assert_eq!(vector(libc::SYS_process_vm_writev, tid, &own, &other), Ok(8));
    own.set(0, 0);
    assert_eq!(vector(libc::SYS_process_vm_readv, child.pid as usize, &own, &other), Ok(8));
    assert_eq!(own.get(0), 7);
    let (pages, mut status) = ([other.address], [-1i32]);
    let at = [pages.as_ptr() as usize, status.as_mut_ptr() as usize];
    assert_eq!(call(libc::SYS_move_pages, [tid, 1, at[0], 0, at[1], 2]), Ok(0));
    assert_eq!(status, [0]);
    let nodes = [1u64];
    let node = nodes.as_ptr() as usize;
    assert_eq!(call(libc::SYS_migrate_pages, [tid, 2, node, node, 0, 0]), Ok(0));
    child.end();
}

fn numbers() {
    let shared = Shared::new();
    let (child, tid) = with_thread(&shared);
    // SAFETY: take integers.
    let (group, session) = unsafe { (libc::getpgrp() as usize, libc::getsid(0) as usize) };
    let mut limit = [0u64; 2];
    let limit_at = limit.as_mut_ptr() as usize;
    assert_eq!(call(libc::SYS_getpgid, [tid, 0, 0, 0, 0, 0]), Ok(group));
    assert_eq!(call(libc::SYS_getsid, [tid, 0, 0, 0, 0, 0]), Ok(session));
    assert_eq!(call(libc::SYS_setpgid, [tid, 0, 0, 0, 0, 0]), Err(Errno::EINVAL));
    assert_eq!(call(libc::SYS_getpriority, [PRIO_PROCESS as usize, tid, 0, 0, 0, 0]), Ok(20));
    assert_eq!(call(libc::SYS_prlimit64, [tid, RLIMIT_NOFILE as usize, 0, limit_at, 0, 0]), Ok(0));
    assert_eq!(call(libc::SYS_kill, [tid, 0, 0, 0, 0, 0]), Ok(0));
    assert_eq!(call(libc::SYS_sched_getscheduler, [tid, 0, 0, 0, 0, 0]), Ok(0));
    child.end();
}

fn of_threads_that_have_ended() {
    let map = Map::anonymous(PAGE);
    let shared = Shared::new();
    let (child, tid) = with_thread(&shared);
    shared.add(1);
    // It was joined.
    shared.wait(2, 1);
    let gone = || !std::fs::exists(format!("/proc/{}/task/{tid}", child.pid)).unwrap();
    assert!(roundtable_programs::sys::settles(std::time::Duration::from_secs(20), gone));
    assert_eq!(vector(libc::SYS_process_vm_readv, tid, &map, &map), Err(Errno::ESRCH));
    assert_eq!(call(libc::SYS_getpgid, [tid, 0, 0, 0, 0, 0]), Err(Errno::ESRCH));
    child.end();
}
