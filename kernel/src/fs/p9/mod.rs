//! Folders of the host in the guest: a client of 9P2000.L over virtio, the file system `9p` of Linux.
//!
//! `mount -t 9p -o trans=virtio TAG DIR` shows the folder that the machine has under this tag. The server, which is QEMU, keeps to the folder,
//! whatever it is asked; names are looked up one by one, `..` and symbolic links are the business of this kernel's own walk, as in every
//! file system.
//!
//! Nothing is kept that could go out of date but what a program has mapped: each lookup, each stat(2), each read and write goes to the
//! server, so the host's changes are seen at once, and what write(2) has written is the host's. Locks (flock(2), fcntl(2)) are
//! among the guest's programs only. A file whose last name was removed stays usable for those who have it open; what is asked by name
//! on the server is then answered from what is known here ([`node`]).
//!
//! From the outside in: [`volume`] is a mounted file system and its inodes, [`node`] a file or directory, [`file`] and [`listing`] what
//! is open, [`pages`] what is mapped, [`session`] the fids and requests, [`channel`] the line, [`wire`] the messages. There are crates with
//! messages of 9P; each needs the standard library, most are servers, and `virtio-drivers`' own device waits in a loop for each
//! reply. So what is here rests on that crate's queue and transport.

mod channel;
mod file;
mod listing;
mod node;
mod pages;
mod session;
mod volume;
mod wire;

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use virtio_drivers::transport::DeviceType;

use self::session::Session;
use self::volume::Options;
use super::dentry::Dentry;
use super::registry::{MountRequest, register_filesystem};
use crate::errno::{Errno, Result};
use crate::sync::{Mutex, Once, SpinLock};
use crate::virtio;

/// `V9FS_MAGIC`.
const MAGIC: u64 = 0x0102_1997;

/// A folder that the machine has.
struct Device {
    tag: Box<[u8]>,
    /// Until it is first mounted. Held while somebody mounts it.
    found: Mutex<Option<virtio::Found>>,
    session: Once<&'static Session>,
    /// The file system while it is in use: a folder has one, however often it is mounted.
    root: SpinLock<Weak<Dentry>>,
}

static DEVICES: Once<Vec<Device>> = Once::new();

/// Finds the devices and makes the type known.
pub fn init() {
    register_filesystem("9p", mount);
    let devices = virtio::find_all(DeviceType::_9P).filter_map(|found| {
        let tag = session::tag_of(&found.transport)?;
        let (found, session) = (Mutex::new(Some(found)), Once::new());
        Some(Device { tag, found, session, root: SpinLock::new(Weak::new()) })
    });
    let _ = DEVICES.set(devices.collect());
}

fn devices() -> &'static [Device] {
    DEVICES.get().map_or(&[], |devices| devices)
}

/// One of the devices has interrupted.
fn interrupted() {
    devices().iter().filter_map(|device| device.session.get()).for_each(|session| session.interrupted());
}

impl Device {
    /// The root of its file system.
    fn root(&self, options: Options) -> Result<Arc<Dentry>> {
        // Who has it may wait for the server.
        let mut found = self.found.lock_killable().ok_or(Errno::EINTR)?;
        if let Some(root) = self.root.lock().upgrade() {
            return Ok(root);
        }
        if let Some(found) = found.take() {
            let _ = self.session.set(Session::new(found, interrupted)?);
        }
        // A device that could not be taken over is lost.
        let session = *self.session.get().ok_or(Errno::ENODEV)?;
        session.begin()?;
        let root = volume::new(session, options)?;
        *self.root.lock() = Arc::downgrade(&root);
        Ok(root)
    }
}

/// For the registry of file-system types. `ENOENT` without a folder of that tag, as Linux.
fn mount(request: &MountRequest) -> Result<Arc<Dentry>> {
    let options = Options::parse(request.options)?;
    let is_it = |device: &&Device| *device.tag == *request.source.as_bytes();
    devices().iter().find(is_it).ok_or(Errno::ENOENT)?.root(options)
}
