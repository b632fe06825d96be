//! The command line of `race`.

use std::time::Duration;

use crate::ways::Way;

pub const USAGE: &str = "usage: race [OPTIONS]
  --seconds N     how long, all ways together [30]
  --ways LIST     which of them, such as punch,truncate [all]: punch truncate dontneed mprotect munmap
                  partial-munmap mremap fork exit
  --processes N   processes that map the files [3]
  --threads N     threads that fault in each of them [2]; each way is played by one process with these threads,
                  by two with one each, and by all
  --base-pages    pages of 4 KiB on tmpfs in the place of huge pages
  --regions       the files are mapped in regions of msharefs, which the processes attach
  --pages N       huge pages of 2 MiB that the pool is to have [96]
  --seed N        where the random numbers start [1]
  --until-found   end at the first corruption, and leave all processes stopped as they are
Exit status: 0 no corruption, 1 corruption, 2 the run could not be set up.";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub time: Duration,
    pub ways: Vec<Way>,
    pub processes: usize,
    pub threads: usize,
    /// Huge pages in the pool.
    pub pages: u64,
    pub seed: u64,
    pub base_pages: bool,
    pub regions: bool,
    pub until_found: bool,
}

/// Processes, and threads that fault in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub processes: usize,
    pub threads: usize,
}

impl Options {
    /// The shapes in which every way is played: threads of one process; a process that is alone with its table as soon as
    /// the other has lost it; and a crowd.
    pub fn shapes(&self) -> Vec<Shape> {
        let mut shapes = vec![
            Shape { processes: 1, threads: self.threads },
            Shape { processes: 2, threads: 1 },
            Shape { processes: self.processes, threads: self.threads },
        ];
        shapes.retain(|shape| shape.processes <= self.processes);
        shapes.dedup();
        shapes
    }

    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            time: Duration::from_secs(30),
            ways: Way::ALL.to_vec(),
            processes: 3,
            threads: 2,
            pages: 96,
            seed: 1,
            base_pages: false,
            regions: false,
            until_found: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--seconds" => {
                    let seconds: f64 = number(&value()?)?;
                    options.time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
                }
                "--ways" => {
                    options.ways = value()?
                        .split(',')
                        .map(|name| Way::from_name(name).ok_or(format!("there is no way {name}")))
                        .collect::<Result<_, _>>()?;
                }
                "--processes" => options.processes = number(&value()?)?,
                "--threads" => options.threads = number(&value()?)?,
                "--pages" => options.pages = number(&value()?)?,
                "--seed" => options.seed = number(&value()?)?,
                "--base-pages" => options.base_pages = true,
                "--regions" => options.regions = true,
                "--until-found" => options.until_found = true,
                _ => return Err(format!("what is {word}?")),
            }
        }
        if options.regions && !options.ways.iter().any(|way| way.goes_in_regions()) {
            return Err("none of these ways is one of regions".to_string());
        }
        if options.processes == 0 || options.threads == 0 || options.time.is_zero() {
            return Err("one process, one thread and some time are the least".to_string());
        }
        Ok(options)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_string))
    }

    #[test]
    fn words_become_options() {
        let options = parse("--seconds 0.5 --ways exit,punch --seed 7 --until-found").unwrap();
        assert_eq!(options.time, Duration::from_millis(500));
        assert_eq!(options.ways, [Way::Exit, Way::Punch]);
        assert_eq!((options.seed, options.until_found), (7, true));
        assert_eq!(parse("").unwrap().ways, Way::ALL);
        assert!(parse("--base-pages").unwrap().base_pages && !parse("").unwrap().base_pages);
        assert!(parse("--regions").unwrap().regions && !parse("").unwrap().regions);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "--seconds",
            "--seconds 0",
            "--seconds -1",
            "--ways x",
            "--threads 0",
            "-x",
            "--regions --ways dontneed",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
