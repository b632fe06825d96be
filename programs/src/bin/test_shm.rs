//! System V shared memory: segments that go with their maker.

use roundtable_programs::child::{fork, in_child};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::namespaces::{NEWIPC, become_root_of_own};
use roundtable_programs::place::become_user;
use roundtable_programs::sys::PAGE;
use roundtable_programs::{Errno, procfs, sys, tests};

tests! { orphans_go, attached_orphans_go_last, setting, locks_by_owners, owners_as_seen_from_inside }

const SETTING: &str = "/proc/sys/kernel/shm_rmid_forced";

fn make() -> usize {
    call(libc::SYS_shmget, [libc::IPC_PRIVATE as usize, PAGE, 0o600, 0, 0, 0]).expect("shmget")
}

/// Whether there is such a segment.
fn is_there(id: usize) -> bool {
    let mut status = std::mem::MaybeUninit::<libc::shmid_ds>::uninit();
    let answer = call(libc::SYS_shmctl, [id, libc::IPC_STAT as usize, status.as_mut_ptr() as usize, 0, 0, 0]);
    assert!(matches!(answer, Ok(0) | Err(Errno::EINVAL | Errno::EIDRM)), "{answer:?}");
    answer.is_ok()
}

fn attach(id: usize) -> usize {
    call(libc::SYS_shmat, [id, 0, 0, 0, 0, 0]).expect("shmat")
}

fn detach(address: usize) -> Answer {
    call(libc::SYS_shmdt, [address, 0, 0, 0, 0, 0])
}

/// Runs it with segments and settings of its own.
fn apart(run: impl FnOnce()) {
    in_child(|| {
        // SAFETY: takes an integer.
        sys::check(unsafe { libc::unshare(libc::CLONE_NEWIPC) }).expect("unshare");
        run();
    });
}

/// A segment of a process that has ended; `while_it_lives` is called in between.
fn orphan(while_it_lives: impl FnOnce(usize)) -> usize {
    let (read, write) = roundtable_programs::file::pipe(0);
    let (wait, go) = roundtable_programs::file::pipe(0);
    let child = fork(|| {
        write.write(&make().to_ne_bytes()).unwrap();
        wait.read(&mut [0]).unwrap();
    });
    let mut id = [0; 8];
    read.read(&mut id).unwrap();
    let id = usize::from_ne_bytes(id);
    while_it_lives(id);
    go.write(&[0]).unwrap();
    child.ok();
    id
}

fn orphans_go() {
    apart(|| {
        let (own, old) = (make(), orphan(|_| ()));
        assert!(is_there(own) && is_there(old));
        procfs::write(SETTING, 1).unwrap();
        // Whose maker is gone goes at once.
        assert!(is_there(own) && !is_there(old));
        let new = orphan(|id| assert!(is_there(id)));
        assert!(is_there(own) && !is_there(new));
        // And so does what nobody has attached any more.
        let address = attach(own);
        assert!(is_there(own));
        detach(address).unwrap();
        assert!(!is_there(own));
    });
}

fn attached_orphans_go_last() {
    apart(|| {
        procfs::write(SETTING, 1).unwrap();
        let mut address = 0;
        let id = orphan(|id| address = attach(id));
        assert!(is_there(id));
        let other = attach(id);
        detach(address).unwrap();
        assert!(is_there(id));
        detach(other).unwrap();
        assert!(!is_there(id));
    });
}

fn setting() {
    apart(|| {
        assert_eq!(procfs::number(SETTING), 0);
        procfs::write(SETTING, 1).unwrap();
        assert!(procfs::write(SETTING, 2).is_err());
        assert_eq!(procfs::number(SETTING), 1);
        procfs::write(SETTING, 0).unwrap();
        let id = orphan(|_| ());
        assert!(is_there(id));
        // Each namespace has its own.
        procfs::write(SETTING, 1).unwrap();
        apart(|| assert_eq!(procfs::number(SETTING), 0));
    });
}

/// May lock no memory, by its limit.
fn lock_nothing() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit lives through the call; the other takes integers.
    unsafe {
        sys::check(libc::setrlimit(libc::RLIMIT_MEMLOCK, &none)).expect("setrlimit");
        sys::check(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0)).expect("dumpable");
    }
}

/// SHM_LOCK is for owners who may lock memory.
fn locks_by_owners() {
    let control = |id: usize, command: i32| call(libc::SYS_shmctl, [id, command as usize, 0, 0, 0, 0]);
    in_child(|| {
        become_user(1000, 1000);
        lock_nothing();
        let id = make();
        assert_eq!(control(id, libc::SHM_LOCK), Err(Errno::EPERM));
        assert_eq!(control(id, libc::SHM_UNLOCK), Ok(0));
        assert_eq!(control(id, libc::IPC_RMID), Ok(0));
    });
}

/// The lists of objects name their owners as the reader knows them.
fn owners_as_seen_from_inside() {
    in_child(|| {
        become_user(1000, 1001);
        lock_nothing();
        become_root_of_own(NEWIPC);
        make();
        let flags = libc::IPC_CREAT as usize | 0o600;
        call(libc::SYS_semget, [0, 1, flags, 0, 0, 0]).expect("semget");
        call(libc::SYS_msgget, [0, flags, 0, 0, 0, 0]).expect("msgget");
        for (list, owner) in [("shm", 7), ("sem", 4), ("msg", 7)] {
            let text = std::fs::read_to_string(format!("/proc/sysvipc/{list}")).unwrap();
            let line: Vec<&str> = text.lines().nth(1).expect("an object").split_whitespace().collect();
            assert_eq!(line[owner..owner + 4], ["0"; 4], "{list}: {text}");
        }
    });
}
