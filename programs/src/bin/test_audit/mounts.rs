//! Files that look like one and are several, and the other way round: deleted ones, mounts, namespaces.

use roundtable_programs::child::Child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HugeFs};
use roundtable_programs::mem::{ANON, FIXED, NORESERVE, RW, SHARED, mmap};
use roundtable_programs::sys;

use crate::namespaces::{bind, enter, need};
use crate::saying::{audit, command, expect, files_of, slots_of, table};
use crate::scene::{FEW, PLACE, create, expect_faults, faults_of_a_new_one, map_at, stays, touch};

fn maps(file: &Fd) -> Child {
    stays(|| {
        map_at(PLACE, GIB, RW, SHARED, file);
        touch(PLACE, FEW);
    })
}

/// Memory without a name, which forked processes have from their parent.
pub fn anonymous_huge_memory() {
    huge::pool(FEW as u64 + 2);
    let flags = SHARED | ANON | FIXED | NORESERVE | libc::MAP_HUGETLB;
    mmap(PLACE, GIB, RW, flags, -1, 0).expect("mmap");
    touch(PLACE, FEW);
    let touch_all = || touch(PLACE, FEW);
    let _children = [stays(touch_all), stays(touch_all)];
    let report = audit();
    let ours: Vec<_> = files_of(&report, "huge", "anonymous memory")
        .into_iter()
        .filter(|file| file["some_pids"].as_array().unwrap().contains(&sys::pid().into()))
        .collect();
    let [seen] = ours.as_slice() else { panic!("{report}") };
    expect(seen, &[("shared", 3)]);
    expect_faults(faults_of_a_new_one(|| (), PLACE, FEW), 1);
}

/// A server was started anew while old processes still hold the memory of the one before: two files of one name.
pub fn deleted_and_new_file_of_one_name() {
    let mount = HugeFs::mount("");
    huge::pool(2 * FEW as u64 + 2);
    let path = format!("{}/sga", mount.path);
    let old = create(&path);
    let _olds = [maps(&old), maps(&old)];
    std::fs::remove_file(&path).unwrap();
    let new = create(&path);
    let _new = maps(&new);
    let report = audit();
    let seen = files_of(&report, "huge", &path);
    assert_eq!(slots_of(&seen), [r#"{"alone":1}"#, r#"{"shared":2}"#]);
    assert_ne!(seen[0]["inode"], seen[1]["inode"]);
    expect_faults(faults_of_a_new_one(|| map_at(PLACE, GIB, RW, SHARED, &old), PLACE, FEW), 1);
    // People have to tell them apart, too.
    let text = table();
    for file in seen {
        let name = format!("{path} (inode {} of {})", file["inode"], file["device"].as_str().unwrap());
        assert!(text.contains(&name), "no {name} in {text}");
    }
    std::fs::remove_file(&path).unwrap();
}

/// Two containers, each with a mount of its own at the same place.
pub fn other_mount_namespace() {
    need(libc::CLONE_NEWNS);
    let mount = HugeFs::mount("");
    huge::pool(2 * FEW as u64 + 2);
    let path = format!("{}/sga", mount.path);
    let file = create(&path);
    let _outside = [maps(&file), maps(&file)];
    let _inside = stays(|| {
        enter(libc::CLONE_NEWNS);
        std::mem::forget(HugeFs::mount_at(&mount.path, ""));
        map_at(PLACE, GIB, RW, SHARED, &create(&path));
        touch(PLACE, FEW);
    });
    let report = audit();
    let seen = files_of(&report, "huge", &path);
    assert_eq!(slots_of(&seen), [r#"{"alone":1}"#, r#"{"shared":2}"#]);
    assert_ne!(seen[0]["device"], seen[1]["device"]);
    drop(file);
    std::fs::remove_file(&path).unwrap();
}

/// One file system at two places, as a container has it that is given the host's: one file of two names.
pub fn one_file_at_two_mounts() {
    need(libc::CLONE_NEWNS);
    let mount = HugeFs::mount("");
    huge::pool(FEW as u64 + 2);
    let path = format!("{}/sga", mount.path);
    let file = create(&path);
    let _outside = maps(&file);
    let other = format!("/tmp/audit-bind-{}", sys::pid());
    std::fs::create_dir(&other).unwrap();
    let inside = stays(|| {
        enter(libc::CLONE_NEWNS);
        bind(&mount.path, &other);
        let file = Fd::open(&format!("{other}/sga"), libc::O_RDWR).expect("the same file");
        map_at(PLACE + 4 * GIB, GIB, RW, SHARED, &file);
        touch(PLACE + 4 * GIB, FEW);
    });
    let report = audit();
    let seen =
        [files_of(&report, "huge", &path), files_of(&report, "huge", &format!("{other}/sga"))].concat();
    assert_eq!(slots_of(&seen), [r#"{"shared":2}"#]);
    inside.end();
    std::fs::remove_dir(&other).unwrap();
    std::fs::remove_file(&path).unwrap();
}

/// Two containers' first SysV segments have the same number, on the same device.
pub fn sysv_segments_of_two_containers() {
    need(libc::CLONE_NEWIPC);
    huge::pool(2 * FEW as u64 + 2);
    let container = || {
        stays(|| {
            enter(libc::CLONE_NEWIPC);
            let flags = libc::IPC_CREAT | libc::SHM_HUGETLB | libc::SHM_NORESERVE | 0o600;
            // SAFETY: plain system calls; the place is free.
            unsafe {
                let id = libc::shmget(7, GIB, flags);
                assert_eq!(id, 0, "the first one: {}", std::io::Error::last_os_error());
                assert_eq!(libc::shmat(id, PLACE as *const _, 0) as usize, PLACE);
            }
            touch(PLACE, FEW);
        })
    };
    let _containers = [container(), container()];
    let report = audit();
    let seen = files_of(&report, "huge", "SysV segment 0 (key 0x00000007)");
    assert_eq!(slots_of(&seen), [r#"{"alone":1}"#, r#"{"alone":1}"#]);
    assert_ne!(seen[0]["ipc_namespace"], seen[1]["ipc_namespace"]);
    // Two series of the same labels would make Prometheus refuse the whole file.
    let output = command(&["audit", "--all", "--prometheus"]).output().expect("roundtable starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    series.iter_mut().for_each(|line| *line = line.rsplit_once(' ').expect("a value").0);
    let count = series.len();
    series.sort_unstable();
    series.dedup();
    assert!(count > 0 && series.len() == count, "{text}");
}
