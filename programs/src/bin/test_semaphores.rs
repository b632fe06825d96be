//! System V semaphores, and the identifiers that all System V objects have.

use std::time::Duration;

use libc::{
    GETALL, GETNCNT, GETPID, GETVAL, GETZCNT, IPC_CREAT, IPC_EXCL, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID,
};
use libc::{IPC_SET, IPC_STAT, SEM_UNDO, SETALL, SETVAL};
use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{pid, settles};
use roundtable_programs::{Errno, procfs, row, signals, tests};

tests! { identifiers, next_identifier, errors, all_or_none, waits_for_zero, first_come_first_served, blocked_elsewhere,
counts_of_waiters, time_limit, interrupted, removed_while_waiting, undone_at_exit, undo_is_shared_by_threads, undo_is_forgotten,
out_of_range, permissions, limits, listed, information, many_waiters: 60, largest_set, all_move_at_once: 60 }

const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;
const IPC_INFO: i32 = 3;

fn get(key: i32, count: i32, flags: i32) -> Answer {
    call(libc::SYS_semget, [key as usize, count as usize, flags as usize, 0, 0, 0])
}

fn control(id: usize, number: i32, command: i32, argument: usize) -> Answer {
    call(libc::SYS_semctl, [id, number as usize, command as usize, argument, 0, 0])
}

fn operation(number: u16, change: i16, flags: i32) -> libc::sembuf {
    libc::sembuf { sem_num: number, sem_op: change, sem_flg: flags as i16 }
}

fn operate(id: usize, operations: &[libc::sembuf]) -> Answer {
    call(libc::SYS_semop, [id, operations.as_ptr() as usize, operations.len(), 0, 0, 0])
}

fn operate_for(id: usize, operations: &[libc::sembuf], limit: Duration) -> Answer {
    let time = libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let time = (&raw const time) as usize;
    call(libc::SYS_semtimedop, [id, operations.as_ptr() as usize, operations.len(), time, 0, 0])
}

/// A set that goes with the test.
struct Set(usize);

impl Set {
    fn new(count: i32) -> Set {
        Set(get(IPC_PRIVATE, count, 0o600).expect("semget"))
    }

    fn value(&self, number: i32) -> usize {
        control(self.0, number, GETVAL, 0).expect("GETVAL")
    }

    fn set(&self, number: i32, value: usize) {
        control(self.0, number, SETVAL, value).expect("SETVAL");
    }

    fn change(&self, changes: &[(u16, i16)]) -> Answer {
        let operations: Vec<_> = changes.iter().map(|(number, by)| operation(*number, *by, 0)).collect();
        operate(self.0, &operations)
    }

    /// A child that sleeps in these operations.
    fn sleeper(&self, changes: &[(u16, i16)]) -> Child {
        let child = fork(|| assert_eq!(self.change(changes), Ok(0)));
        procfs::wait_for_sleep(child.pid);
        child
    }

    fn stat(&self) -> libc::semid_ds {
        // SAFETY: a semid_ds of zeros is valid, and the call fills it.
        let mut stat: libc::semid_ds = unsafe { std::mem::zeroed() };
        control(self.0, 0, IPC_STAT, (&raw mut stat) as usize).expect("IPC_STAT");
        stat
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        let _ = control(self.0, 0, IPC_RMID, 0);
    }
}

