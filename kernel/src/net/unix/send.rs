//! Sending.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::net;

use super::address::{self, Address};
use super::{Kind, Role, Socket};
use crate::errno::{Errno, Result};
use crate::fs::Source;
use crate::memory::fallible::{self, TryVec};
use crate::net::calls::Along;
use crate::net::message::{Message, Ucred};
use crate::net::options::{deadline, wait_error};
use crate::process::{self, Charge};
use crate::signal;

/// The most bytes of a stream that are put into one message.
const PIECE: usize = 32 * 1024;

impl Socket {
    /// Sends what `source` has. `to` is the destination of a datagram; `flags` are `MSG_*`.
    pub fn send(&self, source: &mut Source, flags: u32, to: Option<Address>, along: Along) -> Result<usize> {
        if flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.bind_if_passing()?;
        let result = match self.kind {
            Kind::Stream => self.send_stream(source, flags, to.as_ref(), along),
            Kind::SeqPacket => self.send_packet(source, flags, along),
            Kind::Datagram => self.send_datagram(source, flags, to, along),
        };
        if result == Err(Errno::EPIPE) && self.kind == Kind::Stream && flags & net::MSG_NOSIGNAL == 0 {
            signal::send_thread(&process::current().to_arc(), signal::SIGPIPE);
        }
        result
    }

    /// The peer of a connection, if something can be sent to it.
    fn open_peer(&self) -> Result<Arc<Socket>> {
        let peer = {
            let mut state = self.state.lock();
            // To a stream the end comes before an error, which stays for who receives.
            if state.send_closed && self.kind == Kind::Stream {
                return Err(Errno::EPIPE);
            }
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if state.send_closed {
                return Err(Errno::EPIPE);
            }
            match &state.role {
                Role::Connected(peer) => peer.upgrade(),
                Role::Orphaned => None,
                _ => return Err(Errno::ENOTCONN),
            }
        };
        let peer = peer.ok_or(Errno::EPIPE)?;
        let closed = {
            let state = peer.state.lock();
            state.receive_closed || state.released
        };
        if closed { Err(Errno::EPIPE) } else { Ok(peer) }
    }

