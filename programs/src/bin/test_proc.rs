//! The formats of the files in /proc and /sys that programs read.

use std::fs;
use std::time::Duration;

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::Map;
use roundtable_programs::place::become_user;
use roundtable_programs::procfs::{Meminfo, number};
use roundtable_programs::sys::{PAGE, check};
use roundtable_programs::{Errno, child, sys, tests};

tests! { meminfo, stat_of_a_process, status_of_a_process, statm, cmdline_and_comm, links_of_a_process, fd_folder,
mounts, filesystems, version, cpuinfo, stat_of_the_machine, uptime_and_loadavg, pagemap, sysctls, cpus_in_sys,
huge_pages_in_sys, other_users_processes, gone_process, self_and_thread_self, limits, descriptor_that_tells_of_itself, read_in_pieces, kpageflags, zones, transparent_pages,
children_of_threads, own_system_call, last_number_in_a_namespace, most_descriptors, blocks_of_memory, adjustments_that_are_taken_back,
mapped_files }

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn meminfo() {
    let text = read("/proc/meminfo");
    for line in text.lines() {
        let (name, value) = line.split_once(':').unwrap();
        let words: Vec<&str> = value.split_whitespace().collect();
        assert!(words[0].parse::<u64>().is_ok(), "{line}");
        // Counts have no unit, sizes have theirs.
        assert_eq!(words.get(1).copied(), (!name.starts_with("HugePages_")).then_some("kB"), "{line}");
    }
    let meminfo = Meminfo::read();
    let (total, free, available) =
        (meminfo.get("MemTotal"), meminfo.get("MemFree"), meminfo.get("MemAvailable"));
    assert!(free <= total && available <= total && total > 0);
    for name in
        ["Buffers", "Cached", "SwapTotal", "SwapFree", "Shmem", "AnonPages", "Mapped", "Slab", "PageTables"]
    {
        meminfo.get(name);
    }
    for name in
        ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp", "Hugepagesize", "Hugetlb"]
    {
        meminfo.get(name);
    }
    assert!(text.contains("HugePages_Total: ") && text.contains("Hugepagesize:       2048 kB"), "{text}");
}

fn stat_fields(pid: i32) -> (String, Vec<String>) {
    let text = read(&format!("/proc/{pid}/stat"));
    let (start, rest) = text.trim_end().rsplit_once(") ").unwrap();
    let (number, name) = start.split_once(" (").unwrap();
    assert_eq!(number, pid.to_string());
    (name.to_string(), rest.split(' ').map(str::to_string).collect())
}

fn stat_of_a_process() {
    let (name, fields) = stat_fields(sys::pid());
    assert_eq!(name, "test_proc");
    // From the third: state, parent, group, session.
    assert_eq!(fields.len(), 50);
    assert_eq!(fields[0], "R");
    // SAFETY: takes nothing.
    assert_eq!(fields[1], unsafe { libc::getppid() }.to_string());
    assert_eq!(fields[2], sys::pid().to_string());
    assert_eq!(fields[17], "1", "threads");
    assert!(fields[20].parse::<u64>().unwrap() > 0, "size");
    let child = child::fork(|| std::thread::sleep(std::time::Duration::from_secs(100)));
    assert!(sys::settles(std::time::Duration::from_secs(10), || stat_fields(child.pid).1[0] == "S"));
    child.end();
}

fn status_of_a_process() {
    let text = read("/proc/self/status");
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name}:\t")))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.split_once(":\t").unwrap().1.trim().to_string()
    };
    assert_eq!(value("Name"), "test_proc");
    assert_eq!((value("Pid"), value("Tgid")), (sys::pid().to_string(), sys::pid().to_string()));
    assert_eq!(value("Uid"), "0\t0\t0\t0");
    assert_eq!(value("State"), "R (running)");
    for name in ["VmSize", "VmRSS", "VmPTE", "VmData", "VmStk", "VmHWM", "VmPeak", "VmLck", "HugetlbPages"] {
        assert!(value(name).ends_with(" kB"), "{name}: {}", value(name));
    }
    for name in ["SigPnd", "SigBlk", "SigIgn", "SigCgt", "CapEff"] {
        assert_eq!(value(name).len(), 16, "{name}");
    }
    assert!(
        value("Threads") == "1"
            && value("Groups").split(' ').all(|group| group.parse::<u32>().is_ok() || group.is_empty())
    );
    value("Cpus_allowed_list");
    value("voluntary_ctxt_switches");
}

