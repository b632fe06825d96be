//! System V semaphores.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use syscalls::Sysno;

use super::ipc::{IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT};
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::ipc::permissions::IpcPerm;
use crate::ipc::sem::{self, MAX_VALUE, Operation, SETTINGS, Set, Status};
use crate::mm::uaccess::{copy_to_user, read_user, read_user_array, write_user};
use crate::namespaces::View;
use crate::namespaces::ipc::here;
use crate::time::{self, clock::Timespec};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::semget, semget),
    (Sysno::semop, semop),
    (Sysno::semtimedop, semtimedop),
    (Sysno::semctl, semctl),
];

const GETPID: u32 = 11;
const GETVAL: u32 = 12;
const GETALL: u32 = 13;
const GETNCNT: u32 = 14;
const GETZCNT: u32 = 15;
const SETVAL: u32 = 16;
const SETALL: u32 = 17;
const SEM_STAT: u32 = 18;
const SEM_INFO: u32 = 19;
const SEM_STAT_ANY: u32 = 20;

fn semget(args: &mut Args) -> Result<usize> {
    sem::get(args.int(0), args.int(1), args.uint(2)).map(|id| id as usize)
}

fn operate(args: &Args, timeout: Option<Timespec>) -> Result<usize> {
    let count = args.uint(2);
    // Relaxed: a setting of its own.
    if count > SETTINGS.operations.load(Ordering::Relaxed) {
        return Err(Errno::E2BIG);
    }
    if count == 0 {
        return Err(Errno::EINVAL);
    }
    let operations: Vec<Operation> = read_user_array(args.a[1], count as usize)?;
    let timeout = timeout.map(Timespec::to_ns).transpose()?;
    let deadline = timeout.map(|duration| time::now().saturating_add(duration));
    sem::operate(args.int(0), operations, deadline).map(|()| 0)
}

fn semop(args: &mut Args) -> Result<usize> {
    operate(args, None)
}

fn semtimedop(args: &mut Args) -> Result<usize> {
    let timeout = if args.a[3] == 0 { None } else { Some(read_user(args.a[3])?) };
    operate(args, timeout)
}

/// `struct semid64_ds`.
#[derive(Clone, Copy)]
#[repr(C)]
struct SemidDs {
    permissions: IpcPerm,
    otime: i64,
    unused1: u64,
    ctime: i64,
    unused2: u64,
    nsems: u64,
    unused3: [u64; 2],
}

impl From<Status> for SemidDs {
    fn from(status: Status) -> Self {
        Self {
            permissions: status.permissions.to_user(status.id),
            otime: status.operated_at,
            unused1: 0,
            ctime: status.changed_at,
            unused2: 0,
            nsems: status.size as u64,
            unused3: [0; 2],
        }
    }
}

/// `struct seminfo`: the limits, and for SEM_INFO sets and semaphores in use in the place of two sizes.
fn information(in_use: Option<(usize, u64)>) -> [u32; 10] {
    // Relaxed, as all of these: settings of their own.
    let most = SETTINGS.in_system.load(Ordering::Relaxed);
    let (sets, semaphores) = in_use.unwrap_or((20, MAX_VALUE as u64));
    [
        1_024_000_000,
        SETTINGS.sets.load(Ordering::Relaxed) as u32,
        most,
        1_024_000_000,
        SETTINGS.in_set.load(Ordering::Relaxed),
        SETTINGS.operations.load(Ordering::Relaxed),
        500,
        sets as u32,
        MAX_VALUE as u32,
        semaphores as u32,
    ]
}

fn set_all(set: &Set, address: usize) -> Result<()> {
    set.check_change()?;
    set.set_values(&read_user_array(address, set.size())?)
}

fn get_all(set: &Set, address: usize) -> Result<()> {
    let values = set.values()?;
    // SAFETY: a slice of integers is as many bytes.
    let bytes = unsafe { core::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(&*values)) };
    copy_to_user(address, bytes)
}

fn semctl(args: &mut Args) -> Result<usize> {
    let (id, number, command, argument) = (args.int(0), args.int(1), args.uint(2), args.a[3]);
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        IPC_INFO | SEM_INFO => {
            let (sets, highest, semaphores) = here().sets.totals();
            let in_use = (command == SEM_INFO).then_some((sets, semaphores));
            write_user(argument, &information(in_use))?;
            Ok(highest)
        }
        IPC_STAT => {
            let status = here().sets.by_id(id)?.status()?;
            write_user(argument, &SemidDs::from(status)).map(|()| 0)
        }
        SEM_STAT | SEM_STAT_ANY => {
            let set = here().sets.by_slot(id)?;
            let status = if command == SEM_STAT { set.status()? } else { set.status_for_all() };
            write_user(argument, &SemidDs::from(status))?;
            Ok(status.id as usize)
        }
        IPC_SET => {
            let new: SemidDs = read_user(argument)?;
            here().sets.by_id(id)?.set_permissions(&new.permissions).map(|()| 0)
        }
        IPC_RMID => here().sets.by_id(id)?.remove().map(|()| 0),
        GETALL => get_all(&*here().sets.by_id(id)?, argument).map(|()| 0),
        SETALL => set_all(&*here().sets.by_id(id)?, argument).map(|()| 0),
        SETVAL => {
            let value = argument as i32;
            if !(0..=MAX_VALUE).contains(&value) {
                return Err(Errno::ERANGE);
            }
            here().sets.by_id(id)?.set_value(number, value).map(|()| 0)
        }
        GETVAL => Ok(here().sets.by_id(id)?.value(number)?.0.into()),
        GETPID => Ok(View::current().number(here().sets.by_id(id)?.value(number)?.1) as usize),
        GETNCNT => Ok(here().sets.by_id(id)?.waiting(number)?.0),
        GETZCNT => Ok(here().sets.by_id(id)?.waiting(number)?.1),
        _ => Err(Errno::EINVAL),
    }
}
