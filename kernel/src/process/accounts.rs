//! What each user has of the things that are limited for a user: threads, signals that wait or that timers may send, namespaces.

use core::sync::atomic::{AtomicUsize, Ordering};

use alloc::sync::Arc;
use intrusive_collections::{KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use crate::namespaces::Kind;
use crate::sync::IrqLock;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Threads: RLIMIT_NPROC.
    Threads,
    /// Real-time signals that wait, and timers of timer_create(2): RLIMIT_SIGPENDING.
    Signals,
    /// Instances of inotify(7), and watches of them.
    NotifyInstances,
    NotifyWatches,
    /// Files that instances of epoll(7) watch.
    EpollWatches,
    /// Files of memfd_secret(2), and their pages: RLIMIT_MEMLOCK.
    SecretFiles,
    SecretPages,
    /// Pages that there may be in pipes' buffers: `fs.pipe-user-pages-soft`, `-hard`.
    PipePages,
    /// Directories whose entries are noted by signals: fcntl(2), F_NOTIFY.
    Notes,
    /// Namespaces of each kind: these count for a user as one of a user namespace.
    CgroupNamespaces,
    IpcNamespaces,
    MountNamespaces,
    NetNamespaces,
    PidNamespaces,
    TimeNamespaces,
    UserNamespaces,
    UtsNamespaces,
}

impl Counted {
    pub fn of_namespace(kind: Kind) -> Self {
        match kind {
            Kind::Cgroup => Self::CgroupNamespaces,
            Kind::Ipc => Self::IpcNamespaces,
            Kind::Mount => Self::MountNamespaces,
            Kind::Net => Self::NetNamespaces,
            Kind::Pid => Self::PidNamespaces,
            Kind::Time => Self::TimeNamespaces,
            Kind::User => Self::UserNamespaces,
            Kind::Uts => Self::UtsNamespaces,
        }
    }
}

const KINDS: usize = 9 + Kind::ALL.len();

/// The counts of one user. It is on the list while one of them is above 0.
struct Account {
    /// The user namespace (0 for all of them, whatever their number) and the user.
    who: (u64, u32),
    link: RBTreeAtomicLink,
    /// Changed under the list's lock.
    counts: [AtomicUsize; KINDS],
}

intrusive_adapter!(ByUid = Arc<Account>: Account { link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByUid {
    type Key = (u64, u32);

    fn get_key(&self, account: &'a Account) -> (u64, u32) {
        account.who
    }
}

/// The last reference to a thread or a signal may go in an interrupt handler, and its share with it: hence the kind of lock.
static ACCOUNTS: IrqLock<RBTree<ByUid>> = IrqLock::new(RBTree::new(ByUid::NEW));

/// One thing that counts for a user; it no longer does when this is dropped.
pub struct Share {
    account: Arc<Account>,
    counted: Counted,
}

impl Share {
    /// Counts one thing more for the user; the count with it.
    pub fn take(uid: u32, counted: Counted) -> (Self, usize) {
        Self::take_for((0, uid), counted)
    }

    fn take_for(who: (u64, u32), counted: Counted) -> (Self, usize) {
        let mut fresh = None;
        loop {
            let mut accounts = ACCOUNTS.lock();
            let found = accounts.find(&who).clone_pointer();
            let account = match (found, fresh.take()) {
                (Some(account), _) => account,
                (None, Some(fresh)) => {
                    accounts.insert(Arc::clone(&fresh));
                    fresh
                }
                (None, None) => {
                    drop(accounts);
                    // Memory is allocated outside of the lock.
                    let counts = [const { AtomicUsize::new(0) }; KINDS];
                    fresh = Some(Arc::new(Account { who, link: RBTreeAtomicLink::new(), counts }));
                    continue;
                }
            };
            let count = account.counts[counted as usize].fetch_add(1, Ordering::SeqCst) + 1;
            drop(accounts);
            return (Self { account, counted }, count);
        }
    }

    /// Counts one thing more for the user, unless there are `limit` already.
    pub fn take_within(uid: u32, counted: Counted, limit: u64) -> Option<Self> {
        let (share, count) = Self::take(uid, counted);
        (count as u64 <= limit).then_some(share)
    }

    /// Counts one thing more for the user as one of a user namespace, unless there are `limit` already.
    pub fn take_within_namespace(namespace: u64, uid: u32, counted: Counted, limit: u64) -> Option<Self> {
        let (share, count) = Self::take_for((namespace, uid), counted);
        (count as u64 <= limit).then_some(share)
    }

    /// Counts one more of another kind for the same user, unless there are `limit` already. Whoever has this thing takes it back.
    pub fn add_within(&self, counted: Counted, limit: u64) -> bool {
        let more = |count: usize| ((count as u64) < limit).then_some(count + 1);
        let count = &self.account.counts[counted as usize];
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Counts so many more of a kind for the same user; all that count then. Whoever has this thing takes them back.
    pub fn add(&self, counted: Counted, count: usize) -> usize {
        self.account.counts[counted as usize].fetch_add(count, Ordering::SeqCst) + count
    }

    /// Takes back what [`Share::add_within`] and [`Share::add`] counted.
    pub fn take_back(&self, counted: Counted, count: usize) {
        self.account.counts[counted as usize].fetch_sub(count, Ordering::SeqCst);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let removed = {
            let mut accounts = ACCOUNTS.lock();
            let counts = &self.account.counts;
            counts[self.counted as usize].fetch_sub(1, Ordering::SeqCst);
            let empty = counts.iter().all(|count| count.load(Ordering::SeqCst) == 0);
            // SAFETY: it came on the list before it was first counted, and leaves it here when nothing counts.
            empty.then(|| unsafe { accounts.cursor_mut_from_ptr(Arc::as_ptr(&self.account)).remove() })
        };
        drop(removed);
    }
}

/// How many the user has.
pub fn count(uid: u32, counted: Counted) -> usize {
    let accounts = ACCOUNTS.lock();
    accounts
        .find(&(0, uid))
        .get()
        .map_or(0, |account| account.counts[counted as usize].load(Ordering::SeqCst))
}
