//! Folders of the host in the guest, looked at from both sides.
//!
//! `/volume` is a folder of the host's and `/volume-ro` the same to read only. The host does in it what it is asked for, by
//! `xtask/src/test/host_folder.rs`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use roundtable_programs::child;
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::mem::Map;
use roundtable_programs::{Errno, place, procfs, tests};

tests! {
    the_mount_is_shown, what_the_host_wrote_is_read, what_the_guest_wrote_is_read: 60, the_hosts_changes_show_at_once,
    places_in_a_file, flags_of_open, many_entries: 120, a_directory_is_read_from_where_it_was,
    entries_are_removed_while_they_are_read: 120, names_of_all_kinds, directories_come_and_go, rename_moves_and_replaces,
    links_count, symbolic_links_lead_in_the_guest, attributes_are_the_hosts, times_are_set, a_file_without_a_name,
    a_file_that_was_replaced, a_removed_number_is_no_other_file, private_mappings, shared_mappings_to_read,
    no_shared_mapping_to_write, a_mapping_follows_writes, a_mapping_follows_truncation, pages_that_nobody_maps: 120, programs_run_from_it, sync_reaches_the_host,
    pipes_but_no_devices, sockets_are_found_by_their_name, nothing_is_written_read_only, it_is_mounted_and_unmounted,
    many_write_at_once: 120, appends_do_not_overlap: 60, killed_while_they_wait: 120,
    nothing_outside_is_reached, a_race_of_the_host_leads_nowhere: 60,
}

const VOLUME: &str = "/volume";

/// Lets the host run a script in the folder; gives what it printed.
fn host(script: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{VOLUME}/.host/{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
    fs::write(format!("{name}.new"), script).unwrap();
    fs::rename(format!("{name}.new"), format!("{name}.ask")).unwrap();
    let done = format!("{name}.done");
    let answer = loop {
        match fs::read_to_string(&done) {
            Ok(answer) => break answer,
            Err(error) if error.kind() == ErrorKind::NotFound => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("{done}: {error}"),
        }
    };
    fs::remove_file(done).unwrap();
    let (status, output) = answer.split_once('\n').unwrap();
    assert_eq!(status, "0", "{script}: {output}");
    output.to_string()
}

/// An empty directory of a test's own, by its name in the volume.
fn fresh(name: &str) -> String {
    let path = format!("{VOLUME}/{name}");
    let _ = fs::remove_dir_all(&path);
    fs::create_dir(&path).unwrap();
    path
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + seed) as u8).collect()
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}

fn names(path: &str) -> BTreeSet<String> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn the_mount_is_shown() {
    assert!(fs::read_to_string("/proc/filesystems").unwrap().contains("nodev\t9p\n"));
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(mounts.contains("volume0 /volume 9p rw,relatime,access=client,trans=virtio"), "{mounts}");
    assert!(mounts.contains("volume1 /volume-ro 9p ro,relatime,access=client,trans=virtio"), "{mounts}");
    let found = Fd::open(VOLUME, libc::O_RDONLY).unwrap().statfs();
    assert_eq!((found.f_type, found.f_namelen), (0x0102_1997, 255));
    assert!(found.f_blocks > 0 && found.f_bfree <= found.f_blocks, "{} of {}", found.f_bfree, found.f_blocks);
}

fn what_the_host_wrote_is_read() {
    let path = fresh("from-host");
    host("printf 'one\\ntwo\\n' > from-host/text; head -c 3000000 /dev/zero | tr '\\0' x > from-host/much");
    assert_eq!(fs::read_to_string(format!("{path}/text")).unwrap(), "one\ntwo\n");
    let much = fs::read(format!("{path}/much")).unwrap();
    assert!(much.len() == 3_000_000 && much.iter().all(|byte| *byte == b'x'));
}

fn what_the_guest_wrote_is_read() {
    let path = fresh("from-guest");
    let content = pattern(5_000_001, 3);
    fs::write(format!("{path}/much"), &content).unwrap();
    assert_eq!(host("stat -c %s from-guest/much; cp from-guest/much from-guest/copy").trim(), "5000001");
    assert_eq!(fs::read(format!("{path}/copy")).unwrap(), content);
    fs::write(format!("{path}/text"), "from the guest").unwrap();
    assert_eq!(host("cat from-guest/text"), "from the guest");
}

