//! The socket calls of Internet sockets.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::address::{self, Given};
use super::ports::Protocol;
use super::{Role, Socket};
use crate::errno::{Errno, Result};
use crate::fs::{File, Sink, Source};
use crate::net::calls::{Along, Calls, Incoming, Place};

impl Socket {
    fn read_address(&self, Place(at, len): Place) -> Result<Given> {
        address::read(at, len, self.family)
    }
}

impl Calls for Socket {
    fn bind(&self, to: Place) -> Result<()> {
        self.bind(self.read_address(to)?)
    }

    fn connect(&self, to: Place, nonblocking: bool) -> Result<()> {
        let to = self.read_address(to)?;
        match self.protocol {
            Protocol::Tcp => self.connect_stream(to, nonblocking),
            Protocol::Udp => self.connect_datagram(to),
        }
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        self.listen(backlog)
    }

    fn accept(&self, nonblocking: bool, flags: u32) -> Result<(Arc<File>, Vec<u8>)> {
        let accepted = self.accept(nonblocking)?;
        let peer = accepted.state.lock().peer;
        let peer = peer.map_or_else(Vec::new, |peer| address::encode(peer, self.family));
        Ok((accepted.into_file(flags), peer))
    }

    fn name(&self) -> Result<Vec<u8>> {
        Ok(address::encode(self.state.lock().local, self.family))
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        let state = self.state.lock();
        let connected = match self.protocol {
            Protocol::Tcp => matches!(state.role, Role::Connected(_)),
            Protocol::Udp => true,
        };
        let peer = state.peer.filter(|_| connected).ok_or(Errno::ENOTCONN)?;
        Ok(address::encode(peer, self.family))
    }

    fn shutdown(&self, receive: bool, send: bool) -> Result<()> {
        match self.protocol {
            Protocol::Tcp => self.shutdown_stream(receive, send),
            Protocol::Udp => self.shutdown_datagram(receive, send),
        }
    }

    fn set_option(&self, level: u32, name: u32, address: usize, len: usize) -> Result<()> {
        self.set(level, name, address, len)
    }

    fn option(&self, level: u32, name: u32, address: usize, len_address: usize) -> Result<()> {
        self.get(level, name, address, len_address)
    }

    fn send(&self, source: &mut Source, flags: u32, to: Option<Place>, along: Along) -> Result<usize> {
        // Files and identities are for the Unix domain; here they are not looked at.
        if flags & linux_raw_sys::net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match self.protocol {
            // A stream goes where it is connected to, whatever address comes with it.
            Protocol::Tcp => self.send_stream(source, flags),
            Protocol::Udp => {
                let to = match to.map(|to| self.read_address(to)).transpose()? {
                    Some(Given::Endpoint(to)) => Some(to),
                    Some(Given::Unspecified) => return Err(Errno::EINVAL),
                    None => None,
                };
                self.send_datagram(source, to, &along.wishes)
            }
        }
    }

    fn receive(&self, sink: &mut Sink, flags: u32) -> Result<Incoming> {
        match self.protocol {
            Protocol::Tcp => self.receive_stream(sink, flags),
            Protocol::Udp => self.receive_datagram(sink, flags),
        }
    }
}
