//! The commands that root is told to type: none is of another's choice.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use roundtable::audit::advice::Advice;
use roundtable::audit::report::Report;

use crate::recordings::{audited, copy};

/// All commands.
fn commands(report: &Report) -> Vec<String> {
    let steps = |advice: &Advice| advice.steps.clone();
    report.advice.iter().flat_map(steps).flat_map(|step| step.commands).collect()
}

/// Those that start or change the server, with whatever a recording of it says.
fn of_the_server(change: impl FnOnce(&Path)) -> Vec<String> {
    let host = copy("questions/try");
    // It has to be told, so that there is a command for it.
    fs::write(
        host.path().join("proc/2/root/var/lib/postgresql/15/main/postgresql.conf"),
        "huge_pages = off\n",
    )
    .unwrap();
    change(host.path());
    let report = audited(host.path());
    let advice = report.advice.iter().find(|advice| advice.id == "huge-pages");
    assert!(advice.is_some_and(|advice| advice.subject.programs.contains("postgres")), "{report:?}");
    let of_pool = |command: &String| command.contains("hugepages") || command.contains("compact_memory");
    let read_only = |command: &String| command.starts_with("grep ") || command.starts_with("cat ");
    commands(&report).into_iter().filter(|one| !of_pool(one) && !read_only(one)).collect()
}

fn unit(root: &Path, path: &str) {
    for entry in fs::read_dir(root.join("proc")).unwrap().flatten() {
        let cgroup = entry.path().join("cgroup");
        if cgroup.exists() {
            fs::write(cgroup, format!("0::{path}\n")).unwrap();
        }
    }
}

#[test]
fn a_servers_owner_runs_its_programs() {
    let all = of_the_server(|_| {});
    let [alter, restart] = all.as_slice() else { panic!("{all:?}") };
    assert!(
        alter.starts_with("setsid -w su -s /bin/sh postgres -c \"cd /; /usr/lib/postgresql/15/bin/psql"),
        "{alter}"
    );
    assert_eq!(restart, "systemctl restart postgresql@15-main.service");
    // Not started by systemd.
    let all = of_the_server(|host| unit(host, "/user.slice/user-0.slice/session-1.scope"));
    assert!(all[1].starts_with(
        "setsid -w su -s /bin/sh postgres -c \"cd /; /usr/lib/postgresql/15/bin/pg_ctl restart"
    ));
}

/// Anybody may make a user namespace, and a root of its own in it with a table of users.
#[test]
fn what_is_in_another_namespace_chooses_no_command() {
    for kind in ["mnt", "user"] {
        let all = of_the_server(|host| {
            unit(host, "/user.slice/user-0.slice/session-1.scope");
            let folder = host.join("proc/2/ns");
            fs::create_dir_all(&folder).unwrap();
            symlink(format!("{kind}:[4026539999]"), folder.join(kind)).unwrap();
        });
        assert!(all.is_empty(), "{kind}: {all:?}");
    }
}

#[test]
fn the_owners_name_is_this_hosts() {
    let scope = |host: &Path| unit(host, "/user.slice/user-0.slice/session-1.scope");
    // What the process's own files say of its number.
    let all = of_the_server(|host| {
        scope(host);
        fs::create_dir_all(host.join("proc/2/root/etc")).unwrap();
        fs::write(host.join("proc/2/root/etc/passwd"), "root:x:101:0::/:/bin/sh\n").unwrap();
    });
    assert!(
        all.len() == 2 && all.iter().all(|one| one.starts_with("setsid -w su -s /bin/sh postgres ")),
        "{all:?}"
    );
    for passwd in ["other:x:1:\n", "root:x:101:\n", "a;b:x:101:\n", ""] {
        let all = of_the_server(|host| {
            scope(host);
            fs::write(host.join("etc/passwd"), passwd).unwrap();
        });
        assert!(all.is_empty(), "{passwd}: {all:?}");
    }
    let all = of_the_server(|host| {
        scope(host);
        let status = host.join("proc/2/status");
        let text = fs::read_to_string(&status).unwrap().replace("101", "0");
        fs::write(status, text).unwrap();
        fs::write(host.join("etc/passwd"), "toor:x:0:\n").unwrap();
    });
    assert!(all.is_empty(), "{all:?}");
}

