//! What mounts cannot do, whoever makes them: keep a name from its owner, show what is covered, lead out of a mount, or hold each other.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::{NEWNS, become_root_of_own, errno, unshare};
use roundtable_programs::procfs::Meminfo;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::{Errno, row, tests};

tests! { names_with_mounts_of_others, namespaces_in_a_row: 60, pivoting_onto_itself, a_view_of_oneself, roots_by_descriptor,
what_locked_mounts_cover, out_of_a_mount, moved_away, first_and_last_names, programs_of_a_group, on_what_is_left_out }

fn mount(source: &str, at: &str, kind: &str, flags: u64) -> Answer {
    mount_with(source, at, kind, flags, "")
}

fn mount_with(source: &str, at: &str, kind: &str, flags: u64, options: &str) -> Answer {
    let [source, at, kind, options] = [source, at, kind, options].map(c_string);
    let options = options.as_ptr().cast();
    // SAFETY: all are NUL-terminated and live through the call.
    check(unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, options) })
}

fn unmount(path: &str, flags: i32) -> Answer {
    // SAFETY: NUL-terminated.
    check(unsafe { libc::umount2(c_string(path).as_ptr(), flags) })
}

/// A mount namespace of one's own, whose changes nobody else sees.
fn private_mounts() {
    unshare(NEWNS).unwrap();
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE).unwrap();
}

/// A directory of a subtest's own.
fn directory(name: &str) -> String {
    let path = format!("/tmp/mount-bounds-{name}");
    fs::create_dir_all(&path).unwrap();
    path
}

fn open_at(directory: &Fd, path: &str) -> Answer {
    // SAFETY: NUL-terminated; the descriptor that comes is closed at once.
    let got = check(unsafe { libc::openat(directory.raw(), c_string(path).as_ptr(), libc::O_RDONLY) });
    got.map(|fd| drop(Fd::own(fd))).map(|()| 0)
}

/// Runs `inside` in a user and mount namespace of its own, `outside` as soon as it is through, and lets it go.
fn beside(inside: impl FnOnce(), outside: impl FnOnce()) {
    let (told, tell) = pipe(0);
    let (asked, ask) = pipe(0);
    let child = fork(|| {
        become_root_of_own(NEWNS);
        inside();
        tell.write(b"x").unwrap();
        asked.read(&mut [0; 1]).unwrap();
    });
    assert_eq!(told.read(&mut [0; 1]), Ok(1));
    outside();
    ask.write(b"x").unwrap();
    child.ok();
}

/// Who may look at a name may mount on it in a namespace of its own; the name stays its owner's.
fn names_with_mounts_of_others() {
    let at = directory("names");
    let path = |name: &str| format!("{at}/{name}");
    for name in ["unlinked", "replaced", "moved", "own", "source"] {
        fs::write(path(name), name).unwrap();
    }
    for name in ["removed", "moved-directory"] {
        fs::create_dir(path(name)).unwrap();
    }
    beside(
        || {
            for name in ["unlinked", "replaced", "moved"] {
                mount(&path("source"), &path(name), "", libc::MS_BIND).unwrap();
            }
            for name in ["removed", "moved-directory"] {
                mount("none", &path(name), "tmpfs", 0).unwrap();
                // And one on that.
                mount("none", &path(name), "tmpfs", 0).unwrap();
            }
        },
        || {
            let mut rows = Rows::default();
            row!(rows, OK, errno(fs::remove_file(path("unlinked"))));
            row!(rows, OK, errno(fs::remove_dir(path("removed"))));
            row!(rows, OK, errno(fs::rename(path("source"), path("replaced"))));
            row!(rows, OK, errno(fs::rename(path("moved"), path("moved-2"))));
            row!(rows, OK, errno(fs::rename(path("moved-directory"), path("moved-directory-2"))));
            rows.finish();
            assert_eq!(fs::read_to_string(path("replaced")).unwrap(), "source");
            assert_eq!(fs::read_to_string(path("moved-2")).unwrap(), "moved");
            // Those of one's own namespace do keep it.
            in_child(|| {
                private_mounts();
                mount(&path("replaced"), &path("own"), "", libc::MS_BIND).unwrap();
                let mut rows = Rows::default();
                row!(rows, EBUSY, errno(fs::remove_file(path("own"))));
                row!(rows, EBUSY, errno(fs::rename(path("own"), path("own-2"))));
                row!(rows, EBUSY, errno(fs::rename(path("replaced"), path("own"))));
                rows.finish();
            });
        },
    );
    fs::remove_dir_all(&at).unwrap();
}

