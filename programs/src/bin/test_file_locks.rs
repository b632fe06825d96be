//! What processes keep each other from doing with a file: locks, and seals.

use std::sync::Barrier;

use roundtable_programs::child::{self, End, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{R, RW, SHARED};
use roundtable_programs::place::Place;
use roundtable_programs::sys::{self, check};
use roundtable_programs::{Errno, procfs, tests};

tests! { seals, record_locks, locks_go_with_the_process, locks_stay_with_a_new_program: 60, locks_stay_with_what_is_not_shared,
lock_deadlock, open_files_in_a_circle: 60, lock_after_a_close,
flock_of_open_files, own_locks, length_to_the_last_byte, deadlock_of_a_second_thread,
sealing_and_mapping_exclude_each_other: 60 }

const PAGE: u64 = 4096;

fn seals() {
    let add = |fd: &Fd, seals: i32| {
        // SAFETY: takes integers.
        check(unsafe { libc::fcntl(fd.raw(), libc::F_ADD_SEALS, seals) }).map(drop)
    };
    let fd = Fd::memfd("s", libc::MFD_ALLOW_SEALING).unwrap();
    fd.truncate(2 * PAGE).unwrap();
    assert_eq!(add(&fd, libc::F_SEAL_SHRINK), Ok(()));
    assert_eq!((fd.truncate(PAGE), fd.truncate(3 * PAGE)), (Err(Errno::EPERM), Ok(())));
    assert_eq!(add(&fd, libc::F_SEAL_GROW), Ok(()));
    assert_eq!((fd.truncate(4 * PAGE), fd.write_at(b"xx", 3 * PAGE)), (Err(Errno::EPERM), Err(Errno::EPERM)));
    let (over, inside) = (fd.write_at(b"xx", 3 * PAGE - 1), fd.write_at(b"xx", 3 * PAGE - 2));
    assert_eq!((over, inside), (Err(Errno::EPERM), Ok(2)));
    let map = fd.map(PAGE as usize, RW, SHARED).unwrap();
    assert_eq!(add(&fd, libc::F_SEAL_WRITE), Err(Errno::EBUSY));
    map.unmap().unwrap();
    assert_eq!(add(&fd, libc::F_SEAL_WRITE), Ok(()));
    assert_eq!((fd.write_at(b"x", 0), fd.punch(0, PAGE)), (Err(Errno::EPERM), Err(Errno::EPERM)));
    assert_eq!(fd.map(PAGE as usize, RW, SHARED).err(), Some(Errno::EPERM));
    let read_only = fd.map(PAGE as usize, R, SHARED).unwrap();
    assert_eq!(roundtable_programs::mem::mprotect(read_only.address, PAGE as usize, RW), Err(Errno::EACCES));
    assert_eq!(add(&fd, libc::F_SEAL_SEAL), Ok(()));
    assert_eq!(add(&fd, libc::F_SEAL_SEAL), Err(Errno::EPERM));
    assert_eq!(add(&Fd::memfd("n", 0).unwrap(), libc::F_SEAL_GROW), Err(Errno::EPERM));
}

fn sealing_and_mapping_exclude_each_other() {
    huge::set_pool(4);
    for (size, kind) in [(PAGE as usize, 0), (HUGE, libc::MFD_HUGETLB)] {
        let (mut sealed, mut mapped) = (0, 0);
        for round in 0..400 {
            let fd = Fd::memfd("s", libc::MFD_ALLOW_SEALING | kind).unwrap();
            fd.truncate(size as u64).unwrap();
            let start = Barrier::new(2);
            let (seal, map) = std::thread::scope(|scope| {
                let map = scope.spawn(|| {
                    start.wait();
                    // Not always first, and not always second.
                    (0..round % 20 * 50).for_each(|_| std::hint::spin_loop());
                    fd.map(size, RW, SHARED)
                });
                start.wait();
                // SAFETY: takes integers.
                let seal = check(unsafe { libc::fcntl(fd.raw(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) });
                (seal, map.join().unwrap())
            });
            match (seal, map) {
                (Ok(_), Err(Errno::EPERM)) => sealed += 1,
                (Err(Errno::EBUSY), Ok(_)) => mapped += 1,
                both => panic!("round {round}: {both:?}"),
            }
        }
        println!("# {sealed} were sealed, {mapped} were mapped");
    }
}

fn record(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn lock(fd: &Fd, command: i32, lock: &mut libc::flock) -> Result<usize, Errno> {
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::fcntl(fd.raw(), command, lock) })
}

fn record_locks() {
    let p = Place::new("");
    let fd = p.create("f");
    let set = |fd: &Fd, kind, start, len| lock(fd, libc::F_SETLK, &mut record(kind, start, len));
    assert_eq!(set(&fd, libc::F_WRLCK, 10, 10), Ok(0));
    assert_eq!(set(&fd, libc::F_RDLCK, 30, 0), Ok(0));
    let mine = sys::pid();
    in_child(|| {
        assert_eq!(set(&fd, libc::F_RDLCK, 0, 10), Ok(0));
        assert_eq!(set(&fd, libc::F_RDLCK, 19, 1), Err(Errno::EAGAIN));
        assert_eq!(set(&fd, libc::F_RDLCK, 100, 1), Ok(0));
        assert_eq!(set(&fd, libc::F_WRLCK, 100, 1), Err(Errno::EAGAIN));
        let mut wanted = record(libc::F_WRLCK, 0, 0);
        lock(&fd, libc::F_GETLK, &mut wanted).unwrap();
        assert_eq!((wanted.l_start, wanted.l_len, wanted.l_pid), (10, 10, mine));
        wanted = record(libc::F_RDLCK, 40, 5);
        lock(&fd, libc::F_GETLK, &mut wanted).unwrap();
        assert_eq!(i32::from(wanted.l_type), libc::F_UNLCK);
    });
    // The middle is given up: two parts stay.
    assert_eq!(set(&fd, libc::F_UNLCK, 13, 4), Ok(0));
    in_child(|| {
        assert_eq!(set(&fd, libc::F_WRLCK, 13, 4), Ok(0));
        assert_eq!(set(&fd, libc::F_WRLCK, 12, 1), Err(Errno::EAGAIN));
        assert_eq!(set(&fd, libc::F_WRLCK, 17, 1), Err(Errno::EAGAIN));
    });
    // A descriptor of the same file that is closed takes the locks along.
    drop(p.open("f", libc::O_RDONLY).unwrap());
    in_child(|| assert_eq!(set(&fd, libc::F_WRLCK, 0, 0), Ok(0)));
    // Locks of open files belong to those.
    let other = p.open("f", libc::O_RDWR).unwrap();
    assert_eq!(lock(&fd, libc::F_OFD_SETLK, &mut record(libc::F_WRLCK, 0, 0)), Ok(0));
    assert_eq!(lock(&other, libc::F_OFD_SETLK, &mut record(libc::F_WRLCK, 5, 1)), Err(Errno::EAGAIN));
    drop(fd);
    assert_eq!(lock(&other, libc::F_OFD_SETLK, &mut record(libc::F_WRLCK, 5, 1)), Ok(0));
}

fn locks_go_with_the_process() {
    let p = Place::new("");
    let fd = p.create("f");
    let (ready, tell) = pipe(0);
    let holder = child::fork(|| {
        lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 0)).unwrap();
        tell.write(b"x").unwrap();
        loop {
            std::thread::park();
        }
    });
    ready.read(&mut [0]).unwrap();
    assert_eq!(lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 0)), Err(Errno::EAGAIN));
    let waiter = child::fork(|| {
        tell.write(b"y").unwrap();
        assert_eq!(lock(&fd, libc::F_SETLKW, &mut record(libc::F_WRLCK, 0, 0)), Ok(0));
    });
    ready.read(&mut [0]).unwrap();
    holder.end();
    waiter.ok();
}

