//! What a checked kernel knows of its locks: how long each class was held, and how long threads stayed in the kernel without a chance for
//! others. The figures are counts of the time-stamp counter, which counts instructions where the machine does (`--icount`).

use std::fs;

use roundtable_programs::{child, harness, tests};

tests! { locks_are_counted, stretches_are_counted }

const LOCKS: &str = "/sys/kernel/debug/lock_stat";
const STRETCHES: &str = "/sys/kernel/debug/stretch_stat";

/// The lines of such a file, without the first: each begins with numbers.
fn lines(path: &str) -> Vec<Vec<String>> {
    let Ok(text) = fs::read_to_string(path) else { harness::skip("this kernel does not count its locks") };
    text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_string).collect()).collect()
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

/// Something of what a day brings.
fn work() {
    for _ in 0..20 {
        child::in_child(|| {
            fs::write("/tmp/locks", [7u8; 10_000]).expect("a file");
            fs::remove_file("/tmp/locks").expect("it is there");
        });
    }
}

fn locks_are_counted() {
    lines(LOCKS);
    fs::write(LOCKS, "0").expect("begin anew");
    work();
    let mut found = lines(LOCKS);
    found.sort_by_key(|words| std::cmp::Reverse(number(&words[1])));
    for words in found.iter().take(12) {
        println!("# held for {} at most, taken {} times: {}, at {}", words[1], words[0], words[3], words[4]);
    }
    let of = |place: &str| {
        found.iter().find(|words| words[3].contains(place)).map_or(0, |words| number(&words[0]))
    };
    // Each child is one of the tree, and its switches go through a run queue.
    assert!(of("process/tree.rs") >= 20, "{found:?}");
    assert!(of("sched/queue.rs") >= 20, "{found:?}");
    for words in found.iter().filter(|words| words[2] != "0") {
        println!("# memory is allocated {} times under {}", words[2], words[3]);
    }
}

fn stretches_are_counted() {
    lines(STRETCHES);
    fs::write(STRETCHES, "0").expect("begin anew");
    work();
    let mut found = lines(STRETCHES);
    found.sort_by_key(|words| std::cmp::Reverse(number(&words[0])));
    for words in found.iter().take(12) {
        println!("# {} without a chance in {}", words[0], words[1]);
    }
    assert!(
        found.iter().any(|words| words[1] == "clone" || words[1] == "fork" || words[1] == "clone3"),
        "{found:?}"
    );
}
