//! TCP and UDP between the processes of this machine: tcp(7), udp(7), ip(7), ipv6(7).
//!
//! There is one interface, the loopback, and nothing gets lost on it. So nothing is cut into packets: what is sent is put into
//! the queue of the socket that receives it, as in the Unix domain, and what a user sees of the protocols (states, resets, refusals,
//! ports) is kept by the two sockets. A packet stack would spend its time on checksums, windows and timers for a line that
//! needs none, and would hold buffers of fixed sizes under one lock.
//!
//! Connected sockets know each other weakly: a socket lives as long as its open file, or as long as it waits in a listener's backlog.
//! No two sockets' locks are held at once.

pub mod address;
pub mod ancillary;
mod calls;
pub mod card;
mod connect;
mod datagram;
pub mod interface;
mod options;
pub mod ports;
pub mod proc;
mod stream;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use linux_raw_sys::{general as abi, ioctl, net};

use self::address::Family;
pub use self::options::Flags;
use self::ports::{Claim, Protocol};
use self::stream::Bytes;
use super::calls::Along;
use super::options::Options;
use super::turn::Turns;
use crate::errno::{Errno, Result};
use crate::fs::{Events, File, FileOps, Kind as FileKind, Sink, Source};
use crate::mm::uaccess::write_user;
use crate::namespaces::Network;
use crate::sync::{SpinLock, WaitQueue};
use crate::{process, sched};

/// Where a stream socket stands. A datagram socket is idle, or has a default destination.
enum Role {
    /// Not connected.
    Idle,
    /// Waits for connections: some wait to be accepted, some for a place among these.
    Listening { backlog: usize, pending: VecDeque<Arc<Socket>>, waiting: VecDeque<Weak<Socket>> },
    /// Waits for a place in a listener's backlog.
    Connecting,
    /// Connected. The peer's file may be closed by now.
    Connected(Weak<Socket>),
    /// Was connected, and was reset, or both sides have closed.
    Closed,
}

/// What bind(2) has said of a socket's address. The rest is chosen by connect(2), and forgotten with the connection.
#[derive(Clone, Copy, Default)]
struct Fixed {
    ip: bool,
    port: bool,
}

struct State {
    role: Role,
    /// The port that is held, with the address that it was asked for with.
    claim: Option<Claim>,
    fixed: Fixed,
    /// The address that getsockname(2) gives.
    local: SocketAddr,
    /// The address that getpeername(2) gives.
    peer: Option<SocketAddr>,
    /// The peer sends no more, or this side does not want to hear more.
    receive_closed: bool,
    /// The peer has said that it sends no more.
    peer_finished: bool,
    send_closed: bool,
    /// A connect(2) that did not wait has come to its end, and was not told so.
    untold: bool,
    error: Option<Errno>,
    /// The open file is gone.
    released: bool,
}

/// A socket.
pub struct Socket {
    this: Weak<Socket>,
    family: Family,
    protocol: Protocol,
    /// Where its ports are, and the interfaces that it can send by.
    pub(super) network: Network,
    /// Who made it: what `/proc/net` says.
    uid: u32,
    /// Its inode; 0 without an open file.
    inode: AtomicU64,
    /// It waits to be accepted.
    waits: AtomicBool,
    state: SpinLock<State>,
    /// What a stream has received.
    bytes: SpinLock<Bytes>,
    /// What a datagram socket has received.
    datagrams: SpinLock<datagram::Queue>,
    options: SpinLock<Options>,
    flags: SpinLock<Flags>,
    /// Who reads a stream.
    reading: Turns,
    /// Woken when there is something to receive, to accept, or when nothing will come any more.
    readable: WaitQueue,
    /// Woken when this socket may send, and when it is connected.
    writable: WaitQueue,
}

