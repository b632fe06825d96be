//! System V shared memory: shmget(2), shmat(2), shmdt(2), shmctl(2).
//!
//! A segment is shared anonymous memory, or a hugetlbfs file without a name. Each area that maps it holds an [`Attachment`]; when the last goes
//! and the segment is marked for removal, the segment goes too.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::anonymous::SharedMemory;
use crate::errno::{Errno, Result};
use crate::hugetlb::HugeFile;
use crate::ipc::ids::{Limits, Object, SLOTS};
use crate::ipc::permissions::{IPC_PRIVATE, IpcPerm, Permissions};
use crate::ipc::{current_pid, now};
use crate::memory::fallible::Text;
use crate::namespaces::IpcNamespace;
use crate::namespaces::View;
use crate::namespaces::ipc::{Home, here};
use crate::process::{self, Pid, Process};
use crate::sync::SpinLock;

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

/// Whether `kernel.shm_rmid_forced` was ever set in a namespace: until then no end of a process looks for segments.
static EVER_FORCED: AtomicBool = AtomicBool::new(false);

impl IpcNamespace {
    /// `kernel.shm_rmid_forced`: segments that nobody has attached go with their last attachment, or with their maker.
    pub fn removes_orphans(&self) -> bool {
        // Relaxed, both: a setting of its own.
        EVER_FORCED.load(Ordering::Relaxed) && self.orphans_go.load(Ordering::Relaxed)
    }

    /// Sets `kernel.shm_rmid_forced`, by which those go whose maker has gone before.
    pub fn set_removes_orphans(&self, value: bool) {
        if value {
            EVER_FORCED.store(true, Ordering::Relaxed);
        }
        self.orphans_go.store(value, Ordering::Relaxed);
        if value {
            self.remove_unused(Segment::has_lost_maker);
        }
    }

    /// Removes the segments that nobody has attached and that are `meant`.
    fn remove_unused(&self, meant: impl Fn(&Segment) -> bool) {
        for segment in self.segments.each() {
            if meant(&segment) && segment.mark_if_unused() {
                self.segments.remove(&segment);
            }
        }
    }
}

/// The last thread of a process has let go of its memory.
pub fn maker_ends(process: &Process) {
    // Relaxed: a setting of its own.
    if EVER_FORCED.load(Ordering::Relaxed) && here().removes_orphans() {
        let maker = (process.pid, process.started_at);
        here().remove_unused(|segment| segment.maker == maker);
    }
}

/// What is behind a segment.
pub enum Memory {
    Pages(Arc<SharedMemory>),
    Huge(Arc<HugeFile>),
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
    id: i32,
    /// The key that it was made for.
    key: i32,
    pub size: u64,
    pub memory: Memory,
    creator: Pid,
    /// Number and start of the process that made it: no other has both.
    maker: (Pid, u64),
    home: Home,
    state: SpinLock<State>,
}

/// All that IPC_STAT tells.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub id: i32,
    pub permissions: Permissions,
    pub size: u64,
    pub attached_at: i64,
    pub detached_at: i64,
    pub changed_at: i64,
    pub creator: Pid,
    pub last_pid: Pid,
    pub attachments: u64,
}

impl Object for Segment {
    fn id(&self) -> i32 {
        self.id
    }

    fn permissions(&self) -> Permissions {
        self.state.lock().permissions
    }

    fn weight(&self) -> u64 {
        self.size.div_ceil(super::PAGE)
    }

