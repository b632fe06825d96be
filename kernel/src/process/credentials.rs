//! Who a thread acts as: users, groups, capabilities.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::{Errno, Result};
use crate::namespaces::UserNamespace;
use crate::namespaces::user::{Ids, OVERFLOW_ID};
use crate::sync::Once;

/// The identity of a thread. Immutable: a change makes a new one.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub euid: u32,
    pub egid: u32,
    pub suid: u32,
    pub sgid: u32,
    /// The user and group that file systems look at.
    pub fsuid: u32,
    pub fsgid: u32,
    /// Supplementary groups, in order.
    pub groups: Arc<Vec<u32>>,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    /// What root means to the thread, and which of that it cannot change any more: the bits of [`securebits`].
    pub securebits: u32,
    /// The user namespace; `None` for the first.
    user: Option<Arc<UserNamespace>>,
}

/// The secure bits of capabilities(7); the bit above each locks it.
pub mod securebits {
    /// Root has no capabilities by being root.
    pub const NOROOT: u32 = 1;
    /// A change of users changes no capabilities.
    pub const NO_SETUID_FIXUP: u32 = 1 << 2;
    /// Who is root no more keeps the permitted capabilities, until the next execve(2).
    pub const KEEP_CAPS: u32 = 1 << 4;
    /// No capability becomes an ambient one.
    pub const NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
    /// All that are not locks.
    pub const ALL: u32 = NOROOT | NO_SETUID_FIXUP | KEEP_CAPS | NO_CAP_AMBIENT_RAISE;
    /// The lock of each.
    pub const LOCKS: u32 = ALL << 1;
}

/// The highest capability number, as /proc/sys/kernel/cap_last_cap says.
pub const LAST_CAPABILITY: u32 = 40;
/// All capabilities.
pub const ALL_CAPABILITIES: u64 = (1 << (LAST_CAPABILITY + 1)) - 1;

#[allow(missing_docs)]
pub const CAP_KILL: u32 = 5;
/// CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER and FSETID, LINUX_IMMUTABLE, MKNOD, MAC_OVERRIDE: what setfsuid(2) is about.
const FILE_CAPABILITIES: u64 = 0x1f | 1 << 9 | 1 << 27 | 1 << 32;
#[allow(missing_docs)]
pub const CAP_SETGID: u32 = 6;
#[allow(missing_docs)]
pub const CAP_SETUID: u32 = 7;
#[allow(missing_docs)]
pub const CAP_SETPCAP: u32 = 8;
#[allow(missing_docs)]
pub const CAP_SYS_CHROOT: u32 = 18;
#[allow(missing_docs)]
pub const CAP_SYS_PTRACE: u32 = 19;
#[allow(missing_docs)]
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_CHECKPOINT_RESTORE: u32 = 40;
#[allow(missing_docs)]
pub const CAP_SYS_BOOT: u32 = 22;
#[allow(missing_docs)]
pub const CAP_SYS_NICE: u32 = 23;
#[allow(missing_docs)]
pub const CAP_SYS_RESOURCE: u32 = 24;
#[allow(missing_docs)]
pub const CAP_SYS_TIME: u32 = 25;
#[allow(missing_docs)]
pub const CAP_SETFCAP: u32 = 31;
#[allow(missing_docs)]
pub const CAP_SYSLOG: u32 = 34;

/// `-1` in the calls that set identities: leave as it is.
const KEEP: u32 = u32::MAX;

impl Credentials {
    /// Root's, with all capabilities.
    pub fn root() -> Arc<Self> {
        static ROOT: Once<Arc<Credentials>> = Once::new();
        ROOT.call_once(|| {
            Arc::new(Self {
                uid: 0,
                gid: 0,
                euid: 0,
                egid: 0,
                suid: 0,
                sgid: 0,
                fsuid: 0,
                fsgid: 0,
                groups: Arc::new(Vec::new()),
                permitted: ALL_CAPABILITIES,
                effective: ALL_CAPABILITIES,
                inheritable: 0,
                bounding: ALL_CAPABILITIES,
                ambient: 0,
                securebits: 0,
                user: None,
            })
        })
        .clone()
    }

