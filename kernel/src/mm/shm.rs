//! System V shared memory: shmget(2), shmat(2), shmdt(2), shmctl(2).
//!
//! A segment is shared anonymous memory, or a hugetlbfs file without a name. Each area that maps it holds an [`Attachment`]; when the last goes
//! and the segment is marked for removal, the segment goes too.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::anonymous::SharedMemory;
use crate::errno::{Errno, Result};
use crate::hugetlb::HugeFile;
use crate::memory::fallible::{self, Text, TryVec};
use crate::memory::{PAGE_SIZE, reserve};
use crate::process::{self, Pid};
use crate::sync::SpinLock;

/// A key that every shmget(2) makes a new segment for.
pub const IPC_PRIVATE: i32 = 0;
/// The segment may be read / written by its permission bits.
pub const READ: u32 = 0o4;
pub const WRITE: u32 = 0o2;

/// Largest number of segments that can be set.
const SLOTS: usize = 32768;

static SHMMNI: AtomicUsize = AtomicUsize::new(4096);
static SHMMAX: AtomicU64 = AtomicU64::new(u64::MAX - (1 << 24));
static SHMALL: AtomicU64 = AtomicU64::new(u64::MAX - (1 << 24));

/// `kernel.shmmni`: segments in the system.
pub fn shmmni() -> usize {
    // Relaxed, as all of these: settings of their own.
    SHMMNI.load(Ordering::Relaxed)
}

/// Sets `kernel.shmmni`.
pub fn set_shmmni(value: usize) -> Result<()> {
    if value > SLOTS {
        return Err(Errno::EINVAL);
    }
    SHMMNI.store(value, Ordering::Relaxed);
    Ok(())
}

/// `kernel.shmmax`: bytes in a segment.
pub fn shmmax() -> u64 {
    SHMMAX.load(Ordering::Relaxed)
}

/// Sets `kernel.shmmax`.
pub fn set_shmmax(value: u64) {
    SHMMAX.store(value, Ordering::Relaxed);
}

/// `kernel.shmall`: pages in all segments.
pub fn shmall() -> u64 {
    SHMALL.load(Ordering::Relaxed)
}

/// Sets `kernel.shmall`.
pub fn set_shmall(value: u64) {
    SHMALL.store(value, Ordering::Relaxed);
}

/// What is behind a segment.
pub enum Memory {
    Pages(Arc<SharedMemory>),
    Huge(Arc<HugeFile>),
}

/// Owner and permissions.
#[derive(Clone, Copy, Debug)]
pub struct Permissions {
    pub uid: u32,
    pub gid: u32,
    pub creator_uid: u32,
    pub creator_gid: u32,
    /// Nine permission bits, and `SHM_DEST`, `SHM_LOCKED`, as IPC_STAT shows them.
    pub mode: u32,
}

/// What changes over a segment's life.
struct State {
    permissions: Permissions,
    attached_at: i64,
    detached_at: i64,
    changed_at: i64,
    last_pid: Pid,
    attachments: u64,
}

/// `SHM_DEST`: goes with its last attachment. `SHM_LOCKED`.
pub const DEST: u32 = 0o1000;
pub const LOCKED: u32 = 0o2000;

/// A segment.
pub struct Segment {
    pub id: i32,
    pub key: i32,
    pub size: u64,
    pub memory: Memory,
    creator: Pid,
    state: SpinLock<State>,
}

/// All that IPC_STAT tells.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub key: i32,
    pub permissions: Permissions,
    pub size: u64,
    pub attached_at: i64,
    pub detached_at: i64,
    pub changed_at: i64,
    pub creator: Pid,
    pub last_pid: Pid,
    pub attachments: u64,
    pub sequence: u16,
}

#[derive(Default)]
struct Table {
    slots: Vec<Option<Arc<Segment>>>,
    /// The slots in between that are empty.
    empty: BTreeSet<usize>,
    /// The slots of the segments that have keys.
    keys: BTreeMap<i32, usize>,
    count: usize,
    /// Pages of all segments.
    pages: u64,
    sequence: u16,
}

static TABLE: SpinLock<Table> = SpinLock::new(Table {
    slots: Vec::new(),
    empty: BTreeSet::new(),
    keys: BTreeMap::new(),
    count: 0,
    pages: 0,
    sequence: 0,
});

fn now() -> i64 {
    (crate::time::realtime_now() / 1_000_000_000) as i64
}

fn current_pid() -> Pid {
    process::current().process.pid
}

