//! The unit that a process belongs to: what systemd or a container engine calls it, by its control group.

use super::collect;
use super::source::Source;
use procfs::process::Process as Handle;

/// Endings of names that systemd gives to groups of processes.
const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The unit of a process, and the control groups whose limits it has, as one text; both empty where they
/// cannot be read.
pub fn of(source: &Source, handle: &Handle, buffer: &mut Vec<u8>) -> (String, String) {
    match collect::read(source, handle, "cgroup", buffer) {
        Ok(()) => {
            let text = String::from_utf8_lossy(buffer);
            (name(group(&text)), limiting(&text))
        }
        Err(_) => Default::default(),
    }
}

/// The lines of the second version's group and of the first version's one for huge pages: processes of one
/// unit may be in several.
fn limiting(cgroup: &str) -> String {
    let is_limiting = |line: &&str| {
        let kinds = line.split(':').nth(1);
        kinds.is_some_and(|kinds| kinds.is_empty() || kinds.split(',').any(|kind| kind == "hugetlb"))
    };
    cgroup.lines().filter(is_limiting).collect::<Vec<_>>().join("\n")
}

/// The path of a process's control group: that of the second version, else systemd's own of the first, else
/// the deepest.
pub fn group(cgroup: &str) -> &str {
    let paths = || {
        cgroup.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.split_once(':')
        })
    };
    let of =
        |wanted: &str| paths().find(|(kind, path)| *kind == wanted && *path != "/").map(|(_, path)| path);
    let deepest = || paths().map(|(_, path)| path).max_by_key(|path| path.matches('/').count());
    of("").or_else(|| of("name=systemd")).or_else(deepest).unwrap_or("/")
}

/// Whether systemd gave a group its name.
pub fn is_unit(part: &str) -> bool {
    KINDS.iter().any(|kind| part.ends_with(kind))
}

/// A group's path as a name: of a unit its own, of a container or pod the last two parts, of anything else the path.
/// Of a unit that another manager than the system's has, as a user's own or one in a container, the name of what it is
/// in comes first: anybody may call a unit as one of the system's is called.
pub fn name(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    if let Some(inner) = parts.iter().rposition(|part| is_unit(part)) {
        // Slices are the system's, or those of the manager that they are in.
        let outer = parts.iter().position(|part| !part.ends_with(".slice")).unwrap_or(inner);
        return match outer < inner {
            true => format!("{}/{}", parts[outer], parts[inner]),
            false => parts[inner].to_string(),
        };
    }
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// Whether a name is of a unit that is in another manager's.
pub fn is_nested(name: &str) -> bool {
    name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_with_limits_are_told_apart() {
        let text = "5:cpu:/a\n4:hugetlb,misc:/b\n1:name=systemd:/c\n0::/d\n";
        assert_eq!(limiting(text), "4:hugetlb,misc:/b\n0::/d");
        assert_eq!(limiting(""), "");
    }

    #[test]
    fn units_are_called_as_systemd_calls_them() {
        for (cgroup, unit) in [
            (
                "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n",
                "postgresql@15-main.service",
            ),
            ("0::/user.slice/user-0.slice/session-1.scope\n", "session-1.scope"),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n",
                "user@1000.service/vte-spawn-1.scope",
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/postgresql.service\n",
                "user@1000.service/postgresql.service",
            ),
            ("0::/docker/12ab/system.slice/postgresql.service\n", "docker/postgresql.service"),
            ("0::/system.slice/postgresql.service/worker\n", "postgresql.service"),
            ("12:hugetlb:/a\n1:name=systemd:/system.slice/cron.service\n0::/\n", "cron.service"),
            (
                "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-12ab.scope\n",
                "cri-containerd-12ab.scope",
            ),
            ("5:memory:/docker/12ab\n4:cpu:/\n", "docker/12ab"),
            ("0::/\n", ""),
            ("", ""),
            ("x\n:\n0:\n", ""),
        ] {
            assert_eq!(name(group(cgroup)), unit, "{cgroup}");
        }
    }
}