fn statm() {
    let words: Vec<u64> =
        read("/proc/self/statm").split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(words.len(), 7);
    assert!(words[0] >= words[1] && words[1] >= words[2]);
}

fn cmdline_and_comm() {
    let line = fs::read("/proc/self/cmdline").unwrap();
    assert_eq!(line.last(), Some(&0));
    let first = line.split(|&byte| byte == 0).next().unwrap();
    assert!(first.ends_with(b"test_proc"));
    fs::write("/proc/self/comm", "renamed").unwrap();
    assert_eq!(read("/proc/self/comm"), "renamed\n");
}

fn links_of_a_process() {
    let link = |name: &str| {
        fs::read_link(format!("/proc/self/{name}")).unwrap().into_os_string().into_string().unwrap()
    };
    assert!(link("exe").ends_with("/test_proc"));
    assert_eq!(link("cwd"), std::env::current_dir().unwrap().to_str().unwrap());
    assert_eq!(link("root"), "/");
    assert_eq!(
        read("/proc/self/environ").split('\0').filter(|word| !word.is_empty()).count(),
        std::env::vars_os().count()
    );
}

fn fd_folder() {
    let file = roundtable_programs::file::Fd::temporary();
    let (pipe, _write) = roundtable_programs::file::pipe(0);
    let link = |fd: i32| {
        fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().into_os_string().into_string().unwrap()
    };
    assert_eq!(link(file.raw()), "/memfd:temporary (deleted)");
    assert!(link(pipe.raw()).starts_with("pipe:["));
    let names: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    assert!(names.contains(&file.raw()) && names.contains(&pipe.raw()));
    let info = read(&format!("/proc/self/fdinfo/{}", file.raw()));
    assert!(info.starts_with("pos:\t0\n") && info.contains("\nflags:\t0"), "{info}");
    // What a link of these names can be opened again.
    file.write(b"again").unwrap();
    assert_eq!(read(&format!("/proc/self/fd/{}", file.raw())), "again");
}

fn mounts() {
    let text = read("/proc/mounts");
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields.len(), fields[4], fields[5]), (6, "0", "0"), "{line}");
        assert!(fields[3].starts_with("rw") || fields[3].starts_with("ro"), "{line}");
    }
    assert!(
        text.lines()
            .any(|line| line.split(' ').nth(1) == Some("/proc") && line.split(' ').nth(2) == Some("proc"))
    );
    let info = read("/proc/self/mountinfo");
    assert_eq!(info.lines().count(), text.lines().count());
    assert!(info.lines().all(|line| line.contains(" - ")));
}

fn filesystems() {
    let text = read("/proc/filesystems");
    for name in ["proc", "sysfs", "tmpfs", "hugetlbfs", "devtmpfs"] {
        assert!(text.lines().any(|line| line == format!("nodev\t{name}")), "{name} in {text}");
    }
}

fn version() {
    assert!(read("/proc/version").contains(&sys::release()));
    assert_eq!(read("/proc/sys/kernel/osrelease").trim_end(), sys::release());
}

fn cpuinfo() {
    let text = read("/proc/cpuinfo");
    let count = text.lines().filter(|line| line.starts_with("processor\t: ")).count();
    assert_eq!(count, sys::cpus().len());
    assert!(text.lines().any(|line| line.starts_with("flags\t\t: ") && line.contains(" pse ")));
    assert!(text.lines().any(|line| line.starts_with("model name\t: ")));
}

fn stat_of_the_machine() {
    let text = read("/proc/stat");
    let lines = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(lines("cpu "), 1);
    assert_eq!(lines("cpu"), 1 + sys::cpus().len());
    assert!(lines("btime ") == 1 && lines("processes ") == 1 && lines("ctxt ") == 1);
    let total = text
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|word| word.parse::<u64>().unwrap())
        .sum::<u64>();
    assert!(total > 0);
}

