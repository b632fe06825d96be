//! System calls with arguments that no program means: each gets its errno, the others go on, nothing leaks.

use std::time::Duration;

use roundtable_programs::child::{self, Child, End};
use roundtable_programs::file::Fd;
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{Map, mprotect};
use roundtable_programs::{Errno, namespaces, place, sys, tests};

tests! { bad_pointers_give_efault, bad_pointers_of_the_withheld_calls, bad_addresses_for_a_childs_number,
wild_arguments: 110, wrong_call_numbers, sums_that_overflow }

/// Not canonical, the kernel's half, unmapped, null, all ones.
const BAD: [usize; 6] =
    [0x8000_0000_0000_0000, 0xffff_8000_0000_1000, 0x1000_0000, 0, usize::MAX, 0x7fff_ffff_f000];

fn bad_pointers_give_efault() {
    use libc::*;
    let file = Fd::temporary();
    file.write(&[1; 8192]).unwrap();
    let (read_end, write_end) = roundtable_programs::file::pipe(O_NONBLOCK);
    write_end.write(b"something").unwrap();
    let fd = file.raw() as usize;
    let readable = read_end.raw() as usize;
    let here = &raw const fd as usize;
    for bad in BAD {
        // Null is allowed in some of these; they are tried with the others only.
        let always: &[(i64, [usize; 6])] = &[
            (SYS_pread64, [fd, bad, 10, 0, 0, 0]),
            (SYS_pwrite64, [fd, bad, 10, 0, 0, 0]),
            (SYS_read, [readable, bad, 4, 0, 0, 0]),
            (SYS_open, [bad, 0, 0, 0, 0, 0]),
            (SYS_openat, [AT_FDCWD as usize, bad, 0, 0, 0, 0]),
            (SYS_fstat, [fd, bad, 0, 0, 0, 0]),
            (SYS_stat, [bad, here, 0, 0, 0, 0]),
            (SYS_pipe2, [bad, 0, 0, 0, 0, 0]),
            (SYS_uname, [bad, 0, 0, 0, 0, 0]),
            (SYS_sysinfo, [bad, 0, 0, 0, 0, 0]),
            (SYS_getrlimit, [RLIMIT_NOFILE as usize, bad, 0, 0, 0, 0]),
            (SYS_getrusage, [0, bad, 0, 0, 0, 0]),
            (SYS_getrandom, [bad, 16, 0, 0, 0, 0]),
            (SYS_clock_gettime, [CLOCK_MONOTONIC as usize, bad, 0, 0, 0, 0]),
            (SYS_nanosleep, [bad, 0, 0, 0, 0, 0]),
            (SYS_mkdir, [bad, 0o755, 0, 0, 0, 0]),
            (SYS_unlink, [bad, 0, 0, 0, 0, 0]),
            (SYS_execve, [bad, 0, 0, 0, 0, 0]),
            (SYS_chdir, [bad, 0, 0, 0, 0, 0]),
            (SYS_readlink, [bad, here, 8, 0, 0, 0]),
            (SYS_getcwd, [bad, 4096, 0, 0, 0, 0]),
            (SYS_memfd_create, [bad, 0, 0, 0, 0, 0]),
            (SYS_statfs, [bad, here, 0, 0, 0, 0]),
            (SYS_fstatfs, [fd, bad, 0, 0, 0, 0]),
            (SYS_poll, [bad, 1, 0, 0, 0, 0]),
            (SYS_writev, [fd, bad, 1, 0, 0, 0]),
            (SYS_socketpair, [AF_UNIX as usize, SOCK_STREAM as usize, 0, bad, 0, 0]),
        ];
        let not_null: &[(i64, [usize; 6])] = &[
            (SYS_rt_sigaction, [SIGUSR1 as usize, bad, 0, 8, 0, 0]),
            (SYS_rt_sigprocmask, [SIG_BLOCK as usize, bad, 0, 8, 0, 0]),
            (SYS_sigaltstack, [bad, 0, 0, 0, 0, 0]),
            (SYS_gettimeofday, [bad, 0, 0, 0, 0, 0]),
        ];
        for (number, arguments) in always.iter().chain(not_null.iter().filter(|_| bad != 0)) {
            // SAFETY: the kernel has to check the address.
            let result = unsafe { sys::raw(*number, *arguments) };
            assert_eq!(result, Err(Errno::EFAULT), "call {number} with {bad:#x}");
        }
        // A futex also wants its word aligned, and says so first.
        if bad % 4 == 0 {
            // SAFETY: the kernel has to check the address.
            let result = unsafe { sys::raw(SYS_futex, [bad, FUTEX_WAIT as usize, 0, 0, 0, 0]) };
            assert_eq!(result, Err(Errno::EFAULT), "futex at {bad:#x}");
        }
    }
    // The pipe still has what nobody could read.
    let mut buffer = [0; 20];
    assert_eq!(read_end.read(&mut buffer), Ok(9));
}

