//! ptrace(2): stops at signals, system calls and events; registers and memory of a tracee; what wait(2) says, and to whom.

use std::arch::asm;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use libc::{SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGTRAP, SIGUSR1, SIGUSR2};
use roundtable_programs::child::{Child, fork, fork_code};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::Map;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{PAGE, pid};
use roundtable_programs::tracing::{go, ptrace, registers, stopped, tracee, wait, wait_any};
use roundtable_programs::{Errno, kinds, procfs, row, signals, tests};

tests! { system_calls, changed_calls, signals_of_a_tracee, steps, memory_and_registers, fork_events, exec_and_exit, threads,
seized, group_stops, a_strangers_child, tracer_ends, filters_ask_the_tracer, errors }

const SYSGOOD: usize = libc::PTRACE_O_TRACESYSGOOD as usize;
const EVENT_STOP: i32 = libc::PTRACE_EVENT_STOP;

const CALL: i32 = stopped(SIGTRAP | 0x80, 0);

fn set_registers(pid: i32, registers: &libc::user_regs_struct) {
    ptrace(libc::PTRACE_SETREGS, pid, 0, std::ptr::from_ref(registers) as usize).expect("PTRACE_SETREGS");
}

fn message(pid: i32) -> u64 {
    let mut message = 0u64;
    ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut message as usize).expect("PTRACE_GETEVENTMSG");
    message
}

fn info(pid: i32) -> Result<libc::siginfo_t, Errno> {
    let mut info = MaybeUninit::uninit();
    ptrace(libc::PTRACE_GETSIGINFO, pid, 0, info.as_mut_ptr() as usize)?;
    // SAFETY: the call has filled it.
    Ok(unsafe { info.assume_init() })
}

/// Lets the tracee go on to its end, which is this status.
fn ends(child: Child, status: i32) {
    go(libc::PTRACE_CONT, child.pid, 0);
    let pid = child.release();
    assert_eq!(wait(pid), status);
}

fn own(number: i64, arguments: [usize; 6]) -> usize {
    call(number, arguments).unwrap_or(usize::MAX)
}

/// Goes on to the next system call's begin and end, and says its number and result.
fn next_call(pid: i32) -> (u64, i64) {
    go(libc::PTRACE_SYSCALL, pid, 0);
    assert_eq!(wait(pid), CALL);
    let begin = registers(pid);
    assert_eq!(begin.rax as i64, -i64::from(libc::ENOSYS));
    go(libc::PTRACE_SYSCALL, pid, 0);
    assert_eq!(wait(pid), CALL);
    (begin.orig_rax, registers(pid).rax as i64)
}

fn system_calls() {
    let child = tracee(SYSGOOD, || {
        own(libc::SYS_getppid, [0; 6]);
        own(libc::SYS_close, [1 << 20, 0, 0, 0, 0, 0]);
        7
    });
    let tracee = child.pid;
    assert_eq!(next_call(tracee), (libc::SYS_getppid as u64, i64::from(pid())));
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    let mut about = [0u64; 11];
    let size = ptrace(libc::PTRACE_GET_SYSCALL_INFO, tracee, 88, about.as_mut_ptr() as usize);
    assert_eq!((size, about[0]), (Ok(80), 0xc000_003e << 32 | 1));
    assert_eq!((about[3] as i64, about[4]), (libc::SYS_close, 1 << 20));
    assert_eq!(info(tracee).unwrap().si_code, SIGTRAP | 0x80);
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    let size = ptrace(libc::PTRACE_GET_SYSCALL_INFO, tracee, 88, about.as_mut_ptr() as usize);
    assert_eq!((size, about[0] as u8, about[3] as i64), (Ok(33), 2, -i64::from(libc::EBADF)));
    assert_eq!(about[4] as u8, 1);
    ends(child, 7 << 8);
}

