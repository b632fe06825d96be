//! The secure bits of capabilities(7): what root means to a thread, and what of that is locked.

use roundtable_programs::child::{End, fork, in_child};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::procfs::status_text;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{check, pid};
use roundtable_programs::{Errno, row, tests};

tests! { root_is_nobody, locks, kept_capabilities, users_change_without_effect, ambient_ones, superfluous_arguments, users_of_files_stay }

const NOROOT: usize = 1;
const NOROOT_LOCKED: usize = 1 << 1;
const NO_SETUID_FIXUP: usize = 1 << 2;
const KEEP_CAPS: usize = 1 << 4;
const KEEP_CAPS_LOCKED: usize = 1 << 5;
const NO_CAP_AMBIENT_RAISE: usize = 1 << 6;
const NONE: &str = "0000000000000000";

fn prctl(option: i32, value: usize) -> Answer {
    prctl_of(option, [value, 0, 0, 0])
}

fn prctl_of(option: i32, [a, b, c, d]: [usize; 4]) -> Answer {
    call(libc::SYS_prctl, [option as usize, a, b, c, d, 0])
}

fn set(bits: usize) -> Answer {
    prctl(libc::PR_SET_SECUREBITS, bits)
}

fn get() -> usize {
    prctl(libc::PR_GET_SECUREBITS, 0).expect("PR_GET_SECUREBITS")
}

/// Permitted, effective and inheritable ones of all 64.
fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Answer {
    const VERSION_3: u64 = 0x2008_0522;
    let part = |word: u32| [effective, permitted, inheritable].map(|set| (set >> (32 * word)) as u32);
    let (header, sets) = (VERSION_3, [part(0), part(1)]);
    call(libc::SYS_capset, [&raw const header as usize, sets.as_ptr() as usize, 0, 0, 0, 0])
}

fn capabilities(name: &str) -> String {
    status_text(pid(), name)
}

/// Whether the next program of this thread has no capabilities in effect; both in a process of its own.
fn next_program_has_none() -> bool {
    let child = fork(|| {
        let line = c"CapEff:.*0000000000000000";
        let words = [
            c"grep".as_ptr(),
            c"-q".as_ptr(),
            line.as_ptr(),
            c"/proc/self/status".as_ptr(),
            std::ptr::null(),
        ];
        // SAFETY: the strings and their list live through the call.
        unsafe { libc::execv(c"/bin/busybox".as_ptr(), words.as_ptr()) };
        panic!("execv: {}", std::io::Error::last_os_error());
    });
    match child.wait() {
        End::Code(0) => true,
        End::Code(1) => false,
        end => panic!("{end:?}"),
    }
}

fn root_is_nobody() {
    in_child(|| {
        assert!(!next_program_has_none());
        assert_eq!(set(NOROOT | NOROOT_LOCKED), Ok(0));
        assert!(next_program_has_none());
        assert_eq!(set_capabilities(0, 0, 0), Ok(0));
        assert!(next_program_has_none());
    });
}

fn locks() {
    in_child(|| {
        let mut rows = Rows::default();
        row!(rows, EPERM, set(1 << 20));
        row!(rows, EPERM, set(1 << 40));
        row!(rows, OK, set(NO_SETUID_FIXUP));
        row!(rows, OK, set(NOROOT | NOROOT_LOCKED));
        row!(rows, EPERM, set(NOROOT_LOCKED));
        row!(rows, EPERM, set(NOROOT));
        row!(rows, EPERM, set(0));
        row!(rows, OK, set(NOROOT | NOROOT_LOCKED | KEEP_CAPS));
        assert_eq!(get(), NOROOT | NOROOT_LOCKED | KEEP_CAPS);
        assert_eq!(set_capabilities(0, 0, 0), Ok(0));
        row!(rows, EPERM, set(get()));
        rows.finish();
    });
}

