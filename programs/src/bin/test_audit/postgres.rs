//! A real PostgreSQL: the audit's page tables beside the kernel's own figures.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use roundtable_programs::{harness, huge, sys};
use serde_json::Value;

use crate::saying::audit;

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

pub fn postgres_on_huge_pages() {
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

pub fn postgres_on_base_pages() {
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
