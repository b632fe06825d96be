//! What calls on files in memory answer to bad and odd arguments: tables that were read off Linux 6.12.

use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::huge::{self, HUGE, HugeFs};
use roundtable_programs::kinds::{Answer, call, map};
use roundtable_programs::mem::{R, RW, SHARED};
use roundtable_programs::rows::{Rows, name};
use roundtable_programs::sys::{PAGE, c_string};
use roundtable_programs::{row, tests};

tests! { sizes_by_kind, space_by_mode, size_limit, seals_by_kind, seal_arguments, memfd_flags, huge_file_contents,
segments, segment_addresses, opened_as_path }

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;

fn truncate(fd: &Fd, size: u64) -> Answer {
    call(libc::SYS_ftruncate, [fd.raw() as usize, size as usize, 0, 0, 0, 0])
}

fn allocate(fd: &Fd, mode: i32, offset: u64, length: u64) -> Answer {
    call(libc::SYS_fallocate, [fd.raw() as usize, mode as usize, offset as usize, length as usize, 0, 0])
}

fn fcntl(fd: &Fd, command: i32, argument: u32) -> Answer {
    call(libc::SYS_fcntl, [fd.raw() as usize, command as usize, argument as usize, 0, 0, 0])
}

/// The kinds of open files that the tables by kind go through, in their order.
const FILES: [&str; 11] = [
    "tmpfs",
    "memfd",
    "huge",
    "huge-memfd",
    "read-only",
    "huge-read-only",
    "pipe",
    "directory",
    "path",
    "null",
    "proc",
];

/// An open file of a kind, four pages (or huge pages) long, and its page's size. The mount lives as long as the file.
fn file(kind: &str) -> (Fd, u64, Option<HugeFs>) {
    let read_only =
        |fd: &Fd| Fd::open(&format!("/proc/self/fd/{}", fd.raw()), libc::O_RDONLY).expect("reopen");
    let sealed = libc::MFD_ALLOW_SEALING;
    let (fd, size, mount) = match kind {
        "tmpfs" => {
            let path = c_string("/tmp");
            // SAFETY: the path is NUL-terminated.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600) };
            (Fd::own(usize::try_from(fd).expect("O_TMPFILE")), PAGE, None)
        }
        "memfd" | "read-only" => (Fd::memfd("file", sealed).unwrap(), PAGE, None),
        "huge" => {
            let mount = HugeFs::mount("");
            (mount.file(), HUGE, Some(mount))
        }
        "huge-memfd" | "huge-read-only" => {
            (Fd::memfd("file", sealed | libc::MFD_HUGETLB).unwrap(), HUGE, None)
        }
        "pipe" => return (pipe(0).1, PAGE as u64, None),
        "directory" => return (Fd::open("/tmp", libc::O_RDONLY).unwrap(), PAGE as u64, None),
        "path" => return (Fd::open("/proc/self/exe", libc::O_PATH).unwrap(), PAGE as u64, None),
        "null" => return (Fd::open("/dev/null", libc::O_RDWR).unwrap(), PAGE as u64, None),
        "proc" => {
            let path = "/proc/sys/vm/nr_hugepages";
            return (Fd::open(path, libc::O_RDWR).unwrap(), PAGE as u64, None);
        }
        _ => unreachable!("{kind}"),
    };
    assert_eq!(truncate(&fd, 4 * size as u64), Ok(0));
    let fd = if kind.ends_with("read-only") { read_only(&fd) } else { fd };
    (fd, size as u64, mount)
}

/// What `try_it` answers for each kind of file, in the order of [`FILES`]; it gets the file and the page's size.
fn by_kind(rows: &mut Rows, call: &str, want: &str, try_it: impl Fn(&Fd, u64) -> Answer) {
    let got = FILES.map(|kind| {
        let (fd, size, _mount) = file(kind);
        name(try_it(&fd, size))
    });
    rows.check_line(call, want, &got.join(" "));
}

