//! What a round consists of: everything follows from its seed, and any call can be left out without changing the others.

use std::fmt::Write;
use std::str::FromStr;

use roundtable_programs::rng::Rng;

/// The most actors of a round.
pub const MOST_ACTORS: u32 = 6;

/// One round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    /// Processes at the start; each has its own calls.
    pub actors: u32,
    /// Calls of each actor.
    pub calls: u32,
    /// One after the other: a parent waits for its child, and whoever starts a thread waits for that.
    pub single: bool,
    /// Prints each call.
    pub trace: bool,
    /// What is left of it; empty when all is.
    pub keep: Keep,
    /// Calls that are not made, by name.
    pub without: Vec<String>,
}

impl Plan {
    /// The random numbers of one call. `salt` tells apart a parent and a child, who make the same calls.
    pub fn rng(&self, actor: u32, index: u32, salt: u64) -> Rng {
        let place = u64::from(actor) << 32 | u64::from(index);
        let mut mixed = Rng::new(self.seed ^ Rng::new(place ^ salt.rotate_left(20)).draw());
        Rng::new(mixed.draw())
    }

    /// The random numbers that decide about the round itself.
    pub fn round_rng(&self) -> Rng {
        Rng::new(!self.seed)
    }

    /// In words that [`Plan::parse`] reads.
    pub fn words(&self) -> String {
        let Plan { seed, actors, calls, single, trace, keep, without } = self;
        let (single, trace) = (u8::from(*single), u8::from(*trace));
        let (keep, without) = (keep.to_string(), without.join(","));
        format!("{seed} {actors} {calls} {single} {trace} +{keep} -{without}")
    }

    pub fn parse(words: &str) -> Option<Plan> {
        let mut words = words.split(' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (seed, actors, calls) = (number()?, number()? as u32, number()? as u32);
        let (single, trace) = (number()? != 0, number()? != 0);
        let keep = words.next()?.strip_prefix('+')?.parse().ok()?;
        let without = words.next()?.strip_prefix('-')?;
        let without = without.split(',').filter(|name| !name.is_empty()).map(str::to_string).collect();
        Some(Plan { seed, actors, calls, single, trace, keep, without })
    }
}

/// Which calls of which actors are left: `0:3-5,9;2:44`, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    ranges: Vec<(u32, u32, u32)>,
}

impl Keep {
    pub fn has(&self, actor: u32, index: u32) -> bool {
        self.ranges.is_empty()
            || self.ranges.iter().any(|&(a, from, to)| a == actor && (from..=to).contains(&index))
    }

    pub fn has_actor(&self, actor: u32) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|&(a, ..)| a == actor)
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Keep, String> {
        let bad = |part: &str| format!("{part:?} is not like 0:3-5,9");
        let mut ranges = Vec::new();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let (actor, list) = part.split_once(':').ok_or_else(|| bad(part))?;
            for range in list.split(',') {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let number = |text: &str| text.parse::<u32>().map_err(|_| bad(part));
                ranges.push((number(actor)?, number(from)?, number(to)?));
            }
        }
        Ok(Keep { ranges })
    }
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut last = None;
        for &(actor, from, to) in &self.ranges {
            match last.replace(actor) {
                Some(same) if same == actor => f.write_char(',')?,
                Some(_) => write!(f, ";{actor}:")?,
                None => write!(f, "{actor}:")?,
            }
            if from == to { write!(f, "{from}")? } else { write!(f, "{from}-{to}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(keep: &str) -> Plan {
        Plan {
            seed: 7,
            actors: 3,
            calls: 50,
            single: false,
            trace: true,
            keep: keep.parse().unwrap(),
            without: vec!["fork".into(), "exec".into()],
        }
    }

    #[test]
    fn a_plan_survives_being_written() {
        for keep in ["", "0:3-5,9;2:44", "1:0"] {
            assert_eq!(Plan::parse(&plan(keep).words()), Some(plan(keep)));
            assert_eq!(plan(keep).keep.to_string(), keep);
        }
        assert!("0:a".parse::<Keep>().is_err() && "3-5".parse::<Keep>().is_err());
    }

    #[test]
    fn only_what_is_kept_is_played() {
        let keep = plan("0:3-5,9;2:44").keep;
        let kept: Vec<_> =
            (0..3).flat_map(|a| (0..50).map(move |i| (a, i))).filter(|&(a, i)| keep.has(a, i)).collect();
        assert_eq!(kept, [(0, 3), (0, 4), (0, 5), (0, 9), (2, 44)]);
        assert!(keep.has_actor(0) && !keep.has_actor(1));
        assert!(plan("").keep.has(1, 49) && plan("").keep.has_actor(1));
    }

    #[test]
    fn a_calls_numbers_depend_on_its_place_alone() {
        let draw = |actor, index, salt| plan("").rng(actor, index, salt).draw();
        let all = [draw(0, 0, 0), draw(0, 1, 0), draw(1, 0, 0), draw(0, 0, 1), draw(1, 0, 1)];
        for (place, number) in all.iter().enumerate() {
            assert!(!all[..place].contains(number));
        }
        assert_eq!(draw(0, 1, 0), Plan { keep: "0:1".parse().unwrap(), ..plan("") }.rng(0, 1, 0).draw());
    }
}