fn uptime_and_loadavg() {
    assert_eq!(read("/proc/uptime").split_whitespace().filter(|word| word.parse::<f64>().is_ok()).count(), 2);
    let text = read("/proc/loadavg");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(
        words.len() == 5
            && words[3].contains('/')
            && words[..3].iter().all(|word| word.parse::<f64>().is_ok()),
        "{text}"
    );
}

fn pagemap() {
    let map = roundtable_programs::mem::Map::anonymous(3 * 4096);
    map.set(4096, 1);
    let file = roundtable_programs::file::Fd::open("/proc/self/pagemap", libc::O_RDONLY).unwrap();
    let mut entries = [0; 24];
    assert_eq!(file.read_at(&mut entries, (map.address / 4096 * 8) as u64), Ok(24));
    let present: Vec<bool> =
        entries.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()) >> 63 != 0).collect();
    assert_eq!(present, [false, true, false]);
}

fn sysctls() {
    for path in [
        "vm/nr_hugepages",
        "vm/nr_overcommit_hugepages",
        "vm/overcommit_memory",
        "kernel/shmmni",
        "kernel/tainted",
        "kernel/cap_last_cap",
        "kernel/pid_max",
        "kernel/threads-max",
        "net/core/somaxconn",
    ] {
        number(&format!("/proc/sys/{path}"));
    }
    read("/proc/sys/kernel/shmmax").trim().parse::<u64>().unwrap();
    fs::write("/proc/sys/vm/drop_caches", "3\n").unwrap();
    fs::write("/proc/sys/vm/compact_memory", "1\n").unwrap();
    assert!(fs::write("/proc/sys/vm/nr_hugepages", "many").is_err());
    assert!(fs::write("/proc/sys/kernel/osrelease", "x").is_err());
}

fn cpus_in_sys() {
    let folder = "/sys/devices/system/cpu";
    let last = sys::cpus().len() - 1;
    let expected = if last == 0 { "0\n".to_string() } else { format!("0-{last}\n") };
    assert_eq!(read(&format!("{folder}/online")), expected);
    read(&format!("{folder}/possible"));
    number(&format!("{folder}/kernel_max"));
    assert!(fs::exists(format!("{folder}/cpu0")).unwrap());
}

fn huge_pages_in_sys() {
    let names: Vec<String> = fs::read_dir("/sys/kernel/mm/hugepages")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name == "hugepages-2048kB"), "{names:?}");
    for name in
        ["nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages", "nr_overcommit_hugepages"]
    {
        number(&format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"));
    }
}

fn other_users_processes() {
    child::in_child(|| {
        // SAFETY: takes integers.
        unsafe { libc::setuid(4321) };
        read("/proc/1/stat");
        read("/proc/1/cmdline");
        assert_eq!(fs::read_link("/proc/1/exe").unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert!(matches!(fs::read_dir("/proc/1/fd").unwrap_err().raw_os_error(), Some(libc::EACCES)));
        assert!(fs::write("/proc/sys/vm/nr_hugepages", "5").is_err());
    });
}

fn gone_process() {
    let child = child::fork_code(|| 0);
    let file = fs::File::open(format!("/proc/{}/stat", child.pid)).unwrap();
    let pid = child.pid;
    child.wait();
    let mut text = String::new();
    let error = std::io::Read::read_to_string(&mut &file, &mut text).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

fn self_and_thread_self() {
    let link =
        |name: &str| fs::read_link(format!("/proc/{name}")).unwrap().into_os_string().into_string().unwrap();
    assert_eq!(link("self"), sys::pid().to_string());
    assert_eq!(link("thread-self"), format!("{0}/task/{0}", sys::pid()));
}

fn limits() {
    let text = read("/proc/self/limits");
    assert!(
        text.starts_with("Limit                     Soft Limit           Hard Limit           Units"),
        "{text}"
    );
    assert!(text.lines().any(|line| line.starts_with("Max open files ")));
}

fn read_in_pieces() {
    let whole = read("/proc/self/maps");
    let file = roundtable_programs::file::Fd::open("/proc/self/maps", libc::O_RDONLY).unwrap();
    let mut pieces = Vec::new();
    let mut buffer = [0; 100];
    while let Ok(length @ 1..) = file.read(&mut buffer) {
        pieces.extend_from_slice(&buffer[..length]);
    }
    let pieces = String::from_utf8(pieces).unwrap();
    // The heap may have grown between the two.
    let stable = |text: &str| {
        text.lines()
            .filter(|line| !line.ends_with("[heap]") && line.contains('/'))
            .map(str::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(stable(&pieces), stable(&whole));
}

fn kpageflags() {
    let file = roundtable_programs::file::Fd::open("/proc/kpageflags", libc::O_RDONLY).unwrap();
    let mut entry = [0; 8];
    assert_eq!(file.read_at(&mut entry, 8 * 4096), Ok(8));
}

fn descriptor_that_tells_of_itself() {
    let null = fs::File::open("/dev/null").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&null);
    let mut file = fs::File::open(format!("/proc/self/fdinfo/{number}")).unwrap();
    // SAFETY: takes integers; both descriptors are owned by files that stay open.
    sys::check(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), number) }).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).unwrap();
    assert!(text.starts_with("pos:\t"), "{text}");
}

