//! What one program can do to others, and to itself, by signals, scheduling, tracing and process groups: found by a reading of the kernel.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use libc::{SIG_BLOCK, SIGCONT, SIGSEGV, SIGSTOP, SIGUSR1};
use roundtable_programs::child::{self, Child, End, fork, fork_code};
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::{self, Map};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, check, cpus, pid, pin, settles};
use roundtable_programs::{Errno, signals, sys, tests};

tests! { real_time_signals_of_any_code_count, real_time_signals_of_the_kernel, idle_policy_gets_on: 120, threads_that_end_beside_busy_ones: 120,
registers_of_a_tracee, tracees_with_news_come_first, capability_beyond_all, file_rights_without_root, unlimited_priority,
stopped_and_continued: 120, namespace_outlives_an_interrupted_fork: 120, fork_under_a_fast_timer: 120, exec_below_the_limit,
exec_changes_the_exit_signal, registration_over_fork, large_orphaned_group, one_of_many_children,
end_of_a_siginfo }

const NOBODY: u32 = 12_345;

fn become_nobody() {
    // SAFETY: takes an integer.
    check(unsafe { libc::setuid(NOBODY) }).expect("setuid");
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the limit is only read.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

/// rt_sigqueueinfo(2) to oneself.
fn queue(signal: i32, code: i32) -> Answer {
    // SAFETY: a siginfo of zeros is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    (info.si_signo, info.si_code) = (signal, code);
    call(libc::SYS_rt_sigqueueinfo, [pid() as usize, signal as usize, &raw const info as usize, 0, 0, 0])
}

fn real_time_signals_of_any_code_count() {
    child::in_child(|| {
        become_nobody();
        limit(libc::RLIMIT_SIGPENDING, 10);
        let signal = libc::SIGRTMIN() + 3;
        signals::mask(SIG_BLOCK, &[signal]);
        let sent = (0..100).take_while(|_| queue(signal, 0x80).is_ok()).count();
        assert_eq!((sent, queue(signal, 0x80)), (10, Err(Errno::EAGAIN)));
    });
}

/// A child that ends at once and tells of that by `signal`, 0 for none.
fn clone_with(signal: i32, run: impl FnOnce()) -> i32 {
    // SAFETY: as fork(2): this process has one thread.
    match check(unsafe { libc::syscall(libc::SYS_clone, signal as usize, 0, 0, 0, 0) }).expect("clone") {
        0 => {
            run();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        pid => pid as i32,
    }
}

fn real_time_signals_of_the_kernel() {
    let signal = libc::SIGRTMIN() + 3;
    signals::mask(SIG_BLOCK, &[signal]);
    let child = clone_with(signal, || {});
    let set = signals::set_of(&[signal]);
    let time = libc::timespec { tv_sec: 20, tv_nsec: 0 };
    // SAFETY: both are only read.
    let taken = check(unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &time) });
    assert_eq!(taken, Ok(signal as usize));
    // SAFETY: no status is asked for.
    let waited = check(unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) });
    assert_eq!(waited, Ok(child as usize));
}

/// A child that keeps a CPU busy.
fn busy_on(cpu: usize) -> Child {
    fork(|| {
        pin(cpu);
        loop {
            std::hint::spin_loop();
        }
    })
}

fn idle_policy_gets_on() {
    let shared = Shared::new();
    let cpu = cpus()[0];
    let busy = busy_on(cpu);
    let idle = fork(|| {
        pin(cpu);
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameters are only read.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) }).expect("SCHED_IDLE");
        loop {
            shared.add(0);
        }
    });
    assert!(settles(Duration::from_secs(40), || shared.get(0) > 0), "it never begins");
    // It has had its turn. The next one comes after hundreds of its neighbour's, and it comes.
    std::thread::sleep(Duration::from_millis(100));
    let before = shared.get(0);
    assert!(settles(Duration::from_secs(60), || shared.get(0) != before), "it never has a turn again");
    // At its end it has a CPU for itself.
    busy.end();
    idle.end();
}

fn threads_that_end_beside_busy_ones() {
    let busy: Vec<Child> = cpus().into_iter().map(busy_on).collect();
    child::in_child(|| {
        limit(libc::RLIMIT_NPROC, 20);
        become_nobody();
        for round in 0..200 {
            let thread = std::thread::Builder::new().spawn(|| {});
            thread.unwrap_or_else(|error| panic!("thread {round}: {error}")).join().expect("join");
        }
    });
    busy.into_iter().for_each(Child::end);
}

fn ptrace(request: u32, pid: i32, address: usize, data: usize) -> Answer {
    call(libc::SYS_ptrace, [request as usize, pid as usize, address, data, 0, 0])
}

