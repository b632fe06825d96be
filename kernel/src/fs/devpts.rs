//! devpts: the terminals of pseudoterminals by number, usually at `/dev/pts`.
//!
//! There is one instance. Its entries are the pairs that exist now, and `ptmx`, which makes a new one.

use alloc::sync::{Arc, Weak};

use super::dentry::Dentry;
use super::inode::{Attributes, Dirent, Inode, InodeOps, Superblock, SuperblockOps};
use super::registry::{MountRequest, register_filesystem};
use super::stat::{DeviceId, FileType, Statfs};
use crate::errno::{Errno, Result};
use crate::sync::Once;
use crate::tty::pty::{self, Pair};

struct DevPts;

impl SuperblockOps for DevPts {
    fn statfs(&self) -> Statfs {
        Statfs { magic: 0x1cd1, block_size: 4096, name_max: 255, ..Statfs::default() }
    }
}

struct Instance {
    superblock: Arc<Superblock>,
    root: Arc<Dentry>,
}

fn instance() -> &'static Instance {
    static INSTANCE: Once<Instance> = Once::new();
    INSTANCE.call_once(|| {
        let superblock = Superblock::new("devpts", DevPts);
        let attributes = Attributes { nlink: 2, ..Attributes::new(0o755, 0, 0) };
        let root = Inode::new(&superblock, FileType::Directory, attributes, Root);
        Instance { superblock, root: Dentry::root(root) }
    })
}

fn mount(_: &MountRequest) -> Result<Arc<Dentry>> {
    Ok(instance().root.clone())
}

/// Makes the type known.
pub fn init() {
    register_filesystem("devpts", mount);
}

/// Inode numbers as Linux gives them: the root is 1, `ptmx` 2, terminal N is N + 3.
const PTMX_INO: u64 = 2;
const FIRST_INO: u64 = 3;
/// Directory offset of `ptmx`; terminal N comes at N + 1 behind it.
const FIRST_OFFSET: u64 = 2;

/// The node of a terminal; the pair may be gone, and its number given to another.
struct Terminal(Weak<Pair>);
impl InodeOps for Terminal {}

/// The node `ptmx`.
struct Ptmx;
impl InodeOps for Ptmx {}

struct Root;

fn device(ino: u64, device: DeviceId, attributes: Attributes, ops: impl InodeOps) -> Arc<Inode> {
    Inode::with_number(&instance().superblock, ino, FileType::CharDevice, device, attributes, ops)
}

impl InodeOps for Root {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        if name == b"ptmx" {
            let make = || Ok(device(PTMX_INO, pty::PTMX, Attributes::new(0o666, 0, 0), Ptmx));
            return dir.child(name, |_| true, make);
        }
        let number: u32 = core::str::from_utf8(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|n| alloc::format!("{n}").as_bytes() == name)
            .ok_or(Errno::ENOENT)?;
        let pair = pty::find(number).ok_or(Errno::ENOENT)?;
        let same = |inode: &Inode| {
            inode.ops_as::<Terminal>().is_some_and(|t| core::ptr::eq(t.0.as_ptr(), Arc::as_ptr(&pair)))
        };
        let make = || {
            let (uid, gid) = pair.owner();
            let attributes = Attributes::new(0o620, uid, gid);
            let ops = Terminal(Arc::downgrade(&pair));
            Ok(device(FIRST_INO + u64::from(number), pair.device(), attributes, ops))
        };
        let dentry = dir.child(name, same, make)?;
        pair.keep(&dentry);
        Ok(dentry)
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        let kind = FileType::CharDevice;
        let ptmx = Dirent { ino: PTMX_INO, next_offset: FIRST_OFFSET + 1, kind, name: b"ptmx" };
        if from <= FIRST_OFFSET && !emit(ptmx) {
            return Ok(());
        }
        let mut next = from.saturating_sub(FIRST_OFFSET + 1);
        while let Some((number, is_found)) = u32::try_from(next).ok().and_then(pty::next_number) {
            next = u64::from(number) + 1;
            if !is_found {
                continue;
            }
            let name = alloc::format!("{number}");
            let entry = Dirent {
                ino: FIRST_INO + u64::from(number),
                next_offset: FIRST_OFFSET + 1 + next,
                kind,
                name: name.as_bytes(),
            };
            if !emit(entry) {
                break;
            }
        }
        Ok(())
    }
}
