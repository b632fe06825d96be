//! POSIX message queues: mq_overview(7).

use std::ffi::CString;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use libc::{
    O_CREAT, O_EXCL, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open,
    SYS_mq_timedreceive, SYS_mq_timedsend, SYS_mq_unlink,
};
use roundtable_programs::child::{self, End, fork};
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::place::{self, Place};
use roundtable_programs::procfs::wait_for_sleep;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{self, pid};
use roundtable_programs::{Errno, namespaces, procfs, row, tests};

tests! { order_and_attributes, waiting_and_timeouts, poll_and_text, notification, names_and_errors, limits, mounted,
mounted_queues_are_counted, only_queues_are_made, strangers_wait_for_nobody }

struct Queue(Fd);

impl Queue {
    fn open(name: &str, flags: i32, attributes: Option<(i64, i64)>) -> Result<Queue, Errno> {
        let raw = attributes.map(|(messages, size)| [0, messages, size, 0, 0, 0, 0, 0i64]);
        let address = raw.as_ref().map_or(0, |raw| raw.as_ptr() as usize);
        let name = CString::new(name).unwrap();
        let arguments = [name.as_ptr() as usize, flags as usize, 0o640, address, 0, 0];
        call(SYS_mq_open, arguments).map(|fd| Queue(Fd::own(fd)))
    }

    fn new(name: &str, messages: i64, size: i64) -> Queue {
        let _ = unlink(name);
        Queue::open(name, O_CREAT | O_EXCL | O_RDWR, Some((messages, size))).expect("mq_open")
    }

    fn raw(&self) -> usize {
        self.0.raw() as usize
    }

    fn send(&self, body: &[u8], priority: usize) -> Answer {
        self.send_until(body, priority, 0)
    }

    fn send_until(&self, body: &[u8], priority: usize, time: usize) -> Answer {
        call(SYS_mq_timedsend, [self.raw(), body.as_ptr() as usize, body.len(), priority, time, 0])
    }

    fn receive_until(&self, size: usize, time: usize) -> Result<(Vec<u8>, u32), Errno> {
        let mut body = vec![0u8; size];
        let mut priority = 0u32;
        let out = (&raw mut priority) as usize;
        let arguments = [self.raw(), body.as_mut_ptr() as usize, size, out, time, 0];
        let len = call(SYS_mq_timedreceive, arguments)?;
        body.truncate(len);
        Ok((body, priority))
    }

    fn receive(&self) -> Result<(Vec<u8>, u32), Errno> {
        self.receive_until(8192, 0)
    }

    /// Flags, messages at the most, size, messages now.
    fn attributes(&self) -> [i64; 4] {
        let mut raw = [0i64; 8];
        let out = raw.as_mut_ptr() as usize;
        assert_eq!(call(SYS_mq_getsetattr, [self.raw(), 0, out, 0, 0, 0]), Ok(0));
        [raw[0], raw[1], raw[2], raw[3]]
    }

    fn set_flags(&self, flags: i64) -> Answer {
        let raw = [flags, 0, 0, 0, 0, 0, 0, 0];
        call(SYS_mq_getsetattr, [self.raw(), raw.as_ptr() as usize, 0, 0, 0, 0])
    }

    fn notify(&self, event: Option<[u64; 8]>) -> Answer {
        let address = event.as_ref().map_or(0, |event| event.as_ptr() as usize);
        call(SYS_mq_notify, [self.raw(), address, 0, 0, 0, 0])
    }
}

fn unlink(name: &str) -> Answer {
    let name = CString::new(name).unwrap();
    call(SYS_mq_unlink, [name.as_ptr() as usize, 0, 0, 0, 0, 0])
}

/// `struct sigevent` for a signal with a value.
fn event(kind: i32, signal: i32, value: u64) -> Option<[u64; 8]> {
    Some([value, (kind as u64) << 32 | signal as u64, 0, 0, 0, 0, 0, 0])
}

