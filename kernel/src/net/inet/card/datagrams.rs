//! UDP over the card: packets are taken apart and put together here; sockets are found as for each other datagram.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr};

use super::device::Card;
use super::worker::{self, BUDGET};
use crate::errno::{Errno, Result};
use crate::memory::{fallible, reserve};
use crate::net::inet::ancillary::Header;
use crate::net::inet::{datagram, interface};
use crate::sync::SpinLock;

/// The longest datagram that is sent: what a frame has room for. Longer ones are not cut.
const MOST: usize = 1472;
/// Bytes that wait to be sent.
const WAITING: usize = 256 * 1024;
const HEADERS: usize = 28;

struct Datagram {
    /// Whose it is.
    uid: u32,
    from: SocketAddrV4,
    to: SocketAddrV4,
    bytes: Vec<u8>,
    hops: u8,
    class: u8,
}

impl Datagram {
    fn cost(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }
}

struct Queue {
    list: VecDeque<Datagram>,
    held: usize,
    /// The parts of the users who have any.
    users: BTreeMap<u32, usize>,
}

impl Queue {
    /// Adds one, as long as its user has no more than is left for others.
    fn push(&mut self, datagram: Datagram) -> Result<()> {
        let cost = datagram.cost();
        let own = self.users.get(&datagram.uid).copied().unwrap_or(0);
        if own + cost > WAITING.saturating_sub(self.held) {
            return Err(Errno::ENOBUFS);
        }
        fallible::reserve_queue(&mut self.list, 1).map_err(|_| Errno::ENOBUFS)?;
        self.users.insert(datagram.uid, own + cost);
        self.held += cost;
        self.list.push_back(datagram);
        Ok(())
    }

    fn pop(&mut self) -> Option<Datagram> {
        let next = self.list.pop_front()?;
        let cost = next.cost();
        self.held -= cost;
        if let Some(own) = self.users.get_mut(&next.uid) {
            *own -= cost;
            if *own == 0 {
                self.users.remove(&next.uid);
            }
        }
        Some(next)
    }
}

static QUEUE: SpinLock<Queue> =
    SpinLock::growing(Queue { list: VecDeque::new(), held: 0, users: BTreeMap::new() });

/// Sends a user's datagram to another machine. `EMSGSIZE`; `ENOBUFS` when those before it have not gone out.
pub fn send(uid: u32, from: SocketAddrV4, to: SocketAddrV4, bytes: Vec<u8>, header: &Header) -> Result<()> {
    /// A user's place, with its part of a node.
    const ENTRY: usize = 256;
    if bytes.len() > MOST {
        return Err(Errno::EMSGSIZE);
    }
    reserve::ask(ENTRY).map_err(|_| Errno::ENOBUFS)?;
    let datagram = Datagram { uid, from, to, bytes, hops: header.hops, class: header.class };
    // The lock goes at the end of the statement.
    let result = QUEUE.lock().push(datagram);
    worker::wake();
    result
}

/// Sends what is to go, as far as there are buffers, and leaves most of these to TCP.
pub fn transmit(card: &mut Card) {
    for _ in 0..BUDGET / 4 {
        if !card.can_send() {
            return;
        }
        // The lock goes at the end of the statement.
        let next = QUEUE.lock().pop();
        let Some(next) = next else { return };
        card.send(HEADERS + next.bytes.len(), |room| write(&next, room));
    }
    worker::wake();
}

/// Delivers the datagram of a packet that is for this machine. What is none is nobody's.
pub fn receive(packet: &[u8]) -> Option<()> {
    let checksums = ChecksumCapabilities::default();
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    let udp = UdpPacket::new_checked(packet.payload()).ok()?;
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let (hops, class) = (packet.hop_limit(), packet.dscp() << 2 | packet.ecn());
    let header = UdpRepr::parse(&udp, &IpAddress::Ipv4(from), &IpAddress::Ipv4(to), &checksums).ok()?;
    let from = SocketAddrV4::new(from, header.src_port);
    let to = SocketAddrV4::new(to, header.dst_port);
    let bytes = fallible::copy_of(udp.payload()).ok()?;
    let header = Header { to: IpAddr::V4(*to.ip()), hops, class, interface: interface::CARD };
    datagram::receive(SocketAddr::V4(from), SocketAddr::V4(to), bytes, header);
    Some(())
}

/// Writes the packet; `room` is as long as it.
fn write(datagram: &Datagram, room: &mut [u8]) {
    let checksums = ChecksumCapabilities::default();
    let (from, to) = (*datagram.from.ip(), *datagram.to.ip());
    let udp = UdpRepr { src_port: datagram.from.port(), dst_port: datagram.to.port() };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + datagram.bytes.len(),
        hop_limit: datagram.hops,
    };
    let mut packet = Ipv4Packet::new_unchecked(room);
    ip.emit(&mut packet, &checksums);
    packet.set_dscp(datagram.class >> 2);
    packet.set_ecn(datagram.class & 3);
    packet.fill_checksum();
    let mut inner = UdpPacket::new_unchecked(packet.payload_mut());
    udp.emit(
        &mut inner,
        &IpAddress::Ipv4(from),
        &IpAddress::Ipv4(to),
        datagram.bytes.len(),
        |room| room.copy_from_slice(&datagram.bytes),
        &checksums,
    );
}
