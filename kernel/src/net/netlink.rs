//! Netlink sockets of NETLINK_ROUTE: netlink(7), rtnetlink(7), as far as getifaddrs(3) and `ip address` ask.
//!
//! A request is answered when it is sent: the answers wait in the socket. Nothing changes by itself here, so groups of listeners
//! never hear anything.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::{general as abi, ioctl, net};

use super::calls::{Along, Calls, Incoming, Place};
use super::inet::card;
use super::inet::interface::{self, Interface, LO};
use super::options::{self, Options, deadline, wait_error};
use crate::errno::{Errno, Result};
use crate::fs::{Events, File, FileOps, Kind as FileKind, Sink, Source};
use crate::memory::fallible::{self, CopyUnderLock};
use crate::mm::uaccess::{copy_from_user, read_user, write_user};
use crate::namespaces::{NetNamespace, Network};
use crate::sched;
use crate::sync::{SpinLock, WaitQueue};

/// The only protocol.
const ROUTE: i32 = 0;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct sockaddr_nl`.
const ADDRESS: usize = 12;
/// More than any request here takes.
const MOST: usize = 32 * 1024;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const GET_NEIGHBOUR: u16 = 30;
const GET_RULE: u16 = 34;

/// States of an interface.
const UNKNOWN: u8 = 0;
const OPERATIONAL: u8 = 6;

const MULTI: u16 = 2;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;

struct State {
    answers: VecDeque<Vec<u8>>,
    held: usize,
    /// Its number; 0 until it has one.
    port: u32,
}

/// A socket.
pub struct Socket {
    kind: u32,
    network: Network,
    state: SpinLock<State>,
    options: SpinLock<Options>,
    readable: WaitQueue,
}

fn is_kind(kind: u32) -> bool {
    matches!(kind, net::SOCK_RAW | net::SOCK_DGRAM)
}

/// One message in the making: header, body, attributes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, request: &Request, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&request.sequence.to_ne_bytes());
        bytes.extend_from_slice(&request.port.to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        const ATTRIBUTE: usize = 4;
        self.0.extend_from_slice(&((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// What is asked.
struct Request {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// Who asks.
    port: u32,
    family: u8,
    /// The interface that is asked for, or 0.
    index: i32,
}

fn link(request: &Request, flags: u16, of: &Interface) -> Vec<u8> {
    const LOWER_UP: u32 = 0x10000;
    let mut body = [0; 16];
    body[2..4].copy_from_slice(&of.hardware.to_ne_bytes());
    body[4..8].copy_from_slice(&of.index.to_ne_bytes());
    body[8..12].copy_from_slice(&(u32::from(of.flags) | LOWER_UP).to_ne_bytes());
    Message::new(NEW_LINK, flags, request, &body)
        .attribute(3, &[of.name.as_bytes(), &[0]].concat())
        .attribute(13, &1000u32.to_ne_bytes())
        .attribute(16, &[if of.index == LO.index { UNKNOWN } else { OPERATIONAL }])
        .attribute(17, &[0])
        .attribute(4, &of.mtu.to_ne_bytes())
        .attribute(6, b"noqueue\0")
        .attribute(1, &of.hardware_address)
        .attribute(2, &of.hardware_broadcast)
        .finish()
}

fn address(request: &Request, of: &Interface, v6: bool) -> Vec<u8> {
    /// Set by hand, for good.
    const PERMANENT: u8 = 0x80;
    /// Of this machine alone, and of all the world.
    const HOST: u8 = 254;
    const UNIVERSE: u8 = 0;
    let (family, prefix) = if v6 { (net::AF_INET6, 128) } else { (net::AF_INET, of.prefix) };
    let scope = if of.index == LO.index { HOST } else { UNIVERSE };
    let [a, b, c, d] = of.index.to_ne_bytes();
    let body = [family as u8, prefix, PERMANENT, scope, a, b, c, d];
    let message = Message::new(NEW_ADDRESS, MULTI, request, &body);
    let message = if v6 {
        let mut ip = [0; 16];
        ip[15] = 1;
        message.attribute(1, &ip)
    } else {
        let label = [of.name.as_bytes(), &[0]].concat();
        let ip = of.address.octets();
        let message = message.attribute(1, &ip).attribute(2, &ip);
        let message = match of.broadcast {
            Some(broadcast) => message.attribute(4, &broadcast.octets()),
            None => message,
        };
        message.attribute(3, &label)
    };
    message.attribute(8, &u32::from(PERMANENT).to_ne_bytes()).finish()
}

/// The ways of IPv4 beyond this machine, of the main table: to who is on the line, and to all others.
fn routes(network: &NetNamespace, request: &Request) -> Vec<u8> {
    const MAIN: u8 = 254;
    const BY_KERNEL: u8 = 2;
    const BY_BOOT: u8 = 3;
    const UNIVERSE: u8 = 0;
    const LINK: u8 = 253;
    const UNICAST: u8 = 1;
    let card = interface::all(network).find(|interface| interface.name == card::NAME);
    let (Some(setup), Some(of)) = (card::setup(), card) else {
        return Vec::new();
    };
    let body = |prefix: u8, by: u8, scope: u8| {
        [net::AF_INET as u8, prefix, 0, 0, MAIN, by, scope, UNICAST, 0, 0, 0, 0]
    };
    let message = |body: [u8; 12]| {
        Message::new(NEW_ROUTE, MULTI, request, &body).attribute(15, &u32::from(MAIN).to_ne_bytes())
    };
    let mut out = Vec::new();
    if let Some(gateway) = setup.gateway {
        let route = message(body(0, BY_BOOT, UNIVERSE)).attribute(5, &gateway.octets());
        out.extend(route.attribute(4, &of.index.to_ne_bytes()).finish());
    }
    let route = message(body(setup.prefix, BY_KERNEL, LINK)).attribute(1, &setup.network().octets());
    out.extend(route.attribute(7, &setup.ip.octets()).attribute(4, &of.index.to_ne_bytes()).finish());
    out
}

/// `NLMSG_ERROR`, or with 0 an acknowledgement, with the request's header.
fn error(request: &Request, header: &[u8], errno: i32) -> Vec<u8> {
    Message::new(ERROR, 0, request, &[&(-errno).to_ne_bytes(), header].concat()).finish()
}

impl Socket {
    /// A new socket of socket(2)'s type and protocol.
    pub fn create(kind: u32, protocol: i32) -> Result<Arc<Self>> {
        if !is_kind(kind) {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        if protocol != ROUTE {
            return Err(Errno::EPROTONOSUPPORT);
        }
        Ok(Arc::new(Self {
            kind,
            network: Network::current(),
            state: SpinLock::growing(State { answers: VecDeque::new(), held: 0, port: 0 }),
            options: SpinLock::new(Options::new()),
            readable: WaitQueue::new(),
        }))
    }

    /// An open file for it. `flags`: `O_NONBLOCK`.
    pub fn into_file(self: Arc<Self>, flags: u32) -> Arc<File> {
        File::anonymous(FileKind::Socket, "", self, abi::O_RDWR | flags & abi::O_NONBLOCK)
    }

    /// Its number; it gets one when it has none.
    fn port(&self, wanted: u32) -> u32 {
        // Far from all process numbers, which programs choose themselves. Relaxed: a number by itself.
        static LAST: AtomicU32 = AtomicU32::new(u32::MAX - 4096);
        let mut state = self.state.lock();
        if state.port == 0 {
            let next = || LAST.fetch_sub(1, Ordering::Relaxed);
            state.port = if wanted != 0 { wanted } else { next() };
        }
        state.port
    }

    /// Puts an answer into the queue. `ENOBUFS` when nobody has read those before.
    fn answer(&self, bytes: &[u8]) -> Result<()> {
        // One call may bring a thousand requests: each answer is asked for, and takes what it needs.
        let bytes = fallible::copy_of(bytes).map_err(|_| Errno::ENOBUFS)?;
        let room = self.options.lock().receive_buffer;
        let mut state = self.state.lock();
        if state.held >= room {
            return Err(Errno::ENOBUFS);
        }
        fallible::reserve_queue(&mut state.answers, 1).map_err(|_| Errno::ENOBUFS)?;
        state.held += bytes.capacity();
        state.answers.push_back(bytes);
        Ok(())
    }

    /// Answers one message.
    fn handle(&self, message: &[u8]) -> Result<()> {
        let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        let word = |at: usize| {
            let byte = |i: usize| message.get(at + i).copied().unwrap_or(0);
            u32::from_ne_bytes([byte(0), byte(1), byte(2), byte(3)])
        };
        let request = Request {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: self.port(0),
            family: message.get(HEADER).copied().unwrap_or(0),
            index: word(HEADER + 4) as i32,
        };
        let dump = request.flags & DUMP != 0;
        let header = &message[..HEADER];
        let mut out = Vec::new();
        let wants = |family: u32| request.family == 0 || u32::from(request.family) == family;
        match request.kind {
            GET_LINK if dump => {
                interface::all(&self.network).for_each(|of| out.extend(link(&request, MULTI, &of)))
            }
            // By number, or by name.
            GET_LINK => {
                let asked = |of: &Interface| {
                    request.index == of.index || request.index == 0 && names(message, of.name)
                };
                return self.answer(&match interface::all(&self.network).find(asked) {
                    Some(of) => link(&request, 0, &of),
                    None => error(&request, header, Errno::ENODEV.into_raw()),
                });
            }
            GET_ADDRESS if dump => {
                // One that is off has none.
                let up = || interface::all(&self.network).filter(Interface::is_up);
                if wants(net::AF_INET) {
                    up().for_each(|of| out.extend(address(&request, &of, false)));
                }
                if wants(net::AF_INET6) {
                    up().take(1).for_each(|of| out.extend(address(&request, &of, true)));
                }
            }
            GET_ROUTE if dump && wants(net::AF_INET) => out.extend(routes(&self.network, &request)),
            // Neighbours and rules are not told of.
            GET_ROUTE | GET_NEIGHBOUR | GET_RULE if dump => {}
            NEW_LINK | SET_LINK if request.flags & CREATE == 0 => {
                let turned = self.turn(&request, word(HEADER + 8), word(HEADER + 12), message);
                let errno = turned.map_or_else(Errno::into_raw, |()| 0);
                if errno != 0 || request.flags & ACKNOWLEDGE != 0 {
                    self.answer(&error(&request, header, errno))?;
                }
                return Ok(());
            }
            kind if kind < NEW_LINK => {
                if request.flags & ACKNOWLEDGE != 0 {
                    self.answer(&error(&request, header, 0))?;
                }
                return Ok(());
            }
            _ => {
                let may = self.network.is_capable(abi::CAP_NET_ADMIN);
                // What changes something is the third of four; these are what everybody may ask.
                let asks = request.kind % 4 == 2;
                let errno = if asks || may { Errno::EOPNOTSUPP } else { Errno::EPERM };
                return self.answer(&error(&request, header, errno.into_raw()));
            }
        }
        if !out.is_empty() {
            self.answer(&out)?;
        }
        self.answer(&Message::new(DONE, MULTI, &request, &0i32.to_ne_bytes()).finish())
    }

    /// Turns an interface on or off: `ip link set lo up`. Nothing else of it changes.
    fn turn(&self, request: &Request, flags: u32, change: u32, message: &[u8]) -> Result<()> {
        const UP: u32 = 1;
        let asked =
            |of: &Interface| request.index == of.index || request.index == 0 && names(message, of.name);
        if !self.network.is_capable(abi::CAP_NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        let of = interface::all(&self.network).find(asked).ok_or(Errno::ENODEV)?;
        if flags == 0 && change == 0 {
            return Ok(());
        }
        // Without a mask all flags are meant.
        if change != 0 && change & UP == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        interface::turn(&self.network, of.index, flags & UP != 0)
    }

    /// Answers the messages in `bytes`.
    fn handle_all(&self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while rest.len() >= HEADER {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if size < HEADER || size > rest.len() {
                break;
            }
            self.handle(&rest[..size])?;
            rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            sched::cond_resched();
        }
        Ok(())
    }
}

/// Whether a request for an interface names this one in its attribute.
fn names(message: &[u8], name: &str) -> bool {
    const BODY: usize = HEADER + 16;
    const NAME: u16 = 3;
    let mut given = attributes(message.get(BODY..).unwrap_or_default());
    given.any(|(kind, value)| kind == NAME && value.split(|byte| *byte == 0).next() == Some(name.as_bytes()))
}

/// The attributes behind a message's body: kinds and values. One that does not fit ends them.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const ATTRIBUTE: usize = 4;
    core::iter::from_fn(move || {
        let (head, _) = rest.split_first_chunk::<ATTRIBUTE>()?;
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let (len, kind) = (usize::from(half(0)), half(2));
        let value = rest.get(ATTRIBUTE..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn encode(port: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(ADDRESS);
    out.extend_from_slice(&(net::AF_NETLINK as u16).to_ne_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&port.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out
}

/// Reads the number of a `struct sockaddr_nl`.
fn read_port(Place(at, len): Place) -> Result<u32> {
    if len < ADDRESS {
        return Err(Errno::EINVAL);
    }
    let mut bytes = [0; ADDRESS];
    copy_from_user(&mut bytes, at)?;
    if u32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) != net::AF_NETLINK {
        return Err(Errno::EINVAL);
    }
    Ok(u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]))
}

impl Socket {
    /// A copy of the first answer.
    fn peek(&self) -> Result<Option<Vec<u8>>> {
        let mut copy = CopyUnderLock::new();
        loop {
            {
                let state = self.state.lock();
                let Some(answer) = state.answers.front() else { return Ok(None) };
                copy.copy(answer);
            }
            if copy.is_done()? {
                return Ok(Some(copy.into_vec()));
            }
        }
    }
}

impl Calls for Socket {
    fn bind(&self, to: Place) -> Result<()> {
        let wanted = read_port(to)?;
        let port = self.port(wanted);
        if wanted != 0 && wanted != port { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn connect(&self, to: Place, _: bool) -> Result<()> {
        // All talk to the kernel, which is number 0.
        if read_port(to)? != 0 { Err(Errno::ECONNREFUSED) } else { Ok(()) }
    }

    fn listen(&self, _: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn accept(&self, _: bool, _: u32) -> Result<(Arc<File>, Vec<u8>)> {
        Err(Errno::EOPNOTSUPP)
    }

    fn name(&self) -> Result<Vec<u8>> {
        Ok(encode(self.state.lock().port))
    }

    fn peer_name(&self) -> Result<Vec<u8>> {
        Ok(encode(0))
    }

    fn shutdown(&self, _: bool, _: bool) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn set_option(&self, level: u32, name: u32, address: usize, len: usize) -> Result<()> {
        /// The last of them.
        const STRICT_CHECK: u32 = 12;
        match level {
            net::SOL_SOCKET => options::set_common(&self.options, name, address, len),
            // How answers look in ways that none here does.
            net::SOL_NETLINK if name <= STRICT_CHECK && len >= 4 => read_user::<i32>(address).map(drop),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn option(&self, level: u32, name: u32, address: usize, len_address: usize) -> Result<()> {
        let number = match (level, name) {
            (net::SOL_SOCKET, net::SO_TYPE) => self.kind as i32,
            (net::SOL_SOCKET, net::SO_DOMAIN) => net::AF_NETLINK as i32,
            (net::SOL_SOCKET, net::SO_PROTOCOL) => ROUTE,
            (net::SOL_SOCKET, net::SO_ERROR) => 0,
            (net::SOL_SOCKET, _) => {
                let options = *self.options.lock();
                return options::give(&options::common(&options, name)?, address, len_address);
            }
            _ => return Err(Errno::ENOPROTOOPT),
        };
        options::give(&number.to_ne_bytes(), address, len_address)
    }

    fn send(&self, source: &mut Source, flags: u32, to: Option<Place>, along: Along) -> Result<usize> {
        if flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if along.rights.is_some() {
            return Err(Errno::EINVAL);
        }
        if let Some(to) = to
            && read_port(to)? != 0
        {
            return Err(Errno::ECONNREFUSED);
        }
        let len = source.remaining();
        if len > MOST {
            return Err(Errno::EMSGSIZE);
        }
        let mut bytes = fallible::filled(0, len)?;
        source.read_exact(&mut bytes)?;
        let result = self.handle_all(&bytes);
        // Answers may have come before a failure.
        self.readable.wake_all();
        result.map(|()| len)
    }

    fn receive(&self, sink: &mut Sink, flags: u32) -> Result<Incoming> {
        if flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let peeks = flags & net::MSG_PEEK != 0;
        let take = || -> Option<Result<Vec<u8>>> {
            if peeks {
                return self.peek().transpose();
            }
            let mut state = self.state.lock();
            let answer = state.answers.pop_front()?;
            state.held -= answer.capacity();
            Some(Ok(answer))
        };
        let timeout = self.options.lock().receive_timeout;
        let answer = match take() {
            Some(answer) => answer?,
            None if flags & net::MSG_DONTWAIT != 0 => return Err(Errno::EAGAIN),
            None => self
                .readable
                .wait_event(deadline(timeout), take)
                .map_err(|error| wait_error(error, timeout))??,
        };
        let copied = if sink.remaining() > 0 { sink.write(&answer)? } else { 0 };
        let cut = if copied < answer.len() { net::MSG_TRUNC } else { 0 };
        Ok(Incoming {
            count: if flags & net::MSG_TRUNC != 0 { answer.len() } else { copied },
            flags: cut,
            from: Some(encode(0)),
            ..Incoming::default()
        })
    }
}

impl FileOps for Socket {
    fn signals_readiness(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        let flags = if file.nonblocking() { net::MSG_DONTWAIT } else { 0 };
        self.receive(sink, flags).map(|incoming| incoming.count)
    }

    fn write_at(&self, _: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        self.send(source, 0, None, Along::default())
    }

    fn poll(&self, _: &File) -> Events {
        let readable = if self.state.lock().answers.is_empty() { Events::empty() } else { Events::READABLE };
        readable | Events::WRITABLE
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.readable);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn kernel_bytes(&self) -> u64 {
        (size_of::<Socket>() + self.state.lock().held) as u64
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        if command != ioctl::FIONREAD {
            return interface::ioctl_of_devices(&self.network, command, argument);
        }
        let next = self.state.lock().answers.front().map_or(0, Vec::len);
        write_user(argument, &(next as i32))?;
        Ok(0)
    }
}