/// Calls that wild arguments must not reach. Those of them that take pointers get bad ones in `bad_pointers_of_the_withheld_calls`.
const WITHHELD: [i64; 30] = {
    use libc::*;
    [
        // The end of the machine, or of its terminal.
        SYS_reboot,
        SYS_vhangup,
        SYS_kexec_load,
        // Signals to anybody: zero is the own group, with the test in it, and minus one is everybody.
        SYS_kill,
        SYS_tkill,
        SYS_tgkill,
        SYS_rt_sigqueueinfo,
        SYS_rt_tgsigqueueinfo,
        SYS_pidfd_send_signal,
        // They return twice, and who returns second goes on with the test.
        SYS_fork,
        SYS_vfork,
        SYS_clone,
        SYS_clone3,
        // The clock that the tests' time limits go by.
        SYS_settimeofday,
        SYS_clock_settime,
        SYS_clock_adjtime,
        SYS_adjtimex,
        // What outlives the process that makes it: the leak check would tell.
        SYS_msgget,
        SYS_semget,
        SYS_shmget,
        // What other tests rely on: the machine's names, its log, its mounts.
        SYS_sethostname,
        SYS_setdomainname,
        SYS_syslog,
        SYS_umount2,
        // Code and memory of the kernel's own.
        SYS_swapon,
        SYS_swapoff,
        SYS_init_module,
        SYS_delete_module,
        // These two take a file first, and look at their pointer when it is a module or a kernel only.
        SYS_finit_module,
        SYS_kexec_file_load,
    ]
};

