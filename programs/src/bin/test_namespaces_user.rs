//! User namespaces: numbers of users and groups, and what capabilities are good for.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::{
    NEWIPC, NEWNS, NEWPID, NEWTIME, NEWUSER, NEWUTS, become_root_of_own, errno, link, open, setns, unshare,
    wait_info,
};
use roundtable_programs::procfs::status_text;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{c_string, check, pid};
use roundtable_programs::{Errno, row, signals, tests};

tests! { no_numbers_at_first, one_number, numbers_from_outside, bad_maps, setgroups_rules, capabilities_inside, files_of_others,
ways_in, depth, limits, who_signals, chrooted, rights_of_the_opener, namespace_at_opening, capabilities_of_files }

const OVERFLOW: u32 = 65534;

fn ids() -> (u32, u32) {
    // SAFETY: take nothing.
    unsafe { (libc::getuid(), libc::getgid()) }
}

fn no_numbers_at_first() {
    in_child(|| {
        let before = link("user");
        unshare(NEWUSER).unwrap();
        assert_ne!(link("user"), before);
        assert_eq!(ids(), (OVERFLOW, OVERFLOW));
        assert_eq!(fs::read_to_string("/proc/self/uid_map").unwrap(), "");
        assert_eq!(status_text(pid(), "CapEff"), status_text(pid(), "CapBnd"));
        assert_ne!(status_text(pid(), "CapEff"), "0000000000000000");
        assert_eq!(status_text(pid(), "CapInh"), "0000000000000000");
        assert_eq!(fs::metadata("/").unwrap().uid(), OVERFLOW);
        // SAFETY: takes an integer.
        assert_eq!(check(unsafe { libc::setuid(0) }), Err(Errno::EINVAL));
    });
}

fn one_number() {
    in_child(|| {
        let mut rows = Rows::default();
        unshare(NEWUSER).unwrap();
        row!(rows, OK, errno(fs::write("/proc/self/uid_map", "5 0 1")));
        row!(rows, EPERM, errno(fs::write("/proc/self/uid_map", "5 0 1")));
        assert_eq!(fs::read_to_string("/proc/self/uid_map").unwrap(), "         5          0          1\n");
        row!(rows, EPERM, errno(fs::write("/proc/self/gid_map", "7 0 1")));
        row!(rows, OK, errno(fs::write("/proc/self/setgroups", "deny")));
        row!(rows, OK, errno(fs::write("/proc/self/gid_map", "7 0 1")));
        assert_eq!(ids(), (5, 7));
        let status = fs::metadata("/").unwrap();
        assert_eq!((status.uid(), status.gid()), (5, 7));
        // SAFETY: take integers.
        unsafe {
            row!(rows, EINVAL, check(libc::setuid(7)));
            row!(rows, OK, check(libc::setuid(5)));
            row!(rows, OK, check(libc::setresuid(5, 5, 5)));
            row!(rows, EINVAL, check(libc::setresuid(u32::MAX, 0, u32::MAX)));
            row!(rows, EINVAL, check(libc::setgid(0)));
            row!(rows, OK, check(libc::setgid(7)));
        }
        rows.finish();
    });
}

fn numbers_from_outside() {
    let (told, tell) = pipe(0);
    let (asked, ask) = pipe(0);
    let path = "/tmp/of-a-mapped-user";
    let _ = fs::remove_file(path);
    let child = fork(|| {
        unshare(NEWUSER).unwrap();
        tell.write(b"x").unwrap();
        assert_eq!(asked.read(&mut [0; 1]), Ok(1));
        // The one that it had has no number in there.
        assert_eq!(ids(), (OVERFLOW, OVERFLOW));
        // SAFETY: take integers, and an array that is there.
        unsafe {
            check(libc::setgroups(2, [0, 3].as_ptr())).unwrap();
            check(libc::setresgid(2, 2, 2)).unwrap();
            check(libc::setresuid(1, 1, 1)).unwrap();
        }
        assert_eq!(ids(), (1, 2));
        fs::write(path, "x").unwrap();
        let status = fs::metadata(path).unwrap();
        assert_eq!((status.uid(), status.gid()), (1, 2));
    });
    assert_eq!(told.read(&mut [0; 1]), Ok(1));
    let map = |name: &str| format!("/proc/{}/{name}", child.pid);
    fs::write(map("uid_map"), "0 100000 10\n10 200000 10\n").unwrap();
    fs::write(map("gid_map"), "0 300000 10").unwrap();
    let shown = fs::read_to_string(map("uid_map")).unwrap();
    assert_eq!(shown, "         0     100000         10\n        10     200000         10\n");
    ask.write(b"x").unwrap();
    // The directory is everybody's.
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777)).unwrap();
    child.ok();
    let status = fs::metadata(path).unwrap();
    assert_eq!((status.uid(), status.gid()), (100_001, 300_002));
    fs::remove_file(path).unwrap();
}

