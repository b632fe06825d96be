//! What travels between sockets: bytes, and what is sent along with them.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::unix::Socket;
use super::unix::address::Address;
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::{PAGE_SIZE, fallible, reserve};
use crate::namespaces::View;
use crate::process;
use crate::process::limits;
use crate::sched;
use crate::sync::{Mutex, SpinLock};
use linux_raw_sys::general as abi;

/// The most descriptors that one message carries.
pub const MAX_RIGHTS: usize = 253;
/// What a message counts for beyond its bytes, against the sender's buffer.
const OVERHEAD: usize = 512;

/// `struct ucred`: who sends, or who is at the other end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ucred {
    /// Process.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Ucred {
    /// Nobody: what SO_PEERCRED says of a socket without a peer.
    pub const NOBODY: Self = Self { pid: 0, uid: u32::MAX, gid: u32::MAX };

    /// The current process, by its effective identity.
    pub fn current() -> Self {
        let thread = process::current();
        let credentials = thread.credentials();
        Self { pid: thread.process.pid, uid: credentials.euid, gid: credentials.egid }
    }

    /// What SCM_CREDENTIALS has by default: the real identity.
    pub fn current_real() -> Self {
        let thread = process::current();
        let credentials = thread.credentials();
        Self { pid: thread.process.pid, uid: credentials.uid, gid: credentials.gid }
    }

    /// What the current process claims to be, in the numbers of its namespaces. `EINVAL`, `ESRCH` for those that there are not.
    pub fn claimed(pid: u32, uid: u32, gid: u32) -> Result<Self> {
        let own = process::current().credentials();
        let (uid, gid) =
            (own.kernel_uid(uid).ok_or(Errno::EINVAL)?, own.kernel_gid(gid).ok_or(Errno::EINVAL)?);
        let pid = View::current().global(pid).ok_or(Errno::ESRCH)?;
        Ok(Self { pid, uid, gid })
    }

    /// In the numbers that the current process's namespaces have for them.
    pub fn shown(self) -> Self {
        if self == Self::NOBODY {
            return self;
        }
        let own = process::current().credentials();
        let pid = View::current().number(self.pid);
        Self { pid, uid: own.shown_uid(self.uid), gid: own.shown_gid(self.gid) }
    }

    /// May the current process claim to be this? Its own identities it may use, others need capabilities. `EPERM`.
    pub fn check_claim(&self) -> Result<()> {
        let thread = process::current();
        let c = thread.credentials();
        let pid = self.pid == thread.process.pid
            || c.capable_in(&thread.process.pid_namespace().head.user, abi::CAP_SYS_ADMIN);
        let uid = [c.uid, c.euid, c.suid].contains(&self.uid) || c.capable_here(abi::CAP_SETUID);
        let gid = [c.gid, c.egid, c.sgid].contains(&self.gid) || c.capable_here(abi::CAP_SETGID);
        if pid && uid && gid { Ok(()) } else { Err(Errno::EPERM) }
    }
}

/// Open files on their way in a message.
pub struct Rights(Option<Box<Flight>>);

/// Files that one message carries.
struct Flight {
    files: Vec<Arc<File>>,
    /// Who sent them.
    uid: u32,
    /// The next one that its thread has to let go of.
    next: Option<Box<Flight>>,
}

/// One message, or a piece of a stream.
pub struct Message {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many of them were read already (of a stream).
    pub taken: usize,
    /// Who sent it.
    pub credentials: Ucred,
    /// Files that come with it.
    pub rights: Option<Rights>,
    /// The sender's address, of a datagram.
    pub from: Option<Address>,
    sender: Weak<Socket>,
    charge: usize,
}

impl Message {
    /// A message of `sender`, counted against its buffer until it is dropped.
    pub fn new(
        sender: &Arc<Socket>,
        bytes: Vec<u8>,
        credentials: Ucred,
        rights: Option<Rights>,
        from: Option<Address>,
    ) -> Self {
        let charge = bytes.len() + OVERHEAD;
        sender.charge(charge);
        Self { bytes, taken: 0, credentials, rights, from, sender: Arc::downgrade(sender), charge }
    }