/// The protocol of socket(2)'s type and protocol.
pub fn check_kind(kind: u32, protocol: i32) -> Result<Protocol> {
    let (tcp, udp) = (net::IPPROTO_TCP as i32, net::IPPROTO_UDP as i32);
    match kind {
        net::SOCK_STREAM if protocol == 0 || protocol == tcp => Ok(Protocol::Tcp),
        net::SOCK_DGRAM if protocol == 0 || protocol == udp => Ok(Protocol::Udp),
        net::SOCK_STREAM | net::SOCK_DGRAM => Err(Errno::EPROTONOSUPPORT),
        net::SOCK_RAW if protocol == 0 => Err(Errno::EPROTONOSUPPORT),
        net::SOCK_RAW => {
            let raw = Network::current().is_capable(abi::CAP_NET_RAW);
            // Nothing is made of packets here.
            Err(if raw { Errno::EPROTONOSUPPORT } else { Errno::EPERM })
        }
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

/// Errors of packets are not kept: nobody waits for one.
fn check_errors(flags: u32) -> Result<()> {
    if flags & net::MSG_ERRQUEUE != 0 { Err(Errno::EAGAIN) } else { Ok(()) }
}

impl Socket {
    /// A new socket of socket(2)'s domain, type and protocol.
    pub fn create(domain: u32, kind: u32, protocol: i32) -> Result<Arc<Self>> {
        let protocol = check_kind(kind, protocol)?;
        let family = if domain == net::AF_INET6 { Family::V6 } else { Family::V4 };
        let uid = process::current().credentials().euid;
        let options = Options::of_internet(protocol);
        Ok(Self::new(family, protocol, Network::current(), uid, options, Flags::default()))
    }

    fn new(
        family: Family,
        protocol: Protocol,
        network: Network,
        uid: u32,
        options: Options,
        flags: Flags,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            family,
            protocol,
            network,
            uid,
            inode: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            state: SpinLock::growing(State {
                role: Role::Idle,
                claim: None,
                fixed: Fixed::default(),
                local: SocketAddr::new(family.any(), 0),
                peer: None,
                receive_closed: false,
                peer_finished: false,
                send_closed: false,
                untold: false,
                error: None,
                released: false,
            }),
            bytes: SpinLock::growing(Bytes::default()),
            datagrams: SpinLock::growing(datagram::Queue::default()),
            options: SpinLock::new(options),
            flags: SpinLock::new(flags),
            reading: Turns::new(),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
        })
    }

    /// An open file for it. `flags`: `O_NONBLOCK`.
    pub fn into_file(self: Arc<Self>, flags: u32) -> Arc<File> {
        let file = File::anonymous(FileKind::Socket, "", self.clone(), abi::O_RDWR | flags & abi::O_NONBLOCK);
        // Relaxed: for people to read.
        self.inode.store(file.inode().ino, Ordering::Relaxed);
        file
    }

    fn to_arc(&self) -> Arc<Self> {
        self.this.upgrade().expect("a borrowed socket has an owner")
    }

    /// The peer of a connection, while its file is open.
    fn peer(&self) -> Option<Arc<Socket>> {
        match &self.state.lock().role {
            Role::Connected(peer) => peer.upgrade(),
            _ => None,
        }
    }

    /// SO_ERROR: the error that is pending, which is then no more.
    fn take_error(&self) -> Option<Errno> {
        self.state.lock().error.take()
    }

    fn wake(&self) {
        self.readable.wake_all();
        self.writable.wake_all();
    }

    /// Gives back the port. No lock is held.
    fn release_port(&self) {
        let claim = self.state.lock().claim.take();
        if let Some(claim) = claim {
            ports::release(self.protocol, &claim, self);
        }
    }

    /// The open file is gone, or the listener of a connection that was never accepted.
    fn close(&self, abort: bool) {
        // A port is free before anybody learns that its socket is closed.
        self.release_port();
        let finished;
        let role = {
            let mut state = self.state.lock();
            state.released = true;
            state.receive_closed = true;
            finished = core::mem::replace(&mut state.send_closed, true);
            core::mem::replace(&mut state.role, Role::Closed)
        };
        // Nothing is delivered any more: what is in the queue now was not read.
        let lost = {
            let bytes = core::mem::take(&mut *self.bytes.lock());
            bytes.len() > 0
        };
        let linger = self.options.lock().linger;
        let reset = abort || lost || linger[0] != 0 && linger[1] == 0;
        match role {
            Role::Connected(peer) if self.protocol == Protocol::Tcp => {
                if let Some(peer) = peer.upgrade() {
                    if reset {
                        peer.reset();
                    } else if !finished {
                        peer.finish();
                    }
                    // Who waits for room finds nobody.
                    peer.writable.wake_all();
                }
            }
            Role::Listening { pending, waiting, .. } => {
                for socket in pending {
                    socket.close(true);
                    // Each frees what it has received.
                    sched::cond_resched();
                }
                for socket in waiting.iter().filter_map(Weak::upgrade) {
                    socket.refuse(Errno::ECONNREFUSED);
                }
            }
            _ => {}
        }
        let datagrams = core::mem::take(&mut *self.datagrams.lock());
        drop(datagrams);
        self.wake();
    }

    /// The peer sends no more.
    fn finish(&self) {
        {
            let mut state = self.state.lock();
            state.peer_finished = true;
            state.receive_closed = true;
        }
        self.wake();
    }

    /// The peer has broken the connection off.
    fn reset(&self) {
        let old = {
            let mut state = self.state.lock();
            if !matches!(state.role, Role::Connected(_)) {
                return;
            }
            // Who was told that nothing comes any more learns that nobody reads any more.
            state.error = Some(if state.peer_finished { Errno::EPIPE } else { Errno::ECONNRESET });
            state.receive_closed = true;
            state.send_closed = true;
            core::mem::replace(&mut state.role, Role::Closed)
        };
        drop(old);
        self.wake();
    }
}

