//! Mounting: what is visible where, what is busy, what flags forbid.

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::place::{
    Place, chdir, exists, link, lstat, mkdir, mknod, mount, rename, rmdir, umount, unlink,
};
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::{Errno, tests};

tests! { options_and_errors, covers_and_uncovers, stacked, busy, lazy_unmount, dot_dot_crosses, bind_a_directory,
bind_a_file, move_a_mount, read_only_mount, read_only_bind, noexec_and_nodev, chroot_is_a_root, one_devtmpfs,
listed_in_proc, devices_do_not_keep_it_writable }

const BIND: libc::c_ulong = libc::MS_BIND;
const REMOUNT: libc::c_ulong = libc::MS_REMOUNT;
const RDONLY: libc::c_ulong = libc::MS_RDONLY;

/// A tmpfs with directories `a` and `b`.
fn place() -> Place {
    let p = Place::new("");
    mkdir(&p.path("a"), 0o755).unwrap();
    mkdir(&p.path("b"), 0o755).unwrap();
    p
}

fn tmpfs(target: &str, options: &str) -> Result<(), Errno> {
    mount("tmpfs", target, "tmpfs", 0, options)
}

fn options_and_errors() {
    let p = place();
    let a = p.path("a");
    assert_eq!(mount("x", &a, "nosuchfs", 0, ""), Err(Errno::ENODEV));
    assert_eq!(tmpfs(&p.path("nothing"), ""), Err(Errno::ENOENT));
    p.write("f", b"");
    assert_eq!(tmpfs(&p.path("f"), ""), Err(Errno::ENOTDIR));
    assert_eq!(tmpfs(&a, "bogus=1"), Err(Errno::EINVAL));
    assert_eq!(tmpfs(&a, "size=zz"), Err(Errno::EINVAL));
    assert_eq!(umount(&a, 0), Err(Errno::EINVAL));
    assert_eq!(umount(&a, 1 << 20), Err(Errno::EINVAL));
    tmpfs(&a, "size=1m,mode=700,uid=5,gid=6").unwrap();
    let root = lstat(&a).unwrap();
    assert_eq!((root.st_mode & 0o7777, root.st_uid, root.st_gid), (0o700, 5, 6));
    let stat = Fd::open(&a, libc::O_RDONLY).unwrap().statfs();
    assert_eq!((stat.f_type, stat.f_bsize, stat.f_blocks, stat.f_namelen), (0x0102_1994, 4096, 256, 255));
    // Smaller than what is used it cannot become.
    std::fs::write(format!("{a}/f"), vec![1; 100_000]).unwrap();
    assert_eq!(mount("", &a, "", REMOUNT, "size=64k"), Err(Errno::EINVAL));
    assert_eq!(mount("", &a, "", REMOUNT, "size=128k"), Ok(()));
    assert_eq!(Fd::open(&a, libc::O_RDONLY).unwrap().statfs().f_blocks, 32);
    umount(&a, 0).unwrap();
}

fn covers_and_uncovers() {
    let p = place();
    p.write("a/under", b"");
    let held = p.open("a/under", libc::O_RDWR).unwrap();
    tmpfs(&p.path("a"), "").unwrap();
    assert_eq!(exists(&p.path("a/under")), Err(Errno::ENOENT));
    held.write(b"x").unwrap();
    p.write("a/over", b"");
    umount(&p.path("a"), 0).unwrap();
    assert_eq!((exists(&p.path("a/under")), exists(&p.path("a/over"))), (Ok(()), Err(Errno::ENOENT)));
}

fn stacked() {
    let p = place();
    let a = p.path("a");
    for name in ["1", "2", "3"] {
        tmpfs(&a, "").unwrap();
        p.write(&format!("a/{name}"), b"");
    }
    for name in ["3", "2", "1"] {
        assert_eq!(p.names().len(), 2);
        assert_eq!(exists(&p.path(&format!("a/{name}"))), Ok(()));
        umount(&a, 0).unwrap();
    }
    assert_eq!(umount(&a, 0), Err(Errno::EINVAL));
}

