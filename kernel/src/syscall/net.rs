//! Sockets.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::{general as abi, net};
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::{File, Sink, Source, caller};
use crate::memory::fallible;
use crate::mm::uaccess::{copy_from_user, copy_to_user, read_user, write_user};
use crate::net::calls::{self, Along, Calls, Incoming, Place};
use crate::net::message::{MAX_RIGHTS, Rights, Ucred};
use crate::net::unix::{self, Kind, Socket};
use crate::net::{inet, netlink};
use crate::time::clock::Timespec;
use crate::time::{self};

/// This room's part of the table.
pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::socket, socket),
    (Sysno::socketpair, socketpair),
    (Sysno::bind, bind),
    (Sysno::listen, listen),
    (Sysno::accept, accept),
    (Sysno::accept4, accept4),
    (Sysno::connect, connect),
    (Sysno::getsockname, getsockname),
    (Sysno::getpeername, getpeername),
    (Sysno::sendto, sendto),
    (Sysno::recvfrom, recvfrom),
    (Sysno::sendmsg, sendmsg),
    (Sysno::recvmsg, recvmsg),
    (Sysno::sendmmsg, sendmmsg),
    (Sysno::recvmmsg, recvmmsg),
    (Sysno::shutdown, shutdown),
    (Sysno::setsockopt, setsockopt),
    (Sysno::getsockopt, getsockopt),
];

/// recvmmsg(2) waits for the first message only.
const MSG_WAITFORONE: u32 = 0x10000;
/// Bytes of ancillary data that one call brings at most.
const MAX_CONTROL: usize = 128 * 1024;
/// The most messages of sendmmsg(2) and recvmmsg(2).
const MAX_MESSAGES: usize = 1024;

/// The file of a descriptor, and the socket that it is.
fn socket_file(fd: i32) -> Result<(Arc<File>, Arc<dyn Calls>)> {
    let file = caller::files().get(fd)?;
    let socket = calls::of_file(&file)?;
    Ok((file, socket))
}

fn install(file: Arc<File>, close: bool) -> Result<i32> {
    caller::files().install(file, 0, caller::descriptor_limit(), close)
}

