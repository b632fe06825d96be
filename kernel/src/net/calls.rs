//! What the system calls ask of a socket, of whatever family.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::inet::ancillary::{Arrival, Wishes};
use super::message::{Rights, Ucred};
use super::unix::address::{self, Given};
use super::{inet, netlink, options, unix};
use crate::errno::{Errno, Result};
use crate::fs::{File, Sink, Source};

/// What is sent along with the bytes.
#[derive(Default)]
pub struct Along {
    /// Files: SCM_RIGHTS.
    pub rights: Option<Rights>,
    /// Another identity than the sender's own: SCM_CREDENTIALS.
    pub credentials: Option<Ucred>,
    /// What is to stand in an Internet packet's header.
    pub wishes: Wishes,
}

/// What one receive got.
#[derive(Default)]
pub struct Incoming {
    /// Bytes; with MSG_TRUNC the whole message's.
    pub count: usize,
    /// `MSG_TRUNC` when a message was longer than the memory for it.
    pub flags: u32,
    /// The sender's `struct sockaddr`; none of a connection.
    pub from: Option<Vec<u8>>,
    /// Files that came along.
    pub files: Vec<Arc<File>>,
    /// Who sent it, where that is asked for.
    pub credentials: Option<Ucred>,
    /// What an Internet packet's header said, as far as that is asked for.
    pub arrival: Option<Arrival>,
}

/// Where an address is in user memory: its place and its length there.
#[derive(Clone, Copy)]
pub struct Place(pub usize, pub usize);

/// The socket calls. Addresses are given by their place in user memory, and returned as the bytes of a `struct sockaddr`.
pub trait Calls: Send + Sync {
    /// bind(2).
    fn bind(&self, to: Place) -> Result<()>;
    /// connect(2).
    fn connect(&self, to: Place, nonblocking: bool) -> Result<()>;
    /// listen(2).
    fn listen(&self, backlog: i32) -> Result<()>;
    /// accept(2): an open file with these flags for the connection, and the peer's address.
    fn accept(&self, nonblocking: bool, flags: u32) -> Result<(Arc<File>, Vec<u8>)>;
    /// getsockname(2).
    fn name(&self) -> Result<Vec<u8>>;
    /// getpeername(2).
    fn peer_name(&self) -> Result<Vec<u8>>;
    /// shutdown(2) of these directions.
    fn shutdown(&self, receive: bool, send: bool) -> Result<()>;
    /// setsockopt(2).
    fn set_option(&self, level: u32, name: u32, address: usize, len: usize) -> Result<()>;
    /// getsockopt(2); the length at `len_address` is written back.
    fn option(&self, level: u32, name: u32, address: usize, len_address: usize) -> Result<()>;
    /// send(2) and its like, to an address if there is one.
    fn send(&self, source: &mut Source, flags: u32, to: Option<Place>, along: Along) -> Result<usize>;
    /// recv(2) and its like.
    fn receive(&self, sink: &mut Sink, flags: u32) -> Result<Incoming>;
}

/// The socket that an open file is. `ENOTSOCK`.
pub fn of_file(file: &File) -> Result<Arc<dyn Calls>> {
    if let Some(socket) = file.ops_arc::<unix::Socket>() {
        return Ok(socket);
    }
    if let Some(socket) = file.ops_arc::<inet::Socket>() {
        return Ok(socket);
    }
    if let Some(socket) = file.ops_arc::<netlink::Socket>() {
        return Ok(socket);
    }
    Err(Errno::ENOTSOCK)
}

impl Calls for unix::Socket {
    fn bind(&self, Place(at, len): Place) -> Result<()> {
        self.bind(address::read(at, len)?)
    }

    fn connect(&self, Place(at, len): Place, nonblocking: bool) -> Result<()> {
        self.connect(address::read(at, len)?, nonblocking)
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        self.listen(backlog)
    }

    fn accept(&self, nonblocking: bool, flags: u32) -> Result<(Arc<File>, Vec<u8>)> {
        let accepted = self.accept(nonblocking)?;
        let peer = accepted.peer_address().unwrap_or(None);
        Ok((accepted.into_file(flags), address::encode(peer.as_ref())))
    }

    fn name(&self) -> Result<Vec<u8>> {
        Ok(address::encode(self.address().as_ref()))
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        Ok(address::encode(self.peer_address()?.as_ref()))
    }

    fn shutdown(&self, receive: bool, send: bool) -> Result<()> {
        self.shutdown(receive, send)
    }

    fn set_option(&self, level: u32, name: u32, address: usize, len: usize) -> Result<()> {
        options::set(self, level, name, address, len)
    }

    fn option(&self, level: u32, name: u32, address: usize, len_address: usize) -> Result<()> {
        options::get(self, level, name, address, len_address)
    }

    fn send(&self, source: &mut Source, flags: u32, to: Option<Place>, along: Along) -> Result<usize> {
        let to = match to {
            None => None,
            Some(Place(at, len)) => match address::read(at, len)? {
                Given::Named(address) => Some(address),
                _ => return Err(Errno::EINVAL),
            },
        };
        self.send(source, flags, to, along)
    }

    fn receive(&self, sink: &mut Sink, flags: u32) -> Result<Incoming> {
        let received = self.receive(sink, flags)?;
        Ok(Incoming {
            count: received.count,
            flags: received.flags,
            from: received.from.as_ref().map(|from| address::encode(Some(from))),
            files: received.files,
            credentials: received.credentials.filter(|_| self.passes_credentials()),
            arrival: None,
        })
    }
}
