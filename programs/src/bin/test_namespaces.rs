//! Namespaces of mounts, names, IPC and time; and the files that stand for namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;

use roundtable_programs::child::{End, fork, in_child, waitpid};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::Map;
use roundtable_programs::namespaces::{
    NEWIPC, NEWNS, NEWPID, NEWTIME, NEWUSER, NEWUTS, become_root_of_own, errno, link, open, setns, unshare,
};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{c_string, check, pid};
use roundtable_programs::{Errno, row, tests};

tests! { host_names, mounts_apart, mounts_entered, locked_mounts, access_times_stay, ipc_apart, ipc_settings, message_queues_apart, clocks_ahead,
clocks_behind_setns, times_in_proc, clocks_of_a_new_program, clocks_of_shared_memory, in_shifted_time, clock_rules, files, questions, kept_by_a_mount, errors, of_the_dead }

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_string()
}

fn set_hostname(name: &str) -> Answer {
    // SAFETY: the name is there.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
}

fn host_names() {
    in_child(|| {
        let before = hostname();
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            unshare(NEWUTS).unwrap();
            assert_eq!(hostname(), before);
            set_hostname("inside").unwrap();
            tell.write(b"x").unwrap();
            asked.read(&mut [0; 1]).unwrap();
            assert_eq!(hostname(), "entered");
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        assert_eq!(hostname(), before);
        in_child(|| {
            setns(&open(&child.pid.to_string(), "uts"), NEWUTS).unwrap();
            assert_eq!(hostname(), "inside");
            fs::write("/proc/sys/kernel/hostname", "entered").unwrap();
        });
        ask.write(b"x").unwrap();
        child.ok();
        assert_eq!(hostname(), before);
    });
}

