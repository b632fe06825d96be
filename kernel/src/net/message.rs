//! What travels between sockets: bytes, and what is sent along with them.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::unix::Socket;
use super::unix::address::Address;
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::{PAGE_SIZE, reserve};
use crate::process;
use crate::process::limits;
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

    /// May the current process claim to be this? Its own identities it may use, others need capabilities. `EPERM`.
    pub fn check_claim(&self) -> Result<()> {
        let thread = process::current();
        let c = thread.credentials();
        let pid = self.pid == thread.process.pid || c.capable(abi::CAP_SYS_ADMIN);
        let uid = [c.uid, c.euid, c.suid].contains(&self.uid) || c.capable(abi::CAP_SETUID);
        let gid = [c.gid, c.egid, c.sgid].contains(&self.gid) || c.capable(abi::CAP_SETGID);
        if pid && uid && gid { Ok(()) } else { Err(Errno::EPERM) }
    }
}

/// Open files on their way in a message.
pub struct Rights {
    files: Vec<Arc<File>>,
    uid: u32,
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
    /// Nothing leads to it so far.
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
    SpinLock::new(Flights { sockets: BTreeMap::new(), users: BTreeMap::new() });
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
        // The entries of the sockets among them: the nodes of two maps, each a part of a page for a descriptor.
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
            let entry = || InFlight { file: Arc::downgrade(file), count: 0, mark: Mark::None, next: None };
            flights.sockets.entry(file.id()).or_insert_with(entry).count += 1;
        }
        drop(flights);
        Ok(Self { files, uid })
    }

    /// The files, to look at.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// The files have arrived.
    pub fn into_files(mut self) -> Vec<Arc<File>> {
        let files = core::mem::take(&mut self.files);
        land(self.uid, &files);
        files
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        land(self.uid, &self.files);
    }
}

/// Files are on their way no longer.
fn land(uid: u32, files: &[Arc<File>]) {
    if files.is_empty() {
        return;
    }
    let mut flights = FLIGHTS.lock();
    for file in files {
        if let Some(entry) = flights.sockets.get_mut(&file.id()) {
            entry.count -= 1;
            if entry.count == 0 {
                flights.sockets.remove(&file.id());
            }
        }
    }
    if let Some(user) = flights.users.get_mut(&uid) {
        *user = user.saturating_sub(files.len());
        if *user == 0 {
            flights.users.remove(&uid);
        }
    }
}

/// A socket is closed: is it time to look for garbage? The search looks at all sockets that are on their way, so it has to wait for more to be
/// closed if these are many: each of them pays for a part.
pub fn is_garbage_due() -> bool {
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

impl Flights {
    /// The first socket from `from` on that has this mark, and its identifier.
    fn marked(&mut self, mark: Mark, from: u64) -> Option<(u64, &mut InFlight)> {
        self.sockets
            .range_mut(from..)
            .find(|(_, flight)| flight.mark == mark)
            .map(|(id, flight)| (*id, flight))
    }
}

/// Frees sockets that nobody can reach any more: those whose only references are in messages that wait in such sockets. What waits in
/// them is dropped. Called when a socket is closed while others are on their way; the caller holds no lock. It needs no memory: the marks
/// and the list of the search are in the register of sockets that are on their way.
pub fn collect_garbage() {
    let taking = TAKING.lock();
    // Sockets that somebody holds, and whose queues are yet to be looked into: the last one, which names the next.
    let mut pending = None;
    let mut next = 0;
    loop {
        let mut flights = FLIGHTS.lock();
        let Some((id, flight)) = flights.sockets.range_mut(next..).next().map(|(id, flight)| (*id, flight))
        else {
            break;
        };
        next = id + 1;
        flight.mark = Mark::Unreached;
        let file = flight.file.upgrade();
        // One reference more than those in messages: ours.
        if file.as_ref().is_some_and(|file| Arc::strong_count(file) > flight.count + 1) {
            flight.mark = Mark::None;
            flight.next = pending.replace(id);
        }
        drop(flights);
        drop(file);
    }
    // Whatever waits in a socket that is in use can still be received, and so on.
    while let Some(id) = pending {
        let file = {
            let mut flights = FLIGHTS.lock();
            let flight = flights.sockets.get_mut(&id);
            pending = flight.as_ref().and_then(|flight| flight.next);
            flight.and_then(|flight| flight.file.upgrade())
        };
        let Some(socket) = file.as_ref().and_then(|file| file.ops_as::<Socket>()) else { continue };
        socket.each_right(&mut |inner| {
            let mut flights = FLIGHTS.lock();
            if let Some(found) = flights.sockets.get_mut(&inner.id())
                && found.mark == Mark::Unreached
            {
                found.mark = Mark::None;
                found.next = pending.replace(inner.id());
            }
        });
    }
    next = 0;
    while let Some((id, flight)) = FLIGHTS.lock().marked(Mark::Unreached, next) {
        next = id + 1;
        flight.mark = Mark::Garbage;
    }
    drop(taking);
    // This closes sockets, which may close further files. Another search may do the same at once: each message is dropped by one.
    next = 0;
    loop {
        let file = {
            let mut flights = FLIGHTS.lock();
            let Some((id, flight)) = flights.marked(Mark::Garbage, next) else { break };
            next = id + 1;
            flight.mark = Mark::None;
            flight.file.upgrade()
        };
        if let Some(socket) = file.as_ref().and_then(|file| file.ops_as::<Socket>()) {
            socket.empty();
        }
    }
}
