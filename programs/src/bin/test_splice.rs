//! splice(2), tee(2), vmsplice(2).

use libc::{SPLICE_F_NONBLOCK, SYS_splice, SYS_tee, SYS_vmsplice};
use roundtable_programs::child::{fork, in_child};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW};
use roundtable_programs::place;
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::check;
use roundtable_programs::{Errno, procfs, row, signals, tests};

tests! { file_to_pipe, pipe_to_file, pipe_to_pipe, offsets, tee_leaves_the_data, vectors, errors, nonblocking, waits_for_data,
waits_for_room, no_reader, sockets, devices, a_whole_file: 60,
pages_of_a_user }

const NONE: usize = usize::MAX;

/// splice; `NONE` for no offset.
fn splice(
    from: &Fd,
    in_offset: Option<&mut i64>,
    to: &Fd,
    out_offset: Option<&mut i64>,
    count: usize,
    flags: u32,
) -> Answer {
    let at = |offset: Option<&mut i64>| offset.map_or(0, |offset| (&raw mut *offset) as usize);
    let (input, output) = (from.raw() as usize, to.raw() as usize);
    call(SYS_splice, [input, at(in_offset), output, at(out_offset), count, flags as usize])
}

fn tee(from: &Fd, to: &Fd, count: usize, flags: u32) -> Answer {
    call(SYS_tee, [from.raw() as usize, to.raw() as usize, count, flags as usize, 0, 0])
}

fn vmsplice(pipe: &Fd, vectors: &[libc::iovec], flags: u32) -> Answer {
    call(SYS_vmsplice, [pipe.raw() as usize, vectors.as_ptr() as usize, vectors.len(), flags as usize, 0, 0])
}

fn read_all(fd: &Fd, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    let got = fd.read(&mut buffer).expect("read");
    buffer.truncate(got);
    buffer
}

/// A file with this text, whose position is its begin.
fn file_with(text: &[u8]) -> Fd {
    let file = Fd::temporary();
    assert_eq!(file.write_at(text, 0), Ok(text.len()));
    file
}

fn position(fd: &Fd) -> usize {
    call(libc::SYS_lseek, [fd.raw() as usize, 0, libc::SEEK_CUR as usize, 0, 0, 0]).unwrap()
}

fn file_to_pipe() {
    let (read, write) = pipe(0);
    let text: Vec<u8> = (0..10_000u32).map(|index| (index % 251) as u8).collect();
    let file = file_with(&text);
    assert_eq!(splice(&file, None, &write, None, 6000, 0), Ok(6000));
    assert_eq!(position(&file), 6000);
    // The end of the file is the end of what there is.
    assert_eq!(splice(&file, None, &write, None, 6000, 0), Ok(4000));
    assert_eq!(splice(&file, None, &write, None, 6000, 0), Ok(0));
    assert_eq!(read_all(&read, 20_000), text);
}

fn pipe_to_file() {
    let (read, write) = pipe(0);
    let file = Fd::temporary();
    assert_eq!(write.write(b"hello world"), Ok(11));
    assert_eq!(splice(&read, None, &file, None, 5, 0), Ok(5));
    assert_eq!(position(&file), 5);
    // What there is, when more is asked for.
    assert_eq!(splice(&read, None, &file, None, 100, 0), Ok(6));
    let mut text = [0; 20];
    assert_eq!(file.read_at(&mut text, 0), Ok(11));
    assert_eq!(&text[..11], b"hello world");
    drop(write);
    assert_eq!(splice(&read, None, &file, None, 100, 0), Ok(0));
}

fn pipe_to_pipe() {
    let (read, write) = pipe(0);
    let (far, near) = pipe(0);
    assert_eq!(write.write(&[7; 5000]), Ok(5000));
    assert_eq!(splice(&read, None, &near, None, 3000, 0), Ok(3000));
    assert_eq!(splice(&read, None, &near, None, 100_000, 0), Ok(2000));
    assert_eq!(read_all(&far, 9000), [7; 5000]);
    // As many buffers as the other has room for.
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::fcntl(near.raw(), libc::F_SETPIPE_SZ, 8192) }, 8192);
    assert_eq!(write.write(&[8; 12288]), Ok(12288));
    assert_eq!(splice(&read, None, &near, None, 100_000, 0), Ok(8192));
    assert_eq!(splice(&read, None, &near, None, 100_000, SPLICE_F_NONBLOCK), Err(Errno::EAGAIN));
    assert_eq!(read_all(&read, 9000), [8; 4096]);
}