fn mount(source: &str, at: &str, kind: &str, flags: u64) -> Answer {
    let (source, at, kind) = (c_string(source), c_string(at), c_string(kind));
    // SAFETY: the strings are there.
    check(unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

fn umount(at: &str, flags: i32) -> Answer {
    // SAFETY: the string is there.
    check(unsafe { libc::umount2(c_string(at).as_ptr(), flags) })
}

/// A directory of the test's own.
fn directory(name: &str) -> String {
    let path = format!("/tmp/namespaces-{name}");
    fs::create_dir_all(&path).unwrap();
    path
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
}

/// A mount namespace of one's own, whose changes nobody else sees.
fn private_mounts() {
    unshare(NEWNS).unwrap();
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE).unwrap();
}

fn mounts_apart() {
    let at = directory("apart");
    let (before, outside) = (mounts(), fs::metadata("/").unwrap().ino());
    in_child(|| {
        private_mounts();
        assert_eq!(mounts(), before);
        assert_eq!(fs::metadata("/").unwrap().ino(), outside);
        mount("none", &at, "tmpfs", 0).unwrap();
        fs::write(format!("{at}/x"), "x").unwrap();
        assert_eq!(mounts(), before + 1);
        // A child shares it.
        in_child(|| assert!(fs::metadata(format!("{at}/x")).is_ok()));
        // What was there can be taken away here alone.
        umount("/dev", libc::MNT_DETACH).unwrap();
        assert!(fs::metadata("/dev/null").is_err());
    });
    assert_eq!(mounts(), before);
    assert!(fs::metadata(format!("{at}/x")).is_err());
    assert!(fs::metadata("/dev/null").is_ok());
    fs::remove_dir(&at).unwrap();
}

fn mounts_entered() {
    let at = directory("entered");
    let (told, tell) = pipe(0);
    let (asked, ask) = pipe(0);
    let child = fork(|| {
        private_mounts();
        mount("none", &at, "tmpfs", 0).unwrap();
        fs::write(format!("{at}/x"), "x").unwrap();
        tell.write(b"x").unwrap();
        asked.read(&mut [0; 1]).unwrap();
        assert!(fs::metadata(format!("{at}/y")).is_ok());
    });
    assert_eq!(told.read(&mut [0; 1]), Ok(1));
    in_child(|| {
        std::env::set_current_dir(&at).unwrap();
        let here = Fd::open(".", libc::O_PATH).unwrap();
        setns(&open(&child.pid.to_string(), "mnt"), 0).unwrap();
        assert_eq!(std::env::current_dir().unwrap().to_str(), Some("/"));
        fs::write(format!("{at}/y"), "y").unwrap();
        // What was open stays where it was: nothing can be mounted there from here.
        let old = format!("/proc/self/fd/{}", here.raw());
        assert_eq!(mount("none", &old, "tmpfs", 0), Err(Errno::EINVAL));
        // Looking at another process goes by its own tree.
        assert!(fs::metadata(format!("/proc/{}/root{at}/x", child.pid)).is_ok());
    });
    let through = format!("/proc/{}/root{at}/x", child.pid);
    assert!(fs::metadata(&through).is_ok());
    assert!(fs::metadata(format!("{at}/x")).is_err());
    ask.write(b"x").unwrap();
    child.ok();
    fs::remove_dir(&at).unwrap();
}

fn locked_mounts() {
    let at = directory("locked");
    in_child(|| {
        private_mounts();
        mount("none", &at, "tmpfs", libc::MS_NODEV).unwrap();
        mount("none", &at, "", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NODEV).unwrap();
        become_root_of_own(NEWNS);
        let mut rows = Rows::default();
        let remount = |flags: u64| mount("none", &at, "", libc::MS_REMOUNT | libc::MS_BIND | flags);
        row!(rows, EINVAL, umount(&at, 0));
        row!(rows, EINVAL, umount(&at, libc::MNT_DETACH));
        row!(rows, EPERM, remount(0));
        row!(rows, EPERM, remount(libc::MS_RDONLY));
        row!(rows, OK, remount(libc::MS_RDONLY | libc::MS_NODEV | libc::MS_NOEXEC));
        // What is mounted here can be taken away again.
        let own = directory("locked-own");
        row!(rows, OK, mount("none", &own, "tmpfs", 0));
        row!(rows, OK, umount(&own, 0));
        row!(rows, OK, mount("/proc", &own, "", libc::MS_BIND | libc::MS_REC));
        row!(rows, EINVAL, mount("/", &own, "", libc::MS_BIND));
        rows.finish();
    });
    fs::remove_dir(&at).unwrap();
}

fn access_times_stay() {
    let at = directory("times");
    let options = || {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = text.lines().rfind(|line| line.split(' ').nth(4) == Some(&at)).unwrap();
        line.split(' ').nth(5).unwrap().to_string()
    };
    in_child(|| {
        private_mounts();
        mount("none", &at, "tmpfs", libc::MS_NOATIME).unwrap();
        let remount = |flags: u64| mount("none", &at, "", libc::MS_REMOUNT | libc::MS_BIND | flags);
        remount(libc::MS_NODEV).unwrap();
        assert_eq!(options(), "rw,nodev,noatime");
        remount(libc::MS_STRICTATIME).unwrap();
        assert_eq!(options(), "rw");
        remount(libc::MS_RELATIME).unwrap();
        assert_eq!(options(), "rw,relatime");
        remount(libc::MS_NOATIME).unwrap();
        become_root_of_own(NEWNS);
        let mut rows = Rows::default();
        row!(rows, EPERM, remount(libc::MS_STRICTATIME));
        row!(rows, EPERM, remount(libc::MS_RELATIME));
        row!(rows, EPERM, remount(libc::MS_NOATIME | libc::MS_NODIRATIME));
        row!(rows, OK, remount(libc::MS_NOATIME));
        row!(rows, OK, remount(libc::MS_RDONLY));
        rows.finish();
        assert_eq!(options(), "ro,noatime");
    });
    fs::remove_dir(&at).unwrap();
}

fn segment(key: i32, flags: i32) -> Answer {
    // SAFETY: takes integers.
    check(unsafe { libc::shmget(key, 4096, flags) })
}

fn remove_segment(id: usize) {
    // SAFETY: takes integers and no buffer.
    check(unsafe { libc::shmctl(id as i32, libc::IPC_RMID, std::ptr::null_mut()) }).unwrap();
}

fn ipc_apart() {
    const KEY: i32 = 0x6e73;
    let id = segment(KEY, libc::IPC_CREAT | 0o600).unwrap();
    in_child(|| {
        // SAFETY: take integers and addresses that are there.
        unsafe {
            let memory = libc::shmat(id as i32, std::ptr::null(), 0).cast::<u8>();
            memory.write_volatile(7);
            unshare(NEWIPC).unwrap();
            assert_eq!(segment(KEY, 0o600), Err(Errno::ENOENT));
            // What is mapped stays.
            assert_eq!(memory.read_volatile(), 7);
            let inner = segment(KEY, libc::IPC_CREAT | libc::IPC_EXCL | 0o600).unwrap();
            let second = libc::shmat(inner as i32, std::ptr::null(), 0).cast::<u8>();
            assert_eq!(second.read_volatile(), 0);
            let set = check(libc::semget(KEY, 1, libc::IPC_CREAT | 0o600)).unwrap();
            check(libc::semctl(set as i32, 0, libc::SETVAL, 3)).unwrap();
            assert!(check(libc::msgget(KEY, libc::IPC_CREAT | 0o600)).is_ok());
            assert_eq!(fs::read_to_string("/proc/sysvipc/shm").unwrap().lines().count(), 2);
            assert_eq!(libc::shmdt(memory.cast()), 0);
            // What is left goes with the namespace.
        }
    });
    // SAFETY: take integers.
    unsafe {
        assert_eq!(check(libc::semget(KEY, 1, 0o600)), Err(Errno::ENOENT));
        assert_eq!(check(libc::msgget(KEY, 0o600)), Err(Errno::ENOENT));
    }
    remove_segment(id);
}

fn ipc_settings() {
    in_child(|| {
        unshare(NEWIPC).unwrap();
        // A number that the next one shall have is asked for in here only.
        fs::write("/proc/sys/kernel/shm_next_id", "77").unwrap();
        in_child(|| {
            unshare(NEWIPC).unwrap();
            assert_eq!(fs::read_to_string("/proc/sys/kernel/shm_next_id").unwrap(), "-1\n");
        });
        assert_eq!(segment(libc::IPC_PRIVATE, 0o600), Ok(77));
    });
}

fn message_queues_apart() {
    let name = c_string("/of-a-namespace");
    let open = |flags: i32| {
        let arguments = [name.as_ptr() as usize + 1, flags as usize, 0o600, 0, 0, 0];
        call(libc::SYS_mq_open, arguments)
    };
    let unlink = || call(libc::SYS_mq_unlink, [name.as_ptr() as usize + 1, 0, 0, 0, 0, 0]);
    let _ = unlink();
    drop(Fd::own(open(libc::O_RDWR | libc::O_CREAT).unwrap()));
    in_child(|| {
        unshare(NEWIPC).unwrap();
        assert_eq!(open(libc::O_RDWR), Err(Errno::ENOENT));
        drop(Fd::own(open(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap()));
        private_mounts();
        let at = directory("queues");
        mount("none", &at, "mqueue", 0).unwrap();
        assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
    });
    assert!(unlink().is_ok());
}

fn monotonic() -> i64 {
    clock(libc::CLOCK_MONOTONIC)
}

fn clock(clock: i32) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: lives through the call.
    check(unsafe { libc::clock_gettime(clock, &mut now) }).unwrap();
    now.tv_sec
}

fn by_call(clock: i32) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    call(libc::SYS_clock_gettime, [clock as usize, (&raw mut now) as usize, 0, 0, 0, 0]).unwrap();
    now.tv_sec
}

