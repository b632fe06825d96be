//! Brings up the root file system, the types, the first nodes.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::fdtable::FdTable;
use super::file::File;
use super::inode::NewNode;
use super::mount::{self, Mount};
use super::path::{Path, Start};
use super::registry::register_filesystem;
use super::stat::DeviceId;
use super::{ROOT, dev, devpts, msharefs, open, p9, proc, sys, tmpfs};
use crate::errno::{Errno, Result};

/// `/dev/console`.
const CONSOLE: DeviceId = DeviceId::new(5, 1);

/// Makes the root file system and registers the types that this room provides. Called once, before any path
/// is used.
pub fn init() {
    register_filesystem("tmpfs", tmpfs::mount);
    register_filesystem("ramfs", tmpfs::mount_ramfs);
    register_filesystem("devtmpfs", dev::mount);
    if let Err(error) = bring_up() {
        panic!("the root file system could not be made: {error}");
    }
}

fn bring_up() -> Result<()> {
    let root = tmpfs::new_instance("rootfs", "", 0o755)?;
    let mount = Mount::new(root.clone(), "rootfs", 0);
    mount::attach_root(&mount);
    ROOT.set(Path { mount, dentry: root }).map_err(|_| Errno::EBUSY)?;
    dev::init()?;
    devpts::init();
    proc::init()?;
    sys::init()?;
    msharefs::init()?;
    // What Linux's built-in archive holds: so an archive without a console still has one.
    let start = Start::kernel();
    open::create(&start, b"/dev", NewNode::Directory, 0o755)?;
    open::create(&start, b"/dev/console", NewNode::CharDevice(CONSOLE), 0o600)?;
    open::create(&start, b"/root", NewNode::Directory, 0o700)?;
    Ok(())
}

/// The console, for the kernel to give to the first process: `/dev/console`, or the device itself where the
/// archive put something else.
pub fn open_console() -> Result<Arc<File>> {
    match open::open(&Start::kernel(), b"/dev/console", abi::O_RDWR | abi::O_LARGEFILE, 0) {
        Ok(file) => Ok(file),
        Err(_) => dev::open_by_number("console", CONSOLE, abi::O_RDWR | abi::O_LARGEFILE),
    }
}

/// Finds the folders of the host that the machine has. Called once, when devices can be found.
pub fn init_volumes() {
    p9::init();
}

/// Gives the first process the console as descriptors 0, 1 and 2.
pub fn install_console(table: &FdTable) {
    match open_console() {
        Ok(file) => {
            for fd in 0..3 {
                // The numbers are below the limit.
                let _ = table.replace(fd, file.clone(), 3, false);
            }
        }
        Err(error) => log::warn!("unable to open an initial console: {error}"),
    }
}
