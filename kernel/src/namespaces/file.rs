//! Files that stand for namespaces: `/proc/PID/ns`, and what setns(2) and ioctl(2) do with them.

use alloc::format;
use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::{MountNamespace, Namespace, Namespaces, View};
use crate::errno::{Errno, Result};
use crate::fs::caller::{descriptor_limit, files};
use crate::fs::dentry::Dentry;
use crate::fs::inode::{Attributes, Inode, InodeOps, Superblock, SuperblockOps};
use crate::fs::mount::Mount;
use crate::fs::path::Path;
use crate::fs::stat::{DeviceId, FileType, Statfs};
use crate::fs::{File, FileOps};
use crate::mm::uaccess;
use crate::process::{self, Thread};
use crate::sync::Once;

/// `_IO(0xb7, n)`, and of the later ones `_IOR` with the size of what is given.
const GET_USERNS: u32 = 0xb701;
const GET_PARENT: u32 = 0xb702;
const GET_NSTYPE: u32 = 0xb703;
const GET_OWNER_UID: u32 = 0xb704;
const GET_MNTNS_ID: u32 = 0x8008_b705;
const GET_PID_FROM_PIDNS: u32 = 0x8004_b706;
const GET_TGID_FROM_PIDNS: u32 = 0x8004_b707;
const GET_PID_IN_PIDNS: u32 = 0x8004_b708;
const GET_TGID_IN_PIDNS: u32 = 0x8004_b709;

struct NsFs;

impl SuperblockOps for NsFs {
    fn statfs(&self) -> Statfs {
        Statfs { magic: 0x6e73_6673, block_size: 4096, name_max: 255, ..Statfs::default() }
    }
}

/// The file system that all of them are in; it is mounted nowhere.
fn home() -> &'static Arc<Mount> {
    static HOME: Once<Arc<Mount>> = Once::new();
    HOME.call_once(|| {
        let superblock = Superblock::new("nsfs", NsFs);
        let root = Inode::new(&superblock, FileType::Directory, Attributes::new(0o755, 0, 0), Nothing);
        Mount::new(Dentry::root(root), "nsfs", 0)
    })
}

/// The root of that file system, which nobody sees.
struct Nothing;
impl InodeOps for Nothing {}

/// A namespace as a file; it stays as long as the file, or what is mounted of it.
struct NamespaceInode(Namespace);

impl InodeOps for NamespaceInode {
    fn open(&self, _: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
        if flags & abi::O_ACCMODE != abi::O_RDONLY {
            return Err(Errno::EPERM);
        }
        Ok(Arc::new(NamespaceFile(self.0.clone())))
    }
}

/// Is it such a file?
pub fn is_one(inode: &Inode) -> bool {
    inode.ops_as::<NamespaceInode>().is_some()
}

/// The mount namespace that it stands for, if it is one.
pub fn mount_namespace(inode: &Inode) -> Option<&MountNamespace> {
    match &inode.ops_as::<NamespaceInode>()?.0 {
        Namespace::Mount(namespace) => Some(namespace),
        _ => None,
    }
}

/// The text of a link that leads to it.
pub fn text(namespace: &Namespace) -> alloc::string::String {
    format!("{}:[{}]", namespace.kind().name(), namespace.ino())
}

/// The place of a namespace.
pub fn place(namespace: Namespace) -> Path {
    let mount = home().clone();
    let name = text(&namespace);
    let attributes = Attributes::new(0o444, 0, 0);
    let ino = namespace.ino();
    let ops = NamespaceInode(namespace);
    let inode =
        Inode::with_number(&mount.superblock, ino, FileType::Regular, DeviceId::default(), attributes, ops);
    Path { dentry: Dentry::detached(name.as_bytes(), inode), mount }
}

/// An open one.
struct NamespaceFile(Namespace);

/// The namespace that an open file stands for.
pub fn namespace_of(file: &File) -> Option<&Namespace> {
    file.ops_as::<NamespaceFile>().map(|file| &file.0)
}

