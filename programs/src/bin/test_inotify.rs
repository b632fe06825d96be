//! inotify(7).

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use libc::{IN_ACCESS, IN_ALL_EVENTS, IN_ATTRIB, IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE};
use libc::{
    IN_DELETE_SELF, IN_IGNORED, IN_ISDIR, IN_MODIFY, IN_MOVE_SELF, IN_MOVED_FROM, IN_MOVED_TO, IN_OPEN,
};
use libc::{
    IN_DONT_FOLLOW, IN_EXCL_UNLINK, IN_MASK_ADD, IN_MASK_CREATE, IN_NONBLOCK, IN_ONESHOT, IN_ONLYDIR,
};
use libc::{IN_Q_OVERFLOW, SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch};
use roundtable_programs::child::fork;
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::{Errno, procfs, row, tests};

tests! { a_file, a_directory, renames, removal, hard_links, open_while_removed, masks, one_shot, errors, same_events_are_one,
overflow, reading, waits, limits, permissions, unnamed_files, many_watches: 60 }

struct Inotify(Fd);

/// Descriptor, mask, name. Cookies are looked at where they matter.
type Event = (i32, u32, String);

impl Inotify {
    fn new() -> Inotify {
        Inotify(Fd::own(
            call(SYS_inotify_init1, [IN_NONBLOCK as usize, 0, 0, 0, 0, 0]).expect("inotify_init1"),
        ))
    }

    fn add(&self, path: &str, mask: u32) -> Answer {
        let path = CString::new(path).unwrap();
        call(SYS_inotify_add_watch, [self.0.raw() as usize, path.as_ptr() as usize, mask as usize, 0, 0, 0])
    }

    fn watch(&self, path: &str, mask: u32) -> i32 {
        self.add(path, mask).expect("inotify_add_watch") as i32
    }

    fn remove(&self, descriptor: i32) -> Answer {
        call(SYS_inotify_rm_watch, [self.0.raw() as usize, descriptor as usize, 0, 0, 0, 0])
    }

    fn all(&self) -> Vec<(Event, u32)> {
        let mut events = Vec::new();
        let mut buffer = [0u8; 8192];
        loop {
            let len = match self.0.read(&mut buffer) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return events,
                Err(error) => panic!("read: {error}"),
            };
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
                let name_len = word(12) as usize;
                assert_eq!(name_len % 16, 0);
                let name = rest[16..16 + name_len].split(|byte| *byte == 0).next().unwrap();
                let name = String::from_utf8(name.to_vec()).unwrap();
                events.push(((word(0) as i32, word(4), name), word(8)));
                rest = &rest[16 + name_len..];
            }
        }
    }

    /// What has happened since.
    fn events(&self) -> Vec<Event> {
        self.all().into_iter().map(|(event, _)| event).collect()
    }

    /// The masks of it only.
    fn masks(&self) -> Vec<u32> {
        self.all().into_iter().map(|((_, mask, _), _)| mask).collect()
    }
}

/// A new directory that is empty.
fn directory(name: &str) -> String {
    let path = format!("/tmp/inotify-{name}");
    let _ = fs::remove_dir_all(&path);
    fs::create_dir(&path).unwrap();
    path
}

fn a_file() {
    let path = format!("{}/file", directory("file"));
    fs::write(&path, "text").unwrap();
    let inotify = Inotify::new();
    let wd = inotify.watch(&path, IN_ALL_EVENTS);
    assert_eq!(wd, 1);
    let mut buffer = [0; 8];
    let file = Fd::open(&path, libc::O_RDWR).unwrap();
    assert_eq!(file.read(&mut buffer), Ok(4));
    // Nothing read is no access.
    assert_eq!(file.read(&mut buffer), Ok(0));
    assert_eq!(file.write(b"more"), Ok(4));
    file.truncate(2).unwrap();
    drop(file);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    drop(Fd::open(&path, libc::O_RDONLY).unwrap());
    // A reference to the place is no open file.
    drop(Fd::open(&path, libc::O_PATH).unwrap());
    let want = [IN_OPEN, IN_ACCESS, IN_MODIFY, IN_CLOSE_WRITE, IN_ATTRIB, IN_OPEN, IN_CLOSE_NOWRITE];
    assert_eq!(inotify.masks(), want);
    fs::write(&path, "").unwrap();
    assert_eq!(inotify.masks(), [IN_OPEN, IN_MODIFY, IN_CLOSE_WRITE]);
}

