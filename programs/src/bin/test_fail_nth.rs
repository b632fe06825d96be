//! Every allocation of a scenario fails once: the nth one, for every n until there is none left.
//!
//! After each failure everything is as it was before: huge pages, page tables, descriptors, processes; and free memory in the end.
//! Kernels that are built to be checked have `/proc/self/fail-nth` for that.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use roundtable_programs::cgroup::Group;
use roundtable_programs::child::{self, End};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::inject::Injector;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED};
use roundtable_programs::procfs::Meminfo;
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::{Errno, place, procfs, socket, tests};

tests! { map_and_touch, map_file, populate, move_pages, map_huge, fault_huge_private, punch_huge, truncate_huge, move_huge,
split_huge, fork_small: 60, fork_large: 100, fork_huge: 60, execute: 100, threads: 60, mount, segments, sockets, rights, epoll, pipes, files,
directories, polls, futexes, proc_files, groups, control_groups: 100 }

/// The pool of the scenarios with huge pages.
const POOL: u64 = 16;
/// Tables that the program itself may need for new memory of its own, in kB: far less than what leaks in a sweep.
const OWN_TABLES: u64 = 64;
/// No scenario makes more allocations that can fail.
const MOST: u32 = 5000;

/// What must be the same after each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    pool: huge::Counters,
    tables_kb: u64,
    descriptors: usize,
    processes: usize,
    areas: usize,
    shared_kb: u64,
}

impl State {
    fn take() -> State {
        let entries = |path: &str| std::fs::read_dir(path).expect("directory").count();
        let meminfo = Meminfo::read();
        State {
            pool: huge::counters(),
            tables_kb: meminfo.get("PageTables"),
            descriptors: entries("/proc/self/fd"),
            processes: procfs::process_count(),
            areas: std::fs::read_to_string("/proc/self/maps").expect("maps").lines().count(),
            shared_kb: meminfo.get("Shmem"),
        }
    }

    /// What is other than it was; tables of the program's own memory may have come, if no more than a few.
    fn difference(&self, before: &State) -> String {
        let now = State { tables_kb: 0, ..*self };
        let then = State { tables_kb: 0, ..*before };
        let tables = self.tables_kb.saturating_sub(before.tables_kb);
        if now == then && tables <= OWN_TABLES { String::new() } else { format!("{self:?} after {before:?}") }
    }

    /// As `take`, once what ends by itself has ended: processes that were waited for, tables in their grace period.
    fn settled(expected: &State) -> State {
        roundtable_programs::sys::settles(std::time::Duration::from_secs(5), || {
            State::take().difference(expected).is_empty()
        });
        State::take()
    }
}

/// Runs the scenario over and over, and each time a later allocation fails. The scenario undoes what it does, also after a failure.
fn sweep(scenario: impl Fn() -> Result<(), Errno>) {
    sweep_and_clean(scenario, || ());
}

/// As [`sweep`]; `clean_up` undoes what the scenario has done, and nothing is made to fail in it.
fn sweep_and_clean(scenario: impl Fn() -> Result<(), Errno>, clean_up: impl Fn()) {
    let injector = Injector::new();
    // What is made once stays.
    for _ in 0..3 {
        scenario().expect("without a failure");
        clean_up();
    }
    let before = State::take();
    let free = Meminfo::read().get("MemFree");
    let mut failures = 0;
    let mut nth = 1;
    loop {
        injector.arm(nth);
        let result = scenario();
        let left = injector.disarm();
        clean_up();
        failures += u32::from(result.is_err());
        let differs = State::settled(&before).difference(&before);
        assert_eq!(differs, "", "after failure {nth}, which gave {result:?}");
        if left > 0 {
            assert_eq!(result, Ok(()), "nothing failed, but it did");
            break;
        }
        nth += 1;
        assert!(nth < MOST, "there is no end");
    }
    println!("# {} allocations can fail, {failures} are told to the program", nth - 1);
    assert!(nth > 1, "nothing was made to fail");
    let room = 256;
    roundtable_programs::sys::settles(std::time::Duration::from_secs(5), || {
        Meminfo::read().get("MemFree") + room >= free
    });
    let now = Meminfo::read().get("MemFree");
    assert!(now + room >= free, "{} kB leaked in {nth} runs", free - now);
}

fn with_pool(scenario: impl Fn() -> Result<(), Errno>) {
    assert_eq!(huge::set_pool(POOL), POOL);
    sweep(scenario);
    assert_eq!(huge::set_pool(0), 0);
}