fn changed_calls() {
    let child = tracee(SYSGOOD, || {
        let first = own(libc::SYS_getpid, [0; 6]);
        let second = own(libc::SYS_getpid, [0; 6]);
        let third = own(libc::SYS_dup, [1, 0, 0, 0, 0, 0]);
        i32::from((first, second, third) == (own(libc::SYS_getppid, [0; 6]), 4711, usize::MAX))
    });
    let tracee = child.pid;
    // Another call.
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    let mut changed = registers(tracee);
    changed.orig_rax = libc::SYS_getppid as u64;
    set_registers(tracee, &changed);
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    // No call, and a result of our own.
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    let mut changed = registers(tracee);
    (changed.orig_rax, changed.rax) = (u64::MAX, 4711);
    set_registers(tracee, &changed);
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    // Another argument, by one word of the user area.
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    let rdi = std::mem::offset_of!(libc::user_regs_struct, rdi);
    ptrace(libc::PTRACE_POKEUSER, tracee, rdi, 999_999).unwrap();
    ends(child, 1 << 8);
}

fn signals_of_a_tracee() {
    let child = tracee(0, || {
        signals::catch(SIGUSR1);
        signals::catch(SIGUSR2);
        signals::raise(SIGUSR1);
        let first = (signals::count(), signals::SIGNAL.load(SeqCst));
        signals::raise(SIGUSR1);
        let second = (signals::count(), signals::SIGNAL.load(SeqCst));
        signals::raise(SIGCHLD);
        signals::raise(SIGUSR1);
        let third = (signals::CODE.load(SeqCst), signals::PID.load(SeqCst));
        i32::from((first, second, third) == ((0, 0), (1, SIGUSR2), (-1, 77)))
    });
    let tracee = child.pid;
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGUSR1, 0));
    let said = info(tracee).unwrap();
    // SAFETY: kill(2) has filled this field.
    assert_eq!((said.si_signo, said.si_code, unsafe { said.si_pid() }), (SIGUSR1, libc::SI_USER, tracee));
    // Nothing, another one, one that is ignored by default.
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGUSR1, 0));
    go(libc::PTRACE_CONT, tracee, SIGUSR2);
    assert_eq!(wait(tracee), stopped(SIGCHLD, 0));
    go(libc::PTRACE_CONT, tracee, SIGCHLD);
    assert_eq!(wait(tracee), stopped(SIGUSR1, 0));
    let mut other = info(tracee).unwrap();
    other.si_code = libc::SI_QUEUE;
    // SAFETY: the number stands behind the first three words and a gap.
    unsafe { (&raw mut other).cast::<i32>().add(4).write(77) };
    ptrace(libc::PTRACE_SETSIGINFO, tracee, 0, &raw const other as usize).unwrap();
    go(libc::PTRACE_CONT, tracee, SIGUSR1);
    let pid = child.release();
    assert_eq!(wait(pid), 1 << 8);
    // One that kills.
    let child = tracee_of_pause();
    go(libc::PTRACE_CONT, child.pid, SIGKILL);
    assert_eq!(wait(child.release()), SIGKILL);
    // One that comes from outside of the stop.
    let child = tracee_of_pause();
    signals::kill(child.pid, SIGKILL).unwrap();
    assert_eq!(wait(child.release()), SIGKILL);
}

fn tracee_of_pause() -> Child {
    tracee(0, || {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    })
}

/// Five instructions: two before a system call, the call, one after it, and the way back.
#[inline(never)]
fn five() -> u64 {
    let result: u64;
    // SAFETY: getppid has no effect.
    unsafe {
        asm!("int3", "mov eax, 110", "nop", "syscall", "nop", "int3", out("rax") result, out("rcx") _, out("r11") _);
    }
    result
}

fn steps() {
    let child = tracee(0, || i32::from(five() == u64::from(pid_of_parent())));
    let tracee = child.pid;
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGTRAP, 0));
    let from = registers(tracee).rip;
    let mut at = Vec::new();
    for _ in 0..4 {
        go(libc::PTRACE_SINGLESTEP, tracee, 0);
        assert_eq!(wait(tracee), stopped(SIGTRAP, 0));
        let now = registers(tracee);
        assert_eq!(now.eflags & 0x100, 0, "the tracer's own flag shows");
        at.push(now.rip - from);
    }
    assert_eq!(at, [5, 6, 8, 9]);
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGTRAP, 0));
    ends(child, 1 << 8);
}

fn pid_of_parent() -> u32 {
    // SAFETY: takes nothing.
    unsafe { libc::getppid() as u32 }
}

