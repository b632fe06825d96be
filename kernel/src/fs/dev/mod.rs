//! devtmpfs: the device nodes that the kernel itself provides.
//!
//! There is one instance; each mount of it shows the same tree. It is a tmpfs, so user programs may add to
//! it.

mod kmsg;
mod memory;

use alloc::sync::Arc;

use super::access::Credentials;
use super::dentry::Dentry;
use super::inode::NewNode;
use super::mount::Mount;
use super::path::{Path, Start};
use super::registry::MountRequest;
use super::stat::DeviceId;
use super::{open, path, tmpfs};
use crate::errno::{Errno, Result};
use crate::sync::Once;

/// A mount of the kernel's own, which keeps the instance.
static INSTANCE: Once<Arc<Mount>> = Once::new();

/// Makes the instance with the memory devices, and registers their drivers.
pub fn init() -> Result<()> {
    let root = tmpfs::new_instance("devtmpfs", "mode=0755", 0o755)?;
    let mount = Mount::new(root, "devtmpfs", 0);
    INSTANCE.set(mount).map_err(|_| Errno::EBUSY)?;
    memory::init()?;
    kmsg::init()?;
    crate::mm::userfault::init()
}

/// For the registry of file-system types.
pub fn mount(_request: &MountRequest) -> Result<Arc<Dentry>> {
    INSTANCE.get().map(|mount| mount.root.clone()).ok_or(Errno::ENODEV)
}

/// Makes the node `name` (it may have directories in front) for a character device.
pub fn create_node(name: &str, device: DeviceId, permissions: u32) -> Result<()> {
    let mount = INSTANCE.get().ok_or(Errno::ENODEV)?;
    let root = Path { mount: mount.clone(), dentry: mount.root.clone() };
    let start = Start { base: root.clone(), root, credentials: Credentials::kernel(), resolve: 0 };
    for (end, _) in name.match_indices('/') {
        match open::create(&start, &name.as_bytes()[..end], NewNode::Directory, 0o755) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
    open::create(&start, name.as_bytes(), NewNode::CharDevice(device), permissions).map(drop)
}

/// Opens a device by its number as the kernel itself does, without a node in any directory.
pub fn open_by_number(name: &str, device: DeviceId, flags: u32) -> Result<Arc<super::File>> {
    let mount = INSTANCE.get().ok_or(Errno::ENODEV)?;
    let root = Path { mount: mount.clone(), dentry: mount.root.clone() };
    let start = Start { base: root.clone(), root, credentials: Credentials::kernel(), resolve: 0 };
    let place = path::resolve(&start, name.as_bytes(), true)?;
    if place.inode().rdev != device {
        return Err(Errno::ENXIO);
    }
    open::open_place(&start, &place, flags)
}
