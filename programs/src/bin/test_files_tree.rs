//! The tree of names: paths, links, renames, permissions, reading directories.

use std::collections::BTreeSet;

use roundtable_programs::child::{self, in_child};
use roundtable_programs::file::Fd;
use roundtable_programs::place::{
    Place, access, become_user, chdir, chmod, chown, exists, link, lstat, mkdir, mknod, rename, rmdir,
    symlink, truncate, umount, unlink,
};
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::{Errno, namespaces, tests};

tests! { names_and_slashes, path_lengths, symbolic_links, link_loops, open_flags, hard_links, renames,
rename_exchange_and_noreplace, rename_into_itself, sticky_directory, permissions_of_a_user, set_id_bits_go,
removed_working_directory, directory_read_while_it_changes: 60, rename_is_atomic: 60, names_of_removed_files,
tmpfile_gets_a_name, tmpfile_of_ones_own, long_chain_of_directories: 60, inode_limit, who_made_it }

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

fn mode(path: &str) -> u32 {
    lstat(path).unwrap().st_mode & 0o7777
}

fn names_and_slashes() {
    let p = Place::new("");
    assert_eq!(mkdir(&p.path("d/"), 0o755), Ok(()));
    assert_eq!(mkdir(&p.path("d"), 0o755), Err(Errno::EEXIST));
    assert_eq!(mkdir(&p.path("no/d"), 0o755), Err(Errno::ENOENT));
    p.write("f", b"x");
    assert_eq!(exists(&p.path("f/")), Err(Errno::ENOTDIR));
    assert_eq!(exists(&p.path("f/.")), Err(Errno::ENOTDIR));
    assert_eq!(exists(&p.path("f/..")), Err(Errno::ENOTDIR));
    assert_eq!(exists(&p.path("d//.//./../d/")), Ok(()));
    assert_eq!(unlink(&p.path("f/")), Err(Errno::ENOTDIR));
    assert_eq!(unlink(&p.path("d")), Err(Errno::EISDIR));
    assert_eq!(unlink(&p.path("d/")), Err(Errno::EISDIR));
    assert_eq!(rmdir(&p.path("f")), Err(Errno::ENOTDIR));
    assert_eq!(rmdir(&p.path("d/.")), Err(Errno::EINVAL));
    assert_eq!(rmdir(&p.path("d/..")), Err(Errno::ENOTEMPTY));
    assert_eq!(p.open("new/", libc::O_CREAT | libc::O_RDWR).unwrap_err(), Errno::EISDIR);
    assert_eq!(symlink("x", &p.path("l/")), Err(Errno::ENOENT));
    p.write("d/inside", b"");
    assert_eq!(rmdir(&p.path("d")), Err(Errno::ENOTEMPTY));
    assert_eq!(exists(""), Err(Errno::ENOENT));
    assert_eq!(exists("/../.."), Ok(()));
}

fn path_lengths() {
    let p = Place::new("");
    let longest = "n".repeat(255);
    assert!(p.open(&longest, libc::O_CREAT).is_ok());
    assert_eq!(p.open(&format!("{longest}n"), libc::O_CREAT).unwrap_err(), Errno::ENAMETOOLONG);
    // 4,095 bytes and a NUL are a path, one more is not.
    let base = p.path("");
    let fill = 4095 - base.len();
    let good = format!("{base}{}{}", "/".repeat(fill - 1), ".");
    assert_eq!(good.len(), 4095);
    assert_eq!(exists(&good), Ok(()));
    assert_eq!(exists(&format!("/{good}")), Err(Errno::ENAMETOOLONG));
}