/// PTRACE_GETREGSET or PTRACE_SETREGSET with so many bytes; how many there were.
fn regset(request: u32, pid: i32, kind: usize, words: &mut [u64], bytes: usize) -> Answer {
    let mut vector = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: bytes };
    ptrace(request, pid, kind, &raw mut vector as usize)?;
    Ok(vector.iov_len)
}

static WORD: AtomicU64 = AtomicU64::new(1);

fn memory_and_registers() {
    let page = Map::anonymous(PAGE);
    let at = page.address;
    page.set(0, 5);
    let word = WORD.as_ptr() as usize;
    let child = tracee(0, || {
        kinds::protect(at, PAGE, libc::PROT_READ as usize).unwrap();
        signals::raise(SIGUSR1);
        i32::from(WORD.load(SeqCst) == 17 && page.get_u64(0) == 18)
    });
    let tracee = child.pid;
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGUSR1, 0));
    let mut value = 0u64;
    let value_at = &raw mut value as usize;
    ptrace(libc::PTRACE_PEEKDATA, tracee, word, value_at).unwrap();
    assert_eq!(value, 1);
    ptrace(libc::PTRACE_POKEDATA, tracee, word, 17).unwrap();
    // Where the tracee itself may not store.
    ptrace(libc::PTRACE_POKETEXT, tracee, at, 18).unwrap();
    ptrace(libc::PTRACE_PEEKTEXT, tracee, at, value_at).unwrap();
    assert_eq!(value, 18);
    assert_eq!(page.get_u64(0), 5, "private to the tracee");
    let mut rows = Rows::default();
    row!(rows, EIO, ptrace(libc::PTRACE_PEEKDATA, tracee, 8, value_at));
    row!(rows, EIO, ptrace(libc::PTRACE_POKEDATA, tracee, 8, 1));
    row!(rows, EFAULT, ptrace(libc::PTRACE_PEEKDATA, tracee, word, 8));
    row!(rows, EIO, ptrace(libc::PTRACE_PEEKUSER, tracee, 1, value_at));
    row!(rows, EIO, ptrace(libc::PTRACE_PEEKUSER, tracee, 1 << 20, value_at));
    let rip = std::mem::offset_of!(libc::user_regs_struct, rip);
    assert_eq!(ptrace(libc::PTRACE_PEEKUSER, tracee, rip, value_at), Ok(0));
    assert_eq!(value, registers(tracee).rip);
    // A selector that is none of user mode's, and a base in the kernel's half.
    let cs = std::mem::offset_of!(libc::user_regs_struct, cs);
    row!(rows, EIO, ptrace(libc::PTRACE_POKEUSER, tracee, cs, 0x10));
    let fs_base = std::mem::offset_of!(libc::user_regs_struct, fs_base);
    row!(rows, EIO, ptrace(libc::PTRACE_POKEUSER, tracee, fs_base, 1 << 63));
    let mut set = [0u64; 128];
    assert_eq!(regset(libc::PTRACE_GETREGSET, tracee, 1, &mut set, 216), Ok(216));
    assert_eq!(set[16], registers(tracee).rip);
    assert_eq!(regset(libc::PTRACE_GETREGSET, tracee, 2, &mut set, 1024), Ok(512));
    assert_eq!(set[0] & 0xffff, 0x37f);
    assert_eq!(regset(libc::PTRACE_SETREGSET, tracee, 2, &mut set, 512), Ok(512));
    let mut floats = [0u64; 64];
    assert_eq!(ptrace(libc::PTRACE_GETFPREGS, tracee, 0, floats.as_mut_ptr() as usize), Ok(0));
    assert_eq!(floats[..], set[..64]);
    // An XMM register, and back.
    floats[20] = 0x1234;
    assert_eq!(ptrace(libc::PTRACE_SETFPREGS, tracee, 0, floats.as_mut_ptr() as usize), Ok(0));
    let mut extended = [0u64; 512];
    if let Ok(size) = regset(libc::PTRACE_GETREGSET, tracee, 0x202, &mut extended, 4096) {
        assert_eq!((extended[20], extended[58] & 3), (0x1234, 3));
        assert_eq!(regset(libc::PTRACE_SETREGSET, tracee, 0x202, &mut extended, size), Ok(size));
    }
    row!(rows, EINVAL, regset(libc::PTRACE_GETREGSET, tracee, 1, &mut set, 7));
    row!(rows, EINVAL, regset(libc::PTRACE_GETREGSET, tracee, 0x999, &mut set, 8));
    let blocked = [1u64 << (SIGUSR2 - 1)];
    row!(rows, EINVAL, ptrace(libc::PTRACE_GETSIGMASK, tracee, 4, set.as_mut_ptr() as usize));
    assert_eq!(ptrace(libc::PTRACE_SETSIGMASK, tracee, 8, blocked.as_ptr() as usize), Ok(0));
    assert_eq!(ptrace(libc::PTRACE_GETSIGMASK, tracee, 8, set.as_mut_ptr() as usize), Ok(0));
    assert_eq!(set[0], blocked[0]);
    rows.finish();
    ends(child, 1 << 8);
}