fn the_hosts_changes_show_at_once() {
    let path = fresh("changes");
    let file = format!("{path}/file");
    fs::write(&file, "first").unwrap();
    let mut open = File::open(&file).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    host("printf ' and more' >> changes/file; touch changes/new");
    assert_eq!(open.metadata().unwrap().len(), 14);
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first and more");
    assert_eq!(names(&path), ["file", "new"].map(String::from).into());
    host("rm changes/file; mkdir changes/file");
    assert!(fs::metadata(&file).unwrap().is_dir());
    host("rmdir changes/file; printf other > changes/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "other");
}

fn places_in_a_file() {
    let path = format!("{}/file", fresh("places"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"end", 200_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 200_003);
    let mut bytes = vec![1; 200_100];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 200_003);
    assert!(bytes[..200_000].iter().all(|byte| *byte == 0) && bytes[200_000..200_003] == *b"end");
    assert_eq!(file.read_at(&mut bytes, 200_003).unwrap(), 0);
    file.write_all_at(b"middle", 131_070).unwrap();
    file.set_len(131_074).unwrap();
    let mut file = file;
    assert_eq!(file.seek(SeekFrom::End(-4)).unwrap(), 131_070);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "midd");
    assert_eq!(host("tail -c 4 places/file"), "midd");
}

fn flags_of_open() {
    let path = fresh("flags");
    let file = format!("{path}/file");
    host("printf 0123456789 > flags/file");
    let new = OpenOptions::new().write(true).create_new(true).open(&file);
    assert_eq!(errno(new), Errno::EEXIST);
    OpenOptions::new().append(true).open(&file).unwrap().write_all(b"ab").unwrap();
    assert_eq!(host("cat flags/file"), "0123456789ab");
    OpenOptions::new().write(true).truncate(true).open(&file).unwrap().write_all(b"cd").unwrap();
    assert_eq!(host("cat flags/file"), "cd");
    assert_eq!(errno(File::open(format!("{file}/below"))), Errno::ENOTDIR);
    assert_eq!(errno(File::open(format!("{path}/none"))), Errno::ENOENT);
    assert_eq!(errno(OpenOptions::new().write(true).open(&path)), Errno::EISDIR);
    // Who creates a file may write it, whatever its mode says of later.
    let mut closed =
        OpenOptions::new().write(true).create_new(true).mode(0o400).open(format!("{path}/0400")).unwrap();
    closed.write_all(b"x").unwrap();
    assert_eq!(host("stat -c %a flags/0400; cat flags/0400"), "400\nx");
}

fn many_entries() {
    let path = fresh("many");
    host("cd many; seq -f file-%05g 10000 | xargs touch");
    let mut found: Vec<_> =
        fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found.len(), 10_000);
    for (index, name) in found.iter().enumerate() {
        assert_eq!(*name, format!("file-{:05}", index + 1));
    }
    host("rm -r many");
}

fn a_directory_is_read_from_where_it_was() {
    let path = fresh("seek");
    host("cd seek; seq 500 | xargs touch");
    let path = std::ffi::CString::new(path).unwrap();
    // SAFETY: the directory is open until it is closed, and an entry is read before the next is asked for.
    unsafe {
        let dir = libc::opendir(path.as_ptr());
        assert!(!dir.is_null());
        let next = || {
            let entry = libc::readdir(dir);
            (!entry.is_null()).then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned())
        };
        for _ in 0..200 {
            next().unwrap();
        }
        let here = libc::telldir(dir);
        let rest: Vec<_> = std::iter::from_fn(next).collect();
        assert_eq!(rest.len(), 302);
        libc::seekdir(dir, here);
        assert_eq!(std::iter::from_fn(next).collect::<Vec<_>>(), rest);
        libc::rewinddir(dir);
        assert_eq!(std::iter::from_fn(next).count(), 502);
        libc::closedir(dir);
    }
}

fn entries_are_removed_while_they_are_read() {
    let path = fresh("removed");
    host("cd removed; mkdir a b; seq 2000 | xargs touch; cd a; seq 300 | xargs touch");
    fs::remove_dir_all(&path).unwrap();
    assert_eq!(errno(fs::metadata(&path)), Errno::ENOENT);
    host("! test -e removed");
}

