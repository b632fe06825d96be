//! wait4(2) and waitid(2): whom a call still waits for, and what of a tracee is its parent's.

use std::time::Duration;

use libc::{CLD_EXITED, P_ALL, P_PGID, P_PID, SIGCHLD, SIGCONT, SIGSTOP, SIGUSR1};
use libc::{WCONTINUED, WEXITED, WNOHANG, WNOWAIT, WSTOPPED, WUNTRACED};
use roundtable_programs::child::{Child, fork, fork_code};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, settles};
use roundtable_programs::{Errno, procfs, signals, tests};

tests! { ends_that_nobody_asks_for, many_ends_that_nobody_asks_for, a_clone_that_its_parent_traces, an_end_stays_for_who_asks,
the_end_of_a_thread_stays, a_stop_outlives_its_tracer, a_stop_is_told_once }

const EVENT_STOP: i32 = libc::PTRACE_EVENT_STOP;

/// Code, number and status of what waitid(2) finds; zeros for nothing.
fn waitid(kind: libc::idtype_t, id: i32, options: i32) -> Result<(i32, i32, i32), Errno> {
    // SAFETY: a siginfo of zeros is valid, and its fields are what the call has written, or these zeros.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let at = &raw mut info as usize;
        call(libc::SYS_waitid, [kind as usize, id as usize, at, options as usize, 0, 0])?;
        Ok((info.si_code, info.si_pid(), info.si_status()))
    }
}

fn wait(pid: i32, options: i32) -> Result<(i32, i32), Errno> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let pid = check(unsafe { libc::waitpid(pid, &mut status, options) })?;
    Ok((pid as i32, status))
}

const fn stopped(signal: i32, event: i32) -> i32 {
    event << 16 | signal << 8 | 0x7f
}

fn ptrace(request: u32, pid: i32, data: i32) -> Answer {
    call(libc::SYS_ptrace, [request as usize, pid as usize, 0, data as usize, 0, 0])
}

#[track_caller]
fn await_zombie(path: &str) {
    let is_zombie = || {
        let text = std::fs::read_to_string(path).unwrap();
        text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    assert!(settles(Duration::from_secs(20), is_zombie), "{path}");
}

fn zombie(code: i32) -> Child {
    let child = fork_code(|| code);
    await_zombie(&format!("/proc/{}/stat", child.pid));
    child
}

fn pausing() -> Child {
    let child = fork(|| {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    });
    procfs::wait_for_sleep(child.pid);
    child
}

/// Nobody is left who could stop or go on.
#[track_caller]
fn nobody_stops(pid: i32) {
    // SAFETY: takes nothing.
    let group = unsafe { libc::getpgrp() };
    for hang in [WNOHANG, 0] {
        for options in [WSTOPPED, WCONTINUED, WSTOPPED | WCONTINUED] {
            for (kind, id) in [(P_PID, pid), (P_ALL, 0), (P_PGID, group)] {
                assert_eq!(
                    waitid(kind, id, options | hang),
                    Err(Errno::ECHILD),
                    "{kind} {options:#x} {hang}"
                );
            }
        }
    }
}

fn ends_that_nobody_asks_for() {
    let child = zombie(3);
    nobody_stops(child.pid);
    let living = pausing();
    assert_eq!(waitid(P_PID, child.pid, WSTOPPED), Err(Errno::ECHILD));
    assert_eq!(waitid(P_ALL, 0, WSTOPPED | WNOHANG), Ok((0, 0, 0)), "one may stop");
    living.end();
    assert_eq!(waitid(P_PID, child.pid, WEXITED), Ok((CLD_EXITED, child.pid, 3)));
    child.release();
}

/// More of them than are looked at in one hold.
fn many_ends_that_nobody_asks_for() {
    let children: Vec<Child> = (0..150).map(|_| zombie(1)).collect();
    nobody_stops(children[0].pid);
    let living = pausing();
    assert_eq!(waitid(P_ALL, 0, WSTOPPED | WNOHANG), Ok((0, 0, 0)), "one may stop");
    living.end();
    for child in children {
        assert_eq!(waitid(P_PID, child.pid, WEXITED), Ok((CLD_EXITED, child.pid, 1)));
        child.release();
    }
}

/// A child whose end is told by `signal`, 0 for none.
fn clone_with(signal: i32, run: impl FnOnce() -> i32) -> i32 {
    // SAFETY: as fork(2): this process has one thread.
    match check(unsafe { libc::syscall(libc::SYS_clone, signal as usize, 0, 0, 0, 0) }).expect("clone") {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(run()) },
        pid => pid as i32,
    }
}