impl Segment {
    /// `EACCES` unless the caller may do `want` with it.
    pub fn check(&self, want: u32) -> Result<()> {
        let permissions = self.state.lock().permissions;
        let who = process::current().credentials();
        let bits = if who.euid == permissions.uid || who.euid == permissions.creator_uid {
            permissions.mode >> 6
        } else if who.in_group(permissions.gid) || who.in_group(permissions.creator_gid) {
            permissions.mode >> 3
        } else {
            permissions.mode
        };
        if want & !bits & 7 == 0 || who.capable(linux_raw_sys::general::CAP_IPC_OWNER) {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }

    /// `EPERM` unless the caller owns it.
    pub fn check_owner(&self) -> Result<()> {
        let permissions = self.state.lock().permissions;
        let who = process::current().credentials();
        if who.euid == permissions.uid
            || who.euid == permissions.creator_uid
            || who.capable(linux_raw_sys::general::CAP_SYS_ADMIN)
        {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }

    /// What IPC_STAT tells.
    pub fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            key: self.key,
            permissions: state.permissions,
            size: self.size,
            attached_at: state.attached_at,
            detached_at: state.detached_at,
            changed_at: state.changed_at,
            creator: self.creator,
            last_pid: state.last_pid,
            attachments: state.attachments,
            sequence: (self.id as usize / SLOTS) as u16,
        }
    }

    /// IPC_SET.
    pub fn set(&self, uid: u32, gid: u32, mode: u32) {
        let mut state = self.state.lock();
        state.permissions.uid = uid;
        state.permissions.gid = gid;
        state.permissions.mode = state.permissions.mode & !0o777 | mode & 0o777;
        state.changed_at = now();
    }

    /// SHM_LOCK and SHM_UNLOCK: an account only, since pages never leave memory.
    pub fn set_locked(&self, locked: bool) {
        let mut state = self.state.lock();
        state.permissions.mode = state.permissions.mode & !LOCKED | if locked { LOCKED } else { 0 };
    }

    /// IPC_RMID: it goes now, or with its last attachment; its key is free at once.
    pub fn mark_for_removal(self: &Arc<Self>) {
        let mut table = TABLE.lock();
        let mut state = self.state.lock();
        state.permissions.mode |= DEST;
        let unused = state.attachments == 0;
        drop(state);
        table.forget_key(self);
        let gone = if unused { table.take(self) } else { None };
        drop(table);
        // The memory is freed without the lock.
        drop(gone);
    }
}

impl Table {
    fn take(&mut self, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
        let number = segment.id as usize % SLOTS;
        let slot = &mut self.slots[number];
        if !slot.as_ref().is_some_and(|found| Arc::ptr_eq(found, segment)) {
            return None;
        }
        self.count -= 1;
        self.pages -= segment.size.div_ceil(super::PAGE);
        self.empty.insert(number);
        slot.take()
    }

    /// Its key is free for another.
    fn forget_key(&mut self, segment: &Segment) {
        if self.by_key(segment.key).is_some_and(|found| core::ptr::eq(Arc::as_ptr(found), segment)) {
            self.keys.remove(&segment.key);
        }
    }

    fn by_key(&self, key: i32) -> Option<&Arc<Segment>> {
        self.slots.get(*self.keys.get(&key)?)?.as_ref()
    }
}

/// The segment with an identifier; `EINVAL` when there is none.
pub fn by_id(id: i32) -> Result<Arc<Segment>> {
    let table = TABLE.lock();
    let slot = usize::try_from(id).map_err(|_| Errno::EINVAL)? % SLOTS;
    let segment = table.slots.get(slot).and_then(Option::as_ref).filter(|segment| segment.id == id);
    segment.cloned().ok_or(Errno::EINVAL)
}

/// The segment in a slot of the table: SHM_STAT.
pub fn by_slot(slot: i32) -> Result<Arc<Segment>> {
    let table = TABLE.lock();
    let slot = usize::try_from(slot).map_err(|_| Errno::EINVAL)?;
    table.slots.get(slot).and_then(Option::as_ref).cloned().ok_or(Errno::EINVAL)
}

/// The segment that a key names now.
pub fn by_key(key: i32) -> Option<Arc<Segment>> {
    TABLE.lock().by_key(key).cloned()
}

/// All segments.
fn all() -> Result<Vec<Arc<Segment>>> {
    fallible::collect(TABLE.lock().slots.iter().flatten().cloned())
}

