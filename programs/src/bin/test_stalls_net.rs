//! As `test_stalls`, of pipes, sockets, and of what waits for events.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;

use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::held::compare;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW};
use roundtable_programs::place::Place;
use roundtable_programs::seccomp::{self, Listener};
use roundtable_programs::socket::{pair, send_along};
use roundtable_programs::sys::{PAGE, check};
use roundtable_programs::{procfs, tests};

tests! { filled_pipes: 200, contexts: 200, calls_that_wait: 200, timers_of_a_thread: 200, polled_descriptors: 200,
files_on_their_way: 200, senders_that_poll: 200 }

fn more_of(resource: libc::__rlimit_resource_t) {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the limit lives through the call.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

fn large_pipe() -> (Fd, Fd) {
    let (read, write) = pipe(0);
    // SAFETY: takes integers.
    check(unsafe { libc::fcntl(write.raw(), libc::F_SETPIPE_SZ, 1 << 20) }).expect("F_SETPIPE_SZ");
    (read, write)
}

/// All that a pipe takes, at once: by write(2), tee(2), read(2) and vmsplice(2).
fn filled_pipes() {
    let made = RefCell::new(None);
    let make = |pages: usize| {
        // Touched: a fault would be a new stretch.
        let memory = Map::new(pages * PAGE, RW, PRIVATE | ANON, -1, 0).expect("memory");
        (0..pages).for_each(|page| memory.set(page * PAGE, 1));
        *made.borrow_mut() = Some((large_pipe(), large_pipe(), memory));
    };
    compare(1, 256, make, |pages| {
        let made = made.borrow();
        let ((read, write), (second_read, second_write), memory) = made.as_ref().expect("made");
        let (at, len) = (memory.address, pages * PAGE);
        let move_all = |number, fd: &Fd| call(number, [fd.raw() as usize, at, len, 0, 0, 0]);
        assert_eq!(move_all(libc::SYS_write, write), Ok(len));
        let (from, to) = (read.raw() as usize, second_write.raw() as usize);
        assert_eq!(call(libc::SYS_tee, [from, to, len, 0, 0, 0]), Ok(len));
        assert_eq!(move_all(libc::SYS_read, read), Ok(len));
        let vector = [at, len];
        let splice = [write.raw() as usize, vector.as_ptr() as usize, 1, 0, 0, 0];
        assert_eq!(call(libc::SYS_vmsplice, splice), Ok(len));
        assert_eq!(move_all(libc::SYS_read, second_read), Ok(len));
    });
}

/// The end of a process with many contexts of io_setup(2).
fn contexts() {
    let make = |count: usize| {
        for _ in 0..count {
            let mut id = 0usize;
            assert_eq!(call(libc::SYS_io_setup, [1, &raw mut id as usize, 0, 0, 0, 0]), Ok(0));
        }
    };
    compare(100, 30_000, make, |_| ());
}

/// The end of a listener for which the calls of many threads wait.
fn calls_that_wait() {
    let listener = RefCell::new(None);
    let make = |count: usize| {
        *listener.borrow_mut() = Some(Listener::on(libc::SYS_getppid, 0));
        for _ in 0..count {
            let ask = || {
                let _ = seccomp::simple(libc::SYS_getppid);
                loop {
                    std::thread::park();
                }
            };
            std::thread::Builder::new().stack_size(16 << 10).spawn(ask).expect("a thread");
        }
        procfs::wait_for_sleepers(count);
    };
    compare(10, 1_000, make, |_| drop(listener.take()));
}

/// The end of a thread by whose CPU time many timers go.
fn timers_of_a_thread() {
    let made = RefCell::new(None);
    let make = |count: usize| {
        more_of(libc::RLIMIT_SIGPENDING);
        let (tell, hear) = mpsc::channel();
        let (end, wait) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            // SAFETY: takes nothing.
            tell.send(unsafe { libc::gettid() }).expect("send");
            let _ = wait.recv();
        });
        /// Of a thread, by what the scheduler counts.
        const CLOCK: i32 = 4 | 2;
        let clock = !hear.recv().expect("recv") << 3 | CLOCK;
        for _ in 0..count {
            let mut timer: libc::timer_t = std::ptr::null_mut();
            let day = libc::timespec { tv_sec: 86_400, tv_nsec: 0 };
            let setting = libc::itimerspec { it_interval: day, it_value: day };
            // SAFETY: the identifier is written; the setting lives through the call.
            unsafe {
                check(libc::timer_create(clock, std::ptr::null_mut(), &mut timer))
                    .and_then(|_| check(libc::timer_settime(timer, 0, &setting, std::ptr::null_mut())))
                    .expect("timer");
            }
        }
        *made.borrow_mut() = Some((end, thread));
    };
    compare(100, 10_000, make, |_| {
        let (end, thread) = made.take().expect("made");
        drop(end);
        thread.join().expect("join");
    });
}