fn order_and_attributes() {
    let queue = Queue::new("order", 4, 100);
    for (body, priority) in [("a", 1), ("b", 5), ("c", 1), ("d", 5)] {
        assert_eq!(queue.send(body.as_bytes(), priority), Ok(0));
    }
    assert_eq!(queue.attributes(), [0, 4, 100, 4]);
    let order: Vec<_> = (0..4).map(|_| queue.receive().unwrap()).collect();
    let want = [("b", 5), ("d", 5), ("a", 1), ("c", 1)];
    assert_eq!(order, want.map(|(body, priority)| (body.as_bytes().to_vec(), priority)));
    assert_eq!(queue.send(b"", 0), Ok(0));
    assert_eq!(queue.receive(), Ok((vec![], 0)), "an empty message is one");
    assert_eq!(queue.set_flags(i64::from(O_NONBLOCK)), Ok(0));
    assert_eq!(queue.attributes(), [i64::from(O_NONBLOCK), 4, 100, 0]);
    assert_eq!(queue.set_flags(1), Err(Errno::EINVAL));
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::fcntl(queue.0.raw(), libc::F_GETFD) }, libc::FD_CLOEXEC);
    // A queue lives on without its name.
    assert_eq!(unlink("order"), Ok(0));
    assert_eq!(queue.send(b"x", 0), Ok(0));
    assert_eq!(Queue::open("order", O_RDONLY, None).err(), Some(Errno::ENOENT));
    let standard = Queue::open("standard", O_CREAT | O_RDWR, None).expect("mq_open");
    assert_eq!(standard.attributes(), [0, 10, 8192, 0]);
    assert_eq!(unlink("standard"), Ok(0));
}

/// The time of day, `milliseconds` from now.
fn soon(milliseconds: i64) -> [i64; 2] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let sum = now.as_nanos() as i64 + milliseconds * 1_000_000;
    [sum / 1_000_000_000, sum % 1_000_000_000]
}

fn waiting_and_timeouts() {
    let queue = Queue::new("wait", 1, 16);
    let (mine, time) = (pid(), soon(20));
    let until = time.as_ptr() as usize;
    assert_eq!(queue.receive_until(16, until), Err(Errno::ETIMEDOUT));
    assert_eq!(queue.send_until(b"1", 0, until), Ok(0), "there is room: the time does not count");
    assert_eq!(queue.send_until(b"2", 0, until), Err(Errno::ETIMEDOUT));
    let bad = [0i64, 1_000_000_000];
    assert_eq!(queue.send_until(b"2", 0, bad.as_ptr() as usize), Err(Errno::EINVAL));
    // A sender waits for room, and a receiver for a message.
    let child = fork(|| {
        wait_for_sleep(mine);
        assert_eq!(queue.receive().unwrap().0, b"1");
        wait_for_sleep(mine);
        assert_eq!(queue.send(b"3", 7), Ok(0));
    });
    assert_eq!(queue.send(b"2", 0), Ok(0));
    assert_eq!(queue.receive(), Ok((b"2".to_vec(), 0)));
    assert_eq!(queue.receive(), Ok((b"3".to_vec(), 7)));
    child.ok();
    queue.set_flags(i64::from(O_NONBLOCK)).unwrap();
    assert_eq!(queue.receive(), Err(Errno::EAGAIN));
    queue.send(b"x", 0).unwrap();
    assert_eq!(queue.send(b"x", 0), Err(Errno::EAGAIN));
    // A signal ends the wait.
    let empty = Queue::new("wait", 1, 8192);
    let sleeper = fork(|| {
        extern "C" fn nothing(_: i32) {}
        // SAFETY: the handler does nothing; without SA_RESTART the call ends.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
        assert_eq!(empty.receive(), Err(Errno::EINTR));
    });
    wait_for_sleep(sleeper.pid);
    sleeper.kill(libc::SIGUSR1);
    assert_eq!(sleeper.wait(), End::Code(0));
    unlink("wait").unwrap();
}

