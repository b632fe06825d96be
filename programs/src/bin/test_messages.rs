//! System V message queues.

use libc::{IPC_CREAT, IPC_EXCL, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT};
use libc::{MSG_EXCEPT, MSG_NOERROR};
use roundtable_programs::child::{Child, fork};
use roundtable_programs::harness::skip;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{is_linux, pid};
use roundtable_programs::{Errno, procfs, row, signals, tests};

tests! { identifiers, errors, selection, cutting, copies, full_queue, room_goes_to_who_fits, receivers_in_turn,
receiver_too_small, removed_while_waiting, interrupted, changed_while_waiting, permissions, statistics, limits, listed,
many_at_once: 60, all_let_in_at_once: 60 }

const MSG_COPY: i32 = 0o40000;
const IPC_INFO: i32 = 3;
const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;

fn get(key: i32, flags: i32) -> Answer {
    call(libc::SYS_msgget, [key as usize, flags as usize, 0, 0, 0, 0])
}

fn control(id: usize, command: i32, buffer: usize) -> Answer {
    call(libc::SYS_msgctl, [id, command as usize, buffer, 0, 0, 0])
}

#[repr(C)]
struct Buffer {
    kind: i64,
    text: [u8; 9000],
}

fn send(id: usize, kind: i64, text: &[u8], flags: i32) -> Answer {
    let mut buffer = Buffer { kind, text: [0; 9000] };
    buffer.text[..text.len()].copy_from_slice(text);
    call(libc::SYS_msgsnd, [id, (&raw const buffer) as usize, text.len(), flags as usize, 0, 0])
}

fn receive(id: usize, kind: i64, size: usize, flags: i32) -> Result<(i64, Vec<u8>), Errno> {
    let mut buffer = Buffer { kind: 0, text: [0; 9000] };
    let at = (&raw mut buffer) as usize;
    let len = call(libc::SYS_msgrcv, [id, at, size, kind as usize, flags as usize, 0])?;
    Ok((buffer.kind, buffer.text[..len].to_vec()))
}

/// A queue that goes with the test.
struct Queue(usize);

impl Queue {
    fn new() -> Queue {
        Queue(get(IPC_PRIVATE, 0o600).expect("msgget"))
    }

    fn send(&self, kind: i64, text: &str) {
        assert_eq!(send(self.0, kind, text.as_bytes(), IPC_NOWAIT), Ok(0));
    }

    /// The next message, at once.
    fn next(&self, kind: i64, flags: i32) -> Result<(i64, String), Errno> {
        let (kind, text) = receive(self.0, kind, 100, flags | IPC_NOWAIT)?;
        Ok((kind, String::from_utf8(text).unwrap()))
    }

    fn stat(&self) -> libc::msqid_ds {
        // SAFETY: a msqid_ds of zeros is valid, and the call fills it.
        let mut stat: libc::msqid_ds = unsafe { std::mem::zeroed() };
        control(self.0, IPC_STAT, (&raw mut stat) as usize).expect("IPC_STAT");
        stat
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = control(self.0, IPC_RMID, 0);
    }
}

/// A child that sleeps in a call.
fn sleeper(run: impl FnOnce()) -> Child {
    let child = fork(run);
    procfs::wait_for_sleep(child.pid);
    child
}

fn identifiers() {
    let mut rows = Rows::default();
    let key = 0x3e55;
    row!(rows, ENOENT, get(key, 0));
    let id = get(key, IPC_CREAT | 0o600).unwrap();
    assert_eq!(get(key, 0), Ok(id));
    row!(rows, EEXIST, get(key, IPC_CREAT | IPC_EXCL));
    row!(rows, OK, control(id, IPC_RMID, 0));
    row!(rows, EINVAL, control(id, IPC_RMID, 0));
    row!(rows, EINVAL, send(id, 1, b"x", 0));
    row!(rows, ENOENT, get(key, 0));
    rows.finish();
}