fn zones() {
    let text = read("/proc/zoneinfo");
    let free: u64 = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pages free"))
        .map(|pages| pages.trim().parse::<u64>().unwrap())
        .sum();
    let total = Meminfo::read().get("MemTotal") / 4;
    assert!(text.starts_with("Node 0, zone ") && free > 0 && free <= total, "{free} of {total}\n{text}");
    let minimum: u64 = read("/proc/sys/vm/min_free_kbytes").trim().parse().unwrap();
    assert!(minimum > 0 && minimum / 4 < total, "{minimum}");
    assert!(fs::metadata("/sys/module").unwrap().is_dir());
}

fn transparent_pages() {
    const FOLDER: &str = "/sys/kernel/mm/transparent_hugepage";
    for name in ["enabled", "defrag", "shmem_enabled"] {
        let path = format!("{FOLDER}/{name}");
        let text = read(&path);
        let words: Vec<_> = text.split_whitespace().collect();
        let chosen = words.iter().filter(|word| word.starts_with('[') && word.ends_with(']')).count();
        assert!(chosen == 1 && words.iter().any(|word| word.contains("never")), "{name}: {text}");
        fs::write(&path, "never").unwrap();
        assert!(read(&path).contains("[never]"));
        assert_eq!(fs::write(&path, "whenever").unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let old = words.iter().find(|word| word.starts_with('[')).unwrap().trim_matches(['[', ']']);
        fs::write(&path, old).unwrap();
    }
}

/// A child that does nothing, by fork(2) alone: it may be made by any thread.
fn idle_child() -> i32 {
    // SAFETY: the child makes nothing but calls that ask for nothing of the C library's.
    unsafe {
        match libc::fork() {
            0 => loop {
                libc::pause();
            },
            pid => pid,
        }
    }
}

fn children_of_threads() {
    let children = |tid: i32| -> Vec<i32> {
        let text = read(&format!("/proc/self/task/{tid}/children"));
        assert!(text.is_empty() || text.ends_with(' '), "{text:?}");
        text.split_whitespace().map(|word| word.parse().expect("a number")).collect()
    };
    let me = sys::pid();
    assert_eq!(children(me), []);
    let first = idle_child();
    assert_eq!(children(me), [first]);
    let (begin, ready) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        // SAFETY: takes nothing.
        tell.send((unsafe { libc::gettid() }, idle_child())).unwrap();
        let _ = ready.recv();
    });
    let (tid, second) = told.recv().unwrap();
    assert_eq!((children(me), children(tid)), (vec![first], vec![second]));
    drop(begin);
    thread.join().unwrap();
    // Its child is the first thread's now.
    assert!(sys::settles(Duration::from_secs(20), || children(me).len() == 2));
    let mut all = children(me);
    all.sort_unstable();
    assert_eq!(all, if first < second { [first, second] } else { [second, first] });
    assert!(fs::metadata("/proc/self/children").is_err());
    for child in [first, second] {
        // SAFETY: takes integers; it is a child of ours.
        unsafe { libc::kill(child, libc::SIGKILL) };
        roundtable_programs::child::waitpid(child, 0).unwrap();
    }
    assert_eq!(children(me), []);
}

