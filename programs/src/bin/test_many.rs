//! A thing costs the same however many there are of it.
//!
//! Each test makes some of a thing and ten times as many, uses them all, and compares what one costs. It does so in a machine whose clock counts
//! instructions, which the kernel's command line tells; elsewhere, as on Linux, it only looks whether all goes well.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED, madvise, mincore, mmap, mprotect, mremap,
    munmap,
};
use roundtable_programs::mshare::{self, Region};
use roundtable_programs::sys::{PAGE, c_string, check, is_linux};
use roundtable_programs::{child, harness, procfs, socket, tests};

tests! { areas_unmapped_front_first: 120, areas_searched_past_small_holes: 120, areas_protected: 120, areas_locked: 120,
areas_moved: 120, areas_forked: 120, maps_read_in_pieces: 120, smaps_read_in_pieces: 120, mappings_of_one_file: 120,
descriptors_reopened: 120, descriptors_forked: 120, names_unlinked: 120, names_read_in_pieces: 120, epoll_events: 120,
segments: 120, mounts: 120, pending_signals: 120, timers: 120, processes: 120, threads: 120, backlog: 120,
record_locks: 120, whole_file_locks: 120, epoll_watches: 120, long_calls_give_way: 300, sockets_in_flight: 120,
polls_of_full_sockets: 120, pages_of_a_region: 120 }

/// What the kernel's command line says of the clock: `counting_clock=1` if it counts instructions, and a larger number for so many times as
/// many things.
fn counting_clock() -> Option<usize> {
    let line = std::fs::read_to_string("/proc/cmdline").expect("/proc/cmdline");
    let value = line.split_whitespace().find_map(|word| word.strip_prefix("counting_clock="))?;
    (!is_linux()).then(|| value.parse().expect("a number"))
}

/// Uses `few` things and ten times as many, each in a process of its own, and compares what one costs. `work` makes them, and returns the
/// time that using all of them took.
#[track_caller]
fn compare(few: usize, work: impl Fn(usize) -> u64) {
    let shared = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let cost = |many: usize| {
        child::in_child(|| shared.set_u64(0, work(many)));
        shared.get_u64(0) / many as u64
    };
    let Some(times) = counting_clock() else {
        cost(few);
        return;
    };
    let few = few * times;
    let (one, tenth) = (cost(10 * few), cost(few));
    println!("# with {few}: {tenth} instructions each; with {}: {one}", 10 * few);
    assert!(tenth > 0, "the clock stands still");
    assert!(one <= 2 * tenth, "{tenth} instructions each with {few}, {one} with {}", 10 * few);
}

/// The time that `work` takes, in nanoseconds.
fn timed(work: impl FnOnce()) -> u64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as u64
}

/// The system allows a program many of everything.
fn more_areas() {
    procfs::write("/proc/sys/vm/max_map_count", 1 << 20).expect("max_map_count");
}