/// The type of socket(2), and the flags beside it.
fn split_type(kind: u32) -> Result<(u32, u32)> {
    const FLAGS: u32 = abi::O_NONBLOCK | abi::O_CLOEXEC;
    const TYPE: u32 = 0xf;
    if kind & !(TYPE | FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((kind & TYPE, kind & FLAGS))
}

/// The kind of a socket of the Unix domain.
fn unix_kind(kind: u32, protocol: i32) -> Result<Kind> {
    if protocol != 0 && protocol as u32 != net::AF_UNIX {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Kind::from_number(kind)
}

fn socket(args: &mut Args) -> Result<usize> {
    let (domain, protocol) = (args.uint(0), args.int(2));
    let (kind, flags) = split_type(args.uint(1))?;
    let file = match domain {
        net::AF_UNIX => Socket::new(unix_kind(kind, protocol)?)?.into_file(flags),
        net::AF_INET | net::AF_INET6 => inet::Socket::create(domain, kind, protocol)?.into_file(flags),
        net::AF_NETLINK => netlink::Socket::create(kind, protocol)?.into_file(flags),
        _ => {
            crate::missing::tell(format_args!("socket family {domain}"));
            return Err(Errno::EAFNOSUPPORT);
        }
    };
    install(file, flags & abi::O_CLOEXEC != 0).map(|fd| fd as usize)
}

fn socketpair(args: &mut Args) -> Result<usize> {
    let (kind, flags) = split_type(args.uint(1))?;
    match args.uint(0) {
        net::AF_UNIX => {}
        net::AF_INET | net::AF_INET6 => {
            inet::check_kind(kind, args.int(2))?;
            return Err(Errno::EOPNOTSUPP);
        }
        _ => return Err(Errno::EAFNOSUPPORT),
    }
    let kind = unix_kind(kind, args.int(2))?;
    let close = flags & abi::O_CLOEXEC != 0;
    let (a, b) = unix::pair(kind)?;
    let (a, b) = (a.into_file(flags), b.into_file(flags));
    let first = install(a, close)?;
    let result = install(b, close).and_then(|second| {
        write_user(args.a[3], &[first, second]).inspect_err(|_| {
            // Another thread may have closed it already.
            let _ = caller::files().close(second);
        })
    });
    if result.is_err() {
        // As above.
        let _ = caller::files().close(first);
    }
    result.map(|()| 0)
}

fn bind(args: &mut Args) -> Result<usize> {
    let (_, socket) = socket_file(args.int(0))?;
    socket.bind(Place(args.a[1], args.a[2]))?;
    Ok(0)
}

fn listen(args: &mut Args) -> Result<usize> {
    socket_file(args.int(0))?.1.listen(args.int(1))?;
    Ok(0)
}

fn accept(args: &mut Args) -> Result<usize> {
    do_accept(args, 0)
}

fn accept4(args: &mut Args) -> Result<usize> {
    let flags = args.uint(3);
    if flags & !(abi::O_NONBLOCK | abi::O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    do_accept(args, flags)
}

fn do_accept(args: &Args, flags: u32) -> Result<usize> {
    let (file, listener) = socket_file(args.int(0))?;
    // Without a descriptor for it a connection stays in the backlog.
    caller::files().check_room(caller::descriptor_limit())?;
    let (new, peer) = listener.accept(file.nonblocking(), flags)?;
    if args.a[1] != 0 {
        write_address(&peer, args.a[1], args.a[2])?;
    }
    install(new, flags & abi::O_CLOEXEC != 0).map(|fd| fd as usize)
}

fn connect(args: &mut Args) -> Result<usize> {
    let (file, socket) = socket_file(args.int(0))?;
    socket.connect(Place(args.a[1], args.a[2]), file.nonblocking())?;
    Ok(0)
}

fn getsockname(args: &mut Args) -> Result<usize> {
    let (_, socket) = socket_file(args.int(0))?;
    write_address(&socket.name()?, args.a[1], args.a[2])?;
    Ok(0)
}

fn getpeername(args: &mut Args) -> Result<usize> {
    let (_, socket) = socket_file(args.int(0))?;
    write_address(&socket.peer_name()?, args.a[1], args.a[2])?;
    Ok(0)
}

fn shutdown(args: &mut Args) -> Result<usize> {
    let (_, socket) = socket_file(args.int(0))?;
    let (receive, send) = match args.uint(1) {
        0 => (true, false),
        1 => (false, true),
        2 => (true, true),
        _ => return Err(Errno::EINVAL),
    };
    socket.shutdown(receive, send)?;
    Ok(0)
}

fn setsockopt(args: &mut Args) -> Result<usize> {
    let (_, socket) = socket_file(args.int(0))?;
    let len = usize::try_from(args.int(4)).map_err(|_| Errno::EINVAL)?;
    socket.set_option(args.uint(1), args.uint(2), args.a[3], len)?;
    Ok(0)
}

fn getsockopt(args: &mut Args) -> Result<usize> {
    let (_, socket) = socket_file(args.int(0))?;
    socket.option(args.uint(1), args.uint(2), args.a[3], args.a[4])?;
    Ok(0)
}

/// The flags of a call, with what the open file says.
fn with_file_flags(file: &File, flags: u32) -> u32 {
    if file.nonblocking() { flags | net::MSG_DONTWAIT } else { flags }
}

/// A destination; none for a null pointer or length 0.
fn destination(at: usize, len: usize) -> Option<Place> {
    (at != 0 && len != 0).then_some(Place(at, len))
}

/// Writes an address, as much as fits, and its whole length.
fn write_address(bytes: &[u8], address: usize, len_address: usize) -> Result<()> {
    let room: i32 = read_user(len_address)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    copy_to_user(address, &bytes[..bytes.len().min(room)])?;
    write_user(len_address, &(bytes.len() as i32))
}

fn sendto(args: &mut Args) -> Result<usize> {
    let (file, socket) = socket_file(args.int(0))?;
    let mut source = Source::user(args.a[1], args.a[2])?;
    let to = destination(args.a[4], args.a[5]);
    socket.send(&mut source, with_file_flags(&file, args.uint(3)), to, Along::default())
}

fn recvfrom(args: &mut Args) -> Result<usize> {
    let (file, socket) = socket_file(args.int(0))?;
    let mut sink = Sink::user(args.a[1], args.a[2])?;
    let received = socket.receive(&mut sink, with_file_flags(&file, args.uint(3)))?;
    if args.a[4] != 0 {
        match &received.from {
            Some(from) => write_address(from, args.a[4], args.a[5])?,
            // A sender without a name has no address, not an empty one.
            None => write_user(args.a[5], &0i32)?,
        }
    }
    Ok(received.count)
}

/// `struct msghdr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MessageHeader {
    name: usize,
    name_len: u32,
    padding: u32,
    vectors: usize,
    vector_count: usize,
    control: usize,
    control_len: usize,
    flags: u32,
    padding_2: u32,
}

const NAME_LEN_AT: usize = 8;
const CONTROL_LEN_AT: usize = 40;
const FLAGS_AT: usize = 48;
/// `struct msghdr` and the count behind it.
const MMSG_SIZE: usize = 64;

/// `struct cmsghdr`, and what follows up to the next one.
const CONTROL_HEADER: usize = 16;

const fn align(len: usize) -> usize {
    (len + 7) & !7
}

/// Reads ancillary data.
fn read_control(header: &MessageHeader) -> Result<Along> {
    let mut along = Along::default();
    if header.control == 0 || header.control_len == 0 {
        return Ok(along);
    }
    if header.control_len > MAX_CONTROL {
        return Err(Errno::ENOBUFS);
    }
    let mut data = fallible::filled(0, header.control_len)?;
    copy_from_user(&mut data, header.control)?;
    let mut files = Vec::new();
    let mut at = 0;
    while at + CONTROL_HEADER <= data.len() {
        let word = |at: usize| u32::from_ne_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        let len = word(at) as usize | (word(at + 4) as usize) << 32;
        let (level, kind) = (word(at + 8), word(at + 12));
        if len < CONTROL_HEADER || len > data.len() - at {
            return Err(Errno::EINVAL);
        }
        let body = &data[at + CONTROL_HEADER..at + len];
        if level == net::SOL_SOCKET {
            match kind {
                net::SCM_RIGHTS => {
                    if !body.len().is_multiple_of(4) || files.len() + body.len() / 4 > MAX_RIGHTS {
                        return Err(Errno::EINVAL);
                    }
                    let table = caller::files();
                    for fd in body.chunks_exact(4) {
                        let fd = i32::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]]);
                        files.push(table.get(fd)?);
                    }
                }
                net::SCM_CREDENTIALS => {
                    if body.len() != size_of::<Ucred>() {
                        return Err(Errno::EINVAL);
                    }
                    let word = |i: usize| word(at + CONTROL_HEADER + 4 * i);
                    let claimed = Ucred::claimed(word(0), word(1), word(2))?;
                    claimed.check_claim()?;
                    along.credentials = Some(claimed);
                }
                _ => return Err(Errno::EINVAL),
            }
        } else {
            along.wishes.add(level, kind, body);
        }
        at += align(len);
    }
    if !files.is_empty() {
        along.rights = Some(Rights::new(files)?);
    }
    Ok(along)
}