    /// What it counts for.
    pub fn charge(&self) -> usize {
        self.charge
    }

    /// The bytes that were not read yet.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.upgrade() {
            sender.discharge(self.charge);
        }
    }
}

/// A socket that is on its way, and in how many messages.
struct InFlight {
    file: Weak<File>,
    count: usize,
    /// How many of these messages wait in sockets that nobody seems to hold.
    inside: usize,
    /// What the present search for garbage knows of it.
    mark: Mark,
    /// The next socket of the search's list, by its identifier.
    next: Option<u64>,
}

/// What a search for garbage knows of a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Nothing, or that it is in use.
    None,
    /// Only messages refer to it, and nothing leads to them so far.
    Unreached,
    /// Nobody can reach it: what waits in it is to be dropped.
    Garbage,
}

#[derive(Default)]
struct Flights {
    /// Sockets on their way, by the identifiers of their open files.
    sockets: BTreeMap<u64, InFlight>,
    /// Files on their way, by the user who sent them.
    users: BTreeMap<u32, usize>,
}

static FLIGHTS: SpinLock<Flights> =
    SpinLock::growing(Flights { sockets: BTreeMap::new(), users: BTreeMap::new() });
/// Held while messages with files are taken from queues, and while garbage is looked for: the search sees each file either in a queue
/// or taken out and no longer counted.
pub static TAKING: Mutex<()> = Mutex::new(());

impl Rights {
    /// Sends files on their way. `ETOOMANYREFS` when the user has too many of them under way already.
    pub fn new(files: Vec<Arc<File>>) -> Result<Self> {
        let thread = process::current();
        let credentials = thread.credentials();
        let uid = credentials.uid;
        let limit = thread.process.limit(limits::NOFILE) as usize;
        let privileged =
            credentials.capable(abi::CAP_SYS_RESOURCE) || credentials.capable(abi::CAP_SYS_ADMIN);
        let flight = fallible::boxed(Flight { files, uid, next: None })?;
        let files = &flight.files;
        // The entry of the user, and of some sockets among them.
        reserve::ask(PAGE_SIZE)?;
        let mut flights = FLIGHTS.lock();
        let user = flights.users.entry(uid).or_insert(0);
        if *user + files.len() > limit && !privileged {
            if *user == 0 {
                flights.users.remove(&uid);
            }
            return Err(Errno::ETOOMANYREFS);
        }
        *user += files.len();
        for file in files.iter().filter(|f| f.ops_as::<Socket>().is_some()) {
            // A socket with its file takes many times what its entry does.
            reserve::covered();
            let (file, id) = (Arc::downgrade(file), file.id());
            let entry = || InFlight { file, count: 0, inside: 0, mark: Mark::None, next: None };
            flights.sockets.entry(id).or_insert_with(entry).count += 1;
        }
        drop(flights);
        Ok(Self(Some(flight)))
    }

    /// The files, to look at.
    pub fn files(&self) -> &[Arc<File>] {
        self.0.as_ref().map_or(&[], |flight| &flight.files)
    }

    /// The files have arrived.
    pub fn into_files(mut self) -> Vec<Arc<File>> {
        let Some(flight) = self.0.take() else { return Vec::new() };
        let Flight { files, uid, .. } = *flight;
        let mut flights = FLIGHTS.lock();
        files.iter().for_each(|file| flights.landed(file, uid));
        files
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        if self.0.is_some() {
            let_go(self.0.take(), false);
        }
    }
}

