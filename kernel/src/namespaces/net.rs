//! Network namespaces: ports, abstract names of Unix sockets, and interfaces.
//!
//! A new one has a loopback of its own, which is down and leads nowhere until somebody turns it on. The card is in the first.

use alloc::sync::Arc;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{Head, Kind, initial};
use crate::errno::{Errno, Result};
use crate::net::inet::ports::Ports;
use crate::net::unix::address::Names;
use crate::net::unix::list::List;
use crate::process::{self, Credentials, Thread};
use crate::sync::{Once, SpinLock};

/// One network namespace.
pub struct NetNamespace {
    pub head: Head,
    pub tcp: SpinLock<Ports>,
    pub udp: SpinLock<Ports>,
    /// The abstract names.
    pub names: SpinLock<Names>,
    /// All sockets of the Unix domain.
    pub unix: SpinLock<List>,
    loopback_is_up: AtomicBool,
}

impl NetNamespace {
    /// The one that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<NetNamespace>> = Once::new();
        INITIAL.call_once(|| {
            let ports = || Ports::new().expect("there is memory at boot");
            Arc::new(Self::with(Head::initial(initial::NET), ports(), ports(), true))
        })
    }

    /// An empty one.
    pub fn new(maker: &Credentials) -> Result<Arc<Self>> {
        let head = Head::new(Kind::Net, maker)?;
        Ok(Arc::new(Self::with(head, Ports::new()?, Ports::new()?, false)))
    }

    fn with(head: Head, tcp: Ports, udp: Ports, loopback_is_up: bool) -> Self {
        Self {
            head,
            tcp: SpinLock::growing(tcp),
            udp: SpinLock::growing(udp),
            names: SpinLock::growing(Names::new()),
            unix: SpinLock::growing(List::new()),
            loopback_is_up: AtomicBool::new(loopback_is_up),
        }
    }

    /// Is it the one that the kernel starts with, which has the card?
    pub fn is_first(&self) -> bool {
        self.head.ino == initial::NET
    }

    pub fn loopback_is_up(&self) -> bool {
        // Relaxed, here and below: a setting of its own.
        self.loopback_is_up.load(Ordering::Relaxed)
    }

    /// Turns the loopback on or off. `EOPNOTSUPP` for off in the first, where it stays on.
    pub fn turn_loopback(&self, on: bool) -> Result<()> {
        if !on && self.is_first() {
            return Err(Errno::EOPNOTSUPP);
        }
        self.loopback_is_up.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// Has the current thread this capability over what is in here?
    pub fn is_capable(&self, capability: u32) -> bool {
        process::current().credentials().capable_in(&self.head.user, capability)
    }
}

/// A network namespace as threads and sockets keep it: the first is at no place, and counted by nobody.
#[derive(Clone)]
pub struct Network(Option<Arc<NetNamespace>>);

impl Network {
    pub const FIRST: Self = Self(None);

    /// That of a thread.
    pub fn of(thread: &Thread) -> Self {
        thread.namespaces().map_or(Self::FIRST, |namespaces| namespaces.net.clone())
    }

    /// That of the current thread.
    pub fn current() -> Self {
        process::try_current().map_or(Self::FIRST, |thread| Self::of(&thread))
    }

    pub fn to_arc(&self) -> Arc<NetNamespace> {
        self.0.as_ref().unwrap_or_else(|| NetNamespace::initial()).clone()
    }
}

impl From<&Arc<NetNamespace>> for Network {
    fn from(namespace: &Arc<NetNamespace>) -> Self {
        Self((!namespace.is_first()).then(|| namespace.clone()))
    }
}

impl Deref for Network {
    type Target = NetNamespace;

    fn deref(&self) -> &NetNamespace {
        self.0.as_ref().unwrap_or_else(|| NetNamespace::initial())
    }
}
