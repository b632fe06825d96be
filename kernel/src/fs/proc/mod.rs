//! procfs: processes and the system as files.
//!
//! `/proc/PID` directories are made when they are looked up, from the processes that there are; a file in one of them keeps only the
//! process's identity, and says `ESRCH` once the process is gone. The rest is a tree of registered files ([`register`]).

mod kpage;
mod process;
pub mod sysctl;
mod system;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::dentry::Dentry;
use super::inode::{Attributes, Dirent, Inode, InodeOps, Superblock, SuperblockOps};
use super::pseudo::{Directory, Functions, LinkInode};
use super::registry::{MountRequest, register_filesystem};
use super::stat::{FileType, Stat, Statfs};
use crate::errno::{Errno, Result};
use crate::process::{self as processes, Pid};
use crate::sync::Once;

pub use system::set_meminfo_lines;

struct ProcFs;

impl SuperblockOps for ProcFs {
    fn most_bytes(&self) -> u64 {
        i32::MAX as u64
    }

    fn without_programs(&self) -> bool {
        true
    }

    fn statfs(&self) -> Statfs {
        Statfs { magic: 0x9fa0, block_size: 4096, name_max: 255, ..Statfs::default() }
    }
}

/// The file system: there is one instance.
struct Instance {
    superblock: Arc<Superblock>,
    directory: Arc<Directory>,
    root: Arc<Dentry>,
}

fn instance() -> &'static Instance {
    static INSTANCE: Once<Instance> = Once::new();
    INSTANCE.call_once(|| {
        let superblock = Superblock::new("proc", ProcFs);
        let directory = Directory::new(&superblock);
        let attributes = Attributes { nlink: 2, ..Attributes::new(0o555, 0, 0) };
        let root = Inode::new(&superblock, FileType::Directory, attributes, Root(directory.clone()));
        Instance { superblock, directory, root: Dentry::root(root) }
    })
}

fn superblock() -> &'static Arc<Superblock> {
    &instance().superblock
}

fn tree() -> &'static Arc<Directory> {
    &instance().directory
}

fn mount(_: &MountRequest) -> Result<Arc<Dentry>> {
    Ok(instance().root.clone())
}

/// Registers the file `path` (below `/proc`, without a slash in front), which is only read.
pub fn register(
    path: &str,
    permissions: u32,
    show: impl Fn() -> Result<String> + Send + Sync + 'static,
) -> Result<()> {
    let store = |_: &str| Err(Errno::EIO);
    tree().register(path, permissions, Arc::new(Functions { show, store }))
}

/// Registers a file with operations of its own.
pub fn register_inode(path: &str, permissions: u32, ops: impl InodeOps) -> Result<()> {
    tree().register_inode(path, FileType::Regular, permissions, ops)
}

/// Makes procfs known, with the files that belong to no other room.
pub fn init() -> Result<()> {
    register_filesystem("proc", mount);
    let own = LinkInode(|| Ok(alloc::format!("{}", current_pid()?).into_bytes()));
    tree().register_inode("self", FileType::Symlink, 0o777, own)?;
    let own_thread = LinkInode(|| {
        let tid = processes::current().tid();
        Ok(alloc::format!("{}/task/{tid}", current_pid()?).into_bytes())
    });
    tree().register_inode("thread-self", FileType::Symlink, 0o777, own_thread)?;
    tree().register_link("mounts", "self/mounts")?;
    register_inode("kpagecount", 0o400, kpage::COUNTS)?;
    register_inode("kpageflags", 0o400, kpage::FLAGS)?;
    system::init()?;
    sysctl::init()?;
    crate::net::inet::proc::init()
}

fn current_pid() -> Result<Pid> {
    match processes::current().process.pid {
        0 => Err(Errno::ENOENT),
        pid => Ok(pid),
    }
}

/// Entries of processes come behind all others.
const PROCESS_OFFSET: u64 = 1 << 16;

/// A process number as `/proc` spells it.
fn parse_pid(name: &[u8]) -> Result<Pid> {
    let digits = !name.is_empty() && name[0] != b'0' && name.iter().all(u8::is_ascii_digit);
    let text = core::str::from_utf8(name).ok().filter(|_| digits).ok_or(Errno::ENOENT)?;
    text.parse().map_err(|_| Errno::ENOENT)
}

/// The root: what is registered, and the processes.
struct Root(Arc<Directory>);

impl InodeOps for Root {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        match self.0.lookup(dir, name) {
            Err(Errno::ENOENT) => process::lookup(dir, name, parse_pid(name)?),
            other => other,
        }
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        if from < PROCESS_OFFSET && !self.0.list(from, emit) {
            return Ok(());
        }
        let mut last = from.saturating_sub(PROCESS_OFFSET) as Pid;
        while let Some(process) = processes::process_after(last) {
            last = process.pid;
            let name = alloc::format!("{last}");
            let entry = Dirent {
                ino: process::directory_ino(last),
                next_offset: PROCESS_OFFSET + u64::from(last),
                kind: FileType::Directory,
                name: name.as_bytes(),
            };
            if !emit(entry) {
                break;
            }
        }
        Ok(())
    }

    fn stat(&self, _: &Inode, stat: &mut Stat) {
        stat.nlink = 2 + processes::processes().count() as u32;
    }
}

/// The bytes of a text.
fn bytes(text: impl Into<crate::memory::fallible::Text>) -> Result<Vec<u8>> {
    text.into().finish()
}
