//! `/proc/PID/ns`, and the files that set the maps of a user namespace and the offsets of a time namespace.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;

use super::super::bytes;
use super::{PlaceLink, Target};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::file::FileOps;
use crate::fs::inode::{Dirent, Inode, InodeOps, SetAttributes};
use crate::fs::path::Path;
use crate::fs::pseudo::{Text, TextFile};
use crate::fs::stat::FileType;
use crate::namespaces::user::Ids;
use crate::namespaces::{Namespaces, TimeNamespace, UserNamespace, file};
use crate::process::{self, Credentials};

/// `/proc/PID/ns`.
pub struct Links(pub Target);

/// The numbers of its entries begin here: none of another directory of the process has such.
const FIRST: u64 = 200 << 16;

impl InodeOps for Links {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        self.0.thread().map_err(|_| Errno::ENOENT)?;
        let index = file::NAMES.iter().position(|known| known.as_bytes() == name).ok_or(Errno::ENOENT)?;
        let target = self.0.clone();
        let number = FIRST + index as u64;
        let make = || {
            let link = PlaceLink { target: target.clone(), place: PLACES[index] };
            Ok(target.inode(number, FileType::Symlink, 0o777, link))
        };
        dir.child(name, |_| true, make)
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        self.0.check_access()?;
        for (index, name) in file::NAMES.iter().enumerate() {
            let next_offset = index as u64 + 3;
            let ino = self.0.ino(FIRST + index as u64);
            let entry = Dirent { ino, next_offset, kind: FileType::Symlink, name: name.as_bytes() };
            if next_offset > from && !emit(entry) {
                break;
            }
        }
        Ok(())
    }
}

/// Where each of the entries leads, in the order of their names.
const PLACES: [fn(&Target) -> Result<Path>; file::NAMES.len()] = [
    place::<0>, place::<1>, place::<2>, place::<3>, place::<4>, place::<5>, place::<6>, place::<7>,
    place::<8>, place::<9>,
];

fn place<const INDEX: usize>(target: &Target) -> Result<Path> {
    let thread = target.thread()?;
    // One that has ended has left its namespaces.
    if thread.sched.is_dead() || thread.try_fs().is_none() {
        return Err(Errno::ENOENT);
    }
    file::of_thread(&thread, file::NAMES[INDEX]).map(file::place).ok_or(Errno::ENOENT)
}

/// A file that sets something of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Users,
    Groups,
    Setgroups,
    TimeOffsets,
}

/// Such a file: what an open one is about, and by whose rights, is decided when it is opened.
pub struct SettingInode {
    pub target: Target,
    pub setting: Setting,
}

impl InodeOps for SettingInode {
    fn open(&self, _: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
        let thread = self.target.thread()?;
        let opener = process::current().credentials();
        let user = thread.credentials().user_namespace();
        if self.setting == Setting::Setgroups && flags & abi::O_ACCMODE != abi::O_RDONLY {
            user.check_setgroups(&opener)?;
        }
        let (target, setting) = (self.target.clone(), self.setting);
        Ok(TextFile::new(Arc::new(OpenSetting { target, setting, user, opener })))
    }

    fn set_attributes(&self, _: &Inode, change: &SetAttributes) -> Result<()> {
        if change.uid.is_some() || change.gid.is_some() { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Opening with `O_TRUNC` changes nothing.
    fn truncate(&self, _: &Inode, _: u64) -> Result<()> {
        Ok(())
    }
}

struct OpenSetting {
    target: Target,
    setting: Setting,
    /// The user namespace that the process had then.
    user: Arc<UserNamespace>,
    opener: Arc<Credentials>,
}

impl OpenSetting {
    fn time(&self) -> Result<Arc<TimeNamespace>> {
        Ok(Namespaces::of(&*self.target.thread()?).time_for_children.clone())
    }
}

impl Text for OpenSetting {
    fn show(&self) -> Result<Vec<u8>> {
        match self.setting {
            Setting::Users => self.user.show_map(Ids::Users, &self.opener.user_namespace()),
            Setting::Groups => self.user.show_map(Ids::Groups, &self.opener.user_namespace()),
            Setting::Setgroups => bytes(self.user.show_setgroups()),
            Setting::TimeOffsets => self.time()?.show(),
        }
    }

    fn store(&self, text: &[u8]) -> Result<()> {
        match self.setting {
            Setting::Users => self.user.write_map(Ids::Users, text, &self.opener),
            Setting::Groups => self.user.write_map(Ids::Groups, text, &self.opener),
            Setting::Setgroups => self.user.write_setgroups(text),
            Setting::TimeOffsets => self.time()?.store(text, &self.opener),
        }
    }
}
