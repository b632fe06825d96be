//! `roundtable audit` on a real kernel: each situation is made, and the audit has to name it.
//!
//! The verdict is held against what the kernel does: a process that comes anew and maps in the same way takes one fault for
//! each slot that is shared, and one for each page of a slot that is not.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use roundtable_programs::child::{self, Child};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE, HugeFs};
use roundtable_programs::mem::{
    ANON, FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, madvise, mmap, mprotect,
};
use roundtable_programs::shared::Shared;
use roundtable_programs::{harness, sys, tests};
use serde_json::Value;

tests! { shared_by_congruent_mappings: 120, not_congruent: 120, too_short: 60, other_protection: 60, other_flags: 60,
private_mappings: 60, userfaultfd_write_protect: 60, userfaultfd_minor: 60, sysv_segment: 60,
path_and_unrelated_processes: 60, table_from_before: 60, first_of_several_and_untouched: 60, gigantic_pages: 60,
shared_memory_on_base_pages: 60, another_user_sees_less: 60, output_formats: 60,
postgres_on_huge_pages: 200, postgres_on_base_pages: 200 }

/// Where mappings go: free in every process, far from everything.
const PLACE: usize = 0x2000_0000_0000;
const FEW: usize = 16;

/// Runs the audit and gives what it says, as JSON.
fn audit() -> Value {
    let output = command(&["audit", "--json", "--all"]).output().expect("roundtable starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("ROUNDTABLE").unwrap_or("/bin/roundtable".into()));
    command.args(arguments);
    command
}

/// What an audit says of one file on huge pages.
#[track_caller]
fn file_of<'a>(report: &'a Value, list: &str, name: &str) -> &'a Value {
    let files = report[list].as_array().expect("a list of files");
    files.iter().find(|file| file["name"] == name).unwrap_or_else(|| panic!("no {name} in {files:?}"))
}

/// Expects these slots of a file and no others.
#[track_caller]
fn expect(file: &Value, expected: &[(&str, u64)]) {
    let seen = file["slots"].as_object().expect("slots");
    let expected: serde_json::Map<String, Value> =
        expected.iter().map(|(verdict, count)| (verdict.to_string(), Value::from(*count))).collect();
    assert_eq!(seen, &expected, "{file}");
}

/// A file of huge pages with so many of them there, and the name that the audit gives it.
fn filled(length: usize, pages: usize) -> (Fd, String) {
    huge::pool(pages as u64 + 2);
    let name = format!("audit-{}", sys::pid());
    let file = Fd::memfd(&name, libc::MFD_CLOEXEC | libc::MFD_HUGETLB).expect("memfd_create");
    file.truncate(length as u64).unwrap();
    fill(&file, length, pages);
    (file, format!("memfd {name}"))
}

/// Puts pages into a file, and leaves no mapping of it.
fn fill(file: &Fd, length: usize, pages: usize) {
    let map = file.map(length, RW, SHARED | NORESERVE).unwrap();
    (0..pages).for_each(|page| map.set_u64(page * HUGE, page as u64));
}

fn map_at(address: usize, length: usize, protection: i32, flags: i32, file: &Fd) {
    mmap(address, length, protection, flags | FIXED | NORESERVE, file.raw(), 0).expect("mmap");
}

fn touch(address: usize, pages: usize) {
    for page in 0..pages {
        // SAFETY: callers have mapped so many pages there.
        unsafe { ((address + page * HUGE) as *const u8).read_volatile() };
    }
}

/// A child that has done this and stays.
fn stays(work: impl FnOnce()) -> Child {
    let control = Shared::new();
    let child = child::fork(|| {
        work();
        control.add(0);
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    });
    assert!(control.wait_for(0, 1, Duration::from_secs(20)), "the child does not get ready");
    child
}

/// Minor faults that a process takes which comes anew, maps, and touches these pages.
fn faults_of_a_new_one(map: impl FnOnce(), address: usize, pages: usize) -> u32 {
    let control = Shared::new();
    child::in_child(|| {
        map();
        // The first call makes the code's own pages present.
        minor_faults();
        let before = minor_faults();
        touch(address, pages);
        control.set(0, minor_faults() - before);
    });
    control.get(0)
}