fn more_of(resource: libc::__rlimit_resource_t) {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the limit lives through the call.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

fn more_descriptors() {
    more_of(libc::RLIMIT_NOFILE);
}

fn more_signals() {
    more_of(libc::RLIMIT_SIGPENDING);
}

const FEW: usize = 1000;

/// Single pages of address space with a page of nothing behind each.
fn areas(count: usize, protection: i32) -> usize {
    more_areas();
    let whole = Map::new(2 * count * PAGE, NONE, PRIVATE | ANON | NORESERVE, -1, 0).expect("address space");
    let address = whole.address;
    drop(whole);
    for index in 0..count {
        mmap(address + 2 * index * PAGE, PAGE, protection, PRIVATE | ANON | FIXED, -1, 0).expect("mmap");
    }
    address
}

fn areas_unmapped_front_first() {
    compare(FEW, |count| {
        let at = areas(count, NONE);
        timed(|| (0..count).for_each(|index| munmap(at + 2 * index * PAGE, PAGE).expect("munmap")))
    });
}

fn areas_searched_past_small_holes() {
    compare(FEW, |count| {
        // High up, where mmap looks first.
        areas(count, NONE);
        timed(|| {
            for _ in 0..count {
                let large = mmap(0, 2 * PAGE, NONE, PRIVATE | ANON, -1, 0).expect("mmap");
                munmap(large, 2 * PAGE).expect("munmap");
            }
        })
    });
}

fn areas_protected() {
    compare(FEW, |count| {
        let at = areas(count, RW);
        timed(|| (0..count).for_each(|index| mprotect(at + 2 * index * PAGE, PAGE, R).expect("mprotect")))
    });
}

fn areas_locked() {
    compare(FEW, |count| {
        let at = areas(count, RW);
        let lock = |index| call(libc::SYS_mlock2, [at + 2 * index * PAGE, PAGE, 1, 0, 0, 0]);
        timed(|| (0..count).for_each(|index| assert_eq!(lock(index), Ok(0))))
    });
}

fn areas_moved() {
    compare(FEW, |count| {
        let at = areas(count, RW);
        let to = Map::reserve(count * PAGE, PAGE);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        timed(|| {
            for index in 0..count {
                let target = to.address + index * PAGE;
                assert_eq!(mremap(at + 2 * index * PAGE, PAGE, PAGE, flags, target), Ok(target));
            }
        })
    });
}

fn areas_forked() {
    compare(FEW, |count| {
        areas(count, RW);
        timed(|| child::in_child(|| ()))
    });
}

/// Reads all of a file in small pieces.
fn read_in_pieces(path: &str) -> u64 {
    let file = Fd::open(path, libc::O_RDONLY).expect(path);
    let mut piece = [0; 512];
    timed(|| while file.read(&mut piece).expect("read") > 0 {})
}

fn maps_read_in_pieces() {
    compare(FEW, |count| {
        areas(count, NONE);
        read_in_pieces("/proc/self/maps")
    });
}

fn smaps_read_in_pieces() {
    compare(FEW / 4, |count| {
        areas(count, NONE);
        read_in_pieces("/proc/self/smaps")
    });
}

fn mappings_of_one_file() {
    compare(FEW, |count| {
        let file = Fd::temporary();
        file.truncate((2 * count * PAGE) as u64).expect("ftruncate");
        let at = areas(count, NONE);
        for index in 0..count {
            let (address, offset) = (at + 2 * index * PAGE, (2 * index * PAGE) as i64);
            mmap(address, PAGE, RW, PRIVATE | FIXED, file.raw(), offset).expect("mmap of the file");
        }
        timed(|| {
            for index in 0..count {
                let offset = ((2 * index + 1) * PAGE) as u64;
                assert_eq!(file.write_at(&[1], offset), Ok(1));
                file.punch(offset, PAGE as u64).expect("punch");
            }
        })
    });
}

fn duplicate(fd: &Fd) -> i32 {
    // SAFETY: takes an integer.
    check(unsafe { libc::dup(fd.raw()) }).expect("dup") as i32
}

fn close(fd: i32) {
    // SAFETY: the test has made it, and nothing else knows it.
    check(unsafe { libc::close(fd) }).expect("close");
}

fn descriptors_reopened() {
    more_descriptors();
    compare(FEW, |count| {
        let file = Fd::open("/dev/null", libc::O_RDWR).expect("/dev/null");
        let first = duplicate(&file);
        (1..count).for_each(|_| _ = duplicate(&file));
        timed(|| {
            for _ in 0..count {
                // The lowest is free, and then the one behind all.
                close(first);
                assert_eq!(duplicate(&file), first);
                let last = duplicate(&file);
                assert!(last >= count as i32);
                close(last);
            }
        })
    });
}

fn descriptors_forked() {
    more_descriptors();
    compare(FEW, |count| {
        let file = Fd::open("/dev/null", libc::O_RDWR).expect("/dev/null");
        (0..count).for_each(|_| _ = duplicate(&file));
        timed(|| {
            child::in_child(|| ());
            assert_eq!(call(libc::SYS_close_range, [10, u32::MAX as usize, 0, 0, 0, 0]), Ok(0));
        })
    });
}

/// A new directory with so many names, made the working directory.
fn names(count: usize) {
    let path = format!("/tmp/many-{}", std::process::id());
    std::fs::create_dir(&path).expect("mkdir");
    std::env::set_current_dir(&path).expect("chdir");
    (0..count).for_each(|index| std::fs::write(index.to_string(), "").expect("create"));
}

fn remove_names() {
    let path = std::env::current_dir().expect("getcwd");
    std::fs::remove_dir_all(path).expect("remove");
}

fn names_unlinked() {
    compare(FEW, |count| {
        names(count);
        let time = timed(|| (0..count).for_each(|i| std::fs::remove_file(i.to_string()).expect("unlink")));
        remove_names();
        time
    });
}

fn names_read_in_pieces() {
    compare(FEW, |count| {
        names(count);
        let fd = Fd::open(".", libc::O_RDONLY | libc::O_DIRECTORY).expect("open");
        let buffer = Map::anonymous(PAGE);
        let read = || call(libc::SYS_getdents64, [fd.raw() as usize, buffer.address, 128, 0, 0, 0]);
        let time = timed(|| while read().expect("getdents64") > 0 {});
        remove_names();
        time
    });
}

fn epoll() -> Fd {
    // SAFETY: takes an integer.
    Fd::own(check(unsafe { libc::epoll_create1(0) }).expect("epoll_create1"))
}

fn watch(epoll: &Fd, operation: i32, fd: i32) {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: the event lives through the call.
    check(unsafe { libc::epoll_ctl(epoll.raw(), operation, fd, &mut event) }).expect("epoll_ctl");
}

fn epoll_events() {
    more_descriptors();
    compare(FEW, |count| {
        let epoll = epoll();
        for _ in 0..count {
            // SAFETY: takes integers.
            let fd = check(unsafe { libc::eventfd(1, 0) }).expect("eventfd");
            watch(&epoll, libc::EPOLL_CTL_ADD, fd as i32);
        }
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        timed(|| {
            for _ in 0..count {
                // SAFETY: there is room for one event.
                assert_eq!(check(unsafe { libc::epoll_wait(epoll.raw(), &mut event, 1, 0) }), Ok(1));
            }
        })
    });
}

fn segments() {
    std::fs::write("/proc/sys/kernel/shmmni", "32768").expect("shmmni");
    compare(FEW / 4, |count| {
        let get = |key: usize, flags: i32| {
            call(libc::SYS_shmget, [key, PAGE, (flags | 0o600) as usize, 0, 0, 0]).expect("shmget")
        };
        let mut time = 0;
        for _ in 0..2 {
            time += timed(|| {
                let ids: Vec<usize> = (1..=count).map(|key| get(key, libc::IPC_CREAT)).collect();
                (1..=count).for_each(|key| assert_eq!(get(key, 0), ids[key - 1]));
                for id in ids {
                    assert_eq!(call(libc::SYS_shmctl, [id, libc::IPC_RMID as usize, 0, 0, 0, 0]), Ok(0));
                }
            });
        }
        time
    });
}

fn mounts() {
    compare(FEW / 10, |count| {
        names(0);
        let folders: Vec<_> = (0..count).map(|index| c_string(&index.to_string())).collect();
        let source = c_string("/proc");
        let time = timed(|| {
            for folder in &folders {
                std::fs::create_dir(folder.to_str().expect("text")).expect("mkdir");
                let none = std::ptr::null();
                // SAFETY: the names are NUL-terminated, and a bind mount reads nothing else.
                let result = unsafe {
                    libc::mount(source.as_ptr(), folder.as_ptr(), none, libc::MS_BIND, std::ptr::null())
                };
                check(result).expect("mount");
            }
            // SAFETY: the names are NUL-terminated.
            folders.iter().for_each(|f| _ = check(unsafe { libc::umount2(f.as_ptr(), 0) }).expect("umount"));
        });
        remove_names();
        time
    });
}

fn pending_signals() {
    more_signals();
    compare(FEW, |count| {
        let first = libc::SIGRTMIN() + 1;
        // SAFETY: the sets live through the calls.
        unsafe {
            let mut both: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut both);
            libc::sigaddset(&mut both, first);
            libc::sigaddset(&mut both, first + 1);
            libc::sigprocmask(libc::SIG_BLOCK, &both, std::ptr::null_mut());
            let mut second: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut second);
            libc::sigaddset(&mut second, first + 1);
            let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
            let send = |signal| check(libc::sigqueue(libc::getpid(), signal, value)).expect("sigqueue");
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            (0..count).for_each(|_| _ = send(first));
            timed(|| {
                for _ in 0..count {
                    send(first + 1);
                    assert_eq!(libc::sigtimedwait(&second, std::ptr::null_mut(), &now), first + 1);
                }
            })
        }
    });
}