fn map_and_touch() {
    sweep(|| {
        let map = Map::new(16 << 20, RW, PRIVATE | ANON, -1, 0)?;
        (0..16 << 20).step_by(1 << 20).for_each(|at| map.set(at, 1));
        map.unmap()
    });
}

fn map_file() {
    sweep(|| {
        let file = Fd::memfd("file", 0)?;
        file.truncate(8 << 20)?;
        let shared = file.map(8 << 20, RW, SHARED)?;
        let private = file.map(8 << 20, RW, PRIVATE)?;
        (0..8 << 20).step_by(1 << 20).for_each(|at| shared.set(at, 1));
        (0..8 << 20).step_by(2 << 20).for_each(|at| private.set(at, 2));
        file.punch(1 << 20, 3 << 20)?;
        file.truncate(4096)
    });
}

fn populate() {
    sweep(|| {
        let flags = PRIVATE | ANON | libc::MAP_POPULATE;
        let map = Map::new(256 << 10, RW, flags, -1, 0)?;
        // SAFETY: the range is mapped.
        check(unsafe { libc::mlock(map.address as *const _, 256 << 10) })?;
        map.unmap()
    });
}

fn move_pages() {
    sweep(|| {
        let map = Map::new(4 << 20, RW, PRIVATE | ANON, -1, 0)?;
        (0..4 << 20).step_by(64 << 10).for_each(|at| map.set(at, 1));
        let target = Map::reserve(8 << 20, 4096);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        roundtable_programs::mem::mremap(map.address, 4 << 20, 6 << 20, flags, target.address)?;
        // The old place is a hole now; its owner unmaps it for nothing.
        target.unmap()
    });
}

fn huge_file(pages: usize) -> Result<Fd, Errno> {
    let file = Fd::memfd("huge", libc::MFD_HUGETLB)?;
    file.truncate((pages * HUGE) as u64)?;
    Ok(file)
}

fn map_huge() {
    with_pool(|| {
        let file = huge_file(8)?;
        let one = file.map(8 * HUGE, RW, SHARED)?;
        let two = file.map(8 * HUGE, RW, SHARED)?;
        (0..8).for_each(|page| one.set(page * HUGE, 1));
        (0..8).for_each(|page| assert_eq!(two.get(page * HUGE), 1));
        Ok(())
    });
}

fn fault_huge_private() {
    with_pool(|| {
        let file = huge_file(4)?;
        let shared = file.map(4 * HUGE, RW, SHARED)?;
        let private = file.map(4 * HUGE, RW, PRIVATE)?;
        (0..4).for_each(|page| shared.set(page * HUGE, 1));
        (0..4).for_each(|page| private.set(page * HUGE, 2));
        roundtable_programs::mem::madvise(private.address, 2 * HUGE, libc::MADV_DONTNEED)
    });
}

fn punch_huge() {
    with_pool(|| {
        let file = huge_file(8)?;
        let map = file.map(8 * HUGE, RW, SHARED)?;
        file.fallocate(0, 0, 8 * HUGE as u64)?;
        file.punch(HUGE as u64, 3 * HUGE as u64)?;
        map.set(2 * HUGE, 1);
        Ok(())
    });
}

fn truncate_huge() {
    with_pool(|| {
        let file = huge_file(8)?;
        let map = file.map(8 * HUGE, RW, SHARED)?;
        (0..8).for_each(|page| map.set(page * HUGE, 1));
        file.truncate(HUGE as u64)?;
        file.truncate(4 * HUGE as u64)?;
        map.set(3 * HUGE, 1);
        Ok(())
    });
}

fn move_huge() {
    with_pool(|| {
        let file = huge_file(4)?;
        let map = file.map(4 * HUGE, RW, SHARED)?;
        (0..4).for_each(|page| map.set(page * HUGE, 1));
        let target = Map::reserve(4 * HUGE, HUGE);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        roundtable_programs::mem::mremap(map.address, 4 * HUGE, 4 * HUGE, flags, target.address)?;
        assert_eq!(target.get(3 * HUGE), 1);
        Ok(())
    });
}

fn split_huge() {
    with_pool(|| {
        let file = huge_file(8)?;
        for flags in [SHARED, PRIVATE] {
            let map = file.map(8 * HUGE, RW, flags)?;
            (0..8).for_each(|page| map.set(page * HUGE, 1));
            roundtable_programs::mem::mprotect(map.address + 2 * HUGE, 2 * HUGE, libc::PROT_READ)?;
            roundtable_programs::mem::munmap(map.address + 5 * HUGE, HUGE)?;
            // Base pages beside huge ones, in the same slot.
            let place = map.address + 5 * HUGE;
            let base = Map::at(place, HUGE, RW, PRIVATE | ANON | libc::MAP_FIXED_NOREPLACE, -1, 0)?;
            base.set(0, 1);
        }
        Ok(())
    });
}