/// Makes a namespace, and has it keep the next one by a file that is mounted in it, and so on.
fn level(left: usize, file: &str, ready: &Fd) {
    unshare(NEWNS).unwrap();
    if left > 0 {
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            level(left - 1, file, &tell);
            asked.read(&mut [0; 1]).unwrap();
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        mount(&format!("/proc/{}/ns/mnt", child.pid), file, "", libc::MS_BIND).unwrap();
        ask.write(b"x").unwrap();
        child.ok();
    }
    ready.write(b"x").unwrap();
}

/// Namespaces that keep each other in a row all go with the first.
fn namespaces_in_a_row() {
    const LEVELS: usize = 150;
    let file = "/tmp/mount-bounds-row";
    fs::write(file, "").unwrap();
    in_child(|| {
        become_root_of_own(NEWNS);
        let (_told, tell) = pipe(0);
        level(LEVELS, file, &tell);
    });
    fs::remove_file(file).unwrap();
}

fn pivot_root(new: &str, old: &str) -> Answer {
    let [new, old] = [new, old].map(c_string);
    call(libc::SYS_pivot_root, [new.as_ptr() as usize, old.as_ptr() as usize, 0, 0, 0, 0])
}

/// A new root that the old one is mounted on is out of sight.
fn pivoting_onto_itself() {
    let at = directory("pivot");
    in_child(|| {
        become_root_of_own(NEWNS);
        mount("none", &at, "tmpfs", 0).unwrap();
        for name in ["a", "b"] {
            fs::create_dir(format!("{at}/{name}")).unwrap();
        }
        mount("none", &format!("{at}/a"), "tmpfs", 0).unwrap();
        let outer = Fd::open(&at, libc::O_PATH | libc::O_DIRECTORY).unwrap();
        std::os::unix::fs::chroot(format!("{at}/a")).unwrap();
        // SAFETY: takes an integer.
        check(unsafe { libc::fchdir(outer.raw()) }).unwrap();
        assert_eq!(pivot_root(".", "b"), Err(Errno::EINVAL));
        assert!(fs::metadata("b").is_ok());
    });
    fs::remove_dir(&at).unwrap();
}

/// A namespace is not put into itself, whichever way.
fn a_view_of_oneself() {
    const CLONE: usize = 1;
    const EMPTY_PATH: usize = 4;
    const HERE: usize = libc::AT_FDCWD as usize;
    let file = "/tmp/mount-bounds-self";
    fs::write(file, "").unwrap();
    in_child(|| {
        become_root_of_own(NEWNS);
        let (own, to, empty) = (c_string("/proc/self/ns/mnt"), c_string(file), c_string(""));
        let tree = call(libc::SYS_open_tree, [HERE, own.as_ptr() as usize, CLONE, 0, 0, 0]);
        let tree = Fd::own(tree.expect("open_tree"));
        let arguments =
            [tree.raw() as usize, empty.as_ptr() as usize, HERE, to.as_ptr() as usize, EMPTY_PATH, 0];
        let mut rows = Rows::default();
        row!(rows, ELOOP, call(libc::SYS_move_mount, arguments));
        row!(rows, EINVAL, mount("/proc/self/ns/mnt", file, "", libc::MS_BIND));
        rows.finish();
    });
    fs::remove_file(file).unwrap();
}

fn openat2(directory: i32, path: &str, flags: i32, resolve: u64) -> Answer {
    let (path, how) = (c_string(path), [flags as u64, 0, resolve]);
    let arguments = [directory as usize, path.as_ptr() as usize, how.as_ptr() as usize, 24, 0, 0];
    call(libc::SYS_openat2, arguments).map(|fd| drop(Fd::own(fd))).map(|()| 0)
}

/// openat2(2) with a descriptor for the root: absolute paths begin there.
fn roots_by_descriptor() {
    let at = directory("root");
    fs::create_dir_all(format!("{at}/etc")).unwrap();
    fs::write(format!("{at}/etc/only-here"), "").unwrap();
    fs::write("/tmp/mount-bounds-outside", "").unwrap();
    std::os::unix::fs::symlink("/etc/only-here", format!("{at}/link")).unwrap();
    std::os::unix::fs::symlink("/proc/self/exe", format!("{at}/outward")).unwrap();
    let root = Fd::open(&at, libc::O_PATH | libc::O_DIRECTORY).unwrap();
    let open = |path: &str| openat2(root.raw(), path, libc::O_RDONLY, libc::RESOLVE_IN_ROOT);
    let mut rows = Rows::default();
    row!(rows, OK, open("/etc/only-here"));
    row!(rows, OK, open("etc/only-here"));
    row!(rows, OK, open("/../../etc/only-here"));
    row!(rows, OK, open("link"));
    row!(rows, ENOENT, open("/tmp/mount-bounds-outside"));
    row!(rows, ENOENT, open("outward"));
    row!(rows, EBADF, openat2(-1, "/etc/only-here", libc::O_RDONLY, libc::RESOLVE_IN_ROOT));
    row!(rows, OK, openat2(-1, "/tmp/mount-bounds-outside", libc::O_RDONLY, 0));
    // Another mount is not to be crossed into by links either.
    let no_crossing = |path: &str| openat2(root.raw(), path, libc::O_RDONLY, libc::RESOLVE_NO_XDEV);
    row!(rows, EXDEV, no_crossing("outward"));
    let proc = Fd::open("/proc/self", libc::O_PATH | libc::O_DIRECTORY).unwrap();
    row!(rows, EXDEV, openat2(proc.raw(), "exe", libc::O_RDONLY, libc::RESOLVE_NO_XDEV));
    rows.finish();
    fs::remove_dir_all(&at).unwrap();
    fs::remove_file("/tmp/mount-bounds-outside").unwrap();
}

