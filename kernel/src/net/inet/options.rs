//! getsockopt(2) and setsockopt(2) of Internet sockets: those of socket(7), tcp(7), udp(7), ip(7) and ipv6(7) that servers set.
//!
//! On a line that loses nothing and delays nothing most of them have nothing to change: they are kept, and read back.

use linux_raw_sys::net;

use super::address::Family;
use super::ancillary::{
    IP_PKTINFO, IP_RECVTOS, IP_RECVTTL, IPV6_RECVHOPLIMIT, IPV6_RECVPKTINFO, IPV6_RECVTCLASS,
};
use super::ports::Protocol;
use super::{Role, Socket};
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{copy_from_user, read_user};
use crate::net::options::{self, Options};

/// Bytes that a new stream sends ahead, and receives ahead.
const STREAM_BUFFERS: (usize, usize) = (131_072, 131_072);

/// Options that only Internet sockets have.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// `IPV6_V6ONLY`.
    pub only_v6: bool,
    kept: [i32; KEPT.len()],
}

impl Default for Flags {
    fn default() -> Self {
        Self { only_v6: false, kept: KEPT.map(|(_, _, initial, _)| initial) }
    }
}

impl Flags {
    /// Seconds for which the other side of a connection may be silent with SO_KEEPALIVE.
    pub(super) fn keep_alive(&self) -> u64 {
        let value = |name| self.value(TCP, name).max(1) as u64;
        let questions = value(net::TCP_KEEPCNT) * value(net::TCP_KEEPINTVL);
        value(net::TCP_KEEPIDLE) + questions
    }

    /// The value of an option that is kept; 0 of one that is not.
    pub(super) fn value(&self, level: u32, name: u32) -> i32 {
        position(level, name).map_or(0, |index| self.kept[index])
    }
}

const TCP: u32 = net::IPPROTO_TCP as u32;
const IP: u32 = net::IPPROTO_IP as u32;
const IPV6: u32 = net::IPPROTO_IPV6 as u32;
const IP_MTU_DISCOVER: u32 = 10;
const IP_RECVERR: u32 = 11;
const IP_BIND_ADDRESS_NO_PORT: u32 = 24;
pub(super) const IPV6_UNICAST_HOPS: u32 = 16;
const IPV6_RECVERR: u32 = 25;
const IPV6_V6ONLY: u32 = 26;
const IPV6_MTU_DISCOVER: u32 = 23;
pub(super) const IPV6_TCLASS: u32 = 67;

/// Numbers that are kept and read back: level, name, value at first, and the largest one.
const KEPT: [(u32, u32, i32, i32); 27] = [
    (TCP, net::TCP_NODELAY, 0, 1),
    (TCP, net::TCP_CORK, 0, 1),
    (TCP, net::TCP_QUICKACK, 1, 1),
    (TCP, net::TCP_KEEPIDLE, 7200, 32767),
    (TCP, net::TCP_KEEPINTVL, 75, 32767),
    (TCP, net::TCP_KEEPCNT, 9, 127),
    (TCP, net::TCP_SYNCNT, 6, 127),
    (TCP, net::TCP_LINGER2, 60, i32::MAX),
    (TCP, net::TCP_DEFER_ACCEPT, 0, i32::MAX),
    (TCP, net::TCP_USER_TIMEOUT, 0, i32::MAX),
    (TCP, net::TCP_FASTOPEN, 0, i32::MAX),
    (IP, net::IP_TOS, 0, 255),
    (IP, net::IP_TTL, 64, 255),
    (IP, IP_MTU_DISCOVER, 1, 5),
    (IP, IP_RECVERR, 0, 1),
    (IP, IP_BIND_ADDRESS_NO_PORT, 0, 1),
    (IP, net::IP_FREEBIND, 0, 1),
    (IP, IP_PKTINFO, 0, 1),
    (IP, IP_RECVTTL, 0, 1),
    (IP, IP_RECVTOS, 0, 1),
    (IPV6, IPV6_RECVPKTINFO, 0, 1),
    (IPV6, IPV6_RECVHOPLIMIT, 0, 1),
    (IPV6, IPV6_RECVTCLASS, 0, 1),
    (IPV6, IPV6_UNICAST_HOPS, 64, 255),
    (IPV6, IPV6_MTU_DISCOVER, 1, 5),
    (IPV6, IPV6_RECVERR, 0, 1),
    (IPV6, IPV6_TCLASS, 0, 255),
];

fn position(level: u32, name: u32) -> Option<usize> {
    KEPT.iter().position(|option| (option.0, option.1) == (level, name))
}

impl Options {
    /// Those of a new Internet socket.
    pub const fn of_internet(protocol: Protocol) -> Self {
        let mut options = Self::new();
        if matches!(protocol, Protocol::Tcp) {
            (options.send_buffer, options.receive_buffer) = STREAM_BUFFERS;
        }
        options
    }
}

impl Socket {
    /// Which of the kept options it is.
    fn kept(&self, level: u32, name: u32) -> Result<usize> {
        let fits = match level {
            TCP => self.protocol == Protocol::Tcp,
            IP => true,
            IPV6 => self.family == Family::V6,
            _ => false,
        };
        if !fits {
            return Err(if level == IPV6 { Errno::ENOPROTOOPT } else { Errno::EOPNOTSUPP });
        }
        position(level, name).ok_or(Errno::ENOPROTOOPT)
    }

