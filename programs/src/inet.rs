//! Internet sockets by descriptor, with the calls that Rust's have not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};

use nix::errno::Errno;

use crate::file::Fd;
use crate::sys::check;

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

pub fn socket(family: i32, kind: i32) -> Result<Fd, Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) }).map(Fd::own)
}

/// A stream socket of an address's family.
pub fn stream(ip: IpAddr) -> Fd {
    socket(if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, libc::SOCK_STREAM).expect("socket")
}

/// Calls `with` with the address as the system has it.
fn with_address<R>(address: SocketAddr, with: impl FnOnce(*const libc::sockaddr, u32) -> R) -> R {
    match address {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            with((&raw const address).cast(), size_of_val(&address) as u32)
        }
        SocketAddr::V6(v6) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: 0,
            };
            with((&raw const address).cast(), size_of_val(&address) as u32)
        }
    }
}

pub fn bind(fd: &impl AsRawFd, address: SocketAddr) -> Result<usize, Errno> {
    // SAFETY: the address lives through the call, and is as long as is said.
    with_address(address, |at, len| check(unsafe { libc::bind(fd.as_raw_fd(), at, len) }))
}

pub fn connect(fd: &impl AsRawFd, address: SocketAddr) -> Result<usize, Errno> {
    // SAFETY: as above.
    with_address(address, |at, len| check(unsafe { libc::connect(fd.as_raw_fd(), at, len) }))
}

/// getsockname(2) of a socket of IPv4.
pub fn name(fd: &impl AsRawFd) -> Result<SocketAddr, Errno> {
    // SAFETY: an address of zeros is valid, there is as much room as we say.
    unsafe {
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        let mut len = size_of_val(&address) as u32;
        check(libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &mut len))?;
        let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
        Ok((ip, u16::from_be(address.sin_port)).into())
    }
}

/// connect(2) with AF_UNSPEC.
pub fn disconnect(fd: &impl AsRawFd) -> Result<usize, Errno> {
    let address = [0u8; 16];
    // SAFETY: the address lives through the call, and is as long as is said.
    check(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), 16) })
}

pub fn listen(fd: &impl AsRawFd, backlog: i32) -> Result<usize, Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })
}

pub fn shutdown(fd: &impl AsRawFd, how: i32) -> Result<usize, Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) })
}

/// Sets an option that is a number.
pub fn set(fd: &impl AsRawFd, level: i32, name: i32, value: i32) -> Result<usize, Errno> {
    let len = size_of::<i32>() as u32;
    // SAFETY: the value is as long as we say.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) })
}

/// An option that is a number.
pub fn get(fd: &impl AsRawFd, level: i32, name: i32) -> Result<i32, Errno> {
    let (mut value, mut len) = (0, size_of::<i32>() as u32);
    // SAFETY: there is as much room as we say.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut len) })?;
    Ok(value)
}

/// What poll(2) says of a descriptor at once, or after some time, of these events.
pub fn poll(fd: &impl AsRawFd, events: i16, milliseconds: i32) -> i16 {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry.
    check(unsafe { libc::poll(&mut entry, 1, milliseconds) }).expect("poll");
    entry.revents
}

/// A listener, one end of a connection, and the accepted one.
pub fn connection(ip: IpAddr) -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind((ip, 0)).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (listener, client, server)
}

/// A descriptor as Rust's listener.
pub fn into_listener(fd: Fd) -> TcpListener {
    // SAFETY: the descriptor is given up by its owner.
    unsafe { TcpListener::from_raw_fd(fd.0.into_raw_fd()) }
}
