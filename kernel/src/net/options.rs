//! getsockopt(2) and setsockopt(2) at the level of sockets.

use linux_raw_sys::net;
use smallvec::SmallVec;

use super::message::Ucred;
use super::unix::Socket;
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{copy_to_user, read_user, write_user};
use crate::sync::{SpinLock, WaitError};
use crate::time::{self, SECOND};

/// Default of buffers, and the most that an unprivileged process may ask for, bytes.
pub const BUFFER_SIZE: usize = 212_992;
const LEAST_SEND: usize = 4608;
const LEAST_RECEIVE: usize = 2304;

/// What is set and read back.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of messages on their way that a sender may have.
    pub send_buffer: usize,
    /// Kept for getsockopt(2): what limits is the sender's buffer.
    pub receive_buffer: usize,
    /// Nanoseconds; 0 is for ever.
    pub receive_timeout: u64,
    /// Nanoseconds; 0 is for ever.
    pub send_timeout: u64,
    /// SCM_CREDENTIALS comes with each message.
    pub pass_credentials: bool,
    /// Others may bind the same port: addresses, ports.
    pub reuse_address: bool,
    /// As above, for sockets that share what comes.
    pub reuse_port: bool,
    /// Who says nothing is asked now and then whether he is there.
    pub keep_alive: bool,
    /// A datagram may go to everybody.
    pub broadcast: bool,
    /// On or off, and seconds.
    pub linger: [i32; 2],
    priority: i32,
    low_water: i32,
}

impl Options {
    /// Those of a new socket.
    pub const fn new() -> Self {
        Self {
            send_buffer: BUFFER_SIZE,
            receive_buffer: BUFFER_SIZE,
            receive_timeout: 0,
            send_timeout: 0,
            pass_credentials: false,
            reuse_address: false,
            reuse_port: false,
            keep_alive: false,
            broadcast: false,
            linger: [0; 2],
            priority: 0,
            low_water: 1,
        }
    }
}

fn timeout_from(address: usize, len: usize) -> Result<u64> {
    if len < 16 {
        return Err(Errno::EINVAL);
    }
    let [seconds, microseconds]: [i64; 2] = read_user(address)?;
    if !(0..1_000_000).contains(&microseconds) {
        return Err(Errno::EDOM);
    }
    // A negative time is no time, and 0 is for ever.
    if seconds < 0 {
        return Ok(1);
    }
    Ok((seconds as u64).saturating_mul(SECOND).saturating_add(microseconds as u64 * 1000))
}

fn timeout_to(ns: u64) -> [i64; 2] {
    [(ns / SECOND) as i64, (ns % SECOND / 1000) as i64]
}

/// setsockopt(2).
pub fn set(socket: &Socket, level: u32, name: u32, address: usize, len: usize) -> Result<()> {
    if level != net::SOL_SOCKET {
        return Err(Errno::EOPNOTSUPP);
    }
    set_common(&socket.options, name, address, len)?;
    socket.writable.wake_all();
    Ok(())
}

/// Sets an option that sockets of all families have.
pub fn set_common(options: &SpinLock<Options>, name: u32, address: usize, len: usize) -> Result<()> {
    let pair = match name {
        net::SO_RCVTIMEO_OLD | net::SO_RCVTIMEO_NEW => {
            let timeout = timeout_from(address, len)?;
            options.lock().receive_timeout = timeout;
            return Ok(());
        }
        net::SO_SNDTIMEO_OLD | net::SO_SNDTIMEO_NEW => {
            let timeout = timeout_from(address, len)?;
            options.lock().send_timeout = timeout;
            return Ok(());
        }
        net::SO_LINGER => {
            if len < 8 {
                return Err(Errno::EINVAL);
            }
            read_user::<[i32; 2]>(address)?
        }
        _ => [0; 2],
    };
    if len < 4 {
        return Err(Errno::EINVAL);
    }
    let value: i32 = read_user(address)?;
    let on = value != 0;
    let privileged = crate::process::current().credentials().capable(linux_raw_sys::general::CAP_NET_ADMIN);
    let mut options = options.lock();
    // Linux takes the double of what is asked for, since its own bookkeeping counts, too.
    let size = |least: usize| ((value as u32 as usize).min(BUFFER_SIZE) * 2).max(least);
    let forced = |least: usize| (value.max(0) as usize).min(1 << 30).saturating_mul(2).max(least);
    match name {
        net::SO_LINGER => options.linger = pair,
        net::SO_SNDBUF => options.send_buffer = size(LEAST_SEND),
        net::SO_RCVBUF => options.receive_buffer = size(LEAST_RECEIVE),
        net::SO_SNDBUFFORCE if privileged => options.send_buffer = forced(LEAST_SEND),
        net::SO_RCVBUFFORCE if privileged => options.receive_buffer = forced(LEAST_RECEIVE),
        net::SO_SNDBUFFORCE | net::SO_RCVBUFFORCE => return Err(Errno::EPERM),
        net::SO_PASSCRED => options.pass_credentials = on,
        net::SO_REUSEADDR => options.reuse_address = on,
        net::SO_REUSEPORT => options.reuse_port = on,
        net::SO_KEEPALIVE => options.keep_alive = on,
        net::SO_BROADCAST => options.broadcast = on,
        net::SO_PRIORITY => options.priority = value,
        net::SO_RCVLOWAT => options.low_water = value.max(1),
        _ => return Err(Errno::ENOPROTOOPT),
    }
    Ok(())
}

