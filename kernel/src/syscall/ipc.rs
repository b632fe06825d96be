//! System V shared memory.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::mm::space;
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::hugetlb::HugeFile;
use crate::mm::anonymous::SharedMemory;
use crate::mm::shm::{self, Attachment, Memory, Segment, Status};
use crate::mm::uaccess::{read_user, write_user};
use crate::process;

pub const TABLE: &[(Sysno, Handler)] =
    &[(Sysno::shmget, shmget), (Sysno::shmat, shmat), (Sysno::shmdt, shmdt), (Sysno::shmctl, shmctl)];

const IPC_CREAT: u32 = 0o1000;
const IPC_EXCL: u32 = 0o2000;
const SHM_HUGETLB: u32 = 0o4000;
const SHM_NORESERVE: u32 = 0o10000;
const SHM_RDONLY: u32 = 0o10000;
const SHM_RND: u32 = 0o20000;
const SHM_REMAP: u32 = 0o40000;
const SHM_EXEC: u32 = 0o100000;

const IPC_RMID: u32 = 0;
const IPC_SET: u32 = 1;
const IPC_STAT: u32 = 2;
const IPC_INFO: u32 = 3;
const SHM_LOCK: u32 = 11;
const SHM_UNLOCK: u32 = 12;
const SHM_STAT: u32 = 13;
const SHM_INFO: u32 = 14;
const SHM_STAT_ANY: u32 = 15;
/// Bit that old programs set to get the structures that there are today.
const IPC_64: u32 = 0x100;

fn shmget(args: &mut Args) -> Result<usize> {
    let [key, size, flags, ..] = args.a;
    let (key, size, flags) = (key as i32, size as u64, flags as u32);
    if key != shm::IPC_PRIVATE
        && let Some(segment) = shm::by_key(key)
    {
        return existing(&segment, size, flags);
    }
    if key != shm::IPC_PRIVATE && flags & IPC_CREAT == 0 {
        return Err(Errno::ENOENT);
    }
    if size == 0 || size > shm::shmmax().min(i64::MAX as u64) {
        return Err(Errno::EINVAL);
    }
    let memory = if flags & SHM_HUGETLB != 0 {
        crate::hugetlb::check_may_use_shm()?;
        let page = crate::mm::huge_size(flags)?;
        let len = size.checked_next_multiple_of(page).ok_or(Errno::EINVAL)?;
        Memory::Huge(HugeFile::segment(page, len, flags & SHM_NORESERVE != 0)?)
    } else {
        Memory::Pages(SharedMemory::new(size, flags & SHM_NORESERVE == 0)?)
    };
    match shm::create(key, size, flags, memory)? {
        Ok(segment) => Ok(segment.id as usize),
        Err(segment) => existing(&segment, size, flags),
    }
}

/// A key that has a segment already.
fn existing(segment: &Segment, size: u64, flags: u32) -> Result<usize> {
    if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL {
        return Err(Errno::EEXIST);
    }
    // What is asked for owner, group and others is asked for the caller.
    let want = (flags >> 6 | flags >> 3 | flags) & 0o7;
    segment.check(want)?;
    if size > segment.size {
        return Err(Errno::EINVAL);
    }
    Ok(segment.id as usize)
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
    let segment = shm::by_id(id as i32)?;
    let mut prot = abi::PROT_READ;
    let mut want = shm::READ;
    if flags & SHM_RDONLY == 0 {
        prot |= abi::PROT_WRITE;
        want |= shm::WRITE;
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

/// `struct ipc64_perm` and `struct shmid64_ds`.
#[derive(Clone, Copy)]
#[repr(C)]
struct ShmidDs {
    key: i32,
    uid: u32,
    gid: u32,
    cuid: u32,
    cgid: u32,
    mode: u32,
    seq: u16,
    pad: [u16; 3],
    unused: [u64; 2],
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
        let p = status.permissions;
        Self {
            key: if p.mode & shm::DEST != 0 { shm::IPC_PRIVATE } else { status.key },
            uid: p.uid,
            gid: p.gid,
            cuid: p.creator_uid,
            cgid: p.creator_gid,
            mode: p.mode,
            seq: status.sequence,
            pad: [0; 3],
            unused: [0; 2],
            segsz: status.size,
            atime: status.attached_at,
            dtime: status.detached_at,
            ctime: status.changed_at,
            cpid: status.creator,
            lpid: status.last_pid,
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
    match command as u32 & !IPC_64 {
        IPC_INFO => {
            write_user(buffer, &limits())?;
            Ok(shm::totals().1 as usize)
        }
        SHM_INFO => {
            let (used, highest, total, resident) = shm::totals();
            // `struct shm_info`: an int with padding, then five words; nothing is ever swapped.
            write_user(buffer, &[used as u64, total, resident, 0, 0, 0])?;
            Ok(highest as usize)
        }
        IPC_STAT => {
            let segment = shm::by_id(id)?;
            segment.check(shm::READ)?;
            write_user(buffer, &ShmidDs::from(segment.status()))?;
            Ok(0)
        }
        command @ (SHM_STAT | SHM_STAT_ANY) => {
            let segment = shm::by_slot(id)?;
            if command == SHM_STAT {
                segment.check(shm::READ)?;
            }
            write_user(buffer, &ShmidDs::from(segment.status()))?;
            Ok(segment.id as usize)
        }
        IPC_SET => {
            let new: ShmidDs = read_user(buffer)?;
            let segment = shm::by_id(id)?;
            segment.check_owner()?;
            segment.set(new.uid, new.gid, new.mode);
            Ok(0)
        }
        IPC_RMID => {
            let segment = shm::by_id(id)?;
            segment.check_owner()?;
            segment.mark_for_removal();
            Ok(0)
        }
        command @ (SHM_LOCK | SHM_UNLOCK) => {
            let segment = shm::by_id(id)?;
            if !process::current().credentials().capable(abi::CAP_IPC_LOCK) {
                segment.check_owner()?;
            }
            segment.set_locked(command == SHM_LOCK);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