fn bad_pointers_of_the_withheld_calls() {
    use libc::*;
    let me = sys::pid() as usize;
    // SAFETY: takes integers.
    let pidfd = Fd::own(unsafe { sys::raw(SYS_pidfd_open, [me, 0, 0, 0, 0, 0]) }.expect("pidfd_open"));
    let itself = pidfd.raw() as usize;
    let (signal, realtime) = (SIGUSR1 as usize, CLOCK_REALTIME as usize);
    let (magic_1, magic_2) = (LINUX_REBOOT_MAGIC1 as u32 as usize, LINUX_REBOOT_MAGIC2 as usize);
    let restart_2 = LINUX_REBOOT_CMD_RESTART2 as u32 as usize;
    let pidfd_and_child = (CLONE_PIDFD | SIGCHLD) as usize;
    let names = names_of_the_machine();
    let free = Fd::temporary().raw();
    for bad in BAD {
        let mut clone3 = [0u64; 11];
        (clone3[0], clone3[1], clone3[4]) = (CLONE_PIDFD as u64, bad as u64, SIGCHLD as u64);
        let always: &[(i64, [usize; 6])] = &[
            // It reads the name of what to start before it lets go of the machine.
            (SYS_reboot, [magic_1, magic_2, restart_2, bad, 0, 0]),
            (SYS_rt_sigqueueinfo, [me, signal, bad, 0, 0, 0]),
            (SYS_rt_tgsigqueueinfo, [me, me, signal, bad, 0, 0]),
            (SYS_clone3, [bad, 88, 0, 0, 0, 0]),
            // Where the descriptor goes: there is no child without it.
            (SYS_clone, [pidfd_and_child, 0, bad, 0, 0, 0]),
            (SYS_clone3, [clone3.as_ptr() as usize, 88, 0, 0, 0, 0]),
            (SYS_clock_settime, [realtime, bad, 0, 0, 0, 0]),
            (SYS_clock_adjtime, [realtime, bad, 0, 0, 0, 0]),
            (SYS_adjtimex, [bad, 0, 0, 0, 0, 0]),
            (SYS_sethostname, [bad, 4, 0, 0, 0, 0]),
            (SYS_setdomainname, [bad, 4, 0, 0, 0, 0]),
            (SYS_umount2, [bad, 0, 0, 0, 0, 0]),
        ];
        // Null is nothing to do, or another error.
        let not_null: &[(i64, [usize; 6])] = &[
            (SYS_pidfd_send_signal, [itself, signal, bad, 0, 0, 0]),
            (SYS_settimeofday, [bad, 0, 0, 0, 0, 0]),
            (SYS_settimeofday, [0, bad, 0, 0, 0, 0]),
            // The whole log.
            (SYS_syslog, [3, bad, 4096, 0, 0, 0]),
        ];
        for (number, arguments) in always.iter().chain(not_null.iter().filter(|_| bad != 0)) {
            // SAFETY: the kernel has to check the address.
            let result = unsafe { sys::raw(*number, *arguments) };
            if result == Ok(0) && [SYS_clone, SYS_clone3].contains(number) {
                // SAFETY: the child that must not be.
                unsafe { _exit(1) }
            }
            assert_eq!(result, Err(Errno::EFAULT), "call {number} with {bad:#x}");
        }
        // A kernel may be without these.
        let optional: &[(i64, [usize; 6])] = &[
            (SYS_kexec_load, [0, 1, bad, 0, 0, 0]),
            (SYS_swapon, [bad, 0, 0, 0, 0, 0]),
            (SYS_swapoff, [bad, 0, 0, 0, 0, 0]),
            (SYS_init_module, [bad, 4096, bad, 0, 0, 0]),
            (SYS_delete_module, [bad, 0, 0, 0, 0, 0]),
        ];
        for (number, arguments) in optional {
            // SAFETY: the kernel has to check the address.
            let result = unsafe { sys::raw(*number, *arguments) };
            assert!(
                matches!(result, Err(Errno::EFAULT | Errno::ENOSYS)),
                "call {number} with {bad:#x}: {result:?}"
            );
        }
    }
    // Nothing was done: no child, no descriptor, no other name.
    assert_eq!(child::waitpid(-1, WNOHANG).err(), Some(Errno::ECHILD));
    assert_eq!(Fd::temporary().raw(), free);
    assert_eq!(names_of_the_machine(), names);
}

/// The machine's names: the host's and the domain's are among them.
fn names_of_the_machine() -> [u8; 390] {
    let mut names = [0; 390];
    // SAFETY: room for six names of 65 bytes.
    unsafe { sys::raw(libc::SYS_uname, [names.as_mut_ptr() as usize, 0, 0, 0, 0, 0]) }.expect("uname");
    names
}

fn bad_addresses_for_a_childs_number() {
    use libc::*;
    // Where only a number would have been written, the child lives without: as it starts, and as it ends.
    let flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
    for bad in BAD {
        // SAFETY: as fork, without the C library's part; the child makes system calls only.
        let child = unsafe { sys::raw(SYS_clone, [flags as usize, 0, bad, bad, 0, 0]) }.expect("clone");
        if child == 0 {
            // SAFETY: what the kernel makes of the addresses as the process ends is what is tested.
            unsafe {
                syscall(SYS_set_tid_address, bad);
                syscall(SYS_set_robust_list, bad, 24);
                _exit(7)
            }
        }
        assert_eq!(child::waitpid(child as i32, 0), Ok((child as i32, End::Code(7))), "{bad:#x}");
    }
}

