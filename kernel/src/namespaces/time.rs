//! Time namespaces: clocks of uptime that start elsewhere, for processes that moved here from another machine.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{Head, Kind, Namespaces, initial};
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::process::{self, Credentials};
use crate::sync::{Once, SpinLock};
use crate::time::SECOND;

const CAP_SYS_TIME: u32 = process::CAP_SYS_TIME;
/// The numbers of clocks: monotonic, raw and coarse; boot time and its alarm.
const MONOTONIC: [i32; 3] = [1, 4, 6];
const BOOT: [i32; 2] = [7, 9];
/// Seconds that neither clock may reach, so that nanoseconds always fit: half of what Linux's `KTIME_SEC_MAX` is.
const MOST_SECONDS: i64 = i64::MAX / SECOND as i64 / 2;

/// Nanoseconds that the clocks are ahead of the first namespace's.
#[derive(Clone, Copy, Debug, Default)]
struct Offsets {
    monotonic: i64,
    boot: i64,
}

/// One time namespace.
pub struct TimeNamespace {
    pub head: Head,
    state: SpinLock<(Offsets, bool)>,
}

/// Whether there was ever another than the first: until then nobody has to look.
static USED: AtomicBool = AtomicBool::new(false);

impl TimeNamespace {
    /// The one that the kernel starts with.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<TimeNamespace>> = Once::new();
        INITIAL.call_once(|| {
            Arc::new(Self {
                head: Head::initial(initial::TIME),
                state: SpinLock::new((Offsets::default(), true)),
            })
        })
    }

    /// One with the offsets of `old`, which can be changed until somebody is in it.
    pub fn copy(old: &Self, maker: &Credentials) -> Result<Arc<Self>> {
        let head = Head::new(Kind::Time, maker)?;
        // Relaxed: set for good before anybody can be in the namespace.
        USED.store(true, Ordering::Relaxed);
        let offsets = old.state.lock().0;
        Ok(Arc::new(Self { head, state: SpinLock::new((offsets, false)) }))
    }

    /// Somebody enters it: the offsets stay as they are.
    pub fn freeze(&self) {
        self.state.lock().1 = true;
    }

    /// `/proc/PID/timens_offsets`.
    pub fn show(&self) -> Result<Vec<u8>> {
        let offsets = self.state.lock().0;
        let mut out = Text::new();
        for (name, offset) in [("monotonic", offsets.monotonic), ("boottime", offsets.boot)] {
            let (seconds, rest) = (offset.div_euclid(SECOND as i64), offset.rem_euclid(SECOND as i64));
            let _ = writeln!(out, "{name:<10} {seconds:>10} {rest:>9}");
        }
        out.finish()
    }

    /// Takes lines of clock, seconds and nanoseconds, by the rights of who opened the file.
    pub fn store(&self, text: &[u8], opener: &Credentials) -> Result<()> {
        if !opener.capable_in(&self.head.user, CAP_SYS_TIME) {
            return Err(Errno::EPERM);
        }
        let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let mut new = [None; 2];
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            let mut words = line.split_ascii_whitespace();
            let index = match words.next() {
                Some("monotonic" | "1") => 0,
                Some("boottime" | "7") => 1,
                _ => return Err(Errno::EINVAL),
            };
            let mut number = || words.next().and_then(|word| word.parse::<i64>().ok()).ok_or(Errno::EINVAL);
            let (seconds, nanoseconds) = (number()?, number()?);
            if !(0..SECOND as i64).contains(&nanoseconds) || words.next().is_some() {
                return Err(Errno::EINVAL);
            }
            let now = (crate::time::now() / SECOND) as i64;
            if !(-MOST_SECONDS..=MOST_SECONDS).contains(&seconds) || now + seconds < 0 {
                return Err(Errno::ERANGE);
            }
            new[index] = Some(seconds * SECOND as i64 + nanoseconds);
        }
        let mut state = self.state.lock();
        if state.1 {
            return Err(Errno::EACCES);
        }
        state.0.monotonic = new[0].unwrap_or(state.0.monotonic);
        state.0.boot = new[1].unwrap_or(state.0.boot);
        Ok(())
    }
}

/// Nanoseconds that a clock of the current thread is ahead of the kernel's.
pub fn offset(clock: i32) -> i64 {
    // Relaxed: as where it is set.
    if !USED.load(Ordering::Relaxed) || !MONOTONIC.contains(&clock) && !BOOT.contains(&clock) {
        return 0;
    }
    let Some(namespaces) = process::try_current().and_then(|thread| thread.namespaces()) else { return 0 };
    let offsets = namespaces.time.state.lock().0;
    if BOOT.contains(&clock) { offsets.boot } else { offsets.monotonic }
}

/// Is the current thread in another than the first? Its vDSO asks the kernel then.
pub fn is_shifted() -> bool {
    // Relaxed: as where it is set.
    if !USED.load(Ordering::Relaxed) {
        return false;
    }
    let namespaces = process::try_current().and_then(|thread| thread.namespaces());
    namespaces.is_some_and(|namespaces| !Arc::ptr_eq(&namespaces.time, &Namespaces::initial().time))
}
