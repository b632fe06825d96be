//! The interfaces, and how ioctl(2) shows them: netdevice(7).

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use linux_raw_sys::general::CAP_NET_ADMIN;
use linux_raw_sys::{ioctl, net};

use super::card;
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{copy_to_user, read_user, write_user};
use crate::namespaces::NetNamespace;

const UP: u16 = 0x1;
const BROADCAST: u16 = 0x2;
const LOOPBACK: u16 = 0x8;
const RUNNING: u16 = 0x40;

/// An interface. Those of the first namespace are up from the start, and stay so.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    pub name: &'static str,
    pub index: i32,
    pub flags: u16,
    /// Bytes of the longest packet. On the loopback nothing is cut to it.
    pub mtu: i32,
    /// `ARPHRD_LOOPBACK`, `ARPHRD_ETHER`.
    pub hardware: u16,
    pub hardware_address: [u8; 6],
    pub hardware_broadcast: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub mask: Ipv4Addr,
    /// The address of all machines on its line; it has none when it is the loopback.
    pub broadcast: Option<Ipv4Addr>,
}

/// The way back to this machine.
pub const LO: Interface = Interface {
    name: "lo",
    index: 1,
    flags: UP | LOOPBACK | RUNNING,
    mtu: 65536,
    hardware: 772,
    hardware_address: [0; 6],
    hardware_broadcast: [0; 6],
    address: Ipv4Addr::LOCALHOST,
    prefix: 8,
    mask: Ipv4Addr::new(255, 0, 0, 0),
    broadcast: None,
};

/// The card's number.
pub const CARD: i32 = 2;

/// The card, when there is one.
fn ethernet() -> Option<Interface> {
    card::setup().map(|setup| Interface {
        name: card::NAME,
        index: CARD,
        flags: UP | BROADCAST | RUNNING,
        mtu: 1500,
        hardware: 1,
        hardware_address: setup.hardware,
        hardware_broadcast: [0xff; 6],
        address: setup.ip,
        prefix: setup.prefix,
        mask: setup.mask(),
        broadcast: Some(setup.broadcast()),
    })
}

/// The loopback of a namespace.
pub fn loopback(of: &NetNamespace) -> Interface {
    let off = if of.loopback_is_up() { 0 } else { UP | RUNNING };
    Interface { flags: LO.flags & !off, ..LO }
}

/// All of them, by their numbers.
pub fn all(of: &NetNamespace) -> impl Iterator<Item = Interface> {
    core::iter::once(loopback(of)).chain(ethernet().filter(|_| of.is_first()))
}

impl Interface {
    /// Is it on? Only then it has its address.
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }
}

