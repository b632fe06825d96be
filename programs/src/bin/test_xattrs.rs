//! Extended attributes: of files in memory, and what the other file systems answer.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use roundtable_programs::child::in_child;
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::huge;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::{NEWNS, become_root_of_own};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::{Errno, row, tests};

tests! { values, lists, lengths, links, kinds_of_files, classes, rights, in_a_user_namespace, read_only, other_file_systems, bounds }

const CREATE: usize = 1;
const REPLACE: usize = 2;
/// Version 2, nothing permitted.
const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn set(path: &str, name: &str, value: &[u8], flags: usize) -> Answer {
    let (path, name) = (c_string(path), c_string(name));
    let arguments = [path.as_ptr() as usize, name.as_ptr() as usize, value.as_ptr() as usize, value.len()];
    let [path, name, value, size] = arguments;
    call(libc::SYS_setxattr, [path, name, value, size, flags, 0])
}

fn get_by(number: i64, path: &str, name: &str) -> Result<Vec<u8>, Errno> {
    let (path, name) = (c_string(path), c_string(name));
    let mut room = vec![0u8; 70_000];
    let arguments =
        [path.as_ptr() as usize, name.as_ptr() as usize, room.as_mut_ptr() as usize, room.len(), 0, 0];
    let length = call(number, arguments)?;
    room.truncate(length);
    Ok(room)
}

fn get(path: &str, name: &str) -> Result<Vec<u8>, Errno> {
    get_by(libc::SYS_getxattr, path, name)
}

fn remove(path: &str, name: &str) -> Answer {
    let (path, name) = (c_string(path), c_string(name));
    call(libc::SYS_removexattr, [path.as_ptr() as usize, name.as_ptr() as usize, 0, 0, 0, 0])
}

/// The names, in order.
fn list(path: &str) -> Result<Vec<String>, Errno> {
    let path = c_string(path);
    let mut room = vec![0u8; 70_000];
    let arguments = [path.as_ptr() as usize, room.as_mut_ptr() as usize, room.len(), 0, 0, 0];
    let length = call(libc::SYS_listxattr, arguments)?;
    let text = String::from_utf8(room[..length].to_vec()).unwrap();
    let mut names: Vec<String> = text.split_terminator('\0').map(str::to_string).collect();
    names.sort();
    Ok(names)
}

/// A fresh tmpfs with a file `f` in it, seen by the test alone.
fn fresh(work: impl FnOnce()) {
    fresh_with("", work);
}

fn fresh_with(options: &str, work: impl FnOnce()) {
    fs::create_dir_all("/tmp/xattrs").unwrap();
    in_child(|| {
        let [none, target, kind, options] = ["none", "/tmp/xattrs", "tmpfs", options].map(c_string);
        // SAFETY: all strings live through the calls.
        unsafe {
            check(libc::unshare(NEWNS)).unwrap();
            let data = options.as_ptr().cast();
            check(libc::mount(none.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data)).unwrap();
        }
        std::env::set_current_dir("/tmp/xattrs").unwrap();
        fs::write("f", "x").unwrap();
        work();
    });
}

fn values() {
    fresh(|| {
        let mut rows = Rows::default();
        row!(rows, ENODATA, get("f", "user.a").map(|value| value.len()));
        row!(rows, OK, set("f", "user.a", b"one", 0));
        assert_eq!(get("f", "user.a"), Ok(b"one".to_vec()));
        row!(rows, EEXIST, set("f", "user.a", b"two", CREATE));
        row!(rows, OK, set("f", "user.a", b"three", REPLACE));
        assert_eq!(get("f", "user.a"), Ok(b"three".to_vec()));
        row!(rows, ENODATA, set("f", "user.b", b"x", REPLACE));
        row!(rows, EEXIST, set("f", "user.a", b"x", CREATE | REPLACE));
        row!(rows, ENODATA, set("f", "user.b", b"x", CREATE | REPLACE));
        row!(rows, OK, set("f", "user.empty", b"", CREATE));
        assert_eq!(get("f", "user.empty"), Ok(Vec::new()));
        row!(rows, EINVAL, set("f", "user.a", b"x", 4));
        row!(rows, OK, remove("f", "user.a"));
        row!(rows, ENODATA, remove("f", "user.a"));
        row!(rows, ENODATA, get("f", "user.a").map(|value| value.len()));
        row!(rows, ENOENT, set("g", "user.a", b"x", 0));
        row!(rows, ENOENT, get("g", "user.a").map(|value| value.len()));
        // They are the file's, and not its name's.
        row!(rows, OK, set("f", "user.kept", &[0, 1, 255], 0));
        fs::hard_link("f", "second").unwrap();
        fs::rename("f", "renamed").unwrap();
        assert_eq!(get("second", "user.kept"), Ok(vec![0, 1, 255]));
        assert_eq!(get("renamed", "user.kept"), Ok(vec![0, 1, 255]));
        rows.finish();
    });
}

