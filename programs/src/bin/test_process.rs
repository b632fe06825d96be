//! Processes: fork, wait, exit, groups and sessions, limits, credentials.

use std::time::Duration;

use roundtable_programs::child::{self, End, fork_code, waitpid};
use roundtable_programs::file::pipe;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW};
use roundtable_programs::shared::Shared;
use roundtable_programs::{Errno, procfs, sys, tests};

tests! { fork_and_status, exit_status_is_eight_bits, killed_by_signal, wait_for_any, wait_nohang, no_children,
wait_for_group, waitid_leaves_it, stop_and_continue, zombie_until_waited, orphan_is_adopted, memory_is_copied,
files_are_shared, vfork, parent_death_signal, groups, sessions, sched_yield, priorities, limits_are_inherited,
too_many_processes, credentials, capabilities_fall, umask, working_folder, uname_and_sysinfo, cpu_time_of_children,
exit_group_ends_threads, clone_with_vm, child_tid_is_cleared, subreaper, names, affinity }

fn fork_and_status() {
    let parent = sys::pid();
    let child = fork_code(|| {
        // SAFETY: takes nothing.
        assert_eq!(unsafe { libc::getppid() }, parent);
        assert_ne!(sys::pid(), parent);
        42
    });
    let pid = child.pid;
    assert_eq!(waitpid(pid, 0), Ok((pid, End::Code(42))));
    assert_eq!(waitpid(pid, 0), Err(Errno::ECHILD));
    std::mem::forget(child);
}

fn exit_status_is_eight_bits() {
    assert_eq!(fork_code(|| 0x1234).wait(), End::Code(0x34));
    assert_eq!(fork_code(|| -1).wait(), End::Code(255));
}

fn killed_by_signal() {
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGABRT, libc::SIGUSR1] {
        // SAFETY: takes an integer.
        let child = child::fork(move || _ = unsafe { libc::raise(signal) });
        assert_eq!(child.wait(), End::Signal(signal));
    }
}

fn wait_for_any() {
    let mut pids: Vec<i32> = (0..5)
        .map(|code| {
            let child = fork_code(move || code);
            let pid = child.pid;
            std::mem::forget(child);
            pid
        })
        .collect();
    for _ in 0..5 {
        let (pid, end) = waitpid(-1, 0).unwrap();
        let index = pids.iter().position(|&other| other == pid).expect("one of ours");
        assert!(matches!(end, End::Code(0..5)));
        pids.remove(index);
    }
    assert_eq!(waitpid(-1, 0), Err(Errno::ECHILD));
}

fn wait_nohang() {
    let (read, write) = pipe(0);
    let child = fork_code(move || {
        drop(write);
        let mut byte = [0];
        read.read(&mut byte).map_or(1, |_| 3)
    });
    // The child's end of the pipe went with `write` moved into the closure, so it reads the end of file at once.
    let pid = child.pid;
    assert!(sys::settles(Duration::from_secs(10), || waitpid(pid, libc::WNOHANG)
        .is_ok_and(|(got, _)| got == pid)));
    std::mem::forget(child);
    let sleeper = child::fork(|| std::thread::sleep(Duration::from_secs(100)));
    assert_eq!(waitpid(sleeper.pid, libc::WNOHANG).unwrap().0, 0);
    sleeper.end();
}

fn no_children() {
    assert_eq!(waitpid(-1, 0), Err(Errno::ECHILD));
    assert_eq!(waitpid(1, libc::WNOHANG), Err(Errno::ECHILD));
    assert_eq!(waitpid(-1, 0x4000_0000 | 0x10), Err(Errno::EINVAL));
}

fn wait_for_group() {
    let shared = Shared::new();
    let child = fork_code(|| {
        // SAFETY: takes integers.
        unsafe { libc::setpgid(0, 0) };
        shared.add(0);
        7
    });
    shared.wait(0, 1);
    assert_eq!(waitpid(-child.pid, 0), Ok((child.pid, End::Code(7))));
    assert_eq!(waitpid(0, libc::WNOHANG), Err(Errno::ECHILD));
    std::mem::forget(child);
}

