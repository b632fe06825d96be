//! /proc/meminfo, in bytes.

use std::collections::HashMap;

use super::source::Source;

/// What it says.
#[derive(Clone, Debug, Default)]
pub struct Meminfo(HashMap<String, u64>);

impl Meminfo {
    /// Reads it; what is not there is not known.
    pub fn read(source: &Source) -> Meminfo {
        Meminfo::parse(&source.text("proc/meminfo").unwrap_or_default())
    }

    /// Lines such as `MemFree:  217348 kB`, in bytes. A node's own file has `Node 0` before each.
    pub fn parse(text: &str) -> Meminfo {
        let parse = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let name = name.split_whitespace().next_back()?;
            let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some((name.to_string(), kilobytes.checked_mul(1 << 10)?))
        };
        Meminfo(text.lines().filter_map(parse).collect())
    }

    /// One of its lines.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_system_and_of_a_node_are_read() {
        let all = Meminfo::parse(
            "MemTotal: 10 kB\nHugePages_Total:  5\nNode 1 MemFree:  7 kB\nx\nBad: 99999999999999999999 kB\n",
        );
        assert_eq!(all.get("MemTotal"), Some(10 << 10));
        assert_eq!(all.get("MemFree"), Some(7 << 10));
        assert_eq!((all.get("HugePages_Total"), all.get("Bad")), (None, None));
    }
}
