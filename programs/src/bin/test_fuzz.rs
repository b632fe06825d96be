//! The fuzzer in its short form: rounds of fixed seeds, and that it notices what is missing after one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use roundtable_programs::huge::HUGE;
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW};
use roundtable_programs::sys::is_linux;
use roundtable_programs::tests;

tests! { fixed_rounds: 110, one_at_a_time: 110, a_missing_page_is_noticed: 60 }

const PROGRAM: &str = "/bin/fuzz";

fn fuzz(words: &str) {
    let before = Baseline::take();
    let output = Command::new(PROGRAM).args(words.split(' ')).output().expect(PROGRAM);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}", output.status);
    assert!(text.contains("fuzz: nothing found"), "{text}");
    // Between rounds the fuzzer itself compares counters. Linux keeps more of what it has freed, the longer it runs.
    if !is_linux() {
        before.check();
    }
}

fn fixed_rounds() {
    fuzz("--seed 1 --rounds 4 --calls 150");
}

fn one_at_a_time() {
    fuzz("--seed 100 --rounds 4 --calls 150 --single");
}

/// A huge page that is taken while a round is on, and kept, is told as a leak.
fn a_missing_page_is_noticed() {
    let mut fuzz = Command::new(PROGRAM)
        .args(["--seed", "1", "--rounds", "1", "--calls", "50"])
        .stdout(Stdio::piped())
        .spawn()
        .expect(PROGRAM);
    let mut lines = BufReader::new(fuzz.stdout.take().expect("piped above")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("fuzz: round 0")), "no round began");
    let page = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).expect("a huge page");
    page.set(0, 1);
    let finding = lines.find(|line| line.contains("FINDING")).expect("the page was not missed");
    assert!(finding.contains("leak: HugePages_Free was "), "{finding}");
    assert_eq!(fuzz.wait().expect("wait").code(), Some(1));
}