fn waitid_leaves_it() {
    let child = fork_code(|| 5);
    // SAFETY: the siginfo lives through the call.
    let info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOWAIT;
        sys::check(libc::waitid(libc::P_PID, child.pid as u32, &mut info, options)).unwrap();
        (info.si_signo, info.si_code, info.si_pid(), info.si_status())
    };
    assert_eq!(info, (libc::SIGCHLD, libc::CLD_EXITED, child.pid, 5));
    assert_eq!(child.wait(), End::Code(5));
}

fn stop_and_continue() {
    let child = child::fork(|| {
        loop {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    child.kill(libc::SIGSTOP);
    assert_eq!(waitpid(child.pid, libc::WUNTRACED), Ok((child.pid, End::Stopped(libc::SIGSTOP))));
    assert_eq!(procfs::state(child.pid), Some('T'));
    child.kill(libc::SIGCONT);
    assert_eq!(waitpid(child.pid, libc::WCONTINUED), Ok((child.pid, End::Continued)));
    child.kill(libc::SIGSTOP);
    assert_eq!(waitpid(child.pid, libc::WUNTRACED).unwrap().1, End::Stopped(libc::SIGSTOP));
    // SIGKILL needs no SIGCONT.
    child.kill(libc::SIGKILL);
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
}

fn zombie_until_waited() {
    let child = fork_code(|| 1);
    assert!(sys::settles(Duration::from_secs(10), || procfs::state(child.pid) == Some('Z')));
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::kill(child.pid, 0) }, 0);
    let pid = child.pid;
    child.wait();
    // SAFETY: takes integers.
    assert_eq!(sys::check(unsafe { libc::kill(pid, 0) }), Err(Errno::ESRCH));
}

fn orphan_is_adopted() {
    let shared = Shared::new();
    child::in_child(|| {
        let parent = sys::pid();
        let grandchild = child::fork(|| {
            // SAFETY: takes nothing.
            let gone = sys::settles(Duration::from_secs(10), || unsafe { libc::getppid() } != parent);
            shared.set(0, if gone { 1 } else { 2 });
        });
        std::mem::forget(grandchild);
    });
    shared.wait(0, 1);
    assert_eq!(shared.get(0), 1);
}

fn memory_is_copied() {
    let map = Map::anonymous(64 * 4096);
    (0..64).for_each(|page| map.set(page * 4096, page as u8));
    let (read, write) = pipe(0);
    let child = child::fork(|| {
        (0..64).for_each(|page| map.set(page * 4096, 100));
        write.write(b"x").unwrap();
    });
    let mut byte = [0];
    read.read(&mut byte).unwrap();
    assert!((0..64).all(|page| map.get(page * 4096) == page as u8));
    child.ok();
}

fn files_are_shared() {
    let file = roundtable_programs::file::Fd::temporary();
    file.write(b"0123456789").unwrap();
    // SAFETY: takes integers.
    unsafe { libc::lseek(file.raw(), 0, libc::SEEK_SET) };
    let mut two = [0; 2];
    child::in_child(|| {
        let mut two = [0; 2];
        file.read(&mut two).unwrap();
        assert_eq!(&two, b"01");
    });
    file.read(&mut two).unwrap();
    assert_eq!(&two, b"23", "parent and child share the position");
}

fn vfork() {
    let status = std::process::Command::new("/proc/self/exe").arg("--list").output().unwrap();
    assert!(status.status.success());
    assert!(String::from_utf8_lossy(&status.stdout).contains("\nvfork\n"));
    let missing = std::process::Command::new("/no/such/program").spawn();
    assert_eq!(missing.unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

fn parent_death_signal() {
    let shared = Shared::new();
    let middle = child::fork(|| {
        let grandchild = child::fork(|| {
            // SAFETY: takes integers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            shared.set(1, sys::pid() as u32);
            shared.add(0);
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        shared.wait(0, 1);
        std::mem::forget(grandchild);
    });
    middle.ok();
    let pid = shared.get(1) as i32;
    let gone = || procfs::state(pid).is_none_or(|state| state == 'Z' || state == 'X');
    assert!(sys::settles(Duration::from_secs(10), gone));
}

fn groups() {
    // SAFETY: it takes an integer.
    let group = |pid| sys::check(unsafe { libc::getpgid(pid) }).map(|group| group as i32);
    assert_eq!(group(0), Ok(sys::pid()), "each subtest is a group of its own");
    let shared = Shared::new();
    let child = child::fork(|| {
        shared.wait(0, 1);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::getpgrp() }, sys::pid());
        shared.add(1);
        shared.wait(2, 1);
    });
    assert_eq!(group(child.pid), Ok(sys::pid()));
    // SAFETY: as above.
    assert_eq!(sys::check(unsafe { libc::setpgid(child.pid, child.pid) }), Ok(0));
    assert_eq!(group(child.pid), Ok(child.pid));
    shared.add(0);
    shared.wait(1, 1);
    // SAFETY: as above.
    unsafe {
        assert_eq!(sys::check(libc::kill(-child.pid, libc::SIGTERM)), Ok(0));
        assert_eq!(sys::check(libc::setpgid(1, 1)), Err(Errno::ESRCH));
        assert_eq!(sys::check(libc::getpgid(4_000_000)), Err(Errno::ESRCH));
    }
    assert_eq!(child.wait(), End::Signal(libc::SIGTERM));
}

fn sessions() {
    // SAFETY: these take integers.
    unsafe {
        assert_eq!(sys::check(libc::getsid(1)), Ok(0), "the first process leads no session");
        assert_eq!(sys::check(libc::getpgid(1)), Ok(0), "nor a group");
    }
    child::in_child(|| {
        // SAFETY: these take integers.
        unsafe {
            assert_eq!(sys::check(libc::setsid()), Ok(sys::pid() as usize));
            assert_eq!(libc::getsid(0), sys::pid());
            assert_eq!(libc::getpgrp(), sys::pid());
            assert_eq!(sys::check(libc::setsid()), Err(Errno::EPERM), "a group's leader cannot");
        }
    });
}

fn sched_yield() {
    for _ in 0..100 {
        // SAFETY: takes nothing.
        assert_eq!(unsafe { libc::sched_yield() }, 0);
    }
}

fn priorities() {
    child::in_child(|| {
        // SAFETY: these take integers.
        unsafe {
            assert_eq!(libc::getpriority(libc::PRIO_PROCESS, 0), 0);
            assert_eq!(libc::setpriority(libc::PRIO_PROCESS, 0, 10), 0);
            assert_eq!(libc::getpriority(libc::PRIO_PROCESS, 0), 10);
            assert_eq!(libc::nice(5), 15);
            assert_eq!(libc::nice(100), 19);
        }
    });
}

fn limit(which: libc::__rlimit_resource_t) -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through the call.
    sys::check(unsafe { libc::getrlimit(which, &mut limit) }).expect("getrlimit");
    limit
}

fn set_limit(which: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the structure lives through the call.
    sys::check(unsafe { libc::setrlimit(which, &limit) }).expect("setrlimit");
}

fn limits_are_inherited() {
    child::in_child(|| {
        set_limit(libc::RLIMIT_NOFILE, 20);
        child::in_child(|| {
            assert_eq!(limit(libc::RLIMIT_NOFILE).rlim_cur, 20);
            let mut files = Vec::new();
            let error = loop {
                match std::fs::File::open("/dev/null") {
                    Ok(file) => files.push(file),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            assert!(files.len() < 20);
        });
        set_limit(libc::RLIMIT_AS, 64 << 20);
        assert_eq!(Map::new(256 << 20, RW, PRIVATE | ANON, -1, 0).err(), Some(Errno::ENOMEM));
    });
}

fn become_user(id: u32) {
    // SAFETY: these take integers.
    unsafe {
        sys::check(libc::setgid(id)).expect("setgid");
        sys::check(libc::setuid(id)).expect("setuid");
    }
}

fn too_many_processes() {
    child::in_child(|| {
        set_limit(libc::RLIMIT_NPROC, 5);
        become_user(31_234);
        let mut children = Vec::new();
        let error = loop {
            // SAFETY: the child only sleeps.
            match unsafe { libc::fork() } {
                -1 => break Errno::last(),
                0 => loop {
                    std::thread::sleep(Duration::from_secs(1));
                },
                pid => children.push(pid),
            }
        };
        assert_eq!(error, Errno::EAGAIN);
        assert!(children.len() <= 5, "{}", children.len());
        for pid in children {
            // SAFETY: takes integers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            waitpid(pid, 0).unwrap();
        }
    });
}

fn credentials() {
    child::in_child(|| {
        // SAFETY: these take integers, or a place for as many as they are told.
        unsafe {
            assert_eq!((libc::getuid(), libc::geteuid(), libc::getgid(), libc::getegid()), (0, 0, 0, 0));
            assert_eq!(sys::check(libc::setresuid(1, 2, 3)), Ok(0));
            let (mut real, mut effective, mut saved) = (0, 0, 0);
            libc::getresuid(&mut real, &mut effective, &mut saved);
            assert_eq!((real, effective, saved), (1, 2, 3));
            assert_eq!(sys::check(libc::setuid(0)), Err(Errno::EPERM));
            assert_eq!(sys::check(libc::seteuid(3)), Ok(0));
            assert_eq!(libc::geteuid(), 3);
            assert_eq!(sys::check(libc::kill(1, 0)), Err(Errno::EPERM));
        }
    });
}

fn capabilities_fall() {
    child::in_child(|| {
        let read = || std::fs::read_to_string("/proc/self/status").unwrap();
        let of = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("in status").to_string();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        assert_ne!(of(&read(), "CapEff"), 0);
        become_user(1000);
        assert_eq!(of(&read(), "CapEff"), 0);
        assert!(read().contains("Uid:\t1000\t1000\t1000\t1000"));
    });
}

fn umask() {
    child::in_child(|| {
        // SAFETY: takes an integer.
        unsafe { libc::umask(0o027) };
        // SAFETY: takes an integer.
        assert_eq!(unsafe { libc::umask(0o077) }, 0o027);
        let path = format!("/tmp/umask-{}", sys::pid());
        std::fs::File::create(&path).unwrap();
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
    });
}

fn working_folder() {
    child::in_child(|| {
        let path = format!("/tmp/folder-{}", sys::pid());
        std::fs::create_dir(&path).unwrap();
        std::env::set_current_dir(&path).unwrap();
        assert_eq!(std::env::current_dir().unwrap().to_str(), Some(path.as_str()));
        std::fs::write("inside", "x").unwrap();
        assert!(std::fs::exists(format!("{path}/inside")).unwrap());
        child::in_child(|| std::env::set_current_dir("/").unwrap());
        assert_eq!(std::env::current_dir().unwrap().to_str(), Some(path.as_str()));
        std::fs::remove_file("inside").unwrap();
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(std::env::current_dir().unwrap_err().raw_os_error(), Some(libc::ENOENT));
    });
}

fn uname_and_sysinfo() {
    assert!(sys::release().split('.').next().unwrap().parse::<u32>().unwrap() >= 5, "{}", sys::release());
    // SAFETY: a sysinfo of zeros is valid, and the call fills it.
    let info = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        sys::check(libc::sysinfo(&mut info)).unwrap();
        info
    };
    let total = info.totalram * u64::from(info.mem_unit);
    assert_eq!(total / 1024, procfs::Meminfo::read().get("MemTotal"));
    assert!(info.freeram * u64::from(info.mem_unit) <= total);
    assert!(info.procs > 1);
}

fn cpu_time_of_children() {
    let child = child::fork(|| {
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            std::hint::spin_loop();
        }
    });
    child.ok();
    // SAFETY: a rusage of zeros is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        sys::check(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage)).unwrap();
        usage
    };
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    let used = micros(usage.ru_utime) + micros(usage.ru_stime);
    // A busy machine may have given it little of the 300 ms; none would be wrong.
    assert!((1_000..5_000_000).contains(&used), "{used} us");
    assert!(usage.ru_minflt > 0);
}

fn exit_group_ends_threads() {
    let child = fork_code(|| {
        for _ in 0..3 {
            std::thread::spawn(|| {
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
        }
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
        // SAFETY: ends the process.
        std::thread::spawn(|| unsafe { libc::_exit(13) }).join().unwrap();
        unreachable!();
    });
    assert_eq!(child.wait(), End::Code(13));
}

extern "C" fn clone_child(argument: *mut libc::c_void) -> i32 {
    // SAFETY: the parent waits in `clone_with_vm` and owns the word.
    unsafe { argument.cast::<i32>().write_volatile(99) };
    3
}

fn clone_with_vm() {
    let stack = Map::anonymous(64 << 10);
    let mut word = 0i32;
    // SAFETY: the child has a stack of its own and writes one word of ours, for which we wait.
    let pid = unsafe {
        libc::clone(
            clone_child,
            (stack.address + stack.length) as *mut _,
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw mut word).cast(),
        )
    };
    assert!(pid > 0, "clone: {}", Errno::last());
    // SAFETY: a local of ours, which the other process wrote.
    assert_eq!(unsafe { (&raw const word).read_volatile() }, 99);
    assert_eq!(waitpid(pid, 0).unwrap().1, End::Code(3));
}

extern "C" fn clone_nothing(_: *mut libc::c_void) -> i32 {
    0
}

fn child_tid_is_cleared() {
    let stack = Map::anonymous(64 << 10);
    let shared = Shared::new();
    shared.set(0, 1);
    let flags = libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    let mut parent_tid = 0;
    // SAFETY: the child has a stack of its own; the words outlive it.
    let pid = unsafe {
        libc::clone(
            clone_nothing,
            (stack.address + stack.length) as *mut _,
            flags,
            std::ptr::null_mut(),
            &raw mut parent_tid,
            std::ptr::null_mut::<libc::c_void>(),
            shared.word(0).as_ptr(),
        )
    };
    assert!(pid > 0, "clone: {}", Errno::last());
    assert_eq!(parent_tid, pid);
    // The kernel writes zero and wakes; a wait that comes late finds the zero.
    while shared.get(0) != 0 {
        let errno = roundtable_programs::shared::wait(shared.word(0), 1, Some(Duration::from_secs(10)));
        assert!(errno == 0 || errno == libc::EAGAIN, "errno {errno}");
    }
    waitpid(pid, 0).unwrap();
}

fn subreaper() {
    child::in_child(|| {
        // SAFETY: takes integers.
        sys::check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }).unwrap();
        child::in_child(|| std::mem::forget(fork_code(|| 55)));
        // The orphan is ours now.
        assert_eq!(waitpid(-1, 0).unwrap().1, End::Code(55));
    });
}