/// A process may call itself as it likes.
#[test]
fn only_a_servers_own_folder_has_its_programs() {
    let all = of_the_server(|host| {
        unit(host, "/user.slice/user-0.slice/session-1.scope");
        let exe = host.join("proc/2/exe");
        fs::remove_file(&exe).unwrap();
        symlink("/tmp/x/python3", exe).unwrap();
    });
    assert!(all.is_empty(), "{all:?}");
}

/// A user's own manager may have a unit of any name, and so may that of a container.
#[test]
fn only_the_systems_own_units_are_restarted() {
    for path in [
        "/user.slice/user-1000.slice/user@1000.service/app.slice/postgresql.service",
        "/system.slice/docker-12ab.scope/system.slice/postgresql.service",
        "/docker/12ab/system.slice/postgresql.service",
    ] {
        let all = of_the_server(|host| unit(host, path));
        assert!(all.len() == 1 && all[0].contains("psql"), "{path}: {all:?}");
    }
    let host = copy("questions/try");
    unit(host.path(), "/user.slice/user-1000.slice/user@1000.service/app.slice/postgresql.service");
    let report = audited(host.path());
    assert!(
        report
            .page_tables
            .units
            .iter()
            .any(|owner| owner.units.contains("user@1000.service/postgresql.service"))
    );
}

/// A file on a mount of a container, or in a folder that a user can put another into the place of.
#[test]
fn only_files_at_paths_of_roots_are_removed() {
    let host = copy("questions/left-files");
    let path = host.path().join("huge.json");
    let change = |what: &dyn Fn(&mut serde_json::Value)| {
        let mut held: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        what(&mut held["left"][0]);
        fs::write(&path, held.to_string()).unwrap();
        let report = audited(host.path());
        let advice = report.advice.into_iter().find(|advice| advice.id == "left-files").unwrap();
        assert_eq!(advice.frees, 96 << 20);
        advice.steps[0].clone()
    };
    assert_eq!(change(&|_| {}).commands.len(), 3);
    let step = change(&|file| file["inside"] = 77.into());
    assert!(step.what.contains("on those of others (pid 77)"), "{step:?}");
    assert_eq!(step.commands, ["rm /dev/hugepages/rtemap_1", "rm /dev/hugepages/rtemap_2"]);
    let step = change(&|file| {
        file["inside"] = serde_json::Value::Null;
        file["is_movable"] = true.into();
    });
    assert_eq!(step.commands, ["rm /dev/hugepages/rtemap_1", "rm /dev/hugepages/rtemap_2"]);
}

/// A file is only called left by who has seen all.
#[test]
fn who_does_not_see_all_removes_nothing() {
    let host = copy("questions/left-files");
    fs::remove_file(host.path().join("proc/2/maps")).unwrap();
    fs::write(host.path().join("proc/2/denied"), "").unwrap();
    let report = audited(host.path());
    assert_eq!(report.seen.unreadable, 1);
    assert!(report.advice.iter().all(|advice| advice.id != "left-files"), "{report:?}");
    let said =
        roundtable::output::table::text(&report, roundtable::output::table::Extent { top: 10, width: None });
    assert!(said.contains("a file that nobody in sight has") && !said.contains("rm "), "{said}");
    assert!(said.contains("As root, on the host and with --all they are."), "{said}");
}

/// Two mounts with a file of one name each: the one that is open is told by its place.
#[test]
fn open_files_are_told_by_their_place() {
    let host = copy("questions/left-files");
    let path = host.path().join("huge.json");
    let mut held: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut other = held["left"][0].clone();
    other["device"] = serde_json::json!([0, 99]);
    let open = serde_json::json!({
        "name": "/somewhere/else", "device": [0, 99], "inode": other["inode"], "is_known": true,
        "page_size": 2 << 20, "pages": 16, "pids": [1]
    });
    held["open"] = serde_json::json!([open]);
    held["left"].as_array_mut().unwrap().insert(0, other);
    fs::write(&path, held.to_string()).unwrap();
    let report = audited(host.path());
    let holds: Vec<String> = report.pools[0]
        .account
        .holders
        .iter()
        .filter(|holder| holder.subject.file == "/dev/hugepages/rtemap_0")
        .map(|holder| format!("{:?} {:?}", holder.hold, holder.subject.some_pids))
        .collect();
    assert_eq!(holds, ["OpenFile [1]", "File []"]);
}
