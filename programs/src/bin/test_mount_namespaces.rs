//! Mounts of other namespaces: what shows there, what stays hidden and locked.

use std::fs;

use libc::{
    MNT_DETACH, MS_BIND, MS_MOVE, MS_RDONLY, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, SYS_move_mount,
    SYS_pivot_root,
};
use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::call;
use roundtable_programs::namespaces::{NEWNS, become_root_of_own, unshare};
use roundtable_programs::propagation::{
    SLAVE, all_at, at, become_kind, bind, fields, folders, inside, kinds_at, mount, shared, tmpfs, umount,
};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{c_string, is_linux};
use roundtable_programs::{Errno, row, tests};

tests! { new_namespaces, other_users, what_was_there_before, what_locked_mounts_cover, copies_stay_locked, covered_trees, namespaces_end_meanwhile: 60, sources_far_away, roots_stay }

fn new_namespaces() {
    inside(&["a"], || {
        let a = shared("a");
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            unshare(NEWNS).unwrap();
            tell.write(b"x").unwrap();
            asked.read(&mut [0; 1]).unwrap();
            assert!(fs::metadata(format!("{a}/x/file")).is_ok());
            umount(&format!("{a}/x"), 0).unwrap();
            tmpfs(&format!("{a}/y"));
            fs::write(format!("{a}/y/file"), "").unwrap();
            // From here on alone.
            become_kind("/", MS_REC | MS_SLAVE).unwrap();
            umount(&format!("{a}/y"), 0).unwrap();
            tell.write(b"x").unwrap();
            asked.read(&mut [0; 1]).unwrap();
            assert_eq!(kinds_at(&format!("{a}/x")), SLAVE);
        });
        told.read(&mut [0; 1]).unwrap();
        let group = fields(&a).shared;
        tmpfs(&format!("{a}/x"));
        fs::write(format!("{a}/x/file"), "").unwrap();
        ask.write(b"x").unwrap();
        told.read(&mut [0; 1]).unwrap();
        assert!(all_at(&format!("{a}/x")).is_empty());
        assert!(fs::metadata(format!("{a}/y/file")).is_ok());
        tmpfs(&format!("{a}/x"));
        ask.write(b"x").unwrap();
        child.ok();
        // What is in this namespace outlives that one.
        assert_eq!((fields(&a).shared, all_at(&format!("{a}/x")).len()), (group, 1));
        umount(&format!("{a}/x"), 0).unwrap();
    });
}

fn other_users() {
    inside(&["a"], || {
        let a = shared("a");
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            become_root_of_own(NEWNS);
            assert_eq!(kinds_at(&a), SLAVE);
            tell.write(b"x").unwrap();
            asked.read(&mut [0; 1]).unwrap();
            let x = format!("{a}/x");
            assert_eq!(kinds_at(&x), SLAVE);
            let remount = |flags: u64| mount("none", &x, "", libc::MS_REMOUNT | MS_BIND | flags);
            let mut rows = Rows::default();
            row!(rows, EPERM, remount(0));
            row!(rows, OK, remount(MS_RDONLY));
            // It came as one mount: so it may go again, but not what is on it.
            row!(rows, EINVAL, umount(&format!("{x}/inner"), 0));
            row!(rows, OK, umount(&x, MNT_DETACH));
            rows.finish();
            tmpfs(&format!("{a}/y"));
        });
        told.read(&mut [0; 1]).unwrap();
        let tree = at("tree");
        folders(&[&tree]);
        mount("none", &tree, "tmpfs", 0).unwrap();
        folders(&[&format!("{tree}/inner")]);
        tmpfs(&format!("{tree}/inner"));
        mount("none", &tree, "", libc::MS_REMOUNT | MS_BIND | MS_RDONLY).unwrap();
        mount(&tree, &format!("{a}/x"), "", MS_MOVE).unwrap();
        ask.write(b"x").unwrap();
        child.ok();
        assert!(all_at(&format!("{a}/y")).is_empty());
        assert_eq!(all_at(&format!("{a}/x/inner")).len(), 1);
    });
}

