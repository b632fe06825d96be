//! System V message queues.

use core::sync::atomic::Ordering;

use syscalls::Sysno;

use super::ipc::{IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT};
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::ipc::msg::{self, Message, SETTINGS, Selection, Status, Wanted};
use crate::ipc::permissions::IpcPerm;
use crate::mm::uaccess::{check_range, copy_to_user, read_user, read_user_array, write_user};
use crate::namespaces::View;
use crate::namespaces::ipc::here;

pub const TABLE: &[(Sysno, Handler)] =
    &[(Sysno::msgget, msgget), (Sysno::msgsnd, msgsnd), (Sysno::msgrcv, msgrcv), (Sysno::msgctl, msgctl)];

const IPC_NOWAIT: u32 = 0o4000;
const MSG_NOERROR: u32 = 0o10000;
const MSG_EXCEPT: u32 = 0o20000;
const MSG_COPY: u32 = 0o40000;

const MSG_STAT: u32 = 11;
const MSG_INFO: u32 = 12;
const MSG_STAT_ANY: u32 = 13;

/// Where a message's text begins, behind its type.
const TEXT: usize = size_of::<i64>();

fn msgget(args: &mut Args) -> Result<usize> {
    msg::get(args.int(0), args.uint(1)).map(|id| id as usize)
}

/// `kernel.msgmax`.
fn largest() -> usize {
    // Relaxed: a setting of its own.
    SETTINGS.largest_message.load(Ordering::Relaxed)
}

fn msgsnd(args: &mut Args) -> Result<usize> {
    let (id, address, size, flags) = (args.int(0), args.a[1], args.a[2], args.uint(3));
    let kind: i64 = read_user(address)?;
    if size > largest() || id < 0 || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let body = read_user_array(address.checked_add(TEXT).ok_or(Errno::EFAULT)?, size)?;
    msg::send(id, Message { kind, body }, flags & IPC_NOWAIT != 0).map(|()| 0)
}

fn msgrcv(args: &mut Args) -> Result<usize> {
    let (id, address, size, kind, flags) =
        (args.int(0), args.a[1], args.a[2], args.a[3] as i64, args.uint(4));
    if id < 0 || (size as isize) < 0 {
        return Err(Errno::EINVAL);
    }
    let (cut, nonblocking) = (flags & MSG_NOERROR != 0, flags & IPC_NOWAIT != 0);
    let message = if flags & MSG_COPY != 0 {
        if flags & MSG_EXCEPT != 0 || !nonblocking {
            return Err(Errno::EINVAL);
        }
        check_range(address, size.min(largest()))?;
        msg::copy(id, kind, size, cut)?
    } else {
        let selection = match kind {
            0 => Selection::Any,
            kind if kind < 0 => Selection::LowestTo(kind.checked_neg().unwrap_or(i64::MAX)),
            kind if flags & MSG_EXCEPT != 0 => Selection::NotEqual(kind),
            kind => Selection::Equal(kind),
        };
        msg::receive(id, Wanted { selection, size, cut, nonblocking })?
    };
    let len = message.len().min(size);
    write_user(address, &message.kind)?;
    copy_to_user(address + TEXT, &message.body[..len])?;
    Ok(len)
}

/// `struct msqid64_ds`.
#[derive(Clone, Copy)]
#[repr(C)]
struct MsqidDs {
    permissions: IpcPerm,
    stime: i64,
    rtime: i64,
    ctime: i64,
    cbytes: u64,
    qnum: u64,
    qbytes: u64,
    lspid: u32,
    lrpid: u32,
    unused: [u64; 2],
}

impl From<Status> for MsqidDs {
    fn from(status: Status) -> Self {
        Self {
            permissions: status.permissions.to_user(status.id),
            stime: status.sent_at,
            rtime: status.received_at,
            ctime: status.changed_at,
            cbytes: status.bytes as u64,
            qnum: status.messages as u64,
            qbytes: status.limit as u64,
            lspid: View::current().number(status.last_sender),
            lrpid: View::current().number(status.last_receiver),
            unused: [0; 2],
        }
    }
}

/// `struct msginfo`: pool, map, msgmax, msgmnb, msgmni, ssz, tql as `int`, then seg as `unsigned short`.
fn information(in_use: Option<(usize, u64, u64)>) -> [u32; 8] {
    // Relaxed, as all of these: settings of their own.
    let queue = SETTINGS.bytes_in_queue.load(Ordering::Relaxed) as u32;
    let queues = SETTINGS.queues.load(Ordering::Relaxed) as u32;
    // What Linux gives for limits that it has not got.
    let (pool, map, total) = match in_use {
        Some((queues, messages, bytes)) => (queues as u32, messages as u32, bytes as u32),
        None => (512_000, 16384, 16384),
    };
    [pool, map, largest() as u32, queue, queues, 16, total, 0xffff]
}

fn msgctl(args: &mut Args) -> Result<usize> {
    let (id, command, buffer) = (args.int(0), args.int(1), args.a[2]);
    if id < 0 || command < 0 {
        return Err(Errno::EINVAL);
    }
    match command as u32 {
        command @ (IPC_INFO | MSG_INFO) => {
            let (queues, highest, _) = here().queues.totals();
            let (messages, bytes) = msg::totals();
            let in_use = (command == MSG_INFO).then_some((queues, messages, bytes));
            write_user(buffer, &information(in_use))?;
            Ok(highest)
        }
        IPC_STAT => {
            let status = here().queues.by_id(id)?.status()?;
            write_user(buffer, &MsqidDs::from(status)).map(|()| 0)
        }
        command @ (MSG_STAT | MSG_STAT_ANY) => {
            let queue = here().queues.by_slot(id)?;
            let status = if command == MSG_STAT { queue.status()? } else { queue.status_for_all() };
            write_user(buffer, &MsqidDs::from(status))?;
            Ok(status.id as usize)
        }
        IPC_SET => {
            let new: MsqidDs = read_user(buffer)?;
            here().queues.by_id(id)?.set(&new.permissions, new.qbytes as usize).map(|()| 0)
        }
        IPC_RMID => here().queues.by_id(id)?.remove().map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}
