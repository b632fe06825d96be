//! Programs that make as many threads and processes as they can: see [`exhaust`].

use std::ffi::CString;
use std::time::Duration;

use roundtable_programs::child;
use roundtable_programs::exhaust::{HELD, READY, adjust, ballast, drop_rights, exhaust, exhaust_by_family};
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::Map;
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::check;
use roundtable_programs::{Errno, tests};

tests! { descriptor_tables: 100, threads: 100, processes: 100, waiters: 100, polls: 100, arguments: 100, excepted: 100, fork_beside_a_hog: 100 }

/// Children with a table that has its last descriptor in use.
fn descriptor_tables() {
    exhaust_by_family(|count| {
        if count == 0 {
            // SAFETY: takes integers.
            check(unsafe { libc::dup2(0, 29_999) })?;
        }
        fork_sleeper()
    });
}

fn threads() {
    extern "C" fn sleep(_: *mut libc::c_void) -> *mut libc::c_void {
        loop {
            // SAFETY: takes an integer.
            unsafe { libc::sleep(1000) };
        }
    }
    exhaust(|_| {
        // SAFETY: the attributes are made before they are used, and the function lives for ever.
        unsafe {
            let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
            libc::pthread_attr_init(&mut attributes);
            libc::pthread_attr_setstacksize(&mut attributes, 32 << 10);
            let mut thread = 0;
            match libc::pthread_create(&mut thread, &attributes, sleep, std::ptr::null_mut()) {
                0 => Ok(0),
                error => Err(Errno::from_raw(error)),
            }
        }
    });
}

/// Has the calling process, a child, end with its parent, which may have been killed before the child first runs.
fn end_with(parent: u32) {
    // SAFETY: these take and give integers, and nothing of the parent's is to run on the way out.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() as u32 != parent {
            libc::_exit(0);
        }
    }
}

/// A child that does `run`, and lives until its parent ends.
fn fork_member(run: impl FnOnce()) -> Result<usize, Errno> {
    let parent = std::process::id();
    // SAFETY: this process has one thread, and the child only waits to be killed after `run`.
    unsafe {
        match libc::fork() {
            -1 => Err(Errno::last()),
            0 => {
                end_with(parent);
                run();
                loop {
                    libc::sleep(1000);
                }
            }
            pid => Ok(pid as usize),
        }
    }
}

fn fork_sleeper() -> Result<usize, Errno> {
    fork_member(|| ())
}

fn processes() {
    exhaust_by_family(|_| fork_sleeper());
}

/// Processes that all wait for one lock of a file.
fn waiters() {
    exhaust_by_family(|_| {
        // SAFETY: these take integers and a text; the child takes a lock that its parent holds.
        unsafe {
            let file = check(libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY))? as i32;
            let _ = libc::flock(file, libc::LOCK_EX | libc::LOCK_NB);
            let pid = fork_member(|| {
                let own = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
                libc::flock(own, libc::LOCK_EX);
            })?;
            libc::close(file);
            Ok(pid)
        }
    });
}

/// Processes that wait for thousands of descriptors each.
fn polls() {
    let entries: Vec<libc::pollfd> =
        (0..20_000).map(|fd| libc::pollfd { fd: fd % 2, events: libc::POLLPRI, revents: 0 }).collect();
    exhaust_by_family(|_| {
        fork_member(|| {
            let mut entries = entries.clone();
            // SAFETY: the array lives through the call.
            unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as u64, -1) };
        })
    });
}

/// Programs with arguments of over a megabyte, started all at once and over again.
fn arguments() {
    let long = CString::new(vec![b'x'; 120_000]).unwrap();
    exhaust_by_family(|count| {
        if count == 40 {
            return Err(Errno::E2BIG);
        }
        // SAFETY: the strings live until the new program has them; waitpid takes a null pointer.
        unsafe {
            match libc::fork() {
                -1 => Err(Errno::last()),
                0 => {
                    let mut arguments: Vec<*const libc::c_char> = vec![c"test_exhaustion".as_ptr()];
                    arguments.extend([c"--list".as_ptr()]);
                    arguments.extend([long.as_ptr(); 12]);
                    arguments.push(std::ptr::null());
                    let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
                    libc::dup2(null, 1);
                    libc::execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr());
                    libc::_exit(1)
                }
                pid => check(libc::waitpid(pid, std::ptr::null_mut(), 0)),
            }
        }
    });
}

/// Nobody may be killed, and one takes all memory: it cannot go on itself, and the machine does.
fn excepted() {
    // SAFETY: takes nothing.
    let starter = unsafe { libc::getppid() }.to_string();
    adjust(&starter, -1000);
    adjust("self", -1000);
    let before = Baseline::take();
    let hog = child::fork(|| {
        let bytes = Meminfo::read().get("MemTotal") as usize * 1024;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let map = Map::new(bytes, roundtable_programs::mem::RW, flags, -1, 0).expect("address space");
        (0..bytes).step_by(4096).for_each(|at| map.set(at, 1));
    });
    assert_eq!(hog.wait(), child::End::Signal(libc::SIGKILL));
    before.check();
    adjust("self", 0);
    adjust(&starter, 0);
}

/// A small program forks while one that may be killed holds the rest of memory: as on Linux that one goes, and the fork succeeds.
fn fork_beside_a_hog() {
    const MOST: usize = 2000;
    // SAFETY: takes nothing.
    let starter = unsafe { libc::getppid() }.to_string();
    adjust(&starter, -1000);
    adjust("self", -1000);
    let before = Baseline::take();
    let shared = Shared::new();
    let ballast = ballast(&shared);
    shared.wait(HELD, 1);
    let hog = child::fork(|| {
        drop_rights(500);
        // The page is mapped from now on: later a fault could be what makes somebody look for a victim.
        shared.set(READY, 0);
        let mut ends = [0; 2];
        loop {
            // SAFETY: two descriptors are written, and the bytes live through the call.
            let filled = unsafe {
                check(libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK))
                    .and_then(|_| check(libc::write(ends[1], [1u8; 65536].as_ptr().cast(), 65536) as i64))
            };
            if filled.is_err() {
                break;
            }
        }
        shared.set(READY, 1);
        loop {
            std::thread::sleep(Duration::from_secs(100));
        }
    });
    // It does not come to that if somebody else's fault finds no memory before: then it is killed for that.
    shared.wait_for(READY, 1, Duration::from_secs(20));
    // One child may find room, as it takes little more than a stack; so many do not.
    let mut children = Vec::with_capacity(MOST);
    while children.len() < MOST && procfs::state(hog.pid) != Some('Z') {
        // SAFETY: the child only waits to be killed.
        children.push(unsafe {
            match check(libc::fork()) {
                Ok(0) => loop {
                    libc::pause();
                },
                child => child.expect("fork") as i32,
            }
        });
    }
    println!("# {} children until one had to go", children.len());
    for child in children {
        // SAFETY: these take integers, and a null pointer for the status.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            assert_eq!(check(libc::waitpid(child, std::ptr::null_mut(), 0)), Ok(child as usize));
        }
    }
    // SAFETY: takes integers. One that nobody had to end is not waited for in vain.
    unsafe { libc::kill(hog.pid, libc::SIGTERM) };
    assert_eq!(hog.wait(), child::End::Signal(libc::SIGKILL));
    ballast.end();
    before.check();
    adjust("self", 0);
    adjust(&starter, 0);
}
