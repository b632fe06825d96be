//! `roundtable plan`: what page tables will cost on a machine that does not exist yet.

pub mod arithmetic;
pub mod check;
pub mod postgres;

use std::fmt::Write;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use self::arithmetic::{Line, Way, lines};
use self::check::Check;
use self::postgres::{HugePages, Settings};
use crate::audit::meminfo::Meminfo;
use crate::audit::source::Source;
use crate::output::{file, human};
use crate::size::{Size, thousands};

/// Examples at the end of the help.
const EXAMPLES: &str =
    "Exit status: 0, or 1 when --check finds something missing, 3 when nothing can be told.

Examples:
  roundtable plan --size 1TiB --processes 10,000
  roundtable plan --from /etc/postgresql/15/main/postgresql.conf
  roundtable plan --from /var/lib/postgresql/15/main --check --page-size 2MiB";

/// What to plan for.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PlanOptions {
    /// Size of the shared memory, such as 1TiB
    #[arg(long, value_name = "SIZE", required_unless_present = "from")]
    pub size: Option<Size>,

    /// Processes that map it
    #[arg(long, value_name = "N", required_unless_present = "from", value_parser = processes)]
    pub processes: Option<u64>,

    /// Only for pages of this size: 4KiB, 2MiB or 1GiB
    #[arg(long, value_name = "SIZE", value_parser = page_size)]
    pub page_size: Option<Size>,

    /// Take size and processes from a postgresql.conf, or from PostgreSQL's data folder
    #[arg(long, value_name = "PATH")]
    pub from: Option<PathBuf>,

    /// Compare with this host: its kernel, memory and pools; say what is missing, with exit status 1
    #[arg(long)]
    pub check: bool,

    /// With --check: a recording in the place of this host
    #[arg(long, value_name = "FOLDER", requires = "check")]
    pub root: Option<PathBuf>,

    /// Write JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

fn page_size(text: &str) -> Result<Size, String> {
    let size = Size::from_str(text).map_err(|error| error.to_string())?;
    let known = [4 << 10, 2 << 20, 1 << 30].contains(&size.0);
    if known { Ok(size) } else { Err("it is 4KiB, 2MiB or 1GiB".into()) }
}

/// The address space of a process with five levels of tables.
const LARGEST: u64 = 1 << 56;
/// The most that `kernel.pid_max` can be.
const MOST_PROCESSES: u64 = 1 << 22;

fn processes(text: &str) -> Result<u64, String> {
    let count = thousands(text).map_err(|_| "it is a whole number, such as 10000 or 10,000".to_string())?;
    match count {
        0 => Err("memory that no process maps needs no page tables".into()),
        1..=MOST_PROCESSES => Ok(count),
        _ => Err(format!("Linux has {} processes at the most", human::count(MOST_PROCESSES))),
    }
}

/// A plan. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Bytes of the shared memory.
    pub size: u64,
    /// Processes that map it.
    pub processes: u64,
    /// Huge pages of 2 MiB to reserve.
    pub nr_hugepages_2m: u64,
    /// Huge pages of 1 GiB to reserve.
    pub nr_hugepages_1g: u64,
    /// What each way of mapping it costs.
    pub ways: Vec<Line>,
    /// What the configuration says against it.
    pub remarks: Vec<String>,
    /// What the configuration asks for, if there is one.
    #[serde(skip)]
    pub asks: Option<Asks>,
    /// Bytes of the pages that this host gives to who names no size, if it was compared.
    #[serde(skip)]
    pub default_size: Option<u64>,
    /// What of it this host has, if that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// The pages that a configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Base pages.
    BasePages,
    /// Huge pages.
    HugePages {
        /// Of so many bytes; 0 for the host's default.
        size: u64,
    },
}

/// Plans and writes the plan; the exit status.
pub fn run(options: &PlanOptions) -> Result<i32> {
    let mut plan = plan(options)?;
    if options.check {
        let source = options.root.as_deref().map_or_else(Source::host, Source::recorded);
        plan.checks = check::checks(&source, &plan, options.page_size);
        plan.default_size = Meminfo::read(&source).get("Hugepagesize");
    }
    let text = if options.json { serde_json::to_string_pretty(&plan)? + "\n" } else { text(&plan) };
    file::write(&text, None)?;
    Ok(i32::from(plan.checks.iter().any(|check| check.is_needed && !check.is_met)))
}

/// Counts.
pub fn plan(options: &PlanOptions) -> Result<Plan> {
    let mut remarks = Vec::new();
    let (mut size, mut processes, mut asks) = (0, 0, None);
    if let Some(path) = &options.from {
        let settings = Settings::read(path)?;
        size = settings.shared_memory()?;
        processes = settings.processes()?;
        remarks.push(format!(
            "shared_buffers is {}, and what PostgreSQL keeps beside it {}; `postgres -C \
             shared_memory_size_in_huge_pages` of your version, with your extensions, has the last word.",
            human::bytes(settings.shared_buffers()?),
            human::bytes(size - settings.shared_buffers()?.min(size))
        ));
        remarks.push(format!(
            "{} connections and PostgreSQL's own processes make {}.",
            human::count(settings.max_connections()?),
            human::processes(processes)
        ));
        if settings.huge_pages() == HugePages::Off {
            remarks.push("huge_pages is off.".into());
        }
        if settings.is_sysv() {
            remarks.push("shared_memory_type is sysv: such memory cannot be on huge pages.".into());
        }
        asks = Some(match settings.huge_pages() == HugePages::Off || settings.is_sysv() {
            true => Asks::BasePages,
            false => Asks::HugePages { size: settings.huge_page_size()? },
        });
        match settings.huge_page_size()? {
            0 => {}
            page => remarks.push(format!("huge_page_size is {}.", human::bytes(page))),
        }
    }
    let size = options.size.map_or(size, |size| size.0);
    let processes = options.processes.unwrap_or(processes);
    if size == 0 {
        bail!("memory of no size needs no page tables");
    }
    if size > LARGEST {
        bail!("{} is more than a process can map: {}", human::bytes(size), human::bytes(LARGEST));
    }
    let wanted = |line: &Line| options.page_size.is_none_or(|page| line.way.page_size() == page.0);
    Ok(Plan {
        size,
        processes,
        nr_hugepages_2m: size.div_ceil(2 << 20),
        nr_hugepages_1g: size.div_ceil(1 << 30),
        ways: lines(size, processes).into_iter().filter(wanted).collect(),
        remarks,
        asks,
        default_size: None,
        checks: Vec::new(),
    })
}

