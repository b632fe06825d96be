//! The file system whose files are queues.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as abi;

use super::limits::QUEUES_MAX;
use super::{Making, Queue};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::inode::{Inode, InodeOps, Superblock, SuperblockOps};
use crate::fs::mount::Mount;
use crate::fs::mount_namespace::check_may_show;
use crate::fs::path::{Path, Start, resolve};
use crate::fs::registry::{MountRequest, register_filesystem};
use crate::fs::tree::{self, InodeCharge, TreeFs};
use crate::fs::{File, FileOps, Stat, Statfs, caller, modify, open};
use crate::memory::{PAGE_SIZE, reserve};
use crate::namespaces::ipc::here;
use crate::process;
use crate::sync::{Mutex, SpinLock};

/// `MQUEUE_MAGIC`.
const MAGIC: u64 = 0x1980_0202;
/// Bytes that a queue's text is said to have: `FILENT_SIZE`.
const TEXT: u64 = 80;

/// One instance, as its tree of one directory sees it.
#[derive(Default)]
struct Inodes {
    /// How many there are, the root among them.
    count: AtomicUsize,
    /// What the queue is to be like that a thread makes by mq_open(2), and its part of what the user may have.
    making: SpinLock<Option<Making>>,
}

impl Inodes {
    /// `ENOSPC` when there are as many queues as there may be.
    fn check_room(&self) -> Result<()> {
        // Relaxed: a setting of its own.
        let most = QUEUES_MAX.load(Ordering::Relaxed);
        let all = self.count.load(Ordering::SeqCst);
        let privileged = || process::current().credentials().capable(abi::CAP_SYS_RESOURCE);
        // The root is there before any queue.
        if all == 0 || all - 1 < most || privileged() { Ok(()) } else { Err(Errno::ENOSPC) }
    }
}

impl TreeFs for Inodes {
    fn charge_inode(&self) -> Result<()> {
        self.check_room()?;
        // A queue stays when its maker ends.
        reserve::ask_lasting(PAGE_SIZE)?;
        self.count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn uncharge_inode(&self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_flat(&self) -> bool {
        true
    }

    fn regular(&self, charge: InodeCharge) -> Box<dyn InodeOps> {
        let tid = process::current().tid();
        let making = self.making.lock().take_if(|making| making.tid == tid);
        Box::new(Node { queue: Arc::new(Queue::new(making)), _charge: charge })
    }
}

struct Node {
    queue: Arc<Queue>,
    _charge: InodeCharge,
}

impl InodeOps for Node {
    fn open(&self, _: &Path, _: u32) -> Result<Arc<dyn FileOps>> {
        self.queue.count()?;
        Ok(self.queue.clone())
    }

    fn stat(&self, _: &Inode, stat: &mut Stat) {
        stat.size = TEXT;
    }
}

/// The root, until the last mount is gone.
struct Mqueue(SpinLock<Option<Arc<Dentry>>>);

impl SuperblockOps for Mqueue {
    fn statfs(&self) -> Statfs {
        Statfs { magic: MAGIC, block_size: PAGE_SIZE as u64, name_max: 255, ..Statfs::default() }
    }

    fn kill(&self) {
        let root = self.0.lock().take();
        if let Some(root) = root {
            tree::teardown(&root);
        }
    }
}

/// The queues of one namespace, as a mount that nobody sees.
pub struct Instance {
    mount: Arc<Mount>,
    inodes: Arc<Inodes>,
    /// One at a time makes a queue by mq_open(2): who has it opens nothing that is there already, and so waits for nobody.
    turn: Mutex<()>,
}

impl Instance {
    /// Without any queue.
    pub fn new() -> Result<Self> {
        let superblock = Superblock::mounted("mqueue", Mqueue(SpinLock::new(None)))?;
        let inodes = Arc::new(Inodes::default());
        let fs: Arc<dyn TreeFs> = inodes.clone();
        let root = tree::new_root(&superblock, &fs, 0o1777, 0, 0)?;
        if let Some(mqueue) = superblock.ops_as::<Mqueue>() {
            *mqueue.0.lock() = Some(root.clone());
        }
        Ok(Self { mount: Mount::new(root, "mqueue", 0), inodes, turn: Mutex::new(()) })
    }
}

/// For the registry of file-system types: each mount in a namespace shows the same queues.
fn mount(_: &MountRequest) -> Result<Arc<Dentry>> {
    let namespace = here();
    check_may_show(&namespace.head.user)?;
    Ok(namespace.messages()?.mount.root.clone())
}

/// Makes the type known.
pub fn register() -> Result<()> {
    register_filesystem("mqueue", mount);
    Ok(())
}

/// Where names of queues are looked up. A name is one component: `EACCES` for anything else, as Linux answers.
fn start(name: &[u8]) -> Result<Start> {
    if name.is_empty() {
        return Err(Errno::ENOENT);
    }
    if name.contains(&b'/') || name == b"." || name == b".." {
        return Err(Errno::EACCES);
    }
    if name.len() > 255 {
        return Err(Errno::ENAMETOOLONG);
    }
    let mount = here().messages()?.mount.clone();
    let root = Path { dentry: mount.root.clone(), mount };
    Ok(Start { base: root.clone(), root, credentials: caller::credentials(), resolve: 0 })
}

/// Opens a queue.
pub(super) fn open(name: &[u8], flags: u32) -> Result<Arc<File>> {
    open::open(&start(name)?, name, flags, 0)
}

/// Whether there is a queue of that name.
pub(super) fn exists(name: &[u8]) -> Result<bool> {
    match resolve(&start(name)?, name, true) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a queue and opens it. `EEXIST`, and `EINTR` if the caller is killed while others make some.
pub(super) fn make(name: &[u8], flags: u32, mode: u32, making: Making) -> Result<Arc<File>> {
    let start = start(name)?;
    let namespace = here();
    let instance = namespace.messages()?;
    let _turn = instance.turn.lock_killable().ok_or(Errno::EINTR)?;
    let old = instance.inodes.making.lock().replace(making);
    drop(old);
    let file = open::open(&start, name, flags | abi::O_CREAT | abi::O_EXCL, mode);
    // It is still there when no queue was made.
    let left = instance.inodes.making.lock().take();
    drop(left);
    file
}

/// Takes a name away. The queue goes with its last descriptor.
pub(super) fn unlink(name: &[u8]) -> Result<()> {
    modify::unlink(&start(name)?, name)
}
