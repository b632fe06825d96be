//! System calls: io_setup(2) and what belongs to it.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::event::{read_mask, read_timeout, with_mask};
use super::mm::space;
use super::{Args, Handler, handler};
use crate::arch::trap::TrapFrame;
use crate::errno::{Errno, Result};
use crate::fs::aio::{self, Event};
use crate::fs::caller::files;
use crate::fs::eventfd;
use crate::mm::MapRequest;
use crate::mm::uaccess::{read_user, write_user};
use crate::process;
use crate::sched;
use crate::signal::SigSet;

use core::sync::atomic::Ordering;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::io_setup, io_setup),
    (Sysno::io_destroy, io_destroy),
    (Sysno::io_submit, io_submit),
    (Sysno::io_cancel, io_cancel),
    (Sysno::io_getevents, io_getevents),
    (Sysno::io_pgetevents, io_pgetevents),
];

/// `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Operation {
    data: u64,
    key: u32,
    rw_flags: u32,
    code: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

const _: () = assert!(size_of::<Operation>() == 64);

mod code {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const FSYNC: u16 = 2;
    pub const FDSYNC: u16 = 3;
    pub const READ_VECTORS: u16 = 7;
    pub const WRITE_VECTORS: u16 = 8;
}

/// Makes a context. Its number is the address of a page of the caller's own: libraries look there for a ring before they make a call,
/// and find none.
fn io_setup(args: &mut Args) -> Result<usize> {
    let (wished, at) = (args.uint(0) as usize, args.a[1]);
    /// Linux has room for twice as many events as are wished for, in 256 MiB at the most.
    const MOST: usize = 0x1000_0000 / size_of::<Event>() / 2;
    if read_user::<u64>(at)? != 0 || wished == 0 || wished > MOST {
        return Err(Errno::EINVAL);
    }
    if wished > aio::MOST.load(Ordering::SeqCst) {
        return Err(Errno::EAGAIN);
    }
    let space = space()?;
    let number = space.map(MapRequest {
        address: 0,
        len: crate::memory::PAGE_SIZE as u64,
        prot: abi::PROT_READ | abi::PROT_WRITE,
        flags: abi::MAP_PRIVATE | abi::MAP_ANONYMOUS,
        file: None,
        offset: 0,
    })?;
    let contexts = &process::current().process.aio;
    let made = contexts.add(number, wished).and_then(|()| {
        write_user(at, &number).inspect_err(|_| {
            let _ = contexts.remove(number);
        })
    });
    if made.is_err() {
        // It was made above: nothing else can be wrong with it than that the caller has unmapped it.
        let _ = space.unmap(number, crate::memory::PAGE_SIZE as u64);
    }
    made.map(|()| 0)
}

fn io_destroy(args: &mut Args) -> Result<usize> {
    let number = args.a[0] as u64;
    process::current().process.aio.remove(number)?;
    // The caller may have unmapped it.
    let _ = space()?.unmap(number, crate::memory::PAGE_SIZE as u64);
    Ok(0)
}

