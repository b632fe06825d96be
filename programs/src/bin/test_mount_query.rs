//! Mounts by their numbers: statmount(2), listmount(2), and the numbers that statx(2) gives.

use std::fs;

use roundtable_programs::child::in_child;
use roundtable_programs::kinds::call;
use roundtable_programs::namespaces::{NEWNS, unshare};
use roundtable_programs::place::mount;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{c_string, is_linux};
use roundtable_programs::{Errno, row, tests};

tests! { what_is_told, masters, deep_below, texts_and_room, lists, moved_and_pivoted, copies_that_show_elsewhere, other_namespaces, below_the_root_only, errors, many: 60 }

const STATMOUNT: i64 = 457;
const LISTMOUNT: i64 = 458;
/// In the place of a mount's number: all.
const ALL: u64 = u64::MAX;
/// Bytes of the numbers.
const BYTES: usize = 512;

const SB_BASIC: u64 = 1;
const MNT_BASIC: u64 = 2;
const PROPAGATE_FROM: u64 = 4;
const MNT_ROOT: u64 = 8;
const MNT_POINT: u64 = 16;
const FS_TYPE: u64 = 32;
const MNT_NS_ID: u64 = 64;
const MNT_OPTS: u64 = 128;
const KNOWN: u64 = 255;

#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    size: u32,
    spare: u32,
    id: u64,
    param: u64,
    namespace: u64,
}

impl Request {
    fn new(id: u64, param: u64) -> Request {
        Request { size: 32, spare: 0, id, param, namespace: 0 }
    }
}

fn address<T>(value: &T) -> usize {
    std::ptr::from_ref(value) as usize
}

/// What statmount(2) wrote.
struct Told(Vec<u8>);

impl Told {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn mask(&self) -> u64 {
        self.u64(8)
    }

    fn id(&self) -> u64 {
        self.u64(40)
    }

    fn parent(&self) -> u64 {
        self.u64(48)
    }

    /// The text whose place is told at `at`.
    fn text(&self, at: usize) -> &str {
        let start = BYTES + self.u32(at) as usize;
        let length = self.0[start..].iter().position(|byte| *byte == 0).unwrap();
        std::str::from_utf8(&self.0[start..start + length]).unwrap()
    }

    fn kind(&self) -> &str {
        self.text(36)
    }

    fn root(&self) -> &str {
        self.text(104)
    }

    fn point(&self) -> &str {
        self.text(108)
    }
}

fn ask(request: &Request, room: usize) -> Result<Told, Errno> {
    let mut out = vec![0u8; room];
    call(STATMOUNT, [address(request), out.as_mut_ptr() as usize, room, 0, 0, 0]).map(|_| Told(out))
}

fn told(id: u64) -> Told {
    ask(&Request::new(id, KNOWN), 4096).expect("statmount")
}

fn list_by(request: &Request, room: usize, flags: usize) -> Result<Vec<u64>, Errno> {
    let mut out = vec![0u64; room];
    let count = call(LISTMOUNT, [address(request), out.as_mut_ptr() as usize, room, flags, 0, 0])?;
    out.truncate(count);
    Ok(out)
}

fn list(above: u64) -> Vec<u64> {
    list_by(&Request::new(above, 0), 512, 0).expect("listmount")
}

/// The unique number of the mount that a path is on, and the one in mountinfo.
fn numbers(path: &str) -> (u64, u64) {
    const MNT_ID: u32 = 0x1000;
    const MNT_ID_UNIQUE: u32 = 0x4000;
    let path = c_string(path);
    let get = |mask: u32| {
        // SAFETY: a statx of zeros is valid, and the call fills it.
        unsafe {
            let mut out: libc::statx = std::mem::zeroed();
            assert_eq!(libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, mask, &mut out), 0);
            assert_eq!(out.stx_mask & (MNT_ID | MNT_ID_UNIQUE), mask);
            out.stx_mnt_id
        }
    };
    (get(MNT_ID_UNIQUE), get(MNT_ID))
}