extern "C" fn returns_four(_: *mut libc::c_void) -> i32 {
    4
}

fn fork_events() {
    let wanted =
        (libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACEVFORKDONE) as usize;
    let child = tracee(wanted, || {
        let forked = fork_code(|| 3);
        assert_eq!(forked.wait(), roundtable_programs::child::End::Code(3));
        let stack = Map::anonymous(16 * PAGE);
        let top = (stack.address + 16 * PAGE) as *mut libc::c_void;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | SIGCHLD;
        // SAFETY: the child has a stack of its own, and returns at once.
        let vforked = unsafe { libc::clone(returns_four, top, flags, std::ptr::null_mut()) };
        i32::from(wait(vforked) == 4 << 8)
    });
    let tracee = child.pid;
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGTRAP, libc::PTRACE_EVENT_FORK));
    let grandchild = message(tracee) as i32;
    assert_eq!(wait(grandchild), stopped(SIGSTOP, 0));
    // Its first news: it is ours beside its parent, and it ends for us first.
    go(libc::PTRACE_CONT, grandchild, 0);
    assert_eq!(wait(grandchild), 3 << 8);
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGCHLD, 0));
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGTRAP, libc::PTRACE_EVENT_VFORK));
    let grandchild = message(tracee) as i32;
    assert_eq!(wait(grandchild), stopped(SIGSTOP, 0));
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait_any(tracee, libc::WNOHANG), Ok((0, 0)));
    ptrace(libc::PTRACE_DETACH, grandchild, 0, 0).unwrap();
    // The end of the memory's sharing, and the child's.
    let done = stopped(SIGTRAP, libc::PTRACE_EVENT_VFORK_DONE);
    let mut seen = vec![wait(tracee)];
    go(libc::PTRACE_CONT, tracee, 0);
    seen.push(wait(tracee));
    assert!(seen.contains(&done) && seen.contains(&stopped(SIGCHLD, 0)), "{seen:x?}");
    ends(child, 1 << 8);
}

fn exec_and_exit() {
    let program = c"/proc/self/exe";
    let exec = || {
        let arguments = [program.as_ptr(), c"--list".as_ptr(), std::ptr::null()];
        // SAFETY: the strings live until the new program is there. What it prints is of no interest.
        unsafe {
            libc::close(1);
            libc::execv(program.as_ptr(), arguments.as_ptr());
        }
        99
    };
    // Without options: SIGTRAP, as if sent.
    let child = tracee(0, exec);
    go(libc::PTRACE_CONT, child.pid, 0);
    assert_eq!(wait(child.pid), stopped(SIGTRAP, 0));
    let said = info(child.pid).unwrap();
    assert_eq!(said.si_code, libc::SI_USER);
    assert_eq!(registers(child.pid).orig_rax as i64, libc::SYS_execve);
    child.end();
    let child = tracee((libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACEEXIT) as usize, exec);
    let tracee = child.pid;
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGTRAP, libc::PTRACE_EVENT_EXEC));
    assert_eq!(message(tracee), tracee as u64);
    signals::kill(tracee, libc::SIGTERM).unwrap();
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(libc::SIGTERM, 0));
    go(libc::PTRACE_CONT, tracee, libc::SIGTERM);
    assert_eq!(wait(tracee), stopped(SIGTRAP, libc::PTRACE_EVENT_EXIT));
    assert_eq!(message(tracee), libc::SIGTERM as u64);
    ends(child, libc::SIGTERM);
}

