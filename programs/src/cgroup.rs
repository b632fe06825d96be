//! Control groups for tests: a mount of the hierarchy, groups that are removed with the test.

use std::fs;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::sys::{c_string, check, pid, settles};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Mounts the hierarchy unless that was done.
pub fn mount() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if fs::exists(format!("{ROOT}/cgroup.procs")).unwrap_or(false) {
            return;
        }
        let (source, target) = (c_string("cgroup2"), c_string(ROOT));
        // SAFETY: all are NUL-terminated and live through the call.
        check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), source.as_ptr(), 0, std::ptr::null()) })
            .expect("mount of cgroup2");
    });
}

/// An I/O result as its errno.
pub fn errno<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_raw(error.raw_os_error().expect("an error of the system")))
}

/// The file at a path, or why not.
pub fn read(path: &str) -> Result<String, Errno> {
    errno(fs::read_to_string(path))
}

/// Writes a file that is there.
pub fn write(path: &str, text: impl std::fmt::Display) -> Result<(), Errno> {
    use std::io::Write;
    let mut file = errno(fs::OpenOptions::new().write(true).open(path))?;
    errno(file.write_all(text.to_string().as_bytes()))
}

/// A group; processes in it are killed and it is removed when dropped.
#[derive(Debug)]
pub struct Group {
    pub path: String,
    maker: i32,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Group {
    /// A group in the root that may use these controllers (`+hugetlb +pids`).
    #[track_caller]
    pub fn new(controllers: &str) -> Group {
        mount();
        if !controllers.is_empty() {
            write(&format!("{ROOT}/cgroup.subtree_control"), controllers).expect("controllers of the root");
        }
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        Group::at(format!("{ROOT}/test-{}-{number}", pid())).expect("mkdir of a group")
    }

    fn at(path: String) -> Result<Group, Errno> {
        errno(fs::create_dir(&path))?;
        Ok(Group { path, maker: pid() })
    }

    /// A group in this one.
    pub fn try_child(&self, name: &str) -> Result<Group, Errno> {
        Group::at(format!("{}/{name}", self.path))
    }

    #[track_caller]
    pub fn child(&self, name: &str) -> Group {
        self.try_child(name).expect("mkdir of a group")
    }

    /// What `/proc/PID/cgroup` says of a member.
    pub fn line(&self) -> String {
        format!("0::{}\n", &self.path[ROOT.len()..])
    }

    pub fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    pub fn try_read(&self, name: &str) -> Result<String, Errno> {
        read(&self.file(name))
    }

    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        self.try_read(name).unwrap_or_else(|error| panic!("{}: {error}", self.file(name)))
    }

    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let text = self.read(name);
        text.trim().parse().unwrap_or_else(|_| panic!("{} says {text:?}", self.file(name)))
    }

    /// The value of a line `KEY VALUE`.
    #[track_caller]
    pub fn value(&self, name: &str, key: &str) -> u64 {
        let text = self.read(name);
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} says {text:?}"))
    }

    pub fn write(&self, name: &str, text: impl std::fmt::Display) -> Result<(), Errno> {
        write(&self.file(name), text)
    }

    /// Moves a process in; 0 is the caller.
    pub fn attach(&self, pid: i32) -> Result<(), Errno> {
        self.write("cgroup.procs", pid)
    }

    pub fn remove(&self) -> Result<(), Errno> {
        errno(fs::remove_dir(&self.path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A fork's copy leaves it to the process that made it.
        if self.maker != pid() || !fs::exists(&self.path).unwrap_or(false) {
            return;
        }
        let _ = write(&format!("{ROOT}/cgroup.procs"), 0);
        let _ = self.write("cgroup.kill", 1);
        settles(Duration::from_secs(5), || self.remove().is_ok() || !fs::exists(&self.path).unwrap_or(false));
    }
}
