//! Internet addresses: `struct sockaddr_in` and `struct sockaddr_in6`.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use linux_raw_sys::net;

use super::card;
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{copy_from_user, read_user};
use crate::namespaces::NetNamespace;

/// Bytes of a `struct sockaddr_in`.
const V4_LEN: usize = 16;
/// Bytes of a `struct sockaddr_in6`; its scope may be left out.
const V6_LEN: usize = 28;
const V6_LEAST: usize = 24;

/// A socket's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`: IPv4 too, unless `IPV6_V6ONLY` is set.
    V6,
}

impl Family {
    /// As socket(2) has it.
    pub fn number(self) -> u32 {
        match self {
            Self::V4 => net::AF_INET,
            Self::V6 => net::AF_INET6,
        }
    }

    /// The address that stands for all of the machine's.
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// What a program gave as an address.
pub enum Given {
    /// `AF_UNSPEC`.
    Unspecified,
    /// An address. One of IPv4 in the form of IPv6 is one of IPv4.
    Endpoint(SocketAddr),
}

/// Reads an address for a socket of `family`. `EINVAL`, `EAFNOSUPPORT`.
pub fn read(at: usize, len: usize, family: Family) -> Result<Given> {
    if !(2..=128).contains(&len) {
        return Err(Errno::EINVAL);
    }
    let number: u16 = read_user(at)?;
    let number = u32::from(number);
    if number == net::AF_UNSPEC {
        return Ok(Given::Unspecified);
    }
    let least = if family == Family::V4 { V4_LEN } else { V6_LEAST };
    // A socket of IPv6 takes an address of IPv4 for sending, by its own family only for binding: see the callers.
    if number != family.number() {
        return Err(if len < least { Errno::EINVAL } else { Errno::EAFNOSUPPORT });
    }
    if len < least {
        return Err(Errno::EINVAL);
    }
    let mut bytes = [0; V6_LEN];
    let len = len.min(if family == Family::V4 { V4_LEN } else { V6_LEN });
    copy_from_user(&mut bytes[..len], at)?;
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]).into(),
        Family::V6 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&bytes[8..24]);
            Ipv6Addr::from(octets).to_canonical()
        }
    };
    Ok(Given::Endpoint(SocketAddr::new(ip, port)))
}

/// An address as a socket of `family` shows it.
pub fn encode(endpoint: SocketAddr, family: Family) -> Vec<u8> {
    let mut out = Vec::with_capacity(V6_LEN);
    out.extend_from_slice(&(family.number() as u16).to_ne_bytes());
    out.extend_from_slice(&endpoint.port().to_be_bytes());
    match (family, endpoint.ip()) {
        (Family::V4, IpAddr::V4(ip)) => {
            out.extend_from_slice(&ip.octets());
            out.resize(V4_LEN, 0);
        }
        (_, ip) => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&ip.octets());
            out.resize(V6_LEN, 0);
        }
    }
    out
}

/// Is it an address of this machine?
pub fn is_local(of: &NetNamespace, ip: IpAddr) -> bool {
    ip.is_loopback() && of.loopback_is_up() || card_of(of).is_some_and(|setup| setup.ip == ip)
}

/// The card, where it is.
fn card_of(of: &NetNamespace) -> Option<&'static card::Setup> {
    card::setup().filter(|_| of.is_first())
}

/// The place that lies behind the card, when `to` does.
pub fn outside(of: &NetNamespace, to: SocketAddr) -> Option<SocketAddrV4> {
    match to {
        SocketAddr::V4(to) if !is_local(of, IpAddr::V4(*to.ip())) => Some(to),
        _ => None,
    }
}

/// Where a packet to `to` goes: to all of the machine's addresses means to itself. `ENETUNREACH` when no interface leads there.
pub fn route(of: &NetNamespace, to: SocketAddr) -> Result<SocketAddr> {
    let ip = match to.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let leads = match ip {
        IpAddr::V4(v4) => is_local(of, ip) || of.is_first() && card::leads_to(v4),
        IpAddr::V6(_) => is_local(of, ip),
    };
    if leads { Ok(SocketAddr::new(ip, to.port())) } else { Err(Errno::ENETUNREACH) }
}

/// The address that a packet to `to` comes from when its socket has none.
pub fn source_for(of: &NetNamespace, to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(ip) if !ip.is_loopback() => {
            card_of(of).map_or(Ipv4Addr::LOCALHOST, |setup| setup.ip).into()
        }
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