fn clocks_ahead() {
    const DAY: i64 = 86_400;
    in_child(|| {
        let (before, boot, real) = (monotonic(), clock(libc::CLOCK_BOOTTIME), clock(libc::CLOCK_REALTIME));
        unshare(NEWTIME).unwrap();
        let offsets = format!("monotonic {DAY} 0\nboottime {} 0\n", 2 * DAY);
        fs::write("/proc/self/timens_offsets", &offsets).unwrap();
        // Children are in it, not the caller.
        assert!(monotonic() < before + DAY / 2);
        in_child(|| {
            for (now, was, ahead) in [
                (monotonic(), before, DAY),
                (by_call(libc::CLOCK_MONOTONIC), before, DAY),
                (clock(libc::CLOCK_BOOTTIME), boot, 2 * DAY),
                (clock(libc::CLOCK_REALTIME), real, 0),
            ] {
                assert!((was + ahead..was + ahead + 3600).contains(&now), "{now} {was} {ahead}");
            }
            // Deadlines are in its own time: one of now is due at once, one of outside's long over.
            let deadline = libc::timespec { tv_sec: monotonic(), tv_nsec: 0 };
            // SAFETY: lives through the call.
            let slept = unsafe {
                libc::clock_nanosleep(
                    libc::CLOCK_MONOTONIC,
                    libc::TIMER_ABSTIME,
                    &deadline,
                    std::ptr::null_mut(),
                )
            };
            assert_eq!(slept, 0);
            let uptime = fs::read_to_string("/proc/uptime").unwrap();
            let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
            assert!(seconds >= (2 * DAY) as f64, "{uptime}");
            assert_ne!(link("time"), "time:[4026531834]");
            assert_eq!(link("time"), link("time_for_children"));
        });
        assert_eq!(link("time"), "time:[4026531834]");
        // Somebody was in it: too late.
        assert_eq!(errno(fs::write("/proc/self/timens_offsets", "monotonic 1 0")), Err(Errno::EACCES));
    });
}

