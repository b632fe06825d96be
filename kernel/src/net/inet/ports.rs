//! Who has which port, of TCP and of UDP.
//!
//! A port has groups of sockets by their address. Whether one more may come is counted, not searched: each group, and each family of a
//! port, knows how many of its sockets object. So a call costs the same, however many sockets there are.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Socket;
use crate::errno::{Errno, Result};
use crate::memory::fallible::TryVec;
use crate::memory::{fallible, reserve};
use crate::namespaces::NetNamespace;
use crate::sync::SpinLock;

/// Which ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Of streams.
    Tcp,
    /// Of datagrams.
    Udp,
}

/// Ports that are given to those who ask for any: `net.ipv4.ip_local_port_range`.
pub const EPHEMERAL: core::ops::RangeInclusive<u16> = 32768..=60999;
/// Ports below are for the privileged.
pub const FIRST_UNPRIVILEGED: u16 = 1024;
/// So many sockets may receive at one address.
const MOST_RECEIVERS: usize = 1024;
/// A group with its part of a node, and a port with its own.
const ENTRY: usize = 512;

/// What a socket takes of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Address and port.
    pub at: SocketAddr,
    /// The address is that of IPv6 which stands for those of IPv4, too.
    pub dual: bool,
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// Whose it is.
    pub uid: u32,
}

/// How many sockets there are, and how many of them object to what.
#[derive(Clone, Copy, Default)]
struct Counts {
    all: usize,
    /// Without SO_REUSEADDR.
    strict_address: usize,
    /// Without SO_REUSEPORT, or of another user than the first one.
    strict_port: usize,
    listening: usize,
    /// The user of the first one.
    uid: u32,
}

impl Counts {
    fn add(&mut self, claim: &Claim) {
        if self.all == 0 {
            self.uid = claim.uid;
        }
        self.all += 1;
        self.strict_address += usize::from(!claim.reuse_address);
        self.strict_port += usize::from(!self.may_share(claim));
    }

    fn remove(&mut self, claim: &Claim) {
        self.all -= 1;
        self.strict_address -= usize::from(!claim.reuse_address);
        self.strict_port -= usize::from(!self.may_share(claim));
    }

    /// Whether the port is shared with others of the same user. Who comes first is the user until all have gone.
    fn may_share(&self, claim: &Claim) -> bool {
        claim.reuse_port && claim.uid == self.uid
    }

    fn admit(&self, claim: &Claim) -> bool {
        let by_address = claim.reuse_address && self.strict_address == 0 && self.listening == 0;
        let by_port = self.may_share(claim) && self.strict_port == 0;
        self.all == 0 || by_address || by_port
    }
}

/// Sockets of one address: the key of their group.
type Key = (IpAddr, bool);

#[derive(Default)]
struct Group {
    counts: Counts,
    /// Those that receive here: listeners, or datagram sockets.
    receivers: Vec<Weak<Socket>>,
}

#[derive(Default)]
struct Port {
    groups: BTreeMap<Key, Group>,
    /// Of all groups that have to do with IPv4, and with IPv6.
    families: [Counts; 2],
}

/// The families that a claim has to do with, as indices.
fn families(claim: &Claim) -> impl Iterator<Item = usize> {
    let (v4, v6) = (claim.at.is_ipv4() || claim.dual, claim.at.is_ipv6());
    [(0, v4), (1, v6)].into_iter().filter_map(|(index, has)| has.then_some(index))
}

const ANY_V4: Key = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), false);
const ANY_V6: Key = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), false);
const ANY_DUAL: Key = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), true);

/// The groups that receive what comes for an address, the closest first.
fn receiving(ip: IpAddr) -> [Key; 3] {
    [(ip, false), if ip.is_ipv4() { ANY_V4 } else { ANY_V6 }, ANY_DUAL]
}

impl Port {
    fn admits(&self, claim: &Claim) -> bool {
        if claim.at.ip().is_unspecified() {
            return families(claim).all(|family| self.families[family].admit(claim));
        }
        let groups = receiving(claim.at.ip());
        groups.iter().filter_map(|key| self.groups.get(key)).all(|group| group.counts.admit(claim))
    }
}

/// A number below `count`, which is at most 65,536, for each such number: a Feistel cipher of 16 bits, again where the result is too large.
fn shuffled(number: u32, count: u32, key: u64) -> u32 {
    let mut number = number;
    loop {
        let (mut left, mut right) = (number >> 8 & 0xff, number & 0xff);
        for round in 0..4 {
            let key = (key >> (16 * round)) as u32 & 0xffff;
            // What matters is that who sees some ports does not see the next: the high bits of a product with an odd number.
            let mixed = ((right << 16 | key) ^ key << 3).wrapping_mul(0x9e37_79b1) >> 24;
            (left, right) = (right, left ^ mixed);
        }
        number = left << 8 | right;
        if number < count {
            return number;
        }
    }
}