fn sizes_by_kind() {
    let mut rows = Rows::default();
    huge::pool(16);
    by_kind(&mut rows, "same size", "OK OK OK OK EINVAL EINVAL EINVAL EINVAL EBADF EINVAL OK", |fd, size| {
        truncate(fd, 4 * size)
    });
    by_kind(&mut rows, "larger", "OK OK OK OK EINVAL EINVAL EINVAL EINVAL EBADF EINVAL OK", |fd, size| {
        truncate(fd, 8 * size)
    });
    by_kind(&mut rows, "smaller", "OK OK OK OK EINVAL EINVAL EINVAL EINVAL EBADF EINVAL OK", truncate);
    by_kind(
        &mut rows,
        "half a page",
        "OK OK EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL OK",
        |fd, size| truncate(fd, size / 2),
    );
    by_kind(
        &mut rows,
        "odd",
        "OK OK EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL OK",
        |fd, size| truncate(fd, size + 1),
    );
    by_kind(
        &mut rows,
        "negative",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
        |fd, _| truncate(fd, u64::MAX),
    );
    by_kind(&mut rows, "2^62", "OK OK OK OK EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EFBIG", |fd, _| {
        truncate(fd, 1 << 62)
    });
    by_kind(
        &mut rows,
        "most pages",
        "OK OK OK OK EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EFBIG",
        |fd, size| truncate(fd, (1 << 63) - size),
    );
    by_kind(
        &mut rows,
        "all but a byte",
        "OK OK EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EFBIG",
        |fd, _| truncate(fd, (1 << 63) - 1),
    );
    row!(rows, EBADF, call(libc::SYS_ftruncate, [usize::MAX, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_ftruncate, [usize::MAX, usize::MAX, 0, 0, 0, 0]));
    let path = |name: &str, size: usize| {
        let name = c_string(name);
        call(libc::SYS_truncate, [name.as_ptr().addr(), size, 0, 0, 0, 0])
    };
    row!(rows, EISDIR, path("/tmp", 0));
    row!(rows, EINVAL, path("/tmp", usize::MAX));
    row!(rows, EINVAL, path("/dev/null", 0));
    row!(rows, ENOENT, path("/nowhere", 0));
    row!(rows, ENOENT, path("", 0));
    row!(rows, OK, path("/proc/sys/vm/nr_hugepages", 0));
    row!(rows, EFAULT, call(libc::SYS_truncate, [1, 0, 0, 0, 0, 0]));
    rows.finish();
}

const DONE: &str = "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP";
/// A mode that these file systems do not have.
const UNABLE: &str =
    "EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP";
/// A mode that there is not.
const NO_SUCH: &str = "EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EBADF EOPNOTSUPP EOPNOTSUPP";

/// Modes of fallocate, and what each kind of file answers.
const MODES: [(i32, &str); 14] = [
    (0, DONE),
    (KEEP, DONE),
    (PUNCH, NO_SUCH),
    (PUNCH | KEEP, DONE),
    (4, NO_SUCH),
    (8, UNABLE),
    (8 | KEEP, NO_SUCH),
    (16, UNABLE),
    (16 | KEEP, UNABLE),
    (32, UNABLE),
    (64, UNABLE),
    (128, NO_SUCH),
    (PUNCH | KEEP | 16, NO_SUCH),
    (-1, NO_SUCH),
];

fn space_by_mode() {
    let mut rows = Rows::default();
    huge::pool(32);
    for (mode, want) in MODES {
        by_kind(&mut rows, &format!("fallocate {mode:#x}"), want, |fd, size| {
            allocate(fd, mode, size, 2 * size)
        });
    }
    let none = "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL";
    for mode in [0, PUNCH | KEEP] {
        by_kind(&mut rows, "none", none, |fd, _| allocate(fd, mode, 0, 0));
    }
    by_kind(
        &mut rows,
        "negative offset",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL",
        |fd, _| allocate(fd, 0, u64::MAX, 1),
    );
    by_kind(
        &mut rows,
        "negative length",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL",
        |fd, _| allocate(fd, 0, 0, u64::MAX),
    );
    by_kind(
        &mut rows,
        "none and unknown",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL",
        |fd, _| allocate(fd, 128, 0, 0),
    );
    by_kind(
        &mut rows,
        "wraps",
        "EFBIG EFBIG EFBIG EFBIG EBADF EBADF ESPIPE EBADF EBADF ENODEV EFBIG",
        |fd, _| allocate(fd, PUNCH | KEEP, 1 << 62, 1 << 62),
    );
    by_kind(
        &mut rows,
        "wraps, allocated",
        "EFBIG EFBIG EFBIG EFBIG EBADF EBADF ESPIPE EBADF EBADF ENODEV EFBIG",
        |fd, _| allocate(fd, 0, 1 << 62, 1 << 62),
    );
    by_kind(
        &mut rows,
        "odd punch",
        "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, size| allocate(fd, PUNCH | KEEP, size / 2, size),
    );
    by_kind(
        &mut rows,
        "punch behind the end",
        "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, size| allocate(fd, PUNCH | KEEP, 8 * size, size),
    );
    by_kind(
        &mut rows,
        "odd allocation",
        "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, size| allocate(fd, 0, size / 2, size),
    );
    by_kind(
        &mut rows,
        "2^62, kept",
        "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EFBIG",
        |fd, size| allocate(fd, KEEP, 1 << 62, size),
    );
    by_kind(&mut rows, "fsync", "OK OK OK OK OK OK EINVAL OK EBADF EINVAL EINVAL", |fd, _| {
        call(libc::SYS_fsync, [fd.raw() as usize, 0, 0, 0, 0, 0])
    });
    let range = |fd: &Fd, offset: i64, length: i64, flags: usize| {
        let arguments = [fd.raw() as usize, offset as usize, length as usize, flags, 0, 0];
        call(libc::SYS_sync_file_range, arguments)
    };
    by_kind(&mut rows, "sync_file_range", "OK OK OK OK OK OK ESPIPE OK EBADF ESPIPE OK", |fd, size| {
        range(fd, 0, size as i64, 7)
    });
    by_kind(
        &mut rows,
        "sync_file_range flags",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL",
        |fd, size| range(fd, 0, size as i64, 8),
    );
    by_kind(
        &mut rows,
        "sync_file_range offset",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL",
        |fd, size| range(fd, -1, size as i64, 1),
    );
    by_kind(
        &mut rows,
        "sync_file_range length",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL",
        |fd, _| range(fd, 0, -1, 1),
    );
    by_kind(
        &mut rows,
        "sync_file_range end",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EINVAL",
        |fd, _| range(fd, i64::MAX, 2, 1),
    );
    let advise = |fd: &Fd, offset: i64, length: i64, advice: usize| {
        let arguments = [fd.raw() as usize, offset as usize, length as usize, advice, 0, 0];
        call(libc::SYS_fadvise64, arguments)
    };
    by_kind(&mut rows, "fadvise", "OK OK OK OK OK OK ESPIPE OK EBADF OK OK", |fd, _| advise(fd, 0, 0, 4));
    by_kind(
        &mut rows,
        "fadvise 6",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL ESPIPE EINVAL EBADF EINVAL EINVAL",
        |fd, _| advise(fd, 0, 0, 6),
    );
    by_kind(
        &mut rows,
        "fadvise negative",
        "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL ESPIPE EINVAL EBADF EINVAL EINVAL",
        |fd, _| advise(fd, 0, -1, 0),
    );
    by_kind(&mut rows, "fadvise before", "OK OK OK OK OK OK ESPIPE OK EBADF OK OK", |fd, _| {
        advise(fd, -1, 1, 0)
    });
    let ahead =
        |fd: &Fd, offset: i64| call(libc::SYS_readahead, [fd.raw() as usize, offset as usize, 1, 0, 0, 0]);
    by_kind(&mut rows, "readahead", "OK OK OK OK OK OK EBADF EINVAL EBADF EINVAL OK", |fd, _| ahead(fd, 0));
    by_kind(&mut rows, "readahead before", "OK OK OK OK OK OK EBADF EINVAL EBADF EINVAL OK", |fd, _| {
        ahead(fd, -1)
    });
    rows.finish();
}

/// RLIMIT_FSIZE binds whoever makes a file longer.
fn size_limit() {
    let mut rows = Rows::default();
    huge::pool(16);
    // SAFETY: the signal is ignored; the limit lives through the call.
    let limit = |bytes: u64| unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    };
    let under = |work: &dyn Fn(&Fd, u64) -> Answer, fd: &Fd, size: u64| {
        limit(6 * size);
        let answer = work(fd, size);
        limit(libc::RLIM_INFINITY);
        answer
    };
    by_kind(
        &mut rows,
        "ftruncate to it",
        "OK OK OK OK EINVAL EINVAL EINVAL EINVAL EBADF EINVAL OK",
        |fd, size| under(&|fd, size| truncate(fd, 6 * size), fd, size),
    );
    by_kind(
        &mut rows,
        "ftruncate over it",
        "EFBIG EFBIG EFBIG EFBIG EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EFBIG",
        |fd, size| under(&|fd, size| truncate(fd, 7 * size), fd, size),
    );
    by_kind(
        &mut rows,
        "ftruncate odd",
        "EFBIG EFBIG EFBIG EFBIG EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EFBIG",
        |fd, size| under(&|fd, size| truncate(fd, 7 * size + 1), fd, size),
    );
    by_kind(
        &mut rows,
        "fallocate to it",
        "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, s| under(&|fd, s| allocate(fd, 0, 4 * s, 2 * s), fd, s),
    );
    by_kind(
        &mut rows,
        "fallocate over",
        "EFBIG EFBIG EFBIG EFBIG EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, s| under(&|fd, s| allocate(fd, 0, 4 * s, 3 * s), fd, s),
    );
    by_kind(
        &mut rows,
        "kept over",
        "EFBIG EFBIG EFBIG EFBIG EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, s| under(&|fd, s| allocate(fd, KEEP, 4 * s, 3 * s), fd, s),
    );
    by_kind(
        &mut rows,
        "kept far over",
        "EFBIG EFBIG EFBIG EFBIG EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, s| under(&|fd, s| allocate(fd, KEEP, 40 * s, s), fd, s),
    );
    by_kind(
        &mut rows,
        "punch over",
        "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, s| under(&|fd, s| allocate(fd, PUNCH | KEEP, 7 * s, s), fd, s),
    );
    by_kind(
        &mut rows,
        "zero over",
        "EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, s| under(&|fd, s| allocate(fd, 16, 7 * s, s), fd, s),
    );
    let written = ["tmpfs", "memfd", "huge"].map(|kind| {
        let (fd, size, _mount) = file(kind);
        name(under(&|fd, size| fd.write_at(b"x", 6 * size), &fd, size))
    });
    rows.check_line("write over", "EFBIG EFBIG EINVAL", &written.join(" "));
    // A file that is longer already.
    by_kind(
        &mut rows,
        "within a longer file",
        "OK OK OK OK EBADF EBADF ESPIPE EBADF EBADF ENODEV EOPNOTSUPP",
        |fd, size| {
            let _ = truncate(fd, 8 * size);
            under(&|fd, size| allocate(fd, 0, 6 * size, size), fd, size)
        },
    );
    by_kind(
        &mut rows,
        "shorter, still over",
        "OK OK OK OK EINVAL EINVAL EINVAL EINVAL EBADF EINVAL EFBIG",
        |fd, size| {
            let _ = truncate(fd, 8 * size);
            under(&|fd, size| truncate(fd, 7 * size), fd, size)
        },
    );
    rows.finish();
}

