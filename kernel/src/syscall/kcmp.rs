//! What a process's open files are for others: pidfd_getfd(2), kcmp(2).

use alloc::sync::Arc;

use syscalls::Sysno;

use super::mm::check_may_access;
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::fs::caller::{descriptor_limit, files};
use crate::process::{self, Thread};

pub const TABLE: &[(Sysno, Handler)] = &[(Sysno::pidfd_getfd, pidfd_getfd), (Sysno::kcmp, kcmp)];

fn file_of(thread: &Thread, fd: i32) -> Result<Arc<File>> {
    thread.try_files().ok_or(Errno::EBADF)?.get(fd)
}

fn pidfd_getfd(args: &mut Args) -> Result<usize> {
    if args.uint(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let target = process::pidfd::process_of(&*files().get(args.int(0))?).ok_or(Errno::EBADF)?;
    if target.has_ended() {
        return Err(Errno::ESRCH);
    }
    check_may_access(&target)?;
    let thread = target.leader().ok_or(Errno::ESRCH)?;
    let file = file_of(&thread, args.int(1))?;
    // It may be a program's that has taken the place of the other meanwhile.
    check_may_access(&target)?;
    Ok(files().install(file, 0, descriptor_limit(), true)? as usize)
}

/// What kcmp(2) compares.
mod kind {
    pub const FILE: i32 = 0;
    pub const VM: i32 = 1;
    pub const FILES: i32 = 2;
    pub const FS: i32 = 3;
    pub const SIGHAND: i32 = 4;
    pub const IO: i32 = 5;
    pub const SYSVSEM: i32 = 6;
}

/// An address by which two objects can be told apart; 0 for none.
fn address<T: ?Sized>(object: Option<Arc<T>>) -> usize {
    object.map_or(0, |object| Arc::as_ptr(&object).addr())
}

/// 0 for the same object; else 1 or 2, in an order that tells nothing of addresses.
fn order(first: usize, second: usize) -> usize {
    /// Changes with each boot, and is odd: a bijection.
    fn hidden(address: usize) -> usize {
        static SECRET: crate::sync::Once<usize> = crate::sync::Once::new();
        let secret = SECRET.call_once(|| {
            let mut bytes = [0; size_of::<usize>()];
            crate::random::fill(&mut bytes);
            usize::from_ne_bytes(bytes) | 1
        });
        (address ^ *secret).wrapping_mul(*secret)
    }
    match hidden(first).cmp(&hidden(second)) {
        core::cmp::Ordering::Equal => 0,
        core::cmp::Ordering::Less => 1,
        core::cmp::Ordering::Greater => 2,
    }
}

fn kcmp(args: &mut Args) -> Result<usize> {
    let find = |pid: i32| process::find_thread(pid as u32).ok_or(Errno::ESRCH);
    let (first, second) = (find(args.int(0))?, find(args.int(1))?);
    check_may_access(&first.process)?;
    check_may_access(&second.process)?;
    let (first_fd, second_fd) = (args.int(3), args.int(4));
    let each = |look: &dyn Fn(&Thread) -> usize| order(look(&first), look(&second));
    Ok(match args.int(2) {
        kind::FILE => {
            let (first, second) = (file_of(&first, first_fd)?, file_of(&second, second_fd)?);
            order(Arc::as_ptr(&first).addr(), Arc::as_ptr(&second).addr())
        }
        kind::VM => each(&|thread| address(thread.process.mm())),
        kind::FILES => each(&|thread| address(thread.try_files())),
        kind::FS => each(&|thread| address(thread.try_fs())),
        kind::SIGHAND => each(&|thread| Arc::as_ptr(&*thread.process.actions.lock()).addr()),
        // No thread has I/O of its own here that it could share.
        kind::IO => 0,
        kind::SYSVSEM => each(&Thread::undo_list_address),
        _ => return Err(Errno::EINVAL),
    })
}
