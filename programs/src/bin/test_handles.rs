//! File handles: files that are found without their names.

use std::fs;

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::c_string;
use roundtable_programs::{Errno, huge, row, sys, tests};

tests! { found_again, found_under_another_name, gone_files, of_descriptors, of_huge_files, of_other_file_systems,
what_is_refused, rights, many_at_once }

const AT_FDCWD: usize = libc::AT_FDCWD as isize as usize;
const AT_HANDLE_FID: usize = 0x200;
const AT_HANDLE_MNT_ID_UNIQUE: usize = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

impl Handle {
    fn with_room(bytes: u32) -> Handle {
        Handle { bytes, kind: 0, data: [0; 128] }
    }
}

/// The handle of a file, and the number of its mount.
fn name(dirfd: usize, path: &str, flags: usize, handle: &mut Handle) -> Result<i32, Errno> {
    let path = c_string(path);
    let mut mount = -1i32;
    let arguments =
        [dirfd, path.as_ptr() as usize, &raw mut *handle as usize, &raw mut mount as usize, flags, 0];
    call(libc::SYS_name_to_handle_at, arguments).map(|_| mount)
}

#[track_caller]
fn handle_of(path: &str) -> Handle {
    let mut handle = Handle::with_room(128);
    name(AT_FDCWD, path, 0, &mut handle).unwrap_or_else(|error| panic!("{path}: {error}"));
    handle
}

fn open(mount: &Fd, handle: &Handle, flags: i32) -> Result<Fd, Errno> {
    let arguments = [mount.raw() as usize, &raw const *handle as usize, flags as usize, 0, 0, 0];
    call(libc::SYS_open_by_handle_at, arguments).map(Fd::own)
}

fn result(opened: Result<Fd, Errno>) -> Result<usize, Errno> {
    opened.map(|_| 0)
}

/// A tmpfs of one's own, in a directory of its own.
struct Place {
    path: String,
}

