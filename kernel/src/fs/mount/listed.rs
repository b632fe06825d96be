//! Mounts by their numbers: statmount(2) and listmount(2).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::propagation::{self, Fields};
use super::{ATTRIBUTES, Mount, TABLE, lock_changes};
use crate::errno::{Errno, Result};
use crate::fs::mount_namespace::MountNamespace;
use crate::fs::mount_text::root_text;
use crate::fs::path::Path;
use crate::memory::fallible::TryVec;
use crate::process;

/// Unique numbers are larger than the ones that mountinfo shows: no program can take one for the other.
const UNIQUE: u64 = 1 << 32;

impl Mount {
    /// The number that no other mount had or will have, as statx(2) and statmount(2) tell it.
    pub fn unique_id(&self) -> u64 {
        UNIQUE + self.id
    }
}

/// The number of a mount by its unique number: `EINVAL` for one that no mount can have.
pub fn number(unique: u64) -> Result<u64> {
    unique.checked_sub(UNIQUE).filter(|&id| id > 0).ok_or(Errno::EINVAL)
}

/// What is told of a mount.
pub struct Told {
    pub mount: abi::statmount,
    /// In the order of `statmount(2)`: file system, root, mount point, options.
    pub texts: [Vec<u8>; 4],
}

/// Where a mount is asked for: a namespace, and what `/` is for who asks.
pub struct View {
    namespace: Arc<MountNamespace>,
    root: Path,
}

impl View {
    /// Of the current thread's namespace with its root directory, or of another one, which takes privileges in it: else it gives `refusal`.
    pub fn new(namespace: u64, root: Path, refusal: Errno) -> Result<Self> {
        let own = MountNamespace::current();
        if namespace == 0 || namespace == own.head.ino {
            return Ok(Self { namespace: own, root });
        }
        let namespace = MountNamespace::by_number(namespace).ok_or(Errno::ENOENT)?;
        if !may_see_all(&namespace) {
            return Err(refusal);
        }
        // What covers it may be unmounted meanwhile: it is not held.
        let root = bottom(namespace.root().ok_or(Errno::ENOENT)?);
        Ok(Self { namespace, root })
    }

    fn find(&self, id: u64) -> Option<Arc<Mount>> {
        let bottom = self.namespace.root()?;
        if bottom.id == id { Some(bottom.clone()) } else { TABLE.lock().by_number(self.number(), id) }
    }

    fn number(&self) -> u64 {
        self.namespace.head.ino
    }

