//! Sockets of the Unix domain: unix(7).
//!
//! Each socket has a queue of messages that it has received. A sender counts what it has under way against its own buffer; a message
//! gives that back when it is dropped. Connected sockets know each other weakly: a socket lives as long as its open file, or
//! as long as it waits in a listener's backlog.
//!
//! No two sockets' locks are held at once, but for `link`, which connects sockets that nobody else knows yet.

pub mod address;
mod connect;
pub mod list;
mod receive;
mod send;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use linux_raw_sys::{general as abi, ioctl, net};

use self::address::Address;
pub use self::connect::{max_backlog, set_max_backlog};
use super::message::{self, Message, Ucred};
use super::options::Options;
use super::turn::Turns;
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::{Events, File, FileOps, Kind as FileKind, Sink, Source};
use crate::memory::fallible::Text;
use crate::memory::reserve;
use crate::mm::uaccess::write_user;
use crate::namespaces::Network;
use crate::net::calls::Along;
use crate::net::inet::interface;
use crate::sched;
use crate::sync::{SpinLock, WaitQueue};

pub use connect::pair;

/// How a socket transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection of bytes.
    Stream,
    /// Messages without a connection; reliable here, and in order.
    Datagram,
    /// A connection of messages.
    SeqPacket,
}

impl Kind {
    /// From the type of socket(2), flags taken off.
    pub fn from_number(number: u32) -> Result<Self> {
        match number {
            net::SOCK_STREAM => Ok(Self::Stream),
            // Raw sockets of this domain are datagram sockets.
            net::SOCK_DGRAM | net::SOCK_RAW => Ok(Self::Datagram),
            net::SOCK_SEQPACKET => Ok(Self::SeqPacket),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }

    /// As SO_TYPE has it.
    pub fn number(self) -> u32 {
        match self {
            Self::Stream => net::SOCK_STREAM,
            Self::Datagram => net::SOCK_DGRAM,
            Self::SeqPacket => net::SOCK_SEQPACKET,
        }
    }
}

/// Where a socket stands.
enum Role {
    /// Not connected.
    Fresh,
    /// Waits for connections.
    Listening { backlog: usize, pending: VecDeque<Arc<Socket>> },
    /// Connected; for a datagram socket: has a default destination.
    Connected(Weak<Socket>),
    /// Was connected; the peer is gone.
    Orphaned,
}

struct State {
    role: Role,
    address: Option<Address>,
    /// The name in the file system. On a volume nothing else keeps the inode, which leads here.
    place: Option<Arc<Dentry>>,
    /// The address of the peer, as getpeername(2) gives it.
    peer_address: Option<Address>,
    peer_credentials: Ucred,
    receive_closed: bool,
    send_closed: bool,
    error: Option<Errno>,
    /// The open file is gone.
    released: bool,
}

/// A socket.
pub struct Socket {
    this: Weak<Socket>,
    /// How it transports.
    pub kind: Kind,
    /// Where its abstract name is, and those that it can find.
    pub(super) network: Network,
    state: SpinLock<State>,
    queue: SpinLock<VecDeque<Message>>,
    /// Bytes that the queue's messages count for.
    queued: AtomicUsize,
    /// Bytes of messages under way that this socket has sent.
    pub(super) in_flight: AtomicUsize,
    pub(super) options: SpinLock<Options>,
    /// Who reads a stream.
    reading: Turns,
    /// Woken when there is something to receive, to accept, or when nothing will come any more.
    readable: WaitQueue,
    /// Woken when this socket may send.
    pub(super) writable: WaitQueue,
    /// Woken when there is room in the queue or the backlog of this socket: for those who send to it.
    room: WaitQueue,
    /// Sockets connected to this one whose poll(2) found its queue full, by their addresses.
    held_up: SpinLock<BTreeMap<usize, Weak<Socket>>>,
    /// Of its open file, once it has one.
    inode: AtomicU64,
}

/// Datagrams that wait in a socket beyond which senders wait.
const QUEUE_LIMIT: usize = 10;

impl Socket {
    /// A new socket, not connected.
    pub fn new(kind: Kind) -> Result<Arc<Self>> {
        Self::of_network(kind, Network::current())
    }

