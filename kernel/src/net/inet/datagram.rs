//! UDP.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use linux_raw_sys::net;

use super::address::{self, Given};
use super::ancillary::{Arrival, Header, Wishes};
use super::card;
use super::ports::{self, Protocol};
use super::{Socket, check_errors};
use crate::errno::{Errno, Result};
use crate::fs::{Events, Sink, Source};
use crate::memory::fallible::{self, CopyUnderLock, TryVec};
use crate::namespaces::NetNamespace;
use crate::net::calls::Incoming;
use crate::net::flow;
use crate::net::options::{deadline, wait_error};

/// The longest datagram: what IPv4 has room for behind its own header and UDP's.
const MOST: usize = 65507;
/// What a datagram counts for beyond its bytes, against the receiver's buffer.
const OVERHEAD: usize = 512;

/// A datagram that was received.
pub struct Datagram {
    pub bytes: Vec<u8>,
    from: SocketAddr,
    header: Header,
}

/// Datagrams that were received.
#[derive(Default)]
pub struct Queue {
    list: VecDeque<Datagram>,
    held: usize,
}

impl Queue {
    /// Bytes of memory that they take.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The length of the next one.
    pub fn next_len(&self) -> usize {
        self.list.front().map_or(0, |datagram| datagram.bytes.len())
    }

    fn push(&mut self, datagram: Datagram) {
        self.held += datagram.bytes.len() + OVERHEAD;
        self.list.push_back(datagram);
    }

    fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.list.pop_front()?;
        self.held -= datagram.bytes.len() + OVERHEAD;
        Some(datagram)
    }
}

impl Socket {
    /// connect(2): sets the default destination, and lets nobody else send to this socket.
    pub(super) fn connect_datagram(&self, given: Given) -> Result<()> {
        let to = match given {
            Given::Unspecified => {
                self.state.lock().peer = None;
                self.forget_source();
                return Ok(());
            }
            Given::Endpoint(to) => to,
        };
        self.check_family(to.ip(), Errno::ENETUNREACH)?;
        let to = address::route(&self.network, to)?;
        self.bind_any(self.family.any())?;
        let mut state = self.state.lock();
        if state.local.ip().is_unspecified() {
            state.local.set_ip(address::source_for(&self.network, to.ip()));
        }
        state.peer = Some(to);
        Ok(())
    }

    /// Sends all of `source` as one datagram.
    pub(super) fn send_datagram(
        &self,
        source: &mut Source,
        to: Option<SocketAddr>,
        wishes: &Wishes,
    ) -> Result<usize> {
        let len = source.remaining();
        if len > MOST {
            return Err(Errno::EMSGSIZE);
        }
        let peer = {
            let mut state = self.state.lock();
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if state.send_closed {
                return Err(Errno::EPIPE);
            }
            state.peer
        };
        let to = match to {
            Some(to) => {
                self.check_family(to.ip(), Errno::ENETUNREACH)?;
                address::route(&self.network, to)?
            }
            None => peer.ok_or(Errno::EDESTADDRREQ)?,
        };
        if to.port() == 0 {
            return Err(Errno::EINVAL);
        }
        let flags = *self.flags.lock();
        let (header, source_address) = wishes.header(&self.network, to.ip(), &flags)?;
        self.bind_any(self.family.any())?;
        let mut bytes = Vec::new();
        bytes.try_resize(len, 0).map_err(|_| Errno::ENOBUFS)?;
        if len > 0 {
            source.read_exact(&mut bytes)?;
        }
        let mut from = self.state.lock().local;
        if let Some(ip) = source_address {
            from.set_ip(ip);
        } else if from.ip().is_unspecified() || from.is_ipv4() != to.is_ipv4() {
            from.set_ip(address::source_for(&self.network, to.ip()));
        }
        if let Some(outside) = address::outside(&self.network, to) {
            return match from {
                SocketAddr::V4(from) if !from.ip().is_loopback() => {
                    card::send(self.uid, from, outside, bytes, &header).map(|()| len)
                }
                _ => Err(Errno::EINVAL),
            };
        }
        match choose(&self.network, to, from)? {
            Some(receiver) => receiver.deliver_datagram(Datagram { bytes, from, header }),
            // The answer is that nobody has that port; only a connected socket hears it.
            None => {
                let mut state = self.state.lock();
                if state.peer == Some(to) {
                    state.error = Some(Errno::ECONNREFUSED);
                    drop(state);
                    self.wake();
                }
            }
        }
        Ok(len)
    }

    /// Puts a datagram into the queue. What there is no room for is lost.
    fn deliver_datagram(&self, datagram: Datagram) {
        let room = self.options.lock().receive_buffer;
        let mut lost = Some(datagram);
        let taken = {
            let state = self.state.lock();
            let mut queue = self.datagrams.lock();
            if !state.released
                && queue.held() < room
                && fallible::reserve_queue(&mut queue.list, 1).is_ok()
                && let Some(datagram) = lost.take()
            {
                queue.push(datagram);
            }
            lost.is_none()
        };
        drop(lost);
        if taken {
            // One thread takes it, however many wait.
            self.readable.wake_one();
        }
    }

