//! A private PostgreSQL server: its own folder and socket, and a user that is not root.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use roundtable_programs::{harness, sys};

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;
/// That user's name, which the cluster's superuser has as well: so a client of that user needs no name.
const OWNER: &str = "nobody";
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
            .args(["-U", OWNER, "-A", "trust", "-N", "--locale=C", "-E", "UTF8"])
            .output()
            .expect("initdb starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        cluster
    }

    /// The folders above the programs may be closed to others than their owner.
    fn bring_within_reach(&mut self) {
        // Beside the folder, which is the server's user's: root is told to run programs only where nobody else can change them.
        let copy = self.folder.with_extension("programs");
        let copied =
            Command::new("cp").args(["-a", "--no-preserve=ownership"]).arg(&self.root).arg(&copy).status();
        let status = copied.expect("cp starts");
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
        command.envs(self.variables());
        command
    }

    /// What its programs need that are not where the host looks for them.
    fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        let libraries = || ("LD_LIBRARY_PATH", self.root.join("usr/lib/x86_64-linux-gnu"));
        (self.root != Path::new("/")).then(libraries).into_iter().collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_dir_all(self.folder.with_extension("programs"));
    }
}

fn programs(root: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(root.join("usr/lib/postgresql")).ok()?.flatten();
    versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max()
}

/// A server with all its connections open; in each a query has looked at a block of each 2 MiB of the table.
pub struct Server {
    /// Its first process.
    pid: i32,
    clients: Vec<Child>,
    cluster: Cluster,
}

impl Server {
    pub fn start(huge_pages: &str) -> Server {
        Server::start_with(&format!("huge_pages = {huge_pages}\n"))
    }

    /// A server with these lines in its configuration.
    pub fn start_with(settings: &str) -> Server {
        let cluster = Cluster::new();
        let conf = cluster.data().join("postgresql.conf");
        let initial = std::fs::read_to_string(&conf).unwrap();
        // Its compiler is not fetched; and who comes and goes by itself would be in one reading and not in the other.
        let fixed = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 60\nfsync = off\njit = off\n\
             autovacuum = off\nmax_parallel_workers_per_gather = 0\nshared_buffers = {BUFFERS}\n",
            cluster.folder.display()
        );
        std::fs::write(&conf, initial + &fixed + settings).unwrap();
        let mut server = Server { pid: 0, clients: Vec::new(), cluster };
        let status = server
            .cluster
            .command("pg_ctl")
            .args(["start", "-s", "-w", "-t", "60", "-D"])
            .arg(server.cluster.data())
            .arg("-l")
            .arg(server.log())
            .stdout(Stdio::null())
            .status()
            .expect("pg_ctl starts");
        assert!(status.success(), "{}", std::fs::read_to_string(server.log()).unwrap_or_default());
        // One row a block. An insert goes through the buffers, where `create table as` uses a few of them again and again.
        let rows = TABLE / 8192;
        let made = server.psql(&format!(
            "create unlogged table t (a int, b text) with (fillfactor = 10); \
             alter table t alter b set storage plain; \
             insert into t select a, repeat('x', 1000) from generate_series(1, {rows}) a"
        ));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.connect();
        server
    }

    /// What its programs need, as [`Cluster::command`] gives it.
    pub fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        self.cluster.variables()
    }

    fn log(&self) -> PathBuf {
        self.cluster.folder.join("log")
    }

    /// Opens all connections, of a server that was started or started again, and looks at the table in each.
    pub fn connect(&mut self) {
        self.clients.clear();
        let pid_file = std::fs::read_to_string(self.cluster.data().join("postmaster.pid")).expect("it runs");
        self.pid = pid_file.lines().next().unwrap().parse().unwrap();
        let blocks = TABLE / 8192 - 1;
        // After a start the table is not in the buffers.
        let read = self.psql("select sum(length(b)) from t");
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
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
        command.arg("-h").arg(&self.cluster.folder).args(["-U", OWNER, "-At", "postgres"]);
        command
    }

    pub fn psql(&self, query: &str) -> Output {
        self.client().args(["-c", query]).output().expect("psql starts")
    }

    /// Starts it again, without connections.
    pub fn restart(&mut self) -> ExitStatus {
        self.clients.iter_mut().for_each(|client| drop(client.stdin.take()));
        let mut restart = self.cluster.command("pg_ctl");
        restart
            .args(["restart", "-s", "-w", "-m", "fast", "-D"])
            .arg(self.cluster.data())
            .arg("-l")
            .arg(self.log());
        restart.stdout(Stdio::null()).status().expect("pg_ctl starts")
    }

    /// The postmaster and its children.
    pub fn pids(&self) -> Vec<u32> {
        let parent = self.pid as u32;
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
        for client in &mut self.clients {
            drop(client.stdin.take());
            let _ = client.wait();
        }
        // At once, without writing what nobody will read; and wait until it has ended, since its folder goes.
        let mut stop = self.cluster.command("pg_ctl");
        let _ = stop.args(["stop", "-s", "-w", "-m", "immediate", "-D"]).arg(self.cluster.data()).output();
    }
}
