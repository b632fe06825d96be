//! TCP over the card: connections between a user's socket, by its stand-in, and one of `smoltcp`'s.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, SocketBuffer, State as Tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpEndpoint, Ipv4Packet, TcpPacket};

use super::neighbours::Neighbours;
use super::worker::{self, BUDGET, Bell, now};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::namespaces::Network;
use crate::net::inet::options::Flags;
use crate::net::inet::ports::{self, Protocol};
use crate::net::inet::{Role, Socket, address::Family};
use crate::net::options::Options;
use crate::sched;
use crate::sync::{SpinLock, Watcher};

/// Connections at once, those that begin and end among them.
pub const MOST: usize = 512;
/// Connections that have only begun.
const MOST_ARRIVING: usize = 128;
/// Connections that users have asked for and the thread has not begun.
const MOST_ASKED: usize = 512;
/// Bytes that `smoltcp` holds of a connection, in each direction.
const BUFFER: usize = 64 * 1024;
/// Bytes that go to a user at once.
const PIECE: usize = 16 * 1024;

/// How long a machine may say nothing: one that is asked for a connection, and one that owes an answer; as on Linux.
const CONNECT_LIMIT: Duration = Duration::from_secs(130);
const ANSWER_LIMIT: Duration = Duration::from_secs(900);
const ARRIVE_LIMIT: Duration = Duration::from_secs(60);
/// How long the other side may take to say its last once nobody listens here; as on Linux.
const ORPHAN_LIMIT: Duration = Duration::from_secs(60);

/// A user's wish for a connection.
struct Asked {
    uid: u32,
    user: Weak<Socket>,
    local: SocketAddrV4,
    remote: SocketAddrV4,
}

static ASKED: SpinLock<VecDeque<Asked>> = SpinLock::growing(VecDeque::new());

/// Begins a connection of `user`, which waits for it, with another machine.
pub fn connect(user: &Arc<Socket>, local: SocketAddrV4, remote: SocketAddrV4) -> Result<()> {
    {
        let mut asked = ASKED.lock();
        // As many as are left for others.
        let own = asked.iter().filter(|wish| wish.uid == user.uid).count();
        if own >= MOST_ASKED - asked.len() {
            return Err(Errno::ENOBUFS);
        }
        fallible::reserve_queue(&mut asked, 1).map_err(|_| Errno::ENOBUFS)?;
        asked.push_back(Asked { uid: user.uid, user: Arc::downgrade(user), local, remote });
    }
    worker::wake();
    Ok(())
}

/// How far a connection is.
enum Phase {
    /// Another machine has asked for it, then, and has not yet heard our answer.
    Arriving(Instant),
    /// It waits for a place in the listener's backlog.
    Waiting,
    /// A user has asked for it, then.
    Asking(Weak<Socket>, Instant),
    /// Both sides are connected.
    Open,
    /// It has come to its end here; the other side is still to be told.
    Ending,
}

/// A connection.
struct Stream {
    tcp: SocketHandle,
    /// The user who listens, or has asked for it.
    uid: u32,
    local: SocketAddrV4,
    remote: SocketAddrV4,
    phase: Phase,
    stand_in: Arc<Socket>,
    /// The user was told that nothing comes any more.
    finished: bool,
    /// Since when there is no user, or since the other side last took something of what there was.
    orphan: Option<Instant>,
    /// Since when the other side owes an answer to our end, or as above.
    closed: Option<Instant>,
    /// Bytes that it had yet to take when it was last looked.
    untaken: usize,
    /// Since when the other side is asked now and then whether it is there.
    kept: Option<Instant>,
}

/// All connections.
pub struct Streams {
    list: Vec<Stream>,
    bell: Arc<dyn Watcher>,
    /// Memory was short for somebody: to be tried again.
    held_up: bool,
    /// A socket for the frame that is looked at was added.
    admitted: bool,
}

fn endpoint(at: SocketAddrV4) -> IpEndpoint {
    IpEndpoint::new((*at.ip()).into(), at.port())
}

/// Who wants to connect to whom, when a segment asks for that.
fn wish(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    let asks = tcp.syn() && !tcp.ack() && !tcp.rst();
    asks.then(|| {
        let from = SocketAddrV4::new(packet.src_addr(), tcp.src_port());
        (from, SocketAddrV4::new(packet.dst_addr(), tcp.dst_port()))
    })
}

