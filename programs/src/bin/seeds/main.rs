//! Sequences of operations on huge pages that are drawn from a seed, and what came of each: the same on every kernel that does as Linux does.
//!
//! `seeds FIRST COUNT STEPS` prints a line for each seed: its number, a hash of all that was seen, and how many promises are left behind.
//! `seeds trace STEPS SEED...` prints all that was seen. `cargo xtask compare` runs it on both kernels.

mod actor;
mod step;
mod world;

use roundtable_programs::child;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let trace = arguments.first().is_some_and(|word| word == "trace");
    let words = arguments.iter().skip(usize::from(trace));
    let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
    let (steps, seeds) = match (trace, numbers.as_deref()) {
        (false, Some(&[first, count, steps])) => (steps, (first..first + count).collect()),
        (true, Some([steps, seeds @ ..])) => (*steps, seeds.to_vec()),
        _ => {
            eprintln!("usage: seeds FIRST COUNT STEPS, or seeds trace STEPS SEED...");
            std::process::exit(2);
        }
    };
    // What the firmware has left unfinished ends here.
    println!();
    for seed in seeds {
        // Each in a process of its own: nothing of one is left for the next.
        child::in_child(|| world::run(seed, steps, trace));
    }
}
