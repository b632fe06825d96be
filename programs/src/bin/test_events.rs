//! Pipes, named pipes, poll, select, epoll, eventfd, signalfd, timerfd.

use std::time::{Duration, Instant};

use roundtable_programs::child::{End, fork};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::place::Place;
use roundtable_programs::procfs;
use roundtable_programs::sys::{self, c_string, check};
use roundtable_programs::{Errno, tests};

tests! { pipe_capacity, pipe_writes_are_atomic, pipe_ends, pipe_size, pipe_packets, pipe_by_proc, pipe_by_proc_alone, fifo_open_waits,
fifo_open_nonblocking, fifo_hangup, poll_readiness, poll_timeout, poll_wakes, ppoll_mask, select_sets, select_of_all_numbers, select_timeout,
epoll_level_and_edge, epoll_one_shot, epoll_nested, epoll_errors, epoll_forgets_closed, epoll_wakes, eventfd_counts,
eventfd_semaphore, signalfd_reads, timerfd_once, timerfd_interval, timerfd_absolute }

fn set_nonblocking(fd: &Fd) {
    // SAFETY: takes integers.
    check(unsafe { libc::fcntl(fd.raw(), libc::F_SETFL, libc::O_NONBLOCK) }).expect("F_SETFL");
}

fn poll_one(fd: i32, events: i16, timeout: i32) -> i16 {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    let count = check(unsafe { libc::poll(&mut entry, 1, timeout) }).expect("poll");
    assert_eq!(count, usize::from(entry.revents != 0));
    entry.revents
}

fn pipe_capacity() {
    let (read, write) = pipe(libc::O_NONBLOCK);
    // Single bytes are joined: the capacity is that of whole pages.
    for _ in 0..65536 {
        assert_eq!(write.write(b"x"), Ok(1));
    }
    assert_eq!(write.write(b"x"), Err(Errno::EAGAIN));
    assert_eq!(poll_one(write.raw(), libc::POLLOUT, 0), 0);
    let mut bytes = 0i32;
    // SAFETY: the integer lives through the call.
    check(unsafe { libc::ioctl(read.raw(), libc::FIONREAD, &mut bytes) }).unwrap();
    assert_eq!(bytes, 65536);
    // Only a whole free page makes room again.
    let mut buffer = [0; 4095];
    assert_eq!(read.read(&mut buffer), Ok(4095));
    assert_eq!(write.write(b"x"), Err(Errno::EAGAIN));
    assert_eq!(read.read(&mut buffer[..1]), Ok(1));
    assert_eq!(poll_one(write.raw(), libc::POLLOUT, 0), libc::POLLOUT);
    assert_eq!(write.write(&[0; 5000]), Ok(4096));
}

