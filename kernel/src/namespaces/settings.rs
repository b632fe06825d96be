//! `/proc/sys/user`: how many namespaces of each kind a user may have. Each user namespace has limits of its own. And
//! `/proc/sys/vm/memfd_noexec`, which each PID namespace has.

use alloc::string::ToString;

use super::{Kind, PidNamespace};
use crate::errno::{Errno, Result};
use crate::fs::proc::sysctl;
use crate::process;

/// Makes the settings known.
pub fn register() -> Result<()> {
    for kind in Kind::ALL {
        let path = alloc::format!("user/max_{}_namespaces", kind.name());
        sysctl::register(
            &path,
            move || Ok(process::current().credentials().user_namespace().limit(kind).to_string()),
            move |new| {
                let new: u32 = sysctl::parse(new)?;
                if new > i32::MAX as u32 {
                    return Err(Errno::EINVAL);
                }
                let own = process::current().credentials();
                if !own.capable_here(process::CAP_SYS_RESOURCE) {
                    return Err(Errno::EPERM);
                }
                own.user_namespace().set_limit(kind, new.into());
                Ok(())
            },
        )?;
    }
    sysctl::register(
        "vm/memfd_noexec",
        || Ok(PidNamespace::of_current().memfd_noexec().to_string()),
        |new| {
            let namespace = PidNamespace::of_current();
            if !process::current().credentials().capable_in(&namespace.head.user, process::CAP_SYS_ADMIN) {
                return Err(Errno::EPERM);
            }
            namespace.set_memfd_noexec(sysctl::parse(new)?)
        },
    )
}