/// The ports of one protocol in one namespace.
pub struct Ports {
    ports: BTreeMap<u16, Port>,
    /// All sockets that have a port, by it and by their own addresses.
    holders: BTreeMap<(u16, usize), Weak<Socket>>,
    /// A bit for each port that somebody has.
    used: Vec<u64>,
    /// A bit for each port of a connection that has lost its socket and is still to end, or may still be on the line. Who asks for any port
    /// gets another: with the same other end there would be two connections of one name.
    ending: Vec<u64>,
    /// How many ports of connections were asked for, as far as there are ports.
    next: u32,
    /// The key of their order.
    key: u64,
}

impl Ports {
    /// None is taken.
    pub fn new() -> Result<Self> {
        let bits = || fallible::filled(0, 1024);
        let key = crate::random::number();
        Ok(Self {
            ports: BTreeMap::new(),
            holders: BTreeMap::new(),
            used: bits()?,
            ending: bits()?,
            next: 0,
            key,
        })
    }

    /// The ports that are not to be given away, 64 from this one's word.
    fn taken(&self, port: u16) -> u64 {
        let word = usize::from(port / 64);
        self.used[word] | self.ending[word]
    }

    /// A port that nobody has, at random. Those of connections come in an order that is secret, each again only after all others: the
    /// other end of the connection before may still be in TIME-WAIT, and `smoltcp`'s first sequence numbers are random, so that it would
    /// take every other new connection for an old packet, for seconds.
    fn free_port(&mut self, in_turn: bool) -> Option<u16> {
        let (first, last) = (*EPHEMERAL.start(), *EPHEMERAL.end());
        let count = u32::from(last - first) + 1;
        let start = if in_turn {
            self.next = (self.next + 1) % count;
            shuffled(self.next, count, self.key)
        } else {
            crate::random::number() as u32 % count
        };
        let mut step = 0;
        while step < count {
            let port = first + ((start + step) % count) as u16;
            // A word of the map at once where it is full.
            if port.is_multiple_of(64) && self.taken(port) == u64::MAX {
                step += 64.min(u32::from(last - port) + 1);
                continue;
            }
            if self.taken(port) >> (port % 64) & 1 == 0 {
                return Some(port);
            }
            step += 1;
        }
        None
    }

    fn add(&mut self, claim: &Claim, socket: &Weak<Socket>) {
        let number = claim.at.port();
        self.holders.insert((number, socket.as_ptr().addr()), socket.clone());
        let port = self.ports.entry(number).or_default();
        port.groups.entry((claim.at.ip(), claim.dual)).or_default().counts.add(claim);
        for family in families(claim) {
            port.families[family].add(claim);
        }
        self.used[usize::from(number / 64)] |= 1 << (number % 64);
    }

    fn group(&mut self, claim: &Claim) -> Option<&mut Group> {
        self.ports.get_mut(&claim.at.port())?.groups.get_mut(&(claim.at.ip(), claim.dual))
    }
}

impl Protocol {
    fn ports(self, of: &NetNamespace) -> &SpinLock<Ports> {
        match self {
            Self::Tcp => &of.tcp,
            Self::Udp => &of.udp,
        }
    }
}

/// What a port is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// bind(2), or datagrams from anywhere.
    Address,
    /// A connection to another place.
    Connect,
    /// A connection that a listener has accepted: its port is the listener's already.
    Accept,
}

/// Takes a port; port 0 is any. `EADDRINUSE`.
pub fn claim(
    of: &NetNamespace,
    protocol: Protocol,
    mut claim: Claim,
    purpose: Purpose,
    socket: &Weak<Socket>,
) -> Result<Claim> {
    // The nodes of two maps.
    reserve::ask(ENTRY)?;
    let mut ports = protocol.ports(of).lock();
    if claim.at.port() == 0 {
        claim.at.set_port(ports.free_port(purpose == Purpose::Connect).ok_or(Errno::EADDRINUSE)?);
    } else if purpose != Purpose::Accept
        && ports.ports.get(&claim.at.port()).is_some_and(|port| !port.admits(&claim))
    {
        return Err(Errno::EADDRINUSE);
    }
    ports.add(&claim, socket);
    Ok(claim)
}

