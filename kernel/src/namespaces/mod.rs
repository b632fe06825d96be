//! Namespaces: what a process sees of names that the kernel gives, be it numbers of processes, users, mounts or the host's name.
//!
//! A thread that has never left the namespaces which the kernel starts with has no [`Namespaces`] at all, its credentials name no user
//! namespace, and its process has no numbers but the one that the kernel itself uses. So it pays a look at an empty place, and no count
//! that all processes share. Inside of the kernel users and processes have one number each, whatever the namespace; system calls
//! translate where numbers come in and go out ([`user`], [`View`]).
//!
//! Each kind is a file here; mounts are in [`crate::fs::mount_namespace`].

mod cgroup;
mod change;
pub mod file;
pub mod ipc;
pub mod net;
mod numbers;
mod pid;
mod settings;
pub mod time;
pub mod user;
pub mod uts;
mod view;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use crate::errno::{Errno, Result};
use crate::fs::mount_namespace::MountNamespace;
use crate::memory::{PAGE_SIZE, fallible, reserve};
use crate::process::accounts::{Counted, Share};
use crate::process::{Credentials, Thread};
use crate::sync::Once;

pub use cgroup::CgroupNamespace;
pub use change::{after_exec, for_child, implied, set_all_of, setns, unshare};
pub use ipc::IpcNamespace;
pub use net::{NetNamespace, Network};
pub use numbers::{Numbers, SharedNumbers};
pub use pid::PidNamespace;
pub use settings::register;
pub use time::TimeNamespace;
pub use user::UserNamespace;
pub use uts::UtsNamespace;
pub use view::View;

/// The kinds of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Cgroup,
    Ipc,
    Mount,
    Net,
    Pid,
    Time,
    User,
    Uts,
}

impl Kind {
    pub const ALL: [Self; 8] =
        [Self::Cgroup, Self::Ipc, Self::Mount, Self::Net, Self::Pid, Self::Time, Self::User, Self::Uts];

    /// `CLONE_NEW*`.
    pub const fn flag(self) -> u32 {
        match self {
            Self::Cgroup => abi::CLONE_NEWCGROUP,
            Self::Ipc => abi::CLONE_NEWIPC,
            Self::Mount => abi::CLONE_NEWNS,
            Self::Net => abi::CLONE_NEWNET,
            Self::Pid => abi::CLONE_NEWPID,
            Self::Time => abi::CLONE_NEWTIME,
            Self::User => abi::CLONE_NEWUSER,
            Self::Uts => abi::CLONE_NEWUTS,
        }
    }

    /// As `/proc/PID/ns` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mount => "mnt",
            Self::Net => "net",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }
}

/// All `CLONE_NEW*`.
pub const ALL_FLAGS: u32 = {
    let (mut flags, mut index) = (0, 0);
    while index < Kind::ALL.len() {
        flags |= Kind::ALL[index].flag();
        index += 1;
    }
    flags
};

/// The inode numbers of the namespaces that the kernel starts with: those that Linux fixes, and the first two that it gives.
pub mod initial {
    pub const TIME: u64 = 0xefff_fffa;
    pub const CGROUP: u64 = 0xefff_fffb;
    pub const PID: u64 = 0xefff_fffc;
    pub const USER: u64 = 0xefff_fffd;
    pub const UTS: u64 = 0xefff_fffe;
    pub const IPC: u64 = 0xefff_ffff;
    pub const MOUNT: u64 = 0xf000_0000;
    pub const NET: u64 = 0xf000_0001;
}

/// The inode number of a new namespace.
fn next_ino() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(initial::NET + 1);
    // Relaxed: only the numbers have to differ.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What every namespace but those of users has: its number, the user namespace that it belongs to, and what it counts for.
pub struct Head {
    pub ino: u64,
    pub user: Arc<UserNamespace>,
    _shares: Vec<Share>,
}

impl Head {
    /// Of a namespace that the kernel starts with.
    pub fn initial(ino: u64) -> Self {
        Self { ino, user: UserNamespace::initial().clone(), _shares: Vec::new() }
    }

