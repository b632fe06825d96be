//! `vm.memfd_noexec`: whether memfds may be programs, for each PID namespace and those below.

use std::fs;

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{R, RW, SHARED};
use roundtable_programs::namespaces::{as_first, errno};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{PAGE, check};
use roundtable_programs::{Errno, row, tests};

tests! { programs_or_not, namespaces_below, who_may_set, flags_of_mappings }

const SETTING: &str = "/proc/sys/vm/memfd_noexec";
const NOEXEC_SEAL: u32 = 8;
const EXEC: u32 = 16;

fn now() -> String {
    fs::read_to_string(SETTING).unwrap()
}

fn set(value: u32) -> Result<usize, Errno> {
    errno(fs::write(SETTING, value.to_string()))
}

/// Permissions of a new memfd.
fn mode(flags: u32) -> Result<usize, Errno> {
    Fd::memfd("noexec", flags).map(|fd| fd.stat().st_mode as usize & 0o777)
}

fn programs_or_not() {
    // In a namespace of its own, which goes with what it was set to.
    in_child(|| {
        as_first(0, || {
            assert_eq!(now(), "0\n");
            assert_eq!((mode(0), mode(EXEC), mode(NOEXEC_SEAL)), (Ok(0o777), Ok(0o777), Ok(0o666)));
            set(1).unwrap();
            assert_eq!((mode(0), mode(EXEC), mode(NOEXEC_SEAL)), (Ok(0o666), Ok(0o777), Ok(0o666)));
            set(2).unwrap();
            assert_eq!(now(), "2\n");
            let refused = Err(Errno::EACCES);
            assert_eq!((mode(0), mode(EXEC), mode(NOEXEC_SEAL)), (Ok(0o666), refused, Ok(0o666)));
            let mut rows = Rows::default();
            row!(rows, EINVAL, set(3));
            row!(rows, OK, set(0));
            rows.finish();
            assert_eq!(mode(0), Ok(0o777));
        })
        .ok();
    });
    assert_eq!(mode(0), Ok(0o777));
}

fn namespaces_below() {
    in_child(|| {
        as_first(0, || {
            set(1).unwrap();
            as_first(0, || {
                let mut rows = Rows::default();
                assert_eq!((now(), mode(0)), ("1\n".to_string(), Ok(0o666)));
                row!(rows, EINVAL, set(0));
                row!(rows, OK, set(2));
                rows.finish();
                assert_eq!(mode(EXEC), Err(Errno::EACCES));
            })
            .ok();
            assert_eq!((now(), mode(EXEC)), ("1\n".to_string(), Ok(0o777)));
        })
        .ok();
    });
    in_child(|| {
        // What is set above holds below at once.
        as_first(0, || {
            let (told, tell) = roundtable_programs::file::pipe(0);
            let below = as_first(0, || {
                assert_eq!(told.read(&mut [0; 1]), Ok(1));
                assert_eq!(mode(EXEC), Err(Errno::EACCES));
            });
            set(2).unwrap();
            tell.write(b"x").unwrap();
            below.ok();
        })
        .ok();
    });
    in_child(|| {
        // What held above when it was made stays, although it is lowered there.
        as_first(0, || {
            set(1).unwrap();
            let (told, tell) = roundtable_programs::file::pipe(0);
            let below = as_first(0, || {
                assert_eq!(told.read(&mut [0; 1]), Ok(1));
                assert_eq!((now(), mode(0)), ("1\n".to_string(), Ok(0o666)));
                set(0).unwrap();
                assert_eq!(mode(0), Ok(0o777));
            });
            set(0).unwrap();
            tell.write(b"x").unwrap();
            below.ok();
            assert_eq!(mode(0), Ok(0o777));
        })
        .ok();
    });
}

fn who_may_set() {
    in_child(|| {
        // SAFETY: takes an integer.
        check(unsafe { libc::setuid(1000) }).unwrap();
        assert_eq!(set(0), Err(Errno::EACCES));
    });
}

/// What smaps says of shared mappings through which nobody may store: a seal leaves them shared, a descriptor to read with does not.
fn flags_of_mappings() {
    let file = Fd::memfd("flags", libc::MFD_ALLOW_SEALING).unwrap();
    file.truncate(PAGE as u64).unwrap();
    let reader = Fd::open(&format!("/proc/self/fd/{}", file.raw()), libc::O_RDONLY).unwrap();
    let flags = |file: &Fd, rights| {
        let map = file.map(PAGE, rights, SHARED).unwrap();
        let start = format!("{:x}-", map.address);
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        line.split_whitespace()
            .filter(|flag| ["rd", "wr", "sh", "mw", "ms"].contains(flag))
            .collect::<String>()
    };
    assert_eq!(flags(&file, RW), "rdwrshmwms");
    assert_eq!(flags(&file, R), "rdshmwms");
    assert_eq!(flags(&reader, R), "rdms");
    // SAFETY: takes integers.
    check(unsafe { libc::fcntl(file.raw(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }).unwrap();
    assert_eq!(flags(&file, R), "rdshms");
}
