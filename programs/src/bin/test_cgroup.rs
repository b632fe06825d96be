//! Control groups: the files of the hierarchy, who is where, delegation, the controller of threads.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use libc::SYS_clone3;
use roundtable_programs::cgroup::{self, Group, ROOT};
use roundtable_programs::child::{Child, End, fork, fork_code, in_child};
use roundtable_programs::file::Fd;
use roundtable_programs::inet::poll;
use roundtable_programs::kinds::call;
use roundtable_programs::rows::Rows;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{c_string, check, is_linux, pid, settles};
use roundtable_programs::{Errno, row, tests};

tests! { the_root, a_group_and_its_files, names_and_errors, members_and_their_end, groups_in_use_stay, limits_of_the_tree,
controllers_go_down_the_tree, processes_are_below, threads_may_be_beside, threads_follow_their_process, delegation,
born_into_a_group, killed_together, events_by_poll_and_inotify, the_dead_keep_their_path, pids_are_limited,
pids_are_counted_under_load: 60, moved_pids_are_counted_where_they_are, removal_against_a_newcomer: 60 }

/// A row of a call whose value does not matter.
macro_rules! answers {
    ($rows:ident, $want:ident, $call:expr) => {
        row!($rows, $want, $call.map(|_| 0usize))
    };
}

/// A child that waits to be killed.
fn waiting() -> Child {
    fork(|| {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    })
}

/// A waiting child in a group.
fn member(group: &Group) -> Child {
    let child = waiting();
    group.attach(child.pid).expect("attach");
    child
}

fn where_is(pid: i32) -> String {
    let text = cgroup::read(&format!("/proc/{pid}/cgroup")).expect("/proc/PID/cgroup");
    text.lines()
        .find(|line| line.starts_with("0::"))
        .map(|line| format!("{line}\n"))
        .expect("a line of version 2")
}

fn pids(group: &Group) -> Vec<i32> {
    let text = group.read("cgroup.procs");
    let mut pids: Vec<i32> = text.lines().map(|line| line.parse().expect("a number")).collect();
    pids.sort_unstable();
    pids
}

fn the_root() {
    cgroup::mount();
    let root = |name: &str| cgroup::read(&format!("{ROOT}/{name}"));
    assert!(root("cgroup.procs").unwrap().lines().any(|line| line == pid().to_string()));
    let controllers = root("cgroup.controllers").unwrap();
    for name in ["hugetlb", "pids"] {
        assert!(controllers.split_whitespace().any(|controller| controller == name), "{controllers}");
        let all = cgroup::read("/proc/cgroups").unwrap();
        let line =
            all.lines().find(|line| line.split('\t').next() == Some(name)).expect("a line of /proc/cgroups");
        let fields: Vec<_> = line.split('\t').collect();
        assert_eq!((fields[1], fields[3]), ("0", "1"), "{line}");
    }
    assert_eq!(where_is(pid()), "0::/\n");
    for name in ["cgroup.type", "cgroup.events", "cgroup.kill", "pids.max", "pids.current", "hugetlb.2MB.max"]
    {
        assert_eq!(root(name), Err(Errno::ENOENT), "{name}");
    }
    assert_eq!(root("cgroup.max.depth").unwrap(), "max\n");
    assert_eq!(root("cgroup.max.descendants").unwrap(), "max\n");
    assert!(root("cgroup.stat").unwrap().starts_with("nr_descendants "));
    let path = c_string(ROOT);
    // SAFETY: the path is NUL-terminated; a statfs of zeros is valid, and the call fills it.
    let magic = unsafe {
        let mut statfs: libc::statfs = std::mem::zeroed();
        check(libc::statfs(path.as_ptr(), &mut statfs)).expect("statfs");
        statfs.f_type
    };
    assert_eq!(magic, 0x6367_7270);
    assert!(cgroup::read("/proc/filesystems").unwrap().contains("nodev\tcgroup2\n"));
}

