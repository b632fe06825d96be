//! Limits that keep a program from pages that the pool has: the audit names the limit and the process that meets it.

use std::fs;
use std::path::{Path, PathBuf};

use roundtable_programs::Errno;
use roundtable_programs::child::{self, End};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, HUGE, HugeFs};
use roundtable_programs::mem::{RW, SHARED};
use roundtable_programs::sys::{self, c_string};
use serde_json::Value;

use crate::saying::{audit, command};
use crate::scene::stays;

/// The one limit of this kind and place, of which so many bytes are allowed and in use, met by this process.
#[track_caller]
fn expect_limit<'a>(report: &'a Value, kind: &str, place: &str, bytes: usize, pid: i32) -> &'a Value {
    let limits = report["limits"].as_array().expect("limits");
    let found = limits.iter().find(|limit| limit["place"] == place);
    let found = found.unwrap_or_else(|| panic!("no {place} in {limits:?}"));
    assert_eq!((&found["kind"], &found["limit"]), (&kind.into(), &bytes.into()), "{found}");
    assert_eq!(found["used"], bytes, "{found}");
    assert!(found["subject"]["some_pids"].as_array().unwrap().contains(&pid.into()), "{found}");
    found
}

/// A mount with `size=` that is full, while the pool has more pages.
pub fn mount_that_is_full() {
    let mount = HugeFs::mount("size=8M");
    huge::pool(12);
    let file = mount.file();
    file.truncate(5 * HUGE as u64).unwrap();
    let full = stays(|| {
        let map = file.map(4 * HUGE, RW, SHARED).unwrap();
        (0..4).for_each(|page| map.set(page * HUGE, 1));
        std::mem::forget(map);
    });
    let refused = file.map(5 * HUGE, RW, SHARED).err();
    assert_eq!(refused, Some(Errno::ENOMEM), "the mount has no room for a fifth page");
    let report = audit();
    expect_limit(&report, "mount", &mount.path, 4 * HUGE, full.pid);
    full.end();
}

/// The second version's control groups, mounted, with a group in which huge pages are limited.
struct Group {
    root: PathBuf,
    group: PathBuf,
}

impl Group {
    fn with_limit(bytes: usize) -> Group {
        let root = PathBuf::from(format!("/tmp/audit-cgroup-{}", sys::pid()));
        fs::create_dir(&root).unwrap();
        let (source, target) = (c_string("none"), c_string(root.to_str().unwrap()));
        let kind = c_string("cgroup2");
        // SAFETY: all are NUL-terminated and live through the call.
        let result =
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        let error = std::io::Error::last_os_error();
        let group = root.join(format!("audit-limit-{}", sys::pid()));
        let groups = Group { root, group };
        if result != 0 {
            skip(&format!("no cgroup2: {error}"));
        }
        let controllers = fs::read_to_string(groups.root.join("cgroup.controllers")).unwrap();
        if !controllers.split_whitespace().any(|one| one == "hugetlb") {
            skip("cgroup2 does not have the hugetlb controller here");
        }
        fs::write(groups.root.join("cgroup.subtree_control"), "+hugetlb").unwrap();
        fs::create_dir(&groups.group).unwrap();
        fs::write(groups.file("hugetlb.2MB.max"), bytes.to_string()).unwrap();
        groups
    }

    fn file(&self, name: &str) -> PathBuf {
        self.group.join(name)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What was not made is not there to be removed.
        let _ = fs::remove_dir(&self.group);
        let _ = fs::write(self.root.join("cgroup.subtree_control"), "-hugetlb");
        let target = c_string(self.root.to_str().unwrap());
        // SAFETY: it is NUL-terminated and lives through the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        let _ = fs::remove_dir(&self.root);
    }
}

/// A container that may have fewer pages than the pool has: mmap succeeds, and a touch ends with SIGBUS.
pub fn control_group_that_is_full() {
    let groups = Group::with_limit(2 * HUGE);
    huge::pool(8);
    let file = Fd::memfd("audit-limited", libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create");
    file.truncate(4 * HUGE as u64).unwrap();
    let procs = groups.file("cgroup.procs");
    let limited = stays(|| {
        fs::write(&procs, sys::pid().to_string()).expect("a process goes into the group");
        let map = file.map(4 * HUGE, RW, SHARED).expect("the pool has the pages");
        (0..2).for_each(|page| map.set(page * HUGE, 1));
        let end = child::fork(|| map.set(2 * HUGE, 1)).wait();
        assert_eq!(end, End::Signal(libc::SIGBUS), "a third page is beyond the limit");
        std::mem::forget(map);
    });
    let report = audit();
    let place = shown(&groups.file("hugetlb.2MB.max"), &report);
    let limit = expect_limit(&report, "cgroup", &place, 2 * HUGE, limited.pid);
    assert!(limit["failures"].as_u64().is_some_and(|failures| failures > 0), "{limit}");
    let output = command(&["explain", &limited.pid.to_string(), "--all"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("its control group may have 4 MiB of pages in use of 2 MiB, has 4 MiB"), "{text}");
    limited.end();
}

/// The path under which the audit finds the group: the host may have the same groups at another place as well.
fn shown(file: &Path, report: &Value) -> String {
    let end = file.strip_prefix(file.ancestors().nth(2).unwrap()).unwrap().to_str().unwrap();
    let limits = report["limits"].as_array().expect("limits").iter();
    let mut places = limits.filter_map(|limit| limit["place"].as_str());
    places.find(|place| place.ends_with(end)).unwrap_or_else(|| panic!("{end} in {report}")).to_string()
}