    /// Of a new one, made by who has these credentials. `ENOSPC` when its user or an owner of a user namespace above has too many.
    pub fn new(kind: Kind, maker: &Credentials) -> Result<Self> {
        // A namespace may outlive who made it.
        reserve::ask_lasting(PAGE_SIZE)?;
        let user = maker.user_namespace();
        let shares = charge(kind, &user, maker.euid)?;
        Ok(Self { ino: next_ino(), user, _shares: shares })
    }
}

/// Counts one namespace for the user in `user`, and for the owner of each user namespace from there up.
fn charge(kind: Kind, user: &Arc<UserNamespace>, uid: u32) -> Result<Vec<Share>> {
    let mut shares = fallible::with_capacity(user.level as usize + 1)?;
    let (mut at, mut uid) = (user, uid);
    loop {
        let share = Share::take_within_namespace(at.ino, uid, Counted::of_namespace(kind), at.limit(kind));
        shares.push(share.ok_or(Errno::ENOSPC)?);
        let Some(parent) = &at.parent else { return Ok(shares) };
        uid = at.owner;
        at = parent;
    }
}

/// The namespaces of a thread, beside its user namespace, which its credentials name.
#[derive(Clone)]
pub struct Namespaces {
    pub mount: Arc<MountNamespace>,
    pub uts: Arc<UtsNamespace>,
    pub ipc: Arc<IpcNamespace>,
    pub cgroup: Arc<CgroupNamespace>,
    pub net: Network,
    /// Where its children get their numbers.
    pub pid_for_children: Arc<PidNamespace>,
    pub time: Arc<TimeNamespace>,
    pub time_for_children: Arc<TimeNamespace>,
}

impl Namespaces {
    /// Those that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<Namespaces>> = Once::new();
        INITIAL.call_once(|| {
            let time = TimeNamespace::initial().clone();
            Arc::new(Self {
                mount: MountNamespace::initial().clone(),
                uts: UtsNamespace::initial().clone(),
                ipc: IpcNamespace::initial().clone(),
                cgroup: CgroupNamespace::initial().clone(),
                net: Network::FIRST,
                pid_for_children: PidNamespace::initial().clone(),
                time: time.clone(),
                time_for_children: time,
            })
        })
    }

    /// Those of a thread.
    pub fn of(thread: &Thread) -> Arc<Self> {
        thread.namespaces().unwrap_or_else(|| Self::initial().clone())
    }

    /// Those of the current thread.
    pub fn current() -> Arc<Self> {
        crate::process::try_current().map_or_else(|| Self::initial().clone(), |thread| Self::of(&thread))
    }
}

/// One namespace of whatever kind.
#[derive(Clone)]
pub enum Namespace {
    Cgroup(Arc<CgroupNamespace>),
    Net(Arc<NetNamespace>),
    Ipc(Arc<IpcNamespace>),
    Mount(Arc<MountNamespace>),
    Pid(Arc<PidNamespace>),
    Time(Arc<TimeNamespace>),
    User(Arc<UserNamespace>),
    Uts(Arc<UtsNamespace>),
}

impl Namespace {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cgroup(_) => Kind::Cgroup,
            Self::Net(_) => Kind::Net,
            Self::Ipc(_) => Kind::Ipc,
            Self::Mount(_) => Kind::Mount,
            Self::Pid(_) => Kind::Pid,
            Self::Time(_) => Kind::Time,
            Self::User(_) => Kind::User,
            Self::Uts(_) => Kind::Uts,
        }
    }

    pub fn ino(&self) -> u64 {
        match self {
            Self::User(user) => user.ino,
            other => other.head().map_or(0, |head| head.ino),
        }
    }

    fn head(&self) -> Option<&Head> {
        match self {
            Self::User(_) => None,
            Self::Cgroup(cgroup) => Some(&cgroup.head),
            Self::Net(net) => Some(&net.head),
            Self::Ipc(ipc) => Some(&ipc.head),
            Self::Mount(mount) => Some(&mount.head),
            Self::Pid(pid) => Some(&pid.head),
            Self::Time(time) => Some(&time.head),
            Self::Uts(uts) => Some(&uts.head),
        }
    }

    /// The user namespace that it belongs to; of a user namespace the one above, `None` for the first.
    pub fn owner(&self) -> Option<Arc<UserNamespace>> {
        match self {
            Self::User(user) => user.parent.clone(),
            other => {
                Some(other.head().map_or_else(|| UserNamespace::initial().clone(), |head| head.user.clone()))
            }
        }
    }
}