fn symbolic_links() {
    let p = Place::new("");
    mkdir(&p.path("d"), 0o755).unwrap();
    p.write("d/f", b"data");
    symlink("d", &p.path("to-d")).unwrap();
    symlink("f", &p.path("d/to-f")).unwrap();
    symlink(&p.path("d/f"), &p.path("absolute")).unwrap();
    symlink("nowhere", &p.path("dangling")).unwrap();
    for name in ["to-d/f", "to-d/to-f", "absolute", "to-d/../d/f"] {
        assert_eq!(std::fs::read(p.path(name)).unwrap(), b"data", "{name}");
    }
    assert_eq!(exists(&p.path("dangling")), Err(Errno::ENOENT));
    assert_eq!(lstat(&p.path("dangling")).unwrap().st_size, 7);
    assert_eq!(p.open("dangling", libc::O_CREAT | libc::O_EXCL).unwrap_err(), Errno::EEXIST);
    // Creating through it makes the target.
    assert!(p.open("dangling", libc::O_CREAT | libc::O_WRONLY).is_ok());
    assert_eq!(exists(&p.path("nowhere")), Ok(()));
    assert_eq!(p.open("absolute", libc::O_NOFOLLOW).unwrap_err(), Errno::ELOOP);
    assert_eq!(p.open("to-d", libc::O_NOFOLLOW | libc::O_DIRECTORY).unwrap_err(), Errno::ENOTDIR);
    assert!(p.open("to-d/", libc::O_NOFOLLOW | libc::O_DIRECTORY).is_ok());
    assert_eq!(rmdir(&p.path("to-d")), Err(Errno::ENOTDIR));
    assert_eq!(rmdir(&p.path("to-d/")), Err(Errno::ENOTDIR));
    assert_eq!(unlink(&p.path("to-d")), Ok(()));
    let mut buffer = [0u8; 3];
    let path = c_string(&p.path("absolute"));
    // SAFETY: the path is NUL-terminated, the buffer as long as we say.
    let count = check(unsafe { libc::readlink(path.as_ptr(), buffer.as_mut_ptr().cast(), 3) as i64 });
    assert_eq!((count, &buffer[..]), (Ok(3), &p.path("absolute").as_bytes()[..3]));
}

fn link_loops() {
    let p = Place::new("");
    symlink("loop", &p.path("loop")).unwrap();
    assert_eq!(exists(&p.path("loop")), Err(Errno::ELOOP));
    assert_eq!(p.open("loop", libc::O_CREAT).unwrap_err(), Errno::ELOOP);
    // 40 links are followed, 41 are not.
    p.write("l0", b"");
    for i in 1..=41 {
        symlink(&format!("l{}", i - 1), &p.path(&format!("l{i}"))).unwrap();
    }
    assert_eq!(exists(&p.path("l40")), Ok(()));
    assert_eq!(exists(&p.path("l41")), Err(Errno::ELOOP));
}

