//! What queues may be like, and how much of them a user may have.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as abi;

use crate::errno::{Errno, Result};
use crate::fs::proc::sysctl;
use crate::process::{self, limits};
use crate::sync::SpinLock;

/// `fs.mqueue.*`.
pub(super) static QUEUES_MAX: AtomicUsize = AtomicUsize::new(256);
static MSG_MAX: AtomicUsize = AtomicUsize::new(10);
static MSGSIZE_MAX: AtomicUsize = AtomicUsize::new(8192);
static MSG_DEFAULT: AtomicUsize = AtomicUsize::new(10);
static MSGSIZE_DEFAULT: AtomicUsize = AtomicUsize::new(8192);

/// What even CAP_SYS_RESOURCE cannot go beyond.
const HARD_MESSAGES: usize = 65536;
const HARD_SIZE: usize = 16 << 20;
/// Bytes of the kernel's that a message takes beside its own, as RLIMIT_MSGQUEUE counts them.
const OF_MESSAGE: u64 = 8 + 48;

/// `mq_maxmsg` and `mq_msgsize`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Most messages at a time.
    pub messages: u64,
    /// Bytes of the largest message.
    pub size: u64,
}

impl Attributes {
    /// Those of a queue for which nobody has said any.
    pub(super) fn standard() -> Self {
        // Relaxed, as all of these: settings of their own.
        let least =
            |a: &AtomicUsize, b: &AtomicUsize| a.load(Ordering::Relaxed).min(b.load(Ordering::Relaxed));
        Self {
            messages: least(&MSG_MAX, &MSG_DEFAULT) as u64,
            size: least(&MSGSIZE_MAX, &MSGSIZE_DEFAULT) as u64,
        }
    }

    /// `EINVAL` for what the caller may not have.
    pub(super) fn check(self) -> Result<Self> {
        let privileged = process::current().credentials().capable(abi::CAP_SYS_RESOURCE);
        let (messages, size) = match privileged {
            true => (HARD_MESSAGES, HARD_SIZE),
            false => (MSG_MAX.load(Ordering::Relaxed), MSGSIZE_MAX.load(Ordering::Relaxed)),
        };
        let fits = |value: u64, most: usize| (1..=most as u64).contains(&value);
        if fits(self.messages, messages) && fits(self.size, size) { Ok(self) } else { Err(Errno::EINVAL) }
    }
}

/// Bytes of queues by user, of those who have some.
static USED: SpinLock<BTreeMap<u32, u64>> = SpinLock::growing(BTreeMap::new());

/// A queue's part of its maker's RLIMIT_MSGQUEUE, given back when dropped.
pub(super) struct Charge {
    uid: u32,
    bytes: u64,
}

impl Charge {
    /// `EMFILE` when the user has too much.
    pub(super) fn take(attributes: &Attributes) -> Result<Self> {
        let thread = process::current();
        let uid = thread.credentials().uid;
        let bytes = attributes.messages * (attributes.size + OF_MESSAGE);
        let limit = thread.process.limit(limits::MSGQUEUE);
        let mut used = USED.lock();
        let now = used.get(&uid).copied().unwrap_or(0);
        match now.checked_add(bytes).filter(|sum| *sum <= limit) {
            Some(sum) => {
                used.insert(uid, sum);
                Ok(Self { uid, bytes })
            }
            None => Err(Errno::EMFILE),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut used = USED.lock();
        if let Some(sum) = used.get_mut(&self.uid) {
            *sum -= self.bytes;
            if *sum == 0 {
                used.remove(&self.uid);
            }
        }
    }
}

fn setting(name: &str, value: &'static AtomicUsize, range: RangeInclusive<usize>) -> Result<()> {
    sysctl::register(
        &alloc::format!("fs/mqueue/{name}"),
        || Ok(value.load(Ordering::Relaxed).to_string()),
        move |new| {
            let new = sysctl::parse(new)?;
            if !range.contains(&new) {
                return Err(Errno::EINVAL);
            }
            value.store(new, Ordering::Relaxed);
            Ok(())
        },
    )
}

/// Makes the settings known, once procfs is up.
pub fn register() -> Result<()> {
    setting("queues_max", &QUEUES_MAX, 0..=i32::MAX as usize)?;
    setting("msg_max", &MSG_MAX, 1..=HARD_MESSAGES)?;
    setting("msgsize_max", &MSGSIZE_MAX, 128..=HARD_SIZE)?;
    setting("msg_default", &MSG_DEFAULT, 1..=HARD_MESSAGES)?;
    setting("msgsize_default", &MSGSIZE_DEFAULT, 128..=HARD_SIZE)
}