fn threads() {
    let wanted = (libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXEC) as usize;
    let child = tracee(wanted, || {
        let arguments =
            [c"/proc/self/exe".as_ptr(), c"--list".as_ptr(), std::ptr::null()].map(|at| at as usize);
        std::thread::spawn(|| {}).join().unwrap();
        // A thread that is not the first executes a program.
        let _ = std::thread::spawn(move || {
            // SAFETY: the strings live until the new program is there.
            unsafe {
                libc::close(1);
                libc::execv(arguments[0] as *const _, arguments.as_ptr().cast());
            }
        })
        .join();
        99
    });
    let tracee = child.pid;
    go(libc::PTRACE_CONT, tracee, 0);
    for last in [false, true] {
        assert_eq!(wait(tracee), stopped(SIGTRAP, libc::PTRACE_EVENT_CLONE));
        let thread = message(tracee) as i32;
        assert_eq!(wait(thread), stopped(SIGSTOP, 0));
        assert_eq!(procfs::status_text(thread, "TracerPid"), pid().to_string());
        go(libc::PTRACE_CONT, tracee, 0);
        go(libc::PTRACE_CONT, thread, 0);
        if last {
            assert_eq!(wait(tracee), stopped(SIGTRAP, libc::PTRACE_EVENT_EXEC));
            assert_eq!(message(tracee), thread as u64);
            assert_eq!(wait_any(thread, libc::__WALL), Err(Errno::ECHILD));
        } else {
            assert_eq!(wait(thread), 0);
            assert_eq!(ptrace(libc::PTRACE_CONT, thread, 0, 0), Err(Errno::ESRCH));
        }
    }
    ends(child, 0);
}

/// A child that sleeps in pause(2).
fn pausing() -> Child {
    let child = fork(|| {
        signals::catch(SIGUSR1);
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    });
    procfs::wait_for_sleep(child.pid);
    child
}

fn seized() {
    let child = pausing();
    let tracee = child.pid;
    ptrace(libc::PTRACE_SEIZE, tracee, 0, SYSGOOD).unwrap();
    assert_eq!(wait_any(tracee, libc::__WALL | libc::WNOHANG), Ok((0, 0)));
    assert_eq!(ptrace(libc::PTRACE_GETEVENTMSG, tracee, 0, 0), Err(Errno::ESRCH), "it runs");
    ptrace(libc::PTRACE_INTERRUPT, tracee, 0, 0).unwrap();
    assert_eq!(wait(tracee), stopped(SIGTRAP, EVENT_STOP));
    assert_eq!(info(tracee).unwrap().si_code, SIGTRAP | EVENT_STOP << 8);
    assert_eq!(procfs::status_text(tracee, "State"), "t (tracing stop)");
    // The call that the stop has interrupted is made again.
    go(libc::PTRACE_SYSCALL, tracee, 0);
    assert_eq!(wait(tracee), CALL);
    assert_eq!(registers(tracee).orig_rax as i64, libc::SYS_pause);
    // A stop of the process: the tracee tells of its begin and of its end, and stays stopped in between.
    go(libc::PTRACE_CONT, tracee, 0);
    signals::kill(tracee, SIGSTOP).unwrap();
    assert_eq!(wait(tracee), stopped(SIGSTOP, 0));
    go(libc::PTRACE_CONT, tracee, SIGSTOP);
    assert_eq!(wait(tracee), stopped(SIGSTOP, EVENT_STOP));
    ptrace(libc::PTRACE_LISTEN, tracee, 0, 0).unwrap();
    assert_eq!(ptrace(libc::PTRACE_CONT, tracee, 0, 0), Err(Errno::ESRCH), "it listens");
    signals::kill(tracee, SIGCONT).unwrap();
    assert_eq!(wait(tracee), stopped(SIGTRAP, EVENT_STOP));
    go(libc::PTRACE_CONT, tracee, 0);
    assert_eq!(wait(tracee), stopped(SIGCONT, 0));
    assert_eq!(ptrace(libc::PTRACE_LISTEN, tracee, 0, 0), Err(Errno::EIO), "no stop of that kind");
    ptrace(libc::PTRACE_DETACH, tracee, 0, 0).unwrap();
    assert_eq!(ptrace(libc::PTRACE_INTERRUPT, tracee, 0, 0), Err(Errno::ESRCH));
    child.end();
}