/// Mounts that were there when another user namespace began go when their source does: alone, and as a whole.
fn what_was_there_before() {
    inside(&["a"], || {
        let a = shared("a");
        for name in ["alone", "whole", "used"] {
            let path = format!("{a}/{name}");
            folders(&[&path]);
            tmpfs(&path);
            folders(&[&format!("{path}/own")]);
        }
        for name in ["whole", "used"] {
            let path = format!("{a}/{name}/inner");
            folders(&[&path]);
            fs::write(format!("{path}/covered"), "").unwrap();
            tmpfs(&path);
            folders(&[&format!("{path}/deep")]);
            tmpfs(&format!("{path}/deep"));
        }
        let (told, tell) = pipe(0);
        let (asked, ask) = pipe(0);
        let child = fork(|| {
            become_root_of_own(NEWNS);
            assert_eq!(umount(&format!("{a}/alone"), 0), Err(Errno::EINVAL));
            tmpfs(&format!("{a}/used/own"));
            let inside = Fd::open(&format!("{a}/whole"), libc::O_PATH | libc::O_DIRECTORY).unwrap();
            tell.write(b"x").unwrap();
            asked.read(&mut [0; 1]).unwrap();
            assert!(all_at(&format!("{a}/alone")).is_empty());
            for path in ["whole", "whole/inner", "whole/inner/deep"] {
                assert!(all_at(&format!("{a}/{path}")).is_empty(), "{path}");
            }
            let covered = format!("/proc/self/fd/{}/inner/covered", inside.raw());
            assert!(fs::metadata(covered).is_err(), "for who is still in there");
            // More than the source had is on this one: all of it stays.
            for path in ["used", "used/own", "used/inner"] {
                assert_eq!(all_at(&format!("{a}/{path}")).len(), 1, "{path}");
            }
            assert!(fs::metadata(format!("{a}/used/inner/covered")).is_err());
        });
        told.read(&mut [0; 1]).unwrap();
        umount(&format!("{a}/alone"), 0).unwrap();
        umount(&format!("{a}/whole"), MNT_DETACH).unwrap();
        umount(&format!("{a}/used"), MNT_DETACH).unwrap();
        ask.write(b"x").unwrap();
        child.ok();
    });
}

/// What a locked mount covers shows in no other view, also if the mount may have none.
fn what_locked_mounts_cover() {
    inside(&["a", "b"], || {
        let (a, b) = (at("a"), at("b"));
        tmpfs(&a);
        folders(&[&format!("{a}/x")]);
        fs::write(format!("{a}/x/covered"), "").unwrap();
        tmpfs(&format!("{a}/x"));
        in_child(|| {
            become_root_of_own(NEWNS);
            become_kind(&format!("{a}/x"), MS_UNBINDABLE).unwrap();
            let mut rows = Rows::default();
            row!(rows, EINVAL, mount(&a, &b, "", MS_BIND));
            row!(rows, EPERM, mount(&a, &b, "", MS_BIND | MS_REC));
            rows.finish();
            assert!(fs::metadata(format!("{b}/x/covered")).is_err());
            assert!(all_at(&b).is_empty());
        });
    });
}

/// A locked mount stays in its place in each copy of the tree: of a peer, and of a new namespace of the same user.
fn copies_stay_locked() {
    inside(&["a", "b", "tree"], || {
        let (a, b, tree) = (at("a"), at("b"), at("tree"));
        tmpfs(&tree);
        folders(&[&format!("{tree}/inner")]);
        tmpfs(&format!("{tree}/inner"));
        in_child(|| {
            become_root_of_own(NEWNS);
            tmpfs(&a);
            folders(&[&format!("{a}/x")]);
            become_kind(&a, MS_SHARED).unwrap();
            bind(&a, &b);
            mount(&tree, &format!("{a}/x"), "", MS_BIND | MS_REC).unwrap();
            let mut rows = Rows::default();
            row!(rows, EINVAL, umount(&format!("{a}/x/inner"), 0));
            row!(rows, EINVAL, umount(&format!("{b}/x/inner"), 0));
            row!(rows, EINVAL, umount(&format!("{tree}/inner"), 0));
            unshare(NEWNS).unwrap();
            row!(rows, EINVAL, umount(&format!("{tree}/inner"), 0));
            row!(rows, EINVAL, umount(&format!("{b}/x/inner"), 0));
            row!(rows, EINVAL, mount(&tree, &b, "", MS_BIND));
            // Copies came as one, and go as one.
            row!(rows, OK, umount(&format!("{b}/x"), MNT_DETACH));
            rows.finish();
        });
    });
}

