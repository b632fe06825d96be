//! Mounting by descriptors: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), open_tree(2), fspick(2), mount_setattr(2).

use std::ffi::CString;
use std::fs;

use libc::{
    SYS_fsconfig, SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_mount_setattr, SYS_move_mount, SYS_open_tree,
};
use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::Fd;
use roundtable_programs::huge;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::{NEWNS, unshare};
use roundtable_programs::place;
use roundtable_programs::rows::Rows;
use roundtable_programs::{Errno, row, tests};

tests! { tmpfs_by_steps, hugetlbfs_by_steps, views_and_attributes, reconfiguration, errors, types_by_number, views_that_are_nowhere }

const SET_FLAG: usize = 0;
const SET_STRING: usize = 1;
const CREATE: usize = 6;
const RECONFIGURE: usize = 7;
const FROM_EMPTY: usize = 4;
const HERE: usize = libc::AT_FDCWD as usize;

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn fsopen(kind: &str) -> Result<Fd, Errno> {
    call(SYS_fsopen, [c(kind).as_ptr() as usize, 1, 0, 0, 0, 0]).map(Fd::own)
}

fn set(fd: &Fd, key: &str, value: &str) -> Answer {
    let (key, value) = (c(key), c(value));
    let arguments = [fd.raw() as usize, SET_STRING, key.as_ptr() as usize, value.as_ptr() as usize, 0, 0];
    call(SYS_fsconfig, arguments)
}

fn flag(fd: &Fd, key: &str) -> Answer {
    call(SYS_fsconfig, [fd.raw() as usize, SET_FLAG, c(key).as_ptr() as usize, 0, 0, 0])
}

fn command(fd: &Fd, command: usize) -> Answer {
    call(SYS_fsconfig, [fd.raw() as usize, command, 0, 0, 0, 0])
}

fn fsmount(fd: &Fd, attributes: usize) -> Result<Fd, Errno> {
    call(SYS_fsmount, [fd.raw() as usize, 1, attributes, 0, 0, 0]).map(Fd::own)
}

fn put(mount: &Fd, path: &str) -> Answer {
    let (empty, path) = (c(""), c(path));
    let from = [mount.raw() as usize, empty.as_ptr() as usize];
    call(SYS_move_mount, [from[0], from[1], HERE, path.as_ptr() as usize, FROM_EMPTY, 0])
}

/// A directory to mount on; what is mounted goes when this is dropped.
struct Place(String);

impl Place {
    fn new(name: &str) -> Place {
        let path = format!("/tmp/{name}");
        fs::create_dir_all(&path).expect("mkdir");
        Place(path)
    }

    /// The line of this mount.
    fn mounted(&self) -> Option<String> {
        let text = fs::read_to_string("/proc/self/mounts").unwrap();
        text.lines().find(|line| line.split(' ').nth(1) == Some(&self.0)).map(str::to_string)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: a string that lives through the call. There may be nothing mounted.
        unsafe { libc::umount2(c(&self.0).as_ptr(), libc::MNT_DETACH) };
    }
}

fn tmpfs_by_steps() {
    let place = Place::new("steps");
    let context = fsopen("tmpfs").expect("fsopen");
    assert_eq!(set(&context, "source", "nothing"), Ok(0));
    assert_eq!(set(&context, "size", "1M"), Ok(0));
    assert_eq!(set(&context, "mode", "0700"), Ok(0));
    assert_eq!(set(&context, "sise", "1M"), Err(Errno::EINVAL), "known at once");
    assert_eq!(fsmount(&context, 0).err(), Some(Errno::EINVAL), "before it was made");
    assert_eq!(command(&context, CREATE), Ok(0));
    assert_eq!(command(&context, CREATE), Err(Errno::EBUSY));
    let mount = fsmount(&context, 2 | 8).expect("fsmount");
    assert_eq!(fsmount(&context, 0).err(), Some(Errno::EBUSY), "once");
    assert!(place.mounted().is_none());
    // It can be used before it is anywhere.
    let path = c("early");
    // SAFETY: a string that lives through the call.
    let early = unsafe { libc::openat(mount.raw(), path.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600) };
    assert!(early >= 0);
    drop(Fd::own(early as usize));
    assert_eq!(put(&mount, &place.0), Ok(0));
    let line = place.mounted().expect("mounted");
    assert!(line.starts_with("nothing ") && line.contains("nosuid") && line.contains("noexec"), "{line}");
    assert!(line.contains("size=1024k") && line.contains("mode=700"), "{line}");
    assert!(fs::metadata(format!("{}/early", place.0)).is_ok());
    // From one place to another.
    let other = Place::new("other");
    assert_eq!(put(&mount, &other.0), Ok(0));
    assert!(place.mounted().is_none() && other.mounted().is_some());
}