fn group_stops() {
    // Attached while job control has it stopped.
    let child = pausing();
    let tracee = child.pid;
    signals::kill(tracee, SIGSTOP).unwrap();
    assert_eq!(wait_any(tracee, libc::WUNTRACED), Ok((tracee, stopped(SIGSTOP, 0))));
    ptrace(libc::PTRACE_ATTACH, tracee, 0, 0).unwrap();
    assert_eq!(wait(tracee), stopped(SIGSTOP, 0));
    assert_eq!(info(tracee).map(|_| ()), Err(Errno::EINVAL), "no signal, but a stop of the process");
    // It stays stopped when the tracer lets go.
    ptrace(libc::PTRACE_DETACH, tracee, 0, 0).unwrap();
    while procfs::status_text(tracee, "State") != "T (stopped)" {
        std::thread::yield_now();
    }
    signals::kill(tracee, SIGCONT).unwrap();
    child.end();
    // Attached while it runs: SIGSTOP, which is not delivered.
    let child = pausing();
    ptrace(libc::PTRACE_ATTACH, child.pid, 0, 0).unwrap();
    assert_eq!(wait(child.pid), stopped(SIGSTOP, 0));
    ptrace(libc::PTRACE_DETACH, child.pid, 0, SIGUSR1 as usize).unwrap();
    child.end();
}

/// A tracee that is not the tracer's child: its parent hears of its end when the tracer has.
fn a_strangers_child() {
    let child = fork_code(|| {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
        5
    });
    let tracee = child.pid;
    let (mut read, mut write) = std::io::pipe().unwrap();
    let (mut done_read, done_write) = std::io::pipe().unwrap();
    let tracer = fork(|| {
        ptrace(libc::PTRACE_SEIZE, tracee, 0, 0).unwrap();
        std::io::Write::write_all(&mut write, b"x").unwrap();
        assert_eq!(wait(tracee), stopped(SIGUSR1, 0));
        go(libc::PTRACE_CONT, tracee, libc::SIGTERM);
        // It ends; not waited for, it is not there for its parent.
        // SAFETY: the structure is written by the call.
        let found = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOWAIT;
            assert_eq!(libc::waitid(libc::P_PID, tracee as u32, &mut info, flags), 0);
            (info.si_code, info.si_status())
        };
        assert_eq!(found, (libc::CLD_KILLED, libc::SIGTERM));
        std::io::Write::write_all(&mut write, b"y").unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(&mut done_read, &mut byte).unwrap();
        assert_eq!(wait(tracee), libc::SIGTERM);
        assert_eq!(wait_any(tracee, libc::__WALL), Err(Errno::ECHILD));
    });
    let mut byte = [0];
    std::io::Read::read_exact(&mut read, &mut byte).unwrap();
    assert_eq!(procfs::status_text(tracee, "TracerPid"), tracer.pid.to_string());
    assert_eq!(ptrace(libc::PTRACE_SEIZE, tracee, 0, 0), Err(Errno::EPERM), "one tracer");
    signals::kill(tracee, SIGUSR1).unwrap();
    std::io::Read::read_exact(&mut read, &mut byte).unwrap();
    assert_eq!(wait_any(tracee, libc::WNOHANG), Ok((0, 0)), "the tracer waits first");
    std::io::Write::write_all(&mut { done_write }, b"z").unwrap();
    assert_eq!(wait(child.release()), libc::SIGTERM);
    tracer.ok();
}