/// Whoever looks at the process's descriptors meanwhile.
fn locks_stay_with_a_new_program() {
    let p = Place::new("");
    let program = sys::c_string("/proc/self/exe");
    let list = sys::c_string("--list");
    for round in 0..20 {
        let fd = p.create(&format!("f{round}"));
        let (until_exec, closed_by_exec) = pipe(libc::O_CLOEXEC);
        let (_never_read, full) = pipe(libc::O_NONBLOCK);
        while full.write(&[0; 4096]).is_ok() {}
        let holder = child::fork(|| {
            lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 0)).unwrap();
            (0..900).for_each(|_| std::mem::forget(Fd::open("/dev/null", libc::O_RDONLY).unwrap()));
            closed_by_exec.write(b"x").unwrap();
            // The new program prints, and waits for room.
            let pointers = [program.as_ptr(), list.as_ptr(), std::ptr::null()];
            // SAFETY: take integers, and strings that are there.
            unsafe {
                check(libc::fcntl(full.raw(), libc::F_SETFL, 0)).unwrap();
                check(libc::dup2(full.raw(), 1)).unwrap();
                check(libc::fcntl(fd.raw(), libc::F_SETFD, 0)).unwrap();
                libc::execv(program.as_ptr(), pointers.as_ptr());
            }
        });
        drop(closed_by_exec);
        until_exec.read(&mut [0]).unwrap();
        let score = format!("/proc/{}/oom_score", holder.pid);
        let reader = child::fork(|| while std::fs::read(&score).is_ok() {});
        assert_eq!(until_exec.read(&mut [0]), Ok(0), "the new program has begun");
        reader.end();
        let mut wanted = record(libc::F_WRLCK, 0, 0);
        lock(&fd, libc::F_GETLK, &mut wanted).unwrap();
        assert_eq!((i32::from(wanted.l_type), wanted.l_pid), (libc::F_WRLCK, holder.pid), "round {round}");
        holder.end();
    }
}