/// In a namespace of its own, where nothing propagates, with a file system at `/tmp/mounts`.
fn alone(run: impl FnOnce()) {
    in_child(|| {
        unshare(NEWNS).unwrap();
        mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        fs::create_dir_all("/tmp/mounts").unwrap();
        mount("source", "/tmp/mounts", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "size=1m").unwrap();
        run();
    });
}

fn what_is_told() {
    alone(|| {
        let (id, old) = numbers("/tmp/mounts");
        assert!(id > i32::MAX as u64, "{id:#x}: no number of mountinfo can be taken for it");
        let told = told(id);
        assert_eq!(told.mask(), KNOWN);
        assert_eq!((told.id(), u64::from(told.u32(56))), (id, old));
        let (root, old_root) = numbers("/");
        assert!(told.parent() == root || told.parent() == numbers("/tmp").0);
        assert_eq!(self::told(root).parent(), self::told(self::told(root).parent()).id());
        assert!(u64::from(self::told(root).u32(56)) == old_root);
        // MOUNT_ATTR_NOSUID and MOUNT_ATTR_NODEV; MS_PRIVATE; no group, no master.
        assert_eq!(
            (told.u64(64), told.u64(72), told.u64(80), told.u64(88), told.u64(96)),
            (6, 1 << 18, 0, 0, 0)
        );
        // TMPFS_MAGIC.
        assert_eq!(told.u64(24), 0x0102_1994);
        assert_eq!((told.kind(), told.root(), told.point()), ("tmpfs", "/", "/tmp/mounts"));
        assert!(told.text(4).contains("size=1024k"), "{}", told.text(4));
        let stat = fs::metadata("/tmp/mounts").unwrap();
        let device = libc::makedev(told.u32(16), told.u32(20));
        assert_eq!(std::os::unix::fs::MetadataExt::dev(&stat), device);
        // A part of it, shared and read-only.
        fs::create_dir_all("/tmp/mounts/a part/in").unwrap();
        fs::create_dir_all("/tmp/mounts/view").unwrap();
        mount("/tmp/mounts/a part", "/tmp/mounts/view", "", libc::MS_BIND, "").unwrap();
        mount("", "/tmp/mounts/view", "", libc::MS_SHARED, "").unwrap();
        let read_only = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOATIME;
        mount("", "/tmp/mounts/view", "", read_only, "").unwrap();
        let view = self::told(numbers("/tmp/mounts/view").0);
        assert_eq!((view.root(), view.point(), view.parent()), ("/a part", "/tmp/mounts/view", id));
        // MOUNT_ATTR_RDONLY and MOUNT_ATTR_NOATIME; MS_SHARED.
        assert_eq!((view.u64(64), view.u64(72)), (0x11, 1 << 20));
        assert_ne!(view.u64(80), 0);
        // What is not asked for is not told.
        let some = ask(&Request::new(id, SB_BASIC | 1 << 63), BYTES).unwrap();
        assert_eq!((some.mask(), some.u32(0), some.id()), (SB_BASIC, BYTES as u32, 0));
        let nothing = ask(&Request::new(id, 0), BYTES).unwrap();
        assert_eq!((nothing.mask(), nothing.u32(0)), (0, BYTES as u32));
    });
}

