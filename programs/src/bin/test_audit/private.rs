//! Programs with large private memory on base pages: the advice for each is followed word for word, and saves what was promised.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use roundtable_programs::{harness, huge, sys};
use serde_json::Value;

use crate::following::follow_by;
use crate::saying::audit_worth;

/// Advice for what saves less is not asked for: other programs of the host have such memory too.
const WORTH: &str = "256K";
/// So long a program may take to get ready.
const PATIENCE: Duration = Duration::from_secs(100);

/// A figure of a process's status, in bytes.
fn status(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("such a line");
    value.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

/// Waits for a condition; `child` must not end before.
#[track_caller]
fn wait(child: &mut Child, what: &str, is_met: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_met() {
        let ended = child.try_wait().expect("a child");
        assert!(ended.is_none() && start.elapsed() < PATIENCE, "{what}: {ended:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A program of which the advice is followed; it is ended with this value.
struct Subject<'a> {
    child: Child,
    /// Starts it, with what the advice has changed.
    start: Box<dyn FnMut() -> Child + 'a>,
}

impl Subject<'_> {
    fn new<'a>(mut start: impl FnMut() -> Child + 'a) -> Subject<'a> {
        Subject { child: start(), start: Box::new(start) }
    }

    fn end(&mut self) {
        // SAFETY: a child that is not waited for yet.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        self.child.wait().expect("a child");
    }

    fn start_again(&mut self) {
        self.end();
        self.child = (self.start)();
    }
}

impl Drop for Subject<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Follows the pool's advice and the program's own; `by_hand` does what is no command, and says whether that is to start it again.
#[track_caller]
fn follow_and_compare(subject: &mut Subject, memory: u64, mut by_hand: impl FnMut(&str) -> bool) {
    let (report, before) = (audit_worth(WORTH), status(subject.child.id(), "VmPTE"));
    let all = report["advice"].as_array().unwrap();
    let is_ours = |advice: &&Value| {
        advice["id"] == "huge-pages"
            && advice["subject"]["some_pids"] == serde_json::json!([subject.child.id()])
    };
    let programs = &report["page_tables"]["programs"];
    let ours = all.iter().find(is_ours).unwrap_or_else(|| panic!("{all:?} of {programs}"));
    let grow = all.iter().find(|advice| advice["id"] == "grow-pool").expect("the pool is too short");
    let promised = ours["gain"].as_f64().unwrap();
    let (mut starts, mut hands) = (0, 0);
    follow_by(&[grow, ours], &[], |what| {
        hands += 1;
        if by_hand(what) {
            subject.start_again();
            starts += 1;
        }
    });
    assert!(starts == 1 && hands > 2, "{ours}");
    let pid = subject.child.id();
    let saved = before as f64 - status(pid, "VmPTE") as f64;
    println!("# promised {promised}, saved {saved} ({:+.1} %)", (saved / promised - 1.0) * 100.0);
    assert!((saved / promised - 1.0).abs() < 0.1, "{saved} saved, {promised} promised");
    let huge = status(pid, "HugetlbPages");
    assert!(huge >= memory, "{huge} on huge pages");
}

/// Of a database the pages of the table are in its buffers after each start; two rows fit a page of 16 KiB.
const BUFFERS: u64 = 256 << 20;
const TABLE: u64 = 180 << 20;
const ROW: u64 = 7000;