fn status_of(pid: i32, options: i32) -> (i32, i32) {
    let mut status = 0;
    // SAFETY: the status is ours to write.
    let found = check(unsafe { libc::waitpid(pid, &mut status, options | libc::__WALL) }).expect("wait4");
    (found as i32, status)
}

const fn stopped(signal: i32) -> i32 {
    signal << 8 | 0x7f
}

fn tracee(run: impl FnOnce() -> i32) -> Child {
    let child = fork_code(|| {
        ptrace(libc::PTRACE_TRACEME, 0, 0, 0).expect("PTRACE_TRACEME");
        signals::raise(SIGSTOP);
        run()
    });
    assert_eq!(status_of(child.pid, 0), (child.pid, stopped(SIGSTOP)));
    child
}

fn registers_of_a_tracee() {
    /// Indices in the structure of registers, times 8.
    const RAX: usize = 10 * 8;
    const RIP: usize = 16 * 8;
    let set = |pid: i32, register: usize, value: i64| {
        ptrace(libc::PTRACE_POKEUSER, pid, register, value as usize).expect("PTRACE_POKEUSER");
    };
    // In the end of kill(2): its result, and where the program goes on.
    let child = tracee(|| {
        signals::catch(SIGUSR1);
        signals::raise(SIGSTOP);
        signals::count() - 1
    });
    ptrace(libc::PTRACE_CONT, child.pid, 0, 0).expect("PTRACE_CONT");
    assert_eq!(status_of(child.pid, 0), (child.pid, stopped(SIGSTOP)));
    set(child.pid, RAX, i64::MIN);
    ptrace(libc::PTRACE_CONT, child.pid, 0, SIGUSR1 as usize).expect("PTRACE_CONT");
    let (_, status) = status_of(child.pid, 0);
    assert!(libc::WIFEXITED(status), "{status:#x}");
    drop(child);
    for result in [-512, -515, -516] {
        let child = tracee(|| 0);
        set(child.pid, RAX, result);
        set(child.pid, RIP, 0);
        ptrace(libc::PTRACE_CONT, child.pid, 0, 0).expect("PTRACE_CONT");
        assert_eq!(status_of(child.pid, 0), (child.pid, stopped(SIGSEGV)), "result {result}");
        child.end();
    }
}

fn tracees_with_news_come_first() {
    let stops_again = |often: usize| {
        tracee(move || {
            (0..often).for_each(|_| signals::raise(SIGSTOP));
            loop {
                std::thread::sleep(Duration::from_secs(100));
            }
        })
    };
    let go_on = |child: &Child| ptrace(libc::PTRACE_CONT, child.pid, 0, 0).expect("PTRACE_CONT");
    let (first, second) = (stops_again(1), stops_again(1));
    for child in [&first, &second] {
        go_on(child);
        // Seen, and not taken.
        // SAFETY: a siginfo of zeros is valid, and ours to write.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
        // SAFETY: as above.
        check(unsafe { libc::waitid(libc::P_PID, child.pid as u32, &mut info, options) }).expect("waitid");
    }
    // The second one goes on without having been waited for. The first one's stop is still there.
    go_on(&second);
    assert_eq!(status_of(-1, libc::WNOHANG), (first.pid, stopped(SIGSTOP)));
    first.end();
    second.end();
}

fn capability_beyond_all() {
    for number in [1usize << 32, 1 << 40, usize::MAX, 64] {
        let asked = call(libc::SYS_prctl, [libc::PR_CAPBSET_READ as usize, number, 0, 0, 0, 0]);
        assert_eq!(asked, Err(Errno::EINVAL), "capability {number:#x}");
        let is_set = libc::PR_CAP_AMBIENT_IS_SET as usize;
        let asked = call(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as usize, is_set, number, 0, 0, 0]);
        assert_eq!(asked, Err(Errno::EINVAL), "capability {number:#x}");
    }
}

fn file_rights_without_root() {
    let path = "/tmp/of-root";
    std::fs::write(path, "secret").expect("write");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    child::in_child(|| {
        // SAFETY: takes an integer.
        unsafe { libc::setfsuid(NOBODY) };
        let opened = std::fs::read(path).map_err(|error| error.raw_os_error());
        assert_eq!(opened, Err(Some(libc::EACCES)));
        // SAFETY: takes an integer.
        unsafe { libc::setfsuid(0) };
        assert_eq!(std::fs::read(path).expect("with root's rights"), b"secret");
    });
    std::fs::remove_file(path).expect("unlink");
}

fn unlimited_priority() {
    child::in_child(|| {
        limit(libc::RLIMIT_RTPRIO, libc::RLIM_INFINITY);
        become_nobody();
        let parameters = libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameters are only read.
        assert_eq!(check(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &parameters) }), Ok(0));
    });
}