fn open_flags() {
    let p = Place::new("");
    mkdir(&p.path("d"), 0o755).unwrap();
    p.write("f", b"0123456789");
    assert_eq!(p.open("d", libc::O_RDWR).unwrap_err(), Errno::EISDIR);
    assert_eq!(p.open("d", libc::O_CREAT).unwrap_err(), Errno::EISDIR);
    assert_eq!(p.open("f", libc::O_DIRECTORY).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(p.open("f", libc::O_CREAT | libc::O_EXCL).unwrap_err(), Errno::EEXIST);
    assert_eq!(p.open("f", libc::O_CREAT | libc::O_DIRECTORY).unwrap_err(), Errno::EINVAL);
    assert_eq!(p.open("f", libc::O_RDWR | libc::O_TRUNC).unwrap().stat().st_size, 0);
    let place = p.open("f", libc::O_PATH).unwrap();
    assert_eq!(place.read(&mut [0; 4]), Err(Errno::EBADF));
    assert_eq!(place.truncate(4), Err(Errno::EBADF));
    assert_eq!(place.stat().st_size, 0);
    let only_read = p.open("f", libc::O_RDONLY).unwrap();
    assert_eq!(only_read.write(b"x"), Err(Errno::EBADF));
    assert_eq!(only_read.truncate(4), Err(Errno::EINVAL));
    let only_write = p.open("f", libc::O_WRONLY).unwrap();
    assert_eq!(only_write.read(&mut [0; 4]), Err(Errno::EBADF));
    let directory = p.open("d", libc::O_RDONLY).unwrap();
    assert_eq!(directory.read(&mut [0; 4]), Err(Errno::EISDIR));
}

fn hard_links() {
    let p = Place::new("");
    p.write("a", b"1");
    link(&p.path("a"), &p.path("b")).unwrap();
    assert_eq!(lstat(&p.path("a")).unwrap().st_nlink, 2);
    assert_eq!(lstat(&p.path("a")).unwrap().st_ino, lstat(&p.path("b")).unwrap().st_ino);
    assert_eq!(link(&p.path("a"), &p.path("b")), Err(Errno::EEXIST));
    assert_eq!(link(&p.path(""), &p.path("c")), Err(Errno::EPERM));
    let open = p.open("a", libc::O_RDWR).unwrap();
    unlink(&p.path("a")).unwrap();
    unlink(&p.path("b")).unwrap();
    assert_eq!(open.stat().st_nlink, 0);
    // What is open stays readable without a name.
    let mut byte = [0];
    assert_eq!((open.read_at(&mut byte, 0), byte), (Ok(1), *b"1"));
    mkdir(&p.path("d"), 0o755).unwrap();
    assert_eq!(lstat(&p.path("d")).unwrap().st_nlink, 2);
    mkdir(&p.path("d/e"), 0o755).unwrap();
    assert_eq!(lstat(&p.path("d")).unwrap().st_nlink, 3);
    rename(&p.path("d/e"), &p.path("e"), 0).unwrap();
    assert_eq!(lstat(&p.path("d")).unwrap().st_nlink, 2);
    // A symbolic link has names of its own.
    symlink("d", &p.path("s")).unwrap();
    link(&p.path("s"), &p.path("s2")).unwrap();
    assert_eq!(lstat(&p.path("s2")).unwrap().st_mode & libc::S_IFMT, libc::S_IFLNK);
}

fn renames() {
    let p = Place::new("");
    let path = |name: &str| p.path(name);
    for d in ["d", "d2", "d2/full", "empty"] {
        mkdir(&path(d), 0o755).unwrap();
    }
    p.write("f", b"f");
    p.write("g", b"g");
    assert_eq!(rename(&path("f"), &path("d"), 0), Err(Errno::EISDIR));
    assert_eq!(rename(&path("d"), &path("f"), 0), Err(Errno::ENOTDIR));
    assert_eq!(rename(&path("d"), &path("d2"), 0), Err(Errno::ENOTEMPTY));
    assert_eq!(rename(&path("d"), &path("empty"), 0), Ok(()));
    assert_eq!(rename(&path("f"), &path("g"), 0), Ok(()));
    assert_eq!(std::fs::read(path("g")).unwrap(), b"f");
    assert_eq!(rename(&path("nothing"), &path("g"), 0), Err(Errno::ENOENT));
    assert_eq!(rename(&path("g"), &path("g"), 0), Ok(()));
    link(&path("g"), &path("h")).unwrap();
    // Two names of one file: nothing happens.
    assert_eq!(rename(&path("g"), &path("h"), 0), Ok(()));
    assert_eq!(p.names(), ["d2", "empty", "g", "h"]);
    assert_eq!(rename(&path("g"), &path("i/"), 0), Err(Errno::ENOTDIR));
    assert_eq!(rename(&path("empty/"), &path("i/"), 0), Ok(()));
    assert_eq!(rename(&path("i/.."), &path("x"), 0), Err(Errno::EBUSY));
    assert_eq!(rename(&path("g"), "/g-elsewhere", 0), Err(Errno::EXDEV));
}

fn rename_exchange_and_noreplace() {
    let p = Place::new("");
    let path = |name: &str| p.path(name);
    mkdir(&path("d"), 0o755).unwrap();
    mkdir(&path("d/sub"), 0o755).unwrap();
    p.write("f", b"f");
    p.write("g", b"g");
    assert_eq!(rename(&path("f"), &path("g"), NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename(&path("f"), &path("h"), NOREPLACE), Ok(()));
    assert_eq!(rename(&path("h"), &path("f"), EXCHANGE), Err(Errno::ENOENT));
    assert_eq!(rename(&path("h"), &path("g"), EXCHANGE | NOREPLACE), Err(Errno::EINVAL));
    assert_eq!(rename(&path("h"), &path("g"), EXCHANGE), Ok(()));
    assert_eq!(
        (std::fs::read(path("h")).unwrap(), std::fs::read(path("g")).unwrap()),
        (b"g".into(), b"f".into())
    );
    // A directory that is not empty with a file, over directories.
    assert_eq!(rename(&path("d/sub"), &path("h"), EXCHANGE), Ok(()));
    assert_eq!(lstat(&path("d")).unwrap().st_nlink, 2);
    assert_eq!(std::fs::read(path("d/sub")).unwrap(), b"g");
    assert_eq!(rename(&path("d"), &path("h"), EXCHANGE), Ok(()));
    assert_eq!(std::fs::read(path("h/sub")).unwrap(), b"g");
}

fn rename_into_itself() {
    let p = Place::new("");
    let path = |name: &str| p.path(name);
    std::fs::create_dir_all(path("a/b/c")).unwrap();
    assert_eq!(rename(&path("a"), &path("a/b/c/d"), 0), Err(Errno::EINVAL));
    assert_eq!(rename(&path("a"), &path("a/b"), 0), Err(Errno::EINVAL));
    assert_eq!(rename(&path("a/b/c"), &path("a"), 0), Err(Errno::ENOTEMPTY));
    assert_eq!(rename(&path("a/b"), &path("a"), EXCHANGE), Err(Errno::EINVAL));
    assert_eq!(rename(&path("a"), &path("a/b"), EXCHANGE), Err(Errno::EINVAL));
    assert_eq!(exists(&path("a/b/c")), Ok(()));
}

fn sticky_directory() {
    let p = Place::new("");
    let path = |name: &str| p.path(name);
    mkdir(&path("t"), 0o777).unwrap();
    chmod(&path("t"), 0o1777).unwrap();
    p.write("t/root", b"");
    p.write("t/mine", b"");
    chown(&path("t/mine"), 1000, 1000).unwrap();
    p.write("t/other", b"");
    chown(&path("t/other"), 1001, 1001).unwrap();
    in_child(|| {
        become_user(1000, 1000);
        assert_eq!(unlink(&path("t/root")), Err(Errno::EPERM));
        assert_eq!(rename(&path("t/other"), &path("t/x"), 0), Err(Errno::EPERM));
        assert_eq!(rename(&path("t/mine"), &path("t/other"), 0), Err(Errno::EPERM));
        assert_eq!(rename(&path("t/mine"), &path("t/x"), 0), Ok(()));
        assert_eq!(unlink(&path("t/x")), Ok(()));
    });
}

fn permissions_of_a_user() {
    let p = Place::new("mode=755");
    let path = |name: &str| p.path(name);
    mkdir(&path("closed"), 0o700).unwrap();
    p.write("closed/f", b"");
    mkdir(&path("listed"), 0o744).unwrap();
    p.write("listed/f", b"");
    for (name, mode) in [("r", 0o604), ("w", 0o602), ("group", 0o640), ("none", 0o600), ("x", 0o701)] {
        p.write(name, b"");
        chmod(&path(name), mode).unwrap();
    }
    chown(&path("group"), 0, 1000).unwrap();
    // The owner's bits decide for the owner, even when others may more.
    p.write("owned", b"");
    chmod(&path("owned"), 0o077).unwrap();
    chown(&path("owned"), 1000, 1000).unwrap();
    in_child(|| {
        become_user(1000, 1000);
        assert_eq!(exists(&path("closed/f")), Err(Errno::EACCES));
        assert_eq!(exists(&path("listed/f")), Err(Errno::EACCES));
        assert_eq!(std::fs::read_dir(path("listed")).unwrap().count(), 1);
        assert!(p.open("r", libc::O_RDONLY).is_ok());
        assert_eq!(p.open("r", libc::O_RDWR).unwrap_err(), Errno::EACCES);
        assert!(p.open("w", libc::O_WRONLY).is_ok());
        assert_eq!(p.open("w", libc::O_RDONLY).unwrap_err(), Errno::EACCES);
        assert!(p.open("group", libc::O_RDONLY).is_ok());
        assert_eq!(p.open("none", libc::O_RDONLY).unwrap_err(), Errno::EACCES);
        assert_eq!(p.open("r", libc::O_RDONLY | libc::O_TRUNC).unwrap_err(), Errno::EACCES);
        assert_eq!(p.open("owned", libc::O_RDONLY).unwrap_err(), Errno::EACCES);
        assert_eq!(
            (access(&path("x"), libc::X_OK), access(&path("x"), libc::R_OK)),
            (Ok(()), Err(Errno::EACCES))
        );
        assert_eq!(p.open("new", libc::O_CREAT | libc::O_RDWR).unwrap_err(), Errno::EACCES);
        assert_eq!(chmod(&path("r"), 0o777), Err(Errno::EPERM));
        assert_eq!(chmod(&path("owned"), 0o600), Ok(()));
        assert_eq!(chown(&path("owned"), 1001, u32::MAX), Err(Errno::EPERM));
        assert_eq!(chown(&path("owned"), u32::MAX, 5), Err(Errno::EPERM));
        assert_eq!(truncate(&path("r"), 5), Err(Errno::EACCES));
        assert_eq!(mknod(&path("dev"), libc::S_IFCHR | 0o600, 0x103), Err(Errno::EACCES));
    });
    // Root may all but execute what nobody may.
    assert!(p.open("owned", libc::O_RDWR).is_ok());
    assert_eq!(
        (access(&path("none"), libc::X_OK), access(&path("none"), libc::W_OK)),
        (Err(Errno::EACCES), Ok(()))
    );
}

fn set_id_bits_go() {
    let p = Place::new("mode=777");
    let path = |name: &str| p.path(name);
    for name in ["w", "o"] {
        p.write(name, b"");
        chown(&path(name), 1000, 1000).unwrap();
        chmod(&path(name), 0o6777).unwrap();
    }
    // Root's writes leave them.
    p.open("w", libc::O_WRONLY).unwrap().write(b"x").unwrap();
    assert_eq!(mode(&path("w")), 0o6777);
    in_child(|| {
        become_user(1000, 1000);
        p.open("w", libc::O_WRONLY).unwrap().write(b"x").unwrap();
    });
    assert_eq!(mode(&path("w")), 0o777);
    chown(&path("o"), 0, u32::MAX).unwrap();
    assert_eq!(mode(&path("o")), 0o777);
    // What is made in a set-group-ID directory is of its group.
    mkdir(&path("d"), 0o755).unwrap();
    chown(&path("d"), 0, 77).unwrap();
    chmod(&path("d"), 0o2755).unwrap();
    p.write("d/f", b"");
    mkdir(&path("d/e"), 0o755).unwrap();
    assert_eq!((lstat(&path("d/f")).unwrap().st_gid, lstat(&path("d/e")).unwrap().st_gid), (77, 77));
    assert_eq!(mode(&path("d/e")), 0o2755);
}

fn removed_working_directory() {
    let p = Place::new("");
    p.write("f", b"");
    mkdir(&p.path("gone"), 0o755).unwrap();
    in_child(|| {
        chdir(&p.path("gone")).unwrap();
        rmdir(&p.path("gone")).unwrap();
        assert_eq!(Fd::open("x", libc::O_CREAT | libc::O_RDWR).unwrap_err(), Errno::ENOENT);
        assert_eq!(mkdir("x", 0o755), Err(Errno::ENOENT));
        assert_eq!(link(&p.path("f"), "x"), Err(Errno::ENOENT));
        assert_eq!(exists("../f"), Ok(()));
        assert_eq!(std::env::current_dir().unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(Fd::open(".", libc::O_RDONLY).is_ok());
    });
}

/// Whatever stays in a directory is read exactly once, while other entries come and go.
fn directory_read_while_it_changes() {
    let p = Place::new("");
    let kept: BTreeSet<String> = (0..300).map(|i| format!("kept-{i}")).collect();
    kept.iter().for_each(|name| p.write(name, b""));
    let changer = child::fork(|| {
        for i in 0.. {
            let name = p.path(&format!("other-{}", i % 50));
            if exists(&name).is_ok() {
                let _ = unlink(&name);
            } else {
                std::fs::write(name, b"").unwrap();
            }
        }
    });
    for _ in 0..50 {
        let mut seen = BTreeSet::new();
        for entry in std::fs::read_dir(p.path("")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("kept") {
                assert!(seen.insert(name.clone()), "{name} was read twice");
            }
        }
        assert_eq!(seen, kept);
    }
    changer.end();
    // A program that renames what it reads comes to an end.
    let mut renamed = 0;
    for entry in std::fs::read_dir(p.path("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        rename(&p.path(&name), &p.path(&format!("new-{name}")), 0).unwrap();
        renamed += 1;
        assert!(renamed < 10_000);
    }
}

/// A name that is always replaced by rename is always there, and its file always whole.
fn rename_is_atomic() {
    let p = Place::new("");
    mkdir(&p.path("d"), 0o755).unwrap();
    p.write("current", b"0000");
    let writer = child::fork(|| {
        for i in 0.. {
            let next = if i % 2 == 0 { "next" } else { "d/next" };
            p.write(next, &[b'0' + (i % 10) as u8; 4]);
            rename(&p.path(next), &p.path("current"), 0).unwrap();
        }
    });
    for _ in 0..3000 {
        let content = std::fs::read(p.path("current")).expect("always there");
        assert!(content.len() == 4 && content.iter().all(|byte| *byte == content[0]), "{content:?}");
    }
    writer.end();
}

fn names_of_removed_files() {
    let p = Place::new("");
    let fd = p.open("f", libc::O_CREAT | libc::O_RDWR).unwrap();
    let shown = || std::fs::read_link(format!("/proc/self/fd/{}", fd.raw())).unwrap();
    assert_eq!(shown().to_str().unwrap(), p.path("f"));
    rename(&p.path("f"), &p.path("g"), 0).unwrap();
    assert_eq!(shown().to_str().unwrap(), p.path("g"));
    unlink(&p.path("g")).unwrap();
    assert_eq!(shown().to_str().unwrap(), format!("{} (deleted)", p.path("g")));
    // The link leads to the file all the same.
    fd.write(b"still").unwrap();
    assert_eq!(std::fs::read(format!("/proc/self/fd/{}", fd.raw())).unwrap(), b"still");
}

fn tmpfile_gets_a_name() {
    let p = Place::new("");
    let fd = p.open("", libc::O_TMPFILE | libc::O_RDWR).unwrap();
    fd.write(b"content").unwrap();
    assert_eq!((fd.stat().st_nlink, p.names().len()), (0, 0));
    let shown = std::fs::read_link(format!("/proc/self/fd/{}", fd.raw())).unwrap();
    assert_eq!(shown.to_str().unwrap(), format!("{} (deleted)", p.path(&format!("#{}", fd.stat().st_ino))));
    let (empty, name) = (c_string(""), c_string(&p.path("named")));
    let link_it = || {
        // SAFETY: the strings are NUL-terminated.
        check(unsafe {
            libc::linkat(fd.raw(), empty.as_ptr(), libc::AT_FDCWD, name.as_ptr(), libc::AT_EMPTY_PATH)
        })
    };
    assert_eq!(link_it(), Ok(0));
    assert_eq!(std::fs::read(p.path("named")).unwrap(), b"content");
    unlink(&p.path("named")).unwrap();
    assert_eq!(link_it(), Err(Errno::ENOENT));
    assert_eq!(p.open("", libc::O_TMPFILE | libc::O_RDONLY).unwrap_err(), Errno::EINVAL);
}

/// Without privilege: who has opened it may, and nobody else, nor the same process as somebody else.
fn tmpfile_of_ones_own() {
    let p = Place::new("mode=1777");
    let make = || p.open("", libc::O_TMPFILE | libc::O_RDWR).unwrap();
    let link_it = |fd: &Fd| {
        let (empty, name) = (c_string(""), c_string(&p.path("named")));
        // SAFETY: the strings are NUL-terminated.
        check(unsafe {
            libc::linkat(fd.raw(), empty.as_ptr(), libc::AT_FDCWD, name.as_ptr(), libc::AT_EMPTY_PATH)
        })
    };
    let become_user = |uid: u32| {
        // SAFETY: takes integers.
        check(unsafe { libc::setresuid(uid, uid, uid) }).unwrap()
    };
    in_child(|| {
        let of_root = make();
        become_user(1000);
        assert_eq!(link_it(&of_root), Err(Errno::ENOENT));
        let own = make();
        assert_eq!(link_it(&own), Ok(0));
        assert_eq!(link_it(&own), Err(Errno::EEXIST));
        unlink(&p.path("named")).unwrap();
        let own = make();
        // A change to what one is already is none; another one is, of whatever.
        become_user(1000);
        assert_eq!(link_it(&own), Ok(0));
        unlink(&p.path("named")).unwrap();
        let own = make();
        // SAFETY: takes integers.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }).unwrap();
        assert_eq!(link_it(&own), Err(Errno::ENOENT));
    });
    in_child(|| {
        become_user(1000);
        // SAFETY: takes integers. Its own `/proc/self` is root's otherwise.
        check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }).unwrap();
        namespaces::become_root_of_own(0);
        let own = make();
        become_user(0);
        assert_eq!(link_it(&own), Ok(0));
    });
}

/// Directories in directories, far deeper than a path can say; taken away while the deepest is in use.
fn long_chain_of_directories() {
    const DEPTH: usize = 20_000;
    let p = Place::new("nr_inodes=0");
    in_child(|| {
        chdir(&p.path("")).unwrap();
        for _ in 0..DEPTH {
            mkdir("d", 0o755).unwrap();
            chdir("d").unwrap();
        }
        let mut buffer = vec![0u8; 100_000];
        // SAFETY: the buffer is as long as we say.
        let cwd = check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) });
        assert_eq!(cwd, Err(Errno::ENAMETOOLONG));
        for _ in 0..DEPTH / 2 {
            chdir("..").unwrap();
            rmdir("d").unwrap();
        }
        let hold = Fd::open(".", libc::O_RDONLY).unwrap();
        chdir(&p.path("")).unwrap();
        chdir("/").unwrap();
        umount(&p.path(""), libc::MNT_DETACH).unwrap();
        drop(hold);
    });
}

