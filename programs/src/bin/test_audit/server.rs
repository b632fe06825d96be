//! A private PostgreSQL server: its own folder and socket, and a user that is not root.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use roundtable_programs::{harness, sys};

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;
pub const CONNECTIONS: usize = 50;
/// Of the 8 KiB blocks of the table so many are looked at: at least one in each 2 MiB.
const STEP: u32 = 100;
/// Bytes of the table: most of the buffers.
const TABLE: u64 = 220 << 20;
/// `shared_buffers`.
const BUFFERS: &str = "256MB";

/// PostgreSQL's programs and a data folder; both go with this value.
pub struct Cluster {
    folder: PathBuf,
    /// Where `usr/lib` begins.
    root: PathBuf,
    programs: PathBuf,
}

impl Cluster {
    /// Makes a cluster, or skips the subtest where there is no PostgreSQL.
    pub fn new() -> Cluster {
        if let Ok(reason) = std::env::var("ROUNDTABLE_NO_POSTGRES") {
            harness::skip(&reason);
        }
        let root = std::env::var_os("ROUNDTABLE_POSTGRES").map_or(PathBuf::from("/"), PathBuf::from);
        let Some(programs) = programs(&root) else {
            harness::skip("there is no PostgreSQL in this machine, only on hosts");
        };
        let folder = PathBuf::from(format!("/tmp/audit-postgres-{}", sys::pid()));
        std::fs::create_dir(&folder).unwrap();
        let mut cluster = Cluster { folder, root, programs };
        std::os::unix::fs::chown(&cluster.folder, Some(NOBODY), Some(NOBODY)).unwrap();
        if !cluster.command("postgres").arg("--version").output().is_ok_and(|output| output.status.success())
        {
            cluster.bring_within_reach();
        }
        let output = cluster
            .command("initdb")
            .arg("-D")
            .arg(cluster.data())
            .args(["-U", "test", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"])
            .output()
            .expect("initdb starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        cluster
    }

    /// The folders above the programs may be closed to others than their owner.
    fn bring_within_reach(&mut self) {
        let copy = self.folder.join("postgresql");
        let status = Command::new("cp").arg("-a").arg(&self.root).arg(&copy).status().expect("cp starts");
        assert!(status.success());
        self.programs = programs(&copy).expect("the copy has what was copied");
        self.root = copy;
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// One of PostgreSQL's programs, as a user that it accepts.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(&self.folder).stdin(Stdio::null()).uid(NOBODY).gid(NOBODY);
        if self.root != Path::new("/") {
            command.env("LD_LIBRARY_PATH", self.root.join("usr/lib/x86_64-linux-gnu"));
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn programs(root: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(root.join("usr/lib/postgresql")).ok()?.flatten();
    versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max()
}

/// A server with all its connections open; in each a query has looked at a block of each 2 MiB of the table.
pub struct Server {
    server: Child,
    clients: Vec<Child>,
    cluster: Cluster,
}

impl Server {
    pub fn start(huge_pages: &str) -> Server {
        let cluster = Cluster::new();
        let server = cluster
            .command("postgres")
            .arg("-D")
            .arg(cluster.data())
            .arg("-k")
            .arg(&cluster.folder)
            .args(["-c", "listen_addresses=", "-c", "max_connections=60", "-c", "fsync=off"])
            // Its compiler is not fetched; and who comes and goes by itself would be in one reading and not in the other.
            .args(["-c", "jit=off", "-c", "autovacuum=off", "-c", "max_parallel_workers_per_gather=0"])
            .args(["-c", &format!("huge_pages={huge_pages}"), "-c", &format!("shared_buffers={BUFFERS}")])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(cluster.folder.join("log")).unwrap())
            .spawn()
            .expect("postgres starts");
        let mut server = Server { server, clients: Vec::new(), cluster };
        server.connect();
        server
    }

    fn connect(&mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.psql("select 1").status.success() {
            let log = std::fs::read_to_string(self.cluster.folder.join("log")).unwrap_or_default();
            assert!(self.server.try_wait().unwrap().is_none(), "the server has ended: {log}");
            assert!(Instant::now() < end, "the server does not get ready: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        // One row a block. An insert goes through the buffers, where `create table as` uses a few of them again and again.
        let rows = TABLE / 8192;
        let made = self.psql(&format!(
            "create unlogged table t (a int, b text) with (fillfactor = 10); \
             alter table t alter b set storage plain; \
             insert into t select a, repeat('x', 1000) from generate_series(1, {rows}) a"
        ));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let blocks = rows - 1;
        let query = format!(
            "select count(b) from t where ctid = any(array(select format('(%s,1)', n)::tid from generate_series(0, {blocks}, {STEP}) n));\n"
        );
        for _ in 0..CONNECTIONS {
            let mut client =
                self.client().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql starts");
            client.stdin.as_mut().unwrap().write_all(query.as_bytes()).unwrap();
            self.clients.push(client);
        }
        let seen = (blocks / u64::from(STEP) + 1).to_string();
        for client in &mut self.clients {
            let line = BufReader::new(client.stdout.as_mut().unwrap()).lines().next();
            assert_eq!(line.expect("an answer").unwrap(), seen);
        }
    }

    fn client(&self) -> Command {
        let mut command = self.cluster.command("psql");
        command.arg("-h").arg(&self.cluster.folder).args(["-U", "test", "-At", "postgres"]);
        command
    }

    fn psql(&self, query: &str) -> Output {
        self.client().args(["-c", query]).output().expect("psql starts")
    }

    /// The postmaster and its children.
    pub fn pids(&self) -> Vec<u32> {
        let parent = self.server.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        std::iter::once(parent).chain(children).collect()
    }

    /// Bytes of `VmPTE` of all of them.
    pub fn vm_pte(&self) -> u64 {
        let of = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
        };
        self.pids().iter().map(of).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: takes integers; SIGQUIT asks to end at once, without writing what nobody will read.
        unsafe { libc::kill(self.server.id() as i32, libc::SIGQUIT) };
        let _ = self.server.wait();
        for client in &mut self.clients {
            drop(client.stdin.take());
            let _ = client.wait();
        }
    }
}