    /// Whether the capability is in effect for what belongs to the whole system, and to no user namespace.
    pub fn capable(&self, capability: u32) -> bool {
        self.user.is_none() && self.capable_here(capability)
    }

    /// Whether the capability is in effect in the thread's own user namespace.
    pub fn capable_here(&self, capability: u32) -> bool {
        self.effective >> capability & 1 != 0
    }

    /// Whether the capability is in effect for what belongs to `namespace`: there, or in one above. Who made a namespace has all
    /// capabilities in it, as long as it is in the one above.
    pub fn capable_in(&self, namespace: &UserNamespace, capability: u32) -> bool {
        let own: &UserNamespace = self.user.as_ref().unwrap_or_else(|| UserNamespace::initial());
        let mut at = namespace;
        loop {
            if core::ptr::eq(at, own) {
                return self.capable_here(capability);
            }
            let Some(parent) = at.parent.as_deref().filter(|_| at.level > own.level) else { return false };
            if core::ptr::eq(parent, own) && at.owner == self.euid {
                return true;
            }
            at = parent;
        }
    }

    /// Whether the capability is in effect for a thread with these credentials.
    pub fn capable_over(&self, other: &Self, capability: u32) -> bool {
        match &other.user {
            None => self.capable(capability),
            Some(user) => self.capable_in(user, capability),
        }
    }

    /// Whether a thread with these credentials may look into a process with those of `whom`, as this user and group (its real ones, or
    /// those for files): the other must be theirs throughout, and what it may do this thread must be able to do as well; or it has
    /// CAP_SYS_PTRACE over the other. What is not dumpable may have come from another user namespace with more than it has in this one
    /// (CVE-2015-8709), and needs the capability of the whole system.
    pub fn may_look_into(&self, whom: &Self, (uid, gid): (u32, u32), dumpable: bool) -> bool {
        let same = [whom.uid, whom.euid, whom.suid].iter().all(|id| *id == uid)
            && [whom.gid, whom.egid, whom.sgid].iter().all(|id| *id == gid);
        let namespace = |of: &Self| of.user.as_ref().map(Arc::as_ptr);
        let has_all = namespace(self) == namespace(whom) && whom.permitted & !self.permitted == 0;
        if same && dumpable && has_all {
            return true;
        }
        match dumpable {
            true => self.capable_over(whom, CAP_SYS_PTRACE),
            false => self.capable(CAP_SYS_PTRACE),
        }
    }

    /// The user namespace.
    pub fn user_namespace(&self) -> Arc<UserNamespace> {
        self.user.as_ref().unwrap_or_else(|| UserNamespace::initial()).clone()
    }

    /// The user namespace, unless it is the first.
    pub fn nested_user_namespace(&self) -> Option<&Arc<UserNamespace>> {
        self.user.as_ref()
    }

    pub fn set_user_namespace(&mut self, user: Arc<UserNamespace>) {
        self.user = (!Arc::ptr_eq(&user, UserNamespace::initial())).then_some(user);
    }

    /// The kernel's number for a user's in the thread's namespace.
    pub fn kernel_uid(&self, uid: u32) -> Option<u32> {
        self.user.as_ref().map_or(Some(uid), |user| user.to_kernel(Ids::Users, uid))
    }

    /// As `kernel_uid`, of a group.
    pub fn kernel_gid(&self, gid: u32) -> Option<u32> {
        self.user.as_ref().map_or(Some(gid), |user| user.to_kernel(Ids::Groups, gid))
    }

    /// A user's number in the thread's namespace; one that has none is shown as 65534.
    pub fn shown_uid(&self, uid: u32) -> u32 {
        self.user.as_ref().map_or(uid, |user| user.number_of(Ids::Users, uid).unwrap_or(OVERFLOW_ID))
    }

    /// As `shown_uid`, of a group.
    pub fn shown_gid(&self, gid: u32) -> u32 {
        self.user.as_ref().map_or(gid, |user| user.number_of(Ids::Groups, gid).unwrap_or(OVERFLOW_ID))
    }

    /// Is it the user 0 of the thread's namespace?
    fn is_root(&self, uid: u32) -> bool {
        self.kernel_uid(0) == Some(uid)
    }