fn pipe_writes_are_atomic() {
    const SIZE: usize = 3000;
    let (read, write) = pipe(0);
    let writers: Vec<_> = (b'a'..b'e')
        .map(|letter| {
            let write = write.0.try_clone().unwrap();
            fork(move || {
                let write = Fd(write);
                for _ in 0..50 {
                    assert_eq!(write.write(&[letter; SIZE]), Ok(SIZE));
                }
            })
        })
        .collect();
    drop(write);
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read.read(&mut buffer).unwrap() {
            0 => break,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
    assert_eq!(all.len(), 4 * 50 * SIZE);
    for chunk in all.chunks(SIZE) {
        assert!(chunk.iter().all(|byte| *byte == chunk[0]), "a write was torn apart");
    }
    writers.into_iter().for_each(|writer| writer.ok());
}

fn pipe_ends() {
    let (read, write) = pipe(0);
    assert_eq!(write.write(b"rest"), Ok(4));
    assert_eq!(poll_one(read.raw(), libc::POLLIN, 0), libc::POLLIN);
    drop(write);
    assert_eq!(poll_one(read.raw(), libc::POLLIN, 0), libc::POLLIN | libc::POLLHUP);
    let mut buffer = [0; 10];
    assert_eq!(read.read(&mut buffer), Ok(4));
    assert_eq!(read.read(&mut buffer), Ok(0));
    assert_eq!(poll_one(read.raw(), libc::POLLIN, 0), libc::POLLHUP);
    let (read, write) = pipe(0);
    drop(read);
    assert_eq!(poll_one(write.raw(), libc::POLLOUT, 0), libc::POLLOUT | libc::POLLERR);
    // SAFETY: takes integers.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    assert_eq!(write.write(b"x"), Err(Errno::EPIPE));
    let killed = fork(|| {
        // SAFETY: takes integers.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let _ = write.write(b"x");
    });
    assert_eq!(killed.wait(), End::Signal(libc::SIGPIPE));
}

fn pipe_size() {
    let (read, write) = pipe(libc::O_NONBLOCK);
    // SAFETY: takes integers.
    let control = |command, argument: i32| check(unsafe { libc::fcntl(read.raw(), command, argument) });
    assert_eq!(control(libc::F_GETPIPE_SZ, 0), Ok(65536));
    assert_eq!(control(libc::F_SETPIPE_SZ, 5000), Ok(8192));
    assert_eq!(write.write(&[0; 20000]), Ok(8192));
    assert_eq!(control(libc::F_SETPIPE_SZ, 4096), Err(Errno::EBUSY));
    assert_eq!(control(libc::F_SETPIPE_SZ, 1 << 20), Ok(1 << 20));
    assert_eq!(write.write(&[0; 20000]), Ok(20000));
}

fn pipe_packets() {
    let (read, write) = pipe(libc::O_DIRECT);
    assert_eq!(write.write(b"first"), Ok(5));
    assert_eq!(write.write(b"second"), Ok(6));
    let mut buffer = [0; 100];
    assert_eq!(read.read(&mut buffer[..3]), Ok(3));
    assert_eq!(read.read(&mut buffer), Ok(6));
    assert_eq!(&buffer[..6], b"second");
}

/// Who opens a side of a pipe once more does not wait for the other, which may have gone.
fn pipe_by_proc_alone() {
    let open = |fd: &Fd, flags| Fd::open(&format!("/proc/self/fd/{}", fd.raw()), flags);
    for flags in [0, libc::O_NONBLOCK] {
        let (read, write) = pipe(0);
        assert_eq!(write.write(b"left"), Ok(4));
        drop(write);
        let again = open(&read, libc::O_RDONLY | flags).unwrap();
        let mut bytes = [0; 10];
        assert_eq!((again.read(&mut bytes), again.read(&mut bytes)), (Ok(4), Ok(0)));
        let (read, write) = pipe(0);
        drop(read);
        let again = open(&write, libc::O_WRONLY | flags).unwrap();
        assert_eq!(poll_one(again.raw(), libc::POLLOUT, 0) & libc::POLLERR, libc::POLLERR);
    }
}

fn pipe_by_proc() {
    let (read, write) = pipe(0);
    let again = Fd::open(&format!("/proc/self/fd/{}", write.raw()), libc::O_WRONLY).unwrap();
    drop(write);
    assert_eq!(again.write(b"by another name"), Ok(15));
    let mut buffer = [0; 100];
    assert_eq!(read.read(&mut buffer), Ok(15));
    drop(again);
    assert_eq!(read.read(&mut buffer), Ok(0));
    let target = std::fs::read_link(format!("/proc/self/fd/{}", read.raw())).unwrap();
    assert_eq!(target.to_str().unwrap(), format!("pipe:[{}]", read.stat().st_ino));
}

fn mkfifo(path: &str) {
    let path = c_string(path);
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }).expect("mkfifo");
}

fn fifo_open_waits() {
    let place = Place::new("");
    let path = place.path("fifo");
    mkfifo(&path);
    let reader = sys::pid();
    let writer = fork(|| {
        procfs::wait_for_sleep(reader);
        let write = Fd::open(&path, libc::O_WRONLY).unwrap();
        assert_eq!(write.write(b"through"), Ok(7));
    });
    let read = Fd::open(&path, libc::O_RDONLY).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(read.read(&mut buffer), Ok(7));
    assert_eq!(read.read(&mut buffer), Ok(0));
    writer.ok();
}

