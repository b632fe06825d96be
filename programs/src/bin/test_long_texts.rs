//! Paths and options that are as long as they may be, where the kernel makes texts of them.

use std::os::unix::ffi::OsStrExt;

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{Map, R, SHARED};
use roundtable_programs::place::{self, Place};
use roundtable_programs::sys::{PAGE, c_string, check};
use roundtable_programs::{Errno, namespaces, tests};

tests! { working_directory, removed_file, names_in_maps, names_of_other_bytes, query_of_a_name, source_of_a_mount, options_one_by_one,
options_of_ramfs, flag_of_another_owner, links_in_links }

/// Goes down into new directories with this name until the path has more than `length` bytes.
fn go_down(place: &Place, name: &[u8], length: usize) -> Vec<u8> {
    place::chdir(&place.path("")).expect("chdir");
    let name = std::ffi::CString::new(name).unwrap();
    loop {
        // SAFETY: the name lives through the calls.
        unsafe {
            check(libc::mkdir(name.as_ptr(), 0o755)).expect("mkdir");
            check(libc::chdir(name.as_ptr())).expect("chdir");
        }
        let path = std::env::current_dir().expect("getcwd");
        if path.as_os_str().len() > length {
            return path.as_os_str().as_bytes().to_vec();
        }
    }
}

fn working_directory() {
    let place = Place::new("");
    let path = go_down(&place, &[b'd'; 220], 3840);
    // As long as a path can be, and one byte longer.
    let rest = PAGE - 1 - path.len() - 1;
    let last = "e".repeat(rest);
    place::mkdir(&last, 0o755).unwrap();
    place::chdir(&last).unwrap();
    assert_eq!(std::env::current_dir().unwrap().as_os_str().len(), PAGE - 1);
    place::chdir("..").unwrap();
    let longer = "f".repeat(rest + 1);
    place::mkdir(&longer, 0o755).unwrap();
    place::chdir(&longer).unwrap();
    let mut buffer = vec![0u8; 2 * PAGE];
    let answer = call(libc::SYS_getcwd, [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0]);
    assert_eq!(answer, Err(Errno::ENAMETOOLONG));
    place::chdir("/").unwrap();
}

fn removed_file() {
    let place = Place::new("");
    let path = go_down(&place, &[b'd'; 220], 2300);
    let fd = Fd::open("f", libc::O_RDWR | libc::O_CREAT).expect("open");
    place::unlink("f").unwrap();
    let shown = std::fs::read_link(format!("/proc/self/fd/{}", fd.raw())).expect("readlink");
    assert_eq!(shown.as_os_str().as_bytes(), [&path, &b"/f (deleted)"[..]].concat());
    place::chdir("/").unwrap();
}