/// Groups: shared, what it follows, and the nearest that is in this namespace.
fn masters() {
    alone(|| {
        let change = |path: &str, flag: u64| mount("", path, "", flag, "").unwrap();
        for name in ["first", "second", "third"] {
            fs::create_dir_all(format!("/tmp/mounts/{name}")).unwrap();
        }
        let groups = |name: &str| {
            let told = told(numbers(&format!("/tmp/mounts/{name}")).0);
            [told.u64(72), told.u64(80), told.u64(88), told.u64(96)]
        };
        let bind = |from: &str, to: &str| {
            mount(&format!("/tmp/mounts/{from}"), &format!("/tmp/mounts/{to}"), "", libc::MS_BIND, "")
                .unwrap();
        };
        bind("first", "first");
        change("/tmp/mounts/first", libc::MS_SHARED);
        let [kind, first, ..] = groups("first");
        assert!(kind == libc::MS_SHARED && first != 0);
        bind("first", "second");
        change("/tmp/mounts/second", libc::MS_SLAVE);
        change("/tmp/mounts/second", libc::MS_SHARED);
        let [kind, second, master, from] = groups("second");
        assert_eq!((kind, master, from), (libc::MS_SHARED | libc::MS_SLAVE, first, first));
        bind("second", "third");
        change("/tmp/mounts/third", libc::MS_SLAVE);
        assert_eq!(groups("third"), [libc::MS_SLAVE, 0, second, second]);
        // Its master is of no mount here any more, but that one's master is.
        in_child(|| {
            unshare(NEWNS).unwrap();
            change("/tmp/mounts/second", libc::MS_PRIVATE);
            let [kind, own, master, from] = groups("third");
            assert_eq!((kind, own, master, from), (libc::MS_SLAVE, 0, second, first));
        });
    });
}

/// A mount whose path is longer than any that a call takes hides no others.
fn deep_below() {
    alone(|| {
        let name = "d".repeat(250);
        std::env::set_current_dir("/tmp/mounts").unwrap();
        for _ in 0..20 {
            fs::create_dir(&name).unwrap();
            std::env::set_current_dir(&name).unwrap();
        }
        fs::create_dir("deep").unwrap();
        mount("source", "deep", "tmpfs", 0, "").unwrap();
        let (deep, _) = numbers("deep");
        fs::create_dir("/tmp/mounts/flat").unwrap();
        mount("source", "/tmp/mounts/flat", "tmpfs", 0, "").unwrap();
        let (flat, _) = numbers("/tmp/mounts/flat");
        assert_eq!(list(numbers("/tmp/mounts").0), [deep, flat]);
        assert_eq!(ask(&Request::new(deep, MNT_BASIC), BYTES).unwrap().id(), deep);
    });
}

fn texts_and_room() {
    alone(|| {
        let (id, _) = numbers("/tmp/mounts");
        let all = ask(&Request::new(id, FS_TYPE | MNT_POINT), 4096).unwrap();
        let used = all.u32(0) as usize;
        // First an empty one, for those that are not told.
        assert_eq!(used, BYTES + 1 + "tmpfs".len() + 1 + "/tmp/mounts".len() + 1);
        assert_eq!((all.root(), all.text(4)), ("", ""));
        for room in [used, used + 1] {
            let told = ask(&Request::new(id, FS_TYPE | MNT_POINT), room).unwrap();
            assert_eq!((told.kind(), told.point(), told.u32(0) as usize), ("tmpfs", "/tmp/mounts", used));
        }
        for room in [BYTES, BYTES + 1, used - 1] {
            let short = ask(&Request::new(id, FS_TYPE | MNT_POINT), room).err();
            assert_eq!(short, Some(Errno::EOVERFLOW), "{room} bytes");
        }
        // Without texts any room will do, for as much as goes into it.
        let short = ask(&Request::new(id, MNT_BASIC), 16).unwrap();
        assert_eq!((short.u32(0), short.mask()), (16, MNT_BASIC));
        assert!(ask(&Request::new(id, MNT_ROOT | MNT_NS_ID | PROPAGATE_FROM | MNT_OPTS), 1024).is_ok());
    });
}