fn a_directory() {
    let path = directory("directory");
    let inotify = Inotify::new();
    let wd = inotify.watch(&path, IN_ALL_EVENTS);
    let event = |mask, name: &str| (wd, mask, name.to_string());
    fs::write(format!("{path}/a"), "x").unwrap();
    let want = [IN_CREATE, IN_OPEN, IN_MODIFY, IN_CLOSE_WRITE].map(|mask| event(mask, "a"));
    assert_eq!(inotify.events(), want);
    fs::create_dir(format!("{path}/sub")).unwrap();
    symlink("a", format!("{path}/link")).unwrap();
    assert_eq!(inotify.events(), [event(IN_CREATE | IN_ISDIR, "sub"), event(IN_CREATE, "link")]);
    fs::set_permissions(format!("{path}/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir(format!("{path}/sub")).unwrap();
    fs::remove_file(format!("{path}/link")).unwrap();
    let want =
        [event(IN_ATTRIB | IN_ISDIR, "sub"), event(IN_DELETE | IN_ISDIR, "sub"), event(IN_DELETE, "link")];
    assert_eq!(inotify.events(), want);
    // The directory itself, without a name.
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    let want = [IN_OPEN, IN_ACCESS, IN_CLOSE_NOWRITE].map(|mask| event(mask | IN_ISDIR, ""));
    assert_eq!(inotify.events(), want);
}

fn renames() {
    let path = directory("renames");
    let (one, two) = (format!("{path}/one"), format!("{path}/two"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    fs::write(format!("{one}/file"), "").unwrap();
    fs::write(format!("{two}/old"), "").unwrap();
    let inotify = Inotify::new();
    let (from, to) = (inotify.watch(&one, IN_ALL_EVENTS), inotify.watch(&two, IN_ALL_EVENTS));
    let file = inotify.watch(&format!("{one}/file"), IN_ALL_EVENTS);
    let old = inotify.watch(&format!("{two}/old"), IN_ALL_EVENTS);
    fs::rename(format!("{one}/file"), format!("{two}/new")).unwrap();
    let events = inotify.all();
    let cookie = events[0].1;
    assert_ne!(cookie, 0);
    let event = |wd, mask, name: &str, cookie| ((wd, mask, name.to_string()), cookie);
    let want = [
        event(from, IN_MOVED_FROM, "file", cookie),
        event(to, IN_MOVED_TO, "new", cookie),
        event(file, IN_MOVE_SELF, "", 0),
    ];
    assert_eq!(events, want);
    // Onto another one, which goes.
    fs::rename(format!("{two}/new"), format!("{two}/old")).unwrap();
    let mut events = inotify.events();
    events.sort();
    let name = |name: &str| name.to_string();
    let mut want = vec![
        (to, IN_MOVED_FROM, name("new")),
        (to, IN_MOVED_TO, name("old")),
        (file, IN_MOVE_SELF, name("")),
        (old, IN_ATTRIB, name("")),
        (old, IN_DELETE_SELF, name("")),
        (old, IN_IGNORED, name("")),
    ];
    want.sort();
    assert_eq!(events, want);
    fs::rename(&one, &two).unwrap_err();
}

fn removal() {
    let path = directory("removal");
    let (file, sub) = (format!("{path}/file"), format!("{path}/sub"));
    fs::write(&file, "").unwrap();
    fs::create_dir(&sub).unwrap();
    let inotify = Inotify::new();
    let wd = inotify.watch(&file, IN_ALL_EVENTS);
    let dir = inotify.watch(&sub, IN_ALL_EVENTS);
    fs::remove_file(&file).unwrap();
    let of = |wd, masks: &[u32]| masks.iter().map(|mask| (wd, *mask, String::new())).collect::<Vec<_>>();
    assert_eq!(inotify.events(), of(wd, &[IN_ATTRIB, IN_DELETE_SELF, IN_IGNORED]));
    fs::remove_dir(&sub).unwrap();
    assert_eq!(inotify.events(), of(dir, &[IN_DELETE_SELF, IN_IGNORED]));
    // The watch is over.
    assert_eq!(inotify.remove(wd), Err(Errno::EINVAL));
    // Numbers are not given again soon.
    fs::write(&file, "").unwrap();
    assert_eq!(inotify.watch(&file, IN_ALL_EVENTS), 3);
    assert_eq!(inotify.remove(3), Ok(0));
    assert_eq!(inotify.events(), of(3, &[IN_IGNORED]));
    fs::write(&file, "").unwrap();
    assert_eq!(inotify.events(), []);
}

fn hard_links() {
    let path = directory("links");
    let (one, two) = (format!("{path}/one"), format!("{path}/two"));
    fs::write(&one, "").unwrap();
    let inotify = Inotify::new();
    inotify.watch(&one, IN_ALL_EVENTS);
    // One watch for one file, whatever its names are.
    fs::hard_link(&one, &two).unwrap();
    assert_eq!(inotify.add(&two, IN_ALL_EVENTS), Ok(1));
    assert_eq!(inotify.masks(), [IN_ATTRIB]);
    fs::remove_file(&one).unwrap();
    assert_eq!(inotify.masks(), [IN_ATTRIB]);
    fs::remove_file(&two).unwrap();
    assert_eq!(inotify.masks(), [IN_ATTRIB, IN_DELETE_SELF, IN_IGNORED]);
}

fn open_while_removed() {
    let path = directory("open");
    let name = format!("{path}/file");
    let file = Fd::open(&name, libc::O_CREAT | libc::O_RDWR).unwrap();
    let (inotify, excluding) = (Inotify::new(), Inotify::new());
    inotify.watch(&name, IN_ALL_EVENTS);
    excluding.watch(&path, IN_MODIFY | IN_EXCL_UNLINK);
    fs::remove_file(&name).unwrap();
    assert_eq!(inotify.masks(), [IN_ATTRIB]);
    assert_eq!(file.write(b"x"), Ok(1));
    assert_eq!(inotify.masks(), [IN_MODIFY]);
    assert_eq!(excluding.masks(), []);
    drop(file);
    assert_eq!(inotify.masks(), [IN_CLOSE_WRITE, IN_DELETE_SELF, IN_IGNORED]);
}

fn masks() {
    let path = format!("{}/file", directory("masks"));
    fs::write(&path, "").unwrap();
    let inotify = Inotify::new();
    let wd = inotify.watch(&path, IN_MODIFY);
    assert_eq!(inotify.add(&path, IN_MASK_CREATE | IN_OPEN), Err(Errno::EEXIST));
    assert_eq!(inotify.watch(&path, IN_OPEN | IN_MASK_ADD), wd);
    fs::write(&path, "x").unwrap();
    assert_eq!(inotify.masks(), [IN_OPEN, IN_MODIFY]);
    // In its place, not beside it.
    assert_eq!(inotify.watch(&path, IN_CLOSE_WRITE), wd);
    fs::write(&path, "x").unwrap();
    assert_eq!(inotify.masks(), [IN_CLOSE_WRITE]);
}

fn one_shot() {
    let path = directory("shot");
    let inotify = Inotify::new();
    let wd = inotify.watch(&path, IN_CREATE | IN_ONESHOT);
    fs::write(format!("{path}/a"), "").unwrap();
    fs::write(format!("{path}/b"), "").unwrap();
    assert_eq!(inotify.events(), [(wd, IN_CREATE, "a".into()), (wd, IN_IGNORED, String::new())]);
    assert_eq!(inotify.remove(wd), Err(Errno::EINVAL));
}

fn errors() {
    let mut rows = Rows::default();
    let path = directory("errors");
    let file = format!("{path}/file");
    fs::write(&file, "").unwrap();
    symlink("file", format!("{path}/link")).unwrap();
    let inotify = Inotify::new();
    let other = Inotify(Fd::open(&path, libc::O_RDONLY).unwrap());
    let none = Inotify(Fd::own(call(libc::SYS_dup, [inotify.0.raw() as usize, 0, 0, 0, 0, 0]).unwrap()));
    row!(rows, EINVAL, call(SYS_inotify_init1, [1, 0, 0, 0, 0, 0]));
    row!(rows, EINVAL, inotify.add(&path, 0));
    row!(rows, EINVAL, inotify.add(&path, 0x0080_0000));
    row!(rows, EINVAL, inotify.add(&path, IN_MASK_ADD | IN_MASK_CREATE | IN_OPEN));
    row!(rows, EINVAL, other.add(&path, IN_OPEN));
    row!(rows, EINVAL, other.remove(1));
    row!(rows, EBADF, call(SYS_inotify_add_watch, [usize::MAX, 8, IN_OPEN as usize, 0, 0, 0]));
    row!(rows, EBADF, call(SYS_inotify_rm_watch, [usize::MAX, 1, 0, 0, 0, 0]));
    row!(rows, EFAULT, call(SYS_inotify_add_watch, [none.0.raw() as usize, 8, IN_OPEN as usize, 0, 0, 0]));
    row!(rows, ENOENT, inotify.add("/tmp/inotify-errors/none", IN_OPEN));
    row!(rows, ENOTDIR, inotify.add(&file, IN_OPEN | IN_ONLYDIR));
    row!(rows, EINVAL, inotify.remove(1));
    row!(rows, EINVAL, inotify.remove(-1));
    // The link itself, and what it leads to.
    let link = format!("{path}/link");
    assert_ne!(inotify.watch(&link, IN_OPEN), inotify.watch(&link, IN_OPEN | IN_DONT_FOLLOW));
    row!(rows, EBADF, inotify.0.write(b"x"));
    rows.finish();
}

fn same_events_are_one() {
    let path = format!("{}/file", directory("same"));
    fs::write(&path, "").unwrap();
    let inotify = Inotify::new();
    inotify.watch(&path, IN_MODIFY | IN_ATTRIB);
    let file = Fd::open(&path, libc::O_RDWR).unwrap();
    for _ in 0..5 {
        assert_eq!(file.write(b"x"), Ok(1));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(file.write(b"x"), Ok(1));
    assert_eq!(inotify.masks(), [IN_MODIFY, IN_ATTRIB, IN_MODIFY]);
}

fn overflow() {
    let limit = "/proc/sys/fs/inotify/max_queued_events";
    let before = procfs::number(limit);
    assert_eq!(before, 16384);
    procfs::write(limit, 3).unwrap();
    let inotify = Inotify::new();
    let path = directory("overflow");
    let wd = inotify.watch(&path, IN_CREATE);
    for name in 0..5 {
        fs::write(format!("{path}/{name}"), "").unwrap();
    }
    let event = |name: i32| (wd, IN_CREATE, name.to_string());
    assert_eq!(inotify.events(), [event(0), event(1), event(2), (-1, IN_Q_OVERFLOW, String::new())]);
    fs::write(format!("{path}/5"), "").unwrap();
    assert_eq!(inotify.events(), [event(5)]);
    procfs::write(limit, before).unwrap();
}

fn reading() {
    let path = directory("reading");
    let inotify = Inotify::new();
    inotify.watch(&path, IN_CREATE);
    fs::write(format!("{path}/a"), "").unwrap();
    fs::write(format!("{path}/name-of-sixteen-"), "").unwrap();
    let mut waiting = 0i32;
    // SAFETY: the integer lives through the call.
    assert_eq!(unsafe { libc::ioctl(inotify.0.raw(), libc::FIONREAD, &mut waiting) }, 0);
    assert_eq!(waiting, 16 + 16 + 16 + 32);
    let mut buffer = [0; 100];
    assert_eq!(inotify.0.read(&mut buffer[..31]), Err(Errno::EINVAL));
    // Whole events only.
    assert_eq!(inotify.0.read(&mut buffer[..50]), Ok(32));
    assert_eq!(inotify.0.read(&mut buffer), Ok(48));
    assert_eq!(inotify.0.read(&mut buffer), Err(Errno::EAGAIN));
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", inotify.0.raw())).unwrap();
    assert!(info.contains("inotify wd:1 ino:"), "{info}");
}

fn waits() {
    let path = directory("waits");
    let inotify = Inotify(Fd::own(call(SYS_inotify_init1, [0; 6]).unwrap()));
    inotify.watch(&path, IN_CREATE);
    let mut entry = libc::pollfd { fd: inotify.0.raw(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    assert_eq!(unsafe { libc::poll(&mut entry, 1, 0) }, 0);
    let reader = fork(|| assert_eq!(inotify.0.read(&mut [0; 100]), Ok(32)));
    procfs::wait_for_sleep(reader.pid);
    fs::write(format!("{path}/a"), "").unwrap();
    reader.ok();
    fs::write(format!("{path}/b"), "").unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::poll(&mut entry, 1, 0) }, 1);
}

fn limits() {
    let mut rows = Rows::default();
    let path = |name: &str| format!("/proc/sys/fs/inotify/{name}");
    assert_eq!(procfs::number(&path("max_user_instances")), 128);
    let watches = procfs::number(&path("max_user_watches"));
    assert!(watches >= 8192, "{watches}");
    fork(|| {
        // A user who has nothing yet.
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(4711) }, 0);
        let all: Vec<_> = (0..128).map(|_| Inotify::new()).collect();
        assert_eq!(call(SYS_inotify_init1, [0; 6]), Err(Errno::EMFILE));
        drop(all);
        Inotify::new();
    })
    .ok();
    let directory = directory("limits");
    for name in 0..3 {
        fs::write(format!("{directory}/{name}"), "").unwrap();
    }
    procfs::write(&path("max_user_watches"), 2).unwrap();
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(4711) }, 0);
        let inotify = Inotify::new();
        let wd = inotify.watch(&format!("{directory}/0"), IN_OPEN);
        inotify.watch(&format!("{directory}/1"), IN_OPEN);
        assert_eq!(inotify.add(&format!("{directory}/2"), IN_OPEN), Err(Errno::ENOSPC));
        assert_eq!(inotify.remove(wd), Ok(0));
        inotify.watch(&format!("{directory}/2"), IN_OPEN);
    })
    .ok();
    procfs::write(&path("max_user_watches"), watches).unwrap();
    row!(rows, OK, Inotify::new().add(&directory, IN_OPEN));
    rows.finish();
}

