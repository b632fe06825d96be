//! What the audit sees where it may not see all.

use std::os::unix::process::CommandExt;

use roundtable_programs::child::{self, Child};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{R, RW, SHARED, mprotect};
use serde_json::Value;

use crate::namespaces::{enter, mount_proc, need};
use crate::saying::{command, expect, file_of};
use crate::scene::{FEW, PLACE, filled, map_at, stays, touch};

const NOBODY: u32 = 65534;

/// The audit by somebody who is not root.
pub fn nobodys_audit() -> Value {
    let output = command(&["audit", "--json"]).uid(NOBODY).gid(NOBODY).output().expect("roundtable starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub fn nobodys_table() -> String {
    let output = command(&["audit"]).uid(NOBODY).gid(NOBODY).output().expect("roundtable starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// As nobody, the audit works and says what it does not see.
pub fn another_user_sees_less() {
    let (file, name) = filled(GIB, FEW);
    let _roots = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let report = nobodys_audit();
    assert!(report["seen"]["unreadable"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["seen"]["kpagecount"], false);
    assert!(report["huge"].as_array().unwrap().iter().all(|file| file["name"] != name), "{report}");
    assert!(report["check"]["vm_pte_all"].as_u64().unwrap() > 0);
    assert!(nobodys_table().contains("run as root to see them"));
}

/// A process of nobody's that others of the same user may look into.
fn nobodys(file: &Fd, work: impl FnOnce()) -> Child {
    stays(|| {
        map_at(PLACE, GIB, RW, SHARED, file);
        // SAFETY: plain system calls; a process that changes its user is closed to others until it says otherwise.
        let results =
            unsafe { [libc::setgid(NOBODY), libc::setuid(NOBODY), libc::prctl(libc::PR_SET_DUMPABLE, 1)] };
        assert_eq!(results, [0; 3]);
        work();
    })
}

/// Without root's means the processes' own counters tell who shares.
pub fn counters_tell_without_root() {
    let (file, name) = filled(GIB, FEW);
    let touch_all = || touch(PLACE, FEW);
    let _first = nobodys(&file, touch_all);
    let second = nobodys(&file, touch_all);
    let report = nobodys_audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("shared", 2)]);
    assert_eq!(seen["evidence"], "hugetlb_pages");
    second.end();
    // By the rules these two could share as well.
    let _second = nobodys(&file, || {
        mprotect(PLACE, GIB, R).expect("mprotect");
        touch(PLACE, FEW);
        mprotect(PLACE, GIB, RW).expect("mprotect");
    });
    let report = nobodys_audit();
    expect(file_of(&report, "huge", &name), &[("own_table", 2)]);
}

/// A container sees its own processes only, and says so.
pub fn in_a_container() {
    const KINDS: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    need(KINDS);
    let (file, name) = filled(GIB, FEW);
    let maps = || {
        stays(|| {
            map_at(PLACE, GIB, RW, SHARED, &file);
            touch(PLACE, FEW);
        })
    };
    let _outside = maps();
    child::in_child(|| {
        enter(KINDS);
        // The first process of the new namespace, with which all others end.
        child::in_child(|| {
            mount_proc("");
            let _inside = [maps(), maps()];
            let report = crate::saying::audit();
            assert_eq!(report["seen"]["in_container"], true);
            let seen = file_of(&report, "huge", &name);
            assert_eq!(seen["processes"], 2);
            expect(seen, &[("shared", 2)]);
            let text = crate::saying::table();
            assert!(text.contains("Not seen: processes outside this container"), "{text}");
        });
    });
    let report = crate::saying::audit();
    assert_eq!(report["seen"]["in_container"], is_in_a_container());
    expect(file_of(&report, "huge", &name), &[("alone", 1)]);
}

/// The tests themselves may run in one.
fn is_in_a_container() -> bool {
    std::fs::read_link("/proc/self/ns/pid").unwrap().to_str() != Some("pid:[4026531836]")
}

/// With hidepid=1 others' processes are listed and nothing more, with hidepid=2 they are not even listed.
pub fn hidden_processes() {
    need(libc::CLONE_NEWNS);
    let (file, name) = filled(GIB, FEW);
    let _roots = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    for (options, listed) in [("hidepid=1", true), ("hidepid=2", false)] {
        child::in_child(|| {
            enter(libc::CLONE_NEWNS);
            mount_proc(options);
            let report = nobodys_audit();
            assert_eq!(report["seen"]["others_hidden"], true, "{options}");
            assert_eq!(report["seen"]["unreadable"].as_u64().unwrap() > 0, listed, "{options}");
            let text = nobodys_table();
            assert!(text.contains("other users' processes (/proc is mounted with hidepid)"), "{text}");
            // From root nothing is hidden.
            let report = crate::saying::audit();
            assert_eq!(report["seen"]["others_hidden"], false);
            expect(file_of(&report, "huge", &name), &[("alone", 1)]);
        });
    }
}