fn lists() {
    alone(|| {
        let (top, _) = numbers("/tmp/mounts");
        let mut expected = Vec::new();
        for name in ["a", "a/b", "c", "a/b/d"] {
            let path = format!("/tmp/mounts/{name}");
            fs::create_dir(&path).unwrap();
            mount("source", &path, "tmpfs", 0, "").unwrap();
            expected.push(numbers(&path).0);
        }
        assert_eq!(list(top), expected, "in the order in which they were made");
        assert_eq!(list(expected[0]), [expected[1], expected[3]]);
        assert_eq!(list(expected[2]), []);
        let all = list(ALL);
        assert!(all.is_sorted() && all.contains(&top) && all.ends_with(&expected));
        let lines = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        assert_eq!(all.len(), lines);
        // In pieces, and backwards.
        let piece =
            |after: u64, room: usize, flags: usize| list_by(&Request::new(top, after), room, flags).unwrap();
        assert_eq!(piece(0, 2, 0), expected[..2]);
        assert_eq!(piece(expected[1], 2, 0), expected[2..]);
        assert_eq!(piece(expected[3], 2, 0), []);
        let backwards: Vec<u64> = expected.iter().rev().copied().collect();
        assert_eq!(piece(0, 8, 1), backwards);
        assert_eq!(piece(expected[2], 1, 1), [expected[1]]);
        assert_eq!(piece(0, 0, 0), []);
        let reversed: Vec<u64> = list_by(&Request::new(ALL, 0), 512, 1).unwrap().into_iter().rev().collect();
        assert_eq!(reversed, all);
        // One that is gone is not there, but others come behind it.
        let path = c_string("/tmp/mounts/c");
        // SAFETY: a string that lives through the call.
        assert_eq!(unsafe { libc::umount2(path.as_ptr(), 0) }, 0);
        assert_eq!(ask(&Request::new(expected[2], SB_BASIC), BYTES).err(), Some(Errno::ENOENT));
        assert_eq!(list_by(&Request::new(expected[2], 0), 8, 0), Err(Errno::ENOENT));
        assert_eq!(piece(expected[2], 8, 0), expected[3..]);
    });
}

/// The number stays when a mount comes elsewhere, or is what `/` is.
fn moved_and_pivoted() {
    alone(|| {
        for name in ["from", "to", "from/below"] {
            fs::create_dir_all(format!("/tmp/mounts/{name}")).unwrap();
        }
        mount("source", "/tmp/mounts/from", "tmpfs", 0, "").unwrap();
        fs::create_dir_all("/tmp/mounts/from/below").unwrap();
        mount("source", "/tmp/mounts/from/below", "tmpfs", 0, "").unwrap();
        let (top, _) = numbers("/tmp/mounts");
        let (moved, below) = (numbers("/tmp/mounts/from").0, numbers("/tmp/mounts/from/below").0);
        assert_eq!(list(top), [moved, below]);
        mount("/tmp/mounts/from", "/tmp/mounts/to", "", libc::MS_MOVE, "").unwrap();
        assert_eq!((numbers("/tmp/mounts/to").0, told(moved).point()), (moved, "/tmp/mounts/to"));
        assert_eq!((told(below).point(), told(below).parent()), ("/tmp/mounts/to/below", moved));
        assert_eq!((list(top), list(moved)), (vec![moved, below], vec![below]));
        // The moved one is the root from now on, with what it was mounted on behind it.
        fs::create_dir_all("/tmp/mounts/to/old").unwrap();
        let (new, old) = (c_string("/tmp/mounts/to"), c_string("/tmp/mounts/to/old"));
        // The file system that the kernel began with is no mount on another, which pivot_root(2) asks for.
        let pivoted = call(libc::SYS_pivot_root, [new.as_ptr() as usize, old.as_ptr() as usize, 0, 0, 0, 0]);
        if pivoted == Ok(0) {
            assert_eq!((numbers("/").0, told(moved).point(), told(below).point()), (moved, "/", "/below"));
            let all = list(ALL);
            assert!(all.contains(&moved) && all.contains(&below) && all.contains(&top), "{all:x?}");
            assert_eq!(told(top).point(), "/old/tmp/mounts");
        } else {
            assert_eq!(pivoted, Err(Errno::EINVAL));
        }
    });
}

