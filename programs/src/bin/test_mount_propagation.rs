//! Mounts that show in other places: shared, slave, private and unbindable ones, within a namespace.

use std::fs;

use libc::{
    MNT_DETACH, MS_BIND, MS_MOVE, MS_NODEV, MS_PRIVATE, MS_REC, MS_SHARED, MS_SILENT, MS_SLAVE, MS_UNBINDABLE,
};
use roundtable_programs::file::Fd;
use roundtable_programs::namespaces::{NEWNS, unshare};
use roundtable_programs::propagation::{
    BOTH, NONE, SHARED, SLAVE, UNBINDABLE, all_at, at, become_kind, bind, fields, folders, inside, kinds_at,
    mount, shared, tmpfs, umount,
};
use roundtable_programs::rows::Rows;
use roundtable_programs::{Errno, row, tests};

tests! { kinds, kinds_of_trees, peers_show_the_same, slaves_give_nothing_back, slaves_with_peers, the_last_peer_goes, trees_come_whole, parts_of_a_group, unbindable_mounts, moves, what_is_beneath, in_use, lazy_ends }

fn kinds() {
    inside(&["a", "b"], || {
        let (a, b) = (at("a"), at("b"));
        tmpfs(&a);
        assert_eq!(kinds_at(&a), NONE);
        become_kind(&a, MS_SLAVE).unwrap();
        assert_eq!(kinds_at(&a), NONE, "of nobody");
        become_kind(&a, MS_SHARED).unwrap();
        let group = fields(&a).shared;
        become_kind(&a, MS_SHARED).unwrap();
        assert_eq!(fields(&a).shared, group);
        bind(&a, &b);
        assert_eq!(fields(&b).shared, group);
        become_kind(&b, MS_SLAVE).unwrap();
        assert_eq!((kinds_at(&b), fields(&b).master), (SLAVE, group));
        become_kind(&b, MS_SHARED).unwrap();
        assert_eq!((kinds_at(&b), fields(&b).master), (BOTH, group));
        assert_ne!(fields(&b).shared, group);
        // No peers: it is what it was.
        become_kind(&b, MS_SLAVE | MS_SILENT).unwrap();
        assert_eq!((kinds_at(&b), fields(&b).master), (SLAVE, group));
        become_kind(&b, MS_PRIVATE).unwrap();
        assert_eq!(kinds_at(&b), NONE);
        become_kind(&b, MS_UNBINDABLE).unwrap();
        assert_eq!(kinds_at(&b), UNBINDABLE);
        become_kind(&b, MS_SHARED).unwrap();
        assert_eq!(kinds_at(&b), SHARED);
        folders(&[&format!("{a}/inner")]);
        let mut rows = Rows::default();
        row!(rows, EINVAL, become_kind(&a, MS_SHARED | MS_SLAVE));
        row!(rows, EINVAL, become_kind(&a, MS_SHARED | MS_NODEV));
        row!(rows, EINVAL, become_kind(&format!("{a}/inner"), MS_SHARED));
        row!(rows, ENOENT, become_kind(&at("z"), MS_SHARED));
        rows.finish();
    });
}

fn kinds_of_trees() {
    inside(&["a"], || {
        let (a, inner) = (at("a"), at("a/inner"));
        tmpfs(&a);
        folders(&[&inner]);
        tmpfs(&inner);
        become_kind(&a, MS_SHARED | MS_REC).unwrap();
        assert_eq!((kinds_at(&a), kinds_at(&inner)), (SHARED, SHARED));
        assert_ne!(fields(&a).shared, fields(&inner).shared);
        become_kind(&a, MS_PRIVATE).unwrap();
        assert_eq!((kinds_at(&a), kinds_at(&inner)), (NONE, SHARED));
        become_kind(&a, MS_UNBINDABLE | MS_REC).unwrap();
        assert_eq!((kinds_at(&a), kinds_at(&inner)), (UNBINDABLE, UNBINDABLE));
    });
}