const SEALS: [u32; 8] = [0, 1, 2, 4, 6, 8, 16, 32];

/// What may be done to a sealed file, and which check comes first.
fn seals_by_kind() {
    let mut rows = Rows::default();
    huge::pool(32);
    type Work = fn(&Fd, u64) -> Answer;
    let calls: [(&str, Work, &str); 16] = [
        ("same", |fd, size| truncate(fd, 4 * size), "OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK"),
        (
            "shrink",
            |fd, size| truncate(fd, 2 * size),
            "OK OK EPERM OK EPERM OK OK EPERM OK OK EPERM OK EPERM OK OK EPERM",
        ),
        (
            "grow",
            |fd, size| truncate(fd, 8 * size),
            "OK OK OK EPERM EPERM OK OK EPERM OK OK OK EPERM EPERM OK OK EPERM",
        ),
        (
            "shrink, odd",
            |fd, size| truncate(fd, size / 2),
            "OK OK EPERM OK EPERM OK OK EPERM EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
        ),
        (
            "grow, odd",
            |fd, size| truncate(fd, 8 * size + 1),
            "OK OK OK EPERM EPERM OK OK EPERM EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
        ),
        ("allocate", |fd, size| allocate(fd, 0, 0, size), "OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK"),
        (
            "allocate over",
            |fd, size| allocate(fd, 0, 4 * size, size),
            "OK OK OK EPERM EPERM OK OK EPERM OK OK OK EPERM EPERM OK OK EPERM",
        ),
        (
            "allocate kept over",
            |fd, size| allocate(fd, KEEP, 4 * size, size),
            "OK OK OK EPERM EPERM OK OK EPERM OK OK OK EPERM EPERM OK OK EPERM",
        ),
        (
            "allocate 2^62",
            |fd, size| allocate(fd, 0, 1 << 62, size),
            "OK OK OK EPERM EPERM OK OK EPERM OK OK OK EPERM EPERM OK OK EPERM",
        ),
        (
            "punch",
            |fd, size| allocate(fd, PUNCH | KEEP, 0, size),
            "OK OK OK OK OK EPERM EPERM EPERM OK OK OK OK OK EPERM EPERM EPERM",
        ),
        (
            "punch behind",
            |fd, size| allocate(fd, PUNCH | KEEP, 8 * size, size),
            "OK OK OK OK OK EPERM EPERM EPERM OK OK OK OK OK EPERM EPERM EPERM",
        ),
        (
            "punch, wrong mode",
            |fd, size| allocate(fd, PUNCH, 0, size),
            "EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP",
        ),
        (
            "write",
            |fd, _| fd.write_at(b"x", 0),
            "OK OK OK OK OK EPERM EPERM EPERM EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
        ),
        (
            "write behind",
            |fd, size| fd.write_at(b"x", 5 * size),
            "OK OK OK EPERM EPERM EPERM EPERM EPERM EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
        ),
        (
            "map",
            |fd, size| map(0, size as usize, RW, SHARED, fd.raw(), 0),
            "OK OK OK OK OK EPERM EPERM EPERM OK OK OK OK OK EPERM EPERM EPERM",
        ),
        (
            "map to read",
            |fd, size| map(0, size as usize, R, SHARED, fd.raw(), 0),
            "OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK OK",
        ),
    ];
    for (text, work, want) in calls {
        let mut got = Vec::new();
        for kind in ["memfd", "huge-memfd"] {
            for seals in SEALS {
                let (fd, size, _) = file(kind);
                assert_eq!(fcntl(&fd, libc::F_ADD_SEALS, seals), Ok(0), "{kind} {seals}");
                got.push(name(work(&fd, size)));
            }
        }
        rows.check_line(text, want, &got.join(" "));
    }
    rows.finish();
}