fn fifo_open_nonblocking() {
    let place = Place::new("");
    let path = place.path("fifo");
    mkfifo(&path);
    assert_eq!(Fd::open(&path, libc::O_WRONLY | libc::O_NONBLOCK).unwrap_err(), Errno::ENXIO);
    let read = Fd::open(&path, libc::O_RDONLY | libc::O_NONBLOCK).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(read.read(&mut buffer), Ok(0));
    let write = Fd::open(&path, libc::O_WRONLY | libc::O_NONBLOCK).unwrap();
    assert_eq!(read.read(&mut buffer), Err(Errno::EAGAIN));
    assert_eq!(write.write(b"abc"), Ok(3));
    drop((read, write));
    // With nobody left what was written is gone.
    let both = Fd::open(&path, libc::O_RDWR | libc::O_NONBLOCK).unwrap();
    assert_eq!(both.read(&mut buffer), Err(Errno::EAGAIN));
}

fn fifo_hangup() {
    let place = Place::new("");
    let path = place.path("fifo");
    mkfifo(&path);
    let read = Fd::open(&path, libc::O_RDONLY | libc::O_NONBLOCK).unwrap();
    // Nobody has hung up before anybody was there.
    assert_eq!(poll_one(read.raw(), libc::POLLIN, 0), 0);
    drop(Fd::open(&path, libc::O_WRONLY).unwrap());
    assert_eq!(poll_one(read.raw(), libc::POLLIN, 0), libc::POLLHUP);
}

fn poll_readiness() {
    let (read, write) = pipe(0);
    let mut entries = [
        libc::pollfd { fd: read.raw(), events: libc::POLLIN, revents: 77 },
        libc::pollfd { fd: write.raw(), events: libc::POLLOUT, revents: 77 },
        libc::pollfd { fd: -5, events: libc::POLLIN, revents: 77 },
        libc::pollfd { fd: 999, events: libc::POLLIN, revents: 77 },
    ];
    // SAFETY: four entries, which live through the call.
    assert_eq!(check(unsafe { libc::poll(entries.as_mut_ptr(), 4, 1000) }), Ok(2));
    assert_eq!(entries.map(|entry| entry.revents), [0, libc::POLLOUT, 0, libc::POLLNVAL]);
    // A file is always ready.
    let file = Fd::temporary();
    assert_eq!(poll_one(file.raw(), libc::POLLIN | libc::POLLOUT, 0), libc::POLLIN | libc::POLLOUT);
}

fn poll_timeout() {
    let (read, _write) = pipe(0);
    let start = Instant::now();
    assert_eq!(poll_one(read.raw(), libc::POLLIN, 60), 0);
    assert!(start.elapsed() >= Duration::from_millis(60));
    // SAFETY: no entries.
    assert_eq!(check(unsafe { libc::poll(std::ptr::null_mut(), 0, 20) }), Ok(0));
}

fn poll_wakes() {
    let (read, write) = pipe(0);
    let reader = sys::pid();
    let writer = fork(|| {
        procfs::wait_for_sleep(reader);
        assert_eq!(write.write(b"x"), Ok(1));
    });
    assert_eq!(poll_one(read.raw(), libc::POLLIN, 10_000), libc::POLLIN);
    writer.ok();
}

extern "C" fn do_nothing(_: i32) {}

fn handle(signal: i32) {
    // SAFETY: the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        check(libc::sigaction(signal, &action, std::ptr::null_mut())).expect("sigaction");
    }
}

fn set_of(signal: i32) -> libc::sigset_t {
    // SAFETY: the set is a local.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        set
    }
}

fn block(signal: i32) {
    // SAFETY: the set is a local.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set_of(signal), std::ptr::null_mut()) };
}

