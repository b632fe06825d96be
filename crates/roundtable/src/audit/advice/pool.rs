//! One figure for each pool of the host: what is in use, what is promised, and all that is wanted besides.

use serde::Serialize;

use super::{Advice, Pages, Step, Subject, sources};
use crate::audit::pools::Pool;
use crate::output::human;

/// How large a pool has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Pages that files and processes have.
    pub in_use: u64,
    /// Free pages that are promised.
    pub promised: u64,
    /// Pages that advice asks for, each with whom it is for.
    pub wanted: Vec<Want>,
    /// What `nr_hugepages` has to be for all of that. Never below what it is when that is in use or promised.
    pub nr_hugepages: u64,
    /// The same for each node, where there are several: what the node has in use, and its part of the rest.
    pub nodes: Vec<NodeNeed>,
}

/// A node's part of a need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NodeNeed {
    /// Its number.
    pub node: u32,
    /// What the node's `nr_hugepages` has to be.
    pub nr_hugepages: u64,
}

/// Pages that somebody would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Want {
    /// How many.
    pub pages: u64,
    /// For whom.
    pub subject: Subject,
}

/// What a pool has to have for these advices to be followed all.
pub fn need(pool: &Pool, advices: &[Advice]) -> Need {
    let of_this_size = |advice: &&Advice| advice.id == "huge-pages";
    let wanted: Vec<Want> = advices
        .iter()
        .filter(of_this_size)
        .filter_map(|advice| {
            let Pages { count, .. } = advice.pages.filter(|pages| pages.size == pool.page_size)?;
            Some(Want { pages: count, subject: advice.subject.clone() })
        })
        .collect();
    let all: u64 = wanted.iter().map(|want| want.pages).sum();
    let needed = pool.in_use() + pool.reserved + all;
    let nodes = node_needs(pool, pool.reserved + all);
    Need {
        in_use: pool.in_use(),
        promised: pool.reserved,
        // Nobody asked for a smaller pool: free pages may wait for a program that starts later.
        nr_hugepages: needed.max(pool.persistent()),
        wanted,
        nodes,
    }
}

/// Spreads pages over the nodes as the kernel does, evenly, and keeps on each what is in use there.
fn node_needs(pool: &Pool, mut rest: u64) -> Vec<NodeNeed> {
    let mut needs: Vec<(NodeNeed, u64)> = pool
        .nodes
        .iter()
        .map(|node| {
            let used = node.total.saturating_sub(node.free);
            (NodeNeed { node: node.node, nr_hugepages: used }, node.total.saturating_sub(node.surplus))
        })
        .collect();
    let count = needs.len() as u64;
    for (index, (need, persistent)) in needs.iter_mut().enumerate() {
        let part = rest.div_ceil(count - index as u64);
        rest -= part;
        need.nr_hugepages = (need.nr_hugepages + part).max(*persistent);
    }
    needs.into_iter().map(|(need, _)| need).collect()
}

