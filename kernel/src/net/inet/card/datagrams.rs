//! UDP over the card: one socket of `smoltcp`'s sees all packets, and ours are found as for each other datagram.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr, SocketAddrV4};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::raw::{self, PacketBuffer, PacketMetadata};
use smoltcp::wire::{IpAddress, IpProtocol, IpVersion, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr};

use super::streams::is_pretended;
use super::worker::{self, BUDGET};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::net::inet::ancillary::Header;
use crate::net::inet::{datagram, interface};
use crate::sync::SpinLock;

/// The longest datagram that is sent: what a frame has room for. Longer ones are not cut.
const MOST: usize = 1472;
/// Bytes that wait to be sent, and packets of each direction in the socket.
const WAITING: usize = 256 * 1024;
const PACKETS: usize = 64;
const BYTES: usize = 64 * 1024;
const HEADERS: usize = 28;

struct Datagram {
    from: SocketAddrV4,
    to: SocketAddrV4,
    bytes: Vec<u8>,
    hops: u8,
    class: u8,
}

struct Queue {
    list: VecDeque<Datagram>,
    held: usize,
}

static QUEUE: SpinLock<Queue> = SpinLock::new(Queue { list: VecDeque::new(), held: 0 });

/// Sends a datagram to another machine. `EMSGSIZE`; `ENOBUFS` when those before it have not gone out.
pub fn send(from: SocketAddrV4, to: SocketAddrV4, bytes: Vec<u8>, header: &Header) -> Result<()> {
    if bytes.len() > MOST {
        return Err(Errno::EMSGSIZE);
    }
    let cost = bytes.len() + size_of::<Datagram>();
    {
        let mut queue = QUEUE.lock();
        if queue.held + cost > WAITING {
            return Err(Errno::ENOBUFS);
        }
        fallible::reserve_queue(&mut queue.list, 1).map_err(|_| Errno::ENOBUFS)?;
        queue.held += cost;
        queue.list.push_back(Datagram { from, to, bytes, hops: header.hops, class: header.class });
    }
    worker::wake();
    Ok(())
}

/// The thread's part.
pub struct Datagrams(SocketHandle);

impl Datagrams {
    pub fn new(sockets: &mut SocketSet<'static>) -> Result<Self> {
        let buffer = || -> Result<PacketBuffer<'static>> {
            Ok(PacketBuffer::new(
                fallible::filled(PacketMetadata::EMPTY, PACKETS)?,
                fallible::filled(0, BYTES)?,
            ))
        };
        let socket = raw::Socket::new(Some(IpVersion::Ipv4), Some(IpProtocol::Udp), buffer()?, buffer()?);
        Ok(Self(sockets.add(socket)))
    }

    /// Delivers what has come, and hands over what is to go.
    pub fn serve(&self, sockets: &mut SocketSet<'static>) {
        let socket = sockets.get_mut::<raw::Socket>(self.0);
        for _ in 0..BUDGET {
            let Ok(packet) = socket.recv() else { break };
            // What is no datagram is nobody's.
            let _ = deliver(packet);
        }
        for _ in 0..BUDGET {
            if !socket.can_send() || socket.send_queue() + HEADERS + MOST > BYTES / 2 {
                break;
            }
            let next = {
                let mut queue = QUEUE.lock();
                let next = queue.list.pop_front();
                queue.held -= next.as_ref().map_or(0, |next| next.bytes.len() + size_of::<Datagram>());
                next
            };
            let Some(next) = next else { break };
            if let Ok(room) = socket.send(HEADERS + next.bytes.len()) {
                write(&next, room);
            }
        }
    }
}

fn deliver(packet: &[u8]) -> Option<()> {
    let checksums = ChecksumCapabilities::default();
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    let udp = UdpPacket::new_checked(packet.payload()).ok()?;
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let (hops, class) = (packet.hop_limit(), packet.dscp() << 2 | packet.ecn());
    let header = UdpRepr::parse(&udp, &IpAddress::Ipv4(from), &IpAddress::Ipv4(to), &checksums).ok()?;
    if is_pretended(from, to) {
        return None;
    }
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