/// Gives user memory as much of an option's value as it has room for.
pub fn give(bytes: &[u8], address: usize, len_address: usize) -> Result<()> {
    let room: i32 = read_user(len_address)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let len = bytes.len().min(room);
    copy_to_user(address, &bytes[..len])?;
    write_user(len_address, &(len as i32))
}

/// getsockopt(2). `len_address` is that of the length, which is written back.
pub fn get(socket: &Socket, level: u32, name: u32, address: usize, len_address: usize) -> Result<()> {
    let room: i32 = read_user(len_address)?;
    if room < 0 {
        return Err(Errno::EINVAL);
    }
    if level != net::SOL_SOCKET {
        return Err(Errno::EOPNOTSUPP);
    }
    let number = match name {
        net::SO_PEERCRED => {
            let Ucred { pid, uid, gid } = socket.peer_credentials().shown();
            return give(&[pid, uid, gid].map(u32::to_ne_bytes).concat(), address, len_address);
        }
        net::SO_TYPE => socket.kind.number() as i32,
        net::SO_DOMAIN => net::AF_UNIX as i32,
        net::SO_PROTOCOL => 0,
        net::SO_ERROR => socket.take_error().map_or(0, |e| e.into_raw()),
        net::SO_ACCEPTCONN => i32::from(socket.is_listening()),
        _ => {
            let options = *socket.options.lock();
            return give(&common(&options, name)?, address, len_address);
        }
    };
    give(&number.to_ne_bytes(), address, len_address)
}

/// The value of an option that sockets of all families have.
pub fn common(options: &Options, name: u32) -> Result<SmallVec<[u8; 16]>> {
    let pair = |[a, b]: [i64; 2]| [a.to_ne_bytes(), b.to_ne_bytes()].concat().into();
    let number = match name {
        net::SO_RCVTIMEO_OLD | net::SO_RCVTIMEO_NEW => return Ok(pair(timeout_to(options.receive_timeout))),
        net::SO_SNDTIMEO_OLD | net::SO_SNDTIMEO_NEW => return Ok(pair(timeout_to(options.send_timeout))),
        net::SO_LINGER => return Ok(options.linger.map(i32::to_ne_bytes).concat().into()),
        net::SO_SNDBUF => options.send_buffer as i32,
        net::SO_RCVBUF => options.receive_buffer as i32,
        net::SO_PASSCRED => i32::from(options.pass_credentials),
        net::SO_REUSEADDR => i32::from(options.reuse_address),
        net::SO_REUSEPORT => i32::from(options.reuse_port),
        net::SO_KEEPALIVE => i32::from(options.keep_alive),
        net::SO_BROADCAST => i32::from(options.broadcast),
        net::SO_PRIORITY => options.priority,
        net::SO_RCVLOWAT => options.low_water,
        net::SO_SNDLOWAT => 1,
        _ => return Err(Errno::ENOPROTOOPT),
    };
    Ok(number.to_ne_bytes().as_slice().into())
}

/// The monotonic time at which a timeout of a socket option ends.
pub(super) fn deadline(timeout: u64) -> Option<u64> {
    (timeout > 0).then(|| time::now().saturating_add(timeout))
}

/// A wait with a timeout of a socket option ends in `EAGAIN`; one with a timeout is not restarted.
pub(super) fn wait_error(error: WaitError, timeout: u64) -> Errno {
    match error {
        WaitError::TimedOut => Errno::EAGAIN,
        WaitError::Interrupted if timeout > 0 => Errno::EINTR,
        WaitError::Interrupted => Errno::ERESTARTSYS,
    }
}