fn busy() {
    let p = place();
    let a = p.path("a");
    tmpfs(&a, "").unwrap();
    assert_eq!(rmdir(&a), Err(Errno::EBUSY));
    assert_eq!(rename(&a, &p.path("c"), 0), Err(Errno::EBUSY));
    assert_eq!(rename(&p.path("b"), &a, 0), Err(Errno::EBUSY));
    let file = Fd::open(&format!("{a}/f"), libc::O_CREAT).unwrap();
    assert_eq!(umount(&a, 0), Err(Errno::EBUSY));
    drop(file);
    in_child(|| {
        chdir(&a).unwrap();
        assert_eq!(umount(&a, 0), Err(Errno::EBUSY));
    });
    let map = {
        let file = Fd::open(&format!("{a}/m"), libc::O_CREAT | libc::O_RDWR).unwrap();
        file.truncate(4096).unwrap();
        file.map(4096, libc::PROT_READ, libc::MAP_SHARED).unwrap()
    };
    assert_eq!(umount(&a, 0), Err(Errno::EBUSY));
    map.unmap().unwrap();
    mkdir(&format!("{a}/sub"), 0o755).unwrap();
    tmpfs(&format!("{a}/sub"), "").unwrap();
    assert_eq!(umount(&a, 0), Err(Errno::EBUSY));
    umount(&format!("{a}/sub"), 0).unwrap();
    assert_eq!(umount(&a, 0), Ok(()));
}

fn lazy_unmount() {
    let p = place();
    let a = p.path("a");
    tmpfs(&a, "").unwrap();
    mkdir(&format!("{a}/sub"), 0o755).unwrap();
    tmpfs(&format!("{a}/sub"), "").unwrap();
    let file = Fd::open(&format!("{a}/f"), libc::O_CREAT | libc::O_RDWR).unwrap();
    in_child(|| {
        chdir(&a).unwrap();
        umount(&a, libc::MNT_DETACH).unwrap();
        // Out of sight, but those who are in it stay.
        assert_eq!(exists(&format!("{a}/f")), Err(Errno::ENOENT));
        std::fs::write("g", b"x").unwrap();
        assert_eq!(exists("f"), Ok(()));
        assert_eq!(exists("../b"), Err(Errno::ENOENT));
    });
    file.write(b"still").unwrap();
    assert_eq!(umount(&a, 0), Err(Errno::EINVAL));
}

fn dot_dot_crosses() {
    let p = place();
    tmpfs(&p.path("a"), "").unwrap();
    mkdir(&p.path("a/deep"), 0o755).unwrap();
    tmpfs(&p.path("a/deep"), "").unwrap();
    p.write("b/mark", b"");
    assert_eq!(exists(&p.path("a/deep/../../b/mark")), Ok(()));
    in_child(|| {
        chdir(&p.path("a/deep")).unwrap();
        assert_eq!(std::env::current_dir().unwrap().to_str().unwrap(), p.path("a/deep"));
        assert_eq!(exists("../../b/mark"), Ok(()));
    });
    assert_ne!(lstat(&p.path("a/deep")).unwrap().st_dev, lstat(&p.path("a")).unwrap().st_dev);
    umount(&p.path("a/deep"), 0).unwrap();
    umount(&p.path("a"), 0).unwrap();
}

fn bind_a_directory() {
    let p = place();
    mkdir(&p.path("a/in"), 0o755).unwrap();
    tmpfs(&p.path("a/in"), "").unwrap();
    p.write("a/in/mounted", b"");
    p.write("a/f", b"1");
    mount(&p.path("a"), &p.path("b"), "", BIND, "").unwrap();
    assert_eq!(std::fs::read(p.path("b/f")).unwrap(), b"1");
    assert_eq!(lstat(&p.path("a/f")).unwrap().st_ino, lstat(&p.path("b/f")).unwrap().st_ino);
    // Only the one mount, and another mount even of the same file system is a border.
    assert_eq!(exists(&p.path("b/in/mounted")), Err(Errno::ENOENT));
    assert_eq!(rename(&p.path("b/f"), &p.path("a/g"), 0), Err(Errno::EXDEV));
    assert_eq!(link(&p.path("b/f"), &p.path("a/g")), Err(Errno::EXDEV));
    umount(&p.path("b"), 0).unwrap();
    mount(&p.path("a"), &p.path("b"), "", BIND | libc::MS_REC, "").unwrap();
    assert_eq!(exists(&p.path("b/in/mounted")), Ok(()));
    umount(&p.path("b"), libc::MNT_DETACH).unwrap();
    umount(&p.path("a/in"), 0).unwrap();
}

fn bind_a_file() {
    let p = place();
    p.write("f", b"f");
    p.write("g", b"g");
    assert_eq!(mount(&p.path("f"), &p.path("a"), "", BIND, ""), Err(Errno::ENOTDIR));
    assert_eq!(mount(&p.path("a"), &p.path("f"), "", BIND, ""), Err(Errno::ENOTDIR));
    mount(&p.path("f"), &p.path("g"), "", BIND, "").unwrap();
    assert_eq!(std::fs::read(p.path("g")).unwrap(), b"f");
    assert_eq!(unlink(&p.path("g")), Err(Errno::EBUSY));
    umount(&p.path("g"), 0).unwrap();
    assert_eq!(std::fs::read(p.path("g")).unwrap(), b"g");
}