/// A tree whose first mount is covered comes under what a slave has in the place.
fn covered_trees() {
    inside(&["b", "tree", "a"], || {
        let a = shared("a");
        let (b, tree) = (at("b"), at("tree"));
        bind(&a, &b);
        become_kind(&b, MS_SLAVE).unwrap();
        let x = format!("{b}/x");
        tmpfs(&x);
        fs::write(format!("{x}/own"), "").unwrap();
        tmpfs(&tree);
        let lower = Fd::open(&tree, libc::O_PATH | libc::O_DIRECTORY).unwrap();
        tmpfs(&tree);
        let (empty, to) = (c_string(""), c_string(&format!("{a}/x")));
        let from = [lower.raw() as usize, empty.as_ptr() as usize];
        call(SYS_move_mount, [from[0], from[1], libc::AT_FDCWD as usize, to.as_ptr() as usize, 4, 0])
            .unwrap();
        assert_eq!((all_at(&format!("{a}/x")).len(), all_at(&x).len()), (2, 3));
        umount(&format!("{a}/x"), MNT_DETACH).unwrap();
        drop(lower);
        umount(&format!("{a}/x"), MNT_DETACH).unwrap();
        assert!(all_at(&format!("{a}/x")).is_empty());
        // Linux has both in one place for a while, and takes either.
        assert_eq!(all_at(&x).len(), 1);
        assert!(is_linux() || fs::metadata(format!("{x}/own")).is_ok());
        umount(&x, 0).unwrap();
        assert!(all_at(&x).is_empty());
    });
}

/// A tree comes to namespaces that end as it comes.
fn namespaces_end_meanwhile() {
    inside(&["tree", "a"], || {
        let a = shared("a");
        let tree = at("tree");
        tmpfs(&tree);
        let mut inner = tree.clone();
        for _ in 0..8 {
            inner += "/inner";
            folders(&[&inner]);
            tmpfs(&inner);
        }
        let before = fields(&a);
        for round in 0..40 {
            let (told, tell) = pipe(0);
            let child = fork(|| {
                unshare(NEWNS).unwrap();
                become_kind("/", MS_REC | if round % 2 == 0 { MS_SLAVE } else { MS_SHARED }).unwrap();
                tell.write(b"x").unwrap();
            });
            told.read(&mut [0; 1]).unwrap();
            mount(&tree, &format!("{a}/x"), "", MS_BIND | MS_REC).unwrap();
            child.ok();
            umount(&format!("{a}/x"), MNT_DETACH).unwrap();
        }
        assert_eq!(fields(&a), before);
    });
}

fn sources_far_away() {
    inside(&["b", "a"], || {
        let a = shared("a");
        let b = at("b");
        // a, then b in between, then what the child keeps.
        bind(&a, &b);
        become_kind(&b, MS_SLAVE).unwrap();
        become_kind(&b, MS_SHARED).unwrap();
        let (above, between) = (fields(&a).shared, fields(&b).shared);
        let child = fork(|| {
            unshare(NEWNS).unwrap();
            become_kind(&b, MS_SLAVE).unwrap();
            assert_eq!((fields(&b).master, fields(&b).from), (between, above));
            umount(&a, 0).unwrap();
            assert_eq!((fields(&b).master, fields(&b).from), (between, 0));
        });
        child.ok();
    });
}

fn roots_stay() {
    inside(&["a"], || {
        let a = shared("a");
        std::env::set_current_dir(&a).unwrap();
        let turn = |new: &str, old: &str| {
            let (new, old) = (c_string(new), c_string(old));
            call(SYS_pivot_root, [new.as_ptr() as usize, old.as_ptr() as usize, 0, 0, 0, 0])
        };
        assert_eq!(turn(&a, &format!("{a}/x")), Err(Errno::EINVAL));
    });
}