fn tracer_ends() {
    for kill in [false, true] {
        let child = pausing();
        let tracee = child.pid;
        let tracer = fork(|| {
            let options = if kill { libc::PTRACE_O_EXITKILL as usize } else { 0 };
            ptrace(libc::PTRACE_SEIZE, tracee, 0, options).unwrap();
            ptrace(libc::PTRACE_INTERRUPT, tracee, 0, 0).unwrap();
            assert_eq!(wait(tracee), stopped(SIGTRAP, EVENT_STOP));
        });
        tracer.ok();
        if kill {
            assert_eq!(wait(child.release()), SIGKILL);
        } else {
            assert_eq!(procfs::status_text(tracee, "TracerPid"), "0");
            signals::kill(tracee, libc::SIGTERM).unwrap();
            assert_eq!(wait(child.release()), libc::SIGTERM, "it runs");
        }
    }
}

fn filters_ask_the_tracer() {
    let filter = || {
        // Load the number; getpid is the tracer's, the rest is allowed.
        let program: [(u16, u8, u8, u32); 4] =
            [(0x20, 0, 0, 0), (0x15, 0, 1, 39), (0x06, 0, 0, 0x7ff0_0042), (0x06, 0, 0, 0x7fff_0000)];
        let described = (program.len(), program.as_ptr());
        // SAFETY: the program lives through the call. The first word's lower half is the length.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const described, 0, 0);
        }
    };
    let child = tracee(libc::PTRACE_O_TRACESECCOMP as usize, move || {
        filter();
        i32::from(own(libc::SYS_getpid, [0; 6]) == own(libc::SYS_getppid, [0; 6]))
    });
    go(libc::PTRACE_CONT, child.pid, 0);
    assert_eq!(wait(child.pid), stopped(SIGTRAP, libc::PTRACE_EVENT_SECCOMP));
    assert_eq!(message(child.pid), 0x42);
    let mut changed = registers(child.pid);
    changed.orig_rax = libc::SYS_getppid as u64;
    set_registers(child.pid, &changed);
    ends(child, 1 << 8);
    // Nobody there.
    let child = fork(move || {
        filter();
        assert_eq!(call(libc::SYS_getpid, [0; 6]), Err(Errno::ENOSYS));
    });
    child.ok();
}

fn errors() {
    let mut rows = Rows::default();
    let own = pid();
    row!(rows, ESRCH, ptrace(libc::PTRACE_ATTACH, 0x3f_ffff, 0, 0));
    row!(rows, EPERM, ptrace(libc::PTRACE_ATTACH, own, 0, 0));
    row!(rows, ESRCH, ptrace(libc::PTRACE_CONT, own, 0, 0));
    let child = pausing();
    row!(rows, ESRCH, ptrace(libc::PTRACE_CONT, child.pid, 0, 0));
    row!(rows, EIO, ptrace(libc::PTRACE_SEIZE, child.pid, 1, 0));
    row!(rows, EIO, ptrace(libc::PTRACE_SEIZE, child.pid, 0, 1 << 30));
    let stranger = fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(ptrace(libc::PTRACE_ATTACH, child.pid, 0, 0), Err(Errno::EPERM));
        // Of the same user, but it may not be dumped.
        let closed = fork(|| {
            // SAFETY: takes integers.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
            signals::raise(SIGSTOP);
        });
        wait_any(closed.pid, libc::WUNTRACED).unwrap();
        assert_eq!(ptrace(libc::PTRACE_ATTACH, closed.pid, 0, 0), Err(Errno::EPERM));
    });
    stranger.ok();
    child.end();
    let child = tracee_of_pause();
    row!(rows, EINVAL, ptrace(libc::PTRACE_SETOPTIONS, child.pid, 0, 1 << 30));
    row!(rows, EIO, ptrace(libc::PTRACE_CONT, child.pid, 0, 65));
    row!(rows, EIO, ptrace(0x7777, child.pid, 0, 0));
    row!(rows, EIO, ptrace(libc::PTRACE_INTERRUPT, child.pid, 0, 0));
    row!(rows, EFAULT, ptrace(libc::PTRACE_GETREGS, child.pid, 0, 8));
    row!(rows, EPERM, ptrace(libc::PTRACE_ATTACH, child.pid, 0, 0));
    child.end();
    // Twice the same parent.
    let child = fork(|| {
        assert_eq!(ptrace(libc::PTRACE_TRACEME, 0, 0, 0), Ok(0));
        assert_eq!(ptrace(libc::PTRACE_TRACEME, 0, 0, 0), Err(Errno::EPERM));
    });
    child.ok();
    rows.finish();
}