fn bad_maps() {
    in_child(|| {
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            unshare(NEWUSER).unwrap();
            tell.write(b"x").unwrap();
            let _ = asked.read(&mut [0; 1]);
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        let path = format!("/proc/{}/uid_map", child.pid);
        let mut rows = Rows::default();
        let long = "0 0 1\n".repeat(1000);
        for text in [
            "",
            "0 0",
            "0 0 0",
            "0 0 1 2",
            "x 0 1",
            "0 4294967295 1",
            "4294967295 0 1",
            "4294967290 0 10",
            "0 0 10\n5 100 10",
            "0 0 10\n100 5 10",
            "0 0 1\n\n1 1 1",
            &long,
        ] {
            // Of nothing, nothing is asked.
            let wanted = if text.is_empty() { "OK" } else { "EINVAL" };
            rows.check(line!(), &text[..text.len().min(30)], wanted, errno(fs::write(&path, text)));
        }
        // SAFETY: takes an integer.
        in_child(|| unsafe {
            check(libc::setuid(1000)).unwrap();
            let wrong = errno(fs::write(&path, "0 1000 1"));
            assert!(wrong.is_err(), "{wrong:?}");
        });
        row!(rows, OK, errno(fs::write(&path, "0 0 1\n1 5 2")));
        row!(rows, EPERM, errno(fs::write(&path, "0 0 1")));
        row!(rows, EPERM, errno(fs::write("/proc/self/uid_map", "0 0 1")));
        ask.write(b"x").unwrap();
        child.ok();
        rows.finish();
    });
}

fn setgroups_rules() {
    in_child(|| {
        let mut rows = Rows::default();
        // SAFETY: the array is there.
        let set = || check(unsafe { libc::setgroups(1, [0].as_ptr()) });
        row!(rows, OK, set());
        unshare(NEWUSER).unwrap();
        // No numbers yet.
        row!(rows, EPERM, set());
        assert_eq!(fs::read_to_string("/proc/self/setgroups").unwrap(), "allow\n");
        row!(rows, OK, errno(fs::write("/proc/self/setgroups", "allow")));
        row!(rows, EINVAL, errno(fs::write("/proc/self/setgroups", "perhaps")));
        row!(rows, OK, errno(fs::write("/proc/self/setgroups", "deny\n")));
        row!(rows, OK, errno(fs::write("/proc/self/setgroups", "deny")));
        row!(rows, EPERM, errno(fs::write("/proc/self/setgroups", "allow")));
        assert_eq!(fs::read_to_string("/proc/self/setgroups").unwrap(), "deny\n");
        fs::write("/proc/self/gid_map", "0 0 1").unwrap();
        fs::write("/proc/self/uid_map", "0 0 1").unwrap();
        row!(rows, EPERM, set());
        unshare(NEWUSER).unwrap();
        assert_eq!(fs::read_to_string("/proc/self/setgroups").unwrap(), "deny\n");
        rows.finish();
    });
}

fn set_hostname(name: &str) -> Answer {
    // SAFETY: the name is there.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
}

fn mount_tmpfs(at: &str) -> Answer {
    let (kind, at) = (c_string("tmpfs"), c_string(at));
    // SAFETY: the strings are there.
    check(unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
}

fn capabilities_inside() {
    // SAFETY: takes an integer.
    in_child(|| unsafe {
        check(libc::setgid(1000)).unwrap();
        check(libc::setuid(1000)).unwrap();
        let mut rows = Rows::default();
        row!(rows, EPERM, unshare(NEWUTS));
        row!(rows, EPERM, unshare(NEWNS));
        row!(rows, EPERM, unshare(NEWPID));
        row!(rows, EPERM, unshare(NEWIPC));
        // What others own stays theirs.
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1)).unwrap();
        become_root_of_own(0);
        assert_eq!(ids(), (0, 0));
        row!(rows, EPERM, set_hostname("mine"));
        row!(rows, EPERM, mount_tmpfs("/tmp"));
        row!(rows, EPERM, call(libc::SYS_settimeofday, [[0u64; 2].as_ptr() as usize, 0, 0, 0, 0, 0]));
        row!(
            rows,
            EPERM,
            call(libc::SYS_mknod, [c_string("/tmp/device").as_ptr() as usize, 0o20644, 0x103, 0, 0, 0])
        );
        row!(rows, EPERM, check(libc::kill(1, 0)));
        row!(rows, OK, unshare(NEWUTS | NEWNS | NEWIPC));
        row!(rows, OK, set_hostname("mine"));
        row!(rows, OK, mount_tmpfs("/tmp"));
        row!(rows, OK, errno(fs::write("/tmp/x", "x")));
        assert_eq!(fs::metadata("/tmp/x").unwrap().uid(), 0);
        row!(rows, EPERM, mount_of("/tmp", "hugetlbfs"));
        row!(rows, OK, check(libc::chroot(c_string("/tmp").as_ptr())));
        rows.finish();
    });
}

