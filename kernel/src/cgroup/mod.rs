//! Control groups, version 2: who counts together, and what they may use.
//!
//! A [`Group`] is a directory of the file system `cgroup2`. Each process is in one group; a process that was never moved is in
//! the root, which costs nothing: it has no group then, and nothing is counted for it. Threads are where their process is.
//!
//! # Locks
//!
//! Outermost first: an inode's lock; [`hierarchy`]'s lock, which orders all changes of the tree of groups and of who is
//! where; a group's children and files; the process tree's lock, which guards the members of a group and how many reasons it has to be
//! called populated; a process's place. What is counted is in atomics: whoever charges takes no lock of a group.
//!
//! A group that was removed lives on as long as a process that has ended, a huge page or a promise refers to it. Its charges stay
//! where they are: the groups above count them too, so that no page has to be looked for.

mod core_files;
mod filesystem;
pub mod freezer;
mod group;
mod hierarchy;
mod hugetlb;
mod knob;
mod member;
mod pids;

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Write as _;

pub use filesystem::{group_of, path_of_inode};
pub use group::{Group, root};
pub use hierarchy::check_clone;
pub(crate) use hierarchy::is_being_killed;
pub use hugetlb::HugePayer;
pub use member::{Changed, Into, Member, are_together, enter, leave};

use crate::errno::Result;
use crate::fs::{proc, register_filesystem};
use crate::memory::fallible::Text;
use crate::namespaces::CgroupNamespace;
use crate::process::Process;

/// What may be limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Controller {
    Hugetlb,
    Pids,
}

impl Controller {
    /// All, in the order in which files list them.
    const ALL: [(Controller, &'static str); 2] =
        [(Controller::Hugetlb, "hugetlb"), (Controller::Pids, "pids")];
    /// Those for which processes may be beside groups below: `pids` counts threads wherever they are.
    const THREADED: u32 = Controller::Pids.bit();

    const fn bit(self) -> u32 {
        1 << self as u32
    }

    fn all_bits() -> u32 {
        Self::ALL.iter().fold(0, |bits, (controller, _)| bits | controller.bit())
    }
}

/// Makes the type known, and what `/proc` tells of it.
pub fn register() -> Result<()> {
    filesystem::make_root()?;
    register_filesystem("cgroup2", filesystem::mount);
    proc::register("cgroups", 0o444, || {
        let mut text = String::from("#subsys_name\thierarchy\tnum_cgroups\tenabled\n");
        for (controller, name) in Controller::ALL {
            let _ = writeln!(text, "{name}\t0\t{}\t1", hierarchy::count_with(controller));
        }
        Ok(text)
    })
}

/// The group of a process.
pub fn of_process(process: &Process) -> Arc<Group> {
    process.cgroup.group().unwrap_or_else(|| root().clone())
}

/// `/proc/PID/cgroup`, for a reader in the current thread's namespace.
pub fn describe(process: &Process, text: &mut Text) {
    text.push_str("0::");
    let group = of_process(process);
    group.push_path(&CgroupNamespace::current().root, text);
    if group.is_dead() {
        text.push_str(" (deleted)");
    }
    text.push_str("\n");
}