fn peers_show_the_same() {
    inside(&["b", "c", "a"], || {
        let a = shared("a");
        let (b, c) = (at("b"), at("c"));
        bind(&a, &b);
        bind(&b, &c);
        tmpfs(&format!("{b}/x"));
        fs::write(format!("{a}/x/file"), "text").unwrap();
        let of = |path: &str| fields(&format!("{path}/x"));
        for path in [&a, &b, &c] {
            assert_eq!(fs::read_to_string(format!("{path}/x/file")).unwrap(), "text");
            assert_eq!(of(path).shared, of(&a).shared);
        }
        assert_ne!(of(&a).id, of(&b).id);
        assert_ne!(of(&a).shared, fields(&a).shared);
        // One that is private shows what it showed, and no more.
        become_kind(&c, MS_PRIVATE).unwrap();
        umount(&format!("{a}/x"), 0).unwrap();
        assert!(all_at(&format!("{b}/x")).is_empty());
        assert_eq!(of(&c).kinds(), SHARED);
        assert_eq!(umount(&format!("{b}/x"), 0), Err(Errno::EINVAL));
        umount(&format!("{c}/x"), 0).unwrap();
        // A view of a folder gets what is mounted below that alone.
        let folder = at("a/x/deep");
        folders(&[&folder, &at("folder")]);
        bind(&at("a/x"), &at("folder"));
        tmpfs(&folder);
        tmpfs(&at("a/y"));
        assert_eq!(fields(&at("folder/deep")).shared, fields(&folder).shared);
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("/propagation/folder")).count(), 2);
    });
}

fn slaves_give_nothing_back() {
    inside(&["b", "a"], || {
        let a = shared("a");
        let b = at("b");
        bind(&a, &b);
        become_kind(&b, MS_SLAVE).unwrap();
        tmpfs(&format!("{a}/x"));
        let (first, second) = (fields(&format!("{a}/x")), fields(&format!("{b}/x")));
        assert_eq!((second.kinds(), second.master), (SLAVE, first.shared));
        tmpfs(&format!("{b}/y"));
        assert_eq!(kinds_at(&format!("{b}/y")), NONE);
        assert!(all_at(&format!("{a}/y")).is_empty());
        // What it got it may do without.
        umount(&format!("{b}/x"), 0).unwrap();
        assert_eq!(fields(&format!("{a}/x")).shared, first.shared);
        umount(&format!("{a}/x"), 0).unwrap();
        assert_eq!(umount(&format!("{b}/x"), 0), Err(Errno::EINVAL));
    });
}

fn slaves_with_peers() {
    inside(&["b", "c", "d", "a"], || {
        let a = shared("a");
        let (b, c, d) = (at("b"), at("c"), at("d"));
        bind(&a, &b);
        become_kind(&b, MS_SLAVE).unwrap();
        become_kind(&b, MS_SHARED).unwrap();
        bind(&b, &c);
        bind(&c, &d);
        become_kind(&d, MS_SLAVE).unwrap();
        tmpfs(&format!("{a}/x"));
        let of = |path: &str| fields(&format!("{path}/x"));
        assert_eq!((of(&b).kinds(), of(&b).master), (BOTH, of(&a).shared));
        assert_eq!((of(&c).shared, of(&c).master), (of(&b).shared, of(&a).shared));
        assert_eq!((of(&d).kinds(), of(&d).master), (SLAVE, of(&b).shared));
        // From the middle: down, not up.
        tmpfs(&format!("{c}/y"));
        assert!(all_at(&format!("{a}/y")).is_empty());
        assert_eq!(kinds_at(&format!("{b}/y")), SHARED);
        assert_eq!(fields(&format!("{d}/y")).master, fields(&format!("{c}/y")).shared);
        umount(&format!("{a}/x"), 0).unwrap();
        for path in [&b, &c, &d] {
            assert!(all_at(&format!("{path}/x")).is_empty(), "{path}");
        }
    });
}