impl Flights {
    /// A file is on its way no longer.
    fn landed(&mut self, file: &File, uid: u32) {
        if let Some(entry) = self.sockets.get_mut(&file.id()) {
            entry.count -= 1;
            if entry.count == 0 {
                self.sockets.remove(&file.id());
            }
        }
        if let Some(user) = self.users.get_mut(&uid) {
            *user = user.saturating_sub(1);
            if *user == 0 {
                self.users.remove(&uid);
            }
        }
    }

    /// The first socket from `next` on of which `wanted` says yes, and its identifier; `next` becomes the place behind it. The error is that
    /// none of those looked at is, and that there are more.
    fn find(
        &mut self,
        next: &mut u64,
        wanted: impl Fn(&InFlight) -> bool,
    ) -> Result<Option<(u64, &mut InFlight)>, More> {
        /// Sockets that are looked at in one hold of the lock.
        const STEP: usize = 64;
        for (looked, (id, flight)) in self.sockets.range_mut(*next..).enumerate() {
            if looked == STEP {
                return Err(More);
            }
            *next = id + 1;
            if wanted(flight) {
                return Ok(Some((*id, flight)));
            }
        }
        Ok(None)
    }
}

/// There is more to look at.
struct More;

/// Gives `take` the first socket on its way from `next` on of which `wanted` says yes, under the lock of their register. There may be very
/// many: it takes some at a time.
fn find<T>(
    next: &mut u64,
    wanted: impl Fn(&InFlight) -> bool,
    take: impl FnOnce(u64, &mut InFlight) -> T,
) -> Option<T> {
    loop {
        // The lock goes at the end of the statement.
        if let Ok(found) = FLIGHTS.lock().find(next, &wanted) {
            return found.map(|(id, flight)| take(id, flight));
        }
        sched::cond_resched();
    }
}

fn is_marked(mark: Mark) -> impl Fn(&InFlight) -> bool {
    move |flight| flight.mark == mark
}

/// What a thread still has to let go of.
#[derive(Default)]
pub struct Landing {
    /// It is at it: further messages that are dropped meanwhile are for later.
    active: bool,
    first: Option<Box<Flight>>,
    /// A search for garbage is due.
    search: bool,
}

/// Drops the files of a message, and looks for garbage if that is asked for. A file may be a socket, in which messages with further
/// sockets wait, and so on: one comes after the other, not one inside the other, so that a long chain does not use up the stack.
fn let_go(flight: Option<Box<Flight>>, search: bool) {
    let thread = process::current();
    {
        let mut landing = thread.landing.lock();
        if let Some(mut flight) = flight {
            flight.next = landing.first.take();
            landing.first = Some(flight);
        }
        landing.search |= search;
        if core::mem::replace(&mut landing.active, true) {
            return;
        }
    }
    loop {
        let mut landing = thread.landing.lock();
        let flight = landing.first.take();
        match flight {
            Some(mut flight) => {
                landing.first = flight.next.take();
                drop(landing);
                let Flight { files, uid, .. } = *flight;
                files.into_iter().for_each(|file| drop_landed(file, uid));
            }
            None if core::mem::take(&mut landing.search) => {
                drop(landing);
                // What was found may have hidden more.
                if collect_garbage() {
                    thread.landing.lock().search = true;
                }
            }
            None => {
                landing.active = false;
                return;
            }
        }
        sched::cond_resched();
    }
}

/// Drops a file that is on its way no longer. The count and the reference go in one step: a search sees both or neither.
fn drop_landed(file: Arc<File>, uid: u32) {
    let last = {
        let mut flights = FLIGHTS.lock();
        flights.landed(&file, uid);
        Arc::into_inner(file)
    };
    drop(last);
}

/// Whether messages refer to an open file that is a socket.
pub fn is_on_its_way(file: &File) -> bool {
    FLIGHTS.lock().sockets.contains_key(&file.id())
}

/// A socket is closed, or a descriptor of one that is on its way: whatever only it led to is freed. The caller holds no lock.
pub fn socket_closed() {
    if is_garbage_due() {
        let_go(None, true);
    }
}