fn lists() {
    fresh(|| {
        assert_eq!(list("f"), Ok(Vec::new()));
        for name in ["user.b", "user.a", "trusted.c", "security.d"] {
            assert_eq!(set("f", name, b"x", 0), Ok(0), "{name}");
        }
        assert_eq!(list("f").unwrap(), ["security.d", "trusted.c", "user.a", "user.b"]);
        remove("f", "user.b").unwrap();
        fs::set_permissions("f", fs::Permissions::from_mode(0o666)).unwrap();
        // SAFETY: takes an integer.
        check(unsafe { libc::setuid(1000) }).unwrap();
        assert_eq!(list("f").unwrap(), ["security.d", "user.a"]);
    });
}

fn lengths() {
    fresh(|| {
        let mut rows = Rows::default();
        let long = format!("user.{}", "n".repeat(250));
        row!(rows, OK, set("f", &long, b"x", 0));
        row!(rows, ERANGE, set("f", &format!("{long}n"), b"x", 0));
        row!(rows, ERANGE, get("f", &format!("{long}n")).map(|value| value.len()));
        row!(rows, ERANGE, set("f", "", b"x", 0));
        row!(rows, ERANGE, remove("f", ""));
        row!(rows, OK, set("f", "user.large", &vec![7; 65536], 0));
        row!(rows, E2BIG, set("f", "user.large", &vec![7; 65537], 0));
        assert_eq!(get("f", "user.large").unwrap(), vec![7; 65536]);
        let (path, name) = (c_string("f"), c_string("user.large"));
        let mut small = [0u8; 8];
        let mut ask = |size: usize| {
            let room = small.as_mut_ptr() as usize;
            call(libc::SYS_getxattr, [path.as_ptr() as usize, name.as_ptr() as usize, room, size, 0, 0])
        };
        assert_eq!(ask(0), Ok(65536));
        row!(rows, ERANGE, ask(8));
        row!(rows, ERANGE, call(libc::SYS_listxattr, [path.as_ptr() as usize, 0, 1, 0, 0, 0]));
        assert_eq!(
            call(libc::SYS_listxattr, [path.as_ptr() as usize, 0, 0, 0, 0, 0]),
            Ok(long.len() + 1 + "user.large".len() + 1)
        );
        row!(rows, EFAULT, call(libc::SYS_getxattr, [path.as_ptr() as usize, 8, 0, 0, 0, 0]));
        let value = [path.as_ptr() as usize, name.as_ptr() as usize, 8, 100, 0, 0];
        row!(rows, EFAULT, call(libc::SYS_setxattr, value));
        row!(
            rows,
            EFAULT,
            call(libc::SYS_getxattr, [path.as_ptr() as usize, name.as_ptr() as usize, 8, 65536, 0, 0])
        );
        rows.finish();
    });
}