fn stopped_and_continued() {
    let shared = Shared::new();
    let child = fork(|| {
        loop {
            shared.add(0);
        }
    });
    for round in 0..100 {
        for _ in 0..50 {
            child.kill(SIGSTOP);
            child.kill(SIGCONT);
        }
        let before = shared.get(0);
        assert!(
            settles(Duration::from_secs(20), || shared.get(0) != before),
            "stopped for good in round {round}"
        );
    }
    child.end();
}

static EXPIRED: AtomicU32 = AtomicU32::new(0);

extern "C" fn expired(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    EXPIRED.fetch_add(1, SeqCst);
}

/// Has SIGALRM interrupt this process every so many microseconds; 0 for no more.
fn interrupt_every(microseconds: i64) {
    signals::catch_with(libc::SIGALRM, expired, libc::SA_RESTART, &[]);
    let time = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the timer is only read.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }).expect("setitimer");
}

/// Memory in many areas, so that fork(2) takes a while.
fn many_areas() -> Map {
    let areas = 1500;
    let map = Map::anonymous(2 * areas * PAGE);
    for area in 0..areas {
        map.set(2 * area * PAGE, 1);
        mem::mprotect(map.address + 2 * area * PAGE, PAGE, libc::PROT_READ).expect("mprotect");
    }
    map
}

fn namespace_outlives_an_interrupted_fork() {
    let _areas = many_areas();
    for _ in 0..8 {
        child::in_child(|| {
            // SAFETY: takes an integer.
            check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).expect("unshare");
            interrupt_every(300);
            let first = fork(|| ());
            interrupt_every(0);
            first.ok();
        });
    }
}

fn fork_under_a_fast_timer() {
    let _areas = many_areas();
    interrupt_every(300);
    let child = fork(|| ());
    interrupt_every(0);
    child.ok();
    assert!(EXPIRED.load(SeqCst) > 0, "no timer has gone off");
}

/// Where a program's output goes. Opened before the user changes: other tests change who may write there.
fn nowhere() -> Fd {
    Fd::open("/dev/null", libc::O_WRONLY).expect("/dev/null")
}

/// Executes this program, which lists its subtests to nobody.
fn execute(nowhere: &Fd) -> i32 {
    let program = sys::c_string(std::env::current_exe().expect("/proc/self/exe").to_str().expect("a path"));
    let list = sys::c_string("--list");
    let arguments = [program.as_ptr(), list.as_ptr(), std::ptr::null()];
    // SAFETY: strings and array live through the calls.
    unsafe {
        libc::dup2(nowhere.raw(), 1);
        libc::execv(program.as_ptr(), arguments.as_ptr());
    }
    Errno::last_raw()
}

fn exec_below_the_limit() {
    let nowhere = nowhere();
    // The limit is asked for where the user changes, and then no more than it was exceeded there.
    let child = fork_code(|| {
        become_nobody();
        limit(libc::RLIMIT_NPROC, 0);
        execute(&nowhere)
    });
    child.ok();
    let shared = Shared::new();
    let another = fork(|| {
        become_nobody();
        shared.set(0, 1);
        loop {
            std::thread::sleep(Duration::from_secs(100));
        }
    });
    shared.wait(0, 1);
    let child = fork_code(|| {
        limit(libc::RLIMIT_NPROC, 0);
        become_nobody();
        execute(&nowhere)
    });
    assert_eq!(child.wait(), End::Code(libc::EAGAIN));
    another.end();
}

fn exec_changes_the_exit_signal() {
    let child = clone_with(0, || _ = execute(&nowhere()));
    // SAFETY: no status is asked for.
    let waited = check(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) });
    // Before it executes it is none of those that are waited for without __WCLONE, but that was asked too early.
    let late = || {
        settles(Duration::from_secs(20), || {
            // SAFETY: as above.
            check(unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) }) == Ok(child as usize)
        })
    };
    assert!(waited == Ok(child as usize) || late(), "{waited:?}");
}

fn registration_over_fork() {
    let membarrier = |command: usize| call(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]);
    const PRIVATE: usize = 1 << 3;
    const REGISTER_PRIVATE: usize = 1 << 4;
    assert_eq!(membarrier(PRIVATE), Err(Errno::EPERM));
    assert_eq!(membarrier(REGISTER_PRIVATE), Ok(0));
    child::in_child(|| assert_eq!(membarrier(PRIVATE), Ok(0)));
}

/// More than are told at once.
const MEMBERS: usize = 50;

