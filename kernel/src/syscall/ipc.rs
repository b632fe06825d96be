//! System V shared memory.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::mm::space;
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::hugetlb::HugeFile;
use crate::ipc::ids::Object as _;
use crate::ipc::permissions::{IpcPerm, READ, WRITE};
use crate::mm::anonymous::SharedMemory;
use crate::mm::shm::{self, Attachment, Memory, Status};
use crate::mm::uaccess::{read_user, write_user};
use crate::namespaces::View;
use crate::namespaces::ipc::here;
use crate::process;

pub const TABLE: &[(Sysno, Handler)] =
    &[(Sysno::shmget, shmget), (Sysno::shmat, shmat), (Sysno::shmdt, shmdt), (Sysno::shmctl, shmctl)];

const SHM_HUGETLB: u32 = 0o4000;
const SHM_NORESERVE: u32 = 0o10000;
const SHM_RDONLY: u32 = 0o10000;
const SHM_RND: u32 = 0o20000;
const SHM_REMAP: u32 = 0o40000;
const SHM_EXEC: u32 = 0o100000;

pub(super) const IPC_RMID: u32 = 0;
pub(super) const IPC_SET: u32 = 1;
pub(super) const IPC_STAT: u32 = 2;
pub(super) const IPC_INFO: u32 = 3;
const SHM_LOCK: u32 = 11;
const SHM_UNLOCK: u32 = 12;
const SHM_STAT: u32 = 13;
const SHM_INFO: u32 = 14;
const SHM_STAT_ANY: u32 = 15;

fn shmget(args: &mut Args) -> Result<usize> {
    let [key, size, flags, ..] = args.a;
    let (key, size, flags) = (key as i32, size as u64, flags as u32);
    let id = shm::get(key, size, flags, || {
        if flags & SHM_HUGETLB == 0 {
            return Ok(Memory::Pages(SharedMemory::new(size, flags & SHM_NORESERVE == 0)?));
        }
        crate::hugetlb::check_may_use_shm()?;
        let page = crate::mm::huge_size(flags)?;
        let len = size.checked_next_multiple_of(page).ok_or(Errno::EINVAL)?;
        Ok(Memory::Huge(HugeFile::segment(page, len, flags & SHM_NORESERVE != 0)?))
    })?;
    Ok(id as usize)
}

fn shmat(args: &mut Args) -> Result<usize> {
    let [id, address, flags, ..] = args.a;
    let (mut address, flags) = (address as u64, flags as u32);
    let lba = 4096;
    // One that is rounded down to 0 is an address still.
    let anywhere = address == 0;
    if !anywhere {
        if !address.is_multiple_of(lba) {
            if flags & SHM_RND == 0 {
                return Err(Errno::EINVAL);
            }
            address &= !(lba - 1);
            if address == 0 && flags & SHM_REMAP != 0 {
                return Err(Errno::EINVAL);
            }
        }
    } else if flags & SHM_REMAP != 0 {
        return Err(Errno::EINVAL);
    }
    let segment = here().segments.by_id(id as i32)?;
    let mut prot = abi::PROT_READ;
    let mut want = READ;
    if flags & SHM_RDONLY == 0 {
        prot |= abi::PROT_WRITE;
        want |= WRITE;
    }
    if flags & SHM_EXEC != 0 {
        prot |= abi::PROT_EXEC;
        want |= 1;
    }
    segment.check(want)?;
    let attachment = Attachment::new(segment)?;
    Ok(space()?.attach(attachment, (!anywhere).then_some(address), prot, flags & SHM_REMAP != 0)? as usize)
}

fn shmdt(args: &mut Args) -> Result<usize> {
    space()?.detach(args.a[0] as u64).map(|()| 0)
}

/// `struct shmid64_ds`.
#[derive(Clone, Copy)]
#[repr(C)]
struct ShmidDs {
    permissions: IpcPerm,
    segsz: u64,
    atime: i64,
    dtime: i64,
    ctime: i64,
    cpid: u32,
    lpid: u32,
    nattch: u64,
    unused2: [u64; 2],
}

impl From<Status> for ShmidDs {
    fn from(status: Status) -> Self {
        Self {
            permissions: status.permissions.to_user(status.id),
            segsz: status.size,
            atime: status.attached_at,
            dtime: status.detached_at,
            ctime: status.changed_at,
            cpid: View::current().number(status.creator),
            lpid: View::current().number(status.last_pid),
            nattch: status.attachments,
            unused2: [0; 2],
        }
    }
}

/// `struct shminfo64`.
fn limits() -> [u64; 9] {
    let mni = shm::shmmni() as u64;
    [shm::shmmax(), 1, mni, mni, shm::shmall(), 0, 0, 0, 0]
}

fn shmctl(args: &mut Args) -> Result<usize> {
    let [id, command, buffer, ..] = args.a;
    let id = id as i32;
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    match command as u32 {
        IPC_INFO => {
            write_user(buffer, &limits())?;
            Ok(here().segments.totals().1)
        }
        SHM_INFO => {
            let (used, highest, total, resident) = shm::totals();
            // `struct shm_info`: an int with padding, then five words; nothing is ever swapped.
            write_user(buffer, &[used as u64, total, resident, 0, 0, 0])?;
            Ok(highest)
        }
        IPC_STAT => {
            let segment = here().segments.by_id(id)?;
            segment.check(READ)?;
            write_user(buffer, &ShmidDs::from(segment.status()))?;
            Ok(0)
        }
        command @ (SHM_STAT | SHM_STAT_ANY) => {
            let segment = here().segments.by_slot(id)?;
            if command == SHM_STAT {
                segment.check(READ)?;
            }
            write_user(buffer, &ShmidDs::from(segment.status()))?;
            Ok(segment.id() as usize)
        }
        IPC_SET => {
            let new: ShmidDs = read_user(buffer)?;
            here().segments.by_id(id)?.set(&new.permissions).map(|()| 0)
        }
        IPC_RMID => here().segments.by_id(id)?.mark_for_removal().map(|()| 0),
        command @ (SHM_LOCK | SHM_UNLOCK) => {
            let namespace = here();
            let segment = namespace.segments.by_id(id)?;
            let thread = process::current();
            if !thread.credentials().capable_in(&namespace.head.user, abi::CAP_IPC_LOCK) {
                segment.permissions().check_may_lock()?;
                if command == SHM_LOCK && thread.process.limit(abi::RLIMIT_MEMLOCK as usize) == 0 {
                    return Err(Errno::EPERM);
                }
            }
            segment.set_locked(command == SHM_LOCK);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
