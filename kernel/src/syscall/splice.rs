//! Data between pipes and files: splice, tee, vmsplice.

use alloc::sync::Arc;

use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::files;
use crate::fs::iobuf::MAX_RW_COUNT;
use crate::fs::pipe::splice::pipe_of;
use crate::fs::{File, FileType, Sink, Source};
use crate::mm::uaccess::{read_user, write_user};
use crate::{process, sched};

pub const TABLE: &[(Sysno, Handler)] =
    &[(Sysno::splice, splice), (Sysno::tee, tee), (Sysno::vmsplice, vmsplice)];

const SPLICE_F_NONBLOCK: u32 = 2;
/// MOVE, NONBLOCK, MORE, GIFT.
const SPLICE_F_ALL: u32 = 15;

/// The two files of a call; `EBADF` unless the one can be read and the other written.
fn ends(input: i32, output: i32) -> Result<(Arc<File>, Arc<File>)> {
    Ok((files().get(input)?, files().get(output)?))
}

fn check_access(input: &File, output: &File) -> Result<()> {
    if input.readable() && output.writable() { Ok(()) } else { Err(Errno::EBADF) }
}

/// The offset that the user has at `address`, if any.
fn read_offset(address: usize) -> Result<Option<u64>> {
    if address == 0 {
        return Ok(None);
    }
    let offset: i64 = read_user(address)?;
    Ok(Some(offset as u64))
}

fn write_offset(address: usize, offset: u64) -> Result<()> {
    if address == 0 { Ok(()) } else { write_user(address, &offset) }
}

/// `EINVAL` for an offset below 0.
fn checked(offset: u64) -> Result<u64> {
    if (offset as i64) < 0 { Err(Errno::EINVAL) } else { Ok(offset) }
}

/// splice(2).
fn splice(args: &mut Args) -> Result<usize> {
    let (in_address, out_address, count, flags) = (args.a[1], args.a[3], args.a[4], args.uint(5));
    if count == 0 {
        return Ok(0);
    }
    if flags & !SPLICE_F_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let (input, output) = ends(args.int(0), args.int(2))?;
    let (from, to) = (pipe_of(&input), pipe_of(&output));
    if from.is_some() && in_address != 0 || to.is_some() && out_address != 0 {
        return Err(Errno::ESPIPE);
    }
    let (in_offset, out_offset) = (read_offset(in_address)?, read_offset(out_address)?);
    check_access(&input, &output)?;
    let count = count.min(MAX_RW_COUNT);
    let nonblocking = flags & SPLICE_F_NONBLOCK != 0;
    match (from, to) {
        (Some(from), Some(to)) => {
            if Arc::ptr_eq(from, to) {
                return Err(Errno::EINVAL);
            }
            from.move_to(to, count, nonblocking || input.nonblocking() || output.nonblocking())
        }
        (Some(from), None) => {
            let mut at = out_offset;
            let done = from.drain(count, nonblocking || input.nonblocking(), {
                check_sink(&output, out_offset)?;
                |bytes: &[u8]| {
                    let source = &mut Source::kernel(bytes);
                    let Some(at) = &mut at else { return output.write(source) };
                    let done = output.write_at(*at, source)?;
                    *at += done as u64;
                    Ok(done)
                }
            })?;
            write_offset(out_address, at.unwrap_or(0))?;
            Ok(done)
        }
        (None, Some(to)) => {
            check_source(&input, in_offset)?;
            let mut at = in_offset;
            let all = input.ops().seekable();
            let done = to.fill(count, nonblocking || output.nonblocking(), all, |space| {
                let sink = &mut Sink::kernel(space);
                let Some(at) = &mut at else { return input.read(sink) };
                let done = input.read_at(*at, sink)?;
                *at += done as u64;
                Ok(done)
            })?;
            write_offset(in_address, at.unwrap_or(0))?;
            Ok(done)
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

/// `EINVAL` for a file that nothing can be spliced from.
fn check_source(file: &File, offset: Option<u64>) -> Result<()> {
    if file.inode().is_dir() || offset.is_some() && !file.ops().seekable() {
        return Err(Errno::EINVAL);
    }
    offset.map_or(Ok(()), |offset| checked(offset).map(drop))?;
    let kind = file.inode().kind;
    let streams = matches!(kind, FileType::Socket | FileType::CharDevice);
    if streams || file.ops().seekable() && file.ops().spliceable() { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `EINVAL` for a file that nothing can be spliced to.
fn check_sink(file: &File, offset: Option<u64>) -> Result<()> {
    let kind = file.inode().kind;
    let writes = matches!(kind, FileType::Regular | FileType::Socket | FileType::CharDevice);
    if !writes || file.appending() || offset.is_some() && !file.ops().seekable() {
        return Err(Errno::EINVAL);
    }
    offset.map_or(Ok(()), |offset| checked(offset).map(drop))
}

/// tee(2).
fn tee(args: &mut Args) -> Result<usize> {
    let (count, flags) = (args.a[2], args.uint(3));
    if flags & !SPLICE_F_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    if count == 0 {
        return Ok(0);
    }
    let (input, output) = ends(args.int(0), args.int(1))?;
    check_access(&input, &output)?;
    let (Some(from), Some(to)) = (pipe_of(&input), pipe_of(&output)) else { return Err(Errno::EINVAL) };
    if Arc::ptr_eq(from, to) {
        return Err(Errno::EINVAL);
    }
    let nonblocking = flags & SPLICE_F_NONBLOCK != 0 || input.nonblocking() || output.nonblocking();
    from.copy_to(to, count, nonblocking)
}

/// vmsplice(2).
fn vmsplice(args: &mut Args) -> Result<usize> {
    let (vectors, count, flags) = (args.a[1], args.a[2], args.uint(3));
    if flags & !SPLICE_F_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let file = files().get(args.int(0))?;
    if !file.writable() && !file.readable() {
        return Err(Errno::EBADF);
    }
    let nonblocking = flags & SPLICE_F_NONBLOCK != 0 || file.nonblocking();
    if file.writable() {
        let mut source = Source::vectors(vectors, count)?;
        if source.remaining() == 0 {
            return Ok(0);
        }
        check_not_secret(vectors, count)?;
        pipe_of(&file).ok_or(Errno::EBADF)?.fill_from_user(&mut source, nonblocking)
    } else {
        let mut sink = Sink::vectors(vectors, count)?;
        if sink.remaining() == 0 {
            return Ok(0);
        }
        pipe_of(&file).ok_or(Errno::EBADF)?.drain_to_user(&mut sink, nonblocking)
    }
}

/// `EFAULT` where memory of memfd_secret(2) would become a part of a pipe.
fn check_not_secret(vectors: usize, count: usize) -> Result<()> {
    let space = super::mm::space()?;
    for index in 0..count {
        let [base, len]: [u64; 2] = read_user(vectors + index * size_of::<[u64; 2]>())?;
        if len > 0 && space.has_secret(base..base.saturating_add(len)) {
            return Err(Errno::EFAULT);
        }
        // A vector may span all areas of the process, and there are 1,024 vectors.
        sched::cond_resched();
        if process::current().kill_pending() {
            return Err(Errno::EINTR);
        }
    }
    Ok(())
}
