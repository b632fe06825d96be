//! Binding, listening, connecting, accepting.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::address::{self, Address, Given};
use super::{Kind, Role, Socket};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::net::message::Ucred;
use crate::net::options::{deadline, wait_error};

static MAX_BACKLOG: AtomicUsize = AtomicUsize::new(4096);

/// The largest backlog: `net.core.somaxconn`.
pub fn max_backlog() -> usize {
    // Relaxed, here and below: a number by itself.
    MAX_BACKLOG.load(Ordering::Relaxed)
}

/// Sets `net.core.somaxconn`, which counts for sockets that begin to listen afterwards.
pub fn set_max_backlog(connections: usize) -> Result<()> {
    if connections > i32::MAX as usize {
        return Err(Errno::EINVAL);
    }
    MAX_BACKLOG.store(connections, Ordering::Relaxed);
    Ok(())
}

/// Connects two sockets that nobody else knows yet.
fn link(a: &Arc<Socket>, b: &Arc<Socket>) {
    for (one, other) in [(a, b), (b, a)] {
        one.state.lock().role = Role::Connected(Arc::downgrade(other));
    }
}

/// socketpair(2).
pub fn pair(kind: Kind) -> Result<(Arc<Socket>, Arc<Socket>)> {
    let (a, b) = (Socket::new(kind)?, Socket::new(kind)?);
    link(&a, &b);
    let own = Ucred::current();
    for socket in [&a, &b] {
        socket.state.lock().peer_credentials = own;
    }
    Ok((a, b))
}

impl Socket {
    /// bind(2).
    pub fn bind(&self, given: Given) -> Result<()> {
        let socket = self.to_arc();
        if self.address().is_some() {
            return match given {
                // Asking for any name twice is no error.
                Given::Unnamed => Ok(()),
                _ => Err(Errno::EINVAL),
            };
        }
        let (address, place) = match given {
            Given::Unspecified => return Err(Errno::EINVAL),
            Given::Unnamed => (address::bind_any(&socket)?, None),
            Given::Named(address) => {
                let place = address::bind(&socket, &address)?;
                (address, place)
            }
        };
        let mut state = self.state.lock();
        if state.address.is_some() {
            drop(state);
            // Another thread was faster; an abstract name is given back, a path stays as it would in Linux.
            address::release(self, &address);
            return Err(Errno::EINVAL);
        }
        state.address = Some(address);
        state.place = place;
        Ok(())
    }

    /// Gives the socket a name of its own if it has none: senders with SO_PASSCRED can then be answered.
    pub(super) fn bind_if_passing(&self) -> Result<()> {
        if self.options.lock().pass_credentials && self.address().is_none() {
            self.bind(Given::Unnamed)?;
        }
        Ok(())
    }

    /// listen(2).
    pub fn listen(&self, backlog: i32) -> Result<()> {
        if self.kind == Kind::Datagram {
            return Err(Errno::EOPNOTSUPP);
        }
        let limit = usize::try_from(backlog).unwrap_or(usize::MAX).min(max_backlog());
        let own = Ucred::current();
        let mut state = self.state.lock();
        if state.address.is_none() {
            return Err(Errno::EINVAL);
        }
        match &mut state.role {
            Role::Listening { backlog, .. } => *backlog = limit,
            Role::Fresh => state.role = Role::Listening { backlog: limit, pending: VecDeque::new() },
            _ => return Err(Errno::EINVAL),
        }
        // Who connects sees who listens.
        state.peer_credentials = own;
        drop(state);
        self.room.wake_all();
        Ok(())
    }

    /// connect(2).
    pub fn connect(&self, given: Given, nonblocking: bool) -> Result<()> {
        match (self.kind, given) {
            (Kind::Datagram, Given::Unspecified) => {
                let old = {
                    let mut state = self.state.lock();
                    state.peer_address = None;
                    core::mem::replace(&mut state.role, Role::Fresh)
                };
                self.leave(old);
                Ok(())
            }
            (Kind::Datagram, Given::Named(address)) => self.connect_datagram(address),
            (_, Given::Named(address)) => self.connect_stream(&address, nonblocking),
            _ => Err(Errno::EINVAL),
        }
    }

    fn connect_datagram(&self, address: Address) -> Result<()> {
        self.bind_if_passing()?;
        let peer = address::find(&address, self.kind, &self.network)?;
        if !peer.accepts_from(self) {
            return Err(Errno::EPERM);
        }
        let old = {
            let mut state = self.state.lock();
            state.peer_address = Some(address);
            core::mem::replace(&mut state.role, Role::Connected(Arc::downgrade(&peer)))
        };
        self.leave(old);
        Ok(())
    }