/// What comes and goes by itself, where something else is mounted.
fn copies_that_show_elsewhere() {
    alone(|| {
        for name in ["one", "two"] {
            fs::create_dir_all(format!("/tmp/mounts/{name}")).unwrap();
        }
        mount("source", "/tmp/mounts/one", "tmpfs", 0, "").unwrap();
        mount("", "/tmp/mounts/one", "", libc::MS_SHARED, "").unwrap();
        mount("/tmp/mounts/one", "/tmp/mounts/two", "", libc::MS_BIND, "").unwrap();
        fs::create_dir("/tmp/mounts/one/in").unwrap();
        let before = list(ALL);
        mount("source", "/tmp/mounts/one/in", "tmpfs", 0, "").unwrap();
        let (here, there) = (numbers("/tmp/mounts/one/in").0, numbers("/tmp/mounts/two/in").0);
        assert_ne!(here, there);
        assert_eq!(told(there).point(), "/tmp/mounts/two/in");
        let both: Vec<u64> = list(ALL).into_iter().filter(|id| !before.contains(id)).collect();
        assert_eq!(both, [here.min(there), here.max(there)]);
        let path = c_string("/tmp/mounts/two/in");
        // SAFETY: a string that lives through the call.
        assert_eq!(unsafe { libc::umount2(path.as_ptr(), 0) }, 0);
        assert_eq!(list(ALL), before);
        for id in both {
            assert_eq!(ask(&Request::new(id, SB_BASIC), BYTES).err(), Some(Errno::ENOENT));
        }
    });
}

fn other_namespaces() {
    alone(|| {
        let (id, _) = numbers("/tmp/mounts");
        let namespace = told(id).u64(112);
        assert_ne!(namespace, 0);
        let here = Request { namespace, ..Request::new(id, FS_TYPE) };
        assert_eq!(ask(&here, 1024).unwrap().kind(), "tmpfs");
        in_child(|| {
            unshare(NEWNS).unwrap();
            let (copy, _) = numbers("/tmp/mounts");
            assert_ne!(copy, id);
            assert_ne!(told(copy).u64(112), namespace);
            assert_eq!(ask(&Request::new(id, SB_BASIC), BYTES).err(), Some(Errno::ENOENT));
            // By its number, with privileges there.
            assert_eq!(ask(&here, 1024).unwrap().kind(), "tmpfs");
            let all = list_by(&Request { namespace, ..Request::new(ALL, 0) }, 512, 0).unwrap();
            assert!(!all.is_empty() && !all.contains(&copy), "{all:x?} of {id:x}, here {copy:x}");
            // Linux begins with the second mount of a namespace: what covers the initial file system, but here that is not covered.
            assert!(all.contains(&id) || is_linux(), "{all:x?} lack {id:x}");
            // SAFETY: takes an integer.
            assert_eq!(unsafe { libc::setuid(1000) }, 0);
            assert_eq!(ask(&here, 1024).err(), Some(Errno::EPERM));
            let there = Request { namespace, ..Request::new(ALL, 0) };
            assert_eq!(list_by(&there, 512, 0), Err(Errno::ENOENT));
        });
        let none = Request { namespace: u64::MAX - 1, ..here };
        assert_eq!(ask(&none, 1024).err(), Some(Errno::ENOENT));
    });
}

fn below_the_root_only() {
    alone(|| {
        fs::create_dir_all("/tmp/mounts/jail/inside").unwrap();
        mount("source", "/tmp/mounts/jail/inside", "tmpfs", 0, "").unwrap();
        let (outside, inside) = (numbers("/tmp/mounts").0, numbers("/tmp/mounts/jail/inside").0);
        let jail = c_string("/tmp/mounts/jail");
        // SAFETY: a string that lives through the call.
        assert_eq!(unsafe { libc::chroot(jail.as_ptr()) }, 0);
        std::env::set_current_dir("/").unwrap();
        assert_eq!(told(inside).point(), "/inside");
        assert_eq!(list(ALL), [inside]);
        // Root may see the rest.
        assert_eq!((told(outside).point(), told(outside).mask()), ("", KNOWN));
        // SAFETY: takes an integer.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(told(inside).point(), "/inside");
        assert_eq!(ask(&Request::new(outside, SB_BASIC), BYTES).err(), Some(Errno::EPERM));
        assert_eq!(list_by(&Request::new(outside, 0), 8, 0), Err(Errno::EPERM));
    });
}