/// MariaDB with its default of base pages. It sets huge pages aside for all that it maps, of which much is not touched.
pub fn mariadb_advice_followed() {
    if let Ok(reason) = std::env::var("ROUNDTABLE_NO_MARIADB") {
        harness::skip(&reason);
    }
    let root = std::env::var_os("ROUNDTABLE_MARIADB").map_or(PathBuf::from("/"), PathBuf::from);
    let program = root.join("usr/sbin/mariadbd");
    if !program.exists() {
        harness::skip("there is no MariaDB in this machine, only on hosts");
    }
    huge::pool(3);
    let folder = Folder::new("mariadb");
    let at = |name: &str| folder.0.join(name);
    std::fs::create_dir(at("data")).unwrap();
    let settings = [
        format!("basedir={}", root.join("usr").display()),
        format!("datadir={}", at("data").display()),
        format!("socket={}", at("socket").display()),
        format!("innodb_buffer_pool_size={BUFFERS}"),
        "skip-networking\nskip-grant-tables\nskip-log-bin\nuser=root".into(),
        "innodb_flush_log_at_trx_commit=0\ninnodb_doublewrite=OFF\ninnodb_log_file_size=400M".into(),
        // The buffers of other kinds of tables, which would be set aside too, are larger than those by default.
        "key_buffer_size=16K\naria_pagecache_buffer_size=8M".into(),
        "innodb_buffer_pool_load_at_startup=OFF\ninnodb_buffer_pool_dump_at_shutdown=OFF".into(),
    ];
    std::fs::write(at("my.cnf"), format!("[mariadbd]\n{}\n", settings.join("\n"))).unwrap();
    let command = || {
        let mut command = Command::new(&program);
        command.arg(format!("--defaults-file={}", at("my.cnf").display()));
        if root != Path::new("/") {
            command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
        }
        command
    };
    let rows = TABLE / ROW;
    let fill = format!(
        "create database test;\nuse test;\ncreate table t (a int primary key, b varbinary({ROW})) engine=innodb;\n\
         insert into t select seq, repeat('x', {ROW}) from seq_1_to_{rows};\n"
    );
    std::fs::write(at("fill.sql"), fill).unwrap();
    let output = command()
        .arg("--bootstrap")
        .stdin(std::fs::File::open(at("fill.sql")).unwrap())
        .output()
        .expect("mariadbd starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(at("init.sql"), "use test;\nselect sum(length(b)) from t;\n").unwrap();
    let start = || {
        let log = std::fs::File::create(at("log")).unwrap();
        let mut child = command()
            .arg(format!("--init-file={}", at("init.sql").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("mariadbd starts");
        // The table is read after it says that it is ready.
        let pid = child.id();
        let has_all = || status(pid, "RssAnon") + status(pid, "HugetlbPages") >= TABLE;
        let is_ready = || {
            std::fs::read_to_string(at("log")).is_ok_and(|log| log.contains("ready for connections"))
                && has_all()
        };
        wait(&mut child, "MariaDB has read the table", is_ready);
        child
    };
    let mut server = Subject::new(start);
    follow_and_compare(&mut server, TABLE, |what| {
        if let Some(line) = what.strip_prefix("Put ").and_then(|rest| rest.split(" under [mariadbd]").next())
        {
            let before = std::fs::read_to_string(at("my.cnf")).unwrap();
            std::fs::write(at("my.cnf"), format!("{before}{line}\n")).unwrap();
        }
        what.starts_with("Start the server again")
    });
}

/// Bytes of a virtual machine's memory.
const MACHINE: u64 = 512 << 20;

/// QEMU with all of a machine's memory there, on base pages. It is called `qemu-kvm`, as Red Hat calls it: so no other on this host is
/// taken for it.
pub fn qemu_advice_followed() {
    let program = Path::new("/usr/bin/qemu-system-x86_64");
    if !program.exists() {
        harness::skip("there is no QEMU in this machine, only on hosts");
    }
    huge::pool(3);
    let folder = Folder::new("qemu");
    let link = folder.0.join("qemu-kvm");
    std::os::unix::fs::symlink(program, &link).unwrap();
    let arguments = std::cell::RefCell::new(format!(
        "-object memory-backend-ram,id=ram,size={MACHINE},prealloc=on -machine memory-backend=ram"
    ));
    let start = || {
        let mut child = Command::new(&link)
            .args(["-S", "-display", "none", "-nodefaults", "-monitor", "none", "-serial", "none"])
            .args(["-accel", "tcg,tb-size=32", "-m", &format!("{}M", MACHINE >> 20)])
            .args(arguments.borrow().split_whitespace())
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        let pid = child.id();
        let has_all = || status(pid, "RssAnon") + status(pid, "HugetlbPages") >= MACHINE;
        wait(&mut child, "the machine has its memory", has_all);
        child
    };
    let mut machine = Subject::new(start);
    follow_and_compare(&mut machine, MACHINE, |what| {
        if let Some((_, rest)) = what.split_once("With QEMU alone give ") {
            let words = rest.split(". ").next().expect("a sentence");
            *arguments.borrow_mut() = words.replace("SIZE", &MACHINE.to_string());
        }
        what.contains("start it again")
    });
}

/// A folder of a test's own; gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = PathBuf::from(format!("/tmp/audit-{name}-{}", sys::pid()));
        std::fs::create_dir(&folder).expect("mkdir");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