fn identifiers() {
    let mut rows = Rows::default();
    let key = 0x5e4a;
    row!(rows, ENOENT, get(key, 1, 0));
    row!(rows, EINVAL, get(key, 0, IPC_CREAT | 0o600));
    row!(rows, EINVAL, get(key, -1, IPC_CREAT | 0o600));
    row!(rows, EINVAL, get(key, 32001, IPC_CREAT | 0o600));
    let id = get(key, 2, IPC_CREAT | 0o600).unwrap();
    assert_eq!(get(key, 2, 0), Ok(id));
    assert_eq!(get(key, 0, IPC_CREAT), Ok(id));
    row!(rows, EEXIST, get(key, 1, IPC_CREAT | IPC_EXCL));
    row!(rows, EINVAL, get(key, 3, 0));
    row!(rows, OK, control(id, 0, IPC_RMID, 0));
    row!(rows, EINVAL, control(id, 0, IPC_RMID, 0));
    row!(rows, EINVAL, control(id, 0, GETVAL, 0));
    row!(rows, EINVAL, operate(id, &[operation(0, 1, 0)]));
    // The next object does not get the identifier of the one that is gone.
    let next = get(key, 2, IPC_CREAT | 0o600).unwrap();
    assert_ne!(next, id);
    row!(rows, OK, control(next, 0, IPC_RMID, 0));
    rows.finish();
}

fn next_identifier() {
    for (name, number) in [("sem", libc::SYS_semget), ("msg", libc::SYS_msgget), ("shm", libc::SYS_shmget)] {
        let path = format!("/proc/sys/kernel/{name}_next_id");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "-1\n");
        let make = || {
            let arguments = if name == "msg" { [0, 0o600, 0] } else { [0, 1, 0o600] };
            call(number, [arguments[0], arguments[1], arguments[2], 0, 0, 0]).unwrap()
        };
        let remove = |id: usize| match name {
            "sem" => call(libc::SYS_semctl, [id, 0, IPC_RMID as usize, 0, 0, 0]),
            "msg" => call(libc::SYS_msgctl, [id, IPC_RMID as usize, 0, 0, 0, 0]),
            _ => call(libc::SYS_shmctl, [id, IPC_RMID as usize, 0, 0, 0, 0]),
        };
        procfs::write(&path, 5 * 32768 + 77).unwrap();
        let first = make();
        assert_eq!((first, std::fs::read_to_string(&path).unwrap().as_str()), (5 * 32768 + 77, "-1\n"));
        // The slot is taken: the next one with this sequence number.
        procfs::write(&path, 5 * 32768 + 77).unwrap();
        let second = make();
        assert_eq!(second, 5 * 32768 + 78);
        assert!(procfs::write(&path, -2).is_err());
        assert_eq!((remove(first), remove(second)), (Ok(0), Ok(0)));
    }
}

fn errors() {
    let mut rows = Rows::default();
    let set = Set::new(3);
    let one = [operation(0, 1, 0)];
    let minus = usize::MAX;
    row!(rows, EINVAL, operate(minus, &one));
    row!(rows, EINVAL, operate(0x7fff_fff0, &one));
    row!(rows, EINVAL, operate(set.0, &[]));
    row!(rows, E2BIG, call(libc::SYS_semop, [set.0, one.as_ptr() as usize, 501, 0, 0, 0]));
    row!(rows, EFAULT, call(libc::SYS_semop, [set.0, 8, 1, 0, 0, 0]));
    row!(rows, EFBIG, operate(set.0, &[operation(3, 1, 0)]));
    row!(rows, EAGAIN, operate(set.0, &[operation(0, -1, IPC_NOWAIT)]));
    row!(rows, EINVAL, control(minus, 0, GETVAL, 0));
    row!(rows, EINVAL, control(set.0, 3, GETVAL, 0));
    row!(rows, EINVAL, control(set.0, -1, GETVAL, 0));
    row!(rows, EINVAL, control(set.0, 3, SETVAL, 1));
    row!(rows, ERANGE, control(set.0, 0, SETVAL, 32768));
    row!(rows, ERANGE, control(set.0, 0, SETVAL, minus));
    row!(rows, OK, control(set.0, 0, SETVAL, 32767));
    row!(rows, ERANGE, operate(set.0, &one));
    row!(rows, EFAULT, control(set.0, 0, GETALL, 8));
    row!(rows, EFAULT, control(set.0, 0, SETALL, 8));
    row!(rows, EFAULT, control(set.0, 0, IPC_STAT, 8));
    row!(rows, EFAULT, control(set.0, 0, IPC_SET, 8));
    row!(rows, EINVAL, control(set.0, 0, 99, 0));
    row!(rows, EINVAL, control(set.0, 0, IPC_STAT | 0x100, 0));
    let values = [1u16, 32768, 3];
    row!(rows, ERANGE, control(set.0, 0, SETALL, values.as_ptr() as usize));
    let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    let bad = (&raw const time) as usize;
    row!(rows, EINVAL, call(libc::SYS_semtimedop, [set.0, one.as_ptr() as usize, 1, bad, 0, 0]));
    row!(rows, EFAULT, call(libc::SYS_semtimedop, [set.0, one.as_ptr() as usize, 1, 8, 0, 0]));
    rows.finish();
}

