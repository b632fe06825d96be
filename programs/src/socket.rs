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

/// Sends bytes with ancillary data of one kind.
pub fn send_along(fd: &Fd, bytes: &[u8], kind: i32, body: &[u8]) -> Result<usize, Errno> {
    // SAFETY: all buffers are locals, as long as we say.
    unsafe {
        let mut control = vec![0u64; (libc::CMSG_SPACE(body.len() as u32) as usize).div_ceil(8)];
        let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut piece;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(body.len() as u32) as usize;
        let at = libc::CMSG_FIRSTHDR(&header);
        (*at).cmsg_level = libc::SOL_SOCKET;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(body.len() as u32) as usize;
        std::ptr::copy_nonoverlapping(body.as_ptr(), libc::CMSG_DATA(at), body.len());
        check(libc::sendmsg(fd.raw(), &header, 0) as i64)
    }
}

/// Sends bytes with descriptors.
pub fn send_files(fd: &Fd, bytes: &[u8], files: &[i32]) -> Result<usize, Errno> {
    let body: Vec<u8> = files.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    send_along(fd, bytes, libc::SCM_RIGHTS, &body)
}