fn poll_and_text() {
    let queue = Queue::new("text", 2, 16);
    let ready = || {
        let mut entry = libc::pollfd { fd: queue.0.raw(), events: libc::POLLIN | libc::POLLOUT, revents: 0 };
        call(libc::SYS_poll, [(&raw mut entry) as usize, 1, 0, 0, 0, 0]).unwrap();
        entry.revents
    };
    assert_eq!(ready(), libc::POLLOUT);
    queue.send(b"hello", 0).unwrap();
    assert_eq!(ready(), libc::POLLIN | libc::POLLOUT);
    queue.send(b"world!", 0).unwrap();
    assert_eq!(ready(), libc::POLLIN);
    let mut text = [0u8; 200];
    let len = queue.0.read(&mut text).unwrap();
    let want = "QSIZE:11         NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
    assert_eq!(std::str::from_utf8(&text[..len]).unwrap(), want);
    unlink("text").unwrap();
}

static TOLD: AtomicI64 = AtomicI64::new(0);

extern "C" fn note(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo of a signal with a value.
    let (code, value) = unsafe { ((*info).si_code, (*info).si_value().sival_ptr as i64) };
    TOLD.store(i64::from(code) * 1000 - value, Ordering::SeqCst);
}

fn notification() {
    let queue = Queue::new("notify", 4, 16);
    // SAFETY: the handler stores to an atomic only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut());
    }
    let signal = event(libc::SIGEV_SIGNAL, libc::SIGUSR2, 42);
    assert_eq!(queue.notify(signal), Ok(0));
    assert_eq!(queue.notify(signal), Err(Errno::EBUSY));
    fork(|| {
        assert_eq!(queue.notify(signal), Err(Errno::EBUSY));
        assert_eq!(queue.notify(None), Ok(0), "it has none to take back");
        assert_eq!(queue.send(b"a", 0), Ok(0));
    })
    .ok();
    assert_eq!(TOLD.swap(0, Ordering::SeqCst), -3 * 1000 - 42, "SI_MESGQ and the value");
    // Once, and only when the queue was empty.
    queue.send(b"b", 0).unwrap();
    assert_eq!(queue.notify(signal), Ok(0));
    queue.send(b"c", 0).unwrap();
    assert_eq!(TOLD.load(Ordering::SeqCst), 0);
    assert_eq!(queue.notify(None), Ok(0));
    assert_eq!(queue.notify(event(libc::SIGEV_NONE, 0, 0)), Ok(0));
    assert_eq!(queue.notify(None), Ok(0));
    assert_eq!(queue.notify(event(9, 0, 0)), Err(Errno::EINVAL));
    assert_eq!(queue.notify(event(libc::SIGEV_SIGNAL, 65, 0)), Err(Errno::EINVAL));
    // Who has gone is told no more.
    fork(|| assert_eq!(queue.notify(signal), Ok(0))).ok();
    assert_eq!(queue.notify(signal), Ok(0));
    unlink("notify").unwrap();
}