fn minor_faults() -> u32 {
    // SAFETY: a rusage of zero bytes is valid, and the call fills it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage.ru_minflt as u32
    }
}

/// Faults by code and stack, which a page of the test's own may cost.
#[track_caller]
fn expect_faults(faults: u32, expected: u32) {
    assert!((expected..=expected + 2).contains(&faults), "{faults} faults, {expected} expected");
}

fn shared_by_congruent_mappings() {
    let (file, name) = filled(GIB, 512);
    let _sharers: Vec<Child> = (0..3)
        .map(|index| {
            stays(|| {
                map_at(PLACE + index * 4 * GIB, GIB, RW, SHARED, &file);
                touch(PLACE + index * 4 * GIB, 512);
            })
        })
        .collect();
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("shared", 3)]);
    assert_eq!(seen["evidence"], "kpagecount");
    assert_eq!(seen["processes"], 3);
    assert_eq!((&seen["tables"]["now"]["pmd"], &seen["tables"]["unshared"]["pmd"]), (&1.into(), &3.into()));
    assert_eq!(seen["tables"]["best_here"]["pmd"], 1);
    let place = PLACE + 64 * GIB;
    expect_faults(faults_of_a_new_one(|| map_at(place, GIB, RW, SHARED, &file), place, 512), 1);
    // And without root's means, by the processes' counters.
    let output = command(&["audit", "--all"]).output().expect("roundtable starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("3 shared") && text.contains(&name), "{text}");
}

fn not_congruent() {
    let (file, name) = filled(GIB, 512);
    let first = stays(|| {
        map_at(PLACE, 2 * GIB, RW, SHARED, &file);
        touch(PLACE, 512);
    });
    let second = stays(|| {
        map_at(PLACE + 4 * GIB + HUGE, 2 * GIB, RW, SHARED, &file);
        touch(PLACE + 4 * GIB + HUGE, 512);
    });
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    // The second one's 512 pages lie in two slots, of which the first is not filled.
    expect(seen, &[("not_congruent", 2), ("too_short", 1), ("untouched", 2)]);
    let cures = seen["cures"].to_string();
    assert!(cures.contains("0x40000000"), "{cures}");
    drop((first, second));
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, 512);
    });
    let place = PLACE + 64 * GIB + HUGE;
    expect_faults(faults_of_a_new_one(|| map_at(place, GIB, RW, SHARED, &file), place, 512), 512);
}

fn too_short() {
    let (file, name) = filled(GIB / 2, FEW);
    let _sharers: Vec<Child> = (0..2)
        .map(|_| {
            stays(|| {
                map_at(PLACE, GIB / 2, RW, SHARED, &file);
                touch(PLACE, FEW);
            })
        })
        .collect();
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("too_short", 2)]);
    assert!(seen["cures"].to_string().contains("make it 1 GiB instead of 512 MiB"), "{seen}");
    expect_faults(faults_of_a_new_one(|| map_at(PLACE, GIB / 2, RW, SHARED, &file), PLACE, FEW), FEW as u32);
}

/// Two processes, the second one different: the verdict, and the faults of a third that is as the second.
fn two(prepare: impl Fn(&Fd), verdicts: &[(&str, u64)], faults: u32) -> Value {
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let second = stays(|| {
        prepare(&file);
        touch(PLACE, FEW);
    });
    let report = audit();
    let seen = file_of(&report, "huge", &name).clone();
    expect(&seen, verdicts);
    second.end();
    expect_faults(faults_of_a_new_one(|| prepare(&file), PLACE, FEW), faults);
    seen
}

fn other_protection() {
    let seen = two(|file| map_at(PLACE, GIB, R, SHARED, file), &[("protection_differs", 2)], FEW as u32);
    assert!(seen["cures"].to_string().contains("same protection"), "{seen}");
}

