//! Files: names and data on tmpfs and hugetlbfs, files without a name, and descriptors.

use libc::*;
use roundtable_programs::huge::HUGE;
use roundtable_programs::sys::PAGE;
use syscalls::Sysno;

use super::{Call, Kind, opened, opens, plain, special};
use crate::turn::Arg::{
    self, Below, Bits, Buffer, Count, Descriptor, File, Iovec, Is, Offset, OffsetPointer, OneOf, Path, Size,
};
use crate::turn::Turn;

pub const CALLS: &[Call] = &[
    opens("open", 20, Sysno::open, &[Path, FLAGS, MODE], Kind::File),
    opens("openat", 5, Sysno::openat, &[FOLDER, Path, FLAGS, MODE], Kind::File),
    special("memfd_create", 15, memory_file),
    plain("close", 12, Sysno::close, &[Descriptor]),
    special("close_range", 1, close_range),
    opens("dup", 3, Sysno::dup, &[Descriptor], Kind::Any),
    opens("dup3", 3, Sysno::dup3, &[Descriptor, Below(64), OneOf(&[0, O_CLOEXEC as usize])], Kind::Any),
    plain("read", 12, Sysno::read, &[Descriptor, Buffer, Size]),
    plain("write", 12, Sysno::write, &[Descriptor, Buffer, Size]),
    plain("pread64", 6, Sysno::pread64, &[File, Buffer, Size, Offset]),
    plain("pwrite64", 8, Sysno::pwrite64, &[File, Buffer, Size, Offset]),
    plain("readv", 3, Sysno::readv, &[Descriptor, Iovec, Count]),
    plain("writev", 3, Sysno::writev, &[Descriptor, Iovec, Count]),
    plain("preadv2", 3, Sysno::preadv2, &[File, Iovec, Count, Offset, Is(0), OneOf(&[0, 0, 0, 8, 2, 16])]),
    plain("pwritev2", 3, Sysno::pwritev2, &[File, Iovec, Count, Offset, Is(0), OneOf(&[0, 0, 0, 8, 2, 16])]),
    plain("lseek", 6, Sysno::lseek, &[File, Offset, Below(6)]),
    plain("sendfile", 5, Sysno::sendfile, &[Descriptor, File, OffsetPointer, Size]),
    plain("copy_file_range", 5, Sysno::copy_file_range, &COPY),
    plain("ftruncate", 20, Sysno::ftruncate, &[File, Offset]),
    plain("truncate", 5, Sysno::truncate, &[Path, Offset]),
    plain("fallocate", 25, Sysno::fallocate, &[File, ALLOCATE, Offset, LENGTH]),
    plain("fsync", 1, Sysno::fsync, &[File]),
    plain("fadvise64", 1, Sysno::fadvise64, &[File, Offset, LENGTH, Below(8)]),
    plain("fcntl-seals", 4, Sysno::fcntl, &[File, Is(F_ADD_SEALS as usize), SEALS]),
    plain("fcntl-flags", 3, Sysno::fcntl, &[Descriptor, Is(F_SETFL as usize), FLAGS]),
    opens("fcntl-dup", 2, Sysno::fcntl, &[Descriptor, OneOf(&[0, 1030]), Below(80)], Kind::Any),
    plain("fcntl-other", 4, Sysno::fcntl, &[Descriptor, Below(40), Buffer]),
    plain("fcntl-pipe", 2, Sysno::fcntl, &[Descriptor, Is(F_SETPIPE_SZ as usize), Size]),
    plain("flock", 2, Sysno::flock, &[File, OneOf(&[5, 6, 8])]),
    plain("ioctl", 2, Sysno::ioctl, &[Descriptor, OneOf(&[0x5401, 0x541b, 0x5421, 0x5450]), Buffer]),
    plain("fstat", 2, Sysno::fstat, &[Descriptor, Buffer]),
    plain("stat", 2, Sysno::stat, &[Path, Buffer]),
    plain("statx", 1, Sysno::statx, &[FOLDER, Path, Below(0x8000), Is(0xfff), Buffer]),
    plain("statfs", 1, Sysno::statfs, &[Path, Buffer]),
    plain("getdents64", 2, Sysno::getdents64, &[File, Buffer, Size]),
    plain("access", 1, Sysno::access, &[Path, Below(8)]),
    plain("unlink", 7, Sysno::unlink, &[Path]),
    plain("rename", 4, Sysno::rename, &[Path, Path]),
    plain("renameat2", 2, Sysno::renameat2, &[FOLDER, Path, FOLDER, Path, Below(4)]),
    plain("link", 3, Sysno::link, &[Path, Path]),
    plain("symlink", 2, Sysno::symlink, &[Path, Path]),
    plain("readlink", 1, Sysno::readlink, &[Path, Buffer, Size]),
    plain("mkdir", 4, Sysno::mkdir, &[Path, MODE]),
    plain("rmdir", 2, Sysno::rmdir, &[Path]),
    plain("mknod", 1, Sysno::mknod, &[Path, OneOf(&[0o010_666, 0o100_644, 0o140_644]), Is(0)]),
    plain("chmod", 1, Sysno::chmod, &[Path, MODE]),
    plain("utimensat", 1, Sysno::utimensat, &[FOLDER, Path, Arg::Itimerspec, Is(0)]),
    plain("setxattr", 1, Sysno::setxattr, &[Path, Buffer, Buffer, Size, Below(4)]),
    plain("getcwd", 1, Sysno::getcwd, &[Buffer, Size]),
    plain("umask", 1, Sysno::umask, &[OneOf(&[0, 0o22])]),
];