/// What an administrator has mounted over stays covered for a user namespace, also for who is still in a mount that is gone.
fn what_locked_mounts_cover() {
    let at = directory("locked");
    let twice = directory("twice");
    in_child(|| {
        private_mounts();
        mount("none", &at, "tmpfs", 0).unwrap();
        fs::create_dir_all(format!("{at}/covered")).unwrap();
        fs::write(format!("{at}/covered/secret"), "").unwrap();
        mount("none", &format!("{at}/covered"), "tmpfs", 0).unwrap();
        fs::create_dir(format!("{at}/covered/top")).unwrap();
        mount("none", &format!("{at}/covered/top"), "tmpfs", 0).unwrap();
        fs::write(format!("{at}/covered/top/seen"), "").unwrap();
        in_child(|| {
            become_root_of_own(NEWNS);
            let mut rows = Rows::default();
            row!(rows, EINVAL, unmount(&format!("{at}/covered"), libc::MNT_DETACH));
            // Another view of all of it, that goes while it is open.
            mount(&at, &twice, "", libc::MS_BIND | libc::MS_REC).unwrap();
            let view = Fd::open(&twice, libc::O_PATH | libc::O_DIRECTORY).unwrap();
            row!(rows, OK, unmount(&twice, libc::MNT_DETACH));
            row!(rows, ENOENT, open_at(&view, "covered/secret"));
            row!(rows, OK, open_at(&view, "covered/top/seen"));
            row!(rows, OK, open_at(&view, "covered/top/../top/seen"));
            let inner = format!("/proc/self/fd/{}/covered/top", view.raw());
            let inner = Fd::open(&inner, libc::O_PATH | libc::O_DIRECTORY).unwrap();
            row!(rows, OK, open_at(&inner, "../../covered/top/seen"));
            drop(view);
            row!(rows, OK, open_at(&inner, "seen"));
            // The namespace itself goes, and what was opened in it stays.
            let old = Fd::open(&at, libc::O_PATH | libc::O_DIRECTORY).unwrap();
            unshare(NEWNS).unwrap();
            row!(rows, ENOENT, open_at(&old, "covered/secret"));
            row!(rows, OK, open_at(&old, "covered/top/seen"));
            rows.finish();
        });
    });
    fs::remove_dir(&at).unwrap();
    fs::remove_dir(&twice).unwrap();
}

/// `..` does not lead out of a mount from a directory that was moved out of what it shows.
fn out_of_a_mount() {
    let at = directory("out");
    in_child(|| {
        private_mounts();
        for name in ["x", "x/d", "x/d/e", "shown", "y"] {
            fs::create_dir_all(format!("{at}/{name}")).unwrap();
        }
        mount(&format!("{at}/x"), &format!("{at}/shown"), "", libc::MS_BIND).unwrap();
        std::env::set_current_dir(format!("{at}/shown/d/e")).unwrap();
        let mut rows = Rows::default();
        row!(rows, OK, errno(fs::metadata("../..")));
        fs::rename(format!("{at}/x/d"), format!("{at}/y/d")).unwrap();
        row!(rows, ENOENT, errno(fs::metadata("..")));
        row!(rows, ENOENT, errno(fs::metadata("../..")));
        row!(rows, OK, errno(fs::metadata(".")));
        rows.finish();
        fs::rename(format!("{at}/y/d"), format!("{at}/x/d")).unwrap();
        assert!(fs::metadata("../..").is_ok());
    });
    fs::remove_dir_all(&at).unwrap();
}

/// A walk that is to stay below a place either stays or says that something moved.
fn moved_away() {
    let at = directory("beneath");
    for name in ["base/a/b", "other"] {
        fs::create_dir_all(format!("{at}/{name}")).unwrap();
    }
    fs::write(format!("{at}/marker"), "").unwrap();
    let mover = {
        let at = at.clone();
        fork(move || {
            loop {
                let _ = fs::rename(format!("{at}/base/a"), format!("{at}/other/a"));
                let _ = fs::rename(format!("{at}/other/a"), format!("{at}/base/a"));
            }
        })
    };
    let base = Fd::open(&format!("{at}/base"), libc::O_PATH | libc::O_DIRECTORY).unwrap();
    for _ in 0..3000 {
        for resolve in [libc::RESOLVE_BENEATH, libc::RESOLVE_IN_ROOT] {
            let got = openat2(base.raw(), "a/b/../../marker", libc::O_RDONLY, resolve);
            assert!(matches!(got, Err(Errno::EAGAIN | Errno::ENOENT | Errno::EXDEV)), "{got:?}");
        }
    }
    mover.kill(libc::SIGKILL);
    mover.wait();
    fs::remove_dir_all(&at).unwrap();
}

