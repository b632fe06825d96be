//! The command line of `latency`.

use std::time::Duration;

pub const USAGE: &str = "usage: latency [OPTIONS]
  --parts LIST         what to measure, such as attach,cost [attach,cost,bystander,tebibyte]; also: path,basics
  --sharers LIST       further processes beside a bystander [0,16,256,4096]
  --cost-sharers LIST  processes that share when costs are taken [1,16,256,1024,4096,10000]
  --tib-sharers LIST   processes that map the file of 1 TiB [1,16,256]
  --seconds N          for each bystander's case [1]
  --runs N             how often each cost is measured [5]
Every result is a line that begins with 'record'. Exit status: 0, or 1 when something could not be measured.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Attach,
    Cost,
    Bystander,
    Tebibyte,
    Path,
    Basics,
}

impl Part {
    fn from_name(name: &str) -> Option<Part> {
        Some(match name {
            "attach" => Part::Attach,
            "cost" => Part::Cost,
            "bystander" => Part::Bystander,
            "tebibyte" => Part::Tebibyte,
            "path" => Part::Path,
            "basics" => Part::Basics,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub parts: Vec<Part>,
    pub sharers: Vec<u32>,
    pub cost_sharers: Vec<u32>,
    pub tib_sharers: Vec<u32>,
    pub time: Duration,
    pub runs: usize,
}

impl Options {
    /// Whether only paths are measured, for which few huge pages do.
    pub fn needs_little(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Path | Part::Basics))
    }

    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            parts: vec![Part::Attach, Part::Cost, Part::Bystander, Part::Tebibyte],
            sharers: vec![0, 16, 256, 4096],
            cost_sharers: vec![1, 16, 256, 1024, 4096, 10_000],
            tib_sharers: vec![1, 16, 256],
            time: Duration::from_secs(1),
            runs: 5,
        };
        while let Some(word) = words.next() {
            let value = words.next().ok_or(format!("{word} needs a value"))?;
            match word.as_str() {
                "--parts" => {
                    let part = |name| Part::from_name(name).ok_or(format!("there is no part {name}"));
                    options.parts = value.split(',').map(part).collect::<Result<_, _>>()?;
                }
                "--sharers" => options.sharers = list(&value)?,
                "--cost-sharers" => options.cost_sharers = list(&value)?,
                "--tib-sharers" => options.tib_sharers = list(&value)?,
                "--seconds" => {
                    let seconds: f64 = value.parse().map_err(|_| format!("{value} is no number"))?;
                    options.time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
                }
                "--runs" => options.runs = value.parse().map_err(|_| format!("{value} is no number"))?,
                _ => return Err(format!("what is {word}?")),
            }
        }
        if options.runs == 0 || options.cost_sharers.contains(&0) || options.tib_sharers.contains(&0) {
            return Err("one run and one sharer are the least".to_string());
        }
        Ok(options)
    }
}

/// Numbers, in ascending order.
fn list(text: &str) -> Result<Vec<u32>, String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text} is no number"));
    let mut list: Vec<u32> = text.split(',').map(number).collect::<Result<_, _>>()?;
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_string))
    }

    #[test]
    fn words_become_options() {
        let options = parse("--parts path,cost --sharers 16,0,16 --seconds 0.25 --runs 2").unwrap();
        assert_eq!(options.parts, [Part::Path, Part::Cost]);
        assert_eq!(options.sharers, [0, 16]);
        assert_eq!((options.time, options.runs), (Duration::from_millis(250), 2));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--parts x", "--sharers", "--sharers 1,x", "--cost-sharers 0", "--runs 0", "-x 1"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
