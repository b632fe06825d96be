//! A running PostgreSQL server as it says of itself: its data folder, its socket, its owner, and its real settings.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::advice::is_plain;
use super::advice::program::{self, Program};
use super::source::Source;
use super::trust::is_roots_program;
use super::unit;
use crate::plan::postgres::Settings;
use crate::plan::postgres::files::Files;

/// A server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its first process.
    pub pid: i32,
    /// Its data folder, as it sees it.
    pub data: PathBuf,
    /// The folder of its programs; `None` where others than root can change what is in it.
    pub programs: Option<PathBuf>,
    /// The folder of its socket and its port, as it wrote them down when it started.
    pub socket: Option<(String, u16)>,
    /// The name that its user has on this host. Never root: no server of PostgreSQL's runs as root.
    pub owner: Option<String>,
    /// Whether it may see other files or users than this program does, as in a container.
    pub is_apart: bool,
    /// What its files and its command line say now; `None` where they cannot be read.
    pub settings: Option<Settings>,
}

/// Its file with what it wrote down when it started.
const PID_FILE: &str = "postmaster.pid";

/// Asks the files of a server's first process; `None` where it has ended or is another user's.
pub fn server(source: &Source, pid: i32) -> Option<Server> {
    let link = |name: &str| std::fs::read_link(source.path(&format!("proc/{pid}/{name}"))).ok();
    // The server works in its data folder.
    let data = link("cwd")?;
    let files = Files::below(&source.path(&format!("proc/{pid}/root")));
    let command = source.text(&format!("proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<String> = command.split('\0').skip(1).map(str::to_string).collect();
    let settings = Settings::of_server(&files, &data, &arguments).ok();
    Some(Server {
        pid,
        socket: files.text(&data.join(PID_FILE)).ok().as_deref().and_then(socket),
        programs: link("exe").and_then(|program| programs(source, &program)),
        owner: owner(source, pid),
        is_apart: is_apart(source, pid),
        settings,
        data,
    })
}

/// Whether a process is in other namespaces than this program or has another root: who may make a user namespace may
/// also put any files below a root of its own. What is not known is taken to be so.
fn is_apart(source: &Source, pid: i32) -> bool {
    let is_in_another = |kind: &&str| {
        super::files::namespace(source, pid, kind) != super::files::namespace(source, "self", kind)
    };
    let root = |process: &str| {
        let root = std::fs::metadata(source.path(&format!("proc/{process}/root"))).ok()?;
        Some((root.dev(), root.ino()))
    };
    let has_another_root = || {
        let (its, ours) = (root(&pid.to_string()), root("self"));
        its.is_none() || its != ours
    };
    ["mnt", "user"].iter().any(is_in_another) || !source.is_recording() && has_another_root()
}

/// The folder of a server's program, if the program is one and the others in it are root's: a process may call itself
/// as it likes, and root is told to run them.
fn programs(source: &Source, program: &Path) -> Option<PathBuf> {
    let name = program.file_name()?.to_str()?;
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let folder = program.parent()?;
    let are_roots = || ["psql", "pg_ctl"].iter().all(|name| is_roots_program(&folder.join(name)));
    let is_server = program::of(name, "") == Program::PostgreSql;
    // Of a recording it was asked when it was made.
    (is_server && (source.is_recording() || are_roots())).then(|| folder.to_path_buf())
}

/// Of the lines of postmaster.pid the fourth is the port, the fifth the folder of the socket.
fn socket(pid_file: &str) -> Option<(String, u16)> {
    let mut lines = pid_file.lines().skip(3);
    let port = lines.next()?.trim().parse().ok()?;
    let folder = lines.next()?.trim();
    folder.starts_with('/').then(|| (folder.to_string(), port))
}

/// The name of a process's user, as this host has it. The process's own table of users may say that its number is root.
fn owner(source: &Source, pid: i32) -> Option<String> {
    let user = user(source, pid).filter(|user| *user != 0)?;
    let users = source.text("etc/passwd")?;
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then_some(name)
    })?;
    (is_plain(name) && name != "root").then(|| name.to_string())
}

/// The number of a process's user.
pub fn user(source: &Source, pid: i32) -> Option<u32> {
    let status = source.text(&format!("proc/{pid}/status"))?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().next()?.parse().ok()
}