fn seal_arguments() {
    let mut rows = Rows::default();
    huge::pool(8);
    let add = |fd: &Fd, seals| fcntl(fd, libc::F_ADD_SEALS, seals);
    by_kind(&mut rows, "F_GET_SEALS", "OK OK OK OK OK OK EINVAL EINVAL EBADF EINVAL EINVAL", |fd, _| {
        fcntl(fd, libc::F_GET_SEALS, 0)
    });
    by_kind(
        &mut rows,
        "F_ADD_SEALS",
        "EPERM OK EPERM OK EPERM EPERM EINVAL EPERM EBADF EINVAL EINVAL",
        |fd, _| add(fd, 2),
    );
    by_kind(&mut rows, "none", "EPERM OK EPERM OK EPERM EPERM EINVAL EPERM EBADF EINVAL EINVAL", |fd, _| {
        add(fd, 0)
    });
    by_kind(
        &mut rows,
        "unknown",
        "EINVAL EINVAL EINVAL EINVAL EPERM EPERM EINVAL EPERM EBADF EINVAL EINVAL",
        |fd, _| add(fd, 64),
    );
    by_kind(
        &mut rows,
        "twice",
        "EPERM EPERM EPERM EPERM EPERM EPERM EINVAL EPERM EBADF EINVAL EINVAL",
        |fd, _| add(fd, 1).and_then(|_| add(fd, 2)),
    );
    by_kind(
        &mut rows,
        "twice, unknown",
        "EPERM EINVAL EPERM EINVAL EPERM EPERM EINVAL EPERM EBADF EINVAL EINVAL",
        |fd, _| add(fd, 1).and_then(|_| add(fd, 64)),
    );
    by_kind(
        &mut rows,
        "mapped",
        "EPERM EBUSY EPERM EBUSY EACCES EACCES EACCES EACCES EBADF ENODEV ENODEV",
        |fd, size| {
            map(0, size as usize, RW, SHARED, fd.raw(), 0)?;
            add(fd, 8)
        },
    );
    by_kind(
        &mut rows,
        "mapped to read",
        "EPERM EBUSY EPERM EBUSY EPERM EPERM EACCES ENODEV EBADF ENODEV ENODEV",
        |fd, size| {
            map(0, size as usize, R, SHARED, fd.raw(), 0)?;
            add(fd, 8)
        },
    );
    rows.finish();
}

