//! Namespaces, as containers have them.

use roundtable_programs::child::{self, End};
use roundtable_programs::{harness, sys};

/// Ends the subtest where this process may make no such namespaces.
pub fn need(kinds: i32) {
    // SAFETY: takes an integer.
    let tried = child::fork_code(|| i32::from(unsafe { libc::unshare(kinds) } != 0)).wait();
    if tried != End::Code(0) {
        harness::skip("no namespace may be made here");
    }
}

/// Enters new namespaces; mounts made there are seen nowhere else.
pub fn enter(kinds: i32) {
    // SAFETY: takes an integer.
    let result = unsafe { libc::unshare(kinds) };
    assert_eq!(result, 0, "unshare: {}", std::io::Error::last_os_error());
    if kinds & libc::CLONE_NEWNS != 0 {
        mount("none", "/", None, libc::MS_REC | libc::MS_PRIVATE, "");
    }
}

/// Shows one folder at another place, too.
pub fn bind(from: &str, to: &str) {
    mount(from, to, None, libc::MS_BIND, "");
}

/// A /proc of the namespace that this process is in, over the one that is there.
pub fn mount_proc(options: &str) {
    mount("proc", "/proc", Some("proc"), 0, options);
}

fn mount(source: &str, target: &str, kind: Option<&str>, flags: libc::c_ulong, options: &str) {
    let kind = kind.map(sys::c_string);
    let [source, target, options] = [source, target, options].map(sys::c_string);
    // SAFETY: all are NUL-terminated, or null, and live through the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ref().map_or(std::ptr::null(), |kind| kind.as_ptr()),
            flags,
            options.as_ptr().cast(),
        )
    };
    assert_eq!(result, 0, "mount on {target:?}: {}", std::io::Error::last_os_error());
}