/// Does the operations one by one. Returns how many, or what is wrong with the first.
fn io_submit(args: &mut Args) -> Result<usize> {
    let count = args.a[1] as isize;
    let context = process::current().process.aio.get(args.a[0] as u64)?;
    // As many as there is room for at the most, even where another thread takes events out meanwhile.
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?.min(context.room());
    let mut done = 0;
    while done < count && !process::current().kill_pending() {
        sched::cond_resched();
        let submitted = read_user::<u64>(args.a[2].wrapping_add(done * size_of::<u64>()))
            .and_then(|at| submit(&context, at, args.frame));
        match submitted {
            Ok(()) => done += 1,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn submit(context: &alloc::sync::Arc<aio::Context>, at: u64, frame: &mut TrapFrame) -> Result<()> {
    const KEY: u32 = 0;
    const HAS_EVENTFD: u32 = 1;
    let operation: Operation = read_user(at as usize)?;
    if operation.reserved != 0 || (operation.bytes as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    let slot = context.begin()?;
    let file = files().get(operation.fd as i32)?;
    let counter = match operation.flags & HAS_EVENTFD {
        0 => None,
        _ => Some(files().get(operation.eventfd as i32)?),
    };
    if counter.as_ref().is_some_and(|counter| !eventfd::is_one(counter)) {
        return Err(Errno::EINVAL);
    }
    write_user(at as usize + core::mem::offset_of!(Operation, key), &KEY)?;
    let is_sync = matches!(operation.code, code::FSYNC | code::FDSYNC);
    let refused = match operation.code {
        code::READ | code::READ_VECTORS => !file.readable(),
        code::WRITE | code::WRITE_VECTORS => !file.writable(),
        code::FSYNC | code::FDSYNC => false,
        _ => return Err(Errno::EINVAL),
    };
    if refused {
        return Err(Errno::EBADF);
    }
    if is_sync && (operation.buffer | operation.bytes | operation.offset as u64) != 0 || operation.offset < 0
    {
        return Err(Errno::EINVAL);
    }
    let result = match perform(&operation, frame) {
        Ok(count) => count as i64,
        // Nothing is made again once it was submitted.
        Err(error) if error.into_raw() >= 512 => -i64::from(Errno::EINTR.into_raw()),
        Err(error) => -i64::from(error.into_raw()),
    };
    slot.finish(Event { data: operation.data, object: at, result, second: 0 });
    if let Some(counter) = counter {
        eventfd::add_one(&counter);
    }
    Ok(())
}

/// Makes the call that does what the operation asks for.
fn perform(operation: &Operation, frame: &mut TrapFrame) -> Result<usize> {
    // Hints, or what each write does here.
    const KNOWN: u32 = abi::RWF_HIPRI | abi::RWF_DSYNC | abi::RWF_SYNC;
    let (placed, plain) = match operation.code {
        code::READ => (Sysno::pread64, Sysno::read),
        code::WRITE => (Sysno::pwrite64, Sysno::write),
        code::READ_VECTORS => (Sysno::preadv, Sysno::readv),
        code::WRITE_VECTORS => (Sysno::pwritev, Sysno::writev),
        code::FSYNC => (Sysno::fsync, Sysno::fsync),
        _ => (Sysno::fdatasync, Sysno::fdatasync),
    };
    if operation.rw_flags & !KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let a = [
        operation.fd as usize,
        operation.buffer as usize,
        operation.bytes as usize,
        operation.offset as usize,
        0,
        0,
    ];
    let mut make = |call: Sysno| handler(call).ok_or(Errno::EINVAL)?(&mut Args { a, frame: &mut *frame });
    match make(placed) {
        // A pipe, a socket: there are no places in it.
        Err(Errno::ESPIPE) => make(plain),
        result => result,
    }
}

/// What was submitted is done: there is nothing to cancel.
fn io_cancel(args: &mut Args) -> Result<usize> {
    let key: u32 = read_user(args.a[1].wrapping_add(core::mem::offset_of!(Operation, key)))?;
    if key == 0 {
        process::current().process.aio.get(args.a[0] as u64)?;
    }
    Err(Errno::EINVAL)
}

fn fetch(args: &Args, mask: Option<SigSet>) -> Result<usize> {
    let (least, most, at) = (args.a[1] as isize, args.a[2] as isize, args.a[3]);
    let deadline = read_timeout(args.a[4])?;
    let context = process::current().process.aio.get(args.a[0] as u64)?;
    if least < 0 || least > most {
        return Err(Errno::EINVAL);
    }
    let mut count = 0;
    with_mask(mask, || {
        context.fetch(least as usize, most as usize, deadline, |event| {
            write_user(at.wrapping_add(count * size_of::<Event>()), event)?;
            count += 1;
            Ok(())
        })
    })
}

fn io_getevents(args: &mut Args) -> Result<usize> {
    fetch(args, None)
}

fn io_pgetevents(args: &mut Args) -> Result<usize> {
    let mask = match args.a[5] {
        0 => None,
        at => {
            let [mask, size]: [usize; 2] = read_user(at)?;
            read_mask(mask, size)?
        }
    };
    fetch(args, mask)
}
