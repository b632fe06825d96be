//! Mounts below a directory of a test's own, and in which groups they are.

use std::fs;

use crate::child::in_child;
use crate::kinds::Answer;
use crate::namespaces::{NEWNS, unshare};
use crate::sys::{c_string, check};
use libc::{MS_BIND, MS_PRIVATE, MS_REC, MS_SHARED};
pub const ROOT: &str = "/tmp/propagation";

pub fn mount(source: &str, at: &str, kind: &str, flags: u64) -> Answer {
    let (source, at, kind) = (c_string(source), c_string(at), c_string(kind));
    // SAFETY: the strings are there.
    check(unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

pub fn umount(at: &str, flags: i32) -> Answer {
    // SAFETY: the string is there.
    check(unsafe { libc::umount2(c_string(at).as_ptr(), flags) })
}

pub fn become_kind(at: &str, flags: u64) -> Answer {
    mount("none", at, "", flags)
}

#[track_caller]
pub fn tmpfs(at: &str) {
    mount("none", at, "tmpfs", 0).expect(at);
}

#[track_caller]
pub fn bind(from: &str, at: &str) {
    mount(from, at, "", MS_BIND).expect(at);
}

#[track_caller]
pub fn folders(paths: &[&str]) {
    paths.iter().for_each(|path| fs::create_dir_all(path).expect(path));
}

/// The optional fields of a mount, and its number.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fields {
    pub id: u64,
    pub shared: u64,
    pub master: u64,
    pub from: u64,
    pub unbindable: bool,
}

impl Fields {
    pub fn kinds(&self) -> [bool; 3] {
        [self.shared != 0, self.master != 0, self.unbindable]
    }
}

/// Those of all mounts in this place, in the order of their lines.
pub fn all_at(at: &str) -> Vec<Fields> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        if words[4] != at {
            return None;
        }
        let mut fields = Fields { id: words[0].parse().unwrap(), ..Fields::default() };
        for word in words[6..].iter().take_while(|word| **word != "-") {
            match word.split_once(':') {
                Some(("shared", group)) => fields.shared = group.parse().unwrap(),
                Some(("master", group)) => fields.master = group.parse().unwrap(),
                Some(("propagate_from", group)) => fields.from = group.parse().unwrap(),
                None if *word == "unbindable" => fields.unbindable = true,
                _ => panic!("{line}"),
            }
        }
        Some(fields)
    };
    text.lines().filter_map(of_line).collect()
}

/// Those of the only mount in this place.
#[track_caller]
pub fn fields(at: &str) -> Fields {
    let mut all = all_at(at);
    assert_eq!(all.len(), 1, "{at}: {all:?}");
    all.pop().unwrap()
}

#[track_caller]
pub fn kinds_at(at: &str) -> [bool; 3] {
    fields(at).kinds()
}

pub const NONE: [bool; 3] = [false; 3];
pub const SHARED: [bool; 3] = [true, false, false];
pub const SLAVE: [bool; 3] = [false, true, false];
pub const BOTH: [bool; 3] = [true, true, false];
pub const UNBINDABLE: [bool; 3] = [false, false, true];

/// In a namespace of its own, with a tmpfs at [`ROOT`] that has these folders.
#[track_caller]
pub fn inside(names: &[&str], run: impl FnOnce()) {
    in_child(|| {
        unshare(NEWNS).unwrap();
        become_kind("/", MS_REC | MS_PRIVATE).unwrap();
        folders(&[ROOT]);
        tmpfs(ROOT);
        for name in names {
            folders(&[&at(name)]);
        }
        run();
    });
}

pub fn at(name: &str) -> String {
    format!("{ROOT}/{name}")
}

/// A shared tmpfs at `name`, with folders `x` and `y`.
#[track_caller]
pub fn shared(name: &str) -> String {
    let path = at(name);
    tmpfs(&path);
    become_kind(&path, MS_SHARED).unwrap();
    folders(&[&format!("{path}/x"), &format!("{path}/y")]);
    path
}
