//! One figure for each pool of the host: what is in use, what is promised, and all that is wanted besides.

use serde::Serialize;

use super::{Advice, Pages, Step, Subject, sources};
use crate::audit::pools::{Node, Pool};
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
    // Nobody asked for a smaller pool: free pages may wait for a program that starts later.
    let nr_hugepages = needed.max(pool.persistent());
    Need {
        in_use: pool.in_use(),
        promised: pool.reserved,
        nr_hugepages,
        wanted,
        nodes: node_needs(pool, nr_hugepages),
    }
}

/// Spreads `total` pages over the nodes: none has fewer than now, and what is free or comes anew is as even as that lets it be.
/// Together they are what the pool is to have.
fn node_needs(pool: &Pool, total: u64) -> Vec<NodeNeed> {
    struct Part {
        used: i128,
        persistent: i128,
        pages: i128,
    }
    let mut parts: Vec<Part> = pool
        .nodes
        .iter()
        .map(|node| {
            let persistent = node.total.saturating_sub(node.surplus).into();
            Part { used: node.total.saturating_sub(node.free).into(), persistent, pages: persistent }
        })
        .collect();
    // Those with most pages to spare keep them; the others share the rest.
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|&index| parts[index].used - parts[index].persistent);
    let mut free = i128::from(total) - parts.iter().map(|part| part.used).sum::<i128>();
    let mut sharers = order.as_slice();
    while let [first, others @ ..] = sharers {
        let spare = parts[*first].persistent - parts[*first].used;
        if spare * sharers.len() as i128 <= free {
            break;
        }
        free -= spare;
        sharers = others;
    }
    let mut sharers: Vec<usize> = sharers.to_vec();
    sharers.sort_unstable();
    let count = sharers.len() as i128;
    for (place, index) in sharers.into_iter().enumerate() {
        let more = i128::from((place as i128) < free.rem_euclid(count));
        parts[index].pages = parts[index].used + free.div_euclid(count) + more;
    }
    let need = |(node, part): (&Node, &Part)| NodeNeed {
        node: node.node,
        nr_hugepages: u64::try_from(part.pages).unwrap_or(0),
    };
    pool.nodes.iter().zip(&parts).map(need).collect()
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
    let mut bound = String::new();
    if !need.nodes.is_empty() {
        bound += " Each node gets its part; a program that is bound to one node needs all its pages there.";
    }
    for (node, to_be) in pool.nodes.iter().zip(&need.nodes) {
        let bytes =
            to_be.nr_hugepages.saturating_sub(node.total - node.surplus.min(node.total)) * pool.page_size;
        if bytes > node.memory_free {
            bound += &format!(
                " Node {} has only {} free for {} more.",
                node.node,
                human::bytes(node.memory_free),
                human::bytes(bytes)
            );
        }
    }
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
            "Keep it over a boot. What the first two commands find sets it too, and may have the last word: \
             change it there instead.",
            [
                "grep -rs nr_hugepages /etc/sysctl.conf /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d || true"
                    .to_string(),
                "grep -o 'hugepages[a-z]*=[^ ]*' /proc/cmdline || true".to_string(),
                format!("echo 'vm.nr_hugepages = {number}' > /etc/sysctl.d/90-roundtable-hugepages.conf"),
            ],
        )
    } else {
        Step::by_hand(format!(
            "Keep it over a boot: add hugepagesz={} hugepages={number} to the kernel's command line.",
            parameter(pool.page_size)
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

/// A size as the kernel's command line has it.
fn parameter(page_size: u64) -> String {
    match page_size {
        0..0x10_0000 => format!("{}K", page_size >> 10),
        _ => format!("{}M", page_size >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn a_command_line_has_sizes_of_every_pool() {
        assert_eq!([64 << 10, 2 << 20, 1 << 30].map(parameter), ["64K", "2M", "1024M"]);
        let pool = Pool { page_size: 64 << 10, is_default: false, ..pool() };
        let wants = Advice { pages: Some(Pages { size: 64 << 10, count: 5000 }), ..wants(0, "a") };
        let text = format!("{:?}", advise(&pool, &super::need(&pool, &[wants]), None).unwrap());
        assert!(text.contains("hugepagesz=64K hugepages="), "{text}");
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
        assert!(text.contains("Node 1 has only 0 B free for 1.4 GiB more."), "{text}");
        assert!(text.contains("echo 1094 > /sys/devices/system/node/node1/hugepages/"), "{text}");
        assert!(text.contains("too little"), "{text}");
    }

    /// What a node has to spare is taken first.
    #[test]
    fn nodes_get_together_what_the_pool_is_to_have() {
        let node = |node, total| Node { node, total, free: total, surplus: 0, memory_free: 1 << 40 };
        for (totals, wanted, expected) in
            [([100, 0], 140, [100, 40]), ([1000, 0], 1200, [1000, 200]), ([10, 0], 141, [71, 70])]
        {
            let nodes = vec![node(0, totals[0]), node(1, totals[1])];
            let total = totals.iter().sum();
            let pool = Pool { total, free: total, reserved: 0, nodes, ..pool() };
            let need = super::need(&pool, &[wants(wanted, "a")]);
            let parts: Vec<u64> = need.nodes.iter().map(|node| node.nr_hugepages).collect();
            assert_eq!(parts, expected);
        }
    }

    proptest! {
        #[test]
        fn no_node_shrinks_and_none_gets_more_than_is_wanted(
            nodes in prop::collection::vec((0u64..5000, 0u64..5000, 0u64..50), 2..9),
            wanted in 0u64..20_000,
            reserved in 0u64..5000,
        ) {
            let nodes: Vec<Node> = nodes
                .into_iter()
                .enumerate()
                .map(|(node, (total, free, surplus))| Node {
                    node: node as u32, total, free: free.min(total), surplus: surplus.min(total), memory_free: 0,
                })
                .collect();
            let sum = |of: fn(&Node) -> u64| nodes.iter().map(of).sum::<u64>();
            let pool = Pool {
                total: sum(|node| node.total), free: sum(|node| node.free), surplus: sum(|node| node.surplus),
                reserved, nodes: nodes.clone(), ..pool()
            };
            let need = super::need(&pool, &[wants(wanted, "a")]);
            prop_assert_eq!(need.nodes.iter().map(|node| node.nr_hugepages).sum::<u64>(), need.nr_hugepages);
            for (node, need) in nodes.iter().zip(&need.nodes) {
                prop_assert!(need.nr_hugepages >= node.total - node.surplus);
            }
        }
    }
}