fn names_of_all_kinds() {
    let path = fresh("names");
    let long = "n".repeat(255);
    for name in [" ", "\n", "a,b=c", "日本", "-rf", long.as_str(), "..."] {
        fs::write(format!("{path}/{name}"), name).unwrap();
        assert_eq!(fs::read_to_string(format!("{path}/{name}")).unwrap(), name);
    }
    assert_eq!(names(&path).len(), 7);
    assert_eq!(errno(File::create(format!("{path}/{long}n"))), Errno::ENAMETOOLONG);
}

fn directories_come_and_go() {
    let path = fresh("directories");
    fs::create_dir_all(format!("{path}/a/b/c")).unwrap();
    assert_eq!(errno(fs::create_dir(format!("{path}/a"))), Errno::EEXIST);
    assert_eq!(errno(fs::remove_dir(format!("{path}/a/b"))), Errno::ENOTEMPTY);
    assert_eq!(host("cd directories; find a | sort"), "a\na/b\na/b/c\n");
    place::chdir(&format!("{path}/a/b")).unwrap();
    fs::write("c/file", "x").unwrap();
    assert_eq!(std::env::current_dir().unwrap().to_str().unwrap(), format!("{path}/a/b"));
    fs::rename(format!("{path}/a"), format!("{path}/z")).unwrap();
    assert_eq!(std::env::current_dir().unwrap().to_str().unwrap(), format!("{path}/z/b"));
    assert_eq!(fs::read_to_string("c/file").unwrap(), "x");
    fs::remove_file("c/file").unwrap();
    fs::remove_dir("c").unwrap();
    fs::remove_dir(format!("{path}/z/b")).unwrap();
    assert_eq!(errno(File::create("file")), Errno::ENOENT);
    place::chdir("/").unwrap();
}

fn rename_moves_and_replaces() {
    let path = fresh("rename");
    for directory in ["a", "b", "a/full", "b/empty"] {
        fs::create_dir(format!("{path}/{directory}")).unwrap();
    }
    fs::write(format!("{path}/a/one"), "1").unwrap();
    fs::write(format!("{path}/b/two"), "2").unwrap();
    fs::write(format!("{path}/a/full/x"), "x").unwrap();
    let rename = |old: &str, new: &str| fs::rename(format!("{path}/{old}"), format!("{path}/{new}"));
    rename("a/one", "b/one").unwrap();
    rename("b/one", "b/two").unwrap();
    assert_eq!(host("cd rename; find . -type f | sort; cat b/two"), "./a/full/x\n./b/two\n1");
    assert_eq!(errno(rename("b/empty", "a/full")), Errno::ENOTEMPTY);
    rename("a/full", "b/empty").unwrap();
    assert_eq!(fs::read_to_string(format!("{path}/b/empty/x")).unwrap(), "x");
    assert_eq!(errno(rename("b", "b/empty/below")), Errno::EINVAL);
    assert_eq!(errno(rename("none", "some")), Errno::ENOENT);
    assert_eq!(errno(fs::rename(format!("{path}/b/two"), "/tmp/two")), Errno::EXDEV);
    let file = |name: &str| format!("{path}/{name}");
    assert_eq!(place::rename(&file("b/two"), &file("b/empty"), libc::RENAME_EXCHANGE), Err(Errno::EINVAL));
    assert_eq!(place::rename(&file("b/two"), &file("b/empty"), libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
}

fn links_count() {
    let path = fresh("links");
    let (one, two) = (format!("{path}/one"), format!("{path}/two"));
    fs::write(&one, "text").unwrap();
    fs::hard_link(&one, &two).unwrap();
    let (a, b) = (fs::metadata(&one).unwrap(), fs::metadata(&two).unwrap());
    assert_eq!((a.ino(), a.dev(), a.nlink()), (b.ino(), b.dev(), 2));
    assert_eq!(errno(fs::hard_link(&one, &two)), Errno::EEXIST);
    let open = OpenOptions::new().read(true).write(true).open(&one).unwrap();
    fs::remove_file(&two).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 1);
    // A second name comes and goes, as a lock's or a backup's: the file is known by the first one all the time.
    let mut log = OpenOptions::new().append(true).open(&one).unwrap();
    fs::hard_link(&one, &two).unwrap();
    fs::remove_file(&two).unwrap();
    log.write_all(b" goes on").unwrap();
    log.set_len(4).unwrap();
    assert_eq!(fs::read_to_string(&one).unwrap(), "text");
    // The name by which a file was opened goes; the file still has another.
    fs::hard_link(&one, &two).unwrap();
    fs::remove_file(&one).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 1);
    open.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    open.set_len(2).unwrap();
    assert_eq!(host("stat -c '%a %h' links/two; cat links/two"), "640 1\nte");
}