    /// `EPERM` unless the capability is in effect for the whole system.
    pub fn require(&self, capability: u32) -> Result<()> {
        if self.capable(capability) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Whether `gid` is the effective group or a supplementary one.
    pub fn in_group(&self, gid: u32) -> bool {
        self.egid == gid || self.groups.binary_search(&gid).is_ok()
    }

    /// setuid(2).
    pub fn set_uid(&mut self, uid: u32) -> Result<()> {
        let old = self.clone();
        if uid == KEEP {
            return Err(Errno::EINVAL);
        }
        if self.capable_here(CAP_SETUID) {
            (self.uid, self.suid) = (uid, uid);
        } else if uid != self.uid && uid != self.suid {
            return Err(Errno::EPERM);
        }
        (self.euid, self.fsuid) = (uid, uid);
        self.uids_changed(&old);
        Ok(())
    }

    /// setreuid(2).
    pub fn set_reuid(&mut self, ruid: u32, euid: u32) -> Result<()> {
        let old = self.clone();
        let any = self.capable_here(CAP_SETUID);
        if ruid != KEEP {
            if !any && ruid != old.uid && ruid != old.euid {
                return Err(Errno::EPERM);
            }
            self.uid = ruid;
        }
        if euid != KEEP {
            if !any && euid != old.uid && euid != old.euid && euid != old.suid {
                return Err(Errno::EPERM);
            }
            self.euid = euid;
        }
        if ruid != KEEP || (euid != KEEP && euid != old.uid) {
            self.suid = self.euid;
        }
        self.fsuid = self.euid;
        self.uids_changed(&old);
        Ok(())
    }

    /// setresuid(2).
    pub fn set_resuid(&mut self, ruid: u32, euid: u32, suid: u32) -> Result<()> {
        let old = self.clone();
        if !self.capable_here(CAP_SETUID) {
            let allowed = [KEEP, old.uid, old.euid, old.suid];
            if ![ruid, euid, suid].iter().all(|id| allowed.contains(id)) {
                return Err(Errno::EPERM);
            }
        }
        for (field, id) in [(&mut self.uid, ruid), (&mut self.euid, euid), (&mut self.suid, suid)] {
            if id != KEEP {
                *field = id;
            }
        }
        self.fsuid = self.euid;
        self.uids_changed(&old);
        Ok(())
    }

    /// setgid(2).
    pub fn set_gid(&mut self, gid: u32) -> Result<()> {
        if gid == KEEP {
            return Err(Errno::EINVAL);
        }
        if self.capable_here(CAP_SETGID) {
            (self.gid, self.sgid) = (gid, gid);
        } else if gid != self.gid && gid != self.sgid {
            return Err(Errno::EPERM);
        }
        (self.egid, self.fsgid) = (gid, gid);
        Ok(())
    }

    /// setregid(2).
    pub fn set_regid(&mut self, rgid: u32, egid: u32) -> Result<()> {
        let old = self.clone();
        let any = self.capable_here(CAP_SETGID);
        if rgid != KEEP {
            if !any && rgid != old.gid && rgid != old.egid {
                return Err(Errno::EPERM);
            }
            self.gid = rgid;
        }
        if egid != KEEP {
            if !any && egid != old.gid && egid != old.egid && egid != old.sgid {
                return Err(Errno::EPERM);
            }
            self.egid = egid;
        }
        if rgid != KEEP || (egid != KEEP && egid != old.gid) {
            self.sgid = self.egid;
        }
        self.fsgid = self.egid;
        Ok(())
    }

    /// setresgid(2).
    pub fn set_resgid(&mut self, rgid: u32, egid: u32, sgid: u32) -> Result<()> {
        let old = self.clone();
        if !self.capable_here(CAP_SETGID) {
            let allowed = [KEEP, old.gid, old.egid, old.sgid];
            if ![rgid, egid, sgid].iter().all(|id| allowed.contains(id)) {
                return Err(Errno::EPERM);
            }
        }
        for (field, id) in [(&mut self.gid, rgid), (&mut self.egid, egid), (&mut self.sgid, sgid)] {
            if id != KEEP {
                *field = id;
            }
        }
        self.fsgid = self.egid;
        Ok(())
    }

    /// setfsuid(2): returns the old one, and changes it where allowed.
    pub fn set_fsuid(&mut self, uid: u32) -> u32 {
        let old = self.fsuid;
        if uid != KEEP
            && (self.capable_here(CAP_SETUID) || [self.uid, self.euid, self.suid, self.fsuid].contains(&uid))
        {
            self.fsuid = uid;
            self.fsuid_changed(old);
        }
        old
    }

    /// setfsgid(2).
    pub fn set_fsgid(&mut self, gid: u32) -> u32 {
        let old = self.fsgid;
        if gid != KEEP
            && (self.capable_here(CAP_SETGID) || [self.gid, self.egid, self.sgid, self.fsgid].contains(&gid))
        {
            self.fsgid = gid;
        }
        old
    }

    /// Whether one of [`securebits`] is set.
    pub fn is_secure(&self, bit: u32) -> bool {
        self.securebits & bit != 0
    }

    /// PR_SET_SECUREBITS: `EPERM` for unknown ones, a change of what is locked, and without CAP_SETPCAP.
    pub fn set_securebits(&mut self, bits: usize) -> Result<()> {
        let known =
            u32::try_from(bits).ok().filter(|bits| bits & !(securebits::ALL | securebits::LOCKS) == 0);
        let bits = known.ok_or(Errno::EPERM)?;
        let locks = self.securebits & securebits::LOCKS;
        if (self.securebits ^ bits) & (locks >> 1) != 0
            || locks & !bits != 0
            || !self.capable_here(CAP_SETPCAP)
        {
            return Err(Errno::EPERM);
        }
        self.securebits = bits;
        Ok(())
    }

    /// PR_SET_KEEPCAPS: `EPERM` where that is locked.
    pub fn keep_capabilities(&mut self, keep: bool) -> Result<()> {
        if self.is_secure(securebits::KEEP_CAPS << 1) {
            return Err(Errno::EPERM);
        }
        self.securebits &= !securebits::KEEP_CAPS;
        if keep {
            self.securebits |= securebits::KEEP_CAPS;
        }
        Ok(())
    }

    /// Whoever acts on files as another user has none of root's rights over files, and has them back with root.
    fn fsuid_changed(&mut self, old: u32) {
        if self.is_secure(securebits::NO_SETUID_FIXUP) {
            return;
        }
        if self.is_root(old) && !self.is_root(self.fsuid) {
            self.effective &= !FILE_CAPABILITIES;
        } else if !self.is_root(old) && self.is_root(self.fsuid) {
            self.effective |= self.permitted & FILE_CAPABILITIES;
        }
    }

    /// What a change of users does to capabilities: capabilities(7).
    fn uids_changed(&mut self, old: &Self) {
        if self.is_secure(securebits::NO_SETUID_FIXUP) {
            return;
        }
        let had_root = [old.uid, old.euid, old.suid].iter().any(|uid| self.is_root(*uid));
        let has_root = [self.uid, self.euid, self.suid].iter().any(|uid| self.is_root(*uid));
        if had_root && !has_root {
            if !self.is_secure(securebits::KEEP_CAPS) {
                self.permitted = 0;
            }
            self.effective = 0;
            // Whatever is kept: programs that knew of no ambient ones expect that the next program has nothing.
            self.ambient = 0;
        } else if self.is_root(old.euid) && !self.is_root(self.euid) {
            self.effective = 0;
        } else if !self.is_root(old.euid) && self.is_root(self.euid) {
            self.effective = self.permitted;
        }
    }

    /// execve(2) of a program without file capabilities and set-user-ID bits.
    pub fn after_exec(&self) -> Self {
        let mut new = self.clone();
        let root = self.is_root(self.uid) || self.is_root(self.euid);
        if root && !self.is_secure(securebits::NOROOT) {
            new.permitted = self.inheritable | self.bounding;
            new.effective = if self.is_root(self.euid) { new.permitted } else { 0 };
        } else {
            new.permitted = self.ambient;
            new.effective = self.ambient;
        }
        (new.suid, new.sgid) = (new.euid, new.egid);
        (new.fsuid, new.fsgid) = (new.euid, new.egid);
        new.securebits &= !securebits::KEEP_CAPS;
        new
    }
}