fn all_or_none() {
    let set = Set::new(3);
    let values = [5u16, 0, 7];
    control(set.0, 0, SETALL, values.as_ptr() as usize).unwrap();
    let one = |number, change| operation(number, change, IPC_NOWAIT);
    assert_eq!(operate(set.0, &[one(0, -2), one(2, -3), one(1, -1)]), Err(Errno::EAGAIN));
    let mut now = [9u16; 3];
    control(set.0, 0, GETALL, now.as_mut_ptr() as usize).unwrap();
    assert_eq!(now, values);
    // In their order: what the first gives the second may take.
    assert_eq!(operate(set.0, &[one(1, -1), one(1, 2)]), Err(Errno::EAGAIN));
    assert_eq!(operate(set.0, &[one(1, 2), one(1, -1), one(0, -5), one(0, 0)]), Ok(0));
    assert_eq!((set.value(0), set.value(1), set.value(2)), (0, 1, 7));
    assert_eq!(control(set.0, 1, GETPID, 0), Ok(pid() as usize));
    // SETALL has set this one.
    assert_eq!(control(set.0, 2, GETPID, 0), Ok(pid() as usize));
    assert!(set.stat().sem_otime > 0);
}

fn waits_for_zero() {
    let set = Set::new(2);
    set.set(0, 2);
    let waiter = set.sleeper(&[(0, 0), (1, 1)]);
    set.change(&[(0, -1)]).unwrap();
    assert_eq!((control(set.0, 0, GETZCNT, 0), set.value(1)), (Ok(1), 0));
    set.change(&[(0, -1)]).unwrap();
    waiter.ok();
    assert_eq!((control(set.0, 0, GETZCNT, 0), set.value(1)), (Ok(0), 1));
    // A waiter for zero goes first, and lets the one behind it take what comes.
    set.set(0, 1);
    let zero = set.sleeper(&[(0, 0), (0, 3)]);
    set.set(0, 0);
    zero.ok();
    assert_eq!(set.value(0), 3);
}

fn first_come_first_served() {
    let set = Set::new(2);
    let done = Shared::new();
    let sleepers: Vec<_> = [3i16, 1, 2]
        .into_iter()
        .enumerate()
        .map(|(index, need)| {
            let child = fork(|| {
                set.change(&[(0, -need)]).unwrap();
                done.set(index, 1);
            });
            procfs::wait_for_sleep(child.pid);
            child
        })
        .collect();
    assert_eq!(control(set.0, 0, GETNCNT, 0), Ok(3));
    // Too little for the first: the second one's turn.
    set.change(&[(0, 1)]).unwrap();
    done.wait(1, 1);
    assert_eq!((set.value(0), control(set.0, 0, GETNCNT, 0)), (0, Ok(2)));
    // Enough for either of those that are left: the older one's turn.
    set.change(&[(0, 3)]).unwrap();
    done.wait(0, 1);
    assert_eq!((set.value(0), control(set.0, 0, GETNCNT, 0), done.get(2)), (0, Ok(1), 0));
    set.change(&[(0, 2)]).unwrap();
    sleepers.into_iter().for_each(Child::ok);
    assert_eq!(set.value(0), 0);
}