fn errors() {
    let mut rows = Rows::default();
    let queue = Queue::new();
    let minus = usize::MAX;
    let text = [1i64, 0];
    let at = text.as_ptr() as usize;
    let raw_send = |id, at, len| call(libc::SYS_msgsnd, [id, at, len, IPC_NOWAIT as usize, 0, 0]);
    let raw_receive =
        |id, at, len: usize, flags: i32| call(libc::SYS_msgrcv, [id, at, len, 0, flags as usize, 0]);
    row!(rows, EINVAL, send(queue.0, 0, b"x", 0));
    row!(rows, EINVAL, send(queue.0, -1, b"x", 0));
    row!(rows, EINVAL, send(queue.0, 1, &[0; 8193], 0));
    row!(rows, EINVAL, raw_send(queue.0, at, minus));
    row!(rows, EINVAL, raw_send(minus, at, 1));
    row!(rows, EINVAL, raw_send(0x7fff_fff0, at, 1));
    row!(rows, EFAULT, raw_send(queue.0, 8, 1));
    row!(rows, EFAULT, raw_send(minus, 8, 1));
    row!(rows, ENOMSG, raw_receive(queue.0, at, 1, IPC_NOWAIT));
    row!(rows, EINVAL, raw_receive(queue.0, at, minus, IPC_NOWAIT));
    row!(rows, EINVAL, raw_receive(minus, at, 1, IPC_NOWAIT));
    row!(rows, EINVAL, raw_receive(0x7fff_fff0, at, 1, IPC_NOWAIT));
    row!(rows, OK, send(queue.0, 1, b"four", 0));
    row!(rows, E2BIG, raw_receive(queue.0, at, 3, IPC_NOWAIT));
    // A message that cannot be written to its receiver is lost.
    row!(rows, EFAULT, raw_receive(queue.0, 8, 4, IPC_NOWAIT));
    row!(rows, ENOMSG, raw_receive(queue.0, at, 4, IPC_NOWAIT));
    row!(rows, EFAULT, control(queue.0, IPC_STAT, 8));
    row!(rows, EFAULT, control(queue.0, IPC_SET, 8));
    row!(rows, EINVAL, control(queue.0, 99, 0));
    row!(rows, EINVAL, control(queue.0, -1, 0));
    row!(rows, EINVAL, control(queue.0, IPC_STAT | 0x100, 0));
    row!(rows, EINVAL, control(minus, IPC_STAT, 0));
    rows.finish();
}

fn selection() {
    let queue = Queue::new();
    for (kind, text) in [(5, "a"), (3, "b"), (7, "c"), (3, "d"), (5, "e"), (2, "f")] {
        queue.send(kind, text);
    }
    let got = |kind, text: &str| Ok((kind, text.to_string()));
    assert_eq!(queue.next(3, 0), got(3, "b"));
    assert_eq!(queue.next(4, 0), Err(Errno::ENOMSG));
    assert_eq!(queue.next(-1, 0), Err(Errno::ENOMSG));
    assert_eq!(queue.next(-4, 0), got(2, "f"));
    assert_eq!(queue.next(-4, 0), got(3, "d"));
    assert_eq!(queue.next(5, MSG_EXCEPT), got(7, "c"));
    assert_eq!(queue.next(5, MSG_EXCEPT), Err(Errno::ENOMSG));
    assert_eq!(queue.next(i64::MIN, 0), got(5, "a"));
    // Which type does not matter here, nor does MSG_EXCEPT.
    assert_eq!(queue.next(0, MSG_EXCEPT), got(5, "e"));
    assert_eq!(queue.next(0, 0), Err(Errno::ENOMSG));
}