fn send_message(file: &File, socket: &dyn Calls, at: usize, flags: u32) -> Result<usize> {
    let header: MessageHeader = read_user(at)?;
    if (header.name_len as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let mut source = match Source::vectors(header.vectors, header.vector_count) {
        Err(Errno::EINVAL) if header.vector_count > crate::fs::iobuf::IOV_MAX => {
            return Err(Errno::EMSGSIZE);
        }
        other => other?,
    };
    let to = destination(header.name, header.name_len as usize);
    let along = read_control(&header)?;
    socket.send(&mut source, with_file_flags(file, flags), to, along)
}

fn sendmsg(args: &mut Args) -> Result<usize> {
    let (file, socket) = socket_file(args.int(0))?;
    send_message(&file, &*socket, args.a[1], args.uint(2))
}

fn sendmmsg(args: &mut Args) -> Result<usize> {
    let (file, socket) = socket_file(args.int(0))?;
    let count = (args.uint(2) as usize).min(MAX_MESSAGES);
    let mut done = 0;
    while done < count {
        let at = args.a[1] + done * MMSG_SIZE;
        let sent = send_message(&file, &*socket, at, args.uint(3))
            .and_then(|sent| write_user(at + size_of::<MessageHeader>(), &(sent as u32)));
        match sent {
            Ok(()) => done += 1,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
        crate::sched::cond_resched();
    }
    Ok(done)
}

/// Ancillary data on its way to user memory.
struct Control {
    bytes: Vec<u8>,
    room: usize,
    cut: bool,
}

impl Control {
    fn header(&mut self, level: u32, kind: u32, len: usize) {
        self.bytes.extend_from_slice(&(CONTROL_HEADER + len).to_ne_bytes());
        self.bytes.extend_from_slice(&level.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    /// An entry, as much of it as there is room for behind its header.
    fn put(&mut self, level: u32, kind: u32, body: &[u8]) {
        let Some(room) = self.left().checked_sub(CONTROL_HEADER) else {
            self.cut = true;
            return;
        };
        self.cut |= room < body.len();
        let body = &body[..body.len().min(room)];
        self.header(level, kind, body.len());
        self.bytes.extend_from_slice(body);
        self.pad();
    }

    fn left(&self) -> usize {
        self.room - self.bytes.len()
    }

    /// Fills up to where the next header begins, as far as there is room.
    fn pad(&mut self) {
        let end = align(self.bytes.len()).min(self.room);
        self.bytes.resize(end, 0);
    }

    fn credentials(&mut self, credentials: Ucred) {
        let Ucred { pid, uid, gid } = credentials.shown();
        self.put(net::SOL_SOCKET, net::SCM_CREDENTIALS, &[pid, uid, gid].map(u32::to_ne_bytes).concat());
    }

    /// Gives files descriptors, as many as there is room for; the others are closed.
    fn rights(&mut self, files: Vec<Arc<File>>, close: bool) {
        let room = self.left().saturating_sub(CONTROL_HEADER) / 4;
        let mut fds: Vec<i32> = Vec::new();
        let all = files.len();
        for file in files.into_iter().take(room) {
            match install(file, close) {
                Ok(fd) => fds.push(fd),
                Err(_) => break,
            }
        }
        self.cut |= fds.len() < all;
        if fds.is_empty() {
            return;
        }
        self.header(net::SOL_SOCKET, net::SCM_RIGHTS, fds.len() * 4);
        for fd in fds {
            self.bytes.extend_from_slice(&fd.to_ne_bytes());
        }
        self.pad();
    }
}

/// Receives one message; `NAME_LEN_AT` and so on are written back.
fn receive_message(file: &File, socket: &dyn Calls, at: usize, flags: u32) -> Result<usize> {
    let header: MessageHeader = read_user(at)?;
    if (header.name_len as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let mut sink = match Sink::vectors(header.vectors, header.vector_count) {
        Err(Errno::EINVAL) if header.vector_count > crate::fs::iobuf::IOV_MAX => {
            return Err(Errno::EMSGSIZE);
        }
        other => other?,
    };
    let mut received: Incoming = socket.receive(&mut sink, with_file_flags(file, flags))?;
    let room = if header.control == 0 { 0 } else { header.control_len.min(MAX_CONTROL) };
    let mut control = Control { bytes: Vec::new(), room, cut: false };
    if let Some(credentials) = received.credentials {
        control.credentials(credentials);
    }
    if let Some(arrival) = &received.arrival {
        arrival.tell(|level, kind, body| control.put(level, kind, body));
    }
    if !received.files.is_empty() {
        let files = core::mem::take(&mut received.files);
        control.rights(files, flags & net::MSG_CMSG_CLOEXEC != 0);
    }
    if !control.bytes.is_empty() {
        copy_to_user(header.control, &control.bytes)?;
    }
    write_user(at + CONTROL_LEN_AT, &control.bytes.len())?;
    let mut out_flags = received.flags | flags & net::MSG_CMSG_CLOEXEC;
    if control.cut {
        out_flags |= net::MSG_CTRUNC;
    }
    write_user(at + FLAGS_AT, &out_flags)?;
    if header.name != 0 {
        let bytes = received.from.unwrap_or_default();
        let len = bytes.len().min(header.name_len as usize);
        copy_to_user(header.name, &bytes[..len])?;
        write_user(at + NAME_LEN_AT, &(bytes.len() as u32))?;
    }
    Ok(received.count)
}

fn recvmsg(args: &mut Args) -> Result<usize> {
    let (file, socket) = socket_file(args.int(0))?;
    receive_message(&file, &*socket, args.a[1], args.uint(2))
}

fn recvmmsg(args: &mut Args) -> Result<usize> {
    let (file, socket) = socket_file(args.int(0))?;
    let count = (args.uint(2) as usize).min(MAX_MESSAGES);
    let mut flags = args.uint(3);
    let deadline = match args.a[4] {
        0 => None,
        address => Some(time::now().saturating_add(read_user::<Timespec>(address)?.to_ns()?)),
    };
    let once = flags & MSG_WAITFORONE != 0;
    flags &= !MSG_WAITFORONE;
    let mut done = 0;
    while done < count {
        let at = args.a[1] + done * MMSG_SIZE;
        let received = receive_message(&file, &*socket, at, flags)
            .and_then(|count| write_user(at + size_of::<MessageHeader>(), &(count as u32)));
        match received {
            Ok(()) => done += 1,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
        if once {
            flags |= net::MSG_DONTWAIT;
        }
        // The timeout is looked at between messages only: recvmmsg(2), BUGS.
        if deadline.is_some_and(|d| time::now() >= d) {
            break;
        }
        crate::sched::cond_resched();
    }
    if let Some(deadline) = deadline {
        let left = deadline.saturating_sub(time::now());
        write_user(args.a[4], &Timespec::from_ns(left))?;
    }
    Ok(done)
}