/// Who has looked at a clock before, by the page that the kernel shares with it, sees the other time all the same.
fn clocks_behind_setns() {
    const DAY: i64 = 86_400;
    in_child(|| {
        let before = monotonic();
        unshare(NEWTIME).unwrap();
        fs::write("/proc/self/timens_offsets", format!("monotonic {DAY} 0\n")).unwrap();
        setns(&open("self", "time_for_children"), NEWTIME).unwrap();
        for now in [monotonic(), by_call(libc::CLOCK_MONOTONIC)] {
            assert!((before + DAY..before + DAY + 3600).contains(&now), "{now} {before}");
        }
        setns(&open("1", "time"), NEWTIME).unwrap();
        assert!((before..before + 3600).contains(&monotonic()));
    });
}

fn times_in_proc() {
    const DAY: i64 = 86_400;
    let word = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("such a line");
        line.trim().parse::<i64>().expect("a number")
    };
    let boot = || word(&fs::read_to_string("/proc/stat").unwrap(), "btime ");
    let started = || {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse::<i64>().unwrap()
    };
    let before = boot();
    in_child(|| {
        unshare(NEWTIME).unwrap();
        fs::write("/proc/self/timens_offsets", format!("boottime {DAY} 0")).unwrap();
        in_child(|| {
            let uptime = fs::read_to_string("/proc/uptime").unwrap();
            let up: i64 = uptime.split('.').next().unwrap().parse().unwrap();
            assert!((before - DAY - 2..=before - DAY + 2).contains(&boot()), "{} {before}", boot());
            // In hundredths of a second.
            let started = started();
            assert!((DAY * 100..=(up + 1) * 100).contains(&started), "{started}, {uptime}");
        });
    });
}

/// Threads, and a child until it has memory of its own, stay with the time of the memory that they share.
fn clocks_of_shared_memory() {
    const DAY: i64 = 86_400;
    fn shifted() -> [bool; 2] {
        [monotonic(), by_call(libc::CLOCK_MONOTONIC)].map(|now| now >= DAY)
    }
    extern "C" fn look(seen: *mut libc::c_void) -> i32 {
        // SAFETY: the parent's array; it waits meanwhile.
        unsafe { *seen.cast::<[bool; 2]>() = shifted() };
        0
    }
    in_child(|| {
        unshare(NEWTIME).unwrap();
        fs::write("/proc/self/timens_offsets", format!("monotonic {DAY} 0")).unwrap();
        assert_eq!(std::thread::spawn(shifted).join().unwrap(), [false; 2]);
        let stack = Map::anonymous(64 << 10);
        let mut seen = [true; 2];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = (stack.address + (64 << 10)) as *mut libc::c_void;
        // SAFETY: the child has a stack of its own, and the array while this waits.
        let pid = check(unsafe { libc::clone(look, top, flags, (&raw mut seen).cast()) }).unwrap();
        assert_eq!(waitpid(pid as i32, 0).unwrap().1, End::Code(0));
        assert_eq!(seen, [false; 2]);
        in_child(|| assert_eq!(shifted(), [true; 2]));
    });
}