fn blocked_elsewhere() {
    let set = Set::new(3);
    let waiter = set.sleeper(&[(0, -1), (1, -1), (2, 1)]);
    set.change(&[(0, 1)]).unwrap();
    // Now the other semaphore blocks it, and it has taken nothing.
    assert_eq!((control(set.0, 0, GETNCNT, 0), control(set.0, 1, GETNCNT, 0)), (Ok(0), Ok(1)));
    assert_eq!(set.value(0), 1);
    set.change(&[(0, -1)]).unwrap();
    set.change(&[(1, 1)]).unwrap();
    assert_eq!(set.value(1), 1);
    set.change(&[(0, 1)]).unwrap();
    waiter.ok();
    assert_eq!((set.value(0), set.value(1), set.value(2)), (0, 0, 1));
    // One that goes on lets the next go on.
    let last = set.sleeper(&[(1, -2)]);
    let first = set.sleeper(&[(0, -1), (1, 2)]);
    set.change(&[(0, 1)]).unwrap();
    first.ok();
    last.ok();
}

fn counts_of_waiters() {
    let set = Set::new(2);
    set.set(1, 1);
    let waiters = [set.sleeper(&[(0, -1)]), set.sleeper(&[(0, -2), (1, 0)]), set.sleeper(&[(1, 0)])];
    let counts = |number| (control(set.0, number, GETNCNT, 0), control(set.0, number, GETZCNT, 0));
    assert_eq!((counts(0), counts(1)), ((Ok(2), Ok(0)), (Ok(0), Ok(1))));
    waiters.into_iter().for_each(Child::end);
    assert_eq!((counts(0), counts(1)), ((Ok(0), Ok(0)), (Ok(0), Ok(0))));
}

fn time_limit() {
    let set = Set::new(1);
    let take = [operation(0, -1, 0)];
    assert_eq!(operate_for(set.0, &take, Duration::from_millis(20)), Err(Errno::EAGAIN));
    assert_eq!(operate_for(set.0, &take, Duration::ZERO), Err(Errno::EAGAIN));
    assert_eq!(control(set.0, 0, GETNCNT, 0), Ok(0));
    let giver = fork(|| {
        // SAFETY: takes nothing.
        procfs::wait_for_sleep(unsafe { libc::getppid() });
        set.change(&[(0, 1)]).unwrap();
    });
    assert_eq!(operate_for(set.0, &take, Duration::from_secs(20)), Ok(0));
    giver.ok();
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn interrupted() {
    let set = Set::new(1);
    let waiter = fork(|| {
        // Restarting makes no difference: semop is never restarted.
        signals::catch_with(libc::SIGUSR1, nothing, libc::SA_RESTART, &[]);
        assert_eq!(set.change(&[(0, -1)]), Err(Errno::EINTR));
    });
    procfs::wait_for_sleep(waiter.pid);
    waiter.kill(libc::SIGUSR1);
    waiter.ok();
    assert_eq!(control(set.0, 0, GETNCNT, 0), Ok(0));
}

fn removed_while_waiting() {
    let set = Set::new(1);
    set.set(0, 1);
    let more = fork(|| assert_eq!(set.change(&[(0, -2)]), Err(Errno::EIDRM)));
    let zero = fork(|| assert_eq!(set.change(&[(0, 0)]), Err(Errno::EIDRM)));
    procfs::wait_for_sleep(more.pid);
    procfs::wait_for_sleep(zero.pid);
    control(set.0, 0, IPC_RMID, 0).unwrap();
    more.ok();
    zero.ok();
}

fn undone_at_exit() {
    let set = Set::new(2);
    set.set(0, 3);
    let held = Shared::new();
    let holder = fork(|| {
        operate(set.0, &[operation(0, -2, SEM_UNDO), operation(1, 5, SEM_UNDO)]).unwrap();
        operate(set.0, &[operation(0, -1, SEM_UNDO)]).unwrap();
        operate(set.0, &[operation(1, -1, 0)]).unwrap();
        held.set(0, 1);
        signals::kill(pid(), libc::SIGKILL).unwrap();
    });
    let holder_pid = holder.pid as usize;
    let waiter = fork(|| {
        held.wait(0, 1);
        // What the end gives back wakes who waits for it.
        set.change(&[(0, -3)]).unwrap();
    });
    assert_eq!(holder.wait(), End::Signal(libc::SIGKILL));
    waiter.ok();
    // 4 - 5: not below zero.
    assert_eq!((set.value(0), set.value(1)), (0, 0));
    assert_eq!(control(set.0, 1, GETPID, 0), Ok(holder_pid));
    // A child has no part in its parent's adjustments.
    operate(set.0, &[operation(0, 1, SEM_UNDO)]).unwrap();
    fork(|| {}).ok();
    assert_eq!(set.value(0), 1);
}

fn undo_is_shared_by_threads() {
    let set = Set::new(1);
    fork(|| {
        let id = set.0;
        std::thread::spawn(move || operate(id, &[operation(0, 2, SEM_UNDO)]).unwrap()).join().unwrap();
        // The thread is gone, its process is not.
        assert_eq!(set.value(0), 2);
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_SYSVSEM) }, 0);
        // A thread has its list a little longer than who joins it sees it.
        assert!(settles(Duration::from_secs(20), || set.value(0) == 0));
    })
    .ok();
}

