//! A real PostgreSQL: the audit's page tables and the plan's pages beside what the kernel and PostgreSQL say.

use roundtable_programs::huge;
use serde_json::Value;

use crate::following::follow_by;
use crate::saying::{audit, command};
use crate::server::{CONNECTIONS, Cluster, Server};

/// An audit, with the kernel's own counters brought up to date before: else each CPU keeps up to 125 pages for itself before
/// PageTables shows them.
fn settled_audit() -> Value {
    std::fs::read("/proc/sys/vm/stat_refresh").expect("root may");
    audit()
}

/// Expects the audit's figures to be the kernel's: the server's processes' VmPTE exactly, its own count of their tables within 5 %, and
/// the growth of PageTables since the server was not there within 5 %.
///
/// PageTables has the tables of all processes, each once, and beside them what VmPTE leaves out: the top level of each process, and
/// the kernel's own. The server adds a top level for each of its processes only, so the growth is somewhat above VmPTE's.
#[track_caller]
fn expect_close(before: &Value, server: &Server, list: &str, what: &str) -> Value {
    // Idle servers free no table; one may get another between two readings.
    let lowest = server.vm_pte();
    let after = settled_audit();
    let highest = server.vm_pte();
    let files = after[list].as_array().unwrap();
    let file = files.iter().find(|file| {
        file["names"].to_string().contains("postgres") && file["size"].as_u64().unwrap() > 256 << 20
    });
    let file = file.unwrap_or_else(|| panic!("the shared memory is not in {files:?}")).clone();
    let processes = &file["of_processes"];
    assert_eq!(file["processes"], server.pids().len(), "{file}");
    assert_eq!(processes["processes"], file["processes"]);
    assert!(server.pids().len() > CONNECTIONS);
    let number = |value: &Value| value.as_u64().unwrap() as f64;
    let (vm_pte, estimate) = (number(&processes["vm_pte"]), number(&processes["estimate"]));
    assert!((lowest as f64..=highest as f64).contains(&vm_pte), "{vm_pte} is not in {lowest}..={highest}");
    let grown = |name: &str| number(&after["check"][name]) - number(&before["check"][name]);
    let (expected, page_tables) = (grown("vm_pte_all") - grown("counted_again"), grown("page_tables"));
    println!(
        "# {what}: {} processes, VmPTE {vm_pte}, by their pages {estimate} ({:+.2} %); PageTables grew by {page_tables}, by the audit {expected} ({:+.2} %)",
        server.pids().len(),
        (estimate / vm_pte - 1.0) * 100.0,
        (expected / page_tables - 1.0) * 100.0
    );
    assert!((estimate / vm_pte - 1.0).abs() < 0.05, "{file}");
    assert!((expected / page_tables - 1.0).abs() < 0.05, "{} {}", before["check"], after["check"]);
    file
}

pub fn postgres_on_huge_pages() {
    huge::pool(150);
    let before = settled_audit();
    let server = Server::start("on");
    expect_close(&before, &server, "huge", "huge_pages=on");
}

pub fn postgres_on_base_pages() {
    let before = settled_audit();
    let server = Server::start("off");
    let file = expect_close(&before, &server, "base", "huge_pages=off");
    // 110 tables of 2 MiB each for the part that each connection has looked at.
    let tables = file["tables"]["now"]["pte"].as_u64().unwrap();
    assert!((110 * CONNECTIONS as u64..125 * CONNECTIONS as u64).contains(&tables), "{file}");
}

/// The pages that `plan` says and those that PostgreSQL itself says, for several configurations: enough, and hardly more.
pub fn postgres_plan() {
    let cluster = Cluster::new();
    let conf = cluster.data().join("postgresql.conf");
    let initial = std::fs::read_to_string(&conf).unwrap();
    for settings in [
        "",
        "shared_buffers = 1GB\nmax_connections = 500\n",
        "shared_buffers = 8GB\nmax_connections = 1000\nwal_buffers = 64MB\n",
        "shared_buffers = 256MB\nmax_locks_per_transaction = 512\nmax_prepared_transactions = 100\n",
        "shared_buffers = 64GB\nmax_worker_processes = 64\nautovacuum_max_workers = 10\n",
        "shared_buffers = 2000000\nmin_dynamic_shared_memory = 512MB\n",
    ] {
        std::fs::write(&conf, format!("{initial}\n{settings}")).unwrap();
        let output = cluster
            .command("postgres")
            .arg("-D")
            .arg(cluster.data())
            .args(["-C", "shared_memory_size_in_huge_pages"])
            .output()
            .expect("postgres starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let needed: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        let output = command(&["plan", "--json", "--from", conf.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let planned = plan["nr_hugepages_2m"].as_u64().unwrap();
        println!("# {settings:?}: PostgreSQL {needed}, plan {planned}");
        assert!(
            (needed..=needed + 3 + needed / 200).contains(&planned),
            "{settings}: {planned}, not {needed}"
        );
    }
}

/// Servers that run on base pages for three reasons. Each time the audit names the reason; its steps, done word for word, put the
/// memory on huge pages and save what was promised.
pub fn postgres_advice_followed() {
    for (settings, reasons) in [
        // The default: it tried, there were none, and it did not say so.
        ("", &["huge_pages is try: when it started there were too few", "too few."][..]),
        ("huge_pages = off\n", &["huge_pages is off in its configuration file"]),
        ("shared_memory_type = sysv\n", &["shared_memory_type=sysv keeps it from taking any"]),
    ] {
        huge::pool(3);
        let mut server = Server::start_with(settings);
        let (report, before) = (audit(), server.vm_pte());
        let all = report["advice"].as_array().unwrap();
        let ours = |advice: &&Value| {
            advice["subject"]["some_pids"].to_string().contains(&server.pids()[0].to_string())
        };
        let huge = all.iter().find(|advice| ours(advice) && advice["id"] == "huge-pages");
        let huge = huge.unwrap_or_else(|| panic!("{settings}: {all:?}"));
        for reason in reasons {
            assert!(huge["situation"].as_str().unwrap().contains(reason), "{huge}");
        }
        // Those for the pool come before those for what takes from it.
        let grow = all.iter().position(|advice| advice["id"] == "grow-pool").expect("the pool is too short");
        assert!(grow < all.iter().position(|advice| ours(&advice)).unwrap(), "{all:?}");
        let variables = server.variables();
        // No command is given where others than root could change PostgreSQL's programs, as in a developer's folder.
        follow_by(&[&all[grow], huge], &variables, |what| {
            if let Some((_, setting)) = what.split_once("ALTER SYSTEM ") {
                assert!(server.psql(&format!("alter system {setting}")).status.success(), "{what}");
            } else if what.starts_with("Start it again") {
                assert!(server.restart().success(), "{what}");
            }
        });
        server.connect();
        let (after, report) = (server.vm_pte(), audit());
        let promised = huge["gain"].as_f64().unwrap();
        let saved = (before - after) as f64;
        println!(
            "# {settings:?}: promised {promised}, saved {saved} ({:+.1} %)",
            (saved / promised - 1.0) * 100.0
        );
        assert!((saved / promised - 1.0).abs() < 0.1, "{saved} saved, {promised} promised");
        let on_huge = report["huge"].as_array().unwrap().iter().any(|file| {
            file["names"].to_string().contains("postgres") && file["size"].as_u64().unwrap() > 256 << 20
        });
        assert!(on_huge, "{}", report["huge"]);
        // With the pages there the strict setting starts as well.
        let set = server.psql("alter system set huge_pages = on");
        assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        let status = server.restart();
        assert!(status.success(), "{settings}: huge_pages=on");
    }
}