/// fork(2) by the bare call: the child does nothing but end.
fn fork_once() -> Result<(), Errno> {
    // SAFETY: the child ends at once.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::last()),
        // SAFETY: ends the process.
        0 => unsafe { libc::_exit(0) },
        pid => {
            assert_eq!(child::waitpid(pid, 0), Ok((pid, End::Code(0))));
            Ok(())
        }
    }
}

fn fork_small() {
    sweep(fork_once);
}

/// With many areas of all kinds.
fn fork_large() {
    let file = Fd::of_pages(4);
    let maps: Vec<Map> = (0..100)
        .map(|index| {
            let protection = if index % 2 == 0 { RW } else { libc::PROT_READ };
            match index % 4 {
                0 => Map::new(8192, RW, PRIVATE | ANON, -1, 0),
                1 => file.map(8192, protection, SHARED),
                2 => file.map(8192, protection, PRIVATE),
                _ => Map::new(8192, protection, SHARED | ANON, -1, 0),
            }
            .expect("mmap")
        })
        .collect();
    maps.iter().step_by(2).for_each(|map| map.set(0, 1));
    sweep(fork_once);
}

fn fork_huge() {
    assert_eq!(huge::set_pool(POOL), POOL);
    let file = huge_file(4).expect("memfd");
    let shared = file.map(4 * HUGE, RW, SHARED).expect("mmap");
    let private = file.map(4 * HUGE, RW, PRIVATE).expect("mmap");
    (0..4).for_each(|page| shared.set(page * HUGE, 1));
    (0..4).for_each(|page| private.set(page * HUGE, 1));
    sweep(fork_once);
    drop((shared, private, file));
    assert_eq!(huge::set_pool(0), 0);
}

/// execve(2), by a child with an injector of its own. It says in its status whether anything was left to fail.
fn execute() {
    const LEFT: i32 = 40;
    const REFUSED: i32 = 41;
    let injected = AtomicU32::new(0);
    let run = |nth: u32| {
        let child = child::fork_code(|| {
            let injector = Injector::new();
            // SAFETY: `_exit` takes an integer; the texts live through the call.
            unsafe {
                // The program ends at once: its copy of the C library sees to it that there is nothing to do.
                let arguments = [c"test_fail_nth".as_ptr(), c"--list".as_ptr(), std::ptr::null()];
                let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
                libc::dup2(null, 1);
                // The new program must not meet the injector: a pipe that the call closes tells that it went well.
                injector.arm(nth);
                libc::execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr());
            }
            if injector.disarm() > 0 { LEFT } else { REFUSED }
        });
        let end = child.wait();
        injected.fetch_add(u32::from(end == End::Code(REFUSED)), Ordering::SeqCst);
        end
    };
    Injector::new();
    assert_eq!(run(0), End::Code(0));
    let before = State::take();
    let mut went_well = 0;
    // Behind the last allocation of the call it goes well each time.
    for nth in 1.. {
        if went_well > 10 {
            break;
        }
        match run(nth) {
            // The call was refused, and the old program went on.
            End::Code(REFUSED) => {}
            // It went well: what failed was not needed, or was made to fail in the new program, which was told so or not.
            End::Code(_) => went_well += 1,
            // Behind the point of no return there is nobody to be told.
            End::Signal(libc::SIGKILL | libc::SIGSEGV | libc::SIGBUS) => {}
            end => panic!("after failure {nth}: {end:?}"),
        }
        assert_eq!(State::settled(&before).difference(&before), "", "after failure {nth}");
    }
    println!("# {} calls were refused, {went_well} went well", injected.load(Ordering::SeqCst));
    assert!(injected.load(Ordering::SeqCst) > 10);
}

fn threads() {
    sweep(|| {
        extern "C" fn nothing(_: *mut libc::c_void) -> *mut libc::c_void {
            std::ptr::null_mut()
        }
        let mut thread = 0;
        // SAFETY: the function lives for ever, and the thread is joined.
        unsafe {
            match libc::pthread_create(&mut thread, std::ptr::null(), nothing, std::ptr::null_mut()) {
                0 => {
                    libc::pthread_join(thread, std::ptr::null_mut());
                    Ok(())
                }
                error => Err(Errno::from_raw(error)),
            }
        }
    });
}

