//! Binding, listening, connecting, accepting.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::sync::atomic::Ordering;

use linux_raw_sys::general::CAP_NET_BIND_SERVICE;
use smallvec::SmallVec;

use super::address::{self, Family, Given};
use super::card;
use super::ports::{self, Claim, Protocol, Purpose};
use super::{Fixed, Role, Socket};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::net::options::{deadline, wait_error};
use crate::net::unix::max_backlog;
use crate::sched;
use crate::sync::WaitError;

impl Socket {
    /// bind(2).
    pub(super) fn bind(&self, given: Given) -> Result<()> {
        let at = match given {
            Given::Endpoint(at) => at,
            // For historic reasons this is the address of all interfaces for IPv4.
            Given::Unspecified if self.family == Family::V4 => SocketAddr::new(self.family.any(), 0),
            Given::Unspecified => return Err(Errno::EAFNOSUPPORT),
        };
        self.check_family(at.ip(), Errno::EINVAL)?;
        if !at.ip().is_unspecified() && !address::is_local(&self.network, at.ip()) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let privileged = || self.network.is_capable(CAP_NET_BIND_SERVICE);
        if (1..ports::FIRST_UNPRIVILEGED).contains(&at.port()) && !privileged() {
            return Err(Errno::EACCES);
        }
        self.bind_to(at, Purpose::Address)?;
        self.state.lock().fixed = Fixed { ip: !at.ip().is_unspecified(), port: at.port() != 0 };
        Ok(())
    }

    /// A socket that is not connected forgets what bind(2) has not fixed of its address.
    pub(super) fn forget_source(&self) {
        let claim = {
            let mut state = self.state.lock();
            if !matches!(state.role, Role::Idle) {
                return;
            }
            if !state.fixed.ip {
                state.local.set_ip(self.family.any());
            }
            if state.fixed.port { None } else { state.claim.take() }
        };
        if let Some(claim) = claim {
            ports::release(self.protocol, &claim, self);
            self.state.lock().local.set_port(0);
        }
    }

    /// A socket of IPv6 alone has nothing to do with addresses of IPv4.
    pub(super) fn check_family(&self, ip: IpAddr, error: Errno) -> Result<()> {
        let only = self.family == Family::V6 && self.flags.lock().only_v6;
        if only && ip.is_ipv4() { Err(error) } else { Ok(()) }
    }

    fn bind_to(&self, at: SocketAddr, purpose: Purpose) -> Result<()> {
        {
            let state = self.state.lock();
            if state.claim.is_some() || !matches!(state.role, Role::Idle) {
                return Err(Errno::EINVAL);
            }
        }
        let claim = ports::claim(&self.network, self.protocol, self.claim_of(at), purpose, &self.this)?;
        {
            let mut state = self.state.lock();
            if state.claim.is_some() || state.released {
                drop(state);
                // Another thread was faster.
                ports::release(self.protocol, &claim, self);
                return Err(Errno::EINVAL);
            }
            state.claim = Some(claim);
            state.local = claim.at;
        }
        match self.protocol {
            Protocol::Udp => ports::receive_at(self.protocol, &claim, &self.to_arc()).inspect_err(|_| {
                self.release_port();
                self.state.lock().local.set_port(0);
            }),
            Protocol::Tcp => Ok(()),
        }
    }

    fn claim_of(&self, at: SocketAddr) -> Claim {
        let options = self.options.lock();
        let dual = at.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !self.flags.lock().only_v6;
        Claim {
            at,
            dual,
            reuse_address: options.reuse_address,
            reuse_port: options.reuse_port,
            uid: self.uid,
        }
    }