/// Gives back what [`claim`] took; `socket` receives nothing any more.
pub fn release(protocol: Protocol, claim: &Claim, socket: &Socket) {
    stop_receiving(protocol, claim, socket);
    let mut ports = protocol.ports(&socket.network).lock();
    let number = claim.at.port();
    let holder = ports.holders.remove(&(number, core::ptr::from_ref(socket).addr()));
    let Some(port) = ports.ports.get_mut(&number) else { return };
    for family in families(claim) {
        port.families[family].remove(claim);
    }
    let key = (claim.at.ip(), claim.dual);
    let Some(group) = port.groups.get_mut(&key) else { return };
    group.counts.remove(claim);
    let group = if group.counts.all == 0 { port.groups.remove(&key) } else { None };
    let empty = port.groups.is_empty();
    let port = if empty { ports.ports.remove(&number) } else { None };
    if empty {
        ports.used[usize::from(number / 64)] &= !(1 << (number % 64));
    }
    drop(ports);
    // Their memory is freed without the lock.
    drop((group, port, holder));
}

/// Whether a connection has `port` that may outlive its socket; see [`Ports::ending`].
pub fn keep(of: &NetNamespace, port: u16, kept: bool) {
    let mut ports = Protocol::Tcp.ports(of).lock();
    let (word, bit) = (usize::from(port / 64), 1 << (port % 64));
    if kept {
        ports.ending[word] |= bit;
    } else {
        ports.ending[word] &= !bit;
    }
}

/// `socket` receives what comes to its address: it listens, or takes datagrams. `EADDRINUSE` for a second listener, unless all of
/// them share the port.
pub fn receive_at(protocol: Protocol, claim: &Claim, socket: &Arc<Socket>) -> Result<()> {
    let mut ports = protocol.ports(&socket.network).lock();
    let listens = protocol == Protocol::Tcp;
    let port = ports.ports.get_mut(&claim.at.port()).ok_or(Errno::EINVAL)?;
    if listens {
        let shares =
            |counts: &Counts| counts.listening == 0 || counts.may_share(claim) && counts.strict_port == 0;
        let ok = if claim.at.ip().is_unspecified() {
            families(claim).all(|family| shares(&port.families[family]))
        } else {
            receiving(claim.at.ip()).iter().filter_map(|key| port.groups.get(key)).all(|g| shares(&g.counts))
        };
        if !ok {
            return Err(Errno::EADDRINUSE);
        }
    }
    let group = port.groups.get_mut(&(claim.at.ip(), claim.dual)).ok_or(Errno::EINVAL)?;
    if group.receivers.len() >= MOST_RECEIVERS {
        return Err(Errno::EADDRINUSE);
    }
    group.receivers.try_push(Arc::downgrade(socket)).map_err(|_| Errno::ENOBUFS)?;
    if listens {
        group.counts.listening += 1;
        for family in families(claim) {
            port.families[family].listening += 1;
        }
    }
    Ok(())
}

/// `socket` receives nothing at its address any more.
pub fn stop_receiving(protocol: Protocol, claim: &Claim, socket: &Socket) {
    let mut ports = protocol.ports(&socket.network).lock();
    let Some(group) = ports.group(claim) else { return };
    let Some(index) = group.receivers.iter().position(|r| core::ptr::eq(r.as_ptr(), socket)) else { return };
    let receiver = group.receivers.swap_remove(index);
    if protocol == Protocol::Tcp {
        group.counts.listening -= 1;
        if let Some(port) = ports.ports.get_mut(&claim.at.port()) {
            for family in families(claim) {
                port.families[family].listening -= 1;
            }
        }
    }
    drop(ports);
    drop(receiver);
}

/// The sockets that may receive what comes for an address: those of the closest one that has any.
pub fn receivers(of: &NetNamespace, protocol: Protocol, to: SocketAddr) -> Result<Vec<Arc<Socket>>> {
    let ports = protocol.ports(of).lock();
    let Some(port) = ports.ports.get(&to.port()) else { return Ok(Vec::new()) };
    for key in receiving(to.ip()) {
        let Some(group) = port.groups.get(&key) else { continue };
        // One whose last reference goes at this moment is gone.
        let mut found = fallible::with_capacity(group.receivers.len())?;
        found.extend(group.receivers.iter().filter_map(Weak::upgrade));
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// Shows each socket that has a port in a namespace, as `/proc/net` lists them.
pub fn each_holder(of: &NetNamespace, protocol: Protocol, visit: &mut dyn FnMut(&Socket)) -> Result<()> {
    const BATCH: usize = 64;
    let mut next = (0, 0);
    loop {
        let mut found: [Option<Arc<Socket>>; BATCH] = [const { None }; BATCH];
        let mut count = 0;
        {
            let ports = protocol.ports(of).lock();
            for (key, socket) in ports.holders.range(next..).take(BATCH) {
                next = (key.0, key.1 + 1);
                found[count] = socket.upgrade();
                count += 1;
            }
        }
        found.iter().flatten().for_each(|socket| visit(socket));
        if count < BATCH {
            return Ok(());
        }
        crate::sched::cond_resched();
    }
}