impl Server {
    /// A shell's command for root, by which the server's owner does this; `None` where the owner has no name here.
    fn as_owner(&self, command: &str) -> Option<String> {
        let owner = self.owner.as_deref()?;
        // In a session of its own: who may trace the owner's programs must not write to root's terminal by them.
        Some(format!("setsid -w su -s /bin/sh {owner} -c \"{command}\""))
    }

    /// The command that sets a setting for the next start.
    pub fn alter_system(&self, name: &str, value: &str) -> Option<String> {
        let (socket, port) = self.socket.as_ref()?;
        let program = self.programs.as_ref()?.join("psql");
        let program = program.to_str().filter(|text| is_plain(text))?;
        if !is_plain(socket) || self.is_apart {
            return None;
        }
        self.as_owner(&format!(
            "cd /; {program} -X -h {socket} -p {port} -d postgres -c \\\"alter system set {name} = '{value}'\\\""
        ))
    }

    /// The command that starts it again.
    pub fn restart(&self, unit: &str) -> Option<String> {
        if self.is_apart {
            return None;
        }
        if unit.ends_with(".service") {
            if unit::is_nested(unit) {
                // Another manager than the system's starts it: that of a user or of a container.
                return None;
            }
            if unit.contains("postgres") && is_plain(unit) {
                return Some(format!("systemctl restart {unit}"));
            }
        }
        let program = self.programs.as_ref()?.join("pg_ctl");
        let [program, data] = [&program, &self.data].map(|path| path.to_str().filter(|text| is_plain(text)));
        let data = data?;
        self.as_owner(&format!("cd /; {} restart -s -w -D {data} -l {data}/restart.log", program?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            pid: 1,
            data: "/var/lib/postgresql/15/main".into(),
            programs: Some("/usr/lib/postgresql/15/bin".into()),
            socket: Some(("/run/postgresql".into(), 5433)),
            owner: Some("postgres".into()),
            is_apart: false,
            settings: None,
        }
    }

    #[test]
    fn commands_are_for_the_servers_owner() {
        assert_eq!(
            server().alter_system("huge_pages", "try").unwrap(),
            "setsid -w su -s /bin/sh postgres -c \"cd /; /usr/lib/postgresql/15/bin/psql -X -h \
             /run/postgresql -p 5433 -d postgres -c \\\"alter system set huge_pages = 'try'\\\"\""
        );
        assert_eq!(
            server().restart("postgresql@15-main.service").unwrap(),
            "systemctl restart postgresql@15-main.service"
        );
        assert!(server().restart("session-1.scope").unwrap().contains("pg_ctl restart -s -w -D /var/lib"));
    }

    /// Who starts a server chooses the names of its folders.
    #[test]
    fn names_that_a_shell_would_obey_are_in_no_command() {
        let hostile = Server { data: "/tmp/$(reboot)".into(), ..server() };
        assert_eq!(hostile.restart(""), None);
        let hostile = Server { socket: Some(("/tmp/`id`".into(), 1)), ..server() };
        assert_eq!(hostile.alter_system("huge_pages", "try"), None);
        assert_eq!(server().restart("postgres;reboot.service"), server().restart(""));
        let apart = Server { is_apart: true, ..server() };
        assert_eq!(
            (apart.restart("postgresql.service"), apart.alter_system("huge_pages", "try")),
            (None, None)
        );
        let unsafe_programs = Server { programs: None, ..server() };
        assert_eq!((unsafe_programs.restart(""), unsafe_programs.alter_system("port", "1")), (None, None));
        let unknown = Server { owner: None, ..server() };
        assert_eq!((unknown.restart(""), unknown.alter_system("port", "1")), (None, None));
    }

    /// Anybody may have a service of this name in a manager of its own.
    #[test]
    fn only_the_systems_own_units_are_restarted_by_it() {
        for unit in ["user@1000.service/postgresql.service", "docker/postgresql.service"] {
            assert_eq!(server().restart(unit), None, "{unit}");
        }
    }

    #[test]
    fn the_file_of_the_servers_number_tells_its_socket() {
        let text = "123\n/data\n1700000000\n5432\n/tmp/x\n\n 5 6\nready\n";
        assert_eq!(socket(text), Some(("/tmp/x".into(), 5432)));
        for text in ["", "1\n2\n3\n", "1\n2\n3\nx\n/tmp\n", "1\n2\n3\n4\ntmp\n"] {
            assert_eq!(socket(text), None, "{text}");
        }
    }
}