fn move_a_mount() {
    let p = place();
    // In a tree of shared mounts nothing can be moved: this one is private.
    mount("", &p.path(""), "", libc::MS_PRIVATE, "").unwrap();
    tmpfs(&p.path("a"), "").unwrap();
    p.write("a/f", b"");
    mkdir(&p.path("a/sub"), 0o755).unwrap();
    assert_eq!(mount(&p.path("a/sub"), &p.path("b"), "", libc::MS_MOVE, ""), Err(Errno::EINVAL));
    assert_eq!(mount(&p.path("a"), &p.path("a/sub"), "", libc::MS_MOVE, ""), Err(Errno::ELOOP));
    mount(&p.path("a"), &p.path("b"), "", libc::MS_MOVE, "").unwrap();
    assert_eq!((exists(&p.path("b/f")), exists(&p.path("a/f"))), (Ok(()), Err(Errno::ENOENT)));
    umount(&p.path("b"), 0).unwrap();
}

fn read_only_mount() {
    let p = place();
    let a = p.path("a");
    tmpfs(&a, "").unwrap();
    let f = format!("{a}/f");
    std::fs::write(&f, b"x").unwrap();
    let writer = Fd::open(&f, libc::O_WRONLY).unwrap();
    assert_eq!(mount("", &a, "", REMOUNT | RDONLY, ""), Err(Errno::EBUSY));
    drop(writer);
    mount("", &a, "", REMOUNT | RDONLY, "").unwrap();
    assert_eq!(Fd::open(&f, libc::O_RDWR).unwrap_err(), Errno::EROFS);
    assert_eq!(Fd::open(&format!("{a}/new"), libc::O_CREAT).unwrap_err(), Errno::EROFS);
    assert_eq!(Fd::open(&f, libc::O_CREAT).map(drop), Ok(()));
    assert_eq!(unlink(&f), Err(Errno::EROFS));
    assert_eq!(mkdir(&format!("{a}/d"), 0o755), Err(Errno::EROFS));
    assert_eq!(mkdir(&f, 0o755), Err(Errno::EEXIST));
    assert_eq!(rename(&f, &format!("{a}/g"), 0), Err(Errno::EROFS));
    assert_eq!(std::fs::read(&f).unwrap(), b"x");
    // SAFETY: a statvfs of zeros is valid, and the call fills it.
    let flags = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        check(libc::fstatvfs(Fd::open(&f, libc::O_RDONLY).unwrap().raw(), &mut stat)).unwrap();
        stat.f_flag
    };
    assert_eq!(flags & libc::ST_RDONLY, libc::ST_RDONLY);
    mount("", &a, "", REMOUNT, "").unwrap();
    assert_eq!(unlink(&f), Ok(()));
    umount(&a, 0).unwrap();
}

fn read_only_bind() {
    let p = place();
    p.write("a/f", b"x");
    mount(&p.path("a"), &p.path("b"), "", BIND, "").unwrap();
    mount("", &p.path("b"), "", REMOUNT | BIND | RDONLY, "").unwrap();
    assert_eq!(unlink(&p.path("b/f")), Err(Errno::EROFS));
    assert_eq!(unlink(&p.path("a/f")), Ok(()));
    umount(&p.path("b"), 0).unwrap();
}

fn noexec_and_nodev() {
    let p = place();
    let a = p.path("a");
    mount("tmpfs", &a, "tmpfs", libc::MS_NODEV | libc::MS_NOEXEC, "").unwrap();
    mknod(&format!("{a}/null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
    assert_eq!(Fd::open(&format!("{a}/null"), libc::O_RDWR).unwrap_err(), Errno::EACCES);
    std::fs::copy("/proc/self/exe", format!("{a}/program")).unwrap();
    let error = std::process::Command::new(format!("{a}/program")).arg("--list").output().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    mount("", &a, "", REMOUNT, "").unwrap();
    assert!(Fd::open(&format!("{a}/null"), libc::O_RDWR).is_ok());
    assert!(
        std::process::Command::new(format!("{a}/program")).arg("--list").output().unwrap().status.success()
    );
    // Nobody writes to a program that runs.
    let fd = Fd::open(&format!("{a}/program"), libc::O_WRONLY).unwrap();
    let error = std::process::Command::new(format!("{a}/program")).arg("--list").output().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY));
    drop(fd);
    assert_eq!(Fd::open("/proc/self/exe", libc::O_WRONLY).unwrap_err(), Errno::ETXTBSY);
    umount(&a, 0).unwrap();
}

