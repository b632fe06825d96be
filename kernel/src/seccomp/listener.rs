//! The descriptor by which system calls of other threads are answered: its ioctls, as seccomp_unotify(2) has them.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::bpf::Call;
use super::notify::{Answer, Listener};
use crate::errno::{Errno, Result};
use crate::fs::anonymous::Kind;
use crate::fs::file::{File, FileOps};
use crate::fs::poll::Events;
use crate::memory::PAGE_SIZE;
use crate::mm::uaccess::{read_user, read_user_array, write_user};
use crate::namespaces::View;
use crate::process;
use crate::sync::WaitQueue;

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    call: Call,
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
#[derive(Clone, Copy)]
struct AddFile {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    target_flags: u32,
}

/// Sizes of the structures, as SECCOMP_GET_NOTIF_SIZES tells them.
pub const SIZES: [u16; 3] = [size_of::<Notification>() as u16, size_of::<Response>() as u16, 64];

/// `_IOC(direction, '!', number, size)`.
const fn ioctl(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0x21 << 8 | number
}
const WRITE: u32 = 1;
const READ: u32 = 2;
const RECEIVE: u32 = ioctl(READ | WRITE, 0, size_of::<Notification>());
const SEND: u32 = ioctl(READ | WRITE, 1, size_of::<Response>());
const ID_VALID: u32 = ioctl(WRITE, 2, 8);
/// As the first kernels with it had it.
const ID_VALID_OLD: u32 = ioctl(READ, 2, 8);
const SET_FLAGS: u32 = ioctl(WRITE, 4, 8);
/// Whatever its size: that grows.
const ADD_FILE: u32 = ioctl(0, 3, 0);
const ANY_SIZE: u32 = !(3 << 30 | 0x3fff << 16);

struct Descriptor(Arc<Listener>);

/// An open file for the listener.
pub fn open(listener: &Arc<Listener>) -> Arc<File> {
    File::anonymous(Kind::Anonymous, "seccomp notify", Arc::new(Descriptor(listener.clone())), abi::O_RDWR)
}

impl Descriptor {
    fn receive(&self, argument: usize) -> Result<usize> {
        // Room for fields to come is asked for by bytes other than zero.
        if read_user::<[u64; size_of::<Notification>() / 8]>(argument)? != [0; 10] {
            return Err(Errno::EINVAL);
        }
        let waiting = self.0.next_call()?;
        let pid = View::current().thread(&waiting.thread);
        let told = Notification { id: waiting.id, pid, flags: 0, call: waiting.call };
        write_user(argument, &told).inspect_err(|_| self.0.give_back(&waiting))?;
        Ok(0)
    }

    fn send(&self, argument: usize) -> Result<usize> {
        const CONTINUE: u32 = 1;
        let response: Response = read_user(argument)?;
        if response.flags & !CONTINUE != 0 {
            return Err(Errno::EINVAL);
        }
        let made = response.flags & CONTINUE != 0;
        if made && (response.error != 0 || response.value != 0) {
            return Err(Errno::EINVAL);
        }
        let answer = match (made, response.error) {
            (true, _) => Answer::Made,
            (false, 0) => Answer::Returns(response.value),
            (false, error) => Answer::Returns(error.into()),
        };
        self.0.taken(response.id)?.answer(answer).map(|()| 0)
    }

    fn is_valid(&self, argument: usize) -> Result<usize> {
        let id: u64 = read_user(argument)?;
        self.0.taken(id).map(|_| 0).map_err(|_| Errno::ENOENT)
    }

    fn add_file(&self, argument: usize, size: usize) -> Result<usize> {
        const AT: u32 = 1;
        const ANSWERS: u32 = 2;
        const KNOWN: usize = size_of::<AddFile>();
        if !(KNOWN..PAGE_SIZE).contains(&size) {
            return Err(Errno::EINVAL);
        }
        let asked: AddFile = read_user(argument)?;
        if read_user_array::<u8>(argument + KNOWN, size - KNOWN)?.iter().any(|byte| *byte != 0) {
            return Err(Errno::E2BIG);
        }
        if asked.target_flags & !abi::O_CLOEXEC != 0
            || asked.flags & !(AT | ANSWERS) != 0
            || asked.target != 0 && asked.flags & AT == 0
        {
            return Err(Errno::EINVAL);
        }
        let file = process::current().files().get(asked.source as i32)?;
        let at = (asked.flags & AT != 0).then_some(asked.target as i32);
        let (close, answers) = (asked.target_flags != 0, asked.flags & ANSWERS != 0);
        self.0.taken(asked.id)?.add_file(file, at, close, answers).map(|fd| fd as usize)
    }
}

impl FileOps for Descriptor {
    fn poll(&self, _: &File) -> Events {
        let (waiting, taken) = self.0.has_calls();
        let mut events = Events::empty();
        events.set(Events::READABLE, waiting);
        events.set(Events::WRITABLE, taken);
        events.set(Events::HUP, self.0.is_abandoned());
        events
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(self.0.changed());
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        const SYNC_WAKE_UP: u64 = 1;
        match command {
            RECEIVE => self.receive(argument),
            SEND => self.send(argument),
            ID_VALID | ID_VALID_OLD => self.is_valid(argument),
            // On which CPU a wake-up goes on is the scheduler's affair here.
            SET_FLAGS if argument as u64 & !SYNC_WAKE_UP == 0 => Ok(0),
            _ if command & ANY_SIZE == ADD_FILE => self.add_file(argument, (command >> 16 & 0x3fff) as usize),
            _ => Err(Errno::EINVAL),
        }
    }

    fn release(&self, _: &File) {
        self.0.close();
    }
}
