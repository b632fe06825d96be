//! The command line.

use std::time::Duration;

use crate::plan::{MOST_ACTORS, Plan};

pub const USAGE: &str = "\
Makes random system calls as an ordinary user, and looks at what becomes of the machine.

  --seed N        the first round's seed; each round has the next one (1)
  --rounds N      so many rounds (1)
  --seconds N     rounds until so many seconds are over
  --actors N      processes of a round, 1 to 6 (each round chooses)
  --calls N       calls of each of them (400)
  --single        one actor, and one of its processes and threads at a time: the same each time
  --keep LIST     only these calls of the round: 0:3-5,9;2:44 (actor:indices)
  --without LIST  not these calls, by name
  --beside LINE   run this program beside the actors, as the same user; may be given several times
  --repeat        each round has the first one's seed
  --trace         print each call before it is made, and its result
  --tally         print at the end how often each call was made and succeeded
  --names         list the calls";

#[derive(Clone, Debug)]
pub struct Options {
    /// The first round's; `actors` is 0 where each round chooses.
    pub plan: Plan,
    pub rounds: Option<u64>,
    pub time: Option<Duration>,
    /// Programs beside the actors, with their arguments.
    pub beside: Vec<Vec<String>>,
    pub repeat: bool,
    pub tally: bool,
    pub names: bool,
}

impl Options {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let plan = Plan {
            seed: 1,
            actors: 0,
            calls: 400,
            single: false,
            trace: false,
            keep: Default::default(),
            without: Vec::new(),
        };
        let mut options = Options {
            plan,
            rounds: None,
            time: None,
            beside: Vec::new(),
            repeat: false,
            tally: false,
            names: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
            let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
            let plan = &mut options.plan;
            match word.as_str() {
                "--seed" => plan.seed = number(value()?)?,
                "--rounds" => options.rounds = Some(number(value()?)?),
                "--seconds" => options.time = Some(Duration::from_secs(number(value()?)?)),
                "--actors" => plan.actors = number(value()?)? as u32,
                "--calls" => plan.calls = number(value()?)? as u32,
                "--single" => plan.single = true,
                "--trace" => plan.trace = true,
                "--keep" => plan.keep = value()?.parse()?,
                "--without" => plan.without = value()?.split(',').map(str::to_string).collect(),
                "--beside" => {
                    options.beside.push(value()?.split_whitespace().map(str::to_string).collect());
                }
                "--repeat" => options.repeat = true,
                "--tally" => options.tally = true,
                "--names" => options.names = true,
                _ => return Err(format!("there is no option {word}")),
            }
        }
        if options.plan.actors > MOST_ACTORS {
            return Err(format!("at most {MOST_ACTORS} actors"));
        }
        let known = |name: &&String| !crate::grammar::names().any(|known| known == name.as_str());
        if let Some(name) = options.plan.without.iter().find(known) {
            return Err(format!("there is no call {name}; --names lists them"));
        }
        Ok(options)
    }
}
