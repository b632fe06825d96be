//! Ancillary data of datagrams: what sendmsg(2) may say of one packet's header, and what recvmsg(2) tells of it. ip(7), ipv6(7), RFC 3542.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux_raw_sys::net;

use super::address::{self, Family};
use super::interface;
use super::options::{self, Flags};
use crate::errno::{Errno, Result};
use crate::namespaces::Network;

const IP: u32 = net::IPPROTO_IP as u32;
const IPV6: u32 = net::IPPROTO_IPV6 as u32;
pub(super) const IP_PKTINFO: u32 = 8;
pub(super) const IP_RECVTTL: u32 = 12;
pub(super) const IP_RECVTOS: u32 = 13;
pub(super) const IPV6_RECVPKTINFO: u32 = 49;
pub(super) const IPV6_RECVHOPLIMIT: u32 = 51;
pub(super) const IPV6_RECVTCLASS: u32 = 66;
const IPV6_PKTINFO: u32 = 50;
const IPV6_HOPLIMIT: u32 = 52;

/// What a message asks of its packet's header.
#[derive(Clone, Copy, Default)]
struct Wish {
    hops: Option<u8>,
    class: Option<u8>,
    /// Where the packet is to go out, and what is to stand as its sender: of the socket's network.
    interface: Option<i32>,
    source: Option<IpAddr>,
    /// The first of its entries that cannot be obeyed.
    error: Option<Errno>,
}

/// What a message asks of its packet's header, of either version. Which of both counts is known when it is sent.
#[derive(Clone, Copy, Default)]
pub struct Wishes {
    v4: Wish,
    v6: Wish,
}

/// A number that stands for what is usual if it is -1. `EINVAL` outside of `least` to 255.
fn number(body: &[u8], least: i32) -> Result<Option<u8>> {
    let value = i32::from_ne_bytes(body.try_into().map_err(|_| Errno::EINVAL)?);
    match value {
        -1 if least <= 0 => Ok(None),
        value if value < least => Err(Errno::EINVAL),
        value => u8::try_from(value).map(Some).map_err(|_| Errno::EINVAL),
    }
}

/// The number of an interface; none for 0, which is any.
fn interface_of(number: &[u8]) -> Result<Option<i32>> {
    let number = i32::from_ne_bytes(number.try_into().map_err(|_| Errno::EINVAL)?);
    Ok((number != 0).then_some(number))
}

/// The address to send from, none if it is not said.
fn said(ip: IpAddr) -> Option<IpAddr> {
    (!ip.is_unspecified()).then_some(ip)
}