    /// A datagram socket is not what `role` said any more.
    fn leave(&self, role: Role) {
        if let Role::Connected(peer) = role
            && let Some(peer) = peer.upgrade()
        {
            peer.forget_held_up(self);
            // Whoever polls looks at the new state.
            self.writable.wake_all();
        }
    }

    /// May `sender` send to this datagram socket? One that is connected itself only takes from its peer.
    pub(super) fn accepts_from(&self, sender: &Socket) -> bool {
        match &self.state.lock().role {
            Role::Connected(peer) => core::ptr::eq(peer.as_ptr(), sender),
            _ => true,
        }
    }

    fn connect_stream(&self, address: &Address, nonblocking: bool) -> Result<()> {
        self.bind_if_passing()?;
        let timeout = self.options.lock().send_timeout;
        let deadline = deadline(timeout);
        let server = Socket::of_network(self.kind, self.network.clone())?;
        let own = Ucred::current();
        loop {
            match &self.state.lock().role {
                Role::Fresh => {}
                Role::Listening { .. } => return Err(Errno::EINVAL),
                _ => return Err(Errno::EISCONN),
            }
            let listener = address::find(address, self.kind, &self.network)?;
            if let Some(result) = self.try_connect(&listener, &server, own) {
                if result.is_err() {
                    // A place that this thread was woken for is another's.
                    listener.room.wake_one();
                }
                return result;
            }
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            listener
                .room
                .wait_event(deadline, || (!listener.backlog_full()).then_some(()))
                .map_err(|e| wait_error(e, timeout))?;
        }
    }

    /// Connects to a listener through `server`, the socket that it will accept. `None`: its backlog is full. The sockets' locks are taken
    /// one after the other: this socket counts as connected first, and goes back if the listener does not take it.
    fn try_connect(&self, listener: &Arc<Socket>, server: &Arc<Socket>, own: Ucred) -> Option<Result<()>> {
        let (own_address, name) = (self.address(), listener.address());
        {
            let mut state = server.state.lock();
            state.role = Role::Connected(self.this.clone());
            state.peer_credentials = own;
            state.peer_address = own_address;
            state.address = name.clone();
        }
        {
            let mut state = self.state.lock();
            if !matches!(state.role, Role::Fresh) {
                return Some(Err(Errno::EISCONN));
            }
            state.role = Role::Connected(Arc::downgrade(server));
        }
        let taken = {
            let mut state = listener.state.lock();
            let closed = state.receive_closed;
            let credentials = state.peer_credentials;
            match &mut state.role {
                Role::Listening { .. } if closed => Some(Err(Errno::ECONNREFUSED)),
                Role::Listening { backlog, pending } if pending.len() > *backlog => None,
                Role::Listening { pending, .. } => Some(fallible::reserve_queue(pending, 1).map(|()| {
                    pending.push_back(server.clone());
                    credentials
                })),
                _ => Some(Err(Errno::ECONNREFUSED)),
            }
        };
        let mut state = self.state.lock();
        match taken {
            Some(Ok(credentials)) => {
                state.peer_credentials = credentials;
                state.peer_address = name;
                drop(state);
                // One thread takes it, however many wait.
                listener.readable.wake_one();
                self.writable.wake_all();
                Some(Ok(()))
            }
            Some(Err(error)) => {
                state.role = Role::Fresh;
                Some(Err(error))
            }
            None => {
                state.role = Role::Fresh;
                None
            }
        }
    }

    fn backlog_full(&self) -> bool {
        match &self.state.lock().role {
            Role::Listening { backlog, pending } => pending.len() > *backlog,
            _ => false,
        }
    }

    /// accept(2).
    pub fn accept(&self, nonblocking: bool) -> Result<Arc<Socket>> {
        if self.kind == Kind::Datagram {
            return Err(Errno::EOPNOTSUPP);
        }
        let timeout = self.options.lock().receive_timeout;
        let take = || -> Option<Result<Arc<Socket>>> {
            let mut state = self.state.lock();
            let closed = state.receive_closed;
            match &mut state.role {
                Role::Listening { pending, .. } => match pending.pop_front() {
                    Some(socket) => Some(Ok(socket)),
                    None => closed.then_some(Err(Errno::EINVAL)),
                },
                _ => Some(Err(Errno::EINVAL)),
            }
        };
        let socket = match take() {
            Some(result) => result?,
            None if nonblocking => return Err(Errno::EAGAIN),
            None => {
                self.readable.wait_event(deadline(timeout), take).map_err(|e| wait_error(e, timeout))??
            }
        };
        self.made_room();
        Ok(socket)
    }
}