fn symbolic_links_lead_in_the_guest() {
    let path = fresh("symlinks");
    fs::write("/tmp/of-the-guest", "guest").unwrap();
    host(
        "cd symlinks; ln -s /tmp/of-the-guest absolute; ln -s file relative; ln -s self self; printf x > file",
    );
    assert_eq!(fs::read_to_string(format!("{path}/absolute")).unwrap(), "guest");
    assert_eq!(fs::read_to_string(format!("{path}/relative")).unwrap(), "x");
    assert_eq!(errno(File::open(format!("{path}/self"))), Errno::ELOOP);
    std::os::unix::fs::symlink("/any/where", format!("{path}/made")).unwrap();
    assert_eq!(fs::read_link(format!("{path}/made")).unwrap().to_str().unwrap(), "/any/where");
    assert_eq!(host("readlink symlinks/made"), "/any/where\n");
    assert_eq!(fs::symlink_metadata(format!("{path}/made")).unwrap().len(), 10);
    assert_eq!(errno(fs::read_link(format!("{path}/file"))), Errno::EINVAL);
}

fn attributes_are_the_hosts() {
    let path = fresh("attributes");
    let file = format!("{path}/file");
    fs::write(&file, "x").unwrap();
    place::chmod(&file, 0o4751).unwrap();
    assert_eq!(host("stat -c %a attributes/file").trim(), "4751");
    host("chmod 620 attributes/file; printf 12345 > attributes/file");
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.mode(), found.size()), (0o100620, 5));
    place::truncate(&file, 100).unwrap();
    assert_eq!(host("stat -c %s attributes/file").trim(), "100");
    if host("id -u").trim() == "0" {
        place::chown(&file, 1234, 4321).unwrap();
        assert_eq!(host("stat -c %u:%g attributes/file").trim(), "1234:4321");
        child::in_child(|| {
            place::become_user(77, 78);
            assert_eq!(errno(File::create("/volume/attributes/mine")), Errno::EACCES);
            assert_eq!(errno(File::open("/volume/attributes/file")), Errno::EACCES);
        });
        place::chmod(&path, 0o2777).unwrap();
        child::in_child(|| {
            place::become_user(77, 78);
            fs::write("/volume/attributes/mine", "x").unwrap();
            fs::create_dir("/volume/attributes/below").unwrap();
        });
        assert_eq!(
            host("cd attributes; chgrp 9 .; stat -c '%u %a' mine; stat -c '%u %A' below"),
            "77 644\n77 drwxr-sr-x\n"
        );
    }
}

fn times_are_set() {
    let path = format!("{}/file", fresh("times"));
    fs::write(&path, "x").unwrap();
    let time = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
    let set = fs::FileTimes::new().set_accessed(time(1_000_000)).set_modified(time(2_000_000));
    File::options().write(true).open(&path).unwrap().set_times(set).unwrap();
    assert_eq!(
        host("stat -c '%X %Y %y' times/file | cut -d. -f1,2 | cut -c1-45").trim().split(' ').next(),
        Some("1000000")
    );
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.atime(), found.mtime(), found.mtime_nsec()), (1_000_000, 2_000_000, 123_456_789));
    host("touch -d @3000000 times/file");
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 3_000_000);
}