/// poll(2) and select(2) of many descriptors, of which none is ready.
fn polled_descriptors() {
    let made = RefCell::new((Vec::new(), 0));
    let make = |count: usize| {
        more_of(libc::RLIMIT_NOFILE);
        let (read, write) = pipe(0);
        let dup = |_| {
            // SAFETY: takes an integer.
            check(unsafe { libc::dup(read.raw()) }).expect("dup") as i32
        };
        let fds: Vec<i32> = (0..count).map(dup).collect();
        let entry = |fd: &i32| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
        *made.borrow_mut() = (fds.iter().map(entry).collect(), fds[count - 1] as usize + 1);
        std::mem::forget((read, write));
    };
    compare(64, 4_000, make, |count| {
        let (entries, end) = &mut *made.borrow_mut();
        let list = entries.as_mut_ptr() as usize;
        assert_eq!(call(libc::SYS_poll, [list, count, 10, 0, 0, 0]), Ok(0));
        let mut set = vec![0u64; end.div_ceil(64)];
        entries.iter().for_each(|entry| set[entry.fd as usize / 64] |= 1 << (entry.fd % 64));
        let soon = [0u64, 10_000];
        let (set, soon) = (set.as_mut_ptr() as usize, soon.as_ptr() as usize);
        assert_eq!(call(libc::SYS_select, [*end, set, 0, 0, soon, 0]), Ok(0));
    });
}

/// A socket that nobody can reach, with many files in its queue, its own among them.
fn files_on_their_way() {
    let made = RefCell::new(None);
    let make = |messages: usize| {
        more_of(libc::RLIMIT_NOFILE);
        let (a, b) = pair(libc::SOCK_STREAM);
        let fds: Vec<u8> = b.raw().to_ne_bytes().repeat(253);
        for _ in 0..messages {
            assert_eq!(send_along(&a, b"x", libc::SCM_RIGHTS, &fds), Ok(1));
        }
        *made.borrow_mut() = Some((a, b));
    };
    compare(1, 64, make, |_| drop(made.take()));
}

/// Each datagram that is received tells those who wait until they can send.
fn senders_that_poll() {
    let made = RefCell::new(None);
    let place = Place::new("");
    let make = |count: usize| {
        more_of(libc::RLIMIT_NOFILE);
        let path = place.path(&format!("log-{count}"));
        let log = UnixDatagram::bind(&path).expect("bind");
        // SAFETY: takes an integer.
        let epoll = Fd::own(check(unsafe { libc::epoll_create1(0) }).expect("epoll_create1"));
        let client = || {
            let client = UnixDatagram::unbound().expect("socket");
            client.connect(&path).expect("connect");
            client.set_nonblocking(true).expect("nonblocking");
            client
        };
        let first = client();
        while first.send(b"x").is_ok() {}
        let clients: Vec<UnixDatagram> = (0..count).map(|_| client()).collect();
        for client in &clients {
            let mut interest = libc::epoll_event { events: libc::EPOLLOUT as u32, u64: 0 };
            let fd = client.as_raw_fd();
            // SAFETY: the interest is a local.
            check(unsafe { libc::epoll_ctl(epoll.raw(), libc::EPOLL_CTL_ADD, fd, &mut interest) })
                .expect("a watch");
        }
        *made.borrow_mut() = Some((log, epoll, first, clients));
    };
    compare(16, 4_000, make, |_| {
        let made = made.borrow();
        let (log, ..) = made.as_ref().expect("made");
        assert_eq!(log.recv(&mut [0; 10]).expect("recv"), 1);
    });
}