/// Turns the interface with this number on or off. `EPERM` without CAP_NET_ADMIN; `EOPNOTSUPP` where it stays as it is.
pub fn turn(of: &NetNamespace, index: i32, on: bool) -> Result<()> {
    if !of.is_capable(CAP_NET_ADMIN) {
        return Err(Errno::EPERM);
    }
    match index {
        1 => of.turn_loopback(on),
        CARD if on => Ok(()),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

const NAME_LEN: usize = 16;
/// `struct ifreq`.
const REQUEST: usize = 40;

/// `struct ifconf`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Configuration {
    len: i32,
    padding: u32,
    buffer: usize,
}

fn padded(name: &str) -> [u8; NAME_LEN] {
    let mut out = [0; NAME_LEN];
    out[..name.len()].copy_from_slice(name.as_bytes());
    out
}

/// A `struct sockaddr_in`, to be put into a request.
fn address(ip: Ipv4Addr) -> [u8; 16] {
    let mut out = [0; 16];
    out[..2].copy_from_slice(&(net::AF_INET as u16).to_ne_bytes());
    out[4..8].copy_from_slice(&ip.octets());
    out
}

/// Those that sockets of all families take: no addresses of this one. `ENOTTY` for others.
pub fn ioctl_of_devices(network: &NetNamespace, command: u32, argument: usize) -> Result<usize> {
    use ioctl::{SIOCGIFADDR, SIOCGIFBRDADDR, SIOCGIFDSTADDR, SIOCGIFNETMASK};
    match command {
        SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFNETMASK | SIOCGIFBRDADDR => Err(Errno::ENOTTY),
        _ => self::ioctl(network, command, argument),
    }
}

/// The requests about interfaces. `ENOTTY` for others.
pub fn ioctl(network: &NetNamespace, command: u32, argument: usize) -> Result<usize> {
    if command == ioctl::SIOCGIFCONF {
        return configuration(network, argument);
    }
    let known = [
        ioctl::SIOCGIFNAME,
        ioctl::SIOCGIFINDEX,
        ioctl::SIOCGIFFLAGS,
        ioctl::SIOCSIFFLAGS,
        ioctl::SIOCGIFADDR,
        ioctl::SIOCGIFNETMASK,
        ioctl::SIOCGIFBRDADDR,
        ioctl::SIOCGIFDSTADDR,
        ioctl::SIOCGIFMTU,
        ioctl::SIOCGIFMETRIC,
        ioctl::SIOCGIFTXQLEN,
        ioctl::SIOCGIFHWADDR,
    ];
    if !known.contains(&command) {
        return Err(Errno::ENOTTY);
    }
    let value = argument.checked_add(NAME_LEN).ok_or(Errno::EFAULT)?;
    if command == ioctl::SIOCGIFNAME {
        let index: i32 = read_user(value)?;
        let interface = all(network).find(|interface| interface.index == index).ok_or(Errno::ENODEV)?;
        copy_to_user(argument, &padded(interface.name))?;
        return Ok(0);
    }
    let asked: [u8; NAME_LEN] = read_user(argument)?;
    let asked = asked.split(|byte| *byte == 0).next().unwrap_or_default();
    let of = all(network).find(|interface| interface.name.as_bytes() == asked).ok_or(Errno::ENODEV)?;
    match command {
        ioctl::SIOCGIFINDEX => write_user(value, &of.index)?,
        ioctl::SIOCGIFFLAGS => write_user(value, &of.flags)?,
        ioctl::SIOCSIFFLAGS => {
            let flags: u16 = read_user(value)?;
            turn(network, of.index, flags & UP != 0)?;
        }
        ioctl::SIOCGIFADDR | ioctl::SIOCGIFDSTADDR | ioctl::SIOCGIFNETMASK | ioctl::SIOCGIFBRDADDR
            if !of.is_up() =>
        {
            return Err(Errno::EADDRNOTAVAIL);
        }
        ioctl::SIOCGIFADDR | ioctl::SIOCGIFDSTADDR => write_user(value, &address(of.address))?,
        ioctl::SIOCGIFNETMASK => write_user(value, &address(of.mask))?,
        ioctl::SIOCGIFBRDADDR => {
            write_user(value, &address(of.broadcast.unwrap_or(Ipv4Addr::UNSPECIFIED)))?;
        }
        ioctl::SIOCGIFMTU => write_user(value, &of.mtu)?,
        ioctl::SIOCGIFMETRIC => write_user(value, &0i32)?,
        ioctl::SIOCGIFTXQLEN => write_user(value, &1000i32)?,
        _ => {
            let mut hardware = [0u8; 16];
            hardware[..2].copy_from_slice(&of.hardware.to_ne_bytes());
            hardware[2..8].copy_from_slice(&of.hardware_address);
            write_user(value, &hardware)?;
        }
    }
    Ok(0)
}

/// SIOCGIFCONF: all interfaces with an address of IPv4, or how much room they need.
fn configuration(network: &NetNamespace, argument: usize) -> Result<usize> {
    let mut given: Configuration = read_user(argument)?;
    let entry = |interface: Interface| -> Vec<u8> {
        let mut entry = padded(interface.name).to_vec();
        entry.extend_from_slice(&address(interface.address));
        entry.resize(REQUEST, 0);
        entry
    };
    let mut len = 0;
    for interface in all(network).filter(Interface::is_up) {
        if given.buffer != 0 {
            if len + REQUEST > given.len.max(0) as usize {
                break;
            }
            copy_to_user(given.buffer + len, &entry(interface))?;
        }
        len += REQUEST;
    }
    given.len = len as i32;
    write_user(argument, &given.len)?;
    Ok(0)
}