fn kept_capabilities() {
    in_child(|| {
        assert_eq!(prctl(libc::PR_SET_KEEPCAPS, 1), Ok(0));
        assert_eq!((get(), prctl(libc::PR_GET_KEEPCAPS, 0)), (KEEP_CAPS, Ok(1)));
        assert_eq!(set(KEEP_CAPS_LOCKED), Ok(0));
        assert_eq!(prctl(libc::PR_GET_KEEPCAPS, 0), Ok(0));
        assert_eq!(prctl(libc::PR_SET_KEEPCAPS, 1), Err(Errno::EPERM));
        assert_eq!(prctl(libc::PR_SET_KEEPCAPS, 2), Err(Errno::EINVAL));
    });
    in_child(|| {
        assert_eq!(set(KEEP_CAPS), Ok(0));
        // SAFETY: takes integers.
        check(unsafe { libc::setresuid(1000, 1000, 1000) }).expect("setresuid");
        assert_ne!(capabilities("CapPrm"), NONE);
        assert_eq!(capabilities("CapEff"), NONE);
    });
}

fn users_change_without_effect() {
    in_child(|| {
        assert_eq!(set(NO_SETUID_FIXUP), Ok(0));
        let before = capabilities("CapEff");
        // SAFETY: take integers.
        unsafe {
            libc::setfsuid(1000);
            assert_eq!(capabilities("CapEff"), before);
            check(libc::setresuid(1000, 1000, 1000)).expect("setresuid");
        }
        assert_eq!((capabilities("CapPrm"), capabilities("CapEff")), (before.clone(), before));
        assert!(next_program_has_none());
    });
}

fn ambient_ones() {
    in_child(|| {
        const CHOWN: usize = 0;
        let raise = || prctl_of(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_RAISE as usize, CHOWN, 0, 0]);
        let all = u64::from_str_radix(&capabilities("CapPrm"), 16).expect("a number");
        assert_eq!(set_capabilities(all, all, 1 << CHOWN), Ok(0));
        assert_eq!(set(NO_CAP_AMBIENT_RAISE | NOROOT), Ok(0));
        assert_eq!(raise(), Err(Errno::EPERM));
        assert!(next_program_has_none());
        assert_eq!(set(NOROOT), Ok(0));
        assert_eq!(raise(), Ok(0));
        assert!(!next_program_has_none());
    });
}

fn superfluous_arguments() {
    in_child(|| {
        let mut rows = Rows::default();
        let ambient = |arguments: [usize; 4]| prctl_of(libc::PR_CAP_AMBIENT, arguments);
        let (clear, is_set) = (libc::PR_CAP_AMBIENT_CLEAR_ALL as usize, libc::PR_CAP_AMBIENT_IS_SET as usize);
        row!(rows, EINVAL, ambient([clear, 1, 0, 0]));
        row!(rows, EINVAL, ambient([clear, 0, 1, 0]));
        row!(rows, EINVAL, ambient([clear, 0, 0, 1]));
        row!(rows, OK, ambient([clear, 0, 0, 0]));
        row!(rows, EINVAL, ambient([is_set, 0, 1, 0]));
        row!(rows, EINVAL, ambient([is_set, 0, 0, 1]));
        row!(rows, EINVAL, ambient([is_set, 64, 0, 0]));
        row!(rows, OK, ambient([is_set, 0, 0, 0]));
        row!(rows, EINVAL, ambient([99, 0, 0, 0]));
        rows.finish();
    });
}

/// A call that names nobody leaves the user of file accesses as he is, and one that names the effective user does not.
fn users_of_files_stay() {
    in_child(|| {
        let fsuid = || status_text(pid(), "Uid").split_whitespace().last().unwrap().to_string();
        // SAFETY: take integers.
        let set = |uid: u32| unsafe { check(libc::syscall(libc::SYS_setresuid, u32::MAX, uid, u32::MAX)) };
        // SAFETY: takes an integer.
        unsafe { libc::setfsuid(1000) };
        assert_eq!((set(u32::MAX), fsuid()), (Ok(0), "1000".into()));
        assert_eq!((set(0), fsuid()), (Ok(0), "0".into()));
    });
}