impl FileOps for Socket {
    fn signals_readiness(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        let flags = if file.nonblocking() { net::MSG_DONTWAIT } else { 0 };
        super::calls::Calls::receive(self, sink, flags).map(|r| r.count)
    }

    fn write_at(&self, file: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        let flags = if file.nonblocking() { net::MSG_DONTWAIT } else { 0 };
        super::calls::Calls::send(self, source, flags, None, Along::default())
    }

    fn poll(&self, _: &File) -> Events {
        match self.protocol {
            Protocol::Tcp => self.poll_stream(),
            Protocol::Udp => self.poll_datagram(),
        }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.readable);
        visit(&self.writable);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn kernel_bytes(&self) -> u64 {
        // Those that wait to be accepted count for the listener, with what they have received; their other ends may be gone.
        let waiting = match &self.state.lock().role {
            Role::Listening { pending, waiting, .. } => {
                let queued: usize = pending.iter().map(|socket| socket.bytes.lock().held()).sum();
                size_of::<Socket>() * (pending.len() + waiting.len()) + queued
            }
            _ => 0,
        };
        let queued = self.bytes.lock().held() + self.datagrams.lock().held();
        (size_of::<Socket>() + waiting + queued) as u64
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        let value = match command {
            ioctl::FIONREAD => match self.protocol {
                Protocol::Tcp if matches!(self.state.lock().role, Role::Listening { .. }) => {
                    return Err(Errno::EINVAL);
                }
                Protocol::Tcp => self.bytes.lock().len(),
                Protocol::Udp => self.datagrams.lock().next_len(),
            },
            // What was sent has arrived: nothing waits here.
            ioctl::TIOCOUTQ => 0,
            _ => return interface::ioctl(&self.network, command, argument),
        };
        write_user(argument, &(value as i32))?;
        Ok(0)
    }

    fn release(&self, _: &File) {
        self.close(false);
    }
}
