//! How long a call upon many of a thing keeps others waiting: those who spin for a lock, and those who wait for the
//! CPU.
//!
//! Each line is the worst that a call upon so many of a thing did, in nanoseconds: `stall
//! THING|COUNT|CALL|STALL|HOLD|PLACE|STRETCH|SYSCALL`. The stall is by how much a process of real-time priority was
//! late, which sleeps for short whiles all the time. The other two are the kernel's own counts, if it has them: the
//! longest hold of a spin lock, and the longest stretch of a system call without a look at who else wants to run. On a
//! machine of one CPU whose clock counts instructions, a nanosecond is one instruction.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use roundtable_programs::child::{self, Child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::held::{self, Longest};
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{
    ANON, Map, NORESERVE, PRIVATE, R, RW, SHARED, madvise, mmap, mprotect, munmap,
};
use roundtable_programs::procfs;
use roundtable_programs::sys::{PAGE, check};

/// Where the words of the shared page are.
const STOP: usize = 0;
const LATE: usize = 8;
const READY: usize = 16;
const GO: usize = 20;

/// Measures with the help of a bystander.
struct Probe<'a> {
    shared: &'a Map,
    /// The thing, and how many there are.
    thing: &'static str,
    count: usize,
}

impl Probe<'_> {
    fn measure(&self, what: &str, work: impl FnOnce()) {
        held::begin_anew();
        self.shared.set_u64(LATE, 0);
        work();
        let stall = self.shared.get_u64(LATE);
        let Longest { hold: (hold, place), stretch: (stretch, call) } = held::longest();
        println!("stall {}|{}|{what}|{stall}|{hold}|{place}|{stretch}|{call}", self.thing, self.count);
    }

    /// A child that has made something, and waits until it may end.
    fn prepared<T>(&self, make: impl FnOnce() -> T) -> Child {
        self.shared.atomic(READY).store(0, Ordering::SeqCst);
        self.shared.atomic(GO).store(0, Ordering::SeqCst);
        let child = child::fork(|| {
            // It ends with all that it has.
            std::mem::forget(make());
            self.shared.atomic(READY).store(1, Ordering::SeqCst);
            self.wait_for(GO);
        });
        self.wait_for(READY);
        child
    }

    fn wait_for(&self, word: usize) {
        while self.shared.atomic(word).load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The end of a process that has made something.
    fn end_of<T>(&self, make: impl FnOnce() -> T) {
        let child = self.prepared(make);
        self.measure("exit", || {
            self.shared.atomic(GO).store(1, Ordering::SeqCst);
            child.ok();
        });
    }
}

/// Starts the bystander: it sleeps and sleeps, and says by how much it was late at most.
fn bystander(shared: &Map) -> Child {
    const SLEEP: Duration = Duration::from_micros(100);
    child::fork(|| {
        let urgent = libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameters live through the call.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &urgent) }).expect("sched_setscheduler");
        while shared.atomic(STOP).load(Ordering::SeqCst) == 0 {
            let start = Instant::now();
            std::thread::sleep(SLEEP);
            let late = (start.elapsed() - SLEEP).as_nanos() as u64;
            shared.set_u64(LATE, late.max(shared.get_u64(LATE)));
        }
    })
}