fn cutting() {
    let queue = Queue::new();
    queue.send(1, "longer");
    assert_eq!(receive(queue.0, 0, 4, IPC_NOWAIT), Err(Errno::E2BIG));
    assert_eq!(receive(queue.0, 0, 4, MSG_NOERROR | IPC_NOWAIT), Ok((1, b"long".to_vec())));
    // The rest is gone.
    assert_eq!(receive(queue.0, 0, 4, MSG_NOERROR | IPC_NOWAIT), Err(Errno::ENOMSG));
    queue.send(9, "");
    assert_eq!(receive(queue.0, 0, 0, 0), Ok((9, vec![])));
    let large: Vec<u8> = (0..8192).map(|index| (index % 251) as u8).collect();
    assert_eq!(send(queue.0, 1, &large, 0), Ok(0));
    assert_eq!(receive(queue.0, 1, 9000, 0), Ok((1, large)));
}

fn copies() {
    let queue = Queue::new();
    queue.send(4, "first");
    queue.send(5, "second");
    let copy = |place, size, flags| receive(queue.0, place, size, flags | MSG_COPY);
    assert_eq!(copy(1, 100, IPC_NOWAIT), Ok((5, b"second".to_vec())));
    assert_eq!(copy(0, 100, IPC_NOWAIT), Ok((4, b"first".to_vec())));
    assert_eq!(copy(2, 100, IPC_NOWAIT), Err(Errno::ENOMSG));
    assert_eq!(copy(0, 100, 0), Err(Errno::EINVAL));
    assert_eq!(copy(0, 100, IPC_NOWAIT | MSG_EXCEPT), Err(Errno::EINVAL));
    assert_eq!(copy(0, 3, IPC_NOWAIT), Err(Errno::E2BIG));
    assert_eq!(queue.stat().msg_qnum, 2);
}

fn full_queue() {
    let queue = Queue::new();
    let half = [7; 8192];
    assert_eq!((send(queue.0, 1, &half, 0), send(queue.0, 2, &half, 0)), (Ok(0), Ok(0)));
    assert_eq!(send(queue.0, 3, b"", IPC_NOWAIT), Ok(0));
    assert_eq!(send(queue.0, 3, b"x", IPC_NOWAIT), Err(Errno::EAGAIN));
    let sender = sleeper(|| assert_eq!(send(queue.0, 4, &half, 0), Ok(0)));
    let sender_pid = sender.pid;
    assert!(receive(queue.0, 3, 0, 0).is_ok());
    assert_eq!(queue.stat().msg_qnum, 2);
    assert!(receive(queue.0, 1, 8192, 0).is_ok());
    if !is_linux() {
        // The message is there when receiving is over, whether its sender has run or not. Linux's sender has to run.
        assert_eq!((queue.stat().msg_qnum, queue.stat().msg_lspid), (2, sender_pid));
    }
    sender.ok();
    assert_eq!((queue.stat().msg_qnum, queue.stat().msg_lspid), (2, sender_pid));
    assert_eq!(receive(queue.0, 4, 8192, IPC_NOWAIT).unwrap().0, 4);
    // Empty messages count, too.
    let mut stat = queue.stat();
    stat.msg_qbytes = 8195;
    control(queue.0, IPC_SET, (&raw const stat) as usize).unwrap();
    for _ in 0..8194 {
        assert_eq!(send(queue.0, 5, b"", IPC_NOWAIT), Ok(0));
    }
    assert_eq!(send(queue.0, 5, b"", IPC_NOWAIT), Err(Errno::EAGAIN));
}

fn room_goes_to_who_fits() {
    if is_linux() {
        skip("Linux wakes both senders, and lets them race for the room");
    }
    let queue = Queue::new();
    assert_eq!((send(queue.0, 1, &[0; 8000], 0), send(queue.0, 2, &[0; 8000], 0)), (Ok(0), Ok(0)));
    let large = sleeper(|| assert_eq!(send(queue.0, 3, &[0; 8100], 0), Ok(0)));
    let small = sleeper(|| assert_eq!(send(queue.0, 4, &[0; 500], 0), Ok(0)));
    assert!(receive(queue.0, 1, 9000, 0).is_ok());
    // 8384 bytes: enough for the one that came first, and then not for the other.
    large.ok();
    assert_eq!(receive(queue.0, 4, 9000, IPC_NOWAIT), Err(Errno::ENOMSG));
    assert!(receive(queue.0, 3, 9000, IPC_NOWAIT).is_ok());
    small.ok();
    assert!(receive(queue.0, 4, 9000, IPC_NOWAIT).is_ok());
}