/// The plan for people.
pub fn text(plan: &Plan) -> String {
    let mut out = format!(
        "{} of shared memory, mapped by {}\n",
        human::bytes(plan.size),
        human::processes(plan.processes)
    );
    for remark in &plan.remarks {
        let _ = writeln!(out, "  {remark}");
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "mapped with",
        "page tables",
        "of one process",
        "PTE tables",
        "PMD tables",
        "PUD tables",
        "faults of a new process",
    ]);
    for line in &plan.ways {
        let count = |of: fn(&crate::audit::geometry::Tables) -> u64| {
            line.tables.as_ref().map_or("-".into(), |tables| human::count(of(tables)))
        };
        table.add_row([
            line.way.describe().to_string(),
            line.bytes.map_or("more than 16 EiB".into(), human::bytes),
            line.bytes
                .map_or("-".into(), |bytes| human::bytes(bytes.checked_div(plan.processes).unwrap_or(0))),
            count(|tables| tables.pte),
            count(|tables| tables.pmd),
            count(|tables| tables.pud),
            human::count(line.faults),
        ]);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if index == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    let _ = writeln!(out, "{table}");
    let has = |page| plan.ways.iter().any(|line| line.way.page_size() == page);
    if has(Way::Huge.page_size()) {
        let _ = match plan.default_size.filter(|size| *size != Way::Huge.page_size()) {
            None => writeln!(out, "vm.nr_hugepages = {} for pages of 2 MiB", plan.nr_hugepages_2m),
            // The setting has no size in its name, and is that of the host's default.
            Some(size) => writeln!(
                out,
                "echo {} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages for pages of 2 MiB (vm.nr_hugepages is for \
                 pages of {} on this host)",
                plan.nr_hugepages_2m,
                human::bytes(size)
            ),
        };
    }
    if has(Way::Gigantic.page_size()) {
        let _ = writeln!(
            out,
            "hugepagesz=1G hugepages={} on the kernel's command line for pages of 1 GiB",
            plan.nr_hugepages_1g
        );
    }
    if has(Way::Huge.page_size()) {
        out.push_str(
            "Linux shares only whole slots of 1 GiB at congruent addresses; a process that places \
            the memory elsewhere pays as if nothing were shared.\n",
        );
    }
    if !plan.checks.is_empty() {
        out.push_str("On this host\n");
    }
    for check in &plan.checks {
        let mark = match (check.is_met, check.is_needed) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "no",
        };
        let _ = writeln!(out, "  {mark:<7} {}", check.what);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        plan: PlanOptions,
    }

    fn planned(line: &str) -> Result<Plan> {
        let cli = Cli::try_parse_from(std::iter::once("plan").chain(line.split_whitespace()))?;
        plan(&cli.plan)
    }

    #[test]
    fn the_command_line_is_read() {
        let plan = planned("--size 1TiB --processes 10000").unwrap();
        assert_eq!((plan.nr_hugepages_2m, plan.nr_hugepages_1g, plan.ways.len()), (524_288, 1024, 6));
        assert_eq!(planned("--size 1GiB --processes 2 --page-size 2MiB").unwrap().ways.len(), 3);
        assert_eq!(planned("--size 1Gi --processes 10,000").unwrap().processes, 10_000);
        for line in [
            "",
            "--size 1G",
            "--processes 1",
            "--size 1G --processes 1 --page-size 3M",
            "--size 1G --processes 0",
            "--size 1G --processes 5000000",
            "--size 0 --processes 1",
            "--size 16384P --processes 1",
            "--size 65P --processes 1",
        ] {
            assert!(planned(line).is_err(), "{line}");
        }
    }

    #[test]
    fn people_read_the_design_documents_figures() {
        let text = text(&planned("--size 1TiB --processes 10000").unwrap());
        let row = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_string();
        // 39.06 GiB of PMD tables, and 78 MiB above them.
        assert!(row("not shared").contains("39.1 GiB") && row("not shared").contains("10,240,000"), "{text}");
        assert!(row("2 MiB pages, tables owned").contains("82.1 MiB"), "{text}");
        // 2 GiB of PTE tables once for all.
        assert!(row("4 KiB pages, tables owned").contains("2.1 GiB"), "{text}");
        assert!(text.contains("vm.nr_hugepages = 524288"), "{text}");
    }

    #[test]
    fn a_configuration_gives_size_and_processes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgresql.conf");
        std::fs::write(&path, "shared_buffers = 8GB\nmax_connections = 500\nhuge_pages = off\n").unwrap();
        let plan = planned(&format!("--from {}", path.display())).unwrap();
        assert_eq!(plan.processes, 528);
        assert!((4200..4230).contains(&plan.nr_hugepages_2m), "{}", plan.nr_hugepages_2m);
        assert!(plan.remarks.iter().any(|remark| remark.contains("is off")));
    }
}
