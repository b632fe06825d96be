//! What a mount of proc hides from whom.

use std::sync::atomic::Ordering::SeqCst;

use roundtable_programs::child::{fork, in_child};
use roundtable_programs::place::{self, Place};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{is_linux, pid};
use roundtable_programs::{Errno, namespaces, procfs, tests};

tests! { options_of_mounts, not_got_around, where_strangers_sleep }

/// hidepid=, gid= and subset= of proc(5).
fn options_of_mounts() {
    let other = pid();
    in_child(|| {
        namespaces::unshare(libc::CLONE_NEWNS).unwrap();
        place::mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        let place = Place::new("");
        let point = place.path("proc");
        place::mkdir(&point, 0o755).unwrap();
        for wrong in ["hidepid=3", "hidepid", "gid=x", "subset=none", "what=1"] {
            assert_eq!(place::mount("proc", &point, "proc", 0, wrong), Err(Errno::EINVAL), "{wrong}");
        }
        let look = |options: &str, group: u32| {
            place::mount("proc", &point, "proc", 0, options).unwrap();
            let found = Shared::new();
            in_child(|| {
                place::become_user(1000, group);
                let names = std::fs::read_dir(&point).unwrap().map(|entry| entry.unwrap().file_name());
                let listed =
                    names.filter_map(|name| name.to_str()?.parse().ok()).any(|pid: i32| pid == other);
                let number = |error: std::io::Error| error.raw_os_error().unwrap_or(0);
                let status = std::fs::read(format!("{point}/{other}/status")).map_or_else(number, |_| 0);
                let folder = std::fs::metadata(format!("{point}/{other}")).map_or_else(number, |_| 0);
                let own = std::fs::read(format!("{point}/self/status")).map_or_else(number, |_| 0);
                let rest = std::fs::read(format!("{point}/meminfo")).map_or_else(number, |_| 0);
                for (word, value) in [i32::from(listed), folder, status, own, rest].into_iter().enumerate() {
                    found.word(word).store(value as u32, SeqCst);
                }
            });
            let text = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let line = text.lines().rfind(|line| line.contains(&point)).unwrap_or_default();
            let shown = line
                .split_whitespace()
                .nth(3)
                .unwrap_or_default()
                .split("relatime")
                .nth(1)
                .unwrap_or_default()
                .to_string();
            place::umount(&point, 0).unwrap();
            let value = |word| found.word(word).load(SeqCst) as i32;
            ([value(0), value(1), value(2), value(3), value(4)], shown)
        };
        let (gone, no) = (libc::ENOENT, libc::EPERM);
        assert_eq!(look("", 1000), ([1, 0, 0, 0, 0], "".into()));
        assert_eq!(look("hidepid=off", 1000), ([1, 0, 0, 0, 0], "".into()));
        assert_eq!(look("hidepid=1", 1000), ([1, 0, no, 0, 0], ",hidepid=noaccess".into()));
        assert_eq!(look("hidepid=2", 1000), ([0, gone, gone, 0, 0], ",hidepid=invisible".into()));
        assert_eq!(
            look("hidepid=invisible,gid=77", 77),
            ([1, 0, 0, 0, 0], ",gid=77,hidepid=invisible".into())
        );
        assert_eq!(
            look("gid=77,hidepid=invisible", 1000),
            ([0, gone, gone, 0, 0], ",gid=77,hidepid=invisible".into())
        );
        assert_eq!(
            look("hidepid=4,gid=77", 77),
            ([0, gone, gone, 0, 0], ",gid=77,hidepid=ptraceable".into())
        );
        assert_eq!(look("subset=pid", 1000), ([1, 0, 0, 0, gone], ",subset=pid".into()));
    });
}

/// Who has a user namespace and a mount namespace of its own, and nothing else, sees no more than before.
fn not_got_around() {
    use namespaces::{NEWIPC, NEWNS, NEWUSER, as_first, unshare};
    in_child(|| {
        unshare(NEWNS).unwrap();
        place::mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        place::mount("proc", "/proc", "proc", 0, "hidepid=2").unwrap();
        let place = Place::new("");
        let point = place.path("point");
        place::mkdir(&point, 0o755).unwrap();
        let mount = |kind: &str, options: &str| place::mount("none", &point, kind, 0, options);
        in_child(|| {
            place::become_user(1000, 1000);
            unshare(NEWUSER | NEWNS).unwrap();
            assert_eq!(mount("proc", ""), Err(Errno::EPERM));
            assert_eq!(mount("proc", "subset=pid"), Err(Errno::EPERM));
            assert_eq!(mount("proc", "hidepid=2"), Err(Errno::EPERM));
            assert_eq!(mount("mqueue", ""), Err(Errno::EPERM));
            assert_eq!(place::mount(&point, &point, "", libc::MS_BIND, ""), Ok(()));
        });
        in_child(|| {
            place::become_user(1000, 1000);
            unshare(NEWUSER | NEWNS | NEWIPC).unwrap();
            assert_eq!(mount("mqueue", ""), Ok(()));
            as_first(0, || {
                assert_eq!(mount("proc", ""), Ok(()));
                let names = place::names(&point);
                let processes = names.iter().filter(|name| name.parse::<i32>().is_ok());
                assert_eq!(processes.count(), 1, "{names:?}");
            })
            .ok();
        });
    });
}

/// Where in the kernel a process sleeps is for those who may look into it.
fn where_strangers_sleep() {
    let sleeper = fork(|| {
        loop {
            std::thread::park();
        }
    });
    procfs::wait_for_sleep(sleeper.pid);
    let read = || std::fs::read_to_string(format!("/proc/{}/wchan", sleeper.pid)).unwrap();
    if !is_linux() {
        // Linux may have been built without names.
        assert_ne!(read(), "0");
    }
    in_child(|| {
        place::become_user(1000, 1000);
        assert_eq!(read(), "0");
    });
    sleeper.end();
}