fn ppoll_mask() {
    handle(libc::SIGUSR1);
    block(libc::SIGUSR1);
    // SAFETY: takes an integer.
    unsafe { libc::raise(libc::SIGUSR1) };
    let (read, _write) = pipe(0);
    let mut entry = libc::pollfd { fd: read.raw(), events: libc::POLLIN, revents: 0 };
    let timeout = libc::timespec { tv_sec: 5, tv_nsec: 0 };
    // SAFETY: all pointers are to locals.
    let result = check(unsafe {
        let empty: libc::sigset_t = std::mem::zeroed();
        libc::ppoll(&mut entry, 1, &timeout, &empty)
    });
    // Not restarted, SA_RESTART or not; and the mask is the old one again.
    assert_eq!(result, Err(Errno::EINTR));
    // SAFETY: the set is a local.
    unsafe {
        let mut now = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &mut now);
        assert_eq!(libc::sigismember(&now, libc::SIGUSR1), 1);
    }
}

fn select_sets() {
    let (read, write) = pipe(0);
    let (empty, _other) = pipe(0);
    assert_eq!(write.write(b"x"), Ok(1));
    // SAFETY: the sets are locals, the descriptors are small.
    unsafe {
        let mut readable: libc::fd_set = std::mem::zeroed();
        let mut writable: libc::fd_set = std::mem::zeroed();
        libc::FD_SET(read.raw(), &mut readable);
        libc::FD_SET(empty.raw(), &mut readable);
        libc::FD_SET(write.raw(), &mut writable);
        let count =
            libc::select(100, &mut readable, &mut writable, std::ptr::null_mut(), std::ptr::null_mut());
        assert_eq!(count, 2);
        assert!(libc::FD_ISSET(read.raw(), &readable));
        assert!(!libc::FD_ISSET(empty.raw(), &readable));
        assert!(libc::FD_ISSET(write.raw(), &writable));
        libc::FD_ZERO(&mut readable);
        libc::FD_SET(55, &mut readable);
        let null = std::ptr::null_mut;
        let none = std::ptr::null_mut();
        assert_eq!(check(libc::select(60, &mut readable, null(), null(), none)), Err(Errno::EBADF));
    }
}

fn select_of_all_numbers() {
    // In each half of two words, the ready and the others by turns.
    const NUMBERS: [i32; 10] = [30, 31, 32, 33, 62, 63, 64, 65, 96, 127];
    let (ready, writer) = pipe(0);
    let (empty, _other) = pipe(0);
    assert_eq!(writer.write(b"x"), Ok(1));
    let is_ready = |place: usize| place.is_multiple_of(2);
    let all: Vec<Fd> = NUMBERS
        .iter()
        .enumerate()
        .map(|(place, number)| {
            let of = if is_ready(place) { &ready } else { &empty };
            // SAFETY: takes integers; nobody has these numbers.
            Fd::own(check(unsafe { libc::dup3(of.raw(), *number, libc::O_CLOEXEC) }).unwrap())
        })
        .collect();
    // SAFETY: the set is a local, the numbers are within it.
    unsafe {
        let mut set: libc::fd_set = std::mem::zeroed();
        all.iter().for_each(|fd| libc::FD_SET(fd.raw(), &mut set));
        let null = std::ptr::null_mut;
        assert_eq!(libc::select(128, &mut set, null(), null(), std::ptr::null_mut()), 5);
        let found: Vec<bool> = (0..128).map(|number| libc::FD_ISSET(number, &set)).collect();
        let expected =
            (0..128).map(|number| NUMBERS.iter().position(|known| *known == number).is_some_and(is_ready));
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}

fn select_timeout() {
    let (read, write) = pipe(0);
    let select = |seconds| {
        let mut timeout = libc::timeval { tv_sec: seconds, tv_usec: 50_000 };
        // SAFETY: the set and the timeout are locals.
        let count = unsafe {
            let mut readable: libc::fd_set = std::mem::zeroed();
            libc::FD_SET(read.raw(), &mut readable);
            let null = std::ptr::null_mut();
            libc::select(read.raw() + 1, &mut readable, null, null, &mut timeout)
        };
        (count, timeout)
    };
    let (count, left) = select(0);
    assert_eq!((count, left.tv_sec, left.tv_usec), (0, 0, 0));
    assert_eq!(write.write(b"x"), Ok(1));
    let (count, left) = select(100);
    assert_eq!(count, 1);
    assert!((90..=100).contains(&left.tv_sec), "what is left of the timeout is written back");
}

fn epoll() -> Fd {
    // SAFETY: takes an integer.
    Fd::own(check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).expect("epoll_create1"))
}