fn receivers_in_turn() {
    let queue = Queue::new();
    let expect = |kind: i64, flags: i32, text: &'static str| {
        sleeper(|| {
            let got = receive(queue.0, kind, 100, flags).unwrap();
            assert_eq!(String::from_utf8_lossy(&got.1), text);
        })
    };
    let waiters = [
        expect(3, 0, "three"),
        expect(0, 0, "first"),
        expect(-5, 0, "five"),
        expect(5, MSG_EXCEPT, "other"),
        expect(0, 0, "last"),
    ];
    queue.send(9, "first");
    queue.send(5, "five");
    queue.send(3, "three");
    queue.send(3, "other");
    queue.send(5, "last");
    waiters.into_iter().for_each(Child::ok);
    assert_eq!(queue.stat().msg_qnum, 0);
}

fn receiver_too_small() {
    let queue = Queue::new();
    let small = sleeper(|| assert_eq!(receive(queue.0, 0, 2, 0), Err(Errno::E2BIG)));
    let cut = sleeper(|| assert_eq!(receive(queue.0, 0, 2, MSG_NOERROR), Ok((1, b"lo".to_vec()))));
    queue.send(1, "long");
    small.ok();
    cut.ok();
}

fn removed_while_waiting() {
    let queue = Queue::new();
    let receiver = sleeper(|| assert_eq!(receive(queue.0, 7, 10, 0), Err(Errno::EIDRM)));
    assert_eq!((send(queue.0, 1, &[0; 8192], 0), send(queue.0, 1, &[0; 8192], 0)), (Ok(0), Ok(0)));
    let sender = sleeper(|| assert_eq!(send(queue.0, 1, b"x", 0), Err(Errno::EIDRM)));
    control(queue.0, IPC_RMID, 0).unwrap();
    receiver.ok();
    sender.ok();
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn interrupted() {
    let queue = Queue::new();
    let handle = || signals::catch_with(libc::SIGUSR1, nothing, libc::SA_RESTART, &[]);
    let receiver = sleeper(|| {
        handle();
        assert_eq!(receive(queue.0, 7, 10, 0), Err(Errno::EINTR));
    });
    assert_eq!((send(queue.0, 1, &[0; 8192], 0), send(queue.0, 1, &[0; 8192], 0)), (Ok(0), Ok(0)));
    let sender = sleeper(|| {
        handle();
        assert_eq!(send(queue.0, 7, b"x", 0), Err(Errno::EINTR));
    });
    // A stop and its end are no interruption.
    receiver.kill(libc::SIGSTOP);
    receiver.kill(libc::SIGCONT);
    // A signal that comes on the way back into the call is handled before the call.
    procfs::wait_for_sleep(receiver.pid);
    receiver.kill(libc::SIGUSR1);
    sender.kill(libc::SIGUSR1);
    receiver.ok();
    sender.ok();
    assert_eq!(queue.stat().msg_qnum, 2);
}

fn changed_while_waiting() {
    let queue = Queue::new();
    let mut stat = queue.stat();
    stat.msg_perm.mode = 0o604;
    control(queue.0, IPC_SET, (&raw const stat) as usize).unwrap();
    let user = sleeper(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { (libc::setgid(1000), libc::setuid(1000)) }, (0, 0));
        assert_eq!(receive(queue.0, 7, 10, 0), Err(Errno::EACCES));
    });
    assert_eq!((send(queue.0, 1, &[0; 8192], 0), send(queue.0, 1, &[0; 8192], 0)), (Ok(0), Ok(0)));
    let sender = sleeper(|| assert_eq!(send(queue.0, 1, b"x", 0), Ok(0)));
    stat.msg_perm.mode = 0o600;
    stat.msg_qbytes = 16385;
    control(queue.0, IPC_SET, (&raw const stat) as usize).unwrap();
    user.ok();
    sender.ok();
    assert_eq!(queue.stat().msg_qnum, 3);
}