const FLAGS: Arg = Bits(&[
    O_RDWR as usize,
    O_RDWR as usize,
    O_RDWR as usize,
    O_CREAT as usize,
    O_CREAT as usize,
    O_CREAT as usize,
    O_NONBLOCK as usize,
    O_NONBLOCK as usize,
    O_NONBLOCK as usize,
    O_TRUNC as usize,
    O_APPEND as usize,
    O_CLOEXEC as usize,
    O_WRONLY as usize,
    O_EXCL as usize,
    O_DIRECTORY as usize,
    O_PATH as usize,
    O_NOFOLLOW as usize,
]);
const MODE: Arg = OneOf(&[0o666, 0o777, 0o600, 0o400, 0]);
/// The working folder, or whatever is open.
const FOLDER: Arg = OneOf(&[AT_FDCWD as usize, AT_FDCWD as usize, AT_FDCWD as usize, 3, 4, 5]);
const LENGTH: Arg = OneOf(&[0, 1, PAGE, HUGE, 2 * HUGE, HUGE + PAGE, 8 * HUGE]);
const ALLOCATE: Arg = OneOf(&[0, 0, 1, 3, 3, 3, 2, 0x10, 0x11, 8, 0x20]);
const SEALS: Arg = Bits(&[1, 2, 4, 8, 16]);
const COPY: [Arg; 6] = [File, OffsetPointer, File, OffsetPointer, Size, Is(0)];

/// A file of huge pages or of base pages, with a size that can be mapped at once.
fn memory_file(turn: &mut Turn) {
    let huge = if turn.rng.chance(4) { 0 } else { MFD_HUGETLB };
    let size = [0, 0, 0, 21 << MAP_HUGE_SHIFT, 30 << MAP_HUGE_SHIFT][turn.rng.below(5)] as u32;
    let size = if huge == 0 { 0 } else { size };
    let other = turn.bits(&[MFD_ALLOW_SEALING as usize, MFD_CLOEXEC as usize]);
    let flags = (huge | size) as usize | other;
    if let Ok(descriptor) = turn.call(Sysno::memfd_create, [c"fuzz".as_ptr() as usize, flags, 0, 0, 0, 0]) {
        opened(descriptor as i32, Kind::File);
        let length = turn.rng.below(9) * HUGE;
        let _ = turn.call(Sysno::ftruncate, [descriptor, length, 0, 0, 0, 0]);
    }
}

/// Some of the actor's own descriptors: the trace's stays.
fn close_range(turn: &mut Turn) {
    let first = turn.rng.below(80);
    let last = first + turn.rng.below(8);
    let flags = [0, 2, 4, 6][turn.rng.below(4)];
    let _ = turn.call(Sysno::close_range, [first, last, flags, 0, 0, 0]);
}
