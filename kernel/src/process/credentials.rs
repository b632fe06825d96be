//! Who a thread acts as: users, groups, capabilities.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::{Errno, Result};
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
    pub groups: Arc<[u32]>,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub keep_capabilities: bool,
    pub securebits: u32,
}

/// The highest capability number, as /proc/sys/kernel/cap_last_cap says.
pub const LAST_CAPABILITY: u32 = 40;
/// All capabilities.
pub const ALL_CAPABILITIES: u64 = (1 << (LAST_CAPABILITY + 1)) - 1;

#[allow(missing_docs)]
pub const CAP_KILL: u32 = 5;
#[allow(missing_docs)]
pub const CAP_SETGID: u32 = 6;
#[allow(missing_docs)]
pub const CAP_SETUID: u32 = 7;
#[allow(missing_docs)]
pub const CAP_SETPCAP: u32 = 8;
#[allow(missing_docs)]
pub const CAP_SYS_ADMIN: u32 = 21;
#[allow(missing_docs)]
pub const CAP_SYS_BOOT: u32 = 22;
#[allow(missing_docs)]
pub const CAP_SYS_NICE: u32 = 23;
#[allow(missing_docs)]
pub const CAP_SYS_RESOURCE: u32 = 24;
#[allow(missing_docs)]
pub const CAP_SYS_TIME: u32 = 25;
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
                groups: Arc::from(Vec::new()),
                permitted: ALL_CAPABILITIES,
                effective: ALL_CAPABILITIES,
                inheritable: 0,
                bounding: ALL_CAPABILITIES,
                ambient: 0,
                keep_capabilities: false,
                securebits: 0,
            })
        })
        .clone()
    }

    /// Whether the capability is in effect.
    pub fn capable(&self, capability: u32) -> bool {
        self.effective >> capability & 1 != 0
    }

    /// `EPERM` unless the capability is in effect.
    pub fn require(&self, capability: u32) -> Result<()> {
        if self.capable(capability) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Whether `gid` is the effective group or a supplementary one.
    pub fn in_group(&self, gid: u32) -> bool {
        self.egid == gid || self.groups.contains(&gid)
    }

    /// setuid(2).
    pub fn set_uid(&mut self, uid: u32) -> Result<()> {
        let old = self.clone();
        if uid == KEEP {
            return Err(Errno::EINVAL);
        }
        if self.capable(CAP_SETUID) {
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
        let any = self.capable(CAP_SETUID);
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
        if !self.capable(CAP_SETUID) {
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
        if self.capable(CAP_SETGID) {
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
        let any = self.capable(CAP_SETGID);
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
        if !self.capable(CAP_SETGID) {
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
            && (self.capable(CAP_SETUID) || [self.uid, self.euid, self.suid, self.fsuid].contains(&uid))
        {
            self.fsuid = uid;
        }
        old
    }

    /// setfsgid(2).
    pub fn set_fsgid(&mut self, gid: u32) -> u32 {
        let old = self.fsgid;
        if gid != KEEP
            && (self.capable(CAP_SETGID) || [self.gid, self.egid, self.sgid, self.fsgid].contains(&gid))
        {
            self.fsgid = gid;
        }
        old
    }

    /// What a change of users does to capabilities: capabilities(7).
    fn uids_changed(&mut self, old: &Self) {
        let had_root = [old.uid, old.euid, old.suid].contains(&0);
        let has_root = [self.uid, self.euid, self.suid].contains(&0);
        if had_root && !has_root {
            if !self.keep_capabilities {
                self.permitted = 0;
                self.ambient = 0;
            }
            self.effective = 0;
        } else if old.euid == 0 && self.euid != 0 {
            self.effective = 0;
        } else if old.euid != 0 && self.euid == 0 {
            self.effective = self.permitted;
        }
    }

    /// execve(2) of a program without file capabilities and set-user-ID bits.
    pub fn after_exec(&self) -> Self {
        let mut new = self.clone();
        let root = self.uid == 0 || self.euid == 0;
        if root {
            new.permitted = self.inheritable | self.bounding;
            new.effective = if self.euid == 0 { new.permitted } else { 0 };
        } else {
            new.permitted = self.ambient;
            new.effective = self.ambient;
        }
        (new.suid, new.sgid) = (new.euid, new.egid);
        (new.fsuid, new.fsgid) = (new.euid, new.egid);
        new.keep_capabilities = false;
        new
    }
}