fn mount_of(at: &str, kind: &str) -> Answer {
    let (kind, at) = (c_string(kind), c_string(at));
    // SAFETY: the strings are there.
    check(unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
}

fn files_of_others() {
    let path = "/tmp/of-root-only";
    fs::write(path, "x").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    // SAFETY: takes an integer.
    in_child(|| unsafe {
        check(libc::setgid(1000)).unwrap();
        check(libc::setuid(1000)).unwrap();
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1)).unwrap();
        become_root_of_own(0);
        let mut rows = Rows::default();
        // All capabilities, but none for the file of one who has no number here.
        row!(rows, EACCES, errno(fs::read(path)));
        row!(rows, EPERM, errno(fs::set_permissions(path, fs::Permissions::from_mode(0o644))));
        let own = "/tmp/of-mapped-only";
        fs::write(own, "x").unwrap();
        let chown = |uid: u32| check(libc::chown(c_string(own).as_ptr(), uid, u32::MAX));
        row!(rows, EINVAL, chown(1));
        row!(rows, OK, chown(0));
        fs::remove_file(own).unwrap();
        rows.finish();
    });
    fs::remove_file(path).unwrap();
}

fn ways_in() {
    in_child(|| {
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            unshare(NEWUSER | NEWUTS).unwrap();
            tell.write(b"x").unwrap();
            let _ = asked.read(&mut [0; 1]);
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        let mut rows = Rows::default();
        let own = open("self", "user");
        row!(rows, EINVAL, setns(&own, NEWUSER));
        let theirs = open(&child.pid.to_string(), "user");
        let names = open(&child.pid.to_string(), "uts");
        row!(rows, EINVAL, setns(&theirs, NEWUTS));
        row!(rows, OK, setns(&names, 0));
        row!(rows, OK, setns(&theirs, NEWUSER));
        assert_eq!(ids(), (OVERFLOW, OVERFLOW));
        // There is no way back.
        row!(rows, EPERM, setns(&own, NEWUSER));
        row!(rows, OK, set_hostname("theirs"));
        ask.write(b"x").unwrap();
        drop(asked);
        rows.finish();
    });
}

fn depth() {
    in_child(|| {
        let mut made = 0;
        let error = loop {
            match unshare(NEWUSER) {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
            fs::write("/proc/self/setgroups", "deny").unwrap();
            fs::write("/proc/self/uid_map", "0 0 1").unwrap();
            fs::write("/proc/self/gid_map", "0 0 1").unwrap();
        };
        assert_eq!((made, error), (33, Errno::ENOSPC));
    });
}

fn limits() {
    let path = "/proc/sys/user/max_uts_namespaces";
    let before = fs::read_to_string(path).unwrap();
    fs::write(path, "2").unwrap();
    in_child(|| {
        let mut rows = Rows::default();
        row!(rows, OK, unshare(NEWUTS));
        // The one that is left no longer counts.
        row!(rows, OK, unshare(NEWUTS));
        let kept = open("self", "uts");
        row!(rows, OK, unshare(NEWUTS));
        row!(rows, ENOSPC, unshare(NEWUTS));
        drop(kept);
        row!(rows, OK, unshare(NEWUTS));
        rows.finish();
    });
    fs::write(path, before).unwrap();
}

fn who_signals() {
    // A user that has no number where the signal is received is 65534.
    signals::mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    let (told, tell) = pipe(0);
    let child = fork(|| {
        unshare(NEWUSER).unwrap();
        tell.write(b"x").unwrap();
        let info = wait_info(libc::SIGUSR1);
        // SAFETY: the signal is one of kill(2).
        assert_eq!(unsafe { (info.si_uid(), info.si_pid()) }, (OVERFLOW, parent()));
    });
    assert_eq!(told.read(&mut [0; 1]), Ok(1));
    child.kill(libc::SIGUSR1);
    child.ok();
}

fn parent() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::getppid() }
}

fn chrooted() {
    in_child(|| {
        // SAFETY: the string is there.
        check(unsafe { libc::chroot(c_string("/tmp").as_ptr()) }).unwrap();
        assert_eq!(unshare(NEWUSER), Err(Errno::EPERM));
    });
}

