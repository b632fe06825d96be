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
