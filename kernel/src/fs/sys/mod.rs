//! sysfs: what the kernel tells of its devices and subsystems, and lets be set.
//!
//! A subsystem registers its files once, while the system comes up or later: [`register`].

mod blocks;
pub mod node;

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Display;

use super::dentry::Dentry;
use super::inode::{Superblock, SuperblockOps};
use super::pseudo::{Directory, Functions, LinkInode};
use super::registry::{MountRequest, register_filesystem};
use super::stat::{FileType, Statfs};
use crate::arch::cpu;
use crate::errno::{Errno, Result};
use crate::memory;
use crate::mm::policy;
use crate::sync::Once;

struct SysFs;

impl SuperblockOps for SysFs {
    fn most_bytes(&self) -> u64 {
        i32::MAX as u64
    }

    fn without_programs(&self) -> bool {
        true
    }

    fn statfs(&self) -> Statfs {
        Statfs { magic: 0x6265_6572, block_size: 4096, name_max: 255, ..Statfs::default() }
    }
}

struct Tree {
    directory: Arc<Directory>,
    root: Arc<Dentry>,
}

fn tree() -> &'static Tree {
    static TREE: Once<Tree> = Once::new();
    TREE.call_once(|| {
        let superblock = Superblock::new("sysfs", SysFs);
        let directory = Directory::new(&superblock);
        let root = Dentry::root(directory.inode());
        Tree { directory, root }
    })
}

/// Registers the file `path` (below `/sys`, without a slash in front) that is read through `show` and written through `store`.
pub fn register(
    path: &str,
    show: impl Fn() -> Result<String> + Send + Sync + 'static,
    store: impl Fn(&str) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    tree().directory.register(path, 0o644, Arc::new(Functions { show, store }))
}

/// Registers a file that is only read.
pub fn register_read_only(
    path: &str,
    show: impl Fn() -> Result<String> + Send + Sync + 'static,
) -> Result<()> {
    let store = |_: &str| Err(Errno::EIO);
    tree().directory.register(path, 0o444, Arc::new(Functions { show, store }))
}

/// Registers a file that is only written, by root.
pub fn register_write_only(
    path: &str,
    store: impl Fn(&str) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let show = || Err(Errno::EIO);
    tree().directory.register(path, 0o200, Arc::new(Functions { show, store }))
}

/// As [`register_read_only`], for root alone: what costs others much, or tells of them.
pub fn register_for_root(
    path: &str,
    show: impl Fn() -> Result<String> + Send + Sync + 'static,
) -> Result<()> {
    let store = |_: &str| Err(Errno::EIO);
    tree().directory.register(path, 0o400, Arc::new(Functions { show, store }))
}

/// Registers a symbolic link.
fn register_link(path: &str, target: String) -> Result<()> {
    let link = LinkInode(move || Ok(target.as_bytes().to_vec()));
    tree().directory.register_inode(path, FileType::Symlink, 0o777, link)
}

/// Makes the directory `path` exist.
pub fn make_directory(path: &str) -> Result<()> {
    let mut directory = tree().directory.clone();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        directory = directory.subdirectory(part)?;
    }
    Ok(())
}

fn mount(_: &MountRequest) -> Result<Arc<Dentry>> {
    Ok(tree().root.clone())
}

fn line(value: impl Display) -> Result<String> {
    Ok(alloc::format!("{value}\n"))
}

/// The CPUs 0 to `count - 1`, as Linux writes lists.
fn cpu_list(count: u32) -> String {
    if count == 1 { "0\n".into() } else { alloc::format!("0-{}\n", count - 1) }
}

/// Makes sysfs known, with the files that belong to no other room.
pub fn init() -> Result<()> {
    register_filesystem("sysfs", mount);
    const CPU: &str = "devices/system/cpu";
    for name in ["online", "possible", "present"] {
        register_read_only(&alloc::format!("{CPU}/{name}"), || Ok(cpu_list(cpu::count())))?;
    }
    register_read_only(&alloc::format!("{CPU}/offline"), || line(""))?;
    register_read_only(&alloc::format!("{CPU}/isolated"), || line(""))?;
    register_read_only(&alloc::format!("{CPU}/kernel_max"), || line(cpu::MAX_CPUS - 1))?;
    for id in 0..cpu::count() {
        let directory = alloc::format!("{CPU}/cpu{id}");
        // The first CPU cannot be taken off, as in Linux; the others could, and are on.
        if id > 0 {
            register_read_only(&alloc::format!("{directory}/online"), || line(1))?;
        }
        let topology = alloc::format!("{directory}/topology");
        register_read_only(&alloc::format!("{topology}/core_id"), move || line(id))?;
        register_read_only(&alloc::format!("{topology}/physical_package_id"), || line(0))?;
        register_read_only(&alloc::format!("{topology}/thread_siblings_list"), move || line(id))?;
        register_read_only(&alloc::format!("{topology}/core_siblings_list"), || Ok(cpu_list(cpu::count())))?;
    }
    node::init()?;
    blocks::init()?;
    transparent()?;
    weights()?;
    make_directory("fs/cgroup")?;
    make_directory("kernel/debug")?;
    make_directory("module")?;
    make_directory("class")?;
    make_directory("block")?;
    make_directory("bus")
}

/// How many pages in a row each node has with `MPOL_WEIGHTED_INTERLEAVE`; 0 or nothing is one, as on Linux.
fn weights() -> Result<()> {
    for node in memory::node::list(memory::node::with_memory()) {
        let path = alloc::format!("kernel/mm/mempolicy/weighted_interleave/node{node}");
        let store = move |text: &str| {
            let text = text.trim();
            let weight: u8 = if text.is_empty() { 0 } else { text.parse().map_err(|_| Errno::EINVAL)? };
            policy::set_weight(node, weight.max(1));
            Ok(())
        };
        register(&path, move || line(policy::weight(node)), store)?;
    }
    Ok(())
}

/// Huge pages come from pools alone: programs read here that nothing else makes them, and may ask that it stay so.
fn transparent() -> Result<()> {
    const DIRECTORY: &str = "kernel/mm/transparent_hugepage";
    for (name, choices) in [
        ("enabled", "always madvise [never]"),
        ("defrag", "always defer defer+madvise madvise [never]"),
        ("shmem_enabled", "always within_size advise [never] deny force"),
    ] {
        let store = |text: &str| if text.trim() == "never" { Ok(()) } else { Err(Errno::EINVAL) };
        register(&alloc::format!("{DIRECTORY}/{name}"), move || line(choices), store)?;
    }
    register_read_only(&alloc::format!("{DIRECTORY}/use_zero_page"), || line(0))?;
    // No `hpage_pmd_size`: programs take it for a kernel that can make them.
    register_read_only(&alloc::format!("{DIRECTORY}/khugepaged/defrag"), || line(0))
}
