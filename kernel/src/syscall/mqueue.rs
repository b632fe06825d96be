//! POSIX message queues.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{descriptor_limit, files};
use crate::ipc::mqueue::{self, Attributes, Notification, PRIORITIES, queue_of};
use crate::mm::uaccess::{copy_to_user, read_path, read_user, read_user_array, write_user};
use crate::signal;
use crate::time::Deadline;
use crate::time::clock::{ClockId, Timespec};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::mq_open, mq_open),
    (Sysno::mq_unlink, mq_unlink),
    (Sysno::mq_timedsend, mq_timedsend),
    (Sysno::mq_timedreceive, mq_timedreceive),
    (Sysno::mq_notify, mq_notify),
    (Sysno::mq_getsetattr, mq_getsetattr),
];

/// `struct mq_attr`: flags, messages at the most, bytes of a message, messages now; the rest is reserved.
type RawAttributes = [i64; 8];

fn mq_open(args: &mut Args) -> Result<usize> {
    let [name, flags, mode, attributes, ..] = args.a;
    let flags = flags as u32;
    let attributes = match attributes {
        0 => None,
        address => {
            let [_, messages, size, ..]: RawAttributes = read_user(address)?;
            // A negative number is too large as well.
            Some(Attributes { messages: messages as u64, size: size as u64 })
        }
    };
    let name = read_path(name)?;
    let (table, limit) = (files(), descriptor_limit());
    // A table that is full is found out before a queue is created.
    table.check_room(limit)?;
    let file = mqueue::open(&name, flags, mode as u32, attributes)?;
    table.install(file, 0, limit, true).map(|fd| fd as usize)
}

fn mq_unlink(args: &mut Args) -> Result<usize> {
    mqueue::unlink(&read_path(args.a[0])?).map(|()| 0)
}

/// An absolute time of the real-time clock, as a deadline.
fn deadline(address: usize) -> Result<Option<Deadline>> {
    match address {
        0 => Ok(None),
        address => ClockId::Realtime.to_deadline(read_user::<Timespec>(address)?.to_ns()?).map(Some),
    }
}

fn mq_timedsend(args: &mut Args) -> Result<usize> {
    let [fd, address, len, priority, timeout, ..] = args.a;
    let deadline = deadline(timeout)?;
    if priority as u32 >= PRIORITIES {
        return Err(Errno::EINVAL);
    }
    let file = files().get(fd as i32)?;
    let queue = queue_of(&file)?;
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    if len as u64 > queue.attributes().0.size {
        return Err(Errno::EMSGSIZE);
    }
    let body = read_user_array(address, len)?;
    queue.send(&file, body, priority as u32, deadline).map(|()| 0)
}

fn mq_timedreceive(args: &mut Args) -> Result<usize> {
    let [fd, address, len, priority, timeout, ..] = args.a;
    let deadline = deadline(timeout)?;
    let file = files().get(fd as i32)?;
    let queue = queue_of(&file)?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    if (len as u64) < queue.attributes().0.size {
        return Err(Errno::EMSGSIZE);
    }
    let (body, found) = queue.receive(&file, deadline)?;
    if priority != 0 {
        write_user(priority, &found)?;
    }
    copy_to_user(address, &body)?;
    Ok(body.len())
}

fn mq_notify(args: &mut Args) -> Result<usize> {
    let [fd, event, ..] = args.a;
    let notification = match event {
        0 => None,
        address => {
            /// `struct sigevent`, as far as it counts: value, signal, kind.
            type Event = [u64; 2];
            let [value, rest]: Event = read_user(address)?;
            let (number, kind) = (rest as u32, (rest >> 32) as u32);
            match kind {
                abi::SIGEV_NONE => Some(Notification::new(0, kind, value)),
                abi::SIGEV_SIGNAL if number <= signal::SIGNAL_MAX => {
                    Some(Notification::new(number, kind, value))
                }
                // glibc's SIGEV_THREAD reads from a netlink socket, and there are none.
                abi::SIGEV_THREAD => {
                    files().get(number as i32)?;
                    return Err(Errno::ENOTSOCK);
                }
                _ => return Err(Errno::EINVAL),
            }
        }
    };
    let file = files().get(fd as i32)?;
    queue_of(&file)?.notify(notification).map(|()| 0)
}

fn mq_getsetattr(args: &mut Args) -> Result<usize> {
    let [fd, new, old, ..] = args.a;
    let wanted = match new {
        0 => None,
        address => {
            let [flags, ..]: RawAttributes = read_user(address)?;
            if flags as u64 & !u64::from(abi::O_NONBLOCK) != 0 {
                return Err(Errno::EINVAL);
            }
            Some(flags as u32)
        }
    };
    let file = files().get(fd as i32)?;
    let (attributes, messages) = queue_of(&file)?.attributes();
    let flags = file.flags();
    if let Some(wanted) = wanted {
        file.set_flags(flags & !abi::O_NONBLOCK | wanted)?;
    }
    if old != 0 {
        let mut out: RawAttributes = [0; 8];
        out[..4].copy_from_slice(&[
            i64::from(flags & abi::O_NONBLOCK),
            attributes.messages as i64,
            attributes.size as i64,
            messages as i64,
        ]);
        write_user(old, &out)?;
    }
    Ok(0)
}