fn chroot_is_a_root() {
    let p = place();
    p.write("a/f", b"");
    in_child(|| {
        let root = c_string(&p.path("a"));
        // SAFETY: the path is NUL-terminated.
        check(unsafe { libc::chroot(root.as_ptr()) }).unwrap();
        assert_eq!(exists("/f"), Ok(()));
        assert_eq!(exists("/../../f"), Ok(()));
        chdir("/").unwrap();
        assert_eq!(exists("../../../f"), Ok(()));
        assert_eq!(std::env::current_dir().unwrap().to_str(), Some("/"));
    });
}

fn one_devtmpfs() {
    let p = place();
    mount("d", &p.path("a"), "devtmpfs", 0, "").unwrap();
    mount("d", &p.path("b"), "devtmpfs", 0, "").unwrap();
    for name in ["null", "zero", "full", "random", "urandom", "kmsg", "tty", "console", "ttyS0"] {
        assert_eq!(
            lstat(&p.path(&format!("a/{name}"))).unwrap().st_mode & libc::S_IFMT,
            libc::S_IFCHR,
            "{name}"
        );
    }
    p.write("a/of-a-user", b"");
    assert_eq!(exists(&p.path("b/of-a-user")), Ok(()));
    unlink(&p.path("b/of-a-user")).unwrap();
    let open = |name: &str| Fd::open(&p.path(&format!("a/{name}")), libc::O_RDWR).unwrap();
    let mut buffer = [1u8; 5000];
    assert_eq!((open("null").read(&mut buffer), open("null").write(&buffer)), (Ok(0), Ok(5000)));
    assert_eq!((open("zero").read(&mut buffer), buffer), (Ok(5000), [0; 5000]));
    assert_eq!((open("full").read(&mut buffer), open("full").write(&buffer)), (Ok(5000), Err(Errno::ENOSPC)));
    assert_eq!(open("urandom").read(&mut buffer), Ok(5000));
    assert!(buffer.iter().filter(|b| **b == 0).count() < 100);
    umount(&p.path("a"), 0).unwrap();
    umount(&p.path("b"), 0).unwrap();
}

fn listed_in_proc() {
    let p = place();
    mkdir(&p.path("with space"), 0o755).unwrap();
    mount("my source", &p.path("with space"), "tmpfs", libc::MS_NOSUID, "size=1m").unwrap();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|line| line.starts_with("my\\040source")).expect("listed");
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!((fields[1], fields[2]), (p.path("with\\040space").as_str(), "tmpfs"));
    assert!(fields[3].starts_with("rw,nosuid,relatime,size=1024k"), "{}", fields[3]);
    umount(&p.path("with space"), 0).unwrap();
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains("my\\040source"));
}

/// What is written to a device or a FIFO is not in the file system.
fn devices_do_not_keep_it_writable() {
    let p = place();
    let a = p.path("a");
    tmpfs(&a, "").unwrap();
    let (null, fifo, file) = (format!("{a}/null"), format!("{a}/fifo"), format!("{a}/file"));
    mknod(&null, libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
    mknod(&fifo, libc::S_IFIFO | 0o666, 0).unwrap();
    std::fs::write(&file, b"x").unwrap();
    let open = [&null, &fifo].map(|path| Fd::open(path, libc::O_RDWR).unwrap());
    mount("", &a, "", REMOUNT | RDONLY, "").unwrap();
    assert_eq!(open[0].write(b"x"), Ok(1));
    assert_eq!(open[1].write(b"x"), Ok(1));
    mount("", &a, "", REMOUNT, "").unwrap();
    mount("", &a, "", REMOUNT | BIND | RDONLY, "").unwrap();
    mount("", &a, "", REMOUNT | BIND, "").unwrap();
    drop(open);
    let writer = Fd::open(&file, libc::O_WRONLY).unwrap();
    assert_eq!(mount("", &a, "", REMOUNT | BIND | RDONLY, ""), Err(Errno::EBUSY));
    assert_eq!(mount("", &a, "", REMOUNT | RDONLY, ""), Err(Errno::EBUSY));
    // A refused one has changed nothing.
    std::fs::write(format!("{a}/new"), b"x").unwrap();
    drop(writer);
    umount(&a, 0).unwrap();
}