/// Areas of a page each.
fn areas(count: usize) -> (usize, usize) {
    let length = count * PAGE;
    let address = mmap(0, length, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("mmap");
    (0..count).step_by(2).for_each(|index| mprotect(address + index * PAGE, PAGE, R).expect("mprotect"));
    (address, length)
}

fn mappings(probe: &Probe) {
    let (address, length) = areas(probe.count);
    probe.measure("fork", || child::in_child(|| ()));
    probe.measure("mprotect", || mprotect(address, length, R).expect("mprotect"));
    munmap(address, length).expect("munmap");
    let (address, length) = areas(probe.count);
    probe.measure("munmap", || munmap(address, length).expect("munmap"));
    probe.end_of(|| areas(probe.count));
}

fn windows(probe: &Probe) {
    const PAGES: usize = 64;
    huge::pool(PAGES as u64 + 8);
    let file = huge::sized(4 * 512);
    let windows = huge::windows(&file, probe.count);
    let (offset, length) = ((220 * HUGE) as u64, (PAGES * HUGE) as u64);
    let (address, _) = windows[0];
    probe.measure("fault of a new page", || {
        // SAFETY: in the first window, which begins with the file.
        unsafe { ((address + 230 * HUGE) as *mut u64).write_volatile(1) }
    });
    probe.measure("fallocate of 64 pages", || file.fallocate(0, offset, length).expect("fallocate"));
    probe.measure("punch of 64 pages", || file.punch(offset, length).expect("punch"));
    probe.measure("fork", || child::in_child(|| ()));
    probe.measure("munmap of each", || {
        windows.iter().for_each(|(address, length)| munmap(*address, *length).expect("munmap"));
    });
    probe.end_of(|| huge::windows(&file, probe.count));
}

fn filled(count: usize) -> Map {
    let map = Map::new(count * PAGE, RW, PRIVATE | ANON, -1, 0).expect("mmap");
    (0..count).for_each(|index| map.set(index * PAGE, 1));
    map
}

fn pages(probe: &Probe) {
    let length = probe.count * PAGE;
    let map = filled(probe.count);
    probe.measure("fork", || child::in_child(|| ()));
    probe.measure("mprotect", || mprotect(map.address, length, R).expect("mprotect"));
    probe.measure("MADV_DONTNEED", || {
        madvise(map.address, length, libc::MADV_DONTNEED).expect("MADV_DONTNEED");
    });
    drop(map);
    let map = filled(probe.count);
    probe.measure("munmap", || drop(map));
    probe.end_of(|| filled(probe.count));
    let file = Fd::of_pages(probe.count);
    let map = file.map(length, RW, SHARED).expect("mmap");
    (0..probe.count).for_each(|index| map.set(index * PAGE, 1));
    probe.measure("punch of a mapped file", || file.punch(0, length as u64).expect("punch"));
    (0..probe.count).for_each(|index| map.set(index * PAGE, 1));
    probe.measure("truncate of a mapped file", || file.truncate(0).expect("ftruncate"));
}

fn sharers(probe: &Probe) {
    const PAGES: usize = 64;
    more_of(libc::RLIMIT_NOFILE);
    huge::pool(PAGES as u64 + 8);
    let file = huge::sized(512);
    let length = (PAGES * HUGE) as u64;
    file.fallocate(0, 0, length).expect("fallocate");
    let stop = probe.shared.atomic(GO);
    stop.store(0, Ordering::SeqCst);
    let sharer = || {
        let map = file.map(GIB, RW, SHARED | NORESERVE).expect("mmap");
        std::hint::black_box(map.get(0));
        let (wait, none) = (libc::FUTEX_WAIT, std::ptr::null::<libc::timespec>());
        while stop.load(Ordering::SeqCst) == 0 {
            // SAFETY: the word lives as long as the shared page.
            unsafe { libc::syscall(libc::SYS_futex, stop.as_ptr(), wait, 0, none) };
        }
    };
    let children: Vec<Child> = (0..probe.count).map(|_| child::fork(sharer)).collect();
    probe.measure("punch of 64 pages", || file.punch(0, length).expect("punch"));
    probe.measure("fallocate of 64 pages", || file.fallocate(0, 0, length).expect("fallocate"));
    probe.measure("futex wake and exit of all", || {
        stop.store(1, Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_futex, stop.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        children.into_iter().for_each(Child::ok);
    });
}

/// Threads that wait for the other end of a pipe.
fn make_threads(count: usize, read: i32) {
    for _ in 0..count {
        let wait = move || {
            let mut byte = 0u8;
            // SAFETY: the byte lives through the call.
            unsafe { libc::read(read, (&raw mut byte).cast(), 1) };
        };
        std::thread::Builder::new().stack_size(16 << 10).spawn(wait).expect("a thread");
    }
}

fn threads(probe: &Probe) {
    let (read, _write) = pipe(0);
    probe.measure("clone of each", || make_threads(probe.count, read.raw()));
    probe.measure("a signal to the process", || {
        // SAFETY: ignores a signal and sends it.
        unsafe {
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            libc::kill(libc::getpid(), libc::SIGUSR1);
        }
    });
    let (read, write) = pipe(0);
    probe.end_of(|| {
        make_threads(probe.count, read.raw());
        (read, write)
    });
}

fn more_of(resource: libc::__rlimit_resource_t) {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the limit lives through the call.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

fn duplicates(file: &Fd, count: usize) {
    for _ in 0..count {
        // SAFETY: takes an integer.
        check(unsafe { libc::dup(file.raw()) }).expect("dup");
    }
}

fn descriptors(probe: &Probe) {
    more_of(libc::RLIMIT_NOFILE);
    let file = Fd::open("/dev/null", libc::O_RDWR).expect("/dev/null");
    probe.measure("dup of each", || duplicates(&file, probe.count));
    probe.measure("fork", || child::in_child(|| ()));
    probe.measure("close_range", || {
        let first = file.raw() as usize + 1;
        assert_eq!(call(libc::SYS_close_range, [first, u32::MAX as usize, 0, 0, 0, 0]), Ok(0));
    });
    probe.end_of(|| duplicates(&file, probe.count));
    // Record locks, which the close of any descriptor gives up.
    let file = Fd::temporary();
    for index in 0..probe.count {
        // SAFETY: a flock of zeros is valid, and lives through the call.
        unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            (lock.l_type, lock.l_start, lock.l_len) = (libc::F_WRLCK as i16, 2 * index as i64, 1);
            check(libc::fcntl(file.raw(), libc::F_SETLK, &lock)).expect("F_SETLK");
        }
    }
    probe.measure("close of a file with record locks", || drop(file));
}

fn files(probe: &Probe) {
    let path = "/tmp/stalls";
    std::fs::create_dir(path).expect("mkdir");
    std::env::set_current_dir(path).expect("chdir");
    probe.measure("creat of each", || {
        (0..probe.count).for_each(|index| std::fs::write(index.to_string(), "").expect("create"));
    });
    probe.measure("getdents64 of all", || {
        assert_eq!(std::fs::read_dir(".").expect("read").count(), probe.count)
    });
    probe.measure("unlink of each", || {
        (0..probe.count).for_each(|index| std::fs::remove_file(index.to_string()).expect("unlink"));
    });
    std::env::set_current_dir("/").expect("chdir");
    std::fs::remove_dir(path).expect("rmdir");
}

type Thing = (&'static str, fn(&Probe), [usize; 3]);

const THINGS: [Thing; 7] = [
    ("mappings", mappings, [1, 1_000, 100_000]),
    ("windows", windows, [1, 1_000, 100_000]),
    ("pages", pages, [1, 1_000, 100_000]),
    // More would not fit into the memory that both kernels have, nor below PID_MAX.
    ("sharers", sharers, [1, 1_000, 10_000]),
    ("threads", threads, [1, 1_000, 10_000]),
    ("descriptors", descriptors, [1, 1_000, 100_000]),
    ("files", files, [1, 1_000, 100_000]),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    procfs::write("/proc/sys/vm/max_map_count", 1 << 20).expect("max_map_count");
    let shared = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let bystander = bystander(&shared);
    let wants = |thing: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == thing);
    for (thing, run, counts) in THINGS.into_iter().filter(|(thing, ..)| wants(thing)) {
        for count in counts {
            let probe = Probe { shared: &shared, thing, count };
            child::in_child(|| run(&probe));
        }
    }
    shared.atomic(STOP).store(1, Ordering::SeqCst);
    bystander.ok();
}