fn clocks_of_a_new_program() {
    const DAY: i64 = 86_400;
    in_child(|| {
        unshare(NEWTIME).unwrap();
        fs::write("/proc/self/timens_offsets", format!("boottime {DAY} 0")).unwrap();
        // Without a child in between: the program itself is in it, from its first look at a clock on.
        let program = c_string("/proc/self/exe");
        let arguments = [c_string("test"), c_string("in_shifted_time")];
        let pointers = [arguments[0].as_ptr(), arguments[1].as_ptr(), std::ptr::null()];
        // SAFETY: the strings are there.
        unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
    });
}

/// What the test above executes; by itself it has nothing to say.
fn in_shifted_time() {
    if link("time") != "time:[4026531834]" {
        assert!(clock(libc::CLOCK_BOOTTIME) >= 86_400);
        assert!(monotonic() < 86_400);
    }
}

fn clock_rules() {
    in_child(|| {
        let mut rows = Rows::default();
        let set = |text: &str| errno(fs::write("/proc/self/timens_offsets", text));
        row!(rows, EACCES, set("monotonic 1 0"));
        unshare(NEWTIME).unwrap();
        row!(rows, OK, set("monotonic 1 0"));
        row!(rows, OK, set("7 5 1\n1 6 2\n"));
        let shown = fs::read_to_string("/proc/self/timens_offsets").unwrap();
        assert_eq!(shown, "monotonic           6         2\nboottime            5         1\n");
        row!(rows, EINVAL, set("realtime 1 0"));
        row!(rows, EINVAL, set("monotonic 1"));
        row!(rows, EINVAL, set("monotonic 1 1000000000"));
        row!(rows, ERANGE, set("monotonic -1000000000 0"));
        row!(rows, ERANGE, set("monotonic 9223372036854775807 0"));
        rows.finish();
    });
}

fn files() {
    for (name, kind) in [
        ("mnt", NEWNS),
        ("uts", NEWUTS),
        ("ipc", NEWIPC),
        ("pid", NEWPID),
        ("user", NEWUSER),
        ("time", NEWTIME),
    ] {
        const GET_NSTYPE: usize = 0xb703;
        let text = link(name);
        let number: u64 = text.strip_prefix(name).unwrap().trim_matches([':', '[', ']']).parse().unwrap();
        let file = open("self", name);
        assert_eq!(file.stat().st_ino, number);
        assert_eq!(fs::metadata(format!("/proc/self/ns/{name}")).unwrap().ino(), number);
        assert_eq!(file.statfs().f_type, 0x6e73_6673);
        assert_eq!(call(libc::SYS_ioctl, [file.raw() as usize, GET_NSTYPE, 0, 0, 0, 0]), Ok(kind as usize));
        in_child(|| {
            assert_eq!(link(name), text);
            unshare(kind).unwrap();
            let entry = match name {
                "pid" | "time" => format!("{name}_for_children"),
                _ => name.to_string(),
            };
            if name == "pid" {
                // One without a first process leads nowhere yet.
                assert_eq!(errno(fs::read_link("/proc/self/ns/pid_for_children")), Err(Errno::ENOENT));
            } else {
                assert_ne!(link(&entry), text);
            }
        });
    }
    let names = fs::read_dir("/proc/self/ns").unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.to_str().unwrap().to_string()).collect();
    names.sort_unstable();
    let all = [
        "cgroup",
        "ipc",
        "mnt",
        "net",
        "pid",
        "pid_for_children",
        "time",
        "time_for_children",
        "user",
        "uts",
    ];
    assert_eq!(names, all);
    assert_eq!(link("user"), "user:[4026531837]");
    assert_eq!(link("pid"), "pid:[4026531836]");
}