/// Segments, the highest slot in use, pages of all of them, and pages in memory.
pub fn totals() -> (usize, i32, u64, u64) {
    let table = TABLE.lock();
    let highest = table.slots.iter().rposition(Option::is_some).map_or(0, |slot| slot as i32);
    let resident = table.slots.iter().flatten().map(|segment| match &segment.memory {
        Memory::Pages(memory) => memory.pages(),
        Memory::Huge(file) => file.resident_bytes() / super::PAGE,
    });
    let resident = resident.sum();
    (table.count, highest, table.pages, resident)
}

/// Makes a segment. `Ok(Err(segment))` when `key` has got one meanwhile.
pub fn create(key: i32, size: u64, mode: u32, memory: Memory) -> Result<Result<Arc<Segment>, Arc<Segment>>> {
    let who = process::current().credentials();
    let pid = current_pid();
    let pages = size.div_ceil(super::PAGE);
    reserve::ask_lasting(PAGE_SIZE)?;
    let mut table = TABLE.lock();
    if key != IPC_PRIVATE
        && let Some(found) = table.by_key(key)
    {
        return Ok(Err(found.clone()));
    }
    if table.count >= shmmni() || table.pages.saturating_add(pages) > shmall() {
        return Err(Errno::ENOSPC);
    }
    let slot = match table.empty.pop_first() {
        Some(slot) => slot,
        None => {
            table.slots.try_push(None)?;
            table.slots.len() - 1
        }
    };
    // An identifier does not come back soon, so that a stale one does not find a stranger.
    table.sequence = table.sequence.wrapping_add(1);
    let id = ((usize::from(table.sequence) * SLOTS + slot) & i32::MAX as usize) as i32;
    let permissions = Permissions {
        uid: who.euid,
        gid: who.egid,
        creator_uid: who.euid,
        creator_gid: who.egid,
        mode: mode & 0o777,
    };
    let state =
        State { permissions, attached_at: 0, detached_at: 0, changed_at: now(), last_pid: 0, attachments: 0 };
    let segment = Arc::new(Segment { id, key, size, memory, creator: pid, state: SpinLock::new(state) });
    table.slots[slot] = Some(segment.clone());
    if key != IPC_PRIVATE {
        table.keys.insert(key, slot);
    }
    table.count += 1;
    table.pages += pages;
    Ok(Ok(segment))
}

/// One area's hold on a segment.
pub struct Attachment(Arc<Segment>);

impl Attachment {
    /// `EIDRM` when the segment has gone meanwhile.
    pub fn new(segment: Arc<Segment>) -> Result<Self> {
        let mut state = segment.state.lock();
        if state.attachments == 0 && state.permissions.mode & DEST != 0 {
            return Err(Errno::EIDRM);
        }
        state.attachments += 1;
        state.attached_at = now();
        state.last_pid = current_pid();
        drop(state);
        Ok(Self(segment))
    }

    /// The segment.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.0
    }

    /// What maps call it.
    pub fn name(&self) -> String {
        alloc::format!("/SYSV{:08x} (deleted)", self.0.key)
    }
}

impl Clone for Attachment {
    fn clone(&self) -> Self {
        self.0.state.lock().attachments += 1;
        Self(self.0.clone())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut table = TABLE.lock();
        let mut state = self.0.state.lock();
        state.attachments -= 1;
        state.detached_at = now();
        if let Some(thread) = process::try_current() {
            state.last_pid = thread.process.pid;
        }
        let last = state.attachments == 0 && state.permissions.mode & DEST != 0;
        drop(state);
        let gone = if last { table.take(&self.0) } else { None };
        drop(table);
        // The memory is freed without the lock, when `self.0` goes.
        drop(gone);
    }
}

/// `/proc/sysvipc/shm`, in the columns of Linux.
fn list() -> Result<String> {
    let mut text = Text::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      \
         atime      dtime      ctime                   rss                  swap\n",
    );
    for segment in all()? {
        let status = segment.status();
        let permissions = status.permissions;
        let resident = match &segment.memory {
            Memory::Pages(memory) => memory.pages() * super::PAGE,
            Memory::Huge(file) => file.resident_bytes(),
        };
        let _ = writeln!(
            text,
            "{:10} {:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} {:21}",
            status.key,
            segment.id,
            permissions.mode,
            status.size,
            status.creator,
            status.last_pid,
            status.attachments,
            permissions.uid,
            permissions.gid,
            permissions.creator_uid,
            permissions.creator_gid,
            status.attached_at,
            status.detached_at,
            status.changed_at,
            resident,
            0,
        );
    }
    text.into_string()
}

/// Makes `/proc/sysvipc/shm` known, once procfs is up.
pub fn register() -> Result<()> {
    crate::fs::proc::register("sysvipc/shm", 0o444, list)
}