/// Maps a new file in the working directory.
fn map_new(name: &str) -> Map {
    let fd = Fd::open(name, libc::O_RDWR | libc::O_CREAT).expect("open");
    fd.truncate(PAGE as u64).unwrap();
    fd.map(PAGE, R, SHARED).unwrap()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn names_in_maps() {
    let place = Place::new("");
    let path = go_down(&place, &[&[b'd'; 150][..], &[b'\n'; 50]].concat(), 3000);
    let map = map_new("f");
    assert_eq!(map.get(0), 0);
    let escaped = path
        .iter()
        .flat_map(|byte| if *byte == b'\n' { b"\\012".to_vec() } else { vec![*byte] })
        .collect::<Vec<u8>>();
    for file in ["maps", "smaps", "numa_maps"] {
        let Ok(text) = std::fs::read(format!("/proc/self/{file}")) else { continue };
        assert!(contains(&text, &escaped), "{file}");
    }
    place::chdir("/").unwrap();
}

/// Bytes that are no text: the kernel shows them in its own way, and goes on.
fn names_of_other_bytes() {
    let place = Place::new("");
    go_down(&place, &[0xff; 240], 3500);
    let map = map_new("last");
    assert_eq!(map.get(0), 0);
    for file in ["maps", "smaps", "numa_maps", "mountinfo"] {
        let Ok(text) = std::fs::read(format!("/proc/self/{file}")) else { continue };
        assert!(file == "mountinfo" || contains(&text, b"/last"), "{file}");
    }
    place::chdir("/").unwrap();
}

fn query_of_a_name() {
    const PROCMAP_QUERY: usize = 0xc068_6611;
    let place = Place::new("");
    let path = go_down(&place, &[b'd'; 220], 2300);
    let map = map_new("f");
    let maps = Fd::open("/proc/self/maps", libc::O_RDONLY).unwrap();
    let mut name = vec![0u8; PAGE];
    // Size, flags, address, what is found in nine words, sizes of name and build ID, their addresses.
    let mut query = [0u64; 13];
    (query[0], query[2], query[11]) = (104, map.address as u64, name.as_mut_ptr() as u64);
    query[10] = PAGE as u64;
    match call(libc::SYS_ioctl, [maps.raw() as usize, PROCMAP_QUERY, query.as_mut_ptr() as usize, 0, 0, 0]) {
        Err(Errno::ENOTTY) => roundtable_programs::harness::skip("this kernel does not know the query"),
        answer => assert_eq!(answer, Ok(0)),
    }
    assert!(name.starts_with(&[&path, &b"/f\0"[..]].concat()));
    place::chdir("/").unwrap();
}

fn source_of_a_mount() {
    in_child(|| {
        namespaces::unshare(libc::CLONE_NEWNS).unwrap();
        place::mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        let _ = place::mkdir("/tmp/long", 0o755);
        place::mount(&" ".repeat(1100), "/tmp/long", "tmpfs", 0, "").unwrap();
        for file in ["mounts", "mountinfo"] {
            let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
            assert!(text.contains(&"\\040".repeat(1100)), "{file}");
        }
        place::umount("/tmp/long", 0).unwrap();
        place::rmdir("/tmp/long").unwrap();
    });
}

fn options_one_by_one() {
    let kind = c_string("tmpfs");
    let context = Fd::own(call(libc::SYS_fsopen, [kind.as_ptr() as usize, 0, 0, 0, 0, 0]).expect("fsopen"));
    let (key, value) = (c_string("size"), c_string(&format!("{:0250}", 1)));
    const SET_STRING: usize = 1;
    for _ in 0..12 {
        let arguments =
            [context.raw() as usize, SET_STRING, key.as_ptr() as usize, value.as_ptr() as usize, 0, 0];
        assert_eq!(call(libc::SYS_fsconfig, arguments), Ok(0));
    }
}

fn options_of_ramfs() {
    in_child(|| {
        namespaces::unshare(libc::CLONE_NEWNS).unwrap();
        place::mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        let _ = place::mkdir("/tmp/long", 0o755);
        place::mount("none", "/tmp/long", "ramfs", 0, &["mode=755"; 400].join(",")).unwrap();
        place::umount("/tmp/long", 0).unwrap();
        place::rmdir("/tmp/long").unwrap();
    });
}

/// O_NOATIME is for who owns the file, also where it comes later.
fn flag_of_another_owner() {
    let place = Place::new("");
    let fd = place.create("f");
    place::chmod(&place.path("f"), 0o666).unwrap();
    // SAFETY: takes integers.
    let set = |flags: i32| check(unsafe { libc::fcntl(fd.raw(), libc::F_SETFL, flags) });
    assert_eq!(set(libc::O_NOATIME), Ok(0));
    in_child(|| {
        place::become_user(1000, 1000);
        // What is set already may stay.
        assert_eq!(set(libc::O_NOATIME | libc::O_APPEND), Ok(0));
        assert_eq!(set(0), Ok(0));
        assert_eq!(set(libc::O_NOATIME), Err(Errno::EPERM));
    });
}

/// A walk is in forty links at once, each with as long a text as there can be.
fn links_in_links() {
    let place = Place::new("");
    let text = |next: usize| format!("{}l{next}", "./".repeat(2040));
    for number in 0..41 {
        // What is left of each text when its last name is met is a slash.
        place::symlink(&format!("{}/", text(number + 1)), &place.path(&format!("l{number}"))).unwrap();
    }
    place::mkdir(&place.path("l41"), 0o755).unwrap();
    assert!(std::fs::metadata(place.path("l1")).unwrap().is_dir());
    let error = std::fs::metadata(place.path("l0")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
}
