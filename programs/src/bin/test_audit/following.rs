//! Does what the audit advises, word for word and in its order.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs all commands of these advices in a shell, as an operator would. What would last over a boot is left out: the host is not ours.
#[track_caller]
pub fn follow(advices: &[&Value]) {
    follow_with(advices, &[]);
}

/// The same, with these variables: of programs that are not where their libraries are looked for.
#[track_caller]
pub fn follow_with(advices: &[&Value], variables: &[(&str, PathBuf)]) {
    follow_by(advices, variables, |_| {});
}

/// The same; what no command can do is done by the operator, who gets the sentence.
#[track_caller]
pub fn follow_by(advices: &[&Value], variables: &[(&str, PathBuf)], mut by_hand: impl FnMut(&str)) {
    for advice in advices {
        for step in advice["steps"].as_array().expect("steps") {
            let what = step["what"].as_str().expect("a sentence");
            if what.starts_with("Keep it over a boot") {
                continue;
            }
            let commands = step["commands"].as_array().expect("commands");
            if commands.is_empty() {
                println!("# by hand: {what}");
                by_hand(what);
            }
            for command in commands {
                let command = command.as_str().expect("a command");
                println!("# {command}");
                // A server that is started keeps what it was given.
                let status = Command::new("sh")
                    .args(["-c", command])
                    .envs(variables.iter().map(|(name, value)| (name, value)))
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .status()
                    .expect("sh starts");
                assert!(status.success(), "{what}: {command}: {status}");
            }
        }
    }
}
