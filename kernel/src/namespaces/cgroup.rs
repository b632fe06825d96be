//! Control-group namespaces: which group is the root, for who looks at groups.

use alloc::sync::Arc;

use super::{Head, Kind, Namespaces, initial};
use crate::cgroup::{self, Group};
use crate::errno::Result;
use crate::process::{self, Credentials};
use crate::sync::Once;

/// One control-group namespace.
pub struct CgroupNamespace {
    pub head: Head,
    /// The group of who made it.
    pub root: Arc<Group>,
}

impl CgroupNamespace {
    /// The one that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<CgroupNamespace>> = Once::new();
        INITIAL.call_once(|| {
            Arc::new(Self { head: Head::initial(initial::CGROUP), root: cgroup::root().clone() })
        })
    }

    /// One with the current process's group as its root.
    pub fn new(maker: &Credentials) -> Result<Arc<Self>> {
        let head = Head::new(Kind::Cgroup, maker)?;
        Ok(Arc::new(Self { head, root: cgroup::of_process(&process::current().process) }))
    }

    /// That of the current thread.
    pub fn current() -> Arc<Self> {
        Namespaces::current().cgroup.clone()
    }
}
