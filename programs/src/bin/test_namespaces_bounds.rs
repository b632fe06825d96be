//! What a user namespace does not give: nobody in one changes what is not its own, or keeps what nobody can let go of.

use std::fs;
use std::time::Duration;

use roundtable_programs::child::{End, fork, in_child, waitpid};
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::Map;
use roundtable_programs::namespaces::{
    NEWNS, NEWPID, NEWUSER, as_first, become_root_of_own, errno, open, pidfd, setns, unshare,
};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{PAGE, c_string, check, is_linux, pid, settles};
use roundtable_programs::{Errno, procfs, row, tests};

tests! { read_only_for_oneself, views_of_another_tree, a_tree_in_itself, memory_outside, many_mounts, mounts_of_each,
proc_reveals_nothing, pivoting_keeps_locks, first_process_with_clones: 100, descriptors_of_processes_outside,
entered_while_others_look }

const USER: u32 = 1000;

/// Becomes an ordinary user, whose memory its own processes may look into.
fn become_user() {
    // SAFETY: take integers.
    unsafe {
        check(libc::setgid(USER)).expect("setgid");
        check(libc::setuid(USER)).expect("setuid");
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0)).expect("dumpable");
    }
}

fn mount(source: &str, target: &str, kind: &str, flags: u64) -> Answer {
    let [source, target, kind] = [source, target, kind].map(c_string);
    // SAFETY: all are NUL-terminated and live through the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

/// Who mounts what all have sees it as it likes, and the others as before.
fn read_only_for_oneself() {
    fs::create_dir_all("/tmp/bounds").unwrap();
    in_child(|| {
        become_user();
        unshare(NEWUSER | NEWNS).expect("unshare");
        as_first(0, || {
            for kind in ["proc", "sysfs", "mqueue"] {
                // Linux refuses where more would be seen than before.
                let _ = mount("none", "/tmp/bounds", kind, libc::MS_RDONLY);
                let _ = mount("none", "/tmp/bounds", "", libc::MS_RDONLY | libc::MS_REMOUNT);
            }
        })
        .ok();
    });
    let score = procfs::number("/proc/self/oom_score_adj");
    assert_eq!(errno(fs::write("/proc/self/oom_score_adj", score.to_string())), Ok(0));
    assert_eq!(
        errno(fs::write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages", "0")),
        Ok(0)
    );
}

/// What was opened before stands for the tree that it was opened in.
fn views_of_another_tree() {
    const CLONE: usize = 1;
    in_child(|| {
        let mut rows = Rows::default();
        let outside = Fd::open("/tmp", libc::O_PATH).unwrap();
        unshare(NEWUSER | NEWNS).expect("unshare");
        let empty = c_string("");
        let flags = CLONE | libc::AT_EMPTY_PATH as usize;
        let view = |fd: &Fd| {
            let arguments = [fd.raw() as usize, empty.as_ptr() as usize, flags, 0, 0, 0];
            call(libc::SYS_open_tree, arguments).map(|_| 0)
        };
        row!(rows, EINVAL, view(&outside));
        row!(rows, OK, view(&Fd::open("/tmp", libc::O_PATH).unwrap()));
        // What is on the root stays there, and what is below it hidden.
        row!(rows, EINVAL, view(&Fd::open("/", libc::O_PATH).unwrap()));
        rows.finish();
    });
}

/// A mount namespace that is shown in itself would keep itself.
fn a_tree_in_itself() {
    fs::write("/tmp/bounds-file", "").unwrap();
    in_child(|| {
        let mut rows = Rows::default();
        unshare(NEWUSER | NEWNS).expect("unshare");
        row!(rows, EINVAL, mount("/proc/self/ns/mnt", "/tmp/bounds-file", "", libc::MS_BIND));
        row!(rows, OK, mount("/proc/self/ns/uts", "/tmp/bounds-file", "", libc::MS_BIND));
        rows.finish();
    });
}

/// The same user's process outside is not open to one inside, whatever capabilities that one has there.
fn memory_outside() {
    in_child(|| {
        become_user();
        let word = 4711u64;
        let outside = pid();
        let read = || {
            let mut found = 0u64;
            let local = libc::iovec { iov_base: (&raw mut found).cast(), iov_len: 8 };
            let remote = libc::iovec { iov_base: (&raw const word).cast_mut().cast(), iov_len: 8 };
            // SAFETY: both vectors are of one word each.
            check(unsafe { libc::process_vm_readv(outside, &local, 1, &remote, 1, 0) } as i64).map(|_| 0)
        };
        in_child(|| {
            let mut rows = Rows::default();
            row!(rows, OK, read());
            unshare(NEWUSER).expect("unshare");
            row!(rows, EPERM, read());
            row!(rows, EACCES, errno(fs::read_link(format!("/proc/{outside}/root"))));
            rows.finish();
        });
    });
}

/// Mounts one on the other, twice as many each time: their end is as long as their number.
fn many_mounts() {
    fs::create_dir_all("/tmp/bounds").unwrap();
    in_child(|| {
        become_user();
        unshare(NEWUSER | NEWNS | NEWPID).expect("unshare");
        std::env::set_current_dir("/tmp/bounds").unwrap();
        mount(".", ".", "", libc::MS_BIND).unwrap();
        // Linux finds the top of so many by going through them.
        for _ in 0..if is_linux() { 9 } else { 13 } {
            mount(".", ".", "", libc::MS_BIND | libc::MS_REC).unwrap();
        }
    });
}

fn unmount(path: &str) -> Answer {
    let path = c_string(path);
    // SAFETY: the string lives through the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })
}

/// The bound of mounts is each namespace's own.
fn mounts_of_each() {
    const SETTING: &str = "/proc/sys/fs/mount-max";
    fs::create_dir_all("/tmp/bounds").unwrap();
    let before = fs::read_to_string(SETTING).unwrap();
    let here = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    fs::write(SETTING, (here + 3).to_string()).unwrap();
    let fills = || {
        become_root_of_own(NEWNS);
        let bind = || mount("/tmp/bounds", "/tmp/bounds", "", libc::MS_BIND);
        let made = (0..8).map_while(|_| bind().ok()).count();
        assert_eq!((made, bind()), (3, Err(Errno::ENOSPC)));
        unmount("/tmp/bounds").unwrap();
        assert_eq!(bind(), Ok(0));
    };
    in_child(|| {
        become_user();
        let first = roundtable_programs::child::fork(|| {
            fills();
            in_child(fills_below);
        });
        first.ok();
        fills();
    });
    fs::write(SETTING, before).unwrap();
}

/// What was full stays full in a copy.
fn fills_below() {
    become_root_of_own(NEWNS);
    assert_eq!(mount("/tmp/bounds", "/tmp/bounds", "", libc::MS_BIND), Err(Errno::ENOSPC));
}

/// A new proc must not show what others hid, or let change what may only be read.
fn proc_reveals_nothing() {
    fs::create_dir_all("/tmp/bounds").unwrap();
    let new_proc = |flags: u64| {
        let mut answer = Ok(0);
        let told = roundtable_programs::file::pipe(0);
        roundtable_programs::child::fork(|| {
            // Without numbers: who sets them writes to proc.
            unshare(NEWUSER | NEWNS).expect("unshare");
            as_first(0, || {
                let got = mount("none", "/tmp/bounds", "proc", flags);
                told.1.write(&[got.err().map_or(0, |errno| errno as u8)]).unwrap();
            })
            .ok();
        })
        .ok();
        let mut byte = [0];
        assert_eq!(told.0.read(&mut byte), Ok(1));
        if byte[0] != 0 {
            answer = Err(Errno::from_raw(byte[0].into()));
        }
        answer
    };
    in_child(|| {
        let mut rows = Rows::default();
        unshare(NEWNS).unwrap();
        row!(rows, OK, new_proc(0));
        mount("none", "/proc/sys/kernel", "tmpfs", 0).unwrap();
        row!(rows, EPERM, new_proc(0));
        row!(rows, EPERM, new_proc(libc::MS_RDONLY));
        unmount("/proc/sys/kernel").unwrap();
        row!(rows, OK, new_proc(0));
        mount("none", "/proc", "", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY).unwrap();
        row!(rows, EPERM, new_proc(0));
        row!(rows, OK, new_proc(libc::MS_RDONLY));
        rows.finish();
    });
}

/// What takes the place of a mount that stays where it is stays there too.
fn pivoting_keeps_locks() {
    fs::create_dir_all("/tmp/bounds").unwrap();
    in_child(|| {
        let mut rows = Rows::default();
        unshare(NEWNS).unwrap();
        mount("none", "/tmp/bounds", "tmpfs", 0).unwrap();
        fs::create_dir("/tmp/bounds/new").unwrap();
        become_root_of_own(NEWNS);
        let outside = Fd::open("/tmp", libc::O_PATH | libc::O_DIRECTORY).unwrap();
        row!(rows, EINVAL, unmount("/tmp/bounds"));
        std::os::unix::fs::chroot("/tmp/bounds").unwrap();
        std::env::set_current_dir("/").unwrap();
        mount("none", "/new", "tmpfs", 0).unwrap();
        fs::create_dir("/new/old").unwrap();
        let [new, old] = ["/new", "/new/old"].map(c_string);
        let arguments = [new.as_ptr() as usize, old.as_ptr() as usize, 0, 0, 0, 0];
        row!(rows, OK, call(libc::SYS_pivot_root, arguments));
        row!(rows, OK, unmount("/old"));
        // SAFETY: takes an integer.
        row!(rows, OK, check(unsafe { libc::fchdir(outside.raw()) }));
        row!(rows, EINVAL, unmount("bounds"));
        rows.finish();
    });
}

/// The first process ends before its children, who tell of their ends by other signals than SIGCHLD, or by none.
fn first_process_with_clones() {
    const CHILDREN: usize = 20;
    const MEMORY: usize = 4 << 20;
    for signal in [0, libc::SIGUSR1] {
        in_child(|| {
            let first = as_first(0, || {
                for _ in 0..CHILDREN {
                    // SAFETY: as fork(2): this process has one thread.
                    if check(unsafe { libc::syscall(libc::SYS_clone, signal as usize, 0, 0, 0, 0) }) == Ok(0)
                    {
                        // Its end lasts.
                        let memory = Map::anonymous(MEMORY);
                        (0..MEMORY).step_by(PAGE).for_each(|at| memory.set(at, 1));
                        loop {
                            // SAFETY: takes nothing.
                            unsafe { libc::pause() };
                        }
                    }
                }
            });
            let pid = first.release();
            let mut end = None;
            let ends = settles(Duration::from_secs(40), || {
                end = waitpid(pid, libc::WNOHANG).ok().filter(|(found, _)| *found == pid);
                end.is_some()
            });
            assert!(ends, "the first process of a namespace never ends");
            assert_eq!(end, Some((pid, End::Code(0))));
        });
    }
}

/// Who has a descriptor of a process that it has no number for sends it nothing.
fn descriptors_of_processes_outside() {
    let send = |fd: &Fd| call(libc::SYS_pidfd_send_signal, [fd.raw() as usize, 0, 0, 0, 0, 0]);
    in_child(|| {
        let outside = pidfd(pid());
        assert_eq!(send(&outside), Ok(0));
        as_first(0, || {
            assert_eq!(send(&outside), Err(Errno::EINVAL));
            assert_eq!(send(&pidfd(1)), Ok(0));
        })
        .ok();
    });
}

/// A thread that shares its working directory with nobody may enter a mount namespace, whoever looks at the directory.
fn entered_while_others_look() {
    in_child(|| {
        unshare(NEWNS).expect("unshare");
        let own = open("self", "mnt");
        let path = format!("/proc/{}/cwd", pid());
        let reader = fork(|| {
            loop {
                let _ = fs::read_link(&path);
            }
        });
        for round in 0..10_000 {
            assert_eq!(setns(&own, NEWNS), Ok(0), "round {round}");
        }
        reader.end();
        // The child only waits to be killed.
        let flags = (libc::CLONE_FS | libc::SIGCHLD) as usize;
        match call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]).unwrap() {
            0 => loop {
                std::thread::park();
            },
            sharer => {
                assert_eq!(setns(&own, NEWNS), Err(Errno::EINVAL));
                // SAFETY: take integers.
                check(unsafe { libc::kill(sharer as i32, libc::SIGKILL) }).unwrap();
                waitpid(sharer as i32, 0).unwrap();
                assert_eq!(setns(&own, NEWNS), Ok(0));
            }
        }
    });
}
