//! The interface files of groups: what each kind shows and takes, and the files themselves.

use alloc::string::ToString;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::group::Group;
use super::{Controller, core_files, hugetlb, pids};
use crate::errno::{Errno, Result};
use crate::fs::access::Credentials;
use crate::fs::file::{File, FileOps, Whence};
use crate::fs::inode::{Attributes, Inode, InodeOps, Superblock};
use crate::fs::{Events, FileType, Path, Sink, Source, caller, notify, pseudo};
use crate::memory::PAGE_SIZE;
use crate::memory::fallible::{self, Text};
use crate::sync::{SpinLock, WaitQueue};

/// Composes the text of a file.
type Show = fn(&Arc<Group>, &mut Text) -> Result<()>;
/// Takes what was written, without white space around it, by who opened the file.
type Store = fn(&Arc<Group>, &str, &Credentials) -> Result<()>;

/// A kind of file.
pub(super) struct Interface {
    pub name: &'static str,
    /// The groups that have this controller have the file; all have it without.
    pub controller: Option<Controller>,
    /// Whether the root has it.
    on_root: bool,
    show: Option<Show>,
    store: Option<Store>,
}

impl Interface {
    /// A file of every group but the root.
    pub const fn new(name: &'static str) -> Interface {
        Interface { name, controller: None, on_root: false, show: None, store: None }
    }

    /// The root has it too.
    pub const fn and_root(self) -> Interface {
        Interface { on_root: true, ..self }
    }

    /// Only with a controller.
    pub const fn of(self, controller: Controller) -> Interface {
        Interface { controller: Some(controller), ..self }
    }

    /// It can be read.
    pub const fn read(self, show: Show) -> Interface {
        Interface { show: Some(show), ..self }
    }

    /// It can be written.
    pub const fn write(self, store: Store) -> Interface {
        Interface { store: Some(store), ..self }
    }

    fn permissions(&self) -> u32 {
        let read = if self.show.is_some() { 0o444 } else { 0 };
        read | if self.store.is_some() { 0o200 } else { 0 }
    }

    /// All that there are, in the order in which directories list them.
    fn all() -> impl Iterator<Item = &'static Interface> {
        const ALL: [&[Interface]; 4] =
            [&core_files::INTERFACES, &hugetlb::INTERFACES_2M, &hugetlb::INTERFACES_1G, &pids::INTERFACES];
        ALL.into_iter().flatten()
    }

    /// Those that a group with these controllers has, of one controller or of none.
    pub fn wanted(group: &Group, controller: Option<Controller>) -> impl Iterator<Item = &'static Interface> {
        let is_root = group.is_root();
        Self::all().filter(move |one| one.controller == controller && (one.on_root || !is_root))
    }
}

/// One interface file of one group.
pub(super) struct Knob {
    pub interface: &'static Interface,
    group: Arc<Group>,
    /// The two refer to each other until the file is gone.
    inode: SpinLock<Option<Arc<Inode>>>,
    /// How often its content has changed by itself, and one.
    changes: AtomicU64,
    watchers: WaitQueue,
}

impl Knob {
    /// The file of a group, of the owner of its directory.
    pub fn new(
        superblock: &Arc<Superblock>,
        group: &Arc<Group>,
        interface: &'static Interface,
        (uid, gid): (u32, u32),
    ) -> Arc<Knob> {
        let knob = Arc::new(Knob {
            interface,
            group: group.clone(),
            inode: SpinLock::new(None),
            changes: AtomicU64::new(1),
            watchers: WaitQueue::new(),
        });
        let attributes = Attributes::new(interface.permissions(), uid, gid);
        let inode = Inode::new(superblock, FileType::Regular, attributes, KnobInode(knob.clone()));
        *knob.inode.lock() = Some(inode);
        knob
    }

    /// Its inode, while there is the file.
    pub fn inode(&self) -> Option<Arc<Inode>> {
        self.inode.lock().clone()
    }

