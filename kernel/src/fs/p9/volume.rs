//! A mounted folder of the host: its options, its owners, its inodes.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::node::{Node, Way};
use super::session::{Fid, Session};
use super::wire::Attr;
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::inode::{Attributes, Inode, Superblock, SuperblockOps};
use crate::fs::registry::options;
use crate::fs::stat::{DeviceId, FileType, Statfs, Timestamp};
use crate::memory::{PAGE_SIZE, reserve};
use crate::sched;
use crate::sync::Mutex;

/// A number of the host's, and the guest's number that stands for it: a server that is not root can give files to nobody else, so its user
/// is shown as the one whom the guest's programs run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alias {
    host: u32,
    guest: u32,
}

impl Alias {
    fn parse(text: Option<&str>) -> Result<Self> {
        let (host, guest) = text.and_then(|text| text.split_once(':')).ok_or(Errno::EINVAL)?;
        let number = |text: &str| text.parse().map_err(|_| Errno::EINVAL);
        Ok(Self { host: number(host)?, guest: number(guest)? })
    }
}

fn shown(alias: Option<Alias>, host: u32) -> u32 {
    alias.filter(|alias| alias.host == host).map_or(host, |alias| alias.guest)
}

fn meant(alias: Option<Alias>, guest: u32) -> u32 {
    alias.filter(|alias| alias.guest == guest).map_or(guest, |alias| alias.host)
}

/// The options of a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    owner: Option<Alias>,
    group: Option<Alias>,
}

impl Options {
    /// Linux's, as far as they ask for what is done anyway, and `owner=HOST:GUEST` and `group=HOST:GUEST`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parsed = Self::default();
        for (name, value) in options(text) {
            match (name, value) {
                ("trans", Some("virtio")) | ("version", Some("9p2000.L")) => {}
                ("cache", Some("none"))
                | ("access", Some("client"))
                | ("aname" | "uname" | "msize", Some(_)) => {}
                ("owner", value) => parsed.owner = Some(Alias::parse(value)?),
                ("group", value) => parsed.group = Some(Alias::parse(value)?),
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(parsed)
    }
}

/// The inodes of files in use that are no directories, by the server's numbers: names of one file share one.
struct Known {
    inodes: BTreeMap<u64, Weak<Inode>>,
    /// With so many it is looked which are gone.
    sweep_at: usize,
}

/// Inodes that are not worth a look.
const FEW: usize = 256;

/// The file system.
pub struct Volume {
    options: Options,
    known: Mutex<Known>,
    /// For questions about all of it.
    root: Fid,
}

/// The volume that an inode is of.
pub fn of(inode: &Inode) -> Result<&Volume> {
    inode.superblock.ops_as::<Volume>().ok_or(Errno::EIO)
}

/// Makes the file system of what the server shows; gives its root.
pub fn new(session: &'static Session, options: Options) -> Result<Arc<Dentry>> {
    let root = session.attach()?;
    let (fid, attr) = (root.walk(None)?, root.attributes()?);
    if attr.kind != FileType::Directory {
        return Err(Errno::ENOTDIR);
    }
    let known = Known { inodes: BTreeMap::new(), sweep_at: FEW };
    let superblock = Superblock::mounted("9p", Volume { options, known: Mutex::new(known), root })?;
    let way = Way { fid: Arc::new(fid), parent: 0, name: Box::from(&b""[..]) };
    let volume = superblock.ops_as::<Volume>().ok_or(Errno::EIO)?;
    Ok(Dentry::root(volume.new_inode(&superblock, &attr, way)))
}

impl Volume {
    /// The guest's owner and group of a file.
    fn owners(&self, attr: &Attr) -> (u32, u32) {
        (shown(self.options.owner, attr.uid), shown(self.options.group, attr.gid))
    }

    /// The host's number for a user.
    pub fn host_uid(&self, uid: u32) -> u32 {
        meant(self.options.owner, uid)
    }

    /// The host's number for a group.
    pub fn host_gid(&self, gid: u32) -> u32 {
        meant(self.options.group, gid)
    }

    /// The attributes as inodes have them.
    pub fn attributes(&self, attr: &Attr) -> Attributes {
        let (uid, gid) = self.owners(attr);
        Attributes {
            permissions: attr.permissions,
            uid,
            gid,
            nlink: attr.nlink,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            btime: Timestamp::default(),
        }
    }

    fn new_inode(&self, superblock: &Arc<Superblock>, attr: &Attr, way: Way) -> Arc<Inode> {
        let (rdev, attributes) = (DeviceId::decode(attr.rdev), self.attributes(attr));
        let node = Node::new(superblock, attr, way);
        Inode::with_number(superblock, attr.number, attr.kind, rdev, attributes, node)
    }

    /// Takes the inodes that are in use no longer out of those that are known, if it is time for that.
    fn sweep(&self) {
        /// Inodes that are looked at in one hold of the lock.
        const STEP: usize = 64;
        {
            let mut known = self.known.lock();
            if known.inodes.len() < known.sweep_at {
                return;
            }
            // For the others who come meanwhile.
            known.sweep_at = 2 * known.inodes.len();
        }
        let mut next = Some(0);
        while let Some(from) = next {
            let mut gone = SmallVec::<[u64; STEP]>::new();
            let mut known = self.known.lock();
            let some = known.inodes.range(from..).take(STEP);
            next = some.fold(None, |_, (number, inode)| {
                if inode.strong_count() == 0 {
                    gone.push(*number);
                }
                number.checked_add(1)
            });
            for number in gone {
                known.inodes.remove(&number);
            }
            drop(known);
            sched::cond_resched();
        }
        let mut known = self.known.lock();
        known.sweep_at = FEW.max(2 * known.inodes.len());
    }

    /// The inode of a file that was walked to: the one in use, or a new one, which takes `way`.
    ///
    /// A directory has one of its own for each name by which it was found, because the host may rename it: two inodes that are locked one
    /// after the other are never the same.
    pub fn inode(
        &self,
        superblock: &Arc<Superblock>,
        attr: &Attr,
        way: &mut Option<Way>,
    ) -> Result<Arc<Inode>> {
        let mut take = || way.take().ok_or(Errno::EIO);
        // It may stay in use when its finder ends.
        reserve::ask_lasting(PAGE_SIZE)?;
        if attr.kind == FileType::Directory {
            return Ok(self.new_inode(superblock, attr, take()?));
        }
        self.sweep();
        let mut known = self.known.lock();
        let in_use = known.inodes.get(&attr.number).and_then(Weak::upgrade);
        if let Some(inode) = in_use.filter(|inode| Node::is_of(inode, attr)) {
            return Ok(inode);
        }
        let inode = self.new_inode(superblock, attr, take()?);
        known.inodes.insert(attr.number, Arc::downgrade(&inode));
        Ok(inode)
    }
}

impl SuperblockOps for Volume {
    fn statfs(&self) -> Statfs {
        // Who is killed, or has lost the server, gets an answer without numbers.
        self.root.statfs().unwrap_or(Statfs { magic: super::MAGIC, name_max: 255, ..Statfs::default() })
    }

    fn magic(&self) -> u64 {
        super::MAGIC
    }

    fn options(&self) -> String {
        let mut text = String::from(",access=client,trans=virtio");
        for (name, alias) in [("owner", self.options.owner), ("group", self.options.group)] {
            if let Some(Alias { host, guest }) = alias {
                text.push_str(&alloc::format!(",{name}={host}:{guest}"));
            }
        }
        text
    }

    fn remount(&self, text: &str) -> Result<()> {
        Options::parse(text).map(drop)
    }
}