fn mount() {
    const DIRECTORY: &str = "/tmp/fail-nth-mount";
    std::fs::create_dir(DIRECTORY).expect("mkdir");
    let path = c_string(DIRECTORY);
    let scenario = || {
        // SAFETY: the texts live through the calls.
        unsafe {
            check(libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()))?;
            let null = std::ptr::null();
            check(libc::mount(path.as_ptr(), path.as_ptr(), null, libc::MS_BIND, null.cast()))?;
            check(libc::umount2(path.as_ptr(), libc::MNT_DETACH)).map(|_| ())
        }
    };
    // SAFETY: the text lives through the call.
    let unmount = || check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) });
    sweep_and_clean(scenario, || while unmount().is_ok() {});
    std::fs::remove_dir(DIRECTORY).expect("rmdir");
}

fn segments() {
    let made = Cell::new(-1);
    let scenario = || {
        // SAFETY: takes integers and null pointers; the segment is attached when it is written to.
        unsafe {
            made.set(check(libc::shmget(libc::IPC_PRIVATE, 1 << 20, 0o600))? as i32);
            let at = libc::shmat(made.get(), std::ptr::null(), 0);
            if at as isize == -1 {
                return Err(Errno::last());
            }
            at.cast::<u8>().write_volatile(1);
            check(libc::shmdt(at)).map(|_| ())
        }
    };
    let remove = || {
        // SAFETY: takes integers and a null pointer.
        let _ = check(unsafe { libc::shmctl(made.replace(-1), libc::IPC_RMID, std::ptr::null_mut()) });
    };
    sweep_and_clean(scenario, remove);
}

fn try_pair(kind: i32) -> Result<(Fd, Fd), Errno> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    Ok((Fd::own(ends[0] as usize), Fd::own(ends[1] as usize)))
}

fn sockets() {
    sweep(|| {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (one, other) = try_pair(kind)?;
            socket::send(&one, &[1; 20_000], 0)?;
            socket::recv(&other, &mut [0; 100], libc::MSG_PEEK)?;
            socket::recv(&other, &mut [0; 20_000], 0)?;
        }
        Ok(())
    });
}

/// Descriptors that are sent, some of them received.
fn rights() {
    sweep(|| {
        let (one, other) = try_pair(libc::SOCK_STREAM)?;
        for _ in 0..3 {
            send_rights(&one, &[other.raw(); 100])?;
        }
        let mut byte = [0];
        socket::recv(&other, &mut byte, 0).map(|_| ())
    });
}

fn send_rights(through: &Fd, fds: &[i32]) -> Result<(), Errno> {
    let space = 16 + fds.len() * 4;
    let mut control = vec![0u64; space.div_ceil(8)];
    let mut byte = 0u8;
    let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: an all-zero header is a valid one; the control buffer has room for one header and the descriptors.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = space;
        std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        check(libc::sendmsg(through.raw(), &message, 0) as i64).map(|_| ())
    }
}

fn event() -> Result<Fd, Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::eventfd(1, 0) }).map(Fd::own)
}

fn epoll() {
    sweep(|| {
        // SAFETY: takes an integer.
        let epoll = check(unsafe { libc::epoll_create1(0) }).map(Fd::own)?;
        let events = [event()?, event()?, event()?];
        for event in &events {
            let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            // SAFETY: the structure lives through the call.
            check(unsafe { libc::epoll_ctl(epoll.raw(), libc::EPOLL_CTL_ADD, event.raw(), &mut interest) })?;
        }
        let mut found = [libc::epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: the array lives through the call.
        let count = check(unsafe { libc::epoll_wait(epoll.raw(), found.as_mut_ptr(), 8, 0) })?;
        assert!(count > 0);
        Ok(())
    });
}

fn pipes() {
    sweep(|| {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) })?;
        let (read, write) = (Fd::own(ends[0] as usize), Fd::own(ends[1] as usize));
        write.write(&[1; 65536])?;
        read.read(&mut [0; 65536])?;
        Ok(())
    });
}

fn files() {
    let scenario = || {
        let file = Fd::open("/tmp/fail-nth", libc::O_RDWR | libc::O_CREAT)?;
        file.write_at(&[1; 100_000], 0)?;
        // SAFETY: an all-zero structure is a valid one, and it lives through the call.
        unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = libc::F_WRLCK as i16;
            lock.l_len = 10;
            check(libc::fcntl(file.raw(), libc::F_SETLK, &lock)).map(|_| ())
        }
    };
    sweep_and_clean(scenario, || _ = std::fs::remove_file("/tmp/fail-nth"));
}