    /// A copy of the first datagram.
    fn peek_datagram(&self) -> Result<Option<Datagram>> {
        let mut copy = CopyUnderLock::new();
        loop {
            let (from, header) = {
                let datagrams = self.datagrams.lock();
                let Some(front) = datagrams.list.front() else { return Ok(None) };
                copy.copy(&front.bytes);
                (front.from, front.header)
            };
            if copy.is_done()? {
                return Ok(Some(Datagram { bytes: copy.into_vec(), from, header }));
            }
        }
    }

    fn look_datagram(&self) -> Option<Result<()>> {
        if !self.datagrams.lock().list.is_empty() {
            return Some(Ok(()));
        }
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Some(Err(error));
        }
        state.receive_closed.then_some(Ok(()))
    }

    /// Receives one datagram.
    pub(super) fn receive_datagram(&self, sink: &mut Sink, flags: u32) -> Result<Incoming> {
        if flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        check_errors(flags)?;
        let timeout = self.options.lock().receive_timeout;
        let deadline = deadline(timeout);
        loop {
            match self.look_datagram() {
                Some(result) => result?,
                None if flags & net::MSG_DONTWAIT != 0 => return Err(Errno::EAGAIN),
                None => self
                    .readable
                    .wait_event(deadline, || self.look_datagram())
                    .map_err(|error| wait_error(error, timeout))??,
            }
            let datagram = if flags & net::MSG_PEEK != 0 {
                let datagram = self.peek_datagram();
                // It is still there for the next one who waits.
                self.readable.wake_one();
                datagram?
            } else {
                self.datagrams.lock().pop()
            };
            let Some(datagram) = datagram else {
                if self.state.lock().receive_closed {
                    return Ok(Incoming::default());
                }
                // Another thread was faster.
                continue;
            };
            let len = datagram.bytes.len();
            let copied = if sink.remaining() > 0 && len > 0 { sink.write(&datagram.bytes)? } else { 0 };
            let cut = if copied < len { net::MSG_TRUNC } else { 0 };
            return Ok(Incoming {
                count: if flags & net::MSG_TRUNC != 0 { len } else { copied },
                flags: cut,
                from: Some(address::encode(datagram.from, self.family)),
                arrival: Some(Arrival::new(datagram.header, self.family, *self.flags.lock())),
                ..Incoming::default()
            });
        }
    }

    pub(super) fn poll_datagram(&self) -> Events {
        let mut events = Events::WRITABLE;
        let state = self.state.lock();
        if state.error.is_some() {
            events |= Events::ERR;
        }
        if state.receive_closed {
            events |= Events::READABLE | Events::RDHUP;
            if state.send_closed {
                events |= Events::HUP;
            }
        }
        drop(state);
        if !self.datagrams.lock().list.is_empty() {
            events |= Events::READABLE;
        }
        events
    }

    /// shutdown(2) of a datagram socket: only of a connected one.
    pub(super) fn shutdown_datagram(&self, receive: bool, send: bool) -> Result<()> {
        {
            let mut state = self.state.lock();
            if state.peer.is_none() {
                return Err(Errno::ENOTCONN);
            }
            state.receive_closed |= receive;
            state.send_closed |= send;
        }
        self.wake();
        Ok(())
    }

    /// Would a datagram from `from` to `to` be for this socket? The closer its own addresses are to these, the higher.
    fn suits(&self, to: IpAddr, from: SocketAddr) -> Option<u32> {
        let state = self.state.lock();
        let by_peer = match state.peer {
            Some(peer) if peer == from => 2,
            Some(_) => return None,
            None => 0,
        };
        if !state.local.ip().is_unspecified() && state.local.ip() != to {
            return None;
        }
        Some(by_peer + u32::from(!state.local.ip().is_unspecified()))
    }
}

/// A datagram has come from another machine. What is for nobody is thrown away.
pub fn receive(from: SocketAddr, to: SocketAddr, bytes: Vec<u8>, header: Header) {
    if let Ok(Some(receiver)) = choose(NetNamespace::initial(), to, from) {
        receiver.deliver_datagram(Datagram { bytes, from, header });
    }
}

/// The socket that a datagram is for. Of those that suit it equally and share the port each has its flows; else it is the one that came last.
fn choose(of: &NetNamespace, to: SocketAddr, from: SocketAddr) -> Result<Option<Arc<Socket>>> {
    let receivers = ports::receivers(of, Protocol::Udp, to)?;
    let best = receivers.iter().filter_map(|socket| socket.suits(to.ip(), from)).max();
    let Some(best) = best else { return Ok(None) };
    let suits = |socket: &&Arc<Socket>| socket.suits(to.ip(), from) == Some(best);
    let count = receivers.iter().filter(suits).count();
    let shared = receivers.iter().filter(suits).all(|socket| socket.options.lock().reuse_port);
    let choice = if shared {
        (flow::number(from, to) % count.max(1) as u64) as usize
    } else {
        count.saturating_sub(1)
    };
    Ok(receivers.iter().filter(suits).nth(choice).cloned())
}
