//! What goes along with the messages of Unix-domain sockets: credentials, files.

use std::mem::{size_of, zeroed};
use std::time::Duration;

use roundtable_programs::child::fork;
use roundtable_programs::file::pipe;
use roundtable_programs::socket::{pair, receive, recv, send, send_along, send_files, set_option};
use roundtable_programs::sys::{check, is_linux, settles};
use roundtable_programs::{Errno, tests};

tests! {
    peer_credentials, passed_credentials, passed_files, passed_files_do_not_fit, cycles_are_freed,
    sent_sockets_keep_their_messages, cycles_behind_cycles_are_freed, long_chain_is_freed, the_last_descriptor_of_a_cycle
}

fn peer_credentials() {
    let (a, _b) = pair(libc::SOCK_STREAM);
    // SAFETY: the structure is as long as we say.
    let peer = unsafe {
        let mut peer: libc::ucred = zeroed();
        let mut len = size_of::<libc::ucred>() as u32;
        let to: *mut libc::ucred = &mut peer;
        check(libc::getsockopt(a.raw(), libc::SOL_SOCKET, libc::SO_PEERCRED, to.cast(), &mut len)).unwrap();
        peer
    };
    // SAFETY: take nothing.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    assert_eq!((peer.pid as u32, peer.uid, peer.gid), (std::process::id(), uid, gid));
}