    pub(super) fn of_network(kind: Kind, network: Network) -> Result<Arc<Self>> {
        let socket = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            kind,
            network,
            state: SpinLock::growing(State {
                role: Role::Fresh,
                address: None,
                place: None,
                peer_address: None,
                peer_credentials: Ucred::NOBODY,
                receive_closed: false,
                send_closed: false,
                error: None,
                released: false,
            }),
            queue: SpinLock::growing(VecDeque::new()),
            queued: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            options: SpinLock::new(Options::new()),
            reading: Turns::new(),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
            room: WaitQueue::new(),
            held_up: SpinLock::growing(BTreeMap::new()),
            inode: AtomicU64::new(0),
        });
        list::add(&socket)?;
        Ok(socket)
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

    pub(super) fn charge(&self, bytes: usize) {
        self.in_flight.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(super) fn discharge(&self, bytes: usize) {
        self.in_flight.fetch_sub(bytes, Ordering::SeqCst);
        self.writable.wake_all();
    }

    /// The peer, while there is one.
    fn peer(&self) -> Option<Arc<Socket>> {
        match &self.state.lock().role {
            Role::Connected(peer) => peer.upgrade(),
            _ => None,
        }
    }

    /// Its own address.
    pub fn address(&self) -> Option<Address> {
        self.state.lock().address.clone()
    }

    /// getpeername(2).
    pub fn peer_address(&self) -> Result<Option<Address>> {
        let state = self.state.lock();
        match state.role {
            Role::Connected(_) | Role::Orphaned => Ok(state.peer_address.clone()),
            _ => Err(Errno::ENOTCONN),
        }
    }

    /// SO_PEERCRED.
    pub fn peer_credentials(&self) -> Ucred {
        self.state.lock().peer_credentials
    }

    /// Does SCM_CREDENTIALS come with each message?
    pub fn passes_credentials(&self) -> bool {
        self.options.lock().pass_credentials
    }

    /// SO_ERROR: the error that is pending, which is then no more.
    pub fn take_error(&self) -> Option<Errno> {
        self.state.lock().error.take()
    }

    /// Does it wait for connections?
    pub fn is_listening(&self) -> bool {
        matches!(self.state.lock().role, Role::Listening { .. })
    }

    /// Are there too many messages in the queue for a datagram more?
    fn is_full(&self) -> bool {
        self.queue.lock().len() > QUEUE_LIMIT
    }

    /// Something was taken from the queue or the backlog: there is room for one more.
    fn made_room(&self) {
        self.room.wake_one();
        let held_up = core::mem::take(&mut *self.held_up.lock());
        // One user may have many of them.
        for (number, (_, socket)) in held_up.into_iter().enumerate() {
            if let Some(socket) = socket.upgrade() {
                socket.writable.wake_all();
            }
            if number % 16 == 15 {
                sched::cond_resched();
            }
        }
    }

    /// Asks `peer`, whose queue is full, to tell this socket when there is room.
    fn ask_to_be_told(&self, peer: &Socket) -> Result<()> {
        /// An entry of the map, with its part of a node.
        const ENTRY: usize = 64;
        // One poll(2) may ask many.
        reserve::ask(ENTRY)?;
        peer.held_up.lock().insert(self.this.as_ptr().addr(), self.this.clone());
        Ok(())
    }

    /// `sender` is connected to this socket no longer.
    pub(super) fn forget_held_up(&self, sender: &Socket) {
        let forgotten = self.held_up.lock().remove(&core::ptr::from_ref(sender).addr());
        // Its memory may go with this, and does so without the lock.
        drop(forgotten);
    }

    /// Shows the files that wait in the queue, and in those of connections that were not accepted yet.
    pub(super) fn each_right(&self, visit: &mut dyn FnMut(&Arc<File>)) {
        /// Files, or messages without any, that are looked at in one hold of the queue's lock.
        const AT_ONCE: usize = 32;
        // From the end: nothing keeps anybody from taking a message without files, at the front, and the others move there. One may be
        // shown twice then, where somebody can receive it.
        let mut left = self.queue.lock().len();
        let mut shown = 0;
        while left > 0 {
            {
                let queue = self.queue.lock();
                for _ in 0..AT_ONCE {
                    let rights = left.checked_sub(1).and_then(|index| queue.get(index)).map(|m| &m.rights);
                    match rights.and_then(|rights| rights.as_ref()?.files().get(shown)) {
                        Some(file) => {
                            visit(file);
                            shown += 1;
                        }
                        None => (left, shown) = (left.saturating_sub(1), 0),
                    }
                }
            }
            sched::cond_resched();
        }
        self.each_pending(&mut |socket| socket.each_right(visit));
    }

    /// Shows the connections that were not accepted yet. Those that are accepted meanwhile are shown, too.
    fn each_pending(&self, visit: &mut dyn FnMut(&Arc<Socket>)) {
        // From the end: who is accepted leaves at the front, and the others move there.
        let mut index = match &self.state.lock().role {
            Role::Listening { pending, .. } => pending.len(),
            _ => 0,
        };
        while index > 0 {
            index -= 1;
            let socket = match &self.state.lock().role {
                Role::Listening { pending, .. } => pending.get(index).cloned(),
                _ => None,
            };
            if let Some(socket) = socket {
                visit(&socket);
            }
        }
    }

    /// Takes all messages out of the queue.
    fn take_messages(&self) -> VecDeque<Message> {
        let mut queue = self.queue.lock();
        self.queued.store(0, Ordering::SeqCst);
        core::mem::take(&mut *queue)
    }

    /// Takes the first message out of the queue.
    fn take_message(&self, queue: &mut VecDeque<Message>) -> Option<Message> {
        let message = queue.pop_front()?;
        self.queued.fetch_sub(message.charge(), Ordering::SeqCst);
        Some(message)
    }

    /// Drops what is in the queue, and in those of connections that were not accepted yet; says whether that was anything. Nobody can
    /// reach the socket any more.
    pub(super) fn empty(&self) -> bool {
        let messages = self.take_messages();
        let mut found = !messages.is_empty();
        drop(messages);
        self.each_pending(&mut |socket| found |= socket.empty());
        found
    }

    /// shutdown(2).
    pub fn shutdown(&self, receive: bool, send: bool) -> Result<()> {
        let peer = {
            let mut state = self.state.lock();
            state.receive_closed |= receive;
            state.send_closed |= send;
            match &state.role {
                Role::Connected(peer) => peer.upgrade(),
                _ => None,
            }
        };
        self.readable.wake_all();
        self.writable.wake_all();
        self.room.wake_all();
        if let Some(peer) = peer.filter(|_| self.kind != Kind::Datagram) {
            {
                let mut state = peer.state.lock();
                state.receive_closed |= send;
                state.send_closed |= receive;
            }
            peer.readable.wake_all();
            peer.writable.wake_all();
        }
        Ok(())
    }

    /// The open file is gone, or the listener of a connection that was never accepted.
    fn close(&self) {
        let (role, address, place) = {
            let mut state = self.state.lock();
            state.released = true;
            state.receive_closed = true;
            state.send_closed = true;
            (core::mem::replace(&mut state.role, Role::Fresh), state.address.take(), state.place.take())
        };
        // Its memory may go with this, and does so without the lock.
        drop(place);
        if let Some(address) = &address {
            address::release(self, address);
        }
        let unread = !self.take_messages().is_empty();
        match role {
            Role::Connected(peer) => match peer.upgrade() {
                Some(peer) if self.kind == Kind::Datagram => peer.forget_held_up(self),
                Some(peer) => peer.peer_closed(unread),
                None => {}
            },
            Role::Listening { pending, .. } => {
                for socket in pending {
                    socket.close_unaccepted();
                    // Each frees what it has received.
                    sched::cond_resched();
                }
            }
            _ => {}
        }
        // Senders find nobody.
        self.made_room();
        self.room.wake_all();
        self.readable.wake_all();
        self.writable.wake_all();
    }

    /// The listener is gone: the other side learns that its connection was never taken.
    fn close_unaccepted(&self) {
        let peer = self.peer();
        self.close();
        if let Some(peer) = peer {
            peer.state.lock().error = Some(Errno::ECONNRESET);
            peer.readable.wake_all();
        }
    }

    /// The peer has closed; `lost`: it had not read everything.
    fn peer_closed(&self, lost: bool) {
        {
            let mut state = self.state.lock();
            state.role = Role::Orphaned;
            state.receive_closed = true;
            state.send_closed = true;
            if lost {
                state.error = Some(Errno::ECONNRESET);
            }
        }
        self.readable.wake_all();
        self.writable.wake_all();
    }

    /// Bytes that FIONREAD reports: all of a stream, or the next message.
    fn available(&self) -> usize {
        let queue = self.queue.lock();
        match self.kind {
            Kind::Stream => queue.iter().map(|m| m.rest().len()).sum(),
            _ => queue.front().map_or(0, |m| m.bytes.len()),
        }
    }
}

impl FileOps for Socket {
    fn signals_readiness(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        let flags = if file.nonblocking() { net::MSG_DONTWAIT } else { 0 };
        self.receive(sink, flags).map(|r| r.count)
    }