/// How to get there: nothing where the pool has it all already.
pub fn advise(pool: &Pool, need: &Need, memory_available: Option<u64>) -> Option<Advice> {
    let more = need.nr_hugepages.saturating_sub(pool.persistent());
    if more == 0 || need.wanted.is_empty() {
        return None;
    }
    let size = human::bytes(pool.page_size);
    let bytes = more * pool.page_size;
    let file = format!("/{}", pool.file("sys/kernel/mm"));
    let number = need.nr_hugepages;
    let have = memory_available.map_or(String::new(), |available| {
        let short =
            if available < bytes { ": too little, so make room or stop the program first" } else { "" };
        format!("; {} are available now{short}", human::bytes(available))
    });
    let commands: Vec<String> = if need.nodes.is_empty() {
        vec![format!("echo {number} > {file}")]
    } else {
        let of_node = |node: &NodeNeed| {
            let file = pool.file(&format!("sys/devices/system/node/node{}", node.node));
            format!("echo {} > /{file}", node.nr_hugepages)
        };
        need.nodes.iter().map(of_node).collect()
    };
    let bound = match need.nodes.is_empty() {
        true => "",
        false => " Each node gets its part; a program that is bound to one node needs all its pages there.",
    };
    let mut steps = vec![
        Step {
            what: format!(
                "Grow the pool by {} pages, which takes {} of free memory in pieces of {size}{have}.{bound}",
                human::count(more),
                human::bytes(bytes)
            ),
            commands: commands.clone(),
        },
        Step::run(
            format!(
                "Check that it is {} now: the kernel gives fewer pages without an error.",
                human::count(number)
            ),
            [format!("cat {file}")],
        ),
        Step {
            what: "If it is less, memory is in pieces: compact it and try again. If that does not help, \
                boot; a pool is best made early."
                .into(),
            commands: ["echo 1 > /proc/sys/vm/compact_memory".to_string()]
                .into_iter()
                .chain(commands)
                .collect(),
        },
    ];
    steps.push(if pool.is_default {
        Step::run(
            "Keep it over a boot.",
            [format!("echo 'vm.nr_hugepages = {number}' > /etc/sysctl.d/90-hugepages.conf")],
        )
    } else {
        Step::by_hand(format!(
            "Keep it over a boot: add hugepagesz={}M hugepages={number} to the kernel's command line.",
            pool.page_size >> 20
        ))
    });
    let wanted: Vec<String> = need
        .wanted
        .iter()
        .map(|want| format!("{} for {}", human::count(want.pages), want.subject.describe()))
        .collect();
    Some(Advice {
        id: "grow-pool",
        subject: Subject { file: format!("pool of {size} pages"), ..Subject::default() },
        situation: format!(
            "{} pages of {size} are in use, {} more are promised, and wanted are {}: {} in all, where the pool has {}.",
            human::count(need.in_use),
            human::count(need.promised),
            wanted.join(" and "),
            human::count(number),
            human::count(pool.persistent())
        ),
        steps,
        gain: 0,
        cost: bytes,
        frees: 0,
        pages: Some(Pages { size: pool.page_size, count: number }),
        source: sources::POOLS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::pools::Node;

    fn pool() -> Pool {
        Pool {
            page_size: 2 << 20,
            is_default: true,
            total: 1400,
            free: 1206,
            reserved: 869,
            ..Pool::default()
        }
    }

    fn wants(pages: u64, name: &str) -> Advice {
        Advice {
            id: "huge-pages",
            subject: Subject { programs: [name.to_string()].into(), ..Subject::default() },
            situation: String::new(),
            steps: Vec::new(),
            gain: 1,
            cost: 0,
            frees: 0,
            pages: Some(Pages { size: 2 << 20, count: pages }),
            source: "",
        }
    }

    /// A server with 1,063 pages by the pool, and two more that want 1,063 and 1,059.
    #[test]
    fn a_pool_in_use_is_never_told_to_shrink() {
        let need = super::need(&pool(), &[wants(1063, "one"), wants(1059, "two")]);
        assert_eq!(need.nr_hugepages, 194 + 869 + 1063 + 1059);
        let advice = advise(&pool(), &need, Some(1 << 40)).unwrap();
        assert!(advice.situation.contains("1,063 for one and 1,059 for two"), "{}", advice.situation);
        let text = format!("{advice:?}");
        assert!(
            text.contains("echo 3185 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
            "{text}"
        );
        assert!(text.contains("vm.nr_hugepages = 3185"), "{text}");
        // Large enough as it is.
        let need = super::need(&pool(), &[wants(300, "small")]);
        assert_eq!((need.nr_hugepages, advise(&pool(), &need, None)), (1400, None));
    }

    #[test]
    fn surplus_pages_that_are_in_use_count_as_used() {
        let pool = Pool { total: 30, free: 0, surplus: 20, reserved: 0, ..pool() };
        assert_eq!(super::need(&pool, &[wants(5, "a")]).nr_hugepages, 35);
        assert_eq!(pool.persistent(), 10);
    }

    #[test]
    fn each_node_keeps_what_is_in_use_there() {
        let node = |node, total, free| Node { node, total, free, surplus: 0, memory_free: 0 };
        let pool = Pool { nodes: vec![node(0, 1000, 900), node(1, 400, 306)], ..pool() };
        let need = super::need(&pool, &[wants(1131, "a")]);
        let nodes: Vec<u64> = need.nodes.iter().map(|node| node.nr_hugepages).collect();
        assert_eq!(nodes, [1100, 1094]);
        assert_eq!(nodes.iter().sum::<u64>(), need.nr_hugepages);
        let text = format!("{:?}", advise(&pool, &need, Some(1)).unwrap());
        assert!(text.contains("echo 1094 > /sys/devices/system/node/node1/hugepages/"), "{text}");
        assert!(text.contains("too little"), "{text}");
    }
}