fn large_orphaned_group() {
    let shared = Shared::new();
    // A session, a parent in its first group, and below that one a group with one stopped member, which nobody can continue when the parent ends.
    let leader = fork(|| {
        // SAFETY: takes nothing.
        check(unsafe { libc::setsid() }).expect("setsid");
        let parent = fork(|| {
            let mut group = 0;
            for index in 0..MEMBERS {
                let member = fork(|| {
                    shared.add(0);
                    shared.wait(1, 1);
                    if index == 0 {
                        signals::raise(SIGSTOP);
                    }
                    loop {
                        std::thread::sleep(Duration::from_secs(100));
                    }
                });
                // SAFETY: takes integers.
                check(unsafe { libc::setpgid(member.pid, group) }).expect("setpgid");
                group = if index == 0 { member.pid } else { group };
                shared.set(2 + index, member.release() as u32);
            }
            shared.wait(0, MEMBERS as u32);
            shared.set(1, 1);
            let first = shared.get(2);
            assert!(settles(Duration::from_secs(20), || state(first) == Some('T')));
        });
        parent.ok();
        let left = || (0..MEMBERS).filter(|index| state(shared.get(2 + index)).is_some()).count();
        assert!(settles(Duration::from_secs(20), || left() == 0), "{} members are left", left());
    });
    leader.ok();
}

/// The state of a process that lives.
fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = text[text.rfind(')')? + 2..].chars().next()?;
    (state != 'Z').then_some(state)
}

/// wait(2) finds the one child that has stopped, wherever among many it is.
fn one_of_many_children() {
    child::in_child(|| {
        const ANY: i32 = libc::WUNTRACED | libc::WCONTINUED;
        let children: Vec<Child> = (0..200)
            .map(|_| {
                fork(|| {
                    loop {
                        std::thread::park();
                    }
                })
            })
            .collect();
        assert_eq!(child::waitpid(-1, ANY | libc::WNOHANG).map(|(pid, _)| pid), Ok(0));
        for index in [0, 1, 100, 199] {
            let one = &children[index];
            one.kill(SIGSTOP);
            assert_eq!(child::waitpid(-1, ANY), Ok((one.pid, End::Stopped(SIGSTOP))));
            one.kill(SIGCONT);
            assert_eq!(child::waitpid(-1, ANY), Ok((one.pid, End::Continued)));
        }
        // Of a group that only the last one is in, and of one that nobody is in.
        let last = &children[199];
        // SAFETY: takes integers.
        check(unsafe { libc::setpgid(last.pid, last.pid) }).expect("setpgid");
        assert_eq!(child::waitpid(-last.pid, ANY | libc::WNOHANG).map(|(pid, _)| pid), Ok(0));
        assert_eq!(child::waitpid(-children[0].pid, ANY | libc::WNOHANG), Err(Errno::ECHILD));
        last.kill(SIGSTOP);
        assert_eq!(child::waitpid(-last.pid, ANY), Ok((last.pid, End::Stopped(SIGSTOP))));
        children[100].kill(libc::SIGKILL);
        assert_eq!(child::waitpid(-1, ANY), Ok((children[100].pid, End::Signal(libc::SIGKILL))));
        for (index, child) in children.into_iter().enumerate() {
            if index == 100 {
                child.release();
            } else {
                child.end();
            }
        }
        assert_eq!(child::waitpid(-1, ANY | libc::WNOHANG), Err(Errno::ECHILD));
    });
}

/// Of a siginfo the kernel keeps what it knows: the end of one whose kind it does not know must be zero.
fn end_of_a_siginfo() {
    const WORDS: usize = 16;
    let queue = |code: i32, last: u64| {
        let mut info = [0u64; WORDS];
        // Signal and code; the sender; a value.
        (info[0], info[1]) = (SIGUSR1 as u64, u64::from(code as u32));
        (info[3], info[5], info[WORDS - 1]) = (0x1234, 0x5678, last);
        call(libc::SYS_rt_sigqueueinfo, [pid() as usize, SIGUSR1 as usize, info.as_ptr().addr(), 0, 0, 0])
    };
    let take = || {
        let (mut info, wanted) = ([u64::MAX; WORDS], 1u64 << (SIGUSR1 - 1));
        let wanted = (&raw const wanted).addr();
        let taken = call(libc::SYS_rt_sigtimedwait, [wanted, info.as_mut_ptr().addr(), 0, 8, 0, 0]);
        assert_eq!(taken, Ok(SIGUSR1 as usize));
        info
    };
    signals::mask(SIG_BLOCK, &[SIGUSR1]);
    assert_eq!(queue(-100, 1), Err(Errno::E2BIG));
    for (code, last) in [(-100, 0), (libc::SI_QUEUE, 0), (libc::SI_QUEUE, 1)] {
        assert_eq!(queue(code, last), Ok(0));
        let info = take();
        assert_eq!((info[3], info[5]), (0x1234, 0x5678), "code {code}");
        assert!(info[6..].iter().all(|word| *word == 0), "code {code}: {info:x?}");
    }
}
