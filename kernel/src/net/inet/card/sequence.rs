//! Sequence numbers that nobody foretells: RFC 6528.
//!
//! The first number of a connection comes from `smoltcp`'s own generator, whose next outputs follow from some. So on
//! the line all numbers of a connection are shifted by one that is its own, from both addresses and a secret.

use core::net::{SocketAddr, SocketAddrV4};

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, TcpPacket};

use crate::net::flow;

fn shift(local: SocketAddrV4, remote: SocketAddrV4) -> i32 {
    flow::number(SocketAddr::V4(local), SocketAddr::V4(remote)) as i32
}

/// A packet of TCP's goes out: its own numbers are shifted. The checksum is written here.
pub fn shift_out(packet: &mut [u8]) {
    let mut packet = Ipv4Packet::new_unchecked(packet);
    if packet.next_header() != IpProtocol::Tcp {
        return;
    }
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    let shift = shift(SocketAddrV4::new(from, segment.src_port()), SocketAddrV4::new(to, segment.dst_port()));
    let number = segment.seq_number().0.wrapping_add(shift);
    segment.set_seq_number(smoltcp::wire::TcpSeqNumber(number));
    segment.fill_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to));
}

/// A packet comes in whose headers are right: what it says of our numbers is shifted back. The checksum has been
/// looked at, and is right no more.
pub fn shift_back(packet: &mut [u8]) {
    let mut packet = Ipv4Packet::new_unchecked(packet);
    if packet.next_header() != IpProtocol::Tcp {
        return;
    }
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    if segment.ack() {
        let shift =
            shift(SocketAddrV4::new(to, segment.dst_port()), SocketAddrV4::new(from, segment.src_port()));
        let number = segment.ack_number().0.wrapping_sub(shift);
        segment.set_ack_number(smoltcp::wire::TcpSeqNumber(number));
    }
}
