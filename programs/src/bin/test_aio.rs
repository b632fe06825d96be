//! io_setup(2) and what belongs to it: operations that are submitted, and their events.

use libc::{SYS_io_cancel, SYS_io_destroy, SYS_io_getevents, SYS_io_setup, SYS_io_submit};
use roundtable_programs::child::fork;
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::{Errno, row, tests};

tests! { operations, waiting, counters, errors }

/// `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Operation {
    data: u64,
    key: u32,
    rw_flags: u32,
    code: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const FSYNC: u16 = 2;

fn operation(code: u16, fd: &Fd, buffer: &[u8], offset: i64) -> Operation {
    let (buffer, bytes) = (buffer.as_ptr() as u64, buffer.len() as u64);
    Operation { data: 7, code, fd: fd.raw() as u32, buffer, bytes, offset, ..Operation::default() }
}

fn setup(count: usize) -> usize {
    let mut context = 0usize;
    call(SYS_io_setup, [count, &raw mut context as usize, 0, 0, 0, 0]).expect("io_setup");
    context
}

fn submit(context: usize, operations: &[Operation]) -> Answer {
    let pointers: Vec<_> = operations.iter().map(std::ptr::from_ref).collect();
    call(SYS_io_submit, [context, pointers.len(), pointers.as_ptr() as usize, 0, 0, 0])
}

/// The events' `data` and results; waits for `least`, or as many nanoseconds.
fn events(context: usize, least: usize, most: usize, wait: Option<i64>) -> Result<Vec<(u64, i64)>, Errno> {
    let mut events = vec![[0u64; 4]; most];
    let wait = wait.map(|tv_nsec| libc::timespec { tv_sec: 0, tv_nsec });
    let wait = wait.as_ref().map_or(0, |wait| std::ptr::from_ref(wait) as usize);
    let count = call(SYS_io_getevents, [context, least, most, events.as_mut_ptr() as usize, wait, 0])?;
    Ok(events[..count].iter().map(|event| (event[0], event[2] as i64)).collect())
}

fn memory_file() -> Fd {
    // SAFETY: the name lives through the call.
    Fd::own(unsafe { libc::memfd_create(c"aio".as_ptr(), 0) } as usize)
}

fn operations() {
    let file = memory_file();
    let context = setup(4);
    let (text, place) = (*b"contexts", [0u8; 8]);
    let written = submit(context, &[operation(WRITE, &file, &text, 3)]);
    assert_eq!((written, events(context, 1, 4, None)), (Ok(1), Ok(vec![(7, 8)])));
    let read = submit(context, &[operation(READ, &file, &place, 3), operation(READ, &file, &place[..0], 99)]);
    assert_eq!((read, events(context, 2, 4, None)), (Ok(2), Ok(vec![(7, 8), (7, 0)])));
    // SAFETY: the kernel has written to it.
    assert_eq!(unsafe { std::ptr::from_ref(&place).read_volatile() }, text);
    // What is wrong with an operation once it runs is told by its event.
    let mut lost = operation(READ, &file, &place, 0);
    lost.buffer = 8;
    assert_eq!(submit(context, &[lost]), Ok(1));
    assert_eq!(events(context, 1, 1, None), Ok(vec![(7, -i64::from(libc::EFAULT))]));
    // A pipe has no places.
    let (read, write) = pipe(0);
    assert_eq!(submit(context, &[operation(WRITE, &write, &text, 0)]), Ok(1));
    assert_eq!(submit(context, &[operation(READ, &read, &place, 0)]), Ok(1));
    assert_eq!(events(context, 2, 9, None), Ok(vec![(7, 8), (7, 8)]));
    // The first that is wrong ends the submission.
    let bad = operation(99, &file, &text, 0);
    assert_eq!(submit(context, &[operation(WRITE, &file, &text, 0), bad]), Ok(1));
    assert_eq!(submit(context, &[bad]), Err(Errno::EINVAL));
    assert_eq!(call(SYS_io_destroy, [context, 0, 0, 0, 0, 0]), Ok(0));
    assert_eq!(call(SYS_io_destroy, [context, 0, 0, 0, 0, 0]), Err(Errno::EINVAL));
}