fn names_and_errors() {
    let mut rows = Rows::default();
    let open = |name: &str, flags: i32, attributes| Queue::open(name, flags, attributes).map(|_| 0);
    let make = O_CREAT | O_RDWR;
    row!(rows, ENOENT, open("none", O_RDWR, None));
    row!(rows, EACCES, open("/none", make, None));
    row!(rows, EACCES, open("a/b", make, None));
    row!(rows, EACCES, open("..", make, None));
    row!(rows, ENOENT, open("", make, None));
    row!(rows, ENAMETOOLONG, open(&"x".repeat(256), make, None));
    row!(rows, EINVAL, open("bad", make, Some((0, 10))));
    row!(rows, EINVAL, open("bad", make, Some((10, 0))));
    row!(rows, EINVAL, open("bad", make, Some((-1, 10))));
    row!(rows, EINVAL, open("bad", make, Some((65537, 10))));
    row!(rows, ENOENT, unlink("bad"));
    let queue = Queue::new("errors", 2, 16);
    row!(rows, EEXIST, open("errors", make | O_EXCL, None));
    row!(rows, OK, open("errors", make, Some((-1, -1))));
    row!(rows, EMSGSIZE, queue.send(&[0; 17], 0));
    row!(rows, EINVAL, queue.send(b"", 32768));
    row!(rows, OK, queue.send(b"", 32767));
    row!(rows, EMSGSIZE, queue.receive_until(15, 0).map(|_| 0));
    row!(rows, EFAULT, call(SYS_mq_timedsend, [queue.raw(), 8, 16, 0, 0, 0]));
    let reader = Queue::open("errors", O_RDONLY, None).unwrap();
    let writer = Queue::open("errors", O_WRONLY, None).unwrap();
    row!(rows, EBADF, reader.send(b"", 0));
    row!(rows, EBADF, writer.receive().map(|_| 0));
    row!(rows, EBADF, Queue(Fd::of_pages(1)).send(b"", 0));
    row!(rows, EBADF, call(SYS_mq_timedsend, [999, 0, 0, 0, 0, 0]));
    // Another user has what the permission bits give.
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setresuid(1000, 1000, 1000) }, 0);
        assert_eq!(Queue::open("errors", O_RDWR, None).err(), Some(Errno::EACCES));
        assert_eq!(unlink("errors"), Err(Errno::EPERM));
        assert_eq!(Queue::open("mine", make, Some((11, 16))).err(), Some(Errno::EINVAL), "msg_max");
        assert_eq!(Queue::open("mine", make, Some((10, 8193))).err(), Some(Errno::EINVAL), "msgsize_max");
    })
    .ok();
    // Who has no descriptor left makes none.
    fork(|| {
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the limit is a local.
        sys::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).expect("RLIMIT_NOFILE");
        assert_eq!(Queue::open("full", make, None).err(), Some(Errno::EMFILE));
        assert_eq!(unlink("full"), Err(Errno::ENOENT));
    })
    .ok();
    row!(rows, OK, unlink("errors"));
    rows.finish();
}

/// RLIMIT_MSGQUEUE counts the bytes that queues may hold, and gives them back.
fn limits() {
    fork(|| {
        let limit = libc::rlimit { rlim_cur: 100_000, rlim_max: 100_000 };
        // SAFETY: the structure lives through the call, and the others take integers.
        unsafe {
            assert_eq!(libc::setrlimit(libc::RLIMIT_MSGQUEUE, &limit), 0);
            assert_eq!(libc::setresuid(1001, 1001, 1001), 0);
        }
        let make = |name: &str| Queue::open(name, O_CREAT | O_RDWR, Some((10, 8000)));
        let first = make("first").expect("80,000 bytes");
        assert_eq!(make("second").err(), Some(Errno::EMFILE));
        assert_eq!(unlink("first"), Ok(0));
        assert_eq!(make("second").err(), Some(Errno::EMFILE), "it is still open");
        drop(first);
        drop(make("second").expect("room again"));
        assert_eq!(unlink("second"), Ok(0));
    })
    .ok();
}

fn mounted() {
    let place = "/tmp/mqueue";
    std::fs::create_dir_all(place).unwrap();
    let name = |text: &str| CString::new(text).unwrap();
    let (kind, at) = (name("mqueue"), name(place));
    // SAFETY: strings that live through the call.
    let mounted = unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    assert_eq!(mounted, 0);
    let queue = Queue::new("seen", 2, 16);
    queue.send(b"four", 0).unwrap();
    let text = std::fs::read_to_string(format!("{place}/seen")).unwrap();
    assert!(text.starts_with("QSIZE:4 "), "{text}");
    std::fs::remove_file(format!("{place}/seen")).unwrap();
    assert_eq!(unlink("seen"), Err(Errno::ENOENT));
    // SAFETY: as above.
    assert_eq!(unsafe { libc::umount(at.as_ptr()) }, 0);
}