fn own_system_call() {
    let file = fs::File::open("/proc/self/syscall").unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer lives through the call, and is as long as is said.
    let read = unsafe { libc::syscall(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) };
    let text = String::from_utf8_lossy(&buffer[..read as usize]).into_owned();
    let begin = format!("{} {fd:#x} {:#x} 0x100 ", libc::SYS_read, buffer.as_ptr() as usize);
    assert!(text.starts_with(&begin) && text.ends_with('\n'), "{text}, not {begin}");
    // The other arguments, and the two registers.
    assert_eq!(text.split_whitespace().count(), 9, "{text}");
}

fn last_number_in_a_namespace() {
    let last = || read("/proc/loadavg").split_whitespace().last().unwrap().to_string();
    let child = roundtable_programs::namespaces::as_first(0, || {
        assert_eq!(last(), "1");
        in_child(|| ());
        assert_eq!(last(), "2");
    });
    child.ok();
}

/// One that is closed again does not count, and none comes over the setting, whatever the process's own limit is.
fn descriptors_that_were(path: &str) {
    // SAFETY: take integers. The child ends at once.
    unsafe {
        assert_eq!(libc::dup2(2, 5000), 5000);
        assert_eq!(libc::close(5000), 0);
        let child = libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0);
        if child == 0 {
            let lowered = fs::write(path, "1024").is_ok();
            let own = check(libc::unshare(libc::CLONE_FILES));
            let at = check(libc::dup2(2, 20000));
            let from = check(libc::fcntl(2, libc::F_DUPFD, 20000));
            let wrong = own != Ok(0) || at != Err(Errno::EBADF) || from != Err(Errno::EMFILE);
            let raised = fs::write(path, "65536").is_ok();
            libc::_exit(i32::from(!lowered || !raised || wrong));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child as i32, &mut status, 0), child as i32);
        assert_eq!(status, 0);
    }
}

fn most_descriptors() {
    let path = "/proc/sys/fs/nr_open";
    let before: u64 = read(path).trim().parse().unwrap();
    assert_eq!(fs::write(path, "63").map_err(|error| error.raw_os_error()), Err(Some(libc::EINVAL)));
    in_child(|| {
        fs::write(path, "65536").unwrap();
        let set = |most: u64| {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            // SAFETY: the limit lives through the call.
            check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
        };
        assert_eq!(set(65537), Err(Errno::EPERM));
        assert_eq!(set(65536), Ok(0));
        descriptors_that_were(path);
        // SAFETY: take integers.
        unsafe { assert_eq!(libc::dup2(2, 65535), 65535) };
        // SAFETY: takes integers. The child ends at once.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            let lowered = fs::write(path, "1024").is_ok();
            // SAFETY: takes integers.
            let answer = check(unsafe { libc::unshare(libc::CLONE_FILES) });
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!lowered || answer != Err(Errno::EMFILE))) };
        }
        let mut status = 0;
        // SAFETY: the status lives through the call.
        unsafe { assert_eq!(libc::waitpid(child as i32, &mut status, 0), child as i32) };
        assert_eq!(status, 0);
    });
    fs::write(path, before.to_string()).unwrap();
}

/// What lsmem(1) adds up.
fn blocks_of_memory() {
    const FOLDER: &str = "/sys/devices/system/memory";
    let read = |name: &str| std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap().trim().to_string();
    let block = u64::from_str_radix(&read("block_size_bytes"), 16).unwrap();
    let names =
        std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let blocks: Vec<String> = names.filter(|name| name.starts_with("memory")).collect();
    for name in &blocks {
        let index = u64::from_str_radix(&read(&format!("{name}/phys_index")), 16).unwrap();
        assert_eq!(*name, format!("memory{index}"));
        assert_eq!(
            (read(&format!("{name}/state")), read(&format!("{name}/online"))),
            ("online".into(), "1".into())
        );
    }
    let all = blocks.len() as u64 * block;
    let total = Meminfo::read().get("MemTotal") << 10;
    assert!((total..total + 4 * block).contains(&all), "{all} for {total}");
}

