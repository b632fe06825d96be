//! Groups of mounts that show the same: joined by move_mount(2), by attributes, and very many of them.

use std::fs;

use libc::{
    MNT_DETACH, MS_BIND, MS_MOVE, MS_PRIVATE, MS_RDONLY, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE,
    SYS_mount_setattr, SYS_move_mount, SYS_open_tree,
};
use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::{NEWNS, become_root_of_own, unshare};
use roundtable_programs::propagation::{
    BOTH, NONE, SHARED, UNBINDABLE, all_at, at, become_kind, bind, fields, folders, inside, kinds_at, mount,
    shared, tmpfs, umount,
};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::c_string;
use roundtable_programs::{Errno, row, tests};

tests! { joined_groups, groups_of_others, by_attributes, large_trees: 60, many_groups: 100, groups_far_above: 60 }

fn open_tree(path: &str, flags: usize) -> Result<Fd, Errno> {
    let path = c_string(path);
    call(SYS_open_tree, [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags, 0, 0, 0]).map(Fd::own)
}

fn join(from: &str, to: &str) -> Answer {
    let here = libc::AT_FDCWD as usize;
    let (from, to) = (c_string(from), c_string(to));
    call(SYS_move_mount, [here, from.as_ptr() as usize, here, to.as_ptr() as usize, 0x100, 0])
}

fn joined_groups() {
    inside(&["b", "c", "d", "a"], || {
        let a = shared("a");
        let (b, c, d) = (at("b"), at("c"), at("d"));
        bind(&a, &b);
        become_kind(&b, MS_PRIVATE).unwrap();
        tmpfs(&c);
        bind(&format!("{a}/x"), &d);
        become_kind(&d, MS_PRIVATE).unwrap();
        let mut rows = Rows::default();
        row!(rows, EINVAL, join(&a, &c));
        row!(rows, EINVAL, join(&b, &d));
        row!(rows, EINVAL, join(&format!("{a}/x"), &b));
        row!(rows, OK, join(&a, &b));
        row!(rows, EINVAL, join(&a, &b));
        row!(rows, OK, join(&a, &d));
        rows.finish();
        tmpfs(&format!("{a}/y"));
        assert_eq!(fields(&format!("{b}/y")).shared, fields(&format!("{a}/y")).shared);
        assert_eq!(fields(&d).shared, fields(&a).shared);
        // A view that was nowhere is of the group once it is somewhere.
        const CLONE: usize = 1;
        let view = open_tree(&a, CLONE).unwrap();
        let (empty, to) = (c_string(""), c_string(&c));
        let from = [view.raw() as usize, empty.as_ptr() as usize];
        call(SYS_move_mount, [from[0], from[1], libc::AT_FDCWD as usize, to.as_ptr() as usize, 4, 0])
            .unwrap();
        assert_eq!(all_at(&c).last().map(|fields| fields.shared), Some(fields(&a).shared));
        tmpfs(&format!("{b}/x"));
        assert_eq!(fields(&format!("{c}/x")).shared, fields(&format!("{a}/x")).shared);
    });
}

/// Who is to change the groups of two mounts has to have the right in the namespaces of both.
fn groups_of_others() {
    let join = |from: (i32, &str), to: (i32, &str)| {
        let (from_path, to_path) = (c_string(from.1), c_string(to.1));
        let [from_path, to_path] = [from_path.as_ptr() as usize, to_path.as_ptr() as usize];
        // MOVE_MOUNT_SET_GROUP, F_EMPTY_PATH, T_EMPTY_PATH.
        call(SYS_move_mount, [from.0 as usize, from_path, to.0 as usize, to_path, 0x144, 0])
    };
    const HERE: i32 = libc::AT_FDCWD;
    inside(&["b", "a"], || {
        let a = shared("a");
        let b = at("b");
        bind(&a, &b);
        become_kind(&b, MS_PRIVATE).unwrap();
        let outer = [&a, &b].map(|path| Fd::open(path, libc::O_PATH | libc::O_DIRECTORY).unwrap());
        let [theirs, free] = outer.each_ref().map(Fd::raw);
        in_child(|| {
            become_root_of_own(NEWNS);
            let mut rows = Rows::default();
            // What is mounted here would come there.
            row!(rows, EPERM, join((theirs, ""), (HERE, &b)));
            become_kind(&b, MS_SHARED).unwrap();
            row!(rows, EPERM, join((HERE, &b), (free, "")));
            row!(rows, EPERM, join((theirs, ""), (free, "")));
            // Before it is asked whether they are roots.
            row!(rows, EPERM, join((HERE, &b), (free, "x")));
            rows.finish();
            tmpfs(&format!("{b}/x"));
        });
        assert_eq!((kinds_at(&b), all_at(&format!("{a}/x")).len()), (NONE, 0));
        // Whom both belong to may, from where it is: a namespace of the same user, and one of a user below.
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            become_root_of_own(NEWNS);
            tell.write(b"x").unwrap();
            asked.read(&mut [0; 1]).unwrap();
            assert_eq!((kinds_at(&b), fields(&b).shared), (SHARED, fields(&a).master));
        });
        told.read(&mut [0; 1]).unwrap();
        let inner = format!("/proc/{}/root{b}", child.pid);
        in_child(|| {
            unshare(NEWNS).unwrap();
            let mut rows = Rows::default();
            row!(rows, OK, join((theirs, ""), (HERE, &inner)));
            row!(rows, OK, join((theirs, ""), (HERE, &b)));
            row!(rows, OK, join((HERE, &a), (free, "")));
            rows.finish();
        });
        ask.write(b"x").unwrap();
        child.ok();
        assert_eq!(fields(&b).shared, fields(&a).shared);
    });
}

