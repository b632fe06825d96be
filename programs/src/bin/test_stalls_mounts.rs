//! A call upon many mounts holds no spin lock, and keeps its CPU, for longer than one upon few.
//!
//! Each test makes some of a thing and many times as many, uses them, and compares the kernel's own counts of
//! instructions.

use roundtable_programs::file::Fd;
use roundtable_programs::held::compare;
use roundtable_programs::kinds::call;
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::{namespaces, place, tests};

tests! { kept_mounts: 200, trees_and_groups: 200, stacked_mounts: 200, ends_of_ipc_namespaces: 200, lists_of_mounts: 200 }

/// A walk in a tree that was taken out, past what locked mounts cover there.
fn kept_mounts() {
    const FROM: &str = "/tmp/kept";
    const TO: &str = "/tmp/kept-here";
    let mount = |source: &str, target: &str, kind: &str, flags: u64| {
        let [source, target, kind] = [source, target, kind].map(c_string);
        // SAFETY: all are NUL-terminated and live through the call.
        let result =
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
        check(result).expect("mount");
    };
    let make = |count: usize| {
        for path in [FROM, TO] {
            let _ = std::fs::create_dir(path);
        }
        namespaces::unshare(namespaces::NEWNS).expect("unshare");
        mount("none", FROM, "tmpfs", 0);
        for index in 0..count {
            let path = format!("{FROM}/{index}");
            std::fs::create_dir(&path).expect("mkdir");
            mount(TO, &path, "", libc::MS_BIND);
        }
        namespaces::unshare(namespaces::NEWUSER | namespaces::NEWNS).expect("unshare");
        mount(FROM, TO, "", libc::MS_BIND | libc::MS_REC);
        std::env::set_current_dir(TO).expect("chdir");
        // SAFETY: the text lives through the call.
        check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }).expect("umount");
    };
    compare(50, 4_000, make, |count| {
        for index in [0, 1, count - 1] {
            std::fs::metadata(index.to_string()).expect("stat");
        }
    });
}

fn mount(source: &str, target: &str, kind: &str, flags: u64) {
    place::mount(source, target, kind, flags, "").unwrap_or_else(|errno| panic!("{target}: {errno}"));
}

/// A tmpfs in a mount namespace of one's own.
fn own_mounts(at: &str) {
    let _ = std::fs::create_dir(at);
    namespaces::unshare(namespaces::NEWNS).expect("unshare");
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE);
    mount("none", at, "tmpfs", 0);
}

/// A tree comes to where a mount is that has many groups of slaves, which show nothing of it.
fn trees_and_groups() {
    const AT: &str = "/tmp/stalls-groups";
    let path = |name: &str| format!("{AT}/{name}");
    let folder = |name: &str| {
        std::fs::create_dir(path(name)).expect("mkdir");
        path(name)
    };
    let make = |count: usize| {
        own_mounts(AT);
        let shared = folder("shared");
        mount("none", &shared, "tmpfs", 0);
        mount("none", &shared, "", libc::MS_SHARED);
        let (_, part) = (folder("shared/place"), folder("shared/part"));
        for index in 0..count {
            let slave = folder(&format!("slave-{index}"));
            mount(&part, &slave, "", libc::MS_BIND);
            mount("none", &slave, "", libc::MS_SLAVE);
            mount("none", &slave, "", libc::MS_SHARED);
        }
        let tree = folder("tree");
        mount("none", &tree, "tmpfs", 0);
        for index in 0..count {
            let below = folder(&format!("tree/{index}"));
            mount(&below, &below, "", libc::MS_BIND);
        }
    };
    compare(10, 300, make, |_| mount(&path("tree"), &path("shared/place"), "", libc::MS_MOVE));
}

/// A walk over many mounts that are each on the one before.
fn stacked_mounts() {
    const AT: &str = "/tmp/stalls-stack";
    let make = |count: usize| {
        own_mounts(AT);
        // The lowest: all others are on it.
        std::env::set_current_dir(AT).expect("chdir");
        for _ in 0..count.ilog2() {
            mount(".", ".", "", libc::MS_BIND | libc::MS_REC);
        }
    };
    compare(16, 4096, make, |_| {
        std::fs::metadata(AT).expect("stat");
    });
}

/// The list of many mounts is put in order.
fn lists_of_mounts() {
    const AT: &str = "/tmp/stalls-list";
    let make = |count: usize| {
        own_mounts(AT);
        for index in 0..256 {
            std::fs::create_dir(format!("{AT}/{index}")).expect("mkdir");
        }
        for index in 0..count {
            let path = format!("{AT}/{}", index % 256);
            mount(&path, &path, "", libc::MS_BIND);
        }
    };
    compare(100, 8_000, make, |_| {
        let file = Fd::open("/proc/self/mounts", libc::O_RDONLY).expect("mounts");
        assert_eq!(file.read(&mut [0; 1]), Ok(1));
    });
}

/// A namespace ends with what System V objects it has.
fn ends_of_ipc_namespaces() {
    let make = |count: usize| {
        namespaces::unshare(namespaces::NEWIPC).expect("unshare");
        for _ in 0..count {
            let flags = libc::IPC_CREAT as usize | 0o600;
            call(libc::SYS_semget, [0, 1, flags, 0, 0, 0]).expect("semget");
            call(libc::SYS_msgget, [0, flags, 0, 0, 0, 0]).expect("msgget");
        }
    };
    compare(100, 8_000, make, |_| ());
}