    /// `EPERM` for what is not below the root directory, unless all of the namespace may be seen.
    fn check(&self, mount: &Arc<Mount>) -> Result<()> {
        let may = bottom(mount).is_below(&self.root) || may_see_all(&self.namespace);
        if may { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// What of the mount with this number is asked for. The tree does not change meanwhile.
    pub fn tell(&self, id: u64, asked: u64) -> Result<Told> {
        let _change = lock_changes()?;
        let mount = self.find(id).ok_or(Errno::ENOENT)?;
        self.check(&mount)?;
        self.fill(&mount, asked)
    }

    fn fill(&self, mount: &Arc<Mount>, asked: u64) -> Result<Told> {
        let asks = |what: u32| asked & u64::from(what) != 0;
        // SAFETY: all of it is numbers.
        let mut out: abi::statmount = unsafe { core::mem::zeroed() };
        let mut texts = [const { Vec::new() }; 4];
        let mut has = 0;
        let mut begin = |what: u32| asks(what).then(|| has |= u64::from(what)).is_some();
        let superblock = &mount.superblock;
        if begin(abi::STATMOUNT_SB_BASIC) {
            const SHOWN: u32 = abi::MS_RDONLY | abi::MS_SYNCHRONOUS | abi::MS_DIRSYNC | abi::MS_LAZYTIME;
            (out.sb_dev_major, out.sb_dev_minor) = (superblock.dev.major, superblock.dev.minor);
            out.sb_magic = superblock.ops.magic();
            out.sb_flags = superblock.flags() & SHOWN;
        }
        // The way up to the masters may be long.
        let fields = if asks(abi::STATMOUNT_MNT_BASIC | abi::STATMOUNT_PROPAGATE_FROM) {
            propagation::fields(mount)
        } else {
            Fields::default()
        };
        if begin(abi::STATMOUNT_MNT_BASIC) {
            let parent = mount.place().map_or_else(|| mount.clone(), |place| place.mount);
            (out.mnt_id, out.mnt_parent_id) = (mount.unique_id(), parent.unique_id());
            (out.mnt_id_old, out.mnt_parent_id_old) = (mount.id as u32, parent.id as u32);
            // Ordering: a flag word of its own.
            out.mnt_attr = attributes(mount.flags.load(Ordering::Relaxed));
            out.mnt_propagation = fields.flags().into();
            (out.mnt_peer_group, out.mnt_master) = (fields.group, fields.master);
        }
        if begin(abi::STATMOUNT_PROPAGATE_FROM) {
            out.propagate_from = fields.from;
        }
        if begin(abi::STATMOUNT_FS_TYPE) {
            texts[0].try_extend_from_slice(superblock.kind.as_bytes())?;
        }
        if begin(abi::STATMOUNT_MNT_ROOT) {
            texts[1] = root_text(mount)?;
        }
        if begin(abi::STATMOUNT_MNT_POINT) {
            let (text, is_below) = bottom(mount).to_text(&self.root)?;
            texts[2] = if is_below { text } else { Vec::new() };
        }
        if begin(abi::STATMOUNT_MNT_OPTS) {
            let options = superblock.ops.options();
            texts[3].try_extend_from_slice(options.trim_start_matches(',').as_bytes())?;
        }
        if begin(abi::STATMOUNT_MNT_NS_ID) {
            out.mnt_ns_id = self.number();
        }
        out.mask = has;
        Ok(Told { mount: out, texts })
    }

    /// The unique numbers of at most `most` mounts below `above`, of all for `None`, in ascending order behind `after`, or in descending
    /// order before it; 0 begins at the end. Between two of them the tree may change.
    pub fn list(
        &self,
        above: Option<u64>,
        after: u64,
        backwards: bool,
        most: usize,
        mut put: impl FnMut(usize, u64) -> Result<()>,
    ) -> Result<usize> {
        let from = {
            let _change = lock_changes()?;
            let from = match above {
                None => self.root.clone(),
                Some(id) => bottom(&self.find(id).ok_or(Errno::ENOENT)?),
            };
            // The directory of the root need not be a mount's: what is mounted there begins where it does.
            if above.is_some() {
                self.check(&from.mount)?;
            }
            (Arc::downgrade(&from.mount), from.dentry)
        };
        let (mut done, mut at) = (0, after);
        while done < most {
            let listed = {
                let change = lock_changes()?;
                // By a reference that unmount does not count.
                let Some(above_it) = from.0.upgrade() else { break };
                if !above_it.is_in_tree() {
                    // Nothing is below it any more. The last reference may be this one, and takes a file system down.
                    drop(change);
                    break;
                }
                let from = Path { mount: above_it, dentry: from.1.clone() };
                let Some(mount) = self.next(at, backwards) else { break };
                at = mount.id;
                (Some(mount.id) != above && bottom(&mount).is_below(&from)).then(|| mount.unique_id())
            };
            if let Some(id) = listed {
                put(done, id)?;
                done += 1;
            }
            crate::sched::cond_resched();
            if process::current().kill_pending() {
                return Err(Errno::EINTR);
            }
        }
        Ok(done)
    }

    /// The mount with the next number.
    fn next(&self, at: u64, backwards: bool) -> Option<Arc<Mount>> {
        let bottom = self.namespace.root()?;
        let next = TABLE.lock().next_number(self.number(), at, backwards);
        let is_next = |id: u64| at == 0 || if backwards { id < at } else { id > at };
        match next {
            Some(mount) if !is_next(bottom.id) || (mount.id < bottom.id) != backwards => Some(mount),
            next => is_next(bottom.id).then(|| bottom.clone()).or(next),
        }
    }
}

/// The directory that a mount begins with.
fn bottom(mount: &Arc<Mount>) -> Path {
    Path { mount: mount.clone(), dentry: mount.root.clone() }
}

fn may_see_all(namespace: &MountNamespace) -> bool {
    process::current().credentials().capable_in(&namespace.head.user, process::CAP_SYS_ADMIN)
}

/// The flags of a mount as the new calls have them.
fn attributes(flags: u32) -> u64 {
    let simple = ATTRIBUTES.iter().filter(|(_, flag)| flags & flag != 0).fold(0, |all, (bit, _)| all | bit);
    let times = match flags & (abi::MS_NOATIME | abi::MS_RELATIME) {
        0 => abi::MOUNT_ATTR_STRICTATIME,
        times if times & abi::MS_NOATIME != 0 => abi::MOUNT_ATTR_NOATIME,
        _ => abi::MOUNT_ATTR_RELATIME,
    };
    u64::from(simple | times)
}