/// Who raises the adjustment of a process may lower it again to what somebody with the right to has set last, and no further.
fn adjustments_that_are_taken_back() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let set = |value: i32| fs::write(FILE, value.to_string()).map_err(|error| error.kind());
    in_child(|| {
        assert_eq!(set(100), Ok(()));
        // SAFETY: take integers. The file is the user's as long as the memory is.
        unsafe {
            check(libc::setuid(1234)).expect("setuid");
            check(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0)).expect("dumpable");
        }
        let denied = Err(std::io::ErrorKind::PermissionDenied);
        for (value, answer) in [(500, Ok(())), (100, Ok(())), (99, denied), (1000, Ok(())), (101, Ok(()))] {
            assert_eq!(set(value), answer, "{value}");
        }
        // Children inherit the bound.
        in_child(|| assert_eq!((set(500), set(100), set(99)), (Ok(()), Ok(()), denied)));
        // The older file has none.
        let older =
            |value: i32| fs::write("/proc/self/oom_adj", value.to_string()).map_err(|error| error.kind());
        assert_eq!((older(10), older(9)), (Ok(()), denied));
    });
}

/// A link for each area of a file, named by its range. It leads to the file, whatever became of its name, for those who may restore processes.
fn mapped_files() {
    let path = "/tmp/mapped";
    fs::write(path, [7; 3 * PAGE]).unwrap();
    let file = Fd::open(path, libc::O_RDONLY).unwrap();
    let map = file.map_at(PAGE as u64, 2 * PAGE, libc::PROT_READ, libc::MAP_PRIVATE).unwrap();
    let anonymous = Map::anonymous(PAGE);
    let (start, end) = (map.address, map.address + 2 * PAGE);
    let of = |start: usize, end: usize| format!("/proc/self/map_files/{start:x}-{end:x}");
    assert_eq!(fs::read_link(of(start, end)).unwrap().to_str(), Some(path));
    let names: Vec<String> = fs::read_dir("/proc/self/map_files")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.contains(&format!("{start:x}-{end:x}")), "{names:?}");
    assert!(
        names.is_sorted_by_key(|name| usize::from_str_radix(name.split_once('-').unwrap().0, 16).unwrap())
    );
    assert!(!names.iter().any(|name| name.starts_with(&format!("{:x}-", anonymous.address))), "{names:?}");
    let spelled_wrong = [
        of(start, end - PAGE),
        of(start + PAGE, end),
        format!("/proc/self/map_files/0{start:x}-{end:x}"),
        format!("/proc/self/map_files/{start:x}-0{end:x}"),
        format!("/proc/self/map_files/+{start:x}-{end:x}"),
        format!("/proc/self/map_files/{start:x}"),
        format!("/proc/self/map_files/{start:x}-{end:x}-"),
        format!("/proc/self/map_files/{:x}-{:x}", anonymous.address, anonymous.address + PAGE),
    ];
    for name in spelled_wrong {
        let error = fs::read_link(&name).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{name}");
    }
    fs::remove_file(path).unwrap();
    assert_eq!(fs::read(of(start, end)).unwrap(), [7; 3 * PAGE]);
    assert_eq!(fs::read_link(of(start, end)).unwrap().to_str(), Some("/tmp/mapped (deleted)"));
    let parent = sys::pid();
    in_child(|| {
        become_user(31_415, 31_415);
        let error = fs::read_dir(format!("/proc/{parent}/map_files")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        assert_eq!(call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0, 0]), Ok(0));
        assert_eq!(fs::read_link(of(start, end)).map_err(|error| error.raw_os_error()).map(drop), Ok(()));
        assert_eq!(fs::read(of(start, end)).unwrap_err().raw_os_error(), Some(libc::EPERM));
    });
}