/// As long as nobody shares its descriptors, there is nothing that they are taken out of.
fn locks_stay_with_what_is_not_shared() {
    const UNSHARE: usize = 2;
    let p = Place::new("");
    let fd = p.create("f");
    in_child(|| {
        lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 0)).unwrap();
        let holder = sys::pid();
        let is_mine = || {
            in_child(|| {
                let mut wanted = record(libc::F_WRLCK, 0, 0);
                lock(&fd, libc::F_GETLK, &mut wanted).unwrap();
                assert_eq!((i32::from(wanted.l_type), wanted.l_pid), (libc::F_WRLCK, holder));
            });
            // The owner itself is not kept from anything.
            assert_eq!(lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 5, 1)), Ok(0));
        };
        assert_eq!(call(libc::SYS_unshare, [libc::CLONE_FILES as usize, 0, 0, 0, 0, 0]), Ok(0));
        is_mine();
        assert_eq!(call(libc::SYS_close_range, [1_000, 2_000, UNSHARE, 0, 0, 0]), Ok(0));
        is_mine();
    });
}

fn lock_deadlock() {
    let p = Place::new("");
    let fd = p.create("f");
    let (ready, tell) = pipe(0);
    lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 1)).unwrap();
    let other = child::fork(|| {
        lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 1, 1)).unwrap();
        tell.write(b"x").unwrap();
        assert_eq!(lock(&fd, libc::F_SETLKW, &mut record(libc::F_WRLCK, 0, 1)), Ok(0));
    });
    ready.read(&mut [0]).unwrap();
    // Once the other waits for us, waiting for it could not end; before that we would wait for it, so ask until it does.
    let deadlocked = sys::settles(std::time::Duration::from_secs(20), || {
        let asked = child_waits(other.pid);
        asked && lock(&fd, libc::F_SETLKW, &mut record(libc::F_WRLCK, 1, 1)) == Err(Errno::EDEADLK)
    });
    assert!(deadlocked);
    lock(&fd, libc::F_SETLK, &mut record(libc::F_UNLCK, 0, 0)).unwrap();
    other.ok();
}

