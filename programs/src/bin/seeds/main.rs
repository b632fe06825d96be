//! Sequences of operations on huge pages that are drawn from a seed, and what came of each: the same on every kernel that does as Linux does.
//!
//! `seeds FIRST COUNT STEPS` prints a line for each seed: its number, a hash of all that was seen, and how many promises are left behind.
//! `seeds trace STEPS SEED...` prints all that was seen. With `even` before that no mount promises its files pages (`min_size=`), and all
//! else is the same. `cargo xtask compare` runs it on both kernels.

mod actor;
mod step;
mod world;

use roundtable_programs::child;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut words = arguments.iter().map(String::as_str).peekable();
    let even = words.next_if_eq(&"even").is_some();
    let trace = words.next_if_eq(&"trace").is_some();
    let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
    let (steps, seeds) = match (trace, numbers.as_deref()) {
        (false, Some(&[first, count, steps])) => (steps, (first..first + count).collect()),
        (true, Some([steps, seeds @ ..])) => (*steps, seeds.to_vec()),
        _ => {
            eprintln!("usage: seeds [even] FIRST COUNT STEPS, or seeds [even] trace STEPS SEED...");
            std::process::exit(2);
        }
    };
    // What the firmware has left unfinished ends here.
    println!();
    for seed in seeds {
        // Each in a process of its own: nothing of one is left for the next.
        child::in_child(|| world::run(seed, steps, trace, even));
    }
}