/// A socket of `smoltcp`'s. `ENOBUFS`.
fn new_tcp(limit: Duration) -> Result<tcp::Socket<'static>> {
    let buffer = || fallible::filled(0, BUFFER).map(SocketBuffer::new).map_err(|_| Errno::ENOBUFS);
    let mut socket = tcp::Socket::new(buffer()?, buffer()?);
    socket.set_timeout(Some(limit));
    // Who sends little at a time waits for the answer anyway.
    socket.set_nagle_enabled(false);
    Ok(socket)
}

impl Streams {
    pub fn new() -> Result<Self> {
        let list = fallible::with_capacity(MOST)?;
        Ok(Self { list, bell: Arc::new(Bell), held_up: false, admitted: false })
    }

    /// There are no connections.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Memory was short.
    pub fn is_held_up(&self) -> bool {
        self.held_up
    }

    fn find(&self, local: SocketAddrV4, remote: SocketAddrV4) -> Option<usize> {
        self.list.iter().position(|stream| stream.local == local && stream.remote == remote)
    }

    /// Whether the addresses are free for a new connection. One that only waits for what may still be on the line gives them up: the other end
    /// has closed it, and a new one begins at another sequence number.
    fn is_free(
        &mut self,
        local: SocketAddrV4,
        remote: SocketAddrV4,
        sockets: &mut SocketSet<'static>,
    ) -> bool {
        let Some(index) = self.find(local, remote) else { return true };
        let stream = &mut self.list[index];
        let socket = sockets.get_mut::<tcp::Socket>(stream.tcp);
        if socket.state() != Tcp::TimeWait {
            return false;
        }
        stream.end(socket);
        self.remove(index, sockets);
        true
    }

    /// A socket of the kernel's own that stands for the other machine's.
    fn stand_in(&self, local: SocketAddrV4, remote: SocketAddrV4) -> Result<Arc<Socket>> {
        let options = Options::of_internet(Protocol::Tcp);
        let socket = Socket::new(Family::V4, Protocol::Tcp, Network::FIRST, 0, options, Flags::default());
        {
            let mut state = socket.state.lock();
            state.local = SocketAddr::V4(remote);
            state.peer = Some(SocketAddr::V4(local));
        }
        socket.readable.add_watcher(self.bell.clone())?;
        socket.writable.add_watcher(self.bell.clone())?;
        Ok(socket)
    }

    fn add(
        &mut self,
        sockets: &mut SocketSet<'static>,
        socket: tcp::Socket<'static>,
        uid: u32,
        local: SocketAddrV4,
        remote: SocketAddrV4,
        phase: Phase,
    ) -> Result<()> {
        let stand_in = self.stand_in(local, remote)?;
        ports::keep(&Network::FIRST, local.port(), true);
        let tcp = sockets.add(socket);
        self.list.push(Stream {
            tcp,
            uid,
            local,
            remote,
            phase,
            stand_in,
            finished: false,
            orphan: None,
            closed: None,
            untaken: 0,
            kept: None,
        });
        Ok(())
    }

    /// Looks at a segment before `smoltcp` does: for one that asks a listener for a connection there is a socket then. False when it is to
    /// be thrown away, because there are too many.
    pub fn admit(&mut self, packet: &[u8], sockets: &mut SocketSet<'static>) -> bool {
        let Some((remote, local)) = wish(packet) else { return true };
        // A socket that listens takes the next segment that asks, whoever sends it.
        self.drop_listening(sockets);
        if self.find(local, remote).is_some() {
            return true;
        }
        let uid = match ports::receivers(&Network::FIRST, Protocol::Tcp, SocketAddr::V4(local)) {
            Ok(listeners) => match listeners.first() {
                Some(listener) => listener.uid,
                // Nobody listens: the answer is a reset.
                None => return true,
            },
            Err(_) => return false,
        };
        self.limit_arriving(sockets);
        if !self.make_room(uid, sockets) {
            return false;
        }
        let Ok(mut socket) = new_tcp(ARRIVE_LIMIT) else { return false };
        self.admitted = socket.listen(endpoint(local)).is_ok()
            && self.add(sockets, socket, uid, local, remote, Phase::Arriving(now())).is_ok();
        self.admitted
    }

    /// The segment for which [`Streams::admit`] has added a socket was looked at: if it was not taken, the socket goes.
    pub fn after_frame(&mut self, sockets: &mut SocketSet<'static>) {
        if core::mem::take(&mut self.admitted) {
            self.drop_listening(sockets);
        }
    }