fn control(epoll: &Fd, operation: i32, fd: i32, events: i32, data: u64) -> Result<usize, Errno> {
    let mut event = libc::epoll_event { events: events as u32, u64: data };
    // SAFETY: the event is a local.
    check(unsafe { libc::epoll_ctl(epoll.raw(), operation, fd, &mut event) })
}

fn add(epoll: &Fd, fd: &Fd, events: i32) {
    control(epoll, libc::EPOLL_CTL_ADD, fd.raw(), events, fd.raw() as u64).expect("EPOLL_CTL_ADD");
}

fn fetch(epoll: &Fd, timeout: i32) -> Vec<(u32, u64)> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
    // SAFETY: room for eight events.
    let count =
        check(unsafe { libc::epoll_wait(epoll.raw(), events.as_mut_ptr(), 8, timeout) }).expect("epoll_wait");
    events[..count].iter().map(|event| (event.events, event.u64)).collect()
}

const IN: i32 = libc::EPOLLIN;

fn epoll_level_and_edge() {
    let (read, write) = pipe(0);
    let (level, edge) = (epoll(), epoll());
    add(&level, &read, IN);
    add(&edge, &read, IN | libc::EPOLLET);
    assert!(fetch(&level, 0).is_empty() && fetch(&edge, 0).is_empty());
    assert_eq!(write.write(b"xx"), Ok(2));
    let ready = vec![(IN as u32, read.raw() as u64)];
    assert_eq!(fetch(&level, 0), ready);
    assert_eq!(fetch(&level, 0), ready);
    assert_eq!(fetch(&edge, 0), ready);
    assert!(fetch(&edge, 0).is_empty());
    // A further write is a further edge, even if nothing was read.
    assert_eq!(write.write(b"x"), Ok(1));
    assert_eq!(fetch(&edge, 0), ready);
    assert_eq!(read.read(&mut [0; 10]), Ok(3));
    assert!(fetch(&level, 0).is_empty());
}

fn epoll_one_shot() {
    let (read, write) = pipe(0);
    let epoll = epoll();
    add(&epoll, &read, IN | libc::EPOLLONESHOT);
    assert_eq!(write.write(b"x"), Ok(1));
    assert_eq!(fetch(&epoll, 0).len(), 1);
    assert_eq!(write.write(b"x"), Ok(1));
    assert!(fetch(&epoll, 0).is_empty());
    control(&epoll, libc::EPOLL_CTL_MOD, read.raw(), IN | libc::EPOLLONESHOT, 7).unwrap();
    assert_eq!(fetch(&epoll, 0), [(IN as u32, 7)]);
    assert!(fetch(&epoll, 0).is_empty());
}

fn epoll_nested() {
    let (read, write) = pipe(0);
    let (inner, outer) = (epoll(), epoll());
    add(&inner, &read, IN);
    add(&outer, &inner, IN);
    assert!(fetch(&outer, 0).is_empty());
    assert_eq!(poll_one(outer.raw(), libc::POLLIN, 0), 0);
    assert_eq!(write.write(b"x"), Ok(1));
    assert_eq!(fetch(&outer, 0), [(IN as u32, inner.raw() as u64)]);
    assert_eq!(poll_one(outer.raw(), libc::POLLIN, 0), libc::POLLIN);
    assert_eq!(control(&inner, libc::EPOLL_CTL_ADD, outer.raw(), IN, 0), Err(Errno::ELOOP));
    assert_eq!(control(&inner, libc::EPOLL_CTL_ADD, inner.raw(), IN, 0), Err(Errno::EINVAL));
    assert_eq!(read.read(&mut [0; 10]), Ok(1));
    assert!(fetch(&outer, 0).is_empty());
}

