//! Processes and threads: what starts, changes, waits for and ends them.
//!
//! A child makes the calls that come next, as its parent does, with other arguments: two who share memory, descriptors or nothing do
//! things at once.

use std::cell::UnsafeCell;
use std::fmt::Write;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use libc::*;
use syscalls::Sysno;

use super::{Call, plain, special};
use crate::actor::{self, PROGRAM};
use crate::board::BOARD;
use crate::journal::Line;
use crate::turn::Arg::{self, Below, Buffer, Descriptor, Is, OneOf, Process, Thread};
use crate::turn::Turn;

pub const CALLS: &[Call] = &[
    special("fork", 14, fork),
    special("thread", 12, |turn| start(turn, THREAD)),
    special("vfork", 4, |turn| start(turn, CLONE_VM | CLONE_VFORK | SIGCHLD)),
    special("clone-memory", 4, |turn| start(turn, CLONE_VM | SIGCHLD)),
    special("clone", 4, clone_some),
    special("exec", 5, exec),
    special("exit", 2, |turn| _ = turn.call(Sysno::exit, [3, 0, 0, 0, 0, 0])),
    special("exit_group", 1, |turn| _ = turn.call(Sysno::exit_group, [4, 0, 0, 0, 0, 0])),
    plain("wait4", 16, Sysno::wait4, &[Process, Buffer, OneOf(&[1, 1, 1, 3, 9, 0]), Buffer]),
    plain("waitid", 4, Sysno::waitid, &[Below(4), Process, Buffer, OneOf(&[5, 5, 7, 13, 4]), Is(0)]),
    plain("setpgid", 2, Sysno::setpgid, &[Process, Process]),
    plain("getpgid", 1, Sysno::getpgid, &[Process]),
    plain("setsid", 1, Sysno::setsid, &[]),
    plain("prctl", 3, Sysno::prctl, &[Below(60), Arg::Signal, Is(0), Is(0), Is(0)]),
    plain("prlimit64", 5, Sysno::prlimit64, &[Process, Below(16), LIMIT, Buffer]),
    plain("sched_yield", 4, Sysno::sched_yield, &[]),
    plain("sched_setaffinity", 4, Sysno::sched_setaffinity, &[Thread, Is(8), Arg::SignalSet]),
    plain("sched_setscheduler", 1, Sysno::sched_setscheduler, &[Thread, Below(7), Buffer]),
    plain("setpriority", 2, Sysno::setpriority, &[Below(3), Process, Below(20)]),
    plain("membarrier", 2, Sysno::membarrier, &[OneOf(&[0, 1, 2, 4, 8, 16, 32]), Is(0), Is(0)]),
    plain("getrusage", 1, Sysno::getrusage, &[OneOf(&[0, usize::MAX, 1]), Buffer]),
    plain("times", 1, Sysno::times, &[Buffer]),
    plain("set_tid_address", 1, Sysno::set_tid_address, &[Arg::Word]),
    plain("rseq", 1, Sysno::rseq, &[Buffer, Is(32), Below(2), Is(0)]),
    plain("unshare", 1, Sysno::unshare, &[OneOf(&[0x200, 0x400, 0x600])]),
    plain("setresuid", 1, Sysno::setresuid, &[OneOf(&[65534, 0]), OneOf(&[65534, 1]), Is(65534)]),
    plain("getcpu", 1, Sysno::getcpu, &[Buffer, Buffer]),
    plain("pidfd-info", 1, Sysno::waitid, &[Is(3), Descriptor, Buffer, Is(5), Is(0)]),
];

/// Two words: soft and hard. The hard one stays high, or an actor would be of no use any more.
const LIMIT: Arg = Arg::Timespec;

const THREAD: i32 = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID;

/// The word on the command line of a program that goes on with an actor's calls.
pub const CONTINUE: &str = "--continue";

/// What a child does, and the stack that it does it on where it shares its memory.
struct Stack {
    /// The kernel clears it when the child has left.
    busy: AtomicU32,
    child: UnsafeCell<Child>,
    memory: UnsafeCell<MaybeUninit<[u8; 64 << 10]>>,
}

#[derive(Clone, Copy)]
pub struct Child {
    pub actor: u32,
    pub first: u32,
    pub count: u32,
    pub salt: u64,
    pub depth: u32,
}

// SAFETY: `child` and `memory` belong to who has set `busy`, and then to the child that is started on them.
unsafe impl Sync for Stack {}

const UNUSED: Child = Child { actor: 0, first: 0, count: 0, salt: 0, depth: 0 };
static STACKS: [Stack; 10] = [const {
    Stack {
        busy: AtomicU32::new(0),
        child: UnsafeCell::new(UNUSED),
        memory: UnsafeCell::new(MaybeUninit::uninit()),
    }
}; 10];

// The call and its five arguments. In a child with a stack of its own: what is on top of it is the argument of its function.
std::arch::global_asm!(
    ".globl roundtable_fuzz_clone",
    "roundtable_fuzz_clone:",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "mov r8, r9",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "pop rdi",
    "call {child}",
    "ud2",
    "2:",
    "ret",
    child = sym child_on_stack,
);