fn other_flags() {
    let prepare = |file: &Fd| {
        map_at(PLACE, GIB, RW, SHARED, file);
        madvise(PLACE, GIB, libc::MADV_DONTFORK).expect("MADV_DONTFORK");
    };
    let seen = two(prepare, &[("flags_differ", 2)], FEW as u32);
    assert_eq!(seen["differing_flags"], serde_json::json!(["dc"]));
}

fn private_mappings() {
    two(|file| map_at(PLACE, GIB, RW, PRIVATE, file), &[("no_partner", 1), ("private", 1)], FEW as u32);
}

/// Maps the file and has a userfaultfd wait for faults of this mode.
fn watched(file: &Fd, mode: u64, feature: u64) {
    const API: u64 = 0xc018_aa3f;
    const REGISTER: u64 = 0xc020_aa00;
    map_at(PLACE, GIB, RW, SHARED, file);
    // SAFETY: a plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
    if fd < 0 {
        harness::skip(&format!("userfaultfd: {}", std::io::Error::last_os_error()));
    }
    let mut api = [0xaa, feature, 0];
    let mut register = [PLACE as u64, GIB as u64, mode, 0];
    // SAFETY: the arrays have the layout of uffdio_api and uffdio_register, and live through the calls.
    let results =
        unsafe { [libc::ioctl(fd, API, api.as_mut_ptr()), libc::ioctl(fd, REGISTER, register.as_mut_ptr())] };
    assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
}

fn userfaultfd_write_protect() {
    let verdicts = [("no_partner", 1), ("userfaultfd_write_protect", 1)];
    two(|file| watched(file, 1 << 1, 1 << 12), &verdicts, FEW as u32);
}

fn userfaultfd_minor() {
    // A minor fault would wait for somebody who answers: it is registered when the pages are mapped.
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let _second = stays(|| watched(&file, 1 << 2, 1 << 9));
    let report = audit();
    expect(file_of(&report, "huge", &name), &[("no_partner", 1), ("untouched", 1)]);
}

fn sysv_segment() {
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

fn path_and_unrelated_processes() {
    let mount = HugeFs::mount("");
    huge::pool(FEW as u64 + 2);
    let path = format!("{}/sga", mount.path);
    let file = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).expect("file on hugetlbfs");
    file.truncate(GIB as u64).unwrap();
    fill(&file, GIB, FEW);
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

fn table_from_before() {
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    // By the rules the two could share; but the second one's table dates from the time when it only read.
    let _second = stays(|| {
        map_at(PLACE, GIB, R, SHARED, &file);
        touch(PLACE, FEW);
        mprotect(PLACE, GIB, RW).expect("mprotect");
    });
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("own_table", 2)]);
    assert_eq!(seen["tables"]["now"]["pmd"], 2);
}