fn epoll_errors() {
    let (read, _write) = pipe(0);
    let epoll = epoll();
    add(&epoll, &read, IN);
    assert_eq!(control(&epoll, libc::EPOLL_CTL_ADD, read.raw(), IN, 0), Err(Errno::EEXIST));
    assert_eq!(control(&epoll, libc::EPOLL_CTL_DEL, read.raw(), 0, 0), Ok(0));
    assert_eq!(control(&epoll, libc::EPOLL_CTL_DEL, read.raw(), 0, 0), Err(Errno::ENOENT));
    assert_eq!(control(&epoll, libc::EPOLL_CTL_MOD, read.raw(), IN, 0), Err(Errno::ENOENT));
    assert_eq!(control(&epoll, libc::EPOLL_CTL_ADD, 999, IN, 0), Err(Errno::EBADF));
    // A regular file has no readiness.
    assert_eq!(control(&epoll, libc::EPOLL_CTL_ADD, Fd::temporary().raw(), IN, 0), Err(Errno::EPERM));
    assert_eq!(control(&read, libc::EPOLL_CTL_ADD, epoll.raw(), IN, 0), Err(Errno::EINVAL));
    // SAFETY: nothing is written for a count of 0.
    let none = check(unsafe { libc::epoll_wait(epoll.raw(), std::ptr::null_mut(), 0, 0) });
    assert_eq!(none, Err(Errno::EINVAL));
    let exclusive = IN | libc::EPOLLEXCLUSIVE;
    assert_eq!(control(&epoll, libc::EPOLL_CTL_ADD, read.raw(), exclusive, 0), Ok(0));
    assert_eq!(control(&epoll, libc::EPOLL_CTL_MOD, read.raw(), IN, 0), Err(Errno::EINVAL));
}

fn epoll_forgets_closed() {
    let (read, write) = pipe(0);
    let epoll = epoll();
    add(&epoll, &read, IN);
    assert_eq!(write.write(b"x"), Ok(1));
    let copy = Fd(read.0.try_clone().unwrap());
    drop(read);
    // The open file is still there, by another descriptor.
    assert_eq!(fetch(&epoll, 0).len(), 1);
    drop(copy);
    assert!(fetch(&epoll, 0).is_empty());
}

fn epoll_wakes() {
    let (read, write) = pipe(0);
    let epoll = epoll();
    add(&epoll, &read, IN);
    let reader = sys::pid();
    let writer = fork(|| {
        procfs::wait_for_sleep(reader);
        assert_eq!(write.write(b"x"), Ok(1));
    });
    assert_eq!(fetch(&epoll, 10_000).len(), 1);
    writer.ok();
    assert_eq!(read.read(&mut [0]), Ok(1));
    let start = Instant::now();
    assert!(fetch(&epoll, 50).is_empty());
    assert!(start.elapsed() >= Duration::from_millis(50));
}

fn eventfd(initial: u32, flags: i32) -> Fd {
    // SAFETY: takes integers.
    Fd::own(check(unsafe { libc::eventfd(initial, flags) }).expect("eventfd"))
}

fn read_word(fd: &Fd) -> Result<u64, Errno> {
    let mut word = [0; 8];
    fd.read(&mut word).map(|count| {
        assert_eq!(count, 8);
        u64::from_ne_bytes(word)
    })
}

fn eventfd_counts() {
    let event = eventfd(3, libc::EFD_NONBLOCK);
    assert_eq!(event.write(&4u64.to_ne_bytes()), Ok(8));
    assert_eq!(poll_one(event.raw(), libc::POLLIN, 0), libc::POLLIN);
    assert_eq!(read_word(&event), Ok(7));
    assert_eq!(read_word(&event), Err(Errno::EAGAIN));
    assert_eq!(event.write(&(u64::MAX - 1).to_ne_bytes()), Ok(8));
    assert_eq!(event.write(&1u64.to_ne_bytes()), Err(Errno::EAGAIN));
    assert_eq!(event.write(&u64::MAX.to_ne_bytes()), Err(Errno::EINVAL));
    assert_eq!(event.read(&mut [0; 4]), Err(Errno::EINVAL));
    let waited = eventfd(0, 0);
    let reader = sys::pid();
    let child = fork(|| {
        procfs::wait_for_sleep(reader);
        assert_eq!(waited.write(&9u64.to_ne_bytes()), Ok(8));
    });
    assert_eq!(read_word(&waited), Ok(9));
    child.ok();
}

