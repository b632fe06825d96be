//! What a checked kernel knows of its locks: how long each class was held, and how long threads stayed in the kernel without a chance for
//! others. The figures are counts of the time-stamp counter, which counts instructions where the machine does (`--icount`).

use std::fs;

use roundtable_programs::held::{self, Line};
use roundtable_programs::{child, harness, tests};

tests! { locks_are_counted, stretches_are_counted }

fn counted(lines: Option<Vec<Line>>) -> Vec<Line> {
    lines.unwrap_or_else(|| harness::skip("this kernel does not count its locks"))
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
    counted(held::locks());
    held::begin_anew();
    work();
    let mut found = counted(held::locks());
    found.sort_by_key(|words| std::cmp::Reverse(number(&words[1])));
    for words in found.iter().take(12) {
        println!("# held for {} at most, taken {} times: {}, at {}", words[1], words[0], words[3], words[4]);
    }
    let of = |place: &str| {
        found.iter().find(|words| words[3].contains(place)).map_or(0, |words| number(&words[0]))
    };
    // Each child is one of the tree, and its switches go through a run queue.
    assert!(of("process/tree/") >= 20, "{found:?}");
    assert!(of("sched/queue.rs") >= 20, "{found:?}");
    for words in found.iter().filter(|words| words[2] != "0") {
        println!("# memory is allocated {} times under {}", words[2], words[3]);
    }
}

fn stretches_are_counted() {
    counted(held::stretches());
    held::begin_anew();
    work();
    let mut found = counted(held::stretches());
    found.sort_by_key(|words| std::cmp::Reverse(number(&words[0])));
    for words in found.iter().take(12) {
        println!("# {} without a chance in {}", words[0], words[1]);
    }
    assert!(
        found.iter().any(|words| words[1] == "clone" || words[1] == "fork" || words[1] == "clone3"),
        "{found:?}"
    );
}
