//! The demonstration's command line.

pub const USAGE: &str = "usage: sharers [--processes N] [--unshared N] [--bytes SIZE] [--mount PATH]
  --processes N  processes that share the file [1000]
  --unshared N   processes that map it without sharing, to compare [as many; of more than 2000, 200]
  --bytes SIZE   the file's size, such as 1073741824, 512M or 1G [1G]
  --base-pages   memory with pages of 4 KiB: a file on tmpfs
  --of KIND      with --base-pages: tmpfs, memfd, sysv, or inherited (shared anonymous memory of the parent)
  --step SIZE    with --base-pages: of each SIZE bytes only the first and the last page are there [4096]
  --mount PATH   where a hugetlbfs with pages of 2 MiB is mounted [/mnt/huge]";

/// So many processes at most are all measured without sharing as well.
const ALL_UNSHARED: usize = 2000;
/// Of more, so many.
const UNSHARED_SAMPLE: usize = 200;
/// Of those with base pages, each of which has more tables than a thousand with huge pages.
const BASE_SAMPLE: usize = 8;

use crate::memory::Source;

#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub processes: usize,
    pub unshared: usize,
    pub bytes: usize,
    pub mount: String,
    pub base_pages: bool,
    pub source: Source,
    /// Bytes from one pair of stamps of base pages to the next.
    pub step: usize,
}

impl Options {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            processes: 1000,
            unshared: 0,
            bytes: 1 << 30,
            mount: "/mnt/huge".to_string(),
            base_pages: false,
            source: Source::Tmpfs,
            step: 4096,
        };
        let mut unshared = None;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--processes" => options.processes = number(&value()?)?,
                "--unshared" => unshared = Some(number(&value()?)?),
                "--bytes" => options.bytes = size(&value()?)?,
                "--base-pages" => options.base_pages = true,
                "--of" => options.source = Source::parse(&value()?)?,
                "--step" => options.step = size(&value()?)?,
                "--mount" => options.mount = value()?,
                _ => return Err(format!("what is {word}?")),
            }
        }
        // Each of them faults on every page, which takes a while.
        let affordable = match options.processes {
            count if options.base_pages => count.min(BASE_SAMPLE),
            count if count <= ALL_UNSHARED => count,
            _ => UNSHARED_SAMPLE,
        };
        options.unshared = unshared.unwrap_or(affordable);
        if options.processes == 0 || options.unshared == 0 || options.bytes == 0 {
            return Err("one process and one byte is the least".to_string());
        }
        if options.step == 0
            || !options.step.is_multiple_of(4096)
            || !options.bytes.is_multiple_of(options.step)
        {
            return Err("steps are whole pages, and the file has whole steps".to_string());
        }
        Ok(options)
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(format!("{text} is no size")),
    };
    number(digits)?.checked_mul(1 << shift).ok_or(format!("{text} is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_string))
    }

    #[test]
    fn words_become_options() {
        let options = parse("--processes 7 --bytes 64M --mount /m").unwrap();
        let wanted = Options {
            processes: 7,
            unshared: 7,
            bytes: 64 << 20,
            mount: "/m".to_string(),
            base_pages: false,
            source: Source::Tmpfs,
            step: 4096,
        };
        assert_eq!(options, wanted);
        assert_eq!(parse("--base-pages --bytes 16G --step 2M").unwrap().step, 2 << 20);
        assert_eq!(parse("--base-pages").unwrap().unshared, 8);
        assert_eq!(parse("--base-pages --of inherited").unwrap().source, Source::Inherited);
        assert_eq!(parse("--processes 10000").unwrap().unshared, 200);
        assert_eq!(parse("--unshared 3").unwrap().unshared, 3);
        assert_eq!(parse("--bytes 1073741824").unwrap().bytes, 1 << 30);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "--processes",
            "--processes 0",
            "--unshared 0",
            "--bytes 1X",
            "--bytes M",
            "--bytes 99999999999T",
            "--step 4097",
            "--step 0",
            "--step 3M",
            "--of huge",
            "-x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