fn undo_is_forgotten() {
    let set = Set::new(2);
    let values = [7u16, 7];
    fork(|| {
        operate(set.0, &[operation(0, 1, SEM_UNDO), operation(1, 1, SEM_UNDO)]).unwrap();
        set.set(0, 5);
    })
    .ok();
    assert_eq!((set.value(0), set.value(1)), (5, 0));
    fork(|| {
        operate(set.0, &[operation(0, 1, SEM_UNDO), operation(1, 1, SEM_UNDO)]).unwrap();
        control(set.0, 0, SETALL, values.as_ptr() as usize).unwrap();
    })
    .ok();
    assert_eq!((set.value(0), set.value(1)), (7, 7));
    fork(|| {
        let other = Set::new(1);
        operate(other.0, &[operation(0, 1, SEM_UNDO)]).unwrap();
        drop(other);
        operate(set.0, &[operation(0, 1, SEM_UNDO)]).unwrap();
    })
    .ok();
    assert_eq!(set.value(0), 7);
}

fn out_of_range() {
    let set = Set::new(2);
    set.set(0, 32767);
    // An adjustment has a range of its own.
    operate(set.0, &[operation(0, -32767, SEM_UNDO)]).unwrap();
    set.set(1, 1);
    operate(set.0, &[operation(0, 32767, 0)]).unwrap();
    assert_eq!(operate(set.0, &[operation(1, -1, 0), operation(0, -1, SEM_UNDO)]), Err(Errno::ERANGE));
    assert_eq!((set.value(0), set.value(1)), (32767, 1));
    // A waiter whose turn comes may overflow, too.
    let waiter = fork(|| {
        assert_eq!(set.change(&[(1, 0), (0, 1)]), Err(Errno::ERANGE));
    });
    procfs::wait_for_sleep(waiter.pid);
    set.change(&[(1, -1)]).unwrap();
    waiter.ok();
}

fn as_user(uid: u32, run: impl FnOnce()) {
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { (libc::setgid(uid), libc::setuid(uid)) }, (0, 0));
        run();
    })
    .ok();
}

