//! What the benchmark claims, in short and exact: in a machine whose clock counts instructions, a figure is the same each time.
//!
//! The program `latency` measures. With tables that belong to the file nothing may grow with the number of sharers and nobody may fault;
//! with tables that processes share among themselves a punch does grow, which shows that this measures anything.

use std::process::Command;

use guest_link::record::{AttachCase, Operation, Record};
use roundtable_programs::{sharing, tests};

tests! { costs_against_sharers: 100, faults_of_a_newcomer: 60 }

/// Sharers beside one.
const MANY: u32 = 128;

fn measure(arguments: &[&str]) -> Vec<Record> {
    let output = Command::new("/bin/latency").args(arguments).output().expect("/bin/latency");
    assert!(output.status.success(), "{output:?}");
    let records: Vec<Record> =
        String::from_utf8(output.stdout).expect("text").lines().filter_map(Record::parse).collect();
    let Some(Record::End { records: count }) = records.last() else { panic!("no last record: {records:?}") };
    assert_eq!(*count as usize, records.len() - 1);
    records
}

/// Whether tables belong to files; else processes share their own.
fn of_the_file() -> bool {
    match sharing::protocol().as_deref() {
        Some("file-tables") => true,
        Some("vma-lock") => false,
        other => panic!("nothing is known of {other:?}"),
    }
}

fn costs_against_sharers() {
    let sharers = format!("1,{MANY}");
    let records = measure(&["--parts", "cost", "--cost-sharers", &sharers, "--runs", "2"]);
    let cost = |of: Operation, with: u32| {
        let found = records.iter().find_map(|record| match record {
            Record::Cost { operation, sharers, least, .. } if *operation == of && *sharers == with => {
                Some(*least)
            }
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no cost of {of:?} with {with} sharers"))
    };
    for operation in [
        Operation::Punch,
        Operation::Truncate,
        Operation::Mprotect,
        Operation::Attach,
        Operation::Detach,
        Operation::Fork,
        Operation::Exit,
    ] {
        let (alone, crowded) = (cost(operation, 1), cost(operation, MANY));
        println!("{operation:?}: {alone} instructions alone, {crowded} with {MANY} sharers");
        assert!(alone > 0, "the clock stands still");
        if of_the_file() {
            assert!(crowded * 5 <= alone * 6, "{operation:?} grows from {alone} to {crowded}");
        }
    }
    if !of_the_file() {
        let (alone, crowded) = (cost(Operation::Punch, 1), cost(Operation::Punch, MANY));
        assert!(crowded > 2 * alone, "a punch does not grow: {alone}, {crowded}");
    }
}

fn faults_of_a_newcomer() {
    let records = measure(&["--parts", "attach"]);
    let faults = |of: AttachCase| {
        let found = records.iter().find_map(|record| match record {
            Record::Attach { case, faults, .. } if *case == of => Some(*faults),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("nobody attached: {of:?}"))
    };
    let seen =
        [AttachCase::Congruent, AttachCase::OtherPhase, AttachCase::Part, AttachCase::Private].map(faults);
    assert_eq!(seen, if of_the_file() { [0, 0, 0, 512] } else { [1, 512, 32, 512] });
}