    fn suits(&self, size: u64) -> Result<()> {
        if size > self.size { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// shmget(2): `allocate` makes the memory of a new segment.
pub fn get(key: i32, size: u64, flags: u32, allocate: impl FnOnce() -> Result<Memory>) -> Result<i32> {
    let limits = || Limits { objects: shmmni(), weight: shmall() };
    here().segments.get(key, size, flags, limits, || {
        if size == 0 || size > shmmax().min(i64::MAX as u64) {
            return Err(Errno::EINVAL);
        }
        let pages = size.div_ceil(super::PAGE);
        if here().segments.totals().2.saturating_add(pages) > shmall() {
            return Err(Errno::ENOSPC);
        }
        let memory = allocate()?;
        let creator = current_pid();
        let state = State {
            permissions: Permissions::new(key, flags),
            attached_at: 0,
            detached_at: 0,
            changed_at: now(),
            last_pid: 0,
            attachments: 0,
        };
        let home = Home::current();
        let state = SpinLock::new(state);
        let current = process::current();
        let maker = (current.process.pid, current.process.started_at);
        Ok((pages, move |id| Segment { id, key, size, memory, creator, maker, home, state }))
    })
}

impl Segment {
    /// `EACCES` unless the caller may do `want` with it.
    pub fn check(&self, want: u32) -> Result<()> {
        self.permissions().check(want)
    }

    /// What IPC_STAT tells.
    pub fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            id: self.id,
            permissions: state.permissions,
            size: self.size,
            attached_at: state.attached_at,
            detached_at: state.detached_at,
            changed_at: state.changed_at,
            creator: self.creator,
            last_pid: state.last_pid,
            attachments: state.attachments,
        }
    }

    /// IPC_SET.
    pub fn set(&self, new: &IpcPerm) -> Result<()> {
        let mut state = self.state.lock();
        state.permissions.check_owner()?;
        state.permissions.set(new)?;
        state.changed_at = now();
        Ok(())
    }

    /// SHM_LOCK and SHM_UNLOCK: an account only, since pages never leave memory.
    pub fn set_locked(&self, locked: bool) {
        let mut state = self.state.lock();
        state.permissions.mode = state.permissions.mode & !LOCKED | if locked { LOCKED } else { 0 };
    }

    /// IPC_RMID: it goes now, or with its last attachment; its key is free at once.
    pub fn mark_for_removal(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.permissions.check_owner()?;
        state.permissions.mode |= DEST;
        state.permissions.key = IPC_PRIVATE;
        let unused = state.attachments == 0;
        drop(state);
        // An attachment that comes in between finds `DEST` and no other attachment, and fails.
        if unused {
            if let Some(home) = self.home.get() {
                home.segments.remove(self);
            }
        } else {
            if let Some(home) = self.home.get() {
                home.segments.forget_key(self);
            }
        }
        Ok(())
    }

    /// Has the process that made it ended?
    fn has_lost_maker(&self) -> bool {
        let (pid, started_at) = self.maker;
        process::find_global(pid)
            .is_none_or(|process| process.started_at != started_at || process.mm().is_none())
    }

    /// Marks it for removal if nobody has it attached. Then nobody can attach it any more.
    fn mark_if_unused(&self) -> bool {
        let mut state = self.state.lock();
        let unused = state.attachments == 0;
        if unused {
            state.permissions.mode |= DEST;
        }
        unused
    }

    /// Bytes of it that are in memory.
    fn resident(&self) -> u64 {
        match &self.memory {
            Memory::Pages(memory) => memory.pages() * super::PAGE,
            Memory::Huge(file) => file.resident_bytes(),
        }
    }
}

/// Segments, the highest slot in use, pages of all of them, and pages in memory.
pub fn totals() -> (usize, usize, u64, u64) {
    let (count, highest, pages) = here().segments.totals();
    let resident = here().segments.each().map(|segment| segment.resident() / super::PAGE).sum();
    (count, highest, pages, resident)
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
        // Relaxed: a setting of its own.
        let forced = EVER_FORCED.load(Ordering::Relaxed)
            && self.0.home.get().is_some_and(|home| home.removes_orphans());
        let mut state = self.0.state.lock();
        state.attachments -= 1;
        if forced && state.attachments == 0 {
            state.permissions.mode |= DEST;
        }
        state.detached_at = now();
        if let Some(thread) = process::try_current() {
            state.last_pid = thread.process.pid;
        }
        let last = state.attachments == 0 && state.permissions.mode & DEST != 0;
        drop(state);
        if last {
            // The memory is freed when `self.0` goes.
            if let Some(home) = self.0.home.get() {
                home.segments.remove(&self.0);
            }
        }
    }
}

/// `/proc/sysvipc/shm`, in the columns of Linux.
pub fn list() -> Result<String> {
    let mut text = Text::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      \
         atime      dtime      ctime                   rss                  swap\n",
    );
    let (view, who) = (View::current(), process::current().credentials());
    for segment in here().segments.each() {
        let status = segment.status();
        let permissions = status.permissions;
        let _ = writeln!(
            text,
            "{:10} {:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} {:21}",
            permissions.key,
            status.id,
            permissions.mode,
            status.size,
            view.number(status.creator),
            view.number(status.last_pid),
            status.attachments,
            who.shown_uid(permissions.uid),
            who.shown_gid(permissions.gid),
            who.shown_uid(permissions.creator_uid),
            who.shown_gid(permissions.creator_gid),
            status.attached_at,
            status.detached_at,
            status.changed_at,
            segment.resident(),
            0,
        );
    }
    text.into_string()
}