fn permissions() {
    let key = 0x3e56;
    let queue = Queue(get(key, IPC_CREAT | 0o620).unwrap());
    let id = queue.0;
    fork(|| {
        // SAFETY: takes integers, and an empty list.
        unsafe {
            assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
            assert_eq!((libc::setgid(1000), libc::setuid(1000)), (0, 0));
        }
        let mut rows = Rows::default();
        row!(rows, EACCES, get(key, 0o400));
        row!(rows, EACCES, send(id, 1, b"x", 0));
        row!(rows, EACCES, receive(id, 1, 1, IPC_NOWAIT).map(|_| 0));
        row!(rows, EACCES, control(id, IPC_STAT, 8));
        row!(rows, EACCES, control(id % 32768, MSG_STAT, 8));
        row!(rows, EFAULT, control(id % 32768, MSG_STAT_ANY, 8));
        row!(rows, EPERM, control(id, IPC_RMID, 0));
        let mine = get(IPC_PRIVATE, 0o600).unwrap();
        // SAFETY: a msqid_ds of zeros is valid, and the call fills it.
        let mut stat: libc::msqid_ds = unsafe { std::mem::zeroed() };
        row!(rows, OK, control(mine, IPC_STAT, (&raw mut stat) as usize));
        stat.msg_qbytes = 16385;
        row!(rows, EPERM, control(mine, IPC_SET, (&raw const stat) as usize));
        stat.msg_qbytes = 10;
        row!(rows, OK, control(mine, IPC_SET, (&raw const stat) as usize));
        row!(rows, EAGAIN, send(mine, 1, &[0; 11], IPC_NOWAIT));
        row!(rows, OK, control(mine, IPC_RMID, 0));
        rows.finish();
    })
    .ok();
}

fn statistics() {
    let queue = Queue::new();
    let fresh = queue.stat();
    assert_eq!((fresh.msg_qnum, fresh.msg_qbytes, fresh.msg_stime, fresh.msg_rtime), (0, 16384, 0, 0));
    assert_eq!((fresh.msg_lspid, fresh.msg_lrpid), (0, 0));
    queue.send(1, "abc");
    queue.send(1, "de");
    let sent = queue.stat();
    assert_eq!((sent.msg_qnum, sent.__msg_cbytes, sent.msg_lspid, sent.msg_lrpid), (2, 5, pid(), 0));
    assert!(sent.msg_stime >= fresh.msg_ctime && sent.msg_rtime == 0);
    let mut info = [0u32; 8];
    let highest = control(0, MSG_INFO, info.as_mut_ptr() as usize).unwrap();
    assert_eq!((info[0], info[1], info[6]), (1, 2, 5));
    assert_eq!(highest, queue.0 % 32768);
    control(0, IPC_INFO, info.as_mut_ptr() as usize).unwrap();
    assert_eq!(info[..7], [512_000, 16384, 8192, 16384, 32000, 16, 16384]);
    assert_eq!(info[7] & 0xffff, 0xffff);
    let mut stat = fresh;
    assert_eq!(control(queue.0 % 32768, MSG_STAT, (&raw mut stat) as usize), Ok(queue.0));
    assert_eq!(stat.msg_qnum, 2);
    fork(|| assert_eq!(queue.next(0, 0), Ok((1, "abc".into())))).ok();
    let received = queue.stat();
    assert_eq!((received.msg_qnum, received.__msg_cbytes), (1, 2));
    assert!(received.msg_rtime >= sent.msg_stime && received.msg_lrpid != pid());
}

