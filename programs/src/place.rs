//! A tmpfs of a test's own, and calls on paths.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::file::Fd;
use crate::sys::{c_string, check, pid};

/// A fresh tmpfs, mounted in a directory of its own; detached when dropped.
pub struct Place {
    directory: String,
}

impl Place {
    /// With mount options as in `size=1m,nr_inodes=10`.
    pub fn new(options: &str) -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only the numbers have to differ.
        let directory = format!("/place-{}-{}", pid(), COUNT.fetch_add(1, Ordering::Relaxed));
        mkdir(&directory, 0o755).expect("mkdir");
        mount("tmpfs", &directory, "tmpfs", 0, options).expect("mount");
        // SAFETY: takes an integer.
        unsafe { libc::umask(0o022) };
        Place { directory }
    }

    /// The path of something in it.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// Opens something in it.
    pub fn open(&self, name: &str, flags: i32) -> Result<Fd, Errno> {
        Fd::open(&self.path(name), flags)
    }

    /// Opens a file in it for reading and writing, and makes it if there is none.
    #[track_caller]
    pub fn create(&self, name: &str) -> Fd {
        self.open(name, libc::O_CREAT | libc::O_RDWR).expect("open")
    }

    /// Makes a file with that content.
    pub fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).expect("write");
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        names(&self.directory)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = umount(&self.directory, libc::MNT_DETACH);
        let _ = rmdir(&self.directory);
    }
}

/// The names in a directory, sorted.
pub fn names(directory: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("read_dir")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

pub fn mkdir(path: &str, mode: u32) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: the path is NUL-terminated, here and below.
    check(unsafe { libc::mkdir(path.as_ptr(), mode) }).map(drop)
}

pub fn rmdir(path: &str) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::rmdir(path.as_ptr()) }).map(drop)
}

pub fn unlink(path: &str) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::unlink(path.as_ptr()) }).map(drop)
}

/// renameat2(2).
pub fn rename(old: &str, new: &str, flags: u32) -> Result<(), Errno> {
    let (old, new) = (c_string(old), c_string(new));
    // SAFETY: as above.
    check(unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            old.as_ptr(),
            libc::AT_FDCWD,
            new.as_ptr(),
            flags as usize,
        )
    })
    .map(drop)
}

pub fn link(old: &str, new: &str) -> Result<(), Errno> {
    let (old, new) = (c_string(old), c_string(new));
    // SAFETY: as above.
    check(unsafe { libc::link(old.as_ptr(), new.as_ptr()) }).map(drop)
}

pub fn symlink(target: &str, path: &str) -> Result<(), Errno> {
    let (target, path) = (c_string(target), c_string(path));
    // SAFETY: as above.
    check(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }).map(drop)
}

pub fn chmod(path: &str, mode: u32) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
}

pub fn chown(path: &str, uid: u32, gid: u32) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::chown(path.as_ptr(), uid, gid) }).map(drop)
}

pub fn mknod(path: &str, mode: u32, device: u64) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) }).map(drop)
}

pub fn truncate(path: &str, size: i64) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::truncate(path.as_ptr(), size) }).map(drop)
}

pub fn chdir(path: &str) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// access(2) for existence.
pub fn exists(path: &str) -> Result<(), Errno> {
    access(path, libc::F_OK)
}

pub fn access(path: &str, mode: i32) -> Result<(), Errno> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::access(path.as_ptr(), mode) }).map(drop)
}

/// lstat(2).
pub fn lstat(path: &str) -> Result<libc::stat, Errno> {
    let path = c_string(path);
    // SAFETY: as above; a stat of zeros is valid, and the call fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::lstat(path.as_ptr(), &mut stat))?;
        Ok(stat)
    }
}

pub fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> Result<(), Errno> {
    let (source, target, kind, options) =
        (c_string(source), c_string(target), c_string(kind), c_string(options));
    // SAFETY: as above.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    })
    .map(drop)
}

pub fn umount(target: &str, flags: i32) -> Result<(), Errno> {
    let target = c_string(target);
    // SAFETY: as above.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// From now on the process is an ordinary user.
pub fn become_user(uid: u32, gid: u32) {
    // SAFETY: take integers.
    unsafe {
        check(libc::setgroups(0, std::ptr::null())).expect("setgroups");
        check(libc::setresgid(gid, gid, gid)).expect("setresgid");
        check(libc::setresuid(uid, uid, uid)).expect("setresuid");
    }
}