fn names() {
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(comm.trim_end(), "test_process");
    child::in_child(|| {
        let name = sys::c_string("a-name-that-is-too-long");
        // SAFETY: the name is NUL-terminated.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
        assert_eq!(std::fs::read_to_string("/proc/self/comm").unwrap(), "a-name-that-is-\n");
    });
}

fn affinity() {
    let cpus = sys::cpus();
    child::in_child(|| {
        for &cpu in &cpus {
            sys::pin(cpu);
            assert_eq!((sys::current_cpu(), sys::cpus()), (cpu, vec![cpu]));
            child::in_child(|| assert_eq!(sys::cpus(), [cpu]));
        }
    });
    // SAFETY: a set of zeros is the empty set.
    let result = unsafe {
        let none: libc::cpu_set_t = std::mem::zeroed();
        sys::check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &none))
    };
    assert_eq!(result, Err(Errno::EINVAL));
    // A number that no thread has, where other calls of the scheduler take it for a wrong argument.
    // SAFETY: any bits are a set; it is as long as the call is told.
    let (get, set) = unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        (
            sys::check(libc::sched_getaffinity(-1, size_of::<libc::cpu_set_t>(), &mut cpus)),
            sys::check(libc::sched_setaffinity(-1, size_of::<libc::cpu_set_t>(), &cpus)),
        )
    };
    assert_eq!((get, set), (Err(Errno::ESRCH), Err(Errno::ESRCH)));
}
