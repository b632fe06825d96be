//! What kind of file it is: a SysV segment, one with a path, one with pages of 1 GiB.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE, HugeFs};
use roundtable_programs::mem::{RW, SHARED};
use roundtable_programs::{harness, sys};

use crate::saying::{audit, expect, file_of};
use crate::scene::{FEW, PLACE, create, expect_faults, faults_of_a_new_one, map_at, stays, touch};

pub fn sysv_segment() {
    huge::pool(FEW as u64 + 2);
    let flags = libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600 | 0o10000;
    // SAFETY: plain system calls.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, GIB, flags) };
    assert!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
    let attach = || {
        // SAFETY: the place is free; the attached segment is read and left to the process's end.
        let at = unsafe { libc::shmat(id, PLACE as *const _, 0) };
        assert_eq!(at as usize, PLACE, "shmat: {}", std::io::Error::last_os_error());
    };
    let fill = || {
        attach();
        for page in 0..FEW {
            // SAFETY: inside the segment.
            unsafe { ((PLACE + page * HUGE) as *mut u8).write_volatile(1) };
        }
    };
    let sharers = [
        stays(fill),
        stays(|| {
            attach();
            touch(PLACE, FEW);
        }),
    ];
    let report = audit();
    let faults = faults_of_a_new_one(attach, PLACE, FEW);
    drop(sharers);
    // SAFETY: takes integers.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    let name = format!("SysV segment {id} (key 0x00000000)");
    expect(file_of(&report, "huge", &name), &[("shared", 2)]);
    expect_faults(faults, 1);
}

pub fn path_and_unrelated_processes() {
    let mount = HugeFs::mount("");
    huge::pool(FEW as u64 + 2);
    let path = format!("{}/sga", mount.path);
    let file = create(&path);
    let program = std::env::current_exe().expect("our path").with_file_name("map_file");
    let start = |address: usize| {
        let mut process = Command::new(&program)
            .args([&path, &address.to_string(), &GIB.to_string(), &FEW.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("map_file starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        process
    };
    let processes = [start(PLACE), start(PLACE + 2 * GIB)];
    let report = audit();
    let faults = faults_of_a_new_one(|| map_at(PLACE, GIB, RW, SHARED, &file), PLACE, FEW);
    for mut process in processes {
        drop(process.stdin.take());
        process.wait().unwrap();
    }
    drop(file);
    std::fs::remove_file(&path).unwrap();
    let seen = file_of(&report, "huge", &path);
    expect(seen, &[("shared", 2)]);
    assert_eq!(seen["names"], serde_json::json!(["map_file"]));
    expect_faults(faults, 1);
}

pub fn gigantic_pages() {
    let pool = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages";
    let before = std::fs::read_to_string(pool).unwrap_or_default();
    let _ = std::fs::write(pool, "1");
    let has = std::fs::read_to_string(pool).unwrap_or_default().trim().parse::<u64>().unwrap_or(0);
    if has == 0 {
        harness::skip("no page of 1 GiB is to be had here");
    }
    let name = format!("gigantic-{}", sys::pid());
    let file = Fd::memfd(&name, libc::MFD_CLOEXEC | libc::MFD_HUGETLB | 30 << 26).expect("memfd_create");
    file.truncate(GIB as u64).unwrap();
    let map_and_touch = || {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, 1);
    };
    let sharers = [stays(map_and_touch), stays(map_and_touch)];
    let report = audit();
    drop((sharers, file));
    let _ = std::fs::write(pool, before);
    let seen = file_of(&report, "huge", &format!("memfd {name}"));
    expect(seen, &[("gigantic_page", 2)]);
    assert_eq!(seen["tables"]["now"]["pmd"], 0);
}