fn a_file_without_a_name() {
    let path = fresh("nameless");
    let name = format!("{path}/file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&name).unwrap();
    file.write_all_at(&pattern(100_000, 1), 0).unwrap();
    fs::remove_file(&name).unwrap();
    host("test -z \"$(ls nameless)\"");
    // Another of this name is another file.
    fs::write(&name, "other").unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found.len(), found.nlink()), (100_000, 0));
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    file.set_len(50_000).unwrap();
    file.set_len(70_000).unwrap();
    let mut bytes = vec![1; 100_000];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 70_000);
    assert!(
        bytes[..50_000] == pattern(100_000, 1)[..50_000] && bytes[50_000..70_000].iter().all(|b| *b == 0)
    );
    file.write_all_at(b"end", 80_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 80_003);
    assert_eq!(file.read_at(&mut bytes, 70_000).unwrap(), 10_003);
    assert!(bytes[..10_000].iter().all(|b| *b == 0) && bytes[10_000..10_003] == *b"end");
    file.sync_all().unwrap();
    assert_eq!(host("cat nameless/file; stat -c ' %a' nameless/file"), "other 644\n");
}

fn a_file_that_was_replaced() {
    let path = fresh("replaced");
    let (old, new) = (format!("{path}/file"), format!("{path}/new"));
    fs::write(&old, "old content").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&old).unwrap();
    fs::write(&new, "new").unwrap();
    fs::rename(&new, &old).unwrap();
    file.set_len(3).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().nlink()), (3, 0));
    assert_eq!(host("cat replaced/file; stat -c ' %a' replaced/file"), "new 644\n");
    let mut bytes = [0; 10];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 3);
    assert_eq!(bytes[..3], *b"old");
}

fn a_removed_number_is_no_other_file() {
    let path = fresh("numbers");
    // The host's file system gives a number again as soon as it can.
    for round in 0..50 {
        let name = format!("{path}/{}", round % 2);
        fs::write(&name, format!("{round}")).unwrap();
        let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&name).unwrap();
        fs::remove_file(&name).unwrap();
        fs::write(&name, format!("again {round}")).unwrap();
        assert_eq!(fs::read_to_string(&name).unwrap(), format!("again {round}"));
        assert_eq!(place.metadata().unwrap().nlink(), 0);
        fs::remove_file(&name).unwrap();
    }
}

fn map(file: &File, len: usize, protection: i32, flags: i32) -> Result<Map, Errno> {
    Map::new(len, protection, flags, file.as_raw_fd(), 0)
}

/// # Safety
/// The mapping is there, and as long.
unsafe fn bytes(map: &Map, len: usize) -> &'static mut [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(map.address as *mut u8, len) }
}

fn private_mappings() {
    let path = format!("{}/file", fresh("private"));
    let content = pattern(300_000, 9);
    fs::write(&path, &content).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mapping = map(&file, 300_000, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE).unwrap();
    // SAFETY: it is mapped as long.
    let seen = unsafe { bytes(&mapping, 303_104) };
    assert!(seen[..300_000] == content[..] && seen[300_000..].iter().all(|byte| *byte == 0));
    seen[5000] ^= 0xff;
    assert_eq!(fs::read(&path).unwrap(), content);
}