unsafe extern "C" {
    fn roundtable_fuzz_clone(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize;
}

extern "C" fn child_on_stack(child: *const Child) -> ! {
    // SAFETY: the parent has put it there for this child, and nobody changes it until this child is gone.
    run_child(unsafe { *child })
}

/// Makes a child's calls, and ends it.
pub fn run_child(child: Child) -> ! {
    actor::play(child.actor, child.first..child.first.saturating_add(child.count), child.salt, child.depth);
    loop {
        // SAFETY: ends this thread, which is a process's only one or leaves nothing behind.
        let _ = unsafe { syscalls::syscall!(Sysno::exit, 0) };
    }
}

/// What the next child of this turn does.
fn child(turn: &mut Turn) -> Child {
    let count = if turn.depth == 0 { turn.rng.below(24) } else { turn.rng.below(8) } as u32;
    let salt = turn.rng.draw() | 1;
    Child { actor: turn.actor, first: turn.index + 1, count, salt, depth: turn.depth + 1 }
}

/// The deepest that children have children.
const DEEPEST: u32 = 3;

fn fork(turn: &mut Turn) {
    if turn.depth >= DEEPEST {
        return;
    }
    let child = child(turn);
    turn.say("fork", &[child.count as usize]);
    // SAFETY: the child goes on in a copy of this stack.
    let result = unsafe { syscalls::syscall!(Sysno::fork) }.map_err(|error| error.into_raw());
    if result == Ok(0) {
        run_child(child);
    }
    turn.answer(result);
    if let Ok(pid) = result {
        BOARD.processes.put(pid as i32);
        wait_if_single(turn, pid);
    }
}

fn wait_if_single(turn: &Turn, pid: usize) {
    if turn.plan.single {
        // SAFETY: no status is asked for. __WALL, as some children send no SIGCHLD; the watcher ends a child that stays.
        let wait = || unsafe { syscalls::syscall!(Sysno::wait4, pid, 0, 0x4000_0000, 0) };
        while wait().is_err_and(|error| error == syscalls::Errno::EINTR) {}
    }
}

/// Starts a child that shares this process's memory, and whatever else the flags say.
fn start(turn: &mut Turn, flags: i32) {
    if turn.depth >= DEEPEST {
        return;
    }
    let child = child(turn);
    let Some(stack) = STACKS.iter().find(|stack| stack.busy.compare_exchange(0, 1, SeqCst, SeqCst).is_ok())
    else {
        return;
    };
    // Whoever shares this memory must not leave the stack to the next one before it is gone.
    let flags = flags | CLONE_CHILD_CLEARTID;
    let old = turn.rng.chance(3);
    let end = stack.memory.get() as usize + size_of::<MaybeUninit<[u8; 64 << 10]>>() - 64;
    // A function is entered 8 bytes off an alignment of 16; one word is popped before, and the call pushes another.
    let top = (end & !15) + 8;
    // SAFETY: the stack is ours by its `busy`, and `top` lies inside of it.
    unsafe {
        *stack.child.get() = child;
        *(top as *mut usize) = stack.child.get() as usize;
    }
    let busy = stack.busy.as_ptr() as usize;
    turn.say(if old { "clone" } else { "clone3" }, &[flags as usize, child.count as usize]);
    let result = if old {
        // SAFETY: the child has a stack of its own, and its argument on top.
        unsafe { roundtable_fuzz_clone(Sysno::clone as usize, flags as usize, top, busy, busy, 0) }
    } else {
        let signal = (flags & 0xff) as u64;
        let base = stack.memory.get() as u64;
        // A clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
        let list = [(flags & !0xff) as u64, 0, busy as u64, busy as u64, signal, base, top as u64 - base, 0];
        let list = turn.put(&list);
        // SAFETY: the same.
        unsafe { roundtable_fuzz_clone(Sysno::clone3 as usize, list, 64, 0, 0, 0) }
    };
    let result = if result < 0 { Err(-result as i32) } else { Ok(result as usize) };
    turn.answer(result);
    let Ok(id) = result else {
        stack.busy.store(0, SeqCst);
        return;
    };
    let is_thread = flags & CLONE_THREAD != 0;
    if is_thread {
        BOARD.threads.put(id as i32)
    } else {
        BOARD.processes.put(id as i32)
    }
    if turn.plan.single {
        while stack.busy.load(SeqCst) as usize == id {
            // SAFETY: the word is a static. The kernel wakes it when the child has left; the watcher ends who stays.
            let _ = unsafe { syscalls::syscall!(Sysno::futex, busy, FUTEX_WAIT, id, 0) };
        }
        if !is_thread {
            wait_if_single(turn, id);
        }
    }
}

/// Any set of things to share.
fn clone_some(turn: &mut Turn) {
    let flags = turn.bits(&[
        CLONE_FS as usize,
        CLONE_FILES as usize,
        CLONE_SIGHAND as usize,
        CLONE_SYSVSEM as usize,
        CLONE_IO as usize,
        CLONE_PARENT as usize,
        CLONE_VFORK as usize,
    ]) as i32;
    // Without a parent who waits a child of CLONE_PARENT is the watcher's; it takes any.
    start(turn, flags | CLONE_VM | SIGCHLD);
}

/// Executes this program again, to go on with the calls; only children do, so that the actor itself goes on too.
fn exec(turn: &mut Turn) {
    if turn.depth == 0 || turn.rng.chance(5) {
        let path = turn.draw(Arg::Path);
        let _ = turn.call(Sysno::execve, [path, 0, 0, 0, 0, 0]);
        return;
    }
    let next = child(turn);
    let mut words = [const { Line::new() }; 5];
    let numbers = [next.actor.into(), next.first.into(), next.count.into(), next.salt, next.depth.into()];
    for (word, number) in words.iter_mut().zip::<[u64; 5]>(numbers) {
        let _ = write!(word, "{number}\0");
    }
    let mut arguments = [0; 8];
    arguments[0] = c"fuzz".as_ptr() as usize;
    arguments[1] = c"--continue".as_ptr() as usize;
    for (argument, word) in arguments[2..].iter_mut().zip(&words) {
        *argument = word.bytes().as_ptr() as usize;
    }
    let Some(program) = PROGRAM.get() else { return };
    let _ = turn.call(Sysno::execve, [program.as_ptr() as usize, arguments.as_ptr() as usize, 0, 0, 0, 0]);
}
