//! IPC namespaces: System V objects and POSIX message queues, found by keys, identifiers and names.

use alloc::sync::{Arc, Weak};
use core::ops::Deref;
use core::sync::atomic::AtomicBool;

use super::{Head, Kind, Namespaces, initial};
use crate::errno::{Errno, Result};
use crate::ipc::ids::Ids;
use crate::ipc::{mqueue, msg, sem};
use crate::mm::shm;
use crate::process::{self, Credentials};
use crate::sync::Once;

/// One IPC namespace. What it has goes with it; a segment that is attached stays with its last attachment.
pub struct IpcNamespace {
    pub head: Head,
    pub sets: Ids<sem::Set>,
    pub queues: Ids<msg::Queue>,
    pub segments: Ids<shm::Segment>,
    /// `kernel.shm_rmid_forced`.
    pub(crate) orphans_go: AtomicBool,
    /// The file system of message queues: made when it is first asked for.
    messages: Once<mqueue::Instance>,
}

impl IpcNamespace {
    /// The one that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<IpcNamespace>> = Once::new();
        INITIAL.call_once(|| Arc::new(Self::build(Head::initial(initial::IPC)).expect("memory at boot")))
    }

    fn build(head: Head) -> Result<Self> {
        let (sets, queues, segments) = (Ids::new()?, Ids::new()?, Ids::new()?);
        let orphans_go = AtomicBool::new(false);
        Ok(Self { head, sets, queues, segments, orphans_go, messages: Once::new() })
    }

    /// An empty one.
    pub fn new(maker: &Credentials) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::build(Head::new(Kind::Ipc, maker)?)?))
    }

    /// The file system of its message queues.
    pub fn messages(&self) -> Result<&mqueue::Instance> {
        if let Some(messages) = self.messages.get() {
            return Ok(messages);
        }
        let fresh = mqueue::Instance::new()?;
        // Another thread may have been faster: then this one goes.
        let _ = self.messages.set(fresh);
        self.messages.get().ok_or(Errno::ENOMEM)
    }
}

/// The current thread's IPC namespace.
pub enum Here {
    /// The first: no count that all share is touched.
    Initial,
    Other(Arc<IpcNamespace>),
}

impl Deref for Here {
    type Target = IpcNamespace;

    fn deref(&self) -> &IpcNamespace {
        match self {
            Self::Initial => IpcNamespace::initial(),
            Self::Other(namespace) => namespace,
        }
    }
}

/// The current thread's IPC namespace.
pub fn here() -> Here {
    let namespaces = process::try_current().and_then(|thread| thread.namespaces());
    match namespaces {
        Some(namespaces) if !Arc::ptr_eq(&namespaces.ipc, &Namespaces::initial().ipc) => {
            Here::Other(namespaces.ipc.clone())
        }
        _ => Here::Initial,
    }
}

/// The namespace that an object was made in, for as long as it is there.
pub struct Home(Option<Weak<IpcNamespace>>);

impl Home {
    /// That of the current thread.
    pub fn current() -> Self {
        match here() {
            Here::Initial => Self(None),
            Here::Other(namespace) => Self(Some(Arc::downgrade(&namespace))),
        }
    }

    /// The namespace; `None` once it is gone with all that was in it.
    pub fn get(&self) -> Option<Here> {
        match &self.0 {
            None => Some(Here::Initial),
            Some(weak) => weak.upgrade().map(Here::Other),
        }
    }
}
