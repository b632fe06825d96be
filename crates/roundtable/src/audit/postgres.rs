//! A running PostgreSQL server as it says of itself: its data folder, its socket, its owner, and its real settings.

use std::path::{Path, PathBuf};

use super::advice::is_plain;
use super::source::Source;
use crate::plan::postgres::Settings;
use crate::plan::postgres::files::Files;

/// A server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its first process.
    pub pid: i32,
    /// Its data folder, as it sees it.
    pub data: PathBuf,
    /// The folder of its programs.
    pub programs: PathBuf,
    /// The folder of its socket and its port, as it wrote them down when it started.
    pub socket: Option<(String, u16)>,
    /// The name of its user.
    pub owner: Option<String>,
    /// Whether it sees other files than this program does, as in a container.
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
    let program = link("exe");
    Some(Server {
        pid,
        socket: files.text(&data.join(PID_FILE)).ok().as_deref().and_then(socket),
        programs: program.as_deref().and_then(Path::parent).unwrap_or(Path::new("/usr/bin")).into(),
        owner: owner(source, &files, pid),
        is_apart: super::files::namespace(source, pid, "mnt")
            != super::files::namespace(source, "self", "mnt"),
        settings,
        data,
    })
}

/// Of the lines of postmaster.pid the fourth is the port, the fifth the folder of the socket.
fn socket(pid_file: &str) -> Option<(String, u16)> {
    let mut lines = pid_file.lines().skip(3);
    let port = lines.next()?.trim().parse().ok()?;
    let folder = lines.next()?.trim();
    folder.starts_with('/').then(|| (folder.to_string(), port))
}

/// The name of a process's user, as its own system has it.
fn owner(source: &Source, files: &Files, pid: i32) -> Option<String> {
    let status = source.text(&format!("proc/{pid}/status"))?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?;
    let users = files.text(Path::new("/etc/passwd")).ok()?;
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == user).then_some(name)
    })?;
    is_plain(name).then(|| name.to_string())
}

impl Server {
    /// A shell's command for root, by which the server's owner does this; `None` where a name in it would
    /// mean something to the shell.
    fn as_owner(&self, command: &str) -> Option<String> {
        let owner = self.owner.as_deref()?;
        Some(format!("su -s /bin/sh {owner} -c \"{command}\""))
    }

    /// The command that sets a setting for the next start.
    pub fn alter_system(&self, name: &str, value: &str) -> Option<String> {
        let (socket, port) = self.socket.as_ref()?;
        let program = self.programs.join("psql");
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
        if unit.ends_with(".service") && unit.contains("postgres") && is_plain(unit) {
            return Some(format!("systemctl restart {unit}"));
        }
        let program = self.programs.join("pg_ctl");
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
            programs: "/usr/lib/postgresql/15/bin".into(),
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
            "su -s /bin/sh postgres -c \"cd /; /usr/lib/postgresql/15/bin/psql -X -h /run/postgresql -p \
             5433 -d postgres -c \\\"alter system set huge_pages = 'try'\\\"\""
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
        assert_eq!(Server { is_apart: true, ..server() }.restart("postgresql.service"), None);
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