fn the_last_peer_goes() {
    inside(&["b", "c", "a"], || {
        let a = shared("a");
        let (b, c) = (at("b"), at("c"));
        // c is b's slave, and b is a's.
        bind(&a, &b);
        become_kind(&b, MS_SLAVE).unwrap();
        become_kind(&b, MS_SHARED).unwrap();
        bind(&b, &c);
        become_kind(&c, MS_SLAVE).unwrap();
        assert_eq!(fields(&c).master, fields(&b).shared);
        umount(&b, 0).unwrap();
        assert_eq!(fields(&c).master, fields(&a).shared);
        tmpfs(&format!("{a}/x"));
        assert_eq!(fields(&format!("{c}/x")).master, fields(&format!("{a}/x")).shared);
        umount(&a, MNT_DETACH).unwrap();
        assert_eq!(kinds_at(&c), NONE);
        assert!(all_at(&format!("{c}/x")).is_empty());
    });
}

fn trees_come_whole() {
    inside(&["tree", "b", "c", "a"], || {
        let a = shared("a");
        let (b, c, tree) = (at("b"), at("c"), at("tree"));
        bind(&a, &b);
        bind(&a, &c);
        become_kind(&c, MS_SLAVE).unwrap();
        tmpfs(&tree);
        folders(&[&format!("{tree}/inner")]);
        tmpfs(&format!("{tree}/inner"));
        fs::write(format!("{tree}/inner/file"), "text").unwrap();
        mount(&tree, &format!("{a}/x"), "", MS_BIND | MS_REC).unwrap();
        for path in [&a, &b, &c] {
            assert_eq!(fs::read_to_string(format!("{path}/x/inner/file")).unwrap(), "text");
        }
        let of = |path: &str| fields(&format!("{path}/x/inner"));
        assert_eq!((of(&a).kinds(), of(&b).shared), (SHARED, of(&a).shared));
        assert_eq!((of(&c).kinds(), of(&c).master), (SLAVE, of(&a).shared));
        assert_eq!((kinds_at(&tree), all_at(&format!("{tree}/inner")).len()), (NONE, 1));
        umount(&format!("{a}/x"), MNT_DETACH).unwrap();
        assert!(all_at(&format!("{b}/x")).is_empty() && all_at(&format!("{c}/x/inner")).is_empty());
        // The tree's own peers are not asked to show it twice.
        tmpfs(&format!("{a}/y"));
        mount(&a, &tree, "", MS_BIND | MS_REC).unwrap();
        assert_eq!(all_at(&format!("{a}/y")).len(), 1);
        assert_eq!(all_at(&format!("{b}/y")).len(), 1);
        assert_eq!(fields(&format!("{tree}/y")).shared, fields(&format!("{a}/y")).shared);
    });
}

fn parts_of_a_group() {
    inside(&["b", "c", "a"], || {
        let a = shared("a");
        let (b, c) = (at("b"), at("c"));
        // The middle one does not show the place: what is mounted goes past it.
        bind(&format!("{a}/y"), &b);
        become_kind(&b, MS_SLAVE).unwrap();
        become_kind(&b, MS_SHARED).unwrap();
        bind(&a, &c);
        become_kind(&c, MS_SLAVE).unwrap();
        tmpfs(&format!("{a}/x"));
        assert!(all_at(&format!("{b}/x")).is_empty());
        assert_eq!(fields(&format!("{c}/x")).master, fields(&format!("{a}/x")).shared);
    });
}

fn unbindable_mounts() {
    inside(&["a", "b"], || {
        let (a, b) = (at("a"), at("b"));
        tmpfs(&a);
        folders(&[&format!("{a}/x"), &format!("{a}/y")]);
        tmpfs(&format!("{a}/x"));
        tmpfs(&format!("{a}/y"));
        become_kind(&format!("{a}/x"), MS_UNBINDABLE).unwrap();
        let mut rows = Rows::default();
        row!(rows, EINVAL, mount(&format!("{a}/x"), &b, "", MS_BIND));
        row!(rows, EINVAL, mount(&format!("{a}/x"), &b, "", MS_BIND | MS_REC));
        row!(rows, OK, mount(&a, &b, "", MS_BIND | MS_REC));
        rows.finish();
        assert!(all_at(&format!("{b}/x")).is_empty());
        assert_eq!(all_at(&format!("{b}/y")).len(), 1);
        // A new namespace has them.
        unshare(NEWNS).unwrap();
        assert_eq!(kinds_at(&format!("{a}/x")), UNBINDABLE);
    });
}