fn inode_limit() {
    let p = Place::new("nr_inodes=4");
    p.write("a", b"");
    p.write("b", b"");
    p.write("c", b"");
    assert_eq!(p.open("d", libc::O_CREAT).unwrap_err(), Errno::ENOSPC);
    assert_eq!(mkdir(&p.path("d"), 0o755), Err(Errno::ENOSPC));
    unlink(&p.path("a")).unwrap();
    // A further name counts as well.
    assert_eq!(link(&p.path("b"), &p.path("b2")), Ok(()));
    assert_eq!(link(&p.path("b"), &p.path("b3")), Err(Errno::ENOSPC));
    unlink(&p.path("b")).unwrap();
    assert!(p.open("d", libc::O_CREAT).is_ok());
}

fn who_made_it() {
    const CREATED_QUERY: i32 = 1028;
    let p = Place::new("");
    let open = |flags: i32| Fd::open(&p.path("f"), flags | libc::O_RDWR).unwrap();
    // SAFETY: takes integers.
    let made = |fd: &Fd| check(unsafe { libc::fcntl(fd.raw(), CREATED_QUERY, 0) });
    let first = open(libc::O_CREAT | libc::O_EXCL);
    assert_eq!(made(&first), Ok(1));
    assert_eq!(made(&open(libc::O_CREAT)), Ok(0));
    assert_eq!(made(&open(0)), Ok(0));
    assert_eq!(made(&first), Ok(1));
    let unnamed = Fd::open(&p.path(""), libc::O_TMPFILE | libc::O_RDWR).unwrap();
    assert_eq!(made(&unnamed), Ok(0));
}