    pub(super) fn set(&self, level: u32, name: u32, address: usize, len: usize) -> Result<()> {
        if level == net::SOL_SOCKET {
            options::set_common(&self.options, name, address, len)?;
            self.writable.wake_all();
            return Ok(());
        }
        if (level, name) == (TCP, net::TCP_CONGESTION) && self.protocol == Protocol::Tcp {
            let mut text = [0; 16];
            let len = len.min(text.len());
            copy_from_user(&mut text[..len], address)?;
            let name = text[..len].split(|byte| *byte == 0).next().unwrap_or_default();
            return if matches!(name, b"cubic" | b"reno") { Ok(()) } else { Err(Errno::ENOENT) };
        }
        let value: i32 = match len {
            // Of ip(7) a byte is enough.
            1..4 if level == IP => i32::from(read_user::<u8>(address)?),
            4.. => read_user(address)?,
            _ => return Err(Errno::EINVAL),
        };
        if (level, name) == (IPV6, IPV6_V6ONLY) && self.family == Family::V6 {
            if self.state.lock().claim.is_some() {
                return Err(Errno::EINVAL);
            }
            self.flags.lock().only_v6 = value != 0;
            return Ok(());
        }
        let index = self.kept(level, name)?;
        let (_, _, initial, most) = KEPT[index];
        let value = match (most, value) {
            (1, value) => i32::from(value != 0),
            // These stand for what is usual.
            (255, -1) => initial,
            (_, 0) if (level, name) == (IP, net::IP_TTL) => return Err(Errno::EINVAL),
            (_, value) if (0..=most).contains(&value) => value,
            _ => return Err(Errno::EINVAL),
        };
        self.flags.lock().kept[index] = value;
        Ok(())
    }

    pub(super) fn get(&self, level: u32, name: u32, address: usize, len_address: usize) -> Result<()> {
        let room: i32 = read_user(len_address)?;
        if room < 0 {
            return Err(Errno::EINVAL);
        }
        let tcp = self.protocol == Protocol::Tcp;
        let number = match (level, name) {
            (net::SOL_SOCKET, net::SO_TYPE) if tcp => net::SOCK_STREAM as i32,
            (net::SOL_SOCKET, net::SO_TYPE) => net::SOCK_DGRAM as i32,
            (net::SOL_SOCKET, net::SO_DOMAIN) => self.family.number() as i32,
            (net::SOL_SOCKET, net::SO_PROTOCOL) if tcp => net::IPPROTO_TCP as i32,
            (net::SOL_SOCKET, net::SO_PROTOCOL) => net::IPPROTO_UDP as i32,
            (net::SOL_SOCKET, net::SO_ERROR) => self.take_error().map_or(0, |error| error.into_raw()),
            (net::SOL_SOCKET, net::SO_ACCEPTCONN) => {
                i32::from(matches!(self.state.lock().role, Role::Listening { .. }))
            }
            (net::SOL_SOCKET, _) => {
                let options = *self.options.lock();
                return options::give(&options::common(&options, name)?, address, len_address);
            }
            (TCP, net::TCP_CONGESTION) if tcp => {
                let mut text = [0; 16];
                text[..5].copy_from_slice(b"cubic");
                return options::give(&text, address, len_address);
            }
            (TCP, net::TCP_MAXSEG) if tcp => 32768,
            (TCP, net::TCP_INFO) if tcp => return self.info(address, len_address),
            (IPV6, IPV6_V6ONLY) if self.family == Family::V6 => i32::from(self.flags.lock().only_v6),
            _ => {
                let index = self.kept(level, name)?;
                self.flags.lock().kept[index]
            }
        };
        options::give(&number.to_ne_bytes(), address, len_address)
    }

    /// The begin of `struct tcp_info`: the state; what is counted of packets is 0, for there are none.
    fn info(&self, address: usize, len_address: usize) -> Result<()> {
        /// As far as Linux had it before it counted more.
        const LEN: usize = 104;
        let mut bytes = [0; LEN];
        bytes[0] = self.tcp_state();
        options::give(&bytes, address, len_address)
    }

    /// The state as `/proc/net/tcp` has it.
    pub(super) fn tcp_state(&self) -> u8 {
        const ESTABLISHED: u8 = 1;
        const SYN_SENT: u8 = 2;
        const FIN_WAIT_2: u8 = 5;
        const CLOSE: u8 = 7;
        const CLOSE_WAIT: u8 = 8;
        const LISTEN: u8 = 10;
        let state = self.state.lock();
        match state.role {
            Role::Listening { .. } => LISTEN,
            Role::Connecting => SYN_SENT,
            Role::Connected(_) => match (state.peer_finished, state.send_closed) {
                (false, false) => ESTABLISHED,
                (false, true) => FIN_WAIT_2,
                (true, false) => CLOSE_WAIT,
                (true, true) => CLOSE,
            },
            Role::Idle | Role::Closed => CLOSE,
        }
    }
}