fn wild_arguments() {
    let file = Fd::temporary();
    file.write(&[1; 4096]).unwrap();
    let null = Fd::open("/dev/null", libc::O_RDWR).unwrap();
    let edge = Map::anonymous(8192);
    edge.set(0, 1);
    edge.set(4096, 1);
    mprotect(edge.address + 4096, 4096, libc::PROT_NONE).unwrap();
    // Seven bytes before what cannot be touched.
    let edge = edge.address + 4096 - 7;
    let fd = file.raw() as usize;
    let kinds: [[usize; 6]; 7] = [
        [0; 6],
        [usize::MAX; 6],
        [0xffff_8000_0000_1000; 6],
        [0x8000_0000_0000_0000; 6],
        [edge; 6],
        [fd, edge, 4096, edge, 4096, edge],
        [1, 0x1000_0000, 1, 0x1000_0000, 1, 1],
    ];
    let attempt = |number: i64, arguments: [usize; 6]| {
        child::fork_code(|| {
            // SAFETY: the descriptors are ours; what the call does to this process is its end.
            unsafe {
                (0..3).for_each(|standard| _ = libc::dup2(null.raw(), standard));
                let _ = libc::syscall(
                    number,
                    arguments[0],
                    arguments[1],
                    arguments[2],
                    arguments[3],
                    arguments[4],
                    arguments[5],
                );
                libc::_exit(0)
            }
        })
    };
    let finish_all = |children: Vec<Child>| {
        children.into_iter().for_each(|child| finish(child, Duration::from_millis(300)));
    };
    let calls = |last| (0..=last).filter(|number| !WITHHELD.contains(number));
    finish_all(calls(59).map(|number| attempt(number, kinds[0])).collect());
    let before = Baseline::take();
    for number in calls(470) {
        // Those that wait for ever wait at the same time.
        finish_all(kinds.iter().map(|arguments| attempt(number, *arguments)).collect());
    }
    before.check();
}

/// Waits for a process, and kills it when it takes longer: some calls wait for ever, and may.
fn finish(child: Child, limit: Duration) {
    let ended = |pid| {
        // SAFETY: the siginfo lives through the call; the child is left to be waited for.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(libc::P_PID, pid as u32, &mut info, options);
            info.si_pid() == pid
        }
    };
    // Most are quick; then it is worth asking often.
    for _ in 0..200 {
        if ended(child.pid) {
            child.wait();
            return;
        }
        // SAFETY: takes nothing.
        unsafe { libc::sched_yield() };
    }
    if sys::settles(limit, || ended(child.pid)) {
        child.wait();
    } else {
        // What nothing ends but SIGKILL; a kernel that does not let go of it fails the test by its time limit.
        child.end();
    }
}

fn wrong_call_numbers() {
    for number in [471 + 100, 1000, 0x4000_0000, i64::MAX, -1, 0xffff_ffff] {
        // SAFETY: there are no such calls.
        assert_eq!(unsafe { sys::raw(number, [0; 6]) }, Err(Errno::ENOSYS), "{number}");
    }
}