fn hugetlbfs_by_steps() {
    huge::pool(4);
    let place = Place::new("huge-steps");
    let context = fsopen("hugetlbfs").expect("fsopen");
    assert_eq!(set(&context, "pagesize", "2M"), Ok(0));
    assert_eq!(set(&context, "size", "4M"), Ok(0));
    assert_eq!(set(&context, "min_size", "4M"), Ok(0));
    assert_eq!(set(&context, "pagesize", "3M"), Err(Errno::EINVAL));
    huge::expect_pool(4, 0);
    assert_eq!(command(&context, CREATE), Ok(0));
    huge::expect_pool(4, 2);
    let mount = fsmount(&context, 0).expect("fsmount");
    assert_eq!(put(&mount, &place.0), Ok(0));
    let line = place.mounted().expect("mounted");
    assert!(line.contains("pagesize=2M"), "{line}");
    drop((mount, context, place));
    huge::expect_counters(huge::Counters { total: 4, free: 4, reserved: 0, surplus: 0 });
    // What is never mounted goes with its descriptor.
    let context = fsopen("hugetlbfs").expect("fsopen");
    assert_eq!(set(&context, "min_size", "4M"), Ok(0));
    assert_eq!(command(&context, CREATE), Ok(0));
    huge::expect_pool(4, 2);
    drop(context);
    huge::expect_counters(huge::Counters { total: 4, free: 4, reserved: 0, surplus: 0 });
}

/// A tmpfs at a place.
fn mounted(place: &Place) -> Fd {
    let context = fsopen("tmpfs").expect("fsopen");
    assert_eq!(command(&context, CREATE), Ok(0));
    let mount = fsmount(&context, 0).expect("fsmount");
    assert_eq!(put(&mount, &place.0), Ok(0));
    mount
}

fn views_and_attributes() {
    const CLONE: usize = 1;
    const RECURSIVE: usize = libc::AT_RECURSIVE as usize;
    let (place, view) = (Place::new("origin"), Place::new("view"));
    let _mount = mounted(&place);
    fs::write(format!("{}/file", place.0), "seen").unwrap();
    let open_tree = |flags: usize| {
        let path = c(&place.0);
        call(SYS_open_tree, [HERE, path.as_ptr() as usize, flags, 0, 0, 0]).map(Fd::own)
    };
    let copy = open_tree(CLONE).expect("open_tree");
    assert_eq!(put(&copy, &view.0), Ok(0));
    assert_eq!(fs::read_to_string(format!("{}/file", view.0)).unwrap(), "seen");
    assert_eq!(open_tree(RECURSIVE).err(), Some(Errno::EINVAL));
    assert_eq!(open_tree(1 << 20).err(), Some(Errno::EINVAL));
    // The view becomes read-only, not what it shows.
    let change = |set: u64, clear: u64| {
        let attributes = [set, clear, 0, 0];
        let path = c(&view.0);
        let arguments = [HERE, path.as_ptr() as usize, 0, attributes.as_ptr() as usize, 32, 0];
        call(SYS_mount_setattr, arguments)
    };
    assert_eq!(change(1 | 8, 0), Ok(0));
    assert!(fs::write(format!("{}/file", view.0), "x").is_err());
    fs::write(format!("{}/file", place.0), "new").unwrap();
    assert!(view.mounted().unwrap().contains("noexec"));
    assert_eq!(change(0, 1), Ok(0));
    fs::write(format!("{}/file", view.0), "again").unwrap();
    assert_eq!(change(0x10, 0x70), Ok(0));
    assert!(view.mounted().unwrap().contains("noatime"));
    assert_eq!(change(0x10, 0), Err(Errno::EINVAL), "another kind only in place of the old");
    assert_eq!(change(1 << 40, 0), Err(Errno::EINVAL));
}

fn reconfiguration() {
    let place = Place::new("again");
    let _mount = mounted(&place);
    let pick = |path: &str| {
        let path = c(path);
        call(SYS_fspick, [HERE, path.as_ptr() as usize, 1, 0, 0, 0]).map(Fd::own)
    };
    let context = pick(&place.0).expect("fspick");
    assert_eq!(set(&context, "size", "2M"), Ok(0));
    assert_eq!(flag(&context, "ro"), Ok(0));
    assert_eq!(command(&context, RECONFIGURE), Ok(0));
    let line = place.mounted().unwrap();
    assert!(line.contains("size=2048k") && line.contains(" ro,"), "{line}");
    assert!(fs::write(format!("{}/file", place.0), "x").is_err());
    let below = Place::new("no-mount");
    assert_eq!(pick(&below.0).err(), Some(Errno::EINVAL));
}

/// sysfs(2): the types that there are, by number and name.
fn types_by_number() {
    let mut rows = Rows::default();
    let sysfs =
        |option: usize, first: usize, second: usize| call(libc::SYS_sysfs, [option, first, second, 0, 0, 0]);
    let count = sysfs(3, 0, 0).expect("count");
    let text = fs::read_to_string("/proc/filesystems").unwrap();
    assert_eq!(count, text.lines().count());
    let name = c("hugetlbfs");
    let number = sysfs(1, name.as_ptr() as usize, 0).expect("number");
    let mut out = [0u8; 64];
    assert_eq!(sysfs(2, number, out.as_mut_ptr() as usize), Ok(0));
    assert_eq!(&out[..10], b"hugetlbfs\0");
    row!(rows, EINVAL, sysfs(1, c("nofs").as_ptr() as usize, 0));
    row!(rows, EFAULT, sysfs(1, 1, 0));
    row!(rows, EINVAL, sysfs(2, 1000, 1));
    row!(rows, EFAULT, sysfs(2, 0, 1));
    row!(rows, EINVAL, sysfs(0, 0, 0));
    rows.finish();
}

