//! UTS namespaces: the names of host and domain.

use alloc::string::String;
use alloc::sync::Arc;

use super::{Head, Kind, Namespaces, initial};
use crate::errno::{Errno, Result};
use crate::process::{self, CAP_SYS_ADMIN, Credentials};
use crate::sync::{Once, SpinLock};

/// A name with zero bytes behind it.
pub type Name = [u8; 65];

/// The two names.
#[derive(Clone, Copy)]
pub struct Names {
    pub host: Name,
    pub domain: Name,
}

/// One UTS namespace.
pub struct UtsNamespace {
    pub head: Head,
    names: SpinLock<Names>,
}

/// A name as uname(2) gives it.
pub const fn padded(text: &[u8]) -> Name {
    let mut field = [0; 65];
    let mut index = 0;
    while index < text.len() && index < 64 {
        field[index] = text[index];
        index += 1;
    }
    field
}

fn text(field: &Name) -> String {
    let length = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..length]).into_owned()
}

impl UtsNamespace {
    /// The one that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<UtsNamespace>> = Once::new();
        INITIAL.call_once(|| {
            let names = Names { host: padded(b"roundtable"), domain: padded(b"(none)") };
            Arc::new(Self { head: Head::initial(initial::UTS), names: SpinLock::new(names) })
        })
    }

    /// One with the same names as `old`.
    pub fn copy(old: &Self, maker: &Credentials) -> Result<Arc<Self>> {
        let head = Head::new(Kind::Uts, maker)?;
        Ok(Arc::new(Self { head, names: SpinLock::new(old.names()) }))
    }

    /// That of the current thread.
    pub fn current() -> Arc<Self> {
        Namespaces::current().uts.clone()
    }

    pub fn names(&self) -> Names {
        *self.names.lock()
    }

    pub fn hostname(&self) -> String {
        text(&self.names().host)
    }

    pub fn domainname(&self) -> String {
        text(&self.names().domain)
    }

    /// sethostname(2).
    pub fn set_hostname(&self, name: &[u8]) {
        self.names.lock().host = padded(name);
    }

    /// setdomainname(2).
    pub fn set_domainname(&self, name: &[u8]) {
        self.names.lock().domain = padded(name);
    }

    /// `EPERM` unless the current thread may change the names.
    pub fn check_may_change(&self) -> Result<()> {
        let own = process::current().credentials();
        if own.capable_in(&self.head.user, CAP_SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
    }
}