fn offsets() {
    let (read, write) = pipe(0);
    let file = file_with(b"0123456789");
    let mut at = 3;
    assert_eq!(splice(&file, Some(&mut at), &write, None, 4, 0), Ok(4));
    assert_eq!((at, position(&file)), (7, 0));
    let mut to = 1;
    let copy = file_with(b"0123456789");
    assert_eq!(splice(&read, None, &copy, Some(&mut to), 4, 0), Ok(4));
    assert_eq!((to, position(&copy)), (5, 0));
    let mut text = [0; 10];
    assert_eq!(copy.read_at(&mut text, 0), Ok(10));
    assert_eq!(&text, b"0345656789");
}

fn tee_leaves_the_data() {
    let (read, write) = pipe(0);
    let (far, near) = pipe(0);
    assert_eq!(write.write(b"twice"), Ok(5));
    assert_eq!(tee(&read, &near, 100, 0), Ok(5));
    assert_eq!(tee(&read, &near, 2, 0), Ok(2));
    assert_eq!(read_all(&read, 10), b"twice");
    assert_eq!(read_all(&far, 10), b"twicetw");
    assert_eq!(tee(&read, &near, 5, SPLICE_F_NONBLOCK), Err(Errno::EAGAIN));
    drop(write);
    assert_eq!(tee(&read, &near, 5, 0), Ok(0));
}

fn vectors() {
    let (read, write) = pipe(0);
    let (mut first, mut second) = (*b"spl", *b"iced");
    let piece = |bytes: &mut [u8]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let vectors = [piece(&mut first), piece(&mut second)];
    assert_eq!(vmsplice(&write, &vectors, 0), Ok(7));
    assert_eq!(read_all(&read, 10), b"spliced");
    assert_eq!(vmsplice(&write, &[], 0), Ok(0));
    // More than the pipe holds: what it holds.
    // (In whole pages, which Linux counts.)
    let large = Map::new(100 * 4096, RW, PRIVATE | ANON, -1, 0).unwrap();
    large.set(65535, 5);
    let whole = libc::iovec { iov_base: large.address as *mut libc::c_void, iov_len: 100 * 4096 };
    assert_eq!(vmsplice(&write, &[whole], 0), Ok(65536));
    // Out of the pipe, too.
    let (mut one, mut two) = ([0u8; 3], [0u8; 70_000]);
    assert_eq!(vmsplice(&read, &[piece(&mut one), piece(&mut two)], 0), Ok(65536));
    assert_eq!((one, two[65531], two[65532], two[65533]), ([0; 3], 0, 5, 0));
    assert_eq!(vmsplice(&read, &[piece(&mut one)], SPLICE_F_NONBLOCK), Err(Errno::EAGAIN));
}

