//! Shared memory on pages of 4 KiB that would be better off on huge ones.

use roundtable_programs::child::Child;
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{ANON, FIXED, Map, RW, SHARED, mmap};
use roundtable_programs::sys;

use crate::saying::{advice, advice_of, audit, file_of};
use crate::scene::{PLACE, stays};

pub fn shared_memory_on_base_pages() {
    const LENGTH: usize = 96 << 20;
    let flags = SHARED | ANON | FIXED;
    let map =
        mmap(PLACE, LENGTH, RW, flags, -1, 0).map(|address| Map { address, length: LENGTH }).expect("mmap");
    let _sharers: Vec<Child> =
        (0..4).map(|_| stays(|| (0..LENGTH).step_by(4096).for_each(|at| map.set(at, 1)))).collect();
    let report = audit();
    let files = report["base"].as_array().unwrap();
    let seen = files
        .iter()
        .find(|file| file["size"] == LENGTH && file["name"] == "anonymous memory")
        .expect("the memory");
    // Four children; the parent maps it too, and has touched nothing.
    assert_eq!(seen["processes"], 5);
    assert_eq!(seen["tables"]["now"]["pte"], 4 * 48, "{seen}");
    assert_eq!((&seen["tables"]["huge"]["pte"], &seen["tables"]["huge"]["pmd"]), (&0.into(), &4.into()));
    let advice = advice_of(&report, "anonymous memory");
    assert!(advice.iter().any(|advice| advice["pages"]["count"] == 48), "{advice:?}");
    let check = &report["check"];
    let (estimate, kernel) = (check["estimate"].as_f64().unwrap(), check["vm_pte"].as_f64().unwrap());
    assert!((estimate / kernel - 1.0).abs() < 0.05, "{check}");
}

/// Each way to get shared memory, in two processes; a page in each of its tables is touched.
pub fn shared_memory_of_each_kind() {
    const LENGTH: usize = 64 << 20;
    const STEP: usize = 2 << 20;
    let pid = sys::pid();
    let touch = || {
        for at in (0..LENGTH).step_by(STEP) {
            // SAFETY: callers have mapped so much there.
            unsafe { ((PLACE + at) as *mut u8).write_volatile(1) };
        }
    };
    let mapped = |file: &Fd| {
        file.truncate(LENGTH as u64).unwrap();
        let share = || {
            stays(|| {
                mmap(PLACE, LENGTH, RW, SHARED | FIXED, file.raw(), 0).expect("mmap");
                touch();
            })
        };
        [share(), share()]
    };
    // What shm_open makes is a file there.
    let (posix, file) = (format!("/dev/shm/audit-{pid}"), format!("/tmp/audit-{pid}/shared"));
    let mount = Tmpfs::mount(&format!("/tmp/audit-{pid}"));
    let open = |path: &str| Fd::open(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).expect("open");
    let memfd = Fd::memfd("audit-memory", libc::MFD_CLOEXEC).expect("memfd_create");
    // SAFETY: plain system calls.
    let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, LENGTH, libc::IPC_CREAT | 0o600) };
    assert!(segment >= 0, "shmget: {}", std::io::Error::last_os_error());
    let attach = || {
        stays(|| {
            // SAFETY: the place is free.
            let at = unsafe { libc::shmat(segment, PLACE as *const _, 0) };
            assert_eq!(at as usize, PLACE, "shmat: {}", std::io::Error::last_os_error());
            touch();
        })
    };
    let sharers = [mapped(&open(&posix)), mapped(&open(&file)), mapped(&memfd), [attach(), attach()]];
    let report = audit();
    drop(sharers);
    // SAFETY: takes integers.
    unsafe { libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut()) };
    std::fs::remove_file(&posix).unwrap();
    drop(mount);
    let names =
        [posix, file, "memfd audit-memory".into(), format!("SysV segment {segment} (key 0x00000000)")];
    for name in names {
        let seen = file_of(&report, "base", &name);
        assert_eq!(seen["processes"], 2, "{seen}");
        assert_eq!(seen["tables"]["now"]["pte"], 2 * (LENGTH / STEP), "{seen}");
        assert_eq!(seen["page_size"], 4096);
        // A page in each table is hardly any memory: no pool grows for it.
        let advice = advice(&report, &name, "huge-pages");
        assert_eq!(advice.get("pages"), None, "{advice}");
        assert!(
            advice["steps"][0]["what"].as_str().unwrap().starts_with("Only 128 KiB of 64 MiB"),
            "{advice}"
        );
    }
}

/// A mount of tmpfs; gone when dropped.
struct Tmpfs(String);

impl Tmpfs {
    fn mount(path: &str) -> Tmpfs {
        std::fs::create_dir(path).expect("mkdir");
        let (kind, target) = (sys::c_string("tmpfs"), sys::c_string(path));
        // SAFETY: both are NUL-terminated and live through the call.
        let result =
            unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        assert_eq!(result, 0, "mount: {}", std::io::Error::last_os_error());
        Tmpfs(path.to_string())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let target = sys::c_string(&self.0);
        // SAFETY: the path is NUL-terminated.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        let _ = std::fs::remove_dir(&self.0);
    }
}