    /// Takes out connections that were taken back before they were there.
    fn drop_listening(&mut self, sockets: &mut SocketSet<'static>) {
        let mut index = 0;
        while let Some(stream) = self.list.get(index) {
            let arriving = matches!(stream.phase, Phase::Arriving(_));
            if arriving && sockets.get::<tcp::Socket>(stream.tcp).state() == Tcp::Listen {
                self.remove(index, sockets);
                sched::cond_resched();
            } else {
                index += 1;
            }
        }
    }

    /// Who asks for connections and does not go on gives way to the next: of too many the oldest goes.
    fn limit_arriving(&mut self, sockets: &mut SocketSet<'static>) {
        let (mut count, mut oldest) = (0, None);
        for (index, stream) in self.list.iter().enumerate() {
            if let Phase::Arriving(since) = stream.phase {
                count += 1;
                oldest = oldest.into_iter().chain([(since, index)]).min();
            }
        }
        if count >= MOST_ARRIVING
            && let Some((_, index)) = oldest
        {
            self.remove(index, sockets);
        }
    }

    fn remove(&mut self, index: usize, sockets: &mut SocketSet<'static>) {
        let stream = self.list.swap_remove(index);
        drop(sockets.remove(stream.tcp));
        let port = stream.local.port();
        if self.list.iter().all(|other| other.local.port() != port) {
            ports::keep(&Network::FIRST, port, false);
        }
    }

    /// Makes sure that there is room for one more of a user's, who may have as many as are left for others. The place
    /// of one that only waits for what may still be on the line is free. False without room.
    fn make_room(&mut self, uid: u32, sockets: &mut SocketSet<'static>) -> bool {
        let (mut used, mut own, mut waits) = (0, 0, None);
        for (index, stream) in self.list.iter().enumerate() {
            if sockets.get::<tcp::Socket>(stream.tcp).state() == Tcp::TimeWait {
                waits = Some(index);
                continue;
            }
            used += 1;
            own += usize::from(stream.uid == uid);
        }
        if own >= MOST - used {
            return false;
        }
        if self.list.len() < MOST {
            return true;
        }
        let Some(index) = waits else { return false };
        let stream = &mut self.list[index];
        stream.end(sockets.get_mut::<tcp::Socket>(stream.tcp));
        self.remove(index, sockets);
        true
    }

    /// Begins what users have asked for.
    pub fn begin(&mut self, interface: &mut Interface, sockets: &mut SocketSet<'static>) {
        for _ in 0..BUDGET {
            sched::cond_resched();
            // The lock goes at the end of the statement.
            let asked = ASKED.lock().pop_front();
            let Some(asked) = asked else { return };
            let Some(user) = asked.user.upgrade() else { continue };
            let (local, remote) = (asked.local, asked.remote);
            let result = if !self.make_room(user.uid, sockets) {
                Err(Errno::ENOBUFS)
            } else if !self.is_free(local, remote, sockets) {
                Err(Errno::EADDRNOTAVAIL)
            } else {
                new_tcp(CONNECT_LIMIT).and_then(|mut socket| {
                    socket
                        .connect(interface.context(), endpoint(remote), endpoint(local))
                        .map_err(|_| Errno::EADDRNOTAVAIL)?;
                    let phase = Phase::Asking(asked.user, now());
                    self.add(sockets, socket, user.uid, local, remote, phase)
                })
            };
            if let Err(error) = result {
                user.refuse(error);
            }
        }
        // The rest is for the next round: others have their turn.
        worker::wake();
    }

    /// A machine on the line does not answer: who asks it for a connection, or others by it, is told.
    pub fn lose(&mut self, absent: Ipv4Addr, neighbours: &Neighbours, sockets: &mut SocketSet<'static>) {
        let mut index = 0;
        while let Some(stream) = self.list.get(index) {
            match &stream.phase {
                Phase::Asking(user, _) if neighbours.hop(*stream.remote.ip()) == Some(absent) => {
                    let user = user.upgrade();
                    self.remove(index, sockets);
                    sched::cond_resched();
                    if let Some(user) = user {
                        user.refuse(Errno::EHOSTUNREACH);
                    }
                }
                _ => index += 1,
            }
        }
    }

    /// Moves what can be moved, in all connections.
    pub fn serve(&mut self, sockets: &mut SocketSet<'static>) {
        self.held_up = false;
        let now = now();
        let mut index = 0;
        while let Some(stream) = self.list.get_mut(index) {
            sched::cond_resched();
            let tcp = sockets.get_mut::<tcp::Socket>(stream.tcp);
            match stream.serve(tcp, now) {
                Ok(true) => index += 1,
                Ok(false) => self.remove(index, sockets),
                Err(_) => {
                    self.held_up = true;
                    index += 1;
                }
            }
        }
    }
}