    fn write_at(&self, file: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        let flags = if file.nonblocking() { net::MSG_DONTWAIT } else { 0 };
        self.send(source, flags, None, Along::default())
    }

    fn poll(&self, _: &File) -> Events {
        let mut events = Events::empty();
        let connection = self.kind != Kind::Datagram;
        let peer = {
            let state = self.state.lock();
            if state.error.is_some() {
                events |= Events::ERR;
            }
            if state.receive_closed {
                events |= Events::READABLE | Events::RDHUP;
                if state.send_closed {
                    events |= Events::HUP;
                }
            }
            match &state.role {
                Role::Listening { pending, .. } => {
                    if !pending.is_empty() {
                        events |= Events::READABLE;
                    }
                    return events;
                }
                Role::Fresh | Role::Orphaned if connection => {
                    events |= Events::HUP;
                    None
                }
                Role::Connected(peer) => peer.upgrade(),
                _ => None,
            }
        };
        if !self.queue.lock().is_empty() {
            events |= Events::READABLE;
        }
        let mut writable = self.in_flight.load(Ordering::SeqCst) * 4 <= self.options.lock().send_buffer;
        if !connection
            && writable
            && let Some(peer) = peer
            && peer.is_full()
        {
            // Asked to be told, then looked again: room that was made in between is seen. Who cannot be told later finds out by sending.
            writable = self.ask_to_be_told(&peer).is_err() || !peer.is_full();
        }
        if writable {
            events |= Events::WRITABLE;
        }
        events
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.readable);
        visit(&self.writable);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn kernel_bytes(&self) -> u64 {
        let queued = |socket: &Socket| socket.queued.load(Ordering::SeqCst);
        // Those that wait to be accepted count for the listener, with what they have received.
        let waiting: usize = match &self.state.lock().role {
            Role::Listening { pending, .. } => {
                pending.iter().map(|socket| 2 * size_of::<Socket>() + queued(socket)).sum()
            }
            _ => 0,
        };
        // Itself, what it has received, and what it has sent and nobody has received: either end may be gone, or be another's.
        let messages = queued(self) + self.in_flight.load(Ordering::SeqCst);
        (size_of::<Socket>() + waiting + messages) as u64
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        let value = match command {
            ioctl::FIONREAD if self.is_listening() => return Err(Errno::EINVAL),
            ioctl::FIONREAD => self.available(),
            ioctl::TIOCOUTQ => self.in_flight.load(Ordering::SeqCst),
            // if_nametoindex(3) asks a socket of this family first.
            _ => return interface::ioctl_of_devices(&self.network, command, argument),
        };
        write_user(argument, &(value as i32))?;
        Ok(0)
    }

    fn descriptor_closed(&self, file: &File) -> Option<fn()> {
        // Only messages may refer to it now, perhaps those that wait in itself: then nothing else ends it.
        message::is_on_its_way(file).then_some(message::socket_closed)
    }

    fn release(&self, _: &File) {
        self.close();
        message::socket_closed();
    }

    fn describe(&self, _: &File, out: &mut Text) {
        let rights: usize =
            self.queue.lock().iter().filter_map(|m| m.rights.as_ref()).map(|r| r.files().len()).sum();
        // Writing to a string does not fail.
        let _ = writeln!(out, "scm_fds: {rights}");
    }
}