fn permissions() {
    let key = 0x5e4b;
    let id = get(key, 1, IPC_CREAT | 0o640).unwrap();
    let set = Set(id);
    as_user(1000, || {
        let mut rows = Rows::default();
        let nothing = [operation(0, 0, 0)];
        row!(rows, EACCES, get(key, 1, 0o400));
        row!(rows, OK, get(key, 1, 0));
        row!(rows, EACCES, control(id, 0, GETVAL, 0));
        row!(rows, EACCES, control(id, 0, SETVAL, 1));
        row!(rows, EACCES, control(id, 9, GETVAL, 0));
        row!(rows, EINVAL, control(id, 9, SETVAL, 0));
        row!(rows, EACCES, operate(id, &nothing));
        row!(rows, EACCES, control(id, 0, IPC_STAT, 8));
        row!(rows, EACCES, control(id % 32768, 0, SEM_STAT, 8));
        row!(rows, EFAULT, control(id % 32768, 0, SEM_STAT_ANY, 8));
        row!(rows, EPERM, control(id, 0, IPC_RMID, 0));
        rows.finish();
    });
    let mut stat = set.stat();
    assert_eq!((stat.sem_nsems, stat.sem_perm.mode, stat.sem_perm.__key), (1, 0o640, key));
    (stat.sem_perm.uid, stat.sem_perm.gid, stat.sem_perm.mode) = (1000, 1001, 0o460);
    control(id, 0, IPC_SET, (&raw const stat) as usize).unwrap();
    let now = set.stat().sem_perm;
    assert_eq!((now.uid, now.gid, now.cuid, now.cgid, now.mode), (1000, 1001, 0, 0, 0o460));
    as_user(1001, || {
        let mut rows = Rows::default();
        row!(rows, OK, control(id, 0, GETVAL, 0));
        row!(rows, OK, control(id, 0, SETVAL, 0));
        row!(rows, EPERM, control(id, 0, IPC_RMID, 0));
        rows.finish();
    });
    as_user(1000, || {
        let mut rows = Rows::default();
        row!(rows, OK, operate(id, &[operation(0, 0, 0)]));
        row!(rows, EACCES, operate(id, &[operation(0, 1, 0)]));
        row!(rows, OK, control(id, 0, IPC_RMID, 0));
        rows.finish();
    });
    std::mem::forget(set);
}

fn limits() {
    let path = "/proc/sys/kernel/sem";
    let before = std::fs::read_to_string(path).unwrap();
    assert_eq!(before, "32000\t1024000000\t500\t32000\n");
    let set = Set::new(4);
    procfs::write(path, "8 12 2 2").unwrap();
    let mut rows = Rows::default();
    row!(rows, EINVAL, get(IPC_PRIVATE, 9, 0o600));
    let other = get(IPC_PRIVATE, 8, 0o600);
    assert!(other.is_ok(), "{other:?}");
    row!(rows, ENOSPC, get(IPC_PRIVATE, 1, 0o600));
    let one = operation(0, 1, 0);
    row!(rows, OK, operate(set.0, &[one, one]));
    row!(rows, E2BIG, operate(set.0, &[one, one, one]));
    row!(rows, OK, control(other.unwrap(), 0, IPC_RMID, 0));
    procfs::write(path, "8 100 2 1").unwrap();
    row!(rows, ENOSPC, get(IPC_PRIVATE, 1, 0o600));
    assert!(procfs::write(path, "8 100 2 40000").is_err());
    procfs::write(path, before.trim()).unwrap();
    rows.finish();
}

/// The line of an object in a list below `/proc/sysvipc`.
fn line_of(list: &str, id: usize) -> Option<Vec<i64>> {
    let text = std::fs::read_to_string(format!("/proc/sysvipc/{list}")).unwrap();
    let lines = text.lines().skip(1);
    let mut numbers = lines.map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect());
    numbers.find(|numbers: &Vec<i64>| numbers[1] == id as i64)
}

