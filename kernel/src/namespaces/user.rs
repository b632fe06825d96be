//! User namespaces: users and groups with numbers of their own, and capabilities that count only inside.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Kind, charge, initial, next_ino};
use crate::errno::{Errno, Result};
use crate::memory::fallible::{self, Text, TryVec};
use crate::memory::{PAGE_SIZE, reserve};
use crate::process::accounts::Share;
use crate::process::{self, CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, Credentials};
use crate::sched;
use crate::sync::{Mutex, Once};

/// Who has no number in a namespace is shown with this one.
pub const OVERFLOW_ID: u32 = 65534;
/// The most lines of a map.
const MOST_EXTENTS: usize = 340;
/// The deepest that namespaces nest.
const DEEPEST: u32 = 32;

/// Consecutive numbers of a namespace, and the kernel's numbers that they stand for.
#[derive(Clone, Copy)]
struct Extent {
    inside: u32,
    kernel: u32,
    count: u32,
}

/// Which numbers a map is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    Users,
    Groups,
}

/// Which numbers there are in a namespace: written once.
struct IdMap(Once<Box<[Extent]>>);

impl IdMap {
    fn extents(&self) -> &[Extent] {
        self.0.get().map_or(&[], |extents| extents)
    }

    fn to_kernel(&self, id: u32) -> Option<u32> {
        let within = |extent: &&Extent| id >= extent.inside && id - extent.inside < extent.count;
        self.extents().iter().find(within).map(|extent| extent.kernel + (id - extent.inside))
    }

    fn number_of(&self, id: u32) -> Option<u32> {
        let within = |extent: &&Extent| id >= extent.kernel && id - extent.kernel < extent.count;
        self.extents().iter().find(within).map(|extent| extent.inside + (id - extent.kernel))
    }
}

/// One user namespace.
pub struct UserNamespace {
    pub ino: u64,
    /// `None` for the first.
    pub parent: Option<Arc<UserNamespace>>,
    /// How many are above it.
    pub level: u32,
    /// Who made it, in the kernel's numbers.
    pub owner: u32,
    users: IdMap,
    groups: IdMap,
    setgroups_denied: AtomicBool,
    /// Who made it had the capability to give files those that a root of the namespace above would honour.
    maker_could_mark_files: bool,
    /// Serialises writers of the maps and of `setgroups`.
    change: Mutex<()>,
    /// How many namespaces of each kind a user may have who is in this one.
    limits: [AtomicU64; Kind::ALL.len()],
    _shares: Vec<Share>,
}

impl core::fmt::Debug for UserNamespace {
    fn fmt(&self, out: &mut core::fmt::Formatter) -> core::fmt::Result {
        write!(out, "user:[{}]", self.ino)
    }
}

