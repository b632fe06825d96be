//! What the benchmark claims, in short and exact: in a machine whose clock counts instructions, a figure is the same each time.
//!
//! The program `latency` measures. With tables that belong to the file nothing may grow with the number of sharers and nobody may fault;
//! with tables that processes share among themselves a punch does grow, which shows that this measures anything.

use std::process::Command;

use guest_link::record::{AttachCase, Basic, Operation, Record};
use roundtable_programs::{sharing, tests};

tests! { costs_against_sharers: 100, faults_of_a_newcomer: 60, lengths_of_paths: 60 }

/// Most instructions that an operation may take alone, with tables of the file: what docs/benchmark.md has, and some hundredths more.
/// Who makes one longer says there why. Fork, start and exit differ by a tenth with where a program's random addresses fall in tables.
const COSTS: [(Operation, u64); 8] = [
    (Operation::Punch, 14_300),
    (Operation::Truncate, 17_200),
    (Operation::Mprotect, 3_600),
    (Operation::Attach, 5_350),
    (Operation::Detach, 5_550),
    (Operation::Fork, 45_000),
    (Operation::Start, 99_000),
    (Operation::Exit, 66_500),
];

/// The same for paths that every program takes: 873, 251 and 3,517, and a twentieth more, or a fiftieth of the signal's. So much a path moves
/// with how the compiler cuts the kernel into units, though nothing on it has changed. 60 of the private fault's are for storing to no line that other CPUs' faults
/// store to: docs/scaling.md. 100 of the signal's are for telling threads a few at a time: `signal/tell.rs`.
const LENGTHS: [(&str, u64); 3] =
    [(Operation::PrivateFault.name(), 917), (Operation::Call.name(), 263), (Basic::Signal.name(), 3_590)];

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
        Operation::Start,
        Operation::Exit,
    ] {
        let (alone, crowded) = (cost(operation, 1), cost(operation, MANY));
        println!("{operation:?}: {alone} instructions alone, {crowded} with {MANY} sharers");
        assert!(alone > 0, "the clock stands still");
        if of_the_file() {
            let most = COSTS.iter().find_map(|(of, most)| (*of == operation).then_some(*most));
            assert!(
                most.is_some_and(|most| alone <= most),
                "{operation:?} takes {alone}, and {most:?} at most"
            );
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

fn lengths_of_paths() {
    let records = measure(&["--parts", "path,basics"]);
    for (wanted, most) in LENGTHS {
        let length = records.iter().find_map(|record| match record {
            Record::Path { path, length, .. } if path == wanted => Some(*length),
            _ => None,
        });
        println!("{wanted}: {length:?} instructions, {most} at most");
        assert!(length.is_some_and(|length| 0 < length && length <= most), "{wanted}: {length:?}");
    }
}