fn a_group_and_its_files() {
    let group = Group::new("");
    assert_eq!(group.read("cgroup.procs"), "");
    assert_eq!(group.read("cgroup.threads"), "");
    assert_eq!(group.read("cgroup.type"), "domain\n");
    assert_eq!(group.read("cgroup.subtree_control"), "");
    assert_eq!(group.value("cgroup.events", "populated"), 0);
    assert_eq!(group.read("cgroup.max.depth"), "max\n");
    assert_eq!(group.value("cgroup.stat", "nr_descendants"), 0);
    let mode = |name: &str| fs::metadata(group.file(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("cgroup.procs"), mode("cgroup.controllers"), mode("cgroup.kill")),
        (0o644, 0o444, 0o200)
    );
    assert_eq!(fs::metadata(&group.path).unwrap().permissions().mode() & 0o7777, 0o755);
    let names: Vec<String> = fs::read_dir(&group.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in [
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.controllers",
        "cgroup.subtree_control",
        "cgroup.events",
        "cgroup.type",
        "cgroup.stat",
        "cgroup.max.depth",
        "cgroup.max.descendants",
        "cgroup.kill",
    ] {
        assert!(names.iter().any(|listed| listed == name), "{name} of {names:?}");
    }
    let child = group.child("below");
    assert!(fs::read_dir(&group.path).unwrap().any(|entry| entry.unwrap().file_name() == "below"));
    assert_eq!(group.value("cgroup.stat", "nr_descendants"), 1);
    assert_eq!(child.value("cgroup.stat", "nr_descendants"), 0);
    child.remove().unwrap();
    assert_eq!(group.value("cgroup.stat", "nr_descendants"), 0);
}

fn names_and_errors() {
    let mut rows = Rows::default();
    let group = Group::new("");
    let file = |name: &str| cgroup::errno(fs::File::create(group.file(name)).map(drop));
    answers!(rows, EACCES, file("new"));
    answers!(rows, EPERM, cgroup::errno(fs::remove_file(group.file("cgroup.procs"))));
    answers!(rows, EEXIST, group.try_child("cgroup.procs"));
    answers!(rows, EINVAL, group.try_child("a\nb"));
    answers!(rows, EINVAL, group.write("cgroup.procs", "x"));
    answers!(rows, EINVAL, group.write("cgroup.procs", "-1"));
    answers!(rows, ESRCH, group.write("cgroup.procs", "4194000"));
    answers!(rows, EINVAL, group.write("cgroup.subtree_control", "+nothing"));
    answers!(rows, EINVAL, group.write("cgroup.subtree_control", "pids"));
    answers!(rows, ERANGE, group.write("cgroup.kill", "2"));
    answers!(rows, EINVAL, group.write("cgroup.kill", "x"));
    answers!(rows, EINVAL, group.try_read("cgroup.kill"));
    answers!(rows, ERANGE, group.write("cgroup.max.depth", "-1"));
    answers!(rows, EINVAL, group.write("cgroup.max.depth", "x"));
    answers!(rows, EBUSY, cgroup::errno(fs::remove_dir(ROOT)));
    let (old, new) = (group.child("old"), group.file("new"));
    answers!(rows, EPERM, cgroup::errno(fs::rename(&old.path, &new)));
    let open = fs::File::open(group.child("gone").file("cgroup.procs")).unwrap();
    answers!(rows, ENODEV, cgroup::errno(std::io::read_to_string(&open)));
    rows.finish();
}

fn members_and_their_end() {
    let (group, other) = (Group::new(""), Group::new(""));
    let (a, b) = (member(&group), member(&group));
    let mut expected = vec![a.pid, b.pid];
    expected.sort_unstable();
    assert_eq!(pids(&group), expected);
    assert_eq!(group.value("cgroup.events", "populated"), 1);
    assert_eq!(where_is(a.pid), group.line());
    assert_eq!(where_is(pid()), "0::/\n");
    other.attach(b.pid).unwrap();
    assert_eq!((pids(&group), pids(&other)), (vec![a.pid], vec![b.pid]));
    // A zombie is no member, and does not keep the group.
    a.kill(libc::SIGKILL);
    assert!(settles(Duration::from_secs(10), || group.value("cgroup.events", "populated") == 0));
    assert_eq!(pids(&group), []);
    group.attach(a.pid).unwrap();
    assert_eq!(pids(&group), []);
    group.remove().unwrap();
    assert_eq!(a.wait(), End::Signal(libc::SIGKILL));
    b.end();
    assert_eq!(other.value("cgroup.events", "populated"), 0);
    // Children are where their parent is.
    let group = Group::new("");
    let child = fork_code(|| {
        group.attach(0).unwrap();
        in_child(|| assert_eq!(where_is(pid()), group.line()));
        cgroup::write(&format!("{ROOT}/cgroup.procs"), 0).unwrap();
        i32::from(where_is(pid()) != "0::/\n")
    });
    child.ok();
}

fn groups_in_use_stay() {
    let group = Group::new("");
    let child = group.child("below");
    assert_eq!(group.remove(), Err(Errno::EBUSY));
    let inside = member(&child);
    assert_eq!(child.remove(), Err(Errno::EBUSY));
    assert_eq!((group.value("cgroup.events", "populated"), pids(&group)), (1, vec![]));
    inside.end();
    assert_eq!(group.value("cgroup.events", "populated"), 0);
    child.remove().unwrap();
    assert_eq!(cgroup::read(&child.path), Err(Errno::ENOENT));
    // Who stands in it finds nothing there any more.
    let place = Fd::open(&group.path, libc::O_DIRECTORY).unwrap();
    group.remove().unwrap();
    let name = c_string("new");
    // SAFETY: the name is NUL-terminated.
    let made = check(unsafe { libc::mkdirat(place.raw(), name.as_ptr(), 0o755) });
    assert!(matches!(made, Err(Errno::ENOENT | Errno::ENODEV)), "{made:?}");
}

fn limits_of_the_tree() {
    let group = Group::new("");
    group.write("cgroup.max.depth", 1).unwrap();
    let child = group.child("a");
    assert_eq!(child.try_child("b").err(), Some(Errno::EAGAIN));
    group.write("cgroup.max.depth", "max").unwrap();
    group.write("cgroup.max.descendants", 2).unwrap();
    assert_eq!(group.read("cgroup.max.descendants"), "2\n");
    let below = child.child("b");
    assert_eq!(group.try_child("c").err(), Some(Errno::EAGAIN));
    below.remove().unwrap();
    group.child("c").remove().unwrap();
    child.remove().unwrap();
}

fn controllers_go_down_the_tree() {
    let mut rows = Rows::default();
    let group = Group::new("+hugetlb +pids");
    let listed =
        |text: String| text.split_whitespace().filter(|name| ["hugetlb", "pids"].contains(name)).count();
    assert_eq!(listed(group.read("cgroup.controllers")), 2);
    let child = group.child("a");
    assert_eq!(child.read("cgroup.controllers"), "");
    assert_eq!(child.try_read("pids.max"), Err(Errno::ENOENT));
    answers!(rows, ENOENT, child.write("cgroup.subtree_control", "+pids"));
    group.write("cgroup.subtree_control", "+pids +hugetlb").unwrap();
    assert_eq!(group.read("cgroup.subtree_control"), "hugetlb pids\n");
    assert_eq!(child.read("cgroup.controllers"), "hugetlb pids\n");
    assert_eq!(child.read("pids.max"), "max\n");
    assert_eq!(child.read("hugetlb.2MB.max"), "max\n");
    child.write("cgroup.subtree_control", "+pids").unwrap();
    answers!(rows, EBUSY, group.write("cgroup.subtree_control", "-pids"));
    let below = child.child("b");
    assert_eq!(below.read("cgroup.controllers"), "pids\n");
    assert_eq!(below.try_read("hugetlb.2MB.max"), Err(Errno::ENOENT));
    let open = fs::File::open(child.file("hugetlb.2MB.max")).unwrap();
    group.write("cgroup.subtree_control", "-hugetlb").unwrap();
    assert_eq!(child.try_read("hugetlb.2MB.max"), Err(Errno::ENOENT));
    answers!(rows, ENODEV, cgroup::errno(std::io::read_to_string(&open)));
    assert_eq!(group.read("cgroup.subtree_control"), "pids\n");
    // A word that is turned on and off in one line: the last one counts.
    group.write("cgroup.subtree_control", "+hugetlb -hugetlb").unwrap();
    assert_eq!(group.read("cgroup.subtree_control"), "pids\n");
    below.remove().unwrap();
    child.remove().unwrap();
    rows.finish();
}

fn processes_are_below() {
    let mut rows = Rows::default();
    let group = Group::new("+hugetlb");
    let inside = member(&group);
    answers!(rows, EBUSY, group.write("cgroup.subtree_control", "+hugetlb"));
    inside.end();
    group.write("cgroup.subtree_control", "+hugetlb").unwrap();
    let child = waiting();
    answers!(rows, EBUSY, group.attach(child.pid));
    assert_eq!(where_is(child.pid), "0::/\n");
    let below = group.child("a");
    below.attach(child.pid).unwrap();
    child.end();
    below.remove().unwrap();
    rows.finish();
}

fn threads_may_be_beside() {
    let mut rows = Rows::default();
    let group = Group::new("+hugetlb +pids");
    let inside = member(&group);
    group.write("cgroup.subtree_control", "+pids").unwrap();
    assert_eq!(group.read("cgroup.type"), "domain threaded\n");
    answers!(rows, EOPNOTSUPP, group.write("cgroup.subtree_control", "+hugetlb"));
    let below = group.child("a");
    assert_eq!(below.read("cgroup.type"), "domain invalid\n");
    answers!(rows, EOPNOTSUPP, below.attach(inside.pid));
    assert_eq!(below.read("cgroup.procs"), "");
    inside.end();
    assert_eq!(
        (group.read("cgroup.type"), below.read("cgroup.type")),
        ("domain\n".into(), "domain\n".into())
    );
    let lower = member(&below);
    let child = waiting();
    answers!(rows, EBUSY, group.attach(child.pid));
    child.end();
    lower.end();
    below.remove().unwrap();
    rows.finish();
}

fn threads_follow_their_process() {
    let group = Group::new("");
    let child = fork(|| {
        let others: Vec<_> =
            (0..3).map(|_| std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1000)))).collect();
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
        drop(others);
    });
    let tasks = || fs::read_dir(format!("/proc/{}/task", child.pid)).unwrap().count();
    assert!(settles(Duration::from_secs(10), || tasks() == 4));
    group.attach(child.pid).unwrap();
    assert_eq!(pids(&group), [child.pid]);
    assert_eq!(group.read("cgroup.threads").lines().count(), 4);
    // A thread alone does not leave a group of processes; to say where it is already changes nothing.
    let thread = group.read("cgroup.threads").lines().last().unwrap().to_string();
    assert_eq!(group.write("cgroup.threads", &thread), Ok(()));
    let other = Group::new("");
    assert_eq!(other.write("cgroup.threads", &thread), Err(Errno::EOPNOTSUPP));
    // Any thread's number names the process.
    other.write("cgroup.procs", &thread).unwrap();
    assert_eq!((pids(&group), pids(&other)), (vec![], vec![child.pid]));
    child.end();
}

