//! System calls that move data: read, write and their relatives.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::{self, files};
use crate::fs::file::AT_END;
use crate::fs::iobuf::MAX_RW_COUNT;
use crate::fs::{File, FileType, Sink, Source, Whence};
use crate::memory::fallible;
use crate::mm::uaccess;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::read, read),
    (Sysno::write, write),
    (Sysno::readv, readv),
    (Sysno::writev, writev),
    (Sysno::pread64, pread64),
    (Sysno::pwrite64, pwrite64),
    (Sysno::preadv, preadv),
    (Sysno::pwritev, pwritev),
    (Sysno::preadv2, preadv2),
    (Sysno::pwritev2, pwritev2),
    (Sysno::lseek, lseek),
    (Sysno::sendfile, sendfile),
    (Sysno::copy_file_range, copy_file_range),
];

/// The open file of a descriptor.
fn file(fd: usize) -> Result<Arc<File>> {
    files().get(fd as i32)
}

/// An offset of the pread family.
fn offset(raw: usize) -> Result<u64> {
    i64::try_from(raw as u64).map(|o| o as u64).map_err(|_| Errno::EINVAL)
}

fn read(args: &mut Args) -> Result<usize> {
    let [fd, address, count, ..] = args.a;
    let file = file(fd)?;
    check_readable(&file)?;
    file.read(&mut Sink::user(address, count)?)
}

fn write(args: &mut Args) -> Result<usize> {
    let [fd, address, count, ..] = args.a;
    let file = file(fd)?;
    check_writable(&file)?;
    file.write(&mut Source::user(address, count)?)
}

fn readv(args: &mut Args) -> Result<usize> {
    let [fd, vectors, count, ..] = args.a;
    let file = file(fd)?;
    check_readable(&file)?;
    file.read(&mut Sink::vectors(vectors, count)?)
}

fn writev(args: &mut Args) -> Result<usize> {
    let [fd, vectors, count, ..] = args.a;
    let file = file(fd)?;
    check_writable(&file)?;
    file.write(&mut Source::vectors(vectors, count)?)
}

fn pread64(args: &mut Args) -> Result<usize> {
    let [fd, address, count, at, ..] = args.a;
    let at = offset(at)?;
    let file = file(fd)?;
    check_seekable(&file)?;
    check_readable(&file)?;
    file.read_at(at, &mut Sink::user(address, count)?)
}

fn pwrite64(args: &mut Args) -> Result<usize> {
    let [fd, address, count, at, ..] = args.a;
    let at = offset(at)?;
    let file = file(fd)?;
    check_seekable(&file)?;
    check_writable(&file)?;
    file.write_at(at, &mut Source::user(address, count)?)
}

fn preadv(args: &mut Args) -> Result<usize> {
    let [fd, vectors, count, at, ..] = args.a;
    let at = offset(at)?;
    let file = file(fd)?;
    check_seekable(&file)?;
    check_readable(&file)?;
    file.read_at(at, &mut Sink::vectors(vectors, count)?)
}

fn pwritev(args: &mut Args) -> Result<usize> {
    let [fd, vectors, count, at, ..] = args.a;
    let at = offset(at)?;
    let file = file(fd)?;
    check_seekable(&file)?;
    check_writable(&file)?;
    file.write_at(at, &mut Source::vectors(vectors, count)?)
}

/// All data is in memory, so high priority and synchronous writing ask for nothing more.
const PLAIN_RWF: u32 = abi::RWF_HIPRI | abi::RWF_DSYNC | abi::RWF_SYNC;

fn preadv2(args: &mut Args) -> Result<usize> {
    let [fd, vectors, count, at, _, flags] = args.a;
    if flags as u32 & !PLAIN_RWF != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if at == usize::MAX { readv(args) } else { preadv_at(fd, vectors, count, at) }
}

fn preadv_at(fd: usize, vectors: usize, count: usize, at: usize) -> Result<usize> {
    let at = offset(at)?;
    let file = file(fd)?;
    check_seekable(&file)?;
    check_readable(&file)?;
    file.read_at(at, &mut Sink::vectors(vectors, count)?)
}

fn pwritev2(args: &mut Args) -> Result<usize> {
    let [fd, vectors, count, at, _, flags] = args.a;
    if flags as u32 & !(PLAIN_RWF | abi::RWF_APPEND) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let file = file(fd)?;
    check_writable(&file)?;
    let append = flags as u32 & abi::RWF_APPEND != 0;
    if at == usize::MAX {
        let mut source = Source::vectors(vectors, count)?;
        return if append { file.append(&mut source) } else { file.write(&mut source) };
    }
    let at = offset(at)?;
    check_seekable(&file)?;
    let mut source = Source::vectors(vectors, count)?;
    file.write_at(if append && file.ops().appends() { AT_END } else { at }, &mut source)
}

fn check_readable(file: &File) -> Result<()> {
    if file.readable() { Ok(()) } else { Err(Errno::EBADF) }
}