fn links() {
    fresh(|| {
        let mut rows = Rows::default();
        symlink("f", "link").unwrap();
        row!(rows, OK, set("link", "user.a", b"of the file", 0));
        assert_eq!(get("f", "user.a"), Ok(b"of the file".to_vec()));
        let at_link = |number: i64, name: &str, value: &[u8]| {
            let (path, name) = (c_string("link"), c_string(name));
            let (path, name) = (path.as_ptr() as usize, name.as_ptr() as usize);
            call(number, [path, name, value.as_ptr() as usize, value.len(), 0, 0])
        };
        row!(rows, EPERM, at_link(libc::SYS_lsetxattr, "user.a", b"x"));
        row!(rows, OK, at_link(libc::SYS_lsetxattr, "trusted.a", b"of the link"));
        assert_eq!(get_by(libc::SYS_lgetxattr, "link", "trusted.a"), Ok(b"of the link".to_vec()));
        row!(rows, ENODATA, get("link", "trusted.a").map(|value| value.len()));
        row!(rows, OK, at_link(libc::SYS_lremovexattr, "trusted.a", b""));
        row!(rows, ENODATA, at_link(libc::SYS_lremovexattr, "trusted.a", b""));
        row!(rows, ENODATA, get_by(libc::SYS_lgetxattr, "link", "user.a").map(|value| value.len()));
        // By a descriptor.
        let file = Fd::open("f", libc::O_RDONLY).unwrap();
        let name = c_string("user.b");
        let by_fd = |number: i64, fd: &Fd, value: &[u8]| {
            call(
                number,
                [fd.raw() as usize, name.as_ptr() as usize, value.as_ptr() as usize, value.len(), 0, 0],
            )
        };
        row!(rows, OK, by_fd(libc::SYS_fsetxattr, &file, b"by fd"));
        assert_eq!(get("f", "user.b"), Ok(b"by fd".to_vec()));
        assert_eq!(by_fd(libc::SYS_fgetxattr, &file, b""), Ok(5));
        row!(rows, OK, by_fd(libc::SYS_fremovexattr, &file, b""));
        assert_eq!(call(libc::SYS_flistxattr, [file.raw() as usize, 0, 0, 0, 0, 0]), Ok("user.a".len() + 1));
        let place = Fd::open("f", libc::O_PATH).unwrap();
        row!(rows, EBADF, by_fd(libc::SYS_fgetxattr, &place, b""));
        row!(rows, EBADF, by_fd(libc::SYS_fsetxattr, &place, b"x"));
        rows.finish();
    });
}

fn kinds_of_files() {
    fresh(|| {
        let mut rows = Rows::default();
        fs::create_dir("d").unwrap();
        row!(rows, OK, set("d", "user.a", b"x", 0));
        assert_eq!(get("d", "user.a"), Ok(b"x".to_vec()));
        let fifo = c_string("fifo");
        // SAFETY: the string is there.
        check(unsafe { libc::mkfifo(fifo.as_ptr(), 0o666) }).unwrap();
        row!(rows, EPERM, set("fifo", "user.a", b"x", 0));
        row!(rows, ENODATA, get("fifo", "user.a").map(|value| value.len()));
        row!(rows, OK, set("fifo", "trusted.a", b"x", 0));
        rows.finish();
    });
}

fn classes() {
    fresh(|| {
        let mut rows = Rows::default();
        row!(rows, EOPNOTSUPP, set("f", "other.a", b"x", 0));
        row!(rows, EOPNOTSUPP, get("f", "other.a").map(|value| value.len()));
        row!(rows, EOPNOTSUPP, remove("f", "other.a"));
        row!(rows, EINVAL, set("f", "user.", b"x", 0));
        row!(rows, EINVAL, get("f", "user.").map(|value| value.len()));
        row!(rows, EOPNOTSUPP, set("f", "user", b"x", 0));
        row!(rows, EINVAL, set("f", "security.capability", b"x", 0));
        row!(rows, OK, set("f", "security.capability", &CAPABILITY, 0));
        assert_eq!(get("f", "security.capability"), Ok(CAPABILITY.to_vec()));
        rows.finish();
    });
}