    /// Takes any port if the socket has none.
    pub(super) fn bind_any(&self, ip: IpAddr) -> Result<()> {
        let ip = {
            let state = self.state.lock();
            if state.claim.is_some() {
                return Ok(());
            }
            if state.fixed.ip { state.local.ip() } else { ip }
        };
        // The ports of datagrams are to be guessed by nobody.
        let purpose = if self.protocol == Protocol::Tcp { Purpose::Connect } else { Purpose::Address };
        self.bind_to(SocketAddr::new(ip, 0), purpose).map_err(|error| match error {
            // As connect(2) and listen(2) say it.
            Errno::EADDRINUSE if self.protocol == Protocol::Tcp => Errno::EADDRNOTAVAIL,
            Errno::EADDRINUSE => Errno::EAGAIN,
            other => other,
        })
    }

    /// listen(2).
    pub(super) fn listen(&self, backlog: i32) -> Result<()> {
        if self.protocol == Protocol::Udp {
            return Err(Errno::EOPNOTSUPP);
        }
        let limit = usize::try_from(backlog).unwrap_or(usize::MAX).min(max_backlog());
        {
            let mut state = self.state.lock();
            match &mut state.role {
                Role::Listening { backlog, .. } => {
                    *backlog = limit;
                    drop(state);
                    self.admit_waiting();
                    return Ok(());
                }
                Role::Idle => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        self.bind_any(self.family.any())?;
        let claim = self.state.lock().claim.ok_or(Errno::EINVAL)?;
        {
            let mut state = self.state.lock();
            match state.role {
                Role::Idle => {}
                // Another thread was faster.
                _ => return Err(Errno::EINVAL),
            }
            state.role =
                Role::Listening { backlog: limit, pending: VecDeque::new(), waiting: VecDeque::new() };
        }
        ports::receive_at(self.protocol, &claim, &self.to_arc()).inspect_err(|_| {
            self.state.lock().role = Role::Idle;
        })
    }

    /// connect(2) of a stream.
    pub(super) fn connect_stream(&self, given: Given, nonblocking: bool) -> Result<()> {
        let to = match given {
            Given::Unspecified => return self.disconnect(),
            Given::Endpoint(to) => to,
        };
        {
            let mut state = self.state.lock();
            match state.role {
                Role::Idle if state.untold => {
                    state.untold = false;
                    let error = state.error.take().unwrap_or(Errno::ECONNABORTED);
                    drop(state);
                    self.forget_source();
                    return Err(error);
                }
                Role::Idle => {}
                Role::Connecting if nonblocking => return Err(Errno::EALREADY),
                Role::Connecting => {
                    drop(state);
                    return self.await_connection();
                }
                Role::Connected(_) if state.untold => {
                    state.untold = false;
                    return Ok(());
                }
                _ => return Err(Errno::EISCONN),
            }
        }
        self.check_family(to.ip(), Errno::ENETUNREACH)?;
        let to = address::route(&self.network, to)?;
        self.bind_any(address::source_for(&self.network, to.ip()))?;
        let outside = address::outside(&self.network, to);
        let local;
        {
            let mut state = self.state.lock();
            // Another thread may have connected it, or have broken that off.
            if !matches!(state.role, Role::Idle) || state.claim.is_none() {
                return Err(Errno::EALREADY);
            }
            if state.local.ip().is_unspecified() {
                state.local.set_ip(address::source_for(&self.network, to.ip()));
            }
            local = state.local;
            // An address of the machine alone leads nowhere else.
            if outside.is_some() && (local.ip().is_loopback() || !local.is_ipv4()) {
                return Err(Errno::EINVAL);
            }
            state.role = Role::Connecting;
            state.peer = Some(to);
            state.error = None;
            state.receive_closed = false;
            state.send_closed = false;
        }
        let started = match (outside, local) {
            (Some(to), SocketAddr::V4(local)) => card::connect(&self.to_arc(), local, to),
            _ => self.request(to),
        };
        if let Err(error) = started {
            self.refuse(error);
        }
        if nonblocking {
            // As on Linux, where the answer comes a moment later even from the same machine.
            self.state.lock().untold = true;
            return Err(Errno::EINPROGRESS);
        }
        self.await_connection()
    }

    /// Waits until it is decided whether the connection comes about.
    fn await_connection(&self) -> Result<()> {
        let timeout = self.options.lock().send_timeout;
        let decided = || {
            let mut state = self.state.lock();
            match state.role {
                Role::Connecting => None,
                Role::Connected(_) => {
                    state.untold = false;
                    Some(Ok(()))
                }
                _ => {
                    state.untold = false;
                    let error = state.error.take().unwrap_or(Errno::ECONNABORTED);
                    drop(state);
                    self.forget_source();
                    Some(Err(error))
                }
            }
        };
        let result = self.writable.wait_event(deadline(timeout), decided);
        result.map_err(|error| match error {
            WaitError::TimedOut => Errno::EINPROGRESS,
            // The attempt goes on; a second call waits for it.
            error => wait_error(error, timeout),
        })?
    }

    /// Finds a listener, and a place in its backlog or in the line for one. `ECONNREFUSED`.
    pub(super) fn request(&self, to: SocketAddr) -> Result<()> {
        let listeners = ports::receivers(&self.network, Protocol::Tcp, to)?;
        if listeners.is_empty() {
            return Err(Errno::ECONNREFUSED);
        }
        let choice = crate::random::number() as usize % listeners.len();
        let listener = &listeners[choice];
        let find = || {
            let mut state = listener.state.lock();
            match &mut state.role {
                Role::Listening { backlog, pending, .. } if pending.len() <= *backlog => Ok(true),
                Role::Listening { waiting, .. } => {
                    // Who would wait behind so many is lost, as a packet would be; but at once.
                    if waiting.len() >= max_backlog() {
                        return Err(Errno::ETIMEDOUT);
                    }
                    fallible::reserve_queue(waiting, 1).map_err(|_| Errno::ENOBUFS)?;
                    waiting.push_back(self.this.clone());
                    Ok(false)
                }
                _ => Err(Errno::ECONNREFUSED),
            }
        };
        let admitted = match find() {
            Err(Errno::ETIMEDOUT) => {
                listener.forget_closed();
                find()?
            }
            found => found?,
        };
        if admitted { listener.admit(&self.to_arc()) } else { Ok(()) }
    }

    /// Takes those out of the line for a place in the backlog who were closed meanwhile.
    fn forget_closed(&self) {
        /// How many are looked at in one hold of the lock, and how many are taken out: others are moved for that.
        const STEP: usize = 64;
        const FEW: usize = 8;
        let mut next = 0;
        loop {
            // Their memory goes with this, without the lock.
            let mut closed = SmallVec::<[Weak<Socket>; FEW]>::new();
            {
                let mut state = self.state.lock();
                let Role::Listening { waiting, .. } = &mut state.role else { return };
                for _ in 0..STEP {
                    if closed.len() == FEW {
                        break;
                    }
                    match waiting.get(next) {
                        Some(client) if client.strong_count() > 0 => next += 1,
                        Some(_) => closed.extend(waiting.remove(next)),
                        None => return,
                    }
                }
            }
            drop(closed);
            sched::cond_resched();
        }
    }

    /// Connects `client`, which waits for it, with a socket that is to be accepted.
    fn admit(&self, client: &Arc<Socket>) -> Result<()> {
        let (local, peer) = {
            let state = client.state.lock();
            (state.peer.ok_or(Errno::ECONNREFUSED)?, state.local)
        };
        let options = *self.options.lock();
        let flags = *self.flags.lock();
        let server = Socket::new(self.family, Protocol::Tcp, self.network.clone(), self.uid, options, flags);
        // The connection holds its port even when the listener is gone.
        let mut claim = self.claim_of(local);
        claim.dual = false;
        let claim = ports::claim(&server.network, Protocol::Tcp, claim, Purpose::Accept, &server.this)?;
        {
            let mut state = server.state.lock();
            state.claim = Some(claim);
            state.local = local;
            state.peer = Some(peer);
            state.role = Role::Connected(Arc::downgrade(client));
        }
        server.waits.store(true, Ordering::SeqCst);
        let connected = {
            let mut state = client.state.lock();
            let waits = matches!(state.role, Role::Connecting);
            if waits {
                state.role = Role::Connected(Arc::downgrade(&server));
            }
            waits
        };
        if !connected {
            // It is closed by now.
            server.release_port();
            return Ok(());
        }
        let taken = {
            let mut state = self.state.lock();
            match &mut state.role {
                Role::Listening { pending, .. } => fallible::reserve_queue(pending, 1)
                    .map(|()| pending.push_back(server.clone()))
                    .map_err(|_| Errno::ENOBUFS),
                _ => Err(Errno::ECONNREFUSED),
            }
        };
        if let Err(error) = taken {
            server.release_port();
            client.refuse(error);
            return Ok(());
        }
        // One thread takes it, however many wait.
        self.readable.wake_one();
        client.wake();
        Ok(())
    }

    /// Lets those in who wait for a place in the backlog, as far as there are places.
    fn admit_waiting(&self) {
        loop {
            let client = {
                let mut state = self.state.lock();
                match &mut state.role {
                    Role::Listening { backlog, pending, waiting } if pending.len() <= *backlog => {
                        waiting.pop_front()
                    }
                    _ => None,
                }
            };
            let Some(client) = client else { return };
            // One that was closed meanwhile has no place to take. There may be many of them.
            sched::cond_resched();
            let Some(client) = client.upgrade() else { continue };
            if let Err(error) = self.admit(&client) {
                client.refuse(error);
            }
        }
    }

    /// The connection does not come about.
    pub(super) fn refuse(&self, error: Errno) {
        {
            let mut state = self.state.lock();
            if !matches!(state.role, Role::Connecting | Role::Connected(_)) {
                return;
            }
            state.role = Role::Idle;
            state.peer = None;
            state.error = Some(error);
            state.untold = true;
        }
        self.wake();
    }

    /// connect(2) with `AF_UNSPEC`: the connection is broken off.
    fn disconnect(&self) -> Result<()> {
        let old = {
            let mut state = self.state.lock();
            match state.role {
                Role::Listening { .. } => return Err(Errno::EINVAL),
                Role::Connecting | Role::Idle | Role::Connected(_) | Role::Closed => {}
            }
            state.peer = None;
            state.error = None;
            state.untold = false;
            state.receive_closed = false;
            state.peer_finished = false;
            state.send_closed = false;
            core::mem::replace(&mut state.role, Role::Idle)
        };
        if let Role::Connected(peer) = old
            && let Some(peer) = peer.upgrade()
        {
            peer.reset();
        }
        // What has come is of the connection that was.
        let bytes = core::mem::take(&mut *self.bytes.lock());
        drop(bytes);
        self.forget_source();
        self.wake();
        Ok(())
    }

    /// accept(2).
    pub(super) fn accept(&self, nonblocking: bool) -> Result<Arc<Socket>> {
        if self.protocol == Protocol::Udp {
            return Err(Errno::EOPNOTSUPP);
        }
        let timeout = self.options.lock().receive_timeout;
        let take = || -> Option<Result<Arc<Socket>>> {
            match &mut self.state.lock().role {
                Role::Listening { pending, .. } => pending.pop_front().map(Ok),
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
        self.admit_waiting();
        socket.waits.store(false, Ordering::SeqCst);
        if let Some(client) = socket.peer() {
            // There is more room now.
            client.writable.wake_all();
        }
        Ok(socket)
    }

    /// A listener that is shut down listens no more; it may begin anew.
    pub(super) fn stop_listening(&self) {
        let old = core::mem::replace(&mut self.state.lock().role, Role::Idle);
        let Role::Listening { pending, waiting, .. } = old else { return };
        // It keeps its port, but receives nothing there.
        let claim = self.state.lock().claim;
        if let Some(claim) = claim {
            ports::stop_receiving(self.protocol, &claim, self);
        }
        for socket in pending {
            socket.close(true);
            sched::cond_resched();
        }
        for socket in waiting.iter().filter_map(Weak::upgrade) {
            socket.refuse(Errno::ECONNREFUSED);
        }
        self.wake();
    }
}
