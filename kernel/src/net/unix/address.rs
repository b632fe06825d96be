//! Addresses of the Unix domain: paths, abstract names, none.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;

use linux_raw_sys::general as abi;
use linux_raw_sys::net;

use super::{Kind, Socket};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::inode::NewNode;
use crate::fs::stat::FileType;
use crate::fs::{access, caller, open, path};
use crate::mm::uaccess::{copy_from_user, read_user};
use crate::namespaces::NetNamespace;

/// Bytes of `sun_family`.
const FAMILY: usize = 2;
/// The longest `struct sockaddr_un`.
const MAX: usize = FAMILY + 108;

/// The address of a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// A node in the file system, by the path that was given.
    Path(Box<[u8]>),
    /// A name outside of the file system; may hold any bytes.
    Abstract(Box<[u8]>),
}

/// What a program gave as an address.
pub enum Given {
    /// The family alone: bind(2) chooses a name, connect(2) of a datagram socket refuses.
    Unnamed,
    /// `AF_UNSPEC`: connect(2) of a datagram socket disconnects.
    Unspecified,
    /// An address.
    Named(Address),
}

/// Reads a `struct sockaddr_un`. `EINVAL` for what is none; `EAFNOSUPPORT` is the caller's matter.
pub fn read(address: usize, len: usize) -> Result<Given> {
    if !(FAMILY..=128).contains(&len) {
        return Err(Errno::EINVAL);
    }
    let family: u16 = read_user(address)?;
    if u32::from(family) == net::AF_UNSPEC {
        return Ok(Given::Unspecified);
    }
    if u32::from(family) != net::AF_UNIX || len > MAX {
        return Err(Errno::EINVAL);
    }
    if len == FAMILY {
        return Ok(Given::Unnamed);
    }
    let mut bytes = [0; MAX];
    copy_from_user(&mut bytes[..len], address)?;
    let name = &bytes[FAMILY..len];
    Ok(Given::Named(match name.split_first() {
        Some((0, rest)) => Address::Abstract(rest.into()),
        _ => {
            let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
            Address::Path(name[..end].into())
        }
    }))
}

/// An address as `struct sockaddr_un`.
pub fn encode(address: Option<&Address>) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAX);
    out.extend_from_slice(&(net::AF_UNIX as u16).to_ne_bytes());
    match address {
        None => {}
        Some(Address::Path(path)) => {
            out.extend_from_slice(path);
            out.push(0);
        }
        Some(Address::Abstract(name)) => {
            out.push(0);
            out.extend_from_slice(name);
        }
    }
    out
}

/// The abstract names of a namespace, each for one type of sockets.
pub type Names = BTreeMap<(u32, Box<[u8]>), Weak<Socket>>;

/// What the inode of a path keeps.
struct Node(Weak<Socket>);

/// Gives `socket` the address, and that place in the file system: as long as somebody has it, it leads to the socket. `EADDRINUSE`.
pub fn bind(socket: &Arc<Socket>, address: &Address) -> Result<Option<Arc<Dentry>>> {
    match address {
        Address::Abstract(name) => {
            let mut names = socket.network.names.lock();
            let key = (socket.kind.number(), name.clone());
            if names.get(&key).is_some_and(|s| s.strong_count() > 0) {
                return Err(Errno::EADDRINUSE);
            }
            names.insert(key, Arc::downgrade(socket));
            Ok(None)
        }
        Address::Path(path) => {
            let start = caller::start(abi::AT_FDCWD, path)?;
            let mode = 0o777 & !caller::context().umask();
            let place = open::create(&start, path, NewNode::Socket, mode).map_err(|e| match e {
                Errno::EEXIST => Errno::EADDRINUSE,
                other => other,
            })?;
            let node: Arc<dyn Any + Send + Sync> = Arc::new(Node(Arc::downgrade(socket)));
            *place.inode().attachment.lock() = Some(node);
            Ok(Some(place.dentry))
        }
    }
}

/// A free abstract name of five hexadecimal digits, taken.
pub fn bind_any(socket: &Arc<Socket>) -> Result<Address> {
    // There are a million of them; when the first thousand tries find none, there is hardly any.
    for _ in 0..1000 {
        let name = alloc::format!("{:05x}", crate::random::number() & 0xf_ffff);
        let address = Address::Abstract(name.into_bytes().into());
        match bind(socket, &address) {
            Err(Errno::EADDRINUSE) => {}
            other => return other.map(|_| address),
        }
    }
    Err(Errno::ENOSPC)
}

/// The socket is gone: an abstract name is free again. A path stays, and leads nowhere.
pub fn release(socket: &Socket, address: &Address) {
    if let Address::Abstract(name) = address {
        let key = (socket.kind.number(), name.clone());
        let mut names = socket.network.names.lock();
        if names.get(&key).is_some_and(|s| core::ptr::eq(s.as_ptr(), socket)) {
            names.remove(&key);
        }
    }
}

/// The socket with that address, for one of type `kind` in that namespace. `ECONNREFUSED` when nobody has it.
pub fn find(address: &Address, kind: Kind, of: &NetNamespace) -> Result<Arc<Socket>> {
    match address {
        Address::Abstract(name) => {
            let key = (kind.number(), name.clone());
            of.names.lock().get(&key).and_then(Weak::upgrade).ok_or(Errno::ECONNREFUSED)
        }
        Address::Path(name) => {
            let start = caller::start(abi::AT_FDCWD, name)?;
            let place = path::resolve(&start, name, true)?;
            start.credentials.check(place.inode(), access::WRITE)?;
            if place.inode().kind != FileType::Socket {
                return Err(Errno::ECONNREFUSED);
            }
            let node = place.inode().attachment.lock().clone();
            let node = node.and_then(|n| n.downcast::<Node>().ok()).ok_or(Errno::ECONNREFUSED)?;
            let socket = node.0.upgrade().ok_or(Errno::ECONNREFUSED)?;
            if socket.kind != kind {
                return Err(Errno::EPROTOTYPE);
            }
            Ok(socket)
        }
    }
}
