//! `siginfo_t`: what a handler is told.

use super::{SIGBUS, SIGCHLD, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
use crate::errno::{Errno, Result};
use crate::process::Pid;

/// What the kernel keeps of it, as Linux does: the first 48 bytes, which all that is known fits in. The fields after the first three differ by
/// the kind of signal.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SigInfo {
    pub signal: i32,
    pub errno: i32,
    pub code: i32,
    pad: i32,
    fields: [u64; 4],
}

/// As user space sees it: 128 bytes, of which the last are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UserSigInfo {
    info: SigInfo,
    rest: [u64; 10],
}

impl From<SigInfo> for UserSigInfo {
    fn from(info: SigInfo) -> Self {
        Self { info, rest: [0; 10] }
    }
}

impl UserSigInfo {
    /// What is kept of it. `E2BIG` when there is more, and nothing is known of what that could mean.
    pub fn to_kept(self) -> Result<SigInfo> {
        if !self.info.is_of_known_kind() && self.rest != [0; 10] { Err(Errno::E2BIG) } else { Ok(self.info) }
    }
}

/// Values of `si_code`.
#[allow(missing_docs)]
pub mod codes {
    pub const SI_USER: i32 = 0;
    pub const SI_KERNEL: i32 = 0x80;
    pub const SI_TIMER: i32 = -2;
    pub const SI_QUEUE: i32 = -1;
    pub const SI_MESGQ: i32 = -3;
    pub const SI_TKILL: i32 = -6;
    pub const ILL_ILLOPN: i32 = 2;
    pub const FPE_INTDIV: i32 = 1;
    pub const FPE_FLTDIV: i32 = 3;
    pub const FPE_FLTOVF: i32 = 4;
    pub const FPE_FLTUND: i32 = 5;
    pub const FPE_FLTRES: i32 = 6;
    pub const FPE_FLTINV: i32 = 7;
    pub const BUS_ADRALN: i32 = 1;
    pub const BUS_MCEERR_AR: i32 = 4;
    pub const SYS_SECCOMP: i32 = 1;
    pub const SYS_USER_DISPATCH: i32 = 2;
    pub const TRAP_BRKPT: i32 = 1;
    pub const TRAP_TRACE: i32 = 2;
    pub const TRAP_HWBKPT: i32 = 4;
}

impl SigInfo {
    /// Without further fields.
    pub const fn new(signal: u32, code: i32) -> Self {
        Self { signal: signal as i32, errno: 0, code, pad: 0, fields: [0; 4] }
    }

    /// All zero: waitid(2) found nothing.
    pub const fn new_empty() -> Self {
        Self::new(0, 0)
    }

    /// The kernel itself sends it, for no process's sake.
    pub const fn kernel(signal: u32) -> Self {
        Self::new(signal, codes::SI_KERNEL)
    }

    /// A process sends it: kill(2) with `SI_USER`, tgkill(2) with `SI_TKILL`.
    pub const fn user(signal: u32, code: i32, pid: Pid, uid: u32) -> Self {
        let mut info = Self::new(signal, code);
        info.fields[0] = pid as u64 | (uid as u64) << 32;
        info
    }

    /// An instruction raised it, at or with this address.
    pub const fn fault(signal: u32, code: i32, address: u64) -> Self {
        let mut info = Self::new(signal, code);
        info.fields[0] = address;
        info
    }

    /// An access to a page that counts as broken, of `1 << granule` bytes.
    pub const fn poison(address: u64, granule: u32) -> Self {
        let mut info = Self::fault(SIGBUS, codes::BUS_MCEERR_AR, address);
        info.fields[1] = granule as u64;
        info
    }

    /// The thread is kept from a system call, by the code's means: the call's number, made at `address`, and what a filter says.
    pub const fn system_call(code: i32, data: i32, address: u64, number: u32, arch: u32) -> Self {
        let mut info = Self::fault(SIGSYS, code, address);
        info.errno = data;
        info.fields[1] = number as u64 | (arch as u64) << 32;
        info
    }

    /// A child has changed state; times in clock ticks of 10 ms.
    pub fn child(code: i32, pid: Pid, uid: u32, status: i32, user_time: u64, system_time: u64) -> Self {
        let mut info = Self::new(SIGCHLD, code);
        info.fields[0] = u64::from(pid) | u64::from(uid) << 32;
        info.fields[1] = u64::from(status as u32);
        info.fields[2] = user_time;
        info.fields[3] = system_time;
        info
    }

