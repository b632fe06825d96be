//! Sleeping and waking, again and again: a wake that is lost shows as a subtest that never ends. The tests run once more in a kernel
//! that delays its CPUs at the points at which one overtakes another (`perturb=`).

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use roundtable_programs::rng::Rng;
use roundtable_programs::{Errno, child, sys, tests, timers};

tests! { read_of_a_closed_descriptor: 120, pipes_there_and_back: 120, futexes_there_and_back: 120, sleeps_of_every_length: 120,
waits_with_deadlines: 120, threads_that_end: 120, processes_that_end: 120, readers_of_one_pipe: 120 }

/// A pipe's two descriptors.
fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors.
    sys::check(unsafe { libc::pipe(ends.as_mut_ptr()) }).expect("pipe");
    (ends[0], ends[1])
}

fn read_byte(fd: i32) -> u8 {
    let mut byte = 0u8;
    // SAFETY: the buffer has one byte.
    let count = unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
    assert_eq!(count, 1, "{}", std::io::Error::last_os_error());
    byte
}

fn write_byte(fd: i32, byte: u8) {
    // SAFETY: the buffer has one byte.
    let count = unsafe { libc::write(fd, (&raw const byte).cast(), 1) };
    assert_eq!(count, 1, "{}", std::io::Error::last_os_error());
}

fn close(fd: i32) {
    // SAFETY: takes an integer.
    sys::check(unsafe { libc::close(fd) }).expect("close");
}

/// As PipeTest.ReadFromClosedFd of gVisor does: a thread waits in read(2), another one closes that descriptor and then writes to the other
/// end.
fn read_of_a_closed_descriptor() {
    for milliseconds in [500, 0, 1, 2, 5, 10, 20, 50, 3, 7, 100, 1, 4] {
        let (read, write) = pipe();
        let told = Arc::new((Mutex::new(false), Condvar::new()));
        let reader = {
            let told = told.clone();
            thread::spawn(move || {
                *told.0.lock().unwrap() = true;
                told.1.notify_all();
                // The descriptor may be closed before a busy machine gets here: then there is nothing to wait for.
                let mut byte = 0u8;
                // SAFETY: the buffer has one byte.
                let count = unsafe { libc::read(read, (&raw mut byte).cast(), 1) };
                assert!(count == 1 && byte == 7 || sys::check(count as i64).err() == Some(Errno::EBADF));
                count
            })
        };
        drop(told.1.wait_while(told.0.lock().unwrap(), |told| !*told).unwrap());
        thread::sleep(Duration::from_millis(milliseconds));
        close(read);
        let byte = 7u8;
        // SAFETY: the buffer has one byte; std ignores SIGPIPE.
        let written = unsafe { libc::write(write, (&raw const byte).cast(), 1) };
        let count = reader.join().expect("the reader");
        // A reader that was waiting gets the byte.
        assert!(count != 1 || written == 1);
        close(write);
    }
}

fn pipes_there_and_back() {
    let (there, back) = (pipe(), pipe());
    let echo = thread::spawn(move || {
        loop {
            let byte = read_byte(there.0);
            write_byte(back.1, byte);
            if byte == 255 {
                return;
            }
        }
    });
    for round in 0..2000 {
        write_byte(there.1, (round % 200) as u8);
        assert_eq!(read_byte(back.0), (round % 200) as u8);
    }
    write_byte(there.1, 255);
    assert_eq!(read_byte(back.0), 255);
    echo.join().expect("the echo");
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    // SAFETY: the word lives through the call; no time is given.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation | libc::FUTEX_PRIVATE_FLAG, value, 0) };
}

/// Waits until the word has the value.
fn wait_for(word: &AtomicU32, value: u32) {
    loop {
        let seen = word.load(SeqCst);
        if seen == value {
            return;
        }
        futex(word, libc::FUTEX_WAIT, seen);
    }
}

fn futexes_there_and_back() {
    let turn = Arc::new(AtomicU32::new(0));
    let players: Vec<_> = (0..3)
        .map(|me| {
            let turn = turn.clone();
            thread::spawn(move || {
                for round in 0..700 {
                    wait_for(&turn, round * 3 + me);
                    turn.store(round * 3 + me + 1, SeqCst);
                    futex(&turn, libc::FUTEX_WAKE, i32::MAX as u32);
                }
            })
        })
        .collect();
    players.into_iter().for_each(|player| player.join().expect("a player"));
}

fn sleeps_of_every_length() {
    let sleepers: Vec<_> = (0..4)
        .map(|number| {
            thread::spawn(move || {
                let mut rng = Rng::new(number);
                for _ in 0..150 {
                    let until = timers::now() + rng.draw() % 3_000_000;
                    timers::sleep_until(until);
                    assert!(timers::now() >= until, "early");
                }
            })
        })
        .collect();
    sleepers.into_iter().for_each(|sleeper| sleeper.join().expect("a sleeper"));
}

fn waits_with_deadlines() {
    let (send, receive) = channel::<u32>();
    let sender = thread::spawn(move || {
        let mut rng = Rng::new(9);
        for number in 0..300 {
            thread::sleep(Duration::from_micros(rng.draw() % 2000));
            send.send(number).expect("the receiver waits");
        }
    });
    let mut rng = Rng::new(10);
    let mut wanted = 0;
    while wanted < 300 {
        // Deadlines as short as the pauses between what is sent.
        if let Ok(number) = receive.recv_timeout(Duration::from_micros(rng.draw() % 2000)) {
            assert_eq!(number, wanted);
            wanted += 1;
        }
    }
    sender.join().expect("the sender");
}

fn threads_that_end() {
    for _ in 0..300 {
        let threads: Vec<_> = (0..3).map(|_| thread::spawn(sys::pid)).collect();
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().expect("a thread"), sys::pid()));
    }
}

fn processes_that_end() {
    for _ in 0..100 {
        let children: Vec<_> = (0..3).map(|_| child::fork(|| {})).collect();
        children.into_iter().for_each(child::Child::ok);
    }
}

fn readers_of_one_pipe() {
    const READERS: usize = 4;
    const ROUNDS: usize = 300;
    let (read, write) = pipe();
    let barrier = Arc::new(Barrier::new(READERS + 1));
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let barrier = barrier.clone();
            thread::spawn(move || {
                for _ in 0..ROUNDS {
                    read_byte(read);
                    barrier.wait();
                }
            })
        })
        .collect();
    for _ in 0..ROUNDS {
        (0..READERS).for_each(|_| write_byte(write, 1));
        barrier.wait();
    }
    readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
}