/// Who traces its own child waits for it as a tracer: whatever signal its end is told by.
fn a_clone_that_its_parent_traces() {
    for signal in [0, SIGUSR1, SIGCHLD] {
        // SAFETY: takes integers.
        unsafe { libc::signal(SIGUSR1, libc::SIG_IGN) };
        for options in [0, libc::__WCLONE, libc::__WALL] {
            let pid = clone_with(signal, || {
                ptrace(libc::PTRACE_TRACEME, 0, 0).unwrap();
                signals::raise(SIGSTOP);
                7
            });
            // Before it has a tracer it is a child like others.
            assert_eq!(wait(pid, libc::__WALL), Ok((pid, stopped(SIGSTOP, 0))));
            ptrace(libc::PTRACE_CONT, pid, 0).unwrap();
            assert_eq!(wait(pid, options), Ok((pid, 7 << 8)), "{signal} {options:#x}");
            assert_eq!(wait(pid, libc::__WALL), Err(Errno::ECHILD));
        }
    }
}

/// What a tracer finds of a tracee that has ended, if it asks for something else, and then for the end.
#[track_caller]
fn ends_later(tid: i32, status: i32) {
    for options in [WSTOPPED, WCONTINUED] {
        for hang in [WNOHANG, 0] {
            let found = waitid(P_PID, tid, options | hang | libc::__WALL);
            assert_eq!(found, Err(Errno::ECHILD), "{options:#x} {hang}");
        }
    }
    for options in [WEXITED | WNOWAIT, WEXITED | WSTOPPED] {
        assert_eq!(waitid(P_PID, tid, options | libc::__WALL), Ok((CLD_EXITED, tid, status)));
    }
    assert_eq!(waitid(P_PID, tid, WEXITED | libc::__WALL), Err(Errno::ECHILD));
}

fn an_end_stays_for_who_asks() {
    let shared = Shared::new();
    let child = fork_code(|| {
        shared.wait(0, 1);
        7
    });
    let tracee = child.pid;
    let tracer = fork(|| {
        ptrace(libc::PTRACE_SEIZE, tracee, 0).unwrap();
        shared.add(0);
        await_zombie(&format!("/proc/{tracee}/stat"));
        shared.add(1);
        shared.wait(1, 2);
        ends_later(tracee, 7);
    });
    shared.wait(1, 1);
    // For its parent it has not ended yet.
    for options in [WEXITED, WSTOPPED, WCONTINUED] {
        assert_eq!(waitid(P_PID, tracee, options | WNOHANG), Ok((0, 0, 0)), "{options:#x}");
    }
    shared.add(1);
    tracer.ok();
    assert_eq!(waitid(P_PID, tracee, WEXITED), Ok((CLD_EXITED, tracee, 7)));
    child.release();
}

fn the_end_of_a_thread_stays() {
    let shared = Shared::new();
    let child = fork(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: takes nothing.
                shared.set(0, unsafe { libc::gettid() } as u32);
                shared.wait(1, 1);
                // SAFETY: ends the thread; the child is killed before anybody waits for it here.
                unsafe { libc::syscall(libc::SYS_exit, 9) };
            });
            shared.wait(1, 2);
        });
    });
    shared.wait(0, 1);
    let tid = shared.get(0) as i32;
    ptrace(libc::PTRACE_SEIZE, tid, 0).unwrap();
    shared.add(1);
    await_zombie(&format!("/proc/{}/task/{tid}/stat", child.pid));
    ends_later(tid, 9);
    child.end();
}

/// The parent was its tracer when it stopped: once it is no longer, it hears of the stop.
fn a_stop_outlives_its_tracer() {
    let child = pausing();
    let pid = child.pid;
    ptrace(libc::PTRACE_SEIZE, pid, 0).unwrap();
    signals::kill(pid, SIGSTOP).unwrap();
    assert_eq!(wait(pid, 0), Ok((pid, stopped(SIGSTOP, 0))));
    ptrace(libc::PTRACE_CONT, pid, SIGSTOP).unwrap();
    assert_eq!(wait(pid, 0), Ok((pid, stopped(SIGSTOP, EVENT_STOP))));
    assert_eq!(wait(pid, WUNTRACED | WNOHANG), Ok((0, 0)), "told as to a tracer");
    ptrace(libc::PTRACE_DETACH, pid, 0).unwrap();
    assert_eq!(wait(pid, WUNTRACED | WNOHANG), Ok((pid, stopped(SIGSTOP, 0))));
    assert_eq!(wait(pid, WUNTRACED | WNOHANG), Ok((0, 0)), "once");
    signals::kill(pid, SIGCONT).unwrap();
    assert_eq!(wait(pid, WCONTINUED), Ok((pid, 0xffff)));
    child.end();
}

/// The parent has heard of the stop before it traces the child: not again after it.
fn a_stop_is_told_once() {
    let child = pausing();
    let pid = child.pid;
    signals::kill(pid, SIGSTOP).unwrap();
    assert_eq!(wait(pid, WUNTRACED), Ok((pid, stopped(SIGSTOP, 0))));
    ptrace(libc::PTRACE_SEIZE, pid, 0).unwrap();
    assert_eq!(wait(pid, 0), Ok((pid, stopped(SIGSTOP, EVENT_STOP))));
    ptrace(libc::PTRACE_DETACH, pid, 0).unwrap();
    assert_eq!(wait(pid, WUNTRACED | WNOHANG), Ok((0, 0)));
    child.end();
}
