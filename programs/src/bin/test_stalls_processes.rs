//! As `test_stalls`, of what many threads, processes and arguments of programs make last.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use roundtable_programs::child::{self, Child, End};
use roundtable_programs::held::{compare, compare_within};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, R, RW, mprotect};
use roundtable_programs::sys::{PAGE, c_string, check};
use roundtable_programs::{Errno, tests};

tests! { tracer_of_many_ends: 200, short_arguments: 200, readers_beside_a_writer: 200 }

/// A thread ends that has traced many.
fn tracer_of_many_ends() {
    let idlers = RefCell::new(Vec::new());
    let make = |count: usize| {
        let idle = || {
            loop {
                std::thread::park();
            }
        };
        *idlers.borrow_mut() = (0..count).map(|_| child::fork(idle)).collect();
    };
    compare(16, 1_000, make, |_| {
        child::in_child(|| {
            for Child { pid, .. } in idlers.borrow().iter() {
                for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
                    call(libc::SYS_ptrace, [request as usize, *pid as usize, 0, 0, 0, 0]).expect("ptrace");
                }
                assert_eq!(child::waitpid(*pid, libc::__WALL), Ok((*pid, End::Stopped(libc::SIGTRAP))));
            }
        });
        idlers.take().into_iter().for_each(Child::end);
    });
}

/// A program that ends at once.
fn program_that_ends(path: &str) {
    /// exit(0).
    const CODE: [u8; 9] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let word = |bytes: &mut Vec<u8>, word: u64, length: usize| bytes.extend(&word.to_le_bytes()[..length]);
    for (value, length) in
        [(2, 2), (62, 2), (1, 4), (BASE + HEADERS, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2)]
    {
        word(&mut bytes, value, length);
    }
    bytes.resize(64, 0);
    let length = HEADERS + CODE.len() as u64;
    for (value, size) in
        [(1, 4), (5, 4), (0, 8), (BASE, 8), (BASE, 8), (length, 8), (length, 8), (PAGE as u64, 8)]
    {
        word(&mut bytes, value, size);
    }
    bytes.extend(CODE);
    std::fs::write(path, bytes).expect("a program");
    // SAFETY: the text lives through the call.
    check(unsafe { libc::chmod(c_string(path).as_ptr(), 0o755) }).expect("chmod");
}

/// The list of so many strings is one allocation of 14 MB, which comes and goes page by page.
const VECTOR: u64 = 2_000_000;

/// execve(2) with as many arguments as can be, all of them empty; by a script as well.
fn short_arguments() {
    const PROGRAM: &str = "/tmp/ends";
    const SCRIPT: &str = "/tmp/ends-script";
    let make = |_| {
        let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the limit lives through the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_STACK, &none) }).expect("setrlimit");
        program_that_ends(PROGRAM);
        std::fs::write(SCRIPT, format!("#!{PROGRAM} one\n")).expect("a script");
        // SAFETY: the text lives through the call.
        check(unsafe { libc::chmod(c_string(SCRIPT).as_ptr(), 0o755) }).expect("chmod");
    };
    compare_within(VECTOR, 100, 600_000, make, |count| {
        let mut arguments = vec![c"".as_ptr(); count];
        arguments.push(std::ptr::null());
        for path in [PROGRAM, SCRIPT] {
            let path = c_string(path);
            child::in_child(|| {
                // SAFETY: all live until the new program has them.
                unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
                panic!("execv: {}", Errno::last());
            });
        }
    });
}

/// Threads that look at their memory while one changes it: they queue behind it, and have it all at once.
fn readers_beside_a_writer() {
    const CHANGED: usize = 64 << 20;
    static STOP: AtomicBool = AtomicBool::new(false);
    let map = RefCell::new(None);
    let make = |count: usize| {
        let changed = Map::new(CHANGED, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("memory");
        (0..CHANGED).step_by(PAGE).for_each(|at| changed.set(at, 1));
        let at = changed.address;
        for _ in 0..count {
            let look = move || {
                let mut seen = [0u8];
                while !STOP.load(Ordering::Relaxed) {
                    let arguments = [at, PAGE, seen.as_mut_ptr() as usize, 0, 0, 0];
                    assert_eq!(call(libc::SYS_mincore, arguments), Ok(0));
                    std::thread::yield_now();
                }
            };
            std::thread::Builder::new().stack_size(16 << 10).spawn(look).expect("a thread");
        }
        *map.borrow_mut() = Some(changed);
    };
    compare(10, 1_000, make, |_| {
        let map = map.borrow();
        let map = map.as_ref().expect("made");
        for _ in 0..100 {
            mprotect(map.address, CHANGED, R).expect("mprotect");
            mprotect(map.address, CHANGED, RW).expect("mprotect");
        }
        STOP.store(true, Ordering::Relaxed);
    });
}
