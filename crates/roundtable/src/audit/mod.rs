//! `roundtable audit`: who shares page tables on this Linux host, who could, and what it saves.
//!
//! It reads /proc, /sys and the configuration files of database servers; it never stops, traces or changes a
//! process. First it looks at every process briefly (status and maps), then into those that map huge or
//! shared pages (pagemap, and smaps as far as needed), as many as the time allows: of mappings that are alike
//! at least one is looked into, and the others are taken to be the same.

pub mod advice;
pub mod answer;
pub mod collect;
pub mod cost;
pub mod coverage;
pub mod deadline;
pub mod explain;
pub mod files;
pub mod geometry;
pub mod group;
pub mod held;
pub mod holding;
pub mod host;
pub mod kernel_version;
pub mod maps;
pub mod meminfo;
pub mod mounts;
pub mod pagemap;
pub mod pools;
pub mod postgres;
pub mod probe;
pub mod record;
pub mod recording;
pub mod report;
pub mod reservations;
pub mod same_memory;
pub mod sight;
pub mod slots;
pub mod source;
pub mod tables;
pub mod thresholds;
pub mod trust;
pub mod unit;
pub mod witness;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use self::advice::Worth;
use self::deadline::Deadline;
use self::host::Host;
use self::report::Report;
use self::source::Source;
use self::thresholds::Threshold;
use crate::size::Size;
use crate::{output, terminal};

/// Shared memory on base pages from this size on is worth a line.
pub const LARGE: u64 = 64 << 20;

/// Examples at the end of the help.
const EXAMPLES: &str = "Exit status: 0, or 1 for --warn-on, 2 for --fail-on, 3 when nothing can be told.

Examples:
  roundtable audit                              all three questions, and what to do
  roundtable audit --all --json                 everything, for programs
  roundtable audit --prometheus -o /var/lib/node_exporter/textfile/roundtable.prom
  roundtable audit --warn-on left=1G --fail-on tables=10G --fail-on pool-free=0";

/// How to audit.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct AuditOptions {
    /// Write JSON instead of a table
    #[arg(long, conflicts_with = "prometheus")]
    pub json: bool,

    /// Write Prometheus' text format, for node_exporter's textfile collector
    #[arg(long)]
    pub prometheus: bool,

    /// Write to this file, which is replaced in one go; to a device, FIFO or socket; or with - to standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Files shown, those with the largest page tables first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// Exit with status 1 when this is reached; see --fail-on
    #[arg(long, value_name = "WHAT=VALUE")]
    pub warn_on: Vec<Threshold>,

    /// Exit with status 2 when this is reached: tables=SIZE of all page tables, saving=SIZE that advice
    /// saves, left=SIZE of huge pages that nobody uses, unexplained=PAGES, pool-free=PAGES or fewer,
    /// limits=NUMBER that are met, unseen=PROCESSES
    #[arg(long, value_name = "WHAT=VALUE")]
    pub fail_on: Vec<Threshold>,

    /// How far to look.
    #[command(flatten)]
    pub look: LookOptions,
}

/// How far to look.
#[derive(Args, Clone, Debug)]
pub struct LookOptions {
    /// Seconds for the whole run; what is not looked into by then is taken to be as those alike are
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub seconds: u64,

    /// Look into all processes, however long it takes, and show what has no bearing as well
    #[arg(long, conflicts_with = "seconds")]
    pub all: bool,

    /// Shared memory on base pages counts when at least so many processes map it
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub min_processes: usize,

    /// Advise what saves at least so much memory, and a 200th of what it takes; 0 advises all
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    pub worth: Size,

    /// Look at a recording that `roundtable record` has made, instead of this host
    #[arg(long, value_name = "FOLDER")]
    pub root: Option<PathBuf>,
}

impl LookOptions {
    /// When a run that begins now has to end.
    pub fn deadline(&self) -> Deadline {
        match self.all {
            true => Deadline::never(),
            false => Deadline::after(Instant::now(), Duration::from_secs(self.seconds)),
        }
    }

    /// Where to read.
    pub fn source(&self) -> Source {
        self.root.as_deref().map_or_else(Source::host, Source::recorded)
    }
}

/// Audits and writes the result; the exit status.
pub fn run(options: &AuditOptions) -> Result<i32> {
    let source = options.look.source();
    let report = audit(&source, &options.look, false)?;
    let text = if options.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else if options.prometheus {
        output::prometheus::text(&report)
    } else {
        let top = if options.look.all { usize::MAX } else { options.top };
        let is_shown = options.output.is_none();
        let width = if is_shown { terminal::width() } else { None };
        output::table::text(&report, output::table::Extent { top, width })
    };
    output::file::write(&text, options.output.as_deref())?;
    let (status, lines) = thresholds::judge(&report, &options.warn_on, &options.fail_on);
    // Without a reader there is nobody to tell; the status says it too.
    let mut errors = io::stderr().lock();
    lines.iter().for_each(|line| drop(writeln!(errors, "roundtable: {line}")));
    Ok(status)
}

/// Audits once.
pub fn audit(source: &Source, options: &LookOptions, with_faults: bool) -> Result<Report> {
    audit_until(options.deadline(), source, options, with_faults)
}

/// The same until this deadline, and not the one of the options.
pub fn audit_until(
    deadline: Deadline,
    source: &Source,
    options: &LookOptions,
    with_faults: bool,
) -> Result<Report> {
    let host = Host::look(source, deadline, with_faults)?;
    Ok(answer::report(&host, options.min_processes, Worth(options.worth.0)))
}