fn timers() {
    more_signals();
    compare(FEW / 4, |count| {
        let mut ids = vec![std::ptr::null_mut(); count];
        timed(|| {
            for id in &mut ids {
                // SAFETY: the identifier has room; without an event it is SIGALRM, which is never sent.
                let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, std::ptr::null_mut(), id) };
                check(made).expect("timer_create");
            }
            // SAFETY: made just now.
            ids.iter().for_each(|id| _ = check(unsafe { libc::timer_delete(*id) }).expect("timer_delete"));
        })
    });
}

fn processes() {
    // Each child has a pipe to this process.
    more_descriptors();
    compare(FEW / 20, |count| {
        let mut children: Vec<_> = Vec::new();
        let sleep = || loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        };
        children.extend((0..count).map(|_| child::fork(sleep)));
        let fd = Fd::open("/proc", libc::O_RDONLY | libc::O_DIRECTORY).expect("/proc");
        let buffer = Map::anonymous(PAGE);
        let read = || call(libc::SYS_getdents64, [fd.raw() as usize, buffer.address, 128, 0, 0, 0]);
        timed(|| {
            while read().expect("getdents64") > 0 {}
            children.drain(..).for_each(child::Child::end);
        })
    });
}

fn threads() {
    compare(FEW / 20, |count| {
        let (read, write) = pipe(0);
        let fd = read.raw();
        timed(|| {
            let threads: Vec<_> = (0..count)
                .map(|_| {
                    std::thread::spawn(move || {
                        let mut byte = 0u8;
                        // SAFETY: the byte lives through the call, which ends when the pipe is closed.
                        unsafe { libc::read(fd, (&raw mut byte).cast(), 1) }
                    })
                })
                .collect();
            drop(write);
            threads.into_iter().for_each(|thread| assert_eq!(thread.join().expect("join"), 0));
        })
    });
}