fn first_of_several_and_untouched() {
    let (file, name) = filled(2 * GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, 2 * GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let _second = stays(|| map_at(PLACE, 2 * GIB, RW, SHARED, &file));
    let report = audit();
    expect(file_of(&report, "huge", &name), &[("first_of_several", 1), ("untouched", 3)]);
    expect_faults(faults_of_a_new_one(|| map_at(PLACE, 2 * GIB, RW, SHARED, &file), PLACE, FEW), 1);
}

fn gigantic_pages() {
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

fn shared_memory_on_base_pages() {
    const LENGTH: usize = 96 << 20;
    let flags = SHARED | ANON | FIXED;
    let map =
        mmap(PLACE, LENGTH, RW, flags, -1, 0).map(|address| Map { address, length: LENGTH }).expect("mmap");
    let _sharers: Vec<Child> =
        (0..4).map(|_| stays(|| (0..LENGTH).step_by(4096).for_each(|at| map.set(at, 1)))).collect();
    let report = audit();
    let files = report["base"].as_array().unwrap();
    let seen = files
        .iter()
        .find(|file| file["size"] == LENGTH && file["name"] == "anonymous memory")
        .expect("the memory");
    // Four children; the parent maps it too, and has touched nothing.
    assert_eq!(seen["processes"], 5);
    assert_eq!(seen["tables"]["now"]["pte"], 4 * 48, "{seen}");
    assert_eq!((&seen["tables"]["huge"]["pte"], &seen["tables"]["huge"]["pmd"]), (&0.into(), &4.into()));
    assert!(seen["cures"].to_string().contains("vm.nr_hugepages=48"), "{seen}");
    let check = &report["check"];
    let (estimate, kernel) = (check["estimate"].as_f64().unwrap(), check["vm_pte"].as_f64().unwrap());
    assert!((estimate / kernel - 1.0).abs() < 0.05, "{check}");
}

/// As nobody, the audit works and says what it does not see.
fn another_user_sees_less() {
    use std::os::unix::process::CommandExt;
    let (file, name) = filled(GIB, FEW);
    let _roots = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let output = command(&["audit", "--json"]).uid(65534).gid(65534).output().expect("roundtable starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["seen"]["unreadable"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["seen"]["kpagecount"], false);
    assert!(report["huge"].as_array().unwrap().iter().all(|file| file["name"] != name), "{report}");
    assert!(report["check"]["vm_pte_all"].as_u64().unwrap() > 0);
    let text = command(&["audit"]).uid(65534).gid(65534).output().expect("roundtable starts");
    assert!(String::from_utf8_lossy(&text.stdout).contains("run as root to see them"));
}

fn output_formats() {
    let (file, name) = filled(GIB, FEW);
    let _sharers: Vec<Child> = (0..2)
        .map(|_| {
            stays(|| {
                map_at(PLACE, GIB, RW, SHARED, &file);
                touch(PLACE, FEW);
            })
        })
        .collect();
    let path = format!("/tmp/audit-{}.prom", sys::pid());
    let status = command(&["audit", "--prometheus", "--output", &path]).status().expect("roundtable starts");
    assert!(status.success());
    let text = std::fs::read_to_string(&path).expect("the file");
    std::fs::remove_file(&path).unwrap();
    let shared = text.lines().find(|line| line.starts_with("roundtable_file_slots{") && line.contains(&name));
    assert!(shared.is_some_and(|line| line.contains("verdict=\"shared\"") && line.ends_with(" 2")), "{text}");
    let table = command(&["audit"]).output().expect("roundtable starts");
    assert!(String::from_utf8_lossy(&table.stdout).contains(&name));
}

/// A PostgreSQL server with 50 connections; it ends with this value.
struct Postgres {
    folder: String,
    server: std::process::Child,
    clients: Vec<std::process::Child>,
    programs: std::path::PathBuf,
}

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;
const CONNECTIONS: usize = 50;

impl Postgres {
    fn start(settings: &[&str]) -> Postgres {
        use std::os::unix::process::CommandExt;
        let versions = std::fs::read_dir("/usr/lib/postgresql")
            .map(|entries| {
                entries
                    .flatten()
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .collect::<Vec<_>>()
            })
            .unwrap_or_default();
        let mut programs = versions.iter().map(|version| format!("/usr/lib/postgresql/{version}/bin"));
        let Some(programs) =
            programs.rfind(|path| std::fs::exists(format!("{path}/initdb")).unwrap_or(false))
        else {
            harness::skip("no PostgreSQL below /usr/lib/postgresql: install Debian's package postgresql");
        };
        let programs = std::path::PathBuf::from(programs);
        let folder = format!("/tmp/audit-postgres-{}", sys::pid());
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
        let data = format!("{folder}/data");
        let output = Command::new(programs.join("initdb"))
            .args(["-D", &data, "-U", "test", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"])
            .current_dir(&folder)
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .expect("initdb starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let server = Command::new(programs.join("postgres"))
            .args([
                "-D",
                &data,
                "-k",
                &folder,
                "-c",
                "listen_addresses=",
                "-c",
                "max_connections=60",
                "-c",
                "fsync=off",
            ])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .current_dir(&folder)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(format!("{folder}/log")).unwrap())
            .spawn()
            .expect("postgres starts");
        let mut postgres = Postgres { folder, server, clients: Vec::new(), programs };
        postgres.connect();
        postgres
    }

    /// Opens all connections; in each a query has run that goes over much of the buffers.
    fn connect(&mut self) {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !self.psql("select 1").status.success() {
            let log = std::fs::read_to_string(format!("{}/log", self.folder)).unwrap_or_default();
            assert!(self.server.try_wait().unwrap().is_none(), "the server has ended: {log}");
            assert!(std::time::Instant::now() < end, "the server does not get ready: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let made =
            self.psql("create table t as select generate_series(1, 500000) as a, repeat('x', 100) as b");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for _ in 0..CONNECTIONS {
            let mut client =
                self.client().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql starts");
            use std::io::Write;
            client
                .stdin
                .as_mut()
                .unwrap()
                .write_all(b"set synchronize_seqscans = off; select count(b) from t;\n")
                .unwrap();
            self.clients.push(client);
        }
        for client in &mut self.clients {
            let mut lines = BufReader::new(client.stdout.as_mut().unwrap()).lines();
            assert!(lines.any(|line| line.is_ok_and(|line| line == "500000")), "a client's query failed");
        }
    }

    fn client(&self) -> Command {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-h", &self.folder, "-U", "test", "-At", "postgres"]);
        command
    }

    fn psql(&self, query: &str) -> std::process::Output {
        self.client().args(["-c", query]).output().expect("psql starts")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        for client in &mut self.clients {
            drop(client.stdin.take());
            let _ = client.wait();
        }
        // SAFETY: takes integers; SIGINT asks for a fast shutdown.
        unsafe { libc::kill(self.server.id() as i32, libc::SIGINT) };
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Expects the audit's figures within 5 % of the kernel's: of `VmPTE` as it is, of `PageTables` by what it has grown since
/// the server was not there, for the kernel's own tables are in it as well.
#[track_caller]
fn expect_close(before: &Value, after: &Value, what: &str) {
    let number = |report: &Value, name: &str| report["check"][name].as_f64().unwrap();
    let grown = |name: &str| number(after, name) - number(before, name);
    let (estimate, vm_pte) = (number(after, "estimate"), number(after, "vm_pte"));
    let (expected, page_tables) = (grown("vm_pte_all") - grown("counted_again"), grown("page_tables"));
    println!(
        "# {what}: estimate {estimate}, VmPTE {vm_pte} ({:+.2} %); growth of PageTables {page_tables}, by the audit {expected} ({:+.2} %)",
        (estimate / vm_pte - 1.0) * 100.0,
        (expected / page_tables - 1.0) * 100.0
    );
    assert!((estimate / vm_pte - 1.0).abs() < 0.05, "{after}");
    // Each CPU keeps up to 125 pages for itself before PageTables shows them.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    assert!((expected - page_tables).abs() <= 0.05 * page_tables + cpus * 125.0 * 4096.0, "{before} {after}");
}

fn postgres_on_huge_pages() {
    huge::pool(160);
    let before = audit();
    let _server = Postgres::start(&["huge_pages=on", "shared_buffers=256MB"]);
    let report = audit();
    let files = report["huge"].as_array().unwrap();
    let seen =
        files.iter().find(|file| file["names"].to_string().contains("postgres")).expect("the shared memory");
    assert!(seen["processes"].as_u64().unwrap() >= CONNECTIONS as u64, "{seen}");
    expect_close(&before, &report, "huge_pages=on");
}

fn postgres_on_base_pages() {
    let before = audit();
    let _server = Postgres::start(&["huge_pages=off", "shared_buffers=256MB"]);
    let report = audit();
    let files = report["base"].as_array().unwrap();
    let seen =
        files.iter().find(|file| file["names"].to_string().contains("postgres")).expect("the shared memory");
    assert!(seen["processes"].as_u64().unwrap() >= CONNECTIONS as u64, "{seen}");
    assert!(seen["cures"].to_string().contains("huge_pages=on"), "{seen}");
    expect_close(&before, &report, "huge_pages=off");
}