fn rights() {
    fresh(|| {
        let mut rows = Rows::default();
        fs::set_permissions(".", fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["user.a", "trusted.a", "security.a"] {
            set("f", name, b"x", 0).unwrap();
        }
        fs::create_dir("sticky").unwrap();
        fs::set_permissions("sticky", fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write("secret", "x").unwrap();
        set("secret", "user.a", b"x", 0).unwrap();
        fs::set_permissions("secret", fs::Permissions::from_mode(0o600)).unwrap();
        // SAFETY: takes an integer.
        check(unsafe { libc::setuid(1000) }).unwrap();
        let seen = |name: &str| get("f", name).map(|value| value.len() - 1);
        row!(rows, OK, seen("user.a"));
        row!(rows, OK, seen("security.a"));
        row!(rows, ENODATA, seen("trusted.a"));
        row!(rows, EACCES, set("f", "user.a", b"y", 0));
        row!(rows, EPERM, set("f", "trusted.a", b"y", 0));
        row!(rows, EPERM, set("f", "security.a", b"y", 0));
        row!(rows, EINVAL, set("f", "security.capability", b"y", 0));
        row!(rows, EPERM, set("f", "security.capability", &CAPABILITY, 0));
        row!(rows, EPERM, remove("f", "trusted.a"));
        row!(rows, EACCES, remove("f", "user.a"));
        row!(rows, EPERM, set("sticky", "user.a", b"y", 0));
        row!(rows, EACCES, get("secret", "user.a").map(|value| value.len()));
        rows.finish();
    });
}

fn in_a_user_namespace() {
    fresh(|| {
        let mut rows = Rows::default();
        set("f", "trusted.a", b"x", 0).unwrap();
        become_root_of_own(0);
        row!(rows, OK, set("f", "user.a", b"x", 0));
        row!(rows, EPERM, set("f", "trusted.a", b"y", 0));
        row!(rows, ENODATA, get("f", "trusted.a").map(|value| value.len()));
        row!(rows, EPERM, set("f", "security.a", b"y", 0));
        assert_eq!(list("f").unwrap(), ["user.a"]);
        rows.finish();
    });
}

fn read_only() {
    fresh(|| {
        let mut rows = Rows::default();
        set("f", "user.a", b"x", 0).unwrap();
        let (none, target) = (c_string("none"), c_string("/tmp/xattrs"));
        let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        // SAFETY: all strings live through the call.
        let remounted =
            unsafe { libc::mount(none.as_ptr(), target.as_ptr(), none.as_ptr(), flags, std::ptr::null()) };
        check(remounted).unwrap();
        std::env::set_current_dir("/tmp/xattrs").unwrap();
        row!(rows, EROFS, set("f", "user.b", b"x", 0));
        row!(rows, EROFS, remove("f", "user.a"));
        row!(rows, OK, get("f", "user.a").map(|value| value.len() - 1));
        rows.finish();
    });
}

fn other_file_systems() {
    huge::pool(1);
    let mut rows = Rows::default();
    let memory = Fd::memfd("xattrs", 0).unwrap();
    let of = |fd: &Fd| format!("/proc/self/fd/{}", fd.raw());
    row!(rows, OK, set(&of(&memory), "user.a", b"x", 0));
    assert_eq!(get(&of(&memory), "user.a"), Ok(b"x".to_vec()));
    let huge = huge::sized(1);
    let files = [of(&huge), "/proc/version".to_string()];
    for path in files {
        row!(rows, EOPNOTSUPP, get(&path, "user.a").map(|value| value.len()));
        assert_eq!(list(&path), Ok(Vec::new()), "{path}");
    }
    row!(rows, EOPNOTSUPP, set(&of(&huge), "user.a", b"x", 0));
    row!(rows, EOPNOTSUPP, set(&of(&huge), "trusted.a", b"x", 0));
    row!(rows, EOPNOTSUPP, remove(&of(&huge), "user.a"));
    let (read, _write) = pipe(0);
    row!(rows, ENODATA, get(&of(&read), "user.a").map(|value| value.len()));
    rows.finish();
}

/// They count against the number of inodes that the mount may have, and come back with the file.
fn bounds() {
    fresh_with("nr_inodes=100", || {
        let fill = |path: &str| {
            let mut count = 0;
            while set(path, &format!("user.{count}"), &[1; 8000], 0) == Ok(0) {
                count += 1;
            }
            assert_eq!(set(path, "user.more", &[1; 8000], 0), Err(Errno::ENOSPC));
            count
        };
        let first = fill("f");
        assert!((8..=12).contains(&first), "{first}");
        remove("f", "user.0").unwrap();
        assert_eq!(set("f", "user.again", &[1; 8000], 0), Ok(0));
        fs::write("g", "x").unwrap();
        assert_eq!(set("g", "user.more", &[1; 8000], 0), Err(Errno::ENOSPC));
        fs::remove_file("f").unwrap();
        let second = fill("g");
        assert!((8..=12).contains(&second), "{second}");
    });
}