fn backlog() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    more_descriptors();
    compare(FEW / 4, |count| {
        let name = SocketAddr::from_abstract_name(b"many").expect("a name");
        let listener = UnixListener::bind_addr(&name).expect("bind");
        std::fs::write("/proc/sys/net/core/somaxconn", count.to_string()).expect("somaxconn");
        // SAFETY: takes integers.
        check(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), count as i32) })
            .expect("listen");
        timed(|| {
            let clients: Vec<_> =
                (0..count).map(|_| UnixStream::connect_addr(&name).expect("connect")).collect();
            let servers: Vec<_> = (0..count).map(|_| listener.accept().expect("accept")).collect();
            drop((clients, servers));
        })
    });
}

fn record_locks() {
    compare(FEW, |count| {
        let file = Fd::temporary();
        let lock = |kind: i32, at: usize| {
            // SAFETY: a flock of zeros is valid.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            (lock.l_type, lock.l_start, lock.l_len) = (kind as i16, at as i64, 1);
            // SAFETY: the structure lives through the call.
            check(unsafe { libc::fcntl(file.raw(), libc::F_SETLK, &lock) }).expect("F_SETLK");
        };
        timed(|| {
            (0..count).for_each(|index| lock(libc::F_WRLCK, 2 * index));
            (0..count).for_each(|index| lock(libc::F_UNLCK, 2 * index));
        })
    });
}

