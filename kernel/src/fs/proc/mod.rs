//! procfs: processes and the system as files.
//!
//! `/proc/PID` directories are made when they are looked up, from the processes that there are; a file in one of them keeps only the
//! process's identity, and says `ESRCH` once the process is gone. The rest is a tree of registered files ([`register`]).

mod hide;
mod kpage;
mod process;
pub mod sysctl;
mod system;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::dentry::Dentry;
use super::inode::{Attributes, Dirent, Inode, InodeOps, Superblock, SuperblockOps};
use super::mount_namespace::check_may_show;
use super::pseudo::{Directory, Functions, LinkInode};
use super::registry::{MountRequest, register_filesystem};
use super::stat::{DeviceId, FileType, Stat, Statfs};
use crate::errno::{Errno, Result};
use crate::namespaces::View;
use crate::process::{self as processes, Pid};
use crate::sched;
use crate::sync::{Once, SpinLock};
use hide::Options;

pub use process::of_directory as process_of_directory;
pub use system::set_meminfo_lines;

#[derive(Default)]
struct ProcFs(SpinLock<Options>);

impl ProcFs {
    fn options_of(inode: &Inode) -> Options {
        inode.superblock.ops_as::<ProcFs>().map_or_else(Options::default, |fs| *fs.0.lock())
    }
}

impl SuperblockOps for ProcFs {
    fn options(&self) -> String {
        let options = *self.0.lock();
        options.text()
    }

    fn remount(&self, text: &str) -> Result<()> {
        let old = *self.0.lock();
        let new = old.changed(text)?;
        *self.0.lock() = new;
        Ok(())
    }

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

/// The instance that shows the first PID namespace. Others share its files, and have processes of their own.
struct Instance {
    superblock: Arc<Superblock>,
    directory: Arc<Directory>,
    root: Arc<Dentry>,
}

fn instance() -> &'static Instance {
    static INSTANCE: Once<Instance> = Once::new();
    INSTANCE.call_once(|| {
        let superblock = Superblock::new("proc", ProcFs::default());
        let directory = Directory::new(&superblock);
        let attributes = Attributes { nlink: 2, ..Attributes::new(0o555, 0, 0) };
        let root =
            Inode::new(&superblock, FileType::Directory, attributes, Root::new(&directory, View::default()));
        Instance { superblock, directory, root: Dentry::root(root) }
    })
}

fn superblock() -> &'static Arc<Superblock> {
    &instance().superblock
}

fn tree() -> &'static Arc<Directory> {
    &instance().directory
}

fn mount(request: &MountRequest) -> Result<Arc<Dentry>> {
    let options = Options::default().changed(request.options)?;
    if let Some(thread) = processes::try_current() {
        check_may_show(&thread.process.pid_namespace().head.user)?;
    }
    let view = View::current();
    if view.is_initial() && options == Options::default() {
        return Ok(instance().root.clone());
    }
    // What one mount hides others show.
    let superblock = Superblock::mounted("proc", ProcFs(SpinLock::new(options)))?;
    let attributes = Attributes { nlink: 2, ..Attributes::new(0o555, 0, 0) };
    let root = Inode::new(&superblock, FileType::Directory, attributes, Root::new(tree(), view));
    Ok(Dentry::root(root))
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
    tree().register_inode("self", FileType::Symlink, 0o777, own_link(View::default()))?;
    tree().register_inode("thread-self", FileType::Symlink, 0o777, own_thread_link(View::default()))?;
    tree().register_link("mounts", "self/mounts")?;
    register_inode("kpagecount", 0o400, kpage::COUNTS)?;
    register_inode("kpageflags", 0o400, kpage::FLAGS)?;
    system::init()?;
    sysctl::init()?;
    crate::net::unix::list::init()?;
    crate::net::inet::proc::init()
}