fn questions() {
    const GET_USERNS: usize = 0xb701;
    const GET_PARENT: usize = 0xb702;
    const GET_OWNER_UID: usize = 0xb704;
    let ask = |fd: &Fd, command: usize, argument: usize| {
        call(libc::SYS_ioctl, [fd.raw() as usize, command, argument, 0, 0, 0])
    };
    let (told, tell) = pipe(0);
    let (asked, ask_end) = pipe(0);
    let child = fork(|| {
        become_root_of_own(NEWUTS);
        tell.write(b"x").unwrap();
        asked.read(&mut [0; 1]).unwrap();
        // What is above is not for those below.
        let mut rows = Rows::default();
        let own = open("self", "user");
        row!(rows, EPERM, ask(&own, GET_PARENT, 0));
        row!(rows, EPERM, ask(&own, GET_USERNS, 0));
        rows.finish();
    });
    assert_eq!(told.read(&mut [0; 1]), Ok(1));
    let mut rows = Rows::default();
    let theirs = open(&child.pid.to_string(), "uts");
    let user = Fd::own(ask(&theirs, GET_USERNS, 0).unwrap());
    assert_eq!(user.stat().st_ino, open(&child.pid.to_string(), "user").stat().st_ino);
    let above = Fd::own(ask(&user, GET_PARENT, 0).unwrap());
    assert_eq!(above.stat().st_ino, open("self", "user").stat().st_ino);
    let mut owner = u32::MAX;
    row!(rows, OK, ask(&user, GET_OWNER_UID, (&raw mut owner) as usize));
    assert_eq!(owner, 0);
    row!(rows, EINVAL, ask(&theirs, GET_OWNER_UID, (&raw mut owner) as usize));
    row!(rows, EINVAL, ask(&theirs, GET_PARENT, 0));
    row!(rows, EPERM, ask(&above, GET_PARENT, 0));
    row!(rows, ENOTTY, ask(&above, 0xb7ff, 0));
    ask_end.write(b"x").unwrap();
    child.ok();
    rows.finish();
}

fn kept_by_a_mount() {
    in_child(|| {
        private_mounts();
        let at = "/tmp/namespace-kept";
        fs::write(at, "").unwrap();
        in_child(|| {
            unshare(NEWUTS).unwrap();
            set_hostname("kept").unwrap();
            mount("/proc/self/ns/uts", at, "", libc::MS_BIND).unwrap();
        });
        in_child(|| {
            setns(&Fd::open(at, libc::O_RDONLY).unwrap(), NEWUTS).unwrap();
            assert_eq!(hostname(), "kept");
        });
        umount(at, 0).unwrap();
        fs::remove_file(at).unwrap();
    });
}

fn errors() {
    let mut rows = Rows::default();
    row!(rows, EINVAL, unshare(0x1));
    row!(rows, EINVAL, setns(&Fd::open("/proc/self/status", libc::O_RDONLY).unwrap(), 0));
    row!(rows, EBADF, call(libc::SYS_setns, [usize::MAX, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, setns(&open("self", "uts"), NEWIPC));
    row!(rows, OK, setns(&open("self", "uts"), NEWUTS));
    row!(rows, ENOENT, errno(fs::read_link("/proc/self/ns/nothing")));
    rows.finish();
    // With a second thread there is no other user namespace.
    let other = std::thread::spawn(|| unshare(NEWUSER));
    assert_eq!(other.join().unwrap(), Err(Errno::EINVAL));
    // But names for one thread alone.
    let before = hostname();
    let other = std::thread::spawn(|| {
        unshare(NEWUTS).unwrap();
        set_hostname("of-a-thread").unwrap();
    });
    other.join().unwrap();
    assert_eq!(hostname(), before);
}

fn of_the_dead() {
    let child = fork(|| ());
    let path = format!("/proc/{}/ns/uts", child.pid);
    roundtable_programs::sys::settles(std::time::Duration::from_secs(20), || {
        roundtable_programs::procfs::state(child.pid) == Some('Z')
    });
    assert_eq!(errno(fs::read_link(&path)), Err(Errno::ENOENT));
    assert_eq!(child.wait(), End::Code(0));
    assert!(pid() > 0);
}