/// Runs as user and group 1000.
fn as_user(run: impl FnOnce()) {
    in_child(|| {
        // SAFETY: takes integers.
        unsafe {
            check(libc::setgroups(0, std::ptr::null())).unwrap();
            check(libc::setgid(1000)).unwrap();
            check(libc::setuid(1000)).unwrap();
        }
        run();
    });
}

fn delegation() {
    let group = Group::new("+pids");
    as_user(|| {
        assert_eq!(group.try_child("a").err(), Some(Errno::EACCES));
        assert_eq!(group.attach(0), Err(Errno::EACCES));
    });
    for path in [group.path.clone(), group.file("cgroup.procs"), group.file("cgroup.subtree_control")] {
        std::os::unix::fs::chown(path, Some(1000), Some(1000)).unwrap();
    }
    let (child, stranger) = (waiting(), waiting());
    as_user(|| {
        let (a, b) = (group.child("a"), group.child("b"));
        let owner = fs::metadata(a.file("cgroup.procs")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (1000, 1000));
        group.write("cgroup.subtree_control", "+pids").unwrap();
        a.write("pids.max", 5).unwrap();
        // The delegated group's own limit stays its giver's.
        assert_eq!(group.write("pids.max", 5), Err(Errno::EACCES));
        // From outside nothing comes in: the nearest common group is not theirs.
        assert_eq!(a.attach(0), Err(Errno::EACCES));
        assert_eq!(a.attach(stranger.pid), Err(Errno::EACCES));
        b.remove().unwrap();
        std::mem::forget(a);
    });
    let inside = format!("{}/a", group.path);
    cgroup::write(&format!("{inside}/cgroup.procs"), child.pid).unwrap();
    as_user(|| {
        let b = group.child("b");
        // Within what is theirs they move whom they like.
        b.attach(child.pid).unwrap();
        assert_eq!(pids(&b), [child.pid]);
        assert_eq!(cgroup::write(&format!("{ROOT}/cgroup.procs"), child.pid), Err(Errno::EACCES));
        cgroup::write(&format!("{inside}/cgroup.procs"), child.pid).unwrap();
        b.remove().unwrap();
    });
    // A descriptor that root has opened is root's, whoever writes.
    let open = fs::OpenOptions::new().write(true).open(format!("{inside}/cgroup.procs")).unwrap();
    as_user(|| {
        use std::io::Write;
        cgroup::errno((&open).write_all(b"0")).unwrap();
        assert!(where_is(pid()).ends_with("/a\n"));
    });
    child.end();
    stranger.end();
    fs::remove_dir(inside).unwrap();
}

