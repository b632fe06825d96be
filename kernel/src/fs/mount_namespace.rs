//! Mount namespaces: trees of mounts, each visible to its own processes only.
//!
//! All mounts of all trees are in one table ([`super::mount`]): a place in it is a mount and a dentry, and no mount is in two trees. A
//! namespace is a root mount; those below are found from there.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};

use linux_raw_sys::general as abi;

use super::context::FsContext;
use super::inode::Inode;
use super::mount::{self, Mount};
use super::path::Path;
use crate::errno::{Errno, Result};
use crate::namespaces::{Head, Kind, Namespaces, UserNamespace, initial};
use crate::process::{self, CAP_SYS_ADMIN, Credentials};
use crate::sync::{Mutex, Once};

/// One mount namespace.
pub struct MountNamespace {
    pub head: Head,
    /// The bottom of the tree: the kernel's first is known once there is a root file system.
    root: Once<Arc<Mount>>,
}

/// To whom the namespaces belong, but for the first, by their numbers: for who has a mount of another's.
static OWNERS: Mutex<BTreeMap<u64, Weak<UserNamespace>>> = Mutex::new(BTreeMap::new());

/// All but the first, by their numbers.
static ALL: Mutex<BTreeMap<u64, Weak<MountNamespace>>> = Mutex::new(BTreeMap::new());

/// The mounts of a copied tree, by the numbers of those that they are copies of.
pub type Copies = BTreeMap<u64, Arc<Mount>>;

impl MountNamespace {
    /// The one that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<MountNamespace>> = Once::new();
        INITIAL.call_once(|| Arc::new(Self { head: Head::initial(initial::MOUNT), root: Once::new() }))
    }

    /// The system's first mount is there.
    pub(super) fn set_root(&self, root: &Arc<Mount>) {
        let _ = self.root.set(root.clone());
    }

    /// One with copies of all mounts of `old`. In another user namespace what was mounted stays mounted, with at least the restrictions
    /// that it has.
    pub fn copy(old: &Self, maker: &Credentials) -> Result<(Arc<Self>, Copies)> {
        let head = Head::new(Kind::Mount, maker)?;
        let root = old.root.get().ok_or(Errno::EINVAL)?;
        let locked = !Arc::ptr_eq(&head.user, &old.head.user);
        let copies = mount::copy_tree(root, &head, locked)?;
        OWNERS.lock().insert(head.ino, Arc::downgrade(&head.user));
        let new = Self { head, root: Once::new() };
        if let Some(copy) = copies.get(&root.id) {
            let _ = new.root.set(copy.clone());
        }
        let new = Arc::new(new);
        ALL.lock().insert(new.head.ino, Arc::downgrade(&new));
        Ok((new, copies))
    }

    /// The one with this number. Not under a lock of mounts: it may end when this reference goes.
    pub fn by_number(number: u64) -> Option<Arc<Self>> {
        if number == initial::MOUNT {
            return Some(Self::initial().clone());
        }
        ALL.lock().get(&number)?.upgrade()
    }

    /// The bottom of its tree.
    pub(super) fn root(&self) -> Option<&Arc<Mount>> {
        self.root.get()
    }

    /// What `/` is for who enters it.
    pub fn entrance(&self) -> Option<Path> {
        let mount = self.root.get()?.clone();
        Some(mount::enter(Path { dentry: mount.root.clone(), mount }))
    }

    /// That of the current thread.
    pub fn current() -> Arc<Self> {
        Namespaces::current().mount.clone()
    }

    /// `EPERM` unless the current thread may mount and unmount in its namespace.
    pub fn check_may_mount() -> Result<()> {
        let namespace = Self::current();
        let own = process::current().credentials();
        if own.capable_in(&namespace.head.user, CAP_SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        OWNERS.lock().remove(&self.head.ino);
        ALL.lock().remove(&self.head.ino);
        if let Some(root) = self.root.get() {
            mount::end::end_namespace(root);
        }
    }
}

/// The number of the current thread's namespace.
pub fn own_number() -> u64 {
    let namespaces = process::try_current().and_then(|thread| thread.namespaces());
    namespaces.map_or(initial::MOUNT, |namespaces| namespaces.mount.head.ino)
}

/// Is the mount one of the current thread's namespace? One that is in no tree is nobody's.
pub fn is_own(mount: &Mount) -> bool {
    mount.namespace() == own_number()
}

/// `EINVAL` for a file that stands for a mount namespace, shown in one that is not older: it would keep its keeper, and nobody could
/// ever let go of the two. Numbers grow.
pub fn check_keeps(inode: &Inode, shown_in: u64) -> Result<()> {
    if shown_in < kept_by(inode) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The number of the mount namespace that the file stands for; more than all numbers for another file. It may be shown in older ones only.
pub fn kept_by(inode: &Inode) -> u64 {
    crate::namespaces::file::mount_namespace(inode).map_or(u64::MAX, |kept| kept.head.ino)
}

/// `EINVAL` unless the path is in the current thread's namespace.
pub fn check_own(path: &Path) -> Result<()> {
    if is_own(&path.mount) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `EPERM` unless the current thread may mount and unmount in the namespace of the mount, which need not be its own.
pub fn check_may_change(mount: &Mount) -> Result<()> {
    let user = match mount.namespace() {
        initial::MOUNT => UserNamespace::initial().clone(),
        number => OWNERS.lock().get(&number).and_then(Weak::upgrade).ok_or(Errno::EPERM)?,
    };
    let own = process::current().credentials();
    if own.capable_in(&user, CAP_SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
}

/// `EPERM` unless the current thread may mount what shows a PID or IPC namespace of this owner: a mount namespace of one's own is not
/// enough, or what an administrator's mount hides would show in another one.
pub fn check_may_show(owner: &UserNamespace) -> Result<()> {
    let may = |thread: process::Current| thread.credentials().capable_in(owner, CAP_SYS_ADMIN);
    if process::try_current().is_none_or(may) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Root and working directory go to the copies of the mounts that they are in.
pub fn move_context(context: &FsContext, copies: &Copies) {
    let moved = |path: Path| {
        let mount = copies.get(&path.mount.id)?.clone();
        Some(Path { mount, dentry: path.dentry })
    };
    if let Some(root) = moved(context.root()) {
        context.set_root(root);
    }
    if let Some(cwd) = moved(context.cwd()) {
        context.set_cwd(cwd);
    }
}

/// The restrictions that a copy in another user namespace keeps.
pub const RESTRICTIONS: u32 = abi::MS_RDONLY | abi::MS_NODEV | abi::MS_NOSUID | abi::MS_NOEXEC;
