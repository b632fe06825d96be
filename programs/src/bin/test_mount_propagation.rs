//! Mounts that show in other places: shared, slave, private and unbindable ones, within a namespace and across namespaces.

use std::fs;

use libc::{
    MNT_DETACH, MS_BIND, MS_MOVE, MS_NODEV, MS_PRIVATE, MS_RDONLY, MS_REC, MS_SHARED, MS_SILENT, MS_SLAVE,
    MS_UNBINDABLE, SYS_mount_setattr, SYS_move_mount, SYS_open_tree, SYS_pivot_root,
};
use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::{NEWNS, become_root_of_own, unshare};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{c_string, check, is_linux};
use roundtable_programs::{Errno, row, tests};

tests! { kinds, kinds_of_trees, peers_show_the_same, slaves_give_nothing_back, slaves_with_peers, the_last_peer_goes, trees_come_whole, parts_of_a_group,
unbindable_mounts, moves, what_is_beneath, in_use, lazy_ends, new_namespaces, other_users, what_was_there_before, what_locked_mounts_cover, copies_stay_locked, covered_trees, namespaces_end_meanwhile: 60,
sources_far_away, joined_groups, groups_of_others, by_attributes, roots_stay, large_trees: 60, many_groups: 100, groups_far_above: 60 }

const ROOT: &str = "/tmp/propagation";

fn mount(source: &str, at: &str, kind: &str, flags: u64) -> Answer {
    let (source, at, kind) = (c_string(source), c_string(at), c_string(kind));
    // SAFETY: the strings are there.
    check(unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

fn umount(at: &str, flags: i32) -> Answer {
    // SAFETY: the string is there.
    check(unsafe { libc::umount2(c_string(at).as_ptr(), flags) })
}

fn become_kind(at: &str, flags: u64) -> Answer {
    mount("none", at, "", flags)
}

#[track_caller]
fn tmpfs(at: &str) {
    mount("none", at, "tmpfs", 0).expect(at);
}

#[track_caller]
fn bind(from: &str, at: &str) {
    mount(from, at, "", MS_BIND).expect(at);
}

#[track_caller]
fn folders(paths: &[&str]) {
    paths.iter().for_each(|path| fs::create_dir_all(path).expect(path));
}

/// The optional fields of a mount, and its number.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    id: u64,
    shared: u64,
    master: u64,
    from: u64,
    unbindable: bool,
}

impl Fields {
    fn kinds(&self) -> [bool; 3] {
        [self.shared != 0, self.master != 0, self.unbindable]
    }
}

/// Those of all mounts in this place, in the order of their lines.
fn all_at(at: &str) -> Vec<Fields> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        if words[4] != at {
            return None;
        }
        let mut fields = Fields { id: words[0].parse().unwrap(), ..Fields::default() };
        for word in words[6..].iter().take_while(|word| **word != "-") {
            match word.split_once(':') {
                Some(("shared", group)) => fields.shared = group.parse().unwrap(),
                Some(("master", group)) => fields.master = group.parse().unwrap(),
                Some(("propagate_from", group)) => fields.from = group.parse().unwrap(),
                None if *word == "unbindable" => fields.unbindable = true,
                _ => panic!("{line}"),
            }
        }
        Some(fields)
    };
    text.lines().filter_map(of_line).collect()
}

/// Those of the only mount in this place.
#[track_caller]
fn fields(at: &str) -> Fields {
    let mut all = all_at(at);
    assert_eq!(all.len(), 1, "{at}: {all:?}");
    all.pop().unwrap()
}

#[track_caller]
fn kinds_at(at: &str) -> [bool; 3] {
    fields(at).kinds()
}

const NONE: [bool; 3] = [false; 3];
const SHARED: [bool; 3] = [true, false, false];
const SLAVE: [bool; 3] = [false, true, false];
const BOTH: [bool; 3] = [true, true, false];
const UNBINDABLE: [bool; 3] = [false, false, true];

/// In a namespace of its own, with a tmpfs at [`ROOT`] that has these folders.
#[track_caller]
fn inside(names: &[&str], run: impl FnOnce()) {
    in_child(|| {
        unshare(NEWNS).unwrap();
        become_kind("/", MS_REC | MS_PRIVATE).unwrap();
        folders(&[ROOT]);
        tmpfs(ROOT);
        for name in names {
            folders(&[&at(name)]);
        }
        run();
    });
}

fn at(name: &str) -> String {
    format!("{ROOT}/{name}")
}

/// A shared tmpfs at `name`, with folders `x` and `y`.
#[track_caller]
fn shared(name: &str) -> String {
    let path = at(name);
    tmpfs(&path);
    become_kind(&path, MS_SHARED).unwrap();
    folders(&[&format!("{path}/x"), &format!("{path}/y")]);
    path
}

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