fn free_inodes(path: &str) -> u64 {
    // SAFETY: zeroes are a value, and both live through the call.
    unsafe {
        let mut got: libc::statfs = std::mem::zeroed();
        check(libc::statfs(c_string(path).as_ptr(), &mut got)).unwrap();
        got.f_ffree
    }
}

/// One link(2) comes as the last name goes: there is a file or none, and it is paid for once.
fn first_and_last_names() {
    let at = directory("links");
    in_child(|| {
        private_mounts();
        mount_with("none", &at, "tmpfs", 0, "nr_inodes=100").unwrap();
        for name in ["a", "b"] {
            fs::create_dir(format!("{at}/{name}")).unwrap();
        }
        let before = free_inodes(&at);
        let linker = fork(|| {
            loop {
                let _ = fs::hard_link(format!("{at}/a/file"), format!("{at}/b/file"));
                let _ = fs::remove_file(format!("{at}/b/file"));
            }
        });
        for _ in 0..3000 {
            fs::write(format!("{at}/a/file"), "").unwrap();
            fs::remove_file(format!("{at}/a/file")).unwrap();
        }
        linker.kill(libc::SIGKILL);
        linker.wait();
        let _ = fs::remove_file(format!("{at}/b/file"));
        assert_eq!(free_inodes(&at), before);
    });
    fs::remove_dir(&at).unwrap();
}

/// Nobody makes a program with the rights of a group by the group that its directory gives it.
fn programs_of_a_group() {
    let at = directory("group");
    fs::set_permissions(&at, fs::Permissions::from_mode(0o2777)).unwrap();
    std::os::unix::fs::chown(&at, None, Some(7)).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o2777)).unwrap();
    let mode_of_new = |name: &str, mode: u32| {
        let path = format!("{at}/{name}");
        let open = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).unwrap();
        let mode = open.metadata().unwrap().permissions().mode() & 0o7777;
        fs::remove_file(path).unwrap();
        mode
    };
    in_child(|| {
        // SAFETY: take integers.
        unsafe {
            libc::umask(0);
            check(libc::setgroups(0, std::ptr::null())).unwrap();
            check(libc::setgid(1000)).unwrap();
        }
        assert_eq!(mode_of_new("root", 0o2775), 0o2775);
        // SAFETY: takes an integer.
        unsafe { check(libc::setuid(1000)).unwrap() };
        assert_eq!(mode_of_new("program", 0o2775), 0o775);
        assert_eq!(mode_of_new("locked", 0o2765), 0o2765, "without execution the bit means something else");
    });
    fs::remove_dir(&at).unwrap();
}

/// A copy of a tree has no file that stands for a newer namespace, nor what is mounted on that: nothing of the two stays for ever.
fn on_what_is_left_out() {
    const FILES: usize = 100;
    const SIZE: usize = 16 << 20;
    let at = directory("left-out");
    let path = |index: usize| format!("{at}/{index}");
    let before = Meminfo::read().get("Shmem");
    in_child(|| {
        become_root_of_own(NEWNS);
        mount("none", &at, "tmpfs", 0).unwrap();
        let big = format!("{at}/big");
        fs::write(&big, vec![1; SIZE]).unwrap();
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let newer = fork(|| {
            unshare(NEWNS).unwrap();
            tell.write(b"x").unwrap();
            asked.read(&mut [0; 1]).unwrap();
        });
        assert_eq!(told.read(&mut [0; 1]), Ok(1));
        for index in 0..FILES {
            fs::write(path(index), "").unwrap();
            mount(&format!("/proc/{}/ns/mnt", newer.pid), &path(index), "", libc::MS_BIND).unwrap();
        }
        mount(&big, &path(0), "", libc::MS_BIND).unwrap();
        in_child(|| {
            unshare(NEWNS).unwrap();
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert_eq!(mounts.lines().filter(|line| line.contains(&format!("{at}/"))).count(), 0, "{mounts}");
        });
        ask.write(b"x").unwrap();
        newer.ok();
    });
    let after = Meminfo::read().get("Shmem");
    assert!(after < before + (SIZE / 2 / 1024) as u64, "{before} kB of shared memory before, {after} behind");
    fs::remove_dir(&at).unwrap();
}