    /// The file is gone: the knob refers to its inode no more.
    pub fn take_inode(&self) -> Option<Arc<Inode>> {
        self.inode.lock().take()
    }

    /// Whoever polls it or watches it hears that it is to be read again.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.watchers.wake_all();
        if let Some(inode) = self.inode() {
            notify::happened_to(&inode, abi::IN_MODIFY);
        }
    }

    /// `ENODEV` once the group, or the file, is gone.
    fn check(&self) -> Result<()> {
        let listed = || self.group.knobs.lock().iter().any(|knob| core::ptr::eq(Arc::as_ptr(knob), self));
        if self.group.is_dead() || !listed() { Err(Errno::ENODEV) } else { Ok(()) }
    }
}

struct KnobInode(Arc<Knob>);

impl InodeOps for KnobInode {
    fn open(&self, _: &Path, _: u32) -> Result<Arc<dyn FileOps>> {
        self.0.check()?;
        Ok(Arc::new(Open {
            knob: self.0.clone(),
            opener: caller::credentials(),
            kept: pseudo::KeptText::new(),
            seen: AtomicU64::new(0),
        }))
    }

    /// Opening with `O_TRUNC` changes nothing.
    fn truncate(&self, _: &Inode, _: u64) -> Result<()> {
        Ok(())
    }
}

/// An open interface file.
struct Open {
    knob: Arc<Knob>,
    /// Who opened it: a descriptor that is handed on gives the taker no more rights, and takes none away.
    opener: Credentials,
    kept: pseudo::KeptText,
    /// The changes that were read.
    seen: AtomicU64,
}

impl FileOps for Open {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        self.knob.check()?;
        let show = self.knob.interface.show.ok_or(Errno::EINVAL)?;
        self.kept.read(offset, sink, || {
            self.seen.store(self.knob.changes.load(Ordering::SeqCst), Ordering::SeqCst);
            let mut text = Text::new();
            show(&self.knob.group, &mut text)?;
            text.finish()
        })
    }

    fn kernel_bytes(&self) -> u64 {
        self.kept.kernel_bytes()
    }

    fn write_at(&self, _: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        let store = self.knob.interface.store.ok_or(Errno::EINVAL)?;
        let len = source.remaining();
        if len > PAGE_SIZE {
            return Err(Errno::E2BIG);
        }
        let mut bytes = fallible::filled(0, len)?;
        source.read_exact(&mut bytes)?;
        self.knob.check()?;
        let value = core::str::from_utf8(&bytes).map_err(|_| Errno::EINVAL)?;
        store(
            &self.knob.group,
            value.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0'),
            &self.opener,
        )?;
        Ok(len)
    }

    fn seek(&self, _: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        pseudo::text_seek(whence, offset, position)
    }

    fn poll(&self, _: &File) -> Events {
        let news = self.knob.changes.load(Ordering::SeqCst) != self.seen.load(Ordering::SeqCst);
        if news { Events::ALWAYS | Events::PRI | Events::ERR } else { Events::ALWAYS }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.knob.watchers);
    }

    fn pollable(&self) -> bool {
        true
    }
}

/// A count, or `max`.
pub(super) fn push_limit(text: &mut Text, limit: Option<u64>) {
    match limit {
        Some(limit) => text.push_str(&limit.to_string()),
        None => text.push_str("max"),
    }
    text.push_str("\n");
}

/// A count up to `most`, or none for `max`; beyond it is `outside`, what is no number `EINVAL`.
pub(super) fn parse_limit(value: &str, most: u64, outside: Errno) -> Result<Option<u64>> {
    if value == "max" {
        return Ok(None);
    }
    let number: i64 = value.parse().map_err(|_| Errno::EINVAL)?;
    match u64::try_from(number) {
        Ok(number) if number <= most => Ok(Some(number)),
        _ => Err(outside),
    }
}