fn permissions() {
    let path = format!("{}/file", directory("permissions"));
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o200)).unwrap();
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(Inotify::new().add(&path, IN_OPEN), Err(Errno::EACCES));
    })
    .ok();
}

fn many_watches() {
    // Files come and go while watches do.
    let path = directory("many");
    let churn = fork(|| {
        for round in 0..200 {
            let name = format!("{path}/{}", round % 7);
            fs::write(&name, "x").unwrap();
            fs::remove_file(&name).unwrap();
        }
    });
    let mut seen = 0;
    for round in 0..200 {
        let inotify = Inotify::new();
        inotify.watch(&path, IN_ALL_EVENTS);
        let _ = inotify.add(&format!("{path}/{}", round % 7), IN_ALL_EVENTS);
        seen += inotify.events().len();
    }
    churn.ok();
    assert!(seen < 1_000_000);
    let inotify = Inotify::new();
    let wd = inotify.watch(&path, IN_CREATE);
    fs::write(format!("{path}/last"), "").unwrap();
    assert_eq!(inotify.events(), [(wd, IN_CREATE, "last".into())]);
}

/// A file without a name tells the directory that it was made for, by what stands for a name.
fn unnamed_files() {
    let directory = directory("unnamed");
    let inotify = Inotify::new();
    let watch = inotify.watch(&directory, IN_ALL_EVENTS);
    let excluding = Inotify::new();
    excluding.watch(&directory, IN_ALL_EVENTS | IN_EXCL_UNLINK);
    let file = Fd::open(&directory, libc::O_TMPFILE | libc::O_RDWR).expect("O_TMPFILE");
    let name = format!("#{}", file.stat().st_ino);
    file.write(b"x").expect("write");
    drop(file);
    let expected = [IN_OPEN, IN_MODIFY, IN_CLOSE_WRITE].map(|event| (watch, event, name.clone()));
    assert_eq!(inotify.events(), expected);
    assert_eq!(excluding.events(), []);
}