    fn has_buffer(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) < self.options.lock().send_buffer
    }

    /// Waits until there is room for a message in this socket's buffer.
    fn wait_for_buffer(&self, flags: u32) -> Result<()> {
        if self.has_buffer() {
            return Ok(());
        }
        if flags & net::MSG_DONTWAIT != 0 {
            return Err(Errno::EAGAIN);
        }
        let timeout = self.options.lock().send_timeout;
        self.writable
            .wait_event(deadline(timeout), || {
                let closed = self.state.lock().send_closed;
                (self.has_buffer() || closed).then_some(())
            })
            .map_err(|e| wait_error(e, timeout))
    }

    /// Puts a message into the queue of `to`.
    fn deliver(&self, to: &Socket, message: Message) -> Result<()> {
        let mut message = Some(message);
        let result = {
            let state = to.state.lock();
            let mut queue = to.queue.lock();
            if state.receive_closed || state.released {
                Err(Errno::EPIPE)
            } else {
                fallible::reserve_queue(&mut *queue, 1)
                    .map(|()| {
                        if let Some(message) = message.take() {
                            to.queued.fetch_add(message.charge(), Ordering::SeqCst);
                            queue.push_back(message);
                        }
                    })
                    .map_err(|_| Errno::ENOBUFS)
            }
        };
        // What was not taken is dropped without locks.
        drop(message);
        match self.kind {
            // Who reads a part leaves the rest to others.
            Kind::Stream => to.readable.wake_all(),
            // One thread takes it, however many wait.
            _ if result.is_ok() => to.readable.wake_one(),
            // The place that the sender has waited for is another's.
            _ => to.room.wake_one(),
        }
        result
    }

    fn send_stream(
        &self,
        source: &mut Source,
        flags: u32,
        to: Option<&Address>,
        mut along: Along,
    ) -> Result<usize> {
        if to.is_some() {
            let connected = matches!(self.state.lock().role, Role::Connected(_));
            return Err(if connected { Errno::EISCONN } else { Errno::EOPNOTSUPP });
        }
        let credentials = along.credentials.unwrap_or_else(Ucred::current_real);
        self.open_peer()?;
        let mut done = 0;
        while source.remaining() > 0 {
            let step = self.send_piece(source, flags, credentials, &mut along);
            match step {
                Ok(count) => done += count,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            // While the peer takes it all there is always room.
            if source.remaining() > 0 && process::is_killed() {
                break;
            }
        }
        Ok(done)
    }

    fn send_piece(
        &self,
        source: &mut Source,
        flags: u32,
        credentials: Ucred,
        along: &mut Along,
    ) -> Result<usize> {
        self.wait_for_buffer(flags)?;
        let peer = self.open_peer()?;
        // Half of the buffer at most: the receiver can read while the rest is sent.
        let most = (self.options.lock().send_buffer / 2).clamp(1, PIECE);
        let mut bytes = Vec::new();
        let len = source.remaining().min(most);
        bytes.try_resize(len, 0).map_err(|_| Errno::ENOBUFS)?;
        let count = source.read(&mut bytes)?;
        bytes.truncate(count);
        let rights = along.rights.take();
        let message = Message::new(&self.to_arc(), bytes, credentials, rights, None);
        self.deliver(&peer, message)?;
        Ok(count)
    }

    /// `EMSGSIZE` when what is left of `source` is too long for one message.
    fn check_length(&self, source: &Source) -> Result<()> {
        let most = self.options.lock().send_buffer.saturating_sub(32);
        if source.remaining() > most { Err(Errno::EMSGSIZE) } else { Ok(()) }
    }

    /// All of `source` as one message's bytes. Who calls has room for them in its own buffer: any number of threads may wait for that, with
    /// nothing in their hands. They are the process's until they are delivered, however long that or the copy takes.
    fn whole(source: &mut Source) -> Result<(Vec<u8>, Charge)> {
        let len = source.remaining();
        let charge = process::current().process.charges.add(len);
        let mut bytes = Vec::new();
        bytes.try_resize(len, 0).map_err(|_| Errno::ENOBUFS)?;
        if len > 0 {
            source.read_exact(&mut bytes)?;
        }
        Ok((bytes, charge))
    }

    fn send_packet(&self, source: &mut Source, flags: u32, along: Along) -> Result<usize> {
        self.open_peer()?;
        self.check_length(source)?;
        self.wait_for_buffer(flags)?;
        let (bytes, _charge) = Self::whole(source)?;
        let peer = self.open_peer()?;
        let credentials = along.credentials.unwrap_or_else(Ucred::current_real);
        let count = bytes.len();
        let message = Message::new(&self.to_arc(), bytes, credentials, along.rights, None);
        self.deliver(&peer, message)?;
        Ok(count)
    }

    fn send_datagram(
        &self,
        source: &mut Source,
        flags: u32,
        to: Option<Address>,
        along: Along,
    ) -> Result<usize> {
        if self.state.lock().send_closed {
            return Err(Errno::EPIPE);
        }
        self.check_length(source)?;
        let peer = match &to {
            Some(address) => address::find(address, self.kind, &self.network)?,
            None => self.default_destination()?,
        };
        if !peer.accepts_from(self) {
            return Err(Errno::EPERM);
        }
        self.wait_for_buffer(flags)?;
        // Before the peer's room: that wakes one sender for each message that is read, and who is woken must not wait for a page.
        let (bytes, _charge) = Self::whole(source)?;
        self.wait_for_room(&peer, flags)?;
        let credentials = along.credentials.unwrap_or_else(Ucred::current_real);
        let count = bytes.len();
        let message = Message::new(&self.to_arc(), bytes, credentials, along.rights, self.address());
        self.deliver(&peer, message)
            .map_err(|error| if peer.state.lock().released { Errno::ECONNREFUSED } else { error })?;
        Ok(count)
    }

    fn default_destination(&self) -> Result<Arc<Socket>> {
        let mut state = self.state.lock();
        let peer = match &state.role {
            Role::Connected(peer) => peer.upgrade(),
            _ => return Err(Errno::ENOTCONN),
        };
        match peer {
            Some(peer) => Ok(peer),
            None => {
                // A destination that is gone is forgotten.
                state.role = Role::Fresh;
                Err(Errno::ECONNREFUSED)
            }
        }
    }

    /// Waits while too many datagrams are in the peer's queue. One that a socket sends to itself, or back to its own peer, is let through.
    fn wait_for_room(&self, peer: &Arc<Socket>, flags: u32) -> Result<()> {
        if core::ptr::eq(&**peer, self) || !peer.is_full() {
            return Ok(());
        }
        if flags & net::MSG_DONTWAIT != 0 {
            return Err(Errno::EAGAIN);
        }
        let timeout = self.options.lock().send_timeout;
        peer.room
            .wait_event(deadline(timeout), || {
                let closed = {
                    let state = peer.state.lock();
                    state.released || state.receive_closed
                };
                (closed || !peer.is_full()).then_some(())
            })
            .map_err(|e| wait_error(e, timeout))
    }
}
