//! Filters of system calls, and the listener that answers for one.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::kinds::{Answer, call};

pub const ALLOW: u32 = 0x7fff_0000;
pub const USER_NOTIF: u32 = 0x7fc0_0000;

pub const TSYNC: usize = 1;
pub const NEW_LISTENER: usize = 8;
pub const TSYNC_ESRCH: usize = 16;
pub const WAIT_KILLABLE: usize = 32;

pub const LOAD: u16 = 0x20;
pub const EQUAL: u16 = 0x15;
pub const RETURN: u16 = 0x06;

pub type Instruction = libc::sock_filter;

pub const fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

pub const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// Answers `answer` to one system call, and lets all others be.
pub fn on(number: i64, answer: u32) -> Vec<Instruction> {
    vec![op(LOAD, 0), branch(EQUAL, number as u32, 0, 1), op(RETURN, answer), op(RETURN, ALLOW)]
}

pub fn no_new_privileges() {
    assert_eq!(call(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0, 0]), Ok(0));
}

pub fn install(filter: &[Instruction], flags: usize) -> Answer {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    call(libc::SYS_seccomp, [1, flags, (&raw const program) as usize, 0, 0, 0])
}

/// A system call without arguments.
pub fn simple(number: i64) -> Answer {
    call(number, [0; 6])
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Notification {
    pub id: u64,
    pub pid: u32,
    pub flags: u32,
    pub number: i32,
    pub arch: u32,
    pub instruction: u64,
    pub arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Response {
    pub id: u64,
    pub value: i64,
    pub error: i32,
    pub flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AddFile {
    pub id: u64,
    pub flags: u32,
    pub source: u32,
    pub target: u32,
    pub target_flags: u32,
}

/// The descriptor by which calls are answered.
pub struct Listener(pub OwnedFd);

impl Listener {
    /// Of a filter that asks for one system call; this thread gets it.
    pub fn on(number: i64, flags: usize) -> Self {
        no_new_privileges();
        let fd = install(&on(number, USER_NOTIF), NEW_LISTENER | flags).expect("a listener");
        // SAFETY: it is a new descriptor.
        Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    pub fn ioctl(&self, command: usize, argument: usize) -> Answer {
        call(libc::SYS_ioctl, [self.0.as_raw_fd() as usize, command, argument, 0, 0, 0])
    }

    /// Waits for a call.
    pub fn receive(&self) -> Result<Notification, Errno> {
        let mut told = Notification::default();
        self.ioctl(0xc050_2100, (&raw mut told) as usize).map(|_| told)
    }

    /// As `receive`, where a call may have been given up: Linux then says that there was one, with ENOENT.
    pub fn receive_next(&self) -> Notification {
        loop {
            match self.receive() {
                Err(Errno::ENOENT) => {}
                other => return other.unwrap(),
            }
        }
    }

    pub fn send(&self, response: Response) -> Answer {
        self.ioctl(0xc018_2101, (&raw const response) as usize)
    }

    pub fn answer(&self, id: u64, value: i64) -> Answer {
        self.send(Response { id, value, ..Response::default() })
    }

    pub fn is_valid(&self, id: u64) -> Answer {
        self.ioctl(0x4008_2102, (&raw const id) as usize)
    }

    pub fn add(&self, file: AddFile) -> Answer {
        self.ioctl(0x4018_2103, (&raw const file) as usize)
    }

    /// What poll(2) says within so many milliseconds.
    pub fn poll(&self, timeout: i32) -> i16 {
        let mut asked =
            libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN | libc::POLLOUT, revents: 0 };
        // SAFETY: one structure that lives through the call.
        unsafe { libc::poll(&mut asked, 1, timeout) };
        asked.revents
    }
}