/// Two open files may wait for each other for ever: who waits for one of them waits, too, and can be killed.
fn open_files_in_a_circle() {
    let p = Place::new("");
    let (x, y) = (p.create("f"), p.create("f"));
    let first = |command| (command, record(libc::F_WRLCK, 0, 1));
    let second = |command| (command, record(libc::F_WRLCK, 1, 1));
    let set = |fd: &Fd, (command, mut wanted)| lock(fd, command, &mut wanted);
    assert_eq!(set(&x, first(libc::F_OFD_SETLK)), Ok(0));
    assert_eq!(set(&y, second(libc::F_OFD_SETLK)), Ok(0));
    let a = child::fork(|| panic!("{:?}", set(&x, second(libc::F_OFD_SETLKW))));
    procfs::wait_for_sleep(a.pid);
    let b = child::fork(|| panic!("{:?}", set(&y, first(libc::F_OFD_SETLKW))));
    procfs::wait_for_sleep(b.pid);
    // As many as there may be CPUs, and one whose wait can end.
    let behind: Vec<_> = (0..4)
        .map(|_| {
            let fd = p.open("f", libc::O_RDWR).unwrap();
            let waiter = child::fork(|| panic!("{:?}", set(&fd, first(libc::F_SETLKW))));
            procfs::wait_for_sleep(waiter.pid);
            waiter
        })
        .collect();
    let free = p.create("g");
    assert_eq!(set(&free, first(libc::F_SETLK)), Ok(0));
    let waiter = child::fork(|| assert_eq!(set(&free, first(libc::F_SETLKW)), Ok(0)));
    procfs::wait_for_sleep(waiter.pid);
    assert_eq!(set(&free, (libc::F_SETLK, record(libc::F_UNLCK, 0, 0))), Ok(0));
    waiter.ok();
    behind.into_iter().for_each(|waiter| assert_eq!(kill(waiter), End::Signal(libc::SIGKILL)));
    assert_eq!((kill(a), kill(b)), (End::Signal(libc::SIGKILL), End::Signal(libc::SIGKILL)));
}

fn kill(child: child::Child) -> End {
    child.kill(libc::SIGKILL);
    child.wait()
}

/// A descriptor is closed while a thread waits for a lock by way of it: nobody would give the lock up.
fn lock_after_a_close() {
    let p = Place::new("");
    let (mine, theirs) = (p.create("f"), p.open("f", libc::O_RDONLY).unwrap());
    let (told, tell) = pipe(0);
    assert_eq!(lock(&mine, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 0)), Ok(0));
    let other = child::fork(|| {
        let fd = theirs.raw();
        let (number, thread) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            // SAFETY: takes nothing.
            number.send(unsafe { libc::gettid() }).unwrap();
            let mut wanted = record(libc::F_RDLCK, 0, 0);
            // SAFETY: the structure lives through the call.
            check(unsafe { libc::fcntl(fd, libc::F_SETLKW, &mut wanted) })
        });
        procfs::wait_for_sleep(thread.recv().unwrap());
        // SAFETY: nobody else uses the descriptor.
        unsafe { libc::close(fd) };
        tell.write(b"x").unwrap();
        assert_eq!(waiter.join().unwrap(), Err(Errno::EBADF));
        tell.write(b"y").unwrap();
        loop {
            std::thread::park();
        }
    });
    assert_eq!(told.read(&mut [0]), Ok(1));
    assert_eq!(lock(&mine, libc::F_SETLK, &mut record(libc::F_UNLCK, 0, 0)), Ok(0));
    assert_eq!(told.read(&mut [0]), Ok(1));
    assert_eq!(lock(&mine, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 0)), Ok(0));
    other.end();
}

/// Does the process sleep?
fn child_waits(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('S')
}

fn flock_of_open_files() {
    let p = Place::new("");
    let (a, b) = (p.create("f"), p.create("f"));
    // SAFETY: takes integers.
    let flock = |fd: &Fd, how: i32| check(unsafe { libc::flock(fd.raw(), how) }).map(drop);
    assert_eq!(flock(&a, libc::LOCK_EX), Ok(()));
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Err(Errno::EAGAIN));
    assert_eq!(flock(&a, libc::LOCK_SH), Ok(()));
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&a, libc::LOCK_EX | libc::LOCK_NB), Err(Errno::EAGAIN));
    let waiter = child::fork(|| assert_eq!(flock(&b, libc::LOCK_EX), Ok(())));
    // The lock belongs to the open file, which the child shares.
    drop(a);
    waiter.ok();
    assert_eq!(flock(&p.create("f"), libc::LOCK_EX | libc::LOCK_NB), Err(Errno::EAGAIN));
    drop(b);
    assert_eq!(flock(&p.create("f"), libc::LOCK_EX | libc::LOCK_NB), Ok(()));
}