/// Runs `work` while a process of that user is in a user namespace of its own, without numbers.
fn beside_one_of(user: u32, work: impl FnOnce(i32)) {
    let (told, tell) = pipe(0);
    let (asked, ask) = pipe(0);
    let child = fork(|| {
        // SAFETY: take integers.
        unsafe {
            check(libc::setgid(user)).unwrap();
            check(libc::setuid(user)).unwrap();
        }
        unshare(NEWUSER).unwrap();
        // SAFETY: takes integers. Its files are its own again.
        check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }).unwrap();
        tell.write(b"x").unwrap();
        assert_eq!(asked.read(&mut [0; 1]), Ok(1));
    });
    assert_eq!(told.read(&mut [0; 1]), Ok(1));
    work(child.pid);
    ask.write(b"x").unwrap();
    child.ok();
}

/// Runs `work` as another user, without capabilities.
fn acting_as<R>(user: u32, work: impl FnOnce() -> R) -> R {
    // SAFETY: take integers.
    unsafe {
        check(libc::seteuid(user)).unwrap();
        let result = work();
        check(libc::seteuid(0)).unwrap();
        result
    }
}

/// Who opened a file decides what may be written, so that nobody gains by having a more powerful program write.
fn rights_of_the_opener() {
    const USER: u32 = 1000;
    in_child(|| {
        beside_one_of(USER, |pid| {
            let mut rows = Rows::default();
            let open = |name: &str| Fd::open(&format!("/proc/{pid}/{name}"), libc::O_WRONLY).unwrap();
            let write = |fd: &Fd, text: &str| fd.write(text.as_bytes()).map(|_| 0);
            let (of_user, of_root) = (acting_as(USER, || open("uid_map")), open("uid_map"));
            row!(rows, EPERM, write(&of_user, "0 5 1"));
            row!(rows, EPERM, write(&of_user, "0 0 1"));
            // Numbers of others need the capability at both times.
            row!(rows, EPERM, acting_as(USER, || write(&of_root, "0 5 1")));
            row!(rows, EPERM, acting_as(USER, || write(&of_root, "0 1000 1")));
            row!(rows, OK, write(&of_user, "0 1000 1"));
            let (of_user, of_root) = (acting_as(USER, || open("gid_map")), open("gid_map"));
            row!(rows, EPERM, write(&of_user, "0 5 1"));
            let setgroups = open("setgroups");
            row!(rows, OK, acting_as(USER + 1, || write(&setgroups, "deny")));
            row!(rows, EPERM, acting_as(USER, || write(&of_root, "0 5 1")));
            row!(rows, OK, write(&of_root, "0 5 1"));
            row!(rows, EPERM, write(&of_user, "0 1000 1"));
            rows.finish();
        });
        unshare(NEWTIME).unwrap();
        let offsets = Fd::open("/proc/self/timens_offsets", libc::O_WRONLY).unwrap();
        assert_eq!(acting_as(USER, || offsets.write(b"monotonic 1 0")), Ok(13));
    });
}

/// An open file is about the namespace that the process had when it was opened.
fn namespace_at_opening() {
    in_child(|| {
        let before = Fd::open("/proc/self/uid_map", libc::O_RDWR).unwrap();
        unshare(NEWUSER).unwrap();
        assert_eq!(before.write(b"0 0 1"), Err(Errno::EPERM));
        let mut shown = [0; 64];
        let length = before.read_at(&mut shown, 0).unwrap();
        assert_eq!(std::str::from_utf8(&shown[..length]).unwrap(), "         0          0 4294967295\n");
        assert_eq!(errno(fs::write("/proc/self/uid_map", "0 0 1")), Ok(0));
    });
}

/// A root of a namespace that is the root above could give files capabilities: only one who could do so before makes one.
fn capabilities_of_files() {
    in_child(|| {
        let mut rows = Rows::default();
        let header = [0x2008_0522u32, 0];
        let mut sets = [0u32; 6];
        let arguments = |sets: &[u32; 6]| [header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0, 0];
        assert_eq!(call(libc::SYS_capget, arguments(&sets)), Ok(0));
        // CAP_SETFCAP, of those in effect.
        sets[0] &= !(1 << 31);
        assert_eq!(call(libc::SYS_capset, arguments(&sets)), Ok(0));
        unshare(NEWUSER).unwrap();
        row!(rows, EPERM, errno(fs::write("/proc/self/uid_map", "5 0 1")));
        row!(rows, OK, errno(fs::write("/proc/self/setgroups", "deny")));
        row!(rows, OK, errno(fs::write("/proc/self/gid_map", "0 0 1")));
        rows.finish();
    });
}
