//! Many processes at once, and that nothing of them is left.

use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::Map;
use roundtable_programs::shared::{Shared, wait};
use roundtable_programs::{child, sys, tests};

tests! { many_at_once: 100, many_in_turn: 100, many_threads: 60, generations: 60 }

fn hold(count: u32) {
    let shared = Shared::new();
    let mut pids = Vec::with_capacity(count as usize);
    for _ in 0..count {
        // SAFETY: this process has one thread; the child makes system calls only.
        match sys::check(unsafe { libc::fork() }).expect("fork") {
            0 => {
                shared.add(0);
                while shared.get(16) == 0 {
                    wait(shared.word(16), 0, None);
                }
                // SAFETY: ends the process.
                unsafe { libc::_exit(0) }
            }
            pid => pids.push(pid as i32),
        }
    }
    shared.wait(0, count);
    shared.set(16, 1);
    for pid in pids {
        assert_eq!(child::waitpid(pid, 0).unwrap().1, child::End::Code(0));
    }
}

fn many_at_once() {
    hold(50);
    let before = Baseline::take();
    hold(1000);
    before.check();
}

fn many_in_turn() {
    (0..50).for_each(|_| child::in_child(|| {}));
    let before = Baseline::take();
    for _ in 0..1000 {
        child::in_child(|| Map::anonymous(64 << 10).set(4096, 1));
    }
    before.check();
}

fn many_threads() {
    let before = Baseline::take();
    child::in_child(|| {
        for _ in 0..5 {
            let threads: Vec<_> = (0..100).map(|number| std::thread::spawn(move || number * 2)).collect();
            let sum: i32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert_eq!(sum, 9900);
        }
    });
    before.check();
}

fn generations() {
    fn descend(depth: u32) {
        let map = Map::anonymous(4 * 4096);
        map.set(0, depth as u8);
        if depth > 0 {
            child::in_child(|| descend(depth - 1));
        }
        assert_eq!(map.get(0), depth as u8);
    }
    let before = Baseline::take();
    descend(60);
    before.check();
}