/// `struct clone_args` with a group.
fn clone_into(group: i32, flags: u64, size: usize) -> Result<usize, Errno> {
    let mut arguments = [0u64; 11];
    arguments[0] = 0x2_0000_0000 | flags;
    arguments[4] = libc::SIGCHLD as u64;
    arguments[10] = group as u64;
    let result = call(SYS_clone3, [arguments.as_ptr() as usize, size, 0, 0, 0, 0]);
    if result == Ok(0) {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    result
}

fn born_into_a_group() {
    let mut rows = Rows::default();
    let group = Group::new("");
    let place = Fd::open(&group.path, libc::O_PATH | libc::O_DIRECTORY).unwrap();
    let child = clone_into(place.raw(), 0, 88).expect("clone3") as i32;
    assert_eq!((where_is(child), pids(&group)), (group.line(), vec![child]));
    assert_eq!(where_is(pid()), "0::/\n");
    group.write("cgroup.kill", 1).unwrap();
    assert_eq!(roundtable_programs::child::waitpid(child, 0).unwrap().1, End::Signal(libc::SIGKILL));
    answers!(rows, EINVAL, clone_into(place.raw(), 0, 80));
    let other = Fd::open("/tmp", libc::O_DIRECTORY).unwrap();
    answers!(rows, EBADF, clone_into(other.raw(), 0, 88));
    answers!(rows, EBADF, clone_into(999, 0, 88));
    as_user(|| assert_eq!(clone_into(place.raw(), 0, 88), Err(Errno::EACCES)));
    group.remove().unwrap();
    answers!(rows, ENOENT, clone_into(place.raw(), 0, 88));
    rows.finish();
}

fn killed_together() {
    let group = Group::new("");
    let below = group.child("a");
    let bystander = waiting();
    let first: Vec<Child> = (0..5).map(|_| member(&group)).collect();
    let second: Vec<Child> = (0..5).map(|_| member(&below)).collect();
    // Some that make others all the time.
    let forking = fork(|| {
        group.attach(0).unwrap();
        loop {
            std::mem::forget(fork(|| {
                loop {
                    // SAFETY: takes nothing.
                    unsafe { libc::fork() };
                    std::thread::sleep(Duration::from_millis(20));
                }
            }));
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(settles(Duration::from_secs(10), || pids(&group).len() > 10));
    group.write("cgroup.kill", 1).unwrap();
    for child in first.into_iter().chain(second).chain([forking]) {
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    }
    assert!(settles(Duration::from_secs(20), || group.value("cgroup.events", "populated") == 0));
    assert_eq!(where_is(bystander.pid), "0::/\n");
    bystander.end();
    below.remove().unwrap();
}

fn events_by_poll_and_inotify() {
    let group = Group::new("");
    let below = group.child("a");
    let open = fs::File::open(group.file("cgroup.events")).unwrap();
    std::io::read_to_string(&open).unwrap();
    assert_eq!(poll(&open, libc::POLLPRI, 0), 0);
    // SAFETY: takes integers, and a path that is NUL-terminated.
    let watches = unsafe {
        let fd = Fd::own(check(libc::inotify_init1(libc::IN_NONBLOCK)).unwrap());
        let path = c_string(&group.file("cgroup.events"));
        check(libc::inotify_add_watch(fd.raw(), path.as_ptr(), libc::IN_MODIFY)).unwrap();
        fd
    };
    let mut buffer = [0u8; 256];
    assert_eq!(watches.read(&mut buffer), Err(Errno::EAGAIN));
    let child = member(&below);
    assert_eq!(poll(&open, libc::POLLPRI, 10_000), libc::POLLPRI | libc::POLLERR);
    // Linux tells who watches a moment after who polls, from a thread of its own.
    assert_eq!(poll(&watches, libc::POLLIN, 10_000), libc::POLLIN);
    assert!(watches.read(&mut buffer).is_ok());
    let again = || {
        use std::os::unix::fs::FileExt;
        let mut text = [0; 64];
        let len = open.read_at(&mut text, 0).unwrap();
        String::from_utf8_lossy(&text[..len]).into_owned()
    };
    assert!(again().contains("populated 1"));
    assert_eq!(poll(&open, libc::POLLPRI, 0), 0);
    child.end();
    assert_eq!(poll(&open, libc::POLLPRI, 10_000), libc::POLLPRI | libc::POLLERR);
    assert!(again().contains("populated 0"));
    below.remove().unwrap();
}

fn the_dead_keep_their_path() {
    let group = Group::new("");
    let child = member(&group);
    child.kill(libc::SIGKILL);
    assert!(settles(Duration::from_secs(10), || group.value("cgroup.events", "populated") == 0));
    assert_eq!(where_is(child.pid), group.line());
    group.remove().unwrap();
    assert_eq!(where_is(child.pid), group.line().replace('\n', " (deleted)\n"));
    child.wait();
}

fn pids_are_limited() {
    let mut rows = Rows::default();
    let group = Group::new("+pids");
    group.write("cgroup.subtree_control", "+pids").unwrap();
    let (below, beside) = (group.child("a"), group.child("b"));
    answers!(rows, EINVAL, group.write("pids.max", "-1"));
    answers!(rows, EINVAL, group.write("pids.max", "x"));
    answers!(rows, EINVAL, group.write("pids.max", "99999999999"));
    assert_eq!((group.read("pids.max"), group.read("pids.events")), ("max\n".into(), "max 0\n".into()));
    group.write("pids.max", 3).unwrap();
    assert_eq!(group.read("pids.max"), "3\n");
    let other = member(&beside);
    let child = fork(|| {
        below.attach(0).unwrap();
        let one = waiting();
        assert_eq!((group.number("pids.current"), below.number("pids.current")), (3, 2));
        // SAFETY: takes nothing.
        assert_eq!(check(unsafe { libc::fork() }), Err(Errno::EAGAIN));
        assert!(std::thread::Builder::new().spawn(|| ()).is_err());
        // One that has ended counts until it was waited for.
        one.kill(libc::SIGKILL);
        assert!(settles(Duration::from_secs(10), || pids(&below).len() == 1));
        // SAFETY: takes nothing.
        assert_eq!(check(unsafe { libc::fork() }), Err(Errno::EAGAIN));
        one.wait();
        in_child(|| ());
    });
    child.ok();
    assert_eq!((group.read("pids.events"), below.read("pids.events")), ("max 3\n".into(), "max 0\n".into()));
    assert_eq!((group.number("pids.current"), below.number("pids.current")), (1, 0));
    // What is refused above was counted below for a moment.
    assert_eq!((group.number("pids.peak"), below.number("pids.peak")), (3, 3));
    // Nobody is kept out who comes from elsewhere.
    group.write("pids.max", 0).unwrap();
    let stranger = member(&below);
    assert_eq!(group.number("pids.current"), 2);
    stranger.end();
    other.end();
    assert_eq!(group.number("pids.current"), 0);
    below.remove().unwrap();
    beside.remove().unwrap();
    rows.finish();
}

fn pids_are_counted_under_load() {
    const WORKERS: usize = 8;
    const MOST: u64 = 24;
    let group = Group::new("+pids");
    group.write("cgroup.subtree_control", "+pids").unwrap();
    let below: Vec<Group> = ["a", "b"].map(|name| group.child(name)).into();
    group.write("pids.max", MOST).unwrap();
    // Linux counts who moves in both places for a moment, and so twice above them.
    let most = if is_linux() { MOST + WORKERS as u64 } else { MOST };
    let inside = Shared::new();
    let workers: Vec<Child> = (0..WORKERS)
        .map(|number| {
            let (group, below, inside) = (&group, &below, &inside);
            fork(move || {
                below[number % 2].attach(0).unwrap();
                // Who comes from outside is not kept out by a limit: nobody begins before all are in.
                inside.add(0);
                inside.wait(0, WORKERS as u32);
                for round in 0..60 {
                    // Threads, processes, and moves to the other group.
                    if round % 7 == number % 7 {
                        below[(number + round) % 2].attach(0).unwrap();
                    }
                    let threads: Vec<_> = (0..3)
                        .filter_map(|_| std::thread::Builder::new().stack_size(1 << 16).spawn(|| ()).ok())
                        .collect();
                    // SAFETY: the child ends at once.
                    let child = unsafe { libc::fork() };
                    if child == 0 {
                        // SAFETY: ends the process.
                        unsafe { libc::_exit(0) };
                    }
                    if child > 0 {
                        roundtable_programs::child::waitpid(child, 0).unwrap();
                    }
                    threads.into_iter().for_each(|thread| thread.join().unwrap());
                    assert!(group.number("pids.current") <= most);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(Child::ok);
    assert!(
        settles(Duration::from_secs(10), || group.number("pids.current") == 0),
        "{}",
        group.read("pids.current")
    );
    assert!(below.iter().all(|below| below.number("pids.current") == 0));
    below.iter().for_each(|below| below.remove().unwrap());
}

fn moved_pids_are_counted_where_they_are() {
    let group = Group::new("+pids");
    let child = fork(|| {
        // An execve(2) of a thread that is not the first: the first one's place is its.
        let thread = std::thread::spawn(|| {
            let (path, argument) = (c_string("/bin/test_cgroup"), c_string("--list"));
            let arguments = [path.as_ptr(), argument.as_ptr(), std::ptr::null()];
            // SAFETY: NUL-terminated strings, and a list that ends.
            unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
        });
        group.attach(0).unwrap();
        let _ = thread.join();
        panic!("execve");
    });
    let end = child.wait();
    assert!(matches!(end, End::Code(0)), "{end:?}");
    assert_eq!(group.number("pids.current"), 0);
    // Turning the controller on counts who is there already.
    let inside = Group::new("+pids");
    let below = inside.child("a");
    let child = member(&below);
    inside.write("cgroup.subtree_control", "+pids").unwrap();
    assert_eq!(below.number("pids.current"), 1);
    child.end();
    assert_eq!(below.number("pids.current"), 0);
    below.remove().unwrap();
}

fn removal_against_a_newcomer() {
    let group = Group::new("");
    let path = format!("{}/a", group.path);
    let child = waiting();
    let remover = fork(|| {
        loop {
            let _ = fs::remove_dir(&path);
        }
    });
    for _ in 0..500 {
        let _ = fs::create_dir(&path);
        if let Ok(place) = Fd::open(&path, libc::O_DIRECTORY)
            && let Ok(newborn) = clone_into(place.raw(), 0, 88)
        {
            // It is in a group that is there.
            assert_eq!(where_is(newborn as i32), format!("0::{}\n", &path[ROOT.len()..]));
            // SAFETY: takes integers.
            check(unsafe { libc::kill(newborn as i32, libc::SIGKILL) }).unwrap();
            roundtable_programs::child::waitpid(newborn as i32, 0).unwrap();
        }
        let _ = cgroup::write(&format!("{path}/cgroup.procs"), child.pid);
        assert!(!where_is(child.pid).contains("deleted"));
        cgroup::write(&format!("{ROOT}/cgroup.procs"), child.pid).unwrap();
    }
    remover.end();
    child.end();
    let _ = fs::remove_dir(&path);
}