    /// A message has come into an empty queue, for who asked by mq_notify(2).
    pub const fn message_queue(signal: u32, pid: Pid, uid: u32, value: u64) -> Self {
        let mut info = Self::user(signal, codes::SI_MESGQ, pid, uid);
        info.fields[1] = value;
        info
    }

    /// An open file with O_ASYNC is ready, or somebody wants what it has a lease of: `code` is `POLL_*`.
    pub const fn of_file(signal: u32, code: i32, band: u64, fd: i32) -> Self {
        let mut info = Self::new(signal, code);
        info.fields[0] = band;
        info.fields[1] = fd as u32 as u64;
        info
    }

    /// A timer of timer_create(2) went off.
    pub fn timer(signal: u32, id: i32, overrun: i32, value: u64) -> Self {
        let mut info = Self::new(signal, codes::SI_TIMER);
        info.fields[0] = u64::from(id as u32) | u64::from(overrun as u32) << 32;
        info.fields[1] = value;
        info
    }

    /// Whether the code says which fields there are: Linux's `known_siginfo_layout`.
    fn is_of_known_kind(&self) -> bool {
        const SI_DETHREAD: i32 = -7;
        const SI_ASYNCNL: i32 = -60;
        let most = match self.signal as u32 {
            SIGILL => 11,
            SIGFPE => 15,
            SIGSEGV => 10,
            SIGBUS => 5,
            SIGSYS => 2,
            _ => 6,
        };
        matches!(self.code, codes::SI_KERNEL | SI_ASYNCNL) || (SI_DETHREAD..=most).contains(&self.code)
    }

    /// Whether a process (and not the kernel) sent it.
    pub fn is_from_user(&self) -> bool {
        self.code <= 0
    }

    /// Whether it queues at the expense of its receiver's user: RLIMIT_SIGPENDING.
    pub fn is_limited(&self) -> bool {
        self.signal as u32 >= super::SIGRTMIN
    }

    /// Whether it says which process sent it: by kill(2), tgkill(2), sigqueue(3), or by a message queue.
    pub fn has_sender(&self) -> bool {
        matches!(self.code, codes::SI_USER | codes::SI_TKILL | codes::SI_QUEUE | codes::SI_MESGQ)
    }

    /// Whether it names a user: that of a sender, or of a child.
    pub fn has_uid(&self) -> bool {
        self.has_sender() || self.signal as u32 == SIGCHLD && self.code > 0 && self.code < codes::SI_KERNEL
    }

    /// The sender is nobody that its receiver could name.
    pub fn hide_sender(&mut self) {
        self.fields[0] &= !u64::from(u32::MAX);
    }

    /// Puts another user in the place of the sender's.
    pub fn set_uid(&mut self, uid: u32) {
        self.fields[0] = self.fields[0] & u64::from(u32::MAX) | u64::from(uid) << 32;
    }

    /// The sender's number, of those signals that have one.
    pub fn pid(&self) -> u32 {
        self.fields[0] as u32
    }

    /// The sender's user.
    pub fn uid(&self) -> u32 {
        (self.fields[0] >> 32) as u32
    }

    /// The value of sigqueue(3) and of timers.
    pub fn value(&self) -> u64 {
        self.fields[1]
    }

    /// The address of a fault.
    pub fn address(&self) -> u64 {
        self.fields[0]
    }

    /// The status of a child.
    pub fn status(&self) -> i32 {
        self.fields[1] as i32
    }

    /// The timer's number and overrun count.
    pub fn timer_id(&self) -> (i32, i32) {
        (self.fields[0] as i32, (self.fields[0] >> 32) as i32)
    }

    /// The timer's overrun count is known when its signal is delivered.
    pub fn set_overrun(&mut self, overrun: i32) {
        self.fields[0] = self.fields[0] & 0xffff_ffff | u64::from(overrun as u32) << 32;
    }

    /// User and system time of a child, in clock ticks.
    pub fn child_times(&self) -> (u64, u64) {
        (self.fields[2], self.fields[3])
    }

    /// Whether code and signal say that `si_addr` is meant.
    pub fn is_fault(&self) -> bool {
        let signal = self.signal as u32;
        self.code > 0 && (signal == SIGTRAP || self.code != codes::SI_KERNEL && signal != SIGCHLD)
    }
}

/// A plain signal number: the kernel sends it.
impl From<u32> for SigInfo {
    fn from(signal: u32) -> Self {
        Self::kernel(signal)
    }
}

const _: () = assert!(size_of::<SigInfo>() == 48 && size_of::<UserSigInfo>() == 128);