fn by_attributes() {
    inside(&["a", "b"], || {
        let a = at("a");
        tmpfs(&a);
        folders(&[&format!("{a}/inner")]);
        tmpfs(&format!("{a}/inner"));
        let set = |path: &str, flags: i32, propagation: u64| {
            let attributes = [0, 0, propagation, 0u64];
            let path = c_string(path);
            let given = [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags as usize];
            call(SYS_mount_setattr, [given[0], given[1], given[2], attributes.as_ptr() as usize, 32, 0])
        };
        let mut rows = Rows::default();
        row!(rows, EINVAL, set(&a, 0, MS_SHARED | MS_REC));
        row!(rows, EINVAL, set(&a, 0, MS_SHARED | MS_SLAVE));
        row!(rows, EINVAL, set(&a, 0, MS_RDONLY));
        row!(rows, EINVAL, set(&at("b"), 0, MS_SHARED));
        row!(rows, OK, set(&a, 0, MS_SHARED));
        rows.finish();
        assert_eq!((kinds_at(&a), kinds_at(&format!("{a}/inner"))), (SHARED, NONE));
        assert_eq!(set(&a, libc::AT_RECURSIVE, MS_UNBINDABLE), Ok(0));
        assert_eq!((kinds_at(&a), kinds_at(&format!("{a}/inner"))), (UNBINDABLE, UNBINDABLE));
    });
}

/// A tree with a mount on each of these folders.
fn large_tree(path: &str, mounts: usize) {
    tmpfs(path);
    for index in 0..mounts {
        let folder = format!("{path}/{index}");
        folders(&[&folder]);
        bind(&folder, &folder);
    }
}

/// How many mounts there are in this place and below.
fn mounts_below(at: &str) -> usize {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_below = |line: &&str| {
        let point = line.split(' ').nth(4).unwrap();
        point.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    text.lines().filter(is_below).count()
}

/// Trees that are too large for the kernel to look at in one go come to all peers, and become shared.
fn large_trees() {
    const MOUNTS: usize = 400;
    inside(&["a", "s", "peer"], || {
        let (a, s, peer) = (at("a"), shared("s"), at("peer"));
        large_tree(&a, MOUNTS);
        bind(&s, &peer);
        mount(&a, &format!("{s}/x"), "", MS_BIND | MS_REC).unwrap();
        assert_eq!(mounts_below(&format!("{s}/x")), MOUNTS + 1);
        assert_eq!(mounts_below(&format!("{peer}/x")), MOUNTS + 1);
        assert_eq!(kinds_at(&format!("{peer}/x/7")), SHARED);
        mount(&a, &format!("{s}/y"), "", MS_MOVE).unwrap();
        assert_eq!(mounts_below(&format!("{peer}/y")), MOUNTS + 1);
        umount(&format!("{s}/x"), MNT_DETACH).unwrap();
        assert_eq!(mounts_below(&format!("{peer}/x")), 0);
    });
    inside(&["a"], || {
        let a = at("a");
        large_tree(&a, MOUNTS);
        become_kind(&a, MS_SHARED | MS_REC).unwrap();
        assert_eq!(kinds_at(&format!("{a}/7")), SHARED);
        become_kind(&a, MS_SLAVE | MS_REC).unwrap();
        become_kind(&a, MS_PRIVATE | MS_REC).unwrap();
        assert_eq!(kinds_at(&format!("{a}/7")), NONE);
    });
}

/// Slaves of one mount, each with a group of its own, get what is mounted there.
fn many_groups() {
    const GROUPS: usize = 2_100;
    inside(&["s"], || {
        let s = shared("s");
        for index in 0..GROUPS {
            let path = at(&format!("{index}"));
            folders(&[&path]);
            bind(&s, &path);
            become_kind(&path, MS_SLAVE).unwrap();
            become_kind(&path, MS_SHARED).unwrap();
        }
        tmpfs(&format!("{s}/x"));
        let last = at(&format!("{}/x", GROUPS - 1));
        assert_eq!(kinds_at(&last), BOTH);
        assert_eq!(fields(&last).master, fields(&format!("{s}/x")).shared);
        umount(&format!("{s}/x"), 0).unwrap();
        assert_eq!(mounts_below(&last), 0);
    });
}

/// The nearest group above that can be seen is that of a mount a long way up, or none.
fn groups_far_above() {
    const GROUPS: usize = 600;
    inside(&["s"], || {
        let mut last = shared("s");
        let first = fields(&last).shared;
        for index in 0..GROUPS {
            let path = at(&format!("{index}"));
            folders(&[&path]);
            bind(&last, &path);
            become_kind(&path, MS_SLAVE).unwrap();
            become_kind(&path, MS_SHARED).unwrap();
            last = path;
        }
        in_child(|| {
            unshare(NEWNS).unwrap();
            for index in 0..GROUPS - 1 {
                umount(&at(&format!("{index}")), MNT_DETACH).unwrap();
            }
            assert_eq!(fields(&last).from, first);
            umount(&at("s"), MNT_DETACH).unwrap();
            assert_eq!(fields(&last).from, 0);
            assert_eq!(kinds_at(&last), BOTH);
        });
    });
}