fn whole_file_locks() {
    more_descriptors();
    compare(FEW, |count| {
        std::fs::write("/tmp/locked", "").expect("create");
        let open = || Fd::open("/tmp/locked", libc::O_RDONLY).expect("open");
        let files: Vec<Fd> = (0..count).map(|_| open()).collect();
        let lock =
            |file: &Fd, how: i32| call(libc::SYS_flock, [file.raw() as usize, how as usize, 0, 0, 0, 0]);
        timed(|| {
            files.iter().for_each(|file| assert_eq!(lock(file, libc::LOCK_SH), Ok(0)));
            files.iter().for_each(|file| assert_eq!(lock(file, libc::LOCK_UN), Ok(0)));
        })
    });
}

fn epoll_watches() {
    more_descriptors();
    compare(FEW, |count| {
        let (epoll, pipe) = (epoll(), pipe(0));
        let copies: Vec<i32> = (0..count).map(|_| duplicate(&pipe.0)).collect();
        timed(|| {
            copies.iter().for_each(|fd| watch(&epoll, libc::EPOLL_CTL_ADD, *fd));
            copies.iter().rev().for_each(|fd| watch(&epoll, libc::EPOLL_CTL_DEL, *fd));
        })
    });
}

/// By how much a real-time process came late, at the most, while `work` was done.
fn latest(shared: &Map, work: impl FnOnce()) -> u64 {
    shared.set_u64(8, 0);
    work();
    shared.get_u64(8)
}

/// A process ends whose memory was another's as well, since a fork.
fn exit_last() {
    child::in_child(|| {
        let map = Map::new(64 << 20, RW, PRIVATE | ANON, -1, 0).expect("memory");
        (0..map.length).step_by(PAGE).for_each(|at| map.set(at, 1));
        child::in_child(|| ());
        std::mem::forget(map);
    });
}