impl UserNamespace {
    /// The one that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<UserNamespace>> = Once::new();
        INITIAL.call_once(|| {
            let identity = || {
                let map = IdMap(Once::new());
                let all: Box<[Extent]> = Box::new([Extent { inside: 0, kernel: 0, count: u32::MAX }]);
                let _ = map.0.set(all);
                map
            };
            let most = process::max_threads() as u64 / 2;
            Arc::new(Self {
                ino: initial::USER,
                parent: None,
                level: 0,
                owner: 0,
                users: identity(),
                groups: identity(),
                setgroups_denied: AtomicBool::new(false),
                maker_could_mark_files: true,
                change: Mutex::new(()),
                limits: core::array::from_fn(|_| AtomicU64::new(most)),
                _shares: Vec::new(),
            })
        })
    }

    /// A new one below that of `maker`. `EPERM` for one whose user or group has no number there, `ENOSPC` when it would be too deep or one
    /// too many.
    pub fn new(maker: &Credentials) -> Result<Arc<Self>> {
        let parent = maker.user_namespace();
        if parent.level > DEEPEST {
            return Err(Errno::ENOSPC);
        }
        reserve::ask_lasting(PAGE_SIZE)?;
        let shares = charge(Kind::User, &parent, maker.euid)?;
        if parent.number_of(Ids::Users, maker.euid).is_none()
            || parent.number_of(Ids::Groups, maker.egid).is_none()
        {
            return Err(Errno::EPERM);
        }
        // Relaxed: a setting that only goes one way, inherited.
        let denied = parent.setgroups_denied.load(Ordering::Relaxed);
        Ok(Arc::new(Self {
            ino: next_ino(),
            level: parent.level + 1,
            parent: Some(parent),
            owner: maker.euid,
            users: IdMap(Once::new()),
            groups: IdMap(Once::new()),
            setgroups_denied: AtomicBool::new(denied),
            maker_could_mark_files: maker.capable_here(CAP_SETFCAP),
            change: Mutex::new(()),
            limits: core::array::from_fn(|_| AtomicU64::new(i32::MAX as u64)),
            _shares: shares,
        }))
    }

    fn map(&self, ids: Ids) -> &IdMap {
        match ids {
            Ids::Users => &self.users,
            Ids::Groups => &self.groups,
        }
    }

    /// The kernel's number for one of this namespace.
    pub fn to_kernel(&self, ids: Ids, id: u32) -> Option<u32> {
        self.map(ids).to_kernel(id)
    }

    /// The number in this namespace for one of the kernel's.
    pub fn number_of(&self, ids: Ids, id: u32) -> Option<u32> {
        self.map(ids).number_of(id)
    }

    /// How many namespaces of a kind a user may have.
    pub fn limit(&self, kind: Kind) -> u64 {
        // Relaxed: a setting of its own.
        self.limits[kind as usize].load(Ordering::Relaxed)
    }

    pub fn set_limit(&self, kind: Kind, most: u64) {
        // Relaxed: as above.
        self.limits[kind as usize].store(most, Ordering::Relaxed);
    }

    /// Whether `self` is `other` or above it.
    pub fn contains(&self, other: &UserNamespace) -> bool {
        let mut at = Some(other);
        while let Some(namespace) = at {
            if core::ptr::eq(namespace, self) {
                return true;
            }
            at = namespace.parent.as_deref();
        }
        false
    }

    /// May setgroups(2) be called in it? Not before groups have numbers, and not once it was denied.
    pub fn allows_setgroups(&self) -> bool {
        !self.groups.extents().is_empty() && !self.setgroups_denied.load(Ordering::SeqCst)
    }

    /// `/proc/PID/uid_map` and `gid_map`, as one in `reader` sees it.
    pub fn show_map(&self, ids: Ids, reader: &UserNamespace) -> Result<Vec<u8>> {
        // From inside, the numbers of the namespace above are shown.
        let outside =
            if core::ptr::eq(self, reader) { self.parent.as_deref().unwrap_or(self) } else { reader };
        let mut out = Text::new();
        for extent in self.map(ids).extents() {
            let shown = outside.number_of(ids, extent.kernel).unwrap_or(u32::MAX);
            let _ = writeln!(out, "{:10} {shown:10} {:10}", extent.inside, extent.count);
        }
        out.finish()
    }

    /// Writes one of the two, once. What counts is who opened the file: a descriptor that is handed to a more powerful program gives nobody
    /// more rights. Numbers of others need both, opener and writer, to have the capability.
    pub fn write_map(self: &Arc<Self>, ids: Ids, text: &[u8], opener: &Credentials) -> Result<()> {
        let parent = self.parent.as_ref().ok_or(Errno::EPERM)?;
        let from = opener.user_namespace();
        if !Arc::ptr_eq(&from, self) && !Arc::ptr_eq(&from, parent) {
            return Err(Errno::EPERM);
        }
        if text.len() >= PAGE_SIZE {
            return Err(Errno::EINVAL);
        }
        let _change = self.change.lock();
        if !self.map(ids).extents().is_empty() || !opener.capable_in(self, CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let mut extents = parse(text)?;
        if ids == Ids::Users && extents.iter().any(|extent| extent.kernel == 0) {
            // Its root could give files capabilities that count above.
            let allowed = match Arc::ptr_eq(&from, self) {
                true => self.maker_could_mark_files,
                false => opener.capable_in(parent, CAP_SETFCAP),
            };
            if !allowed {
                return Err(Errno::EPERM);
            }
        }
        self.check_map(ids, &extents, parent, opener)?;
        for extent in &mut extents {
            extent.kernel = lower(parent.map(ids), extent).ok_or(Errno::EPERM)?;
        }
        self.map(ids).0.set(extents.into_boxed_slice()).map_err(|_| Errno::EPERM)
    }

    /// Who may say which numbers stand for which: one's own alone, or any with the capability above.
    fn check_map(
        &self,
        ids: Ids,
        extents: &[Extent],
        parent: &UserNamespace,
        opener: &Credentials,
    ) -> Result<()> {
        if let [Extent { kernel, count: 1, .. }] = extents
            && self.owner == opener.euid
        {
            let above = parent.to_kernel(ids, *kernel);
            let allowed = match ids {
                Ids::Users => above == Some(opener.euid),
                Ids::Groups => self.setgroups_denied.load(Ordering::SeqCst) && above == Some(opener.egid),
            };
            if allowed {
                return Ok(());
            }
        }
        let capability = if ids == Ids::Users { CAP_SETUID } else { CAP_SETGID };
        let writer = process::current().credentials();
        let both = writer.capable_in(parent, capability) && opener.capable_in(parent, capability);
        if both { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// `/proc/PID/setgroups`.
    pub fn show_setgroups(&self) -> &'static str {
        if self.setgroups_denied.load(Ordering::SeqCst) { "deny\n" } else { "allow\n" }
    }

    /// `EACCES` for one who may not open the file for writing: later writes ask no more.
    pub fn check_setgroups(&self, opener: &Credentials) -> Result<()> {
        if opener.capable_in(self, CAP_SYS_ADMIN) { Ok(()) } else { Err(Errno::EACCES) }
    }

    pub fn write_setgroups(&self, text: &[u8]) -> Result<()> {
        let _change = self.change.lock();
        match text.trim_ascii() {
            b"allow" if self.setgroups_denied.load(Ordering::SeqCst) => Err(Errno::EPERM),
            b"allow" => Ok(()),
            b"deny" if !self.groups.extents().is_empty() && !self.setgroups_denied.load(Ordering::SeqCst) => {
                Err(Errno::EPERM)
            }
            b"deny" => {
                self.setgroups_denied.store(true, Ordering::SeqCst);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The lines of a map: first number inside, first number outside (in the place of the kernel's), how many.
fn parse(text: &[u8]) -> Result<Vec<Extent>> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let mut extents: Vec<Extent> = Vec::new();
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        let mut words = line.split_ascii_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u32>().ok()).ok_or(Errno::EINVAL);
        let extent = Extent { inside: number()?, kernel: number()?, count: number()? };
        let ends =
            |first: u32| first != u32::MAX && first.checked_add(extent.count).is_some_and(|end| end > first);
        let overlap = |a: u32, b: u32, other: &Extent| {
            let (last, other_last) = (a + (extent.count - 1), b + (other.count - 1));
            a <= other_last && b <= last
        };
        if words.next().is_some()
            || !ends(extent.inside)
            || !ends(extent.kernel)
            || extents.len() >= MOST_EXTENTS
            || extents.iter().any(|other| {
                overlap(extent.inside, other.inside, other) || overlap(extent.kernel, other.kernel, other)
            })
        {
            return Err(Errno::EINVAL);
        }
        extents.try_push(extent)?;
    }
    Ok(extents)
}

/// The kernel's first number for an extent that is given in numbers of the namespace above: all of it must be in one of that one's.
fn lower(above: &IdMap, extent: &Extent) -> Option<u32> {
    let first = above.to_kernel(extent.kernel)?;
    let last = above.to_kernel(extent.kernel + (extent.count - 1))?;
    let in_one = above.extents().iter().any(|other| {
        extent.kernel >= other.inside && extent.kernel - other.inside + (extent.count - 1) < other.count
    });
    (in_one && last - first == extent.count - 1).then_some(first)
}

/// A fallible copy of groups, as the kernel numbers them; `EINVAL` for one that has no number.
pub fn groups_to_kernel(own: &Credentials, groups: &[u32]) -> Result<Vec<u32>> {
    let mut out = fallible::with_capacity(groups.len())?;
    for groups in groups.chunks(256) {
        for group in groups {
            out.push(own.kernel_gid(*group).ok_or(Errno::EINVAL)?);
        }
        sched::cond_resched();
    }
    Ok(out)
}