fn directories() {
    const DIRECTORY: &str = "/tmp/fail-nth-d";
    let [directory, link, other] =
        ["", "/link", "/other"].map(|name| c_string(&format!("{DIRECTORY}{name}")));
    let scenario = || {
        // SAFETY: the texts live through the calls.
        unsafe {
            check(libc::mkdir(directory.as_ptr(), 0o700))?;
            check(libc::symlink(c"somewhere".as_ptr(), link.as_ptr()))?;
            check(libc::rename(link.as_ptr(), other.as_ptr()))?;
        }
        let open = Fd::open(DIRECTORY, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let mut buffer = [0u8; 1024];
        // SAFETY: the buffer lives through the call.
        check(unsafe { libc::syscall(libc::SYS_getdents64, open.raw(), buffer.as_mut_ptr(), buffer.len()) })
            .map(|_| ())
    };
    sweep_and_clean(scenario, || _ = std::fs::remove_dir_all(DIRECTORY));
}

fn polls() {
    sweep(|| {
        let events: Vec<Fd> = (0..20).map(|_| event()).collect::<Result<_, _>>()?;
        let mut entries: Vec<libc::pollfd> = (0..1000)
            .map(|index| libc::pollfd { fd: events[index % 20].raw(), events: libc::POLLPRI, revents: 0 })
            .collect();
        // SAFETY: the array lives through the call.
        check(unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as u64, 1) }).map(|_| ())
    });
}

/// futex_waitv(2) of many words, one of which does not have its value.
fn futexes() {
    sweep(|| {
        let words = [0u32; 100];
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Wait {
            value: u64,
            address: u64,
            flags: u32,
            reserved: u32,
        }
        const PRIVATE_32: u32 = 128 | 2;
        let mut waits: Vec<Wait> = words
            .iter()
            .map(|word| Wait { value: 0, address: (&raw const *word) as u64, flags: PRIVATE_32, reserved: 0 })
            .collect();
        waits[99].value = 1;
        const FUTEX_WAITV: i64 = 449;
        // SAFETY: the array and the words live through the call.
        match check(unsafe { libc::syscall(FUTEX_WAITV, waits.as_ptr(), waits.len(), 0, 0, 0) }) {
            Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error),
            Ok(index) => panic!("word {index} was woken"),
        }
    });
}

fn proc_files() {
    sweep(|| {
        for name in ["maps", "smaps", "status", "mountinfo", "task", "fdinfo"] {
            let file = Fd::open(&format!("/proc/self/{name}"), libc::O_RDONLY)?;
            match name {
                "task" | "fdinfo" => {}
                _ => _ = file.read(&mut [0; 16384])?,
            }
        }
        Ok(())
    });
}

/// Priorities of all processes at once.
fn groups() {
    sweep(|| {
        Errno::clear();
        // SAFETY: takes integers.
        let priority = unsafe { libc::getpriority(libc::PRIO_USER, 0) };
        if priority == -1 && Errno::last_raw() != 0 { Err(Errno::last()) } else { Ok(()) }
    });
}

/// A control group that has begun and cannot be finished goes again, and so does one that is removed.
fn control_groups() {
    const TIMES: usize = 20;
    let above = Group::new("+pids +hugetlb");
    above.write("cgroup.subtree_control", "+pids +hugetlb").expect("controllers");
    let path = above.file("one");
    let injector = Injector::new();
    let free = || Meminfo::read().get("MemFree");
    // False for one that is there all the same: only the others are compared.
    let fails = |nth: u32| {
        injector.arm(nth);
        let made = place::mkdir(&path, 0o755);
        injector.disarm();
        made.is_err() & (place::rmdir(&path) == Err(Errno::ENOENT))
    };
    let failing: Vec<u32> = (1..30).filter(|nth| fails(*nth)).collect();
    let before = free();
    for nth in &failing {
        (0..TIMES).for_each(|_| assert!(fails(*nth), "{nth}"));
    }
    let count = failing.len() * TIMES;
    for _ in 0..count {
        place::mkdir(&path, 0o755).and_then(|()| place::rmdir(&path)).expect("a group");
    }
    let settled =
        roundtable_programs::sys::settles(std::time::Duration::from_secs(5), || free() + 256 >= before);
    println!("# the allocations {failing:?} can fail");
    assert!(failing.len() >= 3, "nothing was made to fail");
    assert!(settled, "{} kB leaked with {count} groups", before - free());
}
