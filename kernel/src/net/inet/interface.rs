//! The interface as ioctl(2) shows it: netdevice(7).

use alloc::vec::Vec;

use linux_raw_sys::general::CAP_NET_ADMIN;
use linux_raw_sys::{ioctl, net};

use crate::errno::{Errno, Result};
use crate::mm::uaccess::{copy_to_user, read_user, write_user};
use crate::process;

/// The name of the only interface.
pub const NAME: &str = "lo";
/// Its number.
pub const INDEX: i32 = 1;
/// The longest packet, as on Linux: nothing here is cut to it.
pub const MTU: i32 = 65536;
/// Up, loopback, running.
pub const FLAGS: u16 = 0x1 | 0x8 | 0x40;
/// `ARPHRD_LOOPBACK`.
pub const HARDWARE: u16 = 772;

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

fn name() -> [u8; NAME_LEN] {
    let mut out = [0; NAME_LEN];
    out[..NAME.len()].copy_from_slice(NAME.as_bytes());
    out
}

/// A `struct sockaddr_in`, to be put into a request.
fn address(octets: [u8; 4]) -> [u8; 16] {
    let mut out = [0; 16];
    out[..2].copy_from_slice(&(net::AF_INET as u16).to_ne_bytes());
    out[4..8].copy_from_slice(&octets);
    out
}

/// The requests about interfaces. `ENOTTY` for others.
pub fn ioctl(command: u32, argument: usize) -> Result<usize> {
    if command == ioctl::SIOCGIFCONF {
        return configuration(argument);
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
    let value = argument + NAME_LEN;
    if command == ioctl::SIOCGIFNAME {
        let index: i32 = read_user(value)?;
        if index != INDEX {
            return Err(Errno::ENODEV);
        }
        copy_to_user(argument, &name())?;
        return Ok(0);
    }
    let asked: [u8; NAME_LEN] = read_user(argument)?;
    if asked.split(|byte| *byte == 0).next() != Some(NAME.as_bytes()) {
        return Err(Errno::ENODEV);
    }
    match command {
        ioctl::SIOCGIFINDEX => write_user(value, &INDEX)?,
        ioctl::SIOCGIFFLAGS => write_user(value, &FLAGS)?,
        ioctl::SIOCSIFFLAGS => {
            if !process::current().credentials().capable(CAP_NET_ADMIN) {
                return Err(Errno::EPERM);
            }
            let flags: u16 = read_user(value)?;
            // It is up from the start, and stays so.
            if flags & 1 == 0 {
                return Err(Errno::EOPNOTSUPP);
            }
        }
        ioctl::SIOCGIFADDR | ioctl::SIOCGIFDSTADDR => write_user(value, &address([127, 0, 0, 1]))?,
        ioctl::SIOCGIFNETMASK => write_user(value, &address([255, 0, 0, 0]))?,
        ioctl::SIOCGIFBRDADDR => write_user(value, &address([0; 4]))?,
        ioctl::SIOCGIFMTU => write_user(value, &MTU)?,
        ioctl::SIOCGIFMETRIC => write_user(value, &0i32)?,
        ioctl::SIOCGIFTXQLEN => write_user(value, &1000i32)?,
        _ => {
            let mut hardware = [0u8; 16];
            hardware[..2].copy_from_slice(&HARDWARE.to_ne_bytes());
            write_user(value, &hardware)?;
        }
    }
    Ok(0)
}

/// SIOCGIFCONF: all interfaces with an address of IPv4, or how much room they need.
fn configuration(argument: usize) -> Result<usize> {
    let mut configuration: Configuration = read_user(argument)?;
    if configuration.buffer == 0 {
        configuration.len = REQUEST as i32;
    } else if configuration.len < REQUEST as i32 {
        configuration.len = 0;
    } else {
        let mut request = Vec::with_capacity(REQUEST);
        request.extend_from_slice(&name());
        request.extend_from_slice(&address([127, 0, 0, 1]));
        request.resize(REQUEST, 0);
        copy_to_user(configuration.buffer, &request)?;
        configuration.len = REQUEST as i32;
    }
    write_user(argument, &configuration.len)?;
    Ok(0)
}