impl Place {
    fn new() -> Place {
        let path = format!("/tmp/handles-{}-{}", sys::pid(), fs::read_dir("/tmp").map_or(0, Iterator::count));
        fs::create_dir_all(&path).unwrap();
        let (kind, at) = (c_string("tmpfs"), c_string(&path));
        // SAFETY: the strings live through the call.
        let mounted = unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        sys::check(mounted).expect("mount");
        Place { path }
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    fn mount(&self) -> Fd {
        Fd::open(&self.path, libc::O_RDONLY | libc::O_DIRECTORY).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let at = c_string(&self.path);
        // SAFETY: the string lives through the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        let _ = fs::remove_dir(&self.path);
    }
}

fn content(file: &Fd) -> String {
    let mut bytes = [0; 16];
    let count = file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

fn place_of(file: &Fd) -> String {
    fs::read_link(format!("/proc/self/fd/{}", file.raw())).unwrap().to_string_lossy().into_owned()
}

fn found_again() {
    let place = Place::new();
    fs::create_dir_all(place.at("a/b")).unwrap();
    fs::write(place.at("a/b/file"), "one").unwrap();
    let handle = handle_of(&place.at("a/b/file"));
    assert_eq!((handle.bytes, handle.kind), (12, 1));
    // It is the same each time, and another file has another.
    assert_eq!(handle, handle_of(&place.at("a/b/file")));
    fs::write(place.at("other"), "two").unwrap();
    assert_ne!(handle, handle_of(&place.at("other")));
    let file = open(&place.mount(), &handle, libc::O_RDWR).unwrap();
    assert_eq!((content(&file), place_of(&file)), ("one".to_string(), place.at("a/b/file")));
    file.write_at(b"ONE", 0).unwrap();
    assert_eq!(fs::read_to_string(place.at("a/b/file")).unwrap(), "ONE");
    let directory = open(&place.mount(), &handle_of(&place.at("a/b")), libc::O_RDONLY).unwrap();
    assert_eq!(place_of(&directory), place.at("a/b"));
    // From any place of the file system, but not through a descriptor that only names one.
    let inside = Fd::open(&place.at("other"), libc::O_RDONLY).unwrap();
    assert_eq!(content(&open(&inside, &handle, libc::O_RDONLY).unwrap()), "ONE");
    let named = Fd::open(&place.at("other"), libc::O_PATH).unwrap();
    assert_eq!(result(open(&named, &handle, libc::O_RDONLY)), Err(Errno::EBADF));
    let path_only = open(&place.mount(), &handle, libc::O_PATH).unwrap();
    assert_eq!(path_only.read(&mut [0]), Err(Errno::EBADF));
}

fn found_under_another_name() {
    let place = Place::new();
    fs::write(place.at("file"), "one").unwrap();
    fs::create_dir_all(place.at("deep/down")).unwrap();
    let (handle, directory) = (handle_of(&place.at("file")), handle_of(&place.at("deep/down")));
    fs::rename(place.at("file"), place.at("deep/down/moved")).unwrap();
    fs::rename(place.at("deep"), place.at("shallow")).unwrap();
    let file = open(&place.mount(), &handle, libc::O_RDONLY).unwrap();
    assert_eq!((content(&file), place_of(&file)), ("one".to_string(), place.at("shallow/down/moved")));
    let directory = open(&place.mount(), &directory, libc::O_RDONLY).unwrap();
    assert_eq!(place_of(&directory), place.at("shallow/down"));
    drop(file);
    // Another name is as good, when the first is gone.
    fs::hard_link(place.at("shallow/down/moved"), place.at("link")).unwrap();
    fs::remove_file(place.at("shallow/down/moved")).unwrap();
    assert_eq!(content(&open(&place.mount(), &handle, libc::O_RDONLY).unwrap()), "one");
    assert_eq!(handle, handle_of(&place.at("link")));
    // A symbolic link has one of its own.
    std::os::unix::fs::symlink("link", place.at("symlink")).unwrap();
    let symlink = handle_of(&place.at("symlink"));
    assert_ne!(symlink, handle);
    assert_eq!(result(open(&place.mount(), &symlink, libc::O_RDONLY)), Err(Errno::ELOOP));
    assert!(open(&place.mount(), &symlink, libc::O_PATH).is_ok());
    let mut followed = Handle::with_room(128);
    name(AT_FDCWD, &place.at("symlink"), libc::AT_SYMLINK_FOLLOW as usize, &mut followed).unwrap();
    assert_eq!(followed, handle);
}

fn gone_files() {
    let place = Place::new();
    fs::write(place.at("file"), "one").unwrap();
    let handle = handle_of(&place.at("file"));
    let file = Fd::open(&place.at("file"), libc::O_RDONLY).unwrap();
    fs::remove_file(place.at("file")).unwrap();
    // While it is open it is there.
    assert_eq!(content(&open(&place.mount(), &handle, libc::O_RDONLY).unwrap()), "one");
    drop(file);
    assert_eq!(result(open(&place.mount(), &handle, libc::O_RDONLY)), Err(Errno::ESTALE));
    fs::create_dir(place.at("dir")).unwrap();
    let directory = handle_of(&place.at("dir"));
    fs::remove_dir(place.at("dir")).unwrap();
    assert_eq!(result(open(&place.mount(), &directory, libc::O_RDONLY)), Err(Errno::ESTALE));
    // A handle of one file system is none of another.
    let other = Place::new();
    fs::write(place.at("new"), "one").unwrap();
    fs::write(other.at("new"), "two").unwrap();
    let handle = handle_of(&place.at("new"));
    let found = open(&other.mount(), &handle, libc::O_RDONLY);
    assert_eq!(result(found), Err(Errno::ESTALE));
}

fn of_descriptors() {
    let file = Fd::memfd("handle", 0).unwrap();
    file.write(b"memfd").unwrap();
    let mut handle = Handle::with_room(128);
    name(file.raw() as usize, "", libc::AT_EMPTY_PATH as usize, &mut handle).unwrap();
    let again = open(&file, &handle, libc::O_RDONLY).unwrap();
    assert_eq!((content(&again), again.stat().st_ino), ("memfd".to_string(), file.stat().st_ino));
    let mut rows = Rows::default();
    row!(rows, ENOENT, name(file.raw() as usize, "", 0, &mut handle).map(|_| 0));
    row!(rows, EBADF, name(999, "", libc::AT_EMPTY_PATH as usize, &mut handle).map(|_| 0));
    row!(rows, ENOTDIR, name(file.raw() as usize, "x", 0, &mut handle).map(|_| 0));
    rows.finish();
}

fn of_huge_files() {
    let file = huge::sized(1);
    let mut handle = Handle::with_room(128);
    let own = |handle: &mut Handle, flags: usize| {
        name(file.raw() as usize, "", libc::AT_EMPTY_PATH as usize | flags, handle).map(|_| 0)
    };
    // As Linux's hugetlbfs: none by which one could find it again.
    let mut rows = Rows::default();
    row!(rows, EOPNOTSUPP, own(&mut handle, 0));
    row!(rows, OK, own(&mut handle, AT_HANDLE_FID));
    assert_eq!((handle.bytes, handle.kind), (12, 0x81));
    assert_eq!(handle.data[..8], file.stat().st_ino.to_ne_bytes());
    row!(rows, ESTALE, result(open(&file, &handle, libc::O_RDONLY)));
    rows.finish();
}

fn of_other_file_systems() {
    let mut handle = Handle::with_room(128);
    let mut rows = Rows::default();
    row!(rows, EOPNOTSUPP, name(AT_FDCWD, "/proc/self/status", 0, &mut handle).map(|_| 0));
    row!(rows, OK, name(AT_FDCWD, "/proc/self/status", AT_HANDLE_FID, &mut handle).map(|_| 0));
    let (read, _write) = roundtable_programs::file::pipe(0);
    let empty = libc::AT_EMPTY_PATH as usize;
    row!(rows, EOPNOTSUPP, name(read.raw() as usize, "", empty, &mut handle).map(|_| 0));
    rows.finish();
}

fn what_is_refused() {
    let place = Place::new();
    let path = place.at("file");
    fs::write(&path, "one").unwrap();
    let good = handle_of(&path);
    let named = |room: u32, flags: usize| {
        let mut handle = Handle::with_room(room);
        let answer = name(AT_FDCWD, &path, flags, &mut handle).map(|_| 0);
        (answer, handle.bytes)
    };
    let mut rows = Rows::default();
    row!(rows, EINVAL, named(129, 0).0);
    row!(rows, EINVAL, named(128, 0x1000_0000).0);
    row!(rows, ENOENT, name(AT_FDCWD, &place.at("none"), 0, &mut Handle::with_room(128)).map(|_| 0));
    // How much room it takes is told.
    for room in [0, 1, 11] {
        row!(rows, EOVERFLOW, named(room, 0).0);
        assert_eq!(named(room, 0).1, 12);
    }
    row!(rows, OK, named(12, 0).0);
    let (text, handle) = (c_string(&path), Handle::with_room(128));
    let raw = |handle: usize, mount: usize| {
        call(libc::SYS_name_to_handle_at, [AT_FDCWD, text.as_ptr() as usize, handle, mount, 0, 0])
    };
    row!(rows, EFAULT, raw(8, &raw const handle as usize));
    row!(rows, EFAULT, raw(&raw const handle as usize, 8));
    row!(rows, EFAULT, call(libc::SYS_name_to_handle_at, [AT_FDCWD, 8, 0, 0, 0, 0]));
    let mount = place.mount();
    let opened = |change: &dyn Fn(&mut Handle)| {
        let mut handle = good;
        change(&mut handle);
        result(open(&mount, &handle, libc::O_RDONLY))
    };
    row!(rows, OK, opened(&|_| ()));
    row!(rows, EINVAL, opened(&|handle| handle.bytes = 0));
    row!(rows, EINVAL, opened(&|handle| handle.bytes = 129));
    row!(rows, ESTALE, opened(&|handle| handle.bytes = 8));
    row!(rows, ESTALE, opened(&|handle| handle.data[0] ^= 1));
    row!(rows, ESTALE, opened(&|handle| handle.data[4] ^= 0x55));
    row!(rows, EBADF, call(libc::SYS_open_by_handle_at, [999, &raw const good as usize, 0, 0, 0, 0]));
    row!(rows, EFAULT, call(libc::SYS_open_by_handle_at, [mount.raw() as usize, 8, 0, 0, 0, 0]));
    row!(rows, ENOTDIR, result(open(&mount, &good, libc::O_RDONLY | libc::O_DIRECTORY)));
    rows.finish();
    // The mount's number, in either kind.
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = info.lines().find(|line| line.split(' ').nth(4) == Some(&place.path)).unwrap();
    let id: i32 = line.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(name(AT_FDCWD, &path, 0, &mut Handle::with_room(128)), Ok(id));
    let mut unique = 0u64;
    let mut handle = Handle::with_room(128);
    let arguments = [
        AT_FDCWD,
        text.as_ptr() as usize,
        &raw mut handle as usize,
        &raw mut unique as usize,
        AT_HANDLE_MNT_ID_UNIQUE,
        0,
    ];
    assert_eq!(call(libc::SYS_name_to_handle_at, arguments), Ok(0));
    assert_ne!(unique, 0);
}

fn rights() {
    let place = Place::new();
    fs::write(place.at("file"), "one").unwrap();
    let handle = handle_of(&place.at("file"));
    let mount = place.mount();
    in_child(|| {
        // SAFETY: takes integers.
        sys::check(unsafe { libc::setuid(1000) }).unwrap();
        // Anybody may ask for one, and only who may look at everything may use it.
        assert_eq!(handle_of(&place.at("file")), handle);
        assert_eq!(result(open(&mount, &handle, libc::O_RDONLY)), Err(Errno::EPERM));
    });
}

/// Files with handles come and go in several processes: no handle leads to a wrong file.
fn many_at_once() {
    let place = Place::new();
    let mount = place.mount();
    let children: Vec<_> = (0..4)
        .map(|me| {
            let (place, mount) = (&place, &mount);
            roundtable_programs::child::fork(move || {
                for round in 0..200 {
                    let (path, other) = (place.at(&format!("{me}-{round}")), place.at(&format!("{me}")));
                    let text = format!("{me} {round}");
                    fs::write(&path, &text).unwrap();
                    let handle = handle_of(&path);
                    fs::rename(&path, &other).unwrap();
                    assert_eq!(content(&open(mount, &handle, libc::O_RDONLY).unwrap()), text);
                    fs::remove_file(&other).unwrap();
                    assert_eq!(result(open(mount, &handle, libc::O_RDONLY)), Err(Errno::ESTALE));
                }
            })
        })
        .collect();
    children.into_iter().for_each(|child| child.ok());
}