fn errors() {
    let mut rows = Rows::default();
    let (read, write) = pipe(0);
    let (far, near) = pipe(0);
    let file = file_with(b"text");
    let event = Fd::own(call(libc::SYS_eventfd2, [1, 0, 0, 0, 0, 0]).unwrap());
    let append = Fd::open("/tmp/splice-append", libc::O_CREAT | libc::O_RDWR | libc::O_APPEND).unwrap();
    let read_only = Fd::open("/tmp/splice-append", libc::O_RDONLY).unwrap();
    let directory = Fd::open("/tmp", libc::O_RDONLY).unwrap();
    assert_eq!(write.write(b"some"), Ok(4));
    let mut at = 0;
    let mut below = -1;
    row!(rows, OK, splice(&file, None, &file, None, 0, 99));
    row!(rows, EINVAL, splice(&file, None, &write, None, 1, 16));
    row!(rows, EINVAL, splice(&file, None, &file, None, 1, 0));
    row!(rows, EINVAL, splice(&read, None, &write, None, 1, 0));
    row!(rows, EBADF, splice(&write, None, &near, None, 1, 0));
    row!(rows, EBADF, splice(&read, None, &far, None, 1, 0));
    row!(rows, EBADF, splice(&read, None, &read_only, None, 1, 0));
    row!(rows, ESPIPE, splice(&read, Some(&mut at), &file, None, 1, 0));
    row!(rows, ESPIPE, splice(&file, None, &write, Some(&mut at), 1, 0));
    row!(rows, EINVAL, splice(&read, None, &append, None, 1, 0));
    row!(rows, EINVAL, splice(&read, None, &event, None, 1, 0));
    row!(rows, EINVAL, splice(&directory, None, &near, None, 1, 0));
    row!(rows, EINVAL, splice(&file, Some(&mut below), &near, None, 1, 0));
    row!(rows, EBADF, call(SYS_splice, [NONE, 0, near.raw() as usize, 0, 1, 0]));
    row!(rows, EBADF, call(SYS_splice, [file.raw() as usize, 0, NONE, 0, 1, 0]));
    row!(rows, EFAULT, call(SYS_splice, [file.raw() as usize, 8, near.raw() as usize, 0, 1, 0]));
    row!(rows, EINVAL, tee(&read, &write, 1, 0));
    row!(rows, EINVAL, tee(&file, &near, 1, 0));
    row!(rows, EINVAL, tee(&read, &file, 1, 0));
    row!(rows, EINVAL, tee(&read, &near, 1, 16));
    row!(rows, EBADF, tee(&write, &near, 1, 0));
    row!(rows, OK, tee(&read, &near, 0, 0));
    let vector = libc::iovec { iov_base: 8 as *mut libc::c_void, iov_len: 8 };
    row!(rows, EFAULT, vmsplice(&write, &[vector], 0));
    row!(rows, EBADF, vmsplice(&file, &[vector], 0));
    row!(rows, EINVAL, vmsplice(&write, &[vector], 16));
    row!(
        rows,
        EINVAL,
        call(SYS_vmsplice, [write.raw() as usize, (&raw const vector) as usize, 1025, 0, 0, 0])
    );
    row!(rows, EBADF, call(SYS_vmsplice, [NONE, (&raw const vector) as usize, 1, 0, 0, 0]));
    std::fs::remove_file("/tmp/splice-append").unwrap();
    rows.finish();
}

fn nonblocking() {
    let mut rows = Rows::default();
    let (read, write) = pipe(0);
    let file = file_with(&[1; 70_000]);
    row!(rows, EAGAIN, splice(&read, None, &file, None, 1, SPLICE_F_NONBLOCK));
    assert_eq!(splice(&file, None, &write, None, 70_000, 0), Ok(65536));
    row!(rows, EAGAIN, splice(&file, None, &write, None, 1, SPLICE_F_NONBLOCK));
    let (empty, _writer) = pipe(libc::O_NONBLOCK);
    row!(rows, EAGAIN, splice(&empty, None, &file, None, 1, 0));
    rows.finish();
}

fn waits_for_data() {
    let (read, write) = pipe(0);
    let file = Fd::temporary();
    let waiter = fork(|| assert_eq!(splice(&read, None, &file, None, 10, 0), Ok(4)));
    procfs::wait_for_sleep(waiter.pid);
    assert_eq!(write.write(b"data"), Ok(4));
    waiter.ok();
    let waiter = fork(|| {
        signals::catch(libc::SIGUSR1);
        assert_eq!(splice(&read, None, &file, None, 10, 0), Err(Errno::EINTR));
    });
    procfs::wait_for_sleep(waiter.pid);
    waiter.kill(libc::SIGUSR1);
    waiter.ok();
}

fn waits_for_room() {
    let (read, write) = pipe(0);
    let file = file_with(&[3; 70_000]);
    assert_eq!(splice(&file, None, &write, None, 70_000, 0), Ok(65536));
    let waiter = fork(|| assert_eq!(splice(&file, None, &write, None, 4464, 0), Ok(4096)));
    procfs::wait_for_sleep(waiter.pid);
    assert_eq!(read_all(&read, 4096).len(), 4096);
    waiter.ok();
    assert_eq!(read_all(&read, 70_000).len(), 65536);
}

