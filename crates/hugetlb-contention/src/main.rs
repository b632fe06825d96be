//! Prints the counts: one line for each protocol, operation and number of CPUs, its fields separated by bars.

use std::process::ExitCode;

use hugetlb_contention::scene::{self, Operation, PROTOCOLS};
use hugetlb_contention::{COUNTS, heap};

#[cfg(roundtable_counted)]
#[global_allocator]
static HEAP: heap::Heap = heap::Heap::new();

fn main() -> ExitCode {
    if !COUNTS {
        eprintln!(
            "hugetlb-contention: this build counts nothing; `cargo xtask bench --contention` makes one that does"
        );
        return ExitCode::FAILURE;
    }
    let explain = std::env::args().any(|word| word == "--lines");
    for protocol in PROTOCOLS {
        for operation in Operation::ALL {
            let steps =
                std::iter::successors(Some(1), |cpus| Some(cpus * 2)).take_while(|cpus| *cpus <= heap::CPUS);
            for cpus in steps {
                let explain = explain && cpus == heap::CPUS;
                let cost = scene::count(protocol, operation, cpus, explain);
                let (name, operation) = (protocol.name(), operation.name());
                let (hot, moves, most, interrupts) = (cost.hot, cost.moves, cost.most, cost.interrupts);
                println!("contention {name}|{operation}|{cpus}|{hot}|{moves:.3}|{most:.3}|{interrupts:.3}");
                for (moved, functions) in cost.lines {
                    println!("line {moved} {}", functions.into_iter().collect::<Vec<_>>().join("; "));
                }
            }
        }
    }
    ExitCode::SUCCESS
}