/// Each of these made a sum that no word holds, once: of an address, of an offset, of a number of pages.
fn sums_that_overflow() {
    use libc::*;
    let call = |number, arguments| {
        // SAFETY: what is written is ours, or nothing.
        unsafe { sys::raw(number, arguments) }
    };
    // A structure that begins below the end of all addresses, and ends behind it.
    for below in 1..=24usize {
        let answer =
            call(SYS_openat2, [AT_FDCWD as usize, c"/".as_ptr() as usize, below.wrapping_neg(), 24, 0, 0]);
        assert_eq!(answer, Err(Errno::EFAULT), "{below} below the end");
    }
    let socket =
        Fd::own(call(SYS_socket, [AF_INET as usize, SOCK_DGRAM as usize, 0, 0, 0, 0]).expect("socket"));
    const SIOCGIFNAME: usize = 0x8910;
    for request in [SIOCGIFNAME, SIOCGIFADDR as usize, SIOCGIFCONF as usize] {
        for below in [1usize, 8, 16, 40] {
            let answer = call(SYS_ioctl, [socket.raw() as usize, request, below.wrapping_neg(), 0, 0, 0]);
            assert_eq!(answer, Err(Errno::EFAULT), "{request:#x}, {below} below the end");
        }
    }
    // Places in directories behind all that they have.
    let pid = sys::pid();
    let directories = [
        "/proc".to_string(),
        format!("/proc/{pid}"),
        format!("/proc/{pid}/fd"),
        format!("/proc/{pid}/task"),
        "/sys".to_string(),
        "/dev".to_string(),
        "/tmp".to_string(),
    ];
    for name in directories {
        let directory = Fd::open(&name, O_RDONLY | O_DIRECTORY).expect(&name);
        for offset in
            [u64::from(u32::MAX), (1 << 16) + u64::from(u32::MAX), 1 << 40, (1 << 48) - 1, i64::MAX as u64]
        {
            let mut buffer = [0u8; 1000];
            match call(SYS_lseek, [directory.raw() as usize, offset as usize, SEEK_SET as usize, 0, 0, 0]) {
                Ok(at) => assert_eq!(at as u64, offset, "{name}"),
                // Linux knows no offsets beyond the size that a file may have there.
                Err(error) => assert_eq!(error, Errno::EINVAL, "{name}: {offset:#x}"),
            }
            let at = [directory.raw() as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
            let read = call(SYS_getdents64, at);
            assert!(
                read.is_ok_and(|count| count == 0 || sys::is_linux() || offset <= 1 << 33),
                "{name}: {offset:#x}: {read:?}"
            );
        }
    }
    // What is left of a file whose position has all 64 bits.
    let memory = Fd::open("/proc/self/mem", O_RDONLY).unwrap();
    for (position, left) in [(i64::MIN, 0), (i64::MIN + 5, -5), (-5000, 5000)] {
        let mut number = 7i32;
        assert!(
            call(SYS_lseek, [memory.raw() as usize, position as usize, SEEK_SET as usize, 0, 0, 0]).is_ok()
        );
        let answer =
            call(SYS_ioctl, [memory.raw() as usize, FIONREAD as usize, &raw mut number as usize, 0, 0, 0]);
        assert_eq!((answer, number), (Ok(0), left), "{position}");
    }
    // Sizes of a file system.
    let mount = |options: &str| place::mount("sums", "/tmp/sums", "tmpfs", 0, options);
    child::in_child(|| {
        namespaces::unshare(CLONE_NEWNS).unwrap();
        place::mount("none", "/", "", MS_REC | MS_PRIVATE, "").unwrap();
        let _ = place::mkdir("/tmp/sums", 0o755);
        for options in [
            "nr_blocks=18446744073709551615",
            "nr_inodes=18446744073709551615",
            "nr_blocks=9223372036854775808",
        ] {
            assert_eq!(mount(options), Err(Errno::EINVAL), "{options}");
        }
        for options in
            ["nr_blocks=9223372036854775807", "size=18446744073709551615", "nr_inodes=1000000000000000"]
        {
            mount(options).expect(options);
            let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
            assert!(mounts.contains("/tmp/sums"));
            std::fs::write("/tmp/sums/file", "x").expect(options);
            place::umount("/tmp/sums", 0).unwrap();
        }
        place::rmdir("/tmp/sums").unwrap();
    });
}