fn no_reader() {
    let (read, write) = pipe(0);
    let file = file_with(b"text");
    drop(read);
    // SAFETY: takes integers.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    assert_eq!(splice(&file, None, &write, None, 4, 0), Err(Errno::EPIPE));
    // A write that fails takes nothing out of the pipe.
    let (near_read, near_write) = pipe(0);
    let (read, write) = pipe(0);
    drop(near_read);
    assert_eq!(write.write(b"kept"), Ok(4));
    assert_eq!(splice(&read, None, &near_write, None, 4, 0), Err(Errno::EPIPE));
    assert_eq!(read_all(&read, 10), b"kept");
}

fn sockets() {
    let mut pair = [0i32; 2];
    // SAFETY: two integers, which live through the call.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) }, 0);
    let [one, other] = pair.map(|fd| Fd::own(fd as usize));
    let (read, write) = pipe(0);
    assert_eq!(write.write(b"by socket"), Ok(9));
    assert_eq!(splice(&read, None, &one, None, 100, 0), Ok(9));
    assert_eq!(splice(&other, None, &write, None, 100, 0), Ok(9));
    assert_eq!(read_all(&read, 100), b"by socket");
}

fn devices() {
    let (read, write) = pipe(0);
    let zero = Fd::open("/dev/zero", libc::O_RDONLY).unwrap();
    let null = Fd::open("/dev/null", libc::O_WRONLY).unwrap();
    assert_eq!(splice(&zero, None, &write, None, 10, 0), Ok(10));
    assert_eq!(read_all(&read, 4), [0; 4]);
    assert_eq!(splice(&read, None, &null, None, 100, 0), Ok(6));
}

fn a_whole_file() {
    // From file to file through a pipe, two processes at its ends.
    let text: Vec<u8> = (0..300_000u32).map(|index| (index / 7) as u8).collect();
    let (from, to) = (file_with(&text), Fd::temporary());
    let (read, write) = pipe(0);
    let feeder = fork(|| while splice(&from, None, &write, None, 50_000, 0).unwrap() > 0 {});
    drop(write);
    let mut total = 0;
    loop {
        match splice(&read, None, &to, None, 30_000, 0).unwrap() {
            0 => break,
            moved => total += moved,
        }
    }
    feeder.ok();
    assert_eq!(total, text.len());
    let mut copy = vec![0; text.len()];
    assert_eq!(to.read_at(&mut copy, 0), Ok(text.len()));
    assert!(copy == text, "the copy differs");
}

/// A user with many buffers gets small pipes, and none of his grows: fs.pipe-user-pages-soft.
fn pages_of_a_user() {
    // SAFETY: takes integers.
    let set = |fd: &Fd, bytes: i32| check(unsafe { libc::fcntl(fd.raw(), libc::F_SETPIPE_SZ, bytes) });
    // SAFETY: takes integers.
    let size = |fd: &Fd| check(unsafe { libc::fcntl(fd.raw(), libc::F_GETPIPE_SZ) });
    assert_eq!(procfs::number("/proc/sys/fs/pipe-user-pages-soft"), 16_384);
    assert_eq!(procfs::number("/proc/sys/fs/pipe-user-pages-hard"), 0);
    in_child(|| {
        place::become_user(4711, 4711);
        let mut pipes = Vec::new();
        let refused = loop {
            assert!(pipes.len() < 100);
            let (read, write) = pipe(0);
            let grown = set(&read, 1 << 20);
            pipes.push((read, write));
            if grown != Ok(1 << 20) {
                break grown;
            }
        };
        // 64 of 256 pages, and one more of two.
        assert_eq!((refused, pipes.len()), (Err(Errno::EPERM), 65));
        let (read, write) = pipes.pop().unwrap();
        assert_eq!(size(&read), Ok(8192));
        assert_eq!(write.write(&[0; 8192]), Ok(8192));
        // One that gets smaller makes room.
        assert_eq!(set(&pipes[0].0, 4096), Ok(4096));
        assert_eq!(set(&read, 65_536), Ok(65_536));
        assert_eq!(set(&pipes[0].0, 1 << 20), Err(Errno::EPERM));
    });
}