fn shared_mappings_to_read() {
    let path = format!("{}/file", fresh("shared"));
    let content = pattern(20_000, 4);
    fs::write(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    let mapping = map(&file, 20_000, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    // SAFETY: it is mapped as long.
    assert!(unsafe { bytes(&mapping, 20_000) } == content);
    // A change of the host's shows when the file is mapped again.
    host("printf host | dd of=shared/file conv=notrunc bs=1 seek=8192 2>/dev/null");
    let again = map(&file, 20_000, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    // SAFETY: as above.
    unsafe {
        assert_eq!(bytes(&again, 20_000)[8192..8196], *b"host");
        assert_eq!(bytes(&mapping, 20_000)[8192..8196], *b"host");
    }
}

fn no_shared_mapping_to_write() {
    let path = format!("{}/file", fresh("stores"));
    fs::write(&path, "x").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for protection in [libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ] {
        assert_eq!(map(&file, 1, protection, libc::MAP_SHARED).err(), Some(Errno::EINVAL));
    }
}

fn a_mapping_follows_writes() {
    let path = format!("{}/file", fresh("follows"));
    fs::write(&path, vec![b'a'; 100_000]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let reader = File::open(&path).unwrap();
    let mapping = map(&reader, 200_000, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    // SAFETY: it is mapped, and the file gets as long.
    let seen = unsafe { bytes(&mapping, 200_000) };
    // SAFETY: inside the mapping.
    let at = |index: usize| unsafe { (seen.as_ptr().add(index)).read_volatile() };
    assert_eq!((at(0), at(99_999)), (b'a', b'a'));
    file.write_all_at(b"bbbb", 4094).unwrap();
    assert_eq!([at(4093), at(4094), at(4097), at(4098)], *b"abba");
    file.write_all_at(b"c", 199_999).unwrap();
    assert_eq!((at(100_000), at(199_999)), (0, b'c'));
}

fn a_mapping_follows_truncation() {
    let path = format!("{}/file", fresh("shrinks"));
    fs::write(&path, vec![b'a'; 12_288]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mapping = map(&file, 12_288, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE).unwrap();
    // SAFETY: it is mapped as long.
    let seen = unsafe { bytes(&mapping, 12_288) };
    assert_eq!(seen[12_000], b'a');
    file.set_len(5000).unwrap();
    assert_eq!((seen[4999], seen[5000]), (b'a', 0));
    let end = child::fork(|| {
        // SAFETY: the fault is what is tested.
        unsafe { (mapping.address as *const u8).add(8192).read_volatile() };
    })
    .wait();
    assert_eq!(end, child::End::Signal(libc::SIGBUS));
}

/// A file that is larger than what may stay of it is read through one mapping after the other.
fn pages_that_nobody_maps() {
    const PIECE: usize = 32 << 20;
    let total = procfs::Meminfo::read().get("MemTotal") as usize * 1024;
    let file = File::create_new(format!("{}/large", fresh("unmapped"))).unwrap();
    file.set_len((total / 2) as u64).unwrap();
    let file = File::open(format!("{VOLUME}/unmapped/large")).unwrap();
    let free = || procfs::Meminfo::read().get("MemFree") as usize * 1024;
    let before = free();
    for piece in 0..total / 2 / PIECE {
        let map = Fd::own(file.try_clone().unwrap().into_raw_fd() as usize)
            .map_at((piece * PIECE) as u64, PIECE, libc::PROT_READ, libc::MAP_PRIVATE)
            .unwrap();
        for page in (0..PIECE).step_by(16 * 4096) {
            assert_eq!(map.get(page), 0);
        }
    }
    let taken = before.saturating_sub(free());
    assert!(taken < total / 8 + 4 * PIECE, "{taken} of {total} bytes are taken");
}

fn programs_run_from_it() {
    let path = format!("{}/program", fresh("programs"));
    fs::copy("/proc/self/exe", &path).unwrap();
    place::chmod(&path, 0o755).unwrap();
    let output = Command::new(&path).arg("--list").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("programs_run_from_it\n"));
    let mut running = Command::new(&path).arg("--list").spawn().unwrap();
    running.wait().unwrap();
    fs::write(format!("{VOLUME}/programs/script"), format!("#!{path} --list\n")).unwrap();
    place::chmod(&format!("{VOLUME}/programs/script"), 0o755).unwrap();
    assert!(Command::new(format!("{VOLUME}/programs/script")).output().is_ok());
}

fn sync_reaches_the_host() {
    let path = fresh("sync");
    let mut file = File::create(format!("{path}/file")).unwrap();
    file.write_all(b"kept").unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    File::open(format!("{path}/file")).unwrap().sync_all().unwrap();
    let mut direct =
        OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(format!("{path}/file")).unwrap();
    direct.write_all(b"K").unwrap();
    assert_eq!(host("cat sync/file"), "Kept");
}

fn pipes_but_no_devices() {
    let path = fresh("special");
    let pipe = format!("{path}/pipe");
    let device = libc::makedev(1, 3);
    assert_eq!(place::mknod(&format!("{path}/null"), libc::S_IFCHR | 0o600, device), Err(Errno::EPERM));
    assert_eq!(host("ls special"), "");
    match place::mknod(&pipe, libc::S_IFIFO | 0o600, 0) {
        Ok(()) => {}
        Err(Errno::EPERM) => skip("the host's QEMU makes no pipes"),
        Err(error) => panic!("{error}"),
    }
    let reader = thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    fs::write(&pipe, "through").unwrap();
    assert_eq!(reader.join().unwrap(), "through");
    assert_eq!(host("ls special"), "pipe\n");
}

fn sockets_are_found_by_their_name() {
    let path = format!("{}/socket", fresh("socket"));
    let listener = match std::os::unix::net::UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => skip("the host's QEMU makes no sockets"),
        Err(error) => panic!("{error}"),
    };
    let mut near = std::os::unix::net::UnixStream::connect(&path).unwrap();
    near.write_all(b"x").unwrap();
    assert_eq!(listener.accept().unwrap().0.read(&mut [0; 4]).unwrap(), 1);
    assert_eq!(host("ls socket"), "socket\n");
    drop(listener);
    let refused = std::os::unix::net::UnixStream::connect(&path);
    assert_eq!(errno(refused), Errno::ECONNREFUSED);
}

fn nothing_is_written_read_only() {
    fresh("read-only");
    fs::write(format!("{VOLUME}/read-only/file"), "x").unwrap();
    let path = "/volume-ro/read-only";
    assert_eq!(fs::read_to_string(format!("{path}/file")).unwrap(), "x");
    let file = format!("{path}/file");
    assert_eq!(errno(File::create(format!("{path}/new"))), Errno::EROFS);
    assert_eq!(errno(OpenOptions::new().write(true).open(&file)), Errno::EROFS);
    assert_eq!(errno(fs::create_dir(format!("{path}/new"))), Errno::EROFS);
    assert_eq!(errno(fs::remove_file(&file)), Errno::EROFS);
    assert_eq!(errno(fs::rename(&file, format!("{path}/other"))), Errno::EROFS);
    assert_eq!(errno(fs::hard_link(&file, format!("{path}/other"))), Errno::EROFS);
    assert_eq!(place::chmod(&file, 0o777), Err(Errno::EROFS));
    assert_eq!(place::truncate(&file, 0), Err(Errno::EROFS));
    assert_eq!(place::mount("none", "/volume-ro", "", libc::MS_REMOUNT, ""), Ok(()));
    // The machine itself does not let it be written, whatever the guest's kernel believes.
    assert_eq!(errno(File::create(format!("{path}/new"))), Errno::EROFS);
    assert_eq!(errno(OpenOptions::new().write(true).open(&file)), Errno::EROFS);
    assert_eq!(place::mount("none", "/volume-ro", "", libc::MS_REMOUNT | libc::MS_RDONLY, ""), Ok(()));
    assert_eq!(host("ls read-only; cat read-only/file"), "file\nx");
}

fn it_is_mounted_and_unmounted() {
    let place = "/tmp/another";
    fs::create_dir_all(place).unwrap();
    let mount = |tag: &str, options: &str| place::mount(tag, place, "9p", 0, options);
    assert_eq!(mount("none-such", "trans=virtio"), Err(Errno::ENOENT));
    assert_eq!(mount("volume0", "trans=tcp"), Err(Errno::EINVAL));
    assert_eq!(mount("volume0", "trans=virtio,nonsense"), Err(Errno::EINVAL));
    for _ in 0..3 {
        mount("volume0", "trans=virtio,version=9p2000.L,msize=104857600").unwrap();
        fs::write(format!("{place}/mounted"), "twice").unwrap();
        assert_eq!(fs::read_to_string(format!("{VOLUME}/mounted")).unwrap(), "twice");
        let above = fs::metadata(format!("{place}/..")).unwrap();
        assert_eq!(above.ino(), fs::metadata("/tmp").unwrap().ino());
        let open = File::open(format!("{place}/mounted")).unwrap();
        assert_eq!(place::umount(place, 0), Err(Errno::EBUSY));
        drop(open);
        place::umount(place, 0).unwrap();
    }
    assert_eq!(names(place).len(), 0);
}

fn many_write_at_once() {
    let path = fresh("at-once");
    let threads: Vec<_> = (0..16)
        .map(|seed| {
            let path = format!("{path}/{seed}");
            thread::spawn(move || {
                for round in 0..10 {
                    let content = pattern(70_000 + 1000 * seed, seed + round);
                    fs::write(&path, &content).unwrap();
                    assert_eq!(fs::read(&path).unwrap(), content);
                    let moved = format!("{path}-{round}");
                    fs::rename(&path, &moved).unwrap();
                    assert_eq!(fs::metadata(&moved).unwrap().len() as usize, content.len());
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(host("ls at-once | wc -l").trim(), "160");
}

fn appends_do_not_overlap() {
    let path = format!("{}/log", fresh("appends"));
    File::create(&path).unwrap();
    let children: Vec<_> = (0..6)
        .map(|who| {
            let path = path.clone();
            child::fork(move || {
                let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                for _ in 0..100 {
                    file.write_all(format!("{}\n", format!("{who}").repeat(50)).as_bytes()).unwrap();
                }
            })
        })
        .collect();
    children.into_iter().for_each(child::Child::ok);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 600);
    assert!(text.lines().all(|line| line.len() == 50 && line.bytes().all(|byte| byte == line.as_bytes()[0])));
}

fn killed_while_they_wait() {
    let path = fresh("killed");
    for round in 0..40_u64 {
        let children: Vec<_> = (0..4)
            .map(|who| {
                let path = path.clone();
                child::fork(move || {
                    loop {
                        let name = format!("{path}/{who}");
                        fs::write(&name, pattern(200_000, who)).unwrap();
                        File::open(&name).unwrap().sync_all().unwrap();
                        let _ = fs::rename(&name, format!("{name}-moved"));
                        let _ = fs::remove_file(format!("{name}-moved"));
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(5 + round));
        for child in children {
            child.kill(libc::SIGKILL);
            assert_eq!(child.wait(), child::End::Signal(libc::SIGKILL));
        }
    }
    // What was on its way is over, and all places are free again.
    let content = pattern(1_000_000, 5);
    fs::write(format!("{path}/after"), &content).unwrap();
    assert_eq!(fs::read(format!("{path}/after")).unwrap(), content);
    host("rm -r killed");
}

fn nothing_outside_is_reached() {
    let path = fresh("outside");
    host(
        "test -f ../secret; cd outside; ln -s ../../secret up; ln -s \"$(cd ../..; pwd)/secret\" absolute; ln -s /etc/passwd passwd",
    );
    let secret = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.contains("the host's own"));
    for name in ["up", "absolute"] {
        assert_eq!(errno(fs::read_to_string(format!("{path}/{name}"))), Errno::ENOENT, "{name}");
    }
    // The guest's own, or none.
    assert_eq!(fs::read(format!("{path}/passwd")).ok(), fs::read("/etc/passwd").ok());
    let root = fs::metadata("/").unwrap();
    for above in ["/volume/..", "/volume/../..", "/volume/outside/../.."] {
        let found = fs::metadata(above).unwrap();
        assert_eq!((found.dev(), found.ino()), (root.dev(), root.ino()), "{above}");
    }
    assert!(!secret("/volume/../secret") && !secret("/volume/outside/../../secret"));
    // A link that the guest makes leads nowhere else.
    std::os::unix::fs::symlink("../../secret", format!("{path}/own")).unwrap();
    assert!(!secret(&format!("{path}/own")));
    assert!(fs::hard_link(format!("{path}/own"), format!("{path}/hard")).is_ok());
    assert!(!secret(&format!("{path}/hard")));
}

fn a_race_of_the_host_leads_nowhere() {
    let path = fresh("race");
    host(
        "cd race; mkdir real; echo inside > real/secret; \
         (i=0; while [ $i -lt 400 ]; do mv real away; ln -s ../.. real; rm real; mv away real; i=$((i+1)); done; \
         touch over) > /dev/null 2>&1 &",
    );
    let mover = thread::spawn({
        let path = path.clone();
        move || {
            fs::create_dir_all(format!("{path}/one/two")).unwrap();
            fs::create_dir_all(format!("{path}/other")).unwrap();
            for _ in 0..200 {
                fs::rename(format!("{path}/one/two"), format!("{path}/other/two")).unwrap();
                fs::rename(format!("{path}/other/two"), format!("{path}/one/two")).unwrap();
            }
        }
    });
    let mut found = 0;
    while fs::metadata(format!("{path}/over")).is_err() || !mover.is_finished() {
        if let Ok(text) = fs::read_to_string(format!("{path}/real/secret")) {
            assert_eq!(text, "inside\n");
            found += 1;
        }
        for above in ["one/two/../../..", "one/two/../../../.."] {
            if let Ok(text) = fs::read_to_string(format!("{path}/{above}/secret")) {
                panic!("{above}: {text}");
            }
        }
    }
    mover.join().unwrap();
    assert_eq!(fs::read_to_string(format!("{path}/real/secret")).unwrap(), "inside\n");
    println!("# {found} reads met the directory");
}
