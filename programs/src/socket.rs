//! Unix-domain sockets by descriptor, with the calls that Rust's have not.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::file::Fd;
use crate::sys::check;

pub fn pair(kind: i32) -> (Fd, Fd) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) })
        .expect("socketpair");
    (Fd::own(ends[0] as usize), Fd::own(ends[1] as usize))
}

pub fn send(fd: &Fd, bytes: &[u8], flags: i32) -> Result<usize, Errno> {
    // SAFETY: the bytes are as long as we say.
    check(unsafe { libc::send(fd.raw(), bytes.as_ptr().cast(), bytes.len(), flags) as i64 })
}

pub fn recv(fd: &Fd, buffer: &mut [u8], flags: i32) -> Result<usize, Errno> {
    // SAFETY: the buffer is as long as we say.
    check(unsafe { libc::recv(fd.raw(), buffer.as_mut_ptr().cast(), buffer.len(), flags) as i64 })
}

pub fn set_option<T>(fd: &impl AsRawFd, name: i32, value: T) {
    let value: *const T = &value;
    let len = size_of::<T>() as u32;
    // SAFETY: the value is as long as we say.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value.cast(), len) })
        .expect("setsockopt");
}

pub fn socket(kind: i32) -> Fd {
    // SAFETY: takes integers.
    Fd::own(check(unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0) }).expect("socket"))
}

/// An entry of ancillary data: its level, its type, its body.
pub type Entry = (i32, i32, Vec<u8>);

/// Sends bytes with ancillary data, to where the socket is connected to.
pub fn send_with(fd: &impl AsRawFd, bytes: &[u8], entries: &[Entry]) -> Result<usize, Errno> {
    // SAFETY: computes a size.
    let space = |body: &Vec<u8>| unsafe { libc::CMSG_SPACE(body.len() as u32) } as usize;
    let room = entries.iter().map(|(_, _, body)| space(body)).sum();
    let mut control = vec![0u64; usize::div_ceil(room, 8)];
    // SAFETY: all buffers are locals, as long as we say; each entry fits, and the headers are walked as the C library does it.
    unsafe {
        let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut piece;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = room;
        let mut at = libc::CMSG_FIRSTHDR(&header);
        for (level, kind, body) in entries {
            (*at).cmsg_level = *level;
            (*at).cmsg_type = *kind;
            (*at).cmsg_len = libc::CMSG_LEN(body.len() as u32) as usize;
            std::ptr::copy_nonoverlapping(body.as_ptr(), libc::CMSG_DATA(at), body.len());
            at = libc::CMSG_NXTHDR(&header, at);
        }
        check(libc::sendmsg(fd.as_raw_fd(), &header, 0) as i64)
    }
}

/// Sends bytes with one entry of the Unix domain.
pub fn send_along(fd: &Fd, bytes: &[u8], kind: i32, body: &[u8]) -> Result<usize, Errno> {
    send_with(&fd.0, bytes, &[(libc::SOL_SOCKET, kind, body.to_vec())])
}

/// What recvmsg(2) got.
pub struct Message {
    pub count: usize,
    pub flags: i32,
    pub control: Vec<Entry>,
    /// Bytes that the ancillary data took.
    pub control_len: usize,
}

impl Message {
    /// The descriptors among it.
    pub fn files(&self) -> Vec<Fd> {
        let bodies = self.control.iter().filter(|(_, kind, _)| *kind == libc::SCM_RIGHTS);
        bodies
            .flat_map(|(_, _, body)| body.chunks(4))
            .map(|fd| Fd::own(i32::from_ne_bytes(fd.try_into().expect("four bytes")) as usize))
            .collect()
    }
}

/// recvmsg(2) with so much room for ancillary data.
pub fn receive(fd: &impl AsRawFd, buffer: &mut [u8], room: usize, flags: i32) -> Result<Message, Errno> {
    let mut control = vec![0u64; room.div_ceil(8)];
    // SAFETY: all buffers are locals, as long as we say; the headers are walked as the C library does it.
    unsafe {
        let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut piece;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = room;
        let count = check(libc::recvmsg(fd.as_raw_fd(), &mut header, flags) as i64)?;
        let mut found = Vec::new();
        let mut at = libc::CMSG_FIRSTHDR(&header);
        while !at.is_null() {
            let len = (*at).cmsg_len - libc::CMSG_LEN(0) as usize;
            let body = std::slice::from_raw_parts(libc::CMSG_DATA(at), len).to_vec();
            found.push(((*at).cmsg_level, (*at).cmsg_type, body));
            at = libc::CMSG_NXTHDR(&header, at);
        }
        Ok(Message { count, flags: header.msg_flags, control: found, control_len: header.msg_controllen })
    }
}

/// Sends bytes with descriptors.
pub fn send_files(fd: &Fd, bytes: &[u8], files: &[i32]) -> Result<usize, Errno> {
    let body: Vec<u8> = files.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    send_along(fd, bytes, libc::SCM_RIGHTS, &body)
}