fn limits() {
    let mut rows = Rows::default();
    let kernel = |name: &str| format!("/proc/sys/kernel/{name}");
    let values = ["msgmax", "msgmnb", "msgmni"].map(|name| procfs::number(&kernel(name)));
    assert_eq!(values, [8192, 16384, 32000]);
    let queue = Queue::new();
    procfs::write(&kernel("msgmax"), 100).unwrap();
    row!(rows, EINVAL, send(queue.0, 1, &[0; 101], 0));
    row!(rows, OK, send(queue.0, 1, &[0; 100], 0));
    procfs::write(&kernel("msgmax"), 8192).unwrap();
    procfs::write(&kernel("msgmnb"), 50).unwrap();
    let small = Queue::new();
    assert_eq!(small.stat().msg_qbytes, 50);
    row!(rows, EAGAIN, send(small.0, 1, &[0; 51], IPC_NOWAIT));
    procfs::write(&kernel("msgmnb"), 16384).unwrap();
    procfs::write(&kernel("msgmni"), 2).unwrap();
    row!(rows, ENOSPC, get(IPC_PRIVATE, 0o600));
    procfs::write(&kernel("msgmni"), 32000).unwrap();
    assert!(procfs::write(&kernel("msgmni"), 32769).is_err());
    rows.finish();
}

fn listed() {
    let queue = Queue(get(0x3e57, IPC_CREAT | 0o640).unwrap());
    queue.send(1, "abc");
    let text = std::fs::read_to_string("/proc/sysvipc/msg").unwrap();
    let head: Vec<_> = text.lines().next().unwrap().split_whitespace().collect();
    let names = "key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime";
    assert_eq!(head, names.split_whitespace().collect::<Vec<_>>());
    let own = |line: &&str| line.split_whitespace().nth(1) == Some(&queue.0.to_string());
    let line = text.lines().find(own).expect("listed");
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[..5], [0x3e57.to_string().as_str(), &queue.0.to_string(), "640", "3", "1"]);
    assert_eq!((words[5], words[6], words.len()), (pid().to_string().as_str(), "0", 14));
}

fn many_at_once() {
    // Eight senders and eight receivers, each for its type, through a queue that holds little.
    let queue = Queue::new();
    let mut stat = queue.stat();
    stat.msg_qbytes = 64;
    control(queue.0, IPC_SET, (&raw const stat) as usize).unwrap();
    let mut all = Vec::new();
    for kind in 1..=8i64 {
        all.push(fork(|| {
            for number in 0..50u64 {
                assert_eq!(send(queue.0, kind, &number.to_le_bytes(), 0), Ok(0));
            }
        }));
        all.push(fork(|| {
            for number in 0..50u64 {
                let (got, text) = receive(queue.0, kind, 8, 0).unwrap();
                assert_eq!((got, text), (kind, number.to_le_bytes().to_vec()));
            }
        }));
    }
    all.into_iter().for_each(Child::ok);
    assert_eq!((queue.stat().msg_qnum, queue.stat().__msg_cbytes), (0, 0));
}

/// One receive makes room for the messages of all who wait.
fn all_let_in_at_once() {
    const COUNT: usize = 400;
    let queue = Queue::new();
    let large = [7; 8192];
    for _ in 0..2 {
        assert_eq!(send(queue.0, 1, &large, IPC_NOWAIT), Ok(0));
    }
    std::thread::scope(|scope| {
        for number in 0..COUNT {
            let queue = &queue;
            let wait = move || assert_eq!(send(queue.0, 2 + number as i64, &[7], 0), Ok(0));
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, wait).unwrap();
        }
        procfs::wait_for_sleepers(COUNT);
        assert_eq!(queue.stat().msg_qnum, 2);
        assert_eq!(receive(queue.0, 1, 8192, IPC_NOWAIT).unwrap().1.len(), 8192);
    });
    assert_eq!((queue.stat().msg_qnum, queue.stat().__msg_cbytes), (1 + COUNT as u64, 8192 + COUNT as u64));
    for kind in 2..2 + COUNT as i64 {
        assert_eq!(receive(queue.0, kind, 1, IPC_NOWAIT), Ok((kind, vec![7])));
    }
}