fn memfd_flags() {
    let mut rows = Rows::default();
    huge::pool(4);
    let make = |name: &str, flags: u32| {
        let name = c_string(name);
        let fd = call(libc::SYS_memfd_create, [name.as_ptr().addr(), flags as usize, 0, 0, 0, 0])?;
        drop(Fd::own(fd));
        Ok(fd)
    };
    let long = "x".repeat(249);
    row!(rows, OK, make("", 0));
    row!(rows, OK, make(&long, 0));
    row!(rows, EINVAL, make(&format!("{long}x"), 0));
    row!(rows, OK, make("/", 0));
    let flags = [1, 2, 3, 4, 6, 7, 8, 16, 24, 10, 18, 26, 32, 64, 12, 20, 1 << 31];
    let want = "OK OK OK OK OK OK OK OK EINVAL OK OK EINVAL EINVAL EINVAL OK OK EINVAL";
    rows.check_line("memfd_create", want, &flags.map(|flags| name(make("x", flags))).join(" "));
    let huge = [1u32, 12, 20, 21, 22, 30, 25, 63].map(|bits| name(make("x", libc::MFD_HUGETLB | bits << 26)));
    rows.check_line("pages", "ENODEV ENODEV ENODEV OK ENODEV OK ENODEV ENODEV", &huge.join(" "));
    row!(rows, EINVAL, make("x", 21 << 26));
    row!(rows, EFAULT, call(libc::SYS_memfd_create, [1, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_memfd_create, [1, 64, 0, 0, 0, 0]));
    rows.finish();
}

fn huge_file_contents() {
    let mut rows = Rows::default();
    huge::pool(8);
    let fd = huge::sized(4);
    fd.map(HUGE, RW, SHARED).unwrap().set(0, 1);
    let seek = |offset: i64, whence: usize| {
        call(libc::SYS_lseek, [fd.raw() as usize, offset as usize, whence, 0, 0, 0])
    };
    row!(rows, EINVAL, fd.write(b"x"));
    row!(rows, EINVAL, fd.write(b""));
    row!(rows, EINVAL, fd.write_at(b"x", 0));
    row!(rows, EINVAL, fd.write_at(b"x", 100 * HUGE as u64));
    row!(rows, EINVAL, fd.write_at(b"x", 1 << 63));
    row!(rows, OK, fd.read_at(&mut [0; 8], 0));
    row!(rows, OK, fd.read_at(&mut [0; 8], 1 << 40));
    row!(rows, EINVAL, fd.read_at(&mut [0; 8], 1 << 63));
    row!(rows, EFAULT, call(libc::SYS_pread64, [fd.raw() as usize, 1, 8, 0, 0, 0]));
    row!(rows, EINVAL, call(libc::SYS_pwrite64, [fd.raw() as usize, 1, 8, 0, 0, 0]));
    let tables = [
        (0, "OK OK OK OK OK EINVAL"),
        (-1, "EINVAL OK OK EINVAL OK EINVAL"),
        (i64::MAX, "OK EINVAL EINVAL ENXIO ENXIO EINVAL"),
    ];
    for (offset, want) in tables {
        let got = [0, 1, 2, 3, 4, 5].map(|whence| name(seek(offset, whence)));
        rows.check_line(&format!("lseek {offset}"), want, &got.join(" "));
    }
    row!(rows, OK, seek(HUGE as i64, libc::SEEK_DATA as usize));
    row!(rows, OK, seek(HUGE as i64, libc::SEEK_HOLE as usize));
    row!(rows, ENXIO, seek(4 * HUGE as i64, libc::SEEK_HOLE as usize));
    let (from, to) = (fd.raw() as usize, Fd::temporary());
    row!(rows, EINVAL, call(libc::SYS_sendfile, [to.raw() as usize, from, 0, 16, 0, 0]));
    row!(rows, OK, call(libc::SYS_sendfile, [from, to.raw() as usize, 0, 16, 0, 0]));
    row!(rows, OK, call(libc::SYS_flock, [from, libc::LOCK_EX as usize, 0, 0, 0, 0]));
    row!(rows, OK, call(libc::SYS_fchmod, [from, 0o600, 0, 0, 0, 0]));
    row!(rows, EFAULT, call(libc::SYS_ioctl, [from, libc::FIONREAD as usize, 0, 0, 0, 0]));
    row!(rows, ENOTTY, call(libc::SYS_ioctl, [from, libc::TCGETS as usize, 0, 0, 0, 0]));
    rows.finish();
}

fn get(key: i32, size: usize, flags: i32) -> Answer {
    call(libc::SYS_shmget, [key as usize, size, flags as usize, 0, 0, 0])
}

fn control(id: usize, command: i32, buffer: usize) -> Answer {
    call(libc::SYS_shmctl, [id, command as usize, buffer, 0, 0, 0])
}

/// A segment without a key, gone at once.
fn private(size: usize, flags: i32) -> Answer {
    let id = get(libc::IPC_PRIVATE, size, flags)?;
    control(id, libc::IPC_RMID, 0)
}

fn segments() {
    let mut rows = Rows::default();
    huge::pool(8);
    const CREATE: i32 = libc::IPC_CREAT | 0o600;
    const EXCLUSIVE: i32 = CREATE | libc::IPC_EXCL;
    const HUGETLB: i32 = libc::SHM_HUGETLB;
    row!(rows, EINVAL, private(0, 0o600));
    row!(rows, EINVAL, private(usize::MAX, 0o600));
    row!(rows, EINVAL, private(1 << 63, 0o600));
    row!(rows, ENOMEM, private(1 << 46, 0o600));
    row!(rows, ENOENT, get(4711, PAGE, 0));
    row!(rows, EINVAL, get(4711, 0, CREATE));
    row!(rows, OK, get(4711, PAGE, CREATE));
    row!(rows, OK, get(4711, PAGE, CREATE));
    row!(rows, EEXIST, get(4711, PAGE, EXCLUSIVE));
    row!(rows, EEXIST, get(4711, 2 * PAGE, EXCLUSIVE));
    row!(rows, EINVAL, get(4711, 2 * PAGE, CREATE));
    row!(rows, EINVAL, get(4711, 2 * PAGE, 0));
    row!(rows, OK, get(4711, 0, 0));
    row!(rows, OK, get(4711, 0, HUGETLB));
    row!(rows, OK, private(4096, HUGETLB | 0o600));
    row!(rows, EINVAL, private(0, HUGETLB | 0o600));
    row!(rows, EINVAL, private(HUGE, HUGETLB | 0o600 | (25 << 26)));
    row!(rows, OK, private(HUGE, HUGETLB | 0o600 | (21 << 26)));
    row!(rows, OK, private(HUGE, 0o600 | (25 << 26)));
    row!(rows, ENOMEM, private(1000 * HUGE, HUGETLB | 0o600));
    row!(rows, OK, private(1000 * HUGE, HUGETLB | libc::SHM_NORESERVE | 0o600));
    row!(rows, EINVAL, private(usize::MAX, HUGETLB | 0o600));
    let id = get(4711, 0, 0).unwrap();
    let buffer = huge_buffer();
    let done = [0, 1, 2, 3, 11, 12, 13, 14, 15, 16, 99].map(|command| name(control(id, command, buffer)));
    let want = "OK EINVAL EINVAL OK EINVAL EINVAL EINVAL OK EINVAL EINVAL EINVAL";
    rows.check_line("shmctl", want, &done.join(" "));
    // Command 0 has removed it.
    row!(rows, EINVAL, control(id, libc::IPC_STAT, buffer));
    row!(rows, EINVAL, control(usize::MAX, libc::IPC_STAT, buffer));
    row!(rows, EINVAL, control(0x7fff_fff0, libc::IPC_STAT, buffer));
    row!(rows, EINVAL, control(usize::MAX, libc::IPC_RMID, 0));
    row!(rows, EINVAL, control(usize::MAX, 99, 0));
    rows.finish();
}

/// Room for what shmctl writes.
fn huge_buffer() -> usize {
    map(0, PAGE, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0).unwrap()
}

fn segment_addresses() {
    let mut rows = Rows::default();
    huge::pool(8);
    let attach = |id: usize, at: usize, flags: i32| call(libc::SYS_shmat, [id, at, flags as usize, 0, 0, 0]);
    let detach = |at: usize| call(libc::SYS_shmdt, [at, 0, 0, 0, 0, 0]);
    let id = get(libc::IPC_PRIVATE, 2 * PAGE, 0o600).unwrap();
    let huge = get(libc::IPC_PRIVATE, 2 * HUGE, libc::SHM_HUGETLB | 0o600).unwrap();
    let free = 0x3000_0000_0000;
    row!(rows, EINVAL, attach(usize::MAX, 0, 0));
    row!(rows, EINVAL, attach(0x7fff_fff0, 0, 0));
    row!(rows, EINVAL, attach(id, 1, 0));
    row!(rows, OK, attach(id, 1, libc::SHM_RND));
    row!(rows, EINVAL, attach(id, 1, libc::SHM_RND | libc::SHM_REMAP));
    row!(rows, EINVAL, attach(id, 0, libc::SHM_REMAP));
    row!(rows, EINVAL, attach(id, free + 1, 0));
    row!(rows, OK, attach(id, free + 1, libc::SHM_RND));
    row!(rows, EINVAL, attach(id, free, 0));
    row!(rows, OK, attach(id, free, libc::SHM_REMAP));
    row!(rows, EINVAL, attach(id, free + PAGE, 0));
    row!(rows, ENOMEM, attach(id, 1 << 56, 0));
    row!(rows, ENOMEM, attach(id, (1 << 56) - PAGE, 0));
    row!(rows, ENOMEM, attach(id, (1 << 56) - 2 * PAGE, 0));
    row!(rows, ENOMEM, attach(id, 1 << 63, 0));
    row!(rows, EINVAL, attach(id, usize::MAX - PAGE + 1, 0));
    row!(rows, OK, attach(id, 0, libc::SHM_RDONLY));
    row!(rows, OK, attach(id, 0, libc::SHM_EXEC));
    row!(rows, OK, attach(id, 0, 0x10000));
    row!(rows, EINVAL, attach(huge, free + HUGE + PAGE, 0));
    row!(rows, EINVAL, attach(huge, free + HUGE + PAGE, libc::SHM_RND));
    row!(rows, OK, attach(huge, free + 2 * HUGE, 0));
    row!(rows, EINVAL, attach(huge, free + 3 * HUGE, 0));
    row!(rows, OK, attach(huge, free + 3 * HUGE, libc::SHM_REMAP));
    row!(rows, OK, detach(0));
    row!(rows, EINVAL, detach(1));
    row!(rows, EINVAL, detach(free + 1));
    row!(rows, EINVAL, detach(free + PAGE));
    row!(rows, OK, detach(free));
    row!(rows, EINVAL, detach(free));
    row!(rows, EINVAL, detach(usize::MAX - PAGE + 1));
    assert_eq!((control(id, libc::IPC_RMID, 0), control(huge, libc::IPC_RMID, 0)), (Ok(0), Ok(0)));
    rows.finish();
}

fn opened_as_path() {
    let mut rows = Rows::default();
    let fd = Fd::open("/tmp", libc::O_PATH).unwrap();
    let number = fd.raw() as usize;
    row!(rows, EBADF, fd.read_at(&mut [0; 8], 0));
    row!(rows, EBADF, fd.write_at(&[0; 8], 0));
    row!(rows, EBADF, call(libc::SYS_lseek, [number, 0, 0, 0, 0, 0]));
    row!(rows, EBADF, call(libc::SYS_fsync, [number, 0, 0, 0, 0, 0]));
    row!(rows, EBADF, call(libc::SYS_fchmod, [number, 0o777, 0, 0, 0, 0]));
    row!(rows, EBADF, call(libc::SYS_fchown, [number, 0, 0, 0, 0, 0]));
    row!(rows, EBADF, call(libc::SYS_flock, [number, 1, 0, 0, 0, 0]));
    row!(rows, EBADF, call(libc::SYS_ioctl, [number, 0x5401, 0, 0, 0, 0]));
    row!(rows, EBADF, call(libc::SYS_getdents64, [number, 1, 64, 0, 0, 0]));
    row!(rows, OK, fcntl(&fd, libc::F_GETFL, 0));
    row!(rows, EBADF, fcntl(&fd, libc::F_SETFL, 0));
    row!(rows, OK, fcntl(&fd, libc::F_GETFD, 0));
    row!(rows, EBADF, fcntl(&fd, libc::F_GETLK, 0));
    row!(rows, EBADF, fcntl(&fd, libc::F_GETOWN, 0));
    rows.finish();
}
