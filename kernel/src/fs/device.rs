//! Character devices: which driver serves which number.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::file::FileOps;
use super::path::Path;
use super::stat::{DeviceId, FileType};
use crate::errno::{Errno, Result};
use crate::sync::SpinLock;

/// Opens the device for a new open file with `flags` (`O_*`).
pub type OpenFn = fn(DeviceId, &Path, u32) -> Result<Arc<dyn FileOps>>;

static DRIVERS: SpinLock<Vec<(DeviceId, u32, OpenFn)>> = SpinLock::new(Vec::new());

/// Makes a driver known for `count` character devices from `first` on.
pub fn register_character_device(first: DeviceId, count: u32, open: OpenFn) {
    DRIVERS.lock().push((first, count, open));
}

/// Opens the device node at `path`; `ENXIO` when there is no driver.
pub(super) fn open(path: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
    let inode = path.inode();
    if inode.kind != FileType::CharDevice {
        return Err(Errno::ENXIO);
    }
    let id = inode.rdev;
    let serves = |(first, count, _): &&(DeviceId, u32, OpenFn)| {
        first.major == id.major && (first.minor..first.minor + count).contains(&id.minor)
    };
    let driver = DRIVERS.lock().iter().find(serves).map(|(_, _, open)| *open);
    driver.ok_or(Errno::ENXIO)?(id, path, flags)
}