fn current_pid(view: &View) -> Result<Pid> {
    match view.process(&processes::current().process) {
        0 => Err(Errno::ENOENT),
        pid => Ok(pid),
    }
}

/// `self`, as seen from there.
fn own_link(view: View) -> impl InodeOps {
    LinkInode(move || Ok(alloc::format!("{}", current_pid(&view)?).into_bytes()))
}

/// `thread-self`, as seen from there.
fn own_thread_link(view: View) -> impl InodeOps {
    LinkInode(move || {
        let tid = view.thread(&processes::current());
        Ok(alloc::format!("{}/task/{tid}", current_pid(&view)?).into_bytes())
    })
}

/// Entries of processes come behind all others.
const PROCESS_OFFSET: u64 = 1 << 16;

/// A process number as `/proc` spells it.
fn parse_pid(name: &[u8]) -> Result<Pid> {
    let digits = !name.is_empty() && name[0] != b'0' && name.iter().all(u8::is_ascii_digit);
    let text = core::str::from_utf8(name).ok().filter(|_| digits).ok_or(Errno::ENOENT)?;
    text.parse().map_err(|_| Errno::ENOENT)
}

/// The root: what is registered, and the processes of a PID namespace.
struct Root {
    files: Arc<Directory>,
    view: View,
}

impl Root {
    fn new(files: &Arc<Directory>, view: View) -> Self {
        Self { files: files.clone(), view }
    }

    /// The two links whose text depends on who sees it from where.
    fn own_links(&self, dir: &Arc<Dentry>, name: &[u8]) -> Option<Result<Arc<Dentry>>> {
        let superblock = &dir.inode.superblock;
        let attributes = Attributes::new(0o777, 0, 0);
        let make = |ops: alloc::boxed::Box<dyn InodeOps>| {
            let ino = superblock.allocate_ino();
            let inode =
                Inode::boxed(superblock, ino, FileType::Symlink, DeviceId::default(), attributes, ops);
            dir.child(name, |_| true, || Ok(inode))
        };
        match name {
            _ if self.view.is_initial() => None,
            b"self" => Some(make(alloc::boxed::Box::new(own_link(self.view.clone())))),
            b"thread-self" => Some(make(alloc::boxed::Box::new(own_thread_link(self.view.clone())))),
            _ => None,
        }
    }
}

impl InodeOps for Root {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        if let Some(link) = self.own_links(dir, name) {
            return link;
        }
        let options = ProcFs::options_of(&dir.inode);
        let is_own = matches!(name, b"self" | b"thread-self");
        if !options.only_processes || is_own {
            match self.files.lookup(dir, name) {
                Err(Errno::ENOENT) => {}
                other => return other,
            }
        }
        process::lookup(dir, name, parse_pid(name)?, &self.view, options)
    }

    fn readdir(&self, dir: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        let options = ProcFs::options_of(&dir.inode);
        if from < PROCESS_OFFSET && !options.only_processes && !self.files.list(from, emit) {
            return Ok(());
        }
        // An offset may be anything that a seek gave.
        let Ok(mut last) = Pid::try_from(from.saturating_sub(PROCESS_OFFSET)) else { return Ok(()) };
        while let Some((number, process)) = last.checked_add(1).and_then(|next| self.view.process_from(next))
        {
            last = number;
            if !options.shows(|| process::may_look_into(&process)) {
                continue;
            }
            let name = alloc::format!("{last}");
            let entry = Dirent {
                ino: process::directory_ino(process.pid),
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
        let next = |from: &mut Pid| {
            let (number, _) = self.view.process_from(*from)?;
            *from = number + 1;
            sched::cond_resched();
            Some(())
        };
        let mut from = 1;
        stat.nlink = 2 + core::iter::from_fn(|| next(&mut from)).count() as u32;
    }
}

/// The bytes of a text.
fn bytes(text: impl Into<crate::memory::fallible::Text>) -> Result<Vec<u8>> {
    text.into().finish()
}
