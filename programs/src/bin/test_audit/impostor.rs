//! A user who means harm: what root is told to type must not be of his choice.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use roundtable_programs::child::Child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE, HugeFs};
use roundtable_programs::mem::{ANON, Map, RW, SHARED};
use roundtable_programs::sys::{self, c_string};
use serde_json::Value;

use crate::holders::{holder, need_all_in_sight};
use crate::namespaces::{enter, need};
use crate::saying::{advice, advice_of, audit, command};
use crate::scene::stays;

const NOBODY: u32 = 65534;
const LENGTH: usize = 64 << 20;

/// A folder that goes with this value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn commands_of(advice: &Value) -> Vec<&str> {
    let steps = advice["steps"].as_array().expect("steps").iter();
    steps.flat_map(|step| step["commands"].as_array().unwrap()).map(|one| one.as_str().unwrap()).collect()
}

/// He calls his program postgres, below a root of his own in which his number is that of root, and beside it lie programs of his own.
pub fn a_server_below_a_root_of_its_own() {
    need(libc::CLONE_NEWUSER);
    let folder = Folder(format!("/tmp/audit-impostor-{}", sys::pid()).into());
    let put = |name: &str, text: &str| {
        let path = folder.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("etc/passwd", &format!("root:x:{NOBODY}:0::/:/bin/sh\n"));
    put("data/postgresql.conf", "huge_pages = off\n");
    put("data/postmaster.pid", "1\n/data\n1\n5432\n/tmp\n");
    std::fs::set_permissions(&folder.0, PermissionsExt::from_mode(0o755)).unwrap();
    let root = c_string(folder.0.to_str().unwrap());
    let map = Map::new(LENGTH, RW, SHARED | ANON, -1, 0).unwrap();
    let touch = || (0..LENGTH).step_by(4096).for_each(|at| map.set(at, 1));
    let _impostors: Vec<Child> = (0..12)
        .map(|_| {
            stays(|| {
                let name = c"postgres".as_ptr();
                // SAFETY: plain system calls; the texts are NUL-terminated.
                let results = unsafe {
                    [
                        libc::setgid(NOBODY),
                        libc::setuid(NOBODY),
                        libc::unshare(libc::CLONE_NEWUSER),
                        libc::chroot(root.as_ptr()),
                        libc::chdir(c"/data".as_ptr()),
                        libc::prctl(libc::PR_SET_NAME, name),
                    ]
                };
                assert_eq!(results, [0; 6]);
                touch();
            })
        })
        .collect();
    let report = audit();
    let all = advice_of(&report, "anonymous memory");
    let his = all.iter().find(|advice| advice["subject"]["programs"].to_string().contains("postgres"));
    let his = his.unwrap_or_else(|| panic!("{all:?}"));
    // The last one only looks.
    let commands = commands_of(his);
    assert!(commands.iter().all(|command| command.starts_with("grep ")), "{commands:?}");
}

/// A container has a hugetlbfs of its own where the host has one, with a file of the same name: that of the host stays.
pub fn a_file_left_in_a_container() {
    need(libc::CLONE_NEWNS);
    need_all_in_sight();
    let mount = HugeFs::mount("");
    huge::pool(8);
    let path = format!("{}/rtemap_0", mount.path);
    let fill = || {
        let file = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap();
        file.truncate(2 * HUGE as u64).unwrap();
        file.fallocate(0, 0, 2 * HUGE as u64).unwrap();
        file
    };
    let _live = fill();
    let inside = stays(|| {
        enter(libc::CLONE_NEWNS);
        std::mem::forget(HugeFs::mount_at(&mount.path, ""));
        drop(fill());
    });
    let report = audit();
    let left = advice(&report, &path, "left-files");
    assert_eq!(commands_of(left), [""; 0], "{left}");
    let said = left["steps"][0]["what"].as_str().unwrap();
    assert!(said.contains(&format!("on those of others (pid {})", inside.pid)), "{said}");
    // The host's is open here, and told apart from it.
    let holders = crate::pool::pool_of(&report)["holders"].as_array().unwrap();
    let mut holds: Vec<&str> = holders
        .iter()
        .filter(|one| one["subject"]["file"] == *path)
        .map(|one| one["hold"].as_str().unwrap())
        .collect();
    holds.sort_unstable();
    assert_eq!(holds, ["file", "open-file"], "{holders:?}");
    std::fs::remove_file(&path).unwrap();
}

/// A folder of his on a hugetlbfs: he may put another into its place before root has typed the command.
pub fn a_file_left_in_a_users_folder() {
    need_all_in_sight();
    let mount = HugeFs::mount("mode=1777");
    huge::pool(8);
    let folder = format!("{}/his", mount.path);
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(NOBODY), None).unwrap();
    let mut paths = Vec::new();
    for path in [format!("{folder}/passwd"), format!("{}/roots", mount.path)] {
        let file = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap();
        file.truncate(HUGE as u64).unwrap();
        file.fallocate(0, 0, HUGE as u64).unwrap();
        paths.push(path);
    }
    let report = audit();
    let left = advice(&report, "2 files", "left-files");
    assert_eq!(commands_of(left), [format!("rm {}", paths[1])], "{left}");
}

/// Who may not look into a program cannot tell that nobody has its file.
pub fn another_users_audit_removes_nothing() {
    let mount = HugeFs::mount("mode=755");
    huge::pool(8);
    let path = format!("{}/rtemap_0", mount.path);
    let file = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap();
    file.truncate(2 * HUGE as u64).unwrap();
    let _live = stays(|| {
        let map = file.map(2 * HUGE, RW, SHARED).unwrap();
        (0..2).for_each(|page| map.set(page * HUGE, 1));
        std::mem::forget(map);
    });
    drop(file);
    let report = crate::sight::nobodys_audit();
    assert_eq!(holder(&report, &path)["hold"], "unseen");
    assert!(advice_of(&report, &path).is_empty(), "{}", report["advice"]);
    let text = crate::sight::nobodys_table();
    assert!(!text.contains("rm "), "{text}");
    assert_eq!(holder(&audit(), &path)["hold"], "mapped");
    let metrics = command(&["audit", "--prometheus", "--all"]).output().expect("roundtable starts");
    let metrics = String::from_utf8_lossy(&metrics.stdout);
    assert!(!metrics.contains("hold=\"file\""), "{metrics}");
    std::fs::remove_file(&path).unwrap();
}