impl Wish {
    fn add_v4(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        match (kind, body) {
            (net::IP_TTL, _) => self.hops = number(body, 1)?,
            (net::IP_TOS, &[class]) => self.class = Some(class),
            (net::IP_TOS, _) => self.class = Some(number(body, 0)?.ok_or(Errno::EINVAL)?),
            // `struct in_pktinfo`: the interface, the address to send from, and one that only receivers are told.
            (IP_PKTINFO, &[ref interface @ .., a, b, c, d, _, _, _, _]) if interface.len() == 4 => {
                self.interface = interface_of(interface)?;
                self.source = said(Ipv4Addr::new(a, b, c, d).into());
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn add_v6(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        match kind {
            IPV6_HOPLIMIT => self.hops = number(body, -1)?,
            options::IPV6_TCLASS => self.class = number(body, -1)?,
            // `struct in6_pktinfo`: the address, the interface.
            IPV6_PKTINFO => {
                let (ip, interface) = body.split_first_chunk::<16>().ok_or(Errno::EINVAL)?;
                self.interface = interface_of(interface)?;
                self.source = said(Ipv6Addr::from(*ip).into());
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// `ENODEV` unless the interface, `ENETUNREACH` or `EINVAL` unless the address is of this network: as Linux has it for each version.
    fn check(&self, network: &Network) -> Result<()> {
        if let Some(number) = self.interface
            && !interface::all(network).any(|interface| interface.index == number)
        {
            return Err(Errno::ENODEV);
        }
        match self.source {
            Some(IpAddr::V4(ip)) if !address::is_local(network, ip.into()) => Err(Errno::ENETUNREACH),
            Some(ip) if !address::is_local(network, ip) => Err(Errno::EINVAL),
            _ => Ok(()),
        }
    }
}

impl Wishes {
    /// Takes an entry of a message's ancillary data. Those that are not for the Internet are left alone; a wrong one is told of when the
    /// message is sent by a socket that it is for.
    pub fn add(&mut self, level: u32, kind: u32, body: &[u8]) {
        let (wish, version) = match level {
            IP => (&mut self.v4, Family::V4),
            IPV6 => (&mut self.v6, Family::V6),
            _ => return,
        };
        if wish.error.is_none() {
            let added = match version {
                Family::V4 => wish.add_v4(kind, body),
                Family::V6 => wish.add_v6(kind, body),
            };
            wish.error = added.err();
        }
    }

    /// The header of a packet to an address in this network, and where it is to come from, if that is said.
    pub(super) fn header(
        &self,
        network: &Network,
        to: IpAddr,
        flags: &Flags,
    ) -> Result<(Header, Option<IpAddr>)> {
        let (wish, hops, class) = match to {
            IpAddr::V4(_) => (self.v4, (IP, net::IP_TTL), (IP, net::IP_TOS)),
            IpAddr::V6(_) => (self.v6, (IPV6, options::IPV6_UNICAST_HOPS), (IPV6, options::IPV6_TCLASS)),
        };
        if let Some(error) = wish.error {
            return Err(error);
        }
        wish.check(network)?;
        // What is kept is checked when it is set.
        let kept = |(level, name)| flags.value(level, name) as u8;
        let header = Header {
            to,
            hops: wish.hops.unwrap_or_else(|| kept(hops)),
            class: wish.class.unwrap_or_else(|| kept(class)),
            interface: interface::LO.index,
        };
        Ok((header, wish.source))
    }
}

/// What the receiver may ask to be told of a packet's header.
#[derive(Clone, Copy)]
pub struct Header {
    /// Where it was sent to.
    pub to: IpAddr,
    pub hops: u8,
    /// Type of service, or traffic class.
    pub class: u8,
    /// The interface that it arrives by.
    pub interface: i32,
}

/// What a receiver has asked to be told of a packet.
pub struct Arrival {
    header: Header,
    family: Family,
    flags: Flags,
}

impl Arrival {
    pub(super) fn new(header: Header, family: Family, flags: Flags) -> Self {
        Self { header, family, flags }
    }

    /// Gives `put` each entry: its level, its type, what it says.
    pub fn tell(&self, mut put: impl FnMut(u32, u32, &[u8])) {
        let Header { to, hops, class, interface } = self.header;
        let wants = |level, name| self.flags.value(level, name) != 0;
        let hops = i32::from(hops).to_ne_bytes();
        let interface = interface.to_ne_bytes();
        if self.family == Family::V6 && wants(IPV6, IPV6_RECVPKTINFO) {
            let ip = match to {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let mut body = [0; 20];
            body[..16].copy_from_slice(&ip.octets());
            body[16..].copy_from_slice(&interface);
            put(IPV6, IPV6_PKTINFO, &body);
        }
        match to {
            IpAddr::V4(ip) => {
                if wants(IP, IP_PKTINFO) {
                    let mut body = [0; 12];
                    body[..4].copy_from_slice(&interface);
                    body[4..8].copy_from_slice(&ip.octets());
                    body[8..].copy_from_slice(&ip.octets());
                    put(IP, IP_PKTINFO, &body);
                }
                if wants(IP, IP_RECVTTL) {
                    put(IP, net::IP_TTL, &hops);
                }
                if wants(IP, IP_RECVTOS) {
                    put(IP, net::IP_TOS, &[class]);
                }
            }
            IpAddr::V6(_) => {
                if wants(IPV6, IPV6_RECVHOPLIMIT) {
                    put(IPV6, IPV6_HOPLIMIT, &hops);
                }
                if wants(IPV6, IPV6_RECVTCLASS) {
                    put(IPV6, options::IPV6_TCLASS, &i32::from(class).to_ne_bytes());
                }
            }
        }
    }
}