fn passed_credentials() {
    let (a, b) = pair(libc::SOCK_DGRAM);
    set_option(&b.0, libc::SO_PASSCRED, 1i32);
    assert_eq!(send(&a, b"x", 0), Ok(1));
    let mut buffer = [0; 10];
    let message = receive(&b.0, &mut buffer, 100, 0).unwrap();
    assert_eq!(message.control.len(), 1);
    assert_eq!(message.control[0].1, libc::SCM_CREDENTIALS);
    let pid = u32::from_ne_bytes(message.control[0].2[..4].try_into().unwrap());
    assert_eq!(pid, std::process::id());
    // One's own identity may be claimed, another only as root.
    let claim = |pid: i32, uid: u32| [pid.to_ne_bytes(), uid.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
    let own = std::process::id() as i32;
    fork(|| {
        // SAFETY: takes integers.
        unsafe { libc::setresuid(1000, 1000, 1000) };
        let me = std::process::id() as i32;
        assert_eq!(send_along(&a, b"x", libc::SCM_CREDENTIALS, &claim(me, 1000)), Ok(1));
        assert_eq!(send_along(&a, b"x", libc::SCM_CREDENTIALS, &claim(me, 0)), Err(Errno::EPERM));
        assert_eq!(send_along(&a, b"x", libc::SCM_CREDENTIALS, &claim(own, 1000)), Err(Errno::EPERM));
    })
    .ok();
}

fn passed_files() {
    let (a, b) = pair(libc::SOCK_STREAM);
    let (read, write) = pipe(0);
    assert_eq!(send_files(&a, b"with a file", &[read.raw(), write.raw()]), Ok(11));
    drop((read, write));
    assert_eq!(a.write(b"without"), Ok(7));
    let mut buffer = [0; 100];
    let message = receive(&b.0, &mut buffer, 100, libc::MSG_CMSG_CLOEXEC).unwrap();
    // A read ends behind what came with files.
    assert_eq!(message.count, 11);
    let files = message.files();
    assert_eq!(files.len(), 2);
    // SAFETY: takes integers.
    let flags = unsafe { libc::fcntl(files[0].raw(), libc::F_GETFD) };
    assert_eq!(flags, libc::FD_CLOEXEC);
    assert_eq!(files[1].write(b"through both"), Ok(12));
    assert_eq!(files[0].read(&mut buffer), Ok(12));
    assert_eq!(receive(&b.0, &mut buffer, 100, 0).unwrap().count, 7);
    assert_eq!(send_files(&a, b"x", &[999]), Err(Errno::EBADF));
    assert_eq!(send_files(&a, b"x", &[0; 254]), Err(Errno::EINVAL));
}

fn passed_files_do_not_fit() {
    let (a, b) = pair(libc::SOCK_DGRAM);
    let (read, write) = pipe(0);
    assert_eq!(send_files(&a, b"x", &[write.raw(), write.raw(), write.raw()]), Ok(1));
    drop(write);
    let mut buffer = [0; 10];
    // SAFETY: computes a size.
    let room = unsafe { libc::CMSG_LEN(8) } as usize;
    let message = receive(&b.0, &mut buffer, room, 0).unwrap();
    assert_eq!(message.flags & libc::MSG_CTRUNC, libc::MSG_CTRUNC);
    assert_eq!(message.files().len(), 2);
    // All copies are closed by now, the one that did not fit as well.
    assert_eq!(read.read(&mut buffer), Ok(0));
    // A receiver without room gets none, and nothing is left open.
    let (read, write) = pipe(0);
    assert_eq!(send_files(&a, b"x", &[write.raw()]), Ok(1));
    drop(write);
    assert_eq!(recv(&b, &mut buffer, 0), Ok(1));
    assert_eq!(read.read(&mut buffer), Ok(0));
}

fn cycles_are_freed() {
    let (read, write) = pipe(libc::O_NONBLOCK);
    for _ in 0..10 {
        let (a, b) = pair(libc::SOCK_STREAM);
        // Each holds the other in its queue, and one of them the pipe.
        assert_eq!(send_files(&a, b"x", &[a.raw(), b.raw(), write.raw()]), Ok(1));
        assert_eq!(send_files(&b, b"x", &[a.raw(), b.raw()]), Ok(1));
    }
    drop(write);
    let mut buffer = [0; 1];
    let freed = settles(Duration::from_secs(10), || {
        // Closing any socket makes the kernel look for such.
        drop(pair(libc::SOCK_STREAM));
        read.read(&mut buffer) == Ok(0)
    });
    assert!(freed, "sockets that nobody can reach keep a pipe open");
}

/// A socket that nobody holds but a message keeps what waits in it, though others are closed meanwhile.
fn sent_sockets_keep_their_messages() {
    let (carrier, to_carrier) = pair(libc::SOCK_STREAM);
    let (sent, to_sent) = pair(libc::SOCK_STREAM);
    let (read, write) = pipe(libc::O_NONBLOCK);
    assert_eq!(send_files(&to_sent, b"a pipe", &[write.raw()]), Ok(6));
    assert_eq!(send_files(&to_carrier, b"x", &[sent.raw()]), Ok(1));
    drop((sent, write));
    drop(pair(libc::SOCK_STREAM));
    let sent = receive(&carrier.0, &mut [0; 1], 100, 0).unwrap().files().remove(0);
    assert_eq!(read.read(&mut [0; 1]), Err(Errno::EAGAIN));
    let mut buffer = [0; 10];
    let message = receive(&sent.0, &mut buffer, 100, 0).unwrap();
    assert_eq!((message.count, message.files().len()), (6, 1));
}

/// A cycle that only another cycle leads to, and so on: one look finds them all.
fn cycles_behind_cycles_are_freed() {
    const DEPTH: usize = 8;
    let (read, write) = pipe(libc::O_NONBLOCK);
    let mut next = write;
    let mut others = Vec::new();
    for _ in 0..DEPTH {
        let (a, b) = pair(libc::SOCK_STREAM);
        let (ends, with_it) = pair(libc::SOCK_STREAM);
        // Itself, and what leads on, beside a socket that is closed when the message is dropped.
        assert_eq!(send_files(&b, b"x", &[a.raw()]), Ok(1));
        assert_eq!(send_files(&b, b"x", &[ends.raw(), next.raw()]), Ok(1));
        others.extend([b, ends, with_it, std::mem::replace(&mut next, a)]);
    }
    let (last, _other) = pair(libc::SOCK_STREAM);
    drop((others, next));
    drop(last);
    // Linux looks a moment later.
    let freed = settles(Duration::from_secs(10), || read.read(&mut [0; 1]) == Ok(0));
    assert!(freed, "a cycle behind another one keeps a pipe open");
}

/// A socket waits in itself, and its descriptor is the last that is closed: no socket ends with it that could tell.
fn the_last_descriptor_of_a_cycle() {
    let (read, write) = pipe(libc::O_NONBLOCK);
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!(send_files(&b, b"x", &[a.raw(), write.raw()]), Ok(1));
    drop((write, b));
    drop(a);
    let freed = settles(Duration::from_secs(10), || {
        // Linux waits until another socket ends.
        if is_linux() {
            drop(pair(libc::SOCK_STREAM));
        }
        read.read(&mut [0; 1]) == Ok(0)
    });
    assert!(freed, "a socket that waits in itself keeps a pipe open");
    // The same where it has two descriptors, in two processes, of which one ends.
    let (read, write) = pipe(libc::O_NONBLOCK);
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!(send_files(&b, b"x", &[a.raw(), write.raw()]), Ok(1));
    drop((write, b));
    let child = fork(|| ());
    drop(a);
    child.ok();
    let freed = settles(Duration::from_secs(10), || {
        if is_linux() {
            drop(pair(libc::SOCK_STREAM));
        }
        read.read(&mut [0; 1]) == Ok(0)
    });
    assert!(freed, "a socket that waits in itself keeps a pipe open after an exit");
}

/// Each socket waits in the next one: the close of the last closes all.
fn long_chain_is_freed() {
    const LENGTH: usize = 600;
    let (read, write) = pipe(libc::O_NONBLOCK);
    let mut next = write;
    for _ in 0..LENGTH {
        let (a, b) = pair(libc::SOCK_STREAM);
        assert_eq!(send_files(&b, b"x", &[next.raw()]), Ok(1));
        next = a;
    }
    assert_eq!(read.read(&mut [0; 1]), Err(Errno::EAGAIN));
    drop(next);
    let freed = settles(Duration::from_secs(10), || read.read(&mut [0; 1]) == Ok(0));
    assert!(freed, "a chain of sockets keeps a pipe open");
}
