//! Who may do what: permission checks by mode, owner, group and capability.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;

use super::inode::{Attributes, Inode};
use super::stat::FileType;
use crate::errno::{Errno, Result};
use crate::namespaces::UserNamespace;
use crate::namespaces::user::Ids;

/// To read: the value is the bit in a mode and in access(2).
pub const READ: u32 = 4;
/// To write.
pub const WRITE: u32 = 2;
/// To execute, or to pass through a directory.
pub const EXECUTE: u32 = 1;

/// Who asks, as far as file systems are concerned.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// File system user: normally the effective user.
    pub uid: u32,
    /// File system group.
    pub gid: u32,
    /// Supplementary groups, in order.
    pub groups: Arc<Vec<u32>>,
    /// The effective capabilities, in the thread's user namespace.
    pub capabilities: u64,
    /// That namespace, unless it is the first.
    pub user: Option<Arc<UserNamespace>>,
}

impl Credentials {
    /// The kernel's own: all is allowed.
    pub fn kernel() -> Self {
        Self { uid: 0, gid: 0, groups: Arc::new(Vec::new()), capabilities: !0, user: None }
    }

    /// Has it the capability of this number, for what belongs to the whole system?
    pub fn capable(&self, capability: u32) -> bool {
        self.user.is_none() && self.capabilities >> capability & 1 != 0
    }

    /// Has it the capability for a file with these attributes? In a user namespace only if owner and group have numbers there.
    pub fn capable_over(&self, file: &Attributes, capability: u32) -> bool {
        self.capabilities >> capability & 1 != 0
            && self.user.as_ref().is_none_or(|user| {
                user.number_of(Ids::Users, file.uid).is_some()
                    && user.number_of(Ids::Groups, file.gid).is_some()
            })
    }

    /// Is it a member of the group?
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.binary_search(&gid).is_ok()
    }

    /// Owner of the file, or `CAP_FOWNER`?
    pub fn owns(&self, inode: &Inode) -> bool {
        self.owns_as(&inode.attributes())
    }

    /// As `owns`, of a file with these attributes.
    pub fn owns_as(&self, a: &Attributes) -> bool {
        self.uid == a.uid || self.capable_over(a, abi::CAP_FOWNER)
    }

    /// `EACCES` unless all of `want` (`READ`, `WRITE`, `EXECUTE`) is allowed on the inode.
    pub fn check(&self, inode: &Inode, want: u32) -> Result<()> {
        let a = inode.attributes();
        let granted = if self.uid == a.uid {
            a.permissions >> 6
        } else if self.in_group(a.gid) {
            a.permissions >> 3
        } else {
            a.permissions
        } & 7;
        if want & !granted == 0 {
            return Ok(());
        }
        let is_dir = inode.kind == FileType::Directory;
        // Root may do anything but execute a file that nobody may execute.
        if self.capable_over(&a, abi::CAP_DAC_OVERRIDE)
            && (is_dir || want & EXECUTE == 0 || a.permissions & 0o111 != 0)
        {
            return Ok(());
        }
        if self.capable_over(&a, abi::CAP_DAC_READ_SEARCH) && (want == READ || is_dir && want & WRITE == 0) {
            return Ok(());
        }
        Err(Errno::EACCES)
    }

    /// May the entry for `victim` be removed from or renamed in `dir`, which is writable: the sticky bit's
    /// rule.
    pub fn check_sticky(&self, dir: &Inode, victim: &Inode) -> Result<()> {
        let a = dir.attributes();
        if a.permissions & abi::S_ISVTX != 0
            && self.uid != a.uid
            && self.uid != victim.attributes().uid
            && !self.capable_over(&victim.attributes(), abi::CAP_FOWNER)
        {
            return Err(Errno::EPERM);
        }
        Ok(())
    }
}
