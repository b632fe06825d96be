//! What a frame brings, as far as it is for this machine and can be true.

use core::net::Ipv4Addr;

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket,
};

use super::Setup;

/// What is in a frame. Packets have sane headers with right checksums, and are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// ARP, without Ethernet's header.
    Arp(&'a [u8]),
    /// A packet with a datagram of UDP.
    Datagram(&'a [u8]),
    /// A packet with a segment of TCP, whose checksum is right.
    Segment(&'a [u8]),
    /// Another packet.
    Other,
}

/// Looks at a frame; none for what is thrown away.
pub fn sort<'a>(frame: &'a [u8], setup: &Setup) -> Option<Inbound<'a>> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let to_one = frame.dst_addr() == EthernetAddress(setup.hardware);
    if !to_one && !frame.dst_addr().is_broadcast() {
        return None;
    }
    match frame.ethertype() {
        EthernetProtocol::Arp => return Some(Inbound::Arp(frame.payload())),
        EthernetProtocol::Ipv4 => {}
        _ => return None,
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let whole = !packet.more_frags() && packet.frag_offset() == 0;
    if packet.version() != 4 || !packet.verify_checksum() || !whole {
        return None;
    }
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let to_all = to.is_broadcast() || to == setup.broadcast();
    if is_pretended(from, setup) || to != setup.ip && !to_all {
        return None;
    }
    let protocol = packet.next_header();
    if protocol == IpProtocol::Udp {
        return Some(Inbound::Datagram(frame.payload()));
    }
    // Only datagrams are for all.
    if to_all || !to_one {
        return None;
    }
    if protocol != IpProtocol::Tcp {
        return Some(Inbound::Other);
    }
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    let right = segment.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to));
    right.then_some(Inbound::Segment(frame.payload()))
}

/// Whether no other machine can have sent from this address.
fn is_pretended(from: Ipv4Addr, setup: &Setup) -> bool {
    from.is_loopback()
        || from.octets()[0] == 0
        || from.is_multicast()
        || from.is_broadcast()
        || from == setup.broadcast()
        || from == setup.ip
}
