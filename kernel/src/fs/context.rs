//! Root, working directory and umask of a process.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::path::Path;
use crate::sync::SpinLock;

/// Root, working directory and umask of a process, shared with those that it made with `CLONE_FS`.
pub struct FsContext {
    places: SpinLock<(Path, Path)>,
    umask: AtomicU32,
    /// Threads that have it. Who reads another one's working directory holds it as well, for a moment, and does not count.
    users: AtomicUsize,
}

impl FsContext {
    /// At the root of the system, umask 022.
    pub fn new() -> Self {
        let root = super::root();
        Self::with((root.clone(), root), 0o022)
    }

    /// A copy for a child process.
    pub fn duplicate(&self) -> Self {
        Self::with(self.places.lock().clone(), self.umask())
    }

    fn with(places: (Path, Path), umask: u32) -> Self {
        Self { places: SpinLock::new(places), umask: AtomicU32::new(umask), users: AtomicUsize::new(0) }
    }

    /// A thread has it from now on.
    pub fn enter(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }

    /// A thread has it no more.
    pub fn leave(&self) {
        self.users.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether other threads than the caller's have it.
    pub fn is_shared(&self) -> bool {
        self.users.load(Ordering::SeqCst) > 1
    }

    /// What `/` means.
    pub fn root(&self) -> Path {
        self.places.lock().0.clone()
    }

    /// The working directory.
    pub fn cwd(&self) -> Path {
        self.places.lock().1.clone()
    }

    /// chroot(2).
    pub fn set_root(&self, root: Path) {
        let old = core::mem::replace(&mut self.places.lock().0, root);
        drop(old);
    }

    /// chdir(2).
    pub fn set_cwd(&self, cwd: Path) {
        let old = core::mem::replace(&mut self.places.lock().1, cwd);
        drop(old);
    }

    /// Root and working directory go from `old` to `new` where they are there.
    pub fn move_root(&self, old: &Path, new: &Path) {
        if self.root().same(old) {
            self.set_root(new.clone());
        }
        if self.cwd().same(old) {
            self.set_cwd(new.clone());
        }
    }

    /// Permission bits that new files do not get.
    pub fn umask(&self) -> u32 {
        // Ordering: a word of its own.
        self.umask.load(Ordering::Relaxed)
    }

    /// umask(2): sets it, returns the old.
    pub fn set_umask(&self, mask: u32) -> u32 {
        // Ordering: a word of its own.
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }
}

impl Default for FsContext {
    fn default() -> Self {
        Self::new()
    }
}