/// There is nothing left of it: it ended, and the other side was told.
fn is_over(tcp: &tcp::Socket<'_>) -> bool {
    tcp.state() == Tcp::Closed && tcp.local_endpoint().is_none()
}

impl Stream {
    /// One connection's round; false when it is over. An error: memory is short.
    fn serve(&mut self, tcp: &mut tcp::Socket<'static>, now: Instant) -> Result<bool> {
        match &self.phase {
            Phase::Arriving(_) => self.arrive(tcp),
            Phase::Waiting => self.wait(tcp),
            Phase::Asking(user, since) => {
                let (user, since) = (user.upgrade(), *since);
                self.ask(tcp, user, now - since);
            }
            Phase::Open | Phase::Ending => {}
        }
        if matches!(self.phase, Phase::Open) {
            self.exchange(tcp, now)?;
        }
        Ok(!(matches!(self.phase, Phase::Ending) && is_over(tcp)))
    }

    /// Breaks it off.
    fn abort(&mut self, tcp: &mut tcp::Socket<'_>) {
        tcp.abort();
        self.phase = Phase::Ending;
    }

    fn arrive(&mut self, tcp: &mut tcp::Socket<'_>) {
        match tcp.state() {
            Tcp::SynReceived => {}
            // The other side took it back.
            Tcp::Listen | Tcp::Closed => self.abort(tcp),
            // Who is told to the listener is who has answered.
            _ if tcp.remote_endpoint() != Some(endpoint(self.remote))
                || tcp.local_endpoint() != Some(endpoint(self.local)) =>
            {
                self.abort(tcp);
            }
            _ => {
                tcp.set_timeout(Some(ANSWER_LIMIT));
                self.stand_in.state.lock().role = Role::Connecting;
                match self.stand_in.request(SocketAddr::V4(self.local)) {
                    Ok(()) => {
                        self.phase = Phase::Waiting;
                        self.wait(tcp);
                    }
                    Err(_) => self.abort(tcp),
                }
            }
        }
    }

    fn wait(&mut self, tcp: &mut tcp::Socket<'_>) {
        let is_connected = match self.stand_in.state.lock().role {
            Role::Connecting => None,
            Role::Connected(_) => Some(true),
            _ => Some(false),
        };
        match is_connected {
            Some(true) => self.phase = Phase::Open,
            Some(false) => self.abort(tcp),
            None if tcp.state() == Tcp::Closed => {
                // Who would let it in finds that it waits no more.
                self.stand_in.state.lock().role = Role::Closed;
                self.phase = Phase::Ending;
            }
            None => {}
        }
    }

    fn ask(&mut self, tcp: &mut tcp::Socket<'_>, user: Option<Arc<Socket>>, waited: Duration) {
        let waits = |user: &Arc<Socket>| matches!(user.state.lock().role, Role::Connecting);
        let Some(user) = user.filter(waits) else { return self.abort(tcp) };
        match tcp.state() {
            Tcp::SynSent | Tcp::SynReceived => {}
            Tcp::Closed => {
                user.refuse(if waited >= CONNECT_LIMIT { Errno::ETIMEDOUT } else { Errno::ECONNREFUSED });
                self.phase = Phase::Ending;
            }
            _ => {
                tcp.set_timeout(Some(ANSWER_LIMIT));
                self.stand_in.state.lock().role = Role::Connected(Arc::downgrade(&user));
                let connected = {
                    let mut state = user.state.lock();
                    let waits = matches!(state.role, Role::Connecting);
                    if waits {
                        state.role = Role::Connected(Arc::downgrade(&self.stand_in));
                    }
                    waits
                };
                if !connected {
                    return self.abort(tcp);
                }
                user.wake();
                self.phase = Phase::Open;
            }
        }
    }