fn moves() {
    inside(&["b", "c", "tree", "a"], || {
        let a = shared("a");
        let (b, tree) = (at("b"), at("tree"));
        bind(&a, &b);
        tmpfs(&tree);
        folders(&[&format!("{tree}/inner")]);
        tmpfs(&format!("{tree}/inner"));
        let mut rows = Rows::default();
        become_kind(&format!("{tree}/inner"), MS_UNBINDABLE).unwrap();
        row!(rows, EINVAL, mount(&tree, &format!("{a}/x"), "", MS_MOVE));
        become_kind(&format!("{tree}/inner"), MS_PRIVATE).unwrap();
        row!(rows, OK, mount(&tree, &format!("{a}/x"), "", MS_MOVE));
        assert!(all_at(&tree).is_empty());
        assert_eq!(fields(&format!("{b}/x/inner")).shared, fields(&format!("{a}/x/inner")).shared);
        assert_eq!(kinds_at(&format!("{b}/x")), SHARED);
        // From where others show it, too, it does not go away.
        row!(rows, EINVAL, mount(&format!("{a}/x"), &at("c"), "", MS_MOVE));
        rows.finish();
    });
}

fn what_is_beneath() {
    inside(&["b", "a"], || {
        let a = shared("a");
        let b = at("b");
        bind(&a, &b);
        become_kind(&b, MS_SLAVE).unwrap();
        // The slave's own comes first, and stays what one sees.
        tmpfs(&format!("{b}/x"));
        fs::write(format!("{b}/x/own"), "").unwrap();
        tmpfs(&format!("{a}/x"));
        fs::write(format!("{a}/x/theirs"), "").unwrap();
        assert!(fs::metadata(format!("{b}/x/own")).is_ok());
        assert_eq!(all_at(&format!("{b}/x")).len(), 2);
        umount(&format!("{a}/x"), 0).unwrap();
        assert_eq!(kinds_at(&format!("{b}/x")), NONE);
        assert!(fs::metadata(format!("{b}/x/own")).is_ok());
        // What one sees goes first.
        tmpfs(&format!("{a}/x"));
        umount(&format!("{b}/x"), 0).unwrap();
        assert!(fs::metadata(format!("{b}/x/own")).is_err());
        assert_eq!(kinds_at(&format!("{b}/x")), SLAVE);
        umount(&format!("{a}/x"), 0).unwrap();
        assert!(all_at(&format!("{b}/x")).is_empty());
    });
}

fn in_use() {
    inside(&["b", "a"], || {
        let a = shared("a");
        let b = at("b");
        bind(&a, &b);
        tmpfs(&format!("{a}/x"));
        let used = Fd::open(&format!("{b}/x"), libc::O_RDONLY).unwrap();
        assert_eq!(umount(&format!("{a}/x"), 0), Err(Errno::EBUSY));
        assert_eq!(all_at(&format!("{a}/x")).len(), 1);
        drop(used);
        // A mount on the other keeps that one, and holds nobody up.
        become_kind(&format!("{b}/x"), MS_PRIVATE).unwrap();
        folders(&[&format!("{b}/x/deep")]);
        tmpfs(&format!("{b}/x/deep"));
        umount(&format!("{a}/x"), 0).unwrap();
        assert_eq!(all_at(&format!("{b}/x")).len(), 1);
    });
}

fn lazy_ends() {
    inside(&["b", "a"], || {
        let a = shared("a");
        let b = at("b");
        bind(&a, &b);
        tmpfs(&format!("{a}/x"));
        folders(&[&format!("{a}/x/deep")]);
        tmpfs(&format!("{a}/x/deep"));
        let used = Fd::open(&format!("{b}/x/deep"), libc::O_RDONLY).unwrap();
        umount(&format!("{a}/x"), MNT_DETACH).unwrap();
        for path in [&a, &b] {
            assert!(all_at(&format!("{path}/x")).is_empty() && all_at(&format!("{path}/x/deep")).is_empty());
        }
        drop(used);
    });
}