/// The namespace that the entry `name` in `/proc/PID/ns` of a thread leads to.
pub fn of_thread(thread: &Thread, name: &str) -> Option<Namespace> {
    let namespaces = Namespaces::of(thread);
    Some(match name {
        "cgroup" => Namespace::Cgroup(namespaces.cgroup.clone()),
        "ipc" => Namespace::Ipc(namespaces.ipc.clone()),
        "mnt" => Namespace::Mount(namespaces.mount.clone()),
        "net" => Namespace::Net(namespaces.net.to_arc()),
        "pid" => Namespace::Pid(thread.process.pid_namespace()),
        // One that still waits for its first process leads nowhere.
        "pid_for_children" if !namespaces.pid_for_children.has_begun() => return None,
        "pid_for_children" => Namespace::Pid(namespaces.pid_for_children.clone()),
        "time" => Namespace::Time(namespaces.time.clone()),
        "time_for_children" => Namespace::Time(namespaces.time_for_children.clone()),
        "user" => Namespace::User(thread.credentials().user_namespace()),
        "uts" => Namespace::Uts(namespaces.uts.clone()),
        _ => return None,
    })
}

/// The entries of `/proc/PID/ns`.
pub const NAMES: [&str; 10] =
    ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

impl FileOps for NamespaceFile {
    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        match command {
            GET_NSTYPE => Ok(self.0.kind().flag() as usize),
            GET_USERNS => {
                let owner = self.0.owner().ok_or(Errno::EPERM)?;
                // One that is not below the caller's own is none of its business.
                if !process::current().credentials().user_namespace().contains(&owner) {
                    return Err(Errno::EPERM);
                }
                open(Namespace::User(owner))
            }
            GET_PARENT => self.parent().and_then(open),
            GET_OWNER_UID => {
                let Namespace::User(user) = &self.0 else { return Err(Errno::EINVAL) };
                let own = process::current().credentials();
                uaccess::write_user(argument, &own.shown_uid(user.owner)).map(|()| 0)
            }
            GET_MNTNS_ID => {
                let Namespace::Mount(mount) = &self.0 else { return Err(Errno::EINVAL) };
                uaccess::write_user(argument, &mount.head.ino).map(|()| 0)
            }
            GET_PID_FROM_PIDNS | GET_TGID_FROM_PIDNS | GET_PID_IN_PIDNS | GET_TGID_IN_PIDNS => {
                self.translate(command, argument as u32)
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}

impl NamespaceFile {
    /// The one above; `EPERM` when that is outside of the caller's, `EINVAL` for kinds without a hierarchy.
    fn parent(&self) -> Result<Namespace> {
        match &self.0 {
            Namespace::User(user) => {
                let parent = user.parent.clone().ok_or(Errno::EPERM)?;
                let own = process::current().credentials().user_namespace();
                if own.contains(&parent) { Ok(Namespace::User(parent)) } else { Err(Errno::EPERM) }
            }
            Namespace::Pid(pid) => {
                let parent = pid.parent.clone().ok_or(Errno::EPERM)?;
                let own = process::current().process.pid_namespace();
                if own.contains(&parent) { Ok(Namespace::Pid(parent)) } else { Err(Errno::EPERM) }
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// A number of that namespace in the caller's, or the other way round.
    fn translate(&self, command: u32, number: u32) -> Result<usize> {
        let Namespace::Pid(pid) = &self.0 else { return Err(Errno::EINVAL) };
        let (there, here) = (View::from(pid), View::current());
        let inward = matches!(command, GET_PID_IN_PIDNS | GET_TGID_IN_PIDNS);
        let (from, to) = if inward { (here, there) } else { (there, here) };
        let global = from.global(number).ok_or(Errno::ESRCH)?;
        let thread = process::tree::look().thread(global).ok_or(Errno::ESRCH)?;
        let shown = match command {
            GET_PID_FROM_PIDNS | GET_PID_IN_PIDNS => to.thread(&thread),
            _ => to.process(&thread.process),
        };
        if shown == 0 { Err(Errno::ESRCH) } else { Ok(shown as usize) }
    }
}

/// A new descriptor for the namespace, closed by execve(2).
pub(crate) fn open(namespace: Namespace) -> Result<usize> {
    let path = place(namespace);
    let ops = path.inode().ops.open(&path, abi::O_RDONLY)?;
    let file = File::new(path, ops, abi::O_RDONLY);
    files().install(file, 0, descriptor_limit(), true).map(|fd| fd as usize)
}