fn listed() {
    let key = 0x5e4c;
    let set = Set(get(key, 5, IPC_CREAT | 0o604).unwrap());
    let line = line_of("sem", set.0).expect("listed");
    assert_eq!(line[..9], [key.into(), set.0 as i64, 604, 5, 0, 0, 0, 0, 0]);
    assert!(line[9] > 0 && line.len() == 10);
    let id = set.0;
    drop(set);
    assert_eq!(line_of("sem", id), None);
    // A segment that waits for its last user has no key any more.
    let segment = call(libc::SYS_shmget, [key as usize, 4096, 0o1600, 0, 0, 0]).unwrap();
    let at = call(libc::SYS_shmat, [segment, 0, 0, 0, 0, 0]).unwrap();
    call(libc::SYS_shmctl, [segment, IPC_RMID as usize, 0, 0, 0, 0]).unwrap();
    let line = line_of("shm", segment).expect("listed");
    assert_eq!((line[0], line[2], line[6]), (0, 1600, 1));
    call(libc::SYS_shmdt, [at, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(line_of("shm", segment), None);
}

fn information() {
    let (first, second) = (Set::new(3), Set::new(4));
    let mut info = [0u32; 10];
    let buffer = info.as_mut_ptr() as usize;
    let highest = control(0, 0, IPC_INFO, buffer).unwrap();
    assert_eq!(info, [1_024_000_000, 32000, 1_024_000_000, 1_024_000_000, 32000, 500, 500, 20, 32767, 32767]);
    assert_eq!(control(0, 0, SEM_INFO, buffer), Ok(highest));
    assert_eq!((info[7], info[9]), (2, 7));
    assert_eq!(highest, (first.0 % 32768).max(second.0 % 32768));
    // SAFETY: a semid_ds of zeros is valid, and the call fills it.
    let mut stat: libc::semid_ds = unsafe { std::mem::zeroed() };
    let at = (&raw mut stat) as usize;
    assert_eq!(control(second.0 % 32768, 0, SEM_STAT, at), Ok(second.0));
    assert_eq!((stat.sem_nsems, stat.sem_perm.__seq as usize), (4, second.0 / 32768));
    assert_eq!(control(highest + 1, 0, SEM_STAT, at), Err(Errno::EINVAL));
}

fn many_waiters() {
    // Every one of them gets exactly what it has asked for, whoever is faster.
    let set = Set::new(2);
    let waiters: Vec<_> = (0..40i16)
        .map(|index| {
            fork(|| {
                let need = index % 4 + 1;
                for _ in 0..10 {
                    set.change(&[(0, -need)]).unwrap();
                    set.change(&[(1, need), (0, need)]).unwrap();
                    set.change(&[(1, -need)]).unwrap();
                }
            })
        })
        .collect();
    set.change(&[(0, 7)]).unwrap();
    waiters.into_iter().for_each(Child::ok);
    assert_eq!((set.value(0), set.value(1)), (7, 0));
}

fn largest_set() {
    let set = Set::new(32000);
    set.set(31999, 7);
    assert_eq!(set.value(31999), 7);
}

/// One change lets many calls go on to what blocks them next, each at a semaphore of its own.
fn all_move_at_once() {
    const COUNT: u16 = 400;
    let set = Set::new(i32::from(COUNT) + 1);
    set.set(0, 1);
    std::thread::scope(|scope| {
        for number in 1..=COUNT {
            let set = &set;
            let wait = move || assert_eq!(set.change(&[(0, 0), (number, -1)]), Ok(0));
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, wait).unwrap();
        }
        let waiting = |number: u16, command| control(set.0, number.into(), command, 0).unwrap();
        assert!(settles(Duration::from_secs(30), || waiting(0, GETZCNT) == usize::from(COUNT)));
        set.set(0, 0);
        for number in 1..=COUNT {
            assert_eq!(waiting(number, GETNCNT), 1, "{number}");
        }
        assert_eq!(waiting(0, GETZCNT), 0);
        // And back: who finds the first one changed waits for it again. On Linux all look.
        set.set(0, 1);
        set.set(COUNT.into(), 1);
        assert!(settles(Duration::from_secs(30), || waiting(COUNT, GETNCNT) == 0));
        set.set(0, 0);
        // The last one has gone on by now.
        let values: Vec<_> = (0..=COUNT).map(|number| u16::from((1..COUNT).contains(&number))).collect();
        control(set.0, 0, SETALL, values.as_ptr() as usize).unwrap();
    });
    assert!((0..=i32::from(COUNT)).all(|number| set.value(number) == 0));
}