fn check_writable(file: &File) -> Result<()> {
    if file.writable() { Ok(()) } else { Err(Errno::EBADF) }
}

fn check_seekable(file: &File) -> Result<()> {
    if file.is_path() {
        Err(Errno::EBADF)
    } else if file.ops().seekable() {
        Ok(())
    } else {
        Err(Errno::ESPIPE)
    }
}

fn lseek(args: &mut Args) -> Result<usize> {
    let [fd, at, whence, ..] = args.a;
    let file = file(fd)?;
    if file.is_path() {
        return Err(Errno::EBADF);
    }
    let whence = match whence as u32 {
        abi::SEEK_SET => Whence::Start,
        abi::SEEK_CUR => Whence::Current,
        abi::SEEK_END => Whence::End,
        abi::SEEK_DATA => Whence::Data,
        abi::SEEK_HOLE => Whence::Hole,
        _ => return Err(Errno::EINVAL),
    };
    file.seek(whence, at as i64).map(|position| position as usize)
}

/// Bytes that are copied in one step between files.
const STEP: usize = 16 * 1024;

/// Copies up to `count` bytes by `read` and `write`; what was read but not written does not count, and the
/// reader is told by the next offset.
fn copy(
    count: usize,
    mut from: u64,
    read: impl Fn(u64, &mut [u8]) -> Result<usize>,
    mut write: impl FnMut(&[u8]) -> Result<usize>,
) -> Result<usize> {
    let mut buffer = fallible::filled(0u8, STEP.min(count))?;
    let mut done = 0;
    while done < count {
        let want = (count - done).min(buffer.len());
        let got = match read(from, &mut buffer[..want]) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        let put = match write(&buffer[..got]) {
            Ok(put) => put,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        done += put;
        from += put as u64;
        if put < got || crate::process::current().signal_pending() {
            break;
        }
        crate::sched::cond_resched();
    }
    Ok(done)
}

fn sendfile(args: &mut Args) -> Result<usize> {
    let [out, input, offset_address, count, ..] = args.a;
    let (input, out) = (file(input)?, file(out)?);
    check_readable(&input)?;
    check_writable(&out)?;
    if !input.ops().seekable() || !input.ops().spliceable() || input.inode().is_dir() || out.appending() {
        return Err(Errno::EINVAL);
    }
    let count = count.min(MAX_RW_COUNT);
    let read = |at: u64, buffer: &mut [u8]| input.read_at(at, &mut Sink::kernel(buffer));
    let write = |bytes: &[u8]| out.write(&mut Source::kernel(bytes));
    if offset_address != 0 {
        let at = offset(uaccess::read_user::<u64>(offset_address)? as usize)?;
        let done = copy(count, at, read, write)?;
        uaccess::write_user(offset_address, &(at + done as u64))?;
        return Ok(done);
    }
    // The two may be one file: its position must not be locked while it is written.
    let at = input.position();
    let done = copy(count, at, read, write)?;
    input.with_position(|position| *position = at + done as u64);
    Ok(done)
}

fn copy_file_range(args: &mut Args) -> Result<usize> {
    let [input, in_address, out, out_address, count, flags] = args.a;
    let (input, out) = (file(input)?, file(out)?);
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    if input.inode().is_dir() || out.inode().is_dir() {
        return Err(Errno::EISDIR);
    }
    if input.inode().kind != FileType::Regular || out.inode().kind != FileType::Regular {
        return Err(Errno::EINVAL);
    }
    check_readable(&input)?;
    check_writable(&out)?;
    if out.appending() {
        return Err(Errno::EBADF);
    }
    if !Arc::ptr_eq(&input.inode().superblock, &out.inode().superblock) {
        return Err(Errno::EXDEV);
    }
    let place = |address: usize, file: &File| match address {
        0 => Ok(file.position()),
        _ => offset(uaccess::read_user::<u64>(address)? as usize),
    };
    let (from, to) = (place(in_address, &input)?, place(out_address, &out)?);
    let count = count.min(MAX_RW_COUNT);
    let size = input.inode().stat().size;
    let count = (count as u64).min(size.saturating_sub(from)) as usize;
    if from.checked_add(count as u64).is_none() || to.checked_add(count as u64).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    if Arc::ptr_eq(input.inode(), out.inode()) && from < to + count as u64 && to < from + count as u64 {
        return Err(Errno::EINVAL);
    }
    caller::write_room(to, u64::MAX)?;
    let mut written = 0u64;
    let done = copy(
        count,
        from,
        |at, buffer| input.read_at(at, &mut Sink::kernel(buffer)),
        |bytes| {
            let put = out.write_at(to + written, &mut Source::kernel(bytes))?;
            written += put as u64;
            Ok(put)
        },
    )?;
    let update = |address: usize, file: &File, at: u64| match address {
        0 => {
            file.with_position(|position| *position = at);
            Ok(())
        }
        _ => uaccess::write_user(address, &at),
    };
    update(in_address, &input, from + done as u64)?;
    update(out_address, &out, to + done as u64)?;
    Ok(done)
}