fn eventfd_semaphore() {
    let event = eventfd(2, libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK);
    assert_eq!(read_word(&event), Ok(1));
    assert_eq!(read_word(&event), Ok(1));
    assert_eq!(read_word(&event), Err(Errno::EAGAIN));
}

fn signalfd_reads() {
    block(libc::SIGUSR1);
    let set = set_of(libc::SIGUSR1);
    // SAFETY: the set is a local.
    let fd = Fd::own(check(unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK) }).expect("signalfd"));
    let mut info = [0u8; 128];
    assert_eq!(fd.read(&mut info), Err(Errno::EAGAIN));
    assert_eq!(poll_one(fd.raw(), libc::POLLIN, 0), 0);
    // SAFETY: takes integers.
    unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) };
    assert_eq!(poll_one(fd.raw(), libc::POLLIN, 0), libc::POLLIN);
    assert_eq!(fd.read(&mut info), Ok(128));
    let word = |at: usize| u32::from_ne_bytes(info[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), libc::SIGUSR1 as u32);
    assert_eq!(word(12), std::process::id());
    assert_eq!(fd.read(&mut info), Err(Errno::EAGAIN));
    let parent = sys::pid();
    let sender = fork(move || {
        procfs::wait_for_sleep(parent);
        // SAFETY: takes integers.
        unsafe { libc::kill(parent, libc::SIGUSR1) };
    });
    assert_eq!(poll_one(fd.raw(), libc::POLLIN, 10_000), libc::POLLIN);
    assert_eq!(fd.read(&mut info), Ok(128));
    sender.ok();
}

fn timerfd(clock: i32, flags: i32) -> Fd {
    // SAFETY: takes integers.
    Fd::own(check(unsafe { libc::timerfd_create(clock, flags) }).expect("timerfd_create"))
}

fn set_timer(fd: &Fd, flags: i32, value: Duration, interval: Duration) {
    let spec = |time: Duration| libc::timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    let new = libc::itimerspec { it_value: spec(value), it_interval: spec(interval) };
    // SAFETY: the setting is a local.
    check(unsafe { libc::timerfd_settime(fd.raw(), flags, &new, std::ptr::null_mut()) }).expect("settime");
}

const NONE: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_millis(30);

fn timerfd_once() {
    let fd = timerfd(libc::CLOCK_MONOTONIC, 0);
    let start = Instant::now();
    set_timer(&fd, 0, SHORT, NONE);
    assert_eq!(read_word(&fd), Ok(1));
    assert!(start.elapsed() >= SHORT);
    set_nonblocking(&fd);
    assert_eq!(read_word(&fd), Err(Errno::EAGAIN));
    set_timer(&fd, 0, SHORT, NONE);
    set_timer(&fd, 0, NONE, NONE);
    assert_eq!(poll_one(fd.raw(), libc::POLLIN, 60), 0);
}

fn timerfd_interval() {
    let fd = timerfd(libc::CLOCK_MONOTONIC, 0);
    set_timer(&fd, 0, Duration::from_millis(10), Duration::from_millis(10));
    std::thread::sleep(Duration::from_millis(105));
    let count = read_word(&fd).unwrap();
    assert!(count >= 10, "{count} periods in 105 ms");
    assert!(read_word(&fd).unwrap() >= 1);
    // A period of a nanosecond is counted, not waited for.
    set_timer(&fd, 0, Duration::from_nanos(1), Duration::from_nanos(1));
    std::thread::sleep(Duration::from_millis(2));
    assert!(read_word(&fd).unwrap() > 1_000_000);
}

fn timerfd_absolute() {
    let fd = timerfd(libc::CLOCK_REALTIME, 0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let start = Instant::now();
    set_timer(&fd, libc::TFD_TIMER_ABSTIME, now + SHORT, NONE);
    assert_eq!(read_word(&fd), Ok(1));
    assert!(start.elapsed() >= SHORT - Duration::from_millis(5));
    // The past is due at once.
    set_timer(&fd, libc::TFD_TIMER_ABSTIME, Duration::from_secs(1), NONE);
    assert_eq!(poll_one(fd.raw(), libc::POLLIN, 1000), libc::POLLIN);
}