/// Is it time to look for garbage? The search looks at all sockets that are on their way, so it has to wait for more to be closed if
/// these are many: each of them pays for a part.
fn is_garbage_due() -> bool {
    static CLOSED: AtomicUsize = AtomicUsize::new(0);
    const PART: usize = 64;
    let in_flight = FLIGHTS.lock().sockets.len();
    if in_flight == 0 {
        return false;
    }
    // Relaxed: how often the search runs, nothing else hangs on it.
    let closed = CLOSED.fetch_add(1, Ordering::Relaxed) + 1;
    if closed * PART < in_flight {
        return false;
    }
    CLOSED.store(0, Ordering::Relaxed);
    true
}

/// Shows `visit` each socket that waits in a socket on its way, under the lock of their register.
fn each_inside(id: u64, mut visit: impl FnMut(u64, &mut InFlight)) {
    let file = FLIGHTS.lock().sockets.get(&id).and_then(|flight| flight.file.upgrade());
    let Some(socket) = file.as_ref().and_then(|file| file.ops_as::<Socket>()) else { return };
    socket.each_right(&mut |inner| {
        if let Some(found) = FLIGHTS.lock().sockets.get_mut(&inner.id()) {
            visit(inner.id(), found);
        }
    });
}

/// Frees sockets that nobody can reach any more: those whose only references are in messages that wait in such sockets. What waits in
/// them is dropped; says whether anything was. It needs no memory: the marks and the list of the search are in the register of sockets
/// that are on their way.
fn collect_garbage() -> bool {
    let taking = TAKING.lock();
    // Those to which only messages refer.
    let mut next = 0;
    let begin = |id, flight: &mut InFlight| {
        flight.inside = 0;
        let file = flight.file.upgrade();
        // One reference more than those in messages: ours.
        let held = file.as_ref().is_some_and(|file| Arc::strong_count(file) > flight.count + 1);
        flight.mark = if held { Mark::None } else { Mark::Unreached };
        // Dropped without the lock.
        (id, file)
    };
    while find(&mut next, |_| true, begin).is_some() {
        sched::cond_resched();
    }
    next = 0;
    while let Some(id) = find(&mut next, is_marked(Mark::Unreached), |id, _| id) {
        each_inside(id, |_, inner| inner.inside += 1);
        sched::cond_resched();
    }
    // A message elsewhere can still be received: it waits in a socket that somebody holds, or is just being taken or dropped.
    let mut pending = None;
    next = 0;
    let mut look = |id, flight: &mut InFlight| {
        if flight.count > flight.inside {
            flight.mark = Mark::None;
            flight.next = pending.replace(id);
        }
    };
    while find(&mut next, is_marked(Mark::Unreached), &mut look).is_some() {
        sched::cond_resched();
    }
    // Whatever waits in a socket that is in use can be received, too, and so on.
    while let Some(id) = pending {
        pending = FLIGHTS.lock().sockets.get_mut(&id).and_then(|flight| flight.next.take());
        each_inside(id, |id, inner| {
            if inner.mark == Mark::Unreached {
                inner.mark = Mark::None;
                inner.next = pending.replace(id);
            }
        });
        sched::cond_resched();
    }
    next = 0;
    while find(&mut next, is_marked(Mark::Unreached), |_, flight| flight.mark = Mark::Garbage).is_some() {
        sched::cond_resched();
    }
    drop(taking);
    // This closes sockets, which may close further files. Another search may do the same at once: each message is dropped by one.
    let mut found = false;
    next = 0;
    let take = |_, flight: &mut InFlight| {
        flight.mark = Mark::None;
        flight.file.upgrade()
    };
    while let Some(file) = find(&mut next, is_marked(Mark::Garbage), take) {
        if let Some(socket) = file.as_ref().and_then(|file| file.ops_as::<Socket>()) {
            found |= socket.empty();
        }
        sched::cond_resched();
    }
    found
}
