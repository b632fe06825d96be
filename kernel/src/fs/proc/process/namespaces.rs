//! `/proc/PID/ns`, and the files that set the maps of a user namespace and the offsets of a time namespace.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::super::bytes;
use super::{PlaceLink, Target};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::inode::{Dirent, InodeOps};
use crate::fs::path::Path;
use crate::fs::stat::FileType;
use crate::namespaces::user::Ids;
use crate::namespaces::{Namespaces, TimeNamespace, UserNamespace, file};
use crate::process;

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

fn user_of(target: &Target) -> Result<Arc<UserNamespace>> {
    Ok(target.thread()?.credentials().user_namespace())
}

fn show(target: &Target, ids: Ids) -> Result<Vec<u8>> {
    user_of(target)?.show_map(ids, &process::current().credentials().user_namespace())
}

pub fn uid_map(target: &Target) -> Result<Vec<u8>> {
    show(target, Ids::Users)
}

pub fn set_uid_map(target: &Target, text: &[u8]) -> Result<()> {
    user_of(target)?.write_map(Ids::Users, text)
}

pub fn gid_map(target: &Target) -> Result<Vec<u8>> {
    show(target, Ids::Groups)
}

pub fn set_gid_map(target: &Target, text: &[u8]) -> Result<()> {
    user_of(target)?.write_map(Ids::Groups, text)
}

pub fn setgroups(target: &Target) -> Result<Vec<u8>> {
    bytes(user_of(target)?.show_setgroups())
}

pub fn set_setgroups(target: &Target, text: &[u8]) -> Result<()> {
    user_of(target)?.write_setgroups(text)
}

fn time_of(target: &Target) -> Result<Arc<TimeNamespace>> {
    Ok(Namespaces::of(&*target.thread()?).time_for_children.clone())
}

pub fn time_offsets(target: &Target) -> Result<Vec<u8>> {
    time_of(target)?.show()
}

pub fn set_time_offsets(target: &Target, text: &[u8]) -> Result<()> {
    time_of(target)?.store(text)
}
