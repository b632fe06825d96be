//! Runs every model under every protocol, the ones that must fail, and the mutants, each in a process of its own.
//!
//! A model that fails unwinds through its checker, which may abort: so this program starts itself for each. Its arguments
//! are those of every test program.

#[cfg(not(feature = "run"))]
fn main() {}

#[cfg(feature = "run")]
mod mutants;

#[cfg(feature = "run")]
fn main() {
    models::main();
}

#[cfg(feature = "run")]
mod models {
    use std::env;
    use std::process::{Command, exit};

    use hugetlb::ProtocolKind;
    use hugetlb_models::Explorer;
    use hugetlb_models::models::{MODELS, Model, PROTOCOLS, WITHOUT_GRACE};
    use libtest_mimic::{Arguments, Failed, Trial};

    use crate::mutants::{MUTANTS, Mutant};

    /// What the child is to run: the model, the protocol, the checker.
    const MODEL: &str = "HUGETLB_MODEL";
    /// What the child is to break.
    const MUTANT: &str = "HUGETLB_MUTANT";
    /// More preemptions for loom, more schedules for shuttle: how many times what a short run has.
    const EFFORT: &str = "HUGETLB_MODELS_EFFORT";

    /// Set: print the mutants and what catches them.
    const TABLE: &str = "HUGETLB_MUTANTS";

    /// Schedules of shuttle for each model and scheduler, in a short run.
    const SCHEDULES: usize = 100;

    pub(super) fn main() {
        match env::var(MODEL) {
            Ok(model) => child(&model),
            Err(_) => parent(),
        }
    }

    fn parent() {
        if env::var_os(TABLE).is_some() {
            exit(print_table());
        }
        let mut trials = Vec::new();
        for model in MODELS {
            for protocol in PROTOCOLS {
                let (model, protocol) = (model.name, protocol.name());
                trials.push(Trial::test(format!("{model}::{protocol}"), move || survives(model, protocol)));
            }
        }
        // The race, as Linux had it: both checkers must see it, and see what it is.
        let written = "behind its end|a table is retired with entries in it";
        for model in
            ["fault_against_discard", "fault_against_punch_and_exit", "fault_against_truncate_and_exit"]
        {
            for checker in ["loom", "pct"] {
                let name = format!("unfenced_is_caught::{model}::{checker}");
                trials.push(Trial::test(name, move || fails(model, "unfenced", checker, None, written)));
            }
        }
        for protocol in PROTOCOLS {
            let (model, protocol) = (WITHOUT_GRACE.name, protocol.name());
            let name = format!("{model}_is_caught::{protocol}");
            trials.push(Trial::test(name, move || fails(model, protocol, "loom", None, "a walker finds")));
        }
        for Mutant { name, model, protocol, checker, message } in MUTANTS {
            let trial = Trial::test(format!("mutant::{name}::caught_by::{model}::{protocol}"), move || {
                fails(model, protocol, checker, Some(name), message)
            });
            trials.push(trial.with_kind(*checker));
        }
        trials.push(Trial::test("every_mutant_has_its_model", || {
            for (name, dropped) in hugetlb::mutant::all() {
                if !MUTANTS.iter().any(|mutant| mutant.name == name) {
                    return Err(format!("no model catches {name}: {dropped}").into());
                }
            }
            Ok(())
        }));
        libtest_mimic::run(&Arguments::from_args(), trials).exit();
    }

    /// Breaks the library in each way and prints who catches it and with what words; returns how many nobody does.
    fn print_table() -> i32 {
        let mut missed = 0;
        for (name, dropped) in hugetlb::mutant::all() {
            println!("{name}: {dropped}");
            let mut caught = false;
            for Mutant { model, protocol, checker, message, .. } in MUTANTS.iter().filter(|m| m.name == name)
            {
                let seen = match run(model, protocol, checker, Some(name)) {
                    Ok((false, text)) => text.lines().find(|line| line.contains(message)).map(str::to_owned),
                    _ => None,
                };
                caught |= seen.is_some();
                println!("    {model}, {protocol}, {checker}: {}", seen.as_deref().unwrap_or("NOT CAUGHT"));
            }
            missed += i32::from(!caught);
        }
        println!("{} mutants, {missed} that nobody catches", hugetlb::mutant::all().count());
        missed
    }

    /// Runs a model in a process of its own, which has to fail with one of the messages that bars separate.
    fn fails(
        model: &str,
        protocol: &str,
        checker: &str,
        mutant: Option<&str>,
        message: &str,
    ) -> Result<(), Failed> {
        match run(model, protocol, checker, mutant)? {
            (true, _) => Err("the checker found nothing".into()),
            (false, text) if message.split('|').any(|message| text.contains(message)) => Ok(()),
            (false, text) => Err(format!("expected {message:?}, got: {text}").into()),
        }
    }

    /// Runs a model in a process of its own; returns whether it survived, and what it printed.
    fn run(
        model: &str,
        protocol: &str,
        checker: &str,
        mutant: Option<&str>,
    ) -> Result<(bool, String), Failed> {
        let mut command = Command::new(env::current_exe()?);
        command.env(MODEL, format!("{model} {protocol} {checker}")).env("RUST_BACKTRACE", "0");
        // Nobody replays the schedule of a model that was to fail.
        command.env("SHUTTLE_SILENCE_WARNINGS", "1");
        if let Some(mutant) = mutant {
            command.env(MUTANT, mutant);
            // Random schedules stop with the first that fails: a mutant gets more of them than what is to survive.
            if checker == "pct" {
                command.env(EFFORT, "20");
            }
        }
        let output = command.output()?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }

    fn survives(model: &str, protocol: &str) -> Result<(), Failed> {
        match run(model, protocol, "all", None)? {
            (true, _) => Ok(()),
            (false, text) => Err(text.into()),
        }
    }

    fn child(what: &str) {
        if let Ok(mutant) = env::var(MUTANT) {
            hugetlb::mutant::select(&mutant);
        }
        let effort = env::var(EFFORT).ok().and_then(|effort| effort.parse().ok()).unwrap_or(1);
        let mut words = what.split(' ').map(str::to_owned);
        let mut word = || words.next().expect("a model, a protocol, a checker");
        let (model, protocol, checker) = (Model::named(&word()), word(), word());
        let protocol = ProtocolKind::from_name(&protocol).expect("a protocol");
        let explorers = [
            ("loom", Explorer::Loom(model.preemptions + effort - 1)),
            ("random", Explorer::Random(SCHEDULES * effort)),
            ("pct", Explorer::Pct(SCHEDULES * effort)),
        ];
        // What has one thread has one schedule, which PCT refuses.
        let explorers = &explorers[..if model.preemptions == 0 { 1 } else { explorers.len() }];
        for (name, explorer) in explorers {
            if checker == "all" || checker == *name {
                let schedules = explorer.explore(move || (model.run)(protocol));
                println!("{name}: {schedules} schedules");
            }
        }
        exit(0);
    }
}