const OFD_GETLK: i32 = 36;
const OFD_SETLK: i32 = 37;

/// Since Linux 6.6 an open file is asked for its own locks by F_UNLCK.
fn own_locks() {
    let fd = Fd::temporary();
    lock(&fd, OFD_SETLK, &mut record(libc::F_WRLCK, 10, 5)).unwrap();
    lock(&fd, OFD_SETLK, &mut record(libc::F_RDLCK, 20, 5)).unwrap();
    for (start, len, found) in
        [(0, 0, (libc::F_WRLCK, 10, 5)), (12, 1, (libc::F_WRLCK, 10, 5)), (15, 0, (libc::F_RDLCK, 20, 5))]
    {
        let mut asked = record(libc::F_UNLCK, start, len);
        assert_eq!(lock(&fd, OFD_GETLK, &mut asked), Ok(0));
        assert_eq!((i32::from(asked.l_type), asked.l_start, asked.l_len), found, "from {start}");
    }
    let mut asked = record(libc::F_UNLCK, 30, 0);
    assert_eq!(lock(&fd, OFD_GETLK, &mut asked), Ok(0));
    assert_eq!(i32::from(asked.l_type), libc::F_UNLCK);
    assert_eq!(lock(&fd, libc::F_GETLK, &mut record(libc::F_UNLCK, 0, 0)), Err(Errno::EINVAL));
}

fn length_to_the_last_byte() {
    let fd = Fd::temporary();
    lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 5, i64::MAX - 4)).unwrap();
    in_child(|| {
        let mut asked = record(libc::F_WRLCK, 0, 0);
        assert_eq!(lock(&fd, libc::F_GETLK, &mut asked), Ok(0));
        assert_eq!((asked.l_start, asked.l_len), (5, 0));
    });
}

/// One thread of a process has waited and been let go of; that another still waits is known all the same.
fn deadlock_of_a_second_thread() {
    let fd = Fd::temporary();
    let child_has = pipe(0);
    lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 0, 1)).unwrap();
    lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 1, 1)).unwrap();
    let child = child::fork(|| {
        lock(&fd, libc::F_SETLK, &mut record(libc::F_WRLCK, 2, 1)).unwrap();
        std::thread::scope(|scope| {
            // Both wait for the parent; the second is let go of by it.
            scope.spawn(|| lock(&fd, libc::F_SETLKW, &mut record(libc::F_WRLCK, 0, 1)).unwrap());
            scope.spawn(|| lock(&fd, libc::F_SETLKW, &mut record(libc::F_WRLCK, 1, 1)).unwrap());
            child_has.1.write(b"x").unwrap();
        });
    });
    child_has.0.read(&mut [0]).unwrap();
    let all_sleep = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", child.pid)).unwrap().flatten();
        let states: Vec<_> = threads
            .map(|thread| {
                let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
            })
            .collect();
        states.len() == 3 && states.iter().all(|sleeps| *sleeps)
    };
    assert!(sys::settles(std::time::Duration::from_secs(20), all_sleep));
    lock(&fd, libc::F_SETLK, &mut record(libc::F_UNLCK, 1, 1)).unwrap();
    let has_it = || {
        let mut asked = record(libc::F_WRLCK, 1, 1);
        lock(&fd, libc::F_GETLK, &mut asked) == Ok(0) && asked.l_type == libc::F_WRLCK as i16
    };
    assert!(sys::settles(std::time::Duration::from_secs(20), has_it));
    // The first thread waits still, for byte 0, which is ours: to wait for the child's byte is a circle.
    assert_eq!(lock(&fd, libc::F_SETLKW, &mut record(libc::F_WRLCK, 2, 1)), Err(Errno::EDEADLK));
    lock(&fd, libc::F_SETLK, &mut record(libc::F_UNLCK, 0, 0)).unwrap();
    child.ok();
}