fn errors() {
    let mut rows = Rows::default();
    let place = Place::new("errors");
    row!(rows, ENODEV, fsopen("nofs").map(|_| 0));
    row!(rows, EINVAL, call(SYS_fsopen, [c("tmpfs").as_ptr() as usize, 2, 0, 0, 0, 0]));
    row!(rows, EFAULT, call(SYS_fsopen, [1, 0, 0, 0, 0, 0]));
    let context = fsopen("tmpfs").unwrap();
    let config = |command: usize, key: usize, value: usize, extra: i32| {
        call(SYS_fsconfig, [context.raw() as usize, command, key, value, extra as usize, 0])
    };
    let key = c("size");
    let at = key.as_ptr() as usize;
    row!(rows, EINVAL, config(SET_FLAG, 0, 0, 0));
    row!(rows, EINVAL, config(SET_FLAG, at, at, 0));
    row!(rows, EINVAL, config(SET_STRING, at, 0, 0));
    row!(rows, EINVAL, config(SET_STRING, at, at, 1));
    row!(rows, EINVAL, config(CREATE, at, 0, 0));
    row!(rows, EOPNOTSUPP, config(99, 0, 0, 0));
    row!(rows, EINVAL, call(SYS_fsconfig, [usize::MAX, CREATE, 0, 0, 0, 0]));
    row!(rows, EBADF, call(SYS_fsconfig, [999, CREATE, 0, 0, 0, 0]));
    row!(rows, EINVAL, command(&Fd::of_pages(1), CREATE));
    row!(rows, EINVAL, fsmount(&Fd::of_pages(1), 0).map(|_| 0));
    row!(rows, EBADF, call(SYS_fsmount, [999, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, fsmount(&context, 1 << 30).map(|_| 0));
    row!(rows, EINVAL, fsmount(&context, 0x30).map(|_| 0));
    let path = c(&place.0);
    let here = path.as_ptr() as usize;
    row!(rows, EINVAL, call(SYS_move_mount, [HERE, here, HERE, here, 0x8000, 0]));
    row!(rows, EINVAL, call(SYS_move_mount, [HERE, here, HERE, here, 0, 0]));
    row!(rows, ENOENT, call(SYS_move_mount, [HERE, c("").as_ptr() as usize, HERE, here, 0, 0]));
    row!(rows, EINVAL, call(SYS_mount_setattr, [HERE, here, 0, here, 16, 0]));
    row!(rows, E2BIG, call(SYS_mount_setattr, [HERE, here, 0, here, 1 << 20, 0]));
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(fsopen("tmpfs").err(), Some(Errno::EPERM));
        assert_eq!(fsmount(&context, 0).err(), Some(Errno::EPERM));
    })
    .ok();
    rows.finish();
}

/// A view is set up before it comes to its place, whatever namespace one is in; nothing is mounted on it until then.
fn views_that_are_nowhere() {
    let look = |new_namespace: bool| {
        in_child(|| {
            if new_namespace {
                unshare(NEWNS).unwrap();
                place::mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
            }
            let (origin, view) = (Place::new("nowhere"), Place::new("somewhere"));
            let _mount = mounted(&origin);
            fs::create_dir(format!("{}/below", origin.0)).unwrap();
            let path = c(&origin.0);
            let tree = call(SYS_open_tree, [HERE, path.as_ptr() as usize, 1, 0, 0, 0]).map(Fd::own).unwrap();
            let set = |fd: &Fd| {
                let (empty, attributes) = (c(""), [1u64, 0, 0, 0]);
                let (empty, attributes) = (empty.as_ptr() as usize, attributes.as_ptr() as usize);
                let flags = libc::AT_EMPTY_PATH as usize;
                call(SYS_mount_setattr, [fd.raw() as usize, empty, flags, attributes, 32, 0])
            };
            let mut rows = Rows::default();
            row!(rows, OK, set(&tree));
            let below = format!("/proc/self/fd/{}/below", tree.raw());
            row!(rows, EINVAL, place::mount("none", &below, "tmpfs", 0, "").map(|()| 0));
            row!(rows, EINVAL, place::mount(&origin.0, &below, "", libc::MS_BIND, "").map(|()| 0));
            row!(rows, OK, put(&tree, &view.0));
            row!(rows, OK, set(&tree));
            rows.finish();
            assert!(fs::write(format!("{}/file", view.0), "x").is_err());
            fs::write(format!("{}/file", origin.0), "x").unwrap();
            place::umount(&view.0, libc::MNT_DETACH).unwrap();
            assert_eq!(set(&tree), Err(Errno::EINVAL), "it was somewhere, and is not any more");
        });
    };
    look(false);
    look(true);
}