/// A queue that open(2) makes counts for its user as one of mq_open(2) does.
fn mounted_queues_are_counted() {
    let place = Place::new("");
    let at = place.path("queues");
    place::mkdir(&at, 0o755).unwrap();
    place::mount("mqueue", &at, "mqueue", 0, "").unwrap();
    let made = fork(|| {
        // Some of the usual size, and no more.
        let limit = libc::rlimit { rlim_cur: 300_000, rlim_max: 300_000 };
        // SAFETY: the limit is a local.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MSGQUEUE, &limit) }, 0);
        place::become_user(1234, 1234);
        let open = |number: i32| Fd::open(&format!("{at}/counted-{number}"), O_CREAT | O_RDWR);
        let queues: Vec<_> = (0..20).map_while(|number| open(number).ok()).collect();
        assert!((1..=3).contains(&queues.len()), "{}", queues.len());
        assert_eq!(open(19).err(), Some(Errno::EMFILE));
        assert_eq!(Queue::open("counted-mq", O_CREAT | O_RDWR, None).err(), Some(Errno::EMFILE));
    });
    made.ok();
    for name in place::names(&at) {
        place::unlink(&format!("{at}/{name}")).unwrap();
    }
    place::umount(&at, 0).unwrap();
}

/// A directory of the test's own with a mount of the queues, in namespaces of its own.
fn own_queues() -> &'static str {
    const AT: &str = "/tmp/queues";
    let _ = place::mkdir(AT, 0o755);
    namespaces::become_root_of_own(namespaces::NEWNS | namespaces::NEWIPC);
    place::mount("queues", AT, "mqueue", 0, "").expect("mount");
    AT
}

fn make_node(path: &str, mode: u32) -> Answer {
    let path = CString::new(path).unwrap();
    // SAFETY: the path is NUL-terminated.
    sys::check(unsafe { libc::mknod(path.as_ptr(), mode, 0) })
}

/// The mount has one directory of queues, whose names stay.
fn only_queues_are_made() {
    child::in_child(|| {
        let at = own_queues();
        let path = |name: &str| format!("{at}/{name}");
        let mut rows = Rows::default();
        row!(rows, EPERM, make_node(&path("fifo"), libc::S_IFIFO | 0o600));
        row!(rows, EPERM, make_node(&path("socket"), libc::S_IFSOCK | 0o600));
        row!(rows, EPERM, place::mkdir(&path("directory"), 0o700).map(|()| 0));
        row!(rows, EPERM, place::symlink("queue", &path("link")).map(|()| 0));
        row!(rows, OK, make_node(&path("queue"), libc::S_IFREG | 0o600));
        row!(rows, EPERM, place::link(&path("queue"), &path("other")).map(|()| 0));
        row!(rows, EPERM, place::rename(&path("queue"), &path("other"), 0).map(|()| 0));
        row!(rows, EOPNOTSUPP, Fd::open(at, libc::O_TMPFILE | O_RDWR).map(|_| 0));
        assert_eq!(place::names(at), ["queue"]);
        rows.finish();
    });
}

/// Who waits in mq_open(2), for the end of a lease, holds up nobody else.
fn strangers_wait_for_nobody() {
    let queue = Queue::new("leased", 1, 1);
    drop(queue);
    let queue = Queue::open("leased", O_RDONLY, None).expect("mq_open");
    // SAFETY: takes integers.
    let leased = sys::check(unsafe { libc::fcntl(queue.0.raw(), libc::F_SETLEASE, libc::F_RDLCK) });
    assert_eq!(leased, Ok(0));
    // SAFETY: ignores a signal.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let opener = fork(|| {
        // SAFETY: takes an integer. Else the lease would last as long as this one has it.
        unsafe { libc::close(queue.0.raw()) };
        drop(Queue::open("leased", O_WRONLY, None).expect("mq_open"));
    });
    wait_for_sleep(opener.pid);
    // Linux has the directory's lock meanwhile: there those of the same namespace wait.
    if !sys::is_linux() {
        let exclusive = Queue::open("leased", O_CREAT | O_EXCL | O_WRONLY, Some((1, 1)));
        assert_eq!(exclusive.err(), Some(Errno::EEXIST));
        drop(Queue::new("other", 1, 1));
        assert_eq!(unlink("other"), Ok(0));
    }
    child::in_child(|| {
        own_queues();
        drop(Queue::new("own", 1, 1));
    });
    assert_eq!(procfs::state(opener.pid), Some('S'));
    drop(queue);
    opener.ok();
    assert_eq!(unlink("leased"), Ok(0));
}