    /// Moves data both ways.
    fn exchange(&mut self, tcp: &mut tcp::Socket<'_>, now: Instant) -> Result<()> {
        if !matches!(self.stand_in.state.lock().role, Role::Connected(_)) {
            // The user has broken it off.
            self.abort(tcp);
            return Ok(());
        }
        let user = self.stand_in.peer();
        if let Some(user) = &user {
            if !self.receive(tcp, user)? {
                self.abort(tcp);
                return Ok(());
            }
            if !self.finished && !tcp.may_recv() && tcp.state() != Tcp::Closed {
                self.finished = true;
                user.finish();
            }
        } else if tcp.can_recv() {
            // Nobody will read it.
            self.abort(tcp);
            return Ok(());
        }
        // Looked at first: all that the user has sent before it is there then.
        let finished = self.stand_in.state.lock().peer_finished;
        self.send(tcp);
        let waiting = self.stand_in.bytes.lock().len();
        let done = finished && waiting == 0;
        let untaken = tcp.send_queue() + waiting;
        if untaken < core::mem::replace(&mut self.untaken, untaken) {
            // However slowly it takes what was sent to it, it gets it all.
            (self.orphan, self.closed) = (None, None);
        }
        if tcp.state() == Tcp::Closed {
            // Broken off by the other side, or by its silence, or at an end in order.
            if let Some(user) = user.filter(|_| !(done && self.finished)) {
                user.reset();
            }
            self.phase = Phase::Ending;
            return Ok(());
        }
        if done {
            tcp.close();
            let since = *self.closed.get_or_insert(now);
            let owes = matches!(tcp.state(), Tcp::FinWait1 | Tcp::Closing | Tcp::LastAck);
            if owes && now - since >= ANSWER_LIMIT {
                self.abort(tcp);
                return Ok(());
            }
        }
        self.set_limits(tcp, user.as_deref(), now);
        if user.is_none_or(|user| user.state.lock().released) {
            let since = *self.orphan.get_or_insert(now);
            if now - since >= ORPHAN_LIMIT {
                self.abort(tcp);
            }
        }
        Ok(())
    }

    /// Sets how long the other side may be silent: while it owes an answer, or if it is asked whether it is there.
    fn set_limits(&mut self, tcp: &mut tcp::Socket<'_>, user: Option<&Socket>, now: Instant) {
        /// Questions in that time.
        const QUESTIONS: u32 = 10;
        let keeps = |user: &&Socket| user.options.lock().keep_alive;
        let kept = user.filter(keeps).map(|user| Duration::from_secs(user.flags.lock().keep_alive()));
        let interval = kept.map(|limit| limit / QUESTIONS);
        if tcp.keep_alive() != interval {
            tcp.set_keep_alive(interval);
            self.kept = interval.map(|_| now);
        }
        // `smoltcp` counts from what came last, which may be long ago when nobody has anything to say.
        let limit = kept.filter(|limit| self.kept.is_some_and(|since| now - since >= *limit));
        tcp.set_timeout(if tcp.send_queue() > 0 { Some(ANSWER_LIMIT) } else { limit });
    }

    /// TCP is done with it: what has come goes to the user, and the end.
    fn end(&mut self, tcp: &mut tcp::Socket<'_>) {
        let Some(user) = self.stand_in.peer() else { return };
        match self.receive(tcp, &user) {
            Ok(true) if tcp.can_recv() => user.reset(),
            Ok(true) if !self.finished => user.finish(),
            Ok(true) => {}
            _ => user.reset(),
        }
    }

    /// What has come goes to the user; false when nobody is there who could read it.
    fn receive(&self, tcp: &mut tcp::Socket<'_>, user: &Arc<Socket>) -> Result<bool> {
        while tcp.can_recv() {
            // TCP keeps what came before the other side's end for some seconds only. The user may read as slowly as ever: it goes to him, a
            // buffer of TCP's more than there is room for.
            let last = matches!(tcp.state(), Tcp::CloseWait | Tcp::Closing | Tcp::LastAck | Tcp::TimeWait);
            let window = self.stand_in.window(user).saturating_sub(user.bytes.lock().held());
            let room = if last { PIECE } else { window };
            if room == 0 {
                break;
            }
            let Ok(bytes) = tcp.peek(room.min(PIECE)) else { break };
            let piece = fallible::copy_of(bytes)?;
            let count = piece.len();
            if !self.stand_in.deliver(user, piece)? {
                return Ok(false);
            }
            // It is the user's now.
            let taken = tcp.recv(|bytes| (count.min(bytes.len()), ()));
            if taken.is_err() || count == 0 {
                break;
            }
        }
        Ok(true)
    }

    /// What the user has sent goes to TCP.
    fn send(&self, tcp: &mut tcp::Socket<'_>) {
        let mut sent = false;
        while tcp.can_send() {
            let used = {
                let mut bytes = self.stand_in.bytes.lock();
                let part = bytes.part(0, PIECE);
                if part.is_empty() {
                    break;
                }
                match tcp.send_slice(part) {
                    Ok(count) if count > 0 => bytes.take(count),
                    _ => break,
                }
            };
            drop(used);
            sent = true;
        }
        if sent && let Some(user) = self.stand_in.peer() {
            user.writable.wake_all();
        }
    }
}