fn waiting() {
    let file = memory_file();
    let context = setup(4);
    assert_eq!(events(context, 0, 4, None), Ok(vec![]));
    assert_eq!(events(context, 1, 4, Some(0)), Ok(vec![]));
    assert_eq!(events(context, 1, 4, Some(1_000_000)), Ok(vec![]));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| events(context, 2, 4, None));
        let text = [1u8; 5];
        submit(context, &[operation(WRITE, &file, &text, 0)]).unwrap();
        submit(context, &[operation(WRITE, &file, &text[..2], 0)]).unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(vec![(7, 5), (7, 2)]));
    });
    // A child has no contexts.
    fork(move || assert_eq!(events(context, 0, 1, None), Err(Errno::EINVAL))).ok();
    // Full: nobody takes the events.
    let one = [0u8; 1];
    let full = (0..100_000).find_map(|_| submit(context, &[operation(WRITE, &file, &one, 0)]).err());
    assert_eq!(full, Some(Errno::EAGAIN));
    assert_eq!(events(context, 1, 1, None), Ok(vec![(7, 1)]));
    assert_eq!(submit(context, &[operation(WRITE, &file, &one, 0)]), Ok(1));
}

fn counters() {
    let file = memory_file();
    let context = setup(1);
    // SAFETY: takes integers.
    let counter = Fd::own(unsafe { libc::eventfd(0, 0) } as usize);
    let mut told = operation(WRITE, &file, b"text", 0);
    (told.flags, told.eventfd) = (1, counter.raw() as u32);
    assert_eq!(submit(context, &[told, told]), Ok(2));
    let mut value = [0; 8];
    assert_eq!(counter.read(&mut value), Ok(8));
    assert_eq!(u64::from_ne_bytes(value), 2);
    told.eventfd = file.raw() as u32;
    assert_eq!(submit(context, &[told]), Err(Errno::EINVAL));
}

fn errors() {
    let mut rows = Rows::default();
    let file = memory_file();
    let (read, write) = pipe(0);
    let text = *b"text";
    let mut context = 1usize;
    let at = &raw mut context as usize;
    row!(rows, EINVAL, call(SYS_io_setup, [1, at, 0, 0, 0, 0]));
    row!(rows, EFAULT, call(SYS_io_setup, [1, 8, 0, 0, 0, 0]));
    let mut none = 0usize;
    let at = &raw mut none as usize;
    row!(rows, EINVAL, call(SYS_io_setup, [0, at, 0, 0, 0, 0]));
    row!(rows, EAGAIN, call(SYS_io_setup, [1 << 20, at, 0, 0, 0, 0]));
    row!(rows, EINVAL, call(SYS_io_setup, [1 << 24, at, 0, 0, 0, 0]));
    let context = setup(2);
    row!(rows, EINVAL, submit(99, &[operation(WRITE, &file, &text, 0)]));
    row!(rows, EINVAL, call(SYS_io_submit, [context, usize::MAX, at, 0, 0, 0]));
    row!(rows, EFAULT, call(SYS_io_submit, [context, 1, 8, 0, 0, 0]));
    assert_eq!(submit(context, &[]), Ok(0));
    row!(rows, EBADF, submit(context, &[Operation { fd: 999, ..operation(WRITE, &file, &text, 0) }]));
    row!(rows, EBADF, submit(context, &[operation(WRITE, &read, &text, 0)]));
    row!(rows, EBADF, submit(context, &[operation(READ, &write, &text, 0)]));
    row!(rows, EINVAL, submit(context, &[Operation { reserved: 1, ..operation(WRITE, &file, &text, 0) }]));
    row!(rows, EINVAL, submit(context, &[operation(FSYNC, &file, &text, 0)]));
    row!(rows, EINVAL, events(99, 0, 1, None).map(|_| 0));
    row!(rows, EINVAL, events(context, 2, 1, None).map(|_| 0));
    row!(rows, EFAULT, call(SYS_io_cancel, [context, 8, 0, 0, 0, 0]));
    let cancelled = operation(WRITE, &file, &text, 0);
    row!(rows, EINVAL, call(SYS_io_cancel, [context, std::ptr::from_ref(&cancelled) as usize, at, 0, 0, 0]));
    rows.finish();
}