/// Whoever is more urgent than a long call waits for some thousand instructions of it.
fn long_calls_give_way() {
    const MEMORY: usize = 192 << 20;
    const SPARSE: usize = 32 << 30;
    /// What may pass between the end of the bystander's sleep and its next instruction, in nanoseconds, of which each is an instruction.
    const LATENCY: u64 = 200_000;
    const SLEEP: std::time::Duration = std::time::Duration::from_micros(100);
    let shared = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let stop: &AtomicU32 = shared.atomic(0);
    let bystander = child::fork(|| {
        let urgent = libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameters live through the call.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &urgent) }).expect("sched_setscheduler");
        while stop.load(Ordering::Relaxed) == 0 {
            let start = Instant::now();
            std::thread::sleep(SLEEP);
            let late = (start.elapsed() - SLEEP).as_nanos() as u64;
            shared.set_u64(8, late.max(shared.get_u64(8)));
        }
    });
    let usual = latest(&shared, || {
        let start = Instant::now();
        while start.elapsed().as_millis() < 100 {}
    });
    let map = Map::new(MEMORY, RW, PRIVATE | ANON, -1, 0).expect("memory");
    let sparse = Map::new(SPARSE, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("address space");
    // Linux would take huge pages for it.
    madvise(sparse.address, SPARSE, libc::MADV_NOHUGEPAGE).expect("MADV_NOHUGEPAGE");
    let target = Map::reserve(MEMORY, PAGE);
    let fill = || (0..MEMORY).step_by(PAGE).for_each(|at| map.set(at, 1));
    // Each page needs a table of its own.
    let fill_sparse = || (0..SPARSE).step_by(2 << 20).for_each(|at| sparse.set(at, 1));
    let move_to = |from: usize, to: usize| {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        assert_eq!(mremap(from, MEMORY, MEMORY, flags, to), Ok(to));
    };
    fill();
    fill_sparse();
    let mut late = vec![
        ("fork and exit", latest(&shared, || child::in_child(|| ()))),
        ("exit of the last that shares", latest(&shared, exit_last)),
        ("mprotect", latest(&shared, || mprotect(map.address, MEMORY, R).expect("mprotect"))),
        ("mprotect back", latest(&shared, || mprotect(map.address, MEMORY, RW).expect("mprotect"))),
        ("mremap", latest(&shared, || move_to(map.address, target.address))),
        ("mremap back", latest(&shared, || move_to(target.address, map.address))),
        ("mincore", latest(&shared, || _ = mincore(map.address, MEMORY).expect("mincore"))),
        ("smaps", latest(&shared, || _ = std::fs::read("/proc/self/smaps").expect("smaps"))),
        ("discard", {
            let discard = || madvise(map.address, MEMORY, libc::MADV_DONTNEED).expect("MADV_DONTNEED");
            latest(&shared, discard)
        }),
        ("munmap of tables", latest(&shared, || munmap(sparse.address, SPARSE).expect("munmap"))),
    ];
    fill();
    late.push(("munmap", latest(&shared, || munmap(map.address, MEMORY).expect("munmap"))));
    stop.store(1, Ordering::Relaxed);
    bystander.ok();
    println!("# usually {usual} instructions late; late: {late:?}");
    if counting_clock().is_some() {
        let long: Vec<_> = late.iter().filter(|(_, late)| *late > LATENCY).collect();
        assert!(usual > 0 && long.is_empty(), "usually {usual} instructions late; {long:?}");
    }
}

fn sockets_in_flight() {
    more_descriptors();
    compare(FEW / 2, |count| {
        const EACH: usize = 200;
        let kind = libc::SOCK_STREAM;
        let (from, to) = socket::pair(kind);
        let sent: Vec<(Fd, Fd)> = (0..count / 2).map(|_| socket::pair(kind)).collect();
        let numbers: Vec<i32> = sent.iter().flat_map(|(a, b)| [a.raw(), b.raw()]).collect();
        for some in numbers.chunks(EACH) {
            assert_eq!(socket::send_files(&from, b"x", some), Ok(1));
        }
        let others: Vec<(Fd, Fd)> = (0..count).map(|_| socket::pair(kind)).collect();
        let time = timed(|| drop(others));
        drop((sent, to));
        time
    });
}

/// Who polls for room in a full socket waits there once.
fn polls_of_full_sockets() {
    compare(FEW, |count| {
        let (from, to) = socket::pair(libc::SOCK_DGRAM);
        while socket::send(&from, b"x", libc::MSG_DONTWAIT).is_ok() {}
        let poll = || {
            let mut fd = libc::pollfd { fd: from.raw(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: there is one entry.
            check(unsafe { libc::poll(&mut fd, 1, 0) }).expect("poll")
        };
        (0..count).for_each(|_| assert_eq!(poll(), 0));
        // The reader tells who waits, which is one, whatever the number of polls: as a sum it is what each poll cost.
        count as u64 * timed(|| assert_eq!(socket::recv(&to, &mut [0; 8], 0), Ok(1)))
    });
}

/// Each page that comes into a region of many areas.
fn pages_of_a_region() {
    if mshare::mount().is_err() {
        harness::skip("this kernel has no msharefs");
    }
    more_areas();
    compare(FEW, |count| {
        let region = Region::new();
        let map = region.attach();
        for index in 0..count {
            let private = PRIVATE | ANON | NORESERVE;
            region.map(2 * index * PAGE, PAGE, RW, private, -1, 0).expect("a mapping inside");
        }
        let time = timed(|| (0..count).for_each(|index| map.set(2 * index * PAGE, 1)));
        drop(map);
        time
    });
}
