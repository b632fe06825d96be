//! The pools of huge pages: of the host, and of each node of its memory.

use serde::Serialize;

use super::meminfo::Meminfo;
use super::source::Source;

/// A pool of huge pages; counts in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Bytes of a page.
    pub page_size: u64,
    /// Whether programs get this size when they name none.
    pub is_default: bool,
    /// All pages.
    pub total: u64,
    /// Pages in no file.
    pub free: u64,
    /// Free pages that are promised.
    pub reserved: u64,
    /// Pages beyond the persistent ones.
    pub surplus: u64,
    /// So many surplus pages may come when the pool is empty.
    pub overcommit: u64,
    /// The nodes' parts of it, where there are several.
    pub nodes: Vec<Node>,
}

/// A node's part of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub node: u32,
    /// Its pages.
    pub total: u64,
    /// Those in no file.
    pub free: u64,
    /// Those beyond the persistent ones.
    pub surplus: u64,
    /// Bytes of the node's memory that are free.
    pub memory_free: u64,
}

impl Pool {
    /// Pages that files and processes have.
    pub fn in_use(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }

    /// Pages that anybody can still have.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// What `nr_hugepages` is set to now.
    pub fn persistent(&self) -> u64 {
        self.total.saturating_sub(self.surplus)
    }

    /// The file that sets how many there are, of the host or below a node's folder.
    pub fn file(&self, folder: &str) -> String {
        format!("{folder}/hugepages/hugepages-{}kB/nr_hugepages", self.page_size >> 10)
    }
}

/// The pool that a program takes from: that of the default size where it names none, else that of huge pages of the next level.
pub fn taken(pools: &[Pool], names_its_size: bool, huge: u64) -> Option<&Pool> {
    let next = || pools.iter().find(|pool| pool.page_size == huge);
    match names_its_size {
        true => next(),
        false => pools.iter().find(|pool| pool.is_default).or_else(next),
    }
}

const HOST: &str = "sys/kernel/mm";
const NODES: &str = "sys/devices/system/node";

/// All of them, smallest pages first.
pub fn read(source: &Source, meminfo: &Meminfo) -> Vec<Pool> {
    let default = meminfo.get("Hugepagesize");
    let nodes = nodes(source);
    let mut pools: Vec<Pool> = names(source, &format!("{HOST}/hugepages"))
        .into_iter()
        .filter_map(|name| {
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let page_size = kilobytes.checked_mul(1 << 10).filter(|size| *size > 0)?;
            let number = |folder: &str, file: &str| {
                let text = source.text(&format!("{folder}/hugepages/{name}/{file}"));
                text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
            };
            let of_node = |&(node, memory_free): &(u32, u64)| {
                let folder = format!("{NODES}/node{node}");
                Node {
                    node,
                    total: number(&folder, "nr_hugepages"),
                    free: number(&folder, "free_hugepages"),
                    surplus: number(&folder, "surplus_hugepages"),
                    memory_free,
                }
            };
            Some(Pool {
                page_size,
                is_default: default == Some(page_size),
                total: number(HOST, "nr_hugepages"),
                free: number(HOST, "free_hugepages"),
                reserved: number(HOST, "resv_hugepages"),
                surplus: number(HOST, "surplus_hugepages"),
                overcommit: number(HOST, "nr_overcommit_hugepages"),
                nodes: if nodes.len() > 1 { nodes.iter().map(of_node).collect() } else { Vec::new() },
            })
        })
        .collect();
    pools.sort_by_key(|pool| pool.page_size);
    pools
}

/// The nodes that have memory, with how much of it is free.
fn nodes(source: &Source) -> Vec<(u32, u64)> {
    let of = |name: String| {
        let node = name.strip_prefix("node")?.parse().ok()?;
        let meminfo = Meminfo::parse(&source.text(&format!("{NODES}/{name}/meminfo"))?);
        (meminfo.get("MemTotal")? > 0).then_some((node, meminfo.get("MemFree").unwrap_or(0)))
    };
    let mut nodes: Vec<_> = names(source, NODES).into_iter().filter_map(of).collect();
    nodes.sort_unstable();
    nodes
}

fn names(source: &Source, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(source.path(folder)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The files of a pool that are recorded, of the host and of its nodes.
pub fn recorded_files(source: &Source) -> Vec<String> {
    let mut files = Vec::new();
    let mut add = |folder: &str, kinds: &[&str]| {
        for name in names(source, &format!("{folder}/hugepages")) {
            files.extend(kinds.iter().map(|kind| format!("{folder}/hugepages/{name}/{kind}_hugepages")));
        }
    };
    add(HOST, &["nr", "free", "resv", "surplus", "nr_overcommit"]);
    let nodes: Vec<String> = nodes(source).iter().map(|(node, _)| format!("{NODES}/node{node}")).collect();
    nodes.iter().for_each(|folder| add(folder, &["nr", "free", "surplus"]));
    files.extend(nodes.iter().map(|folder| format!("{folder}/meminfo")));
    files
}