fn errors() {
    alone(|| {
        let mut rows = Rows::default();
        let (id, old) = numbers("/tmp/mounts");
        let good = Request::new(id, SB_BASIC);
        let mut out = [0u64; 512];
        let room = address(&out);
        let stat = |request: usize, out: usize, bytes: usize, flags: usize| {
            call(STATMOUNT, [request, out, bytes, flags, 0, 0])
        };
        let list = |request: usize, out: usize, number: usize, flags: usize| {
            call(LISTMOUNT, [request, out, number, flags, 0, 0])
        };
        row!(rows, OK, stat(address(&good), room, 4096, 0));
        row!(rows, EINVAL, stat(address(&good), room, 4096, 1));
        row!(rows, EFAULT, stat(1, room, 4096, 0));
        row!(rows, EFAULT, stat(address(&good), 8, 4096, 0));
        row!(rows, EFAULT, stat(address(&good), usize::MAX - 8, 4096, 0));
        let with = |size: u32, spare: u32, id: u64| Request { size, spare, ..Request::new(id, SB_BASIC) };
        row!(rows, OK, stat(address(&with(24, 0, id)), room, 4096, 0));
        row!(rows, EINVAL, stat(address(&with(23, 0, id)), room, 4096, 0));
        row!(rows, EINVAL, stat(address(&with(0, 0, id)), room, 4096, 0));
        row!(rows, E2BIG, stat(address(&with(4097, 0, id)), room, 4096, 0));
        row!(rows, EINVAL, stat(address(&with(32, 1, id)), room, 4096, 0));
        row!(rows, EINVAL, stat(address(&with(32, 0, old)), room, 4096, 0));
        row!(rows, EINVAL, stat(address(&with(32, 0, 0)), room, 4096, 0));
        row!(rows, ENOENT, stat(address(&with(32, 0, id + (1 << 40))), room, 4096, 0));
        row!(rows, ENOENT, stat(address(&with(32, 0, ALL)), room, 4096, 0));
        let longer = [with(40, 0, id), Request::new(0, 0)];
        row!(rows, E2BIG, stat(address(&longer), room, 4096, 0));
        let all = |param: u64| Request::new(ALL, param);
        row!(rows, OK, list(address(&all(0)), room, 512, 0));
        row!(rows, EINVAL, list(address(&all(0)), room, 512, 2));
        row!(rows, EOVERFLOW, list(address(&all(0)), room, 1_000_001, 0));
        row!(rows, EFAULT, list(1, room, 512, 0));
        row!(rows, EFAULT, list(address(&all(0)), 8, 512, 0));
        row!(rows, EINVAL, list(address(&all(1)), room, 512, 0));
        row!(rows, OK, list(address(&all(id + (1 << 40))), room, 512, 0));
        row!(rows, EINVAL, list(address(&Request::new(old, 0)), room, 512, 0));
        row!(rows, ENOENT, list(address(&Request::new(id + (1 << 40), 0)), room, 512, 0));
        out.fill(0);
        rows.finish();
    });
}

/// Hundreds of mounts, each of which is found by its number while another process mounts and unmounts.
fn many() {
    const MOUNTS: usize = 300;
    alone(|| {
        let other = roundtable_programs::child::fork(|| {
            fs::create_dir_all("/tmp/mounts/other").unwrap();
            for _ in 0..200 {
                mount("source", "/tmp/mounts/other", "tmpfs", 0, "").unwrap();
                let path = c_string("/tmp/mounts/other");
                // SAFETY: a string that lives through the call.
                assert_eq!(unsafe { libc::umount2(path.as_ptr(), 0) }, 0);
            }
        });
        let mut ids = Vec::new();
        for number in 0..MOUNTS {
            let path = format!("/tmp/mounts/{number}");
            fs::create_dir(&path).unwrap();
            mount("source", &path, "tmpfs", 0, "").unwrap();
            ids.push(numbers(&path).0);
            let seen = list(numbers("/tmp/mounts").0);
            assert!(ids.iter().all(|id| seen.contains(id)), "{number}: {seen:?} lack one of {ids:?}");
        }
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(told(*id).point(), format!("/tmp/mounts/{number}"));
        }
        other.ok();
    });
}
